/*
 * The judge of the driver at the other end (`ringside-blk --audit`): the rules of virtio 1.4 that a block
 * driver can be seen to break from the device's side, one table (AUDIT_RULES). The first breach of a rule on
 * a queue gives a line, and the queue's end one more with the number of them if there were others.
 *
 * Called only where a judge is installed, on the thread that serves the queue; what it is shown was copied
 * out of shared memory once, but for the words by which the driver asks for interrupts, which it reads for
 * itself.
 */
#ifndef RINGSIDE_DEVICE_VIRTQUEUE_AUDIT_H
#define RINGSIDE_DEVICE_VIRTQUEUE_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/virtio_blk.h"

struct virtqueue;
struct virtqueue_audit;
struct virtq_chain;

/* X(constant, section, strength, the rule) */
#define AUDIT_RULES(X)                                                                                      \
    X(VERSION_1, "6.1", "MUST", "VERSION_1 is accepted when it is offered")                                 \
    X(WCE_NEEDS_FLUSH, "2.2.1", "MUST", "CONFIG_WCE is accepted only together with FLUSH")                  \
    X(RING, "2.7/2.8", "MUST", "the ring can be understood")                                                \
    X(AVAIL_FLAGS, "2.7.7.1", "MUST", "avail.flags is 0 or 1")                                              \
    X(AVAIL_FLAGS_EVENT_IDX, "2.7.7.1", "MUST", "with EVENT_IDX avail.flags is 0")                          \
    X(EVENT_FLAGS, "2.8.10", "MUST", "the event suppression flags are 0, 1 or, with EVENT_IDX, 2")          \
    X(DESC_FLAGS, "2.7.5/2.8.13", "MUST", "reserved bits of a descriptor's flags are 0")                    \
    X(CHAIN_LENGTH, "2.7.5.3.1/2.8.17", "MUST", "a chain is not longer than the queue, its table included") \
    X(CHAIN_BYTES, "2.7.5.2", "MUST", "a chain has no more than 2^32 bytes")                                \
    X(TABLE_FLAGS, "2.8.19", "MUST", "entries of an indirect table have no flag but WRITE")                 \
    X(IN_ORDER_NEXT, "2.7.5.2", "MUST", "with IN_ORDER next is the following descriptor's index")           \
    X(IN_ORDER_TABLE, "2.7.5.3.1", "MUST", "with IN_ORDER an indirect table's entries stand in sequence")   \
    X(IN_ORDER_HEAD, "2.7.5", "MUST", "with IN_ORDER descriptors are used in ring order")                   \
    X(HEADER, "5.2.6", "MUST", "a request begins with 16 device-readable bytes")                            \
    X(RESERVED, "5.2.6", "SHOULD", "the header's reserved field is 0")                                      \
    X(TYPE, "5.2.6", "MUST", "the request type exists")                                                     \
    X(TYPE_FEATURE, "5.2.6", "MUST", "a request type is used only when its feature was negotiated")         \
    X(READ_ONLY, "5.2.6.2", "MUST", "nothing is written to a read-only disk")                               \
    X(SECTOR_ZERO, "5.2.6.1", "MUST", "sector is 0 where it means nothing")                                 \
    X(DIRECTION, "5.2.6", "MUST", "data to the device is readable, data from it writable")                  \
    X(IO_LENGTH, "5.2.6.1", "MUST", "the length of data is a multiple of 512, and not 0")                   \
    X(IO_RANGE, "5.2.6.1", "MUST", "sectors lie inside the capacity")                                       \
    X(SEG_MAX, "5.2.4", "MUST", "data has no more segments than seg_max")                                   \
    X(FLUSH_DATA, "5.2.6.1", "SHOULD", "a FLUSH carries no data")                                           \
    X(GET_ID_LENGTH, "5.2.6.1", "MUST", "GET_ID has 20 bytes of data")                                      \
    X(RANGE_LENGTH, "5.2.6.1", "MUST", "a list of ranges is a multiple of 16 bytes, and not empty")         \
    X(RANGE_COUNT, "5.2.6.1", "MUST", "a list of ranges is not longer than the limit")                      \
    X(RANGE_SECTORS, "5.2.4", "MUST", "a range is not larger than the limit")                               \
    X(RANGE_FLAGS, "5.2.6.1", "MUST", "reserved flags of a range are 0, and unmap is for WRITE_ZEROES only")

#define AUDIT_CONSTANT(name, section, strength, text) AUDIT_##name,
enum audit_rule { AUDIT_RULES(AUDIT_CONSTANT) AUDIT_RULE_COUNT };
#undef AUDIT_CONSTANT

struct audit_rule_info {
    const char *section, *strength, *text;
};
extern const struct audit_rule_info audit_rule_info[AUDIT_RULE_COUNT];

/* What the judge has to know of the device */
struct audit_setup {
    void (*line)(void *opaque, const char *line);
    void *opaque;
    unsigned queue;
    uint64_t offered, negotiated;
    bool read_only;
    const struct virtio_blk_config *config;
};

/* Judges the negotiation at once. NULL: no memory. CONFIG must stay. */
struct virtqueue_audit *audit_create(const struct audit_setup *setup, const struct virtqueue *vq);
/* Writes how often what was broken. NULL is fine. */
void audit_destroy(struct virtqueue_audit *audit);

/* A descriptor as it was read: from an indirect table or from the ring itself; INDEX is its place there. */
void audit_desc(struct virtqueue_audit *audit, bool in_table, uint16_t flags, uint32_t len,
                uint16_t next_or_id, uint32_t index);
/* The end of a chain. */
void audit_chain(struct virtqueue_audit *audit, const struct virtq_chain *chain);
/* A look at how the driver asks for interrupts. */
void audit_events(struct virtqueue_audit *audit, const struct virtqueue *vq);
/* The ring is given up. */
void audit_broken(struct virtqueue_audit *audit, const char *why);

/* A request: OUT and IN are the bytes of data, header and status not counted. HEADER NULL: there was none. */
void audit_request(struct virtqueue_audit *audit, const struct virtio_blk_req_header *header, uint64_t out,
                   uint64_t in, uint64_t capacity_sectors);
void audit_range(struct virtqueue_audit *audit, uint32_t type, const struct virtio_blk_range *range,
                 uint64_t capacity_sectors);

#endif
