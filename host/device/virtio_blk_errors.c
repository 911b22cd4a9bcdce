/*
 * What becomes of requests that the block layer failed: reported to the driver, taken as done, or parked
 * until somebody has made room on the disk and says virtio_blk_resume.
 *
 * A parked request is still in flight: its descriptors are not given back, and the inflight region knows it.
 * A queue that is stopped meanwhile leaves it there if there is such a region, and fails it otherwise. The
 * same goes for a request that would be parked while its queue stops.
 */
#include <errno.h>

#include "host/device/virtio_blk_internal.h"

static enum virtio_blk_policy policy_for(const struct virtio_blk_request *request, int result)
{
    const struct virtio_blk_options *options = &request->queue->device->options;
    enum virtio_blk_policy policy =
        request->type == VIRTIO_BLK_T_IN ? options->read_error : options->write_error;

    if (policy == VIRTIO_BLK_ENOSPC)
        policy = result == -ENOSPC ? VIRTIO_BLK_STOP : VIRTIO_BLK_REPORT;
    /* Nobody will resume a queue that is on its way out. */
    if (policy == VIRTIO_BLK_STOP && request->queue->state != QUEUE_RUNNING && !request->queue->keeps_parked)
        policy = VIRTIO_BLK_REPORT;
    return policy;
}

/* Gives back what a request that is not going to be written holds in its zone. One that is left to the
 * inflight region keeps it, for whoever takes it up again. */
static void leave_zone(struct virtio_blk_request *request)
{
    if (request->queue->device->zoned &&
        (request->type == VIRTIO_BLK_T_OUT || request->type == VIRTIO_BLK_T_ZONE_APPEND))
        virtio_blk_zoned_end(request, false);
}

bool virtio_blk_failed(struct virtio_blk_request *request, int result, uint8_t *status)
{
    struct virtio_blk_queue *queue = request->queue;
    struct virtio_blk *device = queue->device;

    switch (policy_for(request, result)) {
    case VIRTIO_BLK_IGNORE:
        *status = VIRTIO_BLK_S_OK;
        return true;
    case VIRTIO_BLK_STOP:
        if (queue->state != QUEUE_RUNNING) {
            virtio_blk_queue_forget(queue, request);
            return false;
        }
        request->merged_next = queue->parked;
        queue->parked = request;
        STAT_ADD(queue, parked, 1);
        if (device->events.stopped)
            device->events.stopped(device->events.opaque, queue->index, result);
        return false;
    default:
        *status = VIRTIO_BLK_S_IOERR;
        return true;
    }
}

/* The list is newest first; what it gives out is oldest first. */
static struct virtio_blk_request *take_parked(struct virtio_blk_queue *queue)
{
    struct virtio_blk_request *list = queue->parked, *oldest_first = NULL;

    queue->parked = NULL;
    __atomic_store_n(&queue->stats.parked, 0, __ATOMIC_RELAXED);
    while (list) {
        struct virtio_blk_request *next = list->merged_next;

        list->merged_next = oldest_first;
        oldest_first = list;
        list = next;
    }
    return oldest_first;
}

void virtio_blk_queue_resume(struct virtio_blk_queue *queue)
{
    struct virtio_blk_request *request = take_parked(queue);

    while (request) {
        struct virtio_blk_request *next = request->merged_next;

        request->merged_next = NULL;
        virtio_blk_submit(request);
        request = next;
    }
}

void virtio_blk_queue_drop_parked(struct virtio_blk_queue *queue)
{
    struct virtio_blk_request *request = take_parked(queue);

    while (request) {
        struct virtio_blk_request *next = request->merged_next;

        request->merged_next = NULL;
        if (queue->keeps_parked) {
            virtio_blk_queue_forget(queue, request);
        } else {
            leave_zone(request);
            virtio_blk_complete(request, VIRTIO_BLK_S_IOERR, 0);
        }
        request = next;
    }
}

bool virtio_blk_may_park(const struct virtio_blk *device)
{
    const struct virtio_blk_options *options = &device->options;

    return options->read_error == VIRTIO_BLK_STOP || options->read_error == VIRTIO_BLK_ENOSPC ||
           options->write_error == VIRTIO_BLK_STOP || options->write_error == VIRTIO_BLK_ENOSPC;
}
