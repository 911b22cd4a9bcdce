#!/usr/bin/env bash
# Every image feature that QEMU can write is read back by ringside-img convert to the same SHA-256 as by qemu-img convert,
# and the other way round. The list of features is held against what qemu-img says that it can create.
# shellcheck source=tests/lib.sh
# shellcheck disable=SC2086 # options are words
. "$(dirname "$0")/../lib.sh"
# shellcheck source=tests/image/qcow2-rows.sh
. "$(dirname "$0")/qcow2-rows.sh"

printf another >pass2
# What QEMU does to an image that it has made and filled: options of its creation | what is done to x.qcow2.
# shellcheck disable=SC2054 # the commas are QEMU's
new_secret="--object secret,id=s2,file=pass2"
luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
after=(
    "compat=0.10|qemu-img amend -q -o compat=1.1 x.qcow2"
    "compat=0.10|qemu-img amend -q -o compat=1.1,refcount_bits=64 x.qcow2"
    "compat=1.1|qemu-img bitmap --remove x.qcow2 b0 && qemu-img amend -q -o compat=0.10 x.qcow2"
    "compat=1.1,cluster_size=4k|qemu-img amend -q -o refcount_bits=64 x.qcow2"
    "compat=1.1,cluster_size=512,refcount_bits=64|qemu-img amend -q -o refcount_bits=8 x.qcow2"
    "lazy_refcounts=on|qemu-img amend -q -o lazy_refcounts=off x.qcow2"
    "lazy_refcounts=off|qemu-img amend -q -o lazy_refcounts=on x.qcow2"
    "lazy_refcounts=on,cluster_size=4k|die x.qcow2 'write -q -P 11 0 50k'"
    "extended_l2=on,cluster_size=16k,lazy_refcounts=on|die x.qcow2 'write -q -P 11 100k 50k'"
    "compat=1.1|die x.qcow2 'write -q -P 11 0 50k'"
    "backing_file=base.raw,backing_fmt=raw|qemu-img rebase -u -b base.qcow2 -F qcow2 x.qcow2"
    "backing_file=base.raw,backing_fmt=raw|qemu-img rebase -b base.qcow2 -F qcow2 x.qcow2"
    "backing_file=base.raw,backing_fmt=raw|qemu-img rebase -b '' x.qcow2"
    "backing_file=mine.qcow2,backing_fmt=qcow2|qemu-img commit -q x.qcow2"
    "backing_file=base.qcow2,backing_fmt=qcow2|qemu-img resize -q x.qcow2 6M"
    "compat=1.1|qemu-img amend -q -o size=6M x.qcow2"
    "compat=1.1|qemu-img resize -q x.qcow2 +1M"
    "compat=1.1,cluster_size=4k|qemu-img resize -q --shrink x.qcow2 2M"
    "compat=1.1|qemu-img resize -q --shrink x.qcow2 2500k && qemu-img resize -q x.qcow2 8M"
    "extended_l2=on,cluster_size=16k|qemu-img resize -q --preallocation=metadata x.qcow2 7M"
    "compat=1.1|qemu-img resize -q --preallocation=falloc x.qcow2 7M"
    "cluster_size=4k|qemu-img resize -q --preallocation=full x.qcow2 7M"
    "data_file=data.bin|qemu-img resize -q x.qcow2 6M"
    "data_file=data.bin,data_file_raw=on|qemu-img resize -q --preallocation=full x.qcow2 6M"
    "data_file=data.bin,data_file_raw=on|qemu-img amend -q -o data_file_raw=off x.qcow2"
    "compat=1.1|qemu-img bitmap --add -g 4k x.qcow2 b1 && qemu-img bitmap --merge b0 x.qcow2 b1 && qemu-img bitmap --disable x.qcow2 b0"
    "compat=1.1|qemu-img bitmap --clear x.qcow2 b0 && qemu-img bitmap --add --disable x.qcow2 b1 && qemu-img bitmap --enable x.qcow2 b1"
    "compat=1.1|qemu-img bitmap --add -g 512 x.qcow2 b1 && qemu-img resize -q x.qcow2 9M && qemu-img bitmap --remove x.qcow2 b0"
    "compat=1.1|die x.qcow2 'write -q -P 12 1M 20k'"
    "compat=1.1|qemu-img bitmap --remove x.qcow2 b0 && qemu-img snapshot -a first x.qcow2"
    "compat=1.1|qemu-img snapshot -d first x.qcow2 && qemu-img snapshot -c third x.qcow2 && qemu-img snapshot -d second x.qcow2"
    "compat=0.10|qemu-img snapshot -a first x.qcow2 && qemu-img snapshot -d first x.qcow2"
    "compat=1.1|qemu-img bitmap --remove x.qcow2 b0 && qemu-img resize -q x.qcow2 6M && qemu-img snapshot -c larger x.qcow2 &&
        qemu-img snapshot -a first x.qcow2"
    "compat=1.1|savevm x.qcow2 running"
    "$luks|qemu-img resize -q ${secret[*]} --image-opts \$spec 6M"
    "$luks|qemu-img amend -q ${secret[*]} $new_secret --image-opts \$spec -o encrypt.state=active,encrypt.new-secret=s2,encrypt.iter-time=10"
    "$luks|qemu-img amend -q ${secret[*]} $new_secret --image-opts \$spec -o encrypt.state=active,encrypt.new-secret=s2,encrypt.iter-time=10,encrypt.keyslot=7 &&
        qemu-img amend -q ${secret[*]} --image-opts \$spec -o encrypt.state=inactive,encrypt.old-secret=s && cp pass2 pass"
)

