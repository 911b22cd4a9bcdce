/*
 * The combinations of the options with which a qcow2 image can be created: what there is, what goes together,
 * and in which order they are tried.
 */
#ifndef RINGSIDE_TESTS_COMBINATIONS_H
#define RINGSIDE_TESTS_COMBINATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum dimension {
    D_VERSION,
    D_CLUSTER,
    D_REFCOUNT_BITS,
    D_LAZY,
    D_EXTENDED_L2,
    D_COMPRESSION,
    D_BACKING,
    D_DATA_FILE,
    D_ENCRYPTION,
    D_PREALLOCATION,
    D_SIZE,
    DIMENSIONS
};

struct combination {
    uint8_t value[DIMENSIONS];
};

/* The value as qemu-img's -o has it; as a number; is it TEXT? */
const char *combination_value(const struct combination *c, enum dimension d);
uint64_t combination_number(const struct combination *c, enum dimension d);
bool combination_is(const struct combination *c, enum dimension d, const char *text);

void combination_print(FILE *to, const struct combination *c);

/* All *COUNT that QEMU can create, in an order of SEED's, but first *COVERING of them in which every two
 * values (STRENGTH 3: every three) that can go together do. NULL if memory is short. */
struct combination *combinations_plan(unsigned strength, uint64_t seed, size_t *count, size_t *covering);

/* A number below N. */
uint64_t combinations_below(uint64_t *seed, uint64_t n);

#endif
