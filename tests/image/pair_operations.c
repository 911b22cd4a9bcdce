/*
 * Operations and snapshots on both images of a pair; see pair.h.
 *
 * What always holds: an operation is drawn from the pair's seed alone, so a run can be repeated; ours is done
 * when it is drawn, QEMU's is noted for a process of qemu-io, which does many in a row.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/qcow2.h"
#include "tests/image/pair.h"

struct call {
    struct pair *p;
    uint64_t count;
    int ret;
};

/* ---- operations ---- */

static bool coroutine_fn done(struct pair *p, const char *what, uint64_t offset, uint64_t bytes, int ret)
{
    return ret >= 0 ||
           pair_wrong(p, "our %s at %" PRIu64 "+%" PRIu64 ": %s", what, offset, bytes, strerror(-ret));
}

static void touch(struct pair *p, uint64_t offset, uint64_t bytes)
{
    for (uint64_t i = offset / p->cluster; bytes && i <= (offset + bytes - 1) / p->cluster; i++)
        p->touched[i] = 1;
}

static bool coroutine_fn one_write(struct pair *p, uint64_t offset, uint64_t bytes, uint8_t fill)
{
    memset(p->buffer, fill, bytes);
    memset(p->model + offset, fill, bytes);
    touch(p, offset, bytes);
    fprintf(p->script, "write -q -P %u %" PRIu64 " %" PRIu64 "\n", fill, offset, bytes);
    return done(p, "write", offset, bytes, node_co_pwrite(p->node, offset, p->buffer, bytes, 0));
}

static bool coroutine_fn one_zero(struct pair *p, uint64_t offset, uint64_t bytes, bool unmap)
{
    memset(p->model + offset, 0, bytes);
    touch(p, offset, bytes);
    fprintf(p->script, "write -q -z %s %" PRIu64 " %" PRIu64 "\n", unmap ? "-u" : "", offset, bytes);
    return done(p, "write of zeroes", offset, bytes,
                node_co_pwrite_zeroes(p->node, offset, bytes, unmap ? NODE_IO_MAY_UNMAP : 0));
}

/* The content after a discard is the old one or zeroes, as the implementation likes, a sector at a time. So
 * what was discarded is written again at once, with zeroes or data. */
static bool coroutine_fn one_discard(struct pair *p, uint64_t offset, uint64_t bytes, uint8_t fill,
                                     bool unmap)
{
    int ret = node_co_pdiscard(p->node, offset, bytes);
    if (ret == 0)
        ret = node_co_pread(p->node, offset, p->buffer, bytes);
    if (!done(p, "discard", offset, bytes, ret))
        return false;
    for (uint64_t i = 0; i < bytes; i++) {
        if (p->buffer[i] && p->buffer[i] != p->model[offset + i])
            return pair_wrong(p, "a discard shows a stranger's data at %" PRIu64, offset + i);
    }
    fprintf(p->script, "discard -q %" PRIu64 " %" PRIu64 "\n", offset, bytes);
    return fill & 1 ? one_write(p, offset, bytes, fill) : one_zero(p, offset, bytes, unmap);
}

/* A whole cluster where there is nothing yet. Nothing else is written as long as QEMU's process lives: it
 * would go on filling a cluster of compressed ones that was freed and used again meanwhile, and damage the
 * image. */
static bool coroutine_fn one_compressed(struct pair *p, uint64_t offset, uint8_t fill)
{
    uint64_t start = offset / p->cluster * p->cluster;
    uint64_t bytes = p->bytes - start < p->cluster ? p->bytes - start : p->cluster;
    if (p->luks || p->data_file || bytes > PAIR_REQUEST_MAX || p->touched[start / p->cluster])
        return true;
    memset(p->buffer, fill, bytes);
    memset(p->model + start, fill, bytes);
    touch(p, start, bytes);
    fprintf(p->script, "write -q -c -P %u %" PRIu64 " %" PRIu64 "\n", fill, start, bytes);
    return done(p, "compressed write", start, bytes,
                node_co_pwrite(p->node, start, p->buffer, bytes, NODE_IO_COMPRESSED));
}

/* Would QEMU have to write zeroes into a part of what may be a compressed cluster, to hide the backing file
 * behind the old end? With subclusters it can't. */
static bool end_in_the_way(const struct pair *p, uint64_t bytes)
{
    return bytes > p->bytes && p->bytes % p->cluster && pair_backing(p->c) &&
           combination_is(p->c, D_EXTENDED_L2, "on");
}

