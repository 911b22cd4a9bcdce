/*
 * bench.elf: load on a disk, and the same figures as `ringside bench --json` on the console.
 *
 * Words of the command line: rw=read|write|randread|randwrite|rw|randrw|flush (randread), bs=BYTES (4096),
 * qd=N (32), runtime=SECONDS (2) or requests=N, client=sleep|poll (sleep), size=BYTES (the whole disk: how
 * much of it is used), disk=vda, and those of guest/libc/disk.h. With queues=N and as many CPUs each queue
 * has a CPU of its own, and qd requests in flight.
 *
 * A lane is one queue and what loads it. Lanes share nothing, and use no C library, since they run on any
 * CPU.
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/driver/vblk.h"
#include "guest/libc/arguments.h"
#include "guest/libc/disk.h"
#include "guest/libc/start.h"
#include "guest/platform/machine.h"

const char guest_program[] = "bench";
const char *const guest_words[] = {"rw", "bs", "qd", "requests", "runtime", "size", "client", "disk", NULL};

enum rw { RW_READ, RW_WRITE, RW_RANDREAD, RW_RANDWRITE, RW_RW, RW_RANDRW, RW_FLUSH, RW_COUNT };
static const char *const rw_names[RW_COUNT] = {"read", "write",  "randread", "randwrite",
                                               "rw",   "randrw", "flush"};

#define DEPTH_MAX   1024u
#define SUB_BUCKETS 16u
#define BUCKETS     (64u * SUB_BUCKETS)

/* Latencies in buckets of a sixteenth of a power of two. */
struct latency {
    uint64_t bucket[BUCKETS], count, total_ns, min_ns, max_ns;
};

struct settings {
    enum rw rw;
    uint64_t block_bytes, depth, requests, runtime_ns;
    bool poll;
};

struct slot {
    struct vblk_request request;
    struct vblk_seg seg;
    uint64_t submitted_ns;
    struct lane *lane;
};

struct lane {
    const struct settings *settings;
    struct vblk *disk;
    const struct vblk_platform *platform;
    unsigned queue;
    uint64_t first_sector, blocks, next_block, random;
    uint64_t end_ns, left; /* no new request after either */
    uint64_t done, finished_ns;
    unsigned in_flight;
    int error;
    struct latency latency;
    struct slot slots[];
};

static unsigned bucket_of(uint64_t ns)
{
    if (ns < SUB_BUCKETS)
        return (unsigned)ns;
    unsigned log = 63 - (unsigned)__builtin_clzll(ns);
    return (log - 3) * SUB_BUCKETS + (unsigned)(ns >> (log - 4) & (SUB_BUCKETS - 1));
}

static uint64_t bucket_ns(unsigned bucket)
{
    if (bucket < SUB_BUCKETS)
        return bucket;
    unsigned log = bucket / SUB_BUCKETS + 3;
    return ((uint64_t)SUB_BUCKETS + bucket % SUB_BUCKETS) << (log - 4);
}

static void latency_add(struct latency *l, uint64_t ns)
{
    l->bucket[bucket_of(ns)]++;
    l->total_ns += ns;
    if (l->count++ == 0 || ns < l->min_ns)
        l->min_ns = ns;
    if (ns > l->max_ns)
        l->max_ns = ns;
}

static void latency_merge(struct latency *into, const struct latency *from)
{
    for (unsigned i = 0; i < BUCKETS; i++)
        into->bucket[i] += from->bucket[i];
    if (from->count && (into->count == 0 || from->min_ns < into->min_ns))
        into->min_ns = from->min_ns;
    if (from->max_ns > into->max_ns)
        into->max_ns = from->max_ns;
    into->count += from->count;
    into->total_ns += from->total_ns;
}

static double percentile_us(const struct latency *l, double percent)
{
    uint64_t rank = (uint64_t)((double)l->count * percent / 100), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += l->bucket[i];
        if (seen > rank)
            return (double)(bucket_ns(i) < l->max_ns ? bucket_ns(i) : l->max_ns) / 1e3;
    }
    return (double)l->max_ns / 1e3;
}

static uint64_t random_number(struct lane *lane)
{
    lane->random ^= lane->random << 13;
    lane->random ^= lane->random >> 7;
    lane->random ^= lane->random << 17;
    return lane->random;
}

static void completed(struct vblk_request *request, int result);

