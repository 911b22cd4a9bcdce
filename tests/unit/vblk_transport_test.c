/*
 * PCI (modern, access window, legacy) and MMIO (versions 2 and 1): each over a register file in this process
 * that stands before the fake device and judges every access by 4.1 and 4.2: width, order, which registers
 * exist and which may be written. One test body runs over all of them; then come the devices that describe
 * themselves badly.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "guest/driver/vtr_mmio.h"
#include "guest/driver/vtr_pci.h"
#include "tests/unit/vblk_fake.h"

#define F(name) VIRTIO_BIT(VIRTIO_##name)

/* ---- a PCI function before the fake ---- */

enum { BAR_LEGACY = 0, BAR_MEM = 4, BAR_IO = 2 };
enum { AT_COMMON = 0x0, AT_ISR = 0x1000, AT_DEVICE = 0x2000, AT_NOTIFY = 0x3000 };

struct pci {
    struct fake *fake;
    struct vtr_ops real; /* the fake's */
    uint8_t config[256];
    uint64_t bar_bytes[6];
    unsigned next_cap; /* where the next capability goes */
    uint8_t *last_link;
    uint32_t device_select, driver_select;
    uint64_t driver_features;
    uint16_t queue_select, config_vector;
    unsigned notify_off_unit, multiplier;
    uint16_t notif_data; /* queue_notif_config_data is this plus the queue's index */
    bool refuse_vectors;
    bool msix; /* legacy: vector registers are there */
    unsigned window_at;
    unsigned isr_reads, kicks, kick_width;
    uint32_t last_kick;
    struct {
        uint16_t size, vector, enable, reset;
        uint64_t desc, driver, device;
        uint32_t pfn;
    } queue[FAKE_QUEUES];
    struct vtr_pci_access access;
    struct vtr_pci modern;
    struct vtr_pci_legacy legacy;
};

static void put(struct pci *pci, unsigned at, unsigned width, uint32_t value)
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

static unsigned add_cap(struct pci *pci, uint8_t id, unsigned len)
{
    unsigned at = pci->next_cap;

    *pci->last_link = (uint8_t)at;
    pci->config[at] = id;
    pci->last_link = &pci->config[at + 1];
    pci->next_cap = (at + len + 3) & ~3u;
    return at;
}

static unsigned add_virtio_cap(struct pci *pci, uint8_t type, uint8_t bar, uint32_t offset, uint32_t length)
{
    unsigned len = type == 2 || type == 5 ? 20 : 16, at = add_cap(pci, 9, len);

    put(pci, at + 2, 1, len);
    put(pci, at + 3, 1, type);
    put(pci, at + 4, 1, bar);
    put(pci, at + 8, 4, offset);
    put(pci, at + 12, 4, length);
    if (type == 2)
        put(pci, at + 16, 4, pci->multiplier);
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
        put(pci, offset, width, value);
    } else if (pci->window_at && offset == pci->window_at + 16) {
        unsigned bar = pci->config[pci->window_at + 4], len = get(&pci->config[pci->window_at + 12], 4);
        uint32_t to = get(&pci->config[pci->window_at + 8], 4);
        if (len != width || to % len || !in_structure(pci, bar, to, len))
            fake_fault(pci->fake, "checklist 209/210: window of %u at bar %u, %#x", len, bar, to);
        bar_write(pci, bar, to, width, value);
    } else if (offset == 4) {
        put(pci, 4, width, value);
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

static struct pci *pci_new(struct fake *fake, uint16_t device_id)
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
    put(pci, 0, 2, VTR_PCI_VENDOR);
    put(pci, 2, 2, device_id);
    put(pci, 4, 2, 6);
    put(pci, 6, 2, 0x10);
    pci->access = (struct vtr_pci_access){.ctx = pci,
                                          .config_read = config_read,
                                          .config_write = config_write,
                                          .bar_bytes = bar_bytes,
                                          .bar_map = bar_map,
                                          .bar_read = bar_read,
                                          .bar_write = bar_write};
    return pci;
}

static void add_all_caps(struct pci *pci)
{
    add_virtio_cap(pci, 1, BAR_MEM, AT_COMMON, 60);
    add_virtio_cap(pci, 2, BAR_MEM, AT_NOTIFY, 0x1000);
    add_virtio_cap(pci, 3, BAR_MEM, AT_ISR, 1);
    add_virtio_cap(pci, 4, BAR_MEM, AT_DEVICE, 96);
    add_virtio_cap(pci, 5, 0, 0, 0);
}

