#!/usr/bin/env bash
# ringside-img convert --bitmaps: the target has the bitmaps that qemu-img's has, bit for bit, whatever the two images are
# like; what is refused, before the target is touched; images that lie.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
img=$bin/ringside-img
poke=$tools/tool_poke

bits() { # IMAGE NAME: start and length of what is dirty, by QEMU, which has let go of the image afterwards
    local server
    rm -f "$tmp/nbd.sock"
    timeout 300 qemu-nbd -r -f qcow2 --bitmap="$2" -k "$tmp/nbd.sock" -x x "$1" &
    server=$!
    wait_for 60 listens "$tmp/nbd.sock" || kill $server
    qemu-img map --output=json --image-opts \
        "driver=nbd,server.type=unix,server.path=$tmp/nbd.sock,export=x,x-dirty-bitmap=qemu:dirty-bitmap:$2" |
        jq -r '.[] | select(.data == false) | "\(.start) \(.length)"'
    wait $server
}
# The bitmaps of IMAGE, a line each: flags, name, granularity
list() {
    qemu-img info --output=json "$1" | jq -c '."format-specific".data.bitmaps[]?'
}
clean() { # IMAGE
    qemu-img check -q "$1" && "$img" check -q "$1"
}

# A disk with a bitmap of each kind: that records, with large and small granules, that does not, full, empty.
make_source() { # FILE OPTIONS
    qemu-img create -q -f qcow2 ${2:+-o "$2"} "$1" 33M && qemu-img bitmap --add "$1" b0 && qemu-img bitmap --add -g 512 "$1" fine &&
        qemu-img bitmap --add "$1" full && qemu-io -c 'discard -q 0 33M' -c 'write -q -z 0 33M' "$1" && qemu-img bitmap --disable "$1" full &&
        qemu-img bitmap --clear "$1" b0 && qemu-img bitmap --clear "$1" fine && qemu-img bitmap --add --disable "$1" off &&
        qemu-io -c 'write -q -P 3 1M 100k' -c 'write -q -P 4 9000k 512' -c 'write -q -P 5 20M 4M' -c 'write -q -P 6 33791k 1k' "$1" &&
        qemu-img bitmap --merge fine "$1" off && qemu-img bitmap --add -g 1M "$1" empty && qemu-img bitmap --disable "$1" fine &&
        qemu-io -c 'write -q -P 7 30M 3k' "$1" && qemu-img bitmap --enable "$1" fine
}
make_source src.qcow2 cluster_size=4k
make_source small.qcow2 cluster_size=512
make_source large.qcow2 cluster_size=2M
for name in b0 fine full off empty; do
    for source in src small large; do bits $source.qcow2 $name >$source.$name; done
done
ok "the sources' bitmaps have bits" test "$(wc -l <src.fine)" -ge 4 -a "$(cat src.full)" = '0 34603008'

# ---- the same as qemu-img ----

same_as_qemu() { # SOURCE, option...
    local source=$1 name
    shift
    rm -f ours.qcow2 theirs.qcow2
    "$img" convert --bitmaps -O qcow2 "$@" "$source.qcow2" ours.qcow2 &&
        qemu-img convert --bitmaps -O qcow2 "${@/ours/theirs}" "$source.qcow2" theirs.qcow2 || return 1
    list ours.qcow2 | tee listed
    [ "$(wc -l <listed)" -eq 5 ] && list theirs.qcow2 | diff listed - && clean ours.qcow2 &&
        qemu-img compare -q "$source.qcow2" ours.qcow2 || return 1
    for name in b0 fine full off empty; do
        echo "$name:"
        bits ours.qcow2 $name | diff - "$source.$name" || return 1
    done
}
ok "bitmaps are copied as by qemu-img" same_as_qemu src
ok "... compressed" same_as_qemu src -c
ok "... from clusters of 512 bytes to 2 MiB" same_as_qemu small -o cluster_size=2M
ok "... from clusters of 2 MiB to 512 bytes" same_as_qemu large -o cluster_size=512
ok "... refcounts of one bit" same_as_qemu large -o cluster_size=1k,refcount_bits=1
ok "... with an external data file" same_as_qemu src -o data_file=ours.raw,data_file_raw=on
ok "... with subclusters" same_as_qemu small -o extended_l2=on

