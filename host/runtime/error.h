/*
 * Errors for people. A function that can fail returns a negative errno value; where the cause is known it
 * also writes one sentence into the caller's struct error: what is wrong, and what to do if that is known.
 * Any thread; a struct error belongs to one caller. NULL is a valid `struct error *`: nobody wants the text.
 */
#ifndef RINGSIDE_RUNTIME_ERROR_H
#define RINGSIDE_RUNTIME_ERROR_H

#include <stdint.h>

#define ERROR_TEXT_BYTES 512

struct error {
    char text[ERROR_TEXT_BYTES]; /* "" until set; NUL-terminated, no newline, no program name */
};

/* Writes the sentence, cutting what does not fit. Returns CODE (a negative errno), so that a caller can
 * write `return error_set(err, -EINVAL, "...")`. */
int error_set(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts text in front of what ERR already says, as "PREFIX: old text". Returns CODE. */
int error_prefix(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The program's name, as it stands in front of every message. Set once by main before any thread starts. */
void log_set_program(const char *name);

/* One line on stderr, "PROGRAM: text", written by one write(2) so that threads do not mix. Any thread. */
void log_message(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* For as long as strangers can bring lines about: LINES at once and then one each INTERVAL_NS; and none that
 * would have to wait until somebody empties stderr. What was left out is counted, and the number told with
 * the next line, or by log_unlimit. Any thread. */
void log_limit(unsigned lines, uint64_t interval_ns);
void log_unlimit(void);

#endif
