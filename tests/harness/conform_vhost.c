/* Rules of the vhost-user document: rings started and stopped, memory, messages. See conform.h. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/harness/conform.h"

static uint32_t block_bytes(const struct conform *c)
{
    uint32_t block = le32_get(c->bed.config.blk_size);

    return (c->offered & VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE)) && block >= 512 && block <= 65536 ? block : 512;
}

static enum verdict one_read(struct conform *c, unsigned queue, const char *what)
{
    uint8_t data[65536];
    int code = bed_request(&c->bed, queue, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL);

    return code == VIRTIO_BLK_S_OK ? VERDICT_PASS : conform_fail(c, "%s: %s", what, conform_status(code));
}

/* A read, ready in the ring, not kicked. */
static uint8_t *put_read(struct conform *c)
{
    uint8_t *mem = bed_alloc(&c->bed, 128 + block_bytes(c));

    if (!mem)
        return NULL;
    *(struct virtio_blk_req_header *)mem =
        (struct virtio_blk_req_header){le32_put(VIRTIO_BLK_T_IN), le32_put(0), le64_put(0)};
    mem[64] = 0xee;
    struct bed_piece pieces[] = {{mem, 16, false}, {mem + 128, block_bytes(c), true}, {mem + 64, 1, true}};
    bed_put(&c->bed, 0, pieces, 3, false);
    return mem + 64;
}

static enum verdict nothing_before_enable(struct conform *c)
{
    if (!conform_open_options(c, (struct bed_options){.no_start = true}))
        return VERDICT_FAIL;
    if (!(c->bed.transport_bits & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
        return conform_na(c, "rings are enabled from the start without PROTOCOL_FEATURES");
    if (!put_read(c) || bed_queue_messages(&c->bed, 0, c->packed ? 0x80008000u : 0) < 0)
        return conform_fail(c, "the ring was refused");
    bed_kick(&c->bed, 0);
    if (bed_wait(&c->bed, 0, 100, NULL, NULL) != 0)
        return conform_fail(c, "a ring that is not enabled was served");
    if (bed_queue_enable(&c->bed, 0, true) < 0 || bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL) != 1)
        return conform_fail(c, "what was waiting in the ring is not served when it is enabled");
    return VERDICT_PASS;
}

static enum verdict nothing_after_stop(struct conform *c)
{
    uint32_t base = 0;

    if (!conform_open(c, CONFORM_ALL_FEATURES) || one_read(c, 0, "a read") != VERDICT_PASS)
        return VERDICT_FAIL;
    if (bed_queue_stop(&c->bed, 0, &base) < 0)
        return conform_fail(c, "GET_VRING_BASE was not answered");
    if (!put_read(c))
        return VERDICT_FAIL;
    bed_kick(&c->bed, 0);
    return bed_wait(&c->bed, 0, 100, NULL, NULL) == 0 ? VERDICT_PASS
                                                      : conform_fail(c, "a stopped ring was served");
}

static enum verdict base_goes_on(struct conform *c)
{
    uint32_t base = 0;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 5; i++)
        if (one_read(c, 0, "a read") != VERDICT_PASS)
            return VERDICT_FAIL;
    if (bed_queue_stop(&c->bed, 0, &base) < 0)
        return conform_fail(c, "GET_VRING_BASE was not answered");
    if (!c->packed && base != 5)
        return conform_fail(c, "after five requests the base is %u", base);
    if (c->packed && (base & 0x7fff) != c->bed.queues[0].next_desc)
        return conform_fail(c, "the base is %#x, the next descriptor %u", base, c->bed.queues[0].next_desc);
    if (bed_queue_messages(&c->bed, 0, base) < 0 || bed_queue_enable(&c->bed, 0, true) < 0)
        return conform_fail(c, "the ring could not be started again");
    return one_read(c, 0, "a read after stop and start");
}

