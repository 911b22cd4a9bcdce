/*
 * `ringside verify` on a host-managed zoned disk (virtio 1.4, 5.2.6): every zone command, and a model of the
 * zones that knows the answer to each.
 *
 * A zone is held by requests of one kind at a time: reads, writes of one queue (which go to the write pointer
 * one behind the other), appends of any queues (each must get a place of its own, without a hole between
 * them), or one command. A report looks at all zones at any time and is judged by those that stood still
 * meanwhile.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness/names.h"
#include "tests/harness/verify.h"

#define ZONES_TRACKED    512u
#define LIMITED_MAX      (64u << 10) /* bytes of a write where zones may run out: in one piece */
#define LIMITED_SEGS_MAX 8u
#define BUSY_WITH_CHANGE UINT32_MAX

enum zone_use { ZONE_IDLE, ZONE_READ, ZONE_WRITE, ZONE_APPEND, ZONE_COMMAND };

/* As far as the driver can tell: an implicitly open zone may be closed by the device when it likes. */
enum zone_state { ZONE_EMPTY, ZONE_IMPLICIT, ZONE_EXPLICIT, ZONE_CLOSED, ZONE_FULL, ZONE_BEYOND_HOPE };

struct zone {
    uint64_t start, end;
    uint64_t wp;       /* when all in flight began */
    uint64_t next;     /* with all that is in flight */
    uint64_t appended; /* sectors that appends in flight have put there */
    enum zone_state state;
    enum zone_use use;
    unsigned users;
    const struct worker *writer;
    uint32_t changes;
};

struct zones {
    uint64_t zone_sectors;
    unsigned count, conventional;
    uint64_t max_append; /* sectors */
    bool limited;        /* how many zones may be open or active */
    const struct worker *wants_all;
    struct zone zone[ZONES_TRACKED];
};

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- who holds what (under the lock) ---- */

static bool zone_take(struct zone *zone, enum zone_use use, const struct worker *worker, bool limited)
{
    if (zone->state == ZONE_BEYOND_HOPE)
        return false;
    if (zone->users > 0 && (zone->use != use || use == ZONE_COMMAND ||
                            (use == ZONE_WRITE && (limited || zone->writer != worker))))
        return false;
    if (zone->users++ == 0) {
        zone->next = zone->wp;
        zone->appended = 0;
        if (use != ZONE_READ)
            zone->changes++;
    }
    zone->use = use;
    zone->writer = worker;
    return true;
}

static void zone_give(struct zone *zone)
{
    if (--zone->users == 0)
        zone->use = ZONE_IDLE;
}

static struct zone *any_zone(struct worker *worker)
{
    struct zones *zones = worker->verify->zones;
    unsigned sequential = zones->count - zones->conventional;
    unsigned hot = chance_percent(&worker->chance, 60) && sequential > 4 ? 4 : sequential;

    return &zones->zone[zones->conventional + chance_below(&worker->chance, hot)];
}

/* ---- requests ---- */

static void start(struct slot *slot, enum vblk_op op, uint64_t sector, uint64_t count, int expected)
{
    slot->request =
        (struct vblk_request){.op = op, .sector = sector, .complete = verify_finish, .opaque = slot};
    slot->of_zones = true;
    slot->number = slot->worker->submitted;
    slot->sector = sector;
    slot->count = count;
    slot->expected = expected;
    slot->may_be_busy = slot->may_be_wrong = false;
}

static void fill_with_data(struct worker *worker, struct slot *slot)
{
    struct verify *v = worker->verify;
    bool placed = slot->request.op == VBLK_ZONE_APPEND;

    verify_lay_out(worker, slot, slot->count * MODEL_SECTOR,
                   v->zones->limited || placed ? LIMITED_SEGS_MAX : SEGS_MAX);
    model_fill(&v->model, placed ? 0 : slot->sector, slot->count, slot->version, worker->scratch);
    verify_scatter(slot, worker->scratch);
}

