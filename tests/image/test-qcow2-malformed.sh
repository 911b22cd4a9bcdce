#!/usr/bin/env bash
# Malformed qcow2 images: each is refused with a sentence that names what is wrong, or fails just where it is damaged. One case
# for every [refuse] line of the format's checklist, by its number.
# shellcheck disable=SC2086 # options and places are words
. "$(dirname "$0")/../lib.sh"
tool=$tools/tool_qcow2
poke=$tools/tool_poke
img=$bin/ringside-img
cd "$tmp" || exit 1
case $RINGSIDE_BUILD in
*/asan | */tsan) ;;                # they reserve terabytes
*) ulimit -v 1500000 2>/dev/null ;; # no runaway memory (address space: stacks and caches are reserved, not used)
esac
export MALLOC_ARENA_MAX=2 # with many CPUs there are many, of 64 MiB of addresses each
export G=65536

# ---- images to damage ----
head -c 700000 /dev/urandom >random
seq 1 100000 | cat random - >content.raw
truncate -s 2M content.raw
qemu-img convert -O qcow2 content.raw v3.qcow2
qemu-img convert -O qcow2 -o compat=0.10 content.raw v2.qcow2
qemu-img convert -c -O qcow2 content.raw zlib.qcow2
qemu-img convert -c -O qcow2 -o compression_type=zstd content.raw zstd.qcow2
qemu-img convert -O qcow2 -o extended_l2=on content.raw ext.qcow2
qemu-img create -q -f qcow2 -b content.raw -F raw backed.qcow2
qemu-img create -q -f qcow2 -o data_file=data.raw data.qcow2 2M
qemu-io -c 'write -q 0 300k' data.qcow2
cp v3.qcow2 snap.qcow2
qemu-img snapshot -c one snap.qcow2
cp v3.qcow2 bitmap.qcow2
qemu-img bitmap --add bitmap.qcow2 first
qemu-io -c 'write -q 0 100k' bitmap.qcow2
printf secret >pass
printf wrong >wrong
"$tool" create luks.qcow2 size=2M encrypt=luks secret=pass

# refuses IMAGE PATTERN PLACES [OPTION...]: not opened, and the sentence matches
refuses() {
    cp "$1.qcow2" bad.qcow2
    "$poke" bad.qcow2 $3 || return 1
    timeout 120 "$tool" open bad.qcow2 "${@:4}" >said 2>&1
    local status=$?
    cat said
    [ $status -eq 1 ] && grep -qiE "$2" said
}
no() { # what, image, pattern, places, option...
    ok "$1: refused" refuses "$2" "$3" "$4" "${@:5}"
}
# opens and everything is right
yes() { # what, image, places
    takes() {
        cp "$1.qcow2" odd.qcow2
        "$poke" odd.qcow2 $2 && "$tool" dump odd.qcow2 ours.raw && cmp ours.raw content.raw
    }
    ok "$1: taken" takes "$2" "$3"
}

# ---- header, both versions ----
no "B1 magic" v3 "magic .*byte 0 " "magic=0x514649fa"
for v in 0 1 4 0xffffffff; do no "B2 version $v" v3 "version .*byte 4 " "version=$v"; done
no "B5 backing name of 1024 bytes" backed "backing_file_size .*1024" "backing_file_size=1024"
no "B6 backing name beyond the cluster" backed "backing_file_offset" "backing_file_offset=65530"
no "B6 backing name offset that wraps" backed "backing_file_offset" "backing_file_offset=0xffffffffffffffff"
for v in 0 8 22 30 31 32 63 64 0x7fffffff; do no "B7 cluster_bits $v" v3 "cluster_bits .*byte 20 " "cluster_bits=$v"; done
for v in 0x4000000000000000 0x7ffffffffffffe00 0x8000000000000000 0xffffffffffffffff; do
    no "B10 size $v" v3 "(size|l1_size) at byte" "size=$v"
