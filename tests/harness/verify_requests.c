/*
 * Requests of `ringside verify`: what is asked for, where, in which buffers, and whether the answer is right
 * (see verify.c).
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tests/harness/names.h"
#include "tests/harness/verify.h"

#define GUARD 0xee

/* ---- reports ---- */

void verify_stop(struct verify *v, const struct slot *slot, const char *what)
{
    size_t at = 0;

    pthread_mutex_lock(&v->report_lock);
    if (!v->reported) {
        v->reported = true;
        at = (size_t)snprintf(v->report, sizeof(v->report), "%s", what);
        if (slot && at < sizeof(v->report)) {
            at += (size_t)snprintf(v->report + at, sizeof(v->report) - at,
                                   "\nrequest %" PRIu64 " of queue %u: %s, sector %" PRIu64 ", %" PRIu64
                                   " sectors, %u segments:",
                                   slot->number, slot->worker->queue, name_of_op(slot->request.op),
                                   slot->sector, slot->count, slot->request.nsegs);
            for (unsigned i = 0; i < slot->request.nsegs && at < sizeof(v->report) - 16; i++)
                at += (size_t)snprintf(v->report + at, sizeof(v->report) - at, " %zu", slot->segs[i].len);
        }
    }
    pthread_mutex_unlock(&v->report_lock);
    __atomic_store_n(&v->stop, true, __ATOMIC_RELEASE);
}

void verify_stop_difference(struct verify *v, const struct slot *slot,
                            const struct model_difference *difference)
{
    char text[320];

    snprintf(text, sizeof(text), "byte %" PRIu64 " (%#" PRIx64 ") is wrong: expected %02x, got %02x\n%s",
             difference->offset, difference->offset, difference->expected, difference->got,
             difference->story);
    verify_stop(v, slot, text);
}

/* ---- which sectors are in use ---- */

static bool writes(enum vblk_op op)
{
    return op == VBLK_WRITE || op == VBLK_DISCARD || op == VBLK_WRITE_ZEROES || op == VBLK_SECURE_ERASE;
}

static bool in_use(const struct verify *v, uint64_t sector, uint64_t count, bool for_writing)
{
    for (unsigned w = 0; w < v->worker_count; w++)
        for (unsigned i = 0; i < v->settings->depth; i++) {
            const struct slot *slot = &v->workers[w].slots[i];

            if (slot->busy && slot->sector < sector + count && sector < slot->sector + slot->count &&
                (for_writing || writes(slot->request.op)))
                return true;
        }
    return false;
}

/* Finds a free place for COUNT sectors; shortens them after some tries. False: everything is busy. */
static bool take_sectors(struct worker *worker, struct slot *slot, uint64_t count)
{
    struct verify *v = worker->verify;
    uint64_t blocks = v->plain_sectors / v->block_sectors;
    bool found = false;

    pthread_mutex_lock(&v->lock);
    for (unsigned try = 0; try < 32 && !found; try++) {
        uint64_t hot = chance_percent(&worker->chance, 40) ? blocks / 16 + 1 : blocks;
        uint64_t sector;

        if (count > v->plain_sectors)
            count = v->block_sectors;
        sector = chance_below(&worker->chance, hot) * v->block_sectors;
        if (chance_percent(&worker->chance, 20))
            sector &= ~(uint64_t)127;
        if (sector + count > v->plain_sectors)
            sector = v->plain_sectors - count;
        if (in_use(v, sector, count, writes(slot->request.op))) {
            if (count > v->block_sectors)
                count = (count / 2 + v->block_sectors - 1) / v->block_sectors * v->block_sectors;
            continue;
        }
        slot->sector = sector;
        slot->count = count;
        slot->busy = true;
        slot->version = v->version++;
        found = true;
    }
    pthread_mutex_unlock(&v->lock);
    return found;
}

static void give_sectors(struct worker *worker, struct slot *slot)
{
    pthread_mutex_lock(&worker->verify->lock);
    slot->busy = false;
    pthread_mutex_unlock(&worker->verify->lock);
}

/* ---- scatter lists ---- */

