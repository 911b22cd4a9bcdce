/* A front end that writes rings by hand: see bed.h. */
#include "tests/harness/bed.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BED_ARENA_BYTES (24u << 20)

uint64_t bed_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void bed_sleep_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

/* A full barrier: what was written to the ring before what is read or kicked after (2.7.13.3.1). A sanitizer
 * that knows no fences is told of an exchange with itself. */
void bed_fence(void)
{
    static uint32_t word;

    (void)__atomic_exchange_n(&word, 1, __ATOMIC_SEQ_CST);
#if !defined(__SANITIZE_THREAD__)
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

void *bed_alloc(struct bed *bed, size_t bytes)
{
    return hosted_alloc(bed->hosted, bytes, 64);
}

uint64_t bed_addr(const struct bed *bed, const void *mem)
{
    return hosted_guest_addr(bed->hosted, mem);
}

/* ---- setting up ---- */

static int negotiate(struct bed *bed, const struct bed_options *options)
{
    const uint64_t own = VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES);
    struct vhost_user_config want = {.size = offsetof(struct virtio_blk_config, max_secure_erase_sectors)},
                             got;
    uint64_t offered;
    int code = vhost_user_front_get_u64(&bed->front, VHOST_USER_GET_FEATURES, &offered);

    if (code < 0)
        return code;
    bed->transport_bits = offered & (own | VIRTIO_BIT(VHOST_F_LOG_ALL));
    bed->offered = offered & ~bed->transport_bits;
    if (offered & own) {
        code =
            vhost_user_front_get_u64(&bed->front, VHOST_USER_GET_PROTOCOL_FEATURES, &bed->protocol_offered);
        if (code < 0)
            return code;
        bed->protocol =
            bed->protocol_offered & ~options->not_protocol &
            (VIRTIO_BIT(VHOST_USER_PROTOCOL_F_MQ) | VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIG) |
             VIRTIO_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) | VIRTIO_BIT(VHOST_USER_PROTOCOL_F_STATUS) |
             VIRTIO_BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) |
             VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
             VIRTIO_BIT(VHOST_USER_PROTOCOL_F_RESET_DEVICE) | VIRTIO_BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ) |
             VIRTIO_BIT(VHOST_USER_PROTOCOL_F_LOG_SHMFD));
        code = vhost_user_front_set_u64(&bed->front, VHOST_USER_SET_PROTOCOL_FEATURES, bed->protocol, -1);
        if (code < 0)
            return code;
        bed->front.protocol_features = bed->protocol;
    }
    code = vhost_user_front_set(&bed->front, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
    if (code == 0 && (bed->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIG))) {
        if (bed->offered & VIRTIO_BIT(VIRTIO_BLK_F_SECURE_ERASE))
            want.size = offsetof(struct virtio_blk_config, zoned);
        if (bed->offered & VIRTIO_BIT(VIRTIO_BLK_F_ZONED))
            want.size = sizeof(struct virtio_blk_config);
        code = vhost_user_front_call(&bed->front, VHOST_USER_GET_CONFIG, &want,
                                     VHOST_USER_CONFIG_HEADER_BYTES + want.size, &got, sizeof(got), NULL);
        if (code < 0)
            return code;
        memcpy(&bed->config, got.region, want.size);
        bed->capacity = le64_get(bed->config.capacity);
    }
    bed->accepted = bed->offered & (options->features | VIRTIO_BIT(VIRTIO_F_VERSION_1));
    /* A host-managed disk works only for who knows zones (5.2.5.2). */
    if ((bed->offered & VIRTIO_BIT(VIRTIO_BLK_F_ZONED)) && bed->config.zoned.model == VIRTIO_BLK_Z_HM)
        bed->accepted |= VIRTIO_BIT(VIRTIO_BLK_F_ZONED);
    if (options->packed)
        bed->accepted |= bed->offered & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    else
        bed->accepted &= ~VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    return vhost_user_front_set_u64(&bed->front, VHOST_USER_SET_FEATURES,
                                    bed->accepted | (bed->transport_bits & own), -1);
}

