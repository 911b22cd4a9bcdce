/*
 * The back end: from a device's asynchronous call to a coroutine that runs the request on the node, and back.
 * Accounting and drain; throttling comes first in the coroutine.
 *
 * What always holds: a request is worked on by the loop that submitted it, and by nobody else. What a loop
 * keeps (statistics, parked requests) is in its own struct blk_loop, made when it submits for the first time;
 * others read its counters, and ask it to start its parked requests through its bottom half. A request is
 * either parked or counted in blk->inflight. While the gate is closed (drain) all are parked.
 */
#include "host/block/backend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/runtime/coroutine.h"
#include "host/runtime/loop.h"
#include "host/runtime/trace.h"
#include "host/runtime/world.h"

#define RETRY_NS          1000000u  /* if no coroutine can be had and none of ours is about to end */
#define THROTTLE_SLICE_NS 20000000u /* so often a throttled request looks whether it has to wait on */

struct blk_loop {
    _Alignas(64) struct blk *blk;
    struct loop *loop;
    struct inflight_slot *slot;
    struct blk_request *parked, **parked_end;
    uint64_t parked_count; /* read by others */
    struct loop_bh unpark_bh;
    struct loop_deferred turn_end;
    uint64_t now_ns; /* read once a turn of the loop; 0: not yet */
    struct loop_timer retry;
    struct blk_op_stats stats[BLK_OP_COUNT]; /* written here only; read by others */
};

struct blk {
    struct node *node;
    uint32_t write_through;
    uint32_t hurried; /* how many times; atomic */
    struct inflight inflight;
    struct throttle throttle;
    struct blk_loop *loops[LOOPS_MAX];
    void (*on_resize)(void *opaque);
    void *on_resize_opaque;
};

/* ---- statistics ---- */

unsigned blk_latency_bucket(uint64_t ns)
{
    if (ns < 1024)
        return 0;
    unsigned log2 = 63 - (unsigned)__builtin_clzll(ns); /* 10 or more */
    unsigned bucket = 1 + (log2 - 10) * 2 + (unsigned)((ns >> (log2 - 1)) & 1);
    return bucket < BLK_LATENCY_BUCKETS ? bucket : BLK_LATENCY_BUCKETS - 1;
}

uint64_t blk_latency_bucket_ns(unsigned bucket)
{
    if (bucket == 0)
        return 0;
    uint64_t power = 1ull << (10 + (bucket - 1) / 2);
    return (bucket - 1) % 2 ? power + power / 2 : power;
}

/* Only the loop itself writes; a reader on another thread sees an old or a new value. */
static inline void count(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline uint64_t counted(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static void turn_end(void *opaque)
{
    ((struct blk_loop *)opaque)->now_ns = 0;
}

/* The time, as of the first request of this turn: what a turn handles has come or gone together. */
static inline uint64_t turn_now_ns(struct blk_loop *bl)
{
    if (bl->now_ns == 0) {
        bl->now_ns = world_now_ns();
        loop_defer(bl->loop, &bl->turn_end);
    }
    return bl->now_ns;
}

static void account(struct blk_loop *bl, const struct blk_request *request, int result)
{
    struct blk_op_stats *stats = &bl->stats[request->op];
    uint64_t ns = turn_now_ns(bl) - request->start_ns;
    count(&stats->total_ns, ns);
    count(&stats->latency[blk_latency_bucket(ns)], 1);
    if (ns > stats->max_ns)
        __atomic_store_n(&stats->max_ns, ns, __ATOMIC_RELAXED);
    count(&stats->operations, 1);
    if (result < 0)
        count(&stats->failed, 1);
    else
        count(&stats->bytes, request->bytes);
}

void blk_stats(struct blk *blk, struct blk_op_stats stats[BLK_OP_COUNT])
{
    memset(stats, 0, BLK_OP_COUNT * sizeof(stats[0]));
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        const struct blk_loop *bl = __atomic_load_n(&blk->loops[i], __ATOMIC_ACQUIRE);
        for (unsigned op = 0; bl && op < BLK_OP_COUNT; op++) {
            const struct blk_op_stats *one = &bl->stats[op];
            struct blk_op_stats *sum = &stats[op];
            sum->operations += counted(&one->operations);
            sum->bytes += counted(&one->bytes);
            sum->failed += counted(&one->failed);
            sum->invalid += counted(&one->invalid);
            sum->merged += counted(&one->merged);
            sum->total_ns += counted(&one->total_ns);
            if (counted(&one->max_ns) > sum->max_ns)
                sum->max_ns = counted(&one->max_ns);
            for (unsigned b = 0; b < BLK_LATENCY_BUCKETS; b++)
                sum->latency[b] += counted(&one->latency[b]);
        }
    }
}

uint64_t blk_in_flight(struct blk *blk)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        const struct blk_loop *bl = __atomic_load_n(&blk->loops[i], __ATOMIC_ACQUIRE);
        sum += __atomic_load_n(&blk->inflight.slot[i].count, __ATOMIC_RELAXED);
        if (bl)
            sum += counted(&bl->parked_count);
    }
    return sum;
}