static void submit(struct lane *lane, struct slot *slot, uint64_t now)
{
    static const bool is_random[RW_COUNT] = {[RW_RANDREAD] = true, [RW_RANDWRITE] = true, [RW_RANDRW] = true};
    enum rw rw = lane->settings->rw;
    bool write =
        rw == RW_WRITE || rw == RW_RANDWRITE || ((rw == RW_RW || rw == RW_RANDRW) && random_number(lane) & 1);
    uint64_t block;
    if (is_random[rw]) {
        block = random_number(lane) % lane->blocks;
    } else {
        block = lane->next_block++;
        if (lane->next_block == lane->blocks)
            lane->next_block = 0;
    }
    slot->request = (struct vblk_request){
        .op = rw == RW_FLUSH ? VBLK_FLUSH
              : write        ? VBLK_WRITE
                             : VBLK_READ,
        .sector = rw == RW_FLUSH
                      ? 0
                      : lane->first_sector + block * (lane->settings->block_bytes / VIRTIO_BLK_SECTOR_BYTES),
        .segs = &slot->seg,
        .nsegs = rw == RW_FLUSH ? 0 : 1,
        .complete = completed,
        .opaque = slot};
    slot->submitted_ns = now;
    int result = vblk_submit(lane->disk, lane->queue, &slot->request);
    if (result == 0) {
        lane->in_flight++;
        lane->left--;
    } else {
        lane->error = result;
    }
}

static void completed(struct vblk_request *request, int result)
{
    struct slot *slot = request->opaque;
    struct lane *lane = slot->lane;
    uint64_t now = machine_now_ns();
    lane->in_flight--;
    if (result != 0) {
        lane->error = result;
        return;
    }
    lane->done++;
    latency_add(&lane->latency, now - slot->submitted_ns);
    if (lane->left && now < lane->end_ns && !lane->error)
        submit(lane, slot, now);
}

static void lane_run(void *arg)
{
    struct lane *lane = arg;
    uint64_t now = machine_now_ns();
    for (unsigned i = 0; i < lane->settings->depth && lane->left && !lane->error; i++)
        submit(lane, &lane->slots[i], now);
    vblk_kick(lane->disk, lane->queue);
    while (lane->in_flight) {
        if (vblk_poll(lane->disk, lane->queue)) {
            vblk_kick(lane->disk, lane->queue);
            continue;
        }
        if (lane->settings->poll)
            machine_relax();
        else if (!vblk_interrupts_on(lane->disk, lane->queue))
            lane->platform->wait(lane->platform->ctx, lane->queue, machine_now_ns() + 100000000);
    }
    lane->finished_ns = machine_now_ns();
}

static struct lane *lane_new(const struct settings *settings, struct vblk *disk, unsigned index,
                             unsigned queue, unsigned queues, uint64_t sectors)
{
    struct lane *lane = calloc(1, sizeof *lane + settings->depth * sizeof lane->slots[0]);
    if (!lane)
        return NULL;
    uint64_t block_sectors = settings->block_bytes / VIRTIO_BLK_SECTOR_BYTES;
    lane->settings = settings;
    lane->disk = disk;
    lane->platform = machine_disk(index)->platform;
    lane->queue = queue;
    lane->blocks = sectors / block_sectors / queues;
    lane->first_sector = queue * lane->blocks * block_sectors;
    lane->random = 0x9e3779b97f4a7c15 * (queue + 1);
    lane->left = settings->requests ? settings->requests : UINT64_MAX;
    for (unsigned i = 0; i < settings->depth; i++) {
        struct slot *slot = &lane->slots[i];
        slot->lane = lane;
        slot->seg.len = (size_t)settings->block_bytes;
        slot->seg.addr = memalign(4096, (size_t)settings->block_bytes);
        if (!slot->seg.addr)
            return NULL;
        memset(slot->seg.addr, (int)(i + 1), (size_t)settings->block_bytes);
    }
    return lane;
}

static int usage(const char *what)
{
    printf("bench: %s\n", what);
    return 2;
}

static void print_figures(const struct settings *s, const struct vblk_info *info, const char *where,
                          struct lane *const *lanes, uint64_t start_ns, uint64_t interrupts)
{
    static struct latency latency;
    struct vblk_queue_stats stats = {0};
    uint64_t done = 0, end_ns = start_ns + 1;
    for (unsigned i = 0; i < info->num_queues; i++) {
        struct vblk_queue_stats one;
        vblk_queue_stats(lanes[i]->disk, i, &one);
        stats.requests += one.requests;
        stats.kicks += one.kicks;
        done += lanes[i]->done;
        latency_merge(&latency, &lanes[i]->latency);
        if (lanes[i]->finished_ns > end_ns)
            end_ns = lanes[i]->finished_ns;
    }
    double seconds = (double)(end_ns - start_ns) / 1e9,
           requests = stats.requests ? (double)stats.requests : 1;
    printf("{\n  \"device_name\": \"%s\",\n  \"arch\": \"%s\",\n  \"rw\": \"%s\",\n  \"bs\": %llu,\n  "
           "\"qd\": %llu,\n",
           where, machine_arch, rw_names[s->rw], (unsigned long long)s->block_bytes,
           (unsigned long long)s->depth);
    printf("  \"queues\": %u,\n  \"client\": \"%s\",\n  \"ring\": \"%s\",\n  \"seconds\": %.6f,\n",
           info->num_queues, s->poll ? "poll" : "sleep", info->packed_ring ? "packed" : "split", seconds);
    printf("  \"requests\": %llu,\n  \"iops\": %.1f,\n  \"bytes_per_second\": %.0f,\n",
           (unsigned long long)done, (double)done / seconds,
           s->rw == RW_FLUSH ? 0.0 : (double)(done * s->block_bytes) / seconds);
    printf("  \"latency_us\": {\"mean\": %.3f, \"min\": %.3f, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, "
           "\"p99.9\": %.3f, \"max\": %.3f},\n",
           latency.count ? (double)latency.total_ns / (double)latency.count / 1e3 : 0.0,
           (double)latency.min_ns / 1e3, percentile_us(&latency, 50), percentile_us(&latency, 90),
           percentile_us(&latency, 99), percentile_us(&latency, 99.9), (double)latency.max_ns / 1e3);
    printf("  \"kicks_per_request\": %.6f,\n  \"interrupts_per_request\": %.6f\n}\n",
           (double)stats.kicks / requests, (double)interrupts / requests);
}

