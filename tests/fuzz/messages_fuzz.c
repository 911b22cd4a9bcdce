/*
 * libFuzzer on the vhost-user server: the input is what a front end does, step after step: messages, ring
 * contents, requests, files that become shorter, and what happens on the device's own side meanwhile. Server,
 * device and queues share one loop in this thread, so an input does the same every time.
 *
 * Input: a byte that says how far the connection is already (two bits: 0 fresh, 1 negotiated, 2 rings set up,
 * 3 running; the others choose features, see `features_of`), then steps. The first byte of each says which:
 *  - below 64: a message, mostly of the right form (tests/unit/vhost_user_hostile.h), out of what follows;
 *  - below 128: a step of the table `steps`, with one byte that chooses its variant;
 *  - below 160: ring contents that are nearly right, then a kick;
 *  - below 192: so many bytes written to guest memory (16-bit offset in units of 16, length byte, bytes),
 *    then a kick;
 *  - else so many raw bytes on the socket.
 * After every input the process must have as many descriptors as before.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>

#include "host/block/backend.h"
#include "host/block/inject.h"
#include "host/runtime/coroutine.h"
#include "host/vhost_user/server.h"
#include "tests/unit/vhost_user_client.h"

#define QUEUES   2
#define CAPACITY (1u << 20)

#define PROTOCOL_USED                                                                                 \
    (1ull << VHOST_USER_PROTOCOL_F_MQ | 1ull << VHOST_USER_PROTOCOL_F_LOG_SHMFD |                     \
     1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK | 1ull << VHOST_USER_PROTOCOL_F_CONFIG |                 \
     1ull << VHOST_USER_PROTOCOL_F_BACKEND_REQ | 1ull << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |       \
     1ull << VHOST_USER_PROTOCOL_F_RESET_DEVICE | 1ull << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS | \
     1ull << VHOST_USER_PROTOCOL_F_STATUS)

/* ---- the input ---- */

static struct {
    const uint8_t *data;
    size_t size;
} in;

static uint64_t hostile_draw(unsigned bytes)
{
    uint64_t value = 0;
    for (; bytes > 0; bytes--) {
        value <<= 8;
        if (in.size > 0) {
            value |= *in.data++;
            in.size--;
        }
    }
    return value;
}

#define HOSTILE_FEATURES features_of(hostile_draw(1))
#define HOSTILE_PROTOCOL PROTOCOL_USED
static uint64_t features_of(uint64_t choice);
#include "tests/unit/vhost_user_hostile.h"

static uint8_t byte(void)
{
    return (uint8_t)hostile_draw(1);
}

static size_t bytes(void *to, size_t n)
{
    if (n > in.size)
        n = in.size;
    memcpy(to, in.data, n);
    in.data += n;
    in.size -= n;
    return n;
}

/* ---- the device ---- */

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

static void coroutine_fn open_image(void *opaque)
{
    struct error *err = opaque;
    struct open_options open = {.format = "null", .null_bytes = CAPACITY};
    struct node *node;
    if (node_co_open("", &open, &node, err) == 0 && inject_co_open(node, "write,times=0", &node, err) == 0)
        f.blk = blk_new(node);
}

static void setup(void)
{
    struct error err = {0};
    f.loop = loop_create("fuzz", &err);
    if (f.loop)
        co_enter(co_create(open_image, &err));
    struct virtio_blk_options options = {.num_queues = QUEUES,
                                         .queue_size_max = 128,
                                         .logical_block_size = 512,
                                         .physical_block_size = 512,
                                         .request_merging = true,
                                         .write_error = VIRTIO_BLK_STOP,
                                         .secure_erase = true,
                                         .lifetime = true,
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

/* ---- the front end ---- */

static struct {
    int socket;
    struct client_guest guest;
    uint64_t features; /* as last sent */
    int backend;       /* our end of the channel for the device's own requests, or -1 */
    int inflight;      /* the region that came with an answer, or -1 */
    bool cut;          /* the memory's file is shorter: it may not be touched any more */
} fe;

#define PROTOCOL_BIT VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES)

static uint64_t features_of(uint64_t choice)
{
    uint64_t features = VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                        VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE) | VIRTIO_BIT(VIRTIO_BLK_F_MQ) |
                        VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) | VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
                        VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE) | VIRTIO_BIT(VIRTIO_BLK_F_LIFETIME);
    static const uint64_t bits[] = {VIRTIO_BIT(VIRTIO_F_RING_PACKED),
                                    VIRTIO_BIT(VIRTIO_F_EVENT_IDX),
                                    VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC),
                                    VIRTIO_BIT(VIRTIO_F_IN_ORDER),
                                    VIRTIO_BIT(VHOST_F_LOG_ALL),
                                    VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM),
                                    PROTOCOL_BIT};
    for (unsigned i = 0; i < sizeof bits / sizeof bits[0]; i++)
        features |= choice >> i & 1 ? bits[i] : 0;
    return features;
}

