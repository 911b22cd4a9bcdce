/*
 * ringside-img snapshot: lists, makes, applies and deletes the internal snapshots of a qcow2 image.
 */
#include <errno.h>

#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

int coroutine_fn img_co_snapshot(const struct img_options *options)
{
    const char *path = options->names[0];
    bool changes = options->snapshot_create || options->snapshot_apply || options->snapshot_delete;
    unsigned count = (options->snapshot_create != NULL) + (options->snapshot_apply != NULL) +
                     (options->snapshot_delete != NULL) + options->list;
    struct error err = {""};
    struct node *node;
    int ret = 0;
    if (count > 1) {
        log_message("only one of -l, -c, -a and -d can be done at a time");
        return CMD_EXIT_USAGE;
    }
    if (img_co_open(options, path, options->format, IMG_NO_BACKING | (changes ? IMG_WRITE : IMG_NO_IO),
                    &node) < 0)
        return CMD_EXIT_FAILED;
    if (node->driver != &qcow2_driver) {
        log_message("%s: images of format %s have no snapshots", path, node->driver->format_name);
        img_co_close(node);
        return CMD_EXIT_FAILED;
    }
    if (options->snapshot_create) {
        ret = qcow2_co_snapshot_create(node, options->snapshot_create, &err);
    } else if (options->snapshot_apply) {
        ret = qcow2_co_snapshot_apply(node, options->snapshot_apply, &err);
    } else if (options->snapshot_delete) {
        ret = qcow2_co_snapshot_delete(node, options->snapshot_delete, &err);
    } else {
        json_t *snapshots = img_snapshots(node);
        if (snapshots)
            img_print_snapshots(snapshots);
        json_decref(snapshots);
    }
    if (ret < 0)
        img_failed(path, &err);
    int closed = img_co_close(node);
    return ret < 0 || closed < 0 ? CMD_EXIT_FAILED : CMD_EXIT_OK;
}
