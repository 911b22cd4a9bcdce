/*
 * The node driver: opening and closing an image, flush, block status, and what `info` wants to know.
 *
 * What always holds: opening changes nothing in the file; a clean close leaves everything written, no leak
 * that we made and the file as long as it has to be.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/crypto.h"
#include "host/qcow2/survivor.h"

#define L2_CACHE_MAX (32u << 20)
#define CACHE_MIN    (64u << 10)

static int coroutine_fn co_read_tables(struct qcow2 *s, const struct open_options *options, struct error *err)
{
    uint64_t l1_offset = s->l1_offset, l1_size = s->l1_size;
    if (options->snapshot) {
        struct qcow2_snapshot *snapshot = qcow2_find_snapshot(s, options->snapshot);
        if (!snapshot)
            return error_set(err, -ENOENT, "there is no snapshot '%s'", options->snapshot);
        int ret = qcow2_check_snapshot_l1(s, snapshot, err);
        if (ret < 0)
            return ret;
        s->on_snapshot = true;
        s->active_size = s->size;
        l1_offset = snapshot->l1_offset;
        l1_size = snapshot->l1_size;
        s->size = snapshot->disk_bytes;
        s->l1_size = (uint32_t)l1_size;
    }
    uint64_t room = (l1_size + 63) & ~63ull;
    int ret = qcow2_co_read_table(s, l1_offset, l1_size, room, &s->l1);
    if (ret < 0)
        return error_set(err, ret, "reading the L1 table at byte %llu: %s", (unsigned long long)l1_offset,
                         strerror(-ret));
    s->l1_dirty = calloc(room / 64 + 1, 1);
    ret = qcow2_co_read_table(s, s->reftable_offset, s->reftable_entries, s->reftable_entries, &s->reftable);
    if (ret < 0)
        return error_set(err, ret, "reading the refcount table at byte %llu: %s",
                         (unsigned long long)s->reftable_offset, strerror(-ret));
    s->reftable_dirty = calloc(s->reftable_entries / 64 + 1, 1);
    return s->l1_dirty && s->reftable_dirty ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int init_caches(struct qcow2 *s, const struct open_options *options, struct error *err)
{
    uint64_t l2_slice = 1ull << (s->slice_bits + s->l2_entry_bits),
             ref_slice = s->cluster_bytes >> s->ref_slices_bits;
    uint64_t covers = s->cluster_bits + s->slice_bits;
    uint64_t whole = ((s->size >> covers) + 1) * l2_slice;
    uint64_t l2_bytes = CACHE_MIN;
    while (l2_bytes < whole && l2_bytes < L2_CACHE_MAX)
        l2_bytes *= 2;
    if (options->l2_cache_bytes)
        l2_bytes = options->l2_cache_bytes;
    uint64_t ref_bytes =
        options->refcount_cache_bytes ? options->refcount_cache_bytes : max_u64(l2_bytes / 4, CACHE_MIN);
    int ret = table_cache_init(&s->l2, (uint32_t)l2_slice, l2_bytes / l2_slice);
    if (ret == 0)
        ret = table_cache_init(&s->ref, (uint32_t)ref_slice, ref_bytes / ref_slice);
    return ret < 0 ? error_set(err, ret, "no memory for the metadata caches") : 0;
}

static int check_state(struct qcow2 *s, const struct open_options *options, struct error *err)
{
    if (!s->read_only && !options->check_only) {
        if (s->incompatible & QCOW2_INCOMPAT_CORRUPT)
            return error_set(err, -EACCES,
                             "the image is marked corrupt (open it read-only, or repair it with ringside-img "
                             "check -r all)");
    }
    return 0;
}

static int coroutine_fn co_open_data_file(struct qcow2 *s, const struct open_options *options,
                                          struct error *err)
{
    struct node *node = s->node;
    if (!(s->incompatible & QCOW2_INCOMPAT_DATA_FILE))
        return 0;
    if (s->nb_snapshots)
        return error_set(err, -EINVAL, "an image with an external data file cannot have snapshots");
    s->data_missing = options->no_io;
    if (options->no_io)
        return 0;
    int ret = node_co_open_data_file(node, s->data_file_name, options, &node->data_file, err);
    if (ret < 0)
        return ret;
    s->data = node->data_file;
    if (node->file->host && s->data->host && node->file->host->device == s->data->host->device &&
        node->file->host->inode == s->data->host->inode)
        return error_set(err, -EINVAL, "external data file '%s' is the image itself", s->data_file_name);
    return 0;
}

static int coroutine_fn co_open_backing(struct qcow2 *s, const struct open_options *options,
                                        struct error *err)
{
    struct node *node = s->node;
    if (!s->backing_file || options->no_backing || options->no_io)
        return 0;
    if (!s->backing_format)
        return error_set(
            err, -EINVAL,
            "backing file '%s' has no format in the header: it will not be guessed (set it: ringside-img "
            "rebase -u -b FILE -F FORMAT)",
            s->backing_file);
    return node_co_open_backing(node, s->backing_file, s->backing_format, options, &node->backing, err);
}

static void free_state(struct qcow2 *s)
{
    qcow2_crypto_close(s);
    qcow2_bitmaps_free(s);
    qcow2_free_snapshots(s);
    table_cache_destroy(&s->l2);
    table_cache_destroy(&s->ref);
    qcow2_free_list_destroy(&s->freed);
    qcow2_free_list_destroy(&s->grace_next);
    qcow2_free_list_destroy(&s->grace);
    qcow2_free_list_destroy(&s->ready);
    for (unsigned i = 0; i < s->nb_exts; i++)
        free(s->exts[i].data);
    free(s->exts);
    free(s->header_unknown);
    free(s->backing_file);
    free(s->backing_format);
    free(s->data_file_name);
    free(s->l1);
    free(s->l1_dirty);
    free(s->reftable);
    free(s->reftable_dirty);
    qcow2_overlap_free(s);
    free(s->wb_buffer);
    free(s->wb_pieces);
    for (unsigned i = 0; i < s->nb_retired; i++)
        free(s->retired[i]);
    free(s->retired);
    for (unsigned i = 0; i < s->nb_buffers; i++)
        free(s->buffers[i]);
    memset(s, 0, sizeof(*s));
}

static int coroutine_fn qcow2_co_open(struct node *node, const struct open_options *options,
                                      struct error *err)
{
    struct qcow2 *s = node->opaque;
    s->node = node;
    s->data = node->file;
    s->read_only = node->read_only || options->snapshot;
    s->discard_down = !options->ignore_discard;
    s->check_only = options->check_only;
    int ret = qcow2_co_read_header(s, options, err);
    if (ret == 0)
        ret = check_state(s, options, err);
    if (ret == 0)
        ret = co_open_data_file(s, options, err);
    if (ret == 0 && options->survive_dir && !s->read_only && !options->check_only && !options->no_io)
        ret = survivor_co_recover(s, options->survive_dir, err);
    if (ret == 0)
        ret = qcow2_co_read_snapshots(s, err);
    if (ret == 0)
        ret = co_read_tables(s, options, err);
    if (ret == 0)
        ret = init_caches(s, options, err);
    if (ret == 0 && qcow2_overlap_build(s) < 0)
        ret = error_set(err, -ENOMEM, "out of memory");
    if (ret == 0)
        ret = co_open_backing(s, options, err);
    if (ret == 0 && s->crypt_method != QCOW2_CRYPT_NONE)
        ret = qcow2_crypto_co_open(s, options, err);
    if (ret == 0)
        ret = qcow2_bitmaps_co_open(s, err);
    if (ret == 0) {
        s->on_device = node->file->host && !S_ISREG(node->file->host->mode);
        s->fresh_from = qcow2_cluster_up(s, s->file_bytes);
        s->tail_hint = s->fresh_from >> s->cluster_bits;
        s->opened_bytes = s->file_bytes;
        node_set_length(node, s->size & ~511ull); /* B9 */
        node->limits.request_alignment = s->crypto ? 512 : 1;
        node->limits.pwrite_zeroes_alignment = (uint32_t)s->subcluster_bytes;
        node->limits.pdiscard_alignment = (uint32_t)s->cluster_bytes;
        node->supports_zeroes = s->version >= 3;
        if ((s->incompatible & QCOW2_INCOMPAT_DIRTY) && !s->read_only && !options->check_only)
            ret = qcow2_co_repair_dirty(s, err);
        if (ret == 0 && s->survivor)
            ret = qcow2_co_writeback(s);
        if (ret == 0)
            survivor_start(s);
    }
    if (ret < 0) {
        error_prefix(err, ret, "%s", node->filename);
        node_co_close(node->backing);
        node_co_close(node->data_file);
        node->backing = node->data_file = NULL;
        survivor_end(s, true);
        free_state(s);
    }
    return ret;
}

