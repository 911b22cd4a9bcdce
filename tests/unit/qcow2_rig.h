/*
 * For tests of qcow2: an image of the test's own making as a disk in memory, opened over that, written to and
 * read back. Everything in one thread and one loop; what is done to an image is done in a coroutine.
 * Included by one source file of a test program.
 */
#ifndef RINGSIDE_TESTS_QCOW2_RIG_H
#define RINGSIDE_TESTS_QCOW2_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/qcow2/qcow2_state.h"
#include "tests/unit/fake_disk.h"
#include "tests/unit/loop_rig.h"

#define KIB 1024u
#define MIB (1024u * 1024u)

/* Caches that are full soon. */
#define RIG_OPTIONS .format = "qcow2", .l2_cache_bytes = 4096, .refcount_cache_bytes = 4096

static struct fake_disk disk;
static struct node *node;
static struct qcow2 *q; /* of node */

/* Of an image file, or of the disk in it. */
struct content {
    uint64_t bytes;
    uint8_t *data; /* from malloc */
};

/* Runs BODY in a coroutine of this thread's loop. */
static UNUSED void in_coroutine(void (*body)(void *))
{
    assert_int_equal(loop_run_coroutine(loop, body, NULL), 0);
}

/* ---- the image file ---- */

/* With a BITMAP of granules of 64 KiB, which only qemu-img can make: no data where there is none. */
static UNUSED struct content create_image(const struct qcow2_create_options *options, bool bitmap)
{
    char path[] = "/tmp/qcow2_rig.XXXXXX", command[200];
    struct error err = {""};
    struct stat st;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(qcow2_co_create(path, options, &err), 0);
    snprintf(command, sizeof(command), "qemu-img bitmap --add -g 64k -f qcow2 %s one >/dev/null 2>&1", path);
    struct content image = {0};
    if (!bitmap || system(command) == 0) { /* NOLINT(cert-env33-c): a test's own words */
        assert_int_equal(fstat(fd, &st), 0);
        image = (struct content){.bytes = (uint64_t)st.st_size, .data = malloc((size_t)st.st_size)};
        assert_int_equal(pread(fd, image.data, image.bytes, 0), st.st_size);
    }
    close(fd);
    unlink(path);
    return image;
}

/* A copy of IMAGE is the disk's content. */
static UNUSED void fresh_disk(const struct content *image)
{
    disk = (struct fake_disk){.limits = {.request_alignment = 1, .memory_alignment = 1}, .grows = true};
    disk.length = image->bytes;
    disk.data = malloc(image->bytes);
    memcpy(disk.data, image->data, image->bytes);
}

static UNUSED void load_image(const struct qcow2_create_options *options)
{
    struct content image = create_image(options, false);
    fresh_disk(&image);
    free(image.data);
}

static UNUSED uint64_t field_at(uint64_t at)
{
    be64 word;
    memcpy(&word, disk.data + at, sizeof(word));
    return be64_get(word);
}

static UNUSED void set_field(uint64_t at, uint64_t value)
{
    be64 word = be64_put(value);
    memcpy(disk.data + at, &word, sizeof(word));
}

/* ---- the image ---- */

static UNUSED int coroutine_fn open_disk(struct fake_disk *from, const struct open_options *options,
                                         struct node **opened, struct error *err)
{
    struct node *protocol;
    assert_int_equal(fake_disk_open(from, &protocol), 0);
    return node_co_open_format(&qcow2_driver, protocol, "fake", options, false, opened, err);
}

static UNUSED int coroutine_fn open_image_as(const struct open_options *options)
{
    int ret = open_disk(&disk, options, &node, NULL);
    if (ret < 0)
        node = NULL;
    q = qcow2_state(node);
    return ret;
}

static UNUSED int coroutine_fn open_image(void)
{
    return open_image_as(&(struct open_options){RIG_OPTIONS});
}

static UNUSED int coroutine_fn write_some(uint64_t offset, uint64_t bytes, int fill)
{
    char *buf = malloc(bytes);
    memset(buf, fill, bytes);
    int ret = node_co_pwrite(node, offset, buf, bytes, 0);
    free(buf);
    return ret;
}

/* Succeeds. */
static UNUSED void coroutine_fn write_at(uint64_t offset, uint64_t bytes, int fill)
{
    assert_int_equal(write_some(offset, bytes, fill), 0);
}

static UNUSED struct content coroutine_fn co_content(struct node *of)
{
    struct content content = {.bytes = node_length(of)};
    content.data = malloc(content.bytes);
    assert_int_equal(node_co_pread(of, 0, content.data, content.bytes), 0);
    return content;
}

#endif
