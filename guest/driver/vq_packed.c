/*
 * The packed virtqueue, driver's side (virtio 1.4, 2.8).
 *
 * What always holds: a slot is written only while it is the driver's; the flags of a chain's first descriptor
 * are written last, so the device never sees the beginning of a chain whose rest is not there; the id comes
 * back in whatever order, and is believed only if it names a chain in flight.
 */
#include "guest/driver/vblk_barrier.h"
#include "guest/driver/vq.h"

/* off_wrap and flags of an event structure are one word, so that they are seen and read together. */
typedef uint32_t __attribute__((may_alias)) event_word;

size_t vq_packed_bytes(unsigned size, size_t *driver_at, size_t *device_at)
{
    *driver_at = (sizeof(struct virtq_packed_desc) * (size_t)size + 63) & ~(size_t)63;
    *device_at = *driver_at + 64; /* a cache line each: one side writes, the other reads */
    return *device_at + 64;
}

void vq_setup_packed(struct vq *vq, unsigned size, struct vq_chain *chains, void *mem, vblk_dma_addr addr)
{
    size_t driver_at, device_at;

    (void)vq_packed_bytes(size, &driver_at, &device_at);
    vq->ops = &vq_packed_ops;
    vq->size = (uint16_t)size;
    vq->chains = chains;
    vq->u.packed.desc = mem;
    vq->u.packed.driver = (struct virtq_packed_event *)(void *)((char *)mem + driver_at);
    vq->u.packed.device = (struct virtq_packed_event *)(void *)((char *)mem + device_at);
    vq->addr_desc = addr;
    vq->addr_driver.value = addr.value + driver_at;
    vq->addr_device.value = addr.value + device_at;
    vq_reset(vq);
}

static void event_write(struct virtq_packed_event *event, unsigned off_wrap, unsigned flags)
{
    __atomic_store_n((event_word *)(void *)event, WIRE_LE32((uint32_t)off_wrap | (uint32_t)flags << 16),
                     __ATOMIC_RELAXED);
}

static void packed_init(struct vq *vq)
{
    unsigned i, n = vq->size;

    memset(vq->u.packed.desc, 0, sizeof(struct virtq_packed_desc) * n); /* 2.8.13 */
    for (i = 0; i < n; i++) {
        vq->chains[i].ndesc = 0;
        vq->chains[i].link = (uint16_t)(i + 1 == n ? 0 : i + 1);
    }
    event_write(vq->u.packed.device, 0, VIRTQ_PACKED_EVENT_ENABLE);
    vq->num_free = vq->size;
    vq->in_flight = 0;
    vq->free_head = 0;
    vq->oldest = 0;
    vq->in_batch = false;
    vq->last_used = 0;
    vq->u.packed.next = 0;
    vq->u.packed.added = 0;
    vq->u.packed.wrap = vq->u.packed.used_wrap = true;
    vq->ops->interrupts_off(vq);
}

static inline void put_desc(struct virtq_packed_desc *desc, uint64_t addr, uint32_t len, unsigned id)
{
    desc->addr = le64_put(addr);
    desc->len = le32_put(len);
    desc->id = le16_put((uint16_t)id);
}

/* With its flags, in one store: for descriptors that the device does not look at yet. */
static inline void put_desc_flags(struct virtq_packed_desc *desc, uint64_t addr, uint32_t len, unsigned id,
                                  unsigned flags)
{
    desc->addr = le64_put(addr);
    desc->len = le32_put(len);
    __atomic_store_n((event_word *)(void *)&desc->id, WIRE_LE32((uint32_t)id | (uint32_t)flags << 16),
                     __ATOMIC_RELAXED);
}

/* AVAIL and USED of a descriptor made available in the present lap (2.8.1) */
static inline unsigned lap_flags(const struct vq *vq)
{
    return vq->u.packed.wrap ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED;
}

static inline struct virtq_packed_desc *next_slot(struct vq *vq)
{
    if (++vq->u.packed.next == vq->size) {
        vq->u.packed.next = 0;
        vq->u.packed.wrap = !vq->u.packed.wrap;
    }
    return &vq->u.packed.desc[vq->u.packed.next];
}

