/*
 * Rings: their states, and handing them to the device and back (vhost-user, "Ring states"; connection.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/virtio_ring.h"
#include "host/device/ring_inflight.h"
#include "host/runtime/world.h"
#include "host/vhost_user/connection.h"
#include "host/vhost_user/shared_files.h"

static bool ring_packed(const struct vhost_user_connection *c)
{
    return c->features & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
}

static bool ring_wanted(const struct vhost_user_connection *c, const struct vring *r)
{
    return c->features_set && !connection_suspended(c) && r->started && r->enabled && r->has_addr &&
           r->size > 0 && !r->broken;
}

bool rings_run(const struct vhost_user_connection *c)
{
    for (unsigned i = 0; i < c->options->num_queues; i++) {
        if (c->rings[i].runs)
            return true;
    }
    return false;
}

static struct loop *ring_loop(const struct vhost_user_connection *c, unsigned index)
{
    return c->options->queue_loops[index % c->options->queue_loop_count];
}

static void ring_was_at(struct vhost_user_connection *c, struct vring *r, uint16_t avail, uint16_t used)
{
    r->base = ring_packed(c) ? (uint32_t)avail | (uint32_t)used << 16 : avail;
    r->runs = false;
}

static bool has_room(int fd)
{
    struct pollfd wanted = {.fd = fd, .events = POLLOUT};
    return poll(&wanted, 1, 0) == 1 && (wanted.revents & POLLOUT);
}

/* Descriptors that write to somebody else's file share its flags: the peer can make a call descriptor wait
 * again, fill it, and the ring's loop sleeps in its interrupt. A full eventfd that is emptied has room, and
 * is readable again as soon as the sleeper has written. */
static void event_fd_let_go(int fd)
{
    uint64_t count;
    struct iovec iov = {&count, sizeof count};
    int flags = fd >= 0 ? fcntl(fd, F_GETFL) : -1;
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || has_room(fd))
        return;
    /* The peer may change the flag at any time: not even this read relies on it. */
    if (preadv2(fd, &iov, 1, -1, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP &&
        read(fd, &count, sizeof count) < 0) {
        /* It was emptied by somebody else. */
    }
}

#define LET_GO_NS 5000000u

/* While a ring's loop is asked for something: any ring of that loop may hold it up, and the peer may do it
 * again. */
struct let_go {
    struct loop_timer timer;
    struct vhost_user_connection *connection;
};

static void let_go_again(void *opaque)
{
    struct let_go *l = opaque;
    rings_let_go(l->connection);
    loop_timer_arm(l->connection->channel.loop, &l->timer, world_now_ns() + LET_GO_NS);
}

static void let_go_begin(struct let_go *l, struct vhost_user_connection *c)
{
    *l = (struct let_go){.timer = {.fire = let_go_again, .opaque = l}, .connection = c};
    loop_timer_arm(c->channel.loop, &l->timer, world_now_ns() + LET_GO_NS);
}

static void let_go_end(struct let_go *l)
{
    loop_timer_cancel(&l->timer);
}

void event_fd_tell(int fd)
{
    uint64_t one = 1;
    int flags = fd >= 0 ? fcntl(fd, F_GETFL) : -1;
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || !has_room(fd) ||
        write(fd, &one, sizeof one) < 0) {
        /* Full, so it is readable already; or it takes nothing, which is the front end's choice. */
    }
}

/* Has the device stop a ring that it serves, for good or for a while. False: it served none. */
static bool coroutine_fn ring_halt(struct vhost_user_connection *c, unsigned index,
                                   void coroutine_fn (*halt)(struct virtio_blk *device, unsigned index,
                                                             uint16_t *avail, uint16_t *used))
{
    struct vring *r = &c->rings[index];
    struct let_go let_go;
    uint16_t avail = 0, used = 0;
    if (!r->runs)
        return false;
    let_go_begin(&let_go, c);
    halt(c->options->device, index, &avail, &used);
    let_go_end(&let_go);
    ring_was_at(c, r, avail, used);
    return true;
}

void coroutine_fn ring_pause(struct vhost_user_connection *c, unsigned index)
{
    if (ring_halt(c, index, virtio_blk_co_queue_pause))
        c->rings[index].paused = true;
}

/* What was parked over a pause is of no use to a ring that is set up anew. */
static void ring_forget_parked(struct vring *r)
{
    free(r->parking);
    r->parking = NULL;
}

