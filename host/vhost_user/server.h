/*
 * The vhost-user back end ("vhost-user" document of QEMU, back-end role) for a virtio_blk device: one front
 * end after another on a socket.
 *
 * The socket and all messages live on the control loop (the one that creates the server); rings live on the
 * iothreads' loops. A message that breaks the protocol ends its connection, nothing else.
 */
#ifndef RINGSIDE_VHOST_USER_SERVER_H
#define RINGSIDE_VHOST_USER_SERVER_H

#include <stdbool.h>

#include "host/device/virtio_blk.h"
#include "host/runtime/loop.h"

struct vhost_user_server;

struct vhost_user_server_options {
    struct virtio_blk *device;
    struct loop **queue_loops; /* queue q is served by queue_loops[q % count] */
    unsigned queue_loop_count;
    bool once;                            /* stop after the first front end has left */
    void (*stopped)(void *opaque);        /* the server has ended by itself (once) or after _stop */
    void *opaque;
};

/* Listens on PATH (must not exist, or be a stale socket), or serves FD: a listening or a connected socket,
 * found out. On the calling thread's loop. NULL with ERR set. */
struct vhost_user_server *vhost_user_server_listen(const char *path, const struct vhost_user_server_options *options,
                                                   struct error *err);
struct vhost_user_server *vhost_user_server_fd(int fd, const struct vhost_user_server_options *options,
                                               struct error *err);

/* Ends the connection: requests in flight are finished, rings stopped; then calls stopped(). Control loop. */
void vhost_user_server_stop(struct vhost_user_server *server);

/* After stopped(). Removes the socket that _listen made. */
void vhost_user_server_destroy(struct vhost_user_server *server);

#endif
