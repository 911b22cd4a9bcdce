/*
 * Running a workload; see crash_workload.h. The coroutines of one loop, or of four, share the node as the
 * queues of a device do.
 */
#include "tests/crash/crash_workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/log_writes.h"
#include "host/block/node.h"
#include "host/runtime/co_lock.h"
#include "host/runtime/iothread.h"
#include "tests/crash/crash_model.h"
#include "tests/crash/crash_sector.h"

#define DEPTH 8u
#define MIB   (1024u * 1024u)

const struct crash_workload crash_workloads[] = {
    {.name = "allocate",
     .what = "allocating writes, 64 KiB clusters",
     .create = {.size = 4 * MIB},
     .write = 1,
     .max_sectors = 160},
    {.name = "version2",
     .what = "the same in a version 2 image",
     .create = {.size = 4 * MIB, .version = 2},
     .write = 4,
     .zero = 1,
     .discard = 1,
     .max_sectors = 160},
    {.name = "clusters4k",
     .what = "4 KiB clusters: overwrites next to allocations",
     .create = {.size = 2 * MIB, .cluster_bytes = 4096},
     .write = 8,
     .zero = 1,
     .discard = 1,
     .max_sectors = 40},
    {.name = "clusters512",
     .what = "512-byte clusters: many tables, refcount table and L1 at work",
     .create = {.size = 1 * MIB, .cluster_bytes = 512},
     .write = 8,
     .zero = 1,
     .discard = 1,
     .max_sectors = 24},
    {.name = "small-cache",
     .what = "512-byte clusters and caches that run full all the time",
     .create = {.size = 1 * MIB, .cluster_bytes = 512},
     .write = 8,
     .zero = 1,
     .discard = 1,
     .max_sectors = 24,
     .cache_bytes = 4096},
    {.name = "refcount64",
     .what = "64-bit refcounts in 512-byte clusters: the refcount table grows",
     .create = {.size = 3 * MIB, .cluster_bytes = 512, .refcount_bits = 64},
     .write = 1,
     .max_sectors = 96},
    {.name = "refcount1",
     .what = "1-bit refcounts",
     .create = {.size = 4 * MIB, .refcount_bits = 1},
     .write = 3,
     .discard = 1,
     .max_sectors = 160},
    {.name = "backing-raw",
     .what = "copy-on-write over a raw backing file",
     .create = {.size = 2 * MIB, .backing_file = "backing", .backing_format = "raw"},
     .first = FIRST_BACKED_RAW,
     .write = 6,
     .zero = 1,
     .discard = 1,
     .max_sectors = 64},
    {.name = "backing-qcow2",
     .what = "copy-on-write over a qcow2 backing file with other clusters",
     .create = {.size = 2 * MIB, .backing_file = "backing", .backing_format = "qcow2"},
     .first = FIRST_BACKED_QCOW2,
     .write = 6,
     .zero = 1,
     .discard = 1,
     .max_sectors = 64},
    {.name = "discard",
     .what = "discard, then reuse of what was freed",
     .create = {.size = 4 * MIB},
     .write = 3,
     .discard = 2,
     .max_sectors = 256,
     .hot_sectors = 2048},
    {.name = "discard4k",
     .what = "the same with 4 KiB clusters",
     .create = {.size = 1 * MIB, .cluster_bytes = 4096},
     .write = 3,
     .discard = 2,
     .max_sectors = 64,
     .hot_sectors = 512},
    {.name = "discard512",
     .what = "the same with 512-byte clusters, in version 2",
     .create = {.size = 1 * MIB, .cluster_bytes = 512, .version = 2},
     .write = 3,
     .discard = 2,
     .max_sectors = 16,
     .hot_sectors = 256},
    {.name = "zero",
     .what = "zero writes against allocating writes",
     .create = {.size = 4 * MIB},
     .write = 2,
     .zero = 2,
     .max_sectors = 256,
     .hot_sectors = 2048},
    {.name = "zero-unmap",
     .what = "zero writes that give clusters back",
     .create = {.size = 4 * MIB},
     .write = 2,
     .zero = 2,
     .zero_unmaps = true,
     .max_sectors = 256,
     .hot_sectors = 2048},
    {.name = "full",
     .what = "overwrites and discards of a full image",
     .create = {.size = 2 * MIB},
     .first = FIRST_FULL,
     .write = 4,
     .zero = 1,
     .discard = 2,
     .max_sectors = 256},
    {.name = "compressed",
     .what = "compressed clusters overwritten",
     .create = {.size = 2 * MIB},
     .first = FIRST_COMPRESSED,
     .write = 4,
     .discard = 1,
     .max_sectors = 96},
    {.name = "compressed4k",
     .what = "the same with 4 KiB clusters, several of them in one",
     .create = {.size = 1 * MIB, .cluster_bytes = 4096},
     .first = FIRST_COMPRESSED,
     .write = 4,
     .discard = 1,
     .max_sectors = 24},
    {.name = "snapshot",
     .what = "copy-on-write from a snapshot",
     .create = {.size = 2 * MIB},
     .first = FIRST_SNAPSHOT,
     .write = 4,
     .zero = 1,
     .discard = 1,
     .max_sectors = 96},
    {.name = "snapshots",
     .what = "snapshots made and deleted while writing",
     .create = {.size = 2 * MIB},
     .first = FIRST_FULL,
     .write = 4,
     .zero = 1,
     .discard = 1,
     .max_sectors = 96,
     .snapshots = true},
    {.name = "snapshots-v2",
     .what = "the same in version 2, which has no dirty bit",
     .create = {.size = 2 * MIB, .version = 2},
     .first = FIRST_FULL,
     .write = 4,
     .zero = 1,
     .discard = 1,
     .max_sectors = 96,
     .snapshots = true},
    {.name = "snapshots512",
     .what = "the same with 512-byte clusters: tables of many clusters",
     .create = {.size = MIB / 2, .cluster_bytes = 512},
     .write = 4,
     .zero = 1,
     .discard = 1,
     .max_sectors = 24,
     .snapshots = true},
    {.name = "subclusters",
     .what = "extended L2 entries",
     .create = {.size = 2 * MIB, .extended_l2 = true},
     .write = 6,
     .zero = 1,
     .discard = 1,
     .max_sectors = 40},
    {.name = "subclusters-backing",
     .what = "extended L2 entries over a backing file",
     .create = {.size = 2 * MIB, .extended_l2 = true, .backing_file = "backing", .backing_format = "raw"},
     .first = FIRST_BACKED_RAW,
     .write = 6,
     .zero = 1,
     .discard = 1,
     .max_sectors = 40},
    {.name = "subclusters-snapshots",
     .what = "extended L2 entries, small clusters, snapshots",
     .create = {.size = 1 * MIB, .cluster_bytes = 16384, .extended_l2 = true},
     .write = 6,
     .zero = 1,
     .discard = 1,
     .max_sectors = 24,
     .snapshots = true},
    {.name = "lazy",
     .what = "lazy refcounts",
     .create = {.size = 4 * MIB, .lazy_refcounts = true},
     .write = 6,
     .discard = 1,
     .max_sectors = 160},
    {.name = "resize",
     .what = "the disk grows while it is written to",
     .create = {.size = 1 * MIB, .cluster_bytes = 4096},
     .write = 8,
     .zero = 1,
     .discard = 1,
     .max_sectors = 40,
     .resize = true},
    {.name = "resize512",
     .what = "the same with 512-byte clusters: the L1 table moves",
     .create = {.size = MIB / 2, .cluster_bytes = 512},
     .write = 8,
     .zero = 1,
     .discard = 1,
     .max_sectors = 24,
     .resize = true},
    {.name = "resize-bitmaps",
     .what = "the same with bitmaps, which follow the disk's size or are marked",
     .create = {.size = MIB / 2, .cluster_bytes = 512},
     .first = FIRST_BITMAPS,
     .write = 8,
     .zero = 1,
     .discard = 1,
     .max_sectors = 24,
     .resize = true},
    {.name = "queues",
     .what = "four loops on one image",
     .create = {.size = 4 * MIB},
     .write = 6,
     .zero = 1,
     .discard = 2,
     .max_sectors = 160,
     .hot_sectors = 4096,
     .loops = 4},
    {.name = "queues4k",
     .what = "four loops on one image with 4 KiB clusters",
     .create = {.size = 2 * MIB, .cluster_bytes = 4096},
     .write = 6,
     .zero = 1,
     .discard = 2,
     .max_sectors = 40,
     .loops = 4},
    {.name = "queues-subclusters",
     .what = "four loops on one image with extended L2 entries",
     .create = {.size = 2 * MIB, .extended_l2 = true},
     .write = 6,
     .zero = 1,
     .discard = 2,
     .max_sectors = 40,
     .loops = 4},
    {.name = "queues-snapshots",
     .what = "four loops on one image, snapshots made and deleted",
     .create = {.size = 1 * MIB, .cluster_bytes = 4096},
     .write = 6,
     .zero = 1,
     .discard = 2,
     .max_sectors = 40,
     .loops = 4,
     .snapshots = true},
};
const unsigned crash_workload_count = sizeof crash_workloads / sizeof crash_workloads[0];