/* The chain that begins at HEAD is built, but for HEAD's flags: shows it to the device. */
static inline bool packed_publish(struct vq *vq, unsigned token, struct virtq_packed_desc *head,
                                  unsigned head_flags, unsigned ndesc, uint32_t writable)
{
    struct vq_chain *chain = &vq->chains[vq->free_head];

    (void)next_slot(vq);
    chain->token = (uint16_t)token;
    chain->ndesc = (uint16_t)ndesc;
    chain->writable = writable;
    vq->free_head = chain->link;
    vq->num_free = (uint16_t)(vq->num_free - ndesc);
    vq->in_flight++;
    vq->u.packed.added = (uint16_t)(vq->u.packed.added + ndesc);
    /* Release, 2.8.21.1.1: the whole chain is seen before its first descriptor is available (2.8.17). Pairs
     * with the device's read barrier after it has seen these flags. */
    vblk_barrier_write(vq->order_platform);
    le16_store_release(&head->flags, (uint16_t)head_flags);
    return true;
}

static bool packed_put(struct vq *vq, unsigned token, const struct vq_piece *first, unsigned npieces,
                       unsigned flags, uint32_t writable)
{
    unsigned ndesc = npieces + 2, head_flags = lap_flags(vq) | VIRTQ_DESC_F_NEXT, id = vq->free_head;
    unsigned piece_flags = VIRTQ_DESC_F_NEXT | (flags & VQ_IN ? VIRTQ_DESC_F_WRITE : 0);
    struct virtq_packed_desc *head = &vq->u.packed.desc[vq->u.packed.next], *desc = head;
    uint64_t slot = vq->slots_addr + (uint64_t)token * VQ_SLOT_BYTES;
    uint32_t more = flags & VQ_LONG_TRAILER ? 8 : 0;
    const struct vq_piece *piece;

    if (vq->tables)
        ndesc = 1;
    if (ndesc > vq->num_free)
        return false;
    if (vq->tables) {
        put_desc(head, vq->tables_addr + (uint64_t)token * vq->table_bytes, 16u * (npieces + 2), id);
        head_flags = lap_flags(vq) | VIRTQ_DESC_F_INDIRECT;
        /* 2.8.19: in a table only WRITE means anything, and the entries are in sequence */
        desc = (struct virtq_packed_desc *)(void *)(vq->tables + (size_t)token * vq->table_bytes);
        put_desc_flags(desc, slot, VQ_HEADER_LEN, 0, 0);
        for (piece = first; piece; piece = vq_next_piece(vq, piece)) {
            put_desc_flags(++desc, piece->addr, piece->len, 0, piece_flags & VIRTQ_DESC_F_WRITE);
        }
        put_desc_flags(++desc, slot + VQ_SLOT_STATUS - more, 1 + more, 0, VIRTQ_DESC_F_WRITE);
    } else {
        put_desc(head, slot, VQ_HEADER_LEN, id);
        for (piece = first; piece; piece = vq_next_piece(vq, piece)) {
            desc = next_slot(vq);
            put_desc_flags(desc, piece->addr, piece->len, id, (uint16_t)(piece_flags | lap_flags(vq)));
        }
        desc = next_slot(vq);
        put_desc_flags(desc, slot + VQ_SLOT_STATUS - more, 1 + more, id,
                       (uint16_t)(VIRTQ_DESC_F_WRITE | lap_flags(vq)));
    }
    return packed_publish(vq, token, head, head_flags, ndesc, writable);
}