over_backing() {
    qemu-img create -q -f qcow2 -b src.qcow2 -F qcow2 top.qcow2 && qemu-img bitmap --add top.qcow2 only &&
        qemu-io -c 'write -q -P 9 3M 1k' top.qcow2 &&
        "$img" convert --bitmaps -O qcow2 -B src.qcow2 -F qcow2 top.qcow2 copy.qcow2 && list copy.qcow2 &&
        [ "$(list copy.qcow2 | wc -l)" -eq 1 ] && [ "$(bits copy.qcow2 only)" = '3145728 65536' ] && clean copy.qcow2 &&
        qemu-img compare -q top.qcow2 copy.qcow2
}
ok "... over a backing file, of which the bitmaps stay where they are" over_backing

printf secret >pass
encrypted() {
    "$img" convert --bitmaps -O qcow2 -o encrypt.format=luks --secret-file=pass src.qcow2 luks.qcow2 &&
        "$img" check -q --secret-file=pass luks.qcow2 &&
        qemu-img check -q --object secret,id=s,file=pass --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s &&
        [ "$(qemu-img info luks.qcow2 | grep -c granularity:)" -eq 5 ]
}
decrypted() {
    "$img" convert --bitmaps -O qcow2 --secret-file=pass luks.qcow2 plain.qcow2 && qemu-img compare -q plain.qcow2 src.qcow2 &&
        bits plain.qcow2 fine | diff - src.fine
}
ok "... into an encrypted image" encrypted
ok "... out of it" decrypted
qemu-img snapshot -c snap src.qcow2
ok "... with a snapshot's content" same_as_qemu src -l snap
qemu-img snapshot -d snap src.qcow2

no_bitmaps() { # IMAGE
    clean "$1" && [ "$(list "$1" | wc -l)" -eq 0 ]
}
without() {
    "$img" convert -O qcow2 src.qcow2 none.qcow2 && no_bitmaps none.qcow2
}
has_none() {
    "$img" convert --bitmaps -O qcow2 -o size=40M none.qcow2 none2.qcow2 && no_bitmaps none2.qcow2
}
ok "without --bitmaps none is copied" without
ok "an image without bitmaps is copied with --bitmaps, too" has_none

goes_on() {
    "$img" convert --bitmaps -O qcow2 src.qcow2 goes-on.qcow2 && qemu-io -c 'write -q 7M 64k' goes-on.qcow2 &&
        "$tools/tool_qcow2" write goes-on.qcow2 8388608 4096 7 && clean goes-on.qcow2 && bits goes-on.qcow2 fine >now &&
        grep '^7340032 65536' now && grep '^8388608 4096' now && bits goes-on.qcow2 off | diff - src.off
}
ok "the copies record what is written, by QEMU and by us" goes_on

# ---- into an image that is there ----

there() { # OPTIONS
    qemu-img create -q -f qcow2 ${1:+-o "$1"} n.qcow2 33M && qemu-img bitmap --add n.qcow2 mine && qemu-io -c 'write -q 0 1M' n.qcow2 &&
        qemu-img bitmap --add --disable n.qcow2 still && qemu-img bitmap --merge mine n.qcow2 still
}
joins() { # OPTIONS
    there "${1:-}" && cp n.qcow2 theirs.qcow2 && "$img" convert -n --bitmaps -O qcow2 src.qcow2 n.qcow2 &&
        qemu-img convert -n --bitmaps -O qcow2 src.qcow2 theirs.qcow2 &&
        list n.qcow2 | diff - <(list theirs.qcow2) && [ "$(list n.qcow2 | wc -l)" -eq 7 ] && clean n.qcow2 &&
        [ "$(bits n.qcow2 still)" = "0 1048576" ] && bits n.qcow2 mine >marked && bits theirs.qcow2 mine | diff marked - &&
        bits n.qcow2 fine | diff - src.fine
}
ok "-n adds to the bitmaps that are there" joins
ok "... in small clusters" joins cluster_size=512
stale() {
    there && "$poke" n.qcow2 autoclear_features=0 && "$img" convert -n --bitmaps -O qcow2 src.qcow2 n.qcow2 && qemu-img check -r leaks n.qcow2 && clean n.qcow2 &&
        list n.qcow2 | diff - <(list src.qcow2)
}
ok "... takes the place of stale ones" stale
inconsistent_there() {
    there && "$poke" n.qcow2 bitmap:12:4='|1' && "$img" convert -n --bitmaps -O qcow2 src.qcow2 n.qcow2 && clean n.qcow2 &&
        list n.qcow2 | tee listed && grep mine listed | grep in-use && [ "$(grep -c in-use listed)" -eq 1 ] && [ "$(wc -l <listed)" -eq 7 ]
}
ok "... leaves inconsistent ones alone" inconsistent_there

