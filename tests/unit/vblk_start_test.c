/*
 * Start, features, configuration, reset: checked over the recorded trace of register accesses
 * (virtio 1.4, 2.1 to 2.5, 3.1, 5.2.5). Most rules are judged by the fake at each access; here are the cases
 * that bring them about.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_fake.h"

#define F(name) VIRTIO_BIT(VIRTIO_##name)

static const uint64_t known_blk =
    F(BLK_F_SIZE_MAX) | F(BLK_F_SEG_MAX) | F(BLK_F_GEOMETRY) | F(BLK_F_RO) | F(BLK_F_BLK_SIZE) |
    F(BLK_F_FLUSH) | F(BLK_F_TOPOLOGY) | F(BLK_F_CONFIG_WCE) | F(BLK_F_MQ) | F(BLK_F_DISCARD) |
    F(BLK_F_WRITE_ZEROES) | F(BLK_F_LIFETIME) | F(BLK_F_SECURE_ERASE) | F(BLK_F_ZONED);
static const uint64_t known_ring = F(F_INDIRECT_DESC) | F(F_EVENT_IDX) | F(F_VERSION_1) |
                                   F(F_ACCESS_PLATFORM) | F(F_RING_PACKED) | F(F_IN_ORDER) |
                                   F(F_ORDER_PLATFORM) | F(F_NOTIFICATION_DATA) | F(F_NOTIF_CONFIG_DATA) |
                                   F(F_RING_RESET) | F(F_SUSPEND);

/* Everything in the configuration has a sane value */
static void sane(struct fake *fake)
{
    fake->config.size_max = le32_put(65536);
    fake->config.seg_max = le32_put(126);
    fake->config.blk_size = le32_put(512);
    fake->config.writeback = 1;
    fake->config.num_queues = le16_put(1);
    fake->config.max_discard_sectors = fake->config.max_write_zeroes_sectors = le32_put(1000);
    fake->config.max_secure_erase_sectors = le32_put(1000);
    fake->config.max_discard_seg = fake->config.max_write_zeroes_seg = fake->config.max_secure_erase_seg =
        le32_put(1);
    fake->config.zoned.zone_sectors = le32_put(128);
}

static int start(struct fake *fake)
{
    struct vblk_config config = {.queue_size = 16, .indirect_segs = 4};

    return fake_start(fake, &config);
}

static void assert_works(struct fake *fake)
{
    uint8_t buf[512];

    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
}

/* checklist 1, 130, 139: 0, 1, 3, 11, 15, in this order; features between, queues after, no kick before */
static void the_steps_of_3_1_1_in_their_order(void **state)
{
    static const uint8_t steps[] = {0, 1, 3, 11, 15};

    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(fake_layout(layout), 100);
        assert_int_equal(start(fake), 0);
        assert_int_equal(fake_count(fake, EV_STATUS_WRITE), 5);
        for (unsigned i = 0; i < 5; i++)
            assert_int_equal(fake_event(fake, EV_STATUS_WRITE, i)->a, steps[i]);
        assert_in_range(fake_event_position(fake, EV_FEATURES_WRITE, 0),
                        fake_event_position(fake, EV_STATUS_WRITE, 2),
                        fake_event_position(fake, EV_STATUS_WRITE, 3));
        assert_in_range(fake_event_position(fake, EV_QUEUE_ENABLE, 0),
                        fake_event_position(fake, EV_STATUS_WRITE, 3),
                        fake_event_position(fake, EV_STATUS_WRITE, 4));
        /* step 6: status is read between FEATURES_OK and the first queue access */
        int at = fake_event_position(fake, EV_STATUS_WRITE, 3) + 1;
        assert_int_equal(fake->trace[at].kind, EV_STATUS_READ);
        assert_int_equal(fake_count(fake, EV_NOTIFY), 0);
        assert_works(fake);
        fake_stop(fake);
    }
}

/* checklist 9, 10, 250, 253, 254: every subset of the known bits, a few thousand at random and all single
 * ones */
