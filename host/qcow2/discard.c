/*
 * Discard and write-zeroes: mappings are taken away or marked as zeroes, data is not touched.
 *
 * What always holds: no allocating write is in flight on the clusters whose entries change (an entry that it
 * would make later must not undo this); a discarded cluster never shows the backing file again where the
 * format can say so (G4); what loses its reference is quarantined before it can be punched or reused.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/qcow2_state.h"

enum zap {
    ZAP_DISCARD,    /* the content does not matter any more */
    ZAP_ZERO_UNMAP, /* reads as zeroes, the cluster is freed */
    ZAP_ZERO_KEEP   /* reads as zeroes, the cluster is kept */
};

/* Is there something to be seen where no cluster is? */
static bool shows_below(const struct qcow2 *s)
{
    return s->backing_file || s->backing_coming;
}

#define ALL_ZERO_BITS 0xffffffff00000000ull

/* A change of one entry. */
struct change {
    uint64_t entry, bitmap;
    bool free_old; /* the old entry's reference is gone */
};

static uint64_t low_bits(const struct qcow2 *s, uint64_t from, uint64_t to)
{
    unsigned first = (unsigned)(from >> s->subcluster_bits),
             end = (unsigned)((to - 1) >> s->subcluster_bits) + 1;
    return (end == 32 ? 0xffffffffull : (1ull << end) - 1) & ~((1ull << first) - 1);
}

static bool all_zero(const struct qcow2 *s, uint64_t entry, uint64_t bitmap, bool shows_backing,
                     bool with_cluster)
{
    for (unsigned sub = 0; sub < s->subclusters; sub++) {
        enum qcow2_type type = qcow2_entry_type(s, entry, bitmap, sub);
        if (!(type == QCOW2_ZERO_PLAIN || (type == QCOW2_ZERO_ALLOC && with_cluster) ||
              (type == QCOW2_UNALLOCATED && !shows_backing)))
            return false;
    }
    return true;
}

/* What entry (ENTRY, BITMAP) becomes; bytes [from, to) of the cluster are meant. 0: *CHANGE is it; 1: nothing
 * to do; -ENOTSUP: zeroes have to be written. */
static int zap_entry(const struct qcow2 *s, enum zap zap, uint64_t entry, uint64_t bitmap, uint64_t from,
                     uint64_t to, struct change *change)
{
    bool shows_backing = shows_below(s);
    bool external = s->data != s->node->file;
    bool own = !(entry & QCOW2_L2_COMPRESSED) && (entry & QCOW2_COPIED) &&
               ((entry & QCOW2_L2_OFFSET_MASK) || external);
    *change = (struct change){.entry = entry, .bitmap = bitmap};
    if (to - from < s->cluster_bytes) {
        /* Part of a cluster: only subclusters can say that. */
        if (zap == ZAP_DISCARD)
            return 1;
        if (!s->extended_l2 || (entry & QCOW2_L2_COMPRESSED))
            return -ENOTSUP;
        uint64_t bits = low_bits(s, from, to);
        change->bitmap = (bitmap & ~bits) | bits << 32;
        return change->bitmap == bitmap;
    }
    bool has_cluster = (entry & QCOW2_L2_COMPRESSED) || (entry & QCOW2_L2_OFFSET_MASK) || own;
    if (zap == ZAP_DISCARD && !has_cluster)
        return 1;
    if (all_zero(s, entry, bitmap, shows_backing, zap == ZAP_ZERO_KEEP))
        return 1;
    if (s->version < 3 && shows_backing)
        return zap == ZAP_DISCARD ? 1 : -ENOTSUP; /* G5 */
    if (zap == ZAP_ZERO_KEEP && own) {
        if (s->version < 3)
            return -ENOTSUP;
        if (s->extended_l2)
            change->bitmap = ALL_ZERO_BITS;
        else
            change->entry |= QCOW2_L2_ZERO;
        return 0;
    }
    change->free_old = true;
    change->entry = shows_backing && !s->extended_l2 ? QCOW2_L2_ZERO : 0;
    change->bitmap = shows_backing && s->extended_l2 ? ALL_ZERO_BITS : 0;
    return 0;
}

