/*
 * A change of the disk that fails when a part of it was made: what the guest then reads otherwise than before
 * is marked in the bitmap (checklist K), or the next incremental backup would leave it out.
 *
 * For each row of the table `changes`, every single request of one kind to the image file fails in turn.
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

#define GRANULE (64 * KIB)

/* ---- what is done ---- */

static void coroutine_fn data(void)
{
    write_at(0, 512 * KIB, 3);
}

/* In two, so that the L2 tables are shared by them. */
static void coroutine_fn other_data_in_snapshots(void)
{
    struct error err;
    write_at(0, 64 * KIB, 1);
    assert_int_equal(qcow2_co_snapshot_create(node, "one", &err), 0);
    assert_int_equal(qcow2_co_snapshot_create(node, "two", &err), 0);
    write_at(0, 4096, 3);
}

static int coroutine_fn apply(void)
{
    struct error err;
    return qcow2_co_snapshot_apply(node, "one", &err);
}

static int coroutine_fn shrink(void)
{
    struct error err;
    return node_co_truncate(node, 32 * KIB, true, &err);
}

static int coroutine_fn make_empty(void)
{
    struct error err;
    return qcow2_co_make_empty(node, &err);
}

static const struct change {
    const char *name;
    enum fake_op fails;
    void coroutine_fn (*before)(void);
    int coroutine_fn (*make)(void);
    uint64_t at; /* here the guest reads 3 before the change, and THEN after it */
    int then;
    uint64_t from, to; /* and then all of this is marked */
} changes[] = {
    {"a snapshot is applied, a read fails", FAKE_READ, other_data_in_snapshots, apply, 0, 1, 0, 4 * MIB},
    {"a snapshot is applied, a write fails", FAKE_WRITE, other_data_in_snapshots, apply, 0, 1, 0, 4 * MIB},
    {"the disk is shrunk, a write fails", FAKE_WRITE, data, shrink, 256 * KIB, 0, 256 * KIB, 320 * KIB},
    {"the disk is shrunk, a read fails", FAKE_READ, data, shrink, 256 * KIB, 0, 256 * KIB, 320 * KIB},
    {"the disk is emptied, a read fails", FAKE_READ, data, make_empty, 0, 0, 0, 512 * KIB},
    {"the disk is emptied, a write fails", FAKE_WRITE, data, make_empty, 0, 0, 0, 512 * KIB},
};

/* ---- what is seen ---- */

/* Where the table of the image's bitmap lies, and is it good? */
static uint64_t bitmap_table(bool *good)
{
    struct qcow2_bitmaps_extension h;
    struct qcow2_bitmap_info *list;
    struct qcow2_ext *ext = qcow2_find_ext(q, QCOW2_EXT_BITMAPS);
    size_t count;
    assert_non_null(ext);
    memcpy(&h, ext->data, sizeof(h));
    assert_int_equal(qcow2_co_bitmaps(node, &list, &count, NULL), 0);
    assert_int_equal(count, 1);
    *good = !list[0].in_use;
    free(list);
    return field_at(be64_get(h.directory_offset));
}

/* How many granules between FROM and TO are marked; one entry of the table is enough for the whole disk. */
static unsigned marked(uint64_t from, uint64_t to)
{
    bool good;
    unsigned count = 0;
    uint64_t entry = field_at(bitmap_table(&good));
    assert_true(good);
    for (uint64_t bit = from / GRANULE; bit < to / GRANULE; bit++)
        count += entry == QCOW2_BITMAP_ALL_ONES ||
                 (entry && disk.data[(entry & QCOW2_BITMAP_OFFSET_MASK) + bit / 8] >> bit % 8 & 1);
    return count;
}

/* What the guest reads; -1: the disk does not go so far. */
static int coroutine_fn co_byte(uint64_t at)
{
    uint8_t byte;
    if (at >= node_length(node))
        return -1;
    assert_int_equal(node_co_pread(node, at, &byte, 1), 0);
    return byte;
}

/* ---- a change that fails ---- */

static struct content image; /* without data: there is no qemu-img to make one with a bitmap */

