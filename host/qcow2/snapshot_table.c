/*
 * The table of internal snapshots (checklist J): read, found in, written.
 *
 * What always holds: an image whose table cannot be read is not opened, so none is lost by rewriting it;
 * extra data that is not known is kept.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/qcow2_state.h"

void qcow2_free_snapshot(struct qcow2_snapshot *snapshot)
{
    free(snapshot->id);
    free(snapshot->name);
    free(snapshot->extra);
}

void qcow2_free_snapshots(struct qcow2 *s)
{
    for (uint32_t i = 0; s->snapshots && i < s->nb_snapshots; i++)
        qcow2_free_snapshot(&s->snapshots[i]);
    free(s->snapshots);
    s->snapshots = NULL;
}

/* Bytes at *AT of the file, which moves on. */
static int coroutine_fn co_take(struct qcow2 *s, uint64_t *at, void *buf, uint64_t bytes)
{
    if (*at + bytes > s->file_bytes)
        return -EINVAL;
    int ret = bytes ? node_co_pread(s->node->file, *at, buf, bytes) : 0;
    *at += bytes;
    return ret;
}

static int coroutine_fn co_read_one(struct qcow2 *s, struct qcow2_snapshot *snapshot, uint64_t *at,
                                    struct error *err)
{
    struct qcow2_snapshot_header h;
    uint64_t start = *at;
    int ret = co_take(s, at, &h, sizeof(h));
    if (ret < 0)
        return error_set(err, ret, "the table goes beyond the end of the file at byte %llu",
                         (unsigned long long)start);
    uint32_t extra = be32_get(h.extra_data_size), id = be16_get(h.id_size), name = be16_get(h.name_size);
    if (extra > QCOW2_MAX_SNAPSHOT_EXTRA)
        return error_set(err, -EINVAL, "extra_data_size at byte %llu is %u: 1024 at most",
                         (unsigned long long)start + 36, extra);
    if (s->version >= 3 && extra < 16)
        return error_set(err, -EINVAL, "extra_data_size at byte %llu is %u: 16 at least in version 3",
                         (unsigned long long)start + 36, extra);
    snapshot->l1_offset = be64_get(h.l1_table_offset);
    snapshot->l1_size = be32_get(h.l1_size);
    snapshot->date_sec = be32_get(h.date_sec);
    snapshot->date_nsec = be32_get(h.date_nsec);
    snapshot->vm_clock_nsec = be64_get(h.vm_clock_nsec);
    snapshot->vm_state_bytes = be32_get(h.vm_state_size);
    snapshot->disk_bytes = s->size;
    snapshot->icount = UINT64_MAX;
    snapshot->extra = malloc(extra ? extra : 1);
    snapshot->id = calloc(1, id + 1);
    snapshot->name = calloc(1, name + 1);
    if (!snapshot->extra || !snapshot->id || !snapshot->name)
        return error_set(err, -ENOMEM, "out of memory");
    snapshot->extra_bytes = extra;
    ret = co_take(s, at, snapshot->extra, extra);
    if (ret == 0)
        ret = co_take(s, at, snapshot->id, id);
    if (ret == 0)
        ret = co_take(s, at, snapshot->name, name);
    if (ret < 0)
        return error_set(err, ret, "the entry at byte %llu goes beyond the end of the file",
                         (unsigned long long)start);
    struct qcow2_snapshot_extra more = {0};
    memcpy(&more, snapshot->extra, extra < sizeof(more) ? extra : sizeof(more));
    if (extra >= 8)
        snapshot->vm_state_bytes = be64_get(more.vm_state_size_large);
    if (extra >= 16)
        snapshot->disk_bytes = be64_get(more.disk_size);
    if (extra >= 24)
        snapshot->icount = be64_get(more.icount);
    *at = (*at + 7) & ~7ull;
    return 0;
}

