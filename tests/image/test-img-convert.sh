#!/usr/bin/env bash
# ringside-img convert: what is refused before the target is touched, and options that are about how it copies: -t, -r,
# -S, --salvage, -o help.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
img=$bin/ringside-img
poke=$tools/tool_poke

qemu-img create -q -f qcow2 src.qcow2 4M
qemu-io -c 'write -q -P 3 0 3M' src.qcow2
qemu-img convert -O raw src.qcow2 src.raw

# ---- refused: the target is as it was, and what is not there is not made ----

echo 'something else' >kept
cp kept target
refused() { # word of the sentence, option...
    local word=$1 got
    shift
    cp kept target
    rm -f new
    for to in target new; do
        timeout 120 "$img" convert "$@" src.qcow2 $to 2>said
        got=$?
        cat said
        [ $got -ne 0 ] && grep -qF -- "$word" said || return 1
    done
    cmp target kept && [ ! -e new ]
}
ok "refused before the target: -c to raw" refused "qcow2 images only" -c -O raw
ok "... -c without -O" refused "qcow2 images only" -c
for mode in metadata falloc full; do
    ok "... -c with preallocation=$mode" refused "what is preallocated" -c -O qcow2 -o preallocation=$mode
done
ok "... -c with a data file" refused "lies in a data file" -c -O qcow2 -o data_file=data.bin
ok "... which is not made" test ! -e data.bin
ok "... a data file in a directory that is not there" refused "No such file" -O qcow2 -o data_file=nodir/data.bin
printf secret >pass
ok "... -c with encryption" refused "what is encrypted" -c -O qcow2 -o encrypt.format=luks --secret-file=pass
ok "... a cache mode that there is not" refused "-t bogus" -t bogus
ok "... nor for the source" refused "-T bogus" -T bogus
ok "... native requests through the page cache" refused "--aio=native goes without the page cache" -T none --aio=native
ok "... -S that is no multiple of 512" refused "up to 16M" -S 1000
ok "... -S of too much" refused "up to 16M" -S 16777728
ok "... a rate that is none" refused "not a rate" -r fast
ok "... an unknown format" refused "unknown format 'vmdk'" -O vmdk
ok "... a format of no backing file" refused "which backing file" -F raw
ok "... a backing file that is not there" refused "nothere" -O qcow2 -B nothere -F raw
ok "... a size that is too small" refused "fewer than the source's" -O qcow2 -o size=1M
qemu-img create -q -f qcow2 -b src.qcow2 -F qcow2 upper.qcow2
ok "... a backing file of several sources, as an option" refused "one source only" -O qcow2 -o backing_file=src.qcow2,backing_fmt=qcow2 upper.qcow2
ok "... an option that there is not" refused "no such option" -O qcow2 -o frob=1
ok "... a snapshot that there is not" refused "nosnap" -l nosnap
"$img" create -q -f qcow2 -o data_file=data.bin outside.qcow2 4M
ok "-n -c into a data file is refused" says "lies in a data file" "$img" convert -n -c -O qcow2 src.qcow2 outside.qcow2

# Its last cluster is not whole, and the target goes on behind it.
c_into_larger() { # -n into what is there, or an option for the new one
    head -c 100352 src.raw >part.raw && rm -f larger.qcow2 && qemu-img create -q -f qcow2 larger.qcow2 1M &&
        qemu-io -c 'write -q -P 7 0 1M' larger.qcow2 && cp part.raw larger.raw && truncate -s 1M larger.raw || return 1
    if [ "$1" = -n ]; then
        head -c $((1048576 - 100352)) /dev/zero | tr '\0' '\7' | dd of=larger.raw bs=512 seek=196 conv=notrunc status=none
    fi
    "$img" convert -c "$@" -f raw -O qcow2 part.raw larger.qcow2 && qemu-img compare -f qcow2 -F raw larger.qcow2 larger.raw &&
        qemu-img check larger.qcow2 | grep -q 'compressed clusters' && qemu-img check larger.qcow2
}
ok "-c -n into a larger image" c_into_larger -n
ok "-c into an image that -o size makes larger" c_into_larger -o size=1M

# ---- -S ----

for size in 512 4M 16M; do
    ok "convert -S $size" bash -c "'$img' convert -S $size -O raw src.qcow2 out.raw && cmp out.raw src.raw"
done
# A megabyte of zeroes between data: left out if that much is asked for, written if it is too little.
cp src.raw gap.raw
dd if=/dev/zero of=gap.raw bs=1M seek=1 count=1 conv=notrunc status=none
qemu-io -f raw -c 'write -q -P 4 3M 1M' gap.raw
ok "convert -S 1M leaves a megabyte of zeroes out" bash -c "
    '$img' convert -S 1M -f raw -O raw gap.raw out.raw && cmp out.raw gap.raw && [ \$(stat -c %b out.raw) -le \$((3 * 2048 + 64)) ]"
ok "convert -S 4M writes it" bash -c "
    '$img' convert -S 4M -f raw -O raw gap.raw out.raw && cmp out.raw gap.raw && [ \$(stat -c %b out.raw) -ge \$((4 * 2048)) ]"

# ---- -t ----

syncs() { # least number of words that tell a durable write, mode, further options...
    local least=$1 mode=$2
    shift 2
    strace -f -o trace "$img" convert -m 1 -t "$mode" "$@" src.qcow2 out.img && qemu-img compare src.qcow2 out.img &&
        grep -cE 'fdatasync\(|fsync\(|DSYNC' trace | tee count && [ "$(cat count)" -ge "$least" ]
}
for to in "-O raw" "-O qcow2" "-c -O qcow2"; do
    # shellcheck disable=SC2086 # several words
    {
        ok "convert $to -t writethrough: each write is durable" syncs 3 writethrough $to
        ok_not "... and goes through the page cache" grep O_DIRECT trace
        ok "convert $to -t directsync: each write is durable" syncs 3 directsync -T directsync $to
        ok "... and does not" grep O_DIRECT trace
    }
