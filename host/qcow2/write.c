/*
 * Writing guest data.
 *
 * A request is cut into pieces, each planned under the metadata lock and carried out without it:
 *   - in place: the clusters are ours alone (COPIED) and hold data; one write of the file
 *   - update: the clusters are ours, but what is touched reads as zeroes or shows the backing file; a write
 *     with copy-on-write around the data, then the entry
 *   - new: clusters are allocated and counted, written with copy-on-write, then linked into the L2 table
 * Entries change in memory only; writeback.c brings them out in order.
 *
 * What always holds: while an allocating piece is in flight nobody else changes the mapping of its clusters
 * (they wait, and hold nothing meanwhile, so nobody waits in a circle); a span that holds live data is never
 * zeroed; an entry is made only after its data was written; what the entry replaced is quarantined.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/crypto.h"
#include "host/qcow2/survivor.h"
#include "host/runtime/trace.h"

#define ZEROES_BYTES 65536u
#define COW_IOV      160u

static const uint8_t zeroes[ZEROES_BYTES] __attribute__((aligned(4096)));

enum write_kind { WRITE_IN_PLACE, WRITE_UPDATE, WRITE_NEW, WRITE_BAD };

struct write_piece {
    struct task task;
    struct qcow2 *s;
    enum write_kind kind;
    uint64_t offset, bytes;      /* guest data */
    uint64_t cow_start, cow_end; /* guest range that is written in all */
    uint64_t host;               /* of the first cluster's first byte */
    bool fresh;                  /* new clusters read as zeroes */
    bool reserve;                /* only a cluster is wanted, no data */
    struct sg sg;
    struct qcow2_alloc alloc; /* not in use for WRITE_IN_PLACE */
};

/* ---- allocating writes in flight ---- */

void qcow2_alloc_add(struct qcow2 *s, struct qcow2_alloc *alloc)
{
    alloc->prev = NULL;
    alloc->next = s->allocs;
    if (alloc->next)
        alloc->next->prev = alloc;
    s->allocs = alloc;
}

void qcow2_alloc_remove(struct qcow2 *s, struct qcow2_alloc *alloc)
{
    if (alloc->prev)
        alloc->prev->next = alloc->next;
    else
        s->allocs = alloc->next;
    if (alloc->next)
        alloc->next->prev = alloc->prev;
    co_queue_wake_all(&alloc->waiters);
}

bool coroutine_fn qcow2_co_wait_allocs(struct qcow2 *s, uint64_t start, uint64_t end)
{
    bool waited = false;
    struct qcow2_alloc *alloc = s->allocs;
    while (alloc) {
        if (alloc->start < end && alloc->end > start) {
            co_queue_wait(&alloc->waiters, &s->lock);
            waited = true;
            alloc = s->allocs;
        } else {
            alloc = alloc->next;
        }
    }
    return waited;
}

/* ---- writers and those who hold them back ---- */

int coroutine_fn qcow2_co_writer_begin(struct qcow2 *s)
{
    if (s->read_only)
        return -EPERM;
    if (s->data_missing)
        return -EIO;
    for (;;) {
        /* Sequentially consistent, as is the store in qcow2_co_quiesce: one of us sees the other. */
        __atomic_fetch_add(&s->writers, 1, __ATOMIC_SEQ_CST);
        bool held_back = __atomic_load_n(&s->quiesced, __ATOMIC_SEQ_CST);
        if (!held_back && __atomic_load_n(&s->prepared, __ATOMIC_ACQUIRE))
            break;
        qcow2_co_writer_end(s);
        if (held_back) {
            qcow2_lock(s);
            while (__atomic_load_n(&s->quiesced, __ATOMIC_RELAXED))
                co_queue_wait(&s->quiesce_waiters, &s->lock);
            qcow2_unlock(s);
        } else {
            int ret = qcow2_co_prepare_write(s);
            if (ret < 0)
                return ret;
        }
    }
    int broken = qcow2_io_error(s);
    if (broken)
        qcow2_co_writer_end(s);
    else
        survivor_touch(s);
    return broken;
}

