/*
 * linux-aio: one context for each loop.
 *
 * A request joins a queue; the queue goes to the kernel by one io_submit at the end of the loop's turn, when
 * a batch is full, or when a few have come together for a disk that has nothing to do. Completions are read
 * out of the kernel's ring, which is mapped into this process, by polling and after each wake-up of the
 * eventfd; the eventfd is edge-triggered and never read.
 *
 * What always holds: a request is in the queue, in the kernel, or finished. Nothing is finished inside
 * io_submit: even what the kernel completes synchronously is found in the ring by the loop, outside of
 * coroutines, so submission cannot recurse. When the kernel takes nothing (EAGAIN) the queue waits for a
 * completion; when nothing is in flight, no completion can come, and a timer tries again.
 *
 * Where the kernel has been completing everything inside io_submit for a while (tmpfs does), the eventfd
 * would only be signalled for what has been found already, at the price of a lock for each request and a
 * false awakening for each batch. Requests then go without it, and every io_submit is checked: if one of them
 * is not complete when it returns, a timer looks after those in flight, and the eventfd is back for the next.
 * io_submit is then where the data is moved, so it gets a few requests at a time, and these are finished
 * before the next few: whoever waits for the first need not wait for the last.
 */
#include <assert.h>
#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "host/aio/aio_internal.h"
#include "host/runtime/trace.h"
#include "host/runtime/world.h"

#ifndef RWF_DSYNC
#define RWF_DSYNC 2
#endif

/* In flight for each loop. All loops together fit into the default fs.aio-max-nr of 65536. */
#define LAIO_SLOTS 512
/* In one io_submit; a queue that gets so long does not wait for the end of the turn. */
#define LAIO_BATCH 64
/* So many go at once when none is in flight: the disk works while the rest of the turn's requests are made.
 */
#define LAIO_FIRST 8
/* Until the next try when the kernel takes nothing and nothing is in flight. */
#define LAIO_RETRY_NS 1000000

/* So many io_submits in a row that completed all that was in flight make the eventfd superfluous. */
#define LAIO_SURE 32
/* In one io_submit then: requests, and bytes, if there is more than one; a large request is the last of its
 * batch. */
#define LAIO_SURE_BATCH 16u
#define LAIO_SURE_BYTES (64u << 10)
#define LAIO_SURE_LARGE (32u << 10)
/* First look after requests that were not complete against expectation; then doubled up to LAIO_RETRY_NS. */
#define LAIO_WATCH_NS 20000

/* The head of the ring that io_setup maps: the kernel's fs/aio.c; stable since Linux 2.6. */
#define RING_MAGIC 0xa10a10a1u
struct ring {
    uint32_t id;
    uint32_t nr; /* slots */
    uint32_t head, tail;
    uint32_t magic;
    uint32_t compat_features, incompat_features;
    uint32_t header_length;
    struct io_event events[];
};

struct laio {
    struct loop *loop;
    io_context_t context;
    struct ring *ring;                /* NULL: it is not what we know, io_getevents has to do */
    struct aio_request *first, *last; /* not yet taken by the kernel */
    unsigned queued, in_flight, slots;
    struct loop_fd completions;
    struct loop_deferred submit;
    struct loop_timer retry;
    unsigned synchronous;    /* io_submits in a row after which nothing was left in flight */
    struct loop_timer watch; /* for requests in flight without the eventfd */
    uint64_t watch_ns;
};

_Static_assert(sizeof(struct iocb) <= sizeof(((struct aio_request *)0)->engine_words), "room for an iocb");

struct laio_kernel laio_kernel = {
    .setup = io_setup,
    .destroy = io_destroy,
    .submit = io_submit,
    .getevents = io_getevents,
    .mapped_ring = true,
};

/* The kernel does not know these: flushes go through the thread pool then. */
static uint32_t no_fdsync, no_dsync;

static struct iocb *request_iocb(struct aio_request *request)
{
    return (struct iocb *)request->engine_words;
}

static void queue_append(struct laio *laio, struct aio_request *request)
{
    request->next = NULL;
    if (laio->last)
        laio->last->next = request;
    else
        laio->first = request;
    laio->last = request;
    laio->queued++;
}

static struct aio_request *queue_pop(struct laio *laio)
{
    struct aio_request *request = laio->first;

