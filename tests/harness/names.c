/* Names of numbers on the wire: see names.h. */
#include "tests/harness/names.h"

#include <stddef.h>

#include "common/vhost_user.h"
#include "common/virtio.h"
#include "common/virtio_blk.h"

#define NAME(prefix, name) [prefix##name] = #name

const char *name_of_feature(unsigned bit)
{
    static const char *const names[64] = {
        NAME(VIRTIO_BLK_F_, SIZE_MAX),
        NAME(VIRTIO_BLK_F_, SEG_MAX),
        NAME(VIRTIO_BLK_F_, GEOMETRY),
        NAME(VIRTIO_BLK_F_, RO),
        NAME(VIRTIO_BLK_F_, BLK_SIZE),
        NAME(VIRTIO_BLK_F_, FLUSH),
        NAME(VIRTIO_BLK_F_, TOPOLOGY),
        NAME(VIRTIO_BLK_F_, CONFIG_WCE),
        NAME(VIRTIO_BLK_F_, MQ),
        NAME(VIRTIO_BLK_F_, DISCARD),
        NAME(VIRTIO_BLK_F_, WRITE_ZEROES),
        NAME(VIRTIO_BLK_F_, LIFETIME),
        NAME(VIRTIO_BLK_F_, SECURE_ERASE),
        NAME(VIRTIO_BLK_F_, ZONED),
        NAME(VIRTIO_F_, NOTIFY_ON_EMPTY),
        NAME(VIRTIO_F_, ANY_LAYOUT),
        NAME(VIRTIO_F_, INDIRECT_DESC),
        NAME(VIRTIO_F_, EVENT_IDX),
        NAME(VIRTIO_F_, VERSION_1),
        NAME(VIRTIO_F_, ACCESS_PLATFORM),
        NAME(VIRTIO_F_, RING_PACKED),
        NAME(VIRTIO_F_, IN_ORDER),
        NAME(VIRTIO_F_, ORDER_PLATFORM),
        NAME(VIRTIO_F_, SR_IOV),
        NAME(VIRTIO_F_, NOTIFICATION_DATA),
        NAME(VIRTIO_F_, NOTIF_CONFIG_DATA),
        NAME(VIRTIO_F_, RING_RESET),
        NAME(VIRTIO_F_, ADMIN_VQ),
        NAME(VIRTIO_F_, SUSPEND),
    };

    return bit < 64 ? names[bit] : NULL;
}

const char *name_of_protocol_feature(unsigned bit)
{
    static const char *const names[] = {
        NAME(VHOST_USER_PROTOCOL_F_, MQ),
        NAME(VHOST_USER_PROTOCOL_F_, LOG_SHMFD),
        NAME(VHOST_USER_PROTOCOL_F_, RARP),
        NAME(VHOST_USER_PROTOCOL_F_, REPLY_ACK),
        NAME(VHOST_USER_PROTOCOL_F_, MTU),
        NAME(VHOST_USER_PROTOCOL_F_, BACKEND_REQ),
        NAME(VHOST_USER_PROTOCOL_F_, CROSS_ENDIAN),
        NAME(VHOST_USER_PROTOCOL_F_, CRYPTO_SESSION),
        NAME(VHOST_USER_PROTOCOL_F_, PAGEFAULT),
        NAME(VHOST_USER_PROTOCOL_F_, CONFIG),
        NAME(VHOST_USER_PROTOCOL_F_, BACKEND_SEND_FD),
        NAME(VHOST_USER_PROTOCOL_F_, HOST_NOTIFIER),
        NAME(VHOST_USER_PROTOCOL_F_, INFLIGHT_SHMFD),
        NAME(VHOST_USER_PROTOCOL_F_, RESET_DEVICE),
        NAME(VHOST_USER_PROTOCOL_F_, INBAND_NOTIFICATIONS),
        NAME(VHOST_USER_PROTOCOL_F_, CONFIGURE_MEM_SLOTS),
        NAME(VHOST_USER_PROTOCOL_F_, STATUS),
        NAME(VHOST_USER_PROTOCOL_F_, XEN_MMAP),
        NAME(VHOST_USER_PROTOCOL_F_, SHARED_OBJECT),
        NAME(VHOST_USER_PROTOCOL_F_, DEVICE_STATE),
        NAME(VHOST_USER_PROTOCOL_F_, GET_VRING_BASE_INFLIGHT),
    };

    return bit < sizeof(names) / sizeof(names[0]) ? names[bit] : NULL;
}

const char *name_of_op(enum vblk_op op)
{
    static const char *const names[] = {
        [VBLK_READ] = "read",
        [VBLK_WRITE] = "write",
        [VBLK_FLUSH] = "flush",
        [VBLK_DISCARD] = "discard",
        [VBLK_WRITE_ZEROES] = "write-zeroes",
        [VBLK_SECURE_ERASE] = "secure-erase",
        [VBLK_GET_ID] = "get-id",
        [VBLK_GET_LIFETIME] = "get-lifetime",
        [VBLK_ZONE_REPORT] = "zone-report",
        [VBLK_ZONE_OPEN] = "zone-open",
        [VBLK_ZONE_CLOSE] = "zone-close",
        [VBLK_ZONE_FINISH] = "zone-finish",
        [VBLK_ZONE_RESET] = "zone-reset",
        [VBLK_ZONE_RESET_ALL] = "zone-reset-all",
        [VBLK_ZONE_APPEND] = "zone-append",
    };

    return (unsigned)op < sizeof(names) / sizeof(names[0]) ? names[op] : "?";
}

const char *name_of_error(int result)
{
    switch (-result) {
    case 0:
        return "success";
    case VBLK_EIO:
        return "I/O error";
    case VBLK_EAGAIN:
        return "no room now";
    case VBLK_ENOMEM:
        return "no memory";
    case VBLK_EBUSY:
        return "busy";
    case VBLK_ENODEV:
        return "the disk has failed or gone";
    case VBLK_EINVAL:
        return "not a valid request";
    case VBLK_EROFS:
        return "read-only disk";
    case VBLK_ERANGE:
        return "beyond the capacity";
    case VBLK_ENOTSUP:
        return "not supported by the device";
    case VBLK_ETIMEDOUT:
        return "not answered in time";
    default:
        return "unknown error";
    }
}
