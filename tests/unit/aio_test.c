/*
 * host_file and the engines below it, on a real file system (TMPDIR) and on tmpfs, where linux-aio completes
 * inside io_submit. Faults are put in front of the kernel's calls through laio_kernel.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/aio/aio.h"
#include "host/aio/aio_internal.h"
#include "host/aio/host_file.h"
#include "host/aio/posix_file.h"
#include "host/runtime/co_lock.h"
#include "host/runtime/iothread.h"
#include "host/runtime/world.h"

#define FILE_BYTES (1024u * 1024u)

static struct loop *loop;
static char path[256];
static struct laio_kernel kernel;

static int setup(void **state)
{
    loop = loop_create("test", NULL);
    kernel = laio_kernel;
    return loop ? 0 : -1;
}

static int teardown(void **state)
{
    loop_destroy(loop);
    return 0;
}

/* A loop whose engines have not been made yet. */
static void fresh_loop(void)
{
    laio_kernel = kernel;
    loop_destroy(loop);
    loop = loop_create("test", NULL);
    assert_non_null(loop);
}

static const char *directories[] = {NULL, "/dev/shm"};

static void make_file(const char *directory, unsigned bytes)
{
    const char *tmp = getenv("TMPDIR");
    char block[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/ringside-aio.XXXXXX", directory ? directory : tmp ? tmp : "/tmp");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    for (unsigned i = 0; i < bytes / sizeof(block); i++) {
        memset(block, (int)(i + 1), sizeof(block));
        assert_int_equal(write(fd, block, sizeof(block)), sizeof(block));
    }
    assert_int_equal(write(fd, block, bytes % sizeof(block)), bytes % sizeof(block));
    close(fd);
}

static struct host_file *open_file(unsigned flags, enum aio_kind aio)
{
    struct host_file *file = NULL;
    struct error err = {""};

    if (host_file_open(path, flags, aio, &file, &err) < 0)
        print_message("# %s\n", err.text);
    return file;
}

static void *buffer_of(size_t bytes)
{
    void *p = NULL;

    assert_int_equal(posix_memalign(&p, 4096, bytes), 0);
    return p;
}

static void run_in_coroutine(void (*fn)(void *), void *arg)
{
    assert_int_equal(loop_run_coroutine(loop, fn, arg), 0);
}

/* ---- every engine, every kind of operation ---- */

static void all_operations(void *arg)
{
    struct host_file *file = arg;
    unsigned char *a = buffer_of(65536), *b = buffer_of(65536);
    struct iovec split[3] = {{a, 4096}, {a + 8192, 4096}, {a + 4096, 4096}}, one = {b, 12288};
    uint64_t bytes;
    bool data;
    int ret;

    /* What was there. */
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 4096, 12288), 0);
    assert_int_equal(b[0], 2);
    assert_int_equal(b[12287], 4);

    /* Written from pieces out of order, read back in one. */
    for (int i = 0; i < 12288; i++)
        a[i] = (unsigned char)(i / 4096 * 16 + i % 13);
    assert_int_equal(file->ops->co_pwritev(file, split, 3, 65536, 12288, false), 0);
    memset(b, 0xee, 12288);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 65536, 12288), 0);
    assert_memory_equal(b, a, 4096);
    assert_memory_equal(b + 4096, a + 8192, 4096);
    assert_memory_equal(b + 8192, a + 4096, 4096);

    /* Durable writes and flushes. */
    one.iov_len = 4096;
    assert_int_equal(file->ops->co_pwritev(file, &one, 1, 0, 4096, true), 0);
    assert_int_equal(file->ops->co_fdatasync(file), 0);

    /* Beyond the end there are zeroes. */
    one.iov_len = 65536;
    memset(b, 0xee, 65536);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, FILE_BYTES - 4096, 65536), 0);
    assert_int_equal(b[4095], 0);
    for (int i = 4096; i < 65536; i++)
        assert_int_equal(b[i], 0);
    memset(b, 0xee, 65536);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 16 * FILE_BYTES, 65536), 0);
    assert_int_equal(b[0] | b[65535], 0);

    /* Space. */
    ret = file->ops->co_write_zeroes(file, 131072, 65536, false);
    if (ret != -ENOTSUP) {
        assert_int_equal(ret, 0);
        assert_int_equal(file->ops->co_preadv(file, &one, 1, 131072, 65536), 0);
        assert_int_equal(b[0] | b[65535], 0);
    }
    ret = file->ops->co_discard(file, 262144, 65536);
    if (ret != -ENOTSUP) {
        assert_int_equal(ret, 0);
        assert_int_equal(file->ops->co_preadv(file, &one, 1, 262144, 65536), 0);
        assert_int_equal(b[0] | b[65535], 0);
        assert_int_equal(file->ops->co_extent(file, 262144, &bytes, &data), 0);
        assert_false(data);
        assert_int_equal(bytes, 65536);
        assert_int_equal(file->ops->co_extent(file, 262144 + 65536, &bytes, &data), 0);
        assert_true(data);
        assert_true(bytes > 0);
    }
    assert_int_equal(file->ops->co_extent(file, FILE_BYTES, &bytes, &data), 0);
    assert_int_equal(bytes, 0);

    /* Size. */
    assert_int_equal(file->ops->size(file), FILE_BYTES);
    assert_int_equal(file->ops->co_truncate(file, FILE_BYTES + 65536, false), 0);
    assert_int_equal(file->ops->size(file), FILE_BYTES + 65536);
    assert_int_equal(file->ops->co_truncate(file, FILE_BYTES + 131072, true), 0);
    assert_int_equal(file->ops->size(file), FILE_BYTES + 131072);
    assert_int_equal(file->ops->co_truncate(file, FILE_BYTES, false), 0);
    assert_int_equal(file->ops->size(file), FILE_BYTES);
    assert_int_equal(file->ops->co_truncate(file, UINT64_MAX, false), -EFBIG);
    free(a);
    free(b);
}

