/*
 * Guest memory: a sorted table of regions and lookups in it. Range checks are written so that they cannot
 * wrap: an offset into a region is compared with what is left of it, addresses are never added up first.
 */
#include "host/device/guest_memory.h"

#include <errno.h>
#include <string.h>

int guest_memory_add(struct guest_memory *memory, const struct guest_region *region)
{
    unsigned at = 0;

    /* The first byte behind the region has an address too, so that sums inside it cannot wrap. */
    if (region->bytes == 0 || region->guest_addr > UINT64_MAX - region->bytes ||
        region->user_addr > UINT64_MAX - region->bytes)
        return -EINVAL;
    if (memory->count == GUEST_REGIONS_MAX)
        return -ENOSPC;
    while (at < memory->count && memory->regions[at].guest_addr < region->guest_addr)
        at++;
    if (at > 0) {
        const struct guest_region *before = &memory->regions[at - 1];

        if (region->guest_addr - before->guest_addr < before->bytes)
            return -EINVAL;
    }
    if (at < memory->count && memory->regions[at].guest_addr - region->guest_addr < region->bytes)
        return -EINVAL;
    memmove(&memory->regions[at + 1], &memory->regions[at], (memory->count - at) * sizeof(*region));
    memory->regions[at] = *region;
    memory->count++;
    return 0;
}

const struct guest_region *guest_memory_find(const struct guest_memory *memory, guest_addr addr)
{
    unsigned low = 0, high = memory->count;

    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        const struct guest_region *region = &memory->regions[middle];

        if (addr.value < region->guest_addr)
            high = middle;
        else if (addr.value - region->guest_addr >= region->bytes)
            low = middle + 1;
        else
            return region;
    }
    return NULL;
}

int guest_memory_translate(const struct guest_memory *memory, guest_addr addr, uint64_t bytes,
                           struct iovec *iov, unsigned *niov, unsigned max)
{
    unsigned n = *niov;

    for (;;) {
        const struct guest_region *region = guest_memory_find(memory, addr);
        uint64_t skip, here;

        if (!region)
            return -EFAULT;
        if (n == max)
            return -ENOBUFS;
        skip = addr.value - region->guest_addr;
        here = region->bytes - skip;
        if (here > bytes)
            here = bytes;
        iov[n].iov_base = region->host + skip;
        iov[n].iov_len = here;
        n++;
        bytes -= here;
        if (bytes == 0)
            break;
        /* A region never reaches beyond the last address (guest_memory_add), so this cannot wrap. */
        addr.value += here;
    }
    *niov = n;
    return 0;
}

bool guest_memory_missing(const struct guest_memory *memory, guest_addr addr, uint64_t bytes, bool writable,
                          uint64_t *missing)
{
    while (memory->translated && bytes > 0) {
        const struct guest_region *region = guest_memory_find(memory, addr);
        if (!region || (writable && region->read_only)) {
            *missing = addr.value;
            return true;
        }
        uint64_t here = region->bytes - (addr.value - region->guest_addr);
        if (here > bytes)
            here = bytes;
        addr.value += here;
        bytes -= here;
    }
    return false;
}

void *guest_memory_pointer(const struct guest_memory *memory, guest_addr addr, uint64_t bytes)
{
    const struct guest_region *region = guest_memory_find(memory, addr);

    if (!region || bytes > region->bytes - (addr.value - region->guest_addr))
        return NULL;
    return region->host + (addr.value - region->guest_addr);
}

int guest_memory_read(const struct guest_memory *memory, guest_addr addr, void *to, uint64_t bytes)
{
    uint8_t *out = to;

    while (bytes > 0) {
        const struct guest_region *region = guest_memory_find(memory, addr);
        uint64_t skip, here;

        if (!region)
            return -EFAULT;
        skip = addr.value - region->guest_addr;
        here = region->bytes - skip;
        if (here > bytes)
            here = bytes;
        memcpy(out, region->host + skip, here);
        out += here;
        addr.value += here;
        bytes -= here;
    }
    return 0;
}

void *guest_memory_user_pointer(const struct guest_memory *memory, uint64_t user_addr, uint64_t bytes)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_region *region = &memory->regions[i];

        if (user_addr >= region->user_addr && user_addr - region->user_addr < region->bytes &&
            bytes <= region->bytes - (user_addr - region->user_addr))
            return region->host + (user_addr - region->user_addr);
    }
    return NULL;
}

bool guest_memory_address(const struct guest_memory *memory, const void *host, guest_addr *addr)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_region *region = &memory->regions[i];

        if ((const uint8_t *)host >= region->host &&
            (uint64_t)((const uint8_t *)host - region->host) < region->bytes) {
            addr->value = region->guest_addr + (uint64_t)((const uint8_t *)host - region->host);
            return true;
        }
    }
    return false;
}
