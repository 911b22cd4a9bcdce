/*
 * The L2 tables that a check has met, and how often.
 *
 * Snapshots share L2 tables with the disk, and a hostile L1 table may name one a million times. A table is
 * read when it is met first and, if it is met again, once more for all the other times: so a check takes as
 * long as the file is large, whatever its tables say.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/qcow2/check.h"

/* A slot: cluster + 1 in the lower half, times met after the first above it; once settled, what is left of
 * that to be known. 0: empty. */
#define TIMES_SHIFT 32u
#define TIMES_MAX   UINT32_MAX
#define VISITED     (1ull << TIMES_SHIFT)
#define MIXED       (2ull << TIMES_SHIFT)

_Static_assert(CHECK_MAX_CLUSTERS < UINT32_MAX, "a cluster's number fits in half a slot");

static uint64_t slot_cluster(uint64_t slot)
{
    return (uint32_t)slot - 1;
}

static uint64_t *place(const struct check_tables *t, uint64_t cluster)
{
    size_t i = (size_t)qcow2_hash(t->seed, cluster) & (t->room - 1);
    while (t->slots[i] && slot_cluster(t->slots[i]) != cluster)
        i = (i + 1) & (t->room - 1);
    return &t->slots[i];
}

static bool grow(struct check *check)
{
    struct check_tables *t = &check->tables,
                        bigger = {.room = t->room ? t->room * 2 : CHECK_PAGE_BYTES / sizeof(*t->slots),
                                  .seed = t->room ? t->seed : qcow2_hash_seed()};
    /* The old one stays counted: for a moment there are both. */
    if (!check_may_take(check, bigger.room * sizeof(*t->slots) / CHECK_PAGE_BYTES))
        return false;
    bigger.slots = calloc(bigger.room, sizeof(*bigger.slots));
    if (!bigger.slots) {
        check->error = -ENOMEM;
        return false;
    }
    for (size_t i = 0; i < t->room; i++) {
        if (t->slots[i])
            *place(&bigger, slot_cluster(t->slots[i])) = t->slots[i];
    }
    bigger.count = t->count;
    free(t->slots);
    *t = bigger;
    return true;
}

bool check_table_is_new(struct check *check, uint64_t cluster)
{
    struct check_tables *t = &check->tables;
    if (check->error || (t->count * 2 >= t->room && !grow(check)))
        return false;
    uint64_t *slot = place(t, cluster);
    if (!*slot) {
        *slot = cluster + 1;
        t->count++;
        return true;
    }
    if (*slot >> TIMES_SHIFT < TIMES_MAX)
        *slot += 1ull << TIMES_SHIFT;
    return false;
}

bool check_tables_next(const struct check *check, size_t *at, uint64_t *cluster, uint32_t *more)
{
    const struct check_tables *t = &check->tables;
    for (; *at < t->room; (*at)++) {
        if (!(t->slots[*at] >> TIMES_SHIFT))
            continue;
        *cluster = slot_cluster(t->slots[*at]);
        *more = (uint32_t)(t->slots[*at] >> TIMES_SHIFT);
        (*at)++;
        return true;
    }
    return false;
}

void check_tables_settle(struct check *check)
{
    struct check_tables *t = &check->tables;
    for (size_t i = 0; i < t->room; i++) {
        uint64_t slot = t->slots[i];
        if (slot)
            t->slots[i] =
                (uint32_t)slot |
                (check_references(check, slot_cluster(slot)) == (slot >> TIMES_SHIFT) + 1 ? 0 : MIXED);
    }
}

enum check_visit check_table_visit(struct check *check, uint64_t cluster)
{
    uint64_t none = 0, *slot = check->tables.room ? place(&check->tables, cluster) : &none;
    if (!*slot || (*slot & VISITED))
        return CHECK_VISIT_DONE;
    *slot |= VISITED;
    return *slot & MIXED ? CHECK_VISIT_MIXED : CHECK_VISIT_ALONE;
}

void check_tables_forget(struct check *check)
{
    free(check->tables.slots);
    check->tables = (struct check_tables){0};
}
