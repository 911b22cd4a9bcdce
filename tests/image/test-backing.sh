#!/usr/bin/env bash
# Which files an image may name (DESIGN, Trust): --backing, symbolic links, loops, protocols, depth, probing.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
io=$tools/tool_block_io
img=$bin/ringside-img

overlay() { # file, backing name, backing format: whatever the name, nothing is opened
    rm -f "$1"
    qemu-img create -q -f qcow2 -u -b "$2" -F "$3" "$1" 1M
}

mkdir images images/sub other
truncate -s 1M images/base.raw other/secret.raw images/sub/deep.raw
"$io" format=raw images/base.raw 'write 0 1M 0x11' >/dev/null
"$io" format=raw other/secret.raw 'write 0 1M 0x22' >/dev/null
secret=$tmp/other/secret.raw

overlay images/near.qcow2 base.raw raw
ok "a file in the image's own directory may be named" "$io" images/near.qcow2 'read 0 1M 0x11'
ok "... from any working directory" bash -c "cd other && '$io' ../images/near.qcow2 'read 0 1M 0x11'"
ok "... and by its full name" bash -c "qemu-img create -q -f qcow2 -u -b '$tmp/images/base.raw' -F raw images/full.qcow2 1M && '$io' images/full.qcow2 'read 0 1M 0x11'"
ok "... with file: in front" bash -c "qemu-img create -q -f qcow2 -u -b 'file:base.raw' -F raw images/proto.qcow2 1M && '$io' images/proto.qcow2 'read 0 1M 0x11'"
ok "deny allows none" says '--backing=deny' "$io" backing=deny images/near.qcow2 length

overlay images/far.qcow2 "$secret" raw
ok_not "a file elsewhere may not be named" "$io" images/far.qcow2 length
ok "... and the way out is told" says '--backing=DIR' "$io" images/far.qcow2 length
ok "... which works" "$io" "backing=$tmp/other" images/far.qcow2 'read 0 1M 0x22'
ok_not "DIR allows no other directory" "$io" "backing=$tmp/other" images/near.qcow2 length
overlay images/up.qcow2 ../other/secret.raw raw
ok_not "dots lead nowhere" "$io" images/up.qcow2 length
overlay images/below.qcow2 sub/deep.raw raw
ok_not "a directory below is another directory" "$io" images/below.qcow2 length
ok "... which DIR includes" "$io" "backing=$tmp/images" images/below.qcow2 'read 0 1M 0'
mkdir othermore
ok_not "DIR is not the beginning of a name" bash -c "
    cp other/secret.raw othermore/x.raw && qemu-img create -q -f qcow2 -u -b '$tmp/othermore/x.raw' -F raw images/more.qcow2 1M &&
    exec '$io' 'backing=$tmp/other' images/more.qcow2 length"

ln -s "$secret" images/link.raw
overlay images/link.qcow2 link.raw raw
ok_not "a symbolic link that leads out is followed before it is judged" "$io" images/link.qcow2 length
ln -s ../images/base.raw images/inside.raw
overlay images/inside.qcow2 inside.raw raw
ok "one that stays inside is fine" "$io" images/inside.qcow2 'read 0 1M 0x11'
ln -s "$tmp/images/near.qcow2" other/near.qcow2
ok_not "an image that is a link has its directory where the link is" "$io" other/near.qcow2 length

for name in 'nbd://localhost:1/x' 'nbd:localhost:1' 'json:{"driver":"null-co"}' 'https://example.org/x' 'ssh://h/x' 'null-co://'; do
    overlay images/protocol.qcow2 "$name" raw
    ok "a protocol is refused: $name" timeout 120 bash -c "! '$io' images/protocol.qcow2 length"
done
mkfifo images/fifo.raw
overlay images/fifo.qcow2 fifo.raw raw
ok "a FIFO is refused and doesn't hang" timeout 120 bash -c "! '$io' images/fifo.qcow2 length"
overlay images/dir.qcow2 sub raw
ok_not "a directory is refused" "$io" images/dir.qcow2 length
overlay images/gone.qcow2 gone.raw raw
ok "a file that is not there gets a sentence with both names" bash -c "
    '$io' images/gone.qcow2 length 2>&1 | grep 'gone.raw' | grep 'images/gone.qcow2'"
