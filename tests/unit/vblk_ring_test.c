/*
 * Notifications, both ways, and the finer points of the rings (virtio 1.4, 2.7.7 to 2.7.10, 2.8.10, 2.9):
 * kicks that are wanted are made and others are not, around every wrap; interrupts come when they were asked
 * for; IN_ORDER batches; NOTIFICATION_DATA; which barriers are used.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "guest/driver/vq.h"
#include "tests/unit/vblk_fake.h"

#define F(name) VIRTIO_BIT(VIRTIO_##name)

static struct fake_request requests[256];
static uint8_t buffers[256][512];

static struct fake *start(uint64_t features, unsigned layout, unsigned queue_size)
{
    struct fake *fake = fake_new(features | fake_layout(layout), 4096);
    struct vblk_config config = {
        .queue_size = queue_size, .indirect_segs = layout & 2 ? 1 : 0, .deadline_ns = 1ull << 50};

    memset(requests, 0, sizeof(requests));
    assert_int_equal(fake_start(fake, &config), 0);
    return fake;
}

static void submit(struct fake *fake, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(fake_submit(fake, 0, &requests[i], VBLK_READ, i, buffers[i], 512), 0);
}

/* ---- kicks, on a bare virtqueue: any index, any wish of the device ---- */

struct bare {
    struct vq vq;
    struct vq_chain chains[64];
    struct vq_piece pool[8];
    _Alignas(4096) uint8_t mem[16384];
};

/* TABLES: each chain takes one descriptor of the ring. */
static struct bare *bare_new(bool packed, bool event_idx, unsigned size, bool tables)
{
    struct bare *bare = aligned_alloc(4096, sizeof(*bare));

    assert_non_null(bare);
    memset(bare, 0, sizeof(*bare));
    bare->vq.event_idx = event_idx;
    bare->vq.pool = bare->pool;
    bare->vq.slots_addr = 0x2000;
    if (tables) {
        bare->vq.tables = bare->mem + 8192;
        bare->vq.tables_addr = 0x3000;
        bare->vq.table_bytes = 64;
    }
    if (packed)
        vq_setup_packed(&bare->vq, size, bare->chains, bare->mem, (vblk_dma_addr){0x1000});
    else
        vq_setup_split(&bare->vq, size, bare->chains, bare->mem, (vblk_dma_addr){0x1000}, false);
    return bare;
}

static void publish(struct vq *vq, unsigned n)
{
    while (n--)
        assert_true(vq_put(vq, 0, NULL, 0, 0, 1));
}

/* Takes everything back as an honest device would leave it. */
static void drain_split(struct vq *vq)
{
    uint16_t token;
    uint32_t len;

    while (vq->in_flight) {
        uint16_t slot = vq->last_used;
        struct virtq_used_elem *elem = &vq->u.split.used->ring[slot & (vq->size - 1u)];
        *elem = (struct virtq_used_elem){le32_put(le16_get(vq->u.split.avail->ring[slot & (vq->size - 1u)])),
                                         le32_put(1)};
        le16_store_release(&vq->u.split.used->idx, (uint16_t)(slot + 1));
        assert_int_equal(vq_pop(vq, &token, &len), 1);
    }
}

/* checklist 78: all (old, new, event) near 0, 32768 and 65535, batches of 1 to 8; kicked if and only if the
 * event was passed, counted in whole numbers */
static void split_kick_window(void **state)
{
    static const int at[] = {0, 32768, 65536 - 8};

    for (unsigned i = 0; i < 3; i++)
        for (int start_at = at[i] - 9; start_at < at[i] + 9; start_at++)
            for (unsigned batch = 1; batch <= 8; batch++)
                for (int event = -12; event <= 12; event++) {
                    static struct bare *bare;
                    uint16_t old = (uint16_t)start_at;
                    /* event relative to old: passed if old <= event < old + batch */
                    bool expect = event >= 0 && event < (int)batch;
                    if (!bare)
                        bare = bare_new(false, true, 8, true);
                    vq_reset(&bare->vq);
                    bare->vq.u.split.avail_idx = bare->vq.kicked = old;
                    bare->vq.last_used = bare->vq.u.split.used_seen = old;
                    le16_store(&bare->vq.u.split.used->idx, old);
                    publish(&bare->vq, batch);
                    le16 word = le16_put((uint16_t)(old + event));
                    memcpy(&bare->vq.u.split.used->ring[8], &word, sizeof word);
                    /* checklist 77: with EVENT_IDX the flag means nothing */
                    le16_store(&bare->vq.u.split.used->flags, (uint16_t)(event & 1));
                    assert_int_equal(vq_want_notify(&bare->vq), expect);
                    assert_false(vq_want_notify(&bare->vq)); /* nothing new */
                    drain_split(&bare->vq);
                }
}

