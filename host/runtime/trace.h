/*
 * Trace points: what happens to a request on its way, step by step (docs/life-of-a-request.md).
 * When nobody listens a point costs one load and one branch. Any thread; the sink must be thread-safe.
 */
#ifndef RINGSIDE_RUNTIME_TRACE_H
#define RINGSIDE_RUNTIME_TRACE_H

#include <stdint.h>

/* X(constant, step of the way 1..12 or 0, function's name, module) */
#define TRACE_POINTS(X)                                                \
    X(HANDLE_QUEUE, 3, "virtio_blk_handle_queue", "host/device")       \
    X(MULTIREQ_SUBMIT, 4, "multireq_submit", "host/device")            \
    X(BLK_AIO_PREADV, 5, "blk_aio_preadv", "host/block")               \
    X(BLK_AIO_PWRITEV, 5, "blk_aio_pwritev", "host/block")             \
    X(BLK_AIO_FLUSH, 5, "blk_aio_flush", "host/block")                 \
    X(BLK_AIO_PDISCARD, 5, "blk_aio_pdiscard", "host/block")           \
    X(BLK_AIO_PWRITE_ZEROES, 5, "blk_aio_pwrite_zeroes", "host/block") \
    X(NODE_CO_PREADV, 6, "node_co_preadv", "host/block")               \
    X(NODE_CO_PWRITEV, 6, "node_co_pwritev", "host/block")             \
    X(NODE_CO_FLUSH, 6, "node_co_flush", "host/block")                 \
    X(NODE_CO_PDISCARD, 6, "node_co_pdiscard", "host/block")           \
    X(NODE_CO_PWRITE_ZEROES, 6, "node_co_pwrite_zeroes", "host/block") \
    X(QCOW2_CO_PREADV, 7, "qcow2_co_preadv", "host/qcow2")             \
    X(QCOW2_CO_PWRITEV, 7, "qcow2_co_pwritev", "host/qcow2")           \
    X(FILE_CO_PREADV, 8, "file_co_preadv", "host/block")               \
    X(FILE_CO_PWRITEV, 8, "file_co_pwritev", "host/block")             \
    X(FILE_CO_FLUSH, 8, "file_co_flush", "host/block")                 \
    X(LAIO_CO_SUBMIT, 8, "laio_co_submit", "host/aio")                 \
    X(LOOP_COMPLETIONS, 9, "loop_run", "host/runtime")                 \
    X(QCOW2_LINK_L2, 10, "qcow2_link_l2", "host/qcow2")                \
    X(BLK_AIO_COMPLETE, 11, "blk_aio_complete", "host/block")          \
    X(VIRTIO_BLK_COMPLETE, 11, "virtio_blk_complete", "host/device")

#define TRACE_CONSTANT(name, step, function, module) TRACE_##name,
enum trace_point { TRACE_POINTS(TRACE_CONSTANT) TRACE_POINT_COUNT };
#undef TRACE_CONSTANT

struct trace_record {
    uint64_t time_ns;
    uint64_t
        request; /* co_trace_id of the running coroutine, or the queue's own numbering outside one; 0 none */
    enum trace_point point;
    uint64_t offset; /* bytes; what it means depends on the point */
    uint64_t bytes;
};

typedef void trace_sink(void *opaque, const struct trace_record *record);

/* NULL when nobody listens. Read through trace() only. */
extern trace_sink *trace_active_sink;

/* Installs SINK (NULL: stop). Not while I/O is in flight. */
void trace_listen(trace_sink *sink, void *opaque);

void trace_emit(enum trace_point point, uint64_t request, uint64_t offset, uint64_t bytes);

static inline void trace(enum trace_point point, uint64_t request, uint64_t offset, uint64_t bytes)
{
    if (__builtin_expect(trace_active_sink != 0, 0))
        trace_emit(point, request, offset, bytes);
}

struct trace_point_info {
    const char *name, *module;
    unsigned step;
};

extern const struct trace_point_info trace_point_info[TRACE_POINT_COUNT];

#endif
