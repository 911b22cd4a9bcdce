/*
 * The image header and its extensions (checklist B, C, D): read and checked field by field, kept, written
 * again.
 *
 * What always holds: no number from the file is used before it was bounded; a refusal names field, value and
 * byte offset; what is not known, extensions and additional fields alike, survives every rewrite. Rewrites of
 * the first sector are atomic, as far as a sector is.
 */
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/survivor.h"

#define AT(field) offsetof(struct qcow2_header, field)

/* What may be wrong with a field: one row a rule. */
struct field_rule {
    const char *field;
    unsigned at;
    uint64_t value;
    bool bad;
    int code;
    const char *why;
};

static int check_rules(const struct field_rule *rules, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (rules[i].bad)
            return error_set(err, rules[i].code, "header field %s at byte %u is %llu (0x%llx): %s",
                             rules[i].field, rules[i].at, (unsigned long long)rules[i].value,
                             (unsigned long long)rules[i].value, rules[i].why);
    }
    return 0;
}

#define RULE(field, value, bad, why)                          \
    {                                                         \
#field, (unsigned)AT(field), value, bad, -EINVAL, why \
    }
#define RULE_CODE(field, value, bad, code, why)            \
    {                                                      \
#field, (unsigned)AT(field), value, bad, code, why \
    }

/* ---- extensions ---- */

static const struct {
    uint32_t type;
    const char *name;
} known_exts[] = {
    {QCOW2_EXT_BACKING_FORMAT, "backing file format"},
    {QCOW2_EXT_FEATURE_NAMES, "feature name table"},
    {QCOW2_EXT_BITMAPS, "bitmaps"},
    {QCOW2_EXT_CRYPTO, "full disk encryption"},
    {QCOW2_EXT_DATA_FILE, "external data file name"},
};

struct qcow2_ext *qcow2_find_ext(struct qcow2 *s, uint32_t type)
{
    for (unsigned i = 0; i < s->nb_exts; i++) {
        if (s->exts[i].type == type)
            return &s->exts[i];
    }
    return NULL;
}

int qcow2_set_ext(struct qcow2 *s, uint32_t type, const void *data, uint32_t length)
{
    struct qcow2_ext *ext = qcow2_find_ext(s, type);
    if (!data) {
        if (ext) {
            free(ext->data);
            unsigned i = (unsigned)(ext - s->exts);
            memmove(ext, ext + 1, (s->nb_exts - i - 1) * sizeof(*ext));
            s->nb_exts--;
        }
        return 0;
    }
    uint8_t *copy = malloc(length ? length : 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, data, length);
    if (!ext) {
        struct qcow2_ext *more = realloc(s->exts, (s->nb_exts + 1) * sizeof(*more));
        if (!more) {
            free(copy);
            return -ENOMEM;
        }
        s->exts = more;
        ext = &s->exts[s->nb_exts++];
        *ext = (struct qcow2_ext){.type = type};
    }
    free(ext->data);
    ext->data = copy;
    ext->length = length;
    return 0;
}

static char *copy_string(const void *data, size_t length)
{
    char *text = malloc(length + 1);
    if (text) {
        memcpy(text, data, length);
        text[length] = '\0';
    }
    return text;
}

/* D1 to D5 */
static int read_exts(struct qcow2 *s, const uint8_t *cluster, uint64_t at, uint64_t end, struct error *err)
{
    while (end - at >= sizeof(struct qcow2_extension)) {
        struct qcow2_extension head;
        memcpy(&head, cluster + at, sizeof(head));
        uint32_t type = be32_get(head.type), length = be32_get(head.length);
        const char *name = "unknown";
        bool known = false;
        if (type == QCOW2_EXT_END) {
            if (length)
                return error_set(err, -EINVAL,
                                 "end of header extensions at byte %llu has length %u: it must have none",
                                 (unsigned long long)at, length);
            return 0;
        }
        for (size_t i = 0; i < sizeof(known_exts) / sizeof(known_exts[0]); i++) {
            if (known_exts[i].type == type) {
                name = known_exts[i].name;
                known = true;
            }
        }
        if (length > end - at - sizeof(head))
            return error_set(
                err, -EINVAL,
                "header extension %s (0x%08x) at byte %llu has length %u: it goes beyond byte %llu", name,
                type, (unsigned long long)at, length, (unsigned long long)end);
        if (known && qcow2_find_ext(s, type))
            return error_set(err, -EINVAL, "header extension %s (0x%08x) at byte %llu is there twice", name,
                             type, (unsigned long long)at);
        struct qcow2_ext *more = realloc(s->exts, (s->nb_exts + 1) * sizeof(*more));
        if (!more)
            return error_set(err, -ENOMEM, "out of memory");
        s->exts = more;
        uint8_t *copy = malloc(length ? length : 1);
        if (!copy)
            return error_set(err, -ENOMEM, "out of memory");
        memcpy(copy, cluster + at + sizeof(head), length);
        s->exts[s->nb_exts++] = (struct qcow2_ext){.type = type, .length = length, .data = copy};
        uint64_t step = sizeof(head) + (((uint64_t)length + 7) & ~7ull);
        if (step > end - at)
            break;
        at += step;
    }
    return 0; /* D3: the area may end without a marker */
}

