/*
 * The driver against a device whose every word is the fuzzer's: registers, configuration, all of the shared
 * memory at any moment. For tests/fuzz/vblk_split_fuzz.c and vblk_packed_fuzz.c.
 *
 * What must hold: no memory but the driver's own is touched (sanitizers), every request that was taken is
 * answered exactly once, every share is ended exactly once unless the device would not let go, and it all
 * ends.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "common/virtio_ring.h"
#include "guest/driver/vblk.h"

#define FUZZ_REQUESTS 24u
#define FUZZ_QUEUES   2u
#define FUZZ_SIZE     8u

/* What the driver's memory for a queue is called by the device: low enough for a legacy device's page number
 */
#define FUZZ_DMA_BASE(i) ((uint64_t)((i) + 1) << 24)

struct fuzz {
    struct vtr vtr;
    const uint8_t *data;
    size_t left;
    uint8_t status;
    uint64_t features;
    bool packed, honest_reset;
    uint64_t clock;
    uint8_t *shared[FUZZ_QUEUES];
    size_t shared_bytes[FUZZ_QUEUES];
    struct vtr_queue queue[FUZZ_QUEUES]; /* as programmed */
    uint16_t used[FUZZ_QUEUES];
    bool wrap[FUZZ_QUEUES];
    int shares;
    bool held; /* a request said that its buffers are the device's for ever */
    struct vblk *disk;
    struct fuzz_request {
        struct vblk_request request;
        struct vblk_seg segs[3];
        bool busy;
    } requests[FUZZ_REQUESTS];
    uint8_t buf[8192];
};

static struct fuzz fuzz;

static uint32_t fuzz_take(unsigned bytes)
{
    uint32_t value = 0;

    while (bytes-- && fuzz.left) {
        value = value << 8 | *fuzz.data++;
        fuzz.left--;
    }
    return value;
}

static uint8_t fuzz_get_status(struct vtr *vtr)
{
    uint32_t roll = fuzz_take(1);

    return roll >= 0xf8 ? (uint8_t)fuzz_take(1) : fuzz.status;
}

static void fuzz_set_status(struct vtr *vtr, uint8_t status)
{
    fuzz.status = status;
    if (status == 0)
        memset(fuzz.queue, 0, sizeof(fuzz.queue));
}

static uint64_t fuzz_get_features(struct vtr *vtr)
{
    uint64_t features = fuzz.features;

    if (fuzz_take(1) >= 0xf0)
        features ^= (uint64_t)fuzz_take(4) << 16;
    features |= VIRTIO_BIT(VIRTIO_F_VERSION_1);
    return fuzz.packed ? features | VIRTIO_BIT(VIRTIO_F_RING_PACKED)
                       : features & ~VIRTIO_BIT(VIRTIO_F_RING_PACKED);
}

static void fuzz_set_features(struct vtr *vtr, uint64_t features)
{
}

static uint32_t fuzz_config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    uint32_t roll = fuzz_take(1);

    if (roll >= 0xe0)
        return fuzz_take(width);
    switch (offset) {
    case 0:
        return 1u << 16;
    case 4:
        return 0;
    case 20:
        return roll & 1 ? 512 : 4096;
    case 34:
        return FUZZ_QUEUES;
    case 8:
        return 4096;
    default:
        return 1 + roll % 64;
    }
}

static void fuzz_config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
}

static uint32_t fuzz_config_generation(struct vtr *vtr)
{
    return fuzz_take(1) >= 0xf0;
}

static unsigned fuzz_config_bytes(struct vtr *vtr)
{
    return fuzz_take(1) >= 0xfc ? fuzz_take(1) : 96;
}

static unsigned fuzz_num_queues(struct vtr *vtr)
{
    return 0;
}

static unsigned fuzz_queue_size_max(struct vtr *vtr, unsigned index)
{
    return fuzz_take(1) >= 0xf0 ? fuzz_take(2) : FUZZ_SIZE;
}

