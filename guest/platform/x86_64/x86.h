/*
 * Inside guest/platform/x86_64 only: port and register access, and what its files call of each other.
 */
#ifndef RINGSIDE_X86_H
#define RINGSIDE_X86_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/platform/arch.h"

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint64_t x86_rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static inline void x86_pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* The interrupt vectors. Below 32 are the CPU's own exceptions. */
enum {
    X86_VECTOR_TIMER = 0x20,
    X86_VECTOR_LINE = 0x30, /* + I/O APIC input, of which up to 64 are used */
    X86_VECTOR_MSI = 0x70,  /* + number of the message */
    X86_VECTOR_MSI_END = 0xf0,
    X86_VECTOR_SPURIOUS = 0xff
};

struct x86_trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

void x86_traps_init(unsigned cpu);
void x86_trap(struct x86_trap_frame *frame);

void x86_apic_init(void);     /* CPU 0: before the clock */
void x86_apic_init_cpu(void); /* every CPU */
void x86_apic_eoi(void);
unsigned x86_apic_id(void);
void x86_apic_send(unsigned cpu, uint32_t command); /* an interrupt command to another CPU */
void x86_apic_timer_start(uint32_t ticks);
uint32_t x86_apic_timer_left(void);
void x86_apic_set_timer_hz(uint64_t hz);

void x86_clock_init(void);
void x86_serial_init(void);
void *x86_map_device(uint64_t phys, uint64_t bytes);

#endif
