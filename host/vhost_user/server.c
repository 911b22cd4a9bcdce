/*
 * The server (server.h): a listening socket and one connection at a time. All of it on the control loop, but
 * for what the device tells from its queues' loops, which is put down in two atomic words and taken up by a
 * bottom half.
 */
#include "host/vhost_user/server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/device/sigbus_guard.h"
#include "host/vhost_user/connection.h"
#include "host/vhost_user/listener.h"
#include "host/vhost_user/socket_path.h"

struct vhost_user_server {
    struct vhost_user_server_options options;
    struct loop *loop;
    int connected_fd; /* handed over, until the loop runs: nothing of a peer is read before; else -1 */
    struct listener listener; /* fd -1: a connected socket was handed over */
    struct socket_path made;  /* the socket that _listen made; its descriptor is the listener's */

    struct vhost_user_connection *connection;
    bool once, stopping, stopped;
    struct loop_bh stopped_bh, events_bh, resume_bh;

    /* From the queues' loops: their partner is server_events, which exchanges them for 0. */
    uint64_t broken_rings, parked_rings, missing_rings;
    struct {
        uint64_t iova; /* of the ring's miss; written before its bit is set */
        bool writable;
    } missing[VIRTIO_BLK_QUEUES_MAX];
    int parked_error;
    uint32_t config_changed;

    struct vhost_user_server_stats stats;
};

static void server_listen(struct vhost_user_server *s);
static int server_connect(struct vhost_user_server *s, int fd, struct error *err);

static void server_stopped(void *opaque)
{
    struct vhost_user_server *s = opaque;
    if (!s->stopped && s->options.stopped)
        s->options.stopped(s->options.opaque);
    s->stopped = true;
}

/* At the start, and after a connection has gone, outside of its coroutine. */
static void server_resume(void *opaque)
{
    struct vhost_user_server *s = opaque;
    struct error err = {0};
    int fd = s->connected_fd;
    s->connected_fd = -1;
    if (fd >= 0 && !s->stopping) {
        if (server_connect(s, fd, &err) == 0)
            return;
        log_message("%s", err.text);
        fd = -1;
    }
    if (fd >= 0)
        close(fd);
    if (s->stopping || s->once)
        server_stopped(s);
    else
        server_listen(s);
}

static void coroutine_fn server_serve(void *opaque)
{
    struct vhost_user_server *s = opaque;
    if (!connection_co_serve(s->connection, &s->stats))
        s->stats.broken_connections++;
    connection_destroy(s->connection);
    s->connection = NULL;
    loop_bh_schedule(&s->resume_bh);
}

/* Takes FD over, also on error. */
static int server_connect(struct vhost_user_server *s, int fd, struct error *err)
{
    s->connection = connection_create(s, &s->options, s->loop, fd);
    if (!s->connection) {
        close(fd);
        return error_set(err, -ENOMEM, "no memory for a connection");
    }
    struct coroutine *co = co_create(server_serve, s);
    if (!co) {
        connection_destroy(s->connection);
        s->connection = NULL;
        return error_set(err, -ENOMEM, "no coroutine for a connection");
    }
    s->stats.connections++;
    co_enter(co);
    return 0;
}

static void server_accepted(void *opaque, int fd)
{
    struct vhost_user_server *s = opaque;
    struct error err = {0};
    listener_off(&s->listener);
    if (server_connect(s, fd, &err) < 0) {
        log_message("a front end was turned away: %s", err.text);
        loop_bh_schedule(&s->resume_bh);
    }
}

static void server_listen(struct vhost_user_server *s)
{
    int ret = listener_on(&s->listener);
    if (ret < 0) {
        log_message("cannot wait for front ends: %s", strerror(-ret));
        loop_bh_schedule(&s->stopped_bh);
    }
}

static void server_events(void *opaque)
{
    struct vhost_user_server *s = opaque;
    uint64_t broken = __atomic_exchange_n(&s->broken_rings, 0, __ATOMIC_ACQUIRE);
    uint64_t parked = __atomic_exchange_n(&s->parked_rings, 0, __ATOMIC_ACQUIRE);
    uint32_t changed = __atomic_exchange_n(&s->config_changed, 0, __ATOMIC_ACQUIRE);
    for (unsigned i = 0; parked && s->options.parked; i++, parked >>= 1) {
        if (parked & 1)
            s->options.parked(s->options.opaque, i, __atomic_load_n(&s->parked_error, __ATOMIC_RELAXED));
    }
    uint64_t missing = __atomic_exchange_n(&s->missing_rings, 0, __ATOMIC_ACQUIRE);
    if (!s->connection)
        return;
    for (unsigned i = 0; missing; i++, missing >>= 1) {
        if (missing & 1)
            connection_send_iotlb_miss(s->connection, i,
                                       __atomic_load_n(&s->missing[i].iova, __ATOMIC_RELAXED),
                                       __atomic_load_n(&s->missing[i].writable, __ATOMIC_RELAXED));
    }
    for (unsigned i = 0; broken; i++, broken >>= 1) {
        if (broken & 1)
            connection_ring_broken(s->connection, i);
    }
    if (changed)
        connection_send_config_change(s->connection);
}

static void device_config_changed(void *opaque)
{
    struct vhost_user_server *s = opaque;
    __atomic_store_n(&s->config_changed, 1, __ATOMIC_RELEASE);
    loop_bh_schedule(&s->events_bh);
}

static void device_needs_reset(void *opaque, unsigned queue, const char *why)
{
    struct vhost_user_server *s = opaque;
    log_message("ring %u is broken: %s", queue, why);
    __atomic_fetch_or(&s->broken_rings, 1ull << queue, __ATOMIC_RELEASE);
    loop_bh_schedule(&s->events_bh);
}

