/*
 * Messages of a vhost-user front end; see vhost_user_front.h. Everything that the peer sends is bounded
 * before it is read, and every wait has an end: a back end that hangs costs the caller timeout_ms, not its
 * life.
 */
#include "guest/platform/hosted/vhost_user_front.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int front_error(struct vhost_user_front *front, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int front_error(struct vhost_user_front *front, int code, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(front->error, sizeof(front->error), format, arguments);
    va_end(arguments);
    return code;
}

void vhost_user_front_init(struct vhost_user_front *front, int fd, unsigned timeout_ms)
{
    pthread_mutexattr_t recursive;

    memset(front, 0, sizeof(*front));
    front->fd = fd;
    front->timeout_ms = timeout_ms ? timeout_ms : 10000;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&front->lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
}

void vhost_user_front_close(struct vhost_user_front *front)
{
    if (front->fd >= 0)
        close(front->fd);
    front->fd = -1;
}

int vhost_user_front_connect(struct vhost_user_front *front, const char *path, unsigned timeout_ms)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t end = now_ms() + timeout_ms;
    struct stat st;
    int fd, code;

    if (strlen(path) >= sizeof(address.sun_path))
        return front_error(front, -ENAMETOOLONG, "%s: the path of a socket may have 107 bytes", path);
    strcpy(address.sun_path, path);
    for (;;) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
            return front_error(front, -errno, "socket: %s", strerror(errno));
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
            break;
        code = -errno;
        close(fd);
        /* The kernel says "connection refused" of these as well, and no waiting helps. */
        if (code == -ECONNREFUSED && stat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
            return front_error(front, -ENOTSOCK, "%s: is not a socket", path);
        if (now_ms() >= end || (code != -ECONNREFUSED && code != -ENOENT && code != -EAGAIN))
            return front_error(front, code, "%s: cannot connect: %s", path, strerror(-code));
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    vhost_user_front_close(front);
    front->fd = fd;
    return 0;
}

static int front_wait(struct vhost_user_front *front, short events, uint64_t end)
{
    uint64_t now = now_ms();
    struct pollfd wait = {.fd = front->fd, .events = events};
    int n;

    if (front->fd < 0)
        return -EPIPE;
    n = poll(&wait, 1, now < end ? (int)(end - now) : 0);
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    return n ? 0
             : front_error(front, -ETIMEDOUT, "the back end did not answer within %u ms", front->timeout_ms);
}

static int send_all(struct vhost_user_front *front, const void *data, size_t bytes, const int *fds,
                    unsigned nfds)
{
    uint64_t end = now_ms() + front->timeout_ms;
    char control[CMSG_SPACE(sizeof(int) * VHOST_USER_FRONT_FDS_MAX)] = {0};
    const uint8_t *at = data;

    while (bytes) {
        struct iovec iov = {.iov_base = (void *)(uintptr_t)at, .iov_len = bytes};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n;

        if (nfds) {
            struct cmsghdr *cmsg;

            message.msg_control = control;
            message.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
            cmsg = CMSG_FIRSTHDR(&message);
            cmsg->cmsg_level = SOL_SOCKET;
            cmsg->cmsg_type = SCM_RIGHTS;
            cmsg->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
            memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * nfds);
        }
        n = sendmsg(front->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            int code = front_wait(front, POLLOUT, end);

            if (code < 0)
                return code;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return front_error(front, errno == ECONNRESET ? -EPIPE : -errno,
                               "cannot send to the back end: %s", strerror(errno));
        nfds = 0;
        at += n;
        bytes -= (size_t)n;
    }
    return 0;
}

int vhost_user_front_send(struct vhost_user_front *front, uint32_t request, uint32_t flags,
                          const void *payload, uint32_t bytes, const int *fds, unsigned nfds)
{
    struct {
        struct vhost_user_header header;
        uint8_t payload[sizeof(union vhost_user_payload)];
    } __attribute__((packed)) message;
    int code;

    if (bytes > sizeof(message.payload) || nfds > VHOST_USER_FRONT_FDS_MAX)
        return -EMSGSIZE;
    if (front->fd < 0)
        return -EPIPE;
    message.header = (struct vhost_user_header){request, VHOST_USER_VERSION | flags, bytes};
    if (bytes)
        memcpy(message.payload, payload, bytes);
    pthread_mutex_lock(&front->lock);
    code = send_all(front, &message, sizeof(message.header) + bytes, fds, nfds);
    pthread_mutex_unlock(&front->lock);
    return code;
}

