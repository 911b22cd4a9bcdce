#!/usr/bin/env bash
# Boots a guest program in QEMU on a virtio block device and exits with the guest's own verdict.
# Installs and builds what is missing first. `./run-qemu.sh --help` says what can be chosen.
#
# Exit status: 0 the guest passed, 1 it failed, died or said nothing in time, 2 usage.
# With RINGSIDE_BUILD set to a build directory, everything is taken from there as it is: nothing is installed or made.
set -u

top=$(cd "$(dirname "$0")" && pwd)
me=run-qemu.sh

usage() {
    cat <<'END'
usage: ./run-qemu.sh [OPTION...] [-- QEMU-OPTION...]

Boots a guest program on a virtio disk in QEMU, prints what it says, and exits with its verdict.

  --arch=x86_64|aarch64|riscv64  the guest's machine                                  (x86_64)
  --app=selftest|bench|shell|litmus|endure  the program that boots                    (selftest)
  --device=ringside|qemu|none    who is the disk: ringside-blk over vhost-user, QEMU's own device, or whatever
                                 the options behind -- name                           (ringside)
  --transport=pci|mmio           how the guest reaches it                             (pci)
  --ring=split|packed            the ring's layout                                    (split)
  --queues=N                     queues, and CPUs up to 8                             (2)
  --queue-size=N                 entries of each, a power of two from 2 to 1024       (256)
  --image=FILE                   the disk's image, qcow2 or raw          (a qcow2 image of its own under build/demo)
                                 the self-test OVERWRITES it, as does bench when it writes: give a copy, or --read-only
  --read-only                    the guest may not write to it
  --accel=tcg|kvm|auto           auto takes kvm where a short probe finds it working  (auto)
  --trace=FILE                   ringside-blk records there what happens to every request
  --timeout=SECONDS              for the guest's run; 0 is for ever                   (120; none for the shell)
  --append=WORDS                 more words for the guest's command line, e.g. --append="rw=randread bs=4096 qd=32"
  --device-options=LIST          more properties of the QEMU device, e.g. --device-options=event_idx=off
  --gdb                          waits for a debugger at localhost:1234 before the first instruction
  --dry-run                      prints the commands and runs nothing
END
}

die() { # message; ends with the status for usage errors
    echo "$me: $1 (./$me --help lists the options)" >&2
    exit 2
}

fail() {
    echo "$me: $1" >&2
    exit 1
}

one_of() { # option, value, choices...
    local option=$1 value=$2 choice
    shift 2
    for choice in "$@"; do
        [ "$choice" != "$value" ] || return 0
    done
    die "$option=$value: choose one of: $*"
}

number() { # option, value, least, most
    case $2 in
    '' | *[!0-9]*) die "$1=$2: not a number" ;;
    esac
    if [ ${#2} -gt 9 ] || [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
        die "$1=$2: must be from $3 to $4"
    fi
}

arch=x86_64 app=selftest device=ringside transport=pci ring=split queues=2 queue_size=256 image='' read_only=
accel=auto trace='' timeout='' append='' device_options='' gdb='' dry_run=
qemu_options=()

while [ $# -gt 0 ]; do
    value=${1#*=}
    case $1 in
    --arch=*) arch=$value ;;
    --app=*) app=$value ;;
    --device=*) device=$value ;;
    --transport=*) transport=$value ;;
    --ring=*) ring=$value ;;
    --queues=*) queues=$value ;;
    --queue-size=*) queue_size=$value ;;
    --image=*)
        [ -n "$value" ] || die "--image=: which file?"
        image=$value
        ;;
    --read-only) read_only=1 ;;
    --accel=*) accel=$value ;;
    --trace=*) trace=$value ;;
    --timeout=*) timeout=$value ;;
    --append=*) append=$value ;;
    --device-options=*) device_options=$value ;;
    --gdb) gdb=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        shift
        qemu_options=("$@")
        break
        ;;
    --arch | --app | --device | --transport | --ring | --queues | --queue-size | --image | --accel | --trace | \
        --timeout | --append | --device-options)
        die "$1: its value goes behind a '=': $1=VALUE"
        ;;
    -*) die "$1: no such option" ;;
    *) die "$1: what is that? options for QEMU itself go behind --" ;;
    esac
    shift
done

one_of --arch "$arch" x86_64 aarch64 riscv64
one_of --app "$app" selftest bench shell litmus endure
one_of --device "$device" ringside qemu none
one_of --transport "$transport" pci mmio
one_of --ring "$ring" split packed
one_of --accel "$accel" tcg kvm auto
number --queues "$queues" 1 64
number --queue-size "$queue_size" 2 1024
if [ -z "$timeout" ]; then
    timeout=120
    [ "$app" != shell ] || timeout=0
