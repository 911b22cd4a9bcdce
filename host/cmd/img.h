/*
 * ringside-img: what its sub-commands share. A sub-command is one function in an img_NAME.c, run as a
 * coroutine on the program's only loop, so it may call everything named _co_.
 *
 * Exit statuses are qemu-img's: 0 done; 1 failed; check: 2 corrupt, 3 leaks only, 63 not supported by the
 * format; compare: 1 different, 2 failed; and 2 for a command line that cannot be understood (check: 1, for
 * its 2 says more).
 */
#ifndef RINGSIDE_CMD_IMG_H
#define RINGSIDE_CMD_IMG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "host/block/node.h"
#include "host/cmd/cmd_options.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/error.h"

#define IMG_EXIT_CORRUPT     2
#define IMG_EXIT_LEAKS       3
#define IMG_EXIT_UNSUPPORTED 63

#define IMG_CREATE_OPTIONS_MAX 16 /* -o on one command line */

/* Values of all options of all sub-commands; NULL, 0, false: not given. */
struct img_options {
    const char *format, *second_format, *output_format, *output;
    const char *backing_file, *backing_format, *backing_policy;
    const char *create_options[IMG_CREATE_OPTIONS_MAX];
    unsigned create_option_count;
    const char *cache, *source_cache, *aio;
    const char *secret_file, *snapshot, *repair, *preallocation, *data_policy;
    const char *snapshot_create, *snapshot_apply, *snapshot_delete, *base;
    const char *start_offset, *max_length, *sparse, *coroutines, *rate;
    bool quiet, progress, force_share, backing_chain, strict, unsafe, shrink, compressed, no_create, list,
        drop;
    bool target_is_zero, out_of_order, salvage, bitmaps, skip_broken_bitmaps, help;
    char **names; /* what is not an option */
    unsigned name_count;
};

/* A row of a sub-command's table of options. */
struct img_option {
    int letter;           /* 0: none */
    const char *name;     /* NULL: none */
    const char *argument; /* as the help shows it; NULL: a flag */
    const char *help;
    size_t offset; /* of the bool or const char * in struct img_options */
};

struct img_command {
    const char *name, *usage, *help;
    const struct img_option *options; /* ends with a row of zeroes */
    unsigned names_min, names_max;
    int coroutine_fn (*co_run)(const struct img_options *options);
    int usage_status; /* ends with this if its words cannot be understood; 0: CMD_EXIT_USAGE */
};

int coroutine_fn img_co_create(const struct img_options *options);
int coroutine_fn img_co_info(const struct img_options *options);
int coroutine_fn img_co_check(const struct img_options *options);
int coroutine_fn img_co_map(const struct img_options *options);
int coroutine_fn img_co_convert(const struct img_options *options);
int coroutine_fn img_co_compare(const struct img_options *options);
int coroutine_fn img_co_resize(const struct img_options *options);
int coroutine_fn img_co_snapshot(const struct img_options *options);
int coroutine_fn img_co_commit(const struct img_options *options);
int coroutine_fn img_co_rebase(const struct img_options *options);

/* ---- opening (img_open.c) ---- */

#define IMG_WRITE      1u
#define IMG_NO_BACKING 2u
#define IMG_NO_IO      4u
#define IMG_CHECK      8u
#define IMG_SOURCE     16u /* -T is the cache mode rather than -t */

/* The options of node_co_open that the command line and FLAGS ask for. 0 or -EINVAL with ERR. */
int img_open_options(const struct img_options *options, unsigned flags, struct open_options *open,
                     struct error *err);

/* Flags of writes to what -t is for: writethrough and directsync make each of them durable. */
unsigned img_write_flags(const struct img_options *options);

/* FORMAT is one that an image here can have, or NULL. 0 or -EINVAL with ERR. */
int img_check_format(const char *format, struct error *err);

/* Are the two names the same file, or would be if it were made? */
bool img_same_file(const char *a, const char *b);

/* NAME as FILE would name it (relative to its directory) is FILE itself: WHAT ("backing", "data") it cannot
 * be. 0 or -EINVAL with ERR. */
int img_refuse_itself(const char *file, const char *name, const char *what, struct error *err);

/* Opens PATH (FORMAT or NULL: probe). Says why not on stderr: then the result is negative. */
int coroutine_fn img_co_open(const struct img_options *options, const char *path, const char *format,
                             unsigned flags, struct node **node);

