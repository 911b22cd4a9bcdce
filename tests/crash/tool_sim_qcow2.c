/*
 * qcow2 over a simulated disk, everything under one seed: several loops, clients that write, zero, discard,
 * flush and read back; injected errors; the power goes at any step; the image is opened again, checked, and
 * every sector compared with what it may hold.
 *
 *   tool_sim_qcow2 [--seed=N] [--seeds=N] [--save=DIR] [--twice] [--lying-disk] [--verbose]
 *
 * What may a sector hold after a power loss? The last write that a completed flush covered, or any later one,
 * acknowledged or not; never another sector's bytes, and no mixture. --save leaves the image of each crash in
 * DIR/SEED, for qemu-img. --lying-disk makes flushes do nothing, which has to be noticed. --twice runs each
 * seed twice and compares the digests. A failure prints the seed.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/aio/sim_disk.h"
#include "host/block/backend.h"
#include "host/qcow2/qcow2.h"
#include "host/runtime/iothread.h"
#include "host/runtime/sim.h"
#include "tests/crash/crash_sector.h"
#include "tests/crash/crash_wait.h"

#define BASE           "/base.raw"
#define IMAGE          "/disk.qcow2"
#define CLIENTS_MAX    12
#define LOOPS_MAX_HERE 3
#define SECTOR         CRASH_SECTOR_BYTES
#define OP_BYTES_MAX   (256u * 1024u)

/* ---- the model ---- */

/* What every sector of the backing file holds, as if it had been written so. */
#define BASE_NUMBER 1

/* A value that a sector was given, oldest first in its list. */
struct value {
    struct value *next;
    uint64_t number;
    uint64_t acked; /* order of acknowledgement; 0: not (yet) acknowledged, and maybe never */
    bool replaces;  /* nothing older can be there any more, once it is acknowledged */
};

struct run {
    uint64_t seed;
    struct sim *sim;
    struct sim_disk *disk;
    struct loop *main_loop;
    struct iothread *threads[LOOPS_MAX_HERE];
    unsigned loops, clients;
    struct qcow2_create_options create;
    struct open_options open;
    struct blk *blk;
    struct value **sectors;
    uint64_t sector_count, number, order;
    uint32_t unit_sectors; /* which client may touch what: units go round */
    unsigned running;
    uint64_t base_sectors; /* in the backing file; 0: there is none */
    bool stop, faults, snapshots;
    uint64_t operations, failures, crashes, lost;
};

static bool verbose, lying;
static struct run *current;

static __attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    printf("seed %llu, step %llu: ", (unsigned long long)current->seed,
           (unsigned long long)sim_steps(current->sim));
    vprintf(format, args);
    printf("\n# clusters %u, refcount bits %u, lazy %d, extended %d, version %u, clients %u, loops %u, unit "
           "%u\n",
           current->create.cluster_bytes, current->create.refcount_bits, current->create.lazy_refcounts,
           current->create.extended_l2, current->create.version, current->clients, current->loops,
           current->unit_sectors);
    printf("# base %llu sectors, snapshots %d, crash %llu\n", (unsigned long long)current->base_sectors,
           current->snapshots, (unsigned long long)current->crashes);
    va_end(args);
    fflush(stdout);
    _Exit(1);
}

static uint64_t draw(struct run *run, uint64_t n)
{
    return sim_below(run->sim, SIM_LOAD, n);
}

static void fill(uint64_t sector, uint64_t number, uint8_t *data)
{
    if (number)
        crash_sector_fill(data, sector, number);
    else
        memset(data, 0, SECTOR);
}

/* The number that a sector's bytes stand for; fails on what was never written there. */
static uint64_t number_in(struct run *run, uint64_t sector, const uint8_t *data, const char *when)
{
    uint64_t number, whose;
    enum crash_sector_kind kind = crash_sector_look(data, sector, &number, &whose);

    if (kind == CRASH_SECTOR_ZERO)
        return 0;
    if (kind == CRASH_SECTOR_OTHER)
        fail("%s: sector %llu is sector %llu's (write %llu)", when, (unsigned long long)sector,
             (unsigned long long)whose, (unsigned long long)number);
    if (kind == CRASH_SECTOR_MIXTURE)
        fail("%s: sector %llu is a mixture (write %llu)", when, (unsigned long long)sector,
             (unsigned long long)number);
    if (kind == CRASH_SECTOR_STRANGE || number > run->number)
        fail("%s: sector %llu holds garbage", when, (unsigned long long)sector);
    return number;
}