/* Keeps the first descriptor that comes along, closes all others. */
static void take_fds(struct msghdr *message, int *fd)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(message); cmsg; cmsg = CMSG_NXTHDR(message, cmsg)) {
        size_t n;

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int got;

            memcpy(&got, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(got));
            if (fd && *fd < 0)
                *fd = got;
            else
                close(got);
        }
    }
}

static int receive_all(struct vhost_user_front *front, void *data, size_t bytes, int *fd)
{
    uint64_t end = now_ms() + front->timeout_ms;
    uint8_t *at = data;

    while (bytes) {
        char control[CMSG_SPACE(sizeof(int) * VHOST_USER_FRONT_FDS_MAX)];
        struct iovec iov = {.iov_base = at, .iov_len = bytes};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
        ssize_t n = recvmsg(front->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        if (n < 0 && errno == EAGAIN) {
            int code = front_wait(front, POLLIN, end);

            if (code < 0)
                return code;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return front_error(front, -EPIPE, "the back end closed the connection");
        take_fds(&message, fd);
        at += n;
        bytes -= (size_t)n;
    }
    return 0;
}

int vhost_user_front_receive(struct vhost_user_front *front, struct vhost_user_header *header, void *payload,
                             uint32_t max, int *fd)
{
    int code;

    if (fd)
        *fd = -1;
    if (front->fd < 0)
        return -EPIPE;
    pthread_mutex_lock(&front->lock);
    code = receive_all(front, header, sizeof(*header), fd);
    if (code == 0 && header->size > max)
        code =
            front_error(front, -EMSGSIZE, "a message %u of the back end has %u bytes where %u were expected",
                        header->request, header->size, max);
    if (code == 0)
        code = receive_all(front, payload, header->size, fd);
    pthread_mutex_unlock(&front->lock);
    if (code < 0 && fd && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    return code < 0 ? code : (int)header->size;
}

int vhost_user_front_call(struct vhost_user_front *front, uint32_t request, const void *payload,
                          uint32_t bytes, void *reply, uint32_t max, int *fd)
{
    struct vhost_user_header header = {0};
    int code;

    pthread_mutex_lock(&front->lock);
    code = vhost_user_front_send(front, request, 0, payload, bytes, NULL, 0);
    if (code == 0)
        code = vhost_user_front_receive(front, &header, reply, max, fd);
    if (code >= 0 && (header.request != request || !(header.flags & VHOST_USER_REPLY_MASK) ||
                      (header.flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION)) {
        code = front_error(front, -EPROTO, "the back end answered message %u with message %u, flags %#x",
                           request, header.request, header.flags);
        if (fd && *fd >= 0) {
            close(*fd);
            *fd = -1;
        }
    }
    pthread_mutex_unlock(&front->lock);
    return code;
}

int vhost_user_front_set(struct vhost_user_front *front, uint32_t request, const void *payload,
                         uint32_t bytes, const int *fds, unsigned nfds)
{
    bool ack = front->protocol_features & (1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK);
    struct vhost_user_header header = {0};
    uint64_t result = 0;
    int code;

    pthread_mutex_lock(&front->lock);
    code = vhost_user_front_send(front, request, ack ? VHOST_USER_NEED_REPLY_MASK : 0, payload, bytes, fds,
                                 nfds);
    if (code == 0 && ack) {
        code = vhost_user_front_receive(front, &header, &result, sizeof(result), NULL);
        if (code >= 0 && (header.request != request || code != (int)sizeof(result)))
            code = front_error(front, -EPROTO,
                               "the back end acknowledged message %u with message %u of %d bytes", request,
                               header.request, code);
        else if (code >= 0 && result)
            code = front_error(front, -EIO, "the back end refused message %u", request);
        else if (code > 0)
            code = 0;
    }
    pthread_mutex_unlock(&front->lock);
    return code;
}

int vhost_user_front_get_u64(struct vhost_user_front *front, uint32_t request, uint64_t *value)
{
    uint64_t reply = 0;
    int code = vhost_user_front_call(front, request, NULL, 0, &reply, sizeof(reply), NULL);

    if (code < 0)
        return code;
    if (code != (int)sizeof(reply))
        return front_error(front, -EPROTO, "the reply to message %u has %d bytes, not 8", request, code);
    *value = reply;
    return 0;
}

int vhost_user_front_set_u64(struct vhost_user_front *front, uint32_t request, uint64_t value, int fd)
{
    return vhost_user_front_set(front, request, &value, sizeof(value), &fd, fd >= 0 ? 1 : 0);
}
