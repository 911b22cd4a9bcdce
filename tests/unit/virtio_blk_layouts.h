/*
 * Every ring layout, for tests of the block device: each test runs once over each, or once at all.
 * Included by one source file of a test program, which ends with run_cases.
 */
#ifndef RINGSIDE_TESTS_VIRTIO_BLK_LAYOUTS_H
#define RINGSIDE_TESTS_VIRTIO_BLK_LAYOUTS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

struct layout {
    const char *name;
    uint64_t features;
};

#define BIT(n) VIRTIO_BIT(VIRTIO_F_##n)

static const struct layout layouts[] = {
    {"split", 0},
    {"split, indirect, event index", BIT(INDIRECT_DESC) | BIT(EVENT_IDX)},
    {"split, in order", BIT(IN_ORDER)},
    {"split, indirect, in order", BIT(IN_ORDER) | BIT(INDIRECT_DESC)},
    {"packed", BIT(RING_PACKED)},
    {"packed, indirect, event index", BIT(RING_PACKED) | BIT(INDIRECT_DESC) | BIT(EVENT_IDX)},
    {"packed, in order", BIT(RING_PACKED) | BIT(IN_ORDER)},
    {"packed, indirect, in order", BIT(RING_PACKED) | BIT(IN_ORDER) | BIT(INDIRECT_DESC)},
};

#define LAYOUTS (sizeof(layouts) / sizeof(layouts[0]))

#define BLK(n) VIRTIO_BIT(VIRTIO_BLK_F_##n)

static const uint64_t all_blk = BLK(FLUSH) | BLK(CONFIG_WCE) | BLK(DISCARD) | BLK(WRITE_ZEROES) |
                                BLK(SECURE_ERASE) | BLK(MQ) | BLK(SEG_MAX) | BLK(BLK_SIZE) | BLK(TOPOLOGY) |
                                BLK(RO) | BLK(LIFETIME);

static const struct layout UNUSED *layout_of(void **state)
{
    return *state;
}

static void start(void **state, struct rig_options options)
{
    if (!options.features)
        options.features = all_blk;
    options.features |= layout_of(state)->features;
    if (!options.size)
        options.size = 64;
    options.device.discard = true;
    rig_init(&options);
}

/* One request alone, of any framing; its status. */
static uint8_t UNUSED run(const struct seg *segs, unsigned n, uint32_t *len)
{
    uint32_t used_len = 0;
    uint16_t id = 0, expected = rig_add(0, segs, n);

    rig_kick(0);
    if (!rig_used(0, &id, &used_len))
        fail_msg("not answered: %s", rig.why);
    assert_int_equal(id, expected);
    assert_int_equal(rig.resets, 0);
    if (len)
        *len = used_len;
    return *(uint8_t *)ptr(segs[n - 1].addr + segs[n - 1].len - 1);
}

static uint8_t UNUSED simple(uint32_t type, uint64_t sector, uint64_t data, uint32_t bytes, bool write,
                             uint32_t *len)
{
    uint64_t status = rig_alloc(1, 1);
    struct seg segs[3] = {{rig_header(type, sector), 16, false}, {data, bytes, write}, {status, 1, true}};

    *(uint8_t *)ptr(status) = 0xee;
    if (bytes == 0)
        segs[1] = segs[2];
    return run(segs, bytes ? 3 : 2, len);
}

static void UNUSED fill(void *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = (uint8_t)(seed + i * 7 + i / 251);
}

typedef void test_function(void **state);

struct layout_case {
    const char *name;
    test_function *function;
    bool each; /* over every layout */
};

#define EACH_LAYOUT(f) \
    {                  \
#f, f, true    \
    }
#define ONCE(f)      \
    {                \
#f, f, false \
    }

#define LAYOUT_CASES_MAX 64u

static int run_cases(const char *group, const struct layout_case *cases, size_t num_cases)
{
    static struct CMUnitTest tests[LAYOUT_CASES_MAX * LAYOUTS];
    static char names[LAYOUT_CASES_MAX * LAYOUTS][160];
    size_t n = 0;

    assert(num_cases <= LAYOUT_CASES_MAX);
    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t c = 0; c < num_cases; c++) {
            if (l > 0 && !cases[c].each)
                continue;
            snprintf(names[n], sizeof(names[n]), "%s%s%s", cases[c].each ? layouts[l].name : "",
                     cases[c].each ? ": " : "", cases[c].name);
            tests[n].name = names[n];
            tests[n].test_func = cases[c].function;
            tests[n].initial_state = (void *)&layouts[l];
            n++;
        }
    return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}

#endif
