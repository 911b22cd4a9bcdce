#!/usr/bin/env bash
# What ringside-img changes in an image, over every feature that QEMU can put into one: the same is done by qemu-img to a copy.
# Both can or neither; the disk, its snapshots and the backing file hold the same afterwards, in either program's eyes; and
# the image is sound.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=tests/image/qcow2-rows.sh
. "$(dirname "$0")/qcow2-rows.sh"

# X: the image. Where there has to be a backing file, a row without one gets one.
changes=(
    "check -r all X"
    "resize X 5M"
    "resize --shrink X 2500k"
    "snapshot -c third X"
    "snapshot -a first X"
    "snapshot -d first X"
    "snapshot -d second X"
)
changes_over_backing=(
    "commit X"
    "commit -d X"
    "rebase -b '' X"
    'rebase -b $tmp/other.raw -F raw X'
    'rebase -u -b $tmp/other.raw -F raw X'
    "resize X 6M"
)
truncate -s 3M other.raw
qemu-io -f raw -c 'write -q -P 77 100k 2M' other.raw
mkdir fresh && cp base.raw base.qcow2 pass fresh

# These run where the image is: names in it that are not absolute count from there.
ours() { eval "$img ${1/X/--secret-file=pass x.qcow2}"; }
theirs() {
    # QEMU applies no snapshot while there is a bitmap; we do, and mark it.
    case $1 in "snapshot -a "*) qemu-img bitmap "${secret[@]}" --image-opts --remove "$spec" b0 ;; esac
    eval "qemu-img ${1%% *} ${secret[*]} --image-opts ${1#* }"
}
raw() { qemu-img convert "${secret[@]}" --image-opts "$@" -O raw "$spec" x.raw; }
snapshots() { qemu-img snapshot "${secret[@]}" --image-opts -l "$spec" | awk '/^[0-9]/{print $2}'; }

# changed OPTIONS CHANGE: in copies of filled/
changed() {
    local spec a=0 b=0 name
    spec=$(how x.qcow2 "$1")
    rm -rf ours theirs
    cp -r filled ours && cp -r filled theirs || return
    (cd theirs && theirs "${2/X/$spec}") || b=$?
    (cd ours && ours "$2") || a=$?
    echo "$2: we $a, they $b"
    [ $((a != 0)) = $((b != 0)) ] || return
    (cd theirs && raw) && (cd ours && raw && qemu-img check "${secret[@]}" --image-opts "$spec") && cmp ours/x.raw theirs/x.raw &&
        (cd ours && "$img" compare --backing="$tmp" --secret-file=pass x.qcow2 x.raw) &&
        qemu-img compare ours/base.qcow2 theirs/base.qcow2 && qemu-img compare ours/base.raw theirs/base.raw || return
    case $2 in
    check*) cmp filled/x.qcow2 ours/x.qcow2 && return ;; # there was nothing to mend
    snapshot*) ;;
    *) return 0 ;;
    esac
    cmp <(cd ours && snapshots) <(cd theirs && snapshots) || return
    for name in $(cd ours && snapshots); do
        (cd ours && raw -l "$name") && (cd theirs && raw -l "$name") && cmp ours/x.raw theirs/x.raw || return
    done
}

filled() { # OPTIONS: such an image, filled, with what it stands on
    rm -rf filled
    cp -r fresh filled && cd filled && create x.qcow2 "$1" && fill x.qcow2 "$1"
    local status=$?
    cd ..
    return $status
}

for row in "${rows[@]}"; do
    ok "made: $row" filled "$row"
    for change in "${changes[@]}"; do ok "$change: $row" changed "$row" "$change"; done
    case $row in
    *backing_file*) ;;
    *data_file_raw* | *preallocation* | size=*) continue ;; # which have none
    *) row+=,backing_file=base.qcow2,backing_fmt=qcow2 && ok "made: $row" filled "$row" ;;
    esac
    for change in "${changes_over_backing[@]}"; do ok "$change: $row" changed "$row" "$change"; done
done
done_testing
