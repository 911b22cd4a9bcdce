/*
 * Checking an image: every reference is counted, every refcount compared with it, every entry held against
 * the rules (checklist E6, E8, F5, H10, K5).
 *
 * What always holds: nothing is changed without FIX, nor if a table could not be read; a table that cannot be
 * believed is reported and not followed, and then nothing that looks leaked is given back (it may be what the
 * table should lead to), unless all refcounts have to be made anew; memory is bounded by what the tables
 * really refer to; a mapping beyond the end of the file counts as in use.
 */
#include "host/qcow2/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/qcow2/bitmap.h"

void check_say(struct check *check, const char *format, ...)
{
    char line[200];
    if (!check->report)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    check->report(check->opaque, line);
}

uint32_t check_references(const struct check *check, uint64_t cluster)
{
    uint64_t page = cluster >> CHECK_PAGE_BITS;
    if (page >= check->nb_pages || !check->pages[page])
        return 0;
    return check->pages[page][cluster & ((1u << CHECK_PAGE_BITS) - 1)];
}

/* Pages of counters that an image may have. */
static uint64_t most_pages(const struct qcow2 *s)
{
    const struct host_file *host = s->node->file->host;
    uint64_t real = s->file_bytes;
    struct stat st;
    if (host && S_ISREG(host->mode) && stat(host->path, &st) == 0 && st.st_dev == host->device &&
        st.st_ino == host->inode)
        real = (uint64_t)st.st_blocks * 512;
    return CHECK_BASE_PAGES + real / CHECK_PAGE_BYTES * CHECK_REAL;
}

bool check_may_take(struct check *check, uint64_t pages)
{
    if (!check->most_pages)
        check->most_pages = most_pages(check->s);
    if (pages > check->most_pages - check->taken_pages) {
        check_say(check, "ERROR: the references are scattered over more of the file than there is in it");
        check->error = -EFBIG;
        return false;
    }
    check->taken_pages += pages;
    return true;
}

static uint32_t *make_page(struct check *check, uint64_t page)
{
    bool far = page << CHECK_PAGE_BITS >= check->file_clusters;
    /* Too many far ones are as bad as too many. */
    if (!check_may_take(check, far && check->nb_far_pages == CHECK_MAX_FAR_PAGES ? UINT64_MAX : 1))
        return NULL;
    check->nb_far_pages += far;
    return check->pages[page] = calloc(1u << CHECK_PAGE_BITS, sizeof(uint32_t));
}

static uint32_t *counter(struct check *check, uint64_t cluster)
{
    uint64_t page = cluster >> CHECK_PAGE_BITS;
    if (page >= check->nb_pages) {
        uint64_t more =
            min_u64(max_u64(page + 1, check->nb_pages * 2 + 16), (CHECK_MAX_CLUSTERS >> CHECK_PAGE_BITS) + 1);
        uint32_t **pages = realloc(check->pages, more * sizeof(*pages));
        if (!pages)
            return NULL;
        memset(pages + check->nb_pages, 0, (more - check->nb_pages) * sizeof(*pages));
        check->pages = pages;
        check->nb_pages = more;
    }
    if (!check->pages[page] && !make_page(check, page))
        return NULL;
    return &check->pages[page][cluster & ((1u << CHECK_PAGE_BITS) - 1)];
}

void check_forget(struct check *check)
{
    for (uint64_t i = 0; check->pages && i < check->nb_pages; i++)
        free(check->pages[i]);
    free(check->pages);
    check->pages = NULL;
    check->nb_pages = check->nb_far_pages = check->taken_pages = 0;
    check->end = check->l1_bytes = 0;
    check_tables_forget(check);
}

void check_take_over(struct check *check, struct check *from)
{
    check_forget(check);
    check->pages = from->pages;
    check->nb_pages = from->nb_pages;
    check->nb_far_pages = from->nb_far_pages;
    check->taken_pages = from->taken_pages;
    check->tables = from->tables;
    check->end = from->end;
    from->pages = NULL;
    from->tables = (struct check_tables){0};
    check_forget(from);
}

