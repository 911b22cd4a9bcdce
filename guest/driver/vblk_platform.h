/*
 * What libvblk asks of the machine it runs on: about ten functions. docs/porting.md walks through a port.
 *
 * All are called in the context in which the driver was called (see vblk.h). `ctx` is passed back unchanged.
 */
#ifndef RINGSIDE_VBLK_PLATFORM_H
#define RINGSIDE_VBLK_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

/* Errors, returned negative. Values are Linux's so that a port can pass them on. */
enum vblk_error {
    VBLK_EIO = 5,     /* the device said IOERR, or wrote no status */
    VBLK_EAGAIN = 11, /* no room now */
    VBLK_ENOMEM = 12,
    VBLK_EBUSY = 16,
    VBLK_ENODEV = 19, /* no such device, or the disk has failed for good */
    VBLK_EINVAL = 22,
    VBLK_EROFS = 30,
    VBLK_ERANGE = 34,     /* beyond capacity */
    VBLK_ENOTSUP = 95,    /* the device did not offer it, or said UNSUPP */
    VBLK_ETIMEDOUT = 110, /* not done within its deadline, however often it was tried */
    /* The device would neither finish nor be reset nor be cut off from memory: it may still use the request's
     * buffers, and the driver can do no more about it. Don't use them again. */
    VBLK_ENOTRECOVERABLE = 131
};

/* An address as the device must be told it: physical, or translated by an IOMMU. Never a pointer. */
typedef struct {
    uint64_t value;
} vblk_dma_addr;

enum vblk_direction { VBLK_TO_DEVICE, VBLK_FROM_DEVICE };

enum vblk_log_level { VBLK_LOG_ERROR, VBLK_LOG_WARNING, VBLK_LOG_INFO };

struct vblk_platform {
    void *ctx;

    /* Memory that driver and device share for the disk's life: zeroed, physically contiguous, cacheable and
     * coherent, aligned to ALIGN (a power of two, at most 4096). Called by vblk_start only. NULL if there is
     * none. */
    void *(*dma_alloc)(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr);
    void (*dma_free)(void *ctx, void *mem, size_t bytes);

    /* Makes a caller's buffer visible to the device and says where it is for the device. Identity mapping,
     * bounce buffer and IOMMU are all behind this. CONTIGUOUS: set on return to how many of the LEN bytes,
     * from MEM on, are contiguous for the device at the address returned (1 to LEN); just these are shared,
     * and the driver calls again for the rest. Returns 0, -VBLK_EAGAIN (no bounce space now: tried again
     * after the next completion) or -VBLK_EINVAL (this memory can't be reached: the request fails with that).
     */
    int (*share)(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                 size_t *contiguous);
    /* Ends it, once the device can't touch it any more: MEM, its CONTIGUOUS as LEN, the address that share
     * gave. */
    void (*unshare)(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr);

    /* Nanoseconds that never go back. */
    uint64_t (*now_ns)(void *ctx);

    /* Waits for an interrupt of QUEUE, but not beyond DEADLINE_NS on now_ns's clock. Returning early, for any
     * reason, is fine; so is never sleeping at all. Interrupts that came since vblk_interrupts_on must end
     * it. */
    void (*wait)(void *ctx, unsigned queue, uint64_t deadline_ns);

    /* A spin loop's pause. May be NULL. */
    void (*relax)(void *ctx);

    /* A line for people, without newline. May be NULL. */
    void (*log)(void *ctx, enum vblk_log_level level, const char *text);
};

#endif
