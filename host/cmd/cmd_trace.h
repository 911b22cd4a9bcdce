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
 * Each loop has a buffer of its own, so a point costs no lock and seldom a system call.
 */
#ifndef RINGSIDE_CMD_TRACE_H
#define RINGSIDE_CMD_TRACE_H

#include <stdbool.h>

#include "host/runtime/error.h"

struct cmd_trace;

/* Creates FILE; records nothing yet. NULL with ERR. */
struct cmd_trace *cmd_trace_open(const char *file, struct error *err);

/* Starts or stops recording. While no I/O is in flight. */
void cmd_trace_record(struct cmd_trace *trace, bool on);

/* Writes out what is buffered and closes. While no I/O is in flight. 0 or the first error. NULL is fine. */
int cmd_trace_close(struct cmd_trace *trace, struct error *err);

#endif
