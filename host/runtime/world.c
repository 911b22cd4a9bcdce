/*
 * The world as it is: the machine's clock, its random numbers, epoll.
 */
#include "host/runtime/world.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <time.h>

static uint64_t host_now_ns(struct world *w)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void host_random(struct world *w, void *buf, size_t len)
{
    char *p = buf;

    while (len) {
        ssize_t n = getrandom(p, len, 0);

        if (n <= 0)
            continue; /* interrupted; it knows no other error with these arguments */
        p += n;
        len -= (size_t)n;
    }
}

static int host_wait(struct world *w, struct loop *loop, int epoll_fd, struct epoll_event *events, int max,
                     int64_t timeout_ns)
{
    static uint32_t milliseconds_only;
    struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    int64_t ms;
    int n;

    if (timeout_ns > 0 && !__atomic_load_n(&milliseconds_only, __ATOMIC_RELAXED)) {
        n = epoll_pwait2(epoll_fd, events, max, &ts, NULL);
        if (n >= 0)
            return n;
        if (errno != ENOSYS && errno != EPERM) /* the latter: a container's filter that does not know it */
            return errno == EINTR ? 0 : -errno;
        __atomic_store_n(&milliseconds_only, 1, __ATOMIC_RELAXED);
    }
    ms = timeout_ns <= 0 ? timeout_ns : (timeout_ns + 999999) / 1000000;
    n = epoll_wait(epoll_fd, events, max, ms > 1000000 ? 1000000 : (int)ms);
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    return n;
}

struct world world_host = {.now_ns = host_now_ns, .random = host_random, .wait = host_wait};

struct world *world = &world_host;
