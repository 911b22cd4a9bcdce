/*
 * The simulated world: one seed, one run; the clock; iothreads and locks in one thread; and the simulated
 * disk: what it holds, its faults, and what a power loss may and may not do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/aio/aio.h"
#include "host/aio/sim_disk.h"
#include "host/runtime/co_lock.h"
#include "host/runtime/iothread.h"
#include "host/runtime/sim.h"

#define THREADS 3

static struct sim *sim;
static struct loop *loop;
static struct sim_disk *disk;

static void begin(uint64_t seed, const struct sim_disk_options *options)
{
    sim = sim_start(seed);
    assert_non_null(sim);
    loop = loop_create("main", NULL);
    assert_non_null(loop);
    disk = sim_disk_create(sim, options);
    assert_non_null(disk);
    sim_disk_install(disk);
}

static void end(void)
{
    sim_disk_destroy(disk);
    loop_destroy(loop);
    sim_end(sim);
}

static void run(void (*entry)(void *), void *arg)
{
    assert_int_equal(loop_run_coroutine(loop, entry, arg), 0);
}

/* ---- the world ---- */

static void sleeps_an_hour(void *arg)
{
    co_sleep_ns(3600000000000u);
}

static void an_hour_passes_in_no_time(void **state)
{
    uint64_t before;

    begin(1, NULL);
    before = sim_now_ns(sim);
    run(sleeps_an_hour, NULL);
    assert_true(sim_now_ns(sim) - before >= 3600000000000u);
    assert_true(sim_steps(sim) < 100);
    end();
}

struct crew {
    struct co_mutex mutex;
    unsigned counter, ended, twice;
    unsigned inside;
    struct iothread *threads[THREADS];
};

static void works(void *arg)
{
    struct crew *crew = arg;

    for (unsigned i = 0; i < 50; i++) {
        co_mutex_lock(&crew->mutex);
        crew->twice += crew->inside++;
        co_sleep_ns(sim_below(sim, SIM_LOAD, 5000));
        crew->counter++;
        crew->inside--;
        co_mutex_unlock(&crew->mutex);
        sim_digest_add(sim, loop_index(loop_current()));
        co_sleep_ns(sim_below(sim, SIM_LOAD, 5000));
    }
    crew->ended++;
}

static void starts_workers(void *arg)
{
    for (unsigned i = 0; i < 4; i++)
        co_enter(co_create(works, arg));
}

static bool all_ended(void *opaque)
{
    return ((struct crew *)opaque)->ended == THREADS * 4;
}

