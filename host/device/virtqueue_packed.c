/*
 * Packed virtqueue, device side (virtio 1.4, 2.8).
 *
 * Driver and device write the same ring of descriptors, each going round it at its own pace; two flag bits
 * compared with a wrap counter say whose a descriptor is. The device takes lists in ring order and writes
 * used descriptors in the order in which it is done, each one as many places further on as its list was long.
 */
#include <errno.h>

#include "host/device/ring_inflight.h"
#include "host/device/virtqueue.h"
#include "host/device/virtqueue_audit.h"

int virtqueue_packed_init(struct virtqueue *vq, const struct virtqueue_setup *setup, const char **why)
{
    vq->ring.last_avail = setup->last_avail_idx & 0x7fffu;
    vq->ring.avail_wrap = setup->last_avail_idx >> 15;
    vq->ring.used_idx = setup->last_used_idx & 0x7fffu;
    vq->ring.used_wrap = setup->last_used_idx >> 15;
    if (vq->ring.last_avail >= vq->size || vq->ring.used_idx >= vq->size) {
        *why = "an index lies outside the packed ring";
        return -EINVAL;
    }
    if ((uintptr_t)setup->desc % VIRTQ_DESC_ALIGN || (uintptr_t)setup->driver % VIRTQ_PACKED_EVENT_ALIGN ||
        (uintptr_t)setup->device % VIRTQ_PACKED_EVENT_ALIGN) {
        *why = "a part of the ring is not aligned (2.8.11)";
        return -EINVAL;
    }
    vq->ring.desc = setup->desc;
    vq->ring.driver = setup->driver;
    vq->ring.device = setup->device;
    return 0;
}

/* 2.8.1: available when AVAIL is as the wrap counter and USED is not. */
static bool flags_available(uint16_t flags, bool wrap)
{
    return !!(flags & VIRTQ_DESC_F_AVAIL) == wrap && !!(flags & VIRTQ_DESC_F_USED) != wrap;
}

/* Pairs with the driver's barrier between writing the list and the flags of its first descriptor
 * (2.8.21.1.1). */
static uint16_t load_flags(const struct virtqueue *vq, uint16_t at)
{
    return le16_load_acquire(&vq->ring.desc[at].flags);
}

bool virtqueue_packed_has_more(struct virtqueue *vq)
{
    return flags_available(load_flags(vq, vq->ring.last_avail), vq->ring.avail_wrap);
}

/* An indirect table (2.8.7): all its entries, in order; of their flags only WRITE counts, and ids don't. */
static int walk_table(struct virtqueue *vq, struct virtq_chain *chain, uint64_t addr, uint32_t len)
{
    const uint8_t *table = guest_memory_pointer(vq->memory, (guest_addr){addr}, len);
    uint32_t count = len / sizeof(struct virtq_packed_desc);

    if (len == 0 || len % sizeof(struct virtq_packed_desc) != 0 || count > VIRTQUEUE_MAX_SIZE) {
        vq->why = "an indirect table's length is 0, no multiple of 16, or too large (2.8.7)";
        return -EPROTO;
    }
    for (uint32_t i = 0; i < count; i++) {
        union {
            struct virtq_words words;
            struct virtq_packed_desc desc;
        } read;
        uint16_t flags;

        if (table)
            read.words = virtq_load_words(table + (size_t)i * sizeof(read.desc));
        else if (guest_memory_read(vq->memory, (guest_addr){addr + (uint64_t)i * sizeof(read.desc)}, &read,
                                   sizeof(read)) < 0)
            return virtq_outside(vq, addr, len, false, "an indirect table lies outside the guest's memory");
        flags = le16_get(read.desc.flags);
        if (__builtin_expect(vq->audit != NULL, 0))
            audit_desc(vq->audit, true, flags, le32_get(read.desc.len), le16_get(read.desc.id), i);
        if (virtq_chain_add(vq, chain, le64_get(read.desc.addr), le32_get(read.desc.len),
                            flags & VIRTQ_DESC_F_WRITE) < 0)
            return -EPROTO;
    }
    return 0;
}

