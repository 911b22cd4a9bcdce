/*
 * The filter of system calls of ringside-blk (host/cmd/blk_sandbox.h), each call tried in a process of its
 * own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/cmd/blk_sandbox.h"

/* The errno of CALL behind the filter, 0 if it is let through. */
static int filtered(long (*call)(void), bool io_uring)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        struct error err = {0};

        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || sandbox_calls(io_uring, &err) < 0)
            _exit(255);
        errno = 0;
        _exit(call() < 0 ? errno : 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_not_equal(WEXITSTATUS(status), 255);
    return WEXITSTATUS(status);
}

static long map(int protection)
{
    return syscall(SYS_mmap, NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == -1 ? -1 : 0;
}

static long map_data(void)
{
    return map(PROT_READ | PROT_WRITE);
}

static long map_code(void)
{
    return map(PROT_READ | PROT_EXEC);
}

static long make_code(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? 0 : mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static void memory_that_can_be_run_is_never_made(void **state)
{
    assert_int_equal(filtered(map_data, false), 0);
    assert_int_equal(filtered(map_code, false), EPERM);
    assert_int_equal(filtered(make_code, false), EPERM);
}

static long make_ring(void)
{
    return syscall(SYS_io_uring_setup, 0, NULL);
}

static long open_file(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* A ring would open files and sockets past the filter. */
static void io_uring_is_there_only_where_it_is_used(void **state)
{
    assert_int_equal(filtered(open_file, true), EPERM);
    assert_int_equal(filtered(make_ring, false), EPERM);
    assert_int_not_equal(filtered(make_ring, true), 0); /* by the kernel, for another reason */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_that_can_be_run_is_never_made),
        cmocka_unit_test(io_uring_is_there_only_where_it_is_used),
    };

    return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
