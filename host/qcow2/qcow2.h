/*
 * qcow2 images: the node driver, and what programs do with an image besides reading and writing it.
 *
 * The driver serves any number of loops at the same time. All functions named _co_ run in coroutines; those
 * that change more than guest data (check with repair, snapshots, make_empty, change_backing) wait for writes
 * in flight and hold new ones back themselves. They take a node whose driver is &qcow2_driver; anything else
 * is -EINVAL. Errors are negative errno values with a sentence in ERR.
 *
 * Specification: the qcow2 format description in QEMU's docs/interop/qcow2.txt.
 */
#ifndef RINGSIDE_QCOW2_QCOW2_H
#define RINGSIDE_QCOW2_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/block/node.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/error.h"

extern const struct node_driver qcow2_driver;

/* ---- creating ---- */

enum qcow2_compression { QCOW2_COMPRESSION_ZLIB = 0, QCOW2_COMPRESSION_ZSTD = 1 };

enum qcow2_preallocation {
    QCOW2_PREALLOCATION_OFF,
    QCOW2_PREALLOCATION_METADATA, /* all clusters mapped, the file sparse */
    QCOW2_PREALLOCATION_FALLOC,   /* and its space allocated */
    QCOW2_PREALLOCATION_FULL      /* and written */
};

/* Names as qemu-img's options have them; NULL is the default, aes-256, xts, plain64, sha256 and sha256. */
struct qcow2_luks_options {
    const char
        *secret_file;      /* passphrase: the whole file, with or without a last newline, as it was written */
    unsigned iter_time_ms; /* key derivation time; 0: 2000 */
    const char *cipher_alg, *cipher_mode, *ivgen_alg, *ivgen_hash_alg, *hash_alg;
};

/* Zero is the default of each field. */
struct qcow2_create_options {
    uint64_t size;          /* bytes; rounded up to 512 */
    unsigned version;       /* 2 (compat 0.10) or 3 (1.1); 0: 3 */
    uint32_t cluster_bytes; /* 512 .. 2 MiB; 0: 64 KiB (more for extended_l2 is up to the caller) */
    unsigned refcount_bits; /* 1 .. 64; 0: 16 */
    bool lazy_refcounts;
    bool extended_l2;
    enum qcow2_compression compression_type;
    enum qcow2_preallocation preallocation;
    const char *backing_file; /* stored as it is; not opened. NULL: none */
    const char *backing_format;
    const char *data_file; /* external data file, stored as it is; created if it isn't there. NULL: none */
    bool data_file_raw;
    const char *encrypt_format; /* NULL or "luks" */
    struct qcow2_luks_options luks;
};

/* Creates or overwrites PATH. On error a file that this made (the data file, too) is gone again, one that was
 * there is as it was or empty; a block device has no image header, or (preallocation failed) that of a sound
 * image. Coroutine. */
int coroutine_fn qcow2_co_create(const char *path, const struct qcow2_create_options *options,
                                 struct error *err);

/* Names as qemu-img's options have them: "zlib", "metadata", ... -EINVAL for an unknown one. */
int qcow2_compression_parse(const char *name, enum qcow2_compression *value);
int qcow2_preallocation_parse(const char *name, enum qcow2_preallocation *value);
const char *qcow2_compression_name(enum qcow2_compression value);
const char *qcow2_preallocation_name(enum qcow2_preallocation value);

/* ---- what there is to know (qemu-img info) ---- */

struct qcow2_luks_slot {
    bool active;
    uint32_t iterations, stripes;
    uint64_t key_offset;
};

/* Strings live as long as the node is open. */
struct qcow2_info {
    unsigned version; /* 2: compat 0.10, 3: compat 1.1 */
    uint32_t cluster_bytes;
    unsigned refcount_bits;
    bool lazy_refcounts, corrupt, dirty, extended_l2;
    enum qcow2_compression compression_type;
    uint64_t size;              /* virtual, as the header has it */
    const char *backing_file;   /* as stored; NULL: none */
    const char *backing_format; /* NULL: not stored */
    const char *data_file;      /* as stored; NULL: none */
    bool data_file_raw;
    const char *encryption; /* NULL, "aes" or "luks" */
    unsigned nb_snapshots, nb_bitmaps;
    /* for "luks" */
    struct {
        const char *cipher_name, *cipher_mode, *hash, *ivgen, *ivgen_hash, *uuid;
        unsigned cipher_bits;
        uint64_t payload_offset;
        uint32_t master_key_iterations;
        struct qcow2_luks_slot slots[8];
    } luks;
};