    laio->first = request->next;
    if (!laio->first)
        laio->last = NULL;
    laio->queued--;
    return request;
}

/* Completions in the mapped ring. */
static unsigned ring_count(const struct ring *ring)
{
    uint32_t head = ring->head, tail = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);

    return tail >= head ? tail - head : tail + ring->nr - head;
}

/* An io_submit has returned: was all of it synchronous? */
static void look_back(struct laio *laio)
{
    if (!laio->ring)
        return;
    if (ring_count(laio->ring) >= laio->in_flight) {
        laio->synchronous++;
    } else {
        if (laio->synchronous >= LAIO_SURE && !laio->watch.armed) {
            laio->watch_ns = LAIO_WATCH_NS;
            loop_timer_arm(laio->loop, &laio->watch, world_now_ns() + laio->watch_ns);
        }
        laio->synchronous = 0;
    }
}

static void laio_wake(struct laio *laio, struct aio_completed *completed)
{
    aio_completed_wake(completed);
    if (laio->first)
        loop_defer(laio->loop, &laio->submit);
}

static bool laio_poll(void *opaque)
{
    struct laio *laio = opaque;

    return laio->ring->head != __atomic_load_n(&laio->ring->tail, __ATOMIC_RELAXED);
}

/* What lies in the mapped ring when this begins. The loop, outside of coroutines. */
static void laio_complete_mapped(struct laio *laio)
{
    struct ring *ring = laio->ring;
    struct aio_completed completed = {NULL, &completed.first};
    uint32_t nr = ring->nr, head = ring->head;
    /* Pairs with the kernel's write barrier between an event and the tail (aio_complete). */
    uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);

    if (head == tail)
        return;
    while (head != tail) {
        const struct io_event *event = &ring->events[head];

        aio_completed_add(&completed, event->data, (int64_t)(long)event->res);
        laio->in_flight--;
        head = head + 1 == nr ? 0 : head + 1;
    }
    /* The slots may be used again once their events are read. Pairs with the kernel's read of head before it
     * reckons how many are free (user_refill_reqs_available). */
    __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
    laio_wake(laio, &completed);
}

/* What is complete when this begins, at least: what comes meanwhile is signalled anew. */
static void laio_complete_by_call(struct laio *laio)
{
    struct io_event events[LAIO_BATCH];
    struct timespec zero = {0, 0};
    int n, left = (int)laio->in_flight;

    do {
        struct aio_completed completed = {NULL, &completed.first};

        AIO_COUNT(laio->loop, getevents_syscalls);
        n = laio_kernel.getevents(laio->context, 0, LAIO_BATCH, events, &zero);
        for (int i = 0; i < n; i++) {
            aio_completed_add(&completed, events[i].data, (int64_t)(long)events[i].res);
            laio->in_flight--;
        }
        left -= n > 0 ? n : 0;
        laio_wake(laio, &completed);
    } while ((n == LAIO_BATCH && left > 0) || n == -EINTR);
}

static void laio_complete(void *opaque)
{
    struct laio *laio = opaque;

    if (laio->ring)
        laio_complete_mapped(laio);
    else
        laio_complete_by_call(laio);
}

/* The next requests for one io_submit, at most MAX, into BATCH (of LAIO_BATCH); they stay queued. */
static unsigned next_batch(const struct laio *laio, unsigned max, bool sure, struct iocb **batch)
{
    unsigned limit = sure ? LAIO_SURE_BATCH : LAIO_BATCH, n = 0;
    size_t bytes = 0;
    bool more = true;

    if (limit > max)
        limit = max;
    for (struct aio_request *request = laio->first; request && more && n < limit; request = request->next) {
        struct iocb *iocb = request_iocb(request);

        if (sure && request->op != AIO_OP_FDATASYNC) {
            size_t size = aio_request_bytes(request);

            bytes += size;
            if (bytes > LAIO_SURE_BYTES && n > 0)
                break;
            more = size < LAIO_SURE_LARGE;
        }
        /* A flush is never synchronous. */
        if (!sure || request->op == AIO_OP_FDATASYNC)
            io_set_eventfd(iocb, laio->completions.fd);
        else
            iocb->u.c.flags = 0;
        batch[n++] = iocb;
    }
    return n;
}

