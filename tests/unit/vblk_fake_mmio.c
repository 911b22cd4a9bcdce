/* An MMIO register window before the fake device, version 2 or 1. */
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_fake_registers.h"

static void set_half(uint64_t *whole, bool high, uint32_t value)
{
    *whole = high ? (*whole & 0xffffffff) | (uint64_t)value << 32 : (*whole & ~0xffffffffull) | value;
}

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

struct mmio *mmio_new(struct fake *fake, uint32_t version)
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
