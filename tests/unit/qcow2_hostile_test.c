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
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/qcow2/qcow2_state.h"
#include "tests/unit/fake_disk.h"
#include "tests/unit/loop_rig.h"

static struct fake_disk disk;
static struct node *node;
static struct qcow2 *q;

/* An image of our own making, as the disk's content. */
static void load_image(const struct qcow2_create_options *options)
{
    char path[] = "/tmp/qcow2_hostile_test.XXXXXX";
    struct error err = {""};
    struct stat st;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(qcow2_co_create(path, options, &err), 0);
    assert_int_equal(fstat(fd, &st), 0);
    disk = (struct fake_disk){.limits = {.request_alignment = 1, .memory_alignment = 1}, .grows = true};
    disk.length = (uint64_t)st.st_size;
    disk.data = malloc(disk.length);
    assert_int_equal(pread(fd, disk.data, disk.length, 0), st.st_size);
    close(fd);
    unlink(path);
}

static int open_image(void)
{
    struct node *protocol;
    struct open_options options = {.format = "qcow2", .l2_cache_bytes = 4096, .refcount_cache_bytes = 4096};
    assert_int_equal(fake_disk_open(&disk, &protocol), 0);
    int ret = node_co_open_format(&qcow2_driver, protocol, "fake", &options, false, &node, NULL);
    q = ret == 0 ? node->opaque : NULL;
    return ret;
}

/* Runs BODY in a coroutine of this thread's loop. */
static void in_coroutine(void (*body)(void *))
{
    assert_int_equal(loop_run_coroutine(loop, body, NULL), 0);
}

static void put_entry(uint64_t at, uint64_t entry)
{
    be64 word = be64_put(entry);
    memcpy(disk.data + at, &word, sizeof(word));
}

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
        put_entry(table + i * 8, block);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_search_for_room_ends),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
