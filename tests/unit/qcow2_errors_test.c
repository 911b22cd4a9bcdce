/*
 * For every update of metadata that there is in the code: the update fails (checklist O).
 *
 * The table `updates` is the list of them; a row is an image, what is done to it, and the kind of metadata
 * that this has to write, which is verified, so that no row can pass by writing something else. For each row
 * every single write of that kind, and every flush and every read in the whole of it, fails in turn: once,
 * half done, and for ever from there on. Then the guest has to have been told; the node has to work on, or to
 * say that it does not; and the image, opened again, has leaks at most, the disk as it was before or as it
 * was to be, in every sector, and can be written to.
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

#include "host/block/inject.h"
#include "tests/unit/qcow2_rig.h"

/* ---- what is done ---- */

static int compressed_at(uint64_t offset, int seed)
{
    uint64_t bytes = q->cluster_bytes;
    uint8_t *buf = malloc(bytes);
    for (uint64_t i = 0; i < bytes; i++)
        buf[i] = (uint8_t)(i / 64 + (uint64_t)seed);
    int ret = node_co_pwrite(node, offset, buf, bytes, NODE_IO_COMPRESSED);
    free(buf);
    return ret;
}

/* The first error. */
static int first(int a, int b)
{
    return a < 0 ? a : b;
}

static int coroutine_fn nothing(void)
{
    return 0;
}

static int coroutine_fn some_data(void)
{
    int ret = write_some(0, 64 * KIB, 1);
    return first(ret, node_co_flush(node));
}

static int coroutine_fn one_snapshot(void)
{
    struct error err;
    int ret = write_some(0, 64 * KIB, 1);
    return first(ret, qcow2_co_snapshot_create(node, "one", &err));
}

static int coroutine_fn some_snapshots(void)
{
    struct error err;
    int ret = write_some(0, 256 * KIB, 1);
    ret = first(ret, qcow2_co_snapshot_create(node, "one", &err));
    ret = first(ret, write_some(32 * KIB, 64 * KIB, 2));
    ret = first(ret, qcow2_co_snapshot_create(node, "two", &err));
    ret = first(ret, write_some(128 * KIB, 16 * KIB, 3));
    return first(ret, node_co_flush(node));
}

static int coroutine_fn a_snapshot(void)
{
    struct error err;
    int ret = write_some(0, 64 * KIB, 1);
    ret = first(ret, qcow2_co_snapshot_create(node, "one", &err));
    /* Again, so that the L2 tables are shared. */
    ret = first(ret, qcow2_co_snapshot_create(node, "two", &err));
    return first(ret, node_co_flush(node));
}

static int coroutine_fn many_blocks(void)
{
    int ret = write_some(0, 1900 * KIB, 1);
    return first(ret, node_co_flush(node));
}

static int coroutine_fn some_compressed(void)
{
    int ret = 0;
    for (unsigned i = 0; i < 8; i++)
        ret = first(ret, compressed_at(i * 16 * KIB, (int)i));
    return first(ret, node_co_flush(node));
}

static int coroutine_fn write_next(void)
{
    return write_some(64 * KIB, 8 * KIB, 7);
}

static int coroutine_fn write_far(void)
{
    return write_some(3 * MIB + 512, 8 * KIB, 7);
}

static int coroutine_fn write_more(void)
{
    return write_some(3 * MIB, 48 * KIB, 7);
}

static int coroutine_fn write_over(void)
{
    return write_some(8 * KIB, 20 * KIB, 7);
}

static int coroutine_fn write_much(void)
{
    return write_some(1900 * KIB, 200 * KIB, 7);
}

static int coroutine_fn compress_more(void)
{
    int ret = compressed_at(256 * KIB, 9);
    return first(ret, compressed_at(272 * KIB, 10));
}

static int coroutine_fn discard_some(void)
{
    return node_co_pdiscard(node, 0, 48 * KIB);
}

static int coroutine_fn zero_some(void)
{
    return node_co_pwrite_zeroes(node, 16 * KIB, 32 * KIB, 0);
}

static int coroutine_fn zero_and_free(void)
{
    return node_co_pwrite_zeroes(node, 16 * KIB, 32 * KIB, NODE_IO_MAY_UNMAP);
}

