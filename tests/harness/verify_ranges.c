/*
 * `ringside verify`, lists of ranges: DISCARD, WRITE_ZEROES and SECURE_ERASE with several segments each
 * (virtio 1.4, 5.2.6). libvblk sends one range at a time, so these rings are written by hand, on a connection
 * of their own before the driver's. Lists are cut into descriptors at any byte; ranges may overlap, and may
 * be empty.
 */
#include <stdio.h>
#include <string.h>

#include "tests/harness/bed.h"
#include "tests/harness/verify.h"

#define AREA_SECTORS  2048u
#define PIECE_SECTORS 128u
#define ROUNDS        24u
#define RANGES_MAX    32u
#define PIECES_MAX    16u

struct ranges {
    struct verify *v;
    struct bed bed;
    struct model model; /* of the area */
    struct chance chance;
    uint64_t first; /* sector where the area begins */
    unsigned queue; /* one: a buffer that goes from queue to queue would be a race in a sanitizer's eyes */
    uint32_t version;
    uint8_t data[PIECE_SECTORS * MODEL_SECTOR];
};

static bool failed(struct ranges *r, const char *what, int code)
{
    char text[160];

    snprintf(text, sizeof(text), "lists of ranges: %s ended with %d", what, code);
    verify_stop(r->v, NULL, text);
    return false;
}

static bool write_area(struct ranges *r, uint64_t at, uint64_t count)
{
    int code;

    model_fill(&r->model, at, count, ++r->version, r->data);
    code = bed_request(&r->bed, r->queue, VIRTIO_BLK_T_OUT, r->first + at, r->data,
                       (uint32_t)(count * MODEL_SECTOR), false, NULL);
    model_set(&r->model, at, count, r->version);
    return code == 0 || failed(r, "a write", code);
}

static bool check_area(struct ranges *r)
{
    struct model_difference difference;

    for (uint64_t at = 0; at < r->model.sectors; at += PIECE_SECTORS) {
        int code = bed_request(&r->bed, r->queue, VIRTIO_BLK_T_IN, r->first + at, r->data, sizeof(r->data),
                               true, NULL);

        if (code != 0)
            return failed(r, "a read", code);
        if (!model_check(&r->model, at, PIECE_SECTORS, r->data, &difference)) {
            verify_stop_difference(r->v, NULL, &difference);
            return false;
        }
    }
    return true;
}

/* The list in memory of the machine, in pieces of any length. */
static unsigned cut(struct ranges *r, uint8_t *list, uint32_t bytes, struct bed_piece *pieces)
{
    unsigned n = 0;

    while (bytes) {
        uint32_t len = n + 1 == PIECES_MAX || chance_percent(&r->chance, 40)
                           ? bytes
                           : 1 + (uint32_t)chance_below(&r->chance, bytes);

        pieces[n++] = (struct bed_piece){list, len, false};
        list += len;
        bytes -= len;
    }
    return n;
}

static int send_list(struct ranges *r, uint32_t type, const struct virtio_blk_range *ranges, unsigned count)
{
    uint32_t bytes = count * (uint32_t)sizeof(*ranges);
    struct virtio_blk_req_header *header = bed_alloc(&r->bed, 1024);
    struct bed_piece pieces[PIECES_MAX + 2];
    unsigned queue = r->queue, n = 1;
    bool indirect = (r->bed.accepted & VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC)) && chance_percent(&r->chance, 50);
    uint8_t *list, *status;
    int code;

    if (!header)
        return -1;
    list = (uint8_t *)header + 64;
    status = (uint8_t *)header + 1000;
    *header = (struct virtio_blk_req_header){le32_put(type), le32_put(0), le64_put(0)};
    memcpy(list, ranges, bytes);
    *status = 0xee;
    pieces[0] = (struct bed_piece){header, sizeof(*header), false};
    n += cut(r, list, bytes, pieces + 1);
    pieces[n++] = (struct bed_piece){status, 1, true};
    bed_put(&r->bed, queue, pieces, n, indirect);
    bed_kick(&r->bed, queue);
    code = bed_wait(&r->bed, queue, 20000, NULL, NULL);
    return code == 1 ? __atomic_load_n(status, __ATOMIC_RELAXED) : code == 0 ? -110 : code;
}

