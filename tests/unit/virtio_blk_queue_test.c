/*
 * The life of the block device's queues, over every ring layout: order, interrupts, start and stop, memory,
 * and rings that break the rules.
 */
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/unit/virtio_blk_layouts.h"

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

/* Joining what was gathered takes memory too, but never the last that a request just taken counts on. */
static void what_is_joined_leaves_memory_for_the_request_behind_it(void **state)
{
    struct virtio_blk_range range = {.sector = le64_put(0), .num_sectors = le32_put(1)};
    uint64_t data, list;
    struct seg segs[7];
    uint16_t id;
    uint32_t len;
    unsigned n = 0;

    if (!(layout_of(state)->features & BIT(INDIRECT_DESC)))
        return; /* more long requests in flight than there is memory for need many descriptors */
    start(state, (struct rig_options){.size = 1024, .device = {.request_merging = true}});
    fake.hold = true;
    data = rig_alloc(5 * 512, 512);
    list = rig_alloc(sizeof(range), 16);
    memcpy(ptr(list), &range, sizeof(range));
    for (unsigned i = 0; i < 255; i++) {
        segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_IN, 6 * i), 16, false};
        for (unsigned k = 0; k < 5; k++)
            segs[k + 1] = (struct seg){data + k * 512, 512, true};
        segs[6] = (struct seg){rig_alloc(1, 1), 1, true};
        rig_add(0, segs, 7);
        rig_kick(0);
    }
    assert_int_equal(fake.num_held, 255);
    rig_request(0, VIRTIO_BLK_T_IN, 4000, data, 512, true);
    rig_request(0, VIRTIO_BLK_T_IN, 4001, data, 512, true);
    rig_request(0, VIRTIO_BLK_T_DISCARD, 0, list, sizeof(range), false);
    rig_kick(0);
    fake_release_all();
    rig_settle();
    while (rig_used(0, &id, &len))
        n++;
    assert_int_equal(n, 258);
    rig_fini();
}

/* A single descriptor may lie in more pieces than are kept (translated memory): not even its first bytes can
 * be had then, and what is in their place is of the request before. */
static void a_header_in_too_many_pieces_is_refused(void **state)
{
    enum { PAGES = 1100, PAGE = 4096 };
    const uint64_t iova = 1ull << 40;
    struct guest_memory *memory = calloc(1, sizeof(*memory));
    uint64_t pages, status;
    uint32_t len;
    uint16_t id;

    start(state, (struct rig_options){.no_start = true});
    pages = rig_alloc((uint64_t)PAGES * PAGE, PAGE);
    *memory = rig.memory;
    memory->translated = true;
    for (unsigned i = 0; i < PAGES; i++)
        assert_int_equal(guest_memory_add(memory, &(struct guest_region){.guest_addr = iova + i * PAGE,
                                                                         .bytes = PAGE,
                                                                         .host = (uint8_t *)ptr(pages) +
                                                                                 (PAGES - 1 - i) * PAGE}),
                         0);
    rig.setup[0].memory = memory;
    assert_int_equal(rig_start(0), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct seg segs[2] = {{iova, PAGES * PAGE, false}, {status = rig_alloc(1, 1), 1, true}};

        rig_add(0, segs, 2);
        rig_kick(0);
        assert_true(rig_used(0, &id, &len));
        assert_int_equal(rig_status(status), VIRTIO_BLK_S_IOERR);
        assert_int_equal(fake.num_calls, i);
        if (i == 0)
            assert_int_equal(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false, NULL), 0);
    }
    rig_fini();
    free(memory);
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

int main(void)
{
    static const struct layout_case cases[] = {
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
        EACH_LAYOUT(what_is_joined_leaves_memory_for_the_request_behind_it),
        EACH_LAYOUT(a_header_in_too_many_pieces_is_refused),
        EACH_LAYOUT(eventfds_kick_and_interrupt),
        EACH_LAYOUT(checklist_50_101_readable_buffers_are_not_written),
        EACH_LAYOUT(checklist_99_112_requests_are_taken_in_ring_order),
        EACH_LAYOUT(checklist_6_7_a_broken_ring_asks_for_a_reset),
        EACH_LAYOUT(a_broken_ring_leaves_the_others_alone),
        EACH_LAYOUT(a_queue_of_32768_works),
    };

    return run_cases("virtio_blk_queue", cases, sizeof(cases) / sizeof(cases[0]));
}
