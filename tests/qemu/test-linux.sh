#!/usr/bin/env bash
# Linux on a disk from ringside-blk over vhost-user, with one queue and with two: fio verifies what it wrote, a file
# system is made, filled, read back and checked. QEMU then finds the image sound.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

linux=$RINGSIDE_BUILD/linux
if ! "$top/tests/qemu/make-linux-guest" "$linux" >"$tmp/make.log" 2>&1; then
    sed 's/^/# /' "$tmp/make.log"
    skip "a Linux guest on ringside-blk" "$(tail -n 1 "$tmp/make.log")"
    done_testing
fi

linux_guest() { # queues, image
    timeout -k 5 180 qemu-system-x86_64 -accel tcg -M q35,memory-backend=mem -m 640 -smp "$1" -nodefaults -no-user-config \
        -no-reboot -display none -monitor none -object memory-backend-memfd,id=mem,size=640M,share=on \
        -chardev stdio,id=console -serial chardev:console -chardev "socket,id=disk,path=$tmp/disk.sock" \
        -device "vhost-user-blk-pci,chardev=disk,num-queues=$1" -kernel "$linux/vmlinuz" -initrd "$linux/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 tsc=unstable job=files queues=$1" </dev/null 2>&1 | tr -d '\r' >"$tmp/linux.log"
    cat "$tmp/linux.log"
    grep -q '^linux guest: passed' "$tmp/linux.log"
}

on_ringside() { # queues, image, ringside-blk option...
    local queues=$1 image=$2
    shift 2
    make_image "$image" 256M
    start device "$bin/ringside-blk" "--socket-path=$tmp/disk.sock" "--blk-file=$image" "--num-queues=$queues" "$@"
    wait_for 10 test -S "$tmp/disk.sock"
    ok "Linux, $queues queues, $(basename "$image") $*" linux_guest "$queues"
    sed -n 's/^\(not \)\?ok - /# \1ok: /p' "$tmp/linux.log"
    stop device
    ok "ringside-blk ends in good order" test "$stopped" -eq 0
    ok "the image is sound" image_sound "$image"
}

on_ringside 1 "$tmp/one.qcow2"
on_ringside 2 "$tmp/two.qcow2" --iothreads=2
if [ -n "$long" ]; then
    on_ringside 1 "$tmp/one.raw"
    on_ringside 2 "$tmp/two.raw" --aio=threads --cache=writeback
fi
done_testing
