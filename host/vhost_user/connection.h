/*
 * One front end's connection: its coroutine, its rings, what was negotiated. Private to host/vhost_user.
 *
 * The connection lives in one coroutine on the control loop, which takes one message after another; a handler
 * may yield (while a ring drains, say), and no other message is looked at meanwhile.
 *
 * Rings ("Ring states"): stopped or started, disabled or enabled, tracked apart. A ring is served ("runs")
 * when it is started, enabled, has a size and addresses, and features were set; rings_update looks at that
 * after every message that could have changed it, and starting to serve always begins with a look at the
 * ring.
 *
 * SET_VRING_KICK starts a ring: being handed the descriptor counts as the first kick. The text says that a
 * ring starts when the descriptor becomes readable, but a back end that takes over (restart, migration) can't
 * know whether its predecessor has read the kick for what lies in the ring already.
 */
#ifndef RINGSIDE_VHOST_USER_CONNECTION_H
#define RINGSIDE_VHOST_USER_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "host/vhost_user/channel.h"
#include "host/vhost_user/mapping.h"
#include "host/vhost_user/server.h"

/* What the server adds to the device's own feature bits, and what it can't carry */
/* (A kick is a write to an eventfd, and carries no data.) */
#define SERVER_FEATURES \
    (VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES) | VIRTIO_BIT(VHOST_F_LOG_ALL) | VIRTIO_BIT(VIRTIO_F_SUSPEND))
#define SERVER_FEATURES_OFF VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA)

struct vring {
    bool started, enabled;
    bool runs;
    bool broken; /* the device gave it up: not served again before it is set up anew */
    bool paused; /* and call_fd is still the one that was told of all that was used */
    bool has_addr;
    uint32_t size; /* 0: not set */
    uint32_t base; /* as in SET_VRING_BASE: 16 bits for a split ring, twice 16 for a packed one */
    /* The front end could know where the ring stood, and has set BASE since: that holds, not what the
     * inflight region says of the ring before (a queue that was reset begins at its start, virtio 2.6.1.1.1).
     */
    bool base_told, base_set_anew;
    struct vhost_user_vring_addr addr;
    int kick_fd, call_fd, err_fd; /* -1: none */
    /* A translation that was asked for, or has to be when the channel has room. A question is not asked
     * twice: answered late, it would be about another mapping at the same address. */
    bool miss_pending, miss_asked; /* to be sent; sent and not answered */
    uint64_t miss_iova;
    uint8_t miss_permissions;
    /* An inflight region of our own, for requests that the error policy has parked when the ring is paused;
     * NULL: none, or there is the front end's */
    void *parking;
};

struct vhost_user_connection {
    struct vhost_user_server *server;
    const struct vhost_user_server_options *options; /* the server's */
    struct channel channel;
    struct vhost_user_message message, reply; /* the one being handled, and its answer */

    struct vhost_user_server_stats *stats;

    uint64_t features, protocol_features;
    bool features_set;
    bool taken; /* co_take was called, and co_hand_on not since */
    uint8_t status;
    struct virtio_blk_config
        suspended_config;   /* as it was then; meanwhile it does not change (virtio 3.4.2) */
    uint32_t memory_broken; /* set by sigbus_guard: a mapped file was cut short */

    struct guest_memory *memory;
    struct guest_memory *iotlb; /* what is known of I/O virtual addresses; NULL unless ACCESS_PLATFORM */
    struct shared_mapping log;
    struct shared_mapping inflight;
    uint16_t inflight_queues, inflight_queue_size;

    int backend_fd; /* -1, or the channel for our own requests */
    struct loop_fd backend_handler;
    bool backend_waiting;       /* for room in it */
    bool config_change_pending; /* a CONFIG_CHANGE_MSG has to be sent */

    struct vring rings[VIRTIO_BLK_QUEUES_MAX];
};

/* Serves the front end at FD, which it takes over, until it leaves or breaks the rules; everything is undone
 * on return. STATS counts its messages. True: it left or connection_cancel was called; false: it was thrown
 * out. */
struct vhost_user_connection *connection_create(struct vhost_user_server *server,
                                                const struct vhost_user_server_options *options,
                                                struct loop *loop, int fd);
bool coroutine_fn connection_co_serve(struct vhost_user_connection *connection,
                                      struct vhost_user_server_stats *stats);
void connection_destroy(struct vhost_user_connection *connection);
/* Receives a message into MESSAGE, does what it asks for, and sends what it makes of REPLY. 1: go on; 0: the
 * front end has left; negative with ERR: the connection has to end. */
int coroutine_fn connection_co_take(struct vhost_user_connection *connection,
                                    struct vhost_user_message *message, struct vhost_user_message *reply,
                                    struct error *err);
void connection_cancel(struct vhost_user_connection *connection);

/* features.c. No ring runs, nothing is told to the driver (virtio 3.4). */
bool connection_suspended(const struct vhost_user_connection *connection);

