/*
 * ringside-img: the content of an image with all that shows through from its backing files, and where it
 * comes from.
 */
#include "host/cmd/img.h"

#include <string.h>

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Data whose place in the file is a hole there is zeroes (preallocated clusters). */
static int coroutine_fn look_for_holes(struct img_extent *extent)
{
    struct node *file = (struct node *)extent->file;
    uint64_t pnum;
    unsigned flags;
    if (!file || !file->grows ||
        (extent->flags & (NODE_STATUS_DATA | NODE_STATUS_ZERO)) != NODE_STATUS_DATA ||
        !(extent->flags & NODE_STATUS_OFFSET) || (extent->flags & NODE_STATUS_COMPRESSED))
        return 0;
    if (extent->host_offset >= node_length(file))
        return 0;
    int ret = node_co_block_status(file, extent->host_offset, extent->bytes, &pnum, &flags, NULL);
    if (ret < 0)
        return ret;
    if (pnum < extent->bytes)
        extent->bytes = pnum;
    extent->flags |= flags & NODE_STATUS_ZERO;
    return 0;
}

int coroutine_fn img_co_extent(struct node *top, const struct node *base, bool holes, uint64_t offset,
                               uint64_t bytes, struct img_extent *extent)
{
    unsigned depth = 0;
    *extent = (struct img_extent){.bytes = bytes};
    for (struct node *node = top;; node = node->backing, depth++) {
        uint64_t length = node_length(node), pnum;
        unsigned flags;
        extent->depth = depth;
        if (offset >= length) {
            extent->flags = NODE_STATUS_ZERO;
            return 0;
        }
        int ret = node_co_block_status(node, offset, min_u64(extent->bytes, length - offset), &pnum, &flags,
                                       &extent->host_offset);
        if (ret < 0)
            return ret;
        extent->bytes = pnum;
        extent->flags = flags & ~NODE_STATUS_EOF;
        if (flags & NODE_STATUS_ALLOCATED) {
            extent->file = node->data_file ? node->data_file : node->file;
            return holes ? look_for_holes(extent) : 0;
        }
        /* What is left open behind the end of a shorter backing file is zeroes, as without one. */
        bool zero = !node->backing || (node->backing != base && offset >= node_length(node->backing));
        if (zero || node->backing == base) {
            extent->flags = zero ? NODE_STATUS_ZERO | (flags & NODE_STATUS_OFFSET) : 0;
            extent->file = node->file;
            return 0;
        }
    }
}

int coroutine_fn img_co_read(struct node *node, uint64_t offset, void *buf, uint64_t bytes)
{
    uint64_t length = node_length(node);
    uint64_t there = offset >= length ? 0 : min_u64(bytes, length - offset);
    memset((char *)buf + there, 0, bytes - there);
    return there ? node_co_pread(node, offset, buf, there) : 0;
}
