/*
 * The state of an open qcow2 image and the functions that its parts call in each other. Private to
 * host/qcow2.
 *
 * Locks. `lock` protects everything that is marked [lock] and is never held across I/O or any other yield
 * than waiting for a condition with it. A function that needs a table which is not in memory returns -EAGAIN
 * and says in a struct qcow2_need what is missing; its caller drops the lock, has it fetched
 * (qcow2_co_satisfy) and starts again. Reading guest data takes no lock at all: the L1 table and the L2
 * slices are read atomically, and what a reader has found stays what it was until the reader ends, since a
 * freed cluster is quarantined (reclaim.c).
 *
 * The order of writing (writeback.c), in which everything rests on one rule: what an entry points to is on
 * the disk before the entry is, and the entry is gone from the disk before what it pointed to changes owner.
 *   data, refcount blocks  ->  fdatasync  ->  refcount table  ->  fdatasync  ->  L2 slices, L1 entries  ->
 * fdatasync  ->  frees So a refcount block may be written at any time: increments come early by this order,
 * and decrements are not even made in memory before the reference is durably gone.
 */
#ifndef RINGSIDE_QCOW2_QCOW2_STATE_H
#define RINGSIDE_QCOW2_QCOW2_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/block/node.h"
#include "host/block/sg.h"
#include "host/qcow2/qcow2.h"
#include "host/qcow2/qcow2_format.h"
#include "host/qcow2/table_cache.h"
#include "host/runtime/co_lock.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/loop.h"

/* What a stretch of guest addresses is, smallest unit one subcluster. */
enum qcow2_type {
    QCOW2_UNALLOCATED,       /* no cluster: the backing file, or zeroes */
    QCOW2_UNALLOCATED_ALLOC, /* extended L2: there is a cluster, but this subcluster is the backing file's */
    QCOW2_ZERO_PLAIN,        /* zeroes, no cluster */
    QCOW2_ZERO_ALLOC,        /* zeroes, with a cluster kept in reserve */
    QCOW2_NORMAL,            /* data in the file */
    QCOW2_COMPRESSED,        /* the whole cluster, compressed */
    QCOW2_INVALID            /* an entry that no rule allows */
};

/* A run of guest addresses that are alike. */
struct qcow2_extent {
    enum qcow2_type type;
    uint64_t
        host; /* NORMAL, ZERO_ALLOC, UNALLOCATED_ALLOC: where the first byte lies; COMPRESSED: the L2 entry */
    uint64_t bytes;
};

enum qcow2_need_kind {
    QCOW2_NEED_NOTHING,
    QCOW2_NEED_L2_SLICE,       /* key */
    QCOW2_NEED_L2_TABLE,       /* key: index into L1; an L2 table that may be written */
    QCOW2_NEED_REFCOUNT_SLICE, /* key */
    QCOW2_NEED_REFCOUNT_BLOCK, /* key: index into the refcount table */
    QCOW2_NEED_FILE_LENGTH     /* key: bytes */
};

struct qcow2_need {
    enum qcow2_need_kind kind;
    uint64_t key;
    bool scanned; /* a slice was loaded already in search of free clusters: go to the end of the image next */
};

/* An allocating write on its way: lies on its coroutine's stack, on s->allocs. Its range is in whole
 * clusters; nobody else changes the mapping of these clusters while it is there. */
struct qcow2_alloc {
    uint64_t start, end; /* guest */
    struct co_queue waiters;
    struct qcow2_alloc *next, *prev;
};

/* Something that is being made by one coroutine while others wait for it: an L2 table, a refcount block. */
struct qcow2_making {
    uint64_t key;
    struct co_queue waiters;
    struct qcow2_making *next;
};

/* A run of clusters to be freed, once for each reference that went away. */
struct qcow2_free_run {
    uint64_t cluster, count;
    bool punch; /* give the space back to the host if nothing refers to it any more */
};

struct qcow2_free_list {
    struct qcow2_free_run *runs;
    size_t count, room;
    uint64_t clusters;
};

