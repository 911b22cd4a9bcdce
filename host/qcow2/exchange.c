/*
 * Mapping and refcounts exchanged as a whole: see exchange.h.
 *
 *   begin    everything is written back and nothing waits to be freed; clusters for all that is new are
 *            allocated the ordinary way; the refcount blocks are copied, and the copies are used from then on
 *   between  the caller counts references up and down
 *   commit   L2 tables whose flags are others, L1 table, refcount table, snapshot table -> all durable ->
 *            header, durable -> what is old is freed
 */
#include "host/qcow2/exchange.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/survivor.h"

/* ---- clusters for the new state ---- */

/* COUNT clusters from wherever there are holes. */
static int coroutine_fn co_take(struct qcow2 *s, uint64_t *hosts, uint64_t count, uint64_t *taken)
{
    int ret = 0;
    for (*taken = 0; *taken < count && ret == 0;) {
        struct qcow2_need need = {0};
        uint64_t host = 0, got = 0;
        bool fresh;
        qcow2_lock(s);
        while ((ret = qcow2_alloc_clusters(s, count - *taken, &host, &got, &fresh, &need)) == -EAGAIN) {
            qcow2_unlock(s);
            ret = qcow2_co_satisfy(s, &need);
            qcow2_lock(s);
            if (ret < 0)
                break;
        }
        qcow2_unlock(s);
        for (uint64_t i = 0; ret == 0 && i < got; i++)
            hosts[(*taken)++] = host + (i << s->cluster_bits);
    }
    return ret;
}

static int coroutine_fn co_take_run(struct qcow2 *s, struct qcow2_exchange_run *run, uint64_t clusters)
{
    int ret = clusters ? qcow2_co_alloc_contiguous(s, clusters, &run->host, NULL) : 0;
    run->clusters = ret == 0 ? clusters : 0;
    return ret;
}

static void coroutine_fn co_give_back(struct qcow2 *s, struct qcow2_exchange_run *run)
{
    if (run->clusters)
        qcow2_co_unalloc(s, run->host, run->clusters);
    run->clusters = 0;
}

static uint64_t count_blocks(const struct qcow2 *s)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < s->reftable_entries; i++)
        count += s->reftable[i] != 0;
    return count;
}

/* Each has a cluster of its own in the file. Who names more, one of them many times, has them copied to where
 * no disk is large enough. */
static uint64_t most_blocks(const struct qcow2 *s)
{
    return s->file_bytes >> s->cluster_bits;
}

/* Room for a copy of the refcount structures, which may grow by being asked for it. */
static int coroutine_fn co_take_refcounts(struct qcow2 *s, struct qcow2_exchange *x)
{
    int ret = 0;
    for (;;) {
        uint64_t blocks = count_blocks(s), taken;
        if (x->nb_blocks >= blocks && x->table.clusters == s->reftable_clusters)
            return 0;
        if (blocks > x->room_blocks) {
            uint64_t room = blocks + 16;
            uint64_t *more = realloc(x->blocks, room * sizeof(*more));
            if (!more)
                return -ENOMEM;
            x->blocks = more;
            x->room_blocks = room;
        }
        if (x->nb_blocks < blocks) {
            ret = co_take(s, x->blocks + x->nb_blocks, blocks - x->nb_blocks, &taken);
            x->nb_blocks += taken;
        }
        if (ret == 0 && x->table.clusters != s->reftable_clusters) {
            co_give_back(s, &x->table);
            ret = co_take_run(s, &x->table, s->reftable_clusters);
        }
        if (ret < 0)
            return ret;
    }
}

static void coroutine_fn co_give_all_back(struct qcow2 *s, struct qcow2_exchange *x)
{
    for (uint64_t i = x->used; i < x->nb_spare; i++)
        qcow2_co_unalloc(s, x->spare[i], 1);
    for (uint64_t i = 0; i < x->nb_blocks; i++)
        qcow2_co_unalloc(s, x->blocks[i], 1);
    co_give_back(s, &x->l1);
    co_give_back(s, &x->table);
    co_give_back(s, &x->list);
}

static void free_exchange(struct qcow2_exchange *x)
{
    free(x->spare);
    free(x->blocks);
    free(x->reftable);
    free(x->new_l1);
    free(x->new_dirty);
    memset(x, 0, sizeof(*x));
}

/* ---- refcounts of the new state ---- */

/* Uses x->reftable's blocks in the place of the present ones; what is dirty of these is forgotten. */
static void coroutine_fn co_swap_refcounts(struct qcow2 *s, struct qcow2_exchange *x)
{
    qcow2_lock(s);
    for (size_t i = 0; i < (size_t)s->ref.nb_sets * TABLE_CACHE_WAYS;) {
        if (s->wb_running)
            co_queue_wait(&s->wb_waiters, &s->lock);
        else if (s->ref.slots[i].state == SLOT_LOADING)
            co_queue_wait(&s->ref.slots[i].waiters, &s->lock);
        else {
            i++;
            continue;
        }
        i = 0;
    }
    table_cache_forget(&s->ref, 0, TABLE_CACHE_NONE);
    uint64_t *other = s->reftable;
    s->reftable = x->reftable;
    x->reftable = other;
    x->in_use = !x->in_use;
    s->exchanging = x->in_use;
    s->free_hint = 0;
    qcow2_unlock(s);
}

