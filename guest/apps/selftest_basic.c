/*
 * selftest, first group: negotiation, identity, configuration, what the driver must refuse, restarts.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "guest/apps/selftest.h"
#include "guest/libc/disk.h"
#include "guest/platform/machine.h"

static void negotiation(struct test *test)
{
    const struct vblk_info *info = &test->info;
    check(test, !(info->features & ~info->device_features), "features %llx were not offered",
          (unsigned long long)(info->features & ~info->device_features));
    check(test, is_legacy(test) == !(info->features >> VIRTIO_F_VERSION_1 & 1),
          "VERSION_1 and the transport disagree");
    check(test, info->num_queues >= 1 && info->num_queues <= info->device_num_queues, "%u of %u queues",
          info->num_queues, info->device_num_queues);
    check(test, info->queue_size >= 2 && info->queue_size <= VIRTQUEUE_MAX_SIZE, "a queue of %u",
          info->queue_size);
    check(test, !info->failed, "the disk has failed");
}

static void configuration(struct test *test)
{
    const struct vblk_info *info = &test->info;
    check(test, info->capacity_sectors > 0, "capacity 0");
    check(test, info->block_size >= 512 && (info->block_size & (info->block_size - 1)) == 0,
          "blocks of %u bytes", (unsigned)info->block_size);
    check(test, info->physical_block_size >= info->block_size,
          "physical blocks of %u bytes below logical ones of %u", (unsigned)info->physical_block_size,
          (unsigned)info->block_size);
    check(test, info->capacity_sectors == le64_get(info->config.capacity),
          "capacity %llu is not the device's %llu", (unsigned long long)info->capacity_sectors,
          (unsigned long long)le64_get(info->config.capacity));
    check(test, info->read_only == (info->device_features >> VIRTIO_BLK_F_RO & 1),
          "read-only is not as offered");
}

static void identity(struct test *test)
{
    char id[VIRTIO_BLK_ID_BYTES + 1];
    memset(id, 'x', sizeof id);
    int result = vblk_get_id(test->disk, 0, id);
    if (result == -VBLK_ENOTSUP) {
        skip(test, "the device does not know GET_ID");
        return;
    }
    if (!check_result(test, "GET_ID", result, 0))
        return;
    check(test, memchr(id, '\0', sizeof id) != NULL, "the identity has no end");
    for (const char *c = id; *c; c++)
        check(test, isprint((unsigned char)*c), "the identity holds byte 0x%02x", (unsigned char)*c);
}

static void beyond_capacity(struct test *test)
{
    uint64_t capacity = test->info.capacity_sectors, step = test->block_sectors;
    uint32_t bytes = test->info.block_size;
    char *buf = test_alloc(2 * (size_t)bytes);
    check_result(test, "reading at the end", vblk_read(test->disk, 0, capacity, buf, bytes), -VBLK_ERANGE);
    check_result(test, "reading across the end",
                 vblk_read(test->disk, 0, capacity - step, buf, 2 * (size_t)bytes), -VBLK_ERANGE);
    check_result(test, "reading where a sum wraps",
                 vblk_read(test->disk, 0, UINT64_MAX - step + 1, buf, 2 * (size_t)bytes), -VBLK_ERANGE);
    if (!test->info.read_only) {
        check_result(test, "writing at the end", vblk_write(test->disk, 0, capacity, buf, bytes),
                     -VBLK_ERANGE);
        check_result(test, "writing far away", vblk_write(test->disk, 0, 1ull << 60, buf, bytes),
                     -VBLK_ERANGE);
    }
    check_result(test, "reading the last block",
                 vblk_read(test->disk, 0, (capacity / step - 1) * step, buf, bytes), 0);
    free(buf);
}

static void not_whole_blocks(struct test *test)
{
    char *buf = test_alloc(test->info.block_size);
    check_result(test, "reading one byte less than a block",
                 vblk_read(test->disk, 0, 0, buf, test->info.block_size - 1), -VBLK_EINVAL);
    if (test->block_sectors > 1)
        check_result(test, "reading from the middle of a block",
                     vblk_read(test->disk, 0, 1, buf, test->info.block_size), -VBLK_EINVAL);
    check_result(test, "reading a block after that", vblk_read(test->disk, 0, 0, buf, test->info.block_size),
                 0);
    free(buf);
}

static void read_only(struct test *test)
{
    if (!test->info.read_only) {
        skip(test, "the disk can be written");
        return;
    }
    char *buf = test_alloc(test->info.block_size);
    memset(buf, 0, test->info.block_size);
    check_result(test, "writing", vblk_write(test->disk, 0, 0, buf, test->info.block_size), -VBLK_EROFS);
    check_result(test, "flushing", vblk_flush(test->disk, 0), 0);
    check_result(test, "reading", vblk_read(test->disk, 0, 0, buf, test->info.block_size), 0);
    free(buf);
}

static void lifetime(struct test *test)
{
    struct virtio_blk_lifetime lifetime;
    check_result(test, "GET_LIFETIME", vblk_get_lifetime(test->disk, 0, &lifetime), 0);
}

static void write_cache(struct test *test)
{
    bool was = test->info.write_cache;
    for (unsigned i = 0; i < 2; i++) {
        bool want = i == 0 ? !was : was;
        if (!check_result(test, "switching the cache mode", vblk_set_write_cache(test->disk, want), 0))
            return;
        vblk_info(test->disk, &test->info);
        check(test, test->info.write_cache == want, "the cache mode is not what was asked for");
        check_result(test, "flushing", vblk_flush(test->disk, 0), 0);
    }
}

/* What was on the disk before a restart is there after it, and none of the restart's own memory is lost. */
static void restarts(struct test *test)
{
    uint64_t sectors = test->block_sectors, sector = scratch(test, &sectors);
    size_t bytes = (size_t)sectors * VIRTIO_BLK_SECTOR_BYTES;
    char *before = test_alloc(bytes), *after = test_alloc(bytes);
    data_fill(before, bytes, sector, 7);
    if (test->info.read_only)
        check_result(test, "reading", vblk_read(test->disk, 0, sector, before, bytes), 0);
    else
        check_result(test, "writing", vblk_write(test->disk, 0, sector, before, bytes), 0);
    for (unsigned i = 0; i < 20 && restart(test, NULL); i++) {
        memset(after, 0xee, bytes);
        check_result(test, "reading", vblk_read(test->disk, 0, sector, after, bytes), 0);
        if (!check(test, memcmp(before, after, bytes) == 0, "other data after restart %u", i + 1))
            break;
    }
    free(before);
    free(after);
}

