/*
 * The driver's own structures. Private to guest/driver.
 *
 * What always holds: all of this is private memory; the device sees only ring memory, struct part_dma,
 * indirect tables, the bounce block and shared buffers, and nothing in those is ever read back as state. A
 * queue and its parts belong to the queue's owner. What owners share stands in struct vblk and is either set
 * while nobody else can be inside (vblk_start, control) or accessed by atomic operations.
 *
 * A request becomes one or more parts; a part is one chain on the ring, with header, status byte and indirect
 * table of its own. Parts in flight form a list by age, so "oldest first" and the watch on the deadline cost
 * nothing.
 */
#ifndef RINGSIDE_VBLK_INTERNAL_H
#define RINGSIDE_VBLK_INTERNAL_H

#include "guest/driver/vblk.h"
#include "guest/driver/vq.h"

/* What a small firmware may leave out when it compiles the driver (docs/porting.md) */
#ifdef VBLK_WITHOUT_ZONES
#define ZONES 0
#else
#define ZONES 1
#endif

#define NONE16 0xffffu

#define QUEUE_SIZE_DEFAULT  256u
#define DEADLINE_DEFAULT_NS 30000000000ull
#define BOUNCE_BYTES        4096u
#define PART_BYTES_MAX      0xffff0000u /* with header and status still under 4 GiB (2.7.5.2) */
#define ATTEMPTS_MAX        3u /* of one part on the ring, and of recoveries without a completion between */
#define STATUS_NONE         0xffu /* preset: no device means this by it */

/* What the device is given of a part. */
struct part_dma {
    struct virtio_blk_req_header header;
    struct virtio_blk_range range;
    le64 append_sector; /* ZONE_APPEND: written just before the status */
    uint8_t status;
    uint8_t unused[23];
};
_Static_assert(sizeof(struct part_dma) == VQ_SLOT_BYTES, "a line each");
_Static_assert(offsetof(struct part_dma, status) == VQ_SLOT_STATUS, "vq.h");
_Static_assert(VBLK_WRITE_ZEROES == VBLK_DISCARD + 1 && VBLK_SECURE_ERASE == VBLK_DISCARD + 2, "limits");
_Static_assert(sizeof(struct virtio_blk_req_header) == VQ_HEADER_LEN, "vq.h");
_Static_assert(offsetof(struct part_dma, status) == offsetof(struct part_dma, append_sector) + 8, "5.2.6");

struct part {
    struct vblk_request *request;
    uint64_t sector;
    uint64_t seg_offset;   /* where in the request's segments it begins: for the bounce block */
    uint32_t seg;          /* or a flush's number */
    uint32_t amount;       /* bytes, or sectors of a range */
    uint16_t older, newer; /* in flight; or newer = next free part */
    uint16_t npieces;
    uint8_t attempts;
    bool bounced, watched;
    struct vq_piece piece; /* the first; more of them in the queue's pool */
};

struct queue {
    struct vq vq;
    struct vblk *disk;
    struct part *parts;
    struct vq_piece *pool;
    struct part_dma *dma;
    uint8_t *bounce;
    uint64_t bounce_addr;
    uint16_t index;
    uint16_t nparts, free_part, oldest, newest;
    uint16_t max_pieces; /* data buffers of a chain */
    uint32_t free_piece;
    bool guarded; /* there are other queues: see vblk_queue_enter */
    bool bounce_busy, polling;
    bool unkicked, kick_due; /* on the ring, and not kicked; though the caller asked for it */
    uint32_t epoch;          /* of the disk, when this queue last looked */
    struct vblk_request *waiting, *waiting_last;
    struct vblk_request *finished; /* answered without the device; completed by the next poll */
    uint32_t dirty_seq;            /* see disk->flush_seq */
    uint32_t flushed_seq;          /* highest flush of this queue that succeeded */
    uint32_t lost_told;            /* disk->lost_seq as a flush of this queue last reported it */

    /* the watch on the oldest part (or waiting request) */
    const struct vblk_request *watch_request; /* the waiting one */
    uint64_t watch_since_ns, watch_last_ns;
    uint8_t watch_step;
    uint8_t polls_unwatched, polls_per_watch;
    bool rekicked;

    int inside; /* atomic; only with several queues: see vblk_queue_enter */
    struct vblk_queue_stats stats;

    void *dma_block;
    vblk_dma_addr dma_block_addr;
    size_t dma_block_bytes;
};

enum disk_state { DISK_STARTING, DISK_LIVE, DISK_SUSPENDED, DISK_FAILED };

struct limits {
    uint32_t max_sectors, alignment;
};

