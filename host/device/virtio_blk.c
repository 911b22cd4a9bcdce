/*
 * The block device as its transport sees it: features, configuration, reset (virtio 1.4, 5.2.3 to 5.2.5).
 */
#include "host/device/virtio_blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/node.h"
#include "host/device/virtio_blk_internal.h"

/* Ranges of one DISCARD, WRITE_ZEROES or SECURE_ERASE, and the length of each */
#define RANGE_SEGMENTS_MAX 32u
#define RANGE_SECTORS_MAX  (1u << 22)

/* Data segments of a request (header and status not counted), for queues of the usual 128. */
#define SEGMENTS_MAX 126u

static bool power_of_two(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

static int check_options(const struct virtio_blk_options *options, struct error *err)
{
    if (options->num_queues == 0 || options->num_queues > VIRTIO_BLK_QUEUES_MAX)
        return error_set(err, -EINVAL, "%u queues are not possible (1 to %d are)", options->num_queues,
                         VIRTIO_BLK_QUEUES_MAX);
    if (!power_of_two(options->queue_size_max) || options->queue_size_max < 2 ||
        options->queue_size_max > VIRTQUEUE_MAX_SIZE)
        return error_set(err, -EINVAL, "a queue size of %u is not possible (a power of two from 2 to %u is)",
                         options->queue_size_max, VIRTQUEUE_MAX_SIZE);
    if (!power_of_two(options->logical_block_size) || options->logical_block_size < VIRTIO_BLK_SECTOR_BYTES ||
        options->logical_block_size > (1u << 16))
        return error_set(err, -EINVAL,
                         "a logical block size of %u is not possible (a power of two from 512 to 65536 is)",
                         options->logical_block_size);
    if (!power_of_two(options->physical_block_size) ||
        options->physical_block_size < options->logical_block_size ||
        options->physical_block_size > (1u << 21))
        return error_set(
            err, -EINVAL,
            "a physical block size of %u is not possible (a power of two from the logical one to 2 MiB is)",
            options->physical_block_size);
    /* Above these, the values are reserved (5.2.6): never to be sent. */
    if (options->lifetime_pre_eol > 3 || options->lifetime_type_a > 11 || options->lifetime_type_b > 11)
        return error_set(err, -EINVAL, "a lifetime of %u,%u,%u is not possible (at most 3,11,11)",
                         options->lifetime_pre_eol, options->lifetime_type_a, options->lifetime_type_b);
    return 0;
}

/* Whole logical blocks only. */
static void update_capacity(struct virtio_blk *device)
{
    uint64_t block = device->options.logical_block_size;
    uint64_t sectors = blk_length(device->blk) / block * (block / VIRTIO_BLK_SECTOR_BYTES);

    /* Zones are laid out once; their disk does not grow. */
    if (device->zoned && sectors > device->capacity_sectors)
        return;
    __atomic_store_n(&device->capacity_sectors, sectors, __ATOMIC_RELAXED);
}

static void on_resize(void *opaque)
{
    struct virtio_blk *device = opaque;

    update_capacity(device);
    if (device->events.config_changed)
        device->events.config_changed(device->events.opaque);
}

static unsigned log2_of(uint32_t n)
{
    return (unsigned)__builtin_ctz(n);
}

/* The part of the configuration that stays: limits are never 0 where their feature can be offered (5.2.4). */
static void fill_config(struct virtio_blk *device)
{
    const struct virtio_blk_options *options = &device->options;
    const struct node_limits *limits = &blk_node(device->blk)->limits;
    struct virtio_blk_config *config = &device->config;
    uint32_t block_sectors = options->logical_block_size / VIRTIO_BLK_SECTOR_BYTES;
    uint32_t discard_alignment = limits->pdiscard_alignment / VIRTIO_BLK_SECTOR_BYTES;
    unsigned segments = options->queue_size_max > 2 ? options->queue_size_max - 2 : 1;

    config->seg_max = le32_put(segments < SEGMENTS_MAX ? segments : SEGMENTS_MAX);
    config->blk_size = le32_put(options->logical_block_size);
    config->topology.physical_block_exp =
        (uint8_t)(log2_of(options->physical_block_size) - log2_of(options->logical_block_size));
    config->topology.min_io_size =
        le16_put((uint16_t)(options->physical_block_size / options->logical_block_size));
    config->num_queues = le16_put((uint16_t)options->num_queues);
    config->max_discard_sectors = le32_put(RANGE_SECTORS_MAX);
    config->max_discard_seg = le32_put(RANGE_SEGMENTS_MAX);
    config->discard_sector_alignment =
        le32_put(discard_alignment > block_sectors ? discard_alignment : block_sectors);
    config->max_write_zeroes_sectors = le32_put(RANGE_SECTORS_MAX);
    config->max_write_zeroes_seg = le32_put(RANGE_SEGMENTS_MAX);
    config->write_zeroes_may_unmap = options->discard;
    if (device->zoned) {
        config->zoned.zone_sectors = le32_put(options->zoned.zone_sectors);
        config->zoned.max_open_zones = le32_put(options->zoned.max_open_zones);
        config->zoned.max_active_zones = le32_put(options->zoned.max_active_zones);
        config->zoned.max_append_sectors = le32_put(options->zoned.max_append_sectors);
        config->zoned.write_granularity = le32_put(options->logical_block_size);
        config->zoned.model = VIRTIO_BLK_Z_HM;
    }
    if (options->secure_erase) {
        config->max_secure_erase_sectors = le32_put(RANGE_SECTORS_MAX);
        config->max_secure_erase_seg = le32_put(RANGE_SEGMENTS_MAX);
        config->secure_erase_sector_alignment = le32_put(block_sectors);
    }
}

struct virtio_blk *virtio_blk_create(struct blk *blk, const struct virtio_blk_options *options,
                                     struct error *err)
{
    const struct node_limits *limits = &blk_node(blk)->limits;
    struct virtio_blk *device;

    if (check_options(options, err) < 0)
        return NULL;
    device = calloc(1, sizeof(*device));
    if (!device)
        goto no_memory;
    device->blk = blk;
    device->options = *options;
    device->merge_max_iov =
        limits->max_iov && limits->max_iov < VIRTQ_IOV_MAX ? limits->max_iov : VIRTQ_IOV_MAX;
    device->merge_max_bytes = limits->max_transfer && limits->max_transfer < MULTIREQ_MAX_BYTES
                                  ? limits->max_transfer
                                  : MULTIREQ_MAX_BYTES;
    device->queues = aligned_alloc(CACHE_LINE, options->num_queues * sizeof(*device->queues));
    if (!device->queues)
        goto no_memory;
    memset(device->queues, 0, options->num_queues * sizeof(*device->queues));
    for (unsigned i = 0; i < options->num_queues; i++)
        virtio_blk_queue_init(device, i);
    update_capacity(device);
    if (options->zoned.zone_sectors) {
        device->zoned = zoned_create(&options->zoned, device->capacity_sectors,
                                     options->logical_block_size / VIRTIO_BLK_SECTOR_BYTES,
                                     options->num_queues, options->queue_size_max, err);
        if (!device->zoned) {
            free(device->queues);
            free(device);
            return NULL;
        }
    }
    fill_config(device);
    virtio_blk_reset(device);
    blk_on_resize(blk, on_resize, device);
    return device;

no_memory:
    if (device)
        free(device->queues);
    free(device);
    error_set(err, -ENOMEM, "no memory for a device of %u queues", options->num_queues);
    return NULL;
}

void virtio_blk_destroy(struct virtio_blk *device)
{
    if (!device)
        return;
    blk_on_resize(device->blk, NULL, NULL);
    for (unsigned i = 0; i < device->options.num_queues; i++)
        virtio_blk_queue_free(&device->queues[i]);
    zoned_destroy(device->zoned);
    free(device->queues);
    free(device);
}

uint64_t virtio_blk_device_features(const struct virtio_blk *device)
{
    uint64_t features = VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) |
                        VIRTIO_BIT(VIRTIO_F_EVENT_IDX) | VIRTIO_BIT(VIRTIO_F_RING_PACKED) |
                        VIRTIO_BIT(VIRTIO_F_IN_ORDER) | VIRTIO_BIT(VIRTIO_F_ORDER_PLATFORM) |
                        VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) | VIRTIO_BIT(VIRTIO_F_RING_RESET) |
                        VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX) | VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE) |
                        VIRTIO_BIT(VIRTIO_BLK_F_TOPOLOGY) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                        VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE) | VIRTIO_BIT(VIRTIO_BLK_F_MQ);

    if (blk_read_only(device->blk))
        features |= VIRTIO_BIT(VIRTIO_BLK_F_RO);
    if (device->zoned) {
        /* Ranges of any place and length are not for zones that are written in order. */
        features |= VIRTIO_BIT(VIRTIO_BLK_F_ZONED);
    } else if (!blk_read_only(device->blk)) {
        features |= VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES);
        if (device->options.discard)
            features |= VIRTIO_BIT(VIRTIO_BLK_F_DISCARD);
        if (device->options.secure_erase)
            features |= VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE);
    }
    if (device->options.lifetime)
        features |= VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME);
    features &= ~device->options.features_off;
    /* What needs a feature that is off is off as well (2.2.2, 5.2.5.2). */
    if (!(features & VIRTIO_BIT(VIRTIO_BLK_F_FLUSH)))
        features &= ~VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE);
    return features;
}

