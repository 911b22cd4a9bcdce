/*
 * libFuzzer on qcow2 images, what the targets share: a file in memory, the image opened on it, a bound on
 * memory, and a mutator that knows where the fields of an image lie. A target defines fuzz_image(how): the
 * input's first byte says which way, the rest is the image file.
 *
 * What always holds, whatever the image says: nothing but an error comes of it; the heap grows by at most
 * HEAP_MAX beyond the caches; an image opened for reading or checking is not written to.
 */
#ifndef RINGSIDE_TESTS_QCOW2_FUZZ_H
#define RINGSIDE_TESTS_QCOW2_FUZZ_H

#include <errno.h>
#include <sanitizer/allocator_interface.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host/block/node.h"
#include "host/qcow2/qcow2.h"
#include "host/qcow2/qcow2_format.h"
#include "host/runtime/loop.h"

#define FILE_MAX    (3u << 20) /* the file may grow so far */
#define CACHE_BYTES (64u << 10)
#define HEAP_MAX    ((64u << 20) + 2 * CACHE_BYTES)

static void coroutine_fn fuzz_image(uint8_t how);

static struct {
    struct loop *loop;
    uint8_t *data;
    size_t bytes;
    uint8_t how;
    bool frozen; /* nobody may write */
    bool cut;    /* after writes_left writes nothing is written any more */
    unsigned writes_left;
    char secret[32]; /* a file with the passphrase of encrypted seeds */
    uint64_t heap, heap_at_start;
    bool watching;
} f;

/* ---- memory ---- */

static void heap_grows(const volatile void *at, size_t bytes)
{
    uint64_t now = __atomic_add_fetch(&f.heap, bytes, __ATOMIC_RELAXED);
    if (f.watching && now > f.heap_at_start && now - f.heap_at_start > HEAP_MAX) {
        f.watching = false;
        fprintf(stderr, "an allocation of %zu bytes: %llu MiB more than at the start\n", bytes,
                (unsigned long long)(now - f.heap_at_start) >> 20);
        abort();
    }
}

static void heap_shrinks(const volatile void *at)
{
    if (at)
        __atomic_sub_fetch(&f.heap, __sanitizer_get_allocated_size(at), __ATOMIC_RELAXED);
}

/* ---- a file in memory ---- */

static int mem_open(struct node *node, const struct open_options *options, struct error *err)
{
    node_set_length(node, f.bytes);
    return 0;
}

static int mem_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg, unsigned flags)
{
    uint64_t there = offset >= f.bytes ? 0 : f.bytes - offset < bytes ? f.bytes - offset : bytes;
    if (there)
        sg_copy_in(sg, f.data + offset, there);
    if (there < bytes)
        sg_zero(sg_advance(sg, there), bytes - there);
    return 0;
}

static int mem_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg, unsigned flags)
{
    if (f.frozen)
        abort();
    if (f.cut && !f.writes_left)
        return -EIO;
    f.writes_left -= f.cut;
    if (offset > FILE_MAX || bytes > FILE_MAX - offset)
        return -ENOSPC;
    sg_copy_out(sg, f.data + offset, bytes);
    if (offset + bytes > f.bytes)
        f.bytes = offset + bytes;
    node_grow_length(node, f.bytes);
    return 0;
}

static int mem_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    if (!exact && bytes <= f.bytes)
        return 0;
    if (f.frozen)
        abort();
    if (bytes > FILE_MAX)
        return error_set(err, -ENOSPC, "full");
    if (bytes < f.bytes)
        memset(f.data + bytes, 0, f.bytes - bytes);
    f.bytes = bytes;
    node_set_length(node, bytes);
    return 0;
}

static const struct node_driver mem_driver = {.format_name = "mem",
                                              .is_protocol = true,
                                              .co_open = mem_open,
                                              .co_preadv = mem_preadv,
                                              .co_pwritev = mem_pwritev,
                                              .co_truncate = mem_truncate};

/* ---- what targets do with it ---- */

static inline struct node *open_with(const struct open_options *options)
{
    struct node *protocol, *node;
    struct error err;
    f.frozen = options->read_only;
    if (node_co_open_driver(&mem_driver, "mem", options, &protocol, &err) < 0 ||
        node_co_open_format(&qcow2_driver, protocol, "mem", options, false, &node, &err) < 0)
        return NULL;
    return node;
}

static inline struct node *open_image(bool writable, bool check_only, const char *snapshot)
{
    struct open_options options = {.format = "qcow2",
                                   .read_only = !writable,
                                   .check_only = check_only,
                                   .backing = BACKING_DENY,
                                   .cache = CACHE_WRITEBACK,
                                   .l2_cache_bytes = CACHE_BYTES,
                                   .refcount_cache_bytes = CACHE_BYTES,
                                   .secret_file = f.secret,
                                   .snapshot = snapshot};
    return open_with(&options);
}