/* What metadata a cluster holds; names as in QEMU's overlap-check options. */
enum qcow2_overlap {
    QCOW2_OL_NONE,
    QCOW2_OL_MAIN_HEADER,
    QCOW2_OL_ACTIVE_L1,
    QCOW2_OL_ACTIVE_L2,
    QCOW2_OL_REFCOUNT_TABLE,
    QCOW2_OL_REFCOUNT_BLOCK,
    QCOW2_OL_SNAPSHOT_TABLE,
    QCOW2_OL_INACTIVE_L1,
    QCOW2_OL_INACTIVE_L2,
    QCOW2_OL_BITMAP_DIRECTORY,
    QCOW2_OL_CRYPT_HEADER,
    QCOW2_OL_COUNT
};

/* What is one piece however long an image says that it is: clusters [first, end). */
struct qcow2_overlap_range {
    uint64_t first, end;
};

/* Exact map from cluster number to metadata class, open addressing; and ranges. */
struct qcow2_overlap_map {
    uint64_t *slots; /* (cluster << 4 | class) + 1; 0: free */
    size_t room, count;
    uint64_t seed;
    struct qcow2_overlap_range crypt_header;
    struct qcow2_overlap_range *inactive_l1; /* sorted, apart from each other */
    size_t nb_inactive_l1;
};

struct qcow2_snapshot {
    char *id, *name;
    uint64_t l1_offset;
    uint32_t l1_size;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec, vm_state_bytes, disk_bytes, icount;
    uint8_t *extra; /* as read, for rewriting */
    uint32_t extra_bytes;
};

/* A header extension, as read; kept in order for rewriting. */
struct qcow2_ext {
    uint32_t type, length;
    uint8_t *data;
};

struct qcow2_reader_count {
    uint32_t count[2];
    uint8_t pad[56];
};

struct qcow2_crypto;  /* luks.c */
struct survivor;      /* survivor.c */
struct qcow2_bitmaps; /* bitmap.c */

struct qcow2 {
    struct node *node;
    struct node *data; /* where guest data lies: the image file or the external data file */

    /* geometry: constant while open */
    unsigned version, cluster_bits, l2_entry_bits /* log2 of bytes */, l2_bits /* log2 of entries a table */;
    unsigned subclusters; /* a cluster: 1 or 32 */
    unsigned subcluster_bits;
    unsigned slice_bits;  /* log2 of entries a slice */
    unsigned slices_bits; /* log2 of slices a table */
    unsigned refcount_order, refblock_bits /* log2 of refcounts a block */;
    unsigned ref_slice_bits;  /* log2 of refcounts a slice */
    unsigned ref_slices_bits; /* log2 of slices a block */
    uint64_t cluster_bytes, subcluster_bytes, refcount_max;
    bool extended_l2, data_file_raw, read_only, writable_ever;
    bool discard_down; /* freed space is given back to the host */
    enum qcow2_compression compression_type;

    /* header, as it is in the file; changed under header_lock, which may be held across I/O */
    struct co_mutex header_lock;
    uint64_t size; /* header's field */
    uint64_t incompatible, compatible, autoclear;
    uint32_t crypt_method, header_length;
    uint8_t *header_unknown; /* fields after the known ones */
    uint32_t header_unknown_bytes;
    struct qcow2_ext *exts;
    unsigned nb_exts;
    char *backing_file, *backing_format, *data_file_name;
    bool prepared; /* atomic: everything that comes before the first write was done */
    struct co_mutex prepare_lock;

    /* L1: host order, read atomically without the lock, changed under it. The array that readers may still be
     * looking at when it grows is kept until close. */
    uint64_t *l1;            /* atomic */
    uint32_t l1_size;        /* atomic; entries */
    uint32_t header_l1_size; /* what the header says or is about to say; under header_lock */
    uint64_t l1_offset;
    uint8_t *l1_dirty; /* [lock] a byte for each block of 64 entries */
    uint32_t l1_nb_dirty;
    void **retired; /* freed at close */
    unsigned nb_retired;

    struct co_mutex lock;

    struct table_cache l2;  /* key: guest slice number */
    struct table_cache ref; /* key: refcount block index << ref_slices_bits | slice in it; raw bytes */
    struct qcow2_making *making_l2, *making_ref; /* [lock] */

    /* refcount table [lock] */
    uint64_t *reftable; /* host order */
    uint32_t reftable_entries;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint8_t *reftable_dirty; /* a byte for each block of 64 entries */
    uint32_t reftable_nb_dirty;
    bool exchanging; /* the table names copies (exchange.c): no block is added */

