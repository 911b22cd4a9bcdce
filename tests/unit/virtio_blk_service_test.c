/*
 * What an administrator asks of the device: error policies with stop and resume, the dirty log of a
 * migration, interrupts that are put off, GET_LIFETIME, memory that is cut short. Split and packed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <unistd.h>

#include "host/device/dirty_log.h"
#include "host/device/ring_inflight.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/world.h"
#include "tests/unit/device_rig.h"

#define BLK(n) VIRTIO_BIT(VIRTIO_BLK_F_##n)

static uint64_t packed_bit(void **state)
{
    return *state ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0;
}

static void start(void **state, struct rig_options options)
{
    options.features |= packed_bit(state) | BLK(FLUSH) | BLK(DISCARD) | BLK(WRITE_ZEROES) | BLK(LIFETIME);
    options.size = 64;
    options.device.discard = true;
    rig_init(&options);
}

static unsigned used(void)
{
    uint16_t id;
    uint32_t len;
    unsigned n = 0;

    while (rig_used(0, &id, &len))
        n++;
    return n;
}

static uint8_t one(uint32_t type, uint64_t sector, uint32_t bytes)
{
    struct rig_request request =
        rig_request(0, type, sector, bytes ? rig_alloc(bytes, 512) : 0, bytes, type == VIRTIO_BLK_T_IN);

    rig_kick(0);
    assert_int_equal(used(), 1);
    return rig_status(request.status);
}

static void fail_everything(int error)
{
    fake.error = error;
    fake.fail_offset = 0;
    fake.fail_bytes = DISK_BYTES;
    fake.fail_flush = true;
}

static void errors_are_reported_or_ignored(void **state)
{
    start(state, (struct rig_options){
                     .device = {.read_error = VIRTIO_BLK_IGNORE, .write_error = VIRTIO_BLK_REPORT}});
    fail_everything(-EIO);
    assert_int_equal(one(VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
    assert_int_equal(one(VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(one(VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_IOERR);
    rig_fini();
    start(state, (struct rig_options){.device = {.write_error = VIRTIO_BLK_IGNORE}});
    fail_everything(-EIO);
    assert_int_equal(one(VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(one(VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_OK);
    rig_fini();
}

static void no_space_stops_and_other_errors_are_reported(void **state)
{
    struct rig_request request;

    start(state, (struct rig_options){.device = {.write_error = VIRTIO_BLK_ENOSPC}});
    fail_everything(-EIO);
    assert_int_equal(one(VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
    assert_int_equal(rig.stops, 0);
    fail_everything(-ENOSPC);
    request = rig_request(0, VIRTIO_BLK_T_OUT, 8, rig_alloc(512, 512), 512, false);
    rig_kick(0);
    assert_int_equal(rig.stops, 1);
    assert_int_equal(used(), 0);
    /* Still no room: parked again. */
    virtio_blk_resume(rig.device);
    rig_settle();
    assert_int_equal(rig.stops, 2);
    fake.error = 0;
    virtio_blk_resume(rig.device);
    rig_settle();
    assert_int_equal(used(), 1);
    assert_int_equal(rig_status(request.status), 0);
    rig_fini();
}

/* Every kind of request, merged ones too, is parked and done in its order once there is room. */
static void everything_can_be_stopped_and_resumed(void **state)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH,
                                     VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD};
    struct rig_request requests[5];
    struct virtio_blk_queue_stats stats;

    start(state, (struct rig_options){.device = {.write_error = VIRTIO_BLK_STOP, .request_merging = true}});
    fail_everything(-EIO);
    for (unsigned i = 0; i < 5; i++) {
        uint64_t data = rig_alloc(512, 512);
        struct virtio_blk_range ranges[2] = {{le64_put(100 + i), le32_put(1)},
                                             {le64_put(200 + i), le32_put(1)}};
        uint32_t bytes = i < 2 ? 512 : i == 2 ? 0 : 32;

        if (i >= 3)
            memcpy(ptr(data), ranges, 32);
        requests[i] = rig_request(0, types[i], i < 2 ? i : 0, data, bytes, false);
    }
    rig_kick(0);
    assert_int_equal(rig.stops, 5);
    assert_int_equal(used(), 0);
    virtio_blk_queue_stats(rig.device, 0, &stats);
    assert_int_equal(stats.parked, 5);
    fake.error = 0;
    fake.num_calls = 0;
    virtio_blk_resume(rig.device);
    rig_settle();
    assert_int_equal(used(), 5);
    virtio_blk_queue_stats(rig.device, 0, &stats);
    assert_int_equal(stats.parked, 0);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(rig_status(requests[i].status), 0);
    assert_int_equal(fake.num_calls, 7);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(fake.calls[i < 4 ? i : 5].op, i < 2    ? BLK_WRITE
                                                       : i == 2 ? BLK_FLUSH
                                                       : i == 3 ? BLK_WRITE_ZEROES
                                                                : BLK_DISCARD);
    rig_fini();
}

