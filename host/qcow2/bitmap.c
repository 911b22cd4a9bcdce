/*
 * Persistent dirty bitmaps (checklist K).
 *
 * Before the first write every bitmap that has to follow the disk (auto, consistent) is read into memory and
 * marked in_use in the file; writes set bits in memory; a clean close writes data and tables, and takes the
 * mark away last. What cannot be followed (too large for memory, unreadable) stays marked: so the next one
 * knows that it is not to be believed.
 *
 * What always holds: while the autoclear bit is set and a bitmap is not in_use, it is right. Bitmaps that
 * nobody asks us to follow, and those that somebody else left in_use, are kept as they are.
 */
#include "host/qcow2/bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BITMAPS_MEMORY_MAX (32ull << 20) /* bits of all bitmaps together, in bytes */

static uint64_t bytes_needed(const struct qcow2 *s, unsigned granularity_bits)
{
    return (qcow2_bitmap_granules(s, granularity_bits) + 7) / 8;
}

/* One directory entry at AT, with LEFT bytes to the directory's end; *STEP is its length. K4 */
static int parse_entry(const struct qcow2 *s, struct bitmap *bitmap, const uint8_t *at, uint64_t left,
                       uint64_t *step, struct error *err)
{
    struct qcow2_bitmap_header h;
    unsigned long long where = bitmap->entry_offset;
    if (left < sizeof(h))
        return error_set(err, -EINVAL, "bitmap directory entry at byte %llu goes beyond the directory",
                         where);
    memcpy(&h, at, sizeof(h));
    uint32_t extra = be32_get(h.extra_data_size), name = be16_get(h.name_size), flags = be32_get(h.flags);
    uint64_t bytes = sizeof(h) + (uint64_t)extra + name;
    if (bytes > left)
        return error_set(err, -EINVAL, "bitmap directory entry at byte %llu goes beyond the directory",
                         where);
    bitmap->table_offset = be64_get(h.table_offset);
    bitmap->table_entries = be32_get(h.table_size);
    bitmap->flags = flags;
    bitmap->granularity_bits = h.granularity_bits;
    const struct {
        bool bad;
        const char *field;
        unsigned long long value;
    } rules[] = {
        {name == 0 || name > 1023, "name_size", name},
        {h.granularity_bits < 9 || h.granularity_bits > 31, "granularity_bits", h.granularity_bits},
        {flags & ~(QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA_DATA_COMPATIBLE), "flags",
         flags},
        {h.type != QCOW2_BITMAP_TYPE_DIRTY, "type", h.type},
        {extra && !(flags & QCOW2_BITMAP_EXTRA_DATA_COMPATIBLE), "extra_data_size", extra},
        {bitmap->table_offset & (s->cluster_bytes - 1), "bitmap_table_offset", bitmap->table_offset},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (rules[i].bad)
            return error_set(err, -EINVAL,
                             "bitmap directory entry at byte %llu: %s is %llu, which is not possible", where,
                             rules[i].field, rules[i].value);
    }
    bitmap->nb_bytes = bytes_needed(s, h.granularity_bits);
    uint64_t needed = (bitmap->nb_bytes + s->cluster_bytes - 1) >> s->cluster_bits;
    uint64_t table_bytes = (uint64_t)bitmap->table_entries * 8;
    if (bitmap->table_entries != needed && !(flags & QCOW2_BITMAP_IN_USE))
        return error_set(err, -EINVAL,
                         "bitmap directory entry at byte %llu: bitmap_table_size is %u, %llu are needed",
                         where, bitmap->table_entries, (unsigned long long)needed);
    if (bitmap->table_offset > s->file_bytes ||
        table_bytes > qcow2_cluster_up(s, s->file_bytes) - bitmap->table_offset)
        return error_set(
            err, -EINVAL,
            "bitmap directory entry at byte %llu: bitmap_table_offset is %llu, beyond the file's end", where,
            (unsigned long long)bitmap->table_offset);
    bitmap->name = strndup((const char *)at + sizeof(h) + extra, name);
    *step = (bytes + 7) & ~7ull;
    return bitmap->name ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int coroutine_fn co_read_directory(struct qcow2 *s, struct qcow2_bitmaps *b, unsigned count,
                                          struct error *err)
{
    uint8_t *directory = node_buffer(s->node->file, b->directory_bytes);
    b->list = calloc(count, sizeof(*b->list));
    int ret = directory && b->list
                  ? node_co_pread(s->node->file, b->directory_offset, directory, b->directory_bytes)
                  : -ENOMEM;
    if (ret < 0)
        error_set(err, ret, "reading the bitmap directory: %s", strerror(-ret));
    uint64_t at = 0, step = 0;
    while (ret == 0 && b->count < count) {
        struct bitmap *bitmap = &b->list[b->count];
        bitmap->entry_offset = b->directory_offset + at;
        ret = parse_entry(s, bitmap, directory + at, b->directory_bytes - at, &step, err);
        if (ret == 0) {
            at += min_u64(step, b->directory_bytes - at);
            b->count++;
        }
    }
    if (ret == 0 && at != b->directory_bytes)
        ret = error_set(err, -EINVAL, "bitmap_directory_size is %llu, but its %u entries have %llu bytes",
                        (unsigned long long)b->directory_bytes, count, (unsigned long long)at);
    free(directory);
    return ret;
}

static int coroutine_fn co_open(struct qcow2 *s, const struct qcow2_ext *ext, struct error *err)
{
    struct qcow2_bitmaps_extension h;
    if (ext->length != sizeof(h))
        return error_set(err, -EINVAL, "header extension bitmaps has length %u, 24 is right", ext->length);
    memcpy(&h, ext->data, sizeof(h));
    uint32_t count = be32_get(h.nb_bitmaps);
    uint64_t bytes = be64_get(h.directory_size), offset = be64_get(h.directory_offset);
    const struct {
        bool bad;
        const char *field;
        unsigned long long value;
    } rules[] = {
        {be32_get(h.reserved) != 0, "reserved", be32_get(h.reserved)},
        {count == 0 || count > QCOW2_MAX_BITMAPS, "nb_bitmaps", count},
        {bytes == 0 || bytes > QCOW2_MAX_BITMAP_DIR_BYTES, "bitmap_directory_size", bytes},
        {count > bytes / sizeof(struct qcow2_bitmap_header), "nb_bitmaps", count},
        {offset & (s->cluster_bytes - 1), "bitmap_directory_offset", offset},
        {offset < s->cluster_bytes || offset > s->file_bytes || bytes > s->file_bytes - offset,
         "bitmap_directory_offset", offset},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (rules[i].bad)
            return error_set(err, -EINVAL, "header extension bitmaps: %s is %llu, which is not possible",
                             rules[i].field, rules[i].value);
    }
    struct qcow2_bitmaps *b = calloc(1, sizeof(*b));
    if (!b)
        return error_set(err, -ENOMEM, "out of memory");
    s->bitmaps = b;
    b->directory_offset = offset;
    b->directory_bytes = bytes;
    int ret = co_read_directory(s, b, count, err);
    if (ret == 0 && qcow2_overlap_add(s, offset, bytes, QCOW2_OL_BITMAP_DIRECTORY) < 0)
        ret = error_set(err, -ENOMEM, "out of memory");
    return ret;
}

int coroutine_fn qcow2_bitmaps_co_open(struct qcow2 *s, struct error *err)
{
    const struct qcow2_ext *ext = qcow2_find_ext(s, QCOW2_EXT_BITMAPS);
    /* K2: without the autoclear bit they are stale, and none of our business. */
    if (!ext || !(s->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    int ret = co_open(s, ext, err);
    if (ret < 0 && s->check_only) {
        /* What check is there to report. */
        qcow2_bitmaps_free(s);
        s->bitmaps_error = ret;
        return 0;
    }
    return ret;
}

void qcow2_bitmaps_free(struct qcow2 *s)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    if (!b)
        return;
    for (unsigned i = 0; i < b->count; i++) {
        free(b->list[i].name);
        free(b->list[i].bits);
    }
    free(b->list);
    free(b);
    s->bitmaps = NULL;
}

bool qcow2_bitmaps_directory(const struct qcow2 *s, uint64_t *offset, uint64_t *bytes)
{
    if (!s->bitmaps)
        return false;
    *offset = s->bitmaps->directory_offset;
    *bytes = s->bitmaps->directory_bytes;
    return true;
}

unsigned qcow2_bitmaps_count(const struct qcow2 *s)
{
    return s->bitmaps ? s->bitmaps->count : 0;
}

int coroutine_fn qcow2_co_bitmaps(struct node *node, struct qcow2_bitmap_info **list, size_t *count,
                                  struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    *list = NULL;
    *count = 0;
    if (!s)
        return error_set(err, -EINVAL, "not a qcow2 image");
    unsigned n = qcow2_bitmaps_count(s);
    *list = calloc(n + 1, sizeof(**list));
    if (!*list)
        return error_set(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < n; i++) {
        const struct bitmap *bitmap = &s->bitmaps->list[i];
        (*list)[i] = (struct qcow2_bitmap_info){.name = bitmap->name,
                                                .granularity = 1ull << bitmap->granularity_bits,
                                                .in_use = bitmap->flags & QCOW2_BITMAP_IN_USE,
                                                .auto_load = bitmap->flags & QCOW2_BITMAP_AUTO};
    }
    *count = n;
    return 0;
}

/* ---- following the disk ---- */

bool qcow2_bitmap_entry_is_right(const struct qcow2 *s, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_BITMAP_OFFSET_MASK;
    return !(entry & QCOW2_BITMAP_RESERVED_MASK) && !(offset & (s->cluster_bytes - 1)) &&
           !(offset && (entry & QCOW2_BITMAP_ALL_ONES)) && offset < s->file_bytes;
}

/* A bitmap's bits, from its table. */
static int coroutine_fn co_load(struct qcow2 *s, struct bitmap *bitmap)
{
    uint64_t *table;
    int ret =
        qcow2_co_read_table(s, bitmap->table_offset, bitmap->table_entries, bitmap->table_entries, &table);
    if (ret < 0)
        return ret;
    uint64_t room = (uint64_t)bitmap->table_entries << s->cluster_bits;
    uint8_t *bits = calloc(1, room ? room : 1);
    ret = bits ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < bitmap->table_entries && ret == 0; i++) {
        uint64_t offset = table[i] & QCOW2_BITMAP_OFFSET_MASK, n = s->cluster_bytes;
        if (!qcow2_bitmap_entry_is_right(s, table[i]))
            ret = -EIO;
        else if (offset)
            ret = node_co_pread(s->node->file, offset, bits + i * n, n);
        else if (table[i] & QCOW2_BITMAP_ALL_ONES)
            memset(bits + i * n, 0xff, n);
    }
    free(table);
    if (ret < 0) {
        free(bits);
        return ret;
    }
    free(bitmap->bits); /* of an earlier try to begin writing, which failed after this */
    bitmap->bits = bits;
    return 0;
}

/* Nothing is written where other metadata lies, whatever the directory and the tables say (C7). */
static int coroutine_fn co_own_place(struct qcow2 *s, const struct bitmap *bitmap, uint64_t host,
                                     uint64_t bytes, enum qcow2_overlap own)
{
    uint64_t at = 0;
    qcow2_lock(s);
    enum qcow2_overlap hit = qcow2_overlap_check(s, host, bytes, own, &at);
    qcow2_unlock(s);
    return hit == QCOW2_OL_NONE
               ? 0
               : qcow2_co_corrupt(s, "a write of bitmap '%s' at 0x%llx would hit %s at 0x%llx", bitmap->name,
                                  (unsigned long long)host, qcow2_overlap_name(hit), (unsigned long long)at);
}

/* The flags of a directory entry, in the file. */
static int coroutine_fn co_write_flags(struct qcow2 *s, struct bitmap *bitmap, uint32_t flags)
{
    be32 word = be32_put(flags);
    uint64_t at = bitmap->entry_offset + offsetof(struct qcow2_bitmap_header, flags);
    int ret = co_own_place(s, bitmap, at, sizeof(word), QCOW2_OL_BITMAP_DIRECTORY);
    if (ret == 0)
        ret = node_co_pwrite(s->node->file, at, &word, sizeof(word), 0);
    if (ret == 0)
        bitmap->flags = flags;
    return ret;
}

int coroutine_fn qcow2_bitmaps_co_prepare_write(struct qcow2 *s, uint64_t *autoclear)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    uint64_t memory = 0;
    bool any = false;
    if (!b) {
        *autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
        return 0;
    }
    for (unsigned i = 0; i < b->count; i++) {
        struct bitmap *bitmap = &b->list[i];
        uint64_t room = (uint64_t)bitmap->table_entries << s->cluster_bits;
        if (bitmap->bits && (bitmap->flags & QCOW2_BITMAP_IN_USE)) {
            memory += room; /* an earlier try, which failed after this: nothing was written since */
            any = true;
            continue;
        }
        if (!(bitmap->flags & QCOW2_BITMAP_AUTO) || (bitmap->flags & QCOW2_BITMAP_IN_USE))
            continue;
        if (room <= BITMAPS_MEMORY_MAX - memory && co_load(s, bitmap) == 0)
            memory += room;
        int ret = co_write_flags(s, bitmap, bitmap->flags | QCOW2_BITMAP_IN_USE);
        if (ret < 0)
            return ret;
        any = true;
    }
    if (memory)
        __atomic_store_n(&b->followed, true, __ATOMIC_RELEASE);
    return any ? node_co_flush(s->node->file) : 0;
}

