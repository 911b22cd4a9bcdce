/*
 * The guest's view of a power loss; see crash_model.h.
 *
 * For one sector: let FLOOR be the latest begin among the writes and zero-writes of it that are durable for
 * the guest (acknowledged before a flush was asked for that has been acknowledged). A request may have left
 * its mark if it had begun and was not over before FLOOR. The first contents may be there if there is no
 * FLOOR. A discard lets zeroes appear and forbids nothing.
 */
#include "tests/crash/crash_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/crash/crash_sector.h"

bool crash_model_read(struct crash_model *model, const struct crash_log *log)
{
    model->requests = calloc(log->event_count + 1, sizeof *model->requests);
    if (!model->requests)
        return false;
    for (uint32_t at = 0; at < log->event_count; at++) {
        const struct log_event *event = &log->events[at];
        struct guest_mark mark;
        if (event->kind != LOG_EVENT_MARK || event->mark_bytes != sizeof mark)
            continue;
        memcpy(&mark, event->mark, sizeof mark);
        if (mark.id == 0 || mark.id > log->event_count) {
            fprintf(stderr, "a mark names request %u\n", mark.id);
            return false;
        }
        struct guest_request *request = &model->requests[mark.id];
        if (mark.id >= model->request_count)
            model->request_count = mark.id + 1;
        if (mark.end) {
            request->end = at;
            request->failed = mark.failed;
        } else {
            *request = (struct guest_request){
                .op = mark.op, .begin = at + 1, .end = NEVER, .sector = mark.sector, .count = mark.count};
        }
    }
    return true;
}

void crash_model_free(struct crash_model *model)
{
    free(model->requests);
}

static bool begun(const struct guest_request *request, uint32_t at)
{
    return request->begin != 0 && request->begin - 1 < at;
}

bool crash_model_size_ok(const struct crash_model *model, uint32_t at, uint64_t sectors)
{
    bool first_ok = true, ok = false;
    uint32_t floor = 0;
    for (size_t i = 1; i < model->request_count; i++) {
        const struct guest_request *r = &model->requests[i];
        if (r->op == GUEST_RESIZE && r->end < at && !r->failed && r->begin > floor)
            floor = r->begin; /* a resize that has ended is durable by itself */
    }
    for (size_t i = 1; i < model->request_count; i++) {
        const struct guest_request *r = &model->requests[i];
        if (r->op != GUEST_RESIZE || !begun(r, at))
            continue;
        if (r->begin >= floor && r->count == sectors)
            ok = true;
    }
    if (floor != 0)
        first_ok = false;
    return ok || (first_ok && sectors == model->first_sectors);
}

uint64_t crash_model_first_hash(const struct crash_model *model)
{
    uint8_t *disk = calloc(model->first_sectors + 1, 512);
    for (uint64_t s = 0; disk && model->backed && s < model->first_sectors; s++)
        crash_sector_fill(disk + s * 512, s, 0);
    uint64_t hash = disk ? crash_hash(disk, model->first_sectors * 512) : 0;
    free(disk);
    return hash;
}

static const struct guest_request *deletion_of(const struct crash_model *model, uint64_t maker)
{
    for (size_t i = 1; i < model->request_count; i++) {
        if (model->requests[i].begin && model->requests[i].op == GUEST_SNAPSHOT_DELETE &&
            model->requests[i].sector == maker)
            return &model->requests[i];
    }
    return NULL;
}

bool crash_model_snapshot_ok(const struct crash_model *model, uint32_t at, const char *name, uint64_t content,
                             char *why, size_t why_bytes)
{
    uint64_t id = name[0] == 's' ? strtoull(name + 1, NULL, 10) : 0;
    const struct guest_request *r = id && id < model->request_count ? &model->requests[id] : NULL;
    if (!r || r->op != GUEST_SNAPSHOT || !begun(r, at)) {
        snprintf(why, why_bytes, "there is a snapshot '%s' that nobody made", name);
        return false;
    }
    const struct guest_request *gone = deletion_of(model, id);
    if (gone && gone->end < at && !gone->failed) {
        snprintf(why, why_bytes, "snapshot '%s' was deleted and is there", name);
        return false;
    }
    if (r->sector != content) {
        snprintf(why, why_bytes, "snapshot '%s' does not hold what the disk held when it was made", name);
        return false;
    }
    return true;
}

