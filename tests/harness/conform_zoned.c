/* Rules of zoned disks (5.2.6, host-managed): reports, states, the write pointer, append. See conform.h. */
#include <errno.h>
#include <string.h>

#include "tests/harness/conform.h"

#define ZONES_MAX 64u
#define WRITE     4096u

struct zones {
    unsigned count;
    struct virtio_blk_zone_descriptor zone[ZONES_MAX];
};

static int command(struct conform *c, uint32_t type, uint64_t sector)
{
    return bed_request(&c->bed, 0, type, sector, NULL, 0, false, NULL);
}

static int report(struct conform *c, struct zones *zones)
{
    static uint8_t buf[64 * (ZONES_MAX + 1)];
    int code = bed_request(&c->bed, 0, VIRTIO_BLK_T_ZONE_REPORT, 0, buf, sizeof(buf), true, NULL);
    struct virtio_blk_zone_report head;

    zones->count = 0;
    if (code != 0)
        return code;
    memcpy(&head, buf, sizeof(head));
    if (le64_get(head.nr_zones) > ZONES_MAX)
        return -EPROTO;
    zones->count = (unsigned)le64_get(head.nr_zones);
    memcpy(zones->zone, buf + sizeof(head), zones->count * sizeof(zones->zone[0]));
    return 0;
}

/* A connection, all zones emptied, and where they are. */
static bool begin(struct conform *c, struct zones *zones, enum verdict *verdict)
{
    int code;

    *verdict = VERDICT_FAIL;
    if (!(c->offered & VIRTIO_BIT(VIRTIO_BLK_F_ZONED))) {
        *verdict = conform_na(c, "no ZONED");
        return false;
    }
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return false;
    code = command(c, VIRTIO_BLK_T_ZONE_RESET_ALL, 0);
    if (code != 0) {
        conform_fail(c, "ZONE_RESET_ALL: %s", conform_status(code));
        return false;
    }
    code = report(c, zones);
    if (code != 0)
        conform_fail(c, "ZONE_REPORT: %s", conform_status(code));
    return code == 0;
}

static const struct virtio_blk_zone_descriptor *find(const struct zones *zones, uint8_t type, unsigned skip)
{
    for (unsigned i = 0; i < zones->count; i++)
        if (zones->zone[i].z_type == type && !skip--)
            return &zones->zone[i];
    return NULL;
}

static uint64_t start_of(const struct virtio_blk_zone_descriptor *zone)
{
    return le64_get(zone->z_start);
}

static enum verdict expect(struct conform *c, const char *what, int code, int wanted)
{
    return code == wanted ? VERDICT_PASS
                          : conform_fail(c, "%s: %s, not status %d", what, conform_status(code), wanted);
}

static int write_at(struct conform *c, uint64_t sector, uint32_t bytes)
{
    static uint8_t data[65536];

    memset(data, 0x29, sizeof(data));
    return bed_request(&c->bed, 0, VIRTIO_BLK_T_OUT, sector, data, bytes, false, NULL);
}

static int state_of(struct conform *c, uint64_t start, uint64_t *wp)
{
    struct zones zones;

    if (report(c, &zones) != 0)
        return -1;
    for (unsigned i = 0; i < zones.count; i++)
        if (start_of(&zones.zone[i]) == start) {
            if (wp)
                *wp = le64_get(zones.zone[i].z_wp);
            return zones.zone[i].z_state;
        }
    return -1;
}

static enum verdict report_is_sound(struct conform *c)
{
    static const uint8_t nothing[38];
    uint32_t size = 0;
    struct zones zones;
    enum verdict verdict;

