/*
 * The hosted platform: what libvblk asks of its machine, in an ordinary process.
 *
 * The "machine's memory" is an arena of one or more memfd regions that a vhost-user back end maps too. Guest
 * addresses in it are made up and never equal the pointers, so that mixing the two up shows. A buffer that
 * lies in the arena is shared as it is; any other one goes through a bounce buffer. With copy_always every
 * buffer is bounced and the bounce memory is poisoned before and after, so that a missing share, a missing
 * unshare, or a device that writes late or not at all shows up as wrong data.
 *
 * Threads: hosted_create and _destroy on one; everything else on any, a queue's own calls on its thread.
 */
#ifndef RINGSIDE_HOSTED_H
#define RINGSIDE_HOSTED_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/driver/vblk_platform.h"

#define HOSTED_REGIONS_MAX   8u
#define HOSTED_QUEUES_MAX    256u
#define HOSTED_BOUNCE_STACKS 8u

struct hosted_options {
    size_t arena_bytes;  /* without the bounce memory; 0: 64 MiB */
    size_t bounce_bytes; /* 0: 32 MiB, or 64 MiB with copy_always */
    unsigned regions;    /* memfds that the arena is cut into, 1..8; 0: 1 */
    bool copy_always;
    void (*log)(enum vblk_log_level level, const char *text); /* NULL: silence */
};

/* One piece of the arena, as a back end is told about it. */
struct hosted_region {
    int fd;
    uint64_t fd_offset;
    uint64_t guest_addr;
    uint64_t bytes;
    uint8_t *mem;
};

#define HOSTED_EXTENTS_MAX 512u

struct hosted {
    struct hosted_options options;
    uint8_t *arena;
    size_t arena_bytes;
    unsigned region_count;
    struct hosted_region regions[HOSTED_REGIONS_MAX];

    pthread_mutex_t lock; /* of the free extents; never taken for a request */
    unsigned free_count;
    struct {
        size_t start, bytes;
    } free[HOSTED_EXTENTS_MAX];

    uint8_t *bounce;
    uint32_t bounce_slots;
    uint32_t *bounce_next; /* stacks of free slots, one for a few threads each, so that memory stays */
    struct {
        uint32_t top;         /* with its queue (a sanitizer can't follow it through the device) */
        unsigned char locked; /* a spin lock: held for a few instructions */
    } bounce_stack[HOSTED_BOUNCE_STACKS];

    int call_fd[HOSTED_QUEUES_MAX];         /* -1: the queue has no interrupt */
    uint64_t interrupts[HOSTED_QUEUES_MAX]; /* that whoever waited has found; atomic */
};

/* NULL with errno set: no memory, or a limit is in the way. */
struct hosted *hosted_create(const struct hosted_options *options);
void hosted_destroy(struct hosted *hosted);

/* Fills PLATFORM with the functions that work on HOSTED. */
void hosted_platform(struct hosted *hosted, struct vblk_platform *platform);

/* Memory in the arena for buffers (may cross from one region into the next); zeroed. NULL if there is none.
 */
void *hosted_alloc(struct hosted *hosted, size_t bytes, size_t align);
void hosted_free(struct hosted *hosted, void *mem, size_t bytes);

/* The guest address of a byte of the arena; UINT64_MAX if MEM is not in it. */
uint64_t hosted_guest_addr(const struct hosted *hosted, const void *mem);
/* The pointer to BYTES at a guest address, or NULL. */
void *hosted_pointer(const struct hosted *hosted, uint64_t guest_addr, size_t bytes);

/* The eventfd by which the device interrupts for QUEUE, -1 for none. Belongs to the caller (a transport). */
void hosted_set_call_fd(struct hosted *hosted, unsigned queue, int fd);

/* Interrupts that QUEUE has had, up to the last wait for one. Any thread. */
uint64_t hosted_interrupts(const struct hosted *hosted, unsigned queue);

#endif
