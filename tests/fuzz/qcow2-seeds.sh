#!/usr/bin/env bash
# Makes the seed corpus of the qcow2 fuzzers: images of qemu-img of every kind, each several times with another first
# byte (tests/fuzz/qcow2_fuzz.h).
#
#   tests/fuzz/qcow2-seeds.sh DIRECTORY
set -u
corpus=${1:?directory}
mkdir -p "$corpus"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
seq 1 3000 | head -c 6000 >"$work/content"
truncate -s 20000 "$work/content"
seq 1 300 | head -c 1000 >>"$work/content"
n=0
for o in cluster_size=512 cluster_size=512,compat=0.10 cluster_size=4k cluster_size=512,refcount_bits=1 \
    cluster_size=512,refcount_bits=64 cluster_size=16k,extended_l2=on cluster_size=512,lazy_refcounts=on \
    cluster_size=512,compression_type=zstd cluster_size=512,preallocation=metadata; do
    for how in "" -c; do
        [[ $how$o != -c*preallocation* ]] || continue
        n=$((n + 1))
        # shellcheck disable=SC2086 # an option or none
        qemu-img convert $how -f raw -O qcow2 -o "$o" "$work/content" "$work/$n.qcow2" || exit 1
    done
done
for i in 1 3 4 9; do
    qemu-img snapshot -c one "$work/$i.qcow2" && qemu-io -f qcow2 -c 'write -q -P 9 1000 3000' "$work/$i.qcow2" &&
        qemu-img snapshot -c two "$work/$i.qcow2" || exit 1
done
for i in 1 5; do
    qemu-img bitmap --add "$work/$i.qcow2" first && qemu-img bitmap --add "$work/$i.qcow2" second &&
        qemu-io -f qcow2 -c 'write -q -P 9 1000 3000' "$work/$i.qcow2" || exit 1
done
for i in 1 3 5; do # leaks and errors to be found
    cp "$work/$i.qcow2" "$work/damaged$i.qcow2" && size=$(stat -c %s "$work/$i.qcow2") || exit 1
    printf '\0\0' | dd of="$work/damaged$i.qcow2" bs=1 seek=$((size / 2)) conv=notrunc status=none
    truncate -s $((size + 2048)) "$work/damaged$i.qcow2"
done
for image in "$work"/*.qcow2; do
    for how in 0 1 2 3 4 5; do
        { printf '%b' "\\0$how"; cat "$image"; } >"$corpus/$(basename "$image" .qcow2).$how"
    done
done
