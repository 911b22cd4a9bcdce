/* Rules of chapters 2.7 and 2.8: rings, framing, indirect tables, notifications. See conform.h. */
#include <errno.h>
#include <string.h>

#include "tests/harness/conform.h"

static bool has(const struct conform *c, unsigned bit)
{
    return c->offered & VIRTIO_BIT(bit);
}

/* A request in memory of the machine, to be cut into descriptors as the test likes. */
struct parts {
    struct virtio_blk_req_header *header;
    uint8_t *data;
    uint8_t *status;
};

static bool parts_make(struct conform *c, struct parts *p, uint32_t type, uint64_t sector, uint32_t bytes)
{
    uint8_t *mem = bed_alloc(&c->bed, 64 + bytes + 64);

    if (!mem)
        return false;
    /* One after another, so that neighbours can share a descriptor. */
    p->header = (struct virtio_blk_req_header *)mem;
    p->data = mem + sizeof(*p->header);
    p->status = p->data + bytes;
    *p->header = (struct virtio_blk_req_header){le32_put(type), le32_put(0), le64_put(sector)};
    memset(p->data, 0x3c, bytes);
    *p->status = 0xee;
    return true;
}

static int run(struct conform *c, const struct parts *p, const struct bed_piece *pieces, unsigned count,
               bool indirect, uint32_t *len)
{
    int code;

    bed_put(&c->bed, 0, pieces, count, indirect);
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, len);
    if (code == 1)
        return __atomic_load_n(p->status, __ATOMIC_RELAXED);
    return code == 0 ? -ETIMEDOUT : code;
}

static uint32_t block_bytes(const struct conform *c)
{
    uint32_t block = le32_get(c->bed.config.blk_size);

    return has(c, VIRTIO_BLK_F_BLK_SIZE) && block >= 512 && block <= 65536 ? block : 512;
}

static enum verdict expect_ok(struct conform *c, const char *what, int code)
{
    return code == VIRTIO_BLK_S_OK ? VERDICT_PASS : conform_fail(c, "%s: %s", what, conform_status(code));
}

static enum verdict header_in_bytes(struct conform *c)
{
    struct bed_piece pieces[18];
    struct parts p;

    if (!conform_open(c, 0) || !parts_make(c, &p, VIRTIO_BLK_T_IN, 0, block_bytes(c)))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 16; i++)
        pieces[i] = (struct bed_piece){(uint8_t *)p.header + i, 1, false};
    pieces[16] = (struct bed_piece){p.data, block_bytes(c), true};
    pieces[17] = (struct bed_piece){p.status, 1, true};
    return expect_ok(c, "a header of 16 descriptors", run(c, &p, pieces, 18, false, NULL));
}

static enum verdict status_with_data(struct conform *c)
{
    struct parts p;
    uint32_t block;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    block = block_bytes(c);
    if (!parts_make(c, &p, VIRTIO_BLK_T_IN, 0, block))
        return VERDICT_FAIL;
    struct bed_piece pieces[] = {{p.header, 16, false}, {p.data, block + 1, true}};
    return expect_ok(c, "status in the data's descriptor", run(c, &p, pieces, 2, false, NULL));
}

static enum verdict header_with_data(struct conform *c)
{
    uint8_t back[65536];
    struct parts p;
    uint32_t block;
    int code;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    block = block_bytes(c);
    if (!parts_make(c, &p, VIRTIO_BLK_T_OUT, 8, block))
        return VERDICT_FAIL;
    struct bed_piece pieces[] = {{p.header, 16 + block, false}, {p.status, 1, true}};
    if (expect_ok(c, "data in the header's descriptor", run(c, &p, pieces, 2, false, NULL)) != VERDICT_PASS)
        return VERDICT_FAIL;
    code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 8, back, block, true, NULL);
    if (code != VIRTIO_BLK_S_OK || memcmp(back, p.data, block) != 0)
        return conform_fail(c, "what was written that way does not read back (%s)", conform_status(code));
    return VERDICT_PASS;
}

static enum verdict data_in_odd_pieces(struct conform *c)
{
    struct parts p;
    uint32_t block;
    uint8_t back[65536];
    int code;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    block = block_bytes(c);
    if (!parts_make(c, &p, VIRTIO_BLK_T_OUT, 16, block))
        return VERDICT_FAIL;
    for (uint32_t i = 0; i < block; i++)
        p.data[i] = (uint8_t)(i * 7);
    struct bed_piece pieces[] = {
        {p.header, 9, false},     {(uint8_t *)p.header + 9, 7, false}, {p.data, 1, false},
        {p.data + 1, 333, false}, {p.data + 334, block - 334, false},  {p.status, 1, true}};
    if (expect_ok(c, "odd pieces", run(c, &p, pieces, 6, false, NULL)) != VERDICT_PASS)
        return VERDICT_FAIL;
    code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 16, back, block, true, NULL);
    if (code != VIRTIO_BLK_S_OK || memcmp(back, p.data, block) != 0)
        return conform_fail(c, "what was written that way does not read back (%s)", conform_status(code));
    return VERDICT_PASS;
}