static int coroutine_fn make_snapshot(void)
{
    struct error err;
    return qcow2_co_snapshot_create(node, "new", &err);
}

static int coroutine_fn delete_snapshot(void)
{
    struct error err;
    return qcow2_co_snapshot_delete(node, "one", &err);
}

static int coroutine_fn apply_snapshot(void)
{
    struct error err;
    return qcow2_co_snapshot_apply(node, "one", &err);
}

static int coroutine_fn make_empty(void)
{
    struct error err;
    return qcow2_co_make_empty(node, &err);
}

static int coroutine_fn grow_a_little(void)
{
    struct error err;
    return node_co_truncate(node, 4 * MIB + 64 * KIB, true, &err);
}

static int coroutine_fn grow_much(void)
{
    struct error err;
    return node_co_truncate(node, 64 * MIB, true, &err);
}

static int coroutine_fn grow_allocated(void)
{
    struct error err;
    return qcow2_co_grow(node, 4 * MIB + 128 * KIB, QCOW2_PREALLOCATION_METADATA, &err);
}

static int coroutine_fn shrink(void)
{
    struct error err;
    return node_co_truncate(node, 32 * KIB, true, &err);
}

static int coroutine_fn change_backing(void)
{
    struct error err;
    return qcow2_co_change_backing(node, "base", "raw", &err);
}

static int coroutine_fn set_corrupt(void)
{
    (void)qcow2_co_corrupt(q, "as a test");
    return write_some(0, 512, 1);
}

static int coroutine_fn mend(void)
{
    struct qcow2_check result;
    struct error err;
    int ret = qcow2_co_check(node, QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS, &result, NULL, NULL, &err);
    return ret == 0 && (result.corruptions || result.check_errors) ? -EIO : ret;
}

/* ---- what is done to the file behind the image's back ---- */

#define AT(name) ((unsigned)offsetof(struct qcow2_header, name))

static void unknown_autoclear(void)
{
    set_field(AT(autoclear_features), 1ull << 40);
}

static void forgotten_refcounts(void)
{
    uint64_t block = field_at(field_at(AT(refcount_table_offset)));
    set_field(AT(incompatible_features), QCOW2_INCOMPAT_DIRTY);
    memset(disk.data + block + 16, 0, 64);
}

static void forgotten_blocks(void)
{
    set_field(field_at(AT(refcount_table_offset)), 0);
}

static void leaked_cluster(void)
{
    uint8_t *refcounts = disk.data + field_at(field_at(AT(refcount_table_offset)));
    while (refcounts[0] || refcounts[1])
        refcounts += 2;
    refcounts[1] = 1;
}

/* ---- the updates ---- */

struct update {
    const char *name;
    enum qcow2_overlap kind; /* NONE: data */
    struct qcow2_create_options options;
    int coroutine_fn (*before)(void);
    void (*damage)(void);
    int coroutine_fn (*what)(void);
    bool advice;     /* its failure changes nothing for the guest */
    bool told;       /* the guest is told of an error when all goes well, too */
    bool check_only; /* opened as check does */
    bool bitmap;     /* the image has one */
};

#define BIG                                    \
    {                                          \
        .size = 4 * MIB, .cluster_bytes = 4096 \
    }
#define V2                                                   \
    {                                                        \
        .size = 4 * MIB, .cluster_bytes = 4096, .version = 2 \
    }
#define SMALL                                                      \
    {                                                              \
        .size = 4 * MIB, .cluster_bytes = 512, .refcount_bits = 64 \
    }
#define SUBS                                                         \
    {                                                                \
        .size = 4 * MIB, .cluster_bytes = 16384, .extended_l2 = true \
    }

