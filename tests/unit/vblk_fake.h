/*
 * A virtio block device in the same process, for the driver's tests: it sees every register access and every
 * byte of the rings, judges what the driver does by the specification's rules, and does as it is told:
 * answer, be silent, answer out of turn, lie.
 *
 * What always holds: memory that the driver did not share is never touched (an address is looked up among
 * live shares, which are copies, so a missing share or unshare shows up as wrong bytes); a broken rule is a
 * fault, and fake_stop fails the test if there was one.
 */
#ifndef RINGSIDE_TESTS_VBLK_FAKE_H
#define RINGSIDE_TESTS_VBLK_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/virtio_ring.h"
#include "guest/driver/vblk.h"

#define FAKE_QUEUES    8u
#define FAKE_TRACE_MAX 65536u
#define FAKE_SEGS_MAX  2048u
#define FAKE_MAX_SHARE 4096u

enum fake_event_kind {
    EV_STATUS_READ,
    EV_STATUS_WRITE,
    EV_FEATURES_READ,
    EV_FEATURES_WRITE,
    EV_CONFIG_READ, /* a = offset, b = width */
    EV_CONFIG_WRITE,
    EV_GENERATION,
    EV_QUEUE_MAX,
    EV_QUEUE_ENABLE,
    EV_QUEUE_RESET,
    EV_QUEUE_IS_RESET,
    EV_NOTIFY, /* a = queue, b = next */
    EV_INTERRUPT_STATUS,
    EV_CONFIG_VECTOR,
    EV_COMPLETE
};

struct fake_event {
    enum fake_event_kind kind;
    uint64_t a, b;
};

struct fake_seg {
    uint8_t *mem;
    uint32_t len;
    bool write;
};

/* A chain taken from a ring, not used yet. */
struct fake_chain {
    unsigned queue;
    uint16_t id;    /* head (split) or buffer id (packed) */
    uint16_t ndesc; /* ring descriptors */
    uint16_t slot;  /* packed: where it began */
    bool indirect;
    unsigned nsegs;
    struct fake_seg *segs;
    uint32_t readable, writable; /* bytes */
    uint32_t type;
    uint64_t sector;
    uint8_t *status;
    uint32_t used_len; /* after fake_execute */
    uint32_t sum;      /* of its descriptors when it was taken */
};

struct fake_queue {
    bool enabled, resetting;
    struct vtr_queue setup;
    unsigned size_max;
    uint16_t avail_seen; /* split */
    uint16_t used_idx;
    uint16_t used_event_old;
    uint16_t next, used_next; /* packed */
    bool wrap, used_wrap;
    unsigned kicks, interrupts, chains, in_flight;
    uint16_t last_kick_next;
    bool vector_refused;
};

struct fake {
    struct vtr vtr; /* first */
    struct vtr_ops ops;

    /* the device */
    uint8_t status;
    uint64_t offered, accepted;
    struct virtio_blk_config config;
    unsigned config_bytes;
    uint32_t generation;
    uint8_t isr;
    unsigned num_queues, vectors;
    struct fake_queue queue[FAKE_QUEUES];
    uint8_t *disk;
    uint64_t disk_bytes;

    /* how it behaves */
    bool run_on_notify, run_on_wait;
    bool refuse_features;   /* FEATURES_OK never sticks */
    bool generation_runs;   /* changes with every look */
    bool stuck_status;      /* a reset does nothing */
    bool gone;              /* everything reads as ones */
    bool stuck_queue_reset; /* never done */
    bool tampers;           /* writes into descriptors itself */
    bool no_notify;         /* asks not to be kicked */
    bool no_avail_event_update;
    unsigned reset_delay; /* status reads until it is 0 */
    unsigned queue_reset_delay;
    unsigned suspend_delay; /* status reads until it is suspended, or awake */
    uint8_t answer_status;  /* instead of OK; 0: as it is */
    bool never_write_status;
    int lose_kicks; /* so many are not heard */
    void (*on_config_read)(struct fake *fake, unsigned offset);
    void (*on_reset)(struct fake *fake);
    bool (*on_chain)(struct fake *fake,
                     struct fake_chain *chain); /* false: keep it, the test will see to it */
    void *opaque;

    /* what it saw */
    struct fake_event *trace;
    unsigned ntrace;
    unsigned faults;
    unsigned resets, cut_offs;
    char first_fault[256];
    unsigned log_lines, log_errors;
    char last_log[160];
    uint32_t types_seen; /* bit: request type */
    bool suspended;

