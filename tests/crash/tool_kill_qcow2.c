/*
 * What a guest was told is written outlives the device process (host/qcow2/survivor.h): a process writes to a
 * qcow2 image, allocating, zeroing, discarding, hardly ever flushing, and is killed at any moment; the next
 * one opens the image and compares every sector with what was acknowledged.
 *
 *   tool_kill_qcow2 --image=FILE [--survive=DIR] [--rounds=N] [--seed=N] [--meddle] [--verbose]
 *
 * --meddle changes the image between kill and open, as somebody else would: what was left must not be used
 * then and the image must still be whole. Without --survive, losses are to be expected: exit status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/block/backend.h"
#include "host/qcow2/qcow2.h"
#include "host/runtime/co_lock.h"
#include "tests/crash/crash_sector.h"
#include "tests/crash/crash_wait.h"

#define SECTOR       CRASH_SECTOR_BYTES
#define SECTORS      (128u * 1024 * 1024 / SECTOR)
#define CLIENTS      8u
#define OP_BYTES_MAX (128u * 1024)
#define NOTHING      UINT32_MAX

/* Shared by all the processes: it is what the guest knows. */
struct model {
    uint32_t number;             /* of the last write begun */
    uint32_t operations;         /* acknowledged, all rounds */
    uint32_t acked[SECTORS];     /* the last write acknowledged; 0: zeroes */
    uint32_t begun[SECTORS];     /* one on its way, or NOTHING */
    uint8_t maybe_zero[SECTORS]; /* a discard was asked for since */
};

static struct model *model;
static const char *image, *survive;
static uint64_t seed = 1;
static bool verbose;
static struct loop *loop;
static struct blk *blk;

static uint64_t draw(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return n ? (seed * 0x2545f4914f6cdd1du >> 11) % n : 0;
}

static __attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    _exit(1);
}

static void fill(uint32_t sector, uint32_t number, uint8_t *data)
{
    if (number)
        crash_sector_fill(data, sector, number);
    else
        memset(data, 0, SECTOR);
}

static void open_image(bool check_only)
{
    struct open_options options = {.format = "qcow2", .survive_dir = survive, .check_only = check_only};
    struct error err = {""};

    loop = loop_create("kill", NULL);
    blk = blk_open(image, &options, &err);
    if (!blk)
        fail("opening: %s", err.text);
}

/* ---- the one that is killed ---- */

static void client(void *arg)
{
    uint32_t index = (uint32_t)(uintptr_t)arg;
    uint8_t *buffer = aligned_alloc(4096, OP_BYTES_MAX);

    for (;;) {
        /* Units of 24 KiB go round among the clients: neighbours in a cluster are different ones'. */
        uint32_t unit = (uint32_t)draw(SECTORS / 48 / CLIENTS) * CLIENTS + index;
        uint32_t n = 1 + (uint32_t)draw(48), first = unit * 48 + (uint32_t)draw(48 - n + 1);
        unsigned kind = (unsigned)draw(16);
        uint32_t number = kind < 11 ? __atomic_add_fetch(&model->number, 1, __ATOMIC_RELAXED) : 0;
        struct crash_wait w = crash_wait_init();
        struct iovec iov = {buffer, (size_t)n * SECTOR};

        if (kind == 15 && draw(300) == 0) {
            blk_aio_flush(blk, &w.request);
            if (crash_co_wait(&w) < 0)
                fail("a flush failed");
            continue;
        }
        for (uint32_t i = 0; i < n; i++) {
            fill(first + i, number, buffer + (size_t)i * SECTOR);
            if (kind >= 13)
                model->maybe_zero[first + i] = 1;
            else
                model->begun[first + i] = number;
        }
        if (kind < 11)
            blk_aio_pwritev(blk, &w.request, (uint64_t)first * SECTOR, (uint64_t)n * SECTOR, &iov, 1, 0);
        else if (kind < 13)
            blk_aio_pwrite_zeroes(blk, &w.request, (uint64_t)first * SECTOR, (uint64_t)n * SECTOR,
                                  kind == 11 ? NODE_IO_MAY_UNMAP : 0);
        else
            blk_aio_pdiscard(blk, &w.request, (uint64_t)first * SECTOR, (uint64_t)n * SECTOR);
        if (crash_co_wait(&w) < 0)
            fail("an operation failed: %s", strerror(-w.result));
        for (uint32_t i = 0; i < n && kind < 13; i++) {
            model->acked[first + i] = number;
            model->maybe_zero[first + i] = 0;
            model->begun[first + i] = NOTHING;
        }
        __atomic_fetch_add(&model->operations, 1, __ATOMIC_RELAXED);
    }
}

