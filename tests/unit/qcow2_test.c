/*
 * qcow2's parts alone (refcount widths, slice cache, map of metadata, entries), and the driver over a disk in
 * memory: the order of what reaches the disk, quarantine of freed clusters, and every metadata update failing
 * once.
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

/* ---- refcount widths (E1) ---- */

static void widths(void **state)
{
    uint8_t block[512];
    for (unsigned refcount_order = 0; refcount_order <= 6; refcount_order++) {
        uint64_t max = refcount_order == 6 ? UINT64_MAX : (1ull << (1u << refcount_order)) - 1,
                 entries = 4096u >> refcount_order;
        memset(block, 0xff, sizeof(block));
        for (uint64_t i = 0; i < entries; i++)
            assert_int_equal(qcow2_refcount_get_raw(block, refcount_order, i), max);
        for (uint64_t i = 0; i < entries; i += 3) {
            qcow2_refcount_set_raw(block, refcount_order, i, i & max);
            assert_int_equal(qcow2_refcount_get_raw(block, refcount_order, i), i & max);
            if (i + 1 < entries)
                assert_int_equal(qcow2_refcount_get_raw(block, refcount_order, i + 1), max);
        }
    }
    memset(block, 0, sizeof(block));
    qcow2_refcount_set_raw(block, 0, 0, 1); /* sub-byte entries start at the least significant bit */
    qcow2_refcount_set_raw(block, 1, 5, 2);
    qcow2_refcount_set_raw(block, 2, 5, 9);
    qcow2_refcount_set_raw(block, 4, 2, 0x1234);
    assert_int_equal(block[0], 1);
    assert_int_equal(block[1], 2 << 2);
    assert_int_equal(block[2], 9 << 4);
    assert_int_equal(block[4], 0x12);
    assert_int_equal(block[5], 0x34);
}

/* ---- the cache ---- */

static void cache_keeps_dirty_slices(void **state)
{
    struct table_cache cache;
    struct table_cache_read read = {0};
    uint64_t words[64];
    assert_int_equal(table_cache_init(&cache, 512, 8), 0);
    uint64_t per_set = cache.nb_sets;
    for (uint64_t i = 0; i < TABLE_CACHE_WAYS; i++) {
        int64_t slot = table_cache_claim(&cache, i * per_set);
        assert_true(slot >= 0);
        assert_false(table_cache_read_begin(&cache, i * per_set, &read)); /* loading */
        for (unsigned w = 0; w < 64; w++)
            words[w] = i * 100 + w;
        table_cache_loaded(&cache, (uint32_t)slot, words);
        assert_true(table_cache_read_begin(&cache, i * per_set, &read));
        assert_int_equal(table_cache_word(read.words + 7), i * 100 + 7);
        assert_true(table_cache_read_valid(&cache, &read));
        table_cache_set_dirty(&cache, (uint32_t)slot, i);
    }
    /* all dirty: nothing can go */
    assert_int_equal(table_cache_claim(&cache, 100 * per_set), -1);
    assert_int_equal(cache.nb_dirty, TABLE_CACHE_WAYS);
    table_cache_clear_dirty(&cache, (uint32_t)table_cache_find(&cache, 3 * per_set));
    int64_t slot = table_cache_claim(&cache, 100 * per_set);
    assert_true(slot >= 0);
    assert_int_equal(table_cache_find(&cache, 3 * per_set), -1);
    table_cache_load_failed(&cache, (uint32_t)slot);
    assert_int_equal(table_cache_find(&cache, 100 * per_set), -1);
    /* the dirty list is in the order of becoming dirty */
    uint64_t last = 0;
    for (uint32_t i = cache.dirty_first; i != TABLE_CACHE_END; i = cache.slots[i].dirty_next) {
        assert_true(cache.slots[i].dirty_gen >= last);
        last = cache.slots[i].dirty_gen;
    }
    table_cache_destroy(&cache);
}