static enum verdict readable_untouched(struct conform *c)
{
    struct parts p;
    uint8_t copy[65536 + 16];
    uint32_t block;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    block = block_bytes(c);
    if (!parts_make(c, &p, VIRTIO_BLK_T_OUT, 0, block))
        return VERDICT_FAIL;
    memcpy(copy, p.header, 16 + block);
    struct bed_piece pieces[] = {{p.header, 16, false}, {p.data, block, false}, {p.status, 1, true}};
    if (expect_ok(c, "a write", run(c, &p, pieces, 3, false, NULL)) != VERDICT_PASS)
        return VERDICT_FAIL;
    return memcmp(copy, p.header, 16 + block) == 0 ? VERDICT_PASS
                                                   : conform_fail(c, "bytes of the request were changed");
}

static enum verdict table_untouched(struct conform *c)
{
    struct virtq_desc before[64];
    struct parts p;

    if (!conform_open(c, 0) || !parts_make(c, &p, VIRTIO_BLK_T_IN, 0, block_bytes(c)))
        return VERDICT_FAIL;
    struct bed_piece pieces[] = {{p.header, 16, false}, {p.data, block_bytes(c), true}, {p.status, 1, true}};
    bed_put(&c->bed, 0, pieces, 3, false);
    memcpy(before, c->bed.queues[0].desc, sizeof(before));
    bed_kick(&c->bed, 0);
    if (bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL) != 1)
        return conform_fail(c, "a read was not answered");
    return memcmp(before, c->bed.queues[0].desc, sizeof(before)) == 0
               ? VERDICT_PASS
               : conform_fail(c, "the descriptor table was changed");
}

static enum verdict used_len(struct conform *c)
{
    uint8_t data[65536] = {0};
    uint32_t block, len = 0;
    int code;

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    block = block_bytes(c);
    code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block, true, &len);
    if (expect_ok(c, "a read", code) != VERDICT_PASS)
        return VERDICT_FAIL;
    if (len > block + 1)
        return conform_fail(c, "a read of %u bytes says that %u were written", block, len);
    if (!c->read_only) {
        code = bed_request(&c->bed, 0, VIRTIO_BLK_T_OUT, 0, data, block, false, &len);
        if (expect_ok(c, "a write", code) != VERDICT_PASS)
            return VERDICT_FAIL;
        if (len > 1)
            return conform_fail(c, "a write of %u bytes says that %u were written to memory", block, len);
    }
    return VERDICT_PASS;
}

static enum verdict indirect_works(struct conform *c)
{
    struct parts p;

    if (!has(c, VIRTIO_F_INDIRECT_DESC))
        return conform_na(c, "no INDIRECT_DESC");
    if (!conform_open(c, VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC)) ||
        !parts_make(c, &p, VIRTIO_BLK_T_IN, 0, block_bytes(c)))
        return VERDICT_FAIL;
    struct bed_piece pieces[] = {{p.header, 16, false}, {p.data, block_bytes(c), true}, {p.status, 1, true}};
    return expect_ok(c, "an indirect table", run(c, &p, pieces, 3, true, NULL));
}

static enum verdict direct_then_indirect(struct conform *c)
{
    struct bed_queue *queue = &c->bed.queues[0];
    struct virtq_desc *table;
    struct parts p;
    uint32_t block;
    int code;

