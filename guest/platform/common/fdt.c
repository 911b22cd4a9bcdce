/*
 * Walking a device tree. The tree comes from the machine that runs us, yet every length in it is bounded
 * before it is used: a cut-off tree ends the walk.
 */
#include "guest/platform/common/fdt.h"

#include <string.h>

#define FDT_MAGIC      0xd00dfeedu
#define FDT_BEGIN_NODE 1u
#define FDT_END_NODE   2u
#define FDT_PROP       3u
#define FDT_NOP        4u
#define FDT_BYTES_MAX  (2u << 20)
#define DEPTH_MAX      16

static uint32_t be32_at(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

uint64_t fdt_cells(const uint8_t *data, unsigned offset_cells, unsigned cells)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < cells; i++)
        value = value << 32 | be32_at(data + 4 * (offset_cells + i));
    return value;
}

bool fdt_reg(const struct fdt_node *node, unsigned i, uint64_t *addr, uint64_t *bytes)
{
    unsigned a = node->parent_address_cells, s = node->parent_size_cells;
    if (!node->reg || (uint64_t)(i + 1) * (a + s) * 4 > node->reg_bytes)
        return false;
    *addr = fdt_cells(node->reg, i * (a + s), a);
    *bytes = fdt_cells(node->reg, i * (a + s) + a, s);
    return true;
}

bool fdt_is_compatible(const struct fdt_node *node, const char *name)
{
    for (unsigned at = 0; node->compatible && at < node->compatible_bytes;) {
        const char *entry = node->compatible + at;
        size_t len = strnlen(entry, node->compatible_bytes - at);
        if (len == strlen(name) && memcmp(entry, name, len) == 0)
            return true;
        at += (unsigned)len + 1;
    }
    return false;
}

static void take_property(struct fdt_node *node, const char *name, const uint8_t *value, uint32_t len)
{
    const struct {
        const char *name;
        const uint8_t **value;
        unsigned *bytes;
    } blobs[] = {
        {"compatible", (const uint8_t **)&node->compatible, &node->compatible_bytes},
        {"reg", &node->reg, &node->reg_bytes},
        {"ranges", &node->ranges, &node->ranges_bytes},
        {"interrupts", &node->interrupts, &node->interrupts_bytes},
        {"interrupts-extended", &node->interrupts_extended, &node->interrupts_extended_bytes},
    };
    const struct {
        const char *name;
        const char **text;
    } texts[] = {
        {"bootargs", &node->bootargs}, {"method", &node->method}, {"device_type", &node->device_type}};
    const struct {
        const char *name;
        uint32_t *number;
    } numbers[] = {{"#address-cells", &node->address_cells},
                   {"#size-cells", &node->size_cells},
                   {"clock-frequency", &node->clock_frequency},
                   {"timebase-frequency", &node->timebase_frequency}};
    for (unsigned i = 0; i < sizeof blobs / sizeof blobs[0]; i++) {
        if (strcmp(name, blobs[i].name) == 0) {
            *blobs[i].value = value;
            *blobs[i].bytes = len;
        }
    }
    for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        if (strcmp(name, texts[i].name) == 0 && len && value[len - 1] == '\0')
            *texts[i].text = (const char *)value;
    }
    for (unsigned i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (strcmp(name, numbers[i].name) == 0 && len >= 4)
            *numbers[i].number = be32_at(value);
    }
}

bool fdt_walk(const void *fdt, void (*visit)(const struct fdt_node *node))
{
    const uint8_t *tree = fdt;
    if (!tree || ((uintptr_t)tree & 3) || be32_at(tree) != FDT_MAGIC)
        return false;
    uint32_t total = be32_at(tree + 4), at = be32_at(tree + 8), strings = be32_at(tree + 12);
    if (total > FDT_BYTES_MAX || at >= total || strings >= total)
        return false;
    struct fdt_node stack[DEPTH_MAX];
    int depth = -1;
    bool visited = true; /* the innermost node */
    while (at + 4 <= total) {
        uint32_t token = be32_at(tree + at);
        at += 4;
        if ((token == FDT_BEGIN_NODE || token == FDT_END_NODE) && !visited) {
            visit(&stack[depth]);
            visited = true;
        }
        if (token == FDT_BEGIN_NODE) {
            if (++depth == DEPTH_MAX)
                return false;
            const char *name = (const char *)tree + at;
            size_t len = strnlen(name, total - at);
            if (len == total - at)
                return false;
            stack[depth] =
                (struct fdt_node){.name = name,
                                  .depth = (unsigned)depth,
                                  .parent_address_cells = depth ? stack[depth - 1].address_cells : 2,
                                  .parent_size_cells = depth ? stack[depth - 1].size_cells : 1,
                                  .address_cells = 2,
                                  .size_cells = 1};
            visited = false;
            at = (at + (uint32_t)len + 1 + 3) & ~3u;
        } else if (token == FDT_END_NODE) {
            if (depth-- < 0)
                return false;
        } else if (token == FDT_PROP) {
            if (depth < 0 || at + 8 > total)
                return false;
            uint32_t len = be32_at(tree + at), name = be32_at(tree + at + 4);
            at += 8;
            if (len > total - at || name >= total - strings)
                return false;
            const char *text = (const char *)tree + strings + name;
            if (strnlen(text, total - strings - name) == total - strings - name)
                return false;
            take_property(&stack[depth], text, tree + at, len);
            at = (at + len + 3) & ~3u;
        } else if (token != FDT_NOP) {
            return true; /* FDT_END */
        }
    }
    return false;
}
