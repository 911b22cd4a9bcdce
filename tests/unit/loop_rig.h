/*
 * A loop for tests of what runs on one, and what they note of it. Included by one source file of a test
 * program.
 */
#ifndef RINGSIDE_TESTS_LOOP_RIG_H
#define RINGSIDE_TESTS_LOOP_RIG_H

#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "host/runtime/loop.h"

#define UNUSED __attribute__((unused))

static struct loop *loop;
static char order[256];

static int setup(void **state)
{
    loop = loop_create("test", NULL);
    return loop ? 0 : -1;
}

static int teardown(void **state)
{
    loop_destroy(loop);
    return 0;
}

static void note(char c)
{
    size_t n = strlen(order);

    if (n < sizeof(order) - 1) {
        order[n] = c;
        order[n + 1] = '\0';
    }
}

static void UNUSED note_opaque(void *opaque)
{
    note(*(char *)opaque);
}

static void UNUSED signal_fd(int fd)
{
    uint64_t one = 1;

    assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

static void UNUSED clear_fd(int fd)
{
    uint64_t n;

    assert_int_equal(read(fd, &n, sizeof(n)), sizeof(n));
}

static int UNUSED new_eventfd(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

#endif
