#!/usr/bin/env bash
# Runs a fuzzer until it has used so many seconds of CPU, however busy the machine is; each round goes on from what the
# corpus has become. Fails at the first finding. The last line says what was done.
#
#   tests/fuzz/fuzz-for.sh CPU-SECONDS PROGRAM CORPUS [OPTION...]
set -u
goal=$1 program=$2
shift 2
runs=0 rounds=0

cpu_seconds() { # of all children that have ended
    times | awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, part, /[ms]/); sum += part[1] * 60 + part[2] } printf "%d", sum }'
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
while used=$(cpu_seconds) && [ "$used" -lt "$goal" ]; do
    left=$((goal - used))
    "$program" -max_total_time=$((left < 300 ? left + 1 : 300)) -print_final_stats=1 -close_fd_mask=2 "$@" >"$log" 2>&1
    status=$?
    rounds=$((rounds + 1))
    round=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    runs=$((runs + ${round:-0}))
    if [ $status -ne 0 ]; then
        tail -n 60 "$log"
        echo "$(basename "$program"): exit status $status after $(cpu_seconds) CPU seconds, $runs inputs"
        exit 1
    fi
    grep -E 'DONE' "$log"
done
echo "$(basename "$program"): $used CPU seconds in $rounds rounds, $runs inputs, no finding"
