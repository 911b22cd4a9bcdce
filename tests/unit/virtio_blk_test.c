/*
 * Requests of the block device (virtio 1.4, 5.2.6), its features and configuration, and its queues' life,
 * over every ring layout. Numbers are those of the rule in the project's checklist of the specification.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/unit/device_rig.h"

struct layout {
    const char *name;
    uint64_t features;
};

#define BIT(n) VIRTIO_BIT(VIRTIO_F_##n)

static const struct layout layouts[] = {
    {"split", 0},
    {"split, indirect, event index", BIT(INDIRECT_DESC) | BIT(EVENT_IDX)},
    {"split, in order", BIT(IN_ORDER)},
    {"split, indirect, in order", BIT(IN_ORDER) | BIT(INDIRECT_DESC)},
    {"packed", BIT(RING_PACKED)},
    {"packed, indirect, event index", BIT(RING_PACKED) | BIT(INDIRECT_DESC) | BIT(EVENT_IDX)},
    {"packed, in order", BIT(RING_PACKED) | BIT(IN_ORDER)},
    {"packed, indirect, in order", BIT(RING_PACKED) | BIT(IN_ORDER) | BIT(INDIRECT_DESC)},
};

#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))

#define BLK(n) VIRTIO_BIT(VIRTIO_BLK_F_##n)

static const uint64_t all_blk = BLK(FLUSH) | BLK(CONFIG_WCE) | BLK(DISCARD) | BLK(WRITE_ZEROES) |
                                BLK(SECURE_ERASE) | BLK(MQ) | BLK(SEG_MAX) | BLK(BLK_SIZE) | BLK(TOPOLOGY) |
                                BLK(RO) | BLK(LIFETIME);

static const struct layout *layout_of(void **state)
{
    return *state;
}

static void start(void **state, struct rig_options options)
{
    if (!options.features)
        options.features = all_blk;
    options.features |= layout_of(state)->features;
    if (!options.size)
        options.size = 64;
    options.device.discard = true;
    rig_init(&options);
}

/* One request alone, of any framing; its status. */
static uint8_t run(const struct seg *segs, unsigned n, uint32_t *len)
{
    uint32_t used_len;
    uint16_t id, expected = rig_add(0, segs, n);

    rig_kick(0);
    if (!rig_used(0, &id, &used_len))
        fail_msg("not answered: %s", rig.why);
    assert_int_equal(id, expected);
    assert_int_equal(rig.resets, 0);
    if (len)
        *len = used_len;
    return *(uint8_t *)ptr(segs[n - 1].addr + segs[n - 1].len - 1);
}

static uint8_t simple(uint32_t type, uint64_t sector, uint64_t data, uint32_t bytes, bool write,
                      uint32_t *len)
{
    uint64_t status = rig_alloc(1, 1);
    struct seg segs[3] = {{rig_header(type, sector), 16, false}, {data, bytes, write}, {status, 1, true}};

    *(uint8_t *)ptr(status) = 0xee;
    if (bytes == 0)
        segs[1] = segs[2];
    return run(segs, bytes ? 3 : 2, len);
}

static void fill(void *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = (uint8_t)(seed + i * 7 + i / 251);
}

static void reads_and_writes_move_the_bytes(void **state)
{
    uint64_t data;
    uint32_t len;

    start(state, (struct rig_options){0});
    data = rig_alloc(8192, 512);
    fill(ptr(data), 4096, 1);
    assert_int_equal(simple(VIRTIO_BLK_T_OUT, 10, data, 4096, false, &len), 0);
    assert_int_equal(len, 1);
    assert_memory_equal(fake.disk + 5120, ptr(data), 4096);
    assert_int_equal(simple(VIRTIO_BLK_T_IN, 10, data + 4096, 4096, true, &len), 0);
    assert_true(len == 4097 || len == UINT32_MAX);
    assert_memory_equal(ptr(data), ptr(data + 4096), 4096);
    /* The last sector, and data across two regions of memory. */
    assert_int_equal(simple(VIRTIO_BLK_T_OUT, DISK_BYTES / 512 - 1, NEXT_ADDR - 100, 512, false, NULL), 0);
    assert_int_equal(simple(VIRTIO_BLK_T_IN, 10, NEXT_ADDR - 1000, 4096, true, NULL), 0);
    assert_memory_equal(rig.low + LOW_BYTES - 1000, fake.disk + 5120, 1000);
    assert_memory_equal(rig.next, fake.disk + 5120 + 1000, 3096);
    assert_int_equal(simple(VIRTIO_BLK_T_IN, 10, HIGH_ADDR + HIGH_BYTES - 4096, 4096, true, NULL), 0);
    rig_fini();
}

/* A message of OUT bytes (header, data) and IN bytes (data, status), cut at every byte in turn and in all
 * bytes. */
static void checklist_46_any_framing_is_understood(void **state)
{
    for (unsigned cut = 0; cut < 600; cut += cut < 24 || cut >= 520 ? 1 : 37) {
        uint64_t out, in;
        struct seg segs[4];
        unsigned n = 0;
        struct virtio_blk_req_header header = {.type = le32_put(VIRTIO_BLK_T_OUT), .sector = le64_put(3)};

        start(state, (struct rig_options){0});
        out = rig_alloc(528, 1);
        in = rig_alloc(600, 1);
        /* A write: 16 + 512 bytes out, cut in two; status of 1 byte. */
        memcpy(ptr(out), &header, 16);
        fill((uint8_t *)ptr(out) + 16, 512, cut);
        if (cut > 0)
            segs[n++] = (struct seg){out, cut < 528 ? cut : 528, false};
        if (cut < 528)
            segs[n++] = (struct seg){out + cut, 528 - cut, false};
        segs[n++] = (struct seg){in, 1, true};
        *(uint8_t *)ptr(in) = 0xee;
        assert_int_equal(run(segs, n, NULL), 0);
        assert_memory_equal(fake.disk + 3 * 512, (uint8_t *)ptr(out) + 16, 512);
        /* A read: 512 + 1 bytes in, cut in two. */
        header.type = le32_put(VIRTIO_BLK_T_IN);
        memcpy(ptr(out), &header, 16);
        n = 0;
        segs[n++] = (struct seg){out, 16, false};
        if (cut > 0)
            segs[n++] = (struct seg){in, cut < 513 ? cut : 513, true};
        if (cut < 513)
            segs[n++] = (struct seg){in + cut, 513 - cut, true};
        memset(ptr(in), 0xee, 600);
        assert_int_equal(run(segs, n, NULL), 0);
        assert_memory_equal(ptr(in), fake.disk + 3 * 512, 512);
        assert_int_equal(((uint8_t *)ptr(in))[513], 0xee);
        rig_fini();
    }
}