static bool packed(void)
{
    return fe.features & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
}

static void step_protocol(uint8_t v)
{
    client_send_u64(fe.socket, VHOST_USER_SET_PROTOCOL_FEATURES,
                    v & 1 ? PROTOCOL_USED & ~(1ull << (v >> 3)) : PROTOCOL_USED);
}

static void step_features(uint8_t v)
{
    /* The last bit the other way round: mostly a connection has protocol features. */
    fe.features = features_of(v ^ 64);
    client_send_u64(fe.socket, VHOST_USER_SET_FEATURES, fe.features);
}

static void step_memory(uint8_t v)
{
    struct client_guest *g = &fe.guest;
    struct vhost_user_memory memory = {.num_regions = 2, .regions = {guest_region_of(g), guest_region_of(g)}};
    int fds[2] = {g->fd, g->fd};
    if (v & 1) {
        /* In two pieces: rings in the first, data in both. */
        uint32_t at = GUEST_DATA + 0x1000 * (v >> 1 & 15) + 0x300;
        memory.regions[0].size = at;
        memory.regions[1].size -= at;
        memory.regions[1].guest_addr += at;
        memory.regions[1].user_addr += at;
        memory.regions[1].mmap_offset += at;
        client_send(fe.socket, VHOST_USER_SET_MEM_TABLE, &memory, 8 + 2 * sizeof memory.regions[0], fds, 2);
    } else {
        guest_send_memory(g, fe.socket);
    }
}