void rings_forget_parked(struct vhost_user_connection *c)
{
    for (unsigned i = 0; i < c->options->num_queues; i++)
        ring_forget_parked(&c->rings[i]);
}

static void coroutine_fn ring_end(struct vhost_user_connection *c, unsigned index)
{
    ring_halt(c, index, virtio_blk_co_queue_stop);
}

/* To be set up or enabled again before it is served: nothing is left waiting but in the front end's inflight
 * region. */
static void coroutine_fn ring_stop(struct vhost_user_connection *c, unsigned index)
{
    ring_end(c, index);
    ring_forget_parked(&c->rings[index]);
}

void coroutine_fn rings_pause(struct vhost_user_connection *c)
{
    for (unsigned i = 0; i < c->options->num_queues; i++)
        ring_pause(c, i);
}

struct part {
    const char *name;
    uint64_t addr, bytes;
    unsigned align;
    bool writable;
};

/* Where it lies here. NULL with ERR; or with *MISS and no error: its translation has to be asked for. */
static void *ring_part(const struct vhost_user_connection *c, unsigned index, const struct part *part,
                       uint64_t *missing, bool *miss, struct error *err)
{
    if (part->addr % part->align != 0) {
        error_set(err, -EINVAL, "ring %u: %s at 0x%" PRIx64 " is not aligned to %u", index, part->name,
                  part->addr, part->align);
        return NULL;
    }
    void *p;
    if (c->iotlb) {
        *missing = UINT64_MAX;
        p = iotlb_ring_part(c, part->addr, part->bytes, part->writable, missing);
        *miss = !p && *missing != UINT64_MAX;
        if (*miss)
            return NULL;
    } else {
        p = guest_memory_user_pointer(c->memory, part->addr, part->bytes);
    }
    if (!p || (uintptr_t)p % part->align != 0) {
        error_set(err, -EFAULT,
                  "ring %u: %s at 0x%" PRIx64 " (%" PRIu64
                  " bytes) does not lie in one memory region (is the guest's memory shared? QEMU: share=on)",
                  index, part->name, part->addr, part->bytes);
        return NULL;
    }
    return p;
}

static int ring_check_base(const struct vring *r, unsigned index, bool packed, struct error *err)
{
    if (!packed && r->base > UINT16_MAX)
        return error_set(err, -EINVAL, "ring %u: base %u does not fit the 16 bits of an index", index,
                         r->base);
    if (!packed && (r->size & (r->size - 1)) != 0)
        return error_set(err, -EINVAL, "ring %u: size %u of a split ring is not a power of two", index,
                         r->size);
    if (packed && ((r->base & 0x7fff) >= r->size || (r->base >> 16 & 0x7fff) >= r->size))
        return error_set(err, -EINVAL, "ring %u: base 0x%x lies beyond its %u descriptors", index, r->base,
                         r->size);
    return 0;
}

