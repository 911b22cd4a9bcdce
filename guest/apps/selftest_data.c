/*
 * selftest, third group: data of every shape, the commands besides read and write, the disk as a file, and at
 * last a pattern over the whole disk and the pieces that the host reads back.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest/apps/selftest.h"
#include "guest/libc/arguments.h"
#include "guest/libc/disk.h"

#define KIB 1024u
#define MIB (1024u * KIB)

static bool write_and_read(struct test *test, uint64_t sector, uint8_t *buf, uint8_t *back, size_t bytes,
                           uint64_t seed)
{
    data_fill(buf, bytes, sector, seed);
    memset(back, 0xee, bytes);
    if (!check_result(test, "writing", vblk_write(test->disk, 0, sector, buf, bytes), 0) ||
        !check_result(test, "reading", vblk_read(test->disk, 0, sector, back, bytes), 0))
        return false;
    long at = data_differs(back, bytes, sector, seed);
    return check(test, at < 0, "%u bytes at sector %llu: byte %ld differs", (unsigned)bytes,
                 (unsigned long long)sector, at);
}

static void first_and_last_block(struct test *test)
{
    uint32_t bytes = test->info.block_size;
    uint8_t *buf = test_alloc(bytes), *back = test_alloc(bytes);
    uint64_t last = (test->info.capacity_sectors / test->block_sectors - 1) * test->block_sectors;
    write_and_read(test, 0, buf, back, bytes, 20);
    write_and_read(test, last, buf, back, bytes, 21);
    check_result(test, "reading", vblk_read(test->disk, 0, 0, back, bytes), 0);
    check(test, last == 0 || data_differs(back, bytes, 0, 20) < 0,
          "writing the last block changed the first");
    free(buf);
    free(back);
}

static void every_size(struct test *test)
{
    static const unsigned blocks[] = {1, 2, 3, 7, 8, 9, 16, 31, 64, 127, 128, 129, 256, 1000};
    uint64_t sectors = 2048ull * test->block_sectors, area = scratch(test, &sectors);
    size_t limit = (size_t)sectors * VIRTIO_BLK_SECTOR_BYTES;
    uint8_t *buf = test_alloc(limit), *back = test_alloc(limit);
    for (unsigned i = 0; i < sizeof blocks / sizeof blocks[0] && !test->failed; i++) {
        size_t bytes = (size_t)blocks[i] * test->info.block_size;
        if (bytes + test->info.block_size <= limit)
            write_and_read(test, area + (i % 2) * test->block_sectors, buf, back, bytes, i);
    }
    free(buf);
    free(back);
}

/* More than one request of any device can carry: the driver parts it by size_max, seg_max and the ring's
 * size. */
static void one_large_request(struct test *test)
{
    uint64_t sectors = 8 * MIB / VIRTIO_BLK_SECTOR_BYTES, area = scratch(test, &sectors);
    size_t bytes = (size_t)sectors * VIRTIO_BLK_SECTOR_BYTES;
    uint8_t *buf = test_alloc(bytes), *back = test_alloc(bytes);
    write_and_read(test, area, buf, back, bytes, 22);
    free(buf);
    free(back);
}

struct shape {
    const char *name;
    size_t first, piece, step; /* a piece every STEP bytes of memory; FIRST: how far from a page's start */
};

