#!/usr/bin/env bash
# qcow2 over a simulated disk: several loops, faults and power losses at any step, under one seed each. What was
# flushed is there, no sector is torn or another's, and check finds at most leaked clusters.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"

tool=$tools/tool_sim_qcow2
seeds=${long:+5000}
seeds=${seeds:-60}

ok "seeds 1 to $seeds: nothing flushed is lost, nothing is mixed up" timeout 3600 "$tool" --seed=1 --seeds="$seeds"
start=100000
[ -n "$long" ] && start=$((RANDOM * 32768 + RANDOM + 100000)) # what chance finds is no matter of what was changed
ok "20 seeds from $start: the same" timeout 600 "$tool" --seed=$start --seeds=20
ok "a seed is a complete description of its run" timeout 120 "$tool" --seed=7 --seeds=5 --twice

# A disk whose flushes do nothing must be found out, or the cases above show nothing.
caught=0
for seed in 1 2 3 4 5 6; do
    timeout 120 "$tool" --seed=$seed --lying-disk >"$tmp/lying.log" 2>&1
    [ $? -eq 1 ] && caught=$((caught + 1))
done
ok "a disk that lies about flushes is caught for most seeds ($caught of 6)" test $caught -ge 3

if command -v qemu-img >/dev/null; then
    mkdir "$tmp/saved"
    checked() {
        local image status
        timeout 120 "$tool" --seed=500 --seeds=12 --save="$tmp/saved" || return 1
        for image in "$tmp/saved"/*/*.qcow2; do
            timeout 120 qemu-img check -f qcow2 "$image" >"$tmp/check.log" 2>&1
            status=$?
            # 3: leaked clusters only; a dirty image (lazy refcounts) is repaired when it is opened for writing.
            if [ $status -ne 0 ] && [ $status -ne 3 ]; then
                timeout 120 qemu-img info -f qcow2 "$image" | grep -q 'lazy refcounts: true' && continue
                echo "$image: qemu-img check says $status"
                cat "$tmp/check.log"
                return 1
            fi
        done
    }
    ok "qemu-img check agrees: at most leaked clusters" checked
else
    skip "qemu-img check agrees" "needs qemu-img"
fi
done_testing
