/*
 * Coroutines: order, nesting, reuse of stacks, the bound, wake-ups from the same loop and from others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/runtime/coroutine.h"
#include "host/runtime/iothread.h"
#include "host/runtime/loop.h"

static struct loop *loop;

static int setup(void **state)
{
    loop = loop_create("test", NULL);
    return loop ? 0 : -1;
}

static int teardown(void **state)
{
    co_pool_set_limit(0);
    loop_destroy(loop);
    return 0;
}

static char order[256];

static void note(char c)
{
    size_t n = strlen(order);

    if (n < sizeof(order) - 1) {
        order[n] = c;
        order[n + 1] = '\0';
    }
}

static void run_loop_until_idle(void)
{
    while (loop_turn(loop, false))
        ;
}

/* ---- entering and yielding ---- */

static void yields_twice(void *arg)
{
    char c = *(char *)arg;

    note(c);
    co_yield ();
    note((char)(c + 1));
    co_yield ();
    note((char)(c + 2));
}

static void enter_runs_until_yield_and_wake_outside_runs_at_once(void **state)
{
    char c = 'a';
    struct coroutine *co = co_create(yields_twice, &c);

    order[0] = '\0';
    assert_non_null(co);
    assert_ptr_equal(co_loop(co), loop);
    assert_string_equal(order, "");
    co_enter(co);
    assert_string_equal(order, "a");
    assert_null(co_self());
    co_wake(co);
    assert_string_equal(order, "ab");
    co_wake(co);
    assert_string_equal(order, "abc");
}

static void wakes_in_order(void *arg)
{
    struct coroutine **co = arg;

    note('(');
    co_wake(co[0]);
    co_wake(co[1]);
    co_wake(co[2]);
    note(')');
}

static void wake_inside_a_coroutine_goes_on_the_ready_list_in_order(void **state)
{
    char names[3] = {'a', 'h', 'p'};
    struct coroutine *co[3], *waker;

    order[0] = '\0';
    for (int i = 0; i < 3; i++) {
        co[i] = co_create(yields_twice, &names[i]);
        co_enter(co[i]);
    }
    waker = co_create(wakes_in_order, co);
    co_enter(waker);
    assert_string_equal(order, "ahp()");
    run_loop_until_idle();
    assert_string_equal(order, "ahp()biq");
    for (int i = 0; i < 3; i++)
        co_wake(co[i]);
    assert_string_equal(order, "ahp()biqcjr");
}

static void inner(void *arg)
{
    note('i');
    co_yield ();
    note('I');
}

static void outer(void *arg)
{
    struct coroutine *co = co_create(inner, NULL), *self = co_self();

    note('o');
    co_enter(co);
    assert_ptr_equal(co_self(), self);
    note('p');
    co_wake(co);
    note('q');
}

static void a_coroutine_may_enter_a_fresh_one(void **state)
{
    order[0] = '\0';
    co_enter(co_create(outer, NULL));
    assert_string_equal(order, "oipq");
    run_loop_until_idle();
    assert_string_equal(order, "oipqI");
}

static void wakes_itself(void *arg)
{
    unsigned *left = arg;

    while (*left) {
        --*left;
        co_wake(co_self());
        co_yield ();
    }
}

static void a_coroutine_may_wake_itself_before_it_yields(void **state)
{
    unsigned left = 1000;

    assert_int_equal(loop_run_coroutine(loop, wakes_itself, &left), 0);
    assert_int_equal(left, 0);
}

/* ---- registers and stack ---- */

static __attribute__((noinline)) unsigned deep(unsigned depth)
{
    volatile char frame[512];

    memset((char *)frame, (int)depth, sizeof(frame));
    if (depth % 16 == 0) {
        co_wake(co_self());
        co_yield ();
    }
    if (depth == 0)
        return 0;
    return deep(depth - 1) + (unsigned)frame[depth % sizeof(frame)] / 256 + 1;
}

static void computes(void *arg)
{
    double *result = arg, sum = *result;
    unsigned frames;

    for (int i = 1; i < 100; i++) {
        sum += 1.0 / i;
        co_wake(co_self());
        co_yield ();
    }
    frames = deep(100);
    *result = frames == 100 ? sum : -1;
}

static void registers_and_frames_survive_switches(void **state)
{
    double results[8], expected;
    unsigned i;

    for (i = 0; i < 8; i++) {
        results[i] = i;
        co_enter(co_create(computes, &results[i]));
    }
    run_loop_until_idle();
    for (i = 0; i < 8; i++) {
        expected = i;
        for (int k = 1; k < 100; k++)
            expected += 1.0 / k;
        assert_true(results[i] == expected);
    }
}

static __attribute__((noinline)) int overflow(int n)
{
    volatile char frame[1024];

    frame[0] = (char)n;
    return n > 1000000 ? frame[0] : overflow(n + 1) + frame[0];
}

static void overflows(void *arg)
{
    *(volatile int *)arg = overflow(0);
}

