/*
 * A queue of the block device while it runs: kicks and polling, taking requests off the ring, giving them
 * back used, interrupts. How it starts and stops: virtio_blk_start.c.
 *
 * What always holds:
 *  - everything here but virtio_blk_queue_stats runs on the queue's own loop;
 *  - notifications are turned on only after the ring was found empty, and the ring is looked at once more
 * after that, so no kick is lost;
 *  - nothing is fetched that there is no memory for: the queue stalls with notifications off, and goes on
 * when a request ends;
 *  - used entries are published a few at a time, and there is at most one interrupt for all of a turn: early
 *    in it where the driver would not be told twice, so that it wakes up while the rest is served, else at
 *    its end.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "host/device/virtio_blk_internal.h"
#include "host/device/virtqueue_audit.h"
#include "host/runtime/world.h"

/* Requests taken at a time before the loop gets its turn. */
#define HANDLE_MAX 128u
/* Looks at a ring that was found empty and is not any more, before the loop gets its turn. */
#define ROUNDS_MAX 3u
/* Used entries that are published together: few enough for driver and device to work at the same time, many
 * enough for the used index's cache line not to travel for each. */
#define SHOW_EVERY 8u

#define REPOLL_MAX_NS 1000000u

/* ---- memory for long requests ---- */

union request_block *request_block_get(struct virtio_blk_queue *queue)
{
    union request_block *block = queue->free_blocks;

    if (block) {
        queue->free_blocks = block->next_free;
        return block;
    }
    if (queue->num_blocks == REQUEST_BLOCKS_MAX)
        return NULL;
    block = aligned_alloc(CACHE_LINE, sizeof(*block));
    if (block)
        queue->num_blocks++;
    return block;
}

void request_block_put(struct virtio_blk_queue *queue, union request_block *block)
{
    block->next_free = queue->free_blocks;
    queue->free_blocks = block;
}

bool request_block_at_hand(struct virtio_blk_queue *queue)
{
    union request_block *block;

    if (__builtin_expect(queue->free_blocks != NULL, 1))
        return true;
    block = request_block_get(queue);
    if (!block)
        return false;
    request_block_put(queue, block);
    return true;
}

/* ---- fetching ---- */

void virtio_blk_queue_break(struct virtio_blk_queue *queue, const char *why)
{
    struct virtio_blk *device = queue->device;

    if (queue->broken)
        return;
    queue->broken = true;
    STAT_ADD(queue, broken, 1);
    if (queue->vq.audit)
        audit_broken(queue->vq.audit, why);
    __atomic_store_n(&device->broken, 1, __ATOMIC_RELAXED);
    if (device->events.needs_reset)
        device->events.needs_reset(device->events.opaque, queue->index, why);
}

/* The request's state lies at its head's index; with a packed ring, whose ids are the driver's affair, at any
 * free one. NULL: the ring is broken. */
static struct virtio_blk_request *request_take(struct virtio_blk_queue *queue,
                                               const struct virtq_chain *chain)
{
    struct virtio_blk_request *request;
    uint16_t slot = chain->id;

    if (queue->vq.packed) {
        if (queue->num_free_slots == 0) {
            virtio_blk_queue_break(queue, "more lists are in flight than the packed ring has places");
            return NULL;
        }
        slot = queue->free_slots[--queue->num_free_slots];
    }
    request = &queue->requests[slot];
    if (request->busy) {
        virtio_blk_queue_break(queue, "a descriptor chain was made available again while it is in flight");
        return NULL;
    }
    request->busy = true;
    request->id = chain->id;
    request->num_descs = chain->num_descs;
    if (queue->in_order) {
        request->done = request->left = false;
        queue->order[(queue->order_head + queue->order_count++) & (VIRTQUEUE_MAX_SIZE - 1)] = slot;
    }
    queue->in_flight++;
    return request;
}

