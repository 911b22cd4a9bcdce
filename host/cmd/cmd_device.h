/*
 * A virtio-blk device on an image, with its iothreads, from command-line options: what ringside-blk serves
 * and what the harness has inside itself.
 *
 * cmd_device_start and _stop are called on a thread that has a loop, outside of it (they turn it).
 */
#ifndef RINGSIDE_CMD_DEVICE_H
#define RINGSIDE_CMD_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "host/block/backend.h"
#include "host/cmd/cmd_cpus.h"
#include "host/cmd/cmd_options.h"
#include "host/device/virtio_blk.h"
#include "host/runtime/loop.h"

struct cmd_device_options {
    const char *blk_file;
    struct open_options open;
    bool read_only, lock;
    uint64_t size;       /* of a null image */
    unsigned null_reads; /* 0: zeroes, 1: nothing */
    struct virtio_blk_options device;
    const char *serial;
    unsigned iothreads;
    struct cmd_cpus iothread_cpus;
    uint64_t poll_max_ns;
    unsigned ignore_discard; /* 0: unmap, 1: ignore */
    struct throttle_config throttle;
    bool audit;
    const char *audit_file; /* NULL: stderr */
    /* Called by cmd_device_start when every file is open and no iothread is there yet; an error of it is that
     * one's. NULL: nothing to do. */
    int (*confine)(void *opaque, struct error *err);
    void *confine_opaque;
};

void cmd_device_options_init(struct cmd_device_options *options);

/* The rows of these options, for cmd_options_parse. */
extern const struct cmd_option cmd_device_option_rows[];

/* What one option alone can't tell: combinations. 0 or -EINVAL with a sentence. Call it when all are set. */
int cmd_device_options_check(struct cmd_device_options *options, struct error *err);

/* A file that is made anew, --OPTION=PATH (NULL: none), must not be the image, nor any qcow2 image: 0 or
 * -EINVAL with a sentence. */
int cmd_device_not_image(const struct cmd_device_options *options, const char *option, const char *path,
                         struct error *err);

struct cmd_device {
    struct blk *blk;
    struct virtio_blk *virtio_blk;
    struct loop *queue_loops[VIRTIO_BLK_QUEUES_MAX];
    unsigned queue_loop_count;
    struct cmd_device_options options;
    /* own */
    struct iothread *iothreads[VIRTIO_BLK_QUEUES_MAX];
    int audit_fd;
};

/* Opens the image, makes device and iothreads. NULL with ERR. */
struct cmd_device *cmd_device_start(const struct cmd_device_options *options, struct error *err);

/* Nothing uses the device any more: everything is flushed and closed. 0, or the first error of that with ERR.
 * NULL is fine. */
int cmd_device_stop(struct cmd_device *device, struct error *err);

#endif
