/*
 * A queue of the block device starts and stops: its memory, its ring, what the loop calls. How it runs:
 * virtio_blk_queue.c.
 *
 * What always holds: one start, stop or change at a time, under the queue's control lock, asked for by a
 * coroutine of the control loop and done on the queue's own loop; a stop ends only when nothing that was
 * taken from the ring is in flight any more.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/device/virtio_blk_internal.h"
#include "host/device/virtqueue_audit.h"
#include "host/runtime/world.h"

void virtio_blk_queue_free(struct virtio_blk_queue *queue)
{
    union request_block *block;

    while ((block = queue->free_blocks)) {
        queue->free_blocks = block->next_free;
        free(block);
    }
    queue->num_blocks = 0;
    ring_inflight_free(&queue->inflight);
    free(queue->requests);
    free(queue->free_slots);
    free(queue->order);
    queue->requests = NULL;
    queue->free_slots = queue->order = NULL;
}

/* Runs FN on the queue's loop; the caller sleeps until control_done. */
static void coroutine_fn control_call(struct virtio_blk_queue *queue, void (*fn)(void *opaque))
{
    queue->control.waiter = co_self();
    queue->control.bh = (struct loop_bh){.fn = fn, .opaque = queue, .loop = queue->loop};
    loop_bh_schedule(&queue->control.bh);
    co_yield ();
}

static void control_done(struct virtio_blk_queue *queue)
{
    co_wake(queue->control.waiter);
}

static void control_start(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    virtio_blk_queue_set_state(queue, QUEUE_RUNNING);
    if (loop_fd_add(queue->loop, &queue->kick) < 0) {
        virtio_blk_queue_break(queue, "the kick descriptor can't be waited for");
        control_done(queue);
        return;
    }
    if (queue->repoll_ns)
        loop_timer_arm(queue->loop, &queue->repoll, world_now_ns() + queue->repoll_ns);
    /* Whoever served this ring before may have died between publishing and interrupting. The place of the
     * beginning is that of every so many laps, too: only without a used region does it mean a ring just made.
     */
    if (queue->call_fd >= 0 && !queue->goes_on &&
        ((queue->track_inflight && !queue->inflight.fresh) ||
         virtqueue_last_used_idx(&queue->vq) != (queue->vq.packed ? 0x8000 : 0)))
        virtio_blk_queue_write_call(queue);
    /* Work that was there before the first kick. */
    virtio_blk_handle_queue(queue);
    control_done(queue);
}