/* Name of a feature bit from the image's own table (C2), or NULL. */
static const char *feature_name(struct qcow2 *s, unsigned type, unsigned bit, char name[47])
{
    const struct qcow2_ext *ext = qcow2_find_ext(s, QCOW2_EXT_FEATURE_NAMES);
    for (uint32_t i = 0; ext && i + sizeof(struct qcow2_feature_name) <= ext->length;
         i += sizeof(struct qcow2_feature_name)) {
        struct qcow2_feature_name entry;
        memcpy(&entry, ext->data + i, sizeof(entry));
        if (entry.type != type || entry.bit != bit)
            continue;
        memcpy(name, entry.name, sizeof(entry.name));
        name[46] = '\0';
        for (char *c = name; *c; c++) {
            if ((unsigned char)*c < ' ' || *c == 0x7f)
                *c = '?';
        }
        return name;
    }
    return NULL;
}

static int refuse_unknown_features(struct qcow2 *s, struct error *err)
{
    uint64_t unknown = s->incompatible & ~QCOW2_INCOMPAT_KNOWN;
    char list[300] = "", name[47];
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(unknown >> bit & 1))
            continue;
        const char *known = feature_name(s, 0, bit, name);
        size_t n = strlen(list);
        snprintf(list + n, sizeof(list) - n, "%sbit %u%s%s%s", n ? ", " : "", bit, known ? " (" : "",
                 known ? known : "", known ? ")" : "");
    }
    return error_set(err, -ENOTSUP,
                     "header field incompatible_features at byte %u is 0x%llx: unsupported feature: %s",
                     (unsigned)AT(incompatible_features), (unsigned long long)s->incompatible, list);
}

/* Additional fields and extensions; CLUSTER is the whole first cluster. */
static int read_ext_area(struct qcow2 *s, const struct qcow2_header *h, const uint8_t *cluster,
                         struct error *err)
{
    uint64_t backing_offset = be64_get(h->backing_file_offset);
    uint64_t start = s->version == 2 ? QCOW2_V2_HEADER_BYTES : s->header_length;
    uint64_t end = s->cluster_bytes;
    /* D2: up to the backing file name, if there is one. */
    if (backing_offset && backing_offset < end)
        end = max_u64(backing_offset, start);
    if (s->version >= 3 && s->header_length > sizeof(*h)) {
        s->header_unknown_bytes = s->header_length - (uint32_t)sizeof(*h);
        s->header_unknown = malloc(s->header_unknown_bytes);
        if (!s->header_unknown)
            return error_set(err, -ENOMEM, "out of memory");
        memcpy(s->header_unknown, cluster + sizeof(*h), s->header_unknown_bytes);
    }
    return read_exts(s, cluster, start, end, err);
}