    /* the machine */
    struct vblk_platform platform;
    uint64_t clock_ns, clock_step_ns;
    unsigned waits;
    unsigned share_page; /* contiguity: no share crosses a multiple of this; 0: any */
    unsigned shares_live, shares_max, shares_total;
    bool share_einval;
    unsigned share_slots; /* in use so far */
    struct {
        uint8_t *copy, *mem;
        size_t len;
        enum vblk_direction direction;
    } share[FAKE_MAX_SHARE];
    struct {
        uint8_t *mem;
        size_t len;
    } dma[FAKE_QUEUES];
    unsigned dma_live;
    bool dma_fail;

    /* the driver on it */
    struct vblk *vblk;
    struct vblk_config vblk_config;
    void *memory;
};

/* A modern device of CAPACITY sectors (backed by memory up to 64 MiB) that offers FEATURES and VERSION_1. */
struct fake *fake_new(uint64_t features, uint64_t capacity_sectors);
/* Starts the driver on it with CONFIG (NULL: one queue of 16, no tables, short deadline); 0 or its error. */
int fake_start(struct fake *fake, const struct vblk_config *config);
/* Stops the driver, checks that nothing is shared any more and no rule was broken, frees everything. */
void fake_stop(struct fake *fake);
/* The same without a verdict on the rules, for devices that misbehave by design. */
void fake_stop_unchecked(struct fake *fake);

void fake_fault(struct fake *fake, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The device's side of a queue: the next chain (NULL: none; free it with fake_chain_free), its work on the
 * disk, and giving it back. fake_run does all three for what is there. */
struct fake_chain *fake_next(struct fake *fake, unsigned queue);
void fake_chain_free(struct fake_chain *chain);
void fake_execute(struct fake *fake, struct fake_chain *chain);
void fake_use(struct fake *fake, const struct fake_chain *chain, uint32_t len);
void fake_use_raw(struct fake *fake, unsigned queue, uint32_t id, uint32_t len, unsigned ndesc);
/* IN_ORDER: one used entry for BATCH chains of which CHAIN is the last, beginning where FIRST was; NDESC:
 * ring descriptors of the whole batch (packed). */
void fake_use_batch(struct fake *fake, const struct fake_chain *last, uint32_t len, unsigned batch,
                    unsigned ndesc);
unsigned fake_run(struct fake *fake, unsigned queue);
void fake_run_all(struct fake *fake);

/* Raw views of a queue's split ring, for liars. */
struct virtq_avail *fake_avail(struct fake *fake, unsigned queue);
struct virtq_used *fake_used(struct fake *fake, unsigned queue);
struct virtq_desc *fake_desc(struct fake *fake, unsigned queue);
struct virtq_packed_desc *fake_packed(struct fake *fake, unsigned queue);
struct virtq_packed_event *fake_packed_event(struct fake *fake, unsigned queue, bool driver);
le16 *fake_used_event(struct fake *fake, unsigned queue);
le16 *fake_avail_event(struct fake *fake, unsigned queue);

/* Where the memory that the driver calls ADDR is for the device; NULL (and a fault) if LEN bytes are not
 * shared. */
uint8_t *fake_at(struct fake *fake, uint64_t addr, uint64_t len);
bool fake_has(const struct fake *fake, unsigned feature);

/* Trace: how many events of KIND; the Nth of them. */
unsigned fake_count(const struct fake *fake, enum fake_event_kind kind);
const struct fake_event *fake_event(const struct fake *fake, enum fake_event_kind kind, unsigned nth);
int fake_event_position(const struct fake *fake, enum fake_event_kind kind, unsigned nth);
void fake_note(struct fake *fake, enum fake_event_kind kind, uint64_t a, uint64_t b);

/* A request with a place for its result. */
struct fake_request {
    struct vblk_request request;
    struct vblk_seg segs[64];
    bool done;
    int result;
    unsigned order; /* when it completed, counted from 1 */
    struct fake *fake;
};

int fake_submit(struct fake *fake, unsigned queue, struct fake_request *r, enum vblk_op op, uint64_t sector,
                void *buf, size_t len);
/* Polls (the clock moves with it) until the request is done; fails the test after LIMIT polls. */
void fake_finish(struct fake *fake, unsigned queue, struct fake_request *r);

/* Ring layouts: every combination of packed, indirect, EVENT_IDX and IN_ORDER. */
#define FAKE_LAYOUTS 16u
uint64_t fake_layout(unsigned n);
const char *fake_layout_name(unsigned n);

#endif