static void engine_does_all(enum aio_kind aio, unsigned flags)
{
    for (unsigned i = 0; i < 2; i++) {
        struct host_file *file;

        make_file(directories[i], FILE_BYTES);
        file = open_file(flags, aio);
        if (file) {
            assert_int_equal(file->aio, aio);
            assert_int_equal(file->direct, flags & HOST_FILE_DIRECT ? 1 : 0);
            run_in_coroutine(all_operations, file);
            host_file_close(file);
        }
        unlink(path);
    }
}

static void linux_aio_does_all(void **state)
{
    if (laio_probe() < 0)
        skip();
    engine_does_all(AIO_NATIVE, HOST_FILE_DIRECT);
}

static void linux_aio_does_all_by_getevents(void **state)
{
    if (laio_probe() < 0)
        skip();
    fresh_loop();
    laio_kernel.mapped_ring = false;
    engine_does_all(AIO_NATIVE, HOST_FILE_DIRECT);
    fresh_loop();
}

static void io_uring_does_all(void **state)
{
    if (uring_probe() < 0)
        skip();
    engine_does_all(AIO_IO_URING, HOST_FILE_DIRECT);
    engine_does_all(AIO_IO_URING, 0);
}

static void threads_do_all(void **state)
{
    engine_does_all(AIO_THREADS, 0);
    engine_does_all(AIO_THREADS, HOST_FILE_DIRECT);
}

/* ---- many at once ---- */

#define MANY 700

struct many {
    struct host_file *file;
    unsigned char *buffer;
    unsigned started, ended, failed;
};

static void one_of_many(void *arg)
{
    struct many *m = arg;
    unsigned i = m->started++;
    struct iovec iov = {m->buffer + (size_t)i * 4096, 4096};
    uint64_t offset = (uint64_t)(i % 64) * 4096;

    if (m->file->ops->co_preadv(m->file, &iov, 1, offset, 4096) < 0 ||
        ((unsigned char *)iov.iov_base)[17] != (i % 64) + 1)
        m->failed++;
    m->ended++;
}

static void run_many(enum aio_kind aio, const char *directory)
{
    struct many m = {0};

    make_file(directory, FILE_BYTES);
    m.file = open_file(HOST_FILE_DIRECT, aio);
    m.buffer = buffer_of(MANY * 4096);
    if (m.file) {
        for (unsigned i = 0; i < MANY; i++) {
            struct coroutine *co = co_create(one_of_many, &m);

            assert_non_null(co);
            co_enter(co);
        }
        while (m.ended < MANY)
            loop_turn(loop, true);
        assert_int_equal(m.failed, 0);
        host_file_close(m.file);
    }
    free(m.buffer);
    unlink(path);
}