static void coroutine_fn co_begin(const struct change *change)
{
    bool good;
    fresh_disk(&image);
    assert_int_equal(open_image(), 0);
    change->before();
    uint64_t table = bitmap_table(&good);
    assert_int_equal(node_co_close(node), 0);
    set_field(table, 0); /* as if a backup had been made */
    assert_int_equal(open_image(), 0);
    assert_int_equal(marked(0, 4 * MIB), 0);
    assert_int_equal(co_byte(change->at), 3);
    write_at(1 * MIB, 4096, 3); /* the bitmap is loaded, and marked in use */
    assert_int_equal(node_co_flush(node), 0);
}

/* The N-th request fails. False: there are not so many. */
static bool coroutine_fn co_fail(const struct change *change, uint64_t n, unsigned *in_part)
{
    enum fake_op op = change->fails;
    co_begin(change);
    uint64_t number = disk.calls[op] + n;
    disk.error[op] = -EIO;
    disk.error_skip[op] = number;
    disk.error_times[op] = 1;
    int ret = change->make();
    bool failed = disk.calls[op] > number;
    disk.error[op] = 0;
    int byte = co_byte(change->at);
    assert_true(byte == change->then || (byte == 3 ? ret < 0 : byte == -1));
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(open_image(), 0);
    if (byte == change->then)
        assert_int_equal(marked(change->from, change->to), (change->to - change->from) / GRANULE);
    *in_part += byte == change->then && ret < 0;
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    return failed;
}

static void change_body(void *arg)
{
    const struct change *change = arg;
    unsigned failures = 0, in_part = 0;
    image = create_image(&(struct qcow2_create_options){.size = 4 * MIB, .cluster_bytes = 4096}, true);
    if (!image.data)
        return;
    while (co_fail(change, failures, &in_part))
        failures++;
    printf("# %u failures, %u of them in part\n", failures, in_part);
    assert_true(in_part > 0);
    free(image.data);
}

static void what_was_changed_is_marked(void **state)
{
    assert_int_equal(loop_run_coroutine(loop, change_body, *state), 0);
    if (!image.data)
        skip();
}

/* ---- a beginning that fails ---- */

/* The bitmap is loaded and marked in use; then an unknown autoclear bit cannot be cleared. */
static void second_try_body(void *arg)
{
    image = create_image(&(struct qcow2_create_options){.size = 4 * MIB, .cluster_bytes = 4096}, true);
    if (!image.data)
        return;
    fresh_disk(&image);
    disk.data[offsetof(struct qcow2_header, autoclear_features)] |= 0x80;
    assert_int_equal(open_image(), 0);
    disk.error[FAKE_WRITE] = -EIO;
    disk.error_skip[FAKE_WRITE] = disk.calls[FAKE_WRITE] + 1;
    disk.error_times[FAKE_WRITE] = 1;
    assert_int_equal(write_some(0, 4096, 1), -EIO);
    disk.error[FAKE_WRITE] = 0;
    assert_true(q->autoclear >> 63);
    write_at(1 * MIB, 4096, 1);
    assert_int_equal(q->autoclear >> 63, 0);
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(open_image(), 0);
    assert_int_equal(marked(0, 4 * MIB), 1);
    assert_int_equal(marked(1 * MIB, 1 * MIB + GRANULE), 1);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    free(image.data);
}

static void a_second_try_to_begin_follows_what_the_first_has_loaded(void **state)
{
    assert_int_equal(loop_run_coroutine(loop, second_try_body, NULL), 0);
    if (!image.data)
        skip();
}

int main(void)
{
    struct CMUnitTest tests[sizeof(changes) / sizeof(changes[0]) + 1] = {
        [sizeof(changes) / sizeof(changes[0])] =
            cmocka_unit_test(a_second_try_to_begin_follows_what_the_first_has_loaded)};
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++)
        tests[i] = (struct CMUnitTest){.name = changes[i].name,
                                       .test_func = what_was_changed_is_marked,
                                       .initial_state = (void *)(uintptr_t)&changes[i]};
    return cmocka_run_group_tests_name("bitmaps follow changes that fail", tests, setup, teardown);
}
