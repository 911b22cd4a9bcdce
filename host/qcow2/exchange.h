/*
 * Mapping, refcounts and snapshot table exchanged as a whole, by one sector of the header.
 *
 * Making or deleting a snapshot changes refcounts from 1 to 2 or back, and with each of them the COPIED flag
 * of an active entry, which has to say "refcount 1" at every moment (checklist F5). The two lie in different
 * sectors, so no order of writes in place keeps them in step. Therefore nothing is written in place: refcount
 * blocks and table, L1 table, the L2 tables whose flags change and the snapshot table are written anew beside
 * the old ones, and become valid together when the header's first sector names them.
 *
 * What always holds: until that sector is written the old state is on the disk, untouched, and what is new
 * are leaked clusters; afterwards it is the other way round. No writer is in flight meanwhile
 * (qcow2_co_quiesce).
 *
 * Private to host/qcow2; coroutines.
 */
#ifndef RINGSIDE_QCOW2_EXCHANGE_H
#define RINGSIDE_QCOW2_EXCHANGE_H

#include "host/qcow2/qcow2_state.h"

/* A run of clusters that were allocated for the new state. */
struct qcow2_exchange_run {
    uint64_t host, clusters;
};

/* The image's snapshots, in a new table. Takes LIST over if it comes to the exchange. */
struct qcow2_exchange_list {
    struct qcow2_snapshot *list;
    uint32_t count;
    uint64_t bytes;
};

struct qcow2_exchange {
    struct qcow2_exchange_run l1, table, list;
    uint64_t *spare; /* clusters for L2 tables that are written anew */
    uint64_t nb_spare, used;
    uint64_t *blocks; /* clusters of the new refcount blocks */
    uint64_t nb_blocks, room_blocks;
    uint64_t *reftable; /* names them; while it is in use: the old one */
    uint64_t *new_l1;
    uint8_t *new_dirty;
    bool in_use; /* refcounts are those of the new state */
};

/* From here on refcounts are read and changed in the new state alone. SPARE: so many L2 tables may come to
 * have other COPIED flags. LIST_BYTES: of the new snapshot table. After an error there is nothing to abort.
 */
int coroutine_fn qcow2_co_exchange_begin(struct qcow2 *s, struct qcow2_exchange *x, uint64_t spare,
                                         uint64_t list_bytes);
/* Sets the COPIED flags of the active mapping as the new refcounts say, and makes the new state the image's.
 * KEEP_L1: the old L1 table belongs to a snapshot now. An error: nothing has changed, and it is over. */
int coroutine_fn qcow2_co_exchange_commit(struct qcow2 *s, struct qcow2_exchange *x,
                                          const struct qcow2_exchange_list *list, bool keep_l1);
void coroutine_fn qcow2_co_exchange_abort(struct qcow2 *s, struct qcow2_exchange *x);

/* Writes a snapshot table to HOST, which has room for whole clusters. (snapshot.c) */
uint64_t qcow2_snapshot_table_bytes(const struct qcow2_snapshot *list, uint32_t count);
int coroutine_fn qcow2_co_write_snapshot_table(struct qcow2 *s, const struct qcow2_snapshot *list,
                                               uint32_t count, uint64_t host);

#endif
