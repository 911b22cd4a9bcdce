/*
 * What the device does with the guest's buffers, seen by the processor: each buffer lies in pages that can't
 * be touched, and every first touch of a page tells whether it was to read or to write. Numbers are those of
 * the rule in the project's checklist of the specification.
 *
 * x86-64 says in a page fault what it was for; elsewhere these tests are skipped.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <signal.h>
#include <ucontext.h>

#include "tests/unit/device_rig.h"

#define PAGE 4096u

/* Pages of guest memory behind HIGH_ADDR, watched from `watch` to `unwatch` */
static struct {
    unsigned pages;
    bool writable[HIGH_BYTES / PAGE]; /* the device may write there, and only write */
    volatile sig_atomic_t read_of_writable, write_of_readable, touched;
    struct sigaction before;
} watched;

static void on_fault(int number, siginfo_t *info, void *context)
{
    uint8_t *at = info->si_addr;
    size_t page = (size_t)(at - rig.high) / PAGE;
    bool write = false;

    if (at < rig.high || page >= watched.pages) {
        sigaction(SIGSEGV, &watched.before, NULL); /* somebody's real mistake */
        return;
    }
#if defined(__x86_64__)
    write = ((ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] & 2;
#endif
    watched.touched++;
    if (write && !watched.writable[page])
        watched.write_of_readable++;
    if (!write && watched.writable[page])
        watched.read_of_writable++;
    /* A page that may be read stays protected against writing. */
    mprotect(rig.high + page * PAGE, PAGE,
             !write && !watched.writable[page] ? PROT_READ : PROT_READ | PROT_WRITE);
}

/* Room for BYTES in pages of its own: their end is the page's, for lengths that are off by a few to show. */
static uint64_t place(uint32_t bytes, bool writable)
{
    unsigned pages = (bytes + PAGE - 1) / PAGE, first = watched.pages;

    assert_true((first + pages) * PAGE <= HIGH_BYTES);
    for (unsigned i = 0; i < pages; i++)
        watched.writable[watched.pages++] = writable;
    return HIGH_ADDR + (first + pages) * PAGE - bytes;
}

static void watch(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};

    watched.read_of_writable = watched.write_of_readable = watched.touched = 0;
    sigaction(SIGSEGV, &action, &watched.before);
    mprotect(rig.high, watched.pages * PAGE, PROT_NONE);
}

static void unwatch(void)
{
    mprotect(rig.high, HIGH_BYTES, PROT_READ | PROT_WRITE);
    sigaction(SIGSEGV, &watched.before, NULL);
}

static const struct {
    uint32_t type;
    uint32_t out, in; /* bytes behind the header, before the status */
    bool zoned;
} requests[] = {
    {VIRTIO_BLK_T_IN, 0, 8192, false},
    {VIRTIO_BLK_T_OUT, 8192, 0, false},
    {VIRTIO_BLK_T_FLUSH, 0, 0, false},
    {VIRTIO_BLK_T_GET_ID, 0, 20, false},
    {VIRTIO_BLK_T_GET_LIFETIME, 0, 6, false},
    {VIRTIO_BLK_T_DISCARD, 48, 0, false},
    {VIRTIO_BLK_T_WRITE_ZEROES, 48, 0, false},
    {VIRTIO_BLK_T_SECURE_ERASE, 48, 0, false},
    {0x7777, 512, 512, false},
    {VIRTIO_BLK_T_IN, 0, 4096, true}, /* behind the write pointer */
    {VIRTIO_BLK_T_ZONE_REPORT, 0, 64 + 3 * 64, true},
    {VIRTIO_BLK_T_ZONE_APPEND, 4096, 8, true},
    {VIRTIO_BLK_T_ZONE_OPEN, 0, 0, true},
    {VIRTIO_BLK_T_ZONE_RESET, 0, 0, true},
};

