/*
 * The event loop: order in a turn, descriptors, timers, bottom halves from several threads, deferral.
 * Adaptive polling: loop_polling_test.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/runtime/coroutine.h"
#include "host/runtime/error.h"
#include "host/runtime/iothread.h"
#include "host/runtime/loop.h"
#include "host/runtime/trace.h"
#include "host/runtime/world.h"
#include "tests/unit/loop_rig.h"

/* ---- the order of a turn ---- */

static char names[] = "abcdefgh";
static struct coroutine *sleeper;
static struct loop_deferred deferred = {.fn = note_opaque, .opaque = &names[7]};

static void sleeps(void *arg)
{
    co_yield ();
    note('c');
    loop_defer(loop, &deferred);
}

static void on_event(void *opaque)
{
    clear_fd(*(int *)opaque);
    note('f');
}

static void came_in(void *opaque)
{
    *(bool *)opaque = true;
}

static void wakes(void *arg)
{
    co_wake(sleeper);
}

static void on_timer(void *opaque)
{
    struct coroutine *co = co_create(wakes, NULL);

    note('t');
    loop_defer(loop, &deferred);
    co_enter(co); /* from a coroutine, so that it goes on the ready list */
    note('u');
}

static void a_turn_runs_descriptors_bottom_halves_timers_coroutines_deferred(void **state)
{
    int fd = new_eventfd();
    struct loop_fd handler = {.fd = fd, .on_readable = on_event, .opaque = &fd};
    struct loop_timer timer = {.fire = on_timer};
    struct loop_bh bh = {.fn = note_opaque, .opaque = &names[1], .loop = loop};

    order[0] = '\0';
    sleeper = co_create(sleeps, NULL);
    co_enter(sleeper);
    assert_int_equal(loop_fd_add(loop, &handler), 0);
    signal_fd(fd);
    assert_true(loop_turn(loop, true));
    assert_string_equal(order, "f");

    order[0] = '\0';
    loop_timer_arm(loop, &timer, 0);
    loop_bh_schedule(&bh);
    signal_fd(fd);
    assert_true(loop_turn(loop, true));
    /* The bottom half was known before the descriptors were looked at: they may have this turn or the next.
     */
    if (order[0] == 'f')
        assert_string_equal(order, "fbtuch");
    else
        assert_string_equal(order, "btuch");
    loop_turn(loop, false);
    loop_fd_remove(&handler);
    close(fd);
}

static void deferred_runs_once_however_often_asked_for(void **state)
{
    struct loop_deferred d = {.fn = note_opaque, .opaque = &names[3]};

    order[0] = '\0';
    for (int i = 0; i < 5; i++)
        loop_defer(loop, &d);
    assert_string_equal(order, "");
    loop_turn(loop, false);
    assert_string_equal(order, "d");
    loop_turn(loop, false);
    assert_string_equal(order, "d");
    loop_defer(loop, &d);
    loop_turn(loop, true); /* and the loop does not sleep over it */
    assert_string_equal(order, "dd");
}

static struct loop_deferred endless;
static unsigned endless_runs;

static void defers_again(void *opaque)
{
    endless_runs++;
    if (!opaque || endless_runs < *(unsigned *)opaque)
        loop_defer(loop, &endless);
}

static void what_defers_itself_for_ever_does_not_hold_the_turn(void **state)
{
    unsigned limit = 1000, fired = 0;

    endless = (struct loop_deferred){.fn = defers_again, .opaque = &limit};
    endless_runs = 0;
    loop_defer(loop, &endless);
    loop_turn(loop, false);
    assert_true(endless_runs < limit);
    while (endless_runs < limit && fired++ < limit)
        loop_turn(loop, true);
    assert_int_equal(endless_runs, limit);
}

/* ---- descriptors ---- */

struct pair {
    struct loop_fd a, b;
    unsigned ran;
    bool end_itself;
};

static void removes_the_other(void *opaque)
{
    struct pair *p = opaque;

    p->ran++;
    loop_fd_remove(&p->a);
    loop_fd_remove(&p->b);
}

static void a_handler_removed_by_another_does_not_run(void **state)
{
    struct pair p = {0};

    p.a = (struct loop_fd){.fd = new_eventfd(), .on_readable = removes_the_other, .opaque = &p};
    p.b = (struct loop_fd){.fd = new_eventfd(), .on_readable = removes_the_other, .opaque = &p};
    assert_int_equal(loop_fd_add(loop, &p.a), 0);
    assert_int_equal(loop_fd_add(loop, &p.b), 0);
    signal_fd(p.a.fd);
    signal_fd(p.b.fd);
    loop_turn(loop, true);
    loop_turn(loop, false);
    assert_int_equal(p.ran, 1);
    close(p.a.fd);
    close(p.b.fd);
}