void coroutine_fn qcow2_co_writer_end(struct qcow2 *s)
{
    survivor_touch(s);
    __atomic_fetch_sub(&s->writers, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&s->quiesced, __ATOMIC_SEQ_CST)) {
        qcow2_lock(s);
        co_queue_wake_all(&s->writers_waiters);
        qcow2_unlock(s);
    }
}

void coroutine_fn qcow2_co_quiesce(struct qcow2 *s)
{
    qcow2_lock(s);
    while (__atomic_load_n(&s->quiesced, __ATOMIC_RELAXED))
        co_queue_wait(&s->quiesce_waiters, &s->lock); /* for another change of this kind */
    __atomic_store_n(&s->quiesced, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&s->writers, __ATOMIC_SEQ_CST))
        co_queue_wait(&s->writers_waiters, &s->lock);
    qcow2_unlock(s);
}

void coroutine_fn qcow2_co_unquiesce(struct qcow2 *s)
{
    qcow2_lock(s);
    __atomic_store_n(&s->quiesced, 0, __ATOMIC_SEQ_CST);
    co_queue_wake_all(&s->quiesce_waiters);
    qcow2_unlock(s);
}

int coroutine_fn qcow2_co_bound_freed(struct qcow2 *s)
{
    if (survivor_crowded(s)) {
        qcow2_co_quiesce(s);
        int ret = survivor_crowded(s) ? qcow2_co_writeback(s) : 0;
        qcow2_co_unquiesce(s);
        if (ret < 0)
            return ret;
    }
    if (!__atomic_load_n(&s->freed_much, __ATOMIC_RELAXED))
        return 0;
    __atomic_store_n(&s->freed_much, false, __ATOMIC_RELAXED);
    int ret = qcow2_co_writeback(s);
    if (ret == 0)
        qcow2_co_reclaim(s);
    return ret;
}

/* ---- planning, under the lock ---- */

static bool has_own_cluster(const struct qcow2 *s, uint64_t entry)
{
    if ((entry & QCOW2_L2_COMPRESSED) || !(entry & QCOW2_COPIED))
        return false;
    return (entry & QCOW2_L2_OFFSET_MASK) || s->data != s->node->file;
}

/* How guest bytes [from, to) of one cluster can be written. */
static enum write_kind cluster_kind(const struct qcow2 *s, uint64_t entry, uint64_t bitmap, uint64_t from,
                                    uint64_t to)
{
    uint64_t mask = s->cluster_bytes - 1;
    enum write_kind kind = has_own_cluster(s, entry) ? WRITE_IN_PLACE : WRITE_NEW;
    for (unsigned sub = (unsigned)((from & mask) >> s->subcluster_bits);
         sub <= (unsigned)(((to - 1) & mask) >> s->subcluster_bits); sub++) {
        enum qcow2_type type = qcow2_entry_type(s, entry, bitmap, sub);
        if (type == QCOW2_INVALID)
            return WRITE_BAD;
        if (kind == WRITE_IN_PLACE && type != QCOW2_NORMAL)
            kind = WRITE_UPDATE;
    }
    if (kind != WRITE_NEW && s->data != s->node->file &&
        (entry & QCOW2_L2_OFFSET_MASK) != qcow2_cluster_down(s, from))
        return WRITE_BAD;
    return kind;
}

/* Where copy-on-write begins or ends (END) that a write to guest POS needs, in a cluster of this kind. */
static uint64_t cow_bound(const struct qcow2 *s, enum write_kind kind, uint64_t entry, uint64_t bitmap,
                          uint64_t pos, bool end)
{
    uint64_t unit = s->subcluster_bytes;
    uint64_t byte = end ? pos - 1 : pos;
    if (kind == WRITE_UPDATE) {
        unsigned sub = (unsigned)((byte & (s->cluster_bytes - 1)) >> s->subcluster_bits);
        if (qcow2_entry_type(s, entry, bitmap, sub) == QCOW2_NORMAL)
            return pos;
    } else if ((entry & QCOW2_L2_COMPRESSED) || (entry & QCOW2_L2_OFFSET_MASK)) {
        unit = s->cluster_bytes; /* the old cluster goes: all of it has to be in the new one */
    }
    return end ? (pos + unit - 1) & ~(unit - 1) : pos & ~(unit - 1);
}

