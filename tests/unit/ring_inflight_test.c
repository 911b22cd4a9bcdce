/*
 * Death at any moment, and taking up again: a device is run one instruction at a time in a process of its
 * own, and every state that the shared memory goes through (ring and inflight region) is kept. From each of
 * them another device must finish everything: each request is given back exactly once, whatever the driver
 * did meanwhile. And the region is a stranger's: whatever stands in it, nothing but the queue's start may
 * fail.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/device/ring_inflight.h"
#include "tests/unit/device_rig.h"

#define BIT(n)       VIRTIO_BIT(VIRTIO_F_##n)
#define SIZE         16u
#define FIRST        5u /* requests before the death, of three descriptors each where they are direct */
#define MAX_REQUESTS 32u

static const struct layout {
    const char *name;
    uint64_t features;
} layouts[] = {
    {"split", 0},
    {"split, indirect", BIT(INDIRECT_DESC)},
    {"split, in order", BIT(IN_ORDER)},
    {"packed", BIT(RING_PACKED)},
    {"packed, indirect", BIT(RING_PACKED) | BIT(INDIRECT_DESC)},
    {"packed, in order", BIT(RING_PACKED) | BIT(IN_ORDER)},
};

#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))

static struct rig_options options;
static uint64_t region_addr;
static struct rig_request requests[MAX_REQUESTS];
static unsigned answered[MAX_REQUESTS];
static unsigned num_requests;

static void set_base(uint16_t base)
{
    struct rig_queue *queue = &rig.queues[0];

    if (queue->packed) {
        queue->next_desc = queue->used_idx = base % SIZE;
        for (unsigned i = 0; i < base % SIZE; i++) /* as the lap so far has left them */
            queue->pdesc[i].flags = le16_put(VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED);
        rig.setup[0].last_avail_idx = rig.setup[0].last_used_idx = (uint16_t)(0x8000 | base % SIZE);
        return;
    }
    queue->avail_idx = queue->used_idx = base;
    queue->avail->idx = queue->used->idx = le16_put(base);
    rig.setup[0].last_avail_idx = base;
}

static void start(const struct layout *layout, uint16_t base)
{
    options = (struct rig_options){.features = layout->features | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH),
                                   .size = SIZE,
                                   .no_start = true,
                                   .device = {.request_merging = true}};
    rig_init(&options);
    set_base(base);
    region_addr = rig_alloc(ring_inflight_bytes(rig.queues[0].packed, SIZE), 64);
    rig.setup[0].inflight = ptr(region_addr);
    rig.setup[0].inflight_bytes = ring_inflight_bytes(rig.queues[0].packed, SIZE);
    num_requests = 0;
    memset(answered, 0, sizeof(answered));
}

static void submit(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned kind = num_requests % 5;
        /* Two writes that merge, a read, a flush, a write. */
        uint32_t type = kind == 2 ? VIRTIO_BLK_T_IN : kind == 3 ? VIRTIO_BLK_T_FLUSH : VIRTIO_BLK_T_OUT;

        requests[num_requests] =
            rig_request(0, type, num_requests, type == VIRTIO_BLK_T_FLUSH ? 0 : rig_alloc(512, 512),
                        type == VIRTIO_BLK_T_FLUSH ? 0 : 512, type == VIRTIO_BLK_T_IN);
        num_requests++;
    }
    rig_publish(0);
}

static void consume(void)
{
    uint16_t id = 0;
    uint32_t len = 0;

    while (rig_used(0, &id, &len)) {
        unsigned i = num_requests;

        /* The youngest of that id is meant. */
        while (i-- > 0 && requests[i].id != id)
            ;
        assert_true(i < num_requests);
        answered[i]++;
    }
}

static void everything_was_answered_once(void)
{
    for (unsigned i = 0; i < num_requests; i++) {
        if (answered[i] != 1)
            fail_msg("request %u was answered %u times", i, answered[i]);
        assert_int_equal(rig_status(requests[i].status), 0);
    }
}

