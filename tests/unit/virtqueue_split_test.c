/*
 * The device's side of the split ring (virtio 1.4, 2.7), against rings written by hand. Numbers are those of
 * the rule in the project's checklist of the specification.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/device/virtqueue.h"
#include "tests/unit/device_rig.h"

#define SIZE 8u

static struct virtqueue vq;
static struct rig_queue *const ring = &rig.queues[0];
static struct virtq_chain chain;

static int setup_features(uint64_t features)
{
    rig_init(&(struct rig_options){.features = features, .size = SIZE, .no_start = true});
    return 0;
}

static int start_at(uint16_t idx)
{
    const char *why = NULL;
    const struct virtqueue_setup setup = {.memory = &rig.memory,
                                          .size = SIZE,
                                          .features = rig.features,
                                          .desc = ring->desc,
                                          .driver = ring->avail,
                                          .device = ring->used,
                                          .last_avail_idx = idx};

    ring->avail_idx = ring->used_idx = idx;
    ring->next_desc = 0;
    ring->avail->idx = le16_put(idx);
    ring->used->idx = le16_put(idx);
    return virtqueue_init(&vq, &setup, &why);
}

static int setup_plain(void **state)
{
    setup_features(0);
    return start_at(0);
}

static int setup_indirect(void **state)
{
    setup_features(VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC));
    return start_at(0);
}

static int setup_event(void **state)
{
    setup_features(VIRTIO_BIT(VIRTIO_F_EVENT_IDX));
    return start_at(0);
}

static int teardown(void **state)
{
    rig_fini();
    return 0;
}

static le16 *used_event(void)
{
    return &ring->avail->ring[SIZE];
}

static le16 *avail_event(void)
{
    return (le16 *)&ring->used->ring[SIZE];
}

static void expect_broken(const char *why)
{
    assert_int_equal(virtqueue_pop(&vq, &chain), -EPROTO);
    if (!strstr(vq.why, why))
        fail_msg("broken for another reason: %s", vq.why);
}

static void a_set_up_is_checked(void **state)
{
    const struct {
        unsigned size;
        uint64_t desc, driver, device;
        int result;
    } cases[] = {
        {8, 0, 0, 0, 0},
        {0, 0, 0, 0, -EINVAL},
        {3, 0, 0, 0, -EINVAL},
        {65536, 0, 0, 0, -EINVAL},
        {8, 8, 0, 0, -EINVAL},
        {8, 0, 1, 0, -EINVAL},
        {8, 0, 0, 2, -EINVAL},
        {1, 0, 0, 0, 0},
        {32768, 0, 0, 0, 0},
        {8, 0, 2, 0, 0},
        {8, UINT64_MAX, 0, 0, -EINVAL},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *why = NULL;
        const struct virtqueue_setup setup = {
            .memory = &rig.memory,
            .size = cases[i].size,
            .desc = cases[i].desc == UINT64_MAX ? NULL : rig.low + cases[i].desc,
            .driver = rig.low + (1u << 20) + cases[i].driver,
            .device = rig.low + (2u << 20) + cases[i].device,
        };

        assert_int_equal(virtqueue_init(&vq, &setup, &why), cases[i].result);
        assert_true(cases[i].result == 0 || why != NULL);
    }
}

static void a_ring_with_more_in_flight_than_it_holds_is_refused(void **state)
{
    const char *why = NULL;
    struct virtqueue_setup setup = {.memory = &rig.memory,
                                    .size = SIZE,
                                    .desc = ring->desc,
                                    .driver = ring->avail,
                                    .device = ring->used,
                                    .last_avail_idx = 10};

    ring->used->idx = le16_put(1);
    assert_int_equal(virtqueue_init(&vq, &setup, &why), -EINVAL);
    ring->used->idx = le16_put(2);
    assert_int_equal(virtqueue_init(&vq, &setup, &why), 0);
    setup.last_avail_idx = 3;
    ring->used->idx = le16_put(65531);
    assert_int_equal(virtqueue_init(&vq, &setup, &why), 0);
}

static void a_chain_becomes_segments_in_order(void **state)
{
    uint64_t data = rig_alloc(64, 16);
    struct seg segs[] = {
        {data, 10, false}, {data + 10, 6, false}, {data + 32, 5, true}, {data + 40, 1, true}};

    rig_add_mixed(0, segs, 4, 4);
    assert_int_equal(virtqueue_pop(&vq, &chain), 0);
    rig_publish(0);
    assert_true(virtqueue_has_more(&vq));
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    assert_int_equal(chain.id, 0);
    assert_int_equal(chain.out, 2);
    assert_int_equal(chain.in, 2);
    assert_int_equal(chain.out_bytes, 16);
    assert_int_equal(chain.in_bytes, 6);
    for (unsigned i = 0; i < 4; i++) {
        assert_ptr_equal(vq.iov[i].iov_base, ptr(segs[i].addr));
        assert_int_equal(vq.iov[i].iov_len, segs[i].len);
    }
    assert_ptr_equal(chain.last_in, ptr(data + 40));
    assert_false(virtqueue_has_more(&vq));
    assert_int_equal(virtqueue_pop(&vq, &chain), 0);
}

/* 50, 52: neither the table nor the available ring is written to. */
static void checklist_52_descriptors_are_left_as_they_are(void **state)
{
    uint64_t data = rig_alloc(64, 16);
    struct seg segs[] = {{data, 16, false}, {data + 32, 1, true}};
    uint8_t before[16 * SIZE], avail[VIRTQ_AVAIL_BYTES(SIZE)];

    rig_add_mixed(0, segs, 2, 2);
    rig_publish(0);
    memcpy(before, ring->desc, sizeof(before));
    memcpy(avail, ring->avail, sizeof(avail));
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    virtqueue_push(&vq, chain.id, 1, 1, 1);
    virtqueue_publish(&vq);
    virtqueue_set_notification(&vq, false);
    virtqueue_set_notification(&vq, true);
    assert_memory_equal(before, ring->desc, sizeof(before));
    assert_memory_equal(avail, ring->avail, sizeof(avail));
}