/* ---- a loop's part ---- */

static void unpark(void *opaque);

static __attribute__((noinline)) struct blk_loop *make_loop(struct blk *blk, struct loop *loop)
{
    unsigned index = loop_index(loop);
    struct blk_loop *bl = aligned_alloc(_Alignof(struct blk_loop), sizeof(*bl));
    if (!bl)
        return NULL;
    memset(bl, 0, sizeof(*bl));
    bl->blk = blk;
    bl->loop = loop;
    bl->slot = &blk->inflight.slot[index];
    bl->parked_end = &bl->parked;
    bl->unpark_bh = (struct loop_bh){.fn = unpark, .opaque = bl, .loop = loop};
    bl->turn_end = (struct loop_deferred){.fn = turn_end, .opaque = bl};
    bl->retry = (struct loop_timer){.fire = unpark, .opaque = bl};
    /* Release: pairs with the acquire of those who read other loops' parts. */
    __atomic_store_n(&blk->loops[index], bl, __ATOMIC_RELEASE);
    return bl;
}

/* The calling loop's part; NULL if memory is short. */
static inline struct blk_loop *blk_loop(struct blk *blk)
{
    struct loop *loop = loop_current();
    struct blk_loop *bl = blk->loops[loop_index(loop)];
    if (__builtin_expect(!bl, 0))
        return make_loop(blk, loop);
    /* An index is used again after its loop is gone; nothing of the old one can be pending then. */
    if (__builtin_expect(bl->loop != loop, 0))
        bl->loop = bl->unpark_bh.loop = loop;
    return bl;
}

static void park(struct blk_loop *bl, struct blk_request *request)
{
    request->next = NULL;
    *bl->parked_end = request;
    bl->parked_end = &request->next;
    /* Full fence between this and the look at the gate in park_while_closed: pairs with blk_drain_end. */
    __atomic_store_n(&bl->parked_count, bl->parked_count + 1, __ATOMIC_SEQ_CST);
}

static struct blk_request *parked_take(struct blk_loop *bl)
{
    struct blk_request *request = bl->parked;
    if (request) {
        bl->parked = request->next;
        if (!bl->parked) {
            bl->parked_end = &bl->parked;
            /* Nobody waits for it any more: the loop may go as soon as its requests are done. */
            loop_timer_cancel(&bl->retry);
        }
        __atomic_store_n(&bl->parked_count, bl->parked_count - 1, __ATOMIC_SEQ_CST);
    }
    return request;
}

/* ---- running a request ---- */

/* Sleeps until the throttle lets REQUEST go. A drain, or who is in a hurry, waits for nobody's tokens, and
 * limits that change hold from then on. */
static void coroutine_fn wait_for_tokens(struct blk *blk, const struct blk_request *request)
{
    struct throttle *throttle = &blk->throttle;
    uint32_t limits;
    do {
        limits = __atomic_load_n(&throttle->active, __ATOMIC_ACQUIRE);
        if (limits == 0)
            return;
        uint64_t now = world_now_ns();
        uint64_t go = throttle_reserve(throttle, request->op != BLK_READ, request->bytes, now);
        for (; now < go && __atomic_load_n(&throttle->active, __ATOMIC_ACQUIRE) == limits;
             now = world_now_ns()) {
            if (__atomic_load_n(&blk->inflight.closed, __ATOMIC_ACQUIRE) != 0 ||
                __atomic_load_n(&blk->hurried, __ATOMIC_RELAXED) != 0)
                return;
            co_sleep_ns(go - now < THROTTLE_SLICE_NS ? go - now : THROTTLE_SLICE_NS);
        }
    } while (__atomic_load_n(&throttle->active, __ATOMIC_ACQUIRE) != limits);
}

