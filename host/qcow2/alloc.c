/*
 * Finding free clusters, and the length of the file.
 *
 * What always holds: a cluster is handed out only if its refcount is 0 and no metadata lies there, whatever
 * the refcount says (checklist E7); it is counted before anybody learns of it; the file already reaches
 * behind it, so that no mapping can be durable before the length is (they are ordered by the fdatasync in
 * writeback.c). From `fresh_from` on nothing was ever written and the file reads as zeroes.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/qcow2/survivor.h"

struct search {
    uint64_t start, length;  /* the best run so far */
    uint64_t run_start, run; /* the current one */
    uint64_t first_free;     /* first free cluster seen, UINT64_MAX: none */
};

static void run_ends(struct search *search)
{
    if (search->run > search->length) {
        search->start = search->run_start;
        search->length = search->run;
    }
    search->run = 0;
}

/* Looks through the slice with CLUSTER from there on; true when WANT were found. */
static bool search_slice(struct qcow2 *s, uint32_t slot, uint64_t cluster, uint64_t want,
                         struct search *search)
{
    const void *words = table_cache_words(&s->ref, slot);
    uint64_t mask = (1ull << s->ref_slice_bits) - 1, end = (cluster | mask) + 1;
    for (uint64_t c = cluster; c < end; c++) {
        if (qcow2_refcount_get_raw(words, s->refcount_order, c & mask) ||
            qcow2_overlap_check(s, c << s->cluster_bits, s->cluster_bytes, QCOW2_OL_NONE, NULL) !=
                QCOW2_OL_NONE) {
            run_ends(search);
            continue;
        }
        if (search->first_free == UINT64_MAX)
            search->first_free = c;
        if (search->run++ == 0)
            search->run_start = c;
        if (search->run == want)
            break;
    }
    bool enough = search->run == want;
    run_ends(search);
    return enough;
}

/* Clusters are allocated next to each other, so the file grows by little at a time. Refcounts that say that
 * all of some TiB behind its end is in use are a damaged image's (leaked clusters, at best): the file does
 * not follow them. */
static bool too_far(const struct qcow2 *s, uint64_t bytes)
{
    return bytes / 2 > s->file_bytes + (2ull << 30);
}

/* The same for where room is looked for: *NEED leads to the one who says so. */
static bool is_too_far(const struct qcow2 *s, uint64_t cluster, struct qcow2_need *need)
{
    if (!too_far(s, cluster << s->cluster_bits))
        return false;
    need->kind = QCOW2_NEED_FILE_LENGTH;
    need->key = (cluster + 1) << s->cluster_bits;
    return true;
}

int qcow2_alloc_clusters(struct qcow2 *s, uint64_t want, uint64_t *host, uint64_t *got, bool *fresh,
                         struct qcow2_need *need)
{
    uint64_t mask = (1ull << s->ref_slice_bits) - 1;
    struct search search = {.first_free = UINT64_MAX};
    uint64_t cluster = s->free_hint;
    bool from_hint = true;
    for (;;) {
        if (cluster > QCOW2_L2_OFFSET_MASK >> s->cluster_bits)
            return -EFBIG;
        if (is_too_far(s, cluster, need))
            return -EAGAIN;
        uint64_t index = cluster >> s->refblock_bits;
        if (index >= s->reftable_entries || !s->reftable[index]) {
            need->kind = QCOW2_NEED_REFCOUNT_BLOCK;
            need->key = index;
            return -EAGAIN;
        }
        int64_t slot = table_cache_find(&s->ref, cluster >> s->ref_slice_bits);
        if (slot < 0 || s->ref.slots[slot].state != SLOT_VALID) {
            /* Looking for holes in a large image goes one slice a request; meanwhile it grows at its end. */
            if (need->scanned && cluster < s->tail_hint && !s->on_device) {
                cluster = s->tail_hint;
                from_hint = false;
                continue;
            }
            need->kind = QCOW2_NEED_REFCOUNT_SLICE;
            need->key = cluster >> s->ref_slice_bits;
            need->scanned = true;
            return -EAGAIN;
        }
        search_slice(s, (uint32_t)slot, cluster, want, &search);
        if (search.length)
            break;
        cluster = (cluster | mask) + 1;
        /* What was seen to be full is not looked through again: the cache may not hold all of it. */
        if (from_hint)
            s->free_hint = cluster;
        else
            s->tail_hint = cluster;
    }
    uint64_t there = s->file_bytes >> s->cluster_bits;
    if (s->on_device && search.start < there) /* the rest of the run cannot be had, but this much can */
        search.length = min_u64(search.length, there - search.start);
    uint64_t end = (search.start + search.length) << s->cluster_bits;
    if (end > s->file_bytes) {
        need->kind = QCOW2_NEED_FILE_LENGTH;
        need->key = end;
        return -EAGAIN;
    }
    int ret = qcow2_refcount_change(s, search.start, search.length, 1, need);
    if (ret < 0)
        return ret;
    if (from_hint)
        s->free_hint = search.first_free == search.start ? search.start + search.length : search.first_free;
    else if (search.first_free == search.start)
        s->tail_hint = search.start + search.length;
    *host = search.start << s->cluster_bits;
    *got = search.length;
    *fresh = qcow2_is_fresh(s, *host);
    s->fresh_from = max_u64(s->fresh_from, end);
    return 0;
}

