#!/usr/bin/env bash
# qcow2 against QEMU: what qemu-img makes we read to the same bytes; the same operations on both give the same disk; and after
# either has written, the other one goes on (checklist A to M).
# shellcheck disable=SC2086 # options are words
. "$(dirname "$0")/../lib.sh"
tool=$tools/tool_qcow2
ops=$([ -n "$long" ] && echo 2000 || echo 150)
seed=${SEED:-1}
cd "$tmp" || exit 1

# A disk's content: data, holes, zeroes, a tail that is no whole cluster.
head -c 3000000 /dev/urandom >random.bin
{
    head -c 1000000 random.bin
    head -c 1500000 /dev/zero
    seq 1 200000
    tail -c 1000000 random.bin
    head -c 700000 /dev/zero
} >content.raw
truncate -s 6000128 content.raw

same_dump() { # IMAGE [OPTION...]: ours reads what QEMU reads
    "$tool" dump "$1" ours.raw "${@:2}" && qemu-img convert -O raw "$1" theirs.raw && cmp ours.raw theirs.raw
}

converted() { # qemu-img options...
    rm -f image.qcow2 data.raw
    qemu-img convert "$@" -O qcow2 content.raw image.qcow2 && "$tool" dump image.qcow2 ours.raw && cmp ours.raw content.raw &&
        "$tool" check image.qcow2
}

for o in cluster_size=512 cluster_size=4k cluster_size=64k cluster_size=2M compat=0.10 refcount_bits=1 refcount_bits=64 \
    extended_l2=on extended_l2=on,cluster_size=16k lazy_refcounts=on preallocation=metadata preallocation=full \
    data_file=data.raw data_file=data.raw,data_file_raw=on; do
    ok "reads an image of qemu-img convert -o $o" converted -o $o
done
for o in cluster_size=512 cluster_size=64k cluster_size=2M compat=0.10 extended_l2=on,cluster_size=16k compression_type=zstd \
    compression_type=zstd,cluster_size=4k refcount_bits=1; do
    ok "reads compressed clusters of qemu-img convert -c -o $o" converted -c -o $o
done

# Ours compressed, read by QEMU.
for o in "cluster=512" "cluster=65536" "cluster=2M" "compression=zstd" "compression=zstd cluster=4096" \
    "extended_l2=1 cluster=16384" "version=2" "refcount_bits=1" "refcount_bits=2 cluster=4096"; do
    compressed() {
        rm -f image.qcow2
        "$tool" compress content.raw image.qcow2 $o && qemu-img check image.qcow2 &&
            qemu-img compare -f qcow2 -F raw image.qcow2 content.raw && same_dump image.qcow2
    }
    ok "QEMU reads our compressed clusters: $o" compressed
done

# The same random operations on ours and on QEMU's.
both() { # how OPTIONS-OF-QEMU-IMG
    rm -f ours.qcow2 theirs.qcow2 script
    qemu-img create -q -f qcow2 $2 ours.qcow2 6000128 && qemu-img create -q -f qcow2 $2 theirs.qcow2 6000128 &&
        "$tool" run ours.qcow2 ops="$ops" seed="$seed" discard=0 emit=script $1 && qemu-io -f qcow2 theirs.qcow2 <script >/dev/null &&
        qemu-img check ours.qcow2 && "$tool" check theirs.qcow2 && qemu-img compare ours.qcow2 theirs.qcow2 &&
        same_dump theirs.qcow2 && "$tool" check ours.qcow2
}
qemu-img convert -O qcow2 -o cluster_size=4k content.raw base.qcow2
head -c 3000000 content.raw >short.raw
for o in "-o cluster_size=512" "-o cluster_size=4k" "-o compat=1.1" "-o compat=0.10" "-o cluster_size=2M" "-o extended_l2=on" \
    "-o extended_l2=on,cluster_size=16k" "-o refcount_bits=1" "-o refcount_bits=64,cluster_size=4k" \
    "-o preallocation=metadata" "-o lazy_refcounts=on"; do
    ok "same operations, same disk: $o" both "" "$o"
done
for o in "-b content.raw -F raw" "-b base.qcow2 -F qcow2" "-b short.raw -F raw" "-b base.qcow2 -F qcow2 -o cluster_size=512" \
    "-b content.raw -F raw -o compat=0.10" "-b base.qcow2 -F qcow2 -o extended_l2=on,cluster_size=16k" \
    "-b short.raw -F raw -o extended_l2=on" "-b base.qcow2 -F qcow2 -o cluster_size=2M"; do
    # what lies behind is the model's start
    over() {
        rm -f model.raw
        cp "$(sed 's/^-b \([^ ]*\) .*/\1/' <<<"$o")" model.img
        qemu-img convert -O raw model.img model.raw
        truncate -s 6000128 model.raw
        both "model=model.raw" "$o"
    }
    ok "same operations over a backing file: $o" over
done

