/* Malformed memory: tables, slots, ring addresses, the inflight region, the log, files cut short under the
 * device. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/harness/torture.h"

static enum outcome said(struct torture *t, int code)
{
    if (code == -EIO)
        return OUTCOME_REFUSED;
    return code < 0 ? OUTCOME_ENDED : torture_look(t);
}

/* A ring with a read in it, kicked. */
static enum outcome try_ring(struct torture *t)
{
    struct virtio_blk_req_header *header = bed_alloc(&t->bed, 1024);
    struct bed_piece pieces[3];

    if (!header || bed_queue_messages(&t->bed, 0, 0) < 0 || bed_queue_enable(&t->bed, 0, true) < 0)
        return bed_alive(&t->bed) ? OUTCOME_REFUSED : OUTCOME_ENDED;
    header->type = le32_put(VIRTIO_BLK_T_IN);
    pieces[0] = (struct bed_piece){header, 16, false};
    pieces[1] = (struct bed_piece){(uint8_t *)header + 512, 512, true};
    pieces[2] = (struct bed_piece){(uint8_t *)header + 64, 1, true};
    bed_put(&t->bed, 0, pieces, 3, false);
    bed_kick(&t->bed, 0);
    return torture_ring_look(t, 0, (uint8_t *)header + 64);
}

/* ---- memory tables ---- */

enum wrong_region {
    REGION_EMPTY,
    REGION_WRAPS,
    REGION_USER_WRAPS,
    REGION_OFFSET_BEYOND,
    REGION_OFFSET_HUGE,
    REGION_SIZE_BEYOND,
    REGION_SIZE_HUGE,
    REGION_ODD_OFFSET,
    REGION_ODD_SIZE,
    REGION_NO_FD,
    REGION_PIPE,
    REGION_EVENTFD,
    REGION_READ_ONLY,
    REGIONS
};

static const char *const region_names[REGIONS] = {
    "of no bytes",      "that wraps",      "whose user address wraps", "offset beyond the file",
    "offset near 2^64", "beyond the file", "of nearly 2^64 bytes",     "odd offset",
    "odd size",         "no descriptor",   "a pipe as memory",         "an eventfd as memory",
    "a read-only file",
};

static int region_make(struct torture *t, enum wrong_region wrong, struct vhost_user_memory_region *region)
{
    const struct hosted_region *from = &t->bed.hosted->regions[0];
    int fd = -1, pipes[2];

    *region = (struct vhost_user_memory_region){from->guest_addr, from->bytes, (uintptr_t)from->mem,
                                                from->fd_offset};
    switch (wrong) {
    case REGION_EMPTY:
        region->size = 0;
        break;
    case REGION_WRAPS:
        region->guest_addr = UINT64_MAX - 4096;
        break;
    case REGION_USER_WRAPS:
        region->user_addr = UINT64_MAX - 4096;
        break;
    case REGION_OFFSET_BEYOND:
        region->mmap_offset = 1ull << 40;
        break;
    case REGION_OFFSET_HUGE:
        region->mmap_offset = UINT64_MAX - 4095;
        break;
    case REGION_SIZE_BEYOND:
        region->size += 1ull << 30;
        break;
    case REGION_SIZE_HUGE:
        region->size = UINT64_MAX - 4095;
        break;
    case REGION_ODD_OFFSET:
        region->mmap_offset += 7;
        break;
    case REGION_ODD_SIZE:
        region->size -= 13;
        break;
    case REGION_NO_FD:
        return -1;
    case REGION_PIPE:
        if (pipe(pipes) < 0)
            return -1;
        close(pipes[0]);
        return pipes[1];
    case REGION_EVENTFD:
        return eventfd(0, EFD_CLOEXEC);
    case REGION_READ_ONLY:
        fd = memfd_create("small", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd >= 0 && ftruncate(fd, (off_t)(from->fd_offset + from->bytes)) < 0) {
            close(fd);
            return -1;
        }
        return fd;
    default:
        break;
    }
    return dup(from->fd);
}