static int coroutine_fn ring_run(struct vhost_user_connection *c, unsigned index, struct error *err)
{
    struct vring *r = &c->rings[index];
    bool packed = ring_packed(c);
    uint64_t n = r->size;
    int ret = ring_check_base(r, index, packed, err);
    if (ret < 0)
        return ret;

    struct virtio_blk_queue_setup setup = {
        .size = r->size,
        .packed = packed,
        .memory = c->iotlb ? c->iotlb : c->memory,
        .log_memory = c->memory,
        .last_avail_idx = (uint16_t)r->base,
        .last_used_idx = (uint16_t)(r->base >> 16),
        .kick_fd = r->kick_fd,
        .no_kicks = r->kick_fd < 0,
        .call_fd = r->call_fd,
        .goes_on = r->paused,
        .memory_broken = &c->memory_broken,
    };
    const uint64_t used_bytes = packed ? 16 * n : VIRTQ_USED_BYTES(n); /* what is logged as written */
    const struct part parts[2][3] = {
        {{"descriptor table", r->addr.desc_user_addr, VIRTQ_DESC_BYTES(n), VIRTQ_DESC_ALIGN, false},
         {"available ring", r->addr.avail_user_addr, VIRTQ_AVAIL_BYTES(n), VIRTQ_AVAIL_ALIGN, false},
         {"used ring", r->addr.used_user_addr, VIRTQ_USED_BYTES(n), VIRTQ_USED_ALIGN, true}},
        {{"descriptor ring", r->addr.desc_user_addr, 16 * n, VIRTQ_DESC_ALIGN, true},
         {"driver event area", r->addr.avail_user_addr, sizeof(struct virtq_packed_event),
          VIRTQ_PACKED_EVENT_ALIGN, false},
         {"device event area", r->addr.used_user_addr, sizeof(struct virtq_packed_event),
          VIRTQ_PACKED_EVENT_ALIGN, true}}};
    void **const places[3] = {&setup.desc, &setup.driver, &setup.device};
    for (unsigned i = 0; i < 3; i++) {
        const struct part *part = &parts[packed][i];
        bool miss = false;
        uint64_t missing;
        *places[i] = ring_part(c, index, part, &missing, &miss, err);
        if (miss) {
            connection_send_iotlb_miss(c, index, missing, part->writable);
            return 0; /* it runs when the answer is there */
        }
        if (!*places[i])
            return -EFAULT;
    }

    if ((c->features & VIRTIO_BIT(VHOST_F_LOG_ALL)) && c->log.data) {
        setup.log = c->log.data;
        setup.log_bytes = c->log.bytes;
        setup.log_used = r->addr.flags & VHOST_USER_VRING_F_LOG;
        setup.log_used_addr = r->addr.log_guest_addr;
        /* "the bit offset of the last byte of the ring must fall within the size supplied" */
        uint64_t end;
        if (setup.log_used && (__builtin_add_overflow(setup.log_used_addr, used_bytes - 1, &end) ||
                               end / VHOST_LOG_PAGE / 8 >= setup.log_bytes))
            return error_set(err, -EINVAL,
                             "ring %u: the used ring's log address 0x%" PRIx64 " lies beyond the log", index,
                             setup.log_used_addr);
    }
    if (c->inflight.data) {
        if (index >= c->inflight_queues || r->size > c->inflight_queue_size)
            return error_set(err, -EINVAL, "ring %u of %u: the inflight region is for %u rings of %u", index,
                             r->size, c->inflight_queues, c->inflight_queue_size);
        setup.inflight_bytes = inflight_queue_bytes(c->inflight_queue_size);
        setup.inflight = c->inflight.data + index * setup.inflight_bytes;
        if (r->base_set_anew)
            ring_inflight_begin_anew(packed, setup.inflight, setup.inflight_bytes);
    } else if (virtio_blk_may_park(c->options->device)) {
        setup.inflight_bytes = inflight_queue_bytes((uint16_t)r->size);
        if (!r->parking)
            r->parking = calloc(1, setup.inflight_bytes);
        if (!r->parking)
            return error_set(err, -ENOMEM, "ring %u: no memory for what the error policy parks", index);
        setup.inflight = r->parking;
        setup.inflight_own = true;
    }
    struct let_go let_go;
    let_go_begin(&let_go, c);
    ret = virtio_blk_co_queue_start(c->options->device, index, ring_loop(c, index), &setup, err);
    let_go_end(&let_go);
    if (ret < 0)
        return error_prefix(err, ret, "ring %u", index);
    r->runs = true;
    r->paused = false;
    r->base_told = r->base_set_anew = false;
    return 0;
}

void coroutine_fn rings_hand_on(struct vhost_user_connection *c)
{
    if (!c->taken)
        return;
    for (unsigned i = 0; i < c->options->num_queues; i++) {
        if (c->rings[i].runs || ring_wanted(c, &c->rings[i]))
            return;
    }
    c->taken = false;
    if (c->options->co_hand_on)
        c->options->co_hand_on(c->options->opaque);
}

int coroutine_fn rings_update(struct vhost_user_connection *c, struct error *err)
{
    for (unsigned i = 0; i < c->options->num_queues; i++) {
        struct vring *r = &c->rings[i];
        bool wanted = ring_wanted(c, r);
        if (r->runs && !wanted)
            ring_stop(c, i);
        if (r->runs || !wanted)
            continue;
        int ret = 0;
        if (!c->taken && c->options->co_take)
            ret = c->options->co_take(c->options->opaque, err);
        c->taken |= ret == 0;
        if (ret == 0)
            ret = ring_run(c, i, err);
        if (ret < 0)
            return ret;
    }
    rings_hand_on(c);
    return 0;
}

static void fd_replace(int *slot, int fd)
{
    if (*slot >= 0)
        close(*slot);
    *slot = fd;
}

