/*
 * Devices that ask for a reset, need one, do not let themselves be reset, or are gone (checklist H5 to H9),
 * over every ring layout: what can be done again is, oldest first; what must not be is an error; every
 * request is answered once, within a bounded number of steps.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_rig.h"

/* checklist 4, 146: DEVICE_NEEDS_RESET with eight in flight, told by the configuration interrupt or found by
 * looking */
static void needs_reset_is_obeyed(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (unsigned told = 0; told < 2; told++) {
            struct fake *fake = start(0, layout);
            fake->on_chain = keep;
            submit_reads(fake, INFLIGHT);
            fake->on_chain = NULL;
            fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
            if (told) {
                fake->isr = VTR_INTERRUPT_CONFIG;
                assert_false(vblk_interrupt(fake->vblk));
            }
            all_are_answered(fake, INFLIGHT);
            for (unsigned i = 0; i < INFLIGHT; i++)
                assert_int_equal(requests[i].result, 0);
            assert_int_equal(fake->resets, 2);
            stop(fake);
        }
}

/* Oldest first, and the same bytes again */
static uint64_t order[64];
static unsigned norder;

static bool note_order(struct fake *fake, struct fake_chain *chain)
{
    order[norder++ % 64] = chain->sector;
    return true;
}

static void resubmission_is_oldest_first(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        fake->on_chain = keep;
        for (unsigned i = 0; i < INFLIGHT; i++) {
            memset(buffers[i], (int)(100 + i), 4096);
            assert_int_equal(fake_submit(fake, 0, &requests[i], VBLK_WRITE, i * 8, buffers[i], 4096), 0);
        }
        vblk_kick(fake->vblk, 0);
        fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
        vblk_config_changed(fake->vblk);
        norder = 0;
        fake->on_chain = note_order;
        for (unsigned i = 0; i < INFLIGHT; i++)
            fake_finish(fake, 0, &requests[i]);
        assert_int_equal(norder, INFLIGHT);
        for (unsigned i = 0; i < INFLIGHT; i++) {
            assert_int_equal(order[i], i * 8);
            assert_int_equal(requests[i].result, 0);
            assert_int_equal(fake->disk[i * 4096 + 4095], 100 + i);
        }
        stop(fake);
    }
}

/* A write that was complete, but not flushed, when the device was reset: the next flush fails, once */
static void a_reset_between_write_and_flush_fails_one_flush(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout += 3)
        for (unsigned variant = 0; variant < 4; variant++) {
            struct fake *fake = start(F(BLK_F_FLUSH) | F(F_RING_RESET) | F(BLK_F_CONFIG_WCE), layout);
            bool device = variant != 1, flushed = variant == 2, through = variant == 3;
            int expected = variant == 0 ? -VBLK_EIO : 0;
            fake->config.writeback = 1;
            if (through)
                assert_int_equal(vblk_set_write_cache(fake->vblk, false), 0);
            else
                assert_int_equal(vblk_set_write_cache(fake->vblk, true), 0);
            assert_int_equal(vblk_write(fake->vblk, 0, 0, buffers[0], 512), 0);
            if (flushed)
                assert_int_equal(vblk_flush(fake->vblk, 0), 0);
            if (device) {
                fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
                fake->config.writeback = 1; /* what a reset makes of it */
                vblk_config_changed(fake->vblk);
            } else {
                fake_use_raw(fake, 0, 31, 1,
                             1); /* breaks the ring: a queue reset is enough, no cache is lost */
            }
            vblk_poll(fake->vblk, 0);
            if (device)
                assert_int_equal(fake->resets, 2);
            assert_int_equal(vblk_flush(fake->vblk, 0), expected);
            assert_int_equal(vblk_flush(fake->vblk, 0), 0);
            if (through)
                assert_int_equal(fake->config.writeback, 0); /* the caller's choice survives */
            stop(fake);
        }
}

