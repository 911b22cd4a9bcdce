/*
 * The vhost-user server against raw messages over its socket: the state machine of rings, every message that
 * breaks the table, and the cases that other back ends died of. A null image lies behind it.
 */
#include "tests/unit/vhost_user_rig.h"

/* ---- negotiation and configuration ---- */

static void features_are_the_devices_and_the_servers_own(void **state)
{
    int fd = client_connect(rig.path);
    uint64_t features = client_ask_u64(fd, VHOST_USER_GET_FEATURES);
    assert_true(features & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    assert_true(features & VIRTIO_BIT(VIRTIO_F_VERSION_1));
    assert_false(features & VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA)); /* an eventfd carries none */
    assert_int_equal(client_ask_u64(fd, VHOST_USER_GET_QUEUE_NUM), QUEUES);
    client_send_u64(fd, VHOST_USER_SET_FEATURES, features | 1ull << 63);
    assert_true(client_ended(fd));
    close(fd);
    assert_int_equal(log_lines(), 1);
    server_is_well();
}

static uint32_t get_config(int fd, uint32_t offset, uint32_t size, struct client_message *reply)
{
    struct vhost_user_config config = {.offset = offset, .size = size};
    client_send(fd, VHOST_USER_GET_CONFIG, &config,
                VHOST_USER_CONFIG_HEADER_BYTES + (size > VHOST_USER_CONFIG_BYTES_MAX ? 0 : size), NULL, 0);
    assert_int_equal(client_receive(fd, reply), 1);
    assert_int_equal(reply->header.request, VHOST_USER_GET_CONFIG);
    return reply->header.size;
}

static void get_config_is_answered_with_the_size_asked_for(void **state)
{
    static const uint32_t sizes[] = {1, 8, 60, 72, 96, 200, 256};
    struct client_message reply;
    int fd = front_end();
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(get_config(fd, 0, sizes[i], &reply), VHOST_USER_CONFIG_HEADER_BYTES + sizes[i]);
        assert_int_equal(reply.payload.config.size, sizes[i]);
    }
    struct virtio_blk_config config;
    memcpy(&config, reply.payload.config.region, sizeof config);
    assert_int_equal(le64_get(config.capacity), CAPACITY / 512);
    assert_int_equal(le16_get(config.num_queues), QUEUES);
    assert_int_equal(get_config(fd, 34, 2, &reply), VHOST_USER_CONFIG_HEADER_BYTES + 2);
    assert_int_equal(reply.payload.config.region[0], QUEUES);
    /* "back-end uses zero length of payload to indicate an error" */
    assert_int_equal(get_config(fd, 200, 57, &reply), 0);
    assert_int_equal(get_config(fd, 0xfffffff0, 32, &reply), 0);
    assert_int_equal(get_config(fd, 0, 0xffffffff, &reply), 0);
    assert_true(client_sync(fd));
    close(fd);
    log_lines();
    server_is_well();
}

