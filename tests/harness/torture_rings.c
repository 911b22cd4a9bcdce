/* Malformed chains, tables and requests in split and packed rings; and rounds of pure chance. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/harness/torture.h"

/* A descriptor as it will stand in either kind of ring. */
struct raw_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags; /* NEXT, WRITE, INDIRECT */
    uint16_t next;  /* split; packed: the id */
};

enum fault {
    FAULT_NONE,
    FAULT_NEXT_OUT,
    FAULT_NEXT_SELF,
    FAULT_LOOP,
    FAULT_LONG_CHAIN,
    FAULT_LEN_0,
    FAULT_LEN_MAX,
    FAULT_ADDR_OUT,
    FAULT_ADDR_WRAPS,
    FAULT_ADDR_END,
    FAULT_HEADER_SHORT,
    FAULT_HEADER_WRITABLE,
    FAULT_NO_STATUS,
    FAULT_STATUS_READABLE,
    FAULT_READ_AFTER_WRITE,
    FAULT_FLAGS_ALL,
    FAULT_DATA_IS_RING,
    FAULT_STATUS_IS_RING,
    FAULT_INDIRECT_0,
    FAULT_INDIRECT_ODD,
    FAULT_INDIRECT_HUGE,
    FAULT_INDIRECT_OUT,
    FAULT_INDIRECT_NESTED,
    FAULT_INDIRECT_NEXT,
    FAULT_INDIRECT_LOOP,
    FAULT_INDIRECT_NEXT_OUT,
    FAULT_INDIRECT_LONG,
    FAULT_INDIRECT_MISALIGNED,
    FAULT_INDIRECT_IS_RING,
    FAULTS
};

static const char *const fault_names[FAULTS] = {
    "nothing wrong",
    "next beyond the table",
    "next is itself",
    "a loop",
    "a chain of the whole ring",
    "a buffer of no bytes",
    "a buffer of 4 GiB",
    "a buffer outside of memory",
    "a buffer that wraps",
    "a buffer across the end of memory",
    "a header of 8 bytes",
    "a header that may be written",
    "no status",
    "a status that may only be read",
    "readable after writable",
    "all flags",
    "data into the ring itself",
    "status into the ring itself",
    "an indirect table of no bytes",
    "an indirect table of 17 bytes",
    "an indirect table of 4 GiB",
    "an indirect table outside of memory",
    "an indirect table in an indirect table",
    "INDIRECT and NEXT together",
    "a loop in an indirect table",
    "next beyond an indirect table",
    "an indirect table longer than the ring",
    "an indirect table at an odd address",
    "the ring as an indirect table",
};

static void desc_write(struct bed_queue *queue, unsigned at, const struct raw_desc *d)
{
    if (queue->packed) {
        struct virtq_packed_desc *to = &queue->ring[at % queue->size];

        to->addr = le64_put(d->addr);
        to->len = le32_put(d->len);
        to->id = le16_put(d->next);
        if (at) /* the first one's flags make all of it available */
            to->flags = le16_put((uint16_t)(d->flags | VIRTQ_DESC_F_AVAIL));
        return;
    }
    queue->desc[at % queue->size] =
        (struct virtq_desc){le64_put(d->addr), le32_put(d->len), le16_put(d->flags), le16_put(d->next)};
}

static void make_available(struct torture *t, const struct raw_desc *first)
{
    struct bed_queue *queue = &t->bed.queues[0];

    queue->chain_len[first->next % 256] = 1;
    if (queue->packed) {
        le16_store_release(&queue->ring[0].flags, (uint16_t)(first->flags | VIRTQ_DESC_F_AVAIL));
    } else {
        le16_store(&queue->avail->ring[0], 0);
        le16_store_release(&queue->avail->idx, 1);
    }
    bed_kick(&t->bed, 0);
}

static void table_write(uint8_t *table, unsigned at, const struct raw_desc *d, bool packed)
{
    if (packed) {
        struct virtq_packed_desc to = {le64_put(d->addr), le32_put(d->len), le16_put(0), le16_put(d->flags)};

        memcpy(table + 16u * at, &to, sizeof(to));
    } else {
        struct virtq_desc to = {le64_put(d->addr), le32_put(d->len), le16_put(d->flags), le16_put(d->next)};

        memcpy(table + 16u * at, &to, sizeof(to));
    }
}

