/* What requests in flight did to zones: see zoned_places.h. */
#include "host/device/zoned_places.h"

_Static_assert(sizeof(struct state_place) == 32, "the state file's layout");

static struct state_place *place_of(const struct zoned_places *places, const struct zoned_ticket *ticket)
{
    if (!ticket->tracked || ticket->queue >= places->queues || ticket->entry >= places->size)
        return NULL;
    return &places->table[(size_t)ticket->queue * places->size + ticket->entry];
}

/* The process may die between any two stores; only the compiler's order matters. */
static void set_counter(struct state_place *place, uint64_t counter_plus_1)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    place->counter_plus_1 = le64_put(counter_plus_1);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

const struct state_place *places_find(const struct zoned_places *places, const struct zoned_ticket *ticket)
{
    const struct state_place *place = place_of(places, ticket);

    return place && le64_get(place->counter_plus_1) == ticket->counter + 1 ? place : NULL;
}

void places_note(struct zoned_places *places, const struct zoned_ticket *ticket, uint64_t sector,
                 uint32_t sectors, uint32_t resets)
{
    struct state_place *place = place_of(places, ticket);

    if (!place)
        return;
    set_counter(place, 0);
    place->sector = le64_put(sector);
    place->sectors = le32_put(sectors);
    place->resets = le32_put(resets);
    place->queue = le16_put(ticket->queue);
    place->entry = le16_put(ticket->entry);
    set_counter(place, ticket->counter + 1);
}

void places_forget(struct zoned_places *places, const struct zoned_ticket *ticket)
{
    struct state_place *place = place_of(places, ticket);

    if (place)
        set_counter(place, 0);
}

void places_take_over(struct zoned_places *places, const struct state_place *place)
{
    const struct zoned_ticket ticket = {.queue = le16_get(place->queue),
                                        .entry = le16_get(place->entry),
                                        .counter = le64_get(place->counter_plus_1) - 1,
                                        .tracked = le64_get(place->counter_plus_1) != 0};

    places_note(places, &ticket, le64_get(place->sector), le32_get(place->sectors), le32_get(place->resets));
}

bool places_keep(struct zoned_places *places, uint32_t queue, const struct inflight_request *requests,
                 unsigned num, void (*forgotten)(void *opaque, const struct state_place *place), void *opaque)
{
    struct state_place *table;
    bool dropped = false;

    if (queue >= places->queues)
        return false;
    table = &places->table[(size_t)queue * places->size];
    for (uint32_t entry = 0; entry < places->size; entry++)
        table[entry].reserved = le32_put(0);
    for (unsigned i = 0; i < num; i++)
        if (requests[i].entry < places->size &&
            le64_get(table[requests[i].entry].counter_plus_1) == requests[i].counter + 1)
            table[requests[i].entry].reserved = le32_put(1);
    for (uint32_t entry = 0; entry < places->size; entry++)
        if (le64_get(table[entry].counter_plus_1) != 0 && le32_get(table[entry].reserved) == 0) {
            forgotten(opaque, &table[entry]);
            set_counter(&table[entry], 0);
            dropped = true;
        }
    return dropped;
}
