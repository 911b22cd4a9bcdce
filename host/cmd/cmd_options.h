/*
 * Command lines from tables: one row for each option says how it is written, what it means to a user and
 * where its value goes. Parser, --help and the tests of the documentation all read the rows.
 *
 * Main thread, before anything else runs.
 */
#ifndef RINGSIDE_CMD_OPTIONS_H
#define RINGSIDE_CMD_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "host/runtime/error.h"

#define RINGSIDE_VERSION "1.0"

/* Exit statuses of every program */
#define CMD_EXIT_OK     0
#define CMD_EXIT_FAILED 1
#define CMD_EXIT_USAGE  2

enum cmd_option_kind {
    CMD_FLAG,     /* bool, no argument: becomes true */
    CMD_ON_OFF,   /* bool: on or off */
    CMD_STRING,   /* const char *: points into argv */
    CMD_UNSIGNED, /* unsigned: decimal, MIN..MAX */
    CMD_COUNT64,  /* uint64_t: decimal, MIN..MAX */
    CMD_SIZE,     /* uint64_t: bytes, with K, M, G, T (powers of 1024) allowed; MIN..MAX */
    CMD_CHOICE,   /* unsigned or enum: index into CHOICES */
    CMD_CALL      /* SET decides */
};

struct cmd_option {
    const char *name;     /* without the dashes */
    const char *argument; /* as the help shows it; NULL: takes none */
    const char *help;
    enum cmd_option_kind kind;
    size_t offset; /* of the value in the structure that the table is for */
    uint64_t min, max;
    const char *const *choices; /* NULL-terminated */
    int (*set)(void *options, const char *value, struct error *err);
};

struct cmd_option_table {
    const struct cmd_option *options; /* ends with a row without a name */
    void *values;                     /* the structure */
};

/* Sets the option NAME from VALUE (NULL: none was given). 0; 1: no such option in the table; -EINVAL with a
 * sentence that begins with the option. */
int cmd_option_set(const struct cmd_option_table *table, const char *name, const char *value,
                   struct error *err);

/* Parses ARGV over all TABLES (ending with one whose options are NULL). What is not an option is moved to the
 * end of ARGV, from *FIRST on. 0 or -EINVAL with a sentence. */
int cmd_options_parse(int argc, char **argv, const struct cmd_option_table *tables, int *first,
                      struct error *err);

/* Before a program ends with STATUS: that, or CMD_EXIT_FAILED with a sentence if what it has printed could
 * not be written. A reader who has seen enough is no failure. */
int cmd_output_end(int status);

/* Two columns, all rows. */
void cmd_options_help(FILE *out, const struct cmd_option_table *tables);

/* "12", "4K", "1G": bytes. 0 or -EINVAL. */
int cmd_parse_size(const char *text, uint64_t *bytes);
/* Decimal digits only. 0 or -EINVAL. */
int cmd_parse_count(const char *text, uint64_t *count);

#endif
