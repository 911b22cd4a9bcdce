/*
 * The two images of a pair: made, opened, read, checked; see pair.h.
 *
 * Our side is calls in this process; QEMU's is its programs.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/qcow2/qcow2.h"
#include "tests/image/pair.h"

extern char **environ;

const char *const pair_side_names[SIDES] = {"ours", "theirs"};

__attribute__((format(printf, 2, 3))) bool pair_wrong(struct pair *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!p->why[0])
        vsnprintf(p->why, sizeof p->why, format, args);
    va_end(args);
    return false;
}

void pair_path(const struct pair *p, char path[600], const char *name, const char *suffix)
{
    snprintf(path, 600, "%s/%s.%s", p->dir, name, suffix);
}

int pair_spawn(const struct pair *p, const char *const argv[])
{
    char report[600];
    pid_t pid;
    int status;
    posix_spawn_file_actions_t actions;
    snprintf(report, sizeof report, "%s/report", p->dir);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    int error = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

int pair_qemu(struct pair *p, const char *program, const char *command, const char *const options[],
              enum side first, bool both)
{
    /* Flushes of the host's file are no part of what is compared, and pieces of an L2 table do as well as the
     * 2 MiB of a whole one. */
    static const char image[] = "driver=qcow2,file.driver=file,file.cache.no-flush=on,file.filename=%s%s%s";
    static const char *argv[2 * PAIR_COMMANDS_MAX + 64];
    char secret[700], images[2][900], path[600];
    unsigned n = 0;
    snprintf(secret, sizeof secret, "secret,id=s,file=%s/pass", p->dir);
    argv[n++] = program;
    if (command)
        argv[n++] = command;
    argv[n++] = "--object";
    argv[n++] = secret;
    for (unsigned i = 0; options && options[i]; i++)
        argv[n++] = options[i];
    argv[n++] = "--image-opts";
    for (unsigned i = 0; i < (both ? 2u : 1u); i++) {
        pair_path(p, path, pair_side_names[(first + i) % SIDES], "qcow2");
        snprintf(images[i], sizeof images[i], image, path, p->luks ? ",encrypt.key-secret=s" : "",
                 p->cluster > 65536 ? ",l2-cache-entry-size=65536" : "");
        argv[n++] = images[i];
    }
    argv[n] = NULL;
    return pair_spawn(p, argv);
}

/* ---- making them ---- */

const char *pair_backing(const struct combination *c)
{
    return combination_is(c, D_BACKING, "raw")     ? "backing.raw"
           : combination_is(c, D_BACKING, "qcow2") ? "backing.qcow2"
                                                   : NULL;
}

/* The library that keeps qemu-img from measuring for seconds how fast keys are derived; it lies beside this
 * program. */
static const char *preload(void)
{
    static char text[600];
    char path[500];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    snprintf(text, sizeof text, "LD_PRELOAD=%s/quick_kdf.so", path);
    return text;
}