static void a_stack_that_overflows_hits_the_guard_page(void **state)
{
    int status = 0;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        volatile int result;

        /* The sanitizers' handlers would write pages about it. */
        signal(SIGSEGV, SIG_DFL);
        close(STDERR_FILENO);
        co_enter(co_create(overflows, (void *)&result));
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- the pool ---- */

static void ends(void *arg)
{
    ++*(unsigned *)arg;
}

static void stacks_are_used_again(void **state)
{
    struct co_pool_stats before, after;
    unsigned ended = 0;

    co_enter(co_create(ends, &ended));
    co_pool_stats(&before);
    for (int i = 0; i < 1000; i++)
        co_enter(co_create(ends, &ended));
    co_pool_stats(&after);
    assert_int_equal(ended, 1001);
    assert_int_equal(after.allocated, before.allocated);
    assert_int_equal(after.alive, 0);
    co_pool_drain_thread();
    co_pool_stats(&after);
    assert_int_equal(after.allocated, 0);
}

static void yields_once(void *arg)
{
    co_yield ();
    ++*(unsigned *)arg;
}

static void the_bound_holds_and_lifts_when_one_ends(void **state)
{
    struct coroutine *co[8];
    struct co_pool_stats stats;
    unsigned ended = 0;

    co_pool_drain_thread();
    co_pool_set_limit(8);
    for (int i = 0; i < 8; i++) {
        co[i] = co_create(yields_once, &ended);
        assert_non_null(co[i]);
        co_enter(co[i]);
    }
    assert_null(co_create(yields_once, &ended));
    co_pool_stats(&stats);
    assert_int_equal(stats.alive, 8);
    assert_int_equal(stats.allocated, 8);
    assert_int_equal(stats.limit, 8);
    co_wake(co[0]);
    co[0] = co_create(yields_once, &ended);
    assert_non_null(co[0]);
    co_enter(co[0]);
    for (int i = 0; i < 8; i++)
        co_wake(co[i]);
    assert_int_equal(ended, 9);
}

static void make_one(void *arg)
{
    unsigned ended = 0;
    struct coroutine *co = co_create(ends, &ended);

    if (co)
        co_enter(co);
    *(bool *)arg = ended == 1;
}

static void a_loop_that_has_none_gets_one_beyond_the_bound(void **state)
{
    struct iothread *thread = iothread_start("other", 0, NULL);
    struct coroutine *co[2];
    unsigned ended = 0;
    bool made = false;

    assert_non_null(thread);
    co_pool_set_limit(2);
    for (int i = 0; i < 2; i++) {
        co[i] = co_create(yields_once, &ended);
        assert_non_null(co[i]);
        co_enter(co[i]);
    }
    iothread_call(thread, make_one, &made);
    assert_true(made);
    for (int i = 0; i < 2; i++)
        co_wake(co[i]);
    iothread_stop(thread);
}

static void the_default_bound_leaves_room_in_max_map_count(void **state)
{
    struct co_pool_stats stats;
    unsigned long mappings = 0;
    FILE *f = fopen("/proc/sys/vm/max_map_count", "r");

    co_pool_set_limit(0);
    co_pool_stats(&stats);
    assert_true(stats.limit > 0);
    if (f) {
        assert_int_equal(fscanf(f, "%lu", &mappings), 1);
        fclose(f);
        assert_true(stats.limit * 2 < mappings);
    }
}

/* ---- other threads ---- */

static struct coroutine *sleeper;
static uint32_t sleeper_known;

static void *wakes_from_outside(void *arg)
{
    unsigned rounds = *(unsigned *)arg;

    for (unsigned i = 0; i < rounds; i++) {
        /* The home loop says so just before it yields: most of these wake-ups overtake the yield. */
        while (!__atomic_exchange_n(&sleeper_known, 0, __ATOMIC_ACQ_REL))
            sched_yield();
        co_wake(sleeper);
    }
    return NULL;
}

static void is_overtaken(void *arg)
{
    unsigned rounds = *(unsigned *)arg;

    sleeper = co_self();
    for (unsigned i = 0; i < rounds; i++) {
        __atomic_store_n(&sleeper_known, 1, __ATOMIC_RELEASE);
        for (volatile int spin = 0; spin < 200 * (int)(i % 4); spin++)
            ;
        co_yield ();
    }
}

static void a_wake_that_overtakes_its_yield_is_kept(void **state)
{
    unsigned rounds = 3000;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, wakes_from_outside, &rounds), 0);
    assert_int_equal(loop_run_coroutine(loop, is_overtaken, &rounds), 0);
    pthread_join(thread, NULL);
}

/* ---- trace id ---- */

static void child(void *arg)
{
    *(uint64_t *)arg = co_trace_id();
    co_set_trace_id(99);
}

static void parent(void *arg)
{
    co_set_trace_id(7);
    co_enter(co_create(child, arg));
    assert_int_equal(co_trace_id(), 7);
}

static void trace_id_is_inherited(void **state)
{
    uint64_t seen = 0;

    assert_int_equal(co_trace_id(), 0);
    co_enter(co_create(parent, &seen));
    assert_int_equal(seen, 7);
    seen = 1;
    co_enter(co_create(child, &seen));
    assert_int_equal(seen, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enter_runs_until_yield_and_wake_outside_runs_at_once),
        cmocka_unit_test(wake_inside_a_coroutine_goes_on_the_ready_list_in_order),
        cmocka_unit_test(a_coroutine_may_enter_a_fresh_one),
        cmocka_unit_test(a_coroutine_may_wake_itself_before_it_yields),
        cmocka_unit_test(registers_and_frames_survive_switches),
        cmocka_unit_test(a_stack_that_overflows_hits_the_guard_page),
        cmocka_unit_test(stacks_are_used_again),
        cmocka_unit_test(the_bound_holds_and_lifts_when_one_ends),
        cmocka_unit_test(a_loop_that_has_none_gets_one_beyond_the_bound),
        cmocka_unit_test(the_default_bound_leaves_room_in_max_map_count),
        cmocka_unit_test(a_wake_that_overtakes_its_yield_is_kept),
        cmocka_unit_test(trace_id_is_inherited),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
