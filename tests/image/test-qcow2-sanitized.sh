#!/usr/bin/env bash
# The qcow2 driver under ThreadSanitizer with several loops, and under AddressSanitizer: side by side on the same clusters, with
# caches of the smallest size, snapshots and resizing in between.
# shellcheck disable=SC2086 # options are words
. "$(dirname "$0")/../lib.sh"
ops=$([ -n "$long" ] && echo 5000 || echo 120)
cd "$tmp" || exit 1
printf secret >pass

one() { # SANITIZER HOW IMAGE...
    local tool=$RINGSIDE_BUILD/$1/tests/tool_qcow2
    rm -f image.qcow2 model.raw
    "$tool" create image.qcow2 size=4M "${@:3}" && timeout 500 "$tool" run image.qcow2 ops="$ops" model=model.raw $2 &&
        "$tool" snapshot image.qcow2 create one && timeout 500 "$tool" run image.qcow2 ops="$ops" seed=2 model=model.raw $2 &&
        "$tool" snapshot image.qcow2 delete one && "$tool" resize image.qcow2 5000192 && "$tool" check image.qcow2 &&
        qemu-img check image.qcow2 && qemu-img compare -f qcow2 -F raw image.qcow2 model.raw
}
for san in tsan asan; do
    if [ ! -x "$RINGSIDE_BUILD/$san/tests/tool_qcow2" ]; then
        skip "$san" "not built"
        continue
    fi
    ok "$san: two loops, clusters shared between workers" one $san "depth=8 loops=2 region=2048" cluster=65536
    ok "$san: two loops, discards, smallest caches" one $san "depth=8 loops=2 region=32768 discard=20 cache=4096 refcache=4096" cluster=4096
    ok "$san: four loops, 512-byte clusters" one $san "depth=4 loops=4 region=4096" cluster=512
    ok "$san: two loops, subclusters" one $san "depth=8 loops=2 region=4096" cluster=16384 extended_l2=1
done
done_testing