/* What an entry words pair says; the bitmap of a standard entry is 0. */
static uint64_t entry_bitmap(const struct qcow2 *s, const uint64_t *words)
{
    return s->extended_l2 ? words[1] : 0;
}

/* Plans one piece from PIECE->offset on, at most PIECE->bytes: fills in the rest of it. 0; -EAGAIN with NEED
 * or, for *WAIT, after waiting for it; other negative errno. */
static int plan_piece(struct qcow2 *s, struct write_piece *piece, struct qcow2_need *need,
                      struct qcow2_alloc **wait)
{
    uint64_t offset = piece->offset, first = qcow2_cluster_down(s, offset);
    uint64_t end = min_u64(offset + piece->bytes, qcow2_slice_end(s, offset));
    uint64_t up = qcow2_cluster_up(s, end);
    for (struct qcow2_alloc *alloc = s->allocs; alloc; alloc = alloc->next) {
        if (alloc->end <= first || alloc->start >= up)
            continue;
        if (alloc->start <= first) {
            *wait = alloc;
            return -EAGAIN;
        }
        end = min_u64(end, alloc->start);
        up = end;
    }
    uint32_t slot;
    uint64_t *words;
    int ret = qcow2_l2_writable(s, offset, &slot, &words, need);
    if (ret < 0)
        return ret;

    unsigned step = s->extended_l2 ? 2 : 1;
    uint64_t pos = offset, clusters = 0, entry = 0, bitmap = 0;
    enum write_kind kind = WRITE_BAD;
    while (pos < end) {
        uint64_t to = min_u64(end, qcow2_cluster_down(s, pos) + s->cluster_bytes);
        const uint64_t *w = words + clusters * step;
        enum write_kind this_kind = cluster_kind(s, w[0], entry_bitmap(s, w), pos, to);
        uint64_t host = w[0] & QCOW2_L2_OFFSET_MASK;
        if (clusters == 0) {
            kind = this_kind;
            piece->host = host;
            piece->cow_start = cow_bound(s, kind, w[0], entry_bitmap(s, w), offset, false);
        } else if (this_kind != kind ||
                   (kind != WRITE_NEW && host != piece->host + (clusters << s->cluster_bits))) {
            break;
        }
        entry = w[0];
        bitmap = entry_bitmap(s, w);
        pos = to;
        clusters++;
    }
    if (kind == WRITE_BAD)
        return -EIO;
    if (kind == WRITE_NEW && s->data != s->node->file) {
        piece->host = first; /* L1: an external data file has the guest's addresses */
        piece->fresh = false;
    } else if (kind == WRITE_NEW) {
        uint64_t got;
        ret = qcow2_alloc_clusters(s, clusters, &piece->host, &got, &piece->fresh, need);
        if (ret < 0)
            return ret;
        if (got < clusters) {
            clusters = got;
            pos = first + (got << s->cluster_bits);
            const uint64_t *w = words + (got - 1) * step;
            entry = w[0];
            bitmap = entry_bitmap(s, w);
        }
    } else if (s->data == s->node->file) {
        uint64_t bytes = clusters << s->cluster_bits;
        if (qcow2_overlap_check(s, piece->host, bytes, QCOW2_OL_NONE, NULL) != QCOW2_OL_NONE)
            return -EIO; /* F8 */
        if (piece->host + bytes > s->file_bytes) {
            need->kind = QCOW2_NEED_FILE_LENGTH;
            need->key = piece->host + bytes;
            return -EAGAIN;
        }
        /* It need not have been in the file when that was opened. */
        s->fresh_from = max_u64(s->fresh_from, piece->host + bytes);
    }
    piece->kind = kind;
    piece->bytes = pos - offset;
    if (kind == WRITE_IN_PLACE)
        return 0;
    piece->cow_end = cow_bound(s, kind, entry, bitmap, pos, true);
    piece->alloc = (struct qcow2_alloc){.start = first, .end = first + (clusters << s->cluster_bits)};
    qcow2_alloc_add(s, &piece->alloc);
    return 0;
}

