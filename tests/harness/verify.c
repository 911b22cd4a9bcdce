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
#include "tests/harness/measure.h"
#include "tests/harness/model.h"
#include "tests/harness/names.h"
#include "tests/harness/rig.h"

#define SEGS_MAX    48u
#define GUARD       0xee
#define GAP_MAX     24u
#define SCAN_BYTES  (256u << 10)
#define RANGE_BYTES (4u << 20) /* longest discard or zero write */

struct verify;

struct slot {
    struct vblk_request request;
    struct worker *worker;
    bool busy;
    uint64_t number; /* of the request, in its worker */
    uint64_t sector, count;
    uint32_t version;
    uint8_t *shared, *private; /* buffers inside and outside of the machine's memory */
    uint8_t *buf;              /* the one in use */
    struct vblk_seg segs[SEGS_MAX];
};

struct worker {
    struct verify *verify;
    pthread_t thread;
    unsigned queue;
    struct chance chance;
    struct slot *slots;
    uint8_t *scratch;
    unsigned in_flight;
    uint64_t submitted, done[VBLK_ZONE_APPEND + 1];
    uint64_t bytes, failed;
};

struct verify {
    const struct settings *settings;
    struct rig *rig;
    struct model model;
    uint64_t block_sectors, request_sectors, range_sectors;
    size_t slot_bytes;
    char id[VIRTIO_BLK_ID_BYTES + 1];
    uint64_t end_ns; /* with --runtime */

    pthread_mutex_t lock; /* of which sectors are in use: slot.busy, sector, count of all workers, version */
    uint32_t version;

    struct worker *workers;
    unsigned worker_count, workers_started;
    bool stop; /* atomic */
    pthread_mutex_t report_lock;
    bool reported;
    char report[1024];
};

/* ---- reports ---- */

static void stop_with(struct verify *v, const struct slot *slot, const char *what)
{
    size_t at = 0;

    pthread_mutex_lock(&v->report_lock);
    if (!v->reported) {
        v->reported = true;
        at = (size_t)snprintf(v->report, sizeof(v->report), "%s", what);
        if (slot && at < sizeof(v->report)) {
            at += (size_t)snprintf(v->report + at, sizeof(v->report) - at,
                                   "\nrequest %" PRIu64 " of queue %u: %s, sector %" PRIu64 ", %" PRIu64
                                   " sectors, %u segments:",
                                   slot->number, slot->worker->queue, name_of_op(slot->request.op),
                                   slot->sector, slot->count, slot->request.nsegs);
            for (unsigned i = 0; i < slot->request.nsegs && at < sizeof(v->report) - 16; i++)
                at += (size_t)snprintf(v->report + at, sizeof(v->report) - at, " %zu", slot->segs[i].len);
        }
    }
    pthread_mutex_unlock(&v->report_lock);
    __atomic_store_n(&v->stop, true, __ATOMIC_RELEASE);
}

static void stop_difference(struct verify *v, const struct slot *slot,
                            const struct model_difference *difference)
{
    char text[320];

    snprintf(text, sizeof(text), "byte %" PRIu64 " (%#" PRIx64 ") is wrong: expected %02x, got %02x\n%s",
             difference->offset, difference->offset, difference->expected, difference->got,
             difference->story);
    stop_with(v, slot, text);
}

/* ---- which sectors are in use ---- */

static bool writes(enum vblk_op op)
{
    return op == VBLK_WRITE || op == VBLK_DISCARD || op == VBLK_WRITE_ZEROES || op == VBLK_SECURE_ERASE;
}

static bool in_use(const struct verify *v, uint64_t sector, uint64_t count, bool for_writing)
{
    for (unsigned w = 0; w < v->worker_count; w++)
        for (unsigned i = 0; i < v->settings->depth; i++) {
            const struct slot *slot = &v->workers[w].slots[i];

            if (slot->busy && slot->sector < sector + count && sector < slot->sector + slot->count &&
                (for_writing || writes(slot->request.op)))
                return true;
        }
    return false;
}