static void set_config_writes_writeback_and_nothing_else(void **state)
{
    struct client_message reply;
    int fd = front_end();
    client_send_u64(fd, VHOST_USER_SET_FEATURES, FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    struct vhost_user_config config = {.offset = 32, .size = 1, .region = {0}};
    assert_int_equal(client_acked(fd, VHOST_USER_SET_CONFIG, &config, 13, NULL, 0), 0);
    get_config(fd, 32, 1, &reply);
    assert_int_equal(reply.payload.config.region[0], 0);
    config.region[0] = 1;
    assert_int_equal(client_acked(fd, VHOST_USER_SET_CONFIG, &config, 13, NULL, 0), 0);
    get_config(fd, 32, 1, &reply);
    assert_int_equal(reply.payload.config.region[0], 1);
    config.offset = 0; /* capacity */
    assert_int_equal(client_acked(fd, VHOST_USER_SET_CONFIG, &config, 13, NULL, 0), 1);
    config.flags = 1; /* at the end of a migration it is let pass, and changes nothing */
    assert_int_equal(client_acked(fd, VHOST_USER_SET_CONFIG, &config, 13, NULL, 0), 0);
    get_config(fd, 0, 8, &reply);
    assert_int_equal(reply.payload.config.region[1], (CAPACITY / 512 >> 8) & 0xff);
    close(fd);
    log_lines();
    server_is_well();
}

static void reply_ack_answers_only_when_asked_and_negotiated(void **state)
{
    int fd = client_connect(rig.path);
    struct client_message reply;
    /* Not negotiated: the flag means nothing. */
    client_send_raw(fd, VHOST_USER_SET_OWNER, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY_MASK, 0, NULL, 0,
                    NULL, 0);
    client_send(fd, VHOST_USER_GET_FEATURES, NULL, 0, NULL, 0);
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.header.request, VHOST_USER_GET_FEATURES);
    client_send_u64(fd, VHOST_USER_SET_PROTOCOL_FEATURES, 1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK);
    assert_int_equal(client_acked(fd, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    /* A message that nobody knows is refused, not a reason to leave. */
    assert_int_equal(client_acked(fd, 200, NULL, 0, NULL, 0), 1);
    /* Those with an answer of their own give only that one. */
    client_send_raw(fd, VHOST_USER_GET_QUEUE_NUM, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY_MASK, 0, NULL, 0,
                    NULL, 0);
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.payload.u64, QUEUES);
    assert_true(client_sync(fd));
    /* One that breaks the rules is told so before the connection ends. */
    uint64_t junk = ~0ull;
    assert_int_equal(client_acked(fd, VHOST_USER_SET_FEATURES, &junk, 8, NULL, 0), 1);
    assert_true(client_ended(fd));
    close(fd);
    assert_int_equal(log_lines(), 1);
    server_is_well();
}

/* ---- rings: started and enabled ---- */

static void a_ring_is_served_only_started_and_enabled(void **state)
{
    struct client_guest g;
    int fd = front_end_with_ring(&g);
    guest_submit_read(&g, 0, 0);
    guest_kick(&g);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    assert_true(client_sync(fd));
    assert_false(guest_wait_used(&g, 0, 1, 30)); /* enabled, not started */
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 0);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    assert_true(client_sync(fd));
    assert_false(guest_wait_used(&g, 0, 1, 30)); /* started, not enabled */
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    assert_true(guest_wait_used(&g, 0, 1, 5000));
    read_works(&g);
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void a_ring_is_scanned_when_it_becomes_enabled_without_a_kick(void **state)
{
    struct client_guest g;
    int fd = front_end_running(&g);
    read_works(&g);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 0);
    assert_true(client_sync(fd));
    guest_submit_read(&g, 0, 1);
    assert_false(guest_wait_used(&g, 0, 2, 30));
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    assert_true(guest_wait_used(&g, 0, 2, 5000));
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void features_kick_call_and_err_do_not_disable_a_ring(void **state)
{
    struct client_guest g;
    int fd = front_end_running(&g);
    read_works(&g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES, FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    read_works(&g);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    read_works(&g);
    client_send_event(fd, VHOST_USER_SET_VRING_CALL, 0, g.call);
    client_send_event(fd, VHOST_USER_SET_VRING_ERR, 0, g.call);
    read_works(&g);
    client_send_event(fd, VHOST_USER_SET_VRING_CALL, 0, -1);
    client_send_event(fd, VHOST_USER_SET_VRING_ERR, 0, -1);
    read_works(&g);
    client_send(fd, VHOST_USER_RESET_OWNER, NULL, 0, NULL, 0);
    read_works(&g);
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void get_vring_base_stops_the_ring_and_tells_where_it_was(void **state)
{
    struct client_guest g;
    int fd = front_end_running(&g);
    read_works(&g);
    read_works(&g);
    assert_int_equal(get_vring_base(fd, 0), 2);
    assert_int_equal(get_vring_base(fd, 0), 2); /* a stopped ring is fine */
    guest_submit_read(&g, 0, 2);
    guest_kick(&g);
    assert_true(client_sync(fd));
    assert_false(guest_wait_used(&g, 0, 3, 30));
    assert_int_equal(get_vring_base(fd, 1), 0); /* one that never ran */
    /* And on from there. */
    client_send_state(fd, VHOST_USER_SET_VRING_BASE, 0, 2);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    assert_true(guest_wait_used(&g, 0, 3, 5000));
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void without_protocol_features_a_ring_is_enabled_from_the_start(void **state)
{
    struct client_guest g;
    int fd = client_connect(rig.path);
    guest_open(&g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES, FEATURES_USED);
    guest_send_memory(&g, fd);
    guest_send_ring(&g, fd, 0, 0);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    read_works(&g);
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void without_a_kick_descriptor_the_ring_is_polled(void **state)
{
    struct client_guest g;
    int fd = front_end_with_ring(&g);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, -1);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    assert_true(client_sync(fd));
    for (uint16_t i = 1; i <= 3; i++) {
        guest_submit_read(&g, 0, i);
        assert_true(guest_wait_used(&g, 0, i, 5000));
    }
    assert_int_equal(get_vring_base(fd, 0), 3);
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void reset_device_and_status_0_bring_the_device_back_to_its_start(void **state)
{
    struct client_guest g;
    int fd = front_end_running(&g);
    read_works(&g);
    client_send_u64(fd, VHOST_USER_SET_STATUS, 15);
    assert_int_equal(client_ask_u64(fd, VHOST_USER_GET_STATUS), 15);
    for (int round = 0; round < 2; round++) {
        if (round == 0)
            assert_int_equal(client_acked(fd, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0), 0);
        else
            client_send_u64(fd, VHOST_USER_SET_STATUS, 0);
        assert_int_equal(client_ask_u64(fd, VHOST_USER_GET_STATUS), 0);
        /* QEMU 7.2 asks where the ring was after it has set the status to 0. */
        assert_int_equal(get_vring_base(fd, 0), g.avail_idx);
        guest_submit_read(&g, 0, 5);
        guest_kick(&g);
        assert_false(guest_wait_used(&g, 0, g.avail_idx, 30));
        /* Memory is kept: a front end that adds and removes regions does not send them again. */
        client_send_u64(fd, VHOST_USER_SET_FEATURES,
                        FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
        guest_send_ring(&g, fd, 0, (uint16_t)(g.avail_idx - 1));
        client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
        assert_true(client_sync(fd));
        assert_false(guest_wait_used(&g, 0, g.avail_idx, 30)); /* disabled again */
        client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
        assert_true(guest_wait_used(&g, 0, g.avail_idx, 5000));
        read_works(&g);
    }
    close(fd);
    guest_close(&g);
    server_is_well();
}

/* ---- memory ---- */

static void memory_may_be_replaced_while_the_ring_runs(void **state)
{
    struct client_guest g;
    int other = memfd_create("other", MFD_CLOEXEC);
    assert_int_equal(ftruncate(other, 0x4000), 0);
    int fd = front_end_running(&g);
    read_works(&g);
    guest_send_memory(&g, fd);
    read_works(&g);
    struct vhost_user_single_region region = {
        .region = {.guest_addr = 0x1000, .size = 0x2000, .user_addr = 0x1000, .mmap_offset = 0x1000}};
    assert_int_equal(client_acked(fd, VHOST_USER_ADD_MEM_REG, &region, 40, &other, 1), 0);
    read_works(&g);
    assert_int_equal(client_acked(fd, VHOST_USER_REM_MEM_REG, &region, 40, NULL, 0), 0);
    assert_int_equal(client_acked(fd, VHOST_USER_REM_MEM_REG, &region, 40, &other, 1), 1); /* gone already */
    read_works(&g);
    assert_true(client_ask_u64(fd, VHOST_USER_GET_MAX_MEM_SLOTS) >= 8);
    log_lines();
    /* The region that the ring lies in. */
    region.region = guest_region_of(&g);
    assert_int_equal(client_acked(fd, VHOST_USER_REM_MEM_REG, &region, 40, NULL, 0), 1);
    assert_true(client_ended(fd));
    assert_int_equal(log_lines(), 1);
    close(fd);
    close(other);
    guest_close(&g);
    server_is_well();
}

static void a_memory_file_cut_short_ends_that_connection_only(void **state)
{
    struct client_guest g;
    assert_int_equal(sigbus_guard_install(), 0); /* cmocka has put its own handler there */
    int fd = front_end_running(&g);
    read_works(&g);
    guest_submit_read(&g, 0, 1);
    assert_int_equal(ftruncate(g.fd, 0), 0);
    guest_kick(&g);
    assert_true(client_ended(fd));
    close(fd);
    assert_true(log_lines() >= 1);
    assert_int_equal(ftruncate(g.fd, GUEST_BYTES), 0);
    guest_close(&g);
    server_is_well();
    log_lines();
}

/* ---- inflight region and dirty log ---- */

static void an_inflight_region_is_given_out_and_taken_back(void **state)
{
    struct client_guest g;
    struct client_message reply;
    int fd = front_end_with_ring(&g);
    if (!(rig.offered & 1ull << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) {
        close(fd);
        guest_close(&g);
        return;
    }
    struct vhost_user_inflight ask = {.num_queues = QUEUES, .queue_size = GUEST_RING_SIZE};
    client_send(fd, VHOST_USER_GET_INFLIGHT_FD, &ask, sizeof ask, NULL, 0);
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.header.size, sizeof ask);
    assert_int_equal(reply.nfds, 1);
    assert_int_equal(reply.payload.inflight.num_queues, QUEUES);
    assert_int_equal(reply.payload.inflight.queue_size, GUEST_RING_SIZE);
    assert_true(reply.payload.inflight.mmap_size >= QUEUES * (16 + 16 * GUEST_RING_SIZE));
    struct vhost_user_inflight give = reply.payload.inflight;
    assert_int_equal(client_acked(fd, VHOST_USER_SET_INFLIGHT_FD, &give, sizeof give, reply.fds, 1), 0);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    read_works(&g);
    /* Not under a ring that runs. */
    assert_int_equal(client_acked(fd, VHOST_USER_SET_INFLIGHT_FD, &give, sizeof give, reply.fds, 1), 1);
    assert_true(client_ended(fd));
    close(fd);
    log_lines();

    /* The next connection takes the region up again: nothing is in flight, the ring goes on. */
    fd = front_end();
    client_send_u64(fd, VHOST_USER_SET_FEATURES, FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    assert_int_equal(client_acked(fd, VHOST_USER_SET_INFLIGHT_FD, &give, sizeof give, reply.fds, 1), 0);
    guest_send_memory(&g, fd);
    guest_send_ring(&g, fd, 0, 1);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    read_works(&g);
    close(fd);
    close(reply.fds[0]);
    guest_close(&g);
    server_is_well();
}

static bool log_bit(const uint8_t *log, uint64_t addr)
{
    return log[addr / 4096 / 8] >> (addr / 4096 % 8) & 1;
}

static void writes_to_guest_memory_are_marked_in_the_dirty_log(void **state)
{
    struct client_guest g;
    struct client_message reply;
    uint64_t log_bytes = (GUEST_PHYSICAL + GUEST_BYTES) / 4096 / 8;
    int log_fd = memfd_create("log", MFD_CLOEXEC);
    assert_int_equal(ftruncate(log_fd, (off_t)log_bytes), 0);
    uint8_t *log = mmap(NULL, log_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, log_fd, 0);
    int fd = front_end_running(&g);
    if (!(rig.offered & 1ull << VHOST_USER_PROTOCOL_F_LOG_SHMFD)) {
        close(fd);
        guest_close(&g);
        return;
    }
    read_works(&g);
    struct vhost_user_log set = {.mmap_size = log_bytes, .mmap_offset = 0};
    client_send(fd, VHOST_USER_SET_LOG_BASE, &set, sizeof set, &log_fd, 1);
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.header.request, VHOST_USER_SET_LOG_BASE);
    read_works(&g);
    assert_false(log_bit(log, GUEST_PHYSICAL + GUEST_DATA + 0x1000));
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES) | VIRTIO_BIT(VHOST_F_LOG_ALL));
    struct vhost_user_vring_addr addr = guest_ring_addr(&g, 0);
    addr.flags = VHOST_USER_VRING_F_LOG;
    client_send(fd, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
    assert_true(client_sync(fd));
    memset(log, 0, log_bytes);
    read_works(&g); /* slot 2 */
    assert_int_equal(get_vring_base(fd, 0), 3);
    assert_true(log_bit(log, GUEST_PHYSICAL + GUEST_DATA + 0x2000));
    assert_true(log_bit(log, GUEST_PHYSICAL + 0x4000)); /* the used ring */
    assert_false(log_bit(log, GUEST_PHYSICAL + 0x0));   /* the descriptor table is only read */
    assert_false(log_bit(log, GUEST_PHYSICAL + GUEST_DATA + 0x1000));
    close(fd);
    munmap(log, log_bytes);
    close(log_fd);
    guest_close(&g);
    server_is_well();
}

static void a_log_of_8_bytes_is_survived(void **state)
{
    struct client_guest g;
    struct client_message reply;
    int log_fd = memfd_create("log", MFD_CLOEXEC);
    assert_int_equal(ftruncate(log_fd, 8), 0);
    int fd = front_end_running(&g);
    if (!(rig.offered & 1ull << VHOST_USER_PROTOCOL_F_LOG_SHMFD)) {
        close(fd);
        guest_close(&g);
        return;
    }
    struct vhost_user_log set = {.mmap_size = 8, .mmap_offset = 0};
    client_send(fd, VHOST_USER_SET_LOG_BASE, &set, sizeof set, &log_fd, 1);
    assert_int_equal(client_receive(fd, &reply), 1);
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES) | VIRTIO_BIT(VHOST_F_LOG_ALL));
    read_works(&g); /* the data's page lies beyond the log */
    struct vhost_user_vring_addr addr = guest_ring_addr(&g, 0);
    addr.flags = VHOST_USER_VRING_F_LOG;
    client_send(fd, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
    assert_true(client_ended(fd));
    close(fd);
    close(log_fd);
    guest_close(&g);
    log_lines();
    server_is_well();
}

/* ---- one connection and the next ---- */

static void a_message_may_come_in_pieces(void **state)
{
    int fd = client_connect(rig.path);
    struct vhost_user_header header = {
        .request = VHOST_USER_SET_FEATURES, .flags = VHOST_USER_VERSION, .size = 8};
    uint64_t features = FEATURES_USED;
    char wire[20];
    memcpy(wire, &header, 12);
    memcpy(wire + 12, &features, 8);
    for (unsigned i = 0; i < sizeof wire; i++) {
        assert_int_equal(send(fd, wire + i, 1, MSG_NOSIGNAL), 1);
        if (i % 5 == 0)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    assert_true(client_sync(fd));
    /* And many at once. */
    for (int i = 0; i < 100; i++)
        client_send(fd, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
    assert_true(client_sync(fd));
    close(fd);
    assert_int_equal(log_lines(), 0);
    server_is_well();
}

static void a_front_end_that_leaves_in_the_middle_leaves_nothing(void **state)
{
    unsigned before = open_descriptors();
    for (unsigned cut = 1; cut < 20; cut++) {
        int fd = client_connect(rig.path), event = eventfd(0, EFD_CLOEXEC);
        uint64_t word = 0;
        char wire[20];
        struct vhost_user_header header = {
            .request = VHOST_USER_SET_VRING_KICK, .flags = VHOST_USER_VERSION, .size = 8};
        memcpy(wire, &header, 12);
        memcpy(wire + 12, &word, 8);
        union {
            char space[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } control = {{0}};
        struct iovec iov = {.iov_base = wire, .iov_len = cut};
        struct msghdr msg = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &event, sizeof event);
        assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), (int)cut);
        close(fd);
        close(event);
        server_is_well();
    }
    assert_int_equal(open_descriptors(), before);
    assert_int_equal(log_lines(), 19);
}

static void the_second_front_end_waits_for_the_first_to_leave(void **state)
{
    struct client_guest g;
    int first = front_end_running(&g);
    read_works(&g);
    int second = client_connect(rig.path);
    assert_true(second >= 0);
    client_send(second, VHOST_USER_GET_FEATURES, NULL, 0, NULL, 0);
    struct pollfd p = {.fd = second, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 30), 0);
    read_works(&g);
    close(first);
    struct client_message reply;
    assert_int_equal(client_receive(second, &reply), 1);
    close(second);
    guest_close(&g);
    server_is_well();
}

static void coroutine_fn grow(void)
{
    struct error err = {0};
    assert_int_equal(blk_co_resize(rig.blk, blk_length(rig.blk) + (1 << 20), &err), 0);
}

static void coroutine_fn shrink_back(void)
{
    struct error err = {0};
    assert_int_equal(blk_co_resize(rig.blk, CAPACITY, &err), 0);
}

static void a_change_of_capacity_is_announced_on_the_back_ends_channel(void **state)
{
    struct client_guest g;
    struct client_message change, reply;
    struct virtio_blk_config config;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    int fd = front_end_running(&g);
    assert_int_equal(client_acked(fd, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[0], 1), 0);
    close(pair[0]);
    on_control_loop(grow);
    assert_int_equal(client_receive(pair[1], &change), 1);
    assert_int_equal(change.header.request, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    assert_int_equal(change.header.flags, VHOST_USER_VERSION);
    assert_int_equal(change.header.size, 0);
    get_config(fd, 0, sizeof config, &reply);
    memcpy(&config, reply.payload.config.region, sizeof config);
    assert_int_equal(le64_get(config.capacity), (CAPACITY + (1 << 20)) / 512);
    read_works(&g);
    on_control_loop(shrink_back);
    assert_int_equal(client_receive(pair[1], &change), 1);
    close(pair[1]);
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void a_channel_that_nobody_reads_does_not_hold_up_the_device(void **state)
{
    struct client_guest g;
    int pair[2], small = 1;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    int fd = front_end_running(&g);
    assert_int_equal(client_acked(fd, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[0], 1), 0);
    close(pair[0]);
    for (int i = 0; i < 50; i++) {
        on_control_loop(grow);
        assert_true(client_sync(fd)); /* a turn of the loop in between: each change is one message */
    }
    read_works(&g);
    /* Read at last: however many there are, the last change comes after the one that filled it. */
    struct client_message change;
    assert_int_equal(client_receive(pair[1], &change), 1);
    assert_int_equal(change.header.request, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    on_control_loop(shrink_back);
    close(pair[1]);
    on_control_loop(grow); /* gone: nobody is told */
    on_control_loop(shrink_back);
    read_works(&g);
    close(fd);
    guest_close(&g);
    log_lines();
    server_is_well();
}

static void a_ring_with_nothing_in_it_costs_nothing(void **state)
{
    struct client_guest g;
    struct loop_stats before[2], after[2];
    int fd = front_end_running(&g);
    read_works(&g);
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    for (unsigned i = 0; i < 2; i++)
        loop_stats(iothread_loop(rig.iothreads[i]), &before[i]);
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    for (unsigned i = 0; i < 2; i++) {
        loop_stats(iothread_loop(rig.iothreads[i]), &after[i]);
        assert_int_equal(after[i].turns, before[i].turns);
    }
    read_works(&g);
    close(fd);
    guest_close(&g);
    server_is_well();
}

/* ---- translated addresses (ACCESS_PLATFORM) ---- */

/* Memory lies at guest address 0 and I/O virtual address GUEST_PHYSICAL. */
static int64_t translate(int fd, const struct client_guest *g, uint32_t type, uint64_t iova, uint64_t size,
                         uint8_t permissions)
{
    struct client_message reply;
    struct vhost_user_iotlb iotlb = {.iova = iova,
                                     .size = size,
                                     .user_addr = guest_user(g, 0) + (iova - GUEST_PHYSICAL),
                                     .permissions = permissions,
                                     .type = type};
    client_send(fd, VHOST_USER_IOTLB_MSG, &iotlb, sizeof iotlb, NULL, 0);
    if (client_receive(fd, &reply) != 1 || reply.header.request != VHOST_USER_IOTLB_MSG)
        return -1;
    return (int64_t)reply.payload.u64;
}

/* Answers questions, a page each, until used->idx is IDX; returns how many there were. */
static unsigned answer_until_used(int fd, int channel, struct client_guest *g, uint16_t idx)
{
    unsigned answered = 0;
    for (int i = 0; i < 5000 && !guest_wait_used(g, 0, idx, 0); i++) {
        struct pollfd p = {.fd = channel, .events = POLLIN};
        struct client_message miss;
        if (poll(&p, 1, 1) <= 0)
            continue;
        assert_int_equal(client_receive(channel, &miss), 1);
        assert_int_equal(miss.header.request, VHOST_USER_BACKEND_IOTLB_MSG);
        assert_int_equal(miss.header.size, sizeof(struct vhost_user_iotlb));
        assert_int_equal(miss.payload.iotlb.type, VHOST_USER_IOTLB_MISS);
        assert_true(miss.payload.iotlb.iova >= GUEST_PHYSICAL &&
                    miss.payload.iotlb.iova < GUEST_PHYSICAL + GUEST_BYTES);
        assert_int_equal(translate(fd, g, VHOST_USER_IOTLB_UPDATE, miss.payload.iotlb.iova & ~4095ull, 4096,
                                   miss.payload.iotlb.permissions),
                         0);
        answered++;
    }
    assert_true(guest_wait_used(g, 0, idx, 0));
    return answered;
}

static void translations_are_asked_for_given_and_taken_back(void **state)
{
    struct client_guest g;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    int fd = front_end();
    guest_open(&g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) |
                        VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    assert_int_equal(client_acked(fd, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[0], 1), 0);
    close(pair[0]);
    struct vhost_user_memory memory = {.num_regions = 1, .regions = {guest_region_of(&g)}};
    memory.regions[0].guest_addr = 0;
    client_send(fd, VHOST_USER_SET_MEM_TABLE, &memory, 8 + sizeof memory.regions[0], &g.fd, 1);
    guest_send_ring(&g, fd, 0, 0);
    struct vhost_user_vring_addr addr = guest_ring_addr(&g, 0);
    addr.desc_user_addr += GUEST_PHYSICAL - guest_user(&g, 0);
    addr.avail_user_addr += GUEST_PHYSICAL - guest_user(&g, 0);
    addr.used_user_addr += GUEST_PHYSICAL - guest_user(&g, 0);
    client_send(fd, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    guest_submit_read(&g, 0, 0);
    /* The ring's three parts, and the request's page for reading, then for writing. */
    assert_int_equal(answer_until_used(fd, pair[1], &g, 1), 5);
    assert_int_equal(guest_status(&g, 0), VIRTIO_BLK_S_OK);
    /* Known now: nothing is asked. */
    guest_submit_read(&g, 0, 0);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, pair[1], &g, 2), 0);
    /* One page taken back, then one that may only be read, then all of it. */
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_INVALIDATE, GUEST_PHYSICAL + GUEST_DATA, 4096, 0), 0);
    guest_submit_read(&g, 0, 0);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, pair[1], &g, 3), 2);
    assert_int_equal(
        translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL + GUEST_DATA, 8192, VHOST_USER_IOTLB_READ),
        0);
    guest_submit_read(&g, 0, 1);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, pair[1], &g, 4), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_INVALIDATE, 0, 0, 0), 0); /* all 2^64 */
    guest_submit_read(&g, 0, 2);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, pair[1], &g, 5), 5);
    for (unsigned slot = 0; slot < 3; slot++)
        assert_int_equal(guest_status(&g, slot), VIRTIO_BLK_S_OK);
    /* Nonsense is refused, and the connection goes on. */
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL + GUEST_BYTES, 4096, 3), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL, 0, 3), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, ~0ull - 100, 4096, 3), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL, 4096, 0), 1);
    guest_submit_read(&g, 0, 2);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, pair[1], &g, 6), 0);
    /* Other memory: nothing is known any more. */
    client_send(fd, VHOST_USER_SET_MEM_TABLE, &memory, 8 + sizeof memory.regions[0], &g.fd, 1);
    assert_true(client_sync(fd));
    guest_submit_read(&g, 0, 3);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, pair[1], &g, 7), 5);
    assert_int_equal(get_vring_base(fd, 0), 7);
    log_lines();
    assert_int_equal(translate(fd, &g, 7, GUEST_PHYSICAL, 4096, 3), -1);
    close(fd);
    close(pair[1]);
    guest_close(&g);
    assert_int_equal(log_lines(), 1);
    server_is_well();
}

