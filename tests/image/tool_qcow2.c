/*
 * Exercises the qcow2 driver through the node interface, for the image tests.
 *
 *   tool_qcow2 create PATH [KEY=VALUE...]
 *   tool_qcow2 run PATH [KEY=VALUE...]         random operations against a model in memory
 *   tool_qcow2 snapshot PATH create|apply|delete NAME
 *   tool_qcow2 resize PATH BYTES [MODE]
 *   tool_qcow2 compress IN-RAW OUT-QCOW2 [KEY=VALUE...]    all of a raw file, as compressed clusters
 *   tool_qcow2 check PATH [leaks|all]
 *   tool_qcow2 dump PATH OUT-RAW [KEY=VALUE...]
 *   tool_qcow2 read|write PATH OFFSET BYTES
 *   tool_qcow2 rebase PATH [FILE FORMAT] | empty PATH
 *   tool_qcow2 open PATH [rw]                  opens, reads everything, says what is wrong
 *
 * run: seed= ops= depth= loops= region= (bytes that belong to one worker, so that workers share clusters or
 * don't) max= (bytes of a request) write= zero= discard= read= flush= (weights) emit=FILE (the same as
 * qemu-io commands) model=FILE (raw file to start from, and to leave the model in) cache= (bytes of L2 cache)
 * secret=
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/block/node.h"
#include "host/qcow2/qcow2.h"
#include "host/runtime/iothread.h"
#include "host/runtime/loop.h"

static struct loop *loop;
static struct error error;

/* ---- arguments ---- */

static int nargs;
static char **args;

static const char *arg_text(const char *key, const char *fallback)
{
    size_t n = strlen(key);
    for (int i = 0; i < nargs; i++) {
        if (strncmp(args[i], key, n) == 0 && args[i][n] == '=')
            return args[i] + n + 1;
    }
    return fallback;
}

static uint64_t arg_number(const char *key, uint64_t fallback)
{
    const char *text = arg_text(key, NULL);
    if (!text)
        return fallback;
    char *end;
    uint64_t n = strtoull(text, &end, 0);
    switch (*end) {
    case 'K':
        return n << 10;
    case 'M':
        return n << 20;
    case 'G':
        return n << 30;
    case 'T':
        return n << 40;
    default:
        return n;
    }
}

static int fail(const char *what, int ret)
{
    fprintf(stderr, "%s: %s\n", what, error.text[0] ? error.text : strerror(-ret));
    return 1;
}

/* ---- opening ---- */

struct opening {
    const char *path;
    struct open_options options;
    struct node *node;
    int ret;
};

static void open_entry(void *arg)
{
    struct opening *o = arg;
    o->ret = node_co_open(o->path, &o->options, &o->node, &error);
}

static struct node *open_image(const char *path, bool writable)
{
    struct opening o = {.path = path,
                        .options = {.format = "qcow2",
                                    .read_only = !writable,
                                    .cache = arg_number("direct", 0) ? CACHE_NONE : CACHE_WRITEBACK,
                                    .l2_cache_bytes = arg_number("cache", 0),
                                    .refcount_cache_bytes = arg_number("refcache", 0),
                                    .log_writes = arg_text("log", NULL),
                                    .secret_file = arg_text("secret", NULL),
                                    .snapshot = arg_text("snapshot", NULL),
                                    .backing = arg_text("backing_dir", NULL) ? BACKING_DIR : BACKING_SAME_DIR,
                                    .backing_dir = arg_text("backing_dir", NULL),
                                    .check_only = arg_number("check_only", 0)}};
    loop_run_coroutine(loop, open_entry, &o);
    return o.ret < 0 ? NULL : o.node;
}

static void close_entry(void *arg)
{
    struct opening *o = arg;
    o->ret = node_co_close(o->node);
}

static int close_image(struct node *node)
{
    struct opening o = {.node = node};
    loop_run_coroutine(loop, close_entry, &o);
    return o.ret;
}

/* ---- create ---- */

struct creation {
    const char *path;
    struct qcow2_create_options options;
    int ret;
};

static void create_entry(void *arg)
{
    struct creation *c = arg;
    c->ret = qcow2_co_create(c->path, &c->options, &error);
}

