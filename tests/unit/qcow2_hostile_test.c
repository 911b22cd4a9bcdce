/*
 * Images made to cost more than they are: little in the file, and tables that send whoever believes them
 * through hours of work, or for more memory or disk than there is. What is counted are bytes and steps, not
 * time.
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

/* ---- allocation ---- */

/* Every entry of the refcount table names the same block, and that says that all is in use. */
static void all_in_use(uint64_t cluster, uint64_t length, int result)
{
    char buf[512] = {0};
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = (uint32_t)cluster});
    assert_int_equal(open_image(), 0);
    uint64_t block = q->reftable[0], table = q->reftable_offset, entries = q->reftable_entries;
    assert_int_equal(node_co_truncate(q->node->file, length, true, NULL), 0);
    assert_int_equal(node_co_close(node), 0);
    memset(disk.data + block, 0xff, cluster);
    for (uint64_t i = 0; i < entries; i++)
        set_field(table + i * 8, block);
    assert_int_equal(open_image(), 0);
    uint64_t reads = disk.calls[FAKE_READ];
    disk.error[FAKE_READ] = -EIO; /* so that it comes to an end */
    disk.error_skip[FAKE_READ] = 20000;
    assert_int_equal(node_co_pwrite(node, 0, buf, 512, 0), result);
    assert_in_range(disk.calls[FAKE_READ] - reads, 1, 200);
    disk.error[FAKE_READ] = 0;
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void all_in_use_body(void *arg)
{
    /* 64 slices, of which the cache holds half: the file ends in the midst of them, and there is room behind
     * the last. */
    all_in_use(512, 1 << 20, 0);
    /* 131072 slices, for 16 TiB. */
    all_in_use(65536, 1 << 20, -EFBIG);
}

static void a_search_for_room_ends(void **state)
{
    in_coroutine(all_in_use_body);
}

/* ---- the map of metadata ---- */

/* Clusters of a sparse file that all would have their places at the start of the map, if its hash were the
 * one that everybody knows: then each is looked for past all the others. */
static void no_image_chooses_places_in_the_map(void **state)
{
    enum { CLUSTERS = 20000, ROOM = 65536, PLACES = 256 };
    struct qcow2 s = {.cluster_bits = 9, .cluster_bytes = 512};
    unsigned added = 0;
    for (uint64_t cluster = 1; added < CLUSTERS; cluster++) {
        if (qcow2_hash(0, cluster) % ROOM >= PLACES)
            continue;
        assert_int_equal(qcow2_overlap_add(&s, cluster << 9, 512, QCOW2_OL_ACTIVE_L2), 0);
        assert_int_equal(qcow2_overlap_check(&s, cluster << 9, 512, QCOW2_OL_NONE, NULL), QCOW2_OL_ACTIVE_L2);
        added++;
    }
    assert_in_range(s.overlap.room, CLUSTERS, ROOM); /* for which they were chosen */
    size_t longest = 0, run = 0;
    for (size_t i = 0; i < s.overlap.room; i++) {
        run = s.overlap.slots[i] ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    assert_in_range(longest, 1, 1000);
    qcow2_overlap_free(&s);
}

/* Snapshots and an encryption header that are as long as fields can say, in a file of holes. */
static void the_map_takes_no_memory_for_holes(void **state)
{
    enum { SNAPSHOTS = 64 };
    const uint64_t l1_bytes = QCOW2_MAX_L1_BYTES;
    struct qcow2_crypto_extension crypto = {.offset = be64_put(1 << 20), .length = be64_put(1ull << 33)};
    struct qcow2_ext ext = {
        .type = QCOW2_EXT_CRYPTO, .length = sizeof(crypto), .data = (uint8_t *)(void *)&crypto};
    struct qcow2_snapshot snapshots[SNAPSHOTS] = {0};
    struct qcow2 s = {.cluster_bits = 9,
                      .cluster_bytes = 512,
                      .file_bytes = 1ull << 44,
                      .exts = &ext,
                      .nb_exts = 1,
                      .snapshots = snapshots,
                      .nb_snapshots = SNAPSHOTS};
    const uint64_t start = 1ull << 40;
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        /* In no order; the last overlap each other. */
        snapshots[i].l1_offset = start + (i * 37 % SNAPSHOTS) * (i < 60 ? 2 : 1) * l1_bytes;
        snapshots[i].l1_size = (uint32_t)(l1_bytes / 8);
    }
    assert_int_equal(qcow2_overlap_build(&s), 0);
    assert_in_range(s.overlap.room, 1, 1024);
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        uint64_t first = snapshots[i].l1_offset, end = first + l1_bytes;
        assert_int_equal(qcow2_overlap_check(&s, first, 512, QCOW2_OL_NONE, NULL), QCOW2_OL_INACTIVE_L1);
        assert_int_equal(qcow2_overlap_check(&s, end - 512, 512, QCOW2_OL_NONE, NULL), QCOW2_OL_INACTIVE_L1);
        assert_int_equal(qcow2_overlap_check(&s, first, 512, QCOW2_OL_INACTIVE_L1, NULL), QCOW2_OL_NONE);
        bool another = false;
        for (unsigned k = 0; k < SNAPSHOTS; k++)
            another |= end >= snapshots[k].l1_offset && end < snapshots[k].l1_offset + l1_bytes;
        assert_int_equal(qcow2_overlap_check(&s, end, 512, QCOW2_OL_NONE, NULL),
                         another ? QCOW2_OL_INACTIVE_L1 : QCOW2_OL_NONE);
    }
    uint64_t at = 0;
    assert_int_equal(qcow2_overlap_check(&s, start - 1024, 2048, QCOW2_OL_NONE, &at), QCOW2_OL_INACTIVE_L1);
    assert_int_equal(at, start);
    assert_int_equal(qcow2_overlap_check(&s, 1 << 20, 512, QCOW2_OL_NONE, NULL), QCOW2_OL_CRYPT_HEADER);
    assert_int_equal(qcow2_overlap_check(&s, (1ull << 33) + (1 << 20), 512, QCOW2_OL_NONE, NULL),
                     QCOW2_OL_NONE);
    /* Nothing else comes to lie in it. */
    assert_int_equal(qcow2_overlap_add(&s, 1 << 20, 1024, QCOW2_OL_ACTIVE_L2), 0);
    assert_int_equal(qcow2_overlap_check(&s, (1 << 20) + 512, 512, QCOW2_OL_ACTIVE_L2, NULL),
                     QCOW2_OL_CRYPT_HEADER);
    qcow2_overlap_free(&s);
}

