#!/usr/bin/env bash
# A copy of an image that is made while the front end is away, or while the disk is drained, has all that was written.
. "$(dirname "$0")/../lib.sh"
image=$tmp/image.qcow2
qemu-img create -q -f qcow2 "$image" 64M
start blk "$bin/ringside-blk" --socket-path="$tmp/socket" --control="$tmp/control" --blk-file="$image"
ok "the device is up" wait_for 60 listens "$tmp/socket"

complete_copy() {
    "$bin/ringside" bench --device="$tmp/socket" --rw=write --bs=64k --ramp=0 --ops=800 --runtime=100 --span=50M >/dev/null || return 1
    wait_for 60 complete # the device notices that the front end has gone a moment later
}
complete() {
    cp "$image" "$tmp/copy.qcow2"
    qemu-img check "$tmp/copy.qcow2" && [ "$(qemu-img check --output=json "$tmp/copy.qcow2" |
        sed -n 's/.*"allocated-clusters": \([0-9]*\).*/\1/p')" -ge 790 ]
}
ok "after the front end has gone, all is in the file" complete_copy
stop blk
ok "and the device ends well" test "$stopped" -eq 0
done_testing
