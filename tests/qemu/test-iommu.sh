#!/usr/bin/env bash
# The disk behind an IOMMU (ringside-blk --iommu, ACCESS_PLATFORM): every address goes through QEMU, which is asked for
# it and takes it back. The self-test leaves the IOMMU as it finds it; Linux maps each request and takes it back.
#
# An Intel IOMMU with device-iotlb=on tells vhost about what is taken back only for devices with ATS, which a disk on
# the root bus cannot have: it goes behind a port.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"

linux=$RINGSIDE_BUILD/linux
kernel=$RINGSIDE_BUILD/guest/x86_64/selftest.elf

translations() { # so far
    device_stats "$tmp/control" .connection.translations
}

behind() { # image, queues, IOMMU, properties of the disk, seconds, QEMU-OPTION...
    local image=$1 queues=$2 iommu=$3 properties=$4 seconds=$5
    shift 5
    make_image "$image" 64M
    start device "$bin/ringside-blk" "--socket-path=$tmp/disk.sock" "--control=$tmp/control" --iommu "--num-queues=$queues" \
        --iothreads=2 "$image"
    wait_for 60 listens "$tmp/disk.sock" || return 1
    timeout -k 5 "$seconds" qemu-system-x86_64 -accel tcg -M q35,memory-backend=mem -m 640 -smp "$queues" -nodefaults \
        -no-user-config -no-reboot -display none -monitor none -serial stdio \
        -object memory-backend-memfd,id=mem,size=640M,share=on -device "$iommu" -device pcie-root-port,id=root1 \
        -chardev "socket,id=disk,path=$tmp/disk.sock" \
        -device "vhost-user-blk-pci,chardev=disk,bus=root1,disable-legacy=on,iommu_platform=on,num-queues=$queues,$properties" \
        -device isa-debug-exit,iobase=0xf4,iosize=4 "$@" </dev/null 2>&1 | tr -d '\r' >"$tmp/guest.log"
    cat "$tmp/guest.log" "$tmp/device.log"
    asked=$(translations)
    stop device
    echo "$asked translations"
    [ "$stopped" -eq 0 ] && [ ! -s "$tmp/device.log" ] && [ "$asked" -gt 0 ]
}

selftest() { # as behind, but for the kernel
    behind "$@" 300 -kernel "$kernel" -append "" && grep -q '^[0-9]* passed, 0 failed' "$tmp/guest.log" &&
        image_sound "$1"
}

boot_linux() { # image, queues, properties, words
    behind "$1" "$2" intel-iommu,device-iotlb=on "$3" 500 -kernel "$linux/vmlinuz" -initrd "$linux/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 tsc=unstable job=files queues=$2 intel_iommu=on $4" &&
        grep -q '^linux guest: passed' "$tmp/guest.log" && image_sound "$1"
}

intel="intel-iommu,device-iotlb=on"
ok "the self-test behind an Intel IOMMU, packed ring, 2 queues" selftest "$tmp/intel.qcow2" 2 $intel packed=on,ats=on
ok "the self-test behind a virtio IOMMU, split ring" selftest "$tmp/virtio.qcow2" 1 virtio-iommu-pci queue-size=256
if [ -n "$long" ]; then
    if "$top/tests/qemu/make-linux-guest" "$linux" >"$tmp/make.log" 2>&1; then
        ok "Linux that takes addresses back at once" boot_linux "$tmp/strict.qcow2" 1 ats=on iommu.strict=1
        ok "Linux that takes addresses back later, packed ring, 2 queues" boot_linux "$tmp/lazy.qcow2" 2 packed=on,ats=on \
            iommu.strict=0
    else
        skip "Linux behind an Intel IOMMU" "$(tail -n 1 "$tmp/make.log")"
    fi
fi
done_testing