/* ---- snapshots ---- */

/* Four L2 tables, and the same in a snapshot. */
static void four_tables(void)
{
    load_image(&(struct qcow2_create_options){.size = 128 << 10, .cluster_bytes = 512});
    assert_int_equal(open_image(), 0);
    for (uint64_t i = 0; i < 4; i++)
        write_at(i << 15, 512, 1);
    assert_int_equal(qcow2_co_snapshot_create(node, "one", NULL), 0);
    for (uint64_t i = 0; i < 4; i++)
        write_at(i << 15, 512, 2);
    assert_int_equal(node_co_flush(node), 0);
}

static void refused(int ret, const struct error *err, uint64_t writes)
{
    if (ret != -EMLINK)
        fail_msg("%d: %s", ret, err->text);
    assert_non_null(strstr(err->text, "names one table again and again"));
    /* Not so much as a feature bit was changed. */
    assert_int_equal(disk.calls[FAKE_WRITE], writes);
}

static void repeats_body(void *arg)
{
    for (int of_snapshot = 0; of_snapshot < 2; of_snapshot++) {
        struct error err = {""};
        four_tables();
        uint64_t l1 = of_snapshot ? q->snapshots[0].l1_offset : q->l1_offset;
        assert_int_equal(node_co_close(node), 0);
        memcpy(disk.data + l1 + 24, disk.data + l1, 8);
        assert_int_equal(open_image(), 0);
        uint64_t writes = disk.calls[FAKE_WRITE];
        refused(qcow2_co_snapshot_apply(node, "one", &err), &err, writes);
        refused(qcow2_co_snapshot_delete(node, "one", &err), &err, writes);
        if (!of_snapshot) {
            refused(qcow2_co_snapshot_create(node, "two", &err), &err, writes);
            refused(qcow2_co_make_empty(node, &err), &err, writes);
        }
        write_at(0, 512, 3); /* it works on */
        assert_int_equal(node_co_close(node), 0);
        fake_disk_free(&disk);
    }
}

static void an_l1_table_that_repeats_itself_is_not_walked(void **state)
{
    in_coroutine(repeats_body);
}

