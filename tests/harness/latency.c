/* A histogram of latencies: see latency.h. */
#include "tests/harness/latency.h"

#include <string.h>

static unsigned bucket_of(uint64_t ns)
{
    unsigned exponent;

    if (ns < LATENCY_STEPS)
        return (unsigned)ns;
    exponent = 63u - (unsigned)__builtin_clzll(ns) - 5u;
    return (exponent + 1) * LATENCY_STEPS + (unsigned)((ns >> exponent) & (LATENCY_STEPS - 1));
}

/* The middle of what a bucket stands for */
static uint64_t value_of(unsigned bucket)
{
    unsigned exponent = bucket / LATENCY_STEPS;
    uint64_t low;

    if (exponent == 0)
        return bucket;
    low = ((uint64_t)LATENCY_STEPS + bucket % LATENCY_STEPS) << (exponent - 1);
    return low + ((1ull << (exponent - 1)) >> 1);
}

void latency_clear(struct latency *latency)
{
    memset(latency, 0, sizeof(*latency));
    latency->min_ns = UINT64_MAX;
}

void latency_add(struct latency *latency, uint64_t ns)
{
    latency->count++;
    latency->total_ns += ns;
    if (ns < latency->min_ns)
        latency->min_ns = ns;
    if (ns > latency->max_ns)
        latency->max_ns = ns;
    latency->buckets[bucket_of(ns)]++;
}

void latency_merge(struct latency *to, const struct latency *from)
{
    to->count += from->count;
    to->total_ns += from->total_ns;
    if (from->min_ns < to->min_ns)
        to->min_ns = from->min_ns;
    if (from->max_ns > to->max_ns)
        to->max_ns = from->max_ns;
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
        to->buckets[i] += from->buckets[i];
}

uint64_t latency_percentile(const struct latency *latency, double percent)
{
    uint64_t wanted = (uint64_t)((double)latency->count * percent / 100.0), seen = 0;

    if (!latency->count)
        return 0;
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
        seen += latency->buckets[i];
        if (seen > wanted || seen == latency->count)
            return value_of(i) < latency->max_ns ? value_of(i) : latency->max_ns;
    }
    return latency->max_ns;
}