static enum outcome wrong_table(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_memory table = {.num_regions = 1};
    enum outcome outcome;
    int fd;

    if (!torture_open(t, (struct bed_options){.no_memory = true}))
        return OUTCOME_ENDED;
    fd = region_make(t, (enum wrong_region)c->a, &table.regions[0]);
    outcome = said(
        t, vhost_user_front_set(&t->bed.front, VHOST_USER_SET_MEM_TABLE, &table, 40, &fd, fd >= 0 ? 1 : 0));
    if (fd >= 0)
        close(fd);
    return outcome == OUTCOME_ANSWERED ? try_ring(t) : outcome;
}

static enum outcome wrong_slot(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_single_region single = {0};
    enum outcome outcome;
    int fd;

    if (!(t->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t, (struct bed_options){.no_memory = true}))
        return OUTCOME_ENDED;
    fd = region_make(t, (enum wrong_region)c->a, &single.region);
    outcome = said(t, vhost_user_front_set(&t->bed.front, VHOST_USER_ADD_MEM_REG, &single, sizeof(single),
                                           &fd, fd >= 0 ? 1 : 0));
    if (fd >= 0)
        close(fd);
    return outcome == OUTCOME_ANSWERED ? try_ring(t) : outcome;
}

static enum outcome wrong_count(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_memory table = {.num_regions = (uint32_t)c->a};
    struct vhost_user_header header = {VHOST_USER_SET_MEM_TABLE, VHOST_USER_VERSION, (uint32_t)c->b};
    int fd;

    if (!torture_open(t, (struct bed_options){.no_memory = true}))
        return OUTCOME_ENDED;
    fd = region_make(t, REGIONS, &table.regions[0]);
    for (unsigned i = 1; i < VHOST_USER_MAX_REGIONS; i++)
        table.regions[i] = table.regions[0]; /* eight times the same one: they overlap */
    bed_send_raw(&t->bed, &header, &table, (uint32_t)c->b, &fd, 1);
    close(fd);
    return torture_look_over(t);
}

static enum outcome remove_region(struct torture *t, const struct torture_case *c)
{
    const struct hosted_region *from;
    struct vhost_user_single_region single = {0};

    if (!(t->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t, (struct bed_options){0}))
        return OUTCOME_ENDED;
    from = &t->bed.hosted->regions[0];
    single.region = (struct vhost_user_memory_region){from->guest_addr, from->bytes, (uintptr_t)from->mem, 0};
    if (c->a == 1)
        single.region.guest_addr += 4096; /* none that is there */
    if (c->a == 2)
        single.region.size = 0;
    for (uint64_t i = 0; i <= c->a; i++) /* a live one; and again, when it is gone */
        if (vhost_user_front_set(&t->bed.front, VHOST_USER_REM_MEM_REG, &single, sizeof(single), NULL, 0) < 0)
            break;
    bed_kick(&t->bed, 0);
    return torture_look(t);
}

static enum outcome many_slots(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_single_region single = {0};
    int fd, code = 0;

    if (!(t->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t, (struct bed_options){.no_memory = true}))
        return OUTCOME_ENDED;
    fd = t->bed.hosted->regions[0].fd;
    for (uint64_t i = 0; i < c->a && code == 0; i++) {
        single.region =
            (struct vhost_user_memory_region){0x1000000 + i * 4096, 4096, 0x7000000 + i * 4096, 0};
        code = vhost_user_front_set(&t->bed.front, VHOST_USER_ADD_MEM_REG, &single, sizeof(single), &fd, 1);
    }
    return said(t, code);
}

/* ---- where rings lie ---- */

enum ring_place {
    PLACE_NULL,
    PLACE_OUTSIDE,
    PLACE_LAST_BYTES,
    PLACE_LAST_16,
    PLACE_UNALIGNED,
    PLACE_NEAR_TOP,
    PLACE_ALL_THE_SAME,
    PLACE_USED_ON_DESC,
    PLACE_GUEST_ADDR,
    PLACE_LOG,
    PLACES
};

