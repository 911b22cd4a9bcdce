/*
 * Growing and shrinking the disk.
 *
 * What always holds: the new size stands in the header only when the part that appears reads as zeroes (M3),
 * and an L1 table that moved is complete; size, offset and length of the table change in one sector (F13).
 * Growing that fails half way leaves the old size.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/qcow2_state.h"

static uint64_t l1_needed(const struct qcow2 *s, uint64_t bytes)
{
    unsigned covers = s->cluster_bits + s->l2_bits;
    return (bytes >> covers) + ((bytes & ((1ull << covers) - 1)) != 0);
}

/* Keeps an array that readers without a lock may still be looking at. */
static int retire(struct qcow2 *s, void *array)
{
    void **more = realloc(s->retired, (s->nb_retired + 1) * sizeof(*more));
    if (!more)
        return -ENOMEM;
    s->retired = more;
    more[s->nb_retired++] = array;
    return 0;
}

int coroutine_fn qcow2_co_grow_l1(struct qcow2 *s, uint64_t entries)
{
    if (entries <= s->l1_size)
        return 0;
    if (entries > QCOW2_MAX_L1_BYTES / 8)
        return -EFBIG;
    uint64_t clusters = (entries * 8 + s->cluster_bytes - 1) >> s->cluster_bits, host = 0;
    uint64_t room = (entries + 63) & ~63ull;
    /* All that the old table still has to say goes out first. */
    int ret = qcow2_co_writeback(s);
    if (ret == 0)
        ret = qcow2_co_alloc_contiguous(s, clusters, &host, NULL);
    if (ret < 0)
        return ret;
    uint64_t *l1 = calloc(room, 8);
    uint8_t *dirty = calloc(room / 64 + 1, 1);
    be64 *out = qcow2_buffer_get(s);
    ret = l1 && dirty && out ? 0 : -ENOMEM;
    if (ret == 0)
        memcpy(l1, s->l1, (size_t)s->l1_size * 8);
    for (uint64_t c = 0; c < clusters && ret == 0; c++) {
        uint64_t per = s->cluster_bytes / 8;
        for (uint64_t i = 0; i < per; i++)
            out[i] = be64_put(c * per + i < entries ? l1[c * per + i] : 0);
        ret = node_co_pwrite(s->node->file, host + (c << s->cluster_bits), out, s->cluster_bytes, 0);
    }
    qcow2_buffer_put(s, out);
    /* The refcounts of the new table, too. */
    if (ret == 0)
        ret = qcow2_co_writeback(s);
    uint64_t old_offset = s->l1_offset, old_bytes = (uint64_t)s->l1_size * 8;
    if (ret == 0)
        ret = retire(s, s->l1);
    if (ret == 0) {
        co_mutex_lock(&s->header_lock);
        s->l1_offset = host;
        s->header_l1_size = (uint32_t)entries;
        ret = qcow2_co_write_header_sector(s);
        if (ret < 0) {
            s->l1_offset = old_offset;
            s->header_l1_size = s->l1_size;
            s->nb_retired--;
        }
        co_mutex_unlock(&s->header_lock);
    }
    if (ret < 0) {
        free(l1);
        free(dirty);
        qcow2_co_unalloc(s, host, clusters);
        return ret;
    }
    qcow2_lock(s);
    while (s->wb_running) /* which remembers places in the old arrays */
        co_queue_wait(&s->wb_waiters, &s->lock);
    /* Array before size: pairs with map_slice in mapping.c. */
    __atomic_store_n(&s->l1, l1, __ATOMIC_RELEASE);
    __atomic_store_n(&s->l1_size, (uint32_t)entries, __ATOMIC_RELEASE);
    free(s->l1_dirty);
    s->l1_dirty = dirty;
    s->l1_nb_dirty = 0;
    qcow2_overlap_remove(s, old_offset, old_bytes);
    (void)qcow2_overlap_add(s, host, entries * 8, QCOW2_OL_ACTIVE_L1);
    qcow2_free_later(s, old_offset, old_bytes, true);
    qcow2_unlock(s);
    return 0;
}

