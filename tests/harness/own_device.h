/*
 * Our own device on threads of this process: block back end, virtio_blk and vhost-user server, exactly as
 * ringside-blk puts them together, behind a socket in a temporary directory.
 */
#ifndef RINGSIDE_HARNESS_OWN_DEVICE_H
#define RINGSIDE_HARNESS_OWN_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "host/runtime/error.h"
#include "tests/harness/settings.h"

struct own_device;

/* Is NAME (LENGTH bytes) an option of the device, and does it take a value? */
bool own_device_has_option(const char *name, size_t length, bool *wants_value);
void own_device_help(FILE *out);
/* "NAME=VALUE" or "NAME": 0, or -EINVAL with a sentence. */
int own_device_check_option(const char *text, struct error *err);

/* Starts it with settings->device_options and as many queues as the driver wants. NULL with ERR set. */
struct own_device *own_device_start(const struct settings *settings, struct error *err);

/* The socket where it serves one front end after another. */
const char *own_device_path(const struct own_device *device);

struct virtio_blk *own_device_virtio_blk(struct own_device *device);
struct blk *own_device_blk(struct own_device *device);

/* Finishes what is in flight, closes the image. 0 or the first error of closing it. */
int own_device_stop(struct own_device *device);

#endif
