/*
 * The device's configuration (virtio 1.4, 2.5, 5.2.4): read under its generation, checked, and turned into
 * limits.
 *
 * What always holds: a field is read only if its feature is there (2.5.1); reading ends after a bounded
 * number of tries; nothing in it is believed before it was checked.
 */
#include "guest/driver/vblk_internal.h"

#define GENERATION_TRIES 16
#define BLOCK_SIZE_MAX   65536u

#define ALWAYS 0xff

uint64_t vblk_now_ns(const struct vblk *disk)
{
    return disk->platform->now_ns(disk->platform->ctx);
}

void vblk_relax(const struct vblk *disk)
{
    if (disk->platform->relax)
        disk->platform->relax(disk->platform->ctx);
}

#ifndef VBLK_WITHOUT_MESSAGES
void vblk_say(const struct vblk *disk, enum vblk_log_level level, const char *text)
{
    if (disk->platform->log)
        disk->platform->log(disk->platform->ctx, level, text);
}

int vblk_refuse(const struct vblk *disk, int error, const char *text)
{
    vblk_say(disk, VBLK_LOG_ERROR, text);
    return error;
}
#endif

uint8_t vblk_status_get(const struct vblk *disk)
{
    return disk->vtr->ops->get_status(disk->vtr);
}

bool vblk_waited_too_long(const struct vblk *disk, uint64_t since, uint64_t limit)
{
    if (vblk_now_ns(disk) - since >= limit)
        return true;
    vblk_relax(disk);
    return false;
}

/* Fields, by natural width; 64 bits are two halves (2.5.1) */
static const struct {
    uint8_t offset, width, feature;
} fields[] = {
    {0, 4, ALWAYS},
    {4, 4, ALWAYS},
    {8, 4, VIRTIO_BLK_F_SIZE_MAX},
    {12, 4, VIRTIO_BLK_F_SEG_MAX},
    {16, 2, VIRTIO_BLK_F_GEOMETRY},
    {18, 1, VIRTIO_BLK_F_GEOMETRY},
    {19, 1, VIRTIO_BLK_F_GEOMETRY},
    {20, 4, VIRTIO_BLK_F_BLK_SIZE},
    {24, 1, VIRTIO_BLK_F_TOPOLOGY},
    {25, 1, VIRTIO_BLK_F_TOPOLOGY},
    {26, 2, VIRTIO_BLK_F_TOPOLOGY},
    {28, 4, VIRTIO_BLK_F_TOPOLOGY},
    {32, 1, VIRTIO_BLK_F_CONFIG_WCE},
    {34, 2, VIRTIO_BLK_F_MQ},
    {36, 4, VIRTIO_BLK_F_DISCARD},
    {40, 4, VIRTIO_BLK_F_DISCARD},
    {44, 4, VIRTIO_BLK_F_DISCARD},
    {48, 4, VIRTIO_BLK_F_WRITE_ZEROES},
    {52, 4, VIRTIO_BLK_F_WRITE_ZEROES},
    {56, 1, VIRTIO_BLK_F_WRITE_ZEROES},
    {60, 4, VIRTIO_BLK_F_SECURE_ERASE},
    {64, 4, VIRTIO_BLK_F_SECURE_ERASE},
    {68, 4, VIRTIO_BLK_F_SECURE_ERASE},
    {72, 4, VIRTIO_BLK_F_ZONED},
    {76, 4, VIRTIO_BLK_F_ZONED},
    {80, 4, VIRTIO_BLK_F_ZONED},
    {84, 4, VIRTIO_BLK_F_ZONED},
    {88, 4, VIRTIO_BLK_F_ZONED},
    {92, 1, VIRTIO_BLK_F_ZONED},
};

