/* A PCI function before the fake device: configuration space, modern structures, the access window, legacy
 * registers. */
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_fake_registers.h"

void pci_put(struct pci *pci, unsigned at, unsigned width, uint32_t value)
{
    for (unsigned i = 0; i < width; i++)
        pci->config[at + i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get(const uint8_t *from, unsigned width)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < width; i++)
        value |= (uint32_t)from[i] << (8 * i);
    return value;
}

unsigned pci_add_cap(struct pci *pci, uint8_t id, unsigned len)
{
    unsigned at = pci->next_cap;

    *pci->last_link = (uint8_t)at;
    pci->config[at] = id;
    pci->last_link = &pci->config[at + 1];
    pci->next_cap = (at + len + 3) & ~3u;
    return at;
}

unsigned pci_add_virtio_cap(struct pci *pci, uint8_t type, uint8_t bar, uint32_t offset, uint32_t length)
{
    unsigned len = type == 2 || type == 5 ? 20 : 16, at = pci_add_cap(pci, 9, len);

    pci_put(pci, at + 2, 1, len);
    pci_put(pci, at + 3, 1, type);
    pci_put(pci, at + 4, 1, bar);
    pci_put(pci, at + 8, 4, offset);
    pci_put(pci, at + 12, 4, length);
    if (type == 2)
        pci_put(pci, at + 16, 4, pci->multiplier);
    if (type == 5)
        pci->window_at = at;
    return at;
}

static uint32_t bar_read(void *ctx, unsigned bar, uint64_t offset, unsigned width);
static void bar_write(void *ctx, unsigned bar, uint64_t offset, unsigned width, uint32_t value);

/* Is [OFFSET, OFFSET + WIDTH) of BAR inside a virtio structure? (checklist 210) */
static bool in_structure(struct pci *pci, unsigned bar, uint64_t offset, unsigned width)
{
    for (unsigned at = pci->config[0x34]; at; at = pci->config[at + 1])
        if (pci->config[at] == 9 && pci->config[at + 3] != 5 && pci->config[at + 4] == bar &&
            offset >= get(&pci->config[at + 8], 4) &&
            offset + width <= (uint64_t)get(&pci->config[at + 8], 4) + get(&pci->config[at + 12], 4))
            return true;
    return false;
}

static uint32_t config_read(void *ctx, unsigned offset, unsigned width)
{
    struct pci *pci = ctx;

    if (offset % width || offset + width > 256) {
        fake_fault(pci->fake, "checklist 173: configuration read of %u at %#x", width, offset);
        return UINT32_MAX;
    }
    if (pci->window_at && offset == pci->window_at + 16) {
        unsigned bar = pci->config[pci->window_at + 4], len = get(&pci->config[pci->window_at + 12], 4);
        uint32_t to = get(&pci->config[pci->window_at + 8], 4);
        if (len != width || to % len || !in_structure(pci, bar, to, len))
            fake_fault(pci->fake, "checklist 209/210: window of %u at bar %u, %#x", len, bar, to);
        return bar_read(pci, bar, to, width);
    }
    return get(&pci->config[offset], width);
}

static void config_write(void *ctx, unsigned offset, unsigned width, uint32_t value)
{
    struct pci *pci = ctx;

    if (pci->window_at && offset >= pci->window_at + 4 && offset < pci->window_at + 16) {
        pci_put(pci, offset, width, value);
    } else if (pci->window_at && offset == pci->window_at + 16) {
        unsigned bar = pci->config[pci->window_at + 4], len = get(&pci->config[pci->window_at + 12], 4);
        uint32_t to = get(&pci->config[pci->window_at + 8], 4);
        if (len != width || to % len || !in_structure(pci, bar, to, len))
            fake_fault(pci->fake, "checklist 209/210: window of %u at bar %u, %#x", len, bar, to);
        bar_write(pci, bar, to, width, value);
    } else if (offset == 4) {
        pci_put(pci, 4, width, value);
    } else {
        fake_fault(pci->fake, "checklist 172: capability written at %#x", offset);
    }
}

static uint64_t bar_bytes(void *ctx, unsigned bar)
{
    struct pci *pci = ctx;

    if (bar > 5) {
        fake_fault(pci->fake, "checklist 170: bar %u", bar);
        return 0;
    }
    return pci->bar_bytes[bar];
}

