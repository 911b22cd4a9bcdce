/*
 * The simulated world's scheduler and clock.
 *
 * What always holds: every choice is drawn from the seed's streams; nothing depends on addresses, on the real
 * time or on the kernel, except the order in which epoll reports descriptors, and that is the order in which
 * this one thread made them ready. A loop that blocks inside its turn is marked busy, and gets no other turn
 * until it goes on.
 */
#include "host/runtime/sim.h"

#include <assert.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "host/runtime/error.h"
#include "host/runtime/loop_internal.h"

/* A step takes up to this long of the simulated time; looking at the clock takes a bit. */
#define STEP_NS_MAX 4000
#define LOOK_NS     20
/* One step in so many goes to any loop, ready or not. */
#define ODD_TURN 16

struct sim {
    struct world world;
    uint64_t stream[SIM_STREAMS];
    uint64_t now_ns, steps, digest;
    struct sim_actor *actors;
    unsigned busy[LOOPS_MAX];
    void (*stuck)(void *opaque);
    void *stuck_opaque;
};

/* ---- chance ---- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    return x;
}

uint64_t sim_random(struct sim *sim, enum sim_stream stream)
{
    return mix(sim->stream[stream] += 0x9e3779b97f4a7c15u);
}

uint64_t sim_below(struct sim *sim, enum sim_stream stream, uint64_t n)
{
    return n ? (uint64_t)(((unsigned __int128)sim_random(sim, stream) * n) >> 64) : 0;
}

bool sim_chance(struct sim *sim, enum sim_stream stream, uint32_t ppm)
{
    return ppm && sim_below(sim, stream, 1000000) < ppm;
}

void sim_digest_add(struct sim *sim, uint64_t value)
{
    sim->digest = mix(sim->digest ^ value) + 1;
}

uint64_t sim_digest(const struct sim *sim)
{
    return sim->digest;
}

/* ---- turns ---- */

struct loops {
    struct loop *loop[LOOPS_MAX];
    unsigned count;
};

static void collect(struct loop *loop, void *opaque)
{
    struct loops *loops = opaque;

    loops->loop[loops->count++] = loop;
}

static bool loop_ready(struct sim *sim, struct loop *loop)
{
    struct pollfd fd = {.fd = loop->epoll_fd, .events = POLLIN};

    return loop_pending(loop) || loop_next_deadline(loop) <= sim->now_ns || poll(&fd, 1, 0) > 0;
}

static bool turn(struct loop *loop)
{
    struct loop *current = loop_switch_current(loop);
    bool progress = loop_turn(loop, false);

    loop_switch_current(current);
    return progress;
}

/* One step, by whoever is drawn. The caller is outside of all coroutines. */
static bool step(struct sim *sim)
{
    struct loops loops = {.count = 0};
    struct loop *ready[LOOPS_MAX], *idle[LOOPS_MAX];
    struct sim_actor *actor, *chosen_actor = NULL;
    unsigned ready_count = 0, idle_count = 0, actors = 0;
    uint64_t next = UINT64_MAX, choice;

    loop_for_each(collect, &loops);
    for (unsigned i = 0; i < loops.count; i++) {
        struct loop *loop = loops.loop[i];

        if (!sim->busy[loop_index(loop)]) {
            if (loop_ready(sim, loop))
                ready[ready_count++] = loop;
            else
                idle[idle_count++] = loop;
        }
        if (loop_next_deadline(loop) < next)
            next = loop_next_deadline(loop);
    }
    for (actor = sim->actors; actor; actor = actor->next) {
        uint64_t deadline = actor->deadline ? actor->deadline(actor->opaque) : UINT64_MAX;

        if (actor->ready(actor->opaque)) {
            actors++;
            /* Each of those seen so far is as likely as the others. */
            if (sim_below(sim, SIM_SCHEDULE, actors) == 0)
                chosen_actor = actor;
        }
        if (deadline < next)
            next = deadline;
    }

    sim->steps++;
    sim->now_ns += 1 + sim_below(sim, SIM_SCHEDULE, STEP_NS_MAX);
    if (idle_count && sim_below(sim, SIM_SCHEDULE, ODD_TURN) == 0) {
        turn(idle[sim_below(sim, SIM_SCHEDULE, idle_count)]);
        return true;
    }
    if (ready_count + actors) {
        choice = sim_below(sim, SIM_SCHEDULE, ready_count + actors);
        sim_digest_add(sim, choice < ready_count ? loop_index(ready[choice]) : 1000 + choice);
        if (choice < ready_count)
            turn(ready[choice]);
        else if (chosen_actor)
            chosen_actor->step(chosen_actor->opaque);
        return true;
    }
    /* A handler that is polled only says so to nobody but the loop that asks it. */
    for (unsigned i = 0; i < idle_count; i++) {
        if (turn(idle[i]))
            return true;
    }
    if (next == UINT64_MAX)
        return false;
    if (next > sim->now_ns)
        sim->now_ns = next;
    return true;
}

