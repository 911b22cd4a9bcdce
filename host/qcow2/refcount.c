/*
 * Refcounts (checklist E): widths of 1 to 64 bits, read and changed in slices of their blocks.
 *
 * What always holds: an increment that the width cannot hold fails and changes nothing.
 */
#include <errno.h>

#include "host/qcow2/qcow2_state.h"

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
