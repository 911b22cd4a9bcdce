/*
 * `ringside sim`: driver, device, block layer, qcow2 and disk in one thread under one seed. The seed chooses
 * the ring, the features, the image, who takes the next turn, how long the disk takes, what fails, which kick
 * or interrupt is lost, and when the power goes. A failing seed is the whole bug report.
 *
 * Checked all the time: what is read is what was written (sim_model.h), every request is answered, nothing
 * comes to a standstill; with --replay a second run of the same seed takes the same steps.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/aio/sim_disk.h"
#include "host/qcow2/qcow2.h"
#include "tests/harness/commands.h"
#include "tests/harness/names.h"
#include "tests/harness/sim_machine.h"
#include "tests/harness/sim_model.h"

#define DISK_BYTES  (6u << 20)
#define SLOTS_MAX   24u
#define OP_SECTORS  256u
#define SEGS_MAX    6u
#define STEPS_STUCK 4000000u /* steps without an answer that are a standstill */
#define DEADLINE_NS 20000000u

struct sim_run;

struct sim_op {
    struct vblk_request request;
    struct sim_run *run;
    unsigned queue;
    bool busy;
    uint64_t sector, count, flush_order;
    uint32_t version;
    uint8_t *buf;
    struct vblk_seg segs[SEGS_MAX];
};

struct sim_run {
    const struct settings *settings;
    uint64_t seed;
    struct sim *sim;
    struct sim_disk *disk;
    struct loop *main_loop;
    struct iothread *control;
    struct sim_machine machine;
    struct hosted *hosted;
    struct sim_model model;
    struct vblk *disk_driver;
    void *memory;
    struct cmd_device_options device_options;
    struct vblk_config driver_config;
    struct sim_actor actor;
    struct sim_op ops[SLOTS_MAX];
    unsigned slots, queues;
    struct sim_disk_options chosen; /* how often what fails, */
    uint32_t chosen_lost_kick_ppm;  /* while the load runs */
    bool qcow2, faults, packed;
    bool in_step, closing;
    uint64_t next_ns, submitted, target, answered, failed, power_losses, recoveries;
    bool wrong;
    char why[320];
};

static void wrong(struct sim_run *run, const char *what)
{
    if (!run->wrong)
        snprintf(run->why, sizeof(run->why), "step %" PRIu64 ": %.280s", sim_steps(run->sim), what);
    run->wrong = true;
}

static uint64_t draw(struct sim_run *run, uint64_t n)
{
    return sim_below(run->sim, SIM_LOAD, n);
}

/* ---- the load: one actor that submits, kicks and polls ---- */

static bool overlaps(const struct sim_run *run, uint64_t sector, uint64_t count)
{
    for (unsigned i = 0; i < run->slots; i++)
        if (run->ops[i].busy && run->ops[i].sector < sector + count &&
            sector < run->ops[i].sector + run->ops[i].count)
            return true;
    return false;
}

static void op_done(struct vblk_request *request, int result)
{
    struct sim_op *op = request->opaque;
    struct sim_run *run = op->run;
    uint8_t data[OP_SECTORS * MODEL_SECTOR], *at = data;
    char why[200];

    op->busy = false;
    run->answered++;
    sim_digest_add(run->sim, run->answered << 8 | (uint8_t)-result);
    if (result < 0) {
        run->failed++;
        if (!run->faults && !run->closing) {
            snprintf(why, sizeof(why), "a %s failed though nothing was made to fail: %s",
                     name_of_op(request->op), name_of_error(result));
            wrong(run, why);
        }
        return;
    }
    switch (request->op) {
    case VBLK_READ:
        for (unsigned i = 0; i < request->nsegs; at += op->segs[i++].len)
            memcpy(at, op->segs[i].addr, op->segs[i].len);
        if (!sim_model_check(&run->model, op->sector, op->count, data, why))
            wrong(run, why);
        break;
    case VBLK_FLUSH:
        sim_model_flushed(&run->model, op->flush_order);
        break;
    default:
        sim_model_acked(&run->model, op->version, op->sector, op->count);
        break;
    }
}

static void lay_out(struct sim_run *run, struct sim_op *op, size_t bytes)
{
    unsigned want = 1 + (unsigned)draw(run, SEGS_MAX), n = 0;
    uint8_t *at = op->buf;

    while (bytes) {
        size_t len = n + 1 < want ? 1 + draw(run, bytes) : bytes;

        op->segs[n++] = (struct vblk_seg){at, len};
        at += len;
        bytes -= len;
    }
    op->request.segs = op->segs;
    op->request.nsegs = n;
}

