/*
 * What coroutine.c, co_lock.c and loop.c know of each other. Private to the runtime.
 */
#ifndef RINGSIDE_RUNTIME_COROUTINE_INTERNAL_H
#define RINGSIDE_RUNTIME_COROUTINE_INTERNAL_H

#include "host/runtime/co_switch.h"
#include "host/runtime/coroutine.h"

enum co_state { CO_POOLED, CO_FRESH, CO_RUNNING, CO_SLEEPING, CO_ENDED };

#define CO_CREATOR_FRAMES 16

/* Lies at the top of its own stack. The home loop's thread owns all fields but `next` and `woken` of a
 * coroutine that another thread is waking. */
struct coroutine {
    struct co_context context;        /* while it sleeps */
    struct co_context caller_context; /* whoever runs it, while it runs */
    struct coroutine *caller;         /* NULL: the thread's own stack */
    co_entry *entry;
    void *arg;
    struct loop *loop;
    struct coroutine *next; /* in the pool, the ready list or the list of remote wake-ups */
    uint64_t trace_id;
    uint32_t state; /* enum co_state */
    uint32_t woken; /* a wake-up is on its way and not yet run */

    /* For debuggers: see coroutine-gdb.py. */
    uint64_t serial;
    void *created_at;         /* return address of co_create */
    struct coroutine *parent; /* the coroutine that made this one; trust it only if its serial matches */
    uint64_t parent_serial;
    uint32_t creator_count;
    void *creator[CO_CREATOR_FRAMES]; /* with co_record_creators: return addresses at the time of creation */
    struct coroutine *all_next, *all_prev; /* every mapped stack */

    void *map;
    size_t map_bytes;
    void *stack_low;
    size_t stack_bytes;
    void *asan_fake_stack, *asan_caller_fake_stack;
    const void *asan_caller_low;
    size_t asan_caller_bytes;
    void *tsan_fiber, *tsan_caller_fiber;
    unsigned valgrind_id;
};

/* A loop's own pool. Only the loop's thread writes it; others may read the counters. */
struct co_pool {
    struct coroutine *free;
    size_t free_count;
    size_t alive;
};

/* The running coroutine of this thread. */
extern __thread struct coroutine *co_current;

/* Runs a coroutine that sleeps until it yields or ends. Its loop's thread; outside of it. */
void co_resume(struct coroutine *co);

/* Unmaps what LOOP's pool has. */
void co_pool_drain(struct loop *loop);

/* Set from a debugger or a test: co_create then records who called it. */
extern bool co_record_creators;

#endif
