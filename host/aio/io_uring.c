/*
 * io_uring: one ring for each loop, submitted to once at the end of a turn.
 *
 * Completions are found by polling the mapped completion queue; for sleeping, the ring's own descriptor is
 * readable while it has any. What always holds: as for linux_aio.c; here the queue of what the kernel has
 * not yet taken is bounded by the ring's size, and what does not fit waits in a list.
 */
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

#include "host/aio/aio_internal.h"
#include "host/runtime/trace.h"
#include "host/runtime/world.h"

#ifndef RWF_DSYNC
#define RWF_DSYNC 2
#endif

#define URING_ENTRIES 256
/* In flight: the completion queue has twice the entries of the submission queue and must not overflow. */
#define URING_SLOTS    (2 * URING_ENTRIES)
#define URING_RETRY_NS 1000000

struct uring {
    struct loop *loop;
    struct io_uring ring;
    struct aio_request *first, *last; /* without an entry yet */
    unsigned in_flight;               /* with an entry */
    struct loop_fd completions;
    struct loop_deferred submit;
    struct loop_timer retry;
};

static void prepare(struct io_uring_sqe *sqe, struct aio_request *request)
{
    switch (request->op) {
    case AIO_OP_READ:
        io_uring_prep_readv(sqe, request->fd, request->iov, request->niov, request->offset);
        break;
    case AIO_OP_WRITE:
        io_uring_prep_writev(sqe, request->fd, request->iov, request->niov, request->offset);
        if (request->fua)
            sqe->rw_flags = RWF_DSYNC;
        break;
    case AIO_OP_FDATASYNC:
        io_uring_prep_fsync(sqe, request->fd, IORING_FSYNC_DATASYNC);
        break;
    }
    io_uring_sqe_set_data(sqe, request);
}

/* Gives entries to those that wait and hands all to the kernel. */
static void uring_submit(void *opaque)
{
    struct uring *uring = opaque;
    int ret;

    while (uring->first && uring->in_flight < URING_SLOTS) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
        struct aio_request *request = uring->first;

        if (!sqe)
            break;
        uring->first = request->next;
        if (!uring->first)
            uring->last = NULL;
        prepare(sqe, request);
        uring->in_flight++;
    }
    if (!io_uring_sq_ready(&uring->ring))
        return;
    AIO_COUNT(uring->loop, submit_syscalls);
    ret = io_uring_submit(&uring->ring);
    if (ret < 0)
        AIO_COUNT(uring->loop, eagain);
    /* What the kernel did not take (it is short of memory, or wants its completions fetched first) stays in
     * the submission queue; nobody else would remind us. */
    if (io_uring_sq_ready(&uring->ring))
        loop_timer_arm(uring->loop, &uring->retry, world_now_ns() + URING_RETRY_NS);
    else if (uring->first && uring->in_flight < URING_SLOTS)
        loop_defer(uring->loop, &uring->submit);
}

static bool uring_poll(void *opaque)
{
    struct uring *uring = opaque;

    return io_uring_cq_ready(&uring->ring) > 0;
}

static void uring_complete(void *opaque)
{
    struct uring *uring = opaque;
    struct aio_completed completed = {NULL, &completed.first};
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&uring->ring, head, cqe)
    {
        aio_completed_add(&completed, io_uring_cqe_get_data(cqe), cqe->res);
        n++;
    }
    io_uring_cq_advance(&uring->ring, n);
    uring->in_flight -= n;
    aio_completed_wake(&completed);
    if (uring->first || io_uring_sq_ready(&uring->ring))
        loop_defer(uring->loop, &uring->submit);
}

static void uring_destroy(void *state)
{
    struct uring *uring = state;

    assert(!uring->first && !uring->in_flight);
    loop_timer_cancel(&uring->retry);
    loop_fd_remove(&uring->completions);
    io_uring_queue_exit(&uring->ring);
    free(uring);
}

static struct uring *uring_create(struct loop *loop)
{
    struct uring *uring = calloc(1, sizeof(*uring));

    if (!uring)
        return NULL;
    uring->loop = loop;
    if (io_uring_queue_init(URING_ENTRIES, &uring->ring, 0) < 0)
        goto fail;
    uring->submit = (struct loop_deferred){.fn = uring_submit, .opaque = uring};
    uring->retry = (struct loop_timer){.fire = uring_submit, .opaque = uring};
    uring->completions = (struct loop_fd){
        .fd = uring->ring.ring_fd,
        .on_readable = uring_complete,
        .poll = uring_poll,
        .poll_ready = uring_complete,
        .opaque = uring,
    };
    if (loop_fd_add(loop, &uring->completions) < 0) {
        io_uring_queue_exit(&uring->ring);
        goto fail;
    }
    loop_attach(loop, LOOP_ATTACH_URING, uring, uring_destroy);
    return uring;

fail:
    free(uring);
    return NULL;
}

int uring_probe(void)
{
    struct io_uring ring;
    int ret = io_uring_queue_init(4, &ring, 0);

    if (ret < 0)
        return ret;
    io_uring_queue_exit(&ring);
    return 0;
}

int64_t uring_co_submit(struct aio_request *request)
{
    struct coroutine *co = co_self();
    struct loop *loop = co_loop(co);
    struct uring *uring = loop_attached(loop, LOOP_ATTACH_URING);

    request->co = co;
    request->trace_id = trace_active_sink ? co_trace_id() : 0;
    if (__builtin_expect(!uring, 0)) {
        uring = uring_create(loop);
        /* Probed at open, but not to be had for this loop: slower beats failing. */
        if (!uring)
            return threads_co_submit(request);
    }
    request->next = NULL;
    if (uring->first)
        uring->last->next = request;
    else
        uring->first = request;
    uring->last = request;
    AIO_COUNT(loop, requests);
    loop_defer(loop, &uring->submit);
    co_yield ();
    return request->result;
}
