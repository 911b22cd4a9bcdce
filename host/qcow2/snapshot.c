/*
 * Internal snapshots: created, applied, deleted; and the active mapping replaced as a whole.
 *
 * What always holds: no writer is in flight meanwhile and everything is written back before tables are
 * changed in the file. Where refcounts of active clusters become or cease to be 1, mapping and refcounts are
 * exchanged by one sector (exchange.h), so that COPIED flags are right at every moment (checklist F5, O2).
 * Elsewhere refcounts go up, durably, before there is a second reference, and down after it is durably gone.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/exchange.h"

/* ---- walking a mapping tree in the file ---- */

/* What is done with every reference that an L1 table makes, its L2 tables included. */
typedef int coroutine_fn on_reference(struct qcow2 *s, uint64_t host, uint64_t bytes);

static int coroutine_fn co_count(struct qcow2 *s, uint64_t host, uint64_t bytes, int delta)
{
    uint64_t first = host >> s->cluster_bits, end = (host + bytes - 1) >> s->cluster_bits;
    return bytes ? qcow2_co_refcount_change(s, first, end - first + 1, delta) : 0;
}

static int coroutine_fn add_reference(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    return co_count(s, host, bytes, 1);
}

/* In an exchange: what goes to 0 is not allocated before the exchange is over. */
static int coroutine_fn take_reference(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    return co_count(s, host, bytes, -1);
}

static int coroutine_fn undo_reference(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    (void)co_count(s, host, bytes, -1);
    return 0;
}

/* The space of what nobody refers to any more goes back to the host. */
static int coroutine_fn punch_reference(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    uint64_t first = host >> s->cluster_bits,
             end = bytes ? ((host + bytes - 1) >> s->cluster_bits) + 1 : first;
    for (uint64_t c = first; c < end; c++) {
        uint64_t refcount;
        if (qcow2_co_refcount_get(s, c, &refcount) == 0 && !refcount && qcow2_co_may_punch(s, c))
            (void)node_co_pdiscard(s->node->file, c << s->cluster_bits, s->cluster_bytes);
    }
    return 0;
}

static int coroutine_fn drop_reference(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    qcow2_lock(s);
    qcow2_free_later(s, qcow2_cluster_down(s, host), bytes + (host & (s->cluster_bytes - 1)), true);
    bool much = s->freed.count > 4096;
    qcow2_unlock(s);
    int ret = much ? qcow2_co_writeback(s) : 0;
    if (much && ret == 0)
        qcow2_co_reclaim(s);
    return ret;
}

/* Clusters of an external data file are not counted. Those behind the end of the file are (a crash of others
 * leaves such mappings), since it may grow over them at any time. */
static bool entry_reference(const struct qcow2 *s, uint64_t entry, uint64_t *host, uint64_t *bytes)
{
    if (s->data != s->node->file)
        return false;
    if (entry & QCOW2_L2_COMPRESSED) {
        qcow2_compressed_range(s, entry, host, bytes);
        return true;
    }
    *host = entry & QCOW2_L2_OFFSET_MASK;
    *bytes = s->cluster_bytes;
    return *host && !(*host & (s->cluster_bytes - 1));
}

/* Calls FN for the first LIMIT references (L2 tables and clusters) of a tree; *DONE counts them. */
static int coroutine_fn co_walk_tree(struct qcow2 *s, const uint64_t *l1, uint64_t entries, on_reference *fn,
                                     uint64_t limit, uint64_t *done)
{
    unsigned step = s->extended_l2 ? 2 : 1;
    uint8_t *buf = qcow2_buffer_get(s);
    int ret = buf ? 0 : -ENOMEM;
    *done = 0;
    for (uint64_t i = 0; i < entries && ret == 0; i++) {
        uint64_t table = l1[i] & QCOW2_L1_OFFSET_MASK, host, bytes;
        if (!table)
            continue;
        if ((table & (s->cluster_bytes - 1)) ||
            table + s->cluster_bytes > qcow2_cluster_up(s, s->file_bytes)) {
            ret = -EIO;
            break;
        }
        ret = node_co_pread(s->node->file, table, buf, s->cluster_bytes);
        for (uint64_t k = 0; k < 1ull << s->l2_bits && ret == 0; k++) {
            uint64_t entry = be64_get(((const be64 *)(const void *)buf)[k * step]);
            if (!entry || !entry_reference(s, entry, &host, &bytes))
                continue;
            if (*done == limit)
                goto out;
            ret = fn(s, host, bytes);
            *done += ret == 0;
        }
        if (ret == 0) {
            if (*done == limit)
                goto out;
            ret = fn(s, table, s->cluster_bytes);
            *done += ret == 0;
        }
    }
out:
    qcow2_buffer_put(s, buf);
    return ret;
}

