/*
 * The two sides of the litmus tests. The driver's side is vq.h's; the device's side is written here as the
 * specification reads, with C11's orders and nothing else.
 */
#include "guest/apps/litmus_rings.h"

#define DEADLINE_NS  120000000000ull
#define ANSWER(x)    ((uint8_t)((x)*0x9e3779b97f4a7c15 >> 56))
#define LOOK_AT_TIME 1024u /* spins between looks at the clock */

const struct litmus_case litmus_cases[] = {
    {"split: descriptors before avail.idx, answers before used.idx (2.7.13.3, 2.7.14)", false, false, false},
    {"split: no kick and no interrupt is lost, by flags (2.7.13.4.1, 2.7.14)", false, false, true},
    {"split: no kick and no interrupt is lost, EVENT_IDX (2.7.13.4.1, 2.7.14)", false, true, true},
    {"packed: descriptors before their flags, answers before used flags (2.8.21, 2.8.22)", true, false,
     false},
    {"packed: no kick and no interrupt is lost, by flags (2.8.21.2, 2.8.22)", true, false, true},
    {"packed: no kick and no interrupt is lost, EVENT_IDX (2.8.21.2, 2.8.22)", true, true, true},
};
const unsigned litmus_cases_count = sizeof litmus_cases / sizeof litmus_cases[0];

