/*
 * Reads, writes and all other requests over every ring layout: what goes in comes out, in whatever pieces the
 * limits force. The fake device checks each chain by 2.7, 2.8 and 5.2.6 while it is at it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_fake.h"

#define MIB (1u << 20)

static uint32_t seed = 1;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

static void fill(uint8_t *buf, size_t n, uint32_t with)
{
    for (size_t i = 0; i < n; i++)
        buf[i] = (uint8_t)(with + i * 7 + (i >> 9));
}

/* Writes and reads back with random segments, in each layout. */
static void every_layout_transfers_what_it_is_given(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(fake_layout(layout) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH), 4096);
        struct vblk_config config = {.queue_size = 32, .indirect_segs = 8};
        uint8_t *out = malloc(MIB), *in = malloc(MIB);

        seed = layout + 1;
        assert_int_equal(fake_start(fake, &config), 0);
        for (unsigned round = 0; round < 60; round++) {
            struct fake_request w = {0}, r = {0};
            unsigned sectors = 1 + rnd(200), sector = rnd(4096 - 200);
            size_t bytes = sectors * 512u, at = 0;
            fake->share_page = round % 3 == 0 ? 4096 : round % 3 == 1 ? 512 : 0;
            fill(out, bytes, round);
            memset(in, 0, bytes);
            while (at < bytes && w.request.nsegs < 63) { /* any lengths, even odd and zero */
                size_t n = rnd(4) ? rnd(5000) : rnd(3);
                if (n > bytes - at)
                    n = bytes - at;
                w.segs[w.request.nsegs++] = (struct vblk_seg){out + at, n};
                at += n;
            }
            w.segs[w.request.nsegs++] = (struct vblk_seg){out + at, bytes - at};
            w.request.segs = w.segs;
            assert_int_equal(fake_submit(fake, 0, &w, VBLK_WRITE, sector, NULL, 0), 0);
            assert_false(w.done); /* never inside submit */
            vblk_kick(fake->vblk, 0);
            fake_finish(fake, 0, &w);
            assert_int_equal(w.result, 0);
            assert_memory_equal(fake->disk + sector * 512u, out, bytes);
            assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, sector, in, bytes), 0);
            vblk_kick(fake->vblk, 0);
            fake_finish(fake, 0, &r);
            assert_int_equal(r.result, 0);
            assert_memory_equal(in, out, bytes);
        }
        if (fake->faults)
            fail_msg("%s: %s", fake_layout_name(layout), fake->first_fault);
        fake_stop(fake);
        free(out);
        free(in);
    }
}

/* Many more requests than the ring holds: the waiting list keeps their order and loses none. Indexes wrap. */
static void more_requests_than_the_ring_holds(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(fake_layout(layout), 1024);
        struct vblk_config config = {.queue_size = 8, .indirect_segs = layout & 2 ? 4 : 0};
        static struct fake_request r[100];
        static uint8_t buf[100][512];

        assert_int_equal(fake_start(fake, &config), 0);
        for (unsigned round = 0; round < 30; round++) {
            memset(r, 0, sizeof(r));
            for (unsigned i = 0; i < 100; i++) {
                memset(buf[i], (int)(i + round), 512);
                assert_int_equal(fake_submit(fake, 0, &r[i], VBLK_WRITE, i, buf[i], 512), 0);
            }
            vblk_kick(fake->vblk, 0);
            for (unsigned i = 0; i < 100; i++) {
                fake_finish(fake, 0, &r[i]);
                assert_int_equal(r[i].result, 0);
                if (i)
                    assert_true(r[i].order > r[i - 1].order);
                assert_int_equal(fake->disk[i * 512], (uint8_t)(i + round));
            }
        }
        fake_stop(fake);
    }
}

/* checklist 95: indexes wrap at 65536; a hundred thousand requests go through a small ring */
static void indexes_wrap_at_65536(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(fake_layout(layout), 1024);
        struct vblk_config config = {.queue_size = 4, .indirect_segs = 1, .deadline_ns = 1ull << 40};
        struct fake_request r = {0};
        uint8_t buf[512];

        assert_int_equal(fake_start(fake, &config), 0);
        for (unsigned i = 0; i < (layout == 0 || layout == 4 ? 66000u : 1000u); i++) {
            assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, buf, 512), 0);
            vblk_kick(fake->vblk, 0);
            vblk_poll(fake->vblk, 0);
            assert_true(r.done);
        }
        fake_stop(fake);
    }
}

