#!/usr/bin/env bash
# Random operations on qcow2 images of every shape, alone and side by side, against a model in memory; then QEMU reads the
# same bytes and finds nothing to complain about (checklist E, F, G, I).
# shellcheck disable=SC2086 # options are words
. "$(dirname "$0")/../lib.sh"
tool=$tools/tool_qcow2
ops=$([ -n "$long" ] && echo 10000 || echo 250)
seed=${SEED:-1}

# create, run, check, compare: $1 the run's options, the rest the image's
one() {
    local how=$1
    shift
    rm -f "$tmp/image.qcow2" "$tmp/model.raw"
    "$tool" create "$tmp/image.qcow2" "$@" &&
        timeout 300 "$tool" run "$tmp/image.qcow2" ops="$ops" seed="$seed" model="$tmp/model.raw" $how &&
        qemu-img check "$tmp/image.qcow2" &&
        qemu-img compare -f qcow2 -F raw "$tmp/image.qcow2" "$tmp/model.raw"
}

shapes=(
    "size=8M" "size=8M version=2" "size=4000256 version=2 cluster=512" "size=8M cluster=512" "size=8M cluster=4096"
    "size=64M cluster=2M" "size=8M cluster=4096 refcount_bits=1" "size=8M cluster=4096 refcount_bits=2"
    "size=8M cluster=512 refcount_bits=4" "size=8M cluster=4096 refcount_bits=8" "size=4M cluster=512 refcount_bits=32"
    "size=4M cluster=512 refcount_bits=64" "size=16M extended_l2=1" "size=8M extended_l2=1 cluster=16384"
    "size=8M lazy=1" "size=8M preallocation=metadata" "size=8M extended_l2=1 preallocation=falloc"
)
for shape in "${shapes[@]}"; do
    ok "$shape: one after the other" one "depth=1" $shape
    ok "$shape: 16 at a time, workers share clusters" one "depth=16 region=2048" $shape
done
for shape in "size=8M" "size=8M cluster=512" "size=8M extended_l2=1 cluster=16384"; do
    ok "$shape: two loops, workers share clusters" one "depth=8 loops=2 region=2048" $shape
    ok "$shape: two loops, whole clusters, discards" one "depth=8 loops=2 region=131072 discard=30" $shape
    ok "$shape: caches of the smallest size" one "depth=8 loops=2 region=65536 cache=4096 refcache=4096" $shape
done
done_testing
