/*
 * Handlers for messages that bring files to map (shared_files.h).
 */
#include "host/vhost_user/shared_files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host/device/ring_inflight.h"
#include "host/vhost_user/connection.h"

#define INFLIGHT_ALIGN 64u

size_t inflight_queue_bytes(uint16_t queue_size)
{
    size_t split = ring_inflight_bytes(false, queue_size), packed = ring_inflight_bytes(true, queue_size);
    size_t bytes = split > packed ? split : packed;
    return (bytes + INFLIGHT_ALIGN - 1) / INFLIGHT_ALIGN * INFLIGHT_ALIGN;
}

/* Puts TABLE in the place of the connection's; the old one's regions that TABLE does not have are unmapped.
 */
static int coroutine_fn memory_replace(struct vhost_user_connection *c, struct guest_memory *table,
                                       struct error *err)
{
    struct guest_memory *old = c->memory;
    rings_pause(c);
    iotlb_forget(c);
    c->memory = table;
    for (unsigned i = 0; i < old->count; i++) {
        bool kept = false;
        for (unsigned j = 0; j < table->count; j++)
            kept |= table->regions[j].mapping == old->regions[i].mapping;
        if (!kept)
            memory_region_unmap(&old->regions[i]);
    }
    free(old);
    return rings_update(c, err);
}

int coroutine_fn handle_set_mem_table(struct vhost_user_connection *c, struct vhost_user_message *m,
                                      struct vhost_user_message *reply, struct error *err)
{
    const struct vhost_user_memory *wire = &m->payload.memory;
    uint32_t n = wire->num_regions;
    if (n > VHOST_USER_MAX_REGIONS || m->header.size < 8 + n * sizeof wire->regions[0])
        return error_set(err, -EBADMSG, "SET_MEM_TABLE says %u regions in %u bytes", n, m->header.size);
    if (m->nfds != n)
        return error_set(err, -EBADMSG, "SET_MEM_TABLE with %u regions came with %u descriptors", n, m->nfds);

    struct guest_memory *table = calloc(1, sizeof *table);
    if (!table)
        return error_set(err, -ENOMEM, "no memory for a table of guest memory");
    for (uint32_t i = 0; i < n; i++) {
        int ret = memory_table_add(table, &wire->regions[i], m->fds[i], &c->memory_broken, err);
        if (ret < 0) {
            memory_table_free(table);
            return ret;
        }
    }
    return memory_replace(c, table, err);
}

int coroutine_fn handle_get_max_mem_slots(struct vhost_user_connection *c, struct vhost_user_message *m,
                                          struct vhost_user_message *reply, struct error *err)
{
    reply->payload.u64 = MEMORY_SLOTS_MAX;
    reply->header.size = sizeof reply->payload.u64;
    return 0;
}

static struct guest_memory *memory_copy(const struct vhost_user_connection *c, struct error *err)
{
    struct guest_memory *table = calloc(1, sizeof *table);
    if (!table) {
        error_set(err, -ENOMEM, "no memory for a table of guest memory");
        return NULL;
    }
    table->count = c->memory->count;
    memcpy(table->regions, c->memory->regions, table->count * sizeof table->regions[0]);
    return table;
}

int coroutine_fn handle_add_mem_reg(struct vhost_user_connection *c, struct vhost_user_message *m,
                                    struct vhost_user_message *reply, struct error *err)
{
    struct guest_memory *table = memory_copy(c, err);
    if (!table)
        return -ENOMEM;
    int ret = memory_table_add(table, &m->payload.mem_region.region, m->fds[0], &c->memory_broken, err);
    if (ret < 0) {
        free(table);
        return ret;
    }
    return memory_replace(c, table, err);
}

int coroutine_fn handle_rem_mem_reg(struct vhost_user_connection *c, struct vhost_user_message *m,
                                    struct vhost_user_message *reply, struct error *err)
{
    struct guest_memory *table = memory_copy(c, err);
    struct guest_region removed;
    if (!table)
        return -ENOMEM;
    if (memory_table_remove(table, &m->payload.mem_region.region, &removed) < 0) {
        free(table);
        log_message("the front end removes a memory region at guest address 0x%" PRIx64 " that there is not",
                    m->payload.mem_region.region.guest_addr);
        return MESSAGE_REFUSED;
    }
    return memory_replace(c, table, err);
}