/* ---- an MMIO window before the fake ---- */

struct mmio {
    struct fake *fake;
    struct vtr_ops real;
    uint32_t version, magic, device_id;
    uint32_t device_select, driver_select, queue_select, isr;
    bool device_selected, driver_selected;
    uint64_t driver_features;
    unsigned accesses;
    bool page_size_set, stuck_ready;
    struct {
        uint32_t size, align, pfn;
        uint64_t desc, driver, device;
        bool ready, reset;
    } queue[FAKE_QUEUES];
    struct vtr_mmio_access access;
    struct vtr_mmio transport;
};

static uint32_t mmio_read(void *ctx, unsigned at, unsigned width)
{
    struct mmio *mmio = ctx;
    struct vtr *vtr = &mmio->fake->vtr;
    unsigned q = mmio->queue_select;
    bool legacy = mmio->version == 1;
    uint32_t isr;

    mmio->accesses++;
    if (at >= 0x100)
        return mmio->real.config_read(vtr, at - 0x100, width);
    if (width != 4 || at % 4)
        fake_fault(mmio->fake, "checklist 233: read of %u at %#x", width, at);
    switch (at) {
    case 0x000:
        return mmio->magic;
    case 0x004:
        return mmio->version;
    case 0x008:
        return mmio->device_id;
    case 0x010:
        if (!mmio->device_selected)
            fake_fault(mmio->fake, "checklist 237: features read before they were selected");
        mmio->device_selected = false;
        return (uint32_t)(mmio->real.get_features(vtr) >> (32 * mmio->device_select));
    case 0x034:
        return mmio->real.queue_size_max(vtr, q);
    case 0x040:
        if (legacy)
            return mmio->queue[q].pfn;
        break;
    case 0x044:
        if (!legacy)
            return mmio->queue[q].ready || mmio->stuck_ready;
        break;
    case 0x060:
        isr = mmio->isr | mmio->fake->isr;
        return isr;
    case 0x070:
        return mmio->real.get_status(vtr);
    case 0x0c0:
        if (!legacy && mmio->queue[q].reset && mmio->real.queue_is_reset(vtr, q)) {
            mmio->queue[q].reset = false;
            mmio->queue[q].ready = false;
        }
        return mmio->queue[q].reset;
    case 0x0fc:
        if (!legacy)
            return mmio->real.config_generation(vtr);
        break;
    }
    fake_fault(mmio->fake, "checklist 232/245: read at %#x of version %u", at, mmio->version);
    return 0;
}