struct vblk {
    uint64_t capacity; /* sectors, whole blocks; see capacity_get */
    const struct vblk_platform *platform;
    struct vtr *vtr;
    uint64_t features, offered;
    uint64_t deadline_ns;
    uint32_t block_size, sectors_per_block, block_shift;
    uint32_t size_max, seg_max; /* in force; never 0 */
    uint32_t part_bytes_max;    /* whole blocks */
#ifndef __OPTIMIZE_SIZE__
    uint32_t short_bytes_max; /* in one descriptor */
    uint32_t short_op_max;    /* VBLK_WRITE; VBLK_READ if writing has rules of its own */
#endif
    struct limits limits[3]; /* of DISCARD, WRITE_ZEROES, SECURE_ERASE */
    unsigned num_queues, queue_size, device_num_queues;
    bool polling, packed, legacy, has_flush;
    bool serial_writes; /* host-managed zones: the parts of a write go one after the other */
    bool buffers_held;  /* failed, and the device may still own buffers */

    int state;        /* enum disk_state, atomic */
    int write_cache;  /* atomic */
    int wanted_cache; /* what the caller set it to, plus 1; 0: nothing */
    int control;      /* atomic: taken by who changes the device as a whole */
    int stop;         /* atomic: the owners of queues stay out */
    int needs_reset;  /* atomic */
    int config_pending;
    uint32_t epoch;     /* atomic: device resets so far */
    uint32_t flush_seq; /* atomic: flushes sent. A write that completes takes flush_seq + 1 for its queue's
                         * dirty_seq, so a later flush, on any queue, and no earlier one covers it */
    uint32_t lost_seq;  /* atomic: device resets that came between a write's completion and its flush */
    uint32_t resets;    /* atomic: recoveries since something completed */
    uint64_t recoveries;

    struct vblk_config config;
    struct virtio_blk_config device_config;
    void (*capacity_callback)(void *opaque, uint64_t capacity_sectors);
    void *capacity_opaque;
    void (*trace)(void *opaque, enum vblk_trace_point point, unsigned queue,
                  const struct vblk_request *request);
    void *trace_opaque;
    struct queue *queues;
};

static inline bool has_feature(const struct vblk *disk, unsigned bit)
{
    return (disk->features & VIRTIO_BIT(bit)) != 0;
}

uint64_t vblk_now_ns(const struct vblk *disk);
void vblk_relax(const struct vblk *disk);
#ifdef VBLK_WITHOUT_MESSAGES
#define vblk_say(disk, level, text) ((void)0)
#else
void vblk_say(const struct vblk *disk, enum vblk_log_level level, const char *text);
#endif
/* Says TEXT, an error, and returns ERROR. */
#ifdef VBLK_WITHOUT_MESSAGES
#define vblk_refuse(disk, error, text) (error)
#else
int vblk_refuse(const struct vblk *disk, int error, const char *text);
#endif
uint8_t vblk_status_get(const struct vblk *disk);
/* True if LIMIT nanoseconds have passed since SINCE; if not, after a pause. */
bool vblk_waited_too_long(const struct vblk *disk, uint64_t since, uint64_t limit);

/* A submitter may read it while an interrupt changes it. On a 32-bit machine it may then see half of each,
 * for once: a request is refused, or the device refuses it. */
static inline uint64_t capacity_get(const struct vblk *disk)
{
#if UINTPTR_MAX > 0xffffffffu
    return __atomic_load_n(&disk->capacity, __ATOMIC_RELAXED);
#else
    return *(const volatile uint64_t *)&disk->capacity;
#endif
}

static inline void capacity_set(struct vblk *disk, uint64_t sectors)
{
#if UINTPTR_MAX > 0xffffffffu
    __atomic_store_n(&disk->capacity, sectors, __ATOMIC_RELAXED);
#else
    *(volatile uint64_t *)&disk->capacity = sectors;
#endif
}

static inline bool zoned(const struct vblk *disk)
{
    return ZONES && has_feature(disk, VIRTIO_BLK_F_ZONED);
}

static inline int state_get(const struct vblk *disk)
{
    return __atomic_load_n(&disk->state, __ATOMIC_ACQUIRE);
}

static inline void state_set(struct vblk *disk, int state)
{
    __atomic_store_n(&disk->state, state, __ATOMIC_RELEASE);
}

static inline bool control_try(struct vblk *disk)
{
    return !__atomic_exchange_n(&disk->control, 1, __ATOMIC_ACQUIRE);
}

static inline void control_release(struct vblk *disk)
{
    __atomic_store_n(&disk->control, 0, __ATOMIC_RELEASE);
}

/* Built for speed, these are inline wherever they are called; built for size, they are once in vblk_poll.c.
 */
#ifdef __OPTIMIZE_SIZE__
#define SHARED
bool vblk_queue_enter(struct queue *q);
void vblk_queue_leave(struct queue *q);
bool vblk_queue_ready(const struct queue *q);
#else
#define SHARED static inline
#endif

#if !defined(__OPTIMIZE_SIZE__) || defined(VBLK_SHARED_HERE)
/* With several queues, who resets the device must know that no other owner is at work on a ring. An owner
 * says that it is inside and then looks whether it may be; the other one says stop and then looks who is
 * inside. Each side's store comes before its load in the one order of sequentially consistent operations, so
 * one of them sees the other. With one queue there is one owner, and nothing to ask. */
