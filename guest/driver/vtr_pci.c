/*
 * virtio over PCI, modern devices (virtio 1.4, 4.1.3, 4.1.4, 4.1.5).
 *
 * What always holds: a structure is used only where it lies inside its BAR; the walk over the capability list
 * ends whatever the list says; fields are accessed by their own width, 64-bit ones as two halves; nothing is
 * written to a capability, except through the access window (vtr_pci_window.c).
 */
#include "guest/driver/vtr_pci.h"

#include "common/virtio.h"
#include "guest/driver/vtr_pci_internal.h"

#define PCI_COMMAND            0x04u
#define PCI_COMMAND_BUS_MASTER 0x4u
#define PCI_STATUS             0x06u
#define PCI_STATUS_CAP_LIST    0x10u
#define PCI_CAP_LIST           0x34u
#define PCI_CAP_ID_VENDOR      0x09u
#define PCI_CAP_ID_MSIX        0x11u
#define PCI_CAPS_MAX           48u /* as many as fit between 0x40 and 0xff */

/* 4.1.4.3 */
enum {
    DEVICE_FEATURE_SELECT = 0,
    DEVICE_FEATURE = 4,
    DRIVER_FEATURE_SELECT = 8,
    DRIVER_FEATURE = 12,
    CONFIG_MSIX_VECTOR = 16,
    NUM_QUEUES = 18,
    DEVICE_STATUS = 20,
    CONFIG_GENERATION = 21,
    QUEUE_SELECT = 22,
    QUEUE_SIZE = 24,
    QUEUE_MSIX_VECTOR = 26,
    QUEUE_ENABLE = 28,
    QUEUE_NOTIFY_OFF = 30,
    QUEUE_DESC = 32,
    QUEUE_DRIVER = 40,
    QUEUE_DEVICE = 48,
    QUEUE_NOTIF_CONFIG_DATA = 56,
    QUEUE_RESET = 58
};
#define COMMON_BYTES_MIN        56u
#define COMMON_BYTES_NOTIF_DATA 58u
#define COMMON_BYTES_RESET      60u

static struct vtr_pci *pci_of(struct vtr *vtr)
{
    return (struct vtr_pci *)(void *)vtr;
}

static uint32_t region_read(struct vtr_pci *pci, const struct vtr_pci_region *region, unsigned at,
                            unsigned width)
{
    return pci->access->bar_read(pci->access->ctx, region->bar, region->offset + at, width);
}

static void region_write(struct vtr_pci *pci, const struct vtr_pci_region *region, unsigned at,
                         unsigned width, uint32_t value)
{
    pci->access->bar_write(pci->access->ctx, region->bar, region->offset + at, width, value);
}

static uint32_t common_read(struct vtr *vtr, unsigned at, unsigned width)
{
    return region_read(pci_of(vtr), &pci_of(vtr)->region[VTR_PCI_COMMON], at, width);
}

static void common_write(struct vtr *vtr, unsigned at, unsigned width, uint32_t value)
{
    region_write(pci_of(vtr), &pci_of(vtr)->region[VTR_PCI_COMMON], at, width, value);
}

static uint8_t pci_get_status(struct vtr *vtr)
{
    return (uint8_t)common_read(vtr, DEVICE_STATUS, 1);
}

static void pci_set_status(struct vtr *vtr, uint8_t status)
{
    common_write(vtr, DEVICE_STATUS, 1, status);
}

static uint64_t pci_get_features(struct vtr *vtr)
{
    struct vtr_pci *pci = pci_of(vtr);
    uint64_t features = 0;
    unsigned half;

    for (half = 2; half--;) {
        common_write(vtr, DEVICE_FEATURE_SELECT, 4, half);
        features = features << 32 | common_read(vtr, DEVICE_FEATURE, 4);
    }
    /* what the structure is too short for can't be used */
    if (pci->region[VTR_PCI_COMMON].bytes < COMMON_BYTES_RESET)
        features &= ~VIRTIO_BIT(VIRTIO_F_RING_RESET);
    if (pci->region[VTR_PCI_COMMON].bytes < COMMON_BYTES_NOTIF_DATA)
        features &= ~VIRTIO_BIT(VIRTIO_F_NOTIF_CONFIG_DATA);
    return features;
}

