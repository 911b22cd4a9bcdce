/*
 * Command lines from tables (cmd_options.h), on top of getopt_long.
 */
#include "host/cmd/cmd_options.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#define OPTIONS_MAX 96

int cmd_parse_count(const char *text, uint64_t *count)
{
    uint64_t n = 0;
    if (!*text)
        return -EINVAL;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(n, 10u, &n) ||
            __builtin_add_overflow(n, (uint64_t)(*text - '0'), &n))
            return -EINVAL;
    }
    *count = n;
    return 0;
}

int cmd_parse_size(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGTPE";
    char digits[32];
    size_t len = strlen(text);
    unsigned shift = 0;

    if (len == 0 || len >= sizeof digits)
        return -EINVAL;
    memcpy(digits, text, len + 1);
    if (len > 1 && (digits[len - 1] == 'B' || digits[len - 1] == 'b'))
        digits[--len] = '\0';
    char unit = len ? digits[len - 1] : '\0';
    if (unit >= 'a' && unit <= 'z')
        unit = (char)(unit - 'a' + 'A');
    const char *at = unit ? strchr(units, unit) : NULL;
    if (at) {
        shift = 10 * (unsigned)(at - units + 1);
        digits[len - 1] = '\0';
    }
    uint64_t n;
    if (cmd_parse_count(digits, &n) < 0 || (shift && n > UINT64_MAX >> shift))
        return -EINVAL;
    *bytes = n << shift;
    return 0;
}

static const struct cmd_option *option_find(const struct cmd_option *options, const char *name)
{
    for (; options->name; options++) {
        if (strcmp(options->name, name) == 0)
            return options;
    }
    return NULL;
}

static int set_choice(const struct cmd_option *o, unsigned *to, const char *value, struct error *err)
{
    char all[200] = "";
    for (unsigned i = 0; o->choices[i]; i++) {
        if (strcmp(o->choices[i], value) == 0) {
            *to = i;
            return 0;
        }
        size_t len = strlen(all);
        snprintf(all + len, sizeof all - len, "%s%s", i ? ", " : "", o->choices[i]);
    }
    return error_set(err, -EINVAL, "--%s=%s: no such choice (choose one of %s)", o->name, value, all);
}

static int set_number(const struct cmd_option *o, void *to, const char *value, struct error *err)
{
    uint64_t n;
    bool size = o->kind == CMD_SIZE;
    if ((size ? cmd_parse_size(value, &n) : cmd_parse_count(value, &n)) < 0)
        return error_set(err, -EINVAL, "--%s=%s: not a %s", o->name, value,
                         size ? "size (a number, K, M, G or T may follow)" : "number");
    if (n < o->min || n > o->max)
        return error_set(err, -EINVAL, "--%s=%s: not between %llu and %llu", o->name, value,
                         (unsigned long long)o->min, (unsigned long long)o->max);
    if (o->kind == CMD_UNSIGNED)
        *(unsigned *)to = (unsigned)n;
    else
        *(uint64_t *)to = n;
    return 0;
}

int cmd_option_set(const struct cmd_option_table *table, const char *name, const char *value,
                   struct error *err)
{
    const struct cmd_option *o = option_find(table->options, name);
    if (!o)
        return 1;
    bool optional = o->argument && o->argument[0] == '[';
    if (o->argument && !value && !optional)
        return error_set(err, -EINVAL, "--%s: %s is missing (write --%s=%s)", name, o->argument, name,
                         o->argument);
    if (!o->argument && value)
        return error_set(err, -EINVAL, "--%s=%s: takes no argument", name, value);

    if (!value && o->kind != CMD_FLAG && o->kind != CMD_STRING && o->kind != CMD_CALL)
        return error_set(err, -EINVAL, "--%s: a value is missing", name);

    char *to = (char *)table->values + o->offset;
    switch (o->kind) {
    case CMD_FLAG:
        *(bool *)to = true;
        return 0;
    case CMD_ON_OFF:
        if (strcmp(value, "on") != 0 && strcmp(value, "off") != 0)
            return error_set(err, -EINVAL, "--%s=%s: neither on nor off", name, value);
        *(bool *)to = strcmp(value, "on") == 0;
        return 0;
    case CMD_STRING:
        if (value && !*value)
            return error_set(err, -EINVAL, "--%s=: is empty (%s is wanted)", name, o->argument);
        *(const char **)to = value;
        return 0;
    case CMD_UNSIGNED:
    case CMD_COUNT64:
    case CMD_SIZE:
        return set_number(o, to, value, err);
    case CMD_CHOICE:
        return set_choice(o, (unsigned *)to, value, err);
    case CMD_CALL:
        return o->set(table->values, value, err);
    }
    return 1;
}

