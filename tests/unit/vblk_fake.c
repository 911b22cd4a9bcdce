/* The fake device's registers, its machine (memory, clock), its trace, and what the tests drive it with. */
#include "tests/unit/vblk_fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"

#define DMA_BASE(i) ((uint64_t)((i) + 1) << 32) /* low enough for a legacy device's page number */
#define DMA_OFFSET  0x1000000000000ull
#define DISK_MAX    (64ull << 20)

void fake_fault(struct fake *fake, const char *format, ...)
{
    va_list args;
    char text[256];

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (fake->faults++ == 0)
        snprintf(fake->first_fault, sizeof(fake->first_fault), "%s", text);
    if (fake->faults < 10 && getenv("FAKE_VERBOSE"))
        fprintf(stderr, "# fault: %s\n", text);
}

void fake_note(struct fake *fake, enum fake_event_kind kind, uint64_t a, uint64_t b)
{
    if (fake->ntrace < FAKE_TRACE_MAX)
        fake->trace[fake->ntrace++] = (struct fake_event){kind, a, b};
}

unsigned fake_count(const struct fake *fake, enum fake_event_kind kind)
{
    unsigned i, n = 0;

    for (i = 0; i < fake->ntrace; i++)
        n += fake->trace[i].kind == kind;
    return n;
}

int fake_event_position(const struct fake *fake, enum fake_event_kind kind, unsigned nth)
{
    unsigned i;

    for (i = 0; i < fake->ntrace; i++)
        if (fake->trace[i].kind == kind && nth-- == 0)
            return (int)i;
    return -1;
}

const struct fake_event *fake_event(const struct fake *fake, enum fake_event_kind kind, unsigned nth)
{
    int at = fake_event_position(fake, kind, nth);

    return at < 0 ? NULL : &fake->trace[at];
}

bool fake_has(const struct fake *fake, unsigned feature)
{
    return (fake->accepted & VIRTIO_BIT(feature)) != 0;
}

/* ---- transport ---- */

static struct fake *of(struct vtr *vtr)
{
    return (struct fake *)(void *)vtr;
}

static uint8_t get_status(struct vtr *vtr)
{
    struct fake *fake = of(vtr);
    uint8_t status = fake->status;

    if (fake->gone)
        return 0xff;
    if (fake->status == 0 && fake->reset_delay) {
        fake->reset_delay--;
        status = VIRTIO_STATUS_ACKNOWLEDGE;
    } else if ((fake->status & VIRTIO_STATUS_SUSPEND) && (fake->status & VIRTIO_STATUS_DRIVER_OK)) {
        if (fake->suspend_delay) {
            fake->suspend_delay--;
        } else if (fake->suspended) {
            fake->status &= (uint8_t)~VIRTIO_STATUS_SUSPEND;
            fake->suspended = false;
        } else {
            fake->status &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
            fake->suspended = true;
        }
        status = fake->status;
    }
    fake_note(fake, EV_STATUS_READ, status, 0);
    return status;
}

static void reset(struct fake *fake)
{
    unsigned i;

    fake->resets++;
    fake->status = 0;
    fake->accepted = 0;
    fake->isr = 0;
    fake->suspended = false;
    for (i = 0; i < FAKE_QUEUES; i++) {
        unsigned size_max = fake->queue[i].size_max, kicks = fake->queue[i].kicks;
        bool refused = fake->queue[i].vector_refused;
        memset(&fake->queue[i], 0, sizeof(fake->queue[i]));
        fake->queue[i].size_max = size_max;
        fake->queue[i].kicks = kicks;
        fake->queue[i].vector_refused = refused;
    }
    if (fake->on_reset)
        fake->on_reset(fake);
}

