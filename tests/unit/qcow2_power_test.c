/*
 * Changes that replace tables as a whole, and a power loss at every step of them: snapshots made, deleted,
 * applied, the disk emptied and resized, in version 2 (which has no dirty bit) and 3.
 *
 * Everything that such a change does to the disk is recorded with its data. For each moment, what was flushed
 * is there, and of the rest: all, nothing, all but one, one alone. In each such state the image opens, check
 * finds leaks at most, and the guest sees the disk as it was before or as it is after (checklist O2, F5,
 * F13).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/qcow2_rig.h"

#define SIZE (512 * KIB)
#define ROOM (16 * MIB) /* of an image file */

struct change {
    const char *name;
    int coroutine_fn (*make)(struct error *err);
};

static struct node *co_open(struct fake_disk *from, const char *what)
{
    struct node *opened = NULL;
    struct error err = {""};
    if (open_disk(from, &(struct open_options){RIG_OPTIONS}, &opened, &err) < 0)
        fail_msg("%s: cannot be opened: %s", what, err.text);
    return opened;
}

static bool same(const struct content *a, const struct content *b)
{
    return a->bytes == b->bytes && memcmp(a->data, b->data, a->bytes) == 0;
}

/* Something in every state that a cluster can have: its own, shared with one snapshot or with two, the
 * snapshot's alone, zero, discarded. */
static void co_history(void)
{
    struct error err;
    write_at(0, SIZE / 2, 1);
    assert_int_equal(qcow2_co_snapshot_create(node, "first", &err), 0);
    write_at(8192, 65536, 2);
    assert_int_equal(qcow2_co_snapshot_create(node, "second", &err), 0);
    write_at(SIZE / 4, 32768, 3);
    write_at(SIZE - 32768, 32768, 4);
    assert_int_equal(node_co_pdiscard(node, 131072, 65536), 0);
    assert_int_equal(node_co_pwrite_zeroes(node, 65536, 16384, NODE_IO_MAY_UNMAP), 0);
    assert_int_equal(node_co_flush(node), 0);
}

static void coroutine_fn print_finding(void *opaque, const char *line)
{
    printf("# %s\n", line);
}

static unsigned states;

/* The image as DATA says, after a power loss. */
static void co_verify(const uint8_t *data, uint64_t length, const char *what, const struct content *before,
                      const struct content *after)
{
    struct fake_disk left = {.limits = disk.limits, .grows = true, .length = length, .data = malloc(ROOM)};
    struct qcow2_check result = {0};
    struct error err = {""};
    states++;
    memcpy(left.data, data, length);
    struct node *opened = co_open(&left, what);
    assert_int_equal(qcow2_co_check(opened, 0, &result, NULL, NULL, &err), 0);
    if (result.corruptions || result.check_errors) {
        (void)qcow2_co_check(opened, 0, &result, print_finding, NULL, &err);
        fail_msg("%s: %llu corruptions", what, (unsigned long long)result.corruptions);
    }
    struct content now = co_content(opened);
    if (!same(&now, before) && !same(&now, after))
        fail_msg("%s: the disk is neither as before nor as after", what);
    free(now.data);
    assert_int_equal(node_co_close(opened), 0);
    fake_disk_free(&left);
}

/* States of the image with DONE entries of the log flushed and the next PENDING ones not. */
static void co_states(const uint8_t *base, uint64_t base_length, size_t done, size_t pending,
                      const struct change *change, const struct content *before, const struct content *after)
{
    uint8_t *data = malloc(ROOM);
    char what[128];
    for (size_t way = 0; way < 2 * pending + 2; way++) {
        uint64_t length = base_length;
        memcpy(data, base, length);
        memset(data + length, 0, ROOM - length);
        for (size_t i = 0; i < pending; i++) {
            bool there = way == 2 * pending       ? false
                         : way == 2 * pending + 1 ? true
                         : way < pending          ? i == way   /* one alone */
                                                  : i != way - pending; /* all but one */
            if (there)
                length = fake_logged_apply(&disk.log[done + i], data, length);
        }
        snprintf(what, sizeof(what), "%s, %zu flushed, way %zu of %zu pending", change->name, done, way,
                 pending);
        co_verify(data, length, what, before, after);
    }
    free(data);
}

