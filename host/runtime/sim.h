/*
 * A simulated world: all loops in one thread, under a clock that only moves when somebody works or when
 * everybody waits, and one seed for every choice. The same seed gives the same run, to the last switch.
 *
 * The objects that run in it are the real ones: loops, timers, coroutines, iothreads (iothread_start makes a
 * loop that has its turns here). What blocks in the real world (a loop that sleeps, iothread_call) lets
 * everything else go on here. Disks are simulated by host/aio/sim_disk.h.
 *
 * One thread; one simulation at a time. No other thread may have a loop meanwhile.
 */
#ifndef RINGSIDE_RUNTIME_SIM_H
#define RINGSIDE_RUNTIME_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "host/runtime/world.h"

struct sim;

/* Begins a simulation: `world` is the simulated one from now on. NULL if memory is short. Before the first
 * loop is made. */
struct sim *sim_start(uint64_t seed);

/* Ends it: the real world is back. All loops must be gone. */
void sim_end(struct sim *sim);

/* ---- chance ---- */

/* Streams of random numbers that do not disturb each other: one more draw in one changes nothing in another.
 */
enum sim_stream { SIM_SCHEDULE, SIM_WORLD, SIM_DISK, SIM_LOAD, SIM_FAULTS, SIM_STREAMS };

uint64_t sim_random(struct sim *sim, enum sim_stream stream);
/* 0..N-1; 0 if N is 0. */
uint64_t sim_below(struct sim *sim, enum sim_stream stream, uint64_t n);
/* True PPM times in a million. */
bool sim_chance(struct sim *sim, enum sim_stream stream, uint32_t ppm);

/* ---- time and turns ---- */

/* Somebody beside the loops who takes turns: a driver, a load generator, a saboteur. The owner's object. */
struct sim_actor {
    bool (*ready)(void *opaque);
    void (*step)(void *opaque); /* outside of loops and coroutines: loop_current() is NULL */
    uint64_t (*deadline)(
        void *opaque); /* when it will be ready without anybody's help; NULL, or UINT64_MAX: never */
    void *opaque;
    struct sim_actor *next; /* the simulator's */
};

void sim_actor_add(struct sim *sim, struct sim_actor *actor);
void sim_actor_remove(struct sim *sim, struct sim_actor *actor);

/* Lets one of those that have something to do, chosen by the seed, do one step; if nobody has, moves the
 * clock to the next deadline. False if there is none either: nothing can ever happen again. Outside of loops.
 */
bool sim_step(struct sim *sim);

/* Steps until DONE(OPAQUE). False if nothing can happen any more or STEPS_MAX have been made (0: no limit).
 */
bool sim_run_until(struct sim *sim, bool (*done)(void *opaque), void *opaque, uint64_t steps_max);

uint64_t sim_steps(const struct sim *sim);  /* made so far */
uint64_t sim_now_ns(const struct sim *sim); /* without moving the clock, as world_now_ns does */

/* A number over all that was chosen so far: two runs of one seed agree in it after the same number of steps.
 */
uint64_t sim_digest(const struct sim *sim);

/* Mixes VALUE into the digest: what a run has seen. */
void sim_digest_add(struct sim *sim, uint64_t value);

/* Called when something blocks that nothing can end any more (a deadlock), instead of abort with a message.
 * It must not return. */
void sim_on_stuck(struct sim *sim, void (*stuck)(void *opaque), void *opaque);

#endif