static void set_status(struct vtr *vtr, uint8_t status)
{
    struct fake *fake = of(vtr);

    fake_note(fake, EV_STATUS_WRITE, status, 0);
    if (fake->gone)
        return;
    if (status == 0) {
        if (!fake->stuck_status)
            reset(fake);
        return;
    }
    if (fake->status & ~status)
        fake_fault(fake, "checklist 2: status %#x cleared a bit of %#x", status, fake->status);
    if (fake->status & VIRTIO_STATUS_FAILED)
        fake_fault(fake, "checklist 3: status %#x after FAILED without a reset", status);
    if ((status & VIRTIO_STATUS_SUSPEND) && !(fake->status & VIRTIO_STATUS_SUSPEND) &&
        (!(fake->status & VIRTIO_STATUS_DRIVER_OK) || !fake_has(fake, VIRTIO_F_SUSPEND)))
        fake_fault(fake, "checklist 149: SUSPEND without DRIVER_OK or the feature");
    if ((status & VIRTIO_STATUS_FEATURES_OK) && !(fake->status & VIRTIO_STATUS_FEATURES_OK)) {
        if (fake->ops.legacy)
            fake_fault(fake, "checklist 144: FEATURES_OK with a legacy device");
        if (fake->refuse_features)
            status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    }
    fake->status = status;
}

static uint64_t get_features(struct vtr *vtr)
{
    fake_note(of(vtr), EV_FEATURES_READ, 0, 0);
    return of(vtr)->gone ? UINT64_MAX : of(vtr)->offered;
}

static void set_features(struct vtr *vtr, uint64_t features)
{
    struct fake *fake = of(vtr);

    fake_note(fake, EV_FEATURES_WRITE, features, 0);
    if (features & ~fake->offered)
        fake_fault(fake, "checklist 9: accepted %#llx, not offered",
                   (unsigned long long)(features & ~fake->offered));
    if (fake->status & VIRTIO_STATUS_FEATURES_OK)
        fake_fault(fake, "checklist 141: features after FEATURES_OK");
    if (!(fake->status & VIRTIO_STATUS_DRIVER))
        fake_fault(fake, "checklist 139: features before DRIVER");
    fake->accepted = features;
}

/* Which feature the field at OFFSET needs; -1 none; -2 there is no such field of that width */
static int field_feature(unsigned offset, unsigned width)
{
    static const struct {
        uint8_t offset, width;
        int8_t feature;
    } fields[] = {
        {0, 4, -1},  {4, 4, -1},  {8, 4, 1},   {12, 4, 2},  {16, 2, 4},  {18, 1, 4},
        {19, 1, 4},  {20, 4, 6},  {24, 1, 10}, {25, 1, 10}, {26, 2, 10}, {28, 4, 10},
        {32, 1, 11}, {34, 2, 12}, {36, 4, 13}, {40, 4, 13}, {44, 4, 13}, {48, 4, 14},
        {52, 4, 14}, {56, 1, 14}, {60, 4, 16}, {64, 4, 16}, {68, 4, 16}, {72, 4, 17},
        {76, 4, 17}, {80, 4, 17}, {84, 4, 17}, {88, 4, 17}, {92, 1, 17},
    };
    unsigned i;

    for (i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        if (fields[i].offset == offset && fields[i].width == width)
            return fields[i].feature;
    return -2;
}

static uint32_t config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    struct fake *fake = of(vtr);
    int feature = field_feature(offset, width);
    uint64_t there = fake->status & VIRTIO_STATUS_FEATURES_OK ? fake->accepted : fake->offered;
    uint32_t value = 0;
    unsigned i;

    fake_note(fake, EV_CONFIG_READ, offset, width);
    if (fake->gone)
        return UINT32_MAX >> (32 - 8 * width);
    if (feature == -2)
        fake_fault(fake, "checklist 165/234: config read of %u bytes at %u", width, offset);
    else if (feature >= 0 && !(there & VIRTIO_BIT(feature)))
        fake_fault(fake, "checklist 27: config field at %u read without its feature", offset);
    if (offset == 32 && !(fake->status & VIRTIO_STATUS_FEATURES_OK) && !fake->ops.legacy)
        fake_fault(fake, "checklist 268: writeback read before FEATURES_OK");
    if (offset + width > fake->config_bytes)
        fake_fault(fake, "checklist 28: config read at %u beyond its end", offset);
    if (fake->on_config_read)
        fake->on_config_read(fake, offset);
    for (i = 0; i < width && offset + i < sizeof(fake->config); i++)
        value |= (uint32_t)((const uint8_t *)&fake->config)[offset + i] << (8 * i);
    return value;
}