bool pair_qemu_creates(struct pair *p, enum side side)
{
    char options[1200], path[600], data[600], bytes[32], secret[700];
    const struct combination *c = p->c;
    const char *backing = pair_backing(c);
    pair_path(p, path, pair_side_names[side], "qcow2");
    pair_path(p, data, pair_side_names[side], "data");
    snprintf(secret, sizeof secret, "secret,id=s,file=%s/pass", p->dir);
    snprintf(bytes, sizeof bytes, "%" PRIu64, p->bytes);
    int n = snprintf(options, sizeof options,
                     "compat=%s,cluster_size=%s,refcount_bits=%s,lazy_refcounts=%s,extended_l2=%s,"
                     "compression_type=%s,preallocation=%s",
                     combination_value(c, D_VERSION), combination_value(c, D_CLUSTER),
                     combination_value(c, D_REFCOUNT_BITS), combination_value(c, D_LAZY),
                     combination_value(c, D_EXTENDED_L2), combination_value(c, D_COMPRESSION),
                     combination_value(c, D_PREALLOCATION));
    if (p->data_file)
        n += snprintf(options + n, sizeof options - (size_t)n, ",data_file=%s,data_file_raw=%s", data,
                      combination_is(c, D_DATA_FILE, "raw") ? "on" : "off");
    if (p->luks)
        snprintf(options + n, sizeof options - (size_t)n,
                 ",encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1");
    const char *argv[24] = {"env",   preload(),  "qemu-img", "create", "-q",   "-f",
                            "qcow2", "--object", secret,     "-o",     options};
    unsigned at = 11;
    if (backing) {
        argv[at++] = "-b";
        argv[at++] = backing;
        argv[at++] = "-F";
        argv[at++] = combination_value(c, D_BACKING);
    }
    argv[at++] = path;
    argv[at++] = bytes;
    argv[at] = NULL;
    return pair_spawn(p, argv) == 0;
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

bool pair_we_create(struct pair *p, enum side side, struct error *err)
{
    const struct combination *c = p->c;
    char secret[600], data[600];
    pair_path(p, data, pair_side_names[side], "data");
    struct creation creation = {
        .options = {.size = p->bytes,
                    .version = combination_is(c, D_VERSION, "0.10") ? 2 : 3,
                    .cluster_bytes = (uint32_t)p->cluster,
                    .refcount_bits = (unsigned)combination_number(c, D_REFCOUNT_BITS),
                    .lazy_refcounts = combination_is(c, D_LAZY, "on"),
                    .extended_l2 = combination_is(c, D_EXTENDED_L2, "on"),
                    .backing_file = pair_backing(c),
                    .backing_format = pair_backing(c) ? combination_value(c, D_BACKING) : NULL,
                    .data_file = p->data_file ? data : NULL, /* QEMU looks from its working directory */
                    .data_file_raw = combination_is(c, D_DATA_FILE, "raw"),
                    .encrypt_format = p->luks ? "luks" : NULL,
                    .luks = {.iter_time_ms = 1}}};
    snprintf(secret, sizeof secret, "%s/pass", p->dir);
    creation.options.luks.secret_file = p->luks ? secret : NULL;
    pair_path(p, creation.path, pair_side_names[side], "qcow2");
    (void)qcow2_compression_parse(combination_value(c, D_COMPRESSION), &creation.options.compression_type);
    (void)qcow2_preallocation_parse(combination_value(c, D_PREALLOCATION), &creation.options.preallocation);
    loop_run_coroutine(p->loop, create_entry, &creation);
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

int coroutine_fn pair_co_open(struct pair *p, enum side side, bool writable, bool check_only,
                              const char *snapshot, struct node **node)
{
    char path[600], secret[600];
    struct error err = {0};
    pair_path(p, path, pair_side_names[side], "qcow2");
    snprintf(secret, sizeof secret, "%s/pass", p->dir);
    struct open_options options = {.format = "qcow2",
                                   .read_only = !writable,
                                   .check_only = check_only,
                                   .cache = CACHE_WRITEBACK,
                                   .snapshot = snapshot,
                                   .backing = BACKING_DIR,
                                   .backing_dir = p->dir,
                                   .secret_file = p->luks ? secret : NULL};
    int ret = node_co_open(path, &options, node, &err);
    if (ret < 0)
        pair_wrong(p, "we can't open %s: %s", pair_side_names[side], err.text);
    return ret;
}

static void coroutine_fn compare_entry(void *opaque)
{
    struct call *call = opaque;
    struct pair *p = call->p;
    struct node *node;
    call->ret = pair_co_open(p, call->side, false, false, call->snapshot, &node);
    if (call->ret < 0)
        return;
    if (node_length(node) != call->bytes) {
        pair_wrong(p, "%s%s%s has %" PRIu64 " bytes, not %" PRIu64, pair_side_names[call->side],
                   call->snapshot ? ", snapshot " : "", call->snapshot ? call->snapshot : "",
                   node_length(node), call->bytes);
        call->ret = -EIO;
    }
    for (uint64_t at = 0; call->ret == 0 && at < call->bytes; at += PAIR_REQUEST_MAX) {
        uint64_t n = call->bytes - at < PAIR_REQUEST_MAX ? call->bytes - at : PAIR_REQUEST_MAX;
        call->ret = node_co_pread(node, at, p->buffer, n);
        if (call->ret < 0) {
            pair_wrong(p, "we can't read %s at %" PRIu64 ": %s", pair_side_names[call->side], at,
                       strerror(-call->ret));
        } else if (memcmp(p->buffer, call->expected + at, n) != 0) {
            while (p->buffer[at % PAIR_REQUEST_MAX] == call->expected[at])
                at++;
            pair_wrong(p, "%s%s%s is wrong at %" PRIu64 ": %02x, not %02x", pair_side_names[call->side],
                       call->snapshot ? ", snapshot " : "", call->snapshot ? call->snapshot : "", at,
                       p->buffer[at % PAIR_REQUEST_MAX], call->expected[at]);
            call->ret = -EIO;
        }
    }
    (void)node_co_close(node);
}

bool pair_compare(struct pair *p, enum side side, const char *snapshot, const uint8_t *expected,
                  uint64_t bytes)
{
    struct call call = {.p = p, .side = side, .snapshot = snapshot, .expected = expected, .bytes = bytes};
    loop_run_coroutine(p->loop, compare_entry, &call);
    return call.ret == 0;
}

static void coroutine_fn check_entry(void *opaque)
{
    struct call *call = opaque;
    struct node *node;
    struct error err = {0};
    struct qcow2_check result = {0};
    call->ret = pair_co_open(call->p, call->side, false, true, NULL, &node);
    if (call->ret < 0)
        return;
    call->ret = qcow2_co_check(node, 0, &result, NULL, NULL, &err);
    (void)node_co_close(node);
    if (call->ret < 0 || result.corruptions || result.leaks || result.check_errors) {
        pair_wrong(
            call->p, "our check of %s: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors; %s",
            pair_side_names[call->side], result.corruptions, result.leaks, result.check_errors, err.text);
        call->ret = -EIO;
    }
}

bool pair_check(struct pair *p, enum side side)
{
    struct call call = {.p = p, .side = side};
    loop_run_coroutine(p->loop, check_entry, &call);
    int status = pair_qemu(p, "qemu-img", "check", NULL, side, false);
    return call.ret == 0 && (status == 0 || pair_wrong(p, "qemu-img check of %s exits with %d, see report",
                                                       pair_side_names[side], status));
}