static bool prepare_read(struct worker *worker, struct slot *slot, struct zone *zone)
{
    struct verify *v = worker->verify;
    uint64_t at =
        chance_below(&worker->chance, (zone->end - zone->start) / v->block_sectors) * v->block_sectors;
    uint64_t count = verify_choose_count(worker, v->request_sectors);

    /* Into the next zone: refused, whatever they hold (5.2.6.2). */
    if (chance_percent(&worker->chance, 2) && zone->end < v->model.sectors) {
        start(slot, VBLK_READ, zone->end - v->block_sectors, 2 * v->block_sectors, -VBLK_EINVAL);
        slot->zone = NULL;
    } else {
        if (!zone_take(zone, ZONE_READ, worker, false))
            return false;
        /* Often what was written last and the zeroes behind it. */
        if (chance_percent(&worker->chance, 30) && zone->wp < zone->end)
            at = zone->wp - zone->start > count / 2 ? zone->wp - zone->start - count / 2 : 0;
        at -= at % v->block_sectors;
        start(slot, VBLK_READ, zone->start + at, least(count, zone->end - zone->start - at), 0);
        slot->zone = zone;
    }
    return true;
}

/* Not at the write pointer, or where no room is left: nothing may change. */
static bool prepare_wrong_write(struct worker *worker, struct slot *slot, struct zone *zone, enum vblk_op op)
{
    struct verify *v = worker->verify;
    uint64_t sector = zone->start;

    if (!zone_take(zone, ZONE_COMMAND, worker, false))
        return false;
    if (op == VBLK_WRITE) {
        sector = zone->wp + v->block_sectors;
        if (zone->state == ZONE_FULL || sector >= zone->end)
            sector = zone->wp == zone->start ? zone->end - v->block_sectors : zone->start;
    }
    start(slot, op, sector, v->block_sectors, -VBLK_EINVAL);
    slot->zone = zone;
    slot->may_be_busy = v->zones->limited;
    return true;
}

static bool prepare_write(struct worker *worker, struct slot *slot, struct zone *zone, enum vblk_op op)
{
    struct verify *v = worker->verify;
    uint64_t most = v->request_sectors;
    bool wrong =
        op == VBLK_WRITE && chance_percent(&worker->chance, 4) && zone->wp + v->block_sectors < zone->end;

    if (wrong || (!zone->users && (zone->state == ZONE_FULL || zone->wp == zone->end)))
        return prepare_wrong_write(worker, slot, zone, op);
    if (zone->state == ZONE_FULL || (zone->users && zone->next == zone->end))
        return false;
    if (v->zones->limited)
        most = least(most, LIMITED_MAX / MODEL_SECTOR);
    if (op == VBLK_ZONE_APPEND)
        most = least(most, v->zones->max_append);
    if (!zone_take(zone, op == VBLK_WRITE ? ZONE_WRITE : ZONE_APPEND, worker, v->zones->limited))
        return false;
    start(slot, op, op == VBLK_WRITE ? zone->next : zone->start,
          least(verify_choose_count(worker, most), zone->end - zone->next), 0);
    zone->next += slot->count;
    slot->zone = zone;
    slot->version = v->version++ | (op == VBLK_WRITE ? 0 : MODEL_PLACED);
    slot->may_be_busy = v->zones->limited;
    return true;
}

