/*
 * What lies where: an exact map from cluster to the kind of metadata in it, so that nothing is written over
 * metadata of another kind, whatever the tables say. The classes are those of QEMU's overlap-check.
 *
 * What always holds: every cluster of the header, the active L1 and L2 tables, the refcount structures, the
 * snapshot table with the snapshots' L1 tables, the bitmap directory and the encryption header is in the map.
 * The map takes no more memory than the tables that are in memory anyway: what an image may say to be of any
 * length is in it as a range. Nor more time: where a cluster comes to lie in it no image can foresee.
 * Changes under the metadata lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "host/qcow2/bitmap.h"
#include "host/qcow2/qcow2_state.h"

#define CLASS_BITS 4u
#define CLASS_MASK ((1ull << CLASS_BITS) - 1)

static const char *const names[QCOW2_OL_COUNT] = {
    [QCOW2_OL_NONE] = "none",
    [QCOW2_OL_MAIN_HEADER] = "main-header",
    [QCOW2_OL_ACTIVE_L1] = "active-l1",
    [QCOW2_OL_ACTIVE_L2] = "active-l2",
    [QCOW2_OL_REFCOUNT_TABLE] = "refcount-table",
    [QCOW2_OL_REFCOUNT_BLOCK] = "refcount-block",
    [QCOW2_OL_SNAPSHOT_TABLE] = "snapshot-table",
    [QCOW2_OL_INACTIVE_L1] = "inactive-l1",
    [QCOW2_OL_INACTIVE_L2] = "inactive-l2",
    [QCOW2_OL_BITMAP_DIRECTORY] = "bitmap-directory",
    [QCOW2_OL_CRYPT_HEADER] = "encryption-header",
};

const char *qcow2_overlap_name(enum qcow2_overlap what)
{
    return what < QCOW2_OL_COUNT ? names[what] : "unknown";
}

static size_t hash(const struct qcow2_overlap_map *map, uint64_t cluster)
{
    return (size_t)qcow2_hash(map->seed, cluster) & (map->room - 1);
}

uint64_t qcow2_hash(uint64_t seed, uint64_t cluster)
{
    uint64_t x = (cluster + seed) * (seed | 1);
    x ^= x >> 32;
    x *= 0x9e3779b97f4a7c15ull;
    return x ^ x >> 29;
}

uint64_t qcow2_hash_seed(void)
{
    uint64_t random[2] = {1, 1};
    const void *of_process = (const void *)getauxval(AT_RANDOM);
    if (of_process)
        memcpy(random, of_process, sizeof(random));
    return (random[0] ^ random[1] >> 7) * 0xd6e8feb86659fd93ull;
}

static uint64_t slot_cluster(uint64_t slot)
{
    return (slot - 1) >> CLASS_BITS;
}

static void insert(struct qcow2_overlap_map *map, uint64_t slot)
{
    size_t i = hash(map, slot_cluster(slot));
    while (map->slots[i])
        i = (i + 1) & (map->room - 1);
    map->slots[i] = slot;
    map->count++;
}

static int grow(struct qcow2_overlap_map *map, size_t more)
{
    size_t room = map->room ? map->room : 256;
    while ((map->count + more) * 4 > room * 3)
        room *= 2;
    if (room == map->room)
        return 0;
    struct qcow2_overlap_map bigger = *map;
    bigger.slots = calloc(room, sizeof(uint64_t));
    bigger.room = room;
    bigger.count = 0;
    bigger.seed = qcow2_hash_seed();
    if (!bigger.slots)
        return -ENOMEM;
    for (size_t i = 0; i < map->room; i++) {
        if (map->slots[i])
            insert(&bigger, map->slots[i]);
    }
    free(map->slots);
    *map = bigger;
    return 0;
}

static enum qcow2_overlap lookup(const struct qcow2_overlap_map *map, uint64_t cluster)
{
    if (!map->room)
        return QCOW2_OL_NONE;
    for (size_t i = hash(map, cluster); map->slots[i]; i = (i + 1) & (map->room - 1)) {
        if (slot_cluster(map->slots[i]) == cluster)
            return (enum qcow2_overlap)((map->slots[i] - 1) & CLASS_MASK);
    }
    return QCOW2_OL_NONE;
}

static void erase(struct qcow2_overlap_map *map, uint64_t cluster)
{
    if (!map->room)
        return;
    size_t mask = map->room - 1, i = hash(map, cluster);
    while (map->slots[i] && slot_cluster(map->slots[i]) != cluster)
        i = (i + 1) & mask;
    if (!map->slots[i])
        return;
    map->slots[i] = 0;
    map->count--;
    /* Close the gap: whatever would no longer be found from its own place moves into it. */
    for (size_t j = (i + 1) & mask; map->slots[j]; j = (j + 1) & mask) {
        size_t home = hash(map, slot_cluster(map->slots[j]));
        if (((j - home) & mask) >= ((j - i) & mask)) {
            map->slots[i] = map->slots[j];
            map->slots[j] = 0;
            i = j;
        }
    }
}