/* Completions in any order find their own requests (not with IN_ORDER, of course). */
static struct fake_chain *kept[64];
static unsigned nkept;

static bool keep(struct fake *fake, struct fake_chain *chain)
{
    assert_true(nkept < 64);
    kept[nkept++] = chain;
    return false;
}

static void answer_kept(struct fake *fake, unsigned i)
{
    fake_execute(fake, kept[i]);
    fake_use(fake, kept[i], kept[i]->used_len);
    fake_chain_free(kept[i]);
    kept[i] = kept[--nkept];
}

static void completions_out_of_order(void **state)
{
    for (unsigned layout = 0; layout < 8; layout++) {
        struct fake *fake = fake_new(fake_layout(layout), 1024);
        struct vblk_config config = {
            .queue_size = 32, .indirect_segs = layout & 2 ? 4 : 0, .deadline_ns = 1ull << 40};
        struct fake_request r[10];
        uint8_t buf[10][512];

        seed = layout;
        fake->tampers =
            layout & 1; /* a packed ring's used descriptor lies where another chain's may have been */
        fake->on_chain = keep;
        assert_int_equal(fake_start(fake, &config), 0);
        for (unsigned i = 0; i < 1024; i++)
            fake->disk[i * 512] = (uint8_t)(i * 3);
        for (unsigned round = 0; round < 100; round++) {
            memset(r, 0, sizeof(r));
            for (unsigned i = 0; i < 10; i++)
                assert_int_equal(fake_submit(fake, 0, &r[i], VBLK_READ, round + i, buf[i], 512), 0);
            vblk_kick(fake->vblk, 0);
            assert_int_equal(nkept, 10);
            while (nkept) {
                answer_kept(fake, rnd(nkept));
                vblk_poll(fake->vblk, 0);
            }
            for (unsigned i = 0; i < 10; i++) {
                assert_true(r[i].done);
                assert_int_equal(buf[i][0], (uint8_t)((round + i) * 3));
            }
        }
        fake_stop(fake);
    }
}

#define ALL_REQUESTS                                                                 \
    (VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) | VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) |             \
     VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) | VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE) | \
     VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME) | VIRTIO_BIT(VIRTIO_BLK_F_ZONED))

static void set_limits(struct fake *fake, uint32_t sectors, uint32_t segs)
{
    fake->config.max_discard_sectors = fake->config.max_write_zeroes_sectors = le32_put(sectors);
    fake->config.max_secure_erase_sectors = le32_put(sectors);
    fake->config.max_discard_seg = fake->config.max_write_zeroes_seg = le32_put(segs);
    fake->config.max_secure_erase_seg = le32_put(segs);
    fake->config.discard_sector_alignment = fake->config.secure_erase_sector_alignment = le32_put(1);
}

static void set_zones(struct fake *fake, uint8_t model)
{
    fake->config.zoned.zone_sectors = le32_put(128);
    fake->config.zoned.max_append_sectors = le32_put(64);
    fake->config.zoned.write_granularity = le32_put(4096);
    fake->config.zoned.model = model;
}

