/*
 * Names of feature bits (virtio 1.4, 5.2.3 and 6) and sizes in units people use.
 */
#include "guest/apps/common_names.h"

#include <stdio.h>
#include <string.h>

#include "common/virtio.h"
#include "common/virtio_blk.h"

static const struct {
    unsigned bit;
    const char *name;
} features[] = {
    {VIRTIO_BLK_F_SIZE_MAX, "SIZE_MAX"},
    {VIRTIO_BLK_F_SEG_MAX, "SEG_MAX"},
    {VIRTIO_BLK_F_GEOMETRY, "GEOMETRY"},
    {VIRTIO_BLK_F_RO, "RO"},
    {VIRTIO_BLK_F_BLK_SIZE, "BLK_SIZE"},
    {VIRTIO_BLK_F_FLUSH, "FLUSH"},
    {VIRTIO_BLK_F_TOPOLOGY, "TOPOLOGY"},
    {VIRTIO_BLK_F_CONFIG_WCE, "CONFIG_WCE"},
    {VIRTIO_BLK_F_MQ, "MQ"},
    {VIRTIO_BLK_F_DISCARD, "DISCARD"},
    {VIRTIO_BLK_F_WRITE_ZEROES, "WRITE_ZEROES"},
    {VIRTIO_BLK_F_LIFETIME, "LIFETIME"},
    {VIRTIO_BLK_F_SECURE_ERASE, "SECURE_ERASE"},
    {VIRTIO_BLK_F_ZONED, "ZONED"},
    {VIRTIO_F_NOTIFY_ON_EMPTY, "NOTIFY_ON_EMPTY"},
    {VIRTIO_F_ANY_LAYOUT, "ANY_LAYOUT"},
    {VIRTIO_F_INDIRECT_DESC, "INDIRECT_DESC"},
    {VIRTIO_F_EVENT_IDX, "EVENT_IDX"},
    {VIRTIO_F_VERSION_1, "VERSION_1"},
    {VIRTIO_F_ACCESS_PLATFORM, "ACCESS_PLATFORM"},
    {VIRTIO_F_RING_PACKED, "RING_PACKED"},
    {VIRTIO_F_IN_ORDER, "IN_ORDER"},
    {VIRTIO_F_ORDER_PLATFORM, "ORDER_PLATFORM"},
    {VIRTIO_F_SR_IOV, "SR_IOV"},
    {VIRTIO_F_NOTIFICATION_DATA, "NOTIFICATION_DATA"},
    {VIRTIO_F_NOTIF_CONFIG_DATA, "NOTIF_CONFIG_DATA"},
    {VIRTIO_F_RING_RESET, "RING_RESET"},
    {VIRTIO_F_ADMIN_VQ, "ADMIN_VQ"},
    {VIRTIO_F_SUSPEND, "SUSPEND"},
};

const char *feature_name(unsigned bit)
{
    for (unsigned i = 0; i < sizeof features / sizeof features[0]; i++) {
        if (features[i].bit == bit)
            return features[i].name;
    }
    return NULL;
}

void feature_list(uint64_t set, char *text, unsigned bytes)
{
    unsigned at = 0;
    text[0] = '\0';
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(set >> bit & 1))
            continue;
        const char *name = feature_name(bit);
        int n = name ? snprintf(text + at, bytes - at, " %s", name)
                     : snprintf(text + at, bytes - at, " bit%u", bit);
        if (n < 0 || (unsigned)n >= bytes - at)
            return;
        at += (unsigned)n;
    }
}

void size_text(uint64_t size_bytes, char text[24])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    unsigned unit = 0;
    while (unit < 5 && size_bytes >= 1024 && size_bytes % 1024 == 0) {
        size_bytes /= 1024;
        unit++;
    }
    snprintf(text, 24, "%llu %s", (unsigned long long)size_bytes, units[unit]);
}
