/*
 * The front end's end of a vhost-user socket: messages out, replies in (QEMU's "Vhost-user Protocol").
 * Knows the wire and the three rules of replying (a message that has a reply, REPLY_ACK, and nothing), not
 * what a device is: that is vtr_vhost_user.c. Used also by tests that send what they should not.
 *
 * Threads: one lock around each exchange, so any.
 */
#ifndef RINGSIDE_VHOST_USER_FRONT_H
#define RINGSIDE_VHOST_USER_FRONT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/vhost_user.h"

#define VHOST_USER_FRONT_FDS_MAX 8u

struct vhost_user_front {
    int fd;
    uint64_t protocol_features; /* in force: says whether a message may ask for an acknowledgement */
    unsigned timeout_ms;        /* for one message to leave or arrive */
    pthread_mutex_t lock;
    char error[192]; /* the last thing that went wrong */
};

/* FD may be -1 until one is set by vhost_user_front_connect. */
void vhost_user_front_init(struct vhost_user_front *front, int fd, unsigned timeout_ms);
void vhost_user_front_close(struct vhost_user_front *front);

/* Connects to the socket at PATH, trying again until TIMEOUT_MS are over. 0 or a negative errno. */
int vhost_user_front_connect(struct vhost_user_front *front, const char *path, unsigned timeout_ms);

/* One message, no more. FLAGS are added to the version. 0 or a negative errno (-EPIPE: the peer has gone). */
int vhost_user_front_send(struct vhost_user_front *front, uint32_t request, uint32_t flags,
                          const void *payload, uint32_t bytes, const int *fds, unsigned nfds);

/* One message in: at most MAX bytes of payload (more is an error), at most one descriptor (the caller's then;
 * *FD is -1 if there is none; FD may be NULL). Payload bytes, or a negative errno. */
int vhost_user_front_receive(struct vhost_user_front *front, struct vhost_user_header *header, void *payload,
                             uint32_t max, int *fd);

/* A message that is answered: the reply must be to REQUEST. Payload bytes of the reply, or a negative errno.
 */
int vhost_user_front_call(struct vhost_user_front *front, uint32_t request, const void *payload,
                          uint32_t bytes, void *reply, uint32_t max, int *fd);

/* A message that is not answered by itself: asks for an acknowledgement if REPLY_ACK is in force and returns
 * what it says (0, or -EIO for any other value). */
int vhost_user_front_set(struct vhost_user_front *front, uint32_t request, const void *payload,
                         uint32_t bytes, const int *fds, unsigned nfds);

/* Shorthands for a payload of one number. */
int vhost_user_front_get_u64(struct vhost_user_front *front, uint32_t request, uint64_t *value);
int vhost_user_front_set_u64(struct vhost_user_front *front, uint32_t request, uint64_t value, int fd);

#endif
