/*
 * A front end that means harm: 500 seeded cases of messages, rings and files made to break a back end, each
 * on a connection of its own, from every state that a connection can be in. After each the server answers the
 * next front end and has let go of every descriptor. A failing seed is a whole report: run with
 * VHOST_HOSTILE_SEED=N to see that one alone.
 */
#include "tests/unit/vhost_user_rig.h"

static uint64_t random_state;

static uint64_t rnd(void)
{
    random_state += 0x9e3779b97f4a7c15;
    uint64_t z = random_state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static unsigned below(unsigned n)
{
    return (unsigned)(rnd() % n);
}

/* Numbers at which checks go wrong. */
static uint64_t number(const struct client_guest *g)
{
    static const uint64_t edges[] = {
        0,      1,          2,          3,           4,          7,          8,          15,
        16,     63,         64,         65,          127,        255,        256,        257,
        0x7fff, 0x8000,     0xffff,     0x10000,     0x7fffffff, 1 << 20,    4095,       4096,
        4097,   0x80000000, 0xffffffff, 0x100000000, ~0ull,      ~0ull - 15, 1ull << 63, ~0ull - 4095};
    switch (below(6)) {
    case 0:
        return rnd();
    case 1:
        return guest_user(g, below(GUEST_BYTES + 64) & ~15u);
    case 2:
        return GUEST_PHYSICAL + (below(GUEST_BYTES + 64) & ~7u);
    case 3:
        return below(70);
    default:
        return edges[below(sizeof edges / sizeof edges[0])];
    }
}

static const uint32_t requests[] = {
    VHOST_USER_GET_FEATURES,
    VHOST_USER_SET_FEATURES,
    VHOST_USER_SET_OWNER,
    VHOST_USER_RESET_OWNER,
    VHOST_USER_SET_MEM_TABLE,
    VHOST_USER_SET_LOG_BASE,
    VHOST_USER_SET_LOG_FD,
    VHOST_USER_SET_VRING_NUM,
    VHOST_USER_SET_VRING_ADDR,
    VHOST_USER_SET_VRING_BASE,
    VHOST_USER_GET_VRING_BASE,
    VHOST_USER_SET_VRING_KICK,
    VHOST_USER_SET_VRING_CALL,
    VHOST_USER_SET_VRING_ERR,
    VHOST_USER_GET_PROTOCOL_FEATURES,
    VHOST_USER_SET_PROTOCOL_FEATURES,
    VHOST_USER_GET_QUEUE_NUM,
    VHOST_USER_SET_VRING_ENABLE,
    VHOST_USER_SET_BACKEND_REQ_FD,
    VHOST_USER_GET_CONFIG,
    VHOST_USER_SET_CONFIG,
    VHOST_USER_GET_INFLIGHT_FD,
    VHOST_USER_SET_INFLIGHT_FD,
    VHOST_USER_RESET_DEVICE,
    VHOST_USER_GET_MAX_MEM_SLOTS,
    VHOST_USER_ADD_MEM_REG,
    VHOST_USER_IOTLB_MSG,
    VHOST_USER_REM_MEM_REG,
    VHOST_USER_SET_STATUS,
    VHOST_USER_GET_STATUS,
};

static uint32_t usual_size(uint32_t request)
{
    switch (request) {
    case VHOST_USER_SET_MEM_TABLE:
        return 8 + 32 * below(9);
    case VHOST_USER_SET_LOG_BASE:
        return 16;
    case VHOST_USER_SET_VRING_ADDR:
    case VHOST_USER_ADD_MEM_REG:
    case VHOST_USER_REM_MEM_REG:
        return 40;
    case VHOST_USER_GET_CONFIG:
    case VHOST_USER_SET_CONFIG:
        return 12 + below(257);
    case VHOST_USER_IOTLB_MSG:
        return 32;
    case VHOST_USER_GET_INFLIGHT_FD:
    case VHOST_USER_SET_INFLIGHT_FD:
        return 24;
    case VHOST_USER_SET_FEATURES:
    case VHOST_USER_SET_PROTOCOL_FEATURES:
    case VHOST_USER_SET_STATUS:
    case VHOST_USER_SET_VRING_NUM:
    case VHOST_USER_SET_VRING_BASE:
    case VHOST_USER_GET_VRING_BASE:
    case VHOST_USER_SET_VRING_ENABLE:
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        return 8;
    default:
        return 0;
    }
}

static unsigned usual_fds(uint32_t request, const union vhost_user_payload *payload)
{
    switch (request) {
    case VHOST_USER_SET_MEM_TABLE:
        return payload->memory.num_regions < 9 ? payload->memory.num_regions : 8;
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        return payload->u64 & VHOST_USER_VRING_NOFD_MASK ? 0 : 1;
    case VHOST_USER_SET_LOG_BASE:
    case VHOST_USER_SET_LOG_FD:
    case VHOST_USER_SET_BACKEND_REQ_FD:
    case VHOST_USER_SET_INFLIGHT_FD:
    case VHOST_USER_ADD_MEM_REG:
        return 1;
    default:
        return 0;
    }
}

/* Something like what REQUEST brings, with one thing or another wrong about it. */
static void fill_payload(uint32_t request, union vhost_user_payload *p, struct client_guest *g)
{
    uint64_t *words = (uint64_t *)p;
    for (unsigned i = 0; i < sizeof *p / 8; i++)
        words[i] = number(g);
    if (below(4) == 0)
        return;
    switch (request) {
    case VHOST_USER_SET_MEM_TABLE:
        p->memory.num_regions = below(3) ? below(10) : (uint32_t)number(g);
        for (unsigned i = 0; i < VHOST_USER_MAX_REGIONS; i++) {
            struct vhost_user_memory_region *r = &p->memory.regions[i];
            *r = guest_region_of(g);
            r->guest_addr += i * (uint64_t)GUEST_BYTES;
            r->user_addr += i * (uint64_t)GUEST_BYTES;
            if (below(4) == 0)
                ((uint64_t *)r)[below(4)] = number(g);
        }
        break;
    case VHOST_USER_ADD_MEM_REG:
    case VHOST_USER_REM_MEM_REG:
        p->mem_region.region = guest_region_of(g);
        if (below(3))
            ((uint64_t *)&p->mem_region.region)[below(4)] = number(g);
        break;
    case VHOST_USER_SET_VRING_ADDR:
        p->addr = guest_ring_addr(g, below(QUEUES));
        if (below(3))
            ((uint64_t *)&p->addr)[1 + below(4)] = number(g);
        p->addr.flags = below(4) ? below(2) : (uint32_t)rnd();
        break;
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        p->u64 = below(QUEUES) | (below(3) ? 0 : VHOST_USER_VRING_NOFD_MASK);
        break;
    case VHOST_USER_SET_INFLIGHT_FD:
    case VHOST_USER_GET_INFLIGHT_FD:
        p->inflight = (struct vhost_user_inflight){
            .mmap_size = below(3) ? GUEST_BYTES : number(g), .num_queues = QUEUES, .queue_size = 64};
        break;
    case VHOST_USER_IOTLB_MSG:
        p->iotlb = (struct vhost_user_iotlb){.iova = number(g),
                                             .size = below(2) ? 4096u << below(4) : number(g),
                                             .user_addr = guest_user(g, 4096 * below(256)),
                                             .permissions = (uint8_t)below(4),
                                             .type = (uint8_t)(below(8) ? 2 + below(2) : below(256))};
        break;
    case VHOST_USER_SET_LOG_BASE:
        p->log = (struct vhost_user_log){.mmap_size = below(2) ? 8 : 1 << 15, .mmap_offset = 0};
        break;
    case VHOST_USER_SET_FEATURES:
        p->u64 = FEATURES_USED;
        for (unsigned i = 0; i < 3; i++)
            p->u64 |= below(2) ? 1ull << below(45) : 0;
        break;
    case VHOST_USER_SET_PROTOCOL_FEATURES:
        p->u64 = PROTOCOL_USED & rig.offered & ~(1ull << below(18));
        break;
    case VHOST_USER_SET_CONFIG:
    case VHOST_USER_GET_CONFIG:
        p->config.offset = below(64);
        p->config.size = below(257);
        p->config.flags = below(2);
        break;
    default:
        p->state.index = below(QUEUES + 1);
        p->state.num = below(2) ? below(3) : (uint32_t)number(g);
    }
}

static int random_fd(struct client_guest *g)
{
    int pair[2];
    switch (below(7)) {
    case 0:
        return eventfd(0, EFD_CLOEXEC);
    case 1:
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        close(pair[1]);
        return pair[0];
    case 2:
        assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
        close(pair[1]);
        return pair[0];
    case 3:
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    case 4:
        return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    default:
        return dup(below(3) ? g->fd : g->kick);
    }
}

static void send_random(int fd, struct client_guest *g)
{
    uint32_t request = below(12) ? requests[below(sizeof requests / sizeof requests[0])] : below(50);
    union vhost_user_payload payload;
    fill_payload(request, &payload, g);
    uint32_t size = below(15) ? usual_size(request) : (uint32_t)below(sizeof payload + 1);
    uint32_t said = below(40) ? size : (uint32_t)number(g);
    uint32_t flags = below(30) ? VHOST_USER_VERSION : (uint32_t)rnd() & 15;
    unsigned nfds = below(10) ? usual_fds(request, &payload) : below(20);
    int fds[20];
    if (below(4) == 0)
        flags |= VHOST_USER_NEED_REPLY_MASK;
    for (unsigned i = 0; i < nfds; i++) {
        bool memory = request == VHOST_USER_SET_MEM_TABLE || request == VHOST_USER_ADD_MEM_REG ||
                      request == VHOST_USER_SET_INFLIGHT_FD || request == VHOST_USER_SET_LOG_BASE;
        fds[i] = below(8) == 0 ? random_fd(g) : dup(memory ? g->fd : g->kick);
    }
    client_send_raw(fd, request, flags, said, &payload, size, fds, nfds);
    for (unsigned i = 0; i < nfds; i++)
        close(fds[i]);
}

/* Garbage where the rings are, or something that looks like a chain. */
static void spoil_ring(struct client_guest *g)
{
    unsigned queue = below(QUEUES);
    struct virtq_desc *desc = (struct virtq_desc *)(g->memory + queue * GUEST_RING_STEP);
    struct virtq_avail *avail = guest_avail(g, queue);
    if (below(4) == 0) {
        uint32_t at = queue * GUEST_RING_STEP, n = 16 + below(0x6000);
        for (uint32_t i = 0; i < n; i++)
            g->memory[at + i] = (uint8_t)rnd();
        return;
    }
    for (unsigned i = 0; i < 8; i++) {
        desc[below(GUEST_RING_SIZE)] =
            (struct virtq_desc){.addr = le64_put(number(g)),
                                .len = le32_put((uint32_t)number(g)),
                                .flags = le16_put((uint16_t)below(8)),
                                .next = le16_put((uint16_t)below(GUEST_RING_SIZE + 2))};
    }
    le16_store(&avail->ring[below(GUEST_RING_SIZE)], (uint16_t)number(g));
    le16_store_release(&avail->idx, (uint16_t)(le16_load(&avail->idx) + below(below(3) ? 4 : 65536)));
    guest_kick(g);
}

/* Takes what the server says, without waiting. False: the connection has ended. */
static bool swallow(int fd)
{
    char junk[4096];
    union {
        char space[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } control;
    for (;;) {
        struct iovec iov = {.iov_base = junk, .iov_len = sizeof junk};
        struct msghdr msg = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n <= 0)
            return n < 0 && errno == EAGAIN;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
            for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
                int got;
                memcpy(&got, (char *)c + at, sizeof got);
                close(got);
            }
        }
    }
}

