/*
 * The back end (host/block/backend.c): requests from several loops, drain, parking, accounting, throttling.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/backend.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/iothread.h"
#include "host/runtime/loop.h"
#include "tests/unit/fake_disk.h"

#define DISK_BYTES (1024u * 1024u)

static struct loop *loop;
static struct fake_disk disk;
static struct blk *blk;

struct request {
    struct blk_request blk;
    struct iovec iov;
    char data[512];
    int result;
    unsigned completions;
};

static unsigned completed; /* atomic */

static void on_complete(struct blk_request *blk_request, int result)
{
    struct request *request = (struct request *)blk_request;
    request->result = result;
    request->completions++;
    __atomic_fetch_add(&completed, 1, __ATOMIC_SEQ_CST);
}

static void open_entry(void *arg)
{
    struct node *node;
    assert_int_equal(fake_disk_open(&disk, &node), 0);
    blk = blk_new(node);
    assert_non_null(blk);
}

static int setup(void **state)
{
    loop = loop_create("test", NULL);
    completed = 0;
    return loop ? 0 : -1;
}

static int teardown(void **state)
{
    co_pool_set_limit(0);
    loop_destroy(loop);
    return 0;
}

static void up(struct fake_disk with)
{
    disk = with;
    disk.length = DISK_BYTES;
    assert_int_equal(loop_run_coroutine(loop, open_entry, NULL), 0);
}

static void down(void)
{
    assert_int_equal(blk_close(blk), 0);
    assert_int_equal(disk.broken_promises, 0);
    assert_int_equal(disk.active, 0);
    fake_disk_free(&disk);
}

static void submit_read(struct request *request, uint64_t offset)
{
    request->blk.complete = on_complete;
    request->iov = (struct iovec){request->data, sizeof(request->data)};
    blk_aio_preadv(blk, &request->blk, offset, sizeof(request->data), &request->iov, 1);
}

static void submit_write(struct request *request, uint64_t offset)
{
    request->blk.complete = on_complete;
    request->iov = (struct iovec){request->data, sizeof(request->data)};
    blk_aio_pwritev(blk, &request->blk, offset, sizeof(request->data), &request->iov, 1, 0);
}

static void turn_until(unsigned count)
{
    while (__atomic_load_n(&completed, __ATOMIC_SEQ_CST) < count)
        loop_turn(loop, true);
}

static void requests_complete_on_their_loop_and_are_counted(void **state)
{
    struct request requests[4] = {0};
    struct blk_op_stats stats[BLK_OP_COUNT];
    up((struct fake_disk){.delay_ns = 1000});
    memset(requests[0].data, 'w', sizeof(requests[0].data));
    submit_write(&requests[0], 4096);
    turn_until(1);
    submit_read(&requests[1], 4096);
    requests[2].blk.complete = on_complete;
    blk_aio_flush(blk, &requests[2].blk);
    requests[3].blk.complete = on_complete;
    blk_aio_pdiscard(blk, &requests[3].blk, 0, 8192);
    turn_until(4);
    assert_memory_equal(requests[0].data, requests[1].data, sizeof(requests[0].data));
    blk_stats(blk, stats);
    assert_int_equal(stats[BLK_WRITE].operations, 1);
    assert_int_equal(stats[BLK_WRITE].bytes, 512);
    assert_int_equal(stats[BLK_READ].operations, 1);
    assert_int_equal(stats[BLK_FLUSH].operations, 1);
    assert_int_equal(stats[BLK_DISCARD].bytes, 8192);
    assert_true(stats[BLK_READ].total_ns >= 1000 && stats[BLK_READ].max_ns == stats[BLK_READ].total_ns);
    uint64_t sum = 0;
    for (unsigned i = 0; i < BLK_LATENCY_BUCKETS; i++)
        sum += stats[BLK_READ].latency[i];
    assert_int_equal(sum, 1);
    assert_int_equal(blk_in_flight(blk), 0);
    blk_account_merged(blk, BLK_READ, 3);
    blk_account_invalid(blk, BLK_WRITE);
    blk_stats(blk, stats);
    assert_int_equal(stats[BLK_READ].merged, 3);
    assert_int_equal(stats[BLK_WRITE].invalid, 1);
    down();
}