static bool op_prepare(struct sim_run *run, struct sim_op *op)
{
    static const enum vblk_op kinds[] = {VBLK_READ,         VBLK_READ,    VBLK_READ,  VBLK_READ,
                                         VBLK_WRITE,        VBLK_WRITE,   VBLK_WRITE, VBLK_WRITE,
                                         VBLK_WRITE_ZEROES, VBLK_DISCARD, VBLK_FLUSH};
    enum vblk_op kind = kinds[draw(run, sizeof(kinds) / sizeof(kinds[0]))];
    uint64_t count = 1 + draw(run, draw(run, 4) ? 16 : OP_SECTORS),
             sector = draw(run, run->model.sectors - count + 1);
    uint8_t data[OP_SECTORS * MODEL_SECTOR], *at = data;

    if (draw(run, 3) == 0)
        sector &= ~(uint64_t)7;
    if (draw(run, 2))
        sector %= 1024; /* a crowded place */
    op->request = (struct vblk_request){.op = kind, .complete = op_done, .opaque = op};
    op->sector = op->count = 0;
    if (kind == VBLK_FLUSH) {
        op->flush_order = sim_model_order(&run->model);
        return true;
    }
    if (overlaps(run, sector, count))
        return false;
    op->sector = op->request.sector = sector;
    op->count = op->request.num_sectors = count;
    switch (kind) {
    case VBLK_READ:
        lay_out(run, op, count * MODEL_SECTOR);
        memset(op->buf, 0xee, count * MODEL_SECTOR);
        break;
    case VBLK_WRITE:
        lay_out(run, op, count * MODEL_SECTOR);
        op->version = sim_model_begin(&run->model, SIM_WRITE, sector, count);
        model_fill(&run->model.bytes, sector, count, op->version, data);
        for (unsigned i = 0; i < op->request.nsegs; at += op->segs[i++].len)
            memcpy(op->segs[i].addr, at, op->segs[i].len);
        break;
    case VBLK_WRITE_ZEROES:
        op->request.flags = draw(run, 2) ? VBLK_REQUEST_UNMAP : 0;
        op->version = sim_model_begin(&run->model, SIM_ZERO, sector, count);
        break;
    default:
        op->version = sim_model_begin(&run->model, SIM_DISCARD, sector, count);
        break;
    }
    return true;
}

static bool in_flight(const struct sim_run *run)
{
    for (unsigned i = 0; i < run->slots; i++)
        if (run->ops[i].busy)
            return true;
    return false;
}

static void submit_some(struct sim_run *run)
{
    unsigned burst = 1 + (unsigned)draw(run, 6);

    for (unsigned i = 0; i < run->slots && burst; i++) {
        struct sim_op *op = &run->ops[i];
        int code;

        if (op->busy || run->submitted >= run->target || !op_prepare(run, op))
            continue;
        burst--;
        op->busy = true;
        op->queue = (unsigned)draw(run, run->queues);
        run->submitted++;
        code = vblk_submit(run->disk_driver, op->queue, &op->request);
        if (code < 0)
            op_done(&op->request, code);
    }
}

static bool load_ready(void *opaque)
{
    const struct sim_run *run = opaque;

    if (run->in_step || run->wrong || run->closing)
        return false;
    return (run->submitted < run->target || in_flight(run)) && sim_now_ns(run->sim) >= run->next_ns;
}

static uint64_t load_deadline(void *opaque)
{
    const struct sim_run *run = opaque;

    return run->in_step || run->wrong || run->closing ? UINT64_MAX : run->next_ns;
}

static void load_step(void *opaque)
{
    struct sim_run *run = opaque;

    run->in_step = true;
    if (!run->closing && draw(run, 2))
        submit_some(run);
    for (unsigned q = 0; q < run->queues; q++) {
        if (draw(run, 4))
            vblk_kick(run->disk_driver, q);
        switch (draw(run, 4)) {
        case 0: /* interrupts on; without one (it may be lost) it looks again only now and then */
            if (!vblk_interrupts_on(run->disk_driver, q) && !sim_machine_interrupt(&run->machine, q) &&
                draw(run, 8))
                break;
            vblk_interrupts_off(run->disk_driver, q);
            vblk_poll(run->disk_driver, q);
            break;
        default:
            vblk_poll(run->disk_driver, q);
            break;
        }
    }
    if (run->machine.config_changed)
        vblk_config_changed(run->disk_driver);
    run->next_ns = sim_now_ns(run->sim) + draw(run, draw(run, 10) ? 30000 : 2000000);
    run->in_step = false;
}