/* checklist 293-295, 297-299, 302, 307, 310-316: each kind of request as 5.2.6 wants it; the fake judges */
static void every_request_over_every_layout(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(fake_layout(layout) | ALL_REQUESTS, 4096);
        struct vblk_config config = {.queue_size = 16, .indirect_segs = 4};
        struct virtio_blk_lifetime lifetime;
        struct fake_request r = {0};
        char id[21];
        union {
            uint8_t bytes[4096];
            struct virtio_blk_zone_report report;
        } buf;

        set_limits(fake, 1000, 1);
        set_zones(fake, VIRTIO_BLK_Z_HA);
        assert_int_equal(fake_start(fake, &config), 0);
        memset(fake->disk, 7, 4096 * 512);
        assert_int_equal(vblk_flush(fake->vblk, 0), 0);
        assert_int_equal(vblk_discard(fake->vblk, 0, 8, 16), 0);
        assert_int_equal(vblk_write_zeroes(fake->vblk, 0, 100, 3000, false), 0); /* in four */
        assert_int_equal(vblk_write_zeroes(fake->vblk, 0, 3100, 1, true), 0);
        assert_int_equal(fake->disk[99 * 512 + 511], 7);
        assert_int_equal(fake->disk[100 * 512], 0);
        assert_int_equal(fake->disk[3100 * 512 + 511], 0);
        assert_int_equal(fake->disk[3101 * 512], 7);
        assert_int_equal(vblk_secure_erase(fake->vblk, 0, 0, 2), 0);
        assert_int_equal(fake->disk[0], 0);
        assert_int_equal(vblk_get_id(fake->vblk, 0, id), 0);
        assert_string_equal(id, "AAAAAAAAAAAAAAAAAAAA"); /* checklist 310 */
        assert_int_equal(vblk_get_lifetime(fake->vblk, 0, &lifetime), 0);
        assert_int_equal(le16_get(lifetime.pre_eol_info), 2);
        assert_int_equal(le16_get(lifetime.device_lifetime_est_typ_a), 3);
        assert_int_equal(le16_get(lifetime.device_lifetime_est_typ_b), 0); /* 12 is reserved: checklist 311 */

        r.segs[0] = (struct vblk_seg){&buf, sizeof(buf)};
        r.request = (struct vblk_request){.op = VBLK_ZONE_REPORT, .sector = 128, .segs = r.segs, .nsegs = 1};
        assert_int_equal(vblk_run(fake->vblk, 0, &r.request), 0);
        assert_int_equal(le64_get(buf.report.nr_zones), 1);
        assert_int_equal(buf.bytes[4095], 0); /* not the device's answer: zeroed */
        for (enum vblk_op op = VBLK_ZONE_OPEN; op <= VBLK_ZONE_RESET_ALL; op++) {
            r.request = (struct vblk_request){.op = op, .sector = op == VBLK_ZONE_RESET_ALL ? 0 : 256};
            assert_int_equal(vblk_run(fake->vblk, 0, &r.request), 0);
        }
        r.request = (struct vblk_request){.op = VBLK_ZONE_APPEND, .sector = 256, .segs = r.segs, .nsegs = 1};
        assert_int_equal(vblk_run(fake->vblk, 0, &r.request), 0);
        assert_int_equal(r.request.sector, 264); /* where it went: checklist 316 */
        assert_int_equal(fake->types_seen & (1u << VIRTIO_BLK_T_FLUSH), 1u << VIRTIO_BLK_T_FLUSH);
        fake_stop(fake);
    }
}

/* checklist 290, 292, 296, 300, 301, 307, 312-314: refused before anything reaches the device */
static void wrong_requests_are_refused_by_submit(void **state)
{
    struct fake *fake = fake_new(ALL_REQUESTS & ~VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME), 1000);
    struct vblk_seg huge[2] = {{NULL, SIZE_MAX}, {NULL, SIZE_MAX}};
    struct fake_request r = {0};
    uint8_t buf[8192];

    set_limits(fake, 1000, 1);
    fake->config.max_secure_erase_seg = le32_put(0);
    set_zones(fake, VIRTIO_BLK_Z_HA);
    assert_int_equal(fake_start(fake, NULL), 0);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, buf, 0), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, buf, 1), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_WRITE, 0, buf, 511), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_WRITE, 0, buf, 513), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 999, buf, 1024), -VBLK_ERANGE);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 1000, buf, 512), -VBLK_ERANGE);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, UINT64_MAX, buf, 512), -VBLK_ERANGE);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, UINT64_MAX / 512, buf, 512), -VBLK_ERANGE);
    assert_int_equal(fake_submit(fake, 1, &r, VBLK_READ, 0, buf, 512), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, (enum vblk_op)99, 0, buf, 512), -VBLK_EINVAL);
    r.request.flags = VBLK_REQUEST_UNMAP;
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, buf, 512), -VBLK_EINVAL);
    r.request.flags = 0;
    r.request.segs = huge;
    r.request.nsegs = 2;
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, NULL, 0), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_GET_ID, 0, buf, 19), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_GET_ID, 0, buf, 21), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_GET_LIFETIME, 0, buf, 6), -VBLK_ENOTSUP);
    assert_int_equal(vblk_discard(fake->vblk, 0, 0, 0), -VBLK_EINVAL);
    assert_int_equal(vblk_discard(fake->vblk, 0, 999, 2), -VBLK_ERANGE);
    assert_int_equal(vblk_discard(fake->vblk, 0, UINT64_MAX, 1), -VBLK_ERANGE);
    assert_int_equal(vblk_secure_erase(fake->vblk, 0, 0, 1), -VBLK_ENOTSUP);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_ZONE_RESET, 1, NULL, 0), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_ZONE_RESET, 1024, NULL, 0), -VBLK_ERANGE);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_ZONE_APPEND, 129, buf, 4096), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_ZONE_APPEND, 128, buf, 512), -VBLK_EINVAL);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_ZONE_REPORT, 0, buf, 63), -VBLK_EINVAL);
    assert_int_equal(fake->queue[0].chains, 0);
    fake_stop(fake);

    fake = fake_new(VIRTIO_BIT(VIRTIO_BLK_F_RO) | ALL_REQUESTS, 1000);
    set_limits(fake, 1000, 1);
    assert_int_equal(fake_start(fake, NULL), 0);
    assert_int_equal(vblk_write(fake->vblk, 0, 0, buf, 512), -VBLK_EROFS);
    assert_int_equal(vblk_discard(fake->vblk, 0, 0, 1), -VBLK_EROFS);
    assert_int_equal(vblk_write_zeroes(fake->vblk, 0, 0, 1, false), -VBLK_EROFS);
    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
    assert_int_equal(vblk_flush(fake->vblk, 0), 0);
    fake_stop(fake);
}