int bed_set_memory(struct bed *bed)
{
    struct vhost_user_memory table = {.num_regions = bed->hosted->region_count};
    int fds[HOSTED_REGIONS_MAX];

    for (unsigned i = 0; i < bed->hosted->region_count; i++) {
        const struct hosted_region *region = &bed->hosted->regions[i];

        table.regions[i] = (struct vhost_user_memory_region){region->guest_addr, region->bytes,
                                                             (uintptr_t)region->mem, region->fd_offset};
        fds[i] = region->fd;
    }
    return vhost_user_front_set(&bed->front, VHOST_USER_SET_MEM_TABLE, &table,
                                (uint32_t)(offsetof(struct vhost_user_memory, regions) +
                                           sizeof(table.regions[0]) * table.num_regions),
                                fds, table.num_regions);
}

int bed_queue_make(struct bed *bed, unsigned index, unsigned size, bool packed)
{
    struct bed_queue *queue = &bed->queues[index];
    size_t desc = (size_t)16 * size, driver = (VIRTQ_AVAIL_BYTES(size) + 63u) & ~63u;

    *queue = (struct bed_queue){
        .index = index, .size = size, .packed = packed, .avail_wrap = true, .used_wrap = true};
    queue->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue->err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue->mem = hosted_alloc(bed->hosted, desc + driver + VIRTQ_USED_BYTES(size) + 4096, 4096);
    if (!queue->mem || queue->kick_fd < 0 || queue->call_fd < 0 || queue->err_fd < 0)
        return -ENOMEM;
    queue->desc = (struct virtq_desc *)queue->mem;
    queue->ring = (struct virtq_packed_desc *)queue->mem;
    queue->avail = (struct virtq_avail *)(queue->mem + desc);
    queue->driver_event = (struct virtq_packed_event *)(queue->mem + desc);
    queue->used = (struct virtq_used *)(queue->mem + desc + driver);
    queue->device_event = (struct virtq_packed_event *)(queue->mem + desc + driver);
    return 0;
}

int bed_queue_enable(struct bed *bed, unsigned index, bool on)
{
    struct vhost_user_vring_state state = {index, on};

    if (!(bed->transport_bits & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES)))
        return 0;
    return vhost_user_front_set(&bed->front, VHOST_USER_SET_VRING_ENABLE, &state, sizeof(state), NULL, 0);
}