static void pci_set_features(struct vtr *vtr, uint64_t features)
{
    unsigned half;

    for (half = 0; half < 2; half++) {
        common_write(vtr, DRIVER_FEATURE_SELECT, 4, half);
        common_write(vtr, DRIVER_FEATURE, 4, (uint32_t)(features >> (32 * half)));
    }
    pci_of(vtr)->features = features;
}

static uint32_t pci_config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    return region_read(pci_of(vtr), &pci_of(vtr)->region[VTR_PCI_DEVICE], offset, width);
}

static void pci_config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
    region_write(pci_of(vtr), &pci_of(vtr)->region[VTR_PCI_DEVICE], offset, width, value);
}

static uint32_t pci_config_generation(struct vtr *vtr)
{
    return common_read(vtr, CONFIG_GENERATION, 1);
}

static unsigned pci_config_bytes(struct vtr *vtr)
{
    return pci_of(vtr)->region[VTR_PCI_DEVICE].bytes;
}

static unsigned pci_num_queues(struct vtr *vtr)
{
    unsigned n = common_read(vtr, NUM_QUEUES, 2);

    return n < VTR_PCI_QUEUES_MAX ? n : VTR_PCI_QUEUES_MAX;
}

static unsigned pci_queue_size_max(struct vtr *vtr, unsigned index)
{
    common_write(vtr, QUEUE_SELECT, 2, index);
    return common_read(vtr, QUEUE_SIZE, 2);
}

static void write_address(struct vtr *vtr, unsigned at, vblk_dma_addr addr)
{
    common_write(vtr, at, 4, (uint32_t)addr.value);
    common_write(vtr, at + 4, 4, (uint32_t)(addr.value >> 32));
}

/* Where the queue is notified, and by what (4.1.4.4, 4.1.5.2). The device chose both: checked once, here. */
static int place_notify(struct vtr *vtr, unsigned index)
{
    struct vtr_pci *pci = pci_of(vtr);
    uint64_t at = (uint64_t)common_read(vtr, QUEUE_NOTIFY_OFF, 2) * pci->notify_multiplier;
    unsigned width = pci->features & VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA) ? 4 : 2;

    if (at > pci->region[VTR_PCI_NOTIFY].bytes || width > pci->region[VTR_PCI_NOTIFY].bytes - at ||
        ((pci->region[VTR_PCI_NOTIFY].offset + at) & (width - 1)))
        return -VBLK_ENODEV;
    pci->queue[index].offset = pci->region[VTR_PCI_NOTIFY].offset + at;
    pci->queue[index].value = (uint16_t)index;
    if (pci->features & VIRTIO_BIT(VIRTIO_F_NOTIF_CONFIG_DATA))
        pci->queue[index].value = (uint16_t)common_read(vtr, QUEUE_NOTIF_CONFIG_DATA, 2);
    return 0;
}

static int pci_queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    struct vtr_pci *pci = pci_of(vtr);
    int result;

    if (queue->index >= VTR_PCI_QUEUES_MAX)
        return -VBLK_ENODEV;
    common_write(vtr, QUEUE_SELECT, 2, queue->index);
    if (common_read(vtr, QUEUE_SIZE, 2) == 0)
        return -VBLK_ENODEV;
    if (common_read(vtr, QUEUE_ENABLE, 2) != 0)
        return -VBLK_EBUSY;
    result = place_notify(vtr, queue->index);
    if (result < 0)
        return result;
    if (pci->vectors) {
        common_write(vtr, QUEUE_MSIX_VECTOR, 2, queue->vector);
        if (common_read(vtr, QUEUE_MSIX_VECTOR, 2) != queue->vector) /* 4.1.5.1.2.2 */
            return -VBLK_ENOTSUP;
    }
    common_write(vtr, QUEUE_SIZE, 2, queue->size);
    write_address(vtr, QUEUE_DESC, queue->desc);
    write_address(vtr, QUEUE_DRIVER, queue->driver);
    write_address(vtr, QUEUE_DEVICE, queue->device);
    common_write(vtr, QUEUE_ENABLE, 2, 1); /* after everything else of the queue (4.1.4.3.2) */
    return 0;
}