void coroutine_fn rings_reset(struct vhost_user_connection *c)
{
    for (unsigned i = 0; i < c->options->num_queues; i++) {
        struct vring *r = &c->rings[i];
        ring_stop(c, i);
        /* BASE stays: QEMU 7.2 sets the status to 0 first and asks GET_VRING_BASE afterwards, when the guest
         * is stopped or migrated. Whoever starts the ring anew sets it. */
        fd_replace(&r->kick_fd, -1);
        *r = (struct vring){
            .base = r->base, .base_told = true, .kick_fd = -1, .call_fd = r->call_fd, .err_fd = r->err_fd};
    }
    rings_hand_on(c);
}

void coroutine_fn rings_stop(struct vhost_user_connection *c)
{
    for (unsigned i = 0; i < c->options->num_queues; i++) {
        ring_stop(c, i);
        c->rings[i].started = false;
    }
    rings_hand_on(c);
}

void rings_let_go(struct vhost_user_connection *c)
{
    for (unsigned i = 0; i < c->options->num_queues; i++)
        event_fd_let_go(c->rings[i].call_fd);
}

void rings_close_fds(struct vhost_user_connection *c)
{
    for (unsigned i = 0; i < VIRTIO_BLK_QUEUES_MAX; i++) {
        fd_replace(&c->rings[i].kick_fd, -1);
        fd_replace(&c->rings[i].call_fd, -1);
        fd_replace(&c->rings[i].err_fd, -1);
    }
}

int coroutine_fn handle_set_vring_num(struct vhost_user_connection *c, struct vhost_user_message *m,
                                      struct vhost_user_message *reply, struct error *err)
{
    uint32_t index = m->payload.state.index, num = m->payload.state.num;
    if (num < 1 || num > c->options->queue_size_max)
        return error_set(err, -EINVAL,
                         "ring %u: size %u is not 1 to %u (a larger one can be allowed by --queue-size)",
                         index, num, c->options->queue_size_max);
    ring_forget_parked(&c->rings[index]);
    c->rings[index].size = num;
    return rings_update(c, err);
}

int coroutine_fn handle_set_vring_addr(struct vhost_user_connection *c, struct vhost_user_message *m,
                                       struct vhost_user_message *reply, struct error *err)
{
    const struct vhost_user_vring_addr *addr = &m->payload.addr;
    if (addr->flags & ~VHOST_USER_VRING_F_LOG)
        return error_set(err, -EINVAL, "ring %u: unknown flags 0x%x in SET_VRING_ADDR", addr->index,
                         addr->flags);
    ring_pause(c, addr->index);
    c->rings[addr->index].addr = *addr;
    c->rings[addr->index].has_addr = true;
    return rings_update(c, err);
}

int coroutine_fn handle_set_vring_base(struct vhost_user_connection *c, struct vhost_user_message *m,
                                       struct vhost_user_message *reply, struct error *err)
{
    struct vring *r = &c->rings[m->payload.state.index];
    ring_forget_parked(r);
    r->base = m->payload.state.num;
    r->base_set_anew = r->base_told;
    return 0;
}

/* Where the options do not say translation_wait_ns. */
#define TRANSLATION_WAIT_NS 1000000000u

/* A ring that stops fails what the error policy has parked, and needs its descriptors and buffers for that.
 * Behind an IOMMU it may wait for their translations, and the front end, which waits for us now, is asked for
 * them all the same: QEMU answers meanwhile. */
static int coroutine_fn ring_stop_translated(struct vhost_user_connection *c, unsigned index,
                                             struct error *err)
{
    uint64_t wait_ns = c->options->translation_wait_ns, deadline;
    struct vring *r = &c->rings[index];
    struct vhost_user_message message, reply;
    uint32_t request;

    if (!c->iotlb || !r->parking || !ring_wanted(c, r)) {
        ring_stop(c, index);
        return 0;
    }
    deadline = world_now_ns() + (wait_ns ? wait_ns : TRANSLATION_WAIT_NS);
    for (;;) {
        ring_end(c, index);
        if (!ring_inflight_any(ring_packed(c), r->parking, r->size))
            break;
        /* What has its translations by now is failed at the next turn; the rest is asked for. */
        int ret = ring_run(c, index, err);
        if (ret < 0)
            return ret;
        ret = channel_co_peek(&c->channel, &request, deadline);
        if (ret > 0 && request == VHOST_USER_IOTLB_MSG)
            ret = connection_co_take(c, &message, &reply, err);
        else if (ret >= 0) {
            log_message("ring %u: parked requests are lost, the front end has stopped the ring and does not "
                        "tell where they are",
                        index);
            break;
        }
        if (ret <= 0)
            return ret < 0 ? ret : -ECANCELED;
    }
    ring_stop(c, index);
    return 0;
}

