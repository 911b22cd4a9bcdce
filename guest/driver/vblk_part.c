/*
 * Parts: a request cut into chains that the device's limits allow (virtio 1.4, 5.2.3, 5.2.4, 5.2.6), put on
 * the ring, and taken apart again when they are done.
 *
 * What always holds: a part has all it takes to be put on a ring once more (header, range and table are
 * rebuilt from private memory); each piece that was shared is unshared exactly once; the status byte is
 * preset to a value that no device means anything by, and read once.
 */
#include "guest/driver/vblk_internal.h"

#define PART_DMA_ADDR(q, index, field) \
    ((q)->dma_addr + (uint64_t)(index) * sizeof(struct part_dma) + offsetof(struct part_dma, field))

/* ---- pieces of a caller's buffers ---- */

/* The part's next piece, not filled in; LAST is the one before it. There is always one: each piece in flight
 * has a descriptor of the ring, or of its part's table, and there are as many of both. */
static struct vq_piece *piece_append(struct queue *q, struct part *part, struct vq_piece *last)
{
    struct vq_piece *piece = &part->piece;

    if (part->npieces) {
        if (q->free_piece == VQ_NO_PIECE)
            return NULL;
        last->next = q->free_piece;
        piece = &q->pool[q->free_piece];
        q->free_piece = piece->next;
    }
    piece->next = VQ_NO_PIECE;
    part->npieces++;
    return piece;
}

static void piece_unshare(struct queue *q, const struct vq_piece *piece, bool in)
{
    const struct vblk_platform *platform = q->disk->platform;

    if (piece->mem)
        platform->unshare(platform->ctx, piece->mem, piece->len, in ? VBLK_FROM_DEVICE : VBLK_TO_DEVICE,
                          (vblk_dma_addr){piece->addr});
}

/* Ends the sharing of all of the part's pieces, and gives them back to the pool. */
static void pieces_drop(struct queue *q, struct part *part, bool in)
{
    struct vq_piece *piece = &part->piece;
    uint32_t index = VQ_NO_PIECE;

    while (part->npieces) {
        uint32_t next = piece->next;
        piece_unshare(q, piece, in);
        if (index != VQ_NO_PIECE) {
            piece->next = q->free_piece;
            q->free_piece = index;
        }
        index = next;
        if (--part->npieces)
            piece = &q->pool[index];
    }
}

/* Shares the next up to WANT bytes at MEM as a piece after *LAST, which it becomes. An error, or 0. */
static int piece_share(struct queue *q, struct part *part, struct vq_piece **last, void *mem, size_t want,
                       bool in)
{
    const struct vblk_platform *platform = q->disk->platform;
    enum vblk_direction direction = in ? VBLK_FROM_DEVICE : VBLK_TO_DEVICE;
    struct vq_piece *piece;
    vblk_dma_addr addr;
    size_t contiguous = 0;
    int result = platform->share(platform->ctx, mem, want, direction, &addr, &contiguous);

    if (result < 0)
        return result == -VBLK_EAGAIN ? result : -VBLK_EINVAL;
    if (contiguous == 0 || contiguous > want)
        return -VBLK_EINVAL;
    piece = piece_append(q, part, *last);
    if (!piece) {
        platform->unshare(platform->ctx, mem, contiguous, direction, addr);
        return -VBLK_EAGAIN;
    }
    piece->mem = mem;
    piece->addr = addr.value;
    piece->len = (uint32_t)contiguous;
    *last = piece;
    return 0;
}

/* A piece of the driver's own memory: a range, or a stretch of the bounce block. */
static bool piece_own(struct queue *q, struct part *part, struct vq_piece **last, uint64_t addr, uint32_t len)
{
    struct vq_piece *piece = piece_append(q, part, *last);

    if (!piece)
        return false;
    piece->mem = NULL;
    piece->addr = addr;
    piece->len = len;
    *last = piece;
    return true;
}

/* Copies N bytes between OWN and the caller's segments, from OFFSET behind where the part begins; OWN = NULL:
 * makes zeroes of them. */
static void segs_copy(const struct part *part, uint64_t offset, size_t n, uint8_t *own, bool to_caller)
{
    const struct vblk_seg *seg = &part->request->segs[part->seg];

    for (offset += part->seg_offset; n; seg++) {
        uint8_t *at = (uint8_t *)seg->addr + offset;
        size_t here = seg->len;
        if (offset >= here) {
            offset -= here;
            continue;
        }
        here -= (size_t)offset;
        offset = 0;
        if (here > n)
            here = n;
        n -= here;
        if (!own) {
            memset(at, 0, here);
            continue;
        }
        memcpy(to_caller ? at : own, to_caller ? own : at, here);
        own += here;
    }
}