/* ---- packed rings: what the messages mean for them ---- */

static void the_base_of_a_packed_ring_has_two_positions(void **state)
{
    struct client_guest g;
    int fd = front_end();
    guest_open(&g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | VIRTIO_BIT(VIRTIO_F_RING_PACKED) |
                        VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    guest_send_memory(&g, fd);
    /* Both wrap counters 1, both positions 0: a ring just made (2.8.2). */
    guest_send_ring(&g, fd, 0, 0x80008000);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    struct virtq_packed_desc *ring = (struct virtq_packed_desc *)g.memory;
    uint8_t *data = g.memory + GUEST_DATA;
    for (uint16_t i = 0; i < 3; i++) {
        struct virtio_blk_req_header header = {.type = le32_put(VIRTIO_BLK_T_FLUSH)};
        memcpy(data + 64 * i, &header, sizeof header);
        data[64 * i + 32] = 0xff;
        ring[2 * i + 1] =
            (struct virtq_packed_desc){.addr = le64_put(GUEST_PHYSICAL + GUEST_DATA + 64 * i + 32),
                                       .len = le32_put(1),
                                       .id = le16_put(i),
                                       .flags = le16_put(VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_AVAIL)};
        ring[2 * i].addr = le64_put(GUEST_PHYSICAL + GUEST_DATA + 64 * i);
        ring[2 * i].len = le32_put(16);
        ring[2 * i].id = le16_put(i);
        /* Partner: the device's acquire of the first descriptor's flags (2.8.21.1). */
        le16_store_release(&ring[2 * i].flags, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_AVAIL);
        guest_kick(&g);
        for (int ms = 0; ms < 5000 && __atomic_load_n(&data[64 * i + 32], __ATOMIC_ACQUIRE) == 0xff; ms++)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        assert_int_equal(data[64 * i + 32], VIRTIO_BLK_S_OK);
    }
    assert_int_equal(get_vring_base(fd, 0), 0x80068006);
    /* Positions beyond the ring are nobody's. */
    client_send_state(fd, VHOST_USER_SET_VRING_BASE, 0, 0x80068000 | GUEST_RING_SIZE);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    assert_true(client_ended(fd));
    close(fd);
    guest_close(&g);
    assert_int_equal(log_lines(), 1);
    server_is_well();
}

/* ---- messages that break the table, and what killed others ---- */

enum { FD_MEMORY = 1, FD_EVENT = 2, FD_SOCKET = 3 };

struct bad_message {
    const char *what;
    uint32_t request, size; /* bytes sent and said, unless SAID is set */
    uint32_t said;
    uint32_t flags; /* 0: the right ones */
    unsigned nfds;
    int fd_kind;
    union vhost_user_payload payload;
};

#define REGION(ga, sz, ua, off)                                           \
    {                                                                     \
        .guest_addr = ga, .size = sz, .user_addr = ua, .mmap_offset = off \
    }

/* clang-format off */
static const struct bad_message bad_messages[] = {
    {"version 0", VHOST_USER_GET_FEATURES, 0, .flags = 0x10},
    {"version 2", VHOST_USER_GET_FEATURES, 0, .flags = 2},
    {"a reply out of the blue", VHOST_USER_GET_FEATURES, 0, .flags = 5},
    {"request 0", 0, 0},
    {"request 41", 41, 0},
    {"request 2^32-1", 0xffffffff, 0},
    {"a payload of 2^32-1 bytes", VHOST_USER_SET_FEATURES, 8, .said = 0xffffffff},
    {"a payload of 2^31 bytes", VHOST_USER_SET_MEM_TABLE, 8, .said = 0x80000000},
    {"GET_FEATURES with payload", VHOST_USER_GET_FEATURES, 8},
    {"SET_FEATURES without payload", VHOST_USER_SET_FEATURES, 0},
    {"SET_FEATURES of 4 bytes", VHOST_USER_SET_FEATURES, 4},
    {"SET_FEATURES with a descriptor", VHOST_USER_SET_FEATURES, 8, .nfds = 1, .fd_kind = FD_EVENT},
    {"SET_FEATURES with 8 descriptors", VHOST_USER_SET_FEATURES, 8, .nfds = 8, .fd_kind = FD_EVENT},
    {"9 descriptors", VHOST_USER_SET_OWNER, 0, .nfds = 9, .fd_kind = FD_EVENT},
    {"60 descriptors", VHOST_USER_SET_OWNER, 0, .nfds = 60, .fd_kind = FD_EVENT},
    {"features not offered", VHOST_USER_SET_FEATURES, 8, .payload.u64 = 1ull << 63},
    {"protocol features not offered", VHOST_USER_SET_PROTOCOL_FEATURES, 8, .payload.u64 = 1ull << VHOST_USER_PROTOCOL_F_XEN_MMAP},
    {"SET_VRING_NUM of ring 0xffff", VHOST_USER_SET_VRING_NUM, 8, .payload.state = {0xffff, 64}},
    {"SET_VRING_NUM of ring 4 of 4", VHOST_USER_SET_VRING_NUM, 8, .payload.state = {4, 64}},
    {"SET_VRING_NUM of ring 2^32-1", VHOST_USER_SET_VRING_NUM, 8, .payload.state = {0xffffffff, 64}},
    {"SET_VRING_NUM 0", VHOST_USER_SET_VRING_NUM, 8, .payload.state = {0, 0}},
    {"SET_VRING_NUM 65536", VHOST_USER_SET_VRING_NUM, 8, .payload.state = {0, 65536}},
    {"SET_VRING_NUM beyond --queue-size", VHOST_USER_SET_VRING_NUM, 8, .payload.state = {0, 512}},
    {"SET_VRING_ADDR of ring 0xffff", VHOST_USER_SET_VRING_ADDR, 40, .payload.addr = {.index = 0xffff}},
    {"SET_VRING_ADDR cut short", VHOST_USER_SET_VRING_ADDR, 39},
    {"SET_VRING_ADDR with unknown flags", VHOST_USER_SET_VRING_ADDR, 40, .payload.addr = {.flags = 2}},
    {"SET_VRING_BASE of ring 0xffff", VHOST_USER_SET_VRING_BASE, 8, .payload.state = {0xffff, 0}},
    {"GET_VRING_BASE of ring 0xffff", VHOST_USER_GET_VRING_BASE, 8, .payload.state = {0xffff, 0}},
    {"GET_VRING_BASE of ring 0x80000000", VHOST_USER_GET_VRING_BASE, 8, .payload.state = {0x80000000, 0}},
    {"SET_VRING_ENABLE of ring 4", VHOST_USER_SET_VRING_ENABLE, 8, .payload.state = {4, 1}},
    {"SET_VRING_ENABLE 2", VHOST_USER_SET_VRING_ENABLE, 8, .payload.state = {0, 2}},
    {"SET_VRING_KICK of ring 255", VHOST_USER_SET_VRING_KICK, 8, .nfds = 1, .fd_kind = FD_EVENT, .payload.u64 = 255},
    {"SET_VRING_KICK without its descriptor", VHOST_USER_SET_VRING_KICK, 8, .payload.u64 = 0},
    {"SET_VRING_KICK with one too many", VHOST_USER_SET_VRING_KICK, 8, .nfds = 2, .fd_kind = FD_EVENT, .payload.u64 = 0},
    {"SET_VRING_KICK that says no descriptor and has one", VHOST_USER_SET_VRING_KICK, 8, .nfds = 1, .fd_kind = FD_EVENT, .payload.u64 = 0x100},
    {"SET_VRING_KICK with unknown bits", VHOST_USER_SET_VRING_KICK, 8, .nfds = 1, .fd_kind = FD_EVENT, .payload.u64 = 1ull << 40},
    {"SET_VRING_KICK with a memory file", VHOST_USER_SET_VRING_KICK, 8, .nfds = 1, .fd_kind = FD_MEMORY, .payload.u64 = 0},
    {"SET_VRING_CALL of ring 9", VHOST_USER_SET_VRING_CALL, 8, .nfds = 1, .fd_kind = FD_EVENT, .payload.u64 = 9},
    {"SET_VRING_CALL with a memory file", VHOST_USER_SET_VRING_CALL, 8, .nfds = 1, .fd_kind = FD_MEMORY, .payload.u64 = 0},
    {"SET_VRING_ERR with a socket", VHOST_USER_SET_VRING_ERR, 8, .nfds = 1, .fd_kind = FD_SOCKET, .payload.u64 = 0},
    {"SET_MEM_TABLE of 9 regions", VHOST_USER_SET_MEM_TABLE, 264, .nfds = 8, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 9}},
    {"SET_MEM_TABLE of 2^32-1 regions", VHOST_USER_SET_MEM_TABLE, 264, .nfds = 8, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 0xffffffff}},
    {"SET_MEM_TABLE of 0x08000001 regions", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 0x08000001}},
    {"SET_MEM_TABLE with more regions than bytes", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 2, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 2}},
    {"SET_MEM_TABLE with fewer descriptors than regions", VHOST_USER_SET_MEM_TABLE, 72, .nfds = 1, .fd_kind = FD_MEMORY,
     .payload.memory = {.num_regions = 2, .regions = {REGION(0, 0x1000, 0x1000, 0), REGION(0x2000, 0x1000, 0x3000, 0)}}},
    {"SET_MEM_TABLE without descriptors", VHOST_USER_SET_MEM_TABLE, 40, .payload.memory = {.num_regions = 1, .regions = {REGION(0, 0x1000, 0x1000, 0)}}},
    {"SET_MEM_TABLE with descriptors and no regions", VHOST_USER_SET_MEM_TABLE, 8, .nfds = 3, .fd_kind = FD_MEMORY},
    {"a region of size 0", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 1, .regions = {REGION(0, 0, 0x1000, 0)}}},
    {"a region beyond its file", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 1, .regions = {REGION(0, 0x200000, 0x1000, 0)}}},
    {"a region whose offset lies beyond its file", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 1, .regions = {REGION(0, 0x1000, 0x1000, 0x100000)}}},
    {"a region whose offset wraps", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 1, .regions = {REGION(0, 0x1000, 0x1000, 0xfffffffffffff000)}}},
    {"a region whose guest addresses wrap", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 1, .regions = {REGION(0xfffffffffffff000, 0x2000, 0x1000, 0)}}},
    {"a region whose user addresses wrap", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 1, .regions = {REGION(0, 0x2000, 0xfffffffffffff000, 0)}}},
    {"a region of 2^64-1 bytes", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.memory = {.num_regions = 1, .regions = {REGION(0, ~0ull, 0, 0)}}},
    {"regions that overlap for the guest", VHOST_USER_SET_MEM_TABLE, 72, .nfds = 2, .fd_kind = FD_MEMORY,
     .payload.memory = {.num_regions = 2, .regions = {REGION(0, 0x2000, 0x10000, 0), REGION(0x1000, 0x1000, 0x30000, 0)}}},
    {"regions that overlap for the front end", VHOST_USER_SET_MEM_TABLE, 72, .nfds = 2, .fd_kind = FD_MEMORY,
     .payload.memory = {.num_regions = 2, .regions = {REGION(0, 0x2000, 0x10000, 0), REGION(0x4000, 0x1000, 0x11000, 0)}}},
    {"a region on an eventfd", VHOST_USER_SET_MEM_TABLE, 40, .nfds = 1, .fd_kind = FD_EVENT, .payload.memory = {.num_regions = 1, .regions = {REGION(0, 0x1000, 0x1000, 0)}}},
    {"a region on a socket", VHOST_USER_ADD_MEM_REG, 40, .nfds = 1, .fd_kind = FD_SOCKET, .payload.mem_region = {.region = REGION(0, 0x1000, 0x1000, 0)}},
    {"ADD_MEM_REG cut short", VHOST_USER_ADD_MEM_REG, 16, .nfds = 1, .fd_kind = FD_MEMORY},
    {"ADD_MEM_REG of no bytes", VHOST_USER_ADD_MEM_REG, 0, .nfds = 1, .fd_kind = FD_MEMORY},
    {"ADD_MEM_REG without a descriptor", VHOST_USER_ADD_MEM_REG, 40, .payload.mem_region = {.region = REGION(0, 0x1000, 0x1000, 0)}},
    {"ADD_MEM_REG with two", VHOST_USER_ADD_MEM_REG, 40, .nfds = 2, .fd_kind = FD_MEMORY, .payload.mem_region = {.region = REGION(0, 0x1000, 0x1000, 0)}},
    {"ADD_MEM_REG beyond the file", VHOST_USER_ADD_MEM_REG, 40, .nfds = 1, .fd_kind = FD_MEMORY, .payload.mem_region = {.region = REGION(0, 0x1000, 0x1000, 0xfffff001)}},
    {"REM_MEM_REG cut short", VHOST_USER_REM_MEM_REG, 8},
    {"REM_MEM_REG with 8 descriptors", VHOST_USER_REM_MEM_REG, 40, .nfds = 8, .fd_kind = FD_MEMORY},
    {"SET_LOG_BASE without a descriptor", VHOST_USER_SET_LOG_BASE, 16, .payload.log = {4096, 0}},
    {"SET_LOG_BASE beyond the file", VHOST_USER_SET_LOG_BASE, 16, .nfds = 1, .fd_kind = FD_MEMORY, .payload.log = {4096, 1ull << 62}},
    {"SET_LOG_BASE of size 0", VHOST_USER_SET_LOG_BASE, 16, .nfds = 1, .fd_kind = FD_MEMORY, .payload.log = {0, 0}},
    {"SET_LOG_BASE on an eventfd", VHOST_USER_SET_LOG_BASE, 16, .nfds = 1, .fd_kind = FD_EVENT, .payload.log = {4096, 0}},
    {"GET_INFLIGHT_FD for more queues than there are", VHOST_USER_GET_INFLIGHT_FD, 24, .payload.inflight = {0, 0, 65535, 128}},
    {"GET_INFLIGHT_FD for no queue", VHOST_USER_GET_INFLIGHT_FD, 24, .payload.inflight = {0, 0, 0, 128}},
    {"GET_INFLIGHT_FD for queues of 65535", VHOST_USER_GET_INFLIGHT_FD, 24, .payload.inflight = {0, 0, 1, 65535}},
    {"GET_INFLIGHT_FD with a descriptor", VHOST_USER_GET_INFLIGHT_FD, 24, .nfds = 1, .fd_kind = FD_MEMORY, .payload.inflight = {0, 0, 1, 128}},
    {"SET_INFLIGHT_FD without a descriptor", VHOST_USER_SET_INFLIGHT_FD, 24, .payload.inflight = {1 << 20, 0, 1, 128}},
    {"SET_INFLIGHT_FD for more queues than there are", VHOST_USER_SET_INFLIGHT_FD, 24, .nfds = 1, .fd_kind = FD_MEMORY, .payload.inflight = {1 << 20, 0, 65535, 128}},
    {"SET_INFLIGHT_FD with too few bytes", VHOST_USER_SET_INFLIGHT_FD, 24, .nfds = 1, .fd_kind = FD_MEMORY, .payload.inflight = {64, 0, 4, 128}},
    {"SET_INFLIGHT_FD beyond its file", VHOST_USER_SET_INFLIGHT_FD, 24, .nfds = 1, .fd_kind = FD_MEMORY, .payload.inflight = {1ull << 40, 0, 1, 128}},
    {"SET_INFLIGHT_FD at an offset that wraps", VHOST_USER_SET_INFLIGHT_FD, 24, .nfds = 1, .fd_kind = FD_MEMORY, .payload.inflight = {1 << 20, ~0ull - 63, 1, 128}},
    {"SET_BACKEND_REQ_FD without a descriptor", VHOST_USER_SET_BACKEND_REQ_FD, 0},
    {"SET_BACKEND_REQ_FD with a memory file", VHOST_USER_SET_BACKEND_REQ_FD, 0, .nfds = 1, .fd_kind = FD_MEMORY},
    {"GET_CONFIG of 4 bytes", VHOST_USER_GET_CONFIG, 4},
    {"SET_CONFIG that says more than it has", VHOST_USER_SET_CONFIG, 13, .payload.config = {.offset = 32, .size = 256}},
    {"SET_CONFIG that has more than it says", VHOST_USER_SET_CONFIG, 20, .payload.config = {.offset = 32, .size = 1}},
    {"SET_CONFIG with unknown flags", VHOST_USER_SET_CONFIG, 13, .payload.config = {.offset = 32, .size = 1, .flags = 4}},
    {"SET_STATUS 256", VHOST_USER_SET_STATUS, 8, .payload.u64 = 256},
    {"GET_STATUS with payload", VHOST_USER_GET_STATUS, 8},
    {"POSTCOPY_ADVISE, which was not offered", 28, 0},
    {"IOTLB_MSG without ACCESS_PLATFORM", VHOST_USER_IOTLB_MSG, 32, .payload.iotlb = {.type = 2}},
    {"IOTLB_MSG cut short", VHOST_USER_IOTLB_MSG, 24},
    {"VRING_KICK in band, which was not offered", VHOST_USER_VRING_KICK, 8},
};
/* clang-format on */

