/*
 * A call on a stack of its own (fresh_stack.h): a coroutine that the caller waits for.
 */
#include "host/block/fresh_stack.h"

#include <errno.h>
#include <stdbool.h>

#include "host/runtime/co_lock.h"

/* Coroutines end all the time, so one can be had soon. If all there are wait here, somebody has to give up.
 */
#define RETRY_NS    1000000u
#define RETRIES_MAX 5000u

struct fresh_call {
    int coroutine_fn (*fn)(void *arg);
    void *arg;
    int result;
    bool done;
    struct coroutine *waiter;
};

static void coroutine_fn fresh_call_entry(void *opaque)
{
    struct fresh_call *call = opaque;
    call->result = call->fn(call->arg);
    call->done = true;
    if (call->waiter)
        co_wake(call->waiter);
}

int coroutine_fn fresh_stack_call(int coroutine_fn (*fn)(void *arg), void *arg)
{
    struct fresh_call call = {fn, arg, 0, false, NULL};
    struct coroutine *co = co_create(fresh_call_entry, &call);
    for (unsigned i = 0; !co && i < RETRIES_MAX; i++) {
        co_sleep_ns(RETRY_NS);
        co = co_create(fresh_call_entry, &call);
    }
    if (!co)
        return -ENOMEM;
    co_enter(co);
    if (!call.done) {
        call.waiter = co_self();
        co_yield ();
    }
    return call.result;
}