static int coroutine_fn co_copy_blocks(struct qcow2 *s, struct qcow2_exchange *x)
{
    void *buf = qcow2_buffer_get(s);
    x->reftable = calloc(s->reftable_entries, sizeof(*x->reftable));
    int ret = buf && x->reftable ? 0 : -ENOMEM;
    uint64_t next = 0;
    for (uint32_t i = 0; ret == 0 && i < s->reftable_entries; i++) {
        uint64_t block = s->reftable[i] & QCOW2_REFTABLE_OFFSET_MASK;
        if (!s->reftable[i])
            continue;
        if (!block || (block & (s->cluster_bytes - 1)) || block >= s->file_bytes) {
            ret = -EIO;
            break;
        }
        ret = node_co_pread(s->node->file, block, buf, s->cluster_bytes);
        if (ret == 0)
            ret = node_co_pwrite(s->node->file, x->blocks[next], buf, s->cluster_bytes, 0);
        x->reftable[i] = x->blocks[next++];
    }
    qcow2_buffer_put(s, buf);
    return ret;
}

/* Nothing dirty, nothing that waits to be counted down. */
static int coroutine_fn co_settle(struct qcow2 *s)
{
    int ret = qcow2_co_writeback(s);
    if (ret == 0) {
        qcow2_co_reclaim_all(s);
        ret = qcow2_co_writeback(s);
    }
    return ret;
}

int coroutine_fn qcow2_co_exchange_begin(struct qcow2 *s, struct qcow2_exchange *x, uint64_t spare,
                                         uint64_t list_bytes)
{
    *x = (struct qcow2_exchange){0};
    uint64_t room = ((uint64_t)s->l1_size + 64) & ~63ull;
    x->spare = calloc(spare + 1, sizeof(*x->spare));
    x->new_l1 = calloc(room, sizeof(*x->new_l1));
    x->new_dirty = calloc(room / 64 + 1, 1);
    /* There is no way back once the header is written: room for the old L1 table in memory now. */
    void **retired = realloc(s->retired, (s->nb_retired + 1) * sizeof(*retired));
    if (retired)
        s->retired = retired;
    if (count_blocks(s) > most_blocks(s)) {
        free_exchange(x);
        return -EMLINK;
    }
    int ret = x->spare && x->new_l1 && x->new_dirty && retired ? 0 : -ENOMEM;
    if (ret == 0)
        ret = co_take(s, x->spare, spare, &x->nb_spare);
    if (ret == 0)
        ret = co_take_run(s, &x->l1, qcow2_clusters_of(s, (uint64_t)s->l1_size * 8));
    if (ret == 0)
        ret = co_take_run(s, &x->list, qcow2_clusters_of(s, list_bytes));
    if (ret == 0)
        ret = co_take_refcounts(s, x);
    if (ret == 0)
        ret = co_settle(s);
    if (ret == 0)
        ret = co_copy_blocks(s, x);
    if (ret < 0) {
        co_give_all_back(s, x);
        free_exchange(x);
        return ret;
    }
    survivor_pause(s, true);
    co_swap_refcounts(s, x);
    return 0;
}

void coroutine_fn qcow2_co_exchange_abort(struct qcow2 *s, struct qcow2_exchange *x)
{
    if (x->in_use) {
        co_swap_refcounts(s, x);
        survivor_pause(s, false);
    }
    x->used = 0;
    co_give_all_back(s, x);
    free_exchange(x);
}

/* ---- the active mapping ---- */

/* The table of L2 entries in BUF: COPIED as the refcounts say. 1: something was different. */
static int coroutine_fn co_set_flags(struct qcow2 *s, uint8_t *buf)
{
    unsigned step = s->extended_l2 ? 2 : 1;
    be64 *table = (be64 *)(void *)buf;
    int changed = 0;
    for (uint64_t k = 0; k < 1ull << s->l2_bits; k++) {
        uint64_t entry = be64_get(table[k * step]), host = entry & QCOW2_L2_OFFSET_MASK, refcount;
        if (!entry || (entry & QCOW2_L2_COMPRESSED) || !host || (host & (s->cluster_bytes - 1)))
            continue;
        int ret = qcow2_co_refcount_get(s, host >> s->cluster_bits, &refcount);
        if (ret < 0)
            return ret;
        if ((refcount == 1) == ((entry & QCOW2_COPIED) != 0))
            continue;
        table[k * step] = be64_put(entry ^ QCOW2_COPIED);
        changed = 1;
    }
    return changed;
}