/* Closes; an error is said on stderr and is the result. NULL is fine. */
int coroutine_fn img_co_close(struct node *node);

/* Says "PATH: TEXT" on stderr and returns CMD_EXIT_FAILED. */
int img_failed(const char *path, const struct error *err);

/* --output: *JSON. 0, or CMD_EXIT_USAGE after saying so. */
int img_output(const struct img_options *options, bool *json);

/* The table of snapshots as text (img_info.c). */
void img_print_snapshots(json_t *snapshots);
json_t *img_snapshots(struct node *node); /* NULL: none */

/* ---- creating (img_create.c, img_create_options.c) ---- */

struct img_new {
    const char *path, *format;
    uint64_t size;
    bool size_given;
    const char *size_argument; /* the word on the command line that SIZE is; NULL: there is none */
    const char *backing_file, *backing_format;
    const char *const *create_options; /* -o lists */
    unsigned create_option_count;
    const char *secret_file;
    bool secret_is_its_own; /* it is not there for the source of a conversion */
    uint64_t size_needed;   /* fewer bytes will not do */
    bool size_is_fixed;     /* more will not, either: there are bitmaps of a disk of this size */
    bool bitmaps;           /* there will be some in it, maybe */
    bool compressed;        /* every cluster will be written compressed */
    bool unbacked;          /* a backing file will not do: what is converted are several images in a row */
    bool backed;            /* result */
};

/* Does one of the -o lists ask for help? */
bool img_asks_for_options(const struct img_options *options);
/* Prints what -o of FORMAT (NULL: raw) can say. Returns the exit status. */
int img_print_create_options(const char *format);

/* Makes a new image, printing what it makes unless QUIET. 0, or negative with ERR. */
int coroutine_fn img_co_make(struct img_new *image, const struct img_options *options, bool quiet,
                             struct error *err);

/* ---- content of a whole chain (img_chain.c) ---- */

struct img_extent {
    uint64_t bytes;
    unsigned flags; /* NODE_STATUS_...; ALLOCATED: some layer of the chain decides */
    unsigned depth; /* 0: the image itself */
    uint64_t host_offset;
    const struct node *file; /* where host_offset is meant, if OFFSET is in flags */
};

/* What [OFFSET, OFFSET+BYTES) of the chain from TOP down (to above BASE; NULL: all) is, as far as it is
 * alike. */
int coroutine_fn img_co_extent(struct node *top, const struct node *base, bool holes, uint64_t offset,
                               uint64_t bytes, struct img_extent *extent);

/* Reads; what lies beyond the end is zeroes. */
int coroutine_fn img_co_read(struct node *node, uint64_t offset, void *buf, uint64_t bytes);

/* ---- several things at a time (img_workers.c) ---- */

/* Runs WORK(OPAQUE) in COUNT coroutines (fewer if no more can be had) and waits for all. */
int coroutine_fn img_co_workers(unsigned count, void coroutine_fn (*work)(void *opaque), void *opaque);

/* ---- not too fast (img_rate.c) ---- */

struct throttle;

/* RATE: bytes a second; NULL: no limit. 0, or CMD_EXIT_USAGE after saying so. */
int img_rate_begin(struct throttle *throttle, const char *rate);

/* Waits until BYTES may be copied. */
void coroutine_fn img_co_rate_wait(struct throttle *throttle, uint64_t bytes);

/* ---- words (img_text.c) ---- */

/* "10 MiB" into TEXT, which it returns. */
const char *img_size_text(uint64_t bytes, char text[32]);

/* Prints JSON with an indent of four, and a newline. Takes over the reference. */
void img_print_json(json_t *json);

/* Prints the members of an object as lines "key: value", INDENT deep. */
void img_print_object(json_t *object, unsigned indent);

struct img_progress {
    bool on;
    unsigned last; /* hundredths of a per cent that were shown last */
};

void img_progress_begin(struct img_progress *progress, bool on);
void img_progress(struct img_progress *progress, uint64_t done, uint64_t all);
void img_progress_end(struct img_progress *progress);

/* The new size that "10G", "+1M" or "-1M" means for an image of OLD bytes. 0 or -EINVAL with ERR. */
int img_parse_new_size(const char *text, uint64_t old, uint64_t *bytes, struct error *err);

#endif