done
no "B12 unknown encryption" v3 "crypt_method .*byte 32 " "crypt_method=3"
no "N3 AES without a passphrase" v3 "passphrase" "crypt_method=1"
no "B12 LUKS without its extension" v3 "crypt_method" "crypt_method=2"
no "B13 L1 offset unaligned" v3 "l1_table_offset .*aligned" "l1_table_offset=+512"
no "B14 l1_size too small" v3 "l1_size .*small" "l1_size=0"
no "B15 L1 over 32 MiB" v3 "l1_size .*32 MiB" "l1_size=0x400001"
no "B15 L1 offset overflows" v3 "l1_table_offset" "l1_table_offset=0xffffffffffff0000"
no "B16 L1 beyond the end of the file" v3 "l1_table_offset .*end of the file" "l1_table_offset=0x40000000"
no "B17 refcount table unaligned" v3 "refcount_table_offset .*aligned" "refcount_table_offset=+8"
no "B17 refcount table at 0" v3 "refcount_table_offset" "refcount_table_offset=0"
no "B17 refcount table overflows" v3 "refcount_table_offset" "refcount_table_offset=0xffffffffffff0000"
no "B18 no refcount table" v3 "refcount_table_clusters" "refcount_table_clusters=0"
no "B18 refcount table over 8 MiB" v3 "refcount_table_clusters .*8 MiB" "refcount_table_clusters=129"
no "B18 refcount table of 2^32-1 clusters" v3 "refcount_table_clusters" "refcount_table_clusters=0xffffffff"
no "B19 too many snapshots" snap "nb_snapshots .*65536" "nb_snapshots=65537"
no "B19 snapshot table unaligned" snap "snapshots_offset .*aligned" "snapshots_offset=+8"
no "B19 snapshot table overflows" snap "snapshots_offset" "snapshots_offset=0xffffffffffff0000"
no "B19 more snapshots than the file can hold" snap "nb_snapshots" "nb_snapshots=60000"
no "B21 version 2 relabelled 3" v2 "header_length|refcount_order|feature" "version=3"
yes "B8 size of whole sectors" v3 "size=2097152"
truncated() {
    head -c $1 v3.qcow2 >short.qcow2
    timeout 120 "$tool" open short.qcow2
}
for n in 0 3 71 103 512 65536 131072; do ok_not "cut to $n bytes: refused" truncated $n; done

# ---- version 3 ----
for b in 5 17 62 63; do no "C1 incompatible bit $b" v3 "feature.*bit $b" "incompatible_features=|$(printf %u $((1 << b)))"; done
no "C2 an unknown bit with a name" v3 "bit 7 .my feature" "addext:0x11111111=48 ext:0x6803f857:0:2=7 ext:0x6803f857:2:8=0x6d79206665617475 ext:0x6803f857:10:8=0x7265000000000000 incompatible_features=|128"
no "C2 names of odd length do no harm" v3 "bit 7" "ext:0x6803f857:-4:4=-1 incompatible_features=|128"
no "C6 corrupt bit, writable" v3 "corrupt" "incompatible_features=|2" rw
yes "C6 corrupt bit, read-only" v3 "incompatible_features=|2"
no "C9 data file bit without a name" v3 "incompatible_features.*data file" "incompatible_features=|4"
cp data.raw kept.raw
rm data.raw
no "C9 data file missing" data "data file" ""
mv kept.raw data.raw
no "C10 compression bit with type 0" v3 "compression_type" "incompatible_features=|8"
no "C10 compression type without the bit" v3 "compression_type" "compression_type=1"
no "C10 compression bit outside header_length" v3 "compression_type|extension|header" "incompatible_features=|8 header_length=104 compression_type=0"
no "C10 unknown compression type" v3 "compression_type .*unknown" "incompatible_features=|8 compression_type=2"
qemu-img convert -O qcow2 -o cluster_size=4k content.raw small.qcow2
no "C11 extended L2 with small clusters" small "extended L2" "incompatible_features=|16 size=1048576"
no "C15 bitmaps bit without the extension" v3 "autoclear_features .*bitmaps" "autoclear_features=|1"
no "C16 raw data bit without a data file" v3 "autoclear_features .*raw" "autoclear_features=|2"
for v in 7 8 64 0xffffffff; do no "C17 refcount_order $v" v3 "refcount_order .*byte 96 " "refcount_order=$v"; done
for v in 0 72 103 105 65544 0xfffffff8; do no "C18 header_length $v" v3 "header_length .*byte 100 " "header_length=$v"; done