static inline void read_some(struct node *node)
{
    static uint8_t buf[65536];
    uint64_t at = 0, length = node_length(node);
    for (int i = 0; i < 100 && at < length; i++) {
        uint64_t pnum;
        unsigned flags;
        if (node_co_block_status(node, at, length - at, &pnum, &flags, NULL) < 0)
            pnum = 4096;
        else if (pnum == 0 || pnum > length - at)
            abort(); /* a range that ends nowhere */
        (void)node_co_pread(node, at, buf,
                            pnum < sizeof(buf)          ? pnum
                            : sizeof(buf) < length - at ? sizeof(buf)
                                                        : length - at);
        at += pnum;
    }
}

static inline void write_some(struct node *node)
{
    static uint8_t buf[8192];
    uint64_t length = node_length(node), step = length / 7 + 1;
    memset(buf, 0x77, sizeof(buf));
    for (uint64_t at = 0; at + 4096 <= length; at += step) {
        (void)node_co_pwrite(node, at, buf, 4096, 0);
        (void)node_co_pwrite_zeroes(node, at / 2, 1024, NODE_IO_MAY_UNMAP);
        (void)node_co_pdiscard(node, at / 3, length / 5);
    }
    (void)node_co_flush(node);
    read_some(node);
}

static inline void coroutine_fn snapshot_some(struct node *node)
{
    struct qcow2_snapshot_info *list = NULL;
    size_t count;
    struct error err;

    (void)qcow2_co_snapshot_create(node, "new", &err);
    if (qcow2_snapshots(node, &list, &count) == 0 && count) {
        char *id = strdup(list[0].id);
        (void)qcow2_co_snapshot_apply(node, id, &err);
        (void)qcow2_co_snapshot_delete(node, id, &err);
        free(id);
    }
    free(list);
}

/* ---- a mutator that knows the format ---- */

static uint64_t mutator_seed;

static uint64_t mutator_below(uint64_t n)
{
    mutator_seed ^= mutator_seed << 13;
    mutator_seed ^= mutator_seed >> 7;
    mutator_seed ^= mutator_seed << 17;
    return mutator_seed % n;
}

static uint64_t image_get(const uint8_t *image, size_t bytes, uint64_t at, unsigned width)
{
    uint64_t value = 0;
    if (at > bytes || bytes - at < width)
        return 0;
    for (unsigned i = 0; i < width; i++)
        value = value << 8 | image[at + i];
    return value;
}

static void image_put(uint8_t *image, size_t bytes, uint64_t at, unsigned width, uint64_t value)
{
    if (at > bytes || bytes - at < width)
        return;
    for (unsigned i = width; i-- > 0; value >>= 8)
        image[at + i] = (uint8_t)value;
}

/* Something that may make sense in a field or an entry, or nearly. */
static uint64_t telling_value(const uint8_t *image, size_t bytes, uint64_t old, unsigned cluster_bits)
{
    uint64_t clusters = (bytes >> cluster_bits) + 2, cluster = mutator_below(clusters) << cluster_bits;
    switch (mutator_below(12)) {
    case 0:
        return 0;
    case 1:
        return cluster;
    case 2:
        return cluster | QCOW2_COPIED;
    case 3:
        return cluster | QCOW2_COPIED | QCOW2_L2_ZERO;
    case 4:
        return QCOW2_L2_COMPRESSED | (cluster + mutator_below(1u << cluster_bits)) |
               mutator_below(4) << (70 - cluster_bits);
    case 5:
        return old + 1;
    case 6:
        return old - 1;
    case 7:
        return old ^ 1ull << mutator_below(64);
    case 8:
        return 1ull << mutator_below(64);
    case 9:
        return ~0ull >> mutator_below(64);
    case 10:
        return image_get(image, bytes, mutator_below(bytes) & ~7ull, 8);
    default:
        return mutator_below(70000);
    }
}

/* Where the data of the header extension TYPE is; 0: there is none. */
static uint64_t extension_at(const uint8_t *image, size_t bytes, uint64_t type)
{
    uint64_t at = image_get(image, bytes, 100, 4);
    for (int i = 0; i < 8; i++) {
        if (image_get(image, bytes, at, 4) == type)
            return at + 8;
        at += 8 + ((image_get(image, bytes, at + 4, 4) + 7) & ~7ull);
    }
    return 0;
}