/* MORE references to all clusters of [host, host+bytes). */
static void add_references(struct check *check, uint64_t host, uint64_t bytes, uint32_t more)
{
    const struct qcow2 *s = check->s;
    uint64_t first = host >> s->cluster_bits, last = (host + bytes - 1) >> s->cluster_bits;
    for (uint64_t c = first; c <= last && last < CHECK_MAX_CLUSTERS; c++) {
        uint32_t *count = counter(check, c);
        if (!count) {
            if (!check->error)
                check->error = -ENOMEM;
            return;
        }
        *count = more > UINT32_MAX - *count ? UINT32_MAX : *count + more;
        check->end = max_u64(check->end, c + 1);
    }
}

void check_reference(struct check *check, uint64_t host, uint64_t bytes, const char *what)
{
    if (!bytes || check->error)
        return;
    if ((host + bytes - 1) >> check->s->cluster_bits >= check->file_clusters) {
        check_say(check, "ERROR: %s at 0x%llx lies beyond the end of the file", what,
                  (unsigned long long)host);
        check->result->corruptions++;
    }
    add_references(check, host, bytes, 1);
}

/* ---- walking the mappings ---- */

struct walk {
    struct check *check;
    bool active;       /* not a snapshot's */
    uint64_t expected; /* where the next cluster lies if nothing is fragmented; 0: no cluster yet */
};

static void bad_entry(struct check *check, const char *why, uint64_t guest, uint64_t entry)
{
    check_say(check, "ERROR: L2 entry for guest offset 0x%llx is 0x%llx: %s", (unsigned long long)guest,
              (unsigned long long)entry, why);
    check->result->corruptions++;
}

/* Does something of another class than OWN lie there? Refcounts may agree with that all the same, but a copy
 * of the table that is made by then counts what it names once more. Nobody changes the map during a check. */
static bool lies_on_metadata(const struct check *check, uint64_t host, uint64_t bytes, enum qcow2_overlap own)
{
    return qcow2_overlap_check(check->s, host, bytes, own, NULL) != QCOW2_OL_NONE;
}

/* The last sectors need not be there. What they lie in counts all the same: it is counted down when the entry
 * goes, and by then the file may have grown over it. */
static void compressed_reference(struct check *check, uint64_t host, uint64_t bytes)
{
    if (host >> check->s->cluster_bits >= check->file_clusters)
        check_reference(check, host, bytes, "compressed cluster");
    else if (!check->error)
        add_references(check, host, bytes, 1);
}

static void walk_compressed(struct walk *walk, uint64_t guest, uint64_t entry, uint64_t bitmap)
{
    struct check *check = walk->check;
    uint64_t host, bytes;
    if (check->s->data != check->s->node->file) {
        bad_entry(check, "a compressed cluster with an external data file", guest, entry);
        return;
    }
    if (bitmap)
        bad_entry(check, "a compressed cluster has subclusters", guest, entry);
    if (entry & QCOW2_COPIED)
        bad_entry(check, "a compressed cluster is marked COPIED", guest, entry);
    qcow2_compressed_range(check->s, entry, &host, &bytes);
    if (lies_on_metadata(check, host, bytes, QCOW2_OL_NONE))
        bad_entry(check, "the data lie on metadata", guest, entry);
    compressed_reference(check, host, bytes);
    if (walk->active) {
        check->result->allocated_clusters++;
        check->result->compressed_clusters++;
        /* Compressed clusters are fragmented by nature. */
        check->result->fragmented_clusters++;
    }
}