static bool prepare_command(struct worker *worker, struct slot *slot, struct zone *zone, enum vblk_op op)
{
    const struct zones *zones = worker->verify->zones;

    if (zones->conventional && chance_percent(&worker->chance, 5)) {
        zone = NULL;
        start(slot, op, chance_below(&worker->chance, zones->conventional) * zones->zone_sectors, 0,
              -VBLK_EINVAL);
    } else {
        if (!zone_take(zone, ZONE_COMMAND, worker, false))
            return false;
        start(slot, op, zone->start, zone->end - zone->start, 0);
    }
    slot->zone = zone;
    if (!zone)
        return true;
    if (op == VBLK_ZONE_OPEN) {
        slot->expected = zone->state == ZONE_FULL ? -VBLK_EINVAL : 0;
        slot->may_be_busy = zones->limited && zone->state != ZONE_EXPLICIT;
    } else if (op == VBLK_ZONE_CLOSE) {
        slot->expected = zone->state == ZONE_FULL || zone->state == ZONE_EMPTY ? -VBLK_EINVAL : 0;
        slot->may_be_wrong = zone->state == ZONE_CLOSED;
    } else {
        slot->may_be_wrong = op == VBLK_ZONE_FINISH && zone->state == ZONE_FULL;
    }
    return true;
}

/* Waits, without holding up its own worker, until all zones are idle. */
static bool prepare_reset_all(struct worker *worker, struct slot *slot)
{
    struct zones *zones = worker->verify->zones;

    zones->wants_all = worker;
    for (unsigned i = zones->conventional; i < zones->count; i++)
        if (zones->zone[i].users > 0)
            return false;
    zones->wants_all = NULL;
    for (unsigned i = zones->conventional; i < zones->count; i++)
        zone_take(&zones->zone[i], ZONE_COMMAND, worker, false);
    start(slot, VBLK_ZONE_RESET_ALL, 0, 0, 0);
    slot->zone = NULL;
    return true;
}

static bool prepare_report(struct worker *worker, struct slot *slot)
{
    struct zones *zones = worker->verify->zones;

    start(slot, VBLK_ZONE_REPORT, chance_below(&worker->chance, worker->verify->model.sectors),
          chance_below(&worker->chance, zones->count + 2), 0);
    slot->zone = NULL;
    for (unsigned i = 0; i < zones->count; i++) {
        const struct zone *zone = &zones->zone[i];

        slot->seen[i] = zone->users > 0 && zone->use != ZONE_READ ? BUSY_WITH_CHANGE : zone->changes;
    }
    return true;
}

void verify_zones_leave(struct worker *worker)
{
    struct verify *v = worker->verify;

    pthread_mutex_lock(&v->lock);
    if (v->zones->wants_all == worker)
        v->zones->wants_all = NULL;
    pthread_mutex_unlock(&v->lock);
}

/* Room for slot->count descriptors, and a few bytes that are none */
static void lay_out_report(struct worker *worker, struct slot *slot)
{
    size_t bytes = sizeof(struct virtio_blk_zone_report) +
                   slot->count * sizeof(struct virtio_blk_zone_descriptor) +
                   chance_below(&worker->chance, sizeof(struct virtio_blk_zone_descriptor));

    verify_lay_out(worker, slot, bytes, LIMITED_SEGS_MAX);
    verify_guard_set(slot);
}

static enum vblk_op choose(struct worker *worker)
{
    uint64_t dice = chance_below(&worker->chance, 100);

    if (worker->verify->zones->wants_all == worker)
        return VBLK_ZONE_RESET_ALL;
    if (worker->verify->rig->info.read_only)
        return dice < 90 ? VBLK_READ : VBLK_ZONE_REPORT;
    return dice < 30   ? VBLK_READ
           : dice < 55 ? VBLK_WRITE
           : dice < 78 ? VBLK_ZONE_APPEND
           : dice < 83 ? VBLK_ZONE_REPORT
           : dice < 88 ? VBLK_ZONE_OPEN
           : dice < 92 ? VBLK_ZONE_CLOSE
           : dice < 94 ? VBLK_ZONE_FINISH
                       : VBLK_ZONE_RESET;
}

enum zones_choice verify_zones_prepare(struct worker *worker, struct slot *slot)
{
    struct verify *v = worker->verify;
    struct zones *zones = v->zones;
    enum vblk_op op;
    bool taken = false;