static void cache_reader_sees_a_change(void **state)
{
    struct table_cache cache;
    struct table_cache_read read = {0};
    assert_int_equal(table_cache_init(&cache, 512, 8), 0);
    uint32_t slot = (uint32_t)table_cache_claim(&cache, 5);
    table_cache_loaded(&cache, slot, NULL);
    assert_true(table_cache_read_begin(&cache, 5, &read));
    table_cache_change_begin(&cache, slot);
    table_cache_store(table_cache_words(&cache, slot), 1);
    assert_false(table_cache_read_valid(&cache, &read));
    table_cache_change_end(&cache, slot);
    assert_false(table_cache_read_valid(&cache, &read));
    assert_true(table_cache_read_begin(&cache, 5, &read));
    table_cache_forget(&cache, 0, 6);
    assert_false(table_cache_read_valid(&cache, &read));
    assert_false(table_cache_read_begin(&cache, 5, &read));
    table_cache_destroy(&cache);
}

/* ---- where metadata lies ---- */

static void overlap_map_is_exact(void **state)
{
    struct qcow2 s = {.cluster_bits = 9, .cluster_bytes = 512};
    static uint8_t model[4096];
    uint64_t seed = 1;
    for (unsigned i = 0; i < 20000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t cluster = (seed >> 33) % 4096, count = 1 + (seed >> 20) % 4;
        if (cluster + count > 4096)
            continue;
        if (seed >> 62) {
            assert_int_equal(qcow2_overlap_add(&s, cluster * 512, count * 512, QCOW2_OL_ACTIVE_L2), 0);
            for (uint64_t c = cluster; c < cluster + count; c++)
                model[c] = 1;
        } else {
            qcow2_overlap_remove(&s, cluster * 512, count * 512);
            for (uint64_t c = cluster; c < cluster + count; c++)
                model[c] = 0;
        }
    }
    for (uint64_t c = 0; c < 4096; c++) {
        assert_int_equal(qcow2_overlap_check(&s, c * 512, 512, QCOW2_OL_NONE, NULL),
                         model[c] ? QCOW2_OL_ACTIVE_L2 : QCOW2_OL_NONE);
        assert_int_equal(qcow2_overlap_check(&s, c * 512, 512, QCOW2_OL_ACTIVE_L2, NULL), QCOW2_OL_NONE);
    }
    qcow2_overlap_free(&s);
}

/* ---- entries ---- */

static void entries_mean_what_they_should(void **state)
{
    struct node file = {0}, data = {0}, image = {.file = &file};
    struct qcow2 s = {
        .node = &image, .data = &file, .version = 3, .cluster_bits = 16, .cluster_bytes = 65536};
    const struct {
        uint64_t entry, bitmap;
        bool extended, external, v2;
        enum qcow2_type type; /* of subcluster 3 */
    } rows[] = {
        {0, 0, false, false, false, QCOW2_UNALLOCATED},
        {QCOW2_COPIED, 0, false, false, false, QCOW2_UNALLOCATED},
        {QCOW2_COPIED, 0, false, true, false, QCOW2_NORMAL},
        {1, 0, false, false, false, QCOW2_ZERO_PLAIN},
        {1, 0, false, false, true, QCOW2_INVALID},
        {0x50001, 0, false, false, false, QCOW2_ZERO_ALLOC},
        {0x50000 | QCOW2_COPIED, 0, false, false, false, QCOW2_NORMAL},
        {0x50200, 0, false, false, false, QCOW2_INVALID},
        {QCOW2_L2_COMPRESSED | 0x1234567, 0, false, false, false, QCOW2_COMPRESSED},
        {QCOW2_L2_COMPRESSED | 0x1234567, 0, false, true, false, QCOW2_INVALID},
        {0x50000, 0, true, false, false, QCOW2_UNALLOCATED_ALLOC},
        {0x50000, 8, true, false, false, QCOW2_NORMAL},
        {0x50000, 8ull << 32, true, false, false, QCOW2_ZERO_ALLOC},
        {0, 8ull << 32, true, false, false, QCOW2_ZERO_PLAIN},
        {0, 8, true, false, false, QCOW2_INVALID},
        {0x50000, 8 | 8ull << 32, true, false, false, QCOW2_INVALID},
        {0x50000, 4, true, false, false, QCOW2_UNALLOCATED_ALLOC},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        s.extended_l2 = rows[i].extended;
        s.data = rows[i].external ? &data : &file;
        s.version = rows[i].v2 ? 2 : 3;
        assert_int_equal(qcow2_entry_type(&s, rows[i].entry, rows[i].bitmap, 3), rows[i].type);
    }
}