int bed_queue_messages(struct bed *bed, unsigned index, uint32_t base)
{
    struct bed_queue *queue = &bed->queues[index];
    struct vhost_user_vring_state number = {index, queue->size}, start = {index, base};
    struct vhost_user_vring_addr addr = {.index = index,
                                         .desc_user_addr = (uintptr_t)queue->mem,
                                         .avail_user_addr = (uintptr_t)queue->avail,
                                         .used_user_addr = (uintptr_t)queue->used};
    int code = vhost_user_front_set(&bed->front, VHOST_USER_SET_VRING_NUM, &number, sizeof(number), NULL, 0);

    if (code == 0)
        code = vhost_user_front_set(&bed->front, VHOST_USER_SET_VRING_BASE, &start, sizeof(start), NULL, 0);
    if (code == 0)
        code = vhost_user_front_set(&bed->front, VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
    if (code == 0)
        code = vhost_user_front_set_u64(&bed->front, VHOST_USER_SET_VRING_ERR, index, queue->err_fd);
    if (code == 0)
        code = vhost_user_front_set_u64(&bed->front, VHOST_USER_SET_VRING_CALL, index, queue->call_fd);
    if (code == 0)
        code = vhost_user_front_set_u64(&bed->front, VHOST_USER_SET_VRING_KICK, index, queue->kick_fd);
    queue->started = code == 0;
    return code;
}

int bed_queue_stop(struct bed *bed, unsigned index, uint32_t *base)
{
    struct vhost_user_vring_state state = {index, 0}, reply = {0};
    int code = vhost_user_front_call(&bed->front, VHOST_USER_GET_VRING_BASE, &state, sizeof(state), &reply,
                                     sizeof(reply), NULL);

    if (code < 0)
        return code;
    if (code != (int)sizeof(reply) || reply.index != index)
        return -EPROTO;
    if (base)
        *base = reply.num;
    bed->queues[index].started = false;
    return 0;
}

int bed_open(struct bed *bed, const struct bed_options *options, struct error *err)
{
    struct hosted_options hosted = {
        .arena_bytes = BED_ARENA_BYTES, .bounce_bytes = 1u << 17, .regions = options->regions};
    unsigned queues = options->queues ? options->queues : 1;
    unsigned size = options->queue_size ? options->queue_size : 64;
    int code;

    memset(bed, 0, sizeof(*bed));
    for (unsigned i = 0; i < BED_QUEUES_MAX; i++)
        bed->queues[i].kick_fd = bed->queues[i].call_fd = bed->queues[i].err_fd = -1;
    vhost_user_front_init(&bed->front, -1, options->message_ms ? options->message_ms : BED_WAIT_MS);
    bed->hosted = hosted_create(&hosted);
    if (!bed->hosted)
        return error_set(err, -ENOMEM, "no memory for a machine: %s", strerror(errno));
    code = vhost_user_front_connect(&bed->front, options->path, BED_WAIT_MS);
    if (code == 0)
        code = negotiate(bed, options);
    if (code == 0 && !options->no_memory)
        code = bed_set_memory(bed);
    for (unsigned i = 0; i < queues && i < BED_QUEUES_MAX && code == 0; i++) {
        code = bed_queue_make(bed, i, size, bed->accepted & VIRTIO_BIT(VIRTIO_F_RING_PACKED));
        if (code == 0 && !options->no_start && !options->no_memory)
            code = bed_queue_messages(bed, i, bed->queues[i].packed ? 0x80008000u : 0);
        if (code == 0 && !options->no_start && !options->no_memory)
            code = bed_queue_enable(bed, i, true);
        bed->queue_num = i + 1;
    }
    if (code == 0 && !options->no_start && !options->no_memory &&
        (bed->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_STATUS)))
        code = vhost_user_front_set_u64(&bed->front, VHOST_USER_SET_STATUS,
                                        VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
                                            VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK,
                                        -1);
    if (code < 0)
        return error_set(err, code, "%s",
                         bed->front.error[0] ? bed->front.error : "the connection could not be set up");
    return 0;
}

void bed_close(struct bed *bed)
{
    vhost_user_front_close(&bed->front);
    for (unsigned i = 0; i < BED_QUEUES_MAX; i++) {
        int fds[] = {bed->queues[i].kick_fd, bed->queues[i].call_fd, bed->queues[i].err_fd};

        for (unsigned f = 0; f < 3; f++)
            if (fds[f] >= 0)
                close(fds[f]);
        bed->queues[i].kick_fd = bed->queues[i].call_fd = bed->queues[i].err_fd = -1;
    }
    hosted_destroy(bed->hosted);
    bed->hosted = NULL;
}

void bed_send_raw(struct bed *bed, const struct vhost_user_header *header, const void *payload,
                  uint32_t bytes, const int *fds, unsigned nfds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 16)];
    } control = {0};
    struct iovec iov[2] = {{(void *)(uintptr_t)header, sizeof(*header)}, {(void *)(uintptr_t)payload, bytes}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

    if (nfds) {
        struct cmsghdr *cmsg;

        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        cmsg = CMSG_FIRSTHDR(&message);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * nfds);
    }
    if (sendmsg(bed->front.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        /* the peer has gone: that is seen when it is asked next */
    }
}

/* ---- rings ---- */

static void table_write(struct bed *bed, struct virtq_desc *table, unsigned at, unsigned size,
                        const struct bed_piece *pieces, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned next = (at + i + 1) % size;
        uint16_t flags = (uint16_t)((pieces[i].writable ? VIRTQ_DESC_F_WRITE : 0) |
                                    (i + 1 < count ? VIRTQ_DESC_F_NEXT : 0));

        table[(at + i) % size] =
            (struct virtq_desc){le64_put(bed_addr(bed, pieces[i].mem)), le32_put(pieces[i].len),
                                le16_put(flags), le16_put(i + 1 < count ? (uint16_t)next : 0)};
    }
}

