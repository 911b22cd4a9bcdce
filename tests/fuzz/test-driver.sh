#!/usr/bin/env bash
# Short runs of the fuzz targets for the driver's view of the device: a fixed number of inputs under a fixed seed.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
runs=20000
[ -n "$long" ] && runs=50000000

for ring in split packed; do
    ok "$runs inputs for the driver's $ring ring find nothing" \
        timeout 3000 "$RINGSIDE_BUILD/fuzz/vblk_${ring}_fuzz" -runs=$runs -seed=1 -max_len=1024 -timeout=120 \
        -artifact_prefix="$tmp/"
done
done_testing
