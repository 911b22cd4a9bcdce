/*
 * The vhost-user server against what is wrong: every message that breaks the table, and the cases that other
 * back ends died of.
 */
#include "tests/unit/vhost_user_rig.h"

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
    assert_int_equal(poll(&p, 1, CLIENT_WAIT_MS), 1);
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
        cmocka_unit_test(each_bad_message_ends_its_connection_with_one_sentence_and_leaks_nothing),
        cmocka_unit_test(each_bad_message_that_wants_an_answer_gets_one_that_says_no),
        cmocka_unit_test(messages_need_their_protocol_feature),
        cmocka_unit_test(rings_outside_of_memory_end_the_connection),
        cmocka_unit_test(a_ring_is_not_resized_or_moved_on_while_it_runs),
        cmocka_unit_test(a_broken_ring_needs_a_reset_and_the_connection_goes_on),
        cmocka_unit_test(a_garbage_inflight_region_is_survived),
    };
    return cmocka_run_group_tests_name("vhost-user server, refusals", tests, rig_setup, rig_teardown);
}