    if (!has(c, VIRTIO_F_INDIRECT_DESC))
        return conform_na(c, "no INDIRECT_DESC");
    if (!conform_open(c, VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC)))
        return VERDICT_FAIL;
    block = block_bytes(c);
    table = bed_alloc(&c->bed, 2 * sizeof(*table));
    if (!table || !parts_make(c, &p, VIRTIO_BLK_T_IN, 0, block))
        return VERDICT_FAIL;
    table[0] = (struct virtq_desc){le64_put(bed_addr(&c->bed, p.data)), le32_put(block),
                                   le16_put(VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT), le16_put(1)};
    table[1] = (struct virtq_desc){le64_put(bed_addr(&c->bed, p.status)), le32_put(1),
                                   le16_put(VIRTQ_DESC_F_WRITE), le16_put(0)};
    queue->desc[0] = (struct virtq_desc){le64_put(bed_addr(&c->bed, p.header)), le32_put(16),
                                         le16_put(VIRTQ_DESC_F_NEXT), le16_put(1)};
    /* WRITE on the descriptor of the table is to be ignored (62). */
    queue->desc[1] = (struct virtq_desc){le64_put(bed_addr(&c->bed, table)), le32_put(32),
                                         le16_put(VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE), le16_put(0)};
    queue->avail->ring[0] = le16_put(0);
    le16_store_release(&queue->avail->idx, ++queue->avail_idx);
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL);
    return expect_ok(c, "a direct descriptor and then a table",
                     code == 1   ? *p.status
                     : code == 0 ? -ETIMEDOUT
                                 : code);
}

static enum verdict index_wraps(struct conform *c)
{
    struct bed_queue *queue = &c->bed.queues[0];
    uint8_t data[65536];
    int code;

    if (!conform_open_options(c, (struct bed_options){.no_start = true, .queue_size = 16}))
        return VERDICT_FAIL;
    queue->avail_idx = queue->used_idx = 65530;
    le16_store(&queue->avail->idx, 65530);
    le16_store(&queue->used->idx, 65530);
    if (bed_queue_messages(&c->bed, 0, 65530) < 0 || bed_queue_enable(&c->bed, 0, true) < 0)
        return conform_fail(c, "a ring that starts at 65530 was refused");
    for (unsigned i = 0; i < 40; i++) {
        code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL);
        if (code != VIRTIO_BLK_S_OK)
            return conform_fail(c, "request %u from index 65530 on: %s", i, conform_status(code));
    }
    return VERDICT_PASS;
}

static enum verdict ring_goes_round(struct conform *c)
{
    uint8_t data[65536];
    int code;

    if (!conform_open_options(c, (struct bed_options){.queue_size = 8}))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 300; i++) {
        code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL);
        if (code != VIRTIO_BLK_S_OK)
            return conform_fail(c, "request %u in a ring of 8: %s", i, conform_status(code));
    }
    return VERDICT_PASS;
}

static enum verdict interrupt_wanted(struct conform *c)
{
    uint8_t data[65536];

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    bed_interrupts(&c->bed, 0);
    for (unsigned i = 0; i < 8; i++) {
        int code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL);

        if (code != VIRTIO_BLK_S_OK)
            return conform_fail(c, "a read ended with %s", conform_status(code));
        if (!bed_interrupted(&c->bed, 0))
            return conform_fail(c, "no interrupt within %u s after request %u", BED_WAIT_MS / 1000, i);
    }
    return VERDICT_PASS;
}

static void interrupts_unwanted(struct conform *c)
{
    if (c->packed)
        le16_store(&c->bed.queues[0].driver_event->flags, VIRTQ_PACKED_EVENT_DISABLE);
    else
        le16_store(&c->bed.queues[0].avail->flags, VIRTQ_AVAIL_F_NO_INTERRUPT);
    bed_fence();
}

static enum verdict interrupt_unwanted(struct conform *c)
{
    uint8_t data[65536];
    uint64_t count;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    interrupts_unwanted(c);
    bed_interrupts(&c->bed, 0);
    for (unsigned i = 0; i < 20; i++)
        if (bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL) != VIRTIO_BLK_S_OK)
            return conform_fail(c, "a read failed");
    bed_sleep_ms(20);
    count = bed_interrupts(&c->bed, 0);
    return count == 0 ? VERDICT_PASS
                      : conform_fail(c, "%llu interrupts for 20 requests", (unsigned long long)count);
}

static enum verdict event_idx_ignores_flags(struct conform *c)
{
    uint8_t data[65536];

    if (!has(c, VIRTIO_F_EVENT_IDX))
        return conform_na(c, "no EVENT_IDX");
    if (!conform_open(c, VIRTIO_BIT(VIRTIO_F_EVENT_IDX)))
        return VERDICT_FAIL;
    interrupts_unwanted(c); /* the flag that means nothing now; used_event is 0 */
    bed_interrupts(&c->bed, 0);
    if (bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL) != VIRTIO_BLK_S_OK)
        return conform_fail(c, "a read failed");
    return bed_interrupted(&c->bed, 0)
               ? VERDICT_PASS
               : conform_fail(c, "avail.flags suppressed an interrupt though EVENT_IDX is in force");
}

static le16 *used_event(struct bed_queue *queue)
{
    return &queue->avail->ring[queue->size];
}