static void a_descriptor_across_regions_becomes_several_segments(void **state)
{
    struct seg segs[] = {{NEXT_ADDR - 10, 30, false}, {NEXT_ADDR + 100, 1, true}};

    rig_add_mixed(0, segs, 2, 2);
    rig_publish(0);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    assert_int_equal(chain.out, 2);
    assert_int_equal(chain.out_bytes, 30);
    assert_ptr_equal(vq.iov[0].iov_base, rig.low + LOW_BYTES - 10);
    assert_int_equal(vq.iov[0].iov_len, 10);
    assert_ptr_equal(vq.iov[1].iov_base, rig.next);
    assert_int_equal(vq.iov[1].iov_len, 20);
}

/* D2: an indirect table may lie across two regions, and at any alignment. */
static void an_indirect_table_across_regions_is_read(void **state)
{
    uint64_t data = rig_alloc(16, 16);

    for (unsigned shift = 1; shift < 16; shift += 2) {
        uint64_t table = NEXT_ADDR - 16 - shift;
        struct virtq_desc descs[3];

        for (unsigned i = 0; i < 3; i++)
            rig_split_desc(&descs[i], &(struct seg){data + i, 1, i == 2}, i < 2 ? VIRTQ_DESC_F_NEXT : 0,
                           (uint16_t)(i + 1));
        for (unsigned i = 0; i < sizeof(descs); i++)
            *(uint8_t *)ptr(table + i) = ((uint8_t *)descs)[i];
        rig_split_desc(&ring->desc[0], &(struct seg){table, sizeof(descs), true}, VIRTQ_DESC_F_INDIRECT, 0);
        ring->avail->ring[ring->avail_idx % SIZE] = le16_put(0);
        ring->avail_idx++;
        rig_publish(0);
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
        assert_int_equal(chain.out, 2);
        assert_int_equal(chain.in, 1);
        assert_ptr_equal(chain.last_in, ptr(data + 2));
    }
}

