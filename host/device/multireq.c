/*
 * Step 4: requests of one kind that touch on disk become one.
 *
 * While the ring is emptied, reads or writes are gathered, up to MULTIREQ_MAX of one kind. Before anything
 * that must not overtake them (a request of another kind, a flush, the end of the ring) they are put in disk
 * order, and each run without gaps goes down as one request, as far as the limits of the node below allow,
 * and with others left to be in flight beside it (MULTIREQ_RUN_MIN). A request that comes alone takes none of
 * these steps.
 *
 * Requests that can't touch, as random ones mostly can't, are told by a hashed set of their beginnings, and
 * go down as they came.
 *
 * What always holds: the order of requests with equal sectors is that of the ring; a joined request that
 * fails is done again one by one, so that each driver's request gets the result that it would have had alone.
 */
#include <string.h>

#include "host/device/virtio_blk_internal.h"
#include "host/runtime/trace.h"

static void merged_complete(struct blk_request *blk_request, int result)
{
    struct virtio_blk_request *request = (struct virtio_blk_request *)blk_request;
    struct virtio_blk_queue *queue = request->queue;

    request_block_put(queue, request->merged_block);
    request->merged_block = NULL;
    while (request) {
        struct virtio_blk_request *next = request->merged_next;

        request->merged_next = NULL;
        if (result == 0)
            virtio_blk_complete_rw(request, 0);
        else
            virtio_blk_submit_rw(request);
        request = next;
    }
}

/* Submits REQUESTS[0..COUNT), which touch, as one. False: there is no memory for it now. The last block is
 * not for this: the request that was just taken off the ring counts on it. */
static bool submit_run(struct virtio_blk_queue *queue, struct virtio_blk_request **requests, unsigned count)
{
    struct virtio_blk_request *first = requests[0];
    union request_block *block = request_block_get(queue);
    uint64_t bytes = 0;
    unsigned niov = 0;

    if (!block)
        return false;
    if (!request_block_at_hand(queue)) {
        request_block_put(queue, block);
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        for (unsigned k = 0; k < requests[i]->niov; k++)
            block->iov[niov++] = requests[i]->iov[k];
        bytes += requests[i]->bytes;
        requests[i]->merged_next = i + 1 < count ? requests[i + 1] : NULL;
    }
    first->merged_block = block;
    first->blk.complete = merged_complete;
    STAT_ADD(queue, merges, 1);
    STAT_ADD(queue, merged_requests, count);
    trace(TRACE_MULTIREQ_SUBMIT, first->blk.trace_id, first->offset, bytes);
    if (first->type == VIRTIO_BLK_T_IN) {
        blk_account_merged(queue->blk, BLK_READ, count - 1);
        blk_aio_preadv(queue->blk, &first->blk, first->offset, bytes, block->iov, niov);
    } else {
        blk_account_merged(queue->blk, BLK_WRITE, count - 1);
        blk_aio_pwritev(queue->blk, &first->blk, first->offset, bytes, block->iov, niov, 0);
    }
    return true;
}

static void submit_single(struct virtio_blk_request *request)
{
    trace(TRACE_MULTIREQ_SUBMIT, request->blk.trace_id, request->offset, request->bytes);
    virtio_blk_submit_rw(request);
}

/* Insertion: stable, and next to nothing when they are in order already, as they mostly are. */
static void sort_by_offset(struct virtio_blk_request **requests, unsigned count)
{
    for (unsigned i = 1; i < count; i++) {
        struct virtio_blk_request *request = requests[i];
        unsigned at = i;

        while (at > 0 && requests[at - 1]->offset > request->offset) {
            requests[at] = requests[at - 1];
            at--;
        }
        requests[at] = request;
    }
}

static unsigned filter_bit(uint64_t offset)
{
    /* Fibonacci hashing: the upper bits of the product depend on all of the sector's. */
    return (unsigned)(offset / VIRTIO_BLK_SECTOR_BYTES * 0x9e3779b97f4a7c15u >> 52) % MULTIREQ_FILTER_BITS;
}

/* Can any of them touch another one? Random requests mostly don't, and then sorting would be for nothing. */
static bool may_touch(const struct multireq *multireq, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned bit = filter_bit(multireq->requests[i]->offset + multireq->requests[i]->bytes);

        if (multireq->begins[bit / 64] >> (bit % 64) & 1)
            return true;
    }
    return false;
}

void multireq_submit(struct virtio_blk_queue *queue)
{
    struct multireq *multireq = &queue->multireq;
    struct virtio_blk_request **requests = multireq->requests;
    unsigned count = multireq->count, start = 0;
    unsigned run_max = queue->in_flight / 4 > MULTIREQ_RUN_MIN ? queue->in_flight / 4 : MULTIREQ_RUN_MIN;

    if (count == 0)
        return;
    multireq->count = 0;
    if (count == 1 || !may_touch(multireq, count)) {
        for (unsigned i = 0; i < count; i++)
            submit_single(requests[i]);
        return;
    }
    sort_by_offset(requests, count);
    while (start < count) {
        uint64_t bytes = requests[start]->bytes;
        unsigned niov = requests[start]->niov, end = start + 1;

        while (end < count && end - start < run_max &&
               requests[end]->offset == requests[end - 1]->offset + requests[end - 1]->bytes &&
               niov + requests[end]->niov <= queue->device->merge_max_iov &&
               bytes + requests[end]->bytes <= queue->device->merge_max_bytes) {
            niov += requests[end]->niov;
            bytes += requests[end]->bytes;
            end++;
        }
        if (end - start == 1 || !submit_run(queue, &requests[start], end - start))
            for (unsigned i = start; i < end; i++)
                submit_single(requests[i]);
        start = end;
    }
}

void multireq_add(struct virtio_blk_queue *queue, struct virtio_blk_request *request)
{
    struct multireq *multireq = &queue->multireq;
    unsigned bit;

    if (!queue->merging) {
        submit_single(request);
        return;
    }
    if (multireq->count == MULTIREQ_MAX || (multireq->count > 0 && multireq->type != request->type))
        multireq_submit(queue);
    if (multireq->count == 0)
        memset(multireq->begins, 0, sizeof(multireq->begins));
    bit = filter_bit(request->offset);
    multireq->begins[bit / 64] |= 1ull << (bit % 64);
    multireq->type = request->type;
    multireq->requests[multireq->count++] = request;
}
