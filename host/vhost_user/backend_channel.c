/*
 * The back end's own requests to the front end ("Back-end communication"): that the configuration has
 * changed, and where an I/O virtual address is. No answer is asked for, so the control loop never waits for a
 * front end; while the channel has no room, any number of changes become one message, and each ring has one
 * question.
 */
#include <errno.h>
#include <string.h>
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

static void backend_push(struct vhost_user_connection *c);

static void backend_writable(void *opaque)
{
    struct vhost_user_connection *c = opaque;
    loop_fd_remove(&c->backend_handler);
    c->backend_waiting = false;
    backend_push(c);
}

/* True: sent. False: the channel has no room (it is waited for) or is gone. */
static bool backend_send(struct vhost_user_connection *c, uint32_t request, const void *payload,
                         uint32_t bytes)
{
    struct {
        struct vhost_user_header header;
        struct vhost_user_iotlb iotlb;
    } wire = {.header = {.request = request, .flags = VHOST_USER_VERSION, .size = bytes}};
    size_t all = sizeof wire.header + bytes;

    if (bytes)
        memcpy((char *)&wire + sizeof wire.header, payload, bytes);
    ssize_t n = send(c->backend_fd, &wire, all, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == (ssize_t)all)
        return true;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        c->backend_handler =
            (struct loop_fd){.fd = c->backend_fd, .on_writable = backend_writable, .opaque = c};
        if (loop_fd_add(c->channel.loop, &c->backend_handler) == 0) {
            c->backend_waiting = true;
            return false;
        }
    }
    /* A stream that took half a message can't be used again. */
    log_message("the front end's channel for requests of the device is gone: it is not told about changes");
    backend_drop(c);
    return false;
}

static void backend_push(struct vhost_user_connection *c)
{
    if (c->backend_fd < 0 || c->backend_waiting)
        return;
    if (c->config_change_pending && !connection_suspended(c)) {
        if (!backend_send(c, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, NULL, 0))
            return;
        c->config_change_pending = false;
    }
    for (unsigned i = 0; i < c->options->num_queues; i++) {
        struct vring *r = &c->rings[i];
        struct vhost_user_iotlb miss = {
            .iova = r->miss_iova, .permissions = r->miss_permissions, .type = VHOST_USER_IOTLB_MISS};
        if (!r->miss_pending)
            continue;
        if (!backend_send(c, VHOST_USER_BACKEND_IOTLB_MSG, &miss, sizeof miss))
            return;
        r->miss_pending = false;
    }
}

void connection_set_backend_fd(struct vhost_user_connection *c, int fd)
{
    backend_drop(c);
    c->backend_fd = fd;
    c->config_change_pending = false;
    backend_push(c);
}

void connection_send_config_change(struct vhost_user_connection *c)
{
    if (c->backend_fd < 0 || !(c->protocol_features & NEEDS(VHOST_USER_PROTOCOL_F_CONFIG)))
        return;
    c->config_change_pending = true;
    backend_push(c);
}

void connection_send_held_back(struct vhost_user_connection *c)
{
    backend_push(c);
}

void connection_send_iotlb_miss(struct vhost_user_connection *c, unsigned index, uint64_t iova, bool writable)
{
    struct vring *r = &c->rings[index];
    uint8_t permissions = writable ? VHOST_USER_IOTLB_READ | VHOST_USER_IOTLB_WRITE : VHOST_USER_IOTLB_READ;
    if (r->miss_asked && r->miss_iova == iova && r->miss_permissions == permissions)
        return;
    if (c->backend_fd < 0)
        log_message("ring %u waits for the translation of 0x%llx, and there is no channel to ask for it",
                    index, (unsigned long long)iova);
    r->miss_pending = true;
    r->miss_asked = true;
    r->miss_iova = iova;
    r->miss_permissions = permissions;
    backend_push(c);
}
