/*
 * The PC as a whole: what the PVH start info says, memory, device mappings, PCI configuration through ports
 * 0xcf8/0xcfc (enough for virtio, whose capabilities are in the first 256 bytes), and the end through QEMU's
 * isa-debug-exit.
 *
 * Serves QEMU's q35, pc and microvm. microvm tells its virtio-mmio devices on the command line, in Linux's
 * words: virtio_mmio.device=SIZE@ADDRESS:IRQ.
 */
#include "guest/platform/machine.h"
#include "guest/platform/x86_64/x86.h"

#include <stdlib.h>
#include <string.h>

#define START_MAGIC 0x336ec578u
#define MEMORY_RAM  1u
#define EXIT_PORT   0xf4

/* Xen's hvm_start_info, version 1 */
struct start_info {
    uint32_t magic, version, flags, num_modules;
    uint64_t modules_addr, command_line_addr, rsdp_addr;
    uint64_t memory_map_addr;
    uint32_t memory_map_entries, reserved;
};

struct memory_map_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

extern char __image_end[];
extern uint64_t x86_pml4[], x86_pt_low[];

const char machine_arch[] = "x86_64";
struct arch arch;
static char command_line[2048];

static void read_memory_map(const struct start_info *info)
{
    uint64_t image_end = (uint64_t)__image_end;
    const struct memory_map_entry *map = (const void *)info->memory_map_addr;
    for (unsigned i = 0; info->version >= 1 && map && i < info->memory_map_entries; i++) {
        uint64_t end = map[i].addr + map[i].size;
        if (map[i].type == MEMORY_RAM && map[i].addr <= image_end && end > image_end)
            arch.ram_end = end < 0xc0000000 ? end : 0xc0000000;
    }
    arch.ram_start = image_end;
    if (arch.ram_end < image_end + 0x100000) /* no map: what QEMU gives at the least */
        arch.ram_end = 128u << 20;
}

static void read_command_line(void)
{
    static const char key[] = "virtio_mmio.device=";
    for (const char *at = command_line; (at = strstr(at, key)) != NULL && arch.num_mmio < ARCH_MMIO_MAX;) {
        char *end;
        struct arch_mmio m = {.size = (uint32_t)strtoul(at + sizeof key - 1, &end, 0)};
        at = end;
        if (*end == 'K' || *end == 'k') {
            m.size <<= 10;
            end++;
        }
        if (*end != '@')
            continue;
        m.addr = strtoull(end + 1, &end, 0);
        if (*end == ':')
            m.irq = (uint32_t)strtoul(end + 1, &end, 0);
        at = end;
        arch.mmio[arch.num_mmio++] = m;
    }
}

void arch_init(uintptr_t boot_info)
{
    x86_serial_init();
    x86_traps_init(0);
    const struct start_info *info = (const void *)boot_info;
    if (info->magic == START_MAGIC && info->command_line_addr)
        strncpy(command_line, (const char *)info->command_line_addr, sizeof command_line - 1);
    arch.command_line = command_line;
    read_memory_map(info);
    read_command_line();
    x86_pt_low[0] = 0; /* all that firmware left in page 0 is read: from here on a null pointer is caught */
    __asm__ volatile("invlpg 0" : : : "memory");
    x86_apic_init();
    x86_clock_init();

    arch.has_pci = true;
    arch.pci_mem_start = 0xe8000000; /* free on pc and q35, with firmware or without */
    arch.pci_mem_end = 0xfb000000;
    arch.pci_io_start = 0xd000;
    arch.pci_io_end = 0xe000;
}

void arch_exit(int verdict)
{
    /* QEMU's exit status becomes (value << 1) | 1: 33, 35, ... which is none of its own. */
    outl(EXIT_PORT, 16u + (uint32_t)verdict);
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* ---- device registers ---- */

#define PAGE_TABLE    0x3ull
#define PAGE_LARGE    0x80ull
#define PAGE_UNCACHED 0x18ull
#define PAGE_ADDR     0x000ffffffffff000ull
#define LARGE_BYTES   0x200000ull
#define SPARE_TABLES  16

static uint64_t *next_table(uint64_t *table, unsigned index)
{
    static uint64_t spare[SPARE_TABLES][512] __attribute__((aligned(4096)));
    static unsigned used;
    if (!(table[index] & 1)) {
        if (used == SPARE_TABLES)
            return NULL;
        table[index] = (uint64_t)spare[used++] | PAGE_TABLE;
    }
    return (uint64_t *)(table[index] & PAGE_ADDR);
}

void *arch_map_device(uint64_t phys, uint64_t bytes)
{
    if (bytes == 0 || phys + bytes < phys || phys + bytes > 1ull << 47)
        return NULL;
    if (phys + bytes <= 1ull << 32)
        return (void *)phys; /* mapped since the start */
    for (uint64_t at = phys & ~(LARGE_BYTES - 1); at < phys + bytes; at += LARGE_BYTES) {
        uint64_t *directory_pointers = next_table(x86_pml4, at >> 39 & 511);
        uint64_t *directory = directory_pointers ? next_table(directory_pointers, at >> 30 & 511) : NULL;
        if (!directory)
            return NULL;
        if (!(directory[at >> 21 & 511] & 1))
            directory[at >> 21 & 511] = at | PAGE_TABLE | PAGE_LARGE | PAGE_UNCACHED;
    }
    return (void *)phys;
}

/* ---- PCI ---- */

static uint16_t select_register(unsigned bdf, unsigned offset)
{
    outl(0xcf8, 0x80000000u | bdf << 8 | (offset & 0xfc));
    return (uint16_t)(0xcfc + (offset & 3));
}

uint32_t arch_pci_read(unsigned bdf, unsigned offset, unsigned width)
{
    if (offset >= 256)
        return 0xffffffff;
    return arch_io_read(select_register(bdf, offset), width);
}

void arch_pci_write(unsigned bdf, unsigned offset, unsigned width, uint32_t value)
{
    if (offset < 256)
        arch_io_write(select_register(bdf, offset), width, value);
}

uint32_t arch_io_read(uint32_t port, unsigned width)
{
    uint32_t value = 0xffffffff;
    switch (width) {
    case 1:
        return inb((uint16_t)port);
    case 2:
        __asm__ volatile("inw %w1, %w0" : "=a"(value) : "Nd"(port) : "memory");
        return value & 0xffff;
    default:
        __asm__ volatile("inl %w1, %0" : "=a"(value) : "Nd"(port) : "memory");
        return value;
    }
}

void arch_io_write(uint32_t port, unsigned width, uint32_t value)
{
    switch (width) {
    case 1:
        outb((uint16_t)port, (uint8_t)value);
        break;
    case 2:
        __asm__ volatile("outw %w0, %w1" : : "a"(value), "Nd"(port) : "memory");
        break;
    default:
        outl((uint16_t)port, value);
        break;
    }
}

/* Which I/O APIC input a function's INTx pin reaches. q35 (its LPC bridge is 00:1f.0): devices 0 to 24 share
 * four inputs by device and pin, behind PIRQE to PIRQH. pc: firmware has chosen and left it in the line
 * register. */
int arch_pci_irq(unsigned bdf)
{
    unsigned pin = arch_pci_read(bdf, 0x3d, 1), line = arch_pci_read(bdf, 0x3c, 1), slot = bdf >> 3 & 31;
    if (pin < 1 || pin > 4 || bdf >> 8)
        return -1;
    if (arch_pci_read(0x1f << 3, 0, 4) == 0x29188086)
        return slot < 25 ? (int)(20 + (slot + pin - 1) % 4) : -1;
    return line > 0 && line < 16 ? (int)line : -1;
}
