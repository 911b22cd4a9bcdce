/* `ringside info`: negotiates, and prints what came of it by name. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/harness/commands.h"
#include "tests/harness/names.h"
#include "tests/harness/rig.h"

/* Which configuration fields there are, by the feature that each needs (virtio 1.4, 5.2.4). */
static const struct {
    const char *name;
    unsigned feature; /* 0: always there */
    size_t offset, bytes;
    const char *unit;
} fields[] = {
    {"capacity", 0, offsetof(struct virtio_blk_config, capacity), 8, "sectors"},
    {"size_max", VIRTIO_BLK_F_SIZE_MAX, offsetof(struct virtio_blk_config, size_max), 4, "bytes"},
    {"seg_max", VIRTIO_BLK_F_SEG_MAX, offsetof(struct virtio_blk_config, seg_max), 4, "segments"},
    {"geometry.cylinders", VIRTIO_BLK_F_GEOMETRY, 16, 2, ""},
    {"geometry.heads", VIRTIO_BLK_F_GEOMETRY, 18, 1, ""},
    {"geometry.sectors", VIRTIO_BLK_F_GEOMETRY, 19, 1, ""},
    {"blk_size", VIRTIO_BLK_F_BLK_SIZE, 20, 4, "bytes"},
    {"topology.physical_block_exp", VIRTIO_BLK_F_TOPOLOGY, 24, 1, ""},
    {"topology.alignment_offset", VIRTIO_BLK_F_TOPOLOGY, 25, 1, "blocks"},
    {"topology.min_io_size", VIRTIO_BLK_F_TOPOLOGY, 26, 2, "blocks"},
    {"topology.opt_io_size", VIRTIO_BLK_F_TOPOLOGY, 28, 4, "blocks"},
    {"writeback", VIRTIO_BLK_F_CONFIG_WCE, 32, 1, ""},
    {"num_queues", VIRTIO_BLK_F_MQ, 34, 2, ""},
    {"max_discard_sectors", VIRTIO_BLK_F_DISCARD, 36, 4, "sectors"},
    {"max_discard_seg", VIRTIO_BLK_F_DISCARD, 40, 4, "segments"},
    {"discard_sector_alignment", VIRTIO_BLK_F_DISCARD, 44, 4, "sectors"},
    {"max_write_zeroes_sectors", VIRTIO_BLK_F_WRITE_ZEROES, 48, 4, "sectors"},
    {"max_write_zeroes_seg", VIRTIO_BLK_F_WRITE_ZEROES, 52, 4, "segments"},
    {"write_zeroes_may_unmap", VIRTIO_BLK_F_WRITE_ZEROES, 56, 1, ""},
    {"max_secure_erase_sectors", VIRTIO_BLK_F_SECURE_ERASE, 60, 4, "sectors"},
    {"max_secure_erase_seg", VIRTIO_BLK_F_SECURE_ERASE, 64, 4, "segments"},
    {"secure_erase_sector_alignment", VIRTIO_BLK_F_SECURE_ERASE, 68, 4, "sectors"},
    {"zoned.zone_sectors", VIRTIO_BLK_F_ZONED, 72, 4, "sectors"},
    {"zoned.max_open_zones", VIRTIO_BLK_F_ZONED, 76, 4, ""},
    {"zoned.max_active_zones", VIRTIO_BLK_F_ZONED, 80, 4, ""},
    {"zoned.max_append_sectors", VIRTIO_BLK_F_ZONED, 84, 4, "sectors"},
    {"zoned.write_granularity", VIRTIO_BLK_F_ZONED, 88, 4, "bytes"},
    {"zoned.model", VIRTIO_BLK_F_ZONED, 92, 1, ""},
};

#define FIELDS (sizeof(fields) / sizeof(fields[0]))

static json_t *bits_json(uint64_t bits, const char *(*name)(unsigned bit))
{
    json_t *list = json_array();

    for (unsigned bit = 0; bit < 64; bit++) {
        char number[16];
        const char *word = name(bit);

        if (!(bits >> bit & 1))
            continue;
        snprintf(number, sizeof(number), "bit %u", bit);
        json_array_append_new(list, json_string(word ? word : number));
    }
    return list;
}

