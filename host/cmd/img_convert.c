/*
 * ringside-img convert: copies the content of one or several images, one after another, into a target.
 *
 * Workers (img_workers.c) take the next piece in turn from one cursor and copy it each for itself, so reads
 * and writes of several pieces are in flight at a time.
 *
 * What always holds: zeroes are left out only where the target is known to read as zeroes. With -c, pieces
 * are whole clusters of the target.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/block/parse.h"
#include "host/block/throttle.h"
#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

#define PIECE_BYTES (1024u * 1024u)
#define SPARSE_MAX  (16u * 1024u * 1024u)
#define WORKERS_MAX 16
#define SOURCES_MAX 64
#define SECTOR      512u

struct source {
    struct node *node;
    uint64_t start, end; /* in the target */
};

struct conversion {
    const struct img_options *options;
    struct source sources[SOURCES_MAX];
    unsigned source_count;
    struct node *target;
    uint64_t total;
    bool target_is_zero, target_is_backed;
    uint64_t sparse;      /* 0: everything is written */
    uint64_t piece_bytes; /* what is read at a time, if it is no larger cluster */
    unsigned write_flags;
    struct throttle throttle;
    uint64_t cluster_bytes; /* with -c: of the target */
    bool has_bitmaps;       /* with --bitmaps: there are some to be copied */

    struct co_mutex cursor_lock; /* held while the next piece is found out */
    uint64_t cursor;
    struct img_extent extent; /* from the cursor on; 0 bytes: ask */
    int error;
    uint64_t error_offset;
    bool error_reading;
    uint64_t done;
    struct img_progress progress;
};

