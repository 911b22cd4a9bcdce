/*
 * linux-aio: batches, file systems that complete inside io_submit, and faults that are put in front of the
 * kernel's calls through laio_kernel.
 */
#include "tests/unit/aio_rig.h"

/* A file of so many BYTES where linux-aio can be had, for requests of a loop that has not made any. */
static void begin(struct many *m, unsigned bytes)
{
    memset(m, 0, sizeof(*m));
    if (laio_probe() < 0)
        skip();
    fresh_loop();
    make_file(directories[1], bytes);
    m->file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m->file) {
        unlink(path);
        skip();
    }
    m->buffer = buffer_of(64 * 4096);
}

static void end(struct many *m)
{
    fresh_loop();
    host_file_close(m->file);
    free(m->buffer);
    unlink(path);
}

/* N reads at the same time. */
static void run(struct many *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        co_enter(co_create(one_of_many, m));
    while (m->ended < n)
        loop_turn(loop, true);
}

static void one_after_another(struct many *m, unsigned first, unsigned behind)
{
    for (unsigned i = first; i < behind; i++) {
        co_enter(co_create(one_of_many, m));
        while (m->ended <= i)
            loop_turn(loop, true);
    }
}

/* The first eight go ahead, so that the disk has something to do; the rest goes when the turn ends. */
static void a_turn_is_two_system_calls_and_completions_are_none(void **state)
{
    struct aio_stats before, after;
    struct many m;

    begin(&m, FILE_BYTES);
    aio_stats(&before);
    for (unsigned i = 0; i < 32; i++) {
        aio_stats(&after);
        assert_int_equal(after.submit_syscalls - before.submit_syscalls, i < 8 ? 0 : 1);
        co_enter(co_create(one_of_many, &m));
    }
    while (m.ended < 32)
        loop_turn(loop, true);
    aio_stats(&after);
    assert_int_equal(after.requests - before.requests, 32);
    assert_int_equal(after.submit_syscalls - before.submit_syscalls, 2);
    assert_int_equal(after.getevents_syscalls - before.getevents_syscalls, 0);
    end(&m);
}

/* Each completion starts the next: on tmpfs they are all complete when io_submit returns. */
static void chain(void *arg)
{
    struct many *m = arg;

    for (unsigned i = 0; i < 4000; i++) {
        struct iovec iov = {m->buffer, 4096};

        if (m->file->ops->co_preadv(m->file, &iov, 1, 0, 4096) < 0)
            m->failed++;
    }
    m->ended++;
}

static void tick(void *opaque)
{
    ++*(unsigned *)opaque;
}

static void synchronous_completions_neither_recurse_nor_starve_timers(void **state)
{
    struct many m;
    unsigned fired = 0;
    struct loop_timer timer = {.fire = tick, .opaque = &fired};

    begin(&m, 4096);
    loop_timer_arm(loop, &timer, world_now_ns());
    for (unsigned i = 0; i < 4; i++)
        co_enter(co_create(chain, &m));
    while (m.ended < 1)
        loop_turn(loop, true);
    assert_int_equal(fired, 1);
    while (m.ended < 4)
        loop_turn(loop, true);
    assert_int_equal(m.failed, 0);
    end(&m);
}

/* As many at a time as one io_getevents takes. */
static void short_chain(void *arg)
{
    struct many *m = arg;

    for (unsigned i = 0; i < 200; i++) {
        struct iovec iov = {m->buffer, 4096};

        if (m->file->ops->co_preadv(m->file, &iov, 1, 0, 4096) < 0)
            m->failed++;
    }
    m->ended++;
}

static struct loop_bh other_work;
static struct many *worked_beside;
static unsigned ended_before_other_work;

static void other_work_is_done(void *opaque)
{
    ended_before_other_work = worked_beside->ended;
}

static int getevents_beside_other_work(io_context_t context, long min, long max, struct io_event *events,
                                       struct timespec *timeout)
{
    if (!other_work.loop) {
        other_work = (struct loop_bh){.fn = other_work_is_done, .loop = loop};
        loop_bh_schedule(&other_work);
    }
    return kernel.getevents(context, min, max, events, timeout);
}

static void nor_do_they_where_the_ring_is_not_mapped(void **state)
{
    struct many m;

    begin(&m, 4096);
    laio_kernel.mapped_ring = false;
    laio_kernel.getevents = getevents_beside_other_work;
    worked_beside = &m;
    for (unsigned i = 0; i < 128; i++)
        co_enter(co_create(short_chain, &m));
    while (m.ended < 128)
        loop_turn(loop, true);
    assert_int_equal(m.failed, 0);
    assert_int_equal(ended_before_other_work, 0);
    end(&m);
}

static int submit_calls, submit_refuse, submit_error, submit_at_most;

static int submit_with_faults(io_context_t context, long n, struct iocb **iocbs)
{
    submit_calls++;
    if (submit_refuse > 0) {
        submit_refuse--;
        return -EAGAIN;
    }
    if (submit_error) {
        int error = submit_error;

        submit_error = 0;
        return error;
    }
    if (submit_at_most && n > submit_at_most)
        n = submit_at_most;
    return kernel.submit(context, n, iocbs);
}

static void fault_case(struct many *m, unsigned n)
{
    begin(m, FILE_BYTES);
    laio_kernel.submit = submit_with_faults;
    run(m, n);
    end(m);
}

static void eagain_with_nothing_in_flight_is_tried_again(void **state)
{
    struct many m;

    submit_refuse = 3;
    fault_case(&m, 8);
    assert_int_equal(m.failed, 0);
    assert_int_equal(submit_refuse, 0);
}

