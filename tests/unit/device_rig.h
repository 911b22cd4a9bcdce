/*
 * A rig for tests of host/device: a block back end in memory that does what the test says, guest memory in
 * three regions of which two touch, and a scripted driver for split and packed rings that is made to break
 * rules as easily as to keep them. Everything in one thread and one loop.
 *
 * Included by one source file of a test program: it defines the blk_* functions that host/device calls.
 */
#ifndef RINGSIDE_TESTS_DEVICE_RIG_H
#define RINGSIDE_TESTS_DEVICE_RIG_H

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/virtio_ring.h"
#include "host/block/node.h"
#include "host/block/sg.h"
#include "host/device/virtio_blk.h"
#include "host/runtime/loop.h"

#define UNUSED __attribute__((unused))

/* ---- the block back end ---- */

#define FAKE_CALLS_MAX 65536u

struct fake_call {
    enum blk_op op;
    uint64_t offset, bytes;
    unsigned niov, flags;
};

static struct fake_blk {
    uint8_t *disk;
    uint64_t length;
    struct node node;
    bool read_only;
    bool hold; /* keep requests until fake_release */
    int error; /* result for requests that touch fail_offset .. fail_offset + fail_bytes */
    uint64_t fail_offset, fail_bytes;
    bool fail_flush;
    bool write_cache;
    unsigned merged, invalid, in_flight;
    int hurried;
    void (*resized)(void *opaque);
    void *resized_opaque;
    struct blk_request *held[FAKE_CALLS_MAX];
    unsigned num_held;
    struct fake_call calls[FAKE_CALLS_MAX];
    unsigned num_calls;
} fake;

static void fake_do(struct blk_request *request)
{
    int result = 0;

    fake.in_flight--;
    if (fake.error && (request->op == BLK_FLUSH ? fake.fail_flush
                                                : request->offset < fake.fail_offset + fake.fail_bytes &&
                                                      fake.fail_offset < request->offset + request->bytes)) {
        result = fake.error;
    } else if (request->op == BLK_READ) {
        sg_copy_in(sg_make(request->iov, request->niov), fake.disk + request->offset, request->bytes);
    } else if (request->op == BLK_WRITE) {
        sg_copy_out(sg_make(request->iov, request->niov), fake.disk + request->offset, request->bytes);
    } else if (request->op == BLK_DISCARD) {
        memset(fake.disk + request->offset, 0xdd, request->bytes);
    } else if (request->op == BLK_WRITE_ZEROES) {
        memset(fake.disk + request->offset, 0, request->bytes);
    }
    request->complete(request, result);
}

static bool rig_is_guest(const void *p, size_t bytes);

static void fake_submit(struct blk_request *request, enum blk_op op, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, unsigned niov, unsigned flags)
{
    request->op = op;
    request->offset = offset;
    request->bytes = bytes;
    request->iov = iov;
    request->niov = niov;
    request->flags = flags;
    /* What the device lets through must be inside the disk, and covered by its segments. */
    assert(offset <= fake.length && bytes <= fake.length - offset);
    assert(!iov || sg_bytes(sg_make(iov, niov)) == bytes);
    for (unsigned i = 0; i < niov; i++)
        assert(rig_is_guest(iov[i].iov_base, iov[i].iov_len));
    fake.calls[fake.num_calls++ % FAKE_CALLS_MAX] = (struct fake_call){op, offset, bytes, niov, flags};
    fake.in_flight++;
    if (fake.hold)
        fake.held[fake.num_held++] = request;
    else
        fake_do(request);
}

/* Completes the held request number I (in order of submission among those still held). */
static void UNUSED fake_release(unsigned i)
{
    struct blk_request *request = fake.held[i];

    memmove(&fake.held[i], &fake.held[i + 1], (--fake.num_held - i) * sizeof(fake.held[0]));
    fake_do(request);
}

static void UNUSED fake_release_all(void)
{
    fake.hold = false;
    while (fake.num_held > 0)
        fake_release(0);
}

void blk_aio_preadv(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, unsigned niov)
{
    fake_submit(request, BLK_READ, offset, bytes, iov, niov, 0);
}

void blk_aio_pwritev(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, unsigned niov, unsigned flags)
{
    fake_submit(request, BLK_WRITE, offset, bytes, iov, niov, flags);
}