static void config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
    struct fake *fake = of(vtr);

    fake_note(fake, EV_CONFIG_WRITE, offset, value);
    if (!(fake->status & VIRTIO_STATUS_FEATURES_OK))
        fake_fault(fake, "checklist 140: config written during the feature step");
    if (fake->suspended)
        fake_fault(fake, "checklist 151: config written while suspended");
    if (offset != 32 || width != 1 || !fake_has(fake, VIRTIO_BLK_F_CONFIG_WCE))
        fake_fault(fake, "config field at %u is not ours to write", offset);
    else
        fake->config.writeback = (uint8_t)value;
}

static uint32_t config_generation(struct vtr *vtr)
{
    struct fake *fake = of(vtr);

    fake_note(fake, EV_GENERATION, fake->generation, 0);
    return fake->generation_runs ? fake->generation++ : fake->generation;
}

static unsigned config_bytes(struct vtr *vtr)
{
    return of(vtr)->config_bytes;
}

static unsigned num_queues(struct vtr *vtr)
{
    return of(vtr)->num_queues;
}

static unsigned queue_size_max(struct vtr *vtr, unsigned index)
{
    struct fake *fake = of(vtr);

    fake_note(fake, EV_QUEUE_MAX, index, 0);
    if (!(fake->status & VIRTIO_STATUS_FEATURES_OK) && !fake->ops.legacy)
        fake_fault(fake, "checklist 139: queue touched before FEATURES_OK");
    return index < fake->num_queues ? fake->queue[index].size_max : 0;
}

static void check_part(struct fake *fake, vblk_dma_addr addr, uint64_t bytes, unsigned align,
                       const char *what)
{
    if (addr.value % align)
        fake_fault(fake, "checklist 40/96: %s ring is not aligned to %u", what, align);
    (void)fake_at(fake, addr.value, bytes);
}

static int queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    struct fake *fake = of(vtr);
    struct fake_queue *q;
    bool packed = fake_has(fake, VIRTIO_F_RING_PACKED);
    unsigned n = queue->size;

    fake_note(fake, EV_QUEUE_ENABLE, queue->index, queue->vector);
    if (queue->index >= fake->num_queues || fake->queue[queue->index].size_max == 0)
        return -VBLK_ENODEV;
    q = &fake->queue[queue->index];
    if (fake->status & VIRTIO_STATUS_DRIVER_OK && !fake_has(fake, VIRTIO_F_RING_RESET))
        fake_fault(fake, "checklist 39: queue enabled after DRIVER_OK");
    if (n == 0 || n > q->size_max || (!packed && (n & (n - 1))))
        fake_fault(fake, "checklist 41/188/238: queue size %u", n);
    if (queue->vector != VTR_NO_VECTOR && queue->vector >= fake->vectors)
        fake_fault(fake, "checklist 220: vector %u of %u", queue->vector, fake->vectors);
    if (queue->vector != VTR_NO_VECTOR && q->vector_refused)
        return -VBLK_ENOTSUP;
    if (packed) {
        check_part(fake, queue->desc, 16u * n, 16, "descriptor");
        check_part(fake, queue->driver, 4, 4, "driver event");
        check_part(fake, queue->device, 4, 4, "device event");
    } else {
        check_part(fake, queue->desc, VIRTQ_DESC_BYTES(n), 16, "descriptor");
        check_part(fake, queue->driver, VIRTQ_AVAIL_BYTES(n), 2, "available");
        check_part(fake, queue->device, VIRTQ_USED_BYTES(n), fake->ops.legacy ? 4096 : 4, "used");
        if (fake->ops.legacy && queue->driver.value != queue->desc.value + 16u * n)
            fake_fault(fake, "checklist 44: legacy ring's parts are not in order");
    }
    q->enabled = true;
    q->resetting = false;
    q->setup = *queue;
    q->avail_seen = q->used_idx = q->next = q->used_next = 0;
    q->wrap = q->used_wrap = true;
    if (packed) {
        unsigned i;
        for (i = 0; i < n; i++)
            if (le16_load(&fake_packed(fake, queue->index)[i].flags) != 0)
                fake_fault(fake, "checklist 98: packed ring not zeroed");
    } else {
        if (le16_load(&fake_used(fake, queue->index)->flags) ||
            le16_load(&fake_used(fake, queue->index)->idx) || le16_load(&fake_avail(fake, queue->index)->idx))
            fake_fault(fake, "checklist 74/222: ring not zeroed");
    }
    return 0;
}

