/*
 * The vhost-user back end ("vhost-user" document of QEMU, back-end role) for a virtio_blk device: one front
 * end after another on a socket.
 *
 * The socket and all messages live on the control loop (the one that creates the server); rings live on the
 * iothreads' loops. A message that breaks the protocol ends its connection, nothing else. While a front end
 * is connected the next one waits in the socket's backlog.
 *
 * Creating a server makes SIGPIPE ignored and catches SIGBUS (mapping.h) in the whole process.
 */
#ifndef RINGSIDE_VHOST_USER_SERVER_H
#define RINGSIDE_VHOST_USER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "host/device/virtio_blk.h"
#include "host/runtime/loop.h"

struct vhost_user_server;

struct vhost_user_server_options {
    struct virtio_blk *device;
    unsigned num_queues;       /* of the device */
    unsigned queue_size_max;   /* of the device */
    struct loop **queue_loops; /* queue q is served by queue_loops[q % count] */
    unsigned queue_loop_count;
    bool iommu; /* offer ACCESS_PLATFORM: addresses are translated by the front end (IOTLB) */
    bool once;  /* stop after the first front end has left */
    /* How long a front end that waits for the answer to GET_VRING_BASE may take to tell the translations that
     * the stop needs; 0: a second. */
    uint64_t translation_wait_ns;
    /* Called before the first ring is served and after the last one was given back, to take the image over
     * from another process and hand it on, or to write it out: NULL where nothing has to happen. An error of
     * co_take ends the connection. Coroutines on the control loop. */
    int (*co_take)(void *opaque, struct error *err);
    void (*co_hand_on)(void *opaque);
    /* The error policy parked a request of QUEUE. On the control loop. NULL: it is only logged. */
    void (*parked)(void *opaque, unsigned queue, int error);
    /* The server has ended by itself (once) or after _stop. On the control loop. */
    void (*stopped)(void *opaque);
    void *opaque;
};

/* Listens on PATH (must not exist, or be a socket that nobody listens on), or serves FD: a listening or a
 * connected socket, found out; a connected one implies ONCE. FD belongs to the server from then on, also
 * after an error. On the calling thread's loop. NULL with ERR set. */
struct vhost_user_server *vhost_user_server_listen(const char *path,
                                                   const struct vhost_user_server_options *options,
                                                   struct error *err);
struct vhost_user_server *vhost_user_server_fd(int fd, const struct vhost_user_server_options *options,
                                               struct error *err);

/* Ends the connection: requests in flight are finished, rings stopped; then stopped() is called. Again is
 * fine. Control loop. */
void vhost_user_server_stop(struct vhost_user_server *server);

/* Before start or after stopped(). Removes the socket that _listen made. */
void vhost_user_server_destroy(struct vhost_user_server *server);

struct vhost_user_server_stats {
    uint64_t connections;        /* accepted so far */
    uint64_t broken_connections; /* ended by us, because of what the front end sent */
    uint64_t messages;
    uint64_t translations; /* of these, I/O virtual addresses given or taken back */
    bool connected;
    unsigned rings_running;
    uint64_t features, protocol_features; /* of the present connection */
};

/* Control loop. */
void vhost_user_server_stats(const struct vhost_user_server *server, struct vhost_user_server_stats *stats);

#endif
