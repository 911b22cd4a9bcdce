/*
 * Setting an image right: refcounts, COPIED flags, and the refcount structures as a whole.
 *
 * What always holds: references are believed and refcounts follow them; a COPIED flag is set only where a
 * single reference was counted, and no table is written that is anything else as well, since then that would
 * be changed; new refcount structures lie behind everything that is referred to, are durable before the
 * header names them, and leave the old ones as they are.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/check.h"

int coroutine_fn check_co_set_refcount(struct qcow2 *s, uint64_t cluster, uint64_t refcount)
{
    uint64_t now, index = cluster >> s->refblock_bits;
    if (refcount > s->refcount_max)
        return -ERANGE;
    if (index >= s->reftable_entries || !s->reftable[index])
        return -ENOENT;
    int ret = qcow2_co_refcount_get(s, cluster, &now);
    if (ret < 0)
        return ret;
    qcow2_lock(s);
    int64_t slot = table_cache_find(&s->ref, cluster >> s->ref_slice_bits);
    if (slot >= 0 && s->ref.slots[slot].state == SLOT_VALID) {
        qcow2_refcount_set_raw(table_cache_words(&s->ref, (uint32_t)slot), s->refcount_order,
                               cluster & ((1ull << s->ref_slice_bits) - 1), refcount);
        table_cache_set_dirty(&s->ref, (uint32_t)slot, s->gen);
        if (!refcount)
            s->free_hint = min_u64(s->free_hint, cluster);
    } else {
        ret = -EAGAIN;
    }
    qcow2_unlock(s);
    return ret == -EAGAIN ? check_co_set_refcount(s, cluster, refcount) : ret;
}

/* ---- COPIED ---- */

/* Is COPIED in ENTRY what the refcount of the cluster at HOST says? 1: it isn't, and *ENTRY has been set
 * right. */
static int coroutine_fn co_copied_wrong(struct check *check, uint64_t host, uint64_t *entry)
{
    struct qcow2 *s = check->s;
    uint64_t refcount;
    if (host >> s->cluster_bits >= CHECK_MAX_CLUSTERS ||
        qcow2_co_refcount_get(s, host >> s->cluster_bits, &refcount) < 0)
        return 0; /* reported elsewhere */
    bool copied = *entry & QCOW2_COPIED;
    if (copied == (refcount == 1))
        return 0;
    *entry ^= QCOW2_COPIED;
    return 1;
}

/* *ENTRY of an L2 table: 1 if its COPIED flag was wrong and has been set right. */
static int coroutine_fn co_copied_entry(struct check *check, uint64_t *entry)
{
    struct qcow2 *s = check->s;
    uint64_t host = *entry & QCOW2_L2_OFFSET_MASK;
    if (*entry & QCOW2_L2_COMPRESSED) {
        if (!(*entry & QCOW2_COPIED))
            return 0;
        *entry &= ~QCOW2_COPIED;
        return 1;
    }
    if (!host || (host & (s->cluster_bytes - 1)) || s->data != s->node->file || s->data_missing)
        return 0;
    return co_copied_wrong(check, host, entry);
}

/* ENTRY, as it is, has the wrong flag. Is it to be set right? */
static bool mend_copied(struct check *check, const char *what, uint64_t entry, uint64_t mask, bool fix)
{
    fix &= (check->fix & QCOW2_FIX_ERRORS) &&
           ((entry & QCOW2_COPIED) || check_references(check, (entry & mask) >> check->s->cluster_bits) == 1);
    check_say(check, "%s OFLAG_COPIED %s: entry=%llx", fix ? "Repairing" : "ERROR", what,
              (unsigned long long)entry);
    check->result->corruptions++;
    check->result->corruptions_fixed += fix;
    return fix;
}

/* May flags be set right in the L2 table at OFFSET? */
static bool coroutine_fn co_is_table_alone(struct check *check, uint64_t offset, enum check_visit visit)
{
    struct qcow2 *s = check->s;
    if (visit == CHECK_VISIT_MIXED)
        return false;
    qcow2_lock(s);
    bool alone = qcow2_overlap_check(s, offset, s->cluster_bytes, QCOW2_OL_ACTIVE_L2, NULL) == QCOW2_OL_NONE;
    qcow2_unlock(s);
    return alone;
}

