/* `ringside`: the harness, where the driver and a device face each other. The table of its sub-commands. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "host/cmd/cmd_options.h"
#include "host/runtime/error.h"
#include "tests/harness/commands.h"
#include "tests/harness/measure.h"

#define DRIVES (GROUP_ANY | GROUP_JSON | GROUP_DEVICE | GROUP_DRIVER)

static const struct {
    const char *name, *meaning;
    unsigned groups;
    int (*run)(const struct settings *settings);
} commands[] = {
    {"info", "negotiates and prints features, rings and configuration by name", DRIVES | GROUP_INFO,
     command_info},
    {"verify", "writes, reads back, discards and flushes against a model in memory (OVERWRITES the disk)",
     DRIVES | GROUP_CLIENT | GROUP_VERIFY, command_verify},
    {"bench", "load: operations and bytes a second, latency, and what they cost",
     DRIVES | GROUP_CLIENT | GROUP_BENCH, command_bench},
    {"trace",
     "runs one request of each kind and prints the way that it went (OVERWRITES a bit of its middle)",
     (DRIVES & ~(unsigned)GROUP_JSON) | GROUP_TRACE, command_trace},
    {"conform", "judges the device: a row for each rule of the specification (OVERWRITES the disk)",
     GROUP_ANY | GROUP_JSON | GROUP_DEVICE | GROUP_CONFORM, command_conform},
    {"torture", "malformed messages, rings and requests; says what the device did (OVERWRITES the disk)",
     GROUP_ANY | GROUP_JSON | GROUP_DEVICE | GROUP_TORTURE, command_torture},
    {"sim", "both halves, the file below them and every fault under one seed, in one thread",
     GROUP_ANY | GROUP_JSON | GROUP_SIM, command_sim},
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void help(FILE *out)
{
    fprintf(out, "usage: ringside COMMAND [OPTION...]\n"
                 "A virtio-blk driver and a virtio-blk device, face to face over shared memory.\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].meaning);
    fprintf(out, "\n`ringside COMMAND --help` lists a command's options.\n");
}

static int run(size_t index, int argc, char **argv)
{
    struct settings settings;
    int code = settings_parse(&settings, commands[index].name, commands[index].groups, argc, argv);

    if (code)
        return code;
    if (settings.version) {
        printf("ringside %s\n", RINGSIDE_VERSION);
        return 0;
    }
    if (settings.help) {
        printf("usage: ringside %s [OPTION...]\n%s\n\n", commands[index].name, commands[index].meaning);
        settings_help(stdout, commands[index].groups);
        return 0;
    }
    return commands[index].run(&settings);
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";

    log_set_program("ringside");
    measure_client_thread();
    signal(SIGPIPE, SIG_IGN);
    if (strcmp(word, "--help") == 0 || strcmp(word, "help") == 0) {
        help(stdout);
        return cmd_output_end(0);
    }
    if (strcmp(word, "--version") == 0) {
        printf("ringside %s\n", RINGSIDE_VERSION);
        return cmd_output_end(0);
    }
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i].name, word) == 0)
            return cmd_output_end(run(i, argc - 1, argv + 1));
    if (*word)
        log_message("%s: no such command", word);
    help(stderr);
    return 2;
}