    /* allocation [lock] */
    uint64_t free_hint;  /* cluster: nothing free below it, as far as known */
    uint64_t tail_hint;  /* cluster: where the end of the image is looked for */
    uint64_t fresh_from; /* bytes: from here on the file was never written, and reads as zeroes */
    uint64_t file_bytes; /* length of the image file */
    bool on_device;      /* it is a block device: nothing in it is known to be zeroes, and its end is no place
                          * to look for room */
    uint64_t compressed_at; /* bytes: where the next compressed cluster may go on; 0: nowhere */
    bool extending, said_too_far;
    struct co_queue extend_waiters;
    struct qcow2_alloc *allocs;
    struct qcow2_overlap_map overlap;

    /* writing back [lock] */
    bool wb_running;
    struct co_queue wb_waiters;
    uint64_t gen;
    uint8_t *wb_buffer; /* of the one who runs: copies on their way */
    void *wb_pieces;
    int io_error; /* atomic; sticky: an fdatasync or the order of writing failed; nothing more is written */

    /* frees [lock], see reclaim.c */
    struct qcow2_free_list freed;      /* reference gone in memory */
    struct qcow2_free_list grace_next; /* durably gone; readers may still be there */
    struct qcow2_free_list grace;      /* waiting for the readers of the previous epoch */
    struct qcow2_free_list ready;      /* nobody there: may be punched and counted down */
    bool freed_much;                   /* atomic: `freed` should not wait for the guest's next flush */
    bool reclaiming;
    uint32_t epoch; /* atomic */

    /* writers in flight and those who hold them back */
    uint32_t writers;  /* atomic */
    uint32_t quiesced; /* atomic, changed under the lock: 1 while somebody holds writers back */
    struct co_queue writers_waiters, quiesce_waiters;

    struct qcow2_snapshot *snapshots;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset, snapshots_bytes;
    bool on_snapshot;     /* opened to read one: l1 and size are that snapshot's */
    uint64_t active_size; /* then: what the header says */

    struct survivor *survivor; /* NULL: metadata does not survive the process */
    struct qcow2_crypto *crypto;
    struct qcow2_bitmaps *bitmaps;
    bool said_corrupt; /* atomic */
    bool check_only, data_missing;
    bool backing_coming;   /* another backing file is about to show where no cluster is */
    int bitmaps_error;     /* the directory could not be read (check only) */
    uint64_t opened_bytes; /* length of the file when it was opened */
    /* Tables that are named, and lie behind the end of the file; 0: none. */
    uint64_t lost_block, lost_l2;

    /* bounce buffers of one cluster, some kept */
    struct spinlock buffers_guard;
    void *buffers[16];
    unsigned nb_buffers;

    struct qcow2_reader_count readers[LOOPS_MAX];
};

/* Bytes from guest OFFSET to the end of its cluster, and the like. */
static inline uint64_t qcow2_cluster_down(const struct qcow2 *s, uint64_t x)
{
    return x & ~(s->cluster_bytes - 1);
}
static inline uint64_t qcow2_cluster_up(const struct qcow2 *s, uint64_t x)
{
    return (x + s->cluster_bytes - 1) & ~(s->cluster_bytes - 1);
}
/* How many clusters BYTES take. */
static inline uint64_t qcow2_clusters_of(const struct qcow2 *s, uint64_t bytes)
{
    return (bytes + s->cluster_bytes - 1) >> s->cluster_bits;
}
static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}
static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* [lock] Was nothing ever written from HOST on? Then it reads as zeroes. */
static inline bool qcow2_is_fresh(const struct qcow2 *s, uint64_t host)
{
    return !s->on_device && host >= s->fresh_from;
}

static inline int qcow2_io_error(const struct qcow2 *s)
{
    return __atomic_load_n(&s->io_error, __ATOMIC_RELAXED);
}

/* The metadata lock: held for moments, so a short spin is cheaper than going to sleep. */
static inline void coroutine_fn qcow2_lock(struct qcow2 *s)
{
    for (int i = 0; i < 200; i++) {
        if (co_mutex_trylock(&s->lock))
            return;
    }
    co_mutex_lock(&s->lock);
}
static inline void qcow2_unlock(struct qcow2 *s)
{
    co_mutex_unlock(&s->lock);
}

