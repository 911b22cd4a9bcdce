/*
 * Drivers that nobody would write: rings that overlap or share memory (D3 of the checklist's appendix),
 * memory that changes while it is read (D2), a queue that is stopped at any point of its requests' lives
 * (D6). Whatever they do, the block layer (device_rig.h) is only asked for what lies inside disk and guest
 * memory, and nothing is left in flight.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <sched.h>

#include "tests/unit/device_rig.h"

#define BIT(n) VIRTIO_BIT(VIRTIO_F_##n)

static const uint64_t layouts[] = {
    0,
    BIT(INDIRECT_DESC) | BIT(EVENT_IDX),
    BIT(IN_ORDER),
    BIT(RING_PACKED),
    BIT(RING_PACKED) | BIT(INDIRECT_DESC) | BIT(EVENT_IDX) | BIT(IN_ORDER),
};

#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))

static uint32_t seed;

static uint32_t chance(uint32_t n)
{
    seed = seed * 1103515245u + 12345u;
    return (seed >> 12) % n;
}

static void start(uint64_t features, unsigned num_queues)
{
    rig_init(&(struct rig_options){.features = features | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                                               VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
                                               VIRTIO_BIT(VIRTIO_BLK_F_DISCARD),
                                   .num_queues = num_queues,
                                   .size = 16,
                                   .no_start = true,
                                   .device = {.request_merging = true, .discard = true}});
}

static void kick_and_end(void)
{
    for (unsigned q = 0; q < rig.num_queues; q++) {
        virtio_blk_queue_kick(rig.device, q);
        rig_settle();
    }
    rig_fini();
    assert_int_equal(fake.in_flight, 0);
}

/* D3: parts of a ring that lie over each other, at every distance. */
static void rings_that_overlap_themselves(void **state)
{
    for (unsigned l = 0; l < LAYOUTS; l++)
        for (unsigned shift = 0; shift < 300; shift += 4) {
            start(layouts[l], 1);
            rig.setup[0].device = (uint8_t *)rig.setup[0].driver + shift;
            if (shift % 16 == 0)
                rig.setup[0].desc = (uint8_t *)rig.setup[0].driver + shift / 2 / 16 * 16 -
                                    (uintptr_t)rig.setup[0].driver % 16;
            for (unsigned i = 0; i < 4; i++)
                rig_request(0, VIRTIO_BLK_T_IN, i, rig_alloc(512, 512), 512, true);
            rig_publish(0);
            rig_start(0);
            for (unsigned i = 0; i < 10; i++) {
                virtio_blk_queue_kick(rig.device, 0);
                rig_settle();
            }
            kick_and_end();
        }
}

/* D3: two queues on one ring. */
static void queues_that_share_a_ring(void **state)
{
    for (unsigned l = 0; l < LAYOUTS; l++) {
        start(layouts[l], 2);
        rig.setup[1] = rig.setup[0];
        rig_start(0);
        rig_start(1);
        for (unsigned i = 0; i < 50; i++) {
            if (rig_room(0, 3))
                rig_request(0, i % 3 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, i, rig_alloc(512, 512), 512,
                            i % 3);
            rig_publish(0);
            virtio_blk_queue_kick(rig.device, i % 2);
            rig_settle();
        }
        kick_and_end();
    }
}

/* ---- D2: everything changes while it is read ---- */

static struct {
    pthread_t thread;
    uint8_t *from;
    size_t bytes;
    uint32_t stop;
} scribbler;

