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

static void unshare(struct queue *q, const struct piece *piece, bool in)
{
    const struct vblk_platform *platform = q->disk->platform;

    platform->unshare(platform->ctx, piece->mem, piece->len, in ? VBLK_FROM_DEVICE : VBLK_TO_DEVICE,
                      (vblk_dma_addr){piece->addr});
}

static uint32_t piece_drop(struct queue *q, uint32_t index, bool in)
{
    struct piece *piece = &q->pieces[index];
    uint32_t next = piece->next;

    unshare(q, piece, in);
    piece->next = q->free_piece;
    q->free_piece = index;
    return next;
}

static void pieces_drop(struct queue *q, struct part *part, bool in)
{
    uint32_t index = part->first_piece;

    while (index != NONE32)
        index = piece_drop(q, index, in);
    part->first_piece = NONE32;
    part->npieces = 0;
}

/* Shares the next up to WANT bytes at MEM. */
static int piece_add(struct queue *q, struct part *part, void *mem, size_t want, bool in, uint32_t *got)
{
    const struct vblk_platform *platform = q->disk->platform;
    uint32_t index = q->free_piece;
    struct piece *piece = &q->pieces[index];
    vblk_dma_addr addr;
    size_t contiguous = 0;
    int result;

    if (index == NONE32)
        return -VBLK_EAGAIN;
    result =
        platform->share(platform->ctx, mem, want, in ? VBLK_FROM_DEVICE : VBLK_TO_DEVICE, &addr, &contiguous);
    if (result < 0)
        return result == -VBLK_EAGAIN ? result : -VBLK_EINVAL;
    if (contiguous == 0 || contiguous > want)
        return -VBLK_EINVAL;
    q->free_piece = piece->next;
    piece->mem = mem;
    piece->addr = addr.value;
    piece->len = (uint32_t)contiguous;
    piece->next = part->first_piece; /* newest first, until all are there */
    part->first_piece = index;
    part->npieces++;
    *got = (uint32_t)contiguous;
    return 0;
}

/* Takes EXCESS bytes off the end. A piece that must be shorter is shared anew: a bounce buffer would
 * otherwise copy back more than the device was told of. False if it then comes out even shorter. */
static bool pieces_trim(struct queue *q, struct part *part, uint32_t excess, bool in)
{
    while (excess) {
        struct piece *piece = &q->pieces[part->first_piece];
        void *mem = piece->mem;
        uint32_t len = piece->len, got;
        part->first_piece = piece_drop(q, part->first_piece, in);
        part->npieces--;
        if (len <= excess) {
            excess -= len;
            continue;
        }
        return piece_add(q, part, mem, len - excess, in, &got) == 0 && got == len - excess;
    }
    return true;
}

static void pieces_reverse(struct queue *q, struct part *part)
{
    uint32_t index = part->first_piece, reversed = NONE32;

    while (index != NONE32) {
        uint32_t next = q->pieces[index].next;
        q->pieces[index].next = reversed;
        reversed = index;
        index = next;
    }
    part->first_piece = reversed;
}

/* Copies between the bounce block and the request's segments, from where the part begins. */
static void bounce_copy(struct queue *q, const struct part *part, bool to_caller)
{
    const struct vblk_seg *segs = part->request->segs;
    size_t done = 0, offset = (size_t)part->seg_offset;
    uint32_t seg = part->seg;

    while (done < part->amount) {
        size_t n = segs[seg].len - offset;
        if (n > part->amount - done)
            n = part->amount - done;
        if (to_caller)
            memcpy((uint8_t *)segs[seg].addr + offset, q->bounce + done, n);
        else
            memcpy(q->bounce + done, (const uint8_t *)segs[seg].addr + offset, n);
        done += n;
        seg++;
        offset = 0;
    }
}

/* One block whose bytes lie too scattered for the device's limits goes through the queue's bounce block. */
static int part_bounce(struct queue *q, struct part *part)
{
    if (q->disk->block_size > BOUNCE_BYTES)
        return -VBLK_EINVAL;
    if (q->bounce_busy)
        return -VBLK_EAGAIN;
    part->amount = q->disk->block_size;
    part->bounced = true;
    q->bounce_busy = true;
    return 0;
}

/* Collects what of the request's data one part can hold, beginning where the part before it ended: in whole
 * blocks, or all of it. ROOM: descriptors for data. -VBLK_EAGAIN: not now. */