SHARED bool vblk_queue_enter(struct queue *q)
{
    if (q->guarded && !q->polling) {
        __atomic_store_n(&q->inside, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&q->disk->stop, __ATOMIC_SEQ_CST)) {
            __atomic_store_n(&q->inside, 0, __ATOMIC_RELEASE);
            return false;
        }
    }
    return true;
}

SHARED void vblk_queue_leave(struct queue *q)
{
    if (q->guarded && !q->polling)
        __atomic_store_n(&q->inside, 0, __ATOMIC_RELEASE);
}

/* May the queue's ring be given something? Not while suspended, broken, or not yet caught up with a device
 * reset. */
SHARED bool vblk_queue_ready(const struct queue *q)
{
    return state_get(q->disk) == DISK_LIVE && !q->vq.broken &&
           q->epoch == __atomic_load_n(&q->disk->epoch, __ATOMIC_ACQUIRE);
}
#endif

/* The part becomes the newest in flight. */
static inline void part_link(struct queue *q, unsigned index)
{
    struct part *part = &q->parts[index];

    q->free_part = part->newer;
    part->older = q->newest;
    part->newer = NONE16;
    if (q->newest == NONE16)
        q->oldest = (uint16_t)index;
    else
        q->parts[q->newest].newer = (uint16_t)index;
    q->newest = (uint16_t)index;
}

/* And it is free again. */
static inline void part_unlink(struct queue *q, unsigned index)
{
    struct part *part = &q->parts[index];

    if (part->older == NONE16)
        q->oldest = part->newer;
    else
        q->parts[part->older].newer = part->newer;
    if (part->newer == NONE16)
        q->newest = part->older;
    else
        q->parts[part->newer].older = part->older;
    part->request = NULL;
    part->newer = q->free_part;
    q->free_part = (uint16_t)index;
}

/* vblk_config.c */
int vblk_config_read(struct vblk *disk, uint64_t features, struct virtio_blk_config *config);
int vblk_config_apply(struct vblk *disk);
int vblk_config_apply_again(struct vblk *disk, const struct virtio_blk_config *config);
uint64_t vblk_capacity_of(const struct vblk *disk, const struct virtio_blk_config *config);
void vblk_config_refresh(struct vblk *disk);

/* vblk_start.c */
int vblk_device_reset(struct vblk *disk);
int vblk_device_negotiate(struct vblk *disk, bool again);
int vblk_device_enable_queues(struct vblk *disk);
void vblk_device_go(struct vblk *disk);
int vblk_queue_enable(struct vblk *disk, struct queue *q);
void vblk_status_add(struct vblk *disk, uint8_t bits);

/* vblk_submit.c */
enum {
    OP_IN = 1,            /* data that the device writes */
    OP_OUT = 2,           /* data that it reads */
    OP_RANGE = 4,         /* a list of sector ranges, made by the driver */
    OP_SECTOR = 8,        /* the header names a sector; else it is 0 there (5.2.6) */
    OP_BLOCKS = 16,       /* data in whole blocks */
    OP_WHOLE = 32,        /* can't be split */
    OP_ZONE = ZONES * 64, /* the sector is a zone's first */
    OP_MODIFIES = 128,    /* refused on a read-only disk */
    OP_DIRTIES = 256,     /* what it did is durable only after a flush */
    OP_FLUSH = 512,
    OP_ONCE = ZONES * 1024 /* must not be sent again once the device may have seen it */
};

struct op_info {
    uint8_t type; /* VIRTIO_BLK_T_ */
    uint16_t flags;
    uint8_t feature; /* its number, or 0 */
    uint8_t bytes;   /* of data, exactly; 0: not fixed */
};

#define OP_COUNT ((unsigned)VBLK_ZONE_APPEND + 1)
extern const struct op_info vblk_op_table[OP_COUNT];

int vblk_status_result(const struct vblk *disk, uint8_t status);

/* vblk_part.c */
bool vblk_request_issue(struct queue *q, struct vblk_request *request);
void vblk_request_finish_later(struct queue *q, struct vblk_request *request);
bool vblk_part_put_on_ring(struct queue *q, unsigned index);
bool vblk_part_end(struct queue *q, unsigned index, uint32_t used_len, int result, bool held);

/* vblk_poll.c */
void vblk_queue_kick(struct queue *q);
unsigned vblk_queue_answer_all(struct queue *q);

/* vblk_recover.c */
void vblk_queue_catch_up(struct queue *q);
void vblk_queue_watch(struct queue *q);
bool vblk_others_out(struct vblk *disk, const struct queue *self);
void vblk_others_in(struct vblk *disk);
void vblk_disk_fail(struct vblk *disk, int reset_result);

#endif