static enum outcome faulty_chain(struct torture *t, const struct torture_case *c)
{
    const enum fault fault = (enum fault)(c->a % FAULTS);
    const bool indirect = fault >= FAULT_INDIRECT_0;
    struct raw_desc d[3];
    struct bed_queue *queue = &t->bed.queues[0];
    uint8_t *mem, *status, *table;
    unsigned count = 3;
    bool packed = c->b;

    if (packed && !(t->offered & VIRTIO_BIT(VIRTIO_F_RING_PACKED)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t,
                      (struct bed_options){.features = VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC), .packed = packed}))
        return OUTCOME_ENDED;
    mem = bed_alloc(&t->bed, 65536);
    if (!mem)
        return OUTCOME_SKIPPED;
    status = mem + 256;
    table = mem + 8192;
    *status = 0xee;
    *(struct virtio_blk_req_header *)mem =
        (struct virtio_blk_req_header){le32_put(VIRTIO_BLK_T_IN), le32_put(0), le64_put(0)};
    d[0] = (struct raw_desc){bed_addr(&t->bed, mem), 16, VIRTQ_DESC_F_NEXT, 1};
    d[1] = (struct raw_desc){bed_addr(&t->bed, mem + 4096), 512, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE, 2};
    d[2] = (struct raw_desc){bed_addr(&t->bed, status), 1, VIRTQ_DESC_F_WRITE, 0};
    for (unsigned i = 0; i < 3; i++)
        table_write(table, i, &d[i], packed);
    if (indirect) {
        d[0] = (struct raw_desc){bed_addr(&t->bed, table), 48, VIRTQ_DESC_F_INDIRECT, 0};
        count = 1;
    }
    switch (fault) {
    case FAULT_NEXT_OUT:
        d[1].next = 0xffff;
        break;
    case FAULT_NEXT_SELF:
        d[1].next = 1;
        break;
    case FAULT_LOOP:
        d[2].flags |= VIRTQ_DESC_F_NEXT;
        break;
    case FAULT_LONG_CHAIN:
        for (unsigned i = 0; i < queue->size; i++) {
            struct raw_desc one = {bed_addr(&t->bed, mem + 4096), 512, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE,
                                   (uint16_t)((i + 1) % queue->size)};

            desc_write(queue, i, &one);
        }
        count = 1;
        break;
    case FAULT_LEN_0:
        d[1].len = 0;
        break;
    case FAULT_LEN_MAX:
        d[1].len = 0xffffffff;
        break;
    case FAULT_ADDR_OUT:
        d[1].addr = 0x1000;
        break;
    case FAULT_ADDR_WRAPS:
        d[1].addr = UINT64_MAX - 255;
        break;
    case FAULT_ADDR_END:
        d[1].addr = t->bed.hosted->regions[0].guest_addr + t->bed.hosted->arena_bytes - 256;
        break;
    case FAULT_HEADER_SHORT:
        d[0].len = 8;
        break;
    case FAULT_HEADER_WRITABLE:
        d[0].flags |= VIRTQ_DESC_F_WRITE;
        break;
    case FAULT_NO_STATUS:
        d[1].flags &= (uint16_t)~VIRTQ_DESC_F_NEXT;
        d[1].flags &= (uint16_t)~VIRTQ_DESC_F_WRITE;
        break;
    case FAULT_STATUS_READABLE:
        d[2].flags = 0;
        break;
    case FAULT_READ_AFTER_WRITE:
        d[0].flags |= VIRTQ_DESC_F_WRITE;
        d[1].flags = VIRTQ_DESC_F_NEXT;
        break;
    case FAULT_FLAGS_ALL:
        d[1].flags = (uint16_t) ~(VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED);
        break;
    case FAULT_DATA_IS_RING:
        d[1].addr = bed_addr(&t->bed, queue->mem);
        break;
    case FAULT_STATUS_IS_RING:
        d[2].addr = bed_addr(&t->bed, queue->used);
        break;
    case FAULT_INDIRECT_0:
        d[0].len = 0;
        break;
    case FAULT_INDIRECT_ODD:
        d[0].len = 17;
        break;
    case FAULT_INDIRECT_HUGE:
        d[0].len = 0xfffffff0;
        break;
    case FAULT_INDIRECT_OUT:
        d[0].addr = 0x10;
        break;
    case FAULT_INDIRECT_NESTED: {
        struct raw_desc nested = {bed_addr(&t->bed, table), 48, VIRTQ_DESC_F_INDIRECT, 0};

        table_write(table, 1, &nested, packed);
        break;
    }
    case FAULT_INDIRECT_NEXT:
        d[0].flags |= VIRTQ_DESC_F_NEXT;
        d[0].next = 1;
        count = 3;
        break;
    case FAULT_INDIRECT_LOOP: {
        struct raw_desc loop = {bed_addr(&t->bed, mem + 4096), 512, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE,
                                1};

        table_write(table, 1, &loop, packed);
        break;
    }
    case FAULT_INDIRECT_NEXT_OUT: {
        struct raw_desc far = {bed_addr(&t->bed, mem + 4096), 512, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE,
                               999};

        table_write(table, 1, &far, packed);
        break;
    }
    case FAULT_INDIRECT_LONG:
        for (unsigned i = 0; i < 2000; i++) {
            struct raw_desc one = {bed_addr(&t->bed, mem + 4096), 1, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE,
                                   (uint16_t)(i + 1)};

            table_write(table, i, &one, packed);
        }
        d[0].len = 2000 * 16;
        break;
    case FAULT_INDIRECT_MISALIGNED:
        memmove(table + 5, table, 48);
        d[0].addr += 5;
        break;
    case FAULT_INDIRECT_IS_RING:
        d[0].addr = bed_addr(&t->bed, queue->mem);
        break;
    default:
        break;
    }
    if (fault != FAULT_LONG_CHAIN)
        for (unsigned i = 0; i < count; i++)
            desc_write(queue, i, &d[i]);
    make_available(t, &d[0]);
    return torture_ring_look(t, 0, status);
}

