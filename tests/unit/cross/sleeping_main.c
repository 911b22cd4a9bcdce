/*
 * Coroutines that sleep, for a debugger to look at: test-coroutine-gdb.sh breaks in look_here.
 */
#include "host/runtime/coroutine.h"
#include "host/runtime/loop.h"

static struct coroutine *sleeping[2];
static volatile int told;

static __attribute__((noinline)) void waits_for_the_disk(int depth)
{
    told = depth;
    if (depth)
        waits_for_the_disk(depth - 1);
    else
        co_yield ();
    told = depth;
}

static void task(void *arg)
{
    sleeping[1] = co_self();
    waits_for_the_disk(2);
}

static void request(void *arg)
{
    sleeping[0] = co_self();
    co_enter(co_create(task, arg));
    waits_for_the_disk(1);
}

static __attribute__((noinline)) void handles_the_queue(void)
{
    co_enter(co_create(request, (void *)&told));
    told = 2;
}

__attribute__((noinline)) void look_here(void);
void look_here(void)
{
    told = 3;
}

int main(void)
{
    struct loop *loop = loop_create("looked-at", 0);

    if (!loop)
        return 1;
    handles_the_queue();
    look_here();
    for (int i = 1; i >= 0; i--)
        co_wake(sleeping[i]);
    loop_destroy(loop);
    return 0;
}