/* One more reference to all that the tree refers to, or none. */
static int coroutine_fn co_add_tree(struct qcow2 *s, const uint64_t *l1, uint64_t entries)
{
    uint64_t done, undone;
    int ret = co_walk_tree(s, l1, entries, add_reference, UINT64_MAX, &done);
    if (ret < 0)
        (void)co_walk_tree(s, l1, entries, undo_reference, done, &undone);
    return ret;
}

static int entry_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* A tree whose L1 table names one L2 table time and again has more references than anybody can walk: millions
 * of times a whole table, in a file of a few MiB. -EMLINK: it is such a one. */
static int refuse_repeats(const uint64_t *l1, uint64_t entries)
{
    uint64_t *tables = malloc((entries + 1) * sizeof(*tables)), count = 0;
    int ret = 0;
    if (!tables)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++) {
        if (l1[i] & QCOW2_L1_OFFSET_MASK)
            tables[count++] = l1[i] & QCOW2_L1_OFFSET_MASK;
    }
    qsort(tables, count, sizeof(*tables), entry_compare);
    for (uint64_t i = 1; i < count && ret == 0; i++)
        ret = tables[i] == tables[i - 1] ? -EMLINK : 0;
    free(tables);
    return ret;
}

/* ---- the table ---- */

static size_t entry_bytes(const struct qcow2_snapshot *snapshot)
{
    size_t bytes = sizeof(struct qcow2_snapshot_header) + snapshot->extra_bytes + strlen(snapshot->id) +
                   strlen(snapshot->name);
    return (bytes + 7) & ~(size_t)7;
}

static void put_entry(const struct qcow2_snapshot *snapshot, uint8_t *to)
{
    struct qcow2_snapshot_header h = {
        .l1_table_offset = be64_put(snapshot->l1_offset),
        .l1_size = be32_put(snapshot->l1_size),
        .id_size = be16_put((uint16_t)strlen(snapshot->id)),
        .name_size = be16_put((uint16_t)strlen(snapshot->name)),
        .date_sec = be32_put(snapshot->date_sec),
        .date_nsec = be32_put(snapshot->date_nsec),
        .vm_clock_nsec = be64_put(snapshot->vm_clock_nsec),
        .vm_state_size =
            be32_put((uint32_t)(snapshot->vm_state_bytes <= UINT32_MAX ? snapshot->vm_state_bytes : 0)),
        .extra_data_size = be32_put(snapshot->extra_bytes),
    };
    memcpy(to, &h, sizeof(h));
    to += sizeof(h);
    memcpy(to, snapshot->extra, snapshot->extra_bytes);
    to += snapshot->extra_bytes;
    memcpy(to, snapshot->id, strlen(snapshot->id));
    memcpy(to + strlen(snapshot->id), snapshot->name, strlen(snapshot->name));
}

uint64_t qcow2_snapshot_table_bytes(const struct qcow2_snapshot *list, uint32_t count)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += entry_bytes(&list[i]);
    return bytes;
}

int coroutine_fn qcow2_co_write_snapshot_table(struct qcow2 *s, const struct qcow2_snapshot *list,
                                               uint32_t count, uint64_t host)
{
    uint64_t bytes = qcow2_cluster_up(s, qcow2_snapshot_table_bytes(list, count));
    uint8_t *buf = node_buffer(s->node->file, bytes), *to = buf;
    if (!buf)
        return -ENOMEM;
    memset(buf, 0, bytes);
    for (uint32_t i = 0; i < count; i++) {
        put_entry(&list[i], to);
        to += entry_bytes(&list[i]);
    }
    int ret = node_co_pwrite(s->node->file, host, buf, bytes, 0);
    free(buf);
    return ret;
}

/* ---- what brackets every change ---- */

