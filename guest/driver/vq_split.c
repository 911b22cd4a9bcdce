/*
 * The split virtqueue, driver's side (virtio 1.4, 2.7).
 *
 * What always holds: descriptors not in flight form a list in private memory; avail.idx only grows; every
 * value read from the used ring has been checked against that private memory before anything follows from it.
 */
#include "guest/driver/vblk_barrier.h"
#include "guest/driver/vq.h"

#define LEGACY_ALIGN 4096u

typedef uint32_t __attribute__((may_alias)) flags_next;

/* used_event and avail_event stand behind the rings (2.7.6, 2.7.8). */
static le16 *used_event(struct vq *vq)
{
    return &vq->u.split.avail->ring[vq->size];
}

static const le16 *avail_event(const struct vq *vq)
{
    return (const le16 *)&vq->u.split.used->ring[vq->size];
}

size_t vq_split_bytes(unsigned size, bool legacy, size_t *avail_at, size_t *used_at)
{
    size_t align = legacy ? LEGACY_ALIGN : 64;

    *avail_at = VIRTQ_DESC_BYTES((size_t)size);
    *used_at = (*avail_at + VIRTQ_AVAIL_BYTES((size_t)size) + align - 1) & ~(align - 1);
    return (*used_at + VIRTQ_USED_BYTES((size_t)size) + 63) & ~(size_t)63;
}

void vq_setup_split(struct vq *vq, unsigned size, struct vq_chain *chains, void *mem, vblk_dma_addr addr,
                    bool legacy)
{
    size_t avail_at, used_at;

    (void)vq_split_bytes(size, legacy, &avail_at, &used_at);
    vq->ops = &vq_split_ops;
    vq->size = (uint16_t)size;
    vq->mask = size - 1;
    vq->chains = chains;
    vq->u.split.desc = mem;
    vq->u.split.avail = (struct virtq_avail *)((char *)mem + avail_at);
    vq->u.split.used = (struct virtq_used *)((char *)mem + used_at);
    vq->addr_desc = addr;
    vq->addr_driver.value = addr.value + avail_at;
    vq->addr_device.value = addr.value + used_at;
    vq_reset(vq);
}

static void split_init(struct vq *vq)
{
    unsigned i, n = vq->size;

    /* the three parts and what lies between them; the device's two words (2.7.10.1) among them */
    memset(vq->u.split.desc, 0, (size_t)((char *)&vq->u.split.used->ring[n] + 2 - (char *)vq->u.split.desc));
    for (i = 0; i < n; i++) {
        vq->chains[i].ndesc = 0;
        /* in ring order from 0, and a ring again after the last: what IN_ORDER asks for (2.7.5) */
        vq->chains[i].link = (uint16_t)(i + 1 == n ? 0 : i + 1);
    }
    vq->num_free = vq->size;
    vq->in_flight = 0;
    vq->free_head = 0;
    vq->oldest = 0;
    vq->in_batch = false;
    vq->kicked = 0;
    vq->last_used = 0;
    vq->u.split.avail_idx = 0;
    vq->u.split.used_seen = 0;
    vq->ops->interrupts_off(vq);
}

static inline void put_desc(struct virtq_desc *desc, uint64_t addr, uint32_t len, unsigned flags,
                            unsigned next)
{
    desc->addr = le64_put(addr);
    desc->len = le32_put(len);
    *(flags_next *)(void *)&desc->flags =
        WIRE_LE32((uint32_t)flags | (uint32_t)next << 16); /* both in one store */
}

/* The chain from HEAD to TAIL is built: shows it to the device. */
static inline bool split_publish(struct vq *vq, unsigned token, unsigned head, unsigned tail, unsigned ndesc,
                                 uint32_t writable)
{
    struct vq_chain *chain = &vq->chains[head];
    unsigned idx = vq->u.split.avail_idx;

    chain->token = (uint16_t)token;
    chain->ndesc = (uint16_t)ndesc;
    chain->tail = (uint16_t)tail;
    chain->writable = writable;
    vq->free_head = vq->chains[tail].link;
    vq->num_free = (uint16_t)(vq->num_free - ndesc);
    vq->in_flight++;

    le16_store(&vq->u.split.avail->ring[idx & vq->mask], (uint16_t)head);
    vq->u.split.avail_idx = (uint16_t)++idx;
    /* Release, 2.7.13.3.1: descriptors and slot are seen before the index. Pairs with the device's read
     * barrier after it has loaded avail.idx. */
    vblk_barrier_write(vq->order_platform);
    le16_store_release(&vq->u.split.avail->idx, (uint16_t)idx);
    return true;
}