/* 5.2.6.2: write-back is allowed with FLUSH alone, and as `writeback` says with CONFIG_WCE; a driver with
 * neither counts on every write being durable. */
static void apply_write_cache(struct virtio_blk *device)
{
    bool on = device->features & VIRTIO_BIT(VIRTIO_BLK_F_FLUSH);

    if (device->features & VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE))
        on = __atomic_load_n(&device->writeback, __ATOMIC_RELAXED);
    blk_set_write_cache(device->blk, on);
}

int virtio_blk_set_features(struct virtio_blk *device, uint64_t features)
{
    if (features & ~virtio_blk_device_features(device))
        return -EINVAL;
    /* 5.2.5.2: a host-managed disk is not for a driver that knows nothing of zones. */
    if (device->zoned && !(features & VIRTIO_BIT(VIRTIO_BLK_F_ZONED)))
        return -EINVAL;
    device->features = features;
    /* 5.2.5.2: with CONFIG_WCE but without FLUSH the cache starts as write-through. */
    if (features & VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE))
        __atomic_store_n(&device->writeback,
                         (features & VIRTIO_BIT(VIRTIO_BLK_F_FLUSH)) &&
                             device->writeback_written != WRITEBACK_OFF,
                         __ATOMIC_RELAXED);
    apply_write_cache(device);
    return 0;
}

