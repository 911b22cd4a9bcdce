/*
 * Lines on stderr: all of them, or as many as log_limit allows; and never so that the program waits for a
 * reader.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/runtime/error.h"

#define HOUR_NS 3600000000000u

static int ends[2], real_stderr;
static char text[1 << 17];

static int setup(void **state)
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    real_stderr = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    return 0;
}

static int teardown(void **state)
{
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* What has been written since the last look; how many lines. */
static unsigned lines(void)
{
    ssize_t n = read(ends[0], text, sizeof(text) - 1);
    unsigned count = 0;

    text[n > 0 ? n : 0] = '\0';
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        count++;
    return count;
}

static void say(unsigned times)
{
    for (unsigned i = 0; i < times; i++)
        log_message("said %u", i);
}

static void without_a_limit_all_are_written(void **state)
{
    say(500);
    assert_int_equal(lines(), 500);
}

static void a_limit_leaves_out_and_counts(void **state)
{
    log_limit(5, HOUR_NS);
    say(20);
    assert_int_equal(lines(), 5);
    assert_non_null(strstr(text, "said 4\n"));
    log_unlimit();
    assert_int_equal(lines(), 1);
    assert_non_null(strstr(text, ": (15 messages were left out)\n"));
    say(10);
    assert_int_equal(lines(), 10);
    log_unlimit();
    assert_int_equal(lines(), 0);
}

static void a_line_comes_with_the_number_of_those_before(void **state)
{
    log_limit(2, HOUR_NS);
    say(4);
    log_limit(2, HOUR_NS);
    assert_int_equal(lines(), 2);
    say(1);
    assert_int_equal(lines(), 2);
    assert_non_null(strstr(text, "(2 messages were left out)"));
    assert_true(strstr(text, "left out") < strstr(text, "said 0"));
    log_unlimit();
}

static void nobody_reads_and_nobody_waits(void **state)
{
    int flags = fcntl(ends[1], F_GETFL);

    fcntl(ends[1], F_SETFL, flags | O_NONBLOCK);
    while (write(ends[1], "x", 1) == 1)
        ;
    fcntl(ends[1], F_SETFL, flags);
    log_limit(100, HOUR_NS);
    alarm(60);
    say(3);
    alarm(0);
    while (read(ends[0], text, sizeof(text)) > 0)
        ;
    say(1);
    assert_int_equal(lines(), 2);
    assert_non_null(strstr(text, "(3 messages were left out)"));
    log_unlimit();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(without_a_limit_all_are_written, setup, teardown),
        cmocka_unit_test_setup_teardown(a_limit_leaves_out_and_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(a_line_comes_with_the_number_of_those_before, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_reads_and_nobody_waits, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
