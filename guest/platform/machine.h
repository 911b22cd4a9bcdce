/*
 * The machine as the guest's C library and programs see it: console, clock, memory, disks, CPUs, the end.
 * The same on every architecture; guest/platform/common and guest/platform/<arch> supply it.
 *
 * Contexts: one CPU runs everything unless a program starts others with machine_run_on_cpu. Interrupts are
 * taken only inside machine_wait, so nothing here, nor in the driver, is ever interrupted.
 */
#ifndef RINGSIDE_MACHINE_H
#define RINGSIDE_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/driver/vblk_platform.h"

struct vtr;

/* The program, supplied by guest/libc: called once, on the first CPU, when the machine is ready. */
_Noreturn void guest_start(void);

/* The serial console. Write waits until all is out (but not for ever); read returns the next character, or -1
 * if there is none now. */
void machine_console_write(const char *text, size_t len);
int machine_console_read(void);
void machine_print(const char *text);                     /* no libc needed: usable in a trap */
void machine_print_hex(const char *name, uint64_t value); /* " name=0x..." */

/* Nanoseconds since start; never goes back; the same clock on every CPU. */
uint64_t machine_now_ns(void);
/* Seconds since 1970 when the machine started, by its real-time clock; 0 if it has none. */
uint64_t machine_start_seconds(void);
/* Sleeps until an interrupt comes or DEADLINE_NS is reached, or a little less. */
void machine_wait(uint64_t deadline_ns);
/* A spin loop's pause. */
void machine_relax(void);

/* Ends the machine. VERDICT: 0 passed, 1 failed, 2 usage, 3 died in a trap. run-qemu.sh exits with it. */
_Noreturn void machine_exit(int verdict);

extern const char machine_arch[];       /* "x86_64", ... */
const char *machine_command_line(void); /* never NULL */

/* Memory for the heap: from *START to *END, not touched by anything else. */
void machine_heap(char **start, char **end);

/* Disks, in the order found: every virtio block device behind PCI, then behind MMIO. */
struct machine_disk {
    struct vtr *transport;
    const struct vblk_platform *platform;
    bool has_interrupt; /* without, waiting for it is polling */
    char where[48];     /* "pci 00:04.0", "mmio 0xfeb00e00" */
};

unsigned machine_disk_count(void);
const struct machine_disk *machine_disk(unsigned index);
/* FUNCTION is called after each wait of that disk whose interrupt is a line that must be acknowledged (INTx,
 * MMIO): vblk_interrupt. Not called from an interrupt. */
void machine_on_wake(unsigned index, void (*function)(void *opaque), void *opaque);

/* Interrupts of devices taken since start, by any CPU: tests and `bench` count them. */
uint64_t machine_interrupts(void);

/* CPUs. cpu 0 is the one that runs main. The function given must not use the C library. Returns 0 or -1 (no
 * such CPU, busy, or it did not come up). machine_cpu_wait waits until it has returned. */
#define MACHINE_CPUS_MAX 8
unsigned machine_num_cpus(void);
unsigned machine_this_cpu(void);
int machine_run_on_cpu(unsigned cpu, void (*function)(void *arg), void *arg);
void machine_cpu_wait(unsigned cpu);

#endif
