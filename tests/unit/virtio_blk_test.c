/*
 * Requests of the block device (virtio 1.4, 5.2.6) over every ring layout. Numbers are those of the rule in
 * the project's checklist of the specification.
 */
#include "tests/unit/virtio_blk_layouts.h"

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

/* 2^23 sectors are 2^32 bytes: what is left of that in 32 bits is not taken for the range that was meant. */
static void ranges_of_4_gib_are_not_taken_for_short_ones(void **state)
{
    static const uint32_t counts[] = {1u << 23, (1u << 23) + 1, (1u << 24) + 8, (1u << 31) + 1};

    rig_length = 1ull << 40;
    start(state, (struct rig_options){.device = {.secure_erase = true}});
    rig_length = 0;
    fake.error = -EIO; /* nothing is done to the few bytes that there really are */
    fake.fail_bytes = 1ull << 40;
    for (unsigned t = 0; t < 3; t++) {
        struct virtio_blk_range one;

        for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
            one = range(0, counts[i], 0);
            assert_int_equal(ranges(range_types[t], &one, 1), VIRTIO_BLK_S_IOERR);
            assert_int_equal(fake.num_calls, t);
        }
        /* The longest that is allowed */
        one = range(8, 1u << 22, 0);
        assert_int_equal(ranges(range_types[t], &one, 1), VIRTIO_BLK_S_IOERR);
        assert_int_equal(fake.num_calls, t + 1);
        assert_int_equal(fake.calls[t].bytes, 1ull << 31);
    }
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

int main(void)
{
    static const struct layout_case cases[] = {
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
        EACH_LAYOUT(ranges_of_4_gib_are_not_taken_for_short_ones),
        EACH_LAYOUT(checklist_336_a_list_of_ranges_may_be_cut_anywhere),
        EACH_LAYOUT(checklist_337_empty_and_overlapping_ranges),
        EACH_LAYOUT(a_range_that_fails_fails_the_request),
        EACH_LAYOUT(secure_erase_takes_its_list_from_writable_memory_too),
        EACH_LAYOUT(checklist_338_get_id_writes_what_fits),
        EACH_LAYOUT(get_id_needs_no_terminator),
        EACH_LAYOUT(failures_of_the_disk_are_reported),
        EACH_LAYOUT(checklist_47_a_chain_too_long_is_answered),
        EACH_LAYOUT(checklist_324_325_write_zeroes),
        EACH_LAYOUT(checklist_329_a_flush_covers_every_queue),
    };

    return run_cases("virtio_blk", cases, sizeof(cases) / sizeof(cases[0]));
}