static void walk_entry(struct walk *walk, uint64_t guest, uint64_t entry, uint64_t bitmap)
{
    struct check *check = walk->check;
    struct qcow2 *s = check->s;
    bool external = s->data != s->node->file || s->data_missing;
    uint64_t host = entry & QCOW2_L2_OFFSET_MASK;
    if (entry & QCOW2_L2_COMPRESSED) {
        walk_compressed(walk, guest, entry, bitmap);
        return;
    }
    if (entry & QCOW2_L2_RESERVED_MASK)
        bad_entry(check, "reserved bits are set", guest, entry);
    if (!s->extended_l2 && (entry & QCOW2_L2_ZERO) && s->version < 3)
        bad_entry(check, "the zero flag does not exist in version 2", guest, entry);
    if (s->extended_l2 && (entry & QCOW2_L2_ZERO))
        bad_entry(check, "bit 0 is reserved in extended entries", guest, entry);
    bool has_cluster = host || (external && (entry & QCOW2_COPIED));
    if (s->extended_l2 && ((bitmap & 0xffffffff) & (bitmap >> 32)))
        bad_entry(check, "a subcluster is allocated and zero at the same time", guest, entry);
    if (s->extended_l2 && (bitmap & 0xffffffff) && !has_cluster)
        bad_entry(check, "subclusters are allocated without a cluster", guest, entry);
    if (!has_cluster)
        return;
    if (host & (s->cluster_bytes - 1)) {
        bad_entry(check, "the cluster is not aligned", guest, entry);
        check->unseen = true;
        return;
    }
    if (external) {
        if (host != guest)
            bad_entry(check, "in an external data file a cluster lies at its guest offset", guest, entry);
    } else {
        if (lies_on_metadata(check, host, s->cluster_bytes, QCOW2_OL_NONE))
            bad_entry(check, "the data lie on metadata", guest, entry);
        check_reference(check, host, s->cluster_bytes, "data cluster");
    }
    if (walk->active) {
        check->result->allocated_clusters++;
        if (walk->expected && walk->expected != host)
            check->result->fragmented_clusters++;
        walk->expected = host + s->cluster_bytes;
    }
}

static bool coroutine_fn co_read_l2(struct check *check, uint64_t offset, uint8_t *buf)
{
    if (node_co_pread(check->s->node->file, offset, buf, check->s->cluster_bytes) == 0)
        return true;
    check_say(check, "ERROR: I/O error reading the L2 table at 0x%llx", (unsigned long long)offset);
    check->result->check_errors++;
    return false;
}

static void coroutine_fn co_walk_l2(struct walk *walk, uint64_t offset, uint64_t guest, uint8_t *buf)
{
    struct check *check = walk->check;
    struct qcow2 *s = check->s;
    unsigned step = s->extended_l2 ? 2 : 1;
    if (!co_read_l2(check, offset, buf))
        return;
    const be64 *table = (const be64 *)(const void *)buf;
    walk->expected = 0; /* each table by itself, as qemu-img counts it */
    for (uint64_t i = 0; i < 1ull << s->l2_bits; i++) {
        uint64_t entry = be64_get(table[i * step]), bitmap = step == 2 ? be64_get(table[i * step + 1]) : 0;
        if (entry || bitmap)
            walk_entry(walk, guest + (i << s->cluster_bits), entry, bitmap);
    }
}

/* The L2 table at OFFSET, which was walked before, counted MORE times. */
static void coroutine_fn co_walk_again(struct check *check, uint64_t offset, uint32_t more, uint8_t *buf)
{
    struct qcow2 *s = check->s;
    unsigned step = s->extended_l2 ? 2 : 1;
    if (s->data != s->node->file || s->data_missing || !co_read_l2(check, offset, buf))
        return;
    const be64 *table = (const be64 *)(const void *)buf;
    for (uint64_t i = 0; i < 1ull << s->l2_bits && !check->error; i++) {
        uint64_t entry = be64_get(table[i * step]), host = entry & QCOW2_L2_OFFSET_MASK,
                 bytes = s->cluster_bytes;
        if (entry & QCOW2_L2_COMPRESSED)
            qcow2_compressed_range(s, entry, &host, &bytes);
        else if (!host || (host & (s->cluster_bytes - 1)))
            continue;
        add_references(check, host, bytes, more);
    }
}

