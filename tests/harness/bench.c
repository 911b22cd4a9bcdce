/*
 * `ringside bench`: a steady load on each queue, and what came of it: operations and bytes a second, latency,
 * kicks and interrupts, and what the device spent on a request (CPU time, system calls, and for our own
 * device in this process heap allocations and locks).
 *
 * One thread a queue keeps --qd requests in flight. Figures are taken between two moments at which the load
 * runs at full depth; nothing is allocated in between.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/harness/commands.h"
#include "tests/harness/latency.h"
#include "tests/harness/measure.h"
#include "tests/harness/model.h"
#include "tests/harness/names.h"
#include "tests/harness/rig.h"

enum phase { PHASE_RAMP, PHASE_MEASURE, PHASE_END };

struct bench;

struct bench_slot {
    struct vblk_request request;
    struct bench_worker *worker;
    struct vblk_seg seg;
    uint64_t start_ns;
};

struct bench_worker {
    struct bench *bench;
    pthread_t thread;
    unsigned queue;
    struct chance chance;
    uint64_t first, blocks, next; /* this worker's part of the disk, in blocks of --bs */
    struct bench_slot *slots;
    unsigned in_flight;
    int error;
    uint64_t now;  /* of this turn, once it was asked for: a clock costs as much as a tenth of a request */
    uint64_t done; /* atomic: read by the main thread; in all phases */
    struct latency latency;
    struct queue_figures {
        struct vblk_queue_stats driver;
        uint64_t interrupts;
    } before, after;
};

