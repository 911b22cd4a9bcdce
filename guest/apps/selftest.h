/*
 * selftest: the frame that its cases share. A case is one function and one row of a table; it says what it
 * found wrong with `check`, or by `skip` why the device can't be asked that.
 */
#ifndef RINGSIDE_SELFTEST_H
#define RINGSIDE_SELFTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/driver/vblk.h"

struct test {
    unsigned index; /* of the disk */
    struct vblk *disk;
    struct vblk_info info;
    uint32_t block_sectors;
    bool failed, skipped;
    char why[160]; /* it was skipped */
};

enum { NEEDS_WRITE = 1 }; /* skipped on a read-only disk */
#define ANY_DEVICE (-1)

struct test_case {
    const char *name;
    void (*run)(struct test *test);
    unsigned needs;
    int feature; /* bit that must have been negotiated, or ANY_DEVICE */
};

extern const struct test_case test_cases_basic[], test_cases_data[], test_cases_queue[]; /* end: name NULL */

/* False if it doesn't hold; then the case has failed, and the text says what was seen. */
bool check(struct test *test, bool holds, const char *format, ...) __attribute__((format(printf, 3, 4)));
void skip(struct test *test, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* RESULT of a driver's call must be WANTED. */
bool check_result(struct test *test, const char *what, int result, int wanted);

/* Starts the disk anew. CONFIG NULL: as the command line has it. */
bool restart(struct test *test, const struct vblk_config *config);

/* A legacy device: no VERSION_1, and its queues' sizes are its own choice. */
bool is_legacy(const struct test *test);

/* Test data: every 8 bytes differ by sector, place and seed. data_differs gives the first byte that is not as
 * filled, or -1. */
void data_fill(void *buf, size_t len, uint64_t sector, uint64_t seed);
long data_differs(const void *buf, size_t len, uint64_t sector, uint64_t seed);
uint64_t random_next(uint64_t *state);

/* An area of SECTORS sectors in the middle of the disk for a case to write to: its first sector, a multiple
 * of the block size. SECTORS is made smaller if the disk is. */
uint64_t scratch(const struct test *test, uint64_t *sectors);

/* COUNT operations of all kinds that the device has, many in flight, on QUEUE, checked against a copy in
 * memory. */
void mixed_operations(struct test *test, unsigned queue, unsigned count, uint64_t seed);

void *test_alloc(size_t len); /* never NULL: the program ends if there is no memory */

#endif