static int coroutine_fn co_set_size(struct qcow2 *s, uint64_t bytes)
{
    int ret = qcow2_co_writeback(s);
    if (ret < 0)
        return ret;
    co_mutex_lock(&s->header_lock);
    uint64_t old = s->size;
    s->size = bytes;
    ret = qcow2_co_write_header_sector(s);
    if (ret < 0)
        s->size = old;
    co_mutex_unlock(&s->header_lock);
    if (ret == 0)
        node_set_length(s->node, bytes);
    return ret;
}

/* What lies behind the end of the disk already, without being part of it: a snapshot's VM state (J5), for
 * one, after the snapshot was applied. */
static int coroutine_fn co_drop_behind(struct qcow2 *s, uint64_t start, uint64_t end)
{
    int ret = 0;
    if (s->version >= 3 || !s->backing_file)
        return qcow2_co_drop_range(s, start, end, false);
    /* The backing file would show: zeroes as data, where there is anything. */
    while (start < end && ret == 0) {
        struct qcow2_extent extent;
        ret = qcow2_co_map(s, start, end - start, &extent);
        if (ret == 0 && extent.type != QCOW2_UNALLOCATED)
            ret = qcow2_co_write_zeroes_guest(s, start, extent.bytes);
        start += extent.bytes;
    }
    return ret;
}

/* What appears behind the old end must be zeroes: the rest of the last cluster, where a longer backing file
 * would show, and what lies there. */
static int coroutine_fn co_zero_new_part(struct qcow2 *s, uint64_t old, uint64_t bytes)
{
    uint64_t backing = !s->backing_file ? 0 : s->node->backing ? node_length(s->node->backing) : UINT64_MAX;
    uint64_t up = qcow2_cluster_up(s, old), end = qcow2_cluster_up(s, min_u64(bytes, max_u64(backing, up)));
    struct qcow2_extent extent;
    int ret = 0;
    if (old < up) {
        ret = qcow2_co_map(s, old, up - old, &extent);
        if (ret == 0 && !(extent.bytes == up - old &&
                          (extent.type == QCOW2_ZERO_PLAIN || extent.type == QCOW2_ZERO_ALLOC ||
                           (extent.type == QCOW2_UNALLOCATED && backing <= old))))
            ret = qcow2_co_write_zeroes_guest(s, old, up - old);
    }
    if (ret == 0 && up < end && backing > up) {
        ret = qcow2_co_drop_range(s, up, end, true);
        if (ret == -ENOTSUP) /* version 2 over a backing file */
            ret = qcow2_co_write_zeroes_guest(s, up, end - up);
    }
    uint64_t behind = max_u64(up, end), all = qcow2_cluster_up(s, bytes);
    return ret == 0 && behind < all ? co_drop_behind(s, behind, all) : ret;
}

/* An external data file ends with the disk, so that nothing of what was cut off comes back when it grows
 * again: a raw one is mapped whatever it holds. What is still there (the power went after the header was
 * written, or it is a device) goes now. */
static int coroutine_fn co_grow_data_file(struct qcow2 *s, uint64_t old, uint64_t bytes)
{
    uint64_t length = node_length(s->data);
    int ret = 0;
    if (length > old && node_co_truncate(s->data, old, true, NULL) < 0)
        ret = node_co_pwrite_zeroes(s->data, old, min_u64(length, bytes) - old, 0);
    return ret < 0 ? ret : node_co_truncate(s->data, bytes, false, NULL);
}

static int coroutine_fn co_grow(struct qcow2 *s, uint64_t bytes)
{
    uint64_t old = node_length(s->node);
    int ret = qcow2_co_grow_l1(s, l1_needed(s, bytes));
    if (ret == 0 && s->data != s->node->file)
        ret = co_grow_data_file(s, old, bytes);
    if (ret == 0)
        ret = co_zero_new_part(s, old, bytes);
    return ret < 0 ? ret : co_set_size(s, bytes);
}

