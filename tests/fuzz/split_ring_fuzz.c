/* The device's side of the split ring against a driver made of fuzzer's input (ring_fuzz.h). */
#define RING_FEATURES 0
#include "tests/fuzz/ring_fuzz.h"
