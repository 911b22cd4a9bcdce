/*
 * The flattened device tree (Devicetree Specification 0.4, chapter 5), read only, for the machines that have
 * one.
 */
#ifndef RINGSIDE_FDT_H
#define RINGSIDE_FDT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A node during the walk. Pointers go into the tree. */
struct fdt_node {
    const char *name;
    unsigned depth;         /* the root is 0 */
    const char *compatible; /* list of strings, or NULL */
    unsigned compatible_bytes;
    const uint8_t *reg, *ranges, *interrupts, *interrupts_extended; /* or NULL */
    unsigned reg_bytes, ranges_bytes, interrupts_bytes, interrupts_extended_bytes;
    unsigned parent_address_cells, parent_size_cells; /* for reg */
    unsigned address_cells, size_cells;               /* for ranges and children */
    const char *bootargs, *method, *device_type;      /* or NULL */
    uint32_t clock_frequency, timebase_frequency;     /* or 0 */
};

/* Calls VISIT for every node, once its properties are known. False if there is no (sound) tree at FDT. */
bool fdt_walk(const void *fdt, void (*visit)(const struct fdt_node *node));

bool fdt_is_compatible(const struct fdt_node *node, const char *name);
/* Number I of CELLS 32-bit cells at DATA. */
uint64_t fdt_cells(const uint8_t *data, unsigned offset_cells, unsigned cells);
/* Address and size number I of `reg`. False if there are not so many. */
bool fdt_reg(const struct fdt_node *node, unsigned i, uint64_t *addr, uint64_t *bytes);

#endif
