/*
 * The judge of the driver: each of its rules is broken once, and named; a driver that keeps them all hears
 * nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/device/virtqueue_audit.h"
#include "tests/unit/device_rig.h"

#define BIT(n) VIRTIO_BIT(VIRTIO_F_##n)
#define BLK(n) VIRTIO_BIT(VIRTIO_BLK_F_##n)

static char lines[64][400];
static unsigned num_lines;

static void on_line(void *opaque, const char *line)
{
    if (num_lines < 64)
        snprintf(lines[num_lines], sizeof(lines[0]), "%s", line);
    num_lines++;
}

static void start(uint64_t features, bool read_only)
{
    num_lines = 0;
    rig_init(
        &(struct rig_options){.features = features,
                              .size = 64,
                              .read_only = read_only,
                              .device = {.discard = true, .secure_erase = !read_only, .audit = on_line}});
}

static bool named(enum audit_rule rule)
{
    for (unsigned i = 0; i < num_lines && i < 64; i++)
        if (strstr(lines[i], audit_rule_info[rule].text))
            return true;
    return false;
}

static const uint64_t ordinary = BLK(FLUSH) | BLK(DISCARD) | BLK(WRITE_ZEROES) | BLK(SECURE_ERASE) |
                                 BLK(SEG_MAX) | BLK(CONFIG_WCE) | BLK(MQ);

/* A request in the ordinary form, and one with a header of one's own. */
static void ask(uint32_t type, uint64_t sector, uint32_t bytes, bool write)
{
    rig_request(0, type, sector, bytes ? rig_alloc(bytes, 512) : 0, bytes, write);
    rig_kick(0);
}

static void ask_ranges(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags, unsigned n)
{
    uint64_t data = rig_alloc(16ull * n, 16);
    struct virtio_blk_range *list = ptr(data);

    for (unsigned i = 0; i < n; i++)
        list[i] = (struct virtio_blk_range){le64_put(sector), le32_put(sectors), le32_put(flags)};
    rig_request(0, type, 0, data, 16 * n, false);
    rig_kick(0);
}

/* A chain by hand: N segments, the first descriptor's flags changed by EXTRA. */
static void raw_chain(const struct seg *segs, unsigned n, uint16_t extra)
{
    struct rig_queue *queue = &rig.queues[0];
    uint16_t at = queue->next_desc;

    rig_add_mixed(0, segs, n, n);
    if (queue->packed) {
        queue->first_flags |= extra;
    } else {
        uint16_t flags = le16_get(queue->desc[at].flags);

        queue->desc[at].flags = le16_put(flags | extra);
    }
    rig_kick(0);
}

static void flush_segs(struct seg *segs)
{
    segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_FLUSH, 0), 16, false};
    segs[1] = (struct seg){rig_alloc(1, 1), 1, true};
}

