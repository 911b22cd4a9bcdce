/*
 * Persistent dirty bitmaps (checklist K): listed, kept while they can be, filled while writing. Coroutines,
 * any loop.
 */
#ifndef RINGSIDE_QCOW2_BITMAP_H
#define RINGSIDE_QCOW2_BITMAP_H

#include "host/qcow2/qcow2_state.h"

/* Checks the extension and reads the directory. What is wrong with it is an error only if the autoclear bit
 * says that it is meant to be right. */
int coroutine_fn qcow2_bitmaps_co_open(struct qcow2 *s, struct error *err);

/* Before the first write. *AUTOCLEAR: the bits that will be set from now on. */
int coroutine_fn qcow2_bitmaps_co_prepare_write(struct qcow2 *s, uint64_t *autoclear);

/* Guest data in this range changed. Any thread. */
void qcow2_bitmaps_mark(struct qcow2 *s, uint64_t offset, uint64_t bytes);

/* Before the disk's size becomes SIZE, and no writer is in flight: can all bitmaps follow? They are marked in
 * use and in memory after it. */
int coroutine_fn qcow2_bitmaps_co_prepare_resize(struct qcow2 *s, uint64_t size, struct error *err);
/* The disk has the header's size now: so have the bitmaps, and what is new is clean. In the file they follow
 * at close. */
void qcow2_bitmaps_resized(struct qcow2 *s);

/* Stores what was filled, at a clean close. */
int coroutine_fn qcow2_bitmaps_co_close(struct qcow2 *s);

/* Says every stretch of the file that the bitmaps occupy: directory, tables, data. -EFBIG: tables overlap. */
int coroutine_fn qcow2_bitmaps_co_references(struct qcow2 *s,
                                             void (*say)(void *opaque, uint64_t host, uint64_t bytes),
                                             void *opaque);

/* Where the directory lies, if there is one. */
bool qcow2_bitmaps_directory(const struct qcow2 *s, uint64_t *offset, uint64_t *bytes);
unsigned qcow2_bitmaps_count(const struct qcow2 *s);

void qcow2_bitmaps_free(struct qcow2 *s);

#endif