static int coroutine_fn co_begin(struct node *node, struct qcow2 **state, struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    *state = s;
    if (!s) {
        error_set(err, -EINVAL, "not a qcow2 image");
        return -EINVAL;
    }
    if (s->read_only)
        return error_set(err, -EPERM, "%s: is open read-only", node->filename);
    int ret = __atomic_load_n(&s->prepared, __ATOMIC_ACQUIRE) ? 0 : qcow2_co_prepare_write(s);
    if (ret < 0)
        return error_set(err, ret, "%s: %s", node->filename, strerror(-ret));
    qcow2_co_quiesce(s);
    ret = qcow2_io_error(s);
    if (ret == 0)
        ret = qcow2_co_writeback(s);
    if (ret < 0) {
        qcow2_co_unquiesce(s);
        return error_set(err, ret, "%s: %s", node->filename, strerror(-ret));
    }
    return 0;
}

/* RESULT is what the change came to. */
static int coroutine_fn co_end(struct qcow2 *s, int result, const char *what, struct error *err)
{
    int ret = qcow2_co_writeback(s);
    if (ret == 0) {
        qcow2_co_reclaim_all(s);
        ret = qcow2_co_writeback(s);
    }
    qcow2_co_unquiesce(s);
    if (result == 0)
        result = ret;
    if (result == -ERANGE)
        return error_set(err, result, "%s: refcounts of %u bits cannot count another reference", what,
                         1u << s->refcount_order);
    if (result == -EMLINK)
        return error_set(
            err, result,
            "%s: an L1 table or the refcount table names one table again and again (ringside-img "
            "convert makes an image without that)",
            what);
    return result < 0 ? error_set(err, result, "%s: %s", what, strerror(-result)) : 0;
}

/* ---- create ---- */

static uint8_t *copy_bytes(const void *from, size_t bytes)
{
    uint8_t *copy = malloc(bytes);
    if (copy)
        memcpy(copy, from, bytes);
    return copy;
}

static int new_entry(struct qcow2 *s, const char *name, struct qcow2_snapshot *snapshot)
{
    unsigned long id = 0;
    for (uint32_t i = 0; i < s->nb_snapshots; i++) {
        unsigned long other = strtoul(s->snapshots[i].id, NULL, 10);
        if (other > id)
            id = other;
    }
    struct timespec now;
    char text[24];
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(text, sizeof(text), "%lu", id + 1);
    /* icount: -1 is the format's word for "was not counted". (qemu-img says 0, a count that nobody made.) */
    struct qcow2_snapshot_extra extra = {
        .vm_state_size_large = be64_put(0), .disk_size = be64_put(s->size), .icount = be64_put(UINT64_MAX)};
    *snapshot = (struct qcow2_snapshot){.id = strdup(text),
                                        .name = strdup(name),
                                        .l1_size = s->l1_size,
                                        .date_sec = (uint32_t)now.tv_sec,
                                        .date_nsec = (uint32_t)now.tv_nsec,
                                        .disk_bytes = s->size,
                                        .icount = UINT64_MAX,
                                        .extra = copy_bytes(&extra, sizeof(extra)),
                                        .extra_bytes = sizeof(extra)};
    if (!snapshot->id || !snapshot->name || !snapshot->extra)
        return -ENOMEM;
    return 0;
}

static uint64_t count_entries(const uint64_t *l1, uint64_t entries, uint64_t mask)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < entries; i++)
        count += (l1[i] & mask) != 0;
    return count;
}