/* 62: WRITE on the descriptor of an indirect table is ignored (above as well). 63: direct ones may come
 * first. */
static void checklist_63_direct_descriptors_may_precede_an_indirect_one(void **state)
{
    uint64_t data = rig_alloc(64, 16);
    struct seg segs[] = {{data, 8, false}, {data + 8, 8, false}, {data + 16, 8, false}, {data + 32, 1, true}};

    for (unsigned direct = 0; direct <= 4; direct++) {
        rig_add_mixed(0, segs, 4, direct);
        rig_publish(0);
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
        assert_int_equal(chain.out_bytes, 24);
        assert_int_equal(chain.in_bytes, 1);
    }
}

static void one_indirect(uint64_t addr, uint32_t len, uint16_t flags)
{
    rig_split_desc(&ring->desc[0], &(struct seg){addr, len, false}, flags, 1);
    ring->avail->ring[ring->avail_idx % SIZE] = le16_put(0);
    ring->avail_idx++;
    rig_publish(0);
}

/* 64, D2 */
static void checklist_64_bad_indirect_tables_break_the_ring(void **state)
{
    uint64_t table = rig_alloc(64, 16), data = rig_alloc(16, 16);
    struct virtq_desc *descs = ptr(table);
    const struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, inner_flags, inner_next;
        const char *why;
    } cases[] = {
        {table, 0, 4, 0, 0, "length"},
        {table, 8, 4, 0, 0, "length"},
        {table, 17, 4, 0, 0, "length"},
        {table, 0xfffffff0u, 4, 0, 0, "length"},
        {table, 32, 5, 0, 0, "both indirect and continued"},
        {table, 32, 4, VIRTQ_DESC_F_INDIRECT, 0, "contains an indirect"},
        {table, 32, 4, VIRTQ_DESC_F_NEXT, 2, "outside its indirect table"},
        {table, 32, 4, VIRTQ_DESC_F_NEXT, 0xffff, "outside its indirect table"},
        {table, 32, 4, VIRTQ_DESC_F_NEXT, 0, "loop"},
        {0, 32, 4, 0, 0, "outside"},
        {NEXT_ADDR + NEXT_BYTES - 16, 32, 4, VIRTQ_DESC_F_NEXT, 1, "outside"},
        {UINT64_MAX - 15, 32, 4, VIRTQ_DESC_F_NEXT, 1, "outside"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start_at(0);
        rig_split_desc(&descs[0], &(struct seg){data, 1, false}, cases[i].inner_flags, cases[i].inner_next);
        rig_split_desc(&descs[1], &(struct seg){data, 1, false}, 0, 0);
        one_indirect(cases[i].addr, cases[i].len, cases[i].flags);
        if (cases[i].addr == NEXT_ADDR + NEXT_BYTES - 16)
            memcpy(ptr(cases[i].addr),
                   &(struct virtq_desc){le64_put(data), le32_put(1), le16_put(1), le16_put(1)}, 16);
        expect_broken(cases[i].why);
    }
}

static void checklist_56_indirect_without_the_feature_breaks_the_ring(void **state)
{
    one_indirect(rig_alloc(16, 16), 16, VIRTQ_DESC_F_INDIRECT);
    expect_broken("without INDIRECT_DESC");
}

