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

#include "host/device/ring_inflight.h"
#include "host/device/zoned.h"
#include "tests/unit/device_rig.h"

#define ZONE  64u /* sectors */
#define CONV  2u
#define ZONES 8u /* the last one is smaller */
#define LAST  40u
#define BYTES ((7u * ZONE + LAST) * 512u)

#define OK           VIRTIO_BLK_S_OK
#define INVALID      VIRTIO_BLK_S_ZONE_INVALID_CMD
#define UNALIGNED    VIRTIO_BLK_S_ZONE_UNALIGNED_WP
#define OPEN_SHORT   VIRTIO_BLK_S_ZONE_OPEN_RESOURCE
#define ACTIVE_SHORT VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE

static char state_path[200];
static unsigned num_queues = 1, asked_queue;
static bool in_order;

static struct rig_options options_for(uint32_t max_open, uint32_t max_active, uint32_t max_append)
{
    return (struct rig_options){.features = VIRTIO_BIT(VIRTIO_BLK_F_ZONED) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                                            VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC),
                                .size = 256,
                                .num_queues = num_queues,
                                .device = {.request_merging = true,
                                           .discard = true,
                                           .secure_erase = true,
                                           .zoned = {.zone_sectors = ZONE,
                                                     .conventional_zones = CONV,
                                                     .max_open_zones = max_open,
                                                     .max_active_zones = max_active,
                                                     .max_append_sectors = max_append,
                                                     .state_path = state_path[0] ? state_path : NULL}}};
}

static void start_with(uint32_t max_open, uint32_t max_active, uint32_t max_append)
{
    struct rig_options options = options_for(max_open, max_active, max_append);

    rig_length = BYTES;
    rig_init(&options);
    rig_length = 0;
}

static void start(void)
{
    start_with(0, 0, 32);
}

static uint8_t ask(uint32_t type, uint64_t sector, uint64_t data, uint32_t bytes, bool write)
{
    struct rig_request request = rig_request(asked_queue, type, sector, data, bytes, write);
    uint16_t id = 0;
    uint32_t len;

    rig_kick(asked_queue);
    assert_true(rig_used(asked_queue, &id, &len));
    return rig_status(request.status);
}

static uint8_t out(uint64_t sector, uint32_t sectors)
{
    uint64_t data = rig_alloc(sectors * 512, 512);

    memset(ptr(data), (int)(sector % 250) + 1, sectors * 512);
    return ask(VIRTIO_BLK_T_OUT, sector, data, sectors * 512, false);
}

static uint8_t manage(uint32_t type, uint64_t sector)
{
    return ask(type, sector, 0, 0, false);
}

static uint8_t append(uint64_t sector, uint32_t sectors, uint64_t *at)
{
    uint64_t data = rig_alloc(sectors * 512 + 1, 512), trailer = rig_alloc(9, 1);
    struct seg segs[3] = {{rig_header(VIRTIO_BLK_T_ZONE_APPEND, sector), 16, false},
                          {data, sectors * 512, false},
                          {trailer, 9, true}};
    uint16_t id = 0;
    uint32_t len;
    le64 where;

    memset(ptr(data), 0x77, sectors * 512);
    memset(ptr(trailer), 0xee, 9);
    rig_add(asked_queue, segs, 3);
    rig_kick(asked_queue);
    assert_true(rig_used(asked_queue, &id, &len));
    memcpy(&where, ptr(trailer), 8);
    *at = le64_get(where);
    if (rig_status(trailer + 8) == OK)
        assert_int_equal(len, 9);
    return rig_status(trailer + 8);
}

static struct virtio_blk_zone_descriptor zone(unsigned index)
{
    uint64_t data = rig_alloc(128, 64);

    assert_int_equal(ask(VIRTIO_BLK_T_ZONE_REPORT, index * ZONE, data, 128, true), OK);
    return ((struct virtio_blk_zone_descriptor *)ptr(data))[1];
}

static uint8_t state_of(unsigned index)
{
    return zone(index).z_state;
}

