/*
 * Pages that driver and device share: one byte of bookkeeping a page over a few MiB, first fit. All RAM here
 * is identity-mapped, cacheable and coherent for the devices, so a pointer is an address.
 */
#include "guest/platform/common/common.h"

#include <string.h>

#define PAGE_BYTES 4096u
#define PAGES_MAX  8192u /* 32 MiB */

static uint64_t pool;
static unsigned num_pages;
static uint8_t taken[PAGES_MAX];

void dma_pool_init(uint64_t start, uint64_t end)
{
    pool = (start + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
    uint64_t pages = end > pool ? (end - pool) / PAGE_BYTES : 0;
    num_pages = pages < PAGES_MAX ? (unsigned)pages : PAGES_MAX;
}

void *dma_pool_alloc(size_t bytes)
{
    size_t want = bytes / PAGE_BYTES + (bytes % PAGE_BYTES != 0);
    size_t run = 0;
    for (unsigned i = 0; want && i < num_pages; i++) {
        run = taken[i] ? 0 : run + 1;
        if (run < want)
            continue;
        unsigned first = i + 1 - (unsigned)want;
        memset(taken + first, 1, want);
        void *mem = (void *)(uintptr_t)(pool + (uint64_t)first * PAGE_BYTES);
        memset(mem, 0, want * PAGE_BYTES);
        return mem;
    }
    return NULL;
}

void dma_pool_free(void *mem, size_t bytes)
{
    if (!mem)
        return;
    size_t pages = bytes / PAGE_BYTES + (bytes % PAGE_BYTES != 0);
    uint64_t first = ((uint64_t)(uintptr_t)mem - pool) / PAGE_BYTES;
    if (first < num_pages && pages <= num_pages - first)
        memset(taken + first, 0, pages);
}