void blk_aio_pwrite_zeroes(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                           unsigned flags)
{
    fake_submit(request, BLK_WRITE_ZEROES, offset, bytes, NULL, 0, flags);
}

void blk_aio_pdiscard(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes)
{
    fake_submit(request, BLK_DISCARD, offset, bytes, NULL, 0, 0);
}

void blk_aio_flush(struct blk *blk, struct blk_request *request)
{
    fake_submit(request, BLK_FLUSH, 0, 0, NULL, 0, 0);
}

struct node *blk_node(struct blk *blk)
{
    return &fake.node;
}

uint64_t blk_length(const struct blk *blk)
{
    return fake.length;
}

bool blk_read_only(const struct blk *blk)
{
    return fake.read_only;
}

void blk_hurry_begin(struct blk *blk)
{
    fake.hurried++;
}

void blk_hurry_end(struct blk *blk)
{
    fake.hurried--;
}

void blk_set_write_cache(struct blk *blk, bool on)
{
    fake.write_cache = on;
}

void blk_on_resize(struct blk *blk, void (*callback)(void *opaque), void *opaque)
{
    fake.resized = callback;
    fake.resized_opaque = opaque;
}

void blk_account_merged(struct blk *blk, enum blk_op op, unsigned n)
{
    fake.merged += n;
}

void blk_account_invalid(struct blk *blk, enum blk_op op)
{
    fake.invalid++;
}

/* ---- the rig ---- */

/* Guest-physical: two regions that touch, far apart here; and one up high. */
#define LOW_ADDR   0x100000ull
#define LOW_BYTES  (8u << 20)
#define NEXT_ADDR  (LOW_ADDR + LOW_BYTES)
#define NEXT_BYTES (1u << 20)
#define HIGH_ADDR  0xfffffffffff00000ull
#define HIGH_BYTES (1u << 19)
#define DISK_BYTES (4u << 20)
#define USER_OFFSET                                                                        \
    0x7f0000000000ull /* front end's addresses: guest's plus this, but for the high region \
                       */

#define RIG_QUEUES_MAX 4u
#define RIG_IDS        1024u /* buffer ids in use, and the largest queue */
#define RIG_ID(n)      ((n) % RIG_IDS)

/* One queue as its driver sees it. */
struct rig_queue {
    uint16_t size;
    bool packed, event_idx, indirect;
    guest_addr desc_addr, driver_addr, device_addr;
    struct virtq_desc *desc;
    struct virtq_avail *avail;
    struct virtq_used *used;
    struct virtq_packed_desc *pdesc;
    struct virtq_packed_event *driver, *device;
    uint16_t next_desc; /* where the next chain goes: always in ring order */
    uint16_t avail_idx, used_idx;
    bool avail_wrap, used_wrap;
    uint16_t next_id;         /* packed */
    uint16_t places[RIG_IDS]; /* that a buffer's list takes, by its id */
    bool taken[RIG_IDS];      /* split: descriptors in flight */
    uint16_t order[RIG_IDS];  /* ids in flight, oldest first: a ring */
    uint16_t order_head, order_tail;
    /* batch of IN_ORDER being handed out */
    unsigned batch_left;
    uint32_t batch_len;
    /* the first flags of a packed batch, held back until rig_publish */
    bool held_back;
    uint16_t first_at, first_flags;
    unsigned in_flight;
};

static struct rig {
    struct loop *loop;
    struct virtio_blk *device;
    struct guest_memory memory;
    uint8_t *low, *next, *high;
    uint64_t low_used; /* bump allocator */
    uint64_t features;
    struct rig_queue queues[RIG_QUEUES_MAX];
    unsigned num_queues;
    unsigned interrupts[RIG_QUEUES_MAX], config_changes, resets, stops;
    unsigned calls_then; /* fake.num_calls at the last interrupt */
    char why[256];
    struct virtio_blk_queue_setup setup[RIG_QUEUES_MAX];
} rig;

/* What the fake node will say of itself at the next rig_init. */
static struct node_limits rig_limits;
static uint64_t rig_length; /* 0: DISK_BYTES */

struct rig_options {
    uint64_t features; /* to negotiate, besides VERSION_1 */
    unsigned num_queues, size;
    struct virtio_blk_options device; /* zero fields get defaults */
    bool read_only, no_start, coroutine_limit;
};

