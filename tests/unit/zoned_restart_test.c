/*
 * The file of zone states over the death of its device: what was in flight is done once, refused writes stay
 * refused, and a file is not believed more than it deserves (virtio 1.4, 5.2.6; vhost-user, "Inflight I/O
 * tracking").
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <unistd.h>

#include "host/device/ring_inflight.h"
#include "tests/unit/zoned_rig.h"

static bool in_order;

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

int main(void)
{
    const struct CMUnitTest tests[] = {
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
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
