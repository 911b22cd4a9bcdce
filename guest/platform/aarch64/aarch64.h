/*
 * Inside guest/platform/aarch64 only.
 */
#ifndef RINGSIDE_AARCH64_H
#define RINGSIDE_AARCH64_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/platform/arch.h"

#define READ_REGISTER(name)                                            \
    ({                                                                 \
        uint64_t value_;                                               \
        __asm__ volatile("mrs %0, " name : "=r"(value_) : : "memory"); \
        value_;                                                        \
    })
#define WRITE_REGISTER(name, value) __asm__ volatile("msr " name ", %0" : : "r"((uint64_t)(value)) : "memory")

static inline uint32_t read32(uint64_t addr)
{
    return *(volatile uint32_t *)addr;
}

static inline void write32(uint64_t addr, uint32_t value)
{
    *(volatile uint32_t *)addr = value;
}

static inline uint64_t read64(uint64_t addr)
{
    return *(volatile uint64_t *)addr;
}

static inline void write64(uint64_t addr, uint64_t value)
{
    *(volatile uint64_t *)addr = value;
}

/* What the device tree says of the interrupt controller. */
struct gic_places {
    unsigned version;                    /* 2, 3, or 0: none found */
    uint64_t distributor, cpu_interface; /* cpu_interface: version 2 */
    uint64_t redistributors;             /* version 3 */
    uint64_t its, v2m;                   /* or 0 */
};

void gic_init(const struct gic_places *places);
void gic_init_cpu(unsigned cpu);
/* Takes and ends every interrupt that is pending for this CPU. Returns how many were not the timer's. */
unsigned gic_take_all(void);
/* Lets shared peripheral interrupt number IRQ (32 and up), or private one 16 to 31 of this CPU, through. */
int gic_enable(unsigned irq, bool edge);
int gic_msi_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data);

/* its.c: messages by the Interrupt Translation Service. */
bool its_init(uint64_t its, uint64_t redistributors, unsigned num_cpus);
int its_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data);

#define AARCH64_TIMER_IRQ 27 /* the virtual timer's private interrupt, on every machine */

#endif