static int coroutine_fn qcow2_co_flush(struct node *node)
{
    struct qcow2 *s = node->opaque;
    int ret = qcow2_co_writeback(s);
    if (ret == 0)
        qcow2_co_reclaim(s);
    return ret;
}

static int coroutine_fn co_close_clean(struct qcow2 *s)
{
    /* Once to make the frees durable, and again for the refcounts that they lead to. */
    int ret = qcow2_bitmaps_co_close(s);
    for (int i = 0; i < 2 && ret == 0; i++) {
        ret = qcow2_co_writeback(s);
        if (ret == 0)
            qcow2_co_reclaim(s);
    }
    if (ret == 0)
        ret = qcow2_co_writeback(s);
    if (ret == 0 && s->file_bytes > s->opened_bytes && s->fresh_from < s->file_bytes)
        ret = node_co_truncate(s->node->file, max_u64(s->fresh_from, s->opened_bytes), true, NULL);
    return ret;
}

static int coroutine_fn qcow2_co_close(struct node *node)
{
    struct qcow2 *s = node->opaque;
    int ret = s->read_only ? 0 : qcow2_io_error(s);
    if (!s->read_only && ret == 0)
        ret = co_close_clean(s);
    survivor_end(s, ret < 0);
    free_state(s);
    return ret;
}