static void step_ring(uint8_t v)
{
    unsigned queue = v & 1;
    struct vhost_user_vring_addr addr = guest_ring_addr(&fe.guest, queue);
    guest_send_ring(&fe.guest, fe.socket, queue, packed() && !(v & 2) ? 0x80008000 : 0);
    addr.flags = v >> 2 & 1;
    if (v & 8) {
        /* I/O virtual addresses that are guest addresses */
        addr.desc_user_addr += GUEST_PHYSICAL - guest_user(&fe.guest, 0);
        addr.avail_user_addr += GUEST_PHYSICAL - guest_user(&fe.guest, 0);
        addr.used_user_addr += GUEST_PHYSICAL - guest_user(&fe.guest, 0);
    }
    client_send(fe.socket, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
}

static void step_kick_fd(uint8_t v)
{
    int pipe_fds[2];
    if (v & 4 && pipe2(pipe_fds, O_CLOEXEC) == 0) {
        client_send_event(fe.socket, VHOST_USER_SET_VRING_KICK, v & 1, pipe_fds[0]);
        if (v & 8 && write(pipe_fds[1], "kick", 4) < 0)
            abort();
        close(pipe_fds[0]);
        close(pipe_fds[1]);
    } else {
        client_send_event(fe.socket, VHOST_USER_SET_VRING_KICK, v & 1, v & 2 ? -1 : fe.guest.kick);
    }
}

static void step_event_fd(uint8_t v)
{
    client_send_event(fe.socket, v & 4 ? VHOST_USER_SET_VRING_ERR : VHOST_USER_SET_VRING_CALL, v & 1,
                      v & 2 ? -1 : fe.guest.call);
}

static void step_enable(uint8_t v)
{
    client_send_state(fe.socket, VHOST_USER_SET_VRING_ENABLE, v & 1, v & 2 ? 0 : 1);
}

static void step_get_base(uint8_t v)
{
    client_send_state(fe.socket, VHOST_USER_GET_VRING_BASE, v & 1, 0);
}

static void step_set_base(uint8_t v)
{
    static const uint32_t bases[] = {0, 1, 63, 64, 0xffff, 0x80008000, 0x00008000, 0x803f803f};
    client_send_state(fe.socket, VHOST_USER_SET_VRING_BASE, v & 1, bases[v >> 1 & 7]);
}

static void step_submit(uint8_t v)
{
    static const uint8_t types[] = {VIRTIO_BLK_T_IN,           VIRTIO_BLK_T_OUT,
                                    VIRTIO_BLK_T_FLUSH,        VIRTIO_BLK_T_GET_ID,
                                    VIRTIO_BLK_T_GET_LIFETIME, VIRTIO_BLK_T_DISCARD,
                                    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_SECURE_ERASE};
    struct client_guest *g = &fe.guest;
    unsigned slot = v >> 4;
    if (fe.cut)
        return;
    if (packed())
        guest_submit_packed(g, v & 1, slot, types[v >> 1 & 7]);
    else
        guest_submit(g, v & 1, slot, types[v >> 1 & 7]);
    guest_kick(g);
}

/* A region that the device made itself, its own words in guest memory, or a clean one. */
static void step_inflight(uint8_t v)
{
    struct vhost_user_inflight inflight = {
        .mmap_size = GUEST_BYTES / 2, .num_queues = QUEUES, .queue_size = GUEST_RING_SIZE};
    if (v & 1) {
        inflight.mmap_size = 0;
        client_send(fe.socket, VHOST_USER_GET_INFLIGHT_FD, &inflight, sizeof inflight, NULL, 0);
        return;
    }
    struct stat st;
    if (v & 2 && fe.inflight >= 0 && fstat(fe.inflight, &st) == 0) {
        inflight.mmap_size = (uint64_t)st.st_size;
        client_send(fe.socket, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof inflight, &fe.inflight, 1);
        return;
    }
    inflight.mmap_offset = GUEST_BYTES / 2;
    client_send(fe.socket, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof inflight, &fe.guest.fd, 1);
}

/* What a predecessor might have left in it: the input says which entries are in flight. */
static void step_inflight_content(uint8_t v)
{
    uint8_t *at = fe.guest.memory + GUEST_BYTES / 2;
    struct vhost_user_inflight_split *split = (struct vhost_user_inflight_split *)at;
    struct vhost_user_inflight_packed *ring = (struct vhost_user_inflight_packed *)at;
    if (fe.cut)
        return;
    if (v & 1) {
        *split = (struct vhost_user_inflight_split){.version = 1,
                                                    .desc_num = GUEST_RING_SIZE,
                                                    .last_batch_head = (uint16_t)below(66),
                                                    .used_idx = (uint16_t)(below(4) - 2)};
        for (unsigned i = 0; i < GUEST_RING_SIZE; i++)
            split->desc[i] = (struct vhost_user_inflight_desc_split){
                .inflight = i % 3 == 0 && below(4) == 0, .next = (uint16_t)below(66), .counter = below(256)};
        return;
    }
    *ring = (struct vhost_user_inflight_packed){.version = 1,
                                                .desc_num = GUEST_RING_SIZE,
                                                .free_head = (uint16_t)below(66),
                                                .old_free_head = (uint16_t)below(66),
                                                .used_idx = (uint16_t)below(4),
                                                .old_used_idx = (uint16_t)below(4),
                                                .used_wrap_counter = v >> 1 & 1,
                                                .old_used_wrap_counter = v >> 2 & 1};
    for (unsigned i = 0; i < GUEST_RING_SIZE; i++)
        ring->desc[i] = (struct vhost_user_inflight_desc_packed){
            .inflight = i % 3 == 0 && below(4) == 0,
            .next = (uint16_t)(below(8) ? i + 1 : below(66)),
            .last = (uint16_t)(i + 2),
            .num = (uint16_t)(below(8) ? 3 : below(66)),
            .counter = i,
            .id = (uint16_t)i,
            .flags = (uint16_t)(i % 3 == 0   ? VIRTQ_DESC_F_NEXT
                                : i % 3 == 1 ? VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE
                                             : VIRTQ_DESC_F_WRITE),
            .len = i % 3 == 0   ? 16
                   : i % 3 == 1 ? 512
                                : 1,
            .addr = GUEST_PHYSICAL + GUEST_DATA + (i % 3) * 0x200};
}

static void step_log(uint8_t v)
{
    struct vhost_user_log log = {.mmap_size = v & 1 ? 8 : (GUEST_PHYSICAL + GUEST_BYTES) / 4096 / 8};
    int file = memfd_create("log", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)log.mmap_size) < 0)
        abort();
    client_send(fe.socket, VHOST_USER_SET_LOG_BASE, &log, sizeof log, &file, 1);
    close(file);
}