/* ---- a life: from power on to power loss or a clean end ---- */

/* Making, opening and closing an image are spared: they may fail, and then there is nothing to test. */
static void faults_on(struct sim_run *run, bool on)
{
    struct sim_disk_options *disk = sim_disk_options(run->disk);

    disk->read_error_ppm = on ? run->chosen.read_error_ppm : 0;
    disk->write_error_ppm = on ? run->chosen.write_error_ppm : 0;
    disk->late_ppm = on ? run->chosen.late_ppm : 0;
    run->machine.lost_kick_ppm = on ? run->chosen_lost_kick_ppm : 0;
}

static bool machine_start(struct sim_run *run)
{
    struct error err = {""};
    struct cmd_device *device = cmd_device_start(&run->device_options, &err);
    char why[280];
    int code;

    if (!device) {
        snprintf(why, sizeof(why), "the image could not be opened: %.200s", err.text);
        wrong(run, why);
        return false;
    }
    sim_machine_init(&run->machine, run->sim, run->control, device, run->hosted, run->queues, 64);
    code = vblk_start(&run->disk_driver, run->memory, vblk_memory_bytes(&run->driver_config),
                      &run->machine.vtr, &run->machine.platform, &run->driver_config);
    if (code < 0) {
        snprintf(why, sizeof(why), "the driver could not start: %s", name_of_error(code));
        wrong(run, why);
        run->disk_driver = NULL;
        return false;
    }
    faults_on(run, true);
    run->closing = false;
    run->next_ns = 0;
    sim_actor_add(run->sim, &run->actor);
    return true;
}

static void machine_stop(struct sim_run *run)
{
    struct vblk_queue_stats stats;

    run->closing = true;
    faults_on(run, false);
    sim_actor_remove(run->sim, &run->actor);
    for (unsigned q = 0; run->disk_driver && q < run->queues; q++) {
        vblk_queue_stats(run->disk_driver, q, &stats);
        run->recoveries += stats.recoveries;
    }
    if (run->disk_driver)
        vblk_stop(run->disk_driver);
    run->disk_driver = NULL;
    for (unsigned i = 0; i < run->slots; i++)
        if (run->ops[i].busy)
            wrong(run, "a request was never answered");
    if (run->machine.device)
        cmd_device_stop(run->machine.device, NULL);
    run->machine.device = NULL;
}

static bool all_answered(void *opaque)
{
    struct sim_run *run = opaque;

    return run->wrong || (run->submitted >= run->target && !in_flight(run));
}

static bool run_some(struct sim_run *run, uint64_t requests)
{
    run->target += requests;
    run->next_ns = 0;
    if (!sim_run_until(run->sim, all_answered, run, STEPS_STUCK + requests * 20000))
        wrong(run, "everything stands still with requests in flight");
    return !run->wrong;
}

/* Some requests, and in their midst the power goes. */
static void run_and_lose_power(struct sim_run *run)
{
    uint64_t steps = draw(run, 3000);

    run->target += 1 + draw(run, 40);
    run->next_ns = 0;
    for (uint64_t i = 0; i < steps && !run->wrong; i++)
        sim_step(run->sim);
    sim_disk_power_loss(run->disk);
    run->power_losses++;
    run->submitted = run->target;
    machine_stop(run);
    sim_model_power_loss(&run->model);
}

static void read_all(struct sim_run *run)
{
    uint8_t *buf = hosted_alloc(run->hosted, OP_SECTORS * MODEL_SECTOR, 4096);
    char why[200];

    for (uint64_t sector = 0; buf && sector < run->model.sectors && !run->wrong; sector += OP_SECTORS) {
        uint64_t count = run->model.sectors - sector < OP_SECTORS ? run->model.sectors - sector : OP_SECTORS;
        int code = vblk_read(run->disk_driver, 0, sector, buf, count * MODEL_SECTOR);

        if (code < 0) {
            snprintf(why, sizeof(why), "reading everything back: %s", name_of_error(code));
            wrong(run, why);
        } else if (!sim_model_check(&run->model, sector, count, buf, why)) {
            wrong(run, why);
        }
    }
    hosted_free(run->hosted, buf, OP_SECTORS * MODEL_SECTOR);
}