static void *ptr(uint64_t addr)
{
    void *p = guest_memory_pointer(&rig.memory, (guest_addr){addr}, 1);

    assert(p);
    return p;
}

static bool rig_is_guest(const void *p, size_t bytes)
{
    const uint8_t *at = p;

    for (unsigned i = 0; i < rig.memory.count; i++) {
        const struct guest_region *region = &rig.memory.regions[i];

        if (at >= region->host && at < region->host + region->bytes &&
            bytes <= (size_t)(region->host + region->bytes - at))
            return true;
    }
    return false;
}

/* BYTES of guest memory, zeroed; ALIGN a power of two. */
static uint64_t rig_alloc(uint64_t bytes, uint64_t align)
{
    uint64_t at = (rig.low_used + align - 1) & ~(align - 1);

    assert(at + bytes <= LOW_BYTES);
    rig.low_used = at + bytes;
    memset(rig.low + at, 0, bytes);
    return LOW_ADDR + at;
}

static void *rig_map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    assert(p != MAP_FAILED);
    return p;
}

static void rig_on_config(void *opaque)
{
    rig.config_changes++;
}

static void rig_on_reset(void *opaque, unsigned queue, const char *why)
{
    rig.resets++;
    snprintf(rig.why, sizeof(rig.why), "%s", why);
}

static void rig_on_interrupt(void *opaque, unsigned queue)
{
    rig.interrupts[queue]++;
    rig.calls_then = fake.num_calls;
}

static void rig_on_stopped(void *opaque, unsigned queue, int error)
{
    rig.stops++;
}

/* Runs the loop until it has nothing to do. */
static void UNUSED rig_settle(void)
{
    while (loop_turn(rig.loop, false))
        ;
}

struct rig_start {
    unsigned queue;
    int result;
    struct error err;
    uint16_t last_avail, last_used;
};

static void rig_start_entry(void *arg)
{
    struct rig_start *start = arg;

    start->result =
        virtio_blk_co_queue_start(rig.device, start->queue, rig.loop, &rig.setup[start->queue], &start->err);
}

/* Starts queue Q with rig.setup[Q]. */
static int UNUSED rig_start(unsigned q)
{
    struct rig_start start = {.queue = q};

    loop_run_coroutine(rig.loop, rig_start_entry, &start);
    return start.result;
}

static void rig_stop_entry(void *arg)
{
    struct rig_start *start = arg;

    virtio_blk_co_queue_stop(rig.device, start->queue, &start->last_avail, &start->last_used);
}

static struct rig_start rig_stop(unsigned q)
{
    struct rig_start start = {.queue = q};

    loop_run_coroutine(rig.loop, rig_stop_entry, &start);
    return start;
}

/* Lays out an empty ring of SIZE for queue Q, as a driver does at first. */
static void rig_lay_out(unsigned q, unsigned size)
{
    struct rig_queue *queue = &rig.queues[q];
    struct virtio_blk_queue_setup *setup = &rig.setup[q];

    memset(queue, 0, sizeof(*queue));
    queue->size = (uint16_t)size;
    queue->packed = rig.features & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    queue->event_idx = rig.features & VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    queue->indirect = rig.features & VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    queue->avail_wrap = queue->used_wrap = true;
    queue->desc_addr.value = rig_alloc(16 * size, 16);
    queue->driver_addr.value = rig_alloc(VIRTQ_AVAIL_BYTES(size), 4);
    queue->device_addr.value = rig_alloc(VIRTQ_USED_BYTES(size), 4);
    queue->desc = ptr(queue->desc_addr.value);
    queue->pdesc = ptr(queue->desc_addr.value);
    queue->avail = ptr(queue->driver_addr.value);
    queue->driver = ptr(queue->driver_addr.value);
    queue->used = ptr(queue->device_addr.value);
    queue->device = ptr(queue->device_addr.value);
    *setup = (struct virtio_blk_queue_setup){.size = size,
                                             .packed = queue->packed,
                                             .memory = &rig.memory,
                                             .desc = queue->desc,
                                             .driver = queue->driver,
                                             .device = queue->device,
                                             .last_avail_idx = queue->packed ? 0x8000 : 0,
                                             .last_used_idx = queue->packed ? 0x8000 : 0,
                                             .kick_fd = -1,
                                             .call_fd = -1};
}

