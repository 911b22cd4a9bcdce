/*
 * Bitmaps of one image copied into another (checklist K): what the target holds afterwards, what it holds if
 * any request on the way fails, or if the power goes at any moment, and which sources are refused.
 *
 * The target of each row of the table `targets` is written to, then gets the source's bitmap. Of its bitmaps
 * the old ones are there afterwards, whatever happens, and the new one is there with all its bits or not at
 * all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/qcow2_rig.h"

#define SIZE    (4 * MIB)
#define GRANULE (64 * KIB)
#define ROOM    (16 * MIB) /* of an image file */
#define NEW     "one"
#define OLD     "old"

static const struct target {
    const char *name;
    struct qcow2_create_options how;
    bool has_old;    /* there is a bitmap that does not record writes */
    uint32_t filler; /* bytes of an extension in front of the bitmaps'; 0: none */
    bool may_lose;   /* the extension lies across two sectors: a power cut may leave no bitmap */
} targets[] = {
    {"no bitmap yet", {.size = SIZE, .cluster_bytes = 4096}},
    {"... clusters of 512 bytes", {.size = SIZE, .cluster_bytes = 512}},
    {"... a backing file",
     {.size = SIZE, .cluster_bytes = 4096, .backing_file = "b", .backing_format = "raw"}},
    {"... the extension in two sectors", {.size = SIZE, .cluster_bytes = 4096}, .filler = 488},
    {"... the extension begins with a sector", {.size = SIZE, .cluster_bytes = 4096}, .filler = 504},
    {"a bitmap more", {.size = SIZE, .cluster_bytes = 4096}, .has_old = true},
    {"... clusters of 512 bytes", {.size = SIZE, .cluster_bytes = 512}, .has_old = true},
    {"... the extension in two sectors", {.size = SIZE, .cluster_bytes = 4096}, true, 368, true},
};

static const struct target *target;
static struct fake_disk from; /* the source's */
static struct node *source;
static uint64_t new_bits, old_bits; /* what is marked, a bit a granule */
static unsigned states, lost;       /* LOST: without the old bitmap */

/* ---- images ---- */

static uint64_t directory_of(struct qcow2 *s)
{
    struct qcow2_bitmaps_extension h;
    memcpy(&h, qcow2_find_ext(s, QCOW2_EXT_BITMAPS)->data, sizeof(h));
    return be64_get(h.directory_offset);
}

/* An extension that nobody knows in front of that of the bitmaps. */
static void coroutine_fn add_filler(uint32_t bytes)
{
    uint8_t *data = calloc(1, bytes);
    memset(data, 0x55, bytes);
    co_mutex_lock(&q->header_lock);
    assert_int_equal(qcow2_set_ext(q, 0x11111111, data, bytes), 0);
    struct qcow2_ext *last = &q->exts[q->nb_exts - 1];
    for (struct qcow2_ext *e = last; e > q->exts && e[-1].type == QCOW2_EXT_BITMAPS; e--) {
        struct qcow2_ext bitmaps = e[-1];
        e[-1] = *e;
        *e = bitmaps;
    }
    assert_int_equal(qcow2_co_write_header(q), 0);
    co_mutex_unlock(&q->header_lock);
    free(data);
}

static const struct open_options how_opened = {RIG_OPTIONS, .no_backing = true};

/* The target's disk, with data and the old bitmap's bits in it, and closed. False: there is no qemu-img. */
static bool coroutine_fn co_make_target(void)
{
    static const struct target *made; /* is what IMAGE is for */
    static struct content image;
    if (made != target) {
        free(image.data);
        image = create_image(&target->how, target->has_old);
        made = target;
    }
    if (!image.data)
        return false;
    fresh_disk(&image);
    assert_int_equal(open_image_as(&how_opened), 0);
    if (target->filler)
        add_filler(target->filler);
    write_at(1 * MIB, 100 * KIB, 1);
    uint64_t entry = target->has_old ? directory_of(q) : 0;
    assert_int_equal(node_co_close(node), 0);
    if (target->has_old) { /* it is called so from now on, and has recorded enough */
        disk.data[entry + offsetof(struct qcow2_bitmap_header, flags) + 3] = 0;
        memcpy(disk.data + entry + sizeof(struct qcow2_bitmap_header), OLD, strlen(OLD));
    }
    assert_int_equal(open_image_as(&how_opened), 0);
    write_at(2 * MIB, 4 * KIB, 2);
    return true;
}