static int make_fd(int kind)
{
    int pair[2], fd;
    switch (kind) {
    case FD_MEMORY:
        fd = memfd_create("region", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fd, GUEST_BYTES), 0);
        return fd;
    case FD_SOCKET:
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        close(pair[1]);
        return pair[0];
    default:
        return eventfd(0, EFD_CLOEXEC);
    }
}

static void send_bad(int fd, const struct bad_message *bad, bool need_reply)
{
    int fds[64], one = bad->nfds ? make_fd(bad->fd_kind) : -1;
    for (unsigned i = 0; i < bad->nfds; i++)
        fds[i] = one;
    uint32_t flags = bad->flags ? bad->flags & 7 : VHOST_USER_VERSION;
    if (need_reply)
        flags |= VHOST_USER_NEED_REPLY_MASK;
    client_send_raw(fd, bad->request, flags, bad->said ? bad->said : bad->size, &bad->payload, bad->size, fds,
                    bad->nfds);
    if (one >= 0)
        close(one);
}

static void each_bad_message_ends_its_connection_with_one_sentence_and_leaks_nothing(void **state)
{
    struct client_guest g;
    log_lines();
    server_is_well();
    unsigned before = open_descriptors();
    for (unsigned i = 0; i < sizeof bad_messages / sizeof bad_messages[0]; i++) {
        const struct bad_message *bad = &bad_messages[i];
        for (int running = 0; running < 2; running++) {
            int fd = running ? front_end_running(&g) : front_end();
            send_bad(fd, bad, false);
            if (!client_ended(fd))
                fail_msg("%s: the connection goes on", bad->what);
            close(fd);
            if (running)
                guest_close(&g);
            server_is_well();
            unsigned lines = log_lines();
            if (lines != 1)
                fail_msg("%s: %u lines in the log", bad->what, lines);
            unsigned now = open_descriptors();
            if (now != before)
                fail_msg("%s: %u descriptors, %u before", bad->what, now, before);
        }
    }
}

