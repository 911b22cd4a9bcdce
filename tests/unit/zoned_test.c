/*
 * The emulated host-managed zoned disk (virtio 1.4, 5.2.6). Numbers are those of the rule in the project's
 * checklist of the specification.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <unistd.h>

#include "tests/unit/zoned_rig.h"

static void checklist_280_to_285_configuration(void **state)
{
    struct virtio_blk_config config;

    start_with(3, 4, 32);
    virtio_blk_config_read(rig.device, 0, &config, sizeof(config));
    assert_int_equal(config.zoned.model, VIRTIO_BLK_Z_HM);
    assert_int_equal(le32_get(config.zoned.zone_sectors), ZONE);
    assert_int_equal(le32_get(config.zoned.max_open_zones), 3);
    assert_int_equal(le32_get(config.zoned.max_active_zones), 4);
    assert_int_equal(le32_get(config.zoned.max_append_sectors), 32);
    assert_int_equal(le32_get(config.zoned.write_granularity), 512);
    /* 270: nothing to discard on a host-managed disk, nor (355) to erase but by a reset of its zones. 280: it
     * is not for a driver without ZONED. */
    assert_int_equal(virtio_blk_device_features(rig.device) &
                         (VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) | VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE)),
                     0);
    rig_stop(0);
    assert_int_equal(virtio_blk_set_features(rig.device, VIRTIO_BIT(VIRTIO_F_VERSION_1)), -EINVAL);
    rig_fini();
}

static void checklist_277_279_an_ordinary_disk_knows_no_zones(void **state)
{
    struct virtio_blk_config config;

    rig_init(&(struct rig_options){0});
    assert_int_equal(virtio_blk_device_features(rig.device) & VIRTIO_BIT(VIRTIO_BLK_F_ZONED), 0);
    virtio_blk_config_read(rig.device, 0, &config, sizeof(config));
    assert_int_equal(config.zoned.model, 0);
    assert_int_equal(le32_get(config.zoned.zone_sectors), 0);
    rig_fini();
}

static void checklist_356_report(void **state)
{
    static const unsigned sizes[] = {64, 65, 127, 128, 191, 192, 64 * 9, 64 * 20};
    struct virtio_blk_zone_descriptor last;

    start();
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned fit = (sizes[i] - 64) / 64, expected = fit < ZONES ? fit : ZONES;
        uint64_t data = rig_alloc(64 * 21, 64);
        struct virtio_blk_zone_report *report = ptr(data);
        const struct virtio_blk_zone_descriptor *zones = (const void *)(report + 1);

        memset(report, 0xee, 64 * 21);
        /* Any sector of the first zone will do. */
        assert_int_equal(ask(VIRTIO_BLK_T_ZONE_REPORT, 5, data, sizes[i], true), OK);
        assert_int_equal(le64_get(report->nr_zones), expected);
        for (unsigned b = 0; b < sizeof(report->reserved); b++)
            assert_int_equal(report->reserved[b], 0);
        for (unsigned z = 0; z < expected; z++) {
            assert_int_equal(le64_get(zones[z].z_start), z * ZONE);
            assert_int_equal(le64_get(zones[z].z_cap), z == ZONES - 1 ? LAST : ZONE);
            assert_int_equal(zones[z].z_type, z < CONV ? VIRTIO_BLK_ZT_CONV : VIRTIO_BLK_ZT_SWR);
            assert_int_equal(zones[z].z_state, z < CONV ? VIRTIO_BLK_ZS_NOT_WP : VIRTIO_BLK_ZS_EMPTY);
            if (z >= CONV)
                assert_int_equal(le64_get(zones[z].z_wp), z * ZONE);
            for (unsigned b = 0; b < sizeof(zones[z].reserved); b++)
                assert_int_equal(zones[z].reserved[b], 0);
        }
        assert_int_equal(((uint8_t *)ptr(data))[64 + 64 * expected], 0xee);
    }
    assert_int_equal(ask(VIRTIO_BLK_T_ZONE_REPORT, 0, rig_alloc(63, 1), 63, true), INVALID);
    assert_int_equal(ask(VIRTIO_BLK_T_ZONE_REPORT, BYTES / 512, rig_alloc(128, 1), 128, true), INVALID);
    last = zone(ZONES - 1);
    assert_int_equal(le64_get(last.z_cap), LAST);
    rig_fini();
}

