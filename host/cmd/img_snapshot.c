/*
 * ringside-img snapshot: lists, makes, applies and deletes the internal snapshots of a qcow2 image.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

/* As qemu-img does, by its name alone: an id changes its meaning once a snapshot is gone. */
static int coroutine_fn delete_named(struct node *node, const char *name, struct error *err)
{
    struct qcow2_snapshot_info *list = NULL;
    size_t count = 0, i = 0;
    int ret = qcow2_snapshots(node, &list, &count);
    if (ret < 0)
        return error_set(err, ret, "its snapshots cannot be listed: %s", strerror(-ret));
    while (i < count && strcmp(list[i].name, name) != 0)
        i++;
    ret = i < count ? qcow2_co_snapshot_delete(node, name, err)
                    : error_set(err, -ENOENT, "there is no snapshot with the name '%s'", name);
    free(list);
    return ret;
}

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
        ret = delete_named(node, options->snapshot_delete, &err);
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
