#!/usr/bin/env bash
# The guest's self-test on our device and on QEMU's, on qcow2 and on raw images; afterwards the image is sound and
# QEMU reads from it what the guest wrote.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

passes_and_leaves() { # what, image, options...
    local what=$1 image=$2
    shift 2
    make_image "$image" 64M
    ok "selftest passes: $what" boot --image="$image" "$@"
    ok "the image is sound: $what" image_sound "$image"
    ok "QEMU reads what the guest wrote: $what" left_by_selftest "$image" 64
}

passes_and_leaves "ringside, qcow2, four queues" "$tmp/a.qcow2" --device=ringside --queues=4
passes_and_leaves "ringside, raw, one queue" "$tmp/b.raw" --device=ringside --queues=1
passes_and_leaves "QEMU's device, qcow2, one queue" "$tmp/c.qcow2" --device=qemu --queues=1
passes_and_leaves "QEMU's device, raw, four queues" "$tmp/d.raw" --device=qemu --queues=4

# What the guest of before wrote is a new guest's to read, on the other device.
ok "the same image on QEMU's device" boot --image="$tmp/a.qcow2" --device=qemu
ok "the image is still sound" image_sound "$tmp/a.qcow2"
ok "the other image on ringside, read-only" boot --image="$tmp/c.qcow2" --device=ringside --read-only
ok "it holds what it held" left_by_selftest "$tmp/c.qcow2" 64
done_testing
