/*
 * When the device is silent, lies, or asks for it: recovery by steps
 * (virtio 1.4, 2.1.1, 2.6.1, 3.3.1, 3.2.1).
 *
 *   a quarter of the deadline   look: at the ring (a lost interrupt) and at the device's status
 *   half of it                  kick again (a lost kick)
 *   all of it                   reset the queue, if RING_RESET was negotiated; else, or if that fails, the
 * device
 *
 * What always holds: a request on the ring goes back to its owner only when the device has used it or a reset
 * was confirmed; after a reset the requests go to the device again, oldest first, except those that must not
 * be done twice; nothing is tried for ever, and a disk that stays bad fails with every request answered.
 */
#include "guest/driver/vblk_barrier.h"
#include "guest/driver/vblk_internal.h"

#define OTHERS_OUT_NS   10000000ull
#define POLLS_PER_WATCH 64

/* Keeps the owners of the other queues off their rings. False if one of them stays inside for long: then
 * nothing was done, and it is tried again by a later poll. */
bool vblk_others_out(struct vblk *disk, const struct queue *self)
{
    uint64_t since;
    unsigned i;

    if (disk->num_queues == 1)
        return true;
    __atomic_store_n(&disk->stop, 1, __ATOMIC_SEQ_CST); /* pairs with vblk_queue_enter */
    since = vblk_now_ns(disk);
    for (i = 0; i < disk->num_queues; i++) {
        struct queue *q = &disk->queues[i];
        while (q != self && __atomic_load_n(&q->inside, __ATOMIC_SEQ_CST)) {
            if (vblk_waited_too_long(disk, since, OTHERS_OUT_NS)) {
                vblk_others_in(disk);
                return false;
            }
        }
    }
    return true;
}

void vblk_others_in(struct vblk *disk)
{
    __atomic_store_n(&disk->stop, 0, __ATOMIC_SEQ_CST);
}

/* The end. RESET_RESULT: what device_reset said; a device that is neither reset nor gone may still be cut
 * off, and if not even that, the buffers that it has are never safe again. */
void vblk_disk_fail(struct vblk *disk, int reset_result)
{
    const struct vtr_ops *ops = disk->vtr->ops;

    if (reset_result == -VBLK_ETIMEDOUT && !(ops->cut_off && ops->cut_off(disk->vtr)))
        disk->buffers_held = true;
    if (reset_result == 0)
        vblk_status_add(disk, VIRTIO_STATUS_FAILED);
    state_set(disk, DISK_FAILED);
}

/* Puts the parts that were in flight on the ring again, oldest first. The ring is new and as large as before,
 * so all fit. */
static void queue_resubmit(struct queue *q)
{
    struct vblk *disk = q->disk;
    unsigned index = q->oldest;

    while (index != NONE16) {
        struct part *part = &q->parts[index];
        struct vblk_request *request = part->request;
        const struct op_info *op = &vblk_op_table[request->op];
        unsigned next = part->newer;
        part->watched = false;
        uint64_t sectors = op->flags & OP_BLOCKS ? part->amount / VIRTIO_BLK_SECTOR_BYTES : part->amount;
        int result = 0;

        if (op->flags & OP_ONCE)
            result = -VBLK_EIO;
        else if (++part->attempts >= ATTEMPTS_MAX)
            result = -VBLK_ETIMEDOUT;
        else if ((op->flags & (OP_BLOCKS | OP_RANGE)) &&
                 (part->sector > capacity_get(disk) || sectors > capacity_get(disk) - part->sector))
            result = -VBLK_ERANGE; /* the disk has shrunk meanwhile */
        else if (!vblk_part_put_on_ring(q, index))
            result = -VBLK_EIO;
        if (result < 0 && vblk_part_end(q, index, 0, result, false))
            vblk_request_finish_later(q, request);
        index = next;
    }
    q->rekicked = false;
    if (q->unkicked)
        vblk_queue_kick(q);
}

/* The owner of each queue resubmits what was on its ring when somebody reset the device. */
void vblk_queue_catch_up(struct queue *q)
{
    uint32_t epoch = __atomic_load_n(&q->disk->epoch, __ATOMIC_ACQUIRE);

    if (q->epoch != epoch) {
        queue_resubmit(q);
        q->epoch = epoch;
    }
}