named() { # every option that qemu-img knows is in a row
    local option missing=0
    while read -r option; do
        if ! printf '%s\n' "${rows[@]}" | grep -qE "(^|,)${option//./\\.}="; then
            echo "no row has $option"
            missing=1
        fi
    done < <(qemu-img create -f qcow2 -o help | sed -n 's/^  \([a-z0-9_.-]*\)=.*/\1/p')
    return $missing
}
ok "every option of qemu-img create -f qcow2 has its row" named

theirs() { # IMAGE OPTIONS [CONVERT-OPTION...]: SHA-256 of what qemu-img reads
    qemu-img convert "${secret[@]}" --image-opts "${@:3}" -O raw "$(how "$1" "$2")" theirs.raw && sha256sum <theirs.raw
}
ours() {
    "$img" convert --secret-file=pass "${@:3}" -O raw "$1" ours.raw && sha256sum <ours.raw
}
same() { # IMAGE OPTIONS: the active disk, and each snapshot
    local a b name
    a=$(theirs "$1" "$2") && b=$(ours "$1" "$2") && [ "$a" = "$b" ] || return
    for name in $(qemu-img snapshot "${secret[@]}" --image-opts -l "$(how "$1" "$2")" | awk '/^[0-9]/{print $2}'); do
        theirs "$1" "$2" -l "$name" && ours "$1" "$2" -l "$name" || return
        # QEMU gives a snapshot the size that the disk has now, cut off or filled up.
        a=$(stat -c %s theirs.raw) b=$(stat -c %s ours.raw)
        cmp -n $((a < b ? a : b)) theirs.raw ours.raw || return
    done >/dev/null
}

from_qemu() {
    create x.qcow2 "$1" && fill x.qcow2 "$1" && same x.qcow2 "$1"
}
# The other way: an image of our making, with the same options as far as we make such, filled by us.
to_qemu() {
    local options=$1 size=4M secret_file=()
    case $options in
    size=*) size= ;;&
    *encrypt*) secret_file=(--secret-file=pass) ;;& # refused where nothing is encrypted
    *encrypt.format=aes* | encryption=*) create y.qcow2 "$options" || return ;; # none is made by us, but written to
    *) rm -f y.qcow2 data.bin && "$img" create -q -f qcow2 "${secret_file[@]}" -o "${options/encrypt.key-secret=s,/}" y.qcow2 $size || return ;;
    esac
    "$img" convert -n --secret-file=pass -S 4k filled.raw y.qcow2 && same y.qcow2 "$options" && [ "$(theirs y.qcow2 "$options")" = "$(sha256sum <filled.raw)" ] &&
        qemu-img check "${secret[@]}" --image-opts "$(how y.qcow2 "$options")" || return
    case $options in
    *encrypt* | *data_file*) return ;;
    esac
    rm -f z.qcow2 # compressed
    case $options in
    *preallocation=[mf]*) # refused, before there is a file
        ! "$img" convert -c -O qcow2 -o "${options%%,backing_file*}" filled.raw z.qcow2 && [ ! -e z.qcow2 ]
        return
        ;;
    esac
    "$img" convert -c -O qcow2 -o "${options%%,backing_file*}" filled.raw z.qcow2 || return
    same z.qcow2 "$options" && [ "$(theirs z.qcow2 "")" = "$(sha256sum <filled.raw)" ] && qemu-img check z.qcow2
}
qemu-img create -q -f qcow2 m.qcow2 4M
fill m.qcow2 "" && qemu-img convert -O raw m.qcow2 filled.raw
for row in "${rows[@]}"; do
    ok "what QEMU writes: $row" from_qemu "$row"
    ok "what we write: $row" to_qemu "$row"
done

# A program of QEMU that is killed while it has IMAGE open, after COMMAND: dirty, or with a bitmap in use.
die() {
    (ulimit -c 0 && qemu-io -c "$2" -c flush -c abort "$1") >/dev/null 2>&1
    true
}
savevm() { # IMAGE NAME: a snapshot with the state of a machine
    printf 'savevm %s\nquit\n' "$2" | timeout 120 qemu-system-x86_64 -M microvm -m 4 -accel tcg -nodefaults -display none -S -monitor stdio \
        -drive driver=qcow2,file.driver=file,file.filename="$1",if=none >/dev/null 2>&1
    qemu-img snapshot -l "$1" | grep -q " $2 .*[KM]iB"
}
changed_by_qemu() { # OPTIONS|COMMAND
    local options=${1%%|*} command=${1#*|} spec
    printf secret >pass
    cp base.qcow2 mine.qcow2
    spec=$(how x.qcow2 "$options")
    create x.qcow2 "$options" && fill x.qcow2 "$options" && LD_PRELOAD=$preload eval "$command" && same x.qcow2 "$options" || return
    # ... and we go on from there.
    case $options in
    *encrypt*) "$img" convert -n --secret-file=pass -S 4k filled.raw x.qcow2 ;;
    *) "$tools/tool_block_io" x.qcow2 'write 70001 300000 77' 'zero 1000000 5000' 'discard 65536 131072' 'write 2000000 4096 78' ;;
    esac && same x.qcow2 "$options" && qemu-img check "${secret[@]}" --image-opts $spec
}
for row in "${after[@]}"; do ok "what QEMU changes: $row" changed_by_qemu "$row"; done
done_testing