static void forget(struct value **list)
{
    while (*list) {
        struct value *v = *list;

        *list = v->next;
        free(v);
    }
}

static struct value *remember(struct value **list, uint64_t number, bool replaces)
{
    struct value *v = calloc(1, sizeof(*v));

    if (!v)
        abort();
    while (*list)
        list = &(*list)->next;
    v->number = number;
    v->replaces = replaces;
    *list = v;
    return v;
}

/* All that was acknowledged up to ORDER is durable: what an acknowledged value replaced is gone for good. */
static void trim(struct run *run, uint64_t order)
{
    for (uint64_t s = 0; s < run->sector_count; s++) {
        struct value *last = NULL;

        for (struct value *v = run->sectors[s]; v; v = v->next) {
            if (v->replaces && v->acked && v->acked <= order)
                last = v;
        }
        while (last && run->sectors[s] != last) {
            struct value *v = run->sectors[s];

            run->sectors[s] = v->next;
            free(v);
        }
    }
}

/* May SECTOR hold NUMBER? Without a crash only what came after the last acknowledged replacement counts. */
static bool possible(struct run *run, uint64_t sector, uint64_t number, bool crashed)
{
    bool found = false;

    for (struct value *v = run->sectors[sector]; v; v = v->next) {
        if (!crashed && v->replaces && v->acked)
            found = false;
        found |= v->number == number;
    }
    return found;
}

static void compare(struct run *run, uint64_t first, uint64_t count, const uint8_t *data, bool crashed,
                    const char *when)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t number = number_in(run, first + i, data + i * SECTOR, when);

        if (!possible(run, first + i, number, crashed)) {
            struct value *last = run->sectors[first + i];

            while (last && last->next)
                last = last->next;
            fail("%s: sector %llu holds write %llu, which is not what it may hold (the last was %llu)", when,
                 (unsigned long long)(first + i), (unsigned long long)number,
                 (unsigned long long)(last ? last->number : 0));
        }
    }
}

/* ---- requests ---- */

struct client {
    struct run *run;
    unsigned index;
    uint8_t *buffer;
};

/* Some sectors that are this client's alone, in one of its units. */
static uint64_t pick(struct client *client, uint64_t *count)
{
    struct run *run = client->run;
    uint64_t unit = run->unit_sectors, units = run->sector_count / unit;
    uint64_t mine = units / run->clients + (client->index < units % run->clients);
    uint64_t first, n;

    if (!mine)
        mine = 1;
    first = (draw(run, mine) * run->clients + client->index) * unit;
    n = 1 + draw(run, unit);
    if (n > OP_BYTES_MAX / SECTOR)
        n = OP_BYTES_MAX / SECTOR;
    *count = n;
    return first + draw(run, unit - n + 1);
}

enum kind { WRITE, WRITE_FUA, ZERO, ZERO_UNMAP, DISCARD, FLUSH, READ };

static void coroutine_fn change(struct client *client, enum kind kind)
{
    struct run *run = client->run;
    struct crash_wait w = crash_wait_init();
    uint64_t count, first = pick(client, &count), number = kind <= WRITE_FUA ? ++run->number : 0;
    struct value **values = calloc(count, sizeof(struct value *));
    struct iovec iov = {client->buffer, count * SECTOR};
    uint64_t order;
    int ret;

    if (!values)
        abort();
    for (uint64_t i = 0; i < count; i++) {
        /* A discard may do nothing. */
        values[i] = remember(&run->sectors[first + i], number, kind != DISCARD);
        if (kind == DISCARD && first + i < run->base_sectors)
            remember(&run->sectors[first + i], BASE_NUMBER, false); /* or let the backing file show */
        fill(first + i, number, client->buffer + i * SECTOR);
    }
    w.request.trace_id = number;
    switch (kind) {
    case WRITE:
    case WRITE_FUA:
        blk_aio_pwritev(run->blk, &w.request, first * SECTOR, count * SECTOR, &iov, 1,
                        kind == WRITE_FUA ? NODE_IO_FUA : 0);
        break;
    case ZERO:
    case ZERO_UNMAP:
        blk_aio_pwrite_zeroes(run->blk, &w.request, first * SECTOR, count * SECTOR,
                              kind == ZERO_UNMAP ? NODE_IO_MAY_UNMAP : 0);
        break;
    default:
        blk_aio_pdiscard(run->blk, &w.request, first * SECTOR, count * SECTOR);
        break;
    }
    ret = crash_co_wait(&w);
    run->operations++;
    if (run->stop) {
        /* The power is gone: nobody is told anything any more. */
    } else if (ret < 0) {
        if (!run->faults)
            fail("an operation on sector %llu failed: %s", (unsigned long long)first, strerror(-ret));
        run->failures++;
    } else {
        order = ++run->order;
        for (uint64_t i = 0; i < count; i++)
            values[i]->acked = order;
        if (kind == WRITE_FUA) {
            for (uint64_t i = 0; i < count; i++) {
                while (run->sectors[first + i] != values[i]) {
                    struct value *v = run->sectors[first + i];

                    run->sectors[first + i] = v->next;
                    free(v);
                }
            }
        }
    }
    free(values);
}

