/*
 * Sizes, numbers and option lists of command lines (host/block/parse.h).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "host/block/parse.h"

static void sizes_with_and_without_units(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"512", 512},
        {"010", 10},
        {"0x200", 512},
        {"1b", 1},
        {"4k", 4096},
        {"4K", 4096},
        {"1M", 1048576},
        {"1.5G", 1610612736},
        {"0.5k", 512},
        {"1.0", 1},
        {"2T", 2199023255552},
        {"1P", 1125899906842624},
        {"7E", 8070450532247928832u},
        {"9223372036854775807", INT64_MAX},
        {"1.0000000000000000000001k", 1024},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        uint64_t bytes = 1;
        assert_int_equal(parse_size(good[i].text, &bytes), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
}

static void what_is_no_size_is_refused(void **state)
{
    static const char *const bad[] = {"",    "k",   "-1",  "+1", "1 ",  " 1",    "1x",  "1kk",
                                      "1.k", ".5k", "1e3", "0x", "0xg", "1.5.5", "1.5", "1.5b"};
    static const char *const large[] = {"8E", "9223372036854775808", "99999999999999999999",
                                        "0xffffffffffffffff", "8192P"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(parse_size(bad[i], &bytes), -EINVAL);
    for (size_t i = 0; i < sizeof(large) / sizeof(large[0]); i++)
        assert_int_equal(parse_size(large[i], &bytes), -ERANGE);
}

static void numbers(void **state)
{
    uint64_t n;
    assert_int_equal(parse_number("18446744073709551615", &n), 0);
    assert_true(n == UINT64_MAX);
    assert_int_equal(parse_number("0xFF", &n), 0);
    assert_int_equal(n, 255);
    assert_int_equal(parse_number("18446744073709551616", &n), -ERANGE);
    assert_int_equal(parse_number("1k", &n), -EINVAL);
    assert_int_equal(parse_number("-1", &n), -EINVAL);
    assert_int_equal(parse_number("", &n), -EINVAL);
}

static char seen[256];

static int note(void *opaque, const char *key, const char *value, struct error *err)
{
    size_t n = strlen(seen);
    snprintf(seen + n, sizeof(seen) - n, "[%s|%s]", key, value ? value : "-");
    return strcmp(key, "stop") == 0 ? -ENOENT : 0;
}

static void lists_of_options(void **state)
{
    static const struct {
        const char *list, *seen;
        int ret;
    } lists[] = {
        {"", "", 0},
        {"a=1", "[a|1]", 0},
        {"a=1,b,c=x=y", "[a|1][b|-][c|x=y]", 0},
        {"file=a,,b,c=", "[file|a,b][c|]", 0},
        {"a,stop,b", "[a|-][stop|-]", -ENOENT},
        {"=1", "", -EINVAL},
        {",", "", -EINVAL},
        {"a=1,", "[a|1]", -EINVAL},
        {"a=1,,", "[a|1,]", 0},
        {"a,b,,,", "[a|-][b,|-]", -EINVAL},
    };
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        seen[0] = '\0';
        assert_int_equal(parse_options(lists[i].list, note, NULL, NULL), lists[i].ret);
        assert_string_equal(seen, lists[i].seen);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_with_and_without_units),
        cmocka_unit_test(what_is_no_size_is_refused),
        cmocka_unit_test(numbers),
        cmocka_unit_test(lists_of_options),
    };
    return cmocka_run_group_tests_name("words on command lines", tests, NULL, NULL);
}