/* The next buffer: first those that the inflight region says were taken before. As virtqueue_pop. */
static int next_chain(struct virtio_blk_queue *queue, struct virtq_chain *chain)
{
    struct ring_inflight *inflight = &queue->inflight;

    if (__builtin_expect(queue->resubmitted < inflight->num_requests, 0)) {
        const struct inflight_request *found = &inflight->requests[queue->resubmitted++];

        if (queue->vq.packed)
            return virtqueue_packed_repop(&queue->vq, &inflight->descs[found->first], found->num, chain);
        return virtqueue_split_repop(&queue->vq, found->entry, chain);
    }
    return queue->state == QUEUE_RUNNING ? virtqueue_pop(&queue->vq, chain) : 0;
}

/* Writes down that REQUEST was taken; one that is taken up again stands there already. */
static void note_taken(struct virtio_blk_queue *queue, struct virtio_blk_request *request, bool again)
{
    const struct inflight_request *found;

    if (again) {
        found = &queue->inflight.requests[queue->resubmitted - 1];
        request->entry = found->entry;
        request->counter = found->counter;
        return;
    }
    request->counter = queue->inflight.counter;
    if (queue->vq.packed)
        request->entry = ring_inflight_packed_popped(&queue->inflight, request->num_descs);
    else
        ring_inflight_split_popped(&queue->inflight, request->entry = request->id);
}

/* The chain that was looked at stays where it is: in the ring, or AGAIN among those to be taken up again. */
static void await_translation(struct virtio_blk_queue *queue, bool again)
{
    const struct virtio_blk_events *events = &queue->device->events;

    queue->vq.missing = false;
    queue->resubmitted -= again;
    queue->awaits_translation = true;
    if (events->iova_missing)
        events->iova_missing(events->opaque, queue->index, queue->vq.missing_addr,
                             queue->vq.missing_writable);
}

/* Takes what is there, at most HANDLE_MAX; false when the ring was found empty or can't be read on. */
static bool fetch(struct virtio_blk_queue *queue)
{
    unsigned taken = 0;

    while (taken < HANDLE_MAX) {
        struct virtio_blk_request *request;
        struct virtq_chain chain;
        bool again = queue->resubmitted < queue->inflight.num_requests;
        int result;

        if (!request_block_at_hand(queue)) {
            queue->stalled = true;
            STAT_ADD(queue, stalls, 1);
            break;
        }
        result = next_chain(queue, &chain);
        if (result == 0)
            break;
        if (result < 0 && queue->vq.missing) {
            await_translation(queue, again);
            break;
        }
        if (result < 0) {
            virtio_blk_queue_break(queue, queue->vq.why);
            break;
        }
        if (__builtin_expect(queue->vq.audit != NULL, 0))
            audit_chain(queue->vq.audit, &chain);
        if (chain.in_bytes == 0) {
            virtio_blk_queue_break(queue, "a request has no room for its status (5.2.6)");
            break;
        }
        request = request_take(queue, &chain);
        if (!request)
            break;
        taken++;
        request->again = again;
        if (queue->track_inflight)
            note_taken(queue, request, again);
        virtio_blk_handle_request(queue, request, &chain);
    }
    STAT_ADD(queue, popped, taken);
    return taken == HANDLE_MAX;
}

/* What we write to the ring itself: all of it is marked, it is a page or two. */
static void log_ring(struct virtio_blk_queue *queue)
{
    const struct virtqueue *vq = &queue->vq;

    if (!queue->log_used)
        return;
    dirty_log_mark(&queue->log, queue->log_used_addr,
                   vq->packed ? sizeof(struct virtq_packed_event) : VIRTQ_USED_BYTES((uint64_t)vq->size));
    if (vq->packed)
        dirty_log_mark_host(&queue->log, queue->memory, vq->ring.desc, VIRTQ_DESC_BYTES((uint64_t)vq->size));
}

