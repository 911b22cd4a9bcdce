/*
 * A disk as a file. Whole blocks go straight between the caller's buffer and the disk; a piece of a block at
 * either end is read into a block of our own, and for a write put back (read-modify-write). Queue 0,
 * synchronous.
 */
#include "guest/libc/disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest/libc/disk.h"

#define FILES_MAX 16
#define FIRST_FD  3

struct disk_file {
    bool used, dirty;
    unsigned disk;
    int flags;
    uint64_t offset, size;
    uint32_t block_size;
    uint8_t *block; /* one block, for the ragged ends */
};

static struct disk_file files[FILES_MAX];

static int fail(int error)
{
    errno = error;
    return -1;
}

/* The driver's errors are Linux's numbers, newlib's differ for some. */
static int fail_result(int result)
{
    switch (-result) {
    case VBLK_ENOTSUP:
        return fail(ENOTSUP);
    case VBLK_ETIMEDOUT:
        return fail(ETIMEDOUT);
    case VBLK_ENOTRECOVERABLE:
        return fail(ENODEV);
    default:
        return fail(-result);
    }
}

static struct disk_file *get(int fd)
{
    if (fd < FIRST_FD || fd >= FIRST_FD + FILES_MAX || !files[fd - FIRST_FD].used) {
        errno = EBADF;
        return NULL;
    }
    return &files[fd - FIRST_FD];
}

int disk_file_open(const char *path, int flags)
{
    int disk = strncmp(path, "/dev/", 5) == 0 ? disk_by_name(path) : -1;
    if (disk < 0)
        return fail(ENOENT);
    struct vblk *vblk;
    int result = disk_start((unsigned)disk, NULL, &vblk);
    if (result != 0)
        return fail_result(result);
    struct vblk_info info;
    vblk_info(vblk, &info);
    if (info.read_only && (flags & O_ACCMODE) != O_RDONLY)
        return fail(EROFS);
    for (int i = 0; i < FILES_MAX; i++) {
        struct disk_file *f = &files[i];
        if (f->used)
            continue;
        uint8_t *block = memalign(info.block_size, info.block_size);
        if (!block)
            return fail(ENOMEM);
        *f = (struct disk_file){.used = true,
                                .disk = (unsigned)disk,
                                .flags = flags,
                                .size = info.capacity_sectors * VIRTIO_BLK_SECTOR_BYTES,
                                .block_size = info.block_size,
                                .block = block};
        return i + FIRST_FD;
    }
    return fail(EMFILE);
}

int disk_file_sync(int fd)
{
    struct disk_file *f = get(fd);
    struct vblk *vblk;
    if (!f)
        return -1;
    int result = disk_start(f->disk, NULL, &vblk);
    if (result == 0)
        result = vblk_flush(vblk, 0);
    if (result != 0 && result != -VBLK_ENOTSUP)
        return fail_result(result);
    f->dirty = false;
    return 0;
}

int disk_file_close(int fd)
{
    struct disk_file *f = get(fd);
    if (!f)
        return -1;
    int result = f->dirty ? disk_file_sync(fd) : 0;
    free(f->block);
    f->used = false;
    return result;
}

/* One step of a transfer: a piece of one block, or as many whole blocks as there are. Returns the bytes moved
 * or the driver's error. */
static int64_t step(struct disk_file *f, struct vblk *vblk, uint8_t *buf, uint64_t len, bool writing)
{
    uint64_t sector = f->offset / f->block_size * (f->block_size / VIRTIO_BLK_SECTOR_BYTES);
    uint32_t inside = (uint32_t)(f->offset % f->block_size);
    if (inside == 0 && len >= f->block_size) {
        uint64_t whole = len - len % f->block_size;
        int result =
            writing ? vblk_write(vblk, 0, sector, buf, whole) : vblk_read(vblk, 0, sector, buf, whole);
        return result == 0 ? (int64_t)whole : result;
    }
    uint64_t piece = f->block_size - inside < len ? f->block_size - inside : len;
    int result = vblk_read(vblk, 0, sector, f->block, f->block_size);
    if (result != 0)
        return result;
    if (!writing) {
        memcpy(buf, f->block + inside, piece);
        return (int64_t)piece;
    }
    memcpy(f->block + inside, buf, piece);
    result = vblk_write(vblk, 0, sector, f->block, f->block_size);
    return result == 0 ? (int64_t)piece : result;
}

static _ssize_t transfer(int fd, uint8_t *buf, size_t len, bool writing)
{
    struct disk_file *f = get(fd);
    struct vblk *vblk;
    if (!f)
        return -1;
    if ((f->flags & O_ACCMODE) == (writing ? O_RDONLY : O_WRONLY))
        return fail(EBADF);
    int result = disk_start(f->disk, NULL, &vblk);
    if (result != 0)
        return fail_result(result);
    uint64_t left = f->offset < f->size ? f->size - f->offset : 0;
    if (len && writing && !left)
        return fail(ENOSPC);
    if (len > left)
        len = left;
    size_t done = 0;
    while (done < len) {
        int64_t moved = step(f, vblk, buf + done, len - done, writing);
        if (moved < 0)
            return done ? (_ssize_t)done : fail_result((int)moved);
        done += (size_t)moved;
        f->offset += (uint64_t)moved;
        f->dirty |= writing;
    }
    if (writing && f->flags & O_SYNC && disk_file_sync(fd) != 0)
        return -1;
    return (_ssize_t)done;
}

_ssize_t disk_file_read(int fd, void *buf, size_t len)
{
    return transfer(fd, buf, len, false);
}

_ssize_t disk_file_write(int fd, const void *buf, size_t len)
{
    return transfer(fd, (uint8_t *)(uintptr_t)buf, len, true);
}

off_t disk_file_seek(int fd, off_t offset, int whence)
{
    struct disk_file *f = get(fd);
    if (!f)
        return -1;
    int64_t base = whence == SEEK_CUR ? (int64_t)f->offset : whence == SEEK_END ? (int64_t)f->size : 0;
    if (base + offset < 0)
        return fail(EINVAL);
    f->offset = (uint64_t)(base + offset);
    return (off_t)f->offset;
}

int disk_file_stat(int fd, struct stat *st)
{
    const struct disk_file *f = get(fd);
    if (!f)
        return -1;
    st->st_mode = S_IFBLK | 0600;
    st->st_size = (off_t)f->size;
    st->st_blksize = 65536;
    return 0;
}