static void broke(struct litmus *l, const char *what)
{
    const char *none = NULL;
    __atomic_compare_exchange_n(&l->failure, &none, what, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    __atomic_store_n(&l->stop, 1, __ATOMIC_SEQ_CST);
}

static bool stopped(const struct litmus *l)
{
    return __atomic_load_n(&l->stop, __ATOMIC_RELAXED) != 0;
}

const char *litmus_failure(const struct litmus *l)
{
    return __atomic_load_n(&l->failure, __ATOMIC_SEQ_CST);
}

/* Store, then load: neither side may read before its store is seen. An exchange and not a fence, so that the
 * thread sanitizer follows it. */
static void full_barrier(void)
{
#if defined(__SANITIZE_THREAD__)
    static uint32_t word;
    (void)__atomic_exchange_n(&word, 1, __ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

void litmus_init(struct litmus *l, const struct litmus_case *what, uint64_t rounds, uint64_t (*now_ns)(void),
                 void (*pause)(void))
{
    __builtin_memset(l, 0, sizeof *l);
    l->what = what;
    l->rounds = rounds;
    l->now_ns = now_ns;
    l->pause = pause;
    l->vq.event_idx = what->event_idx;
    l->vq.slots_addr = (uintptr_t)l->slots;
    vblk_dma_addr addr = {(uintptr_t)l->ring};
    if (what->packed)
        vq_setup_packed(&l->vq, LITMUS_RING, l->chains, l->ring, addr);
    else
        vq_setup_split(&l->vq, LITMUS_RING, l->chains, l->ring, addr, false);
    l->avail_wrap = l->used_wrap = true;
    l->device_random = 0xd1b54a32d192ed03;
}

/* A delay of up to a thousand steps, most of them short: the sides are to meet at every distance. */
static void dawdle(uint64_t *random)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    for (volatile unsigned steps = (unsigned)(*random >> 32) & ((1u << *random % 11) - 1); steps; steps--)
        continue;
}

/* Waits until *WORD is no longer OLD. False after the deadline or when the other side gave up. */
static bool sleep_until_changed(struct litmus *l, const uint32_t *word, uint32_t old)
{
    uint64_t deadline = l->now_ns() + DEADLINE_NS;
    for (unsigned spins = 1;; spins++) {
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != old)
            return true;
        if (spins % LOOK_AT_TIME == 0 && (stopped(l) || l->now_ns() > deadline))
            return false;
        l->pause();
    }
}

/* ---- the driver ---- */

static void send(struct litmus *l, unsigned slot, uint64_t sequence)
{
    l->slots[slot].payload = l->slots[slot].payload_again = sequence;
    l->slots[slot].answer = (uint8_t)~ANSWER(sequence); /* wrong until the device has written */
    if (!vq_put(&l->vq, slot, NULL, 0, 0, 1))
        broke(l, "no room in the ring");
}

/* 1: a chain came back into *SLOT. 0: none. */
static int receive(struct litmus *l, uint16_t *slot)
{
    uint32_t len;
    int result = vq_pop(&l->vq, slot, &len);
    if (result < 0)
        broke(l, "the driver takes the device for broken");
    else if (result == 1 &&
             (*slot >= LITMUS_SLOTS || len != 1 || l->slots[*slot].answer != ANSWER(l->slots[*slot].payload)))
        broke(l, "the driver saw `used` before the element or the answer");
    return result;
}

static bool enough(const struct litmus *l, uint64_t done, uint64_t began_ns)
{
    return l->enough_ns && done >= l->rounds / 50 && l->now_ns() - began_ns >= l->enough_ns;
}

static void driver_streams(struct litmus *l)
{
    uint64_t began = l->now_ns();
    unsigned free_slots[LITMUS_SLOTS], num_free = LITMUS_SLOTS;
    uint64_t sent = 0, done = 0, done_then = 0, deadline = l->now_ns() + DEADLINE_NS;
    for (unsigned i = 0; i < LITMUS_SLOTS; i++)
        free_slots[i] = i;
    for (unsigned spins = 1; done < l->rounds; spins++) {
        uint16_t slot;
        while (num_free && sent < l->rounds)
            send(l, free_slots[--num_free], ++sent);
        if (receive(l, &slot) == 1) {
            free_slots[num_free++] = slot;
            done++;
        } else {
            l->pause();
        }
        if (stopped(l))
            return;
        if (spins % LOOK_AT_TIME)
            continue;
        if (done != done_then)
            deadline = l->now_ns() + DEADLINE_NS;
        else if (l->now_ns() > deadline)
            broke(l, "nothing came back");
        done_then = done;
        if (enough(l, done, began))
            l->rounds = sent;
    }
}

static void driver_sleeps(struct litmus *l)
{
    uint64_t random = 0x9e3779b97f4a7c15, began = l->now_ns();
    for (uint64_t sequence = 1; sequence <= l->rounds && !stopped(l); sequence++) {
        uint16_t slot;
        if (sequence % 64 == 0 && enough(l, sequence, began))
            l->rounds = sequence;
        send(l, (unsigned)(sequence % LITMUS_SLOTS), sequence);
        if (vq_want_notify(&l->vq)) {
            l->kicked++;
            __atomic_fetch_add(&l->kicks, 1, __ATOMIC_RELEASE);
        }
        for (;;) {
            uint32_t interrupts = __atomic_load_n(&l->interrupts, __ATOMIC_ACQUIRE);
            int result = receive(l, &slot);
            if (result != 0)
                break;
            if (vq_interrupts_on(&l->vq))
                continue;
            l->slept++;
            if (!sleep_until_changed(l, &l->interrupts, interrupts)) {
                broke(l, __atomic_load_n(&l->device_asleep, __ATOMIC_SEQ_CST)
                             ? "a kick was lost: both sides sleep"
                             : "an interrupt was lost");
                return;
            }
            vq_interrupts_off(&l->vq);
        }
        dawdle(&random);
    }
}

void litmus_driver(void *litmus)
{
    struct litmus *l = litmus;
    if (l->what->sleeping)
        driver_sleeps(l);
    else
        driver_streams(l);
    __atomic_store_n(&l->stop, 1, __ATOMIC_SEQ_CST);
}

/* ---- the device: a chain is a header of 16 bytes to read and a status byte to write ---- */

struct chain {
    uint64_t readable, writable;
    uint16_t id;
    bool sound;
};

static void note(struct chain *chain, unsigned n, uint64_t addr, uint32_t len, uint16_t flags)
{
    bool write = flags & VIRTQ_DESC_F_WRITE, next = flags & VIRTQ_DESC_F_NEXT;
    chain->sound &= addr && len == (n == 0 ? VQ_HEADER_LEN : 1) && write == (n == 1) && next == (n == 0);
    if (n == 0)
        chain->readable = addr;
    else
        chain->writable = addr;
}

static bool split_take_avail(struct litmus *l, struct chain *chain)
{
    const struct virtq_avail *avail = l->vq.u.split.avail;
    if (le16_load_acquire(&avail->idx) == l->avail_taken)
        return false;
    uint16_t at = le16_load(&avail->ring[l->avail_taken++ % LITMUS_RING]);
    chain->id = at;
    for (unsigned n = 0; n < 2; n++) {
        const struct virtq_desc *desc = &l->vq.u.split.desc[at % LITMUS_RING];
        note(chain, n, le64_get(desc->addr), le32_load(&desc->len), le16_load(&desc->flags));
        at = le16_load(&desc->next);
    }
    return true;
}

static bool packed_take_avail(struct litmus *l, struct chain *chain)
{
    for (unsigned n = 0; n < 2; n++) {
        const struct virtq_packed_desc *desc = &l->vq.u.packed.desc[l->avail_taken];
        uint16_t flags = le16_load_acquire(&desc->flags);
        bool avail = flags & VIRTQ_DESC_F_AVAIL, used = flags & VIRTQ_DESC_F_USED;
        if (n == 0 && (avail != l->avail_wrap || used == l->avail_wrap))
            return false;
        note(chain, n, le64_get(desc->addr), le32_load(&desc->len), flags);
        chain->id = le16_load(&desc->id);
        if (++l->avail_taken == LITMUS_RING) {
            l->avail_taken = 0;
            l->avail_wrap = !l->avail_wrap;
        }
    }
    return true;
}

/* Gives the chain back; true if the driver wants an interrupt for it. */
static bool split_give_used(struct litmus *l, const struct chain *chain)
{
    struct virtq_used *used = l->vq.u.split.used;
    struct virtq_avail *avail = l->vq.u.split.avail;
    uint16_t old = l->used_given++;
    le32_store(&used->ring[old % LITMUS_RING].id, chain->id);
    le32_store(&used->ring[old % LITMUS_RING].len, 1);
    le16_store_release(&used->idx, l->used_given);
    full_barrier();
    if (l->what->event_idx)
        return le16_load(&avail->ring[LITMUS_RING]) == old;
    return !(le16_load(&avail->flags) & VIRTQ_AVAIL_F_NO_INTERRUPT);
}

static uint32_t event_word(const struct virtq_packed_event *event)
{
    typedef uint32_t word __attribute__((may_alias));
    return __atomic_load_n((const word *)(const void *)event, __ATOMIC_RELAXED);
}

static void event_store(struct virtq_packed_event *event, uint16_t off_wrap, uint16_t flags)
{
    typedef uint32_t word __attribute__((may_alias));
    __atomic_store_n((word *)(void *)event, (uint32_t)flags << 16 | off_wrap, __ATOMIC_RELAXED);
}

static bool packed_give_used(struct litmus *l, const struct chain *chain)
{
    struct virtq_packed_desc *desc = &l->vq.u.packed.desc[l->used_given];
    uint16_t position = (uint16_t)(l->used_given | (l->used_wrap ? 0x8000u : 0));
    le16_store(&desc->id, chain->id);
    le32_store(&desc->len, 1);
    /* WRITE: `len` means something (2.8.5) */
    le16_store_release(&desc->flags,
                       VIRTQ_DESC_F_WRITE | (l->used_wrap ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED : 0));
    l->used_given = (uint16_t)(l->used_given + 2);
    if (l->used_given >= LITMUS_RING) {
        l->used_given = (uint16_t)(l->used_given - LITMUS_RING);
        l->used_wrap = !l->used_wrap;
    }
    full_barrier();
    uint32_t event = event_word(l->vq.u.packed.driver);
    switch (event >> 16) {
    case VIRTQ_PACKED_EVENT_ENABLE:
        return true;
    case VIRTQ_PACKED_EVENT_DESC:
        return (uint16_t)event == position;
    default:
        return false;
    }
}

static bool take_avail(struct litmus *l, struct chain *chain)
{
    *chain = (struct chain){.sound = true};
    return l->what->packed ? packed_take_avail(l, chain) : split_take_avail(l, chain);
}

static void serve(struct litmus *l, const struct chain *chain)
{
    const uint64_t *header = (const uint64_t *)(uintptr_t)chain->readable;
    uint64_t payload = chain->sound ? header[0] : 0;
    if (!chain->sound || payload != l->seen + 1 || header[1] != payload) {
        broke(l, "the device saw `avail` before the descriptors or the payload");
        return;
    }
    l->seen = payload;
    if (l->what->sleeping)
        dawdle(&l->device_random);
    *(uint8_t *)(uintptr_t)chain->writable = ANSWER(payload);
    if (l->what->packed ? packed_give_used(l, chain) : split_give_used(l, chain))
        __atomic_fetch_add(&l->interrupts, 1, __ATOMIC_RELEASE);
}

/* While the ring is looked at, kicks are not wanted; before sleeping they are. */
static void want_kicks(struct litmus *l, bool want)
{
    if (l->what->packed) {
        uint16_t position = (uint16_t)(l->avail_taken | (l->avail_wrap ? 0x8000u : 0));
        if (!want)
            event_store(l->vq.u.packed.device, 0, VIRTQ_PACKED_EVENT_DISABLE);
        else if (l->what->event_idx)
            event_store(l->vq.u.packed.device, position, VIRTQ_PACKED_EVENT_DESC);
        else
            event_store(l->vq.u.packed.device, 0, VIRTQ_PACKED_EVENT_ENABLE);
    } else if (l->what->event_idx) {
        le16 *avail_event = (le16 *)(void *)&l->vq.u.split.used->ring[LITMUS_RING];
        if (want)
            le16_store(avail_event, l->avail_taken);
    } else {
        le16_store(&l->vq.u.split.used->flags, want ? 0 : VIRTQ_USED_F_NO_NOTIFY);
    }
    full_barrier();
}

void litmus_device(void *litmus)
{
    struct litmus *l = litmus;
    struct chain chain;
    while (!stopped(l)) {
        uint32_t kicks = __atomic_load_n(&l->kicks, __ATOMIC_ACQUIRE);
        if (take_avail(l, &chain)) {
            serve(l, &chain);
            continue;
        }
        if (!l->what->sleeping) {
            l->pause();
            continue;
        }
        dawdle(&l->device_random);
        want_kicks(l, true);
        if (take_avail(l, &chain)) {
            want_kicks(l, false);
            serve(l, &chain);
            continue;
        }
        __atomic_store_n(&l->device_asleep, 1, __ATOMIC_SEQ_CST);
        if (!sleep_until_changed(l, &l->kicks, kicks))
            return; /* the driver has ended, or says what was lost */
        __atomic_store_n(&l->device_asleep, 0, __ATOMIC_SEQ_CST);
        want_kicks(l, false);
    }
}
