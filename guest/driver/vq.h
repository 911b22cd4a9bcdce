/*
 * A virtqueue seen by its driver: the small interface that the split ring (vq_split.c; virtio 1.4, 2.7) and
 * the packed ring (vq_packed.c; 2.8) share. Private to guest/driver. One owner at a time.
 *
 * What always holds: everything needed to go on (free descriptors, chains in flight, indexes) lies in private
 * memory; ring memory is written, and of it only used entries, the used index and the device's notification
 * wishes are read, once each, checked before use. A breach sets `broken`, and nothing but vq_reset leads out
 * of that.
 *
 * A chain is a header that the device reads, a list of pieces that it reads or writes, and a trailer that it
 * writes; vq_put puts all of it on the ring at once, or says that there is no room. Notifying is apart:
 * vq_want_notify, once for any number of chains.
 */
#ifndef RINGSIDE_VQ_H
#define RINGSIDE_VQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/virtio_ring.h"
#include "guest/driver/vblk_platform.h"

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int c, size_t n);

#define VQ_LEN_UNKNOWN UINT32_MAX

/* One stretch of memory as the device sees it, in a list. MEM: the caller's memory that was shared for it, or
 * NULL if it lies in the driver's own. */
struct vq_piece {
    void *mem;
    uint64_t addr;
    uint32_t len;
    uint32_t next; /* index in the pool of the next, or VQ_NO_PIECE */
};

#define VQ_NO_PIECE UINT32_MAX

/* Each token has a slot of shared memory, and a table if there are tables. In the slot, the header that the
 * device reads comes first; the trailer that it writes ends with the status byte. */
#define VQ_SLOT_BYTES  64u
#define VQ_SLOT_STATUS 40u
#define VQ_HEADER_LEN  16u

enum {
    VQ_IN = 1,          /* the device writes the pieces */
    VQ_LONG_TRAILER = 2 /* 8 bytes more, before the status */
};

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
    bool (*put)(struct vq *vq, unsigned token, const struct vq_piece *first, unsigned npieces, unsigned flags,
                uint32_t writable);
#ifndef __OPTIMIZE_SIZE__
    bool (*put_one)(struct vq *vq, unsigned token, uint64_t addr, uint32_t len, unsigned in);
#endif
    bool (*want_notify)(struct vq *vq);
    int (*pop)(struct vq *vq, uint16_t *token, uint32_t *len);
    void (*interrupts_off)(struct vq *vq);
    bool (*interrupts_on)(struct vq *vq);
};

struct vq {
    const struct vq_ops *ops;
    struct vq_chain *chains;
    const struct vq_piece *pool;
    uint64_t slots_addr;
    uint8_t *tables; /* NULL: none, chains lie in the ring itself */
    uint64_t tables_addr;
    uint32_t table_bytes; /* of each */
    unsigned mask;        /* split: size - 1 */
    uint16_t size;
    uint16_t num_free;  /* descriptors */
    uint16_t in_flight; /* chains */
    uint16_t free_head; /* descriptor (split), id (packed) */
    bool event_idx, in_order, order_platform;
    bool ignore_len; /* legacy devices get used lengths wrong (2.7.8.1) */
    bool broken;
    uint32_t lens_seen; /* all used lengths ORed: over 1 once the device has counted what it wrote */

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

/* Makes a chain available: TOKEN's header, NPIECES pieces of which FIRST is the first (NULL: none), TOKEN's
 * trailer. WRITABLE: bytes in all that the device may write. False if there is no room; then nothing has
 * changed. */
static inline bool vq_put(struct vq *vq, unsigned token, const struct vq_piece *first, unsigned npieces,
                          unsigned flags, uint32_t writable)
{
    return vq->ops->put(vq, token, first, npieces, flags, writable);
}

static inline const struct vq_piece *vq_next_piece(const struct vq *vq, const struct vq_piece *piece)
{
    return piece->next == VQ_NO_PIECE ? NULL : &vq->pool[piece->next];
}

#ifndef __OPTIMIZE_SIZE__
/* The same for one piece, which most chains have; IN: 1 if the device writes it, else 0. */
static inline bool vq_put_one(struct vq *vq, unsigned token, uint64_t addr, uint32_t len, unsigned in)
{
    return vq->ops->put_one(vq, token, addr, len, in);
}
#endif

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
