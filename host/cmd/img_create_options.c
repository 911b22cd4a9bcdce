/*
 * What -o of create and convert says: the options of a new image, whose names and values are qemu-img's.
 *
 * What always holds: what is said of encryption does not end in an image that is not encrypted.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/parse.h"
#include "host/cmd/img_creation.h"

struct create_option {
    const char *name, *help;
    int (*set)(struct img_creation *creation, const char *value);
    bool raw;     /* raw images have it too */
    bool boolean; /* without a value it is on */
};

static int set_size(struct img_creation *c, const char *value)
{
    c->size_given = true;
    return parse_size(value, &c->qcow2.size);
}

static int set_compat(struct img_creation *c, const char *value)
{
    c->compat_given = true;
    if (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0)
        c->qcow2.version = 2;
    else if (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0)
        c->qcow2.version = 3;
    else
        return -EINVAL;
    return 0;
}

static int set_cluster_size(struct img_creation *c, const char *value)
{
    uint64_t n;
    if (parse_size(value, &n) < 0 || n < 512 || n > 2 * 1024 * 1024 || (n & (n - 1)))
        return -EINVAL;
    c->qcow2.cluster_bytes = (uint32_t)n;
    return 0;
}

static int set_refcount_bits(struct img_creation *c, const char *value)
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

static int set_lazy_refcounts(struct img_creation *c, const char *value)
{
    return parse_bool(value, &c->qcow2.lazy_refcounts);
}

static int set_extended_l2(struct img_creation *c, const char *value)
{
    return parse_bool(value, &c->qcow2.extended_l2);
}

static int set_data_file_raw(struct img_creation *c, const char *value)
{
    c->data_file_raw_given = true;
    return parse_bool(value, &c->qcow2.data_file_raw);
}

static int set_compression_type(struct img_creation *c, const char *value)
{
    return qcow2_compression_parse(value, &c->qcow2.compression_type);
}

static int set_preallocation(struct img_creation *c, const char *value)
{
    c->preallocation_given = true;
    return qcow2_preallocation_parse(value, &c->qcow2.preallocation);
}

static int keep(struct img_creation *c, const char *value, const char **to)
{
    if (c->kept_count == sizeof(c->kept) / sizeof(c->kept[0]) || !(c->kept[c->kept_count] = strdup(value)))
        return -ENOMEM;
    *to = c->kept[c->kept_count++];
    return 0;
}

static int set_backing_file(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.backing_file);
}

static int set_backing_fmt(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.backing_format);
}

static int set_data_file(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.data_file);
}

static int set_encrypt_format(struct img_creation *c, const char *value)
{
    return strcmp(value, "luks") == 0 ? keep(c, value, &c->qcow2.encrypt_format) : -EINVAL;
}

static int set_cipher_alg(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.cipher_alg);
}

static int set_cipher_mode(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.cipher_mode);
}

static int set_hash_alg(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.hash_alg);
}

static int set_ivgen_alg(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.ivgen_alg);
}

static int set_ivgen_hash_alg(struct img_creation *c, const char *value)
{
    return keep(c, value, &c->qcow2.luks.ivgen_hash_alg);
}

static int set_iter_time(struct img_creation *c, const char *value)
{
    uint64_t n;
    if (parse_number(value, &n) < 0 || n < 1 || n > 600000)
        return -EINVAL;
    c->qcow2.luks.iter_time_ms = (unsigned)n;
    return 0;
}

static int set_nocow(struct img_creation *c, const char *value)
{
    bool on;
    return parse_bool(value, &on) == 0 && !on ? 0 : -EINVAL;
}

static const struct create_option create_options[] = {
    {"backing_file", "image that shows through", set_backing_file},
    {"backing_fmt", "its format", set_backing_fmt},
    {"cluster_size", "512 to 2M, a power of two (default 64k)", set_cluster_size},
    {"compat", "0.10 (version 2) or 1.1 (version 3, default)", set_compat},
    {"compression_type", "zlib (default) or zstd", set_compression_type},
    {"data_file", "file for the data; the image itself has the tables only", set_data_file},
    {"data_file_raw", "on: the data file is a raw image all the time", set_data_file_raw, .boolean = true},
    {"encrypt.cipher-alg", "aes-256 (default), serpent-128, twofish-192, cast5-128, ...", set_cipher_alg},
    {"encrypt.cipher-mode", "xts (default), cbc, ctr or ecb", set_cipher_mode},
    {"encrypt.format", "luks", set_encrypt_format},
    {"encrypt.hash-alg", "sha256 (default), sha512, ripemd160, ...", set_hash_alg},
    {"encrypt.iter-time", "milliseconds spent on the passphrase", set_iter_time},
    {"encrypt.ivgen-alg", "plain64 (default), plain or essiv", set_ivgen_alg},
    {"encrypt.ivgen-hash-alg", "for essiv: sha256 (default), md5", set_ivgen_hash_alg},
    {"extended_l2", "on: subclusters", set_extended_l2, .boolean = true},
    {"lazy_refcounts", "on: refcounts are written later", set_lazy_refcounts, .boolean = true},
    {"nocow", "off", set_nocow, .raw = true, .boolean = true},
    {"preallocation", "off (default), metadata, falloc or full; raw has no metadata", set_preallocation,
     .raw = true},
    {"refcount_bits", "1 to 64, a power of two (default 16)", set_refcount_bits},
    {"size", "size of the disk", set_size, .raw = true},
};