/* The source's disk, with a bitmap that records, and closed. */
static bool coroutine_fn co_make_source(void)
{
    static struct content image;
    if (!image.data)
        image = create_image(&(struct qcow2_create_options){.size = SIZE, .cluster_bytes = 8192}, true);
    if (!image.data)
        return false;
    from = (struct fake_disk){.limits = {.request_alignment = 1, .memory_alignment = 1}, .grows = true};
    from.length = image.bytes;
    from.data = malloc(image.bytes);
    memcpy(from.data, image.data, image.bytes);
    assert_int_equal(open_disk(&from, &how_opened, &node, NULL), 0);
    write_at(0, 4 * KIB, 1);
    write_at(3 * MIB, 200 * KIB, 1);
    assert_int_equal(node_co_close(node), 0);
    new_bits = 1 | 15ull << 3 * MIB / GRANULE;
    old_bits = 3ull << 1 * MIB / GRANULE;
    return true;
}

static void coroutine_fn co_open_source(void)
{
    struct open_options how = how_opened;
    how.read_only = true;
    assert_int_equal(open_disk(&from, &how, &source, NULL), 0);
}

/* ---- what an image holds ---- */

/* The bits of the bitmap whose directory entry lies at AT of DATA. */
static uint64_t bits_of(const uint8_t *data, uint64_t at)
{
    struct qcow2_bitmap_header h;
    be64 entry;
    uint64_t bits = 0;
    memcpy(&h, data + at, sizeof(h));
    memcpy(&entry, data + be64_get(h.table_offset), sizeof(entry));
    if (be64_get(entry) == QCOW2_BITMAP_ALL_ONES)
        return UINT64_MAX;
    if (be64_get(entry))
        memcpy(&bits, data + (be64_get(entry) & QCOW2_BITMAP_OFFSET_MASK), sizeof(bits)); /* little-endian */
    return bits;
}

struct held {
    bool new, old;
    uint64_t leaks;
};

/* Of OPENED, which is the image in DATA: sound, with the target's disk, and what it has is right. */
static struct held coroutine_fn co_look(struct node *opened, const uint8_t *data, const char *what)
{
    struct qcow2_check result = {0};
    struct qcow2_bitmap_info *list;
    struct held held = {false, false, 0};
    struct error err;
    size_t count;
    uint8_t byte;
    states++;
    assert_int_equal(qcow2_co_check(opened, 0, &result, NULL, NULL, &err), 0);
    if (result.corruptions || result.check_errors)
        fail_msg("%s: %llu corruptions", what, (unsigned long long)result.corruptions);
    assert_int_equal(node_co_pread(opened, 1 * MIB + 99 * KIB, &byte, 1), 0);
    assert_int_equal(byte, 1);
    assert_int_equal(qcow2_co_bitmaps(opened, &list, &count, &err), 0);
    uint64_t at = count ? directory_of(qcow2_state(opened)) : 0;
    for (size_t i = 0; i < count; i++, at += 32) {
        bool new = strcmp(list[i].name, NEW) == 0;
        if (list[i].in_use || list[i].auto_load != new || list[i].granularity != GRANULE)
            fail_msg("%s: bitmap '%s' is not what it was", what, list[i].name);
        uint64_t bits = bits_of(data, at), want = new ? new_bits : old_bits;
        if (bits != want)
            fail_msg("%s: bitmap '%s' is %llx, not %llx", what, list[i].name, (unsigned long long)bits,
                     (unsigned long long)want);
        *(new ? &held.new : &held.old) = true;
    }
    free(list);
    held.leaks = result.leaks;
    return held;
}

