/*
 * What a simulated file holds: sectors with their versions. Private to the simulated disk.
 */
#ifndef RINGSIDE_AIO_SIM_DISK_STORE_H
#define RINGSIDE_AIO_SIM_DISK_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "host/runtime/sim.h"

#define SIM_SECTOR        512u
#define SIM_CHUNK_SECTORS 128u
#define SIM_CHUNK_BYTES   (SIM_SECTOR * SIM_CHUNK_SECTORS)

/* A sector's contents at some time, not yet durable. */
struct sim_version {
    struct sim_version *older;
    uint64_t request; /* which wrote it: sectors of one request may go together */
    uint64_t order;   /* of completion; 0: still in flight */
    bool hole;
    uint8_t data[SIM_SECTOR];
};

struct sim_chunk {
    uint8_t durable[SIM_CHUNK_BYTES];
    bool durable_data[SIM_CHUNK_SECTORS]; /* false: a hole */
    struct sim_version *newest[SIM_CHUNK_SECTORS];
};

/* A size that the file had, not yet durable. */
struct sim_size {
    struct sim_size *older;
    uint64_t order;
    uint64_t bytes;
};

struct sim_store {
    struct sim_chunk **chunks; /* NULL: never written, a hole */
    uint64_t chunk_count;
    uint64_t durable_size, size;
    struct sim_size *sizes; /* newest first */
    uint64_t order;         /* of the last completion */
    uint64_t requests;
    uint64_t versions; /* not durable, all sectors */
};

enum sim_loss { SIM_LOSE_ALL, SIM_KEEP_ALL, SIM_KEEP_PREFIX, SIM_BY_REQUEST, SIM_BY_SECTOR, SIM_LOSSES };

/* All of these: -ENOMEM or 0. Offsets and lengths are whole sectors. */

/* Begins a write: every sector gets a version that is still in flight, and that readers do not see yet. */
int sim_store_begin(struct sim_store *store, uint64_t offset, uint64_t sectors, const uint8_t *data,
                    bool hole, uint64_t *request);
/* Ends it: from here on readers see it. SECTORS may be fewer than begun: the rest did not happen. */
void sim_store_complete(struct sim_store *store, uint64_t request, uint64_t offset, uint64_t begun,
                        uint64_t sectors, bool durable);

/* Growing is as volatile as a write. Shrinking is durable at once: a file system may do so, and it is the
 * worse case for whoever forgot a flush before. */
int sim_store_set_size(struct sim_store *store, uint64_t bytes, bool durable);

/* What a reader sees. */
void sim_store_read(const struct sim_store *store, uint64_t offset, uint64_t sectors, uint8_t *data);
bool sim_store_is_data(const struct sim_store *store, uint64_t sector);
/* The first sector in [SECTOR, END) of the other kind, or END. */
uint64_t sim_store_next_change(const struct sim_store *store, uint64_t sector, uint64_t end);

/* All that was completed up to ORDER becomes durable. */
void sim_store_flush(struct sim_store *store, uint64_t order);

/* The power goes. */
int sim_store_lose(struct sim_store *store, struct sim *sim, enum sim_loss how);

void sim_store_clear(struct sim_store *store);

#endif
