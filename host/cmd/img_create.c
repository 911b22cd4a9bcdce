/*
 * ringside-img create, and making the target of convert.
 *
 * What always holds: a backing file that the command line names is the user's own choice, so the policy for
 * names in images does not apply to it; what that file names in turn is under the policy, but for the look
 * whether it names what would be emptied.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/block/parse.h"
#include "host/block/resolve.h"
#include "host/cmd/img_creation.h"

#define SIZE_UNKNOWN UINT64_MAX /* more than any image can have */

/* ---- raw ---- */

static int coroutine_fn fill_with_zeroes(const char *path, uint64_t bytes, struct error *err)
{
    static const struct open_options open = {.format = "raw", .cache = CACHE_WRITEBACK};
    const size_t step = 1024 * 1024;
    struct node *node;
    int ret = node_co_open(path, &open, &node, err);
    if (ret < 0)
        return ret;
    char *zeroes = calloc(1, step);
    ret = zeroes ? 0 : -ENOMEM;
    for (uint64_t at = 0; at < bytes && ret == 0; at += step)
        ret = node_co_pwrite(node, at, zeroes, bytes - at < step ? bytes - at : step, 0);
    free(zeroes);
    int closed = node_co_close(node);
    if (ret == 0)
        ret = closed;
    return ret < 0 ? error_set(err, ret, "cannot be filled with zeroes: %s", strerror(-ret)) : 0;
}

static int coroutine_fn make_raw(const char *path, const struct qcow2_create_options *asked,
                                 struct error *err)
{
    struct host_file *host;
    int ret = host_file_open(path, HOST_FILE_CREATE, AIO_THREADS, &host, err);
    if (ret < 0)
        return ret;
    ret = host->ops->co_truncate(host, asked->size, asked->preallocation == QCOW2_PREALLOCATION_FALLOC);
    if (ret < 0)
        error_set(err, ret, "cannot be given its size: %s", strerror(-ret));
    else if (asked->preallocation == QCOW2_PREALLOCATION_FULL)
        ret = fill_with_zeroes(path, asked->size, err);
    if (ret < 0)
        host_file_co_abandon(host);
    else
        host_file_close(host);
    return ret;
}

/* ---- what an image is made over ---- */

/* Making an image empties its files, so none of them may be further down in what it is to show. BACKING is
 * the path of its backing file, to be opened by OPEN, wherever its names lead: nothing of it is shown. Where
 * it cannot be followed, nothing is known of it. */
static int coroutine_fn refuse_loop(const char *image, const char *data_file, const char *backing,
                                    struct open_options open, struct error *err)
{
    struct error said = {""};
    struct node *node;
    struct node_ancestor made[2] = {{0}};
    open.no_backing = open.no_io = false; /* with either, nothing below it is opened */
    open.backing = BACKING_DIR;
    open.backing_dir = "/";
    open.ancestors = NULL;
    if (host_file_identify(image, &made[0].device, &made[0].inode))
        open.ancestors = &made[0];
    char *data = NULL;
    if (data_file && node_resolve_name(image, data_file, &data, &said) == 0 &&
        host_file_identify(data, &made[1].device, &made[1].inode)) {
        made[1].above = open.ancestors;
        open.ancestors = &made[1];
    }
    free(data);
    if (!open.ancestors)
        return 0;
    int ret = node_co_open(backing, &open, &node, &said);
    if (ret == 0)
        node_co_close(node);
    return ret == -ELOOP ? error_set(err, ret, "%s", said.text) : 0;
}

/* Its backing file is there, and not what would be emptied. *SIZE: what the image has without a size of its
 * own. */
static int coroutine_fn check_backing_file(const char *image, const struct qcow2_create_options *q,
                                           const struct img_options *options, uint64_t *size,
                                           struct error *err)
{
    struct open_options open;
    struct node *node = NULL;
    char *path = NULL;
    int ret = node_resolve_name(image, q->backing_file, &path, err);
    if (ret == 0)
        ret = img_open_options(options, IMG_NO_BACKING | IMG_NO_IO, &open, err);
    if (ret == 0) {
        open.format = q->backing_format;
        open.force_share = true; /* only its size is read */
        ret = refuse_loop(image, q->data_file, path, open, err);
    }
    if (ret == 0)
        ret = node_co_open(path, &open, &node, err);
    if (ret == 0) {
        *size = node_length(node);
        node_co_close(node);
    } else {
        error_prefix(err, ret, "backing file");
    }
    free(path);
    return ret;
}

/* Can it be written, and is nobody else at it? */
static int check_data_file_there(const char *path, struct error *err)
{
    struct host_file *host;
    int ret = host_file_open(path, 0, AIO_THREADS, &host, err);
    if (ret < 0)
        return ret;
    if (S_ISREG(host->mode) && host->ops->lock_test(host, F_WRLCK, 0, 0) < 0)
        ret = error_set(err, -EBUSY,
                        "%s: is in use (it is locked by another process, or read as a part of the source)",
                        path);
    host_file_close(host);
    return ret;
}

/* The data file is made after the image, which would be emptied for nothing if that cannot be. */
static int check_data_file(const char *image, const char *name, struct error *err)
{
    char *path;
    int ret = node_resolve_name(image, name, &path, err);
    if (ret < 0)
        return error_prefix(err, ret, "data file");
    if (access(path, F_OK) == 0) {
        ret = check_data_file_there(path, err);
        if (ret < 0)
            error_prefix(err, ret, "data file");
    } else {
        char *slash = strrchr(path, '/');
        if (slash)
            slash[slash == path] = '\0';
        if (access(slash ? path : ".", W_OK | X_OK) < 0)
            ret = error_set(err, -errno, "data file '%s': %s", name, strerror(errno));
    }
    free(path);
    return ret;
}