static json_int_t field_value(const struct virtio_blk_config *config, size_t field)
{
    const uint8_t *at = (const uint8_t *)config + fields[field].offset;
    uint64_t value = 0;

    for (size_t i = 0; i < fields[field].bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return (json_int_t)value;
}

static bool field_there(const struct rig *rig, size_t field)
{
    return !fields[field].feature || (rig->info.features & VIRTIO_BIT(fields[field].feature));
}

static json_t *describe(const struct rig *rig, const char *id)
{
    json_t *config = json_object();

    for (size_t i = 0; i < FIELDS; i++)
        if (field_there(rig, i))
            json_object_set_new(config, fields[i].name, json_integer(field_value(&rig->info.config, i)));
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:{s:s, s:I, s:I, s:I}, s:{s:I, s:I, s:b, s:b}, s:o}",
                     "device", rig->own ? "own" : rig->path, "id", id, "offered",
                     bits_json(rig->info.device_features, name_of_feature), "negotiated",
                     bits_json(rig->info.features, name_of_feature), "protocol",
                     bits_json(rig->transport->protocol_features, name_of_protocol_feature), "rings",
                     "format", rig->info.features & VIRTIO_BIT(VIRTIO_F_RING_PACKED) ? "packed" : "split",
                     "queues", (json_int_t)rig->info.num_queues, "device_queues",
                     (json_int_t)rig->info.device_num_queues, "size", (json_int_t)rig->info.queue_size,
                     "disk", "bytes",
                     (json_int_t)rig->info.capacity_sectors * (json_int_t)VIRTIO_BLK_SECTOR_BYTES,
                     "block_size", (json_int_t)rig->info.block_size, "read_only", rig->info.read_only,
                     "write_cache", rig->info.write_cache, "config", config);
}

static void print_words(const char *title, const json_t *list)
{
    int column = printf("%-12s", title);

    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *word = json_string_value(json_array_get(list, i));

        if (column + (int)strlen(word) + 1 > 100)
            column = printf("\n%12s", "") - 1;
        column += printf(" %s", word);
    }
    putchar('\n');
}

static void print_text(const struct rig *rig, const json_t *all)
{
    const json_t *rings = json_object_get(all, "rings"), *disk = json_object_get(all, "disk");

    printf("%-12s %s, identity \"%s\"\n", "device", json_string_value(json_object_get(all, "device")),
           json_string_value(json_object_get(all, "id")));
    printf("%-12s %s, %u of %u queues, %u entries each\n", "rings",
           json_string_value(json_object_get(rings, "format")), rig->info.num_queues,
           rig->info.device_num_queues, rig->info.queue_size);
    printf("%-12s %lld bytes, blocks of %u, %s, %s\n", "disk",
           (long long)json_integer_value(json_object_get(disk, "bytes")), rig->info.block_size,
           rig->info.read_only ? "read-only" : "writable",
           rig->info.write_cache ? "write-back" : "write-through");
    print_words("offered", json_object_get(all, "offered"));
    print_words("negotiated", json_object_get(all, "negotiated"));
    print_words("protocol", json_object_get(all, "protocol"));
    for (size_t i = 0; i < FIELDS; i++)
        if (field_there(rig, i))
            printf("%-12s %-30s %lld %s\n", i ? "" : "config", fields[i].name,
                   (long long)field_value(&rig->info.config, i), fields[i].unit);
}

static void capacity_changed(void *opaque, uint64_t capacity_sectors)
{
    printf("capacity now %llu bytes\n", (unsigned long long)capacity_sectors * VIRTIO_BLK_SECTOR_BYTES);
    fflush(stdout);
}

static void watch(struct rig *rig, uint64_t ms)
{
    uint64_t end = rig->platform.now_ns(rig->platform.ctx) + ms * 1000000;

    fflush(stdout);
    vblk_on_capacity_change(rig->disk, capacity_changed, rig);
    while (rig->platform.now_ns(rig->platform.ctx) < end) {
        rig_attend(rig);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

int command_info(const struct settings *given)
{
    struct settings looking = *given, *settings = &looking;
    struct error err = {""};
    struct rig rig;
    char id[VIRTIO_BLK_ID_BYTES + 1] = "";
    json_t *all;
    looking.only_looks = true;
    int code = rig_open(&rig, settings, 1u << 20, &err);

    if (code < 0) {
        log_message("%s", err.text);
        rig_close(&rig);
        return 1;
    }
    code = vblk_get_id(rig.disk, 0, id);
    if (code < 0)
        snprintf(id, sizeof(id), "(%s)", name_of_error(code));
    for (char *c = id; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    all = describe(&rig, id);
    if (!all)
        log_message("no memory for the description");
    else if (settings->json)
        json_dumpf(all, stdout, JSON_INDENT(2));
    else
        print_text(&rig, all);
    if (settings->json)
        putchar('\n');
    code = all ? 0 : 1;
    json_decref(all);
    if (settings->watch_ms)
        watch(&rig, settings->watch_ms);
    rig_close(&rig);
    return code;
}