static void writer(void)
{
    open_image(false);
    for (uintptr_t i = 0; i < CLIENTS; i++)
        co_enter(co_create(client, (void *)i));
    loop_run(loop);
}

/* ---- the one that comes after ---- */

static void verify_entry(void *arg)
{
    uint8_t *buffer = aligned_alloc(4096, OP_BYTES_MAX);
    uint32_t lost = 0;

    for (uint32_t at = 0; at < SECTORS; at += OP_BYTES_MAX / SECTOR) {
        struct crash_wait w = crash_wait_init();
        struct iovec iov = {buffer, OP_BYTES_MAX};

        blk_aio_preadv(blk, &w.request, (uint64_t)at * SECTOR, OP_BYTES_MAX, &iov, 1);
        if (crash_co_wait(&w) < 0)
            fail("sector %u cannot be read: %s", at, strerror(-w.result));
        for (uint32_t i = 0; i < OP_BYTES_MAX / SECTOR; i++) {
            uint32_t s = at + i;
            uint64_t number, whose;
            enum crash_sector_kind kind = crash_sector_look(buffer + (size_t)i * SECTOR, s, &number, &whose);

            if (kind == CRASH_SECTOR_ZERO)
                number = 0;
            else if (kind != CRASH_SECTOR_WHOLE || number > model->number)
                fail("sector %u is a mixture, or another's: sector %llu, write %llu", s,
                     (unsigned long long)whose, (unsigned long long)number);
            if (number != model->acked[s] && number != model->begun[s] &&
                !(number == 0 && model->maybe_zero[s]))
                lost++;
            model->acked[s] = (uint32_t)number;
            model->begun[s] = NOTHING;
            model->maybe_zero[s] = 0;
        }
    }
    free(buffer);
    *(uint32_t *)arg = lost;
}

static void check_entry(void *arg)
{
    struct error err = {""};

    if (qcow2_co_check(blk_node(blk), 0, arg, NULL, NULL, &err) < 0)
        fail("check: %s", err.text);
}

/* Exit status: 0 all is there, 3 something was lost. */
static void verifier(void)
{
    struct qcow2_check check = {0};
    uint32_t lost = 0;

    open_image(false);
    if (loop_run_coroutine(loop, verify_entry, &lost) < 0 || blk_close(blk) < 0)
        fail("closing failed");
    loop_destroy(loop);
    open_image(true);
    if (loop_run_coroutine(loop, check_entry, &check) < 0 || blk_close(blk) < 0)
        fail("closing after the check failed");
    if (check.corruptions || check.check_errors)
        fail("check finds %llu corruptions", (unsigned long long)check.corruptions);
    if (lost && verbose)
        printf("# %u sectors lost\n", lost);
    fflush(stdout);
    _exit(lost ? 3 : 0);
}

static void create_entry(void *arg)
{
    struct qcow2_create_options options = {.size = (uint64_t)SECTORS * SECTOR};
    struct error err = {""};

    options.cluster_bytes = (uint32_t)(uintptr_t)arg;
    if (qcow2_co_create(image, &options, &err) < 0)
        fail("creating: %s", err.text);
}

static void creator(void)
{
    static const uint32_t clusters[] = {65536, 4096, 16384, 512};

    loop = loop_create("create", NULL);
    if (loop_run_coroutine(loop, create_entry, (void *)(uintptr_t)clusters[draw(4)]) < 0)
        fail("no coroutine");
    _exit(0);
}

