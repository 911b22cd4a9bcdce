#!/usr/bin/env bash
# The guest's self-test on every architecture, over every transport, with both ring layouts, on our device and on
# QEMU's. Short runs take 4 queues for one ring and 1 for the other, long ones both for both.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

for device in ringside qemu; do
    for arch in x86_64 aarch64 riscv64; do
        for transport in pci mmio; do
            for ring in split packed; do
                queue_counts=4
                [ "$ring" = split ] || queue_counts=1
                [ -z "$long" ] || queue_counts="1 4"
                for queues in $queue_counts; do
                    make_image "$tmp/disk.qcow2" 16M
                    ok "$arch, $transport, $ring ring, $queues queues, $device" boot --arch="$arch" \
                        --transport="$transport" --ring="$ring" --queues="$queues" --device="$device" \
                        --image="$tmp/disk.qcow2"
                    ok "and the image is sound" image_sound "$tmp/disk.qcow2"
                done
            done
        done
    done
done
done_testing
