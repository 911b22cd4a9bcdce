/*
 * Merging: which requests become one, in what order they go down, and what each of them gets back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

#define IN    VIRTIO_BLK_T_IN
#define OUT   VIRTIO_BLK_T_OUT
#define FLUSH VIRTIO_BLK_T_FLUSH

struct wish {
    uint32_t type;
    uint64_t sector;
    uint32_t sectors;
};

static struct rig_request requests[256];

static void start(bool merging, uint32_t max_iov, uint64_t max_transfer)
{
    struct rig_options options = {.features = VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) |
                                              VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                                              VIRTIO_BIT(VIRTIO_BLK_F_DISCARD),
                                  .size = 256,
                                  .device = {.request_merging = merging, .discard = true}};

    rig_limits = (struct node_limits){.max_iov = max_iov, .max_transfer = max_transfer};
    rig_init(&options);
    rig_limits = (struct node_limits){0};
}

/* All of WISHES at once; data of a write is its number in the list. */
static void ask(const struct wish *wishes, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint32_t bytes = wishes[i].sectors * 512;
        uint64_t data = bytes ? rig_alloc(bytes, 512) : 0;

        if (wishes[i].type == OUT)
            memset(ptr(data), (int)i + 1, bytes);
        requests[i] = rig_request(0, wishes[i].type, wishes[i].sector, data, bytes, wishes[i].type == IN);
    }
    rig_kick(0);
}

static void expect_calls(const struct fake_call *calls, unsigned n)
{
    assert_int_equal(fake.num_calls, n);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(fake.calls[i].op, calls[i].op);
        assert_int_equal(fake.calls[i].offset, calls[i].offset * 512);
        assert_int_equal(fake.calls[i].bytes, calls[i].bytes * 512);
    }
}

static void expect_answers(unsigned n, uint8_t status)
{
    uint16_t id;
    uint32_t len;
    unsigned used = 0;

    while (rig_used(0, &id, &len))
        used++;
    assert_int_equal(used, n);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(rig_status(requests[i].status), status);
}

#define CASE(...)                               \
    const struct wish wishes[] = {__VA_ARGS__}; \
    unsigned count = sizeof(wishes) / sizeof(wishes[0])
#define CALLS(...)                                             \
    do {                                                       \
        const struct fake_call calls[] = {__VA_ARGS__};        \
        expect_calls(calls, sizeof(calls) / sizeof(calls[0])); \
    } while (0)

static void neighbours_become_one(void **state)
{
    CASE({OUT, 8, 8}, {OUT, 16, 8}, {OUT, 24, 1});
    struct virtio_blk_queue_stats stats;

    start(true, 0, 0);
    ask(wishes, count);
    CALLS({BLK_WRITE, 8, 17});
    expect_answers(count, 0);
    for (unsigned i = 8; i < 25; i++)
        assert_int_equal(fake.disk[i * 512], i / 8);
    virtio_blk_queue_stats(rig.device, 0, &stats);
    assert_int_equal(stats.merges, 1);
    assert_int_equal(stats.merged_requests, 3);
    assert_int_equal(fake.merged, 2);
    rig_fini();
}

static void merged_reads_go_to_their_own_buffers(void **state)
{
    CASE({IN, 24, 8}, {IN, 0, 8}, {IN, 16, 8}, {IN, 8, 8});

    start(true, 0, 0);
    for (unsigned i = 0; i < 32 * 512; i++)
        fake.disk[i] = (uint8_t)(i / 512 * 5 + i);
    ask(wishes, count);
    CALLS({BLK_READ, 0, 32});
    expect_answers(count, 0);
    for (unsigned i = 0; i < count; i++)
        assert_memory_equal(ptr(requests[i].data), fake.disk + wishes[i].sector * 512, 8 * 512);
    rig_fini();
}

static void gaps_and_overlaps_are_not_joined(void **state)
{
    CASE({IN, 0, 8}, {IN, 9, 8}, {IN, 16, 8}, {IN, 40, 1}, {IN, 40, 1});

    start(true, 0, 0);
    ask(wishes, count);
    CALLS({BLK_READ, 0, 8}, {BLK_READ, 9, 8}, {BLK_READ, 16, 8}, {BLK_READ, 40, 1}, {BLK_READ, 40, 1});
    expect_answers(count, 0);
    assert_int_equal(fake.merged, 0);
    rig_fini();
}

