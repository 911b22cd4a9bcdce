/*
 * What a request costs in the device, counted in instructions (callgrind or perf stat) or timed: one thread
 * plays driver and device in turn, on a null image, so that nothing depends on a second processor. The
 * driver's part is as small as it can be: 32 requests of 4 KiB are made available, the device serves them,
 * and again.
 *
 *   tool_device_cost [--packed] [--indirect] [--sequential] [--write] [--no-merging] [--depth=N] [--queues=N]
 * [ROUNDS]
 *
 * With several queues each is on a thread of its own; the processor time of a request should be the same as
 * with one.
 *
 * Under callgrind, --toggle-collect=loop_turn leaves the driver's part out.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common/virtio_ring.h"
#include "host/block/backend.h"
#include "host/device/virtio_blk.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/loop.h"
#include "host/runtime/world.h"

#define QUEUE_SIZE  256u
#define MEMORY      (16u << 20)
#define DISK_BYTES  (1ull << 30)
#define BLOCK_BYTES 4096u
#define BASE        0x100000u

static struct {
    struct virtio_blk *device;
    bool packed, indirect, sequential, write;
    unsigned depth;
    uint64_t rounds;
} shared;

/* One queue with its driver */
static _Thread_local struct {
    uint8_t *memory;
    struct guest_memory *table;
    unsigned queue;
    struct loop *loop;
    struct virtio_blk_queue_setup setup;
    uint16_t avail_idx, used_idx, slot;
    bool wrap;
    uint64_t sector, seed, done;
} bench;

static struct virtq_desc *descs(void)
{
    return (struct virtq_desc *)bench.memory;
}

static struct virtq_avail *avail(void)
{
    return (struct virtq_avail *)(bench.memory + 0x10000);
}

static struct virtq_used *used(void)
{
    return (struct virtq_used *)(bench.memory + 0x20000);
}

static void put_desc(void *at, uint64_t addr, uint32_t len, uint16_t flags, uint16_t last)
{
    struct virtq_desc *desc = at;

    desc->addr = le64_put(addr);
    desc->len = le32_put(len);
    if (shared.packed) { /* flags and the fourth word change places */
        desc->flags = le16_put(last);
        le16_store_release(&desc->next, flags);
    } else {
        desc->flags = le16_put(flags);
        desc->next = le16_put(last);
    }
}

/* Request I of this round: header, data and status have fixed places. */
static void submit(unsigned i)
{
    uint64_t place = 0x40000 + i * 0x2000ull, addr = BASE + place;
    struct virtio_blk_req_header *header = (struct virtio_blk_req_header *)(bench.memory + place);
    uint16_t write = shared.write ? 0 : VIRTQ_DESC_F_WRITE;
    uint16_t first = (uint16_t)(shared.packed ? bench.slot : i * 3);
    uint8_t *at = bench.memory + first * 16u;

    header->type = le32_put(shared.write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN);
    header->sector = le64_put(bench.sector);
    bench.seed = bench.seed * 6364136223846793005ull + 1442695040888963407ull;
    bench.sector = shared.sequential ? (bench.sector + 8) % (DISK_BYTES / 512)
                                     : (bench.seed >> 33) % (DISK_BYTES / 4096) * 8;
    if (shared.indirect) {
        uint8_t *table = bench.memory + place + 0x1c00;
        uint16_t flags = VIRTQ_DESC_F_INDIRECT;

        /* In an indirect table of a packed ring the flags stand where they do in the ring, and NEXT is
         * ignored. */
        put_desc(table, addr, 16, VIRTQ_DESC_F_NEXT, 1);
        put_desc(table + 16, addr + 0x200, BLOCK_BYTES, VIRTQ_DESC_F_NEXT | write, 2);
        put_desc(table + 32, addr + 32, 1, VIRTQ_DESC_F_WRITE, 0);
        if (shared.packed)
            flags |= bench.wrap ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED;
        put_desc(shared.packed ? at : bench.memory + (first = (uint16_t)i) * 16u, addr + 0x1c00, 48, flags,
                 0);
        if (shared.packed && ++bench.slot == QUEUE_SIZE) {
            bench.slot = 0;
            bench.wrap = !bench.wrap;
        }
    } else if (shared.packed) {
        const uint32_t lens[3] = {16, BLOCK_BYTES, 1};
        const uint64_t addrs[3] = {addr, addr + 0x200, addr + 32};
        const uint16_t flags[3] = {VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_NEXT | write, VIRTQ_DESC_F_WRITE};

        for (unsigned k = 0; k < 3; k++) {
            put_desc(bench.memory + bench.slot * 16u, addrs[k], lens[k],
                     flags[k] | (bench.wrap ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED), (uint16_t)i);
            if (++bench.slot == QUEUE_SIZE) {
                bench.slot = 0;
                bench.wrap = !bench.wrap;
            }
        }
    } else {
        put_desc(at, addr, 16, VIRTQ_DESC_F_NEXT, (uint16_t)(first + 1));
        put_desc(at + 16, addr + 0x200, BLOCK_BYTES, VIRTQ_DESC_F_NEXT | write, (uint16_t)(first + 2));
        put_desc(at + 32, addr + 32, 1, VIRTQ_DESC_F_WRITE, 0);
    }
    bench.memory[place + 32] = 0xee;
    if (!shared.packed)
        avail()->ring[bench.avail_idx++ % QUEUE_SIZE] = le16_put(first);
}

