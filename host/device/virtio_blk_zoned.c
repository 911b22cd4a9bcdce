/*
 * Requests on a zoned disk (virtio 1.4, 5.2.6): the zone commands, and what is different about reads and
 * writes.
 *
 * A read behind the write pointer gets zeroes and touches no disk. ZONE_APPEND says where it wrote in the
 * eight bytes before the status byte.
 */
#include <string.h>

#include "host/device/virtio_blk_internal.h"

static uint64_t sectors_of(uint64_t bytes)
{
    return bytes / VIRTIO_BLK_SECTOR_BYTES;
}

/* Cuts off what is behind the first BYTES of the request's data, and clears it. */
static void zero_tail(struct virtio_blk_request *request, uint64_t bytes)
{
    struct sg tail = sg_make(request->iov, request->niov);

    request->zero_bytes = request->bytes - bytes;
    request->bytes = bytes;
    sg_zero(sg_advance(tail, bytes), request->zero_bytes);
    if (request->queue->log.bits)
        dirty_log_mark_iov(&request->queue->log, request->queue->memory, request->iov, request->niov);
    request->niov = 0;
    while (bytes > 0) {
        struct iovec *piece = &request->iov[request->niov++];

        if (piece->iov_len > bytes)
            piece->iov_len = bytes;
        bytes -= piece->iov_len;
    }
}

static struct zoned_ticket ticket_of(const struct virtio_blk_request *request)
{
    const struct virtio_blk_queue *queue = request->queue;

    return (struct zoned_ticket){.queue = (uint16_t)queue->index,
                                 .entry = request->entry,
                                 .counter = request->counter,
                                 .tracked = queue->track_inflight,
                                 .again = request->again};
}

void virtio_blk_zoned_end(struct virtio_blk_request *request, bool ok)
{
    struct zoned_ticket ticket = ticket_of(request);

    zoned_write_end(request->queue->device->zoned, sectors_of(request->offset), sectors_of(request->bytes),
                    &ticket, ok);
}

bool virtio_blk_zoned_begin(struct virtio_blk_request *request)
{
    struct virtio_blk_queue *queue = request->queue;
    struct zoned *zoned = queue->device->zoned;
    struct zoned_ticket ticket = ticket_of(request);
    uint64_t sector = sectors_of(request->offset), sectors = sectors_of(request->bytes), written;
    uint8_t status;

    if (request->type == VIRTIO_BLK_T_OUT) {
        status = zoned_write_begin(zoned, sector, sectors, &ticket);
        if (status == VIRTIO_BLK_S_OK)
            return true;
        virtio_blk_refuse(request, status);
        return false;
    }
    status = zoned_read(zoned, sector, sectors, &written);
    if (status != VIRTIO_BLK_S_OK) {
        virtio_blk_refuse(request, status);
        return false;
    }
    if (written == sectors)
        return true;
    zero_tail(request, written * VIRTIO_BLK_SECTOR_BYTES);
    if (written > 0)
        return true;
    virtio_blk_complete(request, VIRTIO_BLK_S_OK, request->zero_bytes);
    return false;
}

/* ---- ZONE_APPEND ---- */

static void append_complete(struct blk_request *blk_request, int result)
{
    struct virtio_blk_request *request = (struct virtio_blk_request *)blk_request;
    struct virtio_blk_queue *queue = request->queue;
    const struct iovec *trailer = request->iov + request->niov;
    le64 sector = le64_put(sectors_of(request->offset));
    uint8_t status = VIRTIO_BLK_S_OK;
    uint64_t data_bytes = 0;

    if (result < 0 && !virtio_blk_failed(request, result, &status))
        return;
    virtio_blk_zoned_end(request, result == 0);
    if (status == VIRTIO_BLK_S_OK) {
        sg_copy_in(sg_make(trailer, request->trailer_niov), &sector, sizeof(sector));
        if (queue->log.bits)
            dirty_log_mark_iov(&queue->log, queue->memory, trailer, request->trailer_niov);
        if (request->in_bytes == sizeof(sector) + 1)
            data_bytes = sizeof(sector);
    }
    virtio_blk_complete(request, status, data_bytes);
}

