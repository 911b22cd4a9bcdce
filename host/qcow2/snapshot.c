/* Refused by name so far. */
#include "host/qcow2/qcow2_state.h"
#include <errno.h>
int coroutine_fn qcow2_co_snapshot_create(struct node *node, const char *name, struct error *err)
{
    return error_set(err, -ENOTSUP, "creating internal snapshots is not supported");
}

int coroutine_fn qcow2_co_snapshot_apply(struct node *node, const char *id_or_name, struct error *err)
{
    return error_set(err, -ENOTSUP, "applying internal snapshots is not supported");
}

int coroutine_fn qcow2_co_snapshot_delete(struct node *node, const char *id_or_name, struct error *err)
{
    return error_set(err, -ENOTSUP, "deleting internal snapshots is not supported");
}

int coroutine_fn qcow2_co_make_empty(struct node *node, struct error *err)
{
    return error_set(err, -ENOTSUP, "emptying qcow2 images is not supported");
}

int coroutine_fn qcow2_co_change_backing(struct node *node, const char *backing_file,
                                         const char *backing_format, struct error *err)
{
    return error_set(err, -ENOTSUP, "changing the backing file is not supported");
}

int coroutine_fn qcow2_co_bitmaps(struct node *node, struct qcow2_bitmap_info **list, size_t *count,
                                  struct error *err)
{
    *list = NULL;
    *count = 0;
    return 0;
}