struct run {
    const struct crash_workload *workload;
    const char *dir;
    uint64_t seed;
    unsigned ops;

    struct node *node, *log;
    uint32_t next_id, started; /* atomic */
    uint64_t sectors;          /* atomic: size of the disk */
    unsigned workers;          /* atomic: begun */
    struct co_queue all_done;
    struct co_rwlock resizing; /* a resize is not overtaken by requests, as a device would see to */
    bool failed;
    char why[640];
};

static void fail(struct run *run, const char *what, int result)
{
    if (!__atomic_exchange_n(&run->failed, true, __ATOMIC_RELAXED))
        snprintf(run->why, sizeof run->why, "%s: %s", what, strerror(-result));
}

static void mark(struct run *run, uint32_t end, enum guest_op op, uint32_t id, uint64_t sector,
                 uint64_t count, int result)
{
    struct guest_mark m = {
        .end = end, .op = op, .id = id, .failed = result < 0, .sector = sector, .count = count};
    log_writes_mark(run->log, &m, sizeof m);
}

/* Makes a snapshot or, when there are several, deletes one. No request is in flight. */
static void coroutine_fn change_snapshots(struct run *run, uint32_t id, uint64_t *seed)
{
    struct error err = {0};
    struct qcow2_snapshot_info *list = NULL;
    size_t count = 0;
    uint64_t bytes = node_length(run->node);
    int result = qcow2_snapshots(run->node, &list, &count);

    if (result == 0 && count >= 3) {
        const struct qcow2_snapshot_info *victim = &list[crash_random(seed) % count];
        uint64_t maker = strtoull(victim->name + 1, NULL, 10);
        mark(run, 0, GUEST_SNAPSHOT_DELETE, id, maker, 0, 0);
        result = qcow2_co_snapshot_delete(run->node, victim->id, &err);
        mark(run, 1, GUEST_SNAPSHOT_DELETE, id, maker, 0, result);
    } else if (result == 0) {
        char name[32];
        uint8_t *data = node_buffer(run->node, bytes);
        result = data ? node_co_pread(run->node, 0, data, bytes) : -12;
        uint64_t content = result == 0 ? crash_hash(data, bytes) : 0;
        free(data);
        snprintf(name, sizeof name, "s%u", id);
        mark(run, 0, GUEST_SNAPSHOT, id, content, 0, 0);
        if (result == 0)
            result = qcow2_co_snapshot_create(run->node, name, &err);
        mark(run, 1, GUEST_SNAPSHOT, id, content, 0, result);
    }
    free(list);
    if (result < 0)
        fail(run, err.text, result);
}

