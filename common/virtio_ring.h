/*
 * Virtqueues as they lie in memory: split (virtio 1.4, 2.7) and packed (2.8).
 * Layout only. How a ring is driven stands twice, in guest/driver and in host/device, each as its own side
 * of the specification reads. Freestanding.
 */
#ifndef RINGSIDE_COMMON_VIRTIO_RING_H
#define RINGSIDE_COMMON_VIRTIO_RING_H

#include "common/endian.h"

/* Descriptor flags, both formats (2.7.5, 2.8.5) */
#define VIRTQ_DESC_F_NEXT     1u
#define VIRTQ_DESC_F_WRITE    2u
#define VIRTQ_DESC_F_INDIRECT 4u
/* packed only (2.8.1) */
#define VIRTQ_DESC_F_AVAIL (1u << 7)
#define VIRTQ_DESC_F_USED  (1u << 15)

/* 2.7.5 The Virtqueue Descriptor Table; alignment 16 */
struct virtq_desc {
    le64 addr;
    le32 len;
    le16 flags;
    le16 next;
};

#define VIRTQ_AVAIL_F_NO_INTERRUPT 1u
#define VIRTQ_USED_F_NO_NOTIFY     1u

/* 2.7.6 The Virtqueue Available Ring; alignment 2. After ring[queue_size] stands le16 used_event. */
struct virtq_avail {
    le16 flags;
    le16 idx;
    le16 ring[];
};

struct virtq_used_elem {
    le32 id;
    le32 len;
};

/* 2.7.8 The Virtqueue Used Ring; alignment 4. After ring[queue_size] stands le16 avail_event. */
struct virtq_used {
    le16 flags;
    le16 idx;
    struct virtq_used_elem ring[];
};

#define VIRTQ_DESC_ALIGN  16u
#define VIRTQ_AVAIL_ALIGN 2u
#define VIRTQ_USED_ALIGN  4u

/* Sizes in bytes of the three parts for a queue of N, event words included (2.7) */
#define VIRTQ_DESC_BYTES(n)  (16u * (n))
#define VIRTQ_AVAIL_BYTES(n) (6u + 2u * (n))
#define VIRTQ_USED_BYTES(n)  (6u + 8u * (n))

/* 2.8.13 Descriptor of a packed virtqueue; alignment 16 */
struct virtq_packed_desc {
    le64 addr;
    le32 len;
    le16 id;
    le16 flags;
};

/* 2.8.10, 2.8.14 Event suppression structure; alignment 4. off_wrap: bits 0-14 offset, bit 15 wrap counter.
 */
struct virtq_packed_event {
    le16 off_wrap;
    le16 flags;
};

#define VIRTQ_PACKED_EVENT_ENABLE  0u
#define VIRTQ_PACKED_EVENT_DISABLE 1u
#define VIRTQ_PACKED_EVENT_DESC    2u

#define VIRTQ_PACKED_EVENT_ALIGN 4u

_Static_assert(sizeof(struct virtq_desc) == 16, "2.7.5");
_Static_assert(sizeof(struct virtq_used_elem) == 8, "2.7.8");
_Static_assert(sizeof(struct virtq_packed_desc) == 16, "2.8.13");
_Static_assert(sizeof(struct virtq_packed_event) == 4, "2.8.14");

#endif