void verify_lay_out(struct worker *worker, struct slot *slot, size_t bytes, unsigned most)
{
    unsigned want =
        chance_percent(&worker->chance, 50) ? 1 : 1 + (unsigned)chance_below(&worker->chance, most);
    bool fine = chance_percent(&worker->chance, 30); /* any byte, not only multiples of 512 */
    uint8_t *at;
    unsigned n = 0;

    slot->buf = chance_percent(&worker->chance, 80) ? slot->shared : slot->private;
    at = slot->buf;
    while (bytes && n < want) {
        size_t len = bytes;

        at += chance_percent(&worker->chance, 50) ? chance_below(&worker->chance, GAP_MAX) : 0;
        if (n + 1 < want && bytes > 1) {
            len = 1 + chance_below(&worker->chance,
                                   bytes * 2 / (want - n) < bytes ? bytes * 2 / (want - n) : bytes);
            if (!fine)
                len = (len + 511) & ~(size_t)511;
            if (len > bytes)
                len = bytes;
        }
        slot->segs[n++] = (struct vblk_seg){at, len};
        at += len;
        bytes -= len;
    }
    slot->request.segs = slot->segs;
    slot->request.nsegs = n;
}

void verify_scatter(const struct slot *slot, const uint8_t *from)
{
    for (unsigned i = 0; i < slot->request.nsegs; from += slot->segs[i++].len)
        memcpy(slot->segs[i].addr, from, slot->segs[i].len);
}

void verify_gather(const struct slot *slot, uint8_t *to)
{
    for (unsigned i = 0; i < slot->request.nsegs; to += slot->segs[i++].len)
        memcpy(to, slot->segs[i].addr, slot->segs[i].len);
}

void verify_guard_set(const struct slot *slot)
{
    const struct vblk_seg *last = &slot->segs[slot->request.nsegs - 1];

    memset(slot->buf, GUARD, (size_t)((uint8_t *)last->addr - slot->buf) + last->len + 64);
}

void verify_guard_check(struct verify *v, const struct slot *slot)
{
    const uint8_t *at = slot->buf, *end;

    for (unsigned i = 0; i <= slot->request.nsegs; i++) {
        end = i < slot->request.nsegs ? slot->segs[i].addr : at + 64;
        for (; at < end; at++)
            if (*at != GUARD) {
                char text[128];

                snprintf(text, sizeof(text),
                         "a byte outside of the request's buffers was written (before segment %u)", i);
                verify_stop(v, slot, text);
                return;
            }
        if (i < slot->request.nsegs)
            at = (uint8_t *)slot->segs[i].addr + slot->segs[i].len;
    }
}

/* ---- requests ---- */

bool verify_offered(const struct verify *v, unsigned bit)
{
    return v->rig->info.features & VIRTIO_BIT(bit);
}

/* Weights of the request types; a type that the device does not offer is a read instead. */
static enum vblk_op choose_op(struct worker *worker)
{
    const struct verify *v = worker->verify;
    uint64_t dice = chance_below(&worker->chance, 100);
    bool ro = v->rig->info.read_only;

    if (dice < 38)
        return VBLK_READ;
    if (dice < 76)
        return ro ? VBLK_READ : VBLK_WRITE;
    if (dice < 80)
        return verify_offered(v, VIRTIO_BLK_F_FLUSH) ? VBLK_FLUSH : VBLK_READ;
    if (dice < 88)
        return !ro && verify_offered(v, VIRTIO_BLK_F_WRITE_ZEROES) ? VBLK_WRITE_ZEROES : VBLK_READ;
    if (dice < 95)
        return !ro && verify_offered(v, VIRTIO_BLK_F_DISCARD) ? VBLK_DISCARD : VBLK_READ;
    if (dice < 97)
        return !ro && verify_offered(v, VIRTIO_BLK_F_SECURE_ERASE) ? VBLK_SECURE_ERASE : VBLK_READ;
    if (dice < 98)
        return verify_offered(v, VIRTIO_BLK_F_LIFETIME) ? VBLK_GET_LIFETIME : VBLK_READ;
    return VBLK_GET_ID;
}

uint64_t verify_choose_count(struct worker *worker, uint64_t max)
{
    const struct verify *v = worker->verify;
    uint64_t dice = chance_below(&worker->chance, 100), bound;

    bound = dice < 50 ? 8 : dice < 85 ? 128 : max;
    if (bound > max)
        bound = max;
    if (bound < v->block_sectors)
        bound = v->block_sectors;
    return (1 + chance_below(&worker->chance, bound / v->block_sectors)) * v->block_sectors;
}

