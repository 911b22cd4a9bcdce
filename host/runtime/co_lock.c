/*
 * Coroutine locks. Each is a spin section of a few instructions around its state and a FIFO of waiters that
 * lie on the waiters' stacks.
 *
 * What always holds: ownership is handed over under the guard, before the waiter is woken, so a waiter that
 * gets to run has what it waited for. A waiter's struct is not touched after co_wake: its stack may be in use
 * for something else by then. A wake-up may overtake the yield on another thread: co_wake allows that.
 */
#include "host/runtime/co_lock.h"

#include <assert.h>
#include <sched.h>

#include "host/runtime/coroutine_internal.h"
#include "host/runtime/loop_internal.h"
#include "host/runtime/world.h"

struct co_waiter {
    struct coroutine *co;
    struct co_waiter *next;
    bool writer;
};

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

void spin_lock(struct spinlock *lock)
{
    unsigned spins = 0;

    /* Pairs with the release in spin_unlock. */
    while (__builtin_expect(__atomic_exchange_n(&lock->locked, 1, __ATOMIC_ACQUIRE), 0)) {
        while (__atomic_load_n(&lock->locked, __ATOMIC_RELAXED)) {
            /* The holder may have lost its processor. */
            if (++spins % 128)
                cpu_relax();
            else
                sched_yield();
        }
    }
}

void spin_unlock(struct spinlock *lock)
{
    __atomic_store_n(&lock->locked, 0, __ATOMIC_RELEASE);
}

static void list_append(struct co_wait_list *list, struct co_waiter *waiter)
{
    waiter->next = NULL;
    if (list->last)
        list->last->next = waiter;
    else
        list->first = waiter;
    list->last = waiter;
}

static struct co_waiter *list_pop(struct co_wait_list *list)
{
    struct co_waiter *waiter = list->first;

    if (waiter) {
        list->first = waiter->next;
        if (!list->first)
            list->last = NULL;
    }
    return waiter;
}

/* ---- mutex ---- */

void co_mutex_lock(struct co_mutex *mutex)
{
    struct co_waiter waiter;

    spin_lock(&mutex->guard);
    if (!mutex->held) {
        mutex->held = true;
        mutex->owner = co_current;
        spin_unlock(&mutex->guard);
        return;
    }
    waiter.co = co_current;
    assert(waiter.co && mutex->owner != waiter.co);
    list_append(&mutex->waiters, &waiter);
    spin_unlock(&mutex->guard);
    co_yield ();
}

bool co_mutex_trylock(struct co_mutex *mutex)
{
    bool got;

    spin_lock(&mutex->guard);
    got = !mutex->held;
    if (got) {
        mutex->held = true;
        mutex->owner = co_current;
    }
    spin_unlock(&mutex->guard);
    return got;
}

void co_mutex_unlock(struct co_mutex *mutex)
{
    struct co_waiter *waiter;
    struct coroutine *co = NULL;

    spin_lock(&mutex->guard);
    assert(mutex->held);
    waiter = list_pop(&mutex->waiters);
    if (waiter)
        co = waiter->co;
    else
        mutex->held = false;
    mutex->owner = co;
    spin_unlock(&mutex->guard);
    if (co)
        co_wake(co);
}

/* ---- queue ---- */

static void queue_append(struct co_queue *queue, struct co_waiter *waiter)
{
    waiter->co = co_current;
    assert(waiter->co);
    spin_lock(&queue->guard);
    list_append(&queue->waiters, waiter);
    spin_unlock(&queue->guard);
}

void co_queue_wait(struct co_queue *queue, struct co_mutex *mutex)
{
    struct co_waiter waiter;

    queue_append(queue, &waiter);
    if (mutex)
        co_mutex_unlock(mutex);
    co_yield ();
    if (mutex)
        co_mutex_lock(mutex);
}