static void accepted_is_within_offered_for_any_subset(void **state)
{
    uint64_t bits = 88172645463325252ull;

    for (unsigned i = 0; i < 3000; i++) {
        uint64_t offered = bits & (known_blk | known_ring);
        struct fake *fake;
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        if (i < 64)
            offered = VIRTIO_BIT(i) & (known_blk | known_ring);
        fake = fake_new(offered, 1024);
        sane(fake);
        assert_int_equal(start(fake), 0);
        assert_true((fake->accepted & ~fake->offered) == 0);
        assert_true(fake_has(fake, VIRTIO_F_VERSION_1));
        if (!(offered & F(BLK_F_FLUSH)))
            assert_false(fake_has(fake, VIRTIO_BLK_F_CONFIG_WCE));
        assert_works(fake);
        fake_stop(fake);
    }
}

/* checklist 12, 14, 193, 249, 255, 256, 260, 291: all 64 bits offered; taken are those that are implemented
 */
static void unknown_bits_are_left_alone(void **state)
{
    struct fake *fake = fake_new(UINT64_MAX, 1024);

    sane(fake);
    assert_int_equal(start(fake), 0);
    assert_true(fake->accepted == (known_blk | known_ring));
    assert_works(fake);
    fake_stop(fake);
}

/* checklist 13: no VERSION_1: FAILED, and no queue touched */
static void without_version_1_it_fails(void **state)
{
    struct fake *fake = fake_new(0, 100);

    fake->offered = F(BLK_F_FLUSH);
    assert_int_equal(start(fake), -VBLK_ENOTSUP);
    assert_int_equal(fake->status & VIRTIO_STATUS_FAILED, VIRTIO_STATUS_FAILED);
    assert_int_equal(fake_count(fake, EV_QUEUE_MAX) + fake_count(fake, EV_QUEUE_ENABLE), 0);
    fake_stop(fake);
}

/* checklist 142, 143, 3: FEATURES_OK does not stick: FAILED; a second try resets first */
static void a_device_that_refuses_the_features(void **state)
{
    struct fake *fake = fake_new(0, 100);
    unsigned writes;

    fake->refuse_features = true;
    assert_int_equal(start(fake), -VBLK_ENOTSUP);
    assert_int_equal(fake->status & VIRTIO_STATUS_FAILED, VIRTIO_STATUS_FAILED);
    assert_int_equal(fake_count(fake, EV_QUEUE_ENABLE), 0);
    fake->refuse_features = false;
    writes = fake_count(fake, EV_STATUS_WRITE);
    free(fake->memory);
    assert_int_equal(start(fake), 0);
    assert_int_equal(fake_event(fake, EV_STATUS_WRITE, writes)->a, 0);
    assert_works(fake);
    fake_stop(fake);
}

/* checklist 10: CONFIG_WCE without FLUSH is not taken */
static void config_wce_needs_flush(void **state)
{
    struct fake *fake = fake_new(F(BLK_F_CONFIG_WCE), 100);

    assert_int_equal(start(fake), 0);
    assert_false(fake_has(fake, VIRTIO_BLK_F_CONFIG_WCE));
    fake_stop(fake);
}

/* checklist 11, 269-273: host-managed zones: no DISCARD; host-aware and none: both */
static void zoned_models(void **state)
{
    for (unsigned model = 0; model < 3; model++) {
        struct fake *fake = fake_new(F(BLK_F_ZONED) | F(BLK_F_DISCARD), 1024);
        sane(fake);
        fake->config.zoned.model = (uint8_t)model;
        assert_int_equal(start(fake), 0);
        assert_true(fake_has(fake, VIRTIO_BLK_F_ZONED));
        assert_int_equal(fake_has(fake, VIRTIO_BLK_F_DISCARD), model != VIRTIO_BLK_Z_HM);
        fake_stop(fake);
    }
}

/* checklist 24, 190: the reset is done when status reads 0, and not for ever */
static void a_reset_is_waited_for_and_bounded(void **state)
{
    struct fake *fake = fake_new(0, 100);

    fake->reset_delay = 500;
    assert_int_equal(start(fake), 0);
    assert_works(fake);
    fake_stop(fake);

    fake = fake_new(0, 100);
    fake->status = 15;
    fake->stuck_status = true;
    assert_int_equal(start(fake), -VBLK_ETIMEDOUT);
    assert_int_equal(fake->log_errors, 1);
    fake_stop(fake);
}

/* checklist 244 in spirit, H10: a device that is not there */
static void a_gone_device_is_no_device(void **state)
{
    struct fake *fake = fake_new(0, 100);

    fake->gone = true;
    assert_int_equal(start(fake), -VBLK_ENODEV);
    fake_stop(fake);
}

