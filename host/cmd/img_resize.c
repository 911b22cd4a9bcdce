/*
 * ringside-img resize: gives an image another size, smaller only when told so twice.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

static int coroutine_fn allocate_raw(struct node *node, uint64_t old, uint64_t bytes,
                                     enum qcow2_preallocation mode)
{
    static char zeroes[64 * 1024];
    struct host_file *host = node->file->host;
    /* The space first: a file that has its new size has nothing to be allocated. */
    int ret = mode == QCOW2_PREALLOCATION_FALLOC ? host->ops->co_truncate(host, bytes, true) : 0;
    if (ret == 0)
        ret = node_co_truncate(node, bytes, true, NULL);
    for (uint64_t at = old; mode == QCOW2_PREALLOCATION_FULL && at < bytes && ret == 0;) {
        uint64_t n = bytes - at < sizeof(zeroes) ? bytes - at : sizeof(zeroes);
        ret = node_co_pwrite(node, at, zeroes, n, 0);
        at += n;
    }
    /* Some file systems say here only that there was no space. */
    return ret < 0 ? ret : node_co_flush(node);
}

/* A raw file with space for the new part allocated, or written; else it has its old size again. */
static int coroutine_fn grow_raw(struct node *node, uint64_t bytes, enum qcow2_preallocation mode,
                                 struct error *err)
{
    uint64_t old = node_length(node->file); /* need not be whole sectors */
    if (mode == QCOW2_PREALLOCATION_METADATA)
        return error_set(err, -ENOTSUP,
                         "raw images have no metadata to allocate (--preallocation=falloc or full)");
    if (!S_ISREG(node->file->host->mode))
        return node_co_truncate(node, bytes, true, err); /* which says why not */
    int ret = allocate_raw(node, old, bytes, mode);
    if (ret == 0)
        return 0;
    int undone = node_co_truncate(node, old, true, NULL);
    if (undone == 0)
        return error_set(err, ret, "cannot be resized to %" PRIu64 " bytes: %s", bytes, strerror(-ret));
    return error_set(err, ret,
                     "cannot be resized to %" PRIu64 " bytes: %s (nor could it get its old size of %" PRIu64
                     " bytes back: %s)",
                     bytes, strerror(-ret), old, strerror(-undone));
}

int coroutine_fn img_co_resize(const struct img_options *options)
{
    const char *path = options->names[0];
    enum qcow2_preallocation mode = QCOW2_PREALLOCATION_OFF;
    struct error err = {""};
    struct node *node;
    uint64_t bytes;
    if (options->preallocation && qcow2_preallocation_parse(options->preallocation, &mode) < 0) {
        log_message("--preallocation=%s: no such mode (off, metadata, falloc or full)",
                    options->preallocation);
        return CMD_EXIT_USAGE;
    }
    /* With its backing file: the end of the disk may lie in a cluster that shows it. */
    if (img_co_open(options, path, options->format, IMG_WRITE, &node) < 0)
        return CMD_EXIT_FAILED;
    uint64_t old = node_length(node);
    int ret = img_parse_new_size(options->names[1], old, &bytes, &err);
    if (ret < 0) {
        img_failed("", &err);
        img_co_close(node);
        return CMD_EXIT_USAGE;
    }
    bytes = (bytes + 511) & ~511ull;
    if (bytes == 0)
        ret = error_set(&err, -EINVAL, "would have no bytes left (a size has to be more than 0)");
    else if (bytes <= old && mode != QCOW2_PREALLOCATION_OFF)
        ret = error_set(&err, -EINVAL,
                        "--preallocation=%s is for what is added: nothing is, from %" PRIu64 " to %" PRIu64
                        " bytes",
                        options->preallocation, old, bytes);
    else if (bytes < old && !options->shrink)
        ret = error_set(&err, -EINVAL,
                        "would shrink from %" PRIu64 " to %" PRIu64
                        " bytes and lose what lies beyond (--shrink does it)",
                        old, bytes);
    else if (mode == QCOW2_PREALLOCATION_OFF)
        ret = node_co_truncate(node, bytes, true, &err);
    else if (node->driver == &qcow2_driver)
        ret = qcow2_co_grow(node, bytes, mode, &err);
    else
        ret = grow_raw(node, bytes, mode, &err);
    if (ret < 0)
        img_failed(path, &err);
    int closed = img_co_close(node);
    if (ret < 0 || closed < 0)
        return CMD_EXIT_FAILED;
    if (!options->quiet)
        printf("%s: resized to %" PRIu64 " bytes\n", path, bytes);
    return CMD_EXIT_OK;
}
