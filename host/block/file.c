/*
 * The protocol node: a file or block device of the host (host/aio/host_file.h) as a node.
 *
 * What always holds: the range of a request is aligned as the host file wants it; the end moves with writes;
 * the image lock (file_lock.h) is held from open to close.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/block/file_lock.h"
#include "host/block/node.h"
#include "host/block/resolve.h"
#include "host/runtime/trace.h"

/* Elements that are laid out on the stack when a request does not match its iovec array exactly. */
#define FLATTEN_ON_STACK 64

/* Is HOST one of the files above it? Asked before it is locked: the lock that is in the way would be our own.
 */
static int check_ancestors(const struct host_file *host, const struct open_options *options,
                           struct error *err)
{
    for (const struct node_ancestor *a = options->ancestors; a; a = a->above) {
        if (a->device == host->device && a->inode == host->inode)
            return error_set(err, -ELOOP, "%s: is already part of this image: the chain of files is a loop",
                             host->path);
    }
    return 0;
}

static int coroutine_fn file_co_open(struct node *node, const struct open_options *options, struct error *err)
{
    struct host_file *host;
    unsigned flags = options->read_only ? HOST_FILE_READ_ONLY : 0;
    if (options->cache == CACHE_NONE)
        flags |= HOST_FILE_DIRECT | (options->aio == AIO_NATIVE ? 0 : HOST_FILE_MAY_FALL_BACK);
    int ret = host_file_open(node->filename, flags, options->aio, &host, err);
    if (ret < 0)
        return ret;
    int64_t size = host->ops->size(host);
    if (size < 0) {
        ret = error_set(err, (int)size, "%s: its size cannot be found out: %s", node->filename,
                        strerror((int)-size));
        goto fail;
    }
    ret = check_ancestors(host, options, err);
    if (ret < 0)
        goto fail;
    if (!options->no_lock && !options->inactive) {
        ret = file_lock(host, options->read_only, options->force_share, err);
        if (ret < 0)
            goto fail;
    }
    node->host = host;
    node->fua_is_flush = !host->direct;
    node->limits.request_alignment = host->request_alignment;
    node->limits.memory_alignment = host->memory_alignment;
    node->limits.max_iov = host->max_iov;
    node->limits.max_transfer = host->max_transfer;
    node->supports_zeroes = host->ops->co_write_zeroes != NULL;
    node_set_length(node, (uint64_t)size);
    return 0;

fail:
    host_file_close(host);
    return ret;
}

static int coroutine_fn file_co_close(struct node *node)
{
    host_file_close(node->host);
    node->host = NULL;
    return 0;
}

typedef int coroutine_fn file_transfer(struct node *node, const struct iovec *iov, unsigned niov,
                                       uint64_t offset, uint64_t bytes, unsigned flags);

static int coroutine_fn file_read(struct node *node, const struct iovec *iov, unsigned niov, uint64_t offset,
                                  uint64_t bytes, unsigned flags)
{
    return node->host->ops->co_preadv(node->host, iov, niov, offset, bytes);
}

static int coroutine_fn file_write(struct node *node, const struct iovec *iov, unsigned niov, uint64_t offset,
                                   uint64_t bytes, unsigned flags)
{
    return node->host->ops->co_pwritev(node->host, iov, niov, offset, bytes, flags & NODE_IO_FUA);
}

/* Rare: the piece begins or ends inside an element, or the list goes on after it. */
static int coroutine_fn __attribute__((noinline))
file_transfer_flat(struct node *node, file_transfer *transfer, uint64_t offset, uint64_t bytes, struct sg sg,
                   unsigned flags)
{
    struct iovec on_stack[FLATTEN_ON_STACK], *iov = on_stack;
    unsigned count = sg_count(sg, bytes);
    if (count > FLATTEN_ON_STACK) {
        iov = malloc(count * sizeof(*iov));
        if (!iov)
            return -ENOMEM;
    }
    int niov = sg_flatten(sg, bytes, iov, count);
    int ret = niov < 0 ? niov : transfer(node, iov, (unsigned)niov, offset, bytes, flags);
    if (iov != on_stack)
        free(iov);
    return ret;
}

static inline int coroutine_fn file_transfer_sg(struct node *node, file_transfer *transfer, uint64_t offset,
                                                uint64_t bytes, struct sg sg, unsigned flags)
{
    if (sg.skip == 0) {
        size_t total = 0;
        for (unsigned i = 0; i < sg.niov; i++)
            total += sg.iov[i].iov_len;
        if (total == bytes)
            return transfer(node, sg.iov, sg.niov, offset, bytes, flags);
    }
    return file_transfer_flat(node, transfer, offset, bytes, sg, flags);
}