static const struct update updates[] = {
    {"L2 entry: a cluster becomes allocated", QCOW2_OL_ACTIVE_L2, BIG, some_data, NULL, write_next},
    {"L2 entry: of subclusters", QCOW2_OL_ACTIVE_L2, SUBS, some_data, NULL, write_next},
    {"L2 entry: copy-on-write from a snapshot", QCOW2_OL_ACTIVE_L2, BIG, some_snapshots, NULL, write_over},
    {"L2 entry: a compressed cluster", QCOW2_OL_ACTIVE_L2, BIG, some_compressed, NULL, compress_more},
    {"L2 entry: a compressed cluster is overwritten", QCOW2_OL_ACTIVE_L2, BIG, some_compressed, NULL,
     write_over},
    {"L2 entry: discard", QCOW2_OL_ACTIVE_L2, BIG, some_data, NULL, discard_some},
    {"L2 entry: zeroes, the cluster kept", QCOW2_OL_ACTIVE_L2, BIG, some_data, NULL, zero_some},
    {"L2 entry: zeroes, the cluster freed", QCOW2_OL_ACTIVE_L2, BIG, some_data, NULL, zero_and_free},
    {"L2 table: a new one", QCOW2_OL_ACTIVE_L2, BIG, some_data, NULL, write_far},
    {"L2 table: a copy of a shared one", QCOW2_OL_ACTIVE_L2, BIG, a_snapshot, NULL, write_over},
    {"L1 entry", QCOW2_OL_ACTIVE_L1, BIG, some_data, NULL, write_far},
    {"L1 table: a larger one", QCOW2_OL_ACTIVE_L1, SMALL, some_data, NULL, grow_much},
    {"L1 table: the active mapping emptied", QCOW2_OL_ACTIVE_L1, BIG, some_data, NULL, make_empty},
    {"L1 table: a snapshot applied", QCOW2_OL_ACTIVE_L1, BIG, some_snapshots, NULL, apply_snapshot},
    {"refcounts: up, by an allocation", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_data, NULL, write_next},
    {"refcounts: down, by a discard", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_data, NULL, discard_some},
    {"refcounts: of compressed clusters", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_compressed, NULL, compress_more},
    {"refcounts: copied for a snapshot", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_data, NULL, make_snapshot},
    {"refcounts: up, for a snapshot applied", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_snapshots, NULL,
     apply_snapshot},
    {"refcount block: a new one", QCOW2_OL_REFCOUNT_BLOCK, SMALL, some_data, NULL, write_more},
    {"refcount table: an entry", QCOW2_OL_REFCOUNT_TABLE, SMALL, some_data, NULL, write_more},
    {"refcount table: a larger one", QCOW2_OL_REFCOUNT_TABLE, SMALL, many_blocks, NULL, write_much},
    {"refcount table: the header names it", QCOW2_OL_MAIN_HEADER, SMALL, many_blocks, NULL, write_much},
    {"refcount table: copied for a snapshot", QCOW2_OL_REFCOUNT_TABLE, V2, some_data, NULL, make_snapshot},
    {"snapshot table: one more", QCOW2_OL_SNAPSHOT_TABLE, BIG, some_snapshots, NULL, make_snapshot},
    {"snapshot table: one less", QCOW2_OL_SNAPSHOT_TABLE, BIG, some_snapshots, NULL, delete_snapshot},
    {"snapshot: L2 tables with other flags", QCOW2_OL_ACTIVE_L2, V2, some_data, NULL, make_snapshot},
    {"snapshot: L2 tables with flags again", QCOW2_OL_ACTIVE_L2, V2, one_snapshot, NULL, delete_snapshot},
    {"snapshot: the header names all of it", QCOW2_OL_MAIN_HEADER, V2, some_snapshots, NULL, make_snapshot},
    {"snapshot: the header, one deleted", QCOW2_OL_MAIN_HEADER, V2, some_snapshots, NULL, delete_snapshot},
    {"snapshot: the header, one applied", QCOW2_OL_MAIN_HEADER, V2, some_snapshots, NULL, apply_snapshot},
    {"header: size, growing", QCOW2_OL_MAIN_HEADER, BIG, some_data, NULL, grow_a_little},
    {"header: size, shrinking", QCOW2_OL_MAIN_HEADER, BIG, some_data, NULL, shrink},
    {"header: L1 table", QCOW2_OL_MAIN_HEADER, SMALL, some_data, NULL, grow_much},
    {"header: backing file and extensions", QCOW2_OL_MAIN_HEADER, BIG, some_data, NULL, change_backing},
    {"header: unknown autoclear bits", QCOW2_OL_MAIN_HEADER, BIG, some_data, unknown_autoclear, write_next},
    {"header: corrupt bit", QCOW2_OL_MAIN_HEADER, BIG, some_data, NULL, set_corrupt, .advice = true,
     .told = true},
    {"preallocation: L2 tables of what is new", QCOW2_OL_ACTIVE_L2, BIG, some_data, NULL, grow_allocated},
    {"dirty bit: refcounts mended on open", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_data, forgotten_refcounts,
     nothing, .advice = true},
    {"dirty bit: cleared", QCOW2_OL_MAIN_HEADER, BIG, some_data, forgotten_refcounts, nothing,
     .advice = true},
    {"check -r: leaks given back", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_snapshots, leaked_cluster, mend,
     .advice = true, .check_only = true},
    {"check -r: leaks given back, tables shared", QCOW2_OL_REFCOUNT_BLOCK, BIG, a_snapshot, leaked_cluster,
     mend, .advice = true, .check_only = true},
    {"check -r: refcount structures rebuilt", QCOW2_OL_REFCOUNT_BLOCK, BIG, some_data, forgotten_blocks, mend,
     .check_only = true},
    {"check -r: the header names them", QCOW2_OL_MAIN_HEADER, BIG, some_data, forgotten_blocks, mend,
     .check_only = true},
    {"bitmap: marked in use", QCOW2_OL_BITMAP_DIRECTORY, BIG, NULL, NULL, write_next, .bitmap = true},
    {"bitmap: data and table stored", QCOW2_OL_NONE, BIG, NULL, NULL, write_next, .bitmap = true},
    {"bitmap: grows with the disk", QCOW2_OL_BITMAP_DIRECTORY, BIG, NULL, NULL, grow_much, .bitmap = true},
};