/* Where the driver's memory at ADDR lies; NULL if it has none there. */
static uint8_t *fuzz_at(uint64_t addr)
{
    for (unsigned i = 0; i < FUZZ_QUEUES; i++)
        if (fuzz.shared[i] && addr - FUZZ_DMA_BASE(i) < fuzz.shared_bytes[i])
            return fuzz.shared[i] + (addr - FUZZ_DMA_BASE(i));
    return NULL;
}

static int fuzz_queue_enabled(const struct vtr_queue *queue)
{
    fuzz.queue[queue->index] = *queue;
    fuzz.used[queue->index] = 0;
    fuzz.wrap[queue->index] = true;
    return 0;
}

static int fuzz_queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    if (fuzz_take(1) >= 0xfc)
        return fuzz_take(1) & 1 ? -VBLK_ENOTSUP : -VBLK_EBUSY;
    return fuzz_queue_enabled(queue);
}

static void fuzz_queue_reset(struct vtr *vtr, unsigned index)
{
}

static bool fuzz_queue_is_reset(struct vtr *vtr, unsigned index)
{
    return fuzz_take(1) < 0xf8;
}

static void fuzz_notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
}

static uint8_t fuzz_interrupt_status(struct vtr *vtr)
{
    return (uint8_t)fuzz_take(1);
}

static unsigned fuzz_num_vectors(struct vtr *vtr)
{
    return 2;
}

static bool fuzz_cut_off(struct vtr *vtr)
{
    return true;
}

static const struct vtr_ops fuzz_ops = {
    .name = "fuzz",
    .carries = VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA) | VIRTIO_BIT(VIRTIO_F_RING_RESET),
    .get_status = fuzz_get_status,
    .set_status = fuzz_set_status,
    .get_features = fuzz_get_features,
    .set_features = fuzz_set_features,
    .config_read = fuzz_config_read,
    .config_write = fuzz_config_write,
    .config_generation = fuzz_config_generation,
    .config_bytes = fuzz_config_bytes,
    .num_queues = fuzz_num_queues,
    .queue_size_max = fuzz_queue_size_max,
    .queue_enable = fuzz_queue_enable,
    .queue_reset = fuzz_queue_reset,
    .queue_is_reset = fuzz_queue_is_reset,
    .notify = fuzz_notify,
    .interrupt_status = fuzz_interrupt_status,
    .num_vectors = fuzz_num_vectors,
    .cut_off = fuzz_cut_off,
};

static void *fuzz_dma_alloc(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr)
{
    unsigned i = fuzz.shared[0] ? 1 : 0;

    fuzz.shared[i] = aligned_alloc(align, (bytes + align - 1) / align * align);
    fuzz.shared_bytes[i] = bytes;
    memset(fuzz.shared[i], 0, bytes);
    addr->value = FUZZ_DMA_BASE(i);
    return fuzz.shared[i];
}

static void fuzz_dma_free(void *ctx, void *mem, size_t bytes)
{
    for (unsigned i = 0; i < FUZZ_QUEUES; i++)
        if (fuzz.shared[i] == mem)
            fuzz.shared[i] = NULL;
    free(mem);
}

static int fuzz_share(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                      size_t *contiguous)
{
    uint32_t roll = fuzz_take(1);

    if (roll >= 0xf8)
        return roll & 1 ? -VBLK_EAGAIN : -VBLK_EINVAL;
    *contiguous = roll >= 0xc0 && len > 100 ? 100 : len;
    addr->value = (uintptr_t)mem;
    fuzz.shares++;
    return 0;
}

static void fuzz_unshare(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr)
{
    fuzz.shares--;
    if (addr.value != (uintptr_t)mem || fuzz.shares < 0)
        abort();
}

static uint64_t fuzz_now(void *ctx)
{
    return fuzz.clock += 1000;
}

static void fuzz_wait(void *ctx, unsigned queue, uint64_t deadline_ns)
{
    fuzz.clock += 100000;
}