static int coroutine_fn blk_co_run(struct blk *blk, struct blk_request *request)
{
    struct node *node = blk->node;
    if (__builtin_expect(__atomic_load_n(&blk->throttle.active, __ATOMIC_ACQUIRE) != 0, 0) &&
        request->op != BLK_FLUSH)
        wait_for_tokens(blk, request);
    switch (request->op) {
    case BLK_READ:
        return node_co_preadv(node, request->offset, request->bytes, sg_make(request->iov, request->niov), 0);
    case BLK_WRITE:
        return node_co_pwritev(node, request->offset, request->bytes, sg_make(request->iov, request->niov),
                               request->flags);
    case BLK_FLUSH:
        return node_co_flush(node);
    case BLK_DISCARD:
        return node_co_pdiscard(node, request->offset, request->bytes);
    case BLK_WRITE_ZEROES:
        return node_co_pwrite_zeroes(node, request->offset, request->bytes, request->flags);
    default:
        return -EINVAL;
    }
}

/* A coroutine's whole life: one request, and then what had to wait for a coroutine. */
static void coroutine_fn request_entry(void *opaque)
{
    struct blk_request *request = opaque;
    struct blk *blk = request->blk;
    struct blk_loop *bl = blk->loops[loop_index(loop_current())];
    do {
        co_set_trace_id(request->trace_id);
        int result = blk_co_run(blk, request);
        trace(TRACE_BLK_AIO_COMPLETE, request->trace_id, request->offset, request->bytes);
        account(bl, request, result);
        /* Still counted in: whoever drains waits until the caller has heard of it. */
        request->complete(request, result);
        request = __atomic_load_n(&blk->inflight.closed, __ATOMIC_RELAXED) == 0 ? parked_take(bl) : NULL;
    } while (request);
    inflight_leave(&blk->inflight, bl->slot);
}

/* Counted in, not started: starts it, or parks it if no coroutine can be had. False: parked. */
static bool start(struct blk_loop *bl, struct blk_request *request)
{
    struct coroutine *co = co_create(request_entry, request);
    if (__builtin_expect(co != NULL, 1)) {
        co_enter(co);
        return true;
    }
    /* Back to the head of the line. */
    request->next = bl->parked;
    bl->parked = request;
    if (!request->next)
        bl->parked_end = &request->next;
    __atomic_store_n(&bl->parked_count, bl->parked_count + 1, __ATOMIC_SEQ_CST);
    if (!bl->retry.armed)
        loop_timer_arm(bl->loop, &bl->retry, world_now_ns() + RETRY_NS);
    inflight_leave(&bl->blk->inflight, bl->slot);
    return false;
}

/* Bottom half and timer: starts what is parked, as far as it goes. */
static void unpark(void *opaque)
{
    struct blk_loop *bl = opaque;
    struct blk *blk = bl->blk;
    while (bl->parked && inflight_enter(&blk->inflight, bl->slot)) {
        if (!start(bl, parked_take(bl)))
            return;
    }
}

static __attribute__((noinline)) void park_while_closed(struct blk_loop *bl, struct blk_request *request)
{
    park(bl, request);
    /* Opened meanwhile? Then blk_drain_end may have missed this loop. */
    if (__atomic_load_n(&bl->blk->inflight.closed, __ATOMIC_SEQ_CST) == 0)
        loop_bh_schedule(&bl->unpark_bh);
}

static inline void submit(struct blk *blk, struct blk_request *request, enum blk_op op, uint64_t offset,
                          uint64_t bytes, const struct iovec *iov, unsigned niov, unsigned flags)
{
    struct blk_loop *bl = blk_loop(blk);
    request->blk = blk;
    request->op = op;
    request->offset = offset;
    request->bytes = bytes;
    request->iov = iov;
    request->niov = niov;
    request->flags = flags;
    if (__builtin_expect(!bl, 0)) {
        request->complete(request, -ENOMEM);
        return;
    }
    request->start_ns = turn_now_ns(bl);
    /* Requests that wait for a coroutine are older. */
    if (__builtin_expect(bl->parked != NULL, 0) || !inflight_enter(&blk->inflight, bl->slot)) {
        park_while_closed(bl, request);
        return;
    }
    start(bl, request);
}