static int coroutine_fn co_plan(struct qcow2 *s, struct write_piece *piece)
{
    uint64_t bytes = piece->bytes;
    struct qcow2_need need = {0};
    qcow2_lock(s);
    for (;;) {
        struct qcow2_alloc *wait = NULL;
        piece->bytes = bytes;
        int ret = plan_piece(s, piece, &need, &wait);
        if (wait) {
            co_queue_wait(&wait->waiters, &s->lock);
            continue;
        }
        qcow2_unlock(s);
        if (ret == -EAGAIN)
            ret = qcow2_co_satisfy(s, &need);
        else if (ret == -EIO)
            return qcow2_co_corrupt(
                s, "the L2 entry for guest offset 0x%llx does not allow writing (host offset 0x%llx)",
                (unsigned long long)piece->offset, (unsigned long long)piece->host);
        else
            return ret;
        if (ret < 0)
            return ret;
        qcow2_lock(s);
    }
}

/* ---- carrying out ---- */

int coroutine_fn qcow2_co_write_data(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                     struct sg sg)
{
    return s->crypto ? qcow2_crypto_co_write(s, guest, host, bytes, sg)
                     : node_co_pwritev(s->data, host, bytes, sg, 0);
}

static unsigned add_zeroes(struct iovec *iov, unsigned niov, uint64_t bytes)
{
    while (bytes) {
        uint64_t n = min_u64(bytes, ZEROES_BYTES);
        iov[niov++] = (struct iovec){.iov_base = (void *)zeroes, .iov_len = n};
        bytes -= n;
    }
    return niov;
}

/* A side of the copy-on-write: guest bytes next to the data. */
struct cow_side {
    uint64_t bytes;
    uint8_t *buffer; /* NULL: zeroes */
};

static int coroutine_fn co_read_side(struct qcow2 *s, struct cow_side *side, uint64_t offset)
{
    side->buffer = NULL;
    if (!side->bytes || qcow2_co_range_is_zero(s, offset, side->bytes))
        return 0;
    side->buffer = qcow2_buffer_get(s);
    if (!side->buffer)
        return -ENOMEM;
    bool zero;
    int ret = qcow2_co_read_guest(s, offset, side->bytes, side->buffer, &zero);
    if (ret < 0 || zero) {
        qcow2_buffer_put(s, side->buffer);
        side->buffer = NULL;
    }
    return ret;
}