static int bar_map(void *ctx, unsigned bar, uint64_t offset, uint64_t len)
{
    struct pci *pci = ctx;

    if (len == 0 || offset > pci->bar_bytes[bar] || len > pci->bar_bytes[bar] - offset)
        fake_fault(pci->fake, "checklist 171: map of %llu at %llu", (unsigned long long)len,
                   (unsigned long long)offset);
    return 0;
}

/* 4.1.4.3: offset, width, may be written */
static const struct {
    uint8_t offset, width;
    bool writable;
} common_fields[] = {
    {0, 4, true},   {4, 4, false}, {8, 4, true},  {12, 4, true}, {16, 2, true}, {18, 2, false}, {20, 1, true},
    {21, 1, false}, {22, 2, true}, {24, 2, true}, {26, 2, true}, {28, 2, true}, {30, 2, false}, {32, 4, true},
    {36, 4, true},  {40, 4, true}, {44, 4, true}, {48, 4, true}, {52, 4, true}, {56, 2, false}, {58, 2, true},
};

static bool is_common_field(unsigned at, unsigned width, bool write)
{
    for (unsigned i = 0; i < sizeof(common_fields) / sizeof(common_fields[0]); i++)
        if (common_fields[i].offset == at)
            return common_fields[i].width == width && (!write || common_fields[i].writable);
    return false;
}

static uint32_t common_read(struct pci *pci, unsigned at, unsigned width)
{
    struct vtr *vtr = &pci->fake->vtr;
    unsigned q = pci->queue_select;
    bool there = q < pci->fake->num_queues;

    if (!is_common_field(at, width, false))
        fake_fault(pci->fake, "checklist 165: common configuration read of %u at %u", width, at);
    switch (at) {
    case 4:
        return pci->device_select > 1 ? 0
                                      : (uint32_t)(pci->real.get_features(vtr) >> (32 * pci->device_select));
    case 16:
        return pci->config_vector;
    case 18:
        return pci->fake->num_queues;
    case 20:
        return pci->real.get_status(vtr);
    case 21:
        return (uint8_t)pci->real.config_generation(vtr);
    case 24:
        return pci->real.queue_size_max(vtr, q);
    case 26:
        return there ? pci->queue[q].vector : 0xffff;
    case 28:
        return there ? pci->fake->queue[q].enabled : 0;
    case 30:
        return there ? q * pci->notify_off_unit : 0;
    case 56:
        return pci->notif_data + q;
    case 58:
        if (pci->queue[q].reset && pci->real.queue_is_reset(vtr, q))
            pci->queue[q].reset = 0;
        return pci->queue[q].reset;
    default:
        fake_fault(pci->fake, "common configuration read at %u", at);
        return 0;
    }
}

static void set_half(uint64_t *whole, bool high, uint32_t value)
{
    *whole = high ? (*whole & 0xffffffff) | (uint64_t)value << 32 : (*whole & ~0xffffffffull) | value;
}

