#!/usr/bin/env bash
# The device is killed (SIGKILL) at any moment and started again under a running load: the front end connects again,
# requests in flight are taken up from the inflight region, and the driver sees no error and no wrong byte. Then the
# same with SIGTERM, which finishes what is in flight. Sizes: a dozen restarts a case, RINGSIDE_SIZE=long 500.
#
# The load runs again, with another seed, until there were enough; what counts is how often it found a new device
# (`reconnects`).
. "$(dirname "$0")/../lib.sh"

restarts=12 seconds=3
[ -n "$long" ] && restarts=500 seconds=10
socket=$tmp/device.sock
slow="--inject=any,mode=late,ms=0-4,times=always" # each request to the file as late as chance has it

serve() { # image format option...
    local image=$1 format=$2
    shift 2
    rm -f "$socket"
    start device "$bin/ringside-blk" --socket-path="$socket" --control="$tmp/control" --blk-file="$image" --format="$format" \
        --num-queues=2 --iothreads=2 "$@"
    while ! listens "$socket" "$tmp/control" && kill -0 "${started[device]}" 2>/dev/null; do sleep 0.002; done
}

connected() {
    awk -v path="$socket" '$6 == "03" && $8 == path { found = 1 } END { exit !found }' /proc/net/unix
}

works() { # has the device that runs now done something?
    device_stats "$tmp/control" 'any(.queues[].completed; . > 0)'
}

# A load with the device killed and started again for some seconds, at any moment, but mostly not before the load has
# found it: a machine that takes long to start it would see few deaths that matter. Then what is left to be done is
# let be done. Adds to `seen` and `requests`.
round() { # SIGNAL IMAGE FORMAT "DEVICE OPTIONS" VERIFY-OPTION...
    local signal=$1 image=$2 format=$3 device_options=$4 status end
    shift 4
    start load "$bin/ringside" verify --device="$socket" --reconnect=on --inflight=on --span=16m --bytes=100g \
        --max-request=64k --runtime=$seconds --deadline=60 --client=sleep --json "$@"
    wait_for 60 works || return 1
    end=$((SECONDS + seconds + 2))
    while kill -0 "${started[load]}" 2>/dev/null && [ $SECONDS -lt $end ]; do
        # The front end looks for a new one every 5 ms.
        while [ $((RANDOM % 4)) -ne 0 ] && ! connected && [ $SECONDS -lt $end ]; do sleep 0.005; done
        sleep "0.0$((RANDOM % 7))$((RANDOM % 10))"
        stop device "$signal"
        [ "$signal" = KILL ] || [ "$stopped" -eq 0 ] || echo "the device ended with status $stopped"
        # shellcheck disable=SC2086 # options are words
        serve "$image" "$format" $device_options
    done
    wait "${started[load]}"
    status=$?
    unset "started[load]"
    echo "exit status $status; the load said:"
    cat "$tmp/load.log"
    seen=$((seen + $(grep -v '^ringside' "$tmp/load.log" | jq -r .reconnects)))
    requests=$((requests + $(grep -v '^ringside' "$tmp/load.log" | jq -r .requests)))
    [ $status -eq 0 ]
}

# restarted SIGNAL IMAGE FORMAT "DEVICE OPTIONS" VERIFY-OPTION...
restarted() {
    local n passed=0
    # shellcheck disable=SC2086 # options are words
    serve "$2" "$3" $4
    for ((n = 1; n <= 20 && seen < restarts; n++)); do
        round "$@" --seed=$n || {
            passed=1
            break
        }
    done
    stop device
    [ $passed -eq 0 ] && [ "$seen" -ge $restarts ]
}

check() { # what, as for restarted
    local what=$1
    shift
    seen=0 requests=0
    ok "$what" restarted "$@"
    echo "# $seen restarts seen by the front end, $requests requests"
}

disk() { # raw|qcow2 [full]
    rm -f "$tmp/disk"
    qemu-img create -q -f "$1" "$tmp/disk" 32M
    [ -z "${2:-}" ] || qemu-io -f qcow2 -c 'write -q -P 1 0 32M' "$tmp/disk"
}

# Clusters may be lost to nobody (leaks: status 3), nothing else.
sound_but_for_leaks() {
    qemu-img check -q "$tmp/disk"
    case $? in 0 | 3) ;; *) return 1 ;; esac
}

disk raw
for ring in split packed; do
    check "$ring ring, two queues, a slow disk: killed" KILL "$tmp/disk" raw "$slow" --ring=$ring --queues=2
    if [ $ring = split ] || [ -n "$long" ]; then
        check "$ring ring, IN_ORDER, two queues, a slow disk: killed" KILL "$tmp/disk" raw "$slow" --ring=$ring --queues=2 \
            --in-order=on
    fi
    if [ -n "$long" ]; then
        check "$ring ring: killed" KILL "$tmp/disk" raw "" --ring=$ring
        check "$ring ring, IN_ORDER, no indirect tables: killed" KILL "$tmp/disk" raw "" --ring=$ring --in-order=on \
            --indirect=off
    fi
    check "$ring ring: asked to end and started again" TERM "$tmp/disk" raw "$slow" --ring=$ring --queues=2
done

# A zoned disk: an append that is taken up again goes where it went before, and leaves no hole.
for ring in split packed; do
    [ $ring = split ] && [ -z "$long" ] && continue
    disk raw
    rm -f "$tmp/zones"
    check "$ring ring, a zoned and slow disk: killed" KILL "$tmp/disk" raw \
        "--zoned=zone-size=1M,conventional=2,max-append=32k,state=$tmp/zones $slow" --ring=$ring --queues=2
done

plain_writes=--refuse-features=0x6000 # no discard, no write zeroes: metadata stay as they are
disk qcow2 full
check "qcow2, no allocations: killed" KILL "$tmp/disk" qcow2 "" $plain_writes --queues=2
ok "the image is sound" qemu-img check -q "$tmp/disk"
for ring in split packed; do
    [ $ring = split ] && [ -z "$long" ] && continue
    disk qcow2
    check "qcow2, nothing allocated, every kind of request, $ring ring, a slow disk: killed" KILL "$tmp/disk" qcow2 \
        "--survive=$tmp $slow" --ring=$ring --queues=2
    ok "the image has no errors" sound_but_for_leaks
    if [ -n "$long" ]; then
        check "qcow2 and IN_ORDER, $ring ring: killed" KILL "$tmp/disk" qcow2 "--survive=$tmp $slow" --ring=$ring --queues=2 \
            --in-order=on
        ok "the image has no errors" sound_but_for_leaks
    fi
done
disk qcow2
check "qcow2, every kind of request: asked to end and started again" TERM "$tmp/disk" qcow2 "$slow" --queues=2
ok "the image is sound" qemu-img check -q "$tmp/disk"
done_testing
