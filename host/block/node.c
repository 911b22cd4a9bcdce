/*
 * Nodes come and go here: opening an image with everything below it, the table of drivers, references, close.
 * (Which names an image may use for other files, and where they lead: resolve.c. What a sector looks like:
 * probe.c.)
 *
 * What always holds: while the format is being found out, nothing but the image itself is open. Each level of
 * a backing chain is opened on a stack of its own and closed in a loop, so the depth that an image asks for
 * costs no stack; NODE_DEPTH_MAX bounds it, and a file that is its own ancestor is refused.
 */
#include "host/block/node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/fresh_stack.h"
#include "host/block/inject.h"
#include "host/block/log_writes.h"
#include "host/block/resolve.h"

const struct node_driver *const node_drivers[] = {&raw_driver, &null_driver, &qcow2_driver, NULL};

const struct node_driver *node_driver_find(const char *format_name)
{
    for (unsigned i = 0; node_drivers[i]; i++) {
        if (strcmp(node_drivers[i]->format_name, format_name) == 0)
            return node_drivers[i];
    }
    return NULL;
}

/* ---- one node ---- */

static void node_free(struct node *node)
{
    if (node) {
        free(node->opaque);
        free(node->filename);
        free(node->secret_file);
        free(node);
    }
}

static struct node *node_alloc(const struct node_driver *driver, const char *filename)
{
    struct node *node = aligned_alloc(_Alignof(struct node), sizeof(*node));
    if (!node)
        return NULL;
    memset(node, 0, sizeof(*node));
    node->driver = driver;
    node->refs = 1;
    node->tracked_end = &node->tracked;
    node->filename = strdup(filename);
    node->opaque = calloc(1, driver->instance_bytes ? driver->instance_bytes : 1);
    if (!node->filename || !node->opaque) {
        node_free(node);
        return NULL;
    }
    return node;
}

/* For node_co_activate: everything but names, which are of no use there. */
static int node_keep_options(struct node *node, const struct open_options *options)
{
    node->options = *options;
    node->options.format = node->options.backing_dir = node->options.snapshot = NULL;
    node->options.log_writes = node->options.inject = node->options.secret_file = NULL;
    node->options.ancestors = NULL;
    node->options.inactive = false;
    if (options->secret_file && !(node->secret_file = strdup(options->secret_file)))
        return -ENOMEM;
    node->options.secret_file = node->secret_file;
    return 0;
}

void node_limits_complete(struct node_limits *limits)
{
    if (limits->request_alignment == 0)
        limits->request_alignment = 1;
    if (limits->memory_alignment == 0)
        limits->memory_alignment = 1;
    /* An element's length has to be aligned like its address: so has the sum. */
    if (limits->request_alignment < limits->memory_alignment)
        limits->request_alignment = limits->memory_alignment;
    if (limits->max_transfer && limits->max_transfer < limits->request_alignment)
        limits->max_transfer = limits->request_alignment;
    limits->max_transfer -= limits->max_transfer % limits->request_alignment;
}

int coroutine_fn node_co_open_driver(const struct node_driver *driver, const char *path,
                                     const struct open_options *options, struct node **node,
                                     struct error *err)
{
    *node = NULL;
    struct node *protocol = node_alloc(driver, path);
    if (!protocol) {
        error_set(err, -ENOMEM, "%s: out of memory", path);
        return -ENOMEM;
    }
    protocol->read_only = options->read_only;
    protocol->ignore_discard = options->ignore_discard;
    protocol->unsafe = options->cache == CACHE_UNSAFE;
    protocol->grows = driver->is_protocol;
    protocol->depth = options->depth;
    protocol->options = *options; /* its strings are not kept: only flags are looked at later */
    int ret = driver->co_open(protocol, options, err);
    if (ret < 0) {
        node_free(protocol);
        return ret;
    }
    node_limits_complete(&protocol->limits);
    *node = protocol;
    return 0;
}

