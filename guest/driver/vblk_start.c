/*
 * Start and stop (virtio 1.4, 3.1, 3.3): memory, negotiation, queues.
 *
 * What always holds: the eight steps of 3.1.1 in their order; only features that are implemented, offered and
 * whose conditions are met are accepted (2.2.1); no queue is touched before FEATURES_OK was read back; every
 * wait ends.
 */
#include "guest/driver/vblk_internal.h"

#define ALIGN64(n) (((n) + 63) & ~(size_t)63)

/* What can be accepted of any device. Reserved bits that depend on the transport are added in `acceptable`.
 */
static const uint64_t implemented =
    VIRTIO_BIT(VIRTIO_BLK_F_SIZE_MAX) | VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX) | VIRTIO_BIT(VIRTIO_BLK_F_GEOMETRY) |
    VIRTIO_BIT(VIRTIO_BLK_F_RO) | VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
    VIRTIO_BIT(VIRTIO_BLK_F_TOPOLOGY) | VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE) | VIRTIO_BIT(VIRTIO_BLK_F_MQ) |
    VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) | VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
    VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME) | VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE) |
    VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX);

static const uint64_t implemented_modern =
    VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) |
#ifndef VBLK_WITHOUT_ZONES
    VIRTIO_BIT(VIRTIO_BLK_F_ZONED) |
#endif
#ifndef VBLK_WITHOUT_PACKED
    VIRTIO_BIT(VIRTIO_F_RING_PACKED) |
#endif
    VIRTIO_BIT(VIRTIO_F_IN_ORDER) | VIRTIO_BIT(VIRTIO_F_ORDER_PLATFORM) | VIRTIO_BIT(VIRTIO_F_SUSPEND);

static const uint64_t implemented_legacy = VIRTIO_BIT(VIRTIO_F_ANY_LAYOUT);

static const uint64_t by_transport = VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA) |
                                     VIRTIO_BIT(VIRTIO_F_NOTIF_CONFIG_DATA) | VIRTIO_BIT(VIRTIO_F_RING_RESET);

/* ---- memory ---- */

struct shape {
    unsigned num_queues, queue_size, segs, parts, pieces;
    size_t table_bytes, private_bytes, dma_bytes; /* per queue */
    size_t ring_bytes;
};

static void shape_of(const struct vblk_config *config, bool legacy, struct shape *shape)
{
    size_t a, b, split, packed;
    unsigned n = config->queue_size ? config->queue_size : QUEUE_SIZE_DEFAULT;

    if (n > VIRTQUEUE_MAX_SIZE)
        n = VIRTQUEUE_MAX_SIZE;
    shape->queue_size = n;
    shape->num_queues = config->num_queues ? config->num_queues : 1;
    shape->segs = config->indirect_segs < n ? config->indirect_segs : n;
    /* without tables a chain takes two descriptors at least, and each piece one of its own; one is in the
     * part */
    shape->parts = shape->segs ? n : (n + 1) / 2;
    shape->pieces = shape->segs > 1 ? n * (shape->segs - 1) : n;
    shape->table_bytes = shape->segs ? 16u * (shape->segs + 2u) : 0;
    shape->private_bytes = ALIGN64(sizeof(struct part) * shape->parts) +
                           ALIGN64(sizeof(struct vq_piece) * (size_t)shape->pieces) +
                           ALIGN64(sizeof(struct vq_chain) * n);
    split = vq_split_bytes(n, legacy, &a, &b);
    packed = vq_packed_bytes(n, &a, &b);
    shape->ring_bytes = split > packed ? split : packed;
    shape->dma_bytes = ALIGN64(shape->ring_bytes) + sizeof(struct part_dma) * shape->parts + BOUNCE_BYTES +
                       shape->table_bytes * shape->parts;
}

size_t vblk_memory_bytes(const struct vblk_config *config)
{
    struct shape shape;

    shape_of(config, true, &shape);
    return ALIGN64(sizeof(struct vblk)) +
           shape.num_queues * (ALIGN64(sizeof(struct queue)) + shape.private_bytes);
}

size_t vblk_dma_bytes(const struct vblk_config *config)
{
    struct shape shape;

    shape_of(config, true, &shape);
    return shape.num_queues * shape.dma_bytes;
}

static void *carve(uint8_t **at, size_t bytes)
{
    void *mem = *at;

    *at += ALIGN64(bytes);
    return mem;
}

/* The lists of a queue with nothing in flight. */
static void queue_lists_init(struct queue *q, unsigned pieces)
{
    unsigned i;

    for (i = 0; i < q->nparts; i++)
        q->parts[i].newer = (uint16_t)(i + 1 < q->nparts ? i + 1 : NONE16);
    for (i = 0; i < pieces; i++)
        q->pool[i].next = i + 1 < pieces ? i + 1 : VQ_NO_PIECE;
    q->free_part = 0;
    q->free_piece = 0;
    q->oldest = q->newest = NONE16;
}

