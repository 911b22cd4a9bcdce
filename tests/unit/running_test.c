/*
 * A unit test that dies has named the case that it was in (running.c), whatever the cases and their group set
 * up.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static int of_group = 1, of_case = 2;

static int group_begins(void **state)
{
    *state = &of_group;
    return 0;
}

static int group_ends(void **state)
{
    printf("the group ends with its %s\n", *state == &of_group ? "own state" : "state changed");
    return 0;
}

static int case_begins(void **state)
{
    if (*state != &of_case)
        return -1;
    *state = &of_group;
    return 0;
}

static void state_is_the_groups(void **state)
{
    assert_ptr_equal(*state, &of_group);
}

static void state_is_its_own(void **state)
{
    assert_ptr_equal(*state, &of_case);
}

static void dies(void **state)
{
    printf("some words\n");
    _exit(7); /* what is buffered is lost */
}

static int run_cases(void)
{
    const struct CMUnitTest group[] = {cmocka_unit_test(state_is_the_groups)};
    const struct CMUnitTest cases[] = {
        cmocka_unit_test_prestate(state_is_its_own, &of_case),
        cmocka_unit_test_prestate_setup_teardown(state_is_the_groups, case_begins, NULL, &of_case),
        cmocka_unit_test(dies),
    };

    return cmocka_run_group_tests(group, group_begins, group_ends) +
           cmocka_run_group_tests(cases, NULL, NULL);
}

static void the_case_that_died_is_named(void **state)
{
    FILE *log = tmpfile();
    char text[4096];
    int status;
    pid_t pid;

    assert_non_null(log);
    fflush(stdout);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fileno(log), STDOUT_FILENO);
        dup2(fileno(log), STDERR_FILENO);
        _exit(run_cases());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    rewind(log);
    text[fread(text, 1, sizeof(text) - 1, log)] = '\0';
    fclose(log);
    assert_int_equal(WEXITSTATUS(status), 7);
    assert_null(strstr(text, "\nnot ok"));
    assert_non_null(strstr(text, "the group ends with its own state\n"));
    assert_non_null(strstr(text, "# running: state_is_its_own\n"));
    assert_non_null(strstr(text, "# running: dies\nsome words\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_case_that_died_is_named)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
