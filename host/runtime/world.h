/*
 * What the host half sees of the world outside: time, chance, sleep. Everything in host/ asks through here,
 * so that a simulator can put a world of its own under the very same objects and run them all, in one
 * thread, under one seed. (Files and disks are the other half of the world: host/aio/host_file.h.)
 *
 * `world` is set before the first loop is created and does not change afterwards. Any thread.
 */
#ifndef RINGSIDE_RUNTIME_WORLD_H
#define RINGSIDE_RUNTIME_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct loop;
struct epoll_event;

struct world {
    /* Nanoseconds on a clock that never goes back. */
    uint64_t (*now_ns)(struct world *w);

    /* Fills BUF with LEN random bytes. */
    void (*random)(struct world *w, void *buf, size_t len);

    /* Sleeps until a descriptor in EPOLL_FD is ready or TIMEOUT_NS have gone by (-1: no limit, 0: look only).
     * Returns the number of events stored (at most MAX) or a negative errno; -EINTR counts as 0. */
    int (*wait)(struct world *w, struct loop *loop, int epoll_fd, struct epoll_event *events, int max,
                int64_t timeout_ns);

    /* NULL: threads are real. Else there is one thread, iothreads are loops that take turns in it, and nobody
     * may start another: returns when DONE(OPAQUE) is true, having let everything else go on meanwhile. */
    void (*block)(struct world *w, bool (*done)(void *opaque), void *opaque);
};

/* The machine's own clock, getrandom and epoll. */
extern struct world world_host;

/* The world in force; &world_host unless a simulator has put in its own. */
extern struct world *world;

static inline uint64_t world_now_ns(void)
{
    return world->now_ns(world);
}

#endif
