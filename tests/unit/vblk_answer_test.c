/*
 * How much of a device's answer is believed: used lengths (virtio 1.4, 2.7.8, 2.8.5, 5.2.6.3), the sector of
 * an append, and what a flush may vouch for after the device was reset.
 */
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_fake.h"

#define F(name) VIRTIO_BIT(VIRTIO_##name)

/* ---- used lengths ---- */

static uint32_t answer_len; /* of the next answers; UINT32_MAX: the true one */
static bool fill_nothing;   /* and the data is left as it was */

static bool answer_with_len(struct fake *fake, struct fake_chain *chain)
{
    uint8_t before[4096];
    bool leave = fill_nothing && chain->nsegs == 3 && chain->segs[1].len <= sizeof(before);

    if (leave)
        memcpy(before, chain->segs[1].mem, chain->segs[1].len);
    fake_execute(fake, chain);
    if (leave)
        memcpy(chain->segs[1].mem, before, chain->segs[1].len);
    fake_use(fake, chain, answer_len == UINT32_MAX ? chain->used_len : answer_len);
    fake_chain_free(chain);
    return false;
}

static struct fake *start(uint64_t features, unsigned layout)
{
    struct fake *fake = fake_new(features | fake_layout(layout), 4096);
    struct vblk_config config = {.queue_size = 32, .indirect_segs = layout & 2 ? 4 : 0};

    memset(fake->disk, 9, 4096 * 512);
    answer_len = UINT32_MAX;
    fill_nothing = false;
    fake->on_chain = answer_with_len;
    assert_int_equal(fake_start(fake, &config), 0);
    return fake;
}

/* checklist 84: a device may always say less than it wrote: there are such as count nothing, or the status
 * byte alone. Their reads are taken for what the status says. 85: what a length does not cover is not parsed
 */
static void a_device_that_never_counts_is_taken_at_its_status(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (uint32_t len = 0; len < 2; len++) {
            struct fake *fake = start(F(BLK_F_LIFETIME), layout);
            struct virtio_blk_lifetime lifetime;
            uint8_t buf[512] = {0};
            char id[21];
            answer_len = len;
            for (unsigned i = 0; i < 40; i++)
                assert_int_equal(vblk_read(fake->vblk, 0, i, buf, 512), 0);
            assert_int_equal(buf[511], 9);
            /* 0 means, in a packed ring, that there is no length: the fake leaves the descriptor's WRITE out
             */
            answer_len = fake_has(fake, VIRTIO_F_RING_PACKED) ? 1 : 0;
            assert_int_equal(vblk_get_lifetime(fake->vblk, 0, &lifetime), 0);
            assert_int_equal(le16_get(lifetime.device_lifetime_est_typ_a), 0);
            answer_len = 5;
            assert_int_equal(vblk_get_id(fake->vblk, 0, id), 0);
            assert_string_equal(id, "AAAAA");
            fake_stop(fake);
        }
}

/* checklist 85: a device that counts has not read what it does not count, whatever its status says: no read
 * passes with bytes that were there before */
static void a_short_read_is_no_success(void **state)
{
    static const uint32_t lens[] = {0, 1, 2, 511, 512, 4095};

    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++)
            for (unsigned counted_before = 0; counted_before < 2; counted_before++) {
                struct fake *fake = start(0, layout);
                bool no_len =
                    fake_has(fake, VIRTIO_F_RING_PACKED) && lens[i] == 0; /* 2.8.5: then it means nothing */
                int expected = no_len || (lens[i] < 2 && !counted_before) ? 0 : -VBLK_EIO;
                struct vblk_info info;
                uint8_t buf[4096];
                if (counted_before)
                    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 4096), 0);
                answer_len = lens[i];
                fill_nothing = true;
                memset(buf, 7, sizeof(buf));
                assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 4096), expected);
                answer_len = UINT32_MAX;
                fill_nothing = false;
                assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 4096), 0); /* no harm to the ring */
                assert_int_equal(buf[4095], 9);
                vblk_info(fake->vblk, &info);
                assert_int_equal(info.recoveries, 0);
                fake_stop(fake);
            }
}

/* checklist 83, appendix 2 item 1: data with or without the status byte is all of the data. A write's length
 * is nothing to go by, unless it is more than there was room for */
static void a_length_without_the_status_byte_will_do(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(0, layout);
        uint8_t buf[1024];
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 1024), 0);
        answer_len = 1024;
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 1024), 0);
        answer_len = 0;
        assert_int_equal(vblk_write(fake->vblk, 0, 0, buf, 1024), 0);
        fake_stop(fake);
    }
}

/* checklist 85: the same where a read is many parts, and where one goes through the bounce block: none of it
 * is given to the caller */
