/*
 * Making an image.
 *
 * What always holds: options are checked before the file is touched; the header is written last, after
 * everything that it names is durable. What a failure leaves behind is not an image: a file that was made
 * goes again, one that was there is left empty, and the disk of a block device has no header, unless it is
 * preallocation that failed: then it is an image without it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/crypto.h"
#include "host/qcow2/qcow2_state.h"

/* Where things go: header, refcount table, refcount blocks, L1 table, each in whole clusters. */
struct layout {
    unsigned cluster_bits, refcount_order, l2_bits;
    uint64_t cluster_bytes;
    uint64_t table_clusters, blocks, l1_entries, l1_clusters, extra_clusters;
    uint64_t used; /* clusters in all */
};

static const struct qcow2_feature_name feature_names[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

static unsigned log2_of(uint64_t n)
{
    return 63 - (unsigned)__builtin_clzll(n);
}

static int check_options(const struct qcow2_create_options *o, struct error *err)
{
    bool v2 = o->version == 2;
    uint64_t cluster = o->cluster_bytes ? o->cluster_bytes : 65536;
    unsigned bits = o->refcount_bits ? o->refcount_bits : 16;
    const struct {
        bool bad;
        const char *why;
    } rules[] = {
        {o->version != 0 && o->version != 2 && o->version != 3, "version has to be 2 or 3"},
        {cluster & (cluster - 1), "cluster size has to be a power of two"},
        {cluster < 512 || cluster > 2u << 20, "cluster size has to be between 512 bytes and 2 MiB"},
        {bits > 64 || (bits & (bits - 1)), "refcount width has to be a power of two and at most 64"},
        {v2 && bits != 16, "refcount widths other than 16 need version 3 (compat=1.1)"},
        {v2 && o->lazy_refcounts, "lazy refcounts need version 3 (compat=1.1)"},
        {v2 && o->extended_l2, "extended L2 entries need version 3 (compat=1.1)"},
        {v2 && o->data_file, "an external data file needs version 3 (compat=1.1)"},
        {v2 && o->compression_type != QCOW2_COMPRESSION_ZLIB,
         "compression types other than zlib need version 3 (compat=1.1)"},
        {o->extended_l2 && cluster < 16384, "extended L2 entries need a cluster size of 16 KiB at least"},
        {o->data_file_raw && !o->data_file, "data_file_raw needs data_file"},
        {o->data_file_raw && o->backing_file, "a backing file and data_file_raw cannot go together"},
        {o->data_file && strchr(o->data_file, ':'), "data_file has to be a plain file name"},
        {o->data_file && !o->data_file[0], "data_file has to be a file name"},
        {o->backing_format && !o->backing_file, "a backing format without a backing file"},
        {o->backing_file && !o->backing_format, "a backing file needs its format (backing_fmt)"},
        {o->backing_file && strlen(o->backing_file) > QCOW2_MAX_BACKING_NAME,
         "the backing file name is too long (1023 bytes)"},
        {o->backing_file && !o->backing_file[0], "the backing file name is empty"},
        {o->backing_format && strlen(o->backing_format) > 15, "the backing format's name is too long"},
        {o->backing_file && o->preallocation != QCOW2_PREALLOCATION_OFF && !o->extended_l2,
         "a backing file and preallocation can only go together with extended L2 entries"},
        {o->encrypt_format && strcmp(o->encrypt_format, "luks") != 0, "luks is the only encryption format"},
        {o->encrypt_format && !o->luks.secret_file,
         "encryption needs a file with the passphrase (--secret-file)"},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (rules[i].bad)
            return error_set(err, -EINVAL, "%s", rules[i].why);
    }
    return 0;
}

static int plan_layout(const struct qcow2_create_options *o, uint64_t size, struct layout *l,
                       struct error *err)
{
    l->cluster_bytes = o->cluster_bytes ? o->cluster_bytes : 65536;
    l->cluster_bits = log2_of(l->cluster_bytes);
    l->refcount_order = o->refcount_bits ? log2_of(o->refcount_bits) : 4;
    l->l2_bits = l->cluster_bits - (o->extended_l2 ? 4 : 3);
    unsigned covers = l->cluster_bits + l->l2_bits;
    l->l1_entries = (size >> covers) + ((size & ((1ull << covers) - 1)) != 0);
    if (l->l1_entries > QCOW2_MAX_L1_BYTES / 8 || size > INT64_MAX)
        return error_set(err, -EFBIG, "%llu bytes are too many for this cluster size (take larger clusters)",
                         (unsigned long long)size);
    l->l1_clusters = (l->l1_entries * 8 + l->cluster_bytes - 1) >> l->cluster_bits;
    uint64_t per_block = l->cluster_bytes * 8 >> l->refcount_order;
    l->table_clusters = 1;
    for (;;) {
        l->used = 1 + l->table_clusters + l->blocks + l->l1_clusters + l->extra_clusters;
        uint64_t blocks = (l->used + per_block - 1) / per_block;
        uint64_t table = (blocks * 8 + l->cluster_bytes - 1) >> l->cluster_bits;
        if (blocks <= l->blocks && table <= l->table_clusters)
            return 0;
        l->blocks = max_u64(blocks, l->blocks);
        l->table_clusters = max_u64(table, l->table_clusters);
    }
}

static int coroutine_fn co_write_refcounts(struct node *file, const struct layout *l, uint8_t *buf)
{
    uint64_t per_block = l->cluster_bytes * 8 >> l->refcount_order, first_block = 1 + l->table_clusters;
    int ret = 0;
    for (uint64_t c = 0; c < l->table_clusters && ret == 0; c++) {
        memset(buf, 0, l->cluster_bytes);
        be64 *table = (be64 *)(void *)buf;
        for (uint64_t i = 0; i < l->cluster_bytes / 8; i++) {
            uint64_t block = c * (l->cluster_bytes / 8) + i;
            if (block < l->blocks)
                table[i] = be64_put((first_block + block) << l->cluster_bits);
        }
        ret = node_co_pwrite(file, (1 + c) << l->cluster_bits, buf, l->cluster_bytes, 0);
    }
    for (uint64_t b = 0; b < l->blocks && ret == 0; b++) {
        memset(buf, 0, l->cluster_bytes);
        for (uint64_t i = 0; i < per_block && b * per_block + i < l->used; i++)
            qcow2_refcount_set_raw(buf, l->refcount_order, i, 1);
        ret = node_co_pwrite(file, (first_block + b) << l->cluster_bits, buf, l->cluster_bytes, 0);
    }
    return ret;
}

static bool add_ext(uint8_t *cluster, uint64_t *at, uint64_t room, uint32_t type, const void *data,
                    size_t length)
{
    struct qcow2_extension head = {be32_put(type), be32_put((uint32_t)length)};
    uint64_t need = sizeof(head) + ((length + 7) & ~(size_t)7);
    if (need > room - *at)
        return false;
    memcpy(cluster + *at, &head, sizeof(head));
    if (length)
        memcpy(cluster + *at + sizeof(head), data, length);
    *at += need;
    return true;
}

static int build_header(const struct qcow2_create_options *o, uint64_t size, const struct layout *l,
                        const struct qcow2_crypto_extension *crypto, uint8_t *cluster, struct error *err)
{
    unsigned version = o->version ? o->version : 3;
    struct qcow2_header h = {
        .magic = be32_put(QCOW2_MAGIC),
        .version = be32_put(version),
        .cluster_bits = be32_put(l->cluster_bits),
        .size = be64_put(size),
        .crypt_method = be32_put(crypto ? QCOW2_CRYPT_LUKS : QCOW2_CRYPT_NONE),
        .l1_size = be32_put((uint32_t)l->l1_entries),
        .l1_table_offset = be64_put((1 + l->table_clusters + l->blocks) << l->cluster_bits),
        .refcount_table_offset = be64_put(l->cluster_bytes),
        .refcount_table_clusters = be32_put((uint32_t)l->table_clusters),
        .incompatible_features = be64_put((o->data_file ? QCOW2_INCOMPAT_DATA_FILE : 0) |
                                          (o->compression_type ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                                          (o->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0)),
        .compatible_features = be64_put(o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0),
        .autoclear_features = be64_put(o->data_file_raw ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0),
        .refcount_order = be32_put(l->refcount_order),
        .header_length = be32_put(sizeof(h)),
        .compression_type = (uint8_t)o->compression_type,
    };
    uint64_t at = version == 2 ? QCOW2_V2_HEADER_BYTES : sizeof(h), room = l->cluster_bytes;
    bool fits = true;
    memset(cluster, 0, l->cluster_bytes);
    if (o->backing_format)
        fits = fits && add_ext(cluster, &at, room, QCOW2_EXT_BACKING_FORMAT, o->backing_format,
                               strlen(o->backing_format));
    if (o->data_file)
        fits = fits && add_ext(cluster, &at, room, QCOW2_EXT_DATA_FILE, o->data_file, strlen(o->data_file));
    if (crypto)
        fits = fits && add_ext(cluster, &at, room, QCOW2_EXT_CRYPTO, crypto, sizeof(*crypto));
    /* A help for people only: left out where a small cluster has no room for it beside what may come, which
     * is bitmaps, and a backing file of any name. */
    uint64_t names_and_rest = sizeof(feature_names) + 3 * sizeof(struct qcow2_extension) +
                              sizeof(struct qcow2_bitmaps_extension) + QCOW2_MAX_BACKING_NAME;
    if (version >= 3 && fits && names_and_rest <= room - at)
        fits = add_ext(cluster, &at, room, QCOW2_EXT_FEATURE_NAMES, feature_names, sizeof(feature_names));
    fits = fits && add_ext(cluster, &at, room, QCOW2_EXT_END, NULL, 0);
    if (fits && o->backing_file) {
        size_t length = strlen(o->backing_file);
        fits = length <= room - at;
        if (fits) {
            memcpy(cluster + at, o->backing_file, length);
            h.backing_file_offset = be64_put(at);
            h.backing_file_size = be32_put((uint32_t)length);
        }
    }
    if (!fits)
        return error_set(err, -ENOSPC,
                         "names and header do not fit into one cluster of %llu bytes (take larger clusters)",
                         (unsigned long long)l->cluster_bytes);
    memcpy(cluster, &h, version == 2 ? QCOW2_V2_HEADER_BYTES : sizeof(h));
    return 0;
}

/* The data file is made, or emptied if it is there (what was in it would show where nothing is written), and
 * given the disk's length. */
static int coroutine_fn co_create_data_file(const char *path, const char *name, uint64_t size,
                                            struct host_file **file, struct error *err)
{
    char *resolved;
    int ret = node_resolve_name(path, name, &resolved, err);
    if (ret < 0)
        return ret;
    ret = host_file_open(resolved, HOST_FILE_CREATE, AIO_THREADS, file, err);
    if (ret == 0) {
        int64_t length = (*file)->ops->size(*file);
        if (length >= 0 && (uint64_t)length < size)
            ret = (*file)->ops->co_truncate(*file, size, false);
        if (ret < 0)
            error_set(err, ret, "data file '%s': %s", resolved, strerror(-ret));
    }
    free(resolved);
    return ret;
}

static int coroutine_fn co_write_image(struct node *file, const char *path,
                                       const struct qcow2_create_options *o, uint64_t size, struct layout *l,
                                       struct qcow2_luks_creation *luks, struct host_file **data_file,
                                       struct error *err)
{
    uint8_t *buf = node_buffer(file, l->cluster_bytes);
    if (!buf)
        return error_set(err, -ENOMEM, "out of memory");
    uint64_t extra = (1 + l->table_clusters + l->blocks + l->l1_clusters) << l->cluster_bits;
    struct qcow2_crypto_extension crypto = {be64_put(extra), be64_put(luks ? luks->bytes : 0)};
    /* What is refused is refused before anything is written. */
    int ret = build_header(o, size, l, luks ? &crypto : NULL, buf, err);
    if (ret < 0)
        goto out;
    ret = node_co_truncate(file, l->used << l->cluster_bits, false, err);
    if (ret < 0)
        goto out;
    if (o->data_file)
        ret = co_create_data_file(path, o->data_file, size, data_file, err);
    if (ret < 0)
        goto out;
    /* A block device may hold anything, an old image for one. */
    ret = node_co_pwrite_zeroes(file, 0, l->cluster_bytes, 0);
    if (ret == 0 && l->l1_clusters)
        ret = node_co_pwrite_zeroes(file, (1 + l->table_clusters + l->blocks) << l->cluster_bits,
                                    l->l1_clusters << l->cluster_bits, NODE_IO_MAY_UNMAP);
    if (ret == 0)
        ret = co_write_refcounts(file, l, buf);
    if (ret == 0 && luks)
        ret = node_co_pwrite(file, extra, luks->header, luks->bytes, 0);
    if (ret == 0)
        ret = node_co_flush(file);
    if (ret == 0) { /* the buffer was in use for other things */
        (void)build_header(o, size, l, luks ? &crypto : NULL, buf, NULL);
        ret = node_co_pwrite(file, 0, buf, l->cluster_bytes, 0);
    }
    if (ret == 0)
        ret = node_co_flush(file);
    if (ret < 0)
        error_set(err, ret, "writing '%s': %s", path, strerror(-ret));
out:
    free(buf);
    return ret;
}

static int coroutine_fn co_preallocate(const char *path, const struct qcow2_create_options *o, uint64_t size,
                                       enum qcow2_preallocation mode, struct error *err)
{
    struct open_options options = {.format = "qcow2",
                                   .no_backing = true,
                                   .cache = CACHE_WRITEBACK,
                                   .secret_file = o->luks.secret_file,
                                   .backing = BACKING_DIR,
                                   .backing_dir = "/"};
    struct node *node;
    int ret = node_co_open(path, &options, &node, err);
    if (ret < 0)
        return ret;
    ret = qcow2_co_preallocate(qcow2_state(node), 0, size, mode);
    int closed = node_co_close(node);
    if (ret == 0)
        ret = closed;
    return ret < 0 ? error_set(err, ret, "preallocating '%s': %s", path, strerror(-ret)) : 0;
}

/* Is NAME, as the image at PATH would name it, the file at OTHER, by whatever names? */
static bool is_file(const char *path, const char *name, const char *other)
{
    char *resolved;
    if (node_resolve_name(path, name, &resolved, NULL) < 0)
        return false;
    bool same = host_file_same(resolved, other);
    free(resolved);
    return same;
}

/* Making an image empties its files: none of them may be one that it is to show. */
static int check_files(const char *path, const struct qcow2_create_options *o, struct error *err)
{
    char *data_file = NULL;
    if (o->backing_file && is_file(path, o->backing_file, path))
        return error_set(err, -EINVAL, "'%s' is the image itself: it cannot be its own backing file",
                         o->backing_file);
    if (!o->data_file || node_resolve_name(path, o->data_file, &data_file, NULL) < 0)
        return 0;
    int ret = 0;
    if (is_file(path, o->data_file, path))
        ret =
            error_set(err, -EINVAL, "'%s' is the image itself: it cannot be its own data file", o->data_file);
    else if (o->backing_file && is_file(path, o->backing_file, data_file))
        ret = error_set(err, -EINVAL, "'%s' cannot be the data file and the backing file", o->data_file);
    free(data_file);
    return ret;
}

int coroutine_fn qcow2_co_create(const char *path, const struct qcow2_create_options *options,
                                 struct error *err)
{
    struct layout layout = {0};
    struct qcow2_luks_creation luks = {0};
    struct host_file *host = NULL, *data_host = NULL;
    struct node *file = NULL;
    uint64_t size = (options->size + 511) & ~511ull;
    int ret = check_options(options, err);
    if (ret == 0)
        ret = check_files(path, options, err);
    if (ret < 0)
        return ret;
    if (options->encrypt_format) {
        ret = qcow2_luks_create(&options->luks, &luks, err);
        if (ret < 0)
            return ret;
        uint64_t cluster = options->cluster_bytes ? options->cluster_bytes : 65536;
        layout.extra_clusters = (luks.bytes + cluster - 1) / cluster;
    }
    ret = plan_layout(options, size, &layout, err);
    if (ret < 0)
        goto out;
    ret = host_file_open(path, HOST_FILE_CREATE, AIO_THREADS, &host, err);
    if (ret == 0)
        ret = node_co_open_protocol(path, &(struct open_options){.cache = CACHE_WRITEBACK}, &file, err);
    if (ret < 0)
        goto out;
    ret = co_write_image(file, path, options, size, &layout, options->encrypt_format ? &luks : NULL,
                         &data_host, err);
    int closed = node_co_close(file);
    if (ret == 0 && closed < 0)
        ret = error_set(err, closed, "closing '%s': %s", path, strerror(-closed));
    /* A raw data file is the disk by itself: so every cluster has to be mapped to it. */
    enum qcow2_preallocation mode = options->preallocation;
    if (options->data_file_raw && mode == QCOW2_PREALLOCATION_OFF)
        mode = QCOW2_PREALLOCATION_METADATA;
    if (ret == 0 && mode != QCOW2_PREALLOCATION_OFF)
        ret = co_preallocate(path, options, size, mode, err);
out:
    if (ret < 0) {
        host_file_co_abandon(data_host);
        host_file_co_abandon(host);
    } else {
        host_file_close(data_host);
        host_file_close(host);
    }
    free(luks.header);
    return ret;
}
