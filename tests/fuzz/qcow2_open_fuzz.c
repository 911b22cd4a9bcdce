/* libFuzzer: qcow2 images are opened, in every way that there is, and asked what they are. */
#include "tests/fuzz/qcow2_fuzz.h"

static void coroutine_fn fuzz_image(uint8_t how)
{
    static const struct {
        bool writable, check_only;
        const char *snapshot;
    } ways[] = {{false, false, NULL}, {true, false, NULL}, {false, true, NULL},
                {true, true, NULL},   {false, false, "1"}, {false, false, "one"}};
    size_t count_ways = sizeof ways / sizeof ways[0], way = how % (count_ways + 1);
    /* The last way is that of `info`, which opens nothing that the image names. */
    struct node *node = way < count_ways
                            ? open_image(ways[way].writable, ways[way].check_only, ways[way].snapshot)
                            : open_with(&(struct open_options){.format = "qcow2",
                                                               .read_only = true,
                                                               .no_io = true,
                                                               .no_backing = true,
                                                               .cache = CACHE_WRITEBACK});
    struct qcow2_info info;
    struct qcow2_bitmap_info *bitmaps;
    struct qcow2_snapshot_info *snapshots;
    struct error err;
    size_t count, length = 0;

    if (!node)
        return;
    if (qcow2_info(node, &info) == 0) {
        length += info.backing_file ? strlen(info.backing_file) : 0;
        length += info.backing_format ? strlen(info.backing_format) : 0;
        length += info.data_file ? strlen(info.data_file) : 0;
    }
    if (qcow2_co_bitmaps(node, &bitmaps, &count, &err) == 0) {
        for (size_t i = 0; i < count; i++)
            length += strlen(bitmaps[i].name);
        free(bitmaps);
    }
    if (qcow2_snapshots(node, &snapshots, &count) == 0) {
        for (size_t i = 0; i < count; i++)
            length += strlen(snapshots[i].id) + strlen(snapshots[i].name);
        free(snapshots);
    }
    if (length > f.bytes)
        abort(); /* more names than there is file */
    (void)node_co_close(node);
}