/* Head, data and tail in one write. Where new clusters read as zeroes, sides of zeroes are left out. */
static int coroutine_fn co_write_cow(struct write_piece *piece)
{
    struct qcow2 *s = piece->s;
    struct cow_side head = {.bytes = piece->offset - piece->cow_start};
    struct cow_side tail = {.bytes = piece->cow_end - (piece->offset + piece->bytes)};
    int ret = co_read_side(s, &head, piece->cow_start);
    if (ret < 0)
        return ret;
    ret = co_read_side(s, &tail, piece->offset + piece->bytes);
    if (ret < 0)
        goto out;
    if (piece->fresh && !s->crypto) {
        if (!head.buffer)
            head.bytes = 0;
        if (!tail.buffer)
            tail.bytes = 0;
    }
    uint64_t host = piece->host + (piece->offset - qcow2_cluster_down(s, piece->offset)),
             guest = piece->offset;
    if (!head.bytes && !tail.bytes) {
        ret = qcow2_co_write_data(s, guest, host, piece->bytes, piece->sg);
        goto out;
    }
    struct iovec iov[COW_IOV];
    unsigned niov = 0;
    if (head.buffer)
        iov[niov++] = (struct iovec){.iov_base = head.buffer, .iov_len = head.bytes};
    else
        niov = add_zeroes(iov, niov, head.bytes);
    unsigned tail_iov = (unsigned)(tail.bytes / ZEROES_BYTES) + 1;
    int data_iov = sg_flatten(piece->sg, piece->bytes, iov + niov, COW_IOV - niov - tail_iov);
    if (data_iov >= 0) {
        niov += (unsigned)data_iov;
        if (tail.buffer)
            iov[niov++] = (struct iovec){.iov_base = tail.buffer, .iov_len = tail.bytes};
        else
            niov = add_zeroes(iov, niov, tail.bytes);
        ret = qcow2_co_write_data(s, guest - head.bytes, host - head.bytes,
                                  head.bytes + piece->bytes + tail.bytes, sg_make(iov, niov));
        goto out;
    }
    /* A list too long to be put together: one after the other. */
    if (head.bytes)
        ret = qcow2_co_write_data(s, guest - head.bytes, host - head.bytes, head.bytes, sg_make(iov, niov));
    if (ret == 0)
        ret = qcow2_co_write_data(s, guest, host, piece->bytes, piece->sg);
    if (ret == 0 && tail.bytes) {
        niov = tail.buffer ? 1 : add_zeroes(iov, 0, tail.bytes);
        if (tail.buffer)
            iov[0] = (struct iovec){.iov_base = tail.buffer, .iov_len = tail.bytes};
        ret =
            qcow2_co_write_data(s, guest + piece->bytes, host + piece->bytes, tail.bytes, sg_make(iov, niov));
    }
out:
    qcow2_buffer_put(s, head.buffer);
    qcow2_buffer_put(s, tail.buffer);
    return ret;
}

static uint64_t bits_between(const struct qcow2 *s, uint64_t from, uint64_t to)
{
    unsigned first = (unsigned)(from >> s->subcluster_bits),
             end = (unsigned)((to - 1) >> s->subcluster_bits) + 1;
    return (end == 32 ? 0xffffffffull : (1ull << end) - 1) & ~((1ull << first) - 1);
}

/* [lock] Makes the entry of the cluster at guest POS say what PIECE has written. */
static void link_cluster(struct write_piece *piece, uint64_t pos, uint32_t slot, uint64_t *words)
{
    struct qcow2 *s = piece->s;
    uint64_t old = words[0], entry = (piece->host + (pos - piece->alloc.start)) | QCOW2_COPIED;
    table_cache_change_begin(&s->l2, slot);
    table_cache_store(&words[0], entry);
    if (s->extended_l2) {
        uint64_t from = max_u64(piece->cow_start, pos) - pos,
                 to = min_u64(piece->cow_end, pos + s->cluster_bytes) - pos;
        uint64_t bits = bits_between(s, from, to), bitmap = words[1];
        bool replaces =
            piece->kind == WRITE_NEW && ((old & QCOW2_L2_COMPRESSED) || (old & QCOW2_L2_OFFSET_MASK));
        bitmap = replaces ? 0xffffffffull : (bitmap | bits) & ~(bits << 32);
        if (piece->reserve)
            bitmap = words[1];
        table_cache_store(&words[1], bitmap);
    }
    table_cache_change_end(&s->l2, slot);
    table_cache_set_dirty(&s->l2, slot, s->gen);
    if (piece->kind == WRITE_NEW)
        qcow2_free_entry(s, old, false);
}

