#!/usr/bin/env bash
# `ringside trace`: a real write of 4 KiB to a cluster that was not allocated goes the twelve steps of
# docs/life-of-a-request.md, in that order.
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f qcow2 "$tmp/disk.qcow2" 64M
trace() {
    timeout 120 "$bin/ringside" trace --blk-file="$tmp/disk.qcow2" --poll-max-ns=0 --format=json "$@" >"$tmp/trace.json"
}

# The steps of KIND in the order in which they were first taken
steps() {
    jq -c --arg kind "$1" '[.requests[] | select(.kind == $kind) | .records[] | select(.again | not) | .step]' \
        "$tmp/trace.json"
}

took() {
    local got
    got=$(steps "$1")
    echo "$1 went $got"
    [ "$got" = "$2" ]
}

# STEP FUNCTION: STEP is taken in FUNCTION (and may be in others: the disk is asked for a table first, say)
function_of() {
    jq -en --argjson step "$1" --arg name "$2" \
        'input | any(.requests[0].records[]; .step == $step and .function == $name)' "$tmp/trace.json"
}

ok "trace runs one request of each kind" trace
ok "a write to an unallocated cluster goes all twelve steps in order" took write '[1,2,3,4,5,6,7,8,9,10,11,12]'
while read -r step name; do
    ok "step $step is $name" function_of "$step" "$name"
done <<'STEPS'
1 vblk_submit
2 kick
3 virtio_blk_handle_queue
4 multireq_submit
5 blk_aio_pwritev
6 node_co_pwritev
7 qcow2_co_pwritev
8 file_co_pwritev
9 loop_run
10 qcow2_link_l2
12 vblk_poll
STEPS
ok "again, on the same image" trace
ok "its write is one to an unallocated cluster again" took write '[1,2,3,4,5,6,7,8,9,10,11,12]'
ok "a write to an allocated cluster links nothing" took rewrite '[1,2,3,4,5,6,7,8,9,11,12]'
ok "a read goes the same way" took read '[1,2,3,4,5,6,7,8,9,11,12]'
ok "times never go back" jq -en 'input | all(.requests[].records; . == sort_by(.ns))' "$tmp/trace.json"

text() { timeout 120 "$bin/ringside" trace --blk-file="$tmp/disk.qcow2" --format=text --only=read; }
html() { timeout 120 "$bin/ringside" trace --blk-file="$tmp/disk.qcow2" --format=html; }
ok "as text" sh -c "$(declare -f text); bin=$bin tmp=$tmp; text | grep -q 'virtio_blk_handle_queue'"
ok "as a page" sh -c "$(declare -f html); bin=$bin tmp=$tmp; html | grep -q '</html>'"
done_testing
