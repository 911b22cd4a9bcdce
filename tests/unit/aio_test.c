/*
 * Asynchronous I/O: every engine, every kind of operation, many at once, several loops, the pool of threads.
 */
#include "tests/unit/aio_rig.h"

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
        cmocka_unit_test(the_pool_runs_every_job_of_every_loop),
        cmocka_unit_test(loops_share_a_file),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