void virtio_blk_handle_queue(struct virtio_blk_queue *queue)
{
    bool more;

    if (queue->state == QUEUE_STOPPED || queue->broken || queue->handling || queue->stalled ||
        queue->awaits_translation)
        return;
    if (queue->state == QUEUE_STOPPING && queue->resubmitted == queue->inflight.num_requests)
        return;
    if (queue->memory_broken && __atomic_load_n(queue->memory_broken, __ATOMIC_RELAXED)) {
        virtio_blk_queue_break(queue, "the guest's memory was cut short by the front end");
        return;
    }
    queue->handling = true;
    if (__builtin_expect(queue->vq.audit != NULL, 0))
        audit_events(queue->vq.audit, &queue->vq);
    if (queue->vq.notify_wanted)
        virtqueue_set_notification(&queue->vq, false);
    for (unsigned round = 0;; round++) {
        more = fetch(queue);
        if (more || queue->broken || queue->stalled || queue->polling || queue->awaits_translation ||
            queue->state != QUEUE_RUNNING)
            break;
        virtqueue_set_notification(&queue->vq, true);
        if (!virtqueue_has_more(&queue->vq))
            break;
        virtqueue_set_notification(&queue->vq, false);
        /* A driver that refills as fast as it is served does not hold the loop. */
        if (round == ROUNDS_MAX) {
            more = true;
            break;
        }
    }
    multireq_submit(queue);
    queue->handling = false;
    if (__builtin_expect(queue->log.bits != NULL, 0))
        log_ring(queue); /* notifications on or off are words in it */
    if (more && queue->state == QUEUE_RUNNING)
        loop_bh_schedule(&queue->again);
    else if (more)
        loop_defer(queue->loop, &queue->flush);
}

static void on_again(void *opaque)
{
    virtio_blk_handle_queue(opaque);
}

static void on_resume(void *opaque)
{
    virtio_blk_queue_resume(opaque);
}

/* A pipe that nobody empties would hold up its writer in the end. */
static void empty_pipe(struct virtio_blk_queue *queue)
{
    char kicks[512];
    struct iovec iov = {kicks, sizeof(kicks)};
    ssize_t n = preadv2(queue->kick.fd, &iov, 1, -1, RWF_NOWAIT);

    if (n < 0 && errno == EOPNOTSUPP) /* before Linux 6.5 */
        n = read(queue->kick.fd, kicks, sizeof(kicks));

    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
        return;
    /* At its end it would be readable for ever. */
    virtio_blk_queue_break(queue, "the kick pipe was closed");
    loop_fd_remove(&queue->kick);
}

/* Every write to the eventfd is an edge; its counter need not be read while the queue runs. */
static void on_kick(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    STAT_ADD(queue, kicks, 1);
    if (__builtin_expect(queue->kick_is_pipe, 0))
        empty_pipe(queue);
    virtio_blk_handle_queue(queue);
}

static bool on_poll(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    return !queue->stalled && !queue->broken && !queue->awaits_translation && virtqueue_has_more(&queue->vq);
}

static void on_poll_begin(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    queue->polling = true;
    if (queue->vq.notify_wanted && !queue->broken)
        virtqueue_set_notification(&queue->vq, false);
}

static void on_poll_end(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    queue->polling = false;
    /* The loop polls once more now. A stalled queue wants no kicks; the end of its stall looks at the ring.
     */
    if (!queue->stalled && !queue->broken)
        virtqueue_set_notification(&queue->vq, true);
}

/* Nobody kicks: look again soon, less and less often while nothing comes. */
static void on_repoll(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;

    if (on_poll(queue)) {
        queue->repoll_ns = REPOLL_MIN_NS;
        virtio_blk_handle_queue(queue);
    } else if (queue->repoll_ns < REPOLL_MAX_NS) {
        queue->repoll_ns *= 2;
    }
    if (!queue->broken)
        loop_timer_arm(queue->loop, &queue->repoll, world_now_ns() + queue->repoll_ns);
}

/* ---- giving back ---- */

static void request_put(struct virtio_blk_queue *queue, struct virtio_blk_request *request)
{
    if (request->block) {
        request_block_put(queue, request->block);
        request->block = NULL;
    }
    request->busy = false;
    if (queue->vq.packed)
        queue->free_slots[queue->num_free_slots++] = request->slot;
    queue->in_flight--;
}