static void mmio_write(void *ctx, unsigned at, unsigned width, uint32_t value)
{
    struct mmio *mmio = ctx;
    struct vtr *vtr = &mmio->fake->vtr;
    unsigned q = mmio->queue_select < FAKE_QUEUES ? mmio->queue_select : 0;
    bool legacy = mmio->version == 1;

    mmio->accesses++;
    if (at >= 0x100) {
        mmio->real.config_write(vtr, at - 0x100, width, value);
        return;
    }
    if (width != 4 || at % 4)
        fake_fault(mmio->fake, "checklist 233: write of %u at %#x", width, at);
    if (((at >= 0x038 && at < 0x044) || (at >= 0x080 && at < 0x0c0)) && mmio->queue[q].ready)
        fake_fault(mmio->fake, "checklist 239: queue register %#x written while ready", at);
    if (legacy && ((at >= 0x080 && at < 0x100) || at == 0x044))
        fake_fault(mmio->fake, "checklist 232: write at %#x of version 1", at);
    if (!legacy && (at == 0x028 || at == 0x03c || at == 0x040))
        fake_fault(mmio->fake, "checklist 232: write at %#x of version 2", at);
    switch (at) {
    case 0x014:
        mmio->device_select = value;
        mmio->device_selected = true;
        return;
    case 0x020:
        if (!mmio->driver_selected)
            fake_fault(mmio->fake, "checklist 237: features written before they were selected");
        mmio->driver_selected = false;
        set_half(&mmio->driver_features, mmio->driver_select == 1, value);
        if (mmio->driver_select == 1 || legacy)
            mmio->real.set_features(vtr, mmio->driver_features);
        return;
    case 0x024:
        mmio->driver_select = value;
        mmio->driver_selected = true;
        return;
    case 0x028:
        mmio->page_size_set = value == 4096;
        return;
    case 0x030:
        mmio->queue_select = value;
        return;
    case 0x038:
        mmio->queue[q].size = value;
        return;
    case 0x03c:
        mmio->queue[q].align = value;
        return;
    case 0x040: {
        unsigned n = mmio->queue[q].size;
        struct vtr_queue queue = {.index = q, .size = n, .vector = VTR_NO_VECTOR};
        if (!mmio->page_size_set || mmio->queue[q].align != 4096 || mmio->queue[q].pfn)
            fake_fault(mmio->fake, "checklist 248: QueuePFN before page size and alignment, or twice");
        queue.desc.value = (uint64_t)value << 12;
        queue.driver.value = queue.desc.value + 16u * n;
        queue.device.value = (queue.driver.value + 6 + 2 * n + 4095) & ~4095ull;
        mmio->queue[q].pfn = value;
        mmio->real.queue_enable(vtr, &queue);
        return;
    }
    case 0x044: {
        struct vtr_queue queue = {.index = q,
                                  .size = mmio->queue[q].size,
                                  .desc = {mmio->queue[q].desc},
                                  .driver = {mmio->queue[q].driver},
                                  .device = {mmio->queue[q].device},
                                  .vector = VTR_NO_VECTOR};
        mmio->queue[q].ready = value;
        if (value)
            mmio->real.queue_enable(vtr, &queue);
        return;
    }
    case 0x050:
        mmio->real.notify(vtr, value & 0xffff, (uint16_t)(value >> 16),
                          fake_has(mmio->fake, VIRTIO_F_NOTIFICATION_DATA));
        return;
    case 0x064:
        if (value & ~3u)
            fake_fault(mmio->fake, "checklist 241: undefined interrupts acknowledged: %#x", value);
        mmio->fake->isr &= (uint8_t)~value;
        return;
    case 0x070:
        if (value == 0) {
            memset(mmio->queue, 0, sizeof(mmio->queue));
            mmio->page_size_set = false;
        }
        mmio->real.set_status(vtr, (uint8_t)value);
        return;
    case 0x080:
    case 0x084:
        set_half(&mmio->queue[q].desc, at == 0x084, value);
        return;
    case 0x090:
    case 0x094:
        set_half(&mmio->queue[q].driver, at == 0x094, value);
        return;
    case 0x0a0:
    case 0x0a4:
        set_half(&mmio->queue[q].device, at == 0x0a4, value);
        return;
    case 0x0c0:
        mmio->queue[q].reset = true;
        mmio->real.queue_reset(vtr, q);
        return;
    }
    fake_fault(mmio->fake, "checklist 232: write at %#x", at);
}

static struct mmio *mmio_new(struct fake *fake, uint32_t version)
{
    struct mmio *mmio = calloc(1, sizeof(*mmio));

    assert_non_null(mmio);
    mmio->fake = fake;
    mmio->real = fake->ops;
    mmio->version = version;
    mmio->magic = 0x74726976;
    mmio->device_id = 2;
    mmio->access = (struct vtr_mmio_access){mmio, mmio_read, mmio_write};
    return mmio;
}

/* ---- one body over all transports ---- */

enum kind { MODERN, WINDOW, LEGACY, LEGACY_MSIX, MMIO2, MMIO1, KINDS };

struct rig {
    struct fake *fake;
    struct pci *pci;
    struct mmio *mmio;
    struct vtr *vtr;
    uint8_t *memory;
    struct vblk *disk;
};