    if (!begin(c, &zones, &verdict))
        return verdict;
    size = le32_get(c->bed.config.zoned.zone_sectors);
    if (!size || !zones.count)
        return conform_fail(c, "zones of %u sectors, %u of them", size, zones.count);
    for (unsigned i = 0; i < zones.count; i++) {
        const struct virtio_blk_zone_descriptor *zone = &zones.zone[i];
        bool conventional = zone->z_type == VIRTIO_BLK_ZT_CONV;

        if (start_of(zone) != (uint64_t)i * size || le64_get(zone->z_cap) > size)
            return conform_fail(c, "zone %u begins at %llu, capacity %llu", i,
                                (unsigned long long)start_of(zone),
                                (unsigned long long)le64_get(zone->z_cap));
        if (zone->z_type < VIRTIO_BLK_ZT_CONV || zone->z_type > VIRTIO_BLK_ZT_SWP)
            return conform_fail(c, "zone %u has type %u", i, zone->z_type);
        if (conventional != (zone->z_state == VIRTIO_BLK_ZS_NOT_WP))
            return conform_fail(c, "zone %u has type %u and state %u", i, zone->z_type, zone->z_state);
        if (memcmp(zone->reserved, nothing, sizeof(nothing)) != 0)
            return conform_fail(c, "reserved bytes of zone %u are not 0", i);
    }
    return VERDICT_PASS;
}

static enum verdict report_fits(struct conform *c)
{
    static const struct {
        uint32_t bytes, zones;
    } cases[] = {{64, 0}, {65, 0}, {127, 0}, {128, 1}, {191, 1}, {192, 2}};
    struct zones zones;
    enum verdict verdict;

    if (!begin(c, &zones, &verdict))
        return verdict;
    for (unsigned i = 0; i < 6; i++) {
        struct virtio_blk_zone_report head;
        uint8_t buf[192];
        int code = bed_request(&c->bed, 0, VIRTIO_BLK_T_ZONE_REPORT, 0, buf, cases[i].bytes, true, NULL);

        memcpy(&head, buf, sizeof(head));
        if (code == 0 && zones.count >= 2 && le64_get(head.nr_zones) != cases[i].zones)
            return conform_fail(c, "%u bytes hold %u zones, the report says %llu", cases[i].bytes,
                                cases[i].zones, (unsigned long long)le64_get(head.nr_zones));
        if (code != 0 && cases[i].zones)
            return conform_fail(c, "a report of %u bytes: %s", cases[i].bytes, conform_status(code));
    }
    return VERDICT_PASS;
}

static enum verdict conventional_refuses(struct conform *c)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_ZONE_OPEN, VIRTIO_BLK_T_ZONE_CLOSE,
                                     VIRTIO_BLK_T_ZONE_FINISH, VIRTIO_BLK_T_ZONE_RESET};
    const struct virtio_blk_zone_descriptor *zone;
    struct zones zones;
    enum verdict verdict;

    if (!begin(c, &zones, &verdict))
        return verdict;
    zone = find(&zones, VIRTIO_BLK_ZT_CONV, 0);
    if (!zone)
        return conform_na(c, "no conventional zone");
    for (unsigned i = 0; i < 4; i++)
        if (expect(c, "a zone command on a conventional zone", command(c, types[i], start_of(zone)),
                   VIRTIO_BLK_S_ZONE_INVALID_CMD) != VERDICT_PASS)
            return VERDICT_FAIL;
    return VERDICT_PASS;
}

static enum verdict write_pointer_moves(struct conform *c)
{
    const struct virtio_blk_zone_descriptor *zone;
    struct zones zones;
    enum verdict verdict;
    uint64_t wp = 0;
    int state;

    if (!begin(c, &zones, &verdict))
        return verdict;
    zone = find(&zones, VIRTIO_BLK_ZT_SWR, 0);
    if (!zone)
        return conform_na(c, "no sequential zone");
    if (expect(c, "a write at the write pointer", write_at(c, start_of(zone), WRITE), 0) != VERDICT_PASS)
        return VERDICT_FAIL;
    state = state_of(c, start_of(zone), &wp);
    if (state != VIRTIO_BLK_ZS_IOPEN || wp != start_of(zone) + WRITE / 512)
        return conform_fail(c, "after a write the zone has state %d, write pointer at %llu", state,
                            (unsigned long long)(wp - start_of(zone)));
    if (expect(c, "a write behind the write pointer", write_at(c, start_of(zone), WRITE),
               VIRTIO_BLK_S_ZONE_UNALIGNED_WP) != VERDICT_PASS)
        return VERDICT_FAIL;
    return expect(c, "a write beyond the write pointer", write_at(c, start_of(zone) + 64, WRITE),
                  VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
}

static enum verdict states_change(struct conform *c)
{
    static const struct {
        uint32_t type;
        const char *name;
        uint8_t after;
    } steps[] = {{VIRTIO_BLK_T_ZONE_OPEN, "OPEN", VIRTIO_BLK_ZS_EOPEN},
                 {VIRTIO_BLK_T_ZONE_FINISH, "FINISH", VIRTIO_BLK_ZS_FULL},
                 {VIRTIO_BLK_T_ZONE_RESET, "RESET", VIRTIO_BLK_ZS_EMPTY},
                 {VIRTIO_BLK_T_ZONE_OPEN, "OPEN", VIRTIO_BLK_ZS_EOPEN},
                 {VIRTIO_BLK_T_ZONE_CLOSE, "CLOSE", VIRTIO_BLK_ZS_EMPTY}};
    const struct virtio_blk_zone_descriptor *zone;
    struct zones zones;
    enum verdict verdict;