static void queue_carve(struct vblk *disk, struct queue *q, unsigned index, const struct shape *shape,
                        uint8_t **at)
{
    q->disk = disk;
    q->index = (uint16_t)index;
    q->nparts = (uint16_t)shape->parts;
    q->parts = carve(at, sizeof(struct part) * shape->parts);
    q->pool = carve(at, sizeof(struct vq_piece) * (size_t)shape->pieces);
    q->vq.pool = q->pool;
    q->vq.chains = carve(at, sizeof(struct vq_chain) * shape->queue_size);
    queue_lists_init(q, shape->pieces);
}

static int queue_dma(struct vblk *disk, struct queue *q, const struct shape *shape, bool with_tables)
{
    size_t bytes = shape->dma_bytes - (with_tables ? 0 : shape->table_bytes * shape->parts);
    size_t at = ALIGN64(shape->ring_bytes);

    q->dma_block = disk->platform->dma_alloc(disk->platform->ctx, bytes, 4096, &q->dma_block_addr);
    if (!q->dma_block)
        return -VBLK_ENOMEM;
    q->dma_block_bytes = bytes;
    q->dma = (struct part_dma *)((uint8_t *)q->dma_block + at);
    q->vq.slots_addr = q->dma_block_addr.value + at;
    at += sizeof(struct part_dma) * shape->parts;
    q->bounce = (uint8_t *)q->dma_block + at;
    q->bounce_addr = q->dma_block_addr.value + at;
    at += BOUNCE_BYTES;
    if (with_tables) {
        q->vq.tables = (uint8_t *)q->dma_block + at;
        q->vq.tables_addr = q->dma_block_addr.value + at;
        q->vq.table_bytes = (uint32_t)shape->table_bytes;
    }
    return 0;
}

static void free_dma(struct vblk *disk)
{
    unsigned i;

    for (i = 0; i < disk->num_queues; i++) {
        struct queue *q = &disk->queues[i];
        if (q->dma_block)
            disk->platform->dma_free(disk->platform->ctx, q->dma_block, q->dma_block_bytes);
        q->dma_block = NULL;
    }
}

/* ---- the steps of 3.1.1 ---- */

void vblk_status_add(struct vblk *disk, uint8_t bits)
{
    /* 2.1.1: no bit is ever cleared, but by a reset */
    disk->vtr->ops->set_status(disk->vtr, vblk_status_get(disk) | bits);
}

/* Step 1. Done only when the status reads 0 (2.4.2). -VBLK_ETIMEDOUT: it never did; -VBLK_ENODEV: all ones,
 * the device is gone. */
int vblk_device_reset(struct vblk *disk)
{
    uint64_t since = vblk_now_ns(disk);
    uint8_t status;

    disk->vtr->ops->set_status(disk->vtr, 0);
    while ((status = vblk_status_get(disk)) != 0) {
        if (status == 0xff)
            return -VBLK_ENODEV;
        if (vblk_waited_too_long(disk, since, disk->deadline_ns))
            return vblk_refuse(disk, -VBLK_ETIMEDOUT, "the device's status never read 0 after a reset");
    }
    return 0;
}

/* Which of the offered features to accept. Reads the configuration where a rule depends on it (3.1.1 allows
 * that). */
static uint64_t acceptable(struct vblk *disk, uint64_t offered)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    uint64_t mine = implemented |
                    (disk->legacy ? implemented_legacy : implemented_modern | (ops->carries & by_transport));
    uint64_t features;

    if (!ops->queue_reset)
        mine &= ~VIRTIO_BIT(VIRTIO_F_RING_RESET);
    if (!disk->config.indirect_segs)
        mine &= ~VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    features = offered & mine & ~disk->config.refuse_features;
    if (!(features & VIRTIO_BIT(VIRTIO_BLK_F_FLUSH)))
        features &= ~VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE); /* 5.2.3.1 */
    /* 5.2.5.1: a host-managed zoned device must not be asked to discard */
    if (ZONES && (features & VIRTIO_BIT(VIRTIO_BLK_F_ZONED)) && ops->config_bytes(disk->vtr) >= 96 &&
        ops->config_read(disk->vtr, offsetof(struct virtio_blk_config, zoned.model), 1) == VIRTIO_BLK_Z_HM)
        features &= ~VIRTIO_BIT(VIRTIO_BLK_F_DISCARD);
    return features;
}

/* Steps 2 to 6 and the reading of the configuration. AGAIN: with the features of the first time, and limits
 * that are no tighter, or not at all. */
