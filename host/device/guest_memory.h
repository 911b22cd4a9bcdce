/*
 * The guest's memory as the device sees it: a table of regions, and the one way from a guest address to a
 * pointer. A guest address is not a pointer and has a type of its own.
 *
 * A table is immutable once published; a new one replaces it only while no request is in flight on any queue
 * that uses it (host/vhost_user sees to that). Lookups may then be made on any thread.
 *
 * The memory's files belong to the peer, who can cut them short under us. sigbus_guard.h turns the resulting
 * SIGBUS into a flag that the owner of the mapping looks at.
 */
#ifndef RINGSIDE_DEVICE_GUEST_MEMORY_H
#define RINGSIDE_DEVICE_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

typedef struct {
    uint64_t value;
} guest_addr;

struct guest_region {
    uint64_t guest_addr; /* first guest-physical (or IOVA) address */
    uint64_t user_addr;  /* the front end's address of the same byte: rings are named in this space */
    uint64_t bytes;
    uint8_t *host;  /* where it is mapped here */
    bool read_only; /* of a translated table: not for the device to write to */
    /* owner's: */
    void *mapping;
    size_t mapping_bytes;
    int fd;
};

/* Of a translated table each page of what the requests in flight need may be a region: when they don't fit
 * together, they push one another out without end. */
#define GUEST_REGIONS_MAX 8192

struct guest_memory {
    unsigned count;
    /* The addresses are I/O virtual ones (ACCESS_PLATFORM): one that is not here may be had by asking for it.
     */
    bool translated;
    struct guest_region regions[GUEST_REGIONS_MAX]; /* sorted by guest_addr, not overlapping */
};

/* Inserts in order. -EINVAL: length 0, wraps, or overlaps; -ENOSPC: table full. */
int guest_memory_add(struct guest_memory *memory, const struct guest_region *region);

/* The region that holds guest address ADDR, or NULL. */
const struct guest_region *guest_memory_find(const struct guest_memory *memory, guest_addr addr);

/* Translates [ADDR, ADDR+BYTES) into iovecs appended at IOV[*NIOV] (room for MAX in all), several where the
 * range crosses regions that touch. BYTES > 0. -EFAULT: not all of it is guest memory; -ENOBUFS: more than
 * MAX. On error *NIOV is as before. */
int guest_memory_translate(const struct guest_memory *memory, guest_addr addr, uint64_t bytes,
                           struct iovec *iov, unsigned *niov, unsigned max);

/* Why a range of a translated table can't be used: *MISSING is the first address of it that is not there, or
 * is not for the device to write to (WRITABLE). False: all of it is there, or the table is no translated one.
 */
bool guest_memory_missing(const struct guest_memory *memory, guest_addr addr, uint64_t bytes, bool writable,
                          uint64_t *missing);

/* One contiguous piece, or NULL. */
void *guest_memory_pointer(const struct guest_memory *memory, guest_addr addr, uint64_t bytes);

/* Copies BYTES from ADDR, across regions that touch. 0 or -EFAULT. */
int guest_memory_read(const struct guest_memory *memory, guest_addr addr, void *to, uint64_t bytes);

/* The same for an address in the front end's own space (SET_VRING_ADDR). */
void *guest_memory_user_pointer(const struct guest_memory *memory, uint64_t user_addr, uint64_t bytes);

/* Back from a pointer into a region to the guest's address of that byte: for the dirty log. False: not guest
 * memory. */
bool guest_memory_address(const struct guest_memory *memory, const void *host, guest_addr *addr);

#endif
