/*
 * A virtqueue seen by its driver: the small interface that the split ring (vq_split.c; virtio 1.4, 2.7) and
 * the packed ring (vq_packed.c; 2.8) share. Private to guest/driver. One owner at a time.
 *
 * What always holds: everything needed to go on (free descriptors, chains in flight, indexes) lies in private
 * memory; ring memory is written, and of it only used entries, the used index and the device's notification
 * wishes are read, once each, checked before use. A breach sets `broken`, and nothing but vq_reset leads out
 * of that.
 *
 * A chain is built by vq_begin, that reserves room or says no, and as many vq_add as were announced; they
 * can't fail. vq_publish shows it to the device. Notifying is apart: vq_want_notify, once for any number of
 * chains.
 */
#ifndef RINGSIDE_VQ_H
#define RINGSIDE_VQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/virtio_ring.h"
#include "guest/driver/vblk_platform.h"

#define VQ_LEN_UNKNOWN UINT32_MAX

/* What the driver remembers of a chain; index: head descriptor (split) or buffer id (packed). */
struct vq_chain {
    uint32_t writable; /* bytes that the device may write, summed over the chain */
    uint16_t token;
    uint16_t ndesc; /* ring descriptors it takes; 0: not in flight */
    uint16_t tail;  /* split: its last descriptor */
    uint16_t link;  /* the next free descriptor (split) or id (packed) */
};

struct vq;

struct vq_ops {
    void (*init)(struct vq *vq);
    void (*begin)(struct vq *vq);
    void (*add)(struct vq *vq, uint64_t addr, uint32_t len, uint16_t flags);
    void (*publish)(struct vq *vq);
    bool (*want_notify)(struct vq *vq);
    int (*pop)(struct vq *vq, uint16_t *token, uint32_t *len);
    void (*interrupts_off)(struct vq *vq);
    bool (*interrupts_on)(struct vq *vq);
};

struct vq {
    const struct vq_ops *ops;
    struct vq_chain *chains;
    uint16_t size;
    uint16_t num_free;  /* descriptors */
    uint16_t in_flight; /* chains */
    uint16_t free_head; /* descriptor (split), id (packed) */
    bool event_idx, in_order, order_platform;
    bool ignore_len; /* legacy devices get used lengths wrong (2.7.8.1) */
    bool broken;

    struct { /* the chain being built */
        uint16_t head;
        uint16_t at;   /* next descriptor, or entry of the table */
        uint16_t left; /* adds to come */
        uint16_t ndesc;
        uint16_t token;
        uint16_t last; /* split: descriptor written last */
        uint32_t writable;
        void *table; /* indirect, or NULL */
        uint64_t table_addr;
        uint16_t table_len;
        uint16_t first_flags; /* packed: withheld until vq_publish */
    } build;

    /* Batch of an IN_ORDER device: chains up to batch_last are done (2.7.9, 2.8.8) */
    uint16_t oldest, batch_last;
    uint32_t batch_len;
    bool in_batch;

    uint16_t kicked;    /* split: avail.idx at the last vq_want_notify */
    uint16_t last_used; /* split: index; packed: slot */
    union {
        struct {
            struct virtq_desc *desc;
            struct virtq_avail *avail;
            struct virtq_used *used;
            uint16_t avail_idx;
            uint16_t used_seen; /* used.idx as read last, checked */
            uint16_t avail_flags;
        } split;
        struct {
            struct virtq_packed_desc *desc;
            struct virtq_packed_event *driver, *device;
            uint16_t next;  /* slot */
            uint16_t added; /* descriptors since the last vq_want_notify */
            bool wrap, used_wrap;
        } packed;
    } u;

    vblk_dma_addr addr_desc, addr_driver, addr_device;
};

extern const struct vq_ops vq_split_ops;
extern const struct vq_ops vq_packed_ops;

/* Bytes of shared memory for a ring of SIZE, any format; alignment: 4096 with LEGACY, else 64. And where the
 * split ring's two later parts begin in them. */
size_t vq_split_bytes(unsigned size, bool legacy, size_t *avail_at, size_t *used_at);
size_t vq_packed_bytes(unsigned size, size_t *driver_at, size_t *device_at);

/* Gives VQ its memory: MEM shared and at ADDR for the device, CHAINS private and SIZE long. Flags (event_idx,
 * ...) are set by the caller before. Zeroes the ring (2.7.10.1, 2.8.13) and starts at index 0. */
void vq_setup_split(struct vq *vq, unsigned size, struct vq_chain *chains, void *mem, vblk_dma_addr addr,
                    bool legacy);
void vq_setup_packed(struct vq *vq, unsigned size, struct vq_chain *chains, void *mem, vblk_dma_addr addr);

/* After the device let go of the ring (reset): forgets all chains, zeroes the ring, starts anew. */
static inline void vq_reset(struct vq *vq)
{
    vq->broken = false;
    vq->ops->init(vq);
}

/* Starts a chain of N buffers that will be known as TOKEN. TABLE: memory for N table entries at TABLE_ADDR,
 * or NULL for a chain in the ring itself. False if there is no room; then nothing has changed. */
static inline bool vq_begin(struct vq *vq, uint16_t token, unsigned n, void *table, uint64_t table_addr)
{
    unsigned ndesc = table ? 1 : n;

    if (ndesc > vq->num_free)
        return false;
    vq->build.token = token;
    vq->build.left = (uint16_t)n;
    vq->build.ndesc = (uint16_t)ndesc;
    vq->build.writable = 0;
    vq->build.table = table;
    vq->build.table_addr = table_addr;
    vq->build.table_len = (uint16_t)n;
    vq->ops->begin(vq);
    return true;
}

/* The next buffer; WRITE: the device writes it. All device-readable ones come first (2.7.4.2, 2.8.17). */
static inline void vq_add(struct vq *vq, uint64_t addr, uint32_t len, bool write)
{
    if (write)
        vq->build.writable += len;
    vq->ops->add(vq, addr, len, write ? VIRTQ_DESC_F_WRITE : 0);
}

static inline void vq_publish(struct vq *vq)
{
    vq->ops->publish(vq);
}

/* Whether the device wants to hear of what was published since the last call. */
static inline bool vq_want_notify(struct vq *vq)
{
    return vq->ops->want_notify(vq);
}

/* The next chain that the device has used. 1: *TOKEN and *LEN (VQ_LEN_UNKNOWN for a chain that an IN_ORDER
 * device skipped) are set and the chain is free. 0: none. -VBLK_EIO: the device broke a rule; `broken` is
 * set. */
static inline int vq_pop(struct vq *vq, uint16_t *token, uint32_t *len)
{
    return vq->ops->pop(vq, token, len);
}

static inline void vq_interrupts_off(struct vq *vq)
{
    vq->ops->interrupts_off(vq);
}

/* True if something is there already. */
static inline bool vq_interrupts_on(struct vq *vq)
{
    return vq->ops->interrupts_on(vq);
}

/* 2.9: next_off in bits 0-14, next_wrap in bit 15. */
static inline uint16_t vq_position(const struct vq *vq)
{
    if (vq->ops == &vq_split_ops)
        return vq->u.split.avail_idx;
    return (uint16_t)(vq->u.packed.next | (vq->u.packed.wrap ? 0x8000u : 0));
}

#endif
