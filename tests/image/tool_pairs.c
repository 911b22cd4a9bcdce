/*
 * The same random operations on a qcow2 image of ours and on one of QEMU's have to give the same disk,
 * whatever options the images were created with.
 *
 *   tool_pairs --dir=DIR [--ops=N] [--seed=N] [--strength=2|3] [--all] [--first=N] [--count=N]
 *              [--slice=N/M] [--keep-going] [--verbose] [--list]
 *
 * A combination gives each option of the format a value (combinations.h). Without --all: as many as it takes
 * until every two values (--strength=3: every three) that can go together have been together; with --all the
 * rest follow, in an order that the seed decides. For each, two images are made (ours by us or by QEMU, turn
 * about) and
 * --ops operations are done to both: writes, zeroes, discards and reads of every alignment, compressed
 * clusters, flushes, resizes; between them snapshots are made, applied and deleted. At the end we read both
 * images and QEMU reads both, snapshots too, and all is as in a model in memory; qemu-img check and ours find
 * nothing in either. What QEMU refuses to create has to be refused by us, and the other way round.
 *
 * --slice: only each M-th, from the N-th on. --keep-going: not only up to the first failure.
 *
 * Our operations are calls in this process; QEMU's are a script for qemu-io. A failure prints the
 * combination.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "host/block/node.h"
#include "host/qcow2/qcow2.h"
#include "host/runtime/loop.h"
#include "tests/image/combinations.h"

#define DISK_MAX      (12u << 20)
#define REQUEST_MAX   (64u << 10)
#define SNAPSHOTS_MAX 3u
#define PASSPHRASE    "correct horse"

extern char **environ;

static const char *dir;
static struct loop *loop;
static bool verbose;

static const char *value(const struct combination *c, enum dimension d)
{
    return combination_value(c, d);
}

static bool is(const struct combination *c, enum dimension d, const char *text)
{
    return combination_is(c, d, text);
}

static uint64_t number(const struct combination *c, enum dimension d)
{
    return combination_number(c, d);
}

static uint64_t below(uint64_t *seed, uint64_t n)
{
    return combinations_below(seed, n);
}

/* ---- one pair of images ---- */

enum side { OURS, THEIRS, SIDES };
static const char *const side_names[SIDES] = {"ours", "theirs"};

struct snapshot {
    char name[16];
    uint8_t *disk;
    uint64_t bytes;
};

struct pair {
    const struct combination *c;
    uint64_t seed, ops;
    uint64_t cluster, bytes;
    bool luks, data_file;
    uint8_t *model, *buffer;
    struct snapshot snapshots[SNAPSHOTS_MAX];
    unsigned nb_snapshots, names;
    bool compressing;
    uint8_t *touched;  /* by cluster: not to be written compressed: QEMU does not write so over data */
    struct node *node; /* ours, open */
    FILE *script;
    char why[600];
};

static __attribute__((format(printf, 2, 3))) bool wrong(struct pair *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!p->why[0])
        vsnprintf(p->why, sizeof p->why, format, args);
    va_end(args);
    return false;
}

static void path_of(char path[600], const char *side, const char *suffix)
{
    snprintf(path, 600, "%s/%s.%s", dir, side, suffix);
}