static struct held coroutine_fn co_look_at_disk(const char *what)
{
    struct open_options how = how_opened;
    how.read_only = true;
    struct node *opened;
    struct error err = {""};
    if (open_disk(&disk, &how, &opened, &err) < 0)
        fail_msg("%s: cannot be opened: %s", what, err.text);
    struct held held = co_look(opened, disk.data, what);
    assert_int_equal(node_co_close(opened), 0);
    return held;
}

/* ---- the power goes ---- */

static void coroutine_fn co_state(const uint8_t *data, uint64_t length, const char *what)
{
    struct fake_disk left = {.limits = disk.limits, .grows = true, .length = length, .data = malloc(ROOM)};
    struct open_options how = how_opened;
    how.read_only = true;
    struct node *opened;
    struct error err = {""};
    memcpy(left.data, data, length);
    if (open_disk(&left, &how, &opened, &err) < 0)
        fail_msg("%s: cannot be opened: %s", what, err.text);
    struct held held = co_look(opened, left.data, what);
    lost += held.old != target->has_old;
    if (held.old != target->has_old && !target->may_lose)
        fail_msg("%s: the old bitmap is lost", what);
    if (held.new &&held.old != target->has_old)
        fail_msg("%s: the new bitmap without the old one", what);
    assert_int_equal(node_co_close(opened), 0);
    fake_disk_free(&left);
}

/* Of the PENDING entries of the log from DONE on: none, all, all but one, one alone, and one torn. */
static void coroutine_fn co_states(const uint8_t *base, uint64_t base_length, size_t done, size_t pending)
{
    uint8_t *data = malloc(ROOM);
    char what[100];
    for (size_t way = 0; way < 4 * pending + 2; way++) {
        size_t one = way % (pending ? pending : 1);
        uint64_t sectors = disk.log[done + one].bytes / 512 + 1;
        bool torn = way >= 2 * pending + 2 && disk.log[done + one].op == FAKE_WRITE;
        for (uint64_t cut = 0; cut < (torn ? sectors : 1); cut++) {
            uint64_t length = base_length;
            memcpy(data, base, length);
            memset(data + length, 0, ROOM - length);
            for (size_t i = 0; i < pending; i++) {
                struct fake_logged part = disk.log[done + i];
                if (torn && i == one && way < 3 * pending + 2) { /* its begin */
                    part.bytes = cut * 512 < part.bytes ? cut * 512 : part.bytes;
                } else if (torn && i == one) { /* its end */
                    uint64_t skipped = cut * 512 < part.bytes ? cut * 512 : part.bytes;
                    part.offset += skipped;
                    part.bytes -= skipped;
                    part.data += skipped;
                }
                bool there = torn                     ? i <= one
                             : way == 2 * pending     ? false
                             : way == 2 * pending + 1 ? true
                             : way < pending          ? i == way
                                                      : i != way - pending;
                if (there && (part.op != FAKE_WRITE || part.bytes))
                    length = fake_logged_apply(&part, data, length);
            }
            snprintf(what, sizeof(what), "%s, %zu flushed, way %zu of %zu pending, cut %u", target->name,
                     done, way, pending, (unsigned)cut);
            co_state(data, length, what);
        }
    }
    free(data);
}

static bool skipped;

static void power_body(void *arg)
{
    struct error err = {""};
    target = arg;
    skipped = !co_make_source() || !co_make_target();
    if (skipped)
        return;
    co_open_source();
    assert_int_equal(node_co_flush(node), 0);
    uint8_t *base = malloc(ROOM);
    uint64_t length = disk.length;
    memcpy(base, disk.data, length);
    disk.keep_log = true;
    if (qcow2_co_copy_bitmaps(source, node, &err) < 0)
        fail_msg("%s: %s", target->name, err.text);
    disk.keep_log = false;
    size_t done = 0;
    for (size_t i = 0; i <= disk.logged; i++) {
        if (i < disk.logged && disk.log[i].op != FAKE_FLUSH)
            continue;
        if (i > done)
            co_states(base, length, done, i - done);
        for (; done < i; done++)
            length = fake_logged_apply(&disk.log[done], base, length);
        done++;
    }
    free(base);
    assert_int_equal(target->may_lose, lost != 0);
    lost = 0;
    assert_int_equal(node_co_close(source), 0);
    assert_int_equal(node_co_close(node), 0);
    struct held held = co_look_at_disk(target->name);
    assert_true(held.new &&held.old == target->has_old);
    fake_disk_free(&disk);
    fake_disk_free(&from);
}