static int read_names(struct qcow2 *s, const struct qcow2_header *h, const uint8_t *cluster,
                      struct error *err)
{
    uint64_t offset = be64_get(h->backing_file_offset);
    uint32_t size = be32_get(h->backing_file_size);
    if (offset && size) {
        s->backing_file = copy_string(cluster + offset, size);
        if (!s->backing_file)
            return error_set(err, -ENOMEM, "out of memory");
        if (strlen(s->backing_file) != size)
            return error_set(err, -EINVAL, "backing file name at byte %llu has a NUL in it",
                             (unsigned long long)offset);
    }
    const struct qcow2_ext *ext = qcow2_find_ext(s, QCOW2_EXT_BACKING_FORMAT);
    if (ext) {
        if (ext->length >= 16)
            return error_set(err, -EINVAL, "header extension backing file format has length %u: 15 at most",
                             ext->length);
        s->backing_format = copy_string(ext->data, ext->length);
        if (!s->backing_format)
            return error_set(err, -ENOMEM, "out of memory");
    }
    ext = qcow2_find_ext(s, QCOW2_EXT_DATA_FILE);
    if (ext && (s->incompatible & QCOW2_INCOMPAT_DATA_FILE)) {
        s->data_file_name = copy_string(ext->data, ext->length);
        if (!s->data_file_name)
            return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

static void set_geometry(struct qcow2 *s)
{
    s->cluster_bytes = 1ull << s->cluster_bits;
    s->extended_l2 = s->incompatible & QCOW2_INCOMPAT_EXTL2;
    s->l2_entry_bits = s->extended_l2 ? 4 : 3;
    s->l2_bits = s->cluster_bits - s->l2_entry_bits;
    s->subclusters = s->extended_l2 ? 32 : 1;
    s->subcluster_bits = s->cluster_bits - (s->extended_l2 ? 5 : 0);
    s->subcluster_bytes = 1ull << s->subcluster_bits;
    unsigned slice_bytes_bits = s->cluster_bits < 12 ? s->cluster_bits : 12;
    s->slice_bits = slice_bytes_bits - s->l2_entry_bits;
    s->slices_bits = s->cluster_bits - slice_bytes_bits;
    s->refblock_bits = s->cluster_bits + 3 - s->refcount_order;
    s->ref_slice_bits = slice_bytes_bits + 3 - s->refcount_order;
    s->ref_slices_bits = s->cluster_bits - slice_bytes_bits;
    s->refcount_max = s->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << s->refcount_order)) - 1;
}

/* The fields of version 3, or what stands for them in version 2 (B20). */
static int read_v3_fields(struct qcow2 *s, const struct qcow2_header *h, struct error *err)
{
    s->refcount_order = 4;
    s->header_length = QCOW2_V2_HEADER_BYTES;
    if (s->version == 2)
        return 0;
    uint32_t length = be32_get(h->header_length), order = be32_get(h->refcount_order);
    const struct field_rule rules[] = {
        RULE(header_length, length, length < QCOW2_V3_HEADER_BYTES, "104 at least"),
        RULE(header_length, length, length > s->cluster_bytes, "it does not fit into a cluster"),
        RULE(header_length, length, length % 8, "it has to be a multiple of 8"),
        RULE(refcount_order, order, order > 6, "6 at most"),
    };
    int ret = check_rules(rules, sizeof(rules) / sizeof(rules[0]), err);
    if (ret < 0)
        return ret;
    s->header_length = length;
    s->refcount_order = order;
    s->incompatible = be64_get(h->incompatible_features);
    s->compatible = be64_get(h->compatible_features);
    s->autoclear = be64_get(h->autoclear_features);
    s->compression_type = length > QCOW2_V3_HEADER_BYTES ? h->compression_type : QCOW2_COMPRESSION_ZLIB;
    return 0;
}

static int check_features(struct qcow2 *s, struct error *err)
{
    uint64_t in = s->incompatible, clear = s->autoclear;
    bool compression_bit = in & QCOW2_INCOMPAT_COMPRESSION, data_file = in & QCOW2_INCOMPAT_DATA_FILE;
    unsigned type = s->compression_type;
    if (in & ~QCOW2_INCOMPAT_KNOWN)
        return refuse_unknown_features(s, err);
    const struct field_rule rules[] = {
        RULE(compression_type, type, compression_bit && s->header_length <= QCOW2_V3_HEADER_BYTES,
             "feature bit 3 says that it is there, header_length that it is not"),
        RULE_CODE(compression_type, type, type > QCOW2_COMPRESSION_ZSTD, -ENOTSUP,
                  "unknown compression type"),
        RULE(compression_type, type, compression_bit != (type != 0),
             "it contradicts incompatible feature bit 3"),
        RULE(incompatible_features, in,
             (in & QCOW2_INCOMPAT_EXTL2) && s->cluster_bits < QCOW2_EXTL2_MIN_CLUSTER_BITS,
             "extended L2 entries need clusters of 16 KiB at least"),
        RULE(incompatible_features, in, data_file && (!s->data_file_name || !s->data_file_name[0]),
             "bit 2 asks for an external data file, but none is named"),
        RULE(autoclear_features, clear, (clear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) && !data_file,
             "bit 1 (raw external data) without an external data file"),
        RULE(autoclear_features, clear,
             (clear & QCOW2_AUTOCLEAR_BITMAPS) && !qcow2_find_ext(s, QCOW2_EXT_BITMAPS),
             "bit 0 (bitmaps) without the bitmaps extension"),
    };
    return check_rules(rules, sizeof(rules) / sizeof(rules[0]), err);
}