static int create(const char *path)
{
    struct creation c = {.path = path,
                         .options = {.size = arg_number("size", 64 << 20),
                                     .version = (unsigned)arg_number("version", 3),
                                     .cluster_bytes = (uint32_t)arg_number("cluster", 65536),
                                     .refcount_bits = (unsigned)arg_number("refcount_bits", 16),
                                     .lazy_refcounts = arg_number("lazy", 0),
                                     .extended_l2 = arg_number("extended_l2", 0),
                                     .backing_file = arg_text("backing", NULL),
                                     .backing_format = arg_text("backing_fmt", NULL),
                                     .data_file = arg_text("data_file", NULL),
                                     .data_file_raw = arg_number("data_file_raw", 0),
                                     .encrypt_format = arg_text("encrypt", NULL),
                                     .luks = {.secret_file = arg_text("secret", NULL), .iter_time_ms = 10}}};
    if (qcow2_compression_parse(arg_text("compression", "zlib"), &c.options.compression_type) < 0 ||
        qcow2_preallocation_parse(arg_text("preallocation", "off"), &c.options.preallocation) < 0)
        return fail("options", -EINVAL);
    loop_run_coroutine(loop, create_entry, &c);
    return c.ret < 0 ? fail(path, c.ret) : 0;
}

/* ---- random operations ---- */

enum op { OP_WRITE, OP_ZERO, OP_DISCARD, OP_READ, OP_FLUSH, OPS };

static struct {
    struct node *node;
    uint8_t *model;
    uint64_t length, region, max, ops;
    unsigned weights[OPS], weight_sum, workers;
    FILE *emit;
    unsigned left; /* atomic */
    unsigned failed;
} run;

struct worker {
    unsigned index;
    uint64_t seed;
    uint8_t *buf;
};

static uint64_t below(struct worker *w, uint64_t n)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    w->seed ^= w->seed << 17;
    return w->seed % n;
}

static void complain(const struct worker *w, const char *what, uint64_t offset, uint64_t bytes, int ret)
{
    if (__atomic_fetch_add(&run.failed, 1, __ATOMIC_RELAXED) < 5)
        fprintf(stderr, "worker %u: %s at %" PRIu64 "+%" PRIu64 ": %s\n", w->index, what, offset, bytes,
                ret < 0 ? strerror(-ret) : "wrong data");
}

/* The content after a discard is the old one or zeroes, a sector at a time. */
static void learn_discarded(struct worker *w, uint64_t offset, uint64_t bytes)
{
    int ret = node_co_pread(run.node, offset, w->buf, bytes);
    if (ret < 0) {
        complain(w, "read after discard", offset, bytes, ret);
        return;
    }
    for (uint64_t i = 0; i < bytes; i++) {
        if (w->buf[i] && w->buf[i] != run.model[offset + i]) {
            complain(w, "stranger's data after discard", offset + i, 1, 0);
            return;
        }
    }
    memcpy(run.model + offset, w->buf, bytes);
}

static void one_op(struct worker *w)
{
    uint64_t pick = below(w, run.weight_sum);
    enum op op = OP_WRITE;
    while (pick >= run.weights[op])
        pick -= run.weights[op++];
    uint64_t regions = (run.length + run.region - 1) / run.region;
    uint64_t mine = regions / run.workers;
    uint64_t start = (below(w, mine ? mine : 1) * run.workers + w->index) * run.region;
    if (start >= run.length)
        return;
    uint64_t span = run.length - start < run.region ? run.length - start : run.region;
    uint64_t unit = below(w, 4) ? 512 : 4096;
    uint64_t offset = below(w, span) / unit * unit;
    uint64_t bytes = (1 + below(w, run.max)) / unit * unit;
    if (bytes == 0)
        bytes = unit;
    if (bytes > span - offset)
        bytes = span - offset;
    if (!below(w, 8)) { /* all of it, for the sake of whole clusters */
        offset = 0;
        bytes = span < run.max ? span : run.max;
    }
    offset += start;
    uint8_t fill = (uint8_t)(1 + below(w, 255));
    bool unmap = below(w, 2);
    int ret = 0;
    switch (op) {
    case OP_WRITE:
        memset(w->buf, fill, bytes);
        memset(run.model + offset, fill, bytes);
        ret = node_co_pwrite(run.node, offset, w->buf, bytes, 0);
        if (run.emit)
            fprintf(run.emit, "write -q -P %u %" PRIu64 " %" PRIu64 "\n", fill, offset, bytes);
        break;
    case OP_ZERO:
        memset(run.model + offset, 0, bytes);
        ret = node_co_pwrite_zeroes(run.node, offset, bytes, unmap ? NODE_IO_MAY_UNMAP : 0);
        if (run.emit)
            fprintf(run.emit, "write -q -z %s %" PRIu64 " %" PRIu64 "\n", unmap ? "-u" : "", offset, bytes);
        break;
    case OP_DISCARD:
        ret = node_co_pdiscard(run.node, offset, bytes);
        if (ret == 0)
            learn_discarded(w, offset, bytes);
        break;
    case OP_READ:
        ret = node_co_pread(run.node, offset, w->buf, bytes);
        if (ret == 0 && memcmp(w->buf, run.model + offset, bytes) != 0)
            complain(w, "read", offset, bytes, 0);
        break;
    case OP_FLUSH:
        ret = node_co_flush(run.node);
        break;
    case OPS:
        break;
    }
    if (ret < 0)
        complain(w, "operation", offset, bytes, ret);
}

