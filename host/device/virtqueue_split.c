/*
 * Split virtqueue, device side (virtio 1.4, 2.7).
 *
 * The driver writes the descriptor table and the available ring, the device the used ring; indexes count
 * modulo 2^16 and never go back. The two sides meet at four barriers, each of which names its partner below.
 */
#include <errno.h>

#include "host/device/virtqueue.h"
#include "host/device/virtqueue_audit.h"

/* After ring[size] of the available ring stands used_event, after that of the used ring avail_event. */
static le16 *used_event(const struct virtqueue *vq)
{
    return &vq->split.avail->ring[vq->size];
}

static le16 *avail_event(const struct virtqueue *vq)
{
    return (le16 *)&vq->split.used->ring[vq->size];
}

int virtqueue_split_init(struct virtqueue *vq, const struct virtqueue_setup *setup, const char **why)
{
    if (vq->size & (vq->size - 1)) {
        *why = "the size of a split queue is not a power of two (2.7)";
        return -EINVAL;
    }
    if ((uintptr_t)setup->desc % VIRTQ_DESC_ALIGN || (uintptr_t)setup->driver % VIRTQ_AVAIL_ALIGN ||
        (uintptr_t)setup->device % VIRTQ_USED_ALIGN) {
        *why = "a part of the ring is not aligned (2.7)";
        return -EINVAL;
    }
    vq->mask = (uint16_t)(vq->size - 1u);
    vq->split.desc = setup->desc;
    vq->split.avail = setup->driver;
    vq->split.used = setup->device;
    vq->split.last_avail = vq->split.avail_idx = setup->last_avail_idx;
    vq->split.used_idx = le16_load(&vq->split.used->idx);
    /* A ring that goes on where another device left it must not come with more in flight than it can hold. */
    if (!setup->indexes_follow && (uint16_t)(vq->split.last_avail - vq->split.used_idx) > vq->size) {
        *why = "the used index is further behind the available index than the queue is long";
        return -EINVAL;
    }
    return 0;
}

bool virtqueue_split_has_more(struct virtqueue *vq)
{
    if (vq->split.avail_idx == vq->split.last_avail)
        /* Pairs with the driver's release of avail->idx, after descriptors and ring entry (2.7.13.3.1). */
        vq->split.avail_idx = le16_load_acquire(&vq->split.avail->idx);
    return vq->split.avail_idx != vq->split.last_avail;
}

/* Walks an indirect table (2.7.5.3). It is read where it lies; one that crosses regions goes descriptor by
 * descriptor through guest_memory_read. */
static int walk_table(struct virtqueue *vq, struct virtq_chain *chain, uint64_t addr, uint32_t len)
{
    const uint8_t *table = guest_memory_pointer(vq->memory, (guest_addr){addr}, len);
    uint32_t count = len / sizeof(struct virtq_desc);
    uint32_t at = 0, seen = 0;

    if (len == 0 || len % sizeof(struct virtq_desc) != 0 || count > VIRTQUEUE_MAX_SIZE) {
        vq->why = "an indirect table's length is 0, no multiple of 16, or too large (2.7.5.3)";
        return -EPROTO;
    }
    for (;;) {
        union {
            struct virtq_words words;
            struct virtq_desc desc;
        } read;
        uint16_t flags;

        if (table)
            read.words = virtq_load_words(table + (size_t)at * sizeof(struct virtq_desc));
        else if (guest_memory_read(vq->memory, (guest_addr){addr + (uint64_t)at * sizeof(struct virtq_desc)},
                                   &read, sizeof(read)) < 0)
            return virtq_outside(vq, addr, len, false, "an indirect table lies outside the guest's memory");
        flags = le16_get(read.desc.flags);
        if (__builtin_expect(vq->audit != NULL, 0))
            audit_desc(vq->audit, true, flags, le32_get(read.desc.len), le16_get(read.desc.next), at);
        if (flags & VIRTQ_DESC_F_INDIRECT) {
            vq->why = "an indirect table contains an indirect descriptor (2.7.5.3.1)";
            return -EPROTO;
        }
        if (virtq_chain_add(vq, chain, le64_get(read.desc.addr), le32_get(read.desc.len),
                            flags & VIRTQ_DESC_F_WRITE) < 0)
            return -EPROTO;
        if (!(flags & VIRTQ_DESC_F_NEXT))
            return 0;
        at = le16_get(read.desc.next);
        if (at >= count) {
            vq->why = "a descriptor's next lies outside its indirect table";
            return -EPROTO;
        }
        if (++seen == count) {
            vq->why = "the descriptors of an indirect table form a loop";
            return -EPROTO;
        }
    }
}

