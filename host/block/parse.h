/*
 * Words on command lines that the block layer takes: sizes, and lists of KEY=VALUE. Pure functions, any
 * thread.
 */
#ifndef RINGSIDE_BLOCK_PARSE_H
#define RINGSIDE_BLOCK_PARSE_H

#include <stdint.h>

#include "host/runtime/error.h"

/* "64k", "1.5G", "0x10000", "4096": bytes, with the binary suffixes b k M G T P E of either case; a
 * fraction needs one. The whole of TEXT must be a size, from 0 to 2^63-1. 0, -EINVAL (not a size) or -ERANGE.
 */
int parse_size(const char *text, uint64_t *bytes);

/* A plain number, decimal or 0x..., the whole of TEXT. 0, -EINVAL or -ERANGE. */
int parse_number(const char *text, uint64_t *number);

/* Calls SET(OPAQUE, key, value, err) for each KEY=VALUE of the comma-separated LIST, in order, until it
 * fails; "KEY" alone has value NULL, and two commas stand for one inside a value. -EINVAL for an empty key,
 * such as the one behind a last comma, -ENOMEM, or what SET returned. */
int parse_options(const char *list,
                  int (*set)(void *opaque, const char *key, const char *value, struct error *err),
                  void *opaque, struct error *err);

#endif
