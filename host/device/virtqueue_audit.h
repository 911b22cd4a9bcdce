/*
 * What the judge of the driver (audit.c) wants to see of a ring. Called only where a judge is installed, on
 * the thread that serves the queue.
 */
#ifndef RINGSIDE_DEVICE_VIRTQUEUE_AUDIT_H
#define RINGSIDE_DEVICE_VIRTQUEUE_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

struct virtqueue_audit;

/* A descriptor as it was read: from an indirect table or from the ring itself; INDEX is its place there. */
void audit_desc(struct virtqueue_audit *audit, bool in_table, uint16_t flags, uint32_t len,
                uint16_t next_or_id, uint32_t index);

#endif