    if (chance_percent(&worker->chance, 15))
        return ZONES_NONE;
    pthread_mutex_lock(&v->lock);
    op = chance_below(&worker->chance, 1000) ? choose(worker) : VBLK_ZONE_RESET_ALL;
    if (op == VBLK_ZONE_APPEND && !zones->max_append)
        op = VBLK_WRITE;
    if (op == VBLK_ZONE_RESET_ALL && v->rig->info.read_only)
        op = VBLK_READ;
    if (op == VBLK_ZONE_REPORT) {
        taken = prepare_report(worker, slot);
    } else if (!zones->wants_all || zones->wants_all == worker) {
        for (unsigned try = 0; try < 8 && !taken; try++) {
            struct zone *zone = any_zone(worker);

            taken = op == VBLK_ZONE_RESET_ALL                    ? prepare_reset_all(worker, slot)
                    : op == VBLK_READ                            ? prepare_read(worker, slot, zone)
                    : op == VBLK_WRITE || op == VBLK_ZONE_APPEND ? prepare_write(worker, slot, zone, op)
                                                                 : prepare_command(worker, slot, zone, op);
        }
    }
    pthread_mutex_unlock(&v->lock);
    if (!taken)
        return ZONES_BUSY;
    switch (op) {
    case VBLK_READ:
        verify_lay_out(worker, slot, slot->count * MODEL_SECTOR, slot->expected ? 1 : SEGS_MAX);
        verify_guard_set(slot);
        break;
    case VBLK_WRITE:
    case VBLK_ZONE_APPEND:
        fill_with_data(worker, slot);
        break;
    case VBLK_ZONE_REPORT:
        lay_out_report(worker, slot);
        break;
    default:
        break;
    }
    return ZONES_TAKEN;
}

/* ---- judging ---- */

static bool state_fits(const struct zone *zone, uint8_t state)
{
    switch (zone->state) {
    case ZONE_EMPTY:
        return state == VIRTIO_BLK_ZS_EMPTY;
    case ZONE_IMPLICIT:
        return state == VIRTIO_BLK_ZS_IOPEN || state == VIRTIO_BLK_ZS_CLOSED;
    case ZONE_EXPLICIT:
        return state == VIRTIO_BLK_ZS_EOPEN;
    case ZONE_CLOSED: /* one that nothing was written to may be empty again */
        return state == VIRTIO_BLK_ZS_CLOSED || (state == VIRTIO_BLK_ZS_EMPTY && zone->wp == zone->start);
    case ZONE_FULL:
        return state == VIRTIO_BLK_ZS_FULL;
    default:
        return true;
    }
}

static bool descriptor_fits(const struct verify *v, const struct virtio_blk_zone_descriptor *got,
                            unsigned index, char *text, size_t bytes)
{
    const struct zone *zone = &v->zones->zone[index];
    bool conventional = index < v->zones->conventional;
    uint64_t wp = le64_get(got->z_wp), start_sector = le64_get(got->z_start), cap = le64_get(got->z_cap);

    if (start_sector != zone->start || cap != zone->end - zone->start ||
        got->z_type != (conventional ? VIRTIO_BLK_ZT_CONV : VIRTIO_BLK_ZT_SWR)) {
        snprintf(text, bytes, "zone %u is reported at sector %" PRIu64 ", %" PRIu64 " sectors, type %u",
                 index, start_sector, cap, got->z_type);
        return false;
    }
    if (conventional) {
        snprintf(text, bytes, "conventional zone %u is reported in state %u", index, got->z_state);
        return got->z_state == VIRTIO_BLK_ZS_NOT_WP;
    }
    snprintf(
        text, bytes,
        "zone %u is reported in state %u, write pointer %" PRIu64 "; it should be %s, write pointer %" PRIu64,
        index, got->z_state, wp - zone->start,
        (const char *[]){"empty", "implicitly open", "explicitly open", "closed", "full", "?"}[zone->state],
        zone->wp - zone->start);
    if (!state_fits(zone, got->z_state))
        return false;
    return zone->state == ZONE_FULL || zone->state == ZONE_BEYOND_HOPE || wp == zone->wp;
}

