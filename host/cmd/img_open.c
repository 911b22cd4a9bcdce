/*
 * ringside-img: opening and closing images as its command lines ask for it, and saying what went wrong.
 */
#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/block/parse.h"
#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

static const struct cache_name {
    const char *name;
    enum cache_mode mode;
    unsigned write_flags;
} cache_names[] = {
    {"none", CACHE_NONE, 0},           {"directsync", CACHE_NONE, NODE_IO_FUA},
    {"writeback", CACHE_WRITEBACK, 0}, {"writethrough", CACHE_WRITEBACK, NODE_IO_FUA},
    {"unsafe", CACHE_UNSAFE, 0},
};

static const struct cache_name *find_cache(const char *text)
{
    for (size_t i = 0; i < sizeof(cache_names) / sizeof(cache_names[0]); i++) {
        if (strcmp(text, cache_names[i].name) == 0)
            return &cache_names[i];
    }
    return NULL;
}

static int parse_cache(const char *text, const char *option, enum cache_mode *mode, struct error *err)
{
    const struct cache_name *found = find_cache(text);
    if (!found)
        return error_set(err, -EINVAL,
                         "%s %s: no such cache mode (none, directsync, writeback, writethrough or unsafe)",
                         option, text);
    *mode = found->mode;
    return 0;
}

unsigned img_write_flags(const struct img_options *options)
{
    const struct cache_name *found = options->cache ? find_cache(options->cache) : NULL;
    return found ? found->write_flags : 0;
}

static int parse_aio(const char *text, enum aio_kind *aio, struct error *err)
{
    if (strcmp(text, "native") == 0)
        *aio = AIO_NATIVE;
    else if (strcmp(text, "io_uring") == 0)
        *aio = AIO_IO_URING;
    else if (strcmp(text, "threads") == 0)
        *aio = AIO_THREADS;
    else
        return error_set(err, -EINVAL, "--aio=%s: no such way (native, io_uring or threads)", text);
    return 0;
}

int img_open_options(const struct img_options *options, unsigned flags, struct open_options *open,
                     struct error *err)
{
    const char *cache = flags & IMG_SOURCE ? options->source_cache : options->cache;
    *open = (struct open_options){
        .read_only = !(flags & IMG_WRITE),
        .no_backing = flags & IMG_NO_BACKING,
        .no_io = flags & IMG_NO_IO,
        .check_only = flags & IMG_CHECK,
        .force_share = options->force_share && !(flags & IMG_WRITE),
        .cache = CACHE_WRITEBACK,
        .secret_file = options->secret_file,
    };
    if (options->backing_policy) {
        open->backing = BACKING_DIR;
        open->backing_dir = options->backing_policy;
        if (strcmp(options->backing_policy, "deny") == 0)
            open->backing = BACKING_DENY;
        else if (strcmp(options->backing_policy, "same-dir") == 0)
            open->backing = BACKING_SAME_DIR;
    }
    int ret = cache ? parse_cache(cache, flags & IMG_SOURCE ? "-T" : "-t", &open->cache, err) : 0;
    if (ret == 0 && options->aio)
        ret = parse_aio(options->aio, &open->aio, err);
    if (ret == 0 && options->aio && open->aio == AIO_NATIVE && open->cache != CACHE_NONE)
        ret = error_set(err, -EINVAL, "--aio=native goes without the page cache only (%s none or directsync)",
                        flags & IMG_SOURCE ? "-T" : "-t");
    return ret;
}

int img_check_format(const char *format, struct error *err)
{
    if (!format || strcmp(format, "qcow2") == 0 || strcmp(format, "raw") == 0)
        return 0;
    return error_set(err, -EINVAL, "unknown format '%s' (qcow2 and raw are known)", format);
}

/* The real path of the directory that PATH lies in. To be freed. */
static char *real_directory(const char *path)
{
    char *copy = strdup(path);
    char *real = copy ? realpath(dirname(copy), NULL) : NULL;
    free(copy);
    return real;
}

bool img_same_file(const char *a, const char *b)
{
    if (host_file_same(a, b))
        return true;
    if (access(a, F_OK) == 0 || access(b, F_OK) == 0)
        return false;
    const char *slash_a = strrchr(a, '/'), *slash_b = strrchr(b, '/');
    if (strcmp(slash_a ? slash_a + 1 : a, slash_b ? slash_b + 1 : b) != 0)
        return false;
    char *dir_a = real_directory(a), *dir_b = real_directory(b);
    bool same = dir_a && dir_b && strcmp(dir_a, dir_b) == 0;
    free(dir_a);
    free(dir_b);
    return same;
}

