/*
 * The block device apart from its rings: features, configuration, capacity, cache mode, options.
 */
#include "host/device/ring_inflight.h"
#include "tests/unit/virtio_blk_layouts.h"

static void checklist_15_17_257_258_259_274_only_known_features_are_offered(void **state)
{
    const uint64_t known = BIT(INDIRECT_DESC) | BIT(EVENT_IDX) | BIT(VERSION_1) | BIT(ACCESS_PLATFORM) |
                           BIT(RING_PACKED) | BIT(IN_ORDER) | BIT(ORDER_PLATFORM) | BIT(RING_RESET) | all_blk;

    for (unsigned i = 0; i < 16; i++) {
        uint64_t offered;

        start(state, (struct rig_options){
                         .read_only = i & 1,
                         .device = {.secure_erase = i & 2, .features_off = i & 4 ? BLK(FLUSH) : 0}});
        offered = virtio_blk_device_features(rig.device);
        assert_int_equal(offered & ~known, 0);
        assert_true(offered & BIT(VERSION_1)); /* 257 */
        if (offered & BLK(CONFIG_WCE))
            assert_true(offered & BLK(FLUSH)); /* 15, 274 */
        if (!(i & 4))
            assert_true(offered & BLK(FLUSH));
        assert_int_equal(!!(offered & BLK(RO)), i & 1);
        rig_fini();
    }
}

/* 326: whether write-zeroes may give space back is told as it is. 257: VERSION_1 is always there. */
static void checklist_326_may_unmap_is_told(void **state)
{
    for (unsigned discard = 0; discard < 2; discard++) {
        const struct virtio_blk_options options = {.num_queues = 1,
                                                   .queue_size_max = 128,
                                                   .logical_block_size = 512,
                                                   .physical_block_size = 512,
                                                   .discard = discard};
        struct virtio_blk_config config;
        struct virtio_blk *device;

        start(state, (struct rig_options){.no_start = true});
        device = virtio_blk_create((struct blk *)&fake, &options, NULL);
        virtio_blk_config_read(device, 0, &config, sizeof(config));
        assert_int_equal(config.write_zeroes_may_unmap, discard);
        assert_int_equal(!!(virtio_blk_device_features(device) & BLK(DISCARD)), discard);
        assert_true(virtio_blk_device_features(device) & BLK(WRITE_ZEROES));
        assert_true(virtio_blk_device_features(device) & BIT(VERSION_1));
        virtio_blk_destroy(device);
        rig_fini();
    }
}

/* 8, 22: nothing of the negotiation is left after a reset (the cache mode is none of it: see 328). */
static void checklist_22_30_a_reset_forgets_the_negotiation(void **state)
{
    struct virtio_blk_config config;

    start(state, (struct rig_options){0});
    assert_int_equal(virtio_blk_config_write(rig.device, 32, "\0", 1), 0);
    rig_stop(0);
    virtio_blk_reset(rig.device);
    assert_false(fake.write_cache);
    virtio_blk_config_read(rig.device, 0, &config, sizeof(config));
    assert_int_equal(config.writeback, 0);
    assert_int_equal(virtio_blk_config_write(rig.device, 32, "\0", 1), -EINVAL);
    virtio_blk_forget_driver(rig.device);
    virtio_blk_config_read(rig.device, 0, &config, sizeof(config));
    assert_int_equal(config.writeback, 1);
    rig_fini();
}

static void checklist_16_18_19_sets_of_features(void **state)
{
    uint64_t offered;

    start(state, (struct rig_options){.no_start = true});
    offered = virtio_blk_device_features(rig.device);
    for (unsigned round = 0; round < 3; round++)
        for (unsigned bit = 0; bit < 64; bit++) {
            virtio_blk_reset(rig.device);
            if (offered & VIRTIO_BIT(bit))
                assert_int_equal(virtio_blk_set_features(rig.device, offered & ~VIRTIO_BIT(bit)), 0);
            else
                assert_int_equal(virtio_blk_set_features(rig.device, offered | VIRTIO_BIT(bit)), -EINVAL);
        }
    rig_fini();
}

static struct virtio_blk_config config_of(void)
{
    struct virtio_blk_config config;

    virtio_blk_config_read(rig.device, 0, &config, sizeof(config));
    return config;
}