/* checklist 25, 26: capacity changes between its halves: never a mix; the loop is bounded */
static unsigned changes;

static void change_capacity(struct fake *fake, unsigned offset)
{
    if (offset == 0 && changes) {
        changes--;
        fake->config.capacity = le64_put(changes % 2 ? 0x100000001ull : 0x200000002ull);
        fake->generation++;
    }
}

static void the_generation_guards_the_configuration(void **state)
{
    struct vblk_info info;
    struct fake *fake;

    for (unsigned n = 0; n < 10; n++) {
        fake = fake_new(0, 0x100000001ull);
        changes = n;
        fake->on_config_read = change_capacity;
        assert_int_equal(start(fake), 0);
        vblk_info(fake->vblk, &info);
        assert_true(info.capacity_sectors == 0x100000001ull || info.capacity_sectors == 0x200000002ull);
        fake_stop(fake);
    }
    fake = fake_new(0, 100);
    fake->generation_runs = true;
    assert_int_equal(start(fake), -VBLK_ENODEV);
    assert_true(fake_count(fake, EV_GENERATION) < 100);
    assert_int_equal(fake->status & VIRTIO_STATUS_FAILED, VIRTIO_STATUS_FAILED);
    fake_stop(fake);
}

/* checklist 28: any size of configuration space that holds the capacity. 264: each field's offset and width
 * are the fake's table */
static void configuration_spaces_of_any_size(void **state)
{
    static const unsigned sizes[] = {8, 12, 20, 24, 34, 36, 60, 96, 4096};
    struct fake *fake;

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        fake = fake_new(sizes[i] < 96 ? 0 : known_blk, 1024);
        sane(fake);
        fake->config_bytes = sizes[i];
        assert_int_equal(start(fake), 0);
        assert_works(fake);
        fake_stop(fake);
    }
    fake =
        fake_new(known_blk & ~F(BLK_F_ZONED), 1024); /* features whose fields are not there: read as zero */
    sane(fake);
    fake->config_bytes = 8;
    assert_int_equal(start(fake), -VBLK_ENOTSUP); /* a block size of 0 */
    fake_stop(fake);
    fake = fake_new(0, 1024);
    fake->config_bytes = 4;
    assert_int_equal(start(fake), -VBLK_ENODEV);
    fake_stop(fake);
}

/* checklist H7: values that can't be meant */
static void absurd_values_are_refused_or_tamed(void **state)
{
    static const uint32_t block_sizes[] = {0, 1, 511, 513, 1u << 31, 131072};
    struct vblk_info info;
    struct fake *fake;
    uint8_t buf[512];

    for (unsigned i = 0; i < sizeof(block_sizes) / sizeof(block_sizes[0]); i++) {
        fake = fake_new(F(BLK_F_BLK_SIZE), 1024);
        fake->config.blk_size = le32_put(block_sizes[i]);
        assert_int_equal(start(fake), -VBLK_ENOTSUP);
        assert_int_equal(fake->status & VIRTIO_STATUS_FAILED, VIRTIO_STATUS_FAILED);
        fake_stop(fake);
    }
    fake = fake_new(F(BLK_F_TOPOLOGY), 0);
    fake->config.topology.physical_block_exp = 255;
    fake->config.topology.min_io_size = le16_put(0xffff);
    fake->config.topology.opt_io_size = le32_put(0xffffffff);
    assert_int_equal(start(fake), 0);
    vblk_info(fake->vblk, &info);
    assert_int_equal(info.physical_block_size, 512);
    assert_int_equal(info.min_io_size, 0xffffu * 512);
    assert_int_equal(info.opt_io_size, 0xfffffe00u);
    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), -VBLK_ERANGE); /* capacity 0 */
    fake_stop(fake);

    fake = fake_new(0, UINT64_MAX);
    fake->disk_bytes = 512;
    assert_int_equal(start(fake), 0);
    assert_int_equal(vblk_read(fake->vblk, 0, UINT64_MAX, buf, 512), -VBLK_ERANGE);
    assert_int_equal(vblk_read(fake->vblk, 0, UINT64_MAX / 512 - 1, buf, 512), 0);
    fake_stop(fake);
}

