/*
 * Sectors that describe themselves; see crash_sector.h. Three words name pattern, sector and request; the
 * others follow from these and from their place.
 */
#include "tests/crash/crash_sector.h"

#include <stdbool.h>
#include <string.h>

#define WORDS   (CRASH_SECTOR_BYTES / 8)
#define PATTERN 0x5249444520534944u

void crash_sector_fill(uint8_t *data, uint64_t sector, uint64_t number)
{
    uint64_t words[WORDS] = {PATTERN, sector, number};
    uint64_t x = (sector * 0x9e3779b97f4a7c15u) ^ (number * 0xd6e8feb86659fd93u);

    for (unsigned i = 3; i < WORDS; i++) {
        x = (x ^ (x >> 29) ^ i) * 0xbf58476d1ce4e5b9u;
        words[i] = x ^ (x >> 32);
    }
    memcpy(data, words, sizeof(words));
}

enum crash_sector_kind crash_sector_look(const uint8_t *data, uint64_t sector, uint64_t *number,
                                         uint64_t *whose)
{
    static const uint8_t zeroes[CRASH_SECTOR_BYTES];
    uint8_t expected[CRASH_SECTOR_BYTES];
    uint64_t words[3];

    memcpy(words, data, sizeof(words));
    *whose = words[1];
    *number = words[2];
    if (words[0] != PATTERN) {
        bool zero = memcmp(data, zeroes, sizeof(zeroes)) == 0;

        *whose = zero ? sector : 0;
        return zero ? CRASH_SECTOR_ZERO : CRASH_SECTOR_STRANGE;
    }
    crash_sector_fill(expected, *whose, *number);
    if (memcmp(data, expected, sizeof(expected)) != 0)
        return CRASH_SECTOR_MIXTURE;
    return *whose == sector ? CRASH_SECTOR_WHOLE : CRASH_SECTOR_OTHER;
}
