#!/usr/bin/env bash
# bench.elf and shell.elf, and run-qemu.sh itself: what it refuses and in which words, and that nothing of it is left.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/guest.sh"
run_qemu=$top/run-qemu.sh

make_image "$tmp/disk.qcow2" 64M

# ---- bench ----

bench() { # options... : leaves the figures in $tmp/figures.json
    boot --app=bench --image="$tmp/disk.qcow2" "$@" | tr -d '\r' | sed -n '/^{/,$p' >"$tmp/figures.json"
    cat "$tmp/figures.json"
    jq -en 'input | .iops > 0 and .requests > 0 and .latency_us.min <= .latency_us.p50 and .latency_us.p50 <= .latency_us.max' \
        "$tmp/figures.json" >/dev/null
}
ok "bench writes, and prints its figures as JSON" bench --append="rw=write bs=64k qd=4 requests=200"
ok "they are of what was asked for" jq -en 'input | .rw == "write" and .bs == 65536 and .qd == 4 and .requests == 400' \
    "$tmp/figures.json"
ok "bench on the packed ring, one queue, polling" bench --ring=packed --queues=1 --append="rw=randrw qd=16 requests=500 client=poll"
ok "it says so" jq -en 'input | .ring == "packed" and .queues == 1 and .client == "poll" and .requests == 500' "$tmp/figures.json"
ok "kicks are fewer than requests at depth 16" jq -en 'input | .kicks_per_request < 1' "$tmp/figures.json"
ok "bench on four queues, each on a CPU of its own" bench --queues=4 --append="rw=randread qd=4 requests=200"
bench_usage() {
    boot --app=bench --image="$tmp/disk.qcow2" --append="$1" | tee "$tmp/usage"
    [ "${PIPESTATUS[0]}" -eq 2 ]
}
ok "bench refuses what it can't do: status 2" bench_usage rw=sideways
ok "bench refuses blocks that are none" bench_usage bs=1000
ok "bench refuses a number that is none" bench_usage qd=many
ok "bench refuses a word that it does not know" bench_usage "rw=write requsts=7"
ok "and says which, and which there are" grep -q "bench: requsts=7: no such word (there are: rw bs qd requests" "$tmp/usage"

# ---- shell ----

cat >"$tmp/session" <<'END'

info
write 8 hello disk
dump 8
fill 0 100 7
compare 0 1 99
zero 64 8
compare 64 65
submit 0 8
queue
kick
poll
flush
trace on
read 8
trace off
stats
quit
END
shell() { # options...: leaves what it said in $tmp/said
    timeout -k 30 300 "$run_qemu" --accel=tcg --timeout=270 --app=shell --image="$tmp/disk.qcow2" "$@" \
        <"$tmp/session" >"$tmp/said" 2>&1
    local status=$?
    cat "$tmp/said"
    return $status
}
ok "shell does what it is told" shell
ok "it shows what was written" grep -q '68 65 6c 6c 6f 20 64 69  73 6b.*|hello disk' "$tmp/said"
ok "it draws the ring" grep -q 'split ring of 256, 1 chains in flight' "$tmp/said"
ok "it traces a request through the driver" grep -qE ' 1 submit +read at sector 8' "$tmp/said"
ok "shell on the packed ring" shell --ring=packed --device=qemu
printf 'compare 0 64\nquit\n' >"$tmp/session"
ok_not "a session with a failed command fails" shell
image_has() { # offset, byte, length
    timeout 120 qemu-io -r -c "read -P $2 $1 $3" "$tmp/disk.qcow2" | tee /dev/stderr | grep -q '^read '
}
ok "what was filled is on the image" image_has 0 7 4096

# ---- run-qemu.sh ----

