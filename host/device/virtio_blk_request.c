/*
 * Requests of the block device (virtio 1.4, 5.2.6): from a chain of descriptors to calls of the block layer,
 * and the answer.
 *
 * What always holds:
 *  - the message may lie in the descriptors in any way (2.7.4.1): the first 16 readable bytes are the header,
 * the last writable byte is the status;
 *  - header and range lists are copied out once; data is not copied at all;
 *  - a request with room for a status is answered, whatever is wrong with it; one without breaks the ring.
 */
#include <errno.h>
#include <string.h>

#include "host/block/sg.h"
#include "host/device/virtio_blk_internal.h"
#include "host/device/virtqueue_audit.h"
#include "host/runtime/trace.h"

/* ---- the answer ---- */

/* A read that failed may have written some of its data. */
static void log_written(struct virtio_blk_request *request)
{
    struct virtio_blk_queue *queue = request->queue;

    dirty_log_mark_host(&queue->log, queue->memory, request->status, 1);
    if (request->type == VIRTIO_BLK_T_IN)
        dirty_log_mark_iov(&queue->log, queue->memory, request->iov, request->niov);
}

void virtio_blk_complete(struct virtio_blk_request *request, uint8_t status, uint64_t data_bytes)
{
    struct virtio_blk_queue *queue = request->queue;
    uint64_t len = data_bytes;

    trace(TRACE_VIRTIO_BLK_COMPLETE, request->blk.trace_id, request->offset, request->bytes);
    __atomic_store_n(request->status, status, __ATOMIC_RELAXED);
    if (__builtin_expect(queue->log.bits != NULL, 0))
        log_written(request);
    /* The used length counts what was written without a gap from the first writable byte on (2.7.8.2). */
    if (data_bytes == request->in_bytes - 1)
        len++;
    if (status == VIRTIO_BLK_S_UNSUPP)
        STAT_ADD(queue, unsupported, 1);
    else if (status != VIRTIO_BLK_S_OK)
        STAT_ADD(queue, errors, 1);
    virtio_blk_queue_used(queue, request, (uint32_t)len);
}

void virtio_blk_refuse(struct virtio_blk_request *request, uint8_t status)
{
    if (status == VIRTIO_BLK_S_IOERR)
        STAT_ADD(request->queue, invalid, 1);
    virtio_blk_complete(request, status, 0);
}

/* ---- IN and OUT ---- */

void virtio_blk_complete_rw(struct virtio_blk_request *request, int result)
{
    uint8_t status = VIRTIO_BLK_S_OK;

    if (result < 0 && !virtio_blk_failed(request, result, &status))
        return;
    if (__builtin_expect(request->queue->device->zoned != NULL, 0) && request->type == VIRTIO_BLK_T_OUT)
        virtio_blk_zoned_end(request, result == 0);
    virtio_blk_complete(request, status,
                        result == 0 && request->type == VIRTIO_BLK_T_IN ? request->bytes + request->zero_bytes
                                                                        : 0);
}

static void rw_complete(struct blk_request *blk_request, int result)
{
    virtio_blk_complete_rw((struct virtio_blk_request *)blk_request, result);
}

void virtio_blk_submit_rw(struct virtio_blk_request *request)
{
    request->blk.complete = rw_complete;
    if (request->type == VIRTIO_BLK_T_IN)
        blk_aio_preadv(request->queue->blk, &request->blk, request->offset, request->bytes, request->iov,
                       request->niov);
    else
        blk_aio_pwritev(request->queue->blk, &request->blk, request->offset, request->bytes, request->iov,
                        request->niov, 0);
}

static uint64_t capacity_of(const struct virtio_blk_queue *queue)
{
    return __atomic_load_n(&queue->device->capacity_sectors, __ATOMIC_RELAXED);
}

/* Nothing is added up that could wrap: SECTOR is compared first. */
bool virtio_blk_range_ok(const struct virtio_blk_queue *queue, uint64_t sector, uint64_t bytes)
{
    uint64_t capacity = capacity_of(queue);

    return sector <= capacity && bytes / VIRTIO_BLK_SECTOR_BYTES <= capacity - sector;
}