static bool is_in(const struct qcow2_overlap_range *range, uint64_t cluster)
{
    return cluster >= range->first && cluster < range->end;
}

/* What comes first in qcow2_overlap_build is what a cluster is. */
static enum qcow2_overlap class_of(const struct qcow2_overlap_map *map, uint64_t cluster)
{
    enum qcow2_overlap what = lookup(map, cluster);
    if (what != QCOW2_OL_NONE)
        return what;
    if (is_in(&map->crypt_header, cluster))
        return QCOW2_OL_CRYPT_HEADER;
    size_t from = 0, to = map->nb_inactive_l1;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (map->inactive_l1[middle].end <= cluster)
            from = middle + 1;
        else
            to = middle;
    }
    return from < map->nb_inactive_l1 && is_in(&map->inactive_l1[from], cluster) ? QCOW2_OL_INACTIVE_L1
                                                                                 : QCOW2_OL_NONE;
}

int qcow2_overlap_add(struct qcow2 *s, uint64_t host, uint64_t bytes, enum qcow2_overlap what)
{
    if (!bytes)
        return 0;
    uint64_t first = host >> s->cluster_bits, end = (host + bytes - 1) >> s->cluster_bits;
    int ret = grow(&s->overlap, (size_t)(end - first + 1));
    if (ret < 0)
        return ret;
    for (uint64_t c = first; c <= end; c++) {
        if (lookup(&s->overlap, c) == QCOW2_OL_NONE && !is_in(&s->overlap.crypt_header, c))
            insert(&s->overlap, (c << CLASS_BITS | (uint64_t)what) + 1);
    }
    return 0;
}

void qcow2_overlap_remove(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    if (!bytes)
        return;
    for (uint64_t c = host >> s->cluster_bits; c <= (host + bytes - 1) >> s->cluster_bits; c++)
        erase(&s->overlap, c);
}

enum qcow2_overlap qcow2_overlap_check(const struct qcow2 *s, uint64_t host, uint64_t bytes,
                                       enum qcow2_overlap own, uint64_t *at)
{
    if (!bytes)
        return QCOW2_OL_NONE;
    for (uint64_t c = host >> s->cluster_bits; c <= (host + bytes - 1) >> s->cluster_bits; c++) {
        enum qcow2_overlap what = class_of(&s->overlap, c);
        if (what != QCOW2_OL_NONE && what != own) {
            if (at)
                *at = c << s->cluster_bits;
            return what;
        }
    }
    return QCOW2_OL_NONE;
}

/* What an entry says is not believed yet: the map is bounded by what the file can hold. */
static bool in_file(const struct qcow2 *s, uint64_t host)
{
    return host && host < s->file_bytes;
}

static struct qcow2_overlap_range range_of(const struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    return (struct qcow2_overlap_range){host >> s->cluster_bits, ((host + bytes - 1) >> s->cluster_bits) + 1};
}

