/*
 * Transports: how the driver reaches a device's registers. PCI, MMIO, a scripted device in the same process,
 * a vhost-user socket: each is one operations table. The virtio core in guest/driver uses nothing else.
 *
 * A transport embeds `struct vtr` as its first member. Register accesses are little-endian already swapped to
 * the CPU's order by the transport. Context: the driver's caller.
 */
#ifndef RINGSIDE_VBLK_TRANSPORT_H
#define RINGSIDE_VBLK_TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "guest/driver/vblk_platform.h"

struct vtr;

#define VTR_NO_VECTOR 0xffffu

struct vtr_queue {
    unsigned index;
    unsigned size;
    vblk_dma_addr desc, driver, device; /* the three parts, split or packed */
    uint16_t vector;                    /* interrupt vector wanted, or VTR_NO_VECTOR */
};

struct vtr_ops {
    const char *name;      /* "pci", "mmio", "vhost-user", ... */
    bool legacy;           /* no VERSION_1, no FEATURES_OK, legacy ring layout */
    bool fixed_queue_size; /* legacy PCI: a queue has the size that the device says, no other */
    /* Which of the reserved feature bits NOTIFICATION_DATA, NOTIF_CONFIG_DATA and RING_RESET it can carry. */
    uint64_t carries;

    uint8_t (*get_status)(struct vtr *vtr);
    void (*set_status)(struct vtr *vtr, uint8_t status); /* 0 asks for a reset; poll get_status for 0 */
    uint64_t (*get_features)(struct vtr *vtr);
    void (*set_features)(struct vtr *vtr, uint64_t features);

    /* Device configuration, by natural width (1, 2, 4; the core reads 64 bits as two halves). */
    uint32_t (*config_read)(struct vtr *vtr, unsigned offset, unsigned width);
    void (*config_write)(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value);
    uint32_t (*config_generation)(struct vtr *vtr);
    unsigned (*config_bytes)(struct vtr *vtr); /* how much there is */

    unsigned (*num_queues)(struct vtr *vtr); /* upper bound known to the transport, or 0 */
    unsigned (*queue_size_max)(struct vtr *vtr, unsigned index); /* 0: no such queue */
    /* Programs and enables it. 0, -VBLK_EBUSY (in use), -VBLK_ENODEV, -VBLK_ENOTSUP (vector refused: it is
     * not enabled, and may be tried with another). */
    int (*queue_enable)(struct vtr *vtr, const struct vtr_queue *queue);
    /* RING_RESET: starts it; queue_is_reset says when it is done. NULL if the transport has none. */
    void (*queue_reset)(struct vtr *vtr, unsigned index);
    bool (*queue_is_reset)(struct vtr *vtr, unsigned index);

    /* NEXT is the ring position for NOTIFICATION_DATA: next_off in bits 0-14, next_wrap in bit 15. */
    void (*notify)(struct vtr *vtr, unsigned index, uint16_t next, bool with_data);

    /* Reads (and clears) which kinds of interrupt are pending: bit 0 queues, bit 1 configuration. */
    uint8_t (*interrupt_status)(struct vtr *vtr);

    /* All below may be NULL. */

    /* Interrupt vectors there are to choose from (MSI-X); 0 or NULL: one line for everything, or none. */
    unsigned (*num_vectors)(struct vtr *vtr);
    /* VECTOR for configuration changes, or VTR_NO_VECTOR. -VBLK_ENOTSUP if the device refuses (4.1.5.1.2.2).
     */
    int (*set_config_vector)(struct vtr *vtr, uint16_t vector);
    /* The device ignores a reset: keeps it from memory by other means (bus mastering off). True if that
     * worked. */
    bool (*cut_off)(struct vtr *vtr);
};

#define VTR_INTERRUPT_QUEUES 1u
#define VTR_INTERRUPT_CONFIG 2u

struct vtr {
    const struct vtr_ops *ops;
};

#endif