int vblk_device_negotiate(struct vblk *disk, bool again)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    struct virtio_blk_config config;
    uint64_t offered;
    int result;

    vblk_status_add(disk, VIRTIO_STATUS_ACKNOWLEDGE);
    vblk_status_add(disk, VIRTIO_STATUS_DRIVER);
    offered = ops->get_features(disk->vtr);
    if (again) {
        if (disk->features & ~offered)
            return vblk_refuse(disk, -VBLK_ENOTSUP,
                               "after a reset the device no longer offers the features in use");
    } else {
        if (!disk->legacy && !(offered & VIRTIO_BIT(VIRTIO_F_VERSION_1)))
            return vblk_refuse(disk, -VBLK_ENOTSUP,
                               "the device does not offer VERSION_1 (use the legacy transport)");
        disk->offered = offered;
        disk->features = acceptable(disk, offered);
    }
    ops->set_features(disk->vtr, disk->features);
    if (!disk->legacy) {
        vblk_status_add(disk, VIRTIO_STATUS_FEATURES_OK);
        if (!(vblk_status_get(disk) & VIRTIO_STATUS_FEATURES_OK))
            return vblk_refuse(disk, -VBLK_ENOTSUP, "the device refused the features");
    }
    result = vblk_config_read(disk, disk->features, &config);
    if (result < 0)
        return vblk_refuse(disk, -VBLK_ENODEV,
                           "the configuration can't be read: too short, or it would not stand still");
    if (again) {
        result = vblk_config_apply_again(disk, &config);
        if (result < 0)
            vblk_say(disk, VBLK_LOG_ERROR, "after a reset the device's block size or limits are others");
        return result;
    }
    disk->device_config = config;
    return vblk_config_apply(disk);
}

/* ---- queues: step 7 ---- */

/* Vector 0 is the configuration's, the others the queues' (4.1.5.1). A device may refuse any of them; what is
 * then left is a vector shared with others, or polling. */
static uint16_t first_vector(const struct vblk *disk, unsigned index, unsigned vectors)
{
    if (disk->config.poll_only || vectors == 0)
        return VTR_NO_VECTOR;
    while (vectors > 1 && index >= vectors - 1)
        index -= vectors - 1;
    return (uint16_t)(vectors == 1 ? 0 : 1 + index);
}

int vblk_queue_enable(struct vblk *disk, struct queue *q)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    unsigned vectors = ops->num_vectors ? ops->num_vectors(disk->vtr) : 0;
    struct vtr_queue enable = {
        .index = q->index,
        .size = q->vq.size,
        .desc = q->vq.addr_desc,
        .driver = q->vq.addr_driver,
        .device = q->vq.addr_device,
        .vector = first_vector(disk, q->index, vectors),
    };
    int result;

    while ((result = ops->queue_enable(disk->vtr, &enable)) == -VBLK_ENOTSUP &&
           enable.vector != VTR_NO_VECTOR) {
        disk->polling |= enable.vector == 0;
        enable.vector = enable.vector ? 0 : VTR_NO_VECTOR;
    }
    return result;
}

int vblk_device_enable_queues(struct vblk *disk)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    unsigned i;
    int result;

    if (ops->set_config_vector && ops->num_vectors && ops->num_vectors(disk->vtr) > 0 &&
        ops->set_config_vector(disk->vtr, 0) < 0)
        vblk_say(disk, VBLK_LOG_WARNING, "no interrupt for changes of the configuration");
    for (i = 0; i < disk->num_queues; i++) {
        result = vblk_queue_enable(disk, &disk->queues[i]);
        if (result < 0) {
            vblk_say(disk, VBLK_LOG_ERROR, "the device would not take a queue");
            return result;
        }
    }
    return 0;
}

/* Step 8. */
void vblk_device_go(struct vblk *disk)
{
    vblk_status_add(disk, VIRTIO_STATUS_DRIVER_OK);
}

/* How many queues, and how large. 2.7: a power of two; a packed ring may have any size. */
static int choose_queues(struct vblk *disk, const struct shape *shape)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    unsigned known = ops->num_queues ? ops->num_queues(disk->vtr) : 0;
    unsigned i, size = shape->queue_size, n = shape->num_queues;

    if (n > disk->device_num_queues)
        n = disk->device_num_queues;
    if (known && n > known)
        n = known;
    for (i = 0; i < n; i++) {
        unsigned max = ops->queue_size_max(disk->vtr, i);
        if (max == 0)
            break;
        if (ops->fixed_queue_size && max > size)
            return vblk_refuse(disk, -VBLK_ENOMEM,
                               "a legacy device's queues have a fixed size: configure at least that many");
        if (max < size || ops->fixed_queue_size)
            size = max;
    }
    if (!disk->packed)
        while (size & (size - 1))
            size &= size - 1;
    if (i == 0 || size < 3)
        return vblk_refuse(disk, -VBLK_ENODEV, "the device has no queue, or none that holds a request");
    disk->num_queues = i;
    disk->queue_size = size;
    return 0;
}

