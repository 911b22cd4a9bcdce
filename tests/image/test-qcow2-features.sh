#!/usr/bin/env bash
# What a qcow2 image carries besides its disk: feature bits and extensions that are kept or cleared (checklist C, D), bitmaps (K),
# encryption (N), external data files (L), the dirty bit, repair (E).
# shellcheck disable=SC2086 # options and places are words
. "$(dirname "$0")/../lib.sh"
tool=$tools/tool_qcow2
poke=$tools/tool_poke
cd "$tmp" || exit 1
bytes() { # FILE OFFSET COUNT, as hex
    od -An -tx1 -j "$2" -N "$3" "$1" | tr -d ' \n'
}
model() { # IMAGE OPTIONS: random writes, QEMU reads the same
    rm -f model.raw
    "$tool" run "$1" ops=120 seed="${SEED:-1}" model=model.raw "${@:2}" && qemu-img check "$1" && "$tool" check "$1" &&
        qemu-img compare -f qcow2 -F raw "$1" model.raw
}
fresh() {
    rm -f image.qcow2 data.raw
    qemu-img create -q -f qcow2 "$@" image.qcow2 4M
}

# ---- bits ----
compatible() {
    fresh && "$poke" image.qcow2 'compatible_features=|0x8000000000000002' && model image.qcow2 &&
        [ "$(bytes image.qcow2 80 8)" = 8000000000000002 ]
}
ok "C12 unknown compatible bits are ignored and kept" compatible
autoclear() {
    fresh && "$poke" image.qcow2 'autoclear_features=|0x8000000000000004' && "$tool" open image.qcow2 &&
        [ "$(bytes image.qcow2 88 8)" = 8000000000000004 ] && "$tool" open image.qcow2 rw &&
        [ "$(bytes image.qcow2 88 8)" = 8000000000000004 ] && "$tool" write image.qcow2 0 512 &&
        [ "$(bytes image.qcow2 88 8)" = 0000000000000000 ]
}
ok "C13 unknown autoclear bits are cleared before the first write, and only then" autoclear
fields() {
    rm -f image.qcow2
    # a header of 128 bytes: two unknown fields, then the extensions as they were
    "$tool" create image.qcow2 size=4M && "$poke" image.qcow2 header_length=128 @112:8=0x1122334455667788 @120:8=0x99aabbccddeeff00 \
        @128:4=0x12345678 @132:4=5 @136:8=0x6162636465000000 @144:8=0 && model image.qcow2 &&
        touch base.raw && truncate -s 4M base.raw && "$tool" rebase image.qcow2 base.raw raw &&
        [ "$(bytes image.qcow2 112 16)" = 112233445566778899aabbccddeeff00 ] &&
        [ "$(bytes image.qcow2 128 16)" = 12345678000000056162636465000000 ] && qemu-img info image.qcow2 | grep -q base.raw
}
ok "C19 C20 D4 unknown header fields and extensions survive rewriting" fields
ok "C2 a feature name table with whole garbage does no harm" sh -c "'$tool' create odd.qcow2 size=1M && '$poke' odd.qcow2 ext:0x6803f857:0:8=-1 ext:0x6803f857:48:8=-1 && '$tool' open odd.qcow2 rw"
no_compression_field() {
    fresh && "$poke" image.qcow2 header_length=104 @104:8=0 && "$tool" open image.qcow2 && model image.qcow2
}
ok "C19 a header of 104 bytes" no_compression_field

# ---- dirty bit ----
dirty() {
    fresh ${1:-} && qemu-io -c 'write -q -P 5 0 300k' image.qcow2 && cp image.qcow2 clean.qcow2 &&
        "$poke" image.qcow2 'incompatible_features=|1' rc:5=0 rc:6=3 && sha256sum image.qcow2 >sum && "$tool" dump image.qcow2 ours.raw &&
        sha256sum -c sum && "$tool" write image.qcow2 1000000 70000 && qemu-img check image.qcow2 &&
        [ "$(bytes image.qcow2 79 1)" = 00 ] && cmp -n 300000 ours.raw <(tr '\0' '\5' </dev/zero | head -c 300000)
}
ok "C3 C4 dirty: read-only leaves it alone, writing repairs it first" dirty "-o lazy_refcounts=on"
lazy_killed() { # QEMU dies with lazy refcounts
    fresh -o lazy_refcounts=on && qemu-io -c 'write -q -P 5 0 1M' -c 'flush' -c 'sigraise 9' image.qcow2
    [ "$(bytes image.qcow2 79 1)" = 01 ] && "$tool" write image.qcow2 2000000 70000 && qemu-img check image.qcow2 &&
        qemu-io -c 'read -P 5 0 1M' image.qcow2 | grep -q '1 MiB'
}
ok "C3 an image that QEMU left dirty" lazy_killed

