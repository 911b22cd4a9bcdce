/* The command line of `ringside`: see settings.h. */
#include "tests/harness/settings.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "host/runtime/error.h"
#include "tests/harness/own_device.h"

enum option_type {
    TYPE_FLAG,    /* no argument: bool */
    TYPE_ON_OFF,  /* bool */
    TYPE_NUMBER,  /* uint64_t */
    TYPE_SECONDS, /* uint64_t milliseconds; given in seconds, with a fraction if wanted */
    TYPE_TEXT,    /* const char * */
    TYPE_CHOICE   /* unsigned: index into choices */
};

struct option_row {
    const char *name;
    unsigned groups;
    enum option_type type;
    size_t offset;
    const char *argument, *fallback, *meaning;
    const char *const *choices;
};

static const char *const rings[] = {"split", "packed", NULL};
static const char *const clients[] = {"poll", "sleep", "yield", NULL};
static const char *const rws[] = {"read", "write", "randread", "randwrite", "rw", "randrw", "flush", NULL};
static const char *const formats[] = {"text", "json", "html", NULL};

#define AT(field) offsetof(struct settings, field)

static const struct option_row rows[] = {
    {"help", GROUP_ANY, TYPE_FLAG, AT(help), NULL, NULL, "this text", NULL},
    {"version", GROUP_ANY, TYPE_FLAG, AT(version), NULL, NULL, "the version", NULL},
    {"json", GROUP_JSON, TYPE_FLAG, AT(json), NULL, NULL, "machine-readable output", NULL},
    {"device", GROUP_DEVICE, TYPE_TEXT, AT(device), "own|SOCKET", "own",
     "our own device on a thread of this process, or a back end's socket", NULL},
    {"device-pid", GROUP_DEVICE, TYPE_NUMBER, AT(device_pid), "PID", "0",
     "process whose CPU time and system calls count as the device's; 0: the one that listens", NULL},
    {"watch", GROUP_INFO, TYPE_SECONDS, AT(watch_ms), "SECONDS", "0",
     "stay so long, and say when the capacity changes", NULL},
    {"ring", GROUP_DRIVER, TYPE_CHOICE, AT(ring), "split|packed", "split", "ring format", rings},
    {"queues", GROUP_DRIVER, TYPE_NUMBER, AT(queues), "N", "1", "queues, each on a thread of its own", NULL},
    {"driver-queue-size", GROUP_DRIVER, TYPE_NUMBER, AT(queue_size), "N", "256", "size of each queue", NULL},
    {"indirect", GROUP_DRIVER, TYPE_ON_OFF, AT(indirect), "on|off", "on", "accept INDIRECT_DESC", NULL},
    {"indirect-segs", GROUP_DRIVER, TYPE_NUMBER, AT(indirect_segs), "N", "34", "entries of an indirect table",
     NULL},
    {"event-idx", GROUP_DRIVER, TYPE_ON_OFF, AT(event_idx), "on|off", "on", "accept EVENT_IDX", NULL},
    {"in-order", GROUP_DRIVER, TYPE_ON_OFF, AT(in_order), "on|off", "off", "accept IN_ORDER", NULL},
    {"refuse-features", GROUP_DRIVER, TYPE_NUMBER, AT(refuse_features), "BITS", "0",
     "further feature bits not to accept", NULL},
    {"copy", GROUP_DRIVER, TYPE_ON_OFF, AT(copy), "on|off", "off",
     "copy every buffer when it is shared, so that a missing share shows", NULL},
    {"regions", GROUP_DRIVER, TYPE_NUMBER, AT(regions), "1..8", "0",
     "memory regions that the arena is cut into; 0: 2 for our own device, 1 for another", NULL},
    {"mem-slots", GROUP_DRIVER, TYPE_ON_OFF, AT(mem_slots), "on|off", "off",
     "add memory region by region (CONFIGURE_MEM_SLOTS)", NULL},
    {"inflight", GROUP_DRIVER, TYPE_ON_OFF, AT(inflight), "on|off", "off", "ask for an inflight region",
     NULL},
    {"reconnect", GROUP_DRIVER, TYPE_ON_OFF, AT(reconnect), "on|off", "off",
     "connect again when the device goes away, and go on", NULL},
    {"deadline", GROUP_DRIVER, TYPE_SECONDS, AT(deadline_ms), "SECONDS", "30", "deadline of a request", NULL},
    {"client", GROUP_CLIENT, TYPE_CHOICE, AT(client), "poll|sleep|yield", "poll",
     "poll the used ring, sleep until interrupted, or poll and let others have the CPU in between", clients},
    {"cpus", GROUP_CLIENT, TYPE_TEXT, AT(cpus), "LIST", NULL,
     "hold the thread of queue q on the qth of these CPUs: 0,2,4-7", NULL},
    {"qd", GROUP_CLIENT, TYPE_NUMBER, AT(depth), "N", "32", "requests in flight on each queue", NULL},
    {"seed", GROUP_CLIENT | GROUP_SIM | GROUP_TORTURE, TYPE_NUMBER, AT(seed), "N", "1", "where chance starts",
     NULL},
    {"ops", GROUP_VERIFY, TYPE_NUMBER, AT(ops), "N", "0", "stop after N requests (0: by --bytes)", NULL},
    {"bytes", GROUP_VERIFY, TYPE_NUMBER, AT(bytes), "SIZE", "64m", "stop after SIZE bytes of requests", NULL},
    {"runtime", GROUP_VERIFY, TYPE_SECONDS, AT(runtime_ms), "SECONDS", "0",
     "stop after so long, whatever --ops and --bytes say (0: never)", NULL},
    {"span", GROUP_VERIFY, TYPE_NUMBER, AT(span), "SIZE", "256m",
     "part of the disk that is used, from its start", NULL},
    {"max-request", GROUP_VERIFY, TYPE_NUMBER, AT(max_request), "SIZE", "512k", "longest request", NULL},
    {"export", GROUP_VERIFY, TYPE_TEXT, AT(export_path), "FILE", NULL,
     "at the end write what the disk reads to FILE (raw)", NULL},
    {"allow-errors", GROUP_VERIFY, TYPE_FLAG, AT(allow_errors), NULL, NULL,
     "a request may fail; what it touched is then unknown", NULL},
    {"rw", GROUP_BENCH, TYPE_CHOICE, AT(rw), "read|write|randread|randwrite|rw|randrw|flush", "randread",
     "what to do", rws},
    {"bs", GROUP_BENCH, TYPE_NUMBER, AT(block_bytes), "SIZE", "4k", "bytes of a request", NULL},
    {"runtime", GROUP_BENCH, TYPE_SECONDS, AT(runtime_ms), "SECONDS", "5", "how long to measure", NULL},
    {"ramp", GROUP_BENCH, TYPE_SECONDS, AT(ramp_ms), "SECONDS", "0.3", "how long to run before that", NULL},
    {"ops", GROUP_BENCH, TYPE_NUMBER, AT(ops), "N", "0", "stop after N requests; 0: by --runtime alone",
     NULL},
    {"think", GROUP_BENCH, TYPE_SECONDS, AT(think_ms), "SECONDS", "0",
     "pause between a completion and the request after it", NULL},
    {"span", GROUP_BENCH, TYPE_NUMBER, AT(size), "SIZE", "0", "part of the disk that is used; 0: all", NULL},
    {"format", GROUP_TRACE, TYPE_CHOICE, AT(format), "text|json|html", "text", "how to print", formats},
    {"only", GROUP_TRACE, TYPE_TEXT, AT(only), "KIND", NULL, "one kind of request (read, write, flush, ...)",
     NULL},
    {"only", GROUP_CONFORM | GROUP_TORTURE, TYPE_TEXT, AT(only), "TEXT", NULL,
     "only rows whose name contains TEXT", NULL},
    {"list", GROUP_CONFORM | GROUP_TORTURE, TYPE_FLAG, AT(list), NULL, NULL, "print the rows, do nothing",
     NULL},
    {"rounds", GROUP_TORTURE, TYPE_NUMBER, AT(rounds), "N", "300", "rounds of random messages and rings",
     NULL},
    {"seeds", GROUP_SIM, TYPE_NUMBER, AT(seeds), "N", "1", "how many seeds, from --seed on", NULL},
    {"steps", GROUP_SIM, TYPE_NUMBER, AT(steps), "N", "2000", "requests of one run", NULL},
    {"lying-disk", GROUP_SIM, TYPE_FLAG, AT(lying_disk), NULL, NULL,
     "flushes do nothing: the run has to notice", NULL},
    {"replay", GROUP_SIM, TYPE_FLAG, AT(replay), NULL, NULL, "run twice and compare every step", NULL},
    {"verbose", GROUP_SIM | GROUP_TORTURE, TYPE_FLAG, AT(verbose), NULL, NULL, "say more", NULL},
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

bool settings_number(const char *text, uint64_t *value)
{
    static const char units[] = "kmgt";
    char *end;
    unsigned shift = 0;

    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    *value = strtoull(text, &end, 0);
    if (errno)
        return false;
    if (*end) {
        const char *unit = strchr(units, tolower((unsigned char)*end));

        if (!unit || (end[1] && strcasecmp(end + 1, "ib") != 0 && strcasecmp(end + 1, "b") != 0))
            return false;
        shift = 10 * (unsigned)(unit - units + 1);
    }
    if (shift && *value >> (64 - shift))
        return false;
    *value <<= shift;
    return true;
}

static bool row_set(struct settings *settings, const struct option_row *row, const char *text)
{
    void *field = (char *)settings + row->offset;
    char *end;
    double seconds;

    switch (row->type) {
    case TYPE_FLAG:
        *(bool *)field = true;
        return true;
    case TYPE_ON_OFF:
        *(bool *)field = strcmp(text, "on") == 0;
        return strcmp(text, "on") == 0 || strcmp(text, "off") == 0;
    case TYPE_NUMBER:
        return settings_number(text, field);
    case TYPE_SECONDS:
        seconds = strtod(text, &end);
        if (end == text || *end || !(seconds >= 0 && seconds < 1e6))
            return false;
        *(uint64_t *)field = (uint64_t)(seconds * 1000);
        return true;
    case TYPE_TEXT:
        *(const char **)field = text;
        return true;
    case TYPE_CHOICE:
        for (unsigned i = 0; row->choices[i]; i++)
            if (strcmp(row->choices[i], text) == 0) {
                *(unsigned *)field = i;
                return true;
            }
        return false;
    }
    return false;
}

static const struct option_row *row_find(const char *name, size_t length, unsigned groups)
{
    for (size_t i = 0; i < ROWS; i++)
        if ((rows[i].groups & groups) && strlen(rows[i].name) == length &&
            memcmp(rows[i].name, name, length) == 0)
            return &rows[i];
    return NULL;
}

static int usage(const char *command, const char *text, const char *argument)
{
    log_message("%s: %s (see `ringside %s --help`)", argument, text, command);
    return 2;
}

static int device_option(struct settings *settings, const char *command, const char *word)
{
    struct error err = {""};

    if (settings->device_option_count ==
        sizeof(settings->device_options) / sizeof(settings->device_options[0]))
        return usage(command, "too many options of the device", word);
    if (own_device_check_option(word + 2, &err) < 0) {
        log_message("%s (see `ringside %s --help`)", err.text, command);
        return 2;
    }
    settings->device_options[settings->device_option_count++] = word + 2;
    return 0;
}

static int take(struct settings *settings, const char *command, unsigned groups, int argc, char **argv,
                int *at)
{
    char *word = argv[*at];
    char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word - 2) : strlen(word) - 2;
    const struct option_row *row = row_find(word + 2, length, groups);
    const char *value = equals ? equals + 1 : NULL;
    bool wants_value = row ? row->type != TYPE_FLAG : true;

    if (!row && !((groups & GROUP_DEVICE) && own_device_has_option(word + 2, length, &wants_value)))
        return usage(command, "no such option here", word);
    if (row && !wants_value && value)
        return usage(command, "takes no value", word);
    if (row) {
        if (wants_value && !value) {
            if (*at + 1 >= argc)
                return usage(command, "needs a value", word);
            value = argv[++*at];
        }
        if (!row_set(settings, row, value)) {
            /* `trace` and the device both have a --format: the value tells which one is meant. */
            if (equals && (groups & GROUP_DEVICE) && own_device_has_option(word + 2, length, &wants_value))
                return device_option(settings, command, word);
            return usage(command,
                         row->choices || row->type == TYPE_ON_OFF ? row->argument : "not a valid value",
                         word);
        }
        return 0;
    }
    if (wants_value && !value)
        return usage(command, "needs a value, as --OPTION=VALUE", word);
    return device_option(settings, command, word);
}

