/*
 * Compressed clusters (checklist H): raw deflate and zstd.
 *
 * What always holds: a stream is decoded into one cluster of output and no more, from the bytes that its L2
 * entry counts and no more, with a bounded window; output counts only if it is whole. Work of a few hundred
 * microseconds is done on a thread of the pool, not on the loop.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "host/aio/aio.h"
#include "host/qcow2/qcow2_state.h"

#define ZSTD_WINDOW_LOG_MAX 23 /* 8 MiB: four times the largest cluster */

struct codec_job {
    enum qcow2_compression type;
    const uint8_t *in;
    size_t in_bytes;
    uint8_t *out;
    size_t out_bytes; /* room; after compressing: length */
};

static int inflate_cluster(struct codec_job *job)
{
    z_stream z = {.next_in = (uint8_t *)(uintptr_t)job->in,
                  .avail_in = (uInt)job->in_bytes,
                  .next_out = job->out,
                  .avail_out = (uInt)job->out_bytes};
    /* H4: writers use a window of 12 bits, but readers have to take 15. */
    if (inflateInit2(&z, -15) != Z_OK)
        return -ENOMEM;
    int ret = inflate(&z, Z_FINISH);
    /* The output is whole; the stream may have something behind it, as the sectors are counted and not the
     * bytes. */
    bool whole = z.avail_out == 0 && (ret == Z_STREAM_END || ret == Z_BUF_ERROR || ret == Z_OK);
    inflateEnd(&z);
    return whole ? 0 : -EIO;
}

static int unzstd_cluster(struct codec_job *job)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context)
        return -ENOMEM;
    ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
    ZSTD_inBuffer in = {job->in, job->in_bytes, 0};
    ZSTD_outBuffer out = {job->out, job->out_bytes, 0};
    int result = 0;
    /* H5: one frame or more, until the cluster is full. */
    while (out.pos < out.size && result == 0) {
        size_t in_before = in.pos, out_before = out.pos;
        size_t ret = ZSTD_decompressStream(context, &out, &in);
        if (ZSTD_isError(ret) || (in.pos == in_before && out.pos == out_before))
            result = -EIO;
        else if (out.pos == out.size && ret != 0)
            result = -EIO; /* the frame does not end with the cluster */
    }
    ZSTD_freeDCtx(context);
    return result;
}

static int decode_job(void *opaque)
{
    struct codec_job *job = opaque;
    return job->type == QCOW2_COMPRESSION_ZSTD ? unzstd_cluster(job) : inflate_cluster(job);
}

int coroutine_fn qcow2_co_read_compressed(struct qcow2 *s, uint64_t entry, uint64_t offset_in_cluster,
                                          uint64_t bytes, struct sg sg)
{
    uint64_t host, length, file = __atomic_load_n(&s->file_bytes, __ATOMIC_ACQUIRE);
    qcow2_compressed_range(s, entry, &host, &length);
    /* The last sector need not be there in full. */
    if (host >= file || length > s->cluster_bytes * 2 + 1024)
        return qcow2_co_corrupt(s, "compressed cluster at host offset 0x%llx lies beyond the end of the file",
                                (unsigned long long)host);
    uint64_t there = min_u64(length, file - host);
    uint8_t *in = node_buffer(s->node->file, length), *out = qcow2_buffer_get(s);
    int ret = in && out ? node_co_pread(s->node->file, host, in, there) : -ENOMEM;
    if (ret == 0) {
        struct codec_job job = {s->compression_type, in, there, out, s->cluster_bytes};
        ret = threads_co_call(decode_job, &job);
    }
    if (ret == 0)
        sg_copy_in(sg, out + offset_in_cluster, bytes);
    free(in);
    qcow2_buffer_put(s, out);
    return ret;
}

/* These two: 1 if it does not get smaller. */
static int deflate_cluster(struct codec_job *job)
{
    z_stream z = {.next_in = (uint8_t *)(uintptr_t)job->in,
                  .avail_in = (uInt)job->in_bytes,
                  .next_out = job->out,
                  .avail_out = (uInt)job->out_bytes};
    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return -ENOMEM;
    int ret = deflate(&z, Z_FINISH);
    job->out_bytes -= z.avail_out;
    deflateEnd(&z);
    return ret == Z_STREAM_END ? 0 : 1;
}

