/*
 * A host-managed zoned disk, emulated (virtio 1.4, 5.2.6): the zones' types, states and write pointers, and
 * which command may do what in which state. No I/O on the disk; virtio_blk_zoned.c puts requests on top.
 *
 * A write takes its place when it begins, so that the next one may follow before it has ended. What is kept
 * in the state file (mapped memory: it survives the death of the process; zoned_sync makes it survive the
 * machine's) is what was written to an end: a device that takes over sees no zone fuller than it is, and
 * takes up what was in flight again. What was begun or done for requests in flight is kept with them
 * (zoned_places.h): taken up again, a write has its place already, and a command is not carried out twice.
 *
 * Any thread; short spin sections inside. Sectors are of 512 bytes. Results are VIRTIO_BLK_S_... .
 */
#ifndef RINGSIDE_DEVICE_ZONED_H
#define RINGSIDE_DEVICE_ZONED_H

#include <stdbool.h>
#include <stdint.h>

#include "common/virtio_blk.h"
#include "host/device/virtio_blk.h"
#include "host/device/zoned_places.h"
#include "host/runtime/error.h"

struct zoned;

/* Zones over CAPACITY sectors as OPTIONS says; BLOCK_SECTORS: what writes are multiples of; appends come from
 * NUM_QUEUES queues of at most QUEUE_SIZE. NULL with ERR set: impossible numbers, or a state file that is not
 * of this disk or contradicts itself. */
struct zoned *zoned_create(const struct virtio_blk_zoned_options *options, uint64_t capacity,
                           uint32_t block_sectors, uint32_t num_queues, uint32_t queue_size,
                           struct error *err);
void zoned_destroy(struct zoned *zoned);

/* A write of SECTORS at SECTOR begins, or, taken up again, goes on at the place that it had. One that had not
 * begun is judged by the write pointer like any other. */
uint8_t zoned_write_begin(struct zoned *zoned, uint64_t sector, uint64_t sectors,
                          const struct zoned_ticket *ticket);
/* QUEUE starts, with these requests in its inflight region: no others of its past will be taken up again. */
void zoned_queue_starts(struct zoned *zoned, uint32_t queue, const struct inflight_request *requests,
                        unsigned num);
/* An append to the zone that begins at SECTOR: *AT is where it goes; taken up again, where it went before. */
uint8_t zoned_append_begin(struct zoned *zoned, uint64_t sector, uint64_t sectors,
                           const struct zoned_ticket *ticket, uint64_t *at);
/* A write or append that began ended. Not OK: its place is not its own any more, and taken up again it would
 * begin anew. */
void zoned_write_end(struct zoned *zoned, uint64_t sector, uint64_t sectors,
                     const struct zoned_ticket *ticket, bool ok);

/* A read: *WRITTEN of its sectors, from the first on, were ever written; the rest reads as zeroes. */
uint8_t zoned_read(struct zoned *zoned, uint64_t sector, uint64_t sectors, uint64_t *written);

/* OPEN, CLOSE, FINISH, RESET of the zone that begins at SECTOR; RESET_ALL. Taken up again, it is not done
 * once more if it was done. */
uint8_t zoned_manage(struct zoned *zoned, uint32_t type, uint64_t sector, const struct zoned_ticket *ticket);

/* Describes zones from the one that holds SECTOR on, at most MAX; how many. */
unsigned zoned_report(struct zoned *zoned, uint64_t sector, struct virtio_blk_zone_descriptor *out,
                      unsigned max);

/* What ended before the call survives the machine. May block shortly. 0 or -errno. */
int zoned_sync(struct zoned *zoned);

#endif
