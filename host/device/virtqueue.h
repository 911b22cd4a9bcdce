/*
 * The device's side of a virtqueue, split (virtio 1.4, 2.7) or packed (2.8): the small interface that both
 * formats share. virtqueue_split.c and virtqueue_packed.c implement it, virtqueue.c what they have in common.
 *
 * What always holds:
 *  - everything in shared memory is read once, into private memory, and checked there before it is used;
 *  - the ring belongs to the thread that serves the queue, and to no other;
 *  - a ring that breaks the rules so far that no request can be told from it is reported once (-EPROTO and a
 *    reason); the caller does not touch it again before it is set up anew.
 *
 * Using up a buffer is in two steps: virtqueue_push writes used entries that the driver does not see yet,
 * virtqueue_publish shows all of them at once. Then virtqueue_needs_interrupt says whether the driver wants
 * to be told. All functions: thread that serves the queue.
 */
#ifndef RINGSIDE_DEVICE_VIRTQUEUE_H
#define RINGSIDE_DEVICE_VIRTQUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/virtio.h"
#include "common/virtio_ring.h"
#include "host/device/guest_memory.h"

struct ring_inflight;
struct virtqueue_audit;

/* Segments of one chain that are kept; a longer chain is walked to its end, but can only be refused. */
#define VIRTQ_IOV_MAX 1024u

/* A buffer taken from the ring: a chain of descriptors. Its segments are in the virtqueue's own array until
 * the next pop: `out` readable ones, then `in` writable ones. Empty descriptors leave no trace. */
struct virtq_chain {
    uint16_t id;        /* split: index of the head; packed: the driver's buffer id */
    uint16_t num_descs; /* packed: places it takes in the ring; split: 1 */
    bool too_long;      /* has more than VIRTQ_IOV_MAX segments: the array is incomplete */
    unsigned out, in;
    uint64_t out_bytes, in_bytes;
    uint8_t *last_in; /* the last writable byte, or NULL */
};

struct virtqueue {
    /* set by virtqueue_init */
    const struct guest_memory *memory;
    const struct guest_region *last_region; /* where the last segment was: the next one mostly is there too */
    uint16_t size, mask;                    /* mask: split only */
    bool packed, event_idx, indirect;
    bool notify_wanted; /* what the driver was told last */
    /* The last pop failed (the position is unchanged) for want of the translation of this address. */
    bool missing, missing_writable;
    uint64_t missing_addr;
    union {
        struct {
            struct virtq_desc *desc;
            struct virtq_avail *avail;
            struct virtq_used *used;
            uint16_t avail_idx;  /* as last read from the ring */
            uint16_t last_avail; /* next one to take */
            uint16_t used_idx;   /* as published */
            uint16_t pending;    /* pushed, not published */
        } split;
        struct {
            struct virtq_packed_desc *desc;
            struct virtq_packed_event *driver, *device;
            uint16_t last_avail, used_idx; /* places in the ring */
            bool avail_wrap, used_wrap;
            uint32_t in_flight; /* places taken and not shown as used */
            /* The first used descriptor of the batch: its flags are written last, in publish. */
            bool pending;
            uint16_t first_slot, first_flags;
            uint32_t pending_places;
        } ring;
    };
    uint32_t since_signal; /* used entries since the driver's wish was last looked at; packed: places */
    const char *why;       /* broken: the reason */
    struct virtqueue_audit *audit;
    struct ring_inflight *inflight; /* packed: told of each descriptor */
    struct iovec iov[VIRTQ_IOV_MAX];
};

struct virtqueue_setup {
    const struct guest_memory *memory;
    unsigned size;
    bool packed;
    uint64_t features; /* negotiated */
    void *desc, *driver, *device;
    uint16_t last_avail_idx, last_used_idx; /* packed: bit 15 is the wrap counter */
    bool indexes_follow;                    /* from an inflight region: these are not looked at closely */
};

/* 0, or -EINVAL with *WHY: size or alignment that section 2.7 or 2.8 does not allow, an index outside the
 * ring. The used index of a split ring is taken from the ring itself. */
int virtqueue_init(struct virtqueue *vq, const struct virtqueue_setup *setup, const char **why);

/* Takes the next buffer: 1 and *CHAIN; 0: none; -EPROTO: the ring is broken, vq->why. */
int virtqueue_pop(struct virtqueue *vq, struct virtq_chain *chain);

/* Takes up a buffer that was taken before a restart: split, by its head; packed, by copies of its
 * descriptors. 1 or -EPROTO. */
int virtqueue_split_repop(struct virtqueue *vq, uint16_t head, struct virtq_chain *chain);
int virtqueue_packed_repop(struct virtqueue *vq, const struct virtq_packed_desc *descs, unsigned count,
                           struct virtq_chain *chain);

/* Is there one? A look at the ring without taking anything; may read shared memory. A broken ring has some.
 */
bool virtqueue_has_more(struct virtqueue *vq);

/* Puts the buffer back as used with LEN bytes written. With IN_ORDER one entry may stand for BUFFERS of them
 * in the order they were taken, ID being the last one's and NUM_DESCS the sum; BUFFERS is 1 otherwise. */
void virtqueue_push(struct virtqueue *vq, uint16_t id, uint32_t len, unsigned buffers, unsigned num_descs);