/* Memory, and a device that no ring is attached to yet. */
static void rig_attach(const struct rig_options *options)
{
    const struct virtio_blk_events events = {.config_changed = rig_on_config,
                                             .needs_reset = rig_on_reset,
                                             .interrupt = rig_on_interrupt,
                                             .stopped = rig_on_stopped};
    struct virtio_blk_options device = options->device;
    struct error err = {""};

    rig.loop = loop_create("test", &err);
    assert(rig.loop);
    device.num_queues = rig.num_queues;
    if (!device.queue_size_max)
        device.queue_size_max = 1024;
    if (!device.logical_block_size)
        device.logical_block_size = 512;
    if (!device.physical_block_size)
        device.physical_block_size = device.logical_block_size;
    rig.device = virtio_blk_create((struct blk *)&fake, &device, &err);
    if (!rig.device)
        fprintf(stderr, "%s\n", err.text);
    assert(rig.device);
    virtio_blk_set_events(rig.device, &events);
    rig.features = options->features | VIRTIO_BIT(VIRTIO_F_VERSION_1);
    rig.features &= virtio_blk_device_features(rig.device);
    if (virtio_blk_set_features(rig.device, rig.features) < 0)
        assert(!"features");
}

/* Ends the device and its loop; memory stays as it is. */
static void UNUSED rig_detach(void)
{
    fake_release_all();
    for (unsigned q = 0; q < rig.num_queues; q++)
        rig_stop(q);
    rig_settle();
    virtio_blk_destroy(rig.device);
    loop_destroy(rig.loop);
    rig.device = NULL;
    rig.loop = NULL;
}

static void rig_init(const struct rig_options *options)
{
    memset(&fake, 0, sizeof(fake));
    memset(&rig, 0, sizeof(rig));
    fake.node.limits = rig_limits;
    fake.length = rig_length ? rig_length : DISK_BYTES;
    fake.disk = rig_map(DISK_BYTES);
    fake.read_only = options->read_only;
    rig.low = rig_map(LOW_BYTES);
    rig.next = rig_map(NEXT_BYTES);
    rig.high = rig_map(HIGH_BYTES);
    guest_memory_add(&rig.memory,
                     &(struct guest_region){.guest_addr = HIGH_ADDR, .bytes = HIGH_BYTES, .host = rig.high});
    guest_memory_add(&rig.memory, &(struct guest_region){.guest_addr = LOW_ADDR,
                                                         .user_addr = LOW_ADDR + USER_OFFSET,
                                                         .bytes = LOW_BYTES,
                                                         .host = rig.low});
    guest_memory_add(&rig.memory, &(struct guest_region){.guest_addr = NEXT_ADDR,
                                                         .user_addr = NEXT_ADDR + USER_OFFSET,
                                                         .bytes = NEXT_BYTES,
                                                         .host = rig.next});
    rig.num_queues = options->num_queues ? options->num_queues : 1;
    rig_attach(options);
    for (unsigned q = 0; q < rig.num_queues; q++) {
        rig_lay_out(q, options->size ? options->size : 16);
        if (!options->no_start && rig_start(q) < 0)
            assert(!"start");
    }
}

static void UNUSED rig_fini(void)
{
    if (rig.device)
        rig_detach();
    munmap(fake.disk, DISK_BYTES);
    munmap(rig.low, LOW_BYTES);
    munmap(rig.next, NEXT_BYTES);
    munmap(rig.high, HIGH_BYTES);
}

/* ---- the driver ---- */

struct seg {
    uint64_t addr;
    uint32_t len;
    bool write;
};

static void rig_split_desc(struct virtq_desc *desc, const struct seg *seg, uint16_t flags, uint16_t next)
{
    desc->addr = le64_put(seg->addr);
    desc->len = le32_put(seg->len);
    le16_store(&desc->flags, (uint16_t)(flags | (seg->write ? VIRTQ_DESC_F_WRITE : 0)));
    desc->next = le16_put(next);
}

