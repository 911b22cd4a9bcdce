/*
 * virtio 1.4: device status (2.1), reserved feature bits (6), and the transports' shared words.
 * The wire only: what a driver and a device that never met must agree on. Freestanding.
 */
#ifndef RINGSIDE_COMMON_VIRTIO_H
#define RINGSIDE_COMMON_VIRTIO_H

/* 2.1 Device Status Field */
#define VIRTIO_STATUS_ACKNOWLEDGE        1u
#define VIRTIO_STATUS_DRIVER             2u
#define VIRTIO_STATUS_DRIVER_OK          4u
#define VIRTIO_STATUS_FEATURES_OK        8u
#define VIRTIO_STATUS_SUSPEND            16u
#define VIRTIO_STATUS_DEVICE_NEEDS_RESET 64u
#define VIRTIO_STATUS_FAILED             128u

/* 6 Reserved Feature Bits, by number */
#define VIRTIO_F_NOTIFY_ON_EMPTY   24 /* legacy */
#define VIRTIO_F_ANY_LAYOUT        27 /* legacy */
#define VIRTIO_F_INDIRECT_DESC     28
#define VIRTIO_F_EVENT_IDX         29
#define VIRTIO_F_VERSION_1         32
#define VIRTIO_F_ACCESS_PLATFORM   33
#define VIRTIO_F_RING_PACKED       34
#define VIRTIO_F_IN_ORDER          35
#define VIRTIO_F_ORDER_PLATFORM    36
#define VIRTIO_F_SR_IOV            37
#define VIRTIO_F_NOTIFICATION_DATA 38
#define VIRTIO_F_NOTIF_CONFIG_DATA 39
#define VIRTIO_F_RING_RESET        40
#define VIRTIO_F_ADMIN_VQ          41
#define VIRTIO_F_SUSPEND           43

#define VIRTIO_BIT(n) (1ull << (n))

/* 5 Device Types */
#define VIRTIO_ID_BLOCK 2u

/* 2.6: no queue is larger than this, whatever its format */
#define VIRTQUEUE_MAX_SIZE 32768u

#endif