/* L1 tables do not overlap: together they fit in the file. */
static bool l1_tables_fit(struct check *check, uint64_t bytes)
{
    check->l1_bytes += bytes;
    if (check->l1_bytes <= qcow2_cluster_up(check->s, check->s->file_bytes))
        return true;
    check_say(check,
              "ERROR: the L1 tables of the disk and its snapshots have more bytes together than the file");
    check->error = -EFBIG;
    return false;
}

static void coroutine_fn co_walk_l1(struct check *check, const uint64_t *l1, uint64_t l1_offset,
                                    uint64_t entries, bool active, uint8_t *buf)
{
    struct qcow2 *s = check->s;
    struct walk walk = {.check = check, .active = active};
    check_reference(check, l1_offset, entries * 8, "L1 table");
    for (uint64_t i = 0; i < entries && !check->error; i++) {
        uint64_t offset = l1[i] & QCOW2_L1_OFFSET_MASK;
        if (l1[i] & QCOW2_L1_RESERVED_MASK) {
            check_say(check, "ERROR: L1 entry %llu is 0x%llx: reserved bits are set", (unsigned long long)i,
                      (unsigned long long)l1[i]);
            check->result->corruptions++;
        }
        if (!offset)
            continue;
        if (offset & (s->cluster_bytes - 1)) {
            check_say(check, "ERROR: L1 entry %llu is 0x%llx: the L2 table is not cluster aligned",
                      (unsigned long long)i, (unsigned long long)l1[i]);
            check->result->corruptions++;
            check->unseen = true;
            continue;
        }
        if (lies_on_metadata(check, offset, s->cluster_bytes, QCOW2_OL_ACTIVE_L2)) {
            check_say(check, "ERROR: L1 entry %llu is 0x%llx: the L2 table lies on other metadata",
                      (unsigned long long)i, (unsigned long long)l1[i]);
            check->result->corruptions++;
        }
        check_reference(check, offset, s->cluster_bytes, "L2 table");
        if (offset >> s->cluster_bits >= check->file_clusters) {
            check->unseen = true;
            continue;
        }
        if (check_table_is_new(check, offset >> s->cluster_bits)) {
            co_walk_l2(&walk, offset, i << (s->cluster_bits + s->l2_bits), buf);
        } else if (active && s->data != s->node->file) {
            check_say(check, "ERROR: L1 entry %llu is 0x%llx: the L2 table is another entry's as well",
                      (unsigned long long)i, (unsigned long long)l1[i]);
            check->result->corruptions++;
        }
    }
}

/* What the entries of tables that are shared refer to. */
static void coroutine_fn co_walk_shared(struct check *check, uint8_t *buf)
{
    uint64_t cluster;
    uint32_t more;
    for (size_t at = 0; !check->error && check_tables_next(check, &at, &cluster, &more);)
        co_walk_again(check, cluster << check->s->cluster_bits, more, buf);
}

static void coroutine_fn co_walk_snapshot(struct check *check, const struct qcow2_snapshot *snapshot,
                                          uint8_t *buf)
{
    struct qcow2 *s = check->s;
    struct error err = {""};
    uint64_t *l1;
    if (qcow2_check_snapshot_l1(s, snapshot, &err) < 0) {
        check_say(check, "ERROR: %s", err.text);
        check->result->corruptions++;
        check->unseen = true;
    }
    if (!qcow2_snapshot_l1_is_there(s, snapshot))
        return;
    if (!l1_tables_fit(check, snapshot->l1_size * 8ull))
        return;
    if (qcow2_co_read_table(s, snapshot->l1_offset, snapshot->l1_size, snapshot->l1_size, &l1) < 0) {
        check_say(check, "ERROR: I/O error reading the L1 table of snapshot '%s'", snapshot->name);
        check->result->check_errors++;
        return;
    }
    co_walk_l1(check, l1, snapshot->l1_offset, snapshot->l1_size, false, buf);
    free(l1);
}

