/*
 * Writing metadata back, in the one order that survives a power cut at any point:
 *
 *   1. refcount blocks (the data that L2 entries point to was written before the entries were made)
 *   2. fdatasync of the image, and of the external data file
 *   3. the refcount table, if it changed, and fdatasync again
 *   4. L2 slices and L1 entries, as they were before 2 began
 *   5. fdatasync, for a flush; what was freed before this round began is durably free now
 *
 * What always holds: one writeback at a time; it writes copies, made under the lock at one moment before the
 * barrier, so that an entry linked after the barrier cannot slip out with it; a slot whose copy is on its way
 * stays in the cache. Once an fdatasync has failed nothing is written any more: what it covered may be lost,
 * and a later one that succeeds proves nothing.
 *
 * Built with RINGSIDE_BREAK_QCOW2_ORDER the order is turned round on purpose: the crash test has to notice.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/survivor.h"
#include "host/runtime/error.h"

#define ROUND_BYTES (1u << 20) /* of copies */
#define ROUND_MAX   2048u      /* pieces in a round */

/* One piece of a round: a copy in wb_buffer and where it goes. */
struct piece {
    uint64_t host;
    uint32_t bytes, at; /* length, offset in wb_buffer */
    int64_t slot;       /* of `cache`; -1: a block of a table in memory */
    struct table_cache *cache;
    uint8_t *dirty; /* the table's dirty mark, to be set again on failure */
    uint32_t *nb_dirty;
};

struct round {
    struct qcow2 *s;
    struct piece *pieces;
    uint32_t base, room; /* in wb_buffer */
    unsigned count;
    uint32_t used;
};

static struct piece *round_add(struct round *round, uint64_t host, uint32_t bytes)
{
    if (round->count == ROUND_MAX || round->used + bytes > round->room)
        return NULL;
    struct piece *piece = &round->pieces[round->count++];
    *piece = (struct piece){.host = host, .bytes = bytes, .at = round->base + round->used, .slot = -1};
    round->used += bytes;
    return piece;
}

/* [lock] Copies slices that became dirty before generation GEN. */
static void take_slices(struct round *round, struct table_cache *cache, uint64_t gen, bool swap)
{
    struct qcow2 *s = round->s;
    uint32_t next;
    for (uint32_t i = cache->dirty_first; i != TABLE_CACHE_END; i = next) {
        struct table_cache_slot *slot = &cache->slots[i];
        next = slot->dirty_next;
        if (slot->dirty_gen >= gen)
            break; /* the list is in the order of becoming dirty */
        uint64_t key = cache->keys[i];
        unsigned slices_bits = cache == &s->l2 ? s->slices_bits : s->ref_slices_bits;
        uint64_t index = key >> slices_bits, in_table = key & ((1ull << slices_bits) - 1);
        uint64_t table = cache == &s->l2 ? s->l1[index] & QCOW2_L1_OFFSET_MASK
                                         : s->reftable[index] & QCOW2_REFTABLE_OFFSET_MASK;
        struct piece *piece = round_add(round, table + in_table * cache->slice_bytes, cache->slice_bytes);
        if (!piece)
            break;
        piece->cache = cache;
        piece->slot = i;
        const uint64_t *words = table_cache_words(cache, i);
        uint64_t *copy = (uint64_t *)(void *)(s->wb_buffer + piece->at);
        for (uint32_t w = 0; w < cache->slice_words; w++)
            copy[w] = swap ? WIRE_BE64(words[w]) : words[w];
        table_cache_write_begin(cache, i);
    }
}

/* [lock] Copies the dirty blocks of 64 entries of a table in memory. */
static void take_table(struct round *round, const uint64_t *table, uint32_t entries, uint64_t offset,
                       uint8_t *dirty, uint32_t *nb_dirty)
{
    for (uint32_t block = 0; *nb_dirty && block * 64 < entries; block++) {
        if (!dirty[block])
            continue;
        uint32_t n = entries - block * 64 < 64 ? entries - block * 64 : 64;
        struct piece *piece = round_add(round, offset + block * 512ull, n * 8);
        if (!piece)
            return;
        be64 *copy = (be64 *)(void *)(round->s->wb_buffer + piece->at);
        for (uint32_t i = 0; i < n; i++)
            copy[i] = be64_put(table[block * 64 + i]);
        dirty[block] = 0;
        (*nb_dirty)--;
        piece->dirty = &dirty[block];
        piece->nb_dirty = nb_dirty;
    }
}

