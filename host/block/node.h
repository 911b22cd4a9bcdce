/*
 * Block nodes: a format or protocol instance that reads and writes bytes, and the generic I/O around it.
 *
 * A driver fills a `struct node_driver`; callers use the node_co_* functions, which track and serialise
 * overlapping requests, pad to the driver's alignment (read-modify-write), split by its limits and share
 * flushes. Ranges lie inside the node (-EIO otherwise), except on a node that grows (a protocol node or a
 * filter on one): there, what lies beyond the end reads as zeroes, and a write moves the end. A node may be
 * used by coroutines of any loop at the same time, so a driver keeps its shared state under the locks of
 * co_lock.h (never held across I/O) or reads it without a lock.
 *
 * Everything named _co_ is for coroutines. Offsets and lengths are bytes.
 */
#ifndef RINGSIDE_BLOCK_NODE_H
#define RINGSIDE_BLOCK_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "host/aio/host_file.h"
#include "host/block/inflight.h"
#include "host/block/sg.h"
#include "host/runtime/co_lock.h"
#include "host/runtime/error.h"

struct node;

/* Flags of requests */
#define NODE_IO_FUA         1u /* write, write_zeroes: durable before it completes */
#define NODE_IO_MAY_UNMAP   2u /* write_zeroes: may deallocate */
#define NODE_IO_NO_FALLBACK 4u /* write_zeroes: -ENOTSUP rather than writing zeroes from a buffer */
#define NODE_IO_SERIALISING \
    8u /* on a node with request_alignment > 1: nothing that overlaps runs meanwhile */
#define NODE_IO_COMPRESSED 16u /* write: whole clusters, stored compressed (ringside-img convert -c) */

/* What node_co_block_status says of a range */
#define NODE_STATUS_DATA       1u /* reading it needs the disk */
#define NODE_STATUS_ZERO       2u /* reads as zeroes */
#define NODE_STATUS_ALLOCATED  4u /* this layer decides the content, not the backing file */
#define NODE_STATUS_OFFSET     8u /* *host_offset is valid: the bytes lie there in the image file, or would */
#define NODE_STATUS_COMPRESSED 16u
#define NODE_STATUS_EOF        32u

/* Backing chains longer than this are refused. */
#define NODE_DEPTH_MAX 200u

enum cache_mode {
    CACHE_NONE,      /* O_DIRECT, flushes go down (default) */
    CACHE_WRITEBACK, /* host page cache, flushes go down */
    CACHE_UNSAFE     /* host page cache, flushes are dropped */
};

enum backing_policy { BACKING_SAME_DIR, BACKING_DENY, BACKING_DIR };

enum detect_zeroes { DETECT_ZEROES_OFF, DETECT_ZEROES_ON, DETECT_ZEROES_UNMAP };

/* How an image is to be opened; options of ringside-blk and ringside-img end up here. Zero is the default of
 * each field. Strings belong to the caller and are copied where they are kept. */
struct open_options {
    const char *format; /* "qcow2", "raw", "null"; NULL: probe */
    bool read_only;
    bool no_backing; /* do not open backing files (img info, rebase -u) */
    bool no_io;      /* only metadata will be looked at: no data file, no backing file */
    bool check_only; /* open for `check`: tolerate what check is there to report */
    bool ignore_discard;
    bool no_lock, force_share;
    bool inactive; /* somebody else still uses the image: no lock, no write, until node_co_activate */
    enum cache_mode cache;
    enum aio_kind aio;
    enum backing_policy backing;
    const char *backing_dir; /* BACKING_DIR: the only directory (with its subdirectories) allowed */
    enum detect_zeroes detect_zeroes;
    uint64_t l2_cache_bytes;       /* 0: enough for the whole disk, at most 32 MiB */
    uint64_t refcount_cache_bytes; /* 0: a quarter of the L2 cache */
    uint64_t null_bytes;           /* "null": its size */
    bool null_no_zeroes;           /* "null": reads leave buffers as they are */
    const char *secret_file;       /* LUKS: file with the passphrase; NULL: none */
    const char *snapshot;          /* read from this internal snapshot (id or name); implies read_only */
    const char *survive_dir;       /* where a qcow2's metadata outlives a killed process; NULL: nowhere */
    const char *log_writes;        /* filter below the image: file to log to (log_writes.h), or NULL */
    const char *inject;            /* filter below the image: errors to inject (inject.h), or NULL */
    unsigned depth;                /* 0 for the caller's image; counts up along the backing chain */
    const struct node_ancestor *ancestors; /* the files above this one, against loops (resolve.h) */
};

/* Options of a node below (backing file, data file): what holds for the image above and nothing else. */
struct open_options open_options_below(const struct open_options *options);

