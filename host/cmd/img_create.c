/*
 * ringside-img create, and making the target of convert.
 *
 * What always holds: a backing file that the command line names is the user's own choice, so the policy for
 * names in images does not apply to it; what that file names in turn is under the policy.
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
#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

/* What -o of both formats can say. */
struct creation {
    struct qcow2_create_options qcow2;
    bool compat_given, data_file_raw_given, preallocation_given;
    const char
        *encrypt_option; /* one that only means something to an encrypted image; NULL: none was given */
    char *kept[IMG_CREATE_OPTIONS_MAX * 8]; /* strings that the options point to */
    unsigned kept_count;
};

struct create_option {
    const char *name, *help;
    bool raw;     /* raw images have it too */
    bool boolean; /* without a value it is on */
    int (*set)(struct creation *creation, const char *value);
};

static int set_size(struct creation *c, const char *value)
{
    return parse_size(value, &c->qcow2.size);
}

static int set_compat(struct creation *c, const char *value)
{
    if (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0)
        c->qcow2.version = 2;
    else if (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0)
        c->qcow2.version = 3;
    else
        return -EINVAL;
    return 0;
}

static int set_cluster_size(struct creation *c, const char *value)
{
    uint64_t n;
    if (parse_size(value, &n) < 0 || n < 512 || n > 2 * 1024 * 1024 || (n & (n - 1)))
        return -EINVAL;
    c->qcow2.cluster_bytes = (uint32_t)n;
    return 0;
}

static int set_refcount_bits(struct creation *c, const char *value)
{
    uint64_t n;
    if (parse_number(value, &n) < 0 || n < 1 || n > 64 || (n & (n - 1)))
        return -EINVAL;
    c->qcow2.refcount_bits = (unsigned)n;
    return 0;
}

static int parse_bool(const char *value, bool *to)
{
    if (strcmp(value, "on") == 0 || strcmp(value, "true") == 0 || strcmp(value, "yes") == 0)
        *to = true;
    else if (strcmp(value, "off") == 0 || strcmp(value, "false") == 0 || strcmp(value, "no") == 0)
        *to = false;
    else
        return -EINVAL;
    return 0;
}

static int set_lazy_refcounts(struct creation *c, const char *value)
{
    return parse_bool(value, &c->qcow2.lazy_refcounts);
}

static int set_extended_l2(struct creation *c, const char *value)
{
    return parse_bool(value, &c->qcow2.extended_l2);
}

static int set_data_file_raw(struct creation *c, const char *value)
{
    c->data_file_raw_given = true;
    return parse_bool(value, &c->qcow2.data_file_raw);
}

static int set_compression_type(struct creation *c, const char *value)
{
    return qcow2_compression_parse(value, &c->qcow2.compression_type);
}

static int set_preallocation(struct creation *c, const char *value)
{
    c->preallocation_given = true;
    return qcow2_preallocation_parse(value, &c->qcow2.preallocation);
}

static int keep(struct creation *c, const char *value, const char **to)
{
    if (c->kept_count == sizeof(c->kept) / sizeof(c->kept[0]) || !(c->kept[c->kept_count] = strdup(value)))
        return -ENOMEM;
    *to = c->kept[c->kept_count++];
    return 0;
}

static int set_backing_file(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.backing_file);
}

static int set_backing_fmt(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.backing_format);
}

static int set_data_file(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.data_file);
}

static int set_encrypt_format(struct creation *c, const char *value)
{
    return strcmp(value, "luks") == 0 ? keep(c, value, &c->qcow2.encrypt_format) : -EINVAL;
}

static int set_cipher_alg(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.cipher_alg);
}

static int set_cipher_mode(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.cipher_mode);
}

static int set_hash_alg(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.hash_alg);
}

static int set_ivgen_alg(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.ivgen_alg);
}

static int set_ivgen_hash_alg(struct creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.ivgen_hash_alg);
}

static int set_iter_time(struct creation *c, const char *value)
{
    uint64_t n;
    if (parse_number(value, &n) < 0 || n < 1 || n > 600000)
        return -EINVAL;
    c->qcow2.luks.iter_time_ms = (unsigned)n;
    return 0;
}