static void bitmap_reference(void *opaque, uint64_t host, uint64_t bytes)
{
    check_reference(opaque, host, bytes, "bitmap");
}

void coroutine_fn check_co_walk(struct check *check)
{
    struct qcow2 *s = check->s;
    uint8_t *buf = qcow2_buffer_get(s);
    if (!buf) {
        check->error = -ENOMEM;
        return;
    }
    check_reference(check, 0, s->cluster_bytes, "header");
    check->l1_bytes = s->l1_size * 8ull;
    co_walk_l1(check, s->l1, s->l1_offset, s->l1_size, true, buf);
    check_reference(check, s->snapshots_offset, s->snapshots_bytes, "snapshot table");
    for (uint32_t i = 0; i < s->nb_snapshots && !check->error; i++)
        co_walk_snapshot(check, &s->snapshots[i], buf);
    co_walk_shared(check, buf);
    const struct qcow2_ext *crypto = qcow2_find_ext(s, QCOW2_EXT_CRYPTO);
    if (crypto && crypto->length == sizeof(struct qcow2_crypto_extension)) {
        struct qcow2_crypto_extension ext;
        memcpy(&ext, crypto->data, sizeof(ext));
        if (be64_get(ext.length) <= s->file_bytes)
            check_reference(check, be64_get(ext.offset), be64_get(ext.length), "encryption header");
    }
    int ret = qcow2_bitmaps_co_references(s, bitmap_reference, check);
    if (ret < 0) {
        if (ret == -EFBIG)
            check_say(check, "ERROR: the bitmap tables have more bytes together than the file");
        else
            check_say(check, "ERROR: the bitmaps cannot be read: %s", strerror(-ret));
        check->result->check_errors++;
    }
    qcow2_buffer_put(s, buf);
}

/* ---- refcounts ---- */

/* The refcount structures are references, too, and have rules of their own (E4). */
static void check_refcount_structures(struct check *check)
{
    struct qcow2 *s = check->s;
    check_reference(check, s->reftable_offset, (uint64_t)s->reftable_clusters << s->cluster_bits,
                    "refcount table");
    for (uint32_t i = 0; i < s->reftable_entries && !check->error; i++) {
        uint64_t entry = s->reftable[i], block = entry & QCOW2_REFTABLE_OFFSET_MASK;
        const char *why = NULL;
        if (!entry)
            continue;
        if (entry & QCOW2_REFTABLE_RESERVED_MASK)
            why = "reserved bits are set";
        else if (block & (s->cluster_bytes - 1))
            why = "the block is not cluster aligned";
        else if (block >> s->cluster_bits >= check->file_clusters)
            why = "the block lies beyond the end of the file";
        if (why) {
            check_say(check, "ERROR: refcount table entry %u is 0x%llx: %s", i, (unsigned long long)entry,
                      why);
            check->result->corruptions++;
            check->rebuild = true;
            continue;
        }
        check_reference(check, block, s->cluster_bytes, "refcount block");
        if (check_references(check, block >> s->cluster_bits) != 1) {
            check_say(check, "ERROR: refcount block %u at 0x%llx is something else as well", i,
                      (unsigned long long)block);
            check->result->corruptions++;
            check->rebuild = true;
        }
    }
}