/* Shows the driver everything that was pushed. False: there was nothing. */
bool virtqueue_publish(struct virtqueue *vq);

/* Does the driver want an interrupt for what was published since the last call (2.7.7, 2.8.10)? */
bool virtqueue_needs_interrupt(struct virtqueue *vq);

/* Has the driver named the used entry at which it wants its next interrupt, rather than "always"? Then there
 * is one interrupt for it however often the question above is asked. No barrier: only a hint for when to ask.
 */
bool virtqueue_interrupts_once(const struct virtqueue *vq);

/* Tells the driver whether kicks are wanted. After turning them on the caller looks at the ring once more:
 * the full barrier for that is in here. */
void virtqueue_set_notification(struct virtqueue *vq, bool on);

/* As for the setup: where to go on. */
uint16_t virtqueue_last_avail_idx(const struct virtqueue *vq);
uint16_t virtqueue_last_used_idx(const struct virtqueue *vq);

/* Was the entry that takes the index from OLD to NEW and beyond passed the one that EVENT names? All modulo
 * 2^16 (2.7.7.2; for batches as in the specification's vring_need_event). */
static inline bool virtq_event_passed(uint16_t event, uint16_t new_idx, uint16_t old_idx)
{
    return (uint16_t)(new_idx - event - 1u) < (uint16_t)(new_idx - old_idx);
}

/* ---- for the two formats ---- */

/* Orders every access before it against every access after it, stores before loads too. ThreadSanitizer knows
 * no fences; a read-modify-write of a word of one's own is as strong. */
static inline void virtq_full_barrier(void)
{
#if defined(__SANITIZE_THREAD__)
    static _Thread_local uint32_t word;

    __atomic_fetch_add(&word, 0, __ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Reads a descriptor of 16 bytes, at any alignment, with each byte loaded once: the compiler may neither
 * repeat nor split these loads. */
struct virtq_words {
    uint64_t w[2];
};
static inline struct virtq_words virtq_load_words(const void *p)
{
    struct __attribute__((packed, may_alias)) word {
        uint64_t v;
    };
    const volatile struct word *words = p;
    struct virtq_words read;

    read.w[0] = words[0].v;
    read.w[1] = words[1].v;
    return read;
}

static inline uint64_t virtq_load_word(const le64 *p)
{
    return le64_get((le64){*(const volatile uint64_t *)&p->wire});
}

/* Starts an empty chain. */
static inline void virtq_chain_begin(struct virtq_chain *chain, uint16_t id)
{
    *chain = (struct virtq_chain){.id = id, .num_descs = 1};
}

/* What to return for a range that is not in memory: -EPROTO, with WHY put down, or the missing translation.
 */
int virtq_outside(struct virtqueue *vq, uint64_t addr, uint64_t bytes, bool writable, const char *why);

/* The general case of virtq_chain_add. */
int virtq_chain_add_slow(struct virtqueue *vq, struct virtq_chain *chain, uint64_t addr, uint32_t len,
                         bool writable);

/* Adds a segment. -EPROTO with vq->why: outside of guest memory, or a readable one after a writable one. */
static inline int virtq_chain_add(struct virtqueue *vq, struct virtq_chain *chain, uint64_t addr,
                                  uint32_t len, bool writable)
{
    const struct guest_region *region = vq->last_region;
    unsigned n = chain->out + chain->in;
    uint64_t skip = addr - region->guest_addr; /* wraps to something too large below the region */

    /* In one piece, in the region of the one before, nothing special about it. */
    if (__builtin_expect(skip >= region->bytes || len > region->bytes - skip || len == 0 ||
                             n >= VIRTQ_IOV_MAX || chain->too_long || (!writable && chain->in > 0),
                         0))
        return virtq_chain_add_slow(vq, chain, addr, len, writable);
    vq->iov[n].iov_base = region->host + skip;
    vq->iov[n].iov_len = len;
    if (writable) {
        chain->in++;
        chain->in_bytes += len;
        chain->last_in = region->host + skip + len - 1;
    } else {
        chain->out++;
        chain->out_bytes += len;
    }
    return 0;
}

int virtqueue_split_init(struct virtqueue *vq, const struct virtqueue_setup *setup, const char **why);
int virtqueue_split_pop(struct virtqueue *vq, struct virtq_chain *chain);
bool virtqueue_split_has_more(struct virtqueue *vq);
void virtqueue_split_push(struct virtqueue *vq, uint16_t id, uint32_t len, unsigned buffers);
bool virtqueue_split_publish(struct virtqueue *vq);
bool virtqueue_split_needs_interrupt(struct virtqueue *vq);
void virtqueue_split_set_notification(struct virtqueue *vq, bool on);

int virtqueue_packed_init(struct virtqueue *vq, const struct virtqueue_setup *setup, const char **why);
int virtqueue_packed_pop(struct virtqueue *vq, struct virtq_chain *chain);
bool virtqueue_packed_has_more(struct virtqueue *vq);
void virtqueue_packed_push(struct virtqueue *vq, uint16_t id, uint32_t len, unsigned num_descs);
bool virtqueue_packed_publish(struct virtqueue *vq);
bool virtqueue_packed_needs_interrupt(struct virtqueue *vq);
void virtqueue_packed_set_notification(struct virtqueue *vq, bool on);

#endif