# Both take turns on one image, with compressed clusters and a snapshot in it.
turns() {
    rm -f image.qcow2 model.raw
    cp content.raw model.raw
    qemu-img convert -c -O qcow2 -o "$1" content.raw image.qcow2 || return 1
    local i
    for i in 1 2 3; do
        "$tool" run image.qcow2 ops=60 seed=$i model=model.raw depth=4 region=8192 && qemu-img check image.qcow2 || return 1
        [ $i != 1 ] || "$tool" snapshot image.qcow2 create one && qemu-img check image.qcow2 || return 1
        [ $i != 1 ] || cp model.raw one.raw
        [ $i != 2 ] || qemu-img snapshot -c two image.qcow2 && "$tool" check image.qcow2 || return 1
        [ $i != 2 ] || cp model.raw two.raw
        printf 'write -q -P 7 %d 10000\nwrite -q -z 100000 70000\n' $((i * 5000)) | qemu-io -f qcow2 image.qcow2 || return 1
        "$tool" dump image.qcow2 model.raw && "$tool" check image.qcow2 || return 1
    done
    qemu-img compare -f qcow2 -F raw image.qcow2 model.raw &&
        "$tool" dump image.qcow2 ours.raw snapshot=one && cmp ours.raw one.raw &&
        "$tool" dump image.qcow2 ours.raw snapshot=two && cmp ours.raw two.raw &&
        "$tool" snapshot image.qcow2 apply two && qemu-img check image.qcow2 && qemu-img compare -F raw image.qcow2 two.raw &&
        "$tool" snapshot image.qcow2 delete two && qemu-img check image.qcow2 && qemu-img compare -F raw image.qcow2 two.raw &&
        qemu-img snapshot -a one image.qcow2 && "$tool" check image.qcow2 && qemu-img snapshot -d one image.qcow2 &&
        "$tool" check image.qcow2 && "$tool" dump image.qcow2 ours.raw && cmp ours.raw one.raw
}
for o in compat=1.1 compat=0.10 cluster_size=4k compression_type=zstd extended_l2=on,cluster_size=16k refcount_bits=8; do
    ok "taking turns with QEMU, snapshots and compressed clusters: $o" turns "$o"
done

# Resizing, over a longer backing file too.
resized() {
    rm -f image.qcow2
    qemu-img create -q -f qcow2 $1 image.qcow2 3000320 && "$tool" run image.qcow2 ops=50 seed=3 read=0 discard=0 write=5 || true
    "$tool" dump image.qcow2 before.raw && cp before.raw grown.raw && truncate -s 5000192 grown.raw &&
        "$tool" resize image.qcow2 5000192 ${2:-} && qemu-img check image.qcow2 && qemu-img compare -F raw image.qcow2 grown.raw &&
        same_dump image.qcow2 &&
        "$tool" resize image.qcow2 1000448 && qemu-img check image.qcow2 && truncate -s 1000448 grown.raw &&
        "$tool" dump image.qcow2 ours.raw && cmp ours.raw grown.raw && qemu-img compare -F raw image.qcow2 grown.raw &&
        "$tool" resize image.qcow2 4000256 && truncate -s 4000256 grown.raw && qemu-img check image.qcow2 &&
        "$tool" dump image.qcow2 ours.raw && cmp ours.raw grown.raw && same_dump image.qcow2 && "$tool" check image.qcow2
}
for o in "-o cluster_size=512" "-o cluster_size=64k" "-o compat=0.10" "-o extended_l2=on,cluster_size=16k" \
    "-b content.raw -F raw" "-b content.raw -F raw -o cluster_size=512"; do
    ok "grows, shrinks, grows: $o" resized "$o"
done
for mode in metadata falloc full; do
    ok "grows with preallocation $mode" resized "-o cluster_size=4k" $mode
done

# Chains and names
chain() {
    mkdir -p deep/er && qemu-img create -q -f qcow2 -b ../../base.qcow2 -F qcow2 deep/er/a.qcow2 &&
        qemu-img create -q -f qcow2 -o cluster_size=512 -b er/a.qcow2 -F qcow2 deep/b.qcow2 &&
        qemu-img create -q -f qcow2 -b deep/b.qcow2 -F qcow2 -o compat=0.10 c.qcow2
}
ok "a chain through several directories is made" chain
ok_not "it is not followed out of the directory by itself" "$tool" dump c.qcow2 ours.raw
ok "and read where that is allowed" same_dump c.qcow2 backing_dir="$tmp"
empty() {
    rm -f image.qcow2
    cp content.raw model.raw
    qemu-img create -q -f qcow2 -b content.raw -F raw image.qcow2 && "$tool" run image.qcow2 ops=100 model=model.raw discard=0 &&
        "$tool" empty image.qcow2 && qemu-img check image.qcow2 && qemu-img compare -F raw image.qcow2 content.raw &&
        "$tool" rebase image.qcow2 base.qcow2 qcow2 && qemu-img info image.qcow2 | grep -q 'backing file: base.qcow2' &&
        qemu-img compare -F raw image.qcow2 content.raw && "$tool" rebase image.qcow2 && ! qemu-img info image.qcow2 | grep -q backing
}
ok "a layer is emptied and gets another backing file" empty

# A file is unchanged after it was only read.
untouched() {
    rm -f image.qcow2 data.raw
    qemu-img convert -c -O qcow2 -o "$1" content.raw image.qcow2 && sha256sum image.qcow2 >sums && "$tool" dump image.qcow2 ours.raw &&
        "$tool" open image.qcow2 rw && "$tool" check image.qcow2 && sha256sum -c sums
}
ok "opening and reading changes nothing" untouched compat=1.1
ok "nor with lazy refcounts" untouched lazy_refcounts=on
done_testing