struct piece {
    uint64_t offset, bytes;
    bool zero, skip;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void fail(struct conversion *c, int error, uint64_t offset, bool reading)
{
    if (c->error == 0) {
        c->error = error;
        c->error_offset = offset;
        c->error_reading = reading;
    }
}

static struct source *source_at(struct conversion *c, uint64_t offset)
{
    unsigned i = 0;
    while (i + 1 < c->source_count && offset >= c->sources[i].end)
        i++;
    return &c->sources[i];
}

static int coroutine_fn read_sources(struct conversion *c, uint64_t offset, char *buf, uint64_t bytes)
{
    while (bytes > 0) {
        struct source *s = source_at(c, offset);
        uint64_t n = min_u64(bytes, s->end - offset);
        int ret = img_co_read(s->node, offset - s->start, buf, n);
        if (ret < 0)
            return ret;
        offset += n;
        buf += n;
        bytes -= n;
    }
    return 0;
}

static void say_lost(const struct conversion *c, uint64_t from, uint64_t to, int error)
{
    struct source *s = source_at((struct conversion *)c, from);
    if (!c->options->quiet)
        log_message("%s: reading %" PRIu64 " bytes at offset %" PRIu64 ": %s: they are zeroes in the target",
                    c->options->names[s - c->sources], to - from, from - s->start, strerror(-error));
}

/* As read_sources; with --salvage what cannot be read, sector by sector, is zeroes. */
static int coroutine_fn read_or_salvage(struct conversion *c, uint64_t offset, char *buf, uint64_t bytes)
{
    int ret = read_sources(c, offset, buf, bytes), error = 0;
    if (ret == 0 || !c->options->salvage)
        return ret;
    uint64_t lost = 0; /* where the range that ERROR is about begins */
    for (uint64_t at = 0; at < bytes; at += SECTOR) {
        uint64_t n = min_u64(SECTOR, bytes - at);
        ret = read_sources(c, offset + at, buf + at, n);
        if (ret < 0)
            memset(buf + at, 0, n);
        if (ret == error)
            continue;
        if (error < 0)
            say_lost(c, offset + lost, offset + at, error);
        lost = at;
        error = ret;
    }
    if (error < 0)
        say_lost(c, offset + lost, offset + bytes, error);
    return 0;
}

static void say_failed(const struct conversion *c, const char *target)
{
    struct source *s = source_at((struct conversion *)c, c->error_offset);
    if (c->error_reading)
        log_message("%s: reading at offset %" PRIu64 ": %s", c->options->names[s - c->sources],
                    c->error_offset - s->start, strerror(-c->error));
    else
        log_message("%s: writing at offset %" PRIu64 ": %s", target, c->error_offset, strerror(-c->error));
}

/* What is at the cursor. Under the lock. */
static int coroutine_fn look(struct conversion *c)
{
    if (c->extent.bytes > 0)
        return 0;
    struct source *s = source_at(c, c->cursor);
    uint64_t at = c->cursor - s->start, left = s->end - c->cursor;
    if (at >= node_length(s->node)) { /* the sector that the source does not fill */
        c->extent = (struct img_extent){.bytes = left, .flags = NODE_STATUS_ZERO};
        return 0;
    }
    const struct node *base = c->target_is_backed ? s->node->backing : NULL;
    int ret = img_co_extent(s->node, base, true, at, left, &c->extent);
    if (ret < 0 && c->options->salvage) { /* reading will tell */
        c->extent = (struct img_extent){.bytes = min_u64(left, PIECE_BYTES),
                                        .flags = NODE_STATUS_DATA | NODE_STATUS_ALLOCATED};
        ret = 0;
    }
    return ret;
}

/* The next piece, or false at the end. */
static bool coroutine_fn take(struct conversion *c, struct piece *piece)
{
    bool more = false;
    co_mutex_lock(&c->cursor_lock);
    if (c->error == 0 && c->cursor < c->total) {
        int ret = look(c);
        if (ret < 0) {
            fail(c, ret, c->cursor, true);
        } else {
            const struct img_extent *e = &c->extent;
            *piece = (struct piece){
                .offset = c->cursor,
                .bytes = e->bytes,
                .zero = e->flags & NODE_STATUS_ZERO,
                .skip = c->target_is_backed && !(e->flags & (NODE_STATUS_ZERO | NODE_STATUS_ALLOCATED)),
            };
            if (c->cluster_bytes) {
                /* Whole clusters: of one kind if there are any, else one mixed one. */
                uint64_t whole = piece->bytes - piece->bytes % c->cluster_bytes;
                bool last = c->cursor + piece->bytes == c->total;
                if (!last && whole == 0) {
                    piece->bytes = min_u64(c->cluster_bytes, c->total - c->cursor);
                    piece->zero = piece->skip = false;
                } else if (!last) {
                    piece->bytes = whole;
                }
            }
            if (!piece->skip && !(piece->zero && c->sparse)) /* what is written takes its time */
                piece->bytes = min_u64(piece->bytes, c->piece_bytes);
            c->cursor += piece->bytes;
            uint64_t used = min_u64(c->extent.bytes, piece->bytes);
            c->extent.bytes -= used;
            if (used < piece->bytes)
                c->extent.bytes = 0;
            more = true;
        }
    }
    co_mutex_unlock(&c->cursor_lock);
    return more;
}

static int coroutine_fn write_zeroes(struct conversion *c, uint64_t offset, uint64_t bytes)
{
    if (c->target_is_zero)
        return 0;
    return node_co_pwrite_zeroes(c->target, offset, bytes,
                                 c->write_flags | (c->sparse ? NODE_IO_MAY_UNMAP : 0));
}

static int coroutine_fn write_compressed(struct conversion *c, uint64_t offset, const char *buf,
                                         uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t n = min_u64(bytes, c->cluster_bytes);
        /* Where the source ends inside a cluster and the target goes on, the rest of it is not ours. */
        bool whole = n == c->cluster_bytes || offset + n == node_length(c->target);
        int ret;
        if (buffer_is_zero(buf, n))
            ret = write_zeroes(c, offset, n);
        else
            ret =
                node_co_pwrite(c->target, offset, buf, n, (whole ? NODE_IO_COMPRESSED : 0) | c->write_flags);
        if (ret < 0)
            return ret;
        offset += n;
        buf += n;
        bytes -= n;
    }
    return 0;
}