void qcow2_bitmaps_mark(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    if (!b || !bytes || !__atomic_load_n(&b->followed, __ATOMIC_ACQUIRE))
        return;
    for (unsigned i = 0; i < b->count; i++) {
        struct bitmap *bitmap = &b->list[i];
        if (!bitmap->bits || bitmap->disabled)
            continue;
        uint64_t first = offset >> bitmap->granularity_bits,
                 last = (offset + bytes - 1) >> bitmap->granularity_bits;
        for (uint64_t bit = first; bit <= last && bit / 8 < bitmap->nb_bytes; bit++)
            __atomic_fetch_or(&bitmap->bits[bit / 8], (uint8_t)(1u << bit % 8), __ATOMIC_RELAXED);
    }
}

/* ---- another size ---- */

static uint32_t entries_needed(const struct qcow2 *s, const struct bitmap *bitmap)
{
    return (uint32_t)((bitmap->nb_bytes + s->cluster_bytes - 1) >> s->cluster_bits);
}

int coroutine_fn qcow2_bitmaps_co_prepare_resize(struct qcow2 *s, uint64_t size, struct error *err)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    uint64_t memory = 0;
    for (unsigned i = 0; b && i < b->count; i++) {
        struct bitmap *bitmap = &b->list[i];
        if ((bitmap->flags & QCOW2_BITMAP_IN_USE) && !bitmap->bits)
            return error_set(err, -ENOTSUP,
                             "bitmap '%s' is inconsistent: the image cannot be resized before it is removed",
                             bitmap->name);
        memory += (max_u64(size, s->size) >> bitmap->granularity_bits) / 8 + s->cluster_bytes;
    }
    if (memory > BITMAPS_MEMORY_MAX || (b && !size))
        return error_set(err, -ENOTSUP, "the bitmaps cannot follow to a size of %llu bytes",
                         (unsigned long long)size);
    bool any = false;
    for (unsigned i = 0; b && i < b->count; i++) {
        struct bitmap *bitmap = &b->list[i];
        if (bitmap->bits)
            continue;
        int ret = co_load(s, bitmap);
        bitmap->disabled = true;
        if (ret == 0)
            ret = co_write_flags(s, bitmap, bitmap->flags | QCOW2_BITMAP_IN_USE);
        if (ret < 0)
            return error_set(err, ret, "bitmap '%s': %s", bitmap->name, strerror(-ret));
        __atomic_store_n(&b->followed, true, __ATOMIC_RELEASE);
        any = true;
    }
    int ret = any ? node_co_flush(s->node->file) : 0;
    return ret < 0 ? error_set(err, ret, "marking bitmaps: %s", strerror(-ret)) : 0;
}