/* Where a table begins, by the header and by the tables before it. */
static uint64_t some_table(const uint8_t *image, size_t bytes, unsigned cluster_bits)
{
    uint64_t l1 = image_get(image, bytes, 40, 8), reftable = image_get(image, bytes, 48, 8);
    uint64_t snapshots = image_get(image, bytes, 64, 8), at;
    switch (mutator_below(8)) {
    case 0:
        return l1;
    case 1:
    case 2:
        return image_get(image, bytes, l1 + 8 * mutator_below(4), 8) & QCOW2_L1_OFFSET_MASK;
    case 3:
        return reftable;
    case 4:
        return image_get(image, bytes, reftable + 8 * mutator_below(2), 8) & QCOW2_REFTABLE_OFFSET_MASK;
    case 5:
        return snapshots;
    case 6:
        return image_get(image, bytes, snapshots, 8); /* the first snapshot's L1 table */
    default:
        break;
    }
    at = mutator_below(2) ? extension_at(image, bytes, QCOW2_EXT_BITMAPS) : 0;
    if (at) { /* the directory of bitmaps, or its first table */
        uint64_t directory = image_get(image, bytes, at + 16, 8);
        return mutator_below(2) ? directory : image_get(image, bytes, directory, 8);
    }
    at = mutator_below(2) ? extension_at(image, bytes, QCOW2_EXT_CRYPTO) : 0;
    if (at)
        return image_get(image, bytes, at, 8) + (mutator_below(2) ? 0 : 104 + 48 * mutator_below(9));
    return mutator_below(bytes >> cluster_bits ? bytes >> cluster_bits : 1) << cluster_bits;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    static const struct {
        uint8_t at, width;
    } fields[] = {{4, 4},  {8, 8},  {16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4}, {40, 8},  {48, 8},
                  {56, 4}, {60, 4}, {64, 8}, {72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 1}};
    mutator_seed = seed * 0x9e3779b97f4a7c15u + 1;
    if (size < 600 || mutator_below(4) == 0)
        return LLVMFuzzerMutate(data, size, max_size);
    uint8_t *image = data + 1;
    size_t bytes = size - 1;
    if (mutator_below(16) == 0)
        data[0] = (uint8_t)mutator_below(mutator_below(2) ? 8 : 256);
    for (uint64_t changes = 1 + mutator_below(4); changes; changes--) {
        uint64_t cluster_bits = image_get(image, bytes, 20, 4);
        if (cluster_bits < 9 || cluster_bits > 21)
            cluster_bits = 9;
        uint64_t at;
        unsigned width = 8;
        if (mutator_below(5) == 0) {
            size_t field = mutator_below(sizeof fields / sizeof fields[0]);
            at = fields[field].at;
            width = fields[field].width;
        } else {
            uint64_t table = some_table(image, bytes, (unsigned)cluster_bits);
            /* mostly near its beginning: that is where small images have something */
            at = table + 8 * mutator_below(mutator_below(4) ? 12 : (1u << cluster_bits) / 8);
            if (mutator_below(8) == 0)
                width = 1u << mutator_below(3);
        }
        if (at > bytes || bytes - at < width)
            continue;
        uint64_t old = image_get(image, bytes, at, width);
        image_put(image, bytes, at, width, telling_value(image, bytes, old, (unsigned)cluster_bits));
    }
    return size;
}

/* ---- what libFuzzer calls ---- */

/* An image may ask for a minute of key derivation. That is its right, but nothing is learnt of it. */
static bool takes_long(void)
{
    uint64_t at = extension_at(f.data, f.bytes, QCOW2_EXT_CRYPTO);
    uint64_t header = at ? image_get(f.data, f.bytes, at, 8) : 0;
    bool does = header && image_get(f.data, f.bytes, header + 164, 4) > 4096;
    for (unsigned i = 0; header && i < 8; i++)
        does |= image_get(f.data, f.bytes, header + 212 + 48 * i, 4) > 4096;
    return does;
}

static void make_secret(void)
{
    int fd = memfd_create("secret", MFD_CLOEXEC);
    if (fd < 0 || write(fd, "secret", 6) != 6)
        abort();
    snprintf(f.secret, sizeof f.secret, "/proc/self/fd/%d", fd);
}

static void fuzz_entry(void *opaque)
{
    fuzz_image(f.how);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!f.loop) {
        f.loop = loop_create("fuzz", NULL);
        f.data = calloc(1, FILE_MAX);
        log_set_program("fuzz");
        make_secret();
        __sanitizer_install_malloc_and_free_hooks(heap_grows, heap_shrinks);
        f.heap = 1u << 30; /* what was there before may be freed: never below 0 */
    }
    if (size < 2 || size - 1 > FILE_MAX)
        return 0;
    f.how = data[0];
    memset(f.data, 0, f.bytes);
    memcpy(f.data, data + 1, size - 1);
    f.bytes = size - 1;
    if (takes_long())
        return 0;
    f.heap_at_start = f.heap;
    f.watching = true;
    loop_run_coroutine(f.loop, fuzz_entry, NULL);
    f.watching = false;
    return 0;
}

#endif
