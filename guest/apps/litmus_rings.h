/*
 * Litmus tests of the rings: the driver's own ring code (guest/driver/vq_*.c) on one CPU, a plain device on
 * another, and every pair of accesses that one side publishes and the other observes.
 *
 *   what is published                     by                      observed by                        sections
 *   descriptors, payload → avail          driver: release         device:
 * acquire                    2.7.13.3, 2.8.21 answer, used element → used           device: release driver:
 * acquire                    2.7.14, 2.8.22 avail → does the device want a kick?  driver: full barrier
 * device: event → avail, full        2.7.13.4.1, 2.8.21.2 event → is something used already?    driver: full
 * barrier    device: used → interrupt?, full    2.7.14, 2.8.22
 *
 * The first two are held by checking every word that came across; the last two by sleeping for real when the
 * ring says that one may: a missing barrier ends as two sleepers, which the deadline finds.
 *
 * Freestanding: the caller brings two CPUs or threads, a clock and a pause.
 */
#ifndef RINGSIDE_LITMUS_RINGS_H
#define RINGSIDE_LITMUS_RINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/driver/vq.h"

#define LITMUS_RING  16u
#define LITMUS_SLOTS 6u

struct litmus_case {
    const char *name;
    bool packed, event_idx;
    bool sleeping; /* one chain at a time, both sides sleeping between; else many chains, nobody sleeps */
};

extern const struct litmus_case litmus_cases[];
extern const unsigned litmus_cases_count;

struct litmus {
    const struct litmus_case *what;
    uint64_t rounds;
    /* Where the two sides seldom run at the same time a round takes milliseconds: after so long, a fiftieth
     * of the rounds is enough. 0, as litmus_init leaves it: all are made. */
    uint64_t enough_ns;
    uint64_t (*now_ns)(void);
    void (*pause)(void);

    struct vq vq;
    struct vq_chain chains[LITMUS_RING];
    uint8_t ring[8192] __attribute__((aligned(4096)));
    struct { /* what vq.h calls a slot: a header that the device reads, and a status byte that it writes */
        uint64_t payload, payload_again;
        uint8_t unused0[VQ_SLOT_STATUS - VQ_HEADER_LEN];
        uint8_t answer;
        uint8_t unused1[VQ_SLOT_BYTES - VQ_SLOT_STATUS - 1];
    } slots[LITMUS_SLOTS] __attribute__((aligned(64)));

    /* the device's side */
    uint16_t avail_taken, used_given; /* split: indexes; packed: slots */
    bool avail_wrap, used_wrap;
    uint64_t seen, device_random;

    uint32_t kicks
        __attribute__((aligned(64))); /* atomic from here on: what the two sides share beside the ring */
    uint32_t interrupts __attribute__((aligned(64)));
    uint32_t device_asleep, stop;
    const char *failure;                 /* NULL: none; set once */
    uint64_t kicked, interrupted, slept; /* driver's counts */
};

/* ROUNDS chains. NOW_NS must be one clock for both sides. */
void litmus_init(struct litmus *litmus, const struct litmus_case *what, uint64_t rounds,
                 uint64_t (*now_ns)(void), void (*pause)(void));
/* Run both at the same time; both return. */
void litmus_driver(void *litmus);
void litmus_device(void *litmus);
/* Afterwards: NULL if all held. */
const char *litmus_failure(const struct litmus *litmus);

#endif
