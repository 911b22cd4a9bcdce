#!/usr/bin/env bash
# The image grows under a running driver: the device announces it (5.2.6.2), the transport hears it on the back end's own
# channel, the driver reads the configuration again; then the new part can be used.
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f qcow2 "$tmp/disk.qcow2" 32M
start device "$bin/ringside-blk" --socket-path="$tmp/device.sock" --blk-file="$tmp/disk.qcow2" --control="$tmp/control.sock"
ok "ringside-blk serves" wait_for 60 listens "$tmp/device.sock" "$tmp/control.sock"
start watcher "$bin/ringside" info --device="$tmp/device.sock" --watch=1000

resize() { # bytes
    answers "$tmp/control.sock" "{\"command\":\"resize\",\"bytes\":$1}" .return
}

ok "the driver is there" wait_for 60 grep -q 'max_discard_seg\|writeback' "$tmp/watcher.log"
ok "the disk grows" resize $((48 << 20))
ok "the driver sees it" wait_for 60 grep -q "capacity now $((48 << 20)) bytes" "$tmp/watcher.log"
stop watcher
ok "the whole of it can be used" timeout 120 "$bin/ringside" verify --device="$tmp/device.sock" --span=48m --bytes=4m
stop device
ok "the image is sound" qemu-img check -q "$tmp/disk.qcow2"
done_testing
