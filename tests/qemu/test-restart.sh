#!/usr/bin/env bash
# The device is killed (-9) and started again, over and over, under a Linux guest that writes and verifies: QEMU
# connects again, requests in flight are taken up from the inflight region, and the guest sees no error and no wrong
# byte.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

linux=$RINGSIDE_BUILD/linux
if ! "$top/tests/qemu/make-linux-guest" "$linux" >"$tmp/make.log" 2>&1; then
    sed 's/^/# /' "$tmp/make.log"
    skip "Linux over deaths of its disk's process" "$(tail -n 1 "$tmp/make.log")"
    done_testing
fi

device() { # image, queues
    start device "$bin/ringside-blk" "--socket-path=$tmp/disk.sock" "--num-queues=$2" "--queue-size=1024" "--iothreads=2" \
        "--survive=$tmp" "$1"
    wait_for 10 test -S "$tmp/disk.sock"
}

said() { tr -d '\r' <"$tmp/console" 2>/dev/null | grep -q "$1"; }

# A number from 0 to N-1 that depends on the seed and the step alone.
chance() { # step, n
    echo $((($1 * 7919 + 104729) * 48271 % 65521 % $2))
}

survives() { # image, queues, packed, how many deaths at most, signal
    local image=$1 queues=$2 packed=$3 deaths=$4 signal=$5 n
    make_image "$image" 256M
    rm -f "$tmp/console"
    device "$image" "$queues" || return 1
    start qemu timeout -k 5 200 qemu-system-x86_64 -accel tcg -M q35,memory-backend=mem -m 640 -smp "$queues" -nodefaults \
        -no-user-config -no-reboot -display none -monitor none -serial "file:$tmp/console" \
        -object memory-backend-memfd,id=mem,size=640M,share=on \
        -chardev "socket,id=disk,path=$tmp/disk.sock,reconnect=1" \
        -device "vhost-user-blk-pci,chardev=disk,num-queues=$queues,queue-size=1024,packed=$packed,disable-legacy=on" \
        -kernel "$linux/vmlinuz" -initrd "$linux/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 tsc=unstable job=files queues=$queues"
    wait_for 60 said "sectors, cache" || return 1
    for ((n = 0; n < deaths; n++)); do
        sleep "0.$(chance $n 9)5"
        ! said '^linux guest:' || break
        stop device "$signal"
        device "$image" "$queues" || return 1
        # QEMU looks for it once a second.
        sleep 1
    done
    echo "# $n deaths"
    wait_for 120 said '^linux guest:'
    wait "${started[qemu]}"
    unset 'started[qemu]'
    tr -d '\r' <"$tmp/console"
    cat "$tmp/device.log" "$tmp/qemu.log"
    stop device
    said '^linux guest: passed'
}

if [ -n "$long" ]; then times=30; else times=6; fi
# What is left after the last death may be clusters that nobody refers to.
sound_but_for_leaks() {
    qemu-img check "$1"
    case $? in 0 | 3) ;; *) return 1 ;; esac
}
ok "Linux survives kill -9 of a qcow2 disk's process, $times times" survives "$tmp/one.qcow2" 1 off "$times" KILL
ok "the image has no errors" sound_but_for_leaks "$tmp/one.qcow2"
if [ -n "$long" ]; then
    ok "qcow2, packed rings and 4 queues" survives "$tmp/four.qcow2" 4 on "$times" KILL
    ok "the image has no errors" sound_but_for_leaks "$tmp/four.qcow2"
    ok "raw" survives "$tmp/one.raw" 1 off "$times" KILL
    ok "planned restarts, qcow2" survives "$tmp/planned.qcow2" 1 off "$times" TERM
    ok "and the image is sound" image_sound "$tmp/planned.qcow2"
fi
done_testing
