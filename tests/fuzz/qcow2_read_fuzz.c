/* libFuzzer: qcow2 images and their snapshots are read, and asked where their data lies. */
#include "tests/fuzz/qcow2_fuzz.h"

static void coroutine_fn fuzz_image(uint8_t how)
{
    struct node *node = open_image(false, how % 3 == 2, how % 3 == 1 ? "1" : NULL);

    if (!node)
        return;
    read_some(node);
    (void)node_co_close(node);
}