/* 340, 342, 344: state by operation. */
static void checklist_344_states_and_operations(void **state)
{
    static const uint8_t states[] = {VIRTIO_BLK_ZS_EMPTY, VIRTIO_BLK_ZS_IOPEN, VIRTIO_BLK_ZS_EOPEN,
                                     VIRTIO_BLK_ZS_CLOSED, VIRTIO_BLK_ZS_FULL};
    static const struct {
        uint32_t type;
        uint8_t to[5]; /* 0: refused */
    } operations[] = {
        {VIRTIO_BLK_T_ZONE_OPEN,
         {VIRTIO_BLK_ZS_EOPEN, VIRTIO_BLK_ZS_EOPEN, VIRTIO_BLK_ZS_EOPEN, VIRTIO_BLK_ZS_EOPEN, 0}},
        {VIRTIO_BLK_T_ZONE_CLOSE, /* what was opened and not written to is empty again (5.2.6) */
         {0, VIRTIO_BLK_ZS_CLOSED, VIRTIO_BLK_ZS_EMPTY, VIRTIO_BLK_ZS_CLOSED, 0}},
        {VIRTIO_BLK_T_ZONE_FINISH,
         {VIRTIO_BLK_ZS_FULL, VIRTIO_BLK_ZS_FULL, VIRTIO_BLK_ZS_FULL, VIRTIO_BLK_ZS_FULL,
          VIRTIO_BLK_ZS_FULL}},
        {VIRTIO_BLK_T_ZONE_RESET,
         {VIRTIO_BLK_ZS_EMPTY, VIRTIO_BLK_ZS_EMPTY, VIRTIO_BLK_ZS_EMPTY, VIRTIO_BLK_ZS_EMPTY,
          VIRTIO_BLK_ZS_EMPTY}},
    };

    start();
    for (unsigned s = 0; s < 5; s++)
        for (unsigned o = 0; o < 4; o++) {
            uint8_t to = operations[o].to[s];

            bring(3, states[s]);
            assert_int_equal(manage(operations[o].type, 3 * ZONE), to ? OK : INVALID);
            assert_int_equal(state_of(3), to ? to : states[s]);
        }
    for (unsigned o = 0; o < 4; o++) {
        assert_int_equal(manage(operations[o].type, 0), INVALID);            /* conventional */
        assert_int_equal(manage(operations[o].type, 3 * ZONE + 1), INVALID); /* not its first sector */
        assert_int_equal(manage(operations[o].type, BYTES / 512), INVALID);
        assert_int_equal(manage(operations[o].type, UINT64_MAX), INVALID);
    }
    rig_fini();
}

static void checklist_345_reset_all(void **state)
{
    start();
    bring(2, VIRTIO_BLK_ZS_IOPEN);
    bring(3, VIRTIO_BLK_ZS_EOPEN);
    bring(4, VIRTIO_BLK_ZS_CLOSED);
    bring(5, VIRTIO_BLK_ZS_FULL);
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_RESET_ALL, 0), OK);
    for (unsigned i = 2; i < ZONES; i++) {
        assert_int_equal(state_of(i), VIRTIO_BLK_ZS_EMPTY);
        assert_int_equal(le64_get(zone(i).z_wp), i * ZONE);
    }
    rig_fini();
}