static void nothing_is_in_flight(void)
{
    const struct vhost_user_inflight_split *split = ptr(region_addr);
    const struct vhost_user_inflight_packed *packed = ptr(region_addr);

    for (unsigned i = 0; i < SIZE; i++)
        assert_int_equal(rig.queues[0].packed ? packed->desc[i].inflight : split->desc[i].inflight, 0);
    if (rig.queues[0].packed) {
        unsigned n = 0;

        assert_int_equal(packed->free_head, packed->old_free_head);
        assert_int_equal(packed->used_idx, packed->old_used_idx);
        assert_int_equal(packed->used_wrap_counter, packed->old_used_wrap_counter);
        for (uint16_t at = packed->free_head; at < SIZE; at = packed->desc[at].next)
            assert_true(++n <= SIZE);
        assert_int_equal(n, SIZE);
    } else {
        assert_int_equal(split->used_idx, le16_get(rig.queues[0].used->idx));
    }
}

/* Serves the ring until nothing is left: the youngest first, two in a turn; or in order, one in a turn, with
 * the driver looking after each. */
static void serve(bool one_by_one)
{
    rig_settle();
    while (fake.num_held > 0) {
        fake_release(one_by_one ? 0 : fake.num_held - 1);
        if (!one_by_one && fake.num_held > 0)
            fake_release(fake.num_held / 2);
        rig_settle();
        if (one_by_one)
            consume();
    }
}

/* ---- every state of the memory ---- */

static uint8_t *states[200000];
static unsigned num_states;

static void keep_state(void)
{
    if (num_states > 0 && memcmp(states[num_states - 1], rig.low, rig.low_used) == 0)
        return;
    assert(num_states < sizeof(states) / sizeof(states[0]));
    states[num_states] = malloc(rig.low_used);
    assert(states[num_states]);
    memcpy(states[num_states++], rig.low, rig.low_used);
}

static void forget_states(void)
{
    while (num_states > 0)
        free(states[--num_states]);
}

/* Runs the device on the rings in a child, one instruction at a time. False: not possible here. */
static bool record_states(void)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(77);
        rig_attach(&options);
        fake.hold = true;
        raise(SIGSTOP);
        if (rig_start(0) < 0)
            _exit(1);
        serve(false);
        rig_stop(0);
        _exit(0);
    }
    assert(child > 0);
    keep_state();
    assert(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status))
        return false;
    while (WIFSTOPPED(status)) {
        int pass_on = WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP ? 0 : WSTOPSIG(status);

        if (ptrace(PTRACE_SINGLESTEP, child, NULL, (void *)(intptr_t)pass_on) < 0)
            break;
        if (waitpid(child, &status, 0) != child)
            break;
        keep_state();
    }
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    return true;
}

static void death_at_any_store_loses_and_repeats_nothing(void **state)
{
    static const uint16_t bases[] = {0, 7, 65530};
    const char *size = getenv("RINGSIDE_SIZE");
    bool all = size && strcmp(size, "long") == 0;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    return; /* the sanitizers' own instructions are far too many for this */
#endif
    /* Those that go round the end of the ring, and of the index. */
    for (unsigned b = all                                                            ? 0
                      : ((const struct layout *)*state)->features & BIT(RING_PACKED) ? 1
                                                                                     : 2;
         b < (all                                                            ? 3
              : ((const struct layout *)*state)->features & BIT(RING_PACKED) ? 2
                                                                             : 3);
         b++) {
        struct rig_queue driver;
        struct rig_request before[MAX_REQUESTS];
        uint64_t mark;

        start(*state, bases[b]);
        rig_detach();
        submit(FIRST);
        driver = rig.queues[0];
        mark = rig.low_used;
        memcpy(before, requests, sizeof(before));
        if (!record_states()) {
            rig_fini();
            return;
        }
        assert_true(num_states > 30);
        /* With and without a driver that goes on while nobody serves it. */
        for (unsigned i = 0; i < 2 * num_states; i++) {
            memcpy(rig.low, states[i / 2], mark);
            rig.low_used = mark;
            rig.queues[0] = driver;
            memcpy(requests, before, sizeof(before));
            num_requests = FIRST;
            memset(answered, 0, sizeof(answered));
            if (i % 2) {
                consume();
                while (num_requests < 12 && rig_room(0, rig.queues[0].indirect ? 1 : 3))
                    submit(1);
            }
            rig.resets = 0;
            rig_attach(&options);
            fake.hold = true;
            assert_int_equal(rig_start(0), 0);
            serve(i % 2 == 0);
            assert_int_equal(rig.resets, 0);
            consume();
            everything_was_answered_once();
            nothing_is_in_flight();
            rig_detach();
        }
        forget_states();
        rig_fini();
    }
}