static int part_gather(struct queue *q, struct vblk_request *request, struct part *part,
                       const struct op_info *op, uint32_t room)
{
    struct vblk *disk = q->disk;
    bool in = op->flags & OP_IN, full_room = room >= q->max_pieces;
    uint32_t limit = PART_BYTES_MAX & ~(disk->block_size - 1), bytes = 0, seg = request->driver.seg, got,
             excess;
    size_t offset = request->driver.seg_offset;
    int result;

    if (request->driver.remaining < limit)
        limit = (uint32_t)request->driver.remaining;
    if (full_room)
        room = q->max_pieces;
    while (bytes < limit && part->npieces < room) {
        const struct vblk_seg *s = &request->segs[seg];
        size_t want = s->len - offset;
        if (want == 0) {
            seg++;
            offset = 0;
            continue;
        }
        if (want > limit - bytes)
            want = limit - bytes;
        if (want > disk->size_max)
            want = disk->size_max;
        result = piece_add(q, part, (uint8_t *)s->addr + offset, want, in, &got);
        if (result < 0)
            goto undo;
        bytes += got;
        offset += got;
    }
    if (op->flags & OP_WHOLE) {
        result = full_room || q->oldest == NONE16 ? -VBLK_EINVAL : -VBLK_EAGAIN;
        if (bytes < request->driver.remaining)
            goto undo;
    } else {
        excess = bytes & (disk->block_size - 1);
        if (excess && !pieces_trim(q, part, excess, in))
            bytes = excess; /* can't be cut there: as if not one block fitted */
        bytes -= excess;
        if (bytes == 0) {
            pieces_drop(q, part, in);
            if (!full_room && q->oldest != NONE16)
                return -VBLK_EAGAIN;
            return part_bounce(q, part);
        }
    }
    pieces_reverse(q, part);
    part->amount = bytes;
    return 0;
undo:
    pieces_drop(q, part, in);
    return result;
}

/* ---- on the ring, and off it ---- */

static unsigned bounce_pieces(const struct queue *q, const struct part *part)
{
    uint32_t left = part->amount;
    unsigned n = 1;

    for (; left > q->disk->size_max; left -= q->disk->size_max)
        n++;
    return n;
}

static void add_bounce(struct queue *q, const struct part *part, bool in)
{
    uint32_t left = part->amount, at = 0;

    if (in)
        memset(q->bounce, 0, left); /* nothing of an earlier request shows through */
    else
        bounce_copy(q, part, false);
    while (left) {
        uint32_t n = left < q->disk->size_max ? left : q->disk->size_max;
        vq_add(&q->vq, q->bounce_addr + at, n, in);
        at += n;
        left -= n;
    }
}

/* Builds the part's chain and shows it to the device. False if the ring has no room. */
bool part_put_on_ring(struct queue *q, unsigned index)
{
    struct part *part = &q->parts[index];
    const struct op_info *op = &op_table[part->request->op];
    struct part_dma *dma = &q->dma[index];
    bool in = op->flags & OP_IN;
    unsigned n = 2u + (op->flags & OP_RANGE ? 1u : part->bounced ? bounce_pieces(q, part) : part->npieces);
    uint8_t *table = NULL;
    uint64_t table_addr = 0;
    uint32_t piece;

    if (q->tables) {
        table = q->tables + (size_t)index * q->table_bytes;
        table_addr = q->tables_addr + (uint64_t)index * q->table_bytes;
    }
    if (!vq_begin(&q->vq, (uint16_t)index, n, table, table_addr))
        return false;
    dma->header.type = le32_put(op->type);
    dma->header.reserved = le32_put(0);
    dma->header.sector = le64_put(op->flags & OP_SECTOR ? part->sector : 0);
    __atomic_store_n(&dma->status, STATUS_NONE, __ATOMIC_RELAXED);
    vq_add(&q->vq, PART_DMA_ADDR(q, index, header), sizeof(dma->header), false);
    if (op->flags & OP_RANGE) {
        dma->range.sector = le64_put(part->sector);
        dma->range.num_sectors = le32_put(part->amount);
        dma->range.flags = le32_put(part->request->flags & VBLK_REQUEST_UNMAP ? VIRTIO_BLK_RANGE_F_UNMAP : 0);
        vq_add(&q->vq, PART_DMA_ADDR(q, index, range), sizeof(dma->range), false);
    }
    if (part->bounced)
        add_bounce(q, part, in);
    for (piece = part->first_piece; piece != NONE32; piece = q->pieces[piece].next)
        vq_add(&q->vq, q->pieces[piece].addr, q->pieces[piece].len, in);
    if (op->flags & OP_ONCE) /* ZONE_APPEND: the sector that it went to, then the status */
        vq_add(&q->vq, PART_DMA_ADDR(q, index, append_sector), sizeof(dma->append_sector) + 1, true);
    else
        vq_add(&q->vq, PART_DMA_ADDR(q, index, status), 1, true);
    vq_publish(&q->vq);
    q->unkicked = true;
    return true;
}

