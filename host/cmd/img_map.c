/*
 * ringside-img map: which part of the disk comes from where.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "host/block/parse.h"
#include "host/cmd/img.h"

struct map {
    bool json, first;
    bool empty; /* an image of no bytes is one extent of none */
    uint64_t start;
    struct img_extent extent;
};

static bool alike(const struct img_extent *a, const struct img_extent *b)
{
    if (a->flags != b->flags || a->depth != b->depth || a->file != b->file)
        return false;
    return !(a->flags & NODE_STATUS_OFFSET) || a->host_offset + a->bytes == b->host_offset;
}

static bool has_offset(const struct img_extent *e)
{
    return (e->flags & NODE_STATUS_OFFSET) && !(e->flags & NODE_STATUS_COMPRESSED);
}

static int put(struct map *map)
{
    const struct img_extent *e = &map->extent;
    if (e->bytes == 0 && !map->empty)
        return 0;
    bool data = e->flags & NODE_STATUS_DATA, zero = e->flags & NODE_STATUS_ZERO;
    if (map->json) {
        printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
               ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
               map->first ? "[" : ",\n", map->start, e->bytes, e->depth,
               e->flags & NODE_STATUS_ALLOCATED ? "true" : "false", zero ? "true" : "false",
               data ? "true" : "false");
        if (has_offset(e))
            printf(", \"offset\": %" PRIu64, e->host_offset);
        putchar('}');
        map->first = false;
        return 0;
    }
    if (!data || zero)
        return 0;
    if (!has_offset(e)) {
        log_message("there are compressed or encrypted clusters: they have no place to be shown "
                    "(--output=json does)");
        return -ENOTSUP;
    }
    printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", map->start, e->bytes, e->host_offset,
           e->file ? e->file->filename : "");
    return 0;
}

/* Clusters are said to be zeroes for lying in holes only if the image looks preallocated: if it takes clearly
 * less space than it is long. */
static bool preallocated(const struct node *node)
{
    struct stat st;
    if (node->driver->is_protocol || !node->file || stat(node->filename, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    uint64_t taken = (uint64_t)st.st_blocks * 512;
    return node_length(node->file) > taken + taken / 9;
}

static int number(const char *text, const char *option, uint64_t *value)
{
    if (!text || parse_size(text, value) == 0)
        return 0;
    log_message("%s %s: not a size", option, text);
    return -EINVAL;
}

int coroutine_fn img_co_map(const struct img_options *options)
{
    const char *path = options->names[0];
    struct map map = {.first = true};
    struct node *node;
    uint64_t offset = 0, most = INT64_MAX;
    int status = img_output(options, &map.json), ret = 0;
    if (status)
        return status;
    if (number(options->start_offset, "--start-offset", &offset) < 0 ||
        number(options->max_length, "--max-length", &most) < 0)
        return CMD_EXIT_USAGE;
    if (img_co_open(options, path, options->format, 0, &node) < 0)
        return CMD_EXIT_FAILED;
    uint64_t end = node_length(node);
    map.empty = end == 0;
    bool holes = preallocated(node);
    if (offset < end && most < end - offset)
        end = offset + most;
    if (!map.json)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    while (offset < end && ret == 0) {
        struct img_extent extent;
        ret = img_co_extent(node, NULL, holes, offset, end - offset, &extent);
        if (ret < 0) {
            log_message("%s: where offset %" PRIu64 " lies cannot be found out: %s", path, offset,
                        strerror(-ret));
            break;
        }
        if (map.extent.bytes && alike(&map.extent, &extent)) {
            map.extent.bytes += extent.bytes;
        } else {
            ret = put(&map);
            map.extent = extent;
            map.start = offset;
        }
        offset += extent.bytes;
    }
    if (ret == 0)
        ret = put(&map);
    if (map.json)
        printf("%s]\n", map.first ? "[" : "");
    int closed = img_co_close(node);
    return ret < 0 || closed < 0 ? CMD_EXIT_FAILED : CMD_EXIT_OK;
}