/* A write in flight at the reset is written again: nothing is lost, no flush fails for it */
static void a_write_in_flight_is_not_a_lost_one(void **state)
{
    struct fake *fake = start(F(BLK_F_FLUSH), 0);

    fake->on_chain = keep;
    assert_int_equal(fake_submit(fake, 0, &requests[0], VBLK_WRITE, 0, buffers[0], 512), 0);
    vblk_kick(fake->vblk, 0);
    fake->on_chain = NULL;
    fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    vblk_config_changed(fake->vblk);
    fake_finish(fake, 0, &requests[0]);
    assert_int_equal(requests[0].result, 0);
    assert_int_equal(vblk_flush(fake->vblk, 0), 0);
    stop(fake);
}

/* An append must not be done twice */
static void an_append_is_not_repeated(void **state)
{
    struct fake *fake = fake_new(F(BLK_F_ZONED), 4096);

    memset(requests, 0, sizeof(requests));
    fake->config.zoned.zone_sectors = le32_put(128);
    fake->config.zoned.max_append_sectors = le32_put(64);
    fake->config.zoned.model = VIRTIO_BLK_Z_HM;
    fake->on_reset = on_reset;
    assert_int_equal(fake_start(fake, NULL), 0);
    fake->on_chain = keep;
    assert_int_equal(fake_submit(fake, 0, &requests[0], VBLK_ZONE_APPEND, 128, buffers[0], 512), 0);
    vblk_kick(fake->vblk, 0);
    fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    vblk_config_changed(fake->vblk);
    fake_finish(fake, 0, &requests[0]);
    assert_int_equal(requests[0].result, -VBLK_EIO);
    assert_int_equal(nkept, 0);
    stop(fake);
}

/* H10: gone in the middle of it: failed at once, every request answered, nothing written to it any more */
static void hot_unplug(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        struct vblk_info info;
        uint8_t buf[512];
        fake->on_chain = keep;
        submit_reads(fake, 40); /* more than the ring holds, in some layouts */
        fake->gone = true;
        all_are_answered(fake, 40);
        for (unsigned i = 0; i < 40; i++)
            assert_int_equal(requests[i].result, -VBLK_ENODEV);
        vblk_info(fake->vblk, &info);
        assert_true(info.failed);
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), -VBLK_ENODEV);
        assert_int_equal(fake->cut_offs, 0);
        stop(fake);
    }
}

/* H6: a device that can't be reset: cut off from memory if the transport can; else its buffers are never safe
 * again, and the request says so */
static void a_device_that_can_not_be_reset(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (unsigned cut = 0; cut < 2; cut++) {
            struct fake *fake = start(layout & 1 ? F(F_RING_RESET) : 0, layout);
            fake->on_chain = keep;
            fake->stuck_status = true;
            fake->stuck_queue_reset = true;
            if (!cut)
                fake->ops.cut_off = NULL;
            submit_reads(fake, INFLIGHT);
            all_are_answered(fake, INFLIGHT);
            for (unsigned i = 0; i < INFLIGHT; i++)
                assert_int_equal(requests[i].result, cut ? -VBLK_ENODEV : -VBLK_ENOTRECOVERABLE);
            assert_int_equal(fake->cut_offs, cut);
            forget();
            fake->on_reset = NULL;
            if (cut) {
                fake_stop(fake);
            } else {
                assert_true(fake->shares_live == INFLIGHT); /* still shared: the device may still write */
                vblk_stop(fake->vblk);
                assert_int_equal(fake->dma_live, 1);
                fake->vblk = NULL;
                fake_stop_unchecked(fake);
            }
        }
}

/* H14: during the recovery: fewer features, other limits, less capacity, gone, no queue */
static unsigned hostile_variant;

static void change_at_reset(struct fake *fake)
{
    forget();
    switch (hostile_variant) {
    case 0:
        fake->offered &= ~F(BLK_F_FLUSH);
        break;
    case 1:
        fake->config.seg_max = le32_put(1);
        break;
    case 2:
        fake->config.capacity = le64_put(4); /* requests 4.. are beyond it now */
        break;
    case 3:
        fake->gone = true;
        break;
    case 4:
        fake->queue[0].size_max = 0;
        break;
    case 5:
        fake->refuse_features = true;
        break;
    case 6:
        fake->generation_runs = true;
        break;
    case 7:
        fake->config.capacity = le64_put(8192); /* a larger one is welcome */
        break;
    case 8:
        fake->config.blk_size = le32_put(4096);
        break;
    }
}