static void coroutine_fn co_copied_l2(struct check *check, uint64_t offset, bool fix, uint8_t *buf)
{
    struct qcow2 *s = check->s;
    unsigned step = s->extended_l2 ? 2 : 1;
    be64 *table = (be64 *)(void *)buf;
    bool changed = false;
    if (node_co_pread(s->node->file, offset, buf, s->cluster_bytes) < 0)
        return; /* reported by the walk */
    for (uint64_t i = 0; i < 1ull << s->l2_bits; i++) {
        uint64_t entry = be64_get(table[i * step]), was = entry;
        if (!entry || !co_copied_entry(check, &entry) ||
            !mend_copied(check, "data cluster", was, QCOW2_L2_OFFSET_MASK, fix))
            continue;
        table[i * step] = be64_put(entry);
        changed = true;
    }
    if (changed && node_co_pwrite(s->node->file, offset, buf, s->cluster_bytes, 0) < 0)
        check->result->check_errors++;
}

void coroutine_fn check_co_copied(struct check *check)
{
    struct qcow2 *s = check->s;
    uint8_t *buf = qcow2_buffer_get(s);
    if (!buf) {
        check->error = -ENOMEM;
        return;
    }
    /* The tables are changed in the file: nothing may be left of them in the cache, before or after.
     * Refcounts go out first, as always. */
    if (check->fix && qcow2_co_writeback(s) < 0)
        check->result->check_errors++;
    check_tables_settle(check);
    for (uint32_t i = 0; i < s->l1_size; i++) {
        uint64_t entry = s->l1[i], offset = entry & QCOW2_L1_OFFSET_MASK;
        if (!offset || (offset & (s->cluster_bytes - 1)) || offset >> s->cluster_bits >= check->file_clusters)
            continue;
        if (co_copied_wrong(check, offset, &entry) &&
            mend_copied(check, "L2 table", s->l1[i], QCOW2_L1_OFFSET_MASK, true)) {
            qcow2_lock(s);
            qcow2_l1_set(s, i, entry);
            qcow2_unlock(s);
        }
        enum check_visit visit = check_table_visit(check, offset >> s->cluster_bits);
        if (visit != CHECK_VISIT_DONE)
            co_copied_l2(check, offset, co_is_table_alone(check, offset, visit), buf);
    }
    if (check->fix)
        qcow2_co_forget_l2(s);
    qcow2_buffer_put(s, buf);
}

/* ---- new refcount structures ---- */

struct rebuilt {
    uint64_t start;  /* cluster: blocks, then the table */
    uint64_t blocks; /* how many */
    struct qcow2_reftable new;
};

/* The cluster behind all of them. */
static uint64_t rebuilt_end(const struct rebuilt *r)
{
    return r->start + r->blocks + r->new.clusters;
}

static bool range_in_use(const struct check *check, uint64_t index, const struct rebuilt *r)
{
    struct qcow2 *s = check->s;
    uint64_t first = index << s->refblock_bits, end = first + (1ull << s->refblock_bits);
    if (first < rebuilt_end(r) && end > r->start)
        return true;
    uint64_t page = 1ull << CHECK_PAGE_BITS;
    for (uint64_t c = first; c < end && c < check->end;) {
        if (c >> CHECK_PAGE_BITS >= check->nb_pages)
            break;
        if (!check->pages[c >> CHECK_PAGE_BITS]) {
            c = (c & ~(page - 1)) + page;
            continue;
        }
        if (check_references(check, c))
            return true;
        c++;
    }
    return false;
}

/* Where the new structures go: behind all that is referred to, and the old ones, which count until the header
 * names the new ones. */
static uint64_t rebuild_start(const struct check *check)
{
    const struct qcow2 *s = check->s;
    if (!s->on_device)
        return max_u64(check->end, check->file_clusters);
    uint64_t start = max_u64(check->end, (s->reftable_offset >> s->cluster_bits) + s->reftable_clusters);
    for (uint32_t i = 0; i < s->reftable_entries; i++) {
        uint64_t block = (s->reftable[i] & QCOW2_REFTABLE_OFFSET_MASK) >> s->cluster_bits;
        if (s->reftable[i] && block < check->file_clusters)
            start = max_u64(start, block + 1);
    }
    return start;
}

