/*
 * `ringside trace`: one request of each kind, one after another, and the way that each went through both
 * halves, with times. The twelve steps are those of docs/life-of-a-request.md; a step that is visited again
 * (the disk is asked for a table first, say) is printed with a dot instead of its place in the list.
 *
 * The place of the first write is discarded before it, so that it has to be allocated.
 *
 * Steps 3 to 11 are seen only when the device is our own, in this process.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/runtime/trace.h"
#include "tests/harness/commands.h"
#include "tests/harness/names.h"
#include "tests/harness/rig.h"
#include "tests/harness/trace_html.h"

#define RECORDS_MAX   4096
#define REQUEST_BYTES 4096u

static const char *const step_meaning[TRACE_STEPS + 1] = {
    NULL,
    "header, data and status become a descriptor chain; the ring index is published",
    "the device is told, unless it said that it need not be",
    "notifications off, pop until empty, on, look again; each chain is copied once and checked",
    "requests of one kind that touch on disk become one",
    "accounting and throttling; a coroutine is entered",
    "overlapping requests tracked, padding, splitting",
    "guest offset to host offset; clusters allocated, copy-on-write planned",
    "joins this turn's batch for the kernel; the coroutine yields",
    "completions read from the kernel's ring; the coroutine is woken",
    "the new cluster is linked into the L2 table, in crash-safe order",
    "status byte, used ring, one interrupt for the batch if it is wanted",
    "the used entry is checked before it is believed; the caller's completion runs",
};

struct seen {
    uint64_t time_ns;
    unsigned step;
    const char *function, *module;
    uint64_t offset, bytes;
};

static struct {
    uint32_t count; /* atomic */
    struct seen records[RECORDS_MAX];
} seen;

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void record(uint64_t time_ns, unsigned step, const char *function, const char *module, uint64_t offset,
                   uint64_t bytes)
{
    uint32_t at = __atomic_fetch_add(&seen.count, 1, __ATOMIC_ACQ_REL);

    if (step && at < RECORDS_MAX)
        seen.records[at] = (struct seen){time_ns, step, function, module, offset, bytes};
}

static void device_sink(void *opaque, const struct trace_record *r)
{
    const struct trace_point_info *info = &trace_point_info[r->point];

    record(r->time_ns, info->step, info->name, info->module, r->offset, r->bytes);
}

static void driver_sink(void *opaque, enum vblk_trace_point point, unsigned queue,
                        const struct vblk_request *request)
{
    uint64_t offset = request ? request->sector * VIRTIO_BLK_SECTOR_BYTES : 0;

    switch (point) {
    case VBLK_TRACE_SUBMIT:
        record(now_ns(), 1, "vblk_submit", "guest/driver", offset, 0);
        break;
    case VBLK_TRACE_KICK:
        record(now_ns(), 2, "kick", "transport", queue, 0);
        break;
    case VBLK_TRACE_POLL:
        record(now_ns(), 12, "vblk_poll", "guest/driver", offset, 0);
        break;
    }
}