void virtio_blk_keep_segments(struct virtio_blk_request *request, struct sg sg, unsigned more)
{
    if (sg.niov + more <= REQUEST_INLINE_IOV) {
        request->iov = request->inline_iov;
    } else {
        request->block = request_block_get(request->queue); /* there is one: see virtio_blk_handle_queue */
        request->iov = request->block->iov;
    }
    for (unsigned i = 0; i < sg.niov; i++)
        request->iov[i] = sg.iov[i];
    /* Data that follows the header in one segment */
    if (sg.skip > 0) {
        request->iov[0].iov_base = (uint8_t *)request->iov[0].iov_base + sg.skip;
        request->iov[0].iov_len -= sg.skip;
    }
    request->niov = sg.niov;
}

static void handle_in_out(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    struct virtio_blk_queue *queue = request->queue;
    uint64_t bytes = request->type == VIRTIO_BLK_T_IN ? message->in_bytes : message->out_bytes;

    if (bytes % VIRTIO_BLK_SECTOR_BYTES != 0 || bytes > UINT32_MAX || message->chain->too_long ||
        !virtio_blk_range_ok(queue, message->sector, bytes)) {
        virtio_blk_refuse(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    request->offset = message->sector * VIRTIO_BLK_SECTOR_BYTES;
    request->bytes = bytes;
    if (bytes == 0) {
        virtio_blk_complete(request, VIRTIO_BLK_S_OK, 0);
        return;
    }
    virtio_blk_keep_segments(
        request, request->type == VIRTIO_BLK_T_IN ? sg_make(message->in, message->in_count) : message->out,
        0);
    if (__builtin_expect(queue->device->zoned != NULL, 0) && !virtio_blk_zoned_begin(request))
        return;
    multireq_add(queue, request);
}

/* ---- FLUSH ---- */

static void flush_complete(struct blk_request *blk_request, int result)
{
    struct virtio_blk_request *request = (struct virtio_blk_request *)blk_request;
    struct zoned *zoned = request->queue->device->zoned;
    uint8_t status = VIRTIO_BLK_S_OK;

    if (result == 0 && zoned)
        result = zoned_sync(zoned);
    if (result == 0 || virtio_blk_failed(request, result, &status))
        virtio_blk_complete(request, status, 0);
}

static void flush_submit(struct virtio_blk_request *request)
{
    request->blk.complete = flush_complete;
    blk_aio_flush(request->queue->blk, &request->blk);
}

/* Covers what completed before it was sent, on any queue (5.2.6.2); works on a read-only disk too. */
static void handle_flush(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    flush_submit(request);
}

void virtio_blk_answer_with(struct virtio_blk_request *request, const struct virtio_blk_message *message,
                            uint64_t at, const void *from, uint64_t bytes)
{
    struct virtio_blk_queue *queue = request->queue;

    sg_copy_in(sg_advance(sg_make(message->in, message->in_count), at), from, bytes);
    if (__builtin_expect(queue->log.bits != NULL, 0))
        dirty_log_mark_iov(&queue->log, queue->memory, message->in, message->in_count);
}

/* ---- GET_ID ---- */

/* 20 bytes, filled up with NULs, as far as they fit; what is behind them stays as it was. */
static void handle_get_id(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    const char *serial = request->queue->device->options.serial;
    uint64_t bytes = message->in_bytes < VIRTIO_BLK_ID_BYTES ? message->in_bytes : VIRTIO_BLK_ID_BYTES;

    if (message->chain->too_long) {
        virtio_blk_refuse(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    request->bytes = bytes;
    virtio_blk_answer_with(request, message, 0, serial, bytes);
    virtio_blk_complete(request, VIRTIO_BLK_S_OK, bytes);
}

/* ---- GET_LIFETIME ---- */

static void handle_get_lifetime(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    const struct virtio_blk_options *options = &request->queue->device->options;
    const struct virtio_blk_lifetime lifetime = {
        .pre_eol_info = le16_put(options->lifetime_pre_eol),
        .device_lifetime_est_typ_a = le16_put(options->lifetime_type_a),
        .device_lifetime_est_typ_b = le16_put(options->lifetime_type_b)};

    if (message->chain->too_long || message->in_bytes < sizeof(lifetime)) {
        virtio_blk_refuse(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    virtio_blk_answer_with(request, message, 0, &lifetime, sizeof(lifetime));
    virtio_blk_complete(request, VIRTIO_BLK_S_OK, sizeof(lifetime));
}

/* ---- DISCARD, WRITE_ZEROES, SECURE_ERASE ---- */

static void ranges_submit(struct virtio_blk_request *request);

/* One range is done: false if the request is as well. */
static bool range_done(struct virtio_blk_request *request)
{
    uint8_t status = VIRTIO_BLK_S_OK;

    if (request->range_result == 0)
        return true;
    /* Parked: this range is tried again. */
    request->range_next--;
    if (!virtio_blk_failed(request, request->range_result, &status))
        return false;
    request->range_next++;
    if (status == VIRTIO_BLK_S_OK)
        return true;
    virtio_blk_complete(request, status, 0);
    return false;
}

static void range_complete(struct blk_request *blk_request, int result)
{
    struct virtio_blk_request *request = (struct virtio_blk_request *)blk_request;

    request->range_result = result;
    if (request->issuing)
        request->issued_done = true;
    else if (range_done(request))
        ranges_submit(request);
}

/* One range after the other. A completion inside the submitting call goes round the loop, not down the stack.
 */
static void ranges_submit(struct virtio_blk_request *request)
{
    struct blk *blk = request->queue->blk;

    while (request->range_next < request->range_count) {
        const struct virtio_blk_range *range = &request->block->ranges[request->range_next++];
        uint64_t bytes = (uint64_t)le32_get(range->num_sectors) * VIRTIO_BLK_SECTOR_BYTES;

        request->offset = le64_get(range->sector) * VIRTIO_BLK_SECTOR_BYTES;
        if (bytes == 0)
            continue;
        request->blk.complete = range_complete;
        request->issuing = true;
        request->issued_done = false;
        if (request->type == VIRTIO_BLK_T_DISCARD)
            blk_aio_pdiscard(blk, &request->blk, request->offset, bytes);
        else
            blk_aio_pwrite_zeroes(blk, &request->blk, request->offset, bytes,
                                  le32_get(range->flags) & VIRTIO_BLK_RANGE_F_UNMAP ? NODE_IO_MAY_UNMAP : 0);
        request->issuing = false;
        if (!request->issued_done || !range_done(request))
            return;
    }
    virtio_blk_complete(request, VIRTIO_BLK_S_OK, 0);
}

/* What the three kinds allow: known flags, and where the limits stand in the configuration. */
static uint8_t check_ranges(const struct virtio_blk_request *request, uint32_t max_sectors,
                            uint32_t known_flags)
{
    for (unsigned i = 0; i < request->range_count; i++) {
        const struct virtio_blk_range *range = &request->block->ranges[i];
        uint64_t sectors = le32_get(range->num_sectors);

        if (le32_get(range->flags) & ~known_flags)
            return VIRTIO_BLK_S_UNSUPP;
        if (sectors > max_sectors ||
            !virtio_blk_range_ok(request->queue, le64_get(range->sector), sectors * VIRTIO_BLK_SECTOR_BYTES))
            return VIRTIO_BLK_S_IOERR;
    }
    return VIRTIO_BLK_S_OK;
}

static void handle_ranges(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    struct virtio_blk_queue *queue = request->queue;
    const struct virtio_blk_config *config = &queue->device->config;
    uint32_t max_seg = le32_get(config->max_discard_seg), max_sectors = le32_get(config->max_discard_sectors);
    uint32_t known_flags = 0;
    struct sg list = message->out;
    uint64_t bytes = message->out_bytes;
    uint8_t status;

    if (request->type == VIRTIO_BLK_T_WRITE_ZEROES) {
        max_seg = le32_get(config->max_write_zeroes_seg);
        max_sectors = le32_get(config->max_write_zeroes_sectors);
        known_flags = VIRTIO_BLK_RANGE_F_UNMAP;
    } else if (request->type == VIRTIO_BLK_T_SECURE_ERASE) {
        max_seg = le32_get(config->max_secure_erase_seg);
        max_sectors = le32_get(config->max_secure_erase_sectors);
        /* Some drivers take the direction from the type's lowest bit and make this list writable. */
        if (bytes == 0) {
            list = sg_make(message->in, message->in_count);
            bytes = message->in_bytes;
        }
    }
    if (bytes % sizeof(struct virtio_blk_range) != 0 || bytes / sizeof(struct virtio_blk_range) > max_seg ||
        message->chain->too_long) {
        virtio_blk_refuse(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    request->block = request_block_get(queue); /* there is one: see virtio_blk_handle_queue */
    sg_copy_out(list, request->block->ranges, bytes);
    request->range_count = (uint16_t)(bytes / sizeof(struct virtio_blk_range));
    request->range_next = 0;
    if (__builtin_expect(queue->vq.audit != NULL, 0))
        for (unsigned i = 0; i < request->range_count; i++)
            audit_range(queue->vq.audit, request->type, &request->block->ranges[i], capacity_of(queue));
    /* All are checked before anything is done. */
    status = check_ranges(request, max_sectors, known_flags);
    if (status != VIRTIO_BLK_S_OK) {
        virtio_blk_refuse(request, status);
        return;
    }
    ranges_submit(request);
}

/* ---- the table of types ---- */

#define NO_FEATURE 0xffu

struct request_type {
    void (*handle)(struct virtio_blk_request *request, const struct virtio_blk_message *message);
    void (*submit)(struct virtio_blk_request *request); /* once more; NULL: it is never in the block layer */
    uint8_t feature; /* without it the type is unsupported; NO_FEATURE: always there */
    bool changes;    /* refused on a read-only disk */
};

static const struct request_type request_types[] = {
    [VIRTIO_BLK_T_IN] = {handle_in_out, virtio_blk_submit_rw, NO_FEATURE, false},
    [VIRTIO_BLK_T_OUT] = {handle_in_out, virtio_blk_submit_rw, NO_FEATURE, true},
    [VIRTIO_BLK_T_FLUSH] = {handle_flush, flush_submit, VIRTIO_BLK_F_FLUSH, false},
    [VIRTIO_BLK_T_GET_ID] = {handle_get_id, NULL, NO_FEATURE, false},
    [VIRTIO_BLK_T_GET_LIFETIME] = {handle_get_lifetime, NULL, VIRTIO_BLK_F_LIFETIME, false},
    [VIRTIO_BLK_T_DISCARD] = {handle_ranges, ranges_submit, VIRTIO_BLK_F_DISCARD, true},
    [VIRTIO_BLK_T_WRITE_ZEROES] = {handle_ranges, ranges_submit, VIRTIO_BLK_F_WRITE_ZEROES, true},
    [VIRTIO_BLK_T_SECURE_ERASE] = {handle_ranges, ranges_submit, VIRTIO_BLK_F_SECURE_ERASE, true},
    [VIRTIO_BLK_T_ZONE_APPEND] = {virtio_blk_handle_append, virtio_blk_submit_append, VIRTIO_BLK_F_ZONED,
                                  true},
    [VIRTIO_BLK_T_ZONE_REPORT] = {virtio_blk_handle_report, NULL, VIRTIO_BLK_F_ZONED, false},
    [VIRTIO_BLK_T_ZONE_OPEN] = {virtio_blk_handle_zone, NULL, VIRTIO_BLK_F_ZONED, true},
    [VIRTIO_BLK_T_ZONE_CLOSE] = {virtio_blk_handle_zone, NULL, VIRTIO_BLK_F_ZONED, true},
    [VIRTIO_BLK_T_ZONE_FINISH] = {virtio_blk_handle_zone, NULL, VIRTIO_BLK_F_ZONED, true},
    [VIRTIO_BLK_T_ZONE_RESET] = {virtio_blk_handle_zone, NULL, VIRTIO_BLK_F_ZONED, true},
    [VIRTIO_BLK_T_ZONE_RESET_ALL] = {virtio_blk_handle_zone, NULL, VIRTIO_BLK_F_ZONED, true},
};

#define REQUEST_TYPES (sizeof(request_types) / sizeof(request_types[0]))

void virtio_blk_submit(struct virtio_blk_request *request)
{
    request_types[request->type].submit(request);
}

/* Takes the header off the readable segments, the status byte off the writable ones. */
static bool message_open(struct virtio_blk_queue *queue, const struct virtq_chain *chain,
                         struct virtio_blk_message *message, struct virtio_blk_req_header *header)
{
    struct iovec *iov = queue->vq.iov;

    message->chain = chain;
    message->in = iov + chain->out;
    message->in_count = chain->in;
    message->in_bytes = chain->in_bytes - 1;
    if (chain->in > 0 && --message->in[chain->in - 1].iov_len == 0)
        message->in_count--;
    if (chain->out_bytes < sizeof(*header))
        return false;
    /* One descriptor alone can lie in more pieces than are kept: then there are none of it. */
    if (__builtin_expect(chain->too_long, 0) && sg_bytes(sg_make(iov, chain->out)) < sizeof(*header))
        return false;
    message->out_bytes = chain->out_bytes - sizeof(*header);
    message->out = sg_make(iov, chain->out);
    if (iov[0].iov_len == sizeof(*header)) {
        memcpy(header, iov[0].iov_base, sizeof(*header));
        message->out.iov++;
        message->out.niov--;
    } else {
        sg_copy_out(message->out, header, sizeof(*header));
        message->out = sg_advance(message->out, sizeof(*header));
    }
    message->sector = le64_get(header->sector);
    return true;
}

void virtio_blk_handle_request(struct virtio_blk_queue *queue, struct virtio_blk_request *request,
                               const struct virtq_chain *chain)
{
    const struct request_type *type = NULL;
    struct virtio_blk_req_header header;
    struct virtio_blk_message message;
    uint32_t number;

    request->status = chain->last_in;
    request->in_bytes = chain->in_bytes;
    request->offset = request->bytes = request->zero_bytes = 0;
    request->niov = 0;
    request->type = UINT8_MAX; /* not known yet */
    request->blk.trace_id = ++queue->trace_next;
    if (!message_open(queue, chain, &message, &header)) {
        if (queue->vq.audit)
            audit_request(queue->vq.audit, NULL, 0, 0, 0);
        virtio_blk_refuse(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (__builtin_expect(queue->vq.audit != NULL, 0))
        audit_request(queue->vq.audit, &header, message.out_bytes, message.in_bytes, capacity_of(queue));
    number = le32_get(header.type);
    if (number < REQUEST_TYPES && request_types[number].handle)
        type = &request_types[number];
    trace(TRACE_HANDLE_QUEUE, request->blk.trace_id, message.sector * VIRTIO_BLK_SECTOR_BYTES,
          message.in_bytes + message.out_bytes);
    /* What is merged must not be overtaken by anything of another kind; a flush covers what came before it.
     */
    if (number > VIRTIO_BLK_T_OUT && queue->multireq.count > 0)
        multireq_submit(queue);
    if (type && type->changes && queue->read_only)
        virtio_blk_refuse(request, VIRTIO_BLK_S_IOERR);
    else if (!type || (type->feature != NO_FEATURE && !queue_has_feature(queue, type->feature)))
        virtio_blk_refuse(request, VIRTIO_BLK_S_UNSUPP);
    else {
        request->type = (uint8_t)number;
        type->handle(request, &message);
    }
}
