/*
 * Listening sockets on a loop (listener.h).
 */
#include "host/vhost_user/listener.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "host/runtime/error.h"
#include "host/runtime/world.h"

#define RETRY_NS 200000000u

/* The socket stays readable while nobody can be accepted: off the loop with it until the next look. */
static void listener_wait(struct listener *l)
{
    if (!l->waits)
        loop_fd_remove(&l->handler);
    l->waits = true;
    loop_timer_arm(l->loop, &l->retry, world_now_ns() + RETRY_NS);
}

static void listener_ready(void *opaque)
{
    struct listener *l = opaque;
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        l->complained = false;
        l->accepted(l->opaque, fd);
        return;
    }
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
        return; /* gone again */
    if (!l->complained)
        log_message(
            "cannot take %s that connects: %s (it waits; raise the limit of open files if that is it)",
            l->whom, strerror(errno));
    l->complained = true;
    listener_wait(l);
}

static void listener_retry(void *opaque)
{
    struct listener *l = opaque;
    if (loop_fd_add(l->loop, &l->handler) == 0)
        l->waits = false;
    else
        listener_wait(l);
}

int listener_on(struct listener *l)
{
    if (l->on)
        return 0;
    l->handler = (struct loop_fd){.fd = l->fd, .on_readable = listener_ready, .opaque = l};
    l->retry = (struct loop_timer){.fire = listener_retry, .opaque = l};
    int ret = loop_fd_add(l->loop, &l->handler);
    l->on = ret == 0;
    l->waits = false;
    return ret;
}

void listener_off(struct listener *l)
{
    if (!l->on)
        return;
    if (!l->waits)
        loop_fd_remove(&l->handler);
    loop_timer_cancel(&l->retry);
    l->on = l->waits = false;
}