static void count(struct vblk_request *request, int result)
{
    unsigned *completions = request->opaque;
    (*completions)++;
}

/* A request that nobody polls for: only an interrupt can end the wait before its deadline. */
static void interrupts(struct test *test)
{
    const struct vblk_platform *platform = machine_disk(test->index)->platform;
    struct vblk_seg seg = {test_alloc(test->info.block_size), test->info.block_size};
    for (unsigned round = 0; round < 8 && !test->failed; round++) {
        unsigned completions = 0;
        struct vblk_request request = {
            .op = VBLK_READ, .segs = &seg, .nsegs = 1, .complete = count, .opaque = &completions};
        uint64_t before = machine_interrupts(), end = machine_now_ns() + 30000000000;
        check(test, !vblk_interrupts_on(test->disk, 0), "something was there before the request");
        if (!check_result(test, "submitting", vblk_submit(test->disk, 0, &request), 0))
            break;
        vblk_kick(test->disk, 0);
        while (machine_interrupts() == before && machine_now_ns() < end)
            platform->wait(platform->ctx, 0, end);
        check(test, machine_interrupts() != before, "no interrupt within 30 seconds");
        check_result(test, "draining", vblk_drain(test->disk, 0), 0);
        check(test, completions == 1, "%u completions", completions);
    }
    free(seg.addr);
}

static void interrupts_or_skip(struct test *test)
{
    if (test->info.polling || !machine_disk(test->index)->has_interrupt)
        skip(test, "this disk is polled");
    else
        interrupts(test);
}

const struct test_case test_cases_basic[] = {
    {"features, status and queues are negotiated (3.1.1)", negotiation, 0, ANY_DEVICE},
    {"the configuration makes sense (5.2.4)", configuration, 0, ANY_DEVICE},
    {"the device says who it is (5.2.6, GET_ID)", identity, 0, ANY_DEVICE},
    {"requests beyond the capacity are refused", beyond_capacity, 0, ANY_DEVICE},
    {"requests of less than a block are refused", not_whole_blocks, 0, ANY_DEVICE},
    {"a read-only disk is not written", read_only, 0, ANY_DEVICE},
    {"interrupts arrive", interrupts_or_skip, 0, ANY_DEVICE},
    {"the device says how worn it is", lifetime, 0, VIRTIO_BLK_F_LIFETIME},
    {"the cache mode can be switched", write_cache, 0, VIRTIO_BLK_F_CONFIG_WCE},
    {"twenty restarts", restarts, 0, ANY_DEVICE},
    {0},
};
