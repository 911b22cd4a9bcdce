/*
 * The vhost-user transport: see vtr_vhost_user.h. The sequence of messages follows "Vhost-user Protocol",
 * "Starting and stopping rings" and "Inflight I/O tracking"; the table of register operations is at the end.
 */
#include "guest/platform/hosted/vtr_vhost_user.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/virtio.h"
#include "common/virtio_blk.h"
#include "common/virtio_ring.h"
#include "guest/driver/vblk.h"

#define TRANSPORT_BITS (VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES) | VIRTIO_BIT(VHOST_F_LOG_ALL))
#define PROTOCOL_WANTED                                                                                  \
    (VIRTIO_BIT(VHOST_USER_PROTOCOL_F_MQ) | VIRTIO_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |                \
     VIRTIO_BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIG) |          \
     VIRTIO_BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) | VIRTIO_BIT(VHOST_USER_PROTOCOL_F_RESET_DEVICE) | \
     VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) | VIRTIO_BIT(VHOST_USER_PROTOCOL_F_STATUS))

static const struct vtr_ops vtr_vhost_user_ops;

static struct vtr_vhost_user *of(struct vtr *vtr)
{
    return (struct vtr_vhost_user *)vtr; /* vtr is its first member */
}

static bool has_protocol(const struct vtr_vhost_user *t, unsigned bit)
{
    return t->protocol_features & VIRTIO_BIT(bit);
}

/* Any failure of the socket means that the device has gone, until a reconnect says otherwise. */
static int checked(struct vtr_vhost_user *t, int code)
{
    if (code < 0 && code != -EIO)
        t->gone = true;
    return code;
}

/* ---- configuration ---- */

/* As long as the last field that an offered feature may use: some back ends refuse to be asked for more. */
static unsigned config_wanted(const struct vtr_vhost_user *t)
{
    if (t->device_features & VIRTIO_BIT(VIRTIO_BLK_F_ZONED))
        return sizeof(struct virtio_blk_config);
    if (t->device_features & VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE))
        return offsetof(struct virtio_blk_config, zoned);
    return offsetof(struct virtio_blk_config, max_secure_erase_sectors);
}

static int config_fetch(struct vtr_vhost_user *t)
{
    struct vhost_user_config config = {.size = config_wanted(t)};
    struct vhost_user_config reply;
    uint32_t bytes = VHOST_USER_CONFIG_HEADER_BYTES + config.size;
    int code;

    t->config_stale = false;
    if (!has_protocol(t, VHOST_USER_PROTOCOL_F_CONFIG)) {
        snprintf(t->front.error, sizeof(t->front.error),
                 "the back end has no configuration to read (CONFIG)");
        return -EOPNOTSUPP;
    }
    code = checked(t, vhost_user_front_call(&t->front, VHOST_USER_GET_CONFIG, &config, bytes, &reply,
                                            sizeof(reply), NULL));
    if (code < 0)
        return code;
    if (code != (int)bytes || reply.size != config.size) {
        snprintf(t->front.error, sizeof(t->front.error),
                 "the back end answered GET_CONFIG of %u bytes with %d bytes of payload", config.size, code);
        return -EPROTO;
    }
    if (t->config_bytes && memcmp(t->config, reply.region, config.size) != 0)
        t->config_generation++;
    memcpy(t->config, reply.region, config.size);
    t->config_bytes = config.size;
    return 0;
}

/* ---- connecting ---- */

static int send_backend_channel(struct vtr_vhost_user *t)
{
    int pair[2], code;

    if (!has_protocol(t, VHOST_USER_PROTOCOL_F_BACKEND_REQ))
        return 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    if (t->backend_fd >= 0)
        close(t->backend_fd);
    t->backend_fd = pair[0];
    code = vhost_user_front_set(&t->front, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1);
    close(pair[1]);
    return code;
}

