/*
 * Messages as interrupts on GICv3: the Interrupt Translation Service (GIC architecture specification, chapter
 * 5).
 *
 * Each message becomes an interrupt of its own (an LPI, from 8192 on), delivered to the CPU that it was asked
 * for. Tables and the command queue are static and ours alone; commands are few, so each is waited for.
 */
#include <string.h>

#include "guest/platform/aarch64/aarch64.h"

#define GITS_CTLR         0x0000
#define GITS_TYPER        0x0008
#define GITS_CBASER       0x0080
#define GITS_CWRITER      0x0088
#define GITS_CREADR       0x0090
#define GITS_BASER(n)     (0x0100 + 8 * (n))
#define GITS_TRANSLATER   0x10040
#define GICR_BYTES        0x20000
#define GICR_CTLR         0x00
#define GICR_TYPER        0x08
#define GICR_PROPBASER    0x70
#define GICR_PENDBASER    0x78
#define BASER_DEVICES     1
#define BASER_COLLECTIONS 4
#define INNER_CACHED      (7ull << 59)
#define PROP_CACHED       (7ull << 7)
#define SHAREABLE         (1ull << 10)
#define LPI_FIRST         8192u
#define LPI_BITS          14u /* numbers below 2^14: 8192 of them */
#define EVENT_BITS        8u
#define DEVICES_MAX       16u

#define TABLE(name, bytes) static uint8_t name[bytes] __attribute__((aligned(65536)))
TABLE(commands, 65536);
TABLE(config_table, 65536);
TABLE(device_table, 2 * 65536);
TABLE(collection_table, 65536);
TABLE(pending_tables, ARCH_CPUS_MAX * 65536);
TABLE(translation_tables, DEVICES_MAX * 65536);

static uint64_t its_base;
static unsigned command_at, next_lpi = LPI_FIRST;
static bool physical_targets;
static uint64_t redistributor_base;
static struct {
    unsigned bdf, events;
} devices[DEVICES_MAX];
static unsigned num_devices;

static bool command(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t words[4] = {a, b, c, 0};
    memcpy(commands + command_at, words, sizeof words);
    command_at = (command_at + 32) % sizeof commands;
    __asm__ volatile("dsb sy" : : : "memory"); /* the command before the device is told of it */
    write64(its_base + GITS_CWRITER, command_at);
    for (unsigned tries = 0; tries < 10000000; tries++) {
        uint64_t done = read64(its_base + GITS_CREADR);
        if ((done & 0xfffe0) == command_at)
            return true;
        if (done & 1) /* stalled */
            return false;
    }
    return false;
}

static uint64_t target(unsigned cpu)
{
    uint64_t redistributor = redistributor_base + cpu * (uint64_t)GICR_BYTES;
    return physical_targets ? redistributor & ~0xffffull
                            : (read64(redistributor + GICR_TYPER) >> 8 & 0xffff) << 16;
}

static bool sync(unsigned cpu)
{
    return command(0x05, 0, target(cpu));
}

static void init_cpu(unsigned cpu)
{
    uint64_t redistributor = redistributor_base + cpu * (uint64_t)GICR_BYTES;
    write64(redistributor + GICR_PROPBASER,
            (uint64_t)config_table | PROP_CACHED | SHAREABLE | (LPI_BITS - 1));
    write64(redistributor + GICR_PENDBASER,
            (uint64_t)(pending_tables + cpu * 65536ull) | PROP_CACHED | SHAREABLE | 1ull << 62);
    write32(redistributor + GICR_CTLR, read32(redistributor + GICR_CTLR) | 1);
}

bool its_init(uint64_t its, uint64_t redistributors, unsigned num_cpus)
{
    its_base = its;
    redistributor_base = redistributors;
    write32(its + GITS_CTLR, 0);
    physical_targets = read64(its + GITS_TYPER) >> 19 & 1;
    memset(config_table, 0xa1, sizeof config_table); /* priority 0xa0, enabled */
    for (unsigned cpu = 0; cpu < num_cpus && cpu < ARCH_CPUS_MAX; cpu++)
        init_cpu(cpu);
    for (unsigned n = 0; n < 8; n++) {
        uint64_t baser = read64(its + GITS_BASER(n));
        unsigned type = baser >> 56 & 7;
        if (type != BASER_DEVICES && type != BASER_COLLECTIONS)
            continue;
        void *table = type == BASER_DEVICES ? device_table : collection_table;
        unsigned pages = (type == BASER_DEVICES ? sizeof device_table : sizeof collection_table) / 4096;
        write64(its + GITS_BASER(n), 1ull << 63 | INNER_CACHED | (baser & (0x7ull << 56)) |
                                         (baser & (0x1full << 48)) | (uint64_t)table | SHAREABLE |
                                         (pages - 1));
    }
    write64(its + GITS_CBASER,
            1ull << 63 | INNER_CACHED | (uint64_t)commands | SHAREABLE | (sizeof commands / 4096 - 1));
    write64(its + GITS_CWRITER, 0);
    write32(its + GITS_CTLR, 1);
    for (unsigned cpu = 0; cpu < num_cpus && cpu < ARCH_CPUS_MAX; cpu++) {
        if (!command(0x09, 0, 1ull << 63 | target(cpu) | cpu) || !sync(cpu)) /* MAPC: collection n is CPU n */
            return false;
    }
    return true;
}

/* The device's place in `devices`, made on first sight: 4096 functions fit into the device table of 128 KiB.
 */
static int find_device(unsigned bdf)
{
    for (unsigned i = 0; i < num_devices; i++) {
        if (devices[i].bdf == bdf)
            return (int)i;
    }
    if (num_devices == DEVICES_MAX || bdf >= sizeof device_table / 8)
        return -1;
    uint64_t table = (uint64_t)(translation_tables + num_devices * 65536ull);
    if (!command((uint64_t)bdf << 32 | 0x08, EVENT_BITS - 1, 1ull << 63 | table)) /* MAPD */
        return -1;
    devices[num_devices].bdf = bdf;
    return (int)num_devices++;
}

int its_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data)
{
    int device = find_device(bdf);
    if (device < 0 || devices[device].events == 1u << EVENT_BITS || next_lpi == 1u << LPI_BITS)
        return -1;
    uint32_t event = devices[device].events++, lpi = next_lpi++;
    uint64_t id = (uint64_t)bdf << 32;
    if (!command(id | 0x0a, (uint64_t)lpi << 32 | event, cpu) || /* MAPTI */
        !command(id | 0x0c, event, 0) || !sync(cpu))             /* INV */
        return -1;
    *addr = its_base + GITS_TRANSLATER;
    *data = event;
    return 0;
}