static void coroutine_fn flush(struct client *client)
{
    struct run *run = client->run;
    struct crash_wait w = crash_wait_init();
    uint64_t order = run->order;
    int ret;

    blk_aio_flush(run->blk, &w.request);
    ret = crash_co_wait(&w);
    if (run->stop)
        return;
    if (ret == 0)
        trim(run, order);
    else if (!run->faults)
        fail("a flush failed: %s", strerror(-ret));
}

static void coroutine_fn read_back(struct client *client)
{
    struct run *run = client->run;
    struct crash_wait w = crash_wait_init();
    uint64_t count, first = pick(client, &count);
    struct iovec iov = {client->buffer, count * SECTOR};
    int ret;

    memset(client->buffer, 0xee, count * SECTOR);
    blk_aio_preadv(run->blk, &w.request, first * SECTOR, count * SECTOR, &iov, 1);
    ret = crash_co_wait(&w);
    if (run->stop)
        return;
    if (ret == 0)
        compare(run, first, count, client->buffer, false, "reading back");
    else if (!run->faults)
        fail("a read failed: %s", strerror(-ret));
}

static void client_main(void *arg)
{
    static const enum kind mix[] = {WRITE,      WRITE,   WRITE, WRITE, WRITE_FUA, ZERO,
                                    ZERO_UNMAP, DISCARD, FLUSH, READ,  READ};
    struct client client = *(struct client *)arg;
    struct run *run = client.run;

    client.buffer = aligned_alloc(4096, OP_BYTES_MAX);
    if (!client.buffer)
        abort();
    while (!run->stop) {
        enum kind kind = mix[draw(run, sizeof(mix) / sizeof(*mix))];

        if (kind == FLUSH)
            flush(&client);
        else if (kind == READ)
            read_back(&client);
        else
            change(&client, kind);
        if (draw(run, 4) == 0)
            co_sleep_ns(draw(run, 300000));
    }
    free(client.buffer);
    run->running--;
}

static void start_coroutine(co_entry *entry, void *opaque)
{
    struct coroutine *co = co_create(entry, opaque);

    if (!co)
        abort();
    co_enter(co);
}

static void start_client(void *opaque)
{
    start_coroutine(client_main, opaque);
}

/* Takes snapshots and drops them, while others write. */
static void snapshots_main(void *arg)
{
    struct run *run = arg;
    struct node *node = blk_node(run->blk);
    struct error err = {""};
    unsigned taken = 0;

    while (!run->stop) {
        struct qcow2_snapshot_info *list = NULL;
        size_t count = 0;
        char name[32];
        int ret;

        co_sleep_ns(draw(run, 5000000));
        if (run->stop)
            break;
        if (qcow2_snapshots(node, &list, &count) == 0 && count && draw(run, 3) == 0) {
            snprintf(name, sizeof(name), "%s", list[draw(run, count)].name);
            ret = qcow2_co_snapshot_delete(node, name, &err);
        } else {
            snprintf(name, sizeof(name), "s%llu-%u", (unsigned long long)run->crashes, taken++);
            ret = qcow2_co_snapshot_create(node, name, &err);
        }
        free(list);
        if (ret < 0 && ret != -ENOTSUP && !run->faults && !run->stop)
            fail("snapshot %s: %s", name, err.text);
    }
    run->running--;
}

/* ---- one life of the image, from open to power loss or close ---- */