static void judge_report(struct verify *v, const struct slot *slot, const uint8_t *answer)
{
    struct virtio_blk_zone_report head;
    struct virtio_blk_zone_descriptor got;
    unsigned first = (unsigned)(slot->sector / v->zones->zone_sectors);
    uint64_t all = (v->rig->info.capacity_sectors + v->zones->zone_sectors - 1) / v->zones->zone_sectors;
    uint64_t want = least(slot->count, all - first);
    char text[200];

    memcpy(&head, answer, sizeof(head));
    if (le64_get(head.nr_zones) != want) {
        snprintf(text, sizeof(text), "a report of %" PRIu64 " zones, %" PRIu64 " were expected",
                 le64_get(head.nr_zones), want);
        verify_stop(v, slot, text);
        return;
    }
    for (unsigned i = first; i < first + want && i < v->zones->count; i++) {
        const struct zone *zone = &v->zones->zone[i];
        bool moves = zone->users > 0 && zone->use != ZONE_READ;

        memcpy(&got, answer + sizeof(head) + (i - first) * sizeof(got), sizeof(got));
        if (!moves && slot->seen[i] == zone->changes && !descriptor_fits(v, &got, i, text, sizeof(text)))
            verify_stop(v, slot, text);
    }
}

/* The zone's state after something was written. */
static void zone_wrote(struct zone *zone)
{
    if (zone->wp == zone->end)
        zone->state = ZONE_FULL;
    else if (zone->state != ZONE_EXPLICIT)
        zone->state = ZONE_IMPLICIT;
}

static void judge_append(struct verify *v, struct slot *slot)
{
    struct zone *zone = slot->zone;
    uint64_t at = slot->request.sector;

    if (at < zone->wp || at >= zone->end || slot->count > zone->end - at) {
        verify_stop(v, slot, "an append was put outside of what was left of its zone");
        return;
    }
    for (uint64_t i = 0; i < slot->count; i++)
        if (v->model.state[at + i] != MODEL_ZERO) {
            verify_stop(v, slot, "an append was put where something had been written already");
            return;
        }
    slot->sector = at;
    model_set(&v->model, at, slot->count, slot->version);
    zone->appended += slot->count;
}

static void appends_ended(struct verify *v, const struct slot *slot)
{
    struct zone *zone = slot->zone;

    for (uint64_t i = zone->wp; i < zone->wp + zone->appended; i++)
        if (v->model.state[i] == MODEL_ZERO) {
            verify_stop(v, slot, "appends left a hole between them");
            return;
        }
    zone->wp += zone->appended;
    if (zone->appended)
        zone_wrote(zone);
}

static void empty(struct verify *v, struct zone *zone)
{
    model_set(&v->model, zone->start, zone->end - zone->start, MODEL_ZERO);
    zone->wp = zone->start;
    zone->state = ZONE_EMPTY;
}

/* What was asked for was done. */
static void did(struct verify *v, struct slot *slot)
{
    struct zone *zone = slot->zone;

    switch (slot->request.op) {
    case VBLK_WRITE:
        model_set(&v->model, slot->sector, slot->count, slot->version);
        if (v->zones->limited)
            zone->wp = zone->next;
        break;
    case VBLK_ZONE_APPEND:
        judge_append(v, slot);
        break;
    case VBLK_ZONE_OPEN:
        zone->state = ZONE_EXPLICIT;
        break;
    case VBLK_ZONE_CLOSE:
        zone->state = ZONE_CLOSED;
        break;
    case VBLK_ZONE_FINISH:
        zone->state = ZONE_FULL;
        break;
    case VBLK_ZONE_RESET:
        empty(v, zone);
        break;
    default:
        break;
    }
}

