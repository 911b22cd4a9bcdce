/*
 * Negotiation, configuration, status: the messages that are about the device as a whole.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "host/vhost_user/connection.h"

static void reply_u64(struct vhost_user_message *reply, uint64_t value)
{
    reply->payload.u64 = value;
    reply->header.size = sizeof reply->payload.u64;
}

static uint64_t connection_features(const struct vhost_user_connection *c)
{
    uint64_t off = SERVER_FEATURES_OFF | (c->options->iommu ? 0 : VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM));
    return (virtio_blk_device_features(c->options->device) & ~off) | SERVER_FEATURES;
}

uint64_t connection_protocol_features(const struct vhost_user_connection *c)
{
    return NEEDS(VHOST_USER_PROTOCOL_F_MQ) | NEEDS(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
           NEEDS(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | NEEDS(VHOST_USER_PROTOCOL_F_CONFIG) |
           NEEDS(VHOST_USER_PROTOCOL_F_RESET_DEVICE) | NEEDS(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
           NEEDS(VHOST_USER_PROTOCOL_F_STATUS) | NEEDS(VHOST_USER_PROTOCOL_F_LOG_SHMFD) |
           NEEDS(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);
}

int coroutine_fn handle_get_features(struct vhost_user_connection *c, struct vhost_user_message *m,
                                     struct vhost_user_message *reply, struct error *err)
{
    reply_u64(reply, connection_features(c));
    return 0;
}

int coroutine_fn handle_set_features(struct vhost_user_connection *c, struct vhost_user_message *m,
                                     struct vhost_user_message *reply, struct error *err)
{
    /* QEMU offers ANY_LAYOUT to legacy drivers of its own accord and passes it on; we do it anyway. */
    uint64_t features = m->payload.u64 & ~VIRTIO_BIT(VIRTIO_F_ANY_LAYOUT);
    uint64_t unknown = features & ~connection_features(c);
    if (unknown)
        return error_set(err, -EINVAL, "SET_FEATURES with bits 0x%" PRIx64 " that were not offered", unknown);

    uint64_t device = features & ~SERVER_FEATURES;
    bool device_changes = !c->features_set || device != (c->features & ~SERVER_FEATURES);
    if (device_changes && rings_run(c))
        return error_set(err, -EBADMSG, "SET_FEATURES changes the device's features while a ring runs");
    if (device_changes) {
        rings_forget_parked(c);
        int ret = virtio_blk_set_features(c->options->device, device);
        if (ret < 0)
            return error_set(err, ret, "features 0x%" PRIx64 " contradict each other", device);
        ret = iotlb_enable(c, device & VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM), err);
        if (ret < 0)
            return ret;
    }
    /* Rings are told about the dirty log when they are handed to the device. */
    if ((features ^ c->features) & VIRTIO_BIT(VHOST_F_LOG_ALL))
        rings_pause(c);
    c->features = features;
    c->features_set = true;
    /* "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled
     * state." No message but SET_VRING_ENABLE disables one. */
    if (!(features & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES))) {
        for (unsigned i = 0; i < c->options->num_queues; i++)
            c->rings[i].enabled = true;
    }
    return rings_update(c, err);
}

int coroutine_fn handle_set_owner(struct vhost_user_connection *c, struct vhost_user_message *m,
                                  struct vhost_user_message *reply, struct error *err)
{
    return 0; /* whoever is connected is the owner */
}

int coroutine_fn handle_reset_owner(struct vhost_user_connection *c, struct vhost_user_message *m,
                                    struct vhost_user_message *reply, struct error *err)
{
    return 0; /* "It is recommended that back-ends either ignore this message, or ..." */
}

int coroutine_fn handle_get_protocol_features(struct vhost_user_connection *c, struct vhost_user_message *m,
                                              struct vhost_user_message *reply, struct error *err)
{
    reply_u64(reply, connection_protocol_features(c));
    return 0;
}

int coroutine_fn handle_set_protocol_features(struct vhost_user_connection *c, struct vhost_user_message *m,
                                              struct vhost_user_message *reply, struct error *err)
{
    uint64_t unknown = m->payload.u64 & ~connection_protocol_features(c);
    if (unknown)
        return error_set(err, -EINVAL, "SET_PROTOCOL_FEATURES with bits 0x%" PRIx64 " that were not offered",
                         unknown);
    c->protocol_features = m->payload.u64;
    return 0;
}

int coroutine_fn handle_get_queue_num(struct vhost_user_connection *c, struct vhost_user_message *m,
                                      struct vhost_user_message *reply, struct error *err)
{
    reply_u64(reply, c->options->num_queues);
    return 0;
}

int coroutine_fn handle_get_config(struct vhost_user_connection *c, struct vhost_user_message *m,
                                   struct vhost_user_message *reply, struct error *err)
{
    const struct vhost_user_config *asked = &m->payload.config;
    struct vhost_user_config *config = &reply->payload.config;
    uint32_t offset = asked->offset, size = asked->size;

