/* libFuzzer: qcow2 images are checked; nothing is written meanwhile, and a second check says the same. */
#include "tests/fuzz/qcow2_fuzz.h"

static void coroutine_fn fuzz_image(uint8_t how)
{
    struct node *node = open_image(false, true, NULL);
    struct qcow2_check result, again;
    struct error err;

    if (!node)
        return;
    if (qcow2_co_check(node, 0, &result, NULL, NULL, &err) == 0 &&
        (qcow2_co_check(node, 0, &again, NULL, NULL, &err) < 0 || again.corruptions != result.corruptions ||
         again.leaks != result.leaks || again.check_errors != result.check_errors))
        abort();
    (void)node_co_close(node);
}