static void a_second_range_that_fails_is_tried_again_alone(void **state)
{
    struct virtio_blk_range ranges[2] = {{le64_put(0), le32_put(8)}, {le64_put(100), le32_put(8)}};
    struct rig_request request;
    uint64_t data;

    start(state, (struct rig_options){.device = {.write_error = VIRTIO_BLK_STOP}});
    fake.error = -EIO;
    fake.fail_offset = 100 * 512;
    fake.fail_bytes = 512;
    data = rig_alloc(32, 16);
    memcpy(ptr(data), ranges, 32);
    request = rig_request(0, VIRTIO_BLK_T_WRITE_ZEROES, 0, data, 32, false);
    rig_kick(0);
    assert_int_equal(fake.num_calls, 2);
    fake.error = 0;
    virtio_blk_resume(rig.device);
    rig_settle();
    assert_int_equal(fake.num_calls, 3);
    assert_int_equal(fake.calls[2].offset, 100 * 512);
    assert_int_equal(used(), 1);
    assert_int_equal(rig_status(request.status), 0);
    rig_fini();
}

static void a_queue_that_stops_does_not_wait_for_parked_requests(void **state)
{
    for (unsigned tracked = 0; tracked < 2; tracked++) {
        struct rig_request request;
        size_t bytes = ring_inflight_bytes(*state, 64);

        start(state, (struct rig_options){.no_start = true, .device = {.write_error = VIRTIO_BLK_STOP}});
        if (tracked) {
            rig.setup[0].inflight = ptr(rig_alloc(bytes, 64));
            rig.setup[0].inflight_bytes = bytes;
        }
        assert_int_equal(rig_start(0), 0);
        fail_everything(-ENOSPC);
        request = rig_request(0, VIRTIO_BLK_T_OUT, 0, rig_alloc(512, 512), 512, false);
        rig_kick(0);
        rig_stop(0);
        if (!tracked) {
            assert_int_equal(used(), 1);
            assert_int_equal(rig_status(request.status), VIRTIO_BLK_S_IOERR);
        } else {
            /* The inflight region keeps it for whoever comes next. */
            assert_int_equal(used(), 0);
            fake.error = 0;
            assert_int_equal(rig_start(0), 0);
            rig_settle();
            assert_int_equal(used(), 1);
            assert_int_equal(rig_status(request.status), 0);
        }
        virtio_blk_resume(rig.device);
        rig_fini();
    }
}

static void released_in_a_hurry(void *opaque)
{
    *(int *)opaque = fake.hurried;
    fake_release_all();
}

