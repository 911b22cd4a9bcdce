/* The fake device's side of the rings, and its disk: takes chains apart by the letter of 2.7, 2.8 and 5.2.6.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "common/virtio_blk.h"
#include "tests/unit/vblk_fake.h"

static void *ring_at(struct fake *fake, vblk_dma_addr addr)
{
    void *mem = fake_at(fake, addr.value, 4);

    assert_non_null(mem);
    return mem;
}

struct virtq_avail *fake_avail(struct fake *fake, unsigned queue)
{
    return ring_at(fake, fake->queue[queue].setup.driver);
}

struct virtq_used *fake_used(struct fake *fake, unsigned queue)
{
    return ring_at(fake, fake->queue[queue].setup.device);
}

struct virtq_desc *fake_desc(struct fake *fake, unsigned queue)
{
    return ring_at(fake, fake->queue[queue].setup.desc);
}

struct virtq_packed_desc *fake_packed(struct fake *fake, unsigned queue)
{
    return ring_at(fake, fake->queue[queue].setup.desc);
}

struct virtq_packed_event *fake_packed_event(struct fake *fake, unsigned queue, bool driver)
{
    return ring_at(fake, driver ? fake->queue[queue].setup.driver : fake->queue[queue].setup.device);
}

le16 *fake_used_event(struct fake *fake, unsigned queue)
{
    return &fake_avail(fake, queue)->ring[fake->queue[queue].setup.size];
}

le16 *fake_avail_event(struct fake *fake, unsigned queue)
{
    return (le16 *)(void *)&fake_used(fake, queue)->ring[fake->queue[queue].setup.size];
}

void fake_chain_free(struct fake_chain *chain)
{
    if (chain)
        free(chain->segs);
    free(chain);
}

static void chain_add(struct fake *fake, struct fake_chain *chain, uint64_t addr, uint32_t len, bool write)
{
    uint32_t *sum = write ? &chain->writable : &chain->readable;
    struct fake_seg *seg = &chain->segs[chain->nsegs];

    if (chain->nsegs == FAKE_SEGS_MAX) {
        fake_fault(fake, "a chain of more than %u buffers", FAKE_SEGS_MAX);
        return;
    }
    if (!write && chain->writable)
        fake_fault(fake, "checklist 48/109: a readable buffer after a writable one");
    if ((uint64_t)chain->readable + chain->writable + len > UINT32_MAX)
        fake_fault(fake, "checklist 53: a chain of 4 GiB or more");
    seg->mem = fake_at(fake, addr, len);
    seg->len = len;
    seg->write = write;
    if (seg->mem) {
        chain->nsegs++;
        *sum += len;
    }
}

static void split_table(struct fake *fake, struct fake_chain *chain, const struct virtq_desc *holder,
                        bool in_order)
{
    unsigned n = le32_get(holder->len) / 16, i = 0, seen = 0;
    const struct virtq_desc *table =
        (const void *)fake_at(fake, le64_get(holder->addr), le32_get(holder->len));

    chain->indirect = true;
    if (!fake_has(fake, VIRTIO_F_INDIRECT_DESC))
        fake_fault(fake, "checklist 56: INDIRECT was not negotiated");
    if (le32_get(holder->len) == 0 || le32_get(holder->len) % 16)
        fake_fault(fake, "checklist 61: indirect table of %u bytes", le32_get(holder->len));
    if (le16_get(holder->flags) & VIRTQ_DESC_F_NEXT)
        fake_fault(fake, "checklist 59: INDIRECT and NEXT");
    if (n > fake->queue[chain->queue].setup.size)
        fake_fault(fake, "checklist 58: table of %u for a queue of %u", n,
                   fake->queue[chain->queue].setup.size);
    if (!table)
        return;
    for (;;) {
        uint16_t flags = le16_get(table[i].flags);
        if (flags & VIRTQ_DESC_F_INDIRECT)
            fake_fault(fake, "checklist 57: INDIRECT in a table");
        chain_add(fake, chain, le64_get(table[i].addr), le32_get(table[i].len), flags & VIRTQ_DESC_F_WRITE);
        if (!(flags & VIRTQ_DESC_F_NEXT))
            break;
        if (in_order && le16_get(table[i].next) != i + 1)
            fake_fault(fake, "checklist 60: indirect entries out of sequence");
        i = le16_get(table[i].next);
        if (i >= n || ++seen >= n) {
            fake_fault(fake, "an indirect table that loops or leads out");
            return;
        }
    }
}

static struct fake_chain *split_next(struct fake *fake, unsigned queue)
{
    struct fake_queue *q = &fake->queue[queue];
    struct virtq_avail *avail = fake_avail(fake, queue);
    struct virtq_desc *desc = fake_desc(fake, queue);
    uint16_t idx = le16_load_acquire(&avail->idx), flags = le16_load(&avail->flags), at;
    bool in_order = fake_has(fake, VIRTIO_F_IN_ORDER);
    struct fake_chain *chain;

    if (flags > 1)
        fake_fault(fake, "checklist 66: avail.flags %u", flags);
    if (flags && fake_has(fake, VIRTIO_F_EVENT_IDX))
        fake_fault(fake, "checklist 67: avail.flags %u with EVENT_IDX", flags);
    if (idx == q->avail_seen)
        return NULL;
    if ((uint16_t)(idx - q->avail_seen) > q->setup.size) {
        fake_fault(fake, "checklist 65/95: avail.idx went from %u to %u", q->avail_seen, idx);
        return NULL;
    }
    chain = calloc(1, sizeof(*chain));
    assert_non_null(chain);
    chain->segs = calloc(FAKE_SEGS_MAX, sizeof(chain->segs[0]));
    assert_non_null(chain->segs);
    chain->queue = queue;
    chain->id = le16_load(&avail->ring[q->avail_seen % q->setup.size]);
    q->avail_seen++;
    at = chain->id;
    if (in_order && at != q->next)
        fake_fault(fake, "checklist 55: IN_ORDER chain begins at %u, not %u", at, q->next);
    for (;;) {
        uint16_t next;
        if (at >= q->setup.size || chain->ndesc >= q->setup.size) {
            fake_fault(fake, "checklist 58: a chain that loops or leads out");
            break;
        }
        chain->ndesc++;
        flags = le16_get(desc[at].flags);
        next = le16_get(desc[at].next);
        if (flags & VIRTQ_DESC_F_INDIRECT)
            split_table(fake, chain, &desc[at], in_order);
        else
            chain_add(fake, chain, le64_get(desc[at].addr), le32_get(desc[at].len),
                      flags & VIRTQ_DESC_F_WRITE);
        if (!(flags & VIRTQ_DESC_F_NEXT))
            break;
        if (in_order && next != (at + 1u) % q->setup.size)
            fake_fault(fake, "checklist 54: IN_ORDER next of %u is %u", at, next);
        at = next;
    }
    q->next = (uint16_t)((chain->id + chain->ndesc) % q->setup.size);
    return chain;
}

static void packed_table(struct fake *fake, struct fake_chain *chain, const struct virtq_packed_desc *holder)
{
    unsigned n = le32_get(holder->len) / 16, i;
    const struct virtq_packed_desc *table =
        (const void *)fake_at(fake, le64_get(holder->addr), le32_get(holder->len));

    chain->indirect = true;
    if (!fake_has(fake, VIRTIO_F_INDIRECT_DESC))
        fake_fault(fake, "checklist 113: INDIRECT was not negotiated");
    if (n == 0 || le32_get(holder->len) % 16 || n > fake->queue[chain->queue].setup.size)
        fake_fault(fake, "checklist 115: indirect table of %u bytes", le32_get(holder->len));
    for (i = 0; table && i < n; i++) {
        uint16_t flags = le16_get(table[i].flags);
        if (flags & ~VIRTQ_DESC_F_WRITE)
            fake_fault(fake, "checklist 114: flags %#x in a table", flags);
        chain_add(fake, chain, le64_get(table[i].addr), le32_get(table[i].len), flags & VIRTQ_DESC_F_WRITE);
    }
}

static bool packed_available(const struct fake_queue *q, uint16_t flags)
{
    return !!(flags & VIRTQ_DESC_F_AVAIL) == q->wrap && !!(flags & VIRTQ_DESC_F_USED) != q->wrap;
}

static struct fake_chain *packed_next(struct fake *fake, unsigned queue)
{
    struct fake_queue *q = &fake->queue[queue];
    struct virtq_packed_desc *ring = fake_packed(fake, queue);
    uint16_t flags = le16_load_acquire(&ring[q->next].flags);
    struct fake_chain *chain;

    if (!packed_available(q, flags))
        return NULL;
    chain = calloc(1, sizeof(*chain));
    assert_non_null(chain);
    chain->segs = calloc(FAKE_SEGS_MAX, sizeof(chain->segs[0]));
    assert_non_null(chain->segs);
    chain->queue = queue;
    chain->slot = q->next;
    for (;;) {
        const struct virtq_packed_desc *desc = &ring[q->next];
        flags = le16_load(&desc->flags);
        if (!packed_available(q, flags)) {
            fake_fault(fake, "checklist 111/118: a chain whose rest is not available");
            break;
        }
        chain->ndesc++;
        if (flags & VIRTQ_DESC_F_INDIRECT) {
            if ((flags & VIRTQ_DESC_F_NEXT) || chain->ndesc > 1)
                fake_fault(fake, "checklist 116: INDIRECT in a list");
            packed_table(fake, chain, desc);
        } else {
            chain_add(fake, chain, le64_get(desc->addr), le32_get(desc->len), flags & VIRTQ_DESC_F_WRITE);
        }
        chain->id = le16_get(desc->id);
        if (++q->next == q->setup.size) {
            q->next = 0;
            q->wrap = !q->wrap;
        }
        if (!(flags & VIRTQ_DESC_F_NEXT))
            break;
        if (chain->ndesc >= q->setup.size) {
            fake_fault(fake, "checklist 108: a list longer than the queue");
            break;
        }
    }
    if (chain->id >= q->setup.size)
        fake_fault(fake, "checklist 118: buffer id %u", chain->id);
    return chain;
}

static uint32_t add_bytes(uint32_t sum, const void *mem, size_t n)
{
    const uint8_t *at = mem;

    while (n--)
        sum = (sum ^ *at++) * 16777619u;
    return sum;
}

/* A sum over the descriptors of a chain, its table among them. */
static uint32_t chain_sum(struct fake *fake, const struct fake_chain *chain)
{
    const struct fake_queue *q = &fake->queue[chain->queue];
    bool packed = fake_has(fake, VIRTIO_F_RING_PACKED);
    const struct virtq_desc *ring =
        (const void *)fake_desc(fake, chain->queue); /* 16 bytes each in both formats */
    unsigned at = packed ? chain->slot : chain->id, i;
    uint32_t sum = 2166136261u;

    for (i = 0; i < chain->ndesc && at < q->setup.size; i++) {
        sum = add_bytes(sum, &ring[at], sizeof(ring[at]));
        if (chain->indirect) {
            const uint8_t *table = fake_at(fake, le64_get(ring[at].addr), le32_get(ring[at].len));
            if (table)
                sum = add_bytes(sum, table, le32_get(ring[at].len));
        }
        at = packed ? (at + 1) % q->setup.size : le16_get(ring[at].next);
    }
    return sum;
}

