/*
 * What a request costs the driver: for counting under callgrind.
 *
 *   driver_cost split|packed INDIRECT_SEGS EVENT_IDX(0|1) ROUNDS
 *
 * Rounds of 32 reads of 4 KiB are submitted, kicked, answered by a device that does nothing, and polled.
 * Collect only inside vblk_submit, vblk_kick and vblk_poll (--toggle-collect): the device's work is then not
 * counted, and the count divided by 32 times ROUNDS is the driver's own share, platform's share and unshare
 * functions included.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "common/virtio_ring.h"
#include "guest/driver/vblk.h"

#define DEPTH 32u
#define SIZE  256u

struct null_device {
    struct vtr vtr;
    uint64_t offered, accepted;
    uint8_t status;
    struct vtr_queue queue;
    uint16_t at; /* avail index, or packed slot */
    bool wrap;
};

static struct null_device device;

static uint8_t get_status(struct vtr *vtr)
{
    return device.status;
}

static void set_status(struct vtr *vtr, uint8_t status)
{
    device.status = status;
}

static uint64_t get_features(struct vtr *vtr)
{
    return device.offered;
}

static void set_features(struct vtr *vtr, uint64_t features)
{
    device.accepted = features;
}

static uint32_t config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    return offset == 0 ? 1u << 20 : 0;
}

static void config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
}

static uint32_t config_generation(struct vtr *vtr)
{
    return 0;
}

static unsigned config_bytes(struct vtr *vtr)
{
    return 60;
}

static unsigned num_queues(struct vtr *vtr)
{
    return 1;
}

static unsigned queue_size_max(struct vtr *vtr, unsigned index)
{
    return SIZE;
}

static int queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    device.queue = *queue;
    device.at = 0;
    device.wrap = true;
    return 0;
}

static void notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
}

static uint8_t interrupt_status(struct vtr *vtr)
{
    return 0;
}

static const struct vtr_ops null_ops = {
    .name = "null",
    .get_status = get_status,
    .set_status = set_status,
    .get_features = get_features,
    .set_features = set_features,
    .config_read = config_read,
    .config_write = config_write,
    .config_generation = config_generation,
    .config_bytes = config_bytes,
    .num_queues = num_queues,
    .queue_size_max = queue_size_max,
    .queue_enable = queue_enable,
    .notify = notify,
    .interrupt_status = interrupt_status,
};

static void *at(vblk_dma_addr addr)
{
    return (void *)(uintptr_t)addr.value;
}

/* The status byte is the last byte of the last buffer of a chain. */
static void ok_split(const struct virtq_desc *table, unsigned i)
{
    while (le16_get(table[i].flags) & VIRTQ_DESC_F_NEXT)
        i = le16_get(table[i].next);
    *((uint8_t *)at((vblk_dma_addr){le64_get(table[i].addr)}) + le32_get(table[i].len) - 1) = VIRTIO_BLK_S_OK;
}

static void run_split(void)
{
    struct virtq_desc *desc = at(device.queue.desc);
    struct virtq_avail *avail = at(device.queue.driver);
    struct virtq_used *used = at(device.queue.device);

    for (; device.at != le16_load_acquire(&avail->idx); device.at++) {
        unsigned head = le16_load(&avail->ring[device.at % SIZE]);
        struct virtq_used_elem *elem = &used->ring[device.at % SIZE];
        if (le16_get(desc[head].flags) & VIRTQ_DESC_F_INDIRECT)
            ok_split(at((vblk_dma_addr){le64_get(desc[head].addr)}), 0);
        else
            ok_split(desc, head);
        *elem = (struct virtq_used_elem){le32_put(head), le32_put(4097)};
        le16_store_release(&used->idx, (uint16_t)(device.at + 1));
    }
    le16_store((le16 *)(void *)&used->ring[SIZE], device.at);
}