# ---- refused ----

cp src.qcow2 broken.qcow2
"$poke" broken.qcow2 bitmap:12:4='|1'
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 33M
qemu-img convert -O raw src.qcow2 src.raw
cp src.qcow2 resized.qcow2
qemu-img snapshot -c before resized.qcow2
qemu-img resize -q resized.qcow2 66M
echo 'something else' >kept
refused() { # word of the sentence, argument...: nothing is there afterwards that was not before
    local word=$1 got
    shift
    for to in target new; do
        cp kept target
        rm -f new
        timeout 120 "$img" convert --bitmaps "$@" $to 2>said
        got=$?
        cat said
        [ $got -ne 0 ] && grep -qF -- "$word" said || return 1
    done
    cmp target kept && [ ! -e new ]
}
ok "refused before the target: to raw" refused "only qcow2 images" -O raw src.qcow2
ok "... to raw, which is what it is without -O" refused "only qcow2 images" src.qcow2
ok "... to version 2" refused "compat 1.1 can have bitmaps" -O qcow2 -o compat=0.10 src.qcow2
ok "... from version 2" refused "v2.qcow2: only qcow2 images of compat 1.1" -O qcow2 v2.qcow2
ok "... from raw" refused "src.raw: only qcow2 images of compat 1.1" -O qcow2 -f raw src.raw
ok "... two sources" refused "one source only" -O qcow2 src.qcow2 src.qcow2
ok "... another size" refused "do not fit one of" -O qcow2 -o size=34M src.qcow2
ok "... a snapshot of another size" refused "not of the snapshot's" -O qcow2 -l before resized.qcow2
ok "... an inconsistent bitmap" refused "broken.qcow2: bitmap 'b0' is inconsistent (--skip-broken-bitmaps" -O qcow2 broken.qcow2
ok "--skip-broken-bitmaps without --bitmaps is refused" says "only makes sense with --bitmaps" "$img" convert --skip-broken-bitmaps -O qcow2 src.qcow2 new
skips() {
    says "bitmap 'b0' is inconsistent: it stays behind" "$img" convert --bitmaps --skip-broken-bitmaps -O qcow2 broken.qcow2 new.qcow2 && clean new.qcow2 &&
        list new.qcow2 | diff - <(list src.qcow2 | grep -v b0) && "$img" convert -q --bitmaps --skip-broken-bitmaps -O qcow2 broken.qcow2 new.qcow2 2>said &&
        [ ! -s said ]
}
ok "with it the others are copied, and it is said" skips
there_refused() { # word of the sentence, option...: n.qcow2 is as it was
    cp n.qcow2 was
    says "$1" "$img" convert -n --bitmaps "${@:2}" src.qcow2 n.qcow2 && cmp n.qcow2 was && ! "$img" convert -n --bitmaps "${@:2}" src.qcow2 n.qcow2
}
qemu-img create -q -f qcow2 n.qcow2 33M
qemu-img bitmap --add n.qcow2 fine
ok "-n refuses a bitmap of the same name, the target as it was" there_refused "n.qcow2: has a bitmap 'fine' already"
qemu-img create -q -f qcow2 n.qcow2 34M
ok "... another size" there_refused "do not fit"
qemu-img create -q -f qcow2 -o compat=0.10 n.qcow2 33M
ok "... version 2" there_refused "compat 1.1 can have bitmaps"
ok "... version 2, said to be qcow2" there_refused "compat 1.1 can have bitmaps" -O qcow2
rm n.qcow2
truncate -s 33M n.qcow2
ok "... a raw image" there_refused "compat 1.1 can have bitmaps"

