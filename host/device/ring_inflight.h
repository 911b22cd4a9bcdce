/*
 * Inflight I/O tracking (vhost-user, "Inflight I/O tracking"): a region of memory that the front end keeps
 * for us says which requests were taken and not yet given back, so that whoever serves the queue after a
 * sudden death can take them up again, in their order.
 *
 * The region is a stranger's: it is read once, when the queue starts, and every number in it is bounded; from
 * then on it is only written, out of private copies. What is written is in such an order that a death between
 * any two stores leaves a region that can be told what it means. (Only the compiler's order matters: a dead
 * process's stores all arrive.)
 *
 * Control thread at start, then the thread that serves the queue.
 */
#ifndef RINGSIDE_DEVICE_RING_INFLIGHT_H
#define RINGSIDE_DEVICE_RING_INFLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/vhost_user.h"
#include "common/virtio_ring.h"

struct virtqueue;

/* What has to be taken up again */
struct inflight_request {
    uint16_t entry; /* in the region; split: the head */
    uint16_t num;   /* packed: its descriptors, from `first` on in inflight->descs */
    uint32_t first;
    uint64_t counter;
};

struct ring_inflight {
    union {
        struct vhost_user_inflight_split *split;
        struct vhost_user_inflight_packed *packed;
    };
    bool is_packed;
    bool fresh; /* nobody has used the region before */
    uint16_t size;
    uint64_t counter; /* of the next request */
    uint16_t *batch;  /* entries pushed and not published */
    uint32_t num_batch;
    uint16_t last_batch_head; /* split */
    /* packed */
    uint16_t *next, *last, *num;                        /* private copies of those fields */
    uint16_t free_head, cursor, used_idx, old_used_idx; /* split: used_idx alone */
    bool used_wrap, old_used_wrap;
    /* found at start */
    struct inflight_request *requests; /* oldest first */
    unsigned num_requests;
    struct virtq_packed_desc *descs;
};

/* Bytes that a queue of SIZE needs. */
size_t ring_inflight_bytes(bool packed, unsigned size);

/* Looks at REGION (BYTES of it) for the queue VQ, which was just set up. A fresh region (version 0) is made
 * to fit the ring as it is; otherwise what was in flight is put into inflight->requests, and VQ told where it
 * really stood. 0; -EINVAL with *WHY: the region contradicts itself or the ring; -ENOMEM. */
int ring_inflight_init(struct ring_inflight *inflight, void *region, size_t bytes, struct virtqueue *vq,
                       const char **why);
void ring_inflight_free(struct ring_inflight *inflight);

/* Before ring_inflight_init: the ring's position was set anew by somebody who knew where the one before stood
 * (a queue that was reset, say). Makes REGION a fresh one, unless something is in flight in it. */
void ring_inflight_begin_anew(bool packed, void *region, size_t bytes);

/* The driver asked for a write-through cache: its successor's front end may not say so again. Control thread.
 */
void ring_inflight_note_write_through(struct ring_inflight *inflight, bool on);
bool ring_inflight_write_through(const struct ring_inflight *inflight);

/* Is anything in flight in a REGION for a queue of SIZE, which no queue works with now? */
bool ring_inflight_any(bool packed, const void *region, unsigned size);

/* A request was taken off a split ring. */
void ring_inflight_split_popped(struct ring_inflight *inflight, uint16_t head);

/* A descriptor, the list's INDEXth, of what is being taken off a packed ring; at the list's end, its NUM:
 * returns the entry. No more than the ring has places may be in flight. */
void ring_inflight_packed_desc(struct ring_inflight *inflight, uint64_t addr, uint32_t len, uint16_t flags,
                               uint16_t id, uint16_t index);
uint16_t ring_inflight_packed_popped(struct ring_inflight *inflight, uint16_t num);

/* ENTRY will be part of the next publish. */
void ring_inflight_pushed(struct ring_inflight *inflight, uint16_t entry);
/* Just before and just after the ring shows what was pushed. */
void ring_inflight_before_publish(struct ring_inflight *inflight);
void ring_inflight_published(struct ring_inflight *inflight);

#endif