/* checklist 308, 58: size_max, seg_max, the queue and the table each force a split; the fake checks every
 * chain */
static void limits_split_and_join(void **state)
{
    static const uint32_t size_max[] = {0, 512, 513, 700, 4096, UINT32_MAX}, seg_max[] = {0, 1, 2, 3, 254};
    uint8_t *out = malloc(MIB), *in = malloc(MIB);

    for (unsigned layout = 0; layout < 4; layout++)
        for (unsigned i = 0; i < 6; i++)
            for (unsigned k = 0; k < 5; k++)
                for (unsigned queue_size = 4; queue_size <= 16; queue_size += 12) {
                    struct fake *fake = fake_new(fake_layout(layout) | VIRTIO_BIT(VIRTIO_BLK_F_SIZE_MAX) |
                                                     VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX),
                                                 4096);
                    struct vblk_config config = {.queue_size = queue_size, .indirect_segs = 8};
                    struct fake_request w = {0};

                    fake->config.size_max = le32_put(size_max[i]);
                    fake->config.seg_max = le32_put(seg_max[k]);
                    fake->share_page = 4096;
                    assert_int_equal(fake_start(fake, &config), 0);
                    fill(out, 65536, i + k);
                    for (unsigned s = 0; s < 64; s++) /* cut anywhere: at 1024 s + s^2, say */
                        w.segs[s] = (struct vblk_seg){out + s * 1000, s == 63 ? 65536 - 63 * 1000 : 1000};
                    w.request.segs = w.segs;
                    w.request.nsegs = 64;
                    assert_int_equal(fake_submit(fake, 0, &w, VBLK_WRITE, 7, NULL, 0), 0);
                    vblk_kick(fake->vblk, 0);
                    fake_finish(fake, 0, &w);
                    assert_int_equal(w.result, 0);
                    assert_memory_equal(fake->disk + 7 * 512, out, 65536);
                    memset(in, 0, 65536);
                    assert_int_equal(vblk_read(fake->vblk, 0, 7, in + 1, 65536), 0); /* unaligned */
                    assert_memory_equal(in + 1, out, 65536);
                    fake_stop(fake);
                }
    free(out);
    free(in);
}

/* checklist H15: a block scattered over single bytes, with one segment allowed, goes through the bounce block
 */
static void scattered_blocks_go_through_the_bounce_block(void **state)
{
    static uint8_t out[2048], in[2048];
    static struct vblk_seg segs[2048];

    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct fake *fake = fake_new(fake_layout(layout) | VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX), 4096);
        struct vblk_config config = {.queue_size = 8, .indirect_segs = 4};
        struct vblk_request request = {.op = VBLK_WRITE, .sector = 9, .segs = segs, .nsegs = 2048};

        fake->config.seg_max = le32_put(1);
        assert_int_equal(fake_start(fake, &config), 0);
        fill(out, 2048, layout);
        for (unsigned i = 0; i < 2048; i++)
            segs[i] = (struct vblk_seg){out + i, 1};
        assert_int_equal(vblk_run(fake->vblk, 0, &request), 0);
        assert_memory_equal(fake->disk + 9 * 512, out, 2048);
        for (unsigned i = 0; i < 2048; i++)
            segs[i] = (struct vblk_seg){in + i, 1};
        memset(in, 0, sizeof(in));
        request = (struct vblk_request){.op = VBLK_READ, .sector = 9, .segs = segs, .nsegs = 2048};
        assert_int_equal(vblk_run(fake->vblk, 0, &request), 0);
        assert_memory_equal(in, out, 2048);
        fake_stop(fake);
    }
}

