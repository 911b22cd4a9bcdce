/*
 * The slow half of inflight.h: closing the gate, waiting, opening.
 */
#include "host/block/inflight.h"

#include <assert.h>

bool inflight_busy(const struct inflight *inflight)
{
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        if (__atomic_load_n(&inflight->slot[i].count, __ATOMIC_SEQ_CST))
            return true;
    }
    return false;
}

uint64_t inflight_write_gen(const struct inflight *inflight)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < LOOPS_MAX; i++)
        sum += __atomic_load_n(&inflight->slot[i].write_gen, __ATOMIC_ACQUIRE);
    return sum;
}

void inflight_close_begin(struct inflight *inflight)
{
    /* Full fence: pairs with inflight_enter and inflight_leave. */
    __atomic_fetch_add(&inflight->closed, 1, __ATOMIC_SEQ_CST);
}

void coroutine_fn inflight_wait(struct inflight *inflight)
{
    spin_lock(&inflight->guard);
    /* A leaver that this look still sees takes the guard after us, and finds us in the queue. */
    while (inflight_busy(inflight))
        co_queue_wait_spin(&inflight->waiters, &inflight->guard);
    spin_unlock(&inflight->guard);
}

bool inflight_open(struct inflight *inflight)
{
    uint32_t before = __atomic_fetch_sub(&inflight->closed, 1, __ATOMIC_SEQ_CST);
    assert(before > 0);
    return before == 1;
}

void inflight_wake_closer(struct inflight *inflight)
{
    if (inflight_busy(inflight))
        return;
    /* Who saw us in has queued up before it let go of the guard. Nobody is woken under it: outside of a
     * coroutine the one who waits would run here, and take it. */
    spin_lock(&inflight->guard);
    spin_unlock(&inflight->guard);
    co_queue_wake_all(&inflight->waiters);
}
