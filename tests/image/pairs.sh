# shellcheck shell=bash
# For test-qcow2-pairs-N.sh: one slice of four of the combinations of the format's options (tests/image/tool_pairs.c).
# Short: every two values together, 150 operations each. RINGSIDE_SIZE=long: every combination that QEMU can create,
# 10,000 operations each; a core is busy with a slice for half an hour to an hour.
. "$(dirname "$0")/../lib.sh"
in_memory 1000
if [ -n "$long" ]; then how=(--all --ops=10000); else how=(--ops=150); fi
# shellcheck disable=SC2154 # the script that this one is read by sets it
ok "the same operations on ours and on QEMU's, all kinds of images, slice $slice of 4" "$tools/tool_pairs" --dir="$memory" \
    --seed="${SEED:-1}" --slice="$slice/4" "${how[@]}"
done_testing