/* Number of single-character edits between two short words. */
static unsigned edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 40 };
    unsigned row[LONGEST + 1];
    size_t la = strlen(a), lb = strlen(b);
    if (la > LONGEST || lb > LONGEST)
        return LONGEST;
    for (size_t j = 0; j <= lb; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= la; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= lb; j++) {
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[lb];
}

static int unknown_option(const char *word, const struct cmd_option_table *tables, struct error *err)
{
    char name[64];
    const char *best = NULL;
    unsigned distance = 3; /* what is further away is no typing mistake */
    int len = (int)strcspn(word, "="), dashes = (int)strspn(word, "-");
    snprintf(name, sizeof name, "%.*s", len - dashes, word + dashes);
    for (const struct cmd_option_table *t = tables; t->options; t++) {
        for (const struct cmd_option *o = t->options; o->name; o++) {
            unsigned d = edit_distance(name, o->name);
            if (d < distance && d < strlen(name)) { /* something of it has to be there */
                distance = d;
                best = o->name;
            }
        }
    }
    if (best)
        return error_set(err, -EINVAL, "%.*s: no such option (did you mean --%s?)", len, word, best);
    return error_set(err, -EINVAL, "%.*s: no such option (see --help)", len, word);
}

int cmd_options_parse(int argc, char **argv, const struct cmd_option_table *tables, int *first,
                      struct error *err)
{
    struct option all[OPTIONS_MAX + 1];
    const struct cmd_option_table *home[OPTIONS_MAX];
    int count = 0;

    memset(all, 0, sizeof all);
    for (const struct cmd_option_table *t = tables; t->options; t++) {
        for (const struct cmd_option *o = t->options; o->name && count < OPTIONS_MAX; o++) {
            int has = !o->argument            ? no_argument
                      : o->argument[0] == '[' ? optional_argument
                                              : required_argument;
            all[count] = (struct option){.name = o->name, .has_arg = has, .val = 1000 + count};
            home[count++] = t;
        }
    }
    opterr = 0;
    optind = 0;
    for (;;) {
        int at = -1;
        int c = getopt_long(argc, argv, ":", all, &at);
        if (c == -1)
            break;
        if (c == ':' && optopt >= 1000 && optopt < 1000 + count) {
            const struct option *o = &all[optopt - 1000];
            return cmd_option_set(home[o - all], o->name, NULL, err);
        }
        if (c == '?' && optopt >= 1000) {
            const struct option *o = &all[optopt - 1000];
            return error_set(err, -EINVAL, "--%s: takes no argument", o->name);
        }
        if (c == '?') {
            /* There are no letters: of a word of several, getopt stands at the first, the word yet to come.
             */
            const char letter[] = {'-', (char)optopt, '\0'};
            bool in_word = optopt && strcmp(argv[optind - 1], letter) != 0 && optind < argc;
            return unknown_option(argv[in_word ? optind : optind - 1], tables, err);
        }
        if (c < 1000 || c >= 1000 + count)
            continue;
        int ret = cmd_option_set(home[c - 1000], all[c - 1000].name, optarg, err);
        if (ret < 0)
            return ret;
    }
    *first = optind;
    return 0;
}

int cmd_output_end(int status)
{
    if ((fflush(stdout) == 0 && !ferror(stdout)) || errno == EPIPE)
        return status;
    log_message("standard output: %s", strerror(errno));
    return CMD_EXIT_FAILED;
}

void cmd_options_help(FILE *out, const struct cmd_option_table *tables)
{
    enum { COLUMN = 34, WIDTH = 100 };
    for (const struct cmd_option_table *t = tables; t->options; t++) {
        for (const struct cmd_option *o = t->options; o->name; o++) {
            bool optional = o->argument && o->argument[0] == '[';
            int n = fprintf(out, "  --%s%s%s", o->name, o->argument && !optional ? "=" : "",
                            o->argument ? o->argument : "");
            if (n > COLUMN - 2) {
                fputc('\n', out);
                n = 0;
            }
            /* The text, wrapped at words into the right column. */
            fprintf(out, "%*s", COLUMN - n, "");
            int column = COLUMN;
            for (const char *p = o->help; *p;) {
                int len = (int)strcspn(p, " ");
                if (column + len > WIDTH && column > COLUMN) {
                    fprintf(out, "\n%*s", COLUMN, "");
                    column = COLUMN;
                }
                column += fprintf(out, "%s%.*s", column > COLUMN ? " " : "", len, p);
                p += len;
                p += *p == ' ';
            }
            fputc('\n', out);
        }
    }
}