static void checklist_46_a_header_of_sixteen_bytes_in_as_many_descriptors(void **state)
{
    uint64_t header, data;
    struct seg segs[18];

    start(state, (struct rig_options){0});
    header = rig_header(VIRTIO_BLK_T_IN, 5);
    data = rig_alloc(513, 1);
    fill(fake.disk, 8192, 9);
    for (unsigned i = 0; i < 16; i++)
        segs[i] = (struct seg){header + i, 1, false};
    segs[16] = (struct seg){data, 512, true};
    segs[17] = (struct seg){data + 512, 1, true};
    *(uint8_t *)ptr(data + 512) = 0xee;
    assert_int_equal(run(segs, 18, NULL), 0);
    assert_memory_equal(ptr(data), fake.disk + 5 * 512, 512);
    rig_fini();
}

static void checklist_83_the_used_length_counts_what_was_written(void **state)
{
    uint64_t data;
    uint32_t len;
    struct seg segs[3];

    start(state, (struct rig_options){0});
    data = rig_alloc(8192, 512);
    /* A failed read may have left the data as it was; then the status byte is not part of the length. */
    fake.error = -EIO;
    fake.fail_bytes = DISK_BYTES;
    assert_int_equal(simple(VIRTIO_BLK_T_IN, 0, data, 4096, true, &len), VIRTIO_BLK_S_IOERR);
    assert_int_equal(len, 0);
    assert_int_equal(simple(VIRTIO_BLK_T_OUT, 0, data, 4096, false, &len), VIRTIO_BLK_S_IOERR);
    assert_int_equal(len, 1);
    fake.error = 0;
    assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, &len), 0);
    assert_int_equal(len, 1);
    /* A write with more than a status to write to. */
    segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_OUT, 0), 16, false};
    segs[1] = (struct seg){data, 512, false};
    segs[2] = (struct seg){data + 4096, 10, true};
    memset(ptr(data + 4096), 0xee, 10);
    assert_int_equal(run(segs, 3, &len), 0);
    assert_int_equal(len, 0);
    assert_int_equal(*(uint8_t *)ptr(data + 4096), 0xee);
    rig_fini();
}

/* 332, 339: zone commands are unknown to a disk without zones. */
static void checklist_332_339_unknown_types_are_unsupported(void **state)
{
    static const uint32_t types[] = {2,  3,  5,   6,   7,           9,           10,         12,
                                     15, 16, 17,  18,  19,          20,          22,         24,
                                     26, 27, 255, 256, 0x80000000u, 0x80000001u, 0xffffffffu};

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        start(state, (struct rig_options){0});
        assert_int_equal(simple(types[i], 0, rig_alloc(512, 512), 512, true, NULL), VIRTIO_BLK_S_UNSUPP);
        assert_int_equal(simple(types[i], 0, rig_alloc(512, 512), 512, false, NULL), VIRTIO_BLK_S_UNSUPP);
        assert_int_equal(simple(types[i], 0, 0, 0, false, NULL), VIRTIO_BLK_S_UNSUPP);
        assert_int_equal(fake.num_calls, 0);
        rig_fini();
    }
}

static uint8_t ranges(uint32_t type, const struct virtio_blk_range *list, unsigned n)
{
    uint64_t data = rig_alloc(16ull * n + 1, 16);

    memcpy(ptr(data), list, 16ull * n);
    return simple(type, 0, data, 16 * n, false, NULL);
}

static struct virtio_blk_range range(uint64_t sector, uint32_t sectors, uint32_t flags)
{
    return (struct virtio_blk_range){le64_put(sector), le32_put(sectors), le32_put(flags)};
}

static const uint32_t range_types[] = {VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
                                       VIRTIO_BLK_T_SECURE_ERASE};

static void checklist_333_a_type_whose_feature_is_off_is_unsupported(void **state)
{
    struct virtio_blk_range one = range(0, 8, 0);

    start(state, (struct rig_options){.features = BLK(SEG_MAX), .device = {.secure_erase = true}});
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(ranges(range_types[i], &one, 1), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(fake.num_calls, 0);
    rig_fini();
}

static void checklist_334_what_lies_outside_the_disk_fails(void **state)
{
    const uint64_t capacity = DISK_BYTES / 512;
    const struct {
        uint64_t sector;
        uint32_t bytes;
    } bad[] = {
        {capacity, 512},
        {capacity - 1, 1024},
        {capacity + 1, 0},
        {UINT64_MAX, 512},
        {UINT64_MAX, 0},
        {UINT64_MAX / 512, 512},
        {UINT64_MAX - 7, 4096},
        {1ull << 55, 512},
        {(1ull << 55) - 1, 1024},
        {1ull << 63, 512},
        {0, 513},
        {0, 511},
        {0, 1},
        {capacity - 8, 4608},
    };

    start(state, (struct rig_options){0});
    memset(fake.disk, 0x5a, DISK_BYTES);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint64_t data = rig_alloc(4608, 512);

        memset(ptr(data), 0x11, 4608);
        assert_int_equal(simple(VIRTIO_BLK_T_IN, bad[i].sector, data, bad[i].bytes, true, NULL),
                         VIRTIO_BLK_S_IOERR);
        assert_int_equal(*(uint8_t *)ptr(data), 0x11);
        assert_int_equal(simple(VIRTIO_BLK_T_OUT, bad[i].sector, data, bad[i].bytes, false, NULL),
                         VIRTIO_BLK_S_IOERR);
    }
    assert_int_equal(fake.num_calls, 0);
    rig_fini();
}