    if (!begin(c, &zones, &verdict))
        return verdict;
    zone = find(&zones, VIRTIO_BLK_ZT_SWR, 0);
    if (!zone)
        return conform_na(c, "no sequential zone");
    for (unsigned i = 0; i < 5; i++) {
        int state;

        if (expect(c, steps[i].name, command(c, steps[i].type, start_of(zone)), 0) != VERDICT_PASS)
            return VERDICT_FAIL;
        state = state_of(c, start_of(zone), NULL);
        if (state != steps[i].after)
            return conform_fail(c, "after %s the zone has state %d, not %u", steps[i].name, state,
                                steps[i].after);
    }
    return VERDICT_PASS;
}

static enum verdict full_refuses(struct conform *c)
{
    const struct virtio_blk_zone_descriptor *zone;
    struct zones zones;
    enum verdict verdict;

    if (!begin(c, &zones, &verdict))
        return verdict;
    zone = find(&zones, VIRTIO_BLK_ZT_SWR, 0);
    if (!zone)
        return conform_na(c, "no sequential zone");
    if (expect(c, "FINISH", command(c, VIRTIO_BLK_T_ZONE_FINISH, start_of(zone)), 0) != VERDICT_PASS)
        return VERDICT_FAIL;
    if (expect(c, "OPEN of a full zone", command(c, VIRTIO_BLK_T_ZONE_OPEN, start_of(zone)),
               VIRTIO_BLK_S_ZONE_INVALID_CMD) != VERDICT_PASS)
        return VERDICT_FAIL;
    if (write_at(c, start_of(zone), WRITE) == 0)
        return conform_fail(c, "a write into a full zone succeeded");
    if (expect(c, "RESET_ALL", command(c, VIRTIO_BLK_T_ZONE_RESET_ALL, 0), 0) != VERDICT_PASS)
        return VERDICT_FAIL;
    if (state_of(c, start_of(zone), NULL) != VIRTIO_BLK_ZS_EMPTY)
        return conform_fail(c, "RESET_ALL left a full zone");
    return VERDICT_PASS;
}

static enum verdict across_zones(struct conform *c)
{
    uint8_t data[2 * WRITE];
    const struct virtio_blk_zone_descriptor *first, *second;
    struct zones zones;
    enum verdict verdict;

    if (!begin(c, &zones, &verdict))
        return verdict;
    first = find(&zones, VIRTIO_BLK_ZT_SWR, 0);
    second = find(&zones, VIRTIO_BLK_ZT_SWR, 1);
    if (!first || !second)
        return conform_na(c, "no two sequential zones");
    return expect(c, "a read from one sequential zone into the next",
                  bed_request(&c->bed, 0, VIRTIO_BLK_T_IN, start_of(second) - WRITE / 512, data, sizeof(data),
                              true, NULL),
                  VIRTIO_BLK_S_ZONE_INVALID_CMD);
}

static int append(struct conform *c, uint64_t sector, uint32_t bytes, uint64_t *where)
{
    uint8_t *mem = bed_alloc(&c->bed, 128 + bytes), *status = mem + 72;
    int code;

    if (!mem)
        return -ENOMEM;
    *(struct virtio_blk_req_header *)mem =
        (struct virtio_blk_req_header){le32_put(VIRTIO_BLK_T_ZONE_APPEND), le32_put(0), le64_put(sector)};
    memset(mem + 128, 0x4d, bytes);
    *status = 0xee;
    struct bed_piece pieces[] = {{mem, 16, false}, {mem + 128, bytes, false}, {mem + 64, 9, true}};
    bed_put(&c->bed, 0, pieces, 3, false);
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL);
    memcpy(where, mem + 64, sizeof(*where));
    return code == 1 ? *status : code == 0 ? -ETIMEDOUT : code;
}