static void ends_on_readable(void *opaque)
{
    struct pair *p = opaque;

    p->ran++;
    loop_fd_remove(&p->a);
}

static void never(void *opaque)
{
    fail_msg("ran after it was removed");
}

static void a_handler_that_removes_itself_gets_no_second_callback(void **state)
{
    struct pair p = {0};

    p.a = (struct loop_fd){
        .fd = new_eventfd(), .on_readable = ends_on_readable, .on_writable = never, .opaque = &p};
    signal_fd(p.a.fd);
    assert_int_equal(loop_fd_add(loop, &p.a), 0);
    loop_turn(loop, true);
    assert_int_equal(p.ran, 1);
    close(p.a.fd);
}

static void update_turns_callbacks_on_and_off(void **state)
{
    int ends[2];
    struct loop_fd handler = {.opaque = &names[0]};

    assert_int_equal(pipe(ends), 0);
    handler.fd = ends[1];
    order[0] = '\0';
    assert_int_equal(loop_fd_add(loop, &handler), 0);
    loop_turn(loop, false);
    assert_string_equal(order, "");
    handler.on_writable = note_opaque;
    loop_fd_update(&handler);
    loop_turn(loop, false);
    assert_string_equal(order, "a");
    handler.on_writable = NULL;
    loop_fd_update(&handler);
    loop_turn(loop, false);
    assert_string_equal(order, "a");
    /* A reader that went away is told to whoever listens, and to nobody else. */
    close(ends[0]);
    loop_turn(loop, false);
    assert_string_equal(order, "a");
    handler.on_writable = note_opaque;
    loop_fd_update(&handler);
    loop_turn(loop, false);
    assert_string_equal(order, "aa");
    loop_fd_remove(&handler);
    close(ends[1]);
}

static void a_file_that_epoll_does_not_take_is_an_error(void **state)
{
    struct loop_fd handler = {.fd = -1};
    FILE *f = tmpfile();

    assert_non_null(f);
    handler.fd = fileno(f);
    handler.on_readable = never;
    assert_int_equal(loop_fd_add(loop, &handler), -EPERM);
    loop_fd_remove(&handler);
    fclose(f);
}

static void an_edge_triggered_handler_runs_once_a_signal(void **state)
{
    struct loop_fd handler = {
        .fd = new_eventfd(), .on_readable = note_opaque, .opaque = &names[0], .edge = true};

    order[0] = '\0';
    assert_int_equal(loop_fd_add(loop, &handler), 0);
    for (int i = 0; i < 3; i++) {
        signal_fd(handler.fd);
        loop_turn(loop, false);
        loop_turn(loop, false);
    }
    assert_string_equal(order, "aaa");
    loop_fd_remove(&handler);
    close(handler.fd);
}

/* ---- timers ---- */

#define TIMERS 200

static struct loop_timer timers[TIMERS];
static uint64_t last_deadline;
static unsigned fired;

static void in_order(void *opaque)
{
    struct loop_timer *timer = opaque;

    assert_true(timer->deadline_ns >= last_deadline);
    last_deadline = timer->deadline_ns;
    assert_false(timer->armed);
    fired++;
}

static void timers_fire_in_order_moved_and_cancelled_ones_too(void **state)
{
    uint64_t now = world_now_ns(), seed = 12345;
    unsigned cancelled = 0;

    fired = 0;
    last_deadline = 0;
    for (unsigned i = 0; i < TIMERS; i++) {
        timers[i] = (struct loop_timer){.fire = in_order, .opaque = &timers[i]};
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        loop_timer_arm(loop, &timers[i], now - 1000000 + (seed >> 40) % 1000000);
    }
    for (unsigned i = 0; i < TIMERS; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        if ((seed >> 33) % 3 == 0) {
            loop_timer_cancel(&timers[i]);
            loop_timer_cancel(&timers[i]);
            cancelled++;
        } else if ((seed >> 33) % 3 == 1) {
            loop_timer_arm(loop, &timers[i], now - 1000000 + (seed >> 40) % 1000000);
        }
    }
    loop_turn(loop, true);
    assert_int_equal(fired, TIMERS - cancelled);
    assert_true(loop_next_deadline(loop) == UINT64_MAX);
}