static void break_rule(enum audit_rule rule)
{
    struct seg segs[140];
    uint64_t data;

    switch (rule) {
    case AUDIT_VERSION_1:
        start(0, false);
        rig_stop(0);
        assert_int_equal(virtio_blk_set_features(rig.device, BLK(FLUSH)), 0);
        rig_start(0);
        break;
    case AUDIT_WCE_NEEDS_FLUSH:
        start(BLK(CONFIG_WCE), false);
        break;
    case AUDIT_RING:
        start(ordinary, false);
        raw_chain(&(struct seg){0, 16, false}, 1, 0);
        break;
    case AUDIT_AVAIL_FLAGS:
        start(ordinary, false);
        rig.queues[0].avail->flags = le16_put(2);
        ask(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        break;
    case AUDIT_AVAIL_FLAGS_EVENT_IDX:
        start(ordinary | BIT(EVENT_IDX), false);
        rig.queues[0].avail->flags = le16_put(1);
        ask(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        break;
    case AUDIT_EVENT_FLAGS:
        start(ordinary | BIT(RING_PACKED), false);
        rig.queues[0].driver->flags = le16_put(VIRTQ_PACKED_EVENT_DESC);
        ask(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        break;
    case AUDIT_DESC_FLAGS:
        start(ordinary, false);
        flush_segs(segs);
        raw_chain(segs, 2, 0x40);
        break;
    case AUDIT_CHAIN_LENGTH:
        start(ordinary | BIT(INDIRECT_DESC), false);
        data = rig_alloc(512, 512);
        segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_IN, 0), 16, false};
        for (unsigned i = 1; i < 100; i++)
            segs[i] = (struct seg){data, 512, true};
        segs[100] = (struct seg){rig_alloc(1, 1), 1, true};
        rig_add_mixed(0, segs, 101, 0);
        rig_kick(0);
        break;
    case AUDIT_CHAIN_BYTES:
        /* Two thousand times the same two megabytes. */
        start(ordinary | BIT(INDIRECT_DESC), false);
        {
            static struct seg many[1024];

            many[0] = (struct seg){rig_header(VIRTIO_BLK_T_IN, 0), 16, false};
            for (unsigned i = 1; i < 1024; i++)
                many[i] = (struct seg){LOW_ADDR, LOW_BYTES, true};
            many[1023] = (struct seg){rig_alloc(1, 1), 1, true};
            rig_add_mixed(0, many, 1024, 0);
            rig_kick(0);
        }
        break;
    case AUDIT_TABLE_FLAGS:
        start(ordinary | BIT(INDIRECT_DESC) | BIT(RING_PACKED), false);
        flush_segs(segs);
        rig_add_mixed(0, segs, 2, 0);
        ((struct virtq_packed_desc *)ptr(le64_get(rig.queues[0].pdesc[0].addr)))->flags =
            le16_put(VIRTQ_DESC_F_NEXT);
        rig_kick(0);
        break;
    case AUDIT_IN_ORDER_NEXT:
        start(ordinary | BIT(IN_ORDER), false);
        flush_segs(segs);
        rig_add_mixed(0, segs, 2, 2);
        rig.queues[0].desc[7] = rig.queues[0].desc[1];
        rig.queues[0].desc[0].next = le16_put(7);
        rig_kick(0);
        break;
    case AUDIT_IN_ORDER_TABLE:
        start(ordinary | BIT(IN_ORDER) | BIT(INDIRECT_DESC), false);
        flush_segs(segs);
        segs[2] = segs[1];
        rig_add_mixed(0, segs, 3, 0);
        ((struct virtq_desc *)ptr(le64_get(rig.queues[0].desc[0].addr)))->next = le16_put(2);
        rig_kick(0);
        break;
    case AUDIT_IN_ORDER_HEAD:
        start(ordinary | BIT(IN_ORDER), false);
        ask(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        rig.queues[0].next_desc = 9;
        ask(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        break;
    case AUDIT_HEADER:
        start(ordinary, false);
        flush_segs(segs);
        segs[0].len = 12;
        raw_chain(segs, 2, 0);
        break;
    case AUDIT_RESERVED:
        start(ordinary, false);
        flush_segs(segs);
        *(uint32_t *)ptr(segs[0].addr + 4) = 1;
        raw_chain(segs, 2, 0);
        break;
    case AUDIT_TYPE:
        start(ordinary, false);
        ask(7, 0, 0, false);
        break;
    case AUDIT_TYPE_FEATURE:
        start(BLK(SEG_MAX), false);
        ask(VIRTIO_BLK_T_FLUSH, 0, 0, false);
        break;
    case AUDIT_READ_ONLY:
        start(ordinary, true);
        ask(VIRTIO_BLK_T_OUT, 0, 512, false);
        break;
    case AUDIT_SECTOR_ZERO:
        start(ordinary, false);
        ask(VIRTIO_BLK_T_FLUSH, 8, 0, false);
        break;
    case AUDIT_DIRECTION:
        start(ordinary, false);
        ask_ranges(VIRTIO_BLK_T_SECURE_ERASE, 0, 1, 0, 1);
        assert_int_equal(num_lines, 0);
        ask(VIRTIO_BLK_T_SECURE_ERASE, 0, 16, true);
        break;
    case AUDIT_IO_LENGTH:
        start(ordinary, false);
        ask(VIRTIO_BLK_T_IN, 0, 513, true);
        break;
    case AUDIT_IO_RANGE:
        start(ordinary, false);
        ask(VIRTIO_BLK_T_IN, DISK_BYTES / 512 - 1, 1024, true);
        break;
    case AUDIT_SEG_MAX:
        num_lines = 0;
        rig_init(&(struct rig_options){.features = ordinary,
                                       .size = 64,
                                       .device = {.queue_size_max = 64, .discard = true, .audit = on_line}});
        data = rig_alloc(512, 512);
        segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_IN, 0), 16, false};
        for (unsigned i = 1; i < 63; i++)
            segs[i] = (struct seg){data, 512, true};
        segs[63] = (struct seg){rig_alloc(1, 1), 1, true};
        raw_chain(segs, 64, 0); /* 62 of data: as many as there may be */
        assert_int_equal(num_lines, 0);
        rig_fini();
        rig_init(&(struct rig_options){.features = ordinary | BIT(INDIRECT_DESC),
                                       .size = 64,
                                       .device = {.queue_size_max = 64, .discard = true, .audit = on_line}});
        segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_IN, 0), 16, false};
        data = rig_alloc(512, 512);
        for (unsigned i = 1; i < 64; i++)
            segs[i] = (struct seg){data, 512, true};
        segs[64] = (struct seg){rig_alloc(1, 1), 1, true};
        rig_add_mixed(0, segs, 65, 0);
        rig_kick(0);
        break;
    case AUDIT_FLUSH_DATA:
        start(ordinary, false);
        ask(VIRTIO_BLK_T_FLUSH, 0, 512, false);
        break;
    case AUDIT_GET_ID_LENGTH:
        start(ordinary, false);
        ask(VIRTIO_BLK_T_GET_ID, 0, 19, true);
        break;
    case AUDIT_RANGE_LENGTH:
        start(ordinary, false);
        ask(VIRTIO_BLK_T_DISCARD, 0, 17, false);
        break;
    case AUDIT_RANGE_COUNT:
        start(ordinary, false);
        ask_ranges(VIRTIO_BLK_T_DISCARD, 0, 1, 0, 33);
        break;
    case AUDIT_RANGE_SECTORS:
        start(ordinary, false);
        ask_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 0, 0xffffffff, 0, 1);
        break;
    case AUDIT_RANGE_FLAGS:
        start(ordinary, false);
        ask_ranges(VIRTIO_BLK_T_DISCARD, 0, 1, 1, 1);
        break;
    case AUDIT_RULE_COUNT:
        break;
    }
}