/* backend_channel.c: "the configuration has changed", to the front end. Control loop. */
void connection_send_config_change(struct vhost_user_connection *connection);
/* What was held back while the device was suspended. */
void connection_send_held_back(struct vhost_user_connection *connection);
/* "Where is IOVA?", for ring INDEX. Control loop. */
void connection_send_iotlb_miss(struct vhost_user_connection *connection, unsigned index, uint64_t iova,
                                bool writable);

/* iotlb.c. Does the negotiated set of features want translation? Then there is a table. 0 or -ENOMEM. */
int iotlb_enable(struct vhost_user_connection *connection, bool on, struct error *err);
/* Rings are paused: nothing is known any more. */
void iotlb_forget(struct vhost_user_connection *connection);
/* The place of a ring's part. NULL with *MISSING: a translation has to be asked for; else there is none. */
void *iotlb_ring_part(const struct vhost_user_connection *connection, uint64_t iova, uint64_t bytes,
                      bool writable, uint64_t *missing);
void connection_set_backend_fd(struct vhost_user_connection *connection, int fd);

/* The device gave up ring INDEX. Control loop. */
void connection_ring_broken(struct vhost_user_connection *connection, unsigned index);

/* rings.c. Coroutine on the control loop; errors come with a sentence and end the connection. */
int coroutine_fn rings_update(struct vhost_user_connection *connection, struct error *err);
/* No ring runs nor will: the image may go elsewhere. */
void coroutine_fn rings_hand_on(struct vhost_user_connection *connection);
/* Takes every ring back for a while: memory, log and the like may be changed until rings_update. What is in
 * flight is finished, but for requests that the error policy parks: they are taken up again. */
void coroutine_fn rings_pause(struct vhost_user_connection *connection);
void coroutine_fn ring_pause(struct vhost_user_connection *connection, unsigned index);
/* No ring runs, and what they had parked is of no use any more. */
void rings_forget_parked(struct vhost_user_connection *connection);
bool rings_run(const struct vhost_user_connection *connection); /* any of them? */
/* Back to how a connection begins, but for positions, call and error descriptors. */
void coroutine_fn rings_reset(struct vhost_user_connection *connection);
/* At the connection's end. */
void coroutine_fn rings_stop(struct vhost_user_connection *connection);
/* No ring's loop is held up by what the front end did to a call descriptor. */
void rings_let_go(struct vhost_user_connection *connection);
/* Writes to an eventfd or pipe of the front end's, and never waits for it. -1 is fine. */
void event_fd_tell(int fd);
void rings_close_fds(struct vhost_user_connection *connection);

/* The table of messages (message_table.c) */
enum message_flags {
    MESSAGE_REPLIES = 1,     /* has an answer of its own */
    MESSAGE_RING = 2,        /* payload begins with a ring's index: bounded before the handler sees it */
    MESSAGE_RING_FD = 4,     /* u64: ring index, flag whether a descriptor came along: both checked */
    MESSAGE_RING_STOPPED = 8 /* only while that ring is not served */
};

#define NEEDS(feature) ((uint64_t)1 << (feature)) /* protocol feature that must have been negotiated */

struct message_rule {
    const char *name; /* NULL: no such message here */
    uint16_t size_min, size_max;
    uint8_t fds_min, fds_max;
    uint8_t flags;
    uint64_t needs;
    /* 0; MESSAGE_REFUSED; or a negative errno with a sentence, which ends the connection. Coroutine. */
    int (*handle)(struct vhost_user_connection *connection, struct vhost_user_message *message,
                  struct vhost_user_message *reply, struct error *err);
};

#define MESSAGE_REFUSED 1 /* the front end is told so if it asked for an answer; the connection goes on */

extern const struct message_rule message_rules[VHOST_USER_REQUEST_MAX];

/* Checks MESSAGE against the table, calls its handler, makes REPLY. 1: REPLY is to be sent; 0: nothing is;
 * negative: the connection ends (REPLY may have to be sent first: its header.flags are not 0). */
int coroutine_fn message_co_handle(struct vhost_user_connection *connection,
                                   struct vhost_user_message *message, struct vhost_user_message *reply,
                                   struct error *err);

uint64_t connection_protocol_features(const struct vhost_user_connection *connection); /* what is offered */

/* The handlers: one for each row of the table */
typedef int coroutine_fn message_handler(struct vhost_user_connection *connection,
                                         struct vhost_user_message *message, struct vhost_user_message *reply,
                                         struct error *err);
message_handler handle_get_features, handle_set_features, handle_set_owner, handle_reset_owner,
    handle_get_protocol_features, handle_set_protocol_features, handle_get_queue_num, handle_get_config,
    handle_set_config, handle_set_backend_req_fd, handle_reset_device, handle_set_status, handle_get_status;
message_handler handle_set_mem_table, handle_get_max_mem_slots, handle_add_mem_reg, handle_rem_mem_reg,
    handle_iotlb_msg, handle_set_log_base, handle_set_log_fd, handle_get_inflight_fd, handle_set_inflight_fd;
message_handler handle_set_vring_num, handle_set_vring_addr, handle_set_vring_base, handle_get_vring_base,
    handle_set_vring_kick, handle_set_vring_call, handle_set_vring_err, handle_set_vring_enable;

#endif
