/* What a disk may hold: see sim_model.h. */
#include "tests/harness/sim_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void drop(struct sim_value *value)
{
    while (value) {
        struct sim_value *older = value->older;

        free(value);
        value = older;
    }
}

static struct sim_value *value_new(uint32_t version, bool zero, bool replaces)
{
    struct sim_value *value = calloc(1, sizeof(*value));

    if (!value)
        abort(); /* a test's own memory */
    value->version = version;
    value->zero = zero;
    value->replaces = replaces;
    return value;
}

bool sim_model_init(struct sim_model *model, uint64_t seed, uint64_t sectors)
{
    memset(model, 0, sizeof(*model));
    model->bytes.seed = seed;
    model->sectors = sectors;
    model->version = MODEL_FIRST;
    model->order = 1;
    model->list = calloc(sectors, sizeof(model->list[0]));
    model->unsure = calloc(sectors, sizeof(model->unsure[0]));
    if (!model->list || !model->unsure)
        return false;
    for (uint64_t i = 0; i < sectors; i++) {
        model->list[i] = value_new(0, true, true);
        model->list[i]->acked = 1;
    }
    return true;
}

void sim_model_free(struct sim_model *model)
{
    for (uint64_t i = 0; model->list && i < model->sectors; i++)
        drop(model->list[i]);
    free(model->list);
    free(model->unsure);
}

uint32_t sim_model_begin(struct sim_model *model, enum sim_kind kind, uint64_t sector, uint64_t count)
{
    uint32_t version = model->version++;

    for (uint64_t i = sector; i < sector + count; i++) {
        struct sim_value *value = value_new(version, kind != SIM_WRITE, kind != SIM_DISCARD);

        value->older = model->list[i];
        model->list[i] = value;
    }
    return version;
}

void sim_model_acked(struct sim_model *model, uint32_t version, uint64_t sector, uint64_t count)
{
    model->order++;
    for (uint64_t i = sector; i < sector + count; i++)
        for (struct sim_value *value = model->list[i]; value; value = value->older)
            if (value->version == version) {
                value->acked = model->order;
                if (value == model->list[i])
                    model->unsure[i] = model->unsure[i] && !value->replaces;
                break;
            }
}

uint64_t sim_model_order(const struct sim_model *model)
{
    return model->order;
}

void sim_model_flushed(struct sim_model *model, uint64_t order)
{
    for (uint64_t i = 0; i < model->sectors; i++)
        for (struct sim_value *value = model->list[i]; value; value = value->older)
            if (value->acked && value->acked <= order && value->replaces) {
                drop(value->older);
                value->older = NULL;
                break;
            }
}

void sim_model_power_loss(struct sim_model *model)
{
    model->version_at_loss = model->version;
    /* Of several values any may have stayed; what was acknowledged and is lost can't be flushed any more. */
    for (uint64_t i = 0; i < model->sectors; i++) {
        model->unsure[i] = model->list[i]->older != NULL;
        for (struct sim_value *value = model->list[i]; value && model->unsure[i]; value = value->older)
            value->acked = 0;
    }
}

/* After a power loss what is read first is what there is. */
static void settle(struct sim_model *model, uint64_t sector, uint32_t version, bool zero)
{
    drop(model->list[sector]);
    model->list[sector] = value_new(version, zero, true);
    model->list[sector]->acked = 1;
    model->unsure[sector] = false;
}

bool sim_model_check(struct sim_model *model, uint64_t sector, uint64_t count, const uint8_t *data,
                     char why[200])
{
    for (uint64_t i = sector; i < sector + count; i++, data += MODEL_SECTOR) {
        int64_t version = model_version(&model->bytes, i, data);
        bool fine = false, discarded = false;

        for (struct sim_value *value = model->list[i]; value && !fine; value = value->older) {
            fine = value->zero ? version == 0 : version == value->version;
            discarded |= !value->replaces;
            if (!model->unsure[i] && value->acked && value->replaces)
                break;
        }
        if (!fine && version == 0 && discarded)
            fine = true;
        if (!fine) {
            snprintf(why, 200, "sector %" PRIu64 " holds %s (%" PRId64 "), its newest value is %u%s%s", i,
                     version < 0 ? "a mixture, or another's bytes"
                     : version   ? "an old or a foreign value"
                                 : "zeroes",
                     version, model->list[i]->version, model->list[i]->zero ? " (zeroes)" : "",
                     model->unsure[i] ? ", since the power loss any from its last flush on" : "");
            return false;
        }
        /* What was given since then may still be taken away again: nothing is settled by reading it. */
        if (model->unsure[i] && model->list[i]->version < model->version_at_loss)
            settle(model, i, (uint32_t)version, version == 0);
    }
    return true;
}
