#!/usr/bin/env bash
# The fuzzers of qcow2 images, from images that qemu-img made: damaged images do no harm, and memory stays bounded. Short: some
# thousand of them; RINGSIDE_SIZE=long: half an hour of CPU on each.
. "$(dirname "$0")/../lib.sh"
here=$(dirname "$0")

ok "seeds by qemu-img" "$here/qcow2-seeds.sh" "$tmp/seeds"
timeout=200 # seconds of the clock for an input; how much may be done for one is for the long runs to find out
[ -z "$long" ] || timeout=60
for what in open read check repair keep write; do
    fuzz=$RINGSIDE_BUILD/fuzz/qcow2_${what}_fuzz
    mkdir "$tmp/$what"
    options=(-seed="${SEED:-1}" -max_len=300000 -timeout="$timeout" -rss_limit_mb=1024 -artifact_prefix="$RINGSIDE_BUILD/fuzz/$what-")
    if [ -n "$long" ]; then
        ok "$what: half an hour of CPU, no finding" "$here/fuzz-for.sh" 1800 "$fuzz" "$tmp/$what" "$tmp/seeds" "${options[@]:1}"
    else
        ok "$what: 1500 damaged images do no harm" "$fuzz" "$tmp/$what" "$tmp/seeds" -runs=1500 "${options[@]}"
    fi
done
done_testing