static void timers_of_one_deadline_fire_as_they_were_armed(void **state)
{
    struct loop_timer t[4];

    order[0] = '\0';
    for (int i = 0; i < 4; i++) {
        t[i] = (struct loop_timer){.fire = note_opaque, .opaque = &names[i]};
        loop_timer_arm(loop, &t[i], 7);
    }
    loop_timer_arm(loop, &t[0], 7);
    loop_turn(loop, true);
    assert_string_equal(order, "bcda");
}

static struct loop_timer again;

static void arms_again(void *opaque)
{
    fired++;
    loop_timer_arm(loop, &again, 0);
}

static void a_timer_that_arms_itself_has_one_turn_a_time(void **state)
{
    again = (struct loop_timer){.fire = arms_again};
    fired = 0;
    loop_timer_arm(loop, &again, 0);
    loop_turn(loop, true);
    assert_int_equal(fired, 1);
    loop_turn(loop, true);
    assert_int_equal(fired, 2);
    loop_timer_cancel(&again);
}

/* ---- bottom halves ---- */

static struct loop_bh self_scheduling;

static void schedules_itself(void *opaque)
{
    note('s');
    loop_bh_schedule(&self_scheduling);
}

static void a_bottom_half_scheduled_while_it_runs_runs_again_next_turn(void **state)
{
    self_scheduling = (struct loop_bh){.fn = schedules_itself, .loop = loop};
    order[0] = '\0';
    loop_bh_schedule(&self_scheduling);
    loop_bh_schedule(&self_scheduling);
    loop_turn(loop, true);
    assert_string_equal(order, "s");
    loop_turn(loop, true);
    assert_string_equal(order, "ss");
    loop_bh_cancel(&self_scheduling);
    loop_turn(loop, false);
    assert_string_equal(order, "ss");
}

static struct loop_bh bhs[5];

static void cancels(void *opaque)
{
    note('x');
    loop_bh_cancel(&bhs[4]);
    loop_bh_cancel(&bhs[2]);
    loop_bh_schedule(&bhs[1]);
}

static void a_cancelled_bottom_half_does_not_run(void **state)
{
    order[0] = '\0';
    for (int i = 0; i < 5; i++) {
        bhs[i] = (struct loop_bh){.fn = note_opaque, .opaque = &names[i], .loop = loop};
        if (i == 0)
            bhs[i].fn = cancels;
        loop_bh_schedule(&bhs[i]);
    }
    loop_bh_cancel(&bhs[3]);
    loop_bh_schedule(&bhs[3]);
    loop_turn(loop, true);
    loop_turn(loop, false);
    assert_string_equal(order, "xbd");
    loop_bh_cancel(&bhs[3]);
}

#define FROM_THREADS 4
#define SCHEDULES    3000

struct counted {
    struct loop_bh bh;
    uint32_t asked; /* by the thread */
    uint32_t seen;  /* by the bottom half */
    unsigned runs;
};

static struct counted counted[FROM_THREADS];

static void sees(void *opaque)
{
    struct counted *c = opaque;

    c->seen = __atomic_load_n(&c->asked, __ATOMIC_RELAXED);
    c->runs++;
}

static void *schedules(void *opaque)
{
    struct counted *c = opaque;

    for (uint32_t i = 1; i <= SCHEDULES; i++) {
        __atomic_store_n(&c->asked, i, __ATOMIC_RELAXED);
        loop_bh_schedule(&c->bh);
        if (i % 512 == 0)
            usleep(1);
    }
    return NULL;
}

static void bottom_halves_from_four_threads_are_not_lost(void **state)
{
    pthread_t threads[FROM_THREADS];
    bool all = false;

    for (int i = 0; i < FROM_THREADS; i++) {
        counted[i] = (struct counted){.bh = {.fn = sees, .opaque = &counted[i], .loop = loop}};
        assert_int_equal(pthread_create(&threads[i], NULL, schedules, &counted[i]), 0);
    }
    /* Sleeping turns: a lost wake-up would be one that never ends. */
    while (!all) {
        loop_turn(loop, true);
        all = true;
        for (int i = 0; i < FROM_THREADS; i++)
            all &= counted[i].seen == SCHEDULES;
    }
    for (int i = 0; i < FROM_THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(counted[i].runs >= 1 && counted[i].runs <= SCHEDULES);
        loop_bh_cancel(&counted[i].bh);
    }
}

/* ---- waking ---- */

static void *kicks(void *opaque)
{
    usleep(2000);
    loop_kick(opaque);
    return NULL;
}

static void kick_ends_a_sleep(void **state)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, kicks, loop), 0);
    loop_turn(loop, true);
    pthread_join(thread, NULL);
    loop_turn(loop, false);
    loop_kick(loop);
    loop_turn(loop, true); /* a kick before the sleep counts too */
}

