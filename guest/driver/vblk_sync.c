/*
 * Synchronous calls: submit, kick, and poll or wait until done; and what must not meet requests in flight:
 * the switch of the write cache (virtio 1.4, 5.2.6.1, 5.2.6.2), suspend and resume (3.4).
 */
#include "guest/driver/vblk_internal.h"

struct sync {
    int result;
    bool done;
};

static void sync_complete(struct vblk_request *request, int result)
{
    struct sync *sync = request->opaque;

    sync->result = result;
    sync->done = true;
}

/* Waits for an interrupt of the queue, for a slice of the deadline: one that gets lost costs no more than
 * that. */
static void wait_for_interrupt(struct vblk *disk, unsigned queue)
{
    struct queue *q = &disk->queues[queue];
    uint64_t until;

    if (disk->config.poll_only || disk->polling) {
        vblk_relax(disk);
        return;
    }
    if (vblk_interrupts_on(disk, queue))
        return;
    until = vblk_now_ns(disk) + disk->deadline_ns / 8;
    disk->platform->wait(disk->platform->ctx, queue, until);
    if (vblk_now_ns(disk) >= until && vblk_interrupts_on(disk, queue) && q->oldest != NONE16)
        q->stats.lost_interrupts++; /* something is there, and nobody said so */
    vblk_interrupts_off(disk, queue);
}

/* Inside `complete` nothing can be waited for, nor on a suspended device. */
static bool cannot_wait(const struct vblk *disk, unsigned queue)
{
    return (queue < disk->num_queues && disk->queues[queue].polling) || state_get(disk) == DISK_SUSPENDED;
}

int vblk_run(struct vblk *disk, unsigned queue, struct vblk_request *request)
{
    struct sync sync = {0, false};
    int result;

    if (cannot_wait(disk, queue))
        return -VBLK_EBUSY;
    request->complete = sync_complete;
    request->opaque = &sync;
    result = vblk_submit(disk, queue, request);
    if (result < 0)
        return result;
    vblk_kick(disk, queue);
    for (;;) {
        (void)vblk_poll(disk, queue);
        if (sync.done)
            return sync.result;
        wait_for_interrupt(disk, queue);
    }
}

int vblk_drain(struct vblk *disk, unsigned queue)
{
    struct queue *q;

    if (queue >= disk->num_queues)
        return -VBLK_EINVAL;
    q = &disk->queues[queue];
    if (cannot_wait(disk, queue))
        return -VBLK_EBUSY;
    vblk_kick(disk, queue);
    for (;;) {
        (void)vblk_poll(disk, queue);
        if (q->oldest == NONE16 && !q->waiting && !q->finished)
            return 0;
        wait_for_interrupt(disk, queue);
    }
}

static int transfer(struct vblk *disk, unsigned queue, enum vblk_op op, uint64_t sector, void *buf,
                    size_t len)
{
    struct vblk_seg seg = {buf, len};
    struct vblk_request request = {.op = op, .sector = sector, .segs = &seg, .nsegs = 1};

    return vblk_run(disk, queue, &request);
}

int vblk_read(struct vblk *disk, unsigned queue, uint64_t sector, void *buf, size_t len)
{
    return transfer(disk, queue, VBLK_READ, sector, buf, len);
}

int vblk_write(struct vblk *disk, unsigned queue, uint64_t sector, const void *buf, size_t len)
{
    return transfer(disk, queue, VBLK_WRITE, sector, (void *)(uintptr_t)buf, len);
}

int vblk_flush(struct vblk *disk, unsigned queue)
{
    struct vblk_request request = {.op = VBLK_FLUSH};

    return vblk_run(disk, queue, &request);
}

static int range(struct vblk *disk, unsigned queue, enum vblk_op op, uint64_t sector, uint64_t num_sectors,
                 uint32_t flags)
{
    struct vblk_request request = {.op = op, .flags = flags, .sector = sector, .num_sectors = num_sectors};

    return vblk_run(disk, queue, &request);
}

int vblk_discard(struct vblk *disk, unsigned queue, uint64_t sector, uint64_t num_sectors)
{
    return range(disk, queue, VBLK_DISCARD, sector, num_sectors, 0);
}

int vblk_write_zeroes(struct vblk *disk, unsigned queue, uint64_t sector, uint64_t num_sectors, bool unmap)
{
    return range(disk, queue, VBLK_WRITE_ZEROES, sector, num_sectors, unmap ? VBLK_REQUEST_UNMAP : 0);
}

int vblk_secure_erase(struct vblk *disk, unsigned queue, uint64_t sector, uint64_t num_sectors)
{
    return range(disk, queue, VBLK_SECURE_ERASE, sector, num_sectors, 0);
}

