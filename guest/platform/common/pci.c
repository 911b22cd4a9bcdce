/*
 * PCI: walking the buses, giving addresses to what firmware left without, MSI-X.
 *
 * Where firmware ran, its bus numbers and addresses are kept. Where none ran (aarch64 virt, x86 under qboot)
 * all BARs read as zero, and each gets an address from the machine's window, 64-bit BARs from the 32-bit
 * window too, so that one rule serves every machine. Bridges are entered only if firmware numbered the bus
 * behind them.
 */
#include "guest/platform/common/common.h"

#include <string.h>

#define PCI_COMMAND         0x04
#define PCI_COMMAND_IO      0x1u
#define PCI_COMMAND_MEMORY  0x2u
#define PCI_COMMAND_MASTER  0x4u
#define PCI_COMMAND_NO_INTX 0x400u
#define PCI_STATUS          0x06
#define PCI_STATUS_CAPS     0x10u
#define PCI_HEADER_TYPE     0x0e
#define PCI_BAR(n)          (0x10 + 4 * (n))
#define PCI_SECONDARY_BUS   0x19
#define PCI_CAPABILITIES    0x34
#define PCI_CAP_MSIX        0x11
#define MSIX_ENABLE         0x8000u
#define MSIX_MASK_ALL       0x4000u

static struct pci_function functions[PCI_FUNCTIONS_MAX];
static unsigned num_functions;
static uint64_t next_mem, next_io;

/* ---- what the driver calls ---- */

static uint32_t config_read(void *ctx, unsigned offset, unsigned width)
{
    const struct pci_function *f = ctx;
    return arch_pci_read(f->bdf, offset, width);
}

static void config_write(void *ctx, unsigned offset, unsigned width, uint32_t value)
{
    const struct pci_function *f = ctx;
    arch_pci_write(f->bdf, offset, width, value);
}

static uint64_t bar_bytes(void *ctx, unsigned bar)
{
    const struct pci_function *f = ctx;
    return bar < 6 ? f->bar[bar].bytes : 0;
}

static int bar_map(void *ctx, unsigned bar, uint64_t offset, uint64_t len)
{
    struct pci_function *f = ctx;
    if (bar >= 6 || offset > f->bar[bar].bytes || len > f->bar[bar].bytes - offset)
        return -VBLK_EINVAL;
    if (f->bar[bar].io || f->bar[bar].mapped)
        return 0;
    f->bar[bar].mapped = arch_map_device(f->bar[bar].addr + arch.pci_mem_offset, f->bar[bar].bytes);
    return f->bar[bar].mapped ? 0 : -VBLK_ENOMEM;
}

static uint32_t bar_read(void *ctx, unsigned bar, uint64_t offset, unsigned width)
{
    const struct pci_function *f = ctx;
    if (f->bar[bar].io)
        return arch_io_read((uint32_t)(f->bar[bar].addr + offset), width);
    volatile void *at = (char *)f->bar[bar].mapped + offset;
    switch (width) {
    case 1:
        return *(volatile uint8_t *)at;
    case 2:
        return *(volatile uint16_t *)at;
    default:
        return *(volatile uint32_t *)at;
    }
}

static void bar_write(void *ctx, unsigned bar, uint64_t offset, unsigned width, uint32_t value)
{
    const struct pci_function *f = ctx;
    if (f->bar[bar].io) {
        arch_io_write((uint32_t)(f->bar[bar].addr + offset), width, value);
        return;
    }
    volatile void *at = (char *)f->bar[bar].mapped + offset;
    switch (width) {
    case 1:
        *(volatile uint8_t *)at = (uint8_t)value;
        break;
    case 2:
        *(volatile uint16_t *)at = (uint16_t)value;
        break;
    default:
        *(volatile uint32_t *)at = value;
        break;
    }
}

/* ---- addresses ---- */

static uint64_t take(uint64_t *next, uint64_t end, uint64_t bytes)
{
    uint64_t at = (*next + bytes - 1) & ~(bytes - 1);
    if (at >= end || bytes > end - at)
        return 0;
    *next = at + bytes;
    return at;
}

static void set_up_bars(struct pci_function *f)
{
    uint32_t command = arch_pci_read(f->bdf, PCI_COMMAND, 2);
    arch_pci_write(f->bdf, PCI_COMMAND, 2, command & ~(PCI_COMMAND_IO | PCI_COMMAND_MEMORY));
    for (unsigned i = 0; i < 6; i++) {
        uint32_t low = arch_pci_read(f->bdf, PCI_BAR(i), 4), high = 0;
        bool io = low & 1, wide = !io && (low & 6) == 4 && i < 5;
        uint32_t mask = io ? ~3u : ~15u;
        arch_pci_write(f->bdf, PCI_BAR(i), 4, 0xffffffff);
        uint32_t size_low = arch_pci_read(f->bdf, PCI_BAR(i), 4) & mask;
        uint64_t size = 0xffffffff00000000ull | size_low;
        if (wide) {
            high = arch_pci_read(f->bdf, PCI_BAR(i + 1), 4);
            arch_pci_write(f->bdf, PCI_BAR(i + 1), 4, 0xffffffff);
            size = (uint64_t)arch_pci_read(f->bdf, PCI_BAR(i + 1), 4) << 32 | size_low;
        }
        uint64_t bytes = size_low || wide ? ~size + 1 : 0;
        if (io)
            bytes &= 0xffff;
        uint64_t addr = (uint64_t)high << 32 | (low & mask);
        if (bytes && !addr)
            addr = io ? take(&next_io, arch.pci_io_end, bytes) : take(&next_mem, arch.pci_mem_end, bytes);
        arch_pci_write(f->bdf, PCI_BAR(i), 4, (uint32_t)addr);
        if (wide)
            arch_pci_write(f->bdf, PCI_BAR(i + 1), 4, (uint32_t)(addr >> 32));
        if (addr) {
            f->bar[i].addr = addr;
            f->bar[i].bytes = bytes;
            f->bar[i].io = io;
        }
        i += wide;
    }
    command |= PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    arch_pci_write(f->bdf, PCI_COMMAND, 2, command & ~PCI_COMMAND_NO_INTX);
}