struct node_limits {
    uint32_t request_alignment; /* power of two, 1..2 MiB: requests reach the driver aligned to it */
    uint32_t memory_alignment;  /* power of two: buffers reach the driver aligned to it */
    uint32_t max_iov;           /* 0: no limit */
    uint64_t max_transfer;      /* bytes, 0: no limit */
    uint32_t
        pwrite_zeroes_alignment; /* what is not aligned to it is asked for in a piece of its own; 0: none */
    uint64_t max_pwrite_zeroes;  /* 0: no limit */
    uint32_t pdiscard_alignment; /* what is not aligned to it is skipped; 0: none */
    uint64_t max_pdiscard;       /* 0: no limit */
};

struct node_driver {
    const char *format_name;
    size_t instance_bytes; /* node->opaque points to that much zeroed memory */
    bool is_protocol;      /* opens a host file (node->filename) rather than another node */

    /* Reads what it needs (node->file is open for a format), sets node->limits, length, opaque.
     * Any error leaves nothing behind. Coroutine. */
    int (*co_open)(struct node *node, const struct open_options *options, struct error *err);
    /* Writes out everything that a clean close writes; all I/O has ended. Coroutine. Result: 0 or the first
     * error, after which the node is closed all the same. */
    int (*co_close)(struct node *node);

    /* SG has at least BYTES; ranges are inside the node's length and aligned to limits; BYTES > 0. */
    int (*co_preadv)(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg, unsigned flags);
    int (*co_pwritev)(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg, unsigned flags);
    /* NULL or -ENOTSUP: generic code writes zeroes from a buffer. */
    int (*co_pwrite_zeroes)(struct node *node, uint64_t offset, uint64_t bytes, unsigned flags);
    /* NULL or -ENOTSUP: ignored. */
    int (*co_pdiscard)(struct node *node, uint64_t offset, uint64_t bytes);
    /* Everything that completed before the call is durable after it. NULL: nothing to do. */
    int (*co_flush)(struct node *node);
    int (*co_truncate)(struct node *node, uint64_t bytes, bool exact, struct error *err);
    int (*co_block_status)(struct node *node, uint64_t offset, uint64_t bytes, uint64_t *pnum,
                           unsigned *flags, uint64_t *host_offset);

    bool
        supports_fua; /* co_pwritev and co_pwrite_zeroes honour NODE_IO_FUA; otherwise generic code flushes */
    bool is_filter;   /* passes everything on to node->file: the image's format is decided below it */
};

/* Tracked request, on the stack of its coroutine. */
struct tracked_request;

struct node {
    const struct node_driver *driver;
    void *opaque;
    char *filename;         /* as given; "" for a node without a file */
    struct node *file;      /* the protocol node below a format, or the node that a filter sits on */
    struct node *backing;   /* or NULL */
    struct node *data_file; /* external data file, or NULL */
    struct host_file *host; /* protocol nodes only */
    struct node_limits limits;
    uint64_t length; /* bytes; read with node_length */
    unsigned depth;  /* as in open_options */
    bool read_only;
    bool grows;           /* see the top */
    bool probed;          /* the format was guessed: raw guards sector 0 */
    bool supports_zeroes; /* co_pwrite_zeroes can be expected to be cheap */
    bool detect_zeroes_unmap, detect_zeroes;
    bool ignore_discard; /* discards are dropped, zeroes never unmap */
    bool fua_is_flush; /* protocol nodes in the page cache: what it lost is reported once, to whoever asks */
    bool unsafe;       /* protocol nodes: flushes are dropped. A format still writes its tables out */
    int refs;          /* open children are shared; only on the thread that opens and closes */

    /* Handing an image over to another process and back: activate.c */
    bool inactive;
    struct open_options options; /* as it was opened, without names */
    char *secret_file;
    struct node *kept_backing, *kept_data_file; /* while it is opened again */

    /* Generic I/O: io.c. Ordinary requests are only counted; while a serialising one is about, all are in the
     * list. */
    struct inflight inflight;
    struct tracked_request *tracked; /* oldest first; under inflight.guard */
    struct tracked_request **tracked_end;
    /* Flushes that share: flush.c */
    struct spinlock flush_guard;
    uint64_t flushed_gen;
    bool flush_active;
    int flush_error; /* of a protocol node: a flush that failed stays an error until close */
    struct co_queue flush_waiters;
};

/* Opens PATH with everything it needs below it. On success *NODE has one reference. Coroutine, on the loop
 * that will also close it. */
int coroutine_fn node_co_open(const char *path, const struct open_options *options, struct node **node,
                              struct error *err);

/* Opens the backing file NAME (as written in an image; BACKING_FORMAT or NULL: probe) of PARENT, read-only.
 * OPTIONS are those that PARENT is being opened with; OPTIONS->backing says which files may be named, and a
 * file of the same chain is refused (-ELOOP). */
int coroutine_fn node_co_open_backing(struct node *parent, const char *name, const char *backing_format,
                                      const struct open_options *options, struct node **node,
                                      struct error *err);

/* Opens the external data file NAME of PARENT (a protocol node) under the same rules, and writable if PARENT
 * is. */
