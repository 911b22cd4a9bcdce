/*
 * A file of this machine, as a host_file. Private to host/aio: host_file.c opens it, posix_file.c does the
 * operations.
 */
#ifndef RINGSIDE_AIO_POSIX_FILE_H
#define RINGSIDE_AIO_POSIX_FILE_H

#include "host/aio/aio.h"
#include "host/aio/host_file.h"

struct posix_file {
    struct host_file file;
    int fd;
    bool block_device;
    int64_t (*co_submit)(struct aio_request *request);
    /* Set when the file system said that it does not know the operation; any thread. */
    uint32_t no_zero_range, no_punch_hole, no_nowait;
    /* A flush failed and the page cache may have dropped what was not written: no flush succeeds any more. */
    int32_t flush_error;
};

extern const struct host_file_ops posix_file_ops;

#endif