static void latency_classes_are_where_they_say(void **state)
{
    for (unsigned i = 0; i < BLK_LATENCY_BUCKETS; i++) {
        uint64_t low = blk_latency_bucket_ns(i);
        assert_int_equal(blk_latency_bucket(low), i);
        if (i > 0)
            assert_int_equal(blk_latency_bucket(low - 1), i - 1);
    }
    assert_int_equal(blk_latency_bucket(UINT64_MAX), BLK_LATENCY_BUCKETS - 1);
}

static void requests_that_cannot_be_end_at_once(void **state)
{
    static const struct {
        uint64_t offset, bytes;
    } bad[] = {{DISK_BYTES, 512},
               {DISK_BYTES - 256, 512},
               {UINT64_MAX, 512},
               {UINT64_MAX - 511, 512},
               {512, UINT64_MAX}};
    struct request r = {.blk.complete = on_complete};
    up((struct fake_disk){0});
    for (unsigned i = 0; i < 5; i++) {
        blk_aio_preadv(blk, &r.blk, bad[i].offset, bad[i].bytes, &r.iov, 1);
        assert_int_equal(r.result, -EIO);
        blk_aio_pwritev(blk, &r.blk, bad[i].offset, bad[i].bytes, &r.iov, 1, 0);
        assert_int_equal(r.result, -EIO);
        blk_aio_pwrite_zeroes(blk, &r.blk, bad[i].offset, bad[i].bytes, 0);
        assert_int_equal(r.result, -EIO);
        blk_aio_pdiscard(blk, &r.blk, bad[i].offset, bad[i].bytes);
        assert_int_equal(r.result, -EIO);
    }
    assert_int_equal(r.completions, 20);
    struct blk_op_stats stats[BLK_OP_COUNT];
    blk_stats(blk, stats);
    assert_int_equal(stats[BLK_READ].invalid, 5);
    down();
    up((struct fake_disk){.read_only = true});
    blk_aio_pwritev(blk, &r.blk, 0, 512, &r.iov, 1, 0);
    assert_int_equal(r.result, -EPERM);
    down();
}

static void write_through_makes_every_write_durable(void **state)
{
    struct request r = {0};
    up((struct fake_disk){.fua = true});
    assert_true(blk_write_cache(blk));
    submit_write(&r, 0);
    blk_set_write_cache(blk, false);
    assert_false(blk_write_cache(blk));
    submit_write(&r, 0);
    turn_until(2);
    assert_int_equal(disk.record[0].flags, 0);
    assert_int_equal(disk.record[1].flags, NODE_IO_FUA);
    down();
}

/* ---- no coroutine to be had ---- */

static void requests_wait_for_a_coroutine_in_order(void **state)
{
    static struct request requests[40];
    memset(requests, 0, sizeof(requests));
    up((struct fake_disk){.hold = true});
    co_pool_drain_thread();
    co_pool_set_limit(4);
    for (unsigned i = 0; i < 40; i++)
        submit_read(&requests[i], 512 * i);
    assert_true(disk.active <= 4);
    assert_int_equal(blk_in_flight(blk), 40);
    fake_disk_release(&disk);
    turn_until(40);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(requests[i].result, 0);
        assert_int_equal(requests[i].completions, 1);
        assert_int_equal(disk.record[i].offset, 512 * i);
    }
    co_pool_set_limit(0);
    down();
}

/* A loop can be destroyed as soon as its requests are done: the timer for those that waited is gone by then.
 */
static void nothing_is_left_of_the_wait_for_a_coroutine(void **state)
{
    struct request requests[8] = {0};
    up((struct fake_disk){.hold = true});
    co_pool_drain_thread();
    co_pool_set_limit(1);
    for (unsigned i = 0; i < 8; i++)
        submit_read(&requests[i], 512 * i);
    assert_int_equal(disk.active, 1);
    assert_int_not_equal(loop_next_deadline(loop), UINT64_MAX);
    fake_disk_release(&disk);
    turn_until(8);
    assert_int_equal(loop_next_deadline(loop), UINT64_MAX);
    co_pool_set_limit(0);
    down();
}

static void held_entry(void *arg)
{
    co_yield ();
}

static void requests_go_on_when_others_have_all_coroutines(void **state)
{
    struct request r = {0};
    struct coroutine *others[4];
    up((struct fake_disk){0});
    co_pool_drain_thread();
    co_pool_set_limit(4);
    unsigned n = 0;
    while (n < 4 && (others[n] = co_create(held_entry, NULL)))
        co_enter(others[n++]);
    submit_read(&r, 0);
    loop_turn(loop, false);
    assert_int_equal(r.completions, 0);
    while (n > 0)
        co_wake(others[--n]);
    turn_until(1); /* nobody of ours ends: the timer sees to it */
    assert_int_equal(r.result, 0);
    co_pool_set_limit(0);
    down();
}

