/*
 * What a front end that means harm sends: messages with one thing or another wrong about them, rings that are
 * nearly right. Where chance comes from is the includer's: a seed in the unit test, the input in the fuzzer.
 *
 * Before this header is included: QUEUES (of the device), HOSTILE_FEATURES and HOSTILE_PROTOCOL (what is
 * mostly negotiated), and
 *     static uint64_t hostile_draw(unsigned bytes);     a number of so many bytes
 */
#ifndef RINGSIDE_TESTS_VHOST_USER_HOSTILE_H
#define RINGSIDE_TESTS_VHOST_USER_HOSTILE_H

#include "tests/unit/vhost_user_client.h"

/* From 0 to N-1 */
static inline unsigned below(unsigned n)
{
    return (unsigned)(hostile_draw(n <= 256 ? 1 : n <= 65536 ? 2 : 4) % n);
}

/* Numbers at which checks go wrong. */
static inline uint64_t number(const struct client_guest *g)
{
    static const uint64_t edges[] = {
        0,      1,          2,          3,           4,          7,          8,          15,
        16,     63,         64,         65,          127,        255,        256,        257,
        0x7fff, 0x8000,     0xffff,     0x10000,     0x7fffffff, 1 << 20,    4095,       4096,
        4097,   0x80000000, 0xffffffff, 0x100000000, ~0ull,      ~0ull - 15, 1ull << 63, ~0ull - 4095};
    switch (below(6)) {
    case 0:
        return hostile_draw(8);
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

static inline uint32_t usual_size(uint32_t request, const union vhost_user_payload *payload)
{
    uint32_t n = payload->memory.num_regions;
    switch (request) {
    case VHOST_USER_SET_MEM_TABLE:
        return 8 + 32 * (n <= VHOST_USER_MAX_REGIONS ? n : VHOST_USER_MAX_REGIONS);
    case VHOST_USER_SET_LOG_BASE:
        return 16;
    case VHOST_USER_SET_VRING_ADDR:
    case VHOST_USER_ADD_MEM_REG:
    case VHOST_USER_REM_MEM_REG:
        return 40;
    case VHOST_USER_GET_CONFIG:
    case VHOST_USER_SET_CONFIG:
        return 12 + (payload->config.size <= 256 ? payload->config.size : 256);
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

static inline unsigned usual_fds(uint32_t request, const union vhost_user_payload *payload)
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
static inline void fill_payload(uint32_t request, union vhost_user_payload *p, struct client_guest *g)
{
    uint64_t *words = (uint64_t *)p;
    memset(p, 0, sizeof *p);
    if (below(4) == 0) {
        for (unsigned i = 0; i < 6; i++)
            words[i] = number(g);
        return;
    }
    switch (request) {
    case VHOST_USER_SET_MEM_TABLE:
        p->memory.num_regions = below(3) ? below(10) : (uint32_t)number(g);
        for (unsigned i = 0; i < VHOST_USER_MAX_REGIONS; i++) {
            struct vhost_user_memory_region *r = &p->memory.regions[i];
            *r = guest_region_of(g);
            r->guest_addr += i * (uint64_t)GUEST_BYTES;
            r->user_addr += i * (uint64_t)GUEST_BYTES;
            if (i < p->memory.num_regions && below(4) == 0)
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
        p->addr.flags = below(4) ? below(2) : (uint32_t)number(g);
        break;
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        p->u64 = below(QUEUES) | (below(3) ? 0 : VHOST_USER_VRING_NOFD_MASK);
        break;
    case VHOST_USER_SET_INFLIGHT_FD:
    case VHOST_USER_GET_INFLIGHT_FD:
        p->inflight = (struct vhost_user_inflight){.mmap_size = below(3) ? GUEST_BYTES : number(g),
                                                   .num_queues = (uint16_t)(1 + below(QUEUES)),
                                                   .queue_size = below(4) ? 64 : (uint16_t)number(g)};
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
        if (below(4) == 0)
            p->log.mmap_offset = number(g);
        break;
    case VHOST_USER_SET_FEATURES:
        p->u64 = HOSTILE_FEATURES;
        for (unsigned i = 0; i < 3; i++)
            p->u64 |= below(2) ? 1ull << below(45) : 0;
        break;
    case VHOST_USER_SET_PROTOCOL_FEATURES:
        p->u64 = HOSTILE_PROTOCOL & ~(1ull << below(18));
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

static inline int random_fd(struct client_guest *g)
{
    int pair[2];
    switch (below(7)) {
    case 0:
        return eventfd(0, EFD_CLOEXEC);
    case 1:
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
            abort();
        close(pair[1]);
        return pair[0];
    case 2:
        if (pipe2(pair, O_CLOEXEC) < 0)
            abort();
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

static inline void send_hostile_message(int fd, struct client_guest *g)
{
    uint32_t request = below(12) ? requests[below(sizeof requests / sizeof requests[0])] : below(50);
    union vhost_user_payload payload;
    fill_payload(request, &payload, g);
    uint32_t size = below(15) ? usual_size(request, &payload) : (uint32_t)below(sizeof payload + 1);
    uint32_t said = below(40) ? size : (uint32_t)number(g);
    uint32_t flags = below(30) ? VHOST_USER_VERSION : below(16);
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
static inline void spoil_ring(struct client_guest *g)
{
    unsigned queue = below(QUEUES);
    struct virtq_desc *desc = (struct virtq_desc *)(g->memory + queue * GUEST_RING_STEP);
    struct virtq_avail *avail = guest_avail(g, queue);
    if (below(4) == 0) {
        uint32_t at = queue * GUEST_RING_STEP + below(0x6000), n = 1 + below(64);
        for (uint32_t i = 0; i < n; i++)
            g->memory[at + i] = (uint8_t)hostile_draw(1);
        guest_kick(g);
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

/* Takes what the server says, without waiting. False: the connection has ended. A descriptor that comes along
 * is given to *KEPT (whose former one is closed), or closed if that is NULL. */
static inline bool swallow(int fd, int *kept)
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
                if (kept && *kept >= 0)
                    close(*kept);
                if (kept)
                    *kept = got;
                else
                    close(got);
            }
        }
    }
}

#endif