/* Brings zone INDEX into STATE, as commands do it. */
static void bring(unsigned index, uint8_t state)
{
    uint64_t sector = index * ZONE;

    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_RESET, sector), OK);
    if (state == VIRTIO_BLK_ZS_IOPEN || state == VIRTIO_BLK_ZS_CLOSED)
        assert_int_equal(out(sector, 1), OK);
    if (state == VIRTIO_BLK_ZS_EOPEN)
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_OPEN, sector), OK);
    if (state == VIRTIO_BLK_ZS_CLOSED)
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_CLOSE, sector), OK);
    if (state == VIRTIO_BLK_ZS_FULL)
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_FINISH, sector), OK);
    assert_int_equal(state_of(index), state);
}

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
        {VIRTIO_BLK_T_ZONE_CLOSE, {0, VIRTIO_BLK_ZS_CLOSED, VIRTIO_BLK_ZS_CLOSED, VIRTIO_BLK_ZS_CLOSED, 0}},
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

/* Zone states survive, and what was in flight at a death is taken up again where it belongs. */
static void states_survive_a_restart(void **state)
{
    struct rig_request requests[3];
    struct rig_options options;
    uint64_t data, region;
    uint16_t id = 0;
    uint32_t len;

    snprintf(state_path, sizeof(state_path), "%s/zones.%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
             getpid());
    start();
    bring(2, VIRTIO_BLK_ZS_FULL);
    bring(3, VIRTIO_BLK_ZS_EOPEN);
    bring(4, VIRTIO_BLK_ZS_CLOSED);
    assert_int_equal(ask(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), OK);
    rig_fini();
    options = options_for(0, 0, 32);
    options.no_start = true;
    options.device.request_merging = false;
    rig_length = BYTES;
    rig_init(&options);
    rig_length = 0;
    region = rig_alloc(ring_inflight_bytes(false, 256), 64);
    rig.setup[0].inflight = ptr(region);
    rig.setup[0].inflight_bytes = ring_inflight_bytes(false, 256);
    assert_int_equal(rig_start(0), 0);
    assert_int_equal(state_of(2), VIRTIO_BLK_ZS_FULL);
    assert_int_equal(state_of(3), VIRTIO_BLK_ZS_EOPEN);
    assert_int_equal(state_of(4), VIRTIO_BLK_ZS_CLOSED);
    assert_int_equal(le64_get(zone(4).z_wp), 4 * ZONE + 1);
    /* Three writes that fill zone 7; the second ends, then comes death: the queue leaves the others in the
     * region. */
    data = rig_alloc(LAST * 512, 512);
    memset(ptr(data), 0x5b, LAST * 512);
    fake.hold = true;
    requests[0] = rig_request(0, VIRTIO_BLK_T_OUT, 7 * ZONE, data, 8 * 512, false);
    requests[1] = rig_request(0, VIRTIO_BLK_T_OUT, 7 * ZONE + 8, data, 8 * 512, false);
    requests[2] = rig_request(0, VIRTIO_BLK_T_OUT, 7 * ZONE + 16, data, (LAST - 16) * 512, false);
    rig_kick(0);
    assert_int_equal(fake.num_held, 3);
    fake_release(1);
    rig_settle();
    assert_true(rig_used(0, &id, &len));
    {
        /* A copy of what is shared, as it is now, is what the next one finds. */
        static uint8_t low[LOW_BYTES], file[64 + ZONES * 16];
        struct rig_queue driver = rig.queues[0];
        uint64_t low_used = rig.low_used;
        int fd = open(state_path, O_RDWR);

        memcpy(low, rig.low, low_used);
        assert_int_equal(pread(fd, file, sizeof(file), 0), sizeof(file));
        rig_detach();
        assert_int_equal(pwrite(fd, file, sizeof(file), 0), sizeof(file));
        close(fd);
        memcpy(rig.low, low, low_used);
        rig.queues[0] = driver;
    }
    memset(fake.disk + 7 * ZONE * 512, 0, 8 * 512);
    rig_attach(&options);
    assert_int_equal(rig_start(0), 0);
    rig_settle();
    while (rig_used(0, &id, &len))
        ;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(rig_status(requests[i].status), OK);
    assert_int_equal(fake.disk[7 * ZONE * 512], 0x5b);
    assert_int_equal(state_of(7), VIRTIO_BLK_ZS_FULL);
    rig_fini();
    start();
    assert_int_equal(state_of(7), VIRTIO_BLK_ZS_FULL);
    rig_fini();
    unlink(state_path);
    state_path[0] = 0;
}