static void take_header(struct fake *fake, struct fake_chain *chain)
{
    const struct fake_seg *last = chain->nsegs ? &chain->segs[chain->nsegs - 1] : NULL;
    struct virtio_blk_req_header header;

    if (chain->nsegs < 2 || chain->segs[0].write || chain->segs[0].len != 16 || !last->write ||
        (last->len != 1 && last->len != 9)) {
        fake_fault(fake, "checklist 319: header, data and status are not in descriptors of their own");
        return;
    }
    memcpy(&header, chain->segs[0].mem, sizeof(header));
    chain->type = le32_get(header.type);
    chain->sector = le64_get(header.sector);
    chain->status = last->mem + last->len - 1;
    if (le32_get(header.reserved))
        fake_fault(fake, "checklist 295: reserved is not 0");
    if (*chain->status == VIRTIO_BLK_S_OK)
        fake_fault(fake, "checklist 309: the status is preset to OK");
    if (chain->type < 32)
        fake->types_seen |= 1u << chain->type;
}

struct fake_chain *fake_next(struct fake *fake, unsigned queue)
{
    struct fake_queue *q = &fake->queue[queue];
    struct fake_chain *chain;

    if (!q->enabled || fake->gone || fake->suspended || !(fake->status & VIRTIO_STATUS_DRIVER_OK))
        return NULL;
    chain = fake_has(fake, VIRTIO_F_RING_PACKED) ? packed_next(fake, queue) : split_next(fake, queue);
    if (chain) {
        q->chains++;
        q->in_flight++;
        take_header(fake, chain);
        if (!fake->tampers)
            chain->sum = chain_sum(fake, chain);
    }
    return chain;
}