static void queue_reset(struct vtr *vtr, unsigned index)
{
    struct fake *fake = of(vtr);

    fake_note(fake, EV_QUEUE_RESET, index, 0);
    if (!fake_has(fake, VIRTIO_F_RING_RESET))
        fake_fault(fake, "checklist 39: queue reset was not negotiated");
    fake->queue[index].resetting = true;
    fake->queue[index].enabled = false;
    fake->queue[index].in_flight = 0;
}

static bool queue_is_reset(struct vtr *vtr, unsigned index)
{
    struct fake *fake = of(vtr);

    fake_note(fake, EV_QUEUE_IS_RESET, index, 0);
    if (fake->stuck_queue_reset)
        return false;
    if (fake->queue_reset_delay) {
        fake->queue_reset_delay--;
        return false;
    }
    fake->queue[index].resetting = false;
    return true;
}

static void notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
    struct fake *fake = of(vtr);
    struct fake_queue *q = &fake->queue[index];

    fake_note(fake, EV_NOTIFY, index, next);
    if (fake->gone)
        return;
    if (!(fake->status & VIRTIO_STATUS_DRIVER_OK))
        fake_fault(fake, fake->suspended ? "checklist 151: notified while suspended"
                                         : "checklist 130: notified before DRIVER_OK");
    if (with_data != fake_has(fake, VIRTIO_F_NOTIFICATION_DATA))
        fake_fault(fake, "checklist 133/134: notification with or without data");
    q->kicks++;
    q->last_kick_next = next;
    if (fake->lose_kicks > 0) {
        fake->lose_kicks--;
        return;
    }
    if (fake->run_on_notify)
        fake_run(fake, index);
}

static uint8_t interrupt_status(struct vtr *vtr)
{
    uint8_t isr = of(vtr)->isr;

    fake_note(of(vtr), EV_INTERRUPT_STATUS, isr, 0);
    of(vtr)->isr = 0;
    return isr;
}

static unsigned num_vectors(struct vtr *vtr)
{
    return of(vtr)->vectors;
}

static int set_config_vector(struct vtr *vtr, uint16_t vector)
{
    fake_note(of(vtr), EV_CONFIG_VECTOR, vector, 0);
    return 0;
}

static bool cut_off(struct vtr *vtr)
{
    of(vtr)->cut_offs++;
    return true;
}

static const struct vtr_ops fake_ops = {
    .name = "fake",
    .get_status = get_status,
    .set_status = set_status,
    .get_features = get_features,
    .set_features = set_features,
    .config_read = config_read,
    .config_write = config_write,
    .config_generation = config_generation,
    .config_bytes = config_bytes,
    .num_queues = num_queues,
    .queue_size_max = queue_size_max,
    .queue_enable = queue_enable,
    .queue_reset = queue_reset,
    .queue_is_reset = queue_is_reset,
    .notify = notify,
    .interrupt_status = interrupt_status,
    .num_vectors = num_vectors,
    .set_config_vector = set_config_vector,
    .cut_off = cut_off,
    .carries = VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA) | VIRTIO_BIT(VIRTIO_F_NOTIF_CONFIG_DATA) |
               VIRTIO_BIT(VIRTIO_F_RING_RESET),
};

/* ---- the machine ---- */

static void *dma_alloc(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr)
{
    struct fake *fake = ctx;
    unsigned i;
    void *mem;

    if (fake->dma_fail)
        return NULL;
    for (i = 0; i < FAKE_QUEUES && fake->dma[i].mem; i++)
        ;
    if (i >= FAKE_QUEUES)
        return NULL;
    mem = aligned_alloc(align, (bytes + align - 1) / align * align);
    assert_non_null(mem);
    memset(mem, 0, bytes);
    fake->dma[i].mem = mem;
    fake->dma[i].len = bytes;
    fake->dma_live++;
    addr->value = DMA_BASE(i);
    return mem;
}

static void dma_free(void *ctx, void *mem, size_t bytes)
{
    struct fake *fake = ctx;
    unsigned i;

    for (i = 0; i < FAKE_QUEUES; i++)
        if (fake->dma[i].mem == mem && fake->dma[i].len == bytes) {
            fake->dma[i].mem = NULL;
            fake->dma_live--;
            free(mem);
            return;
        }
    fail_msg("dma_free of what was not allocated");
}

