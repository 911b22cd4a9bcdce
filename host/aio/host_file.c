/*
 * Opening a file: what it is, whether it can be had with O_DIRECT, what alignment that wants, and which
 * engine serves it.
 */
#include "host/aio/host_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/aio/posix_file.h"

/* The kernel's bound on the elements of one transfer (UIO_MAXIOV). */
#define IOV_ELEMENTS_MAX 1024
#define TRANSFER_MAX     (1ull << 30)
/* Where nothing can be found out. */
#define ALIGNMENT_SAFE 4096u

static host_file_opener *opener;

void host_file_set_opener(host_file_opener *new_opener)
{
    opener = new_opener;
}

char *host_file_real_path(const char *path)
{
    return opener ? strdup(path) : realpath(path, NULL);
}

/* ---- which file is it ---- */

static void identify(const struct stat *st, dev_t *device, ino_t *inode)
{
    *device = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_dev;
    *inode = S_ISBLK(st->st_mode) ? 0 : st->st_ino;
}

bool host_file_identify(const char *path, dev_t *device, ino_t *inode)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return false;
    identify(&st, device, inode);
    return true;
}

bool host_file_same(const char *a, const char *b)
{
    dev_t device_a, device_b;
    ino_t inode_a, inode_b;

    return host_file_identify(a, &device_a, &inode_a) && host_file_identify(b, &device_b, &inode_b) &&
           device_a == device_b && inode_a == inode_b;
}

/* ---- alignment ---- */

static bool is_alignment(uint64_t n)
{
    return n && n <= 65536 && !(n & (n - 1));
}

static bool trial_read(int fd, char *buffer, size_t bytes, off_t at)
{
    ssize_t n;

    do {
        n = pread(fd, buffer, bytes, at);
    } while (n < 0 && errno == EINTR);
    return n >= 0 || errno != EINVAL;
}

/* Reads with ever larger alignments until the file takes it. */
static void find_alignment_by_trial(struct posix_file *posix)
{
    static const uint32_t candidates[] = {1, 512, 1024, 2048, 4096};
    struct host_file *file = &posix->file;
    char *buffer = NULL;
    off_t at;

    file->request_alignment = file->memory_alignment = ALIGNMENT_SAFE;
    /* An empty file may take any read, and tell nothing; and so may a hole. */
    at = lseek(posix->fd, 0, SEEK_DATA);
    if (at < 0 && errno == ENXIO)
        return;
    if (at < 0)
        at = 0;
    if (posix_file_ops.size(file) <= 0 || posix_memalign((void **)&buffer, 65536, 3 * 4096))
        return;
    for (unsigned i = 0; i < sizeof(candidates) / sizeof(*candidates); i++) {
        if (trial_read(posix->fd, buffer, candidates[i], at)) {
            file->request_alignment = candidates[i];
            break;
        }
    }
    for (unsigned i = 0; i < sizeof(candidates) / sizeof(*candidates); i++) {
        if (trial_read(posix->fd, buffer + candidates[i], 4096, at)) {
            file->memory_alignment = candidates[i];
            break;
        }
    }
    free(buffer);
}

