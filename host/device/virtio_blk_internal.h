/*
 * Private to host/device: the device, its queues and requests, as virtio_blk*.c, multireq.c and their
 * neighbours share them.
 *
 * Who may touch what: struct virtio_blk is written by the control thread only while all queues are stopped;
 * `capacity_sectors`, `broken` and `writeback` are atomic words. A queue and its requests belong to the
 * queue's loop between start and stop, and to the control thread otherwise. A queue shares no cache line that
 * it writes with another one.
 */
#ifndef RINGSIDE_DEVICE_VIRTIO_BLK_INTERNAL_H
#define RINGSIDE_DEVICE_VIRTIO_BLK_INTERNAL_H

#include "host/block/sg.h"
#include "host/device/dirty_log.h"
#include "host/device/ring_inflight.h"
#include "host/device/virtio_blk.h"
#include "host/device/virtqueue.h"
#include "host/device/zoned.h"
#include "host/runtime/co_lock.h"
#include "host/runtime/coroutine.h"

#define CACHE_LINE 64

/* ---- requests ---- */

#define REQUEST_INLINE_IOV 4u

/* Memory for what does not fit into a request: segments of a long one, of a merged one, a list of ranges.
 * Both have elements of 16 bytes. A queue has at most REQUEST_BLOCKS_MAX of them and keeps what it has. */
union request_block {
    struct iovec iov[VIRTQ_IOV_MAX];
    struct virtio_blk_range ranges[VIRTQ_IOV_MAX];
    union request_block *next_free;
};
#define REQUEST_BLOCKS_MAX 256u

struct virtio_blk_request {
    struct blk_request blk;
    struct virtio_blk_queue *queue;
    uint8_t *status;   /* the last writable byte of the chain, in guest memory */
    struct iovec *iov; /* data segments: inline_iov or block->iov */
    union request_block *block;
    uint64_t offset, bytes; /* of data, bytes */
    uint64_t zero_bytes;    /* zoned: of an IN, behind the `bytes` that are read from the disk */
    uint64_t in_bytes;      /* writable bytes of the chain, status included */
    uint64_t counter;       /* in the inflight region, of when it was taken */
    struct virtio_blk_request *merged_next; /* of the request that this one was merged into */
    uint32_t len;                           /* IN_ORDER: waits to be used with this length */
    unsigned niov;
    uint16_t slot; /* index in queue->requests */
    uint16_t id;   /* what goes into the used ring */
    uint16_t num_descs;
    uint16_t entry; /* in the inflight region */
    uint16_t range_next, range_count;
    uint16_t trailer_niov; /* ZONE_APPEND: segments behind iov[niov) that get the sector */
    uint8_t type;          /* VIRTIO_BLK_T_..., checked */
    bool busy;
    bool again;                /* was taken before a restart */
    bool done;                 /* IN_ORDER: finished, waits for older ones */
    bool left;                 /* IN_ORDER: not finished, the inflight region keeps it */
    bool issuing, issued_done; /* ranges: a completion inside the call that submits */
    int range_result;
    union request_block *merged_block; /* head of a merged request: the joined segments */
    struct iovec inline_iov[REQUEST_INLINE_IOV];
} __attribute__((aligned(CACHE_LINE)));

/* ---- merging (multireq.c) ---- */

#define MULTIREQ_MAX       32u
#define MULTIREQ_MAX_BYTES (1u << 20) /* joining what is large already gains nothing */
/* Joined in one are at most these, or a quarter of what is in flight if that is more: a driver that has all
 * its requests answered by one would be idle while the device is busy, and the device while the driver is. */
#define MULTIREQ_RUN_MIN 8u

#define MULTIREQ_FILTER_BITS 4096u

struct multireq {
    unsigned count;
    uint8_t type; /* VIRTIO_BLK_T_IN or _OUT: all of one kind */
    struct virtio_blk_request *requests[MULTIREQ_MAX];
    /* Where requests begin, hashed: an end that is not in here has no successor. */
    uint64_t begins[MULTIREQ_FILTER_BITS / 64];
};

/* Takes REQUEST (IN or OUT, checked) to be submitted with its neighbours. */
void multireq_add(struct virtio_blk_queue *queue, struct virtio_blk_request *request);
/* Submits all that was taken, joined where they touch on disk. */
void multireq_submit(struct virtio_blk_queue *queue);

/* ---- queues ---- */

/* Between looks at a ring whose driver never kicks, at first. */
#define REPOLL_MIN_NS 20000u

enum queue_state { QUEUE_STOPPED, QUEUE_RUNNING, QUEUE_STOPPING };

