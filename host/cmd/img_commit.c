/*
 * ringside-img commit: writes what an image has changed into the image below it, and empties it.
 *
 * Every layer is opened alone, without its backing file, so that the base can be open for writing: what a
 * layer itself holds is all that has to be copied.
 *
 * What always holds: the image is emptied only after the base is closed without an error, that is, after all
 * is durable in it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/throttle.h"
#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

#define PIECE_BYTES (1024u * 1024u)
#define LAYERS_MAX  NODE_DEPTH_MAX

struct commit {
    struct node *layers[LAYERS_MAX]; /* 0: the image */
    unsigned count;
    char *base_path, *base_format;
    struct node *base;
    struct throttle throttle;
};

/* The file below NODE, by name and format. */
static int coroutine_fn below(const struct img_options *options, struct node *node, char **path,
                              char **format, struct error *err)
{
    struct qcow2_info info;
    struct open_options open;
    *path = *format = NULL;
    if (qcow2_info(node, &info) < 0 || !info.backing_file || !info.backing_file[0])
        return error_set(err, -ENOENT, "has no backing file");
    /* Who writes to a raw disk would choose its format, and with that the files that are written to. */
    if (!info.backing_format || !info.backing_format[0])
        return error_set(err, -EINVAL,
                         "backing file '%s' has no format in the header: it will not be guessed (set it: "
                         "ringside-img rebase -u -b FILE -F FORMAT)",
                         info.backing_file);
    int ret = img_open_options(options, IMG_WRITE, &open, err);
    if (ret == 0)
        ret = node_resolve_allowed(node->filename, info.backing_file, &open, path, err);
    if (ret == 0 && !(*format = strdup(info.backing_format)))
        ret = error_set(err, -ENOMEM, "out of memory");
    return ret;
}

/* Opens the layers from the image down to above the base. Errors are said. */
static int coroutine_fn open_layers(struct commit *commit, const struct img_options *options)
{
    struct error err = {""};
    char *path = strdup(options->names[0]), *format = options->format ? strdup(options->format) : NULL;
    char *wanted = options->base ? realpath(options->base, NULL) : NULL;
    int ret = path ? 0 : -ENOMEM;
    if (options->base && !wanted) {
        log_message("%s: %s", options->base, strerror(errno));
        ret = -ENOENT;
    }
    while (ret == 0) {
        struct node *node;
        if (commit->count == LAYERS_MAX) {
            log_message("%s: more than %u backing files below each other", options->names[0], LAYERS_MAX);
            ret = -ELOOP;
            break;
        }
        ret =
            img_co_open(options, path, format, IMG_NO_BACKING | (commit->count == 0 ? IMG_WRITE : 0), &node);
        if (ret < 0)
            break;
        commit->layers[commit->count++] = node;
        free(path);
        free(format);
        ret = below(options, node, &path, &format, &err);
        if (ret < 0) {
            if (wanted && ret == -ENOENT)
                error_set(&err, ret, "'%s' is not among its backing files", options->base);
            img_failed(options->names[0], &err);
            break;
        }
        if (!wanted || (path && strcmp(wanted, path) == 0)) {
            commit->base_path = path;
            commit->base_format = format;
            path = format = NULL;
            break;
        }
    }
    free(path);
    free(format);
    free(wanted);
    return ret;
}

/* The layer that decides what is at OFFSET, or NULL if that is the base; how far; whether it says zeroes. */
static int coroutine_fn find(struct commit *commit, uint64_t offset, uint64_t *bytes, struct node **layer,
                             bool *zero)
{
    *layer = NULL;
    *zero = false;
    for (unsigned i = 0; i < commit->count; i++) {
        struct node *node = commit->layers[i];
        uint64_t length = node_length(node), pnum;
        unsigned flags;
        if (offset >= length) { /* ends above: zeroes from there on */
            *layer = node;
            *zero = true;
            return 0;
        }
        int ret = node_co_block_status(node, offset, *bytes < length - offset ? *bytes : length - offset,
                                       &pnum, &flags, NULL);
        if (ret < 0)
            return ret;
        *bytes = pnum;
        if (flags & NODE_STATUS_ALLOCATED) {
            *layer = node;
            *zero = flags & NODE_STATUS_ZERO;
            return 0;
        }
    }
    return 0;
}

static int coroutine_fn copy(struct commit *commit, const struct img_options *options, struct error *err)
{
    uint64_t end = node_length(commit->layers[0]);
    unsigned write_flags = img_write_flags(options);
    struct img_progress progress;
    char *buf = node_buffer(commit->base, PIECE_BYTES);
    int ret = buf ? 0 : error_set(err, -ENOMEM, "out of memory");
    img_progress_begin(&progress, options->progress && !options->quiet);
    for (uint64_t offset = 0; offset < end && ret == 0;) {
        uint64_t n = end - offset;
        struct node *layer;
        bool zero;
        ret = find(commit, offset, &n, &layer, &zero);
        if (ret == 0 && layer && zero) {
            ret = node_co_pwrite_zeroes(commit->base, offset, n, NODE_IO_MAY_UNMAP | write_flags);
        } else if (ret == 0 && layer) {
            if (n > PIECE_BYTES)
                n = PIECE_BYTES;
            img_co_rate_wait(&commit->throttle, n);
            ret = node_co_pread(layer, offset, buf, n);
            if (ret == 0)
                ret = node_co_pwrite(commit->base, offset, buf, n, write_flags);
        }
        if (ret < 0)
            error_set(err, ret, "offset %" PRIu64 " cannot be committed: %s", offset, strerror(-ret));
        offset += n;
        img_progress(&progress, offset, end);
    }
    img_progress_end(&progress);
    free(buf);
    return ret;
}

int coroutine_fn img_co_commit(const struct img_options *options)
{
    struct commit *commit = calloc(1, sizeof(*commit));
    struct error err = {""};
    int ret = commit ? img_rate_begin(&commit->throttle, options->rate) : -ENOMEM;
    if (ret > 0) {
        free(commit);
        return ret;
    }
    if (ret == 0)
        ret = open_layers(commit, options);
    if (ret < 0)
        goto out;
    ret = img_co_open(options, commit->base_path, commit->base_format, IMG_WRITE, &commit->base);
    if (ret < 0)
        goto out;
    uint64_t length = node_length(commit->layers[0]);
    if (length > node_length(commit->base))
        ret = node_co_truncate(commit->base, length, true, &err);
    if (ret == 0)
        ret = copy(commit, options, &err);
    if (ret < 0)
        img_failed(options->names[0], &err);
    int closed = img_co_close(commit->base);
    if (ret == 0)
        ret = closed;
    /* With layers between, what they hold would show through an empty image. */
    if (ret == 0 && !options->drop && commit->count == 1) {
        ret = qcow2_co_make_empty(commit->layers[0], &err);
        if (ret < 0)
            img_failed(options->names[0], &err);
    }

out:
    for (unsigned i = 0; commit && i < commit->count; i++) {
        int one = img_co_close(commit->layers[i]);
        if (ret == 0)
            ret = one;
    }
    if (ret == 0 && !options->quiet)
        printf("%s: committed into %s\n", options->names[0], commit->base_path);
    if (commit) {
        free(commit->base_path);
        free(commit->base_format);
        free(commit);
    }
    return ret < 0 ? CMD_EXIT_FAILED : CMD_EXIT_OK;
}
