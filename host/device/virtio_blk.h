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

/* What becomes of a request that the block layer failed (QEMU's words and meanings) */
enum virtio_blk_policy {
    VIRTIO_BLK_REPORT, /* the driver gets IOERR */
    VIRTIO_BLK_IGNORE, /* the driver gets OK */
    VIRTIO_BLK_STOP,   /* the request is parked, the transport told; virtio_blk_resume tries it again */
    VIRTIO_BLK_ENOSPC  /* stop where it is -ENOSPC, report the rest */
};

/* An emulated host-managed zoned disk (5.2.6); zone_sectors 0: an ordinary disk. */
struct virtio_blk_zoned_options {
    uint32_t zone_sectors;
    uint32_t conventional_zones;               /* the first ones */
    uint32_t max_open_zones, max_active_zones; /* 0: no limit */
    uint32_t max_append_sectors;               /* 0: ZONE_APPEND is unsupported */
    const char
        *state_path; /* file that keeps zone states over a restart; NULL: derived at start as all empty */
};

/* Zero is the default of every field but those of the first two lines. */
struct virtio_blk_options {
    unsigned num_queues;                              /* 1..VIRTIO_BLK_QUEUES_MAX */
    unsigned queue_size_max;                          /* power of two, 2..32768 */
    uint32_t logical_block_size, physical_block_size; /* powers of two, 512.., logical <= physical */
    char serial[VIRTIO_BLK_ID_BYTES + 1];
    bool request_merging;
    bool discard;          /* offer DISCARD, and WRITE_ZEROES with unmap */
    bool secure_erase;     /* offer SECURE_ERASE (zeroes are written; the old bytes are not kept by us) */
    uint64_t features_off; /* bits that are not offered although the device has them */
    enum virtio_blk_policy read_error, write_error;
    /* An interrupt is put off until so many completions wait for it or so much time has gone by; 0: neither
     */
    unsigned coalesce_count;
    uint64_t coalesce_ns;
    bool lifetime; /* offer LIFETIME, answered with these */
    uint16_t lifetime_pre_eol, lifetime_type_a, lifetime_type_b;
    struct virtio_blk_zoned_options zoned;
    /* Judge of the driver: called with a line for each broken rule, on the queue's loop. NULL: none. */
    void (*audit)(void *opaque, const char *line);
    void *audit_opaque;
};

/* BLK must outlive the device. NULL with ERR set. */
struct virtio_blk *virtio_blk_create(struct blk *blk, const struct virtio_blk_options *options,
                                     struct error *err);
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

/* The device tells its transport. Called on any of its loops; NULL entries are left out. */
struct virtio_blk_events {
    void (*config_changed)(void *opaque); /* capacity and the like: announce it */
    void (*needs_reset)(void *opaque, unsigned queue,
                        const char *why);            /* a ring is broken; WHY for the log */
    void (*interrupt)(void *opaque, unsigned queue); /* instead of call_fd, where that is -1 */
    /* A request names IOVA, which the queue's memory (a translated table) does not have, for writing or
     * reading. The queue waits: stop it and start it again with a table that has it. */
    void (*iova_missing)(void *opaque, unsigned queue, uint64_t iova, bool writable);
    void (*stopped)(void *opaque, unsigned queue, int error); /* the error policy parked a request */
    void *opaque;
};
void virtio_blk_set_events(struct virtio_blk *device, const struct virtio_blk_events *events);

/* A ring was found broken since the last virtio_blk_reset: status shows DEVICE_NEEDS_RESET (2.1.2). Any
 * thread. */
bool virtio_blk_needs_reset(const struct virtio_blk *device);

/* Device reset (2.4), after all queues were stopped: nothing is negotiated any more. A cache mode that the
 * driver has written to the configuration stays. */
void virtio_blk_reset(struct virtio_blk *device);

/* The driver has gone, or its front end: what it wrote to the configuration is forgotten, but for what the
 * inflight region says of it if that is served again. All queues stopped. */
void virtio_blk_forget_driver(struct virtio_blk *device);

/* Tries the requests again that an error policy parked. Any thread. */
void virtio_blk_resume(struct virtio_blk *device);

