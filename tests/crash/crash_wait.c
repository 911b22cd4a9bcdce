/*
 * Waiting for a request; see crash_wait.h.
 */
#include "tests/crash/crash_wait.h"

static void completed(struct blk_request *request, int result)
{
    struct crash_wait *wait = (struct crash_wait *)request;

    wait->result = result;
    wait->ended = true;
    if (wait->co)
        co_wake(wait->co);
}

struct crash_wait crash_wait_init(void)
{
    return (struct crash_wait){.request.complete = completed};
}

int coroutine_fn crash_co_wait(struct crash_wait *wait)
{
    if (!wait->ended) {
        wait->co = co_self();
        co_yield ();
    }
    return wait->result;
}
