/*
 * Linked into every unit test: each case is named in the log when it begins, `# running: NAME`, so that a
 * program that dies or is stopped leaves the name of the case that it was in. What was printed is in the log
 * at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* The linker has calls of cmocka's function come here (tests/tests.mk). */
int __real__cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t count,
                                   CMFixtureFunction setup, CMFixtureFunction teardown);
int __wrap__cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t count,
                                   CMFixtureFunction setup, CMFixtureFunction teardown);

static CMFixtureFunction group_setup, group_teardown;
static void *group_state;

/* cmocka would give the group's state to each case; we do. */
static int kept_setup(void **state)
{
    int code = group_setup(state);

    group_state = *state;
    *state = NULL;
    return code;
}

static int kept_teardown(void **state)
{
    *state = group_state;
    return group_teardown(state);
}

/* The setup of every case; *state is the case as it was written. */
static int named_setup(void **state)
{
    const struct CMUnitTest *test = *state;

    printf("# running: %s\n", test->name);
    *state = group_state ? group_state : test->initial_state;
    return test->setup_func ? test->setup_func(state) : 0;
}

int __wrap__cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t count,
                                   CMFixtureFunction setup, CMFixtureFunction teardown)
{
    struct CMUnitTest *named = calloc(count, sizeof(*named));
    int failed;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!named)
        return -1;
    for (size_t i = 0; i < count; i++) {
        named[i] = tests[i];
        named[i].setup_func = named_setup;
        named[i].initial_state = (void *)(uintptr_t)&tests[i];
    }
    group_setup = setup;
    group_teardown = teardown;
    group_state = NULL;
    failed = __real__cmocka_run_group_tests(group, named, count, setup ? kept_setup : NULL,
                                            teardown ? kept_teardown : NULL);
    free(named);
    return failed;
}
