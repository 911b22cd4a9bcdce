#!/usr/bin/env bash
# Every image feature that QEMU can write is read back by ringside-img convert to the same SHA-256 as by qemu-img convert,
# and the other way round. The list of features is held against what qemu-img says that it can create.
# shellcheck source=tests/lib.sh
# shellcheck disable=SC2086 # options are words
. "$(dirname "$0")/../lib.sh"

img=$bin/ringside-img
cd "$tmp" || exit 1
printf secret >pass
truncate -s 4M base.raw
qemu-io -f raw -c 'write -q -P 200 0 4M' base.raw
qemu-img convert -O qcow2 -o cluster_size=4k base.raw base.qcow2

# The rows: options of `create -o`, and what QEMU does to the image then (see fill).
rows=(
    "compat=0.10"
    "compat=1.1"
    "cluster_size=512"
    "cluster_size=4k,refcount_bits=1"
    "cluster_size=64k,refcount_bits=2"
    "cluster_size=32k,refcount_bits=4"
    "cluster_size=16k,refcount_bits=8"
    "cluster_size=2M,refcount_bits=64"
    "cluster_size=8k,refcount_bits=32"
    "lazy_refcounts=on"
    "compression_type=zlib"
    "compression_type=zstd"
    "compression_type=zstd,cluster_size=2M"
    "extended_l2=on,cluster_size=16k"
    "extended_l2=on,cluster_size=128k,compression_type=zstd"
    "extended_l2=on,cluster_size=16k,backing_file=base.raw,backing_fmt=raw"
    "backing_file=base.raw,backing_fmt=raw"
    "backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=64k"
    "compat=0.10,backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=4k"
    "preallocation=off"
    "preallocation=metadata"
    "preallocation=falloc"
    "preallocation=full,cluster_size=4k"
    "preallocation=metadata,extended_l2=on,cluster_size=32k"
    "data_file=data.bin"
    "data_file=data.bin,data_file_raw=on"
    "data_file=data.bin,extended_l2=on,cluster_size=64k"
    "encrypt.format=aes,encrypt.key-secret=s"
    "encryption=on,encrypt.key-secret=s,cluster_size=4k"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=serpent-128,encrypt.cipher-mode=xts,encrypt.hash-alg=sha1,encrypt.ivgen-alg=plain64"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=twofish-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain,extended_l2=on,cluster_size=64k"
    "size=4M"
)

named() { # every option that qemu-img knows is in a row
    local option missing=0
    while read -r option; do
        if ! printf '%s\n' "${rows[@]}" | grep -qE "(^|,)${option//./\\.}="; then
            echo "no row has $option"
            missing=1
        fi
    done < <(qemu-img create -f qcow2 -o help | sed -n 's/^  \([a-z0-9_.-]*\)=.*/\1/p')
    return $missing
}
ok "every option of qemu-img create -f qcow2 has its row" named

# how IMAGE OPTIONS: how QEMU opens it
how() {
    local spec=driver=qcow2,file.filename=$1
    case $2 in
    *encrypt.format=aes* | encryption=*) spec+=,encrypt.format=aes,encrypt.key-secret=s ;;
    *encrypt*) spec+=,encrypt.format=luks,encrypt.key-secret=s ;;
    esac
    echo $spec
}
secret=(--object "secret,id=s,file=pass")

