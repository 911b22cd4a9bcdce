/*
 * Adaptive polling of the event loop, under a clock that the test moves.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>
#include <sys/epoll.h>

#include "host/runtime/loop.h"
#include "host/runtime/world.h"
#include "tests/unit/loop_rig.h"

static uint64_t fake_now, fake_step, fake_sleep;
static unsigned fake_waits;
static struct pollable {
    struct loop_fd handler;
    uint64_t ready_at;
    unsigned found, begun, ended;
    bool notify;
} pollable;

static uint64_t fake_now_ns(struct world *w)
{
    fake_now += fake_step;
    return fake_now;
}

/* Sleeping takes as long as the next event, which the descriptor tells. */
static int fake_wait(struct world *w, struct loop *l, int epoll_fd, struct epoll_event *events, int max,
                     int64_t timeout_ns)
{
    if (timeout_ns == 0)
        return world_host.wait(w, l, epoll_fd, events, max, 0);
    fake_waits++;
    assert_true(pollable.notify);
    fake_now += fake_sleep;
    if (fake_now < pollable.ready_at)
        fake_now = pollable.ready_at;
    signal_fd(pollable.handler.fd);
    return world_host.wait(w, l, epoll_fd, events, max, 0);
}

static struct world fake_world = {.now_ns = fake_now_ns, .wait = fake_wait};

static bool pollable_poll(void *opaque)
{
    return fake_now >= pollable.ready_at;
}

static void pollable_found(void *opaque)
{
    pollable.found++;
    pollable.ready_at = UINT64_MAX;
}

static void pollable_readable(void *opaque)
{
    clear_fd(pollable.handler.fd);
    if (pollable_poll(NULL))
        pollable_found(NULL);
}

static void pollable_begin(void *opaque)
{
    pollable.begun++;
    assert_true(pollable.notify);
    pollable.notify = false;
}

static void pollable_end(void *opaque)
{
    pollable.ended++;
    assert_false(pollable.notify);
    pollable.notify = true;
}

/* An event every INTERVAL_NS, N of them; the loop waits for each. */
static void events_every(uint64_t interval_ns, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned before = pollable.found;

        pollable.ready_at = fake_now + interval_ns;
        while (pollable.found == before)
            loop_turn(loop, true);
    }
}

static void begin_polling(uint64_t poll_max_ns)
{
    world = &fake_world;
    fake_now = 1000000;
    fake_step = 100;
    fake_sleep = 0;
    memset(&pollable, 0, sizeof(pollable));
    pollable.notify = true;
    pollable.ready_at = UINT64_MAX;
    pollable.handler = (struct loop_fd){
        .fd = new_eventfd(),
        .on_readable = pollable_readable,
        .poll = pollable_poll,
        .poll_ready = pollable_found,
        .poll_begin = pollable_begin,
        .poll_end = pollable_end,
    };
    assert_int_equal(loop_fd_add(loop, &pollable.handler), 0);
    loop_set_poll_max_ns(loop, poll_max_ns);
}

static void end_polling(void)
{
    loop_fd_remove(&pollable.handler);
    close(pollable.handler.fd);
    loop_set_poll_max_ns(loop, 0);
    world = &world_host;
}

static void polling_grows_while_it_would_pay_and_shrinks_when_it_does_not(void **state)
{
    struct loop_stats before, after;

    begin_polling(32000);
    /* Events come every 10 us: after the first few the loop finds them by polling. */
    events_every(10000, 10);
    assert_true(pollable.handler.poll_budget_ns >= 10000);
    assert_true(pollable.handler.poll_budget_ns <= 32000);
    fake_waits = 0;
    loop_stats(loop, &before);
    events_every(10000, 50);
    loop_stats(loop, &after);
    assert_int_equal(fake_waits, 0);
    assert_true(after.polls_hit - before.polls_hit >= 50);
    assert_int_equal(after.sleeps, before.sleeps);
    assert_true(pollable.begun > 0);

    /* Events come every millisecond: spinning stops. */
    events_every(1000000, 10);
    assert_int_equal(pollable.handler.poll_budget_ns, 0);
    assert_int_equal(pollable.begun, pollable.ended);
    loop_stats(loop, &before);
    events_every(1000000, 10);
    loop_stats(loop, &after);
    assert_int_equal(after.polls_missed, before.polls_missed);
    assert_int_equal(after.polls_hit, before.polls_hit);
    assert_int_equal(after.sleeps - before.sleeps, 10);

    /* And it begins anew. */
    events_every(10000, 10);
    assert_true(pollable.handler.poll_budget_ns >= 10000);
    end_polling();
}

static void polling_that_is_off_never_spins_nor_turns_notifications_off(void **state)
{
    begin_polling(0);
    events_every(1000, 20);
    assert_int_equal(pollable.begun, 0);
    assert_int_equal(pollable.handler.poll_budget_ns, 0);
    end_polling();
}

static void an_idle_loop_does_not_turn(void **state)
{
    struct loop_stats before, after;

    begin_polling(32000);
    events_every(10000, 10);
    /* The guest goes away. One spin, one sleep of an hour, and what wakes it finds the budget smaller. */
    fake_waits = 0;
    loop_stats(loop, &before);
    events_every(3600000000000ull, 1);
    loop_stats(loop, &after);
    assert_int_equal(fake_waits, 1);
    assert_true(after.turns - before.turns <= 2);
    assert_true(pollable.notify);
    assert_true(pollable.handler.poll_budget_ns < 32000);
    end_polling();
}

static void polling_does_not_delay_a_timer(void **state)
{
    char mark = 't';
    struct loop_timer timer = {.fire = note_opaque, .opaque = &mark};
    uint64_t armed;

    begin_polling(32000);
    events_every(20000, 10);
    order[0] = '\0';
    armed = fake_now + 5000;
    loop_timer_arm(loop, &timer, armed);
    pollable.ready_at = fake_now + 25000;
    while (!order[0])
        loop_turn(loop, true);
    assert_true(fake_now < armed + 3000);
    end_polling();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(polling_grows_while_it_would_pay_and_shrinks_when_it_does_not),
        cmocka_unit_test(polling_that_is_off_never_spins_nor_turns_notifications_off),
        cmocka_unit_test(an_idle_loop_does_not_turn),
        cmocka_unit_test(polling_does_not_delay_a_timer),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
