/*
 * ringside-img -r: how many bytes a second are copied at most.
 */
#include "host/block/parse.h"
#include "host/block/throttle.h"
#include "host/cmd/img.h"
#include "host/runtime/co_lock.h"
#include "host/runtime/world.h"

#define RATE_MAX 1000000000000ull /* no disk is faster */

int img_rate_begin(struct throttle *throttle, const char *rate)
{
    struct throttle_config config = {0};
    uint64_t n = 0;
    if (rate && parse_size(rate, &n) < 0) {
        log_message("-r %s: not a rate (bytes a second, or a number with k, M, G, T; 0 for no limit)", rate);
        return CMD_EXIT_USAGE;
    }
    config.limit[THROTTLE_BPS].avg = n < RATE_MAX ? n : RATE_MAX;
    throttle_set(throttle, &config);
    return 0;
}

void coroutine_fn img_co_rate_wait(struct throttle *throttle, uint64_t bytes)
{
    if (!throttle->active)
        return;
    uint64_t now_ns = world_now_ns();
    uint64_t go_ns = throttle_reserve(throttle, true, bytes, now_ns);
    if (go_ns > now_ns)
        co_sleep_ns(go_ns - now_ns);
}
