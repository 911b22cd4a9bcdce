/*
 * Devices that lie or hang (checklist H1 to H15), over every ring layout: each case ends with every request
 * answered once, no buffer given back while the device may have it, no memory but the driver's own touched
 * (ASan), and within a bounded number of steps. vblk_recovery_test.c has those that want a reset, or die.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_rig.h"

static void answer(struct fake *fake, unsigned i)
{
    fake_execute(fake, kept[i]);
    fake_use(fake, kept[i], kept[i]->used_len);
}

/* ---- one lie, then an honest device ---- */

typedef void lie(struct fake *fake);

static void id_beyond_the_queue(struct fake *fake)
{
    fake_use_raw(fake, 0, 32, 1, 1);
}

static void id_huge(struct fake *fake)
{
    fake_use_raw(fake, 0, 0xffff0000u | kept[0]->id, 1, 1); /* right in its low half */
    if (fake_has(fake, VIRTIO_F_RING_PACKED))
        le16_store(&fake_packed(fake, 0)[0].id, 0xffff);
}

static void id_not_in_flight(struct fake *fake)
{
    unsigned id;

    for (id = 0; id < 32; id++) {
        unsigned k;
        for (k = 0; k < nkept && kept[k]->id != id; k++)
            ;
        if (k == nkept)
            break;
    }
    fake_use_raw(fake, 0, id, 1, 1);
}

static void id_of_a_chains_middle(struct fake *fake)
{
    /* in a packed ring any number may be an id: one that is not in use */
    bool packed = fake_has(fake, VIRTIO_F_RING_PACKED);

    fake_use_raw(fake, 0, kept[0]->ndesc > 1 && !packed ? kept[0]->id + 1u : 31, 1, 1);
}

static void same_id_twice(struct fake *fake)
{
    answer(fake, 0);
    fake_use_raw(fake, 0, kept[0]->id, kept[0]->used_len, kept[1]->ndesc);
}

static void len_more_than_writable(struct fake *fake)
{
    fake_execute(fake, kept[0]);
    fake_use_raw(fake, 0, kept[0]->id, 514, kept[0]->ndesc);
}

static void len_huge(struct fake *fake)
{
    fake_execute(fake, kept[0]);
    fake_use_raw(fake, 0, kept[0]->id, UINT32_MAX, kept[0]->ndesc);
}

static void idx_jumps(struct fake *fake)
{
    if (fake_has(fake, VIRTIO_F_RING_PACKED))
        fake_use_raw(fake, 0, 0x7fff, 1, 1);
    else
        le16_store(&fake_used(fake, 0)->idx, (uint16_t)(fake->queue[0].used_idx + INFLIGHT + 1));
}

static void idx_goes_back(struct fake *fake)
{
    if (fake_has(fake, VIRTIO_F_RING_PACKED))
        fake_use_raw(fake, 0, 0xfffe, 1, 1);
    else
        le16_store(&fake_used(fake, 0)->idx, (uint16_t)(fake->queue[0].used_idx - 1));
}

/* H1, H2, H3, H12: believed by nobody; the queue is broken, the device reset, and the requests done again */
static void a_lie_in_the_ring_breaks_it_and_costs_nothing(void **state)
{
    static lie *const lies[] = {id_beyond_the_queue,    id_huge,       id_not_in_flight,
                                id_of_a_chains_middle,  same_id_twice, len_huge,
                                len_more_than_writable, idx_jumps,     idx_goes_back};

    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
            for (unsigned ring_reset = 0; ring_reset < 2; ring_reset++) {
                struct fake *fake = start(ring_reset ? F(F_RING_RESET) : 0, layout);
                struct vblk_info info;
                fake->on_chain = keep;
                submit_reads(fake, INFLIGHT);
                assert_int_equal(nkept, INFLIGHT);
                lies[i](fake);
                fake->on_chain = NULL;
                all_are_answered(fake, INFLIGHT);
                vblk_info(fake->vblk, &info);
                for (unsigned k = 0; k < INFLIGHT; k++)
                    if (requests[k].result != 0 || info.failed || info.recoveries != 1)
                        fail_msg("%s, lie %u, request %u: %d, %u recoveries", fake_layout_name(layout), i, k,
                                 requests[k].result, (unsigned)info.recoveries);
                assert_int_equal(fake->resets, ring_reset ? 1 : 2); /* RING_RESET spares the device */
                stop(fake);
            }
}

/* The same lie after every reset: three tries, then a failed disk with every request answered */
static unsigned lie_index;

static bool lie_at_once(struct fake *fake, struct fake_chain *chain)
{
    fake_use_raw(fake, 0, lie_index ? 0xffff : 31, lie_index == 2 ? UINT32_MAX : 1, 1);
    fake_chain_free(chain);
    return false;
}