/* Any thread. */
int qcow2_info(struct node *node, struct qcow2_info *info);

/* Bitmaps, in the directory's order. *LIST is freed with free(); its strings live as long as the node. */
struct qcow2_bitmap_info {
    const char *name;
    uint64_t granularity;
    bool in_use, auto_load;
};
int coroutine_fn qcow2_co_bitmaps(struct node *node, struct qcow2_bitmap_info **list, size_t *count,
                                  struct error *err);

/* The following copy the bitmaps that are not in_use. A source that is open at a snapshot has those of its
 * disk, if the snapshot is as large. ERR is about SOURCE: not every image has bitmaps, or such that another
 * image can have. Any thread. */
int qcow2_bitmaps_can_go(struct node *source, struct error *err);
/* ERR is about TARGET: it cannot have bitmaps, those of a disk of this size, or so many, or has one of the
 * same name. Any thread. */
int qcow2_bitmaps_fit(struct node *source, struct node *target, struct error *err);
/* Puts them into TARGET as well, where they record or do not record writes from then on, as in SOURCE. After
 * an error TARGET has the bitmaps that it had. Nobody else changes TARGET in another way than by writing
 * guest data. */
int coroutine_fn qcow2_co_copy_bitmaps(struct node *source, struct node *target, struct error *err);

/* ---- check ---- */

#define QCOW2_FIX_LEAKS  1u /* check -r leaks */
#define QCOW2_FIX_ERRORS 2u /* check -r all is both */

struct qcow2_check {
    uint64_t check_errors; /* what could not be looked at */
    uint64_t corruptions, leaks;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end_offset;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
};

/* Compares every refcount with the references that there are, and every entry with the rules. Opened with
 * open_options.check_only. REPORT gets a line for each finding (NULL: nobody). With FIX the image is
 * repaired, then checked again: what is left stands in corruptions and leaks. 0 also when something was
 * found; a negative errno if the check could not be done. */
int coroutine_fn qcow2_co_check(struct node *node, unsigned fix, struct qcow2_check *result,
                                void (*report)(void *opaque, const char *line), void *opaque,
                                struct error *err);

/* ---- internal snapshots ---- */

struct qcow2_snapshot_info {
    const char *id, *name; /* live until the next change of the list, or close */
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t vm_state_bytes;
    uint64_t disk_bytes;
    uint64_t icount; /* UINT64_MAX: not stored */
};

/* In the table's order; *LIST is freed with free(). Any thread, no change running. */
int qcow2_snapshots(struct node *node, struct qcow2_snapshot_info **list, size_t *count);

int coroutine_fn qcow2_co_snapshot_create(struct node *node, const char *name, struct error *err);
/* ID_OR_NAME: an id first, then a name; -ENOENT if neither. */
int coroutine_fn qcow2_co_snapshot_apply(struct node *node, const char *id_or_name, struct error *err);
/* NAME_OR_ID: the other way round, so that what somebody names is never another one that has this for an id.
 */
int coroutine_fn qcow2_co_snapshot_delete(struct node *node, const char *name_or_id, struct error *err);

/* ---- for commit, rebase, resize ---- */

/* Drops all guest data of this layer, so that the backing file shows through. */
int coroutine_fn qcow2_co_make_empty(struct node *node, struct error *err);

/* From now on zeroes are written so that they stay zeroes over another backing file, which is to be named
 * when all is written. */
void qcow2_expect_backing(struct node *node);

/* Rewrites the header's backing file name and format; NULL: none. Nothing is opened or compared. The open
 * node goes on with the backing node that it has. */
int coroutine_fn qcow2_co_change_backing(struct node *node, const char *backing_file,
                                         const char *backing_format, struct error *err);

/* node_co_truncate grows and shrinks (shrinking below the present size drops data). This grows with
 * preallocation. Growing that fails leaves the old size, and gives back what it took; if that fails as well
 * ERR says so. */
int coroutine_fn qcow2_co_grow(struct node *node, uint64_t bytes, enum qcow2_preallocation preallocation,
                               struct error *err);

#endif
