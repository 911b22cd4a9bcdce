/*
 * virtio over PCI (virtio 1.4, 4.1): modern devices, transitional ones through their legacy registers, and
 * modern ones reached through nothing but configuration space (4.1.4.9).
 *
 * The platform finds the function (by walking its buses), gives it addresses if firmware did not, turns on
 * memory or I/O decoding and bus mastering, and hands over the accessors below. It also owns the MSI-X table:
 * it programs N entries, unmasks them, sets the enable bit and says N; the driver maps queues to them (vector
 * 0 is the configuration's, 1.. the queues'; with one vector they share it). N = 0: INTx or polling.
 *
 * Typical:   vtr_pci_init(&pci, &access, vectors)
 *            or, if that says -VBLK_ENODEV,  vtr_pci_legacy_init(&legacy, &access, vectors)
 *            then vblk_start(..., &pci.vtr, ...)
 */
#ifndef RINGSIDE_VTR_PCI_H
#define RINGSIDE_VTR_PCI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/driver/vblk_transport.h"

#define VTR_PCI_VENDOR              0x1af4u
#define VTR_PCI_DEVICE_BLK          0x1042u
#define VTR_PCI_DEVICE_TRANSITIONAL 0x1001u

/* True for the identifiers that a virtio block driver must take (4.1.2.2), whatever the revision. */
static inline bool vtr_pci_is_blk(uint16_t vendor, uint16_t device)
{
    return vendor == VTR_PCI_VENDOR &&
           (device == VTR_PCI_DEVICE_BLK || device == VTR_PCI_DEVICE_TRANSITIONAL);
}

/* How one PCI function is reached. WIDTH is 1, 2 or 4 bytes; OFFSET is a multiple of it. Values are in the
 * CPU's order. A function that is gone reads as all ones. The structure and CTX must outlive the disk. */
struct vtr_pci_access {
    void *ctx;

    uint32_t (*config_read)(void *ctx, unsigned offset, unsigned width);
    void (*config_write)(void *ctx, unsigned offset, unsigned width, uint32_t value);

    /* Size of BAR 0..5, found once by the platform; 0 if there is none (or it is the upper half of another).
     */
    uint64_t (*bar_bytes)(void *ctx, unsigned bar);

    /* Makes bytes [OFFSET, OFFSET + LEN) of the BAR usable by bar_read and bar_write: uncached, in order.
     * Always inside bar_bytes. 0 or a negative error. NULL if they always are. Called by the init functions
     * only. */
    int (*bar_map)(void *ctx, unsigned bar, uint64_t offset, uint64_t len);

    /* Register accesses, memory or port I/O as the BAR is: exactly one access of that width. */
    uint32_t (*bar_read)(void *ctx, unsigned bar, uint64_t offset, unsigned width);
    void (*bar_write)(void *ctx, unsigned bar, uint64_t offset, unsigned width, uint32_t value);
};

/* The structures, by cfg_type (4.1.4) */
enum { VTR_PCI_COMMON = 1, VTR_PCI_NOTIFY, VTR_PCI_ISR, VTR_PCI_DEVICE, VTR_PCI_CFG };

/* Where one virtio structure lies. bytes = 0: absent. */
struct vtr_pci_region {
    uint8_t bar;
    uint64_t offset;
    uint32_t bytes;
};

#define VTR_PCI_QUEUES_MAX 64u /* notify positions remembered; a device may have more, we then use these */

struct vtr_pci {
    struct vtr vtr; /* first */
    const struct vtr_pci_access *access;
    struct vtr_pci_access window; /* vtr_pci_window_init: accesses go through configuration space */
    unsigned vectors;
    uint64_t features;
    uint32_t notify_multiplier;
    struct vtr_pci_region region[VTR_PCI_CFG]; /* by their numbers */
    uint8_t pci_cfg_at; /* configuration-space offset of the access-window capability, or 0 */
    const struct vtr_pci_access *config_space;
    struct {
        uint64_t offset; /* of the notify register, inside the notify BAR */
        uint16_t value;  /* what to write: the queue's index, or its queue_notif_config_data */
    } queue[VTR_PCI_QUEUES_MAX];
};

/* Walks the capability list of a modern (or transitional) function and takes the first usable structure of
 * each kind (4.1.4). Errors: -VBLK_ENODEV (not a virtio block device, or one without virtio capabilities:
 * legacy), -VBLK_ENOTSUP (a structure is missing or lies outside its BAR). */
int vtr_pci_init(struct vtr_pci *pci, const struct vtr_pci_access *access, unsigned msix_vectors);

/* The same device with all register accesses through the VIRTIO_PCI_CAP_PCI_CFG capability (4.1.4.9): for
 * firmware that has configuration cycles but no mapped BARs. bar_read, bar_write and bar_map are not used. */
int vtr_pci_window_init(struct vtr_pci *pci, const struct vtr_pci_access *access, unsigned msix_vectors);

/* The legacy interface of a transitional device, in BAR 0 (4.1.4.10). Little-endian CPUs only. */
struct vtr_pci_legacy {
    struct vtr vtr; /* first */
    const struct vtr_pci_access *access;
    unsigned vectors;
};

int vtr_pci_legacy_init(struct vtr_pci_legacy *pci, const struct vtr_pci_access *access,
                        unsigned msix_vectors);

#endif
