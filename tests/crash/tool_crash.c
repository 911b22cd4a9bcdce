/*
 * tool_crash: runs a workload on a qcow2 image under the log of writes, and then looks at many states in
 * which a power loss could have left the file (crash_log.h), each judged as crash_judge.h says. Stops at the
 * first state that is wrong, leaves it in DIR, and says how to get it again.
 *
 *   tool_crash --dir=DIR [--workload=NAME|all] [--states=N] [--seed=N] [--ops=N] [--points=N] [--prefixes]
 *              [--again] [--list]
 *
 * --ops requests are made with a seed, then the states at --points places of the log are looked at: with
 * everything there, with only what had ended, with only what is durable, and most of all with a random subset
 * in a random order, torn. That is done with one seed after the other until there were --states different
 * ones. States are counted by what the file holds: two choices that give the same bytes are one state.
 * --prefixes: with the first seed every prefix of the log is looked at before. --again: looks at the log that
 * is in DIR already, in the same way.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/runtime/loop.h"
#include "tests/crash/crash_judge.h"
#include "tests/crash/crash_log.h"
#include "tests/crash/crash_model.h"
#include "tests/crash/crash_workload.h"

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

/* Hashes of the states seen, so that each is counted once */
struct seen {
    uint64_t *slots; /* 0: empty */
    size_t room, count;
};

/* False if HASH was there already. */
static bool seen_add(struct seen *seen, uint64_t hash)
{
    hash |= 1;
    if (seen->count * 2 >= seen->room) {
        struct seen larger = {.room = seen->room ? seen->room * 2 : 1024};
        larger.slots = calloc(larger.room, sizeof *larger.slots);
        if (!larger.slots)
            abort();
        for (size_t i = 0; i < seen->room; i++) {
            if (seen->slots[i])
                (void)seen_add(&larger, seen->slots[i]);
        }
        free(seen->slots);
        *seen = larger;
    }
    size_t at = (hash >> 1) % seen->room;
    while (seen->slots[at]) {
        if (seen->slots[at] == hash)
            return false;
        at = (at + 1) % seen->room;
    }
    seen->slots[at] = hash;
    seen->count++;
    return true;
}

struct exploration {
    const struct crash_workload *workload;
    const char *dir;
    uint64_t seed;
    unsigned ops;
    struct crash_log log;
    struct crash_disk disk;
    struct crash_model model;
    struct crash_judge judge;
    struct seen seen;
    uint64_t looked_at;
    int fd;
    uint8_t *previous; /* what is in the file now */
    uint64_t previous_bytes;
};

static bool look_at(struct exploration *x, uint32_t at, enum crash_choice choice, uint64_t seed)
{
    static const char *const choices[] = {"all", "ended", "durable", "random"};
    char why[1400];

    crash_disk_state(&x->disk, at, choice, seed);
    if (!put_state(&x->disk, x->fd, x->previous, &x->previous_bytes)) {
        perror(x->dir);
        return false;
    }
    bool is_new = seen_add(&x->seen, crash_hash(x->disk.state, x->disk.state_bytes));
    if (crash_judge_state(&x->judge, at, is_new, x->looked_at++ % 16 == 0, why, sizeof why))
        return true;
    fprintf(
        stderr,
        "workload %s (%s), seed %llu, %u requests: power lost before event %u of %zu, choice %s, state seed "
        "%llu: %s\nthe image is %s/state, the log beside it\n",
        x->workload->name, x->workload->what, (unsigned long long)x->seed, x->ops, at, x->log.event_count,
        choices[choice], (unsigned long long)seed, why, x->dir);
    return false;
}

static bool start(struct exploration *x)
{
    char path[512];
    const struct crash_workload *w = x->workload;
    snprintf(path, sizeof path, "%s/log", x->dir);
    if (!crash_log_read(path, &x->log))
        return false;
    x->model = (struct crash_model){.first_sectors = w->create.size / 512,
                                    .backed = w->first != FIRST_EMPTY && w->first != FIRST_BITMAPS,
                                    .backed_sectors = w->create.size / 512};
    snprintf(path, sizeof path, "%s/first", x->dir);
    if (!crash_disk_init(&x->disk, &x->log, path) || !crash_model_read(&x->model, &x->log))
        return false;
    x->judge.dir = x->dir;
    x->judge.workload = w;
    x->judge.model = &x->model;
    x->judge.first_hash = crash_model_first_hash(&x->model);
    snprintf(path, sizeof path, "%s/state", x->dir);
    x->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    x->previous = calloc(1, x->disk.limit + 1);
    x->previous_bytes = 0;
    if (x->fd < 0)
        perror(path);
    return x->fd >= 0 && x->previous;
}