static void a_liar_ends_as_a_failed_disk(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (lie_index = 0; lie_index < 3; lie_index++) {
            struct fake *fake = start(layout & 4 ? F(F_RING_RESET) : 0, layout);
            struct vblk_info info;
            fake->on_chain = lie_at_once;
            submit_reads(fake, 20);
            all_are_answered(fake, 20);
            for (unsigned i = 0; i < 20; i++)
                assert_true(requests[i].result == -VBLK_ENODEV || requests[i].result == -VBLK_ETIMEDOUT);
            for (unsigned i = 0; i < 50; i++)
                vblk_poll(fake->vblk, 0);
            vblk_info(fake->vblk, &info);
            assert_true(fake->resets <= 6);
            stop(fake);
        }
}

/* H4: descriptors, available ring and tables rewritten by the device after submission: no effect */
static void what_the_device_can_write_is_not_read_back(void **state)
{
    for (unsigned layout = 0; layout < 8; layout++) {
        struct fake *fake = start(0, layout);
        struct fake_chain *chains[INFLIGHT];
        fake->tampers = true;
        for (unsigned round = 0; round < 50; round++) {
            fake->on_chain = keep;
            submit_reads(fake, INFLIGHT);
            memcpy(chains, kept, sizeof(chains));
            nkept = 0;
            for (unsigned i = 0; i < INFLIGHT; i++)
                fake_execute(fake, chains[i]);
            if (fake_has(fake, VIRTIO_F_RING_PACKED)) {
                for (unsigned i = 0; i < 32; i++) {
                    struct virtq_packed_desc *desc = &fake_packed(fake, 0)[i];
                    desc->addr = le64_put(~0ull);
                    desc->len = le32_put(~0u);
                    desc->id = le16_put(0xffff);
                }
            } else {
                memset(fake_desc(fake, 0), 0xff, VIRTQ_DESC_BYTES(32));
                for (unsigned i = 0; i < 32; i++)
                    le16_store(&fake_avail(fake, 0)->ring[i], 0xffff);
            }
            for (unsigned i = 0; i < INFLIGHT; i++) {
                memset(chains[i]->segs[0].mem, 0xff, 16); /* the header too */
                fake_use(fake, chains[i], chains[i]->used_len);
                fake_chain_free(chains[i]);
            }
            fake->on_chain = NULL;
            all_are_answered(fake, INFLIGHT);
            for (unsigned i = 0; i < INFLIGHT; i++)
                assert_int_equal(requests[i].result, 0);
        }
        assert_int_equal(fake->resets, 1);
        stop(fake);
    }
}

/* H9, checklist 69: a hundred thousand interrupts and polls with nothing there */
static void spurious_interrupts(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout += 5) {
        struct fake *fake = start(0, layout);
        fake->on_chain = keep;
        submit_reads(fake, INFLIGHT);
        fake->clock_step_ns = 0;
        for (unsigned i = 0; i < 100000; i++) {
            assert_false(vblk_interrupt(fake->vblk));
            assert_int_equal(vblk_poll(fake->vblk, 0), 0);
        }
        fake->clock_step_ns = 1000;
        for (unsigned i = 0; i < INFLIGHT; i++)
            answer(fake, i);
        all_are_answered(fake, INFLIGHT);
        assert_int_equal(fake->resets, 1);
        stop(fake);
    }
}

/* H9: the interrupt gets lost: a synchronous call finds its answer all the same, well before the deadline */
static void answer_and_sleep_on(void *ctx, unsigned queue, uint64_t deadline_ns)
{
    struct fake *fake = ctx;

    fake_run_all(fake);
    fake->clock_ns = deadline_ns;
}

static void a_lost_interrupt_costs_a_slice(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        struct vblk_queue_stats stats;
        uint8_t buf[512];
        uint64_t before = fake->clock_ns;
        fake->run_on_notify = false;
        fake->platform.wait = answer_and_sleep_on;
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
        assert_true(fake->clock_ns - before < 250000); /* a quarter of the deadline */
        vblk_queue_stats(fake->vblk, 0, &stats);
        assert_int_equal(stats.lost_interrupts, 1);
        assert_int_equal(stats.recoveries, 0);
        stop(fake);
    }
}

/* H11, checklist 107: a lost kick: kicked again at half the deadline, and that was all */
static void a_lost_kick_is_repeated(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        struct vblk_queue_stats stats;
        fake->lose_kicks = 1;
        submit_reads(fake, INFLIGHT);
        all_are_answered(fake, INFLIGHT);
        vblk_queue_stats(fake->vblk, 0, &stats);
        assert_int_equal(stats.lost_kicks, 1);
        assert_int_equal(stats.recoveries, 0);
        assert_int_equal(fake->resets, 1);
        stop(fake);
    }
}