done
ok_not "-t writeback waits at the end only" syncs 3 writeback -O raw
over() { # an overlay that has a megabyte of its own
    rm -f over.qcow2
    cp src.qcow2 under.qcow2
    qemu-img create -q -f qcow2 -b under.qcow2 -F qcow2 over.qcow2
    qemu-io -c 'write -q -P 9 0 64k' -c 'write -q -P 9 1M 1M' over.qcow2
    qemu-img convert -O raw over.qcow2 over.raw
}
more_syncs() { # with -t writethrough; the image that has the content afterwards, arguments
    local after=$1
    shift
    over && strace -f -o few "$img" "$@" && over && strace -f -o many "$img" "$@" -t writethrough && qemu-img compare "$after" over.raw &&
        few=$(grep -cE 'fdatasync\(|FDSYNC' few) && many=$(grep -cE 'fdatasync\(|FDSYNC' many) && echo "$few $many" && [ "$many" -gt "$few" ]
}
ok "commit -t writethrough" more_syncs under.qcow2 commit over.qcow2
qemu-img create -q -f qcow2 other.qcow2 4M
ok "rebase -t writethrough" more_syncs over.qcow2 rebase -b other.qcow2 -F qcow2 over.qcow2
ok "check -t and -T take them, too" bash -c "'$img' check -t writethrough src.qcow2 && '$img' check -T directsync src.qcow2"

# ---- -r: a rate is kept from below, however slow the machine ----

at_least() { # milliseconds, command...
    local least=$1 begin end
    shift
    begin=$(date +%s%N)
    "$@" || return 1
    end=$(date +%s%N)
    [ $(((end - begin) / 1000000)) -ge "$least" ]
}
ok "convert -r 4M of 3 MiB takes time" at_least 350 "$img" convert -r 4M -O raw src.qcow2 out.raw
ok "... and copies all of it" cmp out.raw src.raw
qemu-img create -q -f qcow2 zero.qcow2 3M
ok "convert -S 0 -r 4M of 3 MiB of zeroes takes time, too" at_least 350 "$img" convert -S 0 -r 4M -O raw zero.qcow2 zero.raw
ok "... and writes all of it" bash -c "cmp -n 3145728 zero.raw /dev/zero && [ \$(stat -c '%b * %B' zero.raw | xargs -I{} bash -c 'echo \$(({}))') -ge 3145728 ]"
ok "convert -r 0: no limit" bash -c "'$img' convert -r 0 -O raw src.qcow2 out.raw && cmp out.raw src.raw"
over
ok "commit -r of two pieces, the first of 64 KiB" at_least 450 "$img" commit -r 100k over.qcow2
ok "... and commits all of it" qemu-img compare under.qcow2 over.raw
ok_not "commit -r of no rate" "$img" commit -r fast over.qcow2

# ---- --salvage ----

cp src.qcow2 bad.qcow2
"$poke" bad.qcow2 l2:196608=0x8000000000050200 l2:327680=0x8000000000070200 l2:393216=0x8000000000070200
ok_not "an image with entries that cannot be followed is not copied" "$img" convert -O raw bad.qcow2 out.raw
ok "... behind another one it is the one that is named, and its offset" bash -c "! '$img' convert -m 1 -O raw src.qcow2 bad.qcow2 out.raw 2>said; cat said; grep 'bad.qcow2: reading at offset 196608: ' said"
ok "convert --salvage does, and says what is lost, a line for each range" bash -c "
    '$img' convert --salvage -O raw bad.qcow2 out.raw 2>said; status=\$?; cat said; [ \$status -eq 0 ] && [ \$(grep -c 'they are zeroes in the target' said) -eq 2 ] &&
    grep 'bad.qcow2: reading 65536 bytes at offset 196608: Input/output error' said && grep 'reading 131072 bytes at offset 327680' said"
ok "... as zeroes, the rest is there" bash -c "
    cp src.raw want.raw && dd if=/dev/zero of=want.raw bs=64k seek=3 count=1 conv=notrunc status=none &&
    dd if=/dev/zero of=want.raw bs=64k seek=5 count=2 conv=notrunc status=none && cmp out.raw want.raw"
ok "qemu-img --salvage gets the same" bash -c "cp bad.qcow2 bad2.qcow2 && qemu-img convert -q --salvage -O raw bad2.qcow2 theirs.raw && cmp theirs.raw out.raw"
ok "--salvage -q says nothing of it" bash -c "'$img' convert -q --salvage -O qcow2 bad.qcow2 out.qcow2 2>said && ! grep 'zeroes in the target' said && qemu-img compare -f raw -F qcow2 want.raw out.qcow2"
ok "--salvage of a sound image is a copy" bash -c "'$img' convert --salvage -O raw src.qcow2 out.raw && cmp out.raw src.raw"

# ---- -o help ----

ok "convert -O qcow2 -o help lists the options" bash -c "'$img' convert -O qcow2 -o help | grep cluster_size"
ok "... with names given, too, and among other options" bash -c "'$img' convert -O qcow2 -o cluster_size=4k,help src.qcow2 new.qcow2 | grep cluster_size && [ ! -e new.qcow2 ]"
ok "... those of raw without -O" bash -c "'$img' convert -o help | tee out && grep preallocation out && ! grep cluster_size out"
ok "create -o help,cluster_size=4k" bash -c "'$img' create -f qcow2 -o help,cluster_size=4k | grep cluster_size"
ok "create -o help of a format that there is not" bash -c "! '$img' create -f vmdk -o help"
done_testing
