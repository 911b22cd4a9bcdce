/*
 * A thread with a loop, and calls into it from other threads.
 *
 * What always holds: the caller of iothread_call sleeps on a semaphore that lies on its own stack, until the
 * loop's thread has posted it; the thread touches nothing of the caller's after that. In a simulated world
 * there is no thread: the loop has its turns in the caller's, and the caller's wait is the simulator's.
 */
#include "host/runtime/iothread.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "host/runtime/coroutine.h"
#include "host/runtime/world.h"

struct iothread {
    pthread_t thread;
    struct loop *loop;
    sem_t started;
    uint64_t poll_max_ns;
    struct error err;
    bool simulated;
    char name[16];
};

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore) < 0)
        ; /* interrupted by a signal */
}

static void *iothread_main(void *opaque)
{
    struct iothread *thread = opaque;
    struct loop *loop;

    pthread_setname_np(pthread_self(), thread->name);
    loop = loop_create(thread->name, &thread->err);
    thread->loop = loop;
    if (!loop) {
        sem_post(&thread->started);
        return NULL;
    }
    loop_set_poll_max_ns(loop, thread->poll_max_ns);
    sem_post(&thread->started);
    loop_run(loop);
    /* What was asked for before the stop is done before the end. */
    while (loop_pending(loop))
        loop_turn(loop, false);
    loop_destroy(loop);
    return NULL;
}

static int start_simulated(struct iothread *thread, struct error *err)
{
    struct loop *caller = loop_switch_current(NULL);

    thread->simulated = true;
    thread->loop = loop_create(thread->name, err);
    loop_switch_current(caller);
    if (!thread->loop)
        return -EAGAIN;
    loop_set_poll_max_ns(thread->loop, thread->poll_max_ns);
    return 0;
}

static void stop_simulated(struct iothread *thread)
{
    struct loop *caller = loop_switch_current(thread->loop);

    while (loop_pending(thread->loop))
        loop_turn(thread->loop, false);
    loop_destroy(thread->loop);
    loop_switch_current(caller);
}

struct iothread *iothread_start(const char *name, uint64_t poll_max_ns, struct error *err)
{
    struct iothread *thread = calloc(1, sizeof(*thread));
    sigset_t all, old;
    int ret;

    if (!thread) {
        error_set(err, -ENOMEM, "no memory for a thread");
        return NULL;
    }
    strncpy(thread->name, name, sizeof(thread->name) - 1);
    thread->poll_max_ns = poll_max_ns;
    sem_init(&thread->started, 0, 0);
    if (world->block) {
        if (start_simulated(thread, err) < 0)
            goto fail;
        return thread;
    }
    /* Signals are for the main thread. */
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* raised by the thread's own access to memory: to be caught in it, or to kill */
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    ret = pthread_create(&thread->thread, NULL, iothread_main, thread);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret) {
        error_set(err, -ret, "cannot start thread %s: %s", thread->name, strerror(ret));
        goto fail;
    }
    wait_for(&thread->started);
    if (!thread->loop) {
        pthread_join(thread->thread, NULL);
        error_set(err, -EAGAIN, "%s", thread->err.text);
        goto fail;
    }
    return thread;

fail:
    sem_destroy(&thread->started);
    free(thread);
    return NULL;
}

struct loop *iothread_loop(struct iothread *thread)
{
    return thread->loop;
}

struct call {
    void (*fn)(void *opaque);
    void *opaque;
    sem_t done;
    bool ended; /* for the simulator, which has no use for the semaphore */
    struct loop_bh bh;
};

static bool call_ended(void *opaque)
{
    return ((struct call *)opaque)->ended;
}

static void call_run(void *opaque)
{
    struct call *call = opaque;

    call->fn(call->opaque);
    call->ended = true;
    sem_post(&call->done);
}

static void call_make(struct iothread *thread, struct call *call, void (*run)(void *))
{
    assert(loop_current() != thread->loop);
    sem_init(&call->done, 0, 0);
    call->bh = (struct loop_bh){.fn = run, .opaque = call, .loop = thread->loop};
    loop_bh_schedule(&call->bh);
    if (thread->simulated)
        world->block(world, call_ended, call);
    else
        wait_for(&call->done);
    sem_destroy(&call->done);
}

void iothread_call(struct iothread *thread, void (*fn)(void *opaque), void *opaque)
{
    struct call call = {.fn = fn, .opaque = opaque};

    call_make(thread, &call, call_run);
}

/* No coroutine to be had: the next one that ends on this loop, or a little time, lets it be tried again. */
static void call_enter(void *opaque)
{
    struct call *call = opaque;
    struct coroutine *co = co_create(call_run, call);

    if (co)
        co_enter(co);
    else
        loop_bh_schedule(&call->bh);
}

void iothread_call_coroutine(struct iothread *thread, void (*entry)(void *opaque), void *opaque)
{
    struct call call = {.fn = entry, .opaque = opaque};

    call_make(thread, &call, call_enter);
}

void iothread_stop(struct iothread *thread)
{
    if (thread->simulated) {
        stop_simulated(thread);
    } else {
        loop_stop(thread->loop);
        pthread_join(thread->thread, NULL);
    }
    sem_destroy(&thread->started);
    free(thread);
}
