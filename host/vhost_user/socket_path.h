/*
 * A listening Unix socket at a path: made, and removed again if it is still the one that was made.
 */
#ifndef RINGSIDE_VHOST_USER_SOCKET_PATH_H
#define RINGSIDE_VHOST_USER_SOCKET_PATH_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

#include "host/runtime/error.h"

struct socket_path {
    int fd; /* -1: none */
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    dev_t device;
    ino_t inode;
};

/* PATH must not exist, or be a socket that nobody listens on (which is removed). Non-blocking. On error FD
 * is -1. */
int socket_path_listen(struct socket_path *socket, const char *path, struct error *err);

/* Closes, and removes the socket if PATH still names it. FD -1 is fine. */
void socket_path_close(struct socket_path *socket);

#endif
