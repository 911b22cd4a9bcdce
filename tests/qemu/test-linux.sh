#!/usr/bin/env bash
# Linux on a disk from ringside-blk over vhost-user, with one queue and with all that QEMU's front end can do at once
# (packed rings of 1024, four queues, reconnect): fio verifies what it wrote, a file system is made, filled, read back and
# checked. QEMU then finds the image sound.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

linux=$RINGSIDE_BUILD/linux
if ! "$top/tests/qemu/make-linux-guest" "$linux" >"$tmp/make.log" 2>&1; then
    sed 's/^/# /' "$tmp/make.log"
    skip "a Linux guest on ringside-blk" "$(tail -n 1 "$tmp/make.log")"
    done_testing
fi

linux_guest() { # queues, properties of the disk
    timeout -k 5 500 qemu-system-x86_64 -accel tcg -M q35,memory-backend=mem -m 640 -smp "$1" -nodefaults -no-user-config \
        -no-reboot -display none -monitor none -object memory-backend-memfd,id=mem,size=640M,share=on \
        -chardev stdio,id=console -serial chardev:console -chardev "socket,id=disk,path=$tmp/disk.sock,reconnect=1" \
        -device "vhost-user-blk-pci,chardev=disk,num-queues=$1,$2" -kernel "$linux/vmlinuz" -initrd "$linux/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 tsc=unstable job=files queues=$1" </dev/null 2>&1 | tr -d '\r' >"$tmp/linux.log"
    cat "$tmp/linux.log"
    grep -q '^linux guest: passed' "$tmp/linux.log"
}

on_ringside() { # queues, properties of the disk, image, ringside-blk option...
    local queues=$1 properties=$2 image=$3
    shift 3
    make_image "$image" 256M
    start device "$bin/ringside-blk" "--socket-path=$tmp/disk.sock" "--blk-file=$image" "--num-queues=$queues" "$@"
    wait_for 60 listens "$tmp/disk.sock"
    ok "Linux, $queues queues, $properties, $(basename "$image") $*" linux_guest "$queues" "$properties"
    sed -n 's/^\(not \)\?ok - /# \1ok: /p' "$tmp/linux.log"
    stop device
    ok "ringside-blk ends in good order" test "$stopped" -eq 0
    ok "the image is sound" image_sound "$image"
}

on_ringside 1 packed=off "$tmp/one.qcow2"
on_ringside 4 packed=on,queue-size=1024 "$tmp/four.qcow2" --iothreads=2 --queue-size=1024
if [ -n "$long" ]; then
    on_ringside 1 packed=off "$tmp/one.raw"
    on_ringside 2 packed=off "$tmp/two.raw" --aio=threads --cache=writeback --iothreads=2
    on_ringside 4 packed=off,queue-size=1024 "$tmp/split.qcow2" --iothreads=4 --queue-size=1024
fi
done_testing
