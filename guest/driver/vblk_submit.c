/*
 * The kinds of request (virtio 1.4, 5.2.6): one table; what is checked before one is taken; what a status
 * means.
 */
#include "guest/driver/vblk_internal.h"

/* A direction goes by this table, never by a bit of the type: SECURE_ERASE is even and its range list is read
 * by the device all the same. */
const struct op_info vblk_op_table[OP_COUNT] = {
    [VBLK_READ] = {VIRTIO_BLK_T_IN, OP_IN | OP_SECTOR | OP_BLOCKS, 0, 0},
    [VBLK_WRITE] = {VIRTIO_BLK_T_OUT, OP_OUT | OP_SECTOR | OP_BLOCKS | OP_MODIFIES | OP_DIRTIES, 0, 0},
    [VBLK_FLUSH] = {VIRTIO_BLK_T_FLUSH, OP_FLUSH, 0, 0},
    [VBLK_DISCARD] = {VIRTIO_BLK_T_DISCARD, OP_RANGE | OP_MODIFIES | OP_DIRTIES, VIRTIO_BLK_F_DISCARD, 0},
    [VBLK_WRITE_ZEROES] = {VIRTIO_BLK_T_WRITE_ZEROES, OP_RANGE | OP_MODIFIES | OP_DIRTIES,
                           VIRTIO_BLK_F_WRITE_ZEROES, 0},
    [VBLK_SECURE_ERASE] = {VIRTIO_BLK_T_SECURE_ERASE, OP_RANGE | OP_MODIFIES | OP_DIRTIES,
                           VIRTIO_BLK_F_SECURE_ERASE, 0},
    [VBLK_GET_ID] = {VIRTIO_BLK_T_GET_ID, OP_IN | OP_WHOLE, 0, VIRTIO_BLK_ID_BYTES},
    [VBLK_GET_LIFETIME] = {VIRTIO_BLK_T_GET_LIFETIME, OP_IN | OP_WHOLE, VIRTIO_BLK_F_LIFETIME,
                           sizeof(struct virtio_blk_lifetime)},
    [VBLK_ZONE_REPORT] = {VIRTIO_BLK_T_ZONE_REPORT, OP_IN | OP_WHOLE | OP_SECTOR, VIRTIO_BLK_F_ZONED, 0},
    [VBLK_ZONE_OPEN] = {VIRTIO_BLK_T_ZONE_OPEN, OP_SECTOR | OP_ZONE | OP_MODIFIES, VIRTIO_BLK_F_ZONED, 0},
    [VBLK_ZONE_CLOSE] = {VIRTIO_BLK_T_ZONE_CLOSE, OP_SECTOR | OP_ZONE | OP_MODIFIES, VIRTIO_BLK_F_ZONED, 0},
    [VBLK_ZONE_FINISH] = {VIRTIO_BLK_T_ZONE_FINISH, OP_SECTOR | OP_ZONE | OP_MODIFIES, VIRTIO_BLK_F_ZONED, 0},
    [VBLK_ZONE_RESET] = {VIRTIO_BLK_T_ZONE_RESET, OP_SECTOR | OP_ZONE | OP_MODIFIES | OP_DIRTIES,
                         VIRTIO_BLK_F_ZONED, 0},
    [VBLK_ZONE_RESET_ALL] = {VIRTIO_BLK_T_ZONE_RESET_ALL, OP_MODIFIES | OP_DIRTIES, VIRTIO_BLK_F_ZONED, 0},
    [VBLK_ZONE_APPEND] = {VIRTIO_BLK_T_ZONE_APPEND,
                          OP_OUT | OP_SECTOR | OP_WHOLE | OP_BLOCKS | OP_ZONE | OP_MODIFIES | OP_DIRTIES |
                              OP_ONCE,
                          VIRTIO_BLK_F_ZONED, 0},
};

/* a modulo b without the division that 32-bit machines would want a library for; b != 0 */
static uint32_t remainder_of(uint64_t a, uint32_t b)
{
    uint64_t rest = 0;
    int i;

    if ((b & (b - 1)) == 0)
        return (uint32_t)(a & (b - 1));
    for (i = 63; i >= 0; i--) {
        rest = rest << 1 | (a >> i & 1);
        if (rest >= b)
            rest -= b;
    }
    return (uint32_t)rest;
}

/* Sum of the segments' lengths; UINT64_MAX if that overflows. */
static uint64_t bytes_of(const struct vblk_request *request)
{
    uint64_t sum = 0;
    uint32_t i;

    for (i = 0; i < request->nsegs; i++) {
        if (request->segs[i].len > UINT64_MAX - 1 - sum)
            return UINT64_MAX;
        sum += request->segs[i].len;
    }
    return sum;
}