static int coroutine_fn co_take_snapshot(struct qcow2 *s, const char *name)
{
    struct qcow2_snapshot snapshot;
    struct qcow2_exchange x;
    uint64_t done;
    if (s->nb_snapshots >= QCOW2_MAX_SNAPSHOTS)
        return -EFBIG;
    int ret = refuse_repeats(s->l1, s->l1_size);
    if (ret < 0)
        return ret;
    ret = new_entry(s, name, &snapshot);
    struct qcow2_snapshot *list = ret == 0 ? calloc(s->nb_snapshots + 1, sizeof(*list)) : NULL;
    if (!list) {
        qcow2_free_snapshot(&snapshot);
        return -ENOMEM;
    }
    /* The present L1 table becomes the snapshot's; the active mapping gets a new one. */
    snapshot.l1_offset = s->l1_offset;
    if (s->nb_snapshots)
        memcpy(list, s->snapshots, s->nb_snapshots * sizeof(*list));
    list[s->nb_snapshots] = snapshot;
    struct qcow2_exchange_list new = {list, s->nb_snapshots + 1,
                                      qcow2_snapshot_table_bytes(list, s->nb_snapshots + 1)};
    ret = new.bytes > QCOW2_MAX_SNAPSHOT_TABLE_BYTES ? -EFBIG : 0;
    if (ret == 0)
        ret = qcow2_co_exchange_begin(s, &x, count_entries(s->l1, s->l1_size, QCOW2_COPIED), new.bytes);
    if (ret == 0) {
        ret = co_walk_tree(s, s->l1, s->l1_size, add_reference, UINT64_MAX, &done);
        if (ret < 0)
            qcow2_co_exchange_abort(s, &x);
        else
            ret = qcow2_co_exchange_commit(s, &x, &new, true);
    }
    if (ret == 0)
        return 0; /* the list is the image's now */
    free(list);
    qcow2_free_snapshot(&snapshot);
    return ret;
}

int coroutine_fn qcow2_co_snapshot_create(struct node *node, const char *name, struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    if (s && (s->data_file_name || s->data != node->file) && (s->incompatible & QCOW2_INCOMPAT_DATA_FILE))
        return error_set(err, -ENOTSUP, "an image with an external data file cannot have snapshots");
    if (strlen(name) > UINT16_MAX)
        return error_set(err, -ENAMETOOLONG, "the snapshot's name is too long");
    if (s && s->nb_snapshots >= QCOW2_MAX_SNAPSHOTS)
        return error_set(err, -EFBIG, "there are %u snapshots already", s->nb_snapshots);
    int ret = co_begin(node, &s, err);
    if (ret < 0)
        return ret;
    return co_end(s, co_take_snapshot(s, name), "snapshot cannot be created", err);
}

/* ---- delete ---- */

/* L2 tables of the active mapping that have clusters of L1's tree in them. */
static uint64_t count_common(const struct qcow2 *s, const uint64_t *l1, uint64_t entries)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < min_u64(entries, s->l1_size); i++)
        count += (l1[i] & QCOW2_L1_OFFSET_MASK) && (s->l1[i] & QCOW2_L1_OFFSET_MASK);
    return count;
}

static int coroutine_fn co_delete(struct qcow2 *s, uint32_t index)
{
    struct qcow2_snapshot gone = s->snapshots[index];
    uint32_t count = s->nb_snapshots - 1;
    uint64_t *l1, l1_bytes = (uint64_t)gone.l1_size * 8, done;
    struct qcow2_exchange x;
    int ret = qcow2_co_read_table(s, gone.l1_offset, gone.l1_size, gone.l1_size, &l1);
    if (ret < 0)
        return ret;
    ret = refuse_repeats(l1, gone.l1_size);
    if (ret == 0)
        ret = refuse_repeats(s->l1, s->l1_size);
    struct qcow2_snapshot *list = ret == 0 ? calloc(count + 1, sizeof(*list)) : NULL;
    if (!list) {
        free(l1);
        return ret < 0 ? ret : -ENOMEM;
    }
    memcpy(list, s->snapshots, index * sizeof(*list));
    memcpy(list + index, s->snapshots + index + 1, (count - index) * sizeof(*list));
    struct qcow2_exchange_list new = {list, count, qcow2_snapshot_table_bytes(list, count)};
    ret = qcow2_co_exchange_begin(s, &x, count_common(s, l1, gone.l1_size), new.bytes);
    if (ret == 0) {
        ret = co_walk_tree(s, l1, gone.l1_size, take_reference, UINT64_MAX, &done);
        if (ret == 0)
            ret = take_reference(s, gone.l1_offset, l1_bytes);
        if (ret < 0)
            qcow2_co_exchange_abort(s, &x);
        else
            ret = qcow2_co_exchange_commit(s, &x, &new, false);
    }
    if (ret == 0) {
        if (s->discard_down) {
            (void)co_walk_tree(s, l1, gone.l1_size, punch_reference, UINT64_MAX, &done);
            (void)punch_reference(s, gone.l1_offset, l1_bytes);
        }
        qcow2_free_snapshot(&gone);
    } else {
        free(list);
    }
    free(l1);
    return ret;
}

