/*
 * Coroutine locks: exclusion, order of waiters, hand-over; on one loop and across threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "host/runtime/co_lock.h"
#include "host/runtime/iothread.h"
#include "host/runtime/world.h"

#define THREADS 3

static struct loop *loop;
static char order[128];

static int setup(void **state)
{
    loop = loop_create("test", NULL);
    return loop ? 0 : -1;
}

static int teardown(void **state)
{
    loop_destroy(loop);
    return 0;
}

static void note(char c)
{
    size_t n = strlen(order);

    if (n < sizeof(order) - 1) {
        order[n] = c;
        order[n + 1] = '\0';
    }
}

static void run_until_idle(void)
{
    while (loop_turn(loop, false))
        ;
}

static void start(co_entry *entry, void *arg)
{
    struct coroutine *co = co_create(entry, arg);

    assert_non_null(co);
    co_enter(co);
}

/* ---- mutex ---- */

static struct co_mutex mutex;

static void locks(void *arg)
{
    co_mutex_lock(&mutex);
    note(*(char *)arg);
    co_wake(co_self());
    co_yield ();
    note(*(char *)arg);
    co_mutex_unlock(&mutex);
}

static void mutex_is_handed_over_in_the_order_of_arrival(void **state)
{
    char names[] = "abcd";

    order[0] = '\0';
    for (int i = 0; i < 4; i++)
        start(locks, &names[i]);
    assert_false(co_mutex_trylock(&mutex));
    run_until_idle();
    assert_string_equal(order, "aabbccdd");
    assert_true(co_mutex_trylock(&mutex));
    co_mutex_unlock(&mutex);
}

/* ---- queue ---- */

static struct co_queue queue;
static unsigned condition;

static void waits(void *arg)
{
    co_mutex_lock(&mutex);
    while (!condition)
        co_queue_wait(&queue, &mutex);
    condition--;
    note(*(char *)arg);
    co_mutex_unlock(&mutex);
}

static void queue_wakes_one_or_all_and_gives_the_mutex_back(void **state)
{
    char names[] = "abcd";

    order[0] = '\0';
    condition = 0;
    assert_true(co_queue_empty(&queue));
    assert_false(co_queue_wake_one(&queue));
    for (int i = 0; i < 4; i++)
        start(waits, &names[i]);
    assert_false(co_queue_empty(&queue));
    condition = 1;
    assert_true(co_queue_wake_one(&queue));
    run_until_idle();
    assert_string_equal(order, "a");
    condition = 2;
    co_queue_wake_all(&queue);
    run_until_idle();
    assert_string_equal(order, "abc");
    condition = 1;
    co_queue_wake_all(&queue);
    run_until_idle();
    assert_string_equal(order, "abcd");
    assert_true(co_queue_empty(&queue));
    assert_false(mutex.held);
}

static struct spinlock spin;

static void waits_with_spin(void *arg)
{
    spin_lock(&spin);
    while (!condition)
        co_queue_wait_spin(&queue, &spin);
    condition--;
    spin_unlock(&spin);
    note('s');
}

static void queue_with_a_spin_section(void **state)
{
    order[0] = '\0';
    condition = 0;
    start(waits_with_spin, NULL);
    start(waits_with_spin, NULL);
    assert_int_equal(spin.locked, 0);
    spin_lock(&spin);
    condition = 2;
    spin_unlock(&spin);
    co_queue_wake_all(&queue);
    run_until_idle();
    assert_string_equal(order, "ss");
}

/* ---- reader-writer lock ---- */

static struct co_rwlock rwlock;
static struct co_queue hold;

static void reads(void *arg)
{
    co_rwlock_rdlock(&rwlock);
    note(*(char *)arg);
    co_queue_wait(&hold, NULL);
    co_rwlock_unlock(&rwlock);
}

static void writes(void *arg)
{
    co_rwlock_wrlock(&rwlock);
    note(*(char *)arg);
    co_queue_wait(&hold, NULL);
    co_rwlock_unlock(&rwlock);
}

