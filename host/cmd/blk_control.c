/*
 * The control socket (blk_control.h): clients, lines, answers. What the commands do is in blk_commands.c.
 */
#include "host/cmd/blk_control.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/cmd/blk_commands.h"
#include "host/vhost_user/channel.h"
#include "host/vhost_user/listener.h"
#include "host/vhost_user/socket_path.h"

#define CLIENTS_MAX  16
#define LINE_BYTES   (64u * 1024u)
#define NESTING_MAX  32         /* the parser recurses, on a coroutine's stack */
#define UNSENT_BYTES (1u << 20) /* a client that does not read is let go of beyond this */

struct client {
    struct control *control;
    bool used;
    struct channel channel;
    char *line; /* LINE_BYTES */
    size_t filled;
    /* Answers and events that wait for room in the socket */
    char *unsent;
    size_t unsent_bytes;
    bool sending;
};

struct control {
    struct control_options options;
    struct socket_path socket;
    struct loop *loop;
    struct listener listener;
    unsigned clients_alive;
    struct client clients[CLIENTS_MAX];
    struct loop_bh gone; /* a client has: outside of its coroutine */
    void (*done)(void *opaque);
    void *done_opaque;
};

/* Sends what there is without waiting; the rest goes when the client's coroutine comes round. */
static void client_push(struct client *c)
{
    while (c->unsent_bytes > 0) {
        ssize_t n = send(c->channel.fd, c->unsent, c->unsent_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        c->unsent_bytes -= (size_t)n;
        memmove(c->unsent, c->unsent + n, c->unsent_bytes);
    }
}

/* Takes VALUE over. */
static void client_send(struct client *c, json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT);
    size_t len = text ? strlen(text) : 0;
    json_decref(value);
    if (!text)
        return;
    if (c->unsent_bytes + len + 1 > UNSENT_BYTES) {
        channel_cancel(&c->channel);
    } else {
        char *grown = realloc(c->unsent, c->unsent_bytes + len + 1);
        if (grown) {
            c->unsent = grown;
            memcpy(c->unsent + c->unsent_bytes, text, len);
            c->unsent[c->unsent_bytes + len] = '\n';
            c->unsent_bytes += len + 1;
        }
    }
    free(text);
    client_push(c);
    /* An event that has no room comes while the client's next line is waited for: now room is, too. */
    if (c->unsent_bytes > 0)
        channel_wake(&c->channel);
}

/* Objects and arrays in each other, whatever else may be wrong with LINE. */
static unsigned nesting_of(const char *line, size_t len)
{
    unsigned depth = 0, deepest = 0;
    bool text = false;
    for (size_t i = 0; i < len; i++) {
        char ch = line[i];
        if (text && ch == '\\')
            i++;
        else if (ch == '"')
            text = !text;
        else if (!text && (ch == '[' || ch == '{') && ++depth > deepest)
            deepest = depth;
        else if (!text && (ch == ']' || ch == '}') && depth > 0)
            depth--;
    }
    return deepest;
}

static void coroutine_fn client_handle_line(struct client *c, const char *line, size_t len)
{
    struct error err = {0};
    json_error_t parse_error;
    json_t *answer = json_object(), *result = NULL;
    json_t *request = NULL;
    bool nested = nesting_of(line, len) > NESTING_MAX;

    if (!nested)
        request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &parse_error);
    if (nested)
        error_set(&err, -EINVAL, "objects and arrays are nested more than %u deep", NESTING_MAX);
    else if (!request)
        error_set(&err, -EINVAL, "not JSON: %s (one object a line)", parse_error.text);
    else if (!json_is_object(request))
        error_set(&err, -EINVAL, "not a JSON object ({\"command\": \"help\"} lists the commands)");
    else
        result = control_co_command(&c->control->options, request, &err);
    if (result)
        json_object_set_new(answer, "return", result);
    else
        json_object_set_new(answer, "error", json_string(err.text));
    json_t *id = json_is_object(request) ? json_object_get(request, "id") : NULL;
    if (id)
        json_object_set(answer, "id", id);
    json_decref(request);
    client_send(c, answer);
}