static const char *const place_names[PLACES] = {
    "at NULL",
    "outside of memory",
    "at a region's last bytes",
    "at a region's last 16 bytes",
    "not aligned",
    "near 2^64",
    "all three at one address",
    "used ring on the descriptors",
    "a guest's address",
    "with a log that there is not",
};

static enum outcome ring_place(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_vring_state number = {0, 64}, base = {0, 0};
    struct vhost_user_vring_addr addr = {0};
    struct bed_queue *queue = &t->bed.queues[0];
    uint64_t end;
    int code;

    if (!torture_open(t, (struct bed_options){.no_start = true}))
        return OUTCOME_ENDED;
    end = (uintptr_t)t->bed.hosted->regions[0].mem + t->bed.hosted->regions[0].bytes;
    addr.desc_user_addr = (uintptr_t)queue->desc;
    addr.avail_user_addr = (uintptr_t)queue->avail;
    addr.used_user_addr = (uintptr_t)queue->used;
    switch ((enum ring_place)c->a) {
    case PLACE_NULL:
        addr.desc_user_addr = addr.avail_user_addr = addr.used_user_addr = 0;
        break;
    case PLACE_OUTSIDE:
        addr.desc_user_addr = addr.avail_user_addr = addr.used_user_addr = end + (1u << 20);
        break;
    case PLACE_LAST_BYTES:
        addr.desc_user_addr = addr.avail_user_addr = addr.used_user_addr = end - 4;
        break;
    case PLACE_LAST_16:
        addr.desc_user_addr = addr.avail_user_addr = addr.used_user_addr = end - 16;
        break;
    case PLACE_UNALIGNED:
        addr.desc_user_addr += 3;
        addr.avail_user_addr += 1;
        addr.used_user_addr += 1;
        break;
    case PLACE_NEAR_TOP:
        addr.desc_user_addr = addr.avail_user_addr = addr.used_user_addr = UINT64_MAX - 15;
        break;
    case PLACE_ALL_THE_SAME:
        addr.avail_user_addr = addr.used_user_addr = addr.desc_user_addr;
        break;
    case PLACE_USED_ON_DESC:
        addr.used_user_addr = addr.desc_user_addr;
        break;
    case PLACE_GUEST_ADDR:
        addr.desc_user_addr = bed_addr(&t->bed, queue->desc);
        break;
    case PLACE_LOG:
        addr.flags = VHOST_USER_VRING_F_LOG;
        addr.log_guest_addr = UINT64_MAX - 3;
        break;
    default:
        break;
    }
    vhost_user_front_set(&t->bed.front, VHOST_USER_SET_VRING_NUM, &number, sizeof(number), NULL, 0);
    vhost_user_front_set(&t->bed.front, VHOST_USER_SET_VRING_BASE, &base, sizeof(base), NULL, 0);
    code = vhost_user_front_set(&t->bed.front, VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
    if (c->b) { /* without having been told where */
        vhost_user_front_set_u64(&t->bed.front, VHOST_USER_SET_VRING_CALL, 0, queue->call_fd);
        vhost_user_front_set_u64(&t->bed.front, VHOST_USER_SET_VRING_KICK, 0, queue->kick_fd);
        bed_queue_enable(&t->bed, 0, true);
        le16_store_release(&queue->avail->idx, 3);
        bed_kick(&t->bed, 0);
        bed_sleep_ms(2);
        return torture_look(t);
    }
    return said(t, code);
}

/* ---- files cut short under the device ---- */

static enum outcome file_cut(struct torture *t, const struct torture_case *c)
{
    struct virtio_blk_req_header *header;
    struct hosted_region *region;
    enum outcome outcome;

    if (!torture_open(t, (struct bed_options){.packed = c->b}))
        return OUTCOME_ENDED;
    region = &t->bed.hosted->regions[0];
    header = bed_alloc(&t->bed, 8192);
    if (!header)
        return OUTCOME_SKIPPED;
    header->type = le32_put(c->a == 1 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN);
    struct bed_piece pieces[] = {
        {header, 16, false}, {(uint8_t *)header + 4096, 4096, c->a != 1}, {(uint8_t *)header + 64, 1, true}};
    bed_put(&t->bed, 0, pieces, 3, false);
    if (c->a == 2) {
        bed_kick(&t->bed, 0);
        bed_wait(&t->bed, 0, 100, NULL, NULL);
    }
    /* From here on nothing of it may be touched from our side either. */
    if (ftruncate(region->fd, 0) < 0)
        return OUTCOME_SKIPPED;
    eventfd_write(t->bed.queues[0].kick_fd, 1);
    bed_sleep_ms(10);
    outcome = torture_look(t);
    if (ftruncate(region->fd, (off_t)(region->fd_offset + region->bytes)) < 0)
        return OUTCOME_SKIPPED;
    return outcome;
}

/* ---- the inflight region and the log ---- */

static enum outcome inflight(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_inflight region = {.mmap_size = 65536, .num_queues = 1, .queue_size = 64};
    uint8_t *mem;
    int fd, code;

    if (!(t->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t, (struct bed_options){.no_start = true, .packed = c->b}))
        return OUTCOME_ENDED;
    fd = memfd_create("inflight", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 65536) < 0)
        return OUTCOME_SKIPPED;
    mem = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED) {
        close(fd);
        return OUTCOME_SKIPPED;
    }
    switch (c->a) {
    case 0:
        memset(mem, 0xff, 65536);
        break;
    case 1:
        for (unsigned i = 0; i < 65536; i++)
            mem[i] = (uint8_t)chance_next(&t->chance);
        break;
    case 2: /* a right head, every descriptor in flight, all chained in a circle */
        mem[8] = 1;
        mem[10] = 64;
        for (unsigned i = 16; i < 65536; i += 16)
            mem[i] = 1;
        break;
    case 3:
        region.mmap_size = 8;
        break;
    case 4:
        region.mmap_size = 0;
        break;
    case 5:
        region.mmap_offset = UINT64_MAX - 4095;
        break;
    case 6:
        region.mmap_size = 1ull << 40;
        break;
    case 7:
        region.num_queues = 65535;
        region.queue_size = 65535;
        break;
    case 8:
        region.num_queues = 0;
        region.queue_size = 0;
        break;
    default:
        region.mmap_offset = 13;
        break;
    }
    munmap(mem, 65536);
    code = vhost_user_front_set(&t->bed.front, VHOST_USER_SET_INFLIGHT_FD, &region, sizeof(region), &fd, 1);
    close(fd);
    if (code < 0)
        return said(t, code);
    return try_ring(t);
}

