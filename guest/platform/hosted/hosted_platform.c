/*
 * The hosted platform's memory, clock and waiting; see hosted.h.
 *
 * The arena is one range of addresses here and one range of guest addresses, cut into regions that are files
 * of their own. Each region starts at an offset other than 0 in its file, as a real machine's memory may.
 */
#include "guest/platform/hosted/hosted.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "guest/driver/vblk.h"

#define GUEST_BASE    0x140000000ull
#define REGION_ALIGN  (2u << 20)
#define BOUNCE_BYTES  16384u /* one slot */
#define BOUNCE_NONE   UINT32_MAX
#define POISON_BEFORE 0xdb
#define POISON_AFTER  0xdd

static uint64_t hosted_now_ns(void *ctx)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static size_t round_up(size_t value, size_t to)
{
    return (value + to - 1) / to * to;
}

static void hosted_relax(void *ctx)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("" ::: "memory");
#endif
}

/* ---- the arena ---- */

static bool region_map(struct hosted *hosted, unsigned index, size_t start, size_t bytes)
{
    struct hosted_region *region = &hosted->regions[index];

    region->fd = memfd_create("ringside-guest-memory", MFD_CLOEXEC);
    if (region->fd < 0)
        return false;
    region->fd_offset = (uint64_t)(index + 1) * 65536;
    region->bytes = bytes;
    region->guest_addr = GUEST_BASE + start;
    region->mem = hosted->arena + start;
    if (ftruncate(region->fd, (off_t)(region->fd_offset + bytes)) < 0)
        return false;
    return mmap(region->mem, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, region->fd,
                (off_t)region->fd_offset) != MAP_FAILED;
}

static bool arena_map(struct hosted *hosted)
{
    size_t each = hosted->arena_bytes / hosted->region_count;

    hosted->arena =
        mmap(NULL, hosted->arena_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hosted->arena == MAP_FAILED) {
        hosted->arena = NULL;
        return false;
    }
    for (unsigned i = 0; i < hosted->region_count; i++)
        if (!region_map(hosted, i, i * each, each))
            return false;
    hosted->free[0].start = 0;
    hosted->free[0].bytes = hosted->arena_bytes;
    hosted->free_count = 1;
    return true;
}

static void bounce_fill(struct hosted *hosted)
{
    uint32_t each = hosted->bounce_slots / HOSTED_BOUNCE_STACKS;

    for (uint32_t i = 0; i < hosted->bounce_slots; i++)
        hosted->bounce_next[i] = (i + 1) % each ? i + 1 : BOUNCE_NONE;
    for (uint32_t i = 0; i < HOSTED_BOUNCE_STACKS; i++)
        hosted->bounce_stack[i].top = i * each;
}

struct hosted *hosted_create(const struct hosted_options *options)
{
    struct hosted *hosted = calloc(1, sizeof(*hosted));
    size_t arena, bounce;
    int saved;

    if (!hosted)
        return NULL;
    hosted->options = *options;
    hosted->region_count = options->regions ? options->regions : 1;
    if (hosted->region_count > HOSTED_REGIONS_MAX)
        hosted->region_count = HOSTED_REGIONS_MAX;
    arena = options->arena_bytes ? options->arena_bytes : 64u << 20;
    bounce = options->bounce_bytes ? options->bounce_bytes : (options->copy_always ? 64u << 20 : 32u << 20);
    bounce = round_up(bounce, (size_t)BOUNCE_BYTES * HOSTED_BOUNCE_STACKS);
    hosted->arena_bytes = round_up(arena + bounce, (size_t)REGION_ALIGN * hosted->region_count);
    for (unsigned i = 0; i < HOSTED_REGIONS_MAX; i++)
        hosted->regions[i].fd = -1;
    for (unsigned i = 0; i < HOSTED_QUEUES_MAX; i++)
        hosted->call_fd[i] = -1;
    pthread_mutex_init(&hosted->lock, NULL);
    if (!arena_map(hosted))
        goto fail;

    hosted->bounce_slots = (uint32_t)(bounce / BOUNCE_BYTES);
    hosted->bounce = hosted_alloc(hosted, bounce, BOUNCE_BYTES);
    hosted->bounce_next = calloc(hosted->bounce_slots, sizeof(*hosted->bounce_next));
    if (!hosted->bounce || !hosted->bounce_next) {
        errno = ENOMEM;
        goto fail;
    }
    bounce_fill(hosted);
    return hosted;
fail:
    saved = errno;
    hosted_destroy(hosted);
    errno = saved;
    return NULL;
}

void hosted_destroy(struct hosted *hosted)
{
    if (!hosted)
        return;
    for (unsigned i = 0; i < HOSTED_REGIONS_MAX; i++)
        if (hosted->regions[i].fd >= 0)
            close(hosted->regions[i].fd);
    if (hosted->arena)
        munmap(hosted->arena, hosted->arena_bytes);
    free(hosted->bounce_next);
    pthread_mutex_destroy(&hosted->lock);
    free(hosted);
}