static void stop_in_a_signal(int number)
{
    loop_stop(loop_current());
}

static void stop_from_a_signal_handler_ends_the_run(void **state)
{
    struct sigaction action = {.sa_handler = stop_in_a_signal}, old;

    sigaction(SIGALRM, &action, &old);
    ualarm(2000, 0);
    loop_run(loop);
    sigaction(SIGALRM, &old, NULL);
    loop_stop(loop);
    loop_run(loop); /* stopped beforehand: does not begin */
}

/* ---- attachments, several loops in a thread, other small things ---- */

static void destroyed(void *state)
{
    assert_non_null(loop_current());
    note(*(char *)state);
}

static void attachments_die_with_their_loop_latest_key_first(void **state)
{
    order[0] = '\0';
    loop_attach(loop, LOOP_ATTACH_LAIO, &names[0], destroyed);
    loop_attach(loop, LOOP_ATTACH_TEST, &names[1], destroyed);
    assert_ptr_equal(loop_attached(loop, LOOP_ATTACH_TEST), &names[1]);
    assert_null(loop_attached(loop, LOOP_ATTACH_DEVICE));
    loop_destroy(loop);
    assert_string_equal(order, "ba");
    assert_null(loop_current());
    loop = loop_create("test", NULL);
    assert_null(loop_attached(loop, LOOP_ATTACH_TEST));
}

static void waits_for_its_wake(void *arg)
{
    co_yield ();
    note('w');
}

static void several_loops_may_take_turns_in_one_thread(void **state)
{
    struct loop *first = loop_switch_current(NULL), *second = loop_create("second", NULL);
    struct loop_bh bh = {.fn = note_opaque, .opaque = &names[0], .loop = first};
    struct coroutine *co = co_create(waits_for_its_wake, NULL);

    assert_non_null(second);
    assert_ptr_equal(first, loop);
    assert_int_not_equal(loop_index(first), loop_index(second));
    assert_string_equal(loop_name(second), "second");
    order[0] = '\0';
    co_enter(co);
    loop_bh_schedule(&bh);
    loop_turn(second, false);
    assert_string_equal(order, "");
    loop_switch_current(first);
    assert_true(loop_pending(first));
    loop_turn(first, true);
    co_wake(co); /* another loop's: waits for that loop's turn */
    assert_string_equal(order, "a");
    loop_switch_current(second);
    loop_turn(second, true);
    assert_string_equal(order, "aw");
    loop_destroy(second);
    loop_switch_current(first);
}

static void no_more_loops_than_the_bound(void **state)
{
    struct loop *loops[LOOPS_MAX];
    struct error err = {""};
    unsigned n = 0;

    loop_switch_current(NULL);
    while (n < LOOPS_MAX && (loops[n] = loop_create("many", &err))) {
        n++;
        loop_switch_current(NULL);
    }
    assert_int_equal(n, LOOPS_MAX - 1);
    assert_non_null(strstr(err.text, "event loop"));
    while (n--) {
        loop_switch_current(loops[n]);
        loop_destroy(loops[n]);
    }
    loop_switch_current(loop);
}

static void errors_are_sentences(void **state)
{
    struct error err = {""};
    char long_text[1000];

    assert_int_equal(error_set(&err, -EINVAL, "%s is %d", "it", 3), -EINVAL);
    assert_string_equal(err.text, "it is 3");
    assert_int_equal(error_prefix(&err, -EIO, "file %d", 1), -EIO);
    assert_string_equal(err.text, "file 1: it is 3");
    error_set(&err, -EINVAL, "again: %s", err.text);
    assert_string_equal(err.text, "again: file 1: it is 3");
    error_set(&err, -EINVAL, "a\nb\x1b[2J");
    assert_string_equal(err.text, "a?b?[2J");
    memset(long_text, 'x', sizeof(long_text));
    long_text[sizeof(long_text) - 1] = '\0';
    error_set(&err, -EINVAL, "%s", long_text);
    assert_int_equal(strlen(err.text), ERROR_TEXT_BYTES - 1);
    error_prefix(&err, -EINVAL, "p");
    assert_int_equal(strlen(err.text), ERROR_TEXT_BYTES - 1);
    assert_memory_equal(err.text, "p: xx", 5);
    assert_int_equal(error_set(NULL, -ENOMEM, "x"), -ENOMEM);
    assert_int_equal(error_prefix(NULL, -ENOMEM, "x"), -ENOMEM);
}

static struct trace_record seen;

static void see(void *opaque, const struct trace_record *record)
{
    seen = *record;
    ++*(unsigned *)opaque;
}