/* 348, 351, 352, 354 */
static void checklist_348_351_352_354_writes_go_to_the_write_pointer(void **state)
{
    uint64_t data;

    start();
    memset(fake.disk, 0xaa, BYTES);
    assert_int_equal(out(3 * ZONE, 8), OK);
    assert_int_equal(state_of(3), VIRTIO_BLK_ZS_IOPEN);
    assert_int_equal(le64_get(zone(3).z_wp), 3 * ZONE + 8);
    assert_int_equal(out(3 * ZONE, 8), UNALIGNED);
    assert_int_equal(out(3 * ZONE + 16, 8), UNALIGNED);
    assert_int_equal(out(3 * ZONE + 8, ZONE), INVALID);     /* into the next zone */
    assert_int_equal(out(3 * ZONE + 8, ZONE - 7), INVALID); /* beyond what is left */
    /* What was not written reads as zeroes, whatever lies on the disk. */
    data = rig_alloc(16 * 512, 512);
    memset(ptr(data), 0xee, 16 * 512);
    assert_int_equal(ask(VIRTIO_BLK_T_IN, 3 * ZONE + 4, data, 16 * 512, true), OK);
    assert_int_equal(*(uint8_t *)ptr(data), (3 * ZONE) % 250 + 1);
    assert_int_equal(*(uint8_t *)ptr(data + 4 * 512 - 1), (3 * ZONE) % 250 + 1);
    for (unsigned i = 4 * 512; i < 16 * 512; i++)
        assert_int_equal(*(uint8_t *)ptr(data + i), 0);
    assert_int_equal(ask(VIRTIO_BLK_T_IN, 4 * ZONE, data, 512, true), OK);
    assert_int_equal(*(uint8_t *)ptr(data), 0);
    assert_int_equal(ask(VIRTIO_BLK_T_IN, 4 * ZONE - 8, data, 16 * 512, true), INVALID); /* spans two */
    assert_int_equal(ask(VIRTIO_BLK_T_IN, 2 * ZONE - 8, data, 16 * 512, true), INVALID);
    /* Conventional zones are as any disk. */
    assert_int_equal(out(ZONE - 4, 8), OK);
    assert_int_equal(out(5, 3), OK);
    assert_int_equal(ask(VIRTIO_BLK_T_IN, ZONE - 4, data, 8 * 512, true), OK);
    /* To the end: full. */
    assert_int_equal(out(3 * ZONE + 8, ZONE - 8), OK);
    assert_int_equal(state_of(3), VIRTIO_BLK_ZS_FULL);
    assert_int_equal(out(4 * ZONE - 1, 1), INVALID);
    rig_fini();
}

/* Several writes in flight follow each other, merged or not. */
static void writes_in_flight_take_their_place_at_once(void **state)
{
    struct rig_request requests[4];
    uint16_t id = 0;
    uint32_t len;
    uint64_t data;

    start();
    data = rig_alloc(512 * 4, 512);
    for (unsigned i = 0; i < 4; i++)
        requests[i] = rig_request(0, VIRTIO_BLK_T_OUT, 4 * ZONE + i, data + i * 512, 512, false);
    rig_kick(0);
    while (rig_used(0, &id, &len))
        ;
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(rig_status(requests[i].status), OK);
    assert_int_equal(fake.num_calls, 1);
    assert_int_equal(le64_get(zone(4).z_wp), 4 * ZONE + 4);
    /* One that fails gives its place back. */
    fake.error = -EIO;
    fake.fail_bytes = BYTES;
    assert_int_equal(out(4 * ZONE + 4, 4), VIRTIO_BLK_S_IOERR);
    fake.error = 0;
    assert_int_equal(le64_get(zone(4).z_wp), 4 * ZONE + 4);
    assert_int_equal(out(4 * ZONE + 4, 4), OK);
    rig_fini();
}