int vblk_get_id(struct vblk *disk, unsigned queue, char id[VIRTIO_BLK_ID_BYTES + 1])
{
    memset(id, 0, VIRTIO_BLK_ID_BYTES + 1); /* the device's 20 bytes may come without a NUL */
    return transfer(disk, queue, VBLK_GET_ID, 0, id, VIRTIO_BLK_ID_BYTES);
}

int vblk_get_lifetime(struct vblk *disk, unsigned queue, struct virtio_blk_lifetime *lifetime)
{
    int result;

    memset(lifetime, 0, sizeof(*lifetime));
    result = transfer(disk, queue, VBLK_GET_LIFETIME, 0, lifetime, sizeof(*lifetime));
    if (le16_get(lifetime->pre_eol_info) > 3)
        lifetime->pre_eol_info = le16_put(0);
    if (le16_get(lifetime->device_lifetime_est_typ_a) > 11)
        lifetime->device_lifetime_est_typ_a = le16_put(0);
    if (le16_get(lifetime->device_lifetime_est_typ_b) > 11)
        lifetime->device_lifetime_est_typ_b = le16_put(0);
    return result;
}

static bool queues_idle(const struct vblk *disk)
{
    unsigned i;

    for (i = 0; i < disk->num_queues; i++)
        if (disk->queues[i].oldest != NONE16 || disk->queues[i].waiting)
            return false;
    return true;
}

/* Flush first: to write 0 promises nothing about what was written before (5.2.6.1). And nothing in flight:
 * what it would mean for that is undefined (5.2.6.2). */
int vblk_set_write_cache(struct vblk *disk, bool on)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    const unsigned at = offsetof(struct virtio_blk_config, writeback);
    int result;

    if (!has_feature(disk, VIRTIO_BLK_F_CONFIG_WCE))
        return -VBLK_ENOTSUP;
    result = vblk_drain(disk, 0);
    if (result == 0)
        result = vblk_flush(disk, 0);
    if (result < 0)
        return result;
    if (!control_try(disk))
        return -VBLK_EBUSY;
    if (!vblk_others_out(disk, NULL)) {
        control_release(disk);
        return -VBLK_EBUSY;
    }
    if (!queues_idle(disk)) {
        result = -VBLK_EBUSY;
    } else if (state_get(disk) != DISK_LIVE) {
        result = -VBLK_ENODEV;
    } else {
        ops->config_write(disk->vtr, at, 1, on);
        if (ops->config_read(disk->vtr, at, 1) == (uint32_t)on) {
            __atomic_store_n(&disk->write_cache, on, __ATOMIC_RELAXED);
            disk->wanted_cache = on + 1;
        } else {
            result = -VBLK_EIO;
        }
    }
    vblk_others_in(disk);
    control_release(disk);
    return result;
}

/* Waits until the status has WANT and not UNWANTED among these two bits (3.4.1). */
static int wait_status(struct vblk *disk, uint8_t want, uint8_t unwanted)
{
    uint64_t since = vblk_now_ns(disk);

    for (;;) {
        uint8_t status = vblk_status_get(disk);
        if (status == 0xff || (status & VIRTIO_STATUS_DEVICE_NEEDS_RESET))
            return -VBLK_EIO;
        if ((status & want) && !(status & unwanted))
            return 0;
        if (vblk_waited_too_long(disk, since, disk->deadline_ns))
            return -VBLK_ETIMEDOUT;
    }
}

/* The common way of suspend and resume: from one state to the other with everybody off the rings. */
static int change_state(struct vblk *disk, int from, int to, uint8_t set, uint8_t cleared_by_device)
{
    int result;

    if (!has_feature(disk, VIRTIO_F_SUSPEND))
        return -VBLK_ENOTSUP;
    if (!control_try(disk))
        return -VBLK_EBUSY;
    if (!vblk_others_out(disk, NULL)) {
        control_release(disk);
        return -VBLK_EBUSY;
    }
    result = state_get(disk) == from ? 0 : -VBLK_EINVAL;
    if (result == 0) {
        state_set(disk, DISK_SUSPENDED);
        vblk_status_add(disk, set); /* no bit is cleared here: the device swaps them (2.1.1) */
        result = wait_status(disk, set, cleared_by_device);
        if (result < 0) {
            __atomic_store_n(&disk->needs_reset, 1, __ATOMIC_RELEASE);
            to = DISK_LIVE; /* the next poll resets it */
        }
        state_set(disk, to);
    }
    vblk_others_in(disk);
    control_release(disk);
    return result;
}

int vblk_suspend(struct vblk *disk)
{
    return change_state(disk, DISK_LIVE, DISK_SUSPENDED, VIRTIO_STATUS_SUSPEND, VIRTIO_STATUS_DRIVER_OK);
}

int vblk_resume(struct vblk *disk)
{
    return change_state(disk, DISK_SUSPENDED, DISK_LIVE, VIRTIO_STATUS_DRIVER_OK, VIRTIO_STATUS_SUSPEND);
}
