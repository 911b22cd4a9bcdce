/*
 * selftest, second group: rings and queues. The same mix of operations, checked against a copy in memory,
 * over every way to use a ring that the device allows; full rings; several queues; several CPUs.
 */
#include <stdlib.h>
#include <string.h>

#include "guest/apps/selftest.h"
#include "guest/libc/disk.h"
#include "guest/platform/machine.h"

#define MIX_SECTORS 2048u
#define IN_FLIGHT   16u
#define MIX_SEGS    6u

struct operation {
    struct vblk_request request;
    struct vblk_seg segs[MIX_SEGS];
    uint8_t *buf;
    uint64_t first, sectors; /* within the area */
    int result;
    unsigned completions;
};

static void completed(struct vblk_request *request, int result)
{
    struct operation *op = request->opaque;
    op->result = result;
    op->completions++;
}

/* Cuts BUF into a few pieces of odd lengths. */
static void cut(struct operation *op, size_t len, uint64_t *random)
{
    unsigned n = 0;
    size_t at = 0;
    while (n < MIX_SEGS - 1 && len - at > 1 && random_next(random) % 3) {
        size_t piece = 1 + random_next(random) % (len - at - 1);
        op->segs[n++] = (struct vblk_seg){op->buf + at, piece};
        at += piece;
    }
    op->segs[n++] = (struct vblk_seg){op->buf + at, len - at};
    op->request.segs = op->segs;
    op->request.nsegs = n;
}

static void choose(const struct test *test, struct operation *op, uint64_t area, uint64_t *random)
{
    static const enum vblk_op kinds[] = {VBLK_READ,  VBLK_READ,  VBLK_READ,    VBLK_WRITE,       VBLK_WRITE,
                                         VBLK_WRITE, VBLK_FLUSH, VBLK_DISCARD, VBLK_WRITE_ZEROES};
    enum vblk_op kind = kinds[random_next(random) % (sizeof kinds / sizeof kinds[0])];
    uint64_t features = test->info.features;
    if (test->info.read_only && kind != VBLK_FLUSH)
        kind = VBLK_READ;
    if ((kind == VBLK_DISCARD && !(features >> VIRTIO_BLK_F_DISCARD & 1)) ||
        (kind == VBLK_WRITE_ZEROES && !(features >> VIRTIO_BLK_F_WRITE_ZEROES & 1)))
        kind = VBLK_WRITE;
    memset(&op->request, 0, sizeof op->request);
    op->request.op = kind;
    op->request.complete = completed;
    op->request.opaque = op;
    op->request.sector = area + op->first;
    if (kind == VBLK_DISCARD || kind == VBLK_WRITE_ZEROES)
        op->request.num_sectors = op->sectors;
    if (kind == VBLK_WRITE_ZEROES && random_next(random) & 1)
        op->request.flags = VBLK_REQUEST_UNMAP;
    if (kind == VBLK_FLUSH)
        op->request.sector = 0;
    if (kind == VBLK_READ || kind == VBLK_WRITE)
        cut(op, (size_t)op->sectors * VIRTIO_BLK_SECTOR_BYTES, random);
}