/* A call from the control loop that runs on the queue's loop; one at a time. */
struct queue_control {
    struct co_mutex lock;
    struct loop_bh bh;
    struct coroutine *waiter;
    int call_fd;
    bool pause;
};

struct virtio_blk_queue {
    struct virtio_blk *device;
    struct blk *blk;
    unsigned index;
    enum queue_state state;
    bool broken;  /* until the queue is started again */
    bool polling; /* the loop polls for us: notifications stay off */
    bool handling;
    bool stalled; /* fetching waits for a completion */
    bool in_order;
    bool order_ends; /* IN_ORDER: one was left: what comes after it can't be used any more */
    bool read_only;
    bool merging;
    unsigned in_flight; /* popped, not pushed */
    uint64_t features;
    struct loop *loop;
    struct virtio_blk_request *requests; /* `size` of them; split: by head, packed: taken from free_slots */
    uint16_t *free_slots;                /* packed */
    unsigned num_free_slots;
    uint16_t *order; /* IN_ORDER: slots in flight, oldest first; a ring of `size` */
    unsigned order_head, order_count;
    union request_block *free_blocks;
    unsigned num_blocks;
    uint64_t trace_next;
    const uint32_t *memory_broken;
    int call_fd;
    bool call_is_pipe;
    struct loop_fd kick;
    bool kick_is_pipe;
    struct loop_deferred flush;
    struct loop_bh again;
    struct loop_bh resume;
    struct virtio_blk_request *parked; /* by the error policy; newest first */
    struct dirty_log log;
    bool log_used;
    guest_addr log_used_addr;
    const struct guest_memory *memory; /* for the dirty log */
    bool awaits_translation;           /* nothing is taken before the queue is started anew */
    struct loop_timer repoll;          /* no_kicks */
    uint64_t repoll_ns;
    struct loop_timer coalesce;
    unsigned num_used;    /* since the last end of a turn */
    unsigned num_unshown; /* and of these, pushed since used entries were last published */
    bool woken;           /* the driver was told in this turn already that there are some */
    bool shown;           /* some were published since the last look at whether to interrupt */
    unsigned coalesced;   /* completions that wait for an interrupt */
    struct queue_control control;
    struct multireq multireq;
    struct ring_inflight inflight;
    bool track_inflight;
    bool goes_on;         /* after a pause */
    bool inflight_own;    /* that region is for pauses only */
    bool keeps_parked;    /* stopping: what is parked is left to the region */
    unsigned resubmitted; /* of inflight.requests */
    struct virtqueue vq;
    struct virtio_blk_queue_stats stats __attribute__((aligned(CACHE_LINE)));
} __attribute__((aligned(CACHE_LINE)));

struct virtio_blk {
    struct blk *blk;
    struct virtio_blk_options options;
    struct virtio_blk_events events;
    uint64_t features; /* negotiated */
    uint64_t capacity_sectors;
    unsigned merge_max_iov;
    uint64_t merge_max_bytes;
    uint8_t writeback; /* as configuration shows it */
    /* As the driver last wrote it; a reset does not change it. A front end that stops the guest for a while
     * resets the device, too, and QEMU goes on showing the guest what was written before. */
    enum { WRITEBACK_NOT_WRITTEN, WRITEBACK_OFF, WRITEBACK_ON } writeback_written;
    uint32_t broken;
    struct zoned *zoned;             /* or NULL */
    struct virtio_blk_config config; /* what does not change */
    struct virtio_blk_queue *queues;
};

/* Counters are written by the queue's loop and read by anyone. */
#define STAT_ADD(queue, field, n) \
    __atomic_store_n(&(queue)->stats.field, (queue)->stats.field + (n), __ATOMIC_RELAXED)

/* virtio_blk_resume looks at it from anywhere. */
static inline void virtio_blk_queue_set_state(struct virtio_blk_queue *queue, enum queue_state state)
{
    __atomic_store_n(&queue->state, state, __ATOMIC_RELEASE);
}

static inline bool queue_has_feature(const struct virtio_blk_queue *queue, unsigned bit)
{
    return queue->features & VIRTIO_BIT(bit);
}

/* virtio_blk.c: the inflight region of QUEUE, which starts, and the cache mode that the driver asked for. */
void virtio_blk_share_cache_mode(struct virtio_blk *device, struct virtio_blk_queue *queue);

/* virtio_blk_start.c */
void virtio_blk_queue_free(struct virtio_blk_queue *queue);
/* Ends the stop that is asked for, once nothing is in flight. What was taken before a restart is finished as
 * well, unless the ring is broken. */