/* ---- drain ---- */

static bool drained;

static void drain_entry(void *arg)
{
    blk_co_drain_begin(blk);
    drained = true;
}

static void drain_waits_for_what_is_in_flight_and_parks_what_comes(void **state)
{
    struct request first = {0}, second = {0};
    up((struct fake_disk){.hold = true});
    drained = false;
    submit_read(&first, 0);
    co_enter(co_create(drain_entry, NULL));
    assert_false(drained);
    submit_read(&second, 512);
    assert_int_equal(disk.calls[FAKE_READ], 1);
    fake_disk_release(&disk);
    while (!drained)
        loop_turn(loop, true);
    assert_int_equal(first.completions, 1);
    assert_int_equal(second.completions, 0);
    drained = false;
    co_enter(co_create(drain_entry, NULL)); /* nests */
    assert_true(drained);
    blk_drain_end(blk);
    loop_turn(loop, false);
    assert_int_equal(second.completions, 0);
    blk_drain_end(blk);
    turn_until(2);
    assert_int_equal(second.result, 0);
    down();
}

static unsigned resizes;

static void on_resize(void *opaque)
{
    assert_int_equal(blk_length(blk), 2 * DISK_BYTES);
    resizes++;
}

static void resize_entry(void *arg)
{
    struct error err = {""};
    assert_int_equal(blk_co_resize(blk, 1000, &err), -EINVAL);
    assert_true(err.text[0]);
    assert_int_equal(blk_co_resize(blk, 2ull * DISK_BYTES, &err), 0);
}

static void a_resize_waits_for_requests_and_is_announced(void **state)
{
    struct request r = {0};
    up((struct fake_disk){.hold = true});
    resizes = 0;
    blk_on_resize(blk, on_resize, NULL);
    submit_read(&r, 0);
    co_enter(co_create(resize_entry, NULL));
    assert_int_equal(disk.calls[FAKE_TRUNCATE], 0);
    fake_disk_release(&disk);
    turn_until(1);
    while (!resizes)
        loop_turn(loop, true);
    submit_read(&r, 2 * DISK_BYTES - 512);
    turn_until(2);
    assert_int_equal(r.result, 0);
    down();
}

/* ---- several loops ---- */

#define THREADS  3
#define DEPTH    8
#define REQUESTS 3000u

struct client {
    struct iothread *thread;
    struct request requests[DEPTH];
    unsigned number, submitted, ended;
};

static struct client clients[THREADS];

static void client_submit(struct client *client, struct request *request);

static void client_complete(struct blk_request *blk_request, int result)
{
    struct request *request = (struct request *)blk_request;
    struct client *client = &clients[0];
    while (request < client->requests || request >= client->requests + DEPTH)
        client++;
    if (result != 0)
        request->result = result;
    client->ended++;
    if (client->submitted < REQUESTS)
        client_submit(client, request);
    __atomic_fetch_add(&completed, 1, __ATOMIC_SEQ_CST);
    loop_kick(loop);
}

static void client_submit(struct client *client, struct request *request)
{
    unsigned slot = (unsigned)(request - client->requests);
    uint64_t offset = (client->number * DEPTH + slot) * 512ull;
    client->submitted++;
    request->blk.complete = client_complete;
    request->iov = (struct iovec){request->data, sizeof(request->data)};
    if (client->submitted % 64 == 0)
        blk_aio_flush(blk, &request->blk);
    else if (client->submitted % 3)
        blk_aio_preadv(blk, &request->blk, offset, 512, &request->iov, 1);
    else
        blk_aio_pwritev(blk, &request->blk, offset, 512, &request->iov, 1, 0);
}

static void client_start(void *arg)
{
    struct client *client = arg;
    for (unsigned i = 0; i < DEPTH; i++)
        client_submit(client, &client->requests[i]);
}

static void drain_often(void *arg)
{
    while (__atomic_load_n(&completed, __ATOMIC_SEQ_CST) < THREADS * REQUESTS) {
        blk_co_drain_begin(blk);
        spin_lock(&disk.guard);
        assert_int_equal(disk.active, 0);
        spin_unlock(&disk.guard);
        unsigned before = __atomic_load_n(&completed, __ATOMIC_SEQ_CST);
        co_sleep_ns(200000);
        assert_int_equal(__atomic_load_n(&completed, __ATOMIC_SEQ_CST), before);
        blk_drain_end(blk);
        co_sleep_ns(200000);
    }
}

