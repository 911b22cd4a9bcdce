/*
 * The file of shared memory: see survivor.h.
 *
 * It begins with a struct head; then for the L2 and the refcount cache each an array of shadows, one a slot,
 * and the slots' words; then the log. Its space is allocated when it is made: a full file system must not
 * become a SIGBUS later.
 */
#include "host/qcow2/survivor.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAGIC     "RINGSIDE-QCOW2-3"
#define LOG_MAX   16384u
#define SLOTS_MAX (1u << 26)
/* So much later than the last time in the head may the image have been written by us: a request had passed
 * survivor_touch and was on its way to the kernel when the process was killed. */
#define SLACK_SECONDS 2u

struct log_record {
    uint64_t index; /* the highest bit: refcount table */
    uint64_t old, entry;
};
#define LOG_REFTABLE (1ull << 63)

struct part { /* one cache */
    uint32_t slice_bytes, slots;
    uint64_t shadows_at, words_at;
};

struct head {
    char magic[16];
    char boot_id[40];
    uint64_t device, inode;
    uint32_t live; /* there may be something to write back */
    uint32_t cluster_bits, l2_entry_bits, refcount_order;
    struct part l2, ref;
    uint64_t log_at, bytes;
    uint64_t
        file_bytes; /* atomic; the image file is at least as long, or it is another's under the same inode */
    uint32_t log_count; /* atomic */
    uint32_t log_lost;  /* it was full: what is here is not all */
    uint64_t written;   /* atomic; seconds since the epoch: when we were last at writing to the image */
    int64_t opened_s, opened_ns; /* the image's time of modification when all this began */
};

struct survivor {
    char *path;
    int fd;
    struct head *head; /* the mapping; NULL: not started */
    size_t bytes;
    struct log_record *log;
};

static void survivor_free(struct survivor *v)
{
    if (!v)
        return;
    if (v->head)
        munmap(v->head, v->bytes);
    if (v->fd >= 0)
        close(v->fd);
    free(v->path);
    free(v);
}

static void read_boot_id(char id[40])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    memset(id, 0, 40);
    if (f) {
        if (!fgets(id, 40, f))
            id[0] = '\0';
        fclose(f);
    }
}

/* Opens (making it if need be) the file for this image, and locks it. NULL: not to be had; why is said. */
static struct survivor *survivor_open(const struct host_file *image, const char *dir)
{
    struct survivor *v = calloc(1, sizeof(*v));
    struct stat st;
    if (!v)
        return NULL;
    v->fd = -1;
    if (asprintf(&v->path, "%s/ringside-%llx-%llx", dir, (unsigned long long)image->device,
                 (unsigned long long)image->inode) < 0) {
        v->path = NULL;
        goto fail;
    }
    for (int tries = 0; tries < 4; tries++) {
        struct stat now;
        v->fd = open(v->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (v->fd < 0 || flock(v->fd, LOCK_EX | LOCK_NB) < 0 || fstat(v->fd, &st) < 0) {
            log_message("%s: %s: metadata will not survive a kill", v->path, strerror(errno));
            goto fail;
        }
        if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) || st.st_nlink > 1) {
            log_message("%s: not a file of our own: metadata will not survive a kill", v->path);
            goto fail;
        }
        /* Whoever had it before may have removed it between our open and our lock. */
        if (stat(v->path, &now) == 0 && now.st_ino == st.st_ino && now.st_dev == st.st_dev)
            return v;
        close(v->fd);
        v->fd = -1;
    }
fail:
    survivor_free(v);
    return NULL;
}

/* ---- writing back what a killed process has left ---- */

struct leftover {
    struct qcow2 *s;
    const struct head *head;
    const struct log_record *log;
    uint32_t log_count;
    uint64_t *disk; /* a slice */
    uint64_t *ref;  /* a refcount slice, as it will be; of REF_KEY, which is UINT64_MAX at first */
    uint64_t ref_key;
};

static const struct table_cache_shadow *part_shadows(const struct leftover *o, const struct part *part)
{
    return (const void *)((const char *)o->head + part->shadows_at);
}

static const uint64_t *part_words(const struct leftover *o, const struct part *part, uint32_t slot)
{
    return (const void *)((const char *)o->head + part->words_at + (uint64_t)slot * part->slice_bytes);
}

