#!/usr/bin/env bash
# Our device before the judge and on the rack: every rule holds (or does not apply); each of 600 malformed messages, rings
# and requests and of 300 rounds of chance is lived through, and leaves no descriptor, memory or coroutine behind. Also in a process of its own, and under the sanitizers.
. "$(dirname "$0")/../lib.sh"

judged() { # file: no rule failed, and enough rules applied
    jq -r '.rules[] | select(.verdict == "FAIL") | "\(.section) \(.rule) [\(.ring)]: \(.why)"' "$1"
    jq -en 'input | .fail == 0 and .pass >= 60' "$1"
}

conform() {
    timeout 600 "$@" --json >"$tmp/conform.json"
    judged "$tmp/conform.json"
}

tortured() {
    timeout 600 "$@" --json >"$tmp/torture.json" 2>"$tmp/torture.err"
    local status=$?
    jq -r '.rows[] | select(.lives | not) | "\(.case): \(.outcome); \(.why)"' "$tmp/torture.json"
    jq '{cases, failed, not_run, left_over}' "$tmp/torture.json"
    grep -A 20 -E 'Sanitizer|runtime error' "$tmp/torture.err"
    [ $status -eq 0 ] && jq -en 'input | .cases >= 900 and .failed == 0 and .not_run == 0 and .left_over == 0' "$tmp/torture.json"
}

quiet() { # what the control socket says when nobody is connected
    device_stats "$tmp/control" '.coroutines.alive <= 2 and .device.in_flight == 0 and (.connection.connected | not)'
}

# Rules that write where they like do not hold on a host-managed disk; those of its own chapter must.
zoned() {
    truncate -s 16M "$tmp/zoned.raw"
    timeout 120 "$bin/ringside" conform --blk-file="$tmp/zoned.raw" --format=raw --json --only=zone \
        "--zoned=zone-size=1M,conventional=1,max-open=2,max-active=3,max-append=64k" >"$tmp/zoned.json"
    jq -r '.rules[] | select(.verdict == "FAIL") | "\(.section) \(.rule): \(.why)"' "$tmp/zoned.json"
    jq -en 'input | .fail == 0 and .pass >= 9' "$tmp/zoned.json"
}

qemu-img create -q -f qcow2 "$tmp/disk.qcow2" 64M
ok "every rule holds on a raw image" conform "$bin/ringside" conform
ok "every rule holds on a qcow2 image" conform "$bin/ringside" conform --blk-file="$tmp/disk.qcow2"
ok "every rule holds on a read-only image" conform "$bin/ringside" conform --blk-file="$tmp/disk.qcow2" --read-only
ok "every rule holds with blocks of 4096 bytes" conform "$bin/ringside" conform --logical-block-size=4096
ok "every rule holds on a zoned disk" zoned
ok "the image is sound after it" qemu-img check -q "$tmp/disk.qcow2"
ok "a disk that forgets is found out" sh -c "! timeout 120 '$bin/ringside' conform --format=null >'$tmp/null.log' && grep -q 'FAIL.*reads back' '$tmp/null.log'"
ok "rules can be listed" sh -c "[ \$(timeout 120 '$bin/ringside' conform --list | wc -l) -ge 60 ]"
ok "the device lives through torture" tortured "$bin/ringside" torture

start device "$bin/ringside-blk" --socket-path="$tmp/device.sock" --blk-file="$tmp/disk.qcow2" --num-queues=2 \
    --control="$tmp/control"
ok "ringside-blk serves" wait_for 60 listens "$tmp/device.sock"
ok "ringside-blk: every rule holds" conform "$bin/ringside" conform --device="$tmp/device.sock"
ok "ringside-blk lives through torture" tortured "$bin/ringside" torture --device="$tmp/device.sock" --seed=77
ok "ringside-blk: every rule still holds" conform "$bin/ringside" conform --device="$tmp/device.sock"
ok "ringside-blk has no request in flight, and no more coroutines than wait for the next front end" wait_for 60 quiet
stop device
ok "ringside-blk ends well" test "$stopped" -eq 0

for sanitizer in asan tsan; do
    if [ -x "$RINGSIDE_BUILD/$sanitizer/bin/ringside" ]; then
        ok "conform under $sanitizer" conform "$RINGSIDE_BUILD/$sanitizer/bin/ringside" conform
        ok "torture under $sanitizer" tortured "$RINGSIDE_BUILD/$sanitizer/bin/ringside" torture ${long:+--rounds=3000}
    else
        skip "conform and torture under $sanitizer" "not built"
    fi
done

if command -v qemu-storage-daemon >/dev/null; then
    qemu-img create -q -f raw "$tmp/stranger.raw" 64M
    start qsd qemu-storage-daemon --blockdev "driver=file,node-name=f,filename=$tmp/stranger.raw" \
        --export "vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=$tmp/qsd.sock,writable=on,num-queues=2"
    wait_for 60 listens "$tmp/qsd.sock"
    timeout 600 "$bin/ringside" conform --device="$tmp/qsd.sock" --json >"$tmp/qsd.json" 2>"$tmp/qsd.err"
    ok "a stranger's device is judged to the end" jq -en 'input | .pass >= 40 and (.rules | length) >= 60' "$tmp/qsd.json"
    stop qsd
else
    skip "a stranger's device is judged to the end" "qemu-storage-daemon is not installed"
fi
done_testing