fi
number --timeout "$timeout" 0 999999999
# What begins with 0 would be octal to some who read it.
queues=$((10#$queues)) queue_size=$((10#$queue_size)) timeout=$((10#$timeout))
[ $((queue_size & (queue_size - 1))) -eq 0 ] || die "--queue-size=$queue_size: must be a power of two"
[ -z "$gdb" ] || timeout=0
if [ -n "$trace" ] && [ "$device" != ringside ]; then
    die "--trace=$trace: only ringside-blk records traces; leave out --device=$device"
fi
if [ "$accel" = kvm ] && [ "$arch" != x86_64 ]; then
    die "--accel=kvm: the $arch guest ends by semihosting or a test device, which run under tcg only"
fi

# Before minutes go into building
if [ -n "$image" ] && [ -z "$dry_run" ] && [ "$device" != none ]; then
    [ -e "$image" ] || fail "$image: no such image (leave --image out for one of its own)"
    [ -f "$image" ] || [ -b "$image" ] || fail "$image: is neither a file nor a block device"
    [ -r "$image" ] || fail "$image: can't be read (check its permissions)"
    [ -n "$read_only" ] || [ -w "$image" ] || fail "$image: can't be written (check its permissions, or add --read-only)"
fi

# ---- what is missing ----

if [ -n "${RINGSIDE_BUILD:-}" ]; then
    build=$RINGSIDE_BUILD
elif [ -n "$dry_run" ]; then
    build=$top/build
else
    build=$top/build
    "$top/.ci/packages" build qemu || exit 1
    goals=("build/guest/$arch/$app.elf")
    [ "$arch" != x86_64 ] || [ "$accel" != auto ] || goals+=("build/guest/$arch/selftest.elf")
    [ "$device" != ringside ] || goals+=(build/bin/ringside-blk)
    make -s -C "$top" -j"$(nproc)" "${goals[@]}" >&2 || fail "the build failed"
fi
elf=$build/guest/$arch/$app.elf
for needed in "$elf" "$build/bin/ringside-blk"; do
    [ "$device" = ringside ] || [ "$needed" = "$elf" ] || continue
    [ -e "$needed" ] || [ -n "$dry_run" ] || fail "$needed is not there (run make)"
done
qemu=qemu-system-$arch
command -v "$qemu" >/dev/null || fail "$qemu is not installed (.ci/packages qemu installs it)"

tmp=$(mktemp -d "${TMPDIR:-/tmp}/run-qemu.XXXXXX") || exit 1
device_pid='' qemu_pid=''
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    local pid tries
    for pid in $qemu_pid $device_pid; do
        kill "$pid" 2>/dev/null
        # The disk may have much to write back, on a machine that is busy.
        for ((tries = 0; tries < 300; tries++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 143' TERM INT HUP

if [ -z "$image" ] && [ "$device" != none ]; then
    image=$build/demo/$app.qcow2
    if [ ! -e "$image" ] && [ -z "$dry_run" ]; then
        mkdir -p "$build/demo"
        qemu-img create -q -f qcow2 "$image" 256M || fail "could not make the demo image $image"
        echo "$me: made the image $image" >&2
    fi
fi
format=qcow2
if [ -e "$image" ] && [ "$(head -c 4 "$image" | od -An -tx1 | tr -d ' \n')" != 514649fb ]; then
    format=raw
fi

# ---- the machine ----

# Does KVM run a 64-bit guest here? Some hosts offer /dev/kvm and then hang: the selftest without a disk says at once
# that there is none. The answer is kept until the host starts again.
kvm_works() {
    local answer=$build/kvm-probe boot
    [ "$arch" = x86_64 ] && [ "$(uname -m)" = x86_64 ] && [ -w /dev/kvm ] || return 1
    boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
    if [ "$(cat "$answer" 2>/dev/null)" != "$boot no" ] && [ "$(cat "$answer" 2>/dev/null)" != "$boot yes" ]; then
        timeout -k 1 3 "$qemu" -accel kvm -M q35 -m 64 -nodefaults -no-user-config -display none -serial none \
            -monitor none -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel "$build/guest/x86_64/selftest.elf" \
            >/dev/null 2>&1 </dev/null
        if [ $? -eq 35 ]; then
            echo "$boot yes" >"$answer"
        else
            echo "$boot no" >"$answer"
        fi
    fi 2>/dev/null
    [ "$(cat "$answer" 2>/dev/null)" = "$boot yes" ]
}
if [ "$accel" = auto ]; then
    accel=tcg
    if [ -z "$dry_run" ] && kvm_works; then
        accel=kvm
    fi
fi

cpus=$queues
[ "$cpus" -le 8 ] || cpus=8
words="queues=$queues queue-size=$queue_size ring=$ring${append:+ $append}"
command=("$qemu" -accel "$accel" -nodefaults -no-user-config -no-reboot -display none -monitor none -m 256 -smp "$cpus"
    -object "memory-backend-memfd,id=mem,size=256M,share=on" -kernel "$elf")
case $arch-$transport in
x86_64-pci) command+=(-M "q35,memory-backend=mem" -device "isa-debug-exit,iobase=0xf4,iosize=4") ;;
x86_64-mmio) command+=(-M "microvm,acpi=off,memory-backend=mem" -device "isa-debug-exit,iobase=0xf4,iosize=4") ;;
aarch64-*) command+=(-M "virt,gic-version=3,memory-backend=mem" -cpu cortex-a57 -semihosting-config "enable=on,target=native") ;;
riscv64-*) command+=(-M "virt,memory-backend=mem") ;;
esac
command+=(-chardev "stdio,id=console,signal=$([ "$app" = shell ] && echo off || echo on)" -serial chardev:console)
[ "$transport" = pci ] || command+=(-global virtio-mmio.force-legacy=false)