/* Hands what is queued to the kernel, as far as it takes it. In a coroutine or outside. */
static void laio_submit(void *opaque)
{
    struct laio *laio = opaque;
    struct aio_request *failed = NULL, **failed_end = &failed;
    unsigned left = laio->queued; /* what comes while this goes on waits for the next turn */

    while (laio->first && left > 0 && laio->in_flight < laio->slots) {
        struct iocb *batch[LAIO_BATCH];
        struct aio_request *request;
        unsigned room = laio->slots - laio->in_flight;
        bool sure = laio->synchronous >= LAIO_SURE;
        unsigned n = next_batch(laio, room < left ? room : left, sure, batch);
        int ret = laio_kernel.submit(laio->context, n, batch);

        AIO_COUNT(laio->loop, submit_syscalls);
        if (ret > 0) {
            laio->in_flight += (unsigned)ret;
            left -= (unsigned)ret;
            while (ret-- > 0 && laio->first)
                queue_pop(laio);
            look_back(laio);
            if (sure && left > 0 && !co_self())
                laio_complete(laio);
        } else if (ret == 0 || ret == -EAGAIN || ret == -EINTR) {
            AIO_COUNT(laio->loop, eagain);
            break;
        } else {
            /* The first of the batch is at fault, and it alone. */
            request = queue_pop(laio);
            left--;
            request->result = ret;
            request->next = NULL;
            *failed_end = request;
            failed_end = &request->next;
        }
    }
    if (laio->first && !laio->in_flight)
        loop_timer_arm(laio->loop, &laio->retry, world_now_ns() + LAIO_RETRY_NS);
    while (failed) {
        struct aio_request *request = failed;

        failed = request->next;
        co_wake(request->co);
    }
}

static void laio_watch(void *opaque)
{
    struct laio *laio = opaque;

    laio_complete(laio);
    if (laio->in_flight) {
        laio->watch_ns = laio->watch_ns * 2 < LAIO_RETRY_NS ? laio->watch_ns * 2 : LAIO_RETRY_NS;
        loop_timer_arm(laio->loop, &laio->watch, world_now_ns() + laio->watch_ns);
    }
}

/* ---- a loop's context ---- */

static bool process_ends;

void laio_process_ends(void)
{
    __atomic_store_n(&process_ends, true, __ATOMIC_RELAXED);
}

static void laio_destroy(void *state)
{
    struct laio *laio = state;

    assert(!laio->first && !laio->in_flight);
    loop_timer_cancel(&laio->retry);
    loop_timer_cancel(&laio->watch);
    loop_fd_remove(&laio->completions);
    if (!__atomic_load_n(&process_ends, __ATOMIC_RELAXED))
        laio_kernel.destroy(laio->context);
    close(laio->completions.fd);
    free(laio);
}

static struct laio *laio_create(struct loop *loop)
{
    struct laio *laio = calloc(1, sizeof(*laio));
    int ret = -EAGAIN;

    if (!laio)
        return NULL;
    laio->loop = loop;
    /* Others in this machine may have taken most of fs.aio-max-nr. */
    for (laio->slots = LAIO_SLOTS; laio->slots >= 32; laio->slots /= 4) {
        ret = laio_kernel.setup((int)laio->slots, &laio->context);
        if (ret != -EAGAIN)
            break;
    }
    if (ret < 0)
        goto fail;
    if (laio_kernel.mapped_ring) {
        struct ring *ring = (struct ring *)laio->context;

        if (ring->magic == RING_MAGIC && !ring->incompat_features && ring->header_length == sizeof(*ring) &&
            ring->head < ring->nr)
            laio->ring = ring;
    }
    laio->submit = (struct loop_deferred){.fn = laio_submit, .opaque = laio};
    laio->retry = (struct loop_timer){.fire = laio_submit, .opaque = laio};
    laio->watch = (struct loop_timer){.fire = laio_watch, .opaque = laio};
    laio->completions = (struct loop_fd){
        .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .on_readable = laio_complete,
        .opaque = laio,
        .edge = true,
    };
    if (laio->ring) {
        laio->completions.poll = laio_poll;
        laio->completions.poll_ready = laio_complete;
    }
    if (laio->completions.fd < 0)
        goto fail_context;
    ret = loop_fd_add(loop, &laio->completions);
    if (ret < 0)
        goto fail_eventfd;
    loop_attach(loop, LOOP_ATTACH_LAIO, laio, laio_destroy);
    return laio;

fail_eventfd:
    close(laio->completions.fd);
fail_context:
    laio_kernel.destroy(laio->context);
fail:
    free(laio);
    return NULL;
}