static void checklist_263_276_configuration(void **state)
{
    struct virtio_blk_config config;
    uint8_t bytes[300];

    start(state,
          (struct rig_options){
              .num_queues = 3,
              .device = {.logical_block_size = 4096, .physical_block_size = 16384, .secure_erase = true}});
    config = config_of();
    assert_int_equal(le64_get(config.capacity), DISK_BYTES / 512); /* sectors of 512, whatever blk_size is */
    assert_int_equal(le32_get(config.blk_size), 4096);
    assert_int_equal(config.topology.physical_block_exp, 2);
    assert_int_equal(le16_get(config.num_queues), 3);
    assert_true(le32_get(config.seg_max) > 0);
    assert_int_equal(le32_get(config.discard_sector_alignment), 8);
    assert_true(le32_get(config.max_discard_sectors) > 0 && le32_get(config.max_discard_seg) > 0);
    assert_true(le32_get(config.max_write_zeroes_sectors) > 0 && le32_get(config.max_write_zeroes_seg) > 0);
    assert_true(le32_get(config.max_secure_erase_sectors) > 0 && le32_get(config.max_secure_erase_seg) > 0);
    assert_int_equal(config.write_zeroes_may_unmap, 1);
    assert_int_equal(config.unused0, 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(config.unused1[i], 0);
        assert_int_equal(config.zoned.unused2[i], 0);
    }
    /* Any offset and length: the same bytes, zeroes behind the end. */
    for (unsigned offset = 0; offset < 120; offset++) {
        memset(bytes, 0xff, sizeof(bytes));
        virtio_blk_config_read(rig.device, offset, bytes, sizeof(bytes));
        for (unsigned i = 0; i < sizeof(bytes); i++)
            assert_int_equal(bytes[i], offset + i < sizeof(config) ? ((uint8_t *)&config)[offset + i] : 0);
    }
    virtio_blk_config_read(rig.device, UINT32_MAX, bytes, 8);
    assert_int_equal(bytes[0], 0);
    rig_fini();
}

static void a_tail_that_is_no_whole_block_is_not_offered(void **state)
{
    start(state, (struct rig_options){.device = {.logical_block_size = 4096}});
    fake.length = 4096 * 10 + 4095;
    fake.resized(fake.resized_opaque);
    assert_int_equal(le64_get(config_of().capacity), 80);
    rig_fini();
}

static void checklist_320_a_change_of_capacity_is_announced(void **state)
{
    uint64_t data;

    start(state, (struct rig_options){0});
    data = rig_alloc(512, 512);
    fake.length = 1 << 20;
    fake.resized(fake.resized_opaque);
    assert_int_equal(rig.config_changes, 1);
    assert_int_equal(le64_get(config_of().capacity), 2048);
    assert_int_equal(simple(VIRTIO_BLK_T_IN, 2047, data, 512, true, NULL), 0);
    assert_int_equal(simple(VIRTIO_BLK_T_IN, 2048, data, 512, true, NULL), VIRTIO_BLK_S_IOERR);
    rig_fini();
}

/* 275, 327, 328: when a write has to be durable before it completes. */
static void checklist_275_327_328_write_cache(void **state)
{
    const uint8_t zero = 0, one = 1, more = 0x82;
    const uint32_t at = offsetof(struct virtio_blk_config, writeback);

    start(state, (struct rig_options){.no_start = true});
    virtio_blk_reset(rig.device);
    assert_false(fake.write_cache);
    assert_int_equal(virtio_blk_set_features(rig.device, BIT(VERSION_1)), 0);
    assert_false(fake.write_cache); /* neither: every write counts */
    assert_int_equal(virtio_blk_config_write(rig.device, at, &one, 1), -EINVAL);
    virtio_blk_reset(rig.device);
    assert_int_equal(virtio_blk_set_features(rig.device, BIT(VERSION_1) | BLK(FLUSH)), 0);
    assert_true(fake.write_cache);
    virtio_blk_reset(rig.device);
    assert_int_equal(virtio_blk_set_features(rig.device, BIT(VERSION_1) | BLK(CONFIG_WCE)), 0);
    assert_int_equal(config_of().writeback, 0);
    assert_false(fake.write_cache);
    virtio_blk_reset(rig.device);
    assert_int_equal(config_of().writeback, 1); /* readable before negotiation (30) */
    assert_int_equal(virtio_blk_set_features(rig.device, BIT(VERSION_1) | BLK(CONFIG_WCE) | BLK(FLUSH)), 0);
    assert_int_equal(config_of().writeback, 1);
    assert_true(fake.write_cache);
    assert_int_equal(virtio_blk_config_write(rig.device, at, &zero, 1), 0);
    assert_int_equal(config_of().writeback, 0);
    assert_false(fake.write_cache);
    assert_int_equal(virtio_blk_config_write(rig.device, at, &more, 1), 0); /* D5 */
    assert_int_equal(config_of().writeback, 1);
    assert_true(fake.write_cache);
    /* Nothing else can be written. */
    for (uint32_t offset = 0; offset < 300; offset++)
        for (uint32_t bytes = 0; bytes < 9; bytes++)
            if (offset != at || bytes != 1)
                assert_int_equal(virtio_blk_config_write(rig.device, offset, "\0\0\0\0\0\0\0\0", bytes),
                                 -EINVAL);
    rig_fini();
}