# ---- repair ----
repairs() { # PLACES...
    fresh && qemu-io -c 'write -q -P 5 0 600k' image.qcow2 && cp image.qcow2 good.qcow2 && "$poke" image.qcow2 "$@" &&
        ! "$tool" check image.qcow2 && "$tool" check image.qcow2 all && qemu-img check image.qcow2 && "$tool" check image.qcow2 &&
        qemu-img compare image.qcow2 good.qcow2
}
ok "E8 a refcount too small is repaired" repairs rc:6=0
ok "E8 a leak is repaired" repairs rc:6=9
ok "F5 a wrong COPIED flag is repaired" repairs 'l2:65536=&0x7fffffffffffffff'
ok "F5 a wrong COPIED flag in L1 is repaired" repairs 'l1:0=&0x7fffffffffffffff'
ok "E4 a refcount block in a wrong place: all is rebuilt" repairs ref:0=512
ok "E4 a refcount table beyond the end: all is rebuilt" repairs refcount_table_offset=0x10000000
ok "E4 no refcount block at all: all is rebuilt" repairs ref:0=0
corrupt_bit() {
    fresh && "$poke" image.qcow2 'incompatible_features=|2' && ! "$tool" write image.qcow2 0 512 && "$tool" check image.qcow2 all &&
        "$tool" check image.qcow2 && "$poke" image.qcow2 rc:3=7 && "$tool" check image.qcow2 all &&
        "$tool" write image.qcow2 0 512
}
ok "C6 C7 the corrupt bit goes when the image is repaired" corrupt_bit
leaks_only() {
    fresh && qemu-io -c 'write -q -P 5 0 600k' image.qcow2 && "$poke" image.qcow2 rc:6=0 rc:7=5 && ! "$tool" check image.qcow2 leaks &&
        qemu-img check image.qcow2 | grep -q '1 errors' || qemu-img check image.qcow2 2>&1 | grep -q 'ERROR cluster 6'
}
ok "check -r leaks repairs leaks alone" leaks_only
same_counts() {
    fresh -o cluster_size=4k && model image.qcow2 && "$poke" image.qcow2 rc:6=0 rc:7=5 rc:9=0 'l2:0=&0x7fffffffffffffff'
    "$tool" check image.qcow2 >ours.txt
    qemu-img check --output=json image.qcow2 >theirs.txt 2>/dev/null
    [ "$(sed -n 's/.*corruptions \([0-9]*\) leaks \([0-9]*\) .*/\1 \2/p' ours.txt)" = \
        "$(sed -n 's/.*"corruptions": \([0-9]*\).*/\1/p' theirs.txt) $(sed -n 's/.*"leaks": \([0-9]*\).*/\1/p' theirs.txt)" ]
}
ok "E6 our check counts what qemu-img check counts" same_counts

# ---- limits ----
too_narrow() {
    rm -f image.qcow2 model.raw
    "$tool" create image.qcow2 size=4M refcount_bits=1 && "$tool" run image.qcow2 ops=50 model=model.raw &&
        ! "$tool" snapshot image.qcow2 create one && qemu-img check image.qcow2 && qemu-img compare -F raw image.qcow2 model.raw &&
        [ "$(bytes image.qcow2 79 1)" = 00 ]
}
ok "E3 a snapshot that the refcounts cannot hold fails and changes nothing" too_narrow
huge() { # BYTES OFFSET
    rm -f image.qcow2
    "$tool" create image.qcow2 size=$1 cluster=2M && "$tool" write image.qcow2 $2 5000 && "$tool" check image.qcow2 &&
        "$tool" read image.qcow2 $2 5000 && [ "$(stat -c %s image.qcow2)" -lt 40000000 ]
}
ok "B11 64 TiB" huge 64T 65970697666560
ok "B11 1 EiB" huge 1152921504606846976 1152921504606840000
other_size() {
    rm -f image.qcow2 model.raw
    "$tool" create image.qcow2 size=4M && "$tool" run image.qcow2 ops=50 model=model.raw && "$tool" snapshot image.qcow2 create one &&
        "$tool" resize image.qcow2 9000448 && "$tool" write image.qcow2 8000000 5000 && qemu-img check image.qcow2 &&
        "$tool" dump image.qcow2 ours.raw snapshot=one && cmp ours.raw model.raw && "$tool" snapshot image.qcow2 apply one &&
        qemu-img check image.qcow2 && "$tool" dump image.qcow2 ours.raw && cmp ours.raw model.raw
}
ok "J4 a snapshot of another size" other_size

