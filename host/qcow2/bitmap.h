/*
 * Persistent dirty bitmaps (checklist K): listed, kept while they can be, filled while writing. Coroutines,
 * any loop.
 */
#ifndef RINGSIDE_QCOW2_BITMAP_H
#define RINGSIDE_QCOW2_BITMAP_H

#include <string.h>

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

/* ---- between bitmap.c and bitmap_copy.c ---- */

struct bitmap {
    char *name;
    uint64_t entry_offset; /* of the directory entry, in the file */
    uint64_t table_offset;
    uint32_t table_entries, flags;
    uint8_t granularity_bits;
    uint8_t *bits; /* in memory: one bit a granule; NULL: not */
    uint64_t nb_bytes;
    bool disabled; /* in memory because it has to change with the disk's size; writes do not set its bits */
};

struct qcow2_bitmaps {
    struct bitmap *list;
    unsigned count;
    uint64_t directory_offset, directory_bytes;
    bool followed; /* atomic: bits are kept */
};

/* Of the disk that the bitmaps are of, which is not the one that is read if a snapshot is open. */
static inline uint64_t qcow2_bitmaps_disk(const struct qcow2 *s)
{
    return s->on_snapshot ? s->active_size : s->size;
}

static inline uint64_t qcow2_bitmap_granules(const struct qcow2 *s, unsigned granularity_bits)
{
    uint64_t size = qcow2_bitmaps_disk(s);
    return (size >> granularity_bits) + ((size & ((1ull << granularity_bits) - 1)) != 0);
}

static inline bool qcow2_all_bytes(const uint8_t *bytes, uint64_t n, uint8_t value)
{
    return n == 0 || (bytes[0] == value && memcmp(bytes, bytes + 1, n - 1) == 0);
}

/* Of a bitmap's table: is it one that can be followed? */
bool qcow2_bitmap_entry_is_right(const struct qcow2 *s, uint64_t entry);

/* Where the bitmaps extension's data lie in the file; 0: not where they should be. */
uint64_t coroutine_fn qcow2_bitmaps_co_find_extension(struct qcow2 *s, const struct qcow2_ext *ext);

#endif
