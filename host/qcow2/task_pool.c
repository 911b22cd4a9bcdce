/*
 * Bounded pool of coroutines for the pieces of one request. It is used only if a request splits; a task lies
 * in the caller's frame. Everything here stays on the caller's loop, so plain fields do.
 */
#include "host/qcow2/qcow2_state.h"

static void coroutine_fn task_done(struct task *task, int result)
{
    struct task_pool *pool = task->pool;
    if (result < 0 && pool->result == 0)
        pool->result = result;
    task->busy = false;
    pool->active--;
    struct coroutine *waiting = pool->waiting;
    if (waiting) {
        pool->waiting = NULL;
        co_wake(waiting);
    }
}

static void coroutine_fn task_entry(void *opaque)
{
    struct task *task = opaque;
    task_done(task, task->run(task));
}

void coroutine_fn task_pool_start(struct task_pool *pool, struct task *task)
{
    task->pool = pool;
    task->busy = true;
    pool->active++;
    struct coroutine *co = co_create(task_entry, task);
    if (co)
        co_enter(co);
    else
        task_done(task, task->run(task));
}

static void coroutine_fn wait_below(struct task_pool *pool, unsigned limit)
{
    while (pool->active >= limit) {
        pool->waiting = co_self();
        co_yield ();
    }
}

void coroutine_fn task_pool_wait_slot(struct task_pool *pool)
{
    wait_below(pool, pool->max);
}

int coroutine_fn task_pool_wait_all(struct task_pool *pool)
{
    wait_below(pool, 1);
    return pool->result;
}