/* D1 */
static void hostile_chains_break_the_ring(void **state)
{
    uint64_t data = rig_alloc(64, 16);
    const struct {
        uint64_t addr;
        uint32_t len;
        const char *why;
    } outside[] = {
        {0, 1, "outside"},
        {LOW_ADDR - 1, 2, "outside"},
        {NEXT_ADDR + NEXT_BYTES - 1, 2, "outside"},
        {NEXT_ADDR + NEXT_BYTES, 1, "outside"},
        {HIGH_ADDR + HIGH_BYTES - 1, 2, "outside"},
        {UINT64_MAX, 1, "outside"},
        {UINT64_MAX, UINT32_MAX, "outside"},
        {HIGH_ADDR, UINT32_MAX, "outside"},
        {LOW_ADDR, UINT32_MAX, "outside"},
    };

    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        start_at(0);
        rig_add_mixed(0, &(struct seg){outside[i].addr, outside[i].len, true}, 1, 1);
        rig_publish(0);
        expect_broken(outside[i].why);
    }
    /* A loop of one, of two, of all. */
    for (unsigned n = 1; n <= SIZE; n++) {
        start_at(0);
        for (unsigned i = 0; i < n; i++)
            rig_split_desc(&ring->desc[i], &(struct seg){data, 1, true}, VIRTQ_DESC_F_NEXT,
                           (uint16_t)((i + 1) % n));
        ring->avail->ring[0] = le16_put(0);
        ring->avail_idx = 1;
        rig_publish(0);
        expect_broken("loop");
    }
    for (unsigned next = SIZE; next < 65536; next += 13107) {
        start_at(0);
        rig_split_desc(&ring->desc[0], &(struct seg){data, 1, true}, VIRTQ_DESC_F_NEXT, (uint16_t)next);
        ring->avail->ring[0] = le16_put(0);
        ring->avail_idx = 1;
        rig_publish(0);
        expect_broken("outside the descriptor table");
    }
    for (unsigned head = SIZE; head < 65536; head += 13107) {
        start_at(0);
        ring->avail->ring[0] = le16_put((uint16_t)head);
        ring->avail_idx = 1;
        rig_publish(0);
        expect_broken("outside the table");
    }
}

static void checklist_48_readable_after_writable_breaks_the_ring(void **state)
{
    uint64_t data = rig_alloc(64, 16);
    struct seg segs[] = {{data, 16, false}, {data + 16, 1, true}, {data + 32, 16, false}};

    rig_add_mixed(0, segs, 3, 3);
    rig_publish(0);
    expect_broken("follows a device-writable");
}

static void empty_descriptors_leave_no_trace(void **state)
{
    uint64_t data = rig_alloc(64, 16);
    struct seg segs[] = {
        {0, 0, false}, {data, 16, false}, {UINT64_MAX, 0, false}, {data + 16, 1, true}, {0, 0, true}};

    rig_add_mixed(0, segs, 5, 5);
    rig_publish(0);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    assert_int_equal(chain.out, 1);
    assert_int_equal(chain.in, 1);
    assert_ptr_equal(chain.last_in, ptr(data + 16));
}

/* 47 */
static void checklist_47_a_chain_as_long_as_the_queue_is_taken(void **state)
{
    uint64_t data = rig_alloc(64, 16);
    struct seg segs[SIZE];

    for (unsigned i = 0; i < SIZE; i++)
        segs[i] = (struct seg){data + i, 1, i == SIZE - 1};
    rig_add_mixed(0, segs, SIZE, SIZE);
    rig_publish(0);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    assert_int_equal(chain.out + chain.in, SIZE);
}

static void more_segments_than_are_kept_are_still_walked_to_the_status(void **state)
{
    unsigned count = VIRTQ_IOV_MAX + 100;
    uint64_t data = rig_alloc(16, 16), table = rig_alloc(16ull * count, 16);
    struct virtq_desc *descs = ptr(table);

    for (unsigned i = 0; i < count; i++)
        rig_split_desc(&descs[i], &(struct seg){data + i % 8, 1, i == count - 1},
                       i + 1 < count ? VIRTQ_DESC_F_NEXT : 0, (uint16_t)(i + 1));
    one_indirect(table, 16 * count, VIRTQ_DESC_F_INDIRECT);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    assert_true(chain.too_long);
    assert_int_equal(chain.out_bytes, count - 1);
    assert_int_equal(chain.in_bytes, 1);
    assert_ptr_equal(chain.last_in, ptr(data + (count - 1) % 8));
    /* Even there each byte has to be the guest's. */
    descs[count - 1].addr = le64_put(0);
    one_indirect(table, 16 * count, VIRTQ_DESC_F_INDIRECT);
    expect_broken("outside");
}