static void worker_entry(void *arg)
{
    struct worker *w = arg;
    for (uint64_t i = 0; i < run.ops && __atomic_load_n(&run.failed, __ATOMIC_RELAXED) == 0; i++)
        one_op(w);
    __atomic_fetch_sub(&run.left, 1, __ATOMIC_RELEASE);
}

struct starting {
    struct worker *workers;
    unsigned count;
};

static void start_entry(void *arg)
{
    struct starting *s = arg;
    for (unsigned i = 0; i < s->count; i++)
        co_enter(co_create(worker_entry, &s->workers[i]));
}

static int compare_all(void)
{
    uint8_t *buf = malloc(1 << 20);
    for (uint64_t at = 0; at < run.length; at += 1 << 20) {
        uint64_t n = run.length - at < 1 << 20 ? run.length - at : 1 << 20;
        int ret = node_co_pread(run.node, at, buf, n);
        if (ret < 0 || memcmp(buf, run.model + at, n) != 0) {
            uint64_t i = 0;
            while (ret == 0 && buf[i] == run.model[at + i])
                i++;
            fprintf(stderr, "at %" PRIu64 ": %s\n", at + i,
                    ret < 0 ? strerror(-ret) : "differs from the model");
            run.failed++;
            break;
        }
    }
    free(buf);
    return 0;
}

static void compare_entry(void *arg)
{
    compare_all();
}

static int run_ops(const char *path)
{
    unsigned loops = (unsigned)arg_number("loops", 0), depth = (unsigned)arg_number("depth", 1);
    unsigned threads = loops ? loops : 1;
    run.node = open_image(path, true);
    if (!run.node)
        return fail(path, -EIO);
    run.length = node_length(run.node);
    run.ops = arg_number("ops", 1000);
    run.workers = threads * depth;
    run.region = arg_number("region", run.workers == 1 ? run.length : 16384);
    run.max = arg_number("max", 256 << 10);
    const char *const names[OPS] = {"write", "zero", "discard", "read", "flush"};
    const unsigned defaults[OPS] = {50, 8, 8, 30, 2};
    for (int i = 0; i < OPS; i++)
        run.weight_sum += run.weights[i] = (unsigned)arg_number(names[i], defaults[i]);
    const char *emit = arg_text("emit", NULL), *model = arg_text("model", NULL);
    run.emit = emit ? fopen(emit, "w") : NULL;
    int fd = model ? open(model, O_RDWR | O_CREAT, 0666) : -1;
    if (fd >= 0 && ftruncate(fd, (off_t)run.length) < 0)
        return fail(model, -errno);
    run.model = mmap(NULL, run.length ? run.length : 1, PROT_READ | PROT_WRITE,
                     fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd, 0);
    if (run.model == MAP_FAILED)
        return fail("model", -errno);
    struct worker *workers = calloc(run.workers, sizeof(*workers));
    for (unsigned i = 0; i < run.workers; i++) {
        workers[i] =
            (struct worker){.index = i, .seed = (arg_number("seed", 1) + i) * 0x9e3779b97f4a7c15ull + 1};
        workers[i].buf =
            aligned_alloc(4096, ((run.max > run.region ? run.max : run.region) + 8191) & ~4095ull);
    }
    run.left = run.workers;
    if (!loops) {
        struct starting s = {workers, depth};
        start_entry(&s);
        while (__atomic_load_n(&run.left, __ATOMIC_ACQUIRE))
            loop_turn(loop, true);
    } else {
        struct iothread *thread[16];
        struct starting s[16];
        for (unsigned i = 0; i < loops && i < 16; i++) {
            thread[i] = iothread_start("worker", 0, &error);
            s[i] = (struct starting){workers + i * depth, depth};
            iothread_call(thread[i], start_entry, &s[i]);
        }
        while (__atomic_load_n(&run.left, __ATOMIC_ACQUIRE))
            usleep(500);
        for (unsigned i = 0; i < loops && i < 16; i++)
            iothread_stop(thread[i]);
    }
    if (!run.failed)
        loop_run_coroutine(loop, compare_entry, NULL);
    if (run.emit)
        fclose(run.emit);
    int ret = close_image(run.node);
    for (unsigned i = 0; i < run.workers; i++)
        free(workers[i].buf);
    free(workers);
    munmap(run.model, run.length ? run.length : 1);
    if (fd >= 0)
        close(fd);
    if (ret < 0)
        return fail("close", ret);
    return run.failed ? 1 : 0;
}