static void rig_start(struct rig *rig, enum kind kind, uint64_t features, unsigned vectors)
{
    struct vblk_config config = {
        .num_queues = 2, .queue_size = 16, .indirect_segs = 4, .deadline_ns = 1000000};
    bool legacy = kind == LEGACY || kind == LEGACY_MSIX || kind == MMIO1;

    memset(rig, 0, sizeof(*rig));
    rig->fake = fake_new(features, 4096);
    rig->fake->config.num_queues = le16_put(2);
    rig->fake->num_queues = 2;
    rig->fake->vectors = vectors;
    if (legacy) {
        rig->fake->ops.legacy = true;
        rig->fake->offered &= 0xffffffff;
        for (unsigned i = 0; i < FAKE_QUEUES; i++)
            rig->fake->queue[i].size_max = 16;
    }
    switch (kind) {
    case MODERN:
    case WINDOW:
        rig->pci = pci_new(rig->fake, VTR_PCI_DEVICE_BLK);
        add_all_caps(rig->pci);
        assert_int_equal((kind == MODERN ? vtr_pci_init : vtr_pci_window_init)(&rig->pci->modern,
                                                                               &rig->pci->access, vectors),
                         0);
        rig->vtr = &rig->pci->modern.vtr;
        break;
    case LEGACY:
    case LEGACY_MSIX:
        rig->pci = pci_new(rig->fake, VTR_PCI_DEVICE_TRANSITIONAL);
        rig->pci->msix = kind == LEGACY_MSIX;
        rig->fake->vectors = vectors = kind == LEGACY_MSIX ? 3 : 0;
        assert_int_equal(vtr_pci_init(&rig->pci->modern, &rig->pci->access, vectors),
                         -VBLK_ENODEV); /* checklist 214 */
        assert_int_equal(vtr_pci_legacy_init(&rig->pci->legacy, &rig->pci->access, vectors), 0);
        rig->vtr = &rig->pci->legacy.vtr;
        break;
    default:
        rig->mmio = mmio_new(rig->fake, kind == MMIO2 ? 2 : 1);
        assert_int_equal(vtr_mmio_init(&rig->mmio->transport, &rig->mmio->access, 0x200), 0);
        rig->vtr = &rig->mmio->transport.vtr;
    }
    rig->memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63);
    assert_non_null(rig->memory);
    assert_int_equal(vblk_start(&rig->disk, rig->memory, vblk_memory_bytes(&config), rig->vtr,
                                &rig->fake->platform, &config),
                     0);
    rig->fake->vblk = rig->disk;
}

static void rig_stop(struct rig *rig)
{
    fake_stop(rig->fake);
    free(rig->pci);
    free(rig->mmio);
    free(rig->memory);
}

/* checklist 133-137, 165, 187-193, 211, 232-242, 248: everything over every transport */
static void every_transport_carries_requests(void **state)
{
    static const uint64_t extra[] = {0, F(F_NOTIFICATION_DATA), F(F_NOTIF_CONFIG_DATA),
                                     F(F_NOTIFICATION_DATA) | F(F_NOTIF_CONFIG_DATA) | F(F_RING_RESET) |
                                         F(F_RING_PACKED)};
    static uint8_t out[16384], in[16384];

    for (unsigned kind = 0; kind < KINDS; kind++)
        for (unsigned i = 0; i < 4; i++) {
            struct rig rig;
            struct vblk_info info;
            rig_start(&rig, kind, extra[i] | F(BLK_F_MQ) | F(F_EVENT_IDX) | F(F_INDIRECT_DESC), i ? 0 : 3);
            vblk_info(rig.disk, &info);
            assert_int_equal(info.num_queues, 2);
            assert_int_equal(info.capacity_sectors, 4096);
            for (unsigned q = 0; q < 2; q++) {
                memset(out, (int)(kind * 16 + i + q), sizeof(out));
                assert_int_equal(vblk_write(rig.disk, q, 5, out, sizeof(out)), 0);
                memset(in, 0, sizeof(in));
                assert_int_equal(vblk_read(rig.disk, q, 5, in, sizeof(in)), 0);
                assert_memory_equal(in, out, sizeof(in));
            }
            rig.fake->isr = VTR_INTERRUPT_QUEUES | VTR_INTERRUPT_CONFIG; /* checklist 225, 247 */
            rig.fake->config.capacity = le64_put(2048);
            rig.fake->generation++;
            assert_true(vblk_interrupt(rig.disk));
            assert_int_equal(rig.fake->isr, 0);
            vblk_info(rig.disk, &info);
            assert_int_equal(info.capacity_sectors, 2048);
            if (rig.pci && !i && kind == MODERN) {
                assert_int_equal(rig.fake->queue[0].setup.vector, 1);
                assert_int_equal(rig.fake->queue[1].setup.vector, 2);
                assert_int_equal(rig.pci->config_vector, 0);
                assert_int_equal(rig.pci->isr_reads, 1); /* by vblk_interrupt alone: checklist 203 */
            }
            rig_stop(&rig);
        }
}

/* Recovery over every transport: queue reset where it is carried (checklist 192, 243: done when the register
 * says so), device reset elsewhere */
