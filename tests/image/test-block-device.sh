#!/usr/bin/env bash
# Images on a block device of sectors of 4 KiB: made over whatever lies there, written to with O_DIRECT, the
# same bytes as by QEMU.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
img=$bin/ringside-img
io=$tools/tool_block_io

truncate -s 640M backing
if ! disk=$(losetup -f --show -b 4096 backing 2>/dev/null); then
    skip "images on a block device" "no loop device is to be had"
    done_testing
fi
trap 'losetup -d "$disk"; cleanup' EXIT
head -c 20M /dev/urandom >plain.raw
truncate -s 64M plain.raw

for cluster in 512 4k 64k; do
    tr '\0' G </dev/zero | head -c 8M | dd of="$disk" bs=1M status=none
    ok "cluster_size=$cluster: an image is made over old bytes" bash -c "
        '$img' create -q -f qcow2 -o cluster_size=$cluster $disk 64M && qemu-img check -q -f qcow2 $disk"
    ok "... it is empty" bash -c "'$img' convert -f qcow2 -O raw $disk empty.raw && cmp -n 67108864 empty.raw /dev/zero"
    for aio in native threads; do
        ok "... written to in bytes, with O_DIRECT and aio=$aio" bash -c "
            '$io' cache=none aio=$aio format=qcow2 $disk 'write 1000 70000 7' 'write 2M 5000 8 fua' 'zero 3000 6000' 'discard 2M 64k' 'write 2100000 3 9' flush \
                'read 1000 2000 7' 'read 3000 6000 0' 'read 9000 62000 7' 'read 2100000 3 9' && qemu-img check -q -f qcow2 $disk"
    done
    ok "... converted onto, with O_DIRECT, and what lay there is gone" bash -c "
        '$img' convert -t none -f raw -O qcow2 -o cluster_size=$cluster plain.raw $disk && qemu-img check -q -f qcow2 $disk &&
        qemu-img compare -f raw -F qcow2 plain.raw $disk"
    ok "... and from" bash -c "'$img' convert -T none -f qcow2 -O raw $disk back.raw && cmp plain.raw back.raw"
    ok "... a snapshot, and a larger disk" bash -c "
        '$img' snapshot -c one $disk && '$img' resize -q -f qcow2 $disk 70M && qemu-img check -q -f qcow2 $disk"
done
ok "preallocated metadata shows nothing of what lay there" bash -c "
    '$img' create -q -f qcow2 -o preallocation=metadata $disk 64M && '$img' convert -f qcow2 -O raw $disk empty.raw && cmp -n 67108864 empty.raw /dev/zero"
ok "raw: converted onto" bash -c "'$img' convert -t none -f raw -O raw plain.raw $disk && cmp -n 67108864 plain.raw $disk"
# The image has more refcounts than one look finds, and is opened anew.
for range in '0 1 1' '64M 64M 2' '192M 300M 3' '0 64M 4' '128M 64M 5'; do
    [ "$range" = '0 1 1' ] && "$img" create -q -f qcow2 "$disk" 2G
    ok "there is room on the device for $range" bash -c "'$io' cache=none format=qcow2 $disk 'write $range' 'read $range'"
done
ok "what was written before is there" bash -c "
    '$io' cache=none format=qcow2 $disk 'read 0 64M 4' 'read 64M 64M 2' 'read 128M 64M 5' 'read 192M 300M 3' && qemu-img check -q -f qcow2 $disk"
printf '\0\0\0\0\0\1\2\3' | dd of="$disk" bs=1 seek=65536 conv=notrunc status=none
ok "new refcount structures find their place on it" bash -c "
    ! '$img' check -q -f qcow2 $disk && '$img' check -q -r all -f qcow2 $disk && qemu-img check -q -f qcow2 $disk &&
    '$io' cache=none format=qcow2 $disk 'read 0 64M 4' 'read 64M 64M 2' 'read 128M 64M 5' 'read 192M 300M 3'"
ok "snapshots of a larger image" bash -c "'$img' snapshot -c one $disk && '$img' snapshot -c two $disk && '$img' snapshot -d one $disk && qemu-img check -q -f qcow2 $disk"
ok "a device that is full is ENOSPC" bash -c "
    '$io' cache=none format=qcow2 $disk 'write 1G 300M 6' | tee said; grep ENOSPC said && '$io' format=qcow2 $disk 'read 192M 300M 3' && ! qemu-img check -f qcow2 $disk | grep -i corrupt"
ok "an image that the device has no room for fails with a sentence" bash -c "
    ! '$img' create -q -f qcow2 -o preallocation=full $disk 900M 2>said && grep -q ringside-img said"

# A device is one file under all its nodes.
nodes=("$disk")
read -r major minor < <(stat -L -c '%t %T' "$disk")
mknod other b $((16#$major)) $((16#$minor)) && dd if=other of=/dev/null count=8 status=none && nodes+=("$PWD/other")
for node in "${nodes[@]}"; do
    "$img" create -q -f qcow2 "$disk" 64M && "$img" create -q -f qcow2 -b "$disk" -F qcow2 top.qcow2
    ok "$node is not converted onto itself" bash -c "
        ! '$img' convert -n -f qcow2 -O qcow2 $disk $node 2>said && grep 'read as a part of the source' said &&
        ! '$img' convert --backing=/ -f qcow2 -O raw top.qcow2 $node 2>said && grep 'read as a part of the source' said && qemu-img check -q -f qcow2 $disk"
    ok "... nor made over its own backing file" bash -c "
        ! '$img' create -q -f qcow2 -b $disk -F qcow2 $node 64M && ! '$img' create -q -f qcow2 -b \$PWD/top.qcow2 -F qcow2 $node &&
        ! '$img' create -q -f qcow2 -o data_file=$node,backing_file=$disk,backing_fmt=qcow2 new.qcow2 64M &&
        ! '$img' create -q -f qcow2 -o data_file=$node,backing_file=\$PWD/top.qcow2,backing_fmt=qcow2 new.qcow2 64M && qemu-img check -q -f qcow2 $disk"
    ok "... nor where the audit of its driver goes" bash -c "
        ! timeout 60 '$bin/ringside-blk' --blk-file=$disk --audit=$node --socket-path=\$PWD/no.sock 2>said && grep 'is the image' said"
done
done_testing