static int coroutine_fn co_shrink(struct qcow2 *s, uint64_t bytes)
{
    uint64_t start = qcow2_cluster_up(s, bytes), end = qcow2_cluster_up(s, node_length(s->node));
    /* What is dropped has changed, even if the size then can't. */
    qcow2_bitmaps_mark(s, bytes, node_length(s->node) - bytes);
    int ret = start < end ? qcow2_co_drop_range(s, start, end, false) : 0;
    if (ret == 0)
        ret = co_set_size(s, bytes);
    if (ret == 0 && s->data != s->node->file && node_length(s->data) > bytes)
        (void)node_co_truncate(s->data, bytes, true, NULL); /* if not now, then before it grows again */
    return ret;
}

/* What growing that failed has to put back. */
struct grown {
    uint64_t size;   /* the header's, before */
    uint64_t length; /* the node's */
    uint64_t data;   /* of the external data file, at least */
};

/* Makes holes of the clusters from guest offset START to END, which preallocation filled with zeroes: of as
 * many at a time as lie side by side, since the host gives back whole blocks of its own. */
static int coroutine_fn co_punch_new(struct qcow2 *s, uint64_t start, uint64_t end)
{
    uint64_t from = 0, to = 0, refcount;
    int ret = 0;
    while (start < end && s->discard_down) {
        struct qcow2_extent extent;
        ret = qcow2_co_map(s, start, end - start, &extent);
        if (ret < 0)
            break;
        bool cluster = extent.type == QCOW2_NORMAL || extent.type == QCOW2_UNALLOCATED_ALLOC ||
                       extent.type == QCOW2_ZERO_ALLOC;
        for (uint64_t done = 0; cluster && done < extent.bytes; done += s->cluster_bytes) {
            uint64_t host = qcow2_cluster_down(s, extent.host + done);
            if (qcow2_co_refcount_get(s, host >> s->cluster_bits, &refcount) < 0 || refcount != 1 ||
                !qcow2_co_may_punch(s, host >> s->cluster_bits))
                continue;
            if (host != to) {
                if (from < to)
                    (void)node_co_pdiscard(s->node->file, from, to - from);
                from = host;
            }
            to = host + s->cluster_bytes;
        }
        start = qcow2_cluster_up(s, start + extent.bytes);
    }
    if (from < to)
        (void)node_co_pdiscard(s->node->file, from, to - from);
    return ret;
}

/* Growing to BYTES failed, perhaps since there is no space: so what needs none comes first, the size in the
 * header, and then what makes space, before the tables are written. A crash in between leaves clusters behind
 * the end of the disk, which are dropped when it grows. */
static int coroutine_fn co_ungrow(struct qcow2 *s, const struct grown *was, uint64_t bytes,
                                  bool *size_is_back)
{
    uint64_t start = qcow2_cluster_up(s, was->length), end = qcow2_cluster_up(s, bytes);
    co_mutex_lock(&s->header_lock);
    uint64_t now = s->size;
    s->size = was->size;
    int ret = now == was->size ? 0 : qcow2_co_write_header_sector(s);
    if (ret < 0)
        s->size = now;
    co_mutex_unlock(&s->header_lock);
    *size_is_back = ret == 0;
    if (ret < 0)
        return ret;
    node_set_length(s->node, was->length);
    if (now != was->size)
        qcow2_bitmaps_resized(s);
    if (s->data != s->node->file) {
        /* Requests may have made it longer meanwhile, up to the end of the disk. */
        uint64_t keep = max_u64(was->data, was->length);
        if (node_length(s->data) > keep)
            ret = node_co_truncate(s->data, keep, true, NULL);
    } else {
        ret = co_punch_new(s, start, end);
    }
    if (ret == 0)
        ret = qcow2_co_drop_range(s, start, end, false);
    if (ret == 0)
        ret = qcow2_co_writeback(s);
    if (ret == 0) {
        qcow2_co_reclaim_all(s);
        ret = qcow2_co_writeback(s);
    }
    return ret;
}