static void find_alignment(struct posix_file *posix)
{
    struct host_file *file = &posix->file;
    int sector;
#ifdef STATX_DIOALIGN
    struct statx stx;
#endif

    file->request_alignment = file->memory_alignment = 1;
    if (!file->direct)
        return;
#ifdef STATX_DIOALIGN
    if (statx(posix->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && (stx.stx_mask & STATX_DIOALIGN) &&
        is_alignment(stx.stx_dio_offset_align) && is_alignment(stx.stx_dio_mem_align)) {
        file->request_alignment = stx.stx_dio_offset_align;
        file->memory_alignment = stx.stx_dio_mem_align;
        return;
    }
#endif
    if (posix->block_device && ioctl(posix->fd, BLKSSZGET, &sector) == 0 && sector > 0 &&
        is_alignment((uint64_t)sector)) {
        file->request_alignment = file->memory_alignment = (uint32_t)sector;
        return;
    }
    find_alignment_by_trial(posix);
}

/* ---- engine ---- */

static int choose_engine(struct posix_file *posix, enum aio_kind aio, struct error *err)
{
    const char *path = posix->file.path;
    int ret;

    if (aio == AIO_DEFAULT)
        aio = posix->file.direct && laio_probe() == 0 ? AIO_NATIVE : AIO_THREADS;
    switch (aio) {
    case AIO_NATIVE:
        if (!posix->file.direct)
            return error_set(err, -ENOTSUP,
                             "%s: aio=native needs the file to be open with O_DIRECT (use cache=none, or "
                             "aio=threads)",
                             path);
        ret = laio_probe();
        if (ret < 0)
            return error_set(err, -ENOTSUP,
                             "%s: linux-aio is not to be had: %s (raise fs.aio-max-nr, or use aio=threads)",
                             path, strerror(-ret));
        posix->co_submit = laio_co_submit;
        break;
    case AIO_IO_URING:
        ret = uring_probe();
        if (ret < 0)
            return error_set(err, -ENOTSUP,
                             "%s: io_uring is not to be had: %s (use aio=native or aio=threads)", path,
                             strerror(-ret));
        posix->co_submit = uring_co_submit;
        break;
    default:
        posix->co_submit = threads_co_submit;
        aio = AIO_THREADS;
        break;
    }
    posix->file.aio = aio;
    return 0;
}

/* ---- opening ---- */

static const char *kind_name(mode_t mode)
{
    return S_ISDIR(mode)    ? "a directory"
           : S_ISFIFO(mode) ? "a FIFO"
           : S_ISSOCK(mode) ? "a socket"
           : S_ISCHR(mode)  ? "a character device"
                            : "something else";
}

static int check_kind(const struct stat *st, const char *name, struct error *err)
{
    if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
        return 0;
    return error_set(err, S_ISDIR(st->st_mode) ? -EISDIR : -EINVAL,
                     "%s: is %s (an image is a regular file or a block device)", name,
                     kind_name(st->st_mode));
}

/* O_DIRECT by fcntl, for a descriptor that somebody else opened. */
static int make_direct(int fd, bool *direct)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0)
        return -errno;
    *direct = flags & O_DIRECT;
    if (*direct)
        return 0;
    if (fcntl(fd, F_SETFL, flags | O_DIRECT) < 0)
        return -errno;
    *direct = true;
    return 0;
}

int host_file_open_fd(int fd, const char *name, unsigned flags, enum aio_kind aio, struct host_file **file,
                      struct error *err)
{
    struct posix_file *posix = NULL;
    struct stat st;
    int ret, mode;

    mode = fcntl(fd, F_GETFL);
    if (mode < 0 || fstat(fd, &st) < 0) {
        ret = error_set(err, -errno, "%s: %s", name, strerror(errno));
        goto fail;
    }
    ret = check_kind(&st, name, err);
    if (ret < 0)
        goto fail;
    if (!(flags & HOST_FILE_READ_ONLY) && (mode & O_ACCMODE) == O_RDONLY) {
        ret = error_set(err, -EACCES, "%s: is open for reading only (use read-only)", name);
        goto fail;
    }
    /* It was for opening only. io_uring takes it to mean that a transfer which has to wait shall fail. */
    if ((mode & O_NONBLOCK) && fcntl(fd, F_SETFL, mode & ~O_NONBLOCK) < 0) {
        ret = error_set(err, -errno, "%s: %s", name, strerror(errno));
        goto fail;
    }
    posix = calloc(1, sizeof(*posix));
    if (posix)
        posix->file.path = strdup(name);
    if (!posix || !posix->file.path) {
        ret = error_set(err, -ENOMEM, "%s: no memory", name);
        goto fail;
    }
    posix->fd = fd;
    posix->block_device = S_ISBLK(st.st_mode);
    posix->file.ops = &posix_file_ops;
    identify(&st, &posix->file.device, &posix->file.inode);
    posix->file.mode = st.st_mode;
    posix->file.read_only = flags & HOST_FILE_READ_ONLY;
    posix->file.max_iov = IOV_ELEMENTS_MAX;
    posix->file.max_transfer = TRANSFER_MAX;
    if (flags & HOST_FILE_DIRECT) {
        ret = make_direct(fd, &posix->file.direct);
        if (ret < 0 && !(flags & HOST_FILE_MAY_FALL_BACK)) {
            error_set(err, ret, "%s: cannot be opened with O_DIRECT: %s (use cache=writeback)", name,
                      strerror(-ret));
            goto fail;
        }
    } else {
        posix->file.direct = mode & O_DIRECT;
    }
    /* Without the page cache a read always waits for the disk, and NOWAIT does not mean that wait. */
    posix->no_nowait = posix->file.direct;
    ret = choose_engine(posix, aio, err);
    if (ret < 0)
        goto fail;
    find_alignment(posix);
    *file = &posix->file;
    return 0;

fail:
    if (posix)
        free(posix->file.path);
    free(posix);
    close(fd);
    return ret;
}

