/*
 * A driver made of fuzzer's input against the device's side of a ring: descriptors, tables, indexes, events
 * and inflight regions of any content, kicks at any time, completions in any order, stops and starts. The
 * block layer (tests/unit/device_rig.h) holds the device to its word: what it submits is inside the disk and
 * points into guest memory; at the end nothing is left in flight. As long as the driver has kept to the
 * rules, what it finds used is held against what it made available.
 *
 * The including file defines RING_FEATURES, the bits that all of its inputs have.
 */
#include <stddef.h>
#include <stdint.h>

#include "host/device/ring_inflight.h"
#include "tests/unit/device_rig.h"

#define FUZZ_SIZE   16u
#define FUZZ_ZONE   512u /* sectors */
#define TABLE_SLOTS 64u
#define DATA_BYTES  16384u

static struct {
    const uint8_t *data;
    size_t left;
} input;

static uint64_t table, data, region;
static bool honest; /* the ring is as the driver of device_rig.h made it */

static uint64_t take(unsigned bytes)
{
    uint64_t value = 0;

    while (bytes-- > 0 && input.left > 0) {
        value = value << 8 | *input.data++;
        input.left--;
    }
    return value;
}

/* Addresses that are worth trying more often than chance would. */
static uint64_t take_addr(void)
{
    switch (take(1) % 8) {
    case 0:
        return NEXT_ADDR - 64 + take(1);
    case 1:
        return HIGH_ADDR + HIGH_BYTES - take(1);
    case 2:
        return take(8);
    case 3:
        return table + take(1) * 4;
    case 4:
        return rig.queues[0].desc_addr.value + take(1) * 2;
    default:
        return data + take(2) % DATA_BYTES;
    }
}

static uint32_t take_len(void)
{
    static const uint32_t lens[] = {0,   1,    16,   17,     32,          48,         512,
                                    513, 1024, 4096, 0xffff, 0xfffffff0u, 0xffffffffu};
    unsigned which = (unsigned)take(1) % 16;

    return which < sizeof(lens) / sizeof(lens[0]) ? lens[which] : (uint32_t)take(which - 12);
}

static void put_descriptor(uint64_t at)
{
    uint8_t *to = ptr(at);
    uint64_t addr = take_addr();
    uint32_t len = take_len();
    uint16_t flags = (uint16_t)take(2), other = (uint16_t)(take(1) % 20);

    if (take(1) % 4)
        flags &= VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_AVAIL |
                 VIRTQ_DESC_F_USED;
    memcpy(to, &addr, 8);
    memcpy(to + 8, &len, 4);
    memcpy(to + (rig.queues[0].packed ? 14 : 12), &flags, 2);
    memcpy(to + (rig.queues[0].packed ? 12 : 14), &other, 2);
}

