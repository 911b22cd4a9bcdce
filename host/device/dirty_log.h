/*
 * The dirty log of a migration (vhost-user, "Migration"): a bit for each 4 KiB page of guest memory, set
 * after we have written to the page. The log is the peer's memory: pages that it has no bit for are left out.
 */
#ifndef RINGSIDE_DEVICE_DIRTY_LOG_H
#define RINGSIDE_DEVICE_DIRTY_LOG_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "host/device/guest_memory.h"

#define DIRTY_LOG_PAGE_BYTES 4096u

struct dirty_log {
    uint8_t *bits; /* NULL: nobody keeps a log */
    size_t bytes;
};

/* What was written must have been written before the call: the peer clears a bit, then copies its page. */
void dirty_log_mark(const struct dirty_log *log, guest_addr addr, uint64_t bytes);

/* The same for memory by its place here; what is not in MEMORY is left out. */
void dirty_log_mark_host(const struct dirty_log *log, const struct guest_memory *memory, const void *host,
                         uint64_t bytes);
void dirty_log_mark_iov(const struct dirty_log *log, const struct guest_memory *memory,
                        const struct iovec *iov, unsigned niov);

#endif