/* Finds a free place for COUNT sectors; shortens them after some tries. False: everything is busy. */
static bool take_sectors(struct worker *worker, struct slot *slot, uint64_t count)
{
    struct verify *v = worker->verify;
    uint64_t blocks = v->model.sectors / v->block_sectors;
    bool found = false;

    pthread_mutex_lock(&v->lock);
    for (unsigned try = 0; try < 32 && !found; try++) {
        uint64_t hot = chance_percent(&worker->chance, 40) ? blocks / 16 + 1 : blocks;
        uint64_t sector;

        if (count > v->model.sectors)
            count = v->block_sectors;
        sector = chance_below(&worker->chance, hot) * v->block_sectors;
        if (chance_percent(&worker->chance, 20))
            sector &= ~(uint64_t)127;
        if (sector + count > v->model.sectors)
            sector = v->model.sectors - count;
        if (in_use(v, sector, count, writes(slot->request.op))) {
            if (count > v->block_sectors)
                count = (count / 2 + v->block_sectors - 1) / v->block_sectors * v->block_sectors;
            continue;
        }
        slot->sector = sector;
        slot->count = count;
        slot->busy = true;
        slot->version = v->version++;
        found = true;
    }
    pthread_mutex_unlock(&v->lock);
    return found;
}

static void give_sectors(struct worker *worker, struct slot *slot)
{
    pthread_mutex_lock(&worker->verify->lock);
    slot->busy = false;
    pthread_mutex_unlock(&worker->verify->lock);
}

/* ---- scatter lists ---- */

static void lay_out(struct worker *worker, struct slot *slot, size_t bytes)
{
    unsigned want =
        chance_percent(&worker->chance, 50) ? 1 : 1 + (unsigned)chance_below(&worker->chance, SEGS_MAX);
    bool fine = chance_percent(&worker->chance, 30); /* any byte, not only multiples of 512 */
    uint8_t *at;
    unsigned n = 0;

    slot->buf = chance_percent(&worker->chance, 80) ? slot->shared : slot->private;
    at = slot->buf;
    while (bytes && n < want) {
        size_t len = bytes;

        at += chance_percent(&worker->chance, 50) ? chance_below(&worker->chance, GAP_MAX) : 0;
        if (n + 1 < want && bytes > 1) {
            len = 1 + chance_below(&worker->chance,
                                   bytes * 2 / (want - n) < bytes ? bytes * 2 / (want - n) : bytes);
            if (!fine)
                len = (len + 511) & ~(size_t)511;
            if (len > bytes)
                len = bytes;
        }
        slot->segs[n++] = (struct vblk_seg){at, len};
        at += len;
        bytes -= len;
    }
    slot->request.segs = slot->segs;
    slot->request.nsegs = n;
}

static void scatter(const struct slot *slot, const uint8_t *from)
{
    for (unsigned i = 0; i < slot->request.nsegs; from += slot->segs[i++].len)
        memcpy(slot->segs[i].addr, from, slot->segs[i].len);
}

static void gather(const struct slot *slot, uint8_t *to)
{
    for (unsigned i = 0; i < slot->request.nsegs; to += slot->segs[i++].len)
        memcpy(to, slot->segs[i].addr, slot->segs[i].len);
}

static void guard_set(const struct verify *v, const struct slot *slot)
{
    const struct vblk_seg *last = &slot->segs[slot->request.nsegs - 1];

    memset(slot->buf, GUARD, (size_t)((uint8_t *)last->addr - slot->buf) + last->len + 64);
}

static void guard_check(struct verify *v, const struct slot *slot)
{
    const uint8_t *at = slot->buf, *end;

    for (unsigned i = 0; i <= slot->request.nsegs; i++) {
        end = i < slot->request.nsegs ? slot->segs[i].addr : at + 64;
        for (; at < end; at++)
            if (*at != GUARD) {
                char text[128];

                snprintf(text, sizeof(text),
                         "a byte outside of the request's buffers was written (before segment %u)", i);
                stop_with(v, slot, text);
                return;
            }
        if (i < slot->request.nsegs)
            at = (uint8_t *)slot->segs[i].addr + slot->segs[i].len;
    }
}

/* ---- requests ---- */

static void finish(struct vblk_request *request, int result);

