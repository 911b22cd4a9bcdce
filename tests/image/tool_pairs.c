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
 * about) and --ops operations are done to both: writes, zeroes, discards and reads of every alignment,
 * compressed clusters, flushes, resizes; between them snapshots are made, applied and deleted. At the end we
 * read both images and QEMU reads both, snapshots too, and all is as in a model in memory; qemu-img check and
 * ours find nothing in either. What QEMU refuses to create has to be refused by us, and the other way round.
 *
 * --slice: only each M-th, from the N-th on. --keep-going: not only up to the first failure.
 *
 * A failure prints the combination. pair.h has the rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host/runtime/loop.h"
#include "host/runtime/world.h"
#include "tests/image/pair.h"

#define PASSPHRASE "correct horse"

static bool verbose;
static const char *dir;
static struct loop *loop;

static bool same_raw_file(struct pair *p, enum side side)
{
    char path[600];
    pair_path(p, path, pair_side_names[side], "data");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool same = fd >= 0;
    for (uint64_t at = 0; same && at < p->bytes; at += PAIR_REQUEST_MAX) {
        size_t n = p->bytes - at < PAIR_REQUEST_MAX ? (size_t)(p->bytes - at) : PAIR_REQUEST_MAX;
        memset(p->buffer, 0, n);
        same = pread(fd, p->buffer, n, (off_t)at) >= 0 && memcmp(p->buffer, p->model + at, n) == 0;
    }
    if (fd >= 0)
        close(fd);
    return same || pair_wrong(p, "the raw data file of %s is not what the disk holds", pair_side_names[side]);
}

static bool verdict(struct pair *p)
{
    bool good = pair_compare(p, OURS, NULL, p->model, p->bytes) &&
                pair_compare(p, THEIRS, NULL, p->model, p->bytes) && pair_check(p, OURS) &&
                pair_check(p, THEIRS);
    int status = good ? pair_qemu(p, "qemu-img", "compare", NULL, OURS, true) : 0;
    if (status != 0)
        good = pair_wrong(p, "qemu-img compare exits with %d, see report", status);
    for (unsigned i = 0; good && i < p->nb_snapshots; i++) {
        struct snapshot *s = &p->snapshots[i];
        good = pair_compare(p, OURS, s->name, s->disk, s->bytes) &&
               pair_compare(p, THEIRS, s->name, s->disk, s->bytes);
    }
    if (good && combination_is(p->c, D_DATA_FILE, "raw"))
        good = same_raw_file(p, OURS) && same_raw_file(p, THEIRS);
    return good;
}

static bool start(struct pair *p, bool *refused)
{
    char path[600];
    struct error err = {0};
    for (unsigned side = 0; side < SIDES; side++) {
        pair_path(p, path, pair_side_names[side], "qcow2");
        (void)unlink(path);
        pair_path(p, path, pair_side_names[side], "data");
        (void)unlink(path);
    }
    /* What QEMU has preallocated in a LUKS image reads as noise. */
    bool noise = p->luks && !combination_is(p->c, D_PREALLOCATION, "off");
    bool theirs = noise ? pair_we_create(p, THEIRS, &err) : pair_qemu_creates(p, THEIRS);
    bool ours = p->seed & 1 || noise ? pair_we_create(p, OURS, &err) : pair_qemu_creates(p, OURS);
    *refused = !theirs;
    if (theirs != ours)
        return pair_wrong(p, "QEMU %s it, we %s (%s)", theirs ? "creates" : "refuses", ours ? "do" : "do not",
                          err.text);
    return true;
}