static int by_time(const void *a, const void *b)
{
    const struct seen *x = a, *y = b;

    if (x->time_ns != y->time_ns)
        return x->time_ns < y->time_ns ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* ---- the requests ---- */

static const struct kind {
    const char *name, *title;
    enum vblk_op op;
    unsigned feature; /* that it needs; 0: none */
    bool writes;
} kinds[] = {
    {"write", "write of 4096 bytes to a place that holds nothing", VBLK_WRITE, 0, true},
    {"rewrite", "write of 4096 bytes to the same place again", VBLK_WRITE, 0, true},
    {"read", "read of 4096 bytes", VBLK_READ, 0, false},
    {"flush", "flush", VBLK_FLUSH, VIRTIO_BLK_F_FLUSH, false},
    {"write-zeroes", "write zeroes, 4096 bytes", VBLK_WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES, true},
    {"discard", "discard of 4096 bytes", VBLK_DISCARD, VIRTIO_BLK_F_DISCARD, true},
    {"get-id", "identity", VBLK_GET_ID, 0, false},
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static uint64_t middle(const struct rig *rig)
{
    uint64_t blocks = rig->info.capacity_sectors * VIRTIO_BLK_SECTOR_BYTES / REQUEST_BYTES;

    return blocks / 2 * (REQUEST_BYTES / VIRTIO_BLK_SECTOR_BYTES);
}

/* Takes away what a run before this one has left where the first write goes, so that it has to be allocated.
 * False if the device can't. */
static bool empty_the_place(struct rig *rig)
{
    uint64_t unit = le32_get(rig->info.config.discard_sector_alignment), sector = middle(rig);

    if (rig->info.read_only || !(rig->info.features & VIRTIO_BIT(VIRTIO_BLK_F_DISCARD)))
        return false;
    if (unit < REQUEST_BYTES / VIRTIO_BLK_SECTOR_BYTES)
        unit = REQUEST_BYTES / VIRTIO_BLK_SECTOR_BYTES;
    sector = sector / unit * unit;
    if (unit > rig->info.capacity_sectors - sector)
        unit = rig->info.capacity_sectors - sector;
    return vblk_discard(rig->disk, 0, sector, unit) == 0;
}

static int run_one(struct rig *rig, const struct kind *kind, uint8_t *buf, json_t **description)
{
    struct vblk_seg seg = {buf, kind->op == VBLK_GET_ID ? VIRTIO_BLK_ID_BYTES : REQUEST_BYTES};
    struct vblk_request request = {.op = kind->op};
    json_t *list = json_array();
    unsigned visited = 0;
    uint32_t count;
    int code;

    if (kind->op != VBLK_FLUSH && kind->op != VBLK_GET_ID)
        request.sector = middle(rig);
    if (kind->op == VBLK_READ || kind->op == VBLK_WRITE || kind->op == VBLK_GET_ID) {
        request.segs = &seg;
        request.nsegs = 1;
    } else if (kind->writes) {
        request.num_sectors = REQUEST_BYTES / VIRTIO_BLK_SECTOR_BYTES;
    }
    memset(buf, 0xa5, REQUEST_BYTES);
    __atomic_store_n(&seen.count, 0, __ATOMIC_RELEASE);
    trace_listen(device_sink, NULL);
    vblk_set_trace(rig->disk, driver_sink, NULL);
    code = vblk_run(rig->disk, 0, &request);
    vblk_set_trace(rig->disk, NULL, NULL);
    /* What the device does after its answer does not belong to the request. */
    trace_listen(NULL, NULL);
    count = __atomic_load_n(&seen.count, __ATOMIC_ACQUIRE);
    if (count > RECORDS_MAX)
        count = RECORDS_MAX;
    qsort(seen.records, count, sizeof(seen.records[0]), by_time);
    for (uint32_t i = 0; i < count; i++) {
        const struct seen *r = &seen.records[i];
        bool again = visited & (1u << r->step);

        visited |= 1u << r->step;
        json_array_append_new(
            list, json_pack("{s:i, s:b, s:I, s:s, s:s, s:I, s:I, s:s}", "step", (int)r->step, "again", again,
                            "ns", (json_int_t)(r->time_ns - seen.records[0].time_ns), "module", r->module,
                            "function", r->function, "offset", (json_int_t)r->offset, "bytes",
                            (json_int_t)r->bytes, "meaning", step_meaning[r->step]));
        if (r->step == 12)
            break;
    }
    *description = json_pack("{s:s, s:s, s:s, s:I, s:o}", "kind", kind->name, "title", kind->title, "result",
                             name_of_error(code), "sector", (json_int_t)request.sector, "records", list);
    return code;
}

static void print_text(const json_t *one)
{
    const json_t *records = json_object_get(one, "records");
    json_int_t before = 0, step_before = 0;

    printf("%s, sector %lld: %s\n", json_string_value(json_object_get(one, "title")),
           (long long)json_integer_value(json_object_get(one, "sector")),
           json_string_value(json_object_get(one, "result")));
    printf("  step        us      +us  function                 where         what\n");
    for (size_t i = 0; i < json_array_size(records); i++) {
        const json_t *r = json_array_get(records, i);
        json_int_t ns = json_integer_value(json_object_get(r, "ns"));
        json_int_t step = json_integer_value(json_object_get(r, "step"));
        bool again = json_is_true(json_object_get(r, "again"));

        printf("  %3lld%c  %8.1f %8.1f  %-24s %-13s %s\n",
               (long long)json_integer_value(json_object_get(r, "step")), again ? '.' : ' ', (double)ns / 1e3,
               (double)(ns - before) / 1e3, json_string_value(json_object_get(r, "function")),
               json_string_value(json_object_get(r, "module")),
               step == step_before ? "\""
               : again             ? "(again)"
                                   : json_string_value(json_object_get(r, "meaning")));
        before = ns;
        step_before = step;
    }
    putchar('\n');
}

static void print_all(const struct settings *settings, const json_t *all)
{
    switch ((enum output_format)settings->format) {
    case FORMAT_JSON:
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
        break;
    case FORMAT_HTML:
        trace_html(stdout, all);
        break;
    case FORMAT_TEXT:
        for (size_t i = 0; i < json_array_size(json_object_get(all, "requests")); i++)
            print_text(json_array_get(json_object_get(all, "requests"), i));
        break;
    }
}

static bool can_run(const struct rig *rig, const struct kind *kind)
{
    if (kind->writes && rig->info.read_only)
        return false;
    return !kind->feature || (rig->info.features & VIRTIO_BIT(kind->feature));
}

int command_trace(const struct settings *settings)
{
    struct settings sleeping = *settings;
    struct error err = {""};
    struct rig rig;
    json_t *list = json_array(), *all;
    uint8_t *buf;
    unsigned ran = 0;
    int code;

    sleeping.client = CLIENT_SLEEP; /* so that the interrupt of step 11 is really wanted */
    code = rig_open(&rig, &sleeping, 1u << 20, &err);
    buf = code < 0 ? NULL : hosted_alloc(rig.hosted, REQUEST_BYTES, 4096);
    if (!buf) {
        log_message("%s", code < 0 ? err.text : "no memory");
        json_decref(list);
        rig_close(&rig);
        return 1;
    }
    if (!rig.own)
        log_message("%s: only the driver's steps (1, 2, 12) can be seen of a device in another process",
                    rig.path);
    for (size_t i = 0; i < KINDS && code == 0; i++) {
        json_t *one;

        if (!can_run(&rig, &kinds[i]) || (settings->only && strcmp(settings->only, kinds[i].name) != 0))
            continue;
        if (i == 0 && !empty_the_place(&rig))
            log_message("%s: does not discard: the first write may find its place allocated", rig.path);
        code = run_one(&rig, &kinds[i], buf, &one);
        json_array_append_new(list, one);
        ran++;
    }
    all = json_pack("{s:s, s:o}", "device", rig.own ? "own" : rig.path, "requests", list);
    print_all(settings, all);
    json_decref(all);
    rig_close(&rig);
    if (!ran)
        log_message("--only=%s: no such kind of request here", settings->only ? settings->only : "");
    return code < 0 || !ran ? 1 : 0;
}