static void trace_points_reach_the_sink_and_have_names(void **state)
{
    unsigned n = 0;

    trace(TRACE_LAIO_CO_SUBMIT, 1, 2, 3);
    trace_listen(see, &n);
    trace(TRACE_LAIO_CO_SUBMIT, 5, 4096, 512);
    trace_listen(NULL, NULL);
    trace(TRACE_LAIO_CO_SUBMIT, 1, 2, 3);
    assert_int_equal(n, 1);
    assert_int_equal(seen.request, 5);
    assert_int_equal(seen.offset, 4096);
    assert_int_equal(seen.bytes, 512);
    assert_true(seen.time_ns > 0);
    assert_string_equal(trace_point_info[seen.point].name, "laio_co_submit");
    assert_int_equal(trace_point_info[seen.point].step, 8);
}

static void calls_run_on_the_thread(void *opaque)
{
    *(struct loop **)opaque = loop_current();
}

static void calls_sleep_on_the_thread(void *opaque)
{
    co_wake(co_self());
    co_yield ();
    *(struct loop **)opaque = loop_current();
}

static void iothread_calls_return_when_done(void **state)
{
    struct iothread *thread = iothread_start("name of fifteen characters", 0, NULL);
    struct loop *ran_on = NULL;

    assert_non_null(thread);
    assert_ptr_not_equal(iothread_loop(thread), loop);
    iothread_call(thread, calls_run_on_the_thread, &ran_on);
    assert_ptr_equal(ran_on, iothread_loop(thread));
    ran_on = NULL;
    iothread_call_coroutine(thread, calls_sleep_on_the_thread, &ran_on);
    assert_ptr_equal(ran_on, iothread_loop(thread));
    iothread_stop(thread);
}

/* Filters of containers that do not know epoll_pwait2 refuse it with EPERM. */
static int without_epoll_pwait2(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_epoll_pwait2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof(code) / sizeof(code[0]), code};
    static bool came;
    uint64_t one = 1;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct loop_fd handler = {.fd = fd, .on_readable = came_in, .opaque = &came};
    struct loop_timer timer = {.fire = came_in, .opaque = &(bool){false}};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
        return 2;
    if (loop_fd_add(loop, &handler) < 0 || write(fd, &one, sizeof(one)) != sizeof(one))
        return 3;
    loop_timer_arm(loop, &timer, world_now_ns() + 3600000000000u); /* so that there is a time to sleep */
    loop_turn(loop, true);
    return came ? 0 : 1;
}

static void a_filter_that_refuses_the_newer_epoll_does_not_make_the_loop_deaf(void **state)
{
    int status = -1;
    pid_t child = fork();

    if (child == 0)
        _exit(without_epoll_pwait2());
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_turn_runs_descriptors_bottom_halves_timers_coroutines_deferred),
        cmocka_unit_test(deferred_runs_once_however_often_asked_for),
        cmocka_unit_test(what_defers_itself_for_ever_does_not_hold_the_turn),
        cmocka_unit_test(a_handler_removed_by_another_does_not_run),
        cmocka_unit_test(a_handler_that_removes_itself_gets_no_second_callback),
        cmocka_unit_test(update_turns_callbacks_on_and_off),
        cmocka_unit_test(a_file_that_epoll_does_not_take_is_an_error),
        cmocka_unit_test(an_edge_triggered_handler_runs_once_a_signal),
        cmocka_unit_test(timers_fire_in_order_moved_and_cancelled_ones_too),
        cmocka_unit_test(timers_of_one_deadline_fire_as_they_were_armed),
        cmocka_unit_test(a_timer_that_arms_itself_has_one_turn_a_time),
        cmocka_unit_test(a_bottom_half_scheduled_while_it_runs_runs_again_next_turn),
        cmocka_unit_test(a_cancelled_bottom_half_does_not_run),
        cmocka_unit_test(bottom_halves_from_four_threads_are_not_lost),
        cmocka_unit_test(kick_ends_a_sleep),
        cmocka_unit_test(stop_from_a_signal_handler_ends_the_run),
        cmocka_unit_test(attachments_die_with_their_loop_latest_key_first),
        cmocka_unit_test(several_loops_may_take_turns_in_one_thread),
        cmocka_unit_test(no_more_loops_than_the_bound),
        cmocka_unit_test(a_filter_that_refuses_the_newer_epoll_does_not_make_the_loop_deaf),
        cmocka_unit_test(errors_are_sentences),
        cmocka_unit_test(trace_points_reach_the_sink_and_have_names),
        cmocka_unit_test(iothread_calls_return_when_done),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
