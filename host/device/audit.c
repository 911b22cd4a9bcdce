/*
 * The judge of the driver at the other end (virtqueue_audit.h).
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "host/device/virtqueue.h"
#include "host/device/virtqueue_audit.h"

#define AUDIT_ENTRY(name, section, strength, text) {section, strength, text},
const struct audit_rule_info audit_rule_info[AUDIT_RULE_COUNT] = {AUDIT_RULES(AUDIT_ENTRY)};
#undef AUDIT_ENTRY

struct virtqueue_audit {
    struct audit_setup setup;
    uint16_t size;
    bool packed, event_idx, in_order;
    uint64_t breaches[AUDIT_RULE_COUNT];
    /* the chain at hand */
    uint32_t descs, ring_descs;
    uint32_t head;
    uint32_t first_len, last_len;
    uint32_t segments; /* of the chain before this request: data alone, if header and status stood apart */
    bool segments_known;
    /* IN_ORDER: where the next chain has to begin */
    uint32_t next_head;
    bool next_head_known;
};

static void __attribute__((format(printf, 3, 4)))
breach(struct virtqueue_audit *audit, enum audit_rule rule, const char *format, ...)
{
    const struct audit_rule_info *info = &audit_rule_info[rule];
    char what[160], line[400];
    va_list args;

    if (audit->breaches[rule]++ > 0)
        return;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    snprintf(line, sizeof(line), "queue %u: %s %s: %s (%s)", audit->setup.queue, info->section,
             info->strength, info->text, what);
    audit->setup.line(audit->setup.opaque, line);
}

struct virtqueue_audit *audit_create(const struct audit_setup *setup, const struct virtqueue *vq)
{
    struct virtqueue_audit *audit = calloc(1, sizeof(*audit));
    uint64_t refused = setup->offered & ~setup->negotiated;

    if (!audit)
        return NULL;
    audit->setup = *setup;
    audit->size = vq->size;
    audit->packed = vq->packed;
    audit->event_idx = vq->event_idx;
    audit->in_order = setup->negotiated & VIRTIO_BIT(VIRTIO_F_IN_ORDER);
    if (refused & VIRTIO_BIT(VIRTIO_F_VERSION_1))
        breach(audit, AUDIT_VERSION_1, "features 0x%" PRIx64 " were accepted", setup->negotiated);
    if ((setup->negotiated & VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE)) &&
        (refused & VIRTIO_BIT(VIRTIO_BLK_F_FLUSH)))
        breach(audit, AUDIT_WCE_NEEDS_FLUSH, "features 0x%" PRIx64 " were accepted", setup->negotiated);
    return audit;
}

void audit_destroy(struct virtqueue_audit *audit)
{
    if (!audit)
        return;
    for (unsigned i = 0; i < AUDIT_RULE_COUNT; i++) {
        char line[400];

        if (audit->breaches[i] < 2)
            continue;
        snprintf(line, sizeof(line), "queue %u: %s %s: %s: broken %" PRIu64 " times", audit->setup.queue,
                 audit_rule_info[i].section, audit_rule_info[i].strength, audit_rule_info[i].text,
                 audit->breaches[i]);
        audit->setup.line(audit->setup.opaque, line);
    }
    free(audit);
}

void audit_desc(struct virtqueue_audit *audit, bool in_table, uint16_t flags, uint32_t len,
                uint16_t next_or_id, uint32_t index)
{
    uint16_t known = VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_INDIRECT;

    if (audit->packed) {
        known |= VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
        if (in_table && (flags & ~VIRTQ_DESC_F_WRITE))
            breach(audit, AUDIT_TABLE_FLAGS, "flags 0x%x in entry %u", flags, index);
    } else if (audit->in_order) {
        bool more = flags & VIRTQ_DESC_F_NEXT;
        uint32_t expected = in_table ? index + 1 : (index + 1) % audit->size;

        if (more && next_or_id != expected)
            breach(audit, in_table ? AUDIT_IN_ORDER_TABLE : AUDIT_IN_ORDER_NEXT,
                   "next of descriptor %u is %u", index, next_or_id);
    }
    if (flags & ~known)
        breach(audit, AUDIT_DESC_FLAGS, "flags 0x%x in descriptor %u", flags, index);
    if (!in_table) {
        if (audit->ring_descs++ == 0)
            audit->head = index;
        if (flags & VIRTQ_DESC_F_INDIRECT)
            return;
    }
    if (audit->descs++ == 0)
        audit->first_len = len;
    audit->last_len = len;
}