/* Empties a file that was opened for creation, unless somebody has it locked (QEMU locks what it opens). */
static int empty_file(int fd, const char *path, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat st;

    if (fstat(fd, &st) < 0)
        return error_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return 0;
    if (fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK)
        return error_set(err, -EBUSY, "%s: is in use by another process (which holds a lock on it)", path);
    if (ftruncate(fd, 0) < 0)
        return error_set(err, -errno, "%s: cannot be emptied: %s", path, strerror(errno));
    return 0;
}

/* Removes PATH if it is still the file DEVICE, INODE. */
static void remove_file(const char *path, dev_t device, ino_t inode)
{
    struct stat st;

    if (lstat(path, &st) == 0 && st.st_dev == device && st.st_ino == inode)
        (void)unlink(path);
}

/* *MADE: there was no such file. */
static int open_or_create(const char *path, int mode, bool create, bool *made)
{
    int fd = create ? open(path, mode | O_CREAT | O_EXCL, 0644) : -1;

    *made = fd >= 0;
    return *made ? fd : open(path, create ? mode | O_CREAT : mode, 0644);
}

int host_file_open(const char *path, unsigned flags, enum aio_kind aio, struct host_file **file,
                   struct error *err)
{
    /* O_NONBLOCK: a FIFO that somebody put in the file's place must not make us wait for its other end. */
    int mode = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (flags & HOST_FILE_READ_ONLY ? O_RDONLY : O_RDWR);
    struct stat st;
    bool made;
    int fd, ret;

    if (opener)
        return opener(path, flags, aio, file, err);
    if (path[0] == '\0')
        return error_set(err, -ENOENT, "the name of a file is empty");
    /* Looked at before it is opened: opening a device may do something to it. */
    if (stat(path, &st) == 0) {
        ret = check_kind(&st, path, err);
        if (ret < 0)
            return ret;
    }
    fd = open_or_create(path, mode, flags & HOST_FILE_CREATE, &made);
    if (fd < 0)
        return error_set(err, -errno, "%s: cannot be %s: %s", path,
                         flags & HOST_FILE_CREATE      ? "created"
                         : flags & HOST_FILE_READ_ONLY ? "opened"
                                                       : "opened for writing",
                         strerror(errno));
    if (flags & HOST_FILE_CREATE) {
        ret = empty_file(fd, path, err);
        if (ret < 0) {
            close(fd);
            return ret;
        }
    }
    made = made && fstat(fd, &st) == 0;
    ret = host_file_open_fd(fd, path, flags, aio, file, err);
    if (ret == 0)
        (*file)->made = made;
    else if (made)
        remove_file(path, st.st_dev, st.st_ino);
    return ret;
}

void coroutine_fn host_file_co_abandon(struct host_file *file)
{
    if (!file)
        return;
    if (S_ISREG(file->mode) && file->ops->lock_test(file, F_WRLCK, 0, 0) == 0) {
        if (file->made) /* still open: no other file can have its number */
            remove_file(file->path, file->device, file->inode);
        else
            (void)file->ops->co_truncate(file, 0, false);
    }
    file->ops->close(file);
}

void host_file_close(struct host_file *file)
{
    if (file)
        file->ops->close(file);
}