/* ---- header.c ---- */

int coroutine_fn qcow2_co_read_header(struct qcow2 *s, const struct open_options *options, struct error *err);
struct qcow2_ext *qcow2_find_ext(struct qcow2 *s, uint32_t type);
/* Sets or (DATA NULL) removes an extension in memory. */
int qcow2_set_ext(struct qcow2 *s, uint32_t type, const void *data, uint32_t length);

/* ---- header_write.c ---- */

/* Writes the header and its extensions anew from the state. Caller holds header_lock. */
int coroutine_fn qcow2_co_write_header(struct qcow2 *s);
/* The same, with room for BYTES of extensions more in front of the backing file's name: so that adding them
 * moves nothing, and a power cut can leave nothing in between. */
int coroutine_fn qcow2_co_make_ext_room(struct qcow2 *s, uint64_t bytes);
/* Writes the fields of the header's first sector, durably; extensions stay as they are. Caller holds
 * header_lock. */
int coroutine_fn qcow2_co_write_header_sector(struct qcow2 *s);
/* Changes the feature words alone, durably: one sector. */
int coroutine_fn qcow2_co_set_features(struct qcow2 *s, uint64_t incompatible, uint64_t autoclear);
/* What comes before the first change of an image: unknown autoclear bits cleared, dirty bit dealt with. */
int coroutine_fn qcow2_co_prepare_write(struct qcow2 *s);
/* An impossible thing was found in the metadata: says so, marks the image corrupt if it is open for writing.
 * Returns -EIO. */
