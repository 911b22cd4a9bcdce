/*
 * For tests of a zoned disk: a small one over device_rig.h, requests to it one at a time, and what it says of
 * its zones.
 */
#ifndef RINGSIDE_TESTS_ZONED_RIG_H
#define RINGSIDE_TESTS_ZONED_RIG_H

#include <unistd.h>

#include "host/device/zoned.h"
#include "tests/unit/device_rig.h"

#define ZONE  64u /* sectors */
#define CONV  2u
#define ZONES 8u /* the last one is smaller */
#define LAST  40u
#define BYTES ((7u * ZONE + LAST) * 512u)

#define OK           VIRTIO_BLK_S_OK
#define INVALID      VIRTIO_BLK_S_ZONE_INVALID_CMD
#define UNALIGNED    VIRTIO_BLK_S_ZONE_UNALIGNED_WP
#define OPEN_SHORT   VIRTIO_BLK_S_ZONE_OPEN_RESOURCE
#define ACTIVE_SHORT VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE

static char state_path[200];
static unsigned num_queues = 1, asked_queue;

static UNUSED struct rig_options options_for(uint32_t max_open, uint32_t max_active, uint32_t max_append)
{
    return (struct rig_options){.features = VIRTIO_BIT(VIRTIO_BLK_F_ZONED) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                                            VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC),
                                .size = 256,
                                .num_queues = num_queues,
                                .device = {.request_merging = true,
                                           .discard = true,
                                           .secure_erase = true,
                                           .zoned = {.zone_sectors = ZONE,
                                                     .conventional_zones = CONV,
                                                     .max_open_zones = max_open,
                                                     .max_active_zones = max_active,
                                                     .max_append_sectors = max_append,
                                                     .state_path = state_path[0] ? state_path : NULL}}};
}

static UNUSED void start_with(uint32_t max_open, uint32_t max_active, uint32_t max_append)
{
    struct rig_options options = options_for(max_open, max_active, max_append);

    rig_length = BYTES;
    rig_init(&options);
    rig_length = 0;
}

static UNUSED void start(void)
{
    start_with(0, 0, 32);
}

static UNUSED uint8_t ask(uint32_t type, uint64_t sector, uint64_t data, uint32_t bytes, bool write)
{
    struct rig_request request = rig_request(asked_queue, type, sector, data, bytes, write);
    uint16_t id = 0;
    uint32_t len;

    rig_kick(asked_queue);
    assert_true(rig_used(asked_queue, &id, &len));
    return rig_status(request.status);
}

static UNUSED uint8_t out(uint64_t sector, uint32_t sectors)
{
    uint64_t data = rig_alloc(sectors * 512, 512);

    memset(ptr(data), (int)(sector % 250) + 1, sectors * 512);
    return ask(VIRTIO_BLK_T_OUT, sector, data, sectors * 512, false);
}

static UNUSED uint8_t manage(uint32_t type, uint64_t sector)
{
    return ask(type, sector, 0, 0, false);
}

static UNUSED uint8_t append(uint64_t sector, uint32_t sectors, uint64_t *at)
{
    uint64_t data = rig_alloc(sectors * 512 + 1, 512), trailer = rig_alloc(9, 1);
    struct seg segs[3] = {{rig_header(VIRTIO_BLK_T_ZONE_APPEND, sector), 16, false},
                          {data, sectors * 512, false},
                          {trailer, 9, true}};
    uint16_t id = 0;
    uint32_t len;
    le64 where;

    memset(ptr(data), 0x77, sectors * 512);
    memset(ptr(trailer), 0xee, 9);
    rig_add(asked_queue, segs, 3);
    rig_kick(asked_queue);
    assert_true(rig_used(asked_queue, &id, &len));
    memcpy(&where, ptr(trailer), 8);
    *at = le64_get(where);
    if (rig_status(trailer + 8) == OK)
        assert_int_equal(len, 9);
    return rig_status(trailer + 8);
}

static UNUSED struct virtio_blk_zone_descriptor zone(unsigned index)
{
    uint64_t data = rig_alloc(128, 64);

    assert_int_equal(ask(VIRTIO_BLK_T_ZONE_REPORT, index * ZONE, data, 128, true), OK);
    return ((struct virtio_blk_zone_descriptor *)ptr(data))[1];
}

static UNUSED uint8_t state_of(unsigned index)
{
    return zone(index).z_state;
}

/* Brings zone INDEX into STATE, as commands do it. */
static UNUSED void bring(unsigned index, uint8_t state)
{
    uint64_t sector = index * ZONE;

    assert_int_equal(manage(VIRTIO_BLK_T_ZONE_RESET, sector), OK);
    if (state == VIRTIO_BLK_ZS_IOPEN || state == VIRTIO_BLK_ZS_CLOSED)
        assert_int_equal(out(sector, 1), OK);
    if (state == VIRTIO_BLK_ZS_EOPEN)
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_OPEN, sector), OK);
    if (state == VIRTIO_BLK_ZS_CLOSED)
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_CLOSE, sector), OK);
    if (state == VIRTIO_BLK_ZS_FULL)
        assert_int_equal(manage(VIRTIO_BLK_T_ZONE_FINISH, sector), OK);
    assert_int_equal(state_of(index), state);
}

#endif