/* May what ENTRY refers to be given back? Not if it is nothing that an entry may name: then other people's
 * clusters would be counted down, or a hole made in the image's own tables. */
static bool may_free(const struct qcow2 *s, uint64_t entry, uint64_t bitmap)
{
    for (unsigned sub = 0; sub < s->subclusters; sub++) {
        if (qcow2_entry_type(s, entry, bitmap, sub) == QCOW2_INVALID)
            return false;
    }
    if ((entry & QCOW2_L2_COMPRESSED) || !(entry & QCOW2_L2_OFFSET_MASK) || s->data != s->node->file)
        return true;
    return qcow2_overlap_check(s, entry & QCOW2_L2_OFFSET_MASK, s->cluster_bytes, QCOW2_OL_NONE, NULL) ==
           QCOW2_OL_NONE;
}

/* One slice's worth of entries, from POS to END. With WORDS NULL there is no L2 table yet. 1: nothing to do
 * in it; 0: done; -ENOTSUP; -EIO: an entry that no rule allows, in *BAD. */
static int zap_slice(struct qcow2 *s, enum zap zap, uint64_t pos, uint64_t end, uint32_t slot,
                     uint64_t *words, bool dry, uint64_t *bad)
{
    unsigned step = s->extended_l2 ? 2 : 1;
    uint64_t mask = s->cluster_bytes - 1;
    bool any = false;
    for (unsigned i = 0; pos < end; i += step) {
        uint64_t to = min_u64(end, (pos & ~mask) + s->cluster_bytes);
        uint64_t entry = words ? words[i] : 0, bitmap = words && step == 2 ? words[i + 1] : 0;
        struct change change;
        int ret = zap_entry(s, zap, entry, bitmap, pos & mask, (pos & mask) + (to - pos), &change);
        if (ret < 0)
            return ret;
        pos = to;
        if (ret)
            continue;
        if (change.free_old && !may_free(s, entry, bitmap)) {
            *bad = entry;
            return -EIO;
        }
        any = true;
        if (dry)
            continue;
        table_cache_change_begin(&s->l2, slot);
        table_cache_store(&words[i], change.entry);
        if (step == 2)
            table_cache_store(&words[i + 1], change.bitmap);
        table_cache_change_end(&s->l2, slot);
        table_cache_set_dirty(&s->l2, slot, s->gen);
        if (change.free_old)
            qcow2_free_entry(s, entry, true);
    }
    return any ? 0 : 1;
}

static int coroutine_fn co_zap(struct qcow2 *s, enum zap zap, uint64_t pos, uint64_t end)
{
    struct qcow2_need need = {0};
    uint64_t bad = 0;
    int ret = 0;
    qcow2_lock(s);
    while (pos < end && ret >= 0) {
        uint64_t to = min_u64(end, qcow2_slice_end(s, pos));
        uint32_t slot = 0;
        uint64_t *words;
        if (qcow2_co_wait_allocs(s, qcow2_cluster_down(s, pos), qcow2_cluster_up(s, to)))
            continue;
        ret = qcow2_l2_readable(s, pos, &slot, &words, &need);
        if (ret == 0) {
            /* A whole L2 table that isn't there and need not be: over it in one step. */
            if (!words && (zap == ZAP_DISCARD || !shows_below(s))) {
                pos = (qcow2_l1_index(s, pos) + 1) << (s->cluster_bits + s->l2_bits);
                continue;
            }
            ret = zap_slice(s, zap, pos, to, slot, words, true, &bad);
            if (ret == 1) {
                pos = to;
                continue;
            }
            if (ret == 0)
                ret = qcow2_l2_writable(s, pos, &slot, &words, &need);
            if (ret == 0) {
                ret = zap_slice(s, zap, pos, to, slot, words, false, &bad);
                pos = to;
                continue;
            }
        }
        if (ret == -EAGAIN) {
            qcow2_unlock(s);
            ret = qcow2_co_satisfy(s, &need);
            qcow2_lock(s);
        }
    }
    qcow2_unlock(s);
    if (bad)
        return qcow2_co_corrupt(
            s,
            "the L2 entry 0x%llx between guest offsets 0x%llx and 0x%llx refers to what is "
            "not a data cluster: it is not discarded",
            (unsigned long long)bad, (unsigned long long)pos, (unsigned long long)end);
    return ret < 0 ? ret : 0;
}