/* ---- the image of a row ---- */

static struct content image; /* what every run begins with */

static bool read_only;

static int coroutine_fn co_open(bool check_only)
{
    return open_image_as(&(struct open_options){RIG_OPTIONS, .no_backing = true, .read_only = read_only,
                                                .check_only = check_only});
}

/* ---- the disk, sector by sector ---- */

static struct content before, after;

static bool sector_is(const struct content *content, uint64_t at, const uint8_t *data)
{
    static const uint8_t zeroes[512];
    return memcmp(at < content->bytes ? content->data + at : zeroes, data, 512) == 0;
}

static const struct update *row;
static uint64_t damages; /* corruptions that there were to be repaired */

static void co_verify(const char *what)
{
    struct qcow2_check result = {0};
    struct error err = {""};
    memset(disk.error, 0, sizeof(disk.error));
    read_only = row->told; /* it is corrupt, maybe */
    int ret = co_open(row->check_only);
    read_only = false;
    if (ret < 0)
        fail_msg("%s: cannot be opened again", what);
    if (row->check_only) {
        /* A repair that failed has made nothing worse. */
        assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
        if (result.corruptions > damages)
            fail_msg("%s: %llu corruptions, %llu before", what, (unsigned long long)result.corruptions,
                     (unsigned long long)damages);
        assert_int_equal(mend(), 0);
    }
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
    if (result.corruptions || result.check_errors)
        fail_msg("%s: %llu corruptions", what, (unsigned long long)result.corruptions);
    struct content now = co_content(node);
    if (now.bytes != before.bytes && now.bytes != after.bytes)
        fail_msg("%s: the disk has %llu bytes", what, (unsigned long long)now.bytes);
    for (uint64_t at = 0; at < now.bytes; at += 512) {
        if (!sector_is(&before, at, now.data + at) && !sector_is(&after, at, now.data + at))
            fail_msg("%s: sector %llu holds neither what was nor what was to be", what,
                     (unsigned long long)at / 512);
    }
    free(now.data);
    if (!row->check_only && !row->told) {
        assert_int_equal(write_some(4096, 512, 9), 0);
        assert_int_equal(node_co_flush(node), 0);
    }
    (void)node_co_close(node);
}

/* ---- one run ---- */

struct failure {
    enum fake_op op;
    uint64_t number;
    uint64_t times; /* 0: from there on */
    bool half;
};

