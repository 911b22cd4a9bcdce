/*
 * The vhost-user server when something around it goes wrong: no descriptors left, a disk that fails while the
 * error policy is to stop.
 */
#include "tests/unit/vhost_user_rig.h"

#include <sys/resource.h>

#include "host/block/inject.h"
#include "host/runtime/world.h"

/* ---- no descriptors ---- */

static void without_descriptors_the_loop_rests_and_the_front_end_is_served_later(void **state)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct rlimit limit, none;
    struct loop_stats before, after;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int next = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    strcpy(addr.sun_path, rig.path);
    close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = (rlim_t)next;
    assert_int_equal(log_lines(), 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    client_send(fd, VHOST_USER_GET_FEATURES, NULL, 0, NULL, 0);
    unsigned lines = 0;
    for (int ms = 0; ms < CLIENT_WAIT_MS && (lines = log_lines()) == 0; ms++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    /* It has a look now and then, five times a second, and says so once. However long this sleeps, a loop
     * that does not rest turns thousands of times as often. */
    uint64_t began = world_now_ns();
    loop_stats(rig.loop, &before);
    nanosleep(&(struct timespec){.tv_nsec = 600000000}, NULL);
    loop_stats(rig.loop, &after);
    assert_true(after.turns - before.turns < 50 + (world_now_ns() - began) / 20000000);
    assert_int_equal(lines + log_lines(), 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    struct client_message reply;
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.header.request, VHOST_USER_GET_FEATURES);
    close(fd);
    server_is_well();
    assert_int_equal(log_lines(), 0);
}

/* ---- call descriptors that the front end fills and makes wait ---- */

static void fill_up(int fd, bool pipe)
{
    static const char zeroes[4096];
    uint64_t most = UINT64_MAX - 1;
    assert_int_not_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), -1);
    if (!pipe)
        assert_int_equal(write(fd, &most, sizeof most), sizeof most);
    else
        while (write(fd, zeroes, sizeof zeroes) > 0)
            ;
    assert_int_not_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), -1);
}

static void a_call_descriptor_that_waits_for_room_holds_up_nobody(void **state)
{
    for (unsigned round = 0; round < 4; round++) {
        struct client_guest g;
        bool pipe = round & 1;
        int ends[2] = {-1, -1};
        int fd = front_end_running(&g);
        read_works(&g);
        if (pipe)
            assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
        else
            ends[1] = eventfd(0, EFD_CLOEXEC);
        client_send_event(fd, VHOST_USER_SET_VRING_CALL, 0, ends[1]);
        assert_true(client_sync(fd));
        uint64_t count;
        if (!pipe)
            assert_int_equal(read(ends[1], &count, sizeof count), sizeof count);
        fill_up(ends[1], pipe);
        guest_submit_read(&g, 0, 2);
        guest_kick(&g);
        assert_true(guest_wait_used(&g, 0, 2, CLIENT_WAIT_MS));
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* the interrupt comes after the index */
        if (round & 2)
            assert_int_equal(get_vring_base(fd, 0), 2);
        close(fd);
        server_is_well();
        for (unsigned i = 0; i < 2; i++)
            if (ends[i] >= 0)
                close(ends[i]);
        guest_close(&g);
    }
    log_lines();
}

/* A thread may be held up by another of its rings than the one that is to be stopped, and again after it was
 * let go: by a front end that goes on filling for a while. */
static void a_thread_that_is_held_up_again_is_let_go_again(void **state)
{
    for (unsigned round = 0; round < 2; round++) {
        struct client_guest g;
        int event = eventfd(0, EFD_CLOEXEC);
        int fd = front_end_running(&g);
        read_works(&g);
        client_send_event(fd, VHOST_USER_SET_VRING_CALL, 0, -1);
        guest_send_ring(&g, fd, 2, 0); /* the same thread's */
        client_send_event(fd, VHOST_USER_SET_VRING_CALL, 2, event);
        client_send_event(fd, VHOST_USER_SET_VRING_KICK, 2, g.kick);
        client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 2, 1);
        assert_true(client_sync(fd));
        fill_up(event, false);
        g.avail_idx = 0;
        guest_submit_read(&g, 2, 2);
        guest_kick(&g);
        assert_true(guest_wait_used(&g, 2, 1, CLIENT_WAIT_MS));
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* the interrupt comes after the index */
        for (unsigned i = 0; i < 10; i++)
            guest_submit_read(&g, 2, 3 + i); /* and there is more to tell of */
        guest_kick(&g);
        if (round == 0)
            client_send_state(fd, VHOST_USER_GET_VRING_BASE, 0, 0);
        else
            close(fd);
        for (unsigned i = 0; i < 20000; i++) {
            fcntl(event, F_SETFL, O_RDWR | O_NONBLOCK);
            for (uint64_t n = UINT64_MAX - 1; n > 0 && write(event, &n, sizeof n) < 0; n /= 2)
                ;
            fcntl(event, F_SETFL, O_RDWR);
        }
        /* Who sleeps already, sleeps on. */
        fcntl(event, F_SETFL, O_RDWR | O_NONBLOCK);
        if (round == 0) {
            struct client_message reply;
            assert_int_equal(client_receive(fd, &reply), 1);
            assert_int_equal(reply.header.request, VHOST_USER_GET_VRING_BASE);
            close(fd);
        }
        server_is_well();
        close(event);
        guest_close(&g);
    }
    log_lines();
}

