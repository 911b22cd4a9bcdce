/*
 * QEMU's virt machine under OpenSBI, as its device tree describes it: 16550 console, time counter with SBI's
 * timer, PLIC, PCI by ECAM with INTx (this PLIC takes no messages), virtio-mmio slots; CPUs by SBI; the end
 * through the test device, which carries a status.
 *
 * Interrupts stay masked; `wfi` wakes for one that is pending all the same (privileged architecture, 3.3.3),
 * and arch_wait then claims it. So nothing is lost between looking at a ring and sleeping.
 */
#include "guest/platform/machine.h"
#include "guest/platform/common/fdt.h"
#include "guest/platform/riscv64/riscv64.h"

#include <string.h>

#include "guest/platform/arch.h"

#define UART_LINE_STATUS 5
#define STATUS_DATA      0x01
#define STATUS_EMPTY     0x20

#define SIE_TIMER    (1u << 5)
#define SIE_EXTERNAL (1u << 9)

#define SBI_TIME       0x54494d45
#define SBI_HSM        0x48534d
#define SBI_HART_START 0

#define PLIC_ENABLE  0x2000
#define PLIC_CONTEXT 0x200000
#define PLIC_CLAIM   4

#define FINISH_STATUS 0x3333u

/* IMSIC, chapter 3 of the AIA: registers behind siselect and sireg, the highest pending identity in stopei.
 * Written by number, since the assembler does not know the names. */
#define IMSIC_DELIVERY      0x70
#define IMSIC_THRESHOLD     0x72
#define IMSIC_ENABLE(n)     (0xc0 + (n) / 64 * 2) /* of identity n */
#define IMSIC_IDENTITIES    256u
#define IMSIC_FILE_BYTES    4096u
#define SUPERVISOR_EXTERNAL 9u

const char machine_arch[] = "riscv64";
struct arch arch;

extern char __image_end[];
extern uint64_t riscv64_boot_hart, riscv64_cpu_stack, riscv64_cpu_number;
extern char riscv64_cpu_start[];

static uint64_t uart = 0x10000000, finisher = 0x100000, rtc, plic, imsic;
static uint64_t ecam, ecam_bytes;
static uint64_t timebase = 10000000, counter_start, interrupts;
static uint64_t harts[ARCH_CPUS_MAX] = {0}; /* of CPU n; CPU 0 is the one that booted */
static unsigned num_cpus = 1;

static int64_t sbi_call(uint64_t extension, uint64_t function, uint64_t arg0, uint64_t arg1, uint64_t arg2)
{
    register uint64_t a0 __asm__("a0") = arg0;
    register uint64_t a1 __asm__("a1") = arg1;
    register uint64_t a2 __asm__("a2") = arg2;
    register uint64_t a6 __asm__("a6") = function;
    register uint64_t a7 __asm__("a7") = extension;
    __asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a2), "r"(a6), "r"(a7) : "memory");
    return (int64_t)a0;
}

/* ---- console ---- */

void arch_console_putc(char c)
{
    for (unsigned tries = 0;
         !(*(volatile uint8_t *)(uart + UART_LINE_STATUS) & STATUS_EMPTY) && tries < 1000000; tries++)
        continue;
    *(volatile uint8_t *)uart = (uint8_t)c;
}

int arch_console_getc(void)
{
    if (!(*(volatile uint8_t *)(uart + UART_LINE_STATUS) & STATUS_DATA))
        return -1;
    return *(volatile uint8_t *)uart;
}

/* ---- time and waiting ---- */

uint64_t arch_now_ns(void)
{
    return (uint64_t)((unsigned __int128)(READ_CSR(time) - counter_start) * 1000000000 / timebase);
}

static uint64_t plic_context(void)
{
    return 2 * harts[arch_this_cpu()] + 1; /* each hart has one for M-mode and one for S-mode */
}

static void imsic_write(unsigned reg, uint64_t value)
{
    __asm__ volatile("csrw 0x150, %0; csrw 0x151, %1" : : "r"((uint64_t)reg), "r"(value) : "memory");
}

static void imsic_init_cpu(void)
{
    if (!imsic)
        return;
    imsic_write(IMSIC_DELIVERY, 1);
    imsic_write(IMSIC_THRESHOLD, 0);
    for (unsigned identity = 0; identity < IMSIC_IDENTITIES; identity += 64)
        imsic_write(IMSIC_ENABLE(identity), UINT64_MAX); /* an identity that nobody was given never comes */
}

static void take_messages(void)
{
    for (unsigned taken = 0; taken < IMSIC_IDENTITIES; taken++) {
        uint64_t top;
        __asm__ volatile("csrrw %0, 0x15c, zero" : "=r"(top) : : "memory"); /* stopei: read and claimed */
        if (!top)
            break;
        __atomic_fetch_add(&interrupts, 1, __ATOMIC_RELAXED);
    }
}

