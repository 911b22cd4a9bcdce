#!/usr/bin/env bash
# The device is killed (-9) and started again, over and over, under a Linux guest that writes and verifies: QEMU
# connects again, requests in flight are taken up from the inflight region, and the guest sees no error and no wrong
# byte. What counts is a death that found a front end at work; there have to be 20 with RINGSIDE_SIZE=long.
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
        "--survive=$tmp" "--control=$tmp/control" "$1"
    wait_for 60 listens "$tmp/disk.sock"
}

said() { tr -d '\r' <"$tmp/console" 2>/dev/null | grep -q "$1"; }

# A number from 0 to N-1 that depends on the seed and the step alone.
chance() { # step, n
    echo $((($1 * 7919 + 104729) * 48271 % 65521 % $2))
}

# Does the device that runs now have a front end that has sent it a request?
works() {
    device_stats "$tmp/control" 'any(.queues[].popped; . > 0)'
}

survives() { # image, queues, packed, how many deaths, signal
    local image=$1 queues=$2 packed=$3 deaths=$4 signal=$5 n=0 tries
    make_image "$image" 256M
    rm -f "$tmp/console"
    device "$image" "$queues" || return 1
    start qemu timeout -k 5 1000 qemu-system-x86_64 -accel tcg -M q35,memory-backend=mem -m 640 -smp "$queues" -nodefaults \
        -no-user-config -no-reboot -display none -monitor none -serial "file:$tmp/console" \
        -object memory-backend-memfd,id=mem,size=640M,share=on \
        -chardev "socket,id=disk,path=$tmp/disk.sock,reconnect=1" \
        -device "vhost-user-blk-pci,chardev=disk,num-queues=$queues,queue-size=1024,packed=$packed,disable-legacy=on" \
        -kernel "$linux/vmlinuz" -initrd "$linux/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 tsc=unstable job=files queues=$queues rounds=$((deaths / 2))"
    wait_for 300 said "sectors, cache" || return 1
    for ((tries = 0; n < deaths && tries < 3 * deaths; tries++)); do
        wait_for 60 works
        sleep "0.$(chance $tries 9)5"
        ! said '^linux guest:' || break
        stop device "$signal"
        case $signal:$stopped in KILL:137 | TERM:0) n=$((n + 1)) ;; esac
        device "$image" "$queues" || return 1
    done
    seen=$n
    echo "$n deaths under a front end at work"
    wait_for 300 said '^linux guest:'
    wait "${started[qemu]}"
    unset 'started[qemu]'
    tr -d '\r' <"$tmp/console"
    cat "$tmp/device.log" "$tmp/qemu.log"
    stop device
    said '^linux guest: passed' && [ "$seen" -ge "$deaths" ]
}

survives_all() { # what, as for survives
    local what=$1
    shift
    seen=0
    ok "$what" survives "$@"
    echo "# $seen deaths under a front end at work"
}

if [ -n "$long" ]; then times=22; else times=4; fi
# What is left after the last death may be clusters that nobody refers to.
sound_but_for_leaks() {
    qemu-img check "$1"
    case $? in 0 | 3) ;; *) return 1 ;; esac
}
survives_all "Linux survives kill -9 of a qcow2 disk's process, $times times" "$tmp/one.qcow2" 1 off "$times" KILL
ok "the image has no errors" sound_but_for_leaks "$tmp/one.qcow2"
if [ -n "$long" ]; then
    survives_all "qcow2, packed rings and 4 queues" "$tmp/four.qcow2" 4 on "$times" KILL
    ok "the image has no errors" sound_but_for_leaks "$tmp/four.qcow2"
    survives_all "raw" "$tmp/one.raw" 1 off "$times" KILL
    survives_all "planned restarts, qcow2" "$tmp/planned.qcow2" 1 off "$times" TERM
    ok "and the image is sound" image_sound "$tmp/planned.qcow2"
fi
done_testing