static bool split_put(struct vq *vq, unsigned token, const struct vq_piece *first, unsigned npieces,
                      unsigned flags, uint32_t writable)
{
    struct virtq_desc *desc = vq->u.split.desc;
    unsigned ndesc = npieces + 2, head = vq->free_head, at = head, next;
    unsigned piece_flags = VIRTQ_DESC_F_NEXT | (flags & VQ_IN ? VIRTQ_DESC_F_WRITE : 0);
    uint64_t slot = vq->slots_addr + (uint64_t)token * VQ_SLOT_BYTES;
    uint32_t more = flags & VQ_LONG_TRAILER ? 8 : 0;
    struct vq_chain *chains = vq->chains;
    const struct vq_piece *piece;
    bool table = vq->tables != NULL;

    if (table)
        ndesc = 1;
    if (ndesc > vq->num_free)
        return false;
    next = chains[head].link;
    if (table) {
        put_desc(&desc[head], vq->tables_addr + (uint64_t)token * vq->table_bytes, 16u * (npieces + 2),
                 VIRTQ_DESC_F_INDIRECT, 0);
        desc = (struct virtq_desc *)(void *)(vq->tables + (size_t)token * vq->table_bytes);
        at = 0;
        next = 1;
    }
    put_desc(&desc[at], slot, VQ_HEADER_LEN, VIRTQ_DESC_F_NEXT, next);
    for (piece = first; npieces; npieces--, piece = &vq->pool[piece->next]) {
        at = next;
        next = table ? at + 1 : chains[at].link;
        put_desc(&desc[at], piece->addr, piece->len, piece_flags, next);
    }
    put_desc(&desc[next], slot + VQ_SLOT_STATUS - more, 1 + more, VIRTQ_DESC_F_WRITE, 0);
    if (table)
        next = head;
    return split_publish(vq, token, head, next, ndesc, writable);
}

#ifndef __OPTIMIZE_SIZE__
static __attribute__((noinline)) bool split_put_one_in_table(struct vq *vq, unsigned token, uint64_t addr,
                                                             uint32_t len, unsigned in)
{
    uint64_t slot = vq->slots_addr + (uint64_t)token * VQ_SLOT_BYTES;
    unsigned head = vq->free_head;
    struct virtq_desc *desc = (struct virtq_desc *)(void *)(vq->tables + (size_t)token * vq->table_bytes);

    put_desc(&desc[0], slot, VQ_HEADER_LEN, VIRTQ_DESC_F_NEXT, 1);
    put_desc(&desc[1], addr, len, VIRTQ_DESC_F_NEXT | in * VIRTQ_DESC_F_WRITE, 2);
    put_desc(&desc[2], slot + VQ_SLOT_STATUS, 1, VIRTQ_DESC_F_WRITE, 0);
    put_desc(&vq->u.split.desc[head], vq->tables_addr + (uint64_t)token * vq->table_bytes, 48,
             VIRTQ_DESC_F_INDIRECT, 0);
    return split_publish(vq, token, head, head, 1, 1 + len * in);
}

static __attribute__((noinline)) bool split_put_one_in_ring(struct vq *vq, unsigned token, uint64_t addr,
                                                            uint32_t len, unsigned in)
{
    uint64_t slot = vq->slots_addr + (uint64_t)token * VQ_SLOT_BYTES;
    struct virtq_desc *desc = vq->u.split.desc;
    unsigned head = vq->free_head, second, third;

    if (vq->num_free < 3)
        return false;
    second = vq->chains[head].link;
    put_desc(&desc[head], slot, VQ_HEADER_LEN, VIRTQ_DESC_F_NEXT, second);
    third = vq->chains[second].link;
    put_desc(&desc[second], addr, len, VIRTQ_DESC_F_NEXT | in * VIRTQ_DESC_F_WRITE, third);
    put_desc(&desc[third], slot + VQ_SLOT_STATUS, 1, VIRTQ_DESC_F_WRITE, 0);
    return split_publish(vq, token, head, third, 3, 1 + len * in);
}

/* Two tail calls: neither way pays for the other's registers. */
static bool split_put_one(struct vq *vq, unsigned token, uint64_t addr, uint32_t len, unsigned in)
{
    if (vq->tables && vq->num_free)
        return split_put_one_in_table(vq, token, addr, len, in);
    return split_put_one_in_ring(vq, token, addr, len, in);
}
#endif

static bool split_want_notify(struct vq *vq)
{
    uint16_t now = vq->u.split.avail_idx, old = vq->kicked;

    if (now == old)
        return false;
    vq->kicked = now;
    /* Full, 2.7.13.4.1: avail.idx is seen before the device's wish is read. Pairs with the device's barrier
     * between writing avail_event (or used.flags) and looking at avail.idx once more. */
    vblk_barrier_full(vq->order_platform);
    if (vq->event_idx) /* did (old, now] pass the event? Differences modulo 2^16, so a wrap changes nothing */
        return (uint16_t)(now - le16_load(avail_event(vq)) - 1) < (uint16_t)(now - old);
    return (le16_load(&vq->u.split.used->flags) & VIRTQ_USED_F_NO_NOTIFY) == 0;
}

