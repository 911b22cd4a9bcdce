/* Rules of chapters 2.1 to 2.5 and 5.2.3 to 5.2.5: features, configuration, initialisation. See conform.h. */
#include <errno.h>
#include <string.h>

#include "tests/harness/conform.h"
#include "tests/harness/names.h"

static bool has(const struct conform *c, unsigned bit)
{
    return c->offered & VIRTIO_BIT(bit);
}

static enum verdict version_1_offered(struct conform *c)
{
    return has(c, VIRTIO_F_VERSION_1) ? VERDICT_PASS : conform_fail(c, "VERSION_1 is not offered");
}

static enum verdict no_reserved_bits(struct conform *c)
{
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!has(c, bit))
            continue;
        if (!name_of_feature(bit))
            return conform_fail(c, "bit %u is offered, which means nothing for a block device", bit);
        if (bit == VIRTIO_F_SR_IOV || bit == VIRTIO_F_ADMIN_VQ || bit == VIRTIO_F_NOTIF_CONFIG_DATA)
            return conform_fail(c, "%s is offered, which is for PCI only", name_of_feature(bit));
    }
    return VERDICT_PASS;
}

static enum verdict dependencies(struct conform *c)
{
    if (has(c, VIRTIO_BLK_F_CONFIG_WCE) && !has(c, VIRTIO_BLK_F_FLUSH))
        return conform_fail(c, "CONFIG_WCE without FLUSH");
    if (has(c, VIRTIO_BLK_F_ZONED) && has(c, VIRTIO_BLK_F_DISCARD)) {
        if (!conform_open(c, 0))
            return VERDICT_FAIL;
        if (c->bed.config.zoned.model == VIRTIO_BLK_Z_HM)
            return conform_fail(c, "DISCARD on a host-managed zoned disk (5.2.3)");
    }
    return VERDICT_PASS;
}

static enum verdict reads_a_sector(struct conform *c)
{
    uint8_t sector[512] = {0};
    int code;

    if (c->bed.capacity == 0)
        return VERDICT_PASS;
    if (le32_get(c->bed.config.blk_size) > sizeof(sector) &&
        (c->bed.accepted & VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE)))
        return VERDICT_PASS;
    code = bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, 0, sector, sizeof(sector), true, NULL);
    return code == VIRTIO_BLK_S_OK ? VERDICT_PASS
                                   : conform_fail(c, "a read ended with %s", conform_status(code));
}

static enum verdict any_subset(struct conform *c)
{
    for (unsigned bit = 0; bit < 64; bit++) {
        char what[200];

        if (!has(c, bit) || bit == VIRTIO_F_VERSION_1 || bit == VIRTIO_F_RING_PACKED ||
            bit == VIRTIO_F_ACCESS_PLATFORM)
            continue;
        if (conform_open(c, c->offered & ~VIRTIO_BIT(bit) & CONFORM_ALL_FEATURES) &&
            reads_a_sector(c) == VERDICT_PASS)
            continue;
        memcpy(what, c->why, sizeof(what) - 1);
        what[sizeof(what) - 1] = '\0';
        return conform_fail(c, "without %s: %s", name_of_feature(bit) ? name_of_feature(bit) : "a bit", what);
    }
    return VERDICT_PASS;
}

static enum verdict nothing_but_version_1(struct conform *c)
{
    return conform_open(c, 0) ? reads_a_sector(c) : VERDICT_FAIL;
}

static enum verdict same_set_again(struct conform *c)
{
    for (unsigned i = 0; i < 20; i++)
        if (!conform_open(c, CONFORM_ALL_FEATURES) || reads_a_sector(c) != VERDICT_PASS)
            return VERDICT_FAIL;
    return VERDICT_PASS;
}

