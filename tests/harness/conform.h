/*
 * `ringside conform`: a row for each rule of the specification that a device at a socket can be held to. A
 * rule is a function that opens its own connections; rules of one chapter share a file and a table.
 */
#ifndef RINGSIDE_HARNESS_CONFORM_H
#define RINGSIDE_HARNESS_CONFORM_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/harness/bed.h"

enum verdict { VERDICT_PASS, VERDICT_FAIL, VERDICT_NA };

struct conform {
    const char *path;
    bool packed;      /* the ring format that this run of the rule is to use */
    struct bed bed;   /* the connection of the rule; closed after it */
    uint64_t offered; /* by the device, learnt at the start */
    bool read_only;
    char why[256]; /* of a verdict that is no pass */
};

#define RULE_RING   1u /* run for each ring format that the device offers */
#define RULE_SPLIT  2u /* about the split ring only */
#define RULE_PACKED 4u /* about the packed ring only */
#define RULE_WRITES 8u /* changes the disk's contents */

struct conform_rule {
    const char *section; /* of virtio 1.4, or "vhost-user" */
    const char *numbers; /* of the checklist */
    const char *text;    /* what must hold */
    unsigned flags;
    enum verdict (*judge)(struct conform *c);
};

extern const struct conform_rule conform_general_rules[], conform_ring_rules[], conform_request_rules[],
    conform_zoned_rules[], conform_vhost_rules[]; /* each ends with a rule without text */

/* For rules: says why, and returns the verdict. */
enum verdict conform_fail(struct conform *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
enum verdict conform_na(struct conform *c, const char *why);

/* Opens c->bed accepting FEATURES (as offered) with the ring format of this run. False: c->why is set. */
bool conform_open(struct conform *c, uint64_t features);
bool conform_open_options(struct conform *c, struct bed_options options);

/* "status 1 (IOERR)" or what else bed_request returned; a static buffer. */
const char *conform_status(int code);

#define CONFORM_ALL_FEATURES                                                           \
    (~(VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_IN_ORDER) |              \
       VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) | VIRTIO_BIT(VIRTIO_F_NOTIFICATION_DATA) | \
       VIRTIO_BIT(VIRTIO_F_EVENT_IDX)))

#endif
