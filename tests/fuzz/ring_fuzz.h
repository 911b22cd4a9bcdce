/*
 * A driver made of fuzzer's input against the device's side of a ring: descriptors, tables, indexes, events
 * and inflight regions of any content, kicks at any time, completions in any order, stops and starts. The
 * block layer (tests/unit/device_rig.h) holds the device to its word: what it submits is inside the disk and
 * points into guest memory; at the end nothing is left in flight.
 *
 * The including file defines RING_FEATURES, the bits that all of its inputs have.
 */
#include <stddef.h>
#include <stdint.h>

#include "host/device/ring_inflight.h"
#include "tests/unit/device_rig.h"

#define FUZZ_SIZE   16u
#define TABLE_SLOTS 64u
#define DATA_BYTES  16384u

static struct {
    const uint8_t *data;
    size_t left;
} input;

static uint64_t table, data, region;

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

/* A list that is as it should be, so that the way inside is found soon. */
static void put_request(void)
{
    uint64_t at = data + take(1) * 32;
    struct virtio_blk_req_header *header = ptr(at);
    struct seg segs[3] = {
        {at, 16, false}, {data + 8192, take_len() % 8192, take(1) & 1}, {data + take(2) % 8192, 1, true}};

    if (!rig_room(0, 3))
        return;
    header->type = le32_put((uint32_t)take(1) % 32);
    header->sector = le64_put(take(2));
    rig_add_mixed(0, segs, 3, (unsigned)take(1) % 4);
    rig_publish(0);
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

    switch (take(1) % 16) {
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
        VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME);

    if (!ready) {
        rig_init(&(struct rig_options){
            .features = RING_FEATURES,
            .no_start = true,
            .device = {.request_merging = true, .discard = true, .secure_erase = true, .lifetime = true}});
        ready = true;
        mark = rig.low_used;
    }
    memset(rig.low, 0, rig.low_used);
    rig.low_used = mark;
    input.data = bytes;
    input.left = size;
    rig.features = RING_FEATURES | VIRTIO_BIT(VIRTIO_F_VERSION_1);
    for (uint64_t bit = 0, pick = take(1); bit < 64; bit++)
        if (optional >> bit & 1) {
            rig.features |= pick & 1 ? VIRTIO_BIT(bit) : 0;
            pick >>= 1;
        }
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
