/*
 * Host files: short transfers, ends of files, failed flushes, opening, locks, alignment.
 */
#include "tests/unit/aio_rig.h"

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

static void abandon(void *arg)
{
    host_file_co_abandon(arg);
}

static struct host_file *create_file(void)
{
    struct host_file *file = NULL;
    struct error err = {""};

    assert_int_equal(host_file_open(path, HOST_FILE_CREATE, AIO_THREADS, &file, &err), 0);
    assert_int_equal(ftruncate(((struct posix_file *)file)->fd, 4096), 0);
    return file;
}

static void what_was_made_in_vain_goes_again(void **state)
{
    struct stat st;
    char other[300];

    make_file(NULL, 4096);
    snprintf(other, sizeof(other), "%s.other", path);
    /* It was there: empty, as creating has left it. */
    struct host_file *a = create_file();
    assert_false(a->made);
    run_in_coroutine(abandon, a);
    assert_true(stat(path, &st) == 0 && st.st_size == 0);
    unlink(path);
    /* It was not. */
    a = create_file();
    assert_true(a->made);
    run_in_coroutine(abandon, a);
    assert_int_equal(access(path, F_OK), -1);
    /* Somebody else has begun to use it, or has put another file there. */
    a = create_file();
    struct host_file *b = open_file(0, AIO_THREADS);
    assert_int_equal(b->ops->lock(b, F_RDLCK, 100, 1), 0);
    run_in_coroutine(abandon, a);
    assert_int_equal(b->ops->size(b), 4096);
    assert_int_equal(access(path, F_OK), 0);
    host_file_close(b);
    unlink(path);
    a = create_file();
    assert_int_equal(rename(path, other), 0);
    b = create_file();
    run_in_coroutine(abandon, a);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(access(other, F_OK), 0);
    host_file_close(b);
    unlink(path);
    unlink(other);
    run_in_coroutine(abandon, NULL);
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

/* Filesystems take any read of a hole, and refuse the write that comes later. */
static void a_hole_tells_as_much_of_the_alignment_as_an_empty_file(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct host_file *empty, *hole;

        make_file(directories[i], 0);
        empty = open_file(HOST_FILE_DIRECT, AIO_THREADS);
        assert_int_equal(truncate(path, 65536), 0);
        hole = empty ? open_file(HOST_FILE_DIRECT, AIO_THREADS) : NULL;
        if (hole) {
            assert_int_equal(hole->request_alignment, empty->request_alignment);
            assert_int_equal(hole->memory_alignment, empty->memory_alignment);
        }
        host_file_close(hole);
        host_file_close(empty);
        unlink(path);
    }
}

static struct host_file *read_from;
static bool has_read;

static void reads_a_block(void *arg)
{
    void *buffer = buffer_of(4096);
    struct iovec iov = {buffer, 4096};

    assert_int_equal(read_from->ops->co_preadv(read_from, &iov, 1, 0, 4096), 0);
    has_read = true;
    free(buffer);
}

static void the_loop_does_not_wait_for_the_disk(void **state)
{
    make_file(NULL, 8192);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(fsync(fd), 0); /* what is not on the disk yet is refused */
    close(fd);
    read_from = open_file(HOST_FILE_DIRECT, AIO_THREADS);
    if (read_from) {
        has_read = false;
        co_enter(co_create(reads_a_block, NULL));
        assert_false(has_read);
        while (!has_read)
            loop_turn(loop, true);
        host_file_close(read_from);
    }
    unlink(path);
}

static void no_transfer_fails_because_it_would_have_to_wait(void **state)
{
    struct host_file *file;

    make_file(NULL, 4096);
    file = open_file(0, AIO_THREADS);
    assert_non_null(file);
    assert_int_equal(fcntl(((struct posix_file *)file)->fd, F_GETFL) & O_NONBLOCK, 0);
    host_file_close(file);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_transfers_are_continued),
        cmocka_unit_test(a_write_of_nothing_for_ever_is_an_error_but_not_enospc),
        cmocka_unit_test(a_file_that_ends_within_a_block_reads_as_zeroes_behind_it),
        cmocka_unit_test(after_a_failed_flush_of_the_page_cache_none_succeeds),
        cmocka_unit_test(what_is_no_image_is_refused_without_waiting),
        cmocka_unit_test(native_without_o_direct_is_an_error_not_another_choice),
        cmocka_unit_test(creation_empties_a_file_unless_it_is_locked),
        cmocka_unit_test(what_was_made_in_vain_goes_again),
        cmocka_unit_test(locks_exclude_other_descriptions_of_one_process),
        cmocka_unit_test(a_simulator_may_open_instead),
        cmocka_unit_test(alignments_are_powers_of_two_that_the_file_takes),
        cmocka_unit_test(a_hole_tells_as_much_of_the_alignment_as_an_empty_file),
        cmocka_unit_test(the_loop_does_not_wait_for_the_disk),
        cmocka_unit_test(no_transfer_fails_because_it_would_have_to_wait),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
