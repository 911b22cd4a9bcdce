/*
 * QEMU's virt machine, as its device tree describes it: PL011 console, generic timer, GIC, PCI by ECAM,
 * virtio-mmio slots; CPUs by PSCI; the end by semihosting, which carries a status.
 */
#include "guest/platform/machine.h"
#include "guest/platform/aarch64/aarch64.h"
#include "guest/platform/common/fdt.h"

#include <string.h>

#define PL011_DATA  0x00
#define PL011_FLAGS 0x18
#define FLAG_EMPTY  0x10u /* nothing received */
#define FLAG_FULL   0x20u /* no room to send */

const char machine_arch[] = "aarch64";
struct arch arch;

extern char __image_end[];

static uint64_t uart = 0x09000000, rtc; /* the console works before the tree is read */
static uint64_t ecam, ecam_bytes;
static struct gic_places gic_places;
static bool psci_by_smc;
static unsigned num_cpus;
static uint64_t counter_start, interrupts;

void arch_console_putc(char c)
{
    for (unsigned tries = 0; read32(uart + PL011_FLAGS) & FLAG_FULL && tries < 1000000; tries++)
        continue;
    write32(uart + PL011_DATA, (uint8_t)c);
}

int arch_console_getc(void)
{
    if (read32(uart + PL011_FLAGS) & FLAG_EMPTY)
        return -1;
    return (int)(read32(uart + PL011_DATA) & 0xff);
}

/* ---- time ---- */

uint64_t arch_now_ns(void)
{
    __asm__ volatile("isb" : : : "memory"); /* the counter is not read ahead of what comes before */
    uint64_t ticks = READ_REGISTER("cntvct_el0") - counter_start;
    return (uint64_t)((unsigned __int128)ticks * 1000000000 / READ_REGISTER("cntfrq_el0"));
}

void arch_wait(uint64_t deadline_ns)
{
    uint64_t now = arch_now_ns();
    if (deadline_ns <= now)
        return;
    uint64_t ns = deadline_ns - now < 1000000000 ? deadline_ns - now : 1000000000;
    uint64_t ticks = ns * (READ_REGISTER("cntfrq_el0") / 1000) / 1000000;
    WRITE_REGISTER("cntv_tval_el0", ticks ? ticks : 1);
    WRITE_REGISTER("cntv_ctl_el0", 1);
    __asm__ volatile("isb; dsb sy; wfi" : : : "memory");
    WRITE_REGISTER("cntv_ctl_el0", 0);
    __asm__ volatile("isb" : : : "memory");
    __atomic_fetch_add(&interrupts, gic_take_all(), __ATOMIC_RELAXED);
}

uint64_t arch_interrupts(void)
{
    return __atomic_load_n(&interrupts, __ATOMIC_RELAXED);
}

/* ---- the device tree ---- */

static void take_pci(const struct fdt_node *node)
{
    if (!fdt_reg(node, 0, &ecam, &ecam_bytes))
        return;
    unsigned cells = 3 + node->parent_address_cells + node->size_cells;
    for (unsigned i = 0; node->ranges && (i + 1) * cells * 4 <= node->ranges_bytes; i++) {
        const uint8_t *range = node->ranges + 4 * (size_t)i * cells;
        uint64_t bus = fdt_cells(range, 1, 2), cpu = fdt_cells(range, 3, node->parent_address_cells);
        uint64_t bytes = fdt_cells(range, 3 + node->parent_address_cells, node->size_cells);
        switch (range[0] & 3) {
        case 1:
            arch.pci_io_base = cpu - bus;
            arch.pci_io_start = (uint32_t)bus + 0x1000;
            arch.pci_io_end = (uint32_t)(bus + bytes);
            break;
        case 2:
            arch.pci_mem_start = bus;
            arch.pci_mem_end = bus + bytes;
            arch.pci_mem_offset = cpu - bus;
            break;
        default: /* the 64-bit window is not needed */
            break;
        }
    }
    arch.has_pci = true;
}

static void take_gic(const struct fdt_node *node, unsigned version)
{
    uint64_t bytes;
    gic_places.version = version;
    fdt_reg(node, 0, &gic_places.distributor, &bytes);
    fdt_reg(node, 1, version == 3 ? &gic_places.redistributors : &gic_places.cpu_interface, &bytes);
}

