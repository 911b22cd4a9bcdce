#!/usr/bin/env bash
# The device is killed (SIGKILL) at any moment and started again under a running load: the front end connects again,
# requests in flight are taken up from the inflight region, and the driver sees no error and no wrong byte. Then the
# same with SIGTERM, which finishes what is in flight. Sizes: a dozen kills a case, RINGSIDE_SIZE=long 500.
. "$(dirname "$0")/../lib.sh"

kills=4
[ -n "$long" ] && kills=500
socket=$tmp/device.sock

serve() { # image format option...
    local image=$1 format=$2
    shift 2
    start device "$bin/ringside-blk" --socket-path="$socket" --blk-file="$image" --format="$format" --num-queues=2 "$@"
}

reconnects() { # so far: the device's log has a line for nothing, so the load tells at its end
    jq -r '.reconnects' "$tmp/verify.json"
}

# restarted SIGNAL IMAGE FORMAT "DEVICE OPTIONS" VERIFY-OPTION...: a load that goes on about as long as the kills
restarted() {
    local signal=$1 image=$2 format=$3 device_options=$4 killed=0 status
    shift 4
    # shellcheck disable=SC2086 # options are words
    serve "$image" "$format" $device_options
    wait_for 20 test -S "$socket" || return 1
    start load "$bin/ringside" verify --device="$socket" --reconnect=on --inflight=on --span=32m --bytes=100g \
        --max-request=64k --runtime=$((kills / 2 + 1)) --deadline=60 --client=sleep --json "$@"
    sleep 0.3
    while kill -0 "${started[load]}" 2>/dev/null && [ $killed -lt $kills ]; do
        sleep "0.$((RANDOM % 4))$((RANDOM % 6 + 4))" # never before the program is there
        stop device "$signal"
        # shellcheck disable=SC2086
        serve "$image" "$format" $device_options
        killed=$((killed + 1))
    done
    wait "${started[load]}"
    status=$?
    unset "started[load]"
    stop device
    echo "$killed signals, exit status $status; the load said:"
    cat "$tmp/load.log"
    [ $status -eq 0 ] && grep -v '^ringside' "$tmp/load.log" >"$tmp/verify.json" && [ "$(reconnects)" -gt 0 ]
}

disk() { # raw|qcow2
    rm -f "$tmp/disk"
    qemu-img create -q -f "$1" "$tmp/disk" 32M
    [ "$1" = raw ] || qemu-io -f qcow2 -c 'write -q -P 1 0 32M' "$tmp/disk"
}

plain_writes=--refuse-features=0x6000 # no discard, no write zeroes: metadata stay as they are
disk raw
for ring in split packed; do
    ok "$ring ring: killed again and again" restarted KILL "$tmp/disk" raw "" --ring=$ring
    [ $ring = split ] && [ -z "$long" ] ||
        ok "$ring ring, two queues, a slow disk: killed" restarted KILL "$tmp/disk" raw \
            "--inject=any,mode=late,ms=2,times=always" --ring=$ring --queues=2
    [ $ring = packed ] && [ -z "$long" ] ||
        ok "$ring ring, IN_ORDER, no indirect tables: killed" restarted KILL "$tmp/disk" raw "" --ring=$ring \
            --in-order=on --indirect=off
    ok "$ring ring: asked to end and started again" restarted TERM "$tmp/disk" raw "" --ring=$ring --queues=2
done
disk qcow2
ok "qcow2, no allocations: killed" restarted KILL "$tmp/disk" qcow2 "" $plain_writes --queues=2
ok "the image is sound" qemu-img check -q "$tmp/disk"
if "$bin/ringside-blk" --help | grep -q -- --survive; then
    rm -f "$tmp/disk"
    qemu-img create -q -f qcow2 "$tmp/disk" 32M
    ok "qcow2, nothing allocated, every kind of request: killed" restarted KILL "$tmp/disk" qcow2 "--survive=$tmp" --queues=2
    # Clusters may be lost to nobody (leaks: status 3), nothing else.
    ok "the image is sound" sh -c "qemu-img check -q '$tmp/disk' || [ \$? -eq 3 ]"
else
    skip "qcow2, nothing allocated, every kind of request: killed" "no --survive in this build"
fi
disk qcow2
ok "qcow2, every kind of request: asked to end and started again" restarted TERM "$tmp/disk" qcow2 "" --queues=2
ok "the image is sound" qemu-img check -q "$tmp/disk"
done_testing
