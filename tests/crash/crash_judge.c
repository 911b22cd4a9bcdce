/*
 * Judging a crash state; see crash_judge.h.
 */
#include "tests/crash/crash_judge.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/block/node.h"
#include "host/runtime/loop.h"

#define PATH_BYTES 512

extern char **environ;

struct sentence {
    char *text;
    size_t bytes;
};

static __attribute__((format(printf, 2, 3))) bool wrong(struct sentence why, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(why.text, why.bytes, format, args);
    va_end(args);
    return false;
}

/* ---- QEMU ---- */

/* Runs qemu-img; what it says goes to the file REPORT. Its exit status, or -1. */
static int qemu_img(const char *report, const char *const argv[])
{
    pid_t pid;
    int status;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    int error = posix_spawnp(&pid, "qemu-img", &actions, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

static int qemu_check(const char *report, const char *path)
{
    return qemu_img(report, (const char *const[]){"qemu-img", "check", "-q", "-f", "qcow2", path, NULL});
}

/* ---- our own eyes ---- */

struct looking {
    struct crash_judge *judge;
    const char *path;
    uint32_t at;
    bool writable;
    bool scribble; /* write to every other kilobyte before anything is read, and leave the disk unjudged */
    struct sentence why;
    bool good;
};

/* A hash of all that the disk, or its snapshot NAME, holds. */
static bool coroutine_fn hash_image(struct looking *look, const char *name, uint64_t *hash)
{
    struct error err = {0};
    struct node *node = NULL;
    struct open_options options = {
        .format = "qcow2", .read_only = true, .cache = CACHE_WRITEBACK, .no_lock = true, .snapshot = name};
    int result = node_co_open(look->path, &options, &node, &err);
    if (result < 0)
        return wrong(look->why, "we can't open snapshot '%s': %s", name, err.text);
    uint64_t bytes = node_length(node);
    uint8_t *data = malloc(bytes + 1);
    result = data ? node_co_pread(node, 0, data, bytes) : -ENOMEM;
    if (result == 0)
        *hash = crash_hash(data, bytes);
    free(data);
    (void)node_co_close(node);
    return result == 0 || wrong(look->why, "we can't read snapshot '%s': %s", name, strerror(-result));
}

static bool coroutine_fn look_at_snapshots(struct looking *look, struct node *node)
{
    const struct crash_judge *judge = look->judge;
    struct qcow2_snapshot_info *list = NULL;
    size_t count = 0;
    unsigned made = 0;
    bool good = qcow2_snapshots(node, &list, &count) == 0 || wrong(look->why, "no list of snapshots");
    for (size_t i = 0; good && i < count; i++) {
        uint64_t hash = 0;
        good = hash_image(look, list[i].name, &hash);
        if (!good)
            break;
        if (judge->workload->first == FIRST_SNAPSHOT && strcmp(list[i].name, "first") == 0) {
            good = hash == judge->first_hash || wrong(look->why, "the first snapshot has changed");
            continue;
        }
        made++;
        good = crash_model_snapshot_ok(judge->model, look->at, list[i].name, hash, look->why.text,
                                       look->why.bytes);
    }
    unsigned least = crash_model_snapshots_least(judge->model, look->at);
    if (good && judge->workload->first == FIRST_SNAPSHOT && count == 0)
        good = wrong(look->why, "the first snapshot is gone");
    if (good && made < least)
        good = wrong(look->why, "there are %u snapshots and have to be %u", made, least);
    free(list);
    return good;
}

static bool coroutine_fn look_at_disk(struct looking *look, struct node *node)
{
    const struct crash_judge *judge = look->judge;
    uint64_t bytes = node_length(node), sectors = bytes / 512;
    uint8_t *data = malloc(bytes + 1);
    int result = data ? node_co_pread(node, 0, data, bytes) : -ENOMEM;
    bool good;
    if (result < 0)
        good = wrong(look->why, "we can't read it: %s", strerror(-result));
    else if (!crash_model_size_ok(judge->model, look->at, sectors))
        good = wrong(look->why, "the disk has %llu sectors", (unsigned long long)sectors);
    else
        good = crash_model_verify(judge->model, look->at, data, sectors, look->why.text, look->why.bytes);
    free(data);
    return good;
}

static int coroutine_fn scribble(struct node *node)
{
    static const uint8_t ink[1024] = {1};
    int result = 0;
    for (uint64_t at = 0; result == 0 && at + sizeof ink <= node_length(node); at += 2 * sizeof ink)
        result = node_co_pwrite(node, at, ink, sizeof ink, 0);
    return result == 0 ? node_co_flush(node) : result;
}

static void coroutine_fn look(void *opaque)
{
    struct looking *look = opaque;
    struct error err = {0};
    struct node *node = NULL;
    struct open_options options = {
        .format = "qcow2", .read_only = !look->writable, .cache = CACHE_WRITEBACK, .no_lock = true};
    int result = node_co_open(look->path, &options, &node, &err);
    if (result < 0) {
        wrong(look->why, "we can't open it: %s", err.text);
        return;
    }
    if (look->scribble) {
        result = scribble(node);
        look->good = result == 0 || wrong(look->why, "we can't write to it: %s", strerror(-result));
    } else {
        look->good = look_at_disk(look, node);
    }
    look->good = look->good && look_at_snapshots(look, node);
    result = node_co_close(node);
    if (look->good && result < 0)
        look->good = wrong(look->why, "we can't close it: %s", strerror(-result));
}

static bool look_ourselves(struct crash_judge *judge, const char *path, uint32_t at, bool writable,
                           bool scribbling, struct sentence why)
{
    struct looking looking = {
        .judge = judge, .path = path, .at = at, .writable = writable, .scribble = scribbling, .why = why};
    loop_run_coroutine(loop_current(), look, &looking);
    return looking.good;
}

struct checking {
    const char *path;
    unsigned fix;
    struct qcow2_check result;
    struct error err;
    int ret;
    uint64_t file_clusters, leaks_inside;
};

static void count_leak_inside(void *opaque, const char *line)
{
    struct checking *c = opaque;
    unsigned long long cluster;
    if (sscanf(line, "Leaked cluster %llu", &cluster) == 1 && cluster < c->file_clusters)
        c->leaks_inside++;
}

static void coroutine_fn check(void *opaque)
{
    struct checking *c = opaque;
    struct node *node = NULL;
    struct open_options options = {.format = "qcow2",
                                   .read_only = c->fix == 0,
                                   .check_only = true,
                                   .cache = CACHE_WRITEBACK,
                                   .no_lock = true};
    c->ret = node_co_open(c->path, &options, &node, &c->err);
    if (c->ret < 0)
        return;
    struct qcow2_info info;
    if (qcow2_info(node, &info) == 0)
        c->file_clusters = (node_length(node->file) + info.cluster_bytes - 1) / info.cluster_bytes;
    c->ret = qcow2_co_check(node, c->fix, &c->result, count_leak_inside, c, &c->err);
    int closed = node_co_close(node);
    if (c->ret == 0)
        c->ret = closed;
}

/* What qemu-img check would exit with, by our own check: 0, 2 (errors), 3 (leaks); 1 if it cannot be done. It
 * does not look at refcounts of clusters beyond the end of the file; we do. */
static int our_check(const char *path, unsigned fix)
{
    struct checking c = {.path = path, .fix = fix};
    loop_run_coroutine(loop_current(), check, &c);
    return c.ret < 0 || c.result.check_errors        ? 1
           : c.result.corruptions                    ? 2
           : (fix ? c.result.leaks : c.leaks_inside) ? 3
                                                     : 0;
}

/* ---- the verdict ---- */

static bool read_by_qemu(struct crash_judge *judge, const char *path, uint32_t at, struct sentence why)
{
    char raw[PATH_BYTES + 8], report[PATH_BYTES + 8];
    struct stat st;
    snprintf(raw, sizeof raw, "%s/raw", judge->dir);
    snprintf(report, sizeof report, "%s/report", judge->dir);
    int status = qemu_img(report, (const char *const[]){"qemu-img", "convert", "-q", "-f", "qcow2", "-O",
                                                        "raw", path, raw, NULL});
    if (status != 0)
        return wrong(why, "QEMU can't read it, see %s", report);
    int fd = open(raw, O_RDONLY | O_CLOEXEC);
    uint8_t *data = NULL;
    bool good = fd >= 0 && fstat(fd, &st) == 0 && (data = malloc((size_t)st.st_size + 1)) &&
                read(fd, data, (size_t)st.st_size) == st.st_size;
    if (!good) {
        wrong(why, "%s: %s", raw, strerror(errno));
    } else if (!crash_model_verify(judge->model, at, data, (uint64_t)st.st_size / 512, why.text, why.bytes)) {
        size_t used = strlen(why.text);
        snprintf(why.text + used, why.bytes - used, " (as QEMU reads it)");
        good = false;
    }
    free(data);
    if (fd >= 0)
        close(fd);
    judge->read_by_qemu++;
    return good;
}

static bool copy(const char *from, const char *to)
{
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool good = in >= 0 && out >= 0;
    ssize_t n = 1;
    while (good && n > 0) {
        n = copy_file_range(in, NULL, out, NULL, 1 << 30, 0);
        good = n >= 0;
    }
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return good;
}

/* Life goes on: its leaks can be mended by either side, and it can be written to. */
static bool goes_on(struct crash_judge *judge, const char *path, uint32_t at, struct sentence why)
{
    char other[PATH_BYTES + 16], report[PATH_BYTES + 16];
    snprintf(other, sizeof other, "%s/mended", judge->dir);
    snprintf(report, sizeof report, "%s/report", judge->dir);
    judge->mended++;

    if (!copy(path, other))
        return wrong(why, "%s: %s", other, strerror(errno));
    qemu_img(report,
             (const char *const[]){"qemu-img", "check", "-q", "-r", "leaks", "-f", "qcow2", other, NULL});
    if (qemu_check(report, other) != 0)
        return wrong(why, "mended by QEMU it is not clean, see %s", report);
    if (!look_ourselves(judge, other, at, false, false, why))
        return false;

    if (!copy(path, other))
        return wrong(why, "%s: %s", other, strerror(errno));
    if (our_check(other, QCOW2_FIX_LEAKS) != 0 || qemu_check(report, other) != 0)
        return wrong(why, "mended by us it is not clean, see %s", report);
    if (!look_ourselves(judge, other, at, false, false, why))
        return false;

    if (!copy(path, other))
        return wrong(why, "%s: %s", other, strerror(errno));
    if (!look_ourselves(judge, other, at, true, false, why) ||
        !look_ourselves(judge, other, at, true, true, why))
        return false;
    int status = qemu_check(report, other);
    if (status != 0 && status != 3)
        return wrong(why, "opened and written to, qemu-img check exits with %d, see %s", status, report);
    return true;
}

bool crash_judge_state(struct crash_judge *judge, uint32_t at, bool is_new, bool deep, char *why_text,
                       size_t why_bytes)
{
    struct sentence why = {why_text, why_bytes};
    char path[PATH_BYTES], report[PATH_BYTES + 8];
    snprintf(path, sizeof path, "%s/state", judge->dir);
    snprintf(report, sizeof report, "%s/report", judge->dir);

    if (is_new) {
        int status = qemu_check(report, path), ours = our_check(path, 0);
        judge->checked++;
        if (status != ours)
            return wrong(why, "qemu-img check exits with %d, ours would with %d, see %s", status, ours,
                         report);
        judge->leaking += status == 3;
        if (status != 0 && status != 3)
            return wrong(why, "qemu-img check exits with %d, see %s", status, report);
    }
    return look_ourselves(judge, path, at, false, false, why) &&
           (!deep || (read_by_qemu(judge, path, at, why) && goes_on(judge, path, at, why)));
}