/* The PLACESth descriptor of a list: 1 if another one follows, 0 at the end, or -EPROTO. */
static int walk_one(struct virtqueue *vq, struct virtq_chain *chain, uint64_t addr, uint32_t len,
                    uint16_t flags, unsigned places)
{
    if (flags & VIRTQ_DESC_F_INDIRECT) {
        if (!vq->indirect) {
            vq->why = "an indirect descriptor without INDIRECT_DESC negotiated (2.8.19)";
            return -EPROTO;
        }
        if (places > 1 || (flags & VIRTQ_DESC_F_NEXT)) {
            vq->why = "an indirect descriptor is part of a list (2.8.19)";
            return -EPROTO;
        }
        return walk_table(vq, chain, addr, len);
    }
    if (virtq_chain_add(vq, chain, addr, len, flags & VIRTQ_DESC_F_WRITE) < 0)
        return -EPROTO;
    return !!(flags & VIRTQ_DESC_F_NEXT);
}

int virtqueue_packed_pop(struct virtqueue *vq, struct virtq_chain *chain)
{
    uint16_t at = vq->ring.last_avail, places = 0;
    bool wrap = vq->ring.avail_wrap;
    uint16_t flags = load_flags(vq, at);
    int result;

    if (!flags_available(flags, wrap))
        return 0;
    virtq_chain_begin(chain, 0);
    for (;;) {
        const struct virtq_packed_desc *desc = &vq->ring.desc[at];
        uint64_t addr = virtq_load_word(&desc->addr);
        uint32_t len = le32_load(&desc->len);

        chain->id = le16_load(&desc->id); /* the last one's counts (2.8.6) */
        if (__builtin_expect(vq->audit != NULL, 0))
            audit_desc(vq->audit, false, flags, len, chain->id, at);
        if (++places > vq->size - vq->ring.in_flight) {
            vq->why = "a list is longer than the places of the ring that are not in flight (2.8.17)";
            return -EPROTO;
        }
        if (vq->inflight)
            ring_inflight_packed_desc(vq->inflight, addr, len, flags, chain->id, (uint16_t)(places - 1));
        if (++at == vq->size) {
            at = 0;
            wrap = !wrap;
        }
        result = walk_one(vq, chain, addr, len, flags, places);
        if (result < 0)
            return result;
        if (result == 0)
            break;
        flags = load_flags(vq, at);
        if (!flags_available(flags, wrap)) {
            vq->why = "a list goes on in a descriptor that was not made available (2.8.12)";
            return -EPROTO;
        }
    }
    chain->num_descs = places;
    vq->ring.last_avail = at;
    vq->ring.avail_wrap = wrap;
    vq->ring.in_flight += places;
    return 1;
}

int virtqueue_packed_repop(struct virtqueue *vq, const struct virtq_packed_desc *descs, unsigned count,
                           struct virtq_chain *chain)
{
    virtq_chain_begin(chain, 0);
    chain->num_descs = (uint16_t)count;
    for (unsigned i = 0; i < count; i++) {
        int result = walk_one(vq, chain, le64_get(descs[i].addr), le32_get(descs[i].len),
                              le16_get(descs[i].flags), i + 1);

        if (result < 0)
            return result;
        if ((result == 1) != (i + 1 < count)) {
            vq->why = "the inflight region's copy of a list has another length than the list";
            return -EPROTO;
        }
    }
    chain->id = le16_get(descs[count - 1].id);
    return 1;
}