static enum verdict disable_and_enable(struct conform *c)
{
    if (!conform_open(c, CONFORM_ALL_FEATURES) || one_read(c, 0, "a read") != VERDICT_PASS)
        return VERDICT_FAIL;
    if (!(c->bed.transport_bits & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
        return conform_na(c, "no PROTOCOL_FEATURES");
    for (unsigned i = 0; i < 5; i++) {
        if (bed_queue_enable(&c->bed, 0, false) < 0)
            return conform_fail(c, "disabling a ring was refused");
        if (!put_read(c))
            return VERDICT_FAIL;
        bed_kick(&c->bed, 0);
        bed_sleep_ms(5);
        if (bed_queue_enable(&c->bed, 0, true) < 0 || bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL) != 1)
            return conform_fail(c, "a request made while the ring was disabled is not served after it");
    }
    return VERDICT_PASS;
}

static enum verdict call_replaced(struct conform *c)
{
    int fd;

    if (!conform_open(c, 0) || one_read(c, 0, "a read") != VERDICT_PASS)
        return VERDICT_FAIL;
    fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (vhost_user_front_set_u64(&c->bed.front, VHOST_USER_SET_VRING_CALL, 0, fd) < 0) {
        close(fd);
        return conform_fail(c, "a new call descriptor was refused");
    }
    close(c->bed.queues[0].call_fd);
    c->bed.queues[0].call_fd = fd;
    bed_interrupts(&c->bed, 0);
    if (one_read(c, 0, "a read") != VERDICT_PASS)
        return VERDICT_FAIL;
    return bed_interrupted(&c->bed, 0) ? VERDICT_PASS : conform_fail(c, "no interrupt on the new descriptor");
}

static enum verdict across_regions(struct conform *c)
{
    struct bed_piece pieces[3];
    uint8_t *border, *mem;
    int code;

    if (!conform_open_options(c, (struct bed_options){.regions = 4}))
        return VERDICT_FAIL;
    border = c->bed.hosted->regions[2].mem;
    mem = bed_alloc(&c->bed, 128);
    if (!mem)
        return VERDICT_FAIL;
    *(struct virtio_blk_req_header *)mem =
        (struct virtio_blk_req_header){le32_put(VIRTIO_BLK_T_IN), le32_put(0), le64_put(0)};
    mem[64] = 0xee;
    pieces[0] = (struct bed_piece){mem, 16, false};
    pieces[1] = (struct bed_piece){border - block_bytes(c) / 2, block_bytes(c), true};
    pieces[2] = (struct bed_piece){mem + 64, 1, true};
    bed_put(&c->bed, 0, pieces, 3, false);
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL);
    if (code != 1 || mem[64] != 0)
        return conform_fail(c, "a buffer that crosses from one region into the next: %s",
                            conform_status(code == 1   ? mem[64]
                                           : code == 0 ? -ETIMEDOUT
                                                       : code));
    return VERDICT_PASS;
}

static enum verdict outside_memory(struct conform *c)
{
    struct bed_queue *queue = &c->bed.queues[0];
    int code;

    if (!conform_open(c, 0) || !put_read(c))
        return VERDICT_FAIL;
    if (c->packed)
        queue->ring[1].addr = le64_put(0x7fff00000000ull);
    else
        queue->desc[1].addr = le64_put(0x7fff00000000ull);
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL);
    if (code == 0 && !bed_needs_reset(&c->bed))
        return conform_fail(c, "a buffer outside of all memory was passed over in silence");
    return conform_open(c, 0) ? one_read(c, 0, "a read on a new connection") : VERDICT_FAIL;
}

static enum verdict all_queues(struct conform *c)
{
    unsigned wanted = 1;
    uint64_t count = 1;

