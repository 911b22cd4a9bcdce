/*
 * A queue's ring shown to people: a lesson's picture, a debugger's question. Reads private state only.
 */
#include "guest/driver/vblk_internal.h"

void vblk_queue_view(const struct vblk *disk, unsigned queue, struct vblk_queue_view *view)
{
    const struct vq *vq;

    memset(view, 0, sizeof(*view));
    if (queue >= disk->num_queues)
        return;
    vq = &disk->queues[queue].vq;
    view->packed = disk->packed;
    view->broken = vq->broken;
    view->size = vq->size;
    view->num_free = vq->num_free;
    view->in_flight = vq->in_flight;
    view->last_used = vq->last_used;
    if (disk->packed) {
        view->packed_desc = vq->u.packed.desc;
        view->driver_event = vq->u.packed.driver;
        view->device_event = vq->u.packed.device;
        view->next = vq->u.packed.next;
        view->wrap = vq->u.packed.wrap;
        view->used_wrap = vq->u.packed.used_wrap;
    } else {
        view->desc = vq->u.split.desc;
        view->avail = vq->u.split.avail;
        view->used = vq->u.split.used;
        view->next = vq->u.split.avail_idx;
    }
}