struct bench {
    const struct settings *settings;
    struct rig *rig;
    uint64_t block_sectors;
    enum phase phase; /* atomic */
    struct bench_worker *workers;
    unsigned started;
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_ms(uint64_t ms)
{
    struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};

    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

static void bench_complete(struct vblk_request *request, int result);

static enum vblk_op choose(struct bench_worker *worker)
{
    switch ((enum bench_rw)worker->bench->settings->rw) {
    case RW_READ:
    case RW_RANDREAD:
        return VBLK_READ;
    case RW_WRITE:
    case RW_RANDWRITE:
        return VBLK_WRITE;
    case RW_RW:
    case RW_RANDRW:
        return chance_next(&worker->chance) & 1 ? VBLK_READ : VBLK_WRITE;
    case RW_FLUSH:
        break;
    }
    return VBLK_FLUSH;
}

static bool is_random(enum bench_rw rw)
{
    return rw == RW_RANDREAD || rw == RW_RANDWRITE || rw == RW_RANDRW;
}

static void submit(struct bench_worker *worker, struct bench_slot *slot, uint64_t now)
{
    struct bench *bench = worker->bench;
    uint64_t block;
    int code;

    if (is_random((enum bench_rw)bench->settings->rw)) {
        block = chance_below(&worker->chance, worker->blocks);
    } else {
        block = worker->next++;
        if (worker->next == worker->blocks)
            worker->next = 0;
    }
    slot->request.op = choose(worker);
    slot->request.sector =
        slot->request.op == VBLK_FLUSH ? 0 : (worker->first + block) * bench->block_sectors;
    slot->start_ns = now;
    worker->in_flight++;
    code = vblk_submit(bench->rig->disk, worker->queue, &slot->request);
    if (code < 0) {
        worker->in_flight--;
        worker->error = code;
    }
}

static void bench_complete(struct vblk_request *request, int result)
{
    struct bench_slot *slot = request->opaque;
    struct bench_worker *worker = slot->worker;
    enum phase phase = __atomic_load_n(&worker->bench->phase, __ATOMIC_ACQUIRE);

    if (!worker->now)
        worker->now = now_ns();
    worker->in_flight--;
    if (result < 0)
        worker->error = result;
    if (phase == PHASE_MEASURE)
        latency_add(&worker->latency, worker->now - slot->start_ns);
    __atomic_store_n(&worker->done, worker->done + 1, __ATOMIC_RELAXED);
    if (phase == PHASE_END || worker->error)
        return;
    if (worker->bench->settings->think_ms) {
        sleep_ms(worker->bench->settings->think_ms);
        worker->now = now_ns();
    }
    submit(worker, slot, worker->now);
}

static void read_figures(const struct bench_worker *worker, struct queue_figures *figures)
{
    const struct rig *rig = worker->bench->rig;

    vblk_queue_stats(rig->disk, worker->queue, &figures->driver);
    figures->interrupts = hosted_interrupts(rig->hosted, worker->queue);
}

static void *bench_run(void *opaque)
{
    struct bench_worker *worker = opaque;
    struct bench *bench = worker->bench;
    enum phase seen = PHASE_RAMP;
    uint64_t now = now_ns();

    rig_client_thread(bench->rig, worker->queue);
    for (unsigned i = 0; i < bench->settings->depth && !worker->error; i++)
        submit(worker, &worker->slots[i], now);
    vblk_kick(bench->rig->disk, worker->queue);
    while (worker->in_flight) {
        enum phase phase = __atomic_load_n(&bench->phase, __ATOMIC_RELAXED);

        if (phase != seen) {
            read_figures(worker, phase == PHASE_MEASURE ? &worker->before : &worker->after);
            seen = phase;
        }
        if (worker->queue == 0)
            rig_attend(bench->rig);
        worker->now = 0;
        if (rig_poll(bench->rig, worker->queue))
            vblk_kick(bench->rig->disk, worker->queue);
    }
    if (seen != PHASE_END)
        read_figures(worker, &worker->after);
    return NULL;
}

static uint64_t done_so_far(const struct bench *bench)
{
    uint64_t done = 0;

    for (unsigned q = 0; q < bench->settings->queues; q++)
        done += __atomic_load_n(&bench->workers[q].done, __ATOMIC_RELAXED);
    return done;
}

/* Until --runtime is over, or --ops requests are done after the first BEFORE. */
static void wait_for_end(const struct bench *bench, uint64_t before)
{
    uint64_t end = now_ns() + bench->settings->runtime_ms * 1000000u;

    if (!bench->settings->ops) {
        sleep_ms(bench->settings->runtime_ms);
        return;
    }
    while (now_ns() < end && done_so_far(bench) - before < bench->settings->ops)
        sleep_ms(1);
}

struct bench_result {
    uint64_t ns, done;
    struct measure_figures device;
    struct latency latency;
    struct vblk_queue_stats stats;
    uint64_t interrupts;
    int error;
};

static void run(struct bench *bench, struct bench_result *result)
{
    const struct settings *s = bench->settings;
    struct measure_figures before;
    struct measure measure;
    uint64_t start;
    pid_t pid = (pid_t)s->device_pid;

    if (!pid && !bench->rig->own)
        pid = measure_peer_pid(bench->rig->transport->front.fd);
    measure_open(&measure, pid);
    for (unsigned q = 0; q < s->queues; q++) {
        if (pthread_create(&bench->workers[q].thread, NULL, bench_run, &bench->workers[q]) != 0) {
            result->error = -EAGAIN;
            break;
        }
        bench->started = q + 1;
    }
    sleep_ms(s->ramp_ms);
    measure_read(&measure, &before);
    result->done = done_so_far(bench);
    start = now_ns();
    __atomic_store_n(&bench->phase, PHASE_MEASURE, __ATOMIC_RELEASE);
    wait_for_end(bench, result->done);
    result->ns = now_ns() - start;
    result->done = done_so_far(bench) - result->done;
    measure_read(&measure, &result->device);
    __atomic_store_n(&bench->phase, PHASE_END, __ATOMIC_RELEASE);
    for (unsigned q = 0; q < bench->started; q++)
        pthread_join(bench->workers[q].thread, NULL);
    measure_close(&measure);

    result->device.has_cpu = result->device.has_cpu && before.has_cpu;
    result->device.cpu_ns -= before.cpu_ns;
    result->device.syscalls -= before.syscalls;
    result->device.allocations -= before.allocations;
    result->device.locks -= before.locks;
    latency_clear(&result->latency);
    for (unsigned q = 0; q < bench->started; q++) {
        const struct bench_worker *worker = &bench->workers[q];

        latency_merge(&result->latency, &worker->latency);
        result->stats.kicks += worker->after.driver.kicks - worker->before.driver.kicks;
        result->interrupts += worker->after.interrupts - worker->before.interrupts;
        result->stats.requests += worker->after.driver.requests - worker->before.driver.requests;
        result->stats.polls += worker->after.driver.polls - worker->before.driver.polls;
        if (worker->error)
            result->error = worker->error;
    }
}

static double per(uint64_t what, uint64_t of)
{
    return of ? (double)what / (double)of : 0;
}

static json_t *describe(const struct bench *bench, const struct bench_result *r)
{
    static const char *const rws[] = {"read", "write", "randread", "randwrite", "rw", "randrw", "flush"};
    static const char *const clients[] = {"poll", "sleep", "yield"};
    const struct settings *s = bench->settings;
    double seconds = (double)r->ns / 1e9;
    json_t *device = json_object();

    if (r->device.has_cpu) {
        json_object_set_new(device, "cpu_seconds", json_real((double)r->device.cpu_ns / 1e9));
        json_object_set_new(
            device, "iops_per_cpu_second",
            json_real(r->device.cpu_ns ? (double)r->done * 1e9 / (double)r->device.cpu_ns : 0.0));
    }
    if (r->device.has_syscalls)
        json_object_set_new(device, "syscalls_per_request", json_real(per(r->device.syscalls, r->done)));
    if (r->device.has_interposed) {
        json_object_set_new(device, "allocations", json_integer((json_int_t)r->device.allocations));
        json_object_set_new(device, "locks", json_integer((json_int_t)r->device.locks));
        json_object_set_new(device, "allocations_per_request",
                            json_real(per(r->device.allocations, r->done)));
        json_object_set_new(device, "locks_per_request", json_real(per(r->device.locks, r->done)));
    }
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:f, s:I, s:f, s:f, s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f}, "
        "s:f, s:f, s:o}",
        "device_name", bench->rig->own ? "own" : bench->rig->path, "rw", rws[s->rw], "bs",
        (json_int_t)s->block_bytes, "qd", (json_int_t)s->depth, "queues", (json_int_t)s->queues, "client",
        clients[s->client], "ring", s->ring == RING_PACKED ? "packed" : "split", "seconds", seconds,
        "requests", (json_int_t)r->done, "iops", (double)r->done / seconds, "bytes_per_second",
        (double)(r->done * s->block_bytes) / seconds, "latency_us", "mean",
        per(r->latency.total_ns, r->latency.count) / 1e3, "min",
        (double)(r->latency.count ? r->latency.min_ns : 0) / 1e3, "p50",
        (double)latency_percentile(&r->latency, 50) / 1e3, "p90",
        (double)latency_percentile(&r->latency, 90) / 1e3, "p99",
        (double)latency_percentile(&r->latency, 99) / 1e3, "p99.9",
        (double)latency_percentile(&r->latency, 99.9) / 1e3, "max", (double)r->latency.max_ns / 1e3,
        "kicks_per_request", per(r->stats.kicks, r->stats.requests), "interrupts_per_request",
        per(r->interrupts, r->stats.requests), "device", device);
}