static void release_all(void)
{
    co_queue_wake_all(&hold);
    run_until_idle();
}

static void rwlock_is_fair(void **state)
{
    char names[] = "abCdeFG";

    order[0] = '\0';
    for (int i = 0; i < 7; i++)
        start(names[i] < 'a' ? writes : reads, &names[i]);
    assert_string_equal(order, "ab");
    release_all();
    assert_string_equal(order, "abC");
    release_all();
    assert_string_equal(order, "abCde");
    release_all();
    assert_string_equal(order, "abCdeF");
    release_all();
    assert_string_equal(order, "abCdeFG");
    release_all();
    assert_int_equal(rwlock.readers, 0);
    assert_false(rwlock.writer);
}

static void downgrades(void *arg)
{
    co_rwlock_wrlock(&rwlock);
    note('W');
    co_queue_wait(&hold, NULL);
    co_rwlock_downgrade(&rwlock);
    note('r');
    co_queue_wait(&hold, NULL);
    co_rwlock_unlock(&rwlock);
}

static void downgrade_lets_readers_in_but_no_writer(void **state)
{
    char names[] = "abC";

    order[0] = '\0';
    start(downgrades, NULL);
    for (int i = 0; i < 3; i++)
        start(names[i] < 'a' ? writes : reads, &names[i]);
    assert_string_equal(order, "W");
    release_all();
    /* The readers had been waiting and came in with the downgrade; the writer waits for all three. */
    assert_int_equal(strlen(order), 4);
    assert_null(strchr(order, 'C'));
    release_all();
    assert_non_null(strchr(order, 'C'));
    release_all();
    assert_false(rwlock.writer);
}

/* ---- across threads ---- */

struct shared {
    struct co_mutex mutex;
    struct co_rwlock rwlock;
    struct co_queue queue;
    struct spinlock spin;
    uint64_t under_mutex, under_rwlock, under_spin;
    unsigned items, produced, consumed;
};

#define ROUNDS 400

static struct shared shared;

static void worker(void *arg)
{
    unsigned *ended = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        co_mutex_lock(&shared.mutex);
        shared.under_mutex++;
        if (i % 8 == 0) {
            co_wake(co_self());
            co_yield ();
        }
        co_mutex_unlock(&shared.mutex);

        if (i % 4 == 0) {
            co_rwlock_wrlock(&shared.rwlock);
            shared.under_rwlock++;
            if (i % 16 == 0) {
                co_rwlock_downgrade(&shared.rwlock);
                co_wake(co_self());
                co_yield ();
            }
            co_rwlock_unlock(&shared.rwlock);
        } else {
            uint64_t before, after;

            co_rwlock_rdlock(&shared.rwlock);
            before = shared.under_rwlock;
            if (i % 8 == 1) {
                co_wake(co_self());
                co_yield ();
            }
            after = shared.under_rwlock;
            co_rwlock_unlock(&shared.rwlock);
            assert_int_equal(before, after);
        }

        spin_lock(&shared.spin);
        shared.under_spin++;
        spin_unlock(&shared.spin);
    }
    ++*ended;
}

static void consumer(void *arg)
{
    unsigned *ended = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        co_mutex_lock(&shared.mutex);
        while (!shared.items)
            co_queue_wait(&shared.queue, &shared.mutex);
        shared.items--;
        shared.consumed++;
        co_mutex_unlock(&shared.mutex);
    }
    ++*ended;
}

static void producer(void *arg)
{
    unsigned *ended = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        co_mutex_lock(&shared.mutex);
        shared.items++;
        shared.produced++;
        co_mutex_unlock(&shared.mutex);
        co_queue_wake_one(&shared.queue);
    }
    ++*ended;
}

struct crew {
    co_entry *entries[4];
    unsigned n, ended;
    struct loop_bh bh;
    struct iothread *thread;
};

static void start_crew(void *opaque)
{
    struct crew *crew = opaque;

    for (unsigned i = 0; i < crew->n; i++)
        start(crew->entries[i], &crew->ended);
}