static bool clients_ended(void *opaque)
{
    return !((struct run *)opaque)->running;
}

struct check_call {
    struct run *run;
    unsigned fix;
    bool print;
    struct qcow2_check result;
    int ret;
};

static void print_finding(void *opaque, const char *line)
{
    const struct check_call *call = opaque;

    if (call->print)
        printf("# %s\n", line);
}

static void check_entry(void *opaque)
{
    struct check_call *call = opaque;
    struct error err = {""};

    call->ret = qcow2_co_check(blk_node(call->run->blk), call->fix, &call->result, print_finding, call, &err);
    if (call->ret < 0 && call->ret != -ENOTSUP)
        fail("check cannot be done: %s", err.text);
}

static void open_image(struct run *run, bool check_only)
{
    struct open_options options = run->open;
    struct error err = {""};

    options.check_only = check_only;
    run->blk = blk_open(IMAGE, &options, &err);
    if (!run->blk)
        fail("the image cannot be opened: %s", err.text);
}

static void check_image(struct run *run, const char *when, bool leaks_allowed, unsigned fix)
{
    struct check_call call = {.run = run, .fix = fix};

    open_image(run, true);
    if (loop_run_coroutine(run->main_loop, check_entry, &call) < 0)
        fail("no coroutine for the check");
    if (call.ret == 0 && (call.result.corruptions || (call.result.leaks && !leaks_allowed))) {
        struct check_call again = {.run = run, .print = true};

        (void)loop_run_coroutine(run->main_loop, check_entry, &again);
    }
    if (blk_close(run->blk) < 0)
        fail("%s: closing after the check failed", when);
    if (call.ret == -ENOTSUP)
        return;
    if (call.result.corruptions || call.result.check_errors)
        fail("%s: check finds %llu corruptions, %llu errors", when,
             (unsigned long long)call.result.corruptions, (unsigned long long)call.result.check_errors);
    if (call.result.leaks && !leaks_allowed)
        fail("%s: check finds %llu leaked clusters", when, (unsigned long long)call.result.leaks);
}

struct verify_call {
    struct run *run;
    bool crashed;
    const char *when;
};

/* Reads everything; what is there is all that the model knows from now on. */
static void verify_entry(void *opaque)
{
    struct verify_call *call = opaque;
    struct run *run = call->run;
    uint8_t *buffer = aligned_alloc(4096, OP_BYTES_MAX);

    if (!buffer)
        abort();
    for (uint64_t at = 0; at < run->sector_count; at += OP_BYTES_MAX / SECTOR) {
        struct crash_wait w = crash_wait_init();
        uint64_t count =
            run->sector_count - at < OP_BYTES_MAX / SECTOR ? run->sector_count - at : OP_BYTES_MAX / SECTOR;
        struct iovec iov = {buffer, count * SECTOR};
        int ret;

        blk_aio_preadv(run->blk, &w.request, at * SECTOR, count * SECTOR, &iov, 1);
        ret = crash_co_wait(&w);
        if (ret < 0)
            fail("%s: sector %llu cannot be read: %s", call->when, (unsigned long long)at, strerror(-ret));
        compare(run, at, count, buffer, call->crashed, call->when);
        for (uint64_t i = 0; i < count; i++) {
            uint64_t number = number_in(run, at + i, buffer + i * SECTOR, call->when);
            struct value *v;

            for (v = run->sectors[at + i]; v; v = v->next)
                run->lost += v->acked && v->next && v->number == number && call->crashed;
            forget(&run->sectors[at + i]);
            v = remember(&run->sectors[at + i], number, true);
            v->acked = 1;
        }
    }
    free(buffer);
}

static void verify(struct run *run, bool crashed, const char *when)
{
    struct verify_call call = {run, crashed, when};

    open_image(run, false);
    if (loop_run_coroutine(run->main_loop, verify_entry, &call) < 0)
        fail("no coroutine to verify with");
    if (blk_close(run->blk) < 0)
        fail("%s: closing after reading failed", when);
}

