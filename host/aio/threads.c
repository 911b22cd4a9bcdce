/*
 * A pool of threads for what may block: files that are not opened with O_DIRECT, fallocate, ftruncate, ...
 *
 * One pool for the process. Threads are started as they are needed, up to THREADS_MAX, and end when they have
 * had nothing to do for a while. What always holds: a job lies on the stack of the coroutine that waits for
 * it; its thread touches it last before co_wake.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "host/aio/aio_internal.h"
#include "host/runtime/trace.h"
#include "host/runtime/world.h"

#ifndef RWF_DSYNC
#define RWF_DSYNC 2
#endif
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

#define THREADS_MAX  32
#define IDLE_SECONDS 5
/* Bytes that are copied on the loop's own thread, if that needs no waiting. */
#define AT_ONCE_MAX (256u * 1024u)

struct job {
    void (*run)(struct job *job);
    struct coroutine *co;
    struct job *next;
};

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pool_work;
static pthread_once_t pool_once = PTHREAD_ONCE_INIT;
static struct job *pool_first, *pool_last;
static unsigned pool_threads, pool_idle;
/* A thread was signalled, or started, and has not looked at the queue yet. It passes the signal on if it
 * finds more than one job: so a burst of short jobs is done by few threads, and one of long jobs soon has
 * them all. */
static bool pool_waking;

static void pool_init(void)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool_work, &attr);
    pthread_condattr_destroy(&attr);
}

static bool pool_grow(void);

/* Somebody more is wanted for the queue. pool_lock is held. */
static void pool_wake(void)
{
    if (pool_waking || !pool_first)
        return;
    if (pool_idle)
        pthread_cond_signal(&pool_work);
    else if (pool_threads >= THREADS_MAX || !pool_grow())
        return;
    pool_waking = true;
}

static void *pool_main(void *opaque)
{
    pthread_setname_np(pthread_self(), "ringside-pool");
    pthread_mutex_lock(&pool_lock);
    for (;;) {
        struct timespec until;
        int ret = 0;

        pool_waking = false; /* it is this one, or another that finds the queue as it is */
        while (pool_first) {
            struct job *job = pool_first;
            struct coroutine *co = job->co;

            pool_first = job->next;
            if (!pool_first)
                pool_last = NULL;
            pool_wake();
            pthread_mutex_unlock(&pool_lock);
            job->run(job);
            co_wake(co);
            pthread_mutex_lock(&pool_lock);
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += IDLE_SECONDS;
        pool_idle++;
        while (!pool_first && ret == 0) {
            ret = pthread_cond_timedwait(&pool_work, &pool_lock, &until);
            pool_waking = false; /* also if a busy one was faster and the queue is empty again */
        }
        pool_idle--;
        if (!pool_first)
            break;
    }
    pool_threads--;
    pthread_mutex_unlock(&pool_lock);
    return NULL;
}

/* One more thread. pool_lock is held; false if it can't be had. */
static bool pool_grow(void)
{
    pthread_attr_t attr;
    sigset_t all, old;
    pthread_t thread;
    int ret;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* raised by the thread's own access to memory: to be caught in it, or to kill */
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    ret = pthread_create(&thread, &attr, pool_main, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (ret)
        return false;
    pool_threads++;
    return true;
}

static void coroutine_fn pool_co_run(struct job *job)
{
    if (world->block) { /* simulated: one thread for everything, but others come first */
        co_wake(co_self());
        co_yield ();
        job->run(job);
        return;
    }
    pthread_once(&pool_once, pool_init);
    job->co = co_self();
    job->next = NULL;
    pthread_mutex_lock(&pool_lock);
    if (!pool_threads) {
        if (!pool_grow()) {
            /* Not one thread can be had: this one has to block. */
            pthread_mutex_unlock(&pool_lock);
            job->run(job);
            return;
        }
        pool_waking = true;
    }
    if (pool_last)
        pool_last->next = job;
    else
        pool_first = job;
    pool_last = job;
    pool_wake();
    pthread_mutex_unlock(&pool_lock);
    co_yield ();
}

/* ---- calls ---- */

struct call_job {
    struct job job;
    int (*fn)(void *opaque);
    void *opaque;
    int result;
};

static void call_run(struct job *job)
{
    struct call_job *call = (struct call_job *)job;

    call->result = call->fn(call->opaque);
}

int threads_co_call(int (*fn)(void *opaque), void *opaque)
{
    struct call_job call = {.job = {.run = call_run}, .fn = fn, .opaque = opaque};

    pool_co_run(&call.job);
    return call.result;
}

/* ---- transfers ---- */

int64_t aio_request_do(const struct aio_request *request, int flags)
{
    off_t offset = (off_t)request->offset;
    ssize_t n = 0;

    do {
        switch (request->op) {
        case AIO_OP_READ:
            n = flags ? preadv2(request->fd, request->iov, (int)request->niov, offset, flags)
                      : preadv(request->fd, request->iov, (int)request->niov, offset);
            break;
        case AIO_OP_WRITE:
            n = flags ? pwritev2(request->fd, request->iov, (int)request->niov, offset, flags)
                      : pwritev(request->fd, request->iov, (int)request->niov, offset);
            break;
        case AIO_OP_FDATASYNC:
            n = fdatasync(request->fd);
            break;
        }
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

struct transfer_job {
    struct job job;
    struct aio_request *request;
};

static void transfer_run(struct job *job)
{
    struct aio_request *request = ((struct transfer_job *)job)->request;

    request->result = aio_request_do(request, 0);
    /* pwritev2 with RWF_DSYNC would do, but not on every file system. */
    if (request->op == AIO_OP_WRITE && request->fua && request->result > 0 && fdatasync(request->fd) < 0)
        request->result = -errno;
}

int64_t threads_co_submit(struct aio_request *request)
{
    struct transfer_job transfer = {.job = {.run = transfer_run}, .request = request};
    struct loop *loop = co_loop(co_self());

    AIO_COUNT(loop, requests);
    /* What the page cache holds is read at once: a thread would cost more than the copy. */
    if (request->op == AIO_OP_READ && request->no_nowait &&
        !__atomic_load_n(request->no_nowait, __ATOMIC_RELAXED)) {
        uint64_t bytes = aio_request_bytes(request);
        int64_t n = bytes <= AT_ONCE_MAX ? aio_request_do(request, RWF_NOWAIT) : -EAGAIN;

        AIO_COUNT(loop, submit_syscalls);
        if (n == (int64_t)bytes) {
            request->result = n;
            return n;
        }
        if (n == -EOPNOTSUPP)
            __atomic_store_n(request->no_nowait, 1, __ATOMIC_RELAXED);
    }
    AIO_COUNT(loop, submit_syscalls);
    pool_co_run(&transfer.job);
    trace(TRACE_LOOP_COMPLETIONS, co_trace_id(), request->offset,
          request->result > 0 ? (uint64_t)request->result : 0);
    return request->result;
}