static int split_broken(struct vq *vq)
{
    vq->broken = true;
    return -VBLK_EIO;
}

/* Chain HEAD is done: its descriptors go back to the free list. With IN_ORDER they return in the order in
 * which they were taken, so the list stays the ring that it is and nothing needs linking. */
static inline int split_take(struct vq *vq, uint16_t head, uint16_t *token)
{
    struct vq_chain *chain = &vq->chains[head];

    *token = chain->token;
    if (vq->in_order) {
        vq->oldest = vq->chains[chain->tail].link;
    } else {
        vq->chains[chain->tail].link = vq->free_head;
        vq->free_head = head;
    }
    vq->num_free = (uint16_t)(vq->num_free + chain->ndesc);
    vq->in_flight--;
    chain->ndesc = 0;
    vq->last_used++;
    return 1;
}

/* 2.7.9: one used entry for a batch names its last chain. All of them must lie between the oldest chain in
 * flight and as many further as used.idx has moved; that is seen before the first of them is believed to be
 * done. */
static int split_batch_begin(struct vq *vq, uint16_t last)
{
    unsigned n = (uint16_t)(vq->u.split.used_seen - vq->last_used);
    uint16_t head = vq->oldest;

    while (head != last) {
        if (--n == 0)
            return split_broken(vq);
        head = vq->chains[vq->chains[head].tail].link;
    }
    vq->in_batch = true;
    vq->batch_last = last;
    return 0;
}

static int split_batch_next(struct vq *vq, uint16_t *token, uint32_t *len)
{
    *len = VQ_LEN_UNKNOWN;
    if (vq->oldest == vq->batch_last) {
        vq->in_batch = false;
        *len = vq->batch_len;
    }
    return split_take(vq, vq->oldest, token);
}

static int split_pop(struct vq *vq, uint16_t *token, uint32_t *len)
{
    const struct virtq_used_elem *elem;
    uint32_t id, used_len;

    if (vq->broken)
        return -VBLK_EIO;
    if (vq->in_batch)
        return split_batch_next(vq, token, len);
    if (vq->last_used == vq->u.split.used_seen) {
        /* Acquire, 2.7.14: the element and all that the device wrote are read after the index. Pairs with the
         * device's write barrier before it stores used.idx. */
        uint16_t idx = le16_load_acquire(&vq->u.split.used->idx);
        if (idx == vq->last_used)
            return 0;
        vblk_barrier_read(vq->order_platform);
        if ((uint16_t)(idx - vq->last_used) > vq->in_flight)
            return split_broken(vq);
        vq->u.split.used_seen = idx;
    }
    elem = &vq->u.split.used->ring[vq->last_used & vq->mask];
    id = le32_load(&elem->id);
    used_len = le32_load(&elem->len);
    if (id >= vq->size || vq->chains[id].ndesc == 0)
        return split_broken(vq);
    if (vq->ignore_len)
        used_len = VQ_LEN_UNKNOWN;
    else if (used_len > vq->chains[id].writable)
        return split_broken(vq);
    else
        vq->lens_seen |= used_len;
    if (vq->in_order) {
        vq->batch_len = used_len;
        if (split_batch_begin(vq, (uint16_t)id) < 0)
            return -VBLK_EIO;
        return split_batch_next(vq, token, len);
    }
    *len = used_len;
    return split_take(vq, (uint16_t)id, token);
}

static void split_interrupts_off(struct vq *vq)
{
    if (vq->event_idx) {
        /* flags stay 0 (2.7.7.1); an index that was passed already comes again after 65535 more */
        le16_store(&vq->u.split.avail->flags, 0);
        le16_store(used_event(vq), (uint16_t)(vq->last_used - 1));
    } else {
        le16_store(&vq->u.split.avail->flags, VIRTQ_AVAIL_F_NO_INTERRUPT);
    }
}

static bool split_interrupts_on(struct vq *vq)
{
    if (vq->event_idx)
        le16_store(used_event(vq), vq->last_used);
    else
        le16_store(&vq->u.split.avail->flags, 0);
    /* Full, 2.7.14: the wish is seen before used.idx is read again. Pairs with the device's barrier between
     * storing used.idx and reading used_event (or avail.flags). */
    vblk_barrier_full(vq->order_platform);
    return vq->broken || vq->in_batch || le16_load_acquire(&vq->u.split.used->idx) != vq->last_used;
}

const struct vq_ops vq_split_ops = {
    .init = split_init,
    .put = split_put,
#ifndef __OPTIMIZE_SIZE__
    .put_one = split_put_one,
#endif
    .want_notify = split_want_notify,
    .pop = split_pop,
    .interrupts_off = split_interrupts_off,
    .interrupts_on = split_interrupts_on,
};
