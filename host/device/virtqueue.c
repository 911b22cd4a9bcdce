/*
 * What the two ring formats have in common: checks of the set-up, building of chains, and the choice between
 * the two.
 */
#include "host/device/virtqueue.h"

#include <errno.h>
#include <string.h>

static const struct guest_region no_region; /* empty: whatever is looked for is not in it */

int virtqueue_init(struct virtqueue *vq, const struct virtqueue_setup *setup, const char **why)
{
    /* The array of segments is not worth clearing. */
    memset(vq, 0, offsetof(struct virtqueue, iov));
    vq->memory = setup->memory;
    vq->last_region = &no_region;
    vq->packed = setup->packed;
    vq->event_idx = setup->features & VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    vq->indirect = setup->features & VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    vq->notify_wanted = true;
    if (setup->size == 0 || setup->size > VIRTQUEUE_MAX_SIZE) {
        *why = "the queue size is 0 or above 32768";
        return -EINVAL;
    }
    vq->size = (uint16_t)setup->size;
    if (!setup->desc || !setup->driver || !setup->device) {
        *why = "a part of the ring has no address";
        return -EINVAL;
    }
    return setup->packed ? virtqueue_packed_init(vq, setup, why) : virtqueue_split_init(vq, setup, why);
}

int virtqueue_pop(struct virtqueue *vq, struct virtq_chain *chain)
{
    return vq->packed ? virtqueue_packed_pop(vq, chain) : virtqueue_split_pop(vq, chain);
}

bool virtqueue_has_more(struct virtqueue *vq)
{
    return vq->packed ? virtqueue_packed_has_more(vq) : virtqueue_split_has_more(vq);
}

void virtqueue_push(struct virtqueue *vq, uint16_t id, uint32_t len, unsigned buffers, unsigned num_descs)
{
    if (vq->packed)
        virtqueue_packed_push(vq, id, len, num_descs);
    else
        virtqueue_split_push(vq, id, len, buffers);
}

bool virtqueue_publish(struct virtqueue *vq)
{
    return vq->packed ? virtqueue_packed_publish(vq) : virtqueue_split_publish(vq);
}

bool virtqueue_needs_interrupt(struct virtqueue *vq)
{
    return vq->packed ? virtqueue_packed_needs_interrupt(vq) : virtqueue_split_needs_interrupt(vq);
}

bool virtqueue_interrupts_once(const struct virtqueue *vq)
{
    return vq->event_idx &&
           (!vq->packed || (le16_load(&vq->ring.driver->flags) & 3u) == VIRTQ_PACKED_EVENT_DESC);
}

void virtqueue_set_notification(struct virtqueue *vq, bool on)
{
    vq->notify_wanted = on;
    if (vq->packed)
        virtqueue_packed_set_notification(vq, on);
    else
        virtqueue_split_set_notification(vq, on);
}

uint16_t virtqueue_last_avail_idx(const struct virtqueue *vq)
{
    if (vq->packed)
        return (uint16_t)(vq->ring.last_avail | (vq->ring.avail_wrap ? 1u << 15 : 0));
    return vq->split.last_avail;
}

uint16_t virtqueue_last_used_idx(const struct virtqueue *vq)
{
    if (vq->packed)
        return (uint16_t)(vq->ring.used_idx | (vq->ring.used_wrap ? 1u << 15 : 0));
    return vq->split.used_idx;
}

int virtq_outside(struct virtqueue *vq, uint64_t addr, uint64_t bytes, bool writable, const char *why)
{
    vq->missing = guest_memory_missing(vq->memory, (guest_addr){addr}, bytes, writable, &vq->missing_addr);
    vq->missing_writable = writable;
    vq->why = why;
    return -EPROTO;
}

int virtq_chain_add_slow(struct virtqueue *vq, struct virtq_chain *chain, uint64_t addr, uint32_t len,
                         bool writable)
{
    unsigned n = chain->out + chain->in, before = n;
    int result;

    if (!writable && chain->in_bytes > 0) {
        vq->why = "a device-readable descriptor follows a device-writable one (2.7.4.2)";
        return -EPROTO;
    }
    if (len == 0)
        return 0;
    if (__builtin_expect(vq->memory->translated, 0) &&
        guest_memory_missing(vq->memory, (guest_addr){addr}, len, writable, &vq->missing_addr))
        goto outside;
    if (!chain->too_long) {
        result = guest_memory_translate(vq->memory, (guest_addr){addr}, len, vq->iov, &n, VIRTQ_IOV_MAX);
        if (result == -ENOBUFS)
            chain->too_long = true;
        else if (result < 0)
            goto outside;
        else if (!vq->memory->translated) /* else each segment is looked up, for what it may do */
            vq->last_region = guest_memory_find(vq->memory, (guest_addr){addr});
    }
    if (chain->too_long) {
        /* Nothing but the place of the last byte is wanted any more. Each byte of it must still be there. */
        struct iovec piece;
        uint64_t left = len, at = addr;

        while (left > 0) {
            const struct guest_region *region = guest_memory_find(vq->memory, (guest_addr){at});
            uint64_t skip, here;

            if (!region)
                goto outside;
            skip = at - region->guest_addr;
            here = region->bytes - skip < left ? region->bytes - skip : left;
            piece.iov_base = region->host + skip;
            piece.iov_len = here;
            left -= here;
            at += here;
        }
        if (writable)
            chain->last_in = (uint8_t *)piece.iov_base + piece.iov_len - 1;
    } else if (writable) {
        chain->last_in = (uint8_t *)vq->iov[n - 1].iov_base + vq->iov[n - 1].iov_len - 1;
    }
    /* At most 2^16 descriptors of less than 2^32 bytes: these sums can't wrap. */
    if (writable) {
        chain->in += n - before;
        chain->in_bytes += len;
    } else {
        chain->out += n - before;
        chain->out_bytes += len;
    }
    return 0;

outside:
    return virtq_outside(vq, addr, len, writable, "a descriptor names memory outside the guest's");
}
