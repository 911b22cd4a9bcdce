/*
 * Refcounts (checklist E): widths of 1 to 64 bits, blocks cached in slices, table in memory, growth of both.
 *
 * What always holds: a block is complete on the disk, all zero but for what is still dirty in the cache,
 * before the table names it; the old table is valid until the header has switched to the new one in a single
 * sector. An increment that the width cannot hold fails and changes nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/survivor.h"

uint64_t qcow2_refcount_get_raw(const void *block, unsigned order, uint64_t index)
{
    const uint8_t *bytes = block;
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned width = 1u << order, per_byte = 8u / width;
        return bytes[index / per_byte] >> (index % per_byte * width) & ((1u << width) - 1);
    }
    case 3:
        return bytes[index];
    case 4:
        return be16_get(((const be16 *)block)[index]);
    case 5:
        return be32_get(((const be32 *)block)[index]);
    default:
        return be64_get(((const be64 *)block)[index]);
    }
}

void qcow2_refcount_set_raw(void *block, unsigned order, uint64_t index, uint64_t value)
{
    uint8_t *bytes = block;
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned width = 1u << order, per_byte = 8u / width, shift = (unsigned)(index % per_byte) * width;
        uint8_t mask = (uint8_t)(((1u << width) - 1) << shift);
        bytes[index / per_byte] = (uint8_t)((bytes[index / per_byte] & ~mask) | (uint8_t)(value << shift));
        break;
    }
    case 3:
        bytes[index] = (uint8_t)value;
        break;
    case 4:
        ((be16 *)block)[index] = be16_put((uint16_t)value);
        break;
    case 5:
        ((be32 *)block)[index] = be32_put((uint32_t)value);
        break;
    default:
        ((be64 *)block)[index] = be64_put(value);
        break;
    }
}

static uint64_t slice_key(const struct qcow2 *s, uint64_t cluster)
{
    return cluster >> s->ref_slice_bits;
}

/* [lock] The slice that counts CLUSTER: 0 with *SLOT, 1 if there is no block, -EAGAIN with NEED. */
static int find_slice(struct qcow2 *s, uint64_t cluster, uint32_t *slot, struct qcow2_need *need)
{
    uint64_t index = cluster >> s->refblock_bits;
    if (index >= s->reftable_entries || !s->reftable[index])
        return 1;
    int64_t found = table_cache_find(&s->ref, slice_key(s, cluster));
    if (found < 0 || s->ref.slots[found].state != SLOT_VALID) {
        need->kind = QCOW2_NEED_REFCOUNT_SLICE;
        need->key = slice_key(s, cluster);
        return -EAGAIN;
    }
    *slot = (uint32_t)found;
    return 0;
}

int qcow2_refcount_get(struct qcow2 *s, uint64_t cluster, uint64_t *refcount, struct qcow2_need *need)
{
    uint32_t slot;
    int ret = find_slice(s, cluster, &slot, need);
    if (ret < 0)
        return ret;
    *refcount = ret ? 0
                    : qcow2_refcount_get_raw(table_cache_words(&s->ref, slot), s->refcount_order,
                                             cluster & ((1ull << s->ref_slice_bits) - 1));
    return 0;
}

int qcow2_refcount_change(struct qcow2 *s, uint64_t cluster, uint64_t count, int delta,
                          struct qcow2_need *need)
{
    uint64_t mask = (1ull << s->ref_slice_bits) - 1;
    for (uint64_t c = cluster; c < cluster + count; c++) {
        uint32_t slot;
        int ret = find_slice(s, c, &slot, need);
        if (ret < 0)
            return ret;
        if (ret) {
            if (delta < 0)
                return -EIO;
            need->kind = QCOW2_NEED_REFCOUNT_BLOCK;
            need->key = c >> s->refblock_bits;
            return -EAGAIN;
        }
        uint64_t old = qcow2_refcount_get_raw(table_cache_words(&s->ref, slot), s->refcount_order, c & mask);
        if (delta > 0 && old >= s->refcount_max)
            return -ERANGE;
        if (delta < 0 && old == 0)
            return -EIO;
    }
    for (uint64_t c = cluster; c < cluster + count; c++) {
        uint32_t slot = 0;
        if (find_slice(s, c, &slot, need) != 0)
            return -EIO; /* was there a moment ago, under the same lock */
        uint64_t *words = table_cache_words(&s->ref, slot);
        uint64_t value =
            qcow2_refcount_get_raw(words, s->refcount_order, c & mask) + (uint64_t)(int64_t)delta;
        qcow2_refcount_set_raw(words, s->refcount_order, c & mask, value);
        table_cache_set_dirty(&s->ref, slot, s->gen);
        if (value == 0) {
            s->free_hint = min_u64(s->free_hint, c);
            if (s->compressed_at >> s->cluster_bits == c)
                s->compressed_at = 0;
        }
    }
    return 0;
}