static void pci_queue_reset(struct vtr *vtr, unsigned index)
{
    common_write(vtr, QUEUE_SELECT, 2, index);
    common_write(vtr, QUEUE_RESET, 2, 1);
}

static bool pci_queue_is_reset(struct vtr *vtr, unsigned index)
{
    common_write(vtr, QUEUE_SELECT, 2, index);
    return common_read(vtr, QUEUE_RESET, 2) == 0;
}

static void pci_notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
    struct vtr_pci *pci = pci_of(vtr);
    const struct vtr_pci_access *access = pci->access;
    uint32_t value = pci->queue[index].value;

    if (with_data)
        access->bar_write(access->ctx, pci->region[VTR_PCI_NOTIFY].bar, pci->queue[index].offset, 4,
                          value | (uint32_t)next << 16);
    else
        access->bar_write(access->ctx, pci->region[VTR_PCI_NOTIFY].bar, pci->queue[index].offset, 2, value);
}

static uint8_t pci_interrupt_status(struct vtr *vtr)
{
    struct vtr_pci *pci = pci_of(vtr);
    uint32_t isr = region_read(pci, &pci->region[VTR_PCI_ISR], 0, 1); /* the reading clears it (4.1.4.5) */

    return isr == 0xff ? 0 : (uint8_t)(isr & (VTR_INTERRUPT_QUEUES | VTR_INTERRUPT_CONFIG));
}

static unsigned pci_num_vectors(struct vtr *vtr)
{
    return pci_of(vtr)->vectors;
}

static int pci_set_config_vector(struct vtr *vtr, uint16_t vector)
{
    common_write(vtr, CONFIG_MSIX_VECTOR, 2, vector);
    return common_read(vtr, CONFIG_MSIX_VECTOR, 2) == vector ? 0 : -VBLK_ENOTSUP;
}

static bool pci_cut_off(struct vtr *vtr)
{
    const struct vtr_pci_access *access = pci_of(vtr)->config_space;
    uint32_t command = access->config_read(access->ctx, PCI_COMMAND, 2);

    access->config_write(access->ctx, PCI_COMMAND, 2, command & ~PCI_COMMAND_BUS_MASTER);
    return (access->config_read(access->ctx, PCI_COMMAND, 2) & PCI_COMMAND_BUS_MASTER) == 0;
}

static const struct vtr_ops pci_ops = {
    .name = "pci",
    .carries = VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA) | VIRTIO_BIT(VIRTIO_F_NOTIF_CONFIG_DATA) |
               VIRTIO_BIT(VIRTIO_F_RING_RESET),
    .get_status = pci_get_status,
    .set_status = pci_set_status,
    .get_features = pci_get_features,
    .set_features = pci_set_features,
    .config_read = pci_config_read,
    .config_write = pci_config_write,
    .config_generation = pci_config_generation,
    .config_bytes = pci_config_bytes,
    .num_queues = pci_num_queues,
    .queue_size_max = pci_queue_size_max,
    .queue_enable = pci_queue_enable,
    .queue_reset = pci_queue_reset,
    .queue_is_reset = pci_queue_is_reset,
    .notify = pci_notify,
    .interrupt_status = pci_interrupt_status,
    .num_vectors = pci_num_vectors,
    .set_config_vector = pci_set_config_vector,
    .cut_off = pci_cut_off,
};

/* ---- discovery ---- */

static uint32_t cap_read(struct vtr_pci *pci, unsigned at, unsigned width)
{
    return pci->config_space->config_read(pci->config_space->ctx, at, width);
}