static unsigned put_split(struct bed *bed, struct bed_queue *queue, const struct bed_piece *pieces,
                          unsigned count, bool indirect)
{
    unsigned head = queue->next_desc;

    if (indirect) {
        struct virtq_desc *table = bed_alloc(bed, sizeof(*table) * count);

        table_write(bed, table, 0, count, pieces, count);
        queue->desc[head] =
            (struct virtq_desc){le64_put(bed_addr(bed, table)), le32_put((uint32_t)sizeof(*table) * count),
                                le16_put(VIRTQ_DESC_F_INDIRECT), le16_put(0)};
        count = 1;
    } else {
        table_write(bed, queue->desc, head, queue->size, pieces, count);
    }
    queue->next_desc = (uint16_t)((head + count) % queue->size);
    le16_store(&queue->avail->ring[queue->avail_idx % queue->size], (uint16_t)head);
    queue->avail_idx++;
    /* Pairs with the device's read of avail.idx (2.7.13.3). */
    le16_store_release(&queue->avail->idx, queue->avail_idx);
    return head;
}

static uint16_t packed_flags(bool wrap)
{
    return wrap ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED;
}

static unsigned put_packed(struct bed *bed, struct bed_queue *queue, const struct bed_piece *pieces,
                           unsigned count, bool indirect)
{
    unsigned first = queue->next_desc, at = first, id = queue->avail_idx++ % 256;
    bool wrap = queue->avail_wrap;
    uint16_t first_flags = 0;
    struct bed_piece table_piece;
    unsigned descs = count;

    if (indirect) {
        struct virtq_packed_desc *table = bed_alloc(bed, sizeof(*table) * count);

        for (unsigned i = 0; i < count; i++)
            table[i] = (struct virtq_packed_desc){le64_put(bed_addr(bed, pieces[i].mem)),
                                                  le32_put(pieces[i].len), le16_put(0),
                                                  le16_put(pieces[i].writable ? VIRTQ_DESC_F_WRITE : 0)};
        table_piece = (struct bed_piece){table, (uint32_t)sizeof(*table) * count, false};
        pieces = &table_piece;
        descs = 1;
    }
    for (unsigned i = 0; i < descs; i++) {
        uint16_t flags =
            (uint16_t)(packed_flags(wrap) | (pieces[i].writable ? VIRTQ_DESC_F_WRITE : 0) |
                       (i + 1 < descs ? VIRTQ_DESC_F_NEXT : 0) | (indirect ? VIRTQ_DESC_F_INDIRECT : 0));
        struct virtq_packed_desc *desc = &queue->ring[at];

        desc->addr = le64_put(bed_addr(bed, pieces[i].mem));
        desc->len = le32_put(pieces[i].len);
        desc->id = le16_put((uint16_t)id);
        if (i == 0)
            first_flags = flags;
        else
            le16_store(&desc->flags, flags);
        if (++at == queue->size) {
            at = 0;
            wrap = !wrap;
        }
    }
    queue->next_desc = (uint16_t)at;
    queue->avail_wrap = wrap;
    queue->chain_len[id] = (uint16_t)descs;
    /* Pairs with the device's read of the first descriptor's flags (2.8.21). */
    le16_store_release(&queue->ring[first].flags, first_flags);
    return id;
}

unsigned bed_put(struct bed *bed, unsigned index, const struct bed_piece *pieces, unsigned count,
                 bool indirect)
{
    struct bed_queue *queue = &bed->queues[index];

    return queue->packed ? put_packed(bed, queue, pieces, count, indirect)
                         : put_split(bed, queue, pieces, count, indirect);
}

void bed_kick(struct bed *bed, unsigned queue)
{
    bed_fence();
    eventfd_write(bed->queues[queue].kick_fd, 1);
}

static bool take_used(struct bed_queue *queue, uint32_t *id, uint32_t *len)
{
    if (!queue->packed) {
        const struct virtq_used_elem *elem = &queue->used->ring[queue->used_idx % queue->size];

        if (le16_load_acquire(&queue->used->idx) == queue->used_idx)
            return false;
        *id = le32_load(&elem->id);
        *len = le32_load(&elem->len);
        queue->used_idx++;
        return true;
    }
    const struct virtq_packed_desc *desc = &queue->ring[queue->used_idx];
    uint16_t flags = le16_load_acquire(&desc->flags);
    bool avail = flags & VIRTQ_DESC_F_AVAIL, used = flags & VIRTQ_DESC_F_USED;

    if (avail != used || used != queue->used_wrap)
        return false;
    *id = le16_load(&desc->id);
    *len = le32_load(&desc->len);
    queue->used_idx = (uint16_t)(queue->used_idx + queue->chain_len[*id % 256]);
    if (queue->used_idx >= queue->size) {
        queue->used_idx = (uint16_t)(queue->used_idx - queue->size);
        queue->used_wrap = !queue->used_wrap;
    }
    return true;
}