/* Opens, does what the row says, flushes, closes. Returns what the guest was told. */
static int co_run(const struct failure *failure, const char *what)
{
    fresh_disk(&image);
    disk.keep_log = !failure;
    if (failure) {
        disk.error[failure->op] = -EIO;
        disk.error_skip[failure->op] = failure->number;
        disk.error_times[failure->op] = failure->times;
        disk.half = failure->half;
    }
    int ret = co_open(row->check_only);
    if (ret < 0)
        return ret;
    ret = row->what();
    ret = first(ret, node_co_flush(node));
    if (failure && failure->times && !row->check_only && ret < 0 && !row->told) {
        /* Later requests work, or say why not. */
        int later = write_some(8 * KIB, 512, before.data[8 * KIB]);
        later = first(later, node_co_flush(node));
        if (later < 0 && qcow2_io_error(q) == 0)
            fail_msg("%s: a later request fails", what);
    }
    if (!failure && !row->check_only)
        after = co_content(node);
    return first(ret, node_co_close(node));
}

static bool of_the_kind(const struct fake_logged *logged)
{
    if (logged->op != FAKE_WRITE && logged->op != FAKE_ZERO)
        return false;
    if (row->kind == QCOW2_OL_NONE)
        return qcow2_overlap_check(q, logged->offset, logged->bytes, QCOW2_OL_NONE, NULL) == QCOW2_OL_NONE;
    for (uint64_t at = 0; at < logged->bytes; at += q->cluster_bytes) {
        uint64_t hit;
        if (qcow2_overlap_check(q, logged->offset + at, 1, QCOW2_OL_NONE, &hit) == row->kind)
            return true;
    }
    return false;
}

static unsigned runs;

static void co_fail(enum fake_op op, uint64_t number)
{
    static const char *const names[] = {"read", "write", "zero", "discard", "flush", "truncate"};
    const struct failure ways[] = {{op, number, 1, false}, {op, number, 1, true}, {op, number, 0, false}};
    for (unsigned i = 0; i < 3; i++) {
        char what[200];
        if (ways[i].half && op != FAKE_WRITE)
            continue;
        snprintf(what, sizeof(what), "%s: %s number %llu fails %s", row->name, names[op],
                 (unsigned long long)number,
                 i == 0   ? "once"
                 : i == 1 ? "half done"
                          : "and all after it");
        int ret = co_run(&ways[i], what);
        if (ret == 0 && op == FAKE_WRITE && !row->advice)
            fail_msg("%s: nobody is told", what);
        runs++;
        co_verify(what);
        fake_disk_free(&disk);
    }
}

/* Which writes are of the row's kind, by number; -1 at the end. */
static int64_t *co_dry_run(uint64_t calls[FAKE_OPS])
{
    int ret = co_run(NULL, "");
    if (ret < 0 && !row->told)
        fail_msg("%s: %s", row->name, strerror(-ret));
    memcpy(calls, disk.calls, sizeof(disk.calls));
    /* As the image is now: where what was written belongs. */
    struct fake_logged *log = disk.log;
    size_t logged = disk.logged;
    disk.log = NULL;
    disk.logged = disk.log_room = 0;
    disk.keep_log = false;
    assert_int_equal(co_open(true), 0);
    if (row->check_only)
        after = co_content(node);
    int64_t *numbers = malloc((logged + 1) * sizeof(*numbers)), writes = 0;
    size_t found = 0;
    for (size_t i = 0; i < logged; i++) {
        if (log[i].op == FAKE_WRITE && of_the_kind(&log[i]))
            numbers[found++] = writes;
        writes += log[i].op == FAKE_WRITE;
        free(log[i].data);
    }
    free(log);
    numbers[found] = -1;
    (void)node_co_close(node);
    fake_disk_free(&disk);
    return numbers;
}

static uint64_t co_damages(void)
{
    struct qcow2_check result;
    struct error err;
    fresh_disk(&image);
    assert_int_equal(co_open(true), 0);
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    return result.corruptions;
}

static bool skipped;

