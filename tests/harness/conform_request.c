/* Rules of chapter 5.2.6: requests of every type, right and wrong ones. See conform.h. */
#include <errno.h>
#include <string.h>

#include "tests/harness/conform.h"

static bool has(const struct conform *c, unsigned bit)
{
    return c->offered & VIRTIO_BIT(bit);
}

static uint32_t block_bytes(const struct conform *c)
{
    uint32_t block = le32_get(c->bed.config.blk_size);

    return has(c, VIRTIO_BLK_F_BLK_SIZE) && block >= 512 && block <= 65536 ? block : 512;
}

static int request(struct conform *c, uint32_t type, uint64_t sector, void *data, uint32_t bytes,
                   bool writable)
{
    return bed_request(&c->bed, 0, type, sector, data, bytes, writable, NULL);
}

static enum verdict expect(struct conform *c, const char *what, int code, int wanted)
{
    char got[64];

    if (code == wanted)
        return VERDICT_PASS;
    strcpy(got, conform_status(code));
    return conform_fail(c, "%s: %s, not %s", what, got, conform_status(wanted));
}

/* After a wrong request the device must still serve a right one. */
static enum verdict and_lives(struct conform *c, enum verdict so_far)
{
    uint8_t data[65536];
    int code;

    if (so_far != VERDICT_PASS || c->bed.capacity == 0)
        return so_far;
    code = request(c, VIRTIO_BLK_T_IN, 0, data, block_bytes(c), true);
    return code == VIRTIO_BLK_S_OK ? VERDICT_PASS
                                   : conform_fail(c, "a read after that: %s", conform_status(code));
}

static enum verdict write_reads_back(struct conform *c)
{
    uint8_t data[65536], back[65536];

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (unsigned round = 0; round < 4; round++) {
        uint32_t bytes =
            block_bytes(c) * (round + 1) > sizeof(data) ? block_bytes(c) : block_bytes(c) * (round + 1);
        uint64_t sector = round * 4ull * (block_bytes(c) / 512);

        memset(data, (int)(0x40 + round), bytes);
        if (expect(c, "a write", request(c, VIRTIO_BLK_T_OUT, sector, data, bytes, false), 0) !=
                VERDICT_PASS ||
            expect(c, "a read", request(c, VIRTIO_BLK_T_IN, sector, back, bytes, true), 0) != VERDICT_PASS)
            return VERDICT_FAIL;
        if (memcmp(data, back, bytes) != 0)
            return conform_fail(c, "%u bytes at sector %llu do not read back", bytes,
                                (unsigned long long)sector);
    }
    return VERDICT_PASS;
}

static enum verdict flush_works(struct conform *c)
{
    if (!has(c, VIRTIO_BLK_F_FLUSH))
        return conform_na(c, "no FLUSH");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    return expect(c, "a flush", request(c, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, false), VIRTIO_BLK_S_OK);
}

static enum verdict beyond_capacity(struct conform *c)
{
    uint8_t data[65536] = {0};
    uint32_t block;
    uint64_t places[4];

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    block = block_bytes(c);
    places[0] = c->bed.capacity;
    places[1] = c->bed.capacity + block / 512 * 8;
    places[2] = UINT64_MAX / 512 + 1;
    places[3] = UINT64_MAX & ~(uint64_t)(block / 512 - 1);
    for (unsigned i = 0; i < 4; i++)
        if (expect(c, "a read beyond the end", request(c, VIRTIO_BLK_T_IN, places[i], data, block, true),
                   VIRTIO_BLK_S_IOERR) != VERDICT_PASS)
            return VERDICT_FAIL;
    if (!c->read_only &&
        expect(c, "a write beyond the end", request(c, VIRTIO_BLK_T_OUT, places[0], data, block, false),
               VIRTIO_BLK_S_IOERR) != VERDICT_PASS)
        return VERDICT_FAIL;
    return and_lives(c, VERDICT_PASS);
}