static void visit(const struct fdt_node *node)
{
    uint64_t addr = 0, bytes = 0;
    bool has_reg = fdt_reg(node, 0, &addr, &bytes);
    if (strcmp(node->name, "chosen") == 0 && node->bootargs)
        arch.command_line = node->bootargs;
    else if (node->device_type && strcmp(node->device_type, "memory") == 0 && has_reg)
        arch.ram_end = addr + bytes < 0x100000000 ? addr + bytes : 0x100000000;
    else if (node->device_type && strcmp(node->device_type, "cpu") == 0)
        num_cpus++;
    else if (fdt_is_compatible(node, "arm,pl011") && has_reg)
        uart = addr;
    else if (fdt_is_compatible(node, "arm,pl031") && has_reg)
        rtc = addr;
    else if (fdt_is_compatible(node, "arm,gic-v3"))
        take_gic(node, 3);
    else if (fdt_is_compatible(node, "arm,cortex-a15-gic") || fdt_is_compatible(node, "arm,gic-400"))
        take_gic(node, 2);
    else if (fdt_is_compatible(node, "arm,gic-v3-its") && has_reg)
        gic_places.its = addr;
    else if (fdt_is_compatible(node, "arm,gic-v2m-frame") && has_reg)
        gic_places.v2m = addr;
    else if (fdt_is_compatible(node, "arm,psci-0.2") || fdt_is_compatible(node, "arm,psci-1.0"))
        psci_by_smc = node->method && strcmp(node->method, "smc") == 0;
    else if (fdt_is_compatible(node, "pci-host-ecam-generic"))
        take_pci(node);
    else if (fdt_is_compatible(node, "virtio,mmio") && has_reg && arch.num_mmio < ARCH_MMIO_MAX)
        arch.mmio[arch.num_mmio++] = (struct arch_mmio){
            .addr = addr,
            .size = (uint32_t)bytes,
            .irq = node->interrupts_bytes >= 8 ? 32 + (uint32_t)fdt_cells(node->interrupts, 1, 1) : 0};
}

void arch_init(uintptr_t boot_info)
{
    counter_start = READ_REGISTER("cntvct_el0");
    arch.command_line = "";
    if (!fdt_walk((const void *)boot_info, visit))
        machine_print("aarch64: no device tree at the start of RAM\n");
    arch.ram_start = (uint64_t)__image_end;
    if (arch.ram_end < arch.ram_start + 0x100000)
        arch.ram_end = 0x40000000 + (128u << 20);
    if (rtc)
        arch.start_seconds = read32(rtc);
    gic_init(&gic_places);
}

void arch_exit(int verdict)
{
    /* SYS_EXIT_EXTENDED with ADP_Stopped_ApplicationExit and QEMU's exit status */
    const uint64_t block[2] = {0x20026, 33 + 2 * (uint64_t)verdict};
    register uint64_t operation __asm__("x0") = 0x20;
    register const uint64_t *argument __asm__("x1") = block;
    __asm__ volatile("hlt #0xf000" : "+r"(operation) : "r"(argument) : "memory");
    for (;;)
        __asm__ volatile("wfi");
}

void *arch_map_device(uint64_t phys, uint64_t bytes)
{
    /* start.S has mapped all but memory as device memory, up to 512 GiB */
    if (bytes == 0 || phys < 0x200000 || phys >= 512ull << 30 || bytes > (512ull << 30) - phys)
        return NULL;
    return phys >= 0x40000000 && phys < 0x100000000 ? NULL : (void *)phys;
}

int arch_msi_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data)
{
    return gic_msi_message(bdf, cpu, addr, data);
}

int arch_irq_enable(unsigned irq)
{
    return gic_enable(irq, false);
}

/* virt's four INTx lines are shared peripheral interrupts 3 to 6, turned by device number (its
 * interrupt-map). */
int arch_pci_irq(unsigned bdf)
{
    unsigned pin = arch_pci_read(bdf, 0x3d, 1);
    return pin >= 1 && pin <= 4 && bdf >> 8 == 0 ? (int)(32 + 3 + ((bdf >> 3) + pin - 1) % 4) : -1;
}

/* ---- PCI ---- */

