/*
 * Workloads for crash tests: what is done to an image while the log of writes runs.
 */
#ifndef RINGSIDE_TESTS_CRASH_WORKLOAD_H
#define RINGSIDE_TESTS_CRASH_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "host/qcow2/qcow2.h"

enum crash_first {
    FIRST_EMPTY,
    FIRST_BACKED_RAW,   /* empty over a raw backing file full of the pattern */
    FIRST_BACKED_QCOW2, /* the same over a qcow2 one with clusters of another size */
    FIRST_FULL,         /* every cluster allocated, with the pattern */
    FIRST_COMPRESSED,   /* every cluster compressed, with the pattern */
    FIRST_SNAPSHOT,     /* full, and an internal snapshot refers to all of it */
    FIRST_BITMAPS       /* empty, with two bitmaps: one that records writes, and one that doesn't */
};

struct crash_workload {
    const char *name, *what;
    struct qcow2_create_options create;
    enum crash_first first;
    unsigned write, zero, discard; /* weights; a flush is done about every 12 requests */
    unsigned max_sectors;          /* of one request */
    unsigned hot_sectors;          /* requests start below this sector (0: anywhere): small means reuse */
    bool resize, snapshots, zero_unmaps;
    uint64_t cache_bytes; /* of each metadata cache; 0: what is usual */
    unsigned loops;       /* 0 = 1 */
};

extern const struct crash_workload crash_workloads[];
extern const unsigned crash_workload_count;

/* Makes DIR/image (and its backing files) and DIR/first, a copy of it; then runs OPS requests with SEED, 8 at
 * a time, and leaves DIR/log. False, with a message, on any error. Not inside a loop. */
bool crash_workload_run(const struct crash_workload *workload, const char *dir, uint64_t seed, unsigned ops);

#endif