static void read_once(struct vblk *disk, uint64_t features, unsigned bytes, uint8_t *to)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    unsigned i, k;

    for (i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint32_t value;
        if (fields[i].feature != ALWAYS && !(features & VIRTIO_BIT(fields[i].feature)))
            continue;
        if (fields[i].offset + fields[i].width > bytes)
            continue; /* a short configuration space reads as zero there */
        value = ops->config_read(disk->vtr, fields[i].offset, fields[i].width);
        for (k = 0; k < fields[i].width; k++)
            to[fields[i].offset + k] = (uint8_t)(value >> (8 * k));
    }
}

static bool same(const uint8_t *a, const uint8_t *b, size_t n)
{
    while (n && *a == *b)
        a++, b++, n--;
    return n == 0;
}

/* Reads the fields of FEATURES until nothing changed meanwhile: the generation is the same before and after,
 * or, with a legacy device that has none, two readings agree (2.5.1, 2.5.4). -VBLK_EIO if it never stands
 * still, -VBLK_ENODEV if there is not even a capacity. */
int vblk_config_read(struct vblk *disk, uint64_t features, struct virtio_blk_config *config)
{
    const struct vtr_ops *ops = disk->vtr->ops;
    unsigned bytes = ops->config_bytes(disk->vtr), tries;
    uint8_t before[sizeof(*config)], *now = (uint8_t *)config;

    if (bytes < sizeof(config->capacity))
        return -VBLK_ENODEV;
    memset(now, 0, sizeof(*config));
    for (tries = 0; tries < GENERATION_TRIES; tries++) {
        uint32_t generation = disk->legacy ? 0 : ops->config_generation(disk->vtr);
        memcpy(before, now, sizeof(before));
        read_once(disk, features, bytes, now);
        if (disk->legacy ? tries && same(now, before, sizeof(before))
                         : ops->config_generation(disk->vtr) == generation)
            return 0;
    }
    return -VBLK_EIO;
}

/* Whole blocks, and such that sector * 512 fits 64 bits. */
uint64_t vblk_capacity_of(const struct vblk *disk, const struct virtio_blk_config *config)
{
    uint64_t sectors = le64_get(config->capacity);

    if (sectors > UINT64_MAX / VIRTIO_BLK_SECTOR_BYTES)
        sectors = UINT64_MAX / VIRTIO_BLK_SECTOR_BYTES;
    return sectors & ~(uint64_t)(disk->sectors_per_block - 1);
}

static uint32_t block_size_of(const struct vblk *disk, const struct virtio_blk_config *config)
{
    if (!has_feature(disk, VIRTIO_BLK_F_BLK_SIZE))
        return VIRTIO_BLK_SECTOR_BYTES;
    return le32_get(config->blk_size);
}

/* Most sectors of one range, in whole blocks and, if they are not larger than that, whole alignment units. 0:
 * the device can't be asked. A limit of zero says just that (5.2.4), and so do fields without their feature.
 */
static void limits_set(struct vblk *disk, const struct virtio_blk_config *config)
{
    unsigned i;

    for (i = 0; i < 3; i++) { /* DISCARD, WRITE_ZEROES, SECURE_ERASE: three fields each */
        const le32 *field =
            (const le32 *)((const void *)((const uint8_t *)config +
                                          offsetof(struct virtio_blk_config, max_discard_sectors) + 12 * i));
        uint32_t alignment = i == 1 ? 0 : le32_get(field[2]); /* there it says something else */
        struct limits *limits = &disk->limits[i];
        limits->max_sectors = le32_get(field[1]) ? le32_get(field[0]) & ~(disk->sectors_per_block - 1) : 0;
        limits->alignment = 0;
        if (!(alignment & (alignment - 1)) && alignment >= disk->sectors_per_block &&
            alignment <= limits->max_sectors)
            limits->alignment = alignment;
    }
}
_Static_assert(offsetof(struct virtio_blk_config, max_write_zeroes_sectors) ==
                   offsetof(struct virtio_blk_config, max_discard_sectors) + 12,
               "5.2.4");
_Static_assert(offsetof(struct virtio_blk_config, max_secure_erase_sectors) ==
                   offsetof(struct virtio_blk_config, max_discard_sectors) + 24,
               "5.2.4");