/* A word that is no option is our own device's image. */
static int image_word(struct settings *settings, const char *command, const char *word)
{
    static char option[4096 + sizeof "--blk-file="];

    if (option[0])
        return usage(command, "one image too many", word);
    if (snprintf(option, sizeof(option), "--blk-file=%s", word) >= (int)sizeof(option))
        return usage(command, "too long for a file's name", word);
    return device_option(settings, command, option);
}

int settings_parse(struct settings *settings, const char *command, unsigned groups, int argc, char **argv)
{
    memset(settings, 0, sizeof(*settings));
    for (size_t i = 0; i < ROWS; i++)
        if ((rows[i].groups & groups) && rows[i].fallback)
            row_set(settings, &rows[i], rows[i].fallback);
    for (int at = 1; at < argc; at++) {
        int code;

        if ((groups & GROUP_DEVICE) && argv[at][0] != '-' && argv[at][0])
            code = image_word(settings, command, argv[at]);
        else if (strncmp(argv[at], "--", 2) != 0 || !argv[at][2])
            return usage(command, "not an option", argv[at]);
        else
            code = take(settings, command, groups, argc, argv, &at);
        if (code)
            return code;
    }
    if (settings->device && strcmp(settings->device, "own") != 0 && settings->device_option_count) {
        char option[300];

        snprintf(option, sizeof option, "--%s", settings->device_options[0]);
        return usage(command, "is an option of our own device, and --device names another", option);
    }
    return 0;
}

void settings_help(FILE *out, unsigned groups)
{
    for (size_t i = 0; i < ROWS; i++) {
        char left[64];
        const struct option_row *row = &rows[i];

        if (!(row->groups & groups))
            continue;
        snprintf(left, sizeof(left), "--%s%s%s", row->name, row->argument ? "=" : "",
                 row->argument ? row->argument : "");
        fprintf(out, "  %-28s %s", left, row->meaning);
        if (row->fallback)
            fprintf(out, " [%s]", row->fallback);
        fputc('\n', out);
    }
    if (groups & GROUP_DEVICE) {
        fprintf(out, "\nwith --device=own, also the device's options:\n");
        own_device_help(out);
    }
}