/* Tables that the header names: aligned, bounded, in the file, not on the header. FILE_BYTES rounded up to a
 * cluster. */
static int check_tables(struct qcow2 *s, const struct qcow2_header *h, const struct open_options *options,
                        struct error *err)
{
    uint64_t mask = s->cluster_bytes - 1, file = qcow2_cluster_up(s, s->file_bytes);
    uint64_t l1_offset = be64_get(h->l1_table_offset), l1_bytes = (uint64_t)be32_get(h->l1_size) * 8;
    uint64_t ref_offset = be64_get(h->refcount_table_offset),
             ref_clusters = be32_get(h->refcount_table_clusters);
    uint64_t ref_bytes = ref_clusters << s->cluster_bits;
    uint64_t snap_offset = be64_get(h->snapshots_offset), snaps = be32_get(h->nb_snapshots);
    unsigned l2_covers = s->cluster_bits + s->l2_bits;
    uint64_t needed = (s->size >> l2_covers) + ((s->size & ((1ull << l2_covers) - 1)) != 0);
    uint64_t backing = be64_get(h->backing_file_offset), backing_size = be32_get(h->backing_file_size);
    uint32_t crypt = be32_get(h->crypt_method);
    const struct field_rule rules[] = {
        RULE(backing_file_size, backing_size, backing && backing_size > QCOW2_MAX_BACKING_NAME,
             "1023 at most"),
        RULE(backing_file_offset, backing,
             backing && (backing > s->cluster_bytes || backing_size > s->cluster_bytes - backing),
             "the name has to lie inside the first cluster"),
        RULE(backing_file_offset, backing, backing && backing < s->header_length,
             "the name lies on the header"),
        RULE_CODE(crypt_method, crypt, crypt > QCOW2_CRYPT_LUKS, -EINVAL, "unknown encryption method"),
        RULE(size, s->size, needed > QCOW2_MAX_L1_BYTES / 8, "the disk is too large for its cluster size"),
        RULE(l1_size, l1_bytes / 8, l1_bytes > QCOW2_MAX_L1_BYTES, "the table is larger than 32 MiB"),
        RULE(l1_size, l1_bytes / 8, l1_bytes / 8 < needed, "too small for the disk's size"),
        RULE(l1_table_offset, l1_offset, l1_offset & mask, "not cluster aligned"),
        RULE(l1_table_offset, l1_offset, l1_bytes && l1_offset < s->cluster_bytes,
             "the table lies on the header"),
        RULE(l1_table_offset, l1_offset, l1_bytes && (l1_offset > file || l1_bytes > file - l1_offset),
             "the table lies beyond the end of the file"),
        RULE(refcount_table_clusters, ref_clusters, ref_clusters == 0, "there has to be a refcount table"),
        RULE(refcount_table_clusters, ref_clusters, ref_bytes > QCOW2_MAX_REFTABLE_BYTES,
             "the table is larger than 8 MiB"),
        RULE(refcount_table_offset, ref_offset, ref_offset & mask, "not cluster aligned"),
        RULE(refcount_table_offset, ref_offset, ref_offset < s->cluster_bytes,
             "the table lies on the header"),
        RULE(refcount_table_offset, ref_offset,
             !options->check_only && (ref_offset > file || ref_bytes > file - ref_offset),
             "the table lies beyond the end of the file"),
        RULE(refcount_table_offset, ref_offset, ref_offset > INT64_MAX - ref_bytes,
             "offset and length overflow"),
        RULE(nb_snapshots, snaps, snaps > QCOW2_MAX_SNAPSHOTS, "65536 at most"),
        RULE(snapshots_offset, snap_offset, snap_offset & mask, "not cluster aligned"),
        RULE(snapshots_offset, snap_offset, snaps && snap_offset < s->cluster_bytes,
             "the table lies on the header"),
        RULE(snapshots_offset, snap_offset, snaps && snap_offset >= file,
             "the table lies beyond the end of the file"),
    };
    int ret = check_rules(rules, sizeof(rules) / sizeof(rules[0]), err);
    if (ret < 0)
        return ret;
    s->l1_offset = l1_offset;
    s->l1_size = s->header_l1_size = (uint32_t)(l1_bytes / 8);
    s->reftable_offset = ref_offset;
    s->reftable_clusters = (uint32_t)ref_clusters;
    s->reftable_entries = (uint32_t)(ref_bytes / 8);
    s->snapshots_offset = snap_offset;
    s->nb_snapshots = (uint32_t)snaps;
    s->crypt_method = crypt;
    if ((crypt == QCOW2_CRYPT_LUKS) != (qcow2_find_ext(s, QCOW2_EXT_CRYPTO) != NULL))
        return error_set(
            err, -EINVAL,
            "header field crypt_method at byte %u is %u, but the encryption extension is%s there",
            (unsigned)AT(crypt_method), crypt, crypt == QCOW2_CRYPT_LUKS ? " not" : "");
    return 0;
}