/* One virtio capability at AT: taken if it is the first usable one of its kind (4.1.4.1). */
static void take_capability(struct vtr_pci *pci, unsigned at)
{
    static const uint8_t bytes_min[] = {
        [VTR_PCI_COMMON] = COMMON_BYTES_MIN, [VTR_PCI_NOTIFY] = 2, [VTR_PCI_ISR] = 1, [VTR_PCI_DEVICE] = 8};
    unsigned cap_len = cap_read(pci, at + 2, 1), type = cap_read(pci, at + 3, 1),
             bar = cap_read(pci, at + 4, 1), known_len;
    uint32_t offset, bytes;
    uint64_t bar_bytes;
    struct vtr_pci_region *region;

    if (type == VTR_PCI_CFG && cap_len >= 20 && at + 20 <= 256 && !pci->pci_cfg_at)
        pci->pci_cfg_at = (uint8_t)at;
    if (type < VTR_PCI_COMMON || type > VTR_PCI_DEVICE || bar > 5) /* reserved: ignored */
        return;
    region = &pci->region[type];
    known_len = type == VTR_PCI_NOTIFY ? 20 : 16;
    if (region->bytes || cap_len < known_len || at + known_len > 256)
        return;
    offset = cap_read(pci, at + 8, 4);
    bytes = cap_read(pci, at + 12, 4);
    bar_bytes = pci->access->bar_bytes(pci->access->ctx, bar);
    if (offset >= bar_bytes || (type != VTR_PCI_ISR && type != VTR_PCI_NOTIFY && (offset & 3)))
        return;
    if (bytes > bar_bytes - offset) /* a length may be unexpectedly large: no more than the BAR has is used */
        bytes = (uint32_t)(bar_bytes - offset);
    if (bytes < bytes_min[type])
        return;
    if (type != VTR_PCI_NOTIFY && bytes > 4096)
        bytes = 4096;
    if (pci->access->bar_map && pci->access->bar_map(pci->access->ctx, bar, offset, bytes) < 0)
        return;
    region->bar = (uint8_t)bar;
    region->offset = offset;
    region->bytes = bytes;
    if (type == VTR_PCI_NOTIFY)
        pci->notify_multiplier = cap_read(pci, at + 16, 4);
}

/* Steps through the list; the count bounds it, should it loop. */
static void walk(struct vtr_pci *pci)
{
    unsigned at, n;

    if (!(cap_read(pci, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST))
        return;
    at = cap_read(pci, PCI_CAP_LIST, 1) & 0xfcu;
    for (n = 0; n < PCI_CAPS_MAX && at >= 0x40; n++) {
        unsigned id = cap_read(pci, at, 1);
        if (id == PCI_CAP_ID_VENDOR) {
            take_capability(pci, at);
        } else if (id == PCI_CAP_ID_MSIX) {
            unsigned table_size = (cap_read(pci, at + 2, 2) & 0x7ff) + 1;
            if (pci->vectors > table_size)
                pci->vectors = table_size;
        }
        at = cap_read(pci, at + 1, 1) & 0xfcu;
    }
}

int vtr_pci_discover(struct vtr_pci *pci, const struct vtr_pci_access *config_space,
                     const struct vtr_pci_access *access, unsigned msix_vectors)
{
    unsigned i;

    pci->vtr.ops = &pci_ops;
    pci->config_space = config_space;
    pci->access = access;
    pci->vectors = msix_vectors;
    pci->features = 0;
    pci->notify_multiplier = 0;
    pci->pci_cfg_at = 0;
    for (i = VTR_PCI_COMMON; i <= VTR_PCI_DEVICE; i++)
        pci->region[i].bytes = 0;
    if (!vtr_pci_is_blk((uint16_t)cap_read(pci, 0, 2), (uint16_t)cap_read(pci, 2, 2)))
        return -VBLK_ENODEV;
    walk(pci);
    if (!pci->region[VTR_PCI_COMMON].bytes && !pci->region[VTR_PCI_NOTIFY].bytes &&
        !pci->region[VTR_PCI_DEVICE].bytes)
        return -VBLK_ENODEV; /* 4.1.5.1.1: no virtio capabilities, a legacy device */
    for (i = VTR_PCI_COMMON; i <= VTR_PCI_DEVICE; i++)
        if (!pci->region[i].bytes)
            return -VBLK_ENOTSUP;
    return 0;
}

int vtr_pci_init(struct vtr_pci *pci, const struct vtr_pci_access *access, unsigned msix_vectors)
{
    return vtr_pci_discover(pci, access, access, msix_vectors);
}