void audit_chain(struct virtqueue_audit *audit, const struct virtq_chain *chain)
{
    if (audit->descs > audit->size)
        breach(audit, AUDIT_CHAIN_LENGTH, "%u descriptors in a queue of %u", audit->descs, audit->size);
    if (chain->out_bytes + chain->in_bytes > 1ull << 32)
        breach(audit, AUDIT_CHAIN_BYTES, "%" PRIu64 " bytes", chain->out_bytes + chain->in_bytes);
    if (audit->in_order && !audit->packed) {
        if (audit->next_head_known && audit->head != audit->next_head)
            breach(audit, AUDIT_IN_ORDER_HEAD, "a chain begins at %u instead of %u", audit->head,
                   audit->next_head);
        audit->next_head = (audit->head + audit->ring_descs) % audit->size;
        audit->next_head_known = true;
    }
    audit->segments_known =
        audit->descs > 2 && audit->first_len == sizeof(struct virtio_blk_req_header) && audit->last_len == 1;
    audit->segments = audit->descs - 2;
    audit->descs = audit->ring_descs = 0;
}

void audit_events(struct virtqueue_audit *audit, const struct virtqueue *vq)
{
    uint16_t flags;

    if (audit->packed) {
        flags = le16_load(&vq->ring.driver->flags);
        if (flags > VIRTQ_PACKED_EVENT_DESC || (flags == VIRTQ_PACKED_EVENT_DESC && !audit->event_idx))
            breach(audit, AUDIT_EVENT_FLAGS, "they are 0x%x", flags);
        return;
    }
    flags = le16_load(&vq->split.avail->flags);
    if (audit->event_idx && flags != 0)
        breach(audit, AUDIT_AVAIL_FLAGS_EVENT_IDX, "it is 0x%x", flags);
    else if (flags > VIRTQ_AVAIL_F_NO_INTERRUPT)
        breach(audit, AUDIT_AVAIL_FLAGS, "it is 0x%x", flags);
}

void audit_broken(struct virtqueue_audit *audit, const char *why)
{
    breach(audit, AUDIT_RING, "%s", why);
}

/* ---- requests ---- */

enum data { DATA_NONE, DATA_OUT, DATA_IN };

static const struct type_rules {
    const char *name;
    uint8_t feature; /* 0: none is needed */
    uint8_t data;
    bool sector, ranges, io;
} type_rules[] = {
    [VIRTIO_BLK_T_IN] = {"IN", 0, DATA_IN, true, false, true},
    [VIRTIO_BLK_T_OUT] = {"OUT", 0, DATA_OUT, true, false, true},
    [VIRTIO_BLK_T_FLUSH] = {"FLUSH", VIRTIO_BLK_F_FLUSH, DATA_NONE, false, false, false},
    [VIRTIO_BLK_T_GET_ID] = {"GET_ID", 0, DATA_IN, false, false, false},
    [VIRTIO_BLK_T_GET_LIFETIME] = {"GET_LIFETIME", VIRTIO_BLK_F_LIFETIME, DATA_IN, false, false, false},
    [VIRTIO_BLK_T_DISCARD] = {"DISCARD", VIRTIO_BLK_F_DISCARD, DATA_OUT, false, true, false},
    [VIRTIO_BLK_T_WRITE_ZEROES] = {"WRITE_ZEROES", VIRTIO_BLK_F_WRITE_ZEROES, DATA_OUT, false, true, false},
    [VIRTIO_BLK_T_SECURE_ERASE] = {"SECURE_ERASE", VIRTIO_BLK_F_SECURE_ERASE, DATA_OUT, false, true, false},
    [VIRTIO_BLK_T_ZONE_APPEND] = {"ZONE_APPEND", VIRTIO_BLK_F_ZONED, DATA_OUT, true, false, true},
    [VIRTIO_BLK_T_ZONE_REPORT] = {"ZONE_REPORT", VIRTIO_BLK_F_ZONED, DATA_IN, true, false, false},
    [VIRTIO_BLK_T_ZONE_OPEN] = {"ZONE_OPEN", VIRTIO_BLK_F_ZONED, DATA_NONE, true, false, false},
    [VIRTIO_BLK_T_ZONE_CLOSE] = {"ZONE_CLOSE", VIRTIO_BLK_F_ZONED, DATA_NONE, true, false, false},
    [VIRTIO_BLK_T_ZONE_FINISH] = {"ZONE_FINISH", VIRTIO_BLK_F_ZONED, DATA_NONE, true, false, false},
    [VIRTIO_BLK_T_ZONE_RESET] = {"ZONE_RESET", VIRTIO_BLK_F_ZONED, DATA_NONE, true, false, false},
    [VIRTIO_BLK_T_ZONE_RESET_ALL] = {"ZONE_RESET_ALL", VIRTIO_BLK_F_ZONED, DATA_NONE, false, false, false},
};

#define TYPE_RULES (sizeof(type_rules) / sizeof(type_rules[0]))