static int piece_compare(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}

struct write_task {
    struct task task;
    struct qcow2 *s;
    struct iovec iov[32];
    unsigned niov;
    uint64_t host, bytes;
};

static int coroutine_fn write_task_run(struct task *task)
{
    struct write_task *w = (struct write_task *)task;
    return node_co_pwritev(w->s->node->file, w->host, w->bytes, sg_make(w->iov, w->niov), 0);
}

/* Is what is about to be written where its kind belongs? */
static int coroutine_fn co_check_pieces(struct qcow2 *s, const struct round *round)
{
    for (unsigned i = 0; i < round->count; i++) {
        const struct piece *piece = &round->pieces[i];
        enum qcow2_overlap own = piece->cache == &s->l2                     ? QCOW2_OL_ACTIVE_L2
                                 : piece->cache == &s->ref                  ? QCOW2_OL_REFCOUNT_BLOCK
                                 : piece->nb_dirty == &s->reftable_nb_dirty ? QCOW2_OL_REFCOUNT_TABLE
                                                                            : QCOW2_OL_ACTIVE_L1;
        uint64_t at = 0;
        qcow2_lock(s);
        enum qcow2_overlap hit = qcow2_overlap_check(s, piece->host, piece->bytes, own, &at);
        qcow2_unlock(s);
        if (hit != QCOW2_OL_NONE)
            return qcow2_co_corrupt(s, "a write of %s at 0x%llx would hit %s at 0x%llx",
                                    qcow2_overlap_name(own), (unsigned long long)piece->host,
                                    qcow2_overlap_name(hit), (unsigned long long)at);
    }
    return 0;
}

/* Writes all pieces of a round, neighbours together, several at a time. */
static int coroutine_fn co_write_round(struct round *round)
{
    struct qcow2 *s = round->s;
    struct write_task tasks[TASK_POOL_MAX];
    struct task_pool pool = {.max = TASK_POOL_MAX};
    int ret = co_check_pieces(s, round);
    if (ret < 0)
        return ret;
    qsort(round->pieces, round->count, sizeof(*round->pieces), piece_compare);
    for (unsigned t = 0; t < TASK_POOL_MAX; t++)
        tasks[t].task.busy = false;
    for (unsigned i = 0; i < round->count && pool.result == 0;) {
        task_pool_wait_slot(&pool);
        struct write_task *w = tasks;
        while (w->task.busy)
            w++;
        *w = (struct write_task){.task = {.run = write_task_run}, .s = s, .host = round->pieces[i].host};
        while (i < round->count && w->niov < 32 && round->pieces[i].host == w->host + w->bytes) {
            w->iov[w->niov++] = (struct iovec){.iov_base = s->wb_buffer + round->pieces[i].at,
                                               .iov_len = round->pieces[i].bytes};
            w->bytes += round->pieces[i].bytes;
            i++;
        }
        if (i == round->count && pool.active == 0) {
            pool.result = write_task_run(&w->task); /* the only one: no coroutine of its own */
            break;
        }
        task_pool_start(&pool, &w->task);
    }
    return task_pool_wait_all(&pool);
}

/* After a write that failed the file may hold any part of it. For the process that comes after this one,
 * should it be killed, what is there is read (survivor.h); NULL: it cannot be, or nobody wants to know. */
static const uint64_t *coroutine_fn co_read_piece(struct qcow2 *s, const struct piece *piece)
{
    uint64_t *words = (uint64_t *)(void *)(s->wb_buffer + piece->at);
    if (piece->slot < 0 || !piece->cache->shadows ||
        node_co_pread(s->node->file, piece->host, words, piece->bytes) < 0)
        return NULL;
    for (uint32_t w = 0; piece->cache == &s->l2 && w < piece->bytes / 8; w++)
        words[w] = WIRE_BE64(words[w]);
    return words;
}

