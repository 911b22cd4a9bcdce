/*
 * Trace points into a file (--trace=FILE): a line for each point that a request passes.
 *
 *     # ringside trace 1
 *     TIME THREAD REQUEST STEP FUNCTION OFFSET BYTES
 *
 * TIME in nanoseconds of the monotonic clock; THREAD the loop's name; REQUEST a number that all lines of one
 * request share, 0 for none; STEP 1 to 12 of docs/life-of-a-request.md, 0 for none of them; OFFSET and BYTES
 * as the point means them. Lines of one thread are in order; `sort -n` puts those of all threads in order.
 *
 * Each loop has a buffer of its own, so a point costs no lock that others want, and seldom a system call.
 */
#ifndef RINGSIDE_CMD_TRACE_H
#define RINGSIDE_CMD_TRACE_H

#include <stdbool.h>

#include "host/runtime/error.h"

struct cmd_trace;

/* Creates FILE; records nothing yet. Before threads are made. NULL with ERR. */
struct cmd_trace *cmd_trace_open(const char *file, struct error *err);

/* Starts or stops recording; when it is stopped, what was recorded is in the file. Any thread, any time. */
void cmd_trace_record(struct cmd_trace *trace, bool on);

/* Writes out what is buffered and closes. No other thread is there any more. 0 or the first error. NULL is
 * fine. */
int cmd_trace_close(struct cmd_trace *trace, struct error *err);

#endif
