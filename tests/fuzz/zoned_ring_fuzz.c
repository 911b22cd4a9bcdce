/* A zoned disk against a driver made of fuzzer's input (ring_fuzz.h). */
#define RING_FEATURES VIRTIO_BIT(VIRTIO_BLK_F_ZONED)
#include "tests/fuzz/ring_fuzz.h"