void qcow2_bitmaps_resized(struct qcow2 *s)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    for (unsigned i = 0; b && i < b->count; i++) {
        struct bitmap *bitmap = &b->list[i];
        uint64_t old = bitmap->nb_bytes,
                 granules = (s->size + (1ull << bitmap->granularity_bits) - 1) >> bitmap->granularity_bits;
        bitmap->nb_bytes = bytes_needed(s, bitmap->granularity_bits);
        if (!bitmap->bits)
            continue;
        uint8_t *bits = calloc(1, qcow2_cluster_up(s, bitmap->nb_bytes) + 1);
        if (bits) {
            memcpy(bits, bitmap->bits, min_u64(old, bitmap->nb_bytes));
            if (granules % 8) /* none behind the end */
                bits[granules / 8] &= (uint8_t)((1u << granules % 8) - 1);
        } /* else it stays marked in use: inconsistent */
        free(bitmap->bits);
        bitmap->bits = bits;
    }
}

/* A directory in another place, with tables of the sizes that are needed now, all of it still marked in use:
 * what the new tables name is what the old ones named. The two change places with the 8 bytes of the
 * directory's offset in the header. */
struct moving {
    uint8_t *directory;
    uint64_t host, clusters; /* of the directory */
    struct {
        uint64_t host;
        uint32_t entries;
    } * tables;
};