static void every_transport_recovers(void **state)
{
    for (unsigned kind = 0; kind < KINDS; kind++)
        for (unsigned ring_reset = 0; ring_reset < 2; ring_reset++) {
            struct rig rig;
            uint8_t buf[512];
            bool modern = kind == MODERN || kind == WINDOW || kind == MMIO2;
            rig_start(&rig, kind, F(BLK_F_MQ) | (ring_reset ? F(F_RING_RESET) : 0), 0);
            assert_int_equal(vblk_read(rig.disk, 0, 0, buf, 512), 0);
            fake_use_raw(rig.fake, 0, 77, 1, 1);
            rig.fake->queue_reset_delay = 7;
            vblk_poll(rig.disk, 0);
            if (modern && ring_reset) {
                assert_int_equal(rig.fake->queue_reset_delay, 0);
                assert_int_equal(fake_count(rig.fake, EV_QUEUE_IS_RESET), 8);
            }
            assert_int_equal(rig.fake->resets, modern && ring_reset ? 1 : 2);
            assert_int_equal(vblk_read(rig.disk, 0, 0, buf, 512), 0);
            assert_int_equal(vblk_read(rig.disk, 1, 0, buf, 512), 0);
            rig_stop(&rig);
        }
}

/* ---- PCI functions that describe themselves in odd ways ---- */

static int modern_init(struct pci *pci)
{
    return vtr_pci_init(&pci->modern, &pci->access, 0);
}

static void pci_done(struct pci *pci)
{
    fake_stop(pci->fake);
    free(pci);
}

/* checklist 162, 163, 168, 169, 167, 170: what must be ignored, and what must not */
static void odd_but_legal_capability_lists(void **state)
{
    struct pci *pci;
    unsigned at;

    for (unsigned revision = 0; revision < 256; revision += 51) {
        pci = pci_new(fake_new(0, 100), revision & 1 ? VTR_PCI_DEVICE_BLK : VTR_PCI_DEVICE_TRANSITIONAL);
        put(pci, 8, 1, revision);
        add_virtio_cap(pci, 0, BAR_MEM, 0, 64); /* reserved types */
        add_virtio_cap(pci, 6, BAR_MEM, 0, 64);
        add_virtio_cap(pci, 255, BAR_MEM, 0, 64);
        add_virtio_cap(pci, 9, BAR_MEM, 0, 64); /* vendor data: nothing of ours (checklist 207) */
        add_virtio_cap(pci, 1, 6, 0, 64);       /* reserved bars */
        add_virtio_cap(pci, 2, 255, 0, 64);
        add_all_caps(pci);
        assert_int_equal(modern_init(pci), 0);
        assert_int_equal(pci->modern.common.bar, BAR_MEM);
        pci_done(pci);
    }
    pci = pci_new(fake_new(0, 100),
                  VTR_PCI_DEVICE_BLK); /* a BAR that is not there first, then the usable one; twice */
    add_virtio_cap(pci, 2, 1, 0, 0x1000);
    add_all_caps(pci);
    add_virtio_cap(pci, 1, BAR_MEM, 0x100, 60);
    assert_int_equal(modern_init(pci), 0);
    assert_int_equal(pci->modern.notify.bar, BAR_MEM);
    assert_int_equal(pci->modern.common.offset, AT_COMMON);
    pci_done(pci);

    pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK); /* longer capabilities than known */
    add_all_caps(pci);
    for (at = pci->config[0x34]; at; at = pci->config[at + 1])
        pci->config[at + 2] += 16;
    assert_int_equal(modern_init(pci), 0);
    pci_done(pci);
}