static void common_write(struct pci *pci, unsigned at, unsigned width, uint32_t value)
{
    struct vtr *vtr = &pci->fake->vtr;
    unsigned q = pci->queue_select < FAKE_QUEUES ? pci->queue_select : 0;

    if (!is_common_field(at, width, true))
        fake_fault(pci->fake, "checklist 165/187: common configuration write of %u at %u", width, at);
    if (at >= 24 && at < 56 && pci->fake->queue[q].enabled)
        fake_fault(pci->fake, "checklist 189: queue field %u written after queue_enable", at);
    switch (at) {
    case 0:
        pci->device_select = value;
        break;
    case 8:
        pci->driver_select = value;
        break;
    case 12:
        set_half(&pci->driver_features, pci->driver_select == 1, value);
        if (pci->driver_select == 1)
            pci->real.set_features(vtr, pci->driver_features);
        break;
    case 16:
        if (value != 0xffff && value >= pci->fake->vectors)
            fake_fault(pci->fake, "checklist 220: configuration vector %u", value);
        pci->config_vector = pci->refuse_vectors ? 0xffff : (uint16_t)value;
        break;
    case 20:
        if (value == 0)
            memset(pci->queue, 0, sizeof(pci->queue));
        pci->real.set_status(vtr, (uint8_t)value);
        break;
    case 22:
        pci->queue_select = (uint16_t)value;
        break;
    case 24:
        pci->queue[q].size = (uint16_t)value;
        break;
    case 26:
        if (value != 0xffff && value >= pci->fake->vectors)
            fake_fault(pci->fake, "checklist 220: vector %u", value);
        pci->queue[q].vector = pci->refuse_vectors ? 0xffff : (uint16_t)value;
        break;
    case 28: {
        struct vtr_queue queue = {.index = q,
                                  .size = pci->queue[q].size,
                                  .desc = {pci->queue[q].desc},
                                  .driver = {pci->queue[q].driver},
                                  .device = {pci->queue[q].device},
                                  .vector = pci->fake->vectors ? pci->queue[q].vector : VTR_NO_VECTOR};
        if (value != 1)
            fake_fault(pci->fake, "checklist 191: queue_enable = %u", value);
        pci->real.queue_enable(vtr, &queue);
        break;
    }
    case 32:
    case 36:
        set_half(&pci->queue[q].desc, at == 36, value);
        break;
    case 40:
    case 44:
        set_half(&pci->queue[q].driver, at == 44, value);
        break;
    case 48:
    case 52:
        set_half(&pci->queue[q].device, at == 52, value);
        break;
    case 58:
        pci->queue[q].reset = 1;
        pci->real.queue_reset(vtr, q);
        break;
    }
}

static void kicked(struct pci *pci, uint64_t at, unsigned width, uint32_t value)
{
    bool with_data = fake_has(pci->fake, VIRTIO_F_NOTIFICATION_DATA);
    unsigned unit = pci->notify_off_unit * pci->multiplier, q = unit ? (unsigned)(at / unit) : value & 0xffff;

    pci->kicks++;
    pci->kick_width = width;
    pci->last_kick = value;
    if (width != (with_data ? 4 : 2))
        fake_fault(pci->fake, "checklist 133/134: kick of %u bytes", width);
    if (fake_has(pci->fake, VIRTIO_F_NOTIF_CONFIG_DATA)) {
        if ((value & 0xffff) != pci->notif_data + q)
            fake_fault(pci->fake, "checklist 136: kick with %#x", value);
    } else if ((value & 0xffff) != q) {
        fake_fault(pci->fake, "checklist 135: kick with %#x for queue %u", value, q);
    }
    pci->real.notify(&pci->fake->vtr, q, (uint16_t)(value >> 16), with_data);
}

static uint32_t legacy_read(struct pci *pci, unsigned at, unsigned width);
static void legacy_write(struct pci *pci, unsigned at, unsigned width, uint32_t value);

static uint32_t bar_read(void *ctx, unsigned bar, uint64_t offset, unsigned width)
{
    struct pci *pci = ctx;

    if (bar == BAR_LEGACY)
        return legacy_read(pci, (unsigned)offset, width);
    if (offset < AT_ISR)
        return common_read(pci, (unsigned)offset, width);
    if (offset == AT_ISR && width == 1) {
        pci->isr_reads++;
        return pci->real.interrupt_status(&pci->fake->vtr);
    }
    if (offset >= AT_DEVICE && offset < AT_NOTIFY)
        return pci->real.config_read(&pci->fake->vtr, (unsigned)(offset - AT_DEVICE), width);
    fake_fault(pci->fake, "read of %u at %#llx", width, (unsigned long long)offset);
    return 0;
}

static void bar_write(void *ctx, unsigned bar, uint64_t offset, unsigned width, uint32_t value)
{
    struct pci *pci = ctx;

    if (bar == BAR_LEGACY)
        legacy_write(pci, (unsigned)offset, width, value);
    else if (offset < AT_ISR)
        common_write(pci, (unsigned)offset, width, value);
    else if (offset >= AT_DEVICE && offset < AT_NOTIFY)
        pci->real.config_write(&pci->fake->vtr, (unsigned)(offset - AT_DEVICE), width, value);
    else if (offset >= AT_NOTIFY)
        kicked(pci, offset - AT_NOTIFY, width, value);
    else
        fake_fault(pci->fake, "write of %u at %#llx", width, (unsigned long long)offset);
}