/* What is copied would be half a GiB here; with larger clusters and tables, TiB. */
static void blocks_body(void *arg)
{
    struct error err = {""};
    load_image(&(struct qcow2_create_options){.size = 1 << 20});
    assert_int_equal(open_image(), 0);
    uint64_t block = q->reftable[0], table = q->reftable_offset, entries = q->reftable_entries;
    assert_int_equal(node_co_close(node), 0);
    for (uint64_t i = 0; i < entries; i++)
        set_field(table + i * 8, block);
    assert_int_equal(open_image(), 0);
    uint64_t length = disk.length;
    refused(qcow2_co_snapshot_create(node, "one", &err), &err, disk.calls[FAKE_WRITE]);
    assert_int_equal(disk.length, length);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void a_refcount_block_is_not_copied_thousands_of_times(void **state)
{
    in_coroutine(blocks_body);
}

/* COPIED where there is no cluster: check has nothing against it, and it stays in a table that snapshot and
 * disk have in common. */
static void flag_body(void *arg)
{
    four_tables();
    assert_int_equal(qcow2_co_snapshot_delete(node, "one", NULL), 0);
    uint64_t l2 = q->l1[1] & QCOW2_L1_OFFSET_MASK;
    assert_int_equal(node_co_pdiscard(node, 1 << 15, 512), 0);
    assert_int_equal(node_co_close(node), 0);
    set_field(l2 + 8, QCOW2_COPIED);
    assert_int_equal(open_image(), 0);
    assert_int_equal(qcow2_co_snapshot_create(node, "two", NULL), 0);
    assert_int_equal(qcow2_co_snapshot_apply(node, "two", NULL), 0);
    write_at(1 << 15, 1024, 3);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void a_flag_without_a_cluster_is_no_damage(void **state)
{
    in_coroutine(flag_body);
}

/* An entry of the layer names the refcount table: emptying the layer makes no hole there. */
static void hole_body(void *arg)
{
    uint8_t table[512];
    four_tables();
    assert_int_equal(qcow2_co_snapshot_delete(node, "one", NULL), 0);
    uint64_t at = q->reftable_offset, l2 = q->l1[0] & QCOW2_L1_OFFSET_MASK;
    assert_int_equal(node_co_close(node), 0);
    set_field(l2 + 8, at | QCOW2_COPIED);
    disk.punches = true;
    memcpy(table, disk.data + at, sizeof(table));
    assert_int_equal(open_image(), 0);
    assert_int_equal(qcow2_co_make_empty(node, NULL), 0);
    assert_true(disk.calls[FAKE_DISCARD] > 0);
    assert_int_equal(q->reftable_offset, at);
    assert_memory_equal(disk.data + at, table, sizeof(table));
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void no_hole_is_made_in_metadata(void **state)
{
    in_coroutine(hole_body);
}

/* ---- a compressed cluster that goes on behind the end of the file ---- */

static uint64_t corruptions(unsigned fix)
{
    struct qcow2_check result = {0};
    assert_int_equal(qcow2_co_check(node, fix, &result, NULL, NULL, NULL), 0);
    assert_int_equal(result.leaks, 0);
    return result.corruptions;
}

/* The cluster behind the end is counted down with the others when the entry goes: it has to be counted. */
static void compressed_body(void *arg)
{
    enum { CLUSTER = 4096 };
    uint8_t *buf = calloc(1, CLUSTER);
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = CLUSTER});
    assert_int_equal(open_image(), 0);
    write_at(16 * CLUSTER, CLUSTER, 0x33);
    assert_int_equal(node_co_pwrite(node, 0, buf, CLUSTER, NODE_IO_COMPRESSED), 0);
    uint64_t l2 = q->l1[0] & QCOW2_L1_OFFSET_MASK;
    assert_int_equal(node_co_close(node), 0);
    disk.data[l2] |= 0x3c; /* as many sectors as an entry can say */
    assert_int_equal(open_image(), 0);
    assert_true(corruptions(0) > 0);
    assert_int_equal(corruptions(QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS), 0);
    write_at(1 * CLUSTER, CLUSTER, 0x11);
    assert_int_equal(node_co_flush(node), 0);
    assert_int_equal(node_co_pdiscard(node, 0, CLUSTER), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(node_co_flush(node), 0);
    for (unsigned i = 2; i < 8; i++)
        write_at(i * CLUSTER, CLUSTER, 0x22);
    assert_int_equal(node_co_pread(node, CLUSTER, buf, CLUSTER), 0);
    assert_int_equal(buf[0], 0x11);
    assert_int_equal(node_co_close(node), 0);
    assert_int_equal(open_image(), 0);
    assert_int_equal(corruptions(0), 0);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    free(buf);
}

static void a_check_counts_what_is_counted_down(void **state)
{
    in_coroutine(compressed_body);
}

/* ---- sizes ---- */

static void size_body(void *arg)
{
    four_tables();
    assert_int_equal(qcow2_co_grow(node, UINT64_MAX, QCOW2_PREALLOCATION_OFF, NULL), -EFBIG);
    assert_int_equal(node_length(node), 128 << 10);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void no_size_is_rounded_up_to_nothing(void **state)
{
    in_coroutine(size_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_search_for_room_ends),
        cmocka_unit_test(no_image_chooses_places_in_the_map),
        cmocka_unit_test(the_map_takes_no_memory_for_holes),
        cmocka_unit_test(an_l1_table_that_repeats_itself_is_not_walked),
        cmocka_unit_test(a_refcount_block_is_not_copied_thousands_of_times),
        cmocka_unit_test(a_flag_without_a_cluster_is_no_damage),
        cmocka_unit_test(no_hole_is_made_in_metadata),
        cmocka_unit_test(a_check_counts_what_is_counted_down),
        cmocka_unit_test(no_size_is_rounded_up_to_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