/* 5.2.5.1: with CONFIG_WCE the field says it; FLUSH alone means write-back; neither means write-through */
static void write_cache_set(struct vblk *disk, const struct virtio_blk_config *config)
{
    bool on = has_feature(disk, VIRTIO_BLK_F_CONFIG_WCE) ? config->writeback != 0 : disk->has_flush;

    __atomic_store_n(&disk->write_cache, on, __ATOMIC_RELAXED);
}

/* Turns the configuration into limits. -VBLK_ENOTSUP if no request could be made under them. */
int vblk_config_apply(struct vblk *disk)
{
    const struct virtio_blk_config *config = &disk->device_config;
    uint32_t block = block_size_of(disk, config);

    if (block < VIRTIO_BLK_SECTOR_BYTES || block > BLOCK_SIZE_MAX || (block & (block - 1)))
        return vblk_refuse(disk, -VBLK_ENOTSUP, "blk_size is not a power of two from 512 to 65536");
    disk->block_size = block;
    disk->sectors_per_block = block / VIRTIO_BLK_SECTOR_BYTES;
    disk->part_bytes_max = PART_BYTES_MAX & ~(block - 1);
    for (disk->block_shift = 9; block > VIRTIO_BLK_SECTOR_BYTES; block >>= 1)
        disk->block_shift++;
    capacity_set(disk, vblk_capacity_of(disk, config));
    if (capacity_get(disk) != le64_get(config->capacity))
        vblk_say(disk, VBLK_LOG_WARNING, "capacity is not a number of whole blocks: the rest is not used");

    /* Fields without their feature are 0 here. size_max 0 means no limit, seg_max 0 one segment: the text
     * leaves both open. */
    disk->size_max = le32_get(config->size_max);
    if (disk->size_max == 0 || disk->size_max > PART_BYTES_MAX)
        disk->size_max = PART_BYTES_MAX;
    disk->seg_max = has_feature(disk, VIRTIO_BLK_F_SEG_MAX) ? le32_get(config->seg_max) : UINT32_MAX;
    if (disk->seg_max == 0)
        disk->seg_max = 1;

    limits_set(disk, config);
    disk->device_num_queues = le16_get(config->num_queues);
    if (disk->device_num_queues == 0)
        disk->device_num_queues = 1;
    disk->serial_writes = ZONES && config->zoned.model == VIRTIO_BLK_Z_HM;
#ifndef __OPTIMIZE_SIZE__
    disk->short_bytes_max = disk->size_max < disk->part_bytes_max ? disk->size_max : disk->part_bytes_max;
    disk->short_op_max = has_feature(disk, VIRTIO_BLK_F_RO) || disk->serial_writes ? VBLK_READ : VBLK_WRITE;
#endif
    disk->has_flush = has_feature(disk, VIRTIO_BLK_F_FLUSH);
    write_cache_set(disk, config);
    return 0;
}

/* After a reset: submitters of other queues use the limits at this very moment, so they must be the same as
 * before; only what may change at any time is taken over. -VBLK_ENOTSUP if they are not. */