static void nothing(void *arg)
{
}

static void drains_hold_across_loops(void **state)
{
    up((struct fake_disk){.delay_ns = 20000});
    memset(clients, 0, sizeof(clients));
    for (unsigned i = 0; i < THREADS; i++) {
        clients[i].number = i;
        clients[i].thread = iothread_start("client", 0, NULL);
        assert_non_null(clients[i].thread);
    }
    for (unsigned i = 0; i < THREADS; i++)
        iothread_call(clients[i].thread, client_start, &clients[i]);
    assert_int_equal(loop_run_coroutine(loop, drain_often, NULL), 0);
    turn_until(THREADS * REQUESTS);
    for (unsigned i = 0; i < THREADS; i++) {
        iothread_call(clients[i].thread, nothing, NULL);
        iothread_stop(clients[i].thread);
        assert_int_equal(clients[i].ended, REQUESTS);
        for (unsigned j = 0; j < DEPTH; j++)
            assert_int_equal(clients[i].requests[j].result, 0);
    }
    struct blk_op_stats stats[BLK_OP_COUNT];
    blk_stats(blk, stats);
    assert_int_equal(stats[BLK_READ].operations + stats[BLK_WRITE].operations + stats[BLK_FLUSH].operations,
                     THREADS * REQUESTS);
    down();
}

/* ---- throttling ---- */

#define SECOND 1000000000ull

static void rates_hold_over_time(void **state)
{
    struct throttle_config config;
    struct throttle throttle = {0};
    struct error err;
    assert_int_equal(throttle_parse("iops=100,bps=1M", &config, &err), 0);
    throttle_set(&throttle, &config);
    uint64_t now = 5 * SECOND, go = now;
    /* 1000 operations of 512 bytes: the operations limit. */
    for (unsigned i = 0; i < 1000; i++)
        go = throttle_reserve(&throttle, false, 512, now);
    assert_in_range(go - now, 9800000000ull, 10 * SECOND);
    /* Eight of 1 MiB at 1 MiB a second, after a rest. */
    now += 60 * SECOND;
    for (unsigned i = 0; i < 9; i++)
        go = throttle_reserve(&throttle, true, 1 << 20, now);
    assert_in_range(go - now, 7800000000ull, 8 * SECOND);
}

static void bursts_last_as_long_as_they_may(void **state)
{
    struct throttle_config config;
    struct throttle throttle = {0};
    assert_int_equal(throttle_parse("iops=100,iops-max=1000,iops-max-length=2", &config, NULL), 0);
    throttle_set(&throttle, &config);
    uint64_t now = SECOND, go = now;
    unsigned in_two_seconds = 0;
    for (unsigned i = 0; i < 5000; i++) {
        go = throttle_reserve(&throttle, false, 1, now);
        in_two_seconds += go < now + 2 * SECOND;
    }
    assert_in_range(in_two_seconds, 1900, 2200);         /* 2 seconds at the rate of bursts */
    assert_in_range(go - now, 30 * SECOND, 33 * SECOND); /* the other 3000 at the average */
}

static void reads_and_writes_have_limits_of_their_own(void **state)
{
    struct throttle_config config;
    struct throttle throttle = {0};
    assert_int_equal(throttle_parse("iops-write=10,iops-size=4k", &config, NULL), 0);
    throttle_set(&throttle, &config);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(throttle_reserve(&throttle, false, 512, SECOND), SECOND);
    assert_int_equal(throttle_reserve(&throttle, true, 40 * 1024, SECOND), SECOND); /* counts as ten */
    assert_in_range(throttle_reserve(&throttle, true, 512, SECOND) - SECOND, SECOND * 8 / 10, SECOND);
    assert_int_equal(throttle_parse("bps=1", &config, NULL), 0);
    throttle_set(&throttle, &config);
    for (uint64_t i = 0, before = SECOND, go; i < 20; i++, before = go) { /* no sum comes round to now */
        go = throttle_reserve(&throttle, true, 1ull << 40, SECOND);
        assert_true(go >= before);
    }
    throttle_set(&throttle, NULL);
    assert_int_equal(throttle.active, 0);
}