static int coroutine_fn co_new_table(struct qcow2 *s, const struct bitmap *bitmap, uint32_t entries,
                                     uint64_t *host)
{
    uint64_t *table;
    int ret = qcow2_co_read_table(s, bitmap->table_offset, min_u64(entries, bitmap->table_entries),
                                  max_u64(entries, 1), &table);
    if (ret < 0)
        return ret;
    ret = qcow2_co_alloc_contiguous(s, qcow2_clusters_of(s, entries * 8ull), host, NULL);
    be64 *out = qcow2_buffer_get(s);
    if (ret == 0 && !out)
        ret = -ENOMEM;
    uint64_t per = s->cluster_bytes / 8;
    for (uint64_t at = 0; at < entries && ret == 0; at += per) {
        for (uint64_t i = 0; i < per; i++)
            out[i] = be64_put(at + i < entries ? table[at + i] : 0);
        ret = node_co_pwrite(s->node->file, *host + at * 8, out, s->cluster_bytes, 0);
    }
    qcow2_buffer_put(s, out);
    free(table);
    return ret;
}

static int coroutine_fn co_write_moved(struct qcow2 *s, struct moving *m)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    int ret = node_co_pread(s->node->file, b->directory_offset, m->directory, b->directory_bytes);
    for (unsigned i = 0; i < b->count && ret == 0; i++) {
        struct bitmap *bitmap = &b->list[i];
        m->tables[i].entries = entries_needed(s, bitmap);
        if (m->tables[i].entries == bitmap->table_entries || !bitmap->bits)
            continue;
        ret = co_new_table(s, bitmap, m->tables[i].entries, &m->tables[i].host);
        struct qcow2_bitmap_header *h = (void *)(m->directory + (bitmap->entry_offset - b->directory_offset));
        h->table_offset = be64_put(m->tables[i].host);
        h->table_size = be32_put(m->tables[i].entries);
    }
    if (ret == 0)
        ret = qcow2_co_alloc_contiguous(s, m->clusters, &m->host, NULL);
    if (ret == 0)
        ret = node_co_pwrite(s->node->file, m->host, m->directory, m->clusters << s->cluster_bits, 0);
    /* Counted and durable before the header names it. */
    return ret == 0 ? qcow2_co_writeback_keep(s) : ret;
}

