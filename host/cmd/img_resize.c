/*
 * ringside-img resize: gives an image another size, smaller only when told so twice.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

/* A raw file with space for the new part allocated, or written. */
static int coroutine_fn grow_raw(struct node *node, uint64_t bytes, enum qcow2_preallocation mode,
                                 struct error *err)
{
    uint64_t old = node_length(node);
    if (mode == QCOW2_PREALLOCATION_METADATA)
        return error_set(err, -ENOTSUP,
                         "raw images have no metadata to allocate (--preallocation=falloc or full)");
    int ret = node_co_truncate(node, bytes, true, err);
    if (ret < 0)
        return ret;
    struct host_file *host = node->file->host;
    if (mode == QCOW2_PREALLOCATION_FALLOC) {
        ret = host->ops->co_truncate(host, bytes, true);
    } else if (mode == QCOW2_PREALLOCATION_FULL) {
        static char zeroes[64 * 1024];
        for (uint64_t at = old; at < bytes && ret == 0;) {
            uint64_t n = bytes - at < sizeof(zeroes) ? bytes - at : sizeof(zeroes);
            ret = node_co_pwrite(node, at, zeroes, n, 0);
            at += n;
        }
    }
    return ret < 0 ? error_set(err, ret, "its new part cannot be allocated: %s", strerror(-ret)) : 0;
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
    if (bytes < old && !options->shrink)
        ret = error_set(&err, -EINVAL,
                        "would shrink from %" PRIu64 " to %" PRIu64
                        " bytes and lose what lies beyond (--shrink does it)",
                        old, bytes);
    else if (bytes <= old || mode == QCOW2_PREALLOCATION_OFF)
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