static int set_nocow(struct creation *c, const char *value)
{
    bool on;
    return parse_bool(value, &on) == 0 && !on ? 0 : -EINVAL;
}

static const struct create_option create_options[] = {
    {"backing_file", "image that shows through", false, false, set_backing_file},
    {"backing_fmt", "its format", false, false, set_backing_fmt},
    {"cluster_size", "512 to 2M, a power of two (default 64k)", false, false, set_cluster_size},
    {"compat", "0.10 (version 2) or 1.1 (version 3, default)", false, false, set_compat},
    {"compression_type", "zlib (default) or zstd", false, false, set_compression_type},
    {"data_file", "file for the data; the image itself has the tables only", false, false, set_data_file},
    {"data_file_raw", "on: the data file is a raw image all the time", false, true, set_data_file_raw},
    {"encrypt.cipher-alg", "aes-256 (default), serpent-128, twofish-192, cast5-128, ...", false, false,
     set_cipher_alg},
    {"encrypt.cipher-mode", "xts (default), cbc, ctr or ecb", false, false, set_cipher_mode},
    {"encrypt.format", "luks", false, false, set_encrypt_format},
    {"encrypt.hash-alg", "sha256 (default), sha512, ripemd160, ...", false, false, set_hash_alg},
    {"encrypt.iter-time", "milliseconds spent on the passphrase", false, false, set_iter_time},
    {"encrypt.ivgen-alg", "plain64 (default), plain or essiv", false, false, set_ivgen_alg},
    {"encrypt.ivgen-hash-alg", "for essiv: sha256 (default), md5", false, false, set_ivgen_hash_alg},
    {"extended_l2", "on: subclusters", false, true, set_extended_l2},
    {"lazy_refcounts", "on: refcounts are written later", false, true, set_lazy_refcounts},
    {"nocow", "off", true, true, set_nocow},
    {"preallocation", "off (default), metadata, falloc or full; raw has no metadata", true, false,
     set_preallocation},
    {"refcount_bits", "1 to 64, a power of two (default 16)", false, false, set_refcount_bits},
    {"size", "size of the disk", true, false, set_size},
};

#define CREATE_OPTIONS (sizeof(create_options) / sizeof(create_options[0]))

struct parsing {
    struct creation *creation;
    struct img_new *image;
};

static int set_option(void *opaque, const char *key, const char *value, struct error *err)
{
    struct parsing *parsing = opaque;
    bool raw = strcmp(parsing->image->format, "raw") == 0;
    for (size_t i = 0; i < CREATE_OPTIONS; i++) {
        if (strcmp(create_options[i].name, key) != 0)
            continue;
        if (raw && !create_options[i].raw)
            break;
        if (!value && create_options[i].boolean)
            value = "on";
        if (!value)
            return error_set(err, -EINVAL, "-o %s needs a value: %s", key, create_options[i].help);
        int ret = create_options[i].set(parsing->creation, value);
        if (ret < 0)
            return error_set(err, ret, "-o %s=%s: not a value for it (%s)", key, value,
                             create_options[i].help);
        if (strcmp(key, "size") == 0 && parsing->image->size_argument)
            return error_set(err, -EINVAL, "the size is given twice: '%s', and -o size=%s",
                             parsing->image->size_argument, value);
        if (strcmp(key, "size") == 0)
            parsing->image->size_given = true;
        if (strncmp(key, "encrypt.", strlen("encrypt.")) == 0)
            parsing->creation->encrypt_option = create_options[i].name;
        return 0;
    }
    return error_set(err, -EINVAL, "-o %s: images of format %s have no such option (-o help lists them)", key,
                     parsing->image->format);
}