static int coroutine_fn write_sparse(struct conversion *c, uint64_t offset, const char *buf, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t unit = c->sparse ? c->sparse : bytes;
        uint64_t n = min_u64(unit - offset % unit, bytes);
        bool zero = c->sparse && buffer_is_zero(buf, n);
        while (n < bytes) {
            uint64_t next = min_u64(unit, bytes - n);
            if ((c->sparse && buffer_is_zero(buf + n, next)) != zero)
                break;
            n += next;
        }
        int ret =
            zero ? write_zeroes(c, offset, n) : node_co_pwrite(c->target, offset, buf, n, c->write_flags);
        if (ret < 0)
            return ret;
        offset += n;
        buf += n;
        bytes -= n;
    }
    return 0;
}

static void coroutine_fn work(void *opaque)
{
    struct conversion *c = opaque;
    size_t size = c->piece_bytes;
    char *buf = node_buffer(c->target, size);
    struct piece piece;
    if (!buf)
        fail(c, -ENOMEM, 0, true);
    while (buf && take(c, &piece)) {
        int ret;
        if (!piece.skip && !(piece.zero && c->sparse))
            img_co_rate_wait(&c->throttle, piece.bytes);
        if (piece.skip) {
            /* It shows through from the target's backing file. */
        } else if (piece.zero && c->sparse) {
            ret = write_zeroes(c, piece.offset, piece.bytes);
            if (ret < 0)
                fail(c, ret, piece.offset, false);
        } else if (piece.zero) {
            /* -S 0: even zeroes take space. */
            memset(buf, 0, piece.bytes);
            ret = node_co_pwrite(c->target, piece.offset, buf, piece.bytes, c->write_flags);
            if (ret < 0)
                fail(c, ret, piece.offset, false);
        } else {
            ret = read_or_salvage(c, piece.offset, buf, piece.bytes);
            if (ret < 0) {
                fail(c, ret, piece.offset, true);
                break;
            }
            ret = c->cluster_bytes ? write_compressed(c, piece.offset, buf, piece.bytes)
                                   : write_sparse(c, piece.offset, buf, piece.bytes);
            if (ret < 0)
                fail(c, ret, piece.offset, false);
        }
        c->done += piece.bytes;
        img_progress(&c->progress, c->done, c->total);
    }
    free(buf);
}

