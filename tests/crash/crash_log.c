/*
 * Reading a log of writes, and building crash states from it; see crash_log.h.
 */
#include "tests/crash/crash_log.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t crash_random(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t crash_hash(const uint8_t *data, size_t bytes)
{
    uint64_t lanes[4] = {bytes, 1, 2, 3}, hash = 0, word;
    size_t at = 0;
    for (; bytes - at >= 32; at += 32) {
        for (unsigned i = 0; i < 4; i++) {
            memcpy(&word, data + at + i * 8, 8);
            lanes[i] = (lanes[i] ^ word) * 0x9e3779b97f4a7c15u;
            lanes[i] ^= lanes[i] >> 29;
        }
    }
    for (; at < bytes; at++)
        lanes[0] = (lanes[0] ^ data[at]) * 0xbf58476d1ce4e5b9u;
    for (unsigned i = 0; i < 4; i++) {
        hash ^= lanes[i];
        hash = crash_random(&hash);
    }
    return hash;
}

static uint8_t *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "re");
    struct stat st;
    if (!file || fstat(fileno(file), &st) != 0) {
        perror(path);
        if (file)
            fclose(file);
        return NULL;
    }
    uint8_t *text = malloc((size_t)st.st_size + 1);
    *bytes = text ? fread(text, 1, (size_t)st.st_size, file) : 0;
    fclose(file);
    return text;
}

bool crash_log_read(const char *path, struct crash_log *log)
{
    *log = (struct crash_log){0};
    log->text = read_file(path, &log->text_bytes);
    if (!log->text)
        return false;
    struct log_writes_header header;
    if (log->text_bytes < sizeof header ||
        (memcpy(&header, log->text, sizeof header), memcmp(header.magic, LOG_WRITES_MAGIC, 8) != 0)) {
        fprintf(stderr, "%s: not a log of writes\n", path);
        return false;
    }
    log->image_bytes = le64_get(header.image_bytes);

    size_t most = log->text_bytes / sizeof(struct log_writes_record) + 1;
    log->ops = calloc(most, sizeof *log->ops);
    log->events = calloc(most, sizeof *log->events);
    size_t at = sizeof header;
    while (log->ops && log->events && log->text_bytes - at >= sizeof(struct log_writes_record)) {
        struct log_writes_record record;
        memcpy(&record, log->text + at, sizeof record);
        at += sizeof record;
        uint64_t data_bytes = le64_get(record.data_bytes);
        if (le16_get(record.magic) != LOG_WRITES_RECORD_MAGIC || data_bytes > log->text_bytes - at)
            break;
        const uint8_t *data = log->text + at;
        at += data_bytes;
        struct log_event *event = &log->events[log->event_count];
        uint64_t id = le64_get(record.id);
        enum log_writes_type type = le16_get(record.type);
        if (type == LOG_WRITES_MARK) {
            *event = (struct log_event){.kind = LOG_EVENT_MARK, .mark = data, .mark_bytes = data_bytes};
        } else if (type == LOG_WRITES_END) {
            if (id == 0 || id > log->op_count)
                break;
            *event = (struct log_event){.kind = LOG_EVENT_END, .op = (uint32_t)id - 1};
            log->ops[id - 1].end = (uint32_t)log->event_count;
            log->ops[id - 1].failed = le32_get(record.result) != 0;
        } else {
            if (id != log->op_count + 1)
                break;
            *event = (struct log_event){.kind = LOG_EVENT_BEGIN, .op = (uint32_t)log->op_count};
            log->ops[log->op_count++] = (struct log_op){
                .type = type,
                .fua = le32_get(record.flags) & LOG_WRITES_FUA,
                .offset = le64_get(record.offset),
                .bytes = le64_get(record.bytes),
                .data = data,
                .begin = (uint32_t)log->event_count,
                .end = NEVER,
            };
        }
        log->event_count++;
    }
    return log->ops && log->events;
}

void crash_log_free(struct crash_log *log)
{
    free(log->text);
    free(log->ops);
    free(log->events);
}

bool crash_disk_init(struct crash_disk *disk, const struct crash_log *log, const char *first_image)
{
    uint64_t most = log->image_bytes;
    for (size_t i = 0; i < log->op_count; i++) {
        const struct log_op *op = &log->ops[i];
        uint64_t end = op->type == LOG_WRITES_BEGIN_TRUNCATE ? op->bytes : op->offset + op->bytes;
        if (end > most)
            most = end;
    }
    *disk = (struct crash_disk){.log = log, .limit = most, .base_bytes = log->image_bytes};
    disk->base = calloc(1, most + 1);
    disk->state = calloc(1, most + 1);
    disk->order = calloc(log->op_count + 1, sizeof *disk->order);
    size_t bytes = 0;
    uint8_t *image = read_file(first_image, &bytes);
    if (image && disk->base)
        memcpy(disk->base, image, bytes < most ? bytes : most);
    free(image);
    return image && disk->base && disk->state && disk->order;
}