/* checklist H8: limits of nothing and of everything */
static void absurd_limits(void **state)
{
    static const uint32_t values[] = {0, 1, 511, 0xffffffff};
    uint8_t buf[2048];

    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 4; k++) {
            struct fake *fake = fake_new(known_blk, 1024);
            int result;
            sane(fake);
            fake->config.size_max = le32_put(values[i]);
            fake->config.seg_max = le32_put(values[k]);
            fake->config.max_discard_sectors = fake->config.max_write_zeroes_sectors = le32_put(values[k]);
            fake->config.max_discard_seg = fake->config.max_write_zeroes_seg = le32_put(values[i]);
            result = start(fake);
            /* one byte, or one piece of 511: no block goes through that */
            if (values[i] == 1 || (values[i] == 511 && values[k] < 2)) {
                assert_int_equal(result, -VBLK_ENOTSUP);
            } else {
                assert_int_equal(result, 0);
                assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 2048), 0);
            }
            fake_stop(fake);
        }
}

/* checklist 41, 222, 238, H7: sizes offered, sizes used */
static void queue_sizes(void **state)
{
    static const struct {
        unsigned max, split, packed; /* 0: refused */
    } cases[] = {{0, 0, 0}, {1, 0, 0},    {2, 0, 0},      {3, 0, 3},         {4, 4, 4},        {5, 4, 5},
                 {7, 4, 7}, {64, 64, 64}, {100, 64, 100}, {32768, 256, 256}, {65535, 256, 256}};

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (unsigned packed = 0; packed < 2; packed++) {
            struct fake *fake = fake_new(packed ? F(F_RING_PACKED) : 0, 1024);
            struct vblk_config config = {0};
            unsigned want = packed ? cases[i].packed : cases[i].split;
            struct vblk_info info;

            fake->queue[0].size_max = cases[i].max;
            if (want == 0) {
                assert_true(fake_start(fake, &config) < 0);
            } else {
                assert_int_equal(fake_start(fake, &config), 0);
                vblk_info(fake->vblk, &info);
                assert_int_equal(info.queue_size, want);
                for (unsigned n = 0; n < 300; n++)
                    assert_works(fake);
            }
            fake_stop(fake);
        }
}

/* checklist 40, 42, 96, 97: all sizes; alignment and extent are judged by the fake */
static void rings_of_every_size(void **state)
{
    for (unsigned size = 4; size <= 32768; size *= 2)
        for (unsigned packed = 0; packed < 2; packed++) {
            struct fake *fake = fake_new(packed ? F(F_RING_PACKED) : 0, 1024);
            struct vblk_config config = {.queue_size = size - (packed ? 1 : 0)};
            fake->queue[0].size_max = 32768;
            assert_int_equal(fake_start(fake, &config), 0);
            assert_works(fake);
            fake_stop(fake);
        }
}

/* checklist 262: queues by MQ and num_queues, as many as wanted at most */
static void numbers_of_queues(void **state)
{
    static const struct {
        bool mq;
        unsigned device, want, have;
    } cases[] = {{false, 4, 4, 1}, {true, 0, 4, 1},     {true, 1, 4, 1},
                 {true, 3, 4, 3},  {true, 65535, 4, 4}, {true, 4, 1, 1}};

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fake *fake = fake_new(cases[i].mq ? F(BLK_F_MQ) : 0, 1024);
        struct vblk_config config = {.num_queues = cases[i].want, .queue_size = 8};
        struct vblk_info info;
        uint8_t buf[512];

        fake->num_queues = 8;
        fake->config.num_queues = le16_put((uint16_t)cases[i].device);
        assert_int_equal(fake_start(fake, &config), 0);
        vblk_info(fake->vblk, &info);
        assert_int_equal(info.num_queues, cases[i].have);
        for (unsigned q = 0; q < cases[i].have; q++)
            assert_int_equal(vblk_read(fake->vblk, q, 0, buf, 512), 0);
        fake_stop(fake);
    }
}