/* Ends what has changed nothing: ERR is set already. */
static int coroutine_fn co_refuse(struct qcow2 *s, int ret)
{
    qcow2_co_unquiesce(s);
    return ret;
}

/* NAME_FIRST: a name is looked for before an id is. What is found stays until the list is changed. */
static int find_usable(struct qcow2 *s, const char *what, bool name_first, struct qcow2_snapshot **snapshot,
                       struct error *err)
{
    *snapshot = qcow2_find_snapshot(s, what);
    for (uint32_t i = name_first ? s->nb_snapshots : 0; i--;) {
        if (strcmp(s->snapshots[i].name, what) == 0)
            *snapshot = &s->snapshots[i];
    }
    if (!*snapshot)
        return error_set(err, -ENOENT, "there is no snapshot '%s'", what);
    return qcow2_check_snapshot_l1(s, *snapshot, err);
}

/* Is there such a one, before anything is written? And again when nobody else changes the list. */
static int coroutine_fn co_begin_with(struct node *node, const char *what, bool name_first,
                                      struct qcow2_snapshot **snapshot, struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    if (!s) {
        error_set(err, -EINVAL, "not a qcow2 image");
        return -EINVAL;
    }
    co_mutex_lock(&s->header_lock); /* the list changes under it */
    int ret = find_usable(s, what, name_first, snapshot, err);
    co_mutex_unlock(&s->header_lock);
    if (ret == 0)
        ret = co_begin(node, &s, err);
    if (ret < 0)
        return ret;
    ret = find_usable(s, what, name_first, snapshot, err);
    return ret < 0 ? co_refuse(s, ret) : 0;
}

int coroutine_fn qcow2_co_snapshot_delete(struct node *node, const char *name_or_id, struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    struct qcow2_snapshot *snapshot = NULL;
    int ret = co_begin_with(node, name_or_id, true, &snapshot, err);
    if (ret < 0)
        return ret;
    return co_end(s, co_delete(s, (uint32_t)(snapshot - s->snapshots)), "snapshot cannot be deleted", err);
}

/* ---- the active mapping replaced ---- */

/* The tree of L1 becomes the active one; references to it are counted already, and no cluster of it is its
 * alone. The old one is freed. L1 has room for whole blocks of 64 entries; *SWITCHED: it was taken over. */
static int coroutine_fn co_switch(struct qcow2 *s, uint64_t *l1, uint32_t entries, uint64_t size,
                                  bool *switched)
{
    uint64_t host = s->l1_offset, clusters = qcow2_cluster_up(s, (uint64_t)entries * 8) >> s->cluster_bits,
             done;
    uint8_t *dirty = calloc(entries / 64 + 2, 1);
    void **retired = realloc(s->retired, (s->nb_retired + 1) * sizeof(*retired));
    if (retired)
        s->retired = retired;
    *switched = false;
    for (uint32_t i = 0; i < entries; i++)
        l1[i] &= ~QCOW2_COPIED;
    int ret = dirty && retired ? 0 : -ENOMEM;
    if (ret == 0 && clusters)
        ret = qcow2_co_alloc_contiguous(s, clusters, &host, NULL);
    if (ret < 0) {
        free(dirty);
        return ret;
    }
    ret = qcow2_co_write_table(s, l1, entries, host);
    if (ret == 0)
        ret = qcow2_co_writeback(s);
    uint64_t old_offset = s->l1_offset, old_size = s->size;
    uint32_t old_entries = s->l1_size;
    uint64_t *old = s->l1;
    if (ret == 0) {
        co_mutex_lock(&s->header_lock);
        s->l1_offset = host;
        s->header_l1_size = entries;
        s->size = size;
        ret = qcow2_co_write_header_sector(s);
        if (ret < 0) {
            s->l1_offset = old_offset;
            s->header_l1_size = old_entries;
            s->size = old_size;
        }
        co_mutex_unlock(&s->header_lock);
    }
    if (ret < 0) {
        free(dirty);
        if (clusters)
            qcow2_co_unalloc(s, host, clusters);
        return ret;
    }
    *switched = true;
    qcow2_lock(s);
    while (s->wb_running) /* which remembers places in the old arrays */
        co_queue_wait(&s->wb_waiters, &s->lock);
    __atomic_store_n(&s->l1, l1, __ATOMIC_RELEASE);
    __atomic_store_n(&s->l1_size, entries, __ATOMIC_RELEASE);
    s->retired[s->nb_retired++] = old;
    free(s->l1_dirty);
    s->l1_dirty = dirty;
    s->l1_nb_dirty = 0;
    (void)qcow2_overlap_build(s);
    qcow2_unlock(s);
    qcow2_co_forget_l2(s);
    node_set_length(s->node, size & ~511ull);
    ret = co_walk_tree(s, old, old_entries, drop_reference, UINT64_MAX, &done);
    qcow2_lock(s);
    if (clusters || old_entries)
        qcow2_free_later(s, old_offset, (uint64_t)old_entries * 8, true);
    qcow2_unlock(s);
    return ret;
}