#ifndef __OPTIMIZE_SIZE__
static __attribute__((noinline)) bool packed_put_one_in_table(struct vq *vq, unsigned token, uint64_t addr,
                                                              uint32_t len, unsigned in)
{
    uint64_t slot = vq->slots_addr + (uint64_t)token * VQ_SLOT_BYTES;
    struct virtq_packed_desc *head = &vq->u.packed.desc[vq->u.packed.next];
    struct virtq_packed_desc *desc =
        (struct virtq_packed_desc *)(void *)(vq->tables + (size_t)token * vq->table_bytes);
    unsigned lap = lap_flags(vq);

    put_desc_flags(&desc[0], slot, VQ_HEADER_LEN, 0, 0);
    put_desc_flags(&desc[1], addr, len, 0, (uint16_t)(in * VIRTQ_DESC_F_WRITE));
    put_desc_flags(&desc[2], slot + VQ_SLOT_STATUS, 1, 0, VIRTQ_DESC_F_WRITE);
    put_desc(head, vq->tables_addr + (uint64_t)token * vq->table_bytes, 48, vq->free_head);
    return packed_publish(vq, token, head, lap | VIRTQ_DESC_F_INDIRECT, 1, 1 + len * in);
}

static __attribute__((noinline)) bool packed_put_one_in_ring(struct vq *vq, unsigned token, uint64_t addr,
                                                             uint32_t len, unsigned in)
{
    uint64_t slot = vq->slots_addr + (uint64_t)token * VQ_SLOT_BYTES;
    unsigned id = vq->free_head, lap = lap_flags(vq), next = vq->u.packed.next;
    struct virtq_packed_desc *desc = &vq->u.packed.desc[next];

    if (vq->num_free < 3 || next + 3 > vq->size) { /* around the ring's end */
        struct vq_piece piece = {NULL, addr, len, VQ_NO_PIECE};
        return packed_put(vq, token, &piece, 1, in ? VQ_IN : 0, 1 + len * in);
    }
    put_desc(&desc[0], slot, VQ_HEADER_LEN, id);
    put_desc_flags(&desc[1], addr, len, id, (uint16_t)(in * VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT | lap));
    put_desc_flags(&desc[2], slot + VQ_SLOT_STATUS, 1, id, (uint16_t)(VIRTQ_DESC_F_WRITE | lap));
    vq->u.packed.next = (uint16_t)(next + 2);
    return packed_publish(vq, token, desc, lap | VIRTQ_DESC_F_NEXT, 3, 1 + len * in);
}

/* Two tail calls: neither way pays for the other's registers. */
static bool packed_put_one(struct vq *vq, unsigned token, uint64_t addr, uint32_t len, unsigned in)
{
    if (vq->tables && vq->num_free)
        return packed_put_one_in_table(vq, token, addr, len, in);
    return packed_put_one_in_ring(vq, token, addr, len, in);
}
#endif

static bool packed_want_notify(struct vq *vq)
{
    uint16_t added = vq->u.packed.added, next = vq->u.packed.next, event;
    uint32_t word;

    if (added == 0)
        return false;
    vq->u.packed.added = 0;
    /* Full, 2.8.21.3.1: the descriptors are seen before the device's wish is read. Pairs with the device's
     * barrier between writing its event structure and looking at the ring once more. */
    vblk_barrier_full(vq->order_platform);
    word =
        WIRE_LE32(__atomic_load_n((const event_word *)(const void *)vq->u.packed.device, __ATOMIC_RELAXED));
    switch (word >> 16 & 3) {
    case VIRTQ_PACKED_EVENT_DISABLE:
        return false;
    case VIRTQ_PACKED_EVENT_DESC:
        if (!vq->event_idx)
            return true;
        break;
    default: /* ENABLE; and 3, which is reserved: to notify is the safe side */
        return true;
    }
    /* The slot counted in the present lap: one of the lap before is lower by the ring's size. Then as with
     * the split ring: did (next - added, next] pass it? Modulo 2^16, so the ring's end changes nothing. */
    event = word & 0x7fff;
    if (((word & 0x8000) != 0) != vq->u.packed.wrap)
        event = (uint16_t)(event - vq->size);
    return (uint16_t)(next - event - 1) < added;
}

static int packed_broken(struct vq *vq)
{
    vq->broken = true;
    return -VBLK_EIO;
}

