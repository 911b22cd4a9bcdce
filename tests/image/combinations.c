/*
 * The combinations of the format's options; see combinations.h.
 */
#include "tests/image/combinations.h"

#include <stdlib.h>
#include <string.h>

/* The values as qemu-img's -o has them */
static const struct {
    const char *name;
    const char *values[8];
} dimensions[DIMENSIONS] = {
    [D_VERSION] = {"compat", {"0.10", "1.1"}},
    [D_CLUSTER] = {"cluster_size", {"512", "4096", "16384", "65536", "2097152"}},
    [D_REFCOUNT_BITS] = {"refcount_bits", {"1", "2", "4", "8", "16", "32", "64"}},
    [D_LAZY] = {"lazy_refcounts", {"off", "on"}},
    [D_EXTENDED_L2] = {"extended_l2", {"off", "on"}},
    [D_COMPRESSION] = {"compression_type", {"zlib", "zstd"}},
    [D_BACKING] = {"backing", {"none", "raw", "qcow2"}},
    [D_DATA_FILE] = {"data_file", {"none", "data", "raw"}},
    [D_ENCRYPTION] = {"encrypt", {"none", "luks"}},
    [D_PREALLOCATION] = {"preallocation", {"off", "metadata", "falloc", "full"}},
    [D_SIZE] = {"size", {"whole", "odd"}},
};

static unsigned values_of(unsigned d)
{
    unsigned n = 0;
    while (n < 8 && dimensions[d].values[n])
        n++;
    return n;
}

const char *combination_value(const struct combination *c, enum dimension d)
{
    return dimensions[d].values[c->value[d]];
}

bool combination_is(const struct combination *c, enum dimension d, const char *text)
{
    return strcmp(combination_value(c, d), text) == 0;
}

uint64_t combination_number(const struct combination *c, enum dimension d)
{
    return strtoull(combination_value(c, d), NULL, 10);
}

/* Can QEMU create it? What it says is asked for again when the image is made. */
static bool goes_together(const struct combination *c)
{
    if (combination_is(c, D_VERSION, "0.10") &&
        (!combination_is(c, D_REFCOUNT_BITS, "16") || combination_is(c, D_LAZY, "on") ||
         combination_is(c, D_EXTENDED_L2, "on") || combination_is(c, D_COMPRESSION, "zstd") ||
         !combination_is(c, D_DATA_FILE, "none")))
        return false;
    if (combination_is(c, D_EXTENDED_L2, "on") && combination_number(c, D_CLUSTER) < 16384)
        return false;
    if (combination_is(c, D_DATA_FILE, "raw") && !combination_is(c, D_BACKING, "none"))
        return false;
    if (combination_is(c, D_DATA_FILE, "raw") && combination_is(c, D_ENCRYPTION, "luks"))
        return false;
    if (!combination_is(c, D_PREALLOCATION, "off") && !combination_is(c, D_BACKING, "none") &&
        combination_is(c, D_EXTENDED_L2, "off"))
        return false;
    return true;
}

void combination_print(FILE *to, const struct combination *c)
{
    for (unsigned d = 0; d < DIMENSIONS; d++)
        fprintf(to, "%s%s=%s", d ? "," : "", dimensions[d].name, combination_value(c, d));
}

static uint64_t random_next(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t combinations_below(uint64_t *seed, uint64_t n)
{
    return random_next(seed) % n;
}

/* Which values have been together: a bit for every pair or triple of (dimension, value). */
#define VALUES (DIMENSIONS * 8)
static uint8_t together[VALUES][VALUES][VALUES];

static unsigned count_new(const struct combination *c, unsigned strength, bool mark)
{
    unsigned fresh = 0;
    for (unsigned i = 0; i < DIMENSIONS; i++) {
        for (unsigned j = i + 1; j < DIMENSIONS; j++) {
            for (unsigned k = strength == 3 ? j + 1 : j; k < (strength == 3 ? (unsigned)DIMENSIONS : j + 1);
                 k++) {
                uint8_t *t = &together[i * 8 + c->value[i]][j * 8 + c->value[j]][k * 8 + c->value[k]];
                fresh += !*t;
                if (mark)
                    *t = 1;
            }
        }
    }
    return fresh;
}

static size_t product(void)
{
    size_t n = 1;
    for (unsigned d = 0; d < DIMENSIONS; d++)
        n *= values_of(d);
    return n;
}

static struct combination combination_at(size_t index)
{
    struct combination c;
    for (unsigned d = 0; d < DIMENSIONS; d++) {
        c.value[d] = (uint8_t)(index % values_of(d));
        index /= values_of(d);
    }
    return c;
}

/* Those that are possible, the ones that cover come first. *COVERING: how many these are. */
struct combination *combinations_plan(unsigned strength, uint64_t seed, size_t *count, size_t *covering)
{
    size_t all = product(), n = 0;
    struct combination *list = calloc(all, sizeof *list);
    for (size_t i = 0; list && i < all; i++) {
        list[n] = combination_at(i);
        n += goes_together(&list[n]);
    }
    for (size_t i = n; list && i > 1; i--) {
        size_t j = combinations_below(&seed, i);
        struct combination c = list[i - 1];
        list[i - 1] = list[j];
        list[j] = c;
    }
    *covering = 0;
    for (size_t left = n; left > 0 && *covering < n;) {
        /* The best of some; when these bring nothing, all that is left is gone through once. */
        size_t best = n;
        unsigned most = 0;
        for (size_t tried = 0, i = *covering; i < n; i++) {
            unsigned fresh = count_new(&list[i], strength, false);
            if (fresh > most) {
                most = fresh;
                best = i;
            }
            if (++tried >= 300 && most > 0)
                break;
        }
        if (most == 0)
            break;
        (void)count_new(&list[best], strength, true);
        struct combination c = list[best];
        list[best] = list[*covering];
        list[(*covering)++] = c;
        /* The next ones to look at are others. */
        if (*covering + 300 < n) {
            for (size_t i = *covering; i < *covering + 300; i++) {
                size_t j = *covering + combinations_below(&seed, n - *covering);
                c = list[i];
                list[i] = list[j];
                list[j] = c;
            }
        }
    }
    *count = n;
    return list;
}
