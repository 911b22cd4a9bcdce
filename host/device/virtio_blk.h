/*
 * The virtio block device (virtio 1.4, 5.2), apart from any transport. A transport (the vhost-user server, or
 * a simulator) negotiates features, hands over memory and rings, and calls the functions below.
 *
 * Threads: the control functions run on the transport's thread (the control loop); a queue's requests are
 * served on the loop it was given at start, which alone touches its ring. virtio_blk_queue_stop is how
 * control takes a ring back.
 */
#ifndef RINGSIDE_DEVICE_VIRTIO_BLK_H
#define RINGSIDE_DEVICE_VIRTIO_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/virtio.h"
#include "common/virtio_blk.h"
#include "host/block/backend.h"
#include "host/device/guest_memory.h"
#include "host/runtime/loop.h"

struct virtio_blk;

#define VIRTIO_BLK_QUEUES_MAX 64

struct virtio_blk_options {
    unsigned num_queues;        /* 1..VIRTIO_BLK_QUEUES_MAX */
    unsigned queue_size_max;    /* power of two, 2..32768 */
    uint32_t logical_block_size, physical_block_size; /* powers of two, 512.., logical <= physical */
    char serial[VIRTIO_BLK_ID_BYTES + 1];
    bool request_merging;
    bool discard;               /* offer DISCARD and WRITE_ZEROES with unmap */
};

/* BLK must outlive the device. NULL with ERR set. */
struct virtio_blk *virtio_blk_create(struct blk *blk, const struct virtio_blk_options *options, struct error *err);
void virtio_blk_destroy(struct virtio_blk *device); /* all queues stopped */

/* Bits that the device can do (virtio ones only; the transport adds or masks its own). */
uint64_t virtio_blk_device_features(const struct virtio_blk *device);

/* What was negotiated. -EINVAL: bits that were not offered, or a set that contradicts itself. Queues are
 * stopped. */
int virtio_blk_set_features(struct virtio_blk *device, uint64_t features);

/* Copies BYTES of configuration from OFFSET to BUF; what lies beyond its end is zero. Any thread. */
void virtio_blk_config_read(struct virtio_blk *device, uint32_t offset, void *buf, uint32_t bytes);
/* Only `writeback` can be written, and only if CONFIG_WCE was negotiated; -EINVAL otherwise. */
int virtio_blk_config_write(struct virtio_blk *device, uint32_t offset, const void *buf, uint32_t bytes);

/* The device tells its transport. Called on any of its loops. */
struct virtio_blk_events {
    void (*config_changed)(void *opaque);      /* capacity and the like: announce it */
    void (*needs_reset)(void *opaque, unsigned queue, const char *why); /* a ring is broken; WHY for the log */
    void *opaque;
};
void virtio_blk_set_events(struct virtio_blk *device, const struct virtio_blk_events *events);

struct virtio_blk_queue_setup {
    unsigned size;                 /* split: power of two; packed: any; <= queue_size_max */
    bool packed;
    const struct guest_memory *memory;
    /* Pointers into MEMORY, checked by the transport for length and alignment. Split: descriptor table,
     * available ring, used ring; packed: descriptor ring, driver event, device event. */
    void *desc, *driver, *device;
    uint16_t last_avail_idx;       /* split: where to go on; packed: bit 15 is the wrap counter */
    uint16_t last_used_idx;        /* packed only, likewise */
    int kick_fd;                   /* eventfd, or -1: the queue is polled (or kicked by virtio_blk_queue_kick) */
    int call_fd;                   /* eventfd written to interrupt the driver, or -1 */
    void *inflight;                /* this queue's part of the inflight region, or NULL; a stranger's memory */
    size_t inflight_bytes;
    uint8_t *log;                  /* dirty log for migration, or NULL */
    size_t log_bytes;
    bool log_used;                 /* writes to the used ring are logged, from log_used_addr on */
    uint64_t log_used_addr;
};

/* Starts serving queue INDEX on LOOP: takes up what the inflight region says was in flight, then scans the ring
 * for what is already waiting. Coroutine on the control loop; returns when LOOP has taken it over. */
int coroutine_fn virtio_blk_co_queue_start(struct virtio_blk *device, unsigned index, struct loop *loop,
                                           const struct virtio_blk_queue_setup *setup, struct error *err);

/* Stops fetching, waits for the requests in flight, gives the ring back. *LAST_AVAIL_IDX as in the setup;
 * *LAST_USED_IDX may be NULL. Nothing touches guest memory afterwards. A stopped queue is fine. Coroutine. */
void coroutine_fn virtio_blk_co_queue_stop(struct virtio_blk *device, unsigned index, uint16_t *last_avail_idx,
                                           uint16_t *last_used_idx);

/* Replaces the call descriptor (-1: none) of a running or stopped queue. Coroutine on the control loop. */
void coroutine_fn virtio_blk_co_queue_set_call(struct virtio_blk *device, unsigned index, int call_fd);

/* "There may be something in the ring": for transports without an eventfd. On the queue's loop. */
void virtio_blk_queue_kick(struct virtio_blk *device, unsigned index);

struct virtio_blk_queue_stats {
    uint64_t kicks, interrupts, popped, completed, batches, merged_requests, merges;
    uint64_t errors, unsupported, broken;
};
void virtio_blk_queue_stats(struct virtio_blk *device, unsigned index, struct virtio_blk_queue_stats *stats);

#endif
