/*
 * Two requests to one qcow2 cluster at a time: writers that share a cluster which has to be allocated or
 * copied, one of them failing, and discards beside them.
 *
 * The disk takes its time for each request, and the second request comes after each step of the first in
 * turn. Afterwards both have what they wrote, or what their error allows; freed clusters are put to use
 * again, and what is in use stays as it is; check finds nothing wrong.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/qcow2_rig.h"

#define CLUSTER   4096u
#define STEPS_MAX 24u
#define SIZE      (1u << 20)

static void make_image(void)
{
    load_image(&(struct qcow2_create_options){.size = SIZE, .cluster_bytes = CLUSTER});
    disk.punches = true;
    assert_int_equal(open_image(), 0);
}

/* ---- requests beside each other ---- */

struct request {
    bool discard, zeroes;
    uint64_t offset, bytes;
    int fill, result;
    bool done;
};

static void request_body(void *arg)
{
    struct request *r = arg;
    char buf[4 * CLUSTER];
    memset(buf, r->fill, r->bytes);
    r->result = r->discard  ? node_co_pdiscard(node, r->offset, r->bytes)
                : r->zeroes ? node_co_pwrite_zeroes(node, r->offset, r->bytes, NODE_IO_MAY_UNMAP)
                            : node_co_pwrite(node, r->offset, buf, r->bytes, 0);
    r->done = true;
}

static void spawn(struct request *r)
{
    struct coroutine *co = co_create(request_body, r);
    assert_non_null(co);
    co_enter(co);
}

static uint64_t calls(void)
{
    uint64_t all = 0;
    for (unsigned op = 0; op < FAKE_OPS; op++)
        all += disk.calls[op];
    return all;
}

/* SECOND begins when FIRST has asked the disk for STEP things. */
static void side_by_side(struct request *first, struct request *second, unsigned step)
{
    uint64_t before = calls();
    disk.delay_ns = 50000;
    spawn(first);
    while (!first->done && calls() < before + step)
        co_sleep_ns(10000);
    spawn(second);
    while (!first->done || !second->done)
        co_sleep_ns(10000);
    disk.delay_ns = 0;
}

/* ---- judging ---- */

static uint8_t byte_at(uint64_t offset)
{
    uint8_t byte;
    assert_int_equal(node_co_pread(node, offset, &byte, 1), 0);
    return byte;
}

static bool all_are(uint64_t offset, uint64_t bytes, int fill)
{
    uint8_t buf[4 * CLUSTER];
    assert_int_equal(node_co_pread(node, offset, buf, bytes), 0);
    for (uint64_t i = 0; i < bytes; i++)
        if (buf[i] != fill)
            return false;
    return true;
}

/* What was freed is given out again, and does not take anything with it. The first four clusters hold what
 * they hold. LEAKS: an error may have left some. */
static void settle_and_check(bool leaks)
{
    uint8_t was[4 * CLUSTER], is[4 * CLUSTER];
    struct qcow2_check result;
    struct error err = {""};
    assert_int_equal(node_co_pread(node, 0, was, sizeof(was)), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(node_co_flush(node), 0);
        write_at((16 + 4 * i) * CLUSTER, 4 * CLUSTER, 0x70 + (int)i);
    }
    assert_int_equal(node_co_pread(node, 0, is, sizeof(is)), 0);
    assert_memory_equal(is, was, sizeof(is));
    for (unsigned i = 0; i < 4; i++)
        assert_true(all_are((16 + 4 * i) * CLUSTER, 4 * CLUSTER, 0x70 + (int)i));
    assert_int_equal(disk.overlaps, 0);
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(open_image_as(&(struct open_options){RIG_OPTIONS, .check_only = true}), 0);
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
    assert_int_equal(result.check_errors, 0);
    assert_int_equal(result.corruptions, 0);
    if (!leaks)
        assert_int_equal(result.leaks, 0);
    assert_int_equal(node_co_pread(node, 0, is, sizeof(is)), 0);
    assert_memory_equal(is, was, sizeof(is));
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

/* ---- cases ---- */

/* A cluster that is not there yet, or (SHARED) that a snapshot holds as well, and has to be copied. */
static bool shared;

static void begin(void)
{
    make_image();
    if (!shared)
        return;
    write_at(0, 2 * CLUSTER, 0x11);
    assert_int_equal(qcow2_co_snapshot_create(node, "before", NULL), 0);
}

static void two_writers_body(void *arg)
{
    const int below = shared ? 0x11 : 0;
    for (unsigned step = 0; step < STEPS_MAX; step++) {
        struct request first = {.offset = 512, .bytes = 512, .fill = 0x21};
        struct request second = {.offset = 2048, .bytes = 3072, .fill = 0x32}; /* and into the next one */
        begin();
        side_by_side(&first, &second, step);
        assert_int_equal(first.result, 0);
        assert_int_equal(second.result, 0);
        assert_true(all_are(0, 512, below));
        assert_true(all_are(512, 512, 0x21));
        assert_true(all_are(1024, 1024, below));
        assert_true(all_are(2048, 3072, 0x32));
        assert_true(all_are(5120, 3072, below));
        settle_and_check(false);
    }
}

static void two_writers_share_a_cluster_that_is_being_made(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        shared = i;
        in_coroutine(two_writers_body);
    }
}

