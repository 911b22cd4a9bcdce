#!/usr/bin/env bash
# Driver and device face to face: every combination of ring, features, queues and formats against the model in
# memory, and the same driver against a stranger's device. Also under ASan+UBSan and TSan.
# RINGSIDE_SIZE=long: the full product, some thousand requests each.
#
#   test-verify.sh [plain|rest|asan|tsan|stranger|gigabyte]...      only these parts
#
# `gigabyte`, 1 GiB of requests against either device, is not in the short size; it takes a minute or two.
. "$(dirname "$0")/../lib.sh"

parts=" ${*:-plain rest asan tsan stranger ${long:+gigabyte}} "
part() { case $parts in *" $1 "*) ;; *) return 1 ;; esac }

load=(--bytes=12m)
[ -n "$long" ] && load=(--bytes=100m)
ringside=$bin/ringside

verify() { timeout 600 "$ringside" verify --span=64m "$@"; }

# So that every request type is in it (lists of several ranges are sent by hand before the driver starts), and the device judges the driver meanwhile.
every_type=(--secure-erase=on "--lifetime=1,5,6" "--audit=$tmp/audit")

audited() {
    [ ! -s "$tmp/audit" ] && return
    echo "the driver broke rules:"
    cat "$tmp/audit"
    return 1
}

# A run on a qcow2 image, what the driver saw of it exported, and QEMU's opinion: no error in the image, and
# the same bytes as the driver read.
qcow2_verify() {
    local image=$tmp/disk.qcow2
    qemu-img create -q -f qcow2 -o "cluster_size=$1" "$image" 64M || return 1
    shift
    rm -f "$tmp/audit"
    verify --blk-file="$image" --export="$tmp/export.raw" "${every_type[@]}" "$@" && audited || return 1
    qemu-img check -q "$image" || return 1
    qemu-img compare -q -f raw -F qcow2 "$tmp/export.raw" "$image"
}

raw_verify() {
    truncate -s 64M "$tmp/disk.raw"
    rm -f "$tmp/audit"
    verify --blk-file="$tmp/disk.raw" --format=raw "${every_type[@]}" "$@" && audited
}

# A host-managed zoned disk, with its limits or without
zoned_verify() {
    local zoned=zone-size=1M,conventional=3,max-append=64k
    case $* in *seed=*[13579]) zoned=zone-size=512k,max-open=3,max-active=5,max-append=32k ;; esac
    truncate -s 64M "$tmp/disk.zoned"
    rm -f "$tmp/audit"
    verify --blk-file="$tmp/disk.zoned" --format=raw --zoned=$zoned --lifetime=1,5,6 "--audit=$tmp/audit" "$@" && audited
}

# The long size takes the full product; the short one each combination of ring and features once, with queues, threads
# and format in turn (and every third time a zoned disk), and under a sanitizer every other one of them.
product() {
    local sanitizer=$1 seed=1 ring indirect event order queues threads format
    for ring in split packed; do
        for indirect in on off; do
            for event in on off; do
                for order in off on; do
                    seed=$((seed + 1))
                    for queues in 1 2 4; do
                        for threads in 1 2; do
                            for format in raw qcow2 zoned; do
                                if [ -z "$long" ]; then
                                    [ $queues = $((1 << seed % 3)) ] || continue
                                    [ $threads = $((1 + seed / 2 % 2)) ] || continue
                                    [ $format = "$([ $((seed / 4 % 2)) = 0 ] && echo raw || echo qcow2)" ] ||
                                        { [ $format = zoned ] && [ $((seed / 2 % 3)) = 1 ]; } || continue
                                    [ -z "$sanitizer" ] || [ $((seed % 2)) = 0 ] || continue
                                fi
                                one $format "$sanitizer" --ring=$ring --indirect=$indirect --event-idx=$event \
                                    --in-order=$order --queues=$queues --iothreads=$threads --seed=$seed
                            done
                        done
                    done
                done
            done
        done
    done
}

one() {
    local format=$1 sanitizer=$2
    shift 2
    case $format in
    zoned) ok "verify${sanitizer:+ under $sanitizer}: zoned $*" zoned_verify "${load[@]}" "$@" ;;
    qcow2) ok "verify${sanitizer:+ under $sanitizer}: qcow2 $*" qcow2_verify 64k "${load[@]}" "$@" ;;
    raw) ok "verify${sanitizer:+ under $sanitizer}: raw $*" raw_verify "${load[@]}" "$@" ;;
    esac
}

