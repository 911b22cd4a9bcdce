/*
 * A disk that lies: a vhost-user-blk back end for QEMU, with 4 MiB of memory behind it, that serves a split
 * or a packed ring honestly but for every seventh request, about which it tells the lie named on its command
 * line, as many times as said. It trusts the front end and crashes on nonsense from it; the guest's driver is
 * what is tried.
 *
 *   tool_hostile SOCKET split|packed LIE TIMES
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/vhost_user.h"
#include "common/virtio.h"
#include "common/virtio_blk.h"
#include "common/virtio_ring.h"

#define SECTORS      8192u
#define LIE_EVERY    7u
#define HELD_MAX     64u
#define SEGMENTS_MAX 64u
#define DEVICE_FEATURES                                                            \
    (VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES) | \
     VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) | VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX) |           \
     (d.offers_packed ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0))

enum lie {
    WRONG_ID,     /* a used id beyond the ring */
    IDLE_ID,      /* a used id that is not in flight */
    LONG_LEN,     /* more written than there was room for */
    SHORT_LEN,    /* half of what was to be read, with status OK */
    IDX_JUMP,     /* used.idx further than there are requests; packed: the answer in a slot further on */
    TWICE,        /* answered two times */
    NO_STATUS,    /* answered, the status byte not written */
    BAD_STATUS,   /* a status that is none */
    SILENCE,      /* never answered */
    NO_INTERRUPT, /* answered, and nobody told */
    SPURIOUS,     /* interrupts without a cause */
    AFTER_RESET,  /* answered when the ring was taken away already */
    LIES
};

static const char *const lie_names[LIES] = {"wrong-id", "idle-id",      "long-len",  "short-len",
                                            "idx-jump", "twice",        "no-status", "bad-status",
                                            "silence",  "no-interrupt", "spurious",  "after-reset"};

static struct {
    enum lie lie;
    unsigned lies_left, count;
    uint8_t disk[SECTORS * VIRTIO_BLK_SECTOR_BYTES];

    int socket;
    unsigned num_regions;
    struct {
        struct vhost_user_memory_region at;
        uint8_t *mapped;
        size_t bytes;
    } regions[VHOST_USER_MAX_REGIONS];

    /* the one ring */
    bool offers_packed, packed;
    unsigned size;
    struct virtq_desc *desc;
    struct virtq_avail *avail;
    struct virtq_used *used;
    struct virtq_packed_desc *slots;
    uint16_t last_avail, used_idx; /* indexes, or slots */
    bool avail_wrap, used_wrap;
    bool enabled;
    int kick, call;
    struct chain {
        uint16_t id; /* head, or buffer id */
        unsigned ndesc;
        struct segment {
            uint8_t *mem;
            uint32_t len;
        } segments[SEGMENTS_MAX];
    } held[HELD_MAX];
    unsigned num_held;
} d = {.kick = -1, .call = -1};

static void *from_guest(uint64_t addr)
{
    for (unsigned i = 0; i < d.num_regions; i++) {
        if (addr - d.regions[i].at.guest_addr < d.regions[i].at.size)
            return d.regions[i].mapped + d.regions[i].at.mmap_offset + (addr - d.regions[i].at.guest_addr);
    }
    fprintf(stderr, "tool_hostile: no memory at 0x%llx\n", (unsigned long long)addr);
    exit(1);
}

static void *from_user(uint64_t addr)
{
    for (unsigned i = 0; i < d.num_regions; i++) {
        if (addr - d.regions[i].at.user_addr < d.regions[i].at.size)
            return d.regions[i].mapped + d.regions[i].at.mmap_offset + (addr - d.regions[i].at.user_addr);
    }
    fprintf(stderr, "tool_hostile: no ring memory at 0x%llx\n", (unsigned long long)addr);
    exit(1);
}

static void interrupt(void)
{
    if (d.call >= 0 && write(d.call, &(uint64_t){1}, 8) < 0)
        perror("tool_hostile: call");
}

/* ---- the rings ---- */

static void add_segment(struct chain *chain, le64 addr, le32 len)
{
    if (chain->ndesc < SEGMENTS_MAX)
        chain->segments[chain->ndesc] = (struct segment){from_guest(le64_get(addr)), le32_get(len)};
    chain->ndesc++;
}

