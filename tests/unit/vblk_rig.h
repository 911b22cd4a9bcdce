/*
 * A driver with the fake device, and eight reads in flight that the device can keep: what the tests of
 * hostile and of failing devices start from.
 */
#ifndef RINGSIDE_TESTS_VBLK_RIG_H
#define RINGSIDE_TESTS_VBLK_RIG_H

#include <string.h>

#include "tests/unit/vblk_fake.h"

#define F(name)  VIRTIO_BIT(VIRTIO_##name)
#define INFLIGHT 8u

static struct fake_request requests[64];
static uint8_t buffers[64][4096];
static struct fake_chain *kept[256];
static unsigned nkept;

static bool keep(struct fake *fake, struct fake_chain *chain)
{
    if (nkept < 256)
        kept[nkept++] = chain;
    else
        fake_chain_free(chain);
    return false;
}

static void forget(void)
{
    while (nkept)
        fake_chain_free(kept[--nkept]);
}

/* A device reset frees it of all that it knew. */
static void on_reset(struct fake *fake)
{
    forget();
}

static struct fake *start(uint64_t features, unsigned layout)
{
    struct fake *fake = fake_new(features | fake_layout(layout), 4096);
    struct vblk_config config = {.queue_size = 32, .indirect_segs = layout & 2 ? 4 : 0};

    memset(requests, 0, sizeof(requests));
    fake->on_reset = on_reset;
    for (unsigned i = 0; i < 4096; i++)
        memset(fake->disk + i * 512, (int)(i + 1), 512);
    assert_int_equal(fake_start(fake, &config), 0);
    return fake;
}

static void submit_reads(struct fake *fake, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(fake_submit(fake, 0, &requests[i], VBLK_READ, i, buffers[i], 512), 0);
    vblk_kick(fake->vblk, 0);
}

/* Polls until all N are answered; their results are among 0 and the errors that may be. */
static void all_are_answered(struct fake *fake, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        fake_finish(fake, 0, &requests[i]);
        if (requests[i].result == 0)
            assert_int_equal(buffers[i][0], (uint8_t)(i + 1));
    }
}

static void stop(struct fake *fake)
{
    forget();
    fake->on_reset = NULL;
    assert_true(fake->clock_ns <
                1000000000ull); /* a deadline is a millisecond here: no wait was without end */
    fake_stop(fake);
}

#endif
