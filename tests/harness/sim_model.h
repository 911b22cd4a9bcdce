/*
 * What a disk may hold when writes fail and the power goes: for each sector the values that it was given,
 * newest first, back to the last one that a completed flush covers. Bytes are those of model.h.
 *
 * What always holds: the list of a sector is never empty, and its last value is the oldest that may still be
 * there.
 */
#ifndef RINGSIDE_HARNESS_SIM_MODEL_H
#define RINGSIDE_HARNESS_SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/harness/model.h"

struct sim_value {
    struct sim_value *older;
    uint64_t acked; /* order of acknowledgement; 0: not, and maybe never */
    uint32_t version;
    bool zero;     /* zeroes rather than the pattern of VERSION */
    bool replaces; /* once acknowledged, nothing older can be read (a discard may leave what was there) */
};

struct sim_model {
    struct model bytes;
    uint64_t sectors, order;
    uint32_t version, version_at_loss;
    struct sim_value **list;
    bool *unsure; /* since a power loss, until it is read */
};

enum sim_kind { SIM_WRITE, SIM_ZERO, SIM_DISCARD };

bool sim_model_init(struct sim_model *model, uint64_t seed, uint64_t sectors);
void sim_model_free(struct sim_model *model);

/* A change is submitted; returns its version. Later it is acknowledged, or it failed and may have happened.
 */
uint32_t sim_model_begin(struct sim_model *model, enum sim_kind kind, uint64_t sector, uint64_t count);
void sim_model_acked(struct sim_model *model, uint32_t version, uint64_t sector, uint64_t count);

/* A flush covers what was acknowledged when it was submitted: remember the order then, pass it when it
 * succeeds. */
uint64_t sim_model_order(const struct sim_model *model);
void sim_model_flushed(struct sim_model *model, uint64_t order);

void sim_model_power_loss(struct sim_model *model);

/* May COUNT sectors hold these bytes? False with a sentence in WHY. */
bool sim_model_check(struct sim_model *model, uint64_t sector, uint64_t count, const uint8_t *data,
                     char why[200]);

#endif