static void transfer_shape(struct test *test, const struct shape *shape, uint64_t sector, size_t bytes)
{
    unsigned count = (unsigned)((bytes + shape->piece - 1) / shape->piece);
    struct vblk_seg *segs = test_alloc(count * sizeof *segs);
    size_t spread = shape->first + (size_t)count * shape->step + shape->piece;
    uint8_t *flat = test_alloc(bytes), *memory = test_alloc(spread + 4096);
    uint8_t *start = (uint8_t *)(((uintptr_t)memory + 4095) & ~(uintptr_t)4095) + shape->first;
    for (unsigned i = 0; i < count; i++) {
        size_t left = bytes - (size_t)i * shape->piece;
        segs[i] =
            (struct vblk_seg){start + (size_t)i * shape->step, left < shape->piece ? left : shape->piece};
    }
    data_fill(flat, bytes, sector, shape->piece);
    for (unsigned i = 0; i < count; i++)
        memcpy(segs[i].addr, flat + (size_t)i * shape->piece, segs[i].len);
    struct vblk_request request = {.op = VBLK_WRITE, .sector = sector, .segs = segs, .nsegs = count};
    check_result(test, shape->name, vblk_run(test->disk, 0, &request), 0);
    memset(memory, 0xee, spread + 4096);
    request = (struct vblk_request){.op = VBLK_READ, .sector = sector, .segs = segs, .nsegs = count};
    check_result(test, shape->name, vblk_run(test->disk, 0, &request), 0);
    for (unsigned i = 0; i < count && !test->failed; i++) {
        check(test, memcmp(segs[i].addr, flat + (size_t)i * shape->piece, segs[i].len) == 0,
              "%s: piece %u of %u differs", shape->name, i, count);
        const uint8_t *behind = (const uint8_t *)segs[i].addr + segs[i].len;
        check(test, shape->step == shape->piece || *behind == 0xee,
              "%s: the byte behind piece %u was written", shape->name, i);
    }
    memset(flat, 0, bytes);
    check_result(test, "reading in one piece", vblk_read(test->disk, 0, sector, flat, bytes), 0);
    check(test, data_differs(flat, bytes, sector, shape->piece) < 0, "%s: the disk has other data",
          shape->name);
    free(memory);
    free(flat);
    free(segs);
}

static void shapes(struct test *test, const struct shape *table, unsigned count)
{
    uint64_t sectors = 64 * KIB / VIRTIO_BLK_SECTOR_BYTES, area = scratch(test, &sectors);
    for (unsigned i = 0; i < count && !test->failed; i++)
        transfer_shape(test, &table[i], area, (size_t)sectors * VIRTIO_BLK_SECTOR_BYTES);
}

static void scatter_lists(struct test *test)
{
    static const struct shape table[] = {
        {"pieces of 512 bytes", 0, 512, 1024},          {"pieces of a page", 0, 4096, 8192},
        {"pieces of 1000 bytes", 0, 1000, 1003},        {"pieces of 24 bytes", 0, 24, 32},
        {"pieces of 65535 bytes", 0, 65535, 65536 + 7},
    };
    shapes(test, table, sizeof table / sizeof table[0]);
}

static void not_page_aligned(struct test *test)
{
    static const struct shape table[] = {
        {"a buffer at byte 1 of a page", 1, 65536, 65536},
        {"a buffer at byte 4095 of a page", 4095, 65536, 65536},
        {"a buffer at byte 510 of a page", 510, 65536, 65536},
        {"pieces of a page at byte 3", 3, 4096, 4099},
    };
    shapes(test, table, sizeof table / sizeof table[0]);
}

static void flush(struct test *test)
{
    uint64_t sectors = test->block_sectors, area = scratch(test, &sectors);
    uint8_t *buf = test_alloc(test->info.block_size), *back = test_alloc(test->info.block_size);
    for (unsigned i = 0; i < 8; i++) {
        write_and_read(test, area, buf, back, test->info.block_size, 30 + i);
        check_result(test, "flushing", vblk_flush(test->disk, 0), 0);
    }
    check_result(test, "flushing with nothing to flush", vblk_flush(test->disk, 0), 0);
    free(buf);
    free(back);
}

/* ---- ranges: discard, write zeroes, secure erase ---- */

enum { RANGE_DISCARD, RANGE_ZEROES, RANGE_ZEROES_UNMAP, RANGE_ERASE };