static void a_stop_does_not_wait_for_the_throttle(void **state)
{
    int hurried = -1;
    struct loop_timer timer = {.fire = released_in_a_hurry, .opaque = &hurried};

    start(state, (struct rig_options){0});
    fake.hold = true;
    rig_request(0, VIRTIO_BLK_T_IN, 0, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    loop_timer_arm(rig.loop, &timer, world_now_ns() + 1000000);
    rig_stop(0);
    assert_int_equal(hurried, 1);
    assert_int_equal(fake.hurried, 0);
    assert_int_equal(used(), 1);
    rig_fini();
}

/* IN_ORDER: what was done behind a parked request can't be used before it, and must not hold up the stop. */
static void a_queue_in_order_does_not_wait_either(void **state)
{
    struct rig_request requests[3];
    size_t bytes = ring_inflight_bytes(*state, 64);

    start(state, (struct rig_options){.no_start = true,
                                      .features = VIRTIO_BIT(VIRTIO_F_IN_ORDER),
                                      .device = {.write_error = VIRTIO_BLK_STOP}});
    rig.setup[0].inflight = ptr(rig_alloc(bytes, 64));
    rig.setup[0].inflight_bytes = bytes;
    assert_int_equal(rig_start(0), 0);
    fake.error = -ENOSPC;
    fake.fail_offset = 8 * 512;
    fake.fail_bytes = 512;
    for (unsigned i = 0; i < 3; i++)
        requests[i] = rig_request(0, VIRTIO_BLK_T_OUT, i * 8, rig_alloc(512, 512), 512, false);
    rig_kick(0);
    assert_int_equal(used(), 1);
    rig_stop(0);
    assert_int_equal(used(), 0);
    fake.error = 0;
    fake.num_calls = 0;
    assert_int_equal(rig_start(0), 0);
    rig_settle();
    assert_int_equal(fake.num_calls, 2);
    assert_int_equal(used(), 2);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(rig_status(requests[i].status), 0);
    rig_fini();
}

/* ---- the dirty log ---- */

static bool dirty(const uint8_t *log, uint64_t addr)
{
    return log[addr / 4096 / 8] >> (addr / 4096 % 8) & 1;
}

static void written_pages_are_logged(void **state)
{
    static uint8_t log[(NEXT_ADDR + NEXT_BYTES) / 4096 / 8];
    uint64_t status, data, header, quiet;
    struct seg segs[4];

    memset(log, 0, sizeof(log));
    start(state, (struct rig_options){.no_start = true});
    quiet = rig_alloc(8192, 4096);
    header = rig_header(VIRTIO_BLK_T_IN, 0);
    data = rig_alloc(16384, 4096);
    status = rig_alloc(4096, 4096);
    rig.low_used += 4096;
    rig.setup[0].log = log;
    rig.setup[0].log_bytes = sizeof(log);
    rig.setup[0].log_used = true;
    rig.setup[0].log_used_addr = rig.queues[0].device_addr.value;
    assert_int_equal(rig_start(0), 0);
    memset(log, 0, sizeof(log));
    segs[0] = (struct seg){header, 16, false};
    segs[1] = (struct seg){data + 4096, 4096 + 512, true};
    segs[2] = (struct seg){NEXT_ADDR - 512, 1024, true};
    segs[3] = (struct seg){status, 1, true};
    rig_add(0, segs, 4);
    rig_kick(0);
    assert_int_equal(used(), 1);
    assert_false(dirty(log, quiet));
    assert_false(dirty(log, header));
    assert_false(dirty(log, data));
    assert_true(dirty(log, data + 4096));
    assert_true(dirty(log, data + 8192));
    assert_false(dirty(log, data + 12288));
    assert_true(dirty(log, NEXT_ADDR - 1));
    assert_true(dirty(log, NEXT_ADDR));
    assert_true(dirty(log, status));
    assert_true(
        dirty(log, rig.queues[0].packed ? rig.queues[0].desc_addr.value : rig.queues[0].device_addr.value));
    /* A write only touches its status; GET_ID what it writes. */
    memset(log, 0, sizeof(log));
    segs[0].addr = rig_header(VIRTIO_BLK_T_OUT, 0);
    segs[1] = (struct seg){data, 512, false};
    segs[2] = segs[3];
    rig_add(0, segs, 3);
    segs[0].addr = rig_header(VIRTIO_BLK_T_GET_ID, 0);
    segs[1] = (struct seg){quiet, 20, true};
    rig_add(0, segs, 3);
    rig_kick(0);
    assert_int_equal(used(), 2);
    assert_false(dirty(log, data));
    assert_true(dirty(log, quiet));
    assert_true(dirty(log, status));
    rig_fini();
}

/* A log of 8 bytes has no bit for most pages; nothing behind it is touched. */
static void a_log_that_is_too_short_is_not_overrun(void **state)
{
    uint8_t log[16];

    memset(log, 0, sizeof(log));
    start(state, (struct rig_options){.no_start = true});
    rig.setup[0].log = log;
    rig.setup[0].log_bytes = 8;
    rig.setup[0].log_used = true;
    rig.setup[0].log_used_addr = UINT64_MAX - VIRTQ_USED_BYTES(64);
    assert_int_equal(rig_start(0), 0);
    assert_int_equal(one(VIRTIO_BLK_T_IN, 0, 4096), 0);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(log[i], 0);
    rig_fini();
}

static void pages_are_counted_right(void **state)
{
    uint8_t bits[4] = {0};
    struct dirty_log log = {bits, sizeof(bits)};

    dirty_log_mark(&log, (guest_addr){4095}, 0);
    assert_int_equal(bits[0], 0);
    dirty_log_mark(&log, (guest_addr){4095}, 1);
    assert_int_equal(bits[0], 1);
    dirty_log_mark(&log, (guest_addr){7 * 4096 + 4095}, 2);
    assert_int_equal(bits[0], 0x81);
    assert_int_equal(bits[1], 1);
    dirty_log_mark(&log, (guest_addr){31 * 4096}, 1ull << 40);
    assert_int_equal(bits[3], 0x80);
    dirty_log_mark(&log, (guest_addr){UINT64_MAX - 4096}, 4096);
}

/* ---- when interrupts come ---- */

/* The driver sleeps until entry AT, of a ring that has not gone round yet. */
static void sleep_until(bool packed, uint16_t at)
{
    if (packed) {
        rig.queues[0].driver->flags = le16_put(VIRTQ_PACKED_EVENT_DESC);
        rig.queues[0].driver->off_wrap = le16_put((uint16_t)(at | 0x8000));
    } else {
        rig.queues[0].avail->ring[rig.queues[0].size] = le16_put(at);
    }
}

static void twenty_reads(void)
{
    fake.num_calls = 0;
    for (unsigned i = 0; i < 20; i++)
        rig_request(0, VIRTIO_BLK_T_IN, i * 8, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    assert_int_equal(used(), 20);
}

/* A driver that sleeps until the first used entry is woken while most of the turn is still to be served; one
 * that sleeps until the last is not woken before; each once. */
static void a_driver_that_sleeps_is_woken_while_the_rest_is_served(void **state)
{
    struct virtio_blk_queue_stats stats;

    start(state, (struct rig_options){.features = VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |
                                                  VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC)});
    sleep_until(*state, 0);
    twenty_reads();
    assert_int_equal(rig.interrupts[0], 1);
    assert_in_range(rig.calls_then, 1, 10);
    sleep_until(*state, 39);
    twenty_reads();
    assert_int_equal(rig.interrupts[0], 2);
    assert_int_equal(rig.calls_then, 20);
    virtio_blk_queue_stats(rig.device, 0, &stats);
    assert_int_equal(stats.batches, 2);
    rig_fini();
}

/* One that wants an interrupt always gets one for all of a turn, when the turn ends. */
static void a_driver_that_names_no_entry_is_told_once(void **state)
{
    start(state, (struct rig_options){0});
    twenty_reads();
    assert_int_equal(rig.interrupts[0], 1);
    assert_int_equal(rig.calls_then, 20);
    rig_fini();
}

/* Time that goes by only when the loop has nothing to do but to wait, or a test says so: a machine that takes
 * its time brings no interrupt. */
static uint64_t clock_ns;

static uint64_t clock_now_ns(struct world *w)
{
    return clock_ns;
}

static int clock_wait(struct world *w, struct loop *l, int epoll_fd, struct epoll_event *events, int max,
                      int64_t timeout_ns)
{
    int n = world_host.wait(w, l, epoll_fd, events, max, timeout_ns < 0 ? -1 : 0);

    if (n == 0 && timeout_ns > 0)
        clock_ns += (uint64_t)timeout_ns;
    return n;
}

static struct world clock_world = {.now_ns = clock_now_ns, .wait = clock_wait};

static void start_on_own_clock(void **state, struct rig_options options)
{
    clock_ns = 1000000000;
    world = &clock_world;
    start(state, options);
}

static void end_own_clock(void)
{
    rig_fini();
    world = &world_host;
}

static void interrupts_wait_for_count_or_time(void **state)
{
    start_on_own_clock(state, (struct rig_options){.device = {.coalesce_count = 4, .coalesce_ns = 20000000}});
    fake.hold = true;
    for (unsigned i = 0; i < 10; i++)
        rig_request(0, VIRTIO_BLK_T_IN, i * 8, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(rig.interrupts[0], 0);
        fake_release(0);
        rig_settle();
    }
    assert_int_equal(rig.interrupts[0], 1);
    /* One more: only time brings it. */
    fake_release(0);
    rig_settle();
    assert_int_equal(used(), 5);
    while (rig.interrupts[0] == 1)
        loop_turn(rig.loop, true);
    assert_int_equal(rig.interrupts[0], 2);
    /* The last one in flight does not wait: nothing would come to wait for. */
    fake_release_all();
    rig_settle();
    assert_int_equal(used(), 5);
    assert_int_equal(rig.interrupts[0], 3);
    end_own_clock();
}

/* IN_ORDER: those that were finished in turns before count once they are used, with the oldest. */
static void interrupts_wait_for_the_count_of_what_is_used(void **state)
{
    start_on_own_clock(state,
                       (struct rig_options){.features = VIRTIO_BIT(VIRTIO_F_IN_ORDER),
                                            .device = {.coalesce_count = 4, .coalesce_ns = 1000000000}});
    fake.hold = true;
    for (unsigned i = 0; i < 10; i++)
        rig_request(0, VIRTIO_BLK_T_IN, i * 8, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    for (unsigned i = 0; i < 4; i++) {
        fake_release(1);
        rig_settle();
    }
    assert_int_equal(used(), 0);
    assert_int_equal(rig.interrupts[0], 0);
    fake_release(0);
    rig_settle();
    assert_int_equal(used(), 5);
    assert_int_equal(rig.interrupts[0], 1);
    end_own_clock();
}

/* Nor does the first of many wake the driver early then. */
static void interrupts_that_wait_do_not_come_early(void **state)
{
    start_on_own_clock(state, (struct rig_options){.features = VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |
                                                               VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC),
                                                   .device = {.coalesce_count = 4, .coalesce_ns = 20000000}});
    sleep_until(*state, 0);
    twenty_reads();
    assert_int_equal(rig.interrupts[0], 1);
    assert_int_equal(rig.calls_then, 20);
    end_own_clock();
}

static void release_one(void *opaque)
{
    fake_release(0);
}

/* The time is over in the very turn in which another one ends: the driver waits for the first. */
static void what_ends_in_the_same_turn_hides_no_interrupt(void **state)
{
    struct loop_bh bh = {.fn = release_one};

    start_on_own_clock(
        state,
        (struct rig_options){.features = VIRTIO_BIT(VIRTIO_F_EVENT_IDX) | VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC),
                             .device = {.coalesce_count = 100, .coalesce_ns = 20000000}});
    sleep_until(*state, 0);
    fake.hold = true;
    for (unsigned i = 0; i < 2; i++)
        rig_request(0, VIRTIO_BLK_T_IN, i * 8, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    fake_release(0);
    rig_settle();
    clock_ns += 25000000;
    bh.loop = rig.loop;
    loop_bh_schedule(&bh);
    rig_settle();
    assert_int_equal(rig.interrupts[0], 1);
    assert_int_equal(used(), 2);
    end_own_clock();
}

static void a_stop_delivers_what_was_put_off(void **state)
{
    start(state, (struct rig_options){.device = {.coalesce_count = 100, .coalesce_ns = 3600000000000}});
    fake.hold = true;
    for (unsigned i = 0; i < 2; i++)
        rig_request(0, VIRTIO_BLK_T_IN, i * 8, rig_alloc(512, 512), 512, true);
    rig_kick(0);
    fake_release(0);
    rig_settle();
    assert_int_equal(rig.interrupts[0], 0);
    fake_release_all();
    rig_stop(0);
    assert_true(rig.interrupts[0] >= 1);
    rig_fini();
}

/* ---- the rest ---- */

static void checklist_331_lifetime(void **state)
{
    struct rig_request request;
    struct virtio_blk_lifetime lifetime;
    struct error err = {""};
    struct virtio_blk_options bad = {.num_queues = 1,
                                     .queue_size_max = 128,
                                     .logical_block_size = 512,
                                     .physical_block_size = 512,
                                     .lifetime_type_a = 12};

    start(state, (struct rig_options){.device = {.lifetime = true,
                                                 .lifetime_pre_eol = 2,
                                                 .lifetime_type_a = 3,
                                                 .lifetime_type_b = 11}});
    request = rig_request(0, VIRTIO_BLK_T_GET_LIFETIME, 0, rig_alloc(6, 2), 6, true);
    rig_kick(0);
    assert_int_equal(rig_status(request.status), 0);
    memcpy(&lifetime, ptr(request.data), 6);
    assert_int_equal(le16_get(lifetime.pre_eol_info), 2);
    assert_int_equal(le16_get(lifetime.device_lifetime_est_typ_a), 3);
    assert_int_equal(le16_get(lifetime.device_lifetime_est_typ_b), 11);
    assert_int_equal(used(), 1);
    assert_int_equal(one(VIRTIO_BLK_T_GET_LIFETIME, 0, 0), VIRTIO_BLK_S_IOERR);
    assert_null(virtio_blk_create((struct blk *)&fake, &bad, &err));
    rig_fini();
    start(state, (struct rig_options){0});
    assert_int_equal(one(VIRTIO_BLK_T_GET_LIFETIME, 0, 0), VIRTIO_BLK_S_UNSUPP);
    rig_fini();
}

static void memory_cut_short_breaks_the_ring(void **state)
{
    uint32_t broken = 0;

    start(state, (struct rig_options){.no_start = true});
    rig.setup[0].memory_broken = &broken;
    assert_int_equal(rig_start(0), 0);
    assert_int_equal(one(VIRTIO_BLK_T_FLUSH, 0, 0), 0);
    broken = 1;
    rig_request(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
    rig_kick(0);
    assert_int_equal(rig.resets, 1);
    assert_int_equal(used(), 0);
    rig_fini();
}

/* A front end that never kicks: the ring is looked at again and again. */
static void a_queue_without_kicks_is_served(void **state)
{
    struct rig_request request;

    start(state, (struct rig_options){.no_start = true});
    rig.setup[0].no_kicks = true;
    assert_int_equal(rig_start(0), 0);
    rig_settle();
    request = rig_request(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
    rig_publish(0);
    while (rig_status(request.status) == 0xee)
        loop_turn(rig.loop, true);
    rig_settle();
    assert_int_equal(used(), 1);
    rig_fini();
}

/* Most front ends kick by eventfd. One that writes to a pipe is never held up, however often it does. */
static void kicks_may_come_by_a_pipe(void **state)
{
    uint64_t one = 1;
    int ends[2];

    start(state, (struct rig_options){.no_start = true});
    assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
    assert_true(fcntl(ends[1], F_SETPIPE_SZ, 4096) >= 0);
    rig.setup[0].kick_fd = ends[0];
    assert_int_equal(rig_start(0), 0);
    for (unsigned i = 0; i < 1000; i++) {
        rig_request(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false);
        rig_publish(0);
        assert_int_equal(write(ends[1], &one, sizeof(one)), sizeof(one));
        rig_settle();
        assert_int_equal(used(), 1);
    }
    close(ends[1]);
    rig_settle();
    assert_int_equal(rig.resets, 1);
    rig_fini();
    close(ends[0]);
}

int main(void)
{
#define BOTH(f)                                 \
    {"split: " #f, f, NULL, NULL, NULL},        \
    {                                           \
        "packed: " #f, f, NULL, NULL, (void *)1 \
    }
    const struct CMUnitTest tests[] = {
        BOTH(errors_are_reported_or_ignored),
        BOTH(no_space_stops_and_other_errors_are_reported),
        BOTH(everything_can_be_stopped_and_resumed),
        BOTH(a_second_range_that_fails_is_tried_again_alone),
        BOTH(a_queue_that_stops_does_not_wait_for_parked_requests),
        BOTH(a_queue_in_order_does_not_wait_either),
        BOTH(a_stop_does_not_wait_for_the_throttle),
        BOTH(written_pages_are_logged),
        BOTH(a_log_that_is_too_short_is_not_overrun),
        cmocka_unit_test(pages_are_counted_right),
        BOTH(a_driver_that_sleeps_is_woken_while_the_rest_is_served),
        BOTH(a_driver_that_names_no_entry_is_told_once),
        BOTH(interrupts_wait_for_count_or_time),
        BOTH(interrupts_wait_for_the_count_of_what_is_used),
        BOTH(interrupts_that_wait_do_not_come_early),
        BOTH(what_ends_in_the_same_turn_hides_no_interrupt),
        BOTH(a_stop_delivers_what_was_put_off),
        BOTH(checklist_331_lifetime),
        BOTH(memory_cut_short_breaks_the_ring),
        BOTH(a_queue_without_kicks_is_served),
        BOTH(kicks_may_come_by_a_pipe),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