static void more_than_the_slots_at_once(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        run_many(AIO_THREADS, directories[i]);
        if (laio_probe() == 0)
            run_many(AIO_NATIVE, directories[i]);
        if (uring_probe() == 0)
            run_many(AIO_IO_URING, directories[i]);
    }
}

/* The first eight go ahead, so that the disk has something to do; the rest goes when the turn ends. */
static void a_turn_is_two_system_calls_and_completions_are_none(void **state)
{
    struct aio_stats before, after;
    struct many m = {0};

    if (laio_probe() < 0)
        skip();
    fresh_loop();
    make_file(directories[1], FILE_BYTES);
    m.file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m.file)
        skip();
    m.buffer = buffer_of(64 * 4096);
    aio_stats(&before);
    for (unsigned i = 0; i < 32; i++) {
        aio_stats(&after);
        assert_int_equal(after.submit_syscalls - before.submit_syscalls, i < 8 ? 0 : 1);
        co_enter(co_create(one_of_many, &m));
    }
    while (m.ended < 32)
        loop_turn(loop, true);
    aio_stats(&after);
    assert_int_equal(after.requests - before.requests, 32);
    assert_int_equal(after.submit_syscalls - before.submit_syscalls, 2);
    assert_int_equal(after.getevents_syscalls - before.getevents_syscalls, 0);
    host_file_close(m.file);
    free(m.buffer);
    unlink(path);
}

/* Each completion starts the next: on tmpfs they are all complete when io_submit returns. */
static void chain(void *arg)
{
    struct many *m = arg;

    for (unsigned i = 0; i < 4000; i++) {
        struct iovec iov = {m->buffer, 4096};

        if (m->file->ops->co_preadv(m->file, &iov, 1, 0, 4096) < 0)
            m->failed++;
    }
    m->ended++;
}

static void tick(void *opaque)
{
    ++*(unsigned *)opaque;
}

static void synchronous_completions_neither_recurse_nor_starve_timers(void **state)
{
    struct many m = {0};
    unsigned fired = 0;
    struct loop_timer timer = {.fire = tick, .opaque = &fired};

    if (laio_probe() < 0)
        skip();
    fresh_loop();
    make_file(directories[1], 4096);
    m.file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m.file)
        skip();
    m.buffer = buffer_of(4096);
    loop_timer_arm(loop, &timer, world_now_ns());
    for (unsigned i = 0; i < 4; i++)
        co_enter(co_create(chain, &m));
    while (m.ended < 1)
        loop_turn(loop, true);
    assert_int_equal(fired, 1);
    while (m.ended < 4)
        loop_turn(loop, true);
    assert_int_equal(m.failed, 0);
    host_file_close(m.file);
    free(m.buffer);
    unlink(path);
}

/* ---- faults ---- */

static int submit_calls, submit_refuse, submit_error, submit_at_most;

static int submit_with_faults(io_context_t context, long n, struct iocb **iocbs)
{
    submit_calls++;
    if (submit_refuse > 0) {
        submit_refuse--;
        return -EAGAIN;
    }
    if (submit_error) {
        int error = submit_error;

        submit_error = 0;
        return error;
    }
    if (submit_at_most && n > submit_at_most)
        n = submit_at_most;
    return kernel.submit(context, n, iocbs);
}

static void fault_case(struct many *m, unsigned n)
{
    memset(m, 0, sizeof(*m));
    make_file(directories[1], FILE_BYTES);
    m->file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m->file)
        skip();
    m->buffer = buffer_of(64 * 4096);
    laio_kernel.submit = submit_with_faults;
    for (unsigned i = 0; i < n; i++)
        co_enter(co_create(one_of_many, m));
    while (m->ended < n)
        loop_turn(loop, true);
    laio_kernel = kernel;
    host_file_close(m->file);
    free(m->buffer);
    unlink(path);
}

static void eagain_with_nothing_in_flight_is_tried_again(void **state)
{
    struct many m;

    if (laio_probe() < 0)
        skip();
    submit_refuse = 3;
    fault_case(&m, 8);
    assert_int_equal(m.failed, 0);
    assert_int_equal(submit_refuse, 0);
}

static void a_partial_submit_is_continued(void **state)
{
    struct many m;

    if (laio_probe() < 0)
        skip();
    submit_at_most = 3;
    fault_case(&m, 50);
    submit_at_most = 0;
    assert_int_equal(m.failed, 0);
}