/* ---- the disk ---- */

static unsigned data_segs(const struct fake_chain *chain)
{
    return chain->nsegs - 2;
}

static uint64_t data_bytes(const struct fake_chain *chain)
{
    uint64_t sum = 0;
    unsigned i;

    for (i = 1; i + 1 < chain->nsegs; i++)
        sum += chain->segs[i].len;
    return sum;
}

static uint8_t transfer(struct fake *fake, struct fake_chain *chain, bool write)
{
    uint64_t at = chain->sector * 512, bytes = data_bytes(chain), capacity = le64_get(fake->config.capacity);
    uint32_t size_max = le32_get(fake->config.size_max), seg_max = le32_get(fake->config.seg_max);
    uint32_t block = fake_has(fake, VIRTIO_BLK_F_BLK_SIZE) ? le32_get(fake->config.blk_size) : 512;
    unsigned i;

    if (bytes == 0 || bytes % block)
        fake_fault(fake, "checklist 296: %llu bytes of data", (unsigned long long)bytes);
    if (chain->sector > capacity || bytes / 512 > capacity - chain->sector)
        fake_fault(fake, "checklist 290: beyond capacity");
    if (fake_has(fake, VIRTIO_BLK_F_SEG_MAX) && data_segs(chain) > (seg_max ? seg_max : 1))
        fake_fault(fake, "checklist 308: %u segments", data_segs(chain));
    if (write && fake_has(fake, VIRTIO_BLK_F_RO))
        fake_fault(fake, "checklist 292: a write on a read-only disk");
    for (i = 1; i + 1 < chain->nsegs; i++) {
        const struct fake_seg *seg = &chain->segs[i];
        if (seg->write == write)
            fake_fault(fake, "checklist 298: wrong direction");
        if (fake_has(fake, VIRTIO_BLK_F_SIZE_MAX) && size_max && seg->len > size_max)
            fake_fault(fake, "checklist 308: a segment of %u", seg->len);
        if (at + seg->len <= fake->disk_bytes) {
            if (write)
                memcpy(fake->disk + at, seg->mem, seg->len);
            else
                memcpy(seg->mem, fake->disk + at, seg->len);
        } else if (!write) {
            memset(seg->mem, 0, seg->len);
        }
        at += seg->len;
    }
    if (!write)
        chain->used_len += (uint32_t)bytes;
    return VIRTIO_BLK_S_OK;
}

