/*
 * New refcount structures (checklist E): a block for a range that has none, several at once, a larger table,
 * and the change from one table to another.
 *
 * What always holds: a block is complete on the disk, all zero but for what is still dirty in the cache,
 * before the table names it; the old table is valid until the header has switched to the new one in a single
 * sector.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/survivor.h"

/* ---- a block ---- */

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
        int64_t slot = table_cache_claim(&s->ref, cluster >> s->ref_slice_bits);
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

/* ---- several blocks next to each other ---- */

/* Nothing may lie in USED clusters from FIRST on; and what is written there is no zeroes any more, whether it
 * comes to be used or not. The file is made as long as that. */
static int coroutine_fn co_take_range(struct qcow2 *s, uint64_t first, uint64_t used)
{
    uint64_t host = first << s->cluster_bits, bytes = used << s->cluster_bits;
    qcow2_lock(s);
    bool overlaps = qcow2_overlap_check(s, host, bytes, QCOW2_OL_NONE, NULL) != QCOW2_OL_NONE;
    if (!overlaps)
        s->fresh_from = max_u64(s->fresh_from, host + bytes);
    qcow2_unlock(s);
    return overlaps ? -EIO : qcow2_co_extend_file(s, host + bytes);
}

/* BLOCKS blocks from cluster FIRST on, which is where the first one's range begins: they count USED clusters
 * from there on, themselves among them. */
static int coroutine_fn co_write_blocks(struct qcow2 *s, uint64_t first, uint64_t blocks, uint64_t used)
{
    uint64_t per_block = 1ull << s->refblock_bits;
    void *buf = qcow2_buffer_get(s);
    int ret = buf ? 0 : -ENOMEM;
    for (uint64_t b = 0; ret == 0 && b < blocks; b++) {
        memset(buf, 0, s->cluster_bytes);
        for (uint64_t i = 0; i < per_block && b * per_block + i < used; i++)
            qcow2_refcount_set_raw(buf, s->refcount_order, i, 1);
        ret = node_co_pwrite(s->node->file, (first + b) << s->cluster_bits, buf, s->cluster_bytes, 0);
    }
    qcow2_buffer_put(s, buf);
    return ret;
}

/* ---- one table in the place of another ---- */

int qcow2_reftable_alloc(const struct qcow2 *s, struct qcow2_reftable *t)
{
    uint64_t entries = t->clusters << (s->cluster_bits - 3);
    if (t->clusters > QCOW2_MAX_REFTABLE_BYTES >> s->cluster_bits)
        return -EFBIG;
    t->entries = (uint32_t)entries;
    t->table = calloc(entries, sizeof(*t->table));
    t->dirty = calloc(entries / 64 + 1, 1);
    return t->table && t->dirty ? 0 : -ENOMEM;
}

void qcow2_reftable_free(struct qcow2_reftable *t)
{
    free(t->table);
    free(t->dirty);
}

int coroutine_fn qcow2_co_reftable_name(struct qcow2 *s, const struct qcow2_reftable *t)
{
    co_mutex_lock(&s->header_lock);
    uint64_t old_offset = s->reftable_offset;
    uint32_t old_clusters = s->reftable_clusters;
    s->reftable_offset = t->offset;
    s->reftable_clusters = (uint32_t)t->clusters;
    int ret = qcow2_co_write_header_sector(s);
    if (ret < 0) {
        s->reftable_offset = old_offset;
        s->reftable_clusters = old_clusters;
    }
    co_mutex_unlock(&s->header_lock);
    return ret;
}

void coroutine_fn qcow2_co_reftable_use(struct qcow2 *s, const struct qcow2_reftable *t)
{
    while (s->wb_running) /* which remembers places in the old arrays */
        co_queue_wait(&s->wb_waiters, &s->lock);
    free(s->reftable);
    free(s->reftable_dirty);
    s->reftable = t->table;
    s->reftable_entries = t->entries;
    s->reftable_dirty = t->dirty;
    s->reftable_nb_dirty = 0;
}