int coroutine_fn qcow2_co_read_header(struct qcow2 *s, const struct open_options *options, struct error *err)
{
    struct node *file = s->node->file;
    struct qcow2_header h;
    s->file_bytes = node_length(file);
    if (s->file_bytes < QCOW2_V2_HEADER_BYTES)
        return error_set(err, -EINVAL, "not a qcow2 image: only %llu bytes long",
                         (unsigned long long)s->file_bytes);
    uint8_t *cluster = node_buffer(file, 1u << QCOW2_MAX_CLUSTER_BITS);
    if (!cluster)
        return error_set(err, -ENOMEM, "out of memory");
    int ret = node_co_pread(file, 0, cluster, 512);
    if (ret < 0) {
        error_set(err, ret, "reading the header: %s", strerror(-ret));
        goto out;
    }
    memcpy(&h, cluster, sizeof(h));
    s->version = be32_get(h.version);
    uint32_t magic = be32_get(h.magic), cluster_bits = be32_get(h.cluster_bits);
    const struct field_rule rules[] = {
        RULE(magic, magic, magic != QCOW2_MAGIC, "not a qcow2 image"),
        RULE_CODE(version, s->version, s->version != 2 && s->version != 3, -ENOTSUP,
                  "only versions 2 and 3 are known"),
        RULE(cluster_bits, cluster_bits,
             cluster_bits < QCOW2_MIN_CLUSTER_BITS || cluster_bits > QCOW2_MAX_CLUSTER_BITS,
             "9 to 21 are possible"),
    };
    ret = check_rules(rules, sizeof(rules) / sizeof(rules[0]), err);
    if (ret < 0)
        goto out;
    s->cluster_bits = cluster_bits;
    s->cluster_bytes = 1ull << cluster_bits;
    s->size = be64_get(h.size);
    ret = read_v3_fields(s, &h, err);
    if (ret < 0)
        goto out;
    set_geometry(s);
    ret = node_co_pread(file, 0, cluster, s->cluster_bytes);
    if (ret < 0) {
        error_set(err, ret, "reading the header's cluster: %s", strerror(-ret));
        goto out;
    }
    ret = read_ext_area(s, &h, cluster, err);
    /* An unknown feature may well be what the extension area stumbles over. */
    if (s->incompatible & ~QCOW2_INCOMPAT_KNOWN) {
        ret = refuse_unknown_features(s, err);
        goto out;
    }
    if (ret == 0)
        ret = check_tables(s, &h, options, err);
    if (ret == 0)
        ret = read_names(s, &h, cluster, err);
    if (ret == 0)
        ret = check_features(s, err);
    s->data_file_raw = s->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
out:
    free(cluster);
    return ret;
}

/* ---- writing ---- */

