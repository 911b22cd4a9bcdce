/*
 * Two threads and more: the barriers, and several queues with a reset in between. Built plain and under TSan.
 *
 * Litmus: driver and device pass chains to and fro, and each sleeps until the other wakes it. The four pairs
 * of publish and observe are all in the loop, and each has its way to show when its barrier is missing:
 *
 *   descriptors, then avail.idx | avail.idx, then descriptors      wrong payload at the device, or a race in
 * TSan avail.idx, then avail_event | avail_event, then avail.idx      a lost kick: the device sleeps for ever
 *   payload and element, then used.idx | used.idx, then element    wrong payload at the driver, or a race
 *   used.idx, then used_event | used_event, then used.idx          a lost interrupt: the driver sleeps for
 * ever
 *
 * (2.7.13.3.1, 2.7.13.4.1, 2.7.14, 2.8.21.1.1, 2.8.21.3.1, 2.8.22; checklist 90-94, 111, 125-128)
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/virtio.h"
#include "guest/driver/vblk.h"
#include "guest/driver/vblk_barrier.h"
#include "guest/driver/vq.h"

#define SIZE     8u
#define ROUNDS   30000u
#define PATIENCE 120u  /* seconds before a sleeper is given up */
#define LOOKS    4096u /* between looks at the clock */
#define ENOUGH   10u   /* seconds of a machine on which a round takes milliseconds */

static time_t seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static void full_fence(void)
{
    vblk_barrier_full(false);
}

struct litmus {
    struct vq vq;
    struct vq_chain chains[SIZE];
    struct vq_piece pool[SIZE];
    _Alignas(4096) uint8_t ring[8192];
    struct slot {
        uint8_t bytes[VQ_SLOT_BYTES];
    } slots[SIZE];
    uint64_t payload[SIZE]; /* the driver's question, the device's answer */
    bool packed, event_idx;
    unsigned kicks, interrupts; /* atomic */
    bool stop;
    unsigned kicked_for_nothing;
    const char *failure;

    /* the device's */
    uint16_t at, used;
    bool wrap;
};

static bool sleep_until(struct litmus *litmus, unsigned *counter, unsigned *seen)
{
    time_t began = seconds();
    for (unsigned i = 1; i % LOOKS || seconds() - began < PATIENCE; i++) {
        unsigned now = __atomic_load_n(counter, __ATOMIC_ACQUIRE);
        if (now != *seen || __atomic_load_n(&litmus->stop, __ATOMIC_ACQUIRE)) {
            *seen = now;
            return true;
        }
        sched_yield();
    }
    return false;
}

/* Some rounds at least, and no more when it gets long, as it does where the two sides seldom run at the same
 * time. */
static bool enough(unsigned round, unsigned rounds, time_t began)
{
    return round % 64 == 0 && round >= rounds / 50 && seconds() - began >= ENOUGH;
}

/* ---- device, split ---- */

static uint64_t answer(uint64_t question)
{
    return question * 3 + 1;
}

static bool device_take_split(struct litmus *litmus)
{
    struct vq *vq = &litmus->vq;
    uint16_t idx = le16_load_acquire(&vq->u.split.avail->idx), old = litmus->used, event;
    unsigned head, second;
    uint64_t *payload;

    if (idx == litmus->at)
        return false;
    head = le16_load(&vq->u.split.avail->ring[litmus->at % SIZE]);
    second = le16_get(vq->u.split.desc[head].next);
    payload = (uint64_t *)(uintptr_t)le64_get(vq->u.split.desc[second].addr);
    *payload = answer(*payload);
    vq->u.split.used->ring[old % SIZE].id.wire = WIRE_LE32(head);
    vq->u.split.used->ring[old % SIZE].len.wire = WIRE_LE32(9);
    litmus->at++;
    litmus->used++;
    le16_store_release(&vq->u.split.used->idx, litmus->used);
    full_fence();
    event = le16_load(&vq->u.split.avail->ring[SIZE]);
    if (litmus->event_idx ? event == old : !(le16_load(&vq->u.split.avail->flags) & 1))
        __atomic_fetch_add(&litmus->interrupts, 1, __ATOMIC_RELEASE);
    return true;
}

