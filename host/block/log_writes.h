/*
 * The filter behind --log-writes: records all that is done to the image file, in order, for crash tests.
 *
 * Format of the log. All integers are little-endian. A header, then records, each followed by DATA_BYTES of
 * data. An operation has two records, one as it begins and one as it ends, since operations overlap: what
 * ended before a flush began, and only that, is durable once that flush has ended well. Records of all
 * threads stand in one order. A log may end inside a record if its writer was killed.
 *
 *   BEGIN_WRITE         offset, bytes, the data; flags bit 0: FUA (durable itself once it has ended well)
 *   BEGIN_WRITE_ZEROES  offset, bytes; flags bit 0: FUA, bit 1: may unmap
 *   BEGIN_DISCARD       offset, bytes: the contents are the old ones or zeroes afterwards
 *   BEGIN_FLUSH         -
 *   BEGIN_TRUNCATE      bytes: the file's new size
 *   END                 result: 0 or a positive errno; id: that of its begin
 *   MARK                data: whatever the user of log_writes_mark wants to stand at this place
 */
#ifndef RINGSIDE_BLOCK_LOG_WRITES_H
#define RINGSIDE_BLOCK_LOG_WRITES_H

#include <stddef.h>
#include <stdint.h>

#include "common/endian.h"
#include "host/runtime/error.h"

struct node;

#define LOG_WRITES_MAGIC        "RSWRLOG1"
#define LOG_WRITES_RECORD_MAGIC 0x4352u

enum log_writes_type {
    LOG_WRITES_BEGIN_WRITE = 1,
    LOG_WRITES_BEGIN_WRITE_ZEROES = 2,
    LOG_WRITES_BEGIN_DISCARD = 3,
    LOG_WRITES_BEGIN_FLUSH = 4,
    LOG_WRITES_BEGIN_TRUNCATE = 5,
    LOG_WRITES_END = 6,
    LOG_WRITES_MARK = 7
};

#define LOG_WRITES_FUA   1u
#define LOG_WRITES_UNMAP 2u

struct log_writes_header {
    char magic[8];
    le64 image_bytes; /* size of the image file when the log began */
};

struct log_writes_record {
    le16 magic;
    le16 type;
    le32 flags;
    le64 id; /* counts up from 1 over the begins; 0 in a mark */
    le64 offset;
    le64 bytes;
    le32 result;
    le32 reserved;
    le64 data_bytes;
};

_Static_assert(sizeof(struct log_writes_record) == 48, "log_writes: record");

/* For node_co_open_filter: PATH is the log's name (const char *), created or emptied. */
int log_writes_setup(struct node *node, void *path, struct error *err);

/* The filter below TOP, or NULL. */
struct node *log_writes_find(struct node *top);

/* Puts a MARK with BYTES of DATA into FILTER's log. Any thread. */
void log_writes_mark(struct node *filter, const void *data, size_t bytes);

#endif