static void changes_during_recovery(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (hostile_variant = 0; hostile_variant <= 8; hostile_variant++) {
            struct fake *fake =
                fake_new(fake_layout(layout) | F(BLK_F_FLUSH) | F(BLK_F_SEG_MAX) | F(BLK_F_BLK_SIZE), 4096);
            struct vblk_config config = {.queue_size = 32, .indirect_segs = layout & 2 ? 4 : 0};
            memset(requests, 0, sizeof(requests));
            fake->config.seg_max = le32_put(64);
            fake->config.blk_size = le32_put(512);
            for (unsigned i = 0; i < 4096; i++)
                memset(fake->disk + i * 512, (int)(i + 1), 512);
            assert_int_equal(fake_start(fake, &config), 0);
            fake->on_reset = change_at_reset;
            fake->on_chain = keep;
            submit_reads(fake, INFLIGHT);
            fake->on_chain = NULL;
            fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
            vblk_config_changed(fake->vblk);
            all_are_answered(fake, INFLIGHT);
            for (unsigned i = 0; i < INFLIGHT; i++) {
                int expected = hostile_variant == 7 ? 0 : -VBLK_ENODEV;
                if (hostile_variant == 2)
                    expected = i < 4 ? 0 : -VBLK_ERANGE;
                if (requests[i].result != expected)
                    fail_msg("%s, variant %u, request %u: %d", fake_layout_name(layout), hostile_variant, i,
                             requests[i].result);
            }
            if (hostile_variant == 4)
                fake->faults = 0; /* the fake calls any size wrong then */
            stop(fake);
        }
}

/* H14: another reset is asked for, or the device is unplugged, while the first is under way */
static unsigned resets_left;

static void again_at_reset(struct fake *fake)
{
    forget();
    if (hostile_variant == 0 && resets_left > 0 && resets_left-- > 0)
        fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    if (hostile_variant == 1)
        fake->refuse_features = resets_left > 0 && resets_left-- > 0; /* and the next one goes well */
}

static void gone_at_config_read(struct fake *fake, unsigned offset)
{
    if (hostile_variant == 2)
        fake->gone = true;
}

static void trouble_during_recovery(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (hostile_variant = 0; hostile_variant < 3; hostile_variant++) {
            struct fake *fake = start(0, layout);
            fake->on_reset = again_at_reset;
            resets_left = 2;
            fake->on_chain = keep;
            submit_reads(fake, INFLIGHT);
            fake->on_chain = NULL;
            fake->on_config_read = gone_at_config_read;
            fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
            vblk_config_changed(fake->vblk);
            all_are_answered(fake, INFLIGHT);
            for (unsigned i = 0; i < INFLIGHT; i++)
                assert_true(requests[i].result == 0 || requests[i].result == -VBLK_ENODEV);
            assert_true(fake->resets <= 8);
            stop(fake);
        }
}

/* H9: an answer after the reset, to what was asked before it: the ring is new, nothing is believed */
static void answers_after_the_reset(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        uint16_t id;
        fake->on_chain = keep;
        submit_reads(fake, 1);
        id = kept[0]->id;
        fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
        vblk_config_changed(fake->vblk);
        vblk_poll(fake->vblk, 0);
        assert_int_equal(nkept, 1); /* asked again */
        /* the late answer names a chain that is in flight again: its status was preset anew, so it is an
         * error, or the data of the new attempt, never a silent success */
        fake_use_raw(fake, 0, id, 1, kept[0]->ndesc);
        fake->on_chain = NULL;
        fake_finish(fake, 0, &requests[0]);
        assert_int_equal(requests[0].result, -VBLK_EIO);
        stop(fake);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(needs_reset_is_obeyed),
        cmocka_unit_test(resubmission_is_oldest_first),
        cmocka_unit_test(a_reset_between_write_and_flush_fails_one_flush),
        cmocka_unit_test(a_write_in_flight_is_not_a_lost_one),
        cmocka_unit_test(an_append_is_not_repeated),
        cmocka_unit_test(hot_unplug),
        cmocka_unit_test(a_device_that_can_not_be_reset),
        cmocka_unit_test(changes_during_recovery),
        cmocka_unit_test(trouble_during_recovery),
        cmocka_unit_test(answers_after_the_reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