static uint8_t ranges(struct fake *fake, struct fake_chain *chain, le32 max_sectors, le32 max_seg,
                      unsigned feature)
{
    uint64_t capacity = le64_get(fake->config.capacity), bytes = data_bytes(chain);
    unsigned i;

    if (!fake_has(fake, feature))
        fake_fault(fake, "checklist 307: type %u was not negotiated", chain->type);
    if (fake_has(fake, VIRTIO_BLK_F_RO))
        fake_fault(fake, "checklist 292: a change on a read-only disk");
    if (bytes == 0 || bytes % 16)
        fake_fault(fake, "checklist 297: range list of %llu bytes", (unsigned long long)bytes);
    if (bytes / 16 > le32_get(max_seg))
        fake_fault(fake, "checklist 300: %llu ranges", (unsigned long long)bytes / 16);
    if (chain->nsegs != 3 || chain->segs[1].write || chain->segs[1].len != 16) {
        fake_fault(fake, "checklist 298: a range list that the device can't read");
        return VIRTIO_BLK_S_IOERR;
    }
    for (i = 0; i < bytes / 16; i++) {
        struct virtio_blk_range range;
        uint64_t sector, n;
        memcpy(&range, chain->segs[1].mem + (size_t)16 * i, sizeof(range));
        sector = le64_get(range.sector);
        n = le32_get(range.num_sectors);
        if (n == 0 || n > le32_get(max_sectors))
            fake_fault(fake, "checklist 301: a range of %llu sectors", (unsigned long long)n);
        if (sector > capacity || n > capacity - sector)
            fake_fault(fake, "a range beyond capacity");
        if (le32_get(range.flags) &
            ~(chain->type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_RANGE_F_UNMAP : 0))
            fake_fault(fake, "checklist 302: flags %#x", le32_get(range.flags));
        if ((sector + n) * 512 <= fake->disk_bytes && chain->type != VIRTIO_BLK_T_DISCARD)
            memset(fake->disk + sector * 512, 0, n * 512);
    }
    return VIRTIO_BLK_S_OK;
}