static void no_bytes_at_all_are_read_and_written_at_once(void **state)
{
    start(state, (struct rig_options){0});
    assert_int_equal(simple(VIRTIO_BLK_T_IN, 0, 0, 0, true, NULL), 0);
    assert_int_equal(simple(VIRTIO_BLK_T_OUT, DISK_BYTES / 512, 0, 0, false, NULL), 0);
    assert_int_equal(fake.num_calls, 0);
    rig_fini();
}

static void a_short_header_is_answered(void **state)
{
    for (unsigned bytes = 1; bytes < 16; bytes++) {
        uint64_t status;
        struct seg segs[2];

        start(state, (struct rig_options){0});
        status = rig_alloc(1, 1);
        segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_IN, 0), bytes, false};
        segs[1] = (struct seg){status, 1, true};
        assert_int_equal(run(segs, 2, NULL), VIRTIO_BLK_S_IOERR);
        rig_fini();
    }
    start(state, (struct rig_options){0});
    assert_int_equal(run(&(struct seg){rig_alloc(16, 16), 16, true}, 1, NULL), VIRTIO_BLK_S_IOERR);
    rig_fini();
}

static void checklist_334_no_room_for_a_status_breaks_the_ring(void **state)
{
    start(state, (struct rig_options){.num_queues = 2});
    rig_add(0, &(struct seg){rig_header(VIRTIO_BLK_T_IN, 0), 16, false}, 1);
    rig_kick(0);
    assert_int_equal(rig.resets, 1);
    assert_true(virtio_blk_needs_reset(rig.device));
    assert_non_null(strstr(rig.why, "status"));
    /* Nothing else happens, however often it is kicked; the event came once. */
    rig_request(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
    rig_kick(0);
    rig_kick(0);
    assert_int_equal(rig.resets, 1);
    assert_int_equal(fake.num_calls, 0);
    rig_stop(0);
    rig_stop(1);
    virtio_blk_reset(rig.device);
    assert_false(virtio_blk_needs_reset(rig.device));
    rig_fini();
}

static void checklist_321_a_read_only_disk_refuses_every_change(void **state)
{
    for (unsigned accepted = 0; accepted < 2; accepted++) {
        uint64_t data;
        struct virtio_blk_range one = range(0, 8, 0);

        start(state, (struct rig_options){.read_only = true,
                                          .features = accepted ? all_blk : BLK(FLUSH) | BLK(DISCARD),
                                          .device = {.secure_erase = true}});
        assert_true(virtio_blk_device_features(rig.device) & BLK(RO));
        data = rig_alloc(512, 512);
        assert_int_equal(simple(VIRTIO_BLK_T_OUT, 0, data, 512, false, NULL), VIRTIO_BLK_S_IOERR);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(ranges(range_types[i], &one, 1), VIRTIO_BLK_S_IOERR);
        assert_int_equal(fake.num_calls, 0);
        assert_int_equal(simple(VIRTIO_BLK_T_IN, 0, data, 512, true, NULL), 0);
        /* A flush is no change. */
        assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), 0);
        rig_fini();
    }
}

static void checklist_322_323_flags_of_ranges(void **state)
{
    start(state, (struct rig_options){.device = {.secure_erase = true}});
    for (unsigned t = 0; t < 3; t++)
        for (unsigned bit = 0; bit < 32; bit++) {
            /* The second of two: still nothing is done. */
            struct virtio_blk_range two[2] = {range(0, 8, 0), range(8, 8, 1u << bit)};
            bool allowed = range_types[t] == VIRTIO_BLK_T_WRITE_ZEROES && bit == 0;
            unsigned calls = fake.num_calls;

            assert_int_equal(ranges(range_types[t], two, 2), allowed ? 0 : VIRTIO_BLK_S_UNSUPP);
            assert_int_equal(fake.num_calls - calls, allowed ? 2 : 0);
        }
    rig_fini();
}

static void checklist_335_limits_of_ranges_are_enforced(void **state)
{
    struct virtio_blk_range list[40];
    const uint64_t capacity = DISK_BYTES / 512;

    start(state, (struct rig_options){.device = {.secure_erase = true}});
    for (unsigned t = 0; t < 3; t++) {
        uint32_t type = range_types[t];
        uint64_t data = rig_alloc(64, 16);

        for (unsigned i = 0; i < 40; i++)
            list[i] = range(i, 1, 0);
        assert_int_equal(ranges(type, list, 33), VIRTIO_BLK_S_IOERR);
        for (unsigned bytes = 1; bytes < 64; bytes++)
            if (bytes % 16)
                assert_int_equal(simple(type, 0, data, bytes, false, NULL), VIRTIO_BLK_S_IOERR);
        list[1] = range(capacity - 1, 2, 0);
        assert_int_equal(ranges(type, list, 2), VIRTIO_BLK_S_IOERR);
        list[1] = range(UINT64_MAX, 1, 0);
        assert_int_equal(ranges(type, list, 2), VIRTIO_BLK_S_IOERR);
        list[1] = range(0, UINT32_MAX, 0);
        assert_int_equal(ranges(type, list, 2), VIRTIO_BLK_S_IOERR);
        list[1] = range(UINT64_MAX / 512 + 1, 8, 0);
        assert_int_equal(ranges(type, list, 2), VIRTIO_BLK_S_IOERR);
        assert_int_equal(fake.num_calls, 0);
    }
    for (unsigned i = 0; i < 32; i++)
        list[i] = range(i * 2, 1, 0);
    assert_int_equal(ranges(VIRTIO_BLK_T_DISCARD, list, 32), 0);
    assert_int_equal(fake.num_calls, 32);
    rig_fini();
}