static double real_at(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static void print_text(const json_t *all)
{
    const json_t *latency = json_object_get(all, "latency_us"), *device = json_object_get(all, "device");

    printf("%.0f operations/s, %.1f MiB/s (%lld requests in %.2f s)\n", real_at(all, "iops"),
           real_at(all, "bytes_per_second") / 1048576,
           (long long)json_integer_value(json_object_get(all, "requests")), real_at(all, "seconds"));
    printf("latency, us: mean %.1f, min %.1f, 50%% %.1f, 90%% %.1f, 99%% %.1f, 99.9%% %.1f, max %.1f\n",
           real_at(latency, "mean"), real_at(latency, "min"), real_at(latency, "p50"),
           real_at(latency, "p90"), real_at(latency, "p99"), real_at(latency, "p99.9"),
           real_at(latency, "max"));
    printf("for each request: %.4f kicks, %.4f interrupts", real_at(all, "kicks_per_request"),
           real_at(all, "interrupts_per_request"));
    if (json_object_get(device, "syscalls_per_request"))
        printf(", %.4f system calls of the device", real_at(device, "syscalls_per_request"));
    if (json_object_get(device, "allocations"))
        printf(", %.4f heap allocations, %.4f locks", real_at(device, "allocations_per_request"),
               real_at(device, "locks_per_request"));
    if (json_object_get(device, "cpu_seconds"))
        printf("\ndevice: %.3f CPU seconds, %.0f operations per CPU second\n", real_at(device, "cpu_seconds"),
               real_at(device, "iops_per_cpu_second"));
    else
        printf("\ndevice: not measured, its process has ended meanwhile\n");
}

static bool workers_make(struct bench *bench)
{
    const struct settings *s = bench->settings;
    uint64_t span = bench->rig->info.capacity_sectors, blocks;

    bench->block_sectors = s->block_bytes / VIRTIO_BLK_SECTOR_BYTES;
    if (s->size && s->size / VIRTIO_BLK_SECTOR_BYTES < span)
        span = s->size / VIRTIO_BLK_SECTOR_BYTES;
    blocks = span / bench->block_sectors / s->queues;
    bench->workers = calloc(s->queues, sizeof(*bench->workers));
    if (!bench->workers || !blocks)
        return false;
    for (unsigned q = 0; q < s->queues; q++) {
        struct bench_worker *worker = &bench->workers[q];

        *worker = (struct bench_worker){.bench = bench, .queue = q, .first = q * blocks, .blocks = blocks};
        worker->chance.state = s->seed * 1000003 + q;
        latency_clear(&worker->latency);
        worker->slots = calloc(s->depth, sizeof(*worker->slots));
        if (!worker->slots)
            return false;
        for (unsigned i = 0; i < s->depth; i++) {
            struct bench_slot *slot = &worker->slots[i];
            uint8_t *buf = hosted_alloc(bench->rig->hosted, s->block_bytes, 4096);

            if (!buf)
                return false;
            memset(buf, 0x5a + (int)i, s->block_bytes); /* not zeroes: those may be stored as none */
            slot->worker = worker;
            slot->seg = (struct vblk_seg){buf, s->block_bytes};
            slot->request = (struct vblk_request){.complete = bench_complete, .opaque = slot};
            if (s->rw != RW_FLUSH) {
                slot->request.segs = &slot->seg;
                slot->request.nsegs = 1;
            }
        }
    }
    return true;
}

int command_bench(const struct settings *settings)
{
    struct error err = {""};
    struct rig rig;
    struct bench bench = {.settings = settings, .rig = &rig};
    struct bench_result *result = calloc(1, sizeof(*result));
    json_t *all = NULL;
    int code;

    if (!result)
        return 1;
    if (!settings->depth || settings->depth > 32768 || !settings->block_bytes ||
        settings->block_bytes % VIRTIO_BLK_SECTOR_BYTES || settings->block_bytes > (64u << 20)) {
        log_message("--qd has to be 1 to 32768, and --bs a multiple of 512 of at most 64m (see `ringside "
                    "bench --help`)");
        free(result);
        return 2;
    }
    code =
        rig_open(&rig, settings, settings->queues * settings->depth * (settings->block_bytes + 4096), &err);
    if (code < 0) {
        log_message("%s", err.text);
    } else if (!workers_make(&bench)) {
        log_message("no memory, or the disk is smaller than a block for each queue");
        code = -ENOMEM;
    } else {
        run(&bench, result);
        code = result->error;
        if (code < 0)
            log_message("a request failed: %s", name_of_error(code));
        else
            all = describe(&bench, result);
    }
    if (all && settings->json) {
        json_dumpf(all, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        putchar('\n');
    } else if (all) {
        print_text(all);
    }
    json_decref(all);
    for (unsigned q = 0; bench.workers && q < settings->queues; q++)
        free(bench.workers[q].slots);
    free(bench.workers);
    free(result);
    rig_close(&rig);
    return code < 0 || !all ? 1 : 0;
}