/* False: a message was printed. *REFUSED: nobody makes such an image. */
static bool one_pair(const struct combination *c, uint64_t seed, uint64_t ops, bool *refused)
{
    static uint8_t *model, *buffer, *touched;
    if (!model) {
        model = malloc(PAIR_DISK_MAX + PAIR_REQUEST_MAX);
        buffer = aligned_alloc(4096, PAIR_REQUEST_MAX);
        touched = malloc(PAIR_DISK_MAX / 512);
        if (!model || !buffer || !touched)
            abort();
    }
    struct pair p = {.dir = dir,
                     .loop = loop,
                     .verbose = verbose,
                     .c = c,
                     .seed = seed,
                     .cluster = combination_number(c, D_CLUSTER),
                     .luks = combination_is(c, D_ENCRYPTION, "luks"),
                     .data_file = !combination_is(c, D_DATA_FILE, "none"),
                     .model = model,
                     .buffer = buffer,
                     .touched = touched};
    p.bytes = p.cluster > (1u << 20) ? 8u << 20 : 1u << 20;
    if (combination_is(c, D_SIZE, "odd"))
        p.bytes -= 37 * 512;
    memset(model, 0, PAIR_DISK_MAX);
    memset(touched, combination_is(c, D_PREALLOCATION, "off") ? 0 : 1, PAIR_DISK_MAX / 512);
    if (pair_backing(c)) {
        /* Made once, in main: the raw one is shorter than the disk, the other one longer. */
        uint64_t behind = combination_is(c, D_BACKING, "raw") ? 700u << 10 : 5u << 20;
        for (uint64_t i = 0; i < behind && i < p.bytes; i++)
            model[i] = (uint8_t)(i >> 9 | 1);
    }
    bool good = start(&p, refused);
    /* We and QEMU's threads take turns, and that costs least on one processor. */
    cpu_set_t all, here;
    CPU_ZERO(&here);
    CPU_SET((unsigned)sched_getcpu(), &here);
    bool pinned =
        sched_getaffinity(0, sizeof all, &all) == 0 && sched_setaffinity(0, sizeof here, &here) == 0;
    for (uint64_t left = ops; good && left && !*refused;) {
        uint64_t n = ops / 12 + combinations_below(&p.seed, ops / 12 + 1) + 1;
        n = n < left ? n : left;
        n = n < PAIR_OPS_AT_A_TIME ? n : PAIR_OPS_AT_A_TIME;
        p.compressing = combinations_below(&p.seed, 4) == 0;
        good = pair_operate(&p, n) && pair_change_snapshots(&p);
        left -= n;
    }
    if (good && !*refused)
        good = verdict(&p);
    if (pinned)
        (void)sched_setaffinity(0, sizeof all, &all);
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
    struct pair p = {.dir = dir};
    char path[600], to[600], pass[600];
    snprintf(pass, sizeof pass, "%s/pass", dir);
    FILE *file = fopen(pass, "we");
    if (!file || fputs(PASSPHRASE, file) < 0 || fclose(file) != 0)
        return false;
    pair_path(&p, path, "pattern", "raw");
    pair_path(&p, to, "backing", "raw");
    for (unsigned i = 0; i < 2; i++) {
        uint64_t bytes = i ? 700u << 10 : 5u << 20;
        file = fopen(i ? to : path, "we");
        for (uint64_t k = 0; file && k < bytes; k++)
            fputc((uint8_t)(k >> 9 | 1), file);
        if (!file || fclose(file) != 0)
            return false;
    }
    pair_path(&p, to, "backing", "qcow2");
    return pair_spawn(&p, (const char *const[]){"qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-o",
                                                "cluster_size=4k", path, to, NULL}) == 0;
}

static void nobody_blocks(struct world *w, bool (*is_done)(void *opaque), void *opaque)
{
    (void)w, (void)is_done, (void)opaque;
    abort(); /* there is no second loop here that anybody could wait for */
}

/* Operations come one after the other, so a pool of threads would only cost two changes of thread for each:
 * a world with one thread does what the pool does itself. */
static void be_one_thread(void)
{
    static struct world one_thread;
    one_thread = world_host;
    one_thread.block = nobody_blocks;
    world = &one_thread;
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
    be_one_thread();
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
