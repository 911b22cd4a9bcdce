/*
 * A request to a block back end that a coroutine waits for.
 */
#ifndef RINGSIDE_TESTS_CRASH_WAIT_H
#define RINGSIDE_TESTS_CRASH_WAIT_H

#include <stdbool.h>

#include "host/block/backend.h"

struct crash_wait {
    struct blk_request request; /* what is handed to blk_aio_* */
    struct coroutine *co;
    int result;
    bool ended;
};

struct crash_wait crash_wait_init(void);

/* The request's result, when it has ended. */
int coroutine_fn crash_co_wait(struct crash_wait *wait);

#endif
