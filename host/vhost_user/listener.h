/*
 * Waiting for clients at a listening socket.
 *
 * What always holds: a process that may not open another descriptor (EMFILE, ENFILE) says so once and looks
 * again a few times a second; the client waits in the socket's backlog meanwhile, and costs no processor
 * time.
 */
#ifndef RINGSIDE_VHOST_USER_LISTENER_H
#define RINGSIDE_VHOST_USER_LISTENER_H

#include <stdbool.h>

#include "host/runtime/loop.h"

struct listener {
    int fd; /* listening, non-blocking; stays the owner's */
    struct loop *loop;
    const char *whom; /* "a front end" */
    /* Takes the connected descriptor FD over (close-on-exec, non-blocking). May call listener_off. */
    void (*accepted)(void *opaque, int fd);
    void *opaque;
    /* its own */
    struct loop_fd handler;
    struct loop_timer retry;
    bool on, waits, complained;
};

/* Calls accepted() from now on; a listener that is on stays so. 0 or negative errno. LOOP's thread, as
 * _off. */
int listener_on(struct listener *listener);
void listener_off(struct listener *listener); /* one that is off is fine */

#endif
