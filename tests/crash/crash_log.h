/*
 * A log of writes (host/block/log_writes.h), taken apart, and the states in which a power loss may leave the
 * image file that it was made on.
 *
 * What is durable at a point of the log: a write that ended well before a flush began which itself has ended
 * well, and a FUA write that has ended well. Everything else that had begun may be there, or not, or in part
 * (512-byte sectors are whole). Operations on one sector that did not overlap in time keep their order.
 */
#ifndef RINGSIDE_TESTS_CRASH_LOG_H
#define RINGSIDE_TESTS_CRASH_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/block/log_writes.h"

#define NEVER UINT32_MAX

struct log_op {
    enum log_writes_type type;
    bool fua;
    uint64_t offset, bytes;
    const uint8_t *data;
    uint32_t begin, end; /* places in the log; end NEVER if it did not end */
    bool failed;
};

enum log_event_kind { LOG_EVENT_BEGIN, LOG_EVENT_END, LOG_EVENT_MARK };

struct log_event {
    enum log_event_kind kind;
    uint32_t op; /* index, for begin and end */
    const void *mark;
    size_t mark_bytes;
};

struct crash_log {
    uint8_t *text;
    size_t text_bytes;
    uint64_t image_bytes; /* of the file when the log began */
    struct log_op *ops;   /* in order of their begins */
    size_t op_count;
    struct log_event *events;
    size_t event_count;
};

/* False, with a message on stderr, if PATH is no log. A record cut short at the end is left out. */
bool crash_log_read(const char *path, struct crash_log *log);
void crash_log_free(struct crash_log *log);

/* How a state is chosen */
enum crash_choice {
    CRASH_ALL,     /* all that had begun is there */
    CRASH_ENDED,   /* all that had ended is there */
    CRASH_DURABLE, /* only what had to be */
    CRASH_RANDOM   /* a random subset, some of it torn; what overlapped in time comes in any order */
};

struct crash_effect {
    uint64_t moment;
    const struct log_op *op;
};

struct crash_disk {
    const struct crash_log *log;
    size_t limit;  /* bytes of the buffers: the largest the file ever gets */
    uint8_t *base; /* contents after all operations before base_ops, all of them durable */
    uint64_t base_bytes;
    size_t base_ops;
    uint8_t *state; /* the state asked for */
    uint64_t state_bytes;
    struct crash_effect *order; /* room for all operations */
};

bool crash_disk_init(struct crash_disk *disk, const struct crash_log *log, const char *first_image);
void crash_disk_free(struct crash_disk *disk);

/* Builds the state after a power loss right before event AT. AT must not go down from call to call. */
void crash_disk_state(struct crash_disk *disk, uint32_t at, enum crash_choice choice, uint64_t seed);

/* A small generator; every seed gives another sequence. */
uint64_t crash_random(uint64_t *seed);

/* 64 bits that stand for BYTES of DATA. */
uint64_t crash_hash(const uint8_t *data, size_t bytes);

#endif
