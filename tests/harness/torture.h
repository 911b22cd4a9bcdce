/*
 * `ringside torture`: what a device does with malformed messages, rings and requests. Each case has a fresh
 * connection; after each the device must serve an ordinary front end as if nothing had been, and hold no
 * descriptor, mapping or coroutine more than before.
 */
#ifndef RINGSIDE_HARNESS_TORTURE_H
#define RINGSIDE_HARNESS_TORTURE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/harness/bed.h"
#include "tests/harness/model.h"

enum outcome {
    OUTCOME_ANSWERED, /* the connection goes on (a status, an acknowledgement, or nothing to say) */
    OUTCOME_REFUSED,  /* an acknowledgement said no, or a request ended with an error status */
    OUTCOME_RESET,    /* the device asks for a reset */
    OUTCOME_ENDED,    /* the device ended the connection */
    OUTCOME_SILENCE,  /* nothing came back, and the connection stands */
    OUTCOME_SKIPPED   /* the device does not offer what the case is about */
};

/* What a front end that has gone may leave behind. */
struct residue {
    unsigned descriptors, mappings; /* of the device's process; mappings of memfds */
    size_t coroutines;              /* of our own device */
};

struct torture {
    const char *path;
    bool own;  /* our own device, in this process */
    pid_t pid; /* of the device; 0: this process */
    struct residue before;
    struct bed bed;
    uint64_t offered, protocol;
    struct chance chance;
};

struct torture_case {
    char name[96];
    enum outcome (*run)(struct torture *t, const struct torture_case *c);
    uint64_t a, b;
};

struct torture_list {
    struct torture_case *cases;
    unsigned count, room;
};

void torture_add(struct torture_list *list,
                 enum outcome (*run)(struct torture *, const struct torture_case *), uint64_t a, uint64_t b,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Chapters: each appends its cases. */
void torture_messages(struct torture_list *list);
void torture_memory(struct torture_list *list);
void torture_rings(struct torture_list *list);

/* A round of random messages, rings and requests. */
enum outcome torture_random(struct torture *t, const struct torture_case *c);

/* Opens t->bed as OPTIONS say (path is filled in). */
bool torture_open(struct torture *t, struct bed_options options);
/* What became of the connection after messages: asks for the features and sees. */
enum outcome torture_look(struct torture *t);
/* The same where the message before may have an answer of its own, which is read over. */
enum outcome torture_look_over(struct torture *t);
/* What became of a ring after a kick. */
enum outcome torture_ring_look(struct torture *t, unsigned queue, const uint8_t *status);

#endif