/* checklist 53: no chain of 4 GiB; nothing is copied here, the fake gets one shared page for all of it */
static int share_all(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                     size_t *contiguous)
{
    addr->value = 0x1000000;
    *contiguous = len;
    return 0;
}

static void unshare_all(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr)
{
}

static uint64_t chain_bytes[8];

static void four_gib_are_split(void **state)
{
    struct fake *fake = fake_new(0, 1ull << 32);
    struct fake_request r = {0};
    struct virtq_avail *avail;
    unsigned n;

    fake->run_on_notify = false;
    fake->platform.share = share_all;
    fake->platform.unshare = unshare_all;
    assert_int_equal(fake_start(fake, NULL), 0);
    r.segs[0] = (struct vblk_seg){(void *)0x10000, (4ull << 30) + 512};
    r.request.segs = r.segs;
    r.request.nsegs = 1;
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_READ, 0, NULL, 0), 0);
    vblk_kick(fake->vblk, 0);
    avail = fake_avail(fake, 0);
    assert_int_equal(le16_get(avail->idx), 2);
    for (n = 0; n < 2; n++) {
        unsigned at = le16_get(avail->ring[n]);
        chain_bytes[n] = 0;
        for (;;) {
            const struct virtq_desc *desc = &fake_desc(fake, 0)[at];
            chain_bytes[n] += le32_get(desc->len);
            if (!(le16_get(desc->flags) & VIRTQ_DESC_F_NEXT))
                break;
            at = le16_get(desc->next);
        }
        assert_true(chain_bytes[n] < 1ull << 32);
    }
    assert_true(chain_bytes[0] + chain_bytes[1] == (4ull << 30) + 512 + 2 * 17);
    fake_stop_unchecked(fake);
    assert_int_equal(r.result, -VBLK_ENODEV);
}

/* checklist 301: 3 TiB of discard under a limit that is no multiple of anything */
static void discard_is_split_by_sectors_and_alignment(void **state)
{
    struct fake *fake = fake_new(ALL_REQUESTS, 3ull << 31);
    struct fake_request r = {0};

    set_limits(fake, (1u << 30) + 77, 256);
    fake->config.discard_sector_alignment = le32_put(2048);
    assert_int_equal(fake_start(fake, NULL), 0);
    r.request.num_sectors = (3ull << 31) - 3;
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_DISCARD, 3, NULL, 0), 0);
    vblk_kick(fake->vblk, 0);
    fake_finish(fake, 0, &r);
    assert_int_equal(r.result, 0);
    assert_true(fake->queue[0].chains == 6 || fake->queue[0].chains == 7);
    fake_stop(fake);
}

/* checklist 263: 4096-byte blocks, capacity still in sectors of 512; part blocks are refused */
static void blocks_of_4096(void **state)
{
    struct fake *fake = fake_new(VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE) | ALL_REQUESTS, 1003);
    struct vblk_info info;
    static uint8_t buf[8192], in[8192];

    fake->config.blk_size = le32_put(4096);
    set_limits(fake, 20, 1);
    assert_int_equal(fake_start(fake, NULL), 0);
    vblk_info(fake->vblk, &info);
    assert_int_equal(info.block_size, 4096);
    assert_int_equal(info.capacity_sectors, 1000); /* whole blocks */
    assert_int_equal(fake->log_errors, 0);
    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), -VBLK_EINVAL);
    assert_int_equal(vblk_read(fake->vblk, 0, 1, buf, 4096), -VBLK_EINVAL);
    assert_int_equal(vblk_read(fake->vblk, 0, 1000, buf, 4096), -VBLK_ERANGE);
    fill(buf, 8192, 3);
    assert_int_equal(vblk_write(fake->vblk, 0, 984, buf, 8192), 0);
    assert_memory_equal(fake->disk + 984 * 512, buf, 8192);
    assert_int_equal(vblk_read(fake->vblk, 0, 984, in, 8192), 0);
    assert_memory_equal(in, buf, 8192);
    assert_int_equal(vblk_discard(fake->vblk, 0, 8, 4), -VBLK_EINVAL);
    assert_int_equal(vblk_discard(fake->vblk, 0, 8, 40), 0); /* limit 20: chunks of 16 */
    fake_stop(fake);
}

