/*
 * The device's side of the packed ring (virtio 1.4, 2.8), against rings written by hand. Numbers are those of
 * the rule in the project's checklist of the specification.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/device/virtqueue.h"
#include "tests/unit/device_rig.h"

#define AVAIL    VIRTQ_DESC_F_AVAIL
#define USED     VIRTQ_DESC_F_USED
#define NEXT     VIRTQ_DESC_F_NEXT
#define WRITE    VIRTQ_DESC_F_WRITE
#define INDIRECT VIRTQ_DESC_F_INDIRECT

static struct virtqueue vq;
static struct rig_queue *const ring = &rig.queues[0];
static struct virtq_chain chain;

static int start(unsigned size, uint16_t avail, uint16_t used)
{
    const char *why = NULL;
    const struct virtqueue_setup setup = {.memory = &rig.memory,
                                          .size = size,
                                          .packed = true,
                                          .features = rig.features,
                                          .desc = ring->pdesc,
                                          .driver = ring->driver,
                                          .device = ring->device,
                                          .last_avail_idx = avail,
                                          .last_used_idx = used};

    return virtqueue_init(&vq, &setup, &why);
}

/* A fresh ring of SIZE. */
static void fresh(unsigned size)
{
    rig.low_used = 0;
    rig_lay_out(0, size);
    memset(ring->pdesc, 0, 16 * size);
    assert_int_equal(start(size, 0x8000, 0x8000), 0);
}

static int setup(void **state)
{
    rig_init(&(struct rig_options){.features = VIRTIO_BIT(VIRTIO_F_RING_PACKED) |
                                               VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |
                                               VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC),
                                   .size = 8,
                                   .no_start = true});
    return start(8, 0x8000, 0x8000);
}

static int setup_plain(void **state)
{
    rig_init(
        &(struct rig_options){.features = VIRTIO_BIT(VIRTIO_F_RING_PACKED), .size = 8, .no_start = true});
    return start(8, 0x8000, 0x8000);
}

static int teardown(void **state)
{
    rig_fini();
    return 0;
}

static void expect_broken(const char *why)
{
    assert_int_equal(virtqueue_pop(&vq, &chain), -EPROTO);
    if (!strstr(vq.why, why))
        fail_msg("broken for another reason: %s", vq.why);
}

static void put(unsigned at, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
    struct virtq_packed_desc *desc = &ring->pdesc[at];

    desc->addr = le64_put(addr);
    desc->len = le32_put(len);
    desc->id = le16_put(id);
    le16_store(&desc->flags, flags);
}

/* 97: any size from 1 on. */
static void checklist_97_a_set_up_is_checked(void **state)
{
    static const unsigned sizes[] = {1, 2, 3, 5, 7, 100, 1000, 32767, 32768};

    rig.low_used = 0;
    ring->pdesc = ptr(rig_alloc(32768 * 16, 16));
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        assert_int_equal(start(sizes[i], 0x8000, 0x8000), 0);
    assert_int_equal(start(0, 0x8000, 0x8000), -EINVAL);
    assert_int_equal(start(32769, 0x8000, 0x8000), -EINVAL);
    assert_int_equal(start(5, 0x8005, 0x8000), -EINVAL);
    assert_int_equal(start(5, 0x8000, 5), -EINVAL);
    assert_int_equal(start(5, 4, 0x8004), 0);
    ring->pdesc = (void *)((uint8_t *)ring->pdesc + 8);
    assert_int_equal(start(5, 0x8000, 0x8000), -EINVAL);
}

/* 102: only a changed AVAIL bit makes a descriptor available; all four combinations, for both laps. */
static void checklist_102_available_means_the_bits_say_so(void **state)
{
    uint64_t data = rig_alloc(16, 16);

    for (unsigned wrap = 0; wrap < 2; wrap++)
        for (unsigned bits = 0; bits < 4; bits++) {
            uint16_t flags = (uint16_t)((bits & 1 ? AVAIL : 0) | (bits & 2 ? USED : 0));
            bool available = wrap ? flags == AVAIL : flags == USED;

            assert_int_equal(start(8, wrap ? 0x8000 : 0, 0x8000), 0);
            put(0, data, 1, 7, flags | WRITE);
            assert_int_equal(virtqueue_has_more(&vq), available);
            assert_int_equal(virtqueue_pop(&vq, &chain), available);
        }
}