/* Reads until there is a whole line; its length without the end, 0 for an empty one, negative: no more. */
static ssize_t coroutine_fn client_co_line(struct client *c)
{
    for (;;) {
        char *end = memchr(c->line, '\n', c->filled);
        if (end)
            return end - c->line;
        if (c->filled == LINE_BYTES) {
            client_send(c, json_pack("{s:s}", "error", "the line is longer than 65536 bytes"));
            return -EMSGSIZE;
        }
        ssize_t n = recv(c->channel.fd, c->line + c->filled, LINE_BYTES - c->filled, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            int ret = channel_co_wait(&c->channel, c->unsent_bytes > 0);
            if (ret < 0)
                return ret;
            client_push(c);
            continue;
        }
        if (n <= 0)
            return -EPIPE;
        c->filled += (size_t)n;
    }
}

static void coroutine_fn client_serve(void *opaque)
{
    struct client *c = opaque;
    ssize_t len;
    while ((len = client_co_line(c)) >= 0) {
        if (len > 0)
            client_handle_line(c, c->line, (size_t)len);
        c->filled -= (size_t)len + 1;
        memmove(c->line, c->line + len + 1, c->filled);
        if (c->channel.cancelled)
            break;
    }
    channel_close(&c->channel);
    free(c->line);
    free(c->unsent);
    struct control *control = c->control;
    memset(c, 0, sizeof *c);
    control->clients_alive--;
    loop_bh_schedule(&control->gone);
}

static void control_accepted(void *opaque, int fd)
{
    struct control *control = opaque;
    struct client *c = control->clients;
    while (c->used)
        c++; /* there is a free one: at CLIENTS_MAX nobody listens */
    char *line = malloc(LINE_BYTES);
    struct coroutine *co = line ? co_create(client_serve, c) : NULL;
    if (!co) {
        free(line);
        close(fd);
        return;
    }
    *c = (struct client){.control = control, .used = true, .line = line};
    channel_open(&c->channel, control->loop, fd);
    if (++control->clients_alive == CLIENTS_MAX)
        listener_off(&control->listener);
    co_enter(co);
}

static void control_client_gone(void *opaque)
{
    struct control *control = opaque;
    if (!control->done) {
        int ret = control->clients_alive < CLIENTS_MAX ? listener_on(&control->listener) : 0;
        if (ret < 0)
            log_message("cannot wait for control clients: %s", strerror(-ret));
    } else if (control->clients_alive == 0) {
        void (*done)(void *) = control->done;
        control->done = NULL;
        done(control->done_opaque);
    }
}

struct control *control_listen(const char *path, struct error *err)
{
    struct control *control = calloc(1, sizeof *control);
    if (!control) {
        error_set(err, -ENOMEM, "no memory for a control socket");
        return NULL;
    }
    if (socket_path_listen(&control->socket, path, err) < 0) {
        free(control);
        return NULL;
    }
    return control;
}

int control_start(struct control *control, const struct control_options *options, struct error *err)
{
    control->options = *options;
    control->loop = loop_current();
    control->gone = (struct loop_bh){.fn = control_client_gone, .opaque = control, .loop = control->loop};
    control->listener = (struct listener){.fd = control->socket.fd,
                                          .loop = control->loop,
                                          .whom = "a control client",
                                          .accepted = control_accepted,
                                          .opaque = control};
    int ret = listener_on(&control->listener);
    return ret < 0 ? error_set(err, ret, "cannot wait for control clients: %s", strerror(-ret)) : 0;
}

void control_event_parked(struct control *control, unsigned queue, int error)
{
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        if (control->clients[i].used)
            client_send(&control->clients[i],
                        json_pack("{s:s, s:i, s:s}", "event", "parked", "queue", (int)queue, "error",
                                  strerror(error < 0 ? -error : error)));
    }
}

void control_stop(struct control *control, void (*done)(void *opaque), void *opaque)
{
    control->done = done;
    control->done_opaque = opaque;
    listener_off(&control->listener);
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        if (control->clients[i].used)
            channel_cancel(&control->clients[i].channel);
    }
    loop_bh_schedule(&control->gone);
}

void control_destroy(struct control *control)
{
    if (!control)
        return;
    listener_off(&control->listener);
    loop_bh_cancel(&control->gone);
    socket_path_close(&control->socket);
    free(control);
}