/* [sector, sector + n) lies on the disk; written so that nothing can wrap */
static bool within(uint64_t capacity, uint64_t sector, uint64_t n)
{
    return sector <= capacity && n <= capacity - sector;
}

static int check_range(const struct vblk *disk, const struct vblk_request *request)
{
    uint64_t mask = disk->sectors_per_block - 1;

    if (disk->limits[request->op - VBLK_DISCARD].max_sectors == 0)
        return -VBLK_ENOTSUP;
    if (request->num_sectors == 0 || ((request->sector | request->num_sectors) & mask))
        return -VBLK_EINVAL;
    if (!within(capacity_get(disk), request->sector, request->num_sectors))
        return -VBLK_ERANGE;
    if (ZONES && request->op == VBLK_SECURE_ERASE && disk->serial_writes) { /* 5.2.6.2: whole zones */
        uint32_t zone = le32_get(disk->device_config.zoned.zone_sectors);
        if (zone && remainder_of(request->num_sectors, zone) != 0)
            return -VBLK_EINVAL;
    }
    return 0;
}

static int check_zone(const struct vblk *disk, const struct vblk_request *request, uint64_t bytes)
{
    uint32_t zone = le32_get(disk->device_config.zoned.zone_sectors);

    if (request->sector >= capacity_get(disk))
        return -VBLK_ERANGE;
    if (zone == 0 || remainder_of(request->sector, zone) != 0)
        return -VBLK_EINVAL;
    if (request->op == VBLK_ZONE_APPEND) {
        uint32_t most = le32_get(disk->device_config.zoned.max_append_sectors);
        uint32_t granularity = le32_get(disk->device_config.zoned.write_granularity);
        if (most == 0)
            return -VBLK_ENOTSUP;
        if (bytes / VIRTIO_BLK_SECTOR_BYTES > most || (granularity && remainder_of(bytes, granularity) != 0))
            return -VBLK_EINVAL;
    }
    return 0;
}

static int check_whole(const struct vblk *disk, const struct vblk_request *request, const struct op_info *op,
                       uint64_t bytes)
{
    if (!ZONES || op->bytes)
        return bytes == op->bytes ? 0 : -VBLK_EINVAL;
    /* ZONE_REPORT: the report's head at least */
    if (bytes < sizeof(struct virtio_blk_zone_report) || bytes > PART_BYTES_MAX)
        return -VBLK_EINVAL;
    return request->sector < capacity_get(disk) ? 0 : -VBLK_ERANGE;
}

/* Whether the request may go to this device. *AMOUNT: what is to be done of it, in bytes of data, sectors of
 * a range, or 1. */
static int request_check(const struct vblk *disk, const struct vblk_request *request, uint64_t *amount)
{
    const struct op_info *op;

    if ((unsigned)request->op >= OP_COUNT || !request->complete)
        return -VBLK_EINVAL;
    op = &vblk_op_table[request->op];
    if (op->feature && !has_feature(disk, op->feature)) /* 5.2.6: never sent without its feature */
        return -VBLK_ENOTSUP;
    if ((op->flags & OP_MODIFIES) && has_feature(disk, VIRTIO_BLK_F_RO))
        return -VBLK_EROFS;
    if ((request->flags & ~VBLK_REQUEST_UNMAP) ||
        ((request->flags & VBLK_REQUEST_UNMAP) && request->op != VBLK_WRITE_ZEROES))
        return -VBLK_EINVAL;
    if (op->flags & OP_RANGE) {
        *amount = request->num_sectors;
        return check_range(disk, request);
    }
    if (op->flags & (OP_IN | OP_OUT)) {
        uint64_t bytes = bytes_of(request);
        *amount = bytes;
        if (op->flags & OP_BLOCKS) {
            if (bytes == 0 || bytes == UINT64_MAX || (bytes & (disk->block_size - 1)) ||
                (request->sector & (disk->sectors_per_block - 1)))
                return -VBLK_EINVAL;
            if (!within(capacity_get(disk), request->sector, bytes / VIRTIO_BLK_SECTOR_BYTES))
                return -VBLK_ERANGE;
            return op->flags & OP_ZONE ? check_zone(disk, request, bytes) : 0;
        }
        return check_whole(disk, request, op, bytes);
    }
    *amount = 1;
    return op->flags & OP_ZONE ? check_zone(disk, request, 0) : 0;
}

/* Anything but the values that mean something is an error, and so is the preset value that no device wrote.
 */
int vblk_status_result(const struct vblk *disk, uint8_t status)
{
    static const uint8_t errors[] = {[VIRTIO_BLK_S_OK] = 0,
                                     [VIRTIO_BLK_S_IOERR] = VBLK_EIO,
                                     [VIRTIO_BLK_S_UNSUPP] = VBLK_ENOTSUP,
                                     [VIRTIO_BLK_S_ZONE_INVALID_CMD] = VBLK_EINVAL,
                                     [VIRTIO_BLK_S_ZONE_UNALIGNED_WP] = VBLK_EINVAL,
                                     [VIRTIO_BLK_S_ZONE_OPEN_RESOURCE] = VBLK_EBUSY,
                                     [VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE] = VBLK_EBUSY};

    if (status > (zoned(disk) ? VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE : VIRTIO_BLK_S_UNSUPP))
        return -VBLK_EIO;
    return -(int)errors[status];
}