static void every_rule_can_be_broken_and_is_named(void **state)
{
    for (unsigned rule = 0; rule < AUDIT_RULE_COUNT; rule++) {
        break_rule(rule);
        if (!named(rule))
            fail_msg("not noticed: %s", audit_rule_info[rule].text);
        for (unsigned i = 0; i < num_lines; i++)
            assert_non_null(strstr(lines[i], "queue 0: "));
        rig_fini();
    }
}

static void a_rule_broken_often_gives_two_lines(void **state)
{
    start(ordinary, false);
    for (unsigned i = 0; i < 17; i++)
        ask(VIRTIO_BLK_T_FLUSH, 8, 0, false);
    assert_int_equal(num_lines, 1);
    assert_string_equal(lines[0],
                        "queue 0: 5.2.6.1 MUST: sector is 0 where it means nothing (sector 8 in FLUSH)");
    rig_fini();
    assert_int_equal(num_lines, 2);
    assert_non_null(strstr(lines[1], "broken 17 times"));
}

static void a_good_driver_hears_nothing(void **state)
{
    static const uint64_t layouts[] = {
        0,
        BIT(EVENT_IDX) | BIT(INDIRECT_DESC),
        BIT(IN_ORDER),
        BIT(IN_ORDER) | BIT(INDIRECT_DESC),
        BIT(RING_PACKED),
        BIT(RING_PACKED) | BIT(EVENT_IDX) | BIT(INDIRECT_DESC) | BIT(IN_ORDER),
    };

    for (unsigned l = 0; l < sizeof(layouts) / sizeof(layouts[0]); l++) {
        uint16_t id = 0;
        uint32_t len = 0;

        start(ordinary | layouts[l], false);
        for (unsigned i = 0; i < 50; i++) {
            ask(VIRTIO_BLK_T_OUT, i, 1024, false);
            ask(VIRTIO_BLK_T_IN, i, 512, true);
            ask(VIRTIO_BLK_T_FLUSH, 0, 0, false);
            ask(VIRTIO_BLK_T_GET_ID, 0, 20, true);
            ask_ranges(VIRTIO_BLK_T_DISCARD, 0, 8, 0, 32);
            ask_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 1, 1);
            ask_ranges(VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0, 2);
            while (rig_used(0, &id, &len))
                ;
        }
        rig_fini();
        if (num_lines > 0)
            fail_msg("%s", lines[0]);
    }
}

/* 5.2.6: eight bytes in front of the status are part of every ZONE_APPEND, and of nothing else that is
 * written. */
static void an_append_has_room_for_its_place(void **state)
{
    struct seg segs[3];

    num_lines = 0;
    rig_init(&(struct rig_options){
        .features = BLK(ZONED) | BLK(FLUSH),
        .size = 64,
        .device = {.audit = on_line, .zoned = {.zone_sectors = 128, .max_append_sectors = 32}}});
    for (uint32_t trailer = 9; trailer <= 10; trailer++) {
        segs[0] = (struct seg){rig_header(VIRTIO_BLK_T_ZONE_APPEND, 0), 16, false};
        segs[1] = (struct seg){rig_alloc(512, 512), 512, false};
        segs[2] = (struct seg){rig_alloc(trailer, 1), trailer, true};
        raw_chain(segs, 3, 0);
        assert_int_equal(num_lines, trailer - 9);
    }
    assert_true(named(AUDIT_DIRECTION));
    rig_fini();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_append_has_room_for_its_place),
        cmocka_unit_test(every_rule_can_be_broken_and_is_named),
        cmocka_unit_test(a_rule_broken_often_gives_two_lines),
        cmocka_unit_test(a_good_driver_hears_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