static bool part_fits(const struct part *part, uint64_t slice_bytes, uint64_t bytes)
{
    uint64_t shadows = (uint64_t)part->slots * sizeof(struct table_cache_shadow),
             words = (uint64_t)part->slots * slice_bytes;
    return part->slice_bytes == slice_bytes && part->slots <= SLOTS_MAX && part->shadows_at <= bytes &&
           shadows <= bytes - part->shadows_at && part->words_at <= bytes &&
           words <= bytes - part->words_at && !(part->shadows_at % 64) && !(part->words_at % 64);
}

/* Is it one that this open may use? */
static bool head_fits(struct qcow2 *s, const struct head *head, uint64_t bytes)
{
    const struct host_file *image = s->node->file->host;
    char boot_id[40];
    read_boot_id(boot_id);
    return memcmp(head->magic, MAGIC, 16) == 0 && head->live && boot_id[0] &&
           memcmp(head->boot_id, boot_id, 40) == 0 && head->device == image->device &&
           head->inode == image->inode && head->bytes == bytes && head->cluster_bits == s->cluster_bits &&
           s->file_bytes >= head->file_bytes && head->l2_entry_bits == s->l2_entry_bits &&
           head->refcount_order == s->refcount_order &&
           part_fits(&head->l2, 1ull << (s->slice_bits + s->l2_entry_bits), bytes) &&
           part_fits(&head->ref, s->cluster_bytes >> s->ref_slices_bits, bytes) && !(head->log_at % 64) &&
           head->log_at <= bytes && LOG_MAX * sizeof(struct log_record) <= bytes - head->log_at;
}

static int coroutine_fn co_read_entry(struct qcow2 *s, bool reftable, uint64_t index, uint64_t *entry)
{
    uint64_t entries = reftable ? s->reftable_entries : s->l1_size;
    be64 word;
    *entry = 0;
    if (index >= entries)
        return -EINVAL;
    int ret =
        node_co_pread(s->node->file, (reftable ? s->reftable_offset : s->l1_offset) + index * 8, &word, 8);
    *entry = be64_get(word);
    return ret;
}

/* What the log says last about an entry, or NULL. */
static const struct log_record *find_record(const struct leftover *o, bool reftable, uint64_t index)
{
    uint64_t key = index | (reftable ? LOG_REFTABLE : 0);
    for (uint32_t i = o->log_count; i--;) {
        if (o->log[i].index == key)
            return &o->log[i];
    }
    return NULL;
}

/* Where slice KEY of a cache lies in the file; 0: nowhere (its table was being made). *MADE: its table is
 * new. */
static int coroutine_fn co_slice_place(const struct leftover *o, bool reftable, uint64_t key, uint64_t *host,
                                       bool *made)
{
    struct qcow2 *s = o->s;
    unsigned bits = reftable ? s->ref_slices_bits : s->slices_bits;
    const struct part *part = reftable ? &o->head->ref : &o->head->l2;
    const struct log_record *record = find_record(o, reftable, key >> bits);
    uint64_t entry = record ? record->entry : 0;
    *made = record != NULL;
    if (!record) {
        int ret = co_read_entry(s, reftable, key >> bits, &entry);
        if (ret < 0)
            return ret;
    }
    *host = entry & (reftable ? QCOW2_REFTABLE_OFFSET_MASK : QCOW2_L1_OFFSET_MASK);
    if (*host & (s->cluster_bytes - 1))
        return -EINVAL;
    if (*host)
        *host += (key & ((1ull << bits) - 1)) * part->slice_bytes;
    return 0;
}