/* The next chain that the driver has made available. */
static bool take_split(struct chain *chain)
{
    const struct virtq_desc *desc;
    if (le16_load_acquire(&d.avail->idx) == d.last_avail)
        return false;
    chain->id = (uint16_t)(le16_load(&d.avail->ring[d.last_avail++ % d.size]) % d.size);
    desc = &d.desc[chain->id];
    add_segment(chain, desc->addr, desc->len);
    while (le16_get(desc->flags) & VIRTQ_DESC_F_NEXT) {
        desc = &d.desc[le16_get(desc->next) % d.size];
        add_segment(chain, desc->addr, desc->len);
    }
    return true;
}

static bool take_packed(struct chain *chain)
{
    uint16_t flags = le16_load_acquire(&d.slots[d.last_avail].flags);
    if (((flags & VIRTQ_DESC_F_AVAIL) != 0) != d.avail_wrap ||
        ((flags & VIRTQ_DESC_F_USED) != 0) == d.avail_wrap)
        return false;
    do {
        const struct virtq_packed_desc *desc = &d.slots[d.last_avail];
        flags = le16_load(&desc->flags);
        chain->id = le16_get(desc->id);
        add_segment(chain, desc->addr, desc->len);
        if (++d.last_avail == d.size) {
            d.last_avail = 0;
            d.avail_wrap = !d.avail_wrap;
        }
    } while (flags & VIRTQ_DESC_F_NEXT);
    return true;
}

static void skip_slots(unsigned n)
{
    d.used_idx = (uint16_t)(d.used_idx + n);
    if (d.used_idx >= d.size) {
        d.used_idx = (uint16_t)(d.used_idx - d.size);
        d.used_wrap = !d.used_wrap;
    }
}

static void answer(const struct chain *chain, uint16_t id, uint32_t len)
{
    if (d.packed) {
        struct virtq_packed_desc *desc = &d.slots[d.used_idx];
        desc->id = le16_put(id);
        desc->len = le32_put(len);
        le16_store_release(
            &desc->flags,
            (uint16_t)(VIRTQ_DESC_F_WRITE | (d.used_wrap ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED : 0)));
        skip_slots(chain->ndesc);
    } else {
        struct virtq_used_elem *elem = &d.used->ring[d.used_idx++ % d.size];
        le32_store(&elem->id, id);
        le32_store(&elem->len, len);
        le16_store_release(&d.used->idx, d.used_idx);
    }
}

/* ---- the disk ---- */

/* Does what the chain asks for; returns the bytes written into it, and its status. */
static uint32_t perform(const struct chain *chain, uint8_t *status)
{
    const struct virtio_blk_req_header *header = (const void *)chain->segments[0].mem;
    uint32_t type = le32_get(header->type), written = 1;
    uint64_t at = le64_get(header->sector) * VIRTIO_BLK_SECTOR_BYTES;
    *status = VIRTIO_BLK_S_OK;
    for (unsigned i = 1; i + 1 < chain->ndesc; i++) {
        const struct segment *segment = &chain->segments[i];
        if (at + segment->len > sizeof d.disk) {
            *status = VIRTIO_BLK_S_IOERR;
        } else if (type == VIRTIO_BLK_T_OUT) {
            memcpy(d.disk + at, segment->mem, segment->len);
        } else if (type == VIRTIO_BLK_T_IN) {
            memcpy(segment->mem, d.disk + at, segment->len);
            written += segment->len;
        } else {
            *status = VIRTIO_BLK_S_UNSUPP;
        }
        at += segment->len;
    }
    return written;
}