static int do_range(struct test *test, unsigned kind, uint64_t sector, uint64_t count)
{
    switch (kind) {
    case RANGE_DISCARD:
        return vblk_discard(test->disk, 0, sector, count);
    case RANGE_ERASE:
        return vblk_secure_erase(test->disk, 0, sector, count);
    default:
        return vblk_write_zeroes(test->disk, 0, sector, count, kind == RANGE_ZEROES_UNMAP);
    }
}

/* Data, a hole of KIND in it, and both sides of the hole unchanged; zeroes in it where that is promised. */
static void hole(struct test *test, unsigned kind)
{
    uint64_t sectors = MIB / VIRTIO_BLK_SECTOR_BYTES, area = scratch(test, &sectors);
    size_t bytes = (size_t)sectors * VIRTIO_BLK_SECTOR_BYTES;
    uint64_t unit = test->block_sectors, align = 1;
    if (kind == RANGE_DISCARD)
        align = le32_get(test->info.config.discard_sector_alignment);
    if (kind == RANGE_ERASE)
        align = le32_get(test->info.config.secure_erase_sector_alignment);
    if (align > unit && align <= sectors / 8)
        unit = align;
    area = (area + unit - 1) / unit * unit;
    sectors = sectors / unit * unit;
    if (area + sectors > test->info.capacity_sectors || sectors < 8 * unit) {
        skip(test, "the disk is too small");
        return;
    }
    bytes = (size_t)sectors * VIRTIO_BLK_SECTOR_BYTES;
    uint64_t from = sectors / 4 / unit * unit, to = sectors * 3 / 4 / unit * unit;
    uint8_t *buf = test_alloc(bytes), *back = test_alloc(bytes);
    if (write_and_read(test, area, buf, back, bytes, 40 + kind)) {
        int result = do_range(test, kind, area + from, to - from);
        if (kind == RANGE_DISCARD && result == -VBLK_ENOTSUP)
            skip(test, "the device answers UNSUPP");
        else
            check_result(test, "the hole", result, 0);
        check_result(test, "reading", vblk_read(test->disk, 0, area, back, bytes), 0);
        size_t hole_at = (size_t)from * VIRTIO_BLK_SECTOR_BYTES,
               hole_end = (size_t)to * VIRTIO_BLK_SECTOR_BYTES;
        check(test, memcmp(buf, back, hole_at) == 0, "data before the hole changed");
        check(test, memcmp(buf + hole_end, back + hole_end, bytes - hole_end) == 0,
              "data behind the hole changed");
        for (size_t i = hole_at; (kind == RANGE_ZEROES || kind == RANGE_ZEROES_UNMAP) && i < hole_end; i++) {
            if (!check(test, back[i] == 0, "byte %u of the hole is 0x%02x", (unsigned)(i - hole_at), back[i]))
                break;
        }
        write_and_read(test, area, buf, back, bytes, 50 + kind); /* and the hole can be filled again */
    }
    check_result(test, "a hole beyond the end", do_range(test, kind, test->info.capacity_sectors, unit),
                 -VBLK_ERANGE);
    free(buf);
    free(back);
}

static void discard(struct test *test)
{
    hole(test, RANGE_DISCARD);
}

static void write_zeroes(struct test *test)
{
    hole(test, RANGE_ZEROES);
}

static void write_zeroes_unmap(struct test *test)
{
    hole(test, RANGE_ZEROES_UNMAP);
}

static void secure_erase(struct test *test)
{
    hole(test, RANGE_ERASE);
}

/* ---- the disk as a file ---- */

