#!/usr/bin/env bash
# A short run of the fuzzer of qcow2 images, from images that qemu-img made; as long as one likes: build/fuzz/qcow2_fuzz CORPUS.
. "$(dirname "$0")/../lib.sh"
fuzz=$RINGSIDE_BUILD/fuzz/qcow2_fuzz
runs=1500
[ -z "$long" ] || runs=2000000
mkdir "$tmp/corpus"
seq 1 3000 | head -c 20000 >"$tmp/content"

seeds() {
    local n=0 o how act image
    for o in cluster_size=512 cluster_size=512,compat=0.10 cluster_size=4k cluster_size=512,refcount_bits=1 \
        cluster_size=512,refcount_bits=64 cluster_size=16k,extended_l2=on cluster_size=512,lazy_refcounts=on; do
        for how in "" -c; do
            n=$((n + 1))
            # shellcheck disable=SC2086 # an option or none
            qemu-img convert $how -f raw -O qcow2 -o "$o" "$tmp/content" "$tmp/$n.qcow2" || return 1
        done
    done
    qemu-img snapshot -c one "$tmp/1.qcow2" && qemu-img snapshot -c two "$tmp/5.qcow2" &&
        qemu-img bitmap --add "$tmp/3.qcow2" first 2>/dev/null
    qemu-img bitmap --add "$tmp/5.qcow2" first || return 1
    for image in "$tmp"/*.qcow2; do
        for act in 0 1 2 3 4 5 6; do
            { printf "\\$act"; cat "$image"; } >"$tmp/corpus/$(basename "$image").$act"
        done
    done
}
ok "seeds by qemu-img" seeds
ok "$runs damaged images do no harm" "$fuzz" -runs=$runs -seed=1 -max_len=200000 -len_control=0 -rss_limit_mb=1024 \
    -artifact_prefix="$RINGSIDE_BUILD/fuzz/" "$tmp/corpus"
done_testing