/* A ring waits after a miss. One that was started anew meanwhile may put its own in this one's place. */
static void device_iova_missing(void *opaque, unsigned queue, uint64_t iova, bool writable)
{
    struct vhost_user_server *s = opaque;
    __atomic_store_n(&s->missing[queue].iova, iova, __ATOMIC_RELAXED);
    __atomic_store_n(&s->missing[queue].writable, writable, __ATOMIC_RELAXED);
    __atomic_fetch_or(&s->missing_rings, 1ull << queue, __ATOMIC_RELEASE);
    loop_bh_schedule(&s->events_bh);
}

static void device_parked(void *opaque, unsigned queue, int error)
{
    struct vhost_user_server *s = opaque;
    __atomic_store_n(&s->parked_error, error, __ATOMIC_RELAXED);
    uint64_t before = __atomic_fetch_or(&s->parked_rings, 1ull << queue, __ATOMIC_RELEASE);
    if (before & 1ull << queue)
        return;
    log_message("ring %u: a request waits after an error: %s (mend it, then `resume` on the control socket)",
                queue, strerror(error < 0 ? -error : error));
    loop_bh_schedule(&s->events_bh);
}

static struct vhost_user_server *server_create(const struct vhost_user_server_options *options,
                                               struct error *err)
{
    struct vhost_user_server *s = calloc(1, sizeof *s);
    if (!s) {
        error_set(err, -ENOMEM, "no memory for a server");
        return NULL;
    }
    s->options = *options;
    s->once = options->once;
    s->loop = loop_current();
    s->connected_fd = s->made.fd = -1;
    s->listener = (struct listener){
        .fd = -1, .loop = s->loop, .whom = "a front end", .accepted = server_accepted, .opaque = s};
    s->stopped_bh = (struct loop_bh){.fn = server_stopped, .opaque = s, .loop = s->loop};
    s->resume_bh = (struct loop_bh){.fn = server_resume, .opaque = s, .loop = s->loop};
    s->events_bh = (struct loop_bh){.fn = server_events, .opaque = s, .loop = s->loop};
    /* A front end may hand us a pipe that nobody reads. */
    signal(SIGPIPE, SIG_IGN);
    int ret = sigbus_guard_install();
    if (ret < 0) {
        error_set(err, ret, "cannot catch SIGBUS: %s", strerror(-ret));
        free(s);
        return NULL;
    }
    struct virtio_blk_events events = {.config_changed = device_config_changed,
                                       .needs_reset = device_needs_reset,
                                       .iova_missing = device_iova_missing,
                                       .stopped = device_parked,
                                       .opaque = s};
    virtio_blk_set_events(options->device, &events);
    return s;
}

struct vhost_user_server *vhost_user_server_fd(int fd, const struct vhost_user_server_options *options,
                                               struct error *err)
{
    int listening = 0, type = 0, domain = 0;
    socklen_t len = sizeof listening;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || domain != AF_UNIX ||
        type != SOCK_STREAM || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0) {
        error_set(err, -ENOTSOCK,
                  "descriptor %d: is not a Unix stream socket (hand over a listening or connected one)", fd);
        close(fd);
        return NULL;
    }
    struct vhost_user_server *s = server_create(options, err);
    if (!s) {
        close(fd);
        return NULL;
    }
    if (listening) {
        int flags = fcntl(fd, F_GETFL);
        if (flags >= 0)
            fcntl(fd, F_SETFL, flags | O_NONBLOCK); /* a front end that has gone again is not waited for */
        s->listener.fd = fd;
        server_listen(s);
        return s;
    }
    s->once = true;
    s->connected_fd = fd;
    loop_bh_schedule(&s->resume_bh);
    return s;
}

struct vhost_user_server *vhost_user_server_listen(const char *path,
                                                   const struct vhost_user_server_options *options,
                                                   struct error *err)
{
    struct socket_path made;
    if (socket_path_listen(&made, path, err) < 0)
        return NULL;
    struct vhost_user_server *s = server_create(options, err);
    if (!s) {
        socket_path_close(&made);
        return NULL;
    }
    s->made = made;
    s->listener.fd = made.fd;
    server_listen(s);
    return s;
}

void vhost_user_server_stop(struct vhost_user_server *s)
{
    if (s->stopping)
        return;
    s->stopping = true;
    listener_off(&s->listener);
    if (s->connection)
        connection_cancel(s->connection);
    else
        loop_bh_schedule(&s->stopped_bh);
}

void vhost_user_server_destroy(struct vhost_user_server *s)
{
    struct virtio_blk_events none = {0};
    if (!s)
        return;
    virtio_blk_set_events(s->options.device, &none);
    listener_off(&s->listener);
    loop_bh_cancel(&s->stopped_bh);
    loop_bh_cancel(&s->resume_bh);
    loop_bh_cancel(&s->events_bh);
    if (s->made.fd >= 0)
        socket_path_close(&s->made);
    else if (s->listener.fd >= 0)
        close(s->listener.fd);
    if (s->connected_fd >= 0)
        close(s->connected_fd);
    free(s);
}

void vhost_user_server_stats(const struct vhost_user_server *s, struct vhost_user_server_stats *stats)
{
    *stats = s->stats;
    stats->connected = s->connection != NULL;
    if (!s->connection)
        return;
    stats->features = s->connection->features;
    stats->protocol_features = s->connection->protocol_features;
    for (unsigned i = 0; i < s->options.num_queues; i++)
        stats->rings_running += s->connection->rings[i].runs;
}