/* ---- indexes ---- */

static enum outcome index_fault(struct torture *t, const struct torture_case *c)
{
    struct bed_queue *queue = &t->bed.queues[0];

    if (!torture_open(t, (struct bed_options){.features = c->b ? VIRTIO_BIT(VIRTIO_F_EVENT_IDX) : 0}))
        return OUTCOME_ENDED;
    for (unsigned i = 0; i < queue->size; i++)
        le16_store(&queue->avail->ring[i], c->a == 0 ? (uint16_t)(queue->size + i) : 0xffff);
    if (c->a == 2)
        memset(queue->mem, 0xff, 16u * queue->size);
    le16_store_release(&queue->avail->idx, (uint16_t)(c->a <= 2 ? 1 : c->a));
    bed_kick(&t->bed, 0);
    return torture_ring_look(t, 0, NULL);
}

/* The same head made available many times over before it was used */
static enum outcome same_head(struct torture *t, const struct torture_case *c)
{
    struct bed_queue *queue = &t->bed.queues[0];
    uint8_t *mem;

    if (!torture_open(t, (struct bed_options){0}))
        return OUTCOME_ENDED;
    mem = bed_alloc(&t->bed, 8192);
    if (!mem)
        return OUTCOME_SKIPPED;
    struct bed_piece pieces[] = {{mem, 16, false}, {mem + 4096, 512, true}, {mem + 64, 1, true}};
    bed_put(&t->bed, 0, pieces, 3, false);
    for (unsigned i = 1; i < queue->size; i++)
        le16_store(&queue->avail->ring[i], 0);
    le16_store_release(&queue->avail->idx, (uint16_t)queue->size);
    bed_kick(&t->bed, 0);
    bed_sleep_ms(3);
    return torture_ring_look(t, 0, NULL);
}

/* Packed: descriptors that are available for ever, ids beyond the ring, events that make no sense */
static enum outcome packed_fault(struct torture *t, const struct torture_case *c)
{
    struct bed_queue *queue = &t->bed.queues[0];

