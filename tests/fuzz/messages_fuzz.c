/*
 * libFuzzer on the vhost-user server: the input is what a front end sends, message after message. Server,
 * device and queues share one loop in this thread, so an input does the same every time.
 *
 * Input: a byte that says how far the connection is already (0 fresh, 1 negotiated, 2 ring set up, 3 running,
 * and 4 a packed ring), then a sequence of steps, the first byte of each says which: 0..63     a message of
 * that request: flags byte, descriptor byte (kind << 4 | count), size byte, payload 64..127   a well-formed
 * message that gets the connection further: see `helper` 128..191  so many bytes written to guest memory:
 * 16-bit offset in units of 2, length byte, bytes; then a kick 192..     so many raw bytes on the socket
 * After every input the process must have as many descriptors as before.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>

#include "host/block/backend.h"
#include "host/vhost_user/server.h"
#include "tests/unit/vhost_user_client.h"

#define QUEUES 2

#define PROTOCOL_USED                                                                                 \
    (1ull << VHOST_USER_PROTOCOL_F_MQ | 1ull << VHOST_USER_PROTOCOL_F_LOG_SHMFD |                     \
     1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK | 1ull << VHOST_USER_PROTOCOL_F_CONFIG |                 \
     1ull << VHOST_USER_PROTOCOL_F_BACKEND_REQ | 1ull << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |       \
     1ull << VHOST_USER_PROTOCOL_F_RESET_DEVICE | 1ull << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS | \
     1ull << VHOST_USER_PROTOCOL_F_STATUS)

static struct {
    struct loop *loop;
    struct blk *blk;
    struct virtio_blk *device;
    bool stopped;
} f;

static void on_stopped(void *opaque)
{
    f.stopped = true;
}

static void setup(void)
{
    struct error err = {0};
    f.loop = loop_create("fuzz", &err);
    struct open_options open = {.format = "null", .null_bytes = 1 << 20};
    f.blk = f.loop ? blk_open("", &open, &err) : NULL;
    struct virtio_blk_options options = {.num_queues = QUEUES,
                                         .queue_size_max = 128,
                                         .logical_block_size = 512,
                                         .physical_block_size = 512,
                                         .request_merging = true,
                                         .discard = true};
    f.device = f.blk ? virtio_blk_create(f.blk, &options, &err) : NULL;
    if (!f.device) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
}

static void run(void)
{
    /* Work may come up in the turn after the one in which it was asked for; a polled ring never rests. */
    for (int idle = 0, turns = 0; idle < 2 && turns < 50; turns++)
        idle = loop_turn(f.loop, false) ? 0 : idle + 1;
}

struct input {
    const uint8_t *data;
    size_t size;
};

static uint8_t byte(struct input *in)
{
    if (in->size == 0)
        return 0;
    in->size--;
    return *in->data++;
}

static size_t bytes(struct input *in, void *to, size_t n)
{
    if (n > in->size)
        n = in->size;
    memcpy(to, in->data, n);
    in->data += n;
    in->size -= n;
    return n;
}

static void helper(unsigned which, int fd, struct client_guest *g)
{
    unsigned queue = which >> 4 & 1;
    struct vhost_user_inflight inflight = {
        .mmap_size = GUEST_BYTES / 2, .num_queues = QUEUES, .queue_size = 64};
    switch (which & 15) {
    case 0:
        client_send_u64(fd, VHOST_USER_SET_PROTOCOL_FEATURES, PROTOCOL_USED);
        break;
    case 1:
        client_send_u64(fd, VHOST_USER_SET_FEATURES,
                        VIRTIO_BIT(VIRTIO_F_VERSION_1) | 1ull << 30 |
                            (which & 32 ? VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) : 0));
        break;
    case 2:
        client_send_u64(fd, VHOST_USER_SET_FEATURES,
                        VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |
                            VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) |
                            (which & 32 ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0));
        break;
    case 3:
        guest_send_memory(g, fd);
        break;
    case 4:
        guest_send_ring(g, fd, queue, 0);
        break;
    case 5:
        client_send_event(fd, VHOST_USER_SET_VRING_KICK, queue, which & 32 ? -1 : g->kick);
        break;
    case 6:
        client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, queue, which & 32 ? 0 : 1);
        break;
    case 7:
        client_send_state(fd, VHOST_USER_GET_VRING_BASE, queue, 0);
        break;
    case 8:
        /* Upper half of guest memory for an inflight region: the input writes there. */
        inflight.mmap_offset = GUEST_BYTES / 2;
        client_send(fd, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof inflight, &g->fd, 1);
        break;
    case 9: {
        struct vhost_user_log log = {.mmap_size = which & 32 ? 8 : 4096, .mmap_offset = 0};
        client_send(fd, VHOST_USER_SET_LOG_BASE, &log, sizeof log, &g->fd, 1);
        break;
    }
    case 10:
        guest_submit_read(g, queue, which >> 5 & 1);
        guest_kick(g);
        break;
    case 11:
        client_send_u64(fd, VHOST_USER_SET_STATUS, which & 32 ? 0 : 15);
        break;
    case 12:
        client_send_state(fd, VHOST_USER_SET_VRING_BASE, queue, which & 32 ? 0x80008000 : 0xffff);
        break;
    case 13: {
        struct vhost_user_single_region region = {.region = guest_region_of(g)};
        if (which & 32)
            client_send(fd, VHOST_USER_REM_MEM_REG, &region, sizeof region, NULL, 0);
        else
            client_send(fd, VHOST_USER_ADD_MEM_REG, &region, sizeof region, &g->fd, 1);
        break;
    }
    case 14: {
        /* I/O virtual addresses that are the front end's own. */
        struct vhost_user_iotlb iotlb = {.iova = guest_user(g, queue * 4096),
                                         .size = 0x10000,
                                         .user_addr = guest_user(g, queue * 4096),
                                         .permissions = 3,
                                         .type = which & 32 ? VHOST_USER_IOTLB_INVALIDATE
                                                            : VHOST_USER_IOTLB_UPDATE};
        client_send(fd, VHOST_USER_IOTLB_MSG, &iotlb, sizeof iotlb, NULL, 0);
        break;
    }
    default:
        client_send(fd, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0);
    }
}

