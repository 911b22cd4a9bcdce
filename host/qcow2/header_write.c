/*
 * The image header, written again: its fields, its extensions, what a first write has to say in it, and the
 * corrupt bit.
 *
 * What always holds: what is not known, extensions and additional fields alike, survives every rewrite. A
 * power cut that tears one between sectors leaves the old header or the new one, wherever both can be had.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/survivor.h"

/* The fixed fields as the state has them, over what OLD says of the rest. */
static void put_fields(const struct qcow2 *s, struct qcow2_header *h)
{
    h->magic = be32_put(QCOW2_MAGIC);
    h->version = be32_put(s->version);
    h->cluster_bits = be32_put(s->cluster_bits);
    h->size = be64_put(s->size);
    h->crypt_method = be32_put(s->crypt_method);
    h->l1_size = be32_put(s->header_l1_size);
    h->l1_table_offset = be64_put(s->l1_offset);
    h->refcount_table_offset = be64_put(s->reftable_offset);
    h->refcount_table_clusters = be32_put(s->reftable_clusters);
    h->nb_snapshots = be32_put(s->nb_snapshots);
    h->snapshots_offset = be64_put(s->snapshots_offset);
    if (s->version < 3)
        return;
    h->incompatible_features = be64_put(s->incompatible);
    h->compatible_features = be64_put(s->compatible);
    h->autoclear_features = be64_put(s->autoclear);
    h->refcount_order = be32_put(s->refcount_order);
    h->header_length = be32_put(s->header_length);
    if (s->header_length > QCOW2_V3_HEADER_BYTES)
        h->compression_type = (uint8_t)s->compression_type;
}

/* Puts NEW into the header's cluster AT, durably. A write or flush that fails leaves it open what is there:
 * then OLD is put back, and if that fails as well nothing can be trusted any more. */
static int coroutine_fn co_replace_header(struct qcow2 *s, uint64_t at, const void *new, const void *old,
                                          uint64_t bytes)
{
    survivor_touch(s);
    int ret = node_co_pwrite(s->node->file, at, new, bytes, 0);
    if (ret == 0)
        ret = node_co_flush(s->node->file);
    if (ret < 0) {
        int back = node_co_pwrite(s->node->file, at, old, bytes, 0);
        if (back == 0)
            back = node_co_flush(s->node->file);
        if (back < 0)
            __atomic_store_n(&s->io_error, ret, __ATOMIC_RELAXED);
    }
    return ret;
}

int coroutine_fn qcow2_co_write_header_sector(struct qcow2 *s)
{
    uint8_t *buf = node_buffer(s->node->file, 1024);
    if (!buf)
        return -ENOMEM;
    uint8_t *old = buf, *new = buf + 512;
    int ret = node_co_pread(s->node->file, 0, old, 512);
    if (ret == 0) {
        struct qcow2_header h;
        memcpy(&h, old, sizeof(h));
        put_fields(s, &h);
        size_t n = s->version < 3                 ? QCOW2_V2_HEADER_BYTES
                   : s->header_length < sizeof(h) ? s->header_length
                                                  : sizeof(h);
        memcpy(new, old, 512);
        memcpy(new, &h, n);
        ret = co_replace_header(s, 0, new, old, 512);
    }
    free(buf);
    return ret;
}

static int append(uint8_t *cluster, uint64_t *at, uint64_t room, const void *data, uint64_t bytes)
{
    if (bytes > room - *at)
        return -ENOSPC;
    if (bytes)
        memcpy(cluster + *at, data, bytes);
    *at += bytes;
    return 0;
}

/* What a header uses of its cluster: up to EXT_END, and the backing file's name. */
struct header_use {
    uint64_t ext_end, name, name_bytes;
};

static bool is_used(const struct header_use *use, uint64_t at)
{
    return at < use->ext_end || (at >= use->name && at - use->name < use->name_bytes);
}

/* Of the header in CLUSTER, which was read and found to be right when the image was opened. */
static struct header_use header_use(const struct qcow2 *s, const uint8_t *cluster)
{
    struct qcow2_header h;
    struct qcow2_extension ext;
    memcpy(&h, cluster, sizeof(h));
    struct header_use use = {.ext_end = s->version < 3 ? QCOW2_V2_HEADER_BYTES : be32_get(h.header_length),
                             .name = be64_get(h.backing_file_offset),
                             .name_bytes = be32_get(h.backing_file_size)};
    uint64_t room = s->cluster_bytes;
    if (!use.name || use.name > room || use.name_bytes > room - use.name)
        use.name = use.name_bytes = 0;
    uint64_t limit = use.name ? use.name : room;
    while (use.ext_end + sizeof(ext) <= limit) {
        memcpy(&ext, cluster + use.ext_end, sizeof(ext));
        use.ext_end =
            min_u64(use.ext_end + sizeof(ext) + (((uint64_t)be32_get(ext.length) + 7) & ~7ull), room);
        if (be32_get(ext.type) == QCOW2_EXT_END)
            break;
    }
    return use;
}

