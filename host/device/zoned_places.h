/*
 * What was begun or done in zones for requests in flight, so that whoever takes them up again after the
 * device's death (inflight I/O tracking) does each of them once. An append must go to the place that it had
 * been given, or its data would be on the disk twice, with a hole in the zone that nobody wrote. A write has
 * passed the write pointer, which one that was refused, or had not been looked at, may not. A reset, say,
 * that was carried out must not empty what another queue has written to the zone since.
 *
 * A place is known by the queue, the entry in the queue's inflight region, and the counter of that taking. It
 * is written when the request takes its effect on the zone, under the same guard, and stays until the entry
 * serves another such request: whether the driver has seen the answer is for the region to say. When a queue
 * starts, what its region does not hold any more is forgotten, and so no counter is ever met twice. A zone's
 * count of resets makes places in its former life void.
 *
 * Under the guard of struct zoned. The table may lie in the state file, which is a stranger's when it is
 * opened.
 */
#ifndef RINGSIDE_DEVICE_ZONED_PLACES_H
#define RINGSIDE_DEVICE_ZONED_PLACES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/endian.h"
#include "host/device/ring_inflight.h"

struct state_place {
    le64 counter_plus_1; /* 0: none; written last */
    le64 sector;
    le32 sectors, resets; /* no sectors: a command, which was done */
    le16 queue, entry;
    le32 reserved; /* a mark while places are sorted out */
};

struct zoned_places {
    struct state_place *table; /* `queues` times `size`, zeroed at first */
    uint32_t queues, size;
};

/* Who asks. Not TRACKED: there is no inflight region. AGAIN: it was taken before a restart. */
struct zoned_ticket {
    uint16_t queue, entry;
    uint64_t counter;
    bool tracked, again;
};

/* The place of this very taking, or NULL. */
const struct state_place *places_find(const struct zoned_places *places, const struct zoned_ticket *ticket);
void places_note(struct zoned_places *places, const struct zoned_ticket *ticket, uint64_t sector,
                 uint32_t sectors, uint32_t resets);
void places_forget(struct zoned_places *places, const struct zoned_ticket *ticket);
/* A place of another table. One that has no room here is forgotten. */
void places_take_over(struct zoned_places *places, const struct state_place *place);
/* Of QUEUE's places only those of REQUESTS stay. The others are handed to FORGOTTEN first. True: there were
 * some. */
bool places_keep(struct zoned_places *places, uint32_t queue, const struct inflight_request *requests,
                 unsigned num, void (*forgotten)(void *opaque, const struct state_place *place),
                 void *opaque);

#endif