static bool is_pipe(int fd)
{
    struct stat st;

    return fd >= 0 && fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

static int queue_allocate(struct virtio_blk_queue *queue, unsigned size, bool packed, bool in_order)
{
    virtio_blk_queue_free(queue);
    queue->requests = aligned_alloc(CACHE_LINE, size * sizeof(*queue->requests));
    if (!queue->requests)
        return -ENOMEM;
    memset(queue->requests, 0, size * sizeof(*queue->requests));
    for (unsigned i = 0; i < size; i++) {
        queue->requests[i].queue = queue;
        queue->requests[i].slot = (uint16_t)i;
    }
    if (packed) {
        queue->free_slots = malloc(size * sizeof(*queue->free_slots));
        if (!queue->free_slots)
            return -ENOMEM;
        /* The first ones on top: slots in use stay close together. */
        for (unsigned i = 0; i < size; i++)
            queue->free_slots[i] = (uint16_t)(size - 1 - i);
        queue->num_free_slots = size;
    }
    if (in_order) {
        queue->order = malloc(VIRTQUEUE_MAX_SIZE * sizeof(*queue->order));
        if (!queue->order)
            return -ENOMEM;
    }
    return request_block_at_hand(queue) ? 0 : -ENOMEM;
}

/* With the queue's control lock held. */
static int coroutine_fn start_locked(struct virtio_blk_queue *queue, struct loop *loop,
                                     const struct virtio_blk_queue_setup *setup, struct error *err)
{
    struct virtio_blk *device = queue->device;
    unsigned index = queue->index;
    const struct virtqueue_setup ring = {.memory = setup->memory,
                                         .size = setup->size,
                                         .packed = setup->packed,
                                         .features = device->features,
                                         .desc = setup->desc,
                                         .driver = setup->driver,
                                         .device = setup->device,
                                         .last_avail_idx = setup->last_avail_idx,
                                         .last_used_idx = setup->last_used_idx,
                                         .indexes_follow = setup->inflight};
    const char *why;

    if (queue->state != QUEUE_STOPPED)
        return error_set(err, -EBUSY, "queue %u runs already", index);
    if (setup->size > device->options.queue_size_max)
        return error_set(err, -EINVAL, "queue %u: size %u is above the %u that the device allows", index,
                         setup->size, device->options.queue_size_max);
    if (virtqueue_init(&queue->vq, &ring, &why) < 0)
        return error_set(err, -EINVAL, "queue %u: %s", index, why);
    queue->features = device->features;
    queue->in_order = queue_has_feature(queue, VIRTIO_F_IN_ORDER);
    queue->read_only = blk_read_only(device->blk);
    queue->merging = device->options.request_merging;
    if (queue_allocate(queue, setup->size, setup->packed, queue->in_order) < 0) {
        virtio_blk_queue_free(queue);
        return error_set(err, -ENOMEM, "queue %u: no memory for %u requests", index, setup->size);
    }
    queue->resubmitted = 0;
    queue->track_inflight = setup->inflight;
    queue->inflight_own = setup->inflight_own;
    queue->goes_on = setup->goes_on;
    queue->keeps_parked = false;
    if (setup->inflight) {
        int result =
            ring_inflight_init(&queue->inflight, setup->inflight, setup->inflight_bytes, &queue->vq, &why);

        if (result < 0)
            return error_set(err, result, "queue %u: %s", index, why);
        queue->vq.inflight = setup->packed ? &queue->inflight : NULL;
        virtio_blk_share_cache_mode(device, queue);
    }
    if (device->zoned)
        zoned_queue_starts(device->zoned, index, queue->inflight.requests, queue->inflight.num_requests);
    if (device->options.audit) {
        const struct audit_setup audit = {.line = device->options.audit,
                                          .opaque = device->options.audit_opaque,
                                          .queue = index,
                                          .offered = virtio_blk_device_features(device),
                                          .negotiated = device->features,
                                          .read_only = queue->read_only,
                                          .config = &device->config};

        queue->vq.audit = audit_create(&audit, &queue->vq);
        if (!queue->vq.audit) {
            virtio_blk_queue_free(queue);
            return error_set(err, -ENOMEM, "queue %u: no memory for the audit", index);
        }
    }
    queue->loop = loop;
    queue->again.loop = queue->resume.loop = loop;
    queue->parked = NULL;
    queue->memory = setup->log_memory ? setup->log_memory : setup->memory;
    queue->awaits_translation = false;
    queue->log = (struct dirty_log){setup->log, setup->log_bytes};
    queue->log_used = setup->log_used;
    queue->log_used_addr.value = setup->log_used_addr;
    queue->broken = queue->polling = queue->handling = queue->stalled = queue->order_ends = false;
    queue->in_flight = queue->order_head = queue->order_count = queue->coalesced = queue->num_used = 0;
    queue->num_unshown = 0;
    queue->shown = queue->woken = false;
    queue->memory_broken = setup->memory_broken;
    queue->kick.fd = setup->kick_fd;
    queue->kick_is_pipe = is_pipe(setup->kick_fd);
    queue->kick.edge = !queue->kick_is_pipe;
    queue->call_fd = setup->call_fd;
    queue->call_is_pipe = is_pipe(setup->call_fd);
    queue->repoll_ns = setup->no_kicks ? REPOLL_MIN_NS : 0;
    control_call(queue, control_start);
    return 0;
}

int coroutine_fn virtio_blk_co_queue_start(struct virtio_blk *device, unsigned index, struct loop *loop,
                                           const struct virtio_blk_queue_setup *setup, struct error *err)
{
    struct virtio_blk_queue *queue;
    int result;

    if (index >= device->options.num_queues)
        return error_set(err, -EINVAL, "queue %u does not exist (the device has %u)", index,
                         device->options.num_queues);
    queue = &device->queues[index];
    co_mutex_lock(&queue->control.lock);
    result = start_locked(queue, loop, setup, err);
    co_mutex_unlock(&queue->control.lock);
    return result;
}

void virtio_blk_queue_try_finish_stop(struct virtio_blk_queue *queue)
{
    if (queue->in_flight > 0 || queue->flush.queued ||
        (queue->resubmitted < queue->inflight.num_requests && !queue->broken && !queue->awaits_translation))
        return;
    loop_timer_cancel(&queue->coalesce);
    if (queue->coalesced > 0)
        virtio_blk_queue_interrupt(queue);
    audit_destroy(queue->vq.audit);
    queue->vq.audit = NULL;
    virtio_blk_queue_set_state(queue, QUEUE_STOPPED);
    control_done(queue);
}

static void control_stop(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    queue->keeps_parked = queue->track_inflight && (queue->control.pause || !queue->inflight_own);
    virtio_blk_queue_set_state(queue, QUEUE_STOPPING);
    if (queue->kick.added)
        loop_fd_remove(&queue->kick);
    loop_bh_cancel(&queue->again);
    loop_bh_cancel(&queue->resume);
    virtio_blk_queue_drop_parked(queue);
    if (request_block_at_hand(
            queue)) /* those that are left to the inflight region end no stall by completing */
        queue->stalled = false;
    loop_timer_cancel(&queue->repoll);
    virtio_blk_handle_queue(queue);
    virtio_blk_queue_try_finish_stop(queue);
}

static void coroutine_fn co_queue_end(struct virtio_blk *device, unsigned index, bool pause,
                                      uint16_t *last_avail_idx, uint16_t *last_used_idx)
{
    struct virtio_blk_queue *queue = &device->queues[index];

    co_mutex_lock(&queue->control.lock);
    if (queue->state != QUEUE_STOPPED) {
        queue->control.pause = pause;
        /* A full queue at a few requests a second would take minutes. */
        blk_hurry_begin(device->blk);
        control_call(queue, control_stop);
        blk_hurry_end(device->blk);
    }
    if (last_avail_idx)
        *last_avail_idx = virtqueue_last_avail_idx(&queue->vq);
    if (last_used_idx)
        *last_used_idx = virtqueue_last_used_idx(&queue->vq);
    co_mutex_unlock(&queue->control.lock);
}

void coroutine_fn virtio_blk_co_queue_stop(struct virtio_blk *device, unsigned index,
                                           uint16_t *last_avail_idx, uint16_t *last_used_idx)
{
    co_queue_end(device, index, false, last_avail_idx, last_used_idx);
}

void coroutine_fn virtio_blk_co_queue_pause(struct virtio_blk *device, unsigned index,
                                            uint16_t *last_avail_idx, uint16_t *last_used_idx)
{
    co_queue_end(device, index, true, last_avail_idx, last_used_idx);
}

static void control_set_call(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    queue->call_fd = queue->control.call_fd;
    queue->call_is_pipe = is_pipe(queue->call_fd);
    control_done(queue);
}

void coroutine_fn virtio_blk_co_queue_set_call(struct virtio_blk *device, unsigned index, int call_fd)
{
    struct virtio_blk_queue *queue = &device->queues[index];

    co_mutex_lock(&queue->control.lock);
    queue->control.call_fd = call_fd;
    if (queue->state == QUEUE_STOPPED)
        queue->call_fd = call_fd;
    else
        control_call(queue, control_set_call);
    co_mutex_unlock(&queue->control.lock);
}
