#!/usr/bin/env bash
# What a request costs the driver, in instructions: submit, kick and poll, depth 32, on a device that does nothing.
# Instructions are counted, so the load of the machine does not matter.
. "$(dirname "$0")/../lib.sh"

limit=400 rounds=100

# cost FORMAT INDIRECT_SEGS EVENT_IDX: prints instructions a request
cost() {
    timeout 300 valgrind --tool=callgrind --collect-atstart=no --callgrind-out-file="$tmp/callgrind.out" \
        --toggle-collect=vblk_submit --toggle-collect=vblk_kick --toggle-collect=vblk_poll \
        "$tools/tool_driver_cost" "$@" $rounds >"$tmp/valgrind.log" 2>&1 || return 1
    awk -v n=$((rounds * 32)) '/^(totals|summary):/ { print int($2 / n); exit }' "$tmp/callgrind.out"
}

under_limit() {
    local instructions
    instructions=$(cost "$@") || return 1
    echo "# $*: $instructions instructions a request" >&3
    [ "$instructions" -gt 0 ] && [ "$instructions" -lt $limit ]
}

exec 3>&1
if ! command -v valgrind >/dev/null; then
    skip "instructions a request" "no valgrind"
else
    ok "split ring: under $limit instructions a request" under_limit split 0 1
    ok "split ring without EVENT_IDX: under $limit" under_limit split 0 0
    ok "split ring, indirect tables: under $limit" under_limit split 8 1
    ok "packed ring: under $limit" under_limit packed 0 1
    ok "packed ring, indirect tables: under $limit" under_limit packed 8 1
fi
done_testing