static enum verdict refuses_bits_not_offered(struct conform *c)
{
    uint64_t own = VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES), status;
    int code;

    if (!conform_open_options(c, (struct bed_options){.no_memory = true}))
        return VERDICT_FAIL;
    if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK)))
        return conform_na(c, "no REPLY_ACK: a refusal could not be seen");
    code = vhost_user_front_set_u64(&c->bed.front, VHOST_USER_SET_FEATURES,
                                    c->bed.accepted | (c->bed.transport_bits & own) | VIRTIO_BIT(60), -1);
    if (code < 0)
        return VERDICT_PASS;
    if ((c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_STATUS)) &&
        vhost_user_front_set_u64(&c->bed.front, VHOST_USER_SET_STATUS, 11, -1) == 0 &&
        vhost_user_front_get_u64(&c->bed.front, VHOST_USER_GET_STATUS, &status) == 0 &&
        !(status & VIRTIO_STATUS_FEATURES_OK))
        return VERDICT_PASS;
    return conform_fail(c, "bit 60, never offered, was accepted");
}

static enum verdict config_before_features(struct conform *c)
{
    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIG)))
        return conform_na(c, "no CONFIG");
    /* bed_open read it before SET_FEATURES; now it must still say the same. */
    struct vhost_user_config want = {.size = 24}, got = {0};
    int code = vhost_user_front_call(&c->bed.front, VHOST_USER_GET_CONFIG, &want,
                                     VHOST_USER_CONFIG_HEADER_BYTES + want.size, &got, sizeof(got), NULL);

    if (code < 0 || memcmp(got.region, &c->bed.config, want.size) != 0)
        return conform_fail(c, "configuration differs before and after features were accepted");
    return VERDICT_PASS;
}

static enum verdict limits_make_sense(struct conform *c)
{
    const struct virtio_blk_config *config = &c->bed.config;
    uint32_t block;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    block = le32_get(config->blk_size);
    if (has(c, VIRTIO_BLK_F_BLK_SIZE) && (block < 512 || (block & (block - 1))))
        return conform_fail(c, "blk_size is %u", block);
    if (has(c, VIRTIO_BLK_F_SEG_MAX) && !le32_get(config->seg_max))
        return conform_fail(c, "SEG_MAX is offered and seg_max is 0");
    if (has(c, VIRTIO_BLK_F_SIZE_MAX) && !le32_get(config->size_max))
        return conform_fail(c, "SIZE_MAX is offered and size_max is 0");
    if (has(c, VIRTIO_BLK_F_MQ) && !le16_get(config->num_queues))
        return conform_fail(c, "MQ is offered and num_queues is 0");
    if (has(c, VIRTIO_BLK_F_TOPOLOGY) && config->topology.physical_block_exp > 16)
        return conform_fail(c, "physical_block_exp is %u", config->topology.physical_block_exp);
    if (has(c, VIRTIO_BLK_F_CONFIG_WCE) && config->writeback > 1)
        return conform_fail(c, "writeback is %u", config->writeback);
    return VERDICT_PASS;
}

static enum verdict range_limits(struct conform *c)
{
    const struct virtio_blk_config *config = &c->bed.config;

    if (!has(c, VIRTIO_BLK_F_DISCARD) && !has(c, VIRTIO_BLK_F_WRITE_ZEROES) &&
        !has(c, VIRTIO_BLK_F_SECURE_ERASE))
        return conform_na(c, "no discard, write zeroes or secure erase");
    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    if (has(c, VIRTIO_BLK_F_DISCARD) &&
        (!le32_get(config->max_discard_sectors) || !le32_get(config->max_discard_seg)))
        return conform_fail(c, "DISCARD is offered with a limit of 0");
    if (has(c, VIRTIO_BLK_F_WRITE_ZEROES) &&
        (!le32_get(config->max_write_zeroes_sectors) || !le32_get(config->max_write_zeroes_seg)))
        return conform_fail(c, "WRITE_ZEROES is offered with a limit of 0");
    if (has(c, VIRTIO_BLK_F_WRITE_ZEROES) && config->write_zeroes_may_unmap > 1)
        return conform_fail(c, "write_zeroes_may_unmap is %u", config->write_zeroes_may_unmap);
    if (has(c, VIRTIO_BLK_F_SECURE_ERASE) &&
        (!le32_get(config->max_secure_erase_sectors) || !le32_get(config->max_secure_erase_seg)))
        return conform_fail(c, "SECURE_ERASE is offered with a limit of 0");
    return VERDICT_PASS;
}