/* Checked here as well as in the node, so that a request that cannot be is counted as invalid. */
static bool range_ok(struct blk *blk, uint64_t offset, uint64_t bytes)
{
    uint64_t length = node_length(blk->node);
    return offset <= length && bytes <= length - offset;
}

static void reject(struct blk *blk, struct blk_request *request, enum blk_op op, int error)
{
    struct blk_loop *bl = blk_loop(blk);
    if (bl)
        count(&bl->stats[op].invalid, 1);
    request->complete(request, error);
}

void blk_aio_preadv(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, unsigned niov)
{
    trace(TRACE_BLK_AIO_PREADV, request->trace_id, offset, bytes);
    if (!range_ok(blk, offset, bytes))
        reject(blk, request, BLK_READ, -EIO);
    else
        submit(blk, request, BLK_READ, offset, bytes, iov, niov, 0);
}

/* What may change the image. */
static void submit_change(struct blk *blk, struct blk_request *request, enum blk_op op, uint64_t offset,
                          uint64_t bytes, const struct iovec *iov, unsigned niov, unsigned flags)
{
    if (blk->node->read_only)
        reject(blk, request, op, -EPERM);
    else if (!range_ok(blk, offset, bytes))
        reject(blk, request, op, -EIO);
    else
        submit(blk, request, op, offset, bytes, iov, niov,
               flags | (__atomic_load_n(&blk->write_through, __ATOMIC_RELAXED) ? NODE_IO_FUA : 0));
}

void blk_aio_pwritev(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, unsigned niov, unsigned flags)
{
    trace(TRACE_BLK_AIO_PWRITEV, request->trace_id, offset, bytes);
    submit_change(blk, request, BLK_WRITE, offset, bytes, iov, niov, flags);
}

void blk_aio_pwrite_zeroes(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                           unsigned flags)
{
    trace(TRACE_BLK_AIO_PWRITE_ZEROES, request->trace_id, offset, bytes);
    submit_change(blk, request, BLK_WRITE_ZEROES, offset, bytes, NULL, 0, flags);
}

void blk_aio_pdiscard(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes)
{
    trace(TRACE_BLK_AIO_PDISCARD, request->trace_id, offset, bytes);
    submit_change(blk, request, BLK_DISCARD, offset, bytes, NULL, 0, 0);
}

void blk_aio_flush(struct blk *blk, struct blk_request *request)
{
    trace(TRACE_BLK_AIO_FLUSH, request->trace_id, 0, 0);
    submit(blk, request, BLK_FLUSH, 0, 0, NULL, 0, 0);
}

void blk_account_merged(struct blk *blk, enum blk_op op, unsigned n)
{
    struct blk_loop *bl = blk_loop(blk);
    if (bl)
        count(&bl->stats[op].merged, n);
}

void blk_account_invalid(struct blk *blk, enum blk_op op)
{
    struct blk_loop *bl = blk_loop(blk);
    if (bl)
        count(&bl->stats[op].invalid, 1);
}

/* ---- drain ---- */

void coroutine_fn blk_co_drain_begin(struct blk *blk)
{
    inflight_close_begin(&blk->inflight);
    inflight_wait(&blk->inflight);
    /* Whoever pauses a disk may copy its file: metadata must not be in our caches alone. An error stays with
     * the node, for the next flush that somebody waits for. */
    if (!blk->node->inactive)
        (void)node_co_flush(blk->node);
}

void blk_drain_end(struct blk *blk)
{
    if (!inflight_open(&blk->inflight))
        return;
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        struct blk_loop *bl = __atomic_load_n(&blk->loops[i], __ATOMIC_ACQUIRE);
        /* The gate was opened with a full fence before this look: pairs with park. */
        if (bl && __atomic_load_n(&bl->parked_count, __ATOMIC_SEQ_CST) > 0)
            loop_bh_schedule(&bl->unpark_bh);
    }
}

void blk_hurry_begin(struct blk *blk)
{
    __atomic_fetch_add(&blk->hurried, 1, __ATOMIC_RELAXED);
}

void blk_hurry_end(struct blk *blk)
{
    __atomic_fetch_sub(&blk->hurried, 1, __ATOMIC_RELAXED);
}

