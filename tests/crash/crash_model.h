/*
 * What the guest may find in each sector after a power loss, from the marks that a workload left in the log.
 *
 * Sectors describe themselves (crash_sector.h) by the id of the request that wrote them; id 0 is the pattern
 * that the disk or its backing file held at the start.
 */
#ifndef RINGSIDE_TESTS_CRASH_MODEL_H
#define RINGSIDE_TESTS_CRASH_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/crash/crash_log.h"

enum guest_op {
    GUEST_WRITE,
    GUEST_ZERO,
    GUEST_DISCARD,
    GUEST_FLUSH,
    GUEST_RESIZE,         /* count: the new size in sectors */
    GUEST_SNAPSHOT,       /* its name is "s" and the request's id; sector: a hash of what the disk holds */
    GUEST_SNAPSHOT_DELETE /* sector: the id of the request that made it */
};

/* Stands in the log twice for each request, as it begins and as it has been acknowledged. */
struct guest_mark {
    uint32_t end; /* 0 begin, 1 end */
    uint32_t op;
    uint32_t id; /* 1.. */
    uint32_t failed;
    uint64_t sector, count;
};

struct guest_request {
    enum guest_op op;
    uint32_t begin, end; /* places in the log; 0: no such request; end NEVER if not acknowledged */
    bool failed;
    uint64_t sector, count;
};

struct crash_model {
    uint64_t first_sectors; /* size of the disk at the start */
    bool backed; /* sectors never written show the pattern of id 0 up to backed_sectors, else zeroes */
    uint64_t backed_sectors;
    struct guest_request *requests; /* by id */
    size_t request_count;
};

bool crash_model_read(struct crash_model *model, const struct crash_log *log);
void crash_model_free(struct crash_model *model);

/* May a disk of SECTORS be what is left after a power loss at AT? */
bool crash_model_size_ok(const struct crash_model *model, uint32_t at, uint64_t sectors);

/* Compares DATA, the whole disk of SECTORS, with what may be there after a power loss right before event AT.
 * False: WHY says what was found. */
bool crash_model_verify(const struct crash_model *model, uint32_t at, const uint8_t *data, uint64_t sectors,
                        char *why, size_t why_bytes);

/* The hash of the whole disk as it was when the log began. */
uint64_t crash_model_first_hash(const struct crash_model *model);

/* May there be a snapshot NAME whose disk has the hash CONTENT? False: WHY. */
bool crash_model_snapshot_ok(const struct crash_model *model, uint32_t at, const char *name, uint64_t content,
                             char *why, size_t why_bytes);

/* How many snapshots have to be there: made, durably, and not asked to go. */
unsigned crash_model_snapshots_least(const struct crash_model *model, uint32_t at);

#endif