# fill IMAGE OPTIONS: all that QEMU can put into an image: data, parts of clusters, zeroes, discarded and compressed
# clusters, snapshots, bitmaps
fill() {
    local spec
    spec=$(how "$1" "$2")
    local steps=()
    case $2 in
    *encrypt* | *data_file* | *preallocation=[mf]*) ;;
    *refcount_bits=[1248]) ;; # compressed clusters share host clusters: too many references
    *) steps=(-c 'write -q -c -P 6 2M 2M' -c 'write -q -P 7 2100k 3k') ;;
    esac
    steps+=(-c 'write -q -P 1 0 300k' -c 'write -q -P 2 1000k 5k' -c 'write -q -z 512k 130k' -c 'write -q -P 3 3000k 70k'
        -c 'discard -q 64k 64k' -c 'write -q -z -u 128k 64k' -c 'write -q -P 4 4090k 6k' -c 'write -q -P 5 1501k 1k')
    qemu-io "${secret[@]}" --image-opts $spec "${steps[@]}" || return
    case $2 in
    *data_file* | *refcount_bits=1) ;;
    *)
        qemu-img snapshot "${secret[@]}" --image-opts -c first $spec &&
            qemu-io "${secret[@]}" --image-opts $spec -c 'write -q -P 8 200k 900k' &&
            qemu-img snapshot "${secret[@]}" --image-opts -c second $spec &&
            qemu-io "${secret[@]}" --image-opts $spec -c 'write -q -P 9 250k 10k' -c 'discard -q 768k 256k' || return
        ;;
    esac
    case $2 in
    *compat=0.10*) ;;
    *) qemu-img bitmap "${secret[@]}" --image-opts --add $spec b0 && qemu-io "${secret[@]}" --image-opts $spec -c 'write -q -P 10 3500k 1k' ;;
    esac
}

theirs() { # IMAGE OPTIONS [CONVERT-OPTION...]: SHA-256 of what qemu-img reads
    qemu-img convert "${secret[@]}" --image-opts "${@:3}" -O raw "$(how "$1" "$2")" theirs.raw && sha256sum <theirs.raw
}
ours() {
    "$img" convert --secret-file=pass "${@:3}" -O raw "$1" ours.raw && sha256sum <ours.raw
}
same() { # IMAGE OPTIONS: the active disk, and each snapshot
    local a b name
    a=$(theirs "$1" "$2") && b=$(ours "$1" "$2") && [ "$a" = "$b" ] || return
    for name in $(qemu-img snapshot "${secret[@]}" --image-opts -l "$(how "$1" "$2")" | awk '/^[0-9]/{print $2}'); do
        a=$(theirs "$1" "$2" -l "$name") && b=$(ours "$1" "$2" -l "$name") && [ "$a" = "$b" ] || return
    done
}

create() { # IMAGE OPTIONS: now and then QEMU says "unable to get accurate CPU usage"
    local i size=4M
    case $2 in size=*) size= ;; esac
    for i in 1 2 3 4 5; do
        rm -f "$1" data.bin
        qemu-img create -q -f qcow2 "${secret[@]}" -o "$2" "$1" $size && return
    done
    return 1
}
from_qemu() {
    create x.qcow2 "$1" && fill x.qcow2 "$1" && same x.qcow2 "$1"
}
# The other way: an image of our making, with the same options as far as we make such, filled by us.
to_qemu() {
    local options=$1 size=4M
    case $options in
    size=*) size= ;;&
    *encrypt.format=aes* | encryption=*) create y.qcow2 "$options" || return ;; # none is made by us, but written to
    *encrypt*) rm -f y.qcow2 && "$img" create -q -f qcow2 --secret-file=pass -o encrypt.format=luks,encrypt.iter-time=10 y.qcow2 4M || return ;;
    *) rm -f y.qcow2 data.bin && "$img" create -q -f qcow2 -o "$options" y.qcow2 $size || return ;;
    esac
    "$img" convert -n --secret-file=pass -S 4k filled.raw y.qcow2 && same y.qcow2 "$options" && [ "$(theirs y.qcow2 "$options")" = "$(sha256sum <filled.raw)" ] &&
        qemu-img check "${secret[@]}" --image-opts "$(how y.qcow2 "$options")" || return
    case $options in
    *encrypt* | *data_file*) return ;;
    esac
    rm -f z.qcow2 # compressed
    "$img" convert -c -O qcow2 -o "${options%%,backing_file*}" filled.raw z.qcow2 2>/dev/null || return 0
    same z.qcow2 "$options" && [ "$(theirs z.qcow2 "")" = "$(sha256sum <filled.raw)" ] && qemu-img check z.qcow2
}
qemu-img create -q -f qcow2 m.qcow2 4M
fill m.qcow2 "" && qemu-img convert -O raw m.qcow2 filled.raw
for row in "${rows[@]}"; do
    ok "what QEMU writes: $row" from_qemu "$row"
    ok "what we write: $row" to_qemu "$row"
done
done_testing