int coroutine_fn blk_co_inactivate(struct blk *blk)
{
    if (blk->node->inactive)
        return 0;
    blk_co_drain_begin(blk); /* until it is active again */
    return node_co_inactivate(blk->node);
}

int coroutine_fn blk_co_activate(struct blk *blk, struct error *err)
{
    if (!blk->node->inactive)
        return 0;
    uint64_t before = node_length(blk->node);
    int ret = node_co_activate(blk->node, err);
    if (ret < 0)
        return ret;
    if (node_length(blk->node) != before && blk->on_resize)
        blk->on_resize(blk->on_resize_opaque);
    blk_drain_end(blk);
    return 0;
}

bool blk_inactive(const struct blk *blk)
{
    return blk->node->inactive;
}

/* ---- the rest ---- */

struct node *blk_node(struct blk *blk)
{
    return blk->node;
}

uint64_t blk_length(const struct blk *blk)
{
    return node_length(blk->node);
}

bool blk_read_only(const struct blk *blk)
{
    return blk->node->read_only;
}

void blk_set_write_cache(struct blk *blk, bool on)
{
    __atomic_store_n(&blk->write_through, !on, __ATOMIC_RELAXED);
}

bool blk_write_cache(const struct blk *blk)
{
    return !__atomic_load_n(&blk->write_through, __ATOMIC_RELAXED);
}

void blk_set_throttle(struct blk *blk, const struct throttle_config *config)
{
    throttle_set(&blk->throttle, config);
}

void blk_on_resize(struct blk *blk, void (*callback)(void *opaque), void *opaque)
{
    blk->on_resize = callback;
    blk->on_resize_opaque = opaque;
}

int coroutine_fn blk_co_resize(struct blk *blk, uint64_t bytes, struct error *err)
{
    if (bytes == 0 || bytes % 512 != 0)
        return error_set(err, -EINVAL, "the new size must be a multiple of 512 bytes and more than 0");
    blk_co_drain_begin(blk);
    int ret = node_co_truncate(blk->node, bytes, true, err);
    blk_drain_end(blk);
    if (ret == 0 && blk->on_resize)
        blk->on_resize(blk->on_resize_opaque);
    return ret;
}

struct blk *blk_new(struct node *node)
{
    struct blk *blk = aligned_alloc(_Alignof(struct blk), sizeof(*blk));
    if (!blk)
        return NULL;
    memset(blk, 0, sizeof(*blk));
    blk->node = node;
    if (node->inactive)
        inflight_close_begin(&blk->inflight);
    return blk;
}

struct open_call {
    const char *path;
    const struct open_options *options;
    struct error *err;
    struct node *node;
    int ret;
};

static void coroutine_fn open_entry(void *opaque)
{
    struct open_call *call = opaque;
    call->ret = node_co_open(call->path, call->options, &call->node, call->err);
}

struct blk *blk_open(const char *path, const struct open_options *options, struct error *err)
{
    struct open_call call = {path, options, err, NULL, -ENOMEM};
    if (loop_run_coroutine(loop_current(), open_entry, &call) < 0) {
        error_set(err, -ENOMEM, "%s: out of memory", path);
        return NULL;
    }
    if (call.ret < 0)
        return NULL;
    struct blk *blk = blk_new(call.node);
    if (!blk) {
        error_set(err, -ENOMEM, "%s: out of memory", path);
        call.ret = 0;
    }
    return blk;
}

struct close_call {
    struct blk *blk;
    int ret;
};

static void coroutine_fn close_entry(void *opaque)
{
    struct close_call *call = opaque;
    blk_co_drain_begin(call->blk);
    call->ret = node_co_close(call->blk->node);
}

int blk_close(struct blk *blk)
{
    struct close_call call = {blk, -ENOMEM};
    if (!blk)
        return 0;
    int ret = loop_run_coroutine(loop_current(), close_entry, &call);
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        if (blk->loops[i] && blk->loops[i]->loop == loop_current()) {
            loop_timer_cancel(&blk->loops[i]->retry);
            loop_bh_cancel(&blk->loops[i]->unpark_bh);
            while (blk->loops[i]->turn_end.queued)
                loop_turn(loop_current(), false);
        }
        free(blk->loops[i]);
    }
    free(blk);
    return ret < 0 ? ret : call.ret;
}