static void checklist_336_a_list_of_ranges_may_be_cut_anywhere(void **state)
{
    for (unsigned cut = 1; cut < 32; cut++) {
        uint64_t data, status;
        struct seg segs[4];
        struct virtio_blk_range two[2] = {range(3, 5, 0), range(100, 28, 1)};

        start(state, (struct rig_options){0});
        data = rig_alloc(32, 1);
        status = rig_alloc(1, 1);
        memcpy(ptr(data), two, 32);
        segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_WRITE_ZEROES, 0), 16, false};
        segs[1] = (struct seg){data, cut, false};
        segs[2] = (struct seg){data + cut, 32 - cut, false};
        segs[3] = (struct seg){status, 1, true};
        memset(fake.disk, 0xff, DISK_BYTES);
        assert_int_equal(run(segs, 4, NULL), 0);
        assert_int_equal(fake.num_calls, 2);
        assert_int_equal(fake.calls[0].offset, 3 * 512);
        assert_int_equal(fake.calls[0].bytes, 5 * 512);
        assert_int_equal(fake.calls[0].flags, 0);
        assert_int_equal(fake.calls[1].offset, 100 * 512);
        assert_int_equal(fake.calls[1].flags, NODE_IO_MAY_UNMAP);
        rig_fini();
    }
}

static void checklist_337_empty_and_overlapping_ranges(void **state)
{
    struct virtio_blk_range list[4] = {range(0, 8, 0), range(4, 0, 0), range(4, 8, 0), range(0, 8, 0)};

    start(state, (struct rig_options){0});
    assert_int_equal(ranges(VIRTIO_BLK_T_DISCARD, list, 4), 0);
    assert_int_equal(fake.num_calls, 3);
    assert_int_equal(ranges(VIRTIO_BLK_T_DISCARD, list, 0), 0);
    list[0] = range(DISK_BYTES / 512, 0, 0);
    assert_int_equal(ranges(VIRTIO_BLK_T_DISCARD, list, 1), 0);
    rig_fini();
}

static void a_range_that_fails_fails_the_request(void **state)
{
    struct virtio_blk_range list[3] = {range(0, 8, 0), range(8, 8, 0), range(16, 8, 0)};

    start(state, (struct rig_options){0});
    fake.error = -EIO;
    fake.fail_offset = 8 * 512;
    fake.fail_bytes = 1;
    assert_int_equal(ranges(VIRTIO_BLK_T_WRITE_ZEROES, list, 3), VIRTIO_BLK_S_IOERR);
    assert_int_equal(fake.num_calls, 2);
    rig_fini();
}

/* Appendix 2, 16: some drivers take the direction from the type's lowest bit. */
static void secure_erase_takes_its_list_from_writable_memory_too(void **state)
{
    struct virtio_blk_range one = range(8, 8, 0);
    uint64_t data;

    start(state, (struct rig_options){.device = {.secure_erase = true}});
    memset(fake.disk, 0xff, DISK_BYTES);
    data = rig_alloc(16, 16);
    memcpy(ptr(data), &one, 16);
    assert_int_equal(simple(VIRTIO_BLK_T_SECURE_ERASE, 0, data, 16, true, NULL), 0);
    assert_int_equal(fake.disk[8 * 512], 0);
    assert_int_equal(fake.disk[8 * 512 - 1], 0xff);
    rig_fini();
}

static void checklist_338_get_id_writes_what_fits(void **state)
{
    static const unsigned sizes[] = {0, 1, 19, 20, 21, 4096};

    for (unsigned i = 0; i < 6; i++) {
        unsigned bytes = sizes[i], fits = bytes < 20 ? bytes : 20;
        uint64_t data;
        uint32_t len;
        char expected[20] = "a serial number";

        start(state, (struct rig_options){.device = {.serial = "a serial number"}});
        data = rig_alloc(4096 + 1, 1);
        memset(ptr(data), 0xcc, 4097);
        assert_int_equal(simple(VIRTIO_BLK_T_GET_ID, 0, data, bytes, true, &len), 0);
        assert_memory_equal(ptr(data), expected, fits);
        assert_int_equal(*(uint8_t *)ptr(data + fits), 0xcc);
        assert_true(len == (bytes <= 20 ? bytes + 1 : 20));
        rig_fini();
    }
}

static void get_id_needs_no_terminator(void **state)
{
    uint64_t data;

    start(state, (struct rig_options){.device = {.serial = "12345678901234567890"}});
    data = rig_alloc(20, 1);
    assert_int_equal(simple(VIRTIO_BLK_T_GET_ID, 0, data, 20, true, NULL), 0);
    assert_memory_equal(ptr(data), "12345678901234567890", 20);
    rig_fini();
}

static void failures_of_the_disk_are_reported(void **state)
{
    uint64_t data;

    start(state, (struct rig_options){0});
    data = rig_alloc(512, 512);
    fake.error = -EIO;
    fake.fail_bytes = DISK_BYTES;
    fake.fail_flush = true;
    assert_int_equal(simple(VIRTIO_BLK_T_OUT, 0, data, 512, false, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), VIRTIO_BLK_S_IOERR);
    rig_fini();
}