/* 342, 343, 346 */
static void checklist_346_limits_of_open_and_active_zones(void **state)
{
    start_with(2, 3, 32);
    assert_int_equal(out(2 * ZONE, 1), OK);
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_OPEN, 3 * ZONE), OK);
    /* A third: the implicitly open one makes room. */
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_OPEN, 4 * ZONE), OK);
    assert_int_equal(state_of(2), VIRTIO_BLK_ZS_CLOSED);
    /* Three are active: both limits exceeded says ACTIVE. */
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_OPEN, 5 * ZONE), ACTIVE_SHORT);
    assert_int_equal(out(5 * ZONE, 1), ACTIVE_SHORT);
    assert_int_equal(state_of(5), VIRTIO_BLK_ZS_EMPTY);
    /* The closed one is active already, but there is no room to open it. */
    assert_int_equal(out(2 * ZONE + 1, 1), OPEN_SHORT);
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_OPEN, 2 * ZONE), OPEN_SHORT);
    assert_int_equal(state_of(2), VIRTIO_BLK_ZS_CLOSED);
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_FINISH, 3 * ZONE), OK);
    assert_int_equal(out(2 * ZONE + 1, 1), OK);
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_RESET, 4 * ZONE), OK);
    assert_int_equal(out(5 * ZONE, 1), OK);
    rig_fini();
}

/* 341, 347, 349, 350 */
static void a_parked_write_that_is_failed_gives_its_place_back(void **state)
{
    struct rig_options options = options_for(0, 0, 32);
    struct rig_request request;
    struct rig_start stopped;
    uint16_t id;
    uint32_t len;

    options.device.write_error = VIRTIO_BLK_STOP;
    rig_length = BYTES;
    rig_init(&options);
    rig_length = 0;
    fake.error = -ENOSPC;
    fake.fail_bytes = BYTES;
    request = rig_request(0, VIRTIO_BLK_T_OUT, 5 * ZONE, rig_alloc(4096, 512), 4096, false);
    rig_kick(0);
    assert_int_equal(rig.stops, 1);
    stopped = rig_stop(0);
    assert_true(rig_used(0, &id, &len));
    assert_int_equal(rig_status(request.status), VIRTIO_BLK_S_IOERR);
    fake.error = 0;
    rig.setup[0].last_avail_idx = stopped.last_avail;
    rig.setup[0].last_used_idx = stopped.last_used;
    assert_int_equal(rig_start(0), 0);
    assert_int_equal(out(5 * ZONE, 8), OK);
    rig_fini();
}

static void checklist_341_347_349_350_append_says_where(void **state)
{
    uint64_t at;

    start();
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(append(5 * ZONE, 3, &at), OK);
        assert_int_equal(at, 5 * ZONE + 3 * i);
        assert_int_equal(fake.disk[at * 512], 0x77);
    }
    assert_int_equal(append(5 * ZONE + 1, 1, &at), INVALID);
    assert_int_equal(append(0, 1, &at), INVALID);
    assert_int_equal(append(5 * ZONE, 33, &at), INVALID);
    assert_int_equal(append(6 * ZONE, 32, &at), OK);
    assert_int_equal(append(6 * ZONE, 32, &at), OK);
    assert_int_equal(append(6 * ZONE, 1, &at), INVALID);
    /* No room for the answer. */
    assert_int_equal(ask(VIRTIO_BLK_T_ZONE_APPEND, 5 * ZONE, rig_alloc(512, 512), 512, false),
                     VIRTIO_BLK_S_IOERR);
    rig_fini();
    start_with(0, 0, 0);
    assert_int_equal(append(5 * ZONE, 1, &at), VIRTIO_BLK_S_UNSUPP);
    rig_fini();
}

/* The trailer of nine bytes may be cut anywhere, and stand behind other writable bytes. */
static void an_append_of_any_framing(void **state)
{
    for (unsigned cut = 0; cut <= 12; cut++) {
        uint64_t data, in;
        struct seg segs[4];
        unsigned n = 0;
        uint16_t id = 0;
        uint32_t len;
        le64 where;

        start();
        data = rig_alloc(528, 1);
        in = rig_alloc(12, 1);
        memcpy(ptr(data), ptr(rig_header(VIRTIO_BLK_T_ZONE_APPEND, 3 * ZONE)), 16);
        memset(ptr(in), 0xee, 12);
        segs[n++] = (struct seg){data, 528, false};
        if (cut > 0)
            segs[n++] = (struct seg){in, cut, true};
        if (cut < 12)
            segs[n++] = (struct seg){in + cut, 12 - cut, true};
        assert_int_equal(out(3 * ZONE, 5), OK);
        rig_add(0, segs, n);
        rig_kick(0);
        assert_true(rig_used(0, &id, &len));
        assert_int_equal(rig_status(in + 11), OK);
        memcpy(&where, ptr(in + 3), 8);
        assert_int_equal(le64_get(where), 3 * ZONE + 5);
        assert_int_equal(rig_status(in + 2), 0xee);
        rig_fini();
    }
}