void crash_disk_free(struct crash_disk *disk)
{
    free(disk->base);
    free(disk->state);
    free(disk->order);
}

/* The latest begin of a flush that has ended well before AT: what ended before it is durable. */
static uint32_t flush_horizon(const struct crash_log *log, uint32_t at)
{
    uint32_t horizon = 0;
    for (size_t i = 0; i < log->op_count && log->ops[i].begin < at; i++) {
        const struct log_op *op = &log->ops[i];
        if (op->type == LOG_WRITES_BEGIN_FLUSH && op->end < at && !op->failed)
            horizon = op->begin;
    }
    return horizon;
}

static bool is_durable(const struct log_op *op, uint32_t horizon, uint32_t at)
{
    return op->end != NEVER && !op->failed && (op->end < horizon || (op->fua && op->end < at));
}

/* SECTORS: NULL for all of it, else a random number for each sector: apply those that are odd. */
static void apply(const struct log_op *op, uint8_t *disk, uint64_t *disk_bytes, size_t limit, bool torn,
                  uint64_t seed)
{
    if (op->type == LOG_WRITES_BEGIN_FLUSH)
        return;
    if (op->type == LOG_WRITES_BEGIN_TRUNCATE) {
        if (op->bytes < *disk_bytes)
            memset(disk + op->bytes, 0, *disk_bytes - op->bytes);
        *disk_bytes = op->bytes;
        return;
    }
    for (uint64_t done = 0; done < op->bytes; done += 512) {
        uint64_t n = op->bytes - done < 512 ? op->bytes - done : 512;
        uint64_t offset = op->offset + done;
        if ((torn && crash_random(&seed) & 1) || offset + n > limit)
            continue;
        if (op->type == LOG_WRITES_BEGIN_DISCARD && offset >= *disk_bytes)
            break;
        if (op->type == LOG_WRITES_BEGIN_WRITE)
            memcpy(disk + offset, op->data + done, n);
        else
            memset(disk + offset, 0, n);
        if (op->type != LOG_WRITES_BEGIN_DISCARD && offset + n > *disk_bytes)
            *disk_bytes = offset + n;
    }
}

static int effect_compare(const void *a, const void *b)
{
    const struct crash_effect *x = a, *y = b;
    if (x->moment != y->moment)
        return x->moment < y->moment ? -1 : 1;
    return x->op < y->op ? -1 : x->op > y->op;
}

void crash_disk_state(struct crash_disk *disk, uint32_t at, enum crash_choice choice, uint64_t seed)
{
    const struct crash_log *log = disk->log;
    uint32_t horizon = flush_horizon(log, at);

    /* Operations up to the first one that is not durable belong to the base for good. */
    while (disk->base_ops < log->op_count) {
        const struct log_op *op = &log->ops[disk->base_ops];
        if (op->begin >= at ||
            !(op->type == LOG_WRITES_BEGIN_FLUSH ? op->end < at : is_durable(op, horizon, at)))
            break;
        apply(op, disk->base, &disk->base_bytes, disk->limit, false, 0);
        disk->base_ops++;
    }

    memcpy(disk->state, disk->base, disk->limit);
    disk->state_bytes = disk->base_bytes;
    static const unsigned chances[] = {10, 50, 90};
    unsigned chance = chances[crash_random(&seed) % 3];
    size_t count = 0;
    for (size_t i = disk->base_ops; i < log->op_count && log->ops[i].begin < at; i++) {
        const struct log_op *op = &log->ops[i];
        uint64_t end = op->end < at ? op->end : at;
        /* An operation takes effect at some moment between its begin and its end. */
        uint64_t moment =
            choice == CRASH_RANDOM ? op->begin + crash_random(&seed) % (end - op->begin + 1) : op->begin;
        disk->order[count++] = (struct crash_effect){.moment = moment, .op = op};
    }
    if (choice == CRASH_RANDOM)
        qsort(disk->order, count, sizeof *disk->order, effect_compare);
    for (size_t i = 0; i < count; i++) {
        const struct log_op *op = disk->order[i].op;
        bool there = is_durable(op, horizon, at), torn = false;
        if (!there) {
            switch (choice) {
            case CRASH_ALL:
                there = true;
                break;
            case CRASH_ENDED:
                there = op->end < at;
                break;
            case CRASH_DURABLE:
                break;
            case CRASH_RANDOM:
                there = crash_random(&seed) % 100 < chance;
                torn = crash_random(&seed) % 4 == 0;
                break;
            }
        }
        if (there)
            apply(op, disk->state, &disk->state_bytes, disk->limit, torn, crash_random(&seed));
    }
}
