#!/usr/bin/env bash
# Driver and device face to face: every combination of ring, features, queues and formats against the model in
# memory, and the same driver against a stranger's device. Also under ASan+UBSan and TSan.
# RINGSIDE_SIZE=long: 1 GiB of operations each.
. "$(dirname "$0")/../lib.sh"

bytes=12m
[ -n "$long" ] && bytes=1g
ringside=$bin/ringside

verify() { timeout 600 "$ringside" verify --span=64m "$@"; }

# A run on a qcow2 image, what the driver saw of it exported, and QEMU's opinion: no error in the image, and
# the same bytes as the driver read.
qcow2_verify() {
    local image=$tmp/disk.qcow2
    qemu-img create -q -f qcow2 -o "cluster_size=$1" "$image" 64M || return 1
    shift
    verify --blk-file="$image" --export="$tmp/export.raw" "$@" || return 1
    qemu-img check -q "$image" || return 1
    qemu-img compare -q -f raw -F qcow2 "$tmp/export.raw" "$image"
}

raw_verify() {
    truncate -s 64M "$tmp/disk.raw"
    verify --blk-file="$tmp/disk.raw" --format=raw "$@"
}

# The full product takes raw and qcow2 in turn in the short size, both in the long one.
product() {
    local sanitizer=$1 seed=1 ring indirect event order queues threads formats
    for ring in split packed; do
        for indirect in on off; do
            for event in on off; do
                for order in off on; do
                    for queues in 1 2 4; do
                        [ "$queues" = 4 ] && [ -z "$long" ] && continue
                        threads=$((1 + (seed + queues) % 2))
                        seed=$((seed + 1))
                        formats=raw
                        [ $((seed % 3)) -ne 0 ] && formats=qcow2
                        [ -n "$long" ] && formats="raw qcow2"
                        case $sanitizer in
                        "") ;;
                        *) [ -z "$long" ] && [ $((seed % 4)) -ne 1 ] && continue ;;
                        esac
                        one "$formats" "$sanitizer" --ring=$ring --indirect=$indirect --event-idx=$event \
                            --in-order=$order --queues=$queues --iothreads=$threads --seed=$seed
                    done
                done
            done
        done
    done
}

one() {
    local format formats=$1 sanitizer=$2
    shift 2
    for format in $formats; do
        if [ "$format" = qcow2 ]; then
            ok "verify${sanitizer:+ under $sanitizer}: qcow2 $*" qcow2_verify 64k --bytes=$bytes "$@"
        else
            ok "verify${sanitizer:+ under $sanitizer}: raw $*" raw_verify --bytes=$bytes "$@"
        fi
    done
}

product ""

# What the product leaves out
ok "verify: a sleeping client" qcow2_verify 64k --bytes=$bytes --client=sleep
ok "verify: buffers copied when shared" qcow2_verify 64k --bytes=$bytes --copy=on
ok "verify: small clusters" qcow2_verify 512 --bytes=4m --queues=2
ok "verify: large clusters" qcow2_verify 2M --bytes=$bytes --queues=2
ok "verify: a queue of 4" raw_verify --bytes=4m --driver-queue-size=4 --indirect=off
ok "verify: a queue of 1024" raw_verify --bytes=$bytes --driver-queue-size=1024 --queue-size=1024 --qd=200
ok "verify: memory by slots, eight regions" raw_verify --bytes=$bytes --mem-slots=on --regions=8
ok "verify: blocks of 4096 bytes" raw_verify --bytes=$bytes --logical-block-size=4096
ok "verify: no merging" raw_verify --bytes=$bytes --request-merging=off
ok "verify: a thread pool and the page cache" raw_verify --bytes=$bytes --cache=writeback --aio=threads
ok_not "verify: a disk that forgets is found out" timeout 60 "$ringside" verify --format=null --bytes=1m

for sanitizer in asan tsan; do
    ringside=$RINGSIDE_BUILD/$sanitizer/bin/ringside
    if [ ! -x "$ringside" ]; then
        skip "verify under $sanitizer" "not built"
        continue
    fi
    [ -n "$long" ] || bytes=3m
    product $sanitizer
done

# A stranger: qemu-storage-daemon. It holds the pieces of a buffer, cut where memory regions meet, against the length of
# the indirect table, and calls a table of three with one such buffer a loop: so one region for it.
ringside=$bin/ringside
bytes=24m
[ -n "$long" ] && bytes=1g
stranger() {
    qemu-img create -q -f qcow2 "$tmp/stranger.qcow2" 64M
    start qsd qemu-storage-daemon --blockdev "driver=file,node-name=f,filename=$tmp/stranger.qcow2" \
        --blockdev driver=qcow2,node-name=q,file=f,discard=unmap \
        --export "vhost-user-blk,id=e,node-name=q,addr.type=unix,addr.path=$tmp/qsd.sock,writable=on,num-queues=2"
    wait_for 20 test -S "$tmp/qsd.sock"
}
if command -v qemu-storage-daemon >/dev/null; then
    ok "qemu-storage-daemon serves" stranger
    for indirect in on off; do
        for event in on off; do
            for queues in 1 2; do
                ok "verify qemu-storage-daemon: indirect $indirect, event-idx $event, $queues queues" \
                    verify --device="$tmp/qsd.sock" --regions=1 --bytes=$bytes --indirect=$indirect --event-idx=$event --queues=$queues
            done
        done
    done
    ok "verify qemu-storage-daemon: a sleeping client, buffers copied" \
        verify --device="$tmp/qsd.sock" --regions=1 --bytes=$bytes --client=sleep --copy=on
    stop qsd
else
    skip "qemu-storage-daemon" "not installed"
fi
done_testing