static void end(struct exploration *x)
{
    if (x->fd >= 0)
        close(x->fd);
    x->fd = -1;
    free(x->previous);
    crash_model_free(&x->model);
    crash_disk_free(&x->disk);
    crash_log_free(&x->log);
    x->previous = NULL;
    x->model = (struct crash_model){0};
    x->disk = (struct crash_disk){0};
    x->log = (struct crash_log){0};
}

static bool explore_prefixes(struct exploration *x)
{
    bool good = start(x);
    for (size_t i = 0; good && i < x->log.op_count; i++) {
        if (x->log.ops[i].type != LOG_WRITES_BEGIN_FLUSH)
            good = look_at(x, x->log.ops[i].begin + 1, CRASH_ALL, 0);
    }
    end(x);
    return good;
}

static bool explore(struct exploration *x, unsigned points)
{
    uint64_t random = x->seed ^ 0xc0ffee;
    bool good = start(x);
    for (unsigned n = 0; good && n < points; n++) {
        /* evenly over the log, the last one at its very end */
        uint32_t at = (uint32_t)((uint64_t)x->log.event_count * (n + 1) / points);
        enum crash_choice choice = n % 16 == 1   ? CRASH_ALL
                                   : n % 16 == 6 ? CRASH_ENDED
                                   : n % 8 == 3  ? CRASH_DURABLE
                                                 : CRASH_RANDOM;
        good = look_at(x, at, choice, crash_random(&random));
    }
    end(x);
    return good;
}

struct options {
    const char *dir, *name;
    uint64_t seed, states;
    unsigned points, ops;
    bool prefixes, again;
};

static bool run(const struct crash_workload *w, const struct options *options)
{
    struct exploration x = {
        .workload = w, .dir = options->dir, .seed = options->seed, .ops = options->ops, .fd = -1};
    struct timespec then, now;
    bool good = true;

    clock_gettime(CLOCK_MONOTONIC, &then);
    for (; good && (x.seen.count < options->states || x.seed == options->seed); x.seed++) {
        good = (options->again || crash_workload_run(w, x.dir, x.seed, x.ops)) &&
               (!options->prefixes || x.seed > options->seed || explore_prefixes(&x)) &&
               explore(&x, options->points);
        if (options->again)
            break;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (good)
        printf(
            "%s: %zu states (%llu looked at), seeds %llu to %llu, %ld s; qemu-img check on %llu, %llu leak, "
            "%llu mended, %llu read by QEMU: all well\n",
            w->name, x.seen.count, (unsigned long long)x.looked_at, (unsigned long long)options->seed,
            (unsigned long long)x.seed - 1, (long)(now.tv_sec - then.tv_sec),
            (unsigned long long)x.judge.checked, (unsigned long long)x.judge.leaking,
            (unsigned long long)x.judge.mended, (unsigned long long)x.judge.read_by_qemu);
    fflush(stdout);
    free(x.seen.slots);
    return good;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"dir", required_argument, NULL, 'd'},    {"workload", required_argument, NULL, 'w'},
        {"seed", required_argument, NULL, 's'},   {"states", required_argument, NULL, 't'},
        {"points", required_argument, NULL, 'p'}, {"ops", required_argument, NULL, 'o'},
        {"prefixes", no_argument, NULL, 'x'},     {"again", no_argument, NULL, 'a'},
        {"list", no_argument, NULL, 'l'},         {0},
    };
    struct options options = {.name = "all", .seed = 1, .states = 100, .points = 100, .ops = 150};
    int c;
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 'd':
            options.dir = optarg;
            break;
        case 'w':
            options.name = optarg;
            break;
        case 's':
            options.seed = strtoull(optarg, NULL, 10);
            break;
        case 't':
            options.states = strtoull(optarg, NULL, 10);
            break;
        case 'p':
            options.points = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'o':
            options.ops = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'x':
            options.prefixes = true;
            break;
        case 'a':
            options.again = true;
            break;
        case 'l':
            for (unsigned i = 0; i < crash_workload_count; i++)
                printf("%s\n", crash_workloads[i].name);
            return 0;
        default:
            return 2;
        }
    }
    if (!options.dir || !options.points) {
        fprintf(stderr, "tool_crash: --dir is missing, or --points is 0\n");
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
        if (strcmp(options.name, "all") != 0 && strcmp(options.name, crash_workloads[i].name) != 0)
            continue;
        found++;
        good = run(&crash_workloads[i], &options);
    }
    loop_destroy(loop);
    if (found == 0) {
        fprintf(stderr, "tool_crash: there is no workload %s (--list)\n", options.name);
        return 2;
    }
    return good ? 0 : 1;
}