uint64_t coroutine_fn qcow2_bitmaps_co_find_extension(struct qcow2 *s, const struct qcow2_ext *ext)
{
    uint64_t at = s->header_length;
    uint8_t there[sizeof(struct qcow2_bitmaps_extension)];
    for (const struct qcow2_ext *e = s->exts; e != ext; e++)
        at += sizeof(struct qcow2_extension) + ((e->length + 7ull) & ~7ull);
    at += sizeof(struct qcow2_extension);
    return node_co_pread(s->node->file, at, there, sizeof(there)) == 0 &&
                   memcmp(there, ext->data, sizeof(there)) == 0
               ? at
               : 0;
}

static int coroutine_fn co_write_offset(struct qcow2 *s, uint64_t at, be64 offset)
{
    int ret = node_co_pwrite(s->node->file, at, &offset, sizeof(offset), 0);
    return ret == 0 ? node_co_flush(s->node->file) : ret;
}

/* Aligned to 8 bytes, so in one sector. A write that fails leaves it open what is there: then the old one is
 * put back, and if that fails as well nothing is written any more. */
static int coroutine_fn co_name_directory(struct qcow2 *s, uint64_t host)
{
    co_mutex_lock(&s->header_lock);
    struct qcow2_ext *ext = qcow2_find_ext(s, QCOW2_EXT_BITMAPS);
    uint64_t at = ext ? qcow2_bitmaps_co_find_extension(s, ext) : 0;
    int ret = at ? 0 : -EIO;
    if (ret == 0) {
        struct qcow2_bitmaps_extension *h = (void *)ext->data;
        be64 old = h->directory_offset, new = be64_put(host);
        at += offsetof(struct qcow2_bitmaps_extension, directory_offset);
        ret = co_write_offset(s, at, new);
        if (ret == 0)
            h->directory_offset = new;
        else if (co_write_offset(s, at, old) < 0)
            __atomic_store_n(&s->io_error, ret, __ATOMIC_RELAXED);
    }
    co_mutex_unlock(&s->header_lock);
    return ret;
}