static enum verdict across_the_end(struct conform *c)
{
    uint8_t data[65536] = {0};
    uint32_t block;

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    block = block_bytes(c);
    if (2 * block > sizeof(data) || c->bed.capacity < block / 512)
        return conform_na(c, "blocks too large");
    return and_lives(c,
                     expect(c, "a read across the end",
                            request(c, VIRTIO_BLK_T_IN, c->bed.capacity - block / 512, data, 2 * block, true),
                            VIRTIO_BLK_S_IOERR));
}

static enum verdict odd_length(struct conform *c)
{
    static const uint32_t lengths[] = {1, 511, 513, 1000};
    uint8_t data[1024] = {0};

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 4; i++)
        if (expect(c, "a read of no whole sectors", request(c, VIRTIO_BLK_T_IN, 0, data, lengths[i], true),
                   VIRTIO_BLK_S_IOERR) != VERDICT_PASS)
            return VERDICT_FAIL;
    return and_lives(c, VERDICT_PASS);
}

static enum verdict unknown_type(struct conform *c)
{
    static const uint32_t types[] = {2, 3, 6, 7, 9, 12, 17, 27, 0x12345678, 0xffffffff};
    uint8_t data[512];

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        int code = request(c, types[i], 0, data, sizeof(data), true);

        if (code != VIRTIO_BLK_S_UNSUPP)
            return conform_fail(c, "type %#x: %s", types[i], conform_status(code));
    }
    return and_lives(c, VERDICT_PASS);
}

static const struct {
    uint32_t type;
    unsigned feature;
    const char *name;
} optional_types[] = {
    {VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_F_DISCARD, "DISCARD"},
    {VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES, "WRITE_ZEROES"},
    {VIRTIO_BLK_T_SECURE_ERASE, VIRTIO_BLK_F_SECURE_ERASE, "SECURE_ERASE"},
    {VIRTIO_BLK_T_GET_LIFETIME, VIRTIO_BLK_F_LIFETIME, "LIFETIME"},
    {VIRTIO_BLK_T_ZONE_REPORT, VIRTIO_BLK_F_ZONED, "ZONED"},
    {VIRTIO_BLK_T_ZONE_RESET_ALL, VIRTIO_BLK_F_ZONED, "ZONED"},
};

static enum verdict type_without_feature(struct conform *c)
{
    for (unsigned i = 0; i < sizeof(optional_types) / sizeof(optional_types[0]); i++) {
        struct virtio_blk_range range = {le64_put(0), le32_put(8), le32_put(0)};
        uint8_t data[128] = {0};
        bool ranges = optional_types[i].feature == VIRTIO_BLK_F_DISCARD ||
                      optional_types[i].feature == VIRTIO_BLK_F_WRITE_ZEROES ||
                      optional_types[i].feature == VIRTIO_BLK_F_SECURE_ERASE;
        int code;

        if (!conform_open(c, CONFORM_ALL_FEATURES & ~VIRTIO_BIT(optional_types[i].feature)))
            return VERDICT_FAIL;
        if (c->bed.accepted & VIRTIO_BIT(optional_types[i].feature))
            continue; /* a host-managed disk does not work without */
        code = ranges ? request(c, optional_types[i].type, 0, &range, sizeof(range), false)
                      : request(c, optional_types[i].type, 0, data, sizeof(data), true);
        if (c->read_only && (ranges || optional_types[i].type == VIRTIO_BLK_T_ZONE_RESET_ALL) &&
            code == (int)VIRTIO_BLK_S_IOERR)
            continue; /* refused as the write that it is (321) */
        if (code != VIRTIO_BLK_S_UNSUPP)
            return conform_fail(c, "type %u without %s: %s", optional_types[i].type, optional_types[i].name,
                                conform_status(code));
    }
    return VERDICT_PASS;
}