/* More segments than are kept: the status still gets its place. */
static void checklist_47_a_chain_too_long_is_answered(void **state)
{
    static struct seg segs[1024];
    unsigned n = layout_of(state)->features & BIT(INDIRECT_DESC) ? 1024 : 1000;
    uint64_t data, status;

    start(state, (struct rig_options){.size = 1024});
    data = rig_alloc(8192, 512);
    status = rig_alloc(1, 1);
    segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_IN, 0), 16, false};
    for (unsigned i = 1; i + 1 < n; i++)
        segs[i] = (struct seg){NEXT_ADDR - 256, 512, true}; /* counts twice: it crosses regions */
    segs[n - 1] = (struct seg){status, 1, true};
    assert_int_equal(run(segs, n, NULL), VIRTIO_BLK_S_IOERR);
    for (unsigned i = 1; i + 1 < n; i++)
        segs[i] = (struct seg){data + i % 4 * 512, 512, true};
    assert_int_equal(run(segs, n, NULL), 0);
    rig_fini();
}

/* 138: a kick says no more than "look": whatever it carries, the ring decides. */
static void checklist_81_138_spurious_kicks_change_nothing(void **state)
{
    start(state, (struct rig_options){0});
    for (unsigned i = 0; i < 1000; i++)
        rig_kick(0);
    assert_int_equal(rig.interrupts[0], 0);
    assert_int_equal(fake.num_calls, 0);
    assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), 0);
    rig_fini();
}

/* One interrupt for all that was completed in one turn of the loop. */
static void a_batch_takes_one_interrupt(void **state)
{
    struct virtio_blk_queue_stats stats;
    uint16_t id;
    uint32_t len;
    unsigned n = 0;
    uint64_t data;

    start(state, (struct rig_options){0});
    data = rig_alloc(512, 512);
    for (unsigned i = 0; i < 16; i++)
        rig_request(0, VIRTIO_BLK_T_IN, 3 * i, data, 512, true);
    rig_kick(0);
    while (rig_used(0, &id, &len))
        n++;
    assert_int_equal(n, 16);
    assert_int_equal(rig.interrupts[0], 1);
    virtio_blk_queue_stats(rig.device, 0, &stats);
    assert_int_equal(stats.popped, 16);
    assert_int_equal(stats.completed, 16);
    assert_int_equal(stats.batches, 1);
    assert_int_equal(stats.interrupts, 1);
    rig_fini();
}

/* 89, 100, 112: without IN_ORDER as they complete, with it as they came; each exactly once. */
static void checklist_89_order_of_completion(void **state)
{
    bool in_order = layout_of(state)->features & BIT(IN_ORDER);
    struct rig_request requests[12];
    uint16_t id;
    uint32_t len;
    unsigned seen = 0;

    start(state, (struct rig_options){0});
    fake.hold = true;
    for (unsigned i = 0; i < 12; i++)
        requests[i] = rig_request(0, VIRTIO_BLK_T_IN, 3 * i, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    assert_int_equal(fake.num_held, 12);
    for (unsigned i = 0; i < 12; i++) {
        /* The fifth fails: its data is not "used completely", so a batch must end with it. */
        if (fake.held[fake.num_held - 1]->offset == 4 * 3 * 512) {
            fake.error = -EIO;
            fake.fail_offset = 4 * 3 * 512;
            fake.fail_bytes = 512;
        }
        fake_release(fake.num_held - 1); /* the youngest first */
        rig_settle();
        while (rig_used(0, &id, &len)) {
            unsigned expected = in_order ? seen : 11 - seen;

            assert_int_equal(id, requests[expected].id);
            assert_int_equal(rig_status(requests[expected].status), expected == 4 ? 1 : 0);
            if (in_order)
                assert_true(expected == 4 ? len == 0 : len == 513 || len == UINT32_MAX);
            else
                assert_int_equal(len, expected == 4 ? 0 : 513);
            seen++;
        }
        assert_int_equal(seen, in_order ? (i == 11 ? 12 : 0) : i + 1);
    }
    rig_fini();
}

static void hundreds_of_requests_go_round_the_ring(void **state)
{
    static const unsigned sizes[] = {8, 16, 64, 5, 7, 100};
    uint16_t id;
    uint32_t len;

    for (unsigned s = 0; s < 6; s++) {
        bool packed = layout_of(state)->features & BIT(RING_PACKED);
        bool indirect = layout_of(state)->features & BIT(INDIRECT_DESC);
        unsigned size = sizes[s], places = indirect ? 1 : 3, done = 0, sent = 0;
        uint64_t mark, data;
        static uint64_t status[65536];
        unsigned seed = 1;

        if (!packed && (size & (size - 1)))
            continue; /* 97: only a packed ring may have any size */
        start(state, (struct rig_options){.size = size});
        data = rig_alloc(8 * 512, 512);
        mark = rig.low_used;
        fake.hold = true;
        while (done < 1000) {
            seed = seed * 1103515245u + 12345u;
            while (sent < 1000 && rig_room(0, places) && (seed >> 20) % 5) {
                struct rig_request request;

                if (rig.low_used > LOW_BYTES - 65536)
                    rig.low_used = mark + 65536; /* long done with */
                request = rig_request(0, VIRTIO_BLK_T_IN, seed % 8000, data, 512, true);
                status[request.id] = request.status;
                sent++;
                seed = seed * 1103515245u + 12345u;
            }
            rig_kick(0);
            while (fake.num_held > 0 && (seed >> 16) % 4) {
                fake_release((seed >> 18) % fake.num_held);
                seed = seed * 1103515245u + 12345u;
            }
            rig_settle();
            while (rig_used(0, &id, &len)) {
                assert_int_equal(rig_status(status[id]), 0);
                done++;
            }
        }
        assert_int_equal(rig.resets, 0);
        rig_fini();
    }
}

static void an_id_in_flight_cannot_be_made_available_again(void **state)
{
    if (layout_of(state)->features & BIT(RING_PACKED))
        return; /* ids of a packed ring are the driver's affair; places are counted */
    start(state, (struct rig_options){0});
    fake.hold = true;
    rig_request(0, VIRTIO_BLK_T_IN, 0, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    rig.queues[0].avail->ring[rig.queues[0].avail_idx++ % 64] = le16_put(0);
    rig_kick(0);
    assert_int_equal(rig.resets, 1);
    assert_non_null(strstr(rig.why, "while it is in flight"));
    assert_int_equal(fake.num_held, 1);
    rig_fini();
}

/* A queue that is stopped finishes what is in flight, fetches nothing more, and goes on where it was. */
static void a_queue_stops_and_goes_on(void **state)
{
    struct rig_start stopped;
    struct rig_request last;
    uint16_t id;
    uint32_t len;

    start(state, (struct rig_options){0});
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), 0);
    stopped = rig_stop(0);
    if (!(layout_of(state)->features & BIT(RING_PACKED)))
        assert_int_equal(stopped.last_avail, 5);
    last = rig_request(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
    rig_kick(0);
    assert_int_equal(rig_status(last.status), 0xee);
    rig_stop(0); /* once more is fine */
    rig.setup[0].last_avail_idx = stopped.last_avail;
    rig.setup[0].last_used_idx = stopped.last_used;
    /* Work that waits is found without a kick. */
    assert_int_equal(rig_start(0), 0);
    rig_settle();
    assert_int_equal(rig_status(last.status), 0);
    assert_true(rig_used(0, &id, &len));
    assert_int_equal(id, last.id);
    rig_fini();
}

static void stop_entry(void *arg)
{
    virtio_blk_co_queue_stop(rig.device, 0, NULL, NULL);
    *(bool *)arg = true;
}

/* 23, 33: after the stop nothing touches the rings. */
static void checklist_33_stopping_waits_for_what_is_in_flight(void **state)
{
    bool stopped = false;
    struct rig_request request;

    start(state, (struct rig_options){0});
    fake.hold = true;
    request = rig_request(0, VIRTIO_BLK_T_IN, 0, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    co_enter(co_create(stop_entry, &stopped));
    rig_settle();
    assert_false(stopped);
    fake_release(0);
    rig_settle();
    assert_true(stopped);
    assert_int_equal(rig_status(request.status), 0);
    assert_int_equal(rig.interrupts[0], 1);
    rig_fini();
}

/* 34, 37: a queue that was reset starts at its default state, with another size if the driver likes. */
static void checklist_34_37_a_queue_is_set_up_again_with_another_size(void **state)
{
    start(state, (struct rig_options){.num_queues = 2});
    for (unsigned size = 4; size <= 128; size *= 2) {
        assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), 0);
        rig_stop(0);
        rig_lay_out(0, size);
        assert_int_equal(rig_start(0), 0);
    }
    assert_int_equal(rig.resets, 0);
    rig_fini();
}