properties=num-queues=$queues,queue-size=$queue_size
[ "$ring" = split ] || properties+=,packed=on
[ -z "$device_options" ] || properties+=,$device_options
suffix=-pci
case $device-$transport in
*-pci) ;;
ringside-mmio) suffix= ;;
qemu-mmio) suffix=-device ;;
esac

device_command=()
if [ "$device" = qemu ]; then
    command+=(-blockdev "driver=$format,node-name=disk,discard=unmap,read-only=$([ -n "$read_only" ] && echo on || echo off),file.driver=file,file.filename=${image//,/,,}"
        -device "virtio-blk$suffix,drive=disk,serial=qemu-disk,$properties")
elif [ "$device" = ringside ]; then
    device_command=("$build/bin/ringside-blk" "--socket-path=$tmp/disk.sock" "--blk-file=$image" "--num-queues=$queues"
        "--queue-size=$queue_size" --serial=ringside-disk)
    [ -z "$read_only" ] || device_command+=(--read-only)
    [ -z "$trace" ] || device_command+=("--trace=$trace")
    command+=(-chardev "socket,id=disk,path=$tmp/disk.sock" -device "vhost-user-blk$suffix,chardev=disk,$properties")
fi
command+=(-append "$words")
[ -z "$gdb" ] || command+=(-S -gdb tcp:127.0.0.1:1234)
command+=(${qemu_options[@]+"${qemu_options[@]}"})

if [ -n "$dry_run" ]; then
    [ ${#device_command[@]} -eq 0 ] || echo "${device_command[*]@Q}"
    echo "${command[*]@Q}"
    exit 0
fi

# ---- the run ----

if [ "$device" = ringside ]; then
    "${device_command[@]}" </dev/null >&2 &
    device_pid=$!
    for ((tries = 0; tries < 1200; tries++)); do
        [ ! -S "$tmp/disk.sock" ] || break
        if ! kill -0 "$device_pid" 2>/dev/null; then
            wait "$device_pid"
            status=$?
            device_pid=''
            fail "ringside-blk ended with status $status before QEMU could connect"
        fi
        sleep 0.05
    done
    [ -S "$tmp/disk.sock" ] || fail "ringside-blk did not open its socket within a minute"
fi

[ -z "$gdb" ] || echo "$me: waiting; now: gdb $elf -ex 'target remote :1234'" >&2
# Only the shell reads what is typed. At a terminal it runs in the foreground; all else in the background, so that a
# signal to us is acted on at once.
if [ "$app" = shell ] && [ -t 0 ]; then
    terminal=$(stty -g)
    stty raw -echo
    "${command[@]}"
    status=$?
    stty "$terminal"
else
    if [ "$app" = shell ]; then
        exec 3<&0
    else
        exec 3</dev/null
    fi
    timeout --foreground -k 5 "$timeout" "${command[@]}" <&3 &
    qemu_pid=$!
    wait "$qemu_pid"
    status=$?
    qemu_pid=''
fi

# The guest's verdict v arrives as exit status 33 + 2v, on every machine.
case $status in
33) exit 0 ;;
35) exit 1 ;;
37) exit 2 ;;
39) fail "the guest died (see its last lines)" ;;
124) fail "no verdict within $timeout seconds" ;;
137) fail "QEMU did not end by itself and was killed" ;;
*) fail "QEMU ended with status $status and no verdict from the guest" ;;
esac
