/*
 * ringside-img: makes, looks at, checks and changes disk images, in qemu-img's words. This file is the
 * command line: the table of sub-commands, the tables of their options, help, and the loop that runs one of
 * them.
 */
#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "host/cmd/img.h"
#include "host/runtime/loop.h"

#define AT(field) offsetof(struct img_options, field)

#define OPTION_HELP                              \
    {                                            \
        'h', "help", NULL, "show this", AT(help) \
    }
#define OPTION_FORMAT                                                                              \
    {                                                                                              \
        'f', "format", "FMT", "format of the image: qcow2 or raw (default: found out)", AT(format) \
    }
#define OPTION_QUIET                                       \
    {                                                      \
        'q', "quiet", NULL, "print errors only", AT(quiet) \
    }
#define OPTION_PROGRESS                                           \
    {                                                             \
        'p', "progress", NULL, "show how far it is", AT(progress) \
    }
#define OPTION_SHARE                                                                              \
    {                                                                                             \
        'U', "force-share", NULL, "read although another process may be writing", AT(force_share) \
    }
#define OPTION_OUTPUT                                                    \
    {                                                                    \
        0, "output", "human|json", "form of what is printed", AT(output) \
    }
#define OPTION_CACHE                                                                                     \
    {                                                                                                    \
        't', "cache", "MODE", "none, directsync, writeback (default), writethrough or unsafe", AT(cache) \
    }
#define OPTION_SOURCE_CACHE                                                             \
    {                                                                                   \
        'T', "source-cache", "MODE", "the same for what is only read", AT(source_cache) \
    }
#define OPTION_POLICY                                                                               \
    {                                                                                               \
        0, "backing", "deny|same-dir|DIR",                                                          \
            "which other files an image may name (default same-dir; / for any)", AT(backing_policy) \
    }
#define OPTION_SECRET                                                                               \
    {                                                                                               \
        0, "secret-file", "FILE", "file with the passphrase of an encrypted image", AT(secret_file) \
    }
#define OPTION_AIO                                                                     \
    {                                                                                  \
        0, "aio", "native|io_uring|threads", "how files are read and written", AT(aio) \
    }
#define OPTION_END \
    {              \
        0          \
    }