static void step_status(uint8_t v)
{
    client_send_u64(fe.socket, VHOST_USER_SET_STATUS, v & 1 ? 0 : v);
}

static void step_mem_reg(uint8_t v)
{
    struct vhost_user_single_region region = {.region = guest_region_of(&fe.guest)};
    uint64_t moved = v & 2 ? GUEST_BYTES : 0;
    region.region.guest_addr += moved;
    region.region.user_addr += moved;
    client_send(fe.socket, v & 1 ? VHOST_USER_REM_MEM_REG : VHOST_USER_ADD_MEM_REG, &region, sizeof region,
                &fe.guest.fd, v & 1 ? 0 : 1);
}

/* I/O virtual addresses that are the front end's own, or guest addresses. */
static void step_iotlb(uint8_t v)
{
    uint32_t at = (v >> 4) * 0x10000;
    struct vhost_user_iotlb iotlb = {.iova = v & 2 ? GUEST_PHYSICAL + at : guest_user(&fe.guest, at),
                                     .size = v & 4 ? GUEST_BYTES - at : 0x1000,
                                     .user_addr = guest_user(&fe.guest, at),
                                     .permissions = v & 8 ? VHOST_USER_IOTLB_READ : 3,
                                     .type = v & 1 ? VHOST_USER_IOTLB_INVALIDATE : VHOST_USER_IOTLB_UPDATE};
    client_send(fe.socket, VHOST_USER_IOTLB_MSG, &iotlb, sizeof iotlb, NULL, 0);
}

/* Answers what the device asked on its channel. */
static void step_answer_misses(uint8_t v)
{
    struct client_message miss;
    for (unsigned i = 0; i < 8 && fe.backend >= 0; i++) {
        struct pollfd p = {.fd = fe.backend, .events = POLLIN};
        if (poll(&p, 1, 0) <= 0 || client_receive(fe.backend, &miss) != 1)
            return;
        if (miss.header.request != VHOST_USER_BACKEND_IOTLB_MSG)
            continue;
        struct vhost_user_iotlb iotlb = miss.payload.iotlb;
        uint64_t page = iotlb.iova & ~4095ull;
        uint64_t at =
            page - GUEST_PHYSICAL < GUEST_BYTES ? page - GUEST_PHYSICAL : page - guest_user(&fe.guest, 0);
        iotlb.iova = page;
        iotlb.size = 4096;
        iotlb.user_addr = guest_user(&fe.guest, 0) + at;
        iotlb.type = VHOST_USER_IOTLB_UPDATE;
        if (v & 1)
            iotlb.permissions = v >> 1 & 3;
        client_send(fe.socket, VHOST_USER_IOTLB_MSG, &iotlb, sizeof iotlb, NULL, 0);
        run();
    }
}

static void step_reset(uint8_t v)
{
    client_send(fe.socket, v & 1 ? VHOST_USER_RESET_OWNER : VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0);
    if (!(v & 1) && !fe.cut) {
        /* Rings as new, once the device has let go of them */
        run();
        memset(fe.guest.memory, 0, QUEUES * GUEST_RING_STEP);
        fe.guest.avail_idx = fe.guest.packed_next = 0;
        fe.guest.packed_wrap = true;
    }
}

static void step_channel(uint8_t v)
{
    int pair[2], small = 1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    if (v & 1)
        setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    client_send(fe.socket, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1);
    close(pair[1]);
    if (fe.backend >= 0)
        close(fe.backend);
    fe.backend = pair[0];
    if (v & 2) {
        close(fe.backend);
        fe.backend = -1;
    }
}

static void coroutine_fn resize(void *opaque)
{
    struct error err = {0};
    blk_co_resize(f.blk, *(const uint64_t *)opaque, &err);
}