/* checklist 219-221: vectors: none, one for all, one each, shared in turn, refused */
static void vectors_as_there_are(void **state)
{
    static const struct {
        unsigned vectors, expect[3];
    } cases[] = {{0, {0xffff, 0xffff, 0xffff}},
                 {1, {0, 0, 0}},
                 {2, {1, 1, 1}},
                 {3, {1, 2, 1}},
                 {4, {1, 2, 3}},
                 {9, {1, 2, 3}}};
    struct vblk_info info;
    struct fake *fake;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct vblk_config config = {.num_queues = 3, .queue_size = 8};
        fake = fake_new(F(BLK_F_MQ), 1024);
        fake->num_queues = 3;
        fake->config.num_queues = le16_put(3);
        fake->vectors = cases[i].vectors;
        assert_int_equal(fake_start(fake, &config), 0);
        for (unsigned q = 0; q < 3; q++)
            assert_int_equal(fake->queue[q].setup.vector, cases[i].expect[q]);
        fake_stop(fake);
    }
    fake = fake_new(0, 1024);
    fake->vectors = 2;
    fake->queue[0].vector_refused = true;
    assert_int_equal(start(fake), 0);
    assert_int_equal(fake->queue[0].setup.vector, VTR_NO_VECTOR);
    vblk_info(fake->vblk, &info);
    assert_true(info.polling);
    assert_works(fake);
    fake_stop(fake);

    fake = fake_new(0, 1024);
    fake->vectors = 2;
    assert_int_equal(fake_start(fake, &(struct vblk_config){.queue_size = 8, .poll_only = true}), 0);
    assert_int_equal(fake->queue[0].setup.vector, VTR_NO_VECTOR);
    fake_stop(fake);
}

/* Memory: what the functions say is enough, and not a byte less is taken */
static void memory_is_stated_and_enough(void **state)
{
    struct vblk_config config = {0};
    struct fake *fake = fake_new(0, 100);
    uint8_t *memory;
    struct vblk *disk;
    size_t bytes = vblk_memory_bytes(&config);

    /* the promise: a queue of 256 with its requests in less than 64 KiB without tables */
    assert_true(bytes + vblk_dma_bytes(&config) < 64 * 1024);
    print_message("# queue of 256: %zu bytes private, %zu shared\n", bytes, vblk_dma_bytes(&config));
    memory = aligned_alloc(64, bytes + 64);
    assert_non_null(memory);
    memset(memory, 0xa5, bytes + 64);
    assert_int_equal(vblk_start(&disk, memory, bytes - 1, &fake->vtr, &fake->platform, &config),
                     -VBLK_ENOMEM);
    assert_int_equal(vblk_start(&disk, memory + 8, bytes, &fake->vtr, &fake->platform, &config),
                     -VBLK_ENOMEM);
    fake->dma_fail = true;
    assert_int_equal(vblk_start(&disk, memory, bytes, &fake->vtr, &fake->platform, &config), -VBLK_ENOMEM);
    fake->dma_fail = false;
    assert_int_equal(vblk_start(&disk, memory, bytes, &fake->vtr, &fake->platform, &config), 0);
    fake->vblk = disk;
    assert_true(fake->dma[0].len <= vblk_dma_bytes(&config));
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(memory[bytes + i], 0xa5);
    assert_works(fake);
    fake_stop(fake);
    free(memory);
}

/* checklist 289, 320: capacity follows the device, with a callback; smaller too */
static uint64_t told;

static void tell(void *opaque, uint64_t capacity)
{
    told = capacity;
}

static void capacity_changes_are_followed(void **state)
{
    struct fake *fake = fake_new(0, 100);
    struct vblk_info info;
    uint8_t buf[512];

    assert_int_equal(start(fake), 0);
    vblk_on_capacity_change(fake->vblk, tell, NULL);
    fake->config.capacity = le64_put(50);
    fake->generation++;
    fake->isr = VTR_INTERRUPT_CONFIG | VTR_INTERRUPT_QUEUES; /* checklist 225: both at once */
    assert_true(vblk_interrupt(fake->vblk));
    assert_int_equal(told, 50);
    assert_int_equal(vblk_read(fake->vblk, 0, 50, buf, 512), -VBLK_ERANGE);
    fake->config.capacity = le64_put(200);
    fake->generation++;
    vblk_config_changed(fake->vblk);
    vblk_info(fake->vblk, &info);
    assert_int_equal(info.capacity_sectors, 200);
    assert_int_equal(told, 200);
    told = 0;
    vblk_config_changed(fake->vblk); /* nothing new */
    assert_int_equal(told, 0);
    fake->generation_runs = true; /* can't be read: what was known stays */
    fake->config.capacity = le64_put(7);
    vblk_config_changed(fake->vblk);
    vblk_info(fake->vblk, &info);
    assert_int_equal(info.capacity_sectors, 200);
    assert_false(vblk_interrupt(fake->vblk));
    fake_stop(fake);
}