static int range_request(struct conform *c, uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    struct virtio_blk_range range = {le64_put(sector), le32_put(sectors), le32_put(flags)};

    return request(c, type, 0, &range, sizeof(range), false);
}

static enum verdict unknown_range_flags(struct conform *c)
{
    bool any = false;

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 3; i++) {
        if (!has(c, optional_types[i].feature))
            continue;
        any = true;
        for (unsigned bit = 1; bit < 32; bit += 5) {
            int code = range_request(c, optional_types[i].type, 0, block_bytes(c) / 512, 1u << bit);

            if (code != VIRTIO_BLK_S_UNSUPP)
                return conform_fail(c, "%s with flag bit %u: %s", optional_types[i].name, bit,
                                    conform_status(code));
        }
    }
    return any ? and_lives(c, VERDICT_PASS) : conform_na(c, "no discard, write zeroes or secure erase");
}

static enum verdict discard_with_unmap(struct conform *c)
{
    if (!has(c, VIRTIO_BLK_F_DISCARD))
        return conform_na(c, "no DISCARD");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    return and_lives(
        c, expect(c, "a discard with the unmap flag",
                  range_request(c, VIRTIO_BLK_T_DISCARD, 0, block_bytes(c) / 512, VIRTIO_BLK_RANGE_F_UNMAP),
                  VIRTIO_BLK_S_UNSUPP));
}

static enum verdict discard_works(struct conform *c)
{
    if (!has(c, VIRTIO_BLK_F_DISCARD))
        return conform_na(c, "no DISCARD");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    return and_lives(c, expect(c, "a discard",
                               range_request(c, VIRTIO_BLK_T_DISCARD, 64, block_bytes(c) / 512 * 8, 0),
                               VIRTIO_BLK_S_OK));
}

static enum verdict zeroes_read_back(struct conform *c)
{
    static const uint8_t zeroes[65536];
    uint8_t data[65536];
    uint32_t bytes;

    if (!has(c, VIRTIO_BLK_F_WRITE_ZEROES))
        return conform_na(c, "no WRITE_ZEROES");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    bytes = block_bytes(c) * 2 > sizeof(data) ? block_bytes(c) : block_bytes(c) * 2;
    for (uint32_t flags = 0; flags < 2; flags++) {
        memset(data, 0x77, bytes);
        if (expect(c, "a write", request(c, VIRTIO_BLK_T_OUT, 128, data, bytes, false), 0) != VERDICT_PASS ||
            expect(c, flags ? "write zeroes with unmap" : "write zeroes",
                   range_request(c, VIRTIO_BLK_T_WRITE_ZEROES, 128, bytes / 512, flags), 0) != VERDICT_PASS ||
            expect(c, "a read", request(c, VIRTIO_BLK_T_IN, 128, data, bytes, true), 0) != VERDICT_PASS)
            return VERDICT_FAIL;
        if (memcmp(data, zeroes, bytes) != 0)
            return conform_fail(c, "what was zeroed %s unmap does not read as zeroes",
                                flags ? "with" : "without");
    }
    return VERDICT_PASS;
}

static enum verdict ranges_beyond(struct conform *c)
{
    bool any = false;

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 3; i++) {
        uint32_t sectors = block_bytes(c) / 512;

        if (!has(c, optional_types[i].feature))
            continue;
        any = true;
        if (expect(c, optional_types[i].name,
                   range_request(c, optional_types[i].type, c->bed.capacity, sectors, 0),
                   VIRTIO_BLK_S_IOERR) != VERDICT_PASS ||
            expect(
                c, optional_types[i].name,
                range_request(c, optional_types[i].type, UINT64_MAX & ~(uint64_t)(sectors - 1), sectors, 0),
                VIRTIO_BLK_S_IOERR) != VERDICT_PASS)
            return VERDICT_FAIL;
    }
    return any ? and_lives(c, VERDICT_PASS) : conform_na(c, "no discard, write zeroes or secure erase");
}

