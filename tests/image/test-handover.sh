#!/usr/bin/env bash
# Handing an image over from one process to another on files that both have open (live migration on shared
# storage): node_co_inactivate and node_co_activate.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
io=$tools/tool_block_io

for format in qcow2 raw; do
    rm -f ./*.img go1 go2 go3
    truncate -s 4M base.img
    "$io" format=raw base.img 'write 0 4M 0x11' >/dev/null
    if [ $format = qcow2 ]; then
        qemu-img create -q -f qcow2 -b base.img -F raw disk.img
    else
        cp base.img disk.img
    fi
    start source-$format "$io" format=$format disk.img 'write 0 64k 1' 'wait go1' 'write 1M 64k 2' 'discard 0 64k' 'write 2M 100 3' inactivate \
        'wait go2' activate 'read 1M 64k 2' 'read 3M 64k 4' 'resize 5M' 'write 4M 512 9' flush
    wait_for 60 grep -q 'write 0' source-$format.log
    ok_not "$format: a second writer is refused while the first has it" "$io" format=$format disk.img length
    start target-$format "$io" format=$format inactive=1 disk.img length 'wait go3' activate 'read 1M 64k 2' 'read 2M 100 3' 'read 3500k 64k 0x11' \
        'write 3M 64k 4' inactivate
    ok "$format: but it opens inactive" wait_for 60 grep -q 'length: 4194304 ok' target-$format.log
    touch go1
    ok "$format: the source lets go" wait_for 60 grep -q 'inactivate: ok' source-$format.log
    ok "$format: nobody holds a lock then" bash -c "! grep OFDLCK /proc/locks | grep -q ':$(stat -c %i disk.img) '"
    [ $format = qcow2 ] && ok "... and QEMU finds the image in order" qemu-img check disk.img
    touch go3
    ok "$format: the target sees what the source wrote, and writes" wait_for 60 grep -q 'inactivate: ok' target-$format.log
    ok_not "$format: ... without errors" grep -E 'E[A-Z]+$' target-$format.log
    touch go2
    ok "$format: and back" wait_for 60 grep -q 'flush: ok' source-$format.log
    ok_not "$format: ... without errors" grep -E 'E[A-Z]+$' source-$format.log
    for name in source-$format target-$format; do
        wait "${started[$name]}"
        unset "started[$name]"
    done
    ok "$format: the result is right" "$io" format=$format disk.img length 'read 1M 64k 2' 'read 3M 64k 4' 'read 4M 512 9' 'read 5119k 1k 0'
    [ $format = qcow2 ] && ok "... for QEMU too" qemu-img check disk.img
done

qemu-img create -q -f qcow2 disk2.img 4M
start holder "$io" format=qcow2 disk2.img length 'sleep 600000'
wait_for 60 grep -q length holder.log
start late "$io" format=qcow2 inactive=1 disk2.img activate 'write 0 512 1'
sleep 0.3
ok_not "a target waits for a source that still has the lock" grep -q ok late.log
stop holder KILL
ok "... and takes over when it is gone" wait_for 60 grep -q 'write 0 512 1: ok' late.log
ok "what was opened inactive and never used has not touched the image" bash -c "
    sha256sum disk2.img >before && '$io' inactive=1 disk2.img length && sha256sum -c before"
done_testing
