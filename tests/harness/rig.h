/*
 * The two halves face to face: libvblk on the hosted platform, and a vhost-user back end, which is our own
 * device in this process or a stranger's at a socket. Every sub-command that drives a disk starts here.
 */
#ifndef RINGSIDE_HARNESS_RIG_H
#define RINGSIDE_HARNESS_RIG_H

#include <pthread.h>
#include <stdbool.h>

#include "guest/driver/vblk.h"
#include "guest/platform/hosted/hosted.h"
#include "guest/platform/hosted/vtr_vhost_user.h"
#include "host/cmd/cmd_cpus.h"
#include "host/runtime/error.h"
#include "tests/harness/own_device.h"
#include "tests/harness/settings.h"

struct rig {
    const struct settings *settings;
    struct own_device *own; /* NULL: a stranger's */
    const char *path;
    struct hosted *hosted;
    struct vblk_platform platform;
    struct vtr_vhost_user *transport;
    bool transport_open;
    void *memory;
    size_t memory_bytes;
    struct vblk *disk;
    struct vblk_info info;

    struct cmd_cpus cpus;

    pthread_t service;
    bool service_started;
    bool service_stop, news; /* atomic */
};

/* ARENA_BYTES of the machine's memory are for the caller's buffers. 0 or a negative errno with ERR set;
 * rig_close is due in any case. */
int rig_open(struct rig *rig, const struct settings *settings, size_t arena_bytes, struct error *err);

/* The same in two steps. Only the device, no driver: for those who write rings and messages themselves. Then
 * the driver, when no other front end is connected. */
int rig_open_device(struct rig *rig, const struct settings *settings, struct error *err);
int rig_drive(struct rig *rig, size_t arena_bytes, struct error *err);

/* Feature bits that the settings say not to accept. */
uint64_t rig_refused(const struct settings *settings);

/* 0, or the first error that our own device met when it was closed. */
int rig_close(struct rig *rig);

/* The calling thread drives QUEUE from now on: it goes to its CPU, and is no part of the device. */
void rig_client_thread(struct rig *rig, unsigned queue);

/* Queue 0's caller calls this now and then: passes on what the transport heard (configuration, reset). */
void rig_attend(struct rig *rig);

/* Polls QUEUE until something completes or waits for an interrupt, as settings->client says. */
unsigned rig_poll(struct rig *rig, unsigned queue);

#endif