/* Device-written data: BYTES of FROM, into the chain's data buffers. */
static void give(struct fake_chain *chain, const void *from, size_t bytes)
{
    const uint8_t *at = from;
    unsigned i;

    for (i = 1; i + 1 < chain->nsegs && bytes; i++) {
        size_t n = chain->segs[i].len < bytes ? chain->segs[i].len : bytes;
        memcpy(chain->segs[i].mem, at, n);
        at += n;
        bytes -= n;
        chain->used_len += (uint32_t)n;
    }
}

static uint8_t zone_command(struct fake *fake, struct fake_chain *chain)
{
    uint32_t zone = le32_get(fake->config.zoned.zone_sectors);

    if (!fake_has(fake, VIRTIO_BLK_F_ZONED))
        fake_fault(fake, "checklist 307: zone command was not negotiated");
    if (chain->type == VIRTIO_BLK_T_ZONE_RESET_ALL ? chain->sector != 0 : zone && chain->sector % zone != 0)
        fake_fault(fake, "checklist 313: zone command at sector %llu", (unsigned long long)chain->sector);
    if (data_segs(chain))
        fake_fault(fake, "zone command with data");
    return VIRTIO_BLK_S_OK;
}

static uint8_t execute(struct fake *fake, struct fake_chain *chain)
{
    struct virtio_blk_lifetime lifetime = {le16_put(2), le16_put(3), le16_put(12)};
    struct {
        struct virtio_blk_zone_report head;
        struct virtio_blk_zone_descriptor zone;
    } report;
    const struct virtio_blk_config *config = &fake->config;

    if (chain->sector && (chain->type == VIRTIO_BLK_T_FLUSH || chain->type == VIRTIO_BLK_T_GET_ID ||
                          (chain->type > VIRTIO_BLK_T_GET_ID && chain->type < VIRTIO_BLK_T_ZONE_APPEND)))
        fake_fault(fake, "checklist 293/295: sector %llu in type %u", (unsigned long long)chain->sector,
                   chain->type);
    switch (chain->type) {
    case VIRTIO_BLK_T_IN:
        return transfer(fake, chain, false);
    case VIRTIO_BLK_T_OUT:
        return transfer(fake, chain, true);
    case VIRTIO_BLK_T_FLUSH:
        if (!fake_has(fake, VIRTIO_BLK_F_FLUSH))
            fake_fault(fake, "checklist 307: FLUSH was not negotiated");
        if (data_segs(chain))
            fake_fault(fake, "checklist 294: FLUSH with data");
        return VIRTIO_BLK_S_OK;
    case VIRTIO_BLK_T_DISCARD:
        return ranges(fake, chain, config->max_discard_sectors, config->max_discard_seg,
                      VIRTIO_BLK_F_DISCARD);
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return ranges(fake, chain, config->max_write_zeroes_sectors, config->max_write_zeroes_seg,
                      VIRTIO_BLK_F_WRITE_ZEROES);
    case VIRTIO_BLK_T_SECURE_ERASE:
        return ranges(fake, chain, config->max_secure_erase_sectors, config->max_secure_erase_seg,
                      VIRTIO_BLK_F_SECURE_ERASE);
    case VIRTIO_BLK_T_GET_ID:
        if (data_bytes(chain) != 20)
            fake_fault(fake, "checklist 299: GET_ID of %llu bytes", (unsigned long long)data_bytes(chain));
        give(chain, "AAAAAAAAAAAAAAAAAAAA", 20); /* no NUL: checklist 310 */
        return VIRTIO_BLK_S_OK;
    case VIRTIO_BLK_T_GET_LIFETIME:
        if (!fake_has(fake, VIRTIO_BLK_F_LIFETIME))
            fake_fault(fake, "checklist 307: GET_LIFETIME was not negotiated");
        give(chain, &lifetime, sizeof(lifetime));
        return VIRTIO_BLK_S_OK;
    case VIRTIO_BLK_T_ZONE_REPORT:
        memset(&report, 0, sizeof(report));
        report.head.nr_zones = le64_put(1);
        report.zone.z_cap = le64_put(128);
        report.zone.z_start = le64_put(chain->sector);
        report.zone.z_type = VIRTIO_BLK_ZT_SWR;
        report.zone.z_state = VIRTIO_BLK_ZS_EMPTY;
        give(chain, &report, sizeof(report));
        return VIRTIO_BLK_S_OK;
    case VIRTIO_BLK_T_ZONE_APPEND: {
        le64 sector = le64_put(chain->sector + 8);
        if (chain->segs[chain->nsegs - 1].len != 9)
            fake_fault(fake, "checklist 316: append_sector does not precede the status");
        memcpy(chain->segs[chain->nsegs - 1].mem, &sector, 8);
        chain->used_len += 8;
        return VIRTIO_BLK_S_OK;
    }
    case VIRTIO_BLK_T_ZONE_OPEN:
    case VIRTIO_BLK_T_ZONE_CLOSE:
    case VIRTIO_BLK_T_ZONE_FINISH:
    case VIRTIO_BLK_T_ZONE_RESET:
    case VIRTIO_BLK_T_ZONE_RESET_ALL:
        return zone_command(fake, chain);
    default:
        fake_fault(fake, "unknown request type %u", chain->type);
        return VIRTIO_BLK_S_UNSUPP;
    }
}

