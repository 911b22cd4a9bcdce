/*
 * An image of 1 TiB virtual size, all of it allocated: what a request costs is counted in reads and writes of
 * the image file, as the filter for errors sees them, so that no clock is in it. The image is sparse: 128 MiB
 * of L2 tables, 32 MiB of refcounts, and holes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "host/block/inject.h"
#include "host/qcow2/qcow2_state.h"
#include "host/runtime/loop.h"

#define SIZE  (1ull << 40)
#define SLICE (32ull << 20) /* guest bytes that one slice of 4 KiB maps, with clusters of 64 KiB */

static struct loop *loop;
static char dir[] = "/tmp/qcow2_large_test.XXXXXX", image[64];
static struct node *node;
static uint64_t seed = 1;

static uint64_t below(uint64_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 20) % n;
}

static void create_body(void *arg)
{
    struct qcow2_create_options options = {.size = SIZE, .preallocation = QCOW2_PREALLOCATION_METADATA};
    struct error err = {""};
    if (qcow2_co_create(image, &options, &err) < 0)
        fail_msg("%s", err.text);
}

static int setup(void **state)
{
    loop = loop_create("test", NULL);
    if (!loop || !mkdtemp(dir))
        return -1;
    snprintf(image, sizeof(image), "%s/image", dir);
    return loop_run_coroutine(loop, create_body, NULL);
}

static int teardown(void **state)
{
    unlink(image);
    rmdir(dir);
    loop_destroy(loop);
    return 0;
}

/* RULE matches what is counted; it is late by nothing. */
static void open_it(const char *rule, uint64_t cache_bytes)
{
    struct open_options options = {.format = "qcow2", .inject = rule, .l2_cache_bytes = cache_bytes};
    struct error err = {""};
    if (node_co_open(image, &options, &node, &err) < 0)
        fail_msg("%s", err.text);
}

static uint64_t hits(void)
{
    return inject_hits(node);
}

#define READS  "read,mode=late,ms=0,times=always"
#define WRITES "any,mode=late,ms=0,times=always"

static uint64_t read_cost(uint64_t offset)
{
    static _Alignas(4096) uint8_t buf[4096];
    uint64_t before = hits();
    memset(buf, 1, 4096);
    assert_int_equal(node_co_pread(node, offset, buf, 4096), 0);
    assert_int_equal(buf[100], 0);
    return hits() - before;
}

static void random_body(void *arg)
{
    uint64_t metadata = 0;
    open_it(READS, 0);
    /* Header, refcount table and L1 table, in pieces of a cluster: none of the 160 MiB below them. */
    assert_in_range(hits(), 1, 8);
    for (int i = 0; i < 3000; i++) {
        uint64_t offset = below(SIZE / 4096) * 4096, cost = read_cost(offset);
        assert_in_range(cost, 1, 2);
        metadata += cost - 1;
        /* And what is cached costs none. */
        assert_int_equal(read_cost(offset ^ 4096), 1);
    }
    assert_true(metadata > 2000); /* they were spread */
    assert_int_equal(node_co_close(node), 0);
}

static void a_random_read_costs_one_metadata_read_at_most(void **state)
{
    assert_int_equal(loop_run_coroutine(loop, random_body, NULL), 0);
}

/* Memory that holds something, whether the kernel has put it into its swap or not. Counted page by page: the
 * sums in statm are estimates on a machine of many processors, and go with the pages of the program itself
 * that the kernel drops and reads again. */
static uint64_t in_use(void)
{
    unsigned long long kib, sum = 0;
    char line[256];
    FILE *f = fopen("/proc/self/smaps_rollup", "re");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f))
        if (sscanf(line, "Anonymous: %llu", &kib) == 1 || sscanf(line, "Swap: %llu", &kib) == 1)
            sum += kib;
    fclose(f);
    assert_true(sum > 0);
    return sum * 1024;
}

static void memory_body(void *arg)
{
    const uint64_t cache = 2u << 20;
    open_it(READS, cache);
    for (uint64_t i = 0; i < 1000; i++)
        read_cost(i * SLICE);
    uint64_t at_first = in_use();
    /* Four times as many slices as before, sixteen times as many as the cache holds. */
    for (uint64_t i = 1000; i < 9000; i++)
        read_cost(i * SLICE);
    assert_true(in_use() < at_first + (1u << 20));
    assert_true(qcow2_state(node)->l2.words_bytes <= cache);
    assert_int_equal(node_co_close(node), 0);
    open_it(READS, 0);
    assert_int_equal(qcow2_state(node)->l2.words_bytes, 32u << 20); /* by default, as the manual has it */
    assert_int_equal(node_co_close(node), 0);
}

static void memory_stays_within_the_cache(void **state)
{
    assert_int_equal(loop_run_coroutine(loop, memory_body, NULL), 0);
}

static void write_body(void *arg)
{
    uint8_t *buf;
    open_it(WRITES, 0);
    buf = node_buffer(node, 4096);
    memset(buf, 0, 4096);
    for (int i = 0; i < 100; i++) {
        uint64_t offset = below(SIZE / 4096) * 4096;
        read_cost(offset); /* its table is there */
        uint64_t before = hits();
        assert_int_equal(node_co_pwrite(node, offset, buf, 4096, 0), 0);
        assert_int_equal(hits() - before, 1);
    }
    /* Nor is there anything to be written back: a flush is one fdatasync. */
    uint64_t before = hits();
    assert_int_equal(node_co_flush(node), 0);
    assert_int_equal(hits() - before, 1);
    free(buf);
    assert_int_equal(node_co_close(node), 0);
}