/* checklist 20, 31, 44, 86, 144, 260, 261, 287, 318, 319: a legacy device; its `writeback` is left alone
 * until somebody asks */
static void legacy_devices(void **state)
{
    for (unsigned layout = 0; layout < 8; layout += 2) {
        struct fake *fake = fake_new(fake_layout(layout) | known_blk, 4096);
        struct vblk_config config = {.queue_size = 128, .indirect_segs = 4};
        struct vblk_info info;
        uint8_t out[5120], in[5120];

        sane(fake);
        fake->ops.legacy = true;
        fake->ops.fixed_queue_size = true;
        fake->queue[0].size_max = 128;
        fake->offered = (fake->offered & 0xffffffff & ~F(BLK_F_RO) & ~F(BLK_F_ZONED)) | F(F_ANY_LAYOUT) |
                        F(F_NOTIFY_ON_EMPTY);
        assert_int_equal(fake_start(fake, &config), 0);
        assert_true(fake_has(fake, VIRTIO_F_ANY_LAYOUT));
        assert_false(fake_has(fake, VIRTIO_F_NOTIFY_ON_EMPTY));
        assert_int_equal(fake_count(fake, EV_GENERATION), 0);
        assert_int_equal(fake_count(fake, EV_CONFIG_WRITE), 0);
        vblk_info(fake->vblk, &info);
        assert_int_equal(info.queue_size, 128);
        memset(out, 0x77, sizeof(out));
        assert_int_equal(vblk_write(fake->vblk, 0, 3, out, sizeof(out)), 0);
        assert_int_equal(vblk_read(fake->vblk, 0, 3, in, sizeof(in)), 0);
        assert_memory_equal(in, out, sizeof(in));
        fake_stop(fake);
    }
    /* checklist 43: the size is the device's; memory for less won't do */
    struct fake *fake = fake_new(0, 100);
    fake->ops.legacy = fake->ops.fixed_queue_size = true;
    fake->offered = 0;
    fake->queue[0].size_max = 1024;
    assert_int_equal(start(fake), -VBLK_ENOMEM);
    fake_stop(fake);
}

/* checklist 43, 44: legacy rings of 8, 128 and 1024, the used ring on the next page */
static void legacy_ring_sizes(void **state)
{
    static const unsigned sizes[] = {8, 128, 1024};

    for (unsigned i = 0; i < 3; i++) {
        struct fake *fake = fake_new(0, 100);
        struct vblk_config config = {.queue_size = 1024};
        fake->ops.legacy = fake->ops.fixed_queue_size = true;
        fake->offered = 0;
        fake->queue[0].size_max = sizes[i];
        assert_int_equal(fake_start(fake, &config), 0);
        assert_works(fake);
        fake_stop(fake);
    }
}

/* checklist 149-152: suspend and resume, and nothing in between */
static void suspend_and_resume(void **state)
{
    struct fake *fake = fake_new(F(F_SUSPEND) | F(BLK_F_FLUSH) | F(BLK_F_CONFIG_WCE), 100);
    struct fake_request r = {0};
    uint8_t buf[512];
    unsigned notified;

    fake->config.writeback = 1;
    fake->suspend_delay = 5;
    assert_int_equal(start(fake), 0);
    assert_int_equal(vblk_resume(fake->vblk), -VBLK_EINVAL);
    assert_int_equal(vblk_suspend(fake->vblk), 0);
    assert_true(fake->suspended);
    assert_int_equal(fake->suspend_delay, 0);
    notified = fake_count(fake, EV_NOTIFY);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, buf, 512), 0); /* waits */
    vblk_kick(fake->vblk, 0);
    vblk_poll(fake->vblk, 0);
    assert_int_equal(fake_count(fake, EV_NOTIFY), notified);
    assert_int_equal(le16_get(fake_avail(fake, 0)->idx), 0);
    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), -VBLK_EBUSY);
    assert_true(vblk_set_write_cache(fake->vblk, false) < 0);
    fake->suspend_delay = 5;
    assert_int_equal(vblk_resume(fake->vblk), 0);
    fake_finish(fake, 0, &r);
    assert_int_equal(r.result, 0);
    /* it never becomes suspended: reset by the next poll, and works on */
    fake->suspend_delay = 1000000;
    assert_int_equal(vblk_suspend(fake->vblk), -VBLK_ETIMEDOUT);
    vblk_poll(fake->vblk, 0);
    fake->suspend_delay = 0;
    assert_works(fake);
    fake_stop(fake);
    fake = fake_new(0, 100);
    assert_int_equal(start(fake), 0);
    assert_int_equal(vblk_suspend(fake->vblk), -VBLK_ENOTSUP);
    fake_stop(fake);
}