static const struct vblk_platform fuzz_platform = {.dma_alloc = fuzz_dma_alloc,
                                                   .dma_free = fuzz_dma_free,
                                                   .share = fuzz_share,
                                                   .unshare = fuzz_unshare,
                                                   .now_ns = fuzz_now,
                                                   .wait = fuzz_wait};

static void fuzz_complete(struct vblk_request *request, int result)
{
    struct fuzz_request *r = request->opaque;

    if (!r->busy)
        abort();
    r->busy = false;
    if (result == -VBLK_ENOTRECOVERABLE)
        fuzz.held = true;
}

static void fuzz_submit(unsigned queue)
{
    struct fuzz_request *r = &fuzz.requests[fuzz_take(1) % FUZZ_REQUESTS];

    if (r->busy)
        return;
    memset(r, 0, sizeof(*r));
    r->request.op = (enum vblk_op)(fuzz_take(1) % 16);
    r->request.sector = fuzz_take(2);
    r->request.num_sectors = fuzz_take(2);
    r->request.segs = r->segs;
    r->request.nsegs = 1 + fuzz_take(1) % 3;
    for (unsigned i = 0; i < r->request.nsegs; i++) {
        size_t at = fuzz_take(2) % sizeof(fuzz.buf), len = fuzz_take(2) % 4097;
        if (r->request.op == VBLK_GET_ID)
            len = 20;
        if (r->request.op == VBLK_GET_LIFETIME)
            len = 6;
        if (r->request.op <= VBLK_WRITE && r->request.nsegs == 1)
            len &= ~511u;
        r->segs[i] =
            (struct vblk_seg){fuzz.buf + at, len < sizeof(fuzz.buf) - at ? len : sizeof(fuzz.buf) - at};
    }
    r->request.complete = fuzz_complete;
    r->request.opaque = r;
    r->busy = true;
    if (vblk_submit(fuzz.disk, queue, &r->request) < 0)
        r->busy = false;
}

/* The device writes a used entry that may even be right. */
static void fuzz_use(unsigned queue)
{
    uint32_t roll = fuzz_take(1), len = roll & 0x40 ? fuzz_take(4) : 1;
    const struct vtr_queue *q = &fuzz.queue[queue];

    if (!q->size || !fuzz.shared[queue])
        return;
    if (fuzz.packed) {
        struct virtq_packed_desc *desc =
            (struct virtq_packed_desc *)(void *)fuzz_at(q->desc.value) + fuzz.used[queue] % q->size;
        desc->id = le16_put(roll & 0x80 ? (uint16_t)fuzz_take(2) : roll & 7);
        desc->len = le32_put(len);
        desc->flags = le16_put(
            (uint16_t)((fuzz.wrap[queue] ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED : 0) | VIRTQ_DESC_F_WRITE));
        fuzz.used[queue] += 1 + (roll >> 3) % 4;
        if (fuzz.used[queue] >= q->size) {
            fuzz.used[queue] -= q->size;
            fuzz.wrap[queue] = !fuzz.wrap[queue];
        }
    } else {
        struct virtq_used *used = (struct virtq_used *)(void *)fuzz_at(q->device.value);
        used->ring[fuzz.used[queue] % q->size].id = le32_put(roll & 0x80 ? fuzz_take(4) : roll & 7);
        used->ring[fuzz.used[queue] % q->size].len = le32_put(len);
        fuzz.used[queue] += roll & 0x20 ? fuzz_take(1) : 1;
        used->idx = le16_put(fuzz.used[queue]);
    }
}

/* The caller looks at what there is to see. */
static void fuzz_look(unsigned queue)
{
    struct vblk_queue_stats stats;
    struct vblk_queue_view view;
    struct vblk_info info;

    vblk_info(fuzz.disk, &info);
    vblk_queue_stats(fuzz.disk, queue, &stats);
    vblk_queue_view(fuzz.disk, queue, &view);
    if (info.block_size < 512 || (info.block_size & (info.block_size - 1)) || view.num_free > view.size ||
        info.num_queues > FUZZ_QUEUES)
        abort();
}