/* ---- appends over a death ---- */

struct append_in_flight {
    uint64_t trailer;
};

static struct append_in_flight append_send(unsigned index, uint32_t sectors, uint8_t byte)
{
    uint64_t data = rig_alloc(sectors * 512, 512), trailer = rig_alloc(9, 1);
    struct seg segs[3] = {{rig_header(VIRTIO_BLK_T_ZONE_APPEND, index * ZONE), 16, false},
                          {data, sectors * 512, false},
                          {trailer, 9, true}};

    memset(ptr(data), byte, sectors * 512);
    memset(ptr(trailer), 0xee, 9);
    rig_add(0, segs, 3);
    rig_kick(0);
    return (struct append_in_flight){trailer};
}

static uint64_t append_place(struct append_in_flight append)
{
    le64 where;

    assert_int_equal(rig_status(append.trailer + 8), OK);
    memcpy(&where, ptr(append.trailer), 8);
    return le64_get(where);
}

/* What is shared with the driver, and the file of states, at a moment */
static struct moment {
    uint8_t low[LOW_BYTES], file[64 + ZONES * 16 + 256 * 32];
    uint64_t low_used;
    struct rig_queue driver;
} moment;

static void keep_ring(void)
{
    memcpy(moment.low, rig.low, rig.low_used);
    moment.low_used = rig.low_used;
    moment.driver = rig.queues[0];
}

static void keep_file(void)
{
    int fd = open(state_path, O_RDONLY);

    assert_int_equal(read(fd, moment.file, sizeof(moment.file)), sizeof(moment.file));
    close(fd);
}

/* The device dies at the moments that were kept; what takes over serves the ring as it was then. */
static void die_and_start(const struct rig_options *options)
{
    int fd;

    rig_detach();
    fake.hold = false;
    fd = open(state_path, O_WRONLY);
    assert_int_equal(write(fd, moment.file, sizeof(moment.file)), sizeof(moment.file));
    close(fd);
    memcpy(rig.low, moment.low, moment.low_used);
    rig.low_used = moment.low_used;
    rig.queues[0] = moment.driver;
    rig_attach(options);
}

static void start_tracked(struct rig_options *options, bool packed)
{
    uint64_t region;

    snprintf(state_path, sizeof(state_path), "%s/zones.%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
             getpid());
    *options = options_for(0, 0, 32);
    options->no_start = true;
    if (packed)
        options->features |= VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    if (in_order)
        options->features |= VIRTIO_BIT(VIRTIO_F_IN_ORDER);
    options->device.write_error = VIRTIO_BLK_ENOSPC;
    rig_length = BYTES;
    rig_init(options);
    rig_length = 0;
    region = rig_alloc(ring_inflight_bytes(packed, 256), 64);
    rig.setup[0].inflight = ptr(region);
    rig.setup[0].inflight_bytes = ring_inflight_bytes(packed, 256);
    assert_int_equal(rig_start(0), 0);
}

static void end_tracked(void)
{
    rig_fini();
    unlink(state_path);
    state_path[0] = 0;
}

static void take_all_used(void)
{
    uint16_t id = 0;
    uint32_t len;

    rig_settle();
    while (rig_used(0, &id, &len))
        ;
}

/* Three appends in flight, the second is done, then comes death: the others keep their places, the zone has
 * no hole, and nothing is there twice. */