/* ---- a larger table ---- */

/* Blocks that lie together, the first of them for entry INDEX, and behind them the larger table, all in the
 * range that this first block counts and those that follow it. */
struct growth {
    uint64_t index, blocks;
    uint64_t first; /* cluster */
    uint64_t used;  /* clusters */
    struct qcow2_reftable new;
};

/* Fills in what G->index and MORE entries behind the blocks' own ask for. */
static int plan_growth(const struct qcow2 *s, uint64_t more, struct growth *g)
{
    uint64_t per_table_cluster = s->cluster_bytes / 8, clusters;
    if (g->index >= QCOW2_MAX_REFTABLE_BYTES / 8 || more >= QCOW2_MAX_REFTABLE_BYTES / 8)
        return -EFBIG;
    do {
        g->blocks++;
        uint64_t entries =
            max_u64(g->index + g->blocks + 1 + more, s->reftable_entries + s->reftable_entries / 2);
        clusters = (entries + per_table_cluster - 1) / per_table_cluster;
    } while (g->blocks << s->refblock_bits < g->blocks + clusters);
    g->first = g->index << s->refblock_bits;
    g->used = g->blocks + clusters;
    if (g->first + g->used > QCOW2_L2_OFFSET_MASK >> s->cluster_bits)
        return -EFBIG;
    g->new.clusters = clusters;
    g->new.offset = (g->first + g->blocks) << s->cluster_bits;
    return qcow2_reftable_alloc(s, &g->new);
}

static int coroutine_fn co_write_growth(struct qcow2 *s, struct growth *g)
{
    int ret = co_write_blocks(s, g->first, g->blocks, g->used);
    if (ret < 0)
        return ret;
    /* Nobody else changes the table: making_ref is ours. */
    memcpy(g->new.table, s->reftable, (size_t)s->reftable_entries * 8);
    for (uint64_t b = 0; b < g->blocks; b++)
        g->new.table[g->index + b] = (g->first + b) << s->cluster_bits;
    ret = qcow2_co_write_table(s, g->new.table, g->new.entries, g->new.offset);
    /* The blocks that only the table in memory names so far have to be on the disk before the header names
     * the new one. */
    if (ret == 0)
        ret = qcow2_co_writeback(s);
    return ret == 0 ? node_co_flush(s->node->file) : ret;
}

/* A larger table, so that it has entry INDEX, and MORE entries behind its own. New blocks and the table
 * itself lie together at the start of a range that no block counts yet, and the blocks count them. */
static int coroutine_fn co_grow_table(struct qcow2 *s, uint64_t index, uint64_t more)
{
    struct growth g = {.index = index};
    uint64_t old_offset = s->reftable_offset, old_bytes = (uint64_t)s->reftable_clusters << s->cluster_bits;
    int ret = plan_growth(s, more, &g);
    if (ret == 0)
        ret = co_take_range(s, g.first, g.used);
    if (ret == 0)
        ret = co_write_growth(s, &g);
    if (ret == 0)
        ret = qcow2_co_reftable_name(s, &g.new);
    if (ret < 0) {
        qcow2_reftable_free(&g.new);
        return ret;
    }
    qcow2_lock(s);
    qcow2_co_reftable_use(s, &g.new);
    qcow2_overlap_remove(s, old_offset, old_bytes);
    (void)qcow2_overlap_add(s, g.first << s->cluster_bits, g.blocks << s->cluster_bits,
                            QCOW2_OL_REFCOUNT_BLOCK);
    (void)qcow2_overlap_add(s, g.new.offset, g.new.clusters << s->cluster_bits, QCOW2_OL_REFCOUNT_TABLE);
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
    ret = co_take_range(s, first, used);
    if (ret == 0)
        ret = co_write_blocks(s, first, blocks, used);
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
