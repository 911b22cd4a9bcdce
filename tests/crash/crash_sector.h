/*
 * Sectors that describe themselves: each says which sector of the disk it is and which request wrote it, all
 * over its 512 bytes, so that lost, torn, misplaced and stale data can be told apart.
 */
#ifndef RINGSIDE_TESTS_CRASH_SECTOR_H
#define RINGSIDE_TESTS_CRASH_SECTOR_H

#include <stdint.h>

#define CRASH_SECTOR_BYTES 512u

/* SECTOR as request NUMBER writes it. */
void crash_sector_fill(uint8_t *data, uint64_t sector, uint64_t number);

enum crash_sector_kind {
    CRASH_SECTOR_WHOLE,   /* of this place, by request *NUMBER */
    CRASH_SECTOR_ZERO,    /* zeroes */
    CRASH_SECTOR_OTHER,   /* whole, but that of sector *WHOSE, by request *NUMBER */
    CRASH_SECTOR_MIXTURE, /* begins like one of *WHOSE by request *NUMBER, and goes on as something else */
    CRASH_SECTOR_STRANGE, /* nothing that was filled here */
};

/* What DATA, found at SECTOR, is. */
enum crash_sector_kind crash_sector_look(const uint8_t *data, uint64_t sector, uint64_t *number,
                                         uint64_t *whose);

#endif