/* Equal sectors stay in the order of the ring: the last write of the driver wins. */
static void the_order_of_equal_sectors_is_kept(void **state)
{
    CASE({OUT, 8, 8}, {OUT, 0, 8}, {OUT, 8, 8}, {OUT, 8, 8});

    start(true, 0, 0);
    ask(wishes, count);
    CALLS({BLK_WRITE, 0, 16}, {BLK_WRITE, 8, 8}, {BLK_WRITE, 8, 8});
    assert_int_equal(fake.disk[0], 2);
    assert_int_equal(fake.disk[8 * 512], 4);
    expect_answers(count, 0);
    rig_fini();
}

static void reads_and_writes_are_not_mixed(void **state)
{
    CASE({IN, 0, 8}, {IN, 8, 8}, {OUT, 16, 8}, {OUT, 24, 8}, {IN, 32, 8}, {IN, 40, 8});

    start(true, 0, 0);
    ask(wishes, count);
    CALLS({BLK_READ, 0, 16}, {BLK_WRITE, 16, 16}, {BLK_READ, 32, 16});
    expect_answers(count, 0);
    rig_fini();
}

/* Nothing is joined across a flush, nor across a request of any other kind. */
static void a_flush_is_a_boundary(void **state)
{
    CASE({OUT, 0, 8}, {OUT, 8, 8}, {FLUSH, 0, 0}, {OUT, 16, 8}, {OUT, 24, 8});

    start(true, 0, 0);
    ask(wishes, count);
    CALLS({BLK_WRITE, 0, 16}, {BLK_FLUSH, 0, 0}, {BLK_WRITE, 16, 16});
    expect_answers(count, 0);
    rig_fini();
}

/* What is joined is answered at once, so not everything in flight is joined. */
static void at_most_eight_are_joined_when_few_are_in_flight(void **state)
{
    struct wish wishes[20];

    start(true, 0, 0);
    for (unsigned i = 0; i < 20; i++)
        wishes[i] = (struct wish){IN, i, 1};
    ask(wishes, 20);
    CALLS({BLK_READ, 0, 8}, {BLK_READ, 8, 8}, {BLK_READ, 16, 4});
    expect_answers(20, 0);
    rig_fini();
}

static void at_most_a_quarter_of_what_is_in_flight_and_thirty_two(void **state)
{
    struct wish wishes[170];

    start(true, 0, 0);
    fake.hold = true;
    for (unsigned i = 0; i < 170; i++)
        wishes[i] = (struct wish){IN, i, 1};
    ask(wishes, 170);
    /* They are looked at by the 32 when the 33rd, the 65th, ... comes, and at the end. */
    CALLS({BLK_READ, 0, 8}, {BLK_READ, 8, 8}, {BLK_READ, 16, 8}, {BLK_READ, 24, 8}, {BLK_READ, 32, 16},
          {BLK_READ, 48, 16}, {BLK_READ, 64, 24}, {BLK_READ, 88, 8}, {BLK_READ, 96, 32}, {BLK_READ, 128, 32},
          {BLK_READ, 160, 10});
    fake_release_all();
    rig_settle();
    expect_answers(170, 0);
    rig_fini();
}

static void the_limit_of_segments_holds(void **state)
{
    CASE({IN, 0, 1}, {IN, 1, 1}, {IN, 2, 1}, {IN, 3, 1}, {IN, 4, 1});

    start(true, 2, 0);
    ask(wishes, count);
    CALLS({BLK_READ, 0, 2}, {BLK_READ, 2, 2}, {BLK_READ, 4, 1});
    expect_answers(count, 0);
    rig_fini();
}

static void the_limit_of_bytes_holds(void **state)
{
    CASE({IN, 0, 2}, {IN, 2, 2}, {IN, 4, 2}, {IN, 6, 8}, {IN, 14, 2});

    start(true, 0, 5 * 512);
    ask(wishes, count);
    CALLS({BLK_READ, 0, 4}, {BLK_READ, 4, 2}, {BLK_READ, 6, 8}, {BLK_READ, 14, 2});
    expect_answers(count, 0);
    rig_fini();
}

static void large_requests_are_left_alone(void **state)
{
    CASE({IN, 0, 2000}, {IN, 2000, 100});

    start(true, 0, 0);
    ask(wishes, count);
    CALLS({BLK_READ, 0, 2000}, {BLK_READ, 2000, 100});
    expect_answers(count, 0);
    rig_fini();
}

static void merging_can_be_turned_off(void **state)
{
    CASE({OUT, 8, 8}, {OUT, 0, 8});

    start(false, 0, 0);
    ask(wishes, count);
    CALLS({BLK_WRITE, 8, 8}, {BLK_WRITE, 0, 8});
    expect_answers(count, 0);
    rig_fini();
}

