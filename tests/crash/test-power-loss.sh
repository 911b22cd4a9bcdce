#!/usr/bin/env bash
# Power loss at any moment: qemu-img check finds leaks at most, and no flushed byte is lost (qcow2 checklist O1-O4).
# Short: 80 different states a workload, about 2,500; RINGSIDE_SIZE=long: 3,300 and every prefix, over 100,000.
. "$(dirname "$0")/../lib.sh"
if [ -n "$long" ]; then how=(--states=3300 --points=150 --prefixes); else how=(--states=80); fi
in_memory 1000
for workload in $("$tools/tool_crash" --list); do
    mkdir "$memory/$workload"
    ok "power loss: $workload" "$tools/tool_crash" --dir="$memory/$workload" --workload="$workload" --seed="${SEED:-1}" "${how[@]}"
    if [ -e "$memory/$workload/log" ] && ! tail -n 1 "$tmp/case.log" | grep -q 'all well'; then
        rm -rf "$RINGSIDE_BUILD/tests/power-loss-$workload"
        mv "$memory/$workload" "$RINGSIDE_BUILD/tests/power-loss-$workload"
    fi
    rm -rf "${memory:?}/$workload"
done
done_testing