/* checklist 309, H5: each status, and none at all */
static void each_status_means_what_it_says(void **state)
{
    static const struct {
        uint8_t status;
        int result, zoned_result;
    } cases[] = {{1, -VBLK_EIO, -VBLK_EIO},    {2, -VBLK_ENOTSUP, -VBLK_ENOTSUP},
                 {3, -VBLK_EIO, -VBLK_EINVAL}, {4, -VBLK_EIO, -VBLK_EINVAL},
                 {5, -VBLK_EIO, -VBLK_EBUSY},  {6, -VBLK_EIO, -VBLK_EBUSY},
                 {7, -VBLK_EIO, -VBLK_EIO},    {255, -VBLK_EIO, -VBLK_EIO}};
    uint8_t buf[512];

    for (unsigned zoned = 0; zoned < 2; zoned++) {
        struct fake *fake = fake_new(zoned ? VIRTIO_BIT(VIRTIO_BLK_F_ZONED) : 0, 100);
        assert_int_equal(fake_start(fake, NULL), 0);
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            fake->answer_status = cases[i].status;
            assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512),
                             zoned ? cases[i].zoned_result : cases[i].result);
        }
        fake->answer_status = 0;
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
        fake->never_write_status = true; /* a slot whose last answer was OK: still an error */
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), -VBLK_EIO);
        fake_stop(fake);
    }
}

/* One part of many fails: the request fails once, with that error, when all its parts are back. */
static unsigned fail_nth;

static bool fail_one(struct fake *fake, struct fake_chain *chain)
{
    fake_execute(fake, chain);
    if (fail_nth-- == 0)
        *chain->status = VIRTIO_BLK_S_IOERR;
    fake_use(fake, chain, chain->used_len);
    fake_chain_free(chain);
    return false;
}

static void one_bad_part_fails_the_request_once(void **state)
{
    static uint8_t buf[16384];

    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++)
        for (unsigned nth = 0; nth < 32; nth += 5) {
            struct fake *fake = fake_new(fake_layout(layout) | VIRTIO_BIT(VIRTIO_BLK_F_SIZE_MAX) |
                                             VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX),
                                         1000);
            struct vblk_config config = {.queue_size = 8, .indirect_segs = 2};
            fake->config.size_max = le32_put(512);
            fake->config.seg_max = le32_put(1);
            fake->on_chain = fail_one;
            fail_nth = nth;
            assert_int_equal(fake_start(fake, &config), 0);
            assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, sizeof(buf)), -VBLK_EIO);
            fail_nth = 1000;
            assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, sizeof(buf)), 0);
            fake_stop(fake);
        }
}

/* checklist 304: of a failed discard or write of zeroes nothing is known: one error for the whole range. 303:
 * nothing here reads back what was discarded */
static void a_failed_range_fails_as_a_whole(void **state)
{
    for (unsigned nth = 0; nth < 4; nth++) {
        struct fake *fake = fake_new(ALL_REQUESTS, 4096);
        set_limits(fake, 1000, 1);
        fake->on_chain = fail_one;
        fail_nth = nth;
        assert_int_equal(fake_start(fake, NULL), 0);
        assert_int_equal(vblk_write_zeroes(fake->vblk, 0, 0, 4000, false), -VBLK_EIO);
        fail_nth = nth;
        assert_int_equal(vblk_discard(fake->vblk, 0, 0, 4000), -VBLK_EIO);
        fake_stop(fake);
    }
}

/* checklist 317: on a host-managed disk whole zones are erased; parts of a write go one after the other */
static unsigned most_in_flight;

static bool count_in_flight(struct fake *fake, struct fake_chain *chain)
{
    if (fake->queue[0].in_flight > most_in_flight)
        most_in_flight = fake->queue[0].in_flight;
    return keep(fake, chain);
}