void arch_wait(uint64_t deadline_ns)
{
    uint64_t now = arch_now_ns();
    if (deadline_ns <= now)
        return;
    uint64_t ns = deadline_ns - now < 1000000000 ? deadline_ns - now : 1000000000;
    sbi_call(SBI_TIME, 0, READ_CSR(time) + ns * timebase / 1000000000 + 1, 0, 0);
    WRITE_CSR(sie, SIE_TIMER | SIE_EXTERNAL);
    __asm__ volatile("wfi" : : : "memory");
    WRITE_CSR(sie, 0);
    if (imsic)
        take_messages();
    if (!plic)
        return;
    uint64_t claim = plic + PLIC_CONTEXT + 0x1000 * plic_context() + PLIC_CLAIM;
    for (unsigned taken = 0; taken < 64; taken++) { /* a line that stays up would go on for ever */
        uint32_t irq = read32(claim);
        if (!irq)
            break;
        write32(claim, irq);
        __atomic_fetch_add(&interrupts, 1, __ATOMIC_RELAXED);
    }
}

uint64_t arch_interrupts(void)
{
    return __atomic_load_n(&interrupts, __ATOMIC_RELAXED);
}

int arch_irq_enable(unsigned irq)
{
    if (!plic || irq == 0 || irq >= 1024)
        return -1;
    write32(plic + 4ull * irq, 1);
    uint64_t enable = plic + PLIC_ENABLE + 0x80 * plic_context() + irq / 32 * 4;
    write32(enable, read32(enable) | 1u << irq % 32);
    return 0;
}

int arch_msi_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data)
{
    static uint32_t next = 1;
    if (!imsic)
        return -1;
    *addr = imsic + (cpu < num_cpus ? harts[cpu] : harts[0]) * IMSIC_FILE_BYTES;
    *data = next;
    next = next % (IMSIC_IDENTITIES - 2) + 1; /* shared when they run out: nobody dispatches by number */
    return 0;
}

