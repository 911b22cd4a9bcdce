/*
 * The back end's own requests to the front end ("Back-end communication"): one kind of them, that the
 * configuration has changed. No answer is asked for, so the control loop never waits for a front end; while
 * the channel has no room, any number of changes become one message.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/vhost_user/connection.h"

static void backend_drop(struct vhost_user_connection *c)
{
    if (c->backend_waiting)
        loop_fd_remove(&c->backend_handler);
    c->backend_waiting = false;
    if (c->backend_fd >= 0)
        close(c->backend_fd);
    c->backend_fd = -1;
}

static void backend_writable(void *opaque)
{
    struct vhost_user_connection *c = opaque;
    loop_fd_remove(&c->backend_handler);
    c->backend_waiting = false;
    if (c->config_change_pending)
        connection_send_config_change(c);
}

void connection_set_backend_fd(struct vhost_user_connection *c, int fd)
{
    backend_drop(c);
    c->backend_fd = fd;
    c->config_change_pending = false;
}

void connection_send_config_change(struct vhost_user_connection *c)
{
    struct vhost_user_header header = {.request = VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
                                       .flags = VHOST_USER_VERSION};

    if (c->backend_fd < 0 || !(c->protocol_features & NEEDS(VHOST_USER_PROTOCOL_F_CONFIG)))
        return;
    c->config_change_pending = true;
    if (c->backend_waiting)
        return;
    ssize_t n = send(c->backend_fd, &header, sizeof header, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == (ssize_t)sizeof header) {
        c->config_change_pending = false;
        return;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        c->backend_handler =
            (struct loop_fd){.fd = c->backend_fd, .on_writable = backend_writable, .opaque = c};
        if (loop_fd_add(c->channel.loop, &c->backend_handler) == 0) {
            c->backend_waiting = true;
            return;
        }
    }
    /* A stream that took half a header can't be used again. */
    log_message("the front end's channel for requests of the device is gone: it is not told about changes");
    backend_drop(c);
}