    /* "vhost-user back-end uses zero length of payload to indicate an error" */
    if (size > VHOST_USER_CONFIG_BYTES_MAX || offset > VHOST_USER_CONFIG_BYTES_MAX - size) {
        log_message("the front end asks for %u bytes of configuration at %u; there are at most %u", size,
                    offset, VHOST_USER_CONFIG_BYTES_MAX);
        reply->header.size = 0;
        return 0;
    }
    config->offset = offset;
    config->size = size;
    config->flags = asked->flags;
    virtio_blk_config_read(c->options->device, offset, config->region, size);
    if (connection_suspended(c))
        for (uint32_t i = 0; i < size && offset + i < sizeof c->suspended_config; i++)
            config->region[i] = ((const uint8_t *)&c->suspended_config)[offset + i];
    reply->header.size = VHOST_USER_CONFIG_HEADER_BYTES + size;
    return 0;
}

#define CONFIG_FLAG_MIGRATION 1u

int coroutine_fn handle_set_config(struct vhost_user_connection *c, struct vhost_user_message *m,
                                   struct vhost_user_message *reply, struct error *err)
{
    const struct vhost_user_config *config = &m->payload.config;
    if (config->flags > CONFIG_FLAG_MIGRATION)
        return error_set(err, -EBADMSG, "SET_CONFIG with unknown flags 0x%x", config->flags);
    if (config->size == 0 || config->size != m->header.size - VHOST_USER_CONFIG_HEADER_BYTES)
        return error_set(err, -EBADMSG, "SET_CONFIG says %u bytes and brings %u", config->size,
                         m->header.size - VHOST_USER_CONFIG_HEADER_BYTES);
    /* At the end of a migration the source's fields are ours already, or none of the front end's business. */
    if (config->flags & CONFIG_FLAG_MIGRATION)
        return 0;
    if (connection_suspended(c))
        return 0; /* ignored (virtio 3.4.2) */
    if (virtio_blk_config_write(c->options->device, config->offset, config->region, config->size) < 0) {
        log_message("the front end writes %u bytes of configuration at %u, which can't be written",
                    config->size, config->offset);
        return MESSAGE_REFUSED;
    }
    return 0;
}

int coroutine_fn handle_set_backend_req_fd(struct vhost_user_connection *c, struct vhost_user_message *m,
                                           struct vhost_user_message *reply, struct error *err)
{
    struct stat st;
    if (fstat(m->fds[0], &st) < 0 || !S_ISSOCK(st.st_mode))
        return error_set(err, -EINVAL, "SET_BACKEND_REQ_FD: the descriptor is not a socket");
    connection_set_backend_fd(c, m->fds[0]);
    m->fds[0] = -1;
    return 0;
}

static void coroutine_fn device_reset(struct vhost_user_connection *c)
{
    rings_reset(c);
    virtio_blk_reset(c->options->device);
    iotlb_enable(c, false, NULL);
    c->features = 0;
    c->features_set = false;
    c->status = 0;
}

int coroutine_fn handle_reset_device(struct vhost_user_connection *c, struct vhost_user_message *m,
                                     struct vhost_user_message *reply, struct error *err)
{
    device_reset(c);
    return 0;
}

bool connection_suspended(const struct vhost_user_connection *c)
{
    return c->status & VIRTIO_STATUS_SUSPEND;
}

/* 3.4.2: it is us who clear DRIVER_OK when all is at rest, and SUSPEND when all goes on. SUSPEND is ignored
 * where it was not negotiated, or the driver is not done with its set-up. */
static int coroutine_fn status_write(struct vhost_user_connection *c, uint8_t status, struct error *err)
{
    bool was = connection_suspended(c), live = c->status & VIRTIO_STATUS_DRIVER_OK;

    status |= c->status & VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    if (was && (status & VIRTIO_STATUS_DRIVER_OK)) {
        c->status = status & (uint8_t)~VIRTIO_STATUS_SUSPEND;
        connection_send_held_back(c);
        return rings_update(c, err);
    }
    if (was) {
        c->status = status | VIRTIO_STATUS_SUSPEND;
    } else if ((status & VIRTIO_STATUS_SUSPEND) && live && (c->features & VIRTIO_BIT(VIRTIO_F_SUSPEND))) {
        rings_pause(c);
        virtio_blk_config_read(c->options->device, 0, &c->suspended_config, sizeof c->suspended_config);
        c->status = status & (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
    } else {
        c->status = status & (uint8_t)~VIRTIO_STATUS_SUSPEND;
    }
    return 0;
}

int coroutine_fn handle_set_status(struct vhost_user_connection *c, struct vhost_user_message *m,
                                   struct vhost_user_message *reply, struct error *err)
{
    uint64_t status = m->payload.u64;
    if (status > UINT8_MAX)
        return error_set(err, -EINVAL, "SET_STATUS with 0x%" PRIx64 ", more than the 8 bits of a status",
                         status);
    if (status != 0)
        return status_write(c, (uint8_t)status, err);
    device_reset(c); /* virtio 2.4.1 */
    return 0;
}

int coroutine_fn handle_get_status(struct vhost_user_connection *c, struct vhost_user_message *m,
                                   struct vhost_user_message *reply, struct error *err)
{
    reply_u64(reply, c->status);
    return 0;
}
