/*
 * The block device on the wire (virtio 1.4, 5.2): feature bits, configuration, requests, status.
 * A sector is always 512 bytes here, whatever blk_size says (5.2.4). Freestanding.
 */
#ifndef RINGSIDE_COMMON_VIRTIO_BLK_H
#define RINGSIDE_COMMON_VIRTIO_BLK_H

#include <stddef.h>

#include "common/endian.h"

#define VIRTIO_BLK_SECTOR_BYTES 512u

/* 5.2.3 Feature bits, by number */
#define VIRTIO_BLK_F_SIZE_MAX     1
#define VIRTIO_BLK_F_SEG_MAX      2
#define VIRTIO_BLK_F_GEOMETRY     4
#define VIRTIO_BLK_F_RO           5
#define VIRTIO_BLK_F_BLK_SIZE     6
#define VIRTIO_BLK_F_FLUSH        9
#define VIRTIO_BLK_F_TOPOLOGY     10
#define VIRTIO_BLK_F_CONFIG_WCE   11
#define VIRTIO_BLK_F_MQ           12
#define VIRTIO_BLK_F_DISCARD      13
#define VIRTIO_BLK_F_WRITE_ZEROES 14
#define VIRTIO_BLK_F_LIFETIME     15
#define VIRTIO_BLK_F_SECURE_ERASE 16
#define VIRTIO_BLK_F_ZONED        17

/* 5.2.4 Device configuration layout. Limits and capacity count sectors of 512 bytes. */
struct virtio_blk_config {
    le64 capacity;
    le32 size_max;
    le32 seg_max;
    struct {
        le16 cylinders;
        uint8_t heads;
        uint8_t sectors;
    } geometry;
    le32 blk_size;
    struct {
        uint8_t physical_block_exp;
        uint8_t alignment_offset;
        le16 min_io_size;
        le32 opt_io_size;
    } topology;
    uint8_t writeback;
    uint8_t unused0;
    le16 num_queues;
    le32 max_discard_sectors;
    le32 max_discard_seg;
    le32 discard_sector_alignment;
    le32 max_write_zeroes_sectors;
    le32 max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
    le32 max_secure_erase_sectors;
    le32 max_secure_erase_seg;
    le32 secure_erase_sector_alignment;
    struct {
        le32 zone_sectors;
        le32 max_open_zones;
        le32 max_active_zones;
        le32 max_append_sectors;
        le32 write_granularity; /* bytes */
        uint8_t model;
        uint8_t unused2[3];
    } zoned;
};

_Static_assert(offsetof(struct virtio_blk_config, geometry) == 16, "5.2.4");
_Static_assert(offsetof(struct virtio_blk_config, blk_size) == 20, "5.2.4");
_Static_assert(offsetof(struct virtio_blk_config, writeback) == 32, "5.2.4");
_Static_assert(offsetof(struct virtio_blk_config, num_queues) == 34, "5.2.4");
_Static_assert(offsetof(struct virtio_blk_config, max_write_zeroes_sectors) == 48, "5.2.4");
_Static_assert(offsetof(struct virtio_blk_config, max_secure_erase_sectors) == 60, "5.2.4");
_Static_assert(offsetof(struct virtio_blk_config, zoned) == 72, "5.2.4");
_Static_assert(sizeof(struct virtio_blk_config) == 96, "5.2.4");

/* 5.2.6 Request types */
#define VIRTIO_BLK_T_IN             0u
#define VIRTIO_BLK_T_OUT            1u
#define VIRTIO_BLK_T_FLUSH          4u
#define VIRTIO_BLK_T_GET_ID         8u
#define VIRTIO_BLK_T_GET_LIFETIME   10u
#define VIRTIO_BLK_T_DISCARD        11u
#define VIRTIO_BLK_T_WRITE_ZEROES   13u
#define VIRTIO_BLK_T_SECURE_ERASE   14u
#define VIRTIO_BLK_T_ZONE_APPEND    15u
#define VIRTIO_BLK_T_ZONE_REPORT    16u
#define VIRTIO_BLK_T_ZONE_OPEN      18u
#define VIRTIO_BLK_T_ZONE_CLOSE     20u
#define VIRTIO_BLK_T_ZONE_FINISH    22u
#define VIRTIO_BLK_T_ZONE_RESET     24u
#define VIRTIO_BLK_T_ZONE_RESET_ALL 26u

/* 5.2.6 Status byte */
#define VIRTIO_BLK_S_OK                   0u
#define VIRTIO_BLK_S_IOERR                1u
#define VIRTIO_BLK_S_UNSUPP               2u
#define VIRTIO_BLK_S_ZONE_INVALID_CMD     3u
#define VIRTIO_BLK_S_ZONE_UNALIGNED_WP    4u
#define VIRTIO_BLK_S_ZONE_OPEN_RESOURCE   5u
#define VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE 6u

#define VIRTIO_BLK_ID_BYTES 20u

/* The part of a request that the device reads first (5.2.6); the status byte is the last one it writes. */
struct virtio_blk_req_header {
    le32 type;
    le32 reserved;
    le64 sector;
};

#define VIRTIO_BLK_RANGE_F_UNMAP 1u

/* A segment of DISCARD, WRITE_ZEROES and SECURE_ERASE */
struct virtio_blk_range {
    le64 sector;
    le32 num_sectors;
    le32 flags;
};

_Static_assert(sizeof(struct virtio_blk_req_header) == 16, "5.2.6");
_Static_assert(sizeof(struct virtio_blk_range) == 16, "5.2.6");

/* GET_LIFETIME's data (5.2.6) */
struct virtio_blk_lifetime {
    le16 pre_eol_info;
    le16 device_lifetime_est_typ_a;
    le16 device_lifetime_est_typ_b;
};

/* Zoned models (5.2.4) */
#define VIRTIO_BLK_Z_NONE 0u
#define VIRTIO_BLK_Z_HM   1u
#define VIRTIO_BLK_Z_HA   2u

/* Zone types and states (5.2.6) */
#define VIRTIO_BLK_ZT_CONV    1u
#define VIRTIO_BLK_ZT_SWR     2u
#define VIRTIO_BLK_ZT_SWP     3u
#define VIRTIO_BLK_ZS_NOT_WP  0u
#define VIRTIO_BLK_ZS_EMPTY   1u
#define VIRTIO_BLK_ZS_IOPEN   2u
#define VIRTIO_BLK_ZS_EOPEN   3u
#define VIRTIO_BLK_ZS_CLOSED  4u
#define VIRTIO_BLK_ZS_RDONLY  13u
#define VIRTIO_BLK_ZS_FULL    14u
#define VIRTIO_BLK_ZS_OFFLINE 15u

struct virtio_blk_zone_descriptor {
    le64 z_cap;
    le64 z_start;
    le64 z_wp;
    uint8_t z_type;
    uint8_t z_state;
    uint8_t reserved[38];
};

struct virtio_blk_zone_report {
    le64 nr_zones;
    uint8_t reserved[56];
};

_Static_assert(sizeof(struct virtio_blk_zone_descriptor) == 64, "5.2.6");
_Static_assert(sizeof(struct virtio_blk_zone_report) == 64, "5.2.6");

#endif
