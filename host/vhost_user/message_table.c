/*
 * The table of vhost-user messages: for each its size, its descriptors, when it is allowed and its handler
 * (vhost-user, "Front-end message types"). A message is held against its row before anything else is done
 * with it; what its payload says is checked by the handler.
 */
#include <errno.h>
#include <string.h>

#include "host/vhost_user/connection.h"

#define U64   sizeof(uint64_t)
#define STATE sizeof(struct vhost_user_vring_state)
#define F(f)  NEEDS(VHOST_USER_PROTOCOL_F_##f)

/* clang-format off */
const struct message_rule message_rules[VHOST_USER_REQUEST_MAX] = {
    /*                                  name                     size          fds   flags            needs  handler */
    [VHOST_USER_GET_FEATURES] =         {"GET_FEATURES",          0, 0,        0, 0, MESSAGE_REPLIES, 0, handle_get_features},
    [VHOST_USER_SET_FEATURES] =         {"SET_FEATURES",          U64, U64,    0, 0, 0,               0, handle_set_features},
    [VHOST_USER_SET_OWNER] =            {"SET_OWNER",             0, 0,        0, 0, 0,               0, handle_set_owner},
    [VHOST_USER_RESET_OWNER] =          {"RESET_OWNER",           0, 0,        0, 0, 0,               0, handle_reset_owner},
    [VHOST_USER_SET_MEM_TABLE] =        {"SET_MEM_TABLE",         8, sizeof(struct vhost_user_memory), 0, VHOST_USER_MAX_REGIONS,
                                                                                    0,                0, handle_set_mem_table},
    [VHOST_USER_SET_LOG_BASE] =         {"SET_LOG_BASE",          16, 16,      1, 1, MESSAGE_REPLIES, F(LOG_SHMFD), handle_set_log_base},
    [VHOST_USER_SET_LOG_FD] =           {"SET_LOG_FD",            0, U64,      1, 1, 0,               0, handle_set_log_fd},
    [VHOST_USER_SET_VRING_NUM] =        {"SET_VRING_NUM",         STATE, STATE, 0, 0, MESSAGE_RING | MESSAGE_RING_STOPPED, 0, handle_set_vring_num},
    [VHOST_USER_SET_VRING_ADDR] =       {"SET_VRING_ADDR",        40, 40,      0, 0, MESSAGE_RING,    0, handle_set_vring_addr},
    [VHOST_USER_SET_VRING_BASE] =       {"SET_VRING_BASE",        STATE, STATE, 0, 0, MESSAGE_RING | MESSAGE_RING_STOPPED, 0, handle_set_vring_base},
    [VHOST_USER_GET_VRING_BASE] =       {"GET_VRING_BASE",        STATE, STATE, 0, 0, MESSAGE_RING | MESSAGE_REPLIES, 0, handle_get_vring_base},
    [VHOST_USER_SET_VRING_KICK] =       {"SET_VRING_KICK",        U64, U64,    0, 1, MESSAGE_RING_FD, 0, handle_set_vring_kick},
    [VHOST_USER_SET_VRING_CALL] =       {"SET_VRING_CALL",        U64, U64,    0, 1, MESSAGE_RING_FD, 0, handle_set_vring_call},
    [VHOST_USER_SET_VRING_ERR] =        {"SET_VRING_ERR",         U64, U64,    0, 1, MESSAGE_RING_FD, 0, handle_set_vring_err},
    [VHOST_USER_GET_PROTOCOL_FEATURES] ={"GET_PROTOCOL_FEATURES", 0, 0,        0, 0, MESSAGE_REPLIES, 0, handle_get_protocol_features},
    [VHOST_USER_SET_PROTOCOL_FEATURES] ={"SET_PROTOCOL_FEATURES", U64, U64,    0, 0, 0,               0, handle_set_protocol_features},
    [VHOST_USER_GET_QUEUE_NUM] =        {"GET_QUEUE_NUM",         0, 0,        0, 0, MESSAGE_REPLIES, 0, handle_get_queue_num},
    [VHOST_USER_SET_VRING_ENABLE] =     {"SET_VRING_ENABLE",      STATE, STATE, 0, 0, MESSAGE_RING,   0, handle_set_vring_enable},
    [VHOST_USER_SET_BACKEND_REQ_FD] =   {"SET_BACKEND_REQ_FD",    0, U64,      1, 1, 0,               F(BACKEND_REQ), handle_set_backend_req_fd},
    [VHOST_USER_IOTLB_MSG] =            {"IOTLB_MSG",             32, 32,      0, 0, MESSAGE_REPLIES, 0, handle_iotlb_msg},
    [VHOST_USER_GET_CONFIG] =           {"GET_CONFIG",            12, sizeof(struct vhost_user_config), 0, 0, MESSAGE_REPLIES, F(CONFIG), handle_get_config},
    [VHOST_USER_SET_CONFIG] =           {"SET_CONFIG",            13, sizeof(struct vhost_user_config), 0, 0, 0, F(CONFIG), handle_set_config},
    [VHOST_USER_GET_INFLIGHT_FD] =      {"GET_INFLIGHT_FD",       20, sizeof(struct vhost_user_inflight), 0, 0, MESSAGE_REPLIES, F(INFLIGHT_SHMFD), handle_get_inflight_fd},
    [VHOST_USER_SET_INFLIGHT_FD] =      {"SET_INFLIGHT_FD",       20, sizeof(struct vhost_user_inflight), 1, 1, 0, F(INFLIGHT_SHMFD), handle_set_inflight_fd},
    [VHOST_USER_RESET_DEVICE] =         {"RESET_DEVICE",          0, 0,        0, 0, 0,               F(RESET_DEVICE), handle_reset_device},
    [VHOST_USER_GET_MAX_MEM_SLOTS] =    {"GET_MAX_MEM_SLOTS",     0, 0,        0, 0, MESSAGE_REPLIES, F(CONFIGURE_MEM_SLOTS), handle_get_max_mem_slots},
    [VHOST_USER_ADD_MEM_REG] =          {"ADD_MEM_REG",           40, 40,      1, 1, 0,               F(CONFIGURE_MEM_SLOTS), handle_add_mem_reg},
    /* "the back-end MAY accept messages with one file descriptor" */
    [VHOST_USER_REM_MEM_REG] =          {"REM_MEM_REG",           40, 40,      0, 1, 0,               F(CONFIGURE_MEM_SLOTS), handle_rem_mem_reg},
    [VHOST_USER_SET_STATUS] =           {"SET_STATUS",            U64, U64,    0, 0, 0,               F(STATUS), handle_set_status},
    [VHOST_USER_GET_STATUS] =           {"GET_STATUS",            0, 0,        0, 0, MESSAGE_REPLIES, F(STATUS), handle_get_status},
};
/* clang-format on */

