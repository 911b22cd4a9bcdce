/*
 * Bitmaps: dropped at the first write so far.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/qcow2/bitmap.h"

int coroutine_fn qcow2_bitmaps_co_open(struct qcow2 *s, struct error *err)
{
    return 0;
}
int coroutine_fn qcow2_bitmaps_co_prepare_write(struct qcow2 *s, uint64_t *autoclear)
{
    *autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
    return 0;
}
void qcow2_bitmaps_mark(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
}
int coroutine_fn qcow2_bitmaps_co_close(struct qcow2 *s)
{
    return 0;
}
unsigned qcow2_bitmaps_count(const struct qcow2 *s)
{
    return 0;
}
void qcow2_bitmaps_free(struct qcow2 *s)
{
}

int coroutine_fn qcow2_bitmaps_co_references(struct qcow2 *s,
                                             void (*say)(void *opaque, uint64_t host, uint64_t bytes),
                                             void *opaque)
{
    return 0;
}

int coroutine_fn qcow2_co_bitmaps(struct node *node, struct qcow2_bitmap_info **list, size_t *count,
                                  struct error *err)
{
    *list = NULL;
    *count = 0;
    return 0;
}
