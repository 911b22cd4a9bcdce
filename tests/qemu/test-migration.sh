#!/usr/bin/env bash
# Linux moves from one QEMU to another in the middle of its work (live migration), from one ringside-blk to another on
# the same image (--handover): what it wrote before and after is verified by itself, the image by QEMU's tools.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

linux=$RINGSIDE_BUILD/linux
if ! "$top/tests/qemu/make-linux-guest" "$linux" >"$tmp/make.log" 2>&1; then
    sed 's/^/# /' "$tmp/make.log"
    skip "live migration of a Linux guest" "$(tail -n 1 "$tmp/make.log")"
    done_testing
fi

qemu() { # 1 or 2, queues, packed, option...
    local n=$1 queues=$2 packed=$3
    shift 3
    start "qemu$n" timeout -k 5 700 qemu-system-x86_64 -accel tcg -M q35,memory-backend=mem -m 640 -smp "$queues" -nodefaults \
        -no-user-config -no-reboot -display none -monitor "unix:$tmp/monitor$n,server=on,wait=off" \
        -object memory-backend-memfd,id=mem,size=640M,share=on -serial "file:$tmp/console$n" \
        -chardev "socket,id=disk,path=$tmp/disk$n.sock" \
        -device "vhost-user-blk-pci,chardev=disk,num-queues=$queues,packed=$packed,disable-legacy=on" \
        -kernel "$linux/vmlinuz" -initrd "$linux/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 tsc=unstable job=files queues=$queues" "$@"
}

monitor() { # 1 or 2, command; prints what is said
    python3 - "$tmp/monitor$1" "$2" <<'PY'
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
said = b""
while said.count(b"(qemu)") < 1:
    said += s.recv(4096)
s.send(sys.argv[2].encode() + b"\n")
said = b""
try:
    while said.count(b"(qemu) ") < 1:
        part = s.recv(4096)
        if not part:
            break
        said += part
except TimeoutError:
    pass
print(said.decode(errors="replace"))
PY
}

# The words are there on either console: the file is QEMU's, the guest's lines go to whichever runs it.
said() { cat "$tmp"/console[12] 2>/dev/null | tr -d '\r' | grep -q "$1"; }
migrated() { monitor 1 "info migrate" | grep -q "status: completed"; }

moves() { # image, queues, packed, what to wait for
    local image=$1 queues=$2 packed=$3 n
    make_image "$image" 256M
    rm -f "$tmp"/console[12] "$tmp/move"
    for n in 1 2; do
        start "device$n" "$bin/ringside-blk" "--socket-path=$tmp/disk$n.sock" --handover "--num-queues=$queues" "$image"
        wait_for 60 listens "$tmp/disk$n.sock" || return 1
    done
    qemu 1 "$queues" "$packed"
    qemu 2 "$queues" "$packed" -incoming "unix:$tmp/move"
    wait_for 60 listens "$tmp/monitor1" && wait_for 60 listens "$tmp/move" || return 1
    wait_for 300 said "$4" || return 1
    monitor 1 "migrate_set_parameter max-bandwidth 4G" >/dev/null
    monitor 1 "migrate -d unix:$tmp/move" >/dev/null
    wait_for 300 migrated || {
        monitor 1 "info migrate"
        cat "$tmp"/qemu[12].log "$tmp"/device[12].log
        return 1
    }
    stop qemu1
    wait_for 300 said "^linux guest:"
    wait "${started[qemu2]}"
    unset 'started[qemu2]'
    cat "$tmp"/console[12] "$tmp"/device[12].log "$tmp"/qemu[12].log | tr -d '\r'
    said '^linux guest: passed'
}

check() { # what, image, queues, packed, moment
    ok "$1" moves "$2" "$3" "$4" "$5"
    stop device1
    ok "the source's device ends in good order" test "$stopped" = 0
    stop device2
    ok "the target's too" test "$stopped" = 0
    ok "neither had anything to complain about" sh -c "cat '$tmp/device1.log' '$tmp/device2.log'; test ! -s '$tmp/device1.log' && test ! -s '$tmp/device2.log'"
    ok "the image is sound" image_sound "$2"
}

check "Linux moves while fio verifies, qcow2" "$tmp/one.qcow2" 1 off "sectors, cache"
if [ -n "$long" ]; then
    check "Linux moves while it copies files, packed rings, 2 queues" "$tmp/two.qcow2" 2 on "ok - mount"
    check "Linux moves while fio verifies, packed rings, 4 queues" "$tmp/four.qcow2" 4 on "sectors, cache"
    check "Linux moves while fio verifies, raw" "$tmp/one.raw" 1 off "sectors, cache"
fi
done_testing
