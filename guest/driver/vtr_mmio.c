/*
 * virtio over MMIO (virtio 1.4, 4.2): version 2, and legacy version 1 (4.2.4).
 *
 * What always holds: control registers are accessed by aligned 32-bit accesses, none that the version doesn't
 * have, read-only ones never written; a queue's registers are left alone while it is ready.
 */
#include "guest/driver/vtr_mmio.h"

#include "common/virtio.h"

enum {
    MAGIC_VALUE = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    DEVICE_FEATURES = 0x010,
    DEVICE_FEATURES_SEL = 0x014,
    DRIVER_FEATURES = 0x020,
    DRIVER_FEATURES_SEL = 0x024,
    GUEST_PAGE_SIZE = 0x028, /* legacy */
    QUEUE_SEL = 0x030,
    QUEUE_SIZE_MAX = 0x034,
    QUEUE_SIZE = 0x038,
    QUEUE_ALIGN = 0x03c, /* legacy */
    QUEUE_PFN = 0x040,   /* legacy */
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    INTERRUPT_STATUS = 0x060,
    INTERRUPT_ACK = 0x064,
    STATUS = 0x070,
    QUEUE_DESC = 0x080,
    QUEUE_DRIVER = 0x090,
    QUEUE_DEVICE = 0x0a0,
    QUEUE_RESET = 0x0c0,
    CONFIG_GENERATION = 0x0fc,
    CONFIG = 0x100
};

#define MAGIC             0x74726976u
#define LEGACY_PAGE_SHIFT 12
#define INTERRUPTS        (VTR_INTERRUPT_QUEUES | VTR_INTERRUPT_CONFIG)

static struct vtr_mmio *mmio_of(struct vtr *vtr)
{
    return (struct vtr_mmio *)(void *)vtr;
}

static uint32_t reg_read(struct vtr *vtr, unsigned at)
{
    struct vtr_mmio *mmio = mmio_of(vtr);

    return mmio->access.read(mmio->access.ctx, at, 4);
}

static void reg_write(struct vtr *vtr, unsigned at, uint32_t value)
{
    struct vtr_mmio *mmio = mmio_of(vtr);

    mmio->access.write(mmio->access.ctx, at, 4, value);
}

static uint8_t mmio_get_status(struct vtr *vtr)
{
    return (uint8_t)reg_read(vtr, STATUS);
}

static void mmio_set_status(struct vtr *vtr, uint8_t status)
{
    reg_write(vtr, STATUS, status);
}

static uint64_t mmio_get_features(struct vtr *vtr)
{
    uint64_t features;

    reg_write(vtr, DEVICE_FEATURES_SEL, 0);
    features = reg_read(vtr, DEVICE_FEATURES);
    if (mmio_of(vtr)->version == 1)
        return features;
    reg_write(vtr, DEVICE_FEATURES_SEL, 1);
    return features | (uint64_t)reg_read(vtr, DEVICE_FEATURES) << 32;
}

static void mmio_set_features(struct vtr *vtr, uint64_t features)
{
    reg_write(vtr, DRIVER_FEATURES_SEL, 0);
    reg_write(vtr, DRIVER_FEATURES, (uint32_t)features);
    if (mmio_of(vtr)->version == 1) {
        reg_write(vtr, GUEST_PAGE_SIZE, 1u << LEGACY_PAGE_SHIFT); /* before any queue (4.2.4) */
        return;
    }
    reg_write(vtr, DRIVER_FEATURES_SEL, 1);
    reg_write(vtr, DRIVER_FEATURES, (uint32_t)(features >> 32));
}

static uint32_t mmio_config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    struct vtr_mmio *mmio = mmio_of(vtr);

    return mmio->access.read(mmio->access.ctx, CONFIG + offset, width);
}

static void mmio_config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
    struct vtr_mmio *mmio = mmio_of(vtr);

    mmio->access.write(mmio->access.ctx, CONFIG + offset, width, value);
}

static uint32_t mmio_config_generation(struct vtr *vtr)
{
    return reg_read(vtr, CONFIG_GENERATION);
}

static unsigned mmio_config_bytes(struct vtr *vtr)
{
    return mmio_of(vtr)->bytes - CONFIG;
}

static unsigned mmio_num_queues(struct vtr *vtr)
{
    return 0;
}

static unsigned mmio_queue_size_max(struct vtr *vtr, unsigned index)
{
    reg_write(vtr, QUEUE_SEL, index);
    return reg_read(vtr, QUEUE_SIZE_MAX);
}

static void write_address(struct vtr *vtr, unsigned at, vblk_dma_addr addr)
{
    reg_write(vtr, at, (uint32_t)addr.value);
    reg_write(vtr, at + 4, (uint32_t)(addr.value >> 32));
}