int coroutine_fn handle_get_vring_base(struct vhost_user_connection *c, struct vhost_user_message *m,
                                       struct vhost_user_message *reply, struct error *err)
{
    uint32_t index = m->payload.state.index;
    struct vring *r = &c->rings[index];
    int ret = ring_stop_translated(c, index, err);
    if (ret < 0)
        return ret;
    r->started = false;
    r->broken = false;
    r->base_told = true;
    /* A kick that comes late must not start it again: only SET_VRING_KICK does. */
    fd_replace(&r->kick_fd, -1);
    /* Before the answer: whoever hears it may start the other process. */
    rings_hand_on(c);
    reply->payload.state = (struct vhost_user_vring_state){.index = index, .num = r->base};
    reply->header.size = sizeof reply->payload.state;
    return 0;
}

/* An eventfd or a pipe, made non-blocking: a descriptor that somebody else empties or fills must not hold up
 * an iothread. -1 for "no descriptor came along". */
static int take_event_fd(struct vhost_user_message *m, const char *what, int *fd, struct error *err)
{
    struct stat st;
    *fd = -1;
    if (m->nfds == 0)
        return 0;
    if (fstat(m->fds[0], &st) < 0 || ((st.st_mode & S_IFMT) != 0 && !S_ISFIFO(st.st_mode)))
        return error_set(err, -EINVAL, "%s: the descriptor is neither an eventfd nor a pipe", what);
    int flags = fcntl(m->fds[0], F_GETFL);
    if (flags < 0 || fcntl(m->fds[0], F_SETFL, flags | O_NONBLOCK) < 0)
        return error_set(err, -errno, "%s: the descriptor can't be made non-blocking: %s", what,
                         strerror(errno));
    *fd = m->fds[0];
    m->fds[0] = -1;
    return 0;
}

int coroutine_fn handle_set_vring_kick(struct vhost_user_connection *c, struct vhost_user_message *m,
                                       struct vhost_user_message *reply, struct error *err)
{
    unsigned index = m->payload.u64 & VHOST_USER_VRING_IDX_MASK;
    struct vring *r = &c->rings[index];
    int fd;
    int ret = take_event_fd(m, "SET_VRING_KICK", &fd, err);
    if (ret < 0)
        return ret;
    ring_pause(c, index);
    fd_replace(&r->kick_fd, fd);
    r->started = true;
    r->broken = false;
    return rings_update(c, err);
}

int coroutine_fn handle_set_vring_call(struct vhost_user_connection *c, struct vhost_user_message *m,
                                       struct vhost_user_message *reply, struct error *err)
{
    unsigned index = m->payload.u64 & VHOST_USER_VRING_IDX_MASK;
    struct vring *r = &c->rings[index];
    struct let_go let_go;
    int fd;
    int ret = take_event_fd(m, "SET_VRING_CALL", &fd, err);
    if (ret < 0)
        return ret;
    if (r->runs) {
        let_go_begin(&let_go, c);
        virtio_blk_co_queue_set_call(c->options->device, index, fd);
        let_go_end(&let_go);
        /* What completed while there was no descriptor would never be told: one interrupt too many is
         * allowed. */
        event_fd_tell(fd);
    }
    r->paused = false;
    fd_replace(&r->call_fd, fd);
    return 0;
}

int coroutine_fn handle_set_vring_err(struct vhost_user_connection *c, struct vhost_user_message *m,
                                      struct vhost_user_message *reply, struct error *err)
{
    int fd;
    int ret = take_event_fd(m, "SET_VRING_ERR", &fd, err);
    if (ret < 0)
        return ret;
    fd_replace(&c->rings[m->payload.u64 & VHOST_USER_VRING_IDX_MASK].err_fd, fd);
    return 0;
}

int coroutine_fn handle_set_vring_enable(struct vhost_user_connection *c, struct vhost_user_message *m,
                                         struct vhost_user_message *reply, struct error *err)
{
    if (m->payload.state.num > 1)
        return error_set(err, -EINVAL, "ring %u: SET_VRING_ENABLE with %u, not 0 or 1",
                         m->payload.state.index, m->payload.state.num);
    c->rings[m->payload.state.index].enabled = m->payload.state.num;
    return rings_update(c, err);
}
