/*
 * A queue on a thread of its own, its driver on another, control on a third role: for ThreadSanitizer above
 * all. Kicks and interrupts go through eventfds, as with a real transport; the queue is stopped and started,
 * moved between loops, its call descriptor replaced and its counters read while requests run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "host/runtime/iothread.h"
#include "tests/unit/device_rig.h"

#define BIT(n) VIRTIO_BIT(VIRTIO_F_##n)

static const uint64_t layouts[] = {
    0,
    BIT(EVENT_IDX) | BIT(INDIRECT_DESC),
    BIT(RING_PACKED),
    BIT(RING_PACKED) | BIT(EVENT_IDX) | BIT(INDIRECT_DESC),
    BIT(RING_PACKED) | BIT(IN_ORDER) | BIT(EVENT_IDX),
};

struct control {
    struct loop *loop; /* to start on; NULL: stop */
    int call_fd;
    int result;
};

static void control_entry(void *arg)
{
    struct control *control = arg;
    struct rig_start stopped = {0};

    if (control->call_fd >= 0) {
        virtio_blk_co_queue_set_call(rig.device, 0, control->call_fd);
    } else if (control->loop) {
        control->result = virtio_blk_co_queue_start(rig.device, 0, control->loop, &rig.setup[0], NULL);
    } else {
        virtio_blk_co_queue_stop(rig.device, 0, &stopped.last_avail, &stopped.last_used);
        rig.setup[0].last_avail_idx = stopped.last_avail;
        rig.setup[0].last_used_idx = stopped.last_used;
    }
}

static void control(struct loop *loop, int call_fd)
{
    struct control what = {loop, call_fd, 0};

    loop_run_coroutine(rig.loop, control_entry, &what);
    assert_int_equal(what.result, 0);
}

static void full_barrier(void)
{
    static uint32_t word;

    __atomic_fetch_add(&word, 0, __ATOMIC_SEQ_CST);
}

/* Waits for an interrupt, then takes it. False: none came within two minutes. */
static bool interrupted(int fd)
{
    struct pollfd poll_fd = {fd, POLLIN, 0};
    uint64_t count;

    return poll(&poll_fd, 1, 120000) == 1 && read(fd, &count, sizeof(count)) == sizeof(count);
}

/* Asks for an interrupt with the next used buffer. */
static void want_interrupt(void)
{
    struct rig_queue *queue = &rig.queues[0];

    if (!queue->event_idx)
        return;
    if (queue->packed) {
        le16_store(&queue->driver->off_wrap, (uint16_t)(queue->used_idx | (queue->used_wrap ? 0x8000 : 0)));
        le16_store_release(&queue->driver->flags, VIRTQ_PACKED_EVENT_DESC);
    } else {
        le16_store_release(&queue->avail->ring[queue->size], queue->used_idx);
    }
}

static void checklist_82_a_queue_on_another_thread(void **state)
{
    struct iothread *threads[2];
    struct error err = {""};

    for (unsigned l = 0; l < sizeof(layouts) / sizeof(layouts[0]); l++) {
        int call[2];
        bool in_order = layouts[l] & VIRTIO_BIT(VIRTIO_F_IN_ORDER); /* one length for a batch */
        uint64_t mark, data, one = 1;
        unsigned answered = 0;

        rig_init(&(struct rig_options){.features = layouts[l], .size = 16, .no_start = true});
        for (unsigned i = 0; i < 2; i++) {
            threads[i] = iothread_start("test", i ? 20000 : 0, &err);
            assert_non_null(threads[i]);
            call[i] = eventfd(0, EFD_NONBLOCK);
        }
        rig.setup[0].kick_fd = eventfd(0, EFD_NONBLOCK);
        rig.setup[0].call_fd = call[0];
        data = rig_alloc(512, 512);
        mark = rig.low_used;
        for (unsigned round = 0; round < 40; round++) {
            int call_fd = call[round & 1];
            struct virtio_blk_queue_stats stats;
            uint16_t id;
            uint32_t len;
            unsigned sent = 0;

            rig.low_used = mark;
            rig.setup[0].call_fd = call_fd;
            /* Every other time the work is there before the queue is. */
            if (round % 2)
                control(iothread_loop(threads[round % 4 / 2]), -1);
            for (; sent < 4; sent++)
                rig_request(0, VIRTIO_BLK_T_IN, sent * 3, data, 512, true);
            want_interrupt();
            rig_publish(0);
            assert_int_equal(write(rig.setup[0].kick_fd, &one, sizeof(one)), sizeof(one));
            if (round % 2 == 0)
                control(iothread_loop(threads[round % 4 / 2]), -1);
            virtio_blk_queue_stats(rig.device, 0, &stats);
            virtio_blk_resume(rig.device);
            while (sent > 0) {
                /* 82: who sees a used element sees the length it was given before. */
                while (rig_used(0, &id, &len)) {
                    assert_true(len == 513 || (in_order && len == UINT32_MAX));
                    sent--;
                    answered++;
                }
                want_interrupt();
                /* An interrupt asked for too late is made up for by looking once more, when the device can
                 * see what was asked for. */
                full_barrier();
                if (sent > 0 && !rig_used(0, &id, &len)) {
                    assert_true(interrupted(call_fd));
                } else if (sent > 0) {
                    assert_true(len == 513 || (in_order && len == UINT32_MAX));
                    sent--;
                    answered++;
                }
            }
            if (round % 3 == 0)
                control(NULL, call[1 - (round & 1)]);
            control(NULL, -1);
            (void)!read(call[0], &(uint64_t){0}, 8);
            (void)!read(call[1], &(uint64_t){0}, 8);
        }
        assert_int_equal(answered, 160);
        assert_int_equal(rig.resets, 0);
        rig_fini();
        for (unsigned i = 0; i < 2; i++) {
            iothread_stop(threads[i]);
            close(call[i]);
        }
        close(rig.setup[0].kick_fd);
    }
}