/* An indirect table of SEGS in guest memory; split or packed. */
static uint64_t rig_table(const struct rig_queue *queue, const struct seg *segs, unsigned n)
{
    uint64_t table = rig_alloc(16ull * n, 16);

    for (unsigned i = 0; i < n; i++) {
        if (queue->packed) {
            struct virtq_packed_desc *desc = (struct virtq_packed_desc *)ptr(table) + i;

            desc->addr = le64_put(segs[i].addr);
            desc->len = le32_put(segs[i].len);
            desc->id = le16_put(0xabcd); /* ignored (2.8.7) */
            desc->flags = le16_put(segs[i].write ? VIRTQ_DESC_F_WRITE : 0);
        } else {
            rig_split_desc((struct virtq_desc *)ptr(table) + i, &segs[i], i + 1 < n ? VIRTQ_DESC_F_NEXT : 0,
                           (uint16_t)(i + 1));
        }
    }
    return table;
}

/* Is there room for a list of PLACES descriptors, where it would go? */
static bool UNUSED rig_room(unsigned q, unsigned places)
{
    const struct rig_queue *queue = &rig.queues[q];
    unsigned used = 0;

    if (queue->packed) {
        for (uint16_t at = queue->order_head; at != queue->order_tail; at++)
            used += queue->places[queue->order[RIG_ID(at)]];
        return used + places <= queue->size;
    }
    for (unsigned i = 0; i < places; i++)
        if (queue->taken[(queue->next_desc + i) % queue->size])
            return false;
    return true;
}

/* Puts a chain into the ring: the first DIRECT of SEGS in descriptors of their own, the rest in an indirect
 * table (n: all direct). Not visible before rig_publish. Returns its id. */
static uint16_t rig_add_mixed(unsigned q, const struct seg *segs, unsigned n, unsigned direct)
{
    struct rig_queue *queue = &rig.queues[q];
    struct seg list[1024];
    unsigned places = direct, first;
    uint16_t id;

    assert(n <= 1024);
    memcpy(list, segs, n * sizeof(segs[0]));
    if (direct < n) {
        list[direct].addr = rig_table(queue, segs + direct, n - direct);
        list[direct].len = 16 * (n - direct);
        list[direct].write = false;
        places++;
    }
    first = queue->next_desc;
    if (queue->packed) {
        id = queue->next_id;
        queue->next_id = (uint16_t)RIG_ID(id + 1u);
        for (unsigned i = 0; i < places; i++) {
            struct virtq_packed_desc *desc = &queue->pdesc[queue->next_desc];
            uint16_t flags = list[i].write ? VIRTQ_DESC_F_WRITE : 0;

            if (i + 1 < places)
                flags |= VIRTQ_DESC_F_NEXT;
            else if (direct < n)
                flags |= VIRTQ_DESC_F_INDIRECT;
            flags |= queue->avail_wrap ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED;
            desc->addr = le64_put(list[i].addr);
            desc->len = le32_put(list[i].len);
            desc->id = le16_put(id);
            if (!queue->held_back) {
                queue->held_back = true;
                queue->first_at = queue->next_desc;
                queue->first_flags = flags;
            } else {
                le16_store(&desc->flags, flags);
            }
            if (++queue->next_desc == queue->size) {
                queue->next_desc = 0;
                queue->avail_wrap = !queue->avail_wrap;
            }
        }
    } else {
        id = (uint16_t)first;
        for (unsigned i = 0; i < places; i++) {
            uint16_t at = queue->next_desc;
            uint16_t flags = 0;

            queue->taken[at] = true;
            queue->next_desc = (uint16_t)((queue->next_desc + 1u) % queue->size);
            if (i + 1 < places)
                flags = VIRTQ_DESC_F_NEXT;
            else if (direct < n)
                flags = VIRTQ_DESC_F_INDIRECT;
            rig_split_desc(&queue->desc[at], &list[i], flags, queue->next_desc);
        }
        le16_store(&queue->avail->ring[queue->avail_idx % queue->size], id);
        queue->avail_idx++;
    }
    queue->places[id] = (uint16_t)places;
    queue->order[RIG_ID(queue->order_tail++)] = id;
    queue->in_flight++;
    return id;
}

static void UNUSED rig_publish(unsigned q)
{
    struct rig_queue *queue = &rig.queues[q];

    if (queue->packed) {
        if (queue->held_back)
            le16_store_release(&queue->pdesc[queue->first_at].flags, queue->first_flags);
        queue->held_back = false;
    } else {
        le16_store_release(&queue->avail->idx, queue->avail_idx);
    }
}