#ifndef __OPTIMIZE_SIZE__
/* Most requests: a read or a write of one contiguous buffer, within all limits, with room on the ring. The
 * same as the long way does, in a third of the instructions. False: nothing was done. */
static inline bool submit_short(struct queue *q, struct vblk_request *request)
{
    const struct vblk_platform *platform;
    struct vblk *disk = q->disk;
    uint64_t sector = request->sector, capacity = capacity_get(disk), addr;
    const struct vblk_seg *seg = request->segs;
    unsigned index = q->free_part, op = request->op;
    size_t len, contiguous = 0;
    enum vblk_direction direction = op == VBLK_READ ? VBLK_FROM_DEVICE : VBLK_TO_DEVICE;
    struct part_dma *dma;
    struct part *part;
    vblk_dma_addr shared;

    /* one read or write, no flags; and where three descriptors are free, so is a part */
    if (request->nsegs != 1 || op > disk->short_op_max || request->flags || q->vq.num_free < 3 ||
        q->waiting || !vblk_queue_ready(q) || !request->complete)
        return false;
    len = seg->len;
    if (len - 1 >= disk->short_bytes_max || ((len | sector << 9) & (disk->block_size - 1)) ||
        sector > capacity || len / VIRTIO_BLK_SECTOR_BYTES > capacity - sector)
        return false;
    platform = disk->platform;
    if (platform->share(platform->ctx, seg->addr, len, direction, &shared, &contiguous) < 0)
        return false;
    addr = shared.value;
    if (contiguous != len) {
        if (contiguous && contiguous < len)
            platform->unshare(platform->ctx, seg->addr, contiguous, direction, shared);
        return false;
    }
    part = &q->parts[index];
    part->request = request;
    part->sector = sector;
    part->amount = (uint32_t)len;
    part->npieces = 1;
    part->attempts = 0;
    part->bounced = false;
    part->watched = false;
    part->piece = (struct vq_piece){seg->addr, addr, (uint32_t)len, VQ_NO_PIECE};
    dma = &q->dma[index];
    dma->header.type = le32_put(op); /* the two have the numbers of their types */
    dma->header.reserved = le32_put(0);
    dma->header.sector = le64_put(sector);
    __atomic_store_n(&dma->status, STATUS_NONE, __ATOMIC_RELAXED);
    (void)vq_put_one(&q->vq, index, addr, (uint32_t)len,
                     op == VBLK_READ); /* there is room: looked at above */
    part_link(q, index);
    request->driver.remaining = 0;
    request->driver.parts = 1;
    request->driver.result = 0;
    q->unkicked = true;
    q->stats.requests++;
    q->stats.parts++;
    return true;
}
_Static_assert((int)VBLK_READ == VIRTIO_BLK_T_IN && (int)VBLK_WRITE == VIRTIO_BLK_T_OUT, "submit_short");
#endif

int vblk_submit(struct vblk *disk, unsigned queue, struct vblk_request *request)
{
    struct queue *q;
    uint64_t amount;
    int result;

    if (queue >= disk->num_queues)
        return -VBLK_EINVAL;
    q = &disk->queues[queue];
#ifndef __OPTIMIZE_SIZE__
    if (!disk->trace && vblk_queue_enter(q)) {
        bool done = submit_short(q, request);
        vblk_queue_leave(q);
        if (done)
            return 0;
    }
#endif
    result = request_check(disk, request, &amount);
    if (result < 0)
        return result;
    if (state_get(disk) == DISK_FAILED)
        return -VBLK_ENODEV;
    request->driver.next = NULL;
    request->driver.remaining = amount;
    request->driver.sector = request->sector;
    request->driver.seg_offset = 0;
    request->driver.seg = request->op == VBLK_FLUSH ? q->lost_told : 0; /* see flush_done */
    request->driver.parts = 0;
    request->driver.result = 0;
    q->stats.requests++;
    if (disk->trace)
        disk->trace(disk->trace_opaque, VBLK_TRACE_SUBMIT, queue, request);
    if (request->op == VBLK_FLUSH && !disk->has_flush) {
        vblk_request_finish_later(q, request); /* such a device is write-through (5.2.5.1) */
        return 0;
    }
    if (!q->waiting && vblk_queue_enter(q)) {
        bool all = vblk_queue_ready(q) && vblk_request_issue(q, request);
        vblk_queue_leave(q);
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
