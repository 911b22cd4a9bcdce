/*
 * Memory that a peer shares: its files mapped here, and the table of guest memory made of such mappings.
 *
 * What always holds: nothing beyond the end of the file is mapped (fstat), every sum is checked for wrap, and
 * a peer that cuts the file short afterwards gets its connection broken (sigbus_guard.h), not the process.
 * Control loop.
 */
#ifndef RINGSIDE_VHOST_USER_MAPPING_H
#define RINGSIDE_VHOST_USER_MAPPING_H

#include <stddef.h>
#include <stdint.h>

#include "common/vhost_user.h"
#include "host/device/guest_memory.h"
#include "host/runtime/error.h"

#define MEMORY_SLOTS_MAX 512u /* regions of a front end's memory table */

struct shared_mapping {
    void *base; /* what was mapped: whole pages; NULL: nothing is */
    size_t base_bytes;
    uint8_t *data; /* where byte OFFSET of the file lies */
    uint64_t bytes;
};

/* Maps [OFFSET, OFFSET+BYTES) of the file FD, which stays the caller's. *BROKEN is set once the file turns
 * out to have been cut short. WHAT names it in errors. -EINVAL: not a regular file, or beyond its end. */
int shared_mapping_open(struct shared_mapping *mapping, int fd, uint64_t offset, uint64_t bytes,
                        uint32_t *broken, const char *what, struct error *err);
void shared_mapping_close(struct shared_mapping *mapping);

/* Maps REGION and adds it to MEMORY. Errors leave MEMORY as it was. */
int memory_table_add(struct guest_memory *memory, const struct vhost_user_memory_region *region, int fd,
                     uint32_t *broken, struct error *err);

/* Takes the region with these addresses and this size out of MEMORY into *REMOVED, still mapped. -ENOENT. */
int memory_table_remove(struct guest_memory *memory, const struct vhost_user_memory_region *region,
                        struct guest_region *removed);

void memory_region_unmap(struct guest_region *region);

/* Unmaps every region and frees the table. NULL is fine. */
void memory_table_free(struct guest_memory *memory);

#endif