static void an_error_of_submit_fails_the_first_request_only(void **state)
{
    struct many m;

    if (laio_probe() < 0)
        skip();
    submit_error = -EFAULT;
    fault_case(&m, 50);
    assert_int_equal(m.failed, 1);
}

/* Takes requests, and hands them to the kernel some milliseconds later. */
static struct iocb *late[64];
static long late_count;
static io_context_t late_context;
static struct loop_timer late_timer;

static void submit_late_ones(void *opaque)
{
    assert_int_equal(kernel.submit(late_context, late_count, late), late_count);
    late_count = 0;
}

static int submit_late(io_context_t context, long n, struct iocb **iocbs)
{
    assert_true(late_count + n <= 64);
    memcpy(late + late_count, iocbs, (size_t)n * sizeof(*iocbs));
    late_count += n;
    late_context = context;
    late_timer.fire = submit_late_ones;
    loop_timer_arm(loop, &late_timer, world_now_ns() + 3000000);
    return (int)n;
}

static void a_file_system_that_stops_being_synchronous_loses_no_request(void **state)
{
    struct many m = {0};

    if (laio_probe() < 0)
        skip();
    fresh_loop();
    make_file(directories[1], FILE_BYTES);
    m.file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m.file)
        skip();
    m.buffer = buffer_of(64 * 4096);
    /* Synchronous for long enough that nobody waits for the eventfd any more. */
    for (unsigned i = 0; i < 64; i++) {
        co_enter(co_create(one_of_many, &m));
        while (m.ended <= i)
            loop_turn(loop, true);
    }
    assert_int_equal(m.failed, 0);
    for (unsigned round = 0; round < 3; round++) {
        m.started = m.ended = 0;
        laio_kernel.submit = submit_late;
        for (unsigned i = 0; i < 8; i++)
            co_enter(co_create(one_of_many, &m));
        while (m.ended < 8)
            loop_turn(loop, true);
        laio_kernel.submit = kernel.submit;
        assert_int_equal(m.failed, 0);
        for (unsigned i = 8; i < 64; i++) {
            co_enter(co_create(one_of_many, &m));
            while (m.ended <= i)
                loop_turn(loop, true);
        }
    }
    fresh_loop();
    host_file_close(m.file);
    free(m.buffer);
    unlink(path);
}

/* The kernel moves the data inside io_submit then: it gets few at a time, and those that are done go on. */
static long largest_batch;
static unsigned ended_before_last;
static const struct many *watched;

static int submit_watched(io_context_t context, long n, struct iocb **iocbs)
{
    largest_batch = n > largest_batch ? n : largest_batch;
    ended_before_last = watched->ended;
    return kernel.submit(context, n, iocbs);
}

static void what_is_synchronous_goes_in_small_batches(void **state)
{
    struct aio_stats before, after;
    struct many m = {0};

    if (laio_probe() < 0)
        skip();
    fresh_loop();
    make_file(directories[1], FILE_BYTES);
    m.file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m.file)
        skip();
    m.buffer = buffer_of(64 * 4096);
    /* As tmpfs is, on any file system: everything has ended when io_submit returns. */
    for (unsigned i = 0; i < 64; i++) {
        co_enter(co_create(one_of_many, &m));
        while (m.ended <= i)
            loop_turn(loop, true);
    }
    m.started = m.ended = 0;
    watched = &m;
    largest_batch = 0;
    laio_kernel.submit = submit_watched;
    aio_stats(&before);
    for (unsigned i = 0; i < 48; i++)
        co_enter(co_create(one_of_many, &m));
    while (m.ended < 48)
        loop_turn(loop, true);
    aio_stats(&after);
    laio_kernel = kernel;
    assert_int_equal(m.failed, 0);
    if (largest_batch == 48)
        skip(); /* this file system is not synchronous */
    assert_int_equal(largest_batch, 16);
    assert_int_equal(after.submit_syscalls - before.submit_syscalls, 3);
    assert_int_equal(ended_before_last, 32);
    fresh_loop();
    host_file_close(m.file);
    free(m.buffer);
    unlink(path);
}

static int setup_refuses(int max_events, io_context_t *context)
{
    return -EAGAIN;
}

static unsigned set_ups, destructions;

static int setup_counted(int max_events, io_context_t *context)
{
    set_ups++;
    return kernel.setup(max_events, context);
}

static int destroy_counted(io_context_t context)
{
    destructions++;
    return kernel.destroy(context);
}