static enum verdict event_idx_counts(struct conform *c)
{
    struct bed_queue *queue = &c->bed.queues[0];
    uint8_t data[65536];

    if (!has(c, VIRTIO_F_EVENT_IDX))
        return conform_na(c, "no EVENT_IDX");
    if (!conform_open_options(
            c, (struct bed_options){.features = VIRTIO_BIT(VIRTIO_F_EVENT_IDX), .no_start = true}))
        return VERDICT_FAIL;
    /* Across the wrap of the index: entries 65532 .. 4, interrupt wanted when entry 2 was written. */
    queue->avail_idx = queue->used_idx = 65532;
    le16_store(&queue->avail->idx, 65532);
    le16_store(&queue->used->idx, 65532);
    le16_store(used_event(queue), 2);
    if (bed_queue_messages(&c->bed, 0, 65532) < 0 || bed_queue_enable(&c->bed, 0, true) < 0)
        return conform_fail(c, "a ring that starts at 65532 was refused");
    for (unsigned i = 0; i < 9; i++) {
        bool wanted = (uint16_t)(65532 + i) == 2;
        uint64_t count;

        if (i == 0)
            bed_interrupts(&c->bed, 0);
        if (bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL) != VIRTIO_BLK_S_OK)
            return conform_fail(c, "a read failed");
        if (i == 0)
            (void)bed_alive(&c->bed); /* what came of the start has come */
        if (!wanted)
            bed_sleep_ms(10);
        count = wanted ? bed_interrupted(&c->bed, 0) : bed_interrupts(&c->bed, 0);
        /* The device may interrupt when a ring starts, whatever the event index says. */
        if (i > 0 && !!count != wanted)
            return conform_fail(c, "used entry %u, used_event 2: %s", (uint16_t)(65532 + i),
                                count ? "an interrupt" : "no interrupt");
    }
    return VERDICT_PASS;
}

static enum verdict used_flags(struct conform *c)
{
    uint8_t data[65536];

    for (unsigned round = 0; round < 2; round++) {
        if (round == 1 && !has(c, VIRTIO_F_EVENT_IDX))
            break;
        if (!conform_open(c, round ? VIRTIO_BIT(VIRTIO_F_EVENT_IDX) : 0))
            return VERDICT_FAIL;
        for (unsigned i = 0; i < 50; i++) {
            uint16_t flags;

            if (bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL) !=
                VIRTIO_BLK_S_OK)
                return conform_fail(c, "a read failed");
            flags = le16_load(&c->bed.queues[0].used->flags);
            if (flags > (round ? 0 : 1))
                return conform_fail(c, "used.flags is %#x %s EVENT_IDX", flags, round ? "with" : "without");
        }
    }
    return VERDICT_PASS;
}

static enum verdict spurious_kicks(struct conform *c)
{
    uint8_t data[65536];
    int code;

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 2000; i++)
        bed_kick(&c->bed, 0);
    if (bed_wait(&c->bed, 0, 30, NULL, NULL) != 0)
        return conform_fail(c, "a used entry came of nothing");
    code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true, NULL);
    return expect_ok(c, "a read after 2000 kicks for nothing", code);
}

static enum verdict whole_ring_at_once(struct conform *c)
{
    struct parts p[21];
    unsigned done = 0;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 21; i++) {
        if (!parts_make(c, &p[i], VIRTIO_BLK_T_IN, 0, block_bytes(c)))
            return VERDICT_FAIL;
        struct bed_piece pieces[] = {
            {p[i].header, 16, false}, {p[i].data, block_bytes(c), true}, {p[i].status, 1, true}};
        bed_put(&c->bed, 0, pieces, 3, false);
    }
    bed_kick(&c->bed, 0);
    while (done < 21 && bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL) == 1)
        done++;
    for (unsigned i = 0; i < 21 && done == 21; i++)
        if (*p[i].status != VIRTIO_BLK_S_OK)
            return conform_fail(c, "request %u of a full ring: %s", i, conform_status(*p[i].status));
    return done == 21 ? VERDICT_PASS : conform_fail(c, "21 requests, one kick, %u answers", done);
}

static enum verdict in_order_kept(struct conform *c)
{
    struct parts p[20];
    unsigned heads[20], seen = 0;