/* One block whose bytes lie too scattered for the device's limits goes through the queue's bounce block. */
static int part_bounce(struct queue *q, struct part *part, uint32_t room)
{
    uint32_t left = q->disk->block_size, at = 0;
    struct vq_piece *last = NULL;

    if (left > BOUNCE_BYTES)
        return -VBLK_EINVAL;
    if (q->bounce_busy || (uint64_t)room * q->disk->size_max < left)
        return -VBLK_EAGAIN;
    part->amount = left;
    part->bounced = true;
    q->bounce_busy = true;
    while (left) {
        uint32_t n = left < q->disk->size_max ? left : q->disk->size_max;
        if (!piece_own(q, part, &last, q->bounce_addr + at, n))
            return -VBLK_EAGAIN;
        at += n;
        left -= n;
    }
    return 0;
}

/* Shares the request's data from where the part begins: up to LIMIT bytes, in up to ROOM pieces. */
static int pieces_share(struct queue *q, struct part *part, bool in, uint32_t limit, uint32_t room)
{
    const struct vblk_seg *seg = &part->request->segs[part->seg];
    size_t offset = (size_t)part->seg_offset;
    struct vq_piece *last = NULL;
    int result = 0;

    part->amount = 0;
    while (part->amount < limit && part->npieces < room) {
        size_t want = seg->len - offset;
        if (want == 0) {
            seg++;
            offset = 0;
            continue;
        }
        if (want > limit - part->amount)
            want = limit - part->amount;
        if (want > q->disk->size_max)
            want = q->disk->size_max;
        result = piece_share(q, part, &last, (uint8_t *)seg->addr + offset, want, in);
        if (result < 0)
            break;
        part->amount += last->len;
        offset += last->len;
    }
    return result;
}

/* Collects what of the request's data one part can hold, beginning where the part before it ended: in whole
 * blocks, or all of it. ROOM: descriptors for data. -VBLK_EAGAIN: not now. */
static int part_gather(struct queue *q, struct part *part, unsigned flags, uint32_t room)
{
    uint64_t remaining = part->request->driver.remaining;
    uint32_t limit = q->disk->part_bytes_max;
    bool in = flags & OP_IN,
         later = room < q->max_pieces && q->oldest != NONE16; /* there will be more room */
    int result;

    if (remaining < limit)
        limit = (uint32_t)remaining;
    if (room > q->max_pieces)
        room = q->max_pieces;
    for (;;) {
        result = pieces_share(q, part, in, limit, room);
        if (result < 0 || part->amount == remaining)
            return result;
        if (flags & OP_WHOLE)
            return later ? -VBLK_EAGAIN : -VBLK_EINVAL;
        limit = part->amount & ~(q->disk->block_size - 1);
        if (limit == part->amount)
            return 0;
        /* It ends within a block: once more, with less. A piece that must be shorter has to be shared anew,
         * as a bounce buffer would otherwise copy back more than the device was told of. */
        pieces_drop(q, part, in);
        if (limit == 0) /* not one block fits */
            return later ? -VBLK_EAGAIN : part_bounce(q, part, room);
    }
}

/* ---- on the ring, and off it ---- */

/* Builds the part's chain and shows it to the device. False if the ring has no room. */
bool vblk_part_put_on_ring(struct queue *q, unsigned index)
{
    struct part *part = &q->parts[index];
    const struct op_info *op = &vblk_op_table[part->request->op];
    struct part_dma *dma = &q->dma[index];
    unsigned op_flags = op->flags, flags = 0;
    uint32_t writable = 1;

    if (op_flags & OP_IN) {
        flags = VQ_IN;
        writable += part->amount;
    }
    dma->header.type = le32_put(op->type);
    dma->header.reserved = le32_put(0);
    dma->header.sector = le64_put(op_flags & OP_SECTOR ? part->sector : 0);
    __atomic_store_n(&dma->status, STATUS_NONE, __ATOMIC_RELAXED);
    if ((op_flags & (OP_RANGE | OP_ONCE)) || part->bounced) {
        if (op_flags & OP_RANGE) {
            dma->range.sector = le64_put(part->sector);
            dma->range.num_sectors = le32_put(part->amount);
            dma->range.flags =
                le32_put(part->request->flags & VBLK_REQUEST_UNMAP ? VIRTIO_BLK_RANGE_F_UNMAP : 0);
        }
        if (op_flags & OP_ONCE) { /* ZONE_APPEND: the sector comes back before the status */
            dma->append_sector = le64_put(UINT64_MAX);
            flags |= VQ_LONG_TRAILER;
            writable += sizeof(dma->append_sector);
        }
        if (part->bounced && (op_flags & OP_IN))
            memset(q->bounce, 0, part->amount); /* nothing of an earlier request shows through */
        else if (part->bounced)
            segs_copy(part, 0, part->amount, q->bounce, false);
    }
    if (!vq_put(&q->vq, index, part->npieces ? &part->piece : NULL, part->npieces, flags, writable))
        return false;
    q->unkicked = true;
    return true;
}