static int parse(struct settings *s)
{
    const char *rw = argument("rw"), *client = argument("client");
    s->rw = RW_RANDREAD;
    if (rw) {
        s->rw = RW_COUNT;
        for (unsigned i = 0; i < RW_COUNT; i++) {
            if (strcmp(rw, rw_names[i]) == 0)
                s->rw = (enum rw)i;
        }
        if (s->rw == RW_COUNT)
            return usage("rw= must be one of read write randread randwrite rw randrw flush");
    }
    if (client && strcmp(client, "poll") != 0 && strcmp(client, "sleep") != 0)
        return usage("client= must be poll or sleep");
    s->poll = client && strcmp(client, "poll") == 0;
    s->block_bytes = argument_number("bs", 4096);
    s->depth = argument_number("qd", 32);
    s->requests = argument_number("requests", 0);
    s->runtime_ns = argument_number("runtime", 2) * 1000000000;
    if (s->depth < 1 || s->depth > DEPTH_MAX)
        return usage("qd= must be from 1 to 1024");
    return 0;
}

int main(int argc, char **argv)
{
    struct settings settings;
    struct vblk_config config;
    struct vblk *disk;
    struct vblk_info info;
    int index = disk_by_name(argument("disk") ? argument("disk") : "vda");
    int result = parse(&settings);
    if (result != 0)
        return result;
    if (index < 0)
        return usage("there is no such disk");
    disk_default_config(&config);
    if (config.num_queues > machine_num_cpus())
        config.num_queues = machine_num_cpus();
    result = disk_start((unsigned)index, &config, &disk);
    if (result != 0)
        return usage(disk_strerror(result));
    vblk_info(disk, &info);
    uint64_t sectors = argument_number("size", UINT64_MAX) / VIRTIO_BLK_SECTOR_BYTES;
    if (sectors > info.capacity_sectors)
        sectors = info.capacity_sectors;
    if (settings.block_bytes < info.block_size || settings.block_bytes % info.block_size)
        return usage("bs= must be a multiple of the disk's block size");
    if (settings.block_bytes * info.num_queues > sectors * VIRTIO_BLK_SECTOR_BYTES)
        return usage("bs= is larger than the disk");
    if (info.read_only && settings.rw != RW_READ && settings.rw != RW_RANDREAD)
        return usage("the disk is read-only");

    struct lane *lanes[MACHINE_CPUS_MAX];
    for (unsigned i = 0; i < info.num_queues; i++) {
        lanes[i] = lane_new(&settings, disk, (unsigned)index, i, info.num_queues, sectors);
        if (!lanes[i])
            return usage("not enough memory for that many requests of that size");
    }
    uint64_t start = machine_now_ns(), interrupts = machine_interrupts();
    for (unsigned i = info.num_queues; i-- > 0;) {
        lanes[i]->end_ns = settings.requests ? UINT64_MAX : start + settings.runtime_ns;
        if (i == 0)
            lane_run(lanes[0]);
        else if (machine_run_on_cpu(i, lane_run, lanes[i]) != 0)
            return usage("a CPU does not start");
    }
    for (unsigned i = 1; i < info.num_queues; i++)
        machine_cpu_wait(i);
    for (unsigned i = 0; i < info.num_queues; i++) {
        if (lanes[i]->error) {
            printf("bench: queue %u: %s\n", i, disk_strerror(lanes[i]->error));
            return 1;
        }
    }
    print_figures(&settings, &info, disk_where((unsigned)index), lanes, start,
                  machine_interrupts() - interrupts);
    disk_stop((unsigned)index);
    return 0;
}