/* 118, 119: the id is that of the list's last descriptor; one used descriptor, and its length is skipped. */
static void checklist_119_lists_of_any_length_go_round_the_ring(void **state)
{
    uint64_t data;

    for (unsigned size = 1; size <= 9; size++) {
        unsigned lengths[64], lap_bits = 0;

        fresh(size);
        data = rig_alloc(64, 16);
        for (unsigned i = 0; i < 64; i++) {
            unsigned n = lengths[i] = 1 + (i * 7 + i / 5) % size;
            uint16_t at = ring->next_desc, id;
            struct seg segs[9];
            uint32_t len;
            bool wrap = ring->avail_wrap;

            for (unsigned k = 0; k < n; k++)
                segs[k] = (struct seg){data + k, 1, k + 1 == n};
            id = rig_add_mixed(0, segs, n, n);
            /* Ids before the last one are junk. */
            for (unsigned k = 0; k + 1 < n; k++)
                ring->pdesc[(at + k) % size].id = le16_put(0xdead);
            assert_false(virtqueue_has_more(&vq)); /* the first one's flags are still held back */
            rig_publish(0);
            assert_int_equal(virtqueue_pop(&vq, &chain), 1);
            assert_int_equal(chain.id, id);
            assert_int_equal(chain.num_descs, n);
            assert_int_equal(chain.out + chain.in, n);
            virtqueue_push(&vq, chain.id, i, 1, chain.num_descs);
            assert_false(rig_used(0, &id, &len));
            assert_true(virtqueue_publish(&vq));
            assert_false(virtqueue_publish(&vq));
            /* 122: WRITE is set, the other bits say "used in this lap". */
            assert_int_equal(le16_get(ring->pdesc[at].flags), WRITE | (wrap ? AVAIL | USED : 0));
            assert_true(rig_used(0, &id, &len));
            assert_int_equal(len, i);
            lap_bits |= wrap ? 1 : 2;
        }
        assert_int_equal(lap_bits, 3);
        (void)lengths;
    }
}

/* 100, 103: used descriptors are written in the order of completion, and none is touched again. */
static void checklist_100_a_batch_is_shown_by_its_first_descriptor(void **state)
{
    uint64_t data;
    uint16_t id;
    uint32_t len;

    fresh(8);
    data = rig_alloc(16, 16);
    for (unsigned i = 0; i < 4; i++)
        rig_add_mixed(0, &(struct seg){data, 1, true}, 1, 1);
    rig_publish(0);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    for (unsigned i = 4; i-- > 0;)
        virtqueue_push(&vq, (uint16_t)i, i, 1, 1);
    assert_false(rig_used(0, &id, &len));
    virtqueue_publish(&vq);
    for (unsigned i = 4; i-- > 0;) {
        assert_true(rig_used(0, &id, &len));
        assert_int_equal(id, i);
    }
    assert_false(rig_used(0, &id, &len));
}

/* 117: in an indirect table ids and all flags but WRITE are ignored, on its descriptor WRITE is. */
static void checklist_117_junk_around_indirect_tables_is_ignored(void **state)
{
    uint64_t table = rig_alloc(64, 16), data = rig_alloc(64, 16);
    struct virtq_packed_desc *entries = ptr(table);

    for (unsigned i = 0; i < 4; i++)
        entries[i] = (struct virtq_packed_desc){le64_put(data + i), le32_put(1), le16_put(0xffff),
                                                le16_put(i < 2 ? (uint16_t)~WRITE : 0xffff)};
    put(0, table, 64, 3, AVAIL | INDIRECT | WRITE);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    assert_int_equal(chain.id, 3);
    assert_int_equal(chain.num_descs, 1);
    assert_int_equal(chain.out, 2);
    assert_int_equal(chain.in, 2);
}