static void compressed_descriptors(void **state) /* H1 */
{
    struct qcow2 s = {.cluster_bits = 16, .cluster_bytes = 65536};
    uint64_t host, bytes;
    qcow2_compressed_range(&s, QCOW2_L2_COMPRESSED | 3ull << 54 | 0x12345, &host, &bytes);
    assert_int_equal(host, 0x12345);
    assert_int_equal(bytes, 4 * 512 - 0x145);
    s.cluster_bits = 9;
    qcow2_compressed_range(&s, QCOW2_L2_COMPRESSED | 1ull << 61 | 0x200, &host, &bytes);
    assert_int_equal(host, 0x200);
    assert_int_equal(bytes, 1024);
    qcow2_compressed_range(&s, QCOW2_L2_COMPRESSED | 1ull << 57 | 0x200, &host, &bytes); /* H8 */
    assert_int_equal(host, 1ull << 57 | 0x200);
    s.cluster_bits = 21;
    qcow2_compressed_range(&s, QCOW2_L2_COMPRESSED | 0x1fffull << 49 | 511, &host, &bytes);
    assert_int_equal(host, 511);
    assert_int_equal(bytes, 8192 * 512 - 511);
}

/* ---- over a disk in memory ---- */

static uint64_t host_of(uint64_t offset)
{
    uint64_t pnum, host;
    unsigned flags;
    assert_int_equal(node_co_block_status(node, offset, 512, &pnum, &flags, &host), 0);
    return flags & NODE_STATUS_OFFSET ? host : 0;
}

static void order_body(void *arg)
{
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = 4096});
    assert_int_equal(open_image(), 0);
    disk.records = 0;
    write_at(0, 4096, 1);
    assert_int_equal(node_co_flush(node), 0);
    uint64_t l2 = q->l1[0] & QCOW2_L1_OFFSET_MASK, block = q->reftable[0], l1 = q->l1_offset;
    int data = -1, refcount = -1, table = -1, l1_entry = -1, flushes_before_table = 0, flushes = 0;
    for (int i = 0; i < (int)disk.records; i++) {
        const struct fake_record *r = &disk.record[i];
        if (r->op == FAKE_FLUSH)
            flushes++;
        if (r->op != FAKE_WRITE)
            continue;
        if (r->offset == block)
            refcount = i;
        if (r->offset <= l2 && r->offset + r->bytes > l2) {
            table = i;
            flushes_before_table = flushes;
        }
        if (r->offset <= l1 && r->offset + r->bytes > l1)
            l1_entry = i;
        if (r->offset == host_of(0))
            data = i;
    }
    assert_true(data >= 0 && data < table);
    assert_true(refcount >= 0 && refcount < table);
    assert_true(l1_entry > refcount);
    assert_true(flushes_before_table > 0);
    assert_true(flushes > flushes_before_table);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void refcounts_are_durable_before_entries(void **state) /* O3 */
{
    in_coroutine(order_body);
}

static void quarantine_body(void *arg)
{
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = 4096});
    assert_int_equal(open_image(), 0);
    write_at(0, 4096, 1);
    assert_int_equal(node_co_flush(node), 0);
    uint64_t freed = host_of(0);
    assert_true(freed != 0);
    unsigned reader = qcow2_use_begin(q); /* somebody who found the mapping before */
    assert_int_equal(node_co_pdiscard(node, 0, 4096), 0);
    write_at(4096, 4096, 2); /* not before the discard is durable */
    assert_true(host_of(4096) != freed);
    assert_int_equal(node_co_flush(node), 0);
    write_at(8192, 4096, 3); /* not while the reader is there */
    assert_true(host_of(8192) != freed);
    qcow2_use_end(q, reader);
    write_at(12288, 512, 4);
    assert_int_equal(node_co_flush(node), 0);
    write_at(16384, 4096, 5); /* now */
    assert_int_equal(host_of(16384), freed);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void freed_clusters_wait(void **state)
{
    in_coroutine(quarantine_body);
}