bool verify_prepare(struct worker *worker, struct slot *slot)
{
    struct verify *v = worker->verify;
    enum vblk_op op;

    slot->of_zones = false;
    if (v->zones) {
        enum zones_choice choice = verify_zones_prepare(worker, slot);

        if (choice != ZONES_NONE)
            return choice == ZONES_TAKEN;
    }
    op = choose_op(worker);
    if (!v->plain_sectors && (op == VBLK_READ || op == VBLK_WRITE))
        return false;
    slot->request = (struct vblk_request){.op = op, .complete = verify_finish, .opaque = slot};
    slot->number = worker->submitted;
    slot->sector = slot->count = 0;
    switch (op) {
    case VBLK_READ:
    case VBLK_WRITE:
        if (!take_sectors(worker, slot, verify_choose_count(worker, v->request_sectors)))
            return false;
        verify_lay_out(worker, slot, slot->count * MODEL_SECTOR, SEGS_MAX);
        if (op == VBLK_WRITE) {
            model_fill(&v->model, slot->sector, slot->count, slot->version, worker->scratch);
            verify_scatter(slot, worker->scratch);
        } else {
            verify_guard_set(slot);
        }
        break;
    case VBLK_WRITE_ZEROES:
    case VBLK_DISCARD:
    case VBLK_SECURE_ERASE:
        if (!take_sectors(worker, slot, verify_choose_count(worker, v->range_sectors)))
            return false;
        if (op == VBLK_WRITE_ZEROES && chance_percent(&worker->chance, 50))
            slot->request.flags = VBLK_REQUEST_UNMAP;
        slot->request.num_sectors = slot->count;
        break;
    case VBLK_GET_ID:
    case VBLK_GET_LIFETIME:
        slot->buf = slot->shared;
        slot->segs[0] = (struct vblk_seg){slot->buf, op == VBLK_GET_ID ? VIRTIO_BLK_ID_BYTES
                                                                       : sizeof(struct virtio_blk_lifetime)};
        slot->request.segs = slot->segs;
        slot->request.nsegs = 1;
        verify_guard_set(slot);
        break;
    default:
        break;
    }
    slot->request.sector = slot->sector;
    return true;
}

static void judge(struct worker *worker, struct slot *slot)
{
    struct verify *v = worker->verify;
    struct model_difference difference;

    switch (slot->request.op) {
    case VBLK_READ:
        verify_gather(slot, worker->scratch);
        if (!model_check(&v->model, slot->sector, slot->count, worker->scratch, &difference))
            verify_stop_difference(v, slot, &difference);
        verify_guard_check(v, slot);
        break;
    case VBLK_WRITE:
        model_set(&v->model, slot->sector, slot->count, slot->version);
        break;
    case VBLK_WRITE_ZEROES:
        model_set(&v->model, slot->sector, slot->count, MODEL_ZERO);
        break;
    case VBLK_DISCARD:
    case VBLK_SECURE_ERASE:
        model_set(&v->model, slot->sector, slot->count, MODEL_UNDEFINED);
        break;
    case VBLK_GET_ID:
        if (strncmp(v->id, (const char *)slot->buf, VIRTIO_BLK_ID_BYTES) != 0)
            verify_stop(v, slot, "the identity is not what it was at first");
        verify_guard_check(v, slot);
        break;
    default:
        break;
    }
}

void verify_finish(struct vblk_request *request, int result)
{
    struct slot *slot = request->opaque;
    struct worker *worker = slot->worker;
    struct verify *v = worker->verify;

    if (slot->of_zones) {
        verify_zones_finish(worker, slot, result);
    } else if (result == 0) {
        judge(worker, slot);
        worker->done[request->op]++;
        if (request->op == VBLK_READ || request->op == VBLK_WRITE)
            worker->bytes += slot->count * MODEL_SECTOR;
    } else {
        worker->failed++;
        if (writes(request->op))
            model_set(&v->model, slot->sector, slot->count, MODEL_UNDEFINED);
        if (!v->settings->allow_errors) {
            char text[128];

            snprintf(text, sizeof(text), "a request failed: %s", name_of_error(result));
            verify_stop(v, slot, text);
        }
    }
    give_sectors(worker, slot);
    slot->request.opaque = NULL; /* free */
    worker->in_flight--;
}
