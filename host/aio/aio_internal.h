/*
 * What the engines share. Private to host/aio.
 */
#ifndef RINGSIDE_AIO_INTERNAL_H
#define RINGSIDE_AIO_INTERNAL_H

#include <libaio.h>
#include <time.h>

#include "host/aio/aio.h"

/* One line of figures for each loop, written by that loop only. */
struct aio_counters {
    struct aio_stats stats;
} __attribute__((aligned(64)));

extern struct aio_counters aio_counters[LOOPS_MAX];

#define AIO_COUNT(loop, field)                                          \
    do {                                                                \
        uint64_t *count_ = &aio_counters[loop_index(loop)].stats.field; \
        __atomic_store_n(count_, *count_ + 1, __ATOMIC_RELAXED);        \
    } while (0)

/* The kernel's calls, as a table: the tests put faults in front of them. Not changed while I/O is in flight.
 */
struct laio_kernel {
    int (*setup)(int max_events, io_context_t *context);
    int (*destroy)(io_context_t context);
    int (*submit)(io_context_t context, long n, struct iocb **iocbs);
    int (*getevents)(io_context_t context, long min, long max, struct io_event *events,
                     struct timespec *timeout);
    bool mapped_ring; /* completions are read from the ring in memory */
};

extern struct laio_kernel laio_kernel;

/* The request as one transfer by the calling thread, blocking. Bytes or a negative errno. FLAGS are RWF_....
 */
int64_t aio_request_do(const struct aio_request *request, int flags);

/* A write with FUA as a write and a flush, where the kernel can't do it in one request. */
int64_t coroutine_fn aio_write_then_sync(int64_t (*co_submit)(struct aio_request *request),
                                         const struct aio_request *request);

static inline uint64_t aio_request_bytes(const struct aio_request *request)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < request->niov; i++)
        bytes += request->iov[i].iov_len;
    return bytes;
}

#endif