int img_refuse_itself(const char *file, const char *name, const char *what, struct error *err)
{
    struct error ignored = {""};
    char *path;
    if (!name || node_resolve_name(file, name, &path, &ignored) < 0)
        return 0; /* a name that leads nowhere is refused by who opens it */
    bool same = img_same_file(file, path);
    free(path);
    return same
               ? error_set(err, -EINVAL, "'%s' is the image itself: it cannot be its own %s file", name, what)
               : 0;
}

int img_failed(const char *path, const struct error *err)
{
    /* A sentence that begins with the name already needs no second one. */
    size_t n = strlen(path);
    const char *text = err->text;
    if (n == 0 || (strncmp(text, path, n) == 0 && text[n] == ':'))
        log_message("%s", text);
    else
        log_message("%s: %s", path, text);
    return CMD_EXIT_FAILED;
}

/* qemu-img's way to say which kind of word it is: "snapshot.id=ID,snapshot.name=NAME", or one of the two. */
#define SNAPSHOT_KEY "snapshot."

struct wanted {
    char *id, *name; /* NULL: any */
};

static int set_wanted(void *opaque, const char *key, const char *value, struct error *err)
{
    struct wanted *wanted = opaque;
    bool id = strcmp(key, SNAPSHOT_KEY "id") == 0;
    if (!value || (!id && strcmp(key, SNAPSHOT_KEY "name") != 0))
        return error_set(err, -EINVAL, "-l %s: neither snapshot.id=ID nor snapshot.name=NAME", key);
    char **word = id ? &wanted->id : &wanted->name;
    free(*word);
    *word = strdup(value);
    return *word ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* The id of the first snapshot of PATH that is what TEXT says. To be freed. */
static int coroutine_fn find_snapshot(const char *path, struct open_options open, const char *text, char **id,
                                      struct error *err)
{
    struct wanted wanted = {NULL, NULL};
    struct qcow2_snapshot_info *list = NULL;
    struct node *node = NULL;
    size_t count = 0;
    open.no_backing = open.no_io = true;
    int ret = parse_options(text, set_wanted, &wanted, err);
    if (ret == 0)
        ret = node_co_open(path, &open, &node, err);
    if (ret == 0) {
        (void)qcow2_snapshots(node, &list, &count); /* of another format: it has none */
        ret = error_set(err, -ENOENT, "there is no snapshot '%s'", text);
    }
    for (size_t i = 0; i < count && ret == -ENOENT; i++) {
        if ((wanted.id && strcmp(wanted.id, list[i].id) != 0) ||
            (wanted.name && strcmp(wanted.name, list[i].name) != 0))
            continue;
        *id = strdup(list[i].id);
        ret = *id ? 0 : error_set(err, -ENOMEM, "out of memory");
    }
    if (node)
        node_co_close(node);
    free(list);
    free(wanted.id);
    free(wanted.name);
    return ret;
}

int coroutine_fn img_co_open(const struct img_options *options, const char *path, const char *format,
                             unsigned flags, struct node **node)
{
    struct open_options open;
    struct error err = {""};
    *node = NULL;
    int ret = img_open_options(options, flags, &open, &err);
    if (ret < 0) {
        log_message("%s", err.text);
        return ret;
    }
    ret = img_check_format(format, &err);
    if (ret < 0) {
        img_failed(path, &err);
        return ret;
    }
    open.format = format;
    char *id = NULL;
    const char *snapshot = flags & IMG_SOURCE ? options->snapshot : NULL;
    if (snapshot && strncmp(snapshot, SNAPSHOT_KEY, strlen(SNAPSHOT_KEY)) == 0) {
        ret = find_snapshot(path, open, snapshot, &id, &err);
        snapshot = id;
    }
    open.snapshot = snapshot;
    if (ret == 0)
        ret = node_co_open(path, &open, node, &err);
    free(id);
    if (ret < 0)
        img_failed(path, &err);
    return ret;
}

int coroutine_fn img_co_close(struct node *node)
{
    if (!node)
        return 0;
    char path[256];
    snprintf(path, sizeof(path), "%s", node->filename);
    int ret = node_co_close(node);
    if (ret < 0)
        log_message("%s: what was written may not have reached the disk: %s", path, strerror(-ret));
    return ret;
}

int img_output(const struct img_options *options, bool *json)
{
    *json = options->output && strcmp(options->output, "json") == 0;
    if (!options->output || *json || strcmp(options->output, "human") == 0)
        return 0;
    log_message("--output=%s: no such form (human or json)", options->output);
    return CMD_EXIT_USAGE;
}