static void a_start_that_is_not_possible_says_why(void **state)
{
    start(state, (struct rig_options){.no_start = true, .device = {.queue_size_max = 64}});
    rig_lay_out(0, 128);
    assert_int_equal(rig_start(0), -EINVAL);
    rig_lay_out(0, 64);
    rig.setup[0].desc = (uint8_t *)rig.setup[0].desc + 1;
    assert_int_equal(rig_start(0), -EINVAL);
    rig_lay_out(0, 64);
    assert_int_equal(rig_start(0), 0);
    assert_int_equal(rig_start(0), -EBUSY);
    rig_fini();
}

/* More long requests than there is memory for at a time: the rest waits in the ring, nothing is lost. */
static void fetching_waits_for_memory(void **state)
{
    enum { COUNT = 500, SEGMENTS = 8 };
    struct virtio_blk_queue_stats stats;
    struct seg segs[SEGMENTS + 2];
    uint64_t status, header, data;
    uint16_t id;
    uint32_t len;
    unsigned n = 0;

    if (!(layout_of(state)->features & BIT(INDIRECT_DESC)))
        return;
    start(state, (struct rig_options){.size = 512, .device = {.queue_size_max = 512}});
    status = rig_alloc(COUNT, 1);
    memset(ptr(status), 0xee, COUNT);
    header = rig_header(VIRTIO_BLK_T_IN, 0);
    data = rig_alloc(512, 512);
    fake.hold = true;
    for (unsigned i = 0; i < COUNT; i++) {
        segs[0] = (struct seg){header, 16, false};
        for (unsigned k = 1; k <= SEGMENTS; k++)
            segs[k] = (struct seg){data, 512, true};
        segs[SEGMENTS + 1] = (struct seg){status + i, 1, true};
        rig_add(0, segs, SEGMENTS + 2);
    }
    rig_kick(0);
    assert_int_equal(fake.num_held, 256);
    virtio_blk_queue_stats(rig.device, 0, &stats);
    assert_true(stats.stalls > 0);
    while (n < COUNT) {
        if (fake.num_held > 0)
            fake_release(0);
        rig_settle();
        while (rig_used(0, &id, &len))
            n++;
    }
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(rig_status(status + i), 0);
    rig_fini();
}