/* Frees what the old tables named and the new ones do not, and the tables. */
static int coroutine_fn co_free_table(struct qcow2 *s, const struct bitmap *bitmap, uint32_t entries)
{
    uint64_t *table;
    int ret =
        qcow2_co_read_table(s, bitmap->table_offset, bitmap->table_entries, bitmap->table_entries, &table);
    qcow2_lock(s);
    for (uint32_t i = entries; ret == 0 && i < bitmap->table_entries; i++) {
        if (table[i] & QCOW2_BITMAP_OFFSET_MASK)
            qcow2_free_later(s, table[i] & QCOW2_BITMAP_OFFSET_MASK, s->cluster_bytes, true);
    }
    qcow2_free_later(s, bitmap->table_offset, (uint64_t)bitmap->table_entries * 8, true);
    qcow2_unlock(s);
    if (ret == 0)
        free(table);
    return ret;
}

static int coroutine_fn co_move_directory(struct qcow2 *s)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    struct moving m = {.clusters = (b->directory_bytes + s->cluster_bytes - 1) >> s->cluster_bits};
    m.directory = node_buffer(s->node->file, m.clusters << s->cluster_bits);
    m.tables = calloc(b->count, sizeof(*m.tables));
    int ret = m.directory && m.tables ? 0 : -ENOMEM;
    if (ret == 0) {
        memset(m.directory, 0, m.clusters << s->cluster_bits);
        ret = co_write_moved(s, &m);
    }
    if (ret == 0)
        ret = co_name_directory(s, m.host);
    for (unsigned i = 0; i < b->count && m.tables; i++) {
        struct bitmap *bitmap = &b->list[i];
        if (ret == 0)
            bitmap->entry_offset = bitmap->entry_offset - b->directory_offset + m.host;
        if (!m.tables[i].host)
            continue;
        if (ret == 0) {
            (void)co_free_table(s, bitmap, m.tables[i].entries); /* an error leaves leaks */
            bitmap->table_offset = m.tables[i].host;
            bitmap->table_entries = m.tables[i].entries;
        } else if (qcow2_io_error(s) == 0) {
            qcow2_co_unalloc(s, m.tables[i].host, qcow2_clusters_of(s, m.tables[i].entries * 8ull));
        }
    }
    if (ret == 0) {
        qcow2_lock(s);
        qcow2_overlap_remove(s, b->directory_offset, b->directory_bytes);
        (void)qcow2_overlap_add(s, m.host, b->directory_bytes, QCOW2_OL_BITMAP_DIRECTORY);
        qcow2_free_later(s, b->directory_offset, b->directory_bytes, true);
        qcow2_unlock(s);
        b->directory_offset = m.host;
    } else if (m.host && qcow2_io_error(s) == 0) {
        qcow2_co_unalloc(s, m.host, m.clusters);
    }
    free(m.tables);
    free(m.directory);
    return ret;
}

/* ---- storing ---- */

