/*
 * ringside-img: several coroutines at one piece of work, so that several requests are in flight.
 */
#include "host/cmd/img.h"

#include <errno.h>

struct workers {
    void coroutine_fn (*work)(void *opaque);
    void *opaque;
    unsigned running;
    struct coroutine *waiter;
};

static void coroutine_fn worker_entry(void *opaque)
{
    struct workers *workers = opaque;
    workers->work(workers->opaque);
    if (--workers->running == 0 && workers->waiter)
        co_wake(workers->waiter);
}

int coroutine_fn img_co_workers(unsigned count, void coroutine_fn (*work)(void *opaque), void *opaque)
{
    struct workers workers = {work, opaque, 0, NULL};
    for (unsigned i = 0; i < count; i++) {
        struct coroutine *co = co_create(worker_entry, &workers);
        if (!co && i == 0)
            return -ENOMEM;
        if (!co)
            break;
        workers.running++;
        co_enter(co);
    }
    if (workers.running > 0) {
        workers.waiter = co_self();
        co_yield ();
    }
    return 0;
}