static void *scribble(void *arg)
{
    uint32_t state = 12345;

    while (!__atomic_load_n(&scribbler.stop, __ATOMIC_RELAXED)) {
        uint64_t *at;
        uint64_t value;

        state = state * 1664525u + 1013904223u;
        at = (uint64_t *)scribbler.from + (state >> 8) % (scribbler.bytes / 8);
        value = __atomic_load_n(at, __ATOMIC_RELAXED);
        /* Mostly a bit or a byte of what is there; sometimes an address far outside. */
        switch (state >> 28) {
        case 0:
            value = 0xfffffffffffffff0ull + (state >> 16 & 15);
            break;
        case 1:
            value = (uint64_t)state << 32 | state;
            break;
        case 2:
            value &= ~(0xffull << (state % 8 * 8));
            break;
        default:
            value ^= 1ull << (state >> 20) % 64;
            break;
        }
        __atomic_store_n(at, value, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void memory_that_changes_while_it_is_read(void **state)
{
    for (unsigned l = 0; l < LAYOUTS; l++) {
        unsigned broken = 0;
        uint64_t mark;

        seed = l + 1;
        start(layouts[l], 1);
        mark = rig.low_used;
        scribbler.from = rig.low;
        scribbler.bytes = mark + 8192;
        scribbler.stop = 0;
        assert_int_equal(pthread_create(&scribbler.thread, NULL, scribble, NULL), 0);
        /* Until something broke, or it was no test; the other thread may take its time to start. */
        for (unsigned round = 0; round < 300 || (broken == 0 && round < 1000000); round++) {
            rig.low_used = 0;
            rig_lay_out(0, 16);
            rig_start(0);
            for (unsigned i = 0; i < 20; i++) {
                if (rig.low_used < scribbler.bytes && rig_room(0, 3))
                    rig_request(0, chance(16), chance(8000), rig.low_used + LOW_ADDR, chance(4) * 512,
                                chance(2));
                rig_publish(0);
                virtio_blk_queue_kick(rig.device, 0);
                fake.hold = chance(2);
                rig_settle();
                if (fake.num_held > 0)
                    fake_release(chance(fake.num_held));
            }
            fake_release_all();
            rig_stop(0);
            broken += rig.resets;
            rig.resets = 0;
            if (broken == 0)
                sched_yield();
        }
        __atomic_store_n(&scribbler.stop, 1, __ATOMIC_RELAXED);
        pthread_join(scribbler.thread, NULL);
        assert_true(broken > 0);
        rig_fini();
        assert_int_equal(fake.in_flight, 0);
    }
}

/* ---- D6 ---- */

struct stop {
    bool done;
};

static void stop_entry(void *arg)
{
    virtio_blk_co_queue_stop(rig.device, 0, NULL, NULL);
    ((struct stop *)arg)->done = true;
}

/* The queue is stopped after any number of turns and completions: it ends, and everything taken was given
 * back. */
static void stopping_at_any_point(void **state)
{
    for (unsigned l = 0; l < LAYOUTS; l++)
        for (unsigned point = 0; point < 40; point++) {
            struct stop stop = {false};
            unsigned used = 0;
            uint16_t id = 0;
            uint32_t len = 0;

            seed = point;
            start(layouts[l], 1);
            rig_start(0);
            fake.hold = true;
            for (unsigned i = 0; i < 5; i++)
                rig_request(0, i == 3 ? VIRTIO_BLK_T_FLUSH : VIRTIO_BLK_T_OUT, i,
                            i == 3 ? 0 : rig_alloc(512, 512), i == 3 ? 0 : 512, false);
            rig_publish(0);
            if (point % 4 > 0)
                virtio_blk_queue_kick(rig.device, 0);
            for (unsigned i = 0; i < point / 4; i++) {
                if (fake.num_held > 0 && chance(2))
                    fake_release(chance(fake.num_held));
                if (chance(2))
                    loop_turn(rig.loop, false);
            }
            co_enter(co_create(stop_entry, &stop));
            rig_settle();
            while (fake.num_held > 0) {
                assert_false(stop.done);
                fake_release(chance(fake.num_held));
                rig_settle();
            }
            assert_true(stop.done);
            while (rig_used(0, &id, &len))
                used++;
            /* All that was there was taken at the kick, or (the loop may have polled) before it. */
            assert_true(used == 5 || (used == 0 && point % 4 == 0));
            rig_fini();
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rings_that_overlap_themselves),
        cmocka_unit_test(queues_that_share_a_ring),
        cmocka_unit_test(memory_that_changes_while_it_is_read),
        cmocka_unit_test(stopping_at_any_point),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