static void coroutine_fn co_take_back(struct qcow2 *s, struct piece *piece)
{
    const uint64_t *words = co_read_piece(s, piece);
    qcow2_lock(s);
    if (piece->slot >= 0) {
        table_cache_write_failed(piece->cache, (uint32_t)piece->slot, words);
    } else if (!*piece->dirty) {
        *piece->dirty = 1;
        (*piece->nb_dirty)++;
    }
    qcow2_unlock(s);
}

/* The pieces of a round have been written, or not: then they are dirty again. */
static void coroutine_fn co_end_round(struct round *round, int ret)
{
    struct qcow2 *s = round->s;
    if (ret == 0) {
        qcow2_lock(s);
        for (unsigned i = 0; i < round->count; i++) {
            if (round->pieces[i].slot >= 0)
                table_cache_write_end(round->pieces[i].cache, (uint32_t)round->pieces[i].slot);
        }
        qcow2_unlock(s);
    } else {
        for (unsigned i = 0; i < round->count; i++)
            co_take_back(s, &round->pieces[i]);
    }
    round->count = 0;
    round->used = 0;
}

static int coroutine_fn co_barrier(struct qcow2 *s)
{
    int ret = s->data != s->node->file ? node_co_flush(s->data) : 0;
    if (ret == 0)
        ret = node_co_flush(s->node->file);
    if (ret < 0)
        __atomic_store_n(&s->io_error, ret, __ATOMIC_RELAXED);
    return ret;
}

/* Step 1. A refcount block may be written at any time, so rounds need not be of one moment. */
static int coroutine_fn co_write_refcounts(struct qcow2 *s, struct round *round, uint64_t gen)
{
    for (;;) {
        qcow2_lock(s);
        take_slices(round, &s->ref, gen, false);
        qcow2_unlock(s);
        if (!round->count)
            return 0;
        int ret = co_write_round(round);
        co_end_round(round, ret);
        if (ret < 0)
            return ret;
    }
}

/* The rounds of one writeback: their copies share wb_buffer. */
struct rounds {
    struct round mapping;   /* L1 and L2 */
    struct round refcounts; /* blocks */
    struct round reftable;
};

/* [lock] Everything is copied at one moment. What the refcount table's copies name was made before it, and so
 * were the counts of what the copied entries point to: REF_GEN bounds them. */
static bool take_round(struct qcow2 *s, struct rounds *rounds, uint64_t gen, uint64_t *ref_gen)
{
    take_table(&rounds->reftable, s->reftable, s->reftable_entries, s->reftable_offset, s->reftable_dirty,
               &s->reftable_nb_dirty);
    *ref_gen = ++s->gen;
    if (s->reftable_nb_dirty)
        return true; /* no entry goes out before all of the table that it may rest on */
    take_table(&rounds->mapping, s->l1, s->l1_size, s->l1_offset, s->l1_dirty, &s->l1_nb_dirty);
    take_slices(&rounds->mapping, &s->l2, gen, true);
    return s->l1_nb_dirty ||
           (s->l2.dirty_first != TABLE_CACHE_END && s->l2.slots[s->l2.dirty_first].dirty_gen < gen);
}

static int coroutine_fn co_write_taken(struct round *round, int ret)
{
    if (!round->count)
        return ret;
    if (ret == 0)
        ret = co_write_round(round);
    co_end_round(round, ret);
    return ret;
}

/* Steps 1 to 4 for as much as fits the buffer of what became dirty before generation GEN. *MORE: there is
 * more of it. */
static int coroutine_fn co_one_round(struct qcow2 *s, struct rounds *rounds, uint64_t gen, bool *more)
{
    uint64_t ref_gen;
    qcow2_lock(s);
    *more = take_round(s, rounds, gen, &ref_gen);
    bool refcounts = s->ref.nb_dirty != 0;
    qcow2_unlock(s);

    bool reftable = rounds->reftable.count != 0;
    int ret = 0;
#ifdef RINGSIDE_BREAK_QCOW2_ORDER
    if (rounds->mapping.count) {
        ret = co_write_taken(&rounds->mapping, ret);
        if (ret == 0)
            ret = co_barrier(s);
    }
#endif
    if (ret == 0 && refcounts)
        ret = co_write_refcounts(s, &rounds->refcounts, ref_gen);
    if (ret == 0 && (rounds->mapping.count || reftable))
        ret = co_barrier(s);
    ret = co_write_taken(&rounds->reftable, ret);
    if (ret == 0 && reftable && rounds->mapping.count)
        ret = co_barrier(s);
    return co_write_taken(&rounds->mapping, ret);
}

