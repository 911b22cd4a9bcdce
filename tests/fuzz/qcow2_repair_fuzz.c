/*
 * libFuzzer: qcow2 images are repaired. After a repair that claims success a check agrees, on the open image
 * and after it was closed and opened again; and what is written to it then, snapshots and resizes leave it
 * whole.
 */
#include "tests/fuzz/qcow2_fuzz.h"

static bool clean(const struct qcow2_check *result)
{
    return !result->corruptions && !result->leaks && !result->check_errors;
}

/* A cluster that two entries of one disk share is allowed. When one of them gets a cluster of its own, the
 * other has the only reference and no COPIED flag. A check counts that, and it harms nothing: the next write
 * makes a copy. (The flag on a cluster that is shared would.) */
static void count_harmless(void *opaque, const char *line)
{
    static const char start[] = "ERROR OFLAG_COPIED data cluster: entry=";
    uint64_t *harmless = opaque;

    if (strncmp(line, start, sizeof(start) - 1) == 0 &&
        !(strtoull(line + sizeof(start) - 1, NULL, 16) & QCOW2_COPIED))
        ++*harmless;
}

static void tell(void *opaque, const char *line)
{
    fprintf(stderr, "%s\n", line);
}

/* WRITTEN: since the repair. LEAKS: some are allowed, as after something that failed half way for lack of
 * space. */
static void coroutine_fn must_be_clean(bool written, bool leaks)
{
    struct qcow2_check result;
    uint64_t harmless = 0;
    struct error err;
    struct node *node = open_image(false, true, NULL);

    if (!node)
        abort();
    if (qcow2_co_check(node, 0, &result, count_harmless, &harmless, &err) == 0) {
        if (written)
            result.corruptions -= harmless;
        if (leaks)
            result.leaks = 0;
        if (!clean(&result)) {
            (void)qcow2_co_check(node, 0, &result, tell, NULL, &err);
            abort();
        }
    }
    (void)node_co_close(node);
}

static void coroutine_fn change_much(struct node *node)
{
    struct error err;

    snapshot_some(node);
    (void)node_co_truncate(node, node_length(node) + 700000, true, &err);
    write_some(node);
    (void)qcow2_co_snapshot_create(node, "after", &err);
    (void)node_co_truncate(node, node_length(node) / 2, true, &err);
    snapshot_some(node);
    write_some(node);
}

static void coroutine_fn fuzz_image(uint8_t how)
{
    unsigned fix = how % 4 == 0 ? QCOW2_FIX_LEAKS : QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS;
    struct node *node = open_image(true, true, NULL);
    struct qcow2_check result;
    struct error err;

    if (!node)
        return;
    int ret = qcow2_co_check(node, fix, &result, NULL, NULL, &err);
    int closed = node_co_close(node);
    if (ret < 0 || closed < 0 || !clean(&result))
        return;
    must_be_clean(false, false);
    if (how % 4 >= 2 && (node = open_image(true, false, NULL))) {
        if (how % 4 == 2)
            write_some(node);
        else
            change_much(node);
        if (node_co_close(node) == 0)
            must_be_clean(true, how % 4 == 3);
    }
}