uint8_t *fake_at(struct fake *fake, uint64_t addr, uint64_t len)
{
    unsigned i;

    for (i = 0; i < FAKE_QUEUES; i++) {
        uint64_t base = DMA_BASE(i);
        if (fake->dma[i].mem && addr >= base && addr - base <= fake->dma[i].len &&
            len <= fake->dma[i].len - (addr - base))
            return fake->dma[i].mem + (addr - base);
    }
    for (i = 0; i < fake->share_slots; i++) {
        uint64_t base = (uint64_t)(uintptr_t)fake->share[i].copy + DMA_OFFSET;
        if (fake->share[i].copy && addr >= base && addr - base <= fake->share[i].len &&
            len <= fake->share[i].len - (addr - base))
            return fake->share[i].copy + (addr - base);
    }
    fake_fault(fake, "checklist 252: %llu bytes at %#llx are not shared with the device",
               (unsigned long long)len, (unsigned long long)addr);
    return NULL;
}

static int share(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                 size_t *contiguous)
{
    struct fake *fake = ctx;
    unsigned i;

    if (fake->share_einval)
        return -VBLK_EINVAL;
    if (fake->shares_live >= (fake->shares_max ? fake->shares_max : FAKE_MAX_SHARE))
        return -VBLK_EAGAIN;
    if (fake->share_page) {
        size_t to_edge = fake->share_page - (uintptr_t)mem % fake->share_page;
        if (len > to_edge)
            len = to_edge;
    }
    for (i = 0; fake->share[i].copy; i++)
        ;
    if (i >= fake->share_slots)
        fake->share_slots = i + 1;
    fake->share[i].copy = malloc(len);
    assert_non_null(fake->share[i].copy);
    fake->share[i].mem = mem;
    fake->share[i].len = len;
    fake->share[i].direction = direction;
    if (direction == VBLK_TO_DEVICE)
        memcpy(fake->share[i].copy, mem, len);
    else
        memset(fake->share[i].copy, 0xee, len);
    fake->shares_live++;
    fake->shares_total++;
    addr->value = (uint64_t)(uintptr_t)fake->share[i].copy + DMA_OFFSET;
    *contiguous = len;
    return 0;
}

static void unshare(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr)
{
    struct fake *fake = ctx;
    unsigned i;

    for (i = 0; i < fake->share_slots; i++)
        if (fake->share[i].copy && (uint64_t)(uintptr_t)fake->share[i].copy + DMA_OFFSET == addr.value)
            break;
    if (i == fake->share_slots || fake->share[i].mem != mem || fake->share[i].len != len ||
        fake->share[i].direction != direction) {
        fake_fault(fake, "unshare of what was not shared so");
        return;
    }
    if (direction == VBLK_FROM_DEVICE)
        memcpy(mem, fake->share[i].copy, len);
    free(fake->share[i].copy);
    fake->share[i].copy = NULL;
    fake->shares_live--;
}

static uint64_t clock_ns(void *ctx)
{
    struct fake *fake = ctx;

    fake->clock_ns += fake->clock_step_ns;
    return fake->clock_ns;
}

static void wait(void *ctx, unsigned queue, uint64_t deadline_ns)
{
    struct fake *fake = ctx;

    fake->waits++;
    if (fake->run_on_wait) {
        fake_run_all(fake);
        return;
    }
    if (fake->clock_ns < deadline_ns)
        fake->clock_ns = deadline_ns;
}

static void logged(void *ctx, enum vblk_log_level level, const char *text)
{
    struct fake *fake = ctx;

    fake->log_lines++;
    fake->log_errors += level == VBLK_LOG_ERROR;
    snprintf(fake->last_log, sizeof(fake->last_log), "%s", text);
    if (getenv("FAKE_VERBOSE"))
        fprintf(stderr, "# log: %s\n", text);
}

struct fake *fake_new(uint64_t features, uint64_t capacity_sectors)
{
    struct fake *fake = calloc(1, sizeof(*fake));
    unsigned i;