/* virt's four INTx lines are interrupts 32 to 35, turned by device number (its interrupt-map). */
int arch_pci_irq(unsigned bdf)
{
    unsigned pin = arch_pci_read(bdf, 0x3d, 1);
    return pin >= 1 && pin <= 4 && bdf >> 8 == 0 ? (int)(32 + ((bdf >> 3) + pin - 1) % 4) : -1;
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

static void visit(const struct fdt_node *node)
{
    uint64_t addr = 0, bytes = 0;
    bool has_reg = fdt_reg(node, 0, &addr, &bytes);
    if (strcmp(node->name, "chosen") == 0 && node->bootargs)
        arch.command_line = node->bootargs;
    else if (strcmp(node->name, "cpus") == 0 && node->timebase_frequency)
        timebase = node->timebase_frequency;
    else if (node->device_type && strcmp(node->device_type, "memory") == 0 && has_reg)
        arch.ram_end = addr + bytes < 0x100000000 ? addr + bytes : 0x100000000;
    else if (node->device_type && strcmp(node->device_type, "cpu") == 0 && node->reg_bytes >= 4) {
        uint64_t hart = fdt_cells(node->reg, 0, node->parent_address_cells);
        if (hart != riscv64_boot_hart && num_cpus < ARCH_CPUS_MAX)
            harts[num_cpus++] = hart;
    } else if (fdt_is_compatible(node, "ns16550a") && has_reg)
        uart = addr;
    else if (fdt_is_compatible(node, "google,goldfish-rtc") && has_reg)
        rtc = addr;
    else if (fdt_is_compatible(node, "sifive,test0") && has_reg)
        finisher = addr;
    else if ((fdt_is_compatible(node, "riscv,plic0") || fdt_is_compatible(node, "sifive,plic-1.0.0")) &&
             has_reg)
        plic = addr;
    else if (fdt_is_compatible(node, "riscv,imsics") && has_reg && node->interrupts_extended_bytes >= 8 &&
             fdt_cells(node->interrupts_extended, 1, 1) == SUPERVISOR_EXTERNAL)
        imsic = addr;
    else if (fdt_is_compatible(node, "pci-host-ecam-generic"))
        take_pci(node);
    else if (fdt_is_compatible(node, "virtio,mmio") && has_reg && arch.num_mmio < ARCH_MMIO_MAX)
        arch.mmio[arch.num_mmio++] = (struct arch_mmio){
            .addr = addr,
            .size = (uint32_t)bytes,
            .irq = node->interrupts_bytes >= 4 ? (uint32_t)fdt_cells(node->interrupts, 0, 1) : 0};
}

void arch_init(uintptr_t boot_info)
{
    counter_start = READ_CSR(time);
    arch.command_line = "";
    harts[0] = riscv64_boot_hart;
    if (!fdt_walk((const void *)boot_info, visit))
        machine_print("riscv64: no device tree\n");
    arch.ram_start = (uint64_t)__image_end;
    if (arch.ram_end < arch.ram_start + 0x100000)
        arch.ram_end = 0x80000000 + (128u << 20);
    if (boot_info > arch.ram_start && boot_info < arch.ram_end)
        arch.ram_end = boot_info; /* the tree lies near the end, and the command line in it */
    if (rtc) {
        uint64_t low = read32(rtc);
        arch.start_seconds = ((uint64_t)read32(rtc + 4) << 32 | low) / 1000000000;
    }
    imsic_init_cpu();
    if (plic)
        write32(plic + PLIC_CONTEXT + 0x1000 * plic_context(), 0); /* every priority */
}

void arch_exit(int verdict)
{
    write32(finisher, FINISH_STATUS | (33 + 2 * (uint32_t)verdict) << 16);
    for (;;)
        __asm__ volatile("wfi");
}

void *arch_map_device(uint64_t phys, uint64_t bytes)
{
    /* start.S has mapped everything up to 256 GiB; what is memory and what is not, the machine knows itself
     */
    if (bytes == 0 || phys < 0x1000 || phys >= 256ull << 30 || bytes > (256ull << 30) - phys)
        return NULL;
    return (void *)phys;
}

/* ---- PCI ---- */

static volatile void *config_at(unsigned bdf, unsigned offset)
{
    uint64_t at = (uint64_t)bdf << 12 | offset;
    return at < ecam_bytes ? (volatile void *)(ecam + at) : NULL;
}

static uint32_t load(volatile void *at, unsigned width)
{
    return width == 1   ? *(volatile uint8_t *)at
           : width == 2 ? *(volatile uint16_t *)at
                        : *(volatile uint32_t *)at;
}

static void store(volatile void *at, unsigned width, uint32_t value)
{
    if (width == 1)
        *(volatile uint8_t *)at = (uint8_t)value;
    else if (width == 2)
        *(volatile uint16_t *)at = (uint16_t)value;
    else
        *(volatile uint32_t *)at = value;
}

uint32_t arch_pci_read(unsigned bdf, unsigned offset, unsigned width)
{
    volatile void *at = config_at(bdf, offset);
    return at ? load(at, width) : 0xffffffff;
}

void arch_pci_write(unsigned bdf, unsigned offset, unsigned width, uint32_t value)
{
    volatile void *at = config_at(bdf, offset);
    if (at)
        store(at, width, value);
}

uint32_t arch_io_read(uint32_t port, unsigned width)
{
    return load((volatile void *)(arch.pci_io_base + port), width);
}

void arch_io_write(uint32_t port, unsigned width, uint32_t value)
{
    store((volatile void *)(arch.pci_io_base + port), width, value);
}

/* ---- CPUs ---- */

#define CPU_STACK_BYTES 32768

static uint8_t cpu_stacks[ARCH_CPUS_MAX - 1][CPU_STACK_BYTES] __attribute__((aligned(16)));
static unsigned cpus_up = 1;
_Noreturn void riscv64_cpu_entry(unsigned cpu);

void riscv64_cpu_entry(unsigned cpu)
{
    imsic_init_cpu();
    __atomic_store_n(&cpus_up, cpu + 1, __ATOMIC_RELEASE); /* seen by arch_cpu_start */
    cpu_main(cpu);
}

unsigned arch_num_cpus(void)
{
    return num_cpus;
}

unsigned arch_this_cpu(void)
{
    uint64_t cpu;
    __asm__("mv %0, tp" : "=r"(cpu));
    return (unsigned)cpu;
}

int arch_cpu_start(unsigned cpu)
{
    if (cpu == 0 || cpu >= num_cpus || cpu != __atomic_load_n(&cpus_up, __ATOMIC_ACQUIRE))
        return -1;
    riscv64_cpu_stack = (uint64_t)(cpu_stacks[cpu - 1] + CPU_STACK_BYTES);
    riscv64_cpu_number = cpu;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* both before the hart that reads them is started */
    if (sbi_call(SBI_HSM, SBI_HART_START, harts[cpu], (uint64_t)riscv64_cpu_start, cpu) != 0)
        return -1;
    for (uint64_t end = arch_now_ns() + ARCH_CPU_START_NS; arch_now_ns() < end;) {
        if (__atomic_load_n(&cpus_up, __ATOMIC_ACQUIRE) == cpu + 1) /* pairs with riscv64_cpu_entry */
            return 0;
    }
    return -1;
}
