/*
 * A file on the host, as the block layer sees it: the other half of "the world" (host/runtime/world.h).
 *
 * A host_file is opened once and used from any loop; each operation runs on the calling coroutine's loop. How
 * it is done (linux-aio, io_uring, a pool of threads) was chosen at open; a simulated disk is one more
 * implementation of the table below.
 */
#ifndef RINGSIDE_AIO_HOST_FILE_H
#define RINGSIDE_AIO_HOST_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "host/runtime/coroutine.h"
#include "host/runtime/error.h"

enum aio_kind {
    AIO_DEFAULT, /* native where O_DIRECT can be had, threads elsewhere */
    AIO_NATIVE,  /* linux-aio */
    AIO_IO_URING,
    AIO_THREADS
};

#define HOST_FILE_READ_ONLY     1u
#define HOST_FILE_DIRECT        2u /* O_DIRECT wanted: an error where it can't be had, unless _MAY_FALL_BACK */
#define HOST_FILE_MAY_FALL_BACK 4u
#define HOST_FILE_CREATE        8u /* create or truncate */

struct host_file;

struct host_file_ops {
    /* All of these: coroutine context; IOV covers exactly BYTES; result 0 or a negative errno.
     * preadv: what lies beyond the end of the file reads as zeroes. Short transfers are continued inside.
     * OFFSET, BYTES, and each element's address and length are multiples of the file's alignments. */
    int (*co_preadv)(struct host_file *file, const struct iovec *iov, unsigned niov, uint64_t offset,
                     uint64_t bytes);
    int (*co_pwritev)(struct host_file *file, const struct iovec *iov, unsigned niov, uint64_t offset,
                      uint64_t bytes, bool fua);
    int (*co_fdatasync)(struct host_file *file);
    /* Reads as zeroes afterwards. MAY_UNMAP: may give the space back (punch a hole); else keeps it allocated.
     * -ENOTSUP if the file system can't do it faster than writing zeroes. */
    int (*co_write_zeroes)(struct host_file *file, uint64_t offset, uint64_t bytes, bool may_unmap);
    /* Gives the space back; contents undefined afterwards (in fact zeroes). -ENOTSUP where it can't. */
    int (*co_discard)(struct host_file *file, uint64_t offset, uint64_t bytes);
    /* Sets the size. FALLOCATE: with space allocated for the new part. */
    int (*co_truncate)(struct host_file *file, uint64_t bytes, bool fallocate);
    /* Size in bytes now; or -errno. Any thread, no coroutine needed. */
    int64_t (*size)(struct host_file *file);
    /* Next run of data or hole at OFFSET: *BYTES its length from there (0 at the end), *DATA which. -ENOTSUP.
     */
    int (*co_extent)(struct host_file *file, uint64_t offset, uint64_t *bytes, bool *data);
    /* Locks: open-file-description locks on single bytes of [start, start+len), for sharing or alone.
     * -EAGAIN if somebody else holds it. Unlock with type F_UNLCK. May block shortly. */
    int (*lock)(struct host_file *file, short type, uint64_t start, uint64_t len);
    /* Would LOCK succeed? 0, -EAGAIN if somebody holds a conflicting one. */
    int (*lock_test)(struct host_file *file, short type, uint64_t start, uint64_t len);
    void (*close)(struct host_file *file);
};

struct host_file {
    const struct host_file_ops *ops;
    char *path;
    dev_t device; /* these two tell whether two files are one */
    ino_t inode;
    mode_t mode;
    bool read_only, direct;
    bool made;                  /* HOST_FILE_CREATE has made it: there was no such file */
    enum aio_kind aio;          /* what is really used */
    uint32_t request_alignment; /* of offset and length; 1 where there is none */
    uint32_t memory_alignment;  /* of buffers */
    uint32_t max_iov;           /* elements in one transfer, at least 16 */
    uint64_t max_transfer;      /* bytes in one transfer */
};

/* Opens PATH, which must be a regular file or block device (never blocks on a FIFO, refuses a directory).
 * FLAGS are HOST_FILE_...; AIO the way wanted: one that can't be had is -ENOTSUP with a sentence, never a
 * silent other choice. Any thread. */
int host_file_open(const char *path, unsigned flags, enum aio_kind aio, struct host_file **file,
                   struct error *err);

/* Same, on a descriptor that is open already and belongs to the file from now on (also on error). */
int host_file_open_fd(int fd, const char *name, unsigned flags, enum aio_kind aio, struct host_file **file,
                      struct error *err);

/* Nothing may be in flight. NULL is fine. */
void host_file_close(struct host_file *file);

/* Closes a file that was opened with HOST_FILE_CREATE, for what was to be in it could not be written. If it
 * was made then, it goes again; if it was there, it stays, empty as that has left it already. No block device
 * is touched, and no file that another process has locked meanwhile, or that another one has taken the place
 * of. No other descriptor of this process may have it locked. NULL is fine. Coroutine. */
void coroutine_fn host_file_co_abandon(struct host_file *file);

/* The DEVICE and INODE that PATH has when it is open: a block device is one file under all its nodes. False:
 * there is no such file, or it cannot be looked at. Any thread. */
bool host_file_identify(const char *path, dev_t *device, ino_t *inode);

/* Are A and B one file? Only if both are there. Any thread. */
bool host_file_same(const char *a, const char *b);

/* realpath(PATH), to be freed; NULL with errno. In a simulated world names lead to themselves. Any thread. */
char *host_file_real_path(const char *path);

/* For a simulator: everything host_file_open would do is done by OPENER from now on. NULL restores. */
typedef int host_file_opener(const char *path, unsigned flags, enum aio_kind aio, struct host_file **file,
                             struct error *err);
void host_file_set_opener(host_file_opener *opener);

#endif