/* Some sectors, at most to LIMIT. */
static uint64_t pick_sectors(const struct run *run, unsigned worker, uint64_t *seed, uint64_t limit,
                             uint64_t disk, uint64_t *count)
{
    const struct crash_workload *w = run->workload;
    uint64_t sector, end = disk;
    *count = 1 + crash_random(seed) % w->max_sectors;
    if (w->snapshots) {
        /* A snapshot holds the disk as it was, so it has to be known: no two workers write to the same
         * sectors at the same time (whose data stays is open then), though they share clusters. */
        unsigned workers = DEPTH * (w->loops ? w->loops : 1);
        uint64_t stripe = w->max_sectors, stripes = limit / stripe;
        uint64_t mine = (stripes + workers - 1 - worker) / workers;
        uint64_t start = (mine ? crash_random(seed) % mine * workers + worker : worker % stripes) * stripe;
        sector = start + crash_random(seed) % stripe;
        end = start + stripe;
    } else {
        sector = crash_random(seed) % limit;
    }
    if (*count > end - sector)
        *count = end - sector;
    return sector;
}

static void coroutine_fn one_request(struct run *run, unsigned worker, uint64_t *seed, uint8_t *buffer)
{
    const struct crash_workload *w = run->workload;
    uint32_t id = __atomic_add_fetch(&run->next_id, 1, __ATOMIC_RELAXED);
    int result;

    if (w->resize && crash_random(seed) % 100 == 0) {
        co_rwlock_wrlock(&run->resizing);
        uint64_t sectors =
            __atomic_load_n(&run->sectors, __ATOMIC_RELAXED) + 1024 + 8 * (crash_random(seed) % 256);
        struct error err = {0};
        mark(run, 0, GUEST_RESIZE, id, 0, sectors, 0);
        result = node_co_truncate(run->node, sectors * 512, true, &err);
        mark(run, 1, GUEST_RESIZE, id, 0, sectors, result);
        if (result < 0)
            fail(run, err.text, result);
        else
            __atomic_store_n(&run->sectors, sectors, __ATOMIC_RELAXED);
        co_rwlock_unlock(&run->resizing);
        return;
    }
    if (w->snapshots && crash_random(seed) % 30 == 0) {
        co_rwlock_wrlock(&run->resizing);
        change_snapshots(run, id, seed);
        co_rwlock_unlock(&run->resizing);
        return;
    }

    co_rwlock_rdlock(&run->resizing);
    uint64_t disk = __atomic_load_n(&run->sectors, __ATOMIC_RELAXED);
    uint64_t limit = w->hot_sectors && w->hot_sectors < disk ? w->hot_sectors : disk, count;
    uint64_t sector = pick_sectors(run, worker, seed, limit, disk, &count);
    unsigned pick = (unsigned)(crash_random(seed) % (w->write + w->zero + w->discard));
    enum guest_op op = GUEST_DISCARD;
    if (crash_random(seed) % 12 == 0)
        op = GUEST_FLUSH;
    else if (pick < w->write)
        op = GUEST_WRITE;
    else if (pick < w->write + w->zero)
        op = GUEST_ZERO;
    if (op == GUEST_WRITE) {
        for (uint64_t i = 0; i < count; i++)
            crash_sector_fill(buffer + i * 512, sector + i, id);
    }
    mark(run, 0, op, id, sector, count, 0);
    switch (op) {
    case GUEST_WRITE:
        result = node_co_pwrite(run->node, sector * 512, buffer, count * 512, 0);
        break;
    case GUEST_ZERO:
        result = node_co_pwrite_zeroes(run->node, sector * 512, count * 512,
                                       w->zero_unmaps ? NODE_IO_MAY_UNMAP : 0);
        break;
    case GUEST_DISCARD:
        result = node_co_pdiscard(run->node, sector * 512, count * 512);
        break;
    default:
        result = node_co_flush(run->node);
        break;
    }
    mark(run, 1, op, id, sector, count, result);
    co_rwlock_unlock(&run->resizing);
    if (result < 0)
        fail(run, "a request failed", result);
}