/* COUNT contiguous clusters where the first hole is, if it is large enough; -ENOSPC if not. */
static int coroutine_fn co_alloc_in_hole(struct qcow2 *s, uint64_t count, uint64_t *host, bool *fresh)
{
    struct qcow2_need need = {0};
    uint64_t got = 0;
    bool is_fresh;
    int ret;
    qcow2_lock(s);
    while ((ret = qcow2_alloc_clusters(s, count, host, &got, &is_fresh, &need)) == -EAGAIN) {
        qcow2_unlock(s);
        ret = qcow2_co_satisfy(s, &need);
        qcow2_lock(s);
        if (ret < 0)
            break;
    }
    qcow2_unlock(s);
    if (ret == 0 && fresh)
        *fresh = is_fresh;
    if (ret == 0 && got < count) {
        qcow2_co_unalloc(s, *host, got);
        ret = -ENOSPC;
    }
    return ret;
}

int coroutine_fn qcow2_co_alloc_contiguous(struct qcow2 *s, uint64_t count, uint64_t *host, bool *fresh)
{
    struct qcow2_need need = {0};
    uint64_t start = 0, checked = 0;
    if (count >= 1ull << s->refblock_bits) { /* no range of one block has room for it and the block */
        if (fresh)
            *fresh = !s->on_device;
        return qcow2_co_alloc_with_blocks(s, count, host);
    }
    int ret = co_alloc_in_hole(s, count, host, fresh);
    if (ret != -ENOSPC)
        return ret;
    ret = 0;
    qcow2_lock(s);
    start = s->on_device ? s->free_hint : max_u64(s->tail_hint, s->fresh_from >> s->cluster_bits);
    for (;;) {
        uint64_t refcount;
        while (checked < count) {
            ret = is_too_far(s, start + checked, &need)
                      ? -EAGAIN
                      : qcow2_refcount_get(s, start + checked, &refcount, &need);
            if (ret < 0)
                break;
            if (refcount || qcow2_overlap_check(s, (start + checked) << s->cluster_bits, s->cluster_bytes,
                                                QCOW2_OL_NONE, NULL) != QCOW2_OL_NONE) {
                start += checked + 1;
                checked = 0;
                if (start + count > QCOW2_L2_OFFSET_MASK >> s->cluster_bits) {
                    ret = -EFBIG;
                    break;
                }
            } else {
                checked++;
            }
        }
        if (ret == 0 && (start + count) << s->cluster_bits > s->file_bytes) {
            need.kind = QCOW2_NEED_FILE_LENGTH;
            need.key = (start + count) << s->cluster_bits;
            ret = -EAGAIN;
        }
        if (ret == 0) {
            ret = qcow2_refcount_change(s, start, count, 1, &need);
            if (ret == 0) {
                *host = start << s->cluster_bits;
                if (fresh)
                    *fresh = qcow2_is_fresh(s, *host);
                s->fresh_from = max_u64(s->fresh_from, (start + count) << s->cluster_bits);
                break;
            }
        }
        if (ret != -EAGAIN)
            break;
        qcow2_unlock(s);
        ret = qcow2_co_satisfy(s, &need);
        qcow2_lock(s);
        if (ret < 0)
            break;
        checked = 0; /* somebody may have been there meanwhile */
    }
    qcow2_unlock(s);
    return ret;
}