static void hostile_case(uint64_t seed)
{
    struct client_guest g;
    int fd;
    random_state = seed;
    unsigned stage = below(4);
    if (stage == 0) {
        fd = client_connect(rig.path);
        guest_open(&g);
    } else if (stage == 1) {
        fd = front_end_with_ring(&g);
    } else {
        fd = front_end_running(&g);
        if (below(2))
            read_works(&g);
        if (below(4) == 0) {
            /* The same with translated addresses. */
            client_send_u64(fd, VHOST_USER_SET_STATUS, 0);
            client_send_u64(fd, VHOST_USER_SET_FEATURES,
                            FEATURES_USED | VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) |
                                VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
            guest_send_ring(&g, fd, 0, g.avail_idx);
            client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
            client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
        }
    }
    unsigned steps = 1 + below(25);
    for (unsigned i = 0; i < steps && swallow(fd); i++) {
        switch (below(12)) {
        case 0:
        case 1:
            spoil_ring(&g);
            break;
        case 2:
            if (below(6) == 0) {
                /* Nobody here touches the memory from now on. */
                assert_int_equal(ftruncate(g.fd, below(2) ? 0 : 4096 * below(200)), 0);
                guest_kick(&g);
                i = steps;
            }
            break;
        case 3:
            if (below(8) == 0) {
                uint64_t junk[64];
                for (unsigned j = 0; j < 64; j++)
                    junk[j] = rnd();
                send(fd, junk, 1 + below(sizeof junk), MSG_NOSIGNAL | MSG_DONTWAIT);
            }
            break;
        default:
            send_random(fd, &g);
        }
    }
    if (below(3))
        client_send(fd, VHOST_USER_GET_FEATURES, NULL, 0, NULL, 0);
    close(fd);
    guest_close(&g);
}

static void of_500_hostile_front_ends_none_hurts_the_next(void **state)
{
    const char *only = getenv("VHOST_HOSTILE_SEED"), *size = getenv("RINGSIDE_SIZE");
    uint64_t first = only ? strtoull(only, NULL, 0) : 1;
    uint64_t last = only ? first : size && strcmp(size, "long") == 0 ? 100000 : 500;
    assert_int_equal(sigbus_guard_install(), 0); /* cmocka has put its own handler there */
    server_is_well();
    unsigned before = open_descriptors();
    for (uint64_t seed = first; seed <= last; seed++) {
        printf("# seed %llu\n", (unsigned long long)seed);
        fflush(stdout);
        hostile_case(seed);
        server_is_well();
        unsigned now = open_descriptors();
        if (now != before)
            fail_msg("seed %llu: %u descriptors, %u before", (unsigned long long)seed, now, before);
        log_lines();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_500_hostile_front_ends_none_hurts_the_next),
    };
    return cmocka_run_group_tests_name("hostile front ends", tests, rig_setup, rig_teardown);
}
