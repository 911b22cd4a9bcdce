/*
 * Figures of the engines, summed over all loops that ever lived.
 */
#include <string.h>

#include "host/aio/aio_internal.h"

struct aio_counters aio_counters[LOOPS_MAX];

void aio_stats(struct aio_stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        const struct aio_stats *s = &aio_counters[i].stats;

        stats->requests += __atomic_load_n(&s->requests, __ATOMIC_RELAXED);
        stats->submit_syscalls += __atomic_load_n(&s->submit_syscalls, __ATOMIC_RELAXED);
        stats->getevents_syscalls += __atomic_load_n(&s->getevents_syscalls, __ATOMIC_RELAXED);
        stats->eagain += __atomic_load_n(&s->eagain, __ATOMIC_RELAXED);
    }
}