/* All that -o says; what it says of encryption must not end in an image that is none. */
static int parse_create_options(struct creation *c, struct img_new *image, struct error *err)
{
    struct parsing parsing = {c, image};
    int ret = 0;
    for (unsigned i = 0; i < image->create_option_count && ret == 0; i++) {
        if (image->create_options[i][0])
            ret = parse_options(image->create_options[i], set_option, &parsing, err);
        else
            ret = error_set(err, -EINVAL, "-o '' names no option (-o help lists them)");
    }
    if (ret < 0)
        return ret;
    const char *key = c->encrypt_option;
    bool encrypted = c->qcow2.encrypt_format != NULL;
    if (key && !encrypted)
        return error_set(err, -EINVAL,
                         "-o %s: the image would not be encrypted, since encrypt.format is missing "
                         "(-o encrypt.format=luks)",
                         key);
    if (encrypted && !image->secret_file)
        return error_set(err, -EINVAL, "-o encrypt.format=%s: the passphrase is missing (--secret-file=FILE)",
                         c->qcow2.encrypt_format);
    bool backed = image->backing_file || c->qcow2.backing_file; /* which may be encrypted */
    if (image->secret_is_its_own && image->secret_file && !encrypted && !backed)
        return error_set(err, -EINVAL, "--secret-file: the image would not be encrypted (%s)",
                         strcmp(image->format, "raw") == 0
                             ? "raw images cannot be; -f qcow2 -o encrypt.format=luks"
                             : "-o encrypt.format=luks is missing");
    return 0;
}

int img_print_create_options(const char *format)
{
    struct error err = {""};
    bool raw = !format || strcmp(format, "raw") == 0;
    if (img_check_format(format, &err) < 0) {
        log_message("-o help: %s", err.text);
        return CMD_EXIT_FAILED;
    }
    printf("Options of format %s:\n", raw ? "raw" : format);
    for (size_t i = 0; i < CREATE_OPTIONS; i++) {
        if (!raw || create_options[i].raw)
            printf("  %-18s %s\n", create_options[i].name, create_options[i].help);
    }
    return CMD_EXIT_OK;
}

static int find_help(void *opaque, const char *key, const char *value, struct error *err)
{
    if (!value && (strcmp(key, "help") == 0 || strcmp(key, "?") == 0))
        *(bool *)opaque = true;
    return 0;
}

bool img_asks_for_options(const struct img_options *options)
{
    struct error ignored = {""};
    bool found = false;
    for (unsigned i = 0; i < options->create_option_count; i++)
        parse_options(options->create_options[i], find_help, &found, &ignored);
    return found;
}

/* ---- raw ---- */

static int coroutine_fn fill_with_zeroes(const struct img_new *image, struct error *err)
{
    static const struct open_options open = {.format = "raw", .cache = CACHE_WRITEBACK};
    const size_t step = 1024 * 1024;
    struct node *node;
    int ret = node_co_open(image->path, &open, &node, err);
    if (ret < 0)
        return ret;
    char *zeroes = calloc(1, step);
    ret = zeroes ? 0 : -ENOMEM;
    for (uint64_t at = 0; at < image->size && ret == 0; at += step)
        ret = node_co_pwrite(node, at, zeroes, image->size - at < step ? image->size - at : step, 0);
    free(zeroes);
    int closed = node_co_close(node);
    if (ret == 0)
        ret = closed;
    return ret < 0 ? error_set(err, ret, "cannot be filled with zeroes: %s", strerror(-ret)) : 0;
}

static int coroutine_fn make_raw(const struct img_new *image, const struct creation *creation,
                                 struct error *err)
{
    struct host_file *host;
    int ret = host_file_open(image->path, HOST_FILE_CREATE, AIO_THREADS, &host, err);
    if (ret < 0)
        return ret;
    bool fallocate = creation->qcow2.preallocation == QCOW2_PREALLOCATION_FALLOC;
    ret = host->ops->co_truncate(host, image->size, fallocate);
    if (ret < 0)
        error_set(err, ret, "cannot be given its size: %s", strerror(-ret));
    else if (creation->qcow2.preallocation == QCOW2_PREALLOCATION_FULL)
        ret = fill_with_zeroes(image, err);
    if (ret < 0)
        host_file_co_abandon(host);
    else
        host_file_close(host);
    return ret;
}

/* ---- qcow2 ---- */