/* The fixed fields as the state has them, over what OLD says of the rest. */
static void put_fields(const struct qcow2 *s, struct qcow2_header *h)
{
    h->magic = be32_put(QCOW2_MAGIC);
    h->version = be32_put(s->version);
    h->cluster_bits = be32_put(s->cluster_bits);
    h->size = be64_put(s->size);
    h->crypt_method = be32_put(s->crypt_method);
    h->l1_size = be32_put(s->header_l1_size);
    h->l1_table_offset = be64_put(s->l1_offset);
    h->refcount_table_offset = be64_put(s->reftable_offset);
    h->refcount_table_clusters = be32_put(s->reftable_clusters);
    h->nb_snapshots = be32_put(s->nb_snapshots);
    h->snapshots_offset = be64_put(s->snapshots_offset);
    if (s->version < 3)
        return;
    h->incompatible_features = be64_put(s->incompatible);
    h->compatible_features = be64_put(s->compatible);
    h->autoclear_features = be64_put(s->autoclear);
    h->refcount_order = be32_put(s->refcount_order);
    h->header_length = be32_put(s->header_length);
    if (s->header_length > QCOW2_V3_HEADER_BYTES)
        h->compression_type = (uint8_t)s->compression_type;
}

/* Puts NEW into the header's cluster AT, durably. A write or flush that fails leaves it open what is there:
 * then OLD is put back, and if that fails as well nothing can be trusted any more. */
static int coroutine_fn co_replace_header(struct qcow2 *s, uint64_t at, const void *new, const void *old,
                                          uint64_t bytes)
{
    survivor_touch(s);
    int ret = node_co_pwrite(s->node->file, at, new, bytes, 0);
    if (ret == 0)
        ret = node_co_flush(s->node->file);
    if (ret < 0) {
        int back = node_co_pwrite(s->node->file, at, old, bytes, 0);
        if (back == 0)
            back = node_co_flush(s->node->file);
        if (back < 0)
            __atomic_store_n(&s->io_error, ret, __ATOMIC_RELAXED);
    }
    return ret;
}

int coroutine_fn qcow2_co_write_header_sector(struct qcow2 *s)
{
    uint8_t *buf = node_buffer(s->node->file, 1024);
    if (!buf)
        return -ENOMEM;
    uint8_t *old = buf, *new = buf + 512;
    int ret = node_co_pread(s->node->file, 0, old, 512);
    if (ret == 0) {
        struct qcow2_header h;
        memcpy(&h, old, sizeof(h));
        put_fields(s, &h);
        size_t n = s->version < 3                 ? QCOW2_V2_HEADER_BYTES
                   : s->header_length < sizeof(h) ? s->header_length
                                                  : sizeof(h);
        memcpy(new, old, 512);
        memcpy(new, &h, n);
        ret = co_replace_header(s, 0, new, old, 512);
    }
    free(buf);
    return ret;
}

static int append(uint8_t *cluster, uint64_t *at, uint64_t room, const void *data, uint64_t bytes)
{
    if (bytes > room - *at)
        return -ENOSPC;
    if (bytes)
        memcpy(cluster + *at, data, bytes);
    *at += bytes;
    return 0;
}

/* What a header uses of its cluster: up to EXT_END, and the backing file's name. */
struct header_use {
    uint64_t ext_end, name, name_bytes;
};

static bool is_used(const struct header_use *use, uint64_t at)
{
    return at < use->ext_end || (at >= use->name && at - use->name < use->name_bytes);
}

/* Of the header in CLUSTER, which was read and found to be right when the image was opened. */
static struct header_use header_use(const struct qcow2 *s, const uint8_t *cluster)
{
    struct qcow2_header h;
    struct qcow2_extension ext;
    memcpy(&h, cluster, sizeof(h));
    struct header_use use = {.ext_end = s->version < 3 ? QCOW2_V2_HEADER_BYTES : be32_get(h.header_length),
                             .name = be64_get(h.backing_file_offset),
                             .name_bytes = be32_get(h.backing_file_size)};
    uint64_t room = s->cluster_bytes;
    if (!use.name || use.name > room || use.name_bytes > room - use.name)
        use.name = use.name_bytes = 0;
    uint64_t limit = use.name ? use.name : room;
    while (use.ext_end + sizeof(ext) <= limit) {
        memcpy(&ext, cluster + use.ext_end, sizeof(ext));
        use.ext_end =
            min_u64(use.ext_end + sizeof(ext) + (((uint64_t)be32_get(ext.length) + 7) & ~7ull), room);
        if (be32_get(ext.type) == QCOW2_EXT_END)
            break;
    }
    return use;
}