static int write_config(struct conform *c, unsigned offset, const void *bytes, unsigned count)
{
    struct vhost_user_config config = {.offset = offset, .size = count};

    memcpy(config.region, bytes, count);
    return vhost_user_front_set(&c->bed.front, VHOST_USER_SET_CONFIG, &config,
                                VHOST_USER_CONFIG_HEADER_BYTES + count, NULL, 0);
}

static int read_config(struct conform *c, struct virtio_blk_config *config)
{
    struct vhost_user_config want = {.size = 60}, got = {0};
    int code = vhost_user_front_call(&c->bed.front, VHOST_USER_GET_CONFIG, &want,
                                     VHOST_USER_CONFIG_HEADER_BYTES + want.size, &got, sizeof(got), NULL);

    memcpy(config, got.region, want.size);
    return code < 0 ? code : 0;
}

static enum verdict cache_mode_switches(struct conform *c)
{
    struct virtio_blk_config config = {0};

    if (!has(c, VIRTIO_BLK_F_CONFIG_WCE))
        return conform_na(c, "no CONFIG_WCE");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (uint8_t mode = 0; mode < 2; mode++) {
        if (write_config(c, offsetof(struct virtio_blk_config, writeback), &mode, 1) < 0)
            return conform_fail(c, "writing writeback = %u was refused", mode);
        if (read_config(c, &config) < 0 || config.writeback != mode)
            return conform_fail(c, "writeback reads %u after %u was written", config.writeback, mode);
    }
    return VERDICT_PASS;
}

static enum verdict capacity_not_writable(struct conform *c)
{
    uint64_t other = 8;
    struct virtio_blk_config config = {0};

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    if (!(c->bed.protocol & VIRTIO_BIT(VHOST_USER_PROTOCOL_F_CONFIG)))
        return conform_na(c, "no CONFIG");
    write_config(c, 0, &other, sizeof(other));
    if (!bed_alive(&c->bed) && !conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    if (read_config(c, &config) < 0 || le64_get(config.capacity) != c->bed.capacity)
        return conform_fail(c, "the capacity was changed by the driver");
    return VERDICT_PASS;
}

/* clang-format off */
const struct conform_rule conform_general_rules[] = {
    {"6.2", "17", "VERSION_1 is offered", 0, version_1_offered},
    {"2.2.2", "17", "no reserved bit and none of another transport is offered", 0, no_reserved_bits},
    {"2.2.2", "15", "a feature is offered only with those it needs", 0, dependencies},
    {"2.2.2", "16", "any feature may be left out", RULE_RING, any_subset},
    {"2.2.2", "16", "works with VERSION_1 alone", 0, nothing_but_version_1},
    {"2.2.2", "18", "the same features are accepted again after a new start", 0, same_set_again},
    {"2.2.2", "19", "a bit that was not offered is not accepted", 0, refuses_bits_not_offered},
    {"2.5.2", "30", "configuration can be read before features are accepted", 0, config_before_features},
    {"5.2.4", "", "configuration fields hold sensible values", 0, limits_make_sense},
    {"5.2.5", "", "limits of discard, write zeroes and secure erase are not 0", 0, range_limits},
    {"5.2.5", "", "writeback can be switched both ways", 0, cache_mode_switches},
    {"5.2.5", "D5", "a write to a read-only field changes nothing", 0, capacity_not_writable},
    {0},
};
/* clang-format on */