int coroutine_fn qcow2_co_refcount_change(struct qcow2 *s, uint64_t cluster, uint64_t count, int delta)
{
    /* In pieces that fit the cache together. */
    while (count) {
        uint64_t mask = (1ull << s->ref_slice_bits) - 1;
        uint64_t n = min_u64(count, mask + 1 - (cluster & mask));
        struct qcow2_need need = {0};
        int ret;
        qcow2_lock(s);
        while ((ret = qcow2_refcount_change(s, cluster, n, delta, &need)) == -EAGAIN) {
            qcow2_unlock(s);
            ret = qcow2_co_satisfy(s, &need);
            if (ret < 0)
                return ret;
            qcow2_lock(s);
        }
        qcow2_unlock(s);
        if (ret < 0)
            return ret;
        cluster += n;
        count -= n;
    }
    return 0;
}

int coroutine_fn qcow2_co_refcounts_get(struct qcow2 *s, uint64_t cluster, uint32_t count,
                                        uint64_t *refcounts)
{
    struct qcow2_need need = {0};
    int ret = 0;
    qcow2_lock(s);
    for (uint32_t i = 0; i < count && ret == 0; i++) {
        while ((ret = qcow2_refcount_get(s, cluster + i, &refcounts[i], &need)) == -EAGAIN) {
            qcow2_unlock(s);
            ret = qcow2_co_satisfy(s, &need);
            if (ret < 0)
                return ret;
            qcow2_lock(s);
        }
    }
    qcow2_unlock(s);
    return ret;
}

int coroutine_fn qcow2_co_refcount_get(struct qcow2 *s, uint64_t cluster, uint64_t *refcount)
{
    return qcow2_co_refcounts_get(s, cluster, 1, refcount);
}

int coroutine_fn qcow2_co_load_refcount_slice(struct qcow2 *s, uint64_t key)
{
    qcow2_lock(s);
    int64_t found = table_cache_find(&s->ref, key);
    if (found >= 0) {
        struct table_cache_slot *slot = &s->ref.slots[found];
        if (slot->state == SLOT_LOADING)
            co_queue_wait(&slot->waiters, &s->lock);
        qcow2_unlock(s);
        return 0;
    }
    uint64_t index = key >> s->ref_slices_bits;
    uint64_t entry = index < s->reftable_entries ? s->reftable[index] : 0;
    uint64_t block = entry & QCOW2_REFTABLE_OFFSET_MASK;
    if (!entry) {
        qcow2_unlock(s);
        return 0;
    }
    const char *why = NULL;
    if (entry & QCOW2_REFTABLE_RESERVED_MASK)
        why = "has reserved bits set";
    else if (!block || (block & (s->cluster_bytes - 1)))
        why = "is not cluster aligned";
    else if (block > s->file_bytes || block + s->cluster_bytes > qcow2_cluster_up(s, s->file_bytes))
        why = "lies beyond the end of the file";
    else if (qcow2_overlap_check(s, block, s->cluster_bytes, QCOW2_OL_REFCOUNT_BLOCK, NULL) != QCOW2_OL_NONE)
        why = "lies on other metadata";
    if (why) {
        qcow2_unlock(s);
        return qcow2_co_corrupt(s, "refcount block offset 0x%llx (refcount table entry %llu) %s",
                                (unsigned long long)block, (unsigned long long)index, why);
    }
    int64_t slot = table_cache_claim(&s->ref, key);
    qcow2_unlock(s);
    if (slot < 0)
        return qcow2_co_make_clean(s);
    uint64_t host = block + (key & ((1ull << s->ref_slices_bits) - 1)) * s->ref.slice_bytes;
    void *buf = qcow2_buffer_get(s);
    int ret = buf ? node_co_pread(s->node->file, host, buf, s->ref.slice_bytes) : -ENOMEM;
    qcow2_lock(s);
    if (ret == 0)
        table_cache_loaded(&s->ref, (uint32_t)slot, buf);
    else
        table_cache_load_failed(&s->ref, (uint32_t)slot);
    qcow2_unlock(s);
    qcow2_buffer_put(s, buf);
    return ret;
}