/* On the device's side: another capacity; writes fail, or work again and are resumed. */
static void step_device(uint8_t v)
{
    struct error err = {0};
    uint64_t length = CAPACITY + (uint64_t)(v >> 2) * 4096;
    switch (v & 3) {
    case 0:
        for (unsigned i = 0; i < (v & 4 ? 40 : 1); i++) {
            length += 4096;
            co_enter(co_create(resize, &length));
            run();
        }
        break;
    case 1:
        inject_add(blk_node(f.blk), "write,error=ENOSPC,times=always", &err);
        break;
    default:
        inject_clear(blk_node(f.blk));
        virtio_blk_resume(f.device);
    }
}

static void step_config(uint8_t v)
{
    struct vhost_user_config config = {.offset = v & 2 ? 32 : v, .size = v & 2 ? 1 : 60, .flags = v >> 2 & 1};
    config.region[0] = v >> 3 & 1;
    client_send(fe.socket, v & 1 ? VHOST_USER_GET_CONFIG : VHOST_USER_SET_CONFIG, &config,
                VHOST_USER_CONFIG_HEADER_BYTES + config.size, NULL, 0);
}

static void step_cut(uint8_t v)
{
    if (v % 8)
        return; /* now and then is enough: little happens afterwards */
    fe.cut = true;
    if (ftruncate(fe.guest.fd, (off_t)(v >> 3) * 0x8000) < 0)
        abort();
    guest_kick(&fe.guest);
}

static void (*const steps[])(uint8_t variant) = {
    step_protocol,      step_features,
    step_memory,        step_ring,
    step_kick_fd,       step_event_fd,
    step_enable,        step_get_base,
    step_set_base,      step_submit,
    step_submit,        step_submit,
    step_inflight,      step_inflight_content,
    step_log,           step_status,
    step_mem_reg,       step_iotlb,
    step_answer_misses, step_reset,
    step_channel,       step_device,
    step_config,        step_cut,
};
#define STEPS (sizeof steps / sizeof steps[0])

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

static void one_step(void)
{
    uint8_t step = byte();
    if (step < 64) {
        send_hostile_message(fe.socket, &fe.guest);
    } else if (step < 128) {
        steps[(step - 64u) % STEPS](byte());
    } else if (step < 160) {
        if (!fe.cut)
            spoil_ring(&fe.guest);
    } else if (step < 192) {
        uint32_t at = (uint32_t)hostile_draw(2) * 16 % GUEST_BYTES;
        uint8_t junk[256];
        size_t n = bytes(junk, byte()), room = GUEST_BYTES - at;
        if (!fe.cut)
            memcpy(fe.guest.memory + at, junk, n < room ? n : room);
        guest_kick(&fe.guest);
    } else {
        uint8_t raw[64];
        size_t n = bytes(raw, step - 191u);
        send(fe.socket, raw, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = {0};
    int pair[2], before;

    if (!f.loop)
        setup();
    in.data = data;
    in.size = size;
    run();
    before = lowest_free_descriptor();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    memset(&fe, 0, sizeof fe);
    fe.socket = pair[0];
    fe.backend = fe.inflight = -1;
    guest_open(&fe.guest);
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
    uint8_t stage = byte(), ring_variant = stage >> 2 & 32 ? 8 : 0;
    static void (*const begin[])(uint8_t) = {step_protocol, step_features, step_memory,
                                             step_ring,     step_kick_fd,  step_enable};
    for (unsigned i = 0; i < (stage & 3) * 2u; i++) {
        begin[i](i == 1 ? stage >> 2 : i == 3 ? ring_variant : 0);
        run();
    }
    for (int n = 0; in.size > 0 && n < 64 && swallow(fe.socket, &fe.inflight); n++) {
        one_step();
        run();
    }
    close(fe.socket);
    for (int i = 0; i < 1000 && !f.stopped; i++)
        loop_turn(f.loop, false);
    if (!f.stopped)
        abort(); /* a front end that has left is noticed */
    vhost_user_server_destroy(server);
    inject_clear(blk_node(f.blk));
    if (fe.backend >= 0)
        close(fe.backend);
    if (fe.inflight >= 0)
        close(fe.inflight);
    guest_close(&fe.guest);
    run();
    if (blk_length(f.blk) != CAPACITY) {
        uint64_t length = CAPACITY;
        co_enter(co_create(resize, &length));
        run();
    }
    if (lowest_free_descriptor() != before)
        abort(); /* a descriptor was left open */
    return 0;
}