/* D1: avail.idx further than the queue is long; every start and jump near the wraps. */
static void a_jump_of_the_available_index_breaks_the_ring(void **state)
{
    static const uint16_t starts[] = {0, 1, 7, 32760, 32767, 32768, 65527, 65528, 65534, 65535};
    uint64_t data = rig_alloc(16, 16);

    for (unsigned i = 0; i < SIZE; i++)
        rig_split_desc(&ring->desc[i], &(struct seg){data, 1, true}, 0, 0);
    for (size_t s = 0; s < sizeof(starts) / sizeof(starts[0]); s++)
        for (unsigned jump = 0; jump < 65536; jump++) {
            start_at(starts[s]);
            le16_store(&ring->avail->idx, (uint16_t)(starts[s] + jump));
            assert_int_equal(virtqueue_pop(&vq, &chain), jump == 0 ? 0 : jump <= SIZE ? 1 : -EPROTO);
        }
}

/* Buffers that were used but not yet shown as used count as well: a driver cannot know that they are free. */
static void the_available_index_does_not_overtake_what_is_shown_as_used(void **state)
{
    uint64_t data = rig_alloc(16, 16);

    for (unsigned i = 0; i < SIZE; i++)
        rig_add_mixed(0, &(struct seg){data, 1, true}, 1, 1);
    rig_publish(0);
    for (unsigned i = 0; i < SIZE; i++) {
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
        virtqueue_push(&vq, chain.id, 1, 1, 1);
    }
    le16_store(&ring->avail->idx, SIZE + 1);
    expect_broken("further ahead of the used index");
    start_at(0);
    rig_add_mixed(0, &(struct seg){data, 1, true}, 1, 1);
    rig_publish(0);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
    virtqueue_push(&vq, chain.id, 1, 1, 1);
    virtqueue_publish(&vq);
    le16_store(&ring->avail->idx, SIZE + 1);
    assert_int_equal(virtqueue_pop(&vq, &chain), 1);
}

/* 95 and the used ring's slots: indexes count modulo 65536, slots modulo the size. */
static void indexes_wrap_through_the_whole_range(void **state)
{
    uint64_t data = rig_alloc(16, 16);

    start_at(65500);
    for (unsigned i = 0; i < 70000; i++) {
        uint16_t id, expected = rig_add_mixed(0, &(struct seg){data, 1, true}, 1, 1);
        uint32_t len;

        rig_publish(0);
        assert_int_equal(virtqueue_pop(&vq, &chain), 1);
        assert_int_equal(chain.id, expected);
        virtqueue_push(&vq, chain.id, i, 1, 1);
        assert_false(rig_used(0, &id, &len)); /* not before it is published */
        assert_true(virtqueue_publish(&vq));
        assert_false(virtqueue_publish(&vq));
        assert_true(rig_used(0, &id, &len));
        assert_int_equal(id, expected);
        assert_int_equal(len, i);
        assert_false(rig_used(0, &id, &len));
    }
}

/* 70, 71: without EVENT_IDX the flag decides, whatever stands in used_event. */
static void checklist_70_71_flags_decide_without_event_idx(void **state)
{
    for (unsigned flags = 0; flags < 4; flags++)
        for (unsigned event = 0; event < 65536; event += 257) {
            start_at(0);
            le16_store(used_event(), (uint16_t)event);
            le16_store(&ring->avail->flags, (uint16_t)flags);
            virtqueue_push(&vq, 0, 0, 1, 1);
            virtqueue_publish(&vq);
            assert_int_equal(virtqueue_needs_interrupt(&vq), !(flags & 1));
        }
}