/* ---- the rest: one call each ---- */

struct call {
    struct node *node;
    char **words;
    int ret;
};

static void snapshot_entry(void *arg)
{
    struct call *c = arg;
    const char *what = c->words[0], *name = c->words[1];
    c->ret = strcmp(what, "create") == 0  ? qcow2_co_snapshot_create(c->node, name, &error)
             : strcmp(what, "apply") == 0 ? qcow2_co_snapshot_apply(c->node, name, &error)
                                          : qcow2_co_snapshot_delete(c->node, name, &error);
}

static void resize_entry(void *arg)
{
    struct call *c = arg;
    enum qcow2_preallocation mode = QCOW2_PREALLOCATION_OFF;
    uint64_t bytes = strtoull(c->words[0], NULL, 0);
    if (c->words[1] && qcow2_preallocation_parse(c->words[1], &mode) == 0)
        c->ret = qcow2_co_grow(c->node, bytes, mode, &error);
    else
        c->ret = node_co_truncate(c->node, bytes, true, &error);
}

static void print_line(void *opaque, const char *line)
{
    printf("%s\n", line);
}

static void check_entry(void *arg)
{
    struct call *c = arg;
    struct qcow2_check result;
    const char *mode = c->words[0] ? c->words[0] : "";
    unsigned fix = strcmp(mode, "all") == 0     ? QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS
                   : strcmp(mode, "leaks") == 0 ? QCOW2_FIX_LEAKS
                                                : 0;
    c->ret = qcow2_co_check(c->node, fix, &result, print_line, NULL, &error);
    if (c->ret == 0) {
        printf("corruptions %" PRIu64 " leaks %" PRIu64 " errors %" PRIu64 " fixed %" PRIu64 " %" PRIu64
               " allocated %" PRIu64 " of %" PRIu64 " compressed %" PRIu64 " end %" PRIu64 "\n",
               result.corruptions, result.leaks, result.check_errors, result.corruptions_fixed,
               result.leaks_fixed, result.allocated_clusters, result.total_clusters,
               result.compressed_clusters, result.image_end_offset);
        c->ret = result.check_errors ? -EIO : result.corruptions ? -EBADMSG : result.leaks ? -EOVERFLOW : 0;
    }
}

static void read_entry(void *arg)
{
    struct call *c = arg;
    uint64_t length = node_length(c->node), at = 0;
    uint8_t *buf = malloc(1 << 16);
    while (at < length && c->ret == 0) {
        uint64_t pnum;
        unsigned flags;
        c->ret = node_co_block_status(c->node, at, length - at, &pnum, &flags, NULL);
        if (c->ret < 0)
            break;
        if (flags & (NODE_STATUS_DATA | NODE_STATUS_COMPRESSED)) {
            pnum = pnum < 1 << 16 ? pnum : 1 << 16;
            c->ret = node_co_pread(c->node, at, buf, pnum);
        }
        at += pnum;
    }
    free(buf);
}

static void dump_entry(void *arg)
{
    struct call *c = arg;
    uint64_t length = node_length(c->node);
    uint8_t *buf = malloc(1 << 20);
    int fd = open(c->words[0], O_WRONLY | O_CREAT | O_TRUNC, 0666);
    for (uint64_t at = 0; at < length && c->ret == 0; at += 1 << 20) {
        uint64_t n = length - at < 1 << 20 ? length - at : 1 << 20;
        c->ret = node_co_pread(c->node, at, buf, n);
        if (c->ret == 0 && pwrite(fd, buf, n, (off_t)at) != (ssize_t)n)
            c->ret = -errno;
    }
    if (ftruncate(fd, (off_t)length) < 0)
        c->ret = -errno;
    close(fd);
    free(buf);
}

static void one_entry(struct call *c, bool is_write)
{
    uint64_t offset = strtoull(c->words[0], NULL, 0), bytes = strtoull(c->words[1], NULL, 0);
    uint8_t *buf = calloc(1, bytes);
    memset(buf, 0x5a, bytes);
    c->ret = is_write ? node_co_pwrite(c->node, offset, buf, bytes, 0)
                      : node_co_pread(c->node, offset, buf, bytes);
    free(buf);
}