/* Giving a context back takes the kernel tens of milliseconds (it waits until no processor can be looking at
 * it), which is most of the time that a start takes: the one that shows that contexts are to be had is kept
 * until the process ends. */
int laio_probe(void)
{
    static int (*had_from)(int slots, io_context_t *context);
    io_context_t context = NULL;
    int ret;

    if (__atomic_load_n(&had_from, __ATOMIC_RELAXED) == laio_kernel.setup)
        return 0;
    ret = laio_kernel.setup(1, &context);
    if (ret == 0)
        __atomic_store_n(&had_from, laio_kernel.setup, __ATOMIC_RELAXED);
    return ret;
}

/* ---- one request ---- */

static void prepare(struct aio_request *request)
{
    struct iocb *iocb = request_iocb(request);

    switch (request->op) {
    case AIO_OP_READ:
        /* A single element goes the kernel's shorter way. */
        if (request->niov == 1)
            io_prep_pread(iocb, request->fd, request->iov->iov_base, request->iov->iov_len,
                          (long long)request->offset);
        else
            io_prep_preadv(iocb, request->fd, request->iov, (int)request->niov, (long long)request->offset);
        break;
    case AIO_OP_WRITE:
        if (request->niov == 1)
            io_prep_pwrite(iocb, request->fd, request->iov->iov_base, request->iov->iov_len,
                           (long long)request->offset);
        else
            io_prep_pwritev(iocb, request->fd, request->iov, (int)request->niov, (long long)request->offset);
        if (request->fua)
            iocb->aio_rw_flags = RWF_DSYNC;
        break;
    case AIO_OP_FDATASYNC:
        io_prep_fdsync(iocb, request->fd);
        break;
    }
    iocb->data = request;
}

/* Is it time to hand the queue over before the turn ends? */
static bool submits_now(const struct laio *laio)
{
    if (laio->queued >= LAIO_BATCH)
        return laio->in_flight < laio->slots;
    return laio->queued >= LAIO_FIRST && laio->in_flight == 0 && !laio->retry.armed &&
           laio->synchronous < LAIO_SURE;
}

static int64_t submit_and_wait(struct laio *laio, struct aio_request *request)
{
    prepare(request);
    queue_append(laio, request);
    AIO_COUNT(laio->loop, requests);
    if (submits_now(laio))
        laio_submit(laio);
    else
        loop_defer(laio->loop, &laio->submit);
    co_yield ();
    return request->result;
}

int64_t laio_co_submit(struct aio_request *request)
{
    struct coroutine *co = co_self();
    struct loop *loop = co_loop(co);
    struct laio *laio = loop_attached(loop, LOOP_ATTACH_LAIO);
    int64_t ret;

    request->co = co;
    if (trace_active_sink) {
        request->trace_id = co_trace_id();
        trace(TRACE_LAIO_CO_SUBMIT, request->trace_id, request->offset,
              request->op == AIO_OP_FDATASYNC ? 0 : aio_request_bytes(request));
    } else {
        request->trace_id = 0;
    }
    if (__builtin_expect(!laio, 0)) {
        laio = laio_create(loop);
        /* Probed at open, but not to be had for this loop, or not now: slower beats failing. */
        if (!laio)
            return threads_co_submit(request);
    }
    if (request->op == AIO_OP_FDATASYNC && __atomic_load_n(&no_fdsync, __ATOMIC_RELAXED))
        return threads_co_submit(request);
    if (request->fua && __atomic_load_n(&no_dsync, __ATOMIC_RELAXED))
        return aio_write_then_sync(laio_co_submit, request);

    ret = submit_and_wait(laio, request);

    if (__builtin_expect(ret == -EINVAL, 0) && request->op == AIO_OP_FDATASYNC) {
        __atomic_store_n(&no_fdsync, 1, __ATOMIC_RELAXED);
        return threads_co_submit(request);
    }
    if (__builtin_expect(ret == -EINVAL || ret == -EOPNOTSUPP, 0) && request->fua) {
        ret = aio_write_then_sync(laio_co_submit, request);
        if (ret > 0) /* so it was the flag */
            __atomic_store_n(&no_dsync, 1, __ATOMIC_RELAXED);
    }
    return ret;
}
