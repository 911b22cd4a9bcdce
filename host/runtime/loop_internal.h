/*
 * The loop's inside. Private to the runtime.
 */
#ifndef RINGSIDE_RUNTIME_LOOP_INTERNAL_H
#define RINGSIDE_RUNTIME_LOOP_INTERNAL_H

#include <sys/epoll.h>

#include "host/runtime/coroutine_internal.h"
#include "host/runtime/loop.h"

#define LOOP_EVENTS_MAX 64

struct loop {
    /* ---- the loop's own thread only ---- */
    struct coroutine *ready_first, *ready_last;
    struct loop_deferred *deferred_first, *deferred_last;
    struct co_pool pool;
    struct loop_timer *timers; /* root of a pairing heap: the next to fire */
    uint64_t timer_sequence;
    struct loop_fd *polled;        /* handlers with a poll function */
    struct loop_fd *polled_cursor; /* next to look at; moved by loop_fd_remove */
    unsigned turns_without_epoll;
    bool polling;                       /* between poll_begin and poll_end */
    struct loop_bh *bh_first, *bh_last; /* taken over from bh_pushed, in order */
    int epoll_fd;
    int event_index, event_count; /* of `events`, while they are dispatched */
    struct epoll_event events[LOOP_EVENTS_MAX];
    void *attached[LOOP_ATTACH_COUNT];
    void (*attached_destroy[LOOP_ATTACH_COUNT])(void *state);
    struct loop_stats stats;
    char name[16];
    unsigned handlers; /* added now */

    /* ---- any thread; from here on nothing is cleared when the loop is made again ---- */
    struct coroutine *remote __attribute__((aligned(64))); /* woken from elsewhere, newest first */
    struct loop_bh *bh_pushed;                             /* scheduled, newest first */
    uint32_t asleep; /* sleeps or is about to: event_fd must be written */
    uint32_t kicked, stopped;
    uint64_t poll_max_ns;
    int event_fd;
    unsigned index;
    bool alive; /* under the registry's lock */
};

extern __thread struct loop *loop_current_thread;

/* A coroutine of LOOP was woken by another thread. Any thread. */
void loop_push_remote(struct loop *loop, struct coroutine *co);

/* Puts CO at the end of its loop's ready list. The loop's thread. */
static inline void loop_push_ready(struct loop *loop, struct coroutine *co)
{
    co->next = NULL;
    if (loop->ready_last)
        loop->ready_last->next = co;
    else
        loop->ready_first = co;
    loop->ready_last = co;
}

/* Calls FN for every living loop, with loops kept from coming and going. Any thread. */
void loop_for_each(void (*fn)(struct loop *loop, void *opaque), void *opaque);

/* timer.c */
bool loop_timers_run(struct loop *loop);

/* Wakes LOOP if it sleeps or is about to. Any thread. */
void loop_notify(struct loop *loop);

#endif
