/*
 * What check.c (walking and comparing) and repair.c (setting right) share. Coroutines; no writer is in flight
 * meanwhile.
 */
#ifndef RINGSIDE_QCOW2_CHECK_H
#define RINGSIDE_QCOW2_CHECK_H

#include "host/qcow2/qcow2_state.h"

#define CHECK_PAGE_BITS    10u
#define CHECK_PAGE_BYTES   ((1u << CHECK_PAGE_BITS) * sizeof(uint32_t))
#define CHECK_MAX_CLUSTERS ((uint64_t)INT32_MAX)
/* Pages of counters for what lies beyond the end of the file: 16 MiB. What a power cut leaves there is near
 * the end and close together. */
#define CHECK_MAX_FAR_PAGES 4096u
/* Pages in all: 32 MiB, and CHECK_REAL times what the file takes on the disk. A cluster with data takes more
 * than its counter, and so do 1024 entries that lead to a page of clusters without; only where few entries
 * are scattered over a file of holes is it otherwise. */
#define CHECK_BASE_PAGES 8192u
#define CHECK_REAL       4u

/* L2 tables by cluster (check_tables.c). */
struct check_tables {
    uint64_t *slots;
    size_t room, count;
    uint64_t seed;
};

struct check {
    struct qcow2 *s;
    struct qcow2_check *result;
    void (*report)(void *opaque, const char *line);
    void *opaque;
    unsigned fix;
    /* References to each cluster, counted; pages of counters come as they are needed. */
    uint32_t **pages;
    uint64_t nb_pages, nb_far_pages, taken_pages, most_pages;
    struct check_tables tables;
    uint64_t l1_bytes;      /* of all L1 tables so far */
    uint64_t file_clusters; /* rounded up */
    uint64_t end;           /* one more than the highest cluster with a reference */
    bool unseen;            /* something could not be followed: what looks leaked may be referred to */
    bool rebuild;           /* the refcount structures themselves cannot be used */
    int error;              /* the check cannot go on: out of memory, or of what it may take */
};

void check_say(struct check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));
uint32_t check_references(const struct check *check, uint64_t cluster);
/* May the check take PAGES more of memory? False: it ends with check->error. */
bool check_may_take(struct check *check, uint64_t pages);
/* One more reference to all clusters of [host, host+bytes). WHAT for the report. */
void check_reference(struct check *check, uint64_t host, uint64_t bytes, const char *what);
/* Counts all references but those of the refcount structures. */
void coroutine_fn check_co_walk(struct check *check);
void check_forget(struct check *check);
/* What FROM has counted is CHECK's now. */
void check_take_over(struct check *check, struct check *from);

/* The L2 table in CLUSTER has been met: for the first time? False also if the check has to end. */
bool check_table_is_new(struct check *check, uint64_t cluster);
/* From *AT = 0 on, each table that was met MORE times after the first. False: no more of them. */
bool check_tables_next(const struct check *check, size_t *at, uint64_t *cluster, uint32_t *more);
void check_tables_forget(struct check *check);

enum check_visit {
    CHECK_VISIT_DONE,  /* been there, or nothing is known of it */
    CHECK_VISIT_ALONE, /* for the first time; it is an L2 table and nothing else */
    CHECK_VISIT_MIXED  /* the same, but something else refers to its cluster, too */
};
/* All references are counted: from now on tables are visited, and how often they were met is gone. */
void check_tables_settle(struct check *check);
enum check_visit check_table_visit(struct check *check, uint64_t cluster);

/* Looks at COPIED in the active tables, against the refcounts as they are (F5); with FIX_ERRORS sets it
 * right. */
void coroutine_fn check_co_copied(struct check *check);
/* New refcount structures from the counted references. 0 or a negative errno. */
int coroutine_fn check_co_rebuild(struct check *check);
int coroutine_fn check_co_set_refcount(struct qcow2 *s, uint64_t cluster, uint64_t refcount);

#endif
