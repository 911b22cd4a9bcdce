/*
 * A disk in memory for tests: see fake_disk.h.
 */
#include "tests/unit/fake_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct fake_active {
    uint64_t start, end;
    bool writes;
    bool happens; /* whatever it ends with */
    struct fake_active *next;
};

static struct fake_disk *opening; /* under the loop of the test that opens */

static struct fake_disk *disk_of(struct node *node)
{
    return *(struct fake_disk **)node->opaque;
}

static void check_promises(struct fake_disk *disk, enum fake_op op, uint64_t offset, uint64_t bytes,
                           const struct sg *sg)
{
    const struct node_limits *limits = &disk->node->limits;
    bool fine = bytes > 0 && bytes < INT64_MAX && offset < INT64_MAX - bytes;
    if (!disk->grows && offset + bytes > disk->length)
        fine = false;
    if ((offset | bytes) % limits->request_alignment)
        fine = false;
    if (sg) {
        if (!sg_is_aligned(*sg, bytes, limits->memory_alignment))
            fine = false;
        if (limits->max_iov && sg_count(*sg, bytes) > limits->max_iov)
            fine = false;
        if (limits->max_transfer && bytes > limits->max_transfer)
            fine = false;
    }
    if (op == FAKE_ZERO && limits->max_pwrite_zeroes && bytes > limits->max_pwrite_zeroes)
        fine = false;
    if (op == FAKE_DISCARD && limits->max_pdiscard && bytes > limits->max_pdiscard)
        fine = false;
    if (!fine)
        disk->broken_promises++;
}

static int coroutine_fn begin(struct fake_disk *disk, struct fake_active *self, enum fake_op op,
                              uint64_t offset, uint64_t bytes, unsigned flags, const struct sg *sg)
{
    *self = (struct fake_active){offset, offset + bytes, op == FAKE_WRITE || op == FAKE_ZERO, NULL};
    spin_lock(&disk->guard);
    if (op != FAKE_FLUSH && op != FAKE_TRUNCATE)
        check_promises(disk, op, offset, bytes, sg);
    self->next = disk->active_list;
    for (struct fake_active *a = disk->active_list; a; a = a->next)
        disk->overlaps += (a->writes || self->writes) && a->start < self->end && self->start < a->end;
    disk->active_list = self;
    if (++disk->active > disk->active_max)
        disk->active_max = disk->active;
    uint64_t number = disk->calls[op]++;
    if (disk->records < sizeof(disk->record) / sizeof(disk->record[0]))
        disk->record[disk->records++] = (struct fake_record){op, offset, bytes, flags};
    bool fails = number >= disk->error_skip[op] &&
                 (!disk->error_times[op] || number - disk->error_skip[op] < disk->error_times[op]);
    int ret = fails ? disk->error[op] : 0;
    self->happens = ret == 0 || (op == FAKE_WRITE && disk->error_happens && number == disk->error_skip[op]);
    while (disk->hold)
        co_queue_wait_spin(&disk->held, &disk->guard);
    spin_unlock(&disk->guard);
    if (disk->delay_ns)
        co_sleep_ns(disk->delay_ns);
    return ret;
}

static void keep(struct fake_disk *disk, enum fake_op op, uint64_t offset, uint64_t bytes,
                 const struct sg *sg)
{
    if (!disk->keep_log)
        return;
    if (disk->logged == disk->log_room) {
        disk->log_room = disk->log_room * 2 + 64;
        disk->log = realloc(disk->log, disk->log_room * sizeof(*disk->log));
    }
    struct fake_logged *logged = &disk->log[disk->logged++];
    *logged = (struct fake_logged){op, offset, bytes, NULL};
    if (sg) {
        logged->data = malloc(bytes);
        sg_copy_out(*sg, logged->data, bytes);
    }
}

uint64_t fake_logged_apply(const struct fake_logged *logged, uint8_t *data, uint64_t length)
{
    uint64_t end = logged->offset + logged->bytes;
    if (logged->op == FAKE_TRUNCATE) {
        if (end < length)
            memset(data + end, 0, length - end);
        return end;
    }
    if (logged->op == FAKE_WRITE)
        memcpy(data + logged->offset, logged->data, logged->bytes);
    else if (logged->op == FAKE_ZERO || (logged->op == FAKE_DISCARD && end <= length))
        memset(data + logged->offset, 0, logged->bytes);
    else
        return length;
    return end > length ? end : length;
}

static int end(struct fake_disk *disk, struct fake_active *self, int ret)
{
    spin_lock(&disk->guard);
    struct fake_active **link = &disk->active_list;
    while (*link != self)
        link = &(*link)->next;
    *link = self->next;
    disk->active--;
    spin_unlock(&disk->guard);
    return ret;
}

static void ensure(struct fake_disk *disk, uint64_t bytes)
{
    if (bytes <= disk->length)
        return;
    disk->data = realloc(disk->data, bytes);
    memset(disk->data + disk->length, 0, bytes - disk->length);
    disk->length = bytes;
    node_grow_length(disk->node, bytes);
}