static bool offered(const struct verify *v, unsigned bit)
{
    return v->rig->info.features & VIRTIO_BIT(bit);
}

/* Weights of the request types; a type that the device does not offer is a read instead. */
static enum vblk_op choose_op(struct worker *worker)
{
    const struct verify *v = worker->verify;
    uint64_t dice = chance_below(&worker->chance, 100);
    bool ro = v->rig->info.read_only;

    if (dice < 38)
        return VBLK_READ;
    if (dice < 76)
        return ro ? VBLK_READ : VBLK_WRITE;
    if (dice < 80)
        return offered(v, VIRTIO_BLK_F_FLUSH) ? VBLK_FLUSH : VBLK_READ;
    if (dice < 88)
        return !ro && offered(v, VIRTIO_BLK_F_WRITE_ZEROES) ? VBLK_WRITE_ZEROES : VBLK_READ;
    if (dice < 95)
        return !ro && offered(v, VIRTIO_BLK_F_DISCARD) ? VBLK_DISCARD : VBLK_READ;
    if (dice < 97)
        return !ro && offered(v, VIRTIO_BLK_F_SECURE_ERASE) ? VBLK_SECURE_ERASE : VBLK_READ;
    if (dice < 98)
        return offered(v, VIRTIO_BLK_F_LIFETIME) ? VBLK_GET_LIFETIME : VBLK_READ;
    return VBLK_GET_ID;
}

static uint64_t choose_count(struct worker *worker, enum vblk_op op)
{
    const struct verify *v = worker->verify;
    uint64_t max = op == VBLK_READ || op == VBLK_WRITE ? v->request_sectors : v->range_sectors;
    uint64_t dice = chance_below(&worker->chance, 100), bound;

    bound = dice < 50 ? 8 : dice < 85 ? 128 : max;
    if (bound > max)
        bound = max;
    if (bound < v->block_sectors)
        bound = v->block_sectors;
    return (1 + chance_below(&worker->chance, bound / v->block_sectors)) * v->block_sectors;
}

/* False: no place could be found now. */
static bool prepare(struct worker *worker, struct slot *slot)
{
    struct verify *v = worker->verify;
    enum vblk_op op = choose_op(worker);

    slot->request = (struct vblk_request){.op = op, .complete = finish, .opaque = slot};
    slot->number = worker->submitted;
    slot->sector = slot->count = 0;
    switch (op) {
    case VBLK_READ:
    case VBLK_WRITE:
        if (!take_sectors(worker, slot, choose_count(worker, op)))
            return false;
        lay_out(worker, slot, slot->count * MODEL_SECTOR);
        if (op == VBLK_WRITE) {
            model_fill(&v->model, slot->sector, slot->count, slot->version, worker->scratch);
            scatter(slot, worker->scratch);
        } else {
            guard_set(v, slot);
        }
        break;
    case VBLK_WRITE_ZEROES:
    case VBLK_DISCARD:
    case VBLK_SECURE_ERASE:
        if (!take_sectors(worker, slot, choose_count(worker, op)))
            return false;
        if (op == VBLK_WRITE_ZEROES && chance_percent(&worker->chance, 50))
            slot->request.flags = VBLK_REQUEST_UNMAP;
        slot->request.num_sectors = slot->count;
        break;
    case VBLK_GET_ID:
    case VBLK_GET_LIFETIME:
        slot->buf = slot->shared;
        slot->segs[0] = (struct vblk_seg){slot->buf, op == VBLK_GET_ID ? VIRTIO_BLK_ID_BYTES
                                                                       : sizeof(struct virtio_blk_lifetime)};
        slot->request.segs = slot->segs;
        slot->request.nsegs = 1;
        guard_set(v, slot);
        break;
    default:
        break;
    }
    slot->request.sector = slot->sector;
    return true;
}

