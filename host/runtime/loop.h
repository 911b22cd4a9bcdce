/*
 * Event loop: one for each thread that does I/O. epoll, timers, bottom halves, a deferral list, adaptive
 * polling.
 *
 * One turn: (poll or sleep) -> descriptors -> remote wake-ups and bottom halves -> timers -> ready coroutines
 * -> deferred work, the last two repeated until neither has anything left. Work that can be batched (one
 * io_submit, one interrupt for all that came up in a turn) is put off with loop_defer.
 *
 * Everything is for the loop's own thread, except where it says "any thread". All objects below are embedded
 * in their owners: the loop allocates nothing while running.
 */
#ifndef RINGSIDE_RUNTIME_LOOP_H
#define RINGSIDE_RUNTIME_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/runtime/error.h"

struct loop;

#define LOOPS_MAX 72 /* alive at a time: 64 iothreads, the main one, and some for helpers and tests */

/* Makes a loop and binds it to the calling thread (one loop a thread). NULL with ERR set on failure. */
struct loop *loop_create(const char *name, struct error *err);

/* All handlers, timers and bottom halves must be gone. Same thread as loop_create. */
void loop_destroy(struct loop *loop);

/* The calling thread's loop, or NULL. */
struct loop *loop_current(void);

/* A small number, 0..LOOPS_MAX-1, unique among living loops: an index for per-loop state. Any thread. */
unsigned loop_index(const struct loop *loop);

const char *loop_name(const struct loop *loop);

/* One turn; sleeps in it only if MAY_BLOCK and nothing is ready. Returns true if anything was done. */
bool loop_turn(struct loop *loop, bool may_block);

/* Turns until loop_stop. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop); /* any thread */

/* Runs ENTRY(ARG) as a coroutine, and the loop until it has ended: for main programs and tests, never from
 * inside a handler or coroutine. Returns 0, or -ENOMEM if no coroutine could be had. */
int loop_run_coroutine(struct loop *loop, void (*entry)(void *), void *arg);

/* Wakes the loop out of its sleep. Any thread, also from a signal handler. */
void loop_kick(struct loop *loop);

/* ---- file descriptors ---- */

struct loop_fd {
    int fd;
    void (*on_readable)(void *opaque);
    void (*on_writable)(void *opaque); /* NULL where nobody cares */
    void *opaque;

    /* Adaptive polling; all NULL for a handler that can't be polled.
     * poll: look for work without a system call; true if there is some. It must not do the work.
     * poll_ready: do the work that poll saw.
     * poll_begin/poll_end: while it is awake and polling is not turned off the loop looks by itself, so
     * notifications (of a virtqueue, say) may be off; poll_end comes before it sleeps: they have to be on
     * again. After poll_end the loop polls once more. */
    bool (*poll)(void *opaque);
    void (*poll_ready)(void *opaque);
    void (*poll_begin)(void *opaque);
    void (*poll_end)(void *opaque);

    /* Edge-triggered: on_readable runs once for every time that the descriptor is signalled anew, so that an
     * eventfd need never be read. */
    bool edge;

    /* The loop's own from here on. */
    bool added, polling, fired;
    struct loop *loop;
    struct loop_fd *next_polled, *prev_polled;
    uint64_t poll_budget_ns;
    uint32_t poll_credit;
    uint32_t events;
};

/* The fields above the line are set by the caller, who owns the object and the descriptor. 0 or -errno. */
int loop_fd_add(struct loop *loop, struct loop_fd *handler);
/* Safe inside a handler, its own included: no callback of HANDLER runs after this returns, poll_end neither.
 * No effect on one that is not added. */
void loop_fd_remove(struct loop_fd *handler);
/* After on_readable or on_writable was set or cleared. */
void loop_fd_update(struct loop_fd *handler);

/* A handler that is polled for but has no descriptor of its own (fd -1) is allowed. */

/* Ceiling of the time the loop spins before it sleeps; 0 turns polling off. Each handler has a budget of its
 * own that grows (first step, then doubled) when spinning longer would have paid several times, and goes to
 * nothing when it did not. Any thread. */
void loop_set_poll_max_ns(struct loop *loop, uint64_t ns);

/* ---- timers ---- */

struct loop_timer {
    void (*fire)(void *opaque);
    void *opaque;
    uint64_t deadline_ns;
    /* the loop's own */
    bool armed;
    struct loop *loop;
    uint64_t sequence; /* timers of one deadline fire in the order in which they were armed */
    struct loop_timer *child, *sibling, *previous;
};

/* Arms or moves; DEADLINE_NS is on world_now_ns's clock. Fires once. */
void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns);
void loop_timer_cancel(struct loop_timer *timer); /* no effect when not armed */

/* The deadline of the timer that fires next, UINT64_MAX if none is armed. */
uint64_t loop_next_deadline(const struct loop *loop);

/* ---- bottom halves: a call in the loop's thread, asked for from anywhere ---- */

struct loop_bh {
    void (*fn)(void *opaque);
    void *opaque;
    struct loop *loop; /* set by the owner before the first schedule, not changed after */
    /* the loop's own */
    struct loop_bh *next;
    uint32_t scheduled;
};

/* FN runs once in LOOP's thread for any number of schedules before it starts. A schedule while FN runs makes
 * it run again. What was written before this call is visible in FN. Any thread. */
void loop_bh_schedule(struct loop_bh *bh);
/* Loop's thread: FN will not run unless scheduled again. */
void loop_bh_cancel(struct loop_bh *bh);

/* ---- deferral: once, at the end of this turn ---- */

struct loop_deferred {
    void (*fn)(void *opaque);
    void *opaque;
    /* the loop's own */
    struct loop_deferred *next;
    bool queued;
};

/* FN runs once when this turn has no ready handler or coroutine left, before the loop polls or sleeps;
 * asking again before that has no effect. */
void loop_defer(struct loop *loop, struct loop_deferred *deferred);

/* ---- what other modules keep for each loop: an engine's context, say ---- */

enum loop_attachment {
    LOOP_ATTACH_LAIO,
    LOOP_ATTACH_URING,
    LOOP_ATTACH_THREADS,
    LOOP_ATTACH_BLOCK,
    LOOP_ATTACH_QCOW2,
    LOOP_ATTACH_DEVICE,
    LOOP_ATTACH_TEST,
    LOOP_ATTACH_COUNT
};

/* STATE belongs to LOOP from now on: loop_destroy calls DESTROY(STATE), the latest key first, on the loop's
 * thread, with loop_current still LOOP. */
void loop_attach(struct loop *loop, enum loop_attachment key, void *state, void (*destroy)(void *state));

/* What was attached, or NULL. */
void *loop_attached(const struct loop *loop, enum loop_attachment key);

/* ---- for a simulator ---- */

/* Makes LOOP (or NULL) the calling thread's current loop and returns the one that was. Several loops can so
 * live in one thread, of which one at a time has its turn. Not inside a coroutine. */
struct loop *loop_switch_current(struct loop *loop);

/* Is there anything that a turn would do now, descriptors and timers apart? */
bool loop_pending(const struct loop *loop);

/* ---- figures ---- */

struct loop_stats {
    uint64_t turns, sleeps, polls_hit, polls_missed, wakeups_remote;
};

void loop_stats(const struct loop *loop, struct loop_stats *stats); /* any thread; a snapshot, may be torn */

#endif