/* Where the backing file's name, of BYTES, goes if the extensions end at AT and GAP bytes are to stay free
 * behind them: where it is in OLD, if it is the same; or else, where that can be, not over the one in OLD. */
static uint64_t name_place(const struct qcow2 *s, const uint8_t *old, const struct header_use *use,
                           uint64_t at, uint64_t gap, uint64_t bytes)
{
    uint64_t behind = max_u64(at + gap, use->name + use->name_bytes);
    if (use->name >= at + gap && use->name_bytes == bytes &&
        memcmp(old + use->name, s->backing_file, bytes) == 0)
        return use->name;
    bool over = at + gap < use->name + use->name_bytes && use->name < at + gap + bytes;
    return over && behind <= s->cluster_bytes && bytes <= s->cluster_bytes - behind ? behind : at + gap;
}

/* Lays out the header and its extensions in CLUSTER, with a GAP in front of the backing file's name. */
static int lay_out_header(const struct qcow2 *s, uint8_t *cluster, const uint8_t *old,
                          const struct header_use *use, uint64_t gap)
{
    struct qcow2_header h = {0};
    put_fields(s, &h);
    uint64_t at = 0, room = s->cluster_bytes;
    size_t fixed = s->version < 3                 ? QCOW2_V2_HEADER_BYTES
                   : s->header_length < sizeof(h) ? s->header_length
                                                  : sizeof(h);
    memset(cluster, 0, s->cluster_bytes);
    int ret = append(cluster, &at, room, &h, fixed);
    if (ret == 0)
        ret = append(cluster, &at, room, s->header_unknown, s->header_unknown_bytes);
    for (unsigned i = 0; ret == 0 && i < s->nb_exts; i++) {
        struct qcow2_extension head = {be32_put(s->exts[i].type), be32_put(s->exts[i].length)};
        ret = append(cluster, &at, room, &head, sizeof(head));
        if (ret == 0)
            ret = append(cluster, &at, room, s->exts[i].data, s->exts[i].length);
        at = min_u64((at + 7) & ~7ull, room);
    }
    struct qcow2_extension end = {be32_put(QCOW2_EXT_END), be32_put(0)};
    if (ret == 0)
        ret = append(cluster, &at, room, &end, sizeof(end));
    if (ret == 0 && s->backing_file) {
        struct qcow2_header *head = (struct qcow2_header *)(void *)cluster;
        uint64_t bytes = strlen(s->backing_file);
        at = name_place(s, old, use, at, gap, bytes);
        if (at > room)
            return -ENOSPC;
        head->backing_file_offset = be64_put(at);
        head->backing_file_size = be32_put((uint32_t)bytes);
        ret = append(cluster, &at, room, s->backing_file, bytes);
    }
    return ret;
}

/* A power cut may tear what is written anywhere between sectors. So what the new header needs where the old
 * one needs nothing is added first, then the one sector decides in which both need the same place for
 * something else, then the rest goes. Only where they do so in several sectors it is one write of all. */
static int coroutine_fn co_write_header_in_steps(struct qcow2 *s, uint8_t *cluster, uint8_t *old,
                                                 uint8_t *both, const struct header_use *old_use)
{
    struct header_use new_use = header_use(s, cluster);
    uint64_t decides = 0;
    bool found = false;
    for (uint64_t i = 0; i < s->cluster_bytes; i++) {
        bool new = is_used(&new_use, i), differ = new &&is_used(old_use, i) && cluster[i] != old[i];
        if (differ && found && i / 512 != decides)
            return co_replace_header(s, 0, cluster, old, s->cluster_bytes);
        if (differ) {
            decides = i / 512;
            found = true;
        }
        both[i] = new && !differ ? cluster[i] : old[i];
    }
    int ret = 0;
    uint64_t at = decides * 512, from = decides ? 0 : 512;
    if (memcmp(both + from, old + from, s->cluster_bytes - from) != 0) {
        survivor_touch(s);
        ret = node_co_pwrite(s->node->file, from, both + from, s->cluster_bytes - from, 0);
        if (ret == 0)
            ret = node_co_flush(s->node->file);
    }
    if (ret == 0)
        ret = co_replace_header(s, at, cluster + at, both + at, 512);
    memcpy(both + at, cluster + at, 512);
    if (ret == 0 && memcmp(both, cluster, s->cluster_bytes) != 0) /* of no use to anybody any more */
        (void)node_co_pwrite(s->node->file, from, cluster + from, s->cluster_bytes - from, 0);
    return ret;
}

