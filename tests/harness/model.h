/*
 * What a disk must hold, sector by sector, kept in memory: zeroes, the pattern of a certain write, or
 * anything (after a discard, or before the first look). A pattern says in its first words which sector and
 * which write it is, so that bytes found in the wrong place tell where they come from.
 *
 * Threads: the caller sees to it that no two operations on the same sector overlap; then any.
 */
#ifndef RINGSIDE_HARNESS_MODEL_H
#define RINGSIDE_HARNESS_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_SECTOR    512u
#define MODEL_UNDEFINED 0u
#define MODEL_ZERO      1u
#define MODEL_FIRST     2u /* the first version of a write */
/* In a version: the device chose the place; sectors count from the write's own start */
#define MODEL_PLACED 0x80000000u

struct model {
    uint64_t seed;
    uint64_t sectors;
    uint32_t *state;       /* one of the above, or a version */
    uint64_t zone_sectors; /* MODEL_PLACED: a write does not reach over a multiple of these */
};

struct model_difference {
    uint64_t offset; /* bytes, on the disk */
    uint8_t expected, got;
    char story[160]; /* what the sector should be and what it looks like */
};

bool model_init(struct model *model, uint64_t seed, uint64_t sectors);
void model_free(struct model *model);

void model_set(struct model *model, uint64_t sector, uint64_t count, uint32_t state);

/* The bytes of COUNT sectors from SECTOR (MODEL_PLACED: from 0) as write VERSION leaves them. */
void model_fill(const struct model *model, uint64_t sector, uint64_t count, uint32_t version, void *buf);

/* Compares what was read. False at the first byte that differs, with DIFFERENCE filled. */
bool model_check(const struct model *model, uint64_t sector, uint64_t count, const void *buf,
                 struct model_difference *difference);

/* Which write left these bytes of one sector: its version, 0 for zeroes, -1 for a mixture or another
 * sector's. */
int64_t model_version(const struct model *model, uint64_t sector, const void *buf);

/* Learns from a first look at the disk: sectors of zeroes are known, all others undefined. */
void model_learn(struct model *model, uint64_t sector, uint64_t count, const void *buf);

/* A small generator of chance: the same numbers from the same seed, everywhere. */
struct chance {
    uint64_t state;
};
uint64_t chance_next(struct chance *chance);
uint64_t chance_below(struct chance *chance, uint64_t bound); /* 0 if BOUND is 0 */
bool chance_percent(struct chance *chance, unsigned percent);

#endif