static int setup_queues(struct vblk *disk, const struct shape *shape)
{
    bool tables = has_feature(disk, VIRTIO_F_INDIRECT_DESC);
    unsigned i, pieces = tables ? shape->segs : UINT32_MAX;
    int result;

    /* a chain is no longer than the queue, its table included (2.7.5.3.1, 2.8.19), header and status among it
     */
    if (pieces > disk->queue_size - 2)
        pieces = disk->queue_size - 2;
    if (pieces > disk->seg_max)
        pieces = disk->seg_max;
    if ((uint64_t)pieces * disk->size_max < disk->block_size)
        return vblk_refuse(disk, -VBLK_ENOTSUP,
                           "size_max, seg_max or the queue is too small for even one block");
    for (i = 0; i < disk->num_queues; i++) {
        struct queue *q = &disk->queues[i];
        result = queue_dma(disk, q, shape, tables);
        if (result < 0)
            return result;
        q->guarded = disk->num_queues > 1;
        q->max_pieces = (uint16_t)pieces;
        q->vq.event_idx = has_feature(disk, VIRTIO_F_EVENT_IDX);
        q->vq.in_order = has_feature(disk, VIRTIO_F_IN_ORDER);
        q->vq.order_platform = has_feature(disk, VIRTIO_F_ORDER_PLATFORM);
        q->vq.ignore_len = disk->legacy;
#ifndef VBLK_WITHOUT_PACKED
        if (disk->packed) {
            vq_setup_packed(&q->vq, disk->queue_size, q->vq.chains, q->dma_block, q->dma_block_addr);
            continue;
        }
#endif
        vq_setup_split(&q->vq, disk->queue_size, q->vq.chains, q->dma_block, q->dma_block_addr, disk->legacy);
    }
    return 0;
}

int vblk_start(struct vblk **out, void *memory, size_t memory_bytes, struct vtr *transport,
               const struct vblk_platform *platform, const struct vblk_config *config)
{
    size_t needed = vblk_memory_bytes(config);
    uint8_t *at = memory;
    struct shape shape;
    struct vblk *disk;
    unsigned i;
    int result;

    *out = NULL;
    if (memory_bytes < needed || ((uintptr_t)memory & 63))
        return -VBLK_ENOMEM;
    memset(memory, 0, needed);
    shape_of(config, transport->ops->legacy, &shape);
    disk = carve(&at, sizeof(*disk));
    disk->platform = platform;
    disk->vtr = transport;
    disk->config = *config;
    disk->legacy = transport->ops->legacy;
    disk->deadline_ns = config->deadline_ns ? config->deadline_ns : DEADLINE_DEFAULT_NS;
    disk->queues = (struct queue *)(void *)at;
    at += shape.num_queues * ALIGN64(sizeof(struct queue));
    for (i = 0; i < shape.num_queues; i++)
        queue_carve(disk, &disk->queues[i], i, &shape, &at);

    result = vblk_device_reset(disk);
    if (result < 0)
        return result; /* not ours to set FAILED in: it is gone or deaf */
    result = vblk_device_negotiate(disk, false);
    if (result < 0)
        goto failed;
    disk->packed = has_feature(disk, VIRTIO_F_RING_PACKED);
    result = choose_queues(disk, &shape);
    if (result < 0)
        goto failed;
    result = setup_queues(disk, &shape);
    if (result < 0)
        goto failed_dma;
    result = vblk_device_enable_queues(disk);
    if (result < 0)
        goto failed_queues;
    state_set(disk, DISK_LIVE);
    vblk_device_go(disk);
    *out = disk;
    return 0;

failed_queues:
    /* some are enabled: their memory is ours again once a reset is confirmed, else it is lost (3.3.1) */
    if (vblk_device_reset(disk) == -VBLK_ETIMEDOUT &&
        !(transport->ops->cut_off && transport->ops->cut_off(transport)))
        return result;
failed_dma:
    free_dma(disk);
failed:
    vblk_status_add(disk, VIRTIO_STATUS_FAILED);
    return result;
}

void vblk_stop(struct vblk *disk)
{
    unsigned i;

    if (state_get(disk) != DISK_FAILED)
        vblk_disk_fail(disk, vblk_device_reset(disk));
    for (i = 0; i < disk->num_queues; i++)
        (void)vblk_queue_answer_all(&disk->queues[i]);
    if (!disk->buffers_held)
        free_dma(disk);
}