static volatile void *config_at(unsigned bdf, unsigned offset)
{
    uint64_t at = (uint64_t)bdf << 12 | offset;
    return at < ecam_bytes ? (volatile void *)(ecam + at) : NULL;
}

uint32_t arch_pci_read(unsigned bdf, unsigned offset, unsigned width)
{
    volatile void *at = config_at(bdf, offset);
    if (!at)
        return 0xffffffff;
    return width == 1   ? *(volatile uint8_t *)at
           : width == 2 ? *(volatile uint16_t *)at
                        : *(volatile uint32_t *)at;
}

void arch_pci_write(unsigned bdf, unsigned offset, unsigned width, uint32_t value)
{
    volatile void *at = config_at(bdf, offset);
    if (!at)
        return;
    if (width == 1)
        *(volatile uint8_t *)at = (uint8_t)value;
    else if (width == 2)
        *(volatile uint16_t *)at = (uint16_t)value;
    else
        *(volatile uint32_t *)at = value;
}

uint32_t arch_io_read(uint32_t port, unsigned width)
{
    uint64_t at = arch.pci_io_base + port;
    return width == 1   ? *(volatile uint8_t *)at
           : width == 2 ? *(volatile uint16_t *)at
                        : *(volatile uint32_t *)at;
}

void arch_io_write(uint32_t port, unsigned width, uint32_t value)
{
    uint64_t at = arch.pci_io_base + port;
    if (width == 1)
        *(volatile uint8_t *)at = (uint8_t)value;
    else if (width == 2)
        *(volatile uint16_t *)at = (uint16_t)value;
    else
        *(volatile uint32_t *)at = value;
}

/* ---- CPUs: numbered by the lowest affinity field, as virt does up to eight ---- */

#define CPU_STACK_BYTES 32768
#define PSCI_CPU_ON     0xc4000003u

static uint8_t cpu_stacks[ARCH_CPUS_MAX - 1][CPU_STACK_BYTES] __attribute__((aligned(16)));
static unsigned cpus_up = 1;
extern uint64_t aarch64_cpu_stack;
extern char aarch64_cpu_start[];
_Noreturn void aarch64_cpu_entry(unsigned cpu);

void aarch64_cpu_entry(unsigned cpu)
{
    gic_init_cpu(cpu);
    __atomic_store_n(&cpus_up, cpu + 1, __ATOMIC_RELEASE); /* seen by arch_cpu_start */
    cpu_main(cpu);
}

unsigned arch_num_cpus(void)
{
    return num_cpus ? num_cpus < ARCH_CPUS_MAX ? num_cpus : ARCH_CPUS_MAX : 1;
}

unsigned arch_this_cpu(void)
{
    return READ_REGISTER("mpidr_el1") & 0xff;
}

int arch_cpu_start(unsigned cpu)
{
    if (cpu == 0 || cpu >= arch_num_cpus() || cpu != __atomic_load_n(&cpus_up, __ATOMIC_ACQUIRE))
        return -1;
    aarch64_cpu_stack = (uint64_t)(cpu_stacks[cpu - 1] + CPU_STACK_BYTES);
    /* The new CPU reads its stack with the MMU, hence its caches, still off. */
    __asm__ volatile("dc cvac, %0; dsb sy" : : "r"(&aarch64_cpu_stack) : "memory");
    register uint64_t function __asm__("x0") = PSCI_CPU_ON;
    register uint64_t target __asm__("x1") = cpu;
    register uint64_t entry __asm__("x2") = (uint64_t)aarch64_cpu_start;
    register uint64_t context __asm__("x3") = cpu;
    if (psci_by_smc)
        __asm__ volatile("smc #0" : "+r"(function) : "r"(target), "r"(entry), "r"(context) : "memory");
    else
        __asm__ volatile("hvc #0" : "+r"(function) : "r"(target), "r"(entry), "r"(context) : "memory");
    if (function != 0)
        return -1;
    for (uint64_t end = arch_now_ns() + ARCH_CPU_START_NS; arch_now_ns() < end;) {
        if (__atomic_load_n(&cpus_up, __ATOMIC_ACQUIRE) == cpu + 1) /* pairs with aarch64_cpu_entry */
            return 0;
    }
    return -1;
}