void virtio_blk_config_read(struct virtio_blk *device, uint32_t offset, void *buf, uint32_t bytes)
{
    struct virtio_blk_config config = device->config;
    uint8_t *to = buf;

    config.capacity = le64_put(__atomic_load_n(&device->capacity_sectors, __ATOMIC_RELAXED));
    config.writeback = __atomic_load_n(&device->writeback, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < bytes; i++)
        to[i] = offset < sizeof(config) && i < sizeof(config) - offset
                    ? ((const uint8_t *)&config)[offset + i]
                    : 0;
}

int virtio_blk_config_write(struct virtio_blk *device, uint32_t offset, const void *buf, uint32_t bytes)
{
    uint8_t value;

    if (offset != offsetof(struct virtio_blk_config, writeback) || bytes != 1 ||
        !(device->features & VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE)))
        return -EINVAL;
    memcpy(&value, buf, 1);
    __atomic_store_n(&device->writeback, value != 0, __ATOMIC_RELAXED);
    device->writeback_written = value ? WRITEBACK_ON : WRITEBACK_OFF;
    apply_write_cache(device);
    for (unsigned i = 0; i < device->options.num_queues; i++) {
        struct virtio_blk_queue *queue = &device->queues[i];

        if (__atomic_load_n(&queue->state, __ATOMIC_ACQUIRE) != QUEUE_STOPPED && queue->track_inflight)
            ring_inflight_note_write_through(&queue->inflight, !value);
    }
    return 0;
}

void virtio_blk_share_cache_mode(struct virtio_blk *device, struct virtio_blk_queue *queue)
{
    struct ring_inflight *inflight = &queue->inflight;

    if (device->writeback_written == WRITEBACK_NOT_WRITTEN && !inflight->fresh &&
        ring_inflight_write_through(inflight)) {
        device->writeback_written = WRITEBACK_OFF;
        __atomic_store_n(&device->writeback, 0, __ATOMIC_RELAXED);
        apply_write_cache(device);
    }
    ring_inflight_note_write_through(inflight, device->writeback_written == WRITEBACK_OFF);
}

void virtio_blk_set_events(struct virtio_blk *device, const struct virtio_blk_events *events)
{
    device->events = events ? *events : (struct virtio_blk_events){0};
}

bool virtio_blk_needs_reset(const struct virtio_blk *device)
{
    return __atomic_load_n(&device->broken, __ATOMIC_RELAXED);
}

void virtio_blk_reset(struct virtio_blk *device)
{
    device->features = 0;
    __atomic_store_n(&device->writeback, device->writeback_written != WRITEBACK_OFF, __ATOMIC_RELAXED);
    __atomic_store_n(&device->broken, 0, __ATOMIC_RELAXED);
    /* Until something is negotiated a driver may count on nothing but durable writes. */
    blk_set_write_cache(device->blk, false);
}

void virtio_blk_forget_driver(struct virtio_blk *device)
{
    device->writeback_written = WRITEBACK_NOT_WRITTEN;
    virtio_blk_reset(device);
}

void virtio_blk_resume(struct virtio_blk *device)
{
    /* A queue that is not running has nothing parked; its loop is known once it was started. */
    for (unsigned i = 0; i < device->options.num_queues; i++)
        if (__atomic_load_n(&device->queues[i].state, __ATOMIC_ACQUIRE) == QUEUE_RUNNING)
            loop_bh_schedule(&device->queues[i].resume);
}