/* A range's next chunk: not over the limit, and up to a multiple of the alignment that the device likes. */
static uint32_t range_chunk(const struct vblk *disk, const struct vblk_request *request)
{
    const struct limits *limits = &disk->limits[request->op - VBLK_DISCARD];
    uint32_t chunk = limits->max_sectors;

    if (request->driver.remaining <= chunk)
        return (uint32_t)request->driver.remaining;
    if (limits->alignment) {
        uint32_t into = (uint32_t)(request->driver.sector & (limits->alignment - 1));
        uint32_t aligned = ((chunk + into) & ~(limits->alignment - 1)) - into;
        if (chunk + into >= chunk && aligned != 0 && aligned <= chunk)
            return aligned;
    }
    return chunk;
}

/* The request moves on by what PART took of it. */
static void request_advance(struct vblk_request *request, unsigned flags, const struct part *part)
{
    size_t left = part->amount;

    request->driver.remaining -= left;
    if (request->driver.remaining == 0)
        return;
    if (flags & OP_RANGE) {
        request->driver.sector += left;
        return;
    }
    request->driver.sector += left / VIRTIO_BLK_SECTOR_BYTES;
    while (left) {
        size_t here = request->segs[request->driver.seg].len - request->driver.seg_offset;
        if (left < here) {
            request->driver.seg_offset += left;
            return;
        }
        left -= here;
        request->driver.seg++;
        request->driver.seg_offset = 0;
    }
}

/* Room for data on the ring; 0 if it is better to wait for more than to cut a request into crumbs. */
static uint32_t data_room(const struct queue *q, const struct vblk_request *request)
{
    uint32_t free = q->vq.num_free, want = request->nsegs - request->driver.seg;

    if (q->vq.tables)
        return free ? UINT32_MAX : 0;
    return free < 2u + (want < q->max_pieces ? want : q->max_pieces) ? 0 : free - 2u;
}

/* Makes the next part of the request and puts it on the ring. -VBLK_EAGAIN: no room now. */
static int part_issue(struct queue *q, struct vblk_request *request, const struct op_info *op)
{
    unsigned index = q->free_part, flags = op->flags;
    struct part *part = &q->parts[index];
    int result = 0;

    if (index == NONE16)
        return -VBLK_EAGAIN;
    part->request = request;
    part->sector = request->driver.sector;
    part->seg = request->driver.seg;
    if (flags & OP_FLUSH) /* before the device can see it: what completes meanwhile may not be covered */
        part->seg = __atomic_add_fetch(&q->disk->flush_seq, 1, __ATOMIC_SEQ_CST);
    part->seg_offset = request->driver.seg_offset;
    part->npieces = 0;
    part->attempts = 0;
    part->bounced = false;
    part->watched = false;
    part->amount = 1;
    if (flags & (OP_IN | OP_OUT)) {
        uint32_t room = data_room(q, request);
        if (room == 0)
            return -VBLK_EAGAIN;
        result = part_gather(q, part, flags, room);
    } else if (flags & OP_RANGE) {
        struct vq_piece *last = NULL;
        uint64_t slot = q->vq.slots_addr + (uint64_t)index * VQ_SLOT_BYTES;
        part->amount = range_chunk(q->disk, request);
        (void)piece_own(q, part, &last, slot + offsetof(struct part_dma, range),
                        sizeof(struct virtio_blk_range));
    }
    if (result == 0 && !vblk_part_put_on_ring(q, index))
        result = -VBLK_EAGAIN;
    if (result < 0) {
        pieces_drop(q, part, flags & OP_IN);
        if (part->bounced)
            q->bounce_busy = false;
        return result;
    }
    part_link(q, index);
    request_advance(request, flags, part);
    request->driver.parts++;
    q->stats.parts++;
    return 0;
}