void fake_execute(struct fake *fake, struct fake_chain *chain)
{
    uint8_t status;

    chain->used_len = 0;
    if (!chain->status)
        return;
    status = execute(fake, chain);
    if (fake->answer_status)
        status = fake->answer_status;
    if (!fake->never_write_status)
        *chain->status = status;
    chain->used_len++;
}

/* ---- giving back ---- */

static bool passed(uint16_t event, uint16_t old, uint16_t now)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

static void split_use(struct fake *fake, struct fake_queue *q, unsigned queue, uint32_t id, uint32_t len,
                      unsigned batch)
{
    struct virtq_used *used = fake_used(fake, queue);
    uint16_t old = q->used_idx;

    le32_store(&used->ring[old % q->setup.size].id, id);
    le32_store(&used->ring[old % q->setup.size].len, len);
    q->used_idx = (uint16_t)(old + batch);
    le16_store_release(&used->idx, q->used_idx);
    /* a full barrier that ThreadSanitizer knows (2.7.10.2) */
    static uint32_t word;
    __atomic_fetch_add(&word, 0, __ATOMIC_SEQ_CST);
    if (fake_has(fake, VIRTIO_F_EVENT_IDX) ? passed(le16_load(fake_used_event(fake, queue)), old, q->used_idx)
                                           : !(le16_load(&fake_avail(fake, queue)->flags) & 1))
        q->interrupts++;
}