int coroutine_fn handle_set_log_base(struct vhost_user_connection *c, struct vhost_user_message *m,
                                     struct vhost_user_message *reply, struct error *err)
{
    struct shared_mapping log;
    int ret = shared_mapping_open(&log, m->fds[0], m->payload.log.mmap_offset, m->payload.log.mmap_size,
                                  &c->memory_broken, "dirty log", err);
    if (ret < 0)
        return ret;
    rings_pause(c);
    shared_mapping_close(&c->log);
    c->log = log;
    reply->payload.u64 = 0;
    reply->header.size = sizeof reply->payload.u64;
    return rings_update(c, err);
}

int coroutine_fn handle_set_log_fd(struct vhost_user_connection *c, struct vhost_user_message *m,
                                   struct vhost_user_message *reply, struct error *err)
{
    /* "it may be used to inform the front-end that the log has been modified": it is not; the descriptor is
     * closed with the message. */
    return 0;
}

int coroutine_fn handle_get_inflight_fd(struct vhost_user_connection *c, struct vhost_user_message *m,
                                        struct vhost_user_message *reply, struct error *err)
{
    uint16_t queues = m->payload.inflight.num_queues, size = m->payload.inflight.queue_size;
    if (queues < 1 || queues > c->options->num_queues || size < 1 || size > c->options->queue_size_max)
        return error_set(err, -EINVAL, "GET_INFLIGHT_FD for %u rings of %u; this device has %u of %u", queues,
                         size, c->options->num_queues, c->options->queue_size_max);

    uint64_t bytes = queues * inflight_queue_bytes(size);
    int fd = memfd_create("ringside-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return error_set(err, -errno, "cannot make an inflight region: %s", strerror(errno));
    if (ftruncate(fd, (off_t)bytes) < 0) {
        int ret = -errno;
        close(fd);
        return error_set(err, ret, "cannot make an inflight region of %" PRIu64 " bytes: %s", bytes,
                         strerror(-ret));
    }
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    reply->payload.inflight = (struct vhost_user_inflight){
        .mmap_size = bytes, .mmap_offset = 0, .num_queues = queues, .queue_size = size};
    reply->header.size = m->header.size;
    reply->fds[0] = fd;
    reply->nfds = 1;
    return 0;
}

int coroutine_fn handle_set_inflight_fd(struct vhost_user_connection *c, struct vhost_user_message *m,
                                        struct vhost_user_message *reply, struct error *err)
{
    const struct vhost_user_inflight wire = m->payload.inflight;
    struct shared_mapping inflight;
    if (wire.num_queues < 1 || wire.num_queues > c->options->num_queues || wire.queue_size < 1 ||
        wire.queue_size > c->options->queue_size_max)
        return error_set(err, -EINVAL, "SET_INFLIGHT_FD for %u rings of %u; this device has %u of %u",
                         wire.num_queues, wire.queue_size, c->options->num_queues,
                         c->options->queue_size_max);
    if (wire.mmap_size < wire.num_queues * inflight_queue_bytes(wire.queue_size) ||
        wire.mmap_offset % INFLIGHT_ALIGN)
        return error_set(err, -EINVAL,
                         "inflight region of %" PRIu64 " bytes at %" PRIu64 " for %u rings of %u",
                         wire.mmap_size, wire.mmap_offset, wire.num_queues, wire.queue_size);
    if (rings_run(c))
        return error_set(err, -EBADMSG, "SET_INFLIGHT_FD while a ring runs");
    int ret = shared_mapping_open(&inflight, m->fds[0], wire.mmap_offset, wire.mmap_size, &c->memory_broken,
                                  "inflight region", err);
    if (ret < 0)
        return ret;
    shared_mapping_close(&c->inflight);
    c->inflight = inflight;
    c->inflight_queues = wire.num_queues;
    c->inflight_queue_size = wire.queue_size;
    return 0;
}