/* Giving a context back takes tens of milliseconds: a start must not. */
static void a_probe_gives_nothing_back(void **state)
{
    if (laio_probe() < 0)
        skip();
    laio_kernel.setup = setup_counted;
    laio_kernel.destroy = destroy_counted;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(laio_probe(), 0);
    assert_int_equal(set_ups, 1);
    assert_int_equal(destructions, 0);
}

/* (The last test: it is so for the rest of the process.) */
static void loops_of_a_process_that_ends_give_nothing_back(void **state)
{
    struct many m = {0};

    fresh_loop();
    make_file(directories[1], FILE_BYTES);
    m.file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m.file)
        skip();
    m.buffer = buffer_of(64 * 4096);
    laio_kernel.destroy = destroy_counted;
    for (unsigned ends = 0; ends < 2; ends++) {
        destructions = 0;
        m.started = m.ended = 0;
        co_enter(co_create(one_of_many, &m));
        while (m.ended < 1)
            loop_turn(loop, true);
        if (ends)
            laio_process_ends();
        loop_destroy(loop);
        assert_int_equal(destructions, !ends);
        loop = loop_create("test", NULL);
    }
    fresh_loop();
    host_file_close(m.file);
    free(m.buffer);
    unlink(path);
}

static void a_loop_without_a_context_still_does_io(void **state)
{
    struct many m = {0};

    if (laio_probe() < 0)
        skip();
    fresh_loop();
    make_file(directories[1], FILE_BYTES);
    m.file = open_file(HOST_FILE_DIRECT, AIO_NATIVE);
    if (!m.file)
        skip();
    m.buffer = buffer_of(64 * 4096);
    laio_kernel.setup = setup_refuses;
    for (unsigned i = 0; i < 4; i++)
        co_enter(co_create(one_of_many, &m));
    while (m.ended < 4)
        loop_turn(loop, true);
    assert_int_equal(m.failed, 0);
    assert_int_equal(laio_probe(), -EAGAIN);
    fresh_loop();
    host_file_close(m.file);
    free(m.buffer);
    unlink(path);
}

/* ---- short transfers ---- */

static int64_t (*real_submit)(struct aio_request *request);
static uint64_t short_to;
static int short_count;

/* Does at most SHORT_TO bytes of each transfer. */
static int64_t short_submit(struct aio_request *request)
{
    struct aio_request less = *request;
    struct iovec iov = request->iov[0];

    if (request->op == AIO_OP_FDATASYNC)
        return real_submit(request);
    if (iov.iov_len > short_to)
        iov.iov_len = short_to;
    less.iov = &iov;
    less.niov = 1;
    short_count++;
    return real_submit(&less);
}

static void transfers_shortly(void *arg)
{
    struct host_file *file = arg;
    unsigned char *a = buffer_of(65536), *b = buffer_of(65536);
    struct iovec many[64], one = {b, 65536};

    for (int i = 0; i < 65536; i++)
        a[i] = (unsigned char)(i * 7 + i / 4096);
    for (int i = 0; i < 64; i++)
        many[i] = (struct iovec){a + i * 1024, 1024};
    assert_int_equal(file->ops->co_pwritev(file, many, 64, 0, 65536, false), 0);
    assert_int_equal(file->ops->co_preadv(file, &one, 1, 0, 65536), 0);
    assert_memory_equal(a, b, 65536);
    memset(b, 0, 65536);
    for (int i = 0; i < 64; i++)
        many[i].iov_base = b + i * 1024;
    assert_int_equal(file->ops->co_preadv(file, many, 64, 0, 65536), 0);
    assert_memory_equal(a, b, 65536);
    free(a);
    free(b);
}

static void short_transfers_are_continued(void **state)
{
    static const uint64_t lengths[] = {512, 1024, 4096, 12800};

    for (unsigned i = 0; i < 4; i++) {
        struct host_file *file;

        make_file(directories[1], FILE_BYTES);
        file = open_file(0, AIO_THREADS);
        assert_non_null(file);
        real_submit = ((struct posix_file *)file)->co_submit;
        ((struct posix_file *)file)->co_submit = short_submit;
        short_to = lengths[i];
        short_count = 0;
        run_in_coroutine(transfers_shortly, file);
        assert_true(short_count > 3 * 5);
        host_file_close(file);
        unlink(path);
    }
}

static int64_t writes_nothing(struct aio_request *request)
{
    return request->op == AIO_OP_WRITE ? 0 : real_submit(request);
}