static int coroutine_fn file_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                       unsigned flags)
{
    trace(TRACE_FILE_CO_PREADV, co_trace_id(), offset, bytes);
    return file_transfer_sg(node, file_read, offset, bytes, sg, flags);
}

static int coroutine_fn file_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                        unsigned flags)
{
    if (flags & NODE_IO_COMPRESSED)
        return -ENOTSUP;
    trace(TRACE_FILE_CO_PWRITEV, co_trace_id(), offset, bytes);
    int ret = file_transfer_sg(node, file_write, offset, bytes, sg, flags);
    if (ret == 0 && offset + bytes > node_length(node))
        node_grow_length(node, offset + bytes);
    return ret;
}

static int coroutine_fn file_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes,
                                              unsigned flags)
{
    struct host_file *host = node->host;
    if (!host->ops->co_write_zeroes)
        return -ENOTSUP;
    bool unmap = flags & NODE_IO_MAY_UNMAP;
    /* Making a hole does not move the end of the file: what does is the last block. */
    uint64_t last = unmap && offset + bytes > node_length(node) ? node->limits.request_alignment : 0;
    if (last > bytes)
        last = bytes;
    int ret = bytes > last ? host->ops->co_write_zeroes(host, offset, bytes - last, unmap) : 0;
    if (ret == 0 && last > 0)
        ret = host->ops->co_write_zeroes(host, offset + bytes - last, last, false);
    if (ret == 0 && (flags & NODE_IO_FUA))
        ret = host->ops->co_fdatasync(host);
    if (ret == 0)
        node_grow_length(node, offset + bytes);
    return ret;
}

static int coroutine_fn file_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    struct host_file *host = node->host;
    uint64_t length = node_length(node);
    if (!host->ops->co_discard || offset >= length)
        return 0;
    return host->ops->co_discard(host, offset, bytes < length - offset ? bytes : length - offset);
}

static int coroutine_fn file_co_flush(struct node *node)
{
    trace(TRACE_FILE_CO_FLUSH, co_trace_id(), 0, 0);
    return node->host->ops->co_fdatasync(node->host);
}

static int coroutine_fn file_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    struct host_file *host = node->host;
    if (!exact && bytes <= node_length(node))
        return 0;
    if (!S_ISREG(host->mode)) {
        int64_t size = host->ops->size(host);
        if (size >= 0 && (exact ? (uint64_t)size == bytes : (uint64_t)size >= bytes))
            return 0;
        if (size >= 0 && !exact)
            return error_set(err, -ENOSPC, "%s: has only %lld bytes", node->filename, (long long)size);
        return error_set(err, -ENOTSUP, "%s: is not a regular file: it cannot be resized", node->filename);
    }
    int ret = host->ops->co_truncate(host, bytes, false);
    if (ret < 0)
        return error_set(err, ret, "%s: cannot be resized to %llu bytes: %s", node->filename,
                         (unsigned long long)bytes, strerror(-ret));
    node_set_length(node, bytes);
    return 0;
}

static int coroutine_fn file_co_block_status(struct node *node, uint64_t offset, uint64_t bytes,
                                             uint64_t *pnum, unsigned *flags, uint64_t *host_offset)
{
    struct host_file *host = node->host;
    uint64_t run = 0;
    bool data = true;
    *host_offset = offset;
    int ret = host->ops->co_extent ? host->ops->co_extent(host, offset, &run, &data) : -ENOTSUP;
    if (ret == -ENOTSUP || run == 0) {
        run = bytes;
        data = true;
    } else if (ret < 0) {
        return ret;
    }
    *pnum = run < bytes ? run : bytes;
    *flags = (data ? NODE_STATUS_DATA : NODE_STATUS_ZERO) | NODE_STATUS_ALLOCATED | NODE_STATUS_OFFSET;
    return 0;
}

const struct node_driver file_driver = {
    .format_name = "file",
    .is_protocol = true,
    .co_open = file_co_open,
    .co_close = file_co_close,
    .co_preadv = file_co_preadv,
    .co_pwritev = file_co_pwritev,
    .co_pwrite_zeroes = file_co_pwrite_zeroes,
    .co_pdiscard = file_co_pdiscard,
    .co_flush = file_co_flush,
    .co_truncate = file_co_truncate,
    .co_block_status = file_co_block_status,
    .supports_fua = true,
};