static int negotiate_protocol(struct vtr_vhost_user *t)
{
    uint64_t offered, queues = 1;
    int code = vhost_user_front_get_u64(&t->front, VHOST_USER_GET_FEATURES, &offered);

    if (code < 0)
        return code;
    t->transport_features = offered & TRANSPORT_BITS;
    t->device_features = offered & ~TRANSPORT_BITS;
    t->protocol_features = 0;
    t->front.protocol_features = 0;
    if (offered & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES)) {
        uint64_t protocol;

        code = vhost_user_front_get_u64(&t->front, VHOST_USER_GET_PROTOCOL_FEATURES, &protocol);
        if (code < 0)
            return code;
        protocol &= PROTOCOL_WANTED & ~t->options.refuse_protocol;
        code = vhost_user_front_set_u64(&t->front, VHOST_USER_SET_PROTOCOL_FEATURES, protocol, -1);
        if (code < 0)
            return code;
        t->protocol_features = protocol;
        t->front.protocol_features = protocol;
    }
    code = vhost_user_front_set(&t->front, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
    if (code == 0 && has_protocol(t, VHOST_USER_PROTOCOL_F_MQ))
        code = vhost_user_front_get_u64(&t->front, VHOST_USER_GET_QUEUE_NUM, &queues);
    if (code < 0)
        return code;
    t->num_queues = queues < HOSTED_QUEUES_MAX ? (unsigned)queues : HOSTED_QUEUES_MAX;
    if (t->options.max_queues && t->num_queues > t->options.max_queues)
        t->num_queues = t->options.max_queues;
    return send_backend_channel(t);
}

int vtr_vhost_user_open(struct vtr_vhost_user *t, struct hosted *hosted,
                        const struct vtr_vhost_user_options *options)
{
    int code;

    memset(t, 0, sizeof(*t));
    t->vtr.ops = &vtr_vhost_user_ops;
    t->options = *options;
    t->hosted = hosted;
    t->backend_fd = -1;
    t->inflight_fd = -1;
    for (unsigned i = 0; i < HOSTED_QUEUES_MAX; i++)
        t->queues[i].kick_fd = t->queues[i].call_fd = t->queues[i].err_fd = -1;
    pthread_mutex_init(&t->lock, NULL);
    vhost_user_front_init(&t->front, options->path ? -1 : options->fd, options->message_ms);
    if (options->path) {
        code = vhost_user_front_connect(&t->front, options->path,
                                        options->connect_ms ? options->connect_ms : 5000);
        if (code < 0)
            return code;
    }
    code = negotiate_protocol(t);
    return code < 0 ? code : config_fetch(t);
}

/* ---- memory ---- */

static void region_describe(const struct hosted_region *from, struct vhost_user_memory_region *to)
{
    to->guest_addr = from->guest_addr;
    to->size = from->bytes;
    to->user_addr = (uintptr_t)from->mem;
    to->mmap_offset = from->fd_offset;
}