static int out_of_range(const char *name, const char *what, unsigned n, unsigned min, unsigned max,
                        struct error *err)
{
    if (min == max)
        return error_set(err, -EBADMSG, "%s came with %u %s, not %u", name, n, what, min);
    return error_set(err, -EBADMSG, "%s came with %u %s, not %u to %u", name, n, what, min, max);
}

static int rule_check(const struct vhost_user_connection *connection, const struct message_rule *rule,
                      const struct vhost_user_message *message, struct error *err)
{
    const struct vhost_user_header *header = &message->header;
    unsigned num_queues = connection->options->num_queues;
    unsigned fds_min = rule->fds_min, fds_max = rule->fds_max;
    uint64_t index = 0;

    if (header->size < rule->size_min || header->size > rule->size_max)
        return out_of_range(rule->name, "bytes of payload", header->size, rule->size_min, rule->size_max,
                            err);
    if ((connection->protocol_features & rule->needs) != rule->needs)
        return error_set(err, -EBADMSG, "%s came without its protocol feature being negotiated", rule->name);
    if (rule->flags & MESSAGE_RING)
        index = message->payload.state.index;
    if (rule->flags & MESSAGE_RING_FD) {
        uint64_t word = message->payload.u64;
        if (word & ~(uint64_t)(VHOST_USER_VRING_IDX_MASK | VHOST_USER_VRING_NOFD_MASK))
            return error_set(err, -EBADMSG, "%s has unknown bits in 0x%llx", rule->name,
                             (unsigned long long)word);
        index = word & VHOST_USER_VRING_IDX_MASK;
        fds_min = fds_max = word & VHOST_USER_VRING_NOFD_MASK ? 0 : 1;
    }
    if (message->nfds < fds_min || message->nfds > fds_max)
        return out_of_range(rule->name, "descriptors", message->nfds, fds_min, fds_max, err);
    if (index >= num_queues)
        return error_set(err, -EBADMSG, "%s names ring %llu of a device with %u", rule->name,
                         (unsigned long long)index, num_queues);
    if ((rule->flags & MESSAGE_RING_STOPPED) && connection->rings[index].runs)
        return error_set(err, -EBADMSG, "%s for ring %u while it runs", rule->name, (unsigned)index);
    return 0;
}

int coroutine_fn message_co_handle(struct vhost_user_connection *connection,
                                   struct vhost_user_message *message, struct vhost_user_message *reply,
                                   struct error *err)
{
    const struct vhost_user_header *header = &message->header;
    const struct message_rule *rule =
        header->request < VHOST_USER_REQUEST_MAX ? &message_rules[header->request] : NULL;
    bool need_reply = (header->flags & VHOST_USER_NEED_REPLY_MASK) &&
                      (connection->protocol_features & NEEDS(VHOST_USER_PROTOCOL_F_REPLY_ACK));
    int ret;

    memset(reply, 0, sizeof *reply);
    if ((header->flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION)
        return error_set(err, -EBADMSG, "message %u has version %u, not 1", header->request,
                         header->flags & VHOST_USER_VERSION_MASK);
    if (header->flags & VHOST_USER_REPLY_MASK)
        return error_set(err, -EBADMSG, "message %u is marked as a reply; nothing was asked",
                         header->request);

    if (!rule || !rule->name) {
        ret = need_reply
                  ? MESSAGE_REFUSED
                  : error_set(err, -EBADMSG, "message %u is not one that this device knows", header->request);
    } else {
        ret = rule_check(connection, rule, message, err);
        if (ret == 0)
            ret = rule->handle(connection, message, reply, err);
    }

    bool replies = rule && rule->name && (rule->flags & MESSAGE_REPLIES);
    if (ret == 0 && !replies && !need_reply)
        return 0;
    if (ret != 0 || !replies) {
        if (!need_reply)
            return ret < 0 ? ret : 0;
        /* "The payload should be set to zero on success or non-zero on failure" */
        message_close_fds(reply);
        reply->payload.u64 = ret != 0;
        reply->header.size = sizeof reply->payload.u64;
    }
    reply->header.request = header->request;
    reply->header.flags = VHOST_USER_VERSION | VHOST_USER_REPLY_MASK;
    return ret < 0 ? ret : 1;
}