struct create {
    struct sim_run *run;
    struct qcow2_create_options options;
    struct error err;
    int code;
};

static void co_create_image(void *opaque)
{
    struct create *create = opaque;

    create->code = qcow2_co_create("/disk", &create->options, &create->err);
}

static bool image_make(struct sim_run *run)
{
    static const uint32_t clusters[] = {512, 4096, 65536, 65536};
    struct create create = {.run = run};

    if (!run->qcow2) {
        uint8_t *zeroes = calloc(1, DISK_BYTES);
        int code = zeroes ? sim_disk_write_file(run->disk, "/disk", zeroes, DISK_BYTES) : -ENOMEM;

        free(zeroes);
        if (code < 0)
            wrong(run, "no memory for an image");
        return code == 0;
    }
    create.options.size = DISK_BYTES;
    create.options.cluster_bytes = clusters[draw(run, 4)];
    create.options.lazy_refcounts = draw(run, 2);
    if (loop_run_coroutine(run->main_loop, co_create_image, &create) < 0 || create.code < 0) {
        wrong(run, create.err.text);
        return false;
    }
    return true;
}

static void choose(struct sim_run *run)
{
    struct sim_disk_options *disk = sim_disk_options(run->disk);
    struct error err = {""};
    uint64_t refuse = 0;

    run->qcow2 = draw(run, 3) > 0;
    run->faults = draw(run, 2);
    run->packed = draw(run, 2);
    run->queues = 1 + (unsigned)draw(run, 3);
    run->slots = 1 + (unsigned)draw(run, SLOTS_MAX);
    if (!run->packed)
        refuse |= VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    if (draw(run, 2))
        refuse |= VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    if (draw(run, 2))
        refuse |= VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    if (draw(run, 2))
        refuse |= VIRTIO_BIT(VIRTIO_F_IN_ORDER);
    run->driver_config =
        (struct vblk_config){.num_queues = run->queues,
                             .queue_size = 8u << draw(run, 4),
                             .indirect_segs = refuse & VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) ? 0 : 16,
                             .refuse_features = refuse,
                             .deadline_ns = DEADLINE_NS};
    disk->latency_min_ns = 1000;
    disk->latency_max_ns = 1000 + draw(run, 400000);
    disk->flush_min_ns = 1000;
    disk->flush_max_ns = 1000 + draw(run, 1000000);
    disk->flush_lies = run->settings->lying_disk;
    disk->short_ppm = draw(run, 2) ? 20000 : 0;
    if (run->faults) {
        run->chosen.read_error_ppm = draw(run, 2) ? 2000 : 0;
        run->chosen.write_error_ppm = draw(run, 2) ? 2000 : 0;
        run->chosen.late_ppm = draw(run, 2) ? 1000 : 0;
        disk->late_ns = 3 * DEADLINE_NS;
    }
    run->chosen_lost_kick_ppm = run->faults && draw(run, 2) ? 2000 : 0;
    run->machine.lost_interrupt_ppm = draw(run, 2) ? 20000 : 0;

    cmd_device_options_init(&run->device_options);
    run->device_options.blk_file = "/disk";
    run->device_options.open.format = run->qcow2 ? "qcow2" : "raw";
    run->device_options.iothreads = 1 + (unsigned)draw(run, 2);
    run->device_options.poll_max_ns = draw(run, 2) ? 32768 : 0;
    run->device_options.device.num_queues = run->queues;
    run->device_options.device.request_merging = draw(run, 4) > 0;
    if (cmd_device_options_check(&run->device_options, &err) < 0)
        wrong(run, err.text);
}

static bool memory_make(struct sim_run *run)
{
    struct hosted_options hosted = {.arena_bytes = 32u << 20, .bounce_bytes = 1u << 20, .regions = 2};

    run->hosted = hosted_create(&hosted);
    run->memory = aligned_alloc(64, (vblk_memory_bytes(&run->driver_config) + 63) / 64 * 64);
    if (!run->hosted || !run->memory)
        return false;
    for (unsigned i = 0; i < run->slots; i++) {
        run->ops[i].run = run;
        run->ops[i].buf = hosted_alloc(run->hosted, OP_SECTORS * MODEL_SECTOR, 64);
        if (!run->ops[i].buf)
            return false;
    }
    return sim_model_init(&run->model, run->seed, DISK_BYTES / MODEL_SECTOR);
}

