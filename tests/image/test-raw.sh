#!/usr/bin/env bash
# Raw images and what stands under every format: files, probing and its guard, locks (ours against ours and
# against QEMU's), zeroes and discards, the filters.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
io=$tools/tool_block_io
img=$bin/ringside-img

fresh() { # size
    rm -f disk.raw
    truncate -s "$1" disk.raw
}

# ---- bytes ----

for cache in none writeback; do
    for aio in native io_uring threads; do
        [ $cache-$aio = writeback-native ] && continue
        fresh 1M
        if [ $aio = io_uring ] && "$io" cache=$cache aio=$aio format=raw disk.raw length 2>&1 | grep 'not to be had' >said; then
            skip "$cache, $aio" "$(cat said)"
            continue
        fi
        ok "$cache, $aio: writes of any alignment are read back, by us and by qemu-io" bash -c "
            '$io' cache=$cache aio=$aio format=raw disk.raw 'write 0 1M 1' 'write 1000 5000 2' 'write 4096 512 3 fua' 'zero 8000 10000' \
                'read 0 1000 1' 'read 1000 3096 2' 'read 4096 512 3' 'read 4608 1392 2' 'read 8000 10000 0' flush &&
            qemu-io -f raw -c 'read -P 1 0 1000' -c 'read -P 2 1000 3096' -c 'read -P 3 4096 512' -c 'read -P 0 8000 10000' \
                -c 'read -P 1 18000 1030576' disk.raw | tee out && ! grep -q 'verification failed' out"
    done
done