/* Takes COPIED from the entries of a snapshot's L2 tables, in the file: there it says nothing, but they are
 * to become active, and none of their clusters is theirs alone then. */
static int coroutine_fn co_clear_copied(struct qcow2 *s, const uint64_t *l1, uint64_t entries)
{
    unsigned step = s->extended_l2 ? 2 : 1;
    uint8_t *buf = qcow2_buffer_get(s);
    be64 *table = (be64 *)(void *)buf;
    int ret = buf ? 0 : -ENOMEM;
    for (uint64_t i = 0; i < entries && ret == 0; i++) {
        uint64_t offset = l1[i] & QCOW2_L1_OFFSET_MASK;
        bool changed = false;
        if (!offset)
            continue;
        ret = node_co_pread(s->node->file, offset, buf, s->cluster_bytes);
        for (uint64_t k = 0; k < 1ull << s->l2_bits && ret == 0; k++) {
            uint64_t entry = be64_get(table[k * step]);
            /* As in an exchange: without a cluster of its own the flag says nothing, and the table may be the
             * active one, too. */
            if ((entry & QCOW2_COPIED) && !(entry & QCOW2_L2_COMPRESSED) && (entry & QCOW2_L2_OFFSET_MASK)) {
                table[k * step] = be64_put(entry & ~QCOW2_COPIED);
                changed = true;
            }
        }
        if (ret < 0 || !changed)
            continue;
        qcow2_lock(s);
        enum qcow2_overlap hit = qcow2_overlap_check(s, offset, s->cluster_bytes, QCOW2_OL_NONE, NULL);
        qcow2_unlock(s);
        ret = hit == QCOW2_OL_NONE ? node_co_pwrite(s->node->file, offset, buf, s->cluster_bytes, 0)
                                   : qcow2_co_corrupt(s, "an L2 table of a snapshot, at 0x%llx, lies on %s",
                                                      (unsigned long long)offset, qcow2_overlap_name(hit));
    }
    qcow2_buffer_put(s, buf);
    return ret;
}

static int coroutine_fn co_apply(struct qcow2 *s, const struct qcow2_snapshot *snapshot, bool *switched)
{
    unsigned covers = s->cluster_bits + s->l2_bits;
    uint64_t needed =
        (snapshot->disk_bytes >> covers) + ((snapshot->disk_bytes & ((1ull << covers) - 1)) != 0);
    uint64_t room = (max_u64(max_u64(snapshot->l1_size, s->l1_size), needed) + 64) & ~63ull, *l1, done;
    int ret = qcow2_co_read_table(s, snapshot->l1_offset, snapshot->l1_size, room, &l1);
    if (ret < 0)
        return ret;
    ret = refuse_repeats(l1, snapshot->l1_size);
    if (ret == 0)
        ret = refuse_repeats(s->l1, s->l1_size);
    if (ret == 0)
        ret = co_add_tree(s, l1, snapshot->l1_size);
    if (ret == 0) {
        ret = co_clear_copied(s, l1, snapshot->l1_size);
        if (ret == 0)
            ret = co_switch(s, l1, snapshot->l1_size, snapshot->disk_bytes, switched);
        if (!*switched)
            (void)co_walk_tree(s, l1, snapshot->l1_size, undo_reference, UINT64_MAX, &done);
    }
    if (!*switched)
        free(l1);
    return ret;
}