/* Publishes, kicks and lets the device do all that it can. */
static void UNUSED rig_kick(unsigned q)
{
    rig_publish(q);
    virtio_blk_queue_kick(rig.device, q);
    rig_settle();
}

static uint16_t UNUSED rig_add(unsigned q, const struct seg *segs, unsigned n)
{
    return rig_add_mixed(q, segs, n, rig.queues[q].indirect ? 0 : n);
}

/* The next used buffer, if there is one. With IN_ORDER hands out each buffer of a batch. */
static bool UNUSED rig_used(unsigned q, uint16_t *id, uint32_t *len)
{
    struct rig_queue *queue = &rig.queues[q];
    bool in_order = rig.features & VIRTIO_BIT(VIRTIO_F_IN_ORDER);
    unsigned places = 1;

    if (queue->batch_left == 0) {
        if (queue->packed) {
            struct virtq_packed_desc *desc = &queue->pdesc[queue->used_idx];
            uint16_t flags = le16_load_acquire(&desc->flags);

            if (!!(flags & VIRTQ_DESC_F_AVAIL) != queue->used_wrap ||
                !!(flags & VIRTQ_DESC_F_USED) != queue->used_wrap)
                return false;
            *id = le16_get(desc->id);
            *len = le32_get(desc->len);
            places = queue->places[RIG_ID(*id)];
        } else {
            struct virtq_used_elem *elem = &queue->used->ring[queue->used_idx % queue->size];

            if (le16_load_acquire(&queue->used->idx) == queue->used_idx)
                return false;
            *id = (uint16_t)le32_get(elem->id);
            *len = le32_get(elem->len);
        }
        if (in_order) {
            uint16_t at = queue->order_head;

            while (queue->order[RIG_ID(at)] != *id) {
                assert(at != queue->order_tail);
                at++;
            }
            queue->batch_left = (uint16_t)(at - queue->order_head) + 1u;
            queue->batch_len = *len;
        }
    }
    if (in_order) {
        *id = queue->order[RIG_ID(queue->order_head++)];
        *len = queue->batch_left == 1 ? queue->batch_len : UINT32_MAX; /* "used completely" */
        places = queue->packed ? queue->places[*id] : 1u;
        queue->batch_left--;
    }
    for (unsigned i = 0; !queue->packed && i < queue->places[*id]; i++)
        queue->taken[(*id + i) % queue->size] = false;
    queue->used_idx = (uint16_t)(queue->used_idx + places);
    if (queue->packed && queue->used_idx >= queue->size) {
        queue->used_idx = (uint16_t)(queue->used_idx - queue->size);
        queue->used_wrap = !queue->used_wrap;
    }
    if (!in_order) {
        uint16_t at = queue->order_head;

        while (queue->order[RIG_ID(at)] != *id) {
            assert(at != queue->order_tail);
            at++;
        }
        for (; at != queue->order_head; at--)
            queue->order[RIG_ID(at)] = queue->order[RIG_ID(at - 1u)];
        queue->order_head++;
    }
    queue->in_flight--;
    return true;
}

/* ---- requests ---- */

static uint64_t UNUSED rig_header(uint32_t type, uint64_t sector)
{
    uint64_t addr = rig_alloc(16, 16);
    struct virtio_blk_req_header *header = ptr(addr);

    header->type = le32_put(type);
    header->reserved = le32_put(0);
    header->sector = le64_put(sector);
    return addr;
}

/* A request in the ordinary three pieces, not yet published. Status is preset to 0xee. */
struct rig_request {
    uint16_t id;
    uint64_t data, status;
};

static struct rig_request UNUSED rig_request(unsigned q, uint32_t type, uint64_t sector, uint64_t data,
                                             uint32_t bytes, bool write)
{
    struct rig_request request = {.data = data, .status = rig_alloc(1, 1)};
    struct seg segs[3] = {
        {rig_header(type, sector), 16, false}, {data, bytes, write}, {request.status, 1, true}};

    *(uint8_t *)ptr(request.status) = 0xee;
    if (bytes == 0)
        segs[1] = segs[2];
    request.id = rig_add(q, segs, bytes ? 3 : 2);
    return request;
}

static uint8_t UNUSED rig_status(uint64_t status)
{
    return *(uint8_t *)ptr(status);
}

#endif
