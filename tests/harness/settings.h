/*
 * What the command line of `ringside` says: one table of options, from which parsing and --help come. Each
 * sub-command names the groups that it takes; an option of another group is a usage error.
 */
#ifndef RINGSIDE_HARNESS_SETTINGS_H
#define RINGSIDE_HARNESS_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum settings_group {
    GROUP_ANY = 1, /* --help, --version */
    GROUP_JSON = 2,
    GROUP_DEVICE = 4,  /* --device and the options of our own device */
    GROUP_DRIVER = 8,  /* how the driver is to drive it */
    GROUP_CLIENT = 16, /* polling or sleeping */
    GROUP_VERIFY = 32,
    GROUP_BENCH = 64,
    GROUP_TRACE = 128,
    GROUP_CONFORM = 256,
    GROUP_TORTURE = 512,
    GROUP_SIM = 1024,
    GROUP_INFO = 2048
};

enum bench_rw { RW_READ, RW_WRITE, RW_RANDREAD, RW_RANDWRITE, RW_RW, RW_RANDRW, RW_FLUSH };
enum output_format { FORMAT_TEXT, FORMAT_JSON, FORMAT_HTML };
enum client_kind { CLIENT_POLL, CLIENT_SLEEP, CLIENT_YIELD };
enum ring_kind { RING_SPLIT, RING_PACKED };

struct settings {
    bool help, version, json;

    /* device */
    const char *device;             /* "own" or a socket's path */
    uint64_t device_pid;            /* whose CPU time counts, 0: found out from the socket */
    const char *device_options[64]; /* NAME=VALUE, handed to our own device */
    unsigned device_option_count;
    bool scratch_image; /* our own device, given no image, gets an empty one that remembers what is written */
    bool only_looks;    /* nothing is written: an image that may not be written is opened read-only */

    /* driver */
    unsigned ring; /* enum ring_kind */
    bool indirect, event_idx, in_order, copy, mem_slots, reconnect, inflight;
    uint64_t queues, queue_size, regions, deadline_ms, indirect_segs;
    uint64_t refuse_features;

    uint64_t watch_ms, think_ms;

    /* client */
    unsigned client;  /* enum client_kind */
    const char *cpus; /* of the queues' threads, a list */
    uint64_t depth;
    uint64_t seed;

    /* verify */
    uint64_t ops, bytes, span, max_request, flush_every;
    const char *export_path;
    bool allow_errors;

    /* bench */
    unsigned rw; /* enum bench_rw */
    uint64_t block_bytes, runtime_ms, ramp_ms, size;

    /* trace */
    unsigned format; /* enum output_format */
    const char *only;

    /* conform, torture, sim */
    uint64_t seeds, steps, cases, rounds;
    bool list, replay, verbose, lying_disk;
};

/* Fills SETTINGS with the defaults and then with ARGV[1..], allowing the options of GROUPS. Returns 0, or 2
 * after a sentence on stderr. */
int settings_parse(struct settings *settings, const char *command, unsigned groups, int argc, char **argv);

/* The options of GROUPS, one a line with default and meaning. */
void settings_help(FILE *out, unsigned groups);

/* "64k", "1GiB", "4096": a number with a unit of 1024s. False if it is none. */
bool settings_number(const char *text, uint64_t *value);

#endif
