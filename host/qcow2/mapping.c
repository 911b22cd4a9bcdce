/*
 * From guest offset to host offset: L1 table, L2 slices, entries (checklist F, G, I).
 *
 * What always holds: qcow2_co_map takes no lock and allocates nothing while the slices that it needs are
 * cached. An L2 table is written to only if its L1 entry says COPIED, that is, if nothing but the active L1
 * table refers to it; else it is copied first. A new L2 table is complete on the disk before the L1 entry
 * names it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/survivor.h"

enum qcow2_type qcow2_entry_type(const struct qcow2 *s, uint64_t entry, uint64_t bitmap, unsigned subcluster)
{
    bool external = s->data != s->node->file;
    if (entry & QCOW2_L2_COMPRESSED)
        return external ? QCOW2_INVALID : QCOW2_COMPRESSED;
    uint64_t host = entry & QCOW2_L2_OFFSET_MASK;
    if (host & (s->cluster_bytes - 1))
        return QCOW2_INVALID;
    /* F9: offset 0 means something only in an external data file, and only with COPIED. */
    bool has_cluster = host || (external && (entry & QCOW2_COPIED));
    if (!s->extended_l2) {
        if (entry & QCOW2_L2_ZERO) {
            if (s->version < 3)
                return QCOW2_INVALID;
            return has_cluster ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
        }
        return has_cluster ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
    }
    bool allocated = bitmap >> subcluster & 1, zero = bitmap >> (32 + subcluster) & 1;
    if (allocated && (zero || !has_cluster))
        return QCOW2_INVALID;
    if (zero)
        return has_cluster ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    if (!has_cluster)
        return QCOW2_UNALLOCATED;
    return allocated ? QCOW2_NORMAL : QCOW2_UNALLOCATED_ALLOC;
}

static bool type_has_host(enum qcow2_type type)
{
    return type == QCOW2_NORMAL || type == QCOW2_ZERO_ALLOC || type == QCOW2_UNALLOCATED_ALLOC;
}

/* One subcluster's piece at guest POS. */
static void entry_extent(const struct qcow2 *s, uint64_t entry, uint64_t bitmap, uint64_t pos,
                         struct qcow2_extent *part)
{
    uint64_t in = pos & (s->cluster_bytes - 1);
    part->type = qcow2_entry_type(s, entry, bitmap, (unsigned)(in >> s->subcluster_bits));
    if (part->type == QCOW2_COMPRESSED) {
        part->host = entry;
        part->bytes = s->cluster_bytes - in;
        return;
    }
    uint64_t host = entry & QCOW2_L2_OFFSET_MASK;
    part->host = host + in;
    part->bytes = s->subcluster_bytes - (pos & (s->subcluster_bytes - 1));
    /* L1: in an external data file a cluster lies where the guest sees it. */
    if (type_has_host(part->type) && s->data != s->node->file && part->host != pos)
        part->type = QCOW2_INVALID;
}

/* What the entries of a slice say from POS on; words are read atomically. */
static void scan_slice(const struct qcow2 *s, const uint64_t *words, uint64_t pos, uint64_t max,
                       struct qcow2_extent *extent)
{
    uint64_t mask = (1ull << s->slice_bits) - 1, done = 0;
    unsigned step = s->extended_l2 ? 2 : 1;
    while (done < max) {
        uint64_t at = pos + done;
        const uint64_t *word = words + ((at >> s->cluster_bits) & mask) * step;
        struct qcow2_extent part;
        entry_extent(s, table_cache_word(word), step == 2 ? table_cache_word(word + 1) : 0, at, &part);
        if (done == 0) {
            *extent = part;
        } else if (part.type != extent->type || part.type == QCOW2_COMPRESSED || part.type == QCOW2_INVALID ||
                   (type_has_host(part.type) && part.host != extent->host + done)) {
            break;
        }
        done += part.bytes;
    }
    extent->bytes = min_u64(done, max);
}