/* checklist 33-39, 148, 192: one request is never answered; queue reset or device reset, all others survive,
 * and buffers come back only after the reset was confirmed */
static bool deaf_to_sector_3(struct fake *fake, struct fake_chain *chain)
{
    if (chain->type == VIRTIO_BLK_T_IN && chain->sector == 3)
        return keep(fake, chain);
    return true;
}

static void a_request_never_answered_times_out_alone(void **state)
{
    for (unsigned layout = 0; layout < 8; layout++)
        for (unsigned ring_reset = 0; ring_reset < 2; ring_reset++) {
            struct fake *fake = start(ring_reset ? F(F_RING_RESET) : 0, layout);
            struct vblk_info info;
            int reset_at, complete_at;
            fake->queue_reset_delay = 10;
            fake->on_chain = deaf_to_sector_3;
            submit_reads(fake, INFLIGHT);
            all_are_answered(fake, INFLIGHT);
            for (unsigned i = 0; i < INFLIGHT; i++)
                assert_int_equal(requests[i].result, i == 3 ? -VBLK_ETIMEDOUT : 0);
            vblk_info(fake->vblk, &info);
            assert_false(info.failed);
            reset_at = ring_reset ? fake_event_position(fake, EV_QUEUE_IS_RESET, 10)
                                  : fake_event_position(fake, EV_STATUS_WRITE, 5);
            complete_at = fake_event_position(fake, EV_COMPLETE, INFLIGHT - 1);
            assert_true(reset_at > 0 && complete_at > reset_at);
            /* and it works on */
            submit_reads(fake, 3);
            all_are_answered(fake, 3);
            assert_int_equal(requests[2].result, 0);
            stop(fake);
        }
}

/* H7: the disk shrinks under what is in flight: the device answers that as it likes, the driver follows */
static void a_disk_that_shrinks_under_requests(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        uint8_t buf[512];
        fake->on_chain = keep;
        submit_reads(fake, INFLIGHT);
        fake->config.capacity = le64_put(4);
        fake->generation++;
        vblk_config_changed(fake->vblk);
        for (unsigned i = 0; i < INFLIGHT; i++) {
            fake->answer_status = i < 4 ? 0 : VIRTIO_BLK_S_IOERR;
            answer(fake, i);
        }
        fake->answer_status = 0;
        fake->faults = 0; /* the fake calls those behind the end wrong, but they were right when they came */
        all_are_answered(fake, INFLIGHT);
        for (unsigned i = 0; i < INFLIGHT; i++)
            assert_int_equal(requests[i].result, i < 4 ? 0 : -VBLK_EIO);
        assert_int_equal(vblk_read(fake->vblk, 0, 4, buf, 512), -VBLK_ERANGE);
        forget();
        fake->on_chain = NULL;
        assert_int_equal(vblk_read(fake->vblk, 0, 3, buf, 512), 0);
        stop(fake);
    }
}

/* H5: the status byte changes after the answer was seen: what was read once holds */
static void a_status_that_changes_its_mind(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        fake->on_chain = keep;
        submit_reads(fake, INFLIGHT);
        for (unsigned i = 0; i < INFLIGHT; i++)
            answer(fake, i);
        all_are_answered(fake, INFLIGHT);
        for (unsigned i = 0; i < INFLIGHT; i++) {
            unsigned when = requests[i].order;
            *kept[i]->status = VIRTIO_BLK_S_IOERR;
            vblk_poll(fake->vblk, 0);
            assert_int_equal(requests[i].result, 0);
            assert_int_equal(requests[i].order, when); /* completed once */
        }
        stop(fake);
    }
}

/* H9: interrupts when nothing is set up yet, and when all has been failed */
static void interrupt_at_config_read(struct fake *fake, unsigned offset)
{
    if (fake->vblk) {
        fake->isr = 3;
        vblk_interrupt(fake->vblk);
    }
}

static void interrupts_at_the_wrong_time(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout += 3) {
        struct fake *fake = fake_new(fake_layout(layout), 4096);
        uint8_t buf[512];
        fake->on_config_read = interrupt_at_config_read;
        assert_int_equal(fake_start(fake, NULL), 0);
        fake->on_config_read = NULL;
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
        fake->gone = true;
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), -VBLK_ENODEV);
        for (unsigned i = 0; i < 100; i++) {
            vblk_interrupt(fake->vblk);
            vblk_config_changed(fake->vblk);
            assert_int_equal(vblk_poll(fake->vblk, 0), 0);
        }
        stop(fake);
    }
}