/* 79: used.flags is 0 or 1, and avail_event stays as it is. */
static void checklist_79_notifications_by_flags(void **state)
{
    le16_store(avail_event(), 0x5555);
    virtqueue_set_notification(&vq, false);
    assert_int_equal(le16_load(&ring->used->flags), 1);
    virtqueue_set_notification(&vq, true);
    assert_int_equal(le16_load(&ring->used->flags), 0);
    assert_int_equal(le16_load(avail_event()), 0x5555);
}

/* 80: with EVENT_IDX used.flags stays 0; the place to be told of is the next one to take. */
static void checklist_80_notifications_by_event_index(void **state)
{
    static const uint16_t starts[] = {0, 32767, 32768, 65535};

    for (unsigned i = 0; i < 4; i++) {
        start_at(starts[i]);
        virtqueue_set_notification(&vq, false);
        assert_int_equal(le16_load(&ring->used->flags), 0);
        virtqueue_set_notification(&vq, true);
        assert_int_equal(le16_load(&ring->used->flags), 0);
        assert_int_equal(le16_load(avail_event()), starts[i]);
    }
}

/* 72, 73: with EVENT_IDX the flag is ignored, and a batch interrupts when it passes the event. */
static void checklist_73_the_event_window_is_safe_against_wrapping(void **state)
{
    static const uint16_t starts[] = {0, 1, 3, 32760, 32764, 32767, 32768, 65527, 65530, 65534, 65535};

    le16_store(&ring->avail->flags, 1);
    for (size_t s = 0; s < sizeof(starts) / sizeof(starts[0]); s++)
        for (unsigned batch = 1; batch <= SIZE; batch++)
            for (int distance = -20; distance < 20; distance++) {
                uint16_t event = (uint16_t)(starts[s] + distance);

                start_at(starts[s]);
                le16_store(&ring->avail->flags, 1);
                le16_store(used_event(), event);
                for (unsigned i = 0; i < batch; i++)
                    virtqueue_push(&vq, 0, 0, 1, 1);
                virtqueue_publish(&vq);
                assert_int_equal(virtqueue_needs_interrupt(&vq), distance >= 0 && distance < (int)batch);
                /* What was answered once is not asked about again. */
                assert_false(virtqueue_needs_interrupt(&vq));
            }
}

/* 73: every event for every place near the wraps, one entry at a time. */
static void checklist_73_all_events_for_single_entries(void **state)
{
    static const uint16_t starts[] = {0, 32767, 32768, 65535};

    for (size_t s = 0; s < sizeof(starts) / sizeof(starts[0]); s++)
        for (unsigned event = 0; event < 65536; event++) {
            start_at(starts[s]);
            le16_store(used_event(), (uint16_t)event);
            virtqueue_push(&vq, 0, 0, 1, 1);
            virtqueue_publish(&vq);
            assert_int_equal(virtqueue_needs_interrupt(&vq), event == starts[s]);
        }
}

/* An interrupt that was put off for more than a lap of the index is not lost. */
static void a_whole_lap_passes_every_event(void **state)
{
    le16_store(used_event(), 100);
    for (unsigned i = 0; i < 70000; i++) {
        virtqueue_push(&vq, 0, 0, 1, 1);
        virtqueue_publish(&vq);
    }
    assert_true(virtqueue_needs_interrupt(&vq));
}

/* 87: an entry for a batch sits at the slot of the first, names the last, and moves the index by all of them.
 */
static void checklist_87_one_entry_may_stand_for_a_batch(void **state)
{
    start_at(65534);
    virtqueue_push(&vq, 5, 77, 4, 4);
    virtqueue_push(&vq, 6, 78, 1, 1);
    virtqueue_publish(&vq);
    assert_int_equal(le16_load(&ring->used->idx), 3);
    assert_int_equal(le32_get(ring->used->ring[65534 % SIZE].id), 5);
    assert_int_equal(le32_get(ring->used->ring[65534 % SIZE].len), 77);
    assert_int_equal(le32_get(ring->used->ring[2].id), 6);
}