static const struct qcow2_create_options *options;
static const struct change *changing;

static void power_body(void *arg)
{
    struct error err = {""};
    load_image(options);
    node = co_open(&disk, "at first");
    co_history();
    struct content before = co_content(node);
    uint8_t *base = malloc(ROOM);
    uint64_t length = disk.length;
    assert_true(disk.length <= ROOM);
    memcpy(base, disk.data, disk.length);
    memset(base + length, 0, ROOM - length);
    disk.keep_log = true;
    int ret = changing->make(&err);
    disk.keep_log = false;
    if (ret < 0)
        fail_msg("%s: %s", changing->name, err.text);
    struct content after = co_content(node);
    assert_int_equal(node_co_close(node), 0);
    co_verify(disk.data, disk.length, "after closing", &after, &after);
    size_t done = 0;
    for (size_t i = 0; i <= disk.logged; i++) {
        if (i < disk.logged && disk.log[i].op != FAKE_FLUSH)
            continue;
        co_states(base, length, done, i - done, changing, &before, &after);
        for (; done < i; done++)
            length = fake_logged_apply(&disk.log[done], base, length);
        done++;
    }
    free(base);
    free(before.data);
    free(after.data);
    fake_disk_free(&disk);
}

static int coroutine_fn co_make_snapshot(struct error *err)
{
    return qcow2_co_snapshot_create(node, "third", err);
}

static int coroutine_fn co_delete_first(struct error *err)
{
    return qcow2_co_snapshot_delete(node, "first", err);
}

static int coroutine_fn co_delete_second(struct error *err)
{
    return qcow2_co_snapshot_delete(node, "second", err);
}

static int coroutine_fn co_apply_first(struct error *err)
{
    return qcow2_co_snapshot_apply(node, "first", err);
}

static int coroutine_fn co_empty(struct error *err)
{
    return qcow2_co_make_empty(node, err);
}

static int coroutine_fn co_grow(struct error *err)
{
    return node_co_truncate(node, 4 * SIZE, true, err);
}

static const struct change changes[] = {
    {"create", co_make_snapshot},
    {"delete the first", co_delete_first},
    {"delete the second", co_delete_second},
    {"apply", co_apply_first},
    {"empty", co_empty},
    {"grow", co_grow},
};

static void all_changes(const struct qcow2_create_options *how)
{
    options = how;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        if (how->version == 2 && changes[i].make == co_grow)
            continue; /* not with snapshots */
        changing = &changes[i];
        in_coroutine(power_body);
    }
    printf("# %u states\n", states);
}

static void version_2(void **state)
{
    all_changes(&(struct qcow2_create_options){.size = SIZE, .version = 2, .cluster_bytes = 4096});
}

static void version_3(void **state)
{
    all_changes(&(struct qcow2_create_options){.size = SIZE, .cluster_bytes = 4096});
}

static void small_clusters(void **state)
{
    all_changes(&(struct qcow2_create_options){.size = SIZE, .cluster_bytes = 512, .refcount_bits = 64});
}

static void subclusters(void **state)
{
    all_changes(&(struct qcow2_create_options){.size = SIZE, .cluster_bytes = 16384, .extended_l2 = true});
}

/* Making and deleting snapshots again and again uses the room of the one before. */
static void turns_body(void *arg)
{
    struct error err = {""};
    load_image(&(struct qcow2_create_options){.size = SIZE, .version = 2, .cluster_bytes = 4096});
    node = co_open(&disk, "at first");
    write_at(0, SIZE, 1);
    uint64_t length = 0;
    for (int i = 0; i < 40; i++) {
        assert_int_equal(qcow2_co_snapshot_create(node, "one", &err), 0);
        write_at(0, 4096, i);
        assert_int_equal(qcow2_co_snapshot_delete(node, "one", &err), 0);
        if (i == 10)
            length = qcow2_state(node)->fresh_from;
    }
    assert_true(qcow2_state(node)->fresh_from <= length);
    assert_int_equal(node_co_close(node), 0);
    fake_disk_free(&disk);
}

static void room_is_used_again(void **state)
{
    in_coroutine(turns_body);
}

/* ---- the header's names, in writes that are torn between sectors ---- */

#define LONG_NAME(c) c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c
#define ITS_FORMAT   "raw"

