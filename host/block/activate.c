/*
 * Handing an image over to another process and taking it back, on files that stay open: what live migration
 * on shared storage needs, where source and destination have the same image open and one of them at a time
 * may use it.
 *
 * What always holds: while a node is inactive its driver has no state, nothing of the image is cached, and
 * the files that are written to are not locked. Backing files are only read, by either side: they stay as
 * they are.
 */
#include <errno.h>
#include <string.h>

#include "host/block/file_lock.h"
#include "host/block/node.h"

#define LOCK_TRIES    500u
#define LOCK_RETRY_NS 10000000u /* five seconds in all */

static bool locks(const struct node *node)
{
    return node->file && node->file->host && !node->options.no_lock;
}

int coroutine_fn node_co_inactivate(struct node *node)
{
    if (node->inactive)
        return 0;
    int ret = node_co_flush(node);
    int closed = node->driver->co_close ? node->driver->co_close(node) : 0;
    if (ret == 0)
        ret = closed;
    node->inactive = true;
    for (unsigned i = 0; i < 2; i++) {
        struct node *file = i == 0 ? node->file : node->data_file;
        if (!file)
            continue;
        int flushed = node_co_flush(file);
        if (ret == 0)
            ret = flushed;
        if (locks(node) && file->host)
            file_unlock(file->host);
    }
    return ret;
}

/* Locks a file and looks at its size anew. */
static int coroutine_fn take_file(struct node *node, struct node *file, struct error *err)
{
    if (!file || !file->host)
        return 0;
    int ret = 0;
    for (unsigned i = 0; i < LOCK_TRIES && locks(node); i++) {
        ret = file_lock(file->host, node->read_only, node->options.force_share, err);
        if (ret != -EAGAIN)
            break;
        file_unlock(file->host);
        co_sleep_ns(LOCK_RETRY_NS);
    }
    if (ret < 0)
        return ret;
    int64_t size = file->host->ops->size(file->host);
    if (size < 0)
        return error_set(err, (int)size, "%s: its size cannot be found out: %s", file->filename,
                         strerror((int)-size));
    for (struct node *n = file; n; n = n->file) { /* filters have it too */
        node_set_length(n, (uint64_t)size);
        n->flushed_gen = 0; /* somebody else has written since, or was killed while it did (flush.c) */
    }
    return 0;
}

int coroutine_fn node_co_activate(struct node *node, struct error *err)
{
    if (!node->inactive)
        return 0;
    int ret = take_file(node, node->file, err);
    if (ret == 0)
        ret = take_file(node, node->data_file, err);
    if (ret < 0)
        goto fail;
    struct node *backing = node->backing, *data_file = node->data_file;
    node->kept_backing = backing;
    node->kept_data_file = data_file;
    node->backing = node->data_file = NULL;
    memset(node->opaque, 0, node->driver->instance_bytes);
    struct open_options options = node->options;
    options.read_only = node->read_only;
    ret = node->driver->co_open(node, &options, err);
    /* It holds a reference of its own if it opened them: that one is too many. */
    if (ret == 0 && node->backing)
        node->backing->refs--;
    if (ret == 0 && node->data_file)
        node->data_file->refs--;
    node->backing = backing;
    node->data_file = data_file;
    node->kept_backing = node->kept_data_file = NULL;
    if (ret < 0)
        goto fail;
    node_limits_complete(&node->limits);
    node->flushed_gen = 0;
    node->inactive = false;
    return 0;

fail:
    if (locks(node) && node->file)
        file_unlock(node->file->host);
    if (locks(node) && node->data_file)
        file_unlock(node->data_file->host);
    return ret;
}
