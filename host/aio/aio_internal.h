/*
 * What the engines share. Private to host/aio.
 */
#ifndef RINGSIDE_AIO_INTERNAL_H
#define RINGSIDE_AIO_INTERNAL_H

#include <libaio.h>
#include <time.h>

#include "host/aio/aio.h"
#include "host/runtime/trace.h"

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

/* Requests that the kernel has nothing to do with any more, in the order in which they ended. */
struct aio_completed {
    struct aio_request *first, **end;
};

static inline void aio_completed_add(struct aio_completed *list, struct aio_request *request, int64_t result)
{
    request->result = result;
    *list->end = request;
    list->end = &request->next;
}

/* Wakes all of them. The list has to be taken out of the kernel's ring before, since who is woken may ask for
 * more. */
static inline void aio_completed_wake(struct aio_completed *list)
{
    *list->end = NULL;
    while (list->first) {
        struct aio_request *request = list->first;

        list->first = request->next;
        if (trace_active_sink)
            trace(TRACE_LOOP_COMPLETIONS, request->trace_id, request->offset,
                  request->result > 0 ? (uint64_t)request->result : 0);
        co_wake(request->co);
    }
}

static inline uint64_t aio_request_bytes(const struct aio_request *request)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < request->niov; i++)
        bytes += request->iov[i].iov_len;
    return bytes;
}

#endif