/* The last one of its kind is done with the zone. */
static void last_of_kind(struct verify *v, struct slot *slot, int result)
{
    struct zone *zone = slot->zone;

    if (zone->use == ZONE_WRITE && (!v->zones->limited || result == 0)) {
        zone->wp = zone->next;
        zone_wrote(zone);
    } else if (zone->use == ZONE_APPEND) {
        appends_ended(v, slot);
    }
}

static void end_of_reset_all(struct verify *v, bool ok)
{
    for (unsigned i = v->zones->conventional; i < v->zones->count; i++) {
        struct zone *zone = &v->zones->zone[i];

        if (zone->state == ZONE_BEYOND_HOPE)
            continue;
        if (ok)
            empty(v, zone);
        zone_give(zone);
    }
}

static bool as_expected(const struct slot *slot, int result)
{
    return result == slot->expected || (slot->may_be_busy && result == -VBLK_EBUSY) ||
           (slot->may_be_wrong && result == -VBLK_EINVAL);
}

static void unexpected(struct verify *v, struct slot *slot, int result)
{
    char text[128];

    slot->worker->failed++;
    if (slot->zone)
        slot->zone->state = ZONE_BEYOND_HOPE;
    if (v->settings->allow_errors)
        return;
    snprintf(text, sizeof(text), "the request ended with \"%s\", expected was \"%s\"", name_of_error(result),
             name_of_error(slot->expected));
    verify_stop(v, slot, text);
}

void verify_zones_finish(struct worker *worker, struct slot *slot, int result)
{
    struct verify *v = worker->verify;
    struct model_difference difference;
    bool fine = as_expected(slot, result);

    if (result == 0)
        worker->done[slot->request.op]++;
    if (result == 0 && fine && slot->request.op == VBLK_READ) {
        verify_gather(slot, worker->scratch);
        if (!model_check(&v->model, slot->sector, slot->count, worker->scratch, &difference))
            verify_stop_difference(v, slot, &difference);
        verify_guard_check(v, slot);
    }
    if (slot->request.op == VBLK_READ || slot->request.op == VBLK_WRITE ||
        slot->request.op == VBLK_ZONE_APPEND)
        worker->bytes += slot->count * MODEL_SECTOR;
    pthread_mutex_lock(&v->lock);
    if (!fine)
        unexpected(v, slot, result);
    else if (result == 0 && slot->request.op == VBLK_ZONE_REPORT) {
        verify_gather(slot, worker->scratch);
        judge_report(v, slot, worker->scratch);
        verify_guard_check(v, slot);
    } else if (result == 0 && slot->expected == 0)
        did(v, slot);
    if (slot->request.op == VBLK_ZONE_RESET_ALL)
        end_of_reset_all(v, result == 0);
    if (slot->zone) {
        if (fine && slot->zone->users == 1)
            last_of_kind(v, slot, result);
        zone_give(slot->zone);
    }
    pthread_mutex_unlock(&v->lock);
}

/* ---- life ---- */

uint64_t verify_zones_end(const struct verify *v, uint64_t sector)
{
    return (sector / v->zones->zone_sectors + 1) * v->zones->zone_sectors;
}

/* Zone by zone what the device says now, handed to LOOK. */
static bool report_all(struct verify *v, void (*look)(struct verify *v, unsigned index,
                                                      const struct virtio_blk_zone_descriptor *zone))
{
    const size_t bytes = sizeof(struct virtio_blk_zone_report) + sizeof(struct virtio_blk_zone_descriptor);
    uint8_t *buf = hosted_alloc(v->rig->hosted, bytes, 64);
    struct vblk_seg seg = {buf, bytes};
    bool fine = buf != NULL;

    for (unsigned i = 0; fine && i < v->zones->count; i++) {
        struct vblk_request request = {
            .op = VBLK_ZONE_REPORT, .sector = i * v->zones->zone_sectors, .segs = &seg, .nsegs = 1};
        struct virtio_blk_zone_descriptor zone;

        fine = vblk_run(v->rig->disk, 0, &request) == 0;
        memcpy(&zone, buf + sizeof(struct virtio_blk_zone_report), sizeof(zone));
        if (fine)
            look(v, i, &zone);
    }
    if (!fine)
        verify_stop(v, NULL, "the device does not report its zones");
    hosted_free(v->rig->hosted, buf, bytes);
    return fine;
}