static void coroutine_fn worker(void *opaque)
{
    struct run *run = opaque;
    unsigned number = __atomic_fetch_add(&run->workers, 1, __ATOMIC_RELAXED);
    uint64_t seed = run->seed * 1000 + number + 1;
    uint8_t *buffer = node_buffer(run->node, (size_t)run->workload->max_sectors * 512);
    while (buffer && !run->failed && __atomic_add_fetch(&run->started, 1, __ATOMIC_RELAXED) <= run->ops)
        one_request(run, number, &seed, buffer);
    if (!buffer)
        fail(run, "no buffer", -12);
    free(buffer);
}

/* Runs DEPTH workers on the loop that this coroutine is on, and ends when they have. */
struct team {
    struct run *run;
    unsigned left;
    struct coroutine *leader;
};

static void coroutine_fn team_member(void *opaque)
{
    struct team *team = opaque;
    worker(team->run);
    if (--team->left == 0 && team->leader)
        co_wake(team->leader);
}

static void coroutine_fn team_run(void *opaque)
{
    struct team team = {.run = opaque, .left = DEPTH};
    for (unsigned i = 0; i < DEPTH; i++) {
        struct coroutine *co = co_create(team_member, &team);
        if (!co) {
            fail(team.run, "no coroutine", -12);
            team.left--;
            continue;
        }
        co_enter(co);
    }
    if (team.left > 0) {
        team.leader = co_self();
        co_yield ();
    }
}