static void write_expecting_eio(void *arg)
{
    struct host_file *file = arg;
    char block[512] = {0};
    struct iovec iov = {block, sizeof(block)};

    assert_int_equal(file->ops->co_pwritev(file, &iov, 1, 0, 512, false), -EIO);
}

static void a_write_of_nothing_for_ever_is_an_error_but_not_enospc(void **state)
{
    struct host_file *file;

    make_file(directories[1], 4096);
    file = open_file(0, AIO_THREADS);
    assert_non_null(file);
    ((struct posix_file *)file)->co_submit = writes_nothing;
    run_in_coroutine(write_expecting_eio, file);
    host_file_close(file);
    unlink(path);
}

static void reads_the_end(void *arg)
{
    struct host_file *file = arg;
    unsigned char *b = buffer_of(16384);
    struct iovec iov = {b, 16384};

    memset(b, 0xee, 16384);
    assert_int_equal(file->ops->co_preadv(file, &iov, 1, 0, 16384), 0);
    assert_int_equal(b[0], 1);
    assert_int_equal(b[4999], 1);
    for (int i = 5000; i < 16384; i++)
        assert_int_equal(b[i], 0);
    free(b);
}

static void a_file_that_ends_within_a_block_reads_as_zeroes_behind_it(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        static const enum aio_kind kinds[] = {AIO_NATIVE, AIO_IO_URING, AIO_THREADS};

        make_file(directories[i], 5000);
        for (unsigned k = 0; k < 3; k++) {
            struct host_file *file;

            if ((kinds[k] == AIO_NATIVE && laio_probe() < 0) ||
                (kinds[k] == AIO_IO_URING && uring_probe() < 0))
                continue;
            file = open_file(HOST_FILE_DIRECT, kinds[k]);
            if (!file)
                continue;
            run_in_coroutine(reads_the_end, file);
            host_file_close(file);
        }
        unlink(path);
    }
}

static int64_t flush_fails(struct aio_request *request)
{
    return request->op == AIO_OP_FDATASYNC ? -EIO : real_submit(request);
}

struct flush_case {
    struct host_file *file;
    int first, second;
};

static void flush_twice(void *arg)
{
    struct flush_case *f = arg;
    struct posix_file *posix = (struct posix_file *)f->file;

    posix->co_submit = flush_fails;
    f->first = f->file->ops->co_fdatasync(f->file);
    posix->co_submit = real_submit;
    f->second = f->file->ops->co_fdatasync(f->file);
}

static void after_a_failed_flush_of_the_page_cache_none_succeeds(void **state)
{
    struct flush_case f = {0};

    make_file(directories[1], 4096);
    f.file = open_file(0, AIO_THREADS);
    assert_non_null(f.file);
    run_in_coroutine(flush_twice, &f);
    assert_int_equal(f.first, -EIO);
    assert_int_equal(f.second, -EIO);
    host_file_close(f.file);
    unlink(path);
}

/* ---- opening ---- */

static void what_is_no_image_is_refused_without_waiting(void **state)
{
    struct host_file *file = NULL;
    struct error err = {""};
    char fifo[300];

    assert_int_equal(host_file_open("/tmp", HOST_FILE_READ_ONLY, AIO_DEFAULT, &file, &err), -EISDIR);
    assert_non_null(strstr(err.text, "directory"));
    make_file(NULL, 4096);
    snprintf(fifo, sizeof(fifo), "%s.fifo", path);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(host_file_open(fifo, HOST_FILE_READ_ONLY, AIO_DEFAULT, &file, &err), -EINVAL);
    assert_non_null(strstr(err.text, "FIFO"));
    unlink(fifo);
    assert_int_equal(host_file_open(fifo, 0, AIO_DEFAULT, &file, &err), -ENOENT);
    assert_int_equal(host_file_open("/dev/null", 0, AIO_DEFAULT, &file, &err), -EINVAL);
    assert_null(file);
    unlink(path);
}

static void native_without_o_direct_is_an_error_not_another_choice(void **state)
{
    struct host_file *file = NULL;
    struct error err = {""};

    make_file(NULL, 4096);
    assert_int_equal(host_file_open(path, 0, AIO_NATIVE, &file, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "O_DIRECT"));
    assert_int_equal(host_file_open(path, 0, AIO_DEFAULT, &file, &err), 0);
    assert_int_equal(file->aio, AIO_THREADS);
    host_file_close(file);
    unlink(path);
}

