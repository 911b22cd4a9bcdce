#!/usr/bin/env bash
# Short runs of the fuzz targets for rings: a fixed number of inputs under a fixed seed.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
runs=20000
[ -n "$long" ] && runs=20000000

for ring in split packed zoned; do
    ok "$runs inputs for the device's side of a ring ($ring) find nothing" \
        timeout 3000 "$RINGSIDE_BUILD/fuzz/${ring}_ring_fuzz" -runs=$runs -seed=1 -max_len=2048 -timeout=120 \
        -artifact_prefix="$tmp/"
done
done_testing
