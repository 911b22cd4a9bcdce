/*
 * A front end's raw side of the socket for tests: any message, right or wrong, and a tiny driver for one
 * split ring. Blocking, with a time limit on every wait; nothing in it checks what it is told to send.
 */
#ifndef RINGSIDE_TESTS_VHOST_USER_CLIENT_H
#define RINGSIDE_TESTS_VHOST_USER_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/vhost_user.h"
#include "common/virtio.h"
#include "common/virtio_blk.h"
#include "common/virtio_ring.h"

/* For what comes at once but where the machine has no time for it. */
#define CLIENT_WAIT_MS 120000

struct client_message {
    struct vhost_user_header header;
    union vhost_user_payload payload;
    int fds[16];
    unsigned nfds;
};

static inline int client_connect(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(addr.sun_path, path, sizeof addr.sun_path - 1);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Header and payload as given; HEADER_SIZE may differ from the BYTES that are really sent. */
static inline int client_send_raw(int fd, uint32_t request, uint32_t flags, uint32_t header_size,
                                  const void *payload, size_t bytes, const int *fds, unsigned nfds)
{
    char wire[2048];
    union {
        char space[CMSG_SPACE(64 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct vhost_user_header header = {.request = request, .flags = flags, .size = header_size};
    memcpy(wire, &header, sizeof header);
    if (bytes > sizeof wire - sizeof header)
        bytes = sizeof wire - sizeof header;
    if (bytes)
        memcpy(wire + sizeof header, payload, bytes);
    struct iovec iov = {.iov_base = wire, .iov_len = sizeof header + bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (nfds) {
        memset(&control, 0, sizeof control);
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
    }
    return sendmsg(fd, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static inline int client_send(int fd, uint32_t request, const void *payload, uint32_t bytes, const int *fds,
                              unsigned nfds)
{
    return client_send_raw(fd, request, VHOST_USER_VERSION, bytes, payload, bytes, fds, nfds);
}

static inline int client_send_u64(int fd, uint32_t request, uint64_t value)
{
    return client_send(fd, request, &value, sizeof value, NULL, 0);
}

static inline int client_send_state(int fd, uint32_t request, uint32_t index, uint32_t num)
{
    struct vhost_user_vring_state state = {.index = index, .num = num};
    return client_send(fd, request, &state, sizeof state, NULL, 0);
}

static inline int client_send_event(int fd, uint32_t request, uint64_t index, int event)
{
    uint64_t word = index | (event < 0 ? VHOST_USER_VRING_NOFD_MASK : 0);
    return client_send(fd, request, &word, sizeof word, &event, event < 0 ? 0 : 1);
}

static inline int client_read(int fd, void *buf, size_t bytes, struct client_message *message)
{
    size_t done = 0;
    while (done < bytes) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        union {
            char space[CMSG_SPACE(16 * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = {.iov_base = (char *)buf + done, .iov_len = bytes - done};
        struct msghdr msg = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        if (poll(&p, 1, CLIENT_WAIT_MS) <= 0)
            return -ETIMEDOUT;
        ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
            unsigned count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            for (unsigned i = 0; i < count && message->nfds < 16; i++)
                memcpy(&message->fds[message->nfds++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
        }
        done += (size_t)n;
    }
    return 1;
}

/* 1: a message; 0: the connection has ended; -ETIMEDOUT. */
static inline int client_receive(int fd, struct client_message *message)
{
    memset(message, 0, sizeof *message);
    int ret = client_read(fd, &message->header, sizeof message->header, message);
    if (ret <= 0 || message->header.size == 0)
        return ret;
    if (message->header.size > sizeof message->payload)
        return -EMSGSIZE;
    return client_read(fd, &message->payload, message->header.size, message);
}

/* Asks REQUEST and returns the u64 of the answer; UINT64_MAX if there is none. */
static inline uint64_t client_ask_u64(int fd, uint32_t request)
{
    struct client_message reply;
    if (client_send(fd, request, NULL, 0, NULL, 0) < 0 || client_receive(fd, &reply) != 1 ||
        reply.header.request != request)
        return UINT64_MAX;
    return reply.payload.u64;
}

/* Sends with need_reply (REPLY_ACK was negotiated): 0 or the non-zero answer; -1 the connection ended. */
static inline int64_t client_acked(int fd, uint32_t request, const void *payload, uint32_t bytes,
                                   const int *fds, unsigned nfds)
{
    struct client_message reply;
    if (client_send_raw(fd, request, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY_MASK, bytes, payload, bytes,
                        fds, nfds) < 0)
        return -1;
    if (client_receive(fd, &reply) != 1 || reply.header.request != request || reply.header.size != 8)
        return -1;
    return (int64_t)reply.payload.u64;
}

/* Everything sent before has been handled. False: the connection has ended. */
static inline bool client_sync(int fd)
{
    return client_ask_u64(fd, VHOST_USER_GET_FEATURES) != UINT64_MAX;
}

/* Has the other end closed it? Waits for it. */
static inline bool client_ended(int fd)
{
    struct client_message reply;
    int ret;
    while ((ret = client_receive(fd, &reply)) == 1) {
        for (unsigned i = 0; i < reply.nfds; i++)
            close(reply.fds[i]);
    }
    return ret == 0;
}

/* ---- a guest: memory of one file, one split ring per queue ---- */

#define GUEST_BYTES     (1u << 20)
#define GUEST_PHYSICAL  0x40000000ull /* where the guest sees it */
#define GUEST_RING_STEP 0x8000u
#define GUEST_RING_SIZE 64u
#define GUEST_DATA      0x80000u

struct client_guest {
    int fd; /* the file */
    uint8_t *memory;
    int kick, call;
    uint16_t avail_idx, used_seen;
    uint16_t packed_next; /* the same of a packed ring: place and wrap counter */
    bool packed_wrap;
};

static inline void guest_open(struct client_guest *g)
{
    memset(g, 0, sizeof *g);
    g->packed_wrap = true;
    g->fd = memfd_create("guest", MFD_CLOEXEC);
    if (ftruncate(g->fd, GUEST_BYTES) < 0)
        abort();
    g->memory = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
    g->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static inline void guest_close(struct client_guest *g)
{
    munmap(g->memory, GUEST_BYTES);
    close(g->fd);
    close(g->kick);
    close(g->call);
}

static inline uint64_t guest_user(const struct client_guest *g, uint32_t offset)
{
    return (uint64_t)(uintptr_t)g->memory + offset;
}

static inline struct vhost_user_memory_region guest_region_of(const struct client_guest *g)
{
    return (struct vhost_user_memory_region){
        .guest_addr = GUEST_PHYSICAL, .size = GUEST_BYTES, .user_addr = guest_user(g, 0), .mmap_offset = 0};
}

static inline int guest_send_memory(const struct client_guest *g, int fd)
{
    struct vhost_user_memory memory = {.num_regions = 1, .regions = {guest_region_of(g)}};
    return client_send(fd, VHOST_USER_SET_MEM_TABLE, &memory, 8 + sizeof memory.regions[0], &g->fd, 1);
}

static inline struct vhost_user_vring_addr guest_ring_addr(const struct client_guest *g, unsigned queue)
{
    uint32_t at = queue * GUEST_RING_STEP;
    return (struct vhost_user_vring_addr){.index = queue,
                                          .desc_user_addr = guest_user(g, at),
                                          .avail_user_addr = guest_user(g, at + 0x2000),
                                          .used_user_addr = guest_user(g, at + 0x4000),
                                          .log_guest_addr = GUEST_PHYSICAL + at + 0x4000};
}

/* Everything of queue QUEUE but SET_VRING_KICK and SET_VRING_ENABLE. */
static inline void guest_send_ring(const struct client_guest *g, int fd, unsigned queue, uint32_t base)
{
    struct vhost_user_vring_addr addr = guest_ring_addr(g, queue);
    client_send_state(fd, VHOST_USER_SET_VRING_NUM, queue, GUEST_RING_SIZE);
    client_send_state(fd, VHOST_USER_SET_VRING_BASE, queue, base);
    client_send(fd, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
    client_send_event(fd, VHOST_USER_SET_VRING_CALL, queue, g->call);
}

static inline struct virtq_avail *guest_avail(const struct client_guest *g, unsigned queue)
{
    return (struct virtq_avail *)(g->memory + queue * GUEST_RING_STEP + 0x2000);
}

static inline struct virtq_used *guest_used(const struct client_guest *g, unsigned queue)
{
    return (struct virtq_used *)(g->memory + queue * GUEST_RING_STEP + 0x4000);
}

/* 512 bytes */
static inline uint8_t *guest_data(const struct client_guest *g, unsigned slot)
{
    return g->memory + GUEST_DATA + slot * 0x1000 + 0x200;
}

/* Makes a request with one sector of data (guest_data) available at head 3*SLOT; no kick. */
static inline void guest_submit(struct client_guest *g, unsigned queue, unsigned slot, uint32_t type)
{
    unsigned data_flags =
        type == VIRTIO_BLK_T_IN ? VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE : VIRTQ_DESC_F_NEXT;
    struct virtq_desc *desc = (struct virtq_desc *)(g->memory + queue * GUEST_RING_STEP);
    uint32_t at = GUEST_DATA + slot * 0x1000;
    uint16_t head = (uint16_t)(3 * slot);
    struct virtio_blk_req_header header = {.type = le32_put(type), .sector = le64_put(slot)};
    memcpy(g->memory + at, &header, sizeof header);
    if (type == VIRTIO_BLK_T_IN)
        memset(guest_data(g, slot), 0xaa, 512);
    g->memory[at + 0x400] = 0xff;
    desc[head] = (struct virtq_desc){.addr = le64_put(GUEST_PHYSICAL + at),
                                     .len = le32_put(16),
                                     .flags = le16_put(VIRTQ_DESC_F_NEXT),
                                     .next = le16_put((uint16_t)(head + 1))};
    desc[head + 1] = (struct virtq_desc){.addr = le64_put(GUEST_PHYSICAL + at + 0x200),
                                         .len = le32_put(512),
                                         .flags = le16_put((uint16_t)data_flags),
                                         .next = le16_put((uint16_t)(head + 2))};
    desc[head + 2] = (struct virtq_desc){.addr = le64_put(GUEST_PHYSICAL + at + 0x400),
                                         .len = le32_put(1),
                                         .flags = le16_put(VIRTQ_DESC_F_WRITE)};
    struct virtq_avail *avail = guest_avail(g, queue);
    le16_store(&avail->ring[g->avail_idx % GUEST_RING_SIZE], head);
    g->avail_idx++;
    /* Partner: the device's acquire of avail->idx (2.7.13.3.1). */
    le16_store_release(&avail->idx, g->avail_idx);
}

static inline void guest_submit_read(struct client_guest *g, unsigned queue, unsigned slot)
{
    guest_submit(g, queue, slot, VIRTIO_BLK_T_IN);
}

/* The same on a packed ring: three descriptors, the first one's flags last (2.8.6). */
static inline void guest_submit_packed(struct client_guest *g, unsigned queue, unsigned slot, uint32_t type)
{
    struct virtq_packed_desc *ring = (struct virtq_packed_desc *)(g->memory + queue * GUEST_RING_STEP);
    struct virtq_packed_desc *first = &ring[g->packed_next];
    uint32_t at = GUEST_DATA + slot * 0x1000;
    const struct {
        uint32_t offset, len, flags;
    } parts[3] = {{0, 16, VIRTQ_DESC_F_NEXT},
                  {0x200, 512, VIRTQ_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VIRTQ_DESC_F_WRITE : 0)},
                  {0x400, 1, VIRTQ_DESC_F_WRITE}};
    struct virtio_blk_req_header header = {.type = le32_put(type), .sector = le64_put(slot)};
    uint16_t first_flags = 0;
    memcpy(g->memory + at, &header, sizeof header);
    g->memory[at + 0x400] = 0xff;
    for (unsigned i = 0; i < 3; i++) {
        struct virtq_packed_desc *desc = &ring[g->packed_next];
        uint16_t flags =
            (uint16_t)(parts[i].flags | (g->packed_wrap ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED));
        desc->addr = le64_put(GUEST_PHYSICAL + at + parts[i].offset);
        desc->len = le32_put(parts[i].len);
        desc->id = le16_put((uint16_t)slot);
        if (i == 0)
            first_flags = flags;
        else
            le16_store(&desc->flags, flags);
        if (++g->packed_next == GUEST_RING_SIZE) {
            g->packed_next = 0;
            g->packed_wrap = !g->packed_wrap;
        }
    }
    /* Partner: the device's acquire of the flags (2.8.6.1). */
    le16_store_release(&first->flags, first_flags);
}

static inline void guest_kick(const struct client_guest *g)
{
    uint64_t one = 1;
    if (write(g->kick, &one, sizeof one) < 0)
        abort();
}

/* Waits at most MS for used->idx to become IDX. */
static inline bool guest_wait_used(const struct client_guest *g, unsigned queue, uint16_t idx, int ms)
{
    for (int i = 0; i <= ms * 4; i++) {
        if (le16_load_acquire(&guest_used(g, queue)->idx) == idx)
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 250000}, NULL);
    }
    return false;
}

static inline uint8_t guest_status(const struct client_guest *g, unsigned slot)
{
    return g->memory[GUEST_DATA + slot * 0x1000 + 0x400];
}

#endif