static bool device_rest_split(struct litmus *litmus)
{
    struct vq *vq = &litmus->vq;

    if (litmus->event_idx)
        le16_store((le16 *)(void *)&vq->u.split.used->ring[SIZE], litmus->at);
    else
        le16_store(&vq->u.split.used->flags, 0);
    full_fence();
    return le16_load_acquire(&vq->u.split.avail->idx) == litmus->at;
}

static void device_busy_split(struct litmus *litmus)
{
    if (!litmus->event_idx)
        le16_store(&litmus->vq.u.split.used->flags, 1);
}

/* ---- device, packed ---- */

static bool packed_there(struct litmus *litmus)
{
    uint16_t flags = le16_load_acquire(&litmus->vq.u.packed.desc[litmus->at].flags);

    return !!(flags & VIRTQ_DESC_F_AVAIL) == litmus->wrap && !!(flags & VIRTQ_DESC_F_USED) != litmus->wrap;
}

static bool device_take_packed(struct litmus *litmus)
{
    struct virtq_packed_desc *ring = litmus->vq.u.packed.desc;
    unsigned first = litmus->at, second = (first + 1) % SIZE;
    uint16_t id, flags, off;
    bool wrap = litmus->wrap;
    uint64_t *payload;

    if (!packed_there(litmus))
        return false;
    payload = (uint64_t *)(uintptr_t)le64_get(ring[second].addr);
    id = le16_get(ring[(first + 2) % SIZE].id);
    *payload = answer(*payload);
    litmus->at = (uint16_t)(first + 3);
    if (litmus->at >= SIZE) {
        litmus->at = (uint16_t)(litmus->at - SIZE);
        litmus->wrap = !wrap;
    }
    ring[first].id.wire = WIRE_LE16(id);
    ring[first].len.wire = WIRE_LE32(9);
    le16_store_release(&ring[first].flags,
                       (uint16_t)(VIRTQ_DESC_F_WRITE | (wrap ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED : 0)));
    full_fence();
    {
        uint32_t word = __atomic_load_n(
            (const uint32_t __attribute__((may_alias)) *)(const void *)litmus->vq.u.packed.driver,
            __ATOMIC_RELAXED);
        flags = (uint16_t)(WIRE_LE32(word) >> 16);
        off = (uint16_t)WIRE_LE32(word);
    }
    if (flags == VIRTQ_PACKED_EVENT_ENABLE ||
        (flags == VIRTQ_PACKED_EVENT_DESC && (off & 0x7fff) == first && !!(off & 0x8000) == wrap))
        __atomic_fetch_add(&litmus->interrupts, 1, __ATOMIC_RELEASE);
    return true;
}

static void device_event(struct litmus *litmus, unsigned off_wrap, unsigned flags)
{
    __atomic_store_n((uint32_t __attribute__((may_alias)) *)(void *)litmus->vq.u.packed.device,
                     WIRE_LE32(off_wrap | flags << 16), __ATOMIC_RELAXED);
}

static bool device_rest_packed(struct litmus *litmus)
{
    if (litmus->event_idx)
        device_event(litmus, litmus->at | (litmus->wrap ? 0x8000u : 0), VIRTQ_PACKED_EVENT_DESC);
    else
        device_event(litmus, 0, VIRTQ_PACKED_EVENT_ENABLE);
    full_fence();
    return !packed_there(litmus);
}

static void device_busy_packed(struct litmus *litmus)
{
    if (!litmus->event_idx)
        device_event(litmus, 0, VIRTQ_PACKED_EVENT_DISABLE);
}

static void *device_thread(void *arg)
{
    struct litmus *litmus = arg;
    unsigned seen = 0;

    while (!__atomic_load_n(&litmus->stop, __ATOMIC_ACQUIRE)) {
        (litmus->packed ? device_busy_packed : device_busy_split)(litmus);
        while ((litmus->packed ? device_take_packed : device_take_split)(litmus))
            ;
        seen = __atomic_load_n(&litmus->kicks, __ATOMIC_ACQUIRE);
        if ((litmus->packed ? device_rest_packed : device_rest_split)(litmus) &&
            !sleep_until(litmus, &litmus->kicks, &seen)) {
            litmus->failure = "the device was not kicked";
            return NULL;
        }
    }
    return NULL;
}