/* 4.1.4.10 */
static uint32_t legacy_read(struct pci *pci, unsigned at, unsigned width)
{
    struct vtr *vtr = &pci->fake->vtr;
    unsigned q = pci->queue_select, config_at = pci->msix ? 24 : 20;

    if (at >= config_at)
        return pci->real.config_read(vtr, at - config_at, width);
    switch (at << 4 | width) {
    case 0 << 4 | 4:
        return (uint32_t)pci->real.get_features(vtr);
    case 8 << 4 | 4:
        return pci->queue[q].pfn;
    case 12 << 4 | 2:
        return pci->real.queue_size_max(vtr, q);
    case 18 << 4 | 1:
        return pci->real.get_status(vtr);
    case 19 << 4 | 1:
        return pci->real.interrupt_status(vtr);
    case 20 << 4 | 2:
        return pci->config_vector;
    case 22 << 4 | 2:
        return pci->queue[q].vector;
    default:
        fake_fault(pci->fake, "checklist 211: legacy read of %u at %u", width, at);
        return 0;
    }
}

static void legacy_write(struct pci *pci, unsigned at, unsigned width, uint32_t value)
{
    struct vtr *vtr = &pci->fake->vtr;
    unsigned q = pci->queue_select, config_at = pci->msix ? 24 : 20;

    if (at >= config_at) {
        pci->real.config_write(vtr, at - config_at, width, value);
        return;
    }
    switch (at << 4 | width) {
    case 4 << 4 | 4:
        pci->real.set_features(vtr, value);
        break;
    case 8 << 4 | 4: {
        unsigned n = pci->fake->queue[q].size_max;
        struct vtr_queue queue = {.index = q, .size = n, .vector = VTR_NO_VECTOR};
        queue.desc.value = (uint64_t)value << 12;
        queue.driver.value = queue.desc.value + 16u * n;
        queue.device.value = (queue.driver.value + 6 + 2 * n + 4095) & ~4095ull;
        pci->queue[q].pfn = value;
        pci->real.queue_enable(vtr, &queue);
        break;
    }
    case 14 << 4 | 2:
        pci->queue_select = (uint16_t)value;
        break;
    case 16 << 4 | 2:
        pci->kicks++;
        pci->real.notify(vtr, value, 0, false);
        break;
    case 18 << 4 | 1:
        if (value == 0)
            memset(pci->queue, 0, sizeof(pci->queue));
        pci->real.set_status(vtr, (uint8_t)value);
        break;
    case 20 << 4 | 2:
        pci->config_vector = (uint16_t)value;
        break;
    case 22 << 4 | 2:
        pci->queue[q].vector = (uint16_t)value;
        break;
    default:
        fake_fault(pci->fake, "checklist 211: legacy write of %u at %u", width, at);
    }
}

struct pci *pci_new(struct fake *fake, uint16_t device_id)
{
    struct pci *pci = calloc(1, sizeof(*pci));

    assert_non_null(pci);
    pci->fake = fake;
    pci->real = fake->ops;
    pci->bar_bytes[BAR_LEGACY] = 128;
    pci->bar_bytes[BAR_MEM] = 0x4000;
    pci->multiplier = 4;
    pci->notify_off_unit = 1;
    pci->notif_data = 0x1230;
    pci->next_cap = 0x40;
    pci->last_link = &pci->config[0x34];
    pci_put(pci, 0, 2, VTR_PCI_VENDOR);
    pci_put(pci, 2, 2, device_id);
    pci_put(pci, 4, 2, 6);
    pci_put(pci, 6, 2, 0x10);
    pci->access = (struct vtr_pci_access){.ctx = pci,
                                          .config_read = config_read,
                                          .config_write = config_write,
                                          .bar_bytes = bar_bytes,
                                          .bar_map = bar_map,
                                          .bar_read = bar_read,
                                          .bar_write = bar_write};
    return pci;
}

void pci_add_all_caps(struct pci *pci)
{
    pci_add_virtio_cap(pci, 1, BAR_MEM, AT_COMMON, 60);
    pci_add_virtio_cap(pci, 2, BAR_MEM, AT_NOTIFY, 0x1000);
    pci_add_virtio_cap(pci, 3, BAR_MEM, AT_ISR, 1);
    pci_add_virtio_cap(pci, 4, BAR_MEM, AT_DEVICE, 96);
    pci_add_virtio_cap(pci, 5, 0, 0, 0);
}
