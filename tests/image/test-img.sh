#!/usr/bin/env bash
# ringside-img on qcow2 images, each sub-command against qemu-img: same bytes, same JSON, same exit status.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
img=$bin/ringside-img
poke=$tools/tool_poke

status() { # expected, command...
    local expected=$1 got
    shift
    "$@"
    got=$?
    echo "exit status $got"
    [ $got -eq "$expected" ]
}

# Both programs' JSON about an image is the same. A file system may give a file another block when it writes it out,
# between one program and the other: then both look once more.
same_json() { # sub-command, arguments...
    local command=$1 round ours theirs
    shift
    for round in 1 2 3; do
        "$img" "$command" --output=json "$@" >ours.txt
        ours=$?
        qemu-img "$command" --output=json "$@" >theirs.txt
        theirs=$?
        jq -S . ours.txt >ours.json && jq -S . theirs.txt >theirs.json && diff ours.json theirs.json && [ $ours -eq $theirs ] &&
            return
        sync ./*
    done
    return 1
}

same_content() { # image, image: by qemu-img
    qemu-img compare "$1" "$2"
}

# An image with a bit of everything: data, zeroes, compressed, holes.
fill() { # image, seed
    qemu-io -f qcow2 -c "write -P $2 0 300k" -c "write -z 512k 128k" -c "write -c -P $(($2 + 1)) 1M 64k" \
        -c "write -P $(($2 + 2)) 3000k 70k" -c "discard 64k 64k" -c "write -P $(($2 + 3)) 1501k 1k" -c "write -z 1520k 3k" "$1" >/dev/null
}

# ---- create ----

variants=(
    ""
    "compat=0.10"
    "cluster_size=512"
    "cluster_size=4k,refcount_bits=1"
    "cluster_size=2M,refcount_bits=64"
    "lazy_refcounts=on,refcount_bits=8"
    "extended_l2=on,cluster_size=16k"
    "compression_type=zstd"
    "preallocation=metadata"
    "preallocation=falloc"
    "preallocation=full,cluster_size=4k"
    "data_file=data.bin,data_file_raw=on"
)
for variant in "${variants[@]}"; do
    rm -f x.qcow2 y.qcow2 data.bin
    options=()
    [ -n "$variant" ] && options=(-o "$variant")
    ok "create ${variant:-without options}: qemu-img check finds nothing" bash -c "
        '$img' create -q -f qcow2 ${options[*]} x.qcow2 4M && qemu-img check x.qcow2"
    ok "... info and map are what qemu-img says" bash -c "$(declare -f same_json); img='$img'; same_json info x.qcow2 && same_json map x.qcow2"
    cp x.qcow2 z.qcow2
    case $variant in *data_file*) continue ;; esac
    qemu-img create -q -f qcow2 "${options[@]}" y.qcow2 4M
    "$img" info --output=json x.qcow2 | jq -S 'del(.filename, ."actual-size")' >ours.json
    "$img" info --output=json y.qcow2 | jq -S 'del(.filename, ."actual-size")' >theirs.json
    ok "... and it is the image that qemu-img would have made" diff ours.json theirs.json
    fill x.qcow2 7
    ok "... QEMU writes to it, we read the same" bash -c "'$img' convert -O raw x.qcow2 x.raw && qemu-img compare -f qcow2 -F raw x.qcow2 x.raw"
    ok "... info, map and check agree with qemu-img then" bash -c "$(declare -f same_json); img='$img'; same_json info x.qcow2 && same_json map x.qcow2 && same_json check x.qcow2"
done

for bad in cluster_size=1000 cluster_size=4M refcount_bits=3 refcount_bits=128 compat=2 frob=1 cluster_size compression_type=lzo preallocation=some 'lazy_refcounts=maybe' lazy_refcounts= nocow; do
    ok "create -o $bad is refused with a sentence" says "-o ${bad%%=*}" "$img" create -f qcow2 -o "$bad" bad.qcow2 1M
done
ok "create -o help lists the options" says cluster_size "$img" create -f qcow2 -o help
for bad in '' 'compat=1.1,' ',compat=1.1'; do
    rm -f n.qcow2
    ok "create -o '$bad' is refused with a sentence" says "'$bad'" "$img" create -f qcow2 -o "$bad" n.qcow2 1M
    ok_not "... and makes nothing" test -e n.qcow2
done
ok "a boolean option without a value is on" bash -c "'$img' create -q -f qcow2 -o lazy_refcounts,extended_l2 n.qcow2 1M && '$img' info --output=json n.qcow2 | jq -e '.\"format-specific\".data | .\"lazy-refcounts\" and .\"extended-l2\"'"
rm -f n.qcow2
printf 'a secret' >secret
truncate -s 1M plain
for option in cipher-alg=aes-256 cipher-mode=xts hash-alg=sha256 iter-time=10 ivgen-alg=plain64 ivgen-hash-alg=sha256; do
    for do in "create -f qcow2 --secret-file=secret -o encrypt.$option n.qcow2 10M" "create -f qcow2 -o encrypt.$option n.qcow2 10M" \
        "convert -f raw -O qcow2 --secret-file=secret -o encrypt.$option plain n.qcow2"; do
        # shellcheck disable=SC2086 # words
        ok "$do does not make an image that is not encrypted" says "-o encrypt.${option%=*}: the image would not be encrypted, since encrypt.format is missing (-o encrypt.format=luks)" "$img" $do
    done
done
ok "create with a passphrase and no encryption is refused" says 'would not be encrypted (-o encrypt.format=luks is missing)' "$img" create -f qcow2 --secret-file=secret n.qcow2 10M
ok "... and of a raw image" says 'raw images cannot be' "$img" create -f raw --secret-file=secret n.qcow2 10M
ok "... and encryption without a passphrase" says 'the passphrase is missing (--secret-file=FILE)' "$img" create -f qcow2 -o encrypt.iter-time=10,encrypt.format=luks n.qcow2 10M
ok_not "... and has made nothing" test -e n.qcow2
for format in raw qcow2; do
    ok "create -f $format with two sizes is refused" says "the size is given twice: '2G', and -o size=1G" "$img" create -f $format -o size=1G n.qcow2 2G
done
ok_not "... and has made nothing" test -e n.qcow2
for options in "" preallocation=metadata,lazy_refcounts preallocation=off compat=0.10 data_file=n.bin data_file=n.bin,data_file_raw=on \
    data_file=n.bin,data_file_raw=off,refcount_bits=8 backing_file=plain,backing_fmt=raw,cluster_size=4k; do
    ok "create ${options:-without options} says what it makes as qemu-img does" bash -c "
        '$img' create -f qcow2 ${options:+-o $options} n.qcow2 1M >ours && rm -f n.bin && qemu-img create -f qcow2 ${options:+-o $options} n.qcow2 1M >theirs && diff ours theirs"
    rm -f n.qcow2 n.bin
done
ok "... of a raw image" bash -c "'$img' create -f raw -o preallocation=falloc n.raw 1M >ours && qemu-img create -f raw -o preallocation=falloc n.raw 1M >theirs && diff ours theirs"
ok "... of an encrypted one" bash -c "
    '$img' create -f qcow2 --secret-file=secret -o encrypt.format=luks,encrypt.iter-time=10,encrypt.hash-alg=sha512 n.qcow2 1M >ours &&
    qemu-img create --object secret,id=s,file=secret -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.hash-alg=sha512 n.qcow2 1M | sed 's/ encrypt.key-secret=s//' >theirs && diff ours theirs"
rm -f n.qcow2 n.raw
ok "create -o size= stands for the size" bash -c "'$img' create -q -f qcow2 -o size=3M s.qcow2 && [ \$('$img' info --output=json s.qcow2 | jq '.\"virtual-size\"') -eq 3145728 ]"
ok_not "create without a size" "$img" create -f qcow2 n.qcow2
ok_not "create -b without -F" "$img" create -f qcow2 -b x.qcow2 n.qcow2
ok_not "create of a format that we can't" "$img" create -f vmdk n.vmdk 1M
ok_not "create -f raw -o preallocation=metadata" "$img" create -f raw -o preallocation=metadata n.raw 1M
for own in "-b new.qcow2 -F qcow2 -u" "-o data_file=./new.qcow2"; do
    # shellcheck disable=SC2086 # several words
    ok "create $own of an image that is not there yet" says "is the image itself: it cannot be its own" "$img" create -f qcow2 $own new.qcow2 4M
    ok "... makes nothing" test ! -e new.qcow2
done
cp z.qcow2 itself.qcow2
ln -s itself.qcow2 alias.qcow2
for own in "-b itself.qcow2" "-b ./alias.qcow2" "-u -b itself.qcow2"; do
    ok "create $own of the image itself leaves it whole" bash -c "! '$img' create -f qcow2 $own -F qcow2 itself.qcow2 4M && cmp itself.qcow2 z.qcow2"
done
ok "create with itself as its data file leaves it whole" bash -c "! '$img' create -f qcow2 -o data_file=alias.qcow2 itself.qcow2 4M && cmp itself.qcow2 z.qcow2"
ok "create with its backing file as its data file leaves that whole" bash -c "! '$img' create -f qcow2 -b itself.qcow2 -F qcow2 -o data_file=alias.qcow2 n.qcow2 4M && cmp itself.qcow2 z.qcow2 && [ ! -e n.qcow2 ]"
qemu-img create -q -f qcow2 low.qcow2 4M
qemu-img create -q -f qcow2 -b low.qcow2 -F qcow2 mid.qcow2
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 high.qcow2
for below in low mid; do
    cp $below.qcow2 was.qcow2
    ok "create over an image that is further down in its backing file leaves it whole: $below" bash -c "! '$img' create -f qcow2 -b high.qcow2 -F qcow2 $below.qcow2 4M && cmp $below.qcow2 was.qcow2"
    ok "... convert too" bash -c "! '$img' convert -O qcow2 -B high.qcow2 -F qcow2 z.qcow2 $below.qcow2 && cmp $below.qcow2 was.qcow2"
    ok "... and as the data file" bash -c "! '$img' create -f qcow2 -b high.qcow2 -F qcow2 -o data_file=$below.qcow2 n.qcow2 4M && cmp $below.qcow2 was.qcow2 && [ ! -e n.qcow2 ]"
done
mkdir folder
ok "create whose data file is a directory leaves the image whole" bash -c "! '$img' create -f qcow2 -o data_file=folder itself.qcow2 4M && cmp itself.qcow2 z.qcow2"
truncate -s 4M busy.raw
# Whoever looks at it meanwhile could be in the way.
start busy stdbuf -oL qemu-io -f raw -c 'read 0 512' -c 'sleep 600000' busy.raw
wait_for 60 grep -q '^read 512' busy.log
ok "... and one that is in use" bash -c "
    '$img' create -f qcow2 -o data_file=busy.raw itself.qcow2 4M 2>said; [ \$? -eq 1 ] && grep 'is in use' said && cmp itself.qcow2 z.qcow2"
stop busy

# ---- info ----

qemu-img create -q -f qcow2 base.qcow2 4M
fill base.qcow2 1
qemu-io -c 'write -P 77 3700k 20k' base.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
fill top.qcow2 20
qemu-io -c 'write -P 5 2M 64k' top.qcow2 >/dev/null
ok "info of an overlay, alone and with its chain" bash -c "$(declare -f same_json); img='$img'; same_json info top.qcow2 && same_json info --backing-chain top.qcow2"
ok "info as text has the same lines" bash -c "'$img' info top.qcow2 >ours && qemu-img info top.qcow2 >theirs && diff ours theirs"
ok "map across the chain" bash -c "$(declare -f same_json); img='$img'; same_json map top.qcow2"
qemu-img create -q -f qcow2 -o extended_l2=on -b base.qcow2 -F qcow2 sub.qcow2
fill sub.qcow2 30
ok "map of subclusters over a backing file" bash -c "$(declare -f same_json); img='$img'; same_json map sub.qcow2"
ok "map of a part" bash -c "$(declare -f same_json); img='$img'; same_json map --start-offset=100k --max-length=1M top.qcow2"
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 longer.qcow2 6M
qemu-img create -q -f qcow2 -b longer.qcow2 -F qcow2 longest.qcow2 7M
qemu-io -c 'write -P 3 5M 64k' longest.qcow2 >/dev/null
ok "map behind the ends of shorter backing files" bash -c "$(declare -f same_json); img='$img'; same_json map longest.qcow2"
truncate -s 1000 odd.raw
truncate -s 70000 odd2.raw
printf 'not a multiple of 512' >>odd2.raw
ok "map of files that end within a sector" bash -c "$(declare -f same_json); img='$img'; same_json map odd.raw && same_json map odd2.raw"
qemu-img snapshot -c first base.qcow2
qemu-img snapshot -c second base.qcow2
ok "info lists snapshots" bash -c "$(declare -f same_json); img='$img'; same_json info base.qcow2 && '$img' info base.qcow2 >ours && qemu-img info base.qcow2 >theirs && diff ours theirs"
cp base.qcow2 bitmaps.qcow2
qemu-img bitmap --add bitmaps.qcow2 b0
ok "info lists snapshots and bitmaps" bash -c "$(declare -f same_json); img='$img'; same_json info bitmaps.qcow2 && '$img' info bitmaps.qcow2 >ours && qemu-img info bitmaps.qcow2 >theirs && diff ours theirs"
printf 'QFI\373' >bad.qcow2
ok "a header that is cut short gets a sentence" says 'ringside-img: bad.qcow2' "$img" info bad.qcow2

# ---- convert ----

for from in base top; do
    for to in "-O raw" "-O qcow2" "-c -O qcow2" "-c -O qcow2 -o compression_type=zstd" "-O qcow2 -o cluster_size=512" "-O qcow2 -o extended_l2=on" "-O qcow2 -S 0" "-O qcow2 -m 1" "-c -O qcow2 -o cluster_size=2M" "-c -O qcow2 -o cluster_size=4k"; do
        rm -f out
        # shellcheck disable=SC2086
        ok "convert $to of $from gives qemu-img's bytes" bash -c "'$img' convert $to $from.qcow2 out && qemu-img compare $from.qcow2 out && { [ '$to' = '-O raw' ] || qemu-img check out; }"
    done
done
qemu-img convert -O raw top.qcow2 top.raw
for data in data_file_raw=on preallocation=metadata data_file_raw=off; do
    ok "convert with $data onto a data file that has something in it already" bash -c "
        rm -f out && tr '\\0' G </dev/zero | head -c 5M >data.old && '$img' convert -f raw -O qcow2 -o data_file=data.old,$data top.raw out &&
        qemu-img compare -f raw -F qcow2 top.raw out && qemu-img check out"
done
ok "convert of a raw image" bash -c "'$img' convert -f raw -O qcow2 top.raw out && qemu-img compare -f raw -F qcow2 top.raw out"
ok "convert -B copies only what the image itself has" bash -c "
    '$img' convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 thin.qcow2 && qemu-img compare top.qcow2 thin.qcow2 &&
    qemu-img map --output=json thin.qcow2 | jq -en 'input | any(.depth == 1 and .data)'"
ok "convert -l reads a snapshot" bash -c "
    cp base.qcow2 snap.qcow2 && qemu-io -c 'write -P 99 0 4M' snap.qcow2 >/dev/null &&
    '$img' convert -l first -O raw snap.qcow2 out.raw && qemu-img convert -l snapshot.name=first -O raw snap.qcow2 their.raw && cmp out.raw their.raw"
qemu-img create -q -f qcow2 named.qcow2 1M
pattern=0
for name in 2 1 dup dup; do # the first has the name that is the second one's id, and the other way round
    qemu-img snapshot -c $name named.qcow2
    qemu-io -c "write -q -P $((++pattern)) 0 64k" named.qcow2
done
for what in snapshot.id=1 snapshot.id=2 snapshot.name=1 snapshot.name=2 snapshot.name=dup snapshot.id=4,snapshot.name=dup 1 2 dup; do
    ok "convert -l $what reads what qemu-img reads" bash -c "
        '$img' convert -l $what -O raw named.qcow2 out.raw && qemu-img convert -l $what -O raw named.qcow2 their.raw && cmp out.raw their.raw"
done
for what in snapshot.id=dup snapshot.name=3 snapshot.id=1,snapshot.name=1 snapshot.tag=1; do
    ok_not "convert -l $what finds none" "$img" convert -l $what -O raw named.qcow2 out.raw
done
ok "convert -l of a raw image is refused" says "have no snapshots" "$img" convert -l first -f raw -O raw top.raw nosnap.raw
ok "... and makes nothing" test ! -e nosnap.raw
ok "convert -n --target-is-zero" bash -c "
    '$img' create -q -f qcow2 fresh.qcow2 4M && '$img' convert -n --target-is-zero -O qcow2 top.qcow2 fresh.qcow2 && qemu-img compare top.qcow2 fresh.qcow2"
ok_not "convert -c to raw" "$img" convert -c -O raw top.qcow2 out.raw
ok "convert to a directory that is not there says so" says 'No such file' "$img" convert -O raw top.qcow2 nodir/out
ok_not "convert over its own source" "$img" convert -O qcow2 top.qcow2 top.qcow2
ok "... leaves it whole" qemu-img compare top.qcow2 top.raw
ok "convert reads an image whose reads fail only with an error" bash -c "
    head -c 300000 base.qcow2 >cut.qcow2; '$img' convert -O raw cut.qcow2 out.raw; [ \$? -eq 1 ]"

# ---- compare ----

cp top.qcow2 other.qcow2
qemu-io -c 'write -P 3 2500k 4k' other.qcow2 >/dev/null
ok "compare: identical" status 0 "$img" compare top.qcow2 top.raw
ok "compare: different, with the place" bash -c "'$img' compare top.qcow2 other.qcow2 | grep 2560000"
ok "compare: status 1" status 1 "$img" compare -q top.qcow2 other.qcow2
ok "compare: status 2 for what can't be opened" status 2 "$img" compare nothere top.qcow2
ok "compare -s: other allocation, status 1" status 1 "$img" compare -s top.qcow2 top.raw

# ---- resize ----

for size in +1M 10M 8388608; do
    cp base.qcow2 r.qcow2
    cp base.qcow2 q.qcow2
    qemu-img snapshot -d first r.qcow2
    qemu-img snapshot -d second r.qcow2
    cp r.qcow2 q.qcow2
    ok "resize $size as qemu-img" bash -c "'$img' resize -q r.qcow2 $size && qemu-img resize -q q.qcow2 $size && qemu-img compare -s r.qcow2 q.qcow2 && qemu-img check r.qcow2"
done
qemu-img create -q -f qcow2 r.qcow2 4M
fill r.qcow2 3
ok "resize smaller only with --shrink" status 1 "$img" resize r.qcow2 2M
ok "resize --shrink" bash -c "'$img' resize --shrink r.qcow2 2M && qemu-img check r.qcow2 && '$img' resize r.qcow2 4M && qemu-io -c 'read -P 0 2M 2M' r.qcow2 | tee out && ! grep failed out"
ok "resize --preallocation=metadata" bash -c "'$img' resize --preallocation=metadata r.qcow2 8M && qemu-img check r.qcow2 && '$img' map --output=json r.qcow2 | jq -en 'input | .[-1].present'"
cp r.qcow2 was.qcow2
for size in 0 +0; do
    ok "resize --preallocation=full to $size is refused" status 1 "$img" resize --preallocation=full --shrink r.qcow2 $size
done
ok "... which is for what is added" says '--preallocation=full is for what is added' "$img" resize --preallocation=full --shrink r.qcow2 1M
for size in 0 -0x800000 -8M -9M; do
    ok_not "resize --shrink $size is refused" "$img" resize --shrink r.qcow2 $size
done
ok "... with a sentence" says 'r.qcow2: would have no bytes left (a size has to be more than 0)' "$img" resize --shrink r.qcow2 0
ok "... and has changed nothing" cmp r.qcow2 was.qcow2
ok "resize of an image without a byte" bash -c "'$img' create -q -f qcow2 nothing.qcow2 0 && ! '$img' resize nothing.qcow2 0 && '$img' resize nothing.qcow2 1M"
ok "resize --preallocation=off --shrink" bash -c "'$img' resize -q --preallocation=off --shrink r.qcow2 6M && qemu-img check -q r.qcow2"
truncate -s 1M r.raw
for mode in falloc full; do
    ok "resize --preallocation=$mode of a raw image allocates" bash -c "'$img' resize -q -f raw --preallocation=$mode r.raw +4M && [ \$(stat -c %b r.raw) -ge 8192 ]"
    truncate -s 1M r.raw
done
ok "resize --shrink of a raw image to nothing is refused" bash -c "! '$img' resize -f raw --shrink r.raw 0 && [ \$(stat -c %s r.raw) -eq 1048576 ]"
# What lies behind the end of the disk (a snapshot's VM state does) does not come into it.
qemu-img create -q -f qcow2 under.qcow2 3M
qemu-io -c 'write -q -P 5 0 3M' under.qcow2
for compat in 0.10 1.1; do
    for backing in "" "-b under.qcow2 -F qcow2"; do
        # shellcheck disable=SC2086 # two words or none
        qemu-img create -q -f qcow2 -o compat=$compat $backing behind.qcow2 10M
        qemu-io -c 'write -q -P 7 2M 6M' behind.qcow2
        "$poke" behind.qcow2 size=0x200000
        ok "resize: what lay behind the end reads as zeroes (compat=$compat $backing)" bash -c "'$img' resize -q behind.qcow2 10M && qemu-img check -q behind.qcow2 && qemu-io -c 'read -P 0 2M 8M' behind.qcow2 | tee out && ! grep failed out"
    done
done
# The end of the disk in a cluster that shows the backing file.
for compat in 0.10 1.1; do
    qemu-img create -q -f qcow2 -o compat=$compat -b under.qcow2 -F qcow2 ends.qcow2 96K
    ok "resize keeps what shows of the backing file in the last cluster (compat=$compat)" bash -c "'$img' resize -q ends.qcow2 1M && qemu-img check -q ends.qcow2 && qemu-io -c 'read -P 5 0 96k' -c 'read -P 0 96k 928k' ends.qcow2 | tee out && ! grep failed out"
done
for mode in metadata falloc full; do
    qemu-img create -q -f raw ends.raw 80K
    qemu-io -f raw -c 'write -q -P 5 0 80k' ends.raw
    qemu-img create -q -f qcow2 -b ends.raw -F raw ends.qcow2 96K
    ok "so does resize --preallocation=$mode" bash -c "'$img' resize -q --preallocation=$mode ends.qcow2 1M && qemu-img check -q ends.qcow2 && qemu-io -c 'read -P 5 0 80k' -c 'read -P 0 80k 944k' ends.qcow2 | tee out && ! grep failed out && qemu-img map --output=json ends.qcow2 | jq -en 'input | all(.start < 65536 or .depth == 0)'"
done
# An L1 table of more clusters than one refcount block counts: its blocks must not come to lie in its way.
for bits in 1 16 64; do
    "$img" create -q -f qcow2 -o cluster_size=512,refcount_bits=$bits long.qcow2 1M
    ok "resize to an L1 table longer than a refcount block's range, $bits bits" bash -c "timeout 120 '$img' resize -q long.qcow2 8G && qemu-img check -q long.qcow2 && test \$(stat -c %s long.qcow2) -lt 8388608"
done
qemu-io -c 'write -q -P 7 5G 64k' long.qcow2
ok "a snapshot of it, gone back to and deleted" bash -c "timeout 120 '$img' snapshot -c one long.qcow2 && qemu-img check -q long.qcow2 && qemu-io -c 'write -q -P 9 5G 64k' long.qcow2 && '$img' snapshot -a one long.qcow2 && qemu-img check -q long.qcow2 && qemu-io -c 'read -P 7 5G 64k' long.qcow2 | tee out && ! grep failed out && '$img' snapshot -d one long.qcow2 && qemu-img check -q long.qcow2"
ok "a size that is none" status 2 "$img" resize r.qcow2 12Q

# ---- check ----

ok "check of a good image" status 0 "$img" check base.qcow2
python3 - base.qcow2 leak.qcow2 corrupt.qcow2 <<'PY'
import struct, sys
data = bytearray(open(sys.argv[1], 'rb').read())
table = struct.unpack('>Q', data[48:56])[0]
block = struct.unpack('>Q', data[table:table + 8])[0]
leak = bytearray(data)
leak += bytes(-len(leak) % 65536)
leak += bytes(65536)
n = len(leak) // 65536 - 1
leak[block + 2 * n:block + 2 * n + 2] = struct.pack('>H', 1)
open(sys.argv[2], 'wb').write(leak)
bad = bytearray(data)
l1 = struct.unpack('>Q', data[40:48])[0]
l2 = struct.unpack('>Q', data[l1:l1 + 8])[0] & 0x00fffffffffffe00
host = struct.unpack('>Q', data[l2:l2 + 8])[0] & 0x00fffffffffffe00
bad[block + 2 * (host >> 16):block + 2 * (host >> 16) + 2] = struct.pack('>H', 0)
open(sys.argv[3], 'wb').write(bad)
PY
ok "check: leaks are status 3" status 3 "$img" check leak.qcow2
ok "check: corruption is status 2" status 2 "$img" check corrupt.qcow2
ok "check --output=json counts as qemu-img does" bash -c "$(declare -f same_json); img='$img'; same_json check leak.qcow2 && same_json check corrupt.qcow2"
for image in base.qcow2 leak.qcow2 corrupt.qcow2; do
    ok "check -q --output=json of $image prints nothing, as qemu-img" bash -c "
        '$img' check -q --output=json $image >ours; status=\$?; qemu-img check -q --output=json $image >theirs; [ \$? -eq \$status ] && diff ours theirs && [ ! -s ours ]"
done
ok "check -r leaks repairs leaks" bash -c "'$img' check -r leaks leak.qcow2 && qemu-img check leak.qcow2 && qemu-img compare leak.qcow2 base.qcow2"
ok "check -r all repairs corruption" bash -c "'$img' check -r all corrupt.qcow2 && qemu-img check corrupt.qcow2 && qemu-img compare corrupt.qcow2 base.qcow2"
# An L2 entry that leads into the middle of a cluster is not mended here; then check must not send the user back to -r all.
python3 - base.qcow2 lost.qcow2 <<'PY'
import struct, sys
image = bytearray(open(sys.argv[1], 'rb').read())
l1 = struct.unpack_from('>Q', image, 40)[0]
l2 = struct.unpack_from('>Q', image, l1)[0] & 0x00fffffffffffe00
struct.pack_into('>Q', image, l2, 1 << 63 | 0x12345)
open(sys.argv[2], 'wb').write(image)
PY
ok "check says what repairs, but not what has just been tried" bash -c "'$img' check lost.qcow2 >said; grep 'errors were found.*check -r all repairs' said && ! '$img' check -r all lost.qcow2 >said && grep 'errors were found' said && ! grep 'repairs)' said"
ok "check -r of something else is status 1: 2 is a corrupt image" status 1 "$img" check -r everything base.qcow2
ok "check -r while others may write is refused" bash -c "! '$img' check -U -r all base.qcow2 2>said && grep -q -e -U said"

for wrong in "--frob base.qcow2" "" "--output=xml base.qcow2" "-t never base.qcow2"; do
    # shellcheck disable=SC2086 # several words
    ok "check $wrong: status 1, as qemu-img" bash -c "'$img' check $wrong; [ \$? -eq 1 ] && { qemu-img check $wrong; [ \$? -eq 1 ]; }"
done

# ---- snapshot ----

qemu-img create -q -f qcow2 s.qcow2 4M
fill s.qcow2 30
qemu-img convert -O raw s.qcow2 s0.raw
ok "snapshot -c" bash -c "'$img' snapshot -c one s.qcow2 && qemu-img check s.qcow2 && qemu-img snapshot -l s.qcow2 | grep -w one"
fill s.qcow2 60
qemu-img convert -O raw s.qcow2 s1.raw
ok "snapshot -c again" bash -c "'$img' snapshot -c two s.qcow2 && qemu-img check s.qcow2"
ok "snapshot -l is qemu-img's list" bash -c "'$img' snapshot -l s.qcow2 >ours && qemu-img snapshot -l s.qcow2 >theirs && diff ours theirs"
ok "a snapshot of ours has the format's icount of a guest that was not counted, which QEMU reads as none" bash -c "qemu-img info --output=json s.qcow2 | jq -e 'all(.snapshots[]; has(\"icount\") | not)'"
ok "snapshot -a by name" bash -c "'$img' snapshot -a one s.qcow2 && qemu-img compare s.qcow2 s0.raw && qemu-img check s.qcow2"
ok "snapshot -a by id" bash -c "'$img' snapshot -a 2 s.qcow2 && qemu-img compare s.qcow2 s1.raw && qemu-img check s.qcow2"
ok "snapshot -d" bash -c "'$img' snapshot -d one s.qcow2 && qemu-img compare s.qcow2 s1.raw && qemu-img check s.qcow2 && ! qemu-img snapshot -l s.qcow2 | grep -w one"
ok "snapshot -a and -d of what is not there" bash -c "! '$img' snapshot -a nope s.qcow2 && ! '$img' snapshot -d nope s.qcow2"
qemu-img create -q -f qcow2 ids.qcow2 1M
qemu-img snapshot -c 2 ids.qcow2
qemu-img snapshot -c other ids.qcow2
ok "snapshot -d means a name, not an id" bash -c "! '$img' snapshot -d 1 ids.qcow2 && '$img' snapshot -d 2 ids.qcow2 && qemu-img snapshot -l ids.qcow2 | grep -w other"
ok "snapshot of two kinds at a time" status 2 "$img" snapshot -l -c x s.qcow2
ok "snapshot of one kind twice, where one would be left out" status 2 "$img" snapshot -c x -c y s.qcow2
ok "... -d as well, and nothing is deleted" bash -c "'$img' snapshot -l s.qcow2 >before && ! '$img' snapshot -d two -d nope s.qcow2 && ! '$img' snapshot -d nope -d two s.qcow2 && '$img' snapshot -l s.qcow2 | diff before -"
ok_not "snapshot of a raw image" "$img" snapshot -l top.raw

# ---- commit ----

for drop in "" -d; do
    cp base.qcow2 cbase.qcow2
    qemu-img create -q -f qcow2 -b cbase.qcow2 -F qcow2 ctop.qcow2 6M
    fill ctop.qcow2 40
    qemu-io -c 'write -P 8 5M 64k' ctop.qcow2 >/dev/null
    qemu-img convert -O raw ctop.qcow2 want.raw
    ok "commit $drop writes all into the backing file, which grows" bash -c "
        '$img' commit $drop ctop.qcow2 && qemu-img compare cbase.qcow2 want.raw && qemu-img check cbase.qcow2 && qemu-img check ctop.qcow2 && qemu-img compare ctop.qcow2 want.raw"
done
ok "commit without -d empties the image" bash -c "
    fill() { :; }; qemu-io -c 'write -P 9 1M 1M' ctop.qcow2 >/dev/null && '$img' commit ctop.qcow2 &&
    [ \$('$img' map --output=json ctop.qcow2 | jq '[.[] | select(.depth == 0 and .data)] | length') -eq 0 ]"
cp base.qcow2 cbase.qcow2
qemu-img create -q -f qcow2 -b cbase.qcow2 -F qcow2 cmid.qcow2
qemu-io -c 'write -P 51 0 1M' cmid.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b cmid.qcow2 -F qcow2 ctop.qcow2
qemu-io -c 'write -P 52 512k 1M' ctop.qcow2 >/dev/null
qemu-img convert -O raw ctop.qcow2 want.raw
empties_with_data_file() { # whose clusters are no clusters of the image
    qemu-img create -q -f qcow2 filebase.qcow2 4M && qemu-img create -q -f qcow2 -b filebase.qcow2 -F qcow2 -o "data_file=clusters.bin" file.qcow2 &&
        qemu-io -c 'write -q -P 5 64k 1M' -c 'write -q -P 6 2M 64k' file.qcow2 && qemu-img convert -O raw file.qcow2 filewant.raw &&
        "$img" commit file.qcow2 && "$img" check -q file.qcow2 && qemu-img check -q file.qcow2 &&
        qemu-img compare filebase.qcow2 filewant.raw && qemu-img compare file.qcow2 filewant.raw
}
ok "commit empties an image with an external data file" empties_with_data_file
ok "commit -b goes down several layers" bash -c "'$img' commit -b cbase.qcow2 ctop.qcow2 && qemu-img compare cbase.qcow2 want.raw && qemu-img check cbase.qcow2"
ok_not "commit -b of what is not below" "$img" commit -b top.qcow2 ctop.qcow2
ok_not "commit of an image without a backing file" "$img" commit base.qcow2
# A guest that writes a qcow2 header to its raw disk would choose what is written to next.
no_guess() {
    qemu-img create -q -f raw others.raw 1M && qemu-img create -q -f qcow2 -o data_file=others.raw,data_file_raw=on guest.raw 1M &&
        truncate -s 1M guest.raw && qemu-img create -q -f qcow2 -b guest.raw -F raw guess.qcow2 1M &&
        qemu-io -c 'write -q -P 0x61 64k 64k' guess.qcow2 && "$poke" guess.qcow2 @112:4=0x12345678 || return 1
    sum=$(cat guest.raw others.raw | md5sum)
    said=$("$img" commit guess.qcow2 2>&1) && return 1
    [[ $said == *"has no format in the header"* ]] && [ "$sum" = "$(cat guest.raw others.raw | md5sum)" ]
}
ok "D7 commit does not guess the format of the backing file" no_guess

# ---- rebase ----

for new in base2.qcow2 short.raw ""; do
    cp top.qcow2 rtop.qcow2
    qemu-img create -q -f qcow2 base2.qcow2 8M
    fill base2.qcow2 70
    truncate -s 1M short.raw
    fmt=()
    [ -n "$new" ] && fmt=(-F "${new##*.}")
    ok "rebase to '${new:-nothing}' keeps the content" bash -c "
        '$img' rebase -b '$new' ${fmt[*]} rtop.qcow2 && qemu-img compare rtop.qcow2 top.raw && qemu-img check rtop.qcow2 &&
        [ \"\$('$img' info --output=json rtop.qcow2 | jq -r '.\"backing-filename\" // \"\"')\" = '$new' ]"
done
cp top.qcow2 rtop.qcow2
cp base.qcow2 renamed.qcow2
ok "rebase -u changes the name only" bash -c "
    '$img' rebase -u -b renamed.qcow2 -F qcow2 rtop.qcow2 && qemu-img compare rtop.qcow2 top.raw && qemu-img info rtop.qcow2 | grep renamed"
ok "rebase -u to what is not there" "$img" rebase -u -b gone.qcow2 -F qcow2 rtop.qcow2
ok_not "... which then can't be opened" "$img" compare rtop.qcow2 top.raw
# Zeroes that no cluster says stay zeroes over a backing file that has something there.
qemu-img create -q -f qcow2 full.qcow2 1M
qemu-io -c 'write -q -P 5 0 32k' -c 'write -q -P 7 32k 992k' full.qcow2
qemu-img create -q -f qcow2 short.qcow2 32k
qemu-io -c 'write -q -P 5 0 32k' short.qcow2
for compat in 0.10 1.1; do
    qemu-img create -q -f qcow2 -o compat=$compat blank.qcow2 1M
    qemu-io -c 'write -q -P 3 0 64k' -c 'write -q -P 3 300k 4k' blank.qcow2
    cp blank.qcow2 was.qcow2
    ok "rebase from nothing to something (compat=$compat)" bash -c "'$img' rebase -b full.qcow2 -F qcow2 blank.qcow2 && qemu-img compare blank.qcow2 was.qcow2 && qemu-img check -q blank.qcow2"
    qemu-img create -q -f qcow2 -o compat=$compat -b short.qcow2 -F qcow2 blank.qcow2 1M
    qemu-img convert -O raw blank.qcow2 was.raw
    ok "rebase from a shorter one to a longer one, alike at first (compat=$compat)" bash -c "'$img' rebase -b full.qcow2 -F qcow2 blank.qcow2 && qemu-img compare blank.qcow2 was.raw && qemu-img check -q blank.qcow2"
done
"$img" create -q -f qcow2 -b blank.qcow2 -F qcow2 self.qcow2
ln -s self.qcow2 link.qcow2
for target in self.qcow2 ./self.qcow2 link.qcow2 blank.qcow2; do
    ok "convert self.qcow2 $target says that this is read itself" says "$target: is read as a part of the source 'self.qcow2'" \
        "$img" convert -O qcow2 self.qcow2 $target
done
ok "... and has not touched it" "$img" check -q self.qcow2
ok "... nor with -n" says "is read as a part of the source" "$img" convert -n -O qcow2 self.qcow2 self.qcow2
ok "convert -B with two sources is refused" status 2 "$img" convert -O qcow2 -B full.qcow2 -F qcow2 blank.qcow2 blank.qcow2 two.qcow2
for way in "" -u; do
    cp rtop.qcow2 was.qcow2
    # shellcheck disable=SC2086 # one word or none
    {
        ok "rebase $way to itself says so" says "is the image itself: it cannot be its own backing file" "$img" rebase $way -b ./rtop.qcow2 -F qcow2 rtop.qcow2
        ok "rebase $way to an unknown format is refused" says "unknown format 'bogus' (qcow2 and raw are known)" "$img" rebase $way -b base.qcow2 -F bogus rtop.qcow2
        ok "rebase $way to the format null, too" says "unknown format 'null' (qcow2 and raw are known)" "$img" rebase $way -b base.qcow2 -F null rtop.qcow2
    }
    ok "... and the image is as it was" cmp rtop.qcow2 was.qcow2
done
"$img" create -q -f qcow2 -b base.qcow2 -F qcow2 loop1.qcow2
"$img" create -q -f qcow2 -b loop1.qcow2 -F qcow2 loop2.qcow2
ok "rebase to what stands on the image says so" says "the chain of files is a loop" "$img" rebase -b loop2.qcow2 -F qcow2 loop1.qcow2
mkdir elsewhere
"$img" create -q -f qcow2 elsewhere/low.qcow2 1M
"$img" create -q -f qcow2 -b elsewhere/low.qcow2 -F qcow2 high.qcow2
cp elsewhere/low.qcow2 low.copy
ok_not "create over what shows through, wherever it lies" "$img" create -q -f qcow2 -b ../high.qcow2 -F qcow2 elsewhere/low.qcow2
ok "... leaves it as it is" cmp elsewhere/low.qcow2 low.copy
# What measures ringside-blk is no format of images.
ok "info -f null" says "unknown format 'null' (qcow2 and raw are known)" "$img" info -f null nosuchfile
ok_not "... is refused" "$img" info -f null base.qcow2
ok_not "convert -f null is refused" "$img" convert -f null nosuchfile null.raw
ok "... and makes nothing" test ! -e null.raw
ok_not "compare -F null is refused" "$img" compare -F null base.qcow2 nosuchfile
ok_not "create -F null is refused" "$img" create -f qcow2 -b base.qcow2 -F null null.qcow2
ok_not "create -u -F null, too" "$img" create -f qcow2 -u -b base.qcow2 -F null null.qcow2 1M
ok "... and makes nothing" test ! -e null.qcow2
ok "rebase without -b" status 2 "$img" rebase rtop.qcow2
ok "rebase without -F" status 2 "$img" rebase -b base.qcow2 rtop.qcow2
ok_not "rebase of a raw image" "$img" rebase -b base.qcow2 -F qcow2 top.raw

# ---- encryption ----

printf 'a secret' >secret
printf 'another' >wrong
secret=(--object "secret,id=s,file=$tmp/secret")
crypt_io() { # image, qemu-io commands...
    local opts="driver=qcow2,encrypt.key-secret=s,file.filename=$1"
    shift
    qemu-io "${secret[@]}" "$@" --image-opts "$opts" | tee out
    ! grep -q 'verification failed' out
}
ok "create a LUKS image" "$img" create -f qcow2 -o encrypt.format=luks,encrypt.iter-time=10 --secret-file=secret crypt.qcow2 4M
ok "... which QEMU opens, writes and reads" crypt_io crypt.qcow2 -c 'write -P 5 1k 1M' -c 'read -P 5 1k 1M'
ok "... whose info is qemu-img's" same_json info crypt.qcow2
ok "... and whose content we read" bash -c "'$img' convert --secret-file=secret -O raw crypt.qcow2 plain.raw && cmp -n 1024 plain.raw /dev/zero &&
    [ \"\$(head -c 1M plain.raw | tail -c +1025 | tr -d '\\005' | wc -c)\" -eq 0 ]"
ok_not "not without the passphrase" "$img" convert -O raw crypt.qcow2 none.raw
ok "a passphrase in a pipe is waited for" bash -c "'$img' convert --secret-file=<(sleep 0.3; cat secret) -O raw crypt.qcow2 piped.raw && cmp plain.raw piped.raw"
ok "... and serves for making an image and for opening it" bash -c "
    '$img' convert -f raw -O qcow2 -o encrypt.format=luks,encrypt.iter-time=10 --secret-file=<(cat secret) plain.raw piped.qcow2 &&
    '$img' convert --secret-file=secret -O raw piped.qcow2 piped.raw && cmp plain.raw piped.raw"
ok_not "not with another one" "$img" convert --secret-file=wrong -O raw crypt.qcow2 none.raw
ok "convert into a LUKS image" bash -c "'$img' convert -f raw -O qcow2 -o encrypt.format=luks,encrypt.iter-time=10 --secret-file=secret plain.raw crypt2.qcow2"
ok "... which QEMU reads" crypt_io crypt2.qcow2 -c 'read -P 5 1k 1M' -c 'read -P 0 0 1k'
ok "check needs no passphrase" "$img" check crypt2.qcow2

# ---- locks on qcow2 ----

start qemu stdbuf -oL qemu-io -f qcow2 -c 'read 0 512' -c 'sleep 600000' top.qcow2
wait_for 60 grep -q '^read 512' qemu.log
ok_not "an image that QEMU has open is kept from info" "$img" info top.qcow2
ok "... not with -U" "$img" info -U top.qcow2
ok_not "... kept from check -r" "$img" check -r all top.qcow2
ok_not "its backing file is kept from being written" "$img" resize base.qcow2 +1M
ok "... by us too" "$img" info base.qcow2
stop qemu KILL
done_testing