static void checklist_353_read_only_and_offline_zones(void **state)
{
    static const uint8_t bad[] = {VIRTIO_BLK_ZS_RDONLY, VIRTIO_BLK_ZS_OFFLINE};

    for (unsigned i = 0; i < 2; i++) {
        uint64_t data, at;
        int fd;

        snprintf(state_path, sizeof(state_path), "%s/zones.%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
                 getpid());
        start();
        assert_int_equal(out(3 * ZONE, 8), OK);
        rig_fini();
        /* Only a disk that ages gets there; we write it into its file. */
        fd = open(state_path, O_RDWR);
        assert_int_equal(pwrite(fd, &bad[i], 1, 64 + 3 * 16 + 8), 1);
        close(fd);
        start();
        assert_int_equal(state_of(3), bad[i]);
        assert_int_equal(out(3 * ZONE + 8, 8), INVALID);
        assert_int_equal(append(3 * ZONE, 8, &at), INVALID);
        for (uint32_t type = VIRTIO_BLK_T_ZONE_OPEN; type <= VIRTIO_BLK_T_ZONE_RESET; type += 2)
            assert_int_equal(manage(type, 3 * ZONE), INVALID);
        data = rig_alloc(512, 512);
        assert_int_equal(ask(VIRTIO_BLK_T_IN, 3 * ZONE, data, 512, true), i == 0 ? OK : INVALID);
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_RESET_ALL, 0), OK);
        assert_int_equal(state_of(3), bad[i]);
        rig_fini();
        unlink(state_path);
    }
    state_path[0] = 0;
}

static void numbers_that_are_not_possible_are_refused(void **state)
{
    const struct {
        struct virtio_blk_zoned_options options;
        uint64_t capacity;
        uint32_t block;
    } cases[] = {
        {{.zone_sectors = 12}, 1000, 8},
        {{.zone_sectors = 8}, 0, 8},
        {{.zone_sectors = 8}, 8ull << 21, 8},
        {{.zone_sectors = 8, .conventional_zones = 125}, 1000, 8},
        {{.zone_sectors = 8, .max_open_zones = 5, .max_active_zones = 4}, 1000, 8},
        {{.zone_sectors = 8, .state_path = "/nonexistent/zones"}, 1000, 8},
        {{.zone_sectors = 8, .state_path = "/dev/null"}, 1000, 8},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct error err = {""};

        assert_null(zoned_create(&cases[i].options, cases[i].capacity, cases[i].block, 0, 0, &err));
        assert_string_not_equal(err.text, "");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checklist_280_to_285_configuration),
        cmocka_unit_test(checklist_277_279_an_ordinary_disk_knows_no_zones),
        cmocka_unit_test(checklist_356_report),
        cmocka_unit_test(checklist_344_states_and_operations),
        cmocka_unit_test(checklist_345_reset_all),
        cmocka_unit_test(checklist_348_351_352_354_writes_go_to_the_write_pointer),
        cmocka_unit_test(writes_in_flight_take_their_place_at_once),
        cmocka_unit_test(checklist_346_limits_of_open_and_active_zones),
        cmocka_unit_test(a_parked_write_that_is_failed_gives_its_place_back),
        cmocka_unit_test(checklist_341_347_349_350_append_says_where),
        cmocka_unit_test(an_append_of_any_framing),
        cmocka_unit_test(checklist_353_read_only_and_offline_zones),
        cmocka_unit_test(numbers_that_are_not_possible_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
