/* libFuzzer: the driver, over a split ring, against a device whose every word is the fuzzer's. */
#include "tests/fuzz/vblk_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_one(data, size, false);
}