/* 2.6.1: this queue alone. The others don't notice. */
static int queue_reset(struct queue *q)
{
    struct vblk *disk = q->disk;
    const struct vtr_ops *ops = disk->vtr->ops;
    uint64_t since = vblk_now_ns(disk);

    ops->queue_reset(disk->vtr, q->index);
    while (!ops->queue_is_reset(disk->vtr, q->index)) {
        if (vblk_waited_too_long(disk, since, disk->deadline_ns)) {
            vblk_say(disk, VBLK_LOG_WARNING, "the queue would not be reset");
            return -VBLK_ETIMEDOUT;
        }
    }
    vq_reset(&q->vq);
    return vblk_queue_enable(disk, q);
}

/* Were writes complete, but not yet made durable by a flush? With the write cache off there are none. All
 * other owners are out. */
static bool unflushed_writes(const struct vblk *disk)
{
    uint32_t flushed = disk->queues[0].flushed_seq, dirty = disk->queues[0].dirty_seq;
    unsigned i;

    for (i = 1; i < disk->num_queues; i++) {
        const struct queue *q = &disk->queues[i];
        if ((int32_t)(q->flushed_seq - flushed) > 0)
            flushed = q->flushed_seq;
        if ((int32_t)(q->dirty_seq - dirty) > 0)
            dirty = q->dirty_seq;
    }
    return (int32_t)(dirty - flushed) > 0 && __atomic_load_n(&disk->write_cache, __ATOMIC_RELAXED);
}

static void restore_write_cache(struct vblk *disk)
{
    int wanted = disk->wanted_cache - 1;

    if (wanted < 0 || wanted == __atomic_load_n(&disk->write_cache, __ATOMIC_RELAXED))
        return;
    disk->vtr->ops->config_write(disk->vtr, offsetof(struct virtio_blk_config, writeback), 1,
                                 (uint32_t)wanted);
    if (disk->vtr->ops->config_read(disk->vtr, offsetof(struct virtio_blk_config, writeback), 1) ==
        (uint32_t)wanted)
        __atomic_store_n(&disk->write_cache, wanted, __ATOMIC_RELAXED);
}

/* Reset, the same negotiation, the same queues. All other owners are out. */
static void device_restart(struct vblk *disk)
{
    bool lost = unflushed_writes(disk);
    unsigned i;
    int result = vblk_device_reset(disk);

    if (result < 0)
        goto dead;
    if (lost)
        __atomic_store_n(&disk->lost_seq, disk->lost_seq + 1, __ATOMIC_RELAXED);
    for (i = 0; i < disk->num_queues; i++)
        vq_reset(&disk->queues[i].vq);
    result = vblk_device_negotiate(disk, true);
    if (result == 0)
        result = vblk_device_enable_queues(disk);
    if (result < 0) {
        result = vblk_device_reset(disk); /* queues may be enabled; their memory goes back only after this */
        goto dead;
    }
    restore_write_cache(disk);
    vblk_device_go(disk);
    __atomic_store_n(&disk->epoch, disk->epoch + 1, __ATOMIC_RELEASE);
    return;
dead:
    vblk_disk_fail(disk, result);
}

static void count_recovery(struct queue *q, uint32_t tries)
{
    q->disk->recoveries++;
    q->stats.recoveries++;
    __atomic_store_n(&q->disk->resets, tries, __ATOMIC_RELAXED);
}

/* The queue can't go on as it is. Called by its owner, from vblk_poll. */
static void queue_recover(struct queue *q, bool device)
{
    struct vblk *disk = q->disk;
    uint64_t capacity = capacity_get(disk);
    uint32_t tried;

    if (!control_try(disk))
        return; /* somebody else is at it */
    tried = __atomic_load_n(&disk->resets, __ATOMIC_RELAXED);
    if (!device && tried == 0 && has_feature(disk, VIRTIO_F_RING_RESET)) {
        count_recovery(q, 1);
        if (queue_reset(q) == 0) {
            queue_resubmit(q);
            goto release;
        }
        q->vq.broken = true; /* nothing more goes on it before the device was reset */
    }
    if (!vblk_others_out(disk, q)) {
        __atomic_store_n(&disk->needs_reset, 1, __ATOMIC_RELEASE);
        goto release;
    }
    __atomic_store_n(&disk->needs_reset, 0, __ATOMIC_RELEASE);
    count_recovery(q, tried + 1);
    if (tried >= ATTEMPTS_MAX) {
        vblk_say(disk, VBLK_LOG_ERROR, "the device stays bad after several resets");
        vblk_disk_fail(disk, vblk_device_reset(disk));
    } else {
        device_restart(disk);
    }
    vblk_others_in(disk);
    if (state_get(disk) == DISK_LIVE) {
        vblk_queue_catch_up(q);
        if (capacity_get(disk) != capacity && disk->capacity_callback)
            disk->capacity_callback(disk->capacity_opaque, capacity_get(disk));
    }
release:
    control_release(disk);
}