static void judge_io(struct virtqueue_audit *audit, const struct type_rules *rules, uint64_t sector,
                     uint64_t bytes, uint64_t capacity)
{
    if (bytes == 0 || bytes % VIRTIO_BLK_SECTOR_BYTES != 0)
        breach(audit, AUDIT_IO_LENGTH, "%s of %" PRIu64 " bytes", rules->name, bytes);
    if (sector > capacity || bytes / VIRTIO_BLK_SECTOR_BYTES > capacity - sector)
        breach(audit, AUDIT_IO_RANGE, "%s of %" PRIu64 " bytes at sector %" PRIu64 ", capacity %" PRIu64,
               rules->name, bytes, sector, capacity);
    if (audit->segments_known && (audit->setup.negotiated & VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX)) &&
        audit->segments > le32_get(audit->setup.config->seg_max))
        breach(audit, AUDIT_SEG_MAX, "%s with %u, seg_max is %u", rules->name, audit->segments,
               le32_get(audit->setup.config->seg_max));
}

static uint32_t range_limit(const struct virtqueue_audit *audit, uint32_t type, bool segments)
{
    const struct virtio_blk_config *config = audit->setup.config;

    if (type == VIRTIO_BLK_T_DISCARD)
        return le32_get(segments ? config->max_discard_seg : config->max_discard_sectors);
    if (type == VIRTIO_BLK_T_WRITE_ZEROES)
        return le32_get(segments ? config->max_write_zeroes_seg : config->max_write_zeroes_sectors);
    return le32_get(segments ? config->max_secure_erase_seg : config->max_secure_erase_sectors);
}

void audit_request(struct virtqueue_audit *audit, const struct virtio_blk_req_header *header, uint64_t out,
                   uint64_t in, uint64_t capacity_sectors)
{
    const struct type_rules *rules;
    uint64_t sector, bytes;
    uint32_t type;

    if (!header) {
        breach(audit, AUDIT_HEADER, "it has fewer");
        return;
    }
    type = le32_get(header->type);
    sector = le64_get(header->sector);
    if (type >= TYPE_RULES || !type_rules[type].name) {
        breach(audit, AUDIT_TYPE, "type %u", type);
        return;
    }
    rules = &type_rules[type];
    if (le32_get(header->reserved) != 0)
        breach(audit, AUDIT_RESERVED, "0x%x in %s", le32_get(header->reserved), rules->name);
    if (rules->feature && !(audit->setup.negotiated & VIRTIO_BIT(rules->feature)))
        breach(audit, AUDIT_TYPE_FEATURE, "%s without feature %u", rules->name, rules->feature);
    if (audit->setup.read_only && (rules->data == DATA_OUT || rules->feature == VIRTIO_BLK_F_ZONED) &&
        type != VIRTIO_BLK_T_ZONE_REPORT)
        breach(audit, AUDIT_READ_ONLY, "%s", rules->name);
    if (!rules->sector && sector != 0)
        breach(audit, AUDIT_SECTOR_ZERO, "sector %" PRIu64 " in %s", sector, rules->name);
    /* Where an append went comes back in front of the status. */
    if ((rules->data == DATA_OUT && in != (type == VIRTIO_BLK_T_ZONE_APPEND ? sizeof(le64) : 0)) ||
        (rules->data == DATA_IN && out > 0))
        breach(audit, AUDIT_DIRECTION, "%s with %" PRIu64 " readable and %" PRIu64 " writable bytes of data",
               rules->name, out, in);
    bytes = rules->data == DATA_OUT ? out : in;
    if (rules->io)
        judge_io(audit, rules, sector, bytes, capacity_sectors);
    if (type == VIRTIO_BLK_T_FLUSH && (out > 0 || in > 0))
        breach(audit, AUDIT_FLUSH_DATA, "%" PRIu64 " bytes", out + in);
    if (type == VIRTIO_BLK_T_GET_ID && in != VIRTIO_BLK_ID_BYTES)
        breach(audit, AUDIT_GET_ID_LENGTH, "%" PRIu64, in);
    if (rules->ranges) {
        if (bytes == 0 || bytes % sizeof(struct virtio_blk_range) != 0)
            breach(audit, AUDIT_RANGE_LENGTH, "%s with %" PRIu64 " bytes", rules->name, bytes);
        if (bytes / sizeof(struct virtio_blk_range) > range_limit(audit, type, true))
            breach(audit, AUDIT_RANGE_COUNT, "%s with %" PRIu64 " bytes", rules->name, bytes);
    }
}

void audit_range(struct virtqueue_audit *audit, uint32_t type, const struct virtio_blk_range *range,
                 uint64_t capacity_sectors)
{
    uint64_t sector = le64_get(range->sector);
    uint32_t sectors = le32_get(range->num_sectors), flags = le32_get(range->flags);

    if (sectors > range_limit(audit, type, false))
        breach(audit, AUDIT_RANGE_SECTORS, "%s of %u sectors", type_rules[type].name, sectors);
    if (sector > capacity_sectors || sectors > capacity_sectors - sector)
        breach(audit, AUDIT_IO_RANGE, "%s of %u sectors at sector %" PRIu64 ", capacity %" PRIu64,
               type_rules[type].name, sectors, sector, capacity_sectors);
    if (flags & ~(type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_RANGE_F_UNMAP : 0u))
        breach(audit, AUDIT_RANGE_FLAGS, "flags 0x%x in %s", flags, type_rules[type].name);
}