/* checklist 171, 173, 197: lengths, offsets and links that lead out, or round and round */
static void hostile_capability_lists(void **state)
{
    static const uint32_t offsets[] = {0, 0x3fff, 0x4000, 0x4001, 0xfffffff0, 0xffffffff};
    static const uint32_t lengths[] = {0, 1, 55, 56, 0x4000, 0xffffffff};
    struct pci *pci;

    for (unsigned type = 1; type <= 4; type++)
        for (unsigned i = 0; i < 6; i++)
            for (unsigned k = 0; k < 6; k++) {
                pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK);
                for (unsigned t = 1; t <= 4; t++)
                    add_virtio_cap(pci, (uint8_t)t, BAR_MEM, t == type ? offsets[i] : 0,
                                   t == type ? lengths[k] : 0x1000);
                (void)modern_init(pci);
                if (pci->modern.common.bytes)
                    assert_true(pci->modern.common.offset + pci->modern.common.bytes <= 0x4000);
                if (pci->modern.notify.bytes)
                    assert_true(pci->modern.notify.offset + pci->modern.notify.bytes <= 0x4000);
                pci_done(pci);
            }
    for (unsigned link = 0; link < 256; link++) { /* the last capability points anywhere */
        pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK);
        add_all_caps(pci);
        *pci->last_link = (uint8_t)link;
        pci->window_at = 0; /* its data register is among the places that a link may lead to */
        assert_int_equal(modern_init(pci), 0);
        pci_done(pci);
    }
    pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK); /* all ones: gone */
    memset(pci->config + 4, 0xff, 252);
    assert_true(modern_init(pci) < 0);
    pci_done(pci);
    for (unsigned missing = 1; missing <= 4; missing++) {
        pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK);
        for (unsigned t = 1; t <= 4; t++)
            if (t != missing)
                add_virtio_cap(pci, (uint8_t)t, BAR_MEM, (t - 1) * 0x1000, 0x1000);
        assert_int_equal(modern_init(pci), -VBLK_ENOTSUP);
        pci_done(pci);
    }
    pci = pci_new(fake_new(0, 100), 0x1041); /* a network card */
    add_all_caps(pci);
    assert_int_equal(modern_init(pci), -VBLK_ENODEV);
    pci_done(pci);
}

/* checklist 197: the notify position is the device's choice; out of bounds, it is no device */
static void notify_positions_are_checked(void **state)
{
    static const struct {
        unsigned unit, multiplier;
        bool works;
    } cases[] = {{0, 0, true},  {1, 2, true},  {1, 4096, false}, {0xffff, 0xffffffff, false},
                 {1, 1, false}, {512, 4, true}};

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct vblk_config config = {.num_queues = 2, .queue_size = 16, .deadline_ns = 1000000};
        struct fake *fake = fake_new(F(BLK_F_MQ), 4096);
        struct pci *pci = pci_new(fake, VTR_PCI_DEVICE_BLK);
        uint8_t *memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63), buf[512];
        int result;

        fake->num_queues = 2;
        fake->config.num_queues = le16_put(2);
        pci->notify_off_unit = cases[i].unit;
        pci->multiplier = cases[i].multiplier;
        add_all_caps(pci);
        assert_int_equal(modern_init(pci), 0);
        result = vblk_start(&fake->vblk, memory, vblk_memory_bytes(&config), &pci->modern.vtr,
                            &fake->platform, &config);
        assert_int_equal(result == 0, cases[i].works);
        if (result == 0) {
            assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
            assert_int_equal(vblk_read(fake->vblk, 1, 0, buf, 512), 0);
        }
        pci_done(pci);
        free(memory);
    }
}

/* checklist 221: the device takes no vector: the driver polls, and says so. 220: never more than the table
 * has */
static void refused_vectors_mean_polling(void **state)
{
    for (unsigned table = 0; table < 2; table++) {
        struct vblk_config config = {.queue_size = 16, .deadline_ns = 1000000};
        struct fake *fake = fake_new(0, 4096);
        struct pci *pci = pci_new(fake, VTR_PCI_DEVICE_BLK);
        uint8_t *memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63), buf[512];
        struct vblk_info info;

        if (table)
            put(pci, add_cap(pci, 0x11, 12) + 2, 2, 0); /* a table of one */
        add_all_caps(pci);
        fake->vectors = table ? 1 : 3;
        pci->refuse_vectors = !table;
        assert_int_equal(vtr_pci_init(&pci->modern, &pci->access, 3), 0);
        assert_int_equal(vblk_start(&fake->vblk, memory, vblk_memory_bytes(&config), &pci->modern.vtr,
                                    &fake->platform, &config),
                         0);
        vblk_info(fake->vblk, &info);
        assert_int_equal(info.polling, !table);
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
        pci_done(pci);
        free(memory);
    }
}

/* H6: the device ignores a reset: bus mastering is taken from it, and the buffers are safe */
static void bus_mastering_is_the_last_resort(void **state)
{
    struct rig rig;
    struct fake_request r = {0};
    uint8_t buf[512];

    rig_start(&rig, MODERN, 0, 0);
    rig.fake->run_on_notify = false;
    assert_int_equal(fake_submit(rig.fake, 0, &r, VBLK_READ, 0, buf, 512), 0);
    vblk_kick(rig.disk, 0);
    rig.fake->stuck_status = true;
    fake_finish(rig.fake, 0, &r);
    assert_int_equal(r.result, -VBLK_ENODEV);
    assert_int_equal(rig.pci->config[4], 2); /* memory decoding stays */
    rig_stop(&rig);
}

