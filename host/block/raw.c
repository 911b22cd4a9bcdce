/*
 * The raw format: the image is the file, byte for byte.
 *
 * What always holds: the length is a whole number of sectors, as a guest sees it; a last partial one is
 * padded with zeroes when read and completed when written. If the format was guessed (node->probed), sector 0
 * never gets to look like the beginning of an image of another format: requests come in whole sectors then,
 * and such a write is -EPERM.
 */
#include <errno.h>

#include "host/block/node.h"

#define SECTOR 512u

static uint64_t whole_sectors(uint64_t bytes)
{
    return (bytes + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
}

static int coroutine_fn raw_co_open(struct node *node, const struct open_options *options, struct error *err)
{
    if (options->snapshot)
        return error_set(err, -ENOTSUP, "images of format raw have no snapshots, and none named '%s'",
                         options->snapshot);
    node->limits.pwrite_zeroes_alignment = node->file->limits.pwrite_zeroes_alignment;
    node->limits.pdiscard_alignment = node->file->limits.pdiscard_alignment;
    node->limits.memory_alignment = 1; /* the node below sees to that, and to blocks */
    node->limits.request_alignment = node->probed && !node->read_only ? SECTOR : 1;
    node->supports_zeroes = node->file->supports_zeroes;
    node_set_length(node, whole_sectors(node_length(node->file)));
    return 0;
}

static int coroutine_fn raw_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                      unsigned flags)
{
    return node_co_preadv(node->file, offset, bytes, sg, flags);
}

struct raw {
    uint32_t refused; /* told already */
};

/* The guest gets an I/O error; whoever runs the program hears once what is behind it. */
static int refuse(struct node *node, const char *magic)
{
    struct raw *raw = node->opaque;
    if (__atomic_exchange_n(&raw->refused, 1, __ATOMIC_RELAXED) == 0)
        log_message(
            "%s: a write that would make sector 0 look like a %s image was refused, since the format was "
            "only guessed to be raw (--format=raw allows it)",
            node->filename, magic);
    return -EPERM;
}

static int coroutine_fn raw_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                       unsigned flags)
{
    if (flags & NODE_IO_COMPRESSED)
        return -ENOTSUP;
    if (!node->probed || offset > 0)
        return node_co_pwritev(node->file, offset, bytes, sg, flags);
    /* The guest may change its memory while we look: what is checked is what gets written. */
    char sector[SECTOR];
    sg_copy_out(sg, sector, SECTOR);
    const char *magic = node_probe_magic(sector);
    if (magic)
        return refuse(node, magic);
    struct iovec iov = {sector, SECTOR};
    if (bytes > SECTOR) {
        int ret = node_co_pwritev(node->file, SECTOR, bytes - SECTOR, sg_advance(sg, SECTOR), flags);
        if (ret < 0)
            return ret;
    }
    return node_co_pwritev(node->file, 0, SECTOR, sg_make(&iov, 1), flags);
}

static int coroutine_fn raw_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes,
                                             unsigned flags)
{
    return node_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int coroutine_fn raw_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    return node_co_pdiscard(node->file, offset, bytes);
}

static int coroutine_fn raw_co_flush(struct node *node)
{
    return node_co_flush(node->file);
}

static int coroutine_fn raw_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    int ret = node_co_truncate(node->file, bytes, exact, err);
    if (ret == 0)
        node_set_length(node, whole_sectors(bytes));
    return ret;
}

static int coroutine_fn raw_co_block_status(struct node *node, uint64_t offset, uint64_t bytes,
                                            uint64_t *pnum, unsigned *flags, uint64_t *host_offset)
{
    uint64_t length = node_length(node->file), ignored;
    *host_offset = offset;
    if (offset >= length) { /* the padding of the last sector */
        *pnum = bytes;
        *flags = NODE_STATUS_ZERO | NODE_STATUS_ALLOCATED | NODE_STATUS_OFFSET;
        return 0;
    }
    int ret = node_co_block_status(node->file, offset, bytes, pnum, flags, &ignored);
    *flags |= NODE_STATUS_ALLOCATED | NODE_STATUS_OFFSET;
    return ret;
}

const struct node_driver raw_driver = {
    .format_name = "raw",
    .instance_bytes = sizeof(struct raw),
    .co_open = raw_co_open,
    .co_preadv = raw_co_preadv,
    .co_pwritev = raw_co_pwritev,
    .co_pwrite_zeroes = raw_co_pwrite_zeroes,
    .co_pdiscard = raw_co_pdiscard,
    .co_flush = raw_co_flush,
    .co_truncate = raw_co_truncate,
    .co_block_status = raw_co_block_status,
    .supports_fua = true,
};
