/*
 * `ringside verify`: random requests of every type that the device offers, on several queues at a time,
 * judged against a model in memory. Stops at the first byte that differs and names the request.
 *
 * Requests in flight never overlap, except reads with reads, so that the model is exact. Everything else is
 * left to chance: sizes, scatter lists at any byte, buffers inside and outside of shared memory. Bytes around
 * each segment are watched.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/harness/commands.h"
#include "tests/harness/names.h"
#include "tests/harness/verify.h"

#define SCAN_BYTES (256u << 10)

static uint64_t now_ns(const struct verify *v)
{
    return v->rig->platform.now_ns(v->rig->platform.ctx);
}

static bool enough(const struct worker *worker)
{
    const struct settings *s = worker->verify->settings;

    if (__atomic_load_n(&worker->verify->stop, __ATOMIC_ACQUIRE))
        return true;
    if (s->runtime_ms && now_ns(worker->verify) >= worker->verify->end_ns)
        return true;
    if (s->ops)
        return worker->submitted >= (s->ops + s->queues - 1) / s->queues;
    return worker->bytes >= s->bytes / s->queues;
}

static void fill_up(struct worker *worker)
{
    struct verify *v = worker->verify;

    for (unsigned i = 0; i < v->settings->depth && !enough(worker); i++) {
        struct slot *slot = &worker->slots[i];
        int code;

        if (slot->request.opaque || !verify_prepare(worker, slot))
            continue;
        worker->submitted++;
        worker->in_flight++;
        code = vblk_submit(v->rig->disk, worker->queue, &slot->request);
        if (code < 0)
            verify_finish(&slot->request, code);
    }
    vblk_kick(v->rig->disk, worker->queue);
}

/* The device stops and goes on, with requests of every queue in flight (3.4). */
static void suspend(struct verify *v)
{
    int code = vblk_suspend(v->rig->disk);

    if (code == -VBLK_EBUSY)
        return; /* another queue's owner is inside the driver */
    if (code == 0) {
        v->suspends++;
        do
            code = vblk_resume(v->rig->disk);
        while (code == -VBLK_EBUSY);
    }
    if (code < 0 && !v->settings->allow_errors) {
        char text[128];

        snprintf(text, sizeof(text), "suspending and resuming the device: %s", name_of_error(code));
        verify_stop(v, NULL, text);
    }
}

static void *worker_run(void *opaque)
{
    struct worker *worker = opaque;
    struct verify *v = worker->verify;

    rig_client_thread(v->rig, worker->queue);
    while (!enough(worker) || worker->in_flight) {
        /* Now and then the queue runs empty, so that its end and its beginning are seen too. */
        if (!enough(worker) && (worker->in_flight == 0 || !chance_percent(&worker->chance, 2)))
            fill_up(worker);
        if (worker->queue == 0) {
            rig_attend(v->rig);
            if (verify_offered(v, VIRTIO_F_SUSPEND) && !v->settings->reconnect &&
                chance_below(&worker->chance, 500) == 0)
                suspend(v);
        }
        if (worker->in_flight)
            rig_poll(v->rig, worker->queue);
        if (v->zones && enough(worker))
            verify_zones_leave(worker);
    }
    return NULL;
}

/* ---- the whole disk, before and after ---- */

static bool scan(struct verify *v, bool learn, int export_fd)
{
    uint8_t *buf = hosted_alloc(v->rig->hosted, SCAN_BYTES, 4096);
    struct model_difference difference;
    uint64_t step, count;
    bool fine = buf != NULL;

    if (!buf)
        verify_stop(v, NULL, "no memory for the pass over the whole disk");
    for (uint64_t sector = 0; fine && sector < v->model.sectors; sector += count) {
        int code;
        char text[160];

        step = SCAN_BYTES / MODEL_SECTOR;
        if (v->zones && verify_zones_end(v, sector) - sector < step)
            step = verify_zones_end(v, sector) - sector;
        count = v->model.sectors - sector < step ? v->model.sectors - sector : step;
        code = vblk_read(v->rig->disk, 0, sector, buf, count * MODEL_SECTOR);
        if (code < 0) {
            snprintf(text, sizeof(text),
                     "pass over the whole disk: reading %" PRIu64 " sectors at %" PRIu64 ": %s", count,
                     sector, name_of_error(code));
            verify_stop(v, NULL, text);
            fine = false;
        } else if (learn) {
            model_learn(&v->model, sector, count, buf);
        } else if (!model_check(&v->model, sector, count, buf, &difference)) {
            verify_stop_difference(v, NULL, &difference);
            fine = false;
        }
        if (fine && export_fd >= 0 &&
            pwrite(export_fd, buf, count * MODEL_SECTOR, (off_t)(sector * MODEL_SECTOR)) !=
                (ssize_t)(count * MODEL_SECTOR)) {
            verify_stop(v, NULL, "cannot write the exported file");
            fine = false;
        }
    }
    hosted_free(v->rig->hosted, buf, SCAN_BYTES);
    return fine;
}