static void as_a_file(struct test *test)
{
    char path[] = "/dev/vda", text[] = "a line that starts and ends in the middle of a block",
         back[sizeof text];
    path[7] = (char)('a' + test->index);
    FILE *file = fopen(path, test->info.read_only ? "r" : "r+");
    if (!check(test, file != NULL, "fopen: %s", strerror(errno)))
        return;
    struct stat st;
    long long capacity = (long long)(test->info.capacity_sectors * VIRTIO_BLK_SECTOR_BYTES);
    check(test, fstat(fileno(file), &st) == 0 && S_ISBLK(st.st_mode) && st.st_size == capacity,
          "fstat is wrong");
    check(test, fseek(file, 0, SEEK_END) == 0 && ftell(file) == capacity, "its end is at %ld", ftell(file));
    check(test, fgetc(file) == EOF, "there is something behind its end");
    if (!test->info.read_only) {
        uint64_t sectors = 4ull * test->block_sectors, area = scratch(test, &sectors);
        uint8_t *around = test_alloc(4 * (size_t)test->info.block_size);
        uint8_t *twin = test_alloc(4 * (size_t)test->info.block_size);
        size_t bytes = (size_t)sectors * VIRTIO_BLK_SECTOR_BYTES, at = test->info.block_size - 20;
        write_and_read(test, area, twin, around, bytes, 60);
        memcpy(twin + at, text, sizeof text);
        fseek(file, (long)(area * VIRTIO_BLK_SECTOR_BYTES + at), SEEK_SET);
        check(test, fwrite(text, sizeof text, 1, file) == 1, "fwrite: %s", strerror(errno));
        check(test, fflush(file) == 0 && fsync(fileno(file)) == 0, "fsync: %s", strerror(errno));
        check_result(test, "reading", vblk_read(test->disk, 0, area, around, bytes), 0);
        check(test, memcmp(twin, around, bytes) == 0, "writing a line changed what is around it");
        fseek(file, (long)(area * VIRTIO_BLK_SECTOR_BYTES + at), SEEK_SET);
        check(test, fread(back, sizeof back, 1, file) == 1 && strcmp(back, text) == 0,
              "fread: not what was written");
        free(around);
        free(twin);
        int fd = open(path, O_RDWR);
        check(test, lseek(fd, -1, SEEK_END) == capacity - 1 && write(fd, "xy", 2) == 1,
              "writing the last byte");
        errno = 0;
        check(test, write(fd, "y", 1) == -1 && errno == ENOSPC, "writing behind it: %s", strerror(errno));
        check(test, close(fd) == 0, "close: %s", strerror(errno));
    }
    check(test, fclose(file) == 0, "fclose: %s", strerror(errno));
    errno = 0;
    check(test, open("/dev/vdz", O_RDONLY) == -1 && errno == ENOENT, "open of no disk: %s", strerror(errno));
}

/* ---- the whole disk ---- */

#define PATTERN_SEED 99
#define PIECE        (256 * KIB)

/* Pieces over the whole disk, the last one up to its last block; every one of them when they are few enough
 * to stay within the limit, else evenly spread. */
struct pieces {
    uint64_t count, stride, last, sectors; /* sectors */
};

static struct pieces plan_pieces(const struct test *test)
{
    struct pieces plan = {.sectors = PIECE / VIRTIO_BLK_SECTOR_BYTES};
    uint64_t capacity = test->info.capacity_sectors / test->block_sectors * test->block_sectors;
    uint64_t limit = argument_number("pattern", 64 * MIB) / PIECE;
    if (capacity < plan.sectors)
        plan.sectors = capacity;
    plan.count = (capacity + plan.sectors - 1) / plan.sectors;
    plan.stride = plan.sectors;
    plan.last = capacity - plan.sectors;
    if (limit >= 2 && plan.count > limit) {
        plan.count = limit;
        plan.stride = plan.last / (limit - 1) / test->block_sectors * test->block_sectors;
    }
    return plan;
}

static uint64_t piece_sector(const struct pieces *plan, uint64_t i)
{
    uint64_t sector = i * plan->stride;
    return i == plan->count - 1 || sector > plan->last ? plan->last : sector;
}