static void host_managed_zones(void **state)
{
    struct fake *fake =
        fake_new(ALL_REQUESTS | VIRTIO_BIT(VIRTIO_BLK_F_SIZE_MAX) | VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX), 4096);
    static uint8_t buf[16384];
    struct fake_request r = {0};

    set_limits(fake, 1000, 1);
    set_zones(fake, VIRTIO_BLK_Z_HM);
    fake->config.size_max = le32_put(4096);
    fake->config.seg_max = le32_put(1);
    assert_int_equal(fake_start(fake, NULL), 0);
    assert_int_equal(vblk_secure_erase(fake->vblk, 0, 0, 127), -VBLK_EINVAL);
    assert_int_equal(vblk_secure_erase(fake->vblk, 0, 0, 256), 0);
    assert_int_equal(vblk_discard(fake->vblk, 0, 0, 1), -VBLK_ENOTSUP);
    fake->on_chain = count_in_flight;
    most_in_flight = 0;
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_WRITE, 0, buf, sizeof(buf)), 0);
    vblk_kick(fake->vblk, 0);
    for (unsigned i = 0; i < 4; i++) {
        fake_run(fake, 0);
        assert_int_equal(nkept, 1);
        answer_kept(fake, 0);
        vblk_poll(fake->vblk, 0);
    }
    assert_true(r.done);
    assert_int_equal(most_in_flight, 1);
    fake_stop(fake);
}

/* checklist H15: no bounce space now means later; memory that can't be reached is an error of that request
 * alone */
static void share_may_say_later_or_never(void **state)
{
    struct fake *fake = fake_new(0, 100);
    struct fake_request r[6] = {0};
    static struct fake_request many[12];
    uint8_t buf[6][512];

    fake->shares_max = 2;
    assert_int_equal(fake_start(fake, NULL), 0);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(fake_submit(fake, 0, &r[i], VBLK_READ, i, buf[i], 512), 0);
    vblk_kick(fake->vblk, 0);
    for (unsigned i = 0; i < 6; i++) {
        fake_finish(fake, 0, &r[i]);
        assert_int_equal(r[i].result, 0);
    }
    fake->share_einval = true;
    assert_int_equal(fake_submit(fake, 0, &r[0], VBLK_READ, 0, buf[0], 512), 0);
    assert_false(r[0].done);
    assert_int_equal(vblk_poll(fake->vblk, 0), 1);
    assert_int_equal(r[0].result, -VBLK_EINVAL);
    fake->share_einval = false;
    /* several wait for room, and can't be shared once there is: each is answered */
    fake->shares_max = 0;
    fake->run_on_notify = false;
    for (unsigned i = 0; i < 12; i++)
        assert_int_equal(fake_submit(fake, 0, &many[i], VBLK_READ, i, buf[0], 512), 0);
    fake->share_einval = true;
    fake_run(fake, 0);
    for (unsigned i = 0; i < 12; i++) {
        fake_finish(fake, 0, &many[i]);
        assert_int_equal(many[i].result, i < 5 ? 0 : -VBLK_EINVAL);
    }
    fake->share_einval = false;
    fake->run_on_notify = true;
    /* no space for ever: the deadline answers it */
    fake->shares_max = 1;
    fake->shares_live++;
    assert_int_equal(fake_submit(fake, 0, &r[0], VBLK_READ, 0, buf[0], 512), 0);
    fake_finish(fake, 0, &r[0]);
    assert_int_equal(r[0].result, -VBLK_ETIMEDOUT);
    fake->shares_live--;
    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf[0], 512), 0);
    fake_stop(fake);
}

/* `complete` may submit again; what waits (vblk_read) says no instead of hanging */
static struct fake *chain_fake;
static unsigned chained;
static uint8_t chain_buf[512];

static void submit_again(struct vblk_request *request, int result)
{
    assert_int_equal(result, 0);
    assert_int_equal(vblk_read(chain_fake->vblk, 0, 0, chain_buf, 512), -VBLK_EBUSY);
    assert_int_equal(vblk_poll(chain_fake->vblk, 0), 0);
    if (++chained < 1000) {
        assert_int_equal(vblk_submit(chain_fake->vblk, 0, request), 0);
        vblk_kick(chain_fake->vblk, 0);
    }
}

static void complete_may_submit_again(void **state)
{
    for (unsigned layout = 0; layout < FAKE_LAYOUTS; layout++) {
        struct vblk_config config = {.queue_size = 8, .indirect_segs = 2};
        struct vblk_seg seg = {chain_buf, 512};
        struct vblk_request request = {.op = VBLK_READ, .segs = &seg, .nsegs = 1, .complete = submit_again};

        chain_fake = fake_new(fake_layout(layout), 100);
        chained = 0;
        assert_int_equal(fake_start(chain_fake, &config), 0);
        assert_int_equal(vblk_submit(chain_fake->vblk, 0, &request), 0);
        vblk_kick(chain_fake->vblk, 0);
        for (unsigned i = 0; i < 5000 && chained < 1000; i++)
            vblk_poll(chain_fake->vblk, 0);
        assert_int_equal(chained, 1000);
        fake_stop(chain_fake);
    }
}