static bool coroutine_fn one_resize(struct pair *p)
{
    uint64_t most = p->cluster > (1u << 20) ? PAIR_DISK_MAX : 3u << 20, least = most / 6;
    uint64_t unit = combinations_below(&p->seed, 2) ? 512 : p->cluster;
    uint64_t bytes = (least + combinations_below(&p->seed, most - least)) / unit * unit;
    struct error err = {0};
    if (combination_is(p->c, D_VERSION, "0.10") && p->nb_snapshots)
        return true;
    if (p->luks && p->data_file)
        return true; /* QEMU's shows noise behind the old end */
    if (combination_is(p->c, D_VERSION, "0.10") && pair_backing(p->c) && bytes > p->bytes)
        return true; /* QEMU does not write out the zeroes that hide the backing file there */
    if (end_in_the_way(p, bytes) && !one_write(p, p->bytes - 512, 512, 0x77))
        return false;
    int ret = node_co_truncate(p->node, bytes, true, &err);
    if (ret < 0)
        return pair_wrong(p, "our resize to %" PRIu64 ": %s", bytes, err.text);
    if (bytes > p->bytes)
        memset(p->model + p->bytes, 0, bytes - p->bytes);
    if (p->bytes % p->cluster)
        touch(p, p->bytes, 1); /* the cluster at the old end */
    fprintf(p->script, "truncate %" PRIu64 "\n", bytes);
    uint64_t old = p->bytes, up = (old + p->cluster - 1) / p->cluster * p->cluster;
    p->bytes = bytes;
    /* QEMU shows again what was cut off, if it lies in the same cluster. */
    if (bytes > old && up > old)
        return one_zero(p, old, (up < bytes ? up : bytes) - old, false);
    return true;
}

static bool wrong_read(struct pair *p, uint64_t offset)
{
    uint64_t i = 0;
    while (p->buffer[i] == p->model[offset + i])
        i++;
    return pair_wrong(p, "our read at %" PRIu64 " is wrong at %" PRIu64 ": %02x, not %02x", offset,
                      offset + i, p->buffer[i], p->model[offset + i]);
}

static bool coroutine_fn one_op(struct pair *p)
{
    static const uint64_t units[] = {1, 1, 512, 512, 512, 4096, 4096};
    unsigned kind = (unsigned)combinations_below(&p->seed, 1000);
    uint64_t unit = units[combinations_below(&p->seed, sizeof units / sizeof units[0])];
    uint64_t most = combinations_below(&p->seed, 3) ? 8192 : PAIR_REQUEST_MAX;
    if (kind >= 800 && kind < 880)
        unit = 512; /* discards of less than a sector are nothing to anybody */
    if (!combinations_below(&p->seed, 8))
        unit = p->cluster < PAIR_REQUEST_MAX ? p->cluster : PAIR_REQUEST_MAX;
    uint64_t offset = combinations_below(&p->seed, p->bytes) / unit * unit;
    uint64_t bytes = (1 + combinations_below(&p->seed, most)) / unit * unit;
    if (bytes == 0)
        bytes = unit;
    if (bytes > p->bytes - offset)
        bytes = p->bytes - offset;
    uint8_t fill = (uint8_t)(1 + combinations_below(&p->seed, 255));
    bool unmap = combinations_below(&p->seed, 2);

    if (p->compressing && kind < 600)
        return one_compressed(p, offset, fill);
    if (p->compressing)
        kind = kind < 900 ? 600 : 990; /* a read or a flush */
    if (kind < 550)
        return one_write(p, offset, bytes, fill);
    if (kind < 700) {
        int ret = node_co_pread(p->node, offset, p->buffer, bytes);
        fprintf(p->script, "read -q %" PRIu64 " %" PRIu64 "\n", offset, bytes);
        return done(p, "read", offset, bytes, ret) &&
               (memcmp(p->buffer, p->model + offset, bytes) == 0 || wrong_read(p, offset));
    }
    if (kind < 800)
        return one_zero(p, offset, bytes, unmap);
    if (kind < 880)
        return one_discard(p, offset, bytes, fill, unmap);
    if (kind < 998) {
        fprintf(p->script, "flush\n");
        return done(p, "flush", 0, 0, node_co_flush(p->node));
    }
    return one_resize(p);
}

static void coroutine_fn ops_entry(void *opaque)
{
    struct call *call = opaque;
    struct pair *p = call->p;
    call->ret = pair_co_open(p, OURS, true, false, NULL, &p->node);
    if (call->ret < 0)
        return;
    bool good = true;
    for (uint64_t i = 0; good && i < call->count; i++)
        good = one_op(p);
    int closed = node_co_close(p->node);
    if (good && closed < 0)
        good = pair_wrong(p, "we can't close ours: %s", strerror(-closed));
    call->ret = good ? 0 : -EIO;
}

/* What a qemu-io that failed had been told, for whoever looks into it: DIR/script. */
static void keep_script(const struct pair *p, const char *const commands[])
{
    char path[600];
    snprintf(path, sizeof path, "%s/script", p->dir);
    FILE *file = fopen(path, "we");
    for (unsigned i = 1; file && commands[i - 1]; i += 2)
        fprintf(file, "%s\n", commands[i]);
    if (file)
        fclose(file);
}

