/*
 * Files and loops for tests of host/aio. Included by one source file of a test program.
 */
#ifndef RINGSIDE_TESTS_AIO_RIG_H
#define RINGSIDE_TESTS_AIO_RIG_H

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

#define UNUSED __attribute__((unused))

static struct loop *loop;
static char path[256];
static struct laio_kernel kernel;

static int UNUSED setup(void **state)
{
    loop = loop_create("test", NULL);
    kernel = laio_kernel;
    return loop ? 0 : -1;
}

static int UNUSED teardown(void **state)
{
    loop_destroy(loop);
    return 0;
}

/* A loop whose engines have not been made yet. */
static void UNUSED fresh_loop(void)
{
    laio_kernel = kernel;
    loop_destroy(loop);
    loop = loop_create("test", NULL);
    assert_non_null(loop);
}

static const char *directories[] = {NULL, "/dev/shm"};

static void UNUSED make_file(const char *directory, unsigned bytes)
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

static struct host_file UNUSED *open_file(unsigned flags, enum aio_kind aio)
{
    struct host_file *file = NULL;
    struct error err = {""};

    if (host_file_open(path, flags, aio, &file, &err) < 0)
        print_message("# %s\n", err.text);
    return file;
}

static void UNUSED *buffer_of(size_t bytes)
{
    void *p = NULL;

    assert_int_equal(posix_memalign(&p, 4096, bytes), 0);
    return p;
}

static void UNUSED run_in_coroutine(void (*fn)(void *), void *arg)
{
    assert_int_equal(loop_run_coroutine(loop, fn, arg), 0);
}

/* ---- reads of 4 KiB, each a coroutine ---- */

struct many {
    struct host_file *file;
    unsigned char *buffer;
    unsigned started, ended, failed;
};

static void UNUSED one_of_many(void *arg)
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

#endif