/* After a batch: what the operation must have done, on the copy; true if all is well. */
static bool settle(struct test *test, const struct operation *op, uint8_t *copy, bool *known)
{
    uint8_t *place = copy + op->first * VIRTIO_BLK_SECTOR_BYTES;
    size_t len = (size_t)op->sectors * VIRTIO_BLK_SECTOR_BYTES;
    if (!check(test, op->completions == 1, "operation %d was completed %u times", op->request.op,
               op->completions))
        return false;
    if (op->request.op == VBLK_DISCARD && op->result == -VBLK_ENOTSUP)
        return true;
    if (!check(test, op->result == 0, "operation %d at sector %llu + %llu: %s", op->request.op,
               (unsigned long long)op->first, (unsigned long long)op->sectors, disk_strerror(op->result)))
        return false;
    switch (op->request.op) {
    case VBLK_WRITE:
        memcpy(place, op->buf, len);
        memset(known + op->first, true, (size_t)op->sectors);
        return true;
    case VBLK_WRITE_ZEROES:
        memset(place, 0, len);
        memset(known + op->first, true, (size_t)op->sectors);
        return true;
    case VBLK_DISCARD: /* its content is anything now (5.2.6) */
        memset(known + op->first, false, (size_t)op->sectors);
        return true;
    case VBLK_READ:
        for (uint64_t s = 0; s < op->sectors; s++) {
            if (!check(test,
                       !known[op->first + s] || memcmp(place + s * VIRTIO_BLK_SECTOR_BYTES,
                                                       op->buf + s * VIRTIO_BLK_SECTOR_BYTES, 512) == 0,
                       "sector %llu reads other data than was written", (unsigned long long)(op->first + s)))
                return false;
        }
        return true;
    default:
        return true;
    }
}

void mixed_operations(struct test *test, unsigned queue, unsigned count, uint64_t seed)
{
    uint64_t sectors = MIX_SECTORS, area = scratch(test, &sectors), random = seed;
    uint64_t slice = sectors / IN_FLIGHT / test->block_sectors; /* blocks */
    if (slice == 0) {
        skip(test, "the disk is too small");
        return;
    }
    size_t slice_bytes = (size_t)slice * test->info.block_size;
    struct operation *ops = test_alloc(IN_FLIGHT * sizeof *ops);
    uint8_t *copy = test_alloc((size_t)sectors * VIRTIO_BLK_SECTOR_BYTES);
    bool *known = test_alloc((size_t)sectors * sizeof *known);
    memset(known, false, (size_t)sectors * sizeof *known);
    for (unsigned i = 0; i < IN_FLIGHT; i++)
        ops[i].buf = test_alloc(slice_bytes);
    for (unsigned done = 0; done < count && !test->failed; done += IN_FLIGHT) {
        for (unsigned i = 0; i < IN_FLIGHT; i++) {
            struct operation *op = &ops[i];
            uint64_t first = random_next(&random) % slice,
                     blocks = 1 + random_next(&random) % (slice - first);
            op->first = (i * slice + first) * test->block_sectors;
            op->sectors = blocks * test->block_sectors;
            op->completions = 0;
            choose(test, op, area, &random);
            data_fill(op->buf, (size_t)blocks * test->info.block_size, op->first, random);
            int result = vblk_submit(test->disk, queue, &op->request);
            if (!check_result(test, "submitting", result, 0))
                break;
        }
        if (test->failed)
            break;
        vblk_kick(test->disk, queue);
        check_result(test, "draining", vblk_drain(test->disk, queue), 0);
        for (unsigned i = 0; i < IN_FLIGHT && settle(test, &ops[i], copy, known); i++)
            continue;
    }
    if (test->failed)
        restart(test, NULL); /* nothing of it may stay in flight */
    for (unsigned i = 0; i < IN_FLIGHT; i++)
        free(ops[i].buf);
    free(known);
    free(copy);
    free(ops);
}

static void mix_as_started(struct test *test)
{
    mixed_operations(test, 0, 512, 1);
}

/* The same with a configuration changed by CHANGE. */
static void mix_with(struct test *test, void (*change)(struct vblk_config *config))
{
    struct vblk_config config;
    disk_default_config(&config);
    change(&config);
    if (restart(test, &config))
        mixed_operations(test, 0, 256, 2);
    restart(test, NULL);
}

static void refuse_event_idx(struct vblk_config *config)
{
    config->refuse_features |= VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
}

static void refuse_indirect(struct vblk_config *config)
{
    config->indirect_segs = 0;
}

static void ask_for_small_queue(struct vblk_config *config)
{
    config->queue_size = 4;
}

static void ask_for_polling(struct vblk_config *config)
{
    config->poll_only = true;
}

static void mix_without_event_idx(struct test *test)
{
    mix_with(test, refuse_event_idx);
}