static void live(struct sim_run *run)
{
    uint64_t left = run->settings->steps;

    if (!image_make(run))
        return;
    while (left && !run->wrong && machine_start(run)) {
        uint64_t requests = 1 + draw(run, 400);

        requests = requests < left ? requests : left;
        left -= requests;
        run_some(run, requests);
        if (!run->wrong && draw(run, 3)) {
            run_and_lose_power(run);
            if (!run->wrong && draw(run, 2) && machine_start(run)) {
                faults_on(run, false);
                read_all(run);
                machine_stop(run);
            }
        } else {
            machine_stop(run);
        }
    }
    if (!run->wrong && machine_start(run)) {
        faults_on(run, false);
        read_all(run);
        machine_stop(run);
    }
}

/* The digest of the run; *FINE says whether all held. */
static uint64_t run_seed(const struct settings *settings, uint64_t seed, bool *fine, json_t *rows)
{
    struct sim_run *run = calloc(1, sizeof(*run));
    struct error err = {""};
    uint64_t digest = 0;

    *fine = false;
    if (!run)
        return 0;
    run->settings = settings;
    run->seed = seed;
    run->sim = sim_start(seed);
    run->main_loop = run->sim ? loop_create("main", &err) : NULL;
    run->control = run->main_loop ? iothread_start("control", 0, &err) : NULL;
    run->disk = run->control ? sim_disk_create(run->sim, NULL) : NULL;
    run->actor =
        (struct sim_actor){.ready = load_ready, .step = load_step, .deadline = load_deadline, .opaque = run};
    if (run->disk) {
        sim_disk_install(run->disk);
        choose(run);
        if (memory_make(run))
            live(run);
        else
            wrong(run, "no memory");
        digest = sim_digest(run->sim);
        *fine = !run->wrong;
        if (settings->verbose || run->wrong)
            printf("seed %" PRIu64 ": %s; %s, %s ring, %u queues, %u in flight, %u iothreads%s; %" PRIu64
                   " requests, %" PRIu64 " failed, %" PRIu64 " power losses, %" PRIu64 " recoveries, %" PRIu64
                   " steps\n",
                   seed, run->wrong ? run->why : "fine", run->qcow2 ? "qcow2" : "raw",
                   run->packed ? "packed" : "split", run->queues, run->slots, run->device_options.iothreads,
                   run->faults ? ", faults" : "", run->answered, run->failed, run->power_losses,
                   run->recoveries, sim_steps(run->sim));
        json_array_append_new(rows, json_pack("{s:I, s:b, s:s, s:I, s:I, s:I, s:I}", "seed", (json_int_t)seed,
                                              "passed", *fine, "why", run->why, "requests",
                                              (json_int_t)run->answered, "failed", (json_int_t)run->failed,
                                              "power_losses", (json_int_t)run->power_losses, "steps",
                                              (json_int_t)sim_steps(run->sim)));
        sim_disk_install(NULL);
    }
    if (run->disk)
        sim_disk_destroy(run->disk);
    if (run->control)
        iothread_stop(run->control);
    if (run->main_loop)
        loop_destroy(run->main_loop);
    if (run->sim)
        sim_end(run->sim);
    if (run->model.list)
        sim_model_free(&run->model);
    hosted_destroy(run->hosted);
    free(run->memory);
    free(run);
    return digest;
}

int command_sim(const struct settings *settings)
{
    json_t *rows = json_array();
    uint64_t failed = 0, done = 0;

    for (uint64_t seed = settings->seed; seed < settings->seed + settings->seeds; seed++) {
        bool fine, again;
        uint64_t digest = run_seed(settings, seed, &fine, rows);

        if (settings->replay && fine && run_seed(settings, seed, &again, rows) != digest) {
            printf("seed %" PRIu64 ": a second run took other steps\n", seed);
            fine = false;
        }
        done++;
        if (!fine) {
            failed++;
            printf("seed %" PRIu64 " failed; again: ringside sim --seed=%" PRIu64 " --steps=%" PRIu64 "\n",
                   seed, seed, settings->steps);
            break; /* what it left behind is not worth running on */
        }
        fflush(stdout);
    }
    if (settings->json) {
        json_t *all =
            json_pack("{s:b, s:I, s:O}", "passed", failed == 0, "seeds", (json_int_t)done, "runs", rows);

        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(all);
    } else {
        printf("%" PRIu64 " seeds, %" PRIu64 " failed\n", done, failed);
    }
    json_decref(rows);
    return failed ? 1 : 0;
}