struct virtio_blk_queue_setup {
    unsigned size; /* split: power of two; packed: any; <= queue_size_max */
    bool packed;
    const struct guest_memory *memory;
    const struct guest_memory
        *log_memory; /* by guest-physical addresses, for the dirty log; NULL: MEMORY is */
    /* Pointers into MEMORY, checked by the transport for length and alignment. Split: descriptor table,
     * available ring, used ring; packed: descriptor ring, driver event, device event. */
    void *desc, *driver, *device;
    uint16_t last_avail_idx; /* split: where to go on; packed: bit 15 is the wrap counter */
    uint16_t last_used_idx;  /* packed only, likewise */
    int kick_fd;             /* eventfd, or -1: virtio_blk_queue_kick is called instead */
    bool no_kicks;           /* nobody kicks at all: look at the ring again and again (vhost-user polling) */
    int call_fd;             /* eventfd written to interrupt the driver, or -1 */
    void *inflight;          /* this queue's part of the inflight region, or NULL; a stranger's memory */
    size_t inflight_bytes;   /* see ring_inflight.h for how much a queue needs */
    bool goes_on;            /* after a pause, with the same call_fd: the driver was told of everything */
    bool inflight_own;       /* INFLIGHT is the transport's, for pauses: no successor will read it */
    const uint32_t *memory_broken; /* sigbus_guard.h: non-zero once the memory was cut short; or NULL */
    uint8_t *log;                  /* dirty log for migration, or NULL */
    size_t log_bytes;
    bool log_used; /* writes to the used ring are logged, from log_used_addr on */
    uint64_t log_used_addr;
};

/* Starts serving queue INDEX on LOOP (descriptors stay the caller's until the queue is stopped): takes up
 * what the inflight region says was in flight, then scans the ring for what is already waiting. Coroutine on
 * the control loop; returns when LOOP has taken it over. */
int coroutine_fn virtio_blk_co_queue_start(struct virtio_blk *device, unsigned index, struct loop *loop,
                                           const struct virtio_blk_queue_setup *setup, struct error *err);

/* Stops fetching, waits for the requests in flight, gives the ring back. *LAST_AVAIL_IDX as in the setup;
 * *LAST_USED_IDX may be NULL. Nothing touches guest memory afterwards. A stopped queue is fine. Coroutine.
 * Requests that the error policy has parked, or would park now, are left to the inflight region; they fail
 * if there is none, or none but the transport's own. */
void coroutine_fn virtio_blk_co_queue_stop(struct virtio_blk *device, unsigned index,
                                           uint16_t *last_avail_idx, uint16_t *last_used_idx);

/* The same for a queue that is about to be started again with the same inflight region: that may be the
 * transport's own. */
void coroutine_fn virtio_blk_co_queue_pause(struct virtio_blk *device, unsigned index,
                                            uint16_t *last_avail_idx, uint16_t *last_used_idx);

/* Has the device an error policy that parks requests? Then a queue that is to be paused needs an inflight
 * region. */
bool virtio_blk_may_park(const struct virtio_blk *device);

/* Replaces the call descriptor (-1: none) of a running or stopped queue. Coroutine on the control loop. */
void coroutine_fn virtio_blk_co_queue_set_call(struct virtio_blk *device, unsigned index, int call_fd);

/* "There may be something in the ring": for transports without an eventfd, and harmless at any time. With
 * NOTIFICATION_DATA the transport drops the data: it is a hint, the ring decides (2.9). On the queue's loop.
 */
void virtio_blk_queue_kick(struct virtio_blk *device, unsigned index);

struct virtio_blk_queue_stats {
    uint64_t kicks, interrupts;
    uint64_t popped, completed;       /* requests */
    uint64_t batches;                 /* times that used entries were published */
    uint64_t merges, merged_requests; /* merged into so many; requests that went into those */
    uint64_t errors, unsupported, invalid, broken;
    uint64_t stalls; /* times that fetching had to wait for a completion */
    uint64_t parked; /* requests that wait now, by the error policy */
};
/* Any thread; a snapshot, may be torn. */
void virtio_blk_queue_stats(struct virtio_blk *device, unsigned index, struct virtio_blk_queue_stats *stats);

#endif
