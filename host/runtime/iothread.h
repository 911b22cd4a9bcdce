/*
 * A thread with a loop. The loop runs until iothread_stop.
 */
#ifndef RINGSIDE_RUNTIME_IOTHREAD_H
#define RINGSIDE_RUNTIME_IOTHREAD_H

#include <stdint.h>

#include "host/runtime/error.h"
#include "host/runtime/loop.h"

struct iothread;

/* Starts a thread named NAME (15 characters count). Returns when its loop exists. NULL with ERR set. */
struct iothread *iothread_start(const char *name, uint64_t poll_max_ns, struct error *err);

struct loop *iothread_loop(struct iothread *thread); /* any thread, until iothread_stop */

/* Runs FN(OPAQUE) on the thread's loop and returns when it has. Not from that thread itself. */
void iothread_call(struct iothread *thread, void (*fn)(void *opaque), void *opaque);

/* Same, but ENTRY runs as a coroutine and may yield; returns when it has ended. */
void iothread_call_coroutine(struct iothread *thread, void (*entry)(void *opaque), void *opaque);

/* Stops the loop, joins the thread, frees it. Everything on the loop must have been removed. */
void iothread_stop(struct iothread *thread);

#endif