#define CREATE_OPTIONS (sizeof(create_options) / sizeof(create_options[0]))

struct parsing {
    struct img_creation *creation;
    const struct img_new *image;
};

static const struct create_option *find_option(const char *name, bool raw)
{
    for (size_t i = 0; i < CREATE_OPTIONS; i++) {
        if (strcmp(create_options[i].name, name) == 0)
            return raw && !create_options[i].raw ? NULL : &create_options[i];
    }
    return NULL;
}

static int set_option(void *opaque, const char *key, const char *value, struct error *err)
{
    const struct parsing *parsing = opaque;
    const struct img_new *image = parsing->image;
    const struct create_option *option = find_option(key, parsing->creation->raw);
    if (!option)
        return error_set(err, -EINVAL, "-o %s: images of format %s have no such option (-o help lists them)",
                         key, image->format);
    if (!value && option->boolean)
        value = "on";
    if (!value)
        return error_set(err, -EINVAL, "-o %s needs a value: %s", key, option->help);
    int ret = option->set(parsing->creation, value);
    if (ret < 0)
        return error_set(err, ret, "-o %s=%s: not a value for it (%s)", key, value, option->help);
    if (option->set == set_size && image->size_argument)
        return error_set(err, -EINVAL, "the size is given twice: '%s', and -o size=%s", image->size_argument,
                         value);
    if (strncmp(key, "encrypt.", strlen("encrypt.")) == 0)
        parsing->creation->encrypt_option = option->name;
    return 0;
}

static int check_encryption(const struct img_creation *c, const struct img_new *image, struct error *err)
{
    bool encrypted = c->qcow2.encrypt_format != NULL;
    if (c->encrypt_option && !encrypted)
        return error_set(err, -EINVAL,
                         "-o %s: the image would not be encrypted, since encrypt.format is missing "
                         "(-o encrypt.format=luks)",
                         c->encrypt_option);
    if (encrypted && !image->secret_file)
        return error_set(err, -EINVAL, "-o encrypt.format=%s: the passphrase is missing (--secret-file=FILE)",
                         c->qcow2.encrypt_format);
    /* A backing file may be encrypted, too. */
    if (image->secret_is_its_own && image->secret_file && !encrypted && !c->qcow2.backing_file)
        return error_set(err, -EINVAL, "--secret-file: the image would not be encrypted (%s)",
                         c->raw ? "raw images cannot be; -f qcow2 -o encrypt.format=luks"
                                : "-o encrypt.format=luks is missing");
    return 0;
}

int img_creation_parse(struct img_creation *c, const struct img_new *image, struct error *err)
{
    struct parsing parsing = {c, image};
    int ret = 0;
    c->raw = strcmp(image->format, "raw") == 0;
    c->qcow2.size = image->size;
    c->size_given = image->size_given;
    for (unsigned i = 0; i < image->create_option_count && ret == 0; i++) {
        if (image->create_options[i][0])
            ret = parse_options(image->create_options[i], set_option, &parsing, err);
        else
            ret = error_set(err, -EINVAL, "-o '' names no option (-o help lists them)");
    }
    if (image->backing_file)
        c->qcow2.backing_file = image->backing_file;
    if (image->backing_format)
        c->qcow2.backing_format = image->backing_format;
    c->qcow2.luks.secret_file = image->secret_file;
    return ret == 0 ? check_encryption(c, image, err) : ret;
}

void img_creation_free(struct img_creation *c)
{
    for (unsigned i = 0; i < c->kept_count; i++)
        free(c->kept[i]);
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

/* ---- saying what is made ---- */

static const char *on_off(bool on)
{
    return on ? "on" : "off";
}

/* In qemu-img's order. */
static void describe_qcow2(const struct img_creation *c)
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
    printf(" compression_type=%s size=%" PRIu64, qcow2_compression_name(q->compression_type), q->size);
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

void img_creation_describe(const struct img_creation *c, const struct img_new *image)
{
    printf("Formatting '%s', fmt=%s", image->path, image->format);
    if (!c->raw)
        describe_qcow2(c);
    else
        printf(" size=%" PRIu64, c->qcow2.size);
    if (c->raw && c->preallocation_given)
        printf(" preallocation=%s", qcow2_preallocation_name(c->qcow2.preallocation));
    putchar('\n');
}
