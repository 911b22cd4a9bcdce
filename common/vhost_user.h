/*
 * The vhost-user protocol on the wire: messages, their payloads, feature bits, the inflight region.
 * Hosted only (a socket is needed), native byte order: both ends run on one machine.
 * Used by the server (host/vhost_user) and, written apart from it, by the front end (guest/platform/hosted).
 */
#ifndef RINGSIDE_COMMON_VHOST_USER_H
#define RINGSIDE_COMMON_VHOST_USER_H

#include <stdint.h>

/* Offered among the virtio feature bits: protocol features may be negotiated */
#define VHOST_USER_F_PROTOCOL_FEATURES 30
#define VHOST_F_LOG_ALL                26

#define VHOST_USER_PROTOCOL_F_MQ                      0
#define VHOST_USER_PROTOCOL_F_LOG_SHMFD               1
#define VHOST_USER_PROTOCOL_F_RARP                    2
#define VHOST_USER_PROTOCOL_F_REPLY_ACK               3
#define VHOST_USER_PROTOCOL_F_MTU                     4
#define VHOST_USER_PROTOCOL_F_BACKEND_REQ             5
#define VHOST_USER_PROTOCOL_F_CROSS_ENDIAN            6
#define VHOST_USER_PROTOCOL_F_CRYPTO_SESSION          7
#define VHOST_USER_PROTOCOL_F_PAGEFAULT               8
#define VHOST_USER_PROTOCOL_F_CONFIG                  9
#define VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD         10
#define VHOST_USER_PROTOCOL_F_HOST_NOTIFIER           11
#define VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD          12
#define VHOST_USER_PROTOCOL_F_RESET_DEVICE            13
#define VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS    14
#define VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS     15
#define VHOST_USER_PROTOCOL_F_STATUS                  16
#define VHOST_USER_PROTOCOL_F_XEN_MMAP                17
#define VHOST_USER_PROTOCOL_F_SHARED_OBJECT           18
#define VHOST_USER_PROTOCOL_F_DEVICE_STATE            19
#define VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT 20

/* Front end to back end */
enum vhost_user_request {
    VHOST_USER_GET_FEATURES = 1,
    VHOST_USER_SET_FEATURES = 2,
    VHOST_USER_SET_OWNER = 3,
    VHOST_USER_RESET_OWNER = 4,
    VHOST_USER_SET_MEM_TABLE = 5,
    VHOST_USER_SET_LOG_BASE = 6,
    VHOST_USER_SET_LOG_FD = 7,
    VHOST_USER_SET_VRING_NUM = 8,
    VHOST_USER_SET_VRING_ADDR = 9,
    VHOST_USER_SET_VRING_BASE = 10,
    VHOST_USER_GET_VRING_BASE = 11,
    VHOST_USER_SET_VRING_KICK = 12,
    VHOST_USER_SET_VRING_CALL = 13,
    VHOST_USER_SET_VRING_ERR = 14,
    VHOST_USER_GET_PROTOCOL_FEATURES = 15,
    VHOST_USER_SET_PROTOCOL_FEATURES = 16,
    VHOST_USER_GET_QUEUE_NUM = 17,
    VHOST_USER_SET_VRING_ENABLE = 18,
    VHOST_USER_SEND_RARP = 19,
    VHOST_USER_NET_SET_MTU = 20,
    VHOST_USER_SET_BACKEND_REQ_FD = 21,
    VHOST_USER_IOTLB_MSG = 22,
    VHOST_USER_SET_VRING_ENDIAN = 23,
    VHOST_USER_GET_CONFIG = 24,
    VHOST_USER_SET_CONFIG = 25,
    VHOST_USER_GET_INFLIGHT_FD = 31,
    VHOST_USER_SET_INFLIGHT_FD = 32,
    VHOST_USER_GPU_SET_SOCKET = 33,
    VHOST_USER_RESET_DEVICE = 34,
    VHOST_USER_VRING_KICK = 35,
    VHOST_USER_GET_MAX_MEM_SLOTS = 36,
    VHOST_USER_ADD_MEM_REG = 37,
    VHOST_USER_REM_MEM_REG = 38,
    VHOST_USER_SET_STATUS = 39,
    VHOST_USER_GET_STATUS = 40,
    VHOST_USER_REQUEST_MAX
};

/* Back end to front end, on the channel given by SET_BACKEND_REQ_FD */
enum vhost_user_backend_request {
    VHOST_USER_BACKEND_IOTLB_MSG = 1,
    VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2,
    VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG = 3
};