/* A range's next chunk: not over the limit, and up to a multiple of the alignment that the device likes. */
static uint32_t range_chunk(const struct vblk *disk, const struct vblk_request *request)
{
    const struct limits *limits = range_limits(disk, request->op);
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

static void part_link(struct queue *q, unsigned index)
{
    struct part *part = &q->parts[index];

    q->free_part = part->newer;
    part->serial = ++q->serial;
    part->older = q->newest;
    part->newer = NONE16;
    if (q->newest == NONE16)
        q->oldest = (uint16_t)index;
    else
        q->parts[q->newest].newer = (uint16_t)index;
    q->newest = (uint16_t)index;
}

static void part_unlink(struct queue *q, unsigned index)
{
    struct part *part = &q->parts[index];

    if (part->older == NONE16)
        q->oldest = part->newer;
    else
        q->parts[part->older].newer = part->newer;
    if (part->newer == NONE16)
        q->newest = part->older;
    else
        q->parts[part->newer].older = part->older;
    part->request = NULL;
    part->newer = q->free_part;
    q->free_part = (uint16_t)index;
}

/* The request moves on by what PART took of it. */
static void request_advance(struct vblk_request *request, const struct op_info *op, const struct part *part)
{
    request->driver.remaining -= part->amount;
    if (op->flags & OP_RANGE) {
        request->driver.sector += part->amount;
    } else if (op->flags & (OP_IN | OP_OUT)) {
        size_t left = part->amount;
        request->driver.sector += part->amount / VIRTIO_BLK_SECTOR_BYTES;
        while (left) {
            size_t here = request->segs[request->driver.seg].len - request->driver.seg_offset;
            if (left < here) {
                request->driver.seg_offset += left;
                break;
            }
            left -= here;
            request->driver.seg++;
            request->driver.seg_offset = 0;
        }
    }
}

/* Makes the next part of the request and puts it on the ring. -VBLK_EAGAIN: no room now. */
static int part_issue(struct queue *q, struct vblk_request *request, const struct op_info *op)
{
    struct vblk *disk = q->disk;
    unsigned index = q->free_part;
    struct part *part = &q->parts[index];
    int result;

    if (index == NONE16)
        return -VBLK_EAGAIN;
    part->first_piece = NONE32;
    part->npieces = 0;
    part->bounced = false;
    part->attempts = 0;
    part->sector = request->driver.sector;
    part->seg = request->driver.seg;
    part->seg_offset = request->driver.seg_offset;
    part->request = request;
    if (op->flags & (OP_IN | OP_OUT)) {
        uint32_t free = q->vq.num_free, room = UINT32_MAX, want = request->nsegs - request->driver.seg;
        if (!q->tables) {
            /* rather wait for room than cut a request into crumbs */
            if (free < 2u + (want < q->max_pieces ? want : q->max_pieces))
                return -VBLK_EAGAIN;
            room = free - 2u;
        } else if (free == 0) {
            return -VBLK_EAGAIN;
        }
        result = part_gather(q, request, part, op, room);
        if (result < 0)
            return result;
    } else if (op->flags & OP_RANGE) {
        part->amount = range_chunk(disk, request);
    } else {
        part->amount = 1;
    }
    if (!part_put_on_ring(q, index)) {
        pieces_drop(q, part, op->flags & OP_IN);
        if (part->bounced)
            q->bounce_busy = false;
        return -VBLK_EAGAIN;
    }
    if (op->flags & OP_FLUSH) /* see disk->flush_seq */
        part->seg = __atomic_add_fetch(&disk->flush_seq, 1, __ATOMIC_SEQ_CST);
    part_link(q, index);
    request_advance(request, op, part);
    request->driver.parts++;
    q->stats.parts++;
    return 0;
}

/* For requests that end without the device: `complete` is called by the next poll, never by a submit. */
void request_finish_later(struct queue *q, struct vblk_request *request)
{
    request->driver.next = q->finished;
    q->finished = request;
}

/* Puts as much of the request on the ring as goes. False: it has to wait for more room. */
bool request_issue(struct queue *q, struct vblk_request *request)
{
    const struct op_info *op = &op_table[request->op];

    while (request->driver.remaining) {
        int result = -VBLK_EAGAIN;
        /* sequential zones are written in order: a part waits for the one before (5.2.6) */
        if (!(q->disk->serial_writes && request->op == VBLK_WRITE && request->driver.parts))
            result = part_issue(q, request, op);
        if (result == -VBLK_EAGAIN)
            return false;
        if (result < 0) {
            if (!request->driver.result)
                request->driver.result = result;
            request->driver.remaining = 0;
            if (request->driver.parts == 0)
                request_finish_later(q, request);
        }
    }
    return true;
}

/* Bytes that the device does not claim to have written are not the device's answer (2.7.8.3). */
static void zero_tail(const struct vblk_request *request, uint32_t used_len)
{
    uint64_t at = 0;
    uint32_t i;

    for (i = 0; i < request->nsegs; i++) {
        const struct vblk_seg *seg = &request->segs[i];
        uint64_t from = used_len > at ? used_len - at : 0;
        if (from < seg->len)
            memset((uint8_t *)seg->addr + from, 0, (size_t)(seg->len - from));
        at += seg->len;
    }
}

static int flush_done(struct vblk *disk, const struct part *part)
{
    uint32_t seq = __atomic_load_n(&disk->flushed_seq, __ATOMIC_RELAXED);

    while ((int32_t)(part->seg - seq) > 0 &&
           !__atomic_compare_exchange_n(&disk->flushed_seq, &seq, part->seg, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
        ;
    /* Writes that were complete when the device was reset may be gone; this flush can't vouch for them. */
    return __atomic_exchange_n(&disk->lost_writes, 0, __ATOMIC_RELAXED) ? -VBLK_EIO : 0;
}

/* The part is no longer the device's (or, HELD, may be for ever: then its buffers stay shared). Counts it off
 * its request. True: that was the last, and `complete` is due. */
bool part_end(struct queue *q, unsigned index, uint32_t used_len, int result, bool held)
{
    struct vblk *disk = q->disk;
    struct part *part = &q->parts[index];
    struct vblk_request *request = part->request;
    const struct op_info *op = &op_table[request->op];

    if (!held) {
        pieces_drop(q, part, op->flags & OP_IN);
        if (part->bounced) {
            if (result == 0 && (op->flags & OP_IN))
                bounce_copy(q, part, true);
            q->bounce_busy = false;
        }
    }
    if (result == 0) {
        if (op->flags & OP_DIRTIES)
            q->dirty_seq = __atomic_load_n(&disk->flush_seq, __ATOMIC_SEQ_CST) + 1;
        else if (op->flags & OP_FLUSH)
            result = flush_done(disk, part);
        else if ((op->flags & OP_WHOLE) && (op->flags & OP_IN))
            zero_tail(request, used_len);
        if (op->flags & OP_ONCE)
            request->sector = le64_get(q->dma[index].append_sector);
    }
    part_unlink(q, index);
    request->driver.parts--;
    if (result < 0) {
        q->stats.errors++;
        if (!request->driver.result)
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

/* ---- submit ---- */

int vblk_submit(struct vblk *disk, unsigned queue, struct vblk_request *request)
{
    struct queue *q;
    uint64_t amount;
    int result;

    if (queue >= disk->num_queues)
        return -VBLK_EINVAL;
    result = request_check(disk, request, &amount);
    if (result < 0)
        return result;
    if (state_get(disk) == DISK_FAILED)
        return -VBLK_ENODEV;
    q = &disk->queues[queue];
    request->driver.next = NULL;
    request->driver.remaining = amount;
    request->driver.sector = request->sector;
    request->driver.seg_offset = 0;
    request->driver.seg = 0;
    request->driver.parts = 0;
    request->driver.result = 0;
    q->stats.requests++;
    if (disk->trace)
        disk->trace(disk->trace_opaque, VBLK_TRACE_SUBMIT, queue, request);
    if (request->op == VBLK_FLUSH && !disk->has_flush) {
        request_finish_later(q, request); /* such a device is write-through (5.2.5.1) */
        return 0;
    }
    if (!q->waiting && queue_enter(q)) {
        bool all = queue_ready(q) && request_issue(q, request);
        queue_leave(q);
        if (all)
            return 0;
    }
    if (q->waiting)
        q->waiting_last->driver.next = request;
    else
        q->waiting = request;
    q->waiting_last = request;
    q->stats.waits_for_room++;
    return 0;
}
