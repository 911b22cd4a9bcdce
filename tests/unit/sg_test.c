/*
 * Views into scatter-gather lists: every function against the same thing done byte by byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/sg.h"

static uint64_t seed = 1;

static unsigned below(unsigned n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % n;
}

/* An array over BUF with elements of random lengths, empty ones included. */
static unsigned make_iov(struct iovec *iov, unsigned max, char *buf, size_t *total)
{
    unsigned n = 1 + below(max);
    *total = 0;
    for (unsigned i = 0; i < n; i++) {
        size_t len = below(4) == 0 ? 0 : below(20);
        iov[i] = (struct iovec){buf + *total, len};
        *total += len;
    }
    return n;
}

static void views_show_the_same_bytes_as_a_plain_buffer(void **state)
{
    char buf[256], copy[256], expected[256];
    for (unsigned round = 0; round < 5000; round++) {
        struct iovec iov[8], flat[8];
        size_t total;
        for (unsigned i = 0; i < sizeof(buf); i++)
            buf[i] = (char)below(256);
        unsigned n = make_iov(iov, 8, buf, &total);
        struct sg sg = sg_make(iov, n);
        assert_int_equal(sg_bytes(sg), total);
        size_t skip = below((unsigned)total + 1);
        sg = sg_advance(sg, skip / 2);
        sg = sg_advance(sg, skip - skip / 2);
        assert_int_equal(sg_bytes(sg), total - skip);
        size_t bytes = below((unsigned)(total - skip) + 1);
        sg_copy_out(sg, copy, bytes);
        assert_memory_equal(copy, buf + skip, bytes);

        unsigned count = sg_count(sg, bytes);
        assert_int_equal(sg_flatten(sg, bytes, flat, 8), count);
        if (count > 0)
            assert_int_equal(sg_flatten(sg, bytes, flat, count - 1), -ENOBUFS);
        size_t at = skip;
        for (unsigned i = 0; i < count; i++) {
            assert_ptr_equal(flat[i].iov_base, buf + at);
            assert_true(flat[i].iov_len > 0);
            at += flat[i].iov_len;
        }
        assert_int_equal(at, skip + bytes);
        unsigned some = below(9);
        size_t in = 0;
        for (unsigned i = 0; i < some && i < count; i++)
            in += flat[i].iov_len;
        assert_int_equal(sg_bytes_in(sg, bytes, some), in);

        memcpy(expected, buf, sizeof(buf));
        memset(expected + skip, 'x', bytes);
        memset(copy, 'x', sizeof(copy));
        sg_copy_in(sg, copy, bytes);
        assert_memory_equal(buf, expected, sizeof(buf));
        memset(expected + skip, 0, bytes);
        assert_int_equal(sg_is_zero(sg, bytes), bytes == 0);
        sg_zero(sg, bytes);
        assert_memory_equal(buf, expected, sizeof(buf));
        assert_true(sg_is_zero(sg, bytes));
    }
}

static void an_empty_view_has_nothing(void **state)
{
    struct iovec iov[3] = {{NULL, 0}, {NULL, 0}, {NULL, 0}};
    struct sg sg = sg_make(iov, 3);
    assert_int_equal(sg.niov, 0);
    assert_int_equal(sg_bytes(sg), 0);
    assert_int_equal(sg_count(sg, 0), 0);
    assert_true(sg_is_zero(sg, 0));
    assert_true(sg_is_aligned(sg, 0, 4096));
}

static void alignment_looks_at_addresses_and_lengths(void **state)
{
    _Alignas(4096) static char buf[8192];
    struct iovec iov[2] = {{buf, 512}, {buf + 4096, 1024}};
    assert_true(sg_is_aligned(sg_make(iov, 2), 1536, 512));
    assert_false(sg_is_aligned(sg_make(iov, 2), 1536, 1024));
    assert_true(sg_is_aligned(sg_advance(sg_make(iov, 2), 512), 1024, 1024));
    assert_false(sg_is_aligned(sg_make(iov, 2), 1500, 512));
    iov[1].iov_base = buf + 4097;
    assert_false(sg_is_aligned(sg_make(iov, 2), 1536, 512));
    assert_true(sg_is_aligned(sg_make(iov, 2), 512, 512));
}

static void a_single_byte_that_is_not_zero_is_found_anywhere(void **state)
{
    char buf[200] = {0};
    for (unsigned len = 0; len < sizeof(buf); len++) {
        assert_true(buffer_is_zero(buf, len));
        for (unsigned i = 0; i < len; i++) {
            buf[i] = 1;
            assert_false(buffer_is_zero(buf, len));
            buf[i] = 0;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(views_show_the_same_bytes_as_a_plain_buffer),
        cmocka_unit_test(an_empty_view_has_nothing),
        cmocka_unit_test(alignment_looks_at_addresses_and_lengths),
        cmocka_unit_test(a_single_byte_that_is_not_zero_is_found_anywhere),
    };
    return cmocka_run_group_tests_name("scatter-gather views", tests, NULL, NULL);
}
