#!/usr/bin/env bash
# The guest's driver on a disk that lies (tool_hostile): every request is answered, once, in bounded time, and what
# succeeded is right. When the disk tells the truth again, it works again.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

endures() { # architecture, lie, how often, what the guest expects
    rm -f "$tmp/hostile.sock"
    start hostile "$tools/tool_hostile" "$tmp/hostile.sock" "$2" "$3"
    wait_for 10 test -S "$tmp/hostile.sock" || return 1
    boot --arch="$1" --app=endure --device=none --append="deadline-ms=150 requests=96 expect=$4" -- \
        -chardev "socket,id=disk,path=$tmp/hostile.sock" -device "vhost-user-blk-pci,chardev=disk,num-queues=1,queue-size=64"
    local status=$?
    stop hostile KILL
    return $status
}

arches=x86_64
[ -z "$long" ] || arches="x86_64 aarch64 riscv64"
for arch in $arches; do
    for lie in wrong-id idle-id long-len idx-jump twice no-status bad-status silence no-interrupt spurious after-reset; do
        ok "$arch: $lie, twice, and then the truth" endures "$arch" "$lie" 2 alive
        sed -n 's/^# .*recoveries.*/&/p' "$tmp/case.log" | tr -d '\r'
    done
    for lie in wrong-id silence no-status; do
        ok "$arch: $lie, for ever" endures "$arch" "$lie" 1000000 anything
        sed -n 's/^# .*recoveries.*/&/p' "$tmp/case.log" | tr -d '\r'
    done
done
done_testing