static enum outcome inflight_asked(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_inflight want = {.num_queues = (uint16_t)c->a, .queue_size = (uint16_t)c->b}, got;
    int fd = -1, code;

    if (!(t->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t, (struct bed_options){.no_start = true}))
        return OUTCOME_ENDED;
    code = vhost_user_front_call(&t->bed.front, VHOST_USER_GET_INFLIGHT_FD, &want, sizeof(want), &got,
                                 sizeof(got), &fd);
    if (fd >= 0)
        close(fd);
    return code < 0 ? torture_look(t) : OUTCOME_ANSWERED;
}

static enum outcome log_base(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_log log = {c->a, c->b};
    uint64_t own = VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES);
    int fd;

    if (!(t->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_LOG_SHMFD)))
        return OUTCOME_SKIPPED;
    if (!torture_open(t, (struct bed_options){.no_start = true}))
        return OUTCOME_ENDED;
    fd = memfd_create("log", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 4096) < 0)
        return OUTCOME_SKIPPED;
    vhost_user_front_send(&t->bed.front, VHOST_USER_SET_LOG_BASE, 0, &log, sizeof(log), &fd, 1);
    close(fd);
    if (torture_look_over(t) == OUTCOME_ENDED)
        return OUTCOME_ENDED;
    vhost_user_front_set_u64(&t->bed.front, VHOST_USER_SET_FEATURES,
                             own | VIRTIO_BIT(VHOST_F_LOG_ALL) | VIRTIO_BIT(VIRTIO_F_VERSION_1), -1);
    return try_ring(t);
}

