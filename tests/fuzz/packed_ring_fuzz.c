/* The device's side of the packed ring against a driver made of fuzzer's input (ring_fuzz.h). */
#define RING_FEATURES VIRTIO_BIT(VIRTIO_F_RING_PACKED)
#include "tests/fuzz/ring_fuzz.h"