/* One list of one type */
static bool round_of(struct ranges *r, uint32_t type, uint32_t max_seg, uint32_t max_sectors, uint64_t unit)
{
    struct virtio_blk_range ranges[RANGES_MAX];
    unsigned most = max_seg < RANGES_MAX ? max_seg : RANGES_MAX;
    unsigned count = 1 + (unsigned)chance_below(&r->chance, most);
    int code;

    for (unsigned i = 0; i < count; i++) {
        uint64_t at = chance_below(&r->chance, r->model.sectors / unit) * unit;
        uint64_t length = chance_below(&r->chance, 128 / unit + 2) * unit;
        bool unmap = type == VIRTIO_BLK_T_WRITE_ZEROES && chance_percent(&r->chance, 50);

        if (length > r->model.sectors - at)
            length = r->model.sectors - at;
        if (length > max_sectors)
            length = max_sectors / unit * unit;
        ranges[i] = (struct virtio_blk_range){le64_put(r->first + at), le32_put((uint32_t)length),
                                              le32_put(unmap ? VIRTIO_BLK_RANGE_F_UNMAP : 0)};
        model_set(&r->model, at, length, type == VIRTIO_BLK_T_WRITE_ZEROES ? MODEL_ZERO : MODEL_UNDEFINED);
    }
    code = send_list(r, type, ranges, count);
    if (code != 0)
        return failed(r, "a list", code);
    r->v->range_lists++;
    return check_area(r);
}

static bool offers(const struct ranges *r, unsigned bit)
{
    return r->bed.accepted & VIRTIO_BIT(bit);
}

static bool rounds(struct ranges *r)
{
    const struct virtio_blk_config *config = &r->bed.config;
    uint64_t block = offers(r, VIRTIO_BLK_F_BLK_SIZE) ? le32_get(config->blk_size) / MODEL_SECTOR : 1;
    const struct {
        uint32_t type, max_seg, max_sectors;
        unsigned feature;
    } kinds[] = {
        {VIRTIO_BLK_T_DISCARD, le32_get(config->max_discard_seg), le32_get(config->max_discard_sectors),
         VIRTIO_BLK_F_DISCARD},
        {VIRTIO_BLK_T_WRITE_ZEROES, le32_get(config->max_write_zeroes_seg),
         le32_get(config->max_write_zeroes_sectors), VIRTIO_BLK_F_WRITE_ZEROES},
        {VIRTIO_BLK_T_SECURE_ERASE, le32_get(config->max_secure_erase_seg),
         le32_get(config->max_secure_erase_sectors), VIRTIO_BLK_F_SECURE_ERASE},
    };

    for (uint64_t at = 0; at < r->model.sectors; at += PIECE_SECTORS)
        if (!write_area(r, at, PIECE_SECTORS))
            return false;
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned kind = i % 3;

        if (!offers(r, kinds[kind].feature) || !kinds[kind].max_seg || !kinds[kind].max_sectors)
            continue;
        if (!round_of(r, kinds[kind].type, kinds[kind].max_seg, kinds[kind].max_sectors, block ? block : 1))
            return false;
        /* A part gets contents again, for the next list to take away. */
        if (!write_area(r, chance_below(&r->chance, r->model.sectors / PIECE_SECTORS) * PIECE_SECTORS,
                        PIECE_SECTORS))
            return false;
    }
    return check_area(r);
}

void verify_ranges(struct verify *v)
{
    static struct ranges r;
    const struct settings *s = v->settings;
    struct bed_options options = {.path = v->rig->path,
                                  .features = ~(rig_refused(s) | VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) |
                                                VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA)),
                                  .packed = s->ring == RING_PACKED,
                                  .queues = s->queues < BED_QUEUES_MAX ? (unsigned)s->queues : BED_QUEUES_MAX,
                                  .message_ms = 20000};
    struct error err = {""};
    uint64_t sectors = s->span / MODEL_SECTOR;
    bool any;

    r = (struct ranges){.v = v, .version = MODEL_FIRST};
    r.chance.state = s->seed * 7919 + 1;
    r.queue = (unsigned)chance_below(&r.chance, options.queues);
    if (bed_open(&r.bed, &options, &err) < 0) {
        verify_stop(v, NULL, err.text);
        bed_close(&r.bed);
        return;
    }
    if (sectors > r.bed.capacity)
        sectors = r.bed.capacity;
    any = offers(&r, VIRTIO_BLK_F_DISCARD) || offers(&r, VIRTIO_BLK_F_WRITE_ZEROES) ||
          offers(&r, VIRTIO_BLK_F_SECURE_ERASE);
    if (any && !(r.bed.offered & VIRTIO_BIT(VIRTIO_BLK_F_RO)) && !offers(&r, VIRTIO_BLK_F_ZONED) &&
        sectors > AREA_SECTORS + PIECE_SECTORS) {
        r.first = chance_below(&r.chance, (sectors - AREA_SECTORS) / PIECE_SECTORS) * PIECE_SECTORS;
        if (model_init(&r.model, s->seed + 1, AREA_SECTORS))
            rounds(&r);
        else
            verify_stop(v, NULL, "no memory for the model");
        model_free(&r.model);
    }
    bed_close(&r.bed);
}