void torture_memory(struct torture_list *list)
{
    static const struct {
        uint32_t count, bytes;
        const char *name;
    } counts[] = {{0, 8, "no regions"},
                  {1, 8, "one region, cut short"},
                  {2, 72, "two overlapping regions, one descriptor"},
                  {8, 264, "eight overlapping regions, one descriptor"},
                  {9, 264, "nine regions"},
                  {0xffffffff, 264, "0xffffffff regions"},
                  {0xffffffff, 8, "0xffffffff regions, cut short"},
                  {1, 24, "half a region"}};
    static const char *const inflights[] = {
        "all ones",         "random bytes", "everything in flight", "of 8 bytes",    "of no bytes",
        "offset near 2^64", "of 1 TiB",     "for 65535 queues",     "for no queues", "odd offset"};
    static const struct {
        uint64_t size, offset;
        const char *name;
    } logs[] = {{8, 0, "of 8 bytes"},
                {0, 0, "of no bytes"},
                {1ull << 40, 0, "of 1 TiB"},
                {4096, 1ull << 40, "beyond the file"},
                {UINT64_MAX, UINT64_MAX, "that wraps"},
                {4096, 7, "odd offset"}};

    for (unsigned i = 0; i < REGIONS; i++)
        torture_add(list, wrong_table, i, 0, "SET_MEM_TABLE: a region %s", region_names[i]);
    for (unsigned i = 0; i < REGIONS; i++)
        torture_add(list, wrong_slot, i, 0, "ADD_MEM_REG: a region %s", region_names[i]);
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        torture_add(list, wrong_count, counts[i].count, counts[i].bytes, "SET_MEM_TABLE: %s", counts[i].name);
    torture_add(list, remove_region, 0, 0, "REM_MEM_REG: the region of a live ring");
    torture_add(list, remove_region, 1, 0, "REM_MEM_REG: a region that is not there");
    torture_add(list, remove_region, 2, 0, "REM_MEM_REG: a region of no bytes");
    torture_add(list, many_slots, 600, 0, "ADD_MEM_REG: six hundred of them");
    for (unsigned i = 0; i < PLACES; i++)
        for (unsigned b = 0; b < 2; b++)
            torture_add(list, ring_place, i, b, "SET_VRING_ADDR: %s%s", place_names[i],
                        b ? ", and kicked" : "");
    for (unsigned a = 0; a < 3; a++)
        for (unsigned b = 0; b < 2; b++)
            torture_add(list, file_cut, a, b, "memory cut to nothing %s, %s ring",
                        a == 0   ? "before a read"
                        : a == 1 ? "before a write"
                                 : "after a read",
                        b ? "packed" : "split");
    for (unsigned a = 0; a < sizeof(inflights) / sizeof(inflights[0]); a++)
        for (unsigned b = 0; b < 2; b++)
            torture_add(list, inflight, a, b, "inflight region %s, %s ring", inflights[a],
                        b ? "packed" : "split");
    torture_add(list, inflight_asked, 0, 0, "GET_INFLIGHT_FD: no queues");
    torture_add(list, inflight_asked, 65535, 65535, "GET_INFLIGHT_FD: 65535 queues of 65535");
    torture_add(list, inflight_asked, 1, 3, "GET_INFLIGHT_FD: a queue of 3");
    for (unsigned i = 0; i < sizeof(logs) / sizeof(logs[0]); i++)
        torture_add(list, log_base, logs[i].size, logs[i].offset, "dirty log %s", logs[i].name);
}