void virtio_blk_submit_append(struct virtio_blk_request *request)
{
    request->blk.complete = append_complete;
    blk_aio_pwritev(request->queue->blk, &request->blk, request->offset, request->bytes, request->iov,
                    request->niov, 0);
}

void virtio_blk_handle_append(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    struct virtio_blk_queue *queue = request->queue;
    uint64_t bytes = message->out_bytes, at = 0;
    struct zoned_ticket ticket = ticket_of(request);
    struct sg trailer;
    uint8_t status;

    /* Room for both, and for the sector's place: data and eight bytes of any framing. */
    if (bytes == 0 || bytes % VIRTIO_BLK_SECTOR_BYTES != 0 || bytes > UINT32_MAX ||
        message->in_bytes < sizeof(le64) || message->chain->too_long ||
        message->sector >= queue->device->capacity_sectors) {
        virtio_blk_refuse(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    status = zoned_append_begin(queue->device->zoned, message->sector, sectors_of(bytes), &ticket, &at);
    if (status != VIRTIO_BLK_S_OK) {
        virtio_blk_refuse(request, status);
        return;
    }
    request->offset = at * VIRTIO_BLK_SECTOR_BYTES;
    request->bytes = bytes;
    trailer = sg_advance(sg_make(message->in, message->in_count), message->in_bytes - sizeof(le64));
    virtio_blk_keep_segments(request, message->out, trailer.niov);
    for (unsigned i = 0; i < trailer.niov; i++)
        request->iov[request->niov + i] = trailer.iov[i];
    request->trailer_niov = (uint16_t)trailer.niov;
    if (trailer.skip > 0) {
        struct iovec *first = &request->iov[request->niov];

        first->iov_base = (uint8_t *)first->iov_base + trailer.skip;
        first->iov_len -= trailer.skip;
    }
    virtio_blk_submit_append(request);
}

/* ---- ZONE_REPORT ---- */

#define REPORT_AT_ONCE 32u
#define REPORT_MAX     4096u /* zones in one answer: the driver goes on from there */

void virtio_blk_handle_report(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    struct virtio_blk_queue *queue = request->queue;
    struct zoned *zoned = queue->device->zoned;
    struct virtio_blk_zone_report header = {0};
    struct virtio_blk_zone_descriptor zones[REPORT_AT_ONCE];
    uint64_t zone_sectors = queue->device->options.zoned.zone_sectors;
    uint64_t sector = message->sector, room, done = 0;

    if (message->in_bytes < sizeof(header) || message->chain->too_long ||
        sector >= queue->device->capacity_sectors) {
        virtio_blk_refuse(request, VIRTIO_BLK_S_ZONE_INVALID_CMD);
        return;
    }
    room = (message->in_bytes - sizeof(header)) / sizeof(zones[0]);
    if (room > REPORT_MAX)
        room = REPORT_MAX;
    while (done < room && sector < queue->device->capacity_sectors) {
        unsigned most = room - done < REPORT_AT_ONCE ? (unsigned)(room - done) : REPORT_AT_ONCE;
        unsigned n = zoned_report(zoned, sector, zones, most);

        virtio_blk_answer_with(request, message, sizeof(header) + done * sizeof(zones[0]), zones,
                               n * sizeof(zones[0]));
        done += n;
        sector += n * zone_sectors;
    }
    header.nr_zones = le64_put(done);
    virtio_blk_answer_with(request, message, 0, &header, sizeof(header));
    virtio_blk_complete(request, VIRTIO_BLK_S_OK, sizeof(header) + done * sizeof(zones[0]));
}

/* ---- OPEN, CLOSE, FINISH, RESET, RESET_ALL ---- */

void virtio_blk_handle_zone(struct virtio_blk_request *request, const struct virtio_blk_message *message)
{
    struct zoned_ticket ticket = ticket_of(request);
    uint8_t status = zoned_manage(request->queue->device->zoned, request->type, message->sector, &ticket);

    if (status == VIRTIO_BLK_S_OK)
        virtio_blk_complete(request, status, 0);
    else
        virtio_blk_refuse(request, status);
}