static int coroutine_fn co_write_header(struct qcow2 *s, uint64_t gap)
{
    uint8_t *cluster = qcow2_buffer_get(s), *old = qcow2_buffer_get(s), *both = qcow2_buffer_get(s);
    int ret = cluster && old && both ? node_co_pread(s->node->file, 0, old, s->cluster_bytes) : -ENOMEM;
    if (ret == 0) {
        struct header_use use = header_use(s, old);
        ret = lay_out_header(s, cluster, old, &use, gap);
        if (ret == 0)
            ret = co_write_header_in_steps(s, cluster, old, both, &use);
    }
    qcow2_buffer_put(s, cluster);
    qcow2_buffer_put(s, old);
    qcow2_buffer_put(s, both);
    return ret;
}

int coroutine_fn qcow2_co_write_header(struct qcow2 *s)
{
    return co_write_header(s, 0);
}

int coroutine_fn qcow2_co_make_ext_room(struct qcow2 *s, uint64_t bytes)
{
    return s->backing_file ? co_write_header(s, bytes) : 0;
}

int coroutine_fn qcow2_co_set_features(struct qcow2 *s, uint64_t incompatible, uint64_t autoclear)
{
    co_mutex_lock(&s->header_lock);
    uint64_t old_incompatible = s->incompatible, old_autoclear = s->autoclear;
    int ret = 0;
    if (s->version >= 3 && (incompatible != old_incompatible || autoclear != old_autoclear)) {
        s->incompatible = incompatible;
        s->autoclear = autoclear;
        ret = qcow2_co_write_header_sector(s);
        if (ret < 0) {
            s->incompatible = old_incompatible;
            s->autoclear = old_autoclear;
        }
    }
    co_mutex_unlock(&s->header_lock);
    return ret;
}

/* F4: a table behind the end of the file would read as zeroes, an image without data or clusters without
 * references, as soon as the file has grown over its place: so it does not grow. */
static int coroutine_fn co_refuse_lost_tables(struct qcow2 *s)
{
    if (s->check_only || (!s->lost_l2 && !s->lost_block))
        return 0;
    return qcow2_co_corrupt(s, "the %s at 0x%llx lies beyond the end of the file, and nothing is written",
                            s->lost_l2 ? "L2 table" : "refcount block",
                            (unsigned long long)(s->lost_l2 ? s->lost_l2 : s->lost_block));
}

int coroutine_fn qcow2_co_prepare_write(struct qcow2 *s)
{
    co_mutex_lock(&s->prepare_lock);
    int ret = 0;
    if (!__atomic_load_n(&s->prepared, __ATOMIC_RELAXED))
        ret = co_refuse_lost_tables(s);
    if (ret == 0 && !__atomic_load_n(&s->prepared, __ATOMIC_RELAXED)) {
        /* C13: what we don't know we don't keep up to date. C14: bitmaps are another matter. */
        uint64_t autoclear = s->autoclear & QCOW2_AUTOCLEAR_KNOWN;
        ret = qcow2_bitmaps_co_prepare_write(s, &autoclear);
        if (ret == 0)
            ret = qcow2_co_set_features(s, s->incompatible, autoclear);
        if (ret == 0)
            __atomic_store_n(&s->prepared, true, __ATOMIC_RELEASE);
    }
    co_mutex_unlock(&s->prepare_lock);
    return ret;
}

int coroutine_fn qcow2_co_corrupt(struct qcow2 *s, const char *format, ...)
{
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    /* Once is enough: a guest could fill a log with this. */
    if (!s->check_only && !__atomic_exchange_n(&s->said_corrupt, true, __ATOMIC_RELAXED))
        log_message("%s: %s: the image is damaged (check it with ringside-img check)", s->node->filename,
                    text);
    if (!s->read_only && !s->check_only) {
        __atomic_store_n(&s->io_error, -EIO, __ATOMIC_RELAXED);
        /* The bit is advice for the next one who opens it: an error here changes nothing. */
        (void)qcow2_co_set_features(s, s->incompatible | QCOW2_INCOMPAT_CORRUPT, s->autoclear);
    }
    return -EIO;
}