int coroutine_fn qcow2_co_read_snapshots(struct qcow2 *s, struct error *err)
{
    uint64_t at = s->snapshots_offset;
    int ret = 0;
    if (!s->nb_snapshots)
        return 0;
    /* An entry has 40 bytes at least: the number is bounded by the file before memory is spent on it. */
    if (s->snapshots_offset + s->nb_snapshots * 40ull > s->file_bytes)
        return error_set(
            err, -EINVAL,
            "header field nb_snapshots at byte 60 is %u: the table goes beyond the end of the file",
            s->nb_snapshots);
    s->snapshots = calloc(s->nb_snapshots, sizeof(*s->snapshots));
    if (!s->snapshots)
        return error_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < s->nb_snapshots && ret == 0; i++) {
        if (at - s->snapshots_offset > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
            ret = error_set(err, -EFBIG, "the table is larger than 64 MiB");
        else
            ret = co_read_one(s, &s->snapshots[i], &at, err);
        if (ret < 0)
            return error_prefix(err, ret, "snapshot table entry %u", i);
    }
    s->snapshots_bytes = at - s->snapshots_offset;
    return 0;
}

struct qcow2_snapshot *qcow2_find_snapshot(struct qcow2 *s, const char *id_or_name)
{
    for (uint32_t i = 0; i < s->nb_snapshots; i++) {
        if (strcmp(s->snapshots[i].id, id_or_name) == 0)
            return &s->snapshots[i];
    }
    for (uint32_t i = 0; i < s->nb_snapshots; i++) {
        if (strcmp(s->snapshots[i].name, id_or_name) == 0)
            return &s->snapshots[i];
    }
    return NULL;
}

/* Why its L1 table is nowhere; NULL: it can be read. */
static const char *l1_is_nowhere(const struct qcow2 *s, const struct qcow2_snapshot *snapshot)
{
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;
    if (bytes > QCOW2_MAX_L1_BYTES)
        return "is larger than 32 MiB";
    if (snapshot->l1_offset & (s->cluster_bytes - 1))
        return "is not cluster aligned";
    if (snapshot->l1_offset < s->cluster_bytes && bytes)
        return "lies on the header";
    if (bytes && (snapshot->l1_offset > s->file_bytes ||
                  bytes > qcow2_cluster_up(s, s->file_bytes) - snapshot->l1_offset))
        return "lies beyond the end of the file";
    return NULL;
}

bool qcow2_snapshot_l1_is_there(const struct qcow2 *s, const struct qcow2_snapshot *snapshot)
{
    return !l1_is_nowhere(s, snapshot);
}

int qcow2_check_snapshot_l1(struct qcow2 *s, const struct qcow2_snapshot *snapshot, struct error *err)
{
    uint64_t covers = s->cluster_bits + s->l2_bits;
    const char *why = l1_is_nowhere(s, snapshot);
    if (!why && (snapshot->disk_bytes > INT64_MAX ||
                 (snapshot->disk_bytes >> covers) + ((snapshot->disk_bytes & ((1ull << covers) - 1)) != 0) >
                     snapshot->l1_size))
        why = "is too small for its disk";
    if (why)
        return error_set(err, -EINVAL, "L1 table of snapshot '%s' at byte %llu with %u entries %s",
                         snapshot->name, (unsigned long long)snapshot->l1_offset, snapshot->l1_size, why);
    return 0;
}

int qcow2_snapshots(struct node *node, struct qcow2_snapshot_info **list, size_t *count)
{
    struct qcow2 *s = qcow2_state(node);
    *list = NULL;
    *count = 0;
    if (!s)
        return -EINVAL;
    *list = calloc(s->nb_snapshots + 1, sizeof(**list));
    if (!*list)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->nb_snapshots; i++) {
        const struct qcow2_snapshot *from = &s->snapshots[i];
        (*list)[i] = (struct qcow2_snapshot_info){.id = from->id,
                                                  .name = from->name,
                                                  .date_sec = from->date_sec,
                                                  .date_nsec = from->date_nsec,
                                                  .vm_clock_nsec = from->vm_clock_nsec,
                                                  .vm_state_bytes = from->vm_state_bytes,
                                                  .disk_bytes = from->disk_bytes,
                                                  .icount = from->icount};
    }
    *count = s->nb_snapshots;
    return 0;
}