int coroutine_fn qcow2_co_corrupt(struct qcow2 *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- mapping.c: from guest to host ---- */

enum qcow2_type qcow2_entry_type(const struct qcow2 *s, uint64_t entry, uint64_t bitmap, unsigned subcluster);

/* What is at OFFSET, and how far it goes, at most BYTES. No lock where the slices are cached. */
int coroutine_fn qcow2_co_map(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct qcow2_extent *extent);

static inline uint64_t qcow2_l2_key(const struct qcow2 *s, uint64_t offset)
{
    return offset >> (s->cluster_bits + s->slice_bits);
}
static inline uint64_t qcow2_l1_index(const struct qcow2 *s, uint64_t offset)
{
    return offset >> (s->cluster_bits + s->l2_bits);
}
/* [lock] The words of the entry for guest OFFSET in an L2 table that may be written, and its slot. -EAGAIN
 * with NEED. */
int qcow2_l2_writable(struct qcow2 *s, uint64_t offset, uint32_t *slot, uint64_t **words,
                      struct qcow2_need *need);
/* [lock] The same for reading: *WORDS NULL if there is no L2 table. */
int qcow2_l2_readable(struct qcow2 *s, uint64_t offset, uint32_t *slot, uint64_t **words,
                      struct qcow2_need *need);
/* Entries from guest OFFSET on that lie in the same slice. */
static inline uint64_t qcow2_slice_end(const struct qcow2 *s, uint64_t offset)
{
    return (qcow2_l2_key(s, offset) + 1) << (s->cluster_bits + s->slice_bits);
}
/* Drops all clean L2 slices from the cache, after the tables were changed in the file. No writer is in
 * flight, all is written back. */
void coroutine_fn qcow2_co_forget_l2(struct qcow2 *s);
/* [lock] Marks the L1 entry dirty. */
void qcow2_l1_set(struct qcow2 *s, uint64_t index, uint64_t entry);

/* Gets what was missing; not under the lock. 0 or a negative errno. */
int coroutine_fn qcow2_co_satisfy(struct qcow2 *s, const struct qcow2_need *need);

/* ---- table_io.c: tables of 64-bit words, host order in memory ---- */

/* ENTRIES words at OFFSET of the file, into memory with room for ROOM of them. 0 with *TABLE, to be
 * freed; or a negative errno. */
int coroutine_fn qcow2_co_read_table(struct qcow2 *s, uint64_t offset, uint64_t entries, uint64_t room,
                                     uint64_t **table);
/* To whole clusters at HOST; what is behind the last entry becomes 0. */
int coroutine_fn qcow2_co_write_table(struct qcow2 *s, const uint64_t *table, uint64_t entries,
                                      uint64_t host);

/* ---- refcount.c ---- */

uint64_t qcow2_refcount_get_raw(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_set_raw(void *block, unsigned order, uint64_t index, uint64_t value);

/* [lock] */
int qcow2_refcount_get(struct qcow2 *s, uint64_t cluster, uint64_t *refcount, struct qcow2_need *need);
/* [lock] Adds DELTA (1 or -1) to COUNT refcounts, all or none. -EAGAIN with NEED; -ERANGE: does not fit the
 * width (E3); -EIO: below 0. */
int qcow2_refcount_change(struct qcow2 *s, uint64_t cluster, uint64_t count, int delta,
                          struct qcow2_need *need);
/* The same, not under the lock. */
int coroutine_fn qcow2_co_refcount_change(struct qcow2 *s, uint64_t cluster, uint64_t count, int delta);
int coroutine_fn qcow2_co_refcount_get(struct qcow2 *s, uint64_t cluster, uint64_t *refcount);
/* Those of COUNT clusters one after the other: a few hundred at most, the lock is held meanwhile. */
int coroutine_fn qcow2_co_refcounts_get(struct qcow2 *s, uint64_t cluster, uint32_t count,
                                        uint64_t *refcounts);
int coroutine_fn qcow2_co_load_refcount_slice(struct qcow2 *s, uint64_t key);

/* ---- reftable.c ---- */

/* A refcount table that is to take the place of the present one. */
struct qcow2_reftable {
    uint64_t offset, clusters; /* in the file; the caller's */
    uint64_t *table;
    uint8_t *dirty;
    uint32_t entries;
};

/* Memory for T's clusters of entries, all 0; freed by qcow2_reftable_free() also after an error, and not once
 * it is used. -EFBIG: more than a table may have. */
int qcow2_reftable_alloc(const struct qcow2 *s, struct qcow2_reftable *t);
void qcow2_reftable_free(struct qcow2_reftable *t);
/* The header names T, which is durable; after an error it names what it did before. */
int coroutine_fn qcow2_co_reftable_name(struct qcow2 *s, const struct qcow2_reftable *t);
/* [lock] From here on the memory of T is the image's; what is dirty in the old one's is forgotten. */
void coroutine_fn qcow2_co_reftable_use(struct qcow2 *s, const struct qcow2_reftable *t);

/* A block for entry INDEX of the table, which grows as it must. 0 also when another one has made it, or is no
 * longer making it. */
int coroutine_fn qcow2_co_make_refcount_block(struct qcow2 *s, uint64_t index);
/* COUNT clusters next to each other, behind everything else, and in front of them the blocks that count them:
 * for more than a block counts, which would lie in the way if it were made in its own range. They read as
 * zeroes. */
int coroutine_fn qcow2_co_alloc_with_blocks(struct qcow2 *s, uint64_t count, uint64_t *host);

/* ---- alloc.c ---- */

/* [lock] Finds up to WANT contiguous free clusters and counts them as used. *GOT at least 1. *FRESH: they
 * read as zeroes. -EAGAIN with NEED, -ENOSPC. */
int qcow2_alloc_clusters(struct qcow2 *s, uint64_t want, uint64_t *host, uint64_t *got, bool *fresh,
                         struct qcow2_need *need);
/* Exactly COUNT contiguous ones, not under the lock. */
int coroutine_fn qcow2_co_alloc_contiguous(struct qcow2 *s, uint64_t count, uint64_t *host, bool *fresh);
/* Gives back what was allocated and never referred to by anything on the disk. */
void coroutine_fn qcow2_co_unalloc(struct qcow2 *s, uint64_t host, uint64_t count);
int coroutine_fn qcow2_co_extend_file(struct qcow2 *s, uint64_t bytes);
/* Allocates SIZE bytes for one compressed cluster, next to the previous one where it fits. */
int coroutine_fn qcow2_co_alloc_bytes(struct qcow2 *s, uint64_t size, uint64_t *host);

/* ---- overlap.c ---- */

/* A hash that the maker of an image can't foresee: the seed is another one in each process. */
uint64_t qcow2_hash(uint64_t seed, uint64_t cluster);
uint64_t qcow2_hash_seed(void);

int qcow2_overlap_add(struct qcow2 *s, uint64_t host, uint64_t bytes, enum qcow2_overlap what);
void qcow2_overlap_remove(struct qcow2 *s, uint64_t host, uint64_t bytes);
/* [lock] Does [host, host+bytes) touch metadata of another class than OWN? *AT the first such byte's cluster.
 */
enum qcow2_overlap qcow2_overlap_check(const struct qcow2 *s, uint64_t host, uint64_t bytes,
                                       enum qcow2_overlap own, uint64_t *at);
const char *qcow2_overlap_name(enum qcow2_overlap what);
/* Makes the map anew from the state. */
int qcow2_overlap_build(struct qcow2 *s);
void qcow2_overlap_free(struct qcow2 *s);

/* ---- reclaim.c: the life of a freed cluster ---- */

/* Brackets everything that uses host offsets of guest data: they stay what they are in between. */
unsigned qcow2_use_begin(struct qcow2 *s);
void qcow2_use_end(struct qcow2 *s, unsigned epoch);

/* [lock] One reference to each of these clusters went away in memory. */
void qcow2_free_later(struct qcow2 *s, uint64_t host, uint64_t bytes, bool punch);
/* [lock] The reference of an L2 entry that is being replaced. */
void qcow2_free_entry(struct qcow2 *s, uint64_t entry, bool punch);
/* [lock] What FLUSHED holds is durably dereferenced now. */
void qcow2_free_durable(struct qcow2 *s, struct qcow2_free_list *flushed);
/* Counts down and punches what nobody uses any more. */
void coroutine_fn qcow2_co_reclaim(struct qcow2 *s);
/* The same for all that is durably free, waiting for readers. */
void coroutine_fn qcow2_co_reclaim_all(struct qcow2 *s);
/* Is CLUSTER no metadata that is in use? An entry may have named what is no data at all, and then a hole
 * would take more than a mapping with it. */
bool coroutine_fn qcow2_co_may_punch(struct qcow2 *s, uint64_t cluster);
void qcow2_free_list_destroy(struct qcow2_free_list *list);
/* Host clusters that a compressed L2 entry's data touches. */
void qcow2_compressed_range(const struct qcow2 *s, uint64_t entry, uint64_t *host, uint64_t *bytes);

/* ---- writeback.c ---- */

/* Everything that completed before is durable after it. */
int coroutine_fn qcow2_co_writeback(struct qcow2 *s);
/* Everything is written and durable, but what was freed stays so: for a change of tables of which this is the
 * first half. */
int coroutine_fn qcow2_co_writeback_keep(struct qcow2 *s);
/* Makes room in the caches: dirty slices are written, in order, without waiting for them to be durable. */
int coroutine_fn qcow2_co_make_clean(struct qcow2 *s);

/* ---- read.c ---- */

int coroutine_fn qcow2_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                 unsigned flags);
/* Guest data as it is, for copy-on-write; beyond the end of the disk it is zero. *ZERO: nothing but zeroes
 * there (BUF is filled all the same). The caller is between qcow2_use_begin and _end. */
int coroutine_fn qcow2_co_read_guest(struct qcow2 *s, uint64_t offset, uint64_t bytes, void *buf, bool *zero);
/* Do these guest addresses read as zeroes, as far as the tables say, and go on to whatever is below? */
bool coroutine_fn qcow2_co_range_is_zero(struct qcow2 *s, uint64_t offset, uint64_t bytes);

/* ---- write.c ---- */

int coroutine_fn qcow2_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                  unsigned flags);