refuses() { # words that must be said, options...
    local words=$1 status
    shift
    timeout 120 "$run_qemu" "$@" >"$tmp/refused" 2>&1 </dev/null
    status=$?
    cat "$tmp/refused"
    [ $status -eq 2 ] && grep -q -- "$words" "$tmp/refused"
}
ok "--help lists every option" sh -c "'$run_qemu' --help | grep -c -- '^  --' | grep -qx 16"
ok "an unknown option" refuses "--devise=qemu: no such option" --devise=qemu
ok "an unknown architecture" refuses "choose one of: x86_64 aarch64 riscv64" --arch=amd64
ok "a value apart from its option" refuses "goes behind a '='" --arch riscv64
ok "a number that is none" refuses "not a number" --queues=many
ok "a number out of range" refuses "must be from 1 to 64" --queues=0
ok "a queue size that is no power of two" refuses "power of two" --queue-size=100
ok "a queue size that looks octal, and is no power of two" refuses "=100: must be a power of two" --queue-size=0100
ok "numbers that look octal and are decimal" sh -c "'$run_qemu' --dry-run --queues=08 --queue-size=064 --timeout=09 |
    grep -F \"queues=8 queue-size=64 \""
ok "a trace without ringside" refuses "only ringside-blk records traces" --device=qemu --trace=x
ok "an image without a name" refuses "which file?" --image=
ok "a stray word" refuses "go behind --" image.qcow2
fails_saying() { # words, options...
    local words=$1 status
    shift
    timeout -k 30 300 "$run_qemu" --accel=tcg --timeout=270 "$@" >"$tmp/refused" 2>&1 </dev/null
    status=$?
    cat "$tmp/refused"
    [ $status -eq 1 ] && grep -q -- "$words" "$tmp/refused"
}
ok "an image that is not there" fails_saying "no such image" --image="$tmp/nothing.qcow2"
ok "and that is said before anything is built" env RINGSIDE_BUILD="$tmp/none" bash -c \
    "$(declare -f fails_saying); tmp='$tmp' run_qemu='$run_qemu'; fails_saying 'no such image' --image='$tmp/nothing.qcow2'"
ok "an image that is a directory" fails_saying "neither a file nor a block device" --image="$tmp"
truncate -s 0 "$tmp/empty.raw"
ok "an empty disk: the self-test says so" fails_saying "Bail out! the disk has 0 sectors" --image="$tmp/empty.raw"
printf 'QFI\373 this is no image' >"$tmp/bad.qcow2"
ok "an image that is none" fails_saying "before QEMU could connect" --image="$tmp/bad.qcow2"
ok "a guest without its disk fails" fails_saying "0 passed, 1 failed" --device=qemu --image="$tmp/disk.qcow2" \
    --append=disk=vdq
ok "a guest that goes on for too long" fails_saying "no verdict within 2 seconds" --app=bench --timeout=2 \
    --image="$tmp/disk.qcow2" --append="runtime=1000"

ok "--trace leaves a record of the requests" boot --image="$tmp/disk.qcow2" --trace="$tmp/trace" --queues=1
trace_names() { # functions...
    local name
    for name in "$@"; do
        grep -q " $name " "$tmp/trace" || { echo "$name is not in it"; return 1; }
    done
}
ok "the way of a write is in it" trace_names virtio_blk_handle_queue multireq_submit blk_aio_pwritev node_co_pwritev \
    qcow2_co_pwritev file_co_pwritev blk_aio_complete virtio_blk_complete

# Ended from outside, it takes its processes and its directory with it.
TMPDIR=$tmp/left
mkdir -p "$TMPDIR"
export TMPDIR
start running "$run_qemu" --accel=tcg --app=bench --image="$tmp/disk.qcow2" --append="runtime=1000"
ok "it runs" wait_for 60 sh -c "ls '$TMPDIR'/run-qemu.*/disk.sock"
sleep 0.5
stop running
ok "nothing of it is left in the temporary directory" sh -c "! ls '$TMPDIR' | grep ."
ok_not "nor a process" pgrep -f "$TMPDIR/run-qemu"
done_testing