static void reftable_set(struct qcow2 *s, uint64_t index, uint64_t entry)
{
    survivor_log(s, true, index, s->reftable[index], entry);
    s->reftable[index] = entry;
    if (!s->reftable_dirty[index / 64]) {
        s->reftable_dirty[index / 64] = 1;
        s->reftable_nb_dirty++;
    }
}

/* A block for table entry INDEX, which counts itself: it lies in its own range, where nothing is in use by
 * definition. */
static int coroutine_fn co_new_block(struct qcow2 *s, uint64_t index)
{
    uint64_t first = index << s->refblock_bits, end = first + (1ull << s->refblock_bits), cluster;
    qcow2_lock(s);
    for (cluster = first; cluster < end; cluster++) {
        if (qcow2_overlap_check(s, cluster << s->cluster_bits, s->cluster_bytes, QCOW2_OL_NONE, NULL) ==
            QCOW2_OL_NONE)
            break;
    }
    bool fresh = qcow2_is_fresh(s, cluster << s->cluster_bits);
    qcow2_unlock(s);
    if (cluster == end)
        return -EIO;
    if (cluster << s->cluster_bits > QCOW2_L2_OFFSET_MASK)
        return -EFBIG;
    uint64_t host = cluster << s->cluster_bits;
    int ret = qcow2_co_extend_file(s, host + s->cluster_bytes);
    if (ret == 0 && !fresh) {
        void *zeroes = qcow2_buffer_get(s);
        if (!zeroes)
            return -ENOMEM;
        memset(zeroes, 0, s->cluster_bytes);
        ret = node_co_pwrite(s->node->file, host, zeroes, s->cluster_bytes, 0);
        qcow2_buffer_put(s, zeroes);
    }
    if (ret < 0)
        return ret;
    for (;;) {
        qcow2_lock(s);
        int64_t slot = table_cache_claim(&s->ref, slice_key(s, cluster));
        if (slot >= 0) {
            table_cache_loaded(&s->ref, (uint32_t)slot, NULL);
            qcow2_refcount_set_raw(table_cache_words(&s->ref, (uint32_t)slot), s->refcount_order,
                                   cluster & ((1ull << s->ref_slice_bits) - 1), 1);
            table_cache_set_dirty(&s->ref, (uint32_t)slot, s->gen);
            reftable_set(s, index, host);
            s->fresh_from = max_u64(s->fresh_from, host + s->cluster_bytes);
            (void)qcow2_overlap_add(s, host, s->cluster_bytes, QCOW2_OL_REFCOUNT_BLOCK);
            qcow2_unlock(s);
            return 0;
        }
        qcow2_unlock(s);
        ret = qcow2_co_make_clean(s);
        if (ret < 0)
            return ret;
    }
}

/* [lock] What is written from HOST on is no zeroes any more, whether it comes to be used or not. */
static void not_fresh(struct qcow2 *s, uint64_t host, uint64_t clusters)
{
    s->fresh_from = max_u64(s->fresh_from, host + (clusters << s->cluster_bits));
}

/* Block B of those that lie together from cluster FIRST on, which is where the first one's range begins: they
 * count USED clusters from there on, themselves among them. */
static int coroutine_fn co_write_block(struct qcow2 *s, uint64_t first, uint64_t b, uint64_t used, void *buf)
{
    uint64_t per_block = 1ull << s->refblock_bits;
    memset(buf, 0, s->cluster_bytes);
    for (uint64_t i = 0; i < per_block && b * per_block + i < used; i++)
        qcow2_refcount_set_raw(buf, s->refcount_order, i, 1);
    return node_co_pwrite(s->node->file, (first + b) << s->cluster_bits, buf, s->cluster_bytes, 0);
}