/* Will CLUSTER be counted when all is written back? 0, or -ESTALE. */
static int coroutine_fn co_verify_counted(struct leftover *o, uint64_t cluster)
{
    const struct qcow2 *s = o->s;
    const struct part *part = &o->head->ref;
    const struct table_cache_shadow *shadows = part_shadows(o, part);
    uint64_t key = cluster >> s->ref_slice_bits;
    if (key != o->ref_key) {
        uint32_t i = 0;
        while (i < part->slots && !(shadows[i].marks && shadows[i].key == key))
            i++;
        o->ref_key = UINT64_MAX;
        if (i < part->slots) {
            memcpy(o->ref, part_words(o, part, i), part->slice_bytes);
        } else {
            uint64_t host;
            bool made;
            int ret = co_slice_place(o, true, key, &host, &made);
            if (ret == -EINVAL || (ret == 0 && !host))
                return -ESTALE;
            if (ret == 0)
                ret = node_co_pread(s->node->file, host, o->ref, part->slice_bytes);
            if (ret < 0)
                return ret;
        }
        o->ref_key = key;
    }
    return qcow2_refcount_get_raw(o->ref, s->refcount_order, cluster & ((1ull << s->ref_slice_bits) - 1))
               ? 0
               : -ESTALE;
}

/* A reference that only the leftover makes is a leak to everybody else. Whoever has mended leaks meanwhile
 * has taken its clusters away: does any entry of SLOT's that o->disk does not have name such a one? */