part plain && product ""

# What the product leaves out
if part rest; then
    ok "verify: a sleeping client" qcow2_verify 64k "${load[@]}" --client=sleep
    ok "verify: buffers copied when shared" qcow2_verify 64k "${load[@]}" --copy=on
    ok "verify: small clusters" qcow2_verify 512 --bytes=4m --queues=2
    ok "verify: large clusters" qcow2_verify 2M "${load[@]}" --queues=2
    ok "verify: a queue of 4" raw_verify --bytes=4m --driver-queue-size=4 --indirect=off
    ok "verify: a queue of 1024" raw_verify "${load[@]}" --driver-queue-size=1024 --queue-size=1024 --qd=200
    ok "verify: memory by slots, eight regions" raw_verify "${load[@]}" --mem-slots=on --regions=8
    ok "verify: blocks of 4096 bytes" raw_verify "${load[@]}" --logical-block-size=4096
    ok "verify: no merging" raw_verify "${load[@]}" --request-merging=off
    ok "verify: a thread pool and the page cache" raw_verify "${load[@]}" --cache=writeback --aio=threads
    ok_not "verify: a disk that forgets is found out" timeout 120 "$ringside" verify --format=null --bytes=1m
fi

for sanitizer in asan tsan; do
    part $sanitizer || continue
    ringside=$RINGSIDE_BUILD/$sanitizer/bin/ringside
    if [ ! -x "$ringside" ]; then
        skip "verify under $sanitizer" "not built"
        continue
    fi
    [ -n "$long" ] || load=(--bytes=3m)
    product $sanitizer
done

# A stranger: qemu-storage-daemon. On qcow2 its write zeroes (7.2) overtake writes to the same cluster and leave two
# references to one (qemu-img check says so too); so there they are left out, and on raw everything is in.
ringside=$bin/ringside
[ -n "$long" ] || load=(--bytes=8m)
stranger() { # format
    rm -f "$tmp/qsd.sock"
    qemu-img create -q -f "$1" "$tmp/stranger" 64M
    start qsd qemu-storage-daemon --blockdev "driver=file,node-name=f,filename=$tmp/stranger" \
        --blockdev "driver=$1,node-name=q,file=f" \
        --export "vhost-user-blk,id=e,node-name=q,addr.type=unix,addr.path=$tmp/qsd.sock,writable=on,num-queues=2"
    wait_for 60 listens "$tmp/qsd.sock"
}
if ! part stranger; then
    :
elif command -v qemu-storage-daemon >/dev/null; then
    for format in raw qcow2; do
        without=0
        [ $format = qcow2 ] && without=0x4000
        ok "qemu-storage-daemon serves $format" stranger $format
        for indirect in on off; do
            for event in on off; do
                queues=1
                [ $indirect = $event ] && queues=2
                ok "verify qemu-storage-daemon, $format: indirect $indirect, event-idx $event, $queues queues" \
                    verify --device="$tmp/qsd.sock" "${load[@]}" --indirect=$indirect --event-idx=$event \
                    --queues=$queues --refuse-features=$without
            done
        done
        ok "verify qemu-storage-daemon, $format: a sleeping client, buffers copied" \
            verify --device="$tmp/qsd.sock" "${load[@]}" --client=sleep --copy=on --refuse-features=$without
        stop qsd
    done
else
    skip "qemu-storage-daemon" "not installed"
fi

if part gigabyte; then
    load=(--bytes=1g)
    for indirect in on off; do
        for event in on off; do
            ok "verify 1 GiB: our device, indirect $indirect, event-idx $event" \
                qcow2_verify 64k "${load[@]}" --indirect=$indirect --event-idx=$event --queues=2
        done
    done
    command -v qemu-storage-daemon >/dev/null || skip "verify 1 GiB: qemu-storage-daemon" "not installed"
    for indirect in on off; do
        for event in on off; do
            command -v qemu-storage-daemon >/dev/null || break
            stranger raw
            ok "verify 1 GiB: qemu-storage-daemon, indirect $indirect, event-idx $event" \
                verify --device="$tmp/qsd.sock" "${load[@]}" --indirect=$indirect --event-idx=$event --queues=2
            stop qsd
        done
    done
fi
done_testing
