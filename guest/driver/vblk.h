/*
 * libvblk: a virtio block driver for any kernel, unikernel or firmware (virtio 1.4, chapters 2, 3, 5.2).
 *
 * Freestanding C11: needs memcpy, memset and the platform functions of vblk_platform.h; never allocates after
 * vblk_start, never waits without an end, never trusts a byte that the device wrote.
 *
 * Asynchronous: fill a struct vblk_request, vblk_submit it to a queue, vblk_kick, and later vblk_poll, which
 * calls the request's `complete`. vblk_read, vblk_write and the like are thin synchronous wrappers.
 *
 * Contexts: a queue belongs to one caller at a time (one CPU, or the caller's lock); different queues may be
 * used at the same time. Nothing here sleeps except through the platform's `wait`; submit, kick and poll may
 * be used with interrupts off.
 *
 * Sectors are 512 bytes, always (5.2.4).
 */
#ifndef RINGSIDE_VBLK_H
#define RINGSIDE_VBLK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/virtio.h"
#include "common/virtio_blk.h"
#include "common/virtio_ring.h"
#include "guest/driver/vblk_platform.h"
#include "guest/driver/vblk_transport.h"

#ifdef __cplusplus
extern "C" {
#endif

enum vblk_op {
    /* -VBLK_EIO also if the device calls it done and says that it wrote less (2.7.8.3): a success has all
     * bytes. Only a device that never says more than 1 for any request is taken at its status alone. */
    VBLK_READ,
    VBLK_WRITE,
    /* On success all writes are durable that were complete, on any queue, when it was submitted. If a device
     * reset came between a write's completion and its flush, the write may be gone, and -VBLK_EIO says so: to
     * the first flush of each queue, and to all others of that queue that were submitted before its answer.
     * Each queue is told once, so one owner's flush takes the news from no other. */
    VBLK_FLUSH,
    VBLK_DISCARD,
    VBLK_WRITE_ZEROES,
    VBLK_SECURE_ERASE,
    VBLK_GET_ID,       /* segs: one buffer of 20 bytes */
    VBLK_GET_LIFETIME, /* segs: one buffer of 6 bytes, struct virtio_blk_lifetime */
    VBLK_ZONE_REPORT,  /* segs: buffer for report and descriptors */
    VBLK_ZONE_OPEN,
    VBLK_ZONE_CLOSE,
    VBLK_ZONE_FINISH,
    VBLK_ZONE_RESET,
    VBLK_ZONE_RESET_ALL,
    VBLK_ZONE_APPEND /* on success `sector` is where the data went */
};

/* A piece of memory. For read and write its length is any; only their sum must be a multiple of the block
 * size. The driver itself splits by the device's limits. */
struct vblk_seg {
    void *addr;
    size_t len;
};

#define VBLK_REQUEST_UNMAP 1u /* WRITE_ZEROES: the device may deallocate */

/* A request is the caller's memory from vblk_submit to `complete`; so are its segments and their bytes. */
struct vblk_request {
    enum vblk_op op;
    uint32_t flags;              /* VBLK_REQUEST_... */
    uint64_t sector;             /* first sector, where the operation has one */
    uint64_t num_sectors;        /* DISCARD, WRITE_ZEROES, SECURE_ERASE: how many; else ignored */
    const struct vblk_seg *segs; /* data, where the operation has any */
    uint32_t nsegs;
    /* RESULT: 0 or -VBLK_E...; inside vblk_poll (or vblk_stop), never inside vblk_submit. */
    void (*complete)(struct vblk_request *request, int result);
    void *opaque; /* the caller's */

    struct { /* the driver's, from submit to complete */
        struct vblk_request *next;
        uint64_t remaining; /* bytes or sectors that no part has yet */
        uint64_t sector;    /* where the next part begins */
        size_t seg_offset;
        uint32_t seg;   /* of a flush: the losses that its queue had reported when it was submitted */
        uint32_t parts; /* in flight */
        int result;
    } driver;
};

struct vblk_config {
    unsigned num_queues;      /* wanted; the device may have fewer. 0 = 1 */
    unsigned queue_size;      /* wanted; power of two; the device may have less. 0 = 256 */
    unsigned indirect_segs;   /* entries of each request's indirect table; 0 = no indirect tables */
    uint64_t refuse_features; /* bits not to accept though offered (tests, quirks) */
    /* How long a request may be the oldest of its queue and stay undone: after a quarter of it the driver
     * looks again and reads the device's status, after half it kicks again, after all of it the queue or the
     * device is reset. Also the bound of every other wait. 0 = 30 s */
    uint64_t deadline_ns;
    bool poll_only; /* never ask for interrupts */
};

struct vblk;

/* Bytes of ordinary memory and of DMA memory that vblk_start will need for CONFIG, per queue and in all: an
 * upper bound that does not depend on the device. */
size_t vblk_memory_bytes(const struct vblk_config *config);
size_t vblk_dma_bytes(const struct vblk_config *config);

/* Resets the device behind TRANSPORT, negotiates (3.1.1), reads its configuration, sets its queues up and
 * makes it live. MEMORY (MEMORY_BYTES of it, at least vblk_memory_bytes, aligned to 64) holds all of the
 * driver's state and belongs to it until vblk_stop; DMA memory comes from the platform. *DISK points into
 * MEMORY. Errors: -VBLK_ENODEV, -VBLK_ENOMEM, -VBLK_ENOTSUP (features or limits that can't work),
 * -VBLK_ETIMEDOUT. */
int vblk_start(struct vblk **disk, void *memory, size_t memory_bytes, struct vtr *transport,
               const struct vblk_platform *platform, const struct vblk_config *config);

/* Resets the device; every request not complete is completed with -VBLK_ENODEV; DMA memory is given back. */
void vblk_stop(struct vblk *disk);

/* Queues the request. It may go to the device at once, in parts, or wait for room in the ring: always
 * accepted unless it is wrong. Errors (then `complete` is not called): -VBLK_EINVAL (shape), -VBLK_ERANGE,
 * -VBLK_EROFS, -VBLK_ENOTSUP, -VBLK_ENODEV. */
int vblk_submit(struct vblk *disk, unsigned queue, struct vblk_request *request);

/* Tells the device about everything submitted since the last kick, if it wants to be told. */
void vblk_kick(struct vblk *disk, unsigned queue);

/* Takes completions from the used ring, calls `complete`, submits (and kicks) what was waiting for room, and
 * watches the deadlines: call it on an interrupt, and now and then without one. `complete` may call
 * vblk_submit and vblk_kick, but nothing here that polls. Returns the number of requests completed. */
unsigned vblk_poll(struct vblk *disk, unsigned queue);

/* Interrupts: off while polling (and after vblk_start), on before waiting. An interrupt may turn them off
 * again, so vblk_interrupts_on belongs after each poll that is to be followed by one. It returns true if
 * something is already there: then poll again instead of waiting (2.7.14). */
void vblk_interrupts_off(struct vblk *disk, unsigned queue);
bool vblk_interrupts_on(struct vblk *disk, unsigned queue);

/* For an interrupt line (INTx, MMIO): reads and acknowledges the transport's interrupt status, handles a
 * change of the configuration, and returns true if queues want polling. With MSI-X it isn't needed: a queue's
 * vector means vblk_poll, the configuration's vector vblk_config_changed. May be called beside any other
 * function. */
bool vblk_interrupt(struct vblk *disk);

/* Call from the configuration interrupt (or now and then): re-reads capacity, sees DEVICE_NEEDS_RESET. */
void vblk_config_changed(struct vblk *disk);
void vblk_on_capacity_change(struct vblk *disk, void (*callback)(void *opaque, uint64_t capacity_sectors),
                             void *opaque);

/* Submit, kick, and poll or wait until done. */
int vblk_read(struct vblk *disk, unsigned queue, uint64_t sector, void *buf, size_t len);
int vblk_write(struct vblk *disk, unsigned queue, uint64_t sector, const void *buf, size_t len);
int vblk_flush(struct vblk *disk, unsigned queue);
int vblk_discard(struct vblk *disk, unsigned queue, uint64_t sector, uint64_t num_sectors);
int vblk_write_zeroes(struct vblk *disk, unsigned queue, uint64_t sector, uint64_t num_sectors, bool unmap);
int vblk_get_id(struct vblk *disk, unsigned queue, char id[VIRTIO_BLK_ID_BYTES + 1]);
int vblk_secure_erase(struct vblk *disk, unsigned queue, uint64_t sector, uint64_t num_sectors);
/* Values that the specification reserves are read as 0, "undefined". */
int vblk_get_lifetime(struct vblk *disk, unsigned queue, struct virtio_blk_lifetime *lifetime);
int vblk_run(struct vblk *disk, unsigned queue, struct vblk_request *request); /* any request */

/* Polls or waits until nothing is in flight or waiting on the queue. -VBLK_EBUSY inside `complete`. */
int vblk_drain(struct vblk *disk, unsigned queue);

/* false write-through, true write-back. Drains queue 0 and flushes before it changes it (5.2.6.1); if that
 * flush fails, its error is returned and nothing is changed. -VBLK_ENOTSUP without CONFIG_WCE, -VBLK_EBUSY
 * with requests on other queues. */
int vblk_set_write_cache(struct vblk *disk, bool on);

/* 3.4: the device stops at a point where nothing is half done, and keeps all its state; requests submitted
 * meanwhile wait. -VBLK_ENOTSUP without VIRTIO_F_SUSPEND, -VBLK_EBUSY (another queue's owner is inside the
 * driver, or a recovery runs), -VBLK_ETIMEDOUT (the device is then reset by the next vblk_poll). */
int vblk_suspend(struct vblk *disk);
int vblk_resume(struct vblk *disk);

struct vblk_info {
    uint64_t features;        /* negotiated */
    uint64_t device_features; /* offered */
    uint64_t capacity_sectors;
    uint32_t block_size;                                    /* bytes, logical */
    uint32_t physical_block_size, min_io_size, opt_io_size; /* bytes */
    uint32_t size_max, seg_max;                             /* as in force */
    unsigned num_queues, queue_size, device_num_queues;
    bool read_only, write_cache, failed;
    bool packed_ring, polling;       /* polling: no interrupt vector could be had */
    uint64_t recoveries;             /* resets of device or queue, so far */
    struct virtio_blk_config config; /* as last read; fields without their feature are zero */
};

void vblk_info(const struct vblk *disk, struct vblk_info *info);

struct vblk_queue_stats {
    uint64_t requests, parts, kicks, kicks_suppressed, completions, errors, polls, waits_for_room, recoveries,
        lost_interrupts, lost_kicks;
};

void vblk_queue_stats(const struct vblk *disk, unsigned queue, struct vblk_queue_stats *stats);

/* A queue's ring as it stands, for people who look: pointers into it (never to be written), and the driver's
 * own positions. What the device has written there is a stranger's: bound it before use. */
struct vblk_queue_view {
    bool packed, broken;
    unsigned size, num_free, in_flight; /* descriptors, free descriptors, chains */
    const struct virtq_desc *desc;      /* split; else NULL */
    const struct virtq_avail *avail;
    const struct virtq_used *used;
    const struct virtq_packed_desc *packed_desc; /* packed; else NULL */
    const struct virtq_packed_event *driver_event, *device_event;
    uint16_t next;        /* split: avail.idx to come; packed: slot */
    uint16_t last_used;   /* split: used.idx seen and taken; packed: slot */
    bool wrap, used_wrap; /* packed */
};

void vblk_queue_view(const struct vblk *disk, unsigned queue, struct vblk_queue_view *view);

/* Trace points 1, 2 and 12 of the way of a request. NULL: none. Set while nothing is in flight. */
enum vblk_trace_point { VBLK_TRACE_SUBMIT = 1, VBLK_TRACE_KICK = 2, VBLK_TRACE_POLL = 12 };
void vblk_set_trace(struct vblk *disk,
                    void (*trace)(void *opaque, enum vblk_trace_point point, unsigned queue,
                                  const struct vblk_request *request),
                    void *opaque);

#ifdef __cplusplus
}
#endif

#endif
