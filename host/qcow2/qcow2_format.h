/*
 * The qcow2 image format: structures and constants as they lie in the file, and nothing else. All integers
 * are big-endian (checklist A1). Pure declarations; any thread.
 */
#ifndef RINGSIDE_QCOW2_QCOW2_FORMAT_H
#define RINGSIDE_QCOW2_QCOW2_FORMAT_H

#include <stdint.h>

#include "common/endian.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

#define QCOW2_MIN_CLUSTER_BITS       9
#define QCOW2_MAX_CLUSTER_BITS       21
#define QCOW2_EXTL2_MIN_CLUSTER_BITS 14

#define QCOW2_MAX_L1_BYTES             (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES       (8u << 20)
#define QCOW2_MAX_SNAPSHOTS            65536u
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (64u << 20) /* ours: all entries together */
#define QCOW2_MAX_SNAPSHOT_EXTRA       1024u
#define QCOW2_MAX_BACKING_NAME         1023u
#define QCOW2_MAX_BITMAPS              65535u
#define QCOW2_MAX_BITMAP_DIR_BYTES     (64u << 20)
#define QCOW2_MAX_BITMAP_BYTES         (512ull << 20) /* QEMU's */
#define QCOW2_MAX_BITMAP_NAME          1023u
#define QCOW2_V2_HEADER_BYTES          72u
#define QCOW2_V3_HEADER_BYTES          104u

/* Header: bytes 0..71 are version 2, the rest version 3 (checklist B, C). */
struct qcow2_header {
    be32 magic;
    be32 version;
    be64 backing_file_offset;
    be32 backing_file_size;
    be32 cluster_bits;
    be64 size;
    be32 crypt_method;
    be32 l1_size; /* entries */
    be64 l1_table_offset;
    be64 refcount_table_offset;
    be32 refcount_table_clusters;
    be32 nb_snapshots;
    be64 snapshots_offset;
    be64 incompatible_features;
    be64 compatible_features;
    be64 autoclear_features;
    be32 refcount_order;
    be32 header_length;
    uint8_t compression_type; /* present if header_length > 104 */
    uint8_t padding[7];
};
_Static_assert(sizeof(struct qcow2_header) == 112, "qcow2 header");

#define QCOW2_CRYPT_NONE 0u
#define QCOW2_CRYPT_AES  1u
#define QCOW2_CRYPT_LUKS 2u

#define QCOW2_INCOMPAT_DIRTY       (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT     (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTL2       (1ull << 4)
#define QCOW2_INCOMPAT_KNOWN       0x1full

#define QCOW2_COMPAT_LAZY_REFCOUNTS (1ull << 0)

#define QCOW2_AUTOCLEAR_BITMAPS       (1ull << 0)
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW (1ull << 1)
#define QCOW2_AUTOCLEAR_KNOWN         0x3ull

/* Header extensions (checklist D) */
struct qcow2_extension {
    be32 type;
    be32 length; /* of the data that follows; padded to 8 */
};

#define QCOW2_EXT_END            0u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES  0x6803f857u
#define QCOW2_EXT_BITMAPS        0x23852875u
#define QCOW2_EXT_CRYPTO         0x0537be77u
#define QCOW2_EXT_DATA_FILE      0x44415441u

struct qcow2_feature_name {
    uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    char name[46]; /* NUL-padded, not necessarily terminated */
};
_Static_assert(sizeof(struct qcow2_feature_name) == 48, "qcow2 feature name");

struct qcow2_crypto_extension {
    be64 offset;
    be64 length;
};

struct qcow2_bitmaps_extension {
    be32 nb_bitmaps;
    be32 reserved;
    be64 directory_size;
    be64 directory_offset;
};
_Static_assert(sizeof(struct qcow2_bitmaps_extension) == 24, "qcow2 bitmaps extension");

/* Refcount table entry: bits 9..63 the block's offset. */
#define QCOW2_REFTABLE_OFFSET_MASK   0xfffffffffffffe00ull
#define QCOW2_REFTABLE_RESERVED_MASK 0x1ffull

/* L1 entry */
#define QCOW2_L1_OFFSET_MASK   0x00fffffffffffe00ull
#define QCOW2_L1_RESERVED_MASK 0x7f000000000001ffull

/* L2 entry */
#define QCOW2_COPIED           (1ull << 63) /* in L1 entries too */
#define QCOW2_L2_COMPRESSED    (1ull << 62)
#define QCOW2_L2_ZERO          (1ull << 0)
#define QCOW2_L2_OFFSET_MASK   0x00fffffffffffe00ull
#define QCOW2_L2_RESERVED_MASK 0x3f000000000001feull /* standard entries, bit 0 apart */

/* Snapshot table entry (checklist J): followed by extra data, id, name, padding to 8. */
struct qcow2_snapshot_header {
    be64 l1_table_offset;
    be32 l1_size;
    be16 id_size;
    be16 name_size;
    be32 date_sec;
    be32 date_nsec;
    be64 vm_clock_nsec;
    be32 vm_state_size;
    be32 extra_data_size;
};
_Static_assert(sizeof(struct qcow2_snapshot_header) == 40, "qcow2 snapshot header");

struct qcow2_snapshot_extra {
    be64 vm_state_size_large;
    be64 disk_size;
    be64 icount;
};

/* Bitmap directory entry (checklist K): followed by extra data, name, padding to 8. */
struct qcow2_bitmap_header {
    be64 table_offset;
    be32 table_size; /* entries */
    be32 flags;
    uint8_t type; /* 1: dirty tracking */
    uint8_t granularity_bits;
    be16 name_size;
    be32 extra_data_size;
};
_Static_assert(sizeof(struct qcow2_bitmap_header) == 24, "qcow2 bitmap directory entry");

#define QCOW2_BITMAP_IN_USE                (1u << 0)
#define QCOW2_BITMAP_AUTO                  (1u << 1)
#define QCOW2_BITMAP_EXTRA_DATA_COMPATIBLE (1u << 2)
#define QCOW2_BITMAP_TYPE_DIRTY            1u

/* Bitmap table entry */
#define QCOW2_BITMAP_OFFSET_MASK   0x00fffffffffffe00ull
#define QCOW2_BITMAP_RESERVED_MASK 0xff000000000001feull
#define QCOW2_BITMAP_ALL_ONES      1ull

#endif
