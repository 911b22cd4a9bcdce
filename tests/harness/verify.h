/*
 * Private to `ringside verify`: its workers, their requests, and the model that judges them.
 *
 * Threads: a worker's slots belong to its thread; what all workers share (which sectors and zones are in use,
 * the model's zones, the next version) is under verify.lock.
 */
#ifndef RINGSIDE_HARNESS_VERIFY_H
#define RINGSIDE_HARNESS_VERIFY_H

#include <pthread.h>

#include "tests/harness/model.h"
#include "tests/harness/rig.h"

#define SEGS_MAX    48u
#define GAP_MAX     24u
#define RANGE_BYTES (4u << 20) /* longest discard or zero write */

struct verify;
struct zone;
struct zones;

struct slot {
    struct vblk_request request;
    struct worker *worker;
    bool busy;
    uint64_t number; /* of the request, in its worker */
    uint64_t sector, count;
    uint32_t version;
    uint8_t *shared, *private; /* buffers inside and outside of the machine's memory */
    uint8_t *buf;              /* the one in use */
    struct vblk_seg segs[SEGS_MAX];
    /* zoned disks */
    bool of_zones;     /* verify_zones_finish is to judge it */
    struct zone *zone; /* that it holds, or NULL */
    int expected;      /* result; */
    bool may_be_busy;  /* or VBLK_EBUSY, */
    bool may_be_wrong; /* or VBLK_EINVAL */
    uint32_t *seen;    /* report: how often each zone had changed when it was sent */
};

struct worker {
    struct verify *verify;
    pthread_t thread;
    unsigned queue;
    struct chance chance;
    struct slot *slots;
    uint8_t *scratch;
    unsigned in_flight;
    uint64_t submitted, done[VBLK_ZONE_APPEND + 1];
    uint64_t bytes, failed;
};

struct verify {
    const struct settings *settings;
    struct rig *rig;
    struct model model;
    uint64_t block_sectors, request_sectors, range_sectors;
    uint64_t plain_sectors; /* from the start on: may be written anywhere. All of the disk, or its
                               conventional zones */
    struct zones *zones;    /* or NULL */
    size_t slot_bytes;
    char id[VIRTIO_BLK_ID_BYTES + 1];
    uint64_t end_ns;      /* with --runtime */
    uint64_t range_lists; /* sent by hand */
    uint64_t suspends;

    pthread_mutex_t lock;
    uint32_t version;

    struct worker *workers;
    unsigned worker_count, workers_started;
    bool stop; /* atomic */
    pthread_mutex_t report_lock;
    bool reported;
    char report[1024];
};

/* verify_requests.c: any request */

/* The first report counts, and ends the run. SLOT may be NULL. */
void verify_stop(struct verify *v, const struct slot *slot, const char *what);
void verify_stop_difference(struct verify *v, const struct slot *slot,
                            const struct model_difference *difference);
bool verify_offered(const struct verify *v, unsigned bit);
/* Cuts BYTES of the slot's buffer into at most MOST segments. */
void verify_lay_out(struct worker *worker, struct slot *slot, size_t bytes, unsigned most);
void verify_scatter(const struct slot *slot, const uint8_t *from);
void verify_gather(const struct slot *slot, uint8_t *to);
/* Bytes around the segments that nobody may write to, and whether somebody did. */
void verify_guard_set(const struct slot *slot);
void verify_guard_check(struct verify *v, const struct slot *slot);
/* Sectors of a request of at most MAX. */
uint64_t verify_choose_count(struct worker *worker, uint64_t max);
/* Fills SLOT with a request that can go now. False: there is no place for one. */
bool verify_prepare(struct worker *worker, struct slot *slot);
void verify_finish(struct vblk_request *request, int result);

/* verify_zones.c: a host-managed zoned disk */

bool verify_zones_make(struct verify *v); /* false: reported */
void verify_zones_free(struct verify *v);
/* The end of what a read that begins at SECTOR can have. */
uint64_t verify_zones_end(const struct verify *v, uint64_t sector);
enum zones_choice { ZONES_TAKEN, ZONES_BUSY, ZONES_NONE };
/* As verify_prepare; ZONES_NONE: it is an ordinary request's turn. */
enum zones_choice verify_zones_prepare(struct worker *worker, struct slot *slot);
/* Judges the request and lets go of its zone. */
void verify_zones_finish(struct worker *worker, struct slot *slot, int result);
/* The worker sends nothing more. */
void verify_zones_leave(struct worker *worker);
/* All zones against a last report, when nothing is in flight. */
void verify_zones_check(struct verify *v);

/* verify_ranges.c: lists of several ranges, which libvblk has no use for, in rings written by hand */
void verify_ranges(struct verify *v);

#endif