/* Where the backing file's name, of BYTES, goes if the extensions end at AT and GAP bytes are to stay free
 * behind them: where it is in OLD, if it is the same; or else, where that can be, not over the one in OLD. */
static uint64_t name_place(const struct qcow2 *s, const uint8_t *old, const struct header_use *use,
                           uint64_t at, uint64_t gap, uint64_t bytes)
{
    uint64_t behind = max_u64(at + gap, use->name + use->name_bytes);
    if (use->name >= at + gap && use->name_bytes == bytes &&
        memcmp(old + use->name, s->backing_file, bytes) == 0)
        return use->name;
    bool over = at + gap < use->name + use->name_bytes && use->name < at + gap + bytes;
    return over && behind <= s->cluster_bytes && bytes <= s->cluster_bytes - behind ? behind : at + gap;
}

/* Lays out the header and its extensions in CLUSTER, with a GAP in front of the backing file's name. */
static int lay_out_header(const struct qcow2 *s, uint8_t *cluster, const uint8_t *old,
                          const struct header_use *use, uint64_t gap)
{
    struct qcow2_header h = {0};
    put_fields(s, &h);
    uint64_t at = 0, room = s->cluster_bytes;
    size_t fixed = s->version < 3                 ? QCOW2_V2_HEADER_BYTES
                   : s->header_length < sizeof(h) ? s->header_length
                                                  : sizeof(h);
    memset(cluster, 0, s->cluster_bytes);
    int ret = append(cluster, &at, room, &h, fixed);
    if (ret == 0)
        ret = append(cluster, &at, room, s->header_unknown, s->header_unknown_bytes);
    for (unsigned i = 0; ret == 0 && i < s->nb_exts; i++) {
        struct qcow2_extension head = {be32_put(s->exts[i].type), be32_put(s->exts[i].length)};
        ret = append(cluster, &at, room, &head, sizeof(head));
        if (ret == 0)
            ret = append(cluster, &at, room, s->exts[i].data, s->exts[i].length);
        at = min_u64((at + 7) & ~7ull, room);
    }
    struct qcow2_extension end = {be32_put(QCOW2_EXT_END), be32_put(0)};
    if (ret == 0)
        ret = append(cluster, &at, room, &end, sizeof(end));
    if (ret == 0 && s->backing_file) {
        struct qcow2_header *head = (struct qcow2_header *)(void *)cluster;
        uint64_t bytes = strlen(s->backing_file);
        at = name_place(s, old, use, at, gap, bytes);
        if (at > room)
            return -ENOSPC;
        head->backing_file_offset = be64_put(at);
        head->backing_file_size = be32_put((uint32_t)bytes);
        ret = append(cluster, &at, room, s->backing_file, bytes);
    }
    return ret;
}

/* A power cut may tear what is written anywhere between sectors. So what the new header needs where the old
 * one needs nothing is added first, then the one sector decides in which both need the same place for
 * something else, then the rest goes. Only where they do so in several sectors it is one write of all. */
static int coroutine_fn co_write_header_in_steps(struct qcow2 *s, uint8_t *cluster, uint8_t *old,
                                                 uint8_t *both, const struct header_use *old_use)
{
    struct header_use new_use = header_use(s, cluster);
    uint64_t decides = 0;
    bool found = false;
    for (uint64_t i = 0; i < s->cluster_bytes; i++) {
        bool new = is_used(&new_use, i), differ = new &&is_used(old_use, i) && cluster[i] != old[i];
        if (differ && found && i / 512 != decides)
            return co_replace_header(s, 0, cluster, old, s->cluster_bytes);
        if (differ) {
            decides = i / 512;
            found = true;
        }
        both[i] = new && !differ ? cluster[i] : old[i];
    }
    int ret = 0;
    uint64_t at = decides * 512, from = decides ? 0 : 512;
    if (memcmp(both + from, old + from, s->cluster_bytes - from) != 0) {
        survivor_touch(s);
        ret = node_co_pwrite(s->node->file, from, both + from, s->cluster_bytes - from, 0);
        if (ret == 0)
            ret = node_co_flush(s->node->file);
    }
    if (ret == 0)
        ret = co_replace_header(s, at, cluster + at, both + at, 512);
    memcpy(both + at, cluster + at, 512);
    if (ret == 0 && memcmp(both, cluster, s->cluster_bytes) != 0) /* of no use to anybody any more */
        (void)node_co_pwrite(s->node->file, from, cluster + from, s->cluster_bytes - from, 0);
    return ret;
}

