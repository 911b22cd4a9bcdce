/*
 * The vhost-user transport of libvblk: a back end at the other end of a socket is the device.
 *
 * vhost-user has no registers. Status bits live here (and in the back end too where the STATUS protocol
 * feature is in force); features, configuration, memory and rings become messages. Rings are handed over and
 * enabled when the driver sets DRIVER_OK and taken back when it resets, so that the back end never looks at a
 * ring before that (virtio 1.4, 2.1.2).
 *
 * With `reconnect` a back end that goes away may come back: vtr_vhost_user_service connects again and hands
 * over the same memory, rings and inflight region, and the driver does not notice.
 *
 * Threads: created, serviced and destroyed on one; the driver's calls may come from any.
 */
#ifndef RINGSIDE_VTR_VHOST_USER_H
#define RINGSIDE_VTR_VHOST_USER_H

#include <stdbool.h>
#include <stdint.h>

#include "guest/driver/vblk_transport.h"
#include "guest/platform/hosted/hosted.h"
#include "guest/platform/hosted/vhost_user_front.h"

struct vtr_vhost_user_options {
    const char *path;         /* the back end's socket, */
    int fd;                   /* or a connected one; belongs to the transport then. -1 with PATH */
    unsigned connect_ms;      /* how long to try to connect; 0: 5000 */
    unsigned message_ms;      /* how long one message may take; 0: 10000 */
    unsigned queue_size_max;  /* 0: 256 */
    unsigned max_queues;      /* 0: as many as the back end has */
    uint64_t refuse_protocol; /* protocol features not to negotiate */
    bool add_mem_regions;     /* region by region (ADD_MEM_REG) rather than by SET_MEM_TABLE, where offered */
    bool inflight;            /* ask for an inflight region, where offered */
    bool reconnect;           /* needs PATH */
};

struct vtr_vhost_user_queue {
    bool set_up, started;
    struct vtr_queue setup;
    int kick_fd, call_fd, err_fd;
};

struct vtr_vhost_user {
    struct vtr vtr; /* first: what the driver holds */
    struct vtr_vhost_user_options options;
    struct hosted *hosted;
    struct vhost_user_front front;
    pthread_mutex_t lock; /* of what follows, and of the sequence of messages */

    uint64_t device_features;    /* offered, without the transport's own bits */
    uint64_t transport_features; /* the transport's own bits among them */
    uint64_t driver_features;
    uint64_t protocol_features;
    uint8_t status;
    bool gone; /* the connection has ended */
    bool live; /* rings are handed over */
    unsigned num_queues;

    uint8_t config[256];
    unsigned config_bytes;
    uint32_t config_generation;
    bool config_stale;   /* to be read again before the next look at it */
    bool config_pending; /* an interrupt that the driver has not taken yet */

    int backend_fd; /* our end of the back end's own channel, or -1 */
    int inflight_fd;
    struct vhost_user_inflight inflight;

    uint64_t reconnects;
    struct vtr_vhost_user_queue queues[HOSTED_QUEUES_MAX];
};

/* Connects and negotiates the protocol; the device stays untouched. 0 or a negative errno with a sentence in
 * transport->front.error. vtr_vhost_user_close is due in any case. */
int vtr_vhost_user_open(struct vtr_vhost_user *transport, struct hosted *hosted,
                        const struct vtr_vhost_user_options *options);
void vtr_vhost_user_close(struct vtr_vhost_user *transport);

/* Waits up to TIMEOUT_MS for news from the back end and deals with them: a changed configuration, a broken
 * ring, the end of the connection (and with `reconnect` its new beginning). Returns true if the driver should
 * look (vblk_config_changed). */
bool vtr_vhost_user_service(struct vtr_vhost_user *transport, int timeout_ms);

#endif
