/*
 * The null format: a disk of a given size without a file. Reads give zeroes, or leave the buffer as it is;
 * writes vanish. For measuring what lies above, and for tests.
 */
#include "host/block/node.h"

#include <errno.h>

struct null_state {
    bool no_zeroes; /* reads do nothing */
};

static int coroutine_fn null_co_open(struct node *node, const struct open_options *options, struct error *err)
{
    struct null_state *null = node->opaque;

    if (options->null_bytes > INT64_MAX / 2)
        return error_set(err, -EFBIG, "a null disk cannot have %llu bytes",
                         (unsigned long long)options->null_bytes);
    null->no_zeroes = options->null_no_zeroes;
    node->limits.request_alignment = 1;
    node->supports_zeroes = true;
    node_set_length(node, options->null_bytes);
    return 0;
}

static int coroutine_fn null_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                       unsigned flags)
{
    const struct null_state *null = node->opaque;

    if (!null->no_zeroes)
        sg_zero(sg, bytes);
    return 0;
}

static int coroutine_fn null_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                        unsigned flags)
{
    return 0;
}

static int coroutine_fn null_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes,
                                              unsigned flags)
{
    return 0;
}

static int coroutine_fn null_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    return 0;
}

static int coroutine_fn null_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    node_set_length(node, bytes);
    return 0;
}

static int coroutine_fn null_co_block_status(struct node *node, uint64_t offset, uint64_t bytes,
                                             uint64_t *pnum, unsigned *flags, uint64_t *host_offset)
{
    const struct null_state *null = node->opaque;

    *pnum = bytes;
    *flags = (null->no_zeroes ? 0 : NODE_STATUS_ZERO) | NODE_STATUS_ALLOCATED;
    return 0;
}

const struct node_driver null_driver = {
    .format_name = "null",
    .instance_bytes = sizeof(struct null_state),
    .co_open = null_co_open,
    .co_preadv = null_co_preadv,
    .co_pwritev = null_co_pwritev,
    .co_pwrite_zeroes = null_co_pwrite_zeroes,
    .co_pdiscard = null_co_pdiscard,
    .co_truncate = null_co_truncate,
    .co_block_status = null_co_block_status,
    .supports_fua = true,
};
