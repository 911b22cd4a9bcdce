#!/usr/bin/env bash
# ringside-img where there is no space: what fails half way has put back what it can. On file systems of 1 MiB.
. "$(dirname "$0")/../lib.sh"
cd "$tmp" || exit 1
img=$bin/ringside-img
export img

# As root the file system is mounted in a name space of its own, and gone with it.
if ! unshare -rm mount -t tmpfs -o size=1M tmpfs /tmp 2>/dev/null; then
    skip "what fails for want of space puts back what it can" "no name space to mount a file system in"
    done_testing
fi
mkdir small

# A case on a new, empty file system of 1 MiB, which is the working directory.
small() { # function or command, arguments...
    unshare -rm bash -c 'mount -t tmpfs -o size=1M tmpfs small && cd small && "$@"' small "$@"
}

free() {
    df --output=avail -k . | tail -1
}

full() { # command that must fail with status 1, and say that there is no space and no more than that
    local said got
    said=$("$@" 2>&1)
    got=$?
    echo "$said"
    [ $got -eq 1 ] && [ "$(wc -l <<<"$said")" -eq 1 ] && grep -q 'No space left on device$' <<<"$said"
}

size() {
    "$img" info -U --output=json "$1" | jq '."virtual-size"'
}

reads() { # image, format, pattern and range...
    local image=$1 format=$2 said
    shift 2
    said=$(qemu-io -f "$format" -c "read -P $*" "$image") || return 1
    echo "$said"
    ! grep -q 'failed' <<<"$said"
}
export -f free full size reads

# ---- create ----

creates=(
    "-f raw -o preallocation=full x 4M"
    "-f raw -o preallocation=falloc x 4M"
    "-f qcow2 -o preallocation=falloc x 4M"
    "-f qcow2 -o preallocation=full,extended_l2=on x 4M"
    "-f qcow2 -o cluster_size=2M x 4M"
    "-f qcow2 -o cluster_size=512,preallocation=metadata x 128M"
    "-f qcow2 -o data_file=y,preallocation=full x 4M"
)
create_new() { # arguments
    full "$img" create -q "$@" && ls -l && [ -z "$(ls)" ]
}
create_over() { # arguments
    echo something >x && echo something >y && chmod 640 x && full "$img" create -q "$@" && ls -l &&
        [ "$(stat -c '%s %a' x)" = '0 640' ] && case "$*" in *data_file*) [ ! -s y ] ;; *) [ -s y ] ;; esac
}
export -f create_new create_over
for arguments in "${creates[@]}"; do
    # shellcheck disable=SC2086 # words
    ok "create $arguments: nothing is left" small create_new $arguments
    # shellcheck disable=SC2086
    ok "... what was there is there, and empty" small create_over $arguments
done
create_refused() { # is not begun
    echo something >x && ! "$img" create -f qcow2 -o cluster_size=1000 x 4M && ! "$img" create -f qcow2 x &&
        ! "$img" create -f qcow2 -o encrypt.format=luks x 4M && grep something x
}
export -f create_refused
ok "create that is refused has not touched what was there" small create_refused
convert_full() {
    truncate -s 64M source && full "$img" convert -f raw -O qcow2 -o preallocation=falloc source x && [ "$(ls)" = source ]
}
export -f convert_full
ok "convert that cannot make its target leaves none" small convert_full

# ---- resize ----

grow_qcow2() { # mode, -o of the image
    "$img" create -q -f qcow2 -o "$2" d.qcow2 100K && qemu-io -c 'write -q -P 5 0 100k' d.qcow2 || return 1
    local before
    before=$(free)
    full "$img" resize --preallocation="$1" d.qcow2 5M || return 1
    echo "before $before KiB, after $(free) KiB"
    [ "$(size d.qcow2)" -eq 102400 ] && qemu-img check -q d.qcow2 && reads d.qcow2 qcow2 5 0 100k || return 1
    # Tables may have become longer: but what was to be data is free again.
    [ $((before - $(free))) -le $((before / 4)) ] || return 1
    # And it can still grow, by what there is space for.
    "$img" resize -q --preallocation="$1" d.qcow2 164K && qemu-img check -q d.qcow2 && reads d.qcow2 qcow2 0 100k 64k
}
export -f grow_qcow2
for mode in falloc full; do
    for options in compat=1.1 compat=0.10 cluster_size=4k extended_l2=on,cluster_size=16k data_file=d.bin data_file=d.bin,data_file_raw=on; do
        ok "resize --preallocation=$mode of an image with $options: the old size, and the space is free again" small grow_qcow2 $mode $options
    done
done

grow_raw() { # mode, size before
    "$img" create -q -f raw d.raw "$2" && truncate -s "$2" d.raw && qemu-io -f raw -c "write -q -P 5 0 $2" d.raw || return 1
    local before got
    before=$(free)
    full "$img" resize -f raw --preallocation="$1" d.raw 5M || return 1
    [ "$(stat -c %s d.raw)" -eq "$2" ] && [ "$(free)" -eq "$before" ] && reads d.raw raw 5 0 "$2" || return 1
    # What there is space for is allocated.
    "$img" resize -q -f raw --preallocation="$1" d.raw 512K && got=$(stat -c '%s %b' d.raw) && echo "$got" &&
        [ "$got" = "524288 1024" ] && reads d.raw raw 5 0 "$2"
}
export -f grow_raw
for mode in falloc full; do
    ok "resize --preallocation=$mode of a raw image: allocated, or the old size" small grow_raw $mode 102400
    ok "... whose file ends within a sector" small grow_raw $mode 102300
done

grow_with_bitmap() {
    "$img" create -q -f qcow2 d.qcow2 100K && qemu-img bitmap --add d.qcow2 b && qemu-io -c 'write -q -P 5 0 64k' d.qcow2 || return 1
    full "$img" resize --preallocation=full d.qcow2 5M && [ "$(size d.qcow2)" -eq 102400 ] && qemu-img check -q d.qcow2 &&
        "$img" info --output=json d.qcow2 | jq -e '."format-specific".data.bitmaps[0].flags == ["auto"]' &&
        qemu-io -c 'write -q -P 6 64k 36k' d.qcow2 && qemu-img check -q d.qcow2
}
export -f grow_with_bitmap
ok "... and its bitmap goes on" small grow_with_bitmap

# Nothing can be given back where the tables themselves find no space: their old places are written as ever.
grow_metadata() {
    "$img" create -q -f qcow2 d.qcow2 100K && qemu-io -c 'write -q -P 5 0 100k' d.qcow2 || return 1
    local said got
    said=$("$img" resize --preallocation=metadata d.qcow2 100G 2>&1)
    got=$?
    echo "$said"
    [ $got -eq 1 ] && grep -q 'No space left on device (it has its 102400 bytes again, but not all the space' <<<"$said" &&
        [ "$(size d.qcow2)" -eq 102400 ] && reads d.qcow2 qcow2 5 0 100k || return 1
    qemu-img check -q d.qcow2
    [ $? -eq 3 ] # leaks
}
export -f grow_metadata
ok "resize --preallocation=metadata: the old size, and what could not be given back is said" small grow_metadata

done_testing