bool pair_operate(struct pair *p, uint64_t count)
{
    static const char *commands[2 * PAIR_COMMANDS_MAX + 1];
    char *text = NULL;
    size_t bytes = 0, n = 0;
    p->script = open_memstream(&text, &bytes);
    if (!p->script)
        return pair_wrong(p, "no script: %s", strerror(errno));
    struct call call = {.p = p, .count = count};
    loop_run_coroutine(p->loop, ops_entry, &call);
    if (fclose(p->script) != 0 || call.ret < 0) {
        free(text);
        return pair_wrong(p, "no script");
    }
    /* As options: what it reads from its input goes one by one through its event loop. */
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        commands[n++] = "-c";
        commands[n++] = line;
    }
    commands[n] = NULL;
    int status = n == 0 ? 0 : pair_qemu(p, "qemu-io", NULL, commands, THEIRS, false);
    if (status != 0)
        keep_script(p, commands);
    free(text);
    if (p->verbose)
        printf("# %" PRIu64 " operations, disk %" PRIu64 ", qemu-io %d\n", count, p->bytes, status);
    return status == 0 || pair_wrong(p, "qemu-io exits with %d, see report", status);
}

/* ---- snapshots ---- */

struct change {
    struct pair *p;
    char what; /* as qemu-img's options: c, a, d */
    const char *name;
    int ret;
};

static void coroutine_fn snapshot_entry(void *opaque)
{
    struct change *change = opaque;
    struct node *node;
    struct error err = {0};
    change->ret = pair_co_open(change->p, OURS, true, false, NULL, &node);
    if (change->ret < 0)
        return;
    change->ret = change->what == 'c'   ? qcow2_co_snapshot_create(node, change->name, &err)
                  : change->what == 'a' ? qcow2_co_snapshot_apply(node, change->name, &err)
                                        : qcow2_co_snapshot_delete(node, change->name, &err);
    int closed = node_co_close(node);
    if (closed < 0)
        pair_wrong(change->p, "we can't close ours after snapshot -%c: %s", change->what, strerror(-closed));
}

/* *DONE: it was possible, on both sides. */
static bool on_both(struct pair *p, char what, const char *name, bool *was_done)
{
    struct change change = {.p = p, .what = what, .name = name};
    char option[3] = {'-', what, 0};
    loop_run_coroutine(p->loop, snapshot_entry, &change);
    int status =
        pair_qemu(p, "qemu-img", "snapshot", (const char *const[]){option, name, NULL}, THEIRS, false);
    *was_done = change.ret == 0;
    if (p->verbose)
        printf("# snapshot -%c %s: ours %d, theirs %d, disk %" PRIu64 "\n", what, name, change.ret, status,
               p->bytes);
    /* Refcounts of so few bits cannot count another reference. QEMU leaves damage behind then. */
    if (change.ret < 0 && status != 0)
        (void)pair_qemu(p, "qemu-img", "check", (const char *const[]){"-q", "-r", "all", NULL}, THEIRS,
                        false);
    return (change.ret == 0) == (status == 0) ||
           pair_wrong(p, "snapshot -%c %s: ours %s, qemu-img exits with %d, see report", what, name,
                      strerror(-change.ret), status);
}

bool pair_change_snapshots(struct pair *p)
{
    uint64_t pick = combinations_below(&p->seed, 4);
    unsigned bits = (unsigned)combination_number(p->c, D_REFCOUNT_BITS);
    /* The snapshots, the disk, and another one. Of one bit nothing can be shared: both refuse. */
    bool enough_bits = bits >= 4 || p->nb_snapshots + 2 < 1u << bits;
    bool was_done;
    if (p->data_file)
        return true;
    if (p->nb_snapshots == 0 || (pick < 2 && p->nb_snapshots < PAIR_SNAPSHOTS_MAX && enough_bits)) {
        struct snapshot *s = &p->snapshots[p->nb_snapshots];
        snprintf(s->name, sizeof s->name, "snap%u", p->names++);
        if (!on_both(p, 'c', s->name, &was_done))
            return false;
        if (!was_done)
            return true;
        s->disk = malloc(p->bytes);
        if (!s->disk)
            return pair_wrong(p, "out of memory");
        memcpy(s->disk, p->model, p->bytes);
        s->bytes = p->bytes;
        p->nb_snapshots++;
        return true;
    }
    unsigned at = (unsigned)combinations_below(&p->seed, p->nb_snapshots);
    struct snapshot *s = &p->snapshots[at];
    if (pick & 1) {
        if (!enough_bits)
            return true; /* it would fail, and QEMU's would have another size then */
        if (end_in_the_way(p, s->bytes))
            return true;
        if (!on_both(p, 'a', s->name, &was_done))
            return false;
        if (was_done) {
            memcpy(p->model, s->disk, s->bytes);
            p->bytes = s->bytes;
        }
        return true;
    }
    if (!on_both(p, 'd', s->name, &was_done) || !was_done)
        return pair_wrong(p, "snapshot %s cannot be deleted", s->name);
    free(s->disk);
    *s = p->snapshots[--p->nb_snapshots];
    return true;
}