static int coroutine_fn qcow2_co_block_status(struct node *node, uint64_t offset, uint64_t bytes,
                                              uint64_t *pnum, unsigned *flags, uint64_t *host_offset)
{
    struct qcow2 *s = node->opaque;
    struct qcow2_extent extent;
    unsigned epoch = qcow2_use_begin(s);
    int ret = qcow2_co_map(s, offset, bytes, &extent);
    qcow2_use_end(s, epoch);
    if (ret < 0)
        return ret;
    static const unsigned flags_of[] = {
        [QCOW2_UNALLOCATED] = 0,
        [QCOW2_UNALLOCATED_ALLOC] = NODE_STATUS_OFFSET,
        [QCOW2_ZERO_PLAIN] = NODE_STATUS_ZERO | NODE_STATUS_ALLOCATED,
        [QCOW2_ZERO_ALLOC] = NODE_STATUS_ZERO | NODE_STATUS_ALLOCATED | NODE_STATUS_OFFSET,
        [QCOW2_NORMAL] = NODE_STATUS_DATA | NODE_STATUS_ALLOCATED | NODE_STATUS_OFFSET,
        [QCOW2_COMPRESSED] = NODE_STATUS_DATA | NODE_STATUS_ALLOCATED | NODE_STATUS_COMPRESSED,
        [QCOW2_INVALID] = 0,
    };
    if (extent.type == QCOW2_INVALID)
        return -EIO;
    *flags = flags_of[extent.type];
    if (!(*flags & NODE_STATUS_ALLOCATED) && !s->backing_file)
        *flags |= NODE_STATUS_ZERO;
    if (s->crypto)
        *flags &= ~NODE_STATUS_OFFSET;
    *pnum = extent.bytes;
    *host_offset = *flags & NODE_STATUS_OFFSET ? extent.host : 0;
    return 0;
}