static uint64_t run_crew(uint64_t seed)
{
    struct crew crew = {0};
    uint64_t digest;

    begin(seed, NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        crew.threads[i] = iothread_start("worker", 0, NULL);
        assert_non_null(crew.threads[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        iothread_call(crew.threads[i], starts_workers, &crew);
    assert_true(sim_run_until(sim, all_ended, &crew, 1000000));
    assert_int_equal(crew.counter, THREADS * 4 * 50);
    assert_int_equal(crew.twice, 0);
    for (unsigned i = 0; i < THREADS; i++)
        iothread_stop(crew.threads[i]);
    digest = sim_digest(sim);
    end();
    return digest;
}

static void one_seed_is_one_run(void **state)
{
    uint64_t first = run_crew(7);

    assert_true(run_crew(7) == first);
    assert_true(run_crew(8) != first);
    assert_true(run_crew(7) == first);
}

static void calls_a_thread(void *arg)
{
    struct crew *crew = arg;

    iothread_call_coroutine(crew->threads[0], works, crew);
    crew->counter++;
}

static void a_coroutine_may_wait_for_a_call_into_an_iothread(void **state)
{
    struct crew crew = {0};

    begin(3, NULL);
    crew.threads[0] = iothread_start("worker", 0, NULL);
    run(calls_a_thread, &crew);
    assert_int_equal(crew.counter, 51);
    iothread_stop(crew.threads[0]);
    end();
}

static void waits_for_ever(void *arg)
{
    co_yield ();
}

static void leaves(void *opaque)
{
    _exit(77);
}

static void a_deadlock_is_found(void **state)
{
    int status = 0;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        begin(1, NULL);
        sim_on_stuck(sim, leaves, NULL);
        loop_run_coroutine(loop, waits_for_ever, NULL);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 77);
}

static bool never(void *opaque)
{
    return false;
}

static unsigned actor_steps;

static bool actor_ready(void *opaque)
{
    return actor_steps < 10;
}

static void actor_step(void *opaque)
{
    assert_null(loop_current());
    actor_steps++;
}

static void actors_take_turns_until_nothing_can_happen(void **state)
{
    struct sim_actor actor = {.ready = actor_ready, .step = actor_step};

    begin(5, NULL);
    actor_steps = 0;
    sim_actor_add(sim, &actor);
    assert_false(sim_run_until(sim, never, NULL, 0));
    assert_int_equal(actor_steps, 10);
    sim_actor_remove(sim, &actor);
    end();
}

static int adds(void *opaque)
{
    ++*(int *)opaque;
    return 5;
}

static void calls_the_pool(void *arg)
{
    assert_int_equal(threads_co_call(adds, arg), 5);
}

static void the_thread_pool_has_no_threads_here(void **state)
{
    int n = 0;

    begin(5, NULL);
    run(calls_the_pool, &n);
    assert_int_equal(n, 1);
    end();
}

/* ---- the disk ---- */

static struct host_file *open_disk_file(const char *name, unsigned flags)
{
    struct host_file *file = NULL;

    assert_int_equal(host_file_open(name, flags, AIO_DEFAULT, &file, NULL), 0);
    return file;
}

static uint8_t pattern(uint64_t i)
{
    return (uint8_t)(i * 31 + i / 512);
}

static void uses_a_file(void *arg)
{
    struct host_file *file = open_disk_file("disk", HOST_FILE_CREATE | HOST_FILE_DIRECT);
    uint8_t *a = malloc(65536), *b = malloc(65536);
    struct iovec split[3] = {{a, 512}, {a + 512, 32768}, {a + 33280, 32256}}, one = {b, 65536};
    uint64_t bytes;
    bool data;

    for (unsigned i = 0; i < 65536; i++)
        a[i] = pattern(i);
    assert_int_equal(file->ops->size(file), 0);
    assert_int_equal(file->ops->co_pwritev(file, split, 3, 65536, 65536, false), 0);
    assert_int_equal(file->ops->size(file), 131072);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 65536, 65536), 0);
    assert_memory_equal(a, b, 65536);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 65536 + 32768, 65536), 0);
    assert_memory_equal(a + 32768, b, 32768);
    assert_int_equal(b[32768] | b[65535], 0);

    assert_int_equal(file->ops->co_extent(file, 0, &bytes, &data), 0);
    assert_true(!data && bytes == 65536);
    assert_int_equal(file->ops->co_extent(file, 65536, &bytes, &data), 0);
    assert_true(data && bytes == 65536);
    assert_int_equal(file->ops->co_discard(file, 65536 + 1000, 5000), 0);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 65536, 65536), 0);
    memset(a + 1000, 0, 5000);
    assert_memory_equal(a, b, 65536);
    assert_int_equal(file->ops->co_write_zeroes(file, 131072, 4096, false), 0);
    assert_int_equal(file->ops->size(file), 135168);
    assert_int_equal(file->ops->co_truncate(file, 70000, false), 0);
    assert_int_equal(file->ops->co_truncate(file, 140000, false), 0);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 65536, 65536), 0);
    memset(a + 70000 - 65536, 0, 65536 - (70000 - 65536));
    assert_memory_equal(a, b, 65536);
    assert_int_equal(file->ops->co_fdatasync(file), 0);
    host_file_close(file);
    free(a);
    free(b);
}

static void a_file_holds_what_was_written(void **state)
{
    struct sim_disk_stats stats;
    uint8_t byte = 1;

    begin(11, NULL);
    run(uses_a_file, NULL);
    sim_disk_stats(disk, &stats);
    assert_int_equal(stats.in_flight, 0);
    assert_int_equal(stats.volatile_sectors, 0);
    assert_int_equal(sim_disk_file_size(disk, "disk"), 140000);
    assert_int_equal(sim_disk_peek(disk, "disk", 65537, &byte, 1), 0);
    assert_int_equal(byte, pattern(1));
    assert_int_equal(sim_disk_peek(disk, "none", 0, &byte, 1), -ENOENT);
    end();
}

static void short_transfers_do_not_show(void **state)
{
    struct sim_disk_options options = {.latency_max_ns = 100000, .short_ppm = 700000, .late_ppm = 10000};
    struct sim_disk_stats stats;

    for (uint64_t seed = 0; seed < 20; seed++) {
        begin(seed, &options);
        run(uses_a_file, NULL);
        sim_disk_stats(disk, &stats);
        assert_true(stats.shorts > 0);
        end();
    }
}

struct errors {
    unsigned read, write, flush;
};