static const struct img_option create_table[] = {
    {'f', "format", "FMT", "format of the new image: raw (default) or qcow2", AT(format)},
    {'o', "options", "LIST", "NAME=VALUE,... of the format; -o help lists them", AT(create_options)},
    {'b', "backing-file", "FILE", "image that shows through where nothing is written yet", AT(backing_file)},
    {'F', "backing-format", "FMT", "its format: qcow2 or raw", AT(backing_format)},
    {'u', "unsafe", NULL, "do not look at the backing file (then SIZE is needed)", AT(unsafe)},
    OPTION_SECRET,
    OPTION_QUIET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_option info_table[] = {
    OPTION_FORMAT, OPTION_OUTPUT, {0, "backing-chain", NULL, "the backing files as well", AT(backing_chain)},
    OPTION_SHARE,  OPTION_POLICY, OPTION_SECRET,
    OPTION_HELP,   OPTION_END,
};

static const struct img_option check_table[] = {
    OPTION_FORMAT,       {'r', "repair", "leaks|all", "repair what is found", AT(repair)},
    OPTION_OUTPUT,       OPTION_CACHE,
    OPTION_SOURCE_CACHE, OPTION_SHARE,
    OPTION_QUIET,        OPTION_SECRET,
    OPTION_POLICY,       OPTION_HELP,
    OPTION_END,
};

static const struct img_option map_table[] = {
    OPTION_FORMAT,
    OPTION_OUTPUT,
    {'s', "start-offset", "N", "from there on", AT(start_offset)},
    {'l', "max-length", "N", "so many bytes at most", AT(max_length)},
    OPTION_SHARE,
    OPTION_POLICY,
    OPTION_SECRET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_option convert_table[] = {
    {'f', "format", "FMT", "format of the sources: qcow2 or raw (default: found out)", AT(format)},
    {'O', "output-format", "FMT", "format of the target: raw (default; with -n: found out) or qcow2",
     AT(output_format)},
    {'o', "options", "LIST", "NAME=VALUE,... of the target's format; -o help lists them", AT(create_options)},
    {'B', "backing-file", "FILE", "backing file of the target: only what differs in name is copied",
     AT(backing_file)},
    {'F', "backing-format", "FMT", "its format: qcow2 or raw", AT(backing_format)},
    {'c', "compress", NULL, "compress the target's clusters (qcow2)", AT(compressed)},
    {'l', "snapshot", "ID|NAME", "read from this internal snapshot", AT(snapshot)},
    {'n', "no-create", NULL, "the target is there already", AT(no_create)},
    {0, "target-is-zero", NULL, "with -n: the target reads as zeroes", AT(target_is_zero)},
    {'S', "sparse", "SIZE", "zeroes of this length, up to 16M, are left out (default 4k; 0: none)",
     AT(sparse)},
    {'m', "coroutines", "N", "requests in flight, 1 to 16 (default 8)", AT(coroutines)},
    {'r', "rate-limit", "RATE", "bytes a second that are copied at most", AT(rate)},
    {0, "bitmaps", NULL, "copy the bitmaps, too (qcow2)", AT(bitmaps)},
    {0, "skip-broken-bitmaps", NULL, "with --bitmaps: leave inconsistent ones behind",
     AT(skip_broken_bitmaps)},
    {0, "salvage", NULL, "what cannot be read is zeroes, and is said", AT(salvage)},
    {'W', "out-of-order", NULL, "accepted; writes are out of order anyhow", AT(out_of_order)},
    OPTION_CACHE,
    OPTION_SOURCE_CACHE,
    OPTION_AIO,
    OPTION_SHARE,
    OPTION_PROGRESS,
    OPTION_QUIET,
    OPTION_POLICY,
    OPTION_SECRET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_option compare_table[] = {
    {'f', "format", "FMT", "format of the first image: qcow2 or raw (default: found out)", AT(format)},
    {'F', "second-format", "FMT", "format of the second image, the same", AT(second_format)},
    {'s', "strict", NULL, "sizes and allocation must be equal too", AT(strict)},
    OPTION_SOURCE_CACHE,
    OPTION_SHARE,
    OPTION_PROGRESS,
    OPTION_QUIET,
    OPTION_POLICY,
    OPTION_SECRET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_option resize_table[] = {
    OPTION_FORMAT,
    {0, "shrink", NULL, "allow a smaller size: what lies beyond it is lost", AT(shrink)},
    {0, "preallocation", "MODE", "of what is added: off, metadata, falloc or full", AT(preallocation)},
    OPTION_QUIET,
    OPTION_POLICY,
    OPTION_SECRET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_option snapshot_table[] = {
    {'l', "list", NULL, "list them (default)", AT(list)},
    {'c', "create", "NAME", "make one", AT(snapshot_create)},
    {'a', "apply", "ID|NAME", "go back to it", AT(snapshot_apply)},
    {'d', "delete", "NAME", "delete it", AT(snapshot_delete)},
    OPTION_FORMAT,
    OPTION_SHARE,
    OPTION_QUIET,
    OPTION_POLICY,
    OPTION_SECRET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_option commit_table[] = {
    OPTION_FORMAT,
    {'b', "base", "FILE", "image of the chain to commit into (default: the next one)", AT(base)},
    {'r', "rate-limit", "RATE", "bytes a second that are copied at most", AT(rate)},
    {'d', "drop", NULL, "do not empty the image afterwards: it will be dropped", AT(drop)},
    OPTION_CACHE,
    OPTION_PROGRESS,
    OPTION_QUIET,
    OPTION_POLICY,
    OPTION_SECRET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_option rebase_table[] = {
    OPTION_FORMAT,
    {'b', "backing-file", "FILE", "the new backing file; \"\" for none", AT(backing_file)},
    {'F', "backing-format", "FMT", "its format: qcow2 or raw", AT(backing_format)},
    {'u', "unsafe", NULL, "only change the name: the content is known to be the same", AT(unsafe)},
    OPTION_CACHE,
    OPTION_SOURCE_CACHE,
    OPTION_SHARE,
    OPTION_PROGRESS,
    OPTION_QUIET,
    OPTION_POLICY,
    OPTION_SECRET,
    OPTION_HELP,
    OPTION_END,
};

static const struct img_command commands[] = {
    {"create", "[OPTION]... FILE [SIZE]", "make a new image", create_table, 1, 2, img_co_create},
    {"info", "[OPTION]... FILE", "say what an image is", info_table, 1, 1, img_co_info},
    {"check", "[OPTION]... FILE", "look for errors in an image, and repair it", check_table, 1, 1,
     img_co_check, CMD_EXIT_FAILED},
    {"map", "[OPTION]... FILE", "say where an image's data lies", map_table, 1, 1, img_co_map},
    {"convert", "[OPTION]... FILE... TARGET", "copy an image into one of another kind", convert_table, 2, 64,
     img_co_convert},
    {"compare", "[OPTION]... FILE FILE", "compare the contents of two images", compare_table, 2, 2,
     img_co_compare},
    {"resize", "[OPTION]... FILE [+|-]SIZE", "change an image's size", resize_table, 2, 2, img_co_resize},
    {"snapshot", "[OPTION]... FILE", "list, make, apply and delete internal snapshots", snapshot_table, 1, 1,
     img_co_snapshot},
    {"commit", "[OPTION]... FILE", "write an image's changes into its backing file", commit_table, 1, 1,
     img_co_commit},
    {"rebase", "[OPTION]... FILE", "change an image's backing file", rebase_table, 1, 1, img_co_rebase},
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void print_help(void)
{
    printf("usage: ringside-img COMMAND [OPTION]... FILE...\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        printf("  %-9s %s\n", commands[i].name, commands[i].help);
    printf("\n`ringside-img COMMAND --help` lists the options of a command; --version shows the version.\n"
           "Formats: qcow2, raw. Sizes are in bytes, or with k, M, G, T, P, E.\n");
}

static void print_command_help(const struct img_command *command)
{
    printf("usage: ringside-img %s %s\n%c%s.\n\n", command->name, command->usage, command->help[0] & ~0x20,
           command->help + 1);
    for (const struct img_option *o = command->options; o->help; o++) {
        char left[64], letter[8] = "   ";
        if (o->letter)
            snprintf(letter, sizeof(letter), "-%c%s", o->letter, o->name ? "," : "");
        snprintf(left, sizeof(left), "%s --%s%s%s", letter, o->name, o->argument ? "=" : "",
                 o->argument ? o->argument : "");
        printf("  %-32s %s\n", left, o->help);
    }
}

/* COMMAND: NULL if there is none. */
static int usage(const struct img_command *command, const char *format, const char *what)
{
    char text[256];
    snprintf(text, sizeof(text), format, what);
    log_message("%s (see `ringside-img %s%s--help`)", text, command ? command->name : "", command ? " " : "");
    return command && command->usage_status ? command->usage_status : CMD_EXIT_USAGE;
}

#define ROWS_MAX 32

#define LONG_FIRST 1000 /* what getopt_long returns for the first row's name */

/* The row of a letter, or of what getopt_long returns for a name. */
static const struct img_option *find_row(const struct img_command *command, int c)
{
    if (c >= LONG_FIRST)
        return &command->options[c - LONG_FIRST];
    for (const struct img_option *o = command->options; o->help; o++) {
        if (o->letter == c)
            return o;
    }
    return NULL;
}

/* Says what is wrong with the option that getopt_long has just refused with C. */
static int refused(const struct img_command *command, int c, char **argv)
{
    char word[3] = {'-', (char)optopt, '\0'};
    bool is_long = optopt == 0 || optopt >= LONG_FIRST;
    const char *written = is_long ? argv[optind - 1] : word;
    unsigned alike = 0;
    if (c == ':')
        return usage(command, "option '%s' needs a value", written);
    if (optopt >= LONG_FIRST)
        return usage(command, "option '%s' takes no value", written);
    for (const struct img_option *o = command->options; is_long && o->help; o++)
        alike += o->name && strncmp(o->name, written + 2, strcspn(written + 2, "=")) == 0;
    return usage(command, alike > 1 ? "more than one option begins like '%s'" : "unknown option '%s'",
                 written);
}

static int store(struct img_options *options, const struct img_option *row, const char *value)
{
    if (!row->argument) {
        *(bool *)((char *)options + row->offset) = true;
    } else if (row->offset == AT(create_options)) {
        if (options->create_option_count == IMG_CREATE_OPTIONS_MAX)
            return -E2BIG;
        options->create_options[options->create_option_count++] = value;
    } else {
        const char **to = (const char **)((char *)options + row->offset);
        /* Of most options the last one counts, but of two deeds one would be left out unsaid. */
        if (*to && (to == &options->snapshot_create || to == &options->snapshot_apply ||
                    to == &options->snapshot_delete))
            return -E2BIG;
        *to = value;
    }
    return 0;
}

/* Fills OPTIONS from the words after the sub-command's name. -1: go on; else the exit status. */
static int parse(const struct img_command *command, int argc, char **argv, struct img_options *options)
{
    struct option longs[ROWS_MAX + 1] = {{0}};
    char shorts[2 * ROWS_MAX + 2] = ":";
    size_t at = 1;
    int c;
    for (unsigned i = 0; i < ROWS_MAX && command->options[i].help; i++) {
        const struct img_option *o = &command->options[i];
        longs[i] = (struct option){o->name, o->argument ? required_argument : no_argument, NULL,
                                   LONG_FIRST + (int)i};
        if (o->letter) {
            shorts[at++] = (char)o->letter;
            if (o->argument)
                shorts[at++] = ':';
        }
    }
    /* A last word like -1G is a size to shrink by, not an option. */
    const char *last = argv[argc - 1];
    int hidden = argc > 1 && last[0] == '-' && last[1] >= '0' && last[1] <= '9';
    argc -= hidden;
    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        if (c == ':' || c == '?')
            return refused(command, c, argv);
        const struct img_option *row = find_row(command, c);
        if (store(options, row, optarg) < 0)
            return usage(command, "option '%s' is given too often", row->name);
    }
    options->names = argv + optind;
    options->name_count = (unsigned)(argc + hidden - optind);
    if (options->help) {
        print_command_help(command);
        return CMD_EXIT_OK;
    }
    if (img_asks_for_options(options))
        return img_print_create_options(find_row(command, 'O') ? options->output_format : options->format);
    struct open_options ignored;
    struct error err = {""};
    if (img_open_options(options, 0, &ignored, &err) < 0 ||
        img_open_options(options, IMG_SOURCE, &ignored, &err) < 0)
        return usage(command, "%s", err.text);
    if (options->name_count < command->names_min)
        return usage(command, "a file name is missing: %s", command->usage);
    if (options->name_count > command->names_max)
        return usage(command, "'%s' is too much", options->names[command->names_max]);
    return -1;
}

struct run {
    const struct img_command *command;
    const struct img_options *options;
    int status;
};

static void coroutine_fn run_entry(void *opaque)
{
    struct run *run = opaque;
    run->status = run->command->co_run(run->options);
}

int main(int argc, char **argv)
{
    log_set_program("ringside-img");
    if (argc < 2)
        return usage(NULL, "%s", "which command?");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help();
        return CMD_EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("ringside-img %s\n", RINGSIDE_VERSION);
        return CMD_EXIT_OK;
    }
    const struct img_command *command = NULL;
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(commands[i].name, argv[1]) == 0)
            command = &commands[i];
    }
    if (!command)
        return usage(NULL, argv[1][0] == '-' ? "unknown option '%s'" : "unknown command '%s'", argv[1]);

    struct img_options options = {0};
    int status = parse(command, argc - 1, argv + 1, &options);
    if (status >= 0)
        return status;
    struct error err = {""};
    struct loop *loop = loop_create("img", &err);
    if (!loop) {
        log_message("%s", err.text);
        return CMD_EXIT_FAILED;
    }
    struct run run = {command, &options, CMD_EXIT_FAILED};
    if (loop_run_coroutine(loop, run_entry, &run) < 0)
        log_message("out of memory");
    loop_destroy(loop);
    return cmd_output_end(run.status);
}
