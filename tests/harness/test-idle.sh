#!/usr/bin/env bash
# A device with nothing to do uses no CPU at all; one with a request now and then polls no more than --poll-max-ns
# allows. By the kernel's count of what its threads ran (never once woken) and the device's count of its polls.
. "$(dirname "$0")/../lib.sh"

blk() { # option...
    rm -f "$tmp/sock" "$tmp/control"
    start device "$bin/ringside-blk" --socket-path="$tmp/sock" --control="$tmp/control" --num-queues=4 --iothreads=2 "$@"
    wait_for 60 listens "$tmp/control"
}

# For each thread of the device: nanoseconds on a CPU, how often it got one, how often it gave it up by itself
ran() {
    local task
    for task in /proc/"${started[device]}"/task/*; do
        echo "$(cat "$task/comm") $(cut -d' ' -f 1,3 "$task/schedstat") $(grep '^voluntary' "$task/status")"
    done
}

# Not one thread ran in two seconds. What was written before may have to reach the disk first.
at_rest() {
    local end=$((SECONDS + 60)) before
    while [ $SECONDS -lt $end ]; do
        before=$(ran)
        sleep 2
        [ "$before" != "$(ran)" ] || return 0
    done
    echo "before: $before"
    echo "after:  $(ran)"
    return 1
}

total() { # file, field of the iothreads
    jq "[.iothreads[].$2] | add" "$1"
}

# now_and_then GAP MOST: requests on a ring that polling was worth while on; then GAP seconds between them. The
# device spun at most MOST times for each, and each time it found nothing it slept after that.
now_and_then() {
    local gap=$1 most=$2 requests hit missed sleeps
    timeout 120 "$bin/ringside" bench --device="$tmp/sock" --ops=2000 --runtime=60 --ramp=0 --qd=1 >/dev/null || return 1
    device_stats "$tmp/control" . >"$tmp/before.json"
    timeout 120 "$bin/ringside" bench --device="$tmp/sock" --runtime=60 --ramp=0 --ops=40 --think="$gap" --qd=1 --client=sleep \
        --json >"$tmp/bench.json" || return 1
    device_stats "$tmp/control" . >"$tmp/after.json"
    requests=$(jq '[.queues[].completed] | add' "$tmp/after.json")
    requests=$((requests - $(jq '[.queues[].completed] | add' "$tmp/before.json")))
    hit=$(($(total "$tmp/after.json" polls_hit) - $(total "$tmp/before.json" polls_hit)))
    missed=$(($(total "$tmp/after.json" polls_missed) - $(total "$tmp/before.json" polls_missed)))
    sleeps=$(($(total "$tmp/after.json" sleeps) - $(total "$tmp/before.json" sleeps)))
    echo "$requests requests, $hit polls that found something, $missed that did not, $sleeps sleeps"
    [ $requests -ge 40 ] && [ $missed -le $sleeps ] && [ $((hit + missed)) -le $((requests * most)) ]
}

qemu-img create -q -f qcow2 "$tmp/disk.qcow2" 64M
blk "$tmp/disk.qcow2"
ok "nobody is connected: not one thread runs" at_rest
start idle "$bin/ringside" info --device="$tmp/sock" --queues=4 --watch=1000
ok "a front end with four rings connects" wait_for 60 grep -q negotiated "$tmp/idle.log"
ok "and does nothing: not one thread runs" at_rest
stop idle
ok "four queues are written to" timeout 120 "$bin/ringside" verify --device="$tmp/sock" --queues=4 --bytes=8m --span=32m
ok "and left: not one thread runs" at_rest
stop device

blk --format=null --size=1G
ok "a request now and then: at most one poll for each" now_and_then 0.01 1
start idle "$bin/ringside" info --device="$tmp/sock" --queues=4 --watch=1000
wait_for 60 grep -q negotiated "$tmp/idle.log"
ok "and none after them" at_rest
stop idle
stop device

blk --format=null --size=1G --poll-max-ns=0
ok "--poll-max-ns=0: no poll at all" now_and_then 0.001 0
stop device

blk --blk-file="$tmp/disk.qcow2" --poll-max-ns=1000000
ok "a millisecond of polling at most, and longer pauses: at most two polls for each request, to the disk and back" \
    now_and_then 0.01 2
stop device
done_testing