static int check_l2_offset(struct qcow2 *s, uint64_t l1_entry, const char **why)
{
    uint64_t host = l1_entry & QCOW2_L1_OFFSET_MASK;
    *why = NULL;
    if (l1_entry & QCOW2_L1_RESERVED_MASK)
        *why = "has reserved bits set";
    else if (host & (s->cluster_bytes - 1))
        *why = "is not cluster aligned";
    else if (host + s->cluster_bytes > qcow2_cluster_up(s, s->file_bytes))
        *why = "lies beyond the end of the file";
    else if (!s->on_snapshot &&
             qcow2_overlap_check(s, host, s->cluster_bytes, QCOW2_OL_ACTIVE_L2, NULL) != QCOW2_OL_NONE)
        *why = "lies on other metadata";
    return *why ? -EIO : 0;
}

/* Loads a slice, or waits for whoever does. Returns 0 when it is worth looking again. */
static int coroutine_fn co_load_slice(struct qcow2 *s, uint64_t key)
{
    qcow2_lock(s);
    int64_t found = table_cache_find(&s->l2, key);
    if (found >= 0) {
        struct table_cache_slot *slot = &s->l2.slots[found];
        if (slot->state == SLOT_LOADING)
            co_queue_wait(&slot->waiters, &s->lock);
        qcow2_unlock(s);
        return 0;
    }
    uint64_t index = key >> s->slices_bits;
    uint64_t l1_entry = index < s->l1_size ? s->l1[index] : 0;
    if (!(l1_entry & QCOW2_L1_OFFSET_MASK)) {
        qcow2_unlock(s);
        return 0;
    }
    const char *why;
    if (check_l2_offset(s, l1_entry, &why) < 0) {
        qcow2_unlock(s);
        return qcow2_co_corrupt(s, "L2 table offset 0x%llx (L1 entry %llu) %s",
                                (unsigned long long)(l1_entry & QCOW2_L1_OFFSET_MASK),
                                (unsigned long long)index, why);
    }
    int64_t slot = table_cache_claim(&s->l2, key);
    qcow2_unlock(s);
    if (slot < 0)
        return qcow2_co_make_clean(s);

    uint64_t host = (l1_entry & QCOW2_L1_OFFSET_MASK) +
                    ((key & ((1ull << s->slices_bits) - 1)) * (uint64_t)s->l2.slice_bytes);
    uint64_t *words = qcow2_buffer_get(s);
    int ret = words ? node_co_pread(s->node->file, host, words, s->l2.slice_bytes) : -ENOMEM;
    if (ret == 0) {
        for (uint32_t i = 0; i < s->l2.slice_words; i++)
            words[i] = WIRE_BE64(words[i]);
    }
    qcow2_lock(s);
    if (ret == 0)
        table_cache_loaded(&s->l2, (uint32_t)slot, words);
    else
        table_cache_load_failed(&s->l2, (uint32_t)slot);
    qcow2_unlock(s);
    qcow2_buffer_put(s, words);
    return ret;
}

/* -EAGAIN: not cached. */
static int map_slice(struct qcow2 *s, uint64_t pos, uint64_t max, struct qcow2_extent *extent)
{
    struct table_cache_read read;
    uint64_t key = qcow2_l2_key(s, pos);
    uint64_t in_slice = min_u64(max, qcow2_slice_end(s, pos) - pos);
    for (int spins = 0; spins < 64; spins++) {
        if (!table_cache_read_begin(&s->l2, key, &read))
            break;
        scan_slice(s, read.words, pos, in_slice, extent);
        if (table_cache_read_valid(&s->l2, &read))
            return 0;
    }
    /* Size before array: whoever grows the table publishes them the other way round (resize.c). */
    uint64_t index = qcow2_l1_index(s, pos);
    uint32_t l1_size = __atomic_load_n(&s->l1_size, __ATOMIC_ACQUIRE);
    const uint64_t *l1 = __atomic_load_n(&s->l1, __ATOMIC_ACQUIRE);
    uint64_t l1_entry = index < l1_size ? __atomic_load_n(&l1[index], __ATOMIC_ACQUIRE) : 0;
    if (l1_entry & QCOW2_L1_OFFSET_MASK)
        return -EAGAIN;
    extent->type = QCOW2_UNALLOCATED;
    extent->host = 0;
    extent->bytes = min_u64(max, ((index + 1) << (s->cluster_bits + s->l2_bits)) - pos);
    return 0;
}