/* checklist 226 in the driver's view, 235, 236, 244: what is no block device is left alone, silently */
static void mmio_devices_that_are_not_ours(void **state)
{
    static const struct {
        uint32_t magic, version, device_id;
        unsigned accesses; /* at most */
    } cases[] = {{0x12345678, 2, 2, 1}, {0x74726976, 0, 2, 2}, {0x74726976, 3, 2, 2},
                 {0x74726976, 2, 0, 3}, {0x74726976, 2, 1, 3}, {0xffffffff, 0xffffffff, 0xffffffff, 1}};

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fake *fake = fake_new(0, 100);
        struct mmio *mmio = mmio_new(fake, cases[i].version);
        mmio->magic = cases[i].magic;
        mmio->device_id = cases[i].device_id;
        assert_int_equal(vtr_mmio_init(&mmio->transport, &mmio->access, 0x200), -VBLK_ENODEV);
        assert_int_equal(mmio->accesses, cases[i].accesses);
        assert_int_equal(fake->log_lines, 0);
        fake_stop(fake);
        free(mmio);
    }
}

/* checklist 246: a queue that is ready already is somebody else's; one of size 0 is not there */
static void mmio_queues_that_can_not_be_had(void **state)
{
    for (unsigned absent = 0; absent < 2; absent++) {
        struct vblk_config config = {.queue_size = 16, .deadline_ns = 1000000};
        struct fake *fake = fake_new(0, 100);
        struct mmio *mmio = mmio_new(fake, 2);
        uint8_t *memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63);

        mmio->stuck_ready = !absent;
        if (absent)
            fake->queue[0].size_max = 0;
        assert_int_equal(vtr_mmio_init(&mmio->transport, &mmio->access, 0x200), 0);
        assert_int_equal(vblk_start(&fake->vblk, memory, vblk_memory_bytes(&config), &mmio->transport.vtr,
                                    &fake->platform, &config),
                         absent ? -VBLK_ENODEV : -VBLK_EBUSY);
        assert_int_equal(fake_count(fake, EV_QUEUE_ENABLE), 0);
        fake_stop(fake);
        free(mmio);
        free(memory);
    }
}

/* checklist 241: bits that mean nothing are not acknowledged, and mean nothing */
static void undefined_mmio_interrupts(void **state)
{
    struct rig rig;

    rig_start(&rig, MMIO2, 0, 0);
    rig.mmio->isr = 0xfffffffc;
    assert_false(vblk_interrupt(rig.disk));
    rig.fake->isr = 1;
    assert_true(vblk_interrupt(rig.disk));
    rig_stop(&rig);
}

/* Registers at a pointer: one access of the right width, little-endian */
static void direct_access(void **state)
{
    uint32_t words[4] = {0, 0, 0, 0};
    uint8_t *bytes = (uint8_t *)words;

    vtr_mmio_direct_write(words, 4, 4, 0x11223344);
    assert_int_equal(bytes[4], 0x44);
    vtr_mmio_direct_write(words, 2, 2, 0x5566);
    assert_int_equal(bytes[2], 0x66);
    vtr_mmio_direct_write(words, 1, 1, 0x77);
    assert_int_equal(vtr_mmio_direct_read(words, 0, 4), 0x55667700);
    assert_int_equal(vtr_mmio_direct_read(words, 6, 2), 0x1122);
    assert_int_equal(vtr_mmio_direct_read(words, 7, 1), 0x11);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_transport_carries_requests),
        cmocka_unit_test(every_transport_recovers),
        cmocka_unit_test(odd_but_legal_capability_lists),
        cmocka_unit_test(hostile_capability_lists),
        cmocka_unit_test(notify_positions_are_checked),
        cmocka_unit_test(refused_vectors_mean_polling),
        cmocka_unit_test(bus_mastering_is_the_last_resort),
        cmocka_unit_test(mmio_devices_that_are_not_ours),
        cmocka_unit_test(mmio_queues_that_can_not_be_had),
        cmocka_unit_test(undefined_mmio_interrupts),
        cmocka_unit_test(direct_access),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
