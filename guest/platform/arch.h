/*
 * What each architecture's folder supplies to guest/platform/common. Programs use machine.h instead.
 *
 * A new board of a known architecture fills the same functions; nothing else in the guest knows the machine.
 */
#ifndef RINGSIDE_ARCH_H
#define RINGSIDE_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Called first, on the first CPU, with what the loader left (x86_64: PVH start info; others: device tree).
 * Sets traps, clock and interrupt controller up and fills `arch`. */
void arch_init(uintptr_t boot_info);

#define ARCH_MMIO_MAX 48

struct arch_mmio { /* where a virtio-mmio device may be; probed by its magic */
    uint64_t addr;
    uint32_t size;
    uint32_t irq; /* as arch_irq_enable takes it */
};

struct arch {
    const char *command_line;
    uint64_t ram_start, ram_end; /* free memory: behind the image, identity-mapped */
    uint64_t start_seconds;

    bool has_pci;
    uint64_t pci_mem_start, pci_mem_end; /* for BARs that no firmware has placed; bus addresses */
    uint64_t pci_mem_offset;             /* CPU address = bus address + offset */
    uint32_t pci_io_start, pci_io_end;
    uint64_t pci_io_base; /* where the I/O window is for the CPU; 0: port instructions */

    unsigned num_mmio;
    struct arch_mmio mmio[ARCH_MMIO_MAX];
};

extern struct arch arch;

void arch_console_putc(char c);
int arch_console_getc(void);
uint64_t arch_now_ns(void);
_Noreturn void arch_exit(int verdict);

/* Called and returning with interrupts masked: lets one in, or sleeps until DEADLINE_NS. */
void arch_wait(uint64_t deadline_ns);

/* Device registers at PHYS, mapped uncached. NULL if that can't be. */
void *arch_map_device(uint64_t phys, uint64_t bytes);

/* PCI configuration space; bdf is bus << 8 | device << 3 | function. All ones where nothing answers. */
uint32_t arch_pci_read(unsigned bdf, unsigned offset, unsigned width);
void arch_pci_write(unsigned bdf, unsigned offset, unsigned width, uint32_t value);
uint32_t arch_io_read(uint32_t port, unsigned width);
void arch_io_write(uint32_t port, unsigned width, uint32_t value);

/* A message that interrupts CPU, fresh for each call. -1: this machine takes no message-signalled interrupts.
 */
int arch_msi_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data);
/* Lets an interrupt line end arch_wait. -1: can't. The line of a PCI function's INTx pin: -1 if not known. */
int arch_irq_enable(unsigned irq);
int arch_pci_irq(unsigned bdf);

uint64_t arch_interrupts(void);

unsigned arch_num_cpus(void);
unsigned arch_this_cpu(void);
/* Starts CPU at cpu_main, all below it being up. 0 or -1. */
int arch_cpu_start(unsigned cpu);
/* In common/cpus.c: what a secondary CPU runs when its traps and clock are set up. */
_Noreturn void cpu_main(unsigned cpu);
#define ARCH_CPUS_MAX 8 /* MACHINE_CPUS_MAX */
/* What a CPU that was started may take to come up, if a busy host emulates it. */
#define ARCH_CPU_START_NS 20000000000ull

#endif
