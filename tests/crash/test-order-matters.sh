#!/usr/bin/env bash
# The crash tests can fail: they notice L2 entries written before the refcounts they stand on (qcow2 checklist O3).
. "$(dirname "$0")/../lib.sh"
for workload in allocate clusters4k backing-raw queues; do
    mkdir "$tmp/$workload"
    ok_not "the wrong order is noticed: $workload" "$tools/tool_crash_broken" --dir="$tmp/$workload" \
        --workload="$workload" --states=400
    rm -rf "${tmp:?}/$workload"
done
done_testing