static void creation_empties_a_file_unless_it_is_locked(void **state)
{
    struct host_file *a = NULL, *b = NULL;
    struct error err = {""};

    make_file(NULL, 8192);
    a = open_file(0, AIO_THREADS);
    assert_non_null(a);
    assert_int_equal(a->ops->lock(a, F_RDLCK, 100, 1), 0);
    assert_int_equal(host_file_open(path, HOST_FILE_CREATE, AIO_THREADS, &b, &err), -EBUSY);
    assert_int_equal(a->ops->size(a), 8192);
    assert_int_equal(a->ops->lock(a, F_UNLCK, 100, 1), 0);
    assert_int_equal(host_file_open(path, HOST_FILE_CREATE, AIO_THREADS, &b, &err), 0);
    assert_int_equal(a->ops->size(a), 0);
    assert_true(a->device == b->device && a->inode == b->inode);
    host_file_close(a);
    host_file_close(b);
    unlink(path);
}

static void locks_exclude_other_descriptions_of_one_process(void **state)
{
    struct host_file *a, *b;

    make_file(NULL, 4096);
    a = open_file(0, AIO_THREADS);
    b = open_file(0, AIO_THREADS);
    assert_int_equal(a->ops->lock(a, F_RDLCK, 200, 1), 0);
    assert_int_equal(b->ops->lock_test(b, F_WRLCK, 200, 1), -EAGAIN);
    assert_int_equal(b->ops->lock_test(b, F_RDLCK, 200, 1), 0);
    assert_int_equal(b->ops->lock_test(b, F_WRLCK, 201, 1), 0);
    assert_int_equal(b->ops->lock(b, F_WRLCK, 200, 1), -EAGAIN);
    assert_int_equal(b->ops->lock(b, F_RDLCK, 200, 1), 0);
    host_file_close(a);
    assert_int_equal(b->ops->lock(b, F_WRLCK, 200, 1), 0);
    host_file_close(b);
    unlink(path);
}

static int fake_open(const char *name, unsigned flags, enum aio_kind aio, struct host_file **file,
                     struct error *err)
{
    return error_set(err, -EXDEV, "%s: simulated", name);
}

static void a_simulator_may_open_instead(void **state)
{
    struct host_file *file = NULL;
    struct error err = {""};

    host_file_set_opener(fake_open);
    assert_int_equal(host_file_open("x", 0, AIO_DEFAULT, &file, &err), -EXDEV);
    assert_string_equal(err.text, "x: simulated");
    host_file_set_opener(NULL);
    assert_int_equal(host_file_open("/nonexistent/x", 0, AIO_DEFAULT, &file, &err), -ENOENT);
}

static void alignments_are_powers_of_two_that_the_file_takes(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned bytes = 0; bytes <= 8192; bytes += 8192) {
            struct host_file *file;

            make_file(directories[i], bytes);
            file = open_file(HOST_FILE_DIRECT, AIO_THREADS);
            if (file) {
                assert_true(file->request_alignment &&
                            !(file->request_alignment & (file->request_alignment - 1)));
                assert_true(file->memory_alignment &&
                            !(file->memory_alignment & (file->memory_alignment - 1)));
                assert_true(file->request_alignment <= 65536 && file->memory_alignment <= 65536);
                host_file_close(file);
            }
            unlink(path);
        }
    }
    make_file(NULL, 4096);
    struct host_file *buffered = open_file(0, AIO_THREADS);
    assert_int_equal(buffered->request_alignment, 1);
    host_file_close(buffered);
    unlink(path);
}

/* ---- the pool of threads ---- */

static uint32_t jobs_run;

static int some_job(void *opaque)
{
    unsigned us = *(unsigned *)opaque;

    if (us)
        usleep(us);
    __atomic_fetch_add(&jobs_run, 1, __ATOMIC_RELAXED);
    return (int)us;
}

struct callers {
    unsigned running, wrong;
};

static void calls_jobs(void *arg)
{
    struct callers *callers = arg;

    for (unsigned i = 0; i < 40; i++) {
        unsigned us = i % 4 ? 0 : i * 5;

        callers->wrong += threads_co_call(some_job, &us) != (int)us;
    }
    callers->running--;
}