static void judge(struct worker *worker, struct slot *slot)
{
    struct verify *v = worker->verify;
    struct model_difference difference;

    switch (slot->request.op) {
    case VBLK_READ:
        gather(slot, worker->scratch);
        if (!model_check(&v->model, slot->sector, slot->count, worker->scratch, &difference))
            stop_difference(v, slot, &difference);
        guard_check(v, slot);
        break;
    case VBLK_WRITE:
        model_set(&v->model, slot->sector, slot->count, slot->version);
        break;
    case VBLK_WRITE_ZEROES:
        model_set(&v->model, slot->sector, slot->count, MODEL_ZERO);
        break;
    case VBLK_DISCARD:
    case VBLK_SECURE_ERASE:
        model_set(&v->model, slot->sector, slot->count, MODEL_UNDEFINED);
        break;
    case VBLK_GET_ID:
        if (strncmp(v->id, (const char *)slot->buf, VIRTIO_BLK_ID_BYTES) != 0)
            stop_with(v, slot, "the identity is not what it was at first");
        guard_check(v, slot);
        break;
    default:
        break;
    }
}

static void finish(struct vblk_request *request, int result)
{
    struct slot *slot = request->opaque;
    struct worker *worker = slot->worker;
    struct verify *v = worker->verify;

    if (result == 0) {
        judge(worker, slot);
        worker->done[request->op]++;
        if (request->op == VBLK_READ || request->op == VBLK_WRITE)
            worker->bytes += slot->count * MODEL_SECTOR;
    } else {
        worker->failed++;
        if (writes(request->op))
            model_set(&v->model, slot->sector, slot->count, MODEL_UNDEFINED);
        if (!v->settings->allow_errors) {
            char text[128];

            snprintf(text, sizeof(text), "a request failed: %s", name_of_error(result));
            stop_with(v, slot, text);
        }
    }
    give_sectors(worker, slot);
    slot->request.opaque = NULL; /* free */
    worker->in_flight--;
}

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

        if (slot->request.opaque || !prepare(worker, slot))
            continue;
        worker->submitted++;
        worker->in_flight++;
        code = vblk_submit(v->rig->disk, worker->queue, &slot->request);
        if (code < 0)
            finish(&slot->request, code);
    }
    vblk_kick(v->rig->disk, worker->queue);
}

static void *worker_run(void *opaque)
{
    struct worker *worker = opaque;
    struct verify *v = worker->verify;

    measure_client_thread();
    while (!enough(worker) || worker->in_flight) {
        /* Now and then the queue runs empty, so that its end and its beginning are seen too. */
        if (!enough(worker) && (worker->in_flight == 0 || !chance_percent(&worker->chance, 2)))
            fill_up(worker);
        if (worker->queue == 0)
            rig_attend(v->rig);
        if (worker->in_flight)
            rig_poll(v->rig, worker->queue);
    }
    return NULL;
}

/* ---- the whole disk, before and after ---- */