void coroutine_fn qcow2_co_unalloc(struct qcow2 *s, uint64_t host, uint64_t count)
{
    /* An error leaves a leak, which is harmless. */
    (void)qcow2_co_refcount_change(s, host >> s->cluster_bits, count, -1);
}

/* How far ahead of need the file is made longer: appending is then overwriting, which need not wait for the
 * inode. Each time everything in flight has to end first, so it is done seldom; what is not used is cut off
 * at close. */
static uint64_t step_ahead(const struct qcow2 *s)
{
    return min_u64(max_u64(s->file_bytes / 3, 4u << 20), 256u << 20);
}

int coroutine_fn qcow2_co_extend_file(struct qcow2 *s, uint64_t bytes)
{
    int ret = 0;
    qcow2_lock(s);
    if (too_far(s, bytes)) {
        bool said = s->said_too_far;
        s->said_too_far = true;
        qcow2_unlock(s);
        if (!said)
            log_message(
                "%s: the refcounts say that everything from the end of the file, at byte %llu, up to byte "
                "%llu is in use: nothing more is allocated (mend it with ringside-img check -r leaks)",
                s->node->filename, (unsigned long long)s->file_bytes, (unsigned long long)bytes);
        return -EFBIG;
    }
    while (ret == 0 && s->file_bytes < bytes) {
        if (s->extending) {
            co_queue_wait(&s->extend_waiters, &s->lock);
            continue;
        }
        s->extending = true;
        uint64_t ahead = qcow2_cluster_up(s, bytes + step_ahead(s));
        qcow2_unlock(s);
        ret = node_co_truncate(s->node->file, ahead, false, NULL);
        if (ret < 0)
            ret = node_co_truncate(s->node->file, ahead = qcow2_cluster_up(s, bytes), false, NULL);
        qcow2_lock(s);
        s->extending = false;
        if (ret == 0) {
            __atomic_store_n(&s->file_bytes, ahead, __ATOMIC_RELEASE);
            survivor_grew(s);
            survivor_touch(s);
        }
        co_queue_wake_all(&s->extend_waiters);
    }
    qcow2_unlock(s);
    return ret;
}

/* Counts one more stream in the cluster where the last one ended, if SIZE bytes fit there; -ENOSPC if not.
 * [lock] */
static int share_cluster(struct qcow2 *s, uint64_t size, uint64_t *host, struct qcow2_need *need)
{
    uint64_t at = s->compressed_at;
    if (!at || size > qcow2_cluster_up(s, at) - at)
        return -ENOSPC;
    int ret = qcow2_refcount_change(s, at >> s->cluster_bits, 1, 1, need);
    if (ret == 0)
        *host = at;
    return ret == -ERANGE ? -ENOSPC : ret;
}

int coroutine_fn qcow2_co_alloc_bytes(struct qcow2 *s, uint64_t size, uint64_t *host)
{
    struct qcow2_need need = {0};
    int ret;
    qcow2_lock(s);
    for (;;) {
        ret = share_cluster(s, size, host, &need);
        if (ret == -ENOSPC) {
            uint64_t got, next, at = s->compressed_at;
            bool fresh;
            ret = qcow2_alloc_clusters(s, 1, &next, &got, &fresh, &need);
            if (ret == 0) {
                *host = next;
                /* Over the boundary, if the next cluster is the very next one. */
                if (at && next == qcow2_cluster_up(s, at) &&
                    qcow2_refcount_change(s, at >> s->cluster_bits, 1, 1, &need) == 0)
                    *host = at;
            }
        }
        if (ret != -EAGAIN)
            break;
        qcow2_unlock(s);
        ret = qcow2_co_satisfy(s, &need);
        qcow2_lock(s);
        if (ret < 0)
            break;
    }
    if (ret == 0) {
        s->compressed_at = *host + size;
        if (!(s->compressed_at & (s->cluster_bytes - 1)))
            s->compressed_at = 0;
    }
    qcow2_unlock(s);
    return ret;
}