    assert_non_null(fake);
    fake->trace = calloc(FAKE_TRACE_MAX, sizeof(fake->trace[0]));
    assert_non_null(fake->trace);
    fake->ops = fake_ops;
    fake->vtr.ops = &fake->ops;
    fake->offered = features | VIRTIO_BIT(VIRTIO_F_VERSION_1);
    fake->config.capacity = le64_put(capacity_sectors);
    fake->config_bytes = sizeof(fake->config);
    fake->num_queues = 1;
    for (i = 0; i < FAKE_QUEUES; i++)
        fake->queue[i].size_max = 256;
    fake->disk_bytes = capacity_sectors < DISK_MAX / 512 ? capacity_sectors * 512 : DISK_MAX;
    fake->disk = calloc(1, fake->disk_bytes + 1);
    assert_non_null(fake->disk);
    fake->run_on_notify = true;
    fake->clock_step_ns = 1000;
    fake->platform = (struct vblk_platform){.ctx = fake,
                                            .dma_alloc = dma_alloc,
                                            .dma_free = dma_free,
                                            .share = share,
                                            .unshare = unshare,
                                            .now_ns = clock_ns,
                                            .wait = wait,
                                            .log = logged};
    return fake;
}

int fake_start(struct fake *fake, const struct vblk_config *config)
{
    size_t bytes;
    int result;

    fake->vblk_config = config ? *config : (struct vblk_config){.queue_size = 16};
    if (fake->vblk_config.deadline_ns == 0)
        fake->vblk_config.deadline_ns = 1000000;
    bytes = (vblk_memory_bytes(&fake->vblk_config) + 63) & ~(size_t)63;
    fake->memory = aligned_alloc(64, bytes);
    assert_non_null(fake->memory);
    memset(fake->memory, 0xa5, bytes);
    result = vblk_start(&fake->vblk, fake->memory, bytes, &fake->vtr, &fake->platform, &fake->vblk_config);
    if (result < 0)
        assert_null(fake->vblk);
    return result;
}

static void release(struct fake *fake)
{
    unsigned i;

    for (i = 0; i < FAKE_QUEUES; i++)
        free(fake->dma[i].mem);
    for (i = 0; i < FAKE_MAX_SHARE; i++)
        free(fake->share[i].copy);
    free(fake->memory);
    free(fake->disk);
    free(fake->trace);
    free(fake);
}

void fake_stop_unchecked(struct fake *fake)
{
    if (fake->vblk)
        vblk_stop(fake->vblk);
    release(fake);
}

void fake_stop(struct fake *fake)
{
    if (fake->vblk)
        vblk_stop(fake->vblk);
    if (fake->faults)
        fail_msg("%u faults, the first: %s", fake->faults, fake->first_fault);
    assert_int_equal(fake->shares_live, 0);
    assert_int_equal(fake->dma_live, 0);
    release(fake);
}

/* ---- requests ---- */

static unsigned completions;

static void completed(struct vblk_request *request, int result)
{
    struct fake_request *r = request->opaque;

    assert_false(r->done); /* once */
    r->done = true;
    r->result = result;
    r->order = ++completions;
    fake_note(r->fake, EV_COMPLETE, (uint64_t)(uintptr_t)request, (uint64_t)(int64_t)result);
}

int fake_submit(struct fake *fake, unsigned queue, struct fake_request *r, enum vblk_op op, uint64_t sector,
                void *buf, size_t len)
{
    r->done = false;
    r->fake = fake;
    r->request.op = op;
    r->request.sector = sector;
    r->request.complete = completed;
    r->request.opaque = r;
    if (buf) {
        r->segs[0] = (struct vblk_seg){buf, len};
        r->request.segs = r->segs;
        r->request.nsegs = 1;
    }
    return vblk_submit(fake->vblk, queue, &r->request);
}

void fake_finish(struct fake *fake, unsigned queue, struct fake_request *r)
{
    unsigned limit = 1000000;

    while (!r->done && limit--) {
        vblk_poll(fake->vblk, queue);
        fake->clock_ns += 1000;
    }
    assert_true(r->done);
}

uint64_t fake_layout(unsigned n)
{
    return (n & 1 ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0) | (n & 2 ? VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) : 0) |
           (n & 4 ? VIRTIO_BIT(VIRTIO_F_EVENT_IDX) : 0) | (n & 8 ? VIRTIO_BIT(VIRTIO_F_IN_ORDER) : 0);
}

const char *fake_layout_name(unsigned n)
{
    static char name[64];

    snprintf(name, sizeof(name), "%s%s%s%s", n & 1 ? "packed" : "split", n & 2 ? "+indirect" : "",
             n & 4 ? "+event_idx" : "", n & 8 ? "+in_order" : "");
    return name;
}
