#!/usr/bin/env bash
# Both halves under one seed: chance decides rings, features, image, schedule, faults and power losses; whatever it
# decides, what was flushed is there, nothing is mixed up, and every request is answered.
. "$(dirname "$0")/../lib.sh"

seeds=60 steps=400
[ -n "$long" ] && seeds=20000 steps=2000

sim() { timeout 3000 "$bin/ringside" sim "$@"; }
ok "$seeds seeds" sim --seed=1 --seeds=$seeds --steps=$steps
# A seed of the day belongs to long runs: what it finds has nothing to do with what was changed today.
more=20260101000
[ -n "$long" ] && more=$(date +%Y%m%d)000
ok "another $seeds, from seed $more" sim --seed="$more" --seeds=$seeds --steps=$steps
ok "a seed takes the same steps again" sim --seed=7 --seeds=6 --steps=$steps --replay
ok_not "a disk whose flushes do nothing is found out" sim --seed=1 --seeds=20 --steps=$steps --lying-disk
ok "results in JSON" sh -c "timeout 120 '$bin/ringside' sim --seed=3 --steps=200 --json | jq -en 'input | .passed and .runs[0].requests >= 200'"
if [ -x "$RINGSIDE_BUILD/asan/bin/ringside" ]; then
    ok "under asan" timeout 3000 "$RINGSIDE_BUILD/asan/bin/ringside" sim --seed=100 --seeds=$((seeds / 4)) --steps=$steps
else
    skip "under asan" "not built"
fi
done_testing