/* Zeroes less than a unit that entries can express. */
static int coroutine_fn co_zero_part(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    if (!bytes || qcow2_co_range_is_zero(s, offset, bytes))
        return 0;
    return qcow2_co_write_zeroes_guest(s, offset, bytes);
}

static int coroutine_fn co_zero(struct qcow2 *s, uint64_t offset, uint64_t bytes, unsigned flags)
{
    enum zap zap = flags & NODE_IO_MAY_UNMAP ? ZAP_ZERO_UNMAP : ZAP_ZERO_KEEP;
    uint64_t unit = s->subcluster_bytes, end = offset + bytes, length = node_length(s->node);
    /* What lies behind the end of the disk belongs to its last cluster. */
    if (end == length)
        end = qcow2_cluster_up(s, end);
    uint64_t first = (offset + unit - 1) & ~(unit - 1), last = end & ~(unit - 1);
    if (first >= last)
        return co_zero_part(s, offset, bytes);
    /* To the next whole cluster, over whole clusters, the rest: a cluster is zapped whole or by subclusters.
     */
    uint64_t middle = min_u64(qcow2_cluster_up(s, first), last),
             tail = max_u64(qcow2_cluster_down(s, last), middle);
    int ret = co_zero_part(s, offset, min_u64(first, length) - offset);
    const uint64_t cuts[] = {first, middle, tail, last};
    for (int i = 0; i < 3 && ret == 0; i++) {
        if (cuts[i] == cuts[i + 1])
            continue;
        ret = co_zap(s, zap, cuts[i], cuts[i + 1]);
        if (ret == -ENOTSUP && i != 1)
            ret = co_zero_part(s, cuts[i], min_u64(cuts[i + 1], length) - cuts[i]);
    }
    if (ret == 0 && last < min_u64(end, length))
        ret = co_zero_part(s, last, min_u64(end, length) - last);
    return ret;
}

int coroutine_fn qcow2_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct qcow2 *s = node->opaque;
    if (s->data_file_raw)
        return -ENOTSUP; /* L2: zeroes have to be in the data file */
    int ret = qcow2_co_writer_begin(s);
    if (ret < 0)
        return ret;
    unsigned epoch = qcow2_use_begin(s);
    ret = co_zero(s, offset, bytes, flags);
    qcow2_use_end(s, epoch);
    qcow2_bitmaps_mark(s, offset, bytes);
    qcow2_co_writer_end(s);
    int bound = qcow2_co_bound_freed(s);
    return ret < 0 ? ret : bound;
}

int coroutine_fn qcow2_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *s = node->opaque;
    if (s->data_file_raw)
        return 0;
    uint64_t end = offset + bytes, start = qcow2_cluster_up(s, offset);
    end = end == node_length(node) ? qcow2_cluster_up(s, end) : qcow2_cluster_down(s, end);
    if (start >= end)
        return 0;
    int ret = qcow2_co_writer_begin(s);
    if (ret < 0)
        return ret;
    /* A table that is loaded or copied meanwhile stays what it is. */
    unsigned epoch = qcow2_use_begin(s);
    ret = co_zap(s, ZAP_DISCARD, start, end);
    qcow2_use_end(s, epoch);
    qcow2_bitmaps_mark(s, start, end - start);
    qcow2_co_writer_end(s);
    int bound = qcow2_co_bound_freed(s);
    return ret < 0 ? ret : bound;
}

int coroutine_fn qcow2_co_drop_range(struct qcow2 *s, uint64_t start, uint64_t end, bool to_zero)
{
    return co_zap(s, to_zero ? ZAP_ZERO_UNMAP : ZAP_DISCARD, start, end);
}