static void one_read_body(void *arg)
{
    char *buf = malloc(131072);
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = 4096});
    assert_int_equal(open_image(), 0);
    write_at(0, 131072, 1);
    memset(disk.calls, 0, sizeof(disk.calls));
    assert_int_equal(node_co_pread(node, 0, buf, 131072), 0);
    assert_int_equal(disk.calls[FAKE_READ], 1);
    assert_int_equal(node_co_close(node), 0);
    /* And with nothing cached: one read for the slice, one for the data. */
    assert_int_equal(open_image(), 0);
    memset(disk.calls, 0, sizeof(disk.calls));
    assert_int_equal(node_co_pread(node, 65536, buf, 4096), 0);
    assert_int_equal(disk.calls[FAKE_READ], 2);
    assert_int_equal(buf[100], 1);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    free(buf);
}

static void contiguous_clusters_are_one_read(void **state)
{
    in_coroutine(one_read_body);
}

static void fsync_body(void *arg)
{
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = 4096});
    assert_int_equal(open_image(), 0);
    write_at(0, 4096, 1);
    disk.error[FAKE_FLUSH] = -EIO;
    disk.error_skip[FAKE_FLUSH] = disk.calls[FAKE_FLUSH];
    assert_int_equal(node_co_flush(node), -EIO);
    disk.error[FAKE_FLUSH] = 0;
    assert_int_equal(node_co_flush(node), -EIO); /* a later success proves nothing */
    char buf[512] = {0};
    assert_int_equal(node_co_pwrite(node, 8192, buf, 512, 0), -EIO);
    assert_int_equal(node_co_pread(node, 0, buf, 512), 0); /* reading goes on */
    assert_int_equal(buf[0], 1);
    assert_int_equal(node_co_close(node), -EIO);
    fake_disk_free(&disk);
}

static void a_failed_fsync_stays_failed(void **state) /* O5 */
{
    in_coroutine(fsync_body);
}

/* ---- every update fails once (SQLite's way: the N-th call, for every N) ---- */

#define SECTORS 512u

/* What a sector may hold, a bit a fill: everything written since the last flush that succeeded, and what was
 * before. */
static uint16_t possible[SECTORS];
static uint8_t last[SECTORS];
static bool failed[SECTORS]; /* the last write to it */

static void put_some(uint64_t sector, uint64_t count, uint8_t fill, bool zero)
{
    char *buf = malloc(count * 512);
    memset(buf, fill, count * 512);
    int ret = zero ? node_co_pwrite_zeroes(node, sector * 512, count * 512, NODE_IO_MAY_UNMAP)
                   : node_co_pwrite(node, sector * 512, buf, count * 512, 0);
    for (uint64_t s = sector; s < sector + count; s++) {
        possible[s] |= (uint16_t)(1u << fill);
        last[s] = fill;
        failed[s] = ret < 0;
    }
    free(buf);
}

static void flush_some(void)
{
    if (node_co_flush(node) < 0)
        return;
    for (unsigned s = 0; s < SECTORS; s++) {
        if (!failed[s])
            possible[s] = (uint16_t)(1u << last[s]);
    }
}

static void scenario(void)
{
    struct error err;
    put_some(0, 40, 1, false);
    put_some(100, 9, 2, false);
    flush_some();
    put_some(8, 8, 0, true);
    put_some(104, 30, 3, false);
    (void)qcow2_co_snapshot_create(node, "one", &err);
    put_some(3, 20, 4, false);
    put_some(200, 100, 5, false);
    flush_some();
    put_some(16, 16, 0, true);
    (void)qcow2_co_snapshot_delete(node, "one", &err);
    (void)node_co_truncate(node, (SECTORS + 3000) * 512, true, &err);
    put_some(300, 60, 6, false);
    flush_some();
}

