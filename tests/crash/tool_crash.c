/*
 * tool_crash: runs a workload on a qcow2 image under the log of writes, and then looks at many states in
 * which a power loss could have left the file. In each: qemu-img check finds leaks at most, we open it, and
 * every sector holds what it may (crash_model.h). Stops at the first state that is wrong, keeps it, and says
 * how to get it again.
 *
 *   tool_crash --dir=DIR [--workload=NAME|all] [--seed=N] [--seeds=N] [--ops=N] [--states=N] [--list]
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/block/node.h"
#include "host/runtime/loop.h"
#include "tests/crash/crash_log.h"
#include "tests/crash/crash_model.h"
#include "tests/crash/crash_workload.h"

extern char **environ;

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

/* Writes the state to PATH, only what differs from the state before. */
static bool put_state(const struct crash_disk *disk, int fd, uint8_t *previous, uint64_t *previous_bytes)
{
    for (uint64_t at = 0; at < disk->limit; at += 4096) {
        uint64_t n = disk->limit - at < 4096 ? disk->limit - at : 4096;
        if (memcmp(disk->state + at, previous + at, n) == 0)
            continue;
        if (pwrite(fd, disk->state + at, n, (off_t)at) != (ssize_t)n)
            return false;
        memcpy(previous + at, disk->state + at, n);
    }
    if (ftruncate(fd, (off_t)disk->state_bytes) != 0)
        return false;
    if (disk->state_bytes < *previous_bytes || disk->state_bytes > *previous_bytes) {
        /* what was cut off has to be written again should the file grow */
        memset(previous + disk->state_bytes, 0, disk->limit - disk->state_bytes);
        *previous_bytes = disk->state_bytes;
    }
    return true;
}

struct reading {
    const char *path;
    bool repair;
    uint8_t *data;
    uint64_t sectors;
    bool good;
    char why[1200];
};

static void coroutine_fn read_image(void *opaque)
{
    struct reading *reading = opaque;
    struct error err = {0};
    struct node *node = NULL;
    struct open_options options = {
        .format = "qcow2", .read_only = !reading->repair, .cache = CACHE_WRITEBACK, .no_lock = true};
    int result = node_co_open(reading->path, &options, &node, &err);
    if (result < 0) {
        snprintf(reading->why, sizeof reading->why, "we can't open it: %s", err.text);
        return;
    }
    uint64_t bytes = node_length(node);
    reading->sectors = bytes / 512;
    reading->data = malloc(bytes + 1);
    result = reading->data ? node_co_pread(node, 0, reading->data, bytes) : -ENOMEM;
    if (result < 0)
        snprintf(reading->why, sizeof reading->why, "we can't read it: %s", strerror(-result));
    int closed = node_co_close(node);
    if (result >= 0 && closed < 0)
        snprintf(reading->why, sizeof reading->why, "we can't close it: %s", strerror(-closed));
    reading->good = result >= 0 && closed >= 0;
}

/* Does the header say that refcounts may be wrong (dirty bit, checklist C3)? */
static bool is_dirty(const char *path)
{
    unsigned char header[80] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool dirty = fd >= 0 && pread(fd, header, sizeof header, 0) == (ssize_t)sizeof header && header[7] >= 3 &&
                 (header[79] & 1);
    if (fd >= 0)
        close(fd);
    return dirty;
}

/* False: WHY says what is wrong with the image at PATH. *CHANGED: the file was repaired. */
static bool judge(const char *path, const struct crash_model *model, uint32_t at, bool lazy, char *why,
                  size_t why_bytes, bool *changed)
{
    char report[520];
    snprintf(report, sizeof report, "%s.check", path);
    int status =
        qemu_img(report, (const char *const[]){"qemu-img", "check", "-q", "-f", "qcow2", path, NULL});
    *changed = false;
    if (status != 0 && status != 3 && lazy) {
        /* refcounts were put off: repaired, all must be well (checklist O2) */
        *changed = true;
        qemu_img(report,
                 (const char *const[]){"qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", path, NULL});
        status =
            qemu_img(report, (const char *const[]){"qemu-img", "check", "-q", "-f", "qcow2", path, NULL});
    }
    if (status != 0 && status != 3) {
        snprintf(why, why_bytes, "qemu-img check exits with %d, see %s", status, report);
        return false;
    }
    struct reading reading = {.path = path, .repair = lazy};
    if (lazy)
        *changed = true;
    loop_run_coroutine(loop_current(), read_image, &reading);
    bool good = reading.good;
    if (!good) {
        snprintf(why, why_bytes, "%s", reading.why);
    } else if (!crash_model_size_ok(model, at, reading.sectors)) {
        snprintf(why, why_bytes, "the disk has %llu sectors", (unsigned long long)reading.sectors);
        good = false;
    } else {
        good = crash_model_verify(model, at, reading.data, reading.sectors, why, why_bytes);
    }
    free(reading.data);
    return good;
}