static int plan_rebuild(const struct check *check, struct rebuilt *r)
{
    struct qcow2 *s = check->s;
    *r = (struct rebuilt){.start = rebuild_start(check), .blocks = 1, .new.clusters = 1};
    for (;;) {
        uint64_t indices = ((rebuilt_end(r) - 1) >> s->refblock_bits) + 1, blocks = 0;
        if (indices > QCOW2_MAX_REFTABLE_BYTES / 8)
            return -EFBIG;
        for (uint64_t i = 0; i < indices; i++)
            blocks += range_in_use(check, i, r);
        uint64_t table = (indices * 8 + s->cluster_bytes - 1) >> s->cluster_bits;
        if (blocks <= r->blocks && table <= r->new.clusters)
            break;
        r->blocks = max_u64(blocks, r->blocks);
        r->new.clusters = max_u64(table, r->new.clusters);
    }
    r->new.offset = (r->start + r->blocks) << s->cluster_bits;
    return qcow2_reftable_alloc(s, &r->new);
}

static int coroutine_fn co_write_rebuilt(struct check *check, const struct rebuilt *r, uint8_t *buf)
{
    struct qcow2 *s = check->s;
    uint64_t used_end = rebuilt_end(r), next = 0;
    int ret = qcow2_co_extend_file(s, used_end << s->cluster_bits);
    for (uint64_t i = 0; i < r->new.entries &&next < r->blocks &&ret == 0; i++) {
        if (!range_in_use(check, i, r))
            continue;
        memset(buf, 0, s->cluster_bytes);
        for (uint64_t k = 0; k < 1ull << s->refblock_bits; k++) {
            uint64_t c = (i << s->refblock_bits) + k;
            uint64_t count = c >= r->start && c < used_end ? 1 : check_references(check, c);
            if (count > s->refcount_max)
                return -ERANGE;
            if (count)
                qcow2_refcount_set_raw(buf, s->refcount_order, k, count);
        }
        r->new.table[i] = (r->start + next++) << s->cluster_bits;
        ret = node_co_pwrite(s->node->file, r->new.table[i], buf, s->cluster_bytes, 0);
    }
    if (ret == 0)
        ret = qcow2_co_write_table(s, r->new.table, r->new.entries, r->new.offset);
    return ret == 0 ? node_co_flush(s->node->file) : ret;
}

int coroutine_fn check_co_rebuild(struct check *check)
{
    struct qcow2 *s = check->s;
    struct qcow2_check ignored = {0};
    struct check count = {.s = s, .result = &ignored, .file_clusters = check->file_clusters};
    struct rebuilt r = {0};
    uint8_t *buf = qcow2_buffer_get(s);
    check_say(check, "Rebuilding refcount structure");
    /* Once more, without the structures that are to go; the first count is of no more use. */
    check_forget(check);
    check_co_walk(&count);
    int ret = count.error ? count.error : ignored.check_errors ? -EIO : buf ? 0 : -ENOMEM;
    if (ret == 0)
        ret = plan_rebuild(&count, &r);
    if (ret == 0)
        ret = co_write_rebuilt(&count, &r, buf);
    if (ret == 0)
        ret = qcow2_co_reftable_name(s, &r.new);
    qcow2_buffer_put(s, buf);
    if (ret < 0) {
        check_forget(&count);
        qcow2_reftable_free(&r.new);
        return ret;
    }
    check_take_over(check, &count);
    qcow2_lock(s);
    qcow2_co_reftable_use(s, &r.new);
    table_cache_forget(&s->ref, 0, TABLE_CACHE_NONE);
    s->fresh_from = max_u64(s->fresh_from, rebuilt_end(&r) << s->cluster_bits);
    s->free_hint = 0;
    ret = qcow2_overlap_build(s);
    qcow2_unlock(s);
    return ret;
}