static int coroutine_fn open_sources(struct conversion *c)
{
    const struct img_options *options = c->options;
    for (unsigned i = 0; i + 1 < options->name_count; i++) {
        struct source *s = &c->sources[i];
        if (img_co_open(options, options->names[i], options->format, IMG_SOURCE, &s->node) < 0)
            return -EIO;
        c->source_count++;
        s->start = c->total;
        c->total += (node_length(s->node) + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
        s->end = c->total;
    }
    return 0;
}

/* With --bitmaps: can those of the source be copied? What cannot is said. */
static int coroutine_fn check_bitmaps(struct conversion *c)
{
    const struct img_options *options = c->options;
    const char *path = options->names[0];
    struct node *source = c->sources[0].node;
    struct qcow2_bitmap_info *list = NULL;
    struct error err = {""};
    size_t count = 0;
    if (!options->bitmaps)
        return 0;
    int ret = qcow2_bitmaps_can_go(source, &err);
    if (ret == 0)
        ret = qcow2_co_bitmaps(source, &list, &count, &err);
    if (ret < 0) {
        img_failed(path, &err);
        return ret;
    }
    for (size_t i = 0; i < count && ret == 0; i++) {
        if (!list[i].in_use) {
            c->has_bitmaps = true;
        } else if (!options->skip_broken_bitmaps) {
            log_message("%s: bitmap '%s' is inconsistent (--skip-broken-bitmaps leaves it behind)", path,
                        list[i].name);
            ret = -EINVAL;
        } else if (!options->quiet) {
            log_message("%s: bitmap '%s' is inconsistent: it stays behind", path, list[i].name);
        }
    }
    free(list);
    return ret;
}

/* Is it one of the files that NODE is made of: the image, its data file, one below it? */
static bool is_made_of(const struct node *node, dev_t device, ino_t inode)
{
    for (; node; node = node->backing) {
        if (node->host && node->host->device == device && node->host->inode == inode)
            return true;
        if ((node->file && is_made_of(node->file, device, inode)) ||
            (node->data_file && is_made_of(node->data_file, device, inode)))
            return true;
    }
    return false;
}

/* It would be emptied, or changed under the reader's eyes. The lock would find that, too, but not who holds
 * it. */
static bool overwrites_source(const struct conversion *c, const char *path)
{
    dev_t device;
    ino_t inode;
    if (!host_file_identify(path, &device, &inode))
        return false;
    for (unsigned i = 0; i < c->source_count; i++) {
        if (!is_made_of(c->sources[i].node, device, inode))
            continue;
        log_message("%s: is read as a part of the source '%s' (the target has to be another file)", path,
                    c->options->names[i]);
        return true;
    }
    return false;
}

/* Makes the target unless it is there, and opens it. Errors are said. */
static int coroutine_fn open_target(struct conversion *c, const char *path)
{
    const struct img_options *options = c->options;
    if (overwrites_source(c, path))
        return -EINVAL;
    const char *format = options->output_format ? options->output_format : "raw";
    struct error err = {""};
    if (!options->no_create) {
        struct img_new image = {
            .path = path,
            .format = format,
            .size = c->total,
            .size_given = true,
            .backing_file = options->backing_file,
            .backing_format = options->backing_format,
            .create_options = options->create_options,
            .create_option_count = options->create_option_count,
            .secret_file = options->secret_file,
            .size_needed = c->total,
            .compressed = options->compressed,
            .unbacked = options->name_count > 2,
            .bitmaps = options->bitmaps,
            .size_is_fixed = c->has_bitmaps,
        };
        if (img_co_make(&image, options, true, &err) < 0) {
            img_failed(path, &err);
            return -EIO;
        }
        c->target_is_backed = image.backed;
    }
    struct open_options open;
    int ret = img_open_options(options, IMG_WRITE, &open, &err);
    if (ret == 0) {
        open.format = options->no_create && !options->output_format ? NULL : format;
        if (options->backing_file && !options->no_create) {
            /* The user named it; what it names in turn is not opened for writing to the target. */
            open.backing = BACKING_DIR;
            open.backing_dir = "/";
        }
        ret = node_co_open(path, &open, &c->target, &err);
    }
    if (ret < 0 || !c->target) {
        img_failed(path, &err);
        return -EIO;
    }
    if (node_length(c->target) < c->total) {
        log_message("%s: has %" PRIu64 " bytes, fewer than the source's %" PRIu64, path,
                    node_length(c->target), c->total);
        return -ENOSPC;
    }
    if (options->bitmaps && qcow2_bitmaps_fit(c->sources[0].node, c->target, &err) < 0) {
        img_failed(path, &err);
        return -EINVAL;
    }
    c->target_is_zero = options->target_is_zero;
    if (!options->no_create)
        c->target_is_zero = !c->target_is_backed && S_ISREG(c->target->file->host->mode) &&
                            (!c->target->data_file || S_ISREG(c->target->data_file->host->mode));
    if (options->no_create && c->target->backing)
        c->target_is_backed = false; /* everything is copied: what shows through now need not fit */
    if (options->compressed) {
        struct qcow2_info info;
        if (qcow2_info(c->target, &info) < 0) {
            log_message("%s: -c compresses clusters of qcow2 images only (-O qcow2)", path);
            return -ENOTSUP;
        }
        if (info.data_file) {
            log_message("%s: -c cannot compress what lies in a data file", path);
            return -ENOTSUP;
        }
        c->cluster_bytes = info.cluster_bytes;
        if (c->piece_bytes < c->cluster_bytes)
            c->piece_bytes = c->cluster_bytes;
    }
    return 0;
}

/* 0, or the exit status after saying what is wrong. */
static int read_numbers(struct conversion *c, unsigned *workers)
{
    const struct img_options *options = c->options;
    uint64_t n = 8;
    c->sparse = 4096;
    if (options->sparse &&
        (parse_size(options->sparse, &c->sparse) < 0 || c->sparse % SECTOR || c->sparse > SPARSE_MAX)) {
        log_message("-S %s: must be 0 or a multiple of 512 up to 16M", options->sparse);
        return CMD_EXIT_USAGE;
    }
    if (options->coroutines && (parse_number(options->coroutines, &n) < 0 || n < 1 || n > WORKERS_MAX)) {
        log_message("-m %s: must be a number from 1 to %u", options->coroutines, WORKERS_MAX);
        return CMD_EXIT_USAGE;
    }
    if (options->target_is_zero && !options->no_create) {
        log_message("--target-is-zero only makes sense with -n");
        return CMD_EXIT_USAGE;
    }
    if (options->skip_broken_bitmaps && !options->bitmaps) {
        log_message("--skip-broken-bitmaps only makes sense with --bitmaps");
        return CMD_EXIT_USAGE;
    }
    if (options->bitmaps && options->name_count > 2) {
        log_message("--bitmaps goes with one source only");
        return CMD_EXIT_USAGE;
    }
    if (options->backing_file && options->name_count > 2) {
        log_message("-B goes with one source only: several in a row have no backing file in common");
        return CMD_EXIT_USAGE;
    }
    if (options->no_create && (options->backing_file || options->create_option_count)) {
        log_message("-n leaves the target as it is: -B and -o cannot be given with it");
        return CMD_EXIT_USAGE;
    }
    if (options->backing_format && !options->backing_file) {
        log_message("-F %s: the format of which backing file? (-B FILE)", options->backing_format);
        return CMD_EXIT_USAGE;
    }
    int status = img_rate_begin(&c->throttle, options->rate);
    if (status)
        return status;
    /* A zero run of -S has to fit into what is looked at. With -c, pieces are clusters. */
    c->piece_bytes = c->sparse > PIECE_BYTES && !options->compressed ? c->sparse : PIECE_BYTES;
    c->write_flags = img_write_flags(options);
    *workers = (unsigned)n;
    return 0;
}

/* What of the target is wrong can be said before it is touched. 0, or the exit status after saying it. */
static int check_target(const struct img_options *options, const char *path)
{
    const char *format = options->output_format;
    struct error err = {""};
    if (img_check_format(format, &err) < 0)
        return img_failed(path, &err);
    if (options->compressed && (format ? strcmp(format, "raw") == 0 : !options->no_create)) {
        log_message("%s: -c compresses clusters of qcow2 images only (-O qcow2)", path);
        return CMD_EXIT_FAILED;
    }
    if (options->bitmaps && (format ? strcmp(format, "raw") == 0 : !options->no_create)) {
        log_message("%s: only qcow2 images can have bitmaps (-O qcow2)", path);
        return CMD_EXIT_FAILED;
    }
    return 0;
}

/* When all data is there: no write sets a bit any more. */
static int coroutine_fn copy_bitmaps(struct conversion *c, const char *path)
{
    struct error err = {""};
    int ret = c->has_bitmaps ? qcow2_co_copy_bitmaps(c->sources[0].node, c->target, &err) : 0;
    return ret < 0 ? img_failed(path, &err) : CMD_EXIT_OK;
}

int coroutine_fn img_co_convert(const struct img_options *options)
{
    const char *path = options->names[options->name_count - 1];
    unsigned workers;
    struct conversion *c = calloc(1, sizeof(*c));
    int status = CMD_EXIT_FAILED;
    if (!c) {
        log_message("out of memory");
        return CMD_EXIT_FAILED;
    }
    c->options = options;
    int ret = read_numbers(c, &workers);
    if (ret == 0)
        ret = check_target(options, path);
    if (ret) {
        free(c);
        return ret;
    }
    if (open_sources(c) < 0 || check_bitmaps(c) < 0 || open_target(c, path) < 0)
        goto out;
    img_progress_begin(&c->progress, options->progress && !options->quiet);
    ret = img_co_workers(workers, work, c);
    if (ret < 0)
        fail(c, ret, 0, true);
    if (c->error == 0)
        img_progress(&c->progress, 1, 1);
    img_progress_end(&c->progress);
    if (c->error < 0)
        say_failed(c, path);
    else
        status = copy_bitmaps(c, path);

out:
    if (img_co_close(c->target) < 0)
        status = CMD_EXIT_FAILED;
    for (unsigned i = 0; i < c->source_count; i++)
        img_co_close(c->sources[i].node);
    free(c);
    return status;
}