static void eventfds_kick_and_interrupt(void **state)
{
    uint64_t count;
    struct rig_request request;

    start(state, (struct rig_options){.no_start = true});
    rig.setup[0].kick_fd = eventfd(0, EFD_NONBLOCK);
    rig.setup[0].call_fd = eventfd(0, EFD_NONBLOCK);
    assert_int_equal(rig_start(0), 0);
    request = rig_request(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
    rig_publish(0);
    assert_int_equal(write(rig.setup[0].kick_fd, &(uint64_t){1}, 8), 8);
    rig_settle();
    assert_int_equal(rig_status(request.status), 0);
    assert_int_equal(read(rig.setup[0].call_fd, &count, 8), 8);
    assert_int_equal(count, 1);
    rig_stop(0);
    close(rig.setup[0].kick_fd);
    close(rig.setup[0].call_fd);
    rig_fini();
}

/* 50, 101: what the driver gives to be read stays as it was, whatever becomes of the request. */
static void checklist_50_101_readable_buffers_are_not_written(void **state)
{
    static uint8_t before[8192];
    uint64_t area, status;
    struct seg segs[3];

    start(state, (struct rig_options){.device = {.secure_erase = true}});
    area = rig_alloc(8192, 512);
    status = rig_alloc(64, 64);
    for (uint32_t type = 0; type < 32; type++)
        for (unsigned bytes = 16; bytes <= 4096; bytes *= 16) {
            struct virtio_blk_req_header header = {.type = le32_put(type), .sector = le64_put(bytes / 256)};

            fill(ptr(area), 8192, type + bytes);
            memcpy(ptr(area), &header, 16);
            memcpy(before, ptr(area), 8192);
            segs[0] = (struct seg){area, 16, false};
            segs[1] = (struct seg){area + 512, bytes, false};
            segs[2] = (struct seg){status, 1, true};
            run(segs, 3, NULL);
            assert_memory_equal(before, ptr(area), 8192);
        }
    rig_fini();
}

/* 99, 112: requests are taken in the order of the ring. */
static void checklist_99_112_requests_are_taken_in_ring_order(void **state)
{
    uint64_t data;

    start(state, (struct rig_options){0});
    data = rig_alloc(512, 512);
    fake.hold = true;
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < 10; i++)
            rig_request(0, VIRTIO_BLK_T_IN, (i * 7 + round * 3) % 11 * 100, data, 512, true);
    rig_kick(0);
    assert_int_equal(fake.num_calls, 20);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(fake.calls[i].offset, (i % 10 * 7 + i / 10 * 3) % 11 * 100 * 512);
    rig_fini();
}

/* 6, 7: an index that jumps breaks the ring, and the transport is told at once. */
static void checklist_6_7_a_broken_ring_asks_for_a_reset(void **state)
{
    struct virtio_blk_queue_stats stats;

    start(state, (struct rig_options){0});
    if (rig.queues[0].packed) {
        /* A list that goes on in a descriptor that is not available. */
        rig.queues[0].pdesc[0].flags = le16_put(VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_NEXT);
        rig.queues[0].pdesc[0].addr = le64_put(LOW_ADDR);
        rig.queues[0].pdesc[0].len = le32_put(16);
        virtio_blk_queue_kick(rig.device, 0);
    } else {
        le16_store(&rig.queues[0].avail->idx, 65);
        virtio_blk_queue_kick(rig.device, 0);
    }
    assert_int_equal(rig.resets, 1);
    assert_true(virtio_blk_needs_reset(rig.device));
    virtio_blk_queue_stats(rig.device, 0, &stats);
    assert_int_equal(stats.broken, 1);
    assert_int_equal(stats.popped, 0);
    rig_fini();
}

/* One queue's broken ring is no other queue's affair, and what was in flight on it is still given back. */
static void a_broken_ring_leaves_the_others_alone(void **state)
{
    struct rig_request flying, other;
    uint16_t id;
    uint32_t len;

    start(state, (struct rig_options){.num_queues = 2});
    fake.hold = true;
    flying = rig_request(0, VIRTIO_BLK_T_IN, 0, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    rig_add(0, &(struct seg){rig_header(VIRTIO_BLK_T_IN, 0), 16, false}, 1);
    rig_kick(0);
    assert_int_equal(rig.resets, 1);
    fake_release_all();
    rig_settle();
    assert_true(rig_used(0, &id, &len));
    assert_int_equal(rig_status(flying.status), 0);
    other = rig_request(1, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
    rig_kick(1);
    assert_int_equal(rig_status(other.status), 0);
    rig_fini();
}

/* The largest queue there is. */
static void a_queue_of_32768_works(void **state)
{
    bool indirect = layout_of(state)->features & BIT(INDIRECT_DESC);

    start(state, (struct rig_options){.size = 32768, .device = {.queue_size_max = 32768}});
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), 0);
    /* Its end as well: the driver's place and the device's are moved there. */
    if (rig.queues[0].packed) {
        uint16_t at = 32766;

        rig_stop(0);
        rig.queues[0].next_desc = rig.queues[0].used_idx = at;
        rig.setup[0].last_avail_idx = rig.setup[0].last_used_idx = (uint16_t)(0x8000 | at);
        for (unsigned i = 0; i < at; i++)
            rig.queues[0].pdesc[i].flags = le16_put(VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED);
        assert_int_equal(rig_start(0), 0);
        for (unsigned i = 0; i < 100; i++)
            assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), 0);
        assert_false(rig.queues[0].avail_wrap);
        assert_int_equal(rig.queues[0].next_desc, (at + 100 * (indirect ? 1 : 2)) % 32768);
    }
    rig_fini();
}

/* 324, 325: what was write-zeroed reads as zeroes, with unmap and without; only unmap may give space back. */
static void checklist_324_325_write_zeroes(void **state)
{
    uint64_t data;

    start(state, (struct rig_options){0});
    data = rig_alloc(4096, 512);
    for (unsigned unmap = 0; unmap < 2; unmap++) {
        struct virtio_blk_range one = range(8, 8, unmap);

        memset(fake.disk, 0xff, 65536);
        fake.num_calls = 0;
        assert_int_equal(ranges(VIRTIO_BLK_T_WRITE_ZEROES, &one, 1), 0);
        assert_int_equal(fake.calls[0].flags, unmap ? NODE_IO_MAY_UNMAP : 0);
        memset(ptr(data), 0xee, 4096);
        assert_int_equal(simple(VIRTIO_BLK_T_IN, 8, data, 4096, true, NULL), 0);
        for (unsigned i = 0; i < 4096; i++)
            assert_int_equal(*(uint8_t *)ptr(data + i), 0);
    }
    rig_fini();
}