void virtio_blk_queue_try_finish_stop(struct virtio_blk_queue *queue);

/* virtio_blk_queue.c */
void virtio_blk_queue_init(struct virtio_blk *device, unsigned index);
/* Step 3: takes what is there, and submits it. */
void virtio_blk_handle_queue(struct virtio_blk_queue *queue);
/* Interrupts the driver, if it wants that for what was published since the last time. */
void virtio_blk_queue_interrupt(struct virtio_blk_queue *queue);
/* Writes to the call descriptor, which there is. */
void virtio_blk_queue_write_call(const struct virtio_blk_queue *queue);
/* The ring can't be understood any more: nothing is fetched until it is set up again (2.1.2). */
void virtio_blk_queue_break(struct virtio_blk_queue *queue, const char *why);
/* Puts a finished request's buffer back with LEN bytes written, and lets go of the request. */
void virtio_blk_queue_used(struct virtio_blk_queue *queue, struct virtio_blk_request *request, uint32_t len);
/* Lets go of a request that is not given back (the inflight region keeps it). */
void virtio_blk_queue_forget(struct virtio_blk_queue *queue, struct virtio_blk_request *request);
/* A block, or NULL. */
union request_block *request_block_get(struct virtio_blk_queue *queue);
/* Makes sure that the next request_block_get succeeds. */
bool request_block_at_hand(struct virtio_blk_queue *queue);
void request_block_put(struct virtio_blk_queue *queue, union request_block *block);

/* A chain read as a message (5.2.6). The segments are the virtqueue's, until the next pop. */
struct virtio_blk_message {
    const struct virtq_chain *chain;
    uint64_t sector;
    struct sg out; /* readable bytes behind the header */
    uint64_t out_bytes;
    struct iovec *in; /* writable segments without the status byte */
    unsigned in_count;
    uint64_t in_bytes;
};

/* virtio_blk_zoned.c */
void virtio_blk_handle_append(struct virtio_blk_request *request, const struct virtio_blk_message *message);
void virtio_blk_submit_append(struct virtio_blk_request *request);
void virtio_blk_handle_report(struct virtio_blk_request *request, const struct virtio_blk_message *message);
void virtio_blk_handle_zone(struct virtio_blk_request *request, const struct virtio_blk_message *message);
/* An IN or OUT that was checked and has its segments: false if it was answered. */
bool virtio_blk_zoned_begin(struct virtio_blk_request *request);
/* An OUT or ZONE_APPEND that began ended. */
void virtio_blk_zoned_end(struct virtio_blk_request *request, bool ok);

/* virtio_blk_request.c: what the chain that was popped into queue->vq asks for is done, or refused. */
void virtio_blk_handle_request(struct virtio_blk_queue *queue, struct virtio_blk_request *request,
                               const struct virtq_chain *chain);
/* Step 11: answers with STATUS. DATA_BYTES: how much of the writable data was written, from its start. */
void virtio_blk_complete(struct virtio_blk_request *request, uint8_t status, uint64_t data_bytes);
/* Answers a request that asks for what can't be. */
void virtio_blk_refuse(struct virtio_blk_request *request, uint8_t status);
/* Is [SECTOR, SECTOR + BYTES) part of the disk? */
bool virtio_blk_range_ok(const struct virtio_blk_queue *queue, uint64_t sector, uint64_t bytes);
/* Moves the segments of SG to the request, MORE places behind them left free. There is memory for it. */
void virtio_blk_keep_segments(struct virtio_blk_request *request, struct sg sg, unsigned more);
/* Writes BYTES to the request's data, AT bytes behind its start, where there is room for them. */
void virtio_blk_answer_with(struct virtio_blk_request *request, const struct virtio_blk_message *message,
                            uint64_t at, const void *from, uint64_t bytes);
/* Answers IN or OUT by the block layer's result. */
void virtio_blk_complete_rw(struct virtio_blk_request *request, int result);
/* Submits one IN or OUT as it is. */
void virtio_blk_submit_rw(struct virtio_blk_request *request);
/* Submits once more what the block layer failed, of any type. */
void virtio_blk_submit(struct virtio_blk_request *request);

/* virtio_blk_errors.c */
/* The block layer failed REQUEST with RESULT: true and *STATUS to answer with, or false: it is parked. */
bool virtio_blk_failed(struct virtio_blk_request *request, int result, uint8_t *status);
void virtio_blk_queue_resume(struct virtio_blk_queue *queue);
/* The queue stops: parked requests are left to the inflight region, or failed. */
void virtio_blk_queue_drop_parked(struct virtio_blk_queue *queue);

#endif
