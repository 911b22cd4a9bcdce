#!/usr/bin/env bash
# The rings' litmus tests on two CPUs of a guest, each CPU a thread of QEMU's: every pair of accesses that driver and
# device publish and observe, on each architecture's own barriers.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

make_image "$tmp/disk.raw" 4M
rounds=5000
[ -z "$long" ] || rounds=500000
for arch in x86_64 aarch64 riscv64; do
    ok "$arch: litmus, $rounds rounds of each" boot --arch="$arch" --app=litmus --device=qemu --image="$tmp/disk.raw" \
        --queues=2 --append="rounds=$rounds"
    sed -n 's/^\(not \)\?ok [0-9]* - /# \1ok: /p' "$tmp/case.log" | tr -d '\r'
done
done_testing