static void meets_errors(void *arg)
{
    struct errors *errors = arg;
    struct host_file *file = open_disk_file("disk", HOST_FILE_CREATE | HOST_FILE_DIRECT);
    uint8_t block[4096] = {1};
    struct iovec iov = {block, sizeof(block)};

    for (unsigned i = 0; i < 100; i++) {
        int w = file->ops->co_pwritev(file, &iov, 1, 0, sizeof(block), false);
        int r = file->ops->co_preadv(file, &iov, 1, 0, sizeof(block));
        int f = file->ops->co_fdatasync(file);

        assert_true((w == 0 || w == -EIO) && (r == 0 || r == -EIO) && (f == 0 || f == -EIO));
        errors->write += w < 0;
        errors->read += r < 0;
        errors->flush += f < 0;
    }
    sim_disk_options(disk)->no_space_ppm = 1000000;
    assert_int_equal(file->ops->co_pwritev(file, &iov, 1, 1 << 20, sizeof(block), false), -ENOSPC);
    host_file_close(file);
}

static void faults_come_as_often_as_asked_for(void **state)
{
    struct sim_disk_options options = {.latency_max_ns = 1000,
                                       .read_error_ppm = 200000,
                                       .write_error_ppm = 200000,
                                       .flush_error_ppm = 200000};
    struct errors errors = {0};

    begin(2, &options);
    run(meets_errors, &errors);
    assert_in_range(errors.read, 5, 40);
    assert_in_range(errors.write, 5, 40);
    assert_in_range(errors.flush, 5, 40);
    end();
}

static void locks_a_file(void **state)
{
    struct host_file *a, *b, *c = NULL;

    begin(1, NULL);
    assert_int_equal(sim_disk_write_file(disk, "disk", "x", 1), 0);
    a = open_disk_file("disk", 0);
    b = open_disk_file("disk", 0);
    assert_int_equal(a->ops->lock(a, F_RDLCK, 100, 1), 0);
    assert_int_equal(b->ops->lock_test(b, F_WRLCK, 100, 1), -EAGAIN);
    assert_int_equal(b->ops->lock(b, F_RDLCK, 100, 1), 0);
    assert_int_equal(b->ops->lock(b, F_WRLCK, 100, 1), -EAGAIN);
    assert_int_equal(host_file_open("disk", HOST_FILE_CREATE, AIO_DEFAULT, &c, NULL), -EBUSY);
    assert_int_equal(a->ops->lock(a, F_UNLCK, 100, 1), 0);
    assert_int_equal(b->ops->lock(b, F_WRLCK, 100, 1), 0);
    host_file_close(a);
    host_file_close(b);
    assert_int_equal(host_file_open("other", 0, AIO_DEFAULT, &c, NULL), -ENOENT);
    end();
}

/* ---- power loss ---- */

/* Sector S holds S in its first byte and the number of the write in its second; 0: never written. */
#define SECTORS 64

struct crash {
    struct host_file *file;
    unsigned written[SECTORS];   /* the last write begun */
    unsigned completed[SECTORS]; /* the last write completed */
    unsigned durable[SECTORS];   /* the last write that a flush or FUA made durable */
    unsigned number, running;
    bool stop;
};

static struct crash crash;

static void writes_sectors(void *arg)
{
    unsigned first = (unsigned)(uintptr_t)arg * 16; /* nobody else writes these */
    uint8_t buffer[16 * 512];

    crash.running++;
    while (!crash.stop) {
        unsigned n = 1 + (unsigned)sim_below(sim, SIM_LOAD, 8),
                 at = first + (unsigned)sim_below(sim, SIM_LOAD, 8);
        unsigned number = ++crash.number;
        bool fua = sim_below(sim, SIM_LOAD, 8) == 0;
        struct iovec iov = {buffer, (size_t)n * 512};
        unsigned known[SECTORS];

        if (number > 250)
            break;
        for (unsigned i = 0; i < n; i++) {
            memset(buffer + (size_t)i * 512, (int)number, 512);
            buffer[(size_t)i * 512] = (uint8_t)(at + i);
            crash.written[at + i] = number;
        }
        if (crash.file->ops->co_pwritev(crash.file, &iov, 1, (uint64_t)at * 512, (uint64_t)n * 512, fua) < 0)
            break;
        for (unsigned i = 0; i < n; i++) {
            crash.completed[at + i] = number;
            if (fua)
                crash.durable[at + i] = number;
        }
        if (sim_below(sim, SIM_LOAD, 4) == 0) {
            memcpy(known, crash.completed, sizeof(known));
            if (crash.file->ops->co_fdatasync(crash.file) < 0)
                break;
            for (unsigned i = 0; i < SECTORS; i++) {
                if (known[i] > crash.durable[i])
                    crash.durable[i] = known[i];
            }
        }
    }
    crash.running--;
}

static bool stopped(void *opaque)
{
    return !crash.running;
}