# ---- extensions ----
no "D2 extension longer than its area" v3 "extension.*length" "ext:0x6803f857:-4:4=65536"
for v in 0xffffffff 0xfffffff8 0xfffffff9; do no "D2 extension length $v" v3 "extension.*length" "ext:0x6803f857:-4:4=$v"; done
no "D5 an extension twice" v3 "twice" "addext:0x6803f857=48"
yes "D4 an unknown extension" v3 "addext:0x12345678=33"
no "D6 backing format of 16 bytes" v3 "backing file format" "addext:0xe2792aca=16"
no "D7 unknown backing format" backed "format" "ext:0xe2792aca:0:1=0x7a"
no "D7 backing file without a format" backed "no format" "ext:0xe2792aca:-8:4=0x22222222"
no "D8 encryption extension without LUKS" v3 "crypt_method" "addext:0x0537be77=16"
no "D8 encryption extension of another length" luks "extension" "ext:0x0537be77:-4:4=24" secret=pass
no "D8 encryption header unaligned" luks "offset is" "ext:0x0537be77:0:8=+512" secret=pass
no "D8 encryption header beyond the file" luks "offset is" "ext:0x0537be77:0:8=0x40000000000" secret=pass
no "end marker with a length" v3 "end of header extensions" "ext:0x6803f857:-8:4=0"

# ---- L1, L2, data: the image opens, and what is damaged fails ----
# fails IMAGE PLACES: reading at 128K is an error, reading elsewhere (1M) is not, if it can be
fails() {
    cp "$1.qcow2" bad.qcow2
    "$poke" bad.qcow2 $2 || return 1
    timeout 120 "$tool" read bad.qcow2 ${3:-$((2 * G))} 4096
    [ $? -eq 1 ]
}
only_there() {
    fails "$1" "$2" ${3:-} && "$tool" read bad.qcow2 $((5 * G)) 4096
}
ok "F3 L2 table unaligned: an error" fails v3 "l1:0=+512"
ok "F3 reserved bits in L1: an error" fails v3 "l1:0=|1"
ok "F4 L2 table beyond the end of the file: an error" fails v3 "l1:0=0x8000000040000000"
ok "F4 L2 table on the header: an error" fails v3 "l1:0=0x8000000000000000 l1:0=|0x10000" # the refcount table
ok "F4 L2 table on the L1 table: an error" fails v3 "l1:0=0x8000000000030000"
ok "F7 data cluster unaligned: an error there, and there only" only_there v3 "l2:$((2 * G))=+512"
ok "G2 zero flag in version 2: an error there" only_there v2 "l2:$((2 * G))=|1"
ok "H6 damaged deflate stream: an error there" only_there zlib "data:$((15 * G)):0:8=0xffffffffffffffff" $((15 * G))
ok "H6 damaged zstd stream: an error there" only_there zstd "data:$((15 * G)):0:8=0xffffffffffffffff" $((15 * G))
ok "H6 empty deflate stream: an error there" only_there zlib "data:$((15 * G)):0:2=0x0300" $((15 * G))
ok "H6 the other type's stream: an error" fails zlib "incompatible_features=|8 compression_type=1" $((15 * G))
ok "H7 zstd frame with a huge window: an error there" only_there zstd "data:$((15 * G)):4:2=0x00a8" $((15 * G))
ok "H8 compressed data beyond the end of the file: an error there" only_there zlib "l2:$((2 * G))=0x4000000070000000"
ok "I2 subcluster allocated and zero: an error there" only_there ext "l2b:$((2 * G))=0xffffffffffffffff"
ok "I2 subclusters without a cluster: an error there" only_there ext "l2:$((2 * G))=0"
ok "L1 data file with another offset: an error there" only_there data "l2:$((2 * G))=0x8000000000030000"
ok "L1 data file with a compressed cluster: an error there" only_there data "l2:$((2 * G))=0x4000000000030000"