static int mmio_queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    reg_write(vtr, QUEUE_SEL, queue->index);
    if (reg_read(vtr, QUEUE_READY) != 0)
        return -VBLK_EBUSY;
    if (reg_read(vtr, QUEUE_SIZE_MAX) < queue->size)
        return -VBLK_ENODEV;
    reg_write(vtr, QUEUE_SIZE, queue->size);
    write_address(vtr, QUEUE_DESC, queue->desc);
    write_address(vtr, QUEUE_DRIVER, queue->driver);
    write_address(vtr, QUEUE_DEVICE, queue->device);
    reg_write(vtr, QUEUE_READY, 1);
    return 0;
}

static int mmio_legacy_queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    if ((queue->desc.value >> LEGACY_PAGE_SHIFT) > UINT32_MAX)
        return -VBLK_ENODEV;
    reg_write(vtr, QUEUE_SEL, queue->index);
    if (reg_read(vtr, QUEUE_PFN) != 0)
        return -VBLK_EBUSY;
    if (reg_read(vtr, QUEUE_SIZE_MAX) < queue->size)
        return -VBLK_ENODEV;
    reg_write(vtr, QUEUE_SIZE, queue->size);
    reg_write(vtr, QUEUE_ALIGN, 1u << LEGACY_PAGE_SHIFT);
    reg_write(vtr, QUEUE_PFN, (uint32_t)(queue->desc.value >> LEGACY_PAGE_SHIFT));
    return 0;
}

static void mmio_queue_reset(struct vtr *vtr, unsigned index)
{
    reg_write(vtr, QUEUE_SEL, index);
    reg_write(vtr, QUEUE_RESET, 1);
}

static bool mmio_queue_is_reset(struct vtr *vtr, unsigned index)
{
    reg_write(vtr, QUEUE_SEL, index);
    return reg_read(vtr, QUEUE_RESET) == 0;
}

static void mmio_notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
    reg_write(vtr, QUEUE_NOTIFY, with_data ? index | (uint32_t)next << 16 : index);
}

static uint8_t mmio_interrupt_status(struct vtr *vtr)
{
    uint32_t status = reg_read(vtr, INTERRUPT_STATUS);

    if (status == UINT32_MAX)
        return 0;         /* gone */
    status &= INTERRUPTS; /* others are ignored, and never acknowledged (4.2.2.2) */
    if (status)
        reg_write(vtr, INTERRUPT_ACK, status);
    return (uint8_t)status;
}

static const struct vtr_ops mmio_ops = {
    .name = "mmio",
    .carries = VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA) | VIRTIO_BIT(VIRTIO_F_RING_RESET),
    .get_status = mmio_get_status,
    .set_status = mmio_set_status,
    .get_features = mmio_get_features,
    .set_features = mmio_set_features,
    .config_read = mmio_config_read,
    .config_write = mmio_config_write,
    .config_generation = mmio_config_generation,
    .config_bytes = mmio_config_bytes,
    .num_queues = mmio_num_queues,
    .queue_size_max = mmio_queue_size_max,
    .queue_enable = mmio_queue_enable,
    .queue_reset = mmio_queue_reset,
    .queue_is_reset = mmio_queue_is_reset,
    .notify = mmio_notify,
    .interrupt_status = mmio_interrupt_status,
};

static const struct vtr_ops mmio_legacy_ops = {
    .name = "mmio-legacy",
    .legacy = true,
    .get_status = mmio_get_status,
    .set_status = mmio_set_status,
    .get_features = mmio_get_features,
    .set_features = mmio_set_features,
    .config_read = mmio_config_read,
    .config_write = mmio_config_write,
    .config_generation = mmio_config_generation, /* not called */
    .config_bytes = mmio_config_bytes,
    .num_queues = mmio_num_queues,
    .queue_size_max = mmio_queue_size_max,
    .queue_enable = mmio_legacy_queue_enable,
    .notify = mmio_notify,
    .interrupt_status = mmio_interrupt_status,
};

int vtr_mmio_init(struct vtr_mmio *mmio, const struct vtr_mmio_access *access, unsigned bytes)
{
    mmio->access = *access;
    mmio->bytes = bytes;
    mmio->vtr.ops = &mmio_ops;
    if (bytes < CONFIG + 8 || reg_read(&mmio->vtr, MAGIC_VALUE) != MAGIC)
        return -VBLK_ENODEV;
    mmio->version = reg_read(&mmio->vtr, VERSION);
    if (mmio->version == 1 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
        mmio->vtr.ops = &mmio_legacy_ops;
    else if (mmio->version != 2)
        return -VBLK_ENODEV;
    return reg_read(&mmio->vtr, DEVICE_ID) == VIRTIO_ID_BLOCK ? 0 : -VBLK_ENODEV;
}
