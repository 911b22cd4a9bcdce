/*
 * Operations on a file of this machine.
 *
 * What always holds: the common case, one transfer done in one piece, is one call of the engine and nothing
 * else. A short transfer is no error and no end of space: it is continued until an error or, for reads, the
 * end of the file says otherwise.
 */
#include "host/aio/posix_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Elements in each piece of a continued transfer. */
#define PIECE_IOV 32
/* Writes of nothing in a row, without an error, before it is called one. */
#define EMPTY_WRITES_MAX 8

static struct posix_file *posix_file(struct host_file *file)
{
    return (struct posix_file *)file;
}

/* ---- transfers ---- */

/* The part of IOV from byte SKIP on, at most PIECE_IOV elements. Returns how many. */
static unsigned iov_piece(struct iovec *piece, const struct iovec *iov, unsigned niov, uint64_t skip)
{
    unsigned n = 0;

    for (unsigned i = 0; i < niov && n < PIECE_IOV; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        piece[n].iov_base = (char *)iov[i].iov_base + skip;
        piece[n].iov_len = iov[i].iov_len - skip;
        skip = 0;
        n++;
    }
    return n;
}

static void iov_zero(const struct iovec *iov, unsigned niov, uint64_t skip)
{
    for (unsigned i = 0; i < niov; i++) {
        uint64_t part = skip < iov[i].iov_len ? skip : iov[i].iov_len;

        memset((char *)iov[i].iov_base + part, 0, iov[i].iov_len - part);
        skip -= part;
    }
}

/* DONE bytes of the transfer in REQUEST came in one piece; does the rest. 0 or a negative errno. */
static __attribute__((noinline)) int coroutine_fn continue_transfer(struct posix_file *posix,
                                                                    const struct aio_request *request,
                                                                    uint64_t bytes, int64_t result)
{
    uint64_t mask = ~(uint64_t)(posix->file.request_alignment - 1), done = 0;
    struct iovec piece[PIECE_IOV];
    unsigned empty = 0;

    for (;;) {
        struct aio_request next = {.op = request->op, .fua = request->fua, .fd = request->fd, .iov = piece};

        if (result == -EINTR || result == -EAGAIN) {
            if (++empty > EMPTY_WRITES_MAX)
                return (int)result;
        } else if (result < 0) {
            return (int)result;
        } else {
            uint64_t got = done + (uint64_t)result;

            if (got >= bytes)
                return 0;
            /* The end of the file: nothing more, or less than a whole block. */
            if (request->op == AIO_OP_READ && ((uint64_t)result & mask) == 0) {
                iov_zero(request->iov, request->niov, got);
                return 0;
            }
            empty = ((uint64_t)result & mask) ? 0 : empty + 1;
            if (empty > EMPTY_WRITES_MAX)
                return -EIO;
            done += (uint64_t)result & mask;
        }
        next.niov = iov_piece(piece, request->iov, request->niov, done);
        next.offset = request->offset + done;
        result = posix->co_submit(&next);
    }
}

/* Field by field: an initializer would clear the engine's own words, too. */
static inline int coroutine_fn transfer(struct posix_file *posix, enum aio_op op, const struct iovec *iov,
                                        unsigned niov, uint64_t offset, uint64_t bytes, bool fua)
{
    struct aio_request request;
    int64_t n;

    if (!bytes)
        return 0;
    request.op = op;
    request.fua = fua;
    request.fd = posix->fd;
    request.iov = iov;
    request.niov = niov;
    request.offset = offset;
    request.no_nowait = &posix->no_nowait;
    n = posix->co_submit(&request);
    return n == (int64_t)bytes ? 0 : continue_transfer(posix, &request, bytes, n);
}

static int posix_co_preadv(struct host_file *file, const struct iovec *iov, unsigned niov, uint64_t offset,
                           uint64_t bytes)
{
    return transfer(posix_file(file), AIO_OP_READ, iov, niov, offset, bytes, false);
}

static int posix_co_pwritev(struct host_file *file, const struct iovec *iov, unsigned niov, uint64_t offset,
                            uint64_t bytes, bool fua)
{
    return transfer(posix_file(file), AIO_OP_WRITE, iov, niov, offset, bytes, fua);
}