/* What was in flight is taken up in the order in which it was taken. */
static void requests_are_taken_up_in_their_order(void **state)
{
    int status;
    pid_t child;

    start(*state, 0);
    rig_detach();
    submit(FIRST);
    child = fork();
    if (child == 0) {
        rig_attach(&options);
        fake.hold = true;
        if (rig_start(0) < 0)
            _exit(1);
        rig_settle();
        /* The third is given back before the death. */
        for (unsigned i = 0; i < fake.num_held; i++)
            if (fake.held[i]->op == BLK_READ)
                fake_release(i);
        rig_settle();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    options.device.request_merging = false;
    rig_attach(&options);
    assert_int_equal(rig_start(0), 0);
    rig_settle();
    if (((const struct layout *)*state)->features & BIT(IN_ORDER)) {
        assert_int_equal(fake.num_calls, 5); /* the read could not be given back before the writes */
    } else {
        assert_int_equal(fake.num_calls, 4);
        assert_int_equal(fake.calls[0].offset, 0);
        assert_int_equal(fake.calls[1].offset, 512);
        assert_int_equal(fake.calls[2].op, BLK_FLUSH);
        assert_int_equal(fake.calls[3].offset, 4 * 512);
    }
    consume();
    everything_was_answered_once();
    nothing_is_in_flight();
    rig_fini();
}

/* A fresh region over a ring that has been in use: nothing is taken up, nothing is cleared. */
static void a_fresh_region_over_a_used_ring_starts_from_the_ring(void **state)
{
    start(*state, 1000);
    assert_int_equal(rig_start(0), 0);
    submit(3);
    rig_kick(0);
    consume();
    everything_was_answered_once();
    nothing_is_in_flight();
    rig_fini();
}

/* Whoever was killed may have shown its answers and told nobody. Its successor does, even where the ring
 * stands at the place of its beginning, as it does again and again (a packed one after every second lap). */
static void a_successor_tells_the_driver_wherever_the_ring_stands(void **state)
{
    int call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t count;

    start(*state, 0);
    rig.setup[0].call_fd = call;
    assert_int_equal(rig_start(0), 0);
    rig_stop(0);
    assert_int_equal(read(call, &count, sizeof(count)), -1); /* a ring just made has nothing to tell of */
    assert_int_equal(rig_start(0), 0);
    assert_int_equal(read(call, &count, sizeof(count)), sizeof(count));
    rig_fini();
    close(call);
}

static void a_clean_stop_leaves_a_region_that_can_be_used_again(void **state)
{
    start(*state, 5);
    for (unsigned i = 0; i < 6; i++) {
        struct rig_start stopped;

        assert_int_equal(rig_start(0), 0);
        num_requests = 0;
        memset(answered, 0, sizeof(answered));
        submit(4);
        rig_kick(0);
        stopped = rig_stop(0);
        consume();
        everything_was_answered_once();
        nothing_is_in_flight();
        /* What a front end gives as base does not matter when there is a region. */
        rig.setup[0].last_avail_idx = i & 1 ? stopped.last_avail : 3;
        rig.setup[0].last_used_idx = i & 1 ? stopped.last_used : 3;
    }
    rig_fini();
}

static void regions_that_make_no_sense_are_refused(void **state)
{
    bool packed = ((const struct layout *)*state)->features & BIT(RING_PACKED);

    start(*state, 0);
    rig.setup[0].inflight_bytes--;
    assert_int_equal(rig_start(0), -EINVAL);
    rig.setup[0].inflight_bytes++;
    rig.setup[0].inflight = (uint8_t *)rig.setup[0].inflight + 1;
    assert_int_equal(rig_start(0), -EINVAL);
    rig.setup[0].inflight = (uint8_t *)rig.setup[0].inflight - 1;
    if (packed) {
        struct vhost_user_inflight_packed *region = ptr(region_addr);

        region->version = 2;
        assert_int_equal(rig_start(0), -EINVAL);
        region->version = 1;
        region->desc_num = SIZE * 2;
        assert_int_equal(rig_start(0), -EINVAL);
        region->desc_num = SIZE;
        region->used_idx = SIZE;
        assert_int_equal(rig_start(0), -EINVAL);
        region->used_idx = 0;
        /* A list that comes back to itself; one as long as it can't be. */
        region->free_head = region->old_free_head = SIZE;
        region->desc[3].inflight = 1;
        region->desc[3].num = 2;
        region->desc[3].next = 3;
        assert_int_equal(rig_start(0), -EINVAL);
        region->desc[3].num = 0;
        assert_int_equal(rig_start(0), -EINVAL);
        region->desc[3].num = 0xffff;
        assert_int_equal(rig_start(0), -EINVAL);
    } else {
        struct vhost_user_inflight_split *region = ptr(region_addr);

        region->version = 2;
        assert_int_equal(rig_start(0), -EINVAL);
        region->version = 1;
        region->desc_num = SIZE * 2;
        assert_int_equal(rig_start(0), -EINVAL);
        region->desc_num = SIZE;
        region->used_idx = 100; /* the ring's is 0: a batch of 65436 */
        assert_int_equal(rig_start(0), -EINVAL);
        region->used_idx = 65535;
        region->last_batch_head = SIZE;
        assert_int_equal(rig_start(0), -EINVAL);
    }
    rig_fini();
}

/* Any bytes at all: the queue starts or it doesn't, and it ends; what happens to requests is the stranger's
 * affair. */
static void any_bytes_in_the_region_do_no_harm(void **state)
{
    uint32_t seed = 99;

    for (unsigned round = 0; round < 400; round++) {
        uint8_t *region;
        struct vhost_user_inflight_split *split;

        start(*state, (uint16_t)round);
        region = ptr(region_addr);
        submit(FIRST);
        for (unsigned i = 0; i < rig.setup[0].inflight_bytes; i++) {
            seed = seed * 1103515245u + 12345u;
            region[i] = (uint8_t)((seed >> 24) % (round % 4 == 0 ? 256 : 2 + round % 16));
        }
        split = ptr(region_addr);
        split->version = round % 8 ? 1 : 0;
        split->desc_num = SIZE;
        if (!rig.queues[0].packed && round % 3)
            split->used_idx = (uint16_t)(round - round % 5);
        rig_start(0);
        rig_settle();
        rig_fini();
    }
}

typedef void test_function(void **state);

static const struct {
    const char *name;
    test_function *function;
} cases[] = {
#define CASE(f) \
    {           \
#f, f   \
    }
    CASE(death_at_any_store_loses_and_repeats_nothing),
    CASE(requests_are_taken_up_in_their_order),
    CASE(a_fresh_region_over_a_used_ring_starts_from_the_ring),
    CASE(a_successor_tells_the_driver_wherever_the_ring_stands),
    CASE(a_clean_stop_leaves_a_region_that_can_be_used_again),
    CASE(regions_that_make_no_sense_are_refused),
    CASE(any_bytes_in_the_region_do_no_harm),
};

#define CASES (sizeof(cases) / sizeof(cases[0]))

int main(void)
{
    static struct CMUnitTest tests[CASES * LAYOUTS];
    static char names[CASES * LAYOUTS][160];
    size_t n = 0;

    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t c = 0; c < CASES; c++, n++) {
            snprintf(names[n], sizeof(names[n]), "%s: %s", layouts[l].name, cases[c].name);
            tests[n] = (struct CMUnitTest){
                .name = names[n], .test_func = cases[c].function, .initial_state = (void *)&layouts[l]};
        }
    return _cmocka_run_group_tests("ring_inflight", tests, n, NULL, NULL);
}
