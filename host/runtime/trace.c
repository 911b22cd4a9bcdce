/*
 * Trace points: the table of their names, and the way to whoever listens.
 */
#include "host/runtime/trace.h"

#include "host/runtime/world.h"

#define TRACE_INFO(constant, step, function, module) {function, module, step},
const struct trace_point_info trace_point_info[TRACE_POINT_COUNT] = {TRACE_POINTS(TRACE_INFO)};

trace_sink *trace_active_sink;
static void *sink_opaque;

void trace_listen(trace_sink *sink, void *opaque)
{
    sink_opaque = opaque;
    trace_active_sink = sink;
}

void trace_emit(enum trace_point point, uint64_t request, uint64_t offset, uint64_t bytes)
{
    trace_sink *sink = trace_active_sink;
    struct trace_record record = {world_now_ns(), request, point, offset, bytes};

    if (sink)
        sink(sink_opaque, &record);
}