static int coroutine_fn co_verify_references(struct leftover *o, uint32_t slot)
{
    const struct qcow2 *s = o->s;
    const uint64_t *words = part_words(o, &o->head->l2, slot);
    unsigned step = s->extended_l2 ? 2 : 1;
    if (s->incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return 0;
    for (uint32_t w = 0; w < o->head->l2.slice_bytes / 8; w += step) {
        uint64_t host = words[w] & QCOW2_L2_OFFSET_MASK, bytes = 1;
        if (words[w] == o->disk[w])
            continue;
        if (words[w] & QCOW2_L2_COMPRESSED)
            qcow2_compressed_range(s, words[w], &host, &bytes);
        else if (!host)
            continue;
        for (uint64_t c = host >> s->cluster_bits; c <= (host + bytes - 1) >> s->cluster_bits; c++) {
            int ret = co_verify_counted(o, c);
            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

/* Is every slice that would be written in the file as it was left? 0, or -ESTALE. */
static int coroutine_fn co_verify_part(struct leftover *o, bool reftable)
{
    const struct part *part = reftable ? &o->head->ref : &o->head->l2;
    const struct table_cache_shadow *shadows = part_shadows(o, part);
    for (uint32_t i = 0; i < part->slots; i++) {
        uint64_t host, now;
        bool made;
        if (!shadows[i].marks)
            continue;
        int ret = co_slice_place(o, reftable, shadows[i].key, &host, &made);
        if (ret == -EINVAL)
            return -ESTALE;
        if (ret < 0)
            return ret;
        if (!host || (made && !shadows[i].on_disk))
            continue; /* nothing in the file yet that could be compared */
        ret = node_co_pread(o->s->node->file, host, o->disk, part->slice_bytes);
        if (ret < 0)
            return ret;
        for (uint32_t w = 0; !reftable && w < part->slice_bytes / 8; w++)
            o->disk[w] = WIRE_BE64(o->disk[w]);
        now = table_cache_hash(o->disk, part->slice_bytes / 8);
        if (now != shadows[i].on_disk &&
            !((shadows[i].marks & TABLE_CACHE_WRITING) && now == shadows[i].in_flight) &&
            now != table_cache_hash(part_words(o, part, i), part->slice_bytes / 8))
            return -ESTALE;
        ret = reftable ? 0 : co_verify_references(o, i);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int coroutine_fn co_verify_log(struct leftover *o)
{
    for (uint32_t i = 0; i < o->log_count; i++) {
        uint64_t now;
        bool known = false;
        int ret = co_read_entry(o->s, o->log[i].index & LOG_REFTABLE, o->log[i].index & ~LOG_REFTABLE, &now);
        if (ret < 0)
            return ret == -EINVAL ? -ESTALE : ret;
        for (uint32_t k = 0; k < o->log_count && !known; k++)
            known = o->log[k].index == o->log[i].index && (o->log[k].old == now || o->log[k].entry == now);
        if (!known)
            return -ESTALE;
        uint64_t table = o->log[i].entry & QCOW2_L1_OFFSET_MASK;
        if ((o->log[i].index & LOG_REFTABLE) || o->log[i].entry == now || !table ||
            find_record(o, false, o->log[i].index) != &o->log[i])
            continue;
        ret = co_verify_counted(o, table >> o->s->cluster_bits);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int coroutine_fn co_write_part(const struct leftover *o, bool reftable, unsigned *slices)
{
    const struct part *part = reftable ? &o->head->ref : &o->head->l2;
    const struct table_cache_shadow *shadows = part_shadows(o, part);
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < part->slots; i++) {
        const uint64_t *words = part_words(o, part, i);
        uint64_t host;
        bool made;
        if (!shadows[i].marks)
            continue;
        ret = co_slice_place(o, reftable, shadows[i].key, &host, &made);
        if (ret < 0 || !host)
            continue;
        for (uint32_t w = 0; w < part->slice_bytes / 8; w++) {
            uint64_t word = words[w];
            /* Cut between the entry and its bitmap: a subcluster cannot be in a cluster that is not there. */
            if (!reftable && o->s->extended_l2 && w % 2 && !(words[w - 1] & QCOW2_L2_COMPRESSED) &&
                !(words[w - 1] & QCOW2_L2_OFFSET_MASK))
                word &= ~0xffffffffull;
            o->disk[w] = reftable ? word : WIRE_BE64(word);
        }
        ret = node_co_pwrite(o->s->node->file, host, o->disk, part->slice_bytes, 0);
        ++*slices;
    }
    return ret;
}

static int coroutine_fn co_write_log(const struct leftover *o, bool reftable)
{
    for (uint32_t i = 0; i < o->log_count; i++) {
        be64 word = be64_put(o->log[i].entry);
        uint64_t index = o->log[i].index & ~LOG_REFTABLE;
        if (!(o->log[i].index & LOG_REFTABLE) != !reftable)
            continue;
        int ret = node_co_pwrite(
            o->s->node->file, (reftable ? o->s->reftable_offset : o->s->l1_offset) + index * 8, &word, 8, 0);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* The order of writeback.c. What L2 entries name was written by the process that was killed, and is as little
 * on the disk as what is written here. */
static int coroutine_fn co_write_leftover(const struct leftover *o, unsigned *slices)
{
    struct node *file = o->s->node->file, *data = o->s->data;
    int ret = co_write_part(o, true, slices);
    if (ret == 0 && data != file)
        ret = node_co_flush(data);
    if (ret == 0)
        ret = node_co_flush(file);
    if (ret == 0)
        ret = co_write_log(o, true);
    if (ret == 0)
        ret = node_co_flush(file);
    if (ret == 0)
        ret = co_write_part(o, false, slices);
    if (ret == 0)
        ret = co_write_log(o, false);
    if (ret == 0)
        ret = node_co_flush(file);
    return ret;
}

static uint64_t seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint64_t)now.tv_sec;
}

static bool image_time(const struct qcow2 *s, struct timespec *time)
{
    const struct host_file *image = s->node->file->host;
    struct stat st;
    if (stat(image->path, &st) < 0 || st.st_dev != image->device || st.st_ino != image->inode ||
        st.st_mtim.tv_sec < 0)
        return false;
    *time = st.st_mtim;
    return true;
}

/* Has anybody written to the image since? Data that is written in place leaves the tables as they were, and
 * what is left here may be a discard of it: so the file's own time decides. It does not go back either, but
 * for a backup that is restored with its time. */
static bool image_is_anothers(const struct qcow2 *s, const struct head *head)
{
    struct timespec time;
    return !image_time(s, &time) || (uint64_t)time.tv_sec > head->written + SLACK_SECONDS ||
           time.tv_sec < head->opened_s || (time.tv_sec == head->opened_s && time.tv_nsec < head->opened_ns);
}

static bool anything_left(const struct leftover *o)
{
    for (int p = 0; p < 2; p++) {
        const struct part *part = p ? &o->head->ref : &o->head->l2;
        const struct table_cache_shadow *shadows = part_shadows(o, part);
        for (uint32_t i = 0; i < part->slots; i++) {
            if (shadows[i].marks)
                return true;
        }
    }
    return o->log_count || o->head->log_lost;
}

/* What is written back is our own doing, should this process be killed meanwhile as well. */
static void note_recovery(const struct survivor *v)
{
    uint64_t now = seconds_now();
    ssize_t n = pwrite(v->fd, &now, sizeof(now), offsetof(struct head, written));
    (void)n; /* then what is left is not used a second time */
}

static int coroutine_fn co_recover_from(struct qcow2 *s, const struct head *head, struct error *err)
{
    struct leftover o = {.s = s, .head = head, .ref_key = UINT64_MAX};
    const char *path = s->survivor->path;
    unsigned slices = 0;
    o.log = (const void *)((const char *)head + head->log_at);
    o.log_count = head->log_count < LOG_MAX ? head->log_count : LOG_MAX;
    uint32_t largest =
        head->l2.slice_bytes > head->ref.slice_bytes ? head->l2.slice_bytes : head->ref.slice_bytes;
    if (!anything_left(&o))
        return 0;
    o.disk = malloc(2ul * largest);
    if (!o.disk)
        return error_set(err, -ENOMEM, "out of memory");
    o.ref = o.disk + largest / 8;
    int ret = head->log_lost || image_is_anothers(s, head) ? -ESTALE : co_verify_log(&o);
    if (ret == 0)
        ret = co_verify_part(&o, true);
    if (ret == 0)
        ret = co_verify_part(&o, false);
    if (ret == 0) {
        note_recovery(s->survivor);
        ret = co_write_leftover(&o, &slices);
        note_recovery(s->survivor);
        if (ret == 0 && (slices || o.log_count))
            log_message(
                "%s: the last process was killed: %u metadata slices and %u table entries that it left in "
                "'%s' were written back",
                s->node->filename, slices, o.log_count, path);
    }
    if (ret == -ESTALE) {
        log_message(
            "%s: the last process was killed, and the image was changed by somebody else since: what it "
            "left in '%s' is NOT used; writes that were not flushed before may be lost",
            s->node->filename, path);
        ret = 0;
    } else if (ret < 0) {
        error_set(err, ret, "writing back what a killed process left in '%s': %s", path, strerror(-ret));
    }
    free(o.disk);
    return ret;
}

int coroutine_fn survivor_co_recover(struct qcow2 *s, const char *dir, struct error *err)
{
    struct stat st;
    int ret = 0;
    /* A block device does not say when it was written to. */
    if (!s->node->file->host || !S_ISREG(s->node->file->host->mode))
        return 0;
    s->survivor = survivor_open(s->node->file->host, dir);
    if (!s->survivor || fstat(s->survivor->fd, &st) < 0 || st.st_size < (off_t)sizeof(struct head))
        return 0;
    size_t bytes = (size_t)st.st_size;
    struct head *head = mmap(NULL, bytes, PROT_READ, MAP_SHARED, s->survivor->fd, 0);
    if (head == MAP_FAILED)
        return error_set(err, -errno, "what a killed process left in '%s' cannot be read: %s",
                         s->survivor->path, strerror(errno));
    if (head_fits(s, head, bytes))
        ret = co_recover_from(s, head, err);
    munmap(head, bytes);
    return ret;
}

/* ---- while the image is open ---- */

static uint64_t place(uint64_t *at, uint64_t bytes)
{
    uint64_t here = (*at + 4095) & ~4095ull;
    *at = here + bytes;
    return here;
}

static void plan_part(struct part *part, const struct table_cache *cache, uint64_t *at)
{
    part->slice_bytes = cache->slice_bytes;
    part->slots = cache->nb_sets * TABLE_CACHE_WAYS;
    part->shadows_at = place(at, (uint64_t)part->slots * sizeof(struct table_cache_shadow));
    part->words_at = place(at, (uint64_t)part->slots * cache->slice_bytes);
}

void survivor_start(struct qcow2 *s)
{
    struct survivor *v = s->survivor;
    struct head plan = {.cluster_bits = s->cluster_bits,
                        .l2_entry_bits = s->l2_entry_bits,
                        .refcount_order = s->refcount_order};
    if (!v)
        return;
    uint64_t at = sizeof(plan);
    plan_part(&plan.l2, &s->l2, &at);
    plan_part(&plan.ref, &s->ref, &at);
    plan.log_at = place(&at, LOG_MAX * sizeof(struct log_record));
    place(&at, 0);
    plan.bytes = at = (at + 4095) & ~4095ull;
    read_boot_id(plan.boot_id);
    plan.device = s->node->file->host->device;
    plan.inode = s->node->file->host->inode;
    plan.file_bytes = s->file_bytes;
    plan.written = seconds_now();
    struct timespec opened;
    if (!image_time(s, &opened))
        opened = (struct timespec){0, 0};
    plan.opened_s = opened.tv_sec;
    plan.opened_ns = opened.tv_nsec;
    memcpy(plan.magic, MAGIC, 16);

    int ret = ftruncate(v->fd, 0) < 0 || ftruncate(v->fd, (off_t)at) < 0
                  ? errno
                  : posix_fallocate(v->fd, 0, (off_t)at);
    void *map = ret ? MAP_FAILED : mmap(NULL, at, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (map == MAP_FAILED) {
        log_message("%s: %s: metadata will not survive a kill", v->path, strerror(ret ? ret : errno));
        (void)unlink(v->path);
        survivor_free(v);
        s->survivor = NULL;
        return;
    }
    v->head = map;
    v->bytes = at;
    *v->head = plan;
    v->log = (void *)((char *)map + plan.log_at);
    table_cache_share(&s->l2, (void *)((char *)map + plan.l2.shadows_at),
                      (void *)((char *)map + plan.l2.words_at));
    table_cache_share(&s->ref, (void *)((char *)map + plan.ref.shadows_at),
                      (void *)((char *)map + plan.ref.words_at));
    __atomic_store_n(&v->head->live, 1, __ATOMIC_RELEASE);
}

void survivor_log(struct qcow2 *s, bool reftable, uint64_t index, uint64_t old, uint64_t entry)
{
    struct survivor *v = s->survivor;
    if (!v || !v->head || old == entry)
        return;
    uint32_t n = v->head->log_count;
    if (n == LOG_MAX) {
        __atomic_store_n(&v->head->log_lost, 1, __ATOMIC_RELEASE);
        return;
    }
    v->log[n] = (struct log_record){index | (reftable ? LOG_REFTABLE : 0), old, entry};
    /* Release: a record counts only when all of it is there. */
    __atomic_store_n(&v->head->log_count, n + 1, __ATOMIC_RELEASE);
}

bool survivor_crowded(const struct qcow2 *s)
{
    const struct survivor *v = s->survivor;
    return v && v->head && __atomic_load_n(&v->head->log_count, __ATOMIC_RELAXED) >= LOG_MAX / 2;
}

void survivor_grew(struct qcow2 *s)
{
    if (s->survivor && s->survivor->head)
        __atomic_store_n(&s->survivor->head->file_bytes, s->file_bytes, __ATOMIC_RELEASE);
}

void survivor_touch(struct qcow2 *s)
{
    struct survivor *v = s->survivor;
    if (!v || !v->head)
        return;
    uint64_t now = seconds_now();
    if (__atomic_load_n(&v->head->written, __ATOMIC_RELAXED) != now)
        __atomic_store_n(&v->head->written, now, __ATOMIC_RELAXED);
}

void survivor_pause(struct qcow2 *s, bool pause)
{
    struct survivor *v = s->survivor;
    if (v && v->head)
        __atomic_store_n(&v->head->live, !pause, __ATOMIC_SEQ_CST);
}

void survivor_clean(struct qcow2 *s)
{
    struct survivor *v = s->survivor;
    if (!v || !v->head)
        return;
    __atomic_store_n(&v->head->log_count, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&v->head->log_lost, 0, __ATOMIC_RELEASE);
}

void survivor_end(struct qcow2 *s, bool keep)
{
    struct survivor *v = s->survivor;
    struct stat st;
    if (!v)
        return;
    s->survivor = NULL;
    /* An open that failed before survivor_start leaves nothing to be found. */
    if (keep && fstat(v->fd, &st) == 0 && st.st_size == 0)
        keep = false;
    /* The words go away with the mapping. */
    if (v->head) {
        s->l2.words = s->ref.words = NULL;
        s->l2.shadows = s->ref.shadows = NULL;
    }
    if (!keep) {
        if (v->head)
            __atomic_store_n(&v->head->live, 0, __ATOMIC_RELEASE);
        (void)unlink(v->path); /* what is left of it otherwise says that there is nothing in it */
    }
    survivor_free(v);
}
