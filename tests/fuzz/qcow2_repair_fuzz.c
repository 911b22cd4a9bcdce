/*
 * libFuzzer: qcow2 images are repaired. After a repair that claims success a check agrees, on the open image
 * and after it was closed and opened again; and what is written to it then leaves it whole.
 */
#include "tests/fuzz/qcow2_fuzz.h"

static bool clean(const struct qcow2_check *result)
{
    return !result->corruptions && !result->leaks && !result->check_errors;
}

static void coroutine_fn must_be_clean(void)
{
    struct qcow2_check result;
    struct error err;
    struct node *node = open_image(false, true, NULL);

    if (!node)
        abort();
    if (qcow2_co_check(node, 0, &result, NULL, NULL, &err) == 0 && !clean(&result))
        abort();
    (void)node_co_close(node);
}

static void coroutine_fn fuzz_image(uint8_t how)
{
    unsigned fix = how % 3 == 0 ? QCOW2_FIX_LEAKS : QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS;
    struct node *node = open_image(true, true, NULL);
    struct qcow2_check result;
    struct error err;

    if (!node)
        return;
    int ret = qcow2_co_check(node, fix, &result, NULL, NULL, &err);
    int closed = node_co_close(node);
    if (ret < 0 || closed < 0 || !clean(&result))
        return;
    must_be_clean();
    if (how % 3 == 2 && (node = open_image(true, false, NULL))) {
        write_some(node);
        if (node_co_close(node) == 0)
            must_be_clean();
    }
}
