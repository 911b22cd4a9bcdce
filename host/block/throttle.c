/*
 * Token buckets (throttle.h), kept as the time at which a bucket will be full again: what a request costs
 * moves that time on, and the request may go as soon as it is no further ahead than the bucket is deep.
 *
 * What always holds: tokens are taken when a request asks, also if it then has to wait, so later ones queue
 * up behind it without a list.
 */
#include "host/block/throttle.h"

#include <errno.h>
#include <string.h>

#include "host/block/parse.h"

#define SECOND_NS 1000000000ull

static const char *const limit_names[THROTTLE_LIMITS] = {"iops", "iops-read", "iops-write",
                                                         "bps",  "bps-read",  "bps-write"};

/* Rates up to this keep every product below within 128 bits; no time is further away than LATEST_NS. */
#define RATE_MAX   1000000000000ull
#define LENGTH_MAX 86400ull
#define LATEST_NS  ((uint64_t)INT64_MAX)

static int set_option(void *opaque, const char *key, const char *value, struct error *err)
{
    struct throttle_config *config = opaque;
    uint64_t number;
    if (!value || parse_size(value, &number) < 0 || number > RATE_MAX)
        return error_set(err, -EINVAL, "'%s' is not a rate for '%s' (a number up to 10^12)",
                         value ? value : "", key);
    if (strcmp(key, "iops-size") == 0) {
        config->iops_size = number;
        return 0;
    }
    for (unsigned i = 0; i < THROTTLE_LIMITS; i++) {
        size_t n = strlen(limit_names[i]);
        if (strncmp(key, limit_names[i], n) != 0)
            continue;
        if (key[n] == '\0')
            config->limit[i].avg = number;
        else if (strcmp(key + n, "-max") == 0)
            config->limit[i].max = number;
        else if (strcmp(key + n, "-max-length") == 0 && number <= LENGTH_MAX)
            config->limit[i].length = number;
        else
            continue;
        return 0;
    }
    return error_set(err, -EINVAL,
                     "unknown limit '%s' (iops, bps, with -read or -write, -max, -max-length; iops-size)",
                     key);
}

int throttle_parse(const char *list, struct throttle_config *config, struct error *err)
{
    *config = (struct throttle_config){0};
    int ret = parse_options(list, set_option, config, err);
    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < THROTTLE_LIMITS; i++) {
        if (config->limit[i].max && config->limit[i].max < config->limit[i].avg)
            return error_set(err, -EINVAL, "%s-max is less than %s", limit_names[i], limit_names[i]);
        if (config->limit[i].max && !config->limit[i].avg)
            return error_set(err, -EINVAL, "%s-max without %s", limit_names[i], limit_names[i]);
        if (config->limit[i].length && !config->limit[i].max)
            return error_set(err, -EINVAL, "%s-max-length without %s-max", limit_names[i], limit_names[i]);
    }
    return 0;
}

void throttle_set(struct throttle *throttle, const struct throttle_config *config)
{
    bool active = false;
    spin_lock(&throttle->guard);
    throttle->config = config ? *config : (struct throttle_config){0};
    memset(throttle->full_again_ns, 0, sizeof(throttle->full_again_ns));
    memset(throttle->burst_again_ns, 0, sizeof(throttle->burst_again_ns));
    for (unsigned i = 0; i < THROTTLE_LIMITS; i++)
        active = active || throttle->config.limit[i].avg != 0;
    throttle->changes = throttle->changes % 0x7fffffffu + 1;
    __atomic_store_n(&throttle->active, active ? throttle->changes : 0, __ATOMIC_RELEASE);
    spin_unlock(&throttle->guard);
}

/* Takes UNITS from a bucket that fills at RATE and is DEPTH_NS deep. When may the request go? */
static uint64_t take(uint64_t *full_again_ns, uint64_t rate, uint64_t depth_ns, uint64_t units,
                     uint64_t now_ns)
{
    if (*full_again_ns < now_ns)
        *full_again_ns = now_ns;
    uint64_t start = *full_again_ns;
    __uint128_t cost = (__uint128_t)units * SECOND_NS / rate;
    *full_again_ns = cost < LATEST_NS - start ? start + (uint64_t)cost : LATEST_NS;
    return start - now_ns > depth_ns ? start - depth_ns : now_ns;
}

uint64_t throttle_reserve(struct throttle *throttle, bool is_write, uint64_t bytes, uint64_t now_ns)
{
    static const bool for_writes[THROTTLE_LIMITS] = {true, false, true, true, false, true};
    static const bool for_reads[THROTTLE_LIMITS] = {true, true, false, true, true, false};
    uint64_t go_ns = now_ns;
    spin_lock(&throttle->guard);
    uint64_t size = throttle->config.iops_size;
    uint64_t operations = size && bytes > size ? (bytes + size - 1) / size : 1;
    for (unsigned i = 0; i < THROTTLE_LIMITS; i++) {
        uint64_t avg = throttle->config.limit[i].avg, max = throttle->config.limit[i].max;
        if (avg == 0 || !(is_write ? for_writes[i] : for_reads[i]))
            continue;
        uint64_t units = i < THROTTLE_BPS ? operations : bytes;
        uint64_t length = throttle->config.limit[i].length ? throttle->config.limit[i].length : 1;
        /* While it bursts for LENGTH seconds at MAX, the bucket fills at AVG. */
        __uint128_t depth_ns = max ? (__uint128_t)(max - avg) * length * SECOND_NS / avg : SECOND_NS / 10;
        uint64_t go = take(&throttle->full_again_ns[i], avg,
                           depth_ns < LATEST_NS ? (uint64_t)depth_ns : LATEST_NS, units, now_ns);
        if (go > go_ns)
            go_ns = go;
        if (max) {
            go = take(&throttle->burst_again_ns[i], max, SECOND_NS / 10, units, now_ns);
            if (go > go_ns)
                go_ns = go;
        }
    }
    spin_unlock(&throttle->guard);
    return go_ns;
}
