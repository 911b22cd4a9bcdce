/*
 * What the engines have in common: figures, summed over all loops that ever lived; and the long way to a
 * durable write.
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

int64_t aio_write_then_sync(int64_t (*co_submit)(struct aio_request *request),
                            const struct aio_request *request)
{
    struct aio_request plain = *request, sync = {.op = AIO_OP_FDATASYNC, .fd = request->fd};
    int64_t written, ret;

    plain.fua = false;
    written = co_submit(&plain);
    if (written <= 0)
        return written;
    ret = co_submit(&sync);
    return ret < 0 ? ret : written;
}