static enum verdict too_many_segments(struct conform *c)
{
    struct virtio_blk_range ranges[600];
    uint32_t max;
    int code;

    if (!has(c, VIRTIO_BLK_F_WRITE_ZEROES))
        return conform_na(c, "no WRITE_ZEROES");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    max = le32_get(c->bed.config.max_write_zeroes_seg);
    if (max >= 600)
        return conform_na(c, "the limit is higher than a test can reach");
    for (unsigned i = 0; i <= max; i++)
        ranges[i] = (struct virtio_blk_range){le64_put(i * 8ull * (block_bytes(c) / 512)),
                                              le32_put(block_bytes(c) / 512), le32_put(0)};
    code = request(c, VIRTIO_BLK_T_WRITE_ZEROES, 0, ranges, (uint32_t)sizeof(ranges[0]) * (max + 1), false);
    if (code != VIRTIO_BLK_S_IOERR && code != VIRTIO_BLK_S_UNSUPP)
        return conform_fail(c, "%u segments where %u are allowed: %s", max + 1, max, conform_status(code));
    if (max > 1 &&
        expect(c, "as many segments as allowed",
               request(c, VIRTIO_BLK_T_WRITE_ZEROES, 0, ranges, (uint32_t)sizeof(ranges[0]) * max, false),
               0) != VERDICT_PASS)
        return VERDICT_FAIL;
    return and_lives(c, VERDICT_PASS);
}

static enum verdict range_in_pieces(struct conform *c)
{
    static const uint8_t zeroes[65536];
    uint8_t *mem, *status, back[65536];
    struct bed_piece pieces[20];
    struct virtio_blk_req_header *header;
    int code;

    if (!has(c, VIRTIO_BLK_F_WRITE_ZEROES))
        return conform_na(c, "no WRITE_ZEROES");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    memset(back, 0x55, block_bytes(c));
    request(c, VIRTIO_BLK_T_OUT, 0, back, block_bytes(c), false);
    mem = bed_alloc(&c->bed, 128);
    if (!mem)
        return VERDICT_FAIL;
    header = (struct virtio_blk_req_header *)mem;
    status = mem + 100;
    *header = (struct virtio_blk_req_header){le32_put(VIRTIO_BLK_T_WRITE_ZEROES), le32_put(0), le64_put(0)};
    *(struct virtio_blk_range *)(mem + 16) =
        (struct virtio_blk_range){le64_put(0), le32_put(block_bytes(c) / 512), le32_put(0)};
    pieces[0] = (struct bed_piece){header, 16, false};
    for (unsigned i = 0; i < 16; i++)
        pieces[1 + i] = (struct bed_piece){mem + 16 + i, 1, false};
    *status = 0xee;
    pieces[17] = (struct bed_piece){status, 1, true};
    bed_put(&c->bed, 0, pieces, 18, false);
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL);
    if (expect(c, "a range in sixteen descriptors",
               code == 1   ? *status
               : code == 0 ? -ETIMEDOUT
                           : code,
               0) != VERDICT_PASS)
        return VERDICT_FAIL;
    code = request(c, VIRTIO_BLK_T_IN, 0, back, block_bytes(c), true);
    if (code != 0 || memcmp(back, zeroes, block_bytes(c)) != 0)
        return conform_fail(c, "the range was not zeroed");
    return VERDICT_PASS;
}

static enum verdict range_not_whole(struct conform *c)
{
    uint8_t data[64] = {0};
    int code;

    if (!has(c, VIRTIO_BLK_F_WRITE_ZEROES))
        return conform_na(c, "no WRITE_ZEROES");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (uint32_t bytes = 1; bytes < 32; bytes += 7) {
        code = request(c, VIRTIO_BLK_T_WRITE_ZEROES, 0, data, bytes, false);
        if (code != VIRTIO_BLK_S_IOERR && code != VIRTIO_BLK_S_UNSUPP)
            return conform_fail(c, "%u bytes of ranges: %s", bytes, conform_status(code));
    }
    return and_lives(c, VERDICT_PASS);
}

