# shellcheck shell=bash
# For tests/qemu/test-*.sh, behind tests/lib.sh: images, guests, and what a guest leaves on an image.
# Everything is given a time limit, so that a guest that hangs fails its case and no more.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# boot OPTION...: run-qemu.sh on what has been built
boot() {
    timeout -k 30 300 "$top/run-qemu.sh" --accel=tcg --timeout=270 "$@" </dev/null
}

image_format() { # image
    case $1 in
    *.qcow2) echo qcow2 ;;
    *) echo raw ;;
    esac
}

# make_image FILE SIZE: qcow2 or raw, by its name
make_image() {
    rm -f "$1"
    qemu-img create -q -f "$(image_format "$1")" "$1" "$2"
}

# image_sound FILE: qemu-img check finds nothing, not even a leak (raw images have nothing to check)
image_sound() {
    [ "$(image_format "$1")" = raw ] || qemu-img check "$1"
}

# left_by_selftest FILE SIZE-IN-MIB: the bytes that selftest documents, read by QEMU
left_by_selftest() {
    local image=$1 end=$(($2 * 1024 * 1024)) k commands=()
    for ((k = 0; k < 16; k++)); do
        commands+=(-c "read -P $((0x40 + k)) $((k * 65536)) 64k")
    done
    commands+=(-c "read -P 0 1M 1M" -c "read -P 0x5a $((end - 65536)) 64k")
    timeout 120 qemu-io -r -f "$(image_format "$image")" "${commands[@]}" "$image" >"$tmp/qemu-io.log" 2>&1 || {
        cat "$tmp/qemu-io.log"
        return 1
    }
    cat "$tmp/qemu-io.log"
    [ "$(grep -c '^read ' "$tmp/qemu-io.log")" -eq 18 ] && ! grep -qi 'verification failed\|error' "$tmp/qemu-io.log"
}