static void short_parts_of_a_long_read(void **state)
{
    static uint8_t buf[512];
    static struct vblk_seg segs[512];

    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start(F(BLK_F_SIZE_MAX) | F(BLK_F_SEG_MAX), layout);
        struct vblk_request request = {.op = VBLK_READ, .segs = segs, .nsegs = 512};
        uint8_t large[8192];

        fake_stop(fake);
        fake = fake_new(F(BLK_F_SIZE_MAX) | F(BLK_F_SEG_MAX) | fake_layout(layout), 4096);
        memset(fake->disk, 9, 4096 * 512);
        fake->config.size_max = le32_put(4096);
        fake->config.seg_max = le32_put(1);
        fake->on_chain = answer_with_len;
        assert_int_equal(fake_start(fake, NULL), 0);
        answer_len = 2048;
        assert_int_equal(vblk_read(fake->vblk, 0, 0, large, sizeof(large)), -VBLK_EIO);
        answer_len = 511;
        for (unsigned i = 0; i < 512; i++)
            segs[i] = (struct vblk_seg){buf + i, 1};
        memset(buf, 7, sizeof(buf));
        assert_int_equal(vblk_run(fake->vblk, 0, &request), -VBLK_EIO);
        for (unsigned i = 0; i < 512; i++)
            assert_int_not_equal(buf[i], 9); /* not the disk's */
        fake_stop(fake);
    }
}

/* checklist 86, 318: a legacy device's lengths mean nothing, too short or too long */
static void a_legacy_devices_lengths_are_ignored(void **state)
{
    static const uint32_t lens[] = {0, 1, 100, 513, 4096, UINT32_MAX - 1};

    for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        struct fake *fake = fake_new(0, 4096);
        uint8_t buf[512];

        fake->ops.legacy = true;
        fake->offered = F(F_ANY_LAYOUT);
        answer_len = UINT32_MAX;
        fake->on_chain = answer_with_len;
        assert_int_equal(fake_start(fake, NULL), 0);
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
        answer_len = lens[i];
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
        assert_int_equal(vblk_write(fake->vblk, 0, 0, buf, 512), 0);
        fake_stop(fake);
    }
}

/* checklist 316: where an append went is the device's word: believed if it is in the zone that was named, and
 * if the device wrote it at all */
static uint64_t append_sector;
static bool write_append_sector;

static bool answer_append(struct fake *fake, struct fake_chain *chain)
{
    uint8_t *at = chain->segs[chain->nsegs - 1].mem;
    le64 sector = le64_put(append_sector), before;

    memcpy(&before, at, 8);
    fake_execute(fake, chain);
    memcpy(at, write_append_sector ? &sector : &before, 8);
    fake_use(fake, chain, chain->used_len);
    fake_chain_free(chain);
    return false;
}

static void an_append_lands_in_its_zone(void **state)
{
    static const struct {
        uint64_t sector;
        bool written;
        int result;
    } cases[] = {{128, true, 0},         {255, true, 0},       {256, true, -VBLK_EIO},
                 {127, true, -VBLK_EIO}, {0, true, -VBLK_EIO}, {UINT64_MAX, true, -VBLK_EIO},
                 {0, false, -VBLK_EIO}};

    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(F(BLK_F_ZONED) | fake_layout(layout), 4096);
        uint8_t buf[512] = {0};
        fake->config.zoned.zone_sectors = le32_put(128);
        fake->config.zoned.max_append_sectors = le32_put(64);
        fake->config.zoned.model = VIRTIO_BLK_Z_HM;
        fake->on_chain = answer_append;
        assert_int_equal(fake_start(fake, NULL), 0);
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct vblk_seg seg = {buf, 512};
            struct vblk_request request = {.op = VBLK_ZONE_APPEND, .sector = 128, .segs = &seg, .nsegs = 1};
            append_sector = cases[i].sector;
            write_append_sector = cases[i].written;
            assert_int_equal(vblk_run(fake->vblk, 0, &request), cases[i].result);
            if (cases[i].result == 0)
                assert_int_equal(request.sector, cases[i].sector);
        }
        fake_stop(fake);
    }
}

/* ---- what a flush vouches for ---- */

static uint8_t data[512];

static struct fake *start_queues(unsigned n, unsigned layout)
{
    struct fake *fake = fake_new(F(BLK_F_FLUSH) | F(BLK_F_MQ) | fake_layout(layout), 4096);
    struct vblk_config config = {.num_queues = n, .queue_size = 16};

    fake->num_queues = n;
    fake->config.num_queues = le16_put((uint16_t)n);
    assert_int_equal(fake_start(fake, &config), 0);
    return fake;
}

