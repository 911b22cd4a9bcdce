/*
 * Framing (channel.h). The header is read by itself, then the payload: a read never crosses into the next
 * message, so descriptors always belong to the message being read.
 */
#include "host/vhost_user/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "host/runtime/world.h"

/* Room for more than is ever allowed, so that too many can be told from the allowed number. */
#define CONTROL_FDS 16u

void message_close_fds(struct vhost_user_message *message)
{
    for (unsigned i = 0; i < message->nfds; i++) {
        if (message->fds[i] >= 0)
            close(message->fds[i]);
    }
    message->nfds = 0;
}

void channel_open(struct channel *channel, struct loop *loop, int fd)
{
    *channel = (struct channel){.fd = fd, .loop = loop};
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

void channel_close(struct channel *channel)
{
    if (channel->fd >= 0)
        close(channel->fd);
    channel->fd = -1;
}

void channel_wake(struct channel *channel)
{
    struct coroutine *waiter = channel->waiter;
    if (!waiter)
        return;
    channel->waiter = NULL;
    loop_fd_remove(&channel->handler);
    co_wake(waiter);
}

static void channel_ready(void *opaque)
{
    channel_wake(opaque);
}

void channel_cancel(struct channel *channel)
{
    channel->cancelled = true;
    channel_wake(channel);
}

/* The handler is on the loop only while somebody waits: a hang-up would be reported without end otherwise. */
int coroutine_fn channel_co_wait(struct channel *channel, bool to_write)
{
    if (channel->cancelled)
        return -ECANCELED;
    channel->handler = (struct loop_fd){
        .fd = channel->fd,
        .on_readable = to_write ? NULL : channel_ready,
        .on_writable = to_write ? channel_ready : NULL,
        .opaque = channel,
    };
    int ret = loop_fd_add(channel->loop, &channel->handler);
    if (ret < 0)
        return ret;
    channel->waiter = co_self();
    co_yield ();
    return channel->cancelled ? -ECANCELED : 0;
}

/* Moves the descriptors of one recvmsg into MESSAGE; closes those that are too many. */
static int message_take_fds(struct vhost_user_message *message, struct msghdr *msg)
{
    bool too_many = msg->msg_flags & MSG_CTRUNC;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (message->nfds < VHOST_USER_FDS_MAX) {
                message->fds[message->nfds++] = fd;
            } else {
                close(fd);
                too_many = true;
            }
        }
    }
    return too_many ? -E2BIG : 0;
}

/* Exactly BYTES into BUF. 1, 0 at end of file, -errno. */
static int coroutine_fn channel_co_read(struct channel *channel, struct vhost_user_message *message,
                                        void *buf, size_t bytes, struct error *err)
{
    size_t done = 0;
    while (done < bytes) {
        if (channel->cancelled)
            return -ECANCELED;
        union {
            char space[CMSG_SPACE(CONTROL_FDS * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = {.iov_base = (char *)buf + done, .iov_len = bytes - done};
        struct msghdr msg = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(channel->fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            int ret = channel_co_wait(channel, false);
            if (ret < 0)
                return ret == -ECANCELED
                           ? ret
                           : error_set(err, ret, "cannot wait for the socket: %s", strerror(-ret));
            continue;
        }
        if (n < 0 && errno == ECONNRESET)
            n = 0;
        if (n < 0)
            return error_set(err, -errno, "cannot read from the socket: %s", strerror(errno));
        if (message_take_fds(message, &msg) < 0)
            return error_set(err, -E2BIG,
                             "a message came with more than %u descriptors, or more than this process may "
                             "open (raise its limit of open files)",
                             VHOST_USER_FDS_MAX);
        if (n == 0 && done == 0)
            return 0;
        if (n == 0)
            return error_set(err, -EPIPE, "the front end left in the middle of a message");
        done += (size_t)n;
    }
    return 1;
}

int coroutine_fn channel_co_receive(struct channel *channel, struct vhost_user_message *message,
                                    struct error *err)
{
    memset(message, 0, sizeof *message);
    int ret = channel_co_read(channel, message, &message->header, sizeof message->header, err);
    if (ret <= 0)
        goto out;
    if (message->header.size > sizeof message->payload) {
        ret = error_set(err, -EMSGSIZE, "message %u has %u bytes of payload; no message has more than %zu",
                        message->header.request, message->header.size, sizeof message->payload);
        goto out;
    }
    ret = channel_co_read(channel, message, &message->payload, message->header.size, err);
    if (ret == 0)
        ret =
            error_set(err, -EPIPE, "the front end left in the middle of message %u", message->header.request);
out:
    if (ret <= 0)
        message_close_fds(message);
    return ret;
}

int coroutine_fn channel_co_peek(struct channel *channel, uint32_t *request, uint64_t deadline_ns)
{
    struct vhost_user_header header;

    for (;;) {
        if (channel->cancelled)
            return -ECANCELED;
        ssize_t n = recv(channel->fd, &header, sizeof header, MSG_PEEK | MSG_DONTWAIT);
        if (n == (ssize_t)sizeof header) {
            *request = header.request;
            return 1;
        }
        if (n < 0 && errno == EINTR)
            continue;
        /* Half a header would be readable all the time. */
        if (n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK) || world_now_ns() >= deadline_ns)
            return 0;
        struct loop_timer timer = {.fire = channel_ready, .opaque = channel};
        loop_timer_arm(channel->loop, &timer, deadline_ns);
        int ret = channel_co_wait(channel, false);
        loop_timer_cancel(&timer);
        if (ret < 0)
            return ret == -ECANCELED ? ret : 0;
    }
}

int coroutine_fn channel_co_send(struct channel *channel, const struct vhost_user_message *message)
{
    union {
        char space[CMSG_SPACE(VHOST_USER_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct {
        struct vhost_user_header header;
        union vhost_user_payload payload;
    } __attribute__((packed)) wire = {message->header, message->payload};
    size_t bytes = sizeof wire.header + wire.header.size, done = 0;

    while (done < bytes) {
        struct iovec iov = {.iov_base = (char *)&wire + done, .iov_len = bytes - done};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        if (message->nfds > 0 && done == 0) {
            memset(&control, 0, sizeof control);
            msg.msg_control = &control;
            msg.msg_controllen = CMSG_SPACE(message->nfds * sizeof(int));
            struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(message->nfds * sizeof(int));
            memcpy(CMSG_DATA(c), message->fds, message->nfds * sizeof(int));
        }
        ssize_t n = sendmsg(channel->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            int ret = channel_co_wait(channel, true);
            if (ret < 0)
                return ret;
            continue;
        }
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}