static void serve_one(const struct chain *chain)
{
    bool lying = d.lies_left && ++d.count % LIE_EVERY == 0;
    enum lie lie = lying ? d.lie : LIES;
    uint8_t status;
    d.lies_left -= lying;
    if (lie == SILENCE || chain->ndesc < 2 || chain->ndesc > SEGMENTS_MAX)
        return;
    if (lie == AFTER_RESET && d.num_held < HELD_MAX) {
        d.held[d.num_held++] = *chain;
        return;
    }
    uint32_t len = perform(chain, &status);
    if (lie != NO_STATUS) {
        const struct segment *last = &chain->segments[chain->ndesc - 1];
        last->mem[last->len - 1] = lie == BAD_STATUS ? 77 : status;
    }
    switch (lie) {
    case WRONG_ID:
        answer(chain, 0xfffe, len);
        break;
    case IDLE_ID:
        answer(chain, (uint16_t)((chain->id + d.size / 2) % d.size), len);
        break;
    case LONG_LEN:
        answer(chain, chain->id, 0x7fffffff);
        break;
    case SHORT_LEN: /* and the other half is junk */
        if (len > 1)
            memset(chain->segments[1].mem + chain->segments[1].len / 2, 0xdd, chain->segments[1].len / 2);
        answer(chain, chain->id, len / 2);
        break;
    case IDX_JUMP:
        if (d.packed)
            skip_slots(5);
        else
            d.used_idx = (uint16_t)(d.used_idx + 1000);
        answer(chain, chain->id, len);
        break;
    case TWICE:
        answer(chain, chain->id, len);
        answer(chain, chain->id, len);
        break;
    case NO_INTERRUPT:
        answer(chain, chain->id, len);
        return;
    default:
        answer(chain, chain->id, len);
        break;
    }
    interrupt();
    for (unsigned i = 0; lie == SPURIOUS && i < 100; i++)
        interrupt();
}

static void serve(void)
{
    while (d.enabled && d.kick >= 0 && d.desc) {
        struct chain chain = {0};
        if (!(d.packed ? take_packed(&chain) : take_split(&chain)))
            break;
        serve_one(&chain);
    }
}

/* ---- the protocol, as far as QEMU 7.2 needs it ---- */

static void reply(const struct vhost_user_header *to, const void *payload, uint32_t size)
{
    struct vhost_user_header header = {to->request, VHOST_USER_VERSION | VHOST_USER_REPLY_MASK, size};
    if (write(d.socket, &header, sizeof header) != sizeof header ||
        write(d.socket, payload, size) != (ssize_t)size)
        exit(1);
}

static void reply_u64(const struct vhost_user_header *to, uint64_t value)
{
    reply(to, &value, sizeof value);
}