static bool shell(const char *format, const char *a, const char *b)
{
    char command[1024];
    snprintf(command, sizeof command, format, a, b);
    if (system(command) == 0) /* NOLINT(cert-env33-c): a test's own words */
        return true;
    fprintf(stderr, "failed: %s\n", command);
    return false;
}

static bool write_pattern(const char *dir, const char *name, uint64_t bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "we");
    uint8_t data[512];
    bool good = file != NULL;
    for (uint64_t s = 0; good && s < bytes / 512; s++) {
        crash_sector_fill(data, s, 0);
        good = fwrite(data, sizeof data, 1, file) == 1;
    }
    if (file && fclose(file) != 0)
        good = false;
    if (!good)
        perror(path);
    return good;
}

static void coroutine_fn prepare(void *opaque)
{
    struct run *run = opaque;
    const struct crash_workload *w = run->workload;
    struct error err = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/image", run->dir);
    int result = qcow2_co_create(path, &w->create, &err);
    if (result < 0)
        fail(run, err.text, result);
}

/* What the image holds before the log begins, made with the means of the peer. */
static bool fill_first(const struct crash_workload *w, const char *dir)
{
    switch (w->first) {
    case FIRST_EMPTY:
        return true;
    case FIRST_BACKED_RAW:
        return write_pattern(dir, "backing", w->create.size);
    case FIRST_BACKED_QCOW2:
        return write_pattern(dir, "pattern", w->create.size) &&
               shell("qemu-img convert -q -f raw -O qcow2 -o cluster_size=4k %s/pattern %s/backing", dir,
                     dir);
    case FIRST_FULL:
        return write_pattern(dir, "pattern", w->create.size) &&
               shell("qemu-img convert -q -n -f raw -O qcow2 %s/pattern %s/image", dir, dir);
    case FIRST_COMPRESSED:
        return write_pattern(dir, "pattern", w->create.size) &&
               shell("qemu-img convert -q -n -c -f raw -O qcow2 %s/pattern %s/image", dir, dir);
    case FIRST_SNAPSHOT:
        return write_pattern(dir, "pattern", w->create.size) &&
               shell("qemu-img convert -q -n -f raw -O qcow2 %s/pattern %s/image", dir, dir) &&
               shell("qemu-img snapshot -c first %s/image", dir, "");
    case FIRST_BITMAPS:
        return shell("qemu-img bitmap --add -g 512 %s/image recording%s", dir, "") &&
               shell("qemu-img bitmap --add --disable -g 512 %s/image still%s", dir, "");
    }
    return false;
}