int coroutine_fn qcow2_co_snapshot_apply(struct node *node, const char *id_or_name, struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    struct qcow2_snapshot *snapshot = NULL;
    int ret = co_begin_with(node, id_or_name, false, &snapshot, err);
    if (ret < 0)
        return ret;
    if (snapshot->disk_bytes != s->size) {
        /* There the size of a snapshot may be nowhere else: another one's would change with the disk's. */
        if (s->version < 3)
            return co_refuse(s,
                             error_set(err, -ENOTSUP,
                                       "snapshot cannot be applied: it has another size than the disk, and a "
                                       "version 2 image with snapshots cannot be resized"));
        ret = qcow2_bitmaps_co_prepare_resize(s, snapshot->disk_bytes, err);
        if (ret < 0)
            return co_refuse(s, error_prefix(err, ret, "snapshot cannot be applied"));
    }
    bool switched = false;
    ret = co_apply(s, snapshot, &switched);
    if (switched) { /* what has failed then is giving back what was there before */
        qcow2_bitmaps_resized(s);
        qcow2_bitmaps_mark(s, 0, s->size);
    }
    return co_end(s, ret, "snapshot cannot be applied", err);
}

int coroutine_fn qcow2_co_make_empty(struct node *node, struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    int ret = co_begin(node, &s, err);
    if (ret < 0)
        return ret;
    qcow2_bitmaps_mark(s, 0, s->size);
    uint32_t entries = s->l1_size;
    uint64_t *l1 = calloc((entries + 64) & ~63u, 8);
    bool switched = false;
    ret = l1 ? refuse_repeats(s->l1, entries) : -ENOMEM;
    if (ret == 0)
        ret = co_switch(s, l1, entries, s->size, &switched);
    if (!switched)
        free(l1);
    return co_end(s, ret, "image cannot be emptied", err);
}

/* ---- backing file ---- */

void qcow2_expect_backing(struct node *node)
{
    struct qcow2 *s = qcow2_state(node);
    if (s)
        s->backing_coming = true;
}

int coroutine_fn qcow2_co_change_backing(struct node *node, const char *backing_file,
                                         const char *backing_format, struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    if (!s || s->read_only)
        return error_set(err, s ? -EPERM : -EINVAL, "not a writable qcow2 image");
    if (backing_file && (!backing_file[0] || strlen(backing_file) > QCOW2_MAX_BACKING_NAME))
        return error_set(err, -EINVAL, "the backing file's name has to have 1 to 1023 bytes");
    if (backing_file && (!backing_format || strlen(backing_format) > 15))
        return error_set(err, -EINVAL, "a backing file needs its format");
    if (backing_file && s->data_file_raw)
        return error_set(err, -EINVAL, "a backing file and a raw external data file cannot go together");
    int ret = __atomic_load_n(&s->prepared, __ATOMIC_ACQUIRE) ? 0 : qcow2_co_prepare_write(s);
    char *file = backing_file ? strdup(backing_file) : NULL,
         *format = backing_file ? strdup(backing_format) : NULL;
    if (ret == 0 && backing_file && (!file || !format))
        ret = -ENOMEM;
    if (ret < 0) {
        free(file);
        free(format);
        return error_set(err, ret, "%s: %s", node->filename, strerror(-ret));
    }
    co_mutex_lock(&s->header_lock);
    char *old_file = s->backing_file, *old_format = s->backing_format;
    s->backing_file = file;
    s->backing_format = format;
    ret = qcow2_set_ext(s, QCOW2_EXT_BACKING_FORMAT, format, format ? (uint32_t)strlen(format) : 0);
    if (ret == 0)
        ret = qcow2_co_write_header(s);
    if (ret < 0) {
        s->backing_file = old_file;
        s->backing_format = old_format;
        (void)qcow2_set_ext(s, QCOW2_EXT_BACKING_FORMAT, old_format,
                            old_format ? (uint32_t)strlen(old_format) : 0);
        old_file = file;
        old_format = format;
    }
    co_mutex_unlock(&s->header_lock);
    free(old_file);
    free(old_format);
    if (ret == -ENOSPC)
        return error_set(err, ret, "the name does not fit into the header's cluster");
    return ret < 0 ? error_set(err, ret, "%s: %s", node->filename, strerror(-ret)) : 0;
}