static void message(uint32_t request, struct input *in, int fd, struct client_guest *g)
{
    uint8_t payload[sizeof(union vhost_user_payload) + 8];
    int fds[16];
    uint8_t flags = byte(in), kinds = byte(in);
    uint32_t size = byte(in);
    if (flags & 0x80)
        size += 16;
    size_t n = bytes(in, payload, size < sizeof payload ? size : sizeof payload);
    for (unsigned i = 0; i < (kinds & 15u); i++)
        fds[i] = kinds & 16 ? g->fd : g->kick;
    client_send_raw(fd, request, flags & 0x70 ? VHOST_USER_VERSION | (flags & 8) : flags & 15,
                    flags & 0x40 ? (uint32_t)n : size, payload, n, fds, kinds & 15u);
}

/* Answers are thrown away, their descriptors closed. */
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

static int lowest_free_descriptor(void)
{
    int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
    close(fd);
    return fd;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    /* The server says a sentence for each broken input, thousands a second: stderr for libFuzzer alone. */
    static char quiet[] = "-close_fd_mask=2";
    static char *more[64];
    if (getenv("FUZZ_VERBOSE") || *argc > 62)
        return 0;
    memcpy(more, *argv, (size_t)*argc * sizeof more[0]);
    more[1 < *argc ? 1 : *argc] = quiet;
    for (int i = 1; i < *argc; i++)
        more[i + 1] = (*argv)[i];
    ++*argc;
    *argv = more;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct client_guest g;
    struct error err = {0};
    int pair[2], before;

    if (!f.loop)
        setup();
    run();
    before = lowest_free_descriptor();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    guest_open(&g);
    struct vhost_user_server_options options = {.device = f.device,
                                                .num_queues = QUEUES,
                                                .queue_size_max = 128,
                                                .queue_loops = &f.loop,
                                                .queue_loop_count = 1,
                                                .iommu = true,
                                                .stopped = on_stopped};
    f.stopped = false;
    struct vhost_user_server *server = vhost_user_server_fd(pair[1], &options, &err);
    if (!server)
        abort();
    run();
    /* protocol features, features, memory, ring, kick, enable */
    static const uint8_t ready[] = {0, 2, 3, 4, 5, 6};
    uint8_t stage = byte(&in);
    for (unsigned i = 0; i < (stage & 3) * 2u; i++) {
        helper(ready[i] | (ready[i] == 2 && (stage & 4) ? 32u : 0u), pair[0], &g);
        run();
    }
    for (int steps = 0; in.size > 0 && steps < 64 && swallow(pair[0]); steps++) {
        uint8_t step = byte(&in);
        if (step < 64) {
            message(step, &in, pair[0], &g);
        } else if (step < 128) {
            helper(step - 64, pair[0], &g);
        } else if (step < 192) {
            uint32_t at = byte(&in);
            at = (at << 8 | byte(&in)) * 16;
            size_t room = GUEST_BYTES - at % GUEST_BYTES;
            uint8_t n = byte(&in);
            bytes(&in, g.memory + at % GUEST_BYTES, n < room ? n : room);
            guest_kick(&g);
        } else {
            uint8_t raw[64];
            size_t n = bytes(&in, raw, step - 191u < sizeof raw ? step - 191u : sizeof raw);
            send(pair[0], raw, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        run();
    }
    close(pair[0]);
    for (int i = 0; i < 1000 && !f.stopped; i++)
        loop_turn(f.loop, false);
    if (!f.stopped)
        abort(); /* a front end that has left is noticed */
    vhost_user_server_destroy(server);
    guest_close(&g);
    run();
    if (lowest_free_descriptor() != before)
        abort(); /* a descriptor was left open */
    return 0;
}