static bool drive(struct litmus *litmus)
{
    struct vq *vq = &litmus->vq;
    uint64_t expected[SIZE];
    uint32_t seed = 7, len;
    unsigned seen = 0;
    uint16_t token;
    time_t began = seconds();

    for (unsigned round = 0; round < ROUNDS && !enough(round, ROUNDS, began); round++) {
        unsigned n = 1 + (seed >> 20) % 2, i;
        seed = seed * 1664525u + 1013904223u;
        for (i = 0; i < n; i++) {
            litmus->payload[i] = seed + i;
            expected[i] = answer(seed + i);
            /* in a row of their own slots: header, payload, status */
            if (!vq_put_one(vq, i, (uintptr_t)&litmus->payload[i], 8, 1)) {
                litmus->failure = "no room";
                return false;
            }
        }
        if (vq_want_notify(vq))
            __atomic_fetch_add(&litmus->kicks, 1, __ATOMIC_RELEASE);
        while (n) {
            int result = vq_pop(vq, &token, &len);
            if (result < 0) {
                litmus->failure = "the ring broke";
                return false;
            }
            if (result == 1) {
                n--;
                if (len != 9 || litmus->payload[token] != expected[token]) {
                    litmus->failure = "wrong payload";
                    return false;
                }
                continue;
            }
            seen = __atomic_load_n(&litmus->interrupts, __ATOMIC_ACQUIRE);
            if (!vq_interrupts_on(vq) && !sleep_until(litmus, &litmus->interrupts, &seen)) {
                litmus->failure = "the driver was not interrupted";
                return false;
            }
            vq_interrupts_off(vq);
        }
    }
    return true;
}

static void run_litmus(bool packed, bool event_idx, bool order_platform)
{
    struct litmus *litmus = aligned_alloc(4096, (sizeof(*litmus) + 4095) & ~4095ul);
    pthread_t thread;

    assert_non_null(litmus);
    memset(litmus, 0, sizeof(*litmus));
    litmus->packed = packed;
    litmus->event_idx = litmus->vq.event_idx = event_idx;
    litmus->vq.order_platform = order_platform;
    litmus->vq.pool = litmus->pool;
    litmus->vq.slots_addr = (uintptr_t)litmus->slots;
    litmus->wrap = true;
    if (packed)
        vq_setup_packed(&litmus->vq, SIZE, litmus->chains, litmus->ring,
                        (vblk_dma_addr){(uintptr_t)litmus->ring});
    else
        vq_setup_split(&litmus->vq, SIZE, litmus->chains, litmus->ring,
                       (vblk_dma_addr){(uintptr_t)litmus->ring}, false);
    assert_int_equal(pthread_create(&thread, NULL, device_thread, litmus), 0);
    (void)drive(litmus);
    __atomic_store_n(&litmus->stop, true, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    if (litmus->failure)
        fail_msg("%s", litmus->failure);
    free(litmus);
}

static void split_litmus(void **state)
{
    run_litmus(false, false, false);
}

static void split_event_idx_litmus(void **state)
{
    run_litmus(false, true, false);
}

static void split_order_platform_litmus(void **state)
{
    run_litmus(false, true, true);
}

static void packed_litmus(void **state)
{
    run_litmus(true, false, false);
}

static void packed_event_idx_litmus(void **state)
{
    run_litmus(true, true, false);
}

/* The two store-load pairs alone. Round by round, the driver asks to be woken (or publishes and asks whether
 * to kick) while the device publishes and asks whether to wake it (or asks to be kicked). If neither saw the
 * other, a wake-up is lost. The stores of both must be on their way at the same moment for that, some
 * nanoseconds: so whoever saw the other was late, and starts a little earlier in the next round.
 */
struct race {
    struct litmus *litmus;
    unsigned round, device_round; /* atomic */
    int lead; /* of the device, in steps: so long the driver waits; negative: the device does. Set between
                 rounds */
    bool device_saw, kick;
};

static void steps(int n)
{
    for (; n > 0; n--)
        __asm__ volatile("" ::: "memory");
}

static void meet(unsigned *counter, unsigned round)
{
    for (unsigned i = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) < round; i++)
        if (i % 256 == 255)
            sched_yield();
}

static void *race_thread(void *arg)
{
    struct race *race = arg;
    struct litmus *litmus = race->litmus;

    for (unsigned round = 1;; round++) {
        unsigned interrupts = litmus->interrupts;
        meet(&race->round, round);
        if (__atomic_load_n(&litmus->stop, __ATOMIC_ACQUIRE))
            return NULL;
        steps(-race->lead);
        if (race->kick)
            race->device_saw = !(litmus->packed ? device_rest_packed : device_rest_split)(litmus);
        else
            race->device_saw = (litmus->packed ? device_take_packed : device_take_split)(litmus) &&
                               litmus->interrupts != interrupts;
        __atomic_store_n(&race->device_round, round, __ATOMIC_RELEASE);
    }
}