unsigned crash_model_snapshots_least(const struct crash_model *model, uint32_t at)
{
    unsigned least = 0;
    for (size_t i = 1; i < model->request_count; i++) {
        const struct guest_request *r = &model->requests[i];
        if (!r->begin || r->op != GUEST_SNAPSHOT || r->end >= at || r->failed)
            continue;
        const struct guest_request *gone = deletion_of(model, i);
        least += !gone || !begun(gone, at);
    }
    return least;
}

static bool may_be_from(const struct crash_model *model, uint32_t at, uint64_t sector, uint64_t id,
                        uint32_t floor)
{
    const struct guest_request *r = id < model->request_count ? &model->requests[id] : NULL;
    return r && r->op == GUEST_WRITE && begun(r, at) && sector >= r->sector &&
           sector < r->sector + r->count && r->end >= floor;
}

bool crash_model_verify(const struct crash_model *model, uint32_t at, const uint8_t *data, uint64_t sectors,
                        char *why, size_t why_bytes)
{
    uint32_t *floors = calloc(sectors + 1, sizeof *floors), *zeroed = calloc(sectors + 1, sizeof *zeroed);
    bool good = floors && zeroed;
    uint32_t horizon = 0;
    if (!good)
        snprintf(why, why_bytes, "out of memory");
    for (size_t i = 1; good && i < model->request_count; i++) {
        const struct guest_request *r = &model->requests[i];
        if (r->op == GUEST_FLUSH && begun(r, at) && r->end < at && !r->failed && r->begin - 1 > horizon)
            horizon = r->begin - 1;
    }
    for (size_t i = 1; good && i < model->request_count; i++) {
        const struct guest_request *r = &model->requests[i];
        if (!begun(r, at) || r->op > GUEST_DISCARD)
            continue;
        bool durable = r->end < horizon && !r->failed;
        for (uint64_t s = r->sector; s < r->sector + r->count && s < sectors; s++) {
            if (durable && r->op != GUEST_DISCARD && r->begin > floors[s])
                floors[s] = r->begin;
            if (r->op != GUEST_WRITE && r->end > zeroed[s])
                zeroed[s] = r->end;
        }
    }
    for (uint64_t s = 0; good && s < sectors; s++) {
        uint64_t id, whose;
        bool initial_backed = model->backed && s < model->backed_sectors;
        switch (crash_sector_look(data + s * 512, s, &id, &whose)) {
        case CRASH_SECTOR_ZERO:
            good = (floors[s] == 0 && !initial_backed) || zeroed[s] >= floors[s];
            if (zeroed[s] == 0 && (floors[s] != 0 || initial_backed))
                good = false;
            if (!good)
                snprintf(why, why_bytes,
                         "sector %llu reads as zeroes, and nothing that may still count zeroed it",
                         (unsigned long long)s);
            break;
        case CRASH_SECTOR_STRANGE:
            snprintf(why, why_bytes, "sector %llu holds what no request wrote", (unsigned long long)s);
            good = false;
            break;
        case CRASH_SECTOR_OTHER:
            snprintf(why, why_bytes, "sector %llu holds the data of sector %llu (request %llu)",
                     (unsigned long long)s, (unsigned long long)whose, (unsigned long long)id);
            good = false;
            break;
        case CRASH_SECTOR_MIXTURE:
            snprintf(why, why_bytes, "sector %llu is torn within itself (request %llu of sector %llu)",
                     (unsigned long long)s, (unsigned long long)id, (unsigned long long)whose);
            good = false;
            break;
        case CRASH_SECTOR_WHOLE:
            good = id == 0 ? initial_backed && floors[s] == 0 : may_be_from(model, at, s, id, floors[s]);
            if (!good && id == 0)
                snprintf(why, why_bytes, "sector %llu shows the backing file again", (unsigned long long)s);
            else if (!good)
                snprintf(why, why_bytes,
                         "sector %llu is stale: it holds request %llu, over before a later durable one",
                         (unsigned long long)s, (unsigned long long)id);
            break;
        }
    }
    free(floors);
    free(zeroed);
    return good;
}