static int walk_chain(struct virtqueue *vq, struct virtq_chain *chain, uint16_t head)
{
    uint16_t at = head, seen = 0;

    for (;;) {
        union {
            struct virtq_words words;
            struct virtq_desc desc;
        } read;
        uint16_t flags;

        read.words = virtq_load_words(&vq->split.desc[at]);
        flags = le16_get(read.desc.flags);
        if (__builtin_expect(vq->audit != NULL, 0))
            audit_desc(vq->audit, false, flags, le32_get(read.desc.len), le16_get(read.desc.next), at);
        if (flags & VIRTQ_DESC_F_INDIRECT) {
            if (!vq->indirect) {
                vq->why = "an indirect descriptor without INDIRECT_DESC negotiated (2.7.5.3.1)";
                return -EPROTO;
            }
            if (flags & VIRTQ_DESC_F_NEXT) {
                vq->why = "a descriptor is both indirect and continued (2.7.5.3.1)";
                return -EPROTO;
            }
            /* WRITE means nothing here (2.7.5.3.2). */
            return walk_table(vq, chain, le64_get(read.desc.addr), le32_get(read.desc.len));
        }
        if (virtq_chain_add(vq, chain, le64_get(read.desc.addr), le32_get(read.desc.len),
                            flags & VIRTQ_DESC_F_WRITE) < 0)
            return -EPROTO;
        if (!(flags & VIRTQ_DESC_F_NEXT))
            return 0;
        at = le16_get(read.desc.next);
        if (at >= vq->size) {
            vq->why = "a descriptor's next lies outside the descriptor table";
            return -EPROTO;
        }
        if (++seen == vq->size) {
            vq->why = "the descriptors of a chain form a loop";
            return -EPROTO;
        }
    }
}

int virtqueue_split_pop(struct virtqueue *vq, struct virtq_chain *chain)
{
    uint16_t waiting, taken, head;

    if (!virtqueue_split_has_more(vq))
        return 0;
    waiting = (uint16_t)(vq->split.avail_idx - vq->split.last_avail);
    taken = (uint16_t)(vq->split.last_avail - vq->split.used_idx); /* and not yet shown as used */
    if ((uint32_t)waiting + taken > vq->size) {
        vq->why = "avail.idx is further ahead of the used index than the queue is long";
        return -EPROTO;
    }
    head = le16_load(&vq->split.avail->ring[vq->split.last_avail & vq->mask]);
    if (head >= vq->size) {
        vq->why = "the available ring names a descriptor outside the table";
        return -EPROTO;
    }
    virtq_chain_begin(chain, head);
    if (walk_chain(vq, chain, head) < 0)
        return -EPROTO;
    vq->split.last_avail++;
    return 1;
}

int virtqueue_split_repop(struct virtqueue *vq, uint16_t head, struct virtq_chain *chain)
{
    virtq_chain_begin(chain, head);
    return walk_chain(vq, chain, head) < 0 ? -EPROTO : 1;
}

void virtqueue_split_push(struct virtqueue *vq, uint16_t id, uint32_t len, unsigned buffers)
{
    struct virtq_used_elem *elem =
        &vq->split.used->ring[(uint16_t)(vq->split.used_idx + vq->split.pending) & vq->mask];

    le32_store(&elem->id, id);
    le32_store(&elem->len, len);
    vq->split.pending = (uint16_t)(vq->split.pending + buffers);
}

bool virtqueue_split_publish(struct virtqueue *vq)
{
    if (vq->split.pending == 0)
        return false;
    vq->split.used_idx = (uint16_t)(vq->split.used_idx + vq->split.pending);
    vq->since_signal += vq->split.pending;
    vq->split.pending = 0;
    /* Pairs with the driver's acquire of used->idx before it reads the entries and the data
     * (2.7.8.2, 2.7.14). */
    le16_store_release(&vq->split.used->idx, vq->split.used_idx);
    return true;
}

bool virtqueue_split_needs_interrupt(struct virtqueue *vq)
{
    uint32_t since = vq->since_signal;

    /* Full barrier between the store to used->idx and the loads below; pairs with the driver's, between its
     * store of used_event or avail->flags and its last look at used->idx (2.7.7.2, 2.7.14). Without the two,
     * both sides could miss each other. */
    virtq_full_barrier();
    if (!vq->event_idx)
        return !(le16_load(&vq->split.avail->flags) & VIRTQ_AVAIL_F_NO_INTERRUPT);
    vq->since_signal = 0;
    /* A whole lap of the index passes every event. */
    return since > UINT16_MAX || virtq_event_passed(le16_load(used_event(vq)), vq->split.used_idx,
                                                    (uint16_t)(vq->split.used_idx - since));
}

void virtqueue_split_set_notification(struct virtqueue *vq, bool on)
{
    if (vq->event_idx) {
        /* used->flags stays 0 (2.7.10.2). An event index that is not moved on is as good as "off". */
        if (!on)
            return;
        le16_store(avail_event(vq), vq->split.last_avail);
    } else {
        le16_store(&vq->split.used->flags, on ? 0 : VIRTQ_USED_F_NO_NOTIFY);
    }
    /* Full barrier between this store and the caller's next look at avail->idx; pairs with the driver's,
     * between its store of avail->idx and its load of avail_event or used->flags (2.7.13.4.1). */
    if (on)
        virtq_full_barrier();
}