static void row_body(void *arg)
{
    image = create_image(&row->options, row->bitmap);
    skipped = !image.data;
    if (skipped)
        return;
    fresh_disk(&image);
    assert_int_equal(co_open(false), 0);
    if (row->before)
        assert_int_equal(row->before(), 0);
    before = co_content(node);
    assert_int_equal(node_co_close(node), 0);
    if (row->damage)
        row->damage();
    free(image.data);
    image = (struct content){.bytes = disk.length, .data = malloc(disk.length)};
    memcpy(image.data, disk.data, disk.length);
    fake_disk_free(&disk);
    if (row->check_only)
        damages = co_damages();

    uint64_t calls[FAKE_OPS];
    int64_t *numbers = co_dry_run(calls);
    if (numbers[0] < 0)
        fail_msg("%s: nothing of that kind was written", row->name);
    for (size_t i = 0; numbers[i] >= 0; i++)
        co_fail(FAKE_WRITE, (uint64_t)numbers[i]);
    for (uint64_t n = 0; n < calls[FAKE_FLUSH]; n++)
        co_fail(FAKE_FLUSH, n);
    for (uint64_t n = 0; n < calls[FAKE_READ]; n++)
        co_fail(FAKE_READ, n);
    for (uint64_t n = 0; n < calls[FAKE_TRUNCATE]; n++)
        co_fail(FAKE_TRUNCATE, n);
    free(numbers);
    free(before.data);
    free(after.data);
    free(image.data);
}

static void an_update_fails(void **state)
{
    row = *state;
    runs = 0;
    in_coroutine(row_body);
    printf("# %u failures\n", runs);
    if (skipped)
        skip();
}

/* ---- an external data file, whose own errors count as well ---- */

static const char *data_rule, *image_rule;

static void data_file_body(void *arg)
{
    char dir[] = "/tmp/qcow2_errors_test.XXXXXX", path[64], data[64];
    struct error err = {""};
    struct qcow2_check result;
    uint8_t buf[512];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/image", dir);
    snprintf(data, sizeof(data), "%s/data", dir);
    struct qcow2_create_options how = {.size = 4 * MIB, .cluster_bytes = 4096, .data_file = data};
    assert_int_equal(qcow2_co_create(path, &how, &err), 0);
    struct open_options options = {.format = "qcow2", .inject = image_rule};
    assert_int_equal(node_co_open(path, &options, &node, &err), 0);
    q = qcow2_state(node);
    assert_int_equal(inject_co_open(node->data_file, data_rule, &node->data_file, &err), 0);
    q->data = node->data_file;
    int ret = write_some(0, 8 * KIB, 1);
    ret = first(ret, node_co_flush(node));
    assert_int_equal(ret, -EIO);
    int later = write_some(16 * KIB, 8 * KIB, 2);
    later = first(later, node_co_flush(node));
    assert_int_equal(later, qcow2_io_error(q));
    (void)node_co_close(node);
    options.inject = NULL;
    assert_int_equal(node_co_open(path, &options, &node, &err), 0);
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
    assert_int_equal(result.corruptions + result.check_errors, 0);
    assert_int_equal(node_co_pread(node, 16 * KIB, buf, 512), 0);
    assert_int_equal(buf[0], later == 0 ? 2 : 0);
    assert_int_equal(node_co_close(node), 0);
    unlink(data);
    unlink(path);
    rmdir(dir);
}

static void errors_of_an_external_data_file(void **state)
{
    static const char *const rows[][2] = {/* of the data file, of the image */
                                          {"write", "read,skip=99999"},
                                          {"flush", "read,skip=99999"},
                                          {"flush,times=always", "read,skip=99999"},
                                          {"read,skip=99999", "write,skip=1"},
                                          {"read,skip=99999", "flush,skip=1,times=always"}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        data_rule = rows[i][0];
        image_rule = rows[i][1];
        in_coroutine(data_file_body);
    }
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[sizeof(updates) / sizeof(updates[0]) + 1];
    size_t count = 0;
    if (argc == 1)
        tests[count++] = (struct CMUnitTest)cmocka_unit_test(errors_of_an_external_data_file);
    for (size_t i = 0; i < sizeof(updates) / sizeof(updates[0]); i++) {
        if (argc > 1 && !strstr(updates[i].name, argv[1]))
            continue;
        tests[count++] = (struct CMUnitTest){.name = updates[i].name,
                                             .test_func = an_update_fails,
                                             .initial_state = (void *)(uintptr_t)&updates[i]};
    }
    return _cmocka_run_group_tests("updates of metadata that fail", tests, count, setup, teardown);
}
