/*
 * Translation of I/O virtual addresses (vhost-user, "IOMMU support"; VIRTIO_F_ACCESS_PLATFORM): a table of
 * what the front end has told, in the form in which the device reads memory tables.
 *
 * A table does not change under a ring that runs: every change takes the rings back first. A ring that finds
 * an address missing waits; the question goes out on the back end's channel, and the update that answers it
 * starts the ring again. When the table is full it is emptied: what is still needed is asked for once more.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/vhost_user/connection.h"

int iotlb_enable(struct vhost_user_connection *c, bool on, struct error *err)
{
    if (!on) {
        free(c->iotlb);
        c->iotlb = NULL;
        return 0;
    }
    if (!c->iotlb)
        c->iotlb = calloc(1, sizeof *c->iotlb);
    if (!c->iotlb)
        return error_set(err, -ENOMEM, "no memory for a table of translations");
    c->iotlb->translated = true;
    iotlb_forget(c);
    return 0;
}

/* The last address of [IOVA, IOVA+SIZE); one that goes past the end ends there. SIZE 0 is 2^64, as QEMU
 * writes the invalidation of everything. */
static uint64_t last_of(uint64_t iova, uint64_t size)
{
    return size - 1 > UINT64_MAX - iova ? UINT64_MAX : iova + (size - 1);
}

/* What was asked about [FIRST, LAST] is answered by the table, or (TAKEN_BACK) no question any more. An
 * answer that does not help, say one for reading where the ring has to write, leaves it asked: asking again
 * would get the same answer, again and again. */
static void iotlb_answered(struct vhost_user_connection *c, uint64_t first, uint64_t last, bool taken_back)
{
    for (unsigned i = 0; i < c->options->num_queues; i++) {
        struct vring *r = &c->rings[i];
        uint64_t missing;
        if (r->miss_iova < first || r->miss_iova > last)
            continue;
        if (taken_back || !guest_memory_missing(c->iotlb, (guest_addr){r->miss_iova}, 1,
                                                r->miss_permissions & VHOST_USER_IOTLB_WRITE, &missing))
            r->miss_asked = r->miss_pending = false;
    }
}

void iotlb_forget(struct vhost_user_connection *c)
{
    if (!c->iotlb)
        return;
    c->iotlb->count = 0;
    iotlb_answered(c, 0, UINT64_MAX, true);
}

void *iotlb_ring_part(const struct vhost_user_connection *c, uint64_t iova, uint64_t bytes, bool writable,
                      uint64_t *missing)
{
    if (guest_memory_missing(c->iotlb, (guest_addr){iova}, bytes, writable, missing))
        return NULL;
    return guest_memory_pointer(c->iotlb, (guest_addr){iova}, bytes);
}

static bool iotlb_overlaps(const struct guest_memory *table, uint64_t first, uint64_t last)
{
    for (unsigned i = 0; i < table->count; i++) {
        const struct guest_region *r = &table->regions[i];
        if (r->guest_addr <= last && r->guest_addr + (r->bytes - 1) >= first)
            return true;
    }
    return false;
}

/* Takes [FIRST, LAST] out; what is left of an entry on either side stays. */
static void iotlb_cut(struct guest_memory *table, uint64_t first, uint64_t last)
{
    for (unsigned i = 0; i < table->count;) {
        struct guest_region *r = &table->regions[i];
        uint64_t end = r->guest_addr + (r->bytes - 1);
        if (r->guest_addr > last || end < first) {
            i++;
            continue;
        }
        struct guest_region right = *r;
        bool keep_left = r->guest_addr<first, keep_right = end> last;
        if (keep_right) {
            right.host += last + 1 - r->guest_addr;
            right.bytes = end - last;
            right.guest_addr = last + 1;
        }
        if (keep_left) {
            r->bytes = first - r->guest_addr;
            i++;
            if (keep_right)
                guest_memory_add(table, &right); /* no room: that part is asked for again */
        } else if (keep_right) {
            *r = right;
            i++;
        } else {
            memmove(r, r + 1, (table->count - i - 1) * sizeof *r);
            table->count--;
        }
    }
}

/* Entries that touch in both address spaces become one: rings have to lie in one piece. */
static void iotlb_join(struct guest_memory *table)
{
    unsigned to = 0;
    for (unsigned i = 1; i < table->count; i++) {
        struct guest_region *a = &table->regions[to];
        const struct guest_region *b = &table->regions[i];
        if (a->guest_addr + a->bytes == b->guest_addr && a->host + a->bytes == b->host &&
            a->read_only == b->read_only)
            a->bytes += b->bytes;
        else
            table->regions[++to] = *b;
    }
    if (table->count > 0)
        table->count = to + 1;
}

static int iotlb_update(struct vhost_user_connection *c, const struct vhost_user_iotlb *m)
{
    uint64_t end;
    if (m->size == 0 || __builtin_add_overflow(m->iova, m->size, &end) ||
        !(m->permissions & (VHOST_USER_IOTLB_READ | VHOST_USER_IOTLB_WRITE)))
        return -EINVAL;
    /* "Addresses and size must be within vhost memory regions" */
    uint8_t *host = guest_memory_user_pointer(c->memory, m->user_addr, m->size);
    if (!host)
        return -EFAULT;
    struct guest_region region = {.guest_addr = m->iova,
                                  .bytes = m->size,
                                  .host = host,
                                  .read_only = !(m->permissions & VHOST_USER_IOTLB_WRITE),
                                  .fd = -1};
    iotlb_cut(c->iotlb, m->iova, end - 1);
    if (c->iotlb->count == GUEST_REGIONS_MAX)
        c->iotlb->count = 0;
    int ret = guest_memory_add(c->iotlb, &region);
    iotlb_join(c->iotlb);
    return ret;
}

int coroutine_fn handle_iotlb_msg(struct vhost_user_connection *c, struct vhost_user_message *m,
                                  struct vhost_user_message *reply, struct error *err)
{
    const struct vhost_user_iotlb *iotlb = &m->payload.iotlb;
    int ret = 0;

    if (!c->iotlb)
        return error_set(err, -EBADMSG, "IOTLB_MSG came without ACCESS_PLATFORM being negotiated");
    if (iotlb->type != VHOST_USER_IOTLB_UPDATE && iotlb->type != VHOST_USER_IOTLB_INVALIDATE)
        return error_set(err, -EBADMSG, "IOTLB_MSG of type %u, neither update nor invalidation", iotlb->type);
    if (iotlb->type == VHOST_USER_IOTLB_UPDATE) {
        rings_pause(c);
        ret = iotlb_update(c, iotlb);
    } else if (iotlb_overlaps(c->iotlb, iotlb->iova, last_of(iotlb->iova, iotlb->size))) {
        rings_pause(c);
        iotlb_cut(c->iotlb, iotlb->iova, last_of(iotlb->iova, iotlb->size));
    }
    iotlb_answered(c, iotlb->iova, last_of(iotlb->iova, iotlb->size),
                   iotlb->type == VHOST_USER_IOTLB_INVALIDATE);
    if (ret < 0)
        log_message("a translation of 0x%" PRIx64 " (0x%" PRIx64 " bytes) does not lead to guest memory",
                    iotlb->iova, iotlb->size);
    reply->payload.u64 = ret != 0;
    reply->header.size = sizeof reply->payload.u64;
    return rings_update(c, err);
}
