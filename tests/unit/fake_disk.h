/*
 * A disk in memory as a protocol node, for tests of what stands above it. It checks what the generic layer
 * promises to a driver, records what it was asked for, and can be slow, refuse, or hold requests back.
 */
#ifndef RINGSIDE_TESTS_FAKE_DISK_H
#define RINGSIDE_TESTS_FAKE_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "host/block/node.h"

enum fake_op { FAKE_READ, FAKE_WRITE, FAKE_ZERO, FAKE_DISCARD, FAKE_FLUSH, FAKE_TRUNCATE, FAKE_OPS };

struct fake_record {
    enum fake_op op;
    uint64_t offset, bytes;
    unsigned flags;
};

/* What reached the disk, with its data, in the order in which it was asked for. */
struct fake_logged {
    enum fake_op op;
    uint64_t offset, bytes; /* TRUNCATE: the length */
    uint8_t *data;          /* of a write */
};

struct fake_disk {
    /* set before fake_disk_open */
    struct node_limits limits;
    uint64_t length;
    bool grows, fua, no_zeroes, no_discard, as_format, read_only, detect_zeroes, detect_zeroes_unmap;
    /* may change at any time */
    uint64_t delay_ns;              /* each request sleeps so long */
    bool hold;                      /* requests wait until fake_disk_release */
    int error[FAKE_OPS];            /* what requests of a kind end with, if not 0 */
    uint64_t error_skip[FAKE_OPS];  /* after so many that go well */
    uint64_t error_times[FAKE_OPS]; /* so often; 0: always */
    bool half;                      /* of a write that fails half is there, in sectors */
    bool punches;                   /* what is discarded is lost at once */
    bool error_happens; /* the first write that ends with an error has reached the disk all the same */

    bool keep_log;
    struct fake_logged *log;
    size_t logged, log_room;

    uint8_t *data;
    uint64_t calls[FAKE_OPS];
    struct fake_record record[256]; /* the first that came */
    unsigned records;
    unsigned active, active_max;
    unsigned overlaps; /* a write was in flight together with another request on the same bytes */
    unsigned broken_promises;
    struct fake_active *active_list;
    struct spinlock guard;
    struct co_queue held;
    struct node *node;
};

/* Coroutine. NODE has one reference; DISK must outlive it. */
int coroutine_fn fake_disk_open(struct fake_disk *disk, struct node **node);
void fake_disk_release(struct fake_disk *disk); /* lets go of what is held, and holds nothing any more */
void fake_disk_free(struct fake_disk *disk);
/* Does to DATA, of LENGTH bytes, what the log says; it has to have room. Returns the new length. */
uint64_t fake_logged_apply(const struct fake_logged *logged, uint8_t *data, uint64_t length);

#endif