static void coroutine_fn open_image(void *opaque)
{
    struct run *run = opaque;
    char path[512], log[512];
    struct error err = {0};
    snprintf(path, sizeof path, "%s/image", run->dir);
    snprintf(log, sizeof log, "%s/log", run->dir);
    struct open_options options = {.format = "qcow2",
                                   .log_writes = log,
                                   .l2_cache_bytes = run->workload->cache_bytes,
                                   .refcount_cache_bytes = run->workload->cache_bytes};
    int result = node_co_open(path, &options, &run->node, &err);
    if (result < 0) {
        fail(run, err.text, result);
        return;
    }
    run->sectors = node_length(run->node) / 512;
    run->log = log_writes_find(run->node);
    if (!run->log)
        fail(run, "no log of writes", -22);
}

static void coroutine_fn close_image(void *opaque)
{
    struct run *run = opaque;
    int result = node_co_close(run->node);
    if (result < 0)
        fail(run, "closing the image", result);
}

struct helper {
    struct iothread *thread;
    struct run *run;
    struct loop_bh bh;
    uint32_t *left; /* atomic */
};

static void coroutine_fn helper_main(void *opaque)
{
    struct helper *helper = opaque;
    team_run(helper->run);
    __atomic_sub_fetch(helper->left, 1, __ATOMIC_RELEASE);
}

static void helper_start(void *opaque)
{
    struct coroutine *co = co_create(helper_main, opaque);
    if (co)
        co_enter(co);
}

/* Four teams at once, each on a thread of its own. */
static bool run_on_threads(struct run *run, unsigned loops)
{
    struct helper helpers[8] = {0};
    uint32_t left = loops;
    struct error err = {0};
    for (unsigned i = 0; i < loops; i++) {
        helpers[i] = (struct helper){.run = run, .left = &left};
        helpers[i].thread = iothread_start("crash", 0, &err);
        if (!helpers[i].thread) {
            fprintf(stderr, "%s\n", err.text);
            exit(1);
        }
        helpers[i].bh = (struct loop_bh){
            .fn = helper_start, .opaque = &helpers[i], .loop = iothread_loop(helpers[i].thread)};
    }
    for (unsigned i = 0; i < loops; i++)
        loop_bh_schedule(&helpers[i].bh);
    while (__atomic_load_n(&left, __ATOMIC_ACQUIRE) > 0)
        loop_turn(loop_current(), false);
    for (unsigned i = 0; i < loops; i++)
        iothread_stop(helpers[i].thread);
    return true;
}

bool crash_workload_run(const struct crash_workload *workload, const char *dir, uint64_t seed, unsigned ops)
{
    struct run run = {.workload = workload, .dir = dir, .seed = seed, .ops = ops};
    struct loop *loop = loop_current();

    loop_run_coroutine(loop, prepare, &run);
    if (!run.failed && (!fill_first(workload, dir) || !shell("cp %s/image %s/first", dir, dir)))
        fail(&run, "making the first image", -5);
    if (!run.failed)
        loop_run_coroutine(loop, open_image, &run);
    if (!run.failed && workload->loops > 1)
        run_on_threads(&run, workload->loops);
    else if (!run.failed)
        loop_run_coroutine(loop, team_run, &run);
    if (run.node)
        loop_run_coroutine(loop, close_image, &run);
    if (run.failed)
        fprintf(stderr, "workload %s, seed %llu: %s\n", workload->name, (unsigned long long)seed, run.why);
    return !run.failed;
}
