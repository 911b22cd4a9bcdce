/*
 * Inflight I/O tracking: the split and the packed region (see ring_inflight.h).
 *
 * Split: an entry for each head says whether it is in flight, and with which counter. A batch that is given
 * back is first chained from last_batch_head; then the ring's used index moves; then the entries are cleared
 * and the region's used_idx follows. A used_idx that differs from the ring's shows a death in between.
 *
 * Packed: descriptors are overwritten in the ring, so the region holds copies of them in entries that form a
 * free list. free_head, used_idx and its wrap counter have "old" twins, which follow when a change is
 * complete: a difference shows a death in between, and the ring's descriptor at old_used_idx shows on which
 * side.
 */
#include "host/device/ring_inflight.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/device/virtqueue.h"

#define STORE(lvalue, value) __atomic_store_n(&(lvalue), (value), __ATOMIC_RELAXED)
#define LOAD(lvalue)         __atomic_load_n(&(lvalue), __ATOMIC_RELAXED)

/* Keeps the compiler from moving a store across. */
static void keep_order(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

size_t ring_inflight_bytes(bool packed, unsigned size)
{
    if (packed)
        return sizeof(struct vhost_user_inflight_packed) +
               size * sizeof(struct vhost_user_inflight_desc_packed);
    return sizeof(struct vhost_user_inflight_split) + size * sizeof(struct vhost_user_inflight_desc_split);
}

bool ring_inflight_any(bool packed, const void *region, unsigned size)
{
    const struct vhost_user_inflight_split *split = region;
    const struct vhost_user_inflight_packed *ring = region;

    for (unsigned i = 0; i < size; i++)
        if (packed ? LOAD(ring->desc[i].inflight) : LOAD(split->desc[i].inflight))
            return true;
    return false;
}

static int by_counter(const void *a, const void *b)
{
    const struct inflight_request *x = a, *y = b;

    if (x->counter != y->counter)
        return x->counter < y->counter ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

static void sort_found(struct ring_inflight *inflight)
{
    if (inflight->num_requests == 0)
        return;
    qsort(inflight->requests, inflight->num_requests, sizeof(inflight->requests[0]), by_counter);
    /* At UINT64_MAX it would start again from 0: a stranger's doing, and no worse than another order. */
    inflight->counter = inflight->requests[inflight->num_requests - 1].counter + 1;
}

/* ---- split ---- */

static void split_fresh(struct ring_inflight *inflight, uint16_t used_idx)
{
    struct vhost_user_inflight_split *region = inflight->split;

    inflight->used_idx = used_idx;
    memset(region->desc, 0, inflight->size * sizeof(region->desc[0]));
    STORE(region->features, 0);
    STORE(region->desc_num, inflight->size);
    STORE(region->last_batch_head, 0);
    STORE(region->used_idx, used_idx);
    keep_order();
    STORE(region->version, 1);
}

static int split_recover(struct ring_inflight *inflight, struct virtqueue *vq, const char **why)
{
    struct vhost_user_inflight_split *region = inflight->split;
    uint16_t used_idx = vq->split.used_idx;
    uint16_t batch = (uint16_t)(used_idx - LOAD(region->used_idx));
    uint16_t at = LOAD(region->last_batch_head);

    if (LOAD(region->desc_num) != inflight->size) {
        *why = "the inflight region is for a queue of another size";
        return -EINVAL;
    }
    if (batch > inflight->size) {
        *why = "the inflight region's used_idx is further from the ring's than the queue is long";
        return -EINVAL;
    }
    inflight->last_batch_head = at < inflight->size ? at : 0;
    /* Death after the ring's index had moved: these were given back. */
    for (uint16_t i = 0; i < batch; i++) {
        if (at >= inflight->size) {
            *why = "the inflight region's last batch leads outside of it";
            return -EINVAL;
        }
        STORE(region->desc[at].inflight, 0);
        at = LOAD(region->desc[at].next);
    }
    keep_order();
    inflight->used_idx = used_idx;
    STORE(region->used_idx, used_idx);
    for (uint16_t i = 0; i < inflight->size; i++)
        if (LOAD(region->desc[i].inflight))
            inflight->requests[inflight->num_requests++] =
                (struct inflight_request){.entry = i, .counter = LOAD(region->desc[i].counter)};
    sort_found(inflight);
    vq->split.last_avail = vq->split.avail_idx = (uint16_t)(used_idx + inflight->num_requests);
    return 0;
}

void ring_inflight_split_popped(struct ring_inflight *inflight, uint16_t head)
{
    struct vhost_user_inflight_desc_split *desc = &inflight->split->desc[head];

    STORE(desc->counter, inflight->counter++);
    keep_order();
    STORE(desc->inflight, 1);
}

/* ---- packed ---- */

/* Both used indexes with their wrap counters, in one store: a death between them could not be told apart from
 * one in the middle of a batch. */
static void store_used(struct ring_inflight *inflight)
{
    union {
        struct {
            uint16_t used_idx, old_used_idx;
            uint8_t used_wrap, old_used_wrap, padding[2];
        } fields;
        uint64_t word;
    } value = {
        .fields = {
            inflight->used_idx, inflight->old_used_idx, inflight->used_wrap, inflight->old_used_wrap, {0}}};

    _Static_assert(offsetof(struct vhost_user_inflight_packed, used_idx) == 16 &&
                       offsetof(struct vhost_user_inflight_packed, old_used_wrap_counter) == 21,
                   "one aligned word");
    __atomic_store_n((uint64_t *)((uint8_t *)inflight->packed + 16), value.word, __ATOMIC_RELAXED);
}

static void packed_fresh(struct ring_inflight *inflight, const struct virtqueue *vq)
{
    struct vhost_user_inflight_packed *region = inflight->packed;

    memset(region->desc, 0, inflight->size * sizeof(region->desc[0]));
    for (uint16_t i = 0; i < inflight->size; i++) {
        inflight->next[i] = (uint16_t)(i + 1);
        STORE(region->desc[i].next, (uint16_t)(i + 1));
    }
    inflight->used_idx = inflight->old_used_idx = vq->ring.used_idx;
    inflight->used_wrap = inflight->old_used_wrap = vq->ring.used_wrap;
    STORE(region->features, 0);
    STORE(region->desc_num, inflight->size);
    STORE(region->free_head, 0);
    STORE(region->old_free_head, 0);
    store_used(inflight);
    keep_order();
    STORE(region->version, 1);
}

/* Copies what the region says of the request whose first descriptor is in ENTRY. SEEN marks entries that
 * belong to some list already, the free one included. */
static int packed_take_up(struct ring_inflight *inflight, uint16_t entry, bool *seen, uint32_t *num_descs)
{
    struct vhost_user_inflight_desc_packed *desc = inflight->packed->desc;
    uint16_t num = LOAD(desc[entry].num), at = entry;

    if (num == 0 || num > inflight->size)
        return -EINVAL;
    inflight->requests[inflight->num_requests++] = (struct inflight_request){
        .entry = entry, .num = num, .first = *num_descs, .counter = LOAD(desc[entry].counter)};
    inflight->num[entry] = num;
    for (uint16_t i = 0; i < num; i++) {
        if (at >= inflight->size || seen[at])
            return -EINVAL;
        seen[at] = true;
        inflight->descs[(*num_descs)++] = (struct virtq_packed_desc){.addr = le64_put(LOAD(desc[at].addr)),
                                                                     .len = le32_put(LOAD(desc[at].len)),
                                                                     .id = le16_put(LOAD(desc[at].id)),
                                                                     .flags = le16_put(LOAD(desc[at].flags))};
        inflight->last[entry] = at;
        at = inflight->next[at] = LOAD(desc[at].next);
    }
    return 0;
}

/* Entries that belong to nothing (the work of a stranger) would be missed one day: all that no request holds
 * are put into a new free list. */
static void packed_rebuild_free_list(struct ring_inflight *inflight)
{
    bool *held = (bool *)inflight->batch; /* not in use yet, and larger */

    memset(held, 0, inflight->size * sizeof(*held));
    for (unsigned r = 0; r < inflight->num_requests; r++) {
        uint16_t at = inflight->requests[r].entry;

        for (uint16_t i = 0; i < inflight->requests[r].num; i++) {
            held[at] = true;
            at = inflight->next[at];
        }
    }
    inflight->free_head = inflight->size;
    for (unsigned i = inflight->size; i-- > 0;) {
        if (held[i])
            continue;
        inflight->next[i] = inflight->free_head;
        STORE(inflight->packed->desc[i].next, inflight->free_head);
        STORE(inflight->packed->desc[i].inflight, 0);
        inflight->free_head = (uint16_t)i;
    }
}

/* A batch's later used descriptors are written before its first one, which shows them all. A death in between
 * leaves them in places that are still ours, where the driver would come upon them too early. */
static void packed_hide_unshown(struct ring_inflight *inflight, struct virtqueue *vq, uint32_t places)
{
    uint16_t at = inflight->used_idx;
    bool wrap = inflight->used_wrap;

    for (uint32_t i = 0; i < places; i++) {
        le16 *flags = &vq->ring.desc[at].flags;

        if (!!(le16_load(flags) & VIRTQ_DESC_F_USED) == wrap)
            le16_store(flags, wrap ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED);
        if (++at == inflight->size) {
            at = 0;
            wrap = !wrap;
        }
    }
}

static int packed_recover(struct ring_inflight *inflight, struct virtqueue *vq, const char **why)
{
    struct vhost_user_inflight_packed *region = inflight->packed;
    uint16_t free_head = LOAD(region->free_head), old_free_head = LOAD(region->old_free_head);
    uint16_t used_idx = LOAD(region->used_idx), old_used_idx = LOAD(region->old_used_idx);
    bool used_wrap = LOAD(region->used_wrap_counter) & 1,
         old_used_wrap = LOAD(region->old_used_wrap_counter) & 1;
    uint32_t num_descs = 0, num_free = 0, places;
    bool *seen;

    *why = "the inflight region's lists of descriptors contradict each other";
    if (LOAD(region->desc_num) != inflight->size) {
        *why = "the inflight region is for a queue of another size";
        return -EINVAL;
    }
    if (used_idx >= inflight->size || old_used_idx >= inflight->size) {
        *why = "the inflight region's used_idx lies outside the ring";
        return -EINVAL;
    }
    if (used_idx != old_used_idx || used_wrap != old_used_wrap) {
        uint16_t flags = le16_load_acquire(&vq->ring.desc[old_used_idx].flags);

        /* Still as the driver made it available? Then the batch was not shown, and never was. */
        if (!!(flags & VIRTQ_DESC_F_AVAIL) != old_used_wrap ||
            !!(flags & VIRTQ_DESC_F_USED) == old_used_wrap) {
            old_free_head = free_head;
            old_used_idx = used_idx;
            old_used_wrap = used_wrap;
        }
    }
    seen = calloc(inflight->size, sizeof(*seen));
    if (!seen)
        return -ENOMEM;
    inflight->free_head = old_free_head;
    inflight->used_idx = inflight->old_used_idx = old_used_idx;
    inflight->used_wrap = inflight->old_used_wrap = old_used_wrap;
    /* The free list ends with the first index outside the region. What is on it is not in flight: neither a
     * request whose taking was not finished, nor one whose giving back was. */
    for (uint16_t at = old_free_head; at < inflight->size && !seen[at]; at = inflight->next[at]) {
        seen[at] = true;
        num_free++;
        STORE(region->desc[at].inflight, 0);
        inflight->next[at] = LOAD(region->desc[at].next);
    }
    for (uint16_t i = 0; i < inflight->size; i++)
        if (!seen[i] && LOAD(region->desc[i].inflight) && packed_take_up(inflight, i, seen, &num_descs) < 0) {
            free(seen);
            return -EINVAL;
        }
    if (num_free + num_descs != inflight->size)
        packed_rebuild_free_list(inflight);
    free(seen);
    /* Written back, so that the next one finds what this one made of it. */
    STORE(region->free_head, inflight->free_head);
    STORE(region->old_free_head, inflight->free_head);
    keep_order();
    store_used(inflight);
    sort_found(inflight);
    packed_hide_unshown(inflight, vq, num_descs);
    vq->ring.used_idx = inflight->used_idx;
    vq->ring.used_wrap = inflight->used_wrap;
    vq->ring.in_flight = num_descs;
    places = inflight->used_idx + num_descs; /* num_descs <= size: no entry was taken twice */
    vq->ring.last_avail = (uint16_t)(places % inflight->size);
    vq->ring.avail_wrap = inflight->used_wrap ^ (places >= inflight->size);
    return 0;
}

void ring_inflight_packed_desc(struct ring_inflight *inflight, uint64_t addr, uint32_t len, uint16_t flags,
                               uint16_t id, uint16_t index)
{
    struct vhost_user_inflight_desc_packed *desc;

    /* There are as many entries as the ring has places, and virtqueue_packed_pop counts those in flight. */
    if (index == 0)
        inflight->cursor = inflight->free_head;
    desc = &inflight->packed->desc[inflight->cursor];
    STORE(desc->addr, addr);
    STORE(desc->len, len);
    STORE(desc->flags, flags);
    STORE(desc->id, id);
    inflight->last[inflight->free_head] = inflight->cursor;
    inflight->cursor = inflight->next[inflight->cursor];
}

uint16_t ring_inflight_packed_popped(struct ring_inflight *inflight, uint16_t num)
{
    struct vhost_user_inflight_packed *region = inflight->packed;
    uint16_t entry = inflight->free_head;
    struct vhost_user_inflight_desc_packed *desc = &region->desc[entry];

    inflight->num[entry] = num;
    STORE(desc->num, num);
    STORE(desc->last, inflight->last[entry]);
    STORE(desc->counter, inflight->counter++);
    STORE(desc->inflight, 1);
    inflight->free_head = inflight->cursor;
    STORE(region->free_head, inflight->free_head);
    keep_order();
    /* Up to here the entries still belong to the free list that old_free_head begins. */
    STORE(region->old_free_head, inflight->free_head);
    return entry;
}

/* ---- both ---- */

/* Of the region's `features`, which no version of the format has any of: known to us alone, and safe to miss.
 */
#define FEATURE_WRITE_THROUGH (1ull << 63)

void ring_inflight_note_write_through(struct ring_inflight *inflight, bool on)
{
    /* Both layouts have it at the same place. */
    STORE(inflight->split->features, on ? FEATURE_WRITE_THROUGH : 0);
}

bool ring_inflight_write_through(const struct ring_inflight *inflight)
{
    return LOAD(inflight->split->features) & FEATURE_WRITE_THROUGH;
}

void ring_inflight_pushed(struct ring_inflight *inflight, uint16_t entry)
{
    inflight->batch[inflight->num_batch++] = entry;
}

void ring_inflight_before_publish(struct ring_inflight *inflight)
{
    uint32_t places;

    if (!inflight->is_packed) {
        struct vhost_user_inflight_split *region = inflight->split;

        for (uint32_t i = 0; i < inflight->num_batch; i++) {
            STORE(region->desc[inflight->batch[i]].next, inflight->last_batch_head);
            keep_order();
            inflight->last_batch_head = inflight->batch[i];
            STORE(region->last_batch_head, inflight->last_batch_head);
        }
        keep_order();
        return;
    }
    places = inflight->used_idx;
    for (uint32_t i = 0; i < inflight->num_batch; i++) {
        uint16_t entry = inflight->batch[i], last = inflight->last[entry];

        inflight->next[last] = inflight->free_head;
        STORE(inflight->packed->desc[last].next, inflight->free_head);
        keep_order();
        inflight->free_head = entry;
        STORE(inflight->packed->free_head, entry);
        places += inflight->num[entry];
    }
    inflight->used_idx = (uint16_t)(places % inflight->size);
    inflight->used_wrap ^= (places / inflight->size) & 1;
    keep_order();
    store_used(inflight);
    keep_order();
}

void ring_inflight_published(struct ring_inflight *inflight)
{
    keep_order();
    if (!inflight->is_packed) {
        struct vhost_user_inflight_split *region = inflight->split;

        for (uint32_t i = 0; i < inflight->num_batch; i++)
            STORE(region->desc[inflight->batch[i]].inflight, 0);
        keep_order();
        inflight->used_idx = (uint16_t)(inflight->used_idx + inflight->num_batch);
        STORE(region->used_idx, inflight->used_idx);
    } else {
        struct vhost_user_inflight_packed *region = inflight->packed;

        for (uint32_t i = 0; i < inflight->num_batch; i++)
            STORE(region->desc[inflight->batch[i]].inflight, 0);
        keep_order();
        STORE(region->old_free_head, inflight->free_head);
        keep_order();
        inflight->old_used_idx = inflight->used_idx;
        inflight->old_used_wrap = inflight->used_wrap;
        store_used(inflight);
    }
    inflight->num_batch = 0;
}

int ring_inflight_init(struct ring_inflight *inflight, void *region, size_t bytes, struct virtqueue *vq,
                       const char **why)
{
    uint16_t version;
    int result;

    memset(inflight, 0, sizeof(*inflight));
    inflight->is_packed = vq->packed;
    inflight->size = vq->size;
    if (bytes < ring_inflight_bytes(vq->packed, vq->size) || (uintptr_t)region % sizeof(uint64_t) != 0) {
        *why = "the inflight region is too small for the queue, or not aligned";
        return -EINVAL;
    }
    if (vq->packed)
        inflight->packed = region;
    else
        inflight->split = region;
    inflight->batch = calloc(vq->size, sizeof(*inflight->batch));
    inflight->requests = calloc(vq->size, sizeof(*inflight->requests));
    if (!inflight->batch || !inflight->requests)
        goto no_memory;
    if (vq->packed) {
        inflight->next = calloc(vq->size, sizeof(*inflight->next));
        inflight->last = calloc(vq->size, sizeof(*inflight->last));
        inflight->num = calloc(vq->size, sizeof(*inflight->num));
        inflight->descs = calloc(vq->size, sizeof(*inflight->descs));
        if (!inflight->next || !inflight->last || !inflight->num || !inflight->descs)
            goto no_memory;
    }
    /* Both layouts have it at the same place. */
    version = LOAD(inflight->split->version);
    if (version > 1) {
        *why = "the inflight region has a version that is not known";
        result = -EINVAL;
    } else if (version == 0) {
        /* Nothing was ever in it: what the ring says holds, whatever its indexes are. */
        result = 0;
        inflight->fresh = true;
        if (vq->packed) {
            packed_fresh(inflight, vq);
        } else if ((uint16_t)(vq->split.last_avail - vq->split.used_idx) > vq->size) {
            *why = "the used index is further behind the available index than the queue is long";
            result = -EINVAL;
        } else {
            split_fresh(inflight, vq->split.used_idx);
        }
    } else {
        result = vq->packed ? packed_recover(inflight, vq, why) : split_recover(inflight, vq, why);
    }
    if (result < 0)
        ring_inflight_free(inflight);
    return result;

no_memory:
    *why = "no memory for the inflight region's copies";
    ring_inflight_free(inflight);
    return -ENOMEM;
}

void ring_inflight_begin_anew(bool packed, void *region, size_t bytes)
{
    struct vhost_user_inflight_split *split = region;
    struct vhost_user_inflight_packed *ring = region;
    uint16_t size;

    if (bytes < ring_inflight_bytes(packed, 0))
        return;
    size = packed ? LOAD(ring->desc_num) : LOAD(split->desc_num);
    if (LOAD(split->version) != 1 || ring_inflight_bytes(packed, size) > bytes)
        return;
    if (!ring_inflight_any(packed, region, size))
        STORE(split->version, 0);
}

void ring_inflight_free(struct ring_inflight *inflight)
{
    free(inflight->batch);
    free(inflight->requests);
    free(inflight->next);
    free(inflight->last);
    free(inflight->num);
    free(inflight->descs);
    memset(inflight, 0, sizeof(*inflight));
}