static void throttle_lists_are_checked(void **state)
{
    static const char *const bad[] = {"iops",
                                      "iops=x",
                                      "iops=-1",
                                      "speed=3",
                                      "iops-max=5",
                                      "=3",
                                      "iops=5,iops-max=3",
                                      "iops=5,iops-max-length=3",
                                      "bps-max-length=99999999,bps=1,bps-max=2",
                                      "iops=99999999999999"};
    struct throttle_config config;
    struct error err;
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        err.text[0] = '\0';
        assert_int_equal(throttle_parse(bad[i], &config, &err), -EINVAL);
        assert_true(err.text[0] != '\0');
    }
    assert_int_equal(throttle_parse("", &config, &err), 0);
}

static void a_throttled_back_end_is_slower_and_right(void **state)
{
    static struct request requests[60];
    struct throttle_config config;
    memset(requests, 0, sizeof(requests));
    up((struct fake_disk){0});
    assert_int_equal(throttle_parse("iops=1000", &config, NULL), 0);
    blk_set_throttle(blk, &config);
    for (unsigned i = 0; i < 60; i++)
        submit_write(&requests[i], 512 * i);
    turn_until(60);
    for (unsigned i = 0; i < 60; i++)
        assert_int_equal(disk.record[i].offset, 512 * i);
    down();
}

static void a_drain_waits_for_no_tokens(void **state)
{
    static struct request requests[8];
    struct throttle_config config;
    memset(requests, 0, sizeof(requests));
    up((struct fake_disk){0});
    assert_int_equal(throttle_parse("bps=1", &config, NULL), 0);
    blk_set_throttle(blk, &config);
    for (unsigned i = 0; i < 8; i++)
        submit_write(&requests[i], 512 * i);
    loop_turn(loop, false);
    assert_int_equal(blk_in_flight(blk), 7);
    drained = false;
    co_enter(co_create(drain_entry, NULL));
    while (!drained)
        loop_turn(loop, true);
    assert_int_equal(completed, 8);
    blk_drain_end(blk);
    down();
}

static void in_a_hurry_nobody_waits_for_tokens(void **state)
{
    static struct request requests[8];
    struct throttle_config config;
    memset(requests, 0, sizeof(requests));
    up((struct fake_disk){0});
    assert_int_equal(throttle_parse("bps=1", &config, NULL), 0);
    blk_set_throttle(blk, &config);
    for (unsigned i = 0; i < 7; i++)
        submit_write(&requests[i], 512 * i);
    loop_turn(loop, false);
    assert_int_equal(blk_in_flight(blk), 6);
    blk_hurry_begin(blk);
    submit_write(&requests[7], 512 * 7);
    turn_until(8);
    blk_hurry_end(blk);
    down();
}

static void limits_that_are_lifted_let_go_of_who_waits(void **state)
{
    struct request requests[2] = {0};
    struct throttle_config config;
    up((struct fake_disk){0});
    assert_int_equal(throttle_parse("bps=1", &config, NULL), 0);
    blk_set_throttle(blk, &config);
    submit_write(&requests[0], 0);
    submit_write(&requests[1], 512);
    loop_turn(loop, false);
    assert_int_equal(requests[1].completions, 0);
    assert_int_equal(throttle_parse("bps=1G", &config, NULL), 0);
    blk_set_throttle(blk, &config);
    turn_until(2);
    assert_int_equal(requests[1].result, 0);
    down();
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(requests_complete_on_their_loop_and_are_counted),
        cmocka_unit_test(latency_classes_are_where_they_say),
        CASE(requests_that_cannot_be_end_at_once),
        CASE(write_through_makes_every_write_durable),
        CASE(requests_wait_for_a_coroutine_in_order),
        CASE(nothing_is_left_of_the_wait_for_a_coroutine),
        CASE(requests_go_on_when_others_have_all_coroutines),
        CASE(drain_waits_for_what_is_in_flight_and_parks_what_comes),
        CASE(a_resize_waits_for_requests_and_is_announced),
        CASE(drains_hold_across_loops),
        cmocka_unit_test(rates_hold_over_time),
        cmocka_unit_test(bursts_last_as_long_as_they_may),
        cmocka_unit_test(reads_and_writes_have_limits_of_their_own),
        cmocka_unit_test(throttle_lists_are_checked),
        CASE(a_throttled_back_end_is_slower_and_right),
        CASE(a_drain_waits_for_no_tokens),
        CASE(in_a_hurry_nobody_waits_for_tokens),
        CASE(limits_that_are_lifted_let_go_of_who_waits),
    };
    return cmocka_run_group_tests_name("block back end", tests, NULL, NULL);
}