    if (!has(c, VIRTIO_F_IN_ORDER))
        return conform_na(c, "no IN_ORDER");
    if (!conform_open(c, VIRTIO_BIT(VIRTIO_F_IN_ORDER)))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 20; i++) {
        if (!parts_make(c, &p[i], VIRTIO_BLK_T_IN,
                        (i * 7919) % (c->bed.capacity ? c->bed.capacity / 256 + 1 : 1) * 128, block_bytes(c)))
            return VERDICT_FAIL;
        struct bed_piece pieces[] = {
            {p[i].header, 16, false}, {p[i].data, block_bytes(c), true}, {p[i].status, 1, true}};
        heads[i] = bed_put(&c->bed, 0, pieces, 3, false);
    }
    bed_kick(&c->bed, 0);
    while (seen < 20) {
        uint32_t id;
        unsigned at = seen;
        struct bed_queue *queue = &c->bed.queues[0];
        uint16_t before = queue->used_idx;
        bool wrap_before = queue->used_wrap;

        if (bed_wait(&c->bed, 0, BED_WAIT_MS, &id, NULL) != 1)
            return conform_fail(c, "%u of 20 requests answered", seen);
        while (at < 20 && heads[at] != id)
            at++;
        if (at == 20)
            return conform_fail(c, "id %u came out of order", id);
        if (c->packed) {
            /* One entry for a batch: the ring position goes over all of its descriptors (2.8.7). */
            unsigned after = before + 3 * (at - seen + 1);

            queue->used_wrap = after >= queue->size ? !wrap_before : wrap_before;
            queue->used_idx = (uint16_t)(after % queue->size);
        } else {
            queue->used_idx = (uint16_t)(before + (at - seen + 1));
        }
        seen = at + 1;
    }
    return VERDICT_PASS;
}

static enum verdict broken_index(struct conform *c)
{
    struct bed_queue *queue = &c->bed.queues[0];
    int code;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    le16_store_release(&queue->avail->idx, (uint16_t)(queue->size + 7));
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL);
    if (code == 1)
        return conform_fail(c, "requests were taken from an index that jumped by more than the queue's size");
    if (code == -ENODATA || bed_needs_reset(&c->bed) || code == -EPIPE)
        return VERDICT_PASS;
    return conform_fail(c,
                        "the index jumped by more than the queue's size, and the device did not say a word");
}

/* clang-format off */
const struct conform_rule conform_ring_rules[] = {
    {"2.7.4.1", "46", "a header of sixteen descriptors of one byte", RULE_RING, header_in_bytes},
    {"2.7.4.1", "46", "status in the descriptor of the data", RULE_RING, status_with_data},
    {"2.7.4.1", "46", "data in the descriptor of the header", RULE_RING | RULE_WRITES, header_with_data},
    {"2.7.4.1", "46", "data in pieces of odd length", RULE_RING | RULE_WRITES, data_in_odd_pieces},
    {"2.7.5.1", "50", "what the device may only read stays as it is", RULE_RING | RULE_WRITES, readable_untouched},
    {"2.7.5.1", "52", "the descriptor table stays as it is", RULE_SPLIT, table_untouched},
    {"2.7.5.3.2", "", "a chain in an indirect table", RULE_RING, indirect_works},
    {"2.7.5.3.2", "62 63", "direct descriptors followed by an indirect one, WRITE ignored", RULE_SPLIT, direct_then_indirect},
    {"2.7.8.2", "83", "used length is not more than what was written", RULE_RING, used_len},
    {"2.7.6", "65", "indexes wrap from 65535 to 0", RULE_SPLIT, index_wraps},
    {"2.7.13", "", "the ring goes round", RULE_RING, ring_goes_round},
    {"2.7.13", "", "one kick for a full ring", RULE_RING, whole_ring_at_once},
    {"2.7.7.2", "71", "an interrupt comes when it is wanted", RULE_RING, interrupt_wanted},
    {"2.7.7.2", "71", "no interrupt comes when none is wanted", RULE_RING, interrupt_unwanted},
    {"2.7.7.2", "72", "with EVENT_IDX the flag in avail.flags is ignored", RULE_SPLIT, event_idx_ignores_flags},
    {"2.7.7.2", "73", "with EVENT_IDX the interrupt comes at used_event, across the wrap", RULE_SPLIT, event_idx_counts},
    {"2.7.10.2", "79 80", "used.flags is 0 or 1, and 0 with EVENT_IDX", RULE_SPLIT, used_flags},
    {"2.7.10.2", "81", "kicks for nothing do no harm", RULE_RING, spurious_kicks},
    {"6.2", "89", "with IN_ORDER buffers are used in order", RULE_RING, in_order_kept},
    {"2.1.2", "6", "a broken ring makes the device ask for a reset", RULE_SPLIT, broken_index},
    {0},
};
/* clang-format on */
