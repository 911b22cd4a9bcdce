/*
 * Kick and poll (virtio 1.4, 2.7.13.4, 2.7.14): the device is told, and tells.
 *
 * What always holds: `complete` is called from vblk_poll and vblk_stop only, with the queue's state whole; a
 * poll takes no more completions than the ring is large, so it ends whatever the device does.
 */
#include "guest/driver/vblk_barrier.h"
#define VBLK_SHARED_HERE
#include "guest/driver/vblk_internal.h"

/* Tells the device of all that was put on the ring since the last time, if it wants to know. */
void vblk_queue_kick(struct queue *q)
{
    struct vblk *disk = q->disk;

    q->unkicked = q->kick_due = false;
    if (!vq_want_notify(&q->vq)) {
        q->stats.kicks_suppressed++;
        return;
    }
    q->stats.kicks++;
    if (disk->trace)
        disk->trace(disk->trace_opaque, VBLK_TRACE_KICK, q->index, NULL);
    vblk_barrier_kick();
    disk->vtr->ops->notify(disk->vtr, q->index, vq_position(&q->vq),
                           has_feature(disk, VIRTIO_F_NOTIFICATION_DATA));
}

void vblk_kick(struct vblk *disk, unsigned queue)
{
    struct queue *q;

    if (queue >= disk->num_queues)
        return;
    q = &disk->queues[queue];
    if (!q->unkicked)
        return;
    q->kick_due =
        true; /* kept out now, by whoever resets, suspends or switches: then the next poll does it */
    if (!vblk_queue_enter(q))
        return;
    if (vblk_queue_ready(q))
        vblk_queue_kick(q);
    vblk_queue_leave(q);
}

static inline void request_complete(struct queue *q, struct vblk_request *request)
{
    struct vblk *disk = q->disk;

    q->stats.completions++;
    if (disk->trace)
        disk->trace(disk->trace_opaque, VBLK_TRACE_POLL, q->index, request);
    request->complete(request, request->driver.result);
}

static unsigned complete_finished(struct queue *q)
{
    unsigned n = 0;

    while (q->finished) {
        struct vblk_request *request = q->finished;
        q->finished = request->driver.next;
        request_complete(q, request);
        n++;
    }
    return n;
}

/* Something came back: whatever was tried to make the device talk has worked. */
static void progress(struct queue *q)
{
    if (q->rekicked) {
        q->stats.lost_kicks++;
        q->rekicked = false;
    }
    if (__atomic_load_n(&q->disk->resets, __ATOMIC_RELAXED))
        __atomic_store_n(&q->disk->resets, 0, __ATOMIC_RELAXED);
}

#ifndef __OPTIMIZE_SIZE__
/* Most completions: one buffer read or written, with success. The same as part_end does for all. False:
 * nothing was done. */
static inline bool end_short(struct queue *q, unsigned index, struct part *part, struct vblk_request *request,
                             uint8_t status, uint32_t used_len)
{
    const struct vblk_platform *platform = q->disk->platform;
    unsigned op = request->op;

    if (op > VBLK_WRITE || status != VIRTIO_BLK_S_OK || part->npieces != 1 || part->bounced ||
        (op == VBLK_READ && used_len < part->amount))
        return false;
    platform->unshare(platform->ctx, part->piece.mem, part->piece.len,
                      op == VBLK_READ ? VBLK_FROM_DEVICE : VBLK_TO_DEVICE, (vblk_dma_addr){part->piece.addr});
    if (op == VBLK_WRITE)
        q->dirty_seq = __atomic_load_n(&q->disk->flush_seq, __ATOMIC_SEQ_CST) + 1;
    part_unlink(q, index);
    request->driver.parts--;
    return true;
}
#endif

/* Takes what the device has used. */
static unsigned take_used(struct queue *q, bool *any)
{
    unsigned budget = q->vq.size, n = 0;
    uint16_t token;
    uint32_t len;

    while (budget-- && vq_pop(&q->vq, &token, &len) == 1) {
        struct part *part = &q->parts[token];
        struct vblk_request *request = part->request;
        /* the one read of the status; ordered after the used entry by vq_pop's acquire */
        uint8_t status = __atomic_load_n(&q->dma[token].status, __ATOMIC_RELAXED);
        *any = true;
#ifndef __OPTIMIZE_SIZE__
        if (end_short(q, token, part, request, status, len)) {
            if (request->driver.parts == 0 && request->driver.remaining == 0) {
                request_complete(q, request);
                n++;
            }
            continue;
        }
#endif
        if (vblk_part_end(q, token, len, vblk_status_result(q->disk, status), false)) {
            request_complete(q, request);
            n++;
        }
    }
    return n;
}

