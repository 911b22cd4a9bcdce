/*
 * Calling a function on a stack of its own: for recursion whose depth an image decides (backing chains).
 * Coroutines only.
 */
#ifndef RINGSIDE_BLOCK_FRESH_STACK_H
#define RINGSIDE_BLOCK_FRESH_STACK_H

#include "host/runtime/coroutine.h"

/* Runs FN(ARG) in a new coroutine on this loop, waits for it and returns its result. While no coroutine can
 * be had it waits for one, some seconds at most: then -ENOMEM. */
int coroutine_fn fresh_stack_call(int coroutine_fn (*fn)(void *arg), void *arg);

#endif
