#!/usr/bin/env bash
# A device process that is killed loses nothing that it acknowledged: its metadata lies in shared memory, and the next
# one writes it back (host/qcow2/survivor.h).
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"

tool=$tools/tool_kill_qcow2
in_memory 1000
image=$memory/disk.qcow2 survive=$memory/survive
mkdir "$survive"
rounds=${long:+200}
rounds=${rounds:-4}

for seed in 1 3 4; do
    ok "killed again and again, seed $seed: nothing acknowledged is lost" timeout 600 \
        "$tool" --image="$image" --survive="$survive" --rounds="$rounds" --seed=$seed
    ok "and a clean close leaves nothing behind" sh -c "ls '$survive'; test -z \"\$(ls -A '$survive')\""
done
if command -v qemu-img >/dev/null; then
    checked() {
        qemu-img check "$image"
        case $? in 0 | 3) return 0 ;; *) return 1 ;; esac
    }
    ok "qemu-img check finds at most leaked clusters" checked
fi

# The cases above show something only if these do.
lost=0
for seed in 1 2 3; do
    timeout 120 "$tool" --image="$image" --rounds=4 --seed=$seed >"$tmp/lost.log" 2>&1
    grep -q 'acknowledged writes were lost' "$tmp/lost.log" && lost=$((lost + 1))
done
ok "without it something is lost ($lost of 3 runs)" test $lost -ge 1

ok "an image that somebody else has changed meanwhile stays whole" sh -c \
    "timeout 300 '$tool' --image='$image' --survive='$survive' --rounds=$rounds --seed=3 --meddle >'$tmp/meddle.log' 2>&1 ||
     { cat '$tmp/meddle.log'; false; }"
ok "and it is said that what was left is not used" grep 'is NOT used' "$tmp/meddle.log"

# A link in the place of the file is not followed; the image is used all the same.
touch "$tmp/precious"
inode=$(stat -c %i "$image")
device=$(stat -c %d "$image")
refused() {
    local name
    name=$survive/ringside-$(printf '%x-%x' "$device" "$inode")
    ln -s "$tmp/precious" "$name"
    timeout 120 "$tool" --image="$image" --survive="$survive" --rounds=1 --seed=9 2>&1 | tee "$tmp/link.log"
    grep -q 'will not survive' "$tmp/link.log" && [ ! -s "$tmp/precious" ]
}
ok "a symbolic link in the file's place is refused, with a sentence" refused
done_testing