static void user_addresses_are_translated(void **state)
{
    guest_addr back;

    assert_ptr_equal(guest_memory_user_pointer(&rig.memory, LOW_ADDR + USER_OFFSET + 5, 10), rig.low + 5);
    assert_null(guest_memory_user_pointer(&rig.memory, LOW_ADDR + USER_OFFSET + LOW_BYTES - 5, 6));
    assert_null(guest_memory_user_pointer(&rig.memory, UINT64_MAX, 1));
    assert_true(guest_memory_address(&rig.memory, rig.next + 7, &back));
    assert_int_equal(back.value, NEXT_ADDR + 7);
    assert_false(guest_memory_address(&rig.memory, &back, &back));
}

static void regions_are_checked(void **state)
{
    static struct guest_memory memory;
    const struct guest_region bad[] = {
        {.guest_addr = 0x1000, .bytes = 0},          {.guest_addr = UINT64_MAX - 10, .bytes = 12},
        {.user_addr = UINT64_MAX - 10, .bytes = 12}, {.guest_addr = 0x1fff, .bytes = 1},
        {.guest_addr = 0x800, .bytes = 0x801},       {.guest_addr = 0, .bytes = UINT64_MAX},
        {.guest_addr = 0x1000, .bytes = 0x1000},
    };

    memset(&memory, 0, sizeof(memory));
    assert_int_equal(guest_memory_add(&memory, &(struct guest_region){.guest_addr = 0x1000, .bytes = 0x1000}),
                     0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(guest_memory_add(&memory, &bad[i]), -EINVAL);
    assert_int_equal(memory.count, 1);
    for (unsigned i = 1; i < GUEST_REGIONS_MAX; i++)
        assert_int_equal(
            guest_memory_add(&memory, &(struct guest_region){.guest_addr = 0x2000 * (1 + i), .bytes = 1}), 0);
    assert_int_equal(guest_memory_add(&memory, &(struct guest_region){.guest_addr = 0, .bytes = 1}), -ENOSPC);
}

#define PLAIN(f)    cmocka_unit_test_setup_teardown(f, setup_plain, teardown)
#define INDIRECT(f) cmocka_unit_test_setup_teardown(f, setup_indirect, teardown)
#define EVENT(f)    cmocka_unit_test_setup_teardown(f, setup_event, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLAIN(a_set_up_is_checked),
        PLAIN(a_ring_with_more_in_flight_than_it_holds_is_refused),
        PLAIN(a_chain_becomes_segments_in_order),
        PLAIN(checklist_52_descriptors_are_left_as_they_are),
        PLAIN(a_descriptor_across_regions_becomes_several_segments),
        INDIRECT(an_indirect_table_across_regions_is_read),
        INDIRECT(checklist_63_direct_descriptors_may_precede_an_indirect_one),
        INDIRECT(checklist_64_bad_indirect_tables_break_the_ring),
        PLAIN(checklist_56_indirect_without_the_feature_breaks_the_ring),
        PLAIN(hostile_chains_break_the_ring),
        PLAIN(checklist_48_readable_after_writable_breaks_the_ring),
        PLAIN(empty_descriptors_leave_no_trace),
        PLAIN(checklist_47_a_chain_as_long_as_the_queue_is_taken),
        INDIRECT(more_segments_than_are_kept_are_still_walked_to_the_status),
        PLAIN(a_jump_of_the_available_index_breaks_the_ring),
        PLAIN(the_available_index_does_not_overtake_what_is_shown_as_used),
        PLAIN(indexes_wrap_through_the_whole_range),
        PLAIN(checklist_70_71_flags_decide_without_event_idx),
        PLAIN(checklist_79_notifications_by_flags),
        EVENT(checklist_80_notifications_by_event_index),
        EVENT(checklist_73_the_event_window_is_safe_against_wrapping),
        EVENT(checklist_73_all_events_for_single_entries),
        EVENT(a_whole_lap_passes_every_event),
        PLAIN(checklist_87_one_entry_may_stand_for_a_batch),
        PLAIN(user_addresses_are_translated),
        PLAIN(regions_are_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
