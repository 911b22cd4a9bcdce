/*
 * Sentences for people: into a struct error, or onto stderr.
 */
#include "host/runtime/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *program = "ringside";

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

void log_message(const char *format, ...)
{
    char line[ERROR_TEXT_BYTES + 128];
    va_list args;
    size_t len;
    ssize_t n;

    len = (size_t)snprintf(line, 64, "%s: ", program);
    if (len > 63)
        len = 63;
    va_start(args, format);
    len += format_text(line + len, sizeof(line) - len - 1, format, args);
    va_end(args);
    line[len++] = '\n';
    n = write(STDERR_FILENO, line, len);
    (void)n; /* nobody is left to be told */
}