/* vblk_stop with requests in flight and waiting: all answered, after the reset */
static void stop_answers_everything(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        fake->on_chain = keep;
        submit_reads(fake, 60);
        stop(fake); /* frees it */
        for (unsigned i = 0; i < 60; i++) {
            assert_true(requests[i].done);
            assert_int_equal(requests[i].result, -VBLK_ENODEV);
        }
    }
}

/* H13: IN_ORDER, and yet out of order (split; in a packed ring the same bytes mean a batch) */
static void in_order_out_of_order_is_a_lie(void **state)
{
    for (unsigned layout = 8; layout < FAKE_LAYOUTS; layout += 2) {
        struct fake *fake = start(0, layout);
        struct vblk_info info;
        fake->on_chain = keep;
        submit_reads(fake, INFLIGHT);
        answer(fake, 2);
        fake->on_chain = NULL;
        all_are_answered(fake, INFLIGHT);
        for (unsigned i = 0; i < INFLIGHT; i++)
            assert_int_equal(requests[i].result, 0);
        vblk_info(fake->vblk, &info);
        assert_int_equal(info.recoveries, 1);
        stop(fake);
    }
}

/* checklist 124: the device's event flags are 3, which is reserved: kicked, to be safe */
static void reserved_event_flags_mean_kick(void **state)
{
    struct fake *fake = start(0, 1);

    fake->run_on_notify = false;
    for (unsigned i = 0; i < 4; i++) {
        unsigned kicks = fake->queue[0].kicks;
        le16_store(&fake_packed_event(fake, 0, false)->flags,
                   (uint16_t)(i | 0xfff0)); /* reserved bits set, too */
        assert_int_equal(fake_submit(fake, 0, &requests[i], VBLK_READ, i, buffers[i], 512), 0);
        vblk_kick(fake->vblk, 0);
        assert_int_equal(fake->queue[0].kicks - kicks, i != VIRTQ_PACKED_EVENT_DISABLE);
    }
    fake_run(fake, 0);
    all_are_answered(fake, 4);
    stop(fake);
}

/* checklist 120, 121: in a used descriptor NEXT means nothing, and without WRITE its length doesn't either */
static void junk_in_used_descriptors_is_ignored(void **state)
{
    struct fake *fake = start(0, 1);

    fake->on_chain = keep;
    submit_reads(fake, 2);
    for (unsigned i = 0; i < 2; i++) {
        struct virtq_packed_desc *desc = &fake_packed(fake, 0)[fake->queue[0].used_next];
        fake_execute(fake, kept[i]);
        fake->queue[0].used_next = (uint16_t)(fake->queue[0].used_next + kept[i]->ndesc);
        desc->id = le16_put(kept[i]->id);
        desc->len = le32_put(i ? 0xdeadbeef : 1);
        le16_store_release(&desc->flags, VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED | VIRTQ_DESC_F_NEXT |
                                             VIRTQ_DESC_F_INDIRECT | (i ? 0 : VIRTQ_DESC_F_WRITE));
    }
    all_are_answered(fake, 2);
    assert_int_equal(requests[0].result, 0);
    assert_int_equal(requests[1].result, 0);
    assert_int_equal(fake->resets, 1);
    stop(fake);
}

/* A caller who doesn't poll, or a machine that was stopped, is not the device's fault */
static void time_that_nobody_polled_does_not_count(void **state)
{
    struct fake *fake = start(0, 0);

    fake->on_chain = keep;
    submit_reads(fake, INFLIGHT);
    fake->clock_ns += 500000000;
    vblk_poll(fake->vblk, 0);
    vblk_poll(fake->vblk, 0);
    assert_int_equal(fake->resets, 1);
    for (unsigned i = 0; i < INFLIGHT; i++)
        answer(fake, i);
    all_are_answered(fake, INFLIGHT);
    stop(fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lie_in_the_ring_breaks_it_and_costs_nothing),
        cmocka_unit_test(a_liar_ends_as_a_failed_disk),
        cmocka_unit_test(what_the_device_can_write_is_not_read_back),
        cmocka_unit_test(spurious_interrupts),
        cmocka_unit_test(a_lost_interrupt_costs_a_slice),
        cmocka_unit_test(a_lost_kick_is_repeated),
        cmocka_unit_test(a_request_never_answered_times_out_alone),
        cmocka_unit_test(a_disk_that_shrinks_under_requests),
        cmocka_unit_test(a_status_that_changes_its_mind),
        cmocka_unit_test(interrupts_at_the_wrong_time),
        cmocka_unit_test(stop_answers_everything),
        cmocka_unit_test(in_order_out_of_order_is_a_lie),
        cmocka_unit_test(reserved_event_flags_mean_kick),
        cmocka_unit_test(junk_in_used_descriptors_is_ignored),
        cmocka_unit_test(time_that_nobody_polled_does_not_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