static enum verdict identity(struct conform *c)
{
    static const uint32_t sizes[] = {20, 1, 19, 21, 512};
    uint8_t first[20] = {0}, data[512];

    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    for (unsigned i = 0; i < 5; i++) {
        uint32_t same = sizes[i] < 20 ? sizes[i] : 20;
        int code;

        memset(data, 0xcd, sizeof(data));
        code = request(c, VIRTIO_BLK_T_GET_ID, 0, data, sizes[i], true);
        if (sizes[i] != 20 && (code == VIRTIO_BLK_S_IOERR || code == VIRTIO_BLK_S_UNSUPP))
            continue;
        if (code != VIRTIO_BLK_S_OK)
            return conform_fail(c, "an identity of %u bytes: %s", sizes[i], conform_status(code));
        if (i == 0)
            memcpy(first, data, 20);
        else if (memcmp(first, data, same) != 0)
            return conform_fail(c, "an identity of %u bytes begins otherwise than one of 20", sizes[i]);
    }
    return and_lives(c, VERDICT_PASS);
}

static enum verdict read_only_refuses(struct conform *c)
{
    uint8_t data[65536] = {0};

    if (!c->read_only)
        return conform_na(c, "the disk is writable");
    for (unsigned round = 0; round < 2; round++) {
        /* Whether or not the driver accepted RO. */
        if (!conform_open(c,
                          round ? CONFORM_ALL_FEATURES : CONFORM_ALL_FEATURES & ~VIRTIO_BIT(VIRTIO_BLK_F_RO)))
            return VERDICT_FAIL;
        if (expect(c, "a write", request(c, VIRTIO_BLK_T_OUT, 0, data, block_bytes(c), false),
                   VIRTIO_BLK_S_IOERR) != VERDICT_PASS)
            return VERDICT_FAIL;
        if (has(c, VIRTIO_BLK_F_FLUSH) &&
            expect(c, "a flush", request(c, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, false), VIRTIO_BLK_S_OK) !=
                VERDICT_PASS)
            return VERDICT_FAIL;
    }
    return VERDICT_PASS;
}

static enum verdict lifetime(struct conform *c)
{
    struct virtio_blk_lifetime life;

    if (!has(c, VIRTIO_BLK_F_LIFETIME))
        return conform_na(c, "no LIFETIME");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    memset(&life, 0xff, sizeof(life));
    if (expect(c, "GET_LIFETIME", request(c, VIRTIO_BLK_T_GET_LIFETIME, 0, &life, sizeof(life), true), 0) !=
        VERDICT_PASS)
        return VERDICT_FAIL;
    if (le16_get(life.pre_eol_info) > 3 || le16_get(life.device_lifetime_est_typ_a) > 11 ||
        le16_get(life.device_lifetime_est_typ_b) > 11)
        return conform_fail(c, "reserved values: %u %u %u", le16_get(life.pre_eol_info),
                            le16_get(life.device_lifetime_est_typ_a),
                            le16_get(life.device_lifetime_est_typ_b));
    return VERDICT_PASS;
}

static enum verdict secure_erase(struct conform *c)
{
    if (!has(c, VIRTIO_BLK_F_SECURE_ERASE))
        return conform_na(c, "no SECURE_ERASE");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    return and_lives(c, expect(c, "a secure erase",
                               range_request(c, VIRTIO_BLK_T_SECURE_ERASE, 0,
                                             le32_get(c->bed.config.secure_erase_sector_alignment)
                                                 ? le32_get(c->bed.config.secure_erase_sector_alignment)
                                                 : 8,
                                             0),
                               VIRTIO_BLK_S_OK));
}

static enum verdict zero_sectors(struct conform *c)
{
    int code;