int coroutine_fn qcow2_co_map(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct qcow2_extent *extent)
{
    int ret;
    while ((ret = map_slice(s, offset, bytes, extent)) == -EAGAIN) {
        ret = co_load_slice(s, qcow2_l2_key(s, offset));
        if (ret < 0)
            return ret;
    }
    /* Goes on into the next slices as long as they are at hand and say the same. */
    while (extent->bytes < bytes && extent->type != QCOW2_COMPRESSED && extent->type != QCOW2_INVALID) {
        struct qcow2_extent part = {0};
        if (map_slice(s, offset + extent->bytes, bytes - extent->bytes, &part) < 0 ||
            part.type != extent->type ||
            (type_has_host(part.type) && part.host != extent->host + extent->bytes))
            break;
        extent->bytes += part.bytes;
    }
    return ret;
}

/* ---- under the lock ---- */

int qcow2_l2_readable(struct qcow2 *s, uint64_t offset, uint32_t *slot, uint64_t **words,
                      struct qcow2_need *need)
{
    uint64_t key = qcow2_l2_key(s, offset), index = qcow2_l1_index(s, offset);
    *words = NULL;
    if (index >= s->l1_size || !(s->l1[index] & QCOW2_L1_OFFSET_MASK))
        return 0;
    int64_t found = table_cache_find(&s->l2, key);
    if (found < 0 || s->l2.slots[found].state != SLOT_VALID) {
        need->kind = QCOW2_NEED_L2_SLICE;
        need->key = key;
        return -EAGAIN;
    }
    *slot = (uint32_t)found;
    *words = table_cache_words(&s->l2, *slot) +
             ((offset >> s->cluster_bits) & ((1ull << s->slice_bits) - 1)) * (s->extended_l2 ? 2 : 1);
    return 0;
}

int qcow2_l2_writable(struct qcow2 *s, uint64_t offset, uint32_t *slot, uint64_t **words,
                      struct qcow2_need *need)
{
    uint64_t index = qcow2_l1_index(s, offset);
    if (index >= s->l1_size)
        return -EIO;
    if (!(s->l1[index] & QCOW2_L1_OFFSET_MASK) || !(s->l1[index] & QCOW2_COPIED)) {
        need->kind = QCOW2_NEED_L2_TABLE;
        need->key = index;
        return -EAGAIN;
    }
    return qcow2_l2_readable(s, offset, slot, words, need);
}

void coroutine_fn qcow2_co_forget_l2(struct qcow2 *s)
{
    qcow2_lock(s);
    for (size_t i = 0; i < (size_t)s->l2.nb_sets * TABLE_CACHE_WAYS;) {
        if (s->l2.slots[i].state == SLOT_LOADING) {
            co_queue_wait(&s->l2.slots[i].waiters, &s->lock);
            i = 0; /* a reader may have begun to load another one meanwhile */
        } else {
            i++;
        }
    }
    table_cache_forget(&s->l2, 0, TABLE_CACHE_NONE);
    qcow2_unlock(s);
}

void qcow2_l1_set(struct qcow2 *s, uint64_t index, uint64_t entry)
{
    survivor_log(s, false, index, s->l1[index], entry);
    __atomic_store_n(&s->l1[index], entry, __ATOMIC_RELEASE);
    if (!s->l1_dirty[index / 64]) {
        s->l1_dirty[index / 64] = 1;
        s->l1_nb_dirty++;
    }
}

static struct qcow2_making *find_making(struct qcow2_making *list, uint64_t key)
{
    while (list && list->key != key)
        list = list->next;
    return list;
}