static void appends_taken_up_again_go_where_they_went(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        struct append_in_flight appends[3];
        struct rig_options options;
        uint64_t at;

        start_tracked(&options, packed);
        assert_int_equal(append(3 * ZONE, 4, &at), OK);
        fake.hold = true;
        for (unsigned i = 0; i < 3; i++)
            appends[i] = append_send(3, 8, (uint8_t)(0x50 + i));
        assert_int_equal(fake.num_held, 3);
        fake_release(1);
        take_all_used();
        assert_int_equal(append_place(appends[1]), 3 * ZONE + 12);
        keep_ring();
        keep_file();
        die_and_start(&options);
        memset(fake.disk + (3 * ZONE + 4) * 512, 0, 8 * 512); /* it had not got there */
        assert_int_equal(rig_start(0), 0);
        take_all_used();
        for (unsigned i = 0; i < 3; i++) {
            assert_int_equal(append_place(appends[i]), 3 * ZONE + 4 + 8 * i);
            assert_int_equal(fake.disk[(3 * ZONE + 4 + 8 * i) * 512], 0x50 + i);
        }
        assert_int_equal(le64_get(zone(3).z_wp), 3 * ZONE + 28);
        end_tracked();
    }
}

/* Done and written down as done, but death comes before the driver is shown it: the same answer once more. */
static void an_append_that_was_done_is_not_done_twice(void **state)
{
    struct append_in_flight one;
    struct rig_options options;

    start_tracked(&options, false);
    fake.hold = true;
    one = append_send(7, LAST - 8, 0x33); /* and one that fills the zone */
    keep_ring();
    fake_release(0);
    take_all_used();
    assert_int_equal(append_place(one), 7 * ZONE);
    keep_file();
    die_and_start(&options);
    assert_int_equal(rig_start(0), 0);
    take_all_used();
    assert_int_equal(append_place(one), 7 * ZONE);
    assert_int_equal(le64_get(zone(7).z_wp), 7 * ZONE + LAST - 8);
    fake.hold = true;
    one = append_send(7, 8, 0x34);
    keep_ring();
    keep_file();
    die_and_start(&options);
    assert_int_equal(rig_start(0), 0);
    take_all_used();
    assert_int_equal(append_place(one), 7 * ZONE + LAST - 8);
    assert_int_equal(state_of(7), VIRTIO_BLK_ZS_FULL);
    end_tracked();
}

/* Refused before death, but not answered: refused again, although it lies below the write pointer as only a
 * write does that had begun. What had begun goes on. */
static void a_write_that_was_refused_before_death_does_not_pass_after_it(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        struct rig_request wrong[2], right[2];
        struct rig_options options;
        uint64_t data;

        in_order = true; /* nothing is answered while the first request is in flight */
        start_tracked(&options, packed);
        assert_int_equal(out(3 * ZONE, 16), OK);
        assert_int_equal(out(4 * ZONE, ZONE), OK);
        data = rig_alloc(8 * 512, 512);
        memset(ptr(data), 0xfe, 8 * 512);
        fake.hold = true;
        rig_request(0, VIRTIO_BLK_T_IN, 0, rig_alloc(512, 512), 512, true);
        wrong[0] = rig_request(0, VIRTIO_BLK_T_OUT, 3 * ZONE + 8, data, 8 * 512, false);
        wrong[1] = rig_request(0, VIRTIO_BLK_T_OUT, 4 * ZONE, data, 8 * 512, false);
        right[0] = rig_request(0, VIRTIO_BLK_T_OUT, 3 * ZONE + 16, data, 4 * 512, false);
        right[1] = rig_request(0, VIRTIO_BLK_T_OUT, 3 * ZONE + 20, data, 4 * 512, false);
        rig_kick(0);
        assert_int_equal(rig_status(wrong[0].status), UNALIGNED);
        assert_int_equal(rig_status(wrong[1].status), INVALID);
        keep_ring();
        keep_file();
        die_and_start(&options);
        assert_int_equal(rig_start(0), 0);
        take_all_used();
        assert_int_equal(rig.queues[0].in_flight, 0);
        assert_int_equal(rig_status(wrong[0].status), UNALIGNED);
        assert_int_equal(rig_status(wrong[1].status), INVALID);
        assert_int_equal(rig_status(right[0].status), OK);
        assert_int_equal(rig_status(right[1].status), OK);
        assert_int_equal(fake.disk[(3 * ZONE + 8) * 512], (3 * ZONE) % 250 + 1);
        assert_int_equal(fake.disk[4 * ZONE * 512], (4 * ZONE) % 250 + 1);
        assert_int_equal(fake.disk[(3 * ZONE + 23) * 512], 0xfe);
        assert_int_equal(le64_get(zone(3).z_wp), 3 * ZONE + 24);
        end_tracked();
        in_order = false;
    }
}