static void find_crypt_header(struct qcow2 *s)
{
    const struct qcow2_ext *crypto = qcow2_find_ext(s, QCOW2_EXT_CRYPTO);
    struct qcow2_crypto_extension ext;
    if (!crypto || crypto->length != sizeof(ext))
        return;
    memcpy(&ext, crypto->data, sizeof(ext));
    uint64_t host = be64_get(ext.offset), bytes = be64_get(ext.length);
    if (bytes && bytes <= s->file_bytes && host <= s->file_bytes)
        s->overlap.crypt_header = range_of(s, host, bytes);
}

static int range_compare(const void *a, const void *b)
{
    const struct qcow2_overlap_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

static int find_inactive_l1(struct qcow2 *s)
{
    struct qcow2_overlap_map *map = &s->overlap;
    struct qcow2_overlap_range *ranges = calloc((size_t)s->nb_snapshots + 1, sizeof(*ranges));
    size_t count = 0, kept = 0;
    map->inactive_l1 = ranges;
    if (!ranges)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->nb_snapshots && s->snapshots; i++) {
        uint64_t entries = s->snapshots[i].l1_size;
        if (entries && entries <= QCOW2_MAX_L1_BYTES / 8 && in_file(s, s->snapshots[i].l1_offset))
            ranges[count++] = range_of(s, s->snapshots[i].l1_offset, entries * 8);
    }
    qsort(ranges, count, sizeof(*ranges), range_compare);
    for (size_t i = 0; i < count; i++) {
        if (kept && ranges[i].first <= ranges[kept - 1].end)
            ranges[kept - 1].end = max_u64(ranges[kept - 1].end, ranges[i].end);
        else
            ranges[kept++] = ranges[i];
    }
    map->nb_inactive_l1 = kept;
    return 0;
}

void qcow2_overlap_free(struct qcow2 *s)
{
    free(s->overlap.slots);
    free(s->overlap.inactive_l1);
    s->overlap = (struct qcow2_overlap_map){0};
}

int qcow2_overlap_build(struct qcow2 *s)
{
    qcow2_overlap_free(s);
    int ret = qcow2_overlap_add(s, 0, s->cluster_bytes, QCOW2_OL_MAIN_HEADER);
    if (ret == 0)
        ret = qcow2_overlap_add(s, s->l1_offset, (uint64_t)s->l1_size * 8, QCOW2_OL_ACTIVE_L1);
    if (ret == 0)
        ret = qcow2_overlap_add(s, s->reftable_offset, (uint64_t)s->reftable_clusters << s->cluster_bits,
                                QCOW2_OL_REFCOUNT_TABLE);
    if (ret == 0)
        ret = qcow2_overlap_add(s, s->snapshots_offset, s->snapshots_bytes, QCOW2_OL_SNAPSHOT_TABLE);
    find_crypt_header(s);
    s->lost_block = 0;
    for (uint32_t i = 0; ret == 0 && i < s->reftable_entries; i++) {
        uint64_t host = s->reftable[i] & QCOW2_REFTABLE_OFFSET_MASK;
        if (in_file(s, host))
            ret = qcow2_overlap_add(s, host, s->cluster_bytes, QCOW2_OL_REFCOUNT_BLOCK);
        else if (host)
            s->lost_block = host;
    }
    uint64_t directory, bytes;
    if (ret == 0 && qcow2_bitmaps_directory(s, &directory, &bytes))
        ret = qcow2_overlap_add(s, directory, bytes, QCOW2_OL_BITMAP_DIRECTORY);
    for (uint32_t i = 0; ret == 0 && i < s->l1_size; i++) {
        uint64_t host = s->l1[i] & QCOW2_L1_OFFSET_MASK;
        if (in_file(s, host))
            ret = qcow2_overlap_add(s, host, s->cluster_bytes, QCOW2_OL_ACTIVE_L2);
        else if (host)
            s->lost_l2 = host; /* also if the file has grown over it meanwhile */
    }
    return ret < 0 ? ret : find_inactive_l1(s);
}
