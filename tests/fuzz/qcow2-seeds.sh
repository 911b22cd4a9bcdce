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
# Names of other files, which are looked at and not opened
qemu-img create -q -f qcow2 -u -o cluster_size=512 -b base.raw -F raw "$work/backed.qcow2" 100k &&
    (cd "$work" && qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=data.raw data.qcow2 100k &&
        qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=data.raw,data_file_raw=on dataraw.qcow2 100k) || exit 1
# LUKS (the passphrase is that of qcow2_fuzz.h); of the header, which lies at the end of the file, only the first key slot
# is kept, since the others are most of the file.
printf secret >"$work/pass"
preload=$(realpath "${RINGSIDE_BUILD:-build}/tests/quick_kdf.so")
for mode in xts cbc,encrypt.ivgen-alg=essiv; do
    image=$work/luks${mode%%,*}.qcow2
    LD_PRELOAD=$preload qemu-img create -q -f qcow2 --object "secret,id=s,file=$work/pass" -o \
        "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=$mode" \
        "$image" 100k && python3 - "$image" <<'END' || exit 1
import struct, sys
image = bytearray(open(sys.argv[1], "rb").read())
at, = struct.unpack_from(">I", image, 100)
while True:
    kind, length = struct.unpack_from(">II", image, at)
    if kind == 0x0537be77:
        break
    assert kind
    at += 8 + (length + 7 & ~7)
offset, length = struct.unpack_from(">QQ", image, at + 8)
assert offset + length <= len(image) + 4095, "the LUKS header is not at the end"
key_bytes, = struct.unpack_from(">I", image, offset + 108)
length = 4096 + (key_bytes * 4000 + 4095 & ~4095)
struct.pack_into(">Q", image, at + 16, length)
block, = struct.unpack_from(">Q", image, struct.unpack_from(">Q", image, 48)[0])
for cluster in range(offset + length >> 12, len(image) + 4095 >> 12):
    struct.pack_into(">H", image, block + 2 * cluster, 0)
open(sys.argv[1], "wb").write(image[:offset + length])
END
    # One that has data as well
    opts=driver=qcow2,encrypt.key-secret=s,file.filename=${image%.qcow2}data.qcow2
    cp "$image" "${image%.qcow2}data.qcow2" &&
        qemu-io --object "secret,id=s,file=$work/pass" -c 'write -q -P 3 5000 9000' --image-opts "$opts" || exit 1
done
for image in "$work"/*.qcow2; do
    for how in 0 1 2 3 4 5 6; do
        { printf '%b' "\\0$how"; cat "$image"; } >"$corpus/$(basename "$image" .qcow2).$how"
    done
done