/* First fit. WHOLE: not across the border of two regions, as rings must lie in one. */
static void *arena_alloc(struct hosted *hosted, size_t bytes, size_t align, bool whole)
{
    size_t each = hosted->arena_bytes / hosted->region_count;
    uint8_t *mem = NULL;

    if (!bytes || !align)
        return NULL;
    bytes = round_up(bytes, 64);
    pthread_mutex_lock(&hosted->lock);
    for (unsigned i = 0; i < hosted->free_count && !mem; i++) {
        size_t start = round_up(hosted->free[i].start, align);
        size_t end = hosted->free[i].start + hosted->free[i].bytes;

        if (whole && bytes <= each && start / each != (start + bytes - 1) / each)
            start = round_up(start, each);
        if (start > end || end - start < bytes)
            continue;
        if (start != hosted->free[i].start && start + bytes != end) {
            if (hosted->free_count == HOSTED_EXTENTS_MAX)
                continue;
            memmove(&hosted->free[i + 1], &hosted->free[i],
                    (hosted->free_count - i) * sizeof(hosted->free[0]));
            hosted->free_count++;
            hosted->free[i].bytes = start - hosted->free[i].start;
            hosted->free[i + 1].start = start + bytes;
            hosted->free[i + 1].bytes = end - (start + bytes);
        } else if (start != hosted->free[i].start) {
            hosted->free[i].bytes = start - hosted->free[i].start;
        } else {
            hosted->free[i].start += bytes;
            hosted->free[i].bytes -= bytes;
        }
        mem = hosted->arena + start;
    }
    pthread_mutex_unlock(&hosted->lock);
    if (mem)
        memset(mem, 0, bytes);
    return mem;
}

void *hosted_alloc(struct hosted *hosted, size_t bytes, size_t align)
{
    return arena_alloc(hosted, bytes, align, false);
}

void hosted_free(struct hosted *hosted, void *mem, size_t bytes)
{
    size_t start;
    unsigned i = 0;

    if (!mem)
        return;
    start = (size_t)((uint8_t *)mem - hosted->arena);
    bytes = round_up(bytes, 64);
    pthread_mutex_lock(&hosted->lock);
    while (i < hosted->free_count && hosted->free[i].start < start)
        i++;
    if (i > 0 && hosted->free[i - 1].start + hosted->free[i - 1].bytes == start) {
        hosted->free[i - 1].bytes += bytes;
        if (i < hosted->free_count && start + bytes == hosted->free[i].start) {
            hosted->free[i - 1].bytes += hosted->free[i].bytes;
            hosted->free_count--;
            memmove(&hosted->free[i], &hosted->free[i + 1],
                    (hosted->free_count - i) * sizeof(hosted->free[0]));
        }
    } else if (i < hosted->free_count && start + bytes == hosted->free[i].start) {
        hosted->free[i].start = start;
        hosted->free[i].bytes += bytes;
    } else if (hosted->free_count < HOSTED_EXTENTS_MAX) {
        memmove(&hosted->free[i + 1], &hosted->free[i], (hosted->free_count - i) * sizeof(hosted->free[0]));
        hosted->free[i].start = start;
        hosted->free[i].bytes = bytes;
        hosted->free_count++;
    } /* else: a hole in the arena until it goes */
    pthread_mutex_unlock(&hosted->lock);
}

uint64_t hosted_guest_addr(const struct hosted *hosted, const void *mem)
{
    uintptr_t offset = (uintptr_t)mem - (uintptr_t)hosted->arena;

    return offset < hosted->arena_bytes ? GUEST_BASE + offset : UINT64_MAX;
}

void *hosted_pointer(const struct hosted *hosted, uint64_t guest_addr, size_t bytes)
{
    uint64_t offset = guest_addr - GUEST_BASE;

    if (guest_addr < GUEST_BASE || offset > hosted->arena_bytes || hosted->arena_bytes - offset < bytes)
        return NULL;
    return hosted->arena + offset;
}

static void *hosted_dma_alloc(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr)
{
    struct hosted *hosted = ctx;
    void *mem = arena_alloc(hosted, bytes, align < 64 ? 64 : align, true);

    if (mem)
        addr->value = hosted_guest_addr(hosted, mem);
    return mem;
}

static void hosted_dma_free(void *ctx, void *mem, size_t bytes)
{
    hosted_free(ctx, mem, bytes);
}

/* ---- sharing ---- */

static void bounce_lock(struct hosted *hosted, unsigned stack)
{
    while (__atomic_test_and_set(&hosted->bounce_stack[stack].locked, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(&hosted->bounce_stack[stack].locked, __ATOMIC_RELAXED))
            hosted_relax(NULL);
}

static void bounce_unlock(struct hosted *hosted, unsigned stack)
{
    __atomic_clear(&hosted->bounce_stack[stack].locked, __ATOMIC_RELEASE);
}

/* Threads take turns at the stacks. */
static unsigned bounce_own_stack(void)
{
    static unsigned threads;
    static __thread unsigned mine;

    if (!mine)
        mine = 1 + __atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED) % HOSTED_BOUNCE_STACKS;
    return mine - 1;
}