overlay images/vmdk.qcow2 base.raw vmdk
ok_not "a backing format that we have not is refused" "$io" images/vmdk.qcow2 length

overlay images/self.qcow2 self.qcow2 qcow2
ok "an image that is its own backing file is a loop" timeout 120 bash -c "'$io' images/self.qcow2 length 2>&1 | grep loop"
overlay images/one.qcow2 two.qcow2 qcow2
overlay images/two.qcow2 one.qcow2 qcow2
ok "two that name each other are one too" timeout 120 bash -c "'$io' images/one.qcow2 length 2>&1 | grep loop"
ln images/one.qcow2 images/hard.qcow2
overlay images/three.qcow2 hard.qcow2 qcow2
ok "... through a hard link as well" timeout 120 bash -c "'$io' images/three.qcow2 length 2>&1 | grep loop"

depth=60
[ -n "$long" ] && depth=199
cp images/base.raw images/c0.raw
overlay images/c1.qcow2 c0.raw raw
for ((i = 2; i <= depth; i++)); do
    overlay images/c$i.qcow2 c$((i - 1)).qcow2 qcow2
done
ok "a chain of $depth is read to its end" "$io" images/c$depth.qcow2 'read 0 1M 0x11' 'write 4096 512 3' 'read 0 4096 0x11' 'read 4096 512 3'

# Probing: what a guest wrote into a raw backing file must not be believed more than the image says.
cp images/far.qcow2 images/evil.raw
overlay images/asraw.qcow2 evil.raw raw
ok "a backing file whose format is said is not probed" says 'ok' "$io" images/asraw.qcow2 'read 0 1 0x51'
ok "... its content is data" bash -c "! '$io' images/asraw.qcow2 'read 0 1M 0x22'"
overlay images/asqcow2.qcow2 evil.raw qcow2
ok_not "an image below an image is under the same policy" "$io" images/asqcow2.qcow2 length
ok "probing opens nothing but the image" bash -c "
    strace -f -e trace=openat,open -o trace '$io' backing=deny images/far.qcow2 length; ! grep -q secret trace"
ok "img info opens nothing but the image" bash -c "
    strace -f -e trace=openat,open -o trace '$img' info images/far.qcow2 && ! grep -q 'secret' trace"
# The same for an external data file.
qemu-img create -q -f qcow2 -o "data_file=$tmp/other/clusters" images/data.qcow2 1M
opened() { strace -f -e trace=openat,open -o trace "$@"; }
probed() { ! opened "$io" "$@" images/data.qcow2 length && grep -q data.qcow2 trace && ! grep -q clusters trace; }
ok "an image's data file is under the policy, and not opened to find out" probed
ok "... nor with the format said" probed format=qcow2
ok "... nor with --backing=deny" probed backing=deny
ok "... nor for img info" bash -c "
    strace -f -e trace=openat,open -o trace '$img' info images/data.qcow2 && grep -q data.qcow2 trace && ! grep -q clusters trace"
ok "... and is where it is allowed" "$io" "backing=$tmp/other" images/data.qcow2 length
ok_not "img info --backing-chain is under the policy" "$img" info --backing-chain images/far.qcow2
ok "... and follows what it allows" bash -c "
    '$img' info --backing-chain --output=json images/near.qcow2 | jq -en 'input | length == 2 and .[1].format == \"raw\"'"
ok "img convert is under the policy, and --backing changes it" bash -c "
    ! '$img' convert -O raw images/far.qcow2 out.raw && '$img' convert --backing=/ -O raw images/far.qcow2 out.raw && cmp out.raw other/secret.raw"
ok "a backing file on the command line is the user's own choice" bash -c "
    '$img' create -q -f qcow2 -b '$secret' -F raw images/mine.qcow2 && [ \$('$img' info --output=json images/mine.qcow2 | jq '.\"virtual-size\"') -eq 1048576 ]"
done_testing