    if (!(t->offered & VIRTIO_BIT(VIRTIO_F_RING_PACKED)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t, (struct bed_options){.packed = true,
                                              .features = VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |
                                                          VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC)}))
        return OUTCOME_ENDED;
    for (unsigned i = 0; i < queue->size; i++) {
        uint16_t flags = c->a == 0   ? VIRTQ_DESC_F_AVAIL
                         : c->a == 1 ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_NEXT
                         : c->a == 2 ? 0xffff & ~VIRTQ_DESC_F_USED
                                     : (uint16_t)chance_next(&t->chance);

        queue->ring[i].addr = le64_put(c->a == 3 ? chance_next(&t->chance) : bed_addr(&t->bed, queue->mem));
        queue->ring[i].len = le32_put(c->a == 0 ? 16 : (uint32_t)chance_next(&t->chance));
        queue->ring[i].id = le16_put(c->a == 0 ? 0xffff : (uint16_t)chance_next(&t->chance));
        le16_store_release(&queue->ring[i].flags, flags);
    }
    queue->driver_event->off_wrap = le16_put((uint16_t)chance_next(&t->chance));
    le16_store(&queue->driver_event->flags, (uint16_t)(c->a == 4 ? 3 : 2));
    bed_kick(&t->bed, 0);
    return torture_ring_look(t, 0, NULL);
}

/* ---- requests ---- */

static enum outcome odd_request(struct torture *t, const struct torture_case *c)
{
    static const uint64_t sectors[] = {0, UINT64_MAX, UINT64_MAX / 512, 1ull << 63, 1ull << 40};
    static const uint32_t lengths[] = {0, 1, 15, 16, 17, 511, 513, 4096 + 1};
    uint8_t data[8192];
    int code;

    if (!torture_open(t, (struct bed_options){.features = ~(VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |
                                                            VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) |
                                                            VIRTIO_BIT(VIRTIO_F_IN_ORDER))}))
        return OUTCOME_ENDED;
    memset(data, c->b & 1 ? 0xff : 0, sizeof(data));
    for (unsigned s = 0; s < 5; s++)
        for (unsigned l = 0; l < 8; l++) {
            code = bed_request(&t->bed, 0, (uint32_t)c->a, sectors[s], data, lengths[l], c->b & 2, NULL);
            if (code == -ENODATA)
                return OUTCOME_RESET;
            if (code == -EPIPE)
                return OUTCOME_ENDED;
            if (code < 0)
                return OUTCOME_SILENCE;
        }
    return OUTCOME_REFUSED;
}

/* ---- chance ---- */

static void random_bytes(struct torture *t, uint8_t *to, size_t bytes)
{
    static const uint64_t edges[] = {0,   1,     2,     63,         64,         65,
                                     255, 65535, 65536, 0x7fffffff, 0xffffffff, UINT64_MAX};

    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t word = chance_next(&t->chance);

        switch (chance_below(&t->chance, 5)) {
        case 0:
            word = edges[chance_below(&t->chance, sizeof(edges) / sizeof(edges[0]))];
            break;
        case 1:
            word = t->bed.hosted->regions[0].guest_addr +
                   chance_below(&t->chance, t->bed.hosted->regions[0].bytes);
            break;
        case 2:
            word = (uintptr_t)t->bed.hosted->regions[0].mem +
                   chance_below(&t->chance, t->bed.hosted->regions[0].bytes);
            break;
        case 3:
            word = chance_below(&t->chance, 64) | chance_below(&t->chance, 16) << 32 |
                   chance_below(&t->chance, 64) << 48;
            break;
        default:
            break;
        }
        memcpy(to + i, &word, 8);
    }
}

static void random_message(struct torture *t)
{
    struct vhost_user_header header = {(uint32_t)chance_below(&t->chance, 44), VHOST_USER_VERSION,
                                       (uint32_t)chance_below(&t->chance, 10) * 8};
    uint8_t payload[512];
    int fds[3];
    unsigned nfds = (unsigned)chance_below(&t->chance, 3);

    if (chance_percent(&t->chance, 20))
        header.flags |= VHOST_USER_NEED_REPLY_MASK;
    random_bytes(t, payload, sizeof(payload));
    for (unsigned i = 0; i < nfds; i++)
        fds[i] = chance_percent(&t->chance, 50) ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
                                                : dup(t->bed.hosted->regions[0].fd);
    bed_send_raw(&t->bed, &header, payload, header.size, fds, nfds);
    for (unsigned i = 0; i < nfds; i++)
        close(fds[i]);
}