static void serve(void)
{
    while (loop_turn(bench.loop, false))
        ;
}

static void round_trip(void)
{
    for (unsigned i = 0; i < shared.depth; i++)
        submit(i);
    if (!shared.packed)
        le16_store_release(&avail()->idx, bench.avail_idx);
    virtio_blk_queue_kick(shared.device, bench.queue);
    serve();
    for (unsigned i = 0; i < shared.depth; i++)
        if (bench.memory[0x40000 + i * 0x2000ull + 32] != 0) {
            fprintf(stderr, "request %u was not answered well\n", i);
            exit(1);
        }
    bench.done += shared.depth;
}

static void start(void *arg)
{
    struct error err = {""};

    if (virtio_blk_co_queue_start(shared.device, bench.queue, bench.loop, &bench.setup, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
}

static void stop(void *arg)
{
    virtio_blk_co_queue_stop(shared.device, bench.queue, NULL, NULL);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void run_queue(unsigned queue)
{
    uint64_t begin, begin_cpu;
    double requests;

    bench.queue = queue;
    bench.seed = queue;
    bench.memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bench.table = calloc(1, sizeof(*bench.table));
    if (bench.memory == MAP_FAILED || !bench.table)
        exit(1);
    guest_memory_add(bench.table,
                     &(struct guest_region){.guest_addr = 0, .bytes = 0xa0000, .host = bench.memory});
    guest_memory_add(bench.table,
                     &(struct guest_region){.guest_addr = BASE, .bytes = MEMORY, .host = bench.memory});
    bench.wrap = true;
    bench.setup = (struct virtio_blk_queue_setup){.size = QUEUE_SIZE,
                                                  .packed = shared.packed,
                                                  .memory = bench.table,
                                                  .desc = descs(),
                                                  .driver = avail(),
                                                  .device = used(),
                                                  .last_avail_idx = shared.packed ? 0x8000 : 0,
                                                  .last_used_idx = shared.packed ? 0x8000 : 0,
                                                  .kick_fd = -1,
                                                  .call_fd = -1};
    /* The driver wants no interrupts: an event that never comes, or the packed ring's flag. */
    if (shared.packed)
        ((struct virtq_packed_event *)avail())->flags = le16_put(VIRTQ_PACKED_EVENT_DISABLE);
    loop_run_coroutine(bench.loop, start, NULL);
    begin = world_now_ns();
    begin_cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    for (uint64_t r = 0; r < shared.rounds; r++)
        round_trip();
    requests = (double)(bench.done ? bench.done : 1);
    printf("queue %u: %.0f ns a request, %.0f ns of processor time, driver's part included\n", queue,
           (double)(world_now_ns() - begin) / requests,
           (double)(clock_ns(CLOCK_THREAD_CPUTIME_ID) - begin_cpu) / requests);
    loop_run_coroutine(bench.loop, stop, NULL);
    munmap(bench.memory, MEMORY);
    free(bench.table);
}

static void *queue_thread(void *arg)
{
    struct error err = {""};

    bench.loop = loop_create("queue", &err);
    if (!bench.loop)
        exit(1);
    run_queue((unsigned)(uintptr_t)arg);
    loop_destroy(bench.loop);
    return NULL;
}

int main(int argc, char **argv)
{
    const struct open_options open = {.format = "null", .null_bytes = DISK_BYTES};
    struct virtio_blk_options options = {.num_queues = 1,
                                         .queue_size_max = QUEUE_SIZE,
                                         .logical_block_size = 512,
                                         .physical_block_size = 512,
                                         .request_merging = true};
    struct error err = {""};
    uint64_t features = VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    pthread_t threads[VIRTIO_BLK_QUEUES_MAX];
    struct blk *blk;

    shared.depth = 32;
    shared.rounds = 100000;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--packed") == 0)
            shared.packed = true;
        else if (strcmp(argv[i], "--indirect") == 0)
            shared.indirect = true;
        else if (strcmp(argv[i], "--sequential") == 0)
            shared.sequential = true;
        else if (strcmp(argv[i], "--write") == 0)
            shared.write = true;
        else if (strcmp(argv[i], "--no-merging") == 0)
            options.request_merging = false;
        else if (strncmp(argv[i], "--depth=", 8) == 0)
            shared.depth = (unsigned)strtoul(argv[i] + 8, NULL, 0);
        else if (strncmp(argv[i], "--queues=", 9) == 0)
            options.num_queues = (unsigned)strtoul(argv[i] + 9, NULL, 0);
        else
            shared.rounds = strtoull(argv[i], NULL, 0);
    }
    bench.loop = loop_create("main", &err);
    blk = bench.loop ? blk_open("", &open, &err) : NULL;
    shared.device = blk ? virtio_blk_create(blk, &options, &err) : NULL;
    if (!shared.device) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (shared.packed)
        features |= VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    if (shared.indirect)
        features |= VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    virtio_blk_set_features(shared.device, features | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH));
    if (options.num_queues == 1) {
        run_queue(0);
    } else {
        for (unsigned i = 0; i < options.num_queues; i++)
            if (pthread_create(&threads[i], NULL, queue_thread, (void *)(uintptr_t)i) != 0)
                return 1;
        for (unsigned i = 0; i < options.num_queues; i++)
            pthread_join(threads[i], NULL);
    }
    virtio_blk_destroy(shared.device);
    blk_close(blk);
    loop_destroy(bench.loop);
    return 0;
}
