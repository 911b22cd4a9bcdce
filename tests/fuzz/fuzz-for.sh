#!/usr/bin/env bash
# Runs a fuzzer until it has used so many seconds of CPU, however busy the machine is; each round goes on from what the
# corpus has become. Fails at the first finding. The last line says what was done.
#
#   [FUZZ_ACCOUNT=FILE] tests/fuzz/fuzz-for.sh CPU-SECONDS PROGRAM CORPUS [OPTION...]
#
# FUZZ_ACCOUNT: a file in which the seconds are kept, so that a run that was ended goes on where it was.
set -u
goal=$1 program=$2
shift 2
runs=0 rounds=0 before=0
account=${FUZZ_ACCOUNT:-}
[ -z "$account" ] || [ ! -s "$account" ] || read -r before runs <"$account"

# What all children that have ended have used, and what was used before: in $used. Not in a subshell, which has none.
count_cpu() {
    times >"$log"
    used=$(awk -v sum="$before" 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, part, /[ms]/); sum += part[1] * 60 + part[2] }
        printf "%d", sum }' "$log")
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
count_cpu
while [ "$used" -lt "$goal" ]; do
    left=$((goal - used))
    "$program" -max_total_time=$((left < 120 ? left + 1 : 120)) -print_final_stats=1 -close_fd_mask=2 "$@" >"$log" 2>&1
    status=$?
    rounds=$((rounds + 1))
    round=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    runs=$((runs + ${round:-0}))
    if [ $status -ne 0 ]; then
        tail -n 60 "$log"
        count_cpu
        echo "$(basename "$program"): exit status $status after $used CPU seconds, $runs inputs"
        exit 1
    fi
    grep -aE 'DONE' "$log" | tr -d '\r'
    count_cpu
    [ -z "$account" ] || echo "$used $runs" >"$account"
done
echo "$(basename "$program"): $used CPU seconds in $rounds rounds, $runs inputs, no finding"