/* Does the device want a kick for what was made available from OLD on? (2.7.10.1, 2.8.21.3.1) */
static bool wants_kick(uint16_t old, uint16_t old_desc)
{
    const struct rig_queue *queue = &rig.queues[0];

    full_barrier();
    if (!queue->packed) {
        if (!queue->event_idx)
            return !(le16_load(&queue->used->flags) & VIRTQ_USED_F_NO_NOTIFY);
        return (uint16_t)(queue->avail_idx - le16_load((const le16 *)&queue->used->ring[queue->size]) - 1u) <
               (uint16_t)(queue->avail_idx - old);
    }
    switch (le16_load_acquire(&queue->device->flags)) {
    case VIRTQ_PACKED_EVENT_DISABLE:
        return false;
    case VIRTQ_PACKED_EVENT_DESC:
        /* Where it waits is where the first of these begins, or it does not wait. */
        return (le16_load(&queue->device->off_wrap) & 0x7fff) == old_desc;
    default:
        return true;
    }
}

/* 82, 94: kicks and interrupts only where they are asked for, millions of chances to lose one. A lost one
 * stops everything, and is seen by the time that passes. */
static void checklist_94_no_kick_and_no_interrupt_is_lost(void **state)
{
    static const unsigned poll_ns[] = {0, 5000};
    const char *size = getenv("RINGSIDE_SIZE");
    unsigned count = size && strcmp(size, "long") == 0 ? 1000000 : 3000;
    struct error err = {""};

    for (unsigned l = 0; l < 2 * sizeof(layouts) / sizeof(layouts[0]); l++) {
        struct iothread *thread = iothread_start("test", poll_ns[l % 2], &err);
        uint64_t mark, data, one = 1;
        uint32_t seed = l + 1;

        rig_init(&(struct rig_options){.features = layouts[l / 2], .size = 16, .no_start = true});
        rig.setup[0].kick_fd = eventfd(0, EFD_NONBLOCK);
        rig.setup[0].call_fd = eventfd(0, EFD_NONBLOCK);
        control(iothread_loop(thread), -1);
        data = rig_alloc(512, 512);
        mark = rig.low_used;
        for (unsigned done = 0; done < count;) {
            uint16_t old = rig.queues[0].avail_idx, old_desc = rig.queues[0].next_desc, id;
            uint32_t len;
            struct rig_request request;

            seed = seed * 1103515245u + 12345u;
            rig.low_used = mark;
            request = rig_request(0, VIRTIO_BLK_T_IN, seed >> 20, data, 512, true);
            rig_publish(0);
            if (wants_kick(old, old_desc))
                assert_int_equal(write(rig.setup[0].kick_fd, &one, sizeof(one)), sizeof(one));
            /* Now and then the device gets the time to go to sleep, or the driver has none to look. */
            for (volatile unsigned i = seed >> 16 & 2047; i > 0; i--)
                ;
            while (!rig_used(0, &id, &len)) {
                want_interrupt();
                full_barrier();
                if (rig_used(0, &id, &len))
                    break;
                if (!interrupted(rig.setup[0].call_fd))
                    fail_msg("layout %u: nothing came after %u requests", l / 2, done);
            }
            assert_int_equal(rig_status(request.status), 0);
            assert_int_equal(len, 513);
            done++;
        }
        control(NULL, -1);
        assert_int_equal(rig.resets, 0);
        rig_fini();
        iothread_stop(thread);
        close(rig.setup[0].kick_fd);
        close(rig.setup[0].call_fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checklist_82_a_queue_on_another_thread),
        cmocka_unit_test(checklist_94_no_kick_and_no_interrupt_is_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
