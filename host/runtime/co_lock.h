/*
 * Locks and waiting for coroutines. A waiter yields; it never blocks its thread. All of these may be shared
 * by coroutines of different loops; each is a short spin section around a FIFO of waiters, and a waiter is
 * woken on its own loop. Zero-initialised objects are valid (CO_MUTEX_INIT and so on say so explicitly).
 */
#ifndef RINGSIDE_RUNTIME_CO_LOCK_H
#define RINGSIDE_RUNTIME_CO_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "host/runtime/coroutine.h"

struct co_waiter; /* lies on the waiter's stack */

struct co_wait_list {
    struct co_waiter *first, *last;
};

/* Spin section of a few instructions; never held across a yield. For the runtime and for modules that keep
 * small shared state of their own. */
struct spinlock {
    uint32_t locked;
};

void spin_lock(struct spinlock *lock);
void spin_unlock(struct spinlock *lock);

/* Mutex, FIFO-fair: unlock hands it over to the oldest waiter. Not recursive. */
struct co_mutex {
    struct spinlock guard;
    bool held;
    struct coroutine *owner; /* for debugging */
    struct co_wait_list waiters;
};

#define CO_MUTEX_INIT \
    {                 \
        0             \
    }

void coroutine_fn co_mutex_lock(struct co_mutex *mutex);
bool co_mutex_trylock(struct co_mutex *mutex);
void co_mutex_unlock(struct co_mutex *mutex);

/* Queue of waiters for a condition that MUTEX protects: like a condition variable. A woken waiter holds the
 * mutex again and looks at the condition again. MUTEX may be NULL where all users are on one loop. */
struct co_queue {
    struct spinlock guard;
    struct co_wait_list waiters;
};

void coroutine_fn co_queue_wait(struct co_queue *queue, struct co_mutex *mutex);
/* Waits with a spin section instead of a mutex: GUARD is released once queued, and held again on return. */
void coroutine_fn co_queue_wait_spin(struct co_queue *queue, struct spinlock *guard);
bool co_queue_wake_one(struct co_queue *queue); /* false if nobody waited; any thread */
void co_queue_wake_all(struct co_queue *queue);
bool co_queue_empty(struct co_queue *queue);

/* Reader-writer lock, FIFO-fair: a waiting writer holds up later readers. */
struct co_rwlock {
    struct spinlock guard;
    uint32_t readers;
    bool writer;
    struct co_wait_list waiters;
};

void coroutine_fn co_rwlock_rdlock(struct co_rwlock *lock);
void coroutine_fn co_rwlock_wrlock(struct co_rwlock *lock);
void co_rwlock_unlock(struct co_rwlock *lock);
void co_rwlock_downgrade(struct co_rwlock *lock); /* writer becomes reader */

/* Sleeps for NS nanoseconds of the world's time on the running coroutine's loop. */
void coroutine_fn co_sleep_ns(uint64_t ns);

#endif