static void verify(const char *what, uint64_t n)
{
    struct qcow2_check result = {0};
    struct error err = {""};
    uint8_t buf[512];
    memset(disk.error, 0, sizeof(disk.error));
    int ret = open_image();
    if (ret < 0)
        fail_msg("%s %llu: cannot be opened again", what, (unsigned long long)n);
    for (unsigned s = 0; s < SECTORS; s++) {
        assert_int_equal(node_co_pread(node, s * 512, buf, 512), 0);
        for (unsigned i = 1; i < 512; i++)
            assert_int_equal(buf[i], buf[0]);
        if (!(possible[s] >> buf[0] & 1))
            fail_msg("%s %llu: sector %u holds %u, possible 0x%x", what, (unsigned long long)n, s, buf[0],
                     possible[s]);
    }
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
    if (result.corruptions || result.check_errors)
        fail_msg("%s %llu: %llu corruptions", what, (unsigned long long)n,
                 (unsigned long long)result.corruptions);
    /* And it works. */
    write_at(50 * 512, 512, 9);
    assert_int_equal(node_co_close(node), 0);
}

static struct content failing_image; /* what every run begins with */

/* How requests of a kind fail: so often (0: for ever), the first write having happened all the same (a disk
 * that reports an error has not said what it did); and then the image is closed, or the power goes. */
static const struct failing_way {
    enum fake_op op;
    const char *what;
    unsigned times;
    bool happens, power_goes;
} failing_ways[] = {
    {FAKE_WRITE, "write", 0, false, false},
    {FAKE_READ, "read", 0, false, false},
    {FAKE_FLUSH, "flush", 0, false, false},
    {FAKE_TRUNCATE, "truncate", 0, false, false},
    {FAKE_READ, "one read", 1, false, false},
    {FAKE_WRITE, "one write", 1, false, true},
    {FAKE_WRITE, "one write that happens", 1, true, true},
    /* The header's new sector is there, and the old one cannot be put back. */
    {FAKE_WRITE, "two writes, the first happens", 2, true, true},
    {FAKE_WRITE, "two writes, the first happens, closed", 2, true, false},
    {FAKE_FLUSH, "flush, then the power", 0, false, true},
};

/* Requests fail in this WAY from number N on, counted from the opening. True: the scenario got that far. */
static bool fail_one(const struct failing_way *way, uint64_t n)
{
    enum fake_op op = way->op;
    for (unsigned s = 0; s < SECTORS; s++) {
        possible[s] = 1;
        last[s] = 0;
        failed[s] = false;
    }
    fresh_disk(&failing_image);
    assert_int_equal(open_image(), 0);
    uint64_t before = disk.calls[op];
    disk.error_skip[op] = before + n;
    disk.error_times[op] = way->times;
    disk.error_happens = way->happens;
    disk.error[op] = -EIO;
    scenario();
    bool reached = disk.calls[op] > before + n;
    uint64_t length = disk.length;
    uint8_t *left = malloc(length);
    memcpy(left, disk.data, length);
    (void)node_co_close(node);
    if (way->power_goes) {
        free(disk.data);
        disk.data = left;
        disk.length = length;
    } else {
        free(left);
    }
    verify(way->what, n);
    fake_disk_free(&disk);
    return reached;
}

static void failing_body(void *arg)
{
    failing_image = create_image(arg, false);
    for (unsigned i = 0; i < sizeof(failing_ways) / sizeof(failing_ways[0]); i++) {
        for (uint64_t n = 0; fail_one(&failing_ways[i], n); n++) {
        }
    }
    free(failing_image.data);
}

/* ---- forgetting the cache while readers load ---- */

static bool forgotten;

static void forget_body(void *arg)
{
    qcow2_co_forget_l2(q);
    forgotten = true;
}

static uint32_t begin_load(uint64_t key)
{
    qcow2_lock(q);
    int64_t slot = table_cache_claim(&q->l2, key);
    qcow2_unlock(q);
    assert_true(slot >= 0);
    return (uint32_t)slot;
}