/* ---- the walk ---- */

struct walk {
    bool (*match)(uint16_t vendor, uint16_t device);
    void (*found)(struct pci_function *function);
};

static void visit(const struct walk *walk, unsigned bdf)
{
    uint32_t id = arch_pci_read(bdf, 0, 4);
    if (!walk->match((uint16_t)id, (uint16_t)(id >> 16)) || num_functions == PCI_FUNCTIONS_MAX)
        return;
    struct pci_function *f = &functions[num_functions++];
    *f = (struct pci_function){
        .access = {f, config_read, config_write, bar_bytes, bar_map, bar_read, bar_write},
        .bdf = bdf,
        .vendor = (uint16_t)id,
        .device = (uint16_t)(id >> 16)};
    set_up_bars(f);
    walk->found(f);
}

void pci_scan(bool (*match)(uint16_t vendor, uint16_t device), void (*found)(struct pci_function *function))
{
    const struct walk walk = {match, found};
    uint32_t buses[8] = {1}; /* bit set: bus to be walked; bridges add to it while it goes on */
    next_mem = arch.pci_mem_start;
    next_io = arch.pci_io_start;
    for (unsigned bus = 0; bus < 256; bus++) {
        if (!(buses[bus / 32] >> (bus % 32) & 1))
            continue;
        for (unsigned device = 0; device < 32; device++) {
            unsigned bdf = bus << 8 | device << 3;
            if (arch_pci_read(bdf, 0, 2) == 0xffff)
                continue;
            unsigned count = arch_pci_read(bdf, PCI_HEADER_TYPE, 1) & 0x80 ? 8 : 1;
            for (unsigned function = 0; function < count; function++) {
                if (arch_pci_read(bdf + function, 0, 2) == 0xffff)
                    continue;
                visit(&walk, bdf + function);
                if ((arch_pci_read(bdf + function, PCI_HEADER_TYPE, 1) & 0x7f) == 1) {
                    unsigned behind = arch_pci_read(bdf + function, PCI_SECONDARY_BUS, 1);
                    if (behind > bus)
                        buses[behind / 32] |= 1u << (behind % 32);
                }
            }
        }
    }
}

/* ---- MSI-X ---- */

static unsigned find_capability(const struct pci_function *f, unsigned id)
{
    if (!(arch_pci_read(f->bdf, PCI_STATUS, 2) & PCI_STATUS_CAPS))
        return 0;
    unsigned at = arch_pci_read(f->bdf, PCI_CAPABILITIES, 1) & 0xfc;
    for (unsigned steps = 0; at >= 0x40 && steps < 48; steps++) {
        if (arch_pci_read(f->bdf, at, 1) == id)
            return at;
        at = arch_pci_read(f->bdf, at + 1, 1) & 0xfc;
    }
    return 0;
}

unsigned pci_enable_msix(struct pci_function *f, unsigned max)
{
    unsigned cap = find_capability(f, PCI_CAP_MSIX);
    if (!cap)
        return 0;
    uint32_t control = arch_pci_read(f->bdf, cap + 2, 2), table = arch_pci_read(f->bdf, cap + 4, 4);
    unsigned count = (control & 0x7ff) + 1, bar = table & 7;
    uint64_t offset = table & ~7u;
    if (count > max)
        count = max;
    if (bar >= 6 || bar_map(f, bar, offset, 16ull * count) != 0 || f->bar[bar].io)
        return 0;
    arch_pci_write(f->bdf, cap + 2, 2, control | MSIX_ENABLE | MSIX_MASK_ALL);
    for (unsigned i = 0; i < count; i++, offset += 16) {
        uint64_t addr;
        uint32_t data;
        if (arch_msi_message(f->bdf, i ? (i - 1) % arch_num_cpus() : 0, &addr, &data) != 0) {
            arch_pci_write(f->bdf, cap + 2, 2, control & ~(MSIX_ENABLE | MSIX_MASK_ALL));
            return 0;
        }
        bar_write(f, bar, offset, 4, (uint32_t)addr);
        bar_write(f, bar, offset + 4, 4, (uint32_t)(addr >> 32));
        bar_write(f, bar, offset + 8, 4, data);
        bar_write(f, bar, offset + 12, 4, 0);
    }
    arch_pci_write(f->bdf, cap + 2, 2, (control | MSIX_ENABLE) & ~MSIX_MASK_ALL);
    return count;
}