static void a_write_in_place_costs_no_metadata(void **state)
{
    assert_int_equal(loop_run_coroutine(loop, write_body, NULL), 0);
}

/* Three L2 tables, in a file of 1.5 TiB of holes: each entry leads to where no other does. */
static void scattered_body(void *arg)
{
    enum { TABLES = 3, ENTRIES = 8192 };
    struct qcow2_create_options options = {.size = TABLES * (512ull << 20)};
    struct open_options open_options = {.format = "qcow2", .cache = CACHE_WRITEBACK};
    struct qcow2_check result = {0};
    struct error err = {""};
    char other[sizeof(image) + 8], buf[512] = {1};
    be64 *table = malloc(ENTRIES * sizeof(*table));
    uint64_t l2[TABLES], before;
    int fd;

    snprintf(other, sizeof(other), "%s.holes", image);
    assert_int_equal(qcow2_co_create(other, &options, &err), 0);
    assert_int_equal(node_co_open(other, &open_options, &node, &err), 0);
    for (unsigned t = 0; t < TABLES; t++) {
        assert_int_equal(node_co_pwrite(node, t * (512ull << 20), buf, 512, 0), 0);
        l2[t] = qcow2_state(node)->l1[t] & QCOW2_L1_OFFSET_MASK;
    }
    assert_int_equal(node_co_close(node), 0);
    fd = open(other, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && ftruncate(fd, (TABLES * ENTRIES + 1ll) << 26) == 0);
    for (unsigned t = 0; t < TABLES; t++) {
        for (uint64_t i = 0; i < ENTRIES; i++)
            table[i] = be64_put((t * ENTRIES + i + 1) << 26 | QCOW2_COPIED);
        assert_int_equal(pwrite(fd, table, ENTRIES * sizeof(*table), (off_t)l2[t]), ENTRIES * sizeof(*table));
    }
    close(fd);
    open_options.read_only = true;
    assert_int_equal(node_co_open(other, &open_options, &node, &err), 0);
    before = in_use();
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), -EFBIG);
    assert_true(in_use() < before + (64u << 20));
    assert_int_equal(node_co_close(node), 0);
    free(table);
    unlink(other);
}

static void a_check_takes_no_memory_for_holes(void **state)
{
    assert_int_equal(loop_run_coroutine(loop, scattered_body, NULL), 0);
}

/* An L1 table that names one L2 table, again and again: with 4096 entries here, with four million at worst.
 */
static void repeated_body(void *arg)
{
    enum { ENTRIES = 4096 };
    struct qcow2_create_options options = {.size = ENTRIES * (512ull << 20)};
    struct open_options open_options = {.format = "qcow2", .cache = CACHE_WRITEBACK};
    struct qcow2_check result = {0};
    struct error err = {""};
    char other[sizeof(image) + 8], buf[512] = {1};
    static be64 l1[ENTRIES];

    snprintf(other, sizeof(other), "%s.again", image);
    assert_int_equal(qcow2_co_create(other, &options, &err), 0);
    assert_int_equal(node_co_open(other, &open_options, &node, &err), 0);
    assert_int_equal(node_co_pwrite(node, 0, buf, 512, 0), 0);
    for (unsigned i = 0; i < ENTRIES; i++)
        l1[i] = be64_put(qcow2_state(node)->l1[0] & ~QCOW2_COPIED);
    uint64_t l1_offset = qcow2_state(node)->l1_offset;
    assert_int_equal(node_co_close(node), 0);
    int fd = open(other, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, l1, sizeof(l1), (off_t)l1_offset), sizeof(l1));
    close(fd);

    open_options.inject = READS;
    open_options.check_only = true;
    assert_int_equal(node_co_open(other, &open_options, &node, &err), 0);
    uint64_t before = hits();
    assert_int_equal(qcow2_co_check(node, QCOW2_FIX_ERRORS, &result, NULL, NULL, &err), 0);
    assert_in_range(hits() - before, 1, 40); /* two rounds of it, and the refcounts */
    assert_int_equal(result.corruptions + result.check_errors, 0);
    uint64_t refcount;
    assert_int_equal(qcow2_co_refcount_get(qcow2_state(node), (l1_offset >> 16) + 1, &refcount), 0);
    assert_int_equal(refcount, ENTRIES);
    assert_int_equal(node_co_close(node), 0);
    unlink(other);
}

static void a_check_reads_a_table_once_or_twice(void **state)
{
    assert_int_equal(loop_run_coroutine(loop, repeated_body, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_random_read_costs_one_metadata_read_at_most),
        cmocka_unit_test(memory_stays_within_the_cache),
        cmocka_unit_test(a_write_in_place_costs_no_metadata),
        cmocka_unit_test(a_check_takes_no_memory_for_holes),
        cmocka_unit_test(a_check_reads_a_table_once_or_twice),
    };
    /* Nor does the kernel make large pages of what is in use when it finds the time. */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    return cmocka_run_group_tests_name("1 TiB, all allocated", tests, setup, teardown);
}