/* A joined request that fails is done again one by one: each gets what it would have got alone. */
static void one_bad_sector_fails_one_request(void **state)
{
    CASE({OUT, 0, 8}, {OUT, 8, 8}, {OUT, 16, 8});
    uint16_t id;
    uint32_t len;

    start(true, 0, 0);
    fake.error = -EIO;
    fake.fail_offset = 9 * 512;
    fake.fail_bytes = 512;
    ask(wishes, count);
    CALLS({BLK_WRITE, 0, 24}, {BLK_WRITE, 0, 8}, {BLK_WRITE, 8, 8}, {BLK_WRITE, 16, 8});
    while (rig_used(0, &id, &len))
        ;
    assert_int_equal(rig_status(requests[0].status), 0);
    assert_int_equal(rig_status(requests[1].status), VIRTIO_BLK_S_IOERR);
    assert_int_equal(rig_status(requests[2].status), 0);
    assert_int_equal(rig.queues[0].in_flight, 0);
    rig_fini();
}

static void merged_requests_may_complete_later(void **state)
{
    CASE({IN, 0, 8}, {IN, 8, 8}, {IN, 100, 8}, {IN, 108, 8});

    start(true, 0, 0);
    fake.hold = true;
    ask(wishes, count);
    assert_int_equal(fake.num_held, 2);
    fake_release(1);
    fake_release(0);
    rig_settle();
    expect_answers(count, 0);
    assert_int_equal(rig.interrupts[0], 1);
    rig_fini();
}

/* Random requests against a model: whatever is joined, every byte arrives. */
static void random_requests_against_a_model(void **state)
{
    static uint8_t model[DISK_BYTES];
    uint32_t seed = 4711;
    uint64_t mark;

    start(true, 0, 0);
    memset(model, 0, sizeof(model));
    mark = rig.low_used;
    for (unsigned round = 0; round < 200; round++) {
        static uint64_t data[100];
        struct wish wishes[100];
        unsigned count = 0;
        uint16_t id;
        uint32_t len;

        rig.low_used = mark;
        for (unsigned i = 0; i < 60; i++) {
            struct wish *wish = &wishes[count];
            bool clash = false;

            seed = seed * 1103515245u + 12345u;
            *wish =
                (struct wish){(seed >> 20) & 1 ? OUT : IN, (seed >> 8) % 128 * 4, 4 * (1 + (seed >> 24) % 2)};
            for (unsigned k = 0; k < count; k++)
                clash |= wish->sector < wishes[k].sector + wishes[k].sectors &&
                         wishes[k].sector < wish->sector + wish->sectors;
            if (clash)
                continue; /* what overlaps in flight has no order */
            data[count] = rig_alloc(wish->sectors * 512, 512);
            if (wish->type == OUT) {
                for (unsigned b = 0; b < wish->sectors * 512; b++)
                    ((uint8_t *)ptr(data[count]))[b] = (uint8_t)(seed >> (b % 24));
                memcpy(model + wish->sector * 512, ptr(data[count]), wish->sectors * 512);
            }
            requests[count] =
                rig_request(0, wish->type, wish->sector, data[count], wish->sectors * 512, wish->type == IN);
            count++;
        }
        rig_kick(0);
        while (rig_used(0, &id, &len))
            ;
        for (unsigned i = 0; i < count; i++) {
            assert_int_equal(rig_status(requests[i].status), 0);
            assert_memory_equal(ptr(data[i]), model + wishes[i].sector * 512, wishes[i].sectors * 512);
        }
        assert_memory_equal(fake.disk, model, 256 * 1024);
    }
    rig_fini();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_become_one),
        cmocka_unit_test(merged_reads_go_to_their_own_buffers),
        cmocka_unit_test(gaps_and_overlaps_are_not_joined),
        cmocka_unit_test(the_order_of_equal_sectors_is_kept),
        cmocka_unit_test(reads_and_writes_are_not_mixed),
        cmocka_unit_test(a_flush_is_a_boundary),
        cmocka_unit_test(at_most_eight_are_joined_when_few_are_in_flight),
        cmocka_unit_test(at_most_a_quarter_of_what_is_in_flight_and_thirty_two),
        cmocka_unit_test(the_limit_of_segments_holds),
        cmocka_unit_test(the_limit_of_bytes_holds),
        cmocka_unit_test(large_requests_are_left_alone),
        cmocka_unit_test(merging_can_be_turned_off),
        cmocka_unit_test(one_bad_sector_fails_one_request),
        cmocka_unit_test(merged_requests_may_complete_later),
        cmocka_unit_test(random_requests_against_a_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