int coroutine_fn node_co_open_protocol(const char *path, const struct open_options *options,
                                       struct node **node, struct error *err)
{
    return node_co_open_driver(&file_driver, path, options, node, err);
}

int coroutine_fn node_co_open_filter(const struct node_driver *driver, struct node *below,
                                     int (*setup)(struct node *node, void *opaque, struct error *err),
                                     void *opaque, struct node **node, struct error *err)
{
    *node = NULL;
    struct node *filter = node_alloc(driver, below->filename);
    int ret;
    if (!filter) {
        ret = -ENOMEM;
        error_set(err, ret, "%s: out of memory", below->filename);
        goto fail;
    }
    filter->file = below;
    filter->host = below->host;
    filter->limits = below->limits;
    filter->length = node_length(below);
    filter->depth = below->depth;
    filter->read_only = below->read_only;
    filter->grows = below->grows;
    filter->supports_zeroes = below->supports_zeroes;
    filter->ignore_discard = below->ignore_discard;
    ret = setup ? setup(filter, opaque, err) : 0;
    if (ret < 0)
        goto fail;
    *node = filter;
    return 0;

fail:
    node_free(filter);
    node_co_close(below);
    return ret;
}

int coroutine_fn node_co_close(struct node *node)
{
    int first = 0;
    while (node && --node->refs == 0) {
        int ret = node->inactive ? 0 : node_co_flush(node);
        if (first == 0)
            first = ret;
        ret = node->driver->co_close && !node->inactive ? node->driver->co_close(node) : 0;
        if (first == 0)
            first = ret;
        ret = node_co_close(node->data_file);
        if (first == 0)
            first = ret;
        ret = node_co_close(node->file); /* a protocol, or few filters: not deep */
        if (first == 0)
            first = ret;
        struct node *next = node->backing;
        node_free(node);
        node = next;
    }
    return first;
}

/* ---- an image ---- */

static int coroutine_fn add_filters(struct node **protocol, const struct open_options *options,
                                    struct error *err)
{
    int ret = 0;
    if (options->log_writes && ret == 0)
        ret = node_co_open_filter(&log_writes_driver, *protocol, log_writes_setup,
                                  (void *)(uintptr_t)options->log_writes, protocol, err);
    if (options->inject && ret == 0)
        ret = inject_co_open(*protocol, options->inject, protocol, err);
    return ret;
}

int coroutine_fn node_co_open_format(const struct node_driver *driver, struct node *protocol,
                                     const char *path, const struct open_options *options, bool probed,
                                     struct node **out, struct error *err)
{
    struct node_ancestor self = {0, 0, options->ancestors};
    struct open_options inner = *options;
    struct node *node = node_alloc(driver, path);
    int ret;
    if (!node) {
        ret = -ENOMEM;
        error_set(err, ret, "%s: out of memory", path);
        goto fail;
    }
    if (protocol && protocol->host) {
        self.device = protocol->host->device;
        self.inode = protocol->host->inode;
        inner.ancestors = &self;
    }
    node->file = protocol;
    node->read_only = options->read_only;
    node->depth = options->depth;
    node->probed = probed;
    node->ignore_discard = options->ignore_discard;
    node->detect_zeroes = options->detect_zeroes != DETECT_ZEROES_OFF && options->depth == 0;
    node->detect_zeroes_unmap = options->detect_zeroes == DETECT_ZEROES_UNMAP && !options->ignore_discard;
    ret = node_keep_options(node, options);
    if (ret < 0)
        goto fail;
    if (options->inactive) /* what is still being written to is only looked at */
        inner.read_only = node->read_only = true;
    ret = driver->co_open(node, &inner, err);
    if (ret < 0)
        goto fail;
    if (options->inactive) {
        node_co_inactivate(node);
        node->read_only = options->read_only;
    }
    node_limits_complete(&node->limits);
    *out = node;
    return 0;

fail:
    node_free(node);
    node_co_close(protocol);
    *out = NULL;
    return ret;
}