static void an_indirect_table_across_regions_is_read(void **state)
{
    uint64_t data = rig_alloc(16, 16);

    for (unsigned shift = 0; shift < 16; shift++) {
        uint64_t at = NEXT_ADDR - 16 - shift;
        struct virtq_packed_desc entries[2] = {
            {le64_put(data), le32_put(1), le16_put(0), le16_put(0)},
            {le64_put(data + 1), le32_put(1), le16_put(0), le16_put(WRITE)}};

        fresh(8);
        for (unsigned i = 0; i < sizeof(entries); i++)
            *(uint8_t *)ptr(at + i) = ((uint8_t *)entries)[i];
        put(0, at, sizeof(entries), 3, AVAIL | INDIRECT);
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
        assert_int_equal(chain.out + chain.in, 2);
    }
}

static void bad_lists_break_the_ring(void **state)
{
    uint64_t data = rig_alloc(16, 16);
    const struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags;
        const char *why;
    } cases[] = {
        {data, 0, INDIRECT, "length"},
        {data, 8, INDIRECT, "length"},
        {data, 0xfffffff0u, INDIRECT, "length"},
        {0, 16, INDIRECT, "outside"},
        {NEXT_ADDR + NEXT_BYTES - 16, 32, INDIRECT, "outside"},
        {UINT64_MAX - 7, 16, INDIRECT, "outside"},
        {data, 16, INDIRECT | NEXT, "part of a list"},
        {0, 1, 0, "outside"},
        {UINT64_MAX, 2, WRITE, "outside"},
        {HIGH_ADDR + HIGH_BYTES - 1, 2, WRITE, "outside"},
        {data, 1, NEXT, "not made available"}, /* 112 */
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fresh(8);
        if (cases[i].addr == NEXT_ADDR + NEXT_BYTES - 16)
            memset(ptr(cases[i].addr), 0, 16);
        put(0, cases[i].addr, cases[i].len, 0, AVAIL | cases[i].flags);
        expect_broken(cases[i].why);
    }
    /* 116: an indirect descriptor at the end of a list */
    fresh(8);
    put(0, data, 1, 0, AVAIL | NEXT);
    put(1, data, 16, 0, AVAIL | INDIRECT);
    expect_broken("part of a list");
    /* 109 */
    fresh(8);
    put(0, data, 1, 0, AVAIL | NEXT | WRITE);
    put(1, data, 1, 0, AVAIL);
    expect_broken("follows a device-writable");
}

static void checklist_113_indirect_without_the_feature_breaks_the_ring(void **state)
{
    put(0, rig_alloc(16, 16), 16, 0, AVAIL | INDIRECT);
    expect_broken("without INDIRECT_DESC");
}

/* D4: a list that goes round the whole ring ends, for every size. */
static void a_list_without_an_end_does_not_spin(void **state)
{
    for (unsigned size = 1; size <= 64; size++) {
        uint64_t data;

        fresh(size);
        data = rig_alloc(16, 16);
        for (unsigned i = 0; i < size; i++)
            put(i, data, 1, 0, AVAIL | NEXT | WRITE);
        expect_broken("");
        /* All of the next lap made available as well, which no driver may do. */
        fresh(size);
        for (unsigned i = 0; i < size; i++)
            put(i, data, 1, 0, AVAIL | NEXT | WRITE);
        expect_broken("");
    }
}