/* IN_ORDER (2.7.9, 2.8.8): the oldest that are done are used, in batches. The driver takes all but the last
 * of a batch as used completely, so one that was not must be the last. Behind one that was left to the
 * inflight region nothing can be used, done or not: whoever takes the ring up does it again. */
static void push_in_order(struct virtio_blk_queue *queue)
{
    unsigned buffers = 0, places = 0;

    while (queue->order_count > 0) {
        struct virtio_blk_request *request = &queue->requests[queue->order[queue->order_head]];
        struct virtio_blk_request *next = NULL;

        if (!request->done && !request->left)
            break;
        queue->order_head = (queue->order_head + 1) & (VIRTQUEUE_MAX_SIZE - 1);
        queue->order_count--;
        queue->order_ends |= request->left;
        if (queue->order_ends) {
            request_put(queue, request);
            continue;
        }
        if (queue->order_count > 0)
            next = &queue->requests[queue->order[queue->order_head]];
        buffers++;
        queue->num_used++;
        places += request->num_descs;
        if (!next || !next->done || request->len < request->in_bytes) {
            virtqueue_push(&queue->vq, request->id, request->len, buffers, places);
            buffers = places = 0;
        }
        if (queue->track_inflight)
            ring_inflight_pushed(&queue->inflight, request->entry);
        request_put(queue, request);
    }
}

void virtio_blk_queue_forget(struct virtio_blk_queue *queue, struct virtio_blk_request *request)
{
    if (queue->in_order)
        request->left = true;
    else
        request_put(queue, request);
    /* The last one in flight ends the stop. */
    loop_defer(queue->loop, &queue->flush);
}

/* Publishes what was pushed. The interrupt for it comes at the end of the turn. */
static void queue_show(struct virtio_blk_queue *queue)
{
    queue->num_unshown = 0;
    if (queue->inflight.num_batch > 0)
        ring_inflight_before_publish(&queue->inflight);
    if (!virtqueue_publish(&queue->vq))
        return;
    if (queue->track_inflight)
        ring_inflight_published(&queue->inflight);
    queue->shown = true;
}

/* The peer can make its end of a pipe wait for room again, so that is not relied on. An eventfd knows no
 * RWF_NOWAIT: the control loop empties one that holds us up before it asks anything of this loop. */