/* [lock] Waits until no allocating write is on its way in [start, end). True if it had to wait (look again).
 */
bool coroutine_fn qcow2_co_wait_allocs(struct qcow2 *s, uint64_t start, uint64_t end);
/* [lock] */
void qcow2_alloc_add(struct qcow2 *s, struct qcow2_alloc *alloc);
void qcow2_alloc_remove(struct qcow2 *s, struct qcow2_alloc *alloc);
/* Guest data to or from the data file, through encryption if there is any. HOST and BYTES are 512-byte
 * aligned then. */
int coroutine_fn qcow2_co_read_data(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                    struct sg sg);
int coroutine_fn qcow2_co_write_data(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                     struct sg sg);
/* A write between writer_begin and use_begin, for those who are there already; and one of zeroes as data. */
int coroutine_fn qcow2_co_write_guest(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct sg sg);
int coroutine_fn qcow2_co_write_zeroes_guest(struct qcow2 *s, uint64_t offset, uint64_t bytes);
/* Brackets a change of guest data or its mapping. */
int coroutine_fn qcow2_co_writer_begin(struct qcow2 *s);
void coroutine_fn qcow2_co_writer_end(struct qcow2 *s);
/* Called after a writer has ended: keeps what waits for the next flush within bounds. */
int coroutine_fn qcow2_co_bound_freed(struct qcow2 *s);
/* No writer is in flight, and none starts, between these. */
void coroutine_fn qcow2_co_quiesce(struct qcow2 *s);
void coroutine_fn qcow2_co_unquiesce(struct qcow2 *s);