# ---- a snapshot of a disk that has been resized since, in an image with bitmaps ----

qemu-img create -q -f qcow2 -o cluster_size=512 grown.qcow2 4M
qemu-io -c 'write -q -P 3 0 4M' grown.qcow2
qemu-img snapshot -c small grown.qcow2
qemu-img resize -q grown.qcow2 16M
qemu-img bitmap --add -g 512 grown.qcow2 b
ok "a snapshot of another size is read, although there are bitmaps" bash -c "
    '$img' convert -l small -O raw grown.qcow2 small.raw && [ \$(stat -c %s small.raw) -eq 4194304 ] && [ \$(tr -d '\003' <small.raw | wc -c) -eq 0 ]"

# ---- a disk that ends inside a sector: behind the last whole one there is a granule of which nothing is read ----

odd() { # bytes of the source's disk, bytes of the target's
    qemu-img create -q -f qcow2 -o cluster_size=512 odd.qcow2 4M && qemu-img bitmap --add -g 512 odd.qcow2 b && qemu-io -c "write -q 1M $(($1 - 1048576))" odd.qcow2 &&
        qemu-img create -q -f qcow2 -o cluster_size=512 to.qcow2 4M && "$poke" odd.qcow2 "size=$1" bitmap:8:4="$((($1 + 2097151) / 2097152))" &&
        "$poke" to.qcow2 "size=$2" && "$img" check -q odd.qcow2 && "$img" convert -n --bitmaps -O qcow2 odd.qcow2 to.qcow2 && "$img" check -q to.qcow2 &&
        "$img" info to.qcow2 && "$poke" to.qcow2 size=2097152 bitmap:8:4=1 && [ "$(bits to.qcow2 b)" = "1048576 1048576" ]
}
ok "bitmaps of a disk that ends inside a sector fit that of the target" odd 2097252 2097152
ok "... and into a target that does" odd 2097152 2097252

# ---- images that lie, and large ones ----

qemu-img create -q -f qcow2 -o cluster_size=4k lie.qcow2 1G
qemu-img bitmap --add -g 512 lie.qcow2 b
lies() { # table entries of the bitmap
    cp lie.qcow2 bad.qcow2
    rm -f new.qcow2
    "$poke" bad.qcow2 "$@" && says "leads to where it cannot lie" "$img" convert --bitmaps -O qcow2 bad.qcow2 new.qcow2 &&
        ! "$img" convert --bitmaps -O qcow2 bad.qcow2 new.qcow2 && clean new.qcow2 && [ "$(list new.qcow2 | wc -l)" -eq 0 ]
}
ok "a bitmap that lies beyond the file is not copied, and the target is sound" lies table:1=0x40000000
ok "... in no cluster" lies table:1=0x1200
ok "... with reserved bits" lies table:1=0x1002
mapfile -t everywhere < <(seq -f 'table:%.0f=0x1000' 0 63)
ok "... that is longer than the file" lies "${everywhere[@]}"
qemu-img create -q -f qcow2 two.qcow2 1M
qemu-img bitmap --add two.qcow2 b0
qemu-img bitmap --add two.qcow2 b1
"$poke" two.qcow2 bitmap:57:1=0x30 # the second one is called b0, too
rm -f new.qcow2
ok "two bitmaps of one name are not copied" bash -c "! '$img' convert --bitmaps -O qcow2 two.qcow2 new.qcow2 2>said; cat said; grep \"two bitmaps have the name 'b0'\" said && [ ! -e new.qcow2 ]"
qemu-img create -q -f qcow2 huge.qcow2 2T
qemu-img bitmap --add -g 512 huge.qcow2 b
"$poke" huge.qcow2 table:8191=1
ok "a bitmap of 512 MiB is copied in little memory" bash -c "ulimit -v 400000; '$img' convert --bitmaps -O qcow2 huge.qcow2 copy.qcow2"
copied_huge() {
    clean copy.qcow2 && [ "$(bits copy.qcow2 b)" = '2198754820096 268435456' ]
}
ok "... as it is" copied_huge
done_testing
