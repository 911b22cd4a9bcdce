/*
 * A queue's ring, drawn in text: who owns which slot, where driver and device stand, and the descriptors of
 * the chains that were queued last. A split ring (virtio 1.4, 2.7) is three tables, a packed one (2.8) is
 * one.
 *
 * Numbers that the device may have written are masked before they are used as an index.
 */
#include "guest/apps/shell_queue.h"

#include <stdio.h>

#define LINE_SLOTS  64u
#define CHAINS_MAX  6u
#define DESCS_MAX   8u
#define PACKED_SHOW 12u

static void flags_text(uint16_t flags, char text[48])
{
    snprintf(text, 48, "%s%s%s%s%s", flags & VIRTQ_DESC_F_INDIRECT ? " table" : "",
             flags & VIRTQ_DESC_F_WRITE      ? " device-writes"
             : flags & VIRTQ_DESC_F_INDIRECT ? ""
                                             : " device-reads",
             flags & VIRTQ_DESC_F_NEXT ? " next" : "", flags & VIRTQ_DESC_F_AVAIL ? " AVAIL" : "",
             flags & VIRTQ_DESC_F_USED ? " USED" : "");
}

/* ---- split ---- */

/* What slot SLOT of the available ring holds: '#' the device has it, '=' answered and not taken, '.' nothing.
 */
static char split_mark(const struct vblk_queue_view *v, uint16_t used_idx, unsigned slot)
{
    uint16_t from_last = (uint16_t)(slot - v->last_used) & (uint16_t)(v->size - 1);
    uint16_t waiting = (uint16_t)(v->next - v->last_used), answered = (uint16_t)(used_idx - v->last_used);
    if (from_last >= waiting)
        return '.';
    return from_last < answered ? '=' : '#';
}

static void ring_line(const struct vblk_queue_view *v, uint16_t used_idx)
{
    for (unsigned slot = 0; slot < v->size; slot++) {
        if (slot % LINE_SLOTS == 0)
            printf("%s  %5u  ", slot ? "\n" : "", slot);
        putchar(split_mark(v, used_idx, slot));
    }
    printf("\n         . free   # the device has it   = answered, not taken\n");
}

static void split_chain(const struct vblk_queue_view *v, unsigned position, uint16_t used_idx)
{
    unsigned slot = position & (v->size - 1), at = le16_load(&v->avail->ring[slot]) & (v->size - 1);
    printf("  avail.ring[%u] = %u %c\n", slot, at, split_mark(v, used_idx, slot));
    for (unsigned n = 0; n < DESCS_MAX; n++) {
        char flags[48];
        uint16_t f = le16_load(&v->desc[at].flags);
        flags_text(f & (VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_INDIRECT), flags);
        printf("    desc[%u] addr %#llx len %u%s\n", at, (unsigned long long)le64_get(v->desc[at].addr),
               (unsigned)le32_load(&v->desc[at].len), flags);
        if (!(f & VIRTQ_DESC_F_NEXT))
            return;
        at = le16_load(&v->desc[at].next) & (v->size - 1);
    }
    printf("    ...\n");
}

static void split_picture(const struct vblk_queue_view *v)
{
    uint16_t used_idx = le16_load(&v->used->idx);
    printf("  driver: avail.idx %u, flags %u, used_event %u; has taken %u\n", le16_load(&v->avail->idx),
           le16_load(&v->avail->flags), le16_load(&v->avail->ring[v->size]), v->last_used);
    printf("  device: used.idx %u, flags %u, avail_event %u\n", used_idx, le16_load(&v->used->flags),
           le16_load((const le16 *)(const void *)&v->used->ring[v->size]));
    ring_line(v, used_idx);
    unsigned waiting = (uint16_t)(v->next - v->last_used), show = waiting ? waiting : v->next ? 1 : 0;
    for (unsigned n = show < CHAINS_MAX ? show : CHAINS_MAX; n > 0; n--)
        split_chain(v, v->next - n, used_idx);
}

/* ---- packed ---- */

/* AVAIL and USED differ: the device's turn, if AVAIL is the wrap counter of that lap; else the driver's. */
static void packed_picture(const struct vblk_queue_view *v)
{
    printf("  driver: next slot %u, wrap %u; looks at slot %u, wrap %u; event off_wrap %#x flags %u\n",
           v->next, v->wrap, v->last_used, v->used_wrap, le16_load(&v->driver_event->off_wrap),
           le16_load(&v->driver_event->flags));
    printf("  device: event off_wrap %#x flags %u\n", le16_load(&v->device_event->off_wrap),
           le16_load(&v->device_event->flags));
    for (unsigned slot = 0; slot < v->size; slot++) {
        uint16_t flags = le16_load(&v->packed_desc[slot].flags);
        bool avail = flags & VIRTQ_DESC_F_AVAIL, used = flags & VIRTQ_DESC_F_USED;
        if (slot % LINE_SLOTS == 0)
            printf("%s  %5u  ", slot ? "\n" : "", slot);
        putchar(avail != used ? '#' : flags ? '=' : '.');
    }
    printf("\n         . never used   # AVAIL and USED differ: available   = the same: used\n");
    for (unsigned n = 0; n < PACKED_SHOW && n < v->size; n++) {
        unsigned slot = (v->last_used + v->size - (v->in_flight ? 0 : 3) + n) % v->size;
        const struct virtq_packed_desc *desc = &v->packed_desc[slot];
        char flags[48];
        flags_text(le16_load(&desc->flags), flags);
        printf("  %s[%u] addr %#llx len %u id %u%s\n", slot == v->next ? "next→" : "     ", slot,
               (unsigned long long)le64_get(desc->addr), (unsigned)le32_load(&desc->len),
               le16_load(&desc->id), flags);
        if (slot == v->next)
            break;
    }
}

void queue_picture(const struct vblk *disk, unsigned queue)
{
    struct vblk_queue_view view;
    vblk_queue_view(disk, queue, &view);
    printf("queue %u: %s ring of %u, %u chains in flight, %u descriptors free%s\n", queue,
           view.packed ? "packed" : "split", view.size, view.in_flight, view.num_free,
           view.broken ? ", BROKEN" : "");
    if (view.packed)
        packed_picture(&view);
    else
        split_picture(&view);
}