/* Or scribbles anywhere in what is shared: rings, tables, headers, status bytes. */
static void fuzz_scribble(unsigned queue)
{
    size_t at, n = 1 + fuzz_take(1) % 32;

    if (!fuzz.shared[queue])
        return;
    at = fuzz_take(2) % fuzz.shared_bytes[queue];
    for (; n && at < fuzz.shared_bytes[queue]; n--, at++)
        fuzz.shared[queue][at] = (uint8_t)fuzz_take(1);
}

#include "tests/fuzz/vblk_fuzz_registers.h"

static void fuzz_told(void *opaque, uint64_t capacity_sectors)
{
    if (capacity_sectors > UINT64_MAX / 512)
        abort();
}

static int fuzz_one(const uint8_t *data, size_t size, bool packed)
{
    struct vblk_config config = {.num_queues = FUZZ_QUEUES, .queue_size = FUZZ_SIZE, .deadline_ns = 200000};
    struct vtr *transport;
    size_t bytes;
    void *memory;
    uint8_t buf[512];

    memset(&fuzz, 0, sizeof(fuzz));
    fuzz.vtr.ops = &fuzz_ops;
    fuzz.data = data;
    fuzz.left = size;
    fuzz.packed = packed;
    config.indirect_segs = fuzz_take(1) % 5;
    config.poll_only = fuzz_take(1) & 1;
    fuzz.features = fuzz_take(4) | (uint64_t)fuzz_take(2) << 32;
    bytes = (vblk_memory_bytes(&config) + 63) & ~(size_t)63;
    memory = aligned_alloc(64, bytes);
    transport = fuzz_transport(fuzz_take(1));
    if (transport && vblk_start(&fuzz.disk, memory, bytes, transport, &fuzz_platform, &config) == 0) {
        vblk_on_capacity_change(fuzz.disk, fuzz_told, NULL);
        while (fuzz.left) {
            unsigned roll = fuzz_take(1), queue = roll >> 7;
            switch (roll % 13) {
            case 0:
            case 1:
                fuzz_submit(queue);
                break;
            case 2:
                vblk_kick(fuzz.disk, queue);
                break;
            case 3:
            case 4:
                (void)vblk_poll(fuzz.disk, queue);
                break;
            case 5:
            case 6:
                fuzz_use(queue);
                break;
            case 7:
                fuzz_scribble(queue);
                break;
            case 8:
                (void)vblk_interrupts_on(fuzz.disk, queue);
                break;
            case 9:
                fuzz.clock += (uint64_t)fuzz_take(1) * 4000;
                break;
            case 10:
                if (roll & 0x40)
                    (void)vblk_interrupt(fuzz.disk);
                else if (roll & 0x20)
                    (void)(roll & 0x10 ? vblk_suspend : vblk_resume)(fuzz.disk);
                else
                    vblk_interrupts_off(fuzz.disk, queue);
                break;
            case 11: /* what waits must end, too */
                if (roll & 0x40)
                    (void)vblk_set_write_cache(fuzz.disk, roll & 1);
                else if (vblk_read(fuzz.disk, queue, roll, buf, sizeof(buf)) == -VBLK_ENOTRECOVERABLE)
                    fuzz.held = true;
                break;
            case 12:
                fuzz_look(queue);
                break;
            }
        }
        vblk_stop(fuzz.disk);
        for (unsigned i = 0; i < FUZZ_REQUESTS; i++)
            if (fuzz.requests[i].busy)
                abort();
    }
    /* only MMIO has no way to cut a device off that will not be reset */
    if (fuzz.held && (!transport || transport->ops->cut_off))
        abort();
    if (fuzz.shares != 0 && !fuzz.held)
        abort();
    for (unsigned i = 0; i < FUZZ_QUEUES; i++)
        free(fuzz.shared[i]);
    free(memory);
    return 0;
}