static void power_loss(void **state)
{
    states = 0;
    for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]) && !skipped; i++)
        assert_int_equal(loop_run_coroutine(loop, power_body, (void *)(uintptr_t)&targets[i]), 0);
    printf("# %u states\n", states);
    if (skipped)
        skip();
}

/* ---- requests fail ---- */

static const char *const op_names[] = {"read", "write", "zero", "discard", "flush", "truncate"};

/* The N-th request to one of the two disks. False: there are not so many. */
static bool coroutine_fn co_fail(struct fake_disk *failing, enum fake_op op, uint64_t n, bool half,
                                 uint64_t times)
{
    struct error err = {""};
    char what[100];
    snprintf(what, sizeof(what), "%s: %s %llu of the %s fails", target->name, op_names[op],
             (unsigned long long)n, failing == &disk ? "target" : "source");
    assert_true(co_make_source() && co_make_target());
    co_open_source();
    assert_int_equal(node_co_flush(node), 0);
    uint64_t number = failing->calls[op] + n;
    failing->error[op] = -EIO;
    failing->error_skip[op] = number;
    failing->error_times[op] = times;
    failing->half = half;
    int ret = qcow2_co_copy_bitmaps(source, node, &err);
    bool failed = failing->calls[op] > number;
    if (ret < 0 && (!err.text[0] || !strstr(err.text, "Input/output error")))
        fail_msg("%s: said '%s'", what, err.text);
    memset(failing->error, 0, sizeof(failing->error));
    failing->half = false;
    /* A flush that failed stays so. */
    bool broken = qcow2_io_error(q) || (ret < 0 && op == FAKE_FLUSH);
    unsigned count = (unsigned)target->has_old + (ret == 0);
    struct qcow2_info info;
    assert_int_equal(qcow2_info(node, &info), 0);
    assert_int_equal(info.nb_bitmaps, count);
    bool again = ret < 0 && !broken && times == 0;
    if (again && qcow2_co_copy_bitmaps(source, node, &err) < 0)
        fail_msg("%s: a second time: %s", what, err.text);
    assert_int_equal(node_co_close(source), 0);
    int closed = node_co_close(node);
    if ((closed < 0) != broken)
        fail_msg("%s: closing ends with %d", what, closed);
    struct held held = co_look_at_disk(what);
    if (held.old != target->has_old && !(target->may_lose && broken))
        fail_msg("%s: the old bitmap is lost", what);
    if (!broken && held.new != (ret == 0 || again))
        fail_msg("%s: the new bitmap is %sthere", what, held.new ? "" : "not ");
    if (!broken && held.leaks && times == 1) /* a table that cannot be read again is not given back */
        fail_msg("%s: %llu leaks", what, (unsigned long long)held.leaks);
    fake_disk_free(&disk);
    fake_disk_free(&from);
    return failed;
}

static void fail_body(void *arg)
{
    target = arg;
    skipped = !co_make_source() || !co_make_target();
    if (skipped)
        return;
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    fake_disk_free(&from);
    static const enum fake_op ops[] = {FAKE_READ, FAKE_WRITE, FAKE_FLUSH, FAKE_TRUNCATE};
    for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        uint64_t n = 0;
        while (co_fail(&disk, ops[i], n, false, 1) && co_fail(&disk, ops[i], n, false, 0) &&
               (ops[i] != FAKE_WRITE || co_fail(&disk, ops[i], n, true, 1)))
            n++;
        printf("# %s: %llu %ss failed\n", target->name, (unsigned long long)n, op_names[ops[i]]);
        if (ops[i] == FAKE_WRITE || ops[i] == FAKE_FLUSH)
            assert_true(n >= 2);
    }
    uint64_t n = 0;
    while (co_fail(&from, FAKE_READ, n, false, 1))
        n++;
    assert_true(n >= 2);
}