static void issue_waiting(struct queue *q)
{
    while (q->waiting) {
        struct vblk_request *next =
            q->waiting->driver.next; /* of this list: a request that fails joins another */
        if (!vblk_request_issue(q, q->waiting))
            return;
        q->waiting = next;
    }
}

/* A failed disk: every request of the queue is answered. */
unsigned vblk_queue_answer_all(struct queue *q)
{
    struct vblk *disk = q->disk;
    bool held = disk->buffers_held;
    unsigned n = 0;

    q->polling = true;
    while (q->oldest != NONE16) {
        unsigned index = q->oldest;
        struct vblk_request *request = q->parts[index].request;
        if (vblk_part_end(q, index, 0, held ? -VBLK_ENOTRECOVERABLE : -VBLK_ENODEV, held)) {
            request_complete(q, request);
            n++;
        }
    }
    while (q->waiting) {
        struct vblk_request *request = q->waiting;
        q->waiting = request->driver.next;
        request->driver.result = -VBLK_ENODEV;
        request_complete(q, request);
        n++;
    }
    n += complete_finished(q);
    q->polling = false;
    return n;
}

unsigned vblk_poll(struct vblk *disk, unsigned queue)
{
    struct queue *q;
    unsigned n;
    bool any = false;

    if (queue >= disk->num_queues)
        return 0;
    q = &disk->queues[queue];
    if (q->polling || !vblk_queue_enter(q))
        return 0;
    q->stats.polls++;
    q->polling = true;
    n = complete_finished(q);
    if (state_get(disk) == DISK_LIVE) {
        vblk_queue_catch_up(q);
        n += take_used(q, &any);
        if (any)
            progress(q);
        if ((q->waiting || q->kick_due) && !q->vq.broken) {
            issue_waiting(q);
            if (q->unkicked)
                vblk_queue_kick(q);
        }
        if (q->vq.broken || ++q->polls_unwatched >= q->polls_per_watch ||
            __atomic_load_n(&disk->needs_reset, __ATOMIC_RELAXED) ||
            __atomic_load_n(&disk->config_pending, __ATOMIC_RELAXED)) {
            q->polls_unwatched = 0;
            vblk_queue_watch(q);
        }
        n += complete_finished(q);
    }
    q->polling = false;
    if (state_get(disk) == DISK_FAILED)
        n += vblk_queue_answer_all(q);
    vblk_queue_leave(q);
    return n;
}

void vblk_interrupts_off(struct vblk *disk, unsigned queue)
{
    struct queue *q;

    if (queue >= disk->num_queues)
        return;
    q = &disk->queues[queue];
    if (vblk_queue_enter(q)) {
        if (vblk_queue_ready(q))
            vq_interrupts_off(&q->vq);
        vblk_queue_leave(q);
    }
}

bool vblk_interrupts_on(struct vblk *disk, unsigned queue)
{
    struct queue *q;
    bool pending = true;

    if (queue >= disk->num_queues)
        return false;
    q = &disk->queues[queue];
    if (q->finished || !vblk_queue_enter(q))
        return true;
    q->polls_per_watch = 1; /* who asks is about to sleep, and no spinner: the next poll looks at the clock */
    if (vblk_queue_ready(q))
        pending = disk->config.poll_only ? q->oldest != NONE16 : vq_interrupts_on(&q->vq);
    else
        pending = state_get(disk) != DISK_SUSPENDED && (q->oldest != NONE16 || q->waiting);
    vblk_queue_leave(q);
    return pending;
}

void vblk_queue_stats(const struct vblk *disk, unsigned queue, struct vblk_queue_stats *stats)
{
    if (queue < disk->num_queues)
        *stats = disk->queues[queue].stats;
    else
        memset(stats, 0, sizeof(*stats));
}

void vblk_set_trace(struct vblk *disk,
                    void (*trace)(void *opaque, enum vblk_trace_point point, unsigned queue,
                                  const struct vblk_request *request),
                    void *opaque)
{
    disk->trace = NULL;
    disk->trace_opaque = opaque;
    disk->trace = trace;
}
