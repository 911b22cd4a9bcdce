/*
 * Messages on a stream socket: framing and descriptors (vhost-user, "Message Specification").
 *
 * What always holds: a message is header, then exactly header.size bytes of payload; a header whose size does
 * not fit the payload union ends the channel before any of it is read. Descriptors that came with a message
 * are in it or closed; none outlives the call unseen. A channel is used by one coroutine at a time, on one
 * loop.
 */
#ifndef RINGSIDE_VHOST_USER_CHANNEL_H
#define RINGSIDE_VHOST_USER_CHANNEL_H

#include <stdbool.h>

#include "common/vhost_user.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/error.h"
#include "host/runtime/loop.h"

#define VHOST_USER_FDS_MAX 8u /* descriptors in one message */

struct vhost_user_message {
    struct vhost_user_header header;
    union vhost_user_payload payload;
    int fds[VHOST_USER_FDS_MAX]; /* who takes one over writes -1 in its place */
    unsigned nfds;
};

struct channel {
    int fd;
    struct loop *loop;
    struct loop_fd handler;
    struct coroutine *waiter;
    bool cancelled;
};

/* FD is a connected stream socket, made non-blocking here, closed by _close. */
void channel_open(struct channel *channel, struct loop *loop, int fd);
void channel_close(struct channel *channel);

/* The next message. 1: there it is; 0: the peer has closed the connection between two messages; -ECANCELED:
 * channel_cancel; other negative errno with ERR: broken. MESSAGE holds no descriptors unless 1 is returned.
 */
int coroutine_fn channel_co_receive(struct channel *channel, struct vhost_user_message *message,
                                    struct error *err);

/* What the next message asks for, without taking it. 1: *REQUEST is set; 0: none has come by DEADLINE_NS, nor
 * will before channel_co_receive has read or said why not; -ECANCELED. */
int coroutine_fn channel_co_peek(struct channel *channel, uint32_t *request, uint64_t deadline_ns);

/* Sends all of MESSAGE (its descriptors stay the caller's). 0, -ECANCELED, or another negative errno. */
int coroutine_fn channel_co_send(struct channel *channel, const struct vhost_user_message *message);

/* Waits until the socket is readable (or writable). 0, -ECANCELED, or another negative errno. */
int coroutine_fn channel_co_wait(struct channel *channel, bool to_write);

/* Whoever waits in channel_co_wait looks again at what it waits for. Channel's loop. */
void channel_wake(struct channel *channel);

/* Whoever waits in _receive or _send gets -ECANCELED, now and from now on. Channel's loop. */
void channel_cancel(struct channel *channel);

void message_close_fds(struct vhost_user_message *message);

#endif