static int memory_set(struct vtr_vhost_user *t)
{
    struct vhost_user_memory table = {.num_regions = t->hosted->region_count};
    int fds[HOSTED_REGIONS_MAX], code = 0;

    if (t->options.add_mem_regions && has_protocol(t, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
        for (unsigned i = 0; i < t->hosted->region_count && code == 0; i++) {
            struct vhost_user_single_region single = {0};

            region_describe(&t->hosted->regions[i], &single.region);
            code = vhost_user_front_set(&t->front, VHOST_USER_ADD_MEM_REG, &single, sizeof(single),
                                        &t->hosted->regions[i].fd, 1);
        }
        return code;
    }
    for (unsigned i = 0; i < t->hosted->region_count; i++) {
        region_describe(&t->hosted->regions[i], &table.regions[i]);
        fds[i] = t->hosted->regions[i].fd;
    }
    return vhost_user_front_set(&t->front, VHOST_USER_SET_MEM_TABLE, &table,
                                (uint32_t)(offsetof(struct vhost_user_memory, regions) +
                                           sizeof(table.regions[0]) * table.num_regions),
                                fds, table.num_regions);
}

/* ---- the inflight region ---- */

static void inflight_drop(struct vtr_vhost_user *t)
{
    if (t->inflight_fd >= 0)
        close(t->inflight_fd);
    t->inflight_fd = -1;
}

/* The first time the back end makes it; after a reconnect it gets back what its predecessor wrote. */
static int inflight_set(struct vtr_vhost_user *t)
{
    unsigned count = 0, size = 0;
    int code;

    if (!t->options.inflight || !has_protocol(t, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD))
        return 0;
    if (t->inflight_fd < 0) {
        struct vhost_user_inflight wanted = {0};

        for (unsigned i = 0; i < t->num_queues; i++)
            if (t->queues[i].set_up) {
                count = i + 1;
                size = t->queues[i].setup.size > size ? t->queues[i].setup.size : size;
            }
        wanted.num_queues = (uint16_t)count;
        wanted.queue_size = (uint16_t)size;
        code = vhost_user_front_call(&t->front, VHOST_USER_GET_INFLIGHT_FD, &wanted, sizeof(wanted),
                                     &t->inflight, sizeof(t->inflight), &t->inflight_fd);
        if (code < 0)
            return code;
        if (t->inflight_fd < 0)
            return 0; /* the back end does without */
        t->inflight.num_queues = (uint16_t)count;
        t->inflight.queue_size = (uint16_t)size;
    }
    return vhost_user_front_set(&t->front, VHOST_USER_SET_INFLIGHT_FD, &t->inflight, sizeof(t->inflight),
                                &t->inflight_fd, 1);
}

/* ---- rings ---- */

static uint64_t user_addr(const struct vtr_vhost_user *t, vblk_dma_addr addr)
{
    return (uintptr_t)hosted_pointer(t->hosted, addr.value, 1);
}

static bool is_packed(const struct vtr_vhost_user *t)
{
    return t->driver_features & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
}

/* Where the back end goes on: at the start for a fresh ring; after a reconnect where the used ring says that
 * its predecessor was (what it had taken beyond that is in the inflight region, or is taken again). */
static uint32_t ring_base(const struct vtr_vhost_user *t, const struct vtr_vhost_user_queue *queue,
                          bool again)
{
    const struct virtq_used *used;

    if (is_packed(t))
        return 0x80008000u;
    used = hosted_pointer(t->hosted, queue->setup.device.value, sizeof(*used));
    return again && used ? le16_load_acquire(&used->idx) : 0;
}

static int ring_start(struct vtr_vhost_user *t, unsigned index, bool again)
{
    struct vtr_vhost_user_queue *queue = &t->queues[index];
    struct vhost_user_vring_state number = {index, queue->setup.size};
    struct vhost_user_vring_state base = {index, ring_base(t, queue, again)};
    struct vhost_user_vring_state enable = {index, 1};
    struct vhost_user_vring_addr addr = {
        .index = index,
        .desc_user_addr = user_addr(t, queue->setup.desc),
        .avail_user_addr = user_addr(t, queue->setup.driver),
        .used_user_addr = user_addr(t, queue->setup.device),
    };
    int code = vhost_user_front_set(&t->front, VHOST_USER_SET_VRING_NUM, &number, sizeof(number), NULL, 0);

    if (code == 0)
        code = vhost_user_front_set(&t->front, VHOST_USER_SET_VRING_BASE, &base, sizeof(base), NULL, 0);
    if (code == 0)
        code = vhost_user_front_set(&t->front, VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
    if (code == 0)
        code = vhost_user_front_set_u64(&t->front, VHOST_USER_SET_VRING_ERR, index, queue->err_fd);
    if (code == 0)
        code = vhost_user_front_set_u64(&t->front, VHOST_USER_SET_VRING_CALL, index, queue->call_fd);
    if (code == 0)
        code = vhost_user_front_set_u64(&t->front, VHOST_USER_SET_VRING_KICK, index, queue->kick_fd);
    if (code == 0 && (t->transport_features & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
        code = vhost_user_front_set(&t->front, VHOST_USER_SET_VRING_ENABLE, &enable, sizeof(enable), NULL, 0);
    queue->started = code == 0;
    return code;
}

static void ring_stop(struct vtr_vhost_user *t, unsigned index)
{
    struct vhost_user_vring_state state = {index, 0}, base;

    if (!t->queues[index].started)
        return;
    t->queues[index].started = false;
    if (!t->gone)
        checked(t, vhost_user_front_call(&t->front, VHOST_USER_GET_VRING_BASE, &state, sizeof(state), &base,
                                         sizeof(base), NULL));
}

static int send_features(struct vtr_vhost_user *t)
{
    uint64_t own = t->transport_features & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES);

    return vhost_user_front_set_u64(&t->front, VHOST_USER_SET_FEATURES, t->driver_features | own, -1);
}

static void send_status(struct vtr_vhost_user *t, uint8_t status)
{
    if (has_protocol(t, VHOST_USER_PROTOCOL_F_STATUS) && !t->gone)
        checked(t, vhost_user_front_set_u64(&t->front, VHOST_USER_SET_STATUS, status, -1));
}

/* Everything that a back end must know before it serves: what DRIVER_OK means over vhost-user. */
static int go_live(struct vtr_vhost_user *t, bool again)
{
    int code = memory_set(t);

    if (code == 0)
        code = inflight_set(t);
    for (unsigned i = 0; i < t->num_queues && code == 0; i++)
        if (t->queues[i].set_up)
            code = ring_start(t, i, again);
    if (code < 0) {
        t->gone = true;
        return code;
    }
    t->live = true;
    send_status(t, t->status);
    return 0;
}

static void queue_close_fds(struct vtr_vhost_user *t, unsigned index)
{
    int *fds[] = {&t->queues[index].kick_fd, &t->queues[index].call_fd, &t->queues[index].err_fd};

    hosted_set_call_fd(t->hosted, index, -1);
    for (unsigned i = 0; i < 3; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}

/* ---- the end of a connection, and a new one ---- */

static int connect_again(struct vtr_vhost_user *t, unsigned timeout_ms)
{
    uint64_t before = t->device_features;
    int code;

    vhost_user_front_close(&t->front);
    for (unsigned i = 0; i < t->num_queues; i++)
        t->queues[i].started = false;
    code = vhost_user_front_connect(&t->front, t->options.path, timeout_ms);
    if (code == 0)
        code = negotiate_protocol(t);
    if (code < 0)
        return code;
    if (t->live && (t->driver_features & ~t->device_features)) {
        snprintf(t->front.error, sizeof(t->front.error),
                 "the back end came back with features %#llx and without %#llx, which are in use",
                 (unsigned long long)t->device_features,
                 (unsigned long long)(t->driver_features & ~t->device_features));
        t->device_features = before;
        return -EPROTO;
    }
    t->gone = false;
    t->reconnects++;
    t->config_stale = true;
    t->config_pending = true;
    if (!t->live)
        return 0;
    code = send_features(t);
    if (code == 0)
        code = go_live(t, true);
    if (code < 0)
        return code;
    /* What was kicked while nobody listened */
    for (unsigned i = 0; i < t->num_queues; i++)
        if (t->queues[i].set_up)
            eventfd_write(t->queues[i].kick_fd, 1);
    return 0;
}

static bool err_fd_fired(struct vtr_vhost_user *t)
{
    eventfd_t count;
    bool fired = false;

    for (unsigned i = 0; i < t->num_queues; i++)
        if (t->queues[i].err_fd >= 0 && eventfd_read(t->queues[i].err_fd, &count) == 0)
            fired = true;
    return fired;
}

static bool backend_message(struct vtr_vhost_user *t)
{
    struct vhost_user_front channel;
    struct vhost_user_header header;
    union vhost_user_payload payload;
    uint64_t done = 0;
    int code;

    vhost_user_front_init(&channel, t->backend_fd, 1000);
    code = vhost_user_front_receive(&channel, &header, &payload, sizeof(payload), NULL);
    if (code < 0) {
        close(t->backend_fd);
        t->backend_fd = -1;
        return false;
    }
    if (header.request != VHOST_USER_BACKEND_CONFIG_CHANGE_MSG)
        done = 1;
    if (header.flags & VHOST_USER_NEED_REPLY_MASK)
        vhost_user_front_send(&channel, header.request, VHOST_USER_REPLY_MASK, &done, sizeof(done), NULL, 0);
    if (done)
        return false;
    t->config_stale = true;
    t->config_pending = true;
    return true;
}

bool vtr_vhost_user_service(struct vtr_vhost_user *t, int timeout_ms)
{
    struct pollfd wait[2 + HOSTED_QUEUES_MAX];
    unsigned n = 0;
    bool news = false;

    if (t->gone && !t->options.reconnect)
        return false;
    pthread_mutex_lock(&t->lock);
    if (t->gone) {
        if (connect_again(t, (unsigned)timeout_ms) < 0)
            t->gone = true;
        pthread_mutex_unlock(&t->lock);
        return false;
    }
    wait[n++] = (struct pollfd){.fd = t->front.fd, .events = POLLRDHUP};
    wait[n++] = (struct pollfd){.fd = t->backend_fd, .events = POLLIN};
    for (unsigned i = 0; i < t->num_queues; i++)
        wait[n++] = (struct pollfd){.fd = t->queues[i].err_fd, .events = POLLIN};
    pthread_mutex_unlock(&t->lock);

    if (poll(wait, n, timeout_ms) <= 0)
        return false;

    pthread_mutex_lock(&t->lock);
    if (wait[1].revents)
        news |= backend_message(t);
    if (err_fd_fired(t)) {
        t->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
        t->config_pending = true;
        news = true;
    }
    if (wait[0].revents) {
        t->gone = true;
        news |= !t->options.reconnect;
    }
    pthread_mutex_unlock(&t->lock);
    return news;
}

void vtr_vhost_user_close(struct vtr_vhost_user *t)
{
    for (unsigned i = 0; i < HOSTED_QUEUES_MAX; i++) {
        if (t->front.fd >= 0)
            ring_stop(t, i);
        queue_close_fds(t, i);
    }
    vhost_user_front_close(&t->front);
    if (t->backend_fd >= 0)
        close(t->backend_fd);
    t->backend_fd = -1;
    inflight_drop(t);
    pthread_mutex_destroy(&t->lock);
}

/* ---- registers, as the driver sees them ---- */

#define SWAPPED (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_SUSPEND)

static uint8_t op_get_status(struct vtr *vtr)
{
    struct vtr_vhost_user *t = of(vtr);
    uint64_t status = 0;
    uint8_t result;

    pthread_mutex_lock(&t->lock);
    if (t->live && err_fd_fired(t))
        t->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    /* FEATURES_OK and NEEDS_RESET are the device's to say, where it has a status at all. */
    if (!t->gone && t->status && has_protocol(t, VHOST_USER_PROTOCOL_F_STATUS) &&
        checked(t, vhost_user_front_get_u64(&t->front, VHOST_USER_GET_STATUS, &status)) == 0) {
        if (!(status & VIRTIO_STATUS_FEATURES_OK))
            t->status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
        t->status |= status & VIRTIO_STATUS_DEVICE_NEEDS_RESET;
        /* So is which of these two is set (3.4.2). */
        if (t->live && (t->driver_features & VIRTIO_BIT(VIRTIO_F_SUSPEND)))
            t->status = (uint8_t)((t->status & ~SWAPPED) | (status & SWAPPED));
    }
    /* A device that has gone reads as all ones, as an unplugged one does on a real bus. */
    result = t->gone && !t->options.reconnect && t->status ? 0xff : t->status;
    pthread_mutex_unlock(&t->lock);
    return result;
}

static void device_reset(struct vtr_vhost_user *t)
{
    for (unsigned i = 0; i < t->num_queues; i++) {
        ring_stop(t, i);
        t->queues[i].set_up = false;
        queue_close_fds(t, i);
    }
    if (t->live && !t->gone && has_protocol(t, VHOST_USER_PROTOCOL_F_RESET_DEVICE))
        checked(t, vhost_user_front_set(&t->front, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0));
    send_status(t, 0);
    t->live = false;
    t->driver_features = 0;
    t->config_pending = false;
    inflight_drop(t);
    if (t->gone && t->options.path &&
        connect_again(t, t->options.connect_ms ? t->options.connect_ms : 5000) < 0)
        t->gone = true;
}

static void op_set_status(struct vtr *vtr, uint8_t status)
{
    struct vtr_vhost_user *t = of(vtr);
    uint8_t before;

    pthread_mutex_lock(&t->lock);
    before = t->status;
    if (status == 0) {
        device_reset(t);
        t->status = 0;
        pthread_mutex_unlock(&t->lock);
        return;
    }
    t->status = status;
    if ((status & VIRTIO_STATUS_FEATURES_OK) && !(before & VIRTIO_STATUS_FEATURES_OK) &&
        (t->gone || checked(t, send_features(t)) < 0))
        t->status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    if ((status & VIRTIO_STATUS_DRIVER_OK) && !(before & VIRTIO_STATUS_DRIVER_OK) && !t->live) {
        if (!t->gone && go_live(t, false) < 0)
            t->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    } else {
        send_status(t, t->status);
    }
    pthread_mutex_unlock(&t->lock);
}

static uint64_t op_get_features(struct vtr *vtr)
{
    struct vtr_vhost_user *t = of(vtr);

    /* Who has no status can't be suspended. */
    return has_protocol(t, VHOST_USER_PROTOCOL_F_STATUS) ? t->device_features
                                                         : t->device_features & ~VIRTIO_BIT(VIRTIO_F_SUSPEND);
}

static void op_set_features(struct vtr *vtr, uint64_t features)
{
    of(vtr)->driver_features = features; /* sent when FEATURES_OK is set */
}

static void config_refresh(struct vtr_vhost_user *t)
{
    if (t->config_stale && !t->gone)
        config_fetch(t);
}

static uint32_t op_config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    struct vtr_vhost_user *t = of(vtr);
    uint32_t value = 0;

    pthread_mutex_lock(&t->lock);
    config_refresh(t);
    for (unsigned i = 0; i < width && i < sizeof(value) && offset + i < t->config_bytes; i++)
        value |= (uint32_t)t->config[offset + i] << (8 * i);
    pthread_mutex_unlock(&t->lock);
    return value;
}

static void op_config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
    struct vtr_vhost_user *t = of(vtr);
    struct vhost_user_config config = {.offset = offset, .size = width};

    for (unsigned i = 0; i < width && i < sizeof(value); i++)
        config.region[i] = (uint8_t)(value >> (8 * i));
    pthread_mutex_lock(&t->lock);
    if (!t->gone && has_protocol(t, VHOST_USER_PROTOCOL_F_CONFIG))
        checked(t, vhost_user_front_set(&t->front, VHOST_USER_SET_CONFIG, &config,
                                        VHOST_USER_CONFIG_HEADER_BYTES + width, NULL, 0));
    t->config_stale = true;
    pthread_mutex_unlock(&t->lock);
}

static uint32_t op_config_generation(struct vtr *vtr)
{
    struct vtr_vhost_user *t = of(vtr);
    uint32_t generation;

    pthread_mutex_lock(&t->lock);
    config_refresh(t);
    generation = t->config_generation;
    pthread_mutex_unlock(&t->lock);
    return generation;
}

static unsigned op_config_bytes(struct vtr *vtr)
{
    return of(vtr)->config_bytes;
}

static unsigned op_num_queues(struct vtr *vtr)
{
    return of(vtr)->num_queues;
}

static unsigned op_queue_size_max(struct vtr *vtr, unsigned index)
{
    const struct vtr_vhost_user *t = of(vtr);

    if (index >= t->num_queues)
        return 0;
    return t->options.queue_size_max ? t->options.queue_size_max : 256;
}

static int op_queue_enable(struct vtr *vtr, const struct vtr_queue *setup)
{
    struct vtr_vhost_user *t = of(vtr);
    struct vtr_vhost_user_queue *queue;
    int code = 0;

    if (setup->index >= t->num_queues)
        return -VBLK_ENODEV;
    queue = &t->queues[setup->index];
    pthread_mutex_lock(&t->lock);
    if (queue->set_up) {
        code = -VBLK_EBUSY;
    } else {
        queue->setup = *setup;
        queue->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        queue->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        queue->err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        queue->set_up = true;
        if (queue->kick_fd < 0 || queue->call_fd < 0 || queue->err_fd < 0)
            code = -VBLK_ENOMEM;
        hosted_set_call_fd(t->hosted, setup->index, queue->call_fd);
        if (code == 0 && t->live && (t->gone || checked(t, ring_start(t, setup->index, false)) < 0))
            code = -VBLK_ENODEV;
    }
    pthread_mutex_unlock(&t->lock);
    return code;
}

static void op_queue_reset(struct vtr *vtr, unsigned index)
{
    struct vtr_vhost_user *t = of(vtr);

    if (index >= t->num_queues)
        return;
    pthread_mutex_lock(&t->lock);
    ring_stop(t, index);
    t->queues[index].set_up = false;
    queue_close_fds(t, index);
    pthread_mutex_unlock(&t->lock);
}

static bool op_queue_is_reset(struct vtr *vtr, unsigned index)
{
    return index >= of(vtr)->num_queues || !of(vtr)->queues[index].set_up;
}

static void op_notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
    if (index < HOSTED_QUEUES_MAX)
        eventfd_write(of(vtr)->queues[index].kick_fd, 1);
}

static uint8_t op_interrupt_status(struct vtr *vtr)
{
    struct vtr_vhost_user *t = of(vtr);
    uint8_t pending;

    pthread_mutex_lock(&t->lock);
    pending = t->config_pending ? 3 : 1;
    t->config_pending = false;
    pthread_mutex_unlock(&t->lock);
    return pending;
}

static const struct vtr_ops vtr_vhost_user_ops = {
    .name = "vhost-user",
    .carries = VIRTIO_BIT(VIRTIO_F_RING_RESET),
    .get_status = op_get_status,
    .set_status = op_set_status,
    .get_features = op_get_features,
    .set_features = op_set_features,
    .config_read = op_config_read,
    .config_write = op_config_write,
    .config_generation = op_config_generation,
    .config_bytes = op_config_bytes,
    .num_queues = op_num_queues,
    .queue_size_max = op_queue_size_max,
    .queue_enable = op_queue_enable,
    .queue_reset = op_queue_reset,
    .queue_is_reset = op_queue_is_reset,
    .notify = op_notify,
    .interrupt_status = op_interrupt_status,
};