static void each_bad_message_that_wants_an_answer_gets_one_that_says_no(void **state)
{
    for (unsigned i = 0; i < sizeof bad_messages / sizeof bad_messages[0]; i++) {
        const struct bad_message *bad = &bad_messages[i];
        struct client_message reply;
        if (bad->said || bad->nfds > VHOST_USER_MAX_REGIONS || bad->flags)
            continue; /* broken before it is known what it asks */
        int fd = front_end();
        send_bad(fd, bad, true);
        assert_int_equal(client_receive(fd, &reply), 1);
        if (reply.header.request != bad->request || reply.header.size != 8 || reply.payload.u64 == 0)
            fail_msg("%s: no word of refusal", bad->what);
        close(fd);
        server_is_well();
    }
    log_lines();
}

static void messages_need_their_protocol_feature(void **state)
{
    static const struct bad_message messages[] = {
        {"GET_CONFIG", VHOST_USER_GET_CONFIG, 12},
        {"GET_INFLIGHT_FD", VHOST_USER_GET_INFLIGHT_FD, 24, .payload.inflight = {0, 0, 1, 64}},
        {"GET_MAX_MEM_SLOTS", VHOST_USER_GET_MAX_MEM_SLOTS, 0},
        {"GET_STATUS", VHOST_USER_GET_STATUS, 0},
        {"RESET_DEVICE", VHOST_USER_RESET_DEVICE, 0},
        {"SET_LOG_BASE", VHOST_USER_SET_LOG_BASE, 16, .nfds = 1, .fd_kind = FD_MEMORY,
         .payload.log = {4096, 0}},
    };
    for (unsigned i = 0; i < sizeof messages / sizeof messages[0]; i++) {
        int fd = client_connect(rig.path);
        send_bad(fd, &messages[i], false);
        assert_true(client_ended(fd));
        close(fd);
        server_is_well();
        assert_int_equal(log_lines(), 1);
    }
}

