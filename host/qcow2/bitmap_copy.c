/*
 * Bitmaps of one image put into another one as well (convert --bitmaps; checklist K).
 *
 *   1. data clusters, tables, and a directory of the old entries and the new ones, in clusters that nothing
 *      refers to yet
 *   2. their refcounts, and all of this durable
 *   3. if there are bitmaps, and the header's extension lies across two sectors: the autoclear bit off
 *   4. the extension names the new directory
 *   5. the autoclear bit on; the old directory is freed
 *
 * What always holds: until the header names the new directory the old one stands, and what is new are leaked
 * clusters. A power cut leaves the bitmaps that there were or all of the new ones; only where the header's
 * extension lies across two sectors it may leave none. Of the source a table and a cluster of bits are in
 * memory at a time, and no more is read than its file can hold.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/bitmap.h"

struct copy {
    struct qcow2 *from, *to;
    struct bitmap *added; /* what is in TO already of what is to go there */
    unsigned count;
    uint64_t claimed; /* bytes of the source's file that its tables and what they name lie in */
    uint8_t *directory;
    uint64_t host, bytes; /* of the directory */
};

static bool is_copied(const struct bitmap *bitmap)
{
    return !(bitmap->flags & QCOW2_BITMAP_IN_USE);
}

static uint64_t entry_bytes(const struct bitmap *bitmap)
{
    return (sizeof(struct qcow2_bitmap_header) + strlen(bitmap->name) + 7) & ~7ull;
}

/* How many bitmaps of S are copied, and how long a directory of them is. */
static unsigned count_copied(const struct qcow2 *s, uint64_t *bytes)
{
    const struct qcow2_bitmaps *b = s->bitmaps;
    unsigned count = 0;
    *bytes = 0;
    for (unsigned i = 0; b && i < b->count; i++) {
        if (!is_copied(&b->list[i]))
            continue;
        *bytes += entry_bytes(&b->list[i]);
        count++;
    }
    return count;
}

/* ---- what is refused ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A name that two have of what is copied and (TO: NULL for none) what is there. 0 with *NAME NULL: none. */
static int find_double(const struct qcow2 *from, const struct qcow2 *to, const char **name)
{
    uint64_t bytes;
    size_t count = 0, room = count_copied(from, &bytes) + (to ? qcow2_bitmaps_count(to) : 0);
    const char **names = malloc((room + 1) * sizeof(*names));
    *name = NULL;
    if (!names)
        return -ENOMEM;
    const struct qcow2_bitmaps *b = from->bitmaps;
    for (unsigned i = 0; b && i < b->count; i++) {
        if (is_copied(&b->list[i]))
            names[count++] = b->list[i].name;
    }
    b = to ? to->bitmaps : NULL;
    for (unsigned i = 0; b && i < b->count; i++)
        names[count++] = b->list[i].name;
    qsort(names, count, sizeof(*names), compare_names);
    for (size_t i = 1; i < count && !*name; i++) {
        if (strcmp(names[i - 1], names[i]) == 0)
            *name = names[i];
    }
    free(names);
    return 0;
}