static void whole_disk(struct test *test)
{
    struct pieces plan = plan_pieces(test);
    size_t bytes = (size_t)plan.sectors * VIRTIO_BLK_SECTOR_BYTES;
    uint8_t *buf = test_alloc(bytes);
    for (uint64_t i = 0; i < plan.count && !test->failed; i++) {
        data_fill(buf, bytes, piece_sector(&plan, i), PATTERN_SEED);
        check_result(test, "writing", vblk_write(test->disk, 0, piece_sector(&plan, i), buf, bytes), 0);
    }
    int flushed = vblk_flush(test->disk, 0);
    check(test, flushed == 0 || flushed == -VBLK_ENOTSUP, "flushing: %s", disk_strerror(flushed));
    for (uint64_t i = 0; i < plan.count && !test->failed; i++) {
        uint64_t sector = piece_sector(&plan, i);
        memset(buf, 0xee, bytes);
        check_result(test, "reading", vblk_read(test->disk, 0, sector, buf, bytes), 0);
        long at = data_differs(buf, bytes, sector, PATTERN_SEED);
        check(test, at < 0, "byte %ld behind sector %llu differs", at, (unsigned long long)sector);
    }
    free(buf);
}

static bool fill_bytes(struct test *test, uint8_t *buf, uint64_t offset, size_t bytes, int value)
{
    memset(buf, value, bytes);
    return check_result(test, "writing",
                        vblk_write(test->disk, 0, offset / VIRTIO_BLK_SECTOR_BYTES, buf, bytes), 0);
}

static void left_for_the_host(struct test *test)
{
    uint64_t capacity = test->info.capacity_sectors * VIRTIO_BLK_SECTOR_BYTES;
    if (capacity < 4 * MIB) {
        skip(test, "the disk is smaller than 4 MiB");
        return;
    }
    uint8_t *buf = test_alloc(MIB);
    for (unsigned k = 0; k < 16; k++)
        fill_bytes(test, buf, k * 64 * KIB, 64 * KIB, 0x40 + (int)k);
    if (test->info.features >> VIRTIO_BLK_F_WRITE_ZEROES & 1)
        check_result(test, "write zeroes",
                     vblk_write_zeroes(test->disk, 0, MIB / VIRTIO_BLK_SECTOR_BYTES,
                                       MIB / VIRTIO_BLK_SECTOR_BYTES, true),
                     0);
    else
        fill_bytes(test, buf, MIB, MIB, 0);
    fill_bytes(test, buf, (capacity - 64 * KIB) / test->info.block_size * test->info.block_size, 64 * KIB,
               0x5a);
    int flushed = vblk_flush(test->disk, 0);
    check(test, flushed == 0 || flushed == -VBLK_ENOTSUP, "flushing: %s", disk_strerror(flushed));
    free(buf);
}

const struct test_case test_cases_data[] = {
    {"the first and the last block", first_and_last_block, NEEDS_WRITE, ANY_DEVICE},
    {"requests of many sizes", every_size, NEEDS_WRITE, ANY_DEVICE},
    {"one request of 8 MiB", one_large_request, NEEDS_WRITE, ANY_DEVICE},
    {"scatter lists", scatter_lists, NEEDS_WRITE, ANY_DEVICE},
    {"buffers that don't start at a page", not_page_aligned, NEEDS_WRITE, ANY_DEVICE},
    {"flush", flush, NEEDS_WRITE, VIRTIO_BLK_F_FLUSH},
    {"discard", discard, NEEDS_WRITE, VIRTIO_BLK_F_DISCARD},
    {"write zeroes", write_zeroes, NEEDS_WRITE, VIRTIO_BLK_F_WRITE_ZEROES},
    {"write zeroes that may unmap", write_zeroes_unmap, NEEDS_WRITE, VIRTIO_BLK_F_WRITE_ZEROES},
    {"secure erase", secure_erase, NEEDS_WRITE, VIRTIO_BLK_F_SECURE_ERASE},
    {"the disk as a file", as_a_file, 0, ANY_DEVICE},
    {"a pattern over the whole disk", whole_disk, NEEDS_WRITE, ANY_DEVICE},
    {"pieces left for the host to read back", left_for_the_host, NEEDS_WRITE, ANY_DEVICE},
    {0},
};
