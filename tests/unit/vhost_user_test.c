/*
 * The vhost-user server against raw messages over its socket: negotiation, the state machine of rings,
 * memory, what one front end leaves for the next. A null image lies behind it.
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
    assert_true(guest_wait_used(&g, 0, 1, CLIENT_WAIT_MS));
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
    assert_true(guest_wait_used(&g, 0, 2, CLIENT_WAIT_MS));
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
    assert_true(guest_wait_used(&g, 0, 3, CLIENT_WAIT_MS));
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
        assert_true(guest_wait_used(&g, 0, i, CLIENT_WAIT_MS));
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
        assert_true(guest_wait_used(&g, 0, g.avail_idx, CLIENT_WAIT_MS));
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

/* 34: a queue that is reset and set up again (2.6.1) begins at its start, whatever the inflight region says
 * of the ring before: the front end that was told where that one stood has set another position. */
static void checklist_34_a_ring_set_up_anew_does_not_go_on_in_the_inflight_region(void **state)
{
    for (unsigned round = 0; round < 4; round++) {
        bool packed = round & 1, whole_device = round & 2;
        uint64_t features = FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES) |
                            (packed ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : VIRTIO_BIT(VIRTIO_F_RING_RESET));
        struct vhost_user_inflight give = {
            .num_queues = 1, .queue_size = GUEST_RING_SIZE, .mmap_size = 1 << 16};
        struct client_guest g;
        int fd = front_end(), region = memfd_create("inflight", MFD_CLOEXEC);
        assert_int_equal(ftruncate(region, 1 << 16), 0);
        guest_open(&g);
        client_send_u64(fd, VHOST_USER_SET_FEATURES, features);
        guest_send_memory(&g, fd);
        assert_int_equal(client_acked(fd, VHOST_USER_SET_INFLIGHT_FD, &give, sizeof give, &region, 1), 0);
        for (unsigned life = 0; life < 3; life++) {
            memset(g.memory, 0, GUEST_BYTES);
            g.avail_idx = g.packed_next = 0;
            g.packed_wrap = true;
            guest_send_ring(&g, fd, 0, packed ? 0x80008000u : 0);
            client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
            client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
            for (unsigned i = 0; i < 5; i++) {
                if (packed)
                    guest_submit_packed(&g, 0, i, VIRTIO_BLK_T_IN);
                else
                    guest_submit_read(&g, 0, i);
                guest_kick(&g);
                for (int ms = 0; ms < CLIENT_WAIT_MS && guest_status(&g, i) == 0xff; ms++)
                    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
                assert_int_equal(guest_status(&g, i), VIRTIO_BLK_S_OK);
            }
            if (whole_device) {
                client_send(fd, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0);
                client_send_u64(fd, VHOST_USER_SET_FEATURES, features);
            }
            assert_int_equal(get_vring_base(fd, 0), packed ? 0x800f800fu : 5);
        }
        close(fd);
        close(region);
        guest_close(&g);
        server_is_well();
    }
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
    /* Threads that have not come to rest yet, on a machine that is busy, have as many tries as they need. */
    bool at_rest = false;
    for (unsigned tries = 0; tries < 200 && !at_rest; tries++) {
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        for (unsigned i = 0; i < 2; i++)
            loop_stats(iothread_loop(rig.iothreads[i]), &before[i]);
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
        at_rest = true;
        for (unsigned i = 0; i < 2; i++) {
            loop_stats(iothread_loop(rig.iothreads[i]), &after[i]);
            at_rest &= after[i].turns == before[i].turns;
        }
    }
    assert_true(at_rest);
    read_works(&g);
    close(fd);
    guest_close(&g);
    server_is_well();
}

/* ---- packed rings: what the messages mean for them ---- */

static void the_base_of_a_packed_ring_has_two_positions(void **state)
{
    struct client_guest g;
    int fd = front_end();
    (void)log_lines(); /* what the last front end left behind when it went */
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
        for (int ms = 0; ms < CLIENT_WAIT_MS && __atomic_load_n(&data[64 * i + 32], __ATOMIC_ACQUIRE) == 0xff;
             ms++)
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
        cmocka_unit_test(checklist_34_a_ring_set_up_anew_does_not_go_on_in_the_inflight_region),
        cmocka_unit_test(writes_to_guest_memory_are_marked_in_the_dirty_log),
        cmocka_unit_test(a_log_of_8_bytes_is_survived),
        cmocka_unit_test(a_message_may_come_in_pieces),
        cmocka_unit_test(a_front_end_that_leaves_in_the_middle_leaves_nothing),
        cmocka_unit_test(the_second_front_end_waits_for_the_first_to_leave),
        cmocka_unit_test(a_change_of_capacity_is_announced_on_the_back_ends_channel),
        cmocka_unit_test(a_channel_that_nobody_reads_does_not_hold_up_the_device),
        cmocka_unit_test(a_ring_with_nothing_in_it_costs_nothing),
        cmocka_unit_test(the_base_of_a_packed_ring_has_two_positions),
    };
    return cmocka_run_group_tests_name("vhost-user server", tests, rig_setup, rig_teardown);
}