# ---- writing: fails, changes nothing of the kind, marks the image (C7, F8) ----
no_write() { # IMAGE PLACES [mark]
    cp "$1.qcow2" bad.qcow2
    "$poke" bad.qcow2 $2 || return 1
    cp bad.qcow2 before.qcow2
    timeout 120 "$tool" write bad.qcow2 $((2 * G)) 4096
    [ $? -eq 1 ] || return 1
    qemu-img info bad.qcow2 | grep -q 'corrupt: true' && "$poke" bad.qcow2 'incompatible_features=&0xfffffffffffffffd' &&
        cmp bad.qcow2 before.qcow2
}
ok "F8 a write through an entry that points at the header: refused, nothing changed" no_write v3 "l2:$((2 * G))=0x8000000000000000 l2:$((2 * G))=|0x10000"
ok "F8 a write through an entry that points at the L1 table" no_write v3 "l2:$((2 * G))=0x8000000000030000"
ok "F8 a write through an entry that points at an L2 table" no_write v3 "l2:$((2 * G))=0x8000000000040000"
ok "C7 a write through an unaligned entry" no_write v3 "l2:$((2 * G))=+512"
ok "C7 a write with an L2 table in a wrong place" no_write v3 "l1:0=0x8000000000030000"
allocates() { # a write that allocates, IMAGE PLACES, status
    cp "$1.qcow2" bad.qcow2
    "$poke" bad.qcow2 $2 && timeout 120 "$tool" write bad.qcow2 $((31 * G)) 4096
    [ $? -eq $3 ]
}
ok "E4 refcount block unaligned: no allocation" allocates v3 "ref:0=+512" 1
ok "E4 reserved bits in the refcount table: no allocation" allocates v3 "ref:0=|1" 1
ok "E4 refcount block beyond the file: no allocation" allocates v3 "ref:0=0x40000000" 1
no_reuse() {
    cp v3.qcow2 bad.qcow2
    "$poke" bad.qcow2 rc:0=0 rc:1=0 rc:2=0 rc:3=0 rc:4=0 && "$tool" write bad.qcow2 $((31 * G)) 4096 &&
        "$tool" dump bad.qcow2 ours.raw && cmp -n $((31 * G)) ours.raw content.raw
}
ok "E7 metadata with refcount 0 is not given away" no_reuse
copied_only() {
    cp v3.qcow2 bad.qcow2
    truncate -s 1G big.raw
    "$poke" bad.qcow2 l1:0=0x8000000000000000 && "$tool" write bad.qcow2 0 4096 && "$tool" read bad.qcow2 0 65536
}
ok "an L1 entry with only COPIED is an empty one" copied_only

# ---- snapshots ----
no "J1 extra data over 1024 bytes" snap "extra_data_size" "snap:36:4=1025"
no "J2 extra data under 16 bytes" snap "extra_data_size" "snap:36:4=8"
no "J1 an entry beyond the end of the file" snap "beyond the end" "snap:12:2=65535 snap:14:2=65535"
snapshot_only() {
    cp snap.qcow2 bad.qcow2
    "$poke" bad.qcow2 "$1" && "$tool" dump bad.qcow2 ours.raw && cmp ours.raw content.raw || return 1
    timeout 120 "$tool" dump bad.qcow2 ours.raw snapshot=one
    [ $? -eq 1 ] || return 1
    timeout 120 "$tool" snapshot bad.qcow2 apply one
    [ $? -eq 1 ] || return 1
    timeout 120 "$tool" snapshot bad.qcow2 delete one
    [ $? -eq 1 ]
}
ok "J7 snapshot's L1 unaligned: only its use fails" snapshot_only snap:0:8=+512
ok "J7 snapshot's L1 beyond the file: only its use fails" snapshot_only snap:0:8=0x40000000
ok "J7 snapshot's L1 huge: only its use fails" snapshot_only snap:8:4=0xffffffff
ok "J7 snapshot's L1 too small: only its use fails" snapshot_only snap:8:4=0