/* A reset that was carried out, and not answered before death, does not empty what was written since; nor is
 * any other command done again. */
static void a_command_that_was_done_is_not_done_twice(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        struct rig_request commands[3];
        struct rig_options options;

        in_order = true;
        num_queues = 2;
        start_tracked(&options, packed);
        num_queues = 1;
        assert_int_equal(rig_start(1), 0);
        assert_int_equal(out(3 * ZONE, 16), OK);
        fake.hold = true;
        rig_request(0, VIRTIO_BLK_T_IN, 0, rig_alloc(512, 512), 512, true);
        commands[0] = rig_request(0, VIRTIO_BLK_T_ZONE_RESET, 3 * ZONE, 0, 0, false);
        commands[1] = rig_request(0, VIRTIO_BLK_T_ZONE_FINISH, 4 * ZONE, 0, 0, false);
        commands[2] = rig_request(0, VIRTIO_BLK_T_ZONE_RESET_ALL, 0, 0, 0, false);
        rig_kick(0);
        keep_ring();
        fake_release_all();
        take_all_used();
        asked_queue = 1;
        assert_int_equal(out(3 * ZONE, 8), OK);
        assert_int_equal(out(4 * ZONE, 4), OK);
        asked_queue = 0;
        keep_file();
        die_and_start(&options);
        assert_int_equal(rig_start(0), 0);
        take_all_used();
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(rig_status(commands[i].status), OK);
        assert_int_equal(le64_get(zone(3).z_wp), 3 * ZONE + 8);
        assert_int_equal(state_of(4), VIRTIO_BLK_ZS_IOPEN);
        assert_int_equal(le64_get(zone(4).z_wp), 4 * ZONE + 4);
        end_tracked();
        in_order = false;
    }
}

/* An append that is left to the region when its queue stops: another queue's goes behind it. */
static void a_parked_append_keeps_its_place_for_who_takes_it_up_again(void **state)
{
    struct append_in_flight one;
    struct rig_options options;
    struct rig_start stopped;
    uint64_t at;

    num_queues = 2;
    start_tracked(&options, false);
    num_queues = 1;
    assert_int_equal(rig_start(1), 0);
    fake.error = -ENOSPC;
    fake.fail_bytes = BYTES;
    one = append_send(3, 8, 0x50);
    assert_int_equal(rig.stops, 1);
    stopped = rig_stop(0);
    fake.error = 0;
    asked_queue = 1;
    assert_int_equal(append(3 * ZONE, 8, &at), OK);
    assert_int_equal(at, 3 * ZONE + 8);
    asked_queue = 0;
    rig.setup[0].last_avail_idx = stopped.last_avail;
    rig.setup[0].last_used_idx = stopped.last_used;
    assert_int_equal(rig_start(0), 0);
    take_all_used();
    assert_int_equal(append_place(one), 3 * ZONE);
    assert_int_equal(fake.disk[3 * ZONE * 512], 0x50);
    assert_int_equal(fake.disk[(3 * ZONE + 8) * 512], 0x77);
    end_tracked();
}

