/*
 * Names for people: feature bits and sizes.
 */
#ifndef RINGSIDE_GUEST_NAMES_H
#define RINGSIDE_GUEST_NAMES_H

#include <stdint.h>

/* NULL for a bit that has no name. */
const char *feature_name(unsigned bit);
/* " NAME NAME ..." of the bits set in FEATURES, into TEXT. */
void feature_list(uint64_t features, char *text, unsigned bytes);
/* "64 MiB" */
void size_text(uint64_t size_bytes, char text[24]);

#endif