static int posix_co_fdatasync(struct host_file *file)
{
    struct posix_file *posix = posix_file(file);
    struct aio_request request;
    int64_t ret = __atomic_load_n(&posix->flush_error, __ATOMIC_RELAXED);

    if (ret < 0)
        return (int)ret;
    request.op = AIO_OP_FDATASYNC;
    request.fua = false;
    request.fd = posix->fd;
    request.iov = NULL;
    request.niov = 0;
    request.offset = 0;
    request.no_nowait = NULL;
    ret = posix->co_submit(&request);
    if (ret < 0 && !file->direct)
        __atomic_store_n(&posix->flush_error, (int32_t)ret, __ATOMIC_RELAXED);
    return ret < 0 ? (int)ret : 0;
}

/* ---- space ---- */

struct space_call {
    struct posix_file *posix;
    int mode; /* of fallocate; -1: set the size */
    uint64_t offset, bytes;
};

static int call_fallocate(const struct space_call *call, int mode)
{
    int ret;

    do {
        ret = fallocate(call->posix->fd, mode, (off_t)call->offset, (off_t)call->bytes);
    } while (ret < 0 && errno == EINTR);
    if (ret == 0)
        return 0;
    switch (errno) {
    case EOPNOTSUPP:
    case ENOSYS:
    case ENODEV:
        return -ENOTSUP;
    case EINVAL: /* a block device, and a range that its blocks do not fit */
        return call->posix->block_device ? -ENOTSUP : -EINVAL;
    default:
        return -errno;
    }
}