void co_queue_wait_spin(struct co_queue *queue, struct spinlock *guard)
{
    struct co_waiter waiter;

    queue_append(queue, &waiter);
    spin_unlock(guard);
    co_yield ();
    spin_lock(guard);
}

bool co_queue_wake_one(struct co_queue *queue)
{
    struct co_waiter *waiter;
    struct coroutine *co = NULL;

    spin_lock(&queue->guard);
    waiter = list_pop(&queue->waiters);
    if (waiter)
        co = waiter->co;
    spin_unlock(&queue->guard);
    if (co)
        co_wake(co);
    return co != NULL;
}

/* Wakes all of LIST, which nobody else sees any more. */
static void wake_list(struct co_waiter *waiter)
{
    while (waiter) {
        struct co_waiter *next = waiter->next;

        co_wake(waiter->co);
        waiter = next;
    }
}

void co_queue_wake_all(struct co_queue *queue)
{
    struct co_waiter *first;

    spin_lock(&queue->guard);
    first = queue->waiters.first;
    queue->waiters.first = queue->waiters.last = NULL;
    spin_unlock(&queue->guard);
    wake_list(first);
}

bool co_queue_empty(struct co_queue *queue)
{
    bool empty;

    spin_lock(&queue->guard);
    empty = !queue->waiters.first;
    spin_unlock(&queue->guard);
    return empty;
}

/* ---- reader-writer lock ---- */

/* Takes off the list whoever may have the lock now and gives it to them. Returns them, for wake_list. */
static struct co_waiter *rwlock_grant(struct co_rwlock *lock)
{
    struct co_wait_list granted = {NULL, NULL};
    struct co_waiter *waiter;

    while ((waiter = lock->waiters.first) && !lock->writer) {
        if (waiter->writer && lock->readers)
            break;
        list_pop(&lock->waiters);
        if (waiter->writer)
            lock->writer = true;
        else
            lock->readers++;
        list_append(&granted, waiter);
    }
    return granted.first;
}

static void rwlock_wait(struct co_rwlock *lock, bool writer)
{
    struct co_waiter waiter = {.co = co_current, .writer = writer};

    assert(waiter.co);
    list_append(&lock->waiters, &waiter);
    spin_unlock(&lock->guard);
    co_yield ();
}

void co_rwlock_rdlock(struct co_rwlock *lock)
{
    spin_lock(&lock->guard);
    if (lock->writer || lock->waiters.first) {
        rwlock_wait(lock, false);
        return;
    }
    lock->readers++;
    spin_unlock(&lock->guard);
}

void co_rwlock_wrlock(struct co_rwlock *lock)
{
    spin_lock(&lock->guard);
    if (lock->writer || lock->readers || lock->waiters.first) {
        rwlock_wait(lock, true);
        return;
    }
    lock->writer = true;
    spin_unlock(&lock->guard);
}

void co_rwlock_unlock(struct co_rwlock *lock)
{
    struct co_waiter *granted;

    spin_lock(&lock->guard);
    if (lock->writer) {
        lock->writer = false;
    } else {
        assert(lock->readers);
        lock->readers--;
    }
    granted = rwlock_grant(lock);
    spin_unlock(&lock->guard);
    wake_list(granted);
}

void co_rwlock_downgrade(struct co_rwlock *lock)
{
    struct co_waiter *granted;

    spin_lock(&lock->guard);
    assert(lock->writer);
    lock->writer = false;
    lock->readers = 1;
    granted = rwlock_grant(lock);
    spin_unlock(&lock->guard);
    wake_list(granted);
}

/* ---- sleep ---- */

static void sleep_over(void *opaque)
{
    co_wake(opaque);
}

void co_sleep_ns(uint64_t ns)
{
    struct loop_timer timer = {.fire = sleep_over, .opaque = co_current};
    uint64_t now = world_now_ns();

    assert(co_current);
    loop_timer_arm(co_current->loop, &timer, ns > UINT64_MAX - now ? UINT64_MAX : now + ns);
    co_yield ();
}