static void random_ring(struct torture *t)
{
    struct bed_queue *queue = &t->bed.queues[0];
    uint8_t *request = t->bed.hosted->regions[0].mem + 65536;

    random_bytes(t, queue->mem, 16u * queue->size);
    random_bytes(t, request, 4096);
    for (unsigned i = 0; i < queue->size; i++) {
        uint64_t addr = bed_addr(&t->bed, request) + chance_below(&t->chance, 2048);
        uint32_t len = (uint32_t)chance_below(&t->chance, 600);
        uint16_t flags = (uint16_t)(chance_below(&t->chance, 8));

        if (chance_percent(&t->chance, 10))
            continue; /* leave it random */
        if (queue->packed)
            queue->ring[i] = (struct virtq_packed_desc){le64_put(addr), le32_put(len), le16_put((uint16_t)i),
                                                        le16_put((uint16_t)(flags | VIRTQ_DESC_F_AVAIL))};
        else
            queue->desc[i] = (struct virtq_desc){le64_put(addr), le32_put(len), le16_put(flags),
                                                 le16_put((uint16_t)chance_below(&t->chance, queue->size))};
    }
    if (!queue->packed) {
        for (unsigned i = 0; i < queue->size; i++)
            le16_store(&queue->avail->ring[i], (uint16_t)chance_below(&t->chance, queue->size));
        queue->avail_idx = (uint16_t)(queue->avail_idx + chance_below(&t->chance, 20));
        le16_store_release(&queue->avail->idx, queue->avail_idx);
    }
    bed_kick(&t->bed, 0);
}

enum outcome torture_random(struct torture *t, const struct torture_case *c)
{
    struct bed_options options = {.features = VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC), .message_ms = 300};
    unsigned steps;

    t->chance.state = c->a * 7919;
    options.packed = chance_percent(&t->chance, 40);
    options.no_memory = chance_percent(&t->chance, 10);
    options.no_start = chance_percent(&t->chance, 20);
    options.regions = 1 + (unsigned)chance_below(&t->chance, 3);
    if (chance_percent(&t->chance, 50))
        options.features |= VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    if (!torture_open(t, options))
        return OUTCOME_ENDED;
    steps = 1 + (unsigned)chance_below(&t->chance, 12);
    for (unsigned i = 0; i < steps; i++) {
        if (chance_percent(&t->chance, 50))
            random_message(t);
        else
            random_ring(t);
    }
    bed_sleep_ms(1);
    return torture_look_over(t);
}

void torture_rings(struct torture_list *list)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_IN,
                                     VIRTIO_BLK_T_OUT,
                                     VIRTIO_BLK_T_FLUSH,
                                     VIRTIO_BLK_T_GET_ID,
                                     VIRTIO_BLK_T_GET_LIFETIME,
                                     VIRTIO_BLK_T_DISCARD,
                                     VIRTIO_BLK_T_WRITE_ZEROES,
                                     VIRTIO_BLK_T_SECURE_ERASE,
                                     VIRTIO_BLK_T_ZONE_REPORT,
                                     VIRTIO_BLK_T_ZONE_APPEND,
                                     0x80000000u,
                                     0xffffffffu};

    for (unsigned f = 0; f < FAULTS; f++)
        for (unsigned packed = 0; packed < 2; packed++)
            torture_add(list, faulty_chain, f, packed, "%s ring: %s", packed ? "packed" : "split",
                        fault_names[f]);
    for (unsigned event = 0; event < 2; event++) {
        static const uint16_t jumps[] = {65, 128, 1000, 32768, 65535};
        const char *with = event ? ", EVENT_IDX" : "";

        torture_add(list, index_fault, 0, event, "heads beyond the table%s", with);
        torture_add(list, index_fault, 1, event, "heads of 0xffff%s", with);
        torture_add(list, index_fault, 2, event, "a table of all ones%s", with);
        for (unsigned i = 0; i < 5; i++)
            torture_add(list, index_fault, jumps[i], event, "avail.idx jumps by %u%s", jumps[i], with);
    }
    torture_add(list, same_head, 0, 0, "one head made available many times");
    for (unsigned a = 0; a < 5; a++)
        torture_add(list, packed_fault, a, 0, "packed ring: %s",
                    a == 0   ? "ids of 0xffff, all available"
                    : a == 1 ? "a chain without end"
                    : a == 2 ? "all flags"
                    : a == 3 ? "random bytes"
                             : "reserved event flags");
    for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        for (unsigned b = 0; b < 4; b++)
            torture_add(list, odd_request, types[i], b, "requests of type %#x in odd lengths, %s, data %s",
                        types[i], b & 1 ? "all ones" : "all zeroes", b & 2 ? "writable" : "readable");
}