/* The device loses all that it knows; every queue's owner looks in. */
static void lose_the_device(struct fake *fake)
{
    unsigned resets = fake->resets;

    fake->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    vblk_config_changed(fake->vblk);
    for (unsigned q = 0; q < fake->num_queues; q++)
        vblk_poll(fake->vblk, q);
    assert_int_equal(fake->resets, resets + 1);
}

/* A write on queue 0 was complete and not flushed when the device was reset. Whoever flushes first, on
 * whatever queue, hears of it, and takes it from no other queue's owner; each hears of it once */
static void each_queues_first_flush_reports_the_loss(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (unsigned first = 0; first < 3; first++) {
            struct fake *fake = start_queues(3, layout);
            assert_int_equal(vblk_write(fake->vblk, 0, 0, data, 512), 0);
            lose_the_device(fake);
            for (unsigned i = 0; i < 3; i++) {
                unsigned q = (first + i) % 3;
                assert_int_equal(vblk_flush(fake->vblk, q), -VBLK_EIO);
                assert_int_equal(vblk_flush(fake->vblk, q), 0);
            }
            /* the loss is known; nothing new was lost by another reset */
            lose_the_device(fake);
            for (unsigned q = 0; q < 3; q++)
                assert_int_equal(vblk_flush(fake->vblk, q), 0);
            fake_stop(fake);
        }
}

/* Two losses with no flush between are one report; a loss after a report is another */
static void losses_add_up_until_they_are_reported(void **state)
{
    struct fake *fake = start_queues(2, 0);

    assert_int_equal(vblk_write(fake->vblk, 1, 0, data, 512), 0);
    lose_the_device(fake);
    lose_the_device(fake);
    assert_int_equal(vblk_flush(fake->vblk, 0), -VBLK_EIO);
    assert_int_equal(vblk_flush(fake->vblk, 0), 0);
    assert_int_equal(vblk_write(fake->vblk, 0, 0, data, 512), 0);
    lose_the_device(fake);
    for (unsigned q = 0; q < 2; q++) {
        assert_int_equal(vblk_flush(fake->vblk, q), -VBLK_EIO);
        assert_int_equal(vblk_flush(fake->vblk, q), 0);
    }
    fake_stop(fake);
}

static struct fake_chain *kept[8];
static unsigned nkept;

static bool keep(struct fake *fake, struct fake_chain *chain)
{
    assert_true(nkept < 8);
    kept[nkept++] = chain;
    return false;
}

static void forget(struct fake *fake)
{
    while (nkept)
        fake_chain_free(kept[--nkept]);
}

/* Flushes that were under way when the device was reset would all have covered the write: each of them fails,
 * and so does one that was submitted before the first of them answered. One submitted after that does not */
static void every_flush_under_way_reports_the_loss(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = start_queues(1, layout);
        static struct fake_request flush[4];

        memset(flush, 0, sizeof(flush));
        fake->on_reset = forget;
        assert_int_equal(vblk_write(fake->vblk, 0, 0, data, 512), 0);
        fake->on_chain = keep;
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(fake_submit(fake, 0, &flush[i], VBLK_FLUSH, 0, NULL, 0), 0);
        vblk_kick(fake->vblk, 0);
        assert_int_equal(nkept, 2);
        lose_the_device(fake);
        assert_int_equal(fake_submit(fake, 0, &flush[2], VBLK_FLUSH, 0, NULL, 0), 0);
        fake->on_chain = NULL;
        for (unsigned i = 0; i < nkept; i++) {
            fake_execute(fake, kept[i]);
            fake_use(fake, kept[i], 1);
        }
        forget(fake);
        vblk_kick(fake->vblk, 0);
        for (unsigned i = 0; i < 3; i++) {
            fake_finish(fake, 0, &flush[i]);
            assert_int_equal(flush[i].result, -VBLK_EIO);
        }
        assert_int_equal(vblk_flush(fake->vblk, 0), 0);
        fake_stop(fake);
    }
}

/* A flush that the device itself fails has reported nothing of a loss: the next one does */
static void a_failed_flush_is_no_report(void **state)
{
    struct fake *fake = start_queues(1, 0);

    assert_int_equal(vblk_write(fake->vblk, 0, 0, data, 512), 0);
    lose_the_device(fake);
    fake->answer_status = VIRTIO_BLK_S_UNSUPP;
    assert_int_equal(vblk_flush(fake->vblk, 0), -VBLK_ENOTSUP);
    fake->answer_status = 0;
    assert_int_equal(vblk_flush(fake->vblk, 0), -VBLK_EIO);
    assert_int_equal(vblk_flush(fake->vblk, 0), 0);
    fake_stop(fake);
}

/* A write that completes while a flush is on its way is not covered by it, though the flush comes back after
 * it */
