/*
 * Sentences for people: into a struct error, or onto stderr.
 */
#include "host/runtime/error.h"

#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "host/runtime/world.h"

static const char *program = "ringside";

/* A line costs INTERVAL; so much may be owed that LINES go at once. interval 0: no limit. All atomic. */
static uint64_t limit_interval_ns, limit_owed_ns;
static uint64_t limit_paid_ns; /* when all lines so far will be paid for */
static uint64_t limit_left_out;

/* Formats into TEXT of SIZE bytes, with control characters (a stranger's file name may have them) made
 * harmless. Returns the length. */
static size_t format_text(char *text, size_t size, const char *format, va_list args)
{
    int n = vsnprintf(text, size, format, args);
    size_t len = n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;

    text[len] = '\0';
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            text[i] = '?';
    }
    return len;
}

int error_set(struct error *err, int code, const char *format, ...)
{
    va_list args;

    if (err) {
        char text[ERROR_TEXT_BYTES];
        size_t len;

        /* Through a copy: an argument may be ERR's own text. */
        va_start(args, format);
        len = format_text(text, sizeof(text), format, args);
        va_end(args);
        memcpy(err->text, text, len + 1);
    }
    return code;
}

int error_prefix(struct error *err, int code, const char *format, ...)
{
    va_list args;

    if (err) {
        char text[ERROR_TEXT_BYTES];
        size_t len;

        va_start(args, format);
        len = format_text(text, sizeof(text), format, args);
        va_end(args);
        if (err->text[0] && len < sizeof(text) - 1)
            snprintf(text + len, sizeof(text) - len, ": %.*s", (int)(sizeof(text) - len - 3), err->text);
        memcpy(err->text, text, strlen(text) + 1);
    }
    return code;
}

void log_set_program(const char *name)
{
    program = name;
}

static void put_line(const char *line, size_t len)
{
    ssize_t n = write(STDERR_FILENO, line, len);

    (void)n; /* nobody is left to be told */
}

static void put_left_out(void)
{
    uint64_t n = __atomic_exchange_n(&limit_left_out, 0, __ATOMIC_RELAXED);
    char line[160];

    if (n == 0)
        return;
    n = (uint64_t)snprintf(line, sizeof(line), "%.60s: (%llu messages were left out)\n", program,
                           (unsigned long long)n);
    put_line(line, n);
}

/* Can a line be written without waiting for a reader? */
static bool stderr_has_room(void)
{
    struct pollfd wait = {.fd = STDERR_FILENO, .events = POLLOUT};

    return poll(&wait, 1, 0) == 1;
}

static bool limit_allows(void)
{
    uint64_t interval = __atomic_load_n(&limit_interval_ns, __ATOMIC_RELAXED), now, paid, from;

    if (interval == 0)
        return true;
    if (!stderr_has_room())
        return false;
    now = world_now_ns();
    paid = __atomic_load_n(&limit_paid_ns, __ATOMIC_RELAXED);
    do {
        from = paid > now ? paid : now;
        if (from - now > __atomic_load_n(&limit_owed_ns, __ATOMIC_RELAXED))
            return false;
    } while (!__atomic_compare_exchange_n(&limit_paid_ns, &paid, from + interval, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return true;
}

void log_limit(unsigned lines, uint64_t interval_ns)
{
    __atomic_store_n(&limit_owed_ns, lines > 0 ? (lines - 1) * interval_ns : 0, __ATOMIC_RELAXED);
    __atomic_store_n(&limit_paid_ns, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&limit_interval_ns, interval_ns, __ATOMIC_RELAXED);
}

void log_unlimit(void)
{
    __atomic_store_n(&limit_interval_ns, 0, __ATOMIC_RELAXED);
    if (stderr_has_room())
        put_left_out();
}

void log_message(const char *format, ...)
{
    char line[ERROR_TEXT_BYTES + 128];
    va_list args;
    size_t len;

    if (!limit_allows()) {
        __atomic_fetch_add(&limit_left_out, 1, __ATOMIC_RELAXED);
        return;
    }
    put_left_out();
    len = (size_t)snprintf(line, 64, "%s: ", program);
    if (len > 63)
        len = 63;
    va_start(args, format);
    len += format_text(line + len, sizeof(line) - len - 1, format, args);
    va_end(args);
    line[len++] = '\n';
    put_line(line, len);
}
