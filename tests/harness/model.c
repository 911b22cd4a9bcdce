/* The model of a disk's contents: see model.h. */
#include "tests/harness/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS (MODEL_SECTOR / sizeof(uint64_t))

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

uint64_t chance_next(struct chance *chance)
{
    chance->state += 0x9e3779b97f4a7c15ull;
    return mix(chance->state);
}

uint64_t chance_below(struct chance *chance, uint64_t bound)
{
    return bound ? chance_next(chance) % bound : 0;
}

bool chance_percent(struct chance *chance, unsigned percent)
{
    return chance_next(chance) % 100 < percent;
}

bool model_init(struct model *model, uint64_t seed, uint64_t sectors)
{
    model->seed = seed;
    model->sectors = sectors;
    model->state = calloc(sectors ? sectors : 1, sizeof(*model->state));
    return model->state != NULL;
}

void model_free(struct model *model)
{
    free(model->state);
    model->state = NULL;
}

void model_set(struct model *model, uint64_t sector, uint64_t count, uint32_t state)
{
    for (uint64_t i = 0; i < count; i++)
        model->state[sector + i] = state;
}

static uint64_t tag(const struct model *model, uint32_t version)
{
    return (mix(model->seed) << 32) | version;
}

static void sector_fill(const struct model *model, uint64_t sector, uint32_t version, uint64_t words[WORDS])
{
    uint64_t at = mix(sector ^ tag(model, version));

    words[0] = sector;
    words[1] = tag(model, version);
    for (unsigned i = 2; i < WORDS; i++)
        words[i] = (at += 0x9e3779b97f4a7c15ull) * 0xd6e8feb86659fd93ull;
}

void model_fill(const struct model *model, uint64_t sector, uint64_t count, uint32_t version, void *buf)
{
    uint8_t *at = buf;
    uint64_t words[WORDS];

    for (uint64_t i = 0; i < count; i++, at += MODEL_SECTOR) {
        sector_fill(model, sector + i, version, words);
        memcpy(at, words, MODEL_SECTOR);
    }
}

static void tell_what(const struct model *model, const uint64_t words[WORDS], char *text, size_t bytes)
{
    static const uint64_t zeroes[WORDS];
    uint64_t expected[WORDS];

    if (memcmp(words, zeroes, MODEL_SECTOR) == 0) {
        snprintf(text, bytes, "zeroes");
        return;
    }
    if (words[1] >> 32 == tag(model, 0) >> 32) {
        sector_fill(model, words[0], (uint32_t)words[1], expected);
        snprintf(text, bytes, "%s of sector %" PRIu64 " by write %u",
                 memcmp(words, expected, MODEL_SECTOR) == 0 ? "what was written" : "the beginning, no more,",
                 words[0], (uint32_t)words[1]);
        return;
    }
    snprintf(text, bytes, "bytes that nobody wrote (first word %016" PRIx64 ")", words[0]);
}

/* The sector's number in its pattern: what one append wrote lies in one piece. */
static uint64_t pattern_sector(const struct model *model, uint64_t sector)
{
    uint64_t first = sector;

    if (!(model->state[sector] & MODEL_PLACED))
        return sector;
    /* The zone before is somebody else's, and may be changing. */
    while (first % model->zone_sectors != 0 && model->state[first - 1] == model->state[sector])
        first--;
    return sector - first;
}

bool model_check(const struct model *model, uint64_t sector, uint64_t count, const void *buf,
                 struct model_difference *difference)
{
    const uint8_t *at = buf;

    for (uint64_t i = 0; i < count; i++, at += MODEL_SECTOR) {
        uint32_t state = model->state[sector + i];
        uint64_t expected[WORDS] = {0}, got[WORDS];
        char want[64], have[64];
        unsigned byte = 0;

        if (state == MODEL_UNDEFINED)
            continue;
        if (state != MODEL_ZERO)
            sector_fill(model, pattern_sector(model, sector + i), state, expected);
        if (memcmp(at, expected, MODEL_SECTOR) == 0)
            continue;
        while (at[byte] == ((const uint8_t *)expected)[byte])
            byte++;
        memcpy(got, at, MODEL_SECTOR);
        difference->offset = (sector + i) * MODEL_SECTOR + byte;
        difference->expected = ((const uint8_t *)expected)[byte];
        difference->got = at[byte];
        tell_what(model, expected, want, sizeof(want));
        tell_what(model, got, have, sizeof(have));
        snprintf(difference->story, sizeof(difference->story),
                 "sector %" PRIu64 " should hold %s; it holds %s", sector + i, want, have);
        return false;
    }
    return true;
}

int64_t model_version(const struct model *model, uint64_t sector, const void *buf)
{
    static const uint64_t zeroes[WORDS];
    uint64_t words[WORDS], expected[WORDS];

    memcpy(words, buf, MODEL_SECTOR);
    if (memcmp(words, zeroes, MODEL_SECTOR) == 0)
        return 0;
    sector_fill(model, sector, (uint32_t)words[1], expected);
    return memcmp(words, expected, MODEL_SECTOR) == 0 ? (int64_t)(uint32_t)words[1] : -1;
}

void model_learn(struct model *model, uint64_t sector, uint64_t count, const void *buf)
{
    static const uint8_t zeroes[MODEL_SECTOR];
    const uint8_t *at = buf;

    for (uint64_t i = 0; i < count; i++, at += MODEL_SECTOR)
        model->state[sector + i] = memcmp(at, zeroes, MODEL_SECTOR) == 0 ? MODEL_ZERO : MODEL_UNDEFINED;
}