/* So many rounds, and more, for a second or two, on a machine where the two seldom run at the same time,
 * until they have met often enough: in a round in which each saw the other, both stores were under way. */
#ifdef VBLK_TSAN
#define RACES   3000u
#define PROLONG false
#else
#define RACES   60000u
#define PROLONG true
#endif
#define MEETINGS 300u

static void run_race(bool packed, bool kick)
{
    struct litmus *litmus = aligned_alloc(4096, (sizeof(*litmus) + 4095) & ~4095ul);
    struct race race = {.litmus = litmus, .kick = kick};
    unsigned round, lost = 0, seen_by_both = 0;
    int lead = 0;
    time_t began = seconds();
    pthread_t thread;
    uint16_t token;
    uint32_t len;

    assert_non_null(litmus);
    memset(litmus, 0, sizeof(*litmus));
    litmus->packed = packed;
    litmus->event_idx = litmus->vq.event_idx = true;
    litmus->vq.pool = litmus->pool;
    litmus->vq.slots_addr = (uintptr_t)litmus->slots;
    litmus->wrap = true;
    if (packed)
        vq_setup_packed(&litmus->vq, SIZE, litmus->chains, litmus->ring,
                        (vblk_dma_addr){(uintptr_t)litmus->ring});
    else
        vq_setup_split(&litmus->vq, SIZE, litmus->chains, litmus->ring,
                       (vblk_dma_addr){(uintptr_t)litmus->ring}, false);
    assert_int_equal(pthread_create(&thread, NULL, race_thread, &race), 0);
    for (round = 1; (round <= RACES && !enough(round, RACES, began)) ||
                    (PROLONG && seen_by_both < MEETINGS && !lost && seconds() - began < 2);
         round++) {
        bool saw;
        if (!kick) {
            assert_true(vq_put_one(&litmus->vq, 0, (uintptr_t)litmus->payload, 8, 1));
            (void)vq_want_notify(&litmus->vq);
        }
        race.lead = lead + (int)(round * 7 % 61) - 30;
        __atomic_store_n(&race.round, round, __ATOMIC_RELEASE);
        steps(race.lead);
        if (kick) {
            assert_true(vq_put_one(&litmus->vq, 0, (uintptr_t)litmus->payload, 8, 1));
            saw = vq_want_notify(&litmus->vq);
        } else {
            saw = vq_interrupts_on(&litmus->vq);
        }
        meet(&race.device_round, round);
        lost += !saw && !race.device_saw;
        seen_by_both += saw && race.device_saw;
        if (saw != race.device_saw && lead > -20000 && lead < 20000)
            lead += saw ? -3 : 3;
        if (kick)
            (void)(packed ? device_take_packed : device_take_split)(litmus);
        assert_int_equal(vq_pop(&litmus->vq, &token, &len), 1);
        vq_interrupts_off(&litmus->vq);
    }
    __atomic_store_n(&litmus->stop, true, __ATOMIC_RELEASE);
    __atomic_store_n(&race.round, UINT32_MAX, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    printf("# %s, %s: in %u of %u rounds each saw the other\n", packed ? "packed" : "split",
           kick ? "kick" : "interrupt", seen_by_both, round - 1);
    if (lost)
        fail_msg("%u of %u wake-ups lost", lost, round - 1);
    free(litmus);
}

static void split_kick_race(void **state)
{
    run_race(false, true);
}

static void split_interrupt_race(void **state)
{
    run_race(false, false);
}

static void packed_kick_race(void **state)
{
    run_race(true, true);
}

static void packed_interrupt_race(void **state)
{
    run_race(true, false);
}

/* ---- several queues, one of whose owners resets the device under the others ---- */

#define QUEUES   4u
#define REQUESTS 3000u

struct mq {
    struct vtr vtr;
    uint8_t status; /* atomic */
    uint64_t accepted;
    unsigned resets;
    struct {
        struct vtr_queue setup;
        uint16_t at;
        bool enabled;
    } queue[QUEUES];
    uint64_t clock; /* atomic */
    struct vblk *disk;
    bool lose; /* atomic: what is submitted now stays unanswered */
};

static struct mq mq;

static uint8_t mq_get_status(struct vtr *vtr)
{
    return __atomic_load_n(&mq.status, __ATOMIC_ACQUIRE);
}

static void mq_set_status(struct vtr *vtr, uint8_t status)
{
    if (status == 0) {
        mq.resets++;
        memset(mq.queue, 0, sizeof(mq.queue));
    }
    __atomic_store_n(&mq.status, status, __ATOMIC_RELEASE);
}

static uint64_t mq_get_features(struct vtr *vtr)
{
    return VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_BLK_F_MQ);
}

