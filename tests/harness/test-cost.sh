#!/usr/bin/env bash
# What a request costs our device in steady state: no heap allocation, no lock, at most 0.2 system calls. Counts, not
# times: the load of the machine does not matter.
. "$(dirname "$0")/../lib.sh"

# bench OUTPUT OPTION...: so many requests, at depth 32, that single events of the machine do not show
bench() {
    local out=$1
    shift
    timeout 120 "$bin/ringside" bench --json --qd=32 --ramp=0.2 --ops=100000 --runtime=100 "$@" >"$out"
}

# at_most FILE FIELD LIMIT: a figure of the device; unknown passes only where it can't be had
at_most() {
    local value
    value=$(jq ".device.$2" "$1")
    echo "$2 is $value, the limit $3"
    [ "$value" != null ] && jq -en "input | .device.$2 <= $3" "$1" >/dev/null
}

has_syscalls() { jq -en 'input | .device.syscalls_per_request != null' "$1" >/dev/null; }

# judge NAME LIMIT OPTION...
judge() {
    local name=$1 limit=$2 out=$tmp/bench.json
    shift 2
    ok "$name runs" bench "$out" "$@"
    # A few events of the measuring itself and of timers are allowed for; a request's own would be thousands.
    ok "$name: no heap allocation for a request" at_most "$out" allocations_per_request 0.001
    ok "$name: no lock for a request" at_most "$out" locks_per_request 0.001
    if has_syscalls "$out"; then
        ok "$name: at most $limit system calls a request" at_most "$out" syscalls_per_request "$limit"
    else
        skip "$name: system calls" "this kernel does not let us count them"
    fi
}

# tmpfs takes O_DIRECT and is the steadiest store; elsewhere the same counts hold
in_memory 300
store=$memory
qemu-img create -q -f raw "$store/disk.raw" 64M
qemu-img create -q -f qcow2 -o cluster_size=64k "$store/disk.qcow2" 64M
qemu-io -f raw -c 'write -q -P 7 0 64M' "$store/disk.raw"
qemu-io -f qcow2 -c 'write -q -P 7 0 64M' "$store/disk.qcow2"

judge "null, random reads" 0.05 --format=null --size=64m
judge "null, packed ring" 0.05 --format=null --size=64m --ring=packed
judge "raw, random reads" 0.2 --blk-file="$store/disk.raw" --format=raw
judge "qcow2 fully written, random reads" 0.2 --blk-file="$store/disk.qcow2"
judge "qcow2 fully written, random writes" 0.2 --blk-file="$store/disk.qcow2" --rw=randwrite
judge "qcow2 fully written, sequential reads" 0.2 --blk-file="$store/disk.qcow2" --rw=read
done_testing