static int coroutine_fn fake_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                       unsigned flags)
{
    struct fake_disk *disk = disk_of(node);
    struct fake_active self;
    int ret = begin(disk, &self, FAKE_READ, offset, bytes, flags, &sg);
    if (ret == 0) {
        uint64_t there = offset >= disk->length ? 0 : disk->length - offset;
        if (there > bytes)
            there = bytes;
        sg_copy_in(sg, disk->data + offset, there);
        sg_zero(sg_advance(sg, there), bytes - there);
    }
    return end(disk, &self, ret);
}

static int coroutine_fn fake_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                        unsigned flags)
{
    struct fake_disk *disk = disk_of(node);
    struct fake_active self;
    int ret = begin(disk, &self, FAKE_WRITE, offset, bytes, flags, &sg);
    if (ret < 0 && disk->half && bytes >= 1024) {
        ensure(disk, offset + bytes);
        sg_copy_out(sg, disk->data + offset, bytes / 2 & ~511ull);
    }
    if (self.happens) {
        keep(disk, FAKE_WRITE, offset, bytes, &sg);
        ensure(disk, offset + bytes);
        sg_copy_out(sg, disk->data + offset, bytes);
    }
    return end(disk, &self, ret);
}

static int coroutine_fn fake_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes,
                                              unsigned flags)
{
    struct fake_disk *disk = disk_of(node);
    struct fake_active self;
    if (disk->no_zeroes)
        return -ENOTSUP;
    int ret = begin(disk, &self, FAKE_ZERO, offset, bytes, flags, NULL);
    if (ret == 0) {
        keep(disk, FAKE_ZERO, offset, bytes, NULL);
        ensure(disk, offset + bytes);
        memset(disk->data + offset, 0, bytes);
    }
    return end(disk, &self, ret);
}

static int coroutine_fn fake_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    struct fake_disk *disk = disk_of(node);
    struct fake_active self;
    if (disk->no_discard)
        return -ENOTSUP;
    int ret = begin(disk, &self, FAKE_DISCARD, offset, bytes, 0, NULL);
    if (ret == 0)
        keep(disk, FAKE_DISCARD, offset, bytes, NULL);
    if (ret == 0 && disk->punches && offset < disk->length)
        memset(disk->data + offset, 0, bytes < disk->length - offset ? bytes : disk->length - offset);
    return end(disk, &self, ret);
}

static int coroutine_fn fake_co_flush(struct node *node)
{
    struct fake_disk *disk = disk_of(node);
    struct fake_active self;
    int ret = begin(disk, &self, FAKE_FLUSH, 0, 0, 0, NULL);
    if (ret == 0)
        keep(disk, FAKE_FLUSH, 0, 0, NULL);
    return end(disk, &self, ret);
}

static int coroutine_fn fake_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    struct fake_disk *disk = disk_of(node);
    struct fake_active self;
    int ret = begin(disk, &self, FAKE_TRUNCATE, 0, bytes, exact, NULL);
    if (ret == 0) {
        keep(disk, FAKE_TRUNCATE, 0, bytes, NULL);
        ensure(disk, bytes);
        disk->length = bytes;
        node_set_length(node, bytes);
    }
    return end(disk, &self, ret);
}

static int coroutine_fn fake_co_open(struct node *node, const struct open_options *options, struct error *err)
{
    struct fake_disk *disk = opening;
    *(struct fake_disk **)node->opaque = disk;
    disk->node = node;
    node->limits = disk->limits;
    node->grows = disk->grows;
    node->detect_zeroes = disk->detect_zeroes;
    node->detect_zeroes_unmap = disk->detect_zeroes_unmap;
    node_set_length(node, disk->length);
    return 0;
}

#define FAKE_DRIVER(name, protocol, fua)              \
    static const struct node_driver name = {          \
        .format_name = "fake",                        \
        .instance_bytes = sizeof(struct fake_disk *), \
        .is_protocol = protocol,                      \
        .co_open = fake_co_open,                      \
        .co_preadv = fake_co_preadv,                  \
        .co_pwritev = fake_co_pwritev,                \
        .co_pwrite_zeroes = fake_co_pwrite_zeroes,    \
        .co_pdiscard = fake_co_pdiscard,              \
        .co_flush = fake_co_flush,                    \
        .co_truncate = fake_co_truncate,              \
        .supports_fua = fua,                          \
    }

FAKE_DRIVER(fake_protocol, true, false);
FAKE_DRIVER(fake_protocol_fua, true, true);
FAKE_DRIVER(fake_format, false, false);

int coroutine_fn fake_disk_open(struct fake_disk *disk, struct node **node)
{
    struct open_options options = {.read_only = disk->read_only};
    opening = disk;
    if (!disk->data)
        disk->data = calloc(1, disk->length ? disk->length : 1);
    return node_co_open_driver(disk->as_format ? &fake_format
                               : disk->fua     ? &fake_protocol_fua
                                               : &fake_protocol,
                               "fake", &options, node, NULL);
}

void fake_disk_release(struct fake_disk *disk)
{
    spin_lock(&disk->guard);
    disk->hold = false;
    spin_unlock(&disk->guard);
    co_queue_wake_all(&disk->held);
}

void fake_disk_free(struct fake_disk *disk)
{
    free(disk->data);
    disk->data = NULL;
    for (size_t i = 0; i < disk->logged; i++)
        free(disk->log[i].data);
    free(disk->log);
    disk->log = NULL;
    disk->logged = disk->log_room = 0;
}