static bool explore(const struct crash_workload *w, const char *dir, uint64_t seed, unsigned states,
                    unsigned ops)
{
    char path[512], first[512], log_path[512];
    snprintf(path, sizeof path, "%s/state", dir);
    snprintf(first, sizeof first, "%s/first", dir);
    snprintf(log_path, sizeof log_path, "%s/log", dir);
    struct crash_log log;
    struct crash_disk disk;
    struct crash_model model = {.first_sectors = w->create.size / 512,
                                .backed = w->first != FIRST_EMPTY,
                                .backed_sectors = w->create.size / 512};
    if (!crash_log_read(log_path, &log) || !crash_disk_init(&disk, &log, first) ||
        !crash_model_read(&model, &log))
        return false;
    uint8_t *previous = calloc(1, disk.limit + 1);
    uint64_t previous_bytes = 0, random = seed ^ 0xc0ffee;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool good = previous && fd >= 0;

    for (unsigned n = 0; good && n < states; n++) {
        /* evenly over the log, the last one at its very end */
        uint32_t at = (uint32_t)((uint64_t)log.event_count * (n + 1) / states);
        enum crash_choice choice = n % 8 == 1   ? CRASH_ALL
                                   : n % 8 == 3 ? CRASH_ENDED
                                   : n % 8 == 5 ? CRASH_DURABLE
                                                : CRASH_RANDOM;
        uint64_t state_seed = crash_random(&random);
        crash_disk_state(&disk, at, choice, state_seed);
        char why[1400];
        bool changed = false;
        if (!put_state(&disk, fd, previous, &previous_bytes)) {
            perror(path);
            good = false;
            break;
        }
        if (!judge(path, &model, at, w->create.lazy_refcounts || is_dirty(path), why, sizeof why, &changed)) {
            fprintf(stderr,
                    "workload %s (%s), seed %llu, %u requests: state %u of %u, power lost before event %u of "
                    "%zu, "
                    "choice %d: %s\nthe image is in %s\n",
                    w->name, w->what, (unsigned long long)seed, ops, n, states, at, log.event_count,
                    (int)choice, why, path);
            good = false;
        }
        if (changed) {
            memset(previous, 0, disk.limit);
            previous_bytes = 0;
            if (ftruncate(fd, 0) != 0)
                good = false;
        }
    }
    if (fd >= 0)
        close(fd);
    free(previous);
    crash_model_free(&model);
    crash_disk_free(&disk);
    crash_log_free(&log);
    return good;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'},  {"workload", required_argument, NULL, 'w'},
        {"seed", required_argument, NULL, 's'}, {"seeds", required_argument, NULL, 'n'},
        {"ops", required_argument, NULL, 'o'},  {"states", required_argument, NULL, 't'},
        {"list", no_argument, NULL, 'l'},       {0},
    };
    const char *dir = NULL, *name = "all";
    uint64_t seed = 1, seeds = 1;
    unsigned ops = 400, states = 100;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            dir = optarg;
            break;
        case 'w':
            name = optarg;
            break;
        case 's':
            seed = strtoull(optarg, NULL, 10);
            break;
        case 'n':
            seeds = strtoull(optarg, NULL, 10);
            break;
        case 'o':
            ops = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 't':
            states = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'l':
            for (unsigned i = 0; i < crash_workload_count; i++)
                printf("%s\n", crash_workloads[i].name);
            return 0;
        default:
            return 2;
        }
    }
    if (!dir) {
        fprintf(stderr, "tool_crash: --dir is missing\n");
        return 2;
    }
    struct error err = {0};
    struct loop *loop = loop_create("crash", &err);
    if (!loop) {
        fprintf(stderr, "tool_crash: %s\n", err.text);
        return 1;
    }
    bool good = true;
    unsigned found = 0;
    for (unsigned i = 0; good && i < crash_workload_count; i++) {
        const struct crash_workload *w = &crash_workloads[i];
        if (strcmp(name, "all") != 0 && strcmp(name, w->name) != 0)
            continue;
        found++;
        for (uint64_t s = seed; good && s < seed + seeds; s++)
            good = crash_workload_run(w, dir, s, ops) && explore(w, dir, s, states, ops);
        if (good)
            printf("%s: %llu states, all well\n", w->name, (unsigned long long)(seeds * states));
    }
    loop_destroy(loop);
    if (found == 0) {
        fprintf(stderr, "tool_crash: there is no workload %s (--list)\n", name);
        return 2;
    }
    return good ? 0 : 1;
}