/* Rings that do not lie in memory: the connection ends when the ring would have to be served. */
static void rings_outside_of_memory_end_the_connection(void **state)
{
    struct client_guest g;
    guest_open(&g);
    const uint64_t end = guest_user(&g, GUEST_BYTES), base = guest_user(&g, 0);
    const uint64_t places[] = {0,        1,     base - 16,  end - 16,  end - 1, end, base + 0x2001,
                               base + 8, ~0ull, ~0ull - 15, 1ull << 63};
    for (unsigned part = 0; part < 3; part++) {
        for (unsigned i = 0; i < sizeof places / sizeof places[0]; i++) {
            /* An available ring may lie at any even address. */
            if (part == 1 && (places[i] == base + 8))
                continue;
            if (part == 2 && places[i] == base + 8)
                continue;
            int fd = front_end();
            client_send_u64(fd, VHOST_USER_SET_FEATURES,
                            FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
            guest_send_memory(&g, fd);
            guest_send_ring(&g, fd, 0, 0);
            struct vhost_user_vring_addr addr = guest_ring_addr(&g, 0);
            if (part == 0)
                addr.desc_user_addr = places[i];
            else if (part == 1)
                addr.avail_user_addr = places[i];
            else
                addr.used_user_addr = places[i];
            client_send(fd, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
            client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
            assert_true(client_sync(fd));
            client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
            if (!client_ended(fd))
                fail_msg("part %u at place %u was taken", part, i);
            close(fd);
            server_is_well();
            assert_int_equal(log_lines(), 1);
        }
    }
    guest_close(&g);
}

static void a_ring_is_not_resized_or_moved_on_while_it_runs(void **state)
{
    static const uint32_t requests[] = {VHOST_USER_SET_VRING_NUM, VHOST_USER_SET_VRING_BASE};
    for (unsigned i = 0; i < 2; i++) {
        struct client_guest g;
        int fd = front_end_running(&g);
        read_works(&g);
        client_send_state(fd, requests[i], 0, 128);
        assert_true(client_ended(fd));
        close(fd);
        guest_close(&g);
        server_is_well();
        assert_int_equal(log_lines(), 1);
    }
}

static void a_broken_ring_needs_a_reset_and_the_connection_goes_on(void **state)
{
    struct client_guest g;
    int fd = front_end_running(&g);
    int broken = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    client_send_event(fd, VHOST_USER_SET_VRING_ERR, 0, broken);
    read_works(&g);
    /* An index that names no descriptor (2.7.6). */
    struct virtq_avail *avail = guest_avail(&g, 0);
    le16_store(&avail->ring[g.avail_idx % GUEST_RING_SIZE], 0x7fff);
    le16_store_release(&avail->idx, (uint16_t)(g.avail_idx + 1));
    guest_kick(&g);
    struct pollfd p = {.fd = broken, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 5000), 1);
    assert_true(client_ask_u64(fd, VHOST_USER_GET_STATUS) & VIRTIO_STATUS_DEVICE_NEEDS_RESET);
    assert_int_equal(log_lines(), 1);
    /* Reset, and all is well again. */
    client_send_u64(fd, VHOST_USER_SET_STATUS, 0);
    assert_int_equal(client_ask_u64(fd, VHOST_USER_GET_STATUS), 0);
    memset(g.memory, 0, GUEST_RING_STEP);
    g.avail_idx = 0;
    client_send_u64(fd, VHOST_USER_SET_FEATURES, FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    guest_send_ring(&g, fd, 0, 0);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    read_works(&g);
    close(fd);
    close(broken);
    guest_close(&g);
    server_is_well();
}

static void a_garbage_inflight_region_is_survived(void **state)
{
    uint32_t seed = 1;
    for (int round = 0; round < 40; round++) {
        struct client_guest g;
        int fd = front_end_with_ring(&g);
        int region = memfd_create("inflight", MFD_CLOEXEC);
        struct vhost_user_inflight give = {
            .mmap_size = 1 << 16, .num_queues = QUEUES, .queue_size = GUEST_RING_SIZE};
        assert_int_equal(ftruncate(region, 1 << 16), 0);
        uint8_t *bytes = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, region, 0);
        for (unsigned i = 0; i < 1 << 16; i++) {
            seed = seed * 1103515245 + 12345;
            bytes[i] = round % 4 == 0 ? 0xff : (uint8_t)(seed >> 16);
        }
        if (round % 2) { /* with a header that gets further */
            struct vhost_user_inflight_split *split = (struct vhost_user_inflight_split *)bytes;
            split->features = 0;
            split->version = 1;
            split->desc_num = GUEST_RING_SIZE;
        }
        client_send(fd, VHOST_USER_SET_INFLIGHT_FD, &give, sizeof give, &region, 1);
        client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
        client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
        guest_submit_read(&g, 0, 1);
        guest_kick(&g);
        client_sync(fd);
        guest_wait_used(&g, 0, 1, 5);
        close(fd);
        munmap(bytes, 1 << 16);
        close(region);
        guest_close(&g);
        server_is_well();
    }
    log_lines();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(features_are_the_devices_and_the_servers_own),
        cmocka_unit_test(get_config_is_answered_with_the_size_asked_for),
        cmocka_unit_test(set_config_writes_writeback_and_nothing_else),
        cmocka_unit_test(reply_ack_answers_only_when_asked_and_negotiated),
        cmocka_unit_test(a_ring_is_served_only_started_and_enabled),
        cmocka_unit_test(a_ring_is_scanned_when_it_becomes_enabled_without_a_kick),
        cmocka_unit_test(features_kick_call_and_err_do_not_disable_a_ring),
        cmocka_unit_test(get_vring_base_stops_the_ring_and_tells_where_it_was),
        cmocka_unit_test(without_protocol_features_a_ring_is_enabled_from_the_start),
        cmocka_unit_test(without_a_kick_descriptor_the_ring_is_polled),
        cmocka_unit_test(reset_device_and_status_0_bring_the_device_back_to_its_start),
        cmocka_unit_test(memory_may_be_replaced_while_the_ring_runs),
        cmocka_unit_test(a_memory_file_cut_short_ends_that_connection_only),
        cmocka_unit_test(an_inflight_region_is_given_out_and_taken_back),
        cmocka_unit_test(writes_to_guest_memory_are_marked_in_the_dirty_log),
        cmocka_unit_test(a_log_of_8_bytes_is_survived),
        cmocka_unit_test(a_message_may_come_in_pieces),
        cmocka_unit_test(a_front_end_that_leaves_in_the_middle_leaves_nothing),
        cmocka_unit_test(the_second_front_end_waits_for_the_first_to_leave),
        cmocka_unit_test(a_change_of_capacity_is_announced_on_the_back_ends_channel),
        cmocka_unit_test(a_channel_that_nobody_reads_does_not_hold_up_the_device),
        cmocka_unit_test(a_ring_with_nothing_in_it_costs_nothing),
        cmocka_unit_test(translations_are_asked_for_given_and_taken_back),
        cmocka_unit_test(the_base_of_a_packed_ring_has_two_positions),
        cmocka_unit_test(each_bad_message_ends_its_connection_with_one_sentence_and_leaks_nothing),
        cmocka_unit_test(each_bad_message_that_wants_an_answer_gets_one_that_says_no),
        cmocka_unit_test(messages_need_their_protocol_feature),
        cmocka_unit_test(rings_outside_of_memory_end_the_connection),
        cmocka_unit_test(a_ring_is_not_resized_or_moved_on_while_it_runs),
        cmocka_unit_test(a_broken_ring_needs_a_reset_and_the_connection_goes_on),
        cmocka_unit_test(a_garbage_inflight_region_is_survived),
    };
    return cmocka_run_group_tests_name("vhost-user server", tests, rig_setup, rig_teardown);
}