static void end_load(uint32_t slot)
{
    qcow2_lock(q);
    assert_int_equal(q->l2.slots[slot].state, SLOT_LOADING);
    table_cache_loaded(&q->l2, slot, NULL);
    qcow2_unlock(q);
    co_sleep_ns(1000000);
}

static void forget_loading_body(void *arg)
{
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = 4096});
    assert_int_equal(open_image(), 0);
    uint32_t late = begin_load(q->l2.nb_sets - 1);
    forgotten = false;
    struct coroutine *co = co_create(forget_body, NULL);
    assert_non_null(co);
    co_enter(co);
    uint32_t early = begin_load(0); /* behind the place where it waits */
    assert_true(early < late);
    end_load(late);
    assert_false(forgotten);
    end_load(early);
    assert_true(forgotten);
    assert_int_equal(table_cache_find(&q->l2, 0), -1);
    assert_int_equal(table_cache_find(&q->l2, q->l2.nb_sets - 1), -1);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void no_slice_is_forgotten_while_it_is_loaded(void **state)
{
    in_coroutine(forget_loading_body);
}

/* ---- a damaged image ---- */

static uint64_t bad_entry;

/* Puts BAD_ENTRY into the first L2 entry of an image with two clusters of data, and discards it. */
static void discard_bad_entry_body(void *arg)
{
    uint64_t refcounts[16];
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = 4096});
    assert_int_equal(open_image(), 0);
    write_at(0, 8192, 1);
    assert_int_equal(node_co_flush(node), 0);
    uint64_t l2 = q->l1[0] & QCOW2_L1_OFFSET_MASK, second = host_of(4096);
    uint64_t entry = bad_entry == 1   ? q->reftable[0]
                     : bad_entry == 2 ? l2
                     : bad_entry == 3 ? q->l1_offset
                                      : second - 512; /* two clusters' worth, if it were believed */
    assert_int_equal(node_co_close(node), 0);
    set_field(l2, entry | QCOW2_COPIED);
    assert_int_equal(open_image(), 0);
    for (uint64_t c = 0; c < 16; c++)
        assert_int_equal(qcow2_co_refcount_get(q, c, &refcounts[c]), 0);
    uint64_t punched = disk.calls[FAKE_DISCARD];
    assert_int_equal(node_co_pdiscard(node, 0, 4096), -EIO);
    assert_true(q->incompatible & QCOW2_INCOMPAT_CORRUPT);
    (void)node_co_flush(node);
    (void)node_co_flush(node);
    assert_int_equal(disk.calls[FAKE_DISCARD], punched);
    for (uint64_t c = 0; c < 16; c++) {
        uint64_t now;
        assert_int_equal(qcow2_co_refcount_get(q, c, &now), 0);
        assert_int_equal(now, refcounts[c]);
    }
    (void)node_co_close(node);
    fake_disk_free(&disk);
}

static void a_discard_frees_no_metadata_and_no_foreign_cluster(void **state) /* F8 */
{
    for (bad_entry = 1; bad_entry <= 4; bad_entry++)
        in_coroutine(discard_bad_entry_body);
}

/* An L2 table that is all there, of clusters that are not: each would take a page of counters. */
static void scattered_body(void *arg)
{
    struct qcow2_check result = {0};
    struct error err = {""};
    load_image(&(struct qcow2_create_options){.size = 1ull << 29});
    assert_int_equal(open_image(), 0);
    write_at(0, 512, 1);
    assert_int_equal(node_co_flush(node), 0);
    uint64_t l2 = q->l1[0] & QCOW2_L1_OFFSET_MASK;
    assert_int_equal(node_co_close(node), 0);
    for (uint64_t i = 0; i < 8192; i++)
        set_field(l2 + i * 8, (i + 1) << 28 | QCOW2_COPIED);
    assert_int_equal(open_image(), 0);
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), -EFBIG);
    (void)node_co_close(node);
    fake_disk_free(&disk);
}

static void a_check_takes_no_memory_for_what_is_not_there(void **state)
{
    in_coroutine(scattered_body);
}