const struct node_driver qcow2_driver = {
    .format_name = "qcow2",
    .instance_bytes = sizeof(struct qcow2),
    .co_open = qcow2_co_open,
    .co_close = qcow2_co_close,
    .co_preadv = qcow2_co_preadv,
    .co_pwritev = qcow2_co_pwritev,
    .co_pwrite_zeroes = qcow2_co_pwrite_zeroes,
    .co_pdiscard = qcow2_co_pdiscard,
    .co_flush = qcow2_co_flush,
    .co_truncate = qcow2_co_truncate,
    .co_block_status = qcow2_co_block_status,
};

struct qcow2 *qcow2_state(struct node *node)
{
    while (node && node->driver->is_filter)
        node = node->file;
    return node && node->driver == &qcow2_driver ? node->opaque : NULL;
}

int qcow2_info(struct node *node, struct qcow2_info *info)
{
    struct qcow2 *s = qcow2_state(node);
    memset(info, 0, sizeof(*info));
    if (!s)
        return -EINVAL;
    info->version = s->version;
    info->cluster_bytes = (uint32_t)s->cluster_bytes;
    info->refcount_bits = 1u << s->refcount_order;
    info->lazy_refcounts = s->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    info->corrupt = s->incompatible & QCOW2_INCOMPAT_CORRUPT;
    info->dirty = s->incompatible & QCOW2_INCOMPAT_DIRTY;
    info->extended_l2 = s->extended_l2;
    info->compression_type = s->compression_type;
    info->size = s->size;
    info->backing_file = s->backing_file;
    info->backing_format = s->backing_format;
    info->data_file = s->data_file_name;
    info->data_file_raw = s->data_file_raw;
    info->encryption = s->crypt_method == QCOW2_CRYPT_AES    ? "aes"
                       : s->crypt_method == QCOW2_CRYPT_LUKS ? "luks"
                                                             : NULL;
    info->nb_snapshots = s->nb_snapshots;
    info->nb_bitmaps = qcow2_bitmaps_count(s);
    qcow2_crypto_info(s, info);
    return 0;
}

static const char *const compression_names[] = {
    [QCOW2_COMPRESSION_ZLIB] = "zlib", [QCOW2_COMPRESSION_ZSTD] = "zstd"};
static const char *const preallocation_names[] = {[QCOW2_PREALLOCATION_OFF] = "off",
                                                  [QCOW2_PREALLOCATION_METADATA] = "metadata",
                                                  [QCOW2_PREALLOCATION_FALLOC] = "falloc",
                                                  [QCOW2_PREALLOCATION_FULL] = "full"};

static int parse_name(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0)
            return (int)i;
    }
    return -EINVAL;
}

int qcow2_compression_parse(const char *name, enum qcow2_compression *value)
{
    int i = parse_name(compression_names, 2, name);
    if (i >= 0)
        *value = (enum qcow2_compression)i;
    return i < 0 ? i : 0;
}

int qcow2_preallocation_parse(const char *name, enum qcow2_preallocation *value)
{
    int i = parse_name(preallocation_names, 4, name);
    if (i >= 0)
        *value = (enum qcow2_preallocation)i;
    return i < 0 ? i : 0;
}

const char *qcow2_compression_name(enum qcow2_compression value)
{
    return value <= QCOW2_COMPRESSION_ZSTD ? compression_names[value] : "unknown";
}

const char *qcow2_preallocation_name(enum qcow2_preallocation value)
{
    return value <= QCOW2_PREALLOCATION_FULL ? preallocation_names[value] : "unknown";
}
