/*
 * ringside-img rebase: gives an image another backing file. What shows through from the old one and is
 * different in the new one is written into the image first, so that its content stays the same; with -u only
 * the name changes.
 *
 * What always holds: the name is changed only after all that had to be copied is durable.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/resolve.h"
#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

#define PIECE_BYTES (2u * 1024u * 1024u)

struct rebase {
    struct node *image, *old, *new; /* OLD and NEW may be NULL: nothing, zeroes */
    uint64_t cluster_bytes;
    unsigned write_flags;
    char *old_buf, *new_buf;
};

static int coroutine_fn read_or_zero(struct node *node, uint64_t offset, char *buf, uint64_t bytes)
{
    if (node)
        return img_co_read(node, offset, buf, bytes);
    memset(buf, 0, bytes);
    return 0;
}

static int coroutine_fn is_zero_below(struct node *node, uint64_t offset, uint64_t *bytes, bool *zero)
{
    struct img_extent extent = {.bytes = *bytes, .flags = NODE_STATUS_ZERO};
    int ret = node ? img_co_extent(node, NULL, true, offset, *bytes, &extent) : 0;
    *bytes = extent.bytes;
    *zero = extent.flags & NODE_STATUS_ZERO;
    return ret;
}

/* [OFFSET, OFFSET+BYTES) shows through from below: writes what differs, in whole clusters where it can. */
static int coroutine_fn keep_content(struct rebase *r, uint64_t offset, uint64_t bytes)
{
    int ret = read_or_zero(r->old, offset, r->old_buf, bytes);
    if (ret == 0)
        ret = read_or_zero(r->new, offset, r->new_buf, bytes);
    for (uint64_t at = 0; at < bytes && ret == 0;) {
        uint64_t n = r->cluster_bytes - (offset + at) % r->cluster_bytes;
        if (n > bytes - at)
            n = bytes - at;
        if (memcmp(r->old_buf + at, r->new_buf + at, n) != 0) {
            if (buffer_is_zero(r->old_buf + at, n))
                ret = node_co_pwrite_zeroes(r->image, offset + at, n, NODE_IO_MAY_UNMAP | r->write_flags);
            else
                ret = node_co_pwrite(r->image, offset + at, r->old_buf + at, n, r->write_flags);
        }
        at += n;
    }
    return ret;
}

static int coroutine_fn copy(struct rebase *r, const struct img_options *options, struct error *err)
{
    uint64_t end = node_length(r->image);
    struct img_progress progress;
    int ret = 0;
    img_progress_begin(&progress, options->progress && !options->quiet);
    for (uint64_t offset = 0; offset < end && ret == 0;) {
        uint64_t n = end - offset, pnum;
        unsigned flags;
        bool old_zero, new_zero;
        ret = node_co_block_status(r->image, offset, n, &pnum, &flags, NULL);
        n = pnum;
        if (ret == 0 && !(flags & NODE_STATUS_ALLOCATED)) {
            ret = is_zero_below(r->old, offset, &n, &old_zero);
            if (ret == 0)
                ret = is_zero_below(r->new, offset, &n, &new_zero);
            if (ret == 0 && !(old_zero && new_zero)) {
                if (n > PIECE_BYTES)
                    n = PIECE_BYTES;
                ret = keep_content(r, offset, n);
            }
        }
        if (ret < 0)
            error_set(err, ret, "offset %" PRIu64 ": %s", offset, strerror(-ret));
        offset += n;
        img_progress(&progress, offset, end);
    }
    img_progress_end(&progress);
    if (ret == 0) {
        ret = node_co_flush(r->image);
        if (ret < 0)
            error_set(err, ret, "what was copied may not have reached the disk: %s", strerror(-ret));
    }
    return ret;
}

/* Opens the new backing file, which the command line names: relative to the image, as it will be stored. */
static int coroutine_fn open_new(struct rebase *r, const struct img_options *options, struct error *err)
{
    char *path;
    if (!options->backing_file || !options->backing_file[0])
        return 0;
    int ret = node_resolve_name(options->names[0], options->backing_file, &path, err);
    if (ret < 0)
        return ret;
    /* An image below itself would be told from its lock only, which does not say that it is ours. */
    const struct host_file *host = r->image->file->host;
    const struct node_ancestor image = {host->device, host->inode, NULL};
    struct open_options open;
    ret = img_open_options(options, IMG_SOURCE, &open, err);
    if (ret == 0) {
        open.ancestors = &image;
        open.format = options->backing_format;
        ret = node_co_open(path, &open, &r->new, err);
    }
    free(path);
    return ret < 0 ? error_prefix(err, ret, "new backing file") : 0;
}

int coroutine_fn img_co_rebase(const struct img_options *options)
{
    const char *path = options->names[0];
    const char *name = options->backing_file;
    struct rebase r = {0};
    struct qcow2_info info;
    struct error err = {""};
    if (!name) {
        log_message("which backing file? (-b FILE, or -b \"\" for none)");
        return CMD_EXIT_USAGE;
    }
    if (name[0] && !options->backing_format) {
        log_message("the format of '%s' has to be said (-F qcow2 or -F raw)", name);
        return CMD_EXIT_USAGE;
    }
    int ret = 0;
    if (name[0])
        ret = img_check_format(options->backing_format, &err);
    if (ret < 0)
        error_prefix(&err, ret, "new backing file");
    else
        ret = img_refuse_itself(path, name, "backing", &err);
    if (ret < 0)
        return img_failed(path, &err);
    ret = img_co_open(options, path, options->format, IMG_WRITE | (options->unsafe ? IMG_NO_BACKING : 0),
                      &r.image);
    if (ret < 0)
        return CMD_EXIT_FAILED;
    ret = qcow2_info(r.image, &info);
    if (ret < 0) {
        error_set(&err, ret, "images of format %s have no backing file", r.image->driver->format_name);
    } else if (!options->unsafe) {
        r.old = r.image->backing;
        r.cluster_bytes = info.cluster_bytes;
        r.write_flags = img_write_flags(options);
        ret = open_new(&r, options, &err);
        r.old_buf = ret == 0 ? node_buffer(r.image, PIECE_BYTES) : NULL;
        r.new_buf = ret == 0 ? node_buffer(r.image, PIECE_BYTES) : NULL;
        qcow2_expect_backing(r.image);
        if (ret == 0 && r.old_buf && r.new_buf)
            ret = copy(&r, options, &err);
        else if (ret == 0)
            ret = error_set(&err, -ENOMEM, "out of memory");
    }
    if (ret == 0)
        ret = qcow2_co_change_backing(r.image, name[0] ? name : NULL,
                                      name[0] ? options->backing_format : NULL, &err);
    if (ret < 0)
        img_failed(path, &err);
    free(r.old_buf);
    free(r.new_buf);
    img_co_close(r.new);
    int closed = img_co_close(r.image);
    return ret < 0 || closed < 0 ? CMD_EXIT_FAILED : CMD_EXIT_OK;
}