void virtqueue_packed_push(struct virtqueue *vq, uint16_t id, uint32_t len, unsigned num_descs)
{
    struct virtq_packed_desc *desc = &vq->ring.desc[vq->ring.used_idx];
    /* WRITE: some part of the buffer was written (2.8.5); the status byte always is, whatever LEN can claim.
     */
    uint16_t flags = VIRTQ_DESC_F_WRITE;

    if (vq->ring.used_wrap)
        flags |= VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
    le16_store(&desc->id, id);
    le32_store(&desc->len, len);
    if (!vq->ring.pending) {
        vq->ring.pending = true;
        vq->ring.first_slot = vq->ring.used_idx;
        vq->ring.first_flags = flags;
    } else {
        /* The driver looks here only after it has seen the batch's first descriptor, which publish shows. */
        le16_store(&desc->flags, flags);
    }
    vq->ring.pending_places += num_descs;
    vq->ring.used_idx = (uint16_t)(vq->ring.used_idx + num_descs);
    if (vq->ring.used_idx >= vq->size) {
        vq->ring.used_idx = (uint16_t)(vq->ring.used_idx - vq->size);
        vq->ring.used_wrap = !vq->ring.used_wrap;
    }
}

bool virtqueue_packed_publish(struct virtqueue *vq)
{
    if (!vq->ring.pending)
        return false;
    vq->ring.pending = false;
    vq->since_signal += vq->ring.pending_places;
    vq->ring.in_flight -= vq->ring.pending_places;
    vq->ring.pending_places = 0;
    /* Pairs with the driver's barrier between seeing these flags and reading id, len and data (2.8.22). */
    le16_store_release(&vq->ring.desc[vq->ring.first_slot].flags, vq->ring.first_flags);
    return true;
}

bool virtqueue_packed_needs_interrupt(struct virtqueue *vq)
{
    uint32_t since = vq->since_signal;
    bool wrap = vq->ring.used_wrap;
    uint16_t flags, off_wrap;
    int new_idx = vq->ring.used_idx, old_idx, event;

    /* What was pushed behind the last publish is none of the driver's business yet. */
    if (vq->ring.pending) {
        new_idx = vq->ring.first_slot;
        wrap = vq->ring.first_flags & VIRTQ_DESC_F_USED;
    }
    /* Full barrier between the used descriptors' flags and the driver's event structure; pairs with the
     * driver's, between its store to that structure and its last look at the ring (2.8.22). */
    virtq_full_barrier();
    vq->since_signal = 0;
    flags = le16_load_acquire(&vq->ring.driver->flags) & 3u;
    if (flags == VIRTQ_PACKED_EVENT_DISABLE)
        return false;
    /* Everything but DISABLE and a valid DESC means "yes": 3 is reserved, DESC needs EVENT_IDX (2.8.10). */
    if (flags != VIRTQ_PACKED_EVENT_DESC || !vq->event_idx)
        return true;
    off_wrap = le16_load(&vq->ring.driver->off_wrap);
    event = off_wrap & 0x7fff;
    /* Places counted so that those of this lap are not negative: the event of another lap is one lap back. */
    if ((off_wrap >> 15) != wrap)
        event -= vq->size;
    if (since >= 2u * vq->size)
        return true;
    old_idx = new_idx - (int)since;
    return old_idx <= event && event < new_idx;
}

void virtqueue_packed_set_notification(struct virtqueue *vq, bool on)
{
    if (!on) {
        le16_store(&vq->ring.device->flags, VIRTQ_PACKED_EVENT_DISABLE);
        return;
    }
    if (vq->event_idx) {
        le16_store(&vq->ring.device->off_wrap, virtqueue_last_avail_idx(vq));
        /* The driver must not see DESC with an older place: pairs with its loads of flags, then off_wrap. */
        le16_store_release(&vq->ring.device->flags, VIRTQ_PACKED_EVENT_DESC);
    } else {
        le16_store(&vq->ring.device->flags, VIRTQ_PACKED_EVENT_ENABLE);
    }
    /* Full barrier between this store and the caller's next look at the ring; pairs with the driver's,
     * between the flags of what it made available and its load of this structure (2.8.21.3.1). */
    virtq_full_barrier();
}