static void learn(struct verify *v, unsigned index, const struct virtio_blk_zone_descriptor *got)
{
    struct zone *zone = &v->zones->zone[index];

    zone->start = le64_get(got->z_start);
    zone->end = zone->start + le64_get(got->z_cap);
    zone->wp = le64_get(got->z_wp);
    switch (got->z_state) {
    case VIRTIO_BLK_ZS_EMPTY:
        zone->state = ZONE_EMPTY;
        break;
    case VIRTIO_BLK_ZS_IOPEN:
        zone->state = ZONE_IMPLICIT;
        break;
    case VIRTIO_BLK_ZS_EOPEN:
        zone->state = ZONE_EXPLICIT;
        break;
    case VIRTIO_BLK_ZS_CLOSED:
        zone->state = ZONE_CLOSED;
        break;
    case VIRTIO_BLK_ZS_FULL:
        zone->state = ZONE_FULL;
        break;
    default:
        zone->state = ZONE_BEYOND_HOPE;
        break;
    }
    if (got->z_type == VIRTIO_BLK_ZT_CONV)
        v->zones->conventional = index + 1;
}

bool verify_zones_make(struct verify *v)
{
    const struct virtio_blk_config *config = &v->rig->info.config;
    struct zones *zones;

    if (!verify_offered(v, VIRTIO_BLK_F_ZONED) || config->zoned.model != VIRTIO_BLK_Z_HM)
        return true;
    zones = v->zones = calloc(1, sizeof(*zones));
    if (!zones) {
        verify_stop(v, NULL, "no memory for the zones");
        return false;
    }
    zones->zone_sectors = v->model.zone_sectors = le32_get(config->zoned.zone_sectors);
    zones->max_append = le32_get(config->zoned.max_append_sectors);
    zones->limited = le32_get(config->zoned.max_open_zones) || le32_get(config->zoned.max_active_zones);
    if (!zones->zone_sectors || v->model.sectors / zones->zone_sectors == 0) {
        verify_stop(v, NULL, "zones of no size, or --span is smaller than one");
        return false;
    }
    zones->count = (unsigned)least(v->model.sectors / zones->zone_sectors, ZONES_TRACKED);
    if (!report_all(v, learn))
        return false;
    if (zones->conventional == zones->count) {
        verify_stop(v, NULL, "no sequential zone lies within --span");
        return false;
    }
    v->model.sectors = zones->count * zones->zone_sectors;
    v->plain_sectors = zones->conventional * zones->zone_sectors;
    for (unsigned q = 0; q < v->worker_count; q++)
        for (unsigned i = 0; i < v->settings->depth; i++) {
            v->workers[q].slots[i].seen = calloc(zones->count, sizeof(uint32_t));
            if (!v->workers[q].slots[i].seen) {
                verify_stop(v, NULL, "no memory for the zones");
                return false;
            }
        }
    return true;
}

void verify_zones_free(struct verify *v)
{
    for (unsigned q = 0; v->zones && q < v->worker_count; q++)
        for (unsigned i = 0; i < v->settings->depth; i++)
            free(v->workers[q].slots[i].seen);
    free(v->zones);
    v->zones = NULL;
}

static void check(struct verify *v, unsigned index, const struct virtio_blk_zone_descriptor *got)
{
    char text[200];

    if (!descriptor_fits(v, got, index, text, sizeof(text)))
        verify_stop(v, NULL, text);
}

void verify_zones_check(struct verify *v)
{
    report_all(v, check);
}
