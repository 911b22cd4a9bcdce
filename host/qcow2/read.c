/*
 * Reading guest data.
 *
 * What always holds: while the L2 slices are cached a read takes no lock and allocates nothing; a run of
 * contiguous clusters is one read of the file; pieces run side by side only if the request splits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/crypto.h"
#include "host/qcow2/qcow2_state.h"
#include "host/runtime/trace.h"

struct read_piece {
    struct task task;
    struct qcow2 *s;
    struct qcow2_extent extent;
    uint64_t offset;
    struct sg sg;
};

void *qcow2_buffer_get(struct qcow2 *s)
{
    void *buffer = NULL;
    spin_lock(&s->buffers_guard);
    if (s->nb_buffers)
        buffer = s->buffers[--s->nb_buffers];
    spin_unlock(&s->buffers_guard);
    return buffer ? buffer : node_buffer(s->node->file, s->cluster_bytes);
}

void qcow2_buffer_put(struct qcow2 *s, void *buffer)
{
    if (!buffer)
        return;
    spin_lock(&s->buffers_guard);
    bool keep = s->nb_buffers < sizeof(s->buffers) / sizeof(s->buffers[0]);
    if (keep)
        s->buffers[s->nb_buffers++] = buffer;
    spin_unlock(&s->buffers_guard);
    if (!keep)
        free(buffer);
}

/* M1: beyond its end a backing file reads as zeroes. */
static int coroutine_fn co_read_backing(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct sg sg)
{
    uint64_t length = s->node->backing ? node_length(s->node->backing) : 0;
    uint64_t there = offset < length ? min_u64(bytes, length - offset) : 0;
    int ret = there ? node_co_preadv(s->node->backing, offset, there, sg, 0) : 0;
    if (ret == 0 && there < bytes)
        sg_zero(sg_advance(sg, there), bytes - there);
    return ret;
}

int coroutine_fn qcow2_co_read_data(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                    struct sg sg)
{
    if (s->crypto)
        return qcow2_crypto_co_read(s, guest, host, bytes, sg);
    if (s->data_missing)
        return -EIO; /* opened for its metadata alone */
    /* A3: the file may end inside its last cluster. */
    uint64_t length =
        s->data == s->node->file ? __atomic_load_n(&s->file_bytes, __ATOMIC_ACQUIRE) : node_length(s->data);
    uint64_t there = host < length ? min_u64(bytes, length - host) : 0;
    int ret = there ? node_co_preadv(s->data, host, there, sg, 0) : 0;
    if (ret == 0 && there < bytes)
        sg_zero(sg_advance(sg, there), bytes - there);
    return ret;
}

static int coroutine_fn co_read_extent(struct qcow2 *s, uint64_t offset, const struct qcow2_extent *extent,
                                       struct sg sg)
{
    switch (extent->type) {
    case QCOW2_UNALLOCATED:
    case QCOW2_UNALLOCATED_ALLOC:
        return co_read_backing(s, offset, extent->bytes, sg);
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC:
        sg_zero(sg, extent->bytes);
        return 0;
    case QCOW2_NORMAL:
        return qcow2_co_read_data(s, offset, extent->host, extent->bytes, sg);
    case QCOW2_COMPRESSED:
        return qcow2_co_read_compressed(s, extent->host, offset & (s->cluster_bytes - 1), extent->bytes, sg);
    case QCOW2_INVALID:
        break;
    }
    return qcow2_co_corrupt(
        s, "L2 entry for guest offset 0x%llx names host offset 0x%llx in a way that no rule allows",
        (unsigned long long)offset, (unsigned long long)extent->host);
}

static int coroutine_fn read_piece_run(struct task *task)
{
    struct read_piece *piece = (struct read_piece *)task;
    return co_read_extent(piece->s, piece->offset, &piece->extent, piece->sg);
}

/* The request as its pieces, for one that is not all alike. FIRST is what was found at OFFSET. */
static int coroutine_fn co_read_split(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct sg sg,
                                      struct qcow2_extent extent)
{
    struct read_piece pieces[TASK_POOL_MAX];
    struct task_pool pool = {.max = TASK_POOL_MAX};
    int ret = 0;
    for (unsigned i = 0; i < TASK_POOL_MAX; i++)
        pieces[i].task.busy = false;
    for (;;) {
        bool last = extent.bytes == bytes;
        if (extent.type == QCOW2_ZERO_PLAIN || extent.type == QCOW2_ZERO_ALLOC ||
            (last && pool.active == 0)) {
            ret = co_read_extent(s, offset, &extent, sg);
        } else {
            task_pool_wait_slot(&pool);
            struct read_piece *piece = pieces;
            while (piece->task.busy)
                piece++;
            *piece = (struct read_piece){
                .task = {.run = read_piece_run}, .s = s, .extent = extent, .offset = offset, .sg = sg};
            task_pool_start(&pool, &piece->task);
        }
        if (last || ret < 0 || pool.result < 0)
            break;
        offset += extent.bytes;
        sg = sg_advance(sg, extent.bytes);
        bytes -= extent.bytes;
        ret = qcow2_co_map(s, offset, bytes, &extent);
        if (ret < 0)
            break;
    }
    int pool_ret = task_pool_wait_all(&pool);
    return ret < 0 ? ret : pool_ret;
}

static int coroutine_fn co_read(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct sg sg)
{
    struct qcow2_extent extent;
    int ret = qcow2_co_map(s, offset, bytes, &extent);
    if (ret < 0)
        return ret;
    if (extent.bytes == bytes)
        return co_read_extent(s, offset, &extent, sg);
    return co_read_split(s, offset, bytes, sg, extent);
}

int coroutine_fn qcow2_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                 unsigned flags)
{
    struct qcow2 *s = node->opaque;
    trace(TRACE_QCOW2_CO_PREADV, co_trace_id(), offset, bytes);
    unsigned epoch = qcow2_use_begin(s);
    int ret = co_read(s, offset, bytes, sg);
    qcow2_use_end(s, epoch);
    return ret;
}

bool coroutine_fn qcow2_co_range_is_zero(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    uint64_t backing = s->node->backing ? node_length(s->node->backing) : 0;
    uint64_t length = node_length(s->node);
    if (s->backing_coming)
        backing = UINT64_MAX;
    bytes = offset < length ? min_u64(bytes, length - offset) : 0;
    while (bytes) {
        struct qcow2_extent extent;
        if (qcow2_co_map(s, offset, bytes, &extent) < 0)
            return false;
        bool shows_backing = extent.type == QCOW2_UNALLOCATED || extent.type == QCOW2_UNALLOCATED_ALLOC;
        if (!(extent.type == QCOW2_ZERO_PLAIN || extent.type == QCOW2_ZERO_ALLOC ||
              (shows_backing && offset >= backing)))
            return false;
        offset += extent.bytes;
        bytes -= extent.bytes;
    }
    return true;
}

int coroutine_fn qcow2_co_read_guest(struct qcow2 *s, uint64_t offset, uint64_t bytes, void *buf, bool *zero)
{
    uint64_t length = node_length(s->node);
    uint64_t there = offset < length ? min_u64(bytes, length - offset) : 0;
    struct iovec iov = {.iov_base = buf, .iov_len = there};
    int ret = there ? co_read(s, offset, there, sg_make(&iov, 1)) : 0;
    if (ret < 0)
        return ret;
    memset((uint8_t *)buf + there, 0, bytes - there);
    *zero = buffer_is_zero(buf, bytes);
    return 0;
}