void virtio_blk_queue_write_call(const struct virtio_blk_queue *queue)
{
    uint64_t one = 1;
    struct iovec iov = {&one, sizeof(one)};

    if (__builtin_expect(queue->call_is_pipe, 0) &&
        (pwritev2(queue->call_fd, &iov, 1, -1, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP))
        return;
    /* EAGAIN: the counter is full, so the driver has an interrupt coming anyhow. */
    while (write(queue->call_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void virtio_blk_queue_interrupt(struct virtio_blk_queue *queue)
{
    struct virtio_blk *device = queue->device;
    queue->coalesced = 0;
    if (!virtqueue_needs_interrupt(&queue->vq))
        return;
    STAT_ADD(queue, interrupts, 1);
    if (queue->call_fd >= 0) {
        virtio_blk_queue_write_call(queue);
    } else if (device->events.interrupt) {
        device->events.interrupt(device->events.opaque, queue->index);
    }
}

static bool coalesces(const struct virtio_blk_queue *queue)
{
    return queue->device->options.coalesce_ns > 0 && queue->device->options.coalesce_count > 1;
}

/* Once a turn: a driver that sleeps until a used entry wakes up while later ones are still being made. At the
 * end of the turn it is told again only if it has gone back to sleep. */
static void interrupt_early(struct virtio_blk_queue *queue)
{
    if (queue->woken || coalesces(queue) || !virtqueue_interrupts_once(&queue->vq))
        return;
    queue->woken = true;
    virtio_blk_queue_interrupt(queue);
}

void virtio_blk_queue_used(struct virtio_blk_queue *queue, struct virtio_blk_request *request, uint32_t len)
{
    STAT_ADD(queue, completed, 1);
    if (queue->in_order) {
        request->len = len;
        request->done = true;
    } else {
        queue->num_used++;
        virtqueue_push(&queue->vq, request->id, len, 1, request->num_descs);
        if (queue->track_inflight)
            ring_inflight_pushed(&queue->inflight, request->entry);
        request_put(queue, request);
        /* The driver goes on with these while the rest of the turn is served. */
        if (++queue->num_unshown >= SHOW_EVERY) {
            queue_show(queue);
            interrupt_early(queue);
        }
    }
    loop_defer(queue->loop, &queue->flush);
}

static void on_coalesce(void *opaque)
{
    virtio_blk_queue_interrupt(opaque);
}

/* Used entries were published: interrupt now, or when enough of them or enough time have come together. */
static void interrupt_or_wait(struct virtio_blk_queue *queue, unsigned fresh)
{
    const struct virtio_blk_options *options = &queue->device->options;

    if (!coalesces(queue)) {
        virtio_blk_queue_interrupt(queue);
        return;
    }
    queue->coalesced += fresh;
    /* With nothing left in flight nothing more would come to wait for. */
    if (queue->coalesced >= options->coalesce_count || queue->in_flight == 0) {
        loop_timer_cancel(&queue->coalesce);
        virtio_blk_queue_interrupt(queue);
    } else if (queue->coalesced == fresh) {
        loop_timer_arm(queue->loop, &queue->coalesce, world_now_ns() + options->coalesce_ns);
    }
}

/* Step 11, once a turn. */
static void on_flush(void *opaque)
{
    struct virtio_blk_queue *queue = opaque;
    unsigned fresh;

    queue->woken = false;
    if (queue->in_order)
        push_in_order(queue);
    fresh = queue->num_used;
    queue->num_used = 0;
    queue_show(queue);
    if (queue->shown) {
        queue->shown = false;
        if (__builtin_expect(queue->log.bits != NULL, 0))
            log_ring(queue);
        STAT_ADD(queue, batches, 1);
        interrupt_or_wait(queue, fresh);
    }
    if (queue->stalled && request_block_at_hand(queue)) {
        queue->stalled = false;
        virtio_blk_handle_queue(queue);
    }
    if (queue->state == QUEUE_STOPPING) {
        virtio_blk_handle_queue(queue);
        virtio_blk_queue_try_finish_stop(queue);
    }
}

void virtio_blk_queue_init(struct virtio_blk *device, unsigned index)
{
    struct virtio_blk_queue *queue = &device->queues[index];

    queue->device = device;
    queue->blk = device->blk;
    queue->index = index;
    queue->call_fd = -1;
    queue->trace_next = (uint64_t)(index + 1) << 48;
    queue->kick = (struct loop_fd){.fd = -1,
                                   .edge = true,
                                   .on_readable = on_kick,
                                   .poll = on_poll,
                                   .poll_ready = on_again,
                                   .poll_begin = on_poll_begin,
                                   .poll_end = on_poll_end,
                                   .opaque = queue};
    queue->flush = (struct loop_deferred){.fn = on_flush, .opaque = queue};
    queue->again = (struct loop_bh){.fn = on_again, .opaque = queue};
    queue->resume = (struct loop_bh){.fn = on_resume, .opaque = queue};
    queue->repoll = (struct loop_timer){.fire = on_repoll, .opaque = queue};
    queue->coalesce = (struct loop_timer){.fire = on_coalesce, .opaque = queue};
}

void virtio_blk_queue_kick(struct virtio_blk *device, unsigned index)
{
    struct virtio_blk_queue *queue = &device->queues[index];

    STAT_ADD(queue, kicks, 1);
    virtio_blk_handle_queue(queue);
}

void virtio_blk_queue_stats(struct virtio_blk *device, unsigned index, struct virtio_blk_queue_stats *stats)
{
    const uint64_t *from = (const uint64_t *)&device->queues[index].stats;
    uint64_t *to = (uint64_t *)stats;

    _Static_assert(sizeof(*stats) % sizeof(uint64_t) == 0, "counters only");
    for (size_t i = 0; i < sizeof(*stats) / sizeof(uint64_t); i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