/* checklist 75, 76: without EVENT_IDX the flag says it, and avail_event is junk */
static void split_kick_flag(void **state)
{
    struct bare *bare = bare_new(false, false, 8, true);

    for (unsigned i = 0; i < 70000; i++) {
        le16_store((le16 *)(void *)&bare->vq.u.split.used->ring[8], (uint16_t)(i * 31));
        le16_store(&bare->vq.u.split.used->flags, i % 3 == 0);
        publish(&bare->vq, 1 + i % 8);
        assert_int_equal(vq_want_notify(&bare->vq), i % 3 != 0);
        drain_split(&bare->vq);
    }
    free(bare);
}

static void drain_packed(struct vq *vq)
{
    uint16_t token;
    uint32_t len;

    while (vq->in_flight) {
        struct virtq_packed_desc *desc = &vq->u.packed.desc[vq->last_used];
        desc->len = le32_put(1);
        le16_store_release(&desc->flags, vq->u.packed.used_wrap
                                             ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED | VIRTQ_DESC_F_WRITE
                                             : VIRTQ_DESC_F_WRITE);
        assert_int_equal(vq_pop(vq, &token, &len), 1);
    }
}

/* checklist 129: sizes 1 to 8, every slot, both laps, every batch, every event: against counting descriptors
 * one by one since the beginning */
static void packed_kick_window(void **state)
{
    for (unsigned size = 1; size <= 8; size++)
        for (unsigned start_at = 0; start_at < 2 * size; start_at++)
            for (unsigned batch = 1; batch <= size; batch++)
                for (unsigned event = 0; event < 2 * size; event++) {
                    struct bare *bare = bare_new(true, true, size, true);
                    bool expect = false;
                    for (unsigned i = 0; i < start_at; i++) {
                        publish(&bare->vq, 1);
                        vq_want_notify(&bare->vq);
                        drain_packed(&bare->vq);
                    }
                    publish(&bare->vq, batch);
                    /* the event names a slot in a lap; laps have two names */
                    for (unsigned i = start_at; i < start_at + batch; i++)
                        expect |= i % (2 * size) == event;
                    le16_store(&bare->vq.u.packed.device->off_wrap,
                               (uint16_t)(event % size | (event / size ? 0 : 0x8000)));
                    le16_store(&bare->vq.u.packed.device->flags, VIRTQ_PACKED_EVENT_DESC);
                    if (vq_want_notify(&bare->vq) != expect)
                        fail_msg("size %u, from %u, batch %u, event %u: should be %d", size, start_at, batch,
                                 event, expect);
                    free(bare);
                }
}

/* checklist 87, 88, 123: IN_ORDER devices answer in batches of any size, by one
 * entry */
static void in_order_batches(void **state)
{
    for (unsigned layout = 8; layout < FAKE_LAYOUTS; layout++)
        for (unsigned batch = 1; batch <= 5; batch++) {
            struct fake *fake = start(0, layout, 32);
            fake->run_on_notify = false;
            for (unsigned round = 0; round < 200; round++) {
                struct fake_chain *chain;
                unsigned n = 0, ndesc = 0;
                submit(fake, 10);
                vblk_kick(fake->vblk, 0);
                while ((chain = fake_next(fake, 0))) {
                    fake_execute(fake, chain);
                    n++;
                    ndesc += chain->ndesc;
                    if (n == batch || chain->sector == 9) {
                        fake_use_batch(fake, chain, chain->used_len, n, ndesc);
                        n = ndesc = 0;
                    }
                    fake_chain_free(chain);
                }
                vblk_poll(fake->vblk, 0);
                for (unsigned i = 0; i < 10; i++) {
                    assert_true(requests[i].done);
                    assert_int_equal(requests[i].result, 0);
                    if (i)
                        assert_true(requests[i].order > requests[i - 1].order);
                }
            }
            fake_stop(fake);
        }
}