static int coroutine_fn co_run(struct qcow2 *s, bool durable, bool frees)
{
    uint64_t gen =
        ++s->gen; /* what becomes dirty from now on is somebody else's: so the rounds come to an end */
    struct qcow2_free_list freed = s->freed;
    if (frees)
        s->freed = (struct qcow2_free_list){0};
    bool anything = s->l2.nb_dirty || s->ref.nb_dirty || s->l1_nb_dirty || s->reftable_nb_dirty;
    qcow2_unlock(s);

    struct rounds rounds = {.mapping = {.s = s, .room = ROUND_BYTES},
                            .refcounts = {.s = s, .base = ROUND_BYTES, .room = ROUND_BYTES / 2},
                            .reftable = {.s = s, .base = ROUND_BYTES * 3 / 2, .room = ROUND_BYTES / 2}};
    int ret = qcow2_io_error(s);
    if (ret == 0 && anything) {
        if (!s->wb_buffer)
            s->wb_buffer = node_buffer(s->node->file, 2ul * ROUND_BYTES);
        if (!s->wb_pieces)
            s->wb_pieces = malloc(3 * sizeof(struct piece) * ROUND_MAX);
        if (s->wb_buffer && s->wb_pieces) {
            rounds.mapping.pieces = s->wb_pieces;
            rounds.refcounts.pieces = rounds.mapping.pieces + ROUND_MAX;
            rounds.reftable.pieces = rounds.refcounts.pieces + ROUND_MAX;
        } else {
            ret = -ENOMEM;
        }
    }
    bool more = anything;
    survivor_touch(s);
    while (ret == 0 && more)
        ret = co_one_round(s, &rounds, gen, &more);
    survivor_touch(s);
    if (ret == 0 && durable)
        ret = co_barrier(s);

    qcow2_lock(s);
    if (ret == 0 && !s->l1_nb_dirty && !s->reftable_nb_dirty)
        survivor_clean(s);
    if (frees) {
        if (ret == 0) {
            qcow2_free_durable(s, &freed);
            qcow2_free_list_destroy(&freed);
        } else {
            struct qcow2_free_list later = s->freed;
            s->freed = freed;
            for (size_t i = 0; i < later.count; i++)
                qcow2_free_later(s, later.runs[i].cluster << s->cluster_bits,
                                 later.runs[i].count << s->cluster_bits, later.runs[i].punch);
            qcow2_free_list_destroy(&later);
        }
    }
    return ret;
}

static int coroutine_fn co_alone(struct qcow2 *s, bool durable, bool frees, bool only_if_idle)
{
    qcow2_lock(s);
    bool waited = false;
    while (s->wb_running) {
        co_queue_wait(&s->wb_waiters, &s->lock);
        waited = true;
    }
    if (waited && only_if_idle) {
        /* Somebody just made room; the caller looks again. */
        int ret = qcow2_io_error(s);
        qcow2_unlock(s);
        return ret;
    }
    bool nothing = !durable && !s->l2.nb_dirty && !s->ref.nb_dirty;
    s->wb_running = true;
    int ret = co_run(s, durable, frees);
    s->wb_running = false;
    co_queue_wake_all(&s->wb_waiters);
    qcow2_unlock(s);
    if (nothing)
        co_sleep_ns(20000); /* no slot is dirty, all are being loaded: let that go on */
    return ret;
}

int coroutine_fn qcow2_co_writeback(struct qcow2 *s)
{
    return co_alone(s, true, true, false);
}

int coroutine_fn qcow2_co_writeback_keep(struct qcow2 *s)
{
    return co_alone(s, true, false, false);
}

int coroutine_fn qcow2_co_make_clean(struct qcow2 *s)
{
    return co_alone(s, false, false, true);
}
