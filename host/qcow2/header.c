/*
 * The image header and its extensions (checklist B, C, D): read and checked field by field, and kept.
 *
 * What always holds: no number from the file is used before it was bounded; a refusal names field, value and
 * byte offset; what is not known, extensions and additional fields alike, is kept for header_write.c.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/qcow2_state.h"

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