static bool scan(struct verify *v, bool learn, int export_fd)
{
    uint8_t *buf = hosted_alloc(v->rig->hosted, SCAN_BYTES, 4096);
    struct model_difference difference;
    uint64_t step = SCAN_BYTES / MODEL_SECTOR;
    bool fine = buf != NULL;

    if (!buf)
        stop_with(v, NULL, "no memory for the pass over the whole disk");
    for (uint64_t sector = 0; fine && sector < v->model.sectors; sector += step) {
        uint64_t count = v->model.sectors - sector < step ? v->model.sectors - sector : step;
        int code = vblk_read(v->rig->disk, 0, sector, buf, count * MODEL_SECTOR);
        char text[160];

        if (code < 0) {
            snprintf(text, sizeof(text),
                     "pass over the whole disk: reading %" PRIu64 " sectors at %" PRIu64 ": %s", count,
                     sector, name_of_error(code));
            stop_with(v, NULL, text);
            fine = false;
        } else if (learn) {
            model_learn(&v->model, sector, count, buf);
        } else if (!model_check(&v->model, sector, count, buf, &difference)) {
            stop_difference(v, NULL, &difference);
            fine = false;
        }
        if (fine && export_fd >= 0 &&
            pwrite(export_fd, buf, count * MODEL_SECTOR, (off_t)(sector * MODEL_SECTOR)) !=
                (ssize_t)(count * MODEL_SECTOR)) {
            stop_with(v, NULL, "cannot write the exported file");
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
        stop_with(v, NULL, "cannot make the exported file");
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
        stop_with(v, NULL, "a read beyond the capacity was not refused");
    if (vblk_get_id(v->rig->disk, 0, v->id) < 0)
        stop_with(v, NULL, "the device does not tell its identity");
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
            stop_with(v, NULL, "cannot start a thread");
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
    uint64_t ops[VBLK_ZONE_APPEND + 1] = {0}, bytes = 0, failed = 0, all = 0;
    struct vblk_queue_stats stats, sum = {0};
    json_t *kinds = json_object(), *result;

    for (unsigned q = 0; q < v->worker_count; q++) {
        for (unsigned op = 0; op <= VBLK_ZONE_APPEND; op++)
            ops[op] += v->workers[q].done[op];
        bytes += v->workers[q].bytes;
        failed += v->workers[q].failed;
        vblk_queue_stats(v->rig->disk, q, &stats);
        sum.kicks += stats.kicks;
        sum.interrupts += stats.interrupts;
        sum.recoveries += stats.recoveries;
    }
    for (unsigned op = 0; op <= VBLK_ZONE_APPEND; op++)
        if (ops[op]) {
            json_object_set_new(kinds, name_of_op((enum vblk_op)op), json_integer((json_int_t)ops[op]));
            all += ops[op];
        }
    result = json_pack("{s:b, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:s}", "passed", !v->reported,
                       "requests", (json_int_t)all, "bytes", (json_int_t)bytes, "failed", (json_int_t)failed,
                       "kinds", kinds, "kicks", (json_int_t)sum.kicks, "interrupts",
                       (json_int_t)sum.interrupts, "recoveries", (json_int_t)sum.recoveries, "reconnects",
                       (json_int_t)v->rig->transport->reconnects, "report", v->report);
    if (v->settings->json) {
        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        const char *name;
        json_t *value;

        printf("%s: %" PRIu64 " requests, %" PRIu64 " MiB read and written",
               v->reported ? "FAILED" : "passed", all, bytes >> 20);
        if (failed)
            printf(", %" PRIu64 " failed", failed);
        if (v->rig->transport->reconnects)
            printf(", %" PRIu64 " reconnects", v->rig->transport->reconnects);
        printf(" (");
        json_object_foreach(kinds, name, value)
            printf("%s%s %lld", value == json_object_get(kinds, "read") ? "" : ", ", name,
                   (long long)json_integer_value(value));
        printf(")\n");
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
        stop_with(v, NULL, "the disk, --span or --max-request is too small for a single block");
        return;
    }
    if (!model_init(&v->model, s->seed, sectors) || !workers_make(v)) {
        stop_with(v, NULL, "no memory for the model");
        return;
    }
    check_edges(v);
    v->end_ns = now_ns(v) + s->runtime_ms * 1000000u;
    if (!v->reported && scan(v, true, -1))
        workers_run(v);
    if (!v->reported)
        scan(v, false, -1);
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
    int code;

    if (!settings->depth || settings->depth > 4096 || settings->max_request > (64u << 20)) {
        log_message("--qd has to be 1 to 4096, and --max-request at most 64m (see `ringside verify --help`)");
        return 2;
    }
    with_image.scratch_image = true;
    v.slot_bytes = settings->max_request + SEGS_MAX * GAP_MAX + 128;
    arena = settings->queues * settings->depth * (v.slot_bytes + 128) + SCAN_BYTES + (1u << 20);
    code = rig_open(&rig, settings, arena, &err);
    if (code < 0) {
        log_message("%s", err.text);
        rig_close(&rig);
        return 1;
    }
    pthread_mutex_init(&v.lock, NULL);
    pthread_mutex_init(&v.report_lock, NULL);
    run(&v);
    print_result(&v);
    if (v.reported)
        say_lines(&v);
    workers_free(&v);
    model_free(&v.model);
    pthread_mutex_destroy(&v.lock);
    pthread_mutex_destroy(&v.report_lock);
    code = rig_close(&rig);
    if (code < 0)
        log_message("the device could not close its image: %s", strerror(-code));
    return v.reported || code < 0 ? 1 : 0;
}