/* Somebody else opens the image, writes a bit here and there, and closes it. */
static void meddle_entry(void *arg)
{
    uint8_t block[SECTOR] = {0};

    for (uint32_t s = 0; s < SECTORS; s += 97) {
        struct crash_wait w = crash_wait_init();
        struct iovec iov = {block, SECTOR};

        fill(s, 0, block);
        blk_aio_pwritev(blk, &w.request, (uint64_t)s * SECTOR, SECTOR, &iov, 1, 0);
        if (crash_co_wait(&w) < 0)
            fail("meddling failed");
        model->maybe_zero[s] = 1;
    }
}

static void meddler(void)
{
    survive = NULL;
    open_image(false);
    if (loop_run_coroutine(loop, meddle_entry, NULL) < 0 || blk_close(blk) < 0)
        fail("meddling failed");
    _exit(0);
}

/* Runs FN in a process of its own. With KILL_AFTER_US that is killed so long after it has had OPERATIONS
 * acknowledged: a machine may take its time to start a process. */
static int run(void (*fn)(void), unsigned kill_after_us, uint32_t operations)
{
    uint32_t before = __atomic_load_n(&model->operations, __ATOMIC_RELAXED);
    int status = 0;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid < 0)
        exit(2);
    if (pid == 0) {
        fn();
        _exit(0);
    }
    if (kill_after_us) {
        while (__atomic_load_n(&model->operations, __ATOMIC_RELAXED) - before < operations) {
            if (waitpid(pid, &status, WNOHANG) == pid)
                return 1; /* it has said why */
            usleep(1000);
        }
        usleep(kill_after_us);
        kill(pid, SIGKILL);
    }
    waitpid(pid, &status, 0);
    if (kill_after_us && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static void verifies(void)
{
    verifier();
}

int main(int argc, char **argv)
{
    unsigned rounds = 10, lost = 0;
    bool meddle = false;

    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--image=", 8) == 0)
            image = argv[i] + 8;
        else if (strncmp(argv[i], "--survive=", 10) == 0)
            survive = argv[i] + 10;
        else if (strncmp(argv[i], "--rounds=", 9) == 0)
            rounds = (unsigned)strtoul(argv[i] + 9, NULL, 10);
        else if (strncmp(argv[i], "--seed=", 7) == 0)
            seed = strtoull(argv[i] + 7, NULL, 10) * 0x9e3779b97f4a7c15u + 1;
        else if (strcmp(argv[i], "--meddle") == 0)
            meddle = true;
        else if (strcmp(argv[i], "--verbose") == 0)
            verbose = true;
        else
            image = NULL;
    }
    if (!image) {
        fprintf(stderr,
                "usage: %s --image=FILE [--survive=DIR] [--rounds=N] [--seed=N] [--meddle] [--verbose]\n",
                argv[0]);
        return 2;
    }
    model = mmap(NULL, sizeof(*model), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, 0, 0);
    if (model == MAP_FAILED || run(creator, 0, 0) != 0)
        return 2;
    memset(model->begun, 0xff, sizeof(model->begun));
    for (unsigned round = 0; round < rounds; round++) {
        int status;

        draw(2); /* another way for each child */
        if (run(writer, 1 + (unsigned)draw(200000), 50) != 0)
            return 1;
        /* A second kill while the first is being mended. */
        if (draw(3) == 0 && run(writer, 1000 + (unsigned)draw(20000), 0) != 0)
            return 1;
        if (meddle && run(meddler, 0, 0) != 0)
            return 1;
        status = run(verifies, 0, 0);
        if (status != 0 && status != 3)
            return 1;
        lost += status == 3;
    }
    if (verbose)
        printf("# %u operations, %u of %u rounds lost something\n", model->operations, lost, rounds);
    if (lost && !meddle) {
        printf("acknowledged writes were lost in %u of %u rounds\n", lost, rounds);
        return 1;
    }
    return 0;
}