static void mq_set_features(struct vtr *vtr, uint64_t features)
{
    mq.accepted = features;
}

static uint32_t mq_config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    return offset == 0 ? 1u << 20 : offset == 34 ? QUEUES : 0;
}

static void mq_config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
}

static uint32_t mq_config_generation(struct vtr *vtr)
{
    return 0;
}

static unsigned mq_config_bytes(struct vtr *vtr)
{
    return 60;
}

static unsigned mq_num_queues(struct vtr *vtr)
{
    return QUEUES;
}

static unsigned mq_queue_size_max(struct vtr *vtr, unsigned index)
{
    return 16;
}

static int mq_queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    mq.queue[queue->index].setup = *queue;
    mq.queue[queue->index].at = 0;
    mq.queue[queue->index].enabled = true;
    return 0;
}

/* Answers what is on the queue, on its owner's thread. Reads give the sector's number. */
static void mq_notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
    unsigned size = mq.queue[index].setup.size;
    struct virtq_desc *desc = (void *)(uintptr_t)mq.queue[index].setup.desc.value;
    struct virtq_avail *avail = (void *)(uintptr_t)mq.queue[index].setup.driver.value;
    struct virtq_used *used = (void *)(uintptr_t)mq.queue[index].setup.device.value;

    if (!mq.queue[index].enabled || (mq_get_status(vtr) & VIRTIO_STATUS_DEVICE_NEEDS_RESET))
        return;
    for (; mq.queue[index].at != le16_load_acquire(&avail->idx); mq.queue[index].at++) {
        unsigned head = le16_load(&avail->ring[mq.queue[index].at % size]), second, third;
        const struct virtio_blk_req_header *header = (const void *)(uintptr_t)le64_get(desc[head].addr);
        uint64_t sector = le64_get(header->sector);
        second = le16_get(desc[head].next);
        third = le16_get(desc[second].next);
        memcpy((void *)(uintptr_t)le64_get(desc[second].addr), &sector, 8);
        *(uint8_t *)(uintptr_t)le64_get(desc[third].addr) = VIRTIO_BLK_S_OK;
        used->ring[mq.queue[index].at % size].id = le32_put(head);
        used->ring[mq.queue[index].at % size].len = le32_put(513);
        le16_store_release(&used->idx, (uint16_t)(mq.queue[index].at + 1));
    }
}

static uint8_t mq_interrupt_status(struct vtr *vtr)
{
    return 0;
}

static const struct vtr_ops mq_ops = {
    .name = "mq",
    .get_status = mq_get_status,
    .set_status = mq_set_status,
    .get_features = mq_get_features,
    .set_features = mq_set_features,
    .config_read = mq_config_read,
    .config_write = mq_config_write,
    .config_generation = mq_config_generation,
    .config_bytes = mq_config_bytes,
    .num_queues = mq_num_queues,
    .queue_size_max = mq_queue_size_max,
    .queue_enable = mq_queue_enable,
    .notify = mq_notify,
    .interrupt_status = mq_interrupt_status,
};

static void *mq_dma_alloc(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr)
{
    void *mem = aligned_alloc(align, (bytes + align - 1) / align * align);

    memset(mem, 0, bytes);
    addr->value = (uintptr_t)mem;
    return mem;
}

static void mq_dma_free(void *ctx, void *mem, size_t bytes)
{
    free(mem);
}

static int mq_share(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                    size_t *contiguous)
{
    addr->value = (uintptr_t)mem;
    *contiguous = len;
    return 0;
}

static void mq_unshare(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr)
{
}

static uint64_t mq_now(void *ctx)
{
    return __atomic_add_fetch(&mq.clock, 10, __ATOMIC_RELAXED);
}

