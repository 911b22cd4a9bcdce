/*
 * Metadata that outlives the process.
 *
 * What a guest was told is written must still be there when the device process is killed and comes back,
 * though the guest has flushed nothing: for the guest no power was lost. Its data is in the image (the kernel
 * has it), but the tables that lead to it may only be in the caches. So the caches' memory, marks of what in
 * it is newer than the image, and a log of changes to the L1 and refcount table lie in a file of shared
 * memory, which the next open of the image finds, writes back in the usual order, and removes.
 *
 * What always holds: the file is believed only by the user who owns it, in the same boot of the machine, for
 * the same image; and only if nobody has written to the image since, as far as its time of modification says,
 * every slice that it would write is in the image as this process last left it, and what it refers to is
 * counted. If somebody else has
 * changed the image in between, nothing of the file is used (so a block device, which has no such time, has
 * no such file). Entries are stored word by
 * word in an order that is safe to be cut anywhere: a kill may leak clusters and no more.
 *
 * Private to host/qcow2. Coroutine context for _co_.
 */
#ifndef RINGSIDE_QCOW2_SURVIVOR_H
#define RINGSIDE_QCOW2_SURVIVOR_H

#include "host/qcow2/qcow2_state.h"

struct survivor;

/* After the header was read, before any table is: takes the file in DIR and, if a killed process has left
 * something in it, writes that back. No file to be had is no error: it is said, and the image is used
 * without. What was left and cannot be read or written back is one, with ERR. */
int coroutine_fn survivor_co_recover(struct qcow2 *s, const char *dir, struct error *err);

/* At the end of open: the caches, clean and unused by others so far, live in the file from now on. */
void survivor_start(struct qcow2 *s);

/* [lock] Entry INDEX of the L1 (or refcount) table changes from OLD to ENTRY. Before it does. */
void survivor_log(struct qcow2 *s, bool reftable, uint64_t index, uint64_t old, uint64_t entry);

/* Is so much in the log that all should be written back, with no writer in flight, before it is full? Any
 * thread. */
bool survivor_crowded(const struct qcow2 *s);

/* [lock] The image file has become larger. */
void survivor_grew(struct qcow2 *s);

/* The image file is about to be written to, or was just now. Any thread, any context. */
void survivor_touch(struct qcow2 *s);

/* Everything is in the image; from now on, until the pause is over, what is in the caches belongs to tables
 * that the image does not know yet. */
void survivor_pause(struct qcow2 *s, bool pause);

/* [lock] Nothing is newer than the image. */
void survivor_clean(struct qcow2 *s);

/* At close, before the caches are destroyed. KEEP: something could not be written, and shall be found again.
 */
void survivor_end(struct qcow2 *s, bool keep);

#endif