/* Nothing of this queue is in flight, but a request waits all the same: the platform gives no bounce space.
 */
static void give_up_waiting(struct queue *q)
{
    struct vblk_request *request = q->waiting;

    q->waiting = request->driver.next;
    request->driver.result = -VBLK_ETIMEDOUT;
    request->driver.remaining = 0;
    vblk_request_finish_later(q, request);
}

static void look_at_status(struct queue *q)
{
    struct vblk *disk = q->disk;
    uint8_t status = vblk_status_get(disk);

    if (status == 0xff) {
        vblk_say(disk, VBLK_LOG_ERROR, "the device is gone");
        vblk_disk_fail(disk, -VBLK_ENODEV);
    } else if ((status & VIRTIO_STATUS_DEVICE_NEEDS_RESET) || !(status & VIRTIO_STATUS_DRIVER_OK)) {
        queue_recover(q, true);
    }
}

/* Is it the same part, or the same request that waits for room, that was the oldest the last time? If not,
 * the watch begins anew. */
static bool still_the_same(struct queue *q, struct part *part, const struct vblk_request *request)
{
    bool same = part ? part->watched : request == q->watch_request;

    q->watch_request = request;
    if (part)
        part->watched = true;
    return same;
}

static void kick_again(struct queue *q)
{
    q->rekicked = true;
    vblk_barrier_kick();
    q->disk->vtr->ops->notify(q->disk->vtr, q->index, vq_position(&q->vq),
                              has_feature(q->disk, VIRTIO_F_NOTIFICATION_DATA));
}

/* Called by every poll of an owner who polls seldom, and by some of those of one who spins, for whom the
 * clock may cost more than the poll. The oldest part is watched from the first look at it, not from when it
 * was submitted: a caller who did not poll, or a machine that was stopped, is no fault of the device. */
void vblk_queue_watch(struct queue *q)
{
    struct vblk *disk = q->disk;
    struct part *part = q->oldest == NONE16 ? NULL : &q->parts[q->oldest];
    const struct vblk_request *request = part ? NULL : q->waiting;
    uint64_t now, elapsed;

    if (q->vq.broken) {
        vblk_say(disk, VBLK_LOG_ERROR, "the device wrote nonsense into the used ring");
        queue_recover(q, false);
        return;
    }
    if (__atomic_load_n(&disk->needs_reset, __ATOMIC_ACQUIRE)) {
        queue_recover(q, true);
        return;
    }
    if (__atomic_load_n(&disk->config_pending, __ATOMIC_RELAXED))
        vblk_config_changed(disk);
    if (!part && !request) {
        q->watch_request = NULL;
        return;
    }
    now = vblk_now_ns(disk);
    q->polls_per_watch = now - q->watch_last_ns < disk->deadline_ns / 256 ? POLLS_PER_WATCH : 1;
    q->watch_last_ns = now;
    if (!still_the_same(q, part, request)) {
        q->watch_since_ns = now;
        q->watch_step = 0;
        q->rekicked = false;
        return;
    }
    elapsed = now > q->watch_since_ns ? now - q->watch_since_ns : 0;
    if (q->watch_step == 0 && elapsed >= disk->deadline_ns / 4) {
        q->watch_step = 1;
        look_at_status(q);
    } else if (q->watch_step == 1 && elapsed >= disk->deadline_ns / 2) {
        q->watch_step = 2;
        if (part)
            kick_again(q);
    } else if (q->watch_step == 2 && elapsed >= disk->deadline_ns) {
        q->watch_request = NULL;
        if (part) {
            part->watched = false;
            vblk_say(disk, VBLK_LOG_WARNING, "a request was not done within its deadline");
            queue_recover(q, false);
        } else {
            give_up_waiting(q);
        }
    }
}