empty_l1() { # a table without entries is nowhere
    qemu-img create -q -f qcow2 bad.qcow2 0 && "$poke" bad.qcow2 l1_table_offset=0x1401000000000000 l1_size=0 &&
        "$tool" snapshot bad.qcow2 create one && "$img" check -q bad.qcow2 && qemu-img check -q bad.qcow2 &&
        "$img" resize bad.qcow2 1M && "$tool" write bad.qcow2 0 4096 && "$tool" snapshot bad.qcow2 apply one &&
        "$tool" snapshot bad.qcow2 delete one && "$img" check -q bad.qcow2 && qemu-img check -q bad.qcow2
}
ok "J7 a snapshot of a disk of no bytes: made, applied, deleted" empty_l1
other_size() { # version 2: the size of the others may be the disk's
    qemu-img create -q -f qcow2 -o compat=0.10 bad.qcow2 1M && qemu-img snapshot -c one bad.qcow2 &&
        qemu-img snapshot -c two bad.qcow2 && "$poke" bad.qcow2 snap:48:8=2097152 || return 1
    "$tool" snapshot bad.qcow2 apply one
    [ $? -eq 1 ] || return 1
    qemu-img snapshot -a one bad.qcow2
    [ $? -eq 1 ] && "$img" check -q bad.qcow2
}
ok "J4 version 2: a snapshot of another size is not applied" other_size
# Thousands of them would keep a check busy for days: they are not read.
says_overlapping() { # IMAGE PLACES PATTERN
    cp "$1" bad.qcow2
    "$poke" bad.qcow2 $2 || return 1
    timeout 120 "$img" check bad.qcow2 >said 2>&1
    local status=$?
    tail -n 5 said
    [ $status -eq 1 ] && grep -q "$3" said
}
cp snap.qcow2 snaps.qcow2
qemu-img snapshot -c two snaps.qcow2
qemu-img snapshot -c six snaps.qcow2
ok "J7 snapshots whose L1 tables overlap: not checked" says_overlapping snaps.qcow2 \
    "snap:0:8=0x10000 snap:8:4=200000 snap:72:8=0x10000 snap:80:4=200000" "L1 tables .* together than the file"
cp bitmap.qcow2 bitmaps.qcow2
qemu-img bitmap --add bitmaps.qcow2 other
ok "K4 bitmaps in use whose tables overlap: not checked" says_overlapping bitmaps.qcow2 \
    "bitmap:0:8=0x10000 bitmap:8:4=200000 bitmap:12:4=|1 bitmap:32:8=0x10000 bitmap:40:4=200000 bitmap:44:4=|1" \
    "bitmap tables .* together than the file"

# ---- bitmaps ----
no "K1 no bitmaps" bitmap "nb_bitmaps" "ext:0x23852875:0:4=0"
no "K1 65536 bitmaps" bitmap "nb_bitmaps" "ext:0x23852875:0:4=65536"
no "K1 reserved field" bitmap "reserved" "ext:0x23852875:4:4=1"
no "K1 directory unaligned" bitmap "bitmap_directory_offset" "ext:0x23852875:16:8=+8"
no "K1 directory beyond the file" bitmap "bitmap_directory_offset" "ext:0x23852875:16:8=0x40000000"
no "K1 directory of another size" bitmap "bitmap_directory" "ext:0x23852875:8:8=+64"
no "K1 directory huge" bitmap "bitmap_directory_size" "ext:0x23852875:8:8=0x4000000000000000"
no "K4 name_size 0" bitmap "name_size" "bitmap:18:2=0"
no "K4 granularity 8" bitmap "granularity_bits" "bitmap:17:1=8"
no "K4 granularity 32" bitmap "granularity_bits" "bitmap:17:1=32"
no "K4 unknown flags" bitmap "flags" "bitmap:12:4=|8"
no "K4 unknown type" bitmap "type" "bitmap:16:1=2"
no "K4 table size" bitmap "bitmap_table_size" "bitmap:8:4=77"
no "K4 extra data without its flag" bitmap "extra_data_size" "bitmap:20:4=2"
yes_bitmap() {
    cp bitmap.qcow2 odd.qcow2
    "$poke" odd.qcow2 autoclear_features=0 ext:0x23852875:0:4=0 && "$tool" open odd.qcow2
}
ok "K2 stale bitmaps do not matter" yes_bitmap