/* The first fails at one of its writes to the disk; the second is not to lose what it used of it. */
static unsigned failing;

static void one_fails_body(void *arg)
{
    const int below = shared ? 0x11 : 0;
    for (unsigned step = 0; step < STEPS_MAX; step++) {
        struct request first = {.offset = 512, .bytes = 512, .fill = 0x21};
        struct request second = {.offset = 2048, .bytes = 1024, .fill = 0x32};
        begin();
        disk.error[FAKE_WRITE] = -EIO;
        disk.error_skip[FAKE_WRITE] = disk.calls[FAKE_WRITE] + failing;
        disk.error_times[FAKE_WRITE] = 1;
        side_by_side(&first, &second, step);
        disk.error[FAKE_WRITE] = 0;
        assert_true(first.result == 0 || second.result == 0);
        if (second.result == 0)
            assert_true(all_are(2048, 1024, 0x32));
        if (first.result == 0)
            assert_true(all_are(512, 512, 0x21));
        assert_int_equal(byte_at(0), below);
        assert_int_equal(byte_at(CLUSTER - 1), below);
        settle_and_check(true);
    }
}

static void a_writer_that_fails_takes_nothing_from_the_other(void **state)
{
    for (unsigned i = 0; i < 2; i++)
        for (failing = 0; failing < 3; failing++) {
            shared = i;
            in_coroutine(one_fails_body);
        }
}

/* Either order is right for requests that are in flight together; half of each is not. */
static void discard_and_write_body(void *arg)
{
    const bool discard_first = arg;
    for (unsigned step = 0; step < STEPS_MAX; step++) {
        struct request discard = {.discard = true, .offset = 0, .bytes = 2 * CLUSTER};
        struct request write = {.offset = 0, .bytes = CLUSTER, .fill = 0x21};
        begin();
        side_by_side(discard_first ? &discard : &write, discard_first ? &write : &discard, step);
        assert_int_equal(discard.result, 0);
        assert_int_equal(write.result, 0);
        assert_true(all_are(0, CLUSTER, 0x21) || all_are(0, CLUSTER, 0));
        settle_and_check(false);
    }
}

static void discard_first_body(void *arg)
{
    discard_and_write_body(&loop);
}

/* A part of a cluster is written, and with it what was around it, while all of it is made zero. */
static void zeroes_and_write_body(void *arg)
{
    const bool zeroes_first = arg;
    for (unsigned step = 0; step < STEPS_MAX; step++) {
        struct request zeroes = {.zeroes = true, .offset = 0, .bytes = 2 * CLUSTER};
        struct request write = {.offset = 512, .bytes = CLUSTER, .fill = 0x21};
        begin();
        side_by_side(zeroes_first ? &zeroes : &write, zeroes_first ? &write : &zeroes, step);
        assert_int_equal(zeroes.result, 0);
        assert_int_equal(write.result, 0);
        assert_true(all_are(0, 512, 0));
        assert_true(all_are(CLUSTER + 512, CLUSTER - 512, 0));
        for (unsigned part = 0; part < 2; part++) { /* each cluster by itself */
            uint64_t at = part ? CLUSTER : 512, bytes = part ? 512 : CLUSTER - 512;
            assert_true(all_are(at, bytes, 0x21) || all_are(at, bytes, 0));
        }
        settle_and_check(false);
    }
}

static void zeroes_first_body(void *arg)
{
    zeroes_and_write_body(&loop);
}

static void a_discard_does_not_overtake_a_write_that_allocates(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        shared = i;
        in_coroutine(discard_and_write_body);
        in_coroutine(discard_first_body);
        in_coroutine(zeroes_and_write_body);
        in_coroutine(zeroes_first_body);
    }
}

/* A cluster is freed, and its space is given back to the host some time later: not any more when it has come
 * back into use. */
static void used_again_body(void *arg)
{
    for (unsigned step = 0; step < STEPS_MAX; step++) {
        struct request discard = {.discard = true, .offset = 0, .bytes = CLUSTER};
        struct request write = {.offset = 0, .bytes = CLUSTER, .fill = 0x21};
        shared = false;
        begin();
        write_at(0, CLUSTER, 0x11);
        assert_int_equal(node_co_flush(node), 0);
        side_by_side(&discard, &write, step);
        for (unsigned i = 0; i < 6; i++) { /* its quarantine ends at some of these */
            struct request flush_beside = {
                .offset = (8 + i) * CLUSTER, .bytes = CLUSTER, .fill = 0x41 + (int)i};
            disk.delay_ns = 20000;
            spawn(&flush_beside);
            assert_int_equal(node_co_flush(node), 0);
            while (!flush_beside.done)
                co_sleep_ns(10000);
            disk.delay_ns = 0;
            assert_int_equal(flush_beside.result, 0);
        }
        for (unsigned i = 0; i < 6; i++)
            assert_true(all_are((8 + i) * CLUSTER, CLUSTER, 0x41 + (int)i));
        assert_true(all_are(0, CLUSTER, 0x21) || all_are(0, CLUSTER, 0));
        assert_true(disk.calls[FAKE_DISCARD] > 0);
        settle_and_check(false);
    }
}

