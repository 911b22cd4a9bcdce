/*
 * Registers mapped at a pointer: one access each, of the width asked for, little-endian as all of virtio's
 * are.
 *
 * On Arm the instruction itself matters: a hypervisor emulates a plain load or store, and can't one that also
 * changes its address register, which a compiler may well choose.
 */
#include "common/endian.h"
#include "guest/driver/vtr_mmio.h"

#if defined(__aarch64__)
#define LOAD(suffix, mods, value, at) \
    __asm__ volatile("ldr" suffix " %" mods "0, [%1]" : "=r"(value) : "r"(at) : "memory")
#define STORE(suffix, mods, value, at) \
    __asm__ volatile("str" suffix " %" mods "0, [%1]" : : "rZ"(value), "r"(at) : "memory")

uint32_t vtr_mmio_direct_read(void *ctx, unsigned offset, unsigned width)
{
    volatile uint8_t *at = (volatile uint8_t *)ctx + offset;
    uint32_t value;

    if (width == 1)
        LOAD("b", "w", value, at);
    else if (width == 2)
        LOAD("h", "w", value, at);
    else
        LOAD("", "w", value, at);
    return width == 1 ? value : width == 2 ? WIRE_LE16(value) : WIRE_LE32(value);
}

void vtr_mmio_direct_write(void *ctx, unsigned offset, unsigned width, uint32_t value)
{
    volatile uint8_t *at = (volatile uint8_t *)ctx + offset;

    if (width == 1)
        STORE("b", "w", value, at);
    else if (width == 2)
        STORE("h", "w", (uint32_t)WIRE_LE16(value), at);
    else
        STORE("", "w", WIRE_LE32(value), at);
}
#else
uint32_t vtr_mmio_direct_read(void *ctx, unsigned offset, unsigned width)
{
    volatile uint8_t *at = (volatile uint8_t *)ctx + offset;

    if (width == 1)
        return *at;
    if (width == 2)
        return WIRE_LE16(*(volatile uint16_t *)(volatile void *)at);
    return WIRE_LE32(*(volatile uint32_t *)(volatile void *)at);
}

void vtr_mmio_direct_write(void *ctx, unsigned offset, unsigned width, uint32_t value)
{
    volatile uint8_t *at = (volatile uint8_t *)ctx + offset;

    if (width == 1)
        *at = (uint8_t)value;
    else if (width == 2)
        *(volatile uint16_t *)(volatile void *)at = WIRE_LE16(value);
    else
        *(volatile uint32_t *)(volatile void *)at = WIRE_LE32(value);
}
#endif