bool sim_step(struct sim *sim)
{
    struct loop *current = loop_switch_current(NULL);
    bool progress = step(sim);

    loop_switch_current(current);
    return progress;
}

bool sim_run_until(struct sim *sim, bool (*done)(void *opaque), void *opaque, uint64_t steps_max)
{
    struct loop *current = loop_switch_current(NULL);
    uint64_t first = sim->steps;
    bool ended;

    while (!(ended = done(opaque))) {
        if ((steps_max && sim->steps - first >= steps_max) || !step(sim))
            break;
    }
    loop_switch_current(current);
    return ended;
}

uint64_t sim_steps(const struct sim *sim)
{
    return sim->steps;
}

uint64_t sim_now_ns(const struct sim *sim)
{
    return sim->now_ns;
}

static __attribute__((noreturn)) void stuck(struct sim *sim)
{
    if (sim->stuck)
        sim->stuck(sim->stuck_opaque);
    log_message("simulation: everybody waits and nothing will ever happen (step %llu)",
                (unsigned long long)sim->steps);
    abort();
}

/* ---- the world ---- */

static struct sim *sim_of(struct world *w)
{
    return (struct sim *)w;
}

static uint64_t world_now(struct world *w)
{
    return sim_of(w)->now_ns += LOOK_NS;
}

static void world_random(struct world *w, void *buf, size_t len)
{
    unsigned char *p = buf;

    for (size_t i = 0; i < len; i++)
        p[i] = (unsigned char)sim_random(sim_of(w), SIM_WORLD);
}

/* Lets others go on while the current loop, and the coroutine it may be in, stays where it is. */
static void let_others_go_on(struct sim *sim)
{
    struct coroutine *co = co_current;
    struct loop *current = loop_current_thread;

    co_current = NULL;
    loop_current_thread = NULL;
    if (current)
        sim->busy[loop_index(current)]++;
    if (!step(sim))
        stuck(sim);
    if (current)
        sim->busy[loop_index(current)]--;
    loop_current_thread = current;
    co_current = co;
}

static void world_block(struct world *w, bool (*done)(void *opaque), void *opaque)
{
    while (!done(opaque))
        let_others_go_on(sim_of(w));
}

static int world_wait(struct world *w, struct loop *loop, int epoll_fd, struct epoll_event *events, int max,
                      int64_t timeout_ns)
{
    struct sim *sim = sim_of(w);
    uint64_t deadline = timeout_ns < 0 ? UINT64_MAX : sim->now_ns + (uint64_t)timeout_ns;
    int n;

    for (;;) {
        n = epoll_wait(epoll_fd, events, max, 0);
        if (n || timeout_ns == 0 || loop_pending(loop) || sim->now_ns >= deadline)
            break;
        let_others_go_on(sim);
    }
    /* Which of several is dispatched first is nobody's promise. */
    for (int i = n - 1; i > 0; i--) {
        int k = (int)sim_below(sim, SIM_SCHEDULE, (uint64_t)i + 1);
        struct epoll_event swap = events[i];

        events[i] = events[k];
        events[k] = swap;
    }
    return n > 0 ? n : 0;
}

struct sim *sim_start(uint64_t seed)
{
    struct sim *sim = calloc(1, sizeof(*sim));

    assert(world == &world_host && !loop_current_thread);
    if (!sim)
        return NULL;
    sim->world =
        (struct world){.now_ns = world_now, .random = world_random, .wait = world_wait, .block = world_block};
    for (unsigned i = 0; i < SIM_STREAMS; i++)
        sim->stream[i] = mix(seed + 1) ^ mix(0x51a3u + i);
    sim->now_ns = 1000000000;
    sim->digest = seed;
    world = &sim->world;
    return sim;
}

void sim_end(struct sim *sim)
{
    struct loops loops = {.count = 0};

    loop_for_each(collect, &loops);
    assert(!loops.count);
    world = &world_host;
    free(sim);
}

void sim_on_stuck(struct sim *sim, void (*fn)(void *opaque), void *opaque)
{
    sim->stuck = fn;
    sim->stuck_opaque = opaque;
}

void sim_actor_add(struct sim *sim, struct sim_actor *actor)
{
    struct sim_actor **link = &sim->actors;

    while (*link)
        link = &(*link)->next;
    actor->next = NULL;
    *link = actor;
}

void sim_actor_remove(struct sim *sim, struct sim_actor *actor)
{
    struct sim_actor **link;

    for (link = &sim->actors; *link; link = &(*link)->next) {
        if (*link == actor) {
            *link = actor->next;
            return;
        }
    }
}