/* What entry I of the new L1 table is. */
static int coroutine_fn co_new_l1_entry(struct qcow2 *s, struct qcow2_exchange *x, uint32_t i, uint8_t *buf)
{
    uint64_t table = s->l1[i] & QCOW2_L1_OFFSET_MASK, refcount;
    if (!table)
        return 0;
    if ((table & (s->cluster_bytes - 1)) || table >= s->file_bytes)
        return -EIO;
    int ret = node_co_pread(s->node->file, table, buf, s->cluster_bytes);
    if (ret == 0)
        ret = co_set_flags(s, buf);
    if (ret < 0)
        return ret;
    if (ret) {
        if (x->used == x->nb_spare)
            return -EIO; /* flags were wrong before: the image needs a check */
        uint64_t host = x->spare[x->used++];
        x->new_l1[i] = host | QCOW2_COPIED;
        return node_co_pwrite(s->node->file, host, buf, s->cluster_bytes, 0);
    }
    ret = qcow2_co_refcount_get(s, table >> s->cluster_bits, &refcount);
    x->new_l1[i] = table | (refcount == 1 ? QCOW2_COPIED : 0);
    return ret;
}

/* ---- the exchange ---- */

static int coroutine_fn co_write_new(struct qcow2 *s, struct qcow2_exchange *x,
                                     const struct qcow2_exchange_list *list)
{
    uint8_t *buf = qcow2_buffer_get(s);
    int ret = buf ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < s->l1_size && ret == 0; i++)
        ret = co_new_l1_entry(s, x, i, buf);
    qcow2_buffer_put(s, buf);
    if (ret == 0)
        ret = qcow2_co_write_table(s, x->new_l1, s->l1_size, x->l1.host);
    if (ret == 0)
        ret = qcow2_co_write_table(s, s->reftable, s->reftable_entries, x->table.host);
    if (ret == 0 && list->count)
        ret = qcow2_co_write_snapshot_table(s, list->list, list->count, x->list.host);
    /* The new refcounts, and the barrier after which the header may name all this. */
    return ret == 0 ? qcow2_co_writeback(s) : ret;
}

static int coroutine_fn co_write_header(struct qcow2 *s, const struct qcow2_exchange *x,
                                        const struct qcow2_exchange_list *list)
{
    co_mutex_lock(&s->header_lock);
    uint64_t l1 = s->l1_offset, table = s->reftable_offset, offset = s->snapshots_offset;
    struct qcow2_snapshot *snapshots = s->snapshots;
    uint32_t count = s->nb_snapshots;
    if (s->l1_size)
        s->l1_offset = x->l1.host;
    s->reftable_offset = x->table.host;
    s->snapshots_offset = list->count ? x->list.host : 0;
    s->snapshots = list->list;
    s->nb_snapshots = list->count;
    int ret = qcow2_co_write_header_sector(s);
    if (ret < 0) {
        s->l1_offset = l1;
        s->reftable_offset = table;
        s->snapshots_offset = offset;
        s->snapshots = snapshots;
        s->nb_snapshots = count;
    } else {
        free(snapshots);
    }
    co_mutex_unlock(&s->header_lock);
    return ret;
}

int coroutine_fn qcow2_co_exchange_commit(struct qcow2 *s, struct qcow2_exchange *x,
                                          const struct qcow2_exchange_list *list, bool keep_l1)
{
    uint64_t old_l1 = s->l1_offset, old_table = s->reftable_offset, old_list = s->snapshots_offset;
    int ret = co_write_new(s, x, list);
    if (ret == 0)
        ret = co_write_header(s, x, list);
    if (ret < 0) {
        qcow2_co_exchange_abort(s, x);
        return ret;
    }

    qcow2_lock(s);
    while (s->wb_running) /* which remembers places in the old arrays */
        co_queue_wait(&s->wb_waiters, &s->lock);
    uint64_t *l1 = s->l1;
    for (uint32_t i = 0; i < s->l1_size; i++) {
        uint64_t table = l1[i] & QCOW2_L1_OFFSET_MASK;
        if (table && table != (x->new_l1[i] & QCOW2_L1_OFFSET_MASK))
            qcow2_free_later(s, table, s->cluster_bytes, true);
    }
    for (uint32_t i = 0; i < s->reftable_entries; i++) {
        if (x->reftable[i])
            qcow2_free_later(s, x->reftable[i] & QCOW2_REFTABLE_OFFSET_MASK, s->cluster_bytes, true);
    }
    qcow2_free_later(s, old_table, (uint64_t)s->reftable_clusters << s->cluster_bits, true);
    qcow2_free_later(s, old_list, s->snapshots_bytes, true);
    if (!keep_l1)
        qcow2_free_later(s, old_l1, (uint64_t)s->l1_size * 8, true);
    s->retired[s->nb_retired++] = l1;
    __atomic_store_n(&s->l1, x->new_l1, __ATOMIC_RELEASE);
    free(s->l1_dirty);
    s->l1_dirty = x->new_dirty;
    s->l1_nb_dirty = 0;
    s->snapshots_bytes = list->bytes;
    s->exchanging = false;
    (void)qcow2_overlap_build(s);
    qcow2_unlock(s);
    qcow2_co_forget_l2(s);
    survivor_pause(s, false);
    x->new_l1 = NULL;
    x->new_dirty = NULL;
    for (uint64_t i = x->used; i < x->nb_spare; i++)
        qcow2_co_unalloc(s, x->spare[i], 1);
    free_exchange(x);
    return 0;
}
