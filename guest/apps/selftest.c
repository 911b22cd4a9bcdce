/*
 * selftest.elf: tries all that a virtio block device offers through libvblk, and prints TAP.
 *
 * What it leaves on a disk of at least 4 MiB, for the host to read back:
 *   the first MiB    sixteen pieces of 64 KiB; each byte of piece k is 0x40 + k
 *   the second MiB   zeroes
 *   the last 64 KiB  each byte is 0x5a
 *
 * Words of the command line: disk=vdb (default vda), pattern=BYTES (how much of the disk the pattern test
 * covers, default 64M), and those of guest/libc/disk.h.
 */
#include "guest/apps/selftest.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/apps/common_names.h"
#include "guest/libc/arguments.h"
#include "guest/libc/disk.h"
#include "guest/libc/start.h"
#include "guest/platform/machine.h"

const char guest_program[] = "selftest";
const char *const guest_words[] = {"disk", "pattern", NULL};

/* Eight for each of two CPUs, which is the most that a case can't do without. */
#define LEAST_BLOCKS 16u

bool check(struct test *test, bool holds, const char *format, ...)
{
    if (holds)
        return true;
    va_list args;
    va_start(args, format);
    printf("# ");
    vprintf(format, args);
    printf("\n");
    va_end(args);
    test->failed = true;
    return false;
}

bool check_result(struct test *test, const char *what, int result, int wanted)
{
    return check(test, result == wanted, "%s: %s (%d), wanted %s (%d)", what, disk_strerror(result), result,
                 disk_strerror(wanted), wanted);
}

void skip(struct test *test, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(test->why, sizeof test->why, format, args);
    va_end(args);
    test->skipped = true;
}

void *test_alloc(size_t len)
{
    void *mem = malloc(len);
    if (!mem) {
        printf("Bail out! no memory for %u KiB\n", (unsigned)(len / 1024));
        exit(1);
    }
    return mem;
}

bool is_legacy(const struct test *test)
{
    return strstr(disk_where(test->index), "legacy") != NULL;
}

bool restart(struct test *test, const struct vblk_config *config)
{
    struct vblk_config defaults;
    if (!config) {
        disk_default_config(&defaults);
        config = &defaults;
    }
    test->disk = NULL; /* the old one ends, whether there is a new one or not */
    int result = disk_start(test->index, config, &test->disk);
    if (!check_result(test, "starting the disk", result, 0))
        return false;
    vblk_info(test->disk, &test->info);
    test->block_sectors = test->info.block_size / VIRTIO_BLK_SECTOR_BYTES;
    return true;
}

/* splitmix64: one state, good bits, no table */
uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static uint64_t data_word(uint64_t sector, unsigned word, uint64_t seed)
{
    return (sector + 1) * 0x9e3779b97f4a7c15 + (word + 1) * 0xd6e8feb86659fd93 + seed * 0xa0761d6478bd642f;
}

void data_fill(void *buf, size_t len, uint64_t sector, uint64_t seed)
{
    char *at = buf;
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word =
            data_word(sector + i / VIRTIO_BLK_SECTOR_BYTES, i % VIRTIO_BLK_SECTOR_BYTES / 8, seed);
        memcpy(at + i, &word, 8);
    }
}

long data_differs(const void *buf, size_t len, uint64_t sector, uint64_t seed)
{
    const char *at = buf;
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word =
                     data_word(sector + i / VIRTIO_BLK_SECTOR_BYTES, i % VIRTIO_BLK_SECTOR_BYTES / 8, seed),
                 seen;
        memcpy(&seen, at + i, 8);
        if (seen != word) {
            unsigned byte = 0;
            while (byte < 7 && !((seen ^ word) >> 8 * byte & 0xff))
                byte++;
            return (long)(i + byte);
        }
    }
    return -1;
}

uint64_t scratch(const struct test *test, uint64_t *sectors)
{
    uint64_t blocks = test->info.capacity_sectors / test->block_sectors;
    uint64_t want = (*sectors + test->block_sectors - 1) / test->block_sectors;
    if (want > blocks)
        want = blocks;
    *sectors = want * test->block_sectors;
    return (blocks - want) / 2 * test->block_sectors;
}

static void print_disk(const struct test *test)
{
    const struct vblk_info *info = &test->info;
    char size[24], text[512];
    size_text(info->capacity_sectors * VIRTIO_BLK_SECTOR_BYTES, size);
    printf("# %s, %s at %s: %s, blocks of %u, %u of %u queues of %u, %s ring%s%s\n", machine_arch, "vda",
           disk_where(test->index), size, (unsigned)info->block_size, info->num_queues,
           info->device_num_queues, info->queue_size, info->packed_ring ? "packed" : "split",
           info->read_only ? ", read-only" : "", info->polling ? ", polled" : "");
    feature_list(info->features, text, sizeof text);
    printf("# features:%s\n", text);
    feature_list(info->device_features & ~info->features, text, sizeof text);
    printf("# offered and not taken:%s\n", text[0] ? text : " none");
}

static void run_case(struct test *test, const struct test_case *c)
{
    test->failed = test->skipped = false;
    if (!test->disk && !restart(test, NULL))
        return; /* failed, and says why */
    if (c->feature != ANY_DEVICE && !(test->info.features >> c->feature & 1))
        skip(test, "the device does not offer %s", feature_name((unsigned)c->feature));
    else if (c->needs & NEEDS_WRITE && test->info.read_only)
        skip(test, "the disk is read-only");
    else
        c->run(test);
}

int main(int argc, char **argv)
{
    static const struct test_case *const groups[] = {test_cases_basic, test_cases_queue, test_cases_data};
    struct test test = {0};
    const char *name = argument("disk");
    int index = disk_by_name(name ? name : "vda");
    unsigned count = 0, passed = 0, failed = 0;
    if (index < 0) {
        printf("Bail out! no disk %s: %u virtio block devices found\n0 passed, 1 failed\n",
               name ? name : "vda", disk_count());
        return 1;
    }
    test.index = (unsigned)index;
    if (!restart(&test, NULL)) {
        printf("not ok 1 - the disk at %s starts\n1..1\n0 passed, 1 failed\n", disk_where(test.index));
        return 1;
    }
    print_disk(&test);
    if (test.info.capacity_sectors < LEAST_BLOCKS * (uint64_t)test.block_sectors) {
        printf("Bail out! the disk has %llu sectors, and %u are needed\n0 passed, 1 failed\n",
               (unsigned long long)test.info.capacity_sectors, LEAST_BLOCKS * (unsigned)test.block_sectors);
        return 1;
    }
    for (unsigned group = 0; group < sizeof groups / sizeof groups[0]; group++) {
        for (const struct test_case *c = groups[group]; c->name; c++) {
            run_case(&test, c);
            printf("%sok %u - %s%s%s\n", test.failed ? "not " : "", ++count, c->name,
                   test.skipped ? " # SKIP " : "", test.skipped ? test.why : "");
            passed += !test.failed && !test.skipped;
            failed += test.failed;
        }
    }
    disk_stop(test.index);
    printf("1..%u\n%u passed, %u failed\n", count, passed, failed);
    return failed != 0;
}
