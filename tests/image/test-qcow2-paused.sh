#!/usr/bin/env bash
# A copy of an image that is made while the front end is away, or while the disk is drained, has all that was written.
. "$(dirname "$0")/../lib.sh"
image=$tmp/image.qcow2
qemu-img create -q -f qcow2 "$image" 64M
start blk "$bin/ringside-blk" --socket-path="$tmp/socket" --control="$tmp/control" --blk-file="$image"
ok "the device is up" wait_for 10 test -S "$tmp/socket"

complete_copy() {
    "$bin/ringside" bench --device="$tmp/socket" --rw=write --bs=64k --ramp=0 --ops=800 --span=50M >/dev/null || return 1
    local i
    for i in 1 2 3 4 5 6 7 8 9 10; do # the device notices that the front end has gone a moment later
        cp "$image" "$tmp/copy.qcow2"
        qemu-img check "$tmp/copy.qcow2" && [ "$(qemu-img check --output=json "$tmp/copy.qcow2" |
            sed -n 's/.*"allocated-clusters": \([0-9]*\).*/\1/p')" -ge 790 ] && return 0
        sleep 0.3
    done
    return 1
}
ok "after the front end has gone, all is in the file" complete_copy
stop blk
ok "and the device ends well" test "$stopped" -eq 0
done_testing
