/*
 * The control socket of ringside-blk (--control=PATH): JSON, one value a line.
 *
 *     {"command": "resize", "bytes": 10737418240, "id": 7}     a request; "id" is anything, or left out
 *     {"return": {...}, "id": 7}                               its answer
 *     {"error": "what is wrong (what to do)", "id": 7}         or this one
 *     {"event": "parked", "queue": 0, "error": "..."}          in between: something happened
 *
 * A client's requests are answered in their order. Everything here runs on the control loop.
 */
#ifndef RINGSIDE_BLK_CONTROL_H
#define RINGSIDE_BLK_CONTROL_H

#include "host/cmd/cmd_device.h"
#include "host/cmd/cmd_trace.h"
#include "host/vhost_user/server.h"

struct control;

struct control_options {
    struct cmd_device *device;
    struct vhost_user_server *server;
    struct cmd_trace *trace; /* or NULL */
    void (*quit)(void *opaque);
    void *opaque;
};

/* Makes the socket PATH (must not exist, or be a socket that nobody listens on). NULL with ERR. */
struct control *control_listen(const char *path, struct error *err);

/* Answers clients from now on. */
int control_start(struct control *control, const struct control_options *options, struct error *err);

/* Tells every client that a request of QUEUE waits after ERROR. */
void control_event_parked(struct control *control, unsigned queue, int error);

/* Lets go of all clients; DONE(OPAQUE) is called when the last one has gone. */
void control_stop(struct control *control, void (*done)(void *opaque), void *opaque);

/* Before start, or after done(). Removes the socket. NULL is fine. */
void control_destroy(struct control *control);

#endif