/* Places in flight are counted: rewriting them gives a driver no more than the ring has. */
static void places_in_flight_are_not_taken_twice(void **state)
{
    uint64_t data;

    fresh(4);
    data = rig_alloc(16, 16);
    for (unsigned i = 0; i < 4; i++)
        put(i, data, 1, (uint16_t)i, AVAIL | WRITE);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    put(0, data, 1, 0, USED | WRITE); /* available in the next lap */
    expect_broken("in flight");
    /* Not before they are shown as used, either. */
    fresh(4);
    for (unsigned i = 0; i < 4; i++)
        put(i, data, 1, (uint16_t)i, AVAIL | WRITE);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
        virtqueue_push(&vq, chain.id, 1, 1, 1);
    }
    put(0, data, 1, 0, USED | WRITE);
    expect_broken("in flight");
    virtqueue_publish(&vq);
    put(0, data, 1, 0, USED | WRITE);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
}

/* 129: every (old, new, event) for sizes 1 to 8, both wrap counters. */
static void checklist_129_the_event_window_is_safe_against_wrapping(void **state)
{
    for (unsigned size = 1; size <= 8; size++)
        for (unsigned old = 0; old < 2 * size; old++)
            for (unsigned batch = 1; batch <= size; batch++)
                for (unsigned event = 0; event < 2 * size; event++) {
                    /* Positions over two laps: 0..size-1 with wrap 1, size..2*size-1 with wrap 0, and on. */
                    uint16_t used = (uint16_t)(old % size | (old < size ? 0x8000 : 0));
                    unsigned distance = (event + 2 * size - old) % (2 * size);

                    assert_int_equal(start(size, used, used), 0);
                    ring->driver->flags = le16_put(VIRTQ_PACKED_EVENT_DESC);
                    ring->driver->off_wrap = le16_put((uint16_t)(event % size | (event < size ? 0x8000 : 0)));
                    vq.ring.in_flight = batch;
                    for (unsigned i = 0; i < batch; i++)
                        virtqueue_push(&vq, 0, 0, 1, 1);
                    virtqueue_publish(&vq);
                    if (virtqueue_needs_interrupt(&vq) != (distance < batch))
                        fail_msg("size %u, old %u, batch %u, event %u", size, old, batch, event);
                }
}

/* 129: what was pushed and is not published yet does not move the window: every old place, with one to four
 * behind the one that was shown. */
static void checklist_129_the_window_ends_where_the_driver_can_see(void **state)
{
    for (unsigned old = 0; old < 16; old++)
        for (unsigned more = 1; more < 5; more++) {
            uint16_t used = (uint16_t)(old % 8 | (old < 8 ? 0x8000 : 0));

            assert_int_equal(start(8, used, used), 0);
            ring->driver->flags = le16_put(VIRTQ_PACKED_EVENT_DESC);
            ring->driver->off_wrap = le16_put(used);
            vq.ring.in_flight = 1 + more;
            virtqueue_push(&vq, 0, 0, 1, 1);
            virtqueue_publish(&vq);
            for (unsigned i = 0; i < more; i++)
                virtqueue_push(&vq, 0, 0, 1, 1);
            if (!virtqueue_needs_interrupt(&vq))
                fail_msg("old %u, %u more", old, more);
            virtqueue_publish(&vq);
            assert_false(virtqueue_needs_interrupt(&vq));
        }
}

/* 124: 3 is reserved, and DESC needs EVENT_IDX: the safe side is to interrupt. */
static void checklist_124_event_flags(void **state)
{
    for (unsigned flags = 0; flags < 4; flags++)
        for (unsigned lap = 0; lap < 3; lap++) {
            assert_int_equal(start(8, 0x8000, 0x8000), 0);
            ring->driver->flags = le16_put((uint16_t)flags);
            ring->driver->off_wrap = le16_put(5);
            vq.ring.in_flight = 1;
            virtqueue_push(&vq, 0, 0, 1, 1);
            virtqueue_publish(&vq);
            assert_int_equal(virtqueue_needs_interrupt(&vq), flags != VIRTQ_PACKED_EVENT_DISABLE);
        }
}

