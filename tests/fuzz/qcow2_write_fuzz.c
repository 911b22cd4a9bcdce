/* libFuzzer: qcow2 images are written to, get snapshots and lose them, grow and shrink. */
#include "tests/fuzz/qcow2_fuzz.h"

static void coroutine_fn fuzz_image(uint8_t how)
{
    struct node *node = open_image(true, false, NULL);
    struct error err;

    if (!node)
        return;
    switch (how % 4) {
    case 0:
        write_some(node);
        break;
    case 1:
        snapshot_some(node);
        write_some(node);
        break;
    case 2:
        (void)node_co_truncate(node, node_length(node) + 700000, true, &err);
        write_some(node);
        (void)node_co_truncate(node, node_length(node) / 2, true, &err);
        break;
    default:
        write_some(node);
        (void)qcow2_co_make_empty(node, &err);
        write_some(node);
        break;
    }
    (void)node_co_close(node);
}