/* An image that was left dirty, with a cluster that its refcounts don't know: they are mended when it is
 * opened for writing. With power lost at any moment before they are durable it still has to say that it is
 * dirty. */
static void dirty_body(void *arg)
{
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .cluster_bytes = 4096});
    assert_int_equal(open_image(), 0);
    write_at(0, 8192, 1);
    assert_int_equal(node_co_flush(node), 0);
    uint64_t block = q->reftable[0], cluster = host_of(0) / 4096;
    assert_int_equal(node_co_close(node), 0);
    memset(disk.data + block + 2 * cluster, 0, 2);
    disk.data[79] |= QCOW2_INCOMPAT_DIRTY;
    disk.keep_log = true;
    assert_int_equal(open_image(), 0);
    int mended = -1, flushed = -1, cleared = -1;
    for (int i = 0; i < (int)disk.logged && cleared < 0; i++) {
        const struct fake_logged *l = &disk.log[i];
        if (l->op == FAKE_FLUSH && mended >= 0)
            flushed = i;
        if (l->op != FAKE_WRITE)
            continue;
        if (l->offset <= block + 2 * cluster && l->offset + l->bytes > block + 2 * cluster)
            mended = i;
        if (l->offset <= 79 && l->offset + l->bytes > 79 && !(l->data[79 - l->offset] & QCOW2_INCOMPAT_DIRTY))
            cleared = i;
    }
    assert_true(mended >= 0 && mended < flushed && flushed < cleared);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void the_dirty_bit_outlives_what_it_speaks_of(void **state) /* C4 */
{
    in_coroutine(dirty_body);
}

static void far_body(void *arg)
{
    char buf[512] = {0};
    load_image(&(struct qcow2_create_options){.size = 1 << 20, .refcount_bits = 1});
    assert_int_equal(open_image(), 0);
    uint64_t block = q->reftable[0], length = disk.length;
    assert_int_equal(node_co_close(node), 0);
    memset(disk.data + block, 0xff, 65536); /* 32 GiB of clusters */
    assert_int_equal(open_image(), 0);
    assert_int_equal(node_co_pwrite(node, 0, buf, 512, 0), -EFBIG);
    assert_int_equal(disk.length, length);
    assert_int_equal(node_co_pread(node, 0, buf, 512), 0);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void the_file_does_not_follow_refcounts_of_what_is_not_there(void **state)
{
    in_coroutine(far_body);
}

static void every_update_fails(void **state)
{
    struct qcow2_create_options images[] = {
        {.size = SECTORS * 512, .cluster_bytes = 512},
        {.size = SECTORS * 512, .cluster_bytes = 4096, .refcount_bits = 64},
        {.size = SECTORS * 512, .cluster_bytes = 16384, .extended_l2 = true},
        {.size = SECTORS * 512, .cluster_bytes = 4096, .version = 2},
    };
    for (unsigned i = 0; i < sizeof(images) / sizeof(images[0]); i++)
        assert_int_equal(loop_run_coroutine(loop, failing_body, &images[i]), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(widths),
        cmocka_unit_test(cache_keeps_dirty_slices),
        cmocka_unit_test(cache_reader_sees_a_change),
        cmocka_unit_test(overlap_map_is_exact),
        cmocka_unit_test(entries_mean_what_they_should),
        cmocka_unit_test(compressed_descriptors),
        cmocka_unit_test(refcounts_are_durable_before_entries),
        cmocka_unit_test(freed_clusters_wait),
        cmocka_unit_test(contiguous_clusters_are_one_read),
        cmocka_unit_test(a_failed_fsync_stays_failed),
        cmocka_unit_test(no_slice_is_forgotten_while_it_is_loaded),
        cmocka_unit_test(a_discard_frees_no_metadata_and_no_foreign_cluster),
        cmocka_unit_test(the_dirty_bit_outlives_what_it_speaks_of),
        cmocka_unit_test(the_file_does_not_follow_refcounts_of_what_is_not_there),
        cmocka_unit_test(a_check_takes_no_memory_for_what_is_not_there),
        cmocka_unit_test(every_update_fails),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