static int encode_job(void *opaque)
{
    struct codec_job *job = opaque;
    if (job->type != QCOW2_COMPRESSION_ZSTD)
        return deflate_cluster(job);
    size_t ret = ZSTD_compress(job->out, job->out_bytes, job->in, job->in_bytes, ZSTD_CLEVEL_DEFAULT);
    if (ZSTD_isError(ret))
        return 1;
    job->out_bytes = ret;
    return 0;
}

/* [lock] Makes the L2 entry at OFFSET name the stream. What it replaces is freed later. */
static int coroutine_fn co_link_compressed(struct qcow2 *s, uint64_t offset, uint64_t entry)
{
    struct qcow2_need need = {0};
    uint32_t slot;
    uint64_t *words;
    int ret;
    qcow2_lock(s);
    while ((ret = qcow2_l2_writable(s, offset, &slot, &words, &need)) == -EAGAIN) {
        qcow2_unlock(s);
        ret = qcow2_co_satisfy(s, &need);
        qcow2_lock(s);
        if (ret < 0)
            break;
    }
    if (ret == 0) {
        uint64_t old = words[0];
        table_cache_change_begin(&s->l2, slot);
        table_cache_store(&words[0], entry);
        if (s->extended_l2)
            table_cache_store(&words[1], 0);
        table_cache_change_end(&s->l2, slot);
        table_cache_set_dirty(&s->l2, slot, s->gen);
        qcow2_free_entry(s, old, false);
    }
    qcow2_unlock(s);
    return ret;
}

/* One whole cluster; its mapping is held by an allocation in flight. 1: it does not get smaller. */
static int coroutine_fn co_write_cluster(struct qcow2 *s, uint64_t offset, const uint8_t *in, uint8_t *out)
{
    struct codec_job job = {s->compression_type, in, s->cluster_bytes, out, s->cluster_bytes - 1};
    uint64_t host;
    int ret = threads_co_call(encode_job, &job);
    if (ret != 0)
        return ret;
    ret = qcow2_co_alloc_bytes(s, job.out_bytes, &host);
    if (ret < 0)
        return ret;
    ret = node_co_pwrite(s->node->file, host, out, job.out_bytes, 0);
    unsigned x = 62 - (s->cluster_bits - 8);
    uint64_t sectors = ((host + job.out_bytes - 1) >> 9) - (host >> 9);
    if (ret == 0)
        ret = co_link_compressed(s, offset, QCOW2_L2_COMPRESSED | sectors << x | host);
    if (ret < 0) {
        uint64_t first = host >> s->cluster_bits, end = (host + job.out_bytes - 1) >> s->cluster_bits;
        (void)qcow2_co_refcount_change(s, first, end - first + 1, -1);
    }
    return ret;
}

/* Waits until the cluster at START can be ours, and makes it so. */
static void coroutine_fn co_hold_cluster(struct qcow2 *s, struct qcow2_alloc *alloc, uint64_t start)
{
    *alloc = (struct qcow2_alloc){.start = start, .end = start + s->cluster_bytes};
    qcow2_lock(s);
    while (qcow2_co_wait_allocs(s, alloc->start, alloc->end)) {
    }
    qcow2_alloc_add(s, alloc);
    qcow2_unlock(s);
}

int coroutine_fn qcow2_co_pwritev_compressed(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct sg sg)
{
    if (s->data != s->node->file || s->crypto)
        return -ENOTSUP;
    if (offset & (s->cluster_bytes - 1))
        return -EINVAL;
    uint8_t *in = qcow2_buffer_get(s), *out = qcow2_buffer_get(s);
    int ret = in && out ? 0 : -ENOMEM;
    while (bytes && ret == 0) {
        uint64_t n = min_u64(bytes, s->cluster_bytes);
        if (n < s->cluster_bytes && offset + n < node_length(s->node)) {
            ret = -EINVAL;
            break;
        }
        sg_copy_out(sg, in, n);
        memset(in + n, 0, s->cluster_bytes - n); /* H3 */
        struct qcow2_alloc alloc;
        co_hold_cluster(s, &alloc, offset);
        ret = co_write_cluster(s, offset, in, out);
        qcow2_lock(s);
        qcow2_alloc_remove(s, &alloc);
        qcow2_unlock(s);
        if (ret == 1) /* as it is */
            ret = qcow2_co_write_guest(s, offset, n, sg);
        offset += n;
        bytes -= n;
        sg = sg_advance(sg, n);
    }
    qcow2_buffer_put(s, in);
    qcow2_buffer_put(s, out);
    return ret;
}