/* Data clusters first, then, when they are counted durably, the table. */
static int coroutine_fn co_store(struct qcow2 *s, struct bitmap *bitmap)
{
    uint64_t *table, n = s->cluster_bytes, per = n / 8;
    int ret =
        qcow2_co_read_table(s, bitmap->table_offset, bitmap->table_entries, bitmap->table_entries, &table);
    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < bitmap->table_entries && ret == 0; i++) {
        uint64_t old = table[i] & QCOW2_BITMAP_OFFSET_MASK, host = old;
        const uint8_t *bits = bitmap->bits + i * n;
        uint64_t used = min_u64(n, bitmap->nb_bytes - i * n);
        bool zero = qcow2_all_bytes(bits, used, 0), ones = qcow2_all_bytes(bits, used, 0xff);
        if (zero || ones) {
            table[i] = ones ? QCOW2_BITMAP_ALL_ONES : 0;
            if (old) {
                qcow2_lock(s);
                qcow2_free_later(s, old, n, true);
                qcow2_unlock(s);
            }
            continue;
        }
        ret = host ? co_own_place(s, bitmap, host, n, QCOW2_OL_NONE)
                   : qcow2_co_alloc_contiguous(s, 1, &host, NULL);
        if (ret == 0)
            ret = node_co_pwrite(s->node->file, host, bits, n, 0);
        table[i] = host;
    }
    /* Counts are durable before the table names what they count; what it named before is freed by a later
     * round. */
    if (ret == 0)
        ret = qcow2_co_writeback_keep(s);
    if (ret == 0)
        ret = co_own_place(s, bitmap, bitmap->table_offset, bitmap->table_entries * 8ull, QCOW2_OL_NONE);
    be64 *out = qcow2_buffer_get(s);
    if (ret == 0 && !out)
        ret = -ENOMEM;
    for (uint64_t at = 0; at < bitmap->table_entries && ret == 0; at += per) {
        uint64_t count = min_u64(per, bitmap->table_entries - at);
        for (uint64_t i = 0; i < count; i++)
            out[i] = be64_put(table[at + i]);
        ret = node_co_pwrite(s->node->file, bitmap->table_offset + at * 8, out, count * 8, 0);
    }
    qcow2_buffer_put(s, out);
    free(table);
    return ret;
}

int coroutine_fn qcow2_bitmaps_co_close(struct qcow2 *s)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    int ret = 0;
    if (!b || !b->followed)
        return 0;
    bool resized = false;
    for (unsigned i = 0; i < b->count; i++)
        resized |= b->list[i].bits && b->list[i].table_entries != entries_needed(s, &b->list[i]);
    if (resized)
        ret = co_move_directory(s);
    for (unsigned i = 0; i < b->count && ret == 0; i++) {
        if (b->list[i].bits)
            ret = co_store(s, &b->list[i]);
    }
    if (ret == 0)
        ret = node_co_flush(s->node->file);
    for (unsigned i = 0; i < b->count && ret == 0; i++) {
        if (b->list[i].bits)
            ret = co_write_flags(s, &b->list[i], b->list[i].flags & ~QCOW2_BITMAP_IN_USE);
    }
    return ret == 0 ? node_co_flush(s->node->file) : ret;
}

/* ---- check ---- */

/* What the table names, a cluster of it at a time: one that was left in use may have any size. */
static int coroutine_fn co_references(struct qcow2 *s, const struct bitmap *bitmap,
                                      void (*say)(void *opaque, uint64_t host, uint64_t bytes), void *opaque)
{
    const uint64_t per = s->cluster_bytes / 8;
    be64 *words = qcow2_buffer_get(s);
    int ret = words ? 0 : -ENOMEM;
    for (uint64_t at = 0; at < bitmap->table_entries && ret == 0; at += per) {
        uint64_t count = min_u64(per, bitmap->table_entries - at);
        ret = node_co_pread(s->node->file, bitmap->table_offset + at * 8, words, count * 8);
        for (uint64_t i = 0; i < count && ret == 0; i++) {
            uint64_t host = be64_get(words[i]) & QCOW2_BITMAP_OFFSET_MASK;
            if (host)
                say(opaque, host, s->cluster_bytes);
        }
    }
    qcow2_buffer_put(s, words);
    return ret;
}

int coroutine_fn qcow2_bitmaps_co_references(struct qcow2 *s,
                                             void (*say)(void *opaque, uint64_t host, uint64_t bytes),
                                             void *opaque)
{
    struct qcow2_bitmaps *b = s->bitmaps;
    uint64_t bytes = 0;
    if (!b)
        return s->bitmaps_error;
    say(opaque, b->directory_offset, b->directory_bytes);
    for (unsigned i = 0; i < b->count; i++) {
        const struct bitmap *bitmap = &b->list[i];
        bytes += bitmap->table_entries * 8ull;
        if (bytes > qcow2_cluster_up(s, s->file_bytes))
            return -EFBIG; /* tables do not overlap: together they fit in the file */
        say(opaque, bitmap->table_offset, bitmap->table_entries * 8ull);
        int ret = co_references(s, bitmap, say, opaque);
        if (ret < 0)
            return ret;
    }
    return 0;
}
