/*
 * Throttling by token bucket: how long a request has to wait so that the rates hold. Six limits: operations
 * and bytes a second, each for reads, writes, and both together.
 *
 * A limit lets AVG a second through. With MAX (more than AVG) there may be bursts at that rate, LENGTH
 * seconds of them from a full bucket; without it, a burst is what comes in a tenth of a second.
 *
 *   LIST = KEY=VALUE [, KEY=VALUE]...      (--throttle=LIST)
 *   KEY  = iops | iops-read | iops-write | bps | bps-read | bps-write,
 *          each also with -max (the rate of bursts) and -max-length (seconds, default 1); and
 *          iops-size: a larger request counts as several of that many bytes
 *
 * Requests are let through in the order in which they asked.
 */
#ifndef RINGSIDE_BLOCK_THROTTLE_H
#define RINGSIDE_BLOCK_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

#include "host/runtime/co_lock.h"
#include "host/runtime/error.h"

enum throttle_limit {
    THROTTLE_IOPS,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_BPS,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_LIMITS
};

struct throttle_config {
    struct {
        uint64_t avg, max, length; /* 0: no limit; no bursts; 1 second */
    } limit[THROTTLE_LIMITS];
    uint64_t iops_size;
};

struct throttle {
    struct spinlock guard;
    uint32_t active; /* 0: no limits; else a number that changes when they do. Read without the guard */
    uint32_t changes;
    struct throttle_config config;
    /* For each limit: the time at which its bucket would be full again if nothing more came, for the average
     * rate, and the same for the rate of bursts. */
    uint64_t full_again_ns[THROTTLE_LIMITS], burst_again_ns[THROTTLE_LIMITS];
};

/* 0, or -EINVAL with a sentence. */
int throttle_parse(const char *list, struct throttle_config *config, struct error *err);

/* CONFIG NULL: no limits. The buckets start full. Any thread. */
void throttle_set(struct throttle *throttle, const struct throttle_config *config);

/* Takes the tokens of a request at NOW_NS and says when it may go: a time not before NOW_NS. Any thread. */
uint64_t throttle_reserve(struct throttle *throttle, bool is_write, uint64_t bytes, uint64_t now_ns);

#endif