static void live(struct run *run, bool crash)
{
    static const uint32_t rates[] = {0, 0, 0, 2000, 20000};
    struct sim_disk_options *disk = sim_disk_options(run->disk);
    struct client clients[CLIENTS_MAX];
    uint64_t steps = 50 + draw(run, 3000);
    uint32_t rate = rates[draw(run, 5)];

    open_image(run, false);
    disk->write_error_ppm = disk->read_error_ppm = rate;
    /* After a failed flush nothing is written any more: interesting, but not often. */
    disk->flush_error_ppm = rate / 20;
    disk->flush_lies = lying;
    disk->no_space_ppm = draw(run, 4) ? 0 : rate;
    run->faults = rate > 0;
    run->stop = false;
    run->running = run->clients;
    for (unsigned i = 0; i < run->clients; i++) {
        struct iothread *thread = run->threads[i % run->loops];

        clients[i] = (struct client){.run = run, .index = i};
        iothread_call(thread, start_client, &clients[i]);
    }
    if (run->snapshots) {
        run->running++;
        start_coroutine(snapshots_main, run);
    }
    while (steps--)
        sim_step(run->sim);
    run->stop = true;
    if (crash) {
        sim_disk_power_loss(run->disk);
        run->crashes++;
    }
    if (!sim_run_until(run->sim, clients_ended, run, 10000000))
        fail("requests are stuck");
    disk->write_error_ppm = disk->read_error_ppm = disk->flush_error_ppm = disk->no_space_ppm = 0;
    if (blk_close(run->blk) < 0 && !crash && !run->faults)
        fail("closing failed");
}

static void make_base(struct run *run)
{
    uint8_t *data = malloc(run->base_sectors * SECTOR);

    if (!data)
        abort();
    for (uint64_t s = 0; s < run->base_sectors; s++)
        fill(s, BASE_NUMBER, data + s * SECTOR);
    if (sim_disk_write_file(run->disk, BASE, data, run->base_sectors * SECTOR) < 0)
        abort();
    free(data);
}

static void create_entry(void *opaque)
{
    struct run *run = opaque;
    struct error err = {""};

    if (qcow2_co_create(IMAGE, &run->create, &err) < 0)
        fail("creating: %s", err.text);
}

static void save(struct run *run, const char *directory)
{
    char path[512];
    int ret;

    snprintf(path, sizeof(path), "%s/%llu", directory, (unsigned long long)run->seed);
    (void)mkdir(path, 0777); /* there is one for each seed, and it may be there from the last crash */
    if (run->base_sectors) {
        snprintf(path, sizeof(path), "%s/%llu/base.raw", directory, (unsigned long long)run->seed);
        ret = sim_disk_save(run->disk, BASE, path);
        if (ret < 0)
            fail("%s: %s", path, strerror(-ret));
    }
    snprintf(path, sizeof(path), "%s/%llu/%llu.qcow2", directory, (unsigned long long)run->seed,
             (unsigned long long)run->crashes);
    ret = sim_disk_save(run->disk, IMAGE, path);
    if (ret < 0)
        fail("%s: %s", path, strerror(-ret));
}