/* Its state is in the file, its write pointer not yet. */
static void a_zone_that_was_being_reset_at_death_is_empty(void **state)
{
    const uint8_t empty = VIRTIO_BLK_ZS_EMPTY;
    struct rig_options options;
    int fd;

    start_tracked(&options, false);
    assert_int_equal(out(3 * ZONE, 16), OK);
    rig_detach();
    fd = open(state_path, O_RDWR);
    assert_int_equal(pwrite(fd, &empty, 1, 64 + 3 * 16 + 8), 1);
    close(fd);
    for (unsigned round = 0; round < 2; round++) {
        rig_attach(&options);
        rig_lay_out(0, 256); /* and no inflight region */
        assert_int_equal(rig_start(0), 0);
        assert_int_equal(state_of(3), round == 0 ? VIRTIO_BLK_ZS_EMPTY : VIRTIO_BLK_ZS_EOPEN);
        assert_int_equal(le64_get(zone(3).z_wp), 3 * ZONE);
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_OPEN, 3 * ZONE), OK);
        rig_detach();
    }
    end_tracked();
}

/* Another front end, with another region, knows nothing of them: their zones are as if they had never begun,
 * and an append that looks like one of them is a new one. */
static void appends_of_a_front_end_that_is_gone_are_forgotten(void **state)
{
    struct append_in_flight one;
    struct rig_options options;
    uint64_t at;

    start_tracked(&options, false);
    fake.hold = true;
    append_send(3, 8, 0x50);
    append_send(7, 8, 0x51);
    keep_ring();
    keep_file();
    die_and_start(&options);
    memset(rig.setup[0].inflight, 0, rig.setup[0].inflight_bytes);
    rig_lay_out(0, 256);
    rig.setup[0].inflight = rig_map(rig.setup[0].inflight_bytes = ring_inflight_bytes(false, 256));
    assert_int_equal(rig_start(0), 0);
    assert_int_equal(le64_get(zone(3).z_wp), 3 * ZONE);
    assert_int_equal(append(3 * ZONE, 8, &at), OK);
    assert_int_equal(at, 3 * ZONE);
    /* Reset, and used again: what was there before the reset holds no more. */
    fake.hold = true;
    append_send(4, 8, 0x52);
    fake_release(0);
    take_all_used();
    fake.hold = false;
    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_RESET, 4 * ZONE), OK);
    fake.hold = true;
    one = append_send(4, 4, 0x53);
    fake_release_all();
    take_all_used();
    assert_int_equal(append_place(one), 4 * ZONE);
    assert_int_equal(le64_get(zone(4).z_wp), 4 * ZONE + 4);
    munmap(rig.setup[0].inflight, rig.setup[0].inflight_bytes);
    end_tracked();
}

/* A device with other queues than the one before it keeps the places that it has room for; a file from before
 * there were places is taken as well. */
static void places_survive_another_layout(void **state)
{
    const struct virtio_blk_zoned_options options = {
        .zone_sectors = ZONE, .conventional_zones = CONV, .max_append_sectors = 16, .state_path = state_path};
    const struct zoned_ticket first = {.queue = 0, .entry = 3, .counter = 9, .tracked = true};
    struct zoned_ticket ticket = {.queue = 1, .entry = 5, .counter = 7, .tracked = true};
    const struct inflight_request held = {.entry = 5, .counter = 7};
    struct error err = {""};
    struct zoned *zoned;
    uint64_t at;

    snprintf(state_path, sizeof(state_path), "%s/zones.%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
             getpid());
    zoned = zoned_create(&options, BYTES / 512, 1, 0, 0, &err);
    zoned_destroy(zoned);
    zoned = zoned_create(&options, BYTES / 512, 1, 2, 8, &err);
    assert_non_null(zoned);
    assert_int_equal(zoned_append_begin(zoned, 3 * ZONE, 8, &first, &at), OK);
    assert_int_equal(zoned_append_begin(zoned, 3 * ZONE, 8, &ticket, &at), OK);
    assert_int_equal(at, 3 * ZONE + 8);
    zoned_destroy(zoned);
    zoned = zoned_create(&options, BYTES / 512, 1, 4, 16, &err);
    assert_non_null(zoned);
    zoned_queue_starts(zoned, 1, &held, 1);
    ticket.again = true;
    assert_int_equal(zoned_append_begin(zoned, 3 * ZONE, 8, &ticket, &at), OK);
    assert_int_equal(at, 3 * ZONE + 8);
    zoned_destroy(zoned);
    /* No room for it */
    zoned = zoned_create(&options, BYTES / 512, 1, 1, 8, &err);
    assert_non_null(zoned);
    zoned_destroy(zoned);
    zoned = zoned_create(&options, BYTES / 512, 1, 4, 16, &err);
    assert_non_null(zoned);
    zoned_queue_starts(zoned, 0, NULL, 0);
    assert_int_equal(zoned_append_begin(zoned, 3 * ZONE, 8, &ticket, &at), OK);
    assert_int_equal(at, 3 * ZONE);
    zoned_destroy(zoned);
    unlink(state_path);
    state_path[0] = 0;
}

