/*
 * The life of a freed cluster, from the moment at which its last reference is gone in memory to the one at
 * which it can be allocated again:
 *
 *   freed       its reference is gone in memory; on the disk it may still be there        until the next
 * flush ends grace_next  durably gone; requests that found the old mapping may still be in flight   until
 * `grace` is empty grace       waiting for the requests of the previous epoch until they have ended ready
 * nobody can reach it: a hole is punched, then the refcount goes down, then it can be allocated
 *
 * What always holds: until the refcount goes down the cluster is not allocated, so neither a crash nor a slow
 * request can show or hit somebody else's data in it; a hole is punched while nobody owns the cluster.
 *
 * Epochs. A request counts itself under the parity of the epoch that it found; the epoch moves on only when
 * nobody is left under the parity that it moves to. Requests that began before the move are counted under the
 * old parity, and what waits in `grace` waits for that count alone.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/qcow2/survivor.h"

/* What may wait for the next flush of the guest. */
#define FREED_RUNS_MAX  65536u
#define FREED_BYTES_MAX (256ull << 20)

unsigned qcow2_use_begin(struct qcow2 *s)
{
    uint32_t *count = s->readers[loop_index(loop_current())].count;
    for (;;) {
        uint32_t epoch = __atomic_load_n(&s->epoch, __ATOMIC_SEQ_CST);
        /* Sequentially consistent, as is the move of the epoch in start_grace: either we see the move here,
         * or the mover sees us counted, or both. */
        __atomic_fetch_add(&count[epoch & 1], 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&s->epoch, __ATOMIC_SEQ_CST) == epoch)
            return epoch & 1;
        __atomic_fetch_sub(&count[epoch & 1], 1, __ATOMIC_SEQ_CST);
    }
}

void qcow2_use_end(struct qcow2 *s, unsigned epoch)
{
    /* Release: all that the request did with the mapping comes before this. Pairs with nobody_in. */
    __atomic_fetch_sub(&s->readers[loop_index(loop_current())].count[epoch], 1, __ATOMIC_RELEASE);
}

static bool nobody_in(const struct qcow2 *s, unsigned parity)
{
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        if (__atomic_load_n(&s->readers[i].count[parity], __ATOMIC_SEQ_CST))
            return false;
    }
    return true;
}

static void list_add(struct qcow2_free_list *list, uint64_t cluster, uint64_t count, bool punch)
{
    if (list->count) {
        struct qcow2_free_run *last = &list->runs[list->count - 1];
        if (last->cluster + last->count == cluster && last->punch == punch) {
            last->count += count;
            list->clusters += count;
            return;
        }
    }
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        struct qcow2_free_run *runs = realloc(list->runs, room * sizeof(*runs));
        if (!runs)
            return; /* a leak on the disk, which is harmless */
        list->runs = runs;
        list->room = room;
    }
    list->runs[list->count++] = (struct qcow2_free_run){cluster, count, punch};
    list->clusters += count;
}

static void list_move(struct qcow2_free_list *to, struct qcow2_free_list *from)
{
    if (!to->count) {
        struct qcow2_free_list swap = *to;
        *to = *from;
        *from = swap;
        return;
    }
    for (size_t i = 0; i < from->count; i++)
        list_add(to, from->runs[i].cluster, from->runs[i].count, from->runs[i].punch);
    from->count = 0;
    from->clusters = 0;
}

void qcow2_free_list_destroy(struct qcow2_free_list *list)
{
    free(list->runs);
    *list = (struct qcow2_free_list){0};
}

void qcow2_free_later(struct qcow2 *s, uint64_t host, uint64_t bytes, bool punch)
{
    uint64_t first = host >> s->cluster_bits, end = (host + bytes + s->cluster_bytes - 1) >> s->cluster_bits;
    if (bytes)
        list_add(&s->freed, first, end - first, punch);
    if (s->freed.count > FREED_RUNS_MAX ||
        s->freed.clusters > max_u64(1024, FREED_BYTES_MAX >> s->cluster_bits))
        __atomic_store_n(&s->freed_much, true, __ATOMIC_RELAXED);
}

