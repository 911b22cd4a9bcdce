/*
 * virtio over MMIO (virtio 1.4, 4.2): version 2, and version 1 of legacy devices (QEMU's default unless told
 * `-global virtio-mmio.force-legacy=false`).
 *
 * The platform learns from its device tree, its tables or its command line where the registers are; it maps
 * them uncached and acknowledges nothing itself: vblk_interrupt does.
 */
#ifndef RINGSIDE_VTR_MMIO_H
#define RINGSIDE_VTR_MMIO_H

#include <stddef.h>
#include <stdint.h>

#include "guest/driver/vblk_transport.h"

/* How registers are reached; values in the CPU's order, one access of WIDTH (1, 2, 4) bytes each. */
struct vtr_mmio_access {
    void *ctx;
    uint32_t (*read)(void *ctx, unsigned offset, unsigned width);
    void (*write)(void *ctx, unsigned offset, unsigned width, uint32_t value);
};

/* For registers mapped at a pointer: CTX is that pointer. */
uint32_t vtr_mmio_direct_read(void *ctx, unsigned offset, unsigned width);
void vtr_mmio_direct_write(void *ctx, unsigned offset, unsigned width, uint32_t value);

struct vtr_mmio {
    struct vtr vtr; /* first */
    struct vtr_mmio_access access;
    unsigned bytes; /* of the whole register window */
    uint32_t version;
};

/* BYTES: length of the register window (0x200 in QEMU). Picks version 2 or 1 by itself (1 on little-endian
 * CPUs only). Errors: -VBLK_ENODEV: no magic, another version, another kind of device, or the placeholder
 * that DeviceID 0 is (4.2.3.1.1: nothing else was touched, nothing is logged). */
int vtr_mmio_init(struct vtr_mmio *mmio, const struct vtr_mmio_access *access, unsigned bytes);

#endif