/* checklist 151, 76: on the ring before the suspension, kicked during it: not then, but by the first poll
 * after it */
static void a_kick_while_suspended_is_made_later(void **state)
{
    struct fake *fake = fake_new(F(F_SUSPEND), 100);
    struct fake_request r = {0};
    uint8_t buf[512];

    assert_int_equal(start(fake), 0);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, buf, 512), 0);
    assert_int_equal(vblk_suspend(fake->vblk), 0);
    vblk_kick(fake->vblk, 0);
    assert_int_equal(fake_count(fake, EV_NOTIFY), 0);
    assert_int_equal(vblk_resume(fake->vblk), 0);
    vblk_poll(fake->vblk, 0);
    assert_int_equal(fake_count(fake, EV_NOTIFY), 1);
    vblk_poll(fake->vblk, 0);
    assert_true(r.done);
    assert_int_equal(r.result, 0);
    fake_stop(fake);
}

/* checklist 251, 252: whatever is negotiated, addresses are those that `share` gave, and nothing else is
 * reached */
static void addresses_are_the_platforms(void **state)
{
    for (unsigned access = 0; access < 2; access++) {
        struct fake *fake = fake_new(access ? F(F_ACCESS_PLATFORM) : 0, 1024);
        uint8_t buf[4096];
        unsigned shares;
        assert_int_equal(start(fake), 0);
        shares = fake->shares_total;
        fake->share_page = 512;
        assert_int_equal(vblk_write(fake->vblk, 0, 0, buf, 4096), 0);
        assert_true(fake->shares_total >= shares + 8);
        fake_stop(fake);
    }
}

/* refuse_features: the caller's word */
static void refused_features_are_not_taken(void **state)
{
    struct fake *fake = fake_new(known_ring | known_blk, 1024);
    struct vblk_config config = {.queue_size = 8, .refuse_features = F(F_RING_PACKED) | F(F_EVENT_IDX)};

    sane(fake);
    assert_int_equal(fake_start(fake, &config), 0);
    assert_false(fake_has(fake, VIRTIO_F_RING_PACKED));
    assert_false(fake_has(fake, VIRTIO_F_EVENT_IDX));
    assert_false(fake_has(fake, VIRTIO_F_INDIRECT_DESC)); /* no tables configured: checklist 56 */
    fake_stop(fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_steps_of_3_1_1_in_their_order),
        cmocka_unit_test(accepted_is_within_offered_for_any_subset),
        cmocka_unit_test(unknown_bits_are_left_alone),
        cmocka_unit_test(without_version_1_it_fails),
        cmocka_unit_test(a_device_that_refuses_the_features),
        cmocka_unit_test(config_wce_needs_flush),
        cmocka_unit_test(zoned_models),
        cmocka_unit_test(a_reset_is_waited_for_and_bounded),
        cmocka_unit_test(a_gone_device_is_no_device),
        cmocka_unit_test(the_generation_guards_the_configuration),
        cmocka_unit_test(configuration_spaces_of_any_size),
        cmocka_unit_test(absurd_values_are_refused_or_tamed),
        cmocka_unit_test(absurd_limits),
        cmocka_unit_test(queue_sizes),
        cmocka_unit_test(rings_of_every_size),
        cmocka_unit_test(numbers_of_queues),
        cmocka_unit_test(vectors_as_there_are),
        cmocka_unit_test(memory_is_stated_and_enough),
        cmocka_unit_test(capacity_changes_are_followed),
        cmocka_unit_test(legacy_devices),
        cmocka_unit_test(legacy_ring_sizes),
        cmocka_unit_test(suspend_and_resume),
        cmocka_unit_test(a_kick_while_suspended_is_made_later),
        cmocka_unit_test(addresses_are_the_platforms),
        cmocka_unit_test(refused_features_are_not_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
