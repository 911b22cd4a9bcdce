/*
 * A test bed: a vhost-user front end that writes rings by hand, right or wrong. Where libvblk must obey every
 * rule, this one obeys what the test wants obeyed. `ringside conform` and `ringside torture` stand on it.
 *
 * One thread. A bed is one connection with its own memory; nothing survives bed_close.
 */
#ifndef RINGSIDE_HARNESS_BED_H
#define RINGSIDE_HARNESS_BED_H

#include <stdbool.h>
#include <stdint.h>

#include "common/virtio.h"
#include "common/virtio_blk.h"
#include "common/virtio_ring.h"
#include "guest/platform/hosted/hosted.h"
#include "guest/platform/hosted/vhost_user_front.h"
#include "host/runtime/error.h"

#define BED_QUEUES_MAX 4u
#define BED_PIECES_MAX 300u
/* How long a device may take for what it has to do: a machine that stalls for seconds is no fault of it. */
#define BED_WAIT_MS 20000u

struct bed_queue {
    unsigned index, size;
    bool packed;
    /* split */
    struct virtq_desc *desc;
    struct virtq_avail *avail;
    struct virtq_used *used;
    /* packed */
    struct virtq_packed_desc *ring;
    struct virtq_packed_event *driver_event, *device_event;
    uint8_t *mem; /* all three parts */

    uint16_t next_desc; /* split: where the next chain's descriptors go; packed: ring position */
    uint16_t avail_idx; /* split: next value of avail.idx; packed: next buffer id */
    bool avail_wrap, used_wrap;
    uint16_t used_idx;       /* split: entries seen; packed: ring position of the next used descriptor */
    uint16_t chain_len[256]; /* packed: descriptors of each buffer id */
    int kick_fd, call_fd, err_fd;
    bool started;
};

struct bed {
    struct vhost_user_front front;
    struct hosted *hosted;
    uint64_t offered, transport_bits, accepted, protocol_offered, protocol;
    struct virtio_blk_config config;
    uint64_t capacity; /* sectors */
    unsigned queue_num;
    struct bed_queue queues[BED_QUEUES_MAX];
};

/* How a bed is made: what to accept and how far to go. */
struct bed_options {
    const char *path;
    uint64_t features;           /* accepted where offered; VERSION_1 is always accepted */
    uint64_t not_protocol;       /* protocol features not to negotiate */
    unsigned queues, queue_size; /* 0: 1, 64 */
    bool packed;
    bool no_memory, no_start; /* stop before the memory table, before the rings */
    unsigned regions;
    unsigned message_ms;
};

int bed_open(struct bed *bed, const struct bed_options *options, struct error *err);
void bed_close(struct bed *bed);

/* The parts of bed_open that tests want one by one. 0 or a negative errno. */
int bed_set_memory(struct bed *bed);
int bed_queue_make(struct bed *bed, unsigned index, unsigned size, bool packed);
int bed_queue_messages(struct bed *bed, unsigned index, uint32_t base);
int bed_queue_enable(struct bed *bed, unsigned index, bool on);
int bed_queue_stop(struct bed *bed, unsigned index, uint32_t *base); /* GET_VRING_BASE */

/* A message as it stands in HEADER, with BYTES of payload whatever the header says; nothing is awaited. */
void bed_send_raw(struct bed *bed, const struct vhost_user_header *header, const void *payload,
                  uint32_t bytes, const int *fds, unsigned nfds);

/* The machine's memory. */
void *bed_alloc(struct bed *bed, size_t bytes);
uint64_t bed_addr(const struct bed *bed, const void *mem);

/* A descriptor to be. */
struct bed_piece {
    void *mem;
    uint32_t len;
    bool writable;
};

/* Writes a chain at the next place of the ring (through an indirect table if INDIRECT) and makes it
 * available. Returns the head (split) or buffer id (packed). Without a kick. */
unsigned bed_put(struct bed *bed, unsigned queue, const struct bed_piece *pieces, unsigned count,
                 bool indirect);
void bed_kick(struct bed *bed, unsigned queue);

/* Waits for one used entry. 1: *ID and *LEN (may be NULL) are set; 0: nothing within MS; -EPIPE: the
 * connection ended; -ENODATA: the device asks for a reset. */
int bed_wait(struct bed *bed, unsigned queue, unsigned ms, uint32_t *id, uint32_t *len);

/* One whole request in the plainest form: 0.. the status byte; or a negative errno as bed_wait, -ETIMEDOUT.
 * DATA is copied in and out as TYPE demands. LEN (may be NULL) is what the used entry said. */
int bed_request(struct bed *bed, unsigned queue, uint32_t type, uint64_t sector, void *data, uint32_t bytes,
                bool writable, uint32_t *len);

/* The ring is broken and the device says so (err descriptor, or NEEDS_RESET where it has a status). */
bool bed_needs_reset(struct bed *bed);
/* The connection answers. */
bool bed_alive(struct bed *bed);
/* Takes the count of interrupts since the last call. */
uint64_t bed_interrupts(struct bed *bed, unsigned queue);
/* The same, after waiting for one for BED_WAIT_MS at most. */
uint64_t bed_interrupted(struct bed *bed, unsigned queue);

void bed_fence(void);
uint64_t bed_now_ms(void);
void bed_sleep_ms(unsigned ms);

#endif
