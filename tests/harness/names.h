/* The field's own words for numbers on the wire: features, protocol features, request types. */
#ifndef RINGSIDE_HARNESS_NAMES_H
#define RINGSIDE_HARNESS_NAMES_H

#include <stdint.h>

#include "guest/driver/vblk.h"

const char *name_of_feature(unsigned bit);          /* NULL: reserved, or of another device */
const char *name_of_protocol_feature(unsigned bit); /* likewise */
const char *name_of_op(enum vblk_op op);
const char *name_of_error(int result); /* 0 or a negative vblk_error */

#endif