static void mq_wait(void *ctx, unsigned queue, uint64_t deadline_ns)
{
    sched_yield();
}

static void mq_relax(void *ctx)
{
    sched_yield();
}

static const struct vblk_platform mq_platform = {.dma_alloc = mq_dma_alloc,
                                                 .dma_free = mq_dma_free,
                                                 .share = mq_share,
                                                 .unshare = mq_unshare,
                                                 .now_ns = mq_now,
                                                 .wait = mq_wait,
                                                 .relax = mq_relax};

struct owner {
    unsigned queue, done, wrong;
};

struct owned_request {
    struct vblk_request request;
    struct vblk_seg seg;
    struct owner *owner;
    uint64_t buf[64];
};

static void owned_complete(struct vblk_request *request, int result)
{
    struct owned_request *r = request->opaque;

    r->owner->done++;
    if (result != 0 || r->buf[0] != request->sector)
        r->owner->wrong++;
}

static void *owner_thread(void *arg)
{
    struct owner *owner = arg;
    struct owned_request *r = calloc(8, sizeof(*r));
    unsigned batch, i;

    for (batch = 0; batch < REQUESTS / 8; batch++) {
        unsigned before = owner->done;
        for (i = 0; i < 8; i++) {
            r[i].seg = (struct vblk_seg){r[i].buf, 512};
            r[i].owner = owner;
            r[i].request = (struct vblk_request){.op = VBLK_READ,
                                                 .sector = owner->queue * 100000 + batch * 8 + i,
                                                 .segs = &r[i].seg,
                                                 .nsegs = 1,
                                                 .complete = owned_complete,
                                                 .opaque = &r[i]};
            if (vblk_submit(mq.disk, owner->queue, &r[i].request) < 0)
                owner->wrong++;
            if (owner->queue == 0 && batch % 40 == 20 && i == 4) {
                /* in the middle of everybody's work */
                __atomic_fetch_or(&mq.status, VIRTIO_STATUS_DEVICE_NEEDS_RESET, __ATOMIC_SEQ_CST);
                vblk_config_changed(mq.disk);
            }
        }
        vblk_kick(mq.disk, owner->queue);
        time_t began = seconds();
        for (i = 1; owner->done < before + 8 && (i % LOOKS || seconds() - began < PATIENCE); i++) {
            (void)vblk_poll(mq.disk, owner->queue);
            vblk_kick(mq.disk, owner->queue);
            if (i % 64 == 63)
                sched_yield();
        }
    }
    free(r);
    return NULL;
}

/* Each owner's requests are all answered, once and rightly, through several resets of the device */
static void resets_under_four_owners(void **state)
{
    struct vblk_config config = {.num_queues = QUEUES, .queue_size = 16, .deadline_ns = 1ull << 40};
    struct owner owners[QUEUES] = {{0}};
    pthread_t threads[QUEUES];
    size_t bytes = (vblk_memory_bytes(&config) + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, bytes);
    struct vblk_info info;

    memset(&mq, 0, sizeof(mq));
    mq.vtr.ops = &mq_ops;
    assert_int_equal(vblk_start(&mq.disk, memory, bytes, &mq.vtr, &mq_platform, &config), 0);
    vblk_info(mq.disk, &info);
    assert_int_equal(info.num_queues, QUEUES);
    for (unsigned i = 0; i < QUEUES; i++) {
        owners[i].queue = i;
        assert_int_equal(pthread_create(&threads[i], NULL, owner_thread, &owners[i]), 0);
    }
    for (unsigned i = 0; i < QUEUES; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < QUEUES; i++) {
        assert_int_equal(owners[i].done, REQUESTS / 8 * 8);
        assert_int_equal(owners[i].wrong, 0);
    }
    assert_true(mq.resets > 5);
    vblk_stop(mq.disk);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_litmus),
        cmocka_unit_test(split_event_idx_litmus),
        cmocka_unit_test(split_order_platform_litmus),
        cmocka_unit_test(packed_litmus),
        cmocka_unit_test(packed_event_idx_litmus),
        cmocka_unit_test(split_kick_race),
        cmocka_unit_test(split_interrupt_race),
        cmocka_unit_test(packed_kick_race),
        cmocka_unit_test(packed_interrupt_race),
        cmocka_unit_test(resets_under_four_owners),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