static void set_memory(const struct vhost_user_memory *memory, const int *fds)
{
    for (unsigned i = 0; i < d.num_regions; i++)
        munmap(d.regions[i].mapped, d.regions[i].bytes);
    d.num_regions =
        memory->num_regions < VHOST_USER_MAX_REGIONS ? memory->num_regions : VHOST_USER_MAX_REGIONS;
    for (unsigned i = 0; i < d.num_regions; i++) {
        d.regions[i].at = memory->regions[i];
        d.regions[i].bytes = memory->regions[i].size + memory->regions[i].mmap_offset;
        d.regions[i].mapped = mmap(NULL, d.regions[i].bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
        close(fds[i]);
        if (d.regions[i].mapped == MAP_FAILED)
            exit(1);
    }
}

static void stop_ring(void)
{
    /* Too late: the ring is no longer ours, and this is the lie. */
    for (unsigned i = 0; i < d.num_held && d.desc; i++)
        answer(&d.held[i], d.held[i].id, 1);
    d.num_held = 0;
    d.enabled = false;
    if (d.kick >= 0)
        close(d.kick);
    d.kick = -1;
}

static uint32_t base(void)
{
    if (!d.packed)
        return d.last_avail;
    return d.last_avail | (uint32_t)d.avail_wrap << 15 | (uint32_t)d.used_idx << 16 |
           (uint32_t)d.used_wrap << 31;
}

static void handle(const struct vhost_user_header *header, const union vhost_user_payload *p, const int *fds)
{
    struct virtio_blk_config config = {
        .capacity = le64_put(SECTORS), .seg_max = le32_put(30), .num_queues = le16_put(1)};
    struct vhost_user_config answer_config = p->config;
    switch (header->request) {
    case VHOST_USER_GET_FEATURES:
        reply_u64(header, DEVICE_FEATURES);
        break;
    case VHOST_USER_SET_FEATURES:
        d.packed = (p->u64 & VIRTIO_BIT(VIRTIO_F_RING_PACKED)) != 0;
        break;
    case VHOST_USER_GET_PROTOCOL_FEATURES:
        reply_u64(header, 1u << VHOST_USER_PROTOCOL_F_CONFIG);
        break;
    case VHOST_USER_SET_MEM_TABLE:
        set_memory(&p->memory, fds);
        break;
    case VHOST_USER_SET_VRING_NUM:
        d.size = p->state.num;
        break;
    case VHOST_USER_SET_VRING_ADDR:
        d.desc = from_user(p->addr.desc_user_addr);
        d.avail = from_user(p->addr.avail_user_addr);
        d.used = from_user(p->addr.used_user_addr);
        d.slots = (void *)d.desc;
        if (!d.packed)
            d.used_idx = le16_load(&d.used->idx);
        break;
    case VHOST_USER_SET_VRING_BASE:
        d.last_avail = (uint16_t)p->state.num;
        if (d.packed) {
            d.last_avail &= 0x7fff;
            d.avail_wrap = (p->state.num >> 15 & 1) != 0;
            d.used_idx = p->state.num >> 16 & 0x7fff;
            d.used_wrap = p->state.num >> 31 != 0;
        }
        break;
    case VHOST_USER_GET_VRING_BASE:
        stop_ring();
        reply(header, &(struct vhost_user_vring_state){p->state.index, base()}, 8);
        break;
    case VHOST_USER_SET_VRING_KICK:
        d.kick = fds[0];
        break;
    case VHOST_USER_SET_VRING_CALL:
        if (d.call >= 0)
            close(d.call);
        d.call = fds[0];
        break;
    case VHOST_USER_SET_VRING_ENABLE:
        d.enabled = p->state.num != 0;
        break;
    case VHOST_USER_GET_CONFIG:
        memset(answer_config.region, 0, sizeof answer_config.region);
        memcpy(answer_config.region, &config, sizeof config);
        reply(header, &answer_config, header->size);
        break;
    default:
        if (fds[0] >= 0)
            close(fds[0]);
        break;
    }
}

static bool receive(void)
{
    struct vhost_user_header header;
    union vhost_user_payload payload = {0};
    union {
        char bytes[CMSG_SPACE(VHOST_USER_MAX_REGIONS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {&header, sizeof header};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof control.bytes};
    int fds[VHOST_USER_MAX_REGIONS] = {-1, -1, -1, -1, -1, -1, -1, -1};
    if (recvmsg(d.socket, &msg, MSG_WAITALL) != sizeof header || header.size > sizeof payload)
        return false;
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));
    if (header.size && recv(d.socket, &payload, header.size, MSG_WAITALL) != (ssize_t)header.size)
        return false;
    handle(&header, &payload, fds);
    return true;
}

int main(int argc, char **argv)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (argc != 5 || strlen(argv[1]) >= sizeof addr.sun_path) {
        fprintf(stderr, "usage: tool_hostile SOCKET split|packed LIE TIMES\n");
        return 2;
    }
    d.offers_packed = strcmp(argv[2], "packed") == 0;
    while (d.lie < LIES && strcmp(argv[3], lie_names[d.lie]) != 0)
        d.lie++;
    if (d.lie == LIES) {
        fprintf(stderr, "tool_hostile: %s: no such lie\n", argv[3]);
        return 2;
    }
    d.lies_left = (unsigned)strtoul(argv[4], NULL, 10);
    strcpy(addr.sun_path, argv[1]);
    if (bind(listener, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(listener, 1) < 0) {
        perror("tool_hostile");
        return 1;
    }
    d.socket = accept(listener, NULL, NULL);
    for (;;) {
        struct pollfd fds[2] = {{.fd = d.socket, .events = POLLIN}, {.fd = d.kick, .events = POLLIN}};
        uint64_t ignored;
        if (poll(fds, d.kick >= 0 ? 2 : 1, -1) < 0 && errno != EINTR)
            return 1;
        if (fds[0].revents && !receive())
            return 0;
        if (d.kick >= 0 && d.kick == fds[1].fd && fds[1].revents && read(d.kick, &ignored, 8) < 0 &&
            errno != EAGAIN)
            return 1;
        serve();
    }
}