static void space_that_came_back_into_use_is_not_given_back(void **state)
{
    in_coroutine(used_again_body);
}

/* ---- changes of the snapshots ---- */

struct change {
    int (*change)(struct node *node, const char *name, struct error *err);
    const char *name;
    int result;
    bool done;
};

static void change_body(void *arg)
{
    struct change *change = arg;
    change->result = change->change(node, change->name, NULL);
    change->done = true;
}

/* Whoever waits for another's change goes by the list of snapshots that this one leaves. */
static void snapshots_body(void *arg)
{
    struct change changes[] = {
        {.change = qcow2_co_snapshot_delete, .name = "a"}, {.change = qcow2_co_snapshot_delete, .name = "c"},
        {.change = qcow2_co_snapshot_apply, .name = "a"},  {.change = qcow2_co_snapshot_apply, .name = "b"},
        {.change = qcow2_co_snapshot_create, .name = "d"}, {.change = qcow2_co_snapshot_delete, .name = "a"}};
    const int results[] = {0, 0, -ENOENT, 0, 0, -ENOENT};
    struct qcow2_snapshot_info *list;
    size_t count;
    begin();
    write_at(0, CLUSTER, 0x11);
    assert_int_equal(qcow2_co_snapshot_create(node, "a", NULL), 0);
    write_at(0, CLUSTER, 0x22);
    assert_int_equal(qcow2_co_snapshot_create(node, "b", NULL), 0);
    write_at(0, CLUSTER, 0x33);
    assert_int_equal(qcow2_co_snapshot_create(node, "c", NULL), 0);
    disk.delay_ns = 20000;
    for (unsigned i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct coroutine *co = co_create(change_body, &changes[i]);
        assert_non_null(co);
        co_enter(co);
    }
    for (unsigned i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        while (!changes[i].done)
            co_sleep_ns(10000);
        assert_int_equal(changes[i].result, results[i]);
    }
    disk.delay_ns = 0;
    assert_int_equal(qcow2_snapshots(node, &list, &count), 0);
    assert_int_equal(count, 2);
    assert_string_equal(list[0].name, "b");
    assert_string_equal(list[1].name, "d");
    free(list);
    assert_true(all_are(0, CLUSTER, 0x22));
    settle_and_check(false);
}

static void a_change_of_snapshots_waits_for_another(void **state)
{
    in_coroutine(snapshots_body);
}

/* ---- growing that fails ---- */

struct growing {
    int result;
    bool done;
};

static void grow_body(void *arg)
{
    struct growing *g = arg;
    struct error err;
    g->result = node_co_truncate(node, 4 * SIZE, true, &err);
    g->done = true;
}

static void write_and_fill_disk(void *arg)
{
    request_body(arg);
    disk.error[FAKE_WRITE] = -ENOSPC;
}

/* The data file is shorter than the disk, and a write that is on its way makes it longer. */
static void growing_fails_body(void *arg)
{
    char path[] = "/tmp/qcow2_race_test.XXXXXX";
    struct request write = {.offset = 64 * CLUSTER, .bytes = CLUSTER, .fill = 0x11};
    struct growing growing = {0};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    load_image(&(struct qcow2_create_options){.size = SIZE, .cluster_bytes = CLUSTER, .data_file = path});
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(
        open_image_as(&(struct open_options){RIG_OPTIONS, .backing = BACKING_DIR, .backing_dir = "/tmp"}), 0);
    disk.delay_ns = 50000;
    struct coroutine *writer = co_create(write_and_fill_disk, &write),
                     *grower = co_create(grow_body, &growing);
    co_enter(writer);
    co_enter(grower);
    while (!growing.done)
        co_sleep_ns(10000);
    disk.delay_ns = 0;
    disk.error[FAKE_WRITE] = 0;
    assert_true(write.done);
    assert_int_equal(write.result, 0);
    assert_int_equal(growing.result, -ENOSPC);
    assert_true(all_are(64 * CLUSTER, CLUSTER, 0x11));
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    close(fd);
    unlink(path);
}

static void growing_that_fails_cuts_no_write_off(void **state)
{
    in_coroutine(growing_fails_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_writers_share_a_cluster_that_is_being_made),
        cmocka_unit_test(a_writer_that_fails_takes_nothing_from_the_other),
        cmocka_unit_test(a_discard_does_not_overtake_a_write_that_allocates),
        cmocka_unit_test(space_that_came_back_into_use_is_not_given_back),
        cmocka_unit_test(a_change_of_snapshots_waits_for_another),
        cmocka_unit_test(growing_that_fails_cuts_no_write_off),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
