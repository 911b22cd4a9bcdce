#!/usr/bin/env bash
# The guest's driver on a disk that lies (tool_hostile): every request is answered, once, in bounded time, and what
# succeeded is right. When the disk tells the truth again, it works again.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

# A disk that tells the truth may miss a short deadline on a machine that stalls: what fails is to hold with a long one.
endures() { # architecture, ring, lie, how often, what the guest expects
    with_deadline 150 "$@" || with_deadline 3000 "$@"
}

with_deadline() { # milliseconds, as for endures
    local packed=off deadline=$1
    shift
    [ "$2" = split ] || packed=on
    rm -f "$tmp/hostile.sock"
    start hostile "$tools/tool_hostile" "$tmp/hostile.sock" "$2" "$3" "$4"
    wait_for 60 listens "$tmp/hostile.sock" || return 1
    boot --arch="$1" --ring="$2" --app=endure --device=none --append="deadline-ms=$deadline requests=96 expect=$5" -- \
        -chardev "socket,id=disk,path=$tmp/hostile.sock" -device "vhost-user-blk-pci,chardev=disk,num-queues=1,queue-size=64,packed=$packed"
    local status=$?
    stop hostile KILL
    return $status
}

arches=x86_64
[ -z "$long" ] || arches="x86_64 aarch64 riscv64"
for arch in $arches; do
    for ring in split packed; do
        for lie in wrong-id idle-id long-len short-len idx-jump twice no-status bad-status silence no-interrupt spurious \
            after-reset; do
            ok "$arch, $ring: $lie, twice, and then the truth" endures "$arch" $ring "$lie" 2 alive
            sed -n 's/^# .*recoveries.*/&/p' "$tmp/case.log" | tr -d '\r'
        done
        for lie in wrong-id silence no-status; do
            ok "$arch, $ring: $lie, for ever" endures "$arch" $ring "$lie" 1000000 anything
            sed -n 's/^# .*recoveries.*/&/p' "$tmp/case.log" | tr -d '\r'
        done
    done
done
done_testing
