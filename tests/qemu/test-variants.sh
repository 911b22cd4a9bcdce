#!/usr/bin/env bash
# The guest's self-test on QEMU's own device with all that can be turned off or made odd: legacy registers, no
# EVENT_IDX, no indirect descriptors, tiny and huge queues, no message interrupts, large blocks, an IOMMU's feature
# bit, read-only; and on the other PC. Long runs do it on every architecture.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

make_image "$tmp/disk.raw" 16M
arches=x86_64
window=(--app=bench --append="pci=window rw=randrw requests=100 qd=4")
if [ -n "$long" ]; then
    arches="x86_64 aarch64 riscv64"
    window=(--append=pci=window)
fi
for arch in $arches; do
    on_qemu() {
        boot --arch="$arch" --device=qemu --image="$tmp/disk.raw" "$@"
    }
    ok "$arch: legacy (disable-modern=on)" on_qemu --device-options=disable-modern=on,disable-legacy=off
    ok "$arch: legacy, no message interrupts" on_qemu --device-options=disable-modern=on,disable-legacy=off,vectors=0
    ok "$arch: modern only (disable-legacy=on)" on_qemu --device-options=disable-legacy=on
    ok "$arch: event_idx=off" on_qemu --device-options=event_idx=off
    ok "$arch: event_idx=off, packed" on_qemu --device-options=event_idx=off --ring=packed
    ok "$arch: indirect_desc=off" on_qemu --device-options=indirect_desc=off
    ok "$arch: indirect_desc=off, packed" on_qemu --device-options=indirect_desc=off --ring=packed
    ok "$arch: queue-size=4" on_qemu --queue-size=4
    ok "$arch: queue-size=4, packed" on_qemu --queue-size=4 --ring=packed
    ok "$arch: queue-size=1024" on_qemu --queue-size=1024
    ok "$arch: vectors=0" on_qemu --device-options=vectors=0
    ok "$arch: one vector for all" on_qemu --device-options=vectors=1 --queues=4
    ok "$arch: blocks of 4096 bytes" on_qemu --device-options=logical_block_size=4096,physical_block_size=4096
    ok "$arch: iommu_platform=on" on_qemu --device-options=disable-legacy=on,iommu_platform=on
    ok "$arch: eight queues" on_qemu --queues=8
    # Each access costs QEMU milliseconds, so a short run asks for little.
    ok "$arch: registers through configuration space only (4.1.4.9)" on_qemu \
        "${window[@]}"
    ok "$arch: read-only" on_qemu --read-only
    ok "$arch: legacy MMIO" on_qemu --transport=mmio -- -global virtio-mmio.force-legacy=true
done

# Odd guests on our device
make_image "$tmp/ours.qcow2" 16M
on_ringside() {
    boot --image="$tmp/ours.qcow2" "$@"
}
ok "ringside: a legacy driver" on_ringside --device-options=disable-modern=on,disable-legacy=off
ok "ringside: a legacy driver over MMIO" on_ringside --transport=mmio -- -global virtio-mmio.force-legacy=true
ok "ringside: neither EVENT_IDX nor indirect descriptors, packed" on_ringside --ring=packed \
    --device-options=event_idx=off,indirect_desc=off
ok "ringside: queue-size=4" on_ringside --queue-size=4
ok "ringside: queue-size=1024, packed, no message interrupts" on_ringside --queue-size=1024 --ring=packed \
    --device-options=vectors=0
ok "and its image is sound" image_sound "$tmp/ours.qcow2"

ok "x86_64: the machine pc instead of q35" boot --device=qemu --image="$tmp/disk.raw" -- -M pc,memory-backend=mem
ok "x86_64: without a BIOS that gives addresses" boot --device=qemu --image="$tmp/disk.raw" -- -bios qboot.rom
make_image "$tmp/second.qcow2" 32M
ok "x86_64: the second of two disks" boot --device=qemu --image="$tmp/disk.raw" --append=disk=vdb -- \
    -blockdev "driver=qcow2,node-name=second,file.driver=file,file.filename=$tmp/second.qcow2" \
    -device virtio-blk-pci,drive=second,num-queues=2
ok "what it wrote is on the second" left_by_selftest "$tmp/second.qcow2" 32
ok "aarch64: GICv2 with its message frame" boot --arch=aarch64 --device=qemu --image="$tmp/disk.raw" -- \
    -M virt,gic-version=2,memory-backend=mem
ok "aarch64: GICv3 without its translation service" boot --arch=aarch64 --device=qemu --image="$tmp/disk.raw" -- \
    -M virt,gic-version=3,its=off,memory-backend=mem
ok "aarch64: started at EL2" boot --arch=aarch64 --device=qemu --image="$tmp/disk.raw" -- \
    -M virt,gic-version=3,virtualization=on,memory-backend=mem
ok "riscv64: messages to the harts' own controllers (AIA)" boot --arch=riscv64 --device=qemu --queues=4 \
    --image="$tmp/disk.raw" -- -M virt,aia=aplic-imsic,memory-backend=mem
ok "riscv64: AIA, MMIO polled" boot --arch=riscv64 --device=qemu --transport=mmio --image="$tmp/disk.raw" -- \
    -M virt,aia=aplic-imsic,memory-backend=mem
done_testing
