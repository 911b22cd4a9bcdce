/*
 * The dirty log (dirty_log.h).
 */
#include "host/device/dirty_log.h"

void dirty_log_mark(const struct dirty_log *log, guest_addr addr, uint64_t bytes)
{
    uint64_t page = addr.value / DIRTY_LOG_PAGE_BYTES, last;

    if (bytes == 0)
        return;
    /* Both are inside guest memory, so the sum does not wrap (guest_memory_add). */
    last = (addr.value + bytes - 1) / DIRTY_LOG_PAGE_BYTES;
    for (; page <= last && page / 8 < log->bytes; page++)
        /* A locked instruction orders the data before the bit; pairs with the peer's exchange that clears it.
         */
        __atomic_fetch_or(&log->bits[page / 8], (uint8_t)(1u << page % 8), __ATOMIC_SEQ_CST);
}

void dirty_log_mark_host(const struct dirty_log *log, const struct guest_memory *memory, const void *host,
                         uint64_t bytes)
{
    guest_addr addr;

    if (guest_memory_address(memory, host, &addr))
        dirty_log_mark(log, addr, bytes);
}

void dirty_log_mark_iov(const struct dirty_log *log, const struct guest_memory *memory,
                        const struct iovec *iov, unsigned niov)
{
    for (unsigned i = 0; i < niov; i++)
        dirty_log_mark_host(log, memory, iov[i].iov_base, iov[i].iov_len);
}