void qcow2_compressed_range(const struct qcow2 *s, uint64_t entry, uint64_t *host, uint64_t *bytes)
{
    /* H1: the offset takes the low 62 - (cluster_bits - 8) bits, the number of further sectors the rest below
     * bit 62. With small clusters that is more than an offset may have (H8): then it is beyond any file's
     * end. */
    unsigned x = 62 - (s->cluster_bits - 8);
    uint64_t sectors = entry >> x & ((1ull << (s->cluster_bits - 8)) - 1);
    *host = entry & ((1ull << x) - 1);
    *bytes = (sectors + 1) * 512 - (*host & 511);
}

void qcow2_free_entry(struct qcow2 *s, uint64_t entry, bool punch)
{
    uint64_t host, bytes;
    if (s->data != s->node->file)
        return; /* clusters of an external data file are not counted */
    if (entry & QCOW2_L2_COMPRESSED) {
        qcow2_compressed_range(s, entry, &host, &bytes);
        uint64_t start = qcow2_cluster_down(s, host);
        qcow2_free_later(s, start, host + bytes - start, false);
        return;
    }
    host = entry & QCOW2_L2_OFFSET_MASK;
    if (host)
        qcow2_free_later(s, host, s->cluster_bytes, punch);
}

/* [lock] */
static void start_grace(struct qcow2 *s)
{
    if (s->grace.count || !s->grace_next.count)
        return;
    list_move(&s->grace, &s->grace_next);
    /* The parity that new requests count under from now on is empty: the last grace ended with it. Pairs with
     * qcow2_use_begin. */
    __atomic_store_n(&s->epoch, s->epoch + 1, __ATOMIC_SEQ_CST);
}

/* [lock] */
static void end_grace(struct qcow2 *s)
{
    if (s->grace.count && nobody_in(s, (s->epoch + 1) & 1))
        list_move(&s->ready, &s->grace);
}

void qcow2_free_durable(struct qcow2 *s, struct qcow2_free_list *flushed)
{
    list_move(&s->grace_next, flushed);
}

bool coroutine_fn qcow2_co_may_punch(struct qcow2 *s, uint64_t cluster)
{
    qcow2_lock(s);
    enum qcow2_overlap hit =
        qcow2_overlap_check(s, cluster << s->cluster_bits, s->cluster_bytes, QCOW2_OL_NONE, NULL);
    qcow2_unlock(s);
    return hit == QCOW2_OL_NONE;
}

/* Takes one reference from CLUSTER. If it is the last one and PUNCH, the space goes back first, while nobody
 * can allocate it. */
static void coroutine_fn co_release_run(struct qcow2 *s, struct qcow2_free_run run)
{
    while (run.count) {
        uint64_t n = 0;
        if (run.punch && s->discard_down) {
            uint64_t refcount;
            while (n < run.count && qcow2_co_refcount_get(s, run.cluster + n, &refcount) == 0 &&
                   refcount == 1 && qcow2_co_may_punch(s, run.cluster + n))
                n++;
            if (n) {
                (void)node_co_pdiscard(s->node->file, run.cluster << s->cluster_bits, n << s->cluster_bits);
                survivor_touch(s);
            }
        }
        if (!n)
            n = run.punch && s->discard_down ? 1 : run.count;
        /* An error leaves a leak. */
        (void)qcow2_co_refcount_change(s, run.cluster, n, -1);
        run.cluster += n;
        run.count -= n;
    }
}

void coroutine_fn qcow2_co_reclaim(struct qcow2 *s)
{
    qcow2_lock(s);
    /* Twice: what is durable already may get through at once when nobody is reading. */
    for (int i = 0; i < 2; i++) {
        end_grace(s);
        start_grace(s);
    }
    end_grace(s);
    if (s->reclaiming || !s->ready.count) {
        qcow2_unlock(s);
        return;
    }
    s->reclaiming = true;
    struct qcow2_free_list list = s->ready;
    s->ready = (struct qcow2_free_list){0};
    qcow2_unlock(s);

    for (size_t i = 0; i < list.count; i++)
        co_release_run(s, list.runs[i]);

    qcow2_free_list_destroy(&list);
    qcow2_lock(s);
    s->reclaiming = false;
    qcow2_unlock(s);
}

void coroutine_fn qcow2_co_reclaim_all(struct qcow2 *s)
{
    for (;;) {
        qcow2_co_reclaim(s);
        qcow2_lock(s);
        bool left = s->grace_next.count || s->grace.count || s->ready.count || s->reclaiming;
        qcow2_unlock(s);
        if (!left)
            return;
        co_sleep_ns(200000); /* somebody is still reading */
    }
}