int qcow2_bitmaps_can_go(struct node *source, struct error *err)
{
    const struct qcow2 *s = qcow2_state(source);
    const char *twice;
    uint64_t bytes;
    if (!s || s->version < 3)
        return error_set(err, -ENOTSUP, "only qcow2 images of compat 1.1 have bitmaps");
    if (!count_copied(s, &bytes))
        return 0;
    uint64_t disk = qcow2_bitmaps_disk(s);
    if (s->on_snapshot && (disk & ~511ull) != node_length(source))
        return error_set(err, -ENOTSUP,
                         "its bitmaps are of a disk of %llu bytes, not of the snapshot's %llu bytes",
                         (unsigned long long)disk, (unsigned long long)node_length(source));
    if (!disk)
        return error_set(err, -ENOTSUP, "a disk of no bytes has no bitmaps");
    for (unsigned i = 0; i < s->bitmaps->count; i++) {
        const struct bitmap *bitmap = &s->bitmaps->list[i];
        if (!is_copied(bitmap))
            continue;
        if (!bitmap->name[0])
            return error_set(err, -EINVAL, "bitmap number %u has no name", i);
        if (bitmap->nb_bytes > QCOW2_MAX_BITMAP_BYTES)
            return error_set(err, -EFBIG, "bitmap '%s' has %llu bytes, 512 MiB is the most", bitmap->name,
                             (unsigned long long)bitmap->nb_bytes);
    }
    if (find_double(s, NULL, &twice) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    return twice ? error_set(err, -EINVAL, "two bitmaps have the name '%s'", twice) : 0;
}

/* For an extension more, or of another length. */
static bool has_header_room(const struct qcow2 *s)
{
    uint64_t end = sizeof(struct qcow2_extension), bytes = s->header_length + end;
    for (unsigned i = 0; i < s->nb_exts; i++) {
        if (s->exts[i].type != QCOW2_EXT_BITMAPS)
            bytes += sizeof(struct qcow2_extension) + ((s->exts[i].length + 7ull) & ~7ull);
    }
    bytes += sizeof(struct qcow2_extension) + sizeof(struct qcow2_bitmaps_extension);
    return bytes + (s->backing_file ? strlen(s->backing_file) : 0) <= s->cluster_bytes;
}

int qcow2_bitmaps_fit(struct node *source, struct node *target, struct error *err)
{
    const struct qcow2 *from = qcow2_state(source), *to = qcow2_state(target);
    const char *twice;
    uint64_t bytes;
    if (!to || to->version < 3)
        return error_set(err, -ENOTSUP, "only qcow2 images of compat 1.1 can have bitmaps");
    unsigned count = from ? count_copied(from, &bytes) : 0;
    if (!count)
        return 0;
    uint64_t disk = qcow2_bitmaps_disk(from) & ~511ull;
    if (node_length(target) != disk)
        return error_set(err, -ENOTSUP, "has %llu bytes: bitmaps of a disk of %llu bytes do not fit",
                         (unsigned long long)node_length(target), (unsigned long long)disk);
    if (!has_header_room(to))
        return error_set(err, -ENOSPC, "the header's cluster has no room for bitmaps");
    if (count > QCOW2_MAX_BITMAPS - qcow2_bitmaps_count(to) ||
        bytes + (to->bitmaps ? to->bitmaps->directory_bytes : 0) > QCOW2_MAX_BITMAP_DIR_BYTES)
        return error_set(err, -EFBIG, "has %u bitmaps, and no room for another %u", qcow2_bitmaps_count(to),
                         count);
    if (find_double(from, to, &twice) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    return twice ? error_set(err, -EEXIST, "has a bitmap '%s' already", twice) : 0;
}

/* ---- data and tables ---- */

static int cannot_read(const struct copy *c, const struct bitmap *bitmap, int ret, struct error *err)
{
    return error_set(err, ret, "reading bitmap '%s' of %s: %s", bitmap->name, c->from->node->filename,
                     strerror(-ret));
}

static int cannot_write(const struct bitmap *bitmap, int ret, struct error *err)
{
    return error_set(err, ret, "writing bitmap '%s': %s", bitmap->name, strerror(-ret));
}

/* The source's table, if it can be followed, and no cluster need be named twice for it. */
static int coroutine_fn co_read_table(struct copy *c, const struct bitmap *bitmap, uint64_t **table,
                                      struct error *err)
{
    struct qcow2 *s = c->from;
    int ret =
        qcow2_co_read_table(s, bitmap->table_offset, bitmap->table_entries, bitmap->table_entries, table);
    if (ret < 0)
        return cannot_read(c, bitmap, ret, err);
    c->claimed += bitmap->table_entries * 8ull;
    for (uint32_t i = 0; i < bitmap->table_entries && ret == 0; i++) {
        if ((*table)[i] & QCOW2_BITMAP_OFFSET_MASK)
            c->claimed += s->cluster_bytes;
        if (!qcow2_bitmap_entry_is_right(s, (*table)[i]) || c->claimed > qcow2_cluster_up(s, s->file_bytes))
            ret = error_set(err, -EINVAL, "bitmap '%s' of %s: its table leads to where it cannot lie",
                            bitmap->name, s->node->filename);
    }
    if (ret < 0)
        free(*table);
    return ret;
}

/* BYTES of the bits that TABLE leads to, from AT on. */
static int coroutine_fn co_read_bits(struct qcow2 *s, const uint64_t *table, uint64_t at, uint8_t *bits,
                                     uint64_t bytes)
{
    int ret = 0;
    while (bytes && ret == 0) {
        uint64_t in_cluster = at & (s->cluster_bytes - 1), n = min_u64(bytes, s->cluster_bytes - in_cluster);
        uint64_t entry = table[at >> s->cluster_bits], host = entry & QCOW2_BITMAP_OFFSET_MASK;
        if (host)
            ret = node_co_pread(s->node->file, host + in_cluster, bits, n);
        else
            memset(bits, entry & QCOW2_BITMAP_ALL_ONES ? 0xff : 0, n);
        at += n;
        bits += n;
        bytes -= n;
    }
    return ret;
}

/* In TO: a disk whose size is not a multiple of 512 bytes has a part of a sector more, or less. */
static uint64_t bytes_there(const struct copy *c, const struct bitmap *bitmap)
{
    return (qcow2_bitmap_granules(c->to, bitmap->granularity_bits) + 7) / 8;
}

/* Cluster I of the bits that TABLE leads to goes to TO. *ENTRY: what leads to it there. */
static int coroutine_fn co_copy_cluster(struct copy *c, const struct bitmap *bitmap, const uint64_t *table,
                                        uint64_t i, uint8_t *bits, uint64_t *entry, struct error *err)
{
    struct qcow2 *to = c->to;
    uint64_t n = to->cluster_bytes, at = i * n, end = bytes_there(c, bitmap), used = min_u64(n, end - at);
    uint64_t known = at < bitmap->nb_bytes ? min_u64(used, bitmap->nb_bytes - at) : 0;
    unsigned last = qcow2_bitmap_granules(to, bitmap->granularity_bits) % 8;
    int ret = co_read_bits(c->from, table, at, bits, known);
    *entry = 0;
    if (ret < 0)
        return cannot_read(c, bitmap, ret, err);
    memset(bits + known, 0, n - known);
    if (qcow2_all_bytes(bits, used, 0xff)) {
        *entry = QCOW2_BITMAP_ALL_ONES;
        return 0;
    }
    if (last && at + used == end) /* none behind the end */
        bits[used - 1] &= (uint8_t)((1u << last) - 1);
    if (qcow2_all_bytes(bits, used, 0))
        return 0;
    ret = qcow2_co_alloc_contiguous(to, 1, entry, NULL);
    if (ret == 0)
        ret = node_co_pwrite(to->node->file, *entry, bits, n, 0);
    return ret < 0 ? cannot_write(bitmap, ret, err) : 0;
}

/* What a table leads to that nothing refers to. */
static void coroutine_fn co_give_back_table(struct qcow2 *s, const uint64_t *table, uint64_t entries)
{
    for (uint64_t i = 0; i < entries; i++) {
        if (table[i] & QCOW2_BITMAP_OFFSET_MASK)
            qcow2_co_unalloc(s, table[i] & QCOW2_BITMAP_OFFSET_MASK, 1);
    }
}

static int coroutine_fn co_copy_bitmap(struct copy *c, const struct bitmap *bitmap, struct bitmap *copy,
                                       struct error *err)
{
    struct qcow2 *to = c->to;
    uint64_t *from_table, host = 0, entries = qcow2_clusters_of(to, bytes_there(c, bitmap)), done = 0;
    int ret = co_read_table(c, bitmap, &from_table, err);
    if (ret < 0)
        return ret;
    uint64_t *table = calloc(entries, sizeof(*table));
    uint8_t *bits = qcow2_buffer_get(to);
    *copy = (struct bitmap){.name = strdup(bitmap->name),
                            .table_entries = (uint32_t)entries,
                            .flags = bitmap->flags & QCOW2_BITMAP_AUTO,
                            .granularity_bits = bitmap->granularity_bits,
                            .nb_bytes = bytes_there(c, bitmap)};
    if (!table || !bits || !copy->name) {
        ret = -ENOMEM;
        error_set(err, ret, "out of memory");
    }
    for (; done < entries && ret == 0; done++)
        ret = co_copy_cluster(c, bitmap, from_table, done, bits, &table[done], err);
    if (ret == 0) {
        ret = qcow2_co_alloc_contiguous(to, qcow2_clusters_of(to, entries * 8), &host, NULL);
        if (ret == 0)
            ret = qcow2_co_write_table(to, table, entries, host);
        if (ret < 0)
            cannot_write(bitmap, ret, err);
    }
    copy->table_offset = host;
    if (ret < 0) {
        free(copy->name);
        co_give_back_table(to, table, done);
        if (host)
            qcow2_co_unalloc(to, host, qcow2_clusters_of(to, entries * 8));
    }
    qcow2_buffer_put(to, bits);
    free(table);
    free(from_table);
    return ret;
}

static int coroutine_fn co_copy_all(struct copy *c, struct error *err)
{
    for (unsigned i = 0; i < c->from->bitmaps->count; i++) {
        const struct bitmap *bitmap = &c->from->bitmaps->list[i];
        if (!is_copied(bitmap))
            continue;
        int ret = co_copy_bitmap(c, bitmap, &c->added[c->count], err);
        if (ret < 0)
            return ret;
        c->count++;
    }
    return 0;
}

/* All of it. What a table that cannot be read leads to is leaked. */
static void coroutine_fn co_give_back(struct copy *c)
{
    struct qcow2 *s = c->to;
    for (unsigned i = 0; i < c->count; i++) {
        const struct bitmap *bitmap = &c->added[i];
        uint64_t *table;
        if (qcow2_co_read_table(s, bitmap->table_offset, bitmap->table_entries, bitmap->table_entries,
                                &table) == 0) {
            co_give_back_table(s, table, bitmap->table_entries);
            free(table);
        }
        qcow2_co_unalloc(s, bitmap->table_offset, qcow2_clusters_of(s, bitmap->table_entries * 8ull));
    }
    if (c->host)
        qcow2_co_unalloc(s, c->host, qcow2_clusters_of(s, c->bytes));
}

/* ---- the directory, and the header that names it ---- */

/* The old entries as they are in the file, and the new ones behind them. */
static int coroutine_fn co_write_directory(struct copy *c)
{
    struct qcow2 *s = c->to;
    uint64_t old = s->bitmaps ? s->bitmaps->directory_bytes : 0, room;
    int ret = 0;
    c->bytes = (old + 7) & ~7ull; /* the last entry's padding may be missing */
    for (unsigned i = 0; i < c->count; i++)
        c->bytes += entry_bytes(&c->added[i]);
    room = qcow2_clusters_of(s, c->bytes) << s->cluster_bits;
    c->directory = node_buffer(s->node->file, room);
    if (!c->directory)
        return -ENOMEM;
    memset(c->directory, 0, room);
    if (old)
        ret = node_co_pread(s->node->file, s->bitmaps->directory_offset, c->directory, old);
    uint64_t at = (old + 7) & ~7ull;
    for (unsigned i = 0; i < c->count && ret == 0; i++) {
        struct bitmap *bitmap = &c->added[i];
        size_t name = strlen(bitmap->name);
        struct qcow2_bitmap_header h = {.table_offset = be64_put(bitmap->table_offset),
                                        .table_size = be32_put(bitmap->table_entries),
                                        .flags = be32_put(bitmap->flags),
                                        .type = QCOW2_BITMAP_TYPE_DIRTY,
                                        .granularity_bits = bitmap->granularity_bits,
                                        .name_size = be16_put((uint16_t)name)};
        memcpy(c->directory + at, &h, sizeof(h));
        memcpy(c->directory + at + sizeof(h), bitmap->name, name);
        bitmap->entry_offset = at;
        at += entry_bytes(bitmap);
    }
    if (ret == 0)
        ret = qcow2_co_alloc_contiguous(s, qcow2_clusters_of(s, c->bytes), &c->host, NULL);
    if (ret == 0)
        ret = node_co_pwrite(s->node->file, c->host, c->directory, room, 0);
    return ret;
}

/* The header with H for its bitmaps extension; without effect if it fails and there is no I/O error. */
static int coroutine_fn co_set_extension(struct qcow2 *s, const struct qcow2_bitmaps_extension *h)
{
    co_mutex_lock(&s->header_lock);
    struct qcow2_ext *ext = qcow2_find_ext(s, QCOW2_EXT_BITMAPS);
    struct qcow2_ext old = ext ? *ext : (struct qcow2_ext){0};
    int ret = ext ? 0 : qcow2_co_make_ext_room(s, sizeof(struct qcow2_extension) + sizeof(*h));
    if (ext)
        ext->data = NULL; /* kept in OLD */
    if (ret == 0)
        ret = qcow2_set_ext(s, QCOW2_EXT_BITMAPS, h, sizeof(*h));
    if (ret == 0)
        ret = qcow2_co_write_header(s);
    if (ret == 0) {
        free(old.data);
    } else if (ext) { /* where it was: only one that is new moves the array */
        free(ext->data);
        *ext = old;
    } else {
        (void)qcow2_set_ext(s, QCOW2_EXT_BITMAPS, NULL, 0);
    }
    co_mutex_unlock(&s->header_lock);
    return ret;
}

/* Can the extension change while the autoclear bit says that it is right? */
static bool coroutine_fn co_is_in_one_sector(struct qcow2 *s, const struct qcow2_ext *ext)
{
    uint64_t at = ext && ext->length == sizeof(struct qcow2_bitmaps_extension)
                      ? qcow2_bitmaps_co_find_extension(s, ext)
                      : 0;
    return at && at / 512 == (at + ext->length - 1) / 512;
}

/* The bit comes last, after all that it speaks of is durable. */
static int coroutine_fn co_switch_directory(struct copy *c)
{
    struct qcow2 *s = c->to;
    const struct qcow2_ext *ext = qcow2_find_ext(s, QCOW2_EXT_BITMAPS);
    struct qcow2_bitmaps_extension old, new = {.nb_bitmaps = be32_put(qcow2_bitmaps_count(s) + c->count),
                                               .directory_size = be64_put(c->bytes),
                                               .directory_offset = be64_put(c->host)};
    uint64_t autoclear = s->autoclear;
    int ret = 0;
    if (s->bitmaps)
        memcpy(&old, ext->data, sizeof(old));
    if ((autoclear & QCOW2_AUTOCLEAR_BITMAPS) && !co_is_in_one_sector(s, ext))
        ret = qcow2_co_set_features(s, s->incompatible, autoclear & ~QCOW2_AUTOCLEAR_BITMAPS);
    if (ret == 0)
        ret = co_set_extension(s, &new);
    bool named = ret == 0;
    if (ret == 0)
        ret = qcow2_co_set_features(s, s->incompatible, autoclear | QCOW2_AUTOCLEAR_BITMAPS);
    if (ret < 0 && s->bitmaps && qcow2_io_error(s) == 0) {
        /* Back to the old ones; if that fails as well, nothing is written any more. */
        int back = named ? co_set_extension(s, &old) : 0;
        if (back == 0)
            back = qcow2_co_set_features(s, s->incompatible, autoclear);
        if (back < 0)
            __atomic_store_n(&s->io_error, ret, __ATOMIC_RELAXED);
    }
    return ret;
}

/* They are the image's now. Memory for this was there before the header was written. */
static void coroutine_fn co_take_over(struct copy *c)
{
    struct qcow2 *s = c->to;
    struct qcow2_bitmaps *b = s->bitmaps;
    for (unsigned i = 0; i < b->count; i++)
        b->list[i].entry_offset = b->list[i].entry_offset - b->directory_offset + c->host;
    for (unsigned i = 0; i < c->count; i++) {
        c->added[i].entry_offset += c->host;
        b->list[b->count++] = c->added[i];
    }
    qcow2_lock(s);
    if (b->directory_bytes) {
        qcow2_overlap_remove(s, b->directory_offset, b->directory_bytes);
        qcow2_free_later(s, b->directory_offset, b->directory_bytes, true);
    }
    (void)qcow2_overlap_add(s, c->host, c->bytes, QCOW2_OL_BITMAP_DIRECTORY);
    qcow2_unlock(s);
    b->directory_offset = c->host;
    b->directory_bytes = c->bytes;
    c->count = 0;
    /* The next writer has those that are to record it read into memory, and marked. */
    __atomic_store_n(&s->prepared, false, __ATOMIC_RELEASE);
}

static int coroutine_fn co_copy(struct copy *c, struct error *err)
{
    struct qcow2 *s = c->to;
    uint64_t bytes;
    unsigned count = count_copied(c->from, &bytes), old = qcow2_bitmaps_count(s);
    struct qcow2_bitmaps *fresh = s->bitmaps ? NULL : calloc(1, sizeof(*fresh));
    struct bitmap *list = calloc((size_t)old + count + 1, sizeof(*list));
    c->added = calloc((size_t)count + 1, sizeof(*c->added));
    if (!c->added || !list || (!s->bitmaps && !fresh)) {
        free(fresh);
        free(list);
        return error_set(err, -ENOMEM, "out of memory");
    }
    int ret = co_copy_all(c, err);
    if (ret == 0) {
        ret = co_write_directory(c);
        if (ret == 0) /* all is counted, and durable, before the header names it */
            ret = qcow2_co_writeback_keep(s);
        if (ret == 0)
            ret = co_switch_directory(c);
        if (ret < 0)
            error_set(err, ret, "writing the bitmap directory: %s", strerror(-ret));
    }
    if (ret < 0) {
        free(fresh);
        free(list);
        if (qcow2_io_error(s) == 0)
            co_give_back(c);
        return ret;
    }
    if (fresh)
        s->bitmaps = fresh;
    else
        memcpy(list, s->bitmaps->list, old * sizeof(*list));
    free(s->bitmaps->list);
    s->bitmaps->list = list;
    co_take_over(c);
    return 0;
}

int coroutine_fn qcow2_co_copy_bitmaps(struct node *source, struct node *target, struct error *err)
{
    struct copy c = {.from = qcow2_state(source), .to = qcow2_state(target)};
    uint64_t bytes;
    int ret = qcow2_bitmaps_can_go(source, err);
    if (ret == 0)
        ret = qcow2_bitmaps_fit(source, target, err);
    if (ret < 0 || !count_copied(c.from, &bytes))
        return ret;
    if (c.to->read_only)
        return error_set(err, -EPERM, "is open read-only");
    ret = __atomic_load_n(&c.to->prepared, __ATOMIC_ACQUIRE) ? 0 : qcow2_co_prepare_write(c.to);
    if (ret < 0)
        return error_set(err, ret, "%s", strerror(-ret));
    qcow2_co_quiesce(c.to);
    ret = qcow2_io_error(c.to);
    if (ret == 0)
        ret = co_copy(&c, err);
    else
        error_set(err, ret, "%s", strerror(-ret));
    qcow2_co_unquiesce(c.to);
    for (unsigned i = 0; i < c.count; i++)
        free(c.added[i].name);
    free(c.added);
    free(c.directory);
    return ret;
}
