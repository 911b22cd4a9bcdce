/*
 * Mappings of a peer's files (mapping.h).
 */
#include "host/vhost_user/mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "host/device/sigbus_guard.h"

#define HUGETLBFS_TYPE 0x958458f6

/* A file's pages: offsets and lengths of mappings are multiples of it. */
static uint64_t file_page_bytes(int fd)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct statfs fs;
    if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_TYPE && (uint64_t)fs.f_bsize > page)
        page = (uint64_t)fs.f_bsize;
    return page;
}

int shared_mapping_open(struct shared_mapping *mapping, int fd, uint64_t offset, uint64_t bytes,
                        uint32_t *broken, const char *what, struct error *err)
{
    struct stat st;
    uint64_t end;

    memset(mapping, 0, sizeof *mapping);
    if (fstat(fd, &st) < 0)
        return error_set(err, -errno, "%s: cannot look at the descriptor: %s", what, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(err, -EINVAL, "%s: the descriptor is not a memory file", what);
    if (bytes == 0)
        return error_set(err, -EINVAL, "%s: size 0", what);
    if (__builtin_add_overflow(offset, bytes, &end) || end > (uint64_t)st.st_size)
        return error_set(err, -EINVAL,
                         "%s: %" PRIu64 " bytes from offset %" PRIu64 " lie beyond the file's %lld", what,
                         bytes, offset, (long long)st.st_size);

    /* END is at most a file's size, so rounding it up to a page cannot wrap. */
    uint64_t page = file_page_bytes(fd);
    uint64_t first = offset - offset % page;
    uint64_t last = (end + page - 1) / page * page;
    void *base =
        mmap(NULL, last - first, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)first);
    if (base == MAP_FAILED)
        return error_set(err, -errno, "%s: cannot map %" PRIu64 " bytes: %s", what, last - first,
                         strerror(errno));
    int ret = sigbus_guard_add(base, last - first, broken);
    if (ret < 0) {
        munmap(base, last - first);
        return error_set(err, ret, "%s: too many mappings", what);
    }
    madvise(base, last - first, MADV_DONTDUMP);
    *mapping = (struct shared_mapping){
        .base = base, .base_bytes = last - first, .data = (uint8_t *)base + (offset - first), .bytes = bytes};
    return 0;
}

void shared_mapping_close(struct shared_mapping *mapping)
{
    if (mapping->base) {
        sigbus_guard_remove(mapping->base);
        munmap(mapping->base, mapping->base_bytes);
    }
    memset(mapping, 0, sizeof *mapping);
}

static bool user_ranges_overlap(const struct guest_memory *memory, uint64_t addr, uint64_t bytes)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_region *r = &memory->regions[i];
        if (addr < r->user_addr ? r->user_addr - addr < bytes : addr - r->user_addr < r->bytes)
            return true;
    }
    return false;
}

int memory_table_add(struct guest_memory *memory, const struct vhost_user_memory_region *region, int fd,
                     uint32_t *broken, struct error *err)
{
    uint64_t end;
    char what[80];

    snprintf(what, sizeof what, "memory region at guest address 0x%" PRIx64, region->guest_addr);
    if (memory->count >= MEMORY_SLOTS_MAX)
        return error_set(err, -ENOSPC, "%s: more than %u regions", what, MEMORY_SLOTS_MAX);
    if (region->size == 0 || __builtin_add_overflow(region->guest_addr, region->size, &end) ||
        __builtin_add_overflow(region->user_addr, region->size, &end))
        return error_set(err, -EINVAL, "%s: size 0x%" PRIx64 " is 0 or goes past the last address", what,
                         region->size);
    if (user_ranges_overlap(memory, region->user_addr, region->size))
        return error_set(err, -EINVAL, "%s: overlaps another one in the front end's addresses", what);

    struct shared_mapping mapping;
    int ret = shared_mapping_open(&mapping, fd, region->mmap_offset, region->size, broken, what, err);
    if (ret < 0)
        return ret;
    struct guest_region mapped = {
        .guest_addr = region->guest_addr,
        .user_addr = region->user_addr,
        .bytes = region->size,
        .host = mapping.data,
        .mapping = mapping.base,
        .mapping_bytes = mapping.base_bytes,
        .fd = -1,
    };
    ret = guest_memory_add(memory, &mapped);
    if (ret < 0) {
        shared_mapping_close(&mapping);
        return error_set(err, ret, "%s: overlaps another one", what);
    }
    return 0;
}

int memory_table_remove(struct guest_memory *memory, const struct vhost_user_memory_region *region,
                        struct guest_region *removed)
{
    for (unsigned i = 0; i < memory->count; i++) {
        struct guest_region *r = &memory->regions[i];
        if (r->guest_addr != region->guest_addr || r->user_addr != region->user_addr ||
            r->bytes != region->size)
            continue;
        *removed = *r;
        memmove(r, r + 1, (memory->count - i - 1) * sizeof *r);
        memory->count--;
        return 0;
    }
    return -ENOENT;
}

void memory_region_unmap(struct guest_region *region)
{
    struct shared_mapping mapping = {.base = region->mapping, .base_bytes = region->mapping_bytes};
    shared_mapping_close(&mapping);
    region->mapping = NULL;
}

void memory_table_free(struct guest_memory *memory)
{
    if (!memory)
        return;
    for (unsigned i = 0; i < memory->count; i++)
        memory_region_unmap(&memory->regions[i]);
    free(memory);
}