static enum verdict append_works(struct conform *c)
{
    const struct virtio_blk_zone_descriptor *zone;
    struct zones zones;
    enum verdict verdict;
    uint64_t where = 0;
    uint32_t max;

    if (!begin(c, &zones, &verdict))
        return verdict;
    zone = find(&zones, VIRTIO_BLK_ZT_SWR, 0);
    max = le32_get(c->bed.config.zoned.max_append_sectors);
    if (!zone || max < WRITE / 512)
        return conform_na(c, "no append of 4096 bytes");
    for (unsigned i = 0; i < 3; i++) {
        if (expect(c, "an append", append(c, start_of(zone), WRITE, &where), 0) != VERDICT_PASS)
            return VERDICT_FAIL;
        if (where != start_of(zone) + i * (WRITE / 512))
            return conform_fail(c, "append %u went to sector %llu of the zone", i,
                                (unsigned long long)(where - start_of(zone)));
    }
    if (expect(c, "an append not at a zone's start", append(c, start_of(zone) + 8, WRITE, &where),
               VIRTIO_BLK_S_ZONE_INVALID_CMD) != VERDICT_PASS)
        return VERDICT_FAIL;
    if (max < 8192)
        return expect(c, "an append of more than max_append_sectors",
                      append(c, start_of(zone), max * 512 + 512, &where), VIRTIO_BLK_S_ZONE_INVALID_CMD);
    return VERDICT_PASS;
}

static enum verdict limits_hold(struct conform *c)
{
    struct zones zones;
    enum verdict verdict;
    uint32_t max_open, max_active, limit;

    if (!begin(c, &zones, &verdict))
        return verdict;
    max_open = le32_get(c->bed.config.zoned.max_open_zones);
    max_active = le32_get(c->bed.config.zoned.max_active_zones);
    limit = max_open && (!max_active || max_open < max_active) ? max_open : max_active;
    if (!limit || !find(&zones, VIRTIO_BLK_ZT_SWR, limit))
        return conform_na(c, "no limit, or no more zones than that");
    for (unsigned i = 0; i < limit; i++)
        if (expect(c, "OPEN within the limit",
                   command(c, VIRTIO_BLK_T_ZONE_OPEN, start_of(find(&zones, VIRTIO_BLK_ZT_SWR, i))),
                   0) != VERDICT_PASS)
            return VERDICT_FAIL;
    /* Both limits exceeded: ACTIVE_RESOURCE goes before (343). */
    return expect(c, "OPEN beyond the limit",
                  command(c, VIRTIO_BLK_T_ZONE_OPEN, start_of(find(&zones, VIRTIO_BLK_ZT_SWR, limit))),
                  max_active == limit ? VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE : VIRTIO_BLK_S_ZONE_OPEN_RESOURCE);
}

/* clang-format off */
const struct conform_rule conform_zoned_rules[] = {
    {"5.2.6", "356", "a zone report describes all zones soundly", RULE_WRITES, report_is_sound},
    {"5.2.6", "356", "a zone report holds as many zones as fit", RULE_WRITES, report_fits},
    {"5.2.6.2", "340", "zone commands on a conventional zone end with INVALID_CMD", RULE_WRITES, conventional_refuses},
    {"5.2.6.2", "346 352", "writes move a zone's write pointer, and are refused elsewhere", RULE_WRITES, write_pointer_moves},
    {"5.2.6.2", "342 344", "open, finish, reset and close change the zone's state", RULE_WRITES, states_change},
    {"5.2.6.2", "344 345", "a full zone refuses to be opened or written, and RESET_ALL empties it", RULE_WRITES, full_refuses},
    {"5.2.6.2", "351", "a request over two sequential zones ends with INVALID_CMD", RULE_WRITES, across_zones},
    {"5.2.6.2", "347 349 350", "appends go to a zone's write pointer and say where", RULE_WRITES, append_works},
    {"5.2.6.2", "342 343", "no more zones can be opened than the limits allow", RULE_WRITES, limits_hold},
    {0},
};
/* clang-format on */