static uint8_t *bounce_take(struct hosted *hosted)
{
    unsigned stack = bounce_own_stack();
    uint32_t slot;

    bounce_lock(hosted, stack);
    slot = hosted->bounce_stack[stack].top;
    if (slot != BOUNCE_NONE)
        hosted->bounce_stack[stack].top = hosted->bounce_next[slot];
    bounce_unlock(hosted, stack);
    return slot == BOUNCE_NONE ? NULL : hosted->bounce + (size_t)slot * BOUNCE_BYTES;
}

/* Back to the stack that it came from, whoever gives it. */
static void bounce_give(struct hosted *hosted, const uint8_t *mem)
{
    uint32_t slot = (uint32_t)((size_t)(mem - hosted->bounce) / BOUNCE_BYTES);
    unsigned stack = slot / (hosted->bounce_slots / HOSTED_BOUNCE_STACKS);

    bounce_lock(hosted, stack);
    hosted->bounce_next[slot] = hosted->bounce_stack[stack].top;
    hosted->bounce_stack[stack].top = slot;
    bounce_unlock(hosted, stack);
}

static bool is_bounce(const struct hosted *hosted, const uint8_t *mem)
{
    return (uintptr_t)mem - (uintptr_t)hosted->bounce < (size_t)hosted->bounce_slots * BOUNCE_BYTES;
}

static int hosted_share(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                        size_t *contiguous)
{
    struct hosted *hosted = ctx;
    uint64_t offset = (uintptr_t)mem - (uintptr_t)hosted->arena;
    uint8_t *bounce;

    if (!hosted->options.copy_always && offset < hosted->arena_bytes && hosted->arena_bytes - offset >= len) {
        addr->value = GUEST_BASE + offset;
        *contiguous = len;
        return 0;
    }
    bounce = bounce_take(hosted);
    if (!bounce)
        return -VBLK_EAGAIN;
    if (len > BOUNCE_BYTES)
        len = BOUNCE_BYTES;
    if (direction == VBLK_TO_DEVICE)
        memcpy(bounce, mem, len);
    else
        memset(bounce, POISON_BEFORE, len);
    addr->value = hosted_guest_addr(hosted, bounce);
    *contiguous = len;
    return 0;
}

static void hosted_unshare(void *ctx, void *mem, size_t len, enum vblk_direction direction,
                           vblk_dma_addr addr)
{
    struct hosted *hosted = ctx;
    uint8_t *bounce = hosted->arena + (addr.value - GUEST_BASE);

    if (!is_bounce(hosted, bounce))
        return;
    if (direction == VBLK_FROM_DEVICE)
        memcpy(mem, bounce, len);
    if (hosted->options.copy_always)
        memset(bounce, POISON_AFTER, len);
    bounce_give(hosted, bounce);
}

/* ---- time and interrupts ---- */

void hosted_set_call_fd(struct hosted *hosted, unsigned queue, int fd)
{
    if (queue < HOSTED_QUEUES_MAX)
        __atomic_store_n(&hosted->call_fd[queue], fd, __ATOMIC_RELEASE);
}

/* An interrupt that came since vblk_interrupts_on is still in the eventfd's count, so that it ends the wait.
 */
static void hosted_wait(void *ctx, unsigned queue, uint64_t deadline_ns)
{
    struct hosted *hosted = ctx;
    int fd = queue < HOSTED_QUEUES_MAX ? __atomic_load_n(&hosted->call_fd[queue], __ATOMIC_ACQUIRE) : -1;
    uint64_t now = hosted_now_ns(ctx), left = deadline_ns > now ? deadline_ns - now : 0, count;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    struct timespec timeout;

    if (left > 1000000000u)
        left = 1000000000u;
    if (fd < 0 && left > 1000000u)
        left = 1000000u;
    timeout.tv_sec = (time_t)(left / 1000000000u);
    timeout.tv_nsec = (long)(left % 1000000000u);
    if (ppoll(&wait, 1, &timeout, NULL) <= 0)
        return;
    /* Else somebody else took it: as good as a spurious interrupt. */
    if (read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
        __atomic_fetch_add(&hosted->interrupts[queue], count, __ATOMIC_RELAXED);
}

uint64_t hosted_interrupts(const struct hosted *hosted, unsigned queue)
{
    return queue < HOSTED_QUEUES_MAX ? __atomic_load_n(&hosted->interrupts[queue], __ATOMIC_RELAXED) : 0;
}

static void hosted_log(void *ctx, enum vblk_log_level level, const char *text)
{
    const struct hosted *hosted = ctx;

    if (hosted->options.log)
        hosted->options.log(level, text);
}

void hosted_platform(struct hosted *hosted, struct vblk_platform *platform)
{
    *platform = (struct vblk_platform){
        .ctx = hosted,
        .dma_alloc = hosted_dma_alloc,
        .dma_free = hosted_dma_free,
        .share = hosted_share,
        .unshare = hosted_unshare,
        .now_ns = hosted_now_ns,
        .wait = hosted_wait,
        .relax = hosted_relax,
        .log = hosted_log,
    };
}
