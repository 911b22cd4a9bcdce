/*
 * In-flight accounting that costs the fast path nothing that is shared between threads, and a gate: whoever
 * closes it waits until all that had entered before has left, and nothing new enters until it is opened.
 * The block layer has two users: a node (the gate is closed while a serialising request is about, io.c) and a
 * back end (the gate is closed while it is drained, backend.c).
 *
 * What always holds: a loop's slot is written by its own thread only, and no two slots share a cache line. A
 * slot never goes up while the gate is closed, except for the moment in which inflight_enter looks at the
 * gate.
 *
 * Entering and closing are Dekker's pattern: each side writes its own word, then reads the other's. The
 * enterer's fence in inflight_enter pairs with the closer's in inflight_close (one of the two must see the
 * other); the leaver's fence in inflight_leave pairs with the same one (a leaver that misses the closed gate
 * was seen as gone by the closer).
 */
#ifndef RINGSIDE_BLOCK_INFLIGHT_H
#define RINGSIDE_BLOCK_INFLIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "host/runtime/co_lock.h"
#include "host/runtime/loop.h"

struct inflight_slot {
    _Alignas(64) uint32_t count;
    uint64_t write_gen; /* writes that ended on this loop: see flush in io.c */
};

struct inflight {
    uint32_t closed; /* how many times; nests */
    struct spinlock guard;
    struct co_queue waiters; /* coroutines in inflight_close */
    struct inflight_slot slot[LOOPS_MAX];
};

/* The slot of the calling thread's loop. Its thread only. */
static inline struct inflight_slot *inflight_slot(struct inflight *inflight)
{
    return &inflight->slot[loop_index(loop_current())];
}

void inflight_wake_closer(struct inflight *inflight);

/* Counts one in on SLOT. False: the gate is closed and nothing was counted. */
static inline bool inflight_enter(struct inflight *inflight, struct inflight_slot *slot)
{
    /* A locked instruction is a full fence: pairs with inflight_close. */
    __atomic_fetch_add(&slot->count, 1, __ATOMIC_SEQ_CST);
    if (__builtin_expect(__atomic_load_n(&inflight->closed, __ATOMIC_SEQ_CST) == 0, 1))
        return true;
    __atomic_fetch_sub(&slot->count, 1, __ATOMIC_SEQ_CST);
    inflight_wake_closer(inflight);
    return false;
}

/* Counts one out that inflight_enter counted in, on the same loop. */
static inline void inflight_leave(struct inflight *inflight, struct inflight_slot *slot)
{
    __atomic_fetch_sub(&slot->count, 1, __ATOMIC_SEQ_CST); /* pairs with inflight_close */
    if (__builtin_expect(__atomic_load_n(&inflight->closed, __ATOMIC_SEQ_CST) != 0, 0))
        inflight_wake_closer(inflight);
}

/* Is anything counted in, on any loop? Any thread; by itself only a hint. */
bool inflight_busy(const struct inflight *inflight);

/* Closes the gate and returns at once. */
void inflight_close_begin(struct inflight *inflight);
/* Waits until nothing is in. The caller has closed the gate. Coroutine. */
void coroutine_fn inflight_wait(struct inflight *inflight);
/* Opens it again, once for each close. Any thread. True if it is open now. */
bool inflight_open(struct inflight *inflight);

/* All that was written on any loop so far. Any thread. */
uint64_t inflight_write_gen(const struct inflight *inflight);

/* Notes that a write ended on the calling loop. */
static inline void inflight_wrote(struct inflight_slot *slot)
{
    /* Release: pairs with the acquire in inflight_write_gen; the slot is this thread's own. */
    __atomic_store_n(&slot->write_gen, slot->write_gen + 1, __ATOMIC_RELEASE);
}

#endif