int coroutine_fn node_co_open_data_file(struct node *parent, const char *name,
                                        const struct open_options *options, struct node **node,
                                        struct error *err);

/* Where NAME, as written in the image FILENAME, leads to: a name with a protocol is -EINVAL, "file:" is taken
 * off, a relative name is one from FILENAME's directory. To be freed. No policy is applied. */
int node_resolve_name(const char *filename, const char *name, char **path, struct error *err);

/* The file that NAME in the image FILENAME stands for, with every symbolic link resolved, if OPTIONS->backing
 * allows it. *PATH is to be freed. -EPERM: not allowed; -EINVAL: not a plain file name; else why the name
 * leads nowhere. */
int node_resolve_allowed(const char *filename, const char *name, const struct open_options *options,
                         char **path, struct error *err);

/* Only the protocol node on a host file. */
int coroutine_fn node_co_open_protocol(const char *path, const struct open_options *options,
                                       struct node **node, struct error *err);

/* A node of DRIVER that stands on no other node: the protocol node above, and what tests put in its place. */
int coroutine_fn node_co_open_driver(const struct node_driver *driver, const char *path,
                                     const struct open_options *options, struct node **node,
                                     struct error *err);

/* Opens the format DRIVER on PROTOCOL, taking over the reference, also on error. PROBED: DRIVER was guessed.
 */
int coroutine_fn node_co_open_format(const struct node_driver *driver, struct node *protocol,
                                     const char *path, const struct open_options *options, bool probed,
                                     struct node **node, struct error *err);

/* Puts a filter (a driver with is_filter) above BELOW, taking over the reference to it, also on error.
 * SETUP(node, OPAQUE) fills in the instance in place of the driver's co_open; may be NULL. */
int coroutine_fn node_co_open_filter(const struct node_driver *driver, struct node *below,
                                     int (*setup)(struct node *node, void *opaque, struct error *err),
                                     void *opaque, struct node **node, struct error *err);

/* Drops a reference; the last one flushes and closes. Result: 0 or the first error of that. */
int coroutine_fn node_co_close(struct node *node);

/* Lets another process have the image (migration): writes everything out, forgets what was read, gives up the
 * locks; the files stay open. No I/O is in flight, and none may come until node_co_activate. 0 or the first
 * error of writing out, after which it is inactive all the same. */
int coroutine_fn node_co_inactivate(struct node *node);

/* Takes it back: locks it (waiting a little for the other to let go), and reads everything anew, the length
 * included. No file is opened, except that of the passphrase if there is one. On an error it stays
 * inactive. */
int coroutine_fn node_co_activate(struct node *node, struct error *err);

/* Guesses the format of what is in PROTOCOL: that of the magic, be it known here or not, else "raw". Reads at
 * most one sector; opens nothing else. */
int coroutine_fn node_co_probe(struct node *protocol, const char **format);

/* Would a sector that begins with BUF be taken for an image of some format, by us or by others? Its name, or
 * NULL. BUF has 512 bytes. */
const char *node_probe_magic(const void *buf);

/* The table of drivers, NULL-terminated. */
extern const struct node_driver *const node_drivers[];
const struct node_driver *node_driver_find(const char *format_name);

extern const struct node_driver file_driver, raw_driver, null_driver, log_writes_driver, inject_driver;
extern const struct node_driver qcow2_driver;

static inline uint64_t node_length(const struct node *node) /* any thread */
{
    return __atomic_load_n(&node->length, __ATOMIC_ACQUIRE);
}
/* For drivers, which keep the length themselves: where it changes, and at the end of a write on a growing
 * node. */
void node_set_length(struct node *node, uint64_t bytes);
void node_grow_length(struct node *node, uint64_t bytes);
/* Puts the defaults where a driver left limits at 0. For those who call a driver's co_open. */
void node_limits_complete(struct node_limits *limits);

int coroutine_fn node_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                unsigned flags);
int coroutine_fn node_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                 unsigned flags);
int coroutine_fn node_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes, unsigned flags);
int coroutine_fn node_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes);
int coroutine_fn node_co_flush(struct node *node);
/* EXACT: the image ends up with this length; else at least this much room below. Nothing may be in flight
 * beyond the new end. */
int coroutine_fn node_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err);
/* *PNUM: how many bytes from OFFSET on are alike, at most BYTES, at least 1 unless OFFSET is the end.
 * Looks at this layer only. */
int coroutine_fn node_co_block_status(struct node *node, uint64_t offset, uint64_t bytes, uint64_t *pnum,
                                      unsigned *flags, uint64_t *host_offset);

/* Plain-buffer forms. */
int coroutine_fn node_co_pread(struct node *node, uint64_t offset, void *buf, uint64_t bytes);
int coroutine_fn node_co_pwrite(struct node *node, uint64_t offset, const void *buf, uint64_t bytes,
                                unsigned flags);

/* Buffers for I/O: aligned to what the whole chain needs; freed with free(). NULL if memory is short. */
void *node_buffer(const struct node *node, size_t bytes);

#endif
