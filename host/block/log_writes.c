/*
 * The --log-writes filter; log_writes.h has the format.
 *
 * What always holds: a begin is in the log before the operation goes down, and its end after it came back, so
 * whatever the log calls durable is durable. The log is a tool of tests: it is written with plain stdio under
 * a lock, and an error in it ends in an I/O error of the image, never in a silently shortened log.
 */
#include "host/block/log_writes.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/node.h"

struct log_writes {
    FILE *log;
    pthread_mutex_t guard;
    uint64_t last_id;
    bool failed;
};

/* Under the guard. */
static void put(struct log_writes *lw, const void *data, size_t bytes)
{
    if (bytes == 0 || fwrite(data, bytes, 1, lw->log) == 1)
        return;
    if (!lw->failed)
        log_message("the log of writes is not complete: %s (what writes fails from now on)", strerror(errno));
    lw->failed = true;
}

static void put_record(struct log_writes *lw, const struct log_writes_record *record, struct sg sg,
                       uint64_t data_bytes)
{
    put(lw, record, sizeof *record);
    uint64_t left = data_bytes;
    for (unsigned i = 0; i < sg.niov && left > 0; i++) {
        size_t skip = i == 0 ? sg.skip : 0;
        size_t piece = sg.iov[i].iov_len - skip;
        if (piece > left)
            piece = left;
        put(lw, (const char *)sg.iov[i].iov_base + skip, piece);
        left -= piece;
    }
}

/* Logs the begin of an operation. Returns its id, 0 if the log can't be written. */
static uint64_t log_begin(struct log_writes *lw, enum log_writes_type type, unsigned flags, uint64_t offset,
                          uint64_t bytes, const struct sg *data)
{
    struct log_writes_record record = {
        .magic = le16_put(LOG_WRITES_RECORD_MAGIC),
        .type = le16_put((uint16_t)type),
        .flags = le32_put((flags & NODE_IO_FUA ? LOG_WRITES_FUA : 0) |
                          (flags & NODE_IO_MAY_UNMAP ? LOG_WRITES_UNMAP : 0)),
        .offset = le64_put(offset),
        .bytes = le64_put(bytes),
        .data_bytes = le64_put(data ? bytes : 0),
    };
    pthread_mutex_lock(&lw->guard);
    uint64_t id = ++lw->last_id;
    record.id = le64_put(id);
    put_record(lw, &record, data ? *data : (struct sg){0}, data ? bytes : 0);
    if (lw->failed)
        id = 0;
    pthread_mutex_unlock(&lw->guard);
    return id;
}

static int log_end(struct log_writes *lw, uint64_t id, int result)
{
    struct log_writes_record record = {
        .magic = le16_put(LOG_WRITES_RECORD_MAGIC),
        .type = le16_put(LOG_WRITES_END),
        .id = le64_put(id),
        .result = le32_put((uint32_t)-result),
    };
    pthread_mutex_lock(&lw->guard);
    put(lw, &record, sizeof record);
    bool failed = lw->failed;
    pthread_mutex_unlock(&lw->guard);
    return failed && result >= 0 ? -EIO : result;
}

void log_writes_mark(struct node *filter, const void *data, size_t bytes)
{
    struct log_writes *lw = filter->opaque;
    struct log_writes_record record = {
        .magic = le16_put(LOG_WRITES_RECORD_MAGIC),
        .type = le16_put(LOG_WRITES_MARK),
        .data_bytes = le64_put(bytes),
    };
    pthread_mutex_lock(&lw->guard);
    put(lw, &record, sizeof record);
    put(lw, data, bytes);
    pthread_mutex_unlock(&lw->guard);
}

struct node *log_writes_find(struct node *top)
{
    while (top && top->driver != &log_writes_driver)
        top = top->file;
    return top;
}