bool bed_needs_reset(struct bed *bed)
{
    eventfd_t count;
    uint64_t status;

    for (unsigned i = 0; i < bed->queue_num; i++)
        if (bed->queues[i].err_fd >= 0 && eventfd_read(bed->queues[i].err_fd, &count) == 0)
            return true;
    return (bed->protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_STATUS)) &&
           vhost_user_front_get_u64(&bed->front, VHOST_USER_GET_STATUS, &status) == 0 &&
           (status & VIRTIO_STATUS_DEVICE_NEEDS_RESET);
}

int bed_wait(struct bed *bed, unsigned index, unsigned ms, uint32_t *id, uint32_t *len)
{
    struct bed_queue *queue = &bed->queues[index];
    uint64_t end = bed_now_ms() + ms;
    uint32_t no_id, no_len;

    for (unsigned turn = 0;; turn++) {
        struct pollfd wait[2] = {{.fd = bed->front.fd, .events = POLLRDHUP},
                                 {.fd = queue->err_fd, .events = POLLIN}};
        struct timespec pause = {.tv_nsec = turn < 50 ? 20000 : 1000000};

        if (take_used(queue, id ? id : &no_id, len ? len : &no_len))
            return 1;
        if (bed_now_ms() >= end)
            return 0;
        if (ppoll(wait, 2, &pause, NULL) > 0) {
            if (take_used(queue, id ? id : &no_id, len ? len : &no_len))
                return 1;
            return wait[0].revents ? -EPIPE : -ENODATA;
        }
    }
}

int bed_request(struct bed *bed, unsigned index, uint32_t type, uint64_t sector, void *data, uint32_t bytes,
                bool writable, uint32_t *len)
{
    struct virtio_blk_req_header *header = bed_alloc(bed, 64);
    uint8_t *status = (uint8_t *)header + 32, *buf = bytes ? bed_alloc(bed, bytes) : NULL;
    struct bed_piece pieces[3] = {{header, sizeof(*header), false}};
    unsigned n = 1;
    int code;

    if (!header || (bytes && !buf))
        return -ENOMEM;
    *header = (struct virtio_blk_req_header){le32_put(type), le32_put(0), le64_put(sector)};
    *status = 0xee;
    if (bytes) {
        memcpy(buf, data, bytes);
        pieces[n++] = (struct bed_piece){buf, bytes, writable};
    }
    pieces[n++] = (struct bed_piece){status, 1, true};
    bed_put(bed, index, pieces, n, false);
    bed_kick(bed, index);
    code = bed_wait(bed, index, BED_WAIT_MS, NULL, len);
    if (code == 1) {
        code = __atomic_load_n(status, __ATOMIC_RELAXED);
        if (bytes && writable)
            memcpy(data, buf, bytes);
    } else if (code == 0) {
        return -ETIMEDOUT; /* the memory may still be the device's */
    }
    hosted_free(bed->hosted, header, 64);
    if (buf)
        hosted_free(bed->hosted, buf, bytes);
    return code;
}

bool bed_alive(struct bed *bed)
{
    uint64_t features;

    return vhost_user_front_get_u64(&bed->front, VHOST_USER_GET_FEATURES, &features) == 0;
}

uint64_t bed_interrupts(struct bed *bed, unsigned queue)
{
    eventfd_t count;

    return eventfd_read(bed->queues[queue].call_fd, &count) == 0 ? count : 0;
}

uint64_t bed_interrupted(struct bed *bed, unsigned queue)
{
    struct pollfd wait = {.fd = bed->queues[queue].call_fd, .events = POLLIN};

    (void)poll(&wait, 1, (int)BED_WAIT_MS);
    return bed_interrupts(bed, queue);
}
