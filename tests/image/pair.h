/*
 * A pair of qcow2 images, one of ours and one of QEMU's, that the same things are done to, and the model in
 * memory of what both have to hold. pair_images.c makes, opens, reads and checks them; pair_operations.c
 * changes them; tool_pairs.c puts it all together.
 *
 * Whatever fails says why by pair_wrong; only the first of these is kept.
 */
#ifndef RINGSIDE_TESTS_PAIR_H
#define RINGSIDE_TESTS_PAIR_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "host/block/node.h"
#include "host/runtime/error.h"
#include "host/runtime/loop.h"
#include "tests/image/combinations.h"

#define PAIR_DISK_MAX      (12u << 20)
#define PAIR_REQUEST_MAX   (64u << 10)
#define PAIR_SNAPSHOTS_MAX 3u
/* Operations that one process of qemu-io is given; one of ours is three of its commands at most. */
#define PAIR_OPS_AT_A_TIME 4000u
#define PAIR_COMMANDS_MAX  (3 * PAIR_OPS_AT_A_TIME)

enum side { OURS, THEIRS, SIDES };
extern const char *const pair_side_names[SIDES];

struct snapshot {
    char name[16];
    uint8_t *disk;
    uint64_t bytes;
};

struct pair {
    const char *dir; /* DIR/ours.qcow2, DIR/theirs.data, ...; the passphrase is in DIR/pass */
    struct loop *loop;
    bool verbose;
    const struct combination *c;
    uint64_t seed;
    uint64_t cluster, bytes;
    bool luks, data_file;
    uint8_t *model, *buffer;
    struct snapshot snapshots[PAIR_SNAPSHOTS_MAX];
    unsigned nb_snapshots, names;
    bool compressing;
    uint8_t *touched;  /* by cluster: not to be written compressed: QEMU does not write so over data */
    struct node *node; /* ours, open */
    FILE *script;      /* what qemu-io is going to be told */
    char why[600];
};

/* ---- pair_images.c ---- */

/* False, for the caller to return. */
__attribute__((format(printf, 2, 3))) bool pair_wrong(struct pair *p, const char *format, ...);

void pair_path(const struct pair *p, char path[600], const char *name, const char *suffix);

/* Runs a program, its output to DIR/report. Exit status or -1. */
int pair_spawn(const struct pair *p, const char *const argv[]);

/* A program of QEMU on one image or on both: PROGRAM [COMMAND] OPTIONS... IMAGE.... Exit status or -1. */
int pair_qemu(struct pair *p, const char *program, const char *command, const char *const options[],
              enum side first, bool both);

/* The name of the backing file, or NULL. */
const char *pair_backing(const struct combination *c);

bool pair_qemu_creates(struct pair *p, enum side side);
bool pair_we_create(struct pair *p, enum side side, struct error *err);

int coroutine_fn pair_co_open(struct pair *p, enum side side, bool writable, bool check_only,
                              const char *snapshot, struct node **node);

/* We read all of an image, or of its snapshot, and it is EXPECTED. */
bool pair_compare(struct pair *p, enum side side, const char *snapshot, const uint8_t *expected,
                  uint64_t bytes);

/* Neither our check nor qemu-img's finds anything. */
bool pair_check(struct pair *p, enum side side);

/* ---- pair_operations.c ---- */

/* COUNT operations on both; at most PAIR_OPS_AT_A_TIME. */
bool pair_operate(struct pair *p, uint64_t count);

/* A snapshot is made, applied or deleted on both. */
bool pair_change_snapshots(struct pair *p);

#endif