static void coroutine_fn co_compare_one(struct check *check, uint64_t cluster, uint64_t refcount,
                                        uint32_t references)
{
    struct qcow2 *s = check->s;
    bool leak = refcount > references;
    check_say(check, "%s cluster %llu refcount=%llu reference=%u", leak ? "Leaked" : "ERROR",
              (unsigned long long)cluster, (unsigned long long)refcount, references);
    if (leak)
        check->result->leaks++;
    else
        check->result->corruptions++;
    if (!(check->fix & (leak ? QCOW2_FIX_LEAKS : QCOW2_FIX_ERRORS)) || check->rebuild ||
        (leak && check->unseen))
        return;
    int ret = check_co_set_refcount(s, cluster, references);
    if (ret == -ENOENT) {
        check->rebuild = true; /* there is no block to count it in */
    } else if (ret < 0) {
        check->result->check_errors++;
    } else if (leak) {
        check->result->leaks_fixed++;
    } else {
        check->result->corruptions_fixed++;
    }
}

static bool has_page(const struct check *check, uint64_t cluster)
{
    return cluster >> CHECK_PAGE_BITS < check->nb_pages && check->pages[cluster >> CHECK_PAGE_BITS];
}

/* Refcounts, for one taking of the lock */
#define COMPARED_AT_ONCE 128u

static void coroutine_fn co_compare(struct check *check)
{
    struct qcow2 *s = check->s;
    uint64_t in_slice = 1ull << s->ref_slice_bits;
    uint64_t covered = (uint64_t)s->reftable_entries << s->refblock_bits;
    uint64_t end = max_u64(min_u64(covered, CHECK_MAX_CLUSTERS), check->end);
    check->result->image_end_offset = check->end << s->cluster_bits;
    if (check->rebuild)
        return; /* what the structures say means nothing */
    check->result->image_end_offset = 0;
    for (uint64_t c = 0, count; c < end; c += count) {
        uint64_t refcounts[COMPARED_AT_ONCE] = {0};
        bool has_block = c < covered && s->reftable[c >> s->refblock_bits];
        uint64_t block_end = c >= covered ? end : ((c >> s->refblock_bits) + 1) << s->refblock_bits;
        /* Whole ranges without a block and without references. */
        if (!has_block && !has_page(check, c)) {
            count = min_u64(block_end, ((c >> CHECK_PAGE_BITS) + 1) << CHECK_PAGE_BITS) - c;
            continue;
        }
        count = min_u64(min_u64(end - c, COMPARED_AT_ONCE), in_slice - (c & (in_slice - 1)));
        int ret = has_block ? qcow2_co_refcounts_get(s, c, (uint32_t)count, refcounts) : 0;
        if (ret < 0) {
            check_say(check, "ERROR: the refcounts from cluster %llu on cannot be read: %s",
                      (unsigned long long)c, strerror(-ret));
            check->result->check_errors += ret != -EIO || !check->rebuild;
            check->rebuild = true;
            count = in_slice - (c & (in_slice - 1));
            continue;
        }
        for (uint64_t i = 0; i < count; i++) {
            uint32_t references = check_references(check, c + i);
            if (refcounts[i])
                check->result->image_end_offset = (c + i + 1) << s->cluster_bits;
            if (refcounts[i] != references)
                co_compare_one(check, c + i, refcounts[i], references);
        }
    }
}

/* ---- the whole ---- */

static int coroutine_fn co_pass(struct check *check)
{
    struct qcow2 *s = check->s;
    check->file_clusters = (s->file_bytes + s->cluster_bytes - 1) >> s->cluster_bits;
    check->result->total_clusters = (s->size + s->cluster_bytes - 1) >> s->cluster_bits;
    if (check->file_clusters > CHECK_MAX_CLUSTERS)
        return -EFBIG;
    check_co_walk(check);
    if (!check->error && check->result->check_errors) {
        /* What could not be read may refer to anything: nothing is a leak that may be given back. */
        check_say(check, "ERROR: not everything could be read: the refcounts are left as they are");
        return 0;
    }
    if (!check->error)
        check_refcount_structures(check);
    if (!check->error)
        co_compare(check);
    if (!check->rebuild && check->unseen && check->result->leaks && (check->fix & QCOW2_FIX_LEAKS))
        check_say(check, "Leaks are left as they are: they may be what could not be followed");
    if (!check->error && check->rebuild && (check->fix & QCOW2_FIX_ERRORS)) {
        int ret = check_co_rebuild(check);
        if (ret < 0) {
            check_say(check, "ERROR: the refcount structures cannot be rebuilt: %s", strerror(-ret));
            check->result->check_errors++;
            check->fix = 0; /* flags are not set by refcounts that are wrong */
        }
    }
    if (!check->error)
        check_co_copied(check);
    return check->error;
}