static void reads_after_the_crash(void *arg)
{
    uint8_t *b = malloc(SECTORS * 512);
    struct iovec iov = {b, SECTORS * 512};

    crash.file = open_disk_file("disk", HOST_FILE_DIRECT);
    assert_int_equal(crash.file->ops->co_preadv(crash.file, &iov, 1, 0, SECTORS * 512), 0);
    for (unsigned i = 0; i < SECTORS; i++) {
        const uint8_t *s = b + (size_t)i * 512;

        if (s[1]) {
            assert_int_equal(s[0], i);
            for (unsigned k = 2; k < 512; k++)
                assert_int_equal(s[k], s[1]);
        }
        assert_true(s[1] >= crash.durable[i]);
        assert_true(s[1] <= crash.written[i]);
        *(unsigned *)arg += s[1] < crash.completed[i];
    }
    host_file_close(crash.file);
    free(b);
}

static void a_power_loss_keeps_what_was_flushed_and_tears_no_sector(void **state)
{
    unsigned lost = 0;

    for (uint64_t seed = 0; seed < 100; seed++) {
        begin(seed, NULL);
        memset(&crash, 0, sizeof(crash));
        crash.file = open_disk_file("disk", HOST_FILE_CREATE | HOST_FILE_DIRECT);
        for (uintptr_t i = 0; i < SECTORS / 16; i++)
            co_enter(co_create(writes_sectors, (void *)i));
        for (uint64_t steps = sim_below(sim, SIM_LOAD, 400); steps; steps--)
            sim_step(sim);
        sim_disk_power_loss(disk);
        crash.stop = true;
        assert_true(sim_run_until(sim, stopped, NULL, 100000));
        host_file_close(crash.file);
        run(reads_after_the_crash, &lost);
        end();
    }
    /* A disk that never loses anything would be no test of anybody. */
    assert_true(lost > 100);
}

static void write_one(void *arg)
{
    struct host_file *file = arg;
    uint8_t block[512] = {9};
    struct iovec iov = {block, 512};

    assert_int_equal(file->ops->co_pwritev(file, &iov, 1, 0, 512, false), -EIO);
    assert_int_equal(file->ops->co_preadv(file, &iov, 1, 0, 512), -EIO);
    assert_int_equal(file->ops->co_fdatasync(file), -EIO);
}

static void after_a_power_loss_old_handles_are_dead_and_unlocked(void **state)
{
    struct host_file *old, *fresh;

    begin(1, NULL);
    old = open_disk_file("disk", HOST_FILE_CREATE | HOST_FILE_DIRECT);
    assert_int_equal(old->ops->lock(old, F_WRLCK, 100, 1), 0);
    sim_disk_power_loss(disk);
    run(write_one, old);
    fresh = open_disk_file("disk", HOST_FILE_DIRECT);
    assert_int_equal(fresh->ops->lock(fresh, F_WRLCK, 100, 1), 0);
    host_file_close(old);
    host_file_close(fresh);
    end();
}

static void files_go_to_the_real_world_and_back(void **state)
{
    const char *tmp = getenv("TMPDIR");
    uint8_t *a = malloc(300000), *b = malloc(300000);
    char path[300];

    begin(1, NULL);
    memset(a, 0, 300000);
    for (unsigned i = 200000; i < 299999; i++)
        a[i] = pattern(i);
    snprintf(path, sizeof(path), "%s/ringside-sim.%d", tmp ? tmp : "/tmp", (int)getpid());
    assert_int_equal(sim_disk_write_file(disk, "one", a, 299999), 0);
    assert_int_equal(sim_disk_save(disk, "one", path), 0);
    assert_int_equal(sim_disk_load(disk, "two", path), 0);
    unlink(path);
    assert_int_equal(sim_disk_file_size(disk, "two"), 299999);
    assert_int_equal(sim_disk_peek(disk, "two", 0, b, 300000), 0);
    assert_memory_equal(a, b, 300000);
    end();
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_hour_passes_in_no_time),
        cmocka_unit_test(one_seed_is_one_run),
        cmocka_unit_test(a_coroutine_may_wait_for_a_call_into_an_iothread),
        cmocka_unit_test(a_deadlock_is_found),
        cmocka_unit_test(actors_take_turns_until_nothing_can_happen),
        cmocka_unit_test(the_thread_pool_has_no_threads_here),
        cmocka_unit_test(a_file_holds_what_was_written),
        cmocka_unit_test(short_transfers_do_not_show),
        cmocka_unit_test(faults_come_as_often_as_asked_for),
        cmocka_unit_test(locks_a_file),
        cmocka_unit_test(a_power_loss_keeps_what_was_flushed_and_tears_no_sector),
        cmocka_unit_test(after_a_power_loss_old_handles_are_dead_and_unlocked),
        cmocka_unit_test(files_go_to_the_real_world_and_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
