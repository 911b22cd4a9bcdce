/*
 * Stackful coroutines.
 *
 * What always holds: a coroutine lives and dies on the loop that made it, and so on that loop's thread; it
 * never moves. Thread-local variables and plain fields of the loop are therefore safe to use in it. Another
 * thread may only ask for it to be woken. Nobody runs a loop inside a coroutine.
 *
 * Stacks are CO_STACK_BYTES, with a guard page below, pooled for each thread; the total over all threads is
 * bounded (each stack costs two of the process's vm.max_map_count mappings). Beyond the bound co_create
 * returns NULL and the caller has to wait for one of its own to end: see blk_aio in host/block/backend.h.
 *
 * Switches are our own assembly (x86_64, aarch64) or ucontext (`make CO=ucontext`); ASan, TSan and valgrind
 * are told about them.
 */
#ifndef RINGSIDE_RUNTIME_COROUTINE_H
#define RINGSIDE_RUNTIME_COROUTINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct coroutine;
struct loop;

/* Marks a function that may yield: call it only inside a coroutine. For the reader; no effect. */
#define coroutine_fn

#define CO_STACK_BYTES (128u * 1024u)

typedef void coroutine_fn co_entry(void *arg);

/* Takes a coroutine from the pool, to run ENTRY(ARG) on the calling thread's loop once entered.
 * NULL when the bound is reached or memory is short. Must be entered once: there is no other way to free it.
 * It goes back to the pool when ENTRY returns. Thread: any that has a loop. */
struct coroutine *co_create(co_entry *entry, void *arg);

/* Runs CO until it yields or ends. Home thread only; nests (a coroutine may enter a fresh one, and gets
 * control back when that one yields). CO must not be running, nor be scheduled by co_wake. */
void co_enter(struct coroutine *co);

/* Gives control back to whoever entered or resumed this coroutine, until co_wake. */
void coroutine_fn co_yield (void);

/* Lets CO go on after its co_yield. Any thread.
 * From CO's home thread outside of any coroutine: CO runs at once, inside this call.
 * From a coroutine on the home thread: CO is put on its loop's ready list, run this turn, in FIFO order.
 * From another thread: put on the loop's list of remote wake-ups, and the loop is woken.
 * Exactly one wake for each yield, and it must not come before the yield from another thread unless the
 * waiter's state is handed over under a lock or atomic (co_lock.h does this; use its objects). A wake that
 * overtakes the yield on another thread is safe: the home loop runs it only after CO has yielded. */
void co_wake(struct coroutine *co);

/* The running coroutine, or NULL. */
struct coroutine *co_self(void);

static inline bool co_running(void)
{
    return co_self() != NULL;
}

/* The loop that CO belongs to. Any thread. */
struct loop *co_loop(const struct coroutine *co);

/* A word that follows a request through the layers, for trace.h; inherited from the creator. 0 = none. */
uint64_t co_trace_id(void);
void co_set_trace_id(uint64_t id);

struct co_pool_stats {
    size_t alive;     /* made by co_create and not ended, all threads */
    size_t allocated; /* stacks mapped now, all threads */
    size_t limit;     /* bound on `allocated` */
};

void co_pool_stats(struct co_pool_stats *stats);

/* Sets the bound on mapped stacks (tests; the default derives from vm.max_map_count). */
void co_pool_set_limit(size_t stacks);

/* Lets go of the calling thread's pooled stacks. Called when a loop is destroyed. */
void co_pool_drain_thread(void);

#endif