static void failures(void **state)
{
    for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]) && !skipped; i++)
        assert_int_equal(loop_run_coroutine(loop, fail_body, (void *)(uintptr_t)&targets[i]), 0);
    if (skipped)
        skip();
}

/* ---- the copy goes on recording ---- */

static void record_body(void *arg)
{
    struct error err = {""};
    target = &targets[5];
    skipped = !co_make_source() || !co_make_target();
    if (skipped)
        return;
    co_open_source();
    assert_int_equal(qcow2_co_copy_bitmaps(source, node, &err), 0);
    assert_int_equal(node_co_close(source), 0);
    write_at(2 * MIB, 4 * KIB, 7); /* without opening it anew */
    new_bits |= 1ull << 2 * MIB / GRANULE;
    assert_int_equal(node_co_flush(node), 0);
    assert_int_equal(node_co_close(node), 0);
    struct held held = co_look_at_disk("written to");
    assert_true(held.new &&held.old);
    assert_int_equal(open_image_as(&how_opened), 0);
    write_at(2 * MIB + GRANULE, 4 * KIB, 7);
    new_bits |= 1ull << (2 * MIB / GRANULE + 1);
    assert_int_equal(node_co_close(node), 0);
    held = co_look_at_disk("written to once more");
    assert_true(held.new &&held.old);
    fake_disk_free(&disk);
    fake_disk_free(&from);
}

static void goes_on_recording(void **state)
{
    in_coroutine(record_body);
    if (skipped)
        skip();
}

/* ---- sources that are refused ---- */

static const struct hostile {
    uint64_t entry; /* of the bitmap's table */
    const char *said;
} hostiles[] = {{1ull << 30, "leads to where it cannot lie"},
                {0x2200, "leads to where it cannot lie"},
                {0x2001, "leads to where it cannot lie"},
                {0x2002, "leads to where it cannot lie"},
                {1ull << 56 | 0x2000, "leads to where it cannot lie"}};

static void hostile_body(void *arg)
{
    const struct hostile *h = arg;
    struct error err = {""};
    struct qcow2_check result = {0};
    target = &targets[0];
    skipped = !co_make_source() || !co_make_target();
    if (skipped)
        return;
    co_open_source();
    struct qcow2_bitmap_header entry;
    memcpy(&entry, from.data + directory_of(qcow2_state(source)), sizeof(entry));
    be64 word = be64_put(h->entry);
    memcpy(from.data + be64_get(entry.table_offset), &word, sizeof(word));
    assert_int_equal(qcow2_co_copy_bitmaps(source, node, &err), -EINVAL);
    if (!strstr(err.text, h->said))
        fail_msg("said '%s'", err.text);
    assert_int_equal(node_co_close(source), 0);
    assert_int_equal(node_co_close(node), 0);
    struct held held = co_look_at_disk("after a hostile source");
    assert_false(held.new);
    assert_int_equal(open_image_as(&how_opened), 0);
    assert_int_equal(qcow2_co_check(node, 0, &result, NULL, NULL, &err), 0);
    assert_int_equal(result.leaks, 0);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
    fake_disk_free(&from);
}

static void tables_are_not_believed(void **state)
{
    for (size_t i = 0; i < sizeof(hostiles) / sizeof(hostiles[0]) && !skipped; i++)
        assert_int_equal(loop_run_coroutine(loop, hostile_body, (void *)(uintptr_t)&hostiles[i]), 0);
    if (skipped)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_loss),
        cmocka_unit_test(failures),
        cmocka_unit_test(goes_on_recording),
        cmocka_unit_test(tables_are_not_believed),
    };
    return cmocka_run_group_tests_name("bitmaps are copied", tests, setup, teardown);
}