no_bitmap() { # PLACES: the bitmap is not stored there, and the disk stays as it is
    cp bitmap.qcow2 bad.qcow2
    "$poke" bad.qcow2 $1 && "$tool" dump bad.qcow2 was.raw || return 1
    timeout 120 "$tool" write bad.qcow2 $((2 * G)) 4096
    "$tool" dump bad.qcow2 ours.raw && [ "$(cmp -l was.raw ours.raw | wc -l)" -le 4096 ] &&
        qemu-img info bad.qcow2 | grep -q 'corrupt: true'
}
ok "C7 a bitmap whose data lie on the L1 table: not stored" no_bitmap table:0=0x30000
ok "C7 a bitmap whose data lie on an L2 table: not stored" no_bitmap table:0=0x40000

keeps_bitmaps() { # one of which cannot be read
    cp bitmap.qcow2 bad.qcow2
    "$poke" bad.qcow2 bitmap:16:1=2 || return 1
    "$img" check -q -r leaks bad.qcow2
    "$img" check -q -r leaks bad.qcow2
    "$poke" bad.qcow2 bitmap:16:1=1 && cmp bad.qcow2 bitmap.qcow2
}
ok "K4 check -r leaks does not give up bitmaps that it cannot read" keeps_bitmaps

cross_link() { # PLACES PATTERN: counted right, and damaged all the same
    cp v3.qcow2 bad.qcow2
    "$poke" bad.qcow2 $1 || return 1
    "$img" check -r all bad.qcow2 >said 2>&1
    "$img" check bad.qcow2 >said 2>&1
    local status=$?
    cat said
    [ $status -eq 2 ] && grep -q "$2" said
}
ok "E8 data on an L2 table: not called sound, whatever the refcounts" cross_link "l2:$((2 * G))=0x40000" "the data lie on metadata"
ok "E8 an L2 table on the L1 table: the same" cross_link "l1:0=0x30000" "the L2 table lies on other metadata"
repaired_as_it_is() { # a repair changes nothing in what is no table, though an L1 entry says that it is one
    qemu-img create -q -f qcow2 bad.qcow2 1G && qemu-io -c "write -q -P $1 0 64k" bad.qcow2 && "$poke" bad.qcow2 l1:1=0x8000000000050000 || return 1
    "$img" check -q -r all bad.qcow2
    qemu-io -r -c "read -P $1 0 64k" bad.qcow2 >said && ! grep "failed" said
}
ok "E8 an L2 table on data: a repair does not change the data" repaired_as_it_is 0xc0
repaired_luks() {
    rm -f bad.qcow2
    "$tool" create bad.qcow2 size=1G encrypt=luks secret=pass && "$tool" write bad.qcow2 0 65536 secret=pass &&
        "$tool" read bad.qcow2 0 65536 secret=pass >was && "$poke" bad.qcow2 "l1:1=0x80000000000$(luks_cluster bad.qcow2)0000" || return 1
    "$img" check -q -r all bad.qcow2
    "$tool" read bad.qcow2 0 65536 secret=pass >now && cmp was now
}
luks_cluster() { # the one digit of its number
    local i
    for i in 1 2 3 4 5 6 7 8 9; do
        [ "$(head -c $((i * G + 4)) "$1" | tail -c 4)" != LUKS ] || echo $i
    done
}
ok "E8 an L2 table on the encryption header: a repair leaves it as it is" repaired_luks
two_names() { # PLACE: two entries name a cluster, and one bit cannot count that
    qemu-img create -q -f qcow2 -o refcount_bits=1 bad.qcow2 1M && qemu-io -c 'write -q -P 7 0 128k' bad.qcow2 &&
        "$poke" bad.qcow2 l2:0=0x50000 "l2:$G=0x50000" $1 || return 1
    "$img" check -q -r all bad.qcow2
    "$img" check bad.qcow2 && return 1
    "$poke" bad.qcow2 $2 && "$tool" write bad.qcow2 0 65536 && qemu-io -r -c 'read -P 7 64k 64k' bad.qcow2 >said && ! grep "failed" said
}
ok "F5 COPIED is not set where two entries name a cluster, though the refcount is 1" two_names "" ""
ok "F5 nor after refcount structures could not be rebuilt" two_names ref:1=1 ref:1=0
cp snap.qcow2 lost.qcow2
qemu-io -c 'write -q -P 8 0 2M' lost.qcow2
not_given_back() { # PLACE VALUE VALUE-AS-IT-WAS leaks|all [WHAT-IS-SAID]
    cp lost.qcow2 bad.qcow2
    "$poke" bad.qcow2 "$1=$2" || return 1
    "$img" check -r "$4" bad.qcow2 >said 2>&1
    grep -q "${5:-}" said && "$poke" bad.qcow2 "$1=$3" && qemu-img check bad.qcow2 && "$tool" dump bad.qcow2 ours.raw snapshot=one && cmp ours.raw content.raw
}
ok "E8 a snapshot that is larger than its L1 table: its clusters are not given back" not_given_back snap:48:8 0x10000000000 2097152 leaks
ok "E8 a snapshot whose L1 table is too small: the same" not_given_back snap:8:4 0 1 leaks
ok "E8 a snapshot whose L1 table is nowhere: the same" not_given_back snap:0:8 +512 -512 all "Leaks are left as they are"
ok "E8 an L1 entry that leads nowhere: the same" not_given_back l1:0 +512 -512 leaks "Leaks are left as they are"