static void run_packed(void)
{
    struct virtq_packed_desc *ring = at(device.queue.desc);

    for (;;) {
        struct virtq_packed_desc *first = &ring[device.at], *last = first;
        uint16_t flags = le16_load_acquire(&first->flags);
        if (!!(flags & VIRTQ_DESC_F_AVAIL) != device.wrap || !!(flags & VIRTQ_DESC_F_USED) == device.wrap)
            return;
        bool used = device.wrap;
        for (;;) {
            last = &ring[device.at];
            if (++device.at == SIZE) {
                device.at = 0;
                device.wrap = !device.wrap;
            }
            if (!(le16_get(last->flags) & VIRTQ_DESC_F_NEXT))
                break;
        }
        const struct virtq_packed_desc *status = last;
        if (flags & VIRTQ_DESC_F_INDIRECT)
            status = (const struct virtq_packed_desc *)at((vblk_dma_addr){le64_get(first->addr)}) +
                     le32_get(first->len) / 16 - 1;
        *(uint8_t *)at((vblk_dma_addr){le64_get(status->addr)}) = VIRTIO_BLK_S_OK;
        first->id = last->id;
        first->len = le32_put(4097);
        le16_store_release(&first->flags, (uint16_t)((used ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED : 0) |
                                                     VIRTQ_DESC_F_WRITE));
    }
}

static void *dma_alloc(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr)
{
    void *mem = aligned_alloc(align, (bytes + align - 1) / align * align);

    if (mem)
        memset(mem, 0, bytes);
    addr->value = (uintptr_t)mem;
    return mem;
}

static void dma_free(void *ctx, void *mem, size_t bytes)
{
    free(mem);
}

static int share(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                 size_t *contiguous)
{
    addr->value = (uintptr_t)mem;
    *contiguous = len;
    return 0;
}

static void unshare(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr)
{
}

static uint64_t now_ns(void *ctx)
{
    static uint64_t now;

    return now += 1000;
}

static void wait(void *ctx, unsigned queue, uint64_t deadline_ns)
{
}

static const struct vblk_platform platform = {.dma_alloc = dma_alloc,
                                              .dma_free = dma_free,
                                              .share = share,
                                              .unshare = unshare,
                                              .now_ns = now_ns,
                                              .wait = wait};

static unsigned done;

static void complete(struct vblk_request *request, int result)
{
    done += result == 0;
}

int main(int argc, char **argv)
{
    static struct vblk_request requests[DEPTH];
    static struct vblk_seg segs[DEPTH];
    static uint8_t buf[4096];
    struct vblk_config config = {.queue_size = SIZE, .poll_only = true};
    unsigned i, round, rounds;
    struct vblk *disk;
    void *memory;

    if (argc != 5)
        return 2;
    config.indirect_segs = (unsigned)atoi(argv[2]);
    rounds = (unsigned)atoi(argv[4]);
    device.vtr.ops = &null_ops;
    device.offered = VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) |
                     (atoi(argv[3]) ? VIRTIO_BIT(VIRTIO_F_EVENT_IDX) : 0) |
                     (strcmp(argv[1], "packed") == 0 ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0);
    memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63);
    if (!memory || vblk_start(&disk, memory, vblk_memory_bytes(&config), &device.vtr, &platform, &config) < 0)
        return 1;
    for (i = 0; i < DEPTH; i++) {
        segs[i] = (struct vblk_seg){buf, sizeof(buf)};
        requests[i] =
            (struct vblk_request){.op = VBLK_READ, .sector = 8ull * i, .segs = &segs[i], .nsegs = 1};
        requests[i].complete = complete;
    }
    for (round = 0; round < rounds; round++) {
        for (i = 0; i < DEPTH; i++)
            if (vblk_submit(disk, 0, &requests[i]) < 0)
                return 1;
        vblk_kick(disk, 0);
        if (device.accepted & VIRTIO_BIT(VIRTIO_F_RING_PACKED))
            run_packed();
        else
            run_split();
        while (vblk_poll(disk, 0))
            ;
    }
    printf("%u of %u requests done\n", done, rounds * DEPTH);
    vblk_stop(disk);
    free(memory);
    return done == rounds * DEPTH ? 0 : 1;
}