static int coroutine_fn qcow2_link_l2(struct write_piece *piece)
{
    struct qcow2 *s = piece->s;
    struct qcow2_need need = {0};
    uint64_t pos = piece->alloc.start;
    int ret = 0;
    trace(TRACE_QCOW2_LINK_L2, co_trace_id(), piece->alloc.start, piece->alloc.end - piece->alloc.start);
    qcow2_lock(s);
    while (pos < piece->alloc.end) {
        uint32_t slot;
        uint64_t *words;
        ret = qcow2_l2_writable(s, pos, &slot, &words, &need);
        if (ret == -EAGAIN) {
            qcow2_unlock(s);
            ret = qcow2_co_satisfy(s, &need);
            qcow2_lock(s);
            if (ret == 0)
                continue;
        }
        if (ret < 0)
            break;
        link_cluster(piece, pos, slot, words);
        pos += s->cluster_bytes;
    }
    qcow2_alloc_remove(s, &piece->alloc);
    qcow2_unlock(s);
    if (ret < 0 && piece->kind == WRITE_NEW && s->data == s->node->file)
        qcow2_co_unalloc(s, piece->host + (pos - piece->alloc.start),
                         (piece->alloc.end - pos) >> s->cluster_bits);
    return ret;
}

static int coroutine_fn co_write_piece(struct write_piece *piece)
{
    struct qcow2 *s = piece->s;
    if (piece->kind == WRITE_IN_PLACE) {
        uint64_t host = piece->host + (piece->offset - qcow2_cluster_down(s, piece->offset));
        return qcow2_co_write_data(s, piece->offset, host, piece->bytes, piece->sg);
    }
    int ret = co_write_cow(piece);
    if (ret == 0)
        return qcow2_link_l2(piece);
    qcow2_lock(s);
    qcow2_alloc_remove(s, &piece->alloc);
    qcow2_unlock(s);
    if (piece->kind == WRITE_NEW && s->data == s->node->file)
        qcow2_co_unalloc(s, piece->host, (piece->alloc.end - piece->alloc.start) >> s->cluster_bits);
    return ret;
}

static int coroutine_fn write_piece_run(struct task *task)
{
    return co_write_piece((struct write_piece *)task);
}

/* The rest of a request whose first piece, planned already, does not cover it: pieces side by side. */
static int coroutine_fn co_write_split(struct qcow2 *s, struct write_piece *first, uint64_t bytes)
{
    struct write_piece pieces[TASK_POOL_MAX];
    struct task_pool pool = {.max = TASK_POOL_MAX};
    uint64_t done = first->bytes;
    int ret = 0;
    for (unsigned i = 0; i < TASK_POOL_MAX; i++)
        pieces[i].task.busy = false;
    first->task.run = write_piece_run;
    task_pool_start(&pool, &first->task);
    while (done < bytes) {
        task_pool_wait_slot(&pool);
        if (pool.result < 0)
            break;
        struct write_piece *piece = pieces;
        while (piece->task.busy)
            piece++;
        *piece = (struct write_piece){.task = {.run = write_piece_run},
                                      .s = s,
                                      .offset = first->offset + done,
                                      .bytes = bytes - done,
                                      .sg = sg_advance(first->sg, done)};
        ret = co_plan(s, piece);
        if (ret < 0)
            break;
        done += piece->bytes;
        if (done == bytes && pool.active == 0) {
            ret = co_write_piece(piece);
            break;
        }
        task_pool_start(&pool, &piece->task);
    }
    int pool_ret = task_pool_wait_all(&pool);
    return ret < 0 ? ret : pool_ret;
}

int coroutine_fn qcow2_co_write_guest(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct sg sg)
{
    struct write_piece first = {.s = s, .offset = offset, .bytes = bytes, .sg = sg};
    int ret = co_plan(s, &first);
    if (ret < 0)
        return ret;
    return first.bytes == bytes ? co_write_piece(&first) : co_write_split(s, &first, bytes);
}

/* Fills what was allocated for no data yet: a standard entry will say that it is data, so zeroes have to be
 * there. */
