/*
 * A histogram of latencies: 32 steps in each power of two, so that a percentile is right to about 3 %. Fixed
 * memory, one writer.
 */
#ifndef RINGSIDE_HARNESS_LATENCY_H
#define RINGSIDE_HARNESS_LATENCY_H

#include <stdint.h>

#define LATENCY_STEPS   32u
#define LATENCY_BUCKETS (60u * LATENCY_STEPS)

struct latency {
    uint64_t count, total_ns, min_ns, max_ns;
    uint64_t buckets[LATENCY_BUCKETS];
};

void latency_clear(struct latency *latency);
void latency_add(struct latency *latency, uint64_t ns);
void latency_merge(struct latency *to, const struct latency *from);

/* The value below which PERCENT of the samples lie; 0 without samples. */
uint64_t latency_percentile(const struct latency *latency, double percent);

#endif
