/*
 * libFuzzer: what a qcow2 image holds stays. A repair, whatever becomes of it and wherever it is cut short,
 * changes nothing that could be read before, of the disk or of a snapshot; and in an image that a check calls
 * sound a snapshot keeps what the disk held when it was made, through writes, discards, other snapshots
 * deleted, until it is applied.
 */
#include "tests/fuzz/qcow2_fuzz.h"

#include "host/qcow2/qcow2_state.h"

#define UNIT  4096u
#define UNITS 1024u

#define IGNORED    0u
#define UNREADABLE 1u

/* The first UNITS pieces of a disk: what each holds, in short. */
struct view {
    bool there;
    uint64_t length, units[UNITS];
};

static uint64_t digest(const uint8_t *bytes, uint64_t n)
{
    uint64_t x = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < n; i++)
        x = (x ^ bytes[i]) * 0x100000001b3u;
    return x > UNREADABLE ? x : ~x;
}

/* Do bytes [at, at+n) lie on metadata that change when the image is mended? An L2 table that is data as well
 * is none of these: it has to stay as it is. */
static bool coroutine_fn is_metadata(struct qcow2 *s, uint64_t at, uint64_t n)
{
    struct qcow2_extent extent;
    for (uint64_t end = at + n; at < end; at += extent.bytes) {
        uint64_t host, bytes;
        if (qcow2_co_map(s, at, end - at, &extent) < 0)
            return true;
        host = extent.host;
        bytes = extent.bytes;
        if (extent.type == QCOW2_COMPRESSED)
            qcow2_compressed_range(s, extent.host, &host, &bytes);
        else if (extent.type != QCOW2_NORMAL)
            continue;
        if (s->data == s->node->file &&
            qcow2_overlap_check(s, host, bytes, QCOW2_OL_ACTIVE_L2, NULL) != QCOW2_OL_NONE)
            return true;
    }
    return false;
}

static void coroutine_fn look(struct view *view, const char *snapshot)
{
    static uint8_t buf[UNIT];
    struct node *node = open_image(false, false, snapshot);

    view->there = node != NULL;
    if (!node)
        return;
    view->length = node_length(node);
    for (uint64_t i = 0; i < UNITS && i * UNIT < view->length; i++) {
        uint64_t n = view->length - i * UNIT < UNIT ? view->length - i * UNIT : UNIT;
        bool reads = node_co_pread(node, i * UNIT, buf, n) == 0;
        view->units[i] = is_metadata(qcow2_state(node), i * UNIT, n) ? IGNORED
                         : reads                                     ? digest(buf, n)
                                                                     : UNREADABLE;
    }
    (void)node_co_close(node);
}

/* All that could be read is as it was. */
static void must_be_kept(const struct view *was, const struct view *now)
{
    if (!was->there)
        return;
    if (!now->there || now->length != was->length) {
        fprintf(stderr, "it cannot be opened any more, or has another length\n");
        abort();
    }
    for (uint64_t i = 0; i < UNITS && i * UNIT < was->length; i++) {
        if (was->units[i] > UNREADABLE && now->units[i] != IGNORED && now->units[i] != was->units[i]) {
            fprintf(stderr, "what was at byte %llu is not there any more\n", (unsigned long long)i * UNIT);
            abort();
        }
    }
}

static struct view disk, snapshot, now; /* too large for a coroutine's stack */

struct opinion {
    bool sound, has_bitmaps;
};

/* What a check says; and the first snapshot's name, or "". */
static struct opinion coroutine_fn ask(char name[64])
{
    struct opinion opinion = {0};
    struct node *node = open_image(false, true, NULL);
    struct qcow2_snapshot_info *list = NULL;
    struct qcow2_check result;
    struct qcow2_info info;
    struct error err;
    size_t count = 0;

    name[0] = '\0';
    if (!node)
        return opinion;
    opinion.sound = qcow2_co_check(node, 0, &result, NULL, NULL, &err) == 0 && !result.corruptions &&
                    !result.leaks && !result.check_errors;
    if (qcow2_snapshots(node, &list, &count) == 0 && count)
        snprintf(name, 64, "%s", list[0].id);
    opinion.has_bitmaps = qcow2_info(node, &info) == 0 && info.nb_bitmaps;
    free(list);
    (void)node_co_close(node);
    return opinion;
}

static void coroutine_fn repair(unsigned fix)
{
    struct node *node = open_image(true, true, NULL);
    struct qcow2_check result;
    struct error err;

    if (!node)
        return;
    (void)qcow2_co_check(node, fix, &result, NULL, NULL, &err);
    (void)node_co_close(node);
}

static void coroutine_fn compare_all(const char *name)
{
    look(&now, NULL);
    must_be_kept(&disk, &now);
    if (name[0]) {
        look(&now, name);
        must_be_kept(&snapshot, &now);
    }
}

/* The disk as a snapshot, and the disk changed; the first snapshot is deleted if that is asked for. */
static void coroutine_fn change(const char *name, bool delete)
{
    struct node *node = open_image(true, false, NULL);
    struct error err;

    if (!node)
        return;
    bool made = qcow2_co_snapshot_create(node, "to be kept", &err) == 0;
    write_some(node);
    if (delete &&name[0])
        (void)qcow2_co_snapshot_delete(node, name, &err);
    write_some(node);
    if (node_co_close(node) < 0 || !made)
        return;
    look(&now, "to be kept");
    must_be_kept(&disk, &now);
    if (!delete &&name[0]) {
        look(&now, name);
        must_be_kept(&snapshot, &now);
    }
    node = open_image(true, false, NULL);
    if (!node)
        return;
    bool applied = qcow2_co_snapshot_apply(node, "to be kept", &err) == 0;
    bool closed = node_co_close(node) == 0;
    if (!applied || !closed)
        return;
    look(&now, NULL);
    must_be_kept(&disk, &now);
    node = open_image(true, false, NULL);
    if (!node)
        return;
    write_some(node);
    (void)node_co_close(node);
    look(&now, "to be kept");
    must_be_kept(&disk, &now);
}

static void coroutine_fn fuzz_image(uint8_t how)
{
    char name[64];
    struct opinion opinion = ask(name);

    look(&disk, NULL);
    snapshot.there = false;
    if (name[0])
        look(&snapshot, name);
    if (!opinion.sound && !opinion.has_bitmaps) {
        if (how >= 8) { /* one that is cut short comes before */
            f.cut = true;
            f.writes_left = how / 8;
            repair(how % 2 ? QCOW2_FIX_LEAKS : QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS);
            f.cut = false;
            compare_all(name);
        }
        repair(how % 2 ? QCOW2_FIX_LEAKS : QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS);
        compare_all(name);
        opinion = ask(name);
    }
    if (opinion.sound)
        change(name, how % 4 >= 2);
}