static void notifications_are_asked_for_in_the_device_area(void **state)
{
    bool event_idx = rig.features & VIRTIO_BIT(VIRTIO_F_EVENT_IDX);

    virtqueue_set_notification(&vq, false);
    assert_int_equal(le16_get(ring->device->flags), VIRTQ_PACKED_EVENT_DISABLE);
    assert_int_equal(start(8, 5, 0x8000), 0);
    virtqueue_set_notification(&vq, true);
    assert_int_equal(le16_get(ring->device->flags),
                     event_idx ? VIRTQ_PACKED_EVENT_DESC : VIRTQ_PACKED_EVENT_ENABLE);
    if (event_idx)
        assert_int_equal(le16_get(ring->device->off_wrap), 5);
    assert_int_equal(start(8, 0x8003, 0x8000), 0);
    virtqueue_set_notification(&vq, true);
    if (event_idx)
        assert_int_equal(le16_get(ring->device->off_wrap), 0x8003);
}

/* 123: one used descriptor for a batch: at the place of the first, the id of the last, and all places
 * skipped. */
static void checklist_123_one_descriptor_may_stand_for_a_batch(void **state)
{
    fresh(8);
    vq.ring.in_flight = 7;
    virtqueue_push(&vq, 42, 9, 3, 6);
    virtqueue_push(&vq, 43, 1, 1, 1);
    virtqueue_publish(&vq);
    assert_int_equal(le16_get(ring->pdesc[0].id), 42);
    assert_int_equal(le32_get(ring->pdesc[0].len), 9);
    assert_int_equal(le16_get(ring->pdesc[6].id), 43);
    assert_int_equal(virtqueue_last_used_idx(&vq), 0x8007);
    for (unsigned i = 1; i < 6; i++)
        assert_int_equal(le16_get(ring->pdesc[i].flags), 0);
}

/* 103: what was shown as used stays as it is, however much follows, until the driver makes it available
 * again. */
static void checklist_103_used_descriptors_are_left_alone(void **state)
{
    struct virtq_packed_desc shown[8];
    uint64_t data;

    fresh(8);
    data = rig_alloc(16, 16);
    for (unsigned i = 0; i < 8; i++)
        rig_add_mixed(0, &(struct seg){data, 1, true}, 1, 1);
    rig_publish(0);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    for (unsigned i = 0; i < 8; i++) {
        virtqueue_push(&vq, (uint16_t)(7 - i), i, 1, 1);
        virtqueue_publish(&vq);
        virtqueue_set_notification(&vq, i & 1);
        for (unsigned k = 0; k < i; k++)
            assert_memory_equal(&ring->pdesc[k], &shown[k], sizeof(shown[k]));
        shown[i] = ring->pdesc[i];
    }
    assert_int_equal(virtqueue_pop(&vq, &chain), 0);
    assert_memory_equal(ring->pdesc, shown, sizeof(shown));
}

int main(void)
{
#define FULL(f)  cmocka_unit_test_setup_teardown(f, setup, teardown)
#define PLAIN(f) cmocka_unit_test_setup_teardown(f, setup_plain, teardown)
    const struct CMUnitTest tests[] = {
        FULL(checklist_97_a_set_up_is_checked),
        FULL(checklist_102_available_means_the_bits_say_so),
        FULL(checklist_119_lists_of_any_length_go_round_the_ring),
        FULL(checklist_100_a_batch_is_shown_by_its_first_descriptor),
        FULL(checklist_103_used_descriptors_are_left_alone),
        FULL(checklist_117_junk_around_indirect_tables_is_ignored),
        FULL(an_indirect_table_across_regions_is_read),
        FULL(bad_lists_break_the_ring),
        PLAIN(checklist_113_indirect_without_the_feature_breaks_the_ring),
        FULL(a_list_without_an_end_does_not_spin),
        FULL(places_in_flight_are_not_taken_twice),
        FULL(checklist_129_the_event_window_is_safe_against_wrapping),
        FULL(checklist_129_the_window_ends_where_the_driver_can_see),
        PLAIN(checklist_124_event_flags),
        FULL(notifications_are_asked_for_in_the_device_area),
        PLAIN(notifications_are_asked_for_in_the_device_area),
        FULL(checklist_123_one_descriptor_may_stand_for_a_batch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