static void twenty_callers(void *arg)
{
    struct callers callers = {20, 0};

    for (unsigned i = 0; i < 20; i++)
        co_enter(co_create(calls_jobs, &callers));
    while (callers.running)
        co_sleep_ns(50000);
    assert_int_equal(callers.wrong, 0);
}

static void the_pool_runs_every_job_of_every_loop(void **state)
{
    struct iothread *thread = iothread_start("caller", 0, NULL);

    assert_non_null(thread);
    jobs_run = 0;
    for (unsigned round = 0; round < 3; round++) {
        run_in_coroutine(twenty_callers, NULL);
        iothread_call_coroutine(thread, twenty_callers, NULL);
    }
    assert_int_equal(jobs_run, 3 * 2 * 20 * 40);
    iothread_stop(thread);
}

/* ---- several loops on one file ---- */

struct on_thread {
    struct host_file *file;
    unsigned failed;
};

static void read_a_lot(void *arg)
{
    struct on_thread *t = arg;
    unsigned char *b = buffer_of(4096);

    for (unsigned i = 0; i < 500; i++) {
        struct iovec iov = {b, 4096};

        if (t->file->ops->co_preadv(t->file, &iov, 1, (uint64_t)(i % 200) * 4096, 4096) < 0 ||
            b[9] != i % 200 + 1)
            t->failed++;
    }
    free(b);
}

static void loops_share_a_file(void **state)
{
    static const enum aio_kind kinds[] = {AIO_NATIVE, AIO_IO_URING, AIO_THREADS};

    make_file(directories[1], FILE_BYTES);
    for (unsigned k = 0; k < 3; k++) {
        struct iothread *threads[2];
        struct on_thread t = {0};

        if ((kinds[k] == AIO_NATIVE && laio_probe() < 0) || (kinds[k] == AIO_IO_URING && uring_probe() < 0))
            continue;
        t.file = open_file(HOST_FILE_DIRECT, kinds[k]);
        if (!t.file)
            continue;
        for (unsigned i = 0; i < 2; i++) {
            threads[i] = iothread_start("io", 32768, NULL);
            assert_non_null(threads[i]);
        }
        iothread_call_coroutine(threads[0], read_a_lot, &t);
        iothread_call_coroutine(threads[1], read_a_lot, &t);
        run_in_coroutine(read_a_lot, &t);
        for (unsigned i = 0; i < 2; i++)
            iothread_stop(threads[i]);
        assert_int_equal(t.failed, 0);
        host_file_close(t.file);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linux_aio_does_all),
        cmocka_unit_test(linux_aio_does_all_by_getevents),
        cmocka_unit_test(io_uring_does_all),
        cmocka_unit_test(threads_do_all),
        cmocka_unit_test(more_than_the_slots_at_once),
        cmocka_unit_test(a_turn_is_two_system_calls_and_completions_are_none),
        cmocka_unit_test(synchronous_completions_neither_recurse_nor_starve_timers),
        cmocka_unit_test(eagain_with_nothing_in_flight_is_tried_again),
        cmocka_unit_test(a_partial_submit_is_continued),
        cmocka_unit_test(an_error_of_submit_fails_the_first_request_only),
        cmocka_unit_test(a_file_system_that_stops_being_synchronous_loses_no_request),
        cmocka_unit_test(what_is_synchronous_goes_in_small_batches),
        cmocka_unit_test(a_probe_gives_nothing_back),
        cmocka_unit_test(a_loop_without_a_context_still_does_io),
        cmocka_unit_test(short_transfers_are_continued),
        cmocka_unit_test(a_write_of_nothing_for_ever_is_an_error_but_not_enospc),
        cmocka_unit_test(a_file_that_ends_within_a_block_reads_as_zeroes_behind_it),
        cmocka_unit_test(after_a_failed_flush_of_the_page_cache_none_succeeds),
        cmocka_unit_test(what_is_no_image_is_refused_without_waiting),
        cmocka_unit_test(native_without_o_direct_is_an_error_not_another_choice),
        cmocka_unit_test(creation_empties_a_file_unless_it_is_locked),
        cmocka_unit_test(locks_exclude_other_descriptions_of_one_process),
        cmocka_unit_test(a_simulator_may_open_instead),
        cmocka_unit_test(alignments_are_powers_of_two_that_the_file_takes),
        cmocka_unit_test(the_pool_runs_every_job_of_every_loop),
        cmocka_unit_test(loops_share_a_file),
        cmocka_unit_test(loops_of_a_process_that_ends_give_nothing_back),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