/* Sends the request with each of its parts in pages of its own, and lets it be answered under watch. */
static void one(unsigned which, bool indirect)
{
    uint32_t out = requests[which].out, in = requests[which].in, len;
    struct virtio_blk_req_header header = {.type = le32_put(requests[which].type)};
    uint64_t at, status;
    struct seg segs[4];
    unsigned n = 0;
    uint16_t id = 0;

    watched.pages = 0;
    at = place(sizeof(header), false);
    memcpy(ptr(at), &header, sizeof(header));
    segs[n++] = (struct seg){at, sizeof(header), false};
    if (out) {
        at = place(out, false);
        memset(ptr(at), 0, out); /* ranges of no sectors */
        segs[n++] = (struct seg){at, out, false};
    }
    if (in)
        segs[n++] = (struct seg){place(in, true), in, true};
    status = place(1, true);
    segs[n++] = (struct seg){status, 1, true};
    rig_add_mixed(0, segs, n, indirect ? 0 : n);
    rig_publish(0);
    watch();
    rig_kick(0);
    unwatch();
    assert_true(rig_used(0, &id, &len));
    if (requests[which].type != 0x7777)
        assert_int_equal(rig_status(status), VIRTIO_BLK_S_OK);
    assert_true(watched.touched >= 2); /* header and status at least */
    if (watched.read_of_writable)
        fail_msg("request %u (type %#x): the device read a buffer that it may only write", which,
                 requests[which].type);
    if (watched.write_of_readable)
        fail_msg("request %u (type %#x): the device wrote to a buffer that it may only read", which,
                 requests[which].type);
}

/* 50, 51, 101: readable buffers are never written, writable ones never read, in any type of request. */
static void checklist_50_51_101_buffers_are_used_one_way(void **state)
{
    static const uint64_t layouts[] = {0, VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC),
                                       VIRTIO_BIT(VIRTIO_F_RING_PACKED),
                                       VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC)};

#if !defined(__x86_64__)
    skip();
#endif
    for (unsigned l = 0; l < sizeof(layouts) / sizeof(layouts[0]); l++)
        for (unsigned zoned = 0; zoned < 2; zoned++) {
            struct rig_options options = {
                .features = layouts[l] | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) | VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME),
                .size = 16,
                .device = {.discard = true, .secure_erase = true, .lifetime = true, .request_merging = true}};

            if (zoned) {
                options.features |= VIRTIO_BIT(VIRTIO_BLK_F_ZONED);
                options.device.zoned =
                    (struct virtio_blk_zoned_options){.zone_sectors = 128, .max_append_sectors = 64};
            } else {
                options.features |= VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) | VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
                                    VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE);
            }
            rig_init(&options);
            for (unsigned i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
                if (requests[i].zoned == zoned)
                    one(i, layouts[l] & VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC));
            rig_fini();
        }
}

/* The dirty log, in a page that can't be written to before what it is about was looked at */
static struct {
    uint8_t *log;
    const uint8_t *data;
    int seen; /* the data's first byte when the log was first touched; -1: not yet */
    struct sigaction before;
} logged = {.seen = -1};

static void on_log_fault(int number, siginfo_t *info, void *context)
{
    uint8_t *at = info->si_addr;

    if (at < logged.log || at >= logged.log + PAGE) {
        sigaction(SIGSEGV, &logged.before, NULL); /* somebody's real mistake */
        return;
    }
    logged.seen = *logged.data;
    mprotect(logged.log, PAGE, PROT_READ | PROT_WRITE);
}

/* The peer clears a bit, then copies the page: what is written after the bit was set may never arrive. Here:
 * the zeroes of a read behind the write pointer. */
static void a_page_is_logged_after_it_was_written(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        struct sigaction action = {.sa_sigaction = on_log_fault, .sa_flags = SA_SIGINFO};
        struct rig_options options = {.features = VIRTIO_BIT(VIRTIO_BLK_F_ZONED) |
                                                  (packed ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0),
                                      .size = 16,
                                      .no_start = true,
                                      .device.zoned = {.zone_sectors = 128}};
        struct rig_request request;
        uint64_t data;
        uint32_t len;
        uint16_t id;

        rig_init(&options);
        data = rig_alloc(8192, PAGE);
        memset(ptr(data), 0xaa, 8192);
        logged.log = rig_map(PAGE);
        logged.data = ptr(data);
        logged.seen = -1;
        rig.setup[0].log = logged.log;
        rig.setup[0].log_bytes = PAGE;
        assert_int_equal(rig_start(0), 0);
        rig_settle();
        request = rig_request(0, VIRTIO_BLK_T_IN, 0, data, 8192, true);
        mprotect(logged.log, PAGE, PROT_READ);
        sigaction(SIGSEGV, &action, &logged.before);
        rig_kick(0);
        sigaction(SIGSEGV, &logged.before, NULL);
        assert_true(rig_used(0, &id, &len));
        assert_int_equal(rig_status(request.status), VIRTIO_BLK_S_OK);
        assert_int_equal(logged.seen, 0);
        rig_fini();
        munmap(logged.log, PAGE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checklist_50_51_101_buffers_are_used_one_way),
        cmocka_unit_test(a_page_is_logged_after_it_was_written),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