static uint64_t one_seed(uint64_t seed, const char *directory)
{
    static const uint32_t clusters[] = {512, 4096, 65536, 65536, 16384, 131072};
    static const uint32_t units[] = {1, 8, 8, 32, 128, 500};
    static const struct sim_disk_options disk_options = {.latency_min_ns = 5000,
                                                         .latency_max_ns = 300000,
                                                         .flush_min_ns = 50000,
                                                         .flush_max_ns = 2000000,
                                                         .late_ppm = 5000,
                                                         .late_ns = 20000000,
                                                         .short_ppm = 20000,
                                                         .no_zeroes_ppm = 50000};
    struct run *run = calloc(1, sizeof(*run));
    unsigned crashes;
    uint64_t digest;

    if (!run)
        abort();
    current = run;
    run->seed = seed;
    run->sim = sim_start(seed);
    run->main_loop = loop_create("main", NULL);
    run->disk = sim_disk_create(run->sim, &disk_options);
    sim_disk_install(run->disk);
    run->loops = 1 + (unsigned)draw(run, LOOPS_MAX_HERE);
    run->clients = 1 + (unsigned)draw(run, CLIENTS_MAX);
    run->unit_sectors = units[draw(run, sizeof(units) / sizeof(*units))];
    run->create.cluster_bytes = clusters[draw(run, sizeof(clusters) / sizeof(*clusters))];
    run->create.version = draw(run, 5) ? 3 : 2;
    if (run->create.version == 3) {
        run->create.refcount_bits = 1u << draw(run, 7);
        run->create.lazy_refcounts = draw(run, 4) == 0;
        run->create.extended_l2 = run->create.cluster_bytes >= 16384 && draw(run, 4) == 0;
    }
    run->create.size = (1 + draw(run, 6)) * 512 * 1024;
    if (run->create.cluster_bytes == 512)
        run->create.size /= 2;
    run->sector_count = run->create.size / SECTOR;
    if (run->sector_count / run->unit_sectors < run->clients)
        run->clients = (unsigned)(run->sector_count / run->unit_sectors);
    run->open.format = "qcow2";
    if (draw(run, 2))
        run->open.l2_cache_bytes = run->open.refcount_cache_bytes =
            1 + draw(run, 4) * run->create.cluster_bytes;
    run->sectors = calloc(run->sector_count, sizeof(struct value *));
    if (!run->main_loop || !run->disk || !run->sectors)
        abort();
    run->number = BASE_NUMBER;
    if (draw(run, 3) == 0) {
        run->base_sectors = 1 + draw(run, run->sector_count + run->sector_count / 4);
        run->create.backing_file = "base.raw";
        run->create.backing_format = "raw";
        make_base(run);
    }
    run->snapshots = draw(run, 4) == 0 && (!run->create.refcount_bits || run->create.refcount_bits >= 8);
    for (uint64_t s = 0; s < run->sector_count; s++)
        remember(&run->sectors[s], s < run->base_sectors ? BASE_NUMBER : 0, true)->acked = 1;
    for (unsigned i = 0; i < run->loops; i++)
        run->threads[i] = iothread_start("sim", 0, NULL);

    if (loop_run_coroutine(run->main_loop, create_entry, run) < 0)
        abort();
    for (crashes = 1 + (unsigned)draw(run, 4); crashes; crashes--) {
        live(run, true);
        if (directory)
            save(run, directory);
        if (!run->create.lazy_refcounts)
            check_image(run, "after a power loss", true, 0);
        verify(run, true, "after a power loss");
        /* What was lost leaks; then the image is as good as new. */
        check_image(run, "after a repair", false,
                    QCOW2_FIX_LEAKS | (run->create.lazy_refcounts ? QCOW2_FIX_ERRORS : 0));
    }
    live(run, false);
    check_image(run, "after a clean close", run->faults, 0);
    verify(run, run->faults, "after a clean close");

    if (verbose)
        printf(
            "# seed %llu: %llu operations, %llu failed, %llu crashes, %llu sectors went back, %llu steps\n",
            (unsigned long long)seed, (unsigned long long)run->operations, (unsigned long long)run->failures,
            (unsigned long long)run->crashes, (unsigned long long)run->lost,
            (unsigned long long)sim_steps(run->sim));
    for (unsigned i = 0; i < run->loops; i++)
        iothread_stop(run->threads[i]);
    digest = sim_digest(run->sim);
    for (uint64_t s = 0; s < run->sector_count; s++)
        forget(&run->sectors[s]);
    free(run->sectors);
    sim_disk_destroy(run->disk);
    loop_destroy(run->main_loop);
    sim_end(run->sim);
    free(run);
    return digest;
}

int main(int argc, char **argv)
{
    uint64_t seed = 1, seeds = 1;
    const char *directory = NULL;
    bool twice = false;

    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--seed=", 7) == 0)
            seed = strtoull(argv[i] + 7, NULL, 10);
        else if (strncmp(argv[i], "--seeds=", 8) == 0)
            seeds = strtoull(argv[i] + 8, NULL, 10);
        else if (strncmp(argv[i], "--save=", 7) == 0)
            directory = argv[i] + 7;
        else if (strcmp(argv[i], "--twice") == 0)
            twice = true;
        else if (strcmp(argv[i], "--lying-disk") == 0)
            lying = true;
        else if (strcmp(argv[i], "--verbose") == 0)
            verbose = true;
        else {
            fprintf(stderr,
                    "usage: %s [--seed=N] [--seeds=N] [--save=DIR] [--twice] [--lying-disk] [--verbose]\n",
                    argv[0]);
            return 2;
        }
    }
    for (uint64_t end = seed + seeds; seed < end; seed++) {
        uint64_t digest = one_seed(seed, directory);

        if (twice && one_seed(seed, NULL) != digest) {
            printf("seed %llu: two runs differ\n", (unsigned long long)seed);
            return 1;
        }
    }
    return 0;
}
