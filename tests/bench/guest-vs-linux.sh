#!/usr/bin/env bash
# bench.elf against Linux's driver under fio: the same QEMU (tcg, one CPU), the same ringside-blk, the same image,
# side by side and in turn. Prints operations per second: median, least and most of several runs, and their ratio.
#
#   RINGSIDE_BUILD=build RUNS=5 RUNTIME=3 tests/bench/guest-vs-linux.sh
#
# Exit status 1 if Linux has the better median anywhere. It is no test: figures depend on the machine's load.
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
export RINGSIDE_BUILD=${RINGSIDE_BUILD:-$top/build}
runs=${RUNS:-5} runtime=${RUNTIME:-3}
linux=$RINGSIDE_BUILD/linux
"$top/tests/qemu/make-linux-guest" "$linux" || exit 1

store=${TMPDIR:-/tmp}
[ ! -w /dev/shm ] || store=/dev/shm # tmpfs is the steadiest
tmp=$(mktemp -d "$store/ringside-bench.XXXXXX") || exit 1
device=''
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    [ -z "$device" ] || kill "$device" 2>/dev/null
    wait
    rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 143' TERM INT

image=$tmp/disk.qcow2
qemu-img create -q -f qcow2 "$image" 128M
qemu-io -c "write -P 0x11 0 128M" "$image" >/dev/null

guest() { # kernel and its options...
    "$RINGSIDE_BUILD/bin/ringside-blk" "--socket-path=$tmp/disk.sock" "--blk-file=$image" &
    device=$!
    for _ in $(seq 100); do
        [ ! -S "$tmp/disk.sock" ] || break
        sleep 0.05
    done
    timeout -k 5 300 qemu-system-x86_64 -accel tcg -M q35,memory-backend=mem -m 640 -smp 1 -nodefaults -no-user-config \
        -no-reboot -display none -monitor none -object memory-backend-memfd,id=mem,size=640M,share=on \
        -chardev stdio,id=console -serial chardev:console -device isa-debug-exit,iobase=0xf4,iosize=4 \
        -chardev "socket,id=disk,path=$tmp/disk.sock" \
        -device vhost-user-blk-pci,chardev=disk,num-queues=1,queue-size=128 "$@" </dev/null 2>&1 | tr -d '\r'
    kill "$device"
    wait "$device"
    device=''
}

for ((run = 1; run <= runs; run++)); do
    echo "run $run of $runs" >&2
    for rw in randread randwrite; do
        for qd in 1 32; do
            iops=$(guest -kernel "$RINGSIDE_BUILD/guest/x86_64/bench.elf" \
                -append "rw=$rw qd=$qd bs=4096 runtime=$runtime size=64M" | sed -n '/^{/,$p' | jq -r .iops)
            echo "bench.elf $rw $qd ${iops:-0}"
        done
    done
    guest -kernel "$linux/vmlinuz" -initrd "$linux/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable clocksource=tsc job=bench rw=randread,randwrite qd=1,32 bs=4k size=64m runtime=$runtime" |
        sed -n 's/^fio rw=\([a-z]*\) qd=\([0-9]*\) iops=\([0-9]*\)/linux \1 \2 \3/p'
done >"$tmp/figures"

awk '
    { key = $2 " " $3; n = ++count[$1, key]; value[$1, key, n] = $4; keys[key] = 1 }
    function sorted(who, key,   i, j, t) {
        for (i = 1; i <= count[who, key]; i++) v[i] = value[who, key, i] + 0
        for (i = 2; i <= count[who, key]; i++)
            for (j = i; j > 1 && v[j] < v[j - 1]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
        return count[who, key]
    }
    function column(who, key,   n) {
        n = sorted(who, key)
        median = n ? v[int((n + 1) / 2)] : 0
        return sprintf("%8d (%d to %d)", median, n ? v[1] : 0, n ? v[n] : 0)
    }
    END {
        printf "%-10s %5s  %-28s %-28s %s\n", "4 KiB", "depth", "bench.elf, per second", "Linux and fio, per second", "ratio"
        split("randread 1,randread 32,randwrite 1,randwrite 32", order, ",")
        for (i = 1; i <= 4; i++) {
            split(order[i], part, " ")
            ours = column("bench.elf", order[i]); a = median
            theirs = column("linux", order[i]); b = median
            printf "%-10s %5d  %-28s %-28s %.2f\n", part[1], part[2], ours, theirs, b ? a / b : 0
            worse += a < b || b == 0
        }
        exit worse > 0
    }' "$tmp/figures"