static const struct naming {
    const char *from, *to; /* NULL: none */
    const char *to_format;
} namings[] = {
    {NULL, "base", "raw"},
    {"base", NULL, NULL},
    {"base", "another, and a longer one", "qcow2"},
    {LONG_NAME("a rather long name "), "base", "qcow2"},
    {LONG_NAME("a rather long name "), LONG_NAME("quite another name "), "raw"},
    {"base", "base", "qcow2"},
};

static bool equal(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static void co_verify_names(const uint8_t *data, uint64_t length, const struct naming *naming)
{
    struct fake_disk left = {.limits = disk.limits, .grows = true, .length = length, .data = malloc(ROOM)};
    struct open_options how = {.format = "qcow2", .no_backing = true, .read_only = true};
    struct node *opened = NULL;
    struct qcow2_info info;
    struct error err = {""};
    states++;
    memcpy(left.data, data, length);
    if (open_disk(&left, &how, &opened, &err) < 0)
        fail_msg("cannot be opened: %s", err.text);
    assert_int_equal(qcow2_info(opened, &info), 0);
    bool old = equal(info.backing_file, naming->from) &&
               equal(info.backing_format, naming->from ? ITS_FORMAT : NULL);
    bool new = equal(info.backing_file, naming->to) && equal(info.backing_format, naming->to_format);
    if (!old && !new)
        fail_msg("'%s', format '%s': neither as before nor as after",
                 info.backing_file ? info.backing_file : "none",
                 info.backing_format ? info.backing_format : "none");
    assert_int_equal(node_co_close(opened), 0);
    fake_disk_free(&left);
}

/* LOGGED is a write that got as far as some of its sectors. */
static void co_torn(const uint8_t *base, uint64_t length, const struct fake_logged *logged,
                    const struct naming *naming)
{
    uint8_t *data = malloc(ROOM);
    uint64_t sectors = logged->bytes / 512;
    for (uint64_t way = 0; way < 3 * sectors; way++) {
        memcpy(data, base, length);
        for (uint64_t i = 0; i < sectors; i++) {
            uint64_t k = way % sectors;
            if (way < sectors ? i < k : way < 2 * sectors ? i > k : i == k)
                memcpy(data + logged->offset + i * 512, logged->data + i * 512, 512);
        }
        co_verify_names(data, length, naming);
    }
    free(data);
}

static void naming_body(void *arg)
{
    const struct naming *naming = arg;
    struct open_options how = {.format = "qcow2", .no_backing = true};
    struct error err = {""};
    load_image(&(struct qcow2_create_options){.size = SIZE,
                                              .cluster_bytes = 4096,
                                              .backing_file = naming->from,
                                              .backing_format = naming->from ? ITS_FORMAT : NULL});
    uint8_t *base = malloc(ROOM);
    uint64_t length = disk.length;
    memcpy(base, disk.data, length);
    assert_int_equal(open_image_as(&how), 0);
    disk.keep_log = true;
    assert_int_equal(qcow2_co_change_backing(node, naming->to, naming->to_format, &err), 0);
    disk.keep_log = false;
    assert_int_equal(node_co_close(node), 0);
    for (size_t i = 0; i < disk.logged; i++) {
        if (disk.log[i].op == FAKE_WRITE)
            co_torn(base, length, &disk.log[i], naming);
        if (disk.log[i].op != FAKE_FLUSH)
            length = fake_logged_apply(&disk.log[i], base, length);
        co_verify_names(base, length, naming);
    }
    assert_memory_equal(base, disk.data, length);
    co_verify_names(base, length, &(struct naming){naming->to, naming->to, naming->to_format});
    free(base);
    fake_disk_free(&disk);
}

static void names_change_at_once(void **state)
{
    states = 0;
    for (size_t i = 0; i < sizeof(namings) / sizeof(namings[0]); i++)
        assert_int_equal(loop_run_coroutine(loop, naming_body, (void *)(uintptr_t)&namings[i]), 0);
    printf("# %u states\n", states);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(version_2),          cmocka_unit_test(version_3),
        cmocka_unit_test(small_clusters),     cmocka_unit_test(subclusters),
        cmocka_unit_test(room_is_used_again), cmocka_unit_test(names_change_at_once),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
