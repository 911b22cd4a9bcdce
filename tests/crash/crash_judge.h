/*
 * Judging the image that a power loss left: what is run on each state, and when it counts as sound.
 *
 * On every state: we open it, read all of it, and every sector holds what it may (crash_model.h); so does
 * every snapshot, none is missing and none has come back. If its bytes are new, qemu-img check opens it and
 * finds leaks at most, and our check says the same as it does. On every DEEP one QEMU reads all of it too,
 * with the same result; its leaks are mended by QEMU and by us, each time to a clean image with the same
 * data; and it is written to all over the disk, after which qemu-img check finds leaks at most and the
 * snapshots are what they were.
 */
#ifndef RINGSIDE_TESTS_CRASH_JUDGE_H
#define RINGSIDE_TESTS_CRASH_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/crash/crash_model.h"
#include "tests/crash/crash_workload.h"

struct crash_judge {
    const char *dir; /* the state is DIR/state; scratch files go there too */
    const struct crash_workload *workload;
    const struct crash_model *model;
    uint64_t first_hash; /* of the disk when the log began */
    /* counted */
    uint64_t checked, leaking, read_by_qemu, mended;
};

/* False: WHY says what is wrong with DIR/state, left by a power loss right before event AT. Not inside a
 * loop. */
bool crash_judge_state(struct crash_judge *judge, uint32_t at, bool is_new, bool deep, char *why,
                       size_t why_bytes);

#endif