printf 'x%.0s' {1..1000} >short.raw
ok "a last partial sector is padded with zeroes and completed by a write" bash -c "
    '$io' format=raw short.raw length 'read 0 1000 0x78' 'read 1000 24 0' 'write 1020 4 0x79' 'read 1000 20 0' | tee out &&
    grep -q 'length: 1024 ok' out && [ \"\$(tail -c 4 short.raw)\" = yyyy ] && [ \$(stat -c %s short.raw) -ge 1024 ]"
ok "beyond the end is an I/O error" says 'EIO' "$io" format=raw disk.raw 'read 1M 512 0'
fresh 1M
ok "resize grows with zeroes and cuts off" bash -c "
    '$io' format=raw disk.raw 'write 0 1M 7' 'resize 512k' 'resize 1M' 'read 0 512k 7' 'read 512k 512k 0' 'resize 2M' length | grep -q 'length: 2097152 ok'"

fresh 4M
"$io" format=raw disk.raw 'write 0 4M 1' flush >/dev/null
before=$(stat -c %b disk.raw)
ok "a discard gives space back" bash -c "'$io' format=raw disk.raw 'discard 0 1M' 'read 1M 3M 1' && [ \$(stat -c %b disk.raw) -lt $before ]"
before=$(stat -c %b disk.raw)
ok "ignored discards don't" bash -c "'$io' format=raw ignore_discard=1 disk.raw 'discard 1M 1M' 'read 1M 1M 1' && [ \$(stat -c %b disk.raw) -eq $before ]"
ok "zeroes that may unmap give space back, others keep it" bash -c "
    '$io' format=raw disk.raw 'zero 1M 1M' 'read 1M 1M 0' && [ \$(stat -c %b disk.raw) -ge $before ] &&
    '$io' format=raw disk.raw 'zero 2M 1M unmap' 'read 2M 1M 0' && [ \$(stat -c %b disk.raw) -lt $before ]"
for unmap in '' unmap; do
    fresh 4096
    ok "zeroes beyond the end of a file that grows move its end${unmap:+, unmapped too}" bash -c "
        '$io' format=file disk.raw 'write 0 4096 1' 'zero 1M 64k $unmap' 'write 2M 512 2' 'zero 64k 4096 $unmap' 'read 1M 64k 0' 'read 2M 512 2' &&
        [ \$(stat -c %s disk.raw) -eq 2097664 ]"
    fresh 4096
    ok "... and stay the end" bash -c "'$io' format=file disk.raw 'zero 1M 64k $unmap' length | grep 1114112 && [ \$(stat -c %s disk.raw) -eq 1114112 ]"
done
fresh 1M
ok "detect-zeroes=unmap leaves a hole where zeroes are written" bash -c "
    '$io' format=raw detect_zeroes=unmap disk.raw 'write 0 512k 0' 'write 512k 512k 1' && [ \$(stat -c %b disk.raw) -le 1100 ]"
fresh 1M
ok "block status follows the file's holes" says '0+65536:zero 65536+65536:data 131072+917504:zero ok' \
    "$io" format=raw disk.raw 'write 64k 64k 1' status

ok "cache=unsafe never waits for the disk" bash -c "
    qemu-img create -q -f qcow2 u.qcow2 1M &&
    strace -f -e trace=fdatasync,fsync,io_submit -o trace '$io' cache=unsafe u.qcow2 'write 0 64k 1' flush 'write 64k 512 2 fua' && ! grep sync trace"
ok "... but a flush hands a format's tables to the kernel" bash -c "
    '$io' cache=unsafe u.qcow2 'write 128k 64k 3' flush 'sleep 600000' & pid=\$!
    for i in \$(seq 600); do qemu-io -U -r -c 'read -P 3 128k 64k' u.qcow2 | grep -q failed || break; sleep 0.1; done
    kill -KILL \$pid; wait \$pid; qemu-io -c 'read -P 3 128k 64k' u.qcow2 | tee out && ! grep -q failed out"

# ---- files that are none ----

mkfifo fifo
mkdir dir
ok "a FIFO is refused and doesn't hang" timeout 120 bash -c "! '$io' fifo length"
ok_not "a directory is refused" "$io" dir length
ok "what is not there gets a sentence with its name" says 'nothere: ' "$io" nothere length
ok_not "an unknown format is refused" "$io" format=vmdk disk.raw length

# ---- probing and its guard (DESIGN, Trust) ----

fresh 1M
ok "a probed raw disk refuses a qcow2 header in sector 0" says 'EPERM' "$io" disk.raw 'text 0 QFI'$'\xfb''x'
ok "... and says so to whoever runs it, once" bash -c "
    '$io' disk.raw 'text 0 QFI'\$'\xfb' 'text 0 QFI'\$'\xfb' 2>&1 | tee out; [ \$(grep -c -- --format=raw out) -eq 1 ]"
ok "... also as part of a larger or smaller write" bash -c "
    '$io' disk.raw 'text 0 QFI' && ! '$io' disk.raw 'text 3 '\$'\xfb' && qemu-img info disk.raw | grep -q 'file format: raw'"
for magic in KDMV COWD conectix vhdxfile WithoutFreeSpace 'LUKS'$'\xba\xbe'; do
    fresh 1M
    ok_not "... and the magic ${magic//[^[:print:]]/.}" "$io" disk.raw "text 0 $magic"
done
fresh 1M
ok_not "... and a VMDK's description behind a comment" "$io" disk.raw $'text 0 #mine\n\nversion=1\n'
ok "... text that is none is written" "$io" disk.raw $'text 0 #mine\n\nversions=1\n'
# What QEMU would find out is not taken for a raw disk, and a guest does not come to its header.
for format in vmdk vdi vhdx qed vpc parallels luks; do
    printf secret >pass
    options=()
    [ $format != luks ] || options=(--object "secret,id=s,file=pass" -o "key-secret=s,iter-time=10")
    LD_PRELOAD=$(realpath "$tools/quick_kdf.so") qemu-img create -q -f $format "${options[@]}" image.$format 4M
    ok "an image of format $format is refused by its name" says "image.$format: is a $format image" "$io" image.$format length
    ok "... and taken as it is with format=raw" "$io" format=raw image.$format length
done
fresh 1M
ok "other writes to sector 0 are fine" "$io" disk.raw 'write 0 4096 5' 'text 100 QFI' 'read 512 3584 5'
fresh 1M
ok "format=raw lifts it" "$io" format=raw disk.raw 'text 0 QFI'$'\xfb'
ok_not "what looks like qcow2 and is none is refused, not taken for raw" "$io" disk.raw length

# ---- locks ----

fresh 1M
start writer "$io" format=raw disk.raw 'write 0 512 1' 'sleep 600000'
wait_for 60 grep -q write "$tmp/writer.log"
ok_not "two writers of ours exclude each other" "$io" format=raw disk.raw length
ok_not "a reader of ours is kept out by a writer" "$io" format=raw read_only=1 disk.raw length
ok "... and told what to do" says '--force-share' "$io" format=raw read_only=1 disk.raw length
ok "... which helps" "$io" format=raw read_only=1 force_share=1 disk.raw length
ok "force-share is for readers" says 'reading only' "$io" format=raw force_share=1 disk.raw length
ok "no_lock looks away" "$io" format=raw no_lock=1 disk.raw length
ok_not "QEMU can't write while we do" qemu-io -f raw -c 'write 0 512' disk.raw
ok_not "QEMU can't resize while we do" qemu-img resize -f raw disk.raw 2M
ok "QEMU reads with -U" qemu-img info -U -f raw disk.raw
stop writer KILL
ok "a lock goes with its process" "$io" format=raw disk.raw length

start reader "$io" format=raw read_only=1 disk.raw length 'sleep 600000'
wait_for 60 grep -q length "$tmp/reader.log"
ok "readers share, ours" "$io" format=raw read_only=1 disk.raw length
ok "... and QEMU's" qemu-io -r -f raw -c 'read 0 512' disk.raw
ok_not "a writer of ours is kept out by a reader" "$io" format=raw disk.raw length
ok_not "... and QEMU's" qemu-io -f raw -c 'write 0 512' disk.raw
stop reader KILL

start qemu stdbuf -oL qemu-io -f raw -c 'read 0 512' -c 'sleep 600000' disk.raw
wait_for 60 grep -q '^read 512' qemu.log
ok_not "QEMU's writer keeps ours out" "$io" format=raw disk.raw length
ok_not "... and our reader" "$io" format=raw read_only=1 disk.raw length
ok_not "... and ringside-img resize" "$img" resize -f raw disk.raw 2M
stop qemu KILL

# ---- the inject filter ----

fresh 1M
ok "inject: a write fails once, the next is fine" bash -c "
    '$io' format=raw inject=write disk.raw 'write 0 512 1' 'write 0 512 2' | tee out;
    [ \"\$(cut -d: -f2 out | tr -d '\n')\" = ' EIO ok' ]"
ok "inject: by range, after some, with an error of choice, always" bash -c "
    '$io' format=raw inject='write,at=64k+4k,skip=1,times=always,error=ENOSPC' disk.raw 'write 0 512 1' 'write 64k 512 1' 'write 66k 512 1' \
        'write 60k 8k 1' 'read 0 512 1' clear 'write 64k 512 1' | tee out;
    [ \"\$(cut -d: -f2 out | tr -d '\n')\" = ' ok ok ENOSPC ENOSPC ok ok ok' ]"
ok "inject: a short write is there in part" bash -c "
    ! '$io' format=raw inject='write,mode=short,bytes=1024' disk.raw 'write 128k 4096 9' && '$io' format=raw disk.raw 'read 128k 1024 9' 'read 132096 3072 0'"
ok "inject: a flush that failed can be tried again above the file" bash -c "
    '$io' format=raw inject=flush disk.raw 'write 0 512 1' flush flush | tee out; [ \"\$(cut -d: -f2 out | tr -d '\n')\" = ' ok EIO ok' ]"
ok "inject: late" "$io" format=raw inject='read,mode=late,ms=5' disk.raw 'read 0 512 1'
for spec in 'frob' 'write,frob=1' 'write,at=x' 'write,error=ENOTHING' 'write,mode=x' 'write,times='; do
    ok "inject: '$spec' is refused with a sentence" says inject: "$io" format=raw "inject=$spec" disk.raw length
done

# ---- the log of writes ----

fresh 1M
ok "log-writes: the log has every write, in order" bash -c "
    '$io' format=raw log_writes=log disk.raw 'write 0 512 1' flush 'zero 4096 4096' 'discard 8192 4096' && [ \$(stat -c %s log) -gt 1000 ]"
ok "log-writes: a log that can't grow is named, once" bash -c "
    trap '' XFSZ; ulimit -f 8
    ! '$io' format=raw log_writes=log disk.raw 'write 0 4096 1' 'write 0 4096 2' 'write 0 4096 3' 'write 0 4096 4' 2>said
    [ \$(grep -c 'log of writes is not complete: File too large' said) = 1 ]"
ok_not "log-writes: a log that can't be made is an error" "$io" format=raw log_writes=nodir/log disk.raw length

# ---- ringside-img on raw ----

ok "img create makes a sparse file of whole sectors" bash -c "'$img' create -f raw new.raw 1000 && [ \$(stat -c %s-%b new.raw) = 1024-0 ]"
ok "img create preallocates" bash -c "'$img' create -q -f raw -o preallocation=falloc new.raw 1M && [ \$(stat -c %b new.raw) -ge 2048 ] &&
    '$img' create -q -f raw -o preallocation=full new.raw 1M && [ \$(stat -c %b new.raw) -ge 2048 ]"
"$io" format=raw disk.raw 'write 0 300000 0x11' 'write 700000 1000 0x22' >/dev/null
ok "img info --output=json says what qemu-img says" bash -c "
    '$img' info --output=json -f raw disk.raw | jq -S . >ours && qemu-img info --output=json -f raw disk.raw | jq -S . >theirs && diff ours theirs"
ok "img map --output=json says what qemu-img says" bash -c "
    '$img' map --output=json -f raw disk.raw | jq -S . >ours && qemu-img map --output=json -f raw disk.raw | jq -S . >theirs && diff ours theirs"
truncate -s 0 empty.raw
ok "img map of an image of no bytes, too" bash -c "
    '$img' map --output=json -f raw empty.raw >ours && qemu-img map --output=json -f raw empty.raw >theirs && diff ours theirs &&
    '$img' map -f raw empty.raw >ours && qemu-img map -f raw empty.raw >theirs && diff ours theirs"
ok "img map says what qemu-img says" bash -c "'$img' map -f raw disk.raw >ours && qemu-img map -f raw disk.raw >theirs && diff ours theirs"
ok "img convert copies the bytes and not the holes" bash -c "
    '$img' convert -f raw -O raw disk.raw copy.raw && cmp disk.raw copy.raw && [ \$(stat -c %b copy.raw) -le \$(stat -c %b disk.raw) ]"
ok "img convert -S 0 fills the holes" bash -c "'$img' convert -S 0 -f raw -O raw disk.raw full.raw && cmp disk.raw full.raw && [ \$(stat -c %b full.raw) -ge 2048 ]"
ok "img convert of two images puts one behind the other" bash -c "
    '$img' convert -f raw -O raw disk.raw copy.raw both.raw && cat disk.raw copy.raw | cmp - both.raw"
ok "img convert -n writes into what is there" bash -c "
    cp disk.raw other.raw && '$io' format=raw other.raw 'write 500k 4k 9' && '$img' convert -n -f raw -O raw disk.raw other.raw && cmp disk.raw other.raw"
ok_not "... if it is large enough" "$img" convert -n -f raw -O raw both.raw disk.raw
ok "img convert -p shows 100 %" says '(100.00/100%)' "$img" convert -p -f raw -O raw disk.raw copy.raw
ok "img compare: same, different, missing" bash -c "
    '$img' compare disk.raw copy.raw && { '$img' compare disk.raw new.raw; [ \$? -eq 1 ]; } && { '$img' compare disk.raw nothere; [ \$? -eq 2 ]; }"
ok "img compare: a longer image of zeroes is the same, unless -s" bash -c "
    truncate -s 2M copy.raw && '$img' compare disk.raw copy.raw && ! '$img' compare -s disk.raw copy.raw"
ok "img resize: relative sizes, --shrink" bash -c "
    '$img' resize -q -f raw copy.raw +1M && [ \$(stat -c %s copy.raw) -eq 3145728 ] && ! '$img' resize -f raw copy.raw 1M &&
    '$img' resize -f raw --shrink copy.raw -2M && [ \$(stat -c %s copy.raw) -eq 1048576 ] && '$img' resize -f raw --preallocation=falloc copy.raw 2M"
ok "img check: not for raw, status 63" bash -c "'$img' check disk.raw; [ \$? -eq 63 ]"

# ---- the command line ----

usage() { # command...: status 2 and a pointer to help
    "$@" >said 2>&1
    [ $? -eq 2 ] && cat said && grep -q -- --help said
}
ok "no command" usage "$img"
ok "an unknown command" usage "$img" frob
ok "an unknown option" usage "$img" info --frob disk.raw
ok "an unknown letter" usage "$img" info -Z disk.raw
ok "the beginning of two options" usage "$img" create -f qcow2 --backing=disk.raw -F raw two.qcow2
ok "a value for an option that has none" usage "$img" convert --progress=3 disk.raw copy2.raw
ok "an option of several names may be short where it is clear" "$img" convert --sp=4k --prog disk.raw copy2.raw
ok "a missing name" usage "$img" info
ok "a missing value" usage "$img" info disk.raw -f
ok "a name too many" usage "$img" info disk.raw copy.raw
manual=$OLDPWD/docs/ringside-img.1
in_manual() { # sub-command: its part of the page names its options, with their arguments, as --help does
    "$img" "$1" --help | sed -n 's/^ *\(\(-[a-zA-Z], \)\{0,1\}--[^ ]*\).*/\1/p' | grep -v -e --help | sort >options
    awk -v c="$1" '/^\.S[SH]/ { on = $2 == c } on' "$manual" | sed -n 's/^\\fB\(.*\)\\fR$/\1/p' | tr -d "\\\\" | sort >named
    [ -s options ] && diff options named
}
for command in create info check map convert compare resize snapshot commit rebase; do
    ok "$command --help" says 'usage: ringside-img' "$img" $command --help
    ok "$command: the manual page has every option" in_manual $command
done
ok "--version" "$img" --version
ok_not "a size that is none" "$img" create -f raw x.raw 1X
ok_not "output of another kind" "$img" info --output=xml disk.raw
ok "messages begin with the program and name the file" says 'ringside-img: nothere: ' "$img" info nothere
done_testing