static inline int packed_take(struct vq *vq, uint16_t id, uint16_t *token)
{
    struct vq_chain *chain = &vq->chains[id];
    unsigned slot = vq->last_used + chain->ndesc;

    *token = chain->token;
    if (slot >= vq->size) {
        slot -= vq->size;
        vq->u.packed.used_wrap = !vq->u.packed.used_wrap;
    }
    vq->last_used = (uint16_t)slot;
    vq->num_free = (uint16_t)(vq->num_free + chain->ndesc);
    vq->in_flight--;
    chain->ndesc = 0;
    if (vq->in_order) { /* ids come and go in turn */
        vq->oldest = chain->link;
    } else {
        chain->link = vq->free_head;
        vq->free_head = id;
    }
    return 1;
}

static bool slot_is_used(const struct vq *vq, uint16_t flags)
{
    bool avail = (flags & VIRTQ_DESC_F_AVAIL) != 0, used = (flags & VIRTQ_DESC_F_USED) != 0;

    return avail == used && used == vq->u.packed.used_wrap;
}

static int packed_batch_next(struct vq *vq, uint16_t *token, uint32_t *len)
{
    *len = VQ_LEN_UNKNOWN;
    if (vq->oldest == vq->batch_last) {
        vq->in_batch = false;
        *len = vq->batch_len;
    }
    return packed_take(vq, vq->oldest, token);
}

static int packed_pop(struct vq *vq, uint16_t *token, uint32_t *len)
{
    const struct virtq_packed_desc *desc;
    uint16_t flags, id;
    uint32_t used_len;

    if (vq->broken)
        return -VBLK_EIO;
    if (vq->in_batch)
        return packed_batch_next(vq, token, len);
    desc = &vq->u.packed.desc[vq->last_used];
    /* Acquire, 2.8.22: id, length and all that the device wrote are read after the flags. Pairs with the
     * device's write barrier before it stores them. */
    flags = le16_load_acquire(&desc->flags);
    if (!vq->in_flight || !slot_is_used(vq, flags))
        return 0;
    vblk_barrier_read(vq->order_platform);
    id = le16_load(&desc->id);
    used_len = le32_load(&desc->len);
    if (id >= vq->size || vq->chains[id].ndesc == 0)
        return packed_broken(vq);
    if (!(flags & VIRTQ_DESC_F_WRITE))
        used_len = VQ_LEN_UNKNOWN; /* reserved then (2.8.5); QEMU leaves it so, whatever it wrote */
    else if (used_len > vq->chains[id].writable)
        return packed_broken(vq);
    else
        vq->lens_seen |= used_len;
    if (vq->in_order) {
        /* 2.8.8: one used descriptor for all up to this id; ids are in flight in turn, so it is among them */
        vq->in_batch = true;
        vq->batch_last = id;
        vq->batch_len = used_len;
        return packed_batch_next(vq, token, len);
    }
    *len = used_len;
    return packed_take(vq, id, token);
}

static void packed_interrupts_off(struct vq *vq)
{
    event_write(vq->u.packed.driver, 0, VIRTQ_PACKED_EVENT_DISABLE);
}

static bool packed_interrupts_on(struct vq *vq)
{
    if (vq->event_idx)
        event_write(vq->u.packed.driver, vq->last_used | (vq->u.packed.used_wrap ? 0x8000u : 0),
                    VIRTQ_PACKED_EVENT_DESC);
    else
        event_write(vq->u.packed.driver, 0, VIRTQ_PACKED_EVENT_ENABLE);
    /* Full, 2.8.22: the wish is seen before the slot is looked at again. Pairs with the device's barrier
     * between writing a used descriptor and reading this structure. */
    vblk_barrier_full(vq->order_platform);
    if (vq->broken || vq->in_batch)
        return true;
    return vq->in_flight && slot_is_used(vq, le16_load_acquire(&vq->u.packed.desc[vq->last_used].flags));
}

const struct vq_ops vq_packed_ops = {
    .init = packed_init,
    .put = packed_put,
#ifndef __OPTIMIZE_SIZE__
    .put_one = packed_put_one,
#endif
    .want_notify = packed_want_notify,
    .pop = packed_pop,
    .interrupts_off = packed_interrupts_off,
    .interrupts_on = packed_interrupts_on,
};