static void one_read_entry(void *arg)
{
    one_entry(arg, false);
}

static void one_write_entry(void *arg)
{
    one_entry(arg, true);
}

static void rebase_entry(void *arg)
{
    struct call *c = arg;
    c->ret = qcow2_co_change_backing(c->node, c->words[0], c->words[0] ? c->words[1] : NULL, &error);
}

static void empty_entry(void *arg)
{
    struct call *c = arg;
    c->ret = qcow2_co_make_empty(c->node, &error);
}

static int with_image(const char *path, bool writable, void (*entry)(void *), char **words)
{
    struct call c = {.words = words};
    c.node = open_image(path, writable);
    if (!c.node)
        return fail(path, -EIO);
    error.text[0] = '\0';
    loop_run_coroutine(loop, entry, &c);
    int ret = close_image(c.node);
    if (c.ret < 0) {
        fail(path, c.ret);
        return c.ret == -EBADMSG ? 2 : c.ret == -EOVERFLOW ? 3 : 1;
    }
    return ret < 0 ? fail("close", ret) : 0;
}

struct compression {
    struct node *node;
    FILE *in;
    int ret;
};

static void compress_entry(void *arg)
{
    struct compression *c = arg;
    struct qcow2_info info;
    qcow2_info(c->node, &info);
    uint8_t *buf = malloc(info.cluster_bytes);
    size_t n;
    uint64_t at = 0;
    while (c->ret == 0 && (n = fread(buf, 1, info.cluster_bytes, c->in)) > 0) {
        c->ret = node_co_pwrite(c->node, at, buf, n, NODE_IO_COMPRESSED);
        at += n;
    }
    free(buf);
}

static int compress_file(const char *in, const char *out)
{
    struct stat st;
    struct compression c = {.in = fopen(in, "r")};
    if (!c.in || fstat(fileno(c.in), &st) < 0)
        return fail(in, -errno);
    static char size[40];
    snprintf(size, sizeof(size), "size=%lld", (long long)st.st_size);
    args[nargs++] = size;
    if (create(out))
        return 1;
    c.node = open_image(out, true);
    if (!c.node)
        return fail(out, -EIO);
    loop_run_coroutine(loop, compress_entry, &c);
    int ret = close_image(c.node);
    fclose(c.in);
    return c.ret < 0 ? fail(out, c.ret) : ret < 0 ? fail("close", ret) : 0;
}

int main(int argc, char **argv)
{
    static char *more[64];
    if (argc < 3) {
        fprintf(stderr, "usage: tool_qcow2 COMMAND PATH [ARGUMENT...]\n");
        return 2;
    }
    for (int i = 3; i < argc && nargs < 60; i++)
        more[nargs++] = argv[i];
    args = more;
    loop = loop_create("main", &error);
    if (!loop)
        return fail("loop", -ENOMEM);
    const char *command = argv[1], *path = argv[2];
    int ret = 2;
    if (strcmp(command, "create") == 0)
        ret = create(path);
    else if (strcmp(command, "run") == 0)
        ret = run_ops(path);
    else if (strcmp(command, "snapshot") == 0)
        ret = with_image(path, true, snapshot_entry, args);
    else if (strcmp(command, "resize") == 0)
        ret = with_image(path, true, resize_entry, args);
    else if (strcmp(command, "compress") == 0 && argc > 3)
        ret = compress_file(path, argv[3]);
    else if (strcmp(command, "check") == 0) {
        char *mode = nargs ? args[0] : NULL, *words[] = {mode, NULL};
        bool fix = mode && !strchr(mode, '=');
        static char check_only[] = "check_only=1";
        args[nargs++] = check_only;
        ret = with_image(path, fix, check_entry, fix ? words : words + 1);
    } else if (strcmp(command, "dump") == 0)
        ret = with_image(path, false, dump_entry, args);
    else if (strcmp(command, "read") == 0 && argc > 4)
        ret = with_image(path, false, one_read_entry, args);
    else if (strcmp(command, "write") == 0 && argc > 4)
        ret = with_image(path, true, one_write_entry, args);
    else if (strcmp(command, "rebase") == 0)
        ret = with_image(path, true, rebase_entry, args);
    else if (strcmp(command, "empty") == 0)
        ret = with_image(path, true, empty_entry, args);
    else if (strcmp(command, "open") == 0)
        ret = with_image(path, nargs && strcmp(args[0], "rw") == 0, read_entry, args);
    loop_destroy(loop);
    return ret;
}
