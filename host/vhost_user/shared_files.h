/*
 * Memory tables, the inflight region and the dirty log as messages bring them. Private to host/vhost_user.
 *
 * A change of any of them takes all rings back first (requests in flight end), so the device never sees
 * memory go away under a request.
 */
#ifndef RINGSIDE_VHOST_USER_SHARED_FILES_H
#define RINGSIDE_VHOST_USER_SHARED_FILES_H

#include <stddef.h>
#include <stdint.h>

#define VHOST_LOG_PAGE 0x1000u

/* Bytes of one queue's part of an inflight region for rings of QUEUE_SIZE, enough for either ring format.
 * The layout of the whole is our own affair: the front end only keeps it for our successor. */
size_t inflight_queue_bytes(uint16_t queue_size);

#endif