/* ERROR is why growing failed; says so, and what could not be put back. */
static int coroutine_fn co_end_failed(struct qcow2 *s, const struct grown *was, uint64_t bytes, int error,
                                      struct error *err)
{
    bool size_is_back = true;
    qcow2_co_quiesce(s);
    int undone = co_ungrow(s, was, bytes, &size_is_back);
    qcow2_co_unquiesce(s);
    const char *name = s->node->filename;
    unsigned long long to = bytes, from = was->length;
    if (undone == 0)
        return error_set(err, error, "%s: cannot be resized to %llu bytes: %s", name, to, strerror(-error));
    if (size_is_back)
        return error_set(err, error,
                         "%s: cannot be resized to %llu bytes: %s (it has its %llu bytes again, but not all "
                         "the space that it took could be given back: %s)",
                         name, to, strerror(-error), from, strerror(-undone));
    return error_set(err, error,
                     "%s: cannot be resized to %llu bytes: %s (nor could it get its old size of %llu bytes "
                     "back: %s)",
                     name, to, strerror(-error), from, strerror(-undone));
}

static int coroutine_fn co_resize(struct qcow2 *s, uint64_t bytes, enum qcow2_preallocation mode,
                                  struct error *err)
{
    if (bytes > INT64_MAX - 511)
        return error_set(err, -EFBIG, "%llu bytes are more than an image can have",
                         (unsigned long long)bytes);
    bytes = (bytes + 511) & ~511ull;
    const struct grown was = {s->size, node_length(s->node), node_length(s->data)};
    uint64_t old = was.length;
    int ret = 0, refused = 0;
    bool began = false;
    if (s->version < 3 && s->nb_snapshots)
        return error_set(err, -ENOTSUP, "a version 2 image with snapshots cannot be resized");
    if (l1_needed(s, bytes) > QCOW2_MAX_L1_BYTES / 8)
        return error_set(err, -EFBIG, "%llu bytes are too many for clusters of %llu bytes",
                         (unsigned long long)bytes, (unsigned long long)s->cluster_bytes);
    if (!__atomic_load_n(&s->prepared, __ATOMIC_ACQUIRE))
        ret = qcow2_co_prepare_write(s);
    if (ret == 0) {
        qcow2_co_quiesce(s);
        ret = qcow2_io_error(s);
        if (ret == 0 && bytes != old)
            refused = qcow2_bitmaps_co_prepare_resize(s, bytes, err);
        began = ret == 0 && refused == 0 && bytes > old;
        if (ret == 0 && refused == 0 && bytes != old)
            ret = bytes > old ? co_grow(s, bytes) : co_shrink(s, bytes);
        if (ret == 0 && refused == 0 && bytes != old)
            qcow2_bitmaps_resized(s);
        qcow2_co_unquiesce(s);
    }
    if (refused < 0)
        return error_prefix(err, refused, "%s", s->node->filename);
    if (ret == 0 && bytes > old && mode != QCOW2_PREALLOCATION_OFF) {
        ret = qcow2_co_preallocate(s, old, bytes, mode);
        if (ret == 0) /* there may be no space for the tables, either */
            ret = qcow2_co_writeback(s);
    }
    if (ret < 0 && began)
        return co_end_failed(s, &was, bytes, ret, err);
    return ret < 0 ? error_set(err, ret, "%s: cannot be resized to %llu bytes: %s", s->node->filename,
                               (unsigned long long)bytes, strerror(-ret))
                   : 0;
}

int coroutine_fn qcow2_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    struct qcow2 *s = node->opaque;
    if (s->read_only)
        return error_set(err, -EPERM, "%s: is open read-only", node->filename);
    if (!exact && bytes <= node_length(node))
        return 0;
    return co_resize(s, bytes, s->data_file_raw ? QCOW2_PREALLOCATION_METADATA : QCOW2_PREALLOCATION_OFF,
                     err);
}

int coroutine_fn qcow2_co_grow(struct node *node, uint64_t bytes, enum qcow2_preallocation preallocation,
                               struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    if (!s || s->read_only)
        return error_set(err, s ? -EPERM : -EINVAL, "not a writable qcow2 image");
    if (bytes < node_length(node))
        return error_set(err, -EINVAL, "preallocation goes with growing only");
    return co_resize(s, bytes, preallocation, err);
}