static void wait_for_crew(void *opaque)
{
    struct crew *crew = opaque;

    while (crew->ended < crew->n)
        co_sleep_ns(100000);
}

static void run_crews(struct crew *crews)
{
    for (int i = 0; i < THREADS; i++) {
        crews[i].thread = iothread_start("crew", 0, NULL);
        assert_non_null(crews[i].thread);
        crews[i].bh =
            (struct loop_bh){.fn = start_crew, .opaque = &crews[i], .loop = iothread_loop(crews[i].thread)};
    }
    for (int i = 0; i < THREADS; i++)
        loop_bh_schedule(&crews[i].bh);
    for (int i = 0; i < THREADS; i++)
        iothread_call_coroutine(crews[i].thread, wait_for_crew, &crews[i]);
    for (int i = 0; i < THREADS; i++)
        iothread_stop(crews[i].thread);
}

static void locks_exclude_coroutines_of_different_threads(void **state)
{
    struct crew crews[THREADS];

    memset(crews, 0, sizeof(crews));
    memset(&shared, 0, sizeof(shared));
    for (int i = 0; i < THREADS; i++) {
        crews[i].n = 4;
        for (int k = 0; k < 4; k++)
            crews[i].entries[k] = worker;
    }
    run_crews(crews);
    assert_int_equal(shared.under_mutex, THREADS * 4 * ROUNDS);
    assert_int_equal(shared.under_rwlock, THREADS * 4 * ROUNDS / 4);
    assert_int_equal(shared.under_spin, THREADS * 4 * ROUNDS);
    assert_false(shared.mutex.held);
    assert_true(!shared.rwlock.writer && !shared.rwlock.readers);
}

static void no_wake_up_of_a_queue_is_lost_between_threads(void **state)
{
    struct crew crews[THREADS];

    memset(crews, 0, sizeof(crews));
    memset(&shared, 0, sizeof(shared));
    for (int i = 0; i < THREADS; i++) {
        crews[i].n = 4;
        for (int k = 0; k < 4; k++)
            crews[i].entries[k] = (i + k) % 2 ? producer : consumer;
    }
    run_crews(crews);
    assert_int_equal(shared.produced, THREADS * 2 * ROUNDS);
    assert_int_equal(shared.consumed, THREADS * 2 * ROUNDS);
    assert_int_equal(shared.items, 0);
}

/* ---- sleep ---- */

static void sleeps(void *arg)
{
    uint64_t *ns = arg;

    co_sleep_ns(*ns);
    note((char)('0' + *ns / 1000000));
}

/* All of them fall asleep at the same time, however long the machine takes for it. */
static uint64_t stopped_at;

static uint64_t stopped_now_ns(struct world *w)
{
    return stopped_at;
}

static struct world stopped_world = {.now_ns = stopped_now_ns};

static void sleepers_wake_in_the_order_of_their_deadlines(void **state)
{
    uint64_t ns[] = {3000000, 1000000, 2000000, 0};

    order[0] = '\0';
    stopped_at = world_now_ns();
    world = &stopped_world;
    for (int i = 0; i < 4; i++)
        start(sleeps, &ns[i]);
    world = &world_host;
    while (strlen(order) < 4)
        loop_turn(loop, true);
    assert_string_equal(order, "0123");
    assert_true(world_now_ns() - stopped_at >= 3000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mutex_is_handed_over_in_the_order_of_arrival),
        cmocka_unit_test(queue_wakes_one_or_all_and_gives_the_mutex_back),
        cmocka_unit_test(queue_with_a_spin_section),
        cmocka_unit_test(rwlock_is_fair),
        cmocka_unit_test(downgrade_lets_readers_in_but_no_writer),
        cmocka_unit_test(locks_exclude_coroutines_of_different_threads),
        cmocka_unit_test(no_wake_up_of_a_queue_is_lost_between_threads),
        cmocka_unit_test(sleepers_wake_in_the_order_of_their_deadlines),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