/* checklist 54, 55, 60: thousands of IN_ORDER chains of random length; the fake checks each descriptor
 */
static void in_order_descriptors_are_in_order(void **state)
{
    for (unsigned layout = 8; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(fake_layout(layout), 4096);
        struct vblk_config config = {.queue_size = 16, .indirect_segs = 6, .deadline_ns = 1ull << 50};
        static uint8_t buf[4096];
        uint32_t seed = layout;

        assert_int_equal(fake_start(fake, &config), 0);
        for (unsigned i = 0; i < 2500; i++) {
            struct fake_request *r = &requests[0];
            unsigned n;
            memset(r, 0, sizeof(*r));
            seed = seed * 1664525u + 1013904223u;
            n = 1 + (seed >> 16) % 6;
            for (unsigned k = 0; k < n; k++)
                r->segs[k] = (struct vblk_seg){buf + k * 512, 512};
            r->request.segs = r->segs;
            r->request.nsegs = n;
            assert_int_equal(fake_submit(fake, 0, r, VBLK_READ, 0, NULL, 0), 0);
            vblk_kick(fake->vblk, 0);
            while (!r->done)
                vblk_poll(fake->vblk, 0);
        }
        fake_stop(fake);
    }
}

/* checklist 131, 132, 106: the position that comes with a kick is the ring's */
static void notification_data_is_the_rings_position(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(F(F_NOTIFICATION_DATA), layout, 8);
        for (unsigned i = 0; i < (layout == 4 ? 40000u : 1000u); i++) {
            struct fake_queue *q = &fake->queue[0];
            fake->run_on_notify = false;
            submit(fake, 1 + i % 2);
            vblk_kick(fake->vblk, 0);
            if (layout & 1) {
                fake_run(fake, 0);
                assert_int_equal(q->last_kick_next, q->next | (q->wrap ? 0x8000 : 0));
            } else {
                assert_int_equal(q->last_kick_next, le16_get(fake_avail(fake, 0)->idx));
                fake_run(fake, 0);
            }
            vblk_poll(fake->vblk, 0);
            fake->ntrace = 0;
        }
        fake_stop(fake);
    }
}

/* Kicks fall towards 0 as depth grows: one for a batch; none while the device is busy */
static void one_kick_for_a_batch(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout, 256);
        submit(fake, 32);
        vblk_kick(fake->vblk, 0);
        assert_int_equal(fake->queue[0].kicks, 1);
        vblk_poll(fake->vblk, 0);
        vblk_kick(fake->vblk, 0); /* nothing new */
        assert_int_equal(fake->queue[0].kicks, 1);
        fake->no_notify = true;
        fake_run(fake, 0);
        for (unsigned i = 0; i < 10; i++) {
            submit(fake, 16);
            vblk_kick(fake->vblk, 0);
            fake_run(fake, 0);
            vblk_poll(fake->vblk, 0);
        }
        assert_int_equal(fake->queue[0].kicks, 1);
        fake_stop(fake);
    }
}

/* checklist 66-68, 92, 128: off means none, on means one at the next completion; what came in between is told
 */
static void interrupts_come_when_asked_for(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout, 32);
        fake->run_on_notify = false;
        for (unsigned i = 0; i < 300; i++) {
            submit(fake, 3);
            vblk_kick(fake->vblk, 0);
            fake_run(fake, 0);
            vblk_poll(fake->vblk, 0);
        }
        assert_int_equal(fake->queue[0].interrupts, 0); /* off from the start */
        for (unsigned i = 0; i < 300; i++) {
            unsigned before = fake->queue[0].interrupts;
            submit(fake, 1);
            vblk_kick(fake->vblk, 0);
            assert_false(vblk_interrupts_on(fake->vblk, 0));
            fake_run(fake, 0);
            assert_int_equal(fake->queue[0].interrupts, before + 1);
            assert_true(vblk_interrupts_on(fake->vblk, 0)); /* there already: poll, don't sleep */
            vblk_interrupts_off(fake->vblk, 0);
            vblk_poll(fake->vblk, 0);
            submit(fake, 2);
            vblk_kick(fake->vblk, 0);
            fake_run(fake, 0);
            assert_int_equal(fake->queue[0].interrupts, before + 1);
            vblk_poll(fake->vblk, 0);
        }
        fake_stop(fake);
    }
}