static void mix_without_indirect(struct test *test)
{
    mix_with(test, refuse_indirect);
}

static void mix_small_queue(struct test *test)
{
    if (is_legacy(test))
        skip(test, "a legacy device's queues have a fixed size");
    else
        mix_with(test, ask_for_small_queue);
}

static void mix_polling(struct test *test)
{
    mix_with(test, ask_for_polling);
}

/* ---- full ring ---- */

static void full_queue(struct test *test)
{
    unsigned count = 2 * test->info.queue_size < 1024 ? 2 * test->info.queue_size + 3 : 1024;
    uint64_t sectors = (uint64_t)count * test->block_sectors, area = scratch(test, &sectors);
    uint32_t bytes = test->info.block_size;
    count = (unsigned)(sectors / test->block_sectors);
    struct operation *ops = test_alloc(count * sizeof *ops);
    for (unsigned i = 0; i < count; i++) {
        ops[i] = (struct operation){.buf = test_alloc(bytes)};
        ops[i].segs[0] = (struct vblk_seg){ops[i].buf, bytes};
    }
    for (unsigned pass = test->info.read_only ? 1 : 0; pass < 2; pass++) {
        for (unsigned i = 0; i < count; i++) {
            struct operation *op = &ops[i];
            uint64_t sector = area + (uint64_t)i * test->block_sectors;
            op->completions = 0;
            if (pass == 0)
                data_fill(op->buf, bytes, sector, 3);
            else
                memset(op->buf, 0xee, bytes);
            op->request = (struct vblk_request){.op = pass == 0 ? VBLK_WRITE : VBLK_READ,
                                                .sector = sector,
                                                .segs = op->segs,
                                                .nsegs = 1,
                                                .complete = completed,
                                                .opaque = op};
            check_result(test, "submitting", vblk_submit(test->disk, 0, &op->request), 0);
        }
        vblk_kick(test->disk, 0);
        check_result(test, "draining", vblk_drain(test->disk, 0), 0);
        for (unsigned i = 0; i < count && !test->failed; i++) {
            check(test, ops[i].completions == 1, "request %u was completed %u times", i, ops[i].completions);
            check_result(test, pass == 0 ? "write" : "read", ops[i].result, 0);
            if (pass == 1 && !test->info.read_only)
                check(test, data_differs(ops[i].buf, bytes, area + (uint64_t)i * test->block_sectors, 3) < 0,
                      "request %u read another's data", i);
        }
    }
    for (unsigned i = 0; i < count; i++)
        free(ops[i].buf);
    free(ops);
}

/* ---- several queues ---- */

static bool start_with_all_queues(struct test *test)
{
    struct vblk_config config;
    disk_default_config(&config);
    config.num_queues = test->info.device_num_queues < 8 ? test->info.device_num_queues : 8;
    if (config.num_queues < 2) {
        skip(test, "the device has one queue");
        return false;
    }
    return restart(test, &config);
}

static void several_queues(struct test *test)
{
    if (!start_with_all_queues(test))
        return;
    for (unsigned queue = 0; queue < test->info.num_queues; queue++)
        mixed_operations(test, queue, 64, 10 + queue);
    /* All at once: a block from each queue, submitted before the first is polled. */
    uint32_t bytes = test->info.block_size;
    struct operation ops[8];
    for (unsigned queue = 0; queue < test->info.num_queues; queue++) {
        struct operation *op = &ops[queue];
        *op = (struct operation){.buf = test_alloc(bytes)};
        op->segs[0] = (struct vblk_seg){op->buf, bytes};
        op->request = (struct vblk_request){
            .op = VBLK_READ, .segs = op->segs, .nsegs = 1, .complete = completed, .opaque = op};
        check_result(test, "submitting", vblk_submit(test->disk, queue, &op->request), 0);
        vblk_kick(test->disk, queue);
    }
    for (unsigned queue = test->info.num_queues; queue-- > 0;) {
        check_result(test, "draining", vblk_drain(test->disk, queue), 0);
        check(test, ops[queue].completions == 1 && ops[queue].result == 0, "queue %u: %u completions, %s",
              queue, ops[queue].completions, disk_strerror(ops[queue].result));
        check(test, memcmp(ops[queue].buf, ops[test->info.num_queues - 1].buf, bytes) == 0,
              "queue %u reads other data", queue);
    }
    for (unsigned queue = 0; queue < test->info.num_queues; queue++)
        free(ops[queue].buf);
    restart(test, NULL);
}