static void a_partial_submit_is_continued(void **state)
{
    struct many m;

    submit_at_most = 3;
    fault_case(&m, 50);
    submit_at_most = 0;
    assert_int_equal(m.failed, 0);
}

static void an_error_of_submit_fails_the_first_request_only(void **state)
{
    struct many m;

    submit_error = -EFAULT;
    fault_case(&m, 50);
    assert_int_equal(m.failed, 1);
}

/* Takes requests, and hands them to the kernel some milliseconds later. */
static struct iocb *late[64];
static long late_count;
static io_context_t late_context;
static struct loop_timer late_timer;

static void submit_late_ones(void *opaque)
{
    assert_int_equal(kernel.submit(late_context, late_count, late), late_count);
    late_count = 0;
}

static int submit_late(io_context_t context, long n, struct iocb **iocbs)
{
    assert_true(late_count + n <= 64);
    memcpy(late + late_count, iocbs, (size_t)n * sizeof(*iocbs));
    late_count += n;
    late_context = context;
    late_timer.fire = submit_late_ones;
    loop_timer_arm(loop, &late_timer, world_now_ns() + 3000000);
    return (int)n;
}

static void a_file_system_that_stops_being_synchronous_loses_no_request(void **state)
{
    struct many m;

    begin(&m, FILE_BYTES);
    /* Synchronous for long enough that nobody waits for the eventfd any more. */
    one_after_another(&m, 0, 64);
    assert_int_equal(m.failed, 0);
    for (unsigned round = 0; round < 3; round++) {
        m.started = m.ended = 0;
        laio_kernel.submit = submit_late;
        run(&m, 8);
        laio_kernel.submit = kernel.submit;
        assert_int_equal(m.failed, 0);
        one_after_another(&m, 8, 64);
    }
    end(&m);
}

/* The kernel moves the data inside io_submit then: it gets few at a time, and those that are done go on. */
static long largest_batch;
static unsigned ended_before_last;
static const struct many *watched;

static int submit_watched(io_context_t context, long n, struct iocb **iocbs)
{
    largest_batch = n > largest_batch ? n : largest_batch;
    ended_before_last = watched->ended;
    return kernel.submit(context, n, iocbs);
}

static void what_is_synchronous_goes_in_small_batches(void **state)
{
    struct aio_stats before, after;
    struct many m;

    begin(&m, FILE_BYTES);
    /* As tmpfs is, on any file system: everything has ended when io_submit returns. */
    one_after_another(&m, 0, 64);
    m.started = m.ended = 0;
    watched = &m;
    largest_batch = 0;
    laio_kernel.submit = submit_watched;
    aio_stats(&before);
    run(&m, 48);
    aio_stats(&after);
    laio_kernel = kernel;
    assert_int_equal(m.failed, 0);
    if (largest_batch == 48) {
        end(&m);
        skip(); /* this file system is not synchronous */
    }
    assert_int_equal(largest_batch, 16);
    assert_int_equal(after.submit_syscalls - before.submit_syscalls, 3);
    assert_int_equal(ended_before_last, 32);
    end(&m);
}

static int setup_refuses(int max_events, io_context_t *context)
{
    return -EAGAIN;
}

static unsigned set_ups, destructions;

static int setup_counted(int max_events, io_context_t *context)
{
    set_ups++;
    return kernel.setup(max_events, context);
}

static int destroy_counted(io_context_t context)
{
    destructions++;
    return kernel.destroy(context);
}

/* Giving a context back takes tens of milliseconds: a start must not. */
static void a_probe_gives_nothing_back(void **state)
{
    if (laio_probe() < 0)
        skip();
    laio_kernel.setup = setup_counted;
    laio_kernel.destroy = destroy_counted;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(laio_probe(), 0);
    assert_int_equal(set_ups, 1);
    assert_int_equal(destructions, 0);
}

/* (The last test: it is so for the rest of the process.) */
static void loops_of_a_process_that_ends_give_nothing_back(void **state)
{
    struct many m;

    begin(&m, FILE_BYTES);
    laio_kernel.destroy = destroy_counted;
    for (unsigned ends = 0; ends < 2; ends++) {
        destructions = 0;
        m.started = m.ended = 0;
        co_enter(co_create(one_of_many, &m));
        while (m.ended < 1)
            loop_turn(loop, true);
        if (ends)
            laio_process_ends();
        loop_destroy(loop);
        assert_int_equal(destructions, !ends);
        loop = loop_create("test", NULL);
    }
    end(&m);
}

static void a_loop_without_a_context_still_does_io(void **state)
{
    struct many m;

    begin(&m, FILE_BYTES);
    laio_kernel.setup = setup_refuses;
    run(&m, 4);
    assert_int_equal(m.failed, 0);
    assert_int_equal(laio_probe(), -EAGAIN);
    end(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_turn_is_two_system_calls_and_completions_are_none),
        cmocka_unit_test(synchronous_completions_neither_recurse_nor_starve_timers),
        cmocka_unit_test(nor_do_they_where_the_ring_is_not_mapped),
        cmocka_unit_test(eagain_with_nothing_in_flight_is_tried_again),
        cmocka_unit_test(a_partial_submit_is_continued),
        cmocka_unit_test(an_error_of_submit_fails_the_first_request_only),
        cmocka_unit_test(a_file_system_that_stops_being_synchronous_loses_no_request),
        cmocka_unit_test(what_is_synchronous_goes_in_small_batches),
        cmocka_unit_test(a_probe_gives_nothing_back),
        cmocka_unit_test(a_loop_without_a_context_still_does_io),
        cmocka_unit_test(loops_of_a_process_that_ends_give_nothing_back),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