# ---- bitmaps ----
bitmap_bits() { # NAME: start and length of what is dirty, by QEMU
    start nbd qemu-nbd -r -t -f qcow2 --bitmap="$1" -k "$tmp/nbd.sock" -x x image.qcow2
    wait_for 60 listens "$tmp/nbd.sock" &&
        qemu-img map --output=json --image-opts \
            "driver=nbd,server.type=unix,server.path=$tmp/nbd.sock,export=x,x-dirty-bitmap=qemu:dirty-bitmap:$1" |
        grep '"data": false' | sed 's/.*"start": \([0-9]*\), "length": \([0-9]*\).*/\1 \2/'
    stop nbd
}
bitmaps() {
    fresh ${1:-} && qemu-img bitmap --add -g 4k image.qcow2 b0 && qemu-img bitmap --add --disable image.qcow2 off &&
        qemu-io -c 'write -q -P 3 1M 100k' image.qcow2 && "$tool" write image.qcow2 8192 4096 &&
        "$tool" write image.qcow2 3000000 100 && qemu-img check image.qcow2 && "$tool" check image.qcow2 &&
        [ "$(bitmap_bits b0 | tr '\n' ' ')" = "8192 4096 1048576 102400 2998272 4096 " ]
}
ok "K3 bitmaps follow what we write, and QEMU goes on with them" bitmaps
ok "K3 the same with 512-byte clusters" bitmaps "-o cluster_size=512"
in_use() {
    fresh && qemu-img bitmap --add image.qcow2 b0 && qemu-io -c 'write -q -P 3 1M 100k' image.qcow2 && "$poke" image.qcow2 bitmap:12:4='|1' &&
        "$tool" write image.qcow2 0 4096 && qemu-img info image.qcow2 | grep -q 'in-use' && qemu-img check image.qcow2
}
ok "K3 a bitmap that was left in use stays so" in_use
stale() {
    fresh && qemu-img bitmap --add image.qcow2 b0 && qemu-io -c 'write -q -P 3 1M 100k' image.qcow2 && "$poke" image.qcow2 autoclear_features=0 &&
        "$tool" write image.qcow2 0 4096 && [ "$(bytes image.qcow2 95 1)" = 00 ]
}
ok "K2 stale bitmaps are not made valid again" stale

resized() { # OPTIONS: grown, written behind the old end, shrunk: the bitmaps follow, the disabled one as well
    fresh ${1:-} && qemu-img bitmap --add -g 4k image.qcow2 b0 && qemu-img bitmap --add --disable image.qcow2 off &&
        qemu-io -c 'write -q -P 3 1M 100k' image.qcow2 && "$tool" resize image.qcow2 $((300 << 20)) && qemu-img check image.qcow2 &&
        "$tool" check image.qcow2 && "$tool" write image.qcow2 $((200 << 20)) 4096 && qemu-img check image.qcow2 &&
        [ "$(bitmap_bits b0 | tr '\n' ' ')" = "1048576 102400 209715200 4096 " ] &&
        qemu-io -c 'write -q -P 4 250M 4k' image.qcow2 && "$tool" resize image.qcow2 $((2 << 20)) &&
        "$tool" resize image.qcow2 $((260 << 20)) && qemu-img check image.qcow2 && "$tool" check image.qcow2 &&
        [ "$(bitmap_bits b0 | tr '\n' ' ')" = "1048576 102400 " ] && ! qemu-img info image.qcow2 | grep in-use &&
        qemu-img bitmap --remove image.qcow2 off && qemu-img resize -q image.qcow2 270M && qemu-img check image.qcow2
}
ok "K3 bitmaps are resized with the disk, and QEMU goes on with them" resized
ok "K3 the same with 512-byte clusters" resized "-o cluster_size=512"
inconsistent() {
    fresh && qemu-img bitmap --add image.qcow2 b0 && "$poke" image.qcow2 bitmap:12:4='|1' || return
    "$tool" resize image.qcow2 $((8 << 20)) 2>resize.err && return 1
    cat resize.err
    grep -q 'inconsistent' resize.err && ! qemu-img resize image.qcow2 8M
}
ok "K3 what QEMU refuses, ours refuses: a disk with an inconsistent bitmap is not resized" inconsistent

# ---- external data files ----
data_file() {
    fresh -o data_file=data.raw${1:-} && model image.qcow2 depth=8 region=4096 && qemu-io -c 'write -q -P 9 100k 10k' image.qcow2 &&
        "$tool" dump image.qcow2 ours.raw && qemu-img convert -O raw image.qcow2 theirs.raw && cmp ours.raw theirs.raw
}
ok "C8 an external data file" data_file
ok "C8 an external data file with subclusters" data_file ",extended_l2=on,cluster_size=16k"
ok "L2 a raw external data file is the disk itself" sh -c "rm -f image.qcow2 data.raw model.raw; '$tool' create image.qcow2 size=4M data_file=data.raw data_file_raw=1 &&
    '$tool' run image.qcow2 ops=120 model=model.raw && cmp data.raw model.raw && qemu-img check image.qcow2 && qemu-img compare -F raw image.qcow2 model.raw"