    if (!has(c, VIRTIO_BLK_F_WRITE_ZEROES))
        return conform_na(c, "no WRITE_ZEROES");
    if (!conform_open(c, CONFORM_ALL_FEATURES))
        return VERDICT_FAIL;
    code = range_request(c, VIRTIO_BLK_T_WRITE_ZEROES, 0, 0, 0);
    if (code < 0 || code > (int)VIRTIO_BLK_S_UNSUPP)
        return conform_fail(c, "a range of no sectors: %s", conform_status(code));
    return and_lives(c, VERDICT_PASS);
}

static enum verdict no_room_for_status(struct conform *c)
{
    struct virtio_blk_req_header *header;
    int code;

    if (!conform_open(c, 0))
        return VERDICT_FAIL;
    header = bed_alloc(&c->bed, 64);
    if (!header)
        return VERDICT_FAIL;
    *header = (struct virtio_blk_req_header){le32_put(VIRTIO_BLK_T_IN), le32_put(0), le64_put(0)};
    struct bed_piece piece = {header, 16, false};
    bed_put(&c->bed, 0, &piece, 1, false);
    bed_kick(&c->bed, 0);
    code = bed_wait(&c->bed, 0, BED_WAIT_MS, NULL, NULL);
    /* Given back, or a reset asked for, or the connection ended: all but silence. */
    if (code == 0 && !bed_needs_reset(&c->bed))
        return conform_fail(c, "a chain with no room for the status was swallowed");
    return VERDICT_PASS;
}

/* clang-format off */
const struct conform_rule conform_request_rules[] = {
    {"5.2.6", "", "what is written reads back", RULE_RING | RULE_WRITES, write_reads_back},
    {"5.2.6.2", "", "FLUSH succeeds", RULE_RING, flush_works},
    {"5.2.6", "334", "IN and OUT beyond the capacity end with IOERR", RULE_RING, beyond_capacity},
    {"5.2.6", "334", "a read across the end of the disk ends with IOERR", 0, across_the_end},
    {"5.2.6", "334", "data that are no whole sectors end with IOERR", 0, odd_length},
    {"5.2.6", "332", "unknown request types end with UNSUPP", RULE_RING, unknown_type},
    {"5.2.6", "333 339", "a type whose feature was not accepted ends with UNSUPP", 0, type_without_feature},
    {"5.2.6.2", "322", "unknown flags of a range end with UNSUPP", RULE_WRITES, unknown_range_flags},
    {"5.2.6.2", "323", "DISCARD with the unmap flag ends with UNSUPP", RULE_WRITES, discard_with_unmap},
    {"5.2.6", "", "DISCARD succeeds", RULE_RING | RULE_WRITES, discard_works},
    {"5.2.6.2", "325", "what was zeroed reads as zeroes, with and without unmap", RULE_RING | RULE_WRITES, zeroes_read_back},
    {"5.2.6", "334", "ranges beyond the capacity end with IOERR", RULE_WRITES, ranges_beyond},
    {"5.2.6", "335", "more segments than allowed are refused, as many as allowed served", RULE_WRITES, too_many_segments},
    {"5.2.6", "336", "a range in sixteen descriptors of one byte", RULE_RING | RULE_WRITES, range_in_pieces},
    {"5.2.6", "335", "a list of ranges that is no multiple of 16 bytes is refused", RULE_WRITES, range_not_whole},
    {"5.2.6", "337", "a range of no sectors is answered", RULE_WRITES, zero_sectors},
    {"5.2.6", "338", "the identity, in buffers of any length", RULE_RING, identity},
    {"5.2.6.2", "321", "a read-only disk refuses writes and flushes", 0, read_only_refuses},
    {"5.2.6.2", "331", "GET_LIFETIME sends no reserved values", 0, lifetime},
    {"5.2.6", "", "SECURE_ERASE succeeds", RULE_WRITES, secure_erase},
    {"5.2.6", "334", "a chain without room for the status is not swallowed", RULE_RING, no_room_for_status},
    {0},
};
/* clang-format on */