int vblk_config_apply_again(struct vblk *disk, const struct virtio_blk_config *config)
{
    static const struct {
        uint8_t from, to;
    } limits[] = {
        {8, 16}, {20, 24}, {36, 56}, {60, 93}}; /* all but capacity, geometry, topology, cache, queues */
    const uint8_t *now = (const uint8_t *)config, *before = (const uint8_t *)&disk->device_config;
    unsigned i;

    for (i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
        if (!same(now + limits[i].from, before + limits[i].from, limits[i].to - limits[i].from))
            return -VBLK_ENOTSUP;
    capacity_set(disk, vblk_capacity_of(disk, config));
    write_cache_set(disk, config);
    return 0;
}

/* A configuration change was announced, or may have been missed: capacity again (5.2.6.1), and whether the
 * device wants a reset (3.2.1). Called under `control`. Limits are not changed under requests in flight: the
 * specification lets a device change its capacity, and nothing else that is used here. */
void vblk_config_refresh(struct vblk *disk)
{
    struct virtio_blk_config config;
    uint8_t status = vblk_status_get(disk);
    uint64_t before = capacity_get(disk), sectors;

    if (status & VIRTIO_STATUS_DEVICE_NEEDS_RESET) /* gone devices read 0xff and are found by the recovery */
        __atomic_store_n(&disk->needs_reset, 1, __ATOMIC_RELEASE);
    if (status == 0xff || !(status & VIRTIO_STATUS_DRIVER_OK))
        return;
    if (vblk_config_read(disk, disk->features, &config) < 0) {
        vblk_say(disk, VBLK_LOG_WARNING,
                 "the configuration would not stand still: the capacity stays as it was");
        return;
    }
    sectors = vblk_capacity_of(disk, &config);
    if (sectors == before)
        return;
    capacity_set(disk, sectors);
    if (disk->capacity_callback)
        disk->capacity_callback(disk->capacity_opaque, sectors);
}

void vblk_config_changed(struct vblk *disk)
{
    /* If somebody holds `control` now, the next poll looks at this flag. */
    __atomic_store_n(&disk->config_pending, 1, __ATOMIC_SEQ_CST);
    if (state_get(disk) != DISK_LIVE || !control_try(disk))
        return;
    if (__atomic_exchange_n(&disk->config_pending, 0, __ATOMIC_SEQ_CST))
        vblk_config_refresh(disk);
    control_release(disk);
}

bool vblk_interrupt(struct vblk *disk)
{
    uint8_t kinds = disk->vtr->ops->interrupt_status(disk->vtr);

    if (kinds & VTR_INTERRUPT_CONFIG)
        vblk_config_changed(disk);
    return (kinds & VTR_INTERRUPT_QUEUES) != 0;
}

void vblk_on_capacity_change(struct vblk *disk, void (*callback)(void *opaque, uint64_t capacity_sectors),
                             void *opaque)
{
    disk->capacity_callback = callback;
    disk->capacity_opaque = opaque;
}

static uint32_t times_block(const struct vblk *disk, uint32_t n)
{
    return n > UINT32_MAX >> disk->block_shift ? UINT32_MAX & ~(disk->block_size - 1)
                                               : n << disk->block_shift;
}

void vblk_info(const struct vblk *disk, struct vblk_info *info)
{
    const struct virtio_blk_config *config = &disk->device_config;

    memset(info, 0, sizeof(*info));
    info->features = disk->features;
    info->device_features = disk->offered;
    info->capacity_sectors = capacity_get(disk);
    info->block_size = disk->block_size;
    info->physical_block_size = disk->block_size;
    if (has_feature(disk, VIRTIO_BLK_F_TOPOLOGY)) {
        if (config->topology.physical_block_exp + disk->block_shift < 32)
            info->physical_block_size = disk->block_size << config->topology.physical_block_exp;
        info->min_io_size = times_block(disk, le16_get(config->topology.min_io_size));
        info->opt_io_size = times_block(disk, le32_get(config->topology.opt_io_size));
    }
    info->size_max = disk->size_max;
    info->seg_max = disk->seg_max;
    info->num_queues = disk->num_queues;
    info->queue_size = disk->queue_size;
    info->device_num_queues = disk->device_num_queues;
    info->read_only = has_feature(disk, VIRTIO_BLK_F_RO);
    info->write_cache = __atomic_load_n(&disk->write_cache, __ATOMIC_RELAXED) != 0;
    info->failed = state_get(disk) == DISK_FAILED;
    info->packed_ring = disk->packed;
    info->polling = disk->config.poll_only || disk->polling;
    info->recoveries = disk->recoveries;
    info->config = *config;
    info->config.capacity = le64_put(info->capacity_sectors);
    if (has_feature(disk, VIRTIO_BLK_F_CONFIG_WCE))
        info->config.writeback = info->write_cache;
}