/* A buffer of one cluster for I/O; NULL if memory is short. */
void *qcow2_buffer_get(struct qcow2 *s);
void qcow2_buffer_put(struct qcow2 *s, void *buffer);

/* ---- discard.c ---- */

int coroutine_fn qcow2_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes, unsigned flags);
int coroutine_fn qcow2_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes);

/* Takes the mapping of whole clusters away (TO_ZERO: they have to read as zeroes); for those who are writers
 * already, or have quiesced them. -ENOTSUP: zeroes have to be written. */
int coroutine_fn qcow2_co_drop_range(struct qcow2 *s, uint64_t start, uint64_t end, bool to_zero);

/* ---- resize.c ---- */

/* A larger L1 table. No writer is in flight. */
int coroutine_fn qcow2_co_grow_l1(struct qcow2 *s, uint64_t entries);
/* Maps all of [start, end) to clusters of its own; what is mapped already stays. */
int coroutine_fn qcow2_co_preallocate(struct qcow2 *s, uint64_t start, uint64_t end,
                                      enum qcow2_preallocation mode);

int coroutine_fn qcow2_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err);

/* ---- task_pool.c: pieces of one request side by side ---- */

#define TASK_POOL_MAX 8u

struct task_pool {
    unsigned active, max;
    int result; /* the first error */
    struct coroutine *waiting;
};

struct task {
    int (*run)(struct task *task); /* coroutine */
    struct task_pool *pool;
    bool busy;
};

/* Runs TASK in a coroutine of its own, or here if none can be had. All of a pool is on one loop. */
void coroutine_fn task_pool_start(struct task_pool *pool, struct task *task);
/* Waits until fewer than MAX run. */
void coroutine_fn task_pool_wait_slot(struct task_pool *pool);
int coroutine_fn task_pool_wait_all(struct task_pool *pool);

/* ---- compress.c ---- */

int coroutine_fn qcow2_co_read_compressed(struct qcow2 *s, uint64_t entry, uint64_t offset_in_cluster,
                                          uint64_t bytes, struct sg sg);
int coroutine_fn qcow2_co_pwritev_compressed(struct qcow2 *s, uint64_t offset, uint64_t bytes, struct sg sg);

/* ---- snapshot.c ---- */

int coroutine_fn qcow2_co_read_snapshots(struct qcow2 *s, struct error *err);
void qcow2_free_snapshots(struct qcow2 *s);
void qcow2_free_snapshot(struct qcow2_snapshot *snapshot);
struct qcow2_snapshot *qcow2_find_snapshot(struct qcow2 *s, const char *id_or_name);
/* Can its L1 table be read? */
bool qcow2_snapshot_l1_is_there(const struct qcow2 *s, const struct qcow2_snapshot *snapshot);
/* And is it large enough for its disk, so that the snapshot can be used? */
int qcow2_check_snapshot_l1(struct qcow2 *s, const struct qcow2_snapshot *snapshot, struct error *err);

/* ---- driver.c ---- */

/* The state of a qcow2 node, also below filters; NULL if it is something else. */
struct qcow2 *qcow2_state(struct node *node);

/* ---- check.c, repair.c ---- */

/* C3: refcounts may be wrong: rebuilds them from the mappings, then clears the dirty bit. */
int coroutine_fn qcow2_co_repair_dirty(struct qcow2 *s, struct error *err);

#endif
