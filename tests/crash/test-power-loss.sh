#!/usr/bin/env bash
# Power loss at any moment: qemu-img check finds leaks at most, and no flushed byte is lost (qcow2 checklist O1-O4).
. "$(dirname "$0")/../lib.sh"
if [ -n "$long" ]; then seeds=50 states=100 ops=600; else seeds=1 states=100 ops=400; fi
for workload in $("$tools/tool_crash" --list); do
    mkdir "$tmp/$workload"
    ok "power loss: $workload, $((seeds * states)) states" "$tools/tool_crash" --dir="$tmp/$workload" \
        --workload="$workload" --seed="${SEED:-1}" --seeds=$seeds --states=$states --ops=$ops
    rm -rf "${tmp:?}/$workload"
done
done_testing
