/*
 * What libvblk asks of the machine it runs on: about ten functions. docs/porting.md walks through a port.
 *
 * All are called in the context in which the driver was called (see vblk.h). `ctx` is passed back unchanged.
 */
#ifndef RINGSIDE_VBLK_PLATFORM_H
#define RINGSIDE_VBLK_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

/* An address as the device must be told it: physical, or translated by an IOMMU. Never a pointer. */
typedef struct {
    uint64_t value;
} vblk_dma_addr;

enum vblk_direction { VBLK_TO_DEVICE, VBLK_FROM_DEVICE };

enum vblk_log_level { VBLK_LOG_ERROR, VBLK_LOG_WARNING, VBLK_LOG_INFO };

struct vblk_platform {
    void *ctx;

    /* Memory that driver and device share for the disk's life: zeroed, physically contiguous, cacheable and
     * coherent, aligned to ALIGN (a power of two, at most 4096). Called by vblk_start only. NULL if there is none. */
    void *(*dma_alloc)(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr);
    void (*dma_free)(void *ctx, void *mem, size_t bytes);

    /* Makes a caller's buffer visible to the device and says where it is for the device. Identity mapping, bounce
     * buffer and IOMMU are all behind this. CONTIGUOUS: set on return to how many of the LEN bytes, from MEM on,
     * are contiguous for the device at the address returned (at least 1); the driver calls again for the rest.
     * Returns 0 or -VBLK_EAGAIN (no bounce space now) or -VBLK_EINVAL (this memory can't be reached). */
    int (*share)(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                 size_t *contiguous);
    /* Ends it, once the device can't touch it any more: each piece that `share` gave, with the same arguments. */
    void (*unshare)(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr);

    /* Nanoseconds that never go back. */
    uint64_t (*now_ns)(void *ctx);

    /* Waits for an interrupt of QUEUE, but not beyond DEADLINE_NS on now_ns's clock. Returning early, for any
     * reason, is fine; so is never sleeping at all. Interrupts that came since vblk_interrupts_on must end it. */
    void (*wait)(void *ctx, unsigned queue, uint64_t deadline_ns);

    /* A spin loop's pause. May be NULL. */
    void (*relax)(void *ctx);

    /* A line for people, without newline. May be NULL. */
    void (*log)(void *ctx, enum vblk_log_level level, const char *text);
};

#endif