static const struct request_kind {
    uint32_t type;
    bool writable; /* data, if any */
    bool ranges;
} kinds[] = {
    {VIRTIO_BLK_T_IN, true, false},
    {VIRTIO_BLK_T_OUT, false, false},
    {VIRTIO_BLK_T_FLUSH, false, false},
    {VIRTIO_BLK_T_GET_ID, true, false},
    {VIRTIO_BLK_T_GET_LIFETIME, true, false},
    {VIRTIO_BLK_T_DISCARD, false, true},
    {VIRTIO_BLK_T_WRITE_ZEROES, false, true},
    {VIRTIO_BLK_T_SECURE_ERASE, false, true},
    {VIRTIO_BLK_T_ZONE_APPEND, false, false},
    {VIRTIO_BLK_T_ZONE_REPORT, true, false},
    {VIRTIO_BLK_T_ZONE_OPEN, false, false},
    {VIRTIO_BLK_T_ZONE_CLOSE, false, false},
    {VIRTIO_BLK_T_ZONE_FINISH, false, false},
    {VIRTIO_BLK_T_ZONE_RESET, false, false},
    {VIRTIO_BLK_T_ZONE_RESET_ALL, false, false},
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* Ranges that the device may well take */
static uint32_t put_ranges(uint64_t at)
{
    struct virtio_blk_range *list = ptr(at);
    uint32_t count = (uint32_t)take(1) % 34;

    for (uint32_t i = 0; i < count; i++)
        list[i] = (struct virtio_blk_range){le64_put(take(2)), le32_put((uint32_t)take(1)),
                                            le32_put(take(1) % 8 == 0 ? (uint32_t)take(1) : 0)};
    return count * 16;
}

/* A list that is as it should be, or nearly, so that the way inside is found soon: any type, data in up to
 * three pieces, a trailer where there is one. */
static void put_request(void)
{
    const struct request_kind *kind = &kinds[take(1) % KINDS];
    uint64_t at = data + take(1) * 32, to = data + 8192;
    struct virtio_blk_req_header *header = ptr(at);
    struct seg segs[5] = {{at, 16, false}};
    uint32_t bytes = kind->ranges ? put_ranges(to) : (uint32_t)take(1) % 16 * 512;
    uint8_t twist = (uint8_t)take(1), cut = (uint8_t)take(1);
    unsigned direct, n = 1, pieces = bytes == 0 ? 0 : 1 + (cut & 3) % 3;

    for (unsigned i = 0; i < pieces; i++) {
        uint32_t len = i + 1 == pieces ? bytes : bytes * (cut >> 2) / 128;

        segs[n++] = (struct seg){to, len, kind->writable};
        to += len;
        bytes -= len;
    }
    segs[n++] = (struct seg){data + take(2) % 8000, kind->type == VIRTIO_BLK_T_ZONE_APPEND ? 9 : 1, true};
    if (twist < 32) {
        honest = false; /* what it writes may lie in the tables of others */
        segs[twist % n].len = take_len() % 8192;
    } else if (twist < 40) {
        segs[twist % n].write ^= true;
    }
    if (!rig_room(0, n))
        return;
    header->type = le32_put(twist == 40 ? (uint32_t)take(4) : kind->type);
    header->sector = le64_put(twist == 41 ? take(8) : take(1) & 1 ? take(2) : take(1) % 16 * FUZZ_ZONE);
    direct = (unsigned)take(1) % (n + 1);
    honest &= rig.queues[0].indirect || direct == n;
    rig_add_mixed(0, segs, n, direct);
    rig_publish(0);
}

/* Takes what is used. A driver that has lost its way makes available what may still be in flight. */
static void take_used(void)
{
    struct rig_queue *queue = &rig.queues[0];
    uint16_t id = 0;
    uint32_t len;

    if (honest) {
        while (queue->in_flight > 0 && rig_used(0, &id, &len))
            ;
        return;
    }
    memset(queue->taken, 0, sizeof(queue->taken));
    queue->order_head = queue->order_tail;
    queue->in_flight = 0;
}

static void restart(void)
{
    struct rig_start stopped;
    unsigned how = (unsigned)take(1);

    fake_release_all(); /* the stop waits for them */
    stopped = rig_stop(0);
    rig.setup[0].last_avail_idx = how & 1 ? (uint16_t)take(2) : stopped.last_avail;
    rig.setup[0].last_used_idx = how & 2 ? (uint16_t)take(2) : stopped.last_used;
    rig.setup[0].inflight = how & 4 ? ptr(region) : NULL;
    rig.setup[0].inflight_bytes = ring_inflight_bytes(rig.queues[0].packed, FUZZ_SIZE);
    rig_start(0);
}

static void step(void)
{
    struct rig_queue *queue = &rig.queues[0];
    uint64_t value;
    unsigned kind = (unsigned)take(1) % 20;

    if (kind < 5 || kind == 12 || kind == 13)
        honest = false;
    switch (kind) {
    case 0:
    case 1:
        put_descriptor(queue->desc_addr.value + take(1) % FUZZ_SIZE * 16);
        break;
    case 2:
        put_descriptor(table + take(1) % TABLE_SLOTS * 16);
        break;
    case 3:
        value = take(2);
        queue->avail->ring[value % (FUZZ_SIZE + 1)] = le16_put((uint16_t)(value >> 8));
        break;
    case 4:
        if (!queue->packed)
            le16_store(&queue->avail->idx, (uint16_t)(le16_load(&queue->avail->idx) + take(1) % 20));
        break;
    case 5:
        value = take(2) % DATA_BYTES;
        *(uint8_t *)ptr(data + value) = (uint8_t)take(1);
        break;
    case 6:
        virtio_blk_queue_kick(rig.device, 0);
        break;
    case 7:
        rig_settle();
        break;
    case 8:
    case 9:
        if (fake.num_held > 0)
            fake_release((unsigned)take(1) % fake.num_held);
        break;
    case 10:
        fake.hold = take(1) & 1;
        break;
    case 11:
        fake.error = take(1) & 1 ? -EIO : 0;
        fake.fail_bytes = DISK_BYTES;
        break;
    case 12:
        value = take(2) % ring_inflight_bytes(queue->packed, FUZZ_SIZE);
        *(uint8_t *)ptr(region + value) = (uint8_t)take(1);
        break;
    case 13:
        restart();
        break;
    case 14:
    case 15:
        take_used();
        break;
    default:
        put_request();
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static bool ready;
    static uint64_t mark;
    static const uint64_t optional =
        VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX) | VIRTIO_BIT(VIRTIO_F_IN_ORDER) |
        VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) | VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) |
        VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) | VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE) |
        VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME) | VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE);

    if (!ready) {
        struct rig_options options = {
            .features = RING_FEATURES,
            .no_start = true,
            .device = {.request_merging = true, .discard = true, .secure_erase = true, .lifetime = true}};

        if (RING_FEATURES & VIRTIO_BIT(VIRTIO_BLK_F_ZONED))
            options.device.zoned = (struct virtio_blk_zoned_options){.zone_sectors = FUZZ_ZONE,
                                                                     .conventional_zones = 2,
                                                                     .max_open_zones = 3,
                                                                     .max_active_zones = 5,
                                                                     .max_append_sectors = 8};
        rig_init(&options);
        ready = true;
        mark = rig.low_used;
    }
    memset(rig.low, 0, rig.low_used);
    rig.low_used = mark;
    input.data = bytes;
    input.left = size;
    rig.features = RING_FEATURES | VIRTIO_BIT(VIRTIO_F_VERSION_1);
    for (uint64_t bit = 0, pick = take(2); bit < 64; bit++)
        if (optional >> bit & 1) {
            rig.features |= pick & 1 ? VIRTIO_BIT(bit) : 0;
            pick >>= 1;
        }
    rig.features &= virtio_blk_device_features(rig.device);
    virtio_blk_reset(rig.device);
    assert(virtio_blk_set_features(rig.device, rig.features) == 0);
    fake.hold = false;
    fake.error = 0;
    rig_lay_out(0, FUZZ_SIZE);
    table = rig_alloc(16 * TABLE_SLOTS, 16);
    data = rig_alloc(DATA_BYTES, 16);
    region = rig_alloc(4096, 64);
    if (take(1) & 1) {
        rig.setup[0].inflight = ptr(region);
        rig.setup[0].inflight_bytes = ring_inflight_bytes(rig.queues[0].packed, FUZZ_SIZE);
    }
    honest = true;
    rig_start(0);
    while (input.left > 0 && rig.low_used < LOW_BYTES - 65536)
        step();
    virtio_blk_queue_kick(rig.device, 0);
    rig_settle();
    fake_release_all();
    rig_stop(0);
    rig_settle();
    assert(fake.in_flight == 0 && fake.num_held == 0);
    return 0;
}