/* Runs a program, its input from INPUT or nowhere, its output to DIR/report. Exit status or -1. */
static int spawn(const char *input, const char *const argv[])
{
    char report[600];
    pid_t pid;
    int status;
    posix_spawn_file_actions_t actions;
    snprintf(report, sizeof report, "%s/report", dir);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, input ? input : "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    int error = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

/* A program of QEMU on one image or two: PROGRAM [COMMAND] SECRET OPTIONS... --image-opts IMAGE... */
static int qemu(struct pair *p, const char *input, const char *program, const char *command,
                const char *const options[], enum side first, bool both)
{
    const char *argv[32];
    char secret[700], images[2][900], path[600];
    unsigned n = 0;
    snprintf(secret, sizeof secret, "secret,id=s,file=%s/pass", dir);
    argv[n++] = program;
    if (command)
        argv[n++] = command;
    argv[n++] = "--object";
    argv[n++] = secret;
    for (unsigned i = 0; options && options[i]; i++)
        argv[n++] = options[i];
    argv[n++] = "--image-opts";
    for (unsigned i = 0; i < (both ? 2u : 1u); i++) {
        path_of(path, side_names[(first + i) % SIDES], "qcow2");
        snprintf(images[i], sizeof images[i], "driver=qcow2,file.driver=file,file.filename=%s%s", path,
                 p->luks ? ",encrypt.key-secret=s" : "");
        argv[n++] = images[i];
    }
    argv[n] = NULL;
    return spawn(input, argv);
}

/* ---- making them ---- */

static const char *backing_of(const struct combination *c)
{
    return is(c, D_BACKING, "raw") ? "backing.raw" : is(c, D_BACKING, "qcow2") ? "backing.qcow2" : NULL;
}

static bool qemu_creates(struct pair *p, enum side side)
{
    char options[1200], path[600], data[600], bytes[32], secret[700];
    const struct combination *c = p->c;
    const char *backing = backing_of(c);
    path_of(path, side_names[side], "qcow2");
    path_of(data, side_names[side], "data");
    snprintf(secret, sizeof secret, "secret,id=s,file=%s/pass", dir);
    snprintf(bytes, sizeof bytes, "%" PRIu64, p->bytes);
    int n = snprintf(options, sizeof options,
                     "compat=%s,cluster_size=%s,refcount_bits=%s,lazy_refcounts=%s,extended_l2=%s,"
                     "compression_type=%s,preallocation=%s",
                     value(c, D_VERSION), value(c, D_CLUSTER), value(c, D_REFCOUNT_BITS), value(c, D_LAZY),
                     value(c, D_EXTENDED_L2), value(c, D_COMPRESSION), value(c, D_PREALLOCATION));
    if (p->data_file)
        n += snprintf(options + n, sizeof options - (size_t)n, ",data_file=%s,data_file_raw=%s", data,
                      is(c, D_DATA_FILE, "raw") ? "on" : "off");
    if (p->luks)
        snprintf(options + n, sizeof options - (size_t)n,
                 ",encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10");
    const char *argv[20] = {"qemu-img", "create", "-q", "-f", "qcow2", "--object", secret, "-o", options};
    unsigned at = 9;
    if (backing) {
        argv[at++] = "-b";
        argv[at++] = backing;
        argv[at++] = "-F";
        argv[at++] = value(c, D_BACKING);
    }
    argv[at++] = path;
    argv[at++] = bytes;
    argv[at] = NULL;
    /* qemu-img measures the CPU to choose LUKS's iterations, and gives up now and then. */
    for (int tries = p->luks ? 5 : 1; tries; tries--) {
        if (spawn(NULL, argv) == 0)
            return true;
    }
    return false;
}

struct creation {
    char path[600];
    struct qcow2_create_options options;
    struct error err;
    int ret;
};

static void coroutine_fn create_entry(void *opaque)
{
    struct creation *c = opaque;
    c->ret = qcow2_co_create(c->path, &c->options, &c->err);
}

static bool we_create(struct pair *p, enum side side, struct error *err)
{
    const struct combination *c = p->c;
    char secret[600], data[600];
    path_of(data, side_names[side], "data");
    struct creation creation = {
        .options = {.size = p->bytes,
                    .version = is(c, D_VERSION, "0.10") ? 2 : 3,
                    .cluster_bytes = (uint32_t)p->cluster,
                    .refcount_bits = (unsigned)number(c, D_REFCOUNT_BITS),
                    .lazy_refcounts = is(c, D_LAZY, "on"),
                    .extended_l2 = is(c, D_EXTENDED_L2, "on"),
                    .backing_file = backing_of(c),
                    .backing_format = backing_of(c) ? value(c, D_BACKING) : NULL,
                    .data_file = p->data_file ? data : NULL, /* QEMU looks from its working directory */
                    .data_file_raw = is(c, D_DATA_FILE, "raw"),
                    .encrypt_format = p->luks ? "luks" : NULL,
                    .iter_time_ms = 10}};
    snprintf(secret, sizeof secret, "%s/pass", dir);
    creation.options.secret_file = p->luks ? secret : NULL;
    path_of(creation.path, side_names[side], "qcow2");
    (void)qcow2_compression_parse(value(c, D_COMPRESSION), &creation.options.compression_type);
    (void)qcow2_preallocation_parse(value(c, D_PREALLOCATION), &creation.options.preallocation);
    loop_run_coroutine(loop, create_entry, &creation);
    *err = creation.err;
    return creation.ret == 0;
}

/* ---- our side ---- */

struct call {
    struct pair *p;
    enum side side;
    bool writable, check_only;
    const char *snapshot;
    const uint8_t *expected;
    uint64_t bytes;
    int ret;
};

static int coroutine_fn co_open(struct pair *p, enum side side, bool writable, bool check_only,
                                const char *snapshot, struct node **node)
{
    char path[600], secret[600];
    struct error err = {0};
    path_of(path, side_names[side], "qcow2");
    snprintf(secret, sizeof secret, "%s/pass", dir);
    struct open_options options = {.format = "qcow2",
                                   .read_only = !writable,
                                   .check_only = check_only,
                                   .cache = CACHE_WRITEBACK,
                                   .snapshot = snapshot,
                                   .backing = BACKING_DIR,
                                   .backing_dir = dir,
                                   .secret_file = p->luks ? secret : NULL};
    int ret = node_co_open(path, &options, node, &err);
    if (ret < 0)
        wrong(p, "we can't open %s: %s", side_names[side], err.text);
    return ret;
}

/* Reads all of an image or its snapshot and compares it. */
static void coroutine_fn compare_entry(void *opaque)
{
    struct call *call = opaque;
    struct pair *p = call->p;
    struct node *node;
    call->ret = co_open(p, call->side, false, false, call->snapshot, &node);
    if (call->ret < 0)
        return;
    if (node_length(node) != call->bytes) {
        wrong(p, "%s%s%s has %" PRIu64 " bytes, not %" PRIu64, side_names[call->side],
              call->snapshot ? ", snapshot " : "", call->snapshot ? call->snapshot : "", node_length(node),
              call->bytes);
        call->ret = -EIO;
    }
    for (uint64_t at = 0; call->ret == 0 && at < call->bytes; at += REQUEST_MAX) {
        uint64_t n = call->bytes - at < REQUEST_MAX ? call->bytes - at : REQUEST_MAX;
        call->ret = node_co_pread(node, at, p->buffer, n);
        if (call->ret < 0) {
            wrong(p, "we can't read %s at %" PRIu64 ": %s", side_names[call->side], at, strerror(-call->ret));
        } else if (memcmp(p->buffer, call->expected + at, n) != 0) {
            while (p->buffer[at % REQUEST_MAX] == call->expected[at])
                at++;
            wrong(p, "%s%s%s is wrong at %" PRIu64 ": %02x, not %02x", side_names[call->side],
                  call->snapshot ? ", snapshot " : "", call->snapshot ? call->snapshot : "", at,
                  p->buffer[at % REQUEST_MAX], call->expected[at]);
            call->ret = -EIO;
        }
    }
    (void)node_co_close(node);
}

static bool compare(struct pair *p, enum side side, const char *snapshot, const uint8_t *expected,
                    uint64_t bytes)
{
    struct call call = {.p = p, .side = side, .snapshot = snapshot, .expected = expected, .bytes = bytes};
    loop_run_coroutine(loop, compare_entry, &call);
    return call.ret == 0;
}

static void coroutine_fn check_entry(void *opaque)
{
    struct call *call = opaque;
    struct node *node;
    struct error err = {0};
    struct qcow2_check result = {0};
    call->ret = co_open(call->p, call->side, false, true, NULL, &node);
    if (call->ret < 0)
        return;
    call->ret = qcow2_co_check(node, 0, &result, NULL, NULL, &err);
    (void)node_co_close(node);
    if (call->ret < 0 || result.corruptions || result.leaks || result.check_errors) {
        wrong(call->p, "our check of %s: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors; %s",
              side_names[call->side], result.corruptions, result.leaks, result.check_errors, err.text);
        call->ret = -EIO;
    }
}

static bool check(struct pair *p, enum side side)
{
    struct call call = {.p = p, .side = side};
    loop_run_coroutine(loop, check_entry, &call);
    int status = qemu(p, NULL, "qemu-img", "check", NULL, side, false);
    return call.ret == 0 && (status == 0 || wrong(p, "qemu-img check of %s exits with %d, see report",
                                                  side_names[side], status));
}

/* ---- operations ---- */

static bool coroutine_fn done(struct pair *p, const char *what, uint64_t offset, uint64_t bytes, int ret)
{
    return ret >= 0 || wrong(p, "our %s at %" PRIu64 "+%" PRIu64 ": %s", what, offset, bytes, strerror(-ret));
}

static void touch(struct pair *p, uint64_t offset, uint64_t bytes)
{
    for (uint64_t i = offset / p->cluster; bytes && i <= (offset + bytes - 1) / p->cluster; i++)
        p->touched[i] = 1;
}

static bool coroutine_fn one_write(struct pair *p, uint64_t offset, uint64_t bytes, uint8_t fill)
{
    memset(p->buffer, fill, bytes);
    memset(p->model + offset, fill, bytes);
    touch(p, offset, bytes);
    fprintf(p->script, "write -q -P %u %" PRIu64 " %" PRIu64 "\n", fill, offset, bytes);
    return done(p, "write", offset, bytes, node_co_pwrite(p->node, offset, p->buffer, bytes, 0));
}

static bool coroutine_fn one_zero(struct pair *p, uint64_t offset, uint64_t bytes, bool unmap)
{
    memset(p->model + offset, 0, bytes);
    touch(p, offset, bytes);
    fprintf(p->script, "write -q -z %s %" PRIu64 " %" PRIu64 "\n", unmap ? "-u" : "", offset, bytes);
    return done(p, "write of zeroes", offset, bytes,
                node_co_pwrite_zeroes(p->node, offset, bytes, unmap ? NODE_IO_MAY_UNMAP : 0));
}

/* The content after a discard is the old one or zeroes, as the implementation likes, a sector at a time. So
 * what was discarded is written again at once, with zeroes or data. */
static bool coroutine_fn one_discard(struct pair *p, uint64_t offset, uint64_t bytes, uint8_t fill,
                                     bool unmap)
{
    int ret = node_co_pdiscard(p->node, offset, bytes);
    if (ret == 0)
        ret = node_co_pread(p->node, offset, p->buffer, bytes);
    if (!done(p, "discard", offset, bytes, ret))
        return false;
    for (uint64_t i = 0; i < bytes; i++) {
        if (p->buffer[i] && p->buffer[i] != p->model[offset + i])
            return wrong(p, "a discard shows a stranger's data at %" PRIu64, offset + i);
    }
    fprintf(p->script, "discard -q %" PRIu64 " %" PRIu64 "\n", offset, bytes);
    return fill & 1 ? one_write(p, offset, bytes, fill) : one_zero(p, offset, bytes, unmap);
}

/* A whole cluster where there is nothing yet. Nothing else is written as long as QEMU's process lives: it
 * would go on filling a cluster of compressed ones that was freed and used again meanwhile, and damage the
 * image. */
static bool coroutine_fn one_compressed(struct pair *p, uint64_t offset, uint8_t fill)
{
    uint64_t start = offset / p->cluster * p->cluster;
    uint64_t bytes = p->bytes - start < p->cluster ? p->bytes - start : p->cluster;
    if (p->luks || p->data_file || bytes > REQUEST_MAX || p->touched[start / p->cluster])
        return true;
    memset(p->buffer, fill, bytes);
    memset(p->model + start, fill, bytes);
    touch(p, start, bytes);
    fprintf(p->script, "write -q -c -P %u %" PRIu64 " %" PRIu64 "\n", fill, start, bytes);
    return done(p, "compressed write", start, bytes,
                node_co_pwrite(p->node, start, p->buffer, bytes, NODE_IO_COMPRESSED));
}

static bool coroutine_fn one_resize(struct pair *p)
{
    uint64_t most = p->cluster > (1u << 20) ? DISK_MAX : 3u << 20, least = most / 6;
    uint64_t unit = below(&p->seed, 2) ? 512 : p->cluster;
    uint64_t bytes = (least + below(&p->seed, most - least)) / unit * unit;
    struct error err = {0};
    if (is(p->c, D_VERSION, "0.10") && p->nb_snapshots)
        return true;
    if (p->luks && p->data_file)
        return true; /* QEMU's shows noise behind the old end */
    int ret = node_co_truncate(p->node, bytes, true, &err);
    if (ret < 0)
        return wrong(p, "our resize to %" PRIu64 ": %s", bytes, err.text);
    if (bytes > p->bytes)
        memset(p->model + p->bytes, 0, bytes - p->bytes);
    if (p->bytes % p->cluster)
        touch(p, p->bytes, 1); /* the cluster at the old end */
    fprintf(p->script, "truncate %" PRIu64 "\n", bytes);
    uint64_t old = p->bytes, up = (old + p->cluster - 1) / p->cluster * p->cluster;
    p->bytes = bytes;
    /* QEMU shows again what was cut off, if it lies in the same cluster. */
    if (bytes > old && up > old)
        return one_zero(p, old, (up < bytes ? up : bytes) - old, false);
    return true;
}

static bool wrong_read(struct pair *p, uint64_t offset)
{
    uint64_t i = 0;
    while (p->buffer[i] == p->model[offset + i])
        i++;
    return wrong(p, "our read at %" PRIu64 " is wrong at %" PRIu64 ": %02x, not %02x", offset, offset + i,
                 p->buffer[i], p->model[offset + i]);
}

static bool coroutine_fn one_op(struct pair *p)
{
    static const uint64_t units[] = {1, 1, 512, 512, 512, 4096, 4096};
    unsigned kind = (unsigned)below(&p->seed, 1000);
    uint64_t unit = units[below(&p->seed, sizeof units / sizeof units[0])];
    uint64_t most = below(&p->seed, 3) ? 8192 : REQUEST_MAX;
    if (kind >= 800 && kind < 880)
        unit = 512; /* discards of less than a sector are nothing to anybody */
    if (!below(&p->seed, 8))
        unit = p->cluster < REQUEST_MAX ? p->cluster : REQUEST_MAX;
    uint64_t offset = below(&p->seed, p->bytes) / unit * unit;
    uint64_t bytes = (1 + below(&p->seed, most)) / unit * unit;
    if (bytes == 0)
        bytes = unit;
    if (bytes > p->bytes - offset)
        bytes = p->bytes - offset;
    uint8_t fill = (uint8_t)(1 + below(&p->seed, 255));
    bool unmap = below(&p->seed, 2);

    if (p->compressing && kind < 600)
        return one_compressed(p, offset, fill);
    if (p->compressing)
        kind = kind < 900 ? 600 : 990; /* a read or a flush */
    if (kind < 550)
        return one_write(p, offset, bytes, fill);
    if (kind < 700) {
        int ret = node_co_pread(p->node, offset, p->buffer, bytes);
        fprintf(p->script, "read -q %" PRIu64 " %" PRIu64 "\n", offset, bytes);
        return done(p, "read", offset, bytes, ret) &&
               (memcmp(p->buffer, p->model + offset, bytes) == 0 || wrong_read(p, offset));
    }
    if (kind < 800)
        return one_zero(p, offset, bytes, unmap);
    if (kind < 880)
        return one_discard(p, offset, bytes, fill, unmap);
    if (kind < 998) {
        fprintf(p->script, "flush\n");
        return done(p, "flush", 0, 0, node_co_flush(p->node));
    }
    return one_resize(p);
}

static void coroutine_fn ops_entry(void *opaque)
{
    struct call *call = opaque;
    struct pair *p = call->p;
    call->ret = co_open(p, OURS, true, false, NULL, &p->node);
    if (call->ret < 0)
        return;
    bool good = true;
    for (uint64_t i = 0; good && i < call->bytes; i++)
        good = one_op(p);
    int closed = node_co_close(p->node);
    if (good && closed < 0)
        good = wrong(p, "we can't close ours: %s", strerror(-closed));
    call->ret = good ? 0 : -EIO;
}

/* COUNT operations on both. */
static bool operate(struct pair *p, uint64_t count)
{
    char path[600];
    snprintf(path, sizeof path, "%s/script", dir);
    p->script = fopen(path, "we");
    if (!p->script)
        return wrong(p, "%s: %s", path, strerror(errno));
    struct call call = {.p = p, .bytes = count};
    loop_run_coroutine(loop, ops_entry, &call);
    if (fclose(p->script) != 0 || call.ret < 0)
        return wrong(p, "no script");
    int status = qemu(p, path, "qemu-io", NULL, NULL, THEIRS, false);
    if (verbose)
        printf("# %" PRIu64 " operations, disk %" PRIu64 ", qemu-io %d\n", count, p->bytes, status);
    return status == 0 || wrong(p, "qemu-io exits with %d, see report", status);
}

/* ---- snapshots ---- */

struct change {
    struct pair *p;
    char what; /* as qemu-img's options: c, a, d */
    const char *name;
    int ret;
};

static void coroutine_fn snapshot_entry(void *opaque)
{
    struct change *change = opaque;
    struct node *node;
    struct error err = {0};
    change->ret = co_open(change->p, OURS, true, false, NULL, &node);
    if (change->ret < 0)
        return;
    change->ret = change->what == 'c'   ? qcow2_co_snapshot_create(node, change->name, &err)
                  : change->what == 'a' ? qcow2_co_snapshot_apply(node, change->name, &err)
                                        : qcow2_co_snapshot_delete(node, change->name, &err);
    int closed = node_co_close(node);
    if (closed < 0)
        wrong(change->p, "we can't close ours after snapshot -%c: %s", change->what, strerror(-closed));
}

/* *DONE: it was possible, on both sides. */
static bool on_both(struct pair *p, char what, const char *name, bool *was_done)
{
    struct change change = {.p = p, .what = what, .name = name};
    char option[3] = {'-', what, 0};
    loop_run_coroutine(loop, snapshot_entry, &change);
    int status =
        qemu(p, NULL, "qemu-img", "snapshot", (const char *const[]){option, name, NULL}, THEIRS, false);
    *was_done = change.ret == 0;
    if (verbose)
        printf("# snapshot -%c %s: ours %d, theirs %d, disk %" PRIu64 "\n", what, name, change.ret, status,
               p->bytes);
    /* Refcounts of so few bits cannot count another reference. QEMU leaves damage behind then. */
    if (change.ret < 0 && status != 0)
        (void)qemu(p, NULL, "qemu-img", "check", (const char *const[]){"-q", "-r", "all", NULL}, THEIRS,
                   false);
    return (change.ret == 0) == (status == 0) ||
           wrong(p, "snapshot -%c %s: ours %s, qemu-img exits with %d, see report", what, name,
                 strerror(-change.ret), status);
}

static bool change_snapshots(struct pair *p)
{
    uint64_t pick = below(&p->seed, 4);
    unsigned bits = (unsigned)number(p->c, D_REFCOUNT_BITS);
    /* The snapshots, the disk, and another one. Of one bit nothing can be shared: both refuse. */
    bool enough_bits = bits >= 4 || p->nb_snapshots + 2 < 1u << bits;
    bool was_done;
    if (p->data_file)
        return true;
    if (p->nb_snapshots == 0 || (pick < 2 && p->nb_snapshots < SNAPSHOTS_MAX && enough_bits)) {
        struct snapshot *s = &p->snapshots[p->nb_snapshots];
        snprintf(s->name, sizeof s->name, "snap%u", p->names++);
        if (!on_both(p, 'c', s->name, &was_done))
            return false;
        if (!was_done)
            return true;
        s->disk = malloc(p->bytes);
        if (!s->disk)
            return wrong(p, "out of memory");
        memcpy(s->disk, p->model, p->bytes);
        s->bytes = p->bytes;
        p->nb_snapshots++;
        return true;
    }
    unsigned at = (unsigned)below(&p->seed, p->nb_snapshots);
    struct snapshot *s = &p->snapshots[at];
    if (pick & 1) {
        if (!enough_bits)
            return true; /* it would fail, and QEMU's would have another size then */
        if (!on_both(p, 'a', s->name, &was_done))
            return false;
        if (was_done) {
            memcpy(p->model, s->disk, s->bytes);
            p->bytes = s->bytes;
        }
        return true;
    }
    if (!on_both(p, 'd', s->name, &was_done) || !was_done)
        return wrong(p, "snapshot %s cannot be deleted", s->name);
    free(s->disk);
    *s = p->snapshots[--p->nb_snapshots];
    return true;
}

/* ---- the whole of it ---- */

static bool same_raw_file(struct pair *p, enum side side)
{
    char path[600];
    path_of(path, side_names[side], "data");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool same = fd >= 0;
    for (uint64_t at = 0; same && at < p->bytes; at += REQUEST_MAX) {
        size_t n = p->bytes - at < REQUEST_MAX ? (size_t)(p->bytes - at) : REQUEST_MAX;
        memset(p->buffer, 0, n);
        same = pread(fd, p->buffer, n, (off_t)at) >= 0 && memcmp(p->buffer, p->model + at, n) == 0;
    }
    if (fd >= 0)
        close(fd);
    return same || wrong(p, "the raw data file of %s is not what the disk holds", side_names[side]);
}

static bool verdict(struct pair *p)
{
    bool good = compare(p, OURS, NULL, p->model, p->bytes) && compare(p, THEIRS, NULL, p->model, p->bytes) &&
                check(p, OURS) && check(p, THEIRS);
    int status = good ? qemu(p, NULL, "qemu-img", "compare", NULL, OURS, true) : 0;
    if (status != 0)
        good = wrong(p, "qemu-img compare exits with %d, see report", status);
    for (unsigned i = 0; good && i < p->nb_snapshots; i++) {
        struct snapshot *s = &p->snapshots[i];
        good = compare(p, OURS, s->name, s->disk, s->bytes) && compare(p, THEIRS, s->name, s->disk, s->bytes);
    }
    if (good && is(p->c, D_DATA_FILE, "raw"))
        good = same_raw_file(p, OURS) && same_raw_file(p, THEIRS);
    return good;
}

static bool start(struct pair *p, bool *refused)
{
    char path[600];
    struct error err = {0};
    for (unsigned side = 0; side < SIDES; side++) {
        path_of(path, side_names[side], "qcow2");
        (void)unlink(path);
        path_of(path, side_names[side], "data");
        (void)unlink(path);
    }
    /* QEMU measures for seconds how long a key's derivation takes, so LUKS images are seldom its own; and
     * what it has preallocated in one reads as noise. */
    bool theirs = p->luks && (p->seed % 8 || !is(p->c, D_PREALLOCATION, "off")) ? we_create(p, THEIRS, &err)
                                                                                : qemu_creates(p, THEIRS);
    bool ours = p->seed & 1 || p->luks ? we_create(p, OURS, &err) : qemu_creates(p, OURS);
    *refused = !theirs;
    if (theirs != ours)
        return wrong(p, "QEMU %s it, we %s (%s)", theirs ? "creates" : "refuses", ours ? "do" : "do not",
                     err.text);
    return true;
}

/* False: a message was printed. *REFUSED: nobody makes such an image. */
static bool one_pair(const struct combination *c, uint64_t seed, uint64_t ops, bool *refused)
{
    static uint8_t *model, *buffer, *touched;
    if (!model) {
        model = malloc(DISK_MAX + REQUEST_MAX);
        buffer = aligned_alloc(4096, REQUEST_MAX);
        touched = malloc(DISK_MAX / 512);
        if (!model || !buffer || !touched)
            abort();
    }
    struct pair p = {.c = c,
                     .seed = seed,
                     .ops = ops,
                     .cluster = number(c, D_CLUSTER),
                     .luks = is(c, D_ENCRYPTION, "luks"),
                     .data_file = !is(c, D_DATA_FILE, "none"),
                     .model = model,
                     .buffer = buffer,
                     .touched = touched};
    p.bytes = p.cluster > (1u << 20) ? 8u << 20 : 1u << 20;
    if (is(c, D_SIZE, "odd"))
        p.bytes -= 37 * 512;
    memset(model, 0, DISK_MAX);
    memset(touched, is(c, D_PREALLOCATION, "off") ? 0 : 1, DISK_MAX / 512);
    if (backing_of(c)) {
        /* Made once, in main: the raw one is shorter than the disk, the other one longer. */
        uint64_t behind = is(c, D_BACKING, "raw") ? 700u << 10 : 5u << 20;
        for (uint64_t i = 0; i < behind && i < p.bytes; i++)
            model[i] = (uint8_t)(i >> 9 | 1);
    }
    bool good = start(&p, refused);
    for (uint64_t left = ops; good && left && !*refused;) {
        uint64_t n = ops / 12 + below(&p.seed, ops / 12 + 1) + 1;
        n = n < left ? n : left;
        p.compressing = below(&p.seed, 4) == 0;
        good = operate(&p, n) && change_snapshots(&p);
        left -= n;
    }
    if (good && !*refused)
        good = verdict(&p);
    for (unsigned i = 0; i < p.nb_snapshots; i++)
        free(p.snapshots[i].disk);
    if (!good) {
        printf("seed %" PRIu64 ", %" PRIu64 " operations, ", seed, ops);
        combination_print(stdout, c);
        printf(": %s\n(in %s)\n", p.why, dir);
    }
    return good;
}

static bool make_backing(void)
{
    char path[600], to[600], pass[600];
    snprintf(pass, sizeof pass, "%s/pass", dir);
    FILE *file = fopen(pass, "we");
    if (!file || fputs(PASSPHRASE, file) < 0 || fclose(file) != 0)
        return false;
    path_of(path, "pattern", "raw");
    path_of(to, "backing", "raw");
    for (unsigned i = 0; i < 2; i++) {
        uint64_t bytes = i ? 700u << 10 : 5u << 20;
        file = fopen(i ? to : path, "we");
        for (uint64_t k = 0; file && k < bytes; k++)
            fputc((uint8_t)(k >> 9 | 1), file);
        if (!file || fclose(file) != 0)
            return false;
    }
    path_of(to, "backing", "qcow2");
    return spawn(NULL, (const char *const[]){"qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-o",
                                             "cluster_size=4k", path, to, NULL}) == 0;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"dir", required_argument, NULL, 'd'},   {"ops", required_argument, NULL, 'o'},
        {"seed", required_argument, NULL, 's'},  {"strength", required_argument, NULL, 't'},
        {"all", no_argument, NULL, 'a'},         {"first", required_argument, NULL, 'f'},
        {"count", required_argument, NULL, 'c'}, {"list", no_argument, NULL, 'l'},
        {"verbose", no_argument, NULL, 'v'},     {"keep-going", no_argument, NULL, 'k'},
        {"slice", required_argument, NULL, 'i'}, {0},
    };
    uint64_t ops = 200, seed = 1, first = 0, most = UINT64_MAX;
    unsigned strength = 2, slice = 1, slices = 1;
    bool all = false, list_only = false, keep_going = false;
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        uint64_t n = optarg ? strtoull(optarg, NULL, 10) : 0;
        switch (option) {
        case 'd':
            dir = optarg;
            break;
        case 'o':
            ops = n;
            break;
        case 's':
            seed = n;
            break;
        case 't':
            strength = (unsigned)n;
            break;
        case 'a':
            all = true;
            break;
        case 'f':
            first = n;
            break;
        case 'c':
            most = n;
            break;
        case 'l':
            list_only = true;
            break;
        case 'i':
            if (sscanf(optarg, "%u/%u", &slice, &slices) != 2 || slice == 0 || slice > slices)
                return 2;
            break;
        case 'v':
            verbose = true;
            break;
        case 'k':
            keep_going = true;
            break;
        default:
            return 2;
        }
    }
    size_t possible, covering;
    struct combination *list = combinations_plan(strength, seed, &possible, &covering);
    if (!list || (!dir && !list_only)) {
        fprintf(stderr,
                "usage: tool_pairs --dir=DIR [--ops=N] [--seed=N] [--strength=2|3] [--all] [--first=N] "
                "[--count=N] [--slice=N/M] [--keep-going] [--verbose] [--list]\n");
        return 2;
    }
    size_t end = all ? possible : covering;
    if (most < end - (first < end ? first : end))
        end = first + most;
    if (list_only) {
        for (size_t i = first; i < end; i++) {
            combination_print(stdout, &list[i]);
            printf("\n");
        }
        printf("%zu combinations, %zu of them for every %u values that go together\n", possible, covering,
               strength);
        return 0;
    }
    struct error err = {0};
    loop = loop_create("pairs", &err);
    if (!loop || !make_backing()) {
        fprintf(stderr, "tool_pairs: %s: no loop or no backing files %s\n", dir, err.text);
        return 1;
    }
    struct timespec then, now;
    clock_gettime(CLOCK_MONOTONIC, &then);
    uint64_t ran = 0, nobody = 0, failed = 0;
    for (size_t i = first + slice - 1; i < end && (!failed || keep_going); i += slices) {
        bool refused = false;
        if (!one_pair(&list[i], seed * 1000003 + i, ops, &refused))
            failed++;
        ran += !refused;
        nobody += refused;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (ran % 100 == 0) {
            printf("# %" PRIu64 " combinations, %ld s\n", ran, (long)(now.tv_sec - then.tv_sec));
            fflush(stdout);
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%" PRIu64 " combinations of %zu, %" PRIu64 " operations each, %ld s; %" PRIu64
           " more are refused by both; %" PRIu64 " failed\n",
           ran, possible, ops, (long)(now.tv_sec - then.tv_sec), nobody, failed);
    loop_destroy(loop);
    free(list);
    return failed ? 1 : 0;
}