static bool export_all(struct verify *v)
{
    int fd = open(v->settings->export_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool fine;

    if (fd < 0) {
        verify_stop(v, NULL, "cannot make the exported file");
        return false;
    }
    fine = ftruncate(fd, (off_t)(v->rig->info.capacity_sectors * MODEL_SECTOR)) == 0 && scan(v, false, fd);
    close(fd);
    return fine;
}

/* What needs no luck: the driver refuses what lies beyond the end (5.2.6.1), and the identity is stable. */
static void check_edges(struct verify *v)
{
    uint8_t buf[512];
    int code = vblk_read(v->rig->disk, 0, v->rig->info.capacity_sectors, buf, sizeof(buf));

    if (code != -VBLK_ERANGE && code != -VBLK_EINVAL)
        verify_stop(v, NULL, "a read beyond the capacity was not refused");
    if (vblk_get_id(v->rig->disk, 0, v->id) < 0)
        verify_stop(v, NULL, "the device does not tell its identity");
}

/* ---- life ---- */

static bool workers_make(struct verify *v)
{
    const struct settings *s = v->settings;

    v->workers = calloc(s->queues, sizeof(*v->workers));
    if (!v->workers)
        return false;
    for (unsigned q = 0; q < s->queues; q++) {
        struct worker *worker = &v->workers[q];

        worker->verify = v;
        worker->queue = q;
        worker->chance.state = s->seed * 1000003 + q;
        worker->slots = calloc(s->depth, sizeof(*worker->slots));
        worker->scratch = malloc(v->request_sectors * MODEL_SECTOR);
        if (!worker->slots || !worker->scratch)
            return false;
        for (unsigned i = 0; i < s->depth; i++) {
            worker->slots[i].worker = worker;
            worker->slots[i].shared = hosted_alloc(v->rig->hosted, v->slot_bytes, 64);
            worker->slots[i].private = malloc(v->slot_bytes);
            if (!worker->slots[i].shared || !worker->slots[i].private)
                return false;
        }
        v->worker_count = q + 1;
    }
    return true;
}

static void workers_run(struct verify *v)
{
    for (unsigned q = 0; q < v->worker_count; q++) {
        if (pthread_create(&v->workers[q].thread, NULL, worker_run, &v->workers[q]) != 0) {
            verify_stop(v, NULL, "cannot start a thread");
            break;
        }
        v->workers_started = q + 1;
    }
    for (unsigned q = 0; q < v->workers_started; q++)
        pthread_join(v->workers[q].thread, NULL);
}

static void workers_free(struct verify *v)
{
    for (unsigned q = 0; v->workers && q < v->settings->queues; q++) {
        struct worker *worker = &v->workers[q];

        for (unsigned i = 0; worker->slots && i < v->settings->depth; i++)
            free(worker->slots[i].private);
        free(worker->slots);
        free(worker->scratch);
    }
    free(v->workers);
}

static void print_result(const struct verify *v)
{
    uint64_t ops[VBLK_ZONE_APPEND + 1] = {0}, bytes = 0, failed = 0, all = 0, interrupts = 0;
    struct vblk_queue_stats stats, sum = {0};
    json_t *kinds = json_object(), *result;

    for (unsigned q = 0; q < v->worker_count; q++) {
        for (unsigned op = 0; op <= VBLK_ZONE_APPEND; op++)
            ops[op] += v->workers[q].done[op];
        bytes += v->workers[q].bytes;
        failed += v->workers[q].failed;
        vblk_queue_stats(v->rig->disk, q, &stats);
        sum.kicks += stats.kicks;
        interrupts += hosted_interrupts(v->rig->hosted, q);
        sum.recoveries += stats.recoveries;
    }
    for (unsigned op = 0; op <= VBLK_ZONE_APPEND; op++)
        if (ops[op]) {
            json_object_set_new(kinds, name_of_op((enum vblk_op)op), json_integer((json_int_t)ops[op]));
            all += ops[op];
        }
    if (v->suspends)
        json_object_set_new(kinds, "suspend", json_integer((json_int_t)v->suspends));
    if (v->range_lists)
        json_object_set_new(kinds, "range lists by hand", json_integer((json_int_t)v->range_lists));
    result =
        json_pack("{s:b, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:s}", "passed", !v->reported, "requests",
                  (json_int_t)all, "bytes", (json_int_t)bytes, "failed", (json_int_t)failed, "kinds", kinds,
                  "kicks", (json_int_t)sum.kicks, "interrupts", (json_int_t)interrupts, "recoveries",
                  (json_int_t)sum.recoveries, "reconnects",
                  (json_int_t)(v->rig->transport ? v->rig->transport->reconnects : 0), "report", v->report);
    if (v->settings->json) {
        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        const char *name, *separator = " (";
        json_t *value;

        printf("%s: %" PRIu64 " requests, %" PRIu64 " MiB read and written",
               v->reported ? "FAILED" : "passed", all, bytes >> 20);
        if (failed)
            printf(", %" PRIu64 " failed", failed);
        if (v->rig->transport && v->rig->transport->reconnects)
            printf(", %" PRIu64 " reconnects", v->rig->transport->reconnects);
        json_object_foreach(kinds, name, value)
        {
            printf("%s%s %lld", separator, name, (long long)json_integer_value(value));
            separator = ", ";
        }
        printf(json_object_size(kinds) ? ")\n" : "\n");
    }
    json_decref(result);
}

static void run(struct verify *v)
{
    const struct settings *s = v->settings;
    uint64_t sectors = s->span / MODEL_SECTOR;

    v->block_sectors = v->rig->info.block_size / MODEL_SECTOR;
    if (!v->block_sectors)
        v->block_sectors = 1;
    if (sectors > v->rig->info.capacity_sectors)
        sectors = v->rig->info.capacity_sectors;
    sectors -= sectors % v->block_sectors;
    v->request_sectors = s->max_request / MODEL_SECTOR / v->block_sectors * v->block_sectors;
    v->range_sectors = RANGE_BYTES / MODEL_SECTOR;
    if (v->range_sectors > sectors / 8)
        v->range_sectors = sectors / 8 + v->block_sectors;
    if (!sectors || !v->request_sectors) {
        verify_stop(v, NULL, "the disk, --span or --max-request is too small for a single block");
        return;
    }
    if (!model_init(&v->model, s->seed, sectors) || !workers_make(v)) {
        verify_stop(v, NULL, "no memory for the model");
        return;
    }
    v->plain_sectors = sectors;
    if (!verify_zones_make(v))
        return;
    check_edges(v);
    if (!v->reported && scan(v, true, -1)) {
        v->end_ns = now_ns(v) + s->runtime_ms * 1000000u;
        workers_run(v);
    }
    if (!v->reported)
        scan(v, false, -1);
    if (!v->reported && v->zones)
        verify_zones_check(v);
    if (!v->reported && s->export_path)
        export_all(v);
}

static void say_lines(struct verify *v)
{
    char *rest = v->report;

    for (char *line = strsep(&rest, "\n"); line; line = strsep(&rest, "\n"))
        log_message("verify, seed %" PRIu64 ": %s", v->settings->seed, line);
}

int command_verify(const struct settings *given)
{
    struct settings with_image = *given;
    const struct settings *settings = &with_image;
    struct error err = {""};
    struct rig rig;
    struct verify v = {.settings = settings, .rig = &rig, .version = MODEL_FIRST};
    size_t arena;
    int code, started;

    if (!settings->depth || settings->depth > 4096 || settings->max_request > (64u << 20)) {
        log_message("--qd has to be 1 to 4096, and --max-request at most 64m (see `ringside verify --help`)");
        return 2;
    }
    with_image.scratch_image = true;
    v.slot_bytes = settings->max_request + SEGS_MAX * GAP_MAX + 128;
    arena = settings->queues * settings->depth * (v.slot_bytes + 128) + SCAN_BYTES + (1u << 20);
    code = rig_open_device(&rig, settings, &err);
    if (code < 0) {
        log_message("%s", err.text);
        rig_close(&rig);
        return 1;
    }
    pthread_mutex_init(&v.lock, NULL);
    pthread_mutex_init(&v.report_lock, NULL);
    if (!settings->reconnect && !settings->allow_errors)
        verify_ranges(&v);
    if (!v.reported) {
        code = rig_drive(&rig, arena, &err);
        if (code < 0)
            log_message("%s", err.text);
        else
            run(&v);
    }
    if (code == 0)
        print_result(&v);
    if (v.reported)
        say_lines(&v);
    verify_zones_free(&v);
    workers_free(&v);
    model_free(&v.model);
    pthread_mutex_destroy(&v.lock);
    pthread_mutex_destroy(&v.report_lock);
    started = code;
    code = rig_close(&rig);
    if (code < 0)
        log_message("the device could not close its image: %s", strerror(-code));
    return v.reported || started < 0 || code < 0 ? 1 : 0;
}