static void files_of_states_are_checked(void **state)
{
    const struct virtio_blk_zoned_options options = {
        .zone_sectors = ZONE, .conventional_zones = CONV, .state_path = state_path};
    struct virtio_blk_zoned_options other = options;
    const struct zoned_ticket nobody = {0};
    struct zoned *zoned;
    struct error err = {""};
    uint8_t good[64 + ZONES * 16];
    int fd;

    snprintf(state_path, sizeof(state_path), "%s/zones.%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
             getpid());
    zoned = zoned_create(&options, BYTES / 512, 1, 0, 0, &err);
    assert_non_null(zoned);
    zoned_destroy(zoned);
    assert_null(zoned_create(&options, BYTES / 512 + 8, 1, 0, 0, &err));
    assert_null(zoned_create(&options, BYTES / 512 + ZONE, 1, 0, 0, &err));
    other.zone_sectors = ZONE * 2;
    assert_null(zoned_create(&other, BYTES / 512, 1, 0, 0, &err));
    other = options;
    other.conventional_zones = CONV + 1;
    assert_null(zoned_create(&other, BYTES / 512, 1, 0, 0, &err));
    fd = open(state_path, O_RDWR);
    assert_int_equal(pread(fd, good, sizeof(good), 0), sizeof(good));
    /* No byte of it may do harm; most single changes are refused. */
    for (unsigned i = 0; i < sizeof(good); i++)
        for (unsigned value = 0; value < 256; value += 15) {
            uint8_t byte = (uint8_t)value;

            assert_int_equal(pwrite(fd, &byte, 1, i), 1);
            zoned = zoned_create(&options, BYTES / 512, 1, 0, 0, &err);
            if (zoned) {
                uint64_t written;
                struct virtio_blk_zone_descriptor zones[ZONES];

                for (unsigned z = 0; z < ZONES; z++) {
                    zoned_write_begin(zoned, z * ZONE, 8, &nobody);
                    zoned_write_end(zoned, z * ZONE, 8, &nobody, true);
                    assert_int_equal(zoned_read(zoned, z * ZONE, 8, &written) & ~(unsigned)INVALID, 0);
                    assert_true(written <= 8);
                }
                assert_int_equal(zoned_report(zoned, 0, zones, ZONES), ZONES);
                zoned_destroy(zoned);
            }
            assert_int_equal(pwrite(fd, good, sizeof(good), 0), sizeof(good));
        }
    assert_int_equal(ftruncate(fd, sizeof(good) - 1), 0);
    assert_null(zoned_create(&options, BYTES / 512, 1, 0, 0, &err));
    close(fd);
    unlink(state_path);
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
        cmocka_unit_test(states_survive_a_restart),
        cmocka_unit_test(appends_taken_up_again_go_where_they_went),
        cmocka_unit_test(an_append_that_was_done_is_not_done_twice),
        cmocka_unit_test(a_write_that_was_refused_before_death_does_not_pass_after_it),
        cmocka_unit_test(a_command_that_was_done_is_not_done_twice),
        cmocka_unit_test(a_parked_append_keeps_its_place_for_who_takes_it_up_again),
        cmocka_unit_test(a_zone_that_was_being_reset_at_death_is_empty),
        cmocka_unit_test(appends_of_a_front_end_that_is_gone_are_forgotten),
        cmocka_unit_test(places_survive_another_layout),
        cmocka_unit_test(files_of_states_are_checked),
        cmocka_unit_test(numbers_that_are_not_possible_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