/* checklist 265-267: without FLUSH a flush is done without the device, which is write-through then */
static void flush_without_the_feature(void **state)
{
    struct fake *fake = fake_new(0, 100);
    struct vblk_info info;

    assert_int_equal(fake_start(fake, NULL), 0);
    vblk_info(fake->vblk, &info);
    assert_false(info.write_cache);
    assert_int_equal(vblk_flush(fake->vblk, 0), 0);
    assert_int_equal(fake->queue[0].chains, 0);
    fake_stop(fake);
    fake = fake_new(VIRTIO_BIT(VIRTIO_BLK_F_FLUSH), 100);
    assert_int_equal(fake_start(fake, NULL), 0);
    vblk_info(fake->vblk, &info);
    assert_true(info.write_cache);
    assert_int_equal(vblk_set_write_cache(fake->vblk, false), -VBLK_ENOTSUP);
    fake_stop(fake);
}

/* checklist 305, 306: flush, then writeback = 0, with nothing in flight */
static void the_write_cache_is_switched_safely(void **state)
{
    struct fake *fake = fake_new(VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) | VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE), 100);
    struct vblk_info info;
    struct fake_request r = {0};
    uint8_t buf[512] = {1};
    unsigned chains;

    fake->config.writeback = 1;
    assert_int_equal(fake_start(fake, NULL), 0);
    vblk_info(fake->vblk, &info);
    assert_true(info.write_cache);
    assert_int_equal(fake_submit(fake, 0, &r, VBLK_WRITE, 0, buf, 512), 0); /* drained by the switch */
    chains = fake->queue[0].chains;
    assert_int_equal(vblk_set_write_cache(fake->vblk, false), 0);
    assert_true(r.done);
    assert_int_equal(fake->queue[0].chains, chains + 2);
    assert_true(fake->types_seen & (1u << VIRTIO_BLK_T_FLUSH));
    assert_true(fake_event_position(fake, EV_CONFIG_WRITE, 0) > fake_event_position(fake, EV_NOTIFY, 1));
    assert_int_equal(fake->config.writeback, 0);
    vblk_info(fake->vblk, &info);
    assert_false(info.write_cache);
    assert_int_equal(vblk_set_write_cache(fake->vblk, true), 0);
    assert_int_equal(fake->config.writeback, 1);
    fake_stop(fake);
}

/* checklist 49: contiguous memory takes one descriptor, unless size_max forbids */
static unsigned data_descriptors;

static bool count_segs(struct fake *fake, struct fake_chain *chain)
{
    data_descriptors = chain->nsegs - 2;
    return true;
}

static void contiguous_memory_takes_one_descriptor(void **state)
{
    struct fake *fake = fake_new(0, 4096);
    uint8_t *buf = malloc(MIB);

    fake->on_chain = count_segs;
    assert_int_equal(fake_start(fake, NULL), 0);
    assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, MIB), 0);
    assert_int_equal(data_descriptors, 1);
    assert_int_equal(fake->queue[0].chains, 1);
    fake_stop(fake);
    free(buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_transfers_what_it_is_given),
        cmocka_unit_test(more_requests_than_the_ring_holds),
        cmocka_unit_test(indexes_wrap_at_65536),
        cmocka_unit_test(completions_out_of_order),
        cmocka_unit_test(every_request_over_every_layout),
        cmocka_unit_test(wrong_requests_are_refused_by_submit),
        cmocka_unit_test(limits_split_and_join),
        cmocka_unit_test(scattered_blocks_go_through_the_bounce_block),
        cmocka_unit_test(four_gib_are_split),
        cmocka_unit_test(discard_is_split_by_sectors_and_alignment),
        cmocka_unit_test(blocks_of_4096),
        cmocka_unit_test(each_status_means_what_it_says),
        cmocka_unit_test(one_bad_part_fails_the_request_once),
        cmocka_unit_test(a_failed_range_fails_as_a_whole),
        cmocka_unit_test(host_managed_zones),
        cmocka_unit_test(share_may_say_later_or_never),
        cmocka_unit_test(complete_may_submit_again),
        cmocka_unit_test(flush_without_the_feature),
        cmocka_unit_test(the_write_cache_is_switched_safely),
        cmocka_unit_test(contiguous_memory_takes_one_descriptor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