static int coroutine_fn co_fill_reserved(struct write_piece *piece, enum qcow2_preallocation mode)
{
    struct qcow2 *s = piece->s;
    uint64_t bytes = piece->alloc.end - piece->alloc.start;
    /* With encryption zeroes in the file are not zeroes on the disk. */
    if (mode == QCOW2_PREALLOCATION_FALLOC && !s->crypto)
        return node_co_pwrite_zeroes(s->data, piece->host, bytes, 0);
    if (mode == QCOW2_PREALLOCATION_METADATA &&
        (piece->fresh || s->extended_l2 || s->data != s->node->file) && !s->crypto)
        return 0;
    for (uint64_t done = 0; done < bytes;) {
        uint64_t n = min_u64(bytes - done, ZEROES_BYTES);
        struct iovec iov = {.iov_base = (void *)zeroes, .iov_len = n};
        int ret = qcow2_co_write_data(s, piece->alloc.start + done, piece->host + done, n, sg_make(&iov, 1));
        if (ret < 0)
            return ret;
        done += n;
    }
    return 0;
}

int coroutine_fn qcow2_co_preallocate(struct qcow2 *s, uint64_t start, uint64_t end,
                                      enum qcow2_preallocation mode)
{
    int ret = qcow2_co_writer_begin(s);
    if (ret < 0)
        return ret;
    for (uint64_t at = qcow2_cluster_down(s, start); at < end && ret == 0;) {
        struct qcow2_extent extent;
        ret = qcow2_co_map(s, at, qcow2_cluster_up(s, end) - at, &extent);
        if (ret < 0)
            break;
        if (extent.type != QCOW2_UNALLOCATED && extent.type != QCOW2_ZERO_PLAIN) {
            at += s->cluster_bytes;
            continue;
        }
        if (at < start && s->backing_file && !s->extended_l2) {
            /* What is in front of START may show the backing file: it comes along. */
            unsigned epoch = qcow2_use_begin(s);
            ret = qcow2_co_write_zeroes_guest(s, start, min_u64(end, at + s->cluster_bytes) - start);
            qcow2_use_end(s, epoch);
            at += s->cluster_bytes;
            continue;
        }
        struct write_piece piece = {.s = s, .offset = at, .bytes = extent.bytes, .reserve = true};
        ret = co_plan(s, &piece);
        if (ret < 0)
            break;
        at += piece.bytes;
        if (piece.kind == WRITE_IN_PLACE)
            continue;
        ret = co_fill_reserved(&piece, mode);
        if (ret == 0) {
            ret = qcow2_link_l2(&piece);
        } else {
            qcow2_lock(s);
            qcow2_alloc_remove(s, &piece.alloc);
            qcow2_unlock(s);
            if (piece.kind == WRITE_NEW && s->data == s->node->file) {
                uint64_t bytes = piece.alloc.end - piece.alloc.start;
                if (s->discard_down) /* it may have failed for want of the space that this takes */
                    (void)node_co_pdiscard(s->node->file, piece.host, bytes);
                qcow2_co_unalloc(s, piece.host, bytes >> s->cluster_bits);
            }
        }
    }
    qcow2_co_writer_end(s);
    return ret;
}

int coroutine_fn qcow2_co_write_zeroes_guest(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    int ret = 0;
    while (bytes && ret == 0) {
        uint64_t n = min_u64(bytes, ZEROES_BYTES);
        struct iovec iov = {.iov_base = (void *)zeroes, .iov_len = n};
        ret = qcow2_co_write_guest(s, offset, n, sg_make(&iov, 1));
        offset += n;
        bytes -= n;
    }
    return ret;
}

int coroutine_fn qcow2_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                  unsigned flags)
{
    struct qcow2 *s = node->opaque;
    trace(TRACE_QCOW2_CO_PWRITEV, co_trace_id(), offset, bytes);
    int ret = qcow2_co_writer_begin(s);
    if (ret < 0)
        return ret;
    unsigned epoch = qcow2_use_begin(s);
    if (flags & NODE_IO_COMPRESSED)
        ret = qcow2_co_pwritev_compressed(s, offset, bytes, sg);
    else
        ret = qcow2_co_write_guest(s, offset, bytes, sg);
    qcow2_use_end(s, epoch);
    if (s->bitmaps)
        qcow2_bitmaps_mark(s, offset, bytes);
    qcow2_co_writer_end(s);
    int bound = qcow2_co_bound_freed(s);
    return ret < 0 ? ret : bound;
}