int coroutine_fn node_co_open(const char *path, const struct open_options *options, struct node **node,
                              struct error *err)
{
    struct open_options opened = *options;
    const struct node_driver *driver = NULL;
    const char *format = options->format;
    struct node *protocol = NULL;
    int ret;

    *node = NULL;
    if (options->snapshot)
        opened.read_only = true;
    if (format && !(driver = node_driver_find(format)))
        return error_set(err, -EINVAL, "unknown format '%s' (qcow2 and raw are images)", format);
    if (driver == &null_driver)
        return node_co_open_format(driver, NULL, path ? path : "", &opened, false, node, err);

    ret = node_co_open_protocol(path, &opened, &protocol, err);
    if (ret < 0)
        return ret;
    if (opened.depth == 0) {
        ret = add_filters(&protocol, &opened, err);
        if (ret < 0)
            return ret; /* the filter that failed has closed what is below it */
    }
    if (!driver) {
        ret = node_co_probe(protocol, &format);
        if (ret < 0) {
            error_set(err, ret, "%s: its first sector cannot be read: %s", path, strerror(-ret));
            goto fail;
        }
        driver = node_driver_find(format);
        if (!driver) {
            ret =
                error_set(err, -ENOTSUP,
                          "%s: is a %s image; qcow2 and raw are what can be opened (convert it, or say that "
                          "the format is raw if its bytes as they are make the disk)",
                          path, format);
            goto fail;
        }
    }
    return node_co_open_format(driver, protocol, path, &opened, options->format == NULL, node, err);

fail:
    node_co_close(protocol);
    return ret;
}

/* ---- what an image names ---- */

struct open_options open_options_below(const struct open_options *options)
{
    struct open_options below = *options;
    below.format = NULL;
    below.snapshot = NULL;
    below.check_only = false;
    below.detect_zeroes = DETECT_ZEROES_OFF;
    below.log_writes = below.inject = NULL;
    below.inactive = false;
    below.survive_dir = NULL;
    below.depth = options->depth + 1;
    return below;
}

struct open_call {
    const char *path;
    const struct open_options *options;
    struct node **node;
    struct error *err;
};

static int coroutine_fn open_call(void *arg)
{
    struct open_call *call = arg;
    return node_co_open(call->path, call->options, call->node, call->err);
}

int coroutine_fn node_co_open_backing(struct node *parent, const char *name, const char *backing_format,
                                      const struct open_options *options, struct node **node,
                                      struct error *err)
{
    struct open_options below = open_options_below(options);
    char *path = NULL;
    *node = parent->kept_backing;
    if (*node) {
        (*node)->refs++;
        return 0;
    }
    if (below.depth > NODE_DEPTH_MAX)
        return error_set(err, -ELOOP, "%s: more than %u backing files below each other", parent->filename,
                         NODE_DEPTH_MAX);
    below.format = backing_format && backing_format[0] ? backing_format : NULL;
    below.read_only = true;
    if (below.format && strcmp(below.format, "null") == 0)
        return error_set(err, -EINVAL, "%s: a backing file of format null is not allowed", parent->filename);
    int ret = node_resolve_allowed(parent->filename, name, options, &path, err);
    if (ret == 0)
        ret = fresh_stack_call(open_call, &(struct open_call){path, &below, node, err});
    if (ret < 0)
        error_prefix(err, ret, "backing file of '%s'", parent->filename);
    free(path);
    return ret;
}

int coroutine_fn node_co_open_data_file(struct node *parent, const char *name,
                                        const struct open_options *options, struct node **node,
                                        struct error *err)
{
    struct open_options below = open_options_below(options);
    char *path = NULL;
    *node = parent->kept_data_file;
    if (*node) {
        (*node)->refs++;
        return 0;
    }
    below.depth = options->depth;
    below.inactive = options->inactive;
    int ret = node_resolve_allowed(parent->filename, name, options, &path, err);
    if (ret == 0)
        ret = node_co_open_protocol(path, &below, node, err);
    if (ret < 0)
        error_prefix(err, ret, "data file of '%s'", parent->filename);
    free(path);
    return ret;
}