/* Making an image empties its files, so none of them may be further down in what it is to show. BACKING is
 * the path of its backing file, to be opened by OPEN; where that cannot be followed, nothing is known of it.
 */
static int coroutine_fn refuse_loop(const struct img_new *image, const char *data_file, const char *backing,
                                    struct open_options open, struct error *err)
{
    struct error said = {""};
    struct node *node;
    struct stat st;
    struct node_ancestor made[2];
    open.no_backing = open.no_io = false; /* with either, nothing below it is opened */
    open.ancestors = NULL;
    if (stat(image->path, &st) == 0) {
        made[0] = (struct node_ancestor){st.st_dev, st.st_ino, NULL};
        open.ancestors = &made[0];
    }
    char *data = NULL;
    if (data_file && node_resolve_name(image->path, data_file, &data, &said) == 0 && stat(data, &st) == 0) {
        made[1] = (struct node_ancestor){st.st_dev, st.st_ino, open.ancestors};
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

/* The size of the backing file that the command line names, for an image without a size of its own. */
static int coroutine_fn backing_size(const struct img_new *image, const char *data_file,
                                     const struct img_options *options, uint64_t *size, struct error *err)
{
    struct open_options open;
    struct node *node = NULL;
    char *path = NULL;
    int ret = node_resolve_name(image->path, image->backing_file, &path, err);
    if (ret == 0)
        ret = img_open_options(options, IMG_NO_BACKING | IMG_NO_IO, &open, err);
    if (ret == 0) {
        open.format = image->backing_format;
        open.force_share = true; /* only its size is read */
        ret = refuse_loop(image, data_file, path, open, err);
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

static const char *on_off(bool on)
{
    return on ? "on" : "off";
}

/* In qemu-img's order. */
static void describe_qcow2(const struct img_new *image, const struct creation *c)
{
    const struct qcow2_create_options *q = &c->qcow2;
    const struct {
        const char *name, *value; /* NULL: not given */
    } encrypt[] = {{"format", q->encrypt_format},
                   {"cipher-alg", q->luks.cipher_alg},
                   {"cipher-mode", q->luks.cipher_mode},
                   {"ivgen-alg", q->luks.ivgen_alg},
                   {"ivgen-hash-alg", q->luks.ivgen_hash_alg},
                   {"hash-alg", q->luks.hash_alg}};
    for (size_t i = 0; i < sizeof(encrypt) / sizeof(encrypt[0]); i++) {
        if (encrypt[i].value)
            printf(" encrypt.%s=%s", encrypt[i].name, encrypt[i].value);
    }
    if (q->luks.iter_time_ms)
        printf(" encrypt.iter-time=%u", q->luks.iter_time_ms);
    printf(" cluster_size=%u extended_l2=%s", q->cluster_bytes ? q->cluster_bytes : 65536,
           on_off(q->extended_l2));
    if (c->preallocation_given)
        printf(" preallocation=%s", qcow2_preallocation_name(q->preallocation));
    printf(" compression_type=%s size=%" PRIu64, qcow2_compression_name(q->compression_type), image->size);
    if (c->compat_given)
        printf(" compat=%s", q->version == 2 ? "0.10" : "1.1");
    if (q->backing_file)
        printf(" backing_file=%s", q->backing_file);
    if (q->backing_format)
        printf(" backing_fmt=%s", q->backing_format);
    if (q->data_file)
        printf(" data_file=%s", q->data_file);
    if (c->data_file_raw_given)
        printf(" data_file_raw=%s", on_off(q->data_file_raw));
    printf(" lazy_refcounts=%s refcount_bits=%u", on_off(q->lazy_refcounts),
           q->refcount_bits ? q->refcount_bits : 16);
}

static void describe(const struct img_new *image, const struct creation *c)
{
    printf("Formatting '%s', fmt=%s", image->path, image->format);
    if (strcmp(image->format, "qcow2") == 0)
        describe_qcow2(image, c);
    else
        printf(" size=%" PRIu64, image->size);
    if (strcmp(image->format, "qcow2") != 0 && c->preallocation_given)
        printf(" preallocation=%s", qcow2_preallocation_name(c->qcow2.preallocation));
    putchar('\n');
}

static int coroutine_fn make_qcow2(struct img_new *image, struct creation *c,
                                   const struct img_options *options, struct error *err)
{
    struct qcow2_create_options *q = &c->qcow2;
    q->size = image->size;
    q->luks.secret_file = image->secret_file;
    image->cluster_bytes = q->cluster_bytes ? q->cluster_bytes : 65536;
    image->backed = q->backing_file != NULL;
    return qcow2_co_create(image->path, q, err);
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

int coroutine_fn img_co_make(struct img_new *image, const struct img_options *options, bool quiet,
                             struct error *err)
{
    struct creation *c = calloc(1, sizeof(*c));
    bool raw = strcmp(image->format, "raw") == 0;
    int ret = 0;
    if (!c)
        return error_set(err, -ENOMEM, "out of memory");
    if (!raw && strcmp(image->format, "qcow2") != 0) {
        ret = error_set(err, -EINVAL, "images of format '%s' cannot be made (raw or qcow2)", image->format);
        goto out;
    }
    ret = parse_create_options(c, image, err);
    if (ret < 0)
        goto out;
    c->compat_given = c->qcow2.version != 0;
    if (image->size_given && c->qcow2.size == 0)
        c->qcow2.size = image->size;
    if (image->backing_file)
        c->qcow2.backing_file = image->backing_file;
    if (image->backing_format)
        c->qcow2.backing_format = image->backing_format;
    image->backing_file = c->qcow2.backing_file;
    image->backing_format = c->qcow2.backing_format;
    image->size = c->qcow2.size;
    if (raw && c->qcow2.preallocation == QCOW2_PREALLOCATION_METADATA) {
        ret = error_set(err, -ENOTSUP, "raw images have no metadata to preallocate (falloc or full)");
        goto out;
    }
    if (raw && image->backing_file) {
        ret = error_set(err, -ENOTSUP, "raw images have no backing file (-f qcow2 makes one that has)");
        goto out;
    }
    if (image->unbacked && image->backing_file) {
        ret = error_set(err, -EINVAL,
                        "-o backing_file goes with one source only: several in a row have no backing file "
                        "in common");
        goto out;
    }
    if (image->backing_file && !image->backing_format) {
        ret = error_set(err, -EINVAL, "the format of backing file '%s' has to be said (-F qcow2 or -F raw)",
                        image->backing_file);
        goto out;
    }
    ret = img_check_format(image->backing_format, err);
    if (ret < 0) {
        error_prefix(err, ret, "backing file");
        goto out;
    }
    ret = img_refuse_itself(image->path, image->backing_file, "backing", err);
    if (ret == 0)
        ret = img_refuse_itself(image->path, c->qcow2.data_file, "data", err);
    if (ret == 0 && c->qcow2.data_file)
        ret = check_data_file(image->path, c->qcow2.data_file, err);
    if (ret < 0)
        goto out;
    if (image->backing_file && !options->unsafe) {
        uint64_t size = 0;
        ret = backing_size(image, c->qcow2.data_file, options, &size, err);
        if (ret < 0)
            goto out;
        if (!image->size_given)
            image->size = size;
    } else if (!image->size_given) {
        ret = error_set(err, -EINVAL, "a size is needed");
        goto out;
    }
    image->size = (image->size + 511) & ~511ull;
    if (image->size < image->size_needed) {
        ret = error_set(err, -ENOSPC, "-o size: %" PRIu64 " bytes are fewer than the source's %" PRIu64,
                        image->size, image->size_needed);
        goto out;
    }
    ret = image->compressed ? check_compressed(&c->qcow2, err) : 0;
    if (ret < 0)
        goto out;
    if (!quiet)
        describe(image, c);
    ret = raw ? make_raw(image, c, err) : make_qcow2(image, c, options, err);

out:
    for (unsigned i = 0; i < c->kept_count; i++)
        free(c->kept[i]);
    free(c);
    image->backing_file = NULL;
    image->backing_format = NULL;
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