#define VHOST_USER_VERSION_MASK    0x3u
#define VHOST_USER_VERSION         0x1u
#define VHOST_USER_REPLY_MASK      0x4u
#define VHOST_USER_NEED_REPLY_MASK 0x8u

struct vhost_user_header {
    uint32_t request;
    uint32_t flags;
    uint32_t size; /* of the payload that follows, bytes */
};

#define VHOST_USER_MAX_REGIONS 8u /* of one SET_MEM_TABLE message, hence of its descriptors */

struct vhost_user_memory_region {
    uint64_t guest_addr;
    uint64_t size;
    uint64_t user_addr; /* the front end's address of the region: vring addresses are given in this space */
    uint64_t mmap_offset;
};

struct vhost_user_memory {
    uint32_t num_regions;
    uint32_t padding;
    struct vhost_user_memory_region regions[VHOST_USER_MAX_REGIONS];
};

struct vhost_user_single_region {
    uint64_t padding;
    struct vhost_user_memory_region region;
};

struct vhost_user_log {
    uint64_t mmap_size;
    uint64_t mmap_offset;
};

struct vhost_user_vring_state {
    uint32_t index;
    uint32_t num;
};

#define VHOST_USER_VRING_F_LOG 1u

struct vhost_user_vring_addr {
    uint32_t index;
    uint32_t flags;
    uint64_t desc_user_addr;
    uint64_t used_user_addr;
    uint64_t avail_user_addr;
    uint64_t log_guest_addr;
};

/* SET_VRING_KICK, _CALL and _ERR: the queue's index, and whether a descriptor comes along */
#define VHOST_USER_VRING_IDX_MASK  0xffu
#define VHOST_USER_VRING_NOFD_MASK 0x100u

#define VHOST_USER_CONFIG_BYTES_MAX 256u

struct vhost_user_config {
    uint32_t offset;
    uint32_t size;
    uint32_t flags;
    uint8_t region[VHOST_USER_CONFIG_BYTES_MAX];
};

#define VHOST_USER_CONFIG_HEADER_BYTES 12u

struct vhost_user_inflight {
    uint64_t mmap_size;
    uint64_t mmap_offset;
    uint16_t num_queues;
    uint16_t queue_size;
};

/* A translation of I/O virtual addresses, asked for, given or taken back */
struct vhost_user_iotlb {
    uint64_t iova;
    uint64_t size;
    uint64_t user_addr;
    uint8_t permissions;
    uint8_t type;
    uint8_t padding[6];
};

#define VHOST_USER_IOTLB_READ  1u
#define VHOST_USER_IOTLB_WRITE 2u

#define VHOST_USER_IOTLB_MISS       1u
#define VHOST_USER_IOTLB_UPDATE     2u
#define VHOST_USER_IOTLB_INVALIDATE 3u
#define VHOST_USER_IOTLB_FAIL       4u

_Static_assert(sizeof(struct vhost_user_iotlb) == 32, "vhost-user: IOTLB message");

union vhost_user_payload {
    uint64_t u64;
    struct vhost_user_memory memory;
    struct vhost_user_single_region mem_region;
    struct vhost_user_log log;
    struct vhost_user_vring_state state;
    struct vhost_user_vring_addr addr;
    struct vhost_user_config config;
    struct vhost_user_inflight inflight;
    struct vhost_user_iotlb iotlb;
};

_Static_assert(sizeof(struct vhost_user_header) == 12, "vhost-user: header");
_Static_assert(sizeof(struct vhost_user_vring_addr) == 40, "vhost-user: vring address description");

/* The inflight region of a split queue ("Inflight I/O tracking"). Shared memory, and a stranger's. */
struct vhost_user_inflight_desc_split {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};

struct vhost_user_inflight_split {
    uint64_t features;
    uint16_t version; /* 0: not initialised, 1: this layout */
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct vhost_user_inflight_desc_split desc[];
};

/* The inflight region of a packed queue */
struct vhost_user_inflight_desc_packed {
    uint8_t inflight;
    uint8_t padding;
    uint16_t next;
    uint16_t last;
    uint16_t num;
    uint64_t counter;
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
};

struct vhost_user_inflight_packed {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head;
    uint16_t used_idx;
    uint16_t old_used_idx;
    uint8_t used_wrap_counter;
    uint8_t old_used_wrap_counter;
    uint8_t padding[7];
    struct vhost_user_inflight_desc_packed desc[];
};

_Static_assert(sizeof(struct vhost_user_inflight_split) == 16, "vhost-user: inflight, split");
_Static_assert(sizeof(struct vhost_user_inflight_packed) == 32, "vhost-user: inflight, packed");

#endif