# ---- data file, backing ----
named() {
    cp data.qcow2 bad.qcow2
    "$poke" bad.qcow2 ext:0x44415441:0:8="$1"
    timeout 120 "$tool" open bad.qcow2
    [ $? -eq 1 ]
}
ok "L3 data file 'json:...': refused" named 0x6a736f6e3a7b7d7d
ok "L3 data file 'nbd:...': refused" named 0x6e62643a61616161
self() {
    cp data.qcow2 bad2.qcow2
    rm -f data.raw.keep
    mv data.raw data.raw.keep
    ln -s bad2.qcow2 data.raw
    timeout 120 "$tool" open bad2.qcow2
    local status=$?
    rm data.raw
    mv data.raw.keep data.raw
    [ $status -eq 1 ]
}
ok "L3 the image itself as data file: refused" self
no "L1 data file with snapshots" data "snapshots" "nb_snapshots=1 snapshots_offset=0x30000 @0x30024:4=16"

# ---- LUKS ----
no "N4 LUKS magic" luks "LUKS magic" "luks:0:1=0" secret=pass
no "N4 LUKS version" luks "LUKS version" "luks:6:2=2" secret=pass
no "N4 unknown cipher" luks "cipher" "luks:8:4=0x58585858" secret=pass
no "N4 key bytes" luks "key_bytes" "luks:108:4=65" secret=pass
no "N4 payload offset" luks "payload_offset" "luks:104:4=0" secret=pass
no "N4 stripes" luks "stripes" "luks:252:4=4001" secret=pass
no "N4 key material beyond the header" luks "key_material_offset" "luks:248:4=100000" secret=pass
no "N4 key material at the end" luks "key_material_offset" "luks:248:4=0xffffffff" secret=pass
no "N4 iterations" luks "iterations" "luks:212:4=0xffffffff" secret=pass
no "N4 slot state" luks "slot 0" "luks:208:4=7" secret=pass
no "N1 without a secret" luks "passphrase" ""
no "N1 with a wrong one" luks "passphrase" "" secret=wrong
done_testing
