/*
 * The life of a connection (connection.h): message after message, then everything is taken back.
 */
#include "host/vhost_user/connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct vhost_user_connection *connection_create(struct vhost_user_server *server,
                                                const struct vhost_user_server_options *options,
                                                struct loop *loop, int fd)
{
    struct vhost_user_connection *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->server = server;
    c->options = options;
    c->backend_fd = -1;
    for (unsigned i = 0; i < VIRTIO_BLK_QUEUES_MAX; i++)
        c->rings[i].kick_fd = c->rings[i].call_fd = c->rings[i].err_fd = -1;
    c->memory = calloc(1, sizeof *c->memory);
    if (!c->memory) {
        free(c);
        return NULL;
    }
    channel_open(&c->channel, loop, fd);
    return c;
}

void connection_destroy(struct vhost_user_connection *c)
{
    connection_set_backend_fd(c, -1);
    rings_close_fds(c);
    memory_table_free(c->memory);
    free(c->iotlb);
    shared_mapping_close(&c->log);
    shared_mapping_close(&c->inflight);
    channel_close(&c->channel);
    free(c);
}

void connection_cancel(struct vhost_user_connection *c)
{
    rings_let_go(c); /* a message's handler may wait for one of their loops */
    channel_cancel(&c->channel);
}

int coroutine_fn connection_co_take(struct vhost_user_connection *c, struct vhost_user_message *message,
                                    struct vhost_user_message *reply, struct error *err)
{
    int ret = channel_co_receive(&c->channel, message, err);

    if (ret <= 0)
        return ret;
    c->stats->messages++;
    c->stats->translations += message->header.request == VHOST_USER_IOTLB_MSG;
    ret = message_co_handle(c, message, reply, err);
    message_close_fds(message);
    if (__atomic_load_n(&c->memory_broken, __ATOMIC_ACQUIRE) && ret >= 0)
        ret = error_set(err, -EFAULT, "a file of guest memory was cut short");
    if (reply->header.flags) {
        int sent = channel_co_send(&c->channel, reply);

        message_close_fds(reply);
        if (sent < 0 && ret >= 0)
            return sent == -EPIPE || sent == -ECONNRESET ? 0 : sent;
    }
    return ret < 0 ? ret : !c->channel.cancelled;
}

bool coroutine_fn connection_co_serve(struct vhost_user_connection *c, struct vhost_user_server_stats *stats)
{
    struct error err = {0};
    int ret;

    c->stats = stats;
    do
        ret = connection_co_take(c, &c->message, &c->reply, &err);
    while (ret > 0);
    if (ret >= 0 && __atomic_load_n(&c->memory_broken, __ATOMIC_ACQUIRE))
        ret = error_set(&err, -EFAULT, "a file of guest memory was cut short");
    if (ret == -ECANCELED)
        ret = __atomic_load_n(&c->memory_broken, __ATOMIC_ACQUIRE)
                  ? error_set(&err, -EFAULT, "a file of guest memory was cut short")
                  : 0;
    if (ret < 0)
        log_message("connection ended: %s", err.text[0] ? err.text : strerror(-ret));
    rings_stop(c);
    virtio_blk_forget_driver(c->options->device);
    return ret >= 0;
}

void connection_ring_broken(struct vhost_user_connection *c, unsigned index)
{
    c->rings[index].broken = true;
    c->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    event_fd_tell(c->rings[index].err_fd);
    if (__atomic_load_n(&c->memory_broken, __ATOMIC_ACQUIRE))
        connection_cancel(c);
    else
        connection_send_config_change(c);
}