static int punch_hole(void *opaque)
{
    struct space_call *call = opaque;

    return call_fallocate(call, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
}

static int zero_range(void *opaque)
{
    struct space_call *call = opaque;

    return call_fallocate(call, FALLOC_FL_ZERO_RANGE);
}

/* Without ZERO_RANGE, but with holes: what was given back is allocated again, and reads as zeroes. */
static int punch_and_allocate(void *opaque)
{
    struct space_call *call = opaque;
    int ret = call_fallocate(call, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);

    return ret < 0 ? ret : call_fallocate(call, 0);
}

static int posix_co_discard(struct host_file *file, uint64_t offset, uint64_t bytes)
{
    struct space_call call = {.posix = posix_file(file), .offset = offset, .bytes = bytes};
    int ret;

    if (!bytes)
        return 0;
    if (__atomic_load_n(&call.posix->no_punch_hole, __ATOMIC_RELAXED))
        return -ENOTSUP;
    ret = threads_co_call(punch_hole, &call);
    if (ret == -ENOTSUP && !call.posix->block_device)
        __atomic_store_n(&call.posix->no_punch_hole, 1, __ATOMIC_RELAXED);
    return ret;
}

static int posix_co_write_zeroes(struct host_file *file, uint64_t offset, uint64_t bytes, bool may_unmap)
{
    struct space_call call = {.posix = posix_file(file), .offset = offset, .bytes = bytes};
    int ret;

    if (!bytes)
        return 0;
    if (may_unmap) {
        ret = posix_co_discard(file, offset, bytes);
        if (ret != -ENOTSUP)
            return ret;
    }
    if (!__atomic_load_n(&call.posix->no_zero_range, __ATOMIC_RELAXED)) {
        ret = threads_co_call(zero_range, &call);
        if (ret != -ENOTSUP || call.posix->block_device)
            return ret;
        __atomic_store_n(&call.posix->no_zero_range, 1, __ATOMIC_RELAXED);
    }
    if (call.posix->block_device || __atomic_load_n(&call.posix->no_punch_hole, __ATOMIC_RELAXED))
        return -ENOTSUP;
    ret = threads_co_call(punch_and_allocate, &call);
    if (ret == -ENOTSUP)
        __atomic_store_n(&call.posix->no_punch_hole, 1, __ATOMIC_RELAXED);
    return ret;
}

static int64_t posix_size(struct host_file *file)
{
    struct posix_file *posix = posix_file(file);
    struct stat st;

    if (posix->block_device) {
        uint64_t bytes;

        if (ioctl(posix->fd, BLKGETSIZE64, &bytes) < 0)
            return -errno;
        return bytes > INT64_MAX ? INT64_MAX : (int64_t)bytes;
    }
    return fstat(posix->fd, &st) < 0 ? -errno : (int64_t)st.st_size;
}

struct truncate_call {
    struct posix_file *posix;
    uint64_t bytes;
    bool allocate;
};

static int set_size(void *opaque)
{
    struct truncate_call *call = opaque;
    int64_t size = posix_size(&call->posix->file);

    if (size < 0)
        return (int)size;
    if (call->allocate && (uint64_t)size < call->bytes) {
        struct space_call space = {
            .posix = call->posix, .offset = (uint64_t)size, .bytes = call->bytes - (uint64_t)size};

        return call_fallocate(&space, 0);
    }
    if (ftruncate(call->posix->fd, (off_t)call->bytes) < 0)
        return -errno;
    return 0;
}

static int posix_co_truncate(struct host_file *file, uint64_t bytes, bool allocate)
{
    struct truncate_call call = {posix_file(file), bytes, allocate};

    if (bytes > INT64_MAX)
        return -EFBIG;
    if (call.posix->block_device) {
        int64_t size = posix_size(file);

        return size < 0 ? (int)size : bytes <= (uint64_t)size ? 0 : -ENOSPC;
    }
    return threads_co_call(set_size, &call);
}

/* ---- extents ---- */

struct extent_call {
    struct posix_file *posix;
    uint64_t offset, bytes;
    bool data;
};

static int find_extent(void *opaque)
{
    struct extent_call *call = opaque;
    int fd = call->posix->fd;
    int64_t size = posix_size(&call->posix->file);
    off_t at = (off_t)call->offset, data, hole;

    if (size < 0)
        return (int)size;
    call->bytes = 0;
    call->data = false;
    if (call->offset >= (uint64_t)size)
        return 0;
    data = lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return errno == EINVAL ? -ENOTSUP : -errno;
    if (data < 0 || data > at) { /* a hole, up to the data or the end */
        call->bytes = (uint64_t)(data < 0 || data > size ? size : data) - call->offset;
        return 0;
    }
    hole = lseek(fd, at, SEEK_HOLE);
    if (hole < 0)
        return errno == EINVAL ? -ENOTSUP : -errno;
    call->data = true;
    /* Somebody else may have changed the file in between. */
    call->bytes = hole > at ? (uint64_t)(hole - at) : (uint64_t)(size - at);
    return 0;
}

static int posix_co_extent(struct host_file *file, uint64_t offset, uint64_t *bytes, bool *data)
{
    struct extent_call call = {.posix = posix_file(file), .offset = offset};
    int ret;

    if (offset > INT64_MAX) {
        *bytes = 0;
        *data = false;
        return 0;
    }
    if (call.posix->block_device)
        return -ENOTSUP;
    ret = threads_co_call(find_extent, &call);
    *bytes = call.bytes;
    *data = call.data;
    return ret;
}

/* ---- locks ---- */

static int posix_lock(struct host_file *file, short type, uint64_t start, uint64_t len)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)len};

    if (fcntl(posix_file(file)->fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

static int posix_lock_test(struct host_file *file, short type, uint64_t start, uint64_t len)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)len};

    if (fcntl(posix_file(file)->fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

static void posix_close(struct host_file *file)
{
    close(posix_file(file)->fd);
    free(file->path);
    free(file);
}

const struct host_file_ops posix_file_ops = {
    .co_preadv = posix_co_preadv,
    .co_pwritev = posix_co_pwritev,
    .co_fdatasync = posix_co_fdatasync,
    .co_write_zeroes = posix_co_write_zeroes,
    .co_discard = posix_co_discard,
    .co_truncate = posix_co_truncate,
    .size = posix_size,
    .co_extent = posix_co_extent,
    .lock = posix_lock,
    .lock_test = posix_lock_test,
    .close = posix_close,
};