    if (!conform_open_options(c, (struct bed_options){.no_memory = true}))
        return VERDICT_FAIL;
    if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_MQ)))
        return conform_na(c, "no MQ");
    if (vhost_user_front_get_u64(&c->bed.front, VHOST_USER_GET_QUEUE_NUM, &count) < 0 || !count)
        return conform_fail(c, "GET_QUEUE_NUM says %llu", (unsigned long long)count);
    if ((c->offered & VIRTIO_BIT(VIRTIO_BLK_F_MQ)) && le16_get(c->bed.config.num_queues) > count)
        return conform_fail(c, "num_queues is %u, GET_QUEUE_NUM %llu", le16_get(c->bed.config.num_queues),
                            (unsigned long long)count);
    wanted = count < BED_QUEUES_MAX ? (unsigned)count : BED_QUEUES_MAX;
    if (!conform_open_options(c, (struct bed_options){.queues = wanted, .features = CONFORM_ALL_FEATURES}))
        return VERDICT_FAIL;
    for (unsigned q = 0; q < wanted; q++)
        if (one_read(c, q, "a read on one of the queues") != VERDICT_PASS)
            return VERDICT_FAIL;
    return VERDICT_PASS;
}

static enum verdict front_ends_in_turn(struct conform *c)
{
    for (unsigned i = 0; i < 10; i++) {
        if (!conform_open(c, CONFORM_ALL_FEATURES))
            return VERDICT_FAIL;
        put_read(c);
        bed_kick(&c->bed, 0); /* and leaves with a request in flight */
    }
    return conform_open(c, CONFORM_ALL_FEATURES) ? one_read(c, 0, "the eleventh front end") : VERDICT_FAIL;
}

static enum verdict config_size_kept(struct conform *c)
{
    for (uint32_t bytes = 1; bytes <= 60; bytes += bytes < 8 ? 1 : 13) {
        struct vhost_user_config want = {.size = bytes}, got = {0};
        int code;

        if (!conform_open_options(c, (struct bed_options){.no_memory = true}))
            return VERDICT_FAIL;
        if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIG)))
            return conform_na(c, "no CONFIG");
        code = vhost_user_front_call(&c->bed.front, VHOST_USER_GET_CONFIG, &want,
                                     VHOST_USER_CONFIG_HEADER_BYTES + bytes, &got, sizeof(got), NULL);
        if (code != (int)(VHOST_USER_CONFIG_HEADER_BYTES + bytes) || got.size != bytes)
            return conform_fail(c, "%u bytes asked for, %d answered", bytes,
                                code < 0 ? code : code - (int)VHOST_USER_CONFIG_HEADER_BYTES);
        if (memcmp(got.region, &c->bed.config, bytes) != 0)
            return conform_fail(c, "the first %u bytes are not those of the whole", bytes);
    }
    return VERDICT_PASS;
}

static enum verdict config_from_the_middle(struct conform *c)
{
    struct vhost_user_config want = {.offset = 20, .size = 4}, got = {0};
    int code;

    if (!conform_open_options(c, (struct bed_options){.no_memory = true}))
        return VERDICT_FAIL;
    if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIG)))
        return conform_na(c, "no CONFIG");
    code = vhost_user_front_call(&c->bed.front, VHOST_USER_GET_CONFIG, &want,
                                 VHOST_USER_CONFIG_HEADER_BYTES + 4, &got, sizeof(got), NULL);
    if (code < 0 || got.size != 4 || memcmp(got.region, (const uint8_t *)&c->bed.config + 20, 4) != 0)
        return conform_fail(c, "4 bytes from offset 20 are not blk_size");
    return VERDICT_PASS;
}

static enum verdict inflight_region(struct conform *c)
{
    struct vhost_user_inflight want = {.num_queues = 1, .queue_size = 64}, got = {0};
    int fd = -1, code;

