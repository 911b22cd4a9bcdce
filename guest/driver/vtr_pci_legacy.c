/*
 * virtio over PCI, the legacy interface (virtio 1.4, 4.1.4.10): registers in BAR 0, no FEATURES_OK, rings as
 * page numbers. Configuration and rings are in the guest's byte order there; only little-endian guests are
 * served.
 */
#include "guest/driver/vtr_pci.h"

#include "common/virtio.h"

enum {
    DEVICE_FEATURES = 0,
    DRIVER_FEATURES = 4,
    QUEUE_ADDRESS = 8,
    QUEUE_SIZE = 12,
    QUEUE_SELECT = 14,
    QUEUE_NOTIFY = 16,
    DEVICE_STATUS = 18,
    ISR_STATUS = 19,
    CONFIG_MSIX_VECTOR = 20, /* these two only with MSI-X on, and the configuration after them */
    QUEUE_MSIX_VECTOR = 22
};
#define CONFIG_AT(pci) ((pci)->vectors ? 24u : 20u)

#define PAGE_SHIFT             12
#define PCI_COMMAND            0x04u
#define PCI_COMMAND_BUS_MASTER 0x4u

static struct vtr_pci_legacy *legacy_of(struct vtr *vtr)
{
    return (struct vtr_pci_legacy *)(void *)vtr;
}

static uint32_t reg_read(struct vtr *vtr, unsigned at, unsigned width)
{
    const struct vtr_pci_access *access = legacy_of(vtr)->access;

    return access->bar_read(access->ctx, 0, at, width);
}

static void reg_write(struct vtr *vtr, unsigned at, unsigned width, uint32_t value)
{
    const struct vtr_pci_access *access = legacy_of(vtr)->access;

    access->bar_write(access->ctx, 0, at, width, value);
}

static uint8_t legacy_get_status(struct vtr *vtr)
{
    return (uint8_t)reg_read(vtr, DEVICE_STATUS, 1);
}

static void legacy_set_status(struct vtr *vtr, uint8_t status)
{
    reg_write(vtr, DEVICE_STATUS, 1, status);
}

static uint64_t legacy_get_features(struct vtr *vtr)
{
    return reg_read(vtr, DEVICE_FEATURES, 4);
}

static void legacy_set_features(struct vtr *vtr, uint64_t features)
{
    reg_write(vtr, DRIVER_FEATURES, 4, (uint32_t)features);
}

static uint32_t legacy_config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    return reg_read(vtr, CONFIG_AT(legacy_of(vtr)) + offset, width);
}

static void legacy_config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
    reg_write(vtr, CONFIG_AT(legacy_of(vtr)) + offset, width, value);
}

static uint32_t legacy_config_generation(struct vtr *vtr)
{
    return 0; /* there is none; the core reads twice (2.5.4) */
}

static unsigned legacy_config_bytes(struct vtr *vtr)
{
    const struct vtr_pci_access *access = legacy_of(vtr)->access;
    uint64_t bytes = access->bar_bytes(access->ctx, 0) - CONFIG_AT(legacy_of(vtr));

    return bytes < 256 ? (unsigned)bytes : 256;
}

static unsigned legacy_num_queues(struct vtr *vtr)
{
    return 0;
}

static unsigned legacy_queue_size_max(struct vtr *vtr, unsigned index)
{
    reg_write(vtr, QUEUE_SELECT, 2, index);
    return reg_read(vtr, QUEUE_SIZE, 2);
}

static int legacy_queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    reg_write(vtr, QUEUE_SELECT, 2, queue->index);
    if (reg_read(vtr, QUEUE_SIZE, 2) != queue->size || (queue->desc.value >> PAGE_SHIFT) > UINT32_MAX)
        return -VBLK_ENODEV;
    if (reg_read(vtr, QUEUE_ADDRESS, 4) != 0)
        return -VBLK_EBUSY;
    if (legacy_of(vtr)->vectors) {
        reg_write(vtr, QUEUE_MSIX_VECTOR, 2, queue->vector);
        if (reg_read(vtr, QUEUE_MSIX_VECTOR, 2) != queue->vector)
            return -VBLK_ENOTSUP;
    }
    reg_write(vtr, QUEUE_ADDRESS, 4, (uint32_t)(queue->desc.value >> PAGE_SHIFT));
    return 0;
}

static void legacy_notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
    reg_write(vtr, QUEUE_NOTIFY, 2, index);
}

static uint8_t legacy_interrupt_status(struct vtr *vtr)
{
    uint32_t isr = reg_read(vtr, ISR_STATUS, 1);

    return isr == 0xff ? 0 : (uint8_t)(isr & (VTR_INTERRUPT_QUEUES | VTR_INTERRUPT_CONFIG));
}

static unsigned legacy_num_vectors(struct vtr *vtr)
{
    return legacy_of(vtr)->vectors;
}

static int legacy_set_config_vector(struct vtr *vtr, uint16_t vector)
{
    reg_write(vtr, CONFIG_MSIX_VECTOR, 2, vector);
    return reg_read(vtr, CONFIG_MSIX_VECTOR, 2) == vector ? 0 : -VBLK_ENOTSUP;
}

static bool legacy_cut_off(struct vtr *vtr)
{
    const struct vtr_pci_access *access = legacy_of(vtr)->access;
    uint32_t command = access->config_read(access->ctx, PCI_COMMAND, 2);

    access->config_write(access->ctx, PCI_COMMAND, 2, command & ~PCI_COMMAND_BUS_MASTER);
    return (access->config_read(access->ctx, PCI_COMMAND, 2) & PCI_COMMAND_BUS_MASTER) == 0;
}

static const struct vtr_ops legacy_ops = {
    .name = "pci-legacy",
    .legacy = true,
    .fixed_queue_size = true,
    .get_status = legacy_get_status,
    .set_status = legacy_set_status,
    .get_features = legacy_get_features,
    .set_features = legacy_set_features,
    .config_read = legacy_config_read,
    .config_write = legacy_config_write,
    .config_generation = legacy_config_generation,
    .config_bytes = legacy_config_bytes,
    .num_queues = legacy_num_queues,
    .queue_size_max = legacy_queue_size_max,
    .queue_enable = legacy_queue_enable,
    .notify = legacy_notify,
    .interrupt_status = legacy_interrupt_status,
    .num_vectors = legacy_num_vectors,
    .set_config_vector = legacy_set_config_vector,
    .cut_off = legacy_cut_off,
};

int vtr_pci_legacy_init(struct vtr_pci_legacy *pci, const struct vtr_pci_access *access,
                        unsigned msix_vectors)
{
    pci->vtr.ops = &legacy_ops;
    pci->access = access;
    pci->vectors = msix_vectors;
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
        return -VBLK_ENOTSUP;
    if (access->config_read(access->ctx, 0, 2) != VTR_PCI_VENDOR ||
        access->config_read(access->ctx, 2, 2) != VTR_PCI_DEVICE_TRANSITIONAL ||
        access->bar_bytes(access->ctx, 0) < CONFIG_AT(pci) + 8u)
        return -VBLK_ENODEV;
    if (access->bar_map && access->bar_map(access->ctx, 0, 0, access->bar_bytes(access->ctx, 0)) < 0)
        return -VBLK_ENODEV;
    return 0;
}