static void a_flush_covers_what_was_complete_before_it(void **state)
{
    for (unsigned covered = 0; covered < 2; covered++) {
        struct fake *fake = start_queues(2, 0);
        struct fake_request flush = {0};

        if (covered)
            assert_int_equal(vblk_write(fake->vblk, 0, 0, data, 512), 0);
        fake->on_chain = keep;
        assert_int_equal(fake_submit(fake, 1, &flush, VBLK_FLUSH, 0, NULL, 0), 0);
        vblk_kick(fake->vblk, 1);
        fake->on_chain = NULL;
        if (!covered)
            assert_int_equal(vblk_write(fake->vblk, 0, 0, data, 512), 0);
        fake_execute(fake, kept[0]);
        fake_use(fake, kept[0], 1);
        forget(fake);
        fake_finish(fake, 1, &flush);
        assert_int_equal(flush.result, 0);
        lose_the_device(fake);
        assert_int_equal(vblk_flush(fake->vblk, 0), covered ? 0 : -VBLK_EIO);
        fake_stop(fake);
    }
}

/* A part that was complete at the reset is lost though its request was not: the request succeeds, the flush
 * fails */
static bool keep_the_second(struct fake *fake, struct fake_chain *chain)
{
    return chain->sector == 0 || keep(fake, chain);
}

static void a_part_can_be_lost_before_its_request_is_done(void **state)
{
    struct fake *fake = fake_new(F(BLK_F_FLUSH) | F(BLK_F_SIZE_MAX) | F(BLK_F_SEG_MAX), 4096);
    static uint8_t two_parts[1024];
    struct fake_request r = {0};

    fake->config.size_max = le32_put(512);
    fake->config.seg_max = le32_put(1);
    fake->on_reset = forget;
    assert_int_equal(fake_start(fake, NULL), 0);
    fake->on_chain = keep_the_second;
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_WRITE, 0, two_parts, 1024), 0);
    vblk_kick(fake->vblk, 0);
    vblk_poll(fake->vblk, 0);
    assert_false(r.done);
    fake->on_chain = NULL;
    lose_the_device(fake);
    fake_finish(fake, 0, &r);
    assert_int_equal(r.result, 0);
    assert_int_equal(vblk_flush(fake->vblk, 0), -VBLK_EIO);
    assert_int_equal(vblk_flush(fake->vblk, 0), 0);
    fake_stop(fake);
}

/* ---- what never comes back ---- */

static bool fail_the_first(struct fake *fake, struct fake_chain *chain)
{
    if (chain->sector != 0)
        return keep(fake, chain);
    fake_execute(fake, chain);
    *chain->status = VIRTIO_BLK_S_IOERR;
    fake_use(fake, chain, chain->used_len);
    fake_chain_free(chain);
    return false;
}

/* H6: one part of a read failed, the other is with a device that will not be reset and can't be cut off: that
 * its memory is not the caller's again is what the caller must hear, not the first error */
static void memory_that_is_lost_outweighs_an_error(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(F(BLK_F_SIZE_MAX) | F(BLK_F_SEG_MAX) | fake_layout(layout), 4096);
        static uint8_t buf[1024];
        struct fake_request r = {0};

        fake->config.size_max = le32_put(512);
        fake->config.seg_max = le32_put(1);
        fake->ops.cut_off = NULL;
        assert_int_equal(fake_start(fake, NULL), 0);
        fake->on_chain = fail_the_first;
        assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, buf, 1024), 0);
        vblk_kick(fake->vblk, 0);
        vblk_poll(fake->vblk, 0);
        assert_false(r.done);
        fake->stuck_status = true;
        fake_finish(fake, 0, &r);
        assert_int_equal(r.result, -VBLK_ENOTRECOVERABLE);
        assert_int_equal(fake->shares_live, 1);
        forget(fake);
        vblk_stop(fake->vblk);
        fake->vblk = NULL;
        fake_stop_unchecked(fake);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_never_counts_is_taken_at_its_status),
        cmocka_unit_test(a_short_read_is_no_success),
        cmocka_unit_test(a_length_without_the_status_byte_will_do),
        cmocka_unit_test(short_parts_of_a_long_read),
        cmocka_unit_test(a_legacy_devices_lengths_are_ignored),
        cmocka_unit_test(an_append_lands_in_its_zone),
        cmocka_unit_test(each_queues_first_flush_reports_the_loss),
        cmocka_unit_test(losses_add_up_until_they_are_reported),
        cmocka_unit_test(every_flush_under_way_reports_the_loss),
        cmocka_unit_test(a_failed_flush_is_no_report),
        cmocka_unit_test(a_flush_covers_what_was_complete_before_it),
        cmocka_unit_test(a_part_can_be_lost_before_its_request_is_done),
        cmocka_unit_test(memory_that_is_lost_outweighs_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