    if (!conform_open_options(c, (struct bed_options){.no_start = true}))
        return VERDICT_FAIL;
    if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)))
        return conform_na(c, "no INFLIGHT_SHMFD");
    code = vhost_user_front_call(&c->bed.front, VHOST_USER_GET_INFLIGHT_FD, &want, sizeof(want), &got,
                                 sizeof(got), &fd);
    if (code < 0 || fd < 0)
        return conform_fail(c, "GET_INFLIGHT_FD gave no descriptor");
    code = vhost_user_front_set(&c->bed.front, VHOST_USER_SET_INFLIGHT_FD, &got, sizeof(got), &fd, 1);
    close(fd);
    if (code < 0)
        return conform_fail(c, "its own inflight region is refused");
    if (got.mmap_size <
        sizeof(struct vhost_user_inflight_split) + 64 * sizeof(struct vhost_user_inflight_desc_split))
        return conform_fail(c, "a region of %llu bytes for 64 descriptors",
                            (unsigned long long)got.mmap_size);
    if (bed_queue_messages(&c->bed, 0, c->packed ? 0x80008000u : 0) < 0 ||
        bed_queue_enable(&c->bed, 0, true) < 0)
        return conform_fail(c, "the ring was refused");
    for (unsigned i = 0; i < 100; i++)
        if (one_read(c, 0, "a read with an inflight region") != VERDICT_PASS)
            return VERDICT_FAIL;
    return VERDICT_PASS;
}

static enum verdict slots(struct conform *c)
{
    uint64_t count = 0;

    if (!conform_open_options(c, (struct bed_options){.no_memory = true}))
        return VERDICT_FAIL;
    if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)))
        return conform_na(c, "no CONFIGURE_MEM_SLOTS");
    if (vhost_user_front_get_u64(&c->bed.front, VHOST_USER_GET_MAX_MEM_SLOTS, &count) < 0 || !count)
        return conform_fail(c, "GET_MAX_MEM_SLOTS says %llu", (unsigned long long)count);
    for (unsigned i = 0; i < c->bed.hosted->region_count; i++) {
        const struct hosted_region *region = &c->bed.hosted->regions[i];
        struct vhost_user_single_region single = {
            .region = {region->guest_addr, region->bytes, (uintptr_t)region->mem, region->fd_offset}};

        if (vhost_user_front_set(&c->bed.front, VHOST_USER_ADD_MEM_REG, &single, sizeof(single), &region->fd,
                                 1) < 0)
            return conform_fail(c, "ADD_MEM_REG was refused");
    }
    if (bed_queue_messages(&c->bed, 0, 0) < 0 || bed_queue_enable(&c->bed, 0, true) < 0)
        return conform_fail(c, "the ring was refused");
    return one_read(c, 0, "a read in memory added by slots");
}

/* clang-format off */
const struct conform_rule conform_vhost_rules[] = {
    {"vhost-user", "5", "a ring is not served before it is enabled, and then at once", RULE_RING, nothing_before_enable},
    {"vhost-user", "23", "a ring is not served after GET_VRING_BASE", RULE_RING, nothing_after_stop},
    {"vhost-user", "", "the base of a stopped ring is where it goes on", RULE_RING, base_goes_on},
    {"vhost-user", "", "requests made while a ring is disabled are served after it", RULE_RING, disable_and_enable},
    {"vhost-user", "", "a new call descriptor is used from then on", RULE_RING, call_replaced},
    {"vhost-user", "", "a buffer may cross from one memory region into the next", RULE_RING, across_regions},
    {"vhost-user", "D1", "a buffer outside of memory breaks this ring and nothing else", RULE_RING, outside_memory},
    {"vhost-user", "", "every queue serves", RULE_RING, all_queues},
    {"vhost-user", "D6", "one front end after another, each leaving with a request in flight", 0, front_ends_in_turn},
    {"vhost-user", "", "GET_CONFIG answers with as many bytes as were asked for", 0, config_size_kept},
    {"vhost-user", "", "GET_CONFIG from an offset", 0, config_from_the_middle},
    {"vhost-user", "", "the inflight region is given and taken", RULE_RING, inflight_region},
    {"vhost-user", "", "memory by slots", 0, slots},
    {0},
};
/* clang-format on */