static int coroutine_fn co_check(struct qcow2 *s, unsigned fix, struct qcow2_check *result,
                                 void (*report)(void *opaque, const char *line), void *opaque)
{
    memset(result, 0, sizeof(*result));
    struct check check = {.s = s, .result = result, .report = report, .opaque = opaque, .fix = fix};
    int ret = s->read_only ? 0 : qcow2_co_writeback(s);
    if (ret == 0)
        ret = co_pass(&check);
    check_forget(&check);
    if (ret < 0 || !fix || !(result->corruptions | result->leaks | result->check_errors))
        return ret;
    /* Again: what is left? */
    struct qcow2_check left = {0};
    struct check second = {.s = s, .result = &left, .report = NULL};
    ret = qcow2_co_writeback(s);
    if (ret == 0)
        ret = co_pass(&second);
    check_forget(&second);
    left.corruptions_fixed =
        result->corruptions > left.corruptions ? result->corruptions - left.corruptions : 0;
    left.leaks_fixed = result->leaks > left.leaks ? result->leaks - left.leaks : 0;
    *result = left;
    return ret;
}

static int coroutine_fn co_check_and_clear(struct qcow2 *s, unsigned fix, struct qcow2_check *result,
                                           void (*report)(void *opaque, const char *line), void *opaque)
{
    int ret = co_check(s, fix, result, report, opaque);
    if (ret == 0 && (fix & QCOW2_FIX_ERRORS) && !result->corruptions && !result->check_errors)
        ret = qcow2_co_set_features(s, s->incompatible & ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT),
                                    s->autoclear);
    return ret;
}

int coroutine_fn qcow2_co_check(struct node *node, unsigned fix, struct qcow2_check *result,
                                void (*report)(void *opaque, const char *line), void *opaque,
                                struct error *err)
{
    struct qcow2 *s = qcow2_state(node);
    if (!s)
        return error_set(err, -EINVAL, "not a qcow2 image");
    if (fix && s->read_only)
        return error_set(err, -EPERM, "%s: is open read-only: it cannot be repaired", node->filename);
    /* Nothing is given back then; but what comes before a first write would give up the bitmaps. */
    if (s->bitmaps_error && !(fix & QCOW2_FIX_ERRORS))
        fix = 0;
    int ret = fix && !s->prepared ? qcow2_co_prepare_write(s) : 0;
    if (ret == 0) {
        qcow2_co_quiesce(s);
        ret = co_check_and_clear(s, fix, result, report, opaque);
        qcow2_co_unquiesce(s);
    }
    return ret < 0 ? error_set(err, ret, "%s: cannot be checked: %s", node->filename, strerror(-ret)) : 0;
}

int coroutine_fn qcow2_co_repair_dirty(struct qcow2 *s, struct error *err)
{
    struct qcow2_check result;
    bool check_only = s->check_only;
    s->check_only = true;
    int ret = co_check_and_clear(s, QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS, &result, NULL, NULL);
    s->check_only = check_only;
    if (ret == 0 && (result.corruptions || result.check_errors))
        ret = -EIO;
    return ret < 0 ? error_set(err, ret,
                               "the image was not closed cleanly (dirty bit), and its refcounts cannot be "
                               "repaired (%llu "
                               "errors are left: run ringside-img check -r all)",
                               (unsigned long long)result.corruptions + result.check_errors)
                   : 0;
}