int log_writes_setup(struct node *node, void *path, struct error *err)
{
    struct log_writes *lw = node->opaque;
    struct log_writes_header header = {.image_bytes = le64_put(node_length(node->file))};
    memcpy(header.magic, LOG_WRITES_MAGIC, sizeof header.magic);

    lw->log = fopen(path, "we");
    if (!lw->log) {
        int code = -errno;
        return error_set(err, code, "%s: can't write the log of writes: %s", (const char *)path,
                         strerror(-code));
    }
    pthread_mutex_init(&lw->guard, NULL);
    put(lw, &header, sizeof header);
    if (lw->failed || fflush(lw->log) != 0) {
        fclose(lw->log);
        return error_set(err, -EIO, "%s: can't write the log of writes", (const char *)path);
    }
    return 0;
}

static int coroutine_fn log_writes_co_close(struct node *node)
{
    struct log_writes *lw = node->opaque;
    int result = lw->failed ? -EIO : 0;
    if (fclose(lw->log) != 0)
        result = -EIO;
    pthread_mutex_destroy(&lw->guard);
    return result;
}

static int coroutine_fn log_writes_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                             unsigned flags)
{
    return node_co_preadv(node->file, offset, bytes, sg, flags);
}

static int coroutine_fn log_writes_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes,
                                              struct sg sg, unsigned flags)
{
    uint64_t id = log_begin(node->opaque, LOG_WRITES_BEGIN_WRITE, flags, offset, bytes, &sg);
    if (id == 0)
        return -EIO;
    int result = log_end(node->opaque, id, node_co_pwritev(node->file, offset, bytes, sg, flags));
    if (result >= 0)
        node_grow_length(node, offset + bytes);
    return result;
}

static int coroutine_fn log_writes_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes,
                                                    unsigned flags)
{
    uint64_t id = log_begin(node->opaque, LOG_WRITES_BEGIN_WRITE_ZEROES, flags, offset, bytes, NULL);
    if (id == 0)
        return -EIO;
    int result = log_end(node->opaque, id, node_co_pwrite_zeroes(node->file, offset, bytes, flags));
    if (result >= 0)
        node_grow_length(node, offset + bytes);
    return result;
}

static int coroutine_fn log_writes_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    uint64_t id = log_begin(node->opaque, LOG_WRITES_BEGIN_DISCARD, 0, offset, bytes, NULL);
    if (id == 0)
        return -EIO;
    return log_end(node->opaque, id, node_co_pdiscard(node->file, offset, bytes));
}

static int coroutine_fn log_writes_co_flush(struct node *node)
{
    uint64_t id = log_begin(node->opaque, LOG_WRITES_BEGIN_FLUSH, 0, 0, 0, NULL);
    if (id == 0)
        return -EIO;
    return log_end(node->opaque, id, node_co_flush(node->file));
}

static int coroutine_fn log_writes_co_truncate(struct node *node, uint64_t bytes, bool exact,
                                               struct error *err)
{
    uint64_t id = log_begin(node->opaque, LOG_WRITES_BEGIN_TRUNCATE, 0, 0, bytes, NULL);
    if (id == 0)
        return error_set(err, -EIO, "%s: the log of writes can't be written", node->filename);
    int result = log_end(node->opaque, id, node_co_truncate(node->file, bytes, exact, err));
    if (result >= 0)
        node_set_length(node, node_length(node->file));
    return result;
}

static int coroutine_fn log_writes_co_block_status(struct node *node, uint64_t offset, uint64_t bytes,
                                                   uint64_t *pnum, unsigned *flags, uint64_t *host_offset)
{
    return node_co_block_status(node->file, offset, bytes, pnum, flags, host_offset);
}

const struct node_driver log_writes_driver = {
    .format_name = "log-writes",
    .instance_bytes = sizeof(struct log_writes),
    .is_filter = true,
    .supports_fua = true,
    .co_close = log_writes_co_close,
    .co_preadv = log_writes_co_preadv,
    .co_pwritev = log_writes_co_pwritev,
    .co_pwrite_zeroes = log_writes_co_pwrite_zeroes,
    .co_pdiscard = log_writes_co_pdiscard,
    .co_flush = log_writes_co_flush,
    .co_truncate = log_writes_co_truncate,
    .co_block_status = log_writes_co_block_status,
};