/* Fills the cluster at HOST for a new L2 table: a copy of the old one, or zeroes. */
static int coroutine_fn co_fill_l2_table(struct qcow2 *s, uint64_t host, uint64_t old, bool fresh)
{
    if (!old && fresh)
        return 0; /* reads as zeroes already */
    void *buf = qcow2_buffer_get(s);
    if (!buf)
        return -ENOMEM;
    int ret = 0;
    if (old)
        ret = node_co_pread(s->node->file, old, buf, s->cluster_bytes);
    else
        memset(buf, 0, s->cluster_bytes);
    if (ret == 0)
        ret = node_co_pwrite(s->node->file, host, buf, s->cluster_bytes, 0);
    qcow2_buffer_put(s, buf);
    return ret;
}

/* Gives L1 entry INDEX an L2 table of its own, or waits for whoever does. */
static int coroutine_fn co_make_l2_table(struct qcow2 *s, uint64_t index)
{
    qcow2_lock(s);
    struct qcow2_making *other = find_making(s->making_l2, index);
    if (other) {
        co_queue_wait(&other->waiters, &s->lock);
        qcow2_unlock(s);
        return 0;
    }
    uint64_t old = s->l1[index] & QCOW2_L1_OFFSET_MASK;
    if (old && (s->l1[index] & QCOW2_COPIED)) {
        qcow2_unlock(s);
        return 0;
    }
    const char *why;
    if (old && check_l2_offset(s, s->l1[index], &why) < 0) {
        qcow2_unlock(s);
        return qcow2_co_corrupt(s, "L2 table offset 0x%llx (L1 entry %llu) %s", (unsigned long long)old,
                                (unsigned long long)index, why);
    }
    struct qcow2_making making = {.key = index, .next = s->making_l2};
    s->making_l2 = &making;

    struct qcow2_need need = {0};
    uint64_t host = 0, got;
    bool fresh;
    int ret;
    while ((ret = qcow2_alloc_clusters(s, 1, &host, &got, &fresh, &need)) == -EAGAIN) {
        qcow2_unlock(s);
        ret = qcow2_co_satisfy(s, &need);
        qcow2_lock(s);
        if (ret < 0)
            break;
    }
    if (ret == 0) {
        qcow2_unlock(s);
        ret = co_fill_l2_table(s, host, old, fresh);
        if (ret < 0)
            qcow2_co_unalloc(s, host, 1);
        qcow2_lock(s);
    }
    if (ret == 0) {
        if (old) {
            qcow2_overlap_remove(s, old, s->cluster_bytes);
            qcow2_free_later(s, old, s->cluster_bytes, false);
        }
        /* Without memory for the map the table is just not protected from a corrupt image's writes. */
        (void)qcow2_overlap_add(s, host, s->cluster_bytes, QCOW2_OL_ACTIVE_L2);
        qcow2_l1_set(s, index, host | QCOW2_COPIED);
    }
    struct qcow2_making **link = &s->making_l2;
    while (*link != &making)
        link = &(*link)->next;
    *link = making.next;
    co_queue_wake_all(&making.waiters);
    qcow2_unlock(s);
    return ret;
}

int coroutine_fn qcow2_co_satisfy(struct qcow2 *s, const struct qcow2_need *need)
{
    switch (need->kind) {
    case QCOW2_NEED_L2_SLICE:
        return co_load_slice(s, need->key);
    case QCOW2_NEED_L2_TABLE:
        return co_make_l2_table(s, need->key);
    case QCOW2_NEED_REFCOUNT_SLICE:
        return qcow2_co_load_refcount_slice(s, need->key);
    case QCOW2_NEED_REFCOUNT_BLOCK:
        return qcow2_co_make_refcount_block(s, need->key);
    case QCOW2_NEED_FILE_LENGTH:
        return qcow2_co_extend_file(s, need->key);
    case QCOW2_NEED_NOTHING:
        break;
    }
    return -EIO;
}
