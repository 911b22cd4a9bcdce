/*
 * libFuzzer on qcow2 images: the input's first byte says what is done to it, the rest is the image file.
 * Opened and read, written and discarded, checked, repaired, snapshots made and deleted, resized: whatever
 * the image says, nothing but an error may come of it. After a repair that claims success a second check has
 * to agree.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/node.h"
#include "host/qcow2/qcow2.h"
#include "host/runtime/loop.h"

#define FILE_MAX (3u << 20) /* the file may grow so far */

static struct {
    struct loop *loop;
    uint8_t *data;
    size_t bytes;
    uint8_t how;
} f;

/* ---- a file in memory ---- */

static int mem_open(struct node *node, const struct open_options *options, struct error *err)
{
    node_set_length(node, f.bytes);
    return 0;
}

static int mem_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg, unsigned flags)
{
    uint64_t there = offset >= f.bytes ? 0 : f.bytes - offset < bytes ? f.bytes - offset : bytes;
    if (there)
        sg_copy_in(sg, f.data + offset, there);
    if (there < bytes)
        sg_zero(sg_advance(sg, there), bytes - there);
    return 0;
}

static int mem_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg, unsigned flags)
{
    if (offset > FILE_MAX || bytes > FILE_MAX - offset)
        return -ENOSPC;
    sg_copy_out(sg, f.data + offset, bytes);
    if (offset + bytes > f.bytes)
        f.bytes = offset + bytes;
    node_grow_length(node, f.bytes);
    return 0;
}

static int mem_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    if (!exact && bytes <= f.bytes)
        return 0;
    if (bytes > FILE_MAX)
        return error_set(err, -ENOSPC, "full");
    if (bytes < f.bytes)
        memset(f.data + bytes, 0, f.bytes - bytes);
    f.bytes = bytes;
    node_set_length(node, bytes);
    return 0;
}

static const struct node_driver mem_driver = {.format_name = "mem",
                                              .is_protocol = true,
                                              .co_open = mem_open,
                                              .co_preadv = mem_preadv,
                                              .co_pwritev = mem_pwritev,
                                              .co_truncate = mem_truncate};

/* ---- what is done ---- */

static struct node *open_image(bool writable, bool check_only, const char *snapshot)
{
    struct open_options options = {.format = "qcow2",
                                   .read_only = !writable,
                                   .check_only = check_only,
                                   .backing = BACKING_DENY,
                                   .cache = CACHE_WRITEBACK,
                                   .l2_cache_bytes = 64 << 10,
                                   .refcount_cache_bytes = 64 << 10,
                                   .snapshot = snapshot};
    struct node *protocol, *node;
    struct error err;
    if (node_co_open_driver(&mem_driver, "mem", &options, &protocol, &err) < 0 ||
        node_co_open_format(&qcow2_driver, protocol, "mem", &options, false, &node, &err) < 0)
        return NULL;
    return node;
}

static void read_some(struct node *node)
{
    static uint8_t buf[65536];
    uint64_t at = 0, length = node_length(node);
    for (int i = 0; i < 100 && at < length; i++) {
        uint64_t pnum;
        unsigned flags;
        if (node_co_block_status(node, at, length - at, &pnum, &flags, NULL) < 0)
            pnum = 4096;
        (void)node_co_pread(node, at, buf,
                            pnum < sizeof(buf)          ? pnum
                            : sizeof(buf) < length - at ? sizeof(buf)
                                                        : length - at);
        at += pnum;
    }
}

static void write_some(struct node *node)
{
    static uint8_t buf[8192];
    uint64_t length = node_length(node), step = length / 7 + 1;
    memset(buf, 0x77, sizeof(buf));
    for (uint64_t at = 0; at + 4096 <= length; at += step) {
        (void)node_co_pwrite(node, at, buf, 4096, 0);
        (void)node_co_pwrite_zeroes(node, at / 2, 1024, NODE_IO_MAY_UNMAP);
        (void)node_co_pdiscard(node, at / 3, length / 5);
    }
    (void)node_co_flush(node);
    read_some(node);
}

static void check_some(struct node *node, unsigned fix)
{
    struct qcow2_check result, again;
    struct error err;
    if (qcow2_co_check(node, fix, &result, NULL, NULL, &err) < 0 ||
        fix != (QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS))
        return;
    if (!result.corruptions && !result.leaks && !result.check_errors &&
        qcow2_co_check(node, 0, &again, NULL, NULL, &err) == 0 &&
        (again.corruptions || again.leaks || again.check_errors))
        abort();
}

static void snapshot_some(struct node *node)
{
    struct qcow2_snapshot_info *list;
    size_t count;
    struct error err;
    (void)qcow2_co_snapshot_create(node, "new", &err);
    if (qcow2_snapshots(node, &list, &count) == 0 && count) {
        char *id = strdup(list[0].id);
        (void)qcow2_co_snapshot_apply(node, id, &err);
        (void)qcow2_co_snapshot_delete(node, id, &err);
        free(id);
    }
    free(list);
    write_some(node);
}

static void entry(void *arg)
{
    struct node *node;
    struct qcow2_info info;
    struct qcow2_bitmap_info *bitmaps;
    size_t count;
    struct error err;
    unsigned what = f.how % 7;
    node = open_image(what >= 1 && what != 2 && what != 6, what == 2 || what == 3, what == 6 ? "1" : NULL);
    if (!node)
        return;
    (void)qcow2_info(node, &info);
    if (qcow2_co_bitmaps(node, &bitmaps, &count, &err) == 0)
        free(bitmaps);
    switch (what) {
    case 0:
    case 6:
        read_some(node);
        break;
    case 1:
        write_some(node);
        break;
    case 2:
        check_some(node, 0);
        break;
    case 3:
        check_some(node, QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS);
        break;
    case 4:
        snapshot_some(node);
        break;
    default:
        (void)node_co_truncate(node, node_length(node) + 700000, true, &err);
        write_some(node);
        (void)node_co_truncate(node, node_length(node) / 2, true, &err);
        break;
    }
    (void)node_co_close(node);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!f.loop) {
        f.loop = loop_create("fuzz", NULL);
        f.data = calloc(1, FILE_MAX);
        log_set_program("fuzz");
    }
    if (size < 2 || size - 1 > FILE_MAX)
        return 0;
    f.how = data[0];
    memset(f.data, 0, f.bytes);
    memcpy(f.data, data + 1, size - 1);
    f.bytes = size - 1;
    loop_run_coroutine(f.loop, entry, NULL);
    return 0;
}