/* ---- requests that the error policy has parked ---- */

static struct loop_bh resume = {0};

static void resume_all(void *opaque)
{
    virtio_blk_resume(rig.device);
}

static void wait_for_hits(uint64_t n)
{
    for (int i = 0; i < CLIENT_WAIT_MS && inject_hits(blk_node(rig.blk)) < n; i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_true(inject_hits(blk_node(rig.blk)) >= n);
}

/* What takes the rings back for a moment; the front end has given no inflight region. */
static void replace_memory(int fd, struct client_guest *g)
{
    guest_send_memory(g, fd);
}

static void add_and_remove_memory(int fd, struct client_guest *g)
{
    int other = memfd_create("other", MFD_CLOEXEC);
    struct vhost_user_single_region region = {
        .region = {.guest_addr = 0x1000, .size = 0x2000, .user_addr = 0x1000, .mmap_offset = 0}};
    assert_int_equal(ftruncate(other, 0x4000), 0);
    assert_int_equal(client_acked(fd, VHOST_USER_ADD_MEM_REG, &region, 40, &other, 1), 0);
    assert_int_equal(client_acked(fd, VHOST_USER_REM_MEM_REG, &region, 40, NULL, 0), 0);
    close(other);
}

static void begin_the_dirty_log(int fd, struct client_guest *g)
{
    int file = memfd_create("log", MFD_CLOEXEC);
    struct vhost_user_log log = {.mmap_size = (GUEST_PHYSICAL + GUEST_BYTES) / 4096 / 8, .mmap_offset = 0};
    struct vhost_user_vring_addr addr = guest_ring_addr(g, 0);
    struct client_message reply;
    assert_int_equal(ftruncate(file, (off_t)log.mmap_size), 0);
    client_send(fd, VHOST_USER_SET_LOG_BASE, &log, sizeof log, &file, 1);
    assert_int_equal(client_receive(fd, &reply), 1);
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | VIRTIO_BIT(VHOST_F_LOG_ALL) | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    addr.flags = VHOST_USER_VRING_F_LOG;
    client_send(fd, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
    close(file);
}

static void another_kick_descriptor(int fd, struct client_guest *g)
{
    close(g->kick);
    g->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g->kick);
}

static void (*const pauses[])(int fd, struct client_guest *g) = {
    replace_memory, add_and_remove_memory, begin_the_dirty_log, another_kick_descriptor};

static void requests_stay_parked_over_a_pause_without_an_inflight_region(void **state)
{
    for (unsigned i = 0; i < sizeof pauses / sizeof pauses[0]; i++) {
        struct client_guest g;
        struct error err = {0};
        int fd = front_end_running(&g);
        read_works(&g);
        inject_clear(blk_node(rig.blk));
        assert_int_equal(inject_add(blk_node(rig.blk), "write,error=ENOSPC,times=always", &err), 0);
        uint64_t hits = inject_hits(blk_node(rig.blk));
        for (unsigned slot = 1; slot < 4; slot++)
            guest_submit(&g, 0, slot, VIRTIO_BLK_T_OUT);
        guest_kick(&g);
        wait_for_hits(hits + 3);
        pauses[i](fd, &g);
        assert_true(client_sync(fd));
        /* Reads go on, writes still wait. */
        guest_submit_read(&g, 0, 4);
        guest_kick(&g);
        assert_true(guest_wait_used(&g, 0, 2, CLIENT_WAIT_MS));
        for (unsigned slot = 1; slot < 4; slot++)
            assert_int_equal(guest_status(&g, slot), 0xff);
        inject_clear(blk_node(rig.blk));
        resume = (struct loop_bh){.fn = resume_all, .loop = rig.loop};
        loop_bh_schedule(&resume);
        assert_true(guest_wait_used(&g, 0, 5, CLIENT_WAIT_MS));
        for (unsigned slot = 1; slot < 5; slot++)
            assert_int_equal(guest_status(&g, slot), VIRTIO_BLK_S_OK);
        assert_int_equal(get_vring_base(fd, 0), 5);
        close(fd);
        guest_close(&g);
        server_is_well();
        log_lines();
    }
}

/* A request in flight when the pause begins, which fails then, is parked as well. (On a machine that is slow
 * it fails and is parked before: the ring that goes on tries it again all the same.) */
static void a_request_that_fails_in_the_middle_of_a_pause_is_tried_again(void **state)
{
    struct client_guest g;
    struct error err = {0};
    struct virtio_blk_range ranges[2] = {{le64_put(0), le32_put(1)}, {le64_put(100), le32_put(1)}};
    int fd = front_end_with_ring(&g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
                        VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    read_works(&g);
    inject_clear(blk_node(rig.blk));
    uint64_t hits = inject_hits(blk_node(rig.blk));
    assert_int_equal(inject_add(blk_node(rig.blk), "zero,mode=late,ms=200;zero,error=ENOSPC", &err), 0);
    /* One range after the other: the second is looked at when the pause has begun. */
    memcpy(guest_data(&g, 1), ranges, sizeof ranges);
    guest_submit(&g, 0, 1, VIRTIO_BLK_T_WRITE_ZEROES);
    guest_kick(&g);
    wait_for_hits(hits + 1);
    guest_send_memory(&g, fd);
    assert_true(client_sync(fd));
    assert_true(guest_wait_used(&g, 0, 2, CLIENT_WAIT_MS));
    assert_int_equal(guest_status(&g, 1), VIRTIO_BLK_S_OK);
    assert_int_equal(inject_hits(blk_node(rig.blk)), hits + 2);
    close(fd);
    guest_close(&g);
    server_is_well();
    log_lines();
}

/* A read that is in flight when the front end replaces its memory, or takes another region away, still lands
 * where it was asked for: nothing is unmapped under it. */
static void memory_is_not_unmapped_under_a_request_in_flight(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct client_guest g;
        struct error err = {0};
        int fd = front_end_running(&g);
        read_works(&g);
        inject_clear(blk_node(rig.blk));
        uint64_t hits = inject_hits(blk_node(rig.blk));
        assert_int_equal(inject_add(blk_node(rig.blk), "read,mode=late,ms=150", &err), 0);
        guest_submit_read(&g, 0, 1);
        guest_kick(&g);
        wait_for_hits(hits + 1);
        pauses[i](fd, &g);
        assert_true(client_sync(fd));
        assert_true(guest_wait_used(&g, 0, 2, CLIENT_WAIT_MS));
        assert_int_equal(guest_status(&g, 1), VIRTIO_BLK_S_OK);
        for (unsigned byte = 0; byte < 512; byte++)
            assert_int_equal(guest_data(&g, 1)[byte], 0);
        read_works(&g);
        close(fd);
        guest_close(&g);
        server_is_well();
        log_lines();
    }
}

/* When the ring is stopped for good nobody would ever answer. */
static void a_ring_that_stops_fails_what_is_parked(void **state)
{
    for (unsigned by_disabling = 0; by_disabling < 2; by_disabling++) {
        struct client_guest g;
        struct error err = {0};
        int fd = front_end_running(&g);
        inject_clear(blk_node(rig.blk));
        assert_int_equal(inject_add(blk_node(rig.blk), "write,error=ENOSPC,times=always", &err), 0);
        uint64_t hits = inject_hits(blk_node(rig.blk));
        guest_submit(&g, 0, 1, VIRTIO_BLK_T_OUT);
        guest_kick(&g);
        wait_for_hits(hits + 1);
        guest_send_memory(&g, fd);
        if (by_disabling)
            client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 0);
        assert_int_equal(get_vring_base(fd, 0), 1);
        assert_true(guest_wait_used(&g, 0, 1, 0));
        assert_int_equal(guest_status(&g, 1), VIRTIO_BLK_S_IOERR);
        /* And nothing of it comes back. */
        inject_clear(blk_node(rig.blk));
        client_send_state(fd, VHOST_USER_SET_VRING_BASE, 0, 1);
        client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
        client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
        read_works(&g);
        close(fd);
        guest_close(&g);
        server_is_well();
        log_lines();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_descriptors_the_loop_rests_and_the_front_end_is_served_later),
        cmocka_unit_test(a_call_descriptor_that_waits_for_room_holds_up_nobody),
        cmocka_unit_test(a_thread_that_is_held_up_again_is_let_go_again),
        cmocka_unit_test(requests_stay_parked_over_a_pause_without_an_inflight_region),
        cmocka_unit_test(a_request_that_fails_in_the_middle_of_a_pause_is_tried_again),
        cmocka_unit_test(memory_is_not_unmapped_under_a_request_in_flight),
        cmocka_unit_test(a_ring_that_stops_fails_what_is_parked),
    };
    rig_inject = "read,times=0";
    return cmocka_run_group_tests_name("vhost-user server in trouble", tests, rig_setup, rig_teardown);
}