static int coroutine_fn co_write_header(struct qcow2 *s, uint64_t gap)
{
    uint8_t *cluster = qcow2_buffer_get(s), *old = qcow2_buffer_get(s), *both = qcow2_buffer_get(s);
    int ret = cluster && old && both ? node_co_pread(s->node->file, 0, old, s->cluster_bytes) : -ENOMEM;
    if (ret == 0) {
        struct header_use use = header_use(s, old);
        ret = lay_out_header(s, cluster, old, &use, gap);
        if (ret == 0)
            ret = co_write_header_in_steps(s, cluster, old, both, &use);
    }
    qcow2_buffer_put(s, cluster);
    qcow2_buffer_put(s, old);
    qcow2_buffer_put(s, both);
    return ret;
}

int coroutine_fn qcow2_co_write_header(struct qcow2 *s)
{
    return co_write_header(s, 0);
}

int coroutine_fn qcow2_co_make_ext_room(struct qcow2 *s, uint64_t bytes)
{
    return s->backing_file ? co_write_header(s, bytes) : 0;
}

int coroutine_fn qcow2_co_set_features(struct qcow2 *s, uint64_t incompatible, uint64_t autoclear)
{
    co_mutex_lock(&s->header_lock);
    uint64_t old_incompatible = s->incompatible, old_autoclear = s->autoclear;
    int ret = 0;
    if (s->version >= 3 && (incompatible != old_incompatible || autoclear != old_autoclear)) {
        s->incompatible = incompatible;
        s->autoclear = autoclear;
        ret = qcow2_co_write_header_sector(s);
        if (ret < 0) {
            s->incompatible = old_incompatible;
            s->autoclear = old_autoclear;
        }
    }
    co_mutex_unlock(&s->header_lock);
    return ret;
}

/* F4: a table behind the end of the file would read as zeroes, an image without data or clusters without
 * references, as soon as the file has grown over its place: so it does not grow. */
static int coroutine_fn co_refuse_lost_tables(struct qcow2 *s)
{
    if (s->check_only || (!s->lost_l2 && !s->lost_block))
        return 0;
    return qcow2_co_corrupt(s, "the %s at 0x%llx lies beyond the end of the file, and nothing is written",
                            s->lost_l2 ? "L2 table" : "refcount block",
                            (unsigned long long)(s->lost_l2 ? s->lost_l2 : s->lost_block));
}

int coroutine_fn qcow2_co_prepare_write(struct qcow2 *s)
{
    co_mutex_lock(&s->prepare_lock);
    int ret = 0;
    if (!__atomic_load_n(&s->prepared, __ATOMIC_RELAXED))
        ret = co_refuse_lost_tables(s);
    if (ret == 0 && !__atomic_load_n(&s->prepared, __ATOMIC_RELAXED)) {
        /* C13: what we don't know we don't keep up to date. C14: bitmaps are another matter. */
        uint64_t autoclear = s->autoclear & QCOW2_AUTOCLEAR_KNOWN;
        ret = qcow2_bitmaps_co_prepare_write(s, &autoclear);
        if (ret == 0)
            ret = qcow2_co_set_features(s, s->incompatible, autoclear);
        if (ret == 0)
            __atomic_store_n(&s->prepared, true, __ATOMIC_RELEASE);
    }
    co_mutex_unlock(&s->prepare_lock);
    return ret;
}

int coroutine_fn qcow2_co_corrupt(struct qcow2 *s, const char *format, ...)
{
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    /* Once is enough: a guest could fill a log with this. */
    if (!s->check_only && !__atomic_exchange_n(&s->said_corrupt, true, __ATOMIC_RELAXED))
        log_message("%s: %s: the image is damaged (check it with ringside-img check)", s->node->filename,
                    text);
    if (!s->read_only && !s->check_only) {
        __atomic_store_n(&s->io_error, -EIO, __ATOMIC_RELAXED);
        /* The bit is advice for the next one who opens it: an error here changes nothing. */
        (void)qcow2_co_set_features(s, s->incompatible | QCOW2_INCOMPAT_CORRUPT, s->autoclear);
    }
    return -EIO;
}