/* For requests that end without the device: `complete` is called by the next poll, never by a submit. */
void vblk_request_finish_later(struct queue *q, struct vblk_request *request)
{
    request->driver.next = q->finished;
    q->finished = request;
}

/* Puts as much of the request on the ring as goes. False: it has to wait for more room. */
bool vblk_request_issue(struct queue *q, struct vblk_request *request)
{
    const struct op_info *op = &vblk_op_table[request->op];

    while (request->driver.remaining) {
        int result = -VBLK_EAGAIN;
        /* sequential zones are written in order: a part waits for the one before (5.2.6) */
        if (!(ZONES && q->disk->serial_writes && request->op == VBLK_WRITE && request->driver.parts))
            result = part_issue(q, request, op);
        if (result == -VBLK_EAGAIN)
            return false;
        if (result < 0) {
            if (!request->driver.result)
                request->driver.result = result;
            request->driver.remaining = 0;
            if (request->driver.parts == 0)
                vblk_request_finish_later(q, request);
        }
    }
    return true;
}

/* Writes that were complete when the device was reset may be gone, and no flush whose caller has not heard of
 * it can vouch for them: the first of each queue says so, and every other one that was submitted before that
 * one's answer. */
static int flush_done(struct queue *q, const struct part *part)
{
    if ((int32_t)(part->seg - q->flushed_seq) > 0)
        q->flushed_seq = part->seg;
    q->lost_told = __atomic_load_n(&q->disk->lost_seq, __ATOMIC_RELAXED);
    return part->request->driver.seg == q->lost_told ? 0 : -VBLK_EIO;
}

/* Did the device fill less than was to be read, and say so? What it does not claim to have written is no
 * answer (2.7.8.3), but to claim less than one has written is allowed (2.7.8.2): devices are about that never
 * count more than the status byte. So a length is believed of those that have counted before. */
static bool read_short(const struct queue *q, const struct part *part, uint32_t used_len)
{
    return used_len < part->amount && q->vq.lens_seen > 1;
}

/* An append's answer: OK or not, the sector must be in the zone that was named. */
static int append_done(const struct queue *q, unsigned index, struct vblk_request *request)
{
    le64 written = *(const volatile le64 *)&q->dma[index].append_sector; /* read once */
    uint64_t sector = le64_get(written);

    if (sector - request->sector >= le32_get(q->disk->device_config.zoned.zone_sectors))
        return -VBLK_EIO;
    request->sector = sector;
    return 0;
}

/* The part is no longer the device's (or, HELD, may be for ever: then its buffers stay shared). Counts it off
 * its request. True: that was the last, and `complete` is due. */
bool vblk_part_end(struct queue *q, unsigned index, uint32_t used_len, int result, bool held)
{
    struct vblk *disk = q->disk;
    struct part *part = &q->parts[index];
    struct vblk_request *request = part->request;
    const struct op_info *op = &vblk_op_table[request->op];

    if (result == 0 && request->op == VBLK_READ && read_short(q, part, used_len))
        result = -VBLK_EIO;
    if (!held) {
        pieces_drop(q, part, op->flags & OP_IN);
        if (part->bounced) {
            if (result == 0 && (op->flags & OP_IN))
                segs_copy(part, 0, part->amount, q->bounce, true);
            q->bounce_busy = false;
        }
    }
    if (result == 0) {
        if (op->flags & OP_DIRTIES)
            q->dirty_seq = __atomic_load_n(&disk->flush_seq, __ATOMIC_SEQ_CST) + 1;
        else if (op->flags & OP_FLUSH)
            result = flush_done(q, part);
        else if ((op->flags & OP_WHOLE) && (op->flags & OP_IN) && used_len < part->amount)
            /* what it does not claim to have written is not the device's answer (2.7.8.3) */
            segs_copy(part, used_len, part->amount - used_len, NULL, true);
        if (op->flags & OP_ONCE)
            result = append_done(q, index, request);
    }
    part_unlink(q, index);
    request->driver.parts--;
    if (result < 0) {
        q->stats.errors++;
        if (!request->driver.result || held) /* that memory is not the caller's again outweighs all else */
            request->driver.result = result;
        if (request->driver.remaining) {
            /* the rest of it is not begun: only the first one that waits can be in that state */
            request->driver.remaining = 0;
            if (q->waiting == request)
                q->waiting = request->driver.next;
        }
    }
    return request->driver.parts == 0 && request->driver.remaining == 0;
}