/* A synchronous call sleeps for its interrupt, once, and needs no spinning */
static void synchronous_calls_wait(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout, 32);
        uint8_t buf[512];
        fake->run_on_notify = false;
        fake->run_on_wait = true;
        fake->lose_kicks = 0;
        for (unsigned i = 0; i < 50; i++)
            assert_int_equal(vblk_read(fake->vblk, 0, i, buf, 512), 0);
        assert_int_equal(fake->waits, 50);
        assert_int_equal(fake->queue[0].interrupts, 50);
        fake_stop(fake);
    }
}

/* checklist 110: with less room than a chain needs, not a byte of the ring changes */
static void a_chain_that_does_not_fit_changes_nothing(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        struct bare *bare = bare_new(packed, false, 8, false), *copy = malloc(sizeof(*copy));
        struct vq_piece piece = {NULL, 0x1000, 1, VQ_NO_PIECE};
        publish(&bare->vq, 3);
        memcpy(copy, bare, sizeof(*bare));
        assert_false(vq_put(&bare->vq, 0, &piece, 1, VQ_IN, 2));
        assert_false(vq_put_one(&bare->vq, 0, 0x1000, 1, 1));
        assert_memory_equal(bare, copy, sizeof(*bare));
        free(copy);
        free(bare);
    }
}

/* checklist 65, 95: avail.idx only grows, by one a chain, through the wrap */
static void avail_idx_only_grows(void **state)
{
    struct bare *bare = bare_new(false, true, 8, true);
    uint16_t before = 0;

    for (unsigned i = 0; i < 70000; i++) {
        publish(&bare->vq, 1);
        assert_int_equal(le16_get(bare->vq.u.split.avail->idx), (uint16_t)(before + 1));
        before++;
        drain_split(&bare->vq);
    }
    free(bare);
}

/* checklist 98, 118: AVAIL and USED are the lap's in every descriptor, the id is the same in all; around the
 * end */
static void packed_flags_follow_the_lap(void **state)
{
    struct bare *bare = bare_new(true, false, 5, false);
    bool wrap = true;
    unsigned slot = 0;

    for (unsigned i = 0; i < 100; i++) {
        unsigned n = i % 4;
        struct vq_piece first = {NULL, 0x1000, 1, n > 1 ? 0 : VQ_NO_PIECE};
        uint16_t id = bare->vq.free_head;
        for (unsigned k = 0; k + 1 < n; k++)
            bare->pool[k] = (struct vq_piece){NULL, 0x1001 + k, 1, k + 2 < n ? k + 1 : VQ_NO_PIECE};
        if (n == 1)
            assert_true(vq_put_one(&bare->vq, 0, first.addr, first.len, 1));
        else
            assert_true(vq_put(&bare->vq, 0, n ? &first : NULL, n, VQ_IN, n + 1));
        for (unsigned k = 0; k < n + 2; k++) {
            const struct virtq_packed_desc *desc = &bare->vq.u.packed.desc[slot];
            uint16_t flags = le16_get(desc->flags);
            assert_int_equal(!!(flags & VIRTQ_DESC_F_AVAIL), wrap);
            assert_int_equal(!!(flags & VIRTQ_DESC_F_USED), !wrap);
            assert_int_equal(!!(flags & VIRTQ_DESC_F_NEXT), k < n + 1);
            assert_int_equal(!!(flags & VIRTQ_DESC_F_WRITE), k > 0);
            assert_int_equal(le16_get(desc->id), id);
            if (++slot == 5) {
                slot = 0;
                wrap = !wrap;
            }
        }
        drain_packed(&bare->vq);
    }
    free(bare);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_kick_window),
        cmocka_unit_test(split_kick_flag),
        cmocka_unit_test(packed_kick_window),
        cmocka_unit_test(in_order_batches),
        cmocka_unit_test(in_order_descriptors_are_in_order),
        cmocka_unit_test(notification_data_is_the_rings_position),
        cmocka_unit_test(one_kick_for_a_batch),
        cmocka_unit_test(interrupts_come_when_asked_for),
        cmocka_unit_test(synchronous_calls_wait),
        cmocka_unit_test(a_chain_that_does_not_fit_changes_nothing),
        cmocka_unit_test(avail_idx_only_grows),
        cmocka_unit_test(packed_flags_follow_the_lap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
