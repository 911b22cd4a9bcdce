/*
 * Inside guest/platform/riscv64 only.
 */
#ifndef RINGSIDE_RISCV64_H
#define RINGSIDE_RISCV64_H

#include <stdint.h>

#define READ_CSR(name)                                                   \
    ({                                                                   \
        uint64_t value_;                                                 \
        __asm__ volatile("csrr %0, " #name : "=r"(value_) : : "memory"); \
        value_;                                                          \
    })
#define WRITE_CSR(name, value) __asm__ volatile("csrw " #name ", %0" : : "r"((uint64_t)(value)) : "memory")

static inline uint32_t read32(uint64_t addr)
{
    return *(volatile uint32_t *)addr;
}

static inline void write32(uint64_t addr, uint32_t value)
{
    *(volatile uint32_t *)addr = value;
}

#endif