cut_off() { # IMAGE-OPTIONS: what is cut off does not come back
    rm -f image.qcow2 data.raw model.raw
    "$tool" create image.qcow2 size=4M data_file=data.raw "$@" && "$tool" write image.qcow2 1048576 3145728 &&
        "$tool" resize image.qcow2 1048576 && "$tool" resize image.qcow2 2097152 &&
        "$tool" resize image.qcow2 4194304 && truncate -s 4M model.raw && "$tool" dump image.qcow2 ours.raw && cmp ours.raw model.raw &&
        qemu-img compare -f qcow2 -F raw image.qcow2 model.raw
}
ok "L2 a raw data file that shrinks and grows again reads as zeroes behind the old end" cut_off data_file_raw=1
ok "C8 and so does one that is not raw" cut_off
ok "C8 one of our making" sh -c "rm -f image.qcow2 data.raw model.raw; '$tool' create image.qcow2 size=4M data_file=data.raw &&
    '$tool' run image.qcow2 ops=120 model=model.raw && qemu-img check image.qcow2 && qemu-img compare -F raw image.qcow2 model.raw"

# ---- LUKS ----
printf secret >pass
encrypted() { # read by QEMU with the same passphrase
    local how=driver=qcow2,file.filename=image.qcow2,encrypt.key-secret=s
    qemu-img check --object secret,id=s,file=pass --image-opts $how && "$tool" check image.qcow2 &&
        qemu-img compare --object secret,id=s,file=pass --image-opts $how driver=raw,file.filename=model.raw
}
ours_encrypted() {
    rm -f image.qcow2 model.raw
    "$tool" create image.qcow2 size=4M encrypt=luks secret=pass ${1:-} &&
        "$tool" run image.qcow2 ops=150 secret=pass model=model.raw depth=8 region=4096 && encrypted &&
        ! grep -qa "$(printf '\7\7\7\7\7\7\7\7\7\7\7\7\7\7\7\7')" image.qcow2
}
ok "N2 an encrypted image of ours" ours_encrypted
ok "N2 the same with subclusters" ours_encrypted "extended_l2=1 cluster=16384"
ok "N2 the same preallocated: what was not written reads as zeroes" ours_encrypted "preallocation=falloc"
ok "N2 the same with 512-byte clusters" ours_encrypted "cluster=512"
theirs_encrypted() {
    rm -f image.qcow2 model.raw
    # By itself it measures CPU time, and says "unable to get accurate CPU usage" now and then.
    LD_PRELOAD=$(realpath "$tools/quick_kdf.so") qemu-img create -q --object secret,id=s,file=pass -f qcow2 \
        -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10${1:-} image.qcow2 4M &&
        "$tool" run image.qcow2 ops=150 secret=pass model=model.raw depth=8 region=4096 && encrypted
}
ok "N2 an encrypted image of QEMU's" theirs_encrypted
ok "N2 with cbc-essiv and another hash" theirs_encrypted ,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha512
ok "N2 with serpent" theirs_encrypted ,encrypt.cipher-alg=serpent-256
ok "N2 with cast5" theirs_encrypted ,encrypt.cipher-alg=cast5-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain64
aes() { # AES of old: what QEMU wrote is there, and QEMU reads what we write
    local how=driver=qcow2,file.filename=image.qcow2,encrypt.format=aes,encrypt.key-secret=s
    rm -f image.qcow2 ours.raw theirs.raw
    qemu-img create -q --object secret,id=s,file=pass -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s"${1:-}" image.qcow2 4M &&
        qemu-io --object secret,id=s,file=pass --image-opts $how -c 'write -q -P 3 100k 300k' -c 'write -q -z 1M 64k' -c 'write -q -P 4 3000k 3k' || return
    "$bin/ringside-img" convert --secret-file=pass -O raw image.qcow2 ours.raw &&
        qemu-img convert --object secret,id=s,file=pass --image-opts $how -O raw theirs.raw && cmp ours.raw theirs.raw || return
    rm -f image.qcow2 model.raw
    qemu-img create -q --object secret,id=s,file=pass -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s"${1:-}" image.qcow2 4M &&
        "$tool" run image.qcow2 ops=150 secret=pass model=model.raw depth=8 region=4096 &&
        qemu-img check --object secret,id=s,file=pass --image-opts $how &&
        qemu-img compare --object secret,id=s,file=pass --image-opts $how driver=raw,file.filename=model.raw
}
ok "N3 AES of old, both ways" aes
printf 'longer than sixteen bytes' >pass
ok "N3 the same with a passphrase that is longer than the key" aes ,compat=0.10,cluster_size=4k
printf secret >pass
done_testing