/* ---- several CPUs: each its own queue, no lock between them ---- */

struct cpu_work {
    struct vblk *disk;
    unsigned queue, rounds;
    uint64_t sector;
    uint32_t bytes;
    uint8_t *buf, *back;
    int result;
    bool writable, same;
};

static void cpu_works(void *arg)
{
    struct cpu_work *work = arg;
    work->same = true;
    for (unsigned round = 0; round < work->rounds && work->result == 0 && work->same; round++) {
        memset(work->buf, (int)(work->queue * 16 + round), work->bytes);
        if (work->writable)
            work->result = vblk_write(work->disk, work->queue, work->sector, work->buf, work->bytes);
        if (work->result == 0)
            work->result = vblk_read(work->disk, work->queue, work->sector, work->back, work->bytes);
        work->same = !work->writable || memcmp(work->buf, work->back, work->bytes) == 0;
    }
}

static void several_cpus(struct test *test)
{
    unsigned cpus = machine_num_cpus();
    if (cpus < 2) {
        skip(test, "the machine has one CPU");
        return;
    }
    if (!start_with_all_queues(test))
        return;
    if (cpus > test->info.num_queues)
        cpus = test->info.num_queues;
    uint32_t bytes = test->info.block_size * 8;
    uint64_t sectors = (uint64_t)cpus * 8 * test->block_sectors, area = scratch(test, &sectors);
    struct cpu_work work[MACHINE_CPUS_MAX];
    for (unsigned cpu = 0; cpu < cpus; cpu++)
        work[cpu] = (struct cpu_work){.disk = test->disk,
                                      .queue = cpu,
                                      .rounds = 50,
                                      .sector = area + (uint64_t)cpu * 8 * test->block_sectors,
                                      .bytes = bytes,
                                      .buf = test_alloc(bytes),
                                      .back = test_alloc(bytes),
                                      .writable = !test->info.read_only};
    for (unsigned cpu = 1; cpu < cpus; cpu++)
        check(test, machine_run_on_cpu(cpu, cpu_works, &work[cpu]) == 0, "CPU %u does not start", cpu);
    cpu_works(&work[0]);
    for (unsigned cpu = 0; cpu < cpus; cpu++) {
        machine_cpu_wait(cpu);
        check_result(test, "a CPU's work", work[cpu].result, 0);
        check(test, work[cpu].same, "CPU %u reads other data than it wrote", cpu);
        free(work[cpu].buf);
        free(work[cpu].back);
    }
    restart(test, NULL);
}

const struct test_case test_cases_queue[] = {
    {"512 mixed operations against a copy in memory", mix_as_started, 0, ANY_DEVICE},
    {"a ring twice over full, at once", full_queue, 0, ANY_DEVICE},
    {"mixed operations without EVENT_IDX (2.7.7, 2.7.10)", mix_without_event_idx, 0, VIRTIO_F_EVENT_IDX},
    {"mixed operations without indirect descriptors", mix_without_indirect, 0, VIRTIO_F_INDIRECT_DESC},
    {"mixed operations on a queue as small as can be had", mix_small_queue, 0, ANY_DEVICE},
    {"mixed operations, polled", mix_polling, 0, ANY_DEVICE},
    {"several queues", several_queues, 0, VIRTIO_BLK_F_MQ},
    {"several CPUs, a queue each", several_cpus, 0, VIRTIO_BLK_F_MQ},
    {0},
};
