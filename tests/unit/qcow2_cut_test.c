/*
 * Images whose file ends before what their tables name does: a copy that was cut off, or a crash of somebody
 * who has mappings on the disk before the file is as long as that. What is written there stays.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/qcow2_rig.h"

#define CLUSTER 4096u

static uint64_t coroutine_fn co_host_of(uint64_t offset)
{
    uint64_t pnum, host;
    unsigned flags;
    assert_int_equal(node_co_block_status(node, offset, 512, &pnum, &flags, &host), 0);
    return flags & NODE_STATUS_OFFSET ? host : 0;
}

static void coroutine_fn co_expect(uint64_t offset, uint64_t bytes, int fill)
{
    uint8_t *buf = malloc(bytes);
    assert_int_equal(node_co_pread(node, offset, buf, bytes), 0);
    for (uint64_t i = 0; i < bytes; i++)
        assert_int_equal(buf[i], fill);
    free(buf);
}

/* 16 clusters of data, then all behind the first four of them is cut off. */
static void coroutine_fn co_cut_image(void)
{
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = CLUSTER});
    assert_int_equal(open_image(), 0);
    write_at(0, 16 * CLUSTER, 1);
    uint64_t end = co_host_of(4 * CLUSTER);
    assert_int_equal(co_host_of(15 * CLUSTER), end + 11 * CLUSTER);
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(disk.length, end + 12 * CLUSTER);
    disk.length = end;
    assert_int_equal(open_image(), 0);
}

static void written_body(void *arg)
{
    co_cut_image();
    write_at(10 * CLUSTER, 512, 2);
    assert_int_equal(node_co_flush(node), 0);
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(open_image(), 0);
    co_expect(3 * CLUSTER, CLUSTER, 1);
    co_expect(10 * CLUSTER, 512, 2);
    co_expect(10 * CLUSTER + 512, CLUSTER - 512, 0);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

/* Acknowledged and flushed, it was gone when the image had been closed. */
static void what_is_written_behind_the_end_is_not_cut_off(void **state) /* O1 */
{
    in_coroutine(written_body);
}

static void reused_body(void *arg)
{
    co_cut_image();
    uint64_t host = co_host_of(4 * CLUSTER);
    write_at(4 * CLUSTER, CLUSTER, 2);
    assert_int_equal(node_co_pdiscard(node, 4 * CLUSTER, CLUSTER), 0);
    assert_int_equal(node_co_flush(node), 0);
    /* The disk keeps what is discarded, as it may. */
    assert_int_equal(disk.data[host], 2);
    write_at(100 * CLUSTER, 512, 3);
    assert_int_equal(co_host_of(100 * CLUSTER), host);
    co_expect(100 * CLUSTER, 512, 3);
    co_expect(100 * CLUSTER + 512, CLUSTER - 512, 0);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void what_was_written_behind_the_end_is_not_fresh(void **state) /* F11 */
{
    in_coroutine(reused_body);
}

static void snapshot_body(void *arg)
{
    const uint64_t cluster = 64 * KIB,
                   at = 127 * cluster; /* further behind the end than the file grows ahead */
    struct error err = {""};
    struct qcow2_check result;
    load_image(&(struct qcow2_create_options){.size = 64 << 20});
    assert_int_equal(open_image(), 0);
    for (uint64_t i = 0; i < 128; i++)
        write_at(i * cluster, cluster, 1);
    uint64_t end = co_host_of(20 * cluster);
    /* Room for what a snapshot needs, so that the file does not grow for that. */
    assert_int_equal(node_co_pdiscard(node, cluster, 16 * cluster), 0);
    assert_int_equal(node_co_close(node), 0);
    disk.length = end;

    assert_int_equal(open_image(), 0);
    assert_int_equal(qcow2_co_snapshot_create(node, "one", &err), 0);
    write_at(at, cluster, 2);
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(open_image_as(&(struct open_options){RIG_OPTIONS, .snapshot = "one"}), 0);
    co_expect(at, cluster, 0); /* it was cut off by then */
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(open_image(), 0);
    assert_int_equal(qcow2_co_snapshot_delete(node, "one", &err), 0);
    for (uint64_t i = 200; i < 400; i++)
        write_at(i * cluster, cluster, 3);
    co_expect(at, cluster, 2);
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

/* J6, E6: a snapshot counts them, or the next write would change it, and its end would free what is in use.
 */
static void what_lies_behind_the_end_is_counted_for_snapshots(void **state)
{
    in_coroutine(snapshot_body);
}

/* ---- tables ---- */

static void l2_body(void *arg)
{
    char buf[512];
    load_image(&(struct qcow2_create_options){.size = 4 << 20, .cluster_bytes = CLUSTER});
    assert_int_equal(open_image(), 0);
    write_at(0, 4 * CLUSTER, 1);
    write_at(2 * MIB, CLUSTER, 1);
    uint64_t table = q->l1[1] & QCOW2_L1_OFFSET_MASK;
    assert_true(table > co_host_of(3 * CLUSTER));
    assert_int_equal(node_co_close(node), 0);
    disk.length = table;
    assert_int_equal(open_image(), 0);
    uint64_t length = disk.length;
    assert_int_equal(write_some(8 * CLUSTER, CLUSTER, 2), -EIO); /* the file would become longer than that */
    assert_int_equal(disk.length, length);
    assert_int_equal(node_co_pread(node, 2 * MIB, buf, sizeof(buf)), -EIO);
    assert_int_not_equal(write_some(2 * MIB, CLUSTER, 3), 0);
    co_expect(0, 4 * CLUSTER, 1);
    (void)node_co_close(node);
    fake_disk_free(&disk);
}

/* F4: its table is lost, which is no reason to read zeroes, nor when the file has grown over its place. */
static void an_l2_table_behind_the_end_is_not_read_as_zeroes(void **state)
{
    in_coroutine(l2_body);
}

static void block_body(void *arg)
{
    load_image(
        &(struct qcow2_create_options){.size = 8 << 20, .cluster_bytes = CLUSTER, .refcount_bits = 64});
    assert_int_equal(open_image(), 0);
    write_at(2 * MIB, CLUSTER, 1); /* the L2 tables come first */
    for (uint64_t at = 0; at < 3 * MIB; at += 512 * KIB)
        write_at(at, 512 * KIB, 1);
    uint64_t block = q->reftable[1];
    assert_int_not_equal(block, 0);
    assert_int_equal(node_co_close(node), 0);
    disk.length = block;
    assert_int_equal(open_image(), 0);
    assert_int_equal(q->lost_block, block);
    assert_int_equal(q->lost_l2, 0);
    uint64_t at = 0, length = disk.length;
    while (co_host_of(at) <= block)
        at += CLUSTER;
    /* Where they are: the file would grow over the block. */
    assert_int_equal(write_some(at, CLUSTER, 2), -EIO);
    assert_int_equal(disk.length, length);
    co_expect(0, CLUSTER, 1);
    (void)node_co_close(node);
    fake_disk_free(&disk);
}

/* E7: what it counted is in use, and not free as soon as the file has grown over its place. */
static void a_refcount_block_behind_the_end_is_not_read_as_zeroes(void **state)
{
    in_coroutine(block_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_behind_the_end_is_not_cut_off),
        cmocka_unit_test(what_was_written_behind_the_end_is_not_fresh),
        cmocka_unit_test(what_lies_behind_the_end_is_counted_for_snapshots),
        cmocka_unit_test(an_l2_table_behind_the_end_is_not_read_as_zeroes),
        cmocka_unit_test(a_refcount_block_behind_the_end_is_not_read_as_zeroes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