/* 328: a front end that stops the guest for a while resets the device; the driver still counts on what it
 * wrote. After a restart it is the inflight region that knows. */
static void checklist_328_write_through_outlives_reset_and_restart(void **state)
{
    const uint64_t features = BIT(VERSION_1) | BLK(CONFIG_WCE) | BLK(FLUSH);
    const uint32_t at = offsetof(struct virtio_blk_config, writeback);
    const uint8_t off = 0, on = 1;

    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t negotiated = features | (packed ? BIT(RING_PACKED) : 0);
        size_t bytes = ring_inflight_bytes(packed, 64);

        start(state, (struct rig_options){.no_start = true, .features = negotiated});
        rig.setup[0].inflight = ptr(rig_alloc(bytes, 64));
        rig.setup[0].inflight_bytes = bytes;
        assert_int_equal(rig_start(0), 0);
        assert_true(fake.write_cache);
        assert_int_equal(virtio_blk_config_write(rig.device, at, &off, 1), 0);
        rig_stop(0);
        virtio_blk_reset(rig.device);
        assert_int_equal(virtio_blk_set_features(rig.device, negotiated), 0);
        assert_int_equal(config_of().writeback, 0);
        assert_false(fake.write_cache);
        assert_int_equal(rig_start(0), 0);
        rig_stop(0);
        /* Another process, or another connection to this one */
        virtio_blk_forget_driver(rig.device);
        assert_int_equal(virtio_blk_set_features(rig.device, negotiated), 0);
        assert_int_equal(config_of().writeback, 1);
        assert_int_equal(rig_start(0), 0);
        assert_int_equal(config_of().writeback, 0);
        assert_false(fake.write_cache);
        assert_int_equal(virtio_blk_config_write(rig.device, at, &on, 1), 0);
        rig_stop(0);
        virtio_blk_forget_driver(rig.device);
        assert_int_equal(virtio_blk_set_features(rig.device, negotiated), 0);
        assert_int_equal(rig_start(0), 0);
        assert_true(fake.write_cache);
        rig_fini();
    }
}

static void options_that_are_not_possible_are_refused(void **state)
{
    static const struct virtio_blk_options good = {
        .num_queues = 1, .queue_size_max = 128, .logical_block_size = 512, .physical_block_size = 512};
    struct virtio_blk_options bad;

    start(state, (struct rig_options){.no_start = true});
#define REFUSED(field, value)                                            \
    do {                                                                 \
        struct error err = {""};                                         \
        bad = good;                                                      \
        bad.field = (value);                                             \
        assert_null(virtio_blk_create((struct blk *)&fake, &bad, &err)); \
        assert_string_not_equal(err.text, "");                           \
    } while (0)
    REFUSED(num_queues, 0);
    REFUSED(num_queues, 65);
    REFUSED(queue_size_max, 0);
    REFUSED(queue_size_max, 1);
    REFUSED(queue_size_max, 100);
    REFUSED(queue_size_max, 65536);
    REFUSED(logical_block_size, 0);
    REFUSED(logical_block_size, 256);
    REFUSED(logical_block_size, 513);
    REFUSED(logical_block_size, 1024); /* above the physical one */
    REFUSED(physical_block_size, 0);
    REFUSED(physical_block_size, 1 << 30);
    rig_fini();
}

int main(void)
{
    static const struct layout_case cases[] = {
        ONCE(checklist_326_may_unmap_is_told),
        ONCE(checklist_22_30_a_reset_forgets_the_negotiation),
        ONCE(checklist_15_17_257_258_259_274_only_known_features_are_offered),
        ONCE(checklist_16_18_19_sets_of_features),
        ONCE(checklist_263_276_configuration),
        ONCE(a_tail_that_is_no_whole_block_is_not_offered),
        ONCE(checklist_320_a_change_of_capacity_is_announced),
        ONCE(checklist_275_327_328_write_cache),
        ONCE(checklist_328_write_through_outlives_reset_and_restart),
        ONCE(options_that_are_not_possible_are_refused),
    };

    return run_cases("virtio_blk_config", cases, sizeof(cases) / sizeof(cases[0]));
}