/* 329: a flush on one queue goes down after the writes that completed on another. */
static void checklist_329_a_flush_covers_every_queue(void **state)
{
    uint16_t id;
    uint32_t len;

    start(state, (struct rig_options){.num_queues = 2});
    rig_request(0, VIRTIO_BLK_T_OUT, 0, rig_alloc(512, 512), 512, false);
    rig_kick(0);
    assert_true(rig_used(0, &id, &len));
    rig_request(1, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
    rig_kick(1);
    assert_true(rig_used(1, &id, &len));
    assert_int_equal(fake.num_calls, 2);
    assert_int_equal(fake.calls[0].op, BLK_WRITE);
    assert_int_equal(fake.calls[1].op, BLK_FLUSH);
    rig_fini();
}

/* ---- the device apart from its rings: layout does not matter ---- */

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

/* 8, 22: nothing of the negotiation is left after a reset. */
static void checklist_22_30_a_reset_forgets_the_negotiation(void **state)
{
    struct virtio_blk_config config;

    start(state, (struct rig_options){0});
    assert_int_equal(virtio_blk_config_write(rig.device, 32, "\0", 1), 0);
    rig_stop(0);
    virtio_blk_reset(rig.device);
    virtio_blk_config_read(rig.device, 0, &config, sizeof(config));
    assert_int_equal(config.writeback, 1);
    assert_int_equal(virtio_blk_config_write(rig.device, 32, "\0", 1), -EINVAL);
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

typedef void test_function(void **state);

#define EACH_LAYOUT(f) \
    {                  \
#f, f, true    \
    }
#define ONCE(f)      \
    {                \
#f, f, false \
    }

static const struct {
    const char *name;
    test_function *function;
    bool each;
} cases[] = {
    EACH_LAYOUT(reads_and_writes_move_the_bytes),
    EACH_LAYOUT(checklist_46_any_framing_is_understood),
    EACH_LAYOUT(checklist_46_a_header_of_sixteen_bytes_in_as_many_descriptors),
    EACH_LAYOUT(checklist_83_the_used_length_counts_what_was_written),
    EACH_LAYOUT(checklist_332_339_unknown_types_are_unsupported),
    EACH_LAYOUT(checklist_333_a_type_whose_feature_is_off_is_unsupported),
    EACH_LAYOUT(checklist_334_what_lies_outside_the_disk_fails),
    EACH_LAYOUT(no_bytes_at_all_are_read_and_written_at_once),
    EACH_LAYOUT(a_short_header_is_answered),
    EACH_LAYOUT(checklist_334_no_room_for_a_status_breaks_the_ring),
    EACH_LAYOUT(checklist_321_a_read_only_disk_refuses_every_change),
    EACH_LAYOUT(checklist_322_323_flags_of_ranges),
    EACH_LAYOUT(checklist_335_limits_of_ranges_are_enforced),
    EACH_LAYOUT(checklist_336_a_list_of_ranges_may_be_cut_anywhere),
    EACH_LAYOUT(checklist_337_empty_and_overlapping_ranges),
    EACH_LAYOUT(a_range_that_fails_fails_the_request),
    EACH_LAYOUT(secure_erase_takes_its_list_from_writable_memory_too),
    EACH_LAYOUT(checklist_338_get_id_writes_what_fits),
    EACH_LAYOUT(get_id_needs_no_terminator),
    EACH_LAYOUT(failures_of_the_disk_are_reported),
    EACH_LAYOUT(checklist_47_a_chain_too_long_is_answered),
    EACH_LAYOUT(checklist_81_138_spurious_kicks_change_nothing),
    EACH_LAYOUT(a_batch_takes_one_interrupt),
    EACH_LAYOUT(checklist_89_order_of_completion),
    EACH_LAYOUT(hundreds_of_requests_go_round_the_ring),
    EACH_LAYOUT(an_id_in_flight_cannot_be_made_available_again),
    EACH_LAYOUT(a_queue_stops_and_goes_on),
    EACH_LAYOUT(checklist_33_stopping_waits_for_what_is_in_flight),
    EACH_LAYOUT(checklist_34_37_a_queue_is_set_up_again_with_another_size),
    EACH_LAYOUT(a_start_that_is_not_possible_says_why),
    EACH_LAYOUT(fetching_waits_for_memory),
    EACH_LAYOUT(eventfds_kick_and_interrupt),
    EACH_LAYOUT(checklist_50_101_readable_buffers_are_not_written),
    EACH_LAYOUT(checklist_99_112_requests_are_taken_in_ring_order),
    EACH_LAYOUT(checklist_6_7_a_broken_ring_asks_for_a_reset),
    EACH_LAYOUT(a_broken_ring_leaves_the_others_alone),
    EACH_LAYOUT(a_queue_of_32768_works),
    EACH_LAYOUT(checklist_324_325_write_zeroes),
    EACH_LAYOUT(checklist_329_a_flush_covers_every_queue),
    ONCE(checklist_326_may_unmap_is_told),
    ONCE(checklist_22_30_a_reset_forgets_the_negotiation),
    ONCE(checklist_15_17_257_258_259_274_only_known_features_are_offered),
    ONCE(checklist_16_18_19_sets_of_features),
    ONCE(checklist_263_276_configuration),
    ONCE(a_tail_that_is_no_whole_block_is_not_offered),
    ONCE(checklist_320_a_change_of_capacity_is_announced),
    ONCE(checklist_275_327_328_write_cache),
    ONCE(options_that_are_not_possible_are_refused),
};

#define CASES (sizeof(cases) / sizeof(cases[0]))

int main(void)
{
    static struct CMUnitTest tests[CASES * LAYOUTS];
    static char names[CASES * LAYOUTS][160];
    size_t n = 0;

    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t c = 0; c < CASES; c++) {
            if (l > 0 && !cases[c].each)
                continue;
            snprintf(names[n], sizeof(names[n]), "%s%s%s", cases[c].each ? layouts[l].name : "",
                     cases[c].each ? ": " : "", cases[c].name);
            tests[n].name = names[n];
            tests[n].test_func = cases[c].function;
            tests[n].initial_state = (void *)&layouts[l];
            n++;
        }
    return _cmocka_run_group_tests("virtio_blk", tests, n, NULL, NULL);
}