/* What cannot be had together with clusters that are written compressed. */
static int check_compressed(const struct qcow2_create_options *q, struct error *err)
{
    if (q->preallocation != QCOW2_PREALLOCATION_OFF)
        return error_set(err, -ENOTSUP, "-c cannot compress what is preallocated (leave one of the two out)");
    if (q->data_file)
        return error_set(err, -ENOTSUP,
                         "-c cannot compress what lies in a data file (leave one of the two out)");
    if (q->encrypt_format)
        return error_set(err, -ENOTSUP, "-c cannot compress what is encrypted (leave one of the two out)");
    return 0;
}

/* What no image can be, whatever its files are. */
static int check_creation(const struct img_creation *c, const struct img_new *image, struct error *err)
{
    const struct qcow2_create_options *q = &c->qcow2;
    if (c->raw && q->preallocation == QCOW2_PREALLOCATION_METADATA)
        return error_set(err, -ENOTSUP, "raw images have no metadata to preallocate (falloc or full)");
    if (c->raw && q->backing_file)
        return error_set(err, -ENOTSUP, "raw images have no backing file (qcow2 images have)");
    if (image->unbacked && q->backing_file)
        return error_set(err, -EINVAL,
                         "-o backing_file goes with one source only: several in a row have no backing file "
                         "in common");
    if (q->backing_file && !q->backing_format)
        return error_set(err, -EINVAL, "the format of backing file '%s' has to be said (-F qcow2 or -F raw)",
                         q->backing_file);
    int ret = img_check_format(q->backing_format, err);
    if (ret < 0)
        return error_prefix(err, ret, "backing file");
    if (image->bitmaps && (c->raw || q->version == 2))
        return error_set(err, -ENOTSUP, "only qcow2 images of compat 1.1 can have bitmaps (--bitmaps)");
    return image->compressed ? check_compressed(q, err) : 0;
}

/* The other files that it names. *SIZE: its backing file's, if it has one that has to be there. */
static int coroutine_fn check_files(const struct img_creation *c, const char *path,
                                    const struct img_options *options, uint64_t *size, struct error *err)
{
    const struct qcow2_create_options *q = &c->qcow2;
    int ret = img_refuse_itself(path, q->backing_file, "backing", err);
    if (ret == 0)
        ret = img_refuse_itself(path, q->data_file, "data", err);
    if (ret == 0 && q->data_file)
        ret = check_data_file(path, q->data_file, err);
    if (ret == 0 && q->backing_file && !options->unsafe)
        ret = check_backing_file(path, q, options, size, err);
    return ret;
}

static int settle_size(struct img_creation *c, const struct img_new *image, uint64_t backing_bytes,
                       struct error *err)
{
    uint64_t size = c->size_given ? c->qcow2.size : backing_bytes;
    if (size == SIZE_UNKNOWN)
        return error_set(err, -EINVAL, "a size is needed");
    size = (size + 511) & ~511ull;
    if (size < image->size_needed)
        return error_set(err, -ENOSPC, "-o size: %" PRIu64 " bytes are fewer than the source's %" PRIu64,
                         size, image->size_needed);
    if (image->size_is_fixed && size != image->size_needed)
        return error_set(err, -ENOTSUP,
                         "-o size: bitmaps of a disk of %" PRIu64 " bytes do not fit one of %" PRIu64,
                         image->size_needed, size);
    c->qcow2.size = size;
    return 0;
}

int coroutine_fn img_co_make(struct img_new *image, const struct img_options *options, bool quiet,
                             struct error *err)
{
    if (strcmp(image->format, "raw") != 0 && strcmp(image->format, "qcow2") != 0)
        return error_set(err, -EINVAL, "images of format '%s' cannot be made (raw or qcow2)", image->format);
    struct img_creation *c = calloc(1, sizeof(*c));
    if (!c)
        return error_set(err, -ENOMEM, "out of memory");
    uint64_t backing_bytes = SIZE_UNKNOWN;
    int ret = img_creation_parse(c, image, err);
    if (ret == 0)
        ret = check_creation(c, image, err);
    if (ret == 0)
        ret = check_files(c, image->path, options, &backing_bytes, err);
    if (ret == 0)
        ret = settle_size(c, image, backing_bytes, err);
    if (ret == 0) {
        if (!quiet)
            img_creation_describe(c, image);
        image->backed = c->qcow2.backing_file != NULL;
        ret = c->raw ? make_raw(image->path, &c->qcow2, err) : qcow2_co_create(image->path, &c->qcow2, err);
    }
    img_creation_free(c);
    free(c);
    return ret;
}

int coroutine_fn img_co_create(const struct img_options *options)
{
    struct img_new image = {
        .path = options->names[0],
        .format = options->format ? options->format : "raw",
        .backing_file = options->backing_file,
        .backing_format = options->backing_format,
        .create_options = options->create_options,
        .create_option_count = options->create_option_count,
        .secret_file = options->secret_file,
        .secret_is_its_own = true,
    };
    struct error err = {""};
    if (options->name_count > 1) {
        if (parse_size(options->names[1], &image.size) < 0) {
            log_message("'%s' is not a size (bytes, or a number with k, M, G, T, P or E)", options->names[1]);
            return CMD_EXIT_FAILED;
        }
        image.size_given = true;
        image.size_argument = options->names[1];
    }
    if (img_co_make(&image, options, options->quiet, &err) < 0)
        return img_failed(image.path, &err);
    return CMD_EXIT_OK;
}