static void packed_use(struct fake *fake, struct fake_queue *q, unsigned queue, uint32_t id, uint32_t len,
                       unsigned ndesc)
{
    struct virtq_packed_desc *desc = &fake_packed(fake, queue)[q->used_next];
    const struct virtq_packed_event *event = fake_packed_event(fake, queue, true);
    uint16_t flags = (uint16_t)((q->used_wrap ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED : 0) |
                                (len ? VIRTQ_DESC_F_WRITE : 0));
    uint16_t off = le16_load(&event->off_wrap), old = q->used_next;
    unsigned next = q->used_next + ndesc;

    desc->id = le16_put((uint16_t)id);
    desc->len = le32_put(len);
    le16_store_release(&desc->flags, flags);
    if (next >= q->setup.size) {
        next -= q->setup.size;
        q->used_wrap = !q->used_wrap;
    }
    q->used_next = (uint16_t)next;
    switch (le16_load(&event->flags)) {
    case VIRTQ_PACKED_EVENT_ENABLE:
        q->interrupts++;
        break;
    case VIRTQ_PACKED_EVENT_DISABLE:
        break;
    case VIRTQ_PACKED_EVENT_DESC:
        if (!fake_has(fake, VIRTIO_F_EVENT_IDX))
            fake_fault(fake, "checklist 124: DESC without EVENT_IDX");
        if ((off & 0x7fff) == old)
            q->interrupts++;
        break;
    default:
        fake_fault(fake, "checklist 124: event flags 3");
    }
}

void fake_use_raw(struct fake *fake, unsigned queue, uint32_t id, uint32_t len, unsigned ndesc)
{
    struct fake_queue *q = &fake->queue[queue];

    if (!q->enabled || fake->gone)
        return;
    if (fake_has(fake, VIRTIO_F_RING_PACKED))
        packed_use(fake, q, queue, id, len, ndesc);
    else
        split_use(fake, q, queue, id, len, 1);
}

void fake_use(struct fake *fake, const struct fake_chain *chain, uint32_t len)
{
    if (fake->queue[chain->queue].in_flight)
        fake->queue[chain->queue].in_flight--;
    if (fake->queue[chain->queue].enabled && !fake->gone && !fake->tampers &&
        chain_sum(fake, chain) != chain->sum)
        fake_fault(fake, "checklist 104/105/147: descriptors of a chain in flight were changed");
    fake_use_raw(fake, chain->queue, chain->id, len, chain->ndesc);
}

void fake_use_batch(struct fake *fake, const struct fake_chain *last, uint32_t len, unsigned batch,
                    unsigned ndesc)
{
    struct fake_queue *q = &fake->queue[last->queue];

    if (fake_has(fake, VIRTIO_F_RING_PACKED))
        packed_use(fake, q, last->queue, last->id, len, ndesc);
    else
        split_use(fake, q, last->queue, last->id, len, batch);
    q->in_flight -= q->in_flight < batch ? q->in_flight : batch;
}

/* Says whether the device wants to be kicked for the next chain. */
static void set_wish(struct fake *fake, unsigned queue)
{
    struct fake_queue *q = &fake->queue[queue];
    bool event_idx = fake_has(fake, VIRTIO_F_EVENT_IDX);

    if (fake_has(fake, VIRTIO_F_RING_PACKED)) {
        struct virtq_packed_event *event = fake_packed_event(fake, queue, false);
        le16_store(&event->off_wrap, (uint16_t)(q->next | (q->wrap ? 0x8000 : 0)));
        le16_store(&event->flags, fake->no_notify ? VIRTQ_PACKED_EVENT_DISABLE
                                  : event_idx     ? VIRTQ_PACKED_EVENT_DESC
                                                  : VIRTQ_PACKED_EVENT_ENABLE);
    } else if (event_idx) {
        if (!fake->no_avail_event_update)
            le16_store(fake_avail_event(fake, queue), (uint16_t)(q->avail_seen - (fake->no_notify ? 1 : 0)));
    } else {
        le16_store(&fake_used(fake, queue)->flags, fake->no_notify ? VIRTQ_USED_F_NO_NOTIFY : 0);
    }
}

unsigned fake_run(struct fake *fake, unsigned queue)
{
    struct fake_chain *chain;
    unsigned n = 0;

    while ((chain = fake_next(fake, queue))) {
        n++;
        if (fake->on_chain && !fake->on_chain(fake, chain))
            continue;
        fake_execute(fake, chain);
        fake_use(fake, chain, chain->used_len);
        fake_chain_free(chain);
    }
    if (fake->queue[queue].enabled && !fake->gone)
        set_wish(fake, queue);
    return n;
}

void fake_run_all(struct fake *fake)
{
    unsigned i;

    for (i = 0; i < fake->num_queues; i++)
        if (fake->queue[i].enabled)
            fake_run(fake, i);
}