/* A larger table, so that it has entry INDEX, and MORE entries behind its own. New blocks and the table
 * itself lie together at the start of a range that no block counts yet, and the blocks count them. */
static int coroutine_fn co_grow_table(struct qcow2 *s, uint64_t index, uint64_t more)
{
    uint64_t per_block = 1ull << s->refblock_bits, per_table_cluster = s->cluster_bytes / 8;
    uint64_t first = index << s->refblock_bits, blocks = 1, table_clusters, entries;
    if (index >= QCOW2_MAX_REFTABLE_BYTES / 8 || more >= QCOW2_MAX_REFTABLE_BYTES / 8)
        return -EFBIG;
    for (;;) {
        entries = max_u64(index + blocks + 1 + more, s->reftable_entries + s->reftable_entries / 2);
        table_clusters = (entries + per_table_cluster - 1) / per_table_cluster;
        entries = table_clusters * per_table_cluster;
        if (blocks * per_block >= blocks + table_clusters)
            break;
        blocks++;
    }
    if (table_clusters << s->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return -EFBIG;
    uint64_t used = blocks + table_clusters, host = first << s->cluster_bits;
    uint64_t table_offset = host + (blocks << s->cluster_bits);
    qcow2_lock(s);
    bool overlaps =
        qcow2_overlap_check(s, host, used << s->cluster_bits, QCOW2_OL_NONE, NULL) != QCOW2_OL_NONE;
    if (!overlaps)
        not_fresh(s, host, used);
    qcow2_unlock(s);
    if (overlaps)
        return -EIO;
    if (first + used > QCOW2_L2_OFFSET_MASK >> s->cluster_bits)
        return -EFBIG;

    uint64_t *table = calloc(entries, 8);
    uint8_t *dirty = calloc(entries / 64 + 1, 1);
    be64 *out = qcow2_buffer_get(s);
    int ret = table && dirty && out ? qcow2_co_extend_file(s, host + (used << s->cluster_bits)) : -ENOMEM;
    for (uint64_t b = 0; ret == 0 && b < blocks; b++)
        ret = co_write_block(s, first, b, used, out);
    if (ret == 0) {
        /* Nobody else changes the table: making_ref is ours. */
        memcpy(table, s->reftable, (size_t)s->reftable_entries * 8);
        for (uint64_t b = 0; b < blocks; b++)
            table[index + b] = host + (b << s->cluster_bits);
    }
    for (uint64_t c = 0; ret == 0 && c < table_clusters; c++) {
        for (uint64_t i = 0; i < per_table_cluster; i++)
            out[i] = be64_put(table[c * per_table_cluster + i]);
        ret = node_co_pwrite(s->node->file, table_offset + (c << s->cluster_bits), out, s->cluster_bytes, 0);
    }
    /* The blocks that only the table in memory names so far have to be on the disk before the header names
     * the new one. */
    if (ret == 0)
        ret = qcow2_co_writeback(s);
    if (ret == 0)
        ret = node_co_flush(s->node->file);
    uint64_t old_offset = s->reftable_offset, old_bytes = (uint64_t)s->reftable_clusters << s->cluster_bits;
    if (ret == 0) {
        co_mutex_lock(&s->header_lock);
        s->reftable_offset = table_offset;
        s->reftable_clusters = (uint32_t)table_clusters;
        ret = qcow2_co_write_header_sector(s);
        if (ret < 0) {
            s->reftable_offset = old_offset;
            s->reftable_clusters = (uint32_t)(old_bytes >> s->cluster_bits);
        }
        co_mutex_unlock(&s->header_lock);
    }
    if (out)
        qcow2_buffer_put(s, out);
    if (ret < 0) {
        free(table);
        free(dirty);
        return ret;
    }
    qcow2_lock(s);
    while (s->wb_running) /* which remembers places in the old arrays */
        co_queue_wait(&s->wb_waiters, &s->lock);
    free(s->reftable);
    free(s->reftable_dirty);
    s->reftable = table;
    s->reftable_entries = (uint32_t)entries;
    s->reftable_dirty = dirty;
    s->reftable_nb_dirty = 0;
    qcow2_overlap_remove(s, old_offset, old_bytes);
    (void)qcow2_overlap_add(s, host, blocks << s->cluster_bits, QCOW2_OL_REFCOUNT_BLOCK);
    (void)qcow2_overlap_add(s, table_offset, table_clusters << s->cluster_bits, QCOW2_OL_REFCOUNT_TABLE);
    qcow2_free_later(s, old_offset, old_bytes, true);
    qcow2_unlock(s);
    return 0;
}

int coroutine_fn qcow2_co_make_refcount_block(struct qcow2 *s, uint64_t index)
{
    qcow2_lock(s);
    if (s->making_ref) {
        co_queue_wait(&s->making_ref->waiters, &s->lock);
        qcow2_unlock(s);
        return 0;
    }
    if (s->exchanging) { /* a reference to what was never counted */
        qcow2_unlock(s);
        return -EIO;
    }
    bool grow = index >= s->reftable_entries;
    if (!grow && s->reftable[index]) {
        qcow2_unlock(s);
        return 0;
    }
    struct qcow2_making making = {.key = index};
    s->making_ref = &making;
    qcow2_unlock(s);

    int ret = grow ? co_grow_table(s, index, 0) : co_new_block(s, index);

    qcow2_lock(s);
    s->making_ref = NULL;
    co_queue_wake_all(&making.waiters);
    qcow2_unlock(s);
    return ret;
}

/* The first range behind all that blocks count and behind all that was ever written. */
static uint64_t free_range(struct qcow2 *s)
{
    qcow2_lock(s);
    uint64_t range = s->cluster_bytes << s->refblock_bits, index = s->reftable_entries;
    while (index && !s->reftable[index - 1])
        index--;
    if (!s->on_device)
        index = max_u64(index, (s->fresh_from + range - 1) / range);
    qcow2_unlock(s);
    return index;
}

static int coroutine_fn co_make_counted_run(struct qcow2 *s, uint64_t count, uint64_t *host)
{
    uint64_t index = free_range(s), blocks = 1;
    while (blocks << s->refblock_bits < blocks + count)
        blocks++;
    int ret = 0;
    if (index + blocks > s->reftable_entries) {
        ret = co_grow_table(s, index, blocks + 1);
        index = free_range(s);
    }
    uint64_t first = index << s->refblock_bits, used = blocks + count, start = first << s->cluster_bits;
    if (ret < 0)
        return ret;
    if (index + blocks > s->reftable_entries || first + used > QCOW2_L2_OFFSET_MASK >> s->cluster_bits)
        return -EFBIG;
    qcow2_lock(s);
    bool overlaps =
        qcow2_overlap_check(s, start, used << s->cluster_bits, QCOW2_OL_NONE, NULL) != QCOW2_OL_NONE;
    if (!overlaps)
        not_fresh(s, start, used);
    qcow2_unlock(s);
    if (overlaps)
        return -EIO;
    void *buf = qcow2_buffer_get(s);
    ret = buf ? qcow2_co_extend_file(s, start + (used << s->cluster_bits)) : -ENOMEM;
    for (uint64_t b = 0; ret == 0 && b < blocks; b++)
        ret = co_write_block(s, first, b, used, buf);
    qcow2_buffer_put(s, buf);
    if (ret < 0)
        return ret;
    qcow2_lock(s);
    for (uint64_t b = 0; b < blocks; b++)
        reftable_set(s, index + b, start + (b << s->cluster_bits));
    (void)qcow2_overlap_add(s, start, blocks << s->cluster_bits, QCOW2_OL_REFCOUNT_BLOCK);
    qcow2_unlock(s);
    *host = start + (blocks << s->cluster_bits);
    return 0;
}

int coroutine_fn qcow2_co_alloc_with_blocks(struct qcow2 *s, uint64_t count, uint64_t *host)
{
    struct qcow2_making making = {.key = 0};
    qcow2_lock(s);
    while (s->making_ref)
        co_queue_wait(&s->making_ref->waiters, &s->lock);
    bool exchanging = s->exchanging;
    if (!exchanging)
        s->making_ref = &making;
    qcow2_unlock(s);
    if (exchanging)
        return -EIO;

    int ret = co_make_counted_run(s, count, host);

    qcow2_lock(s);
    s->making_ref = NULL;
    co_queue_wake_all(&making.waiters);
    qcow2_unlock(s);
    return ret;
}
