#!/usr/bin/env bash
# The command line of `ringside`: help, mistakes, machine-readable output, a device that is not there.
. "$(dirname "$0")/../lib.sh"

status() { # wanted status, command...
    local wanted=$1 got
    shift
    timeout 120 "$@"
    got=$?
    echo "exit status $got, wanted $wanted"
    [ $got -eq "$wanted" ]
}

says() { # text, command...
    local text=$1
    shift
    timeout 120 "$@" 2>&1 | tee "$tmp/said" | grep -qF -- "$text"
}

r=$bin/ringside
ok "--help" status 0 "$r" --help
ok "--version" says "ringside " "$r" --version
full() { # command... : its words can't be written
    timeout 120 "$@" >/dev/full
}
ok_not "what can't be printed is a failure" full "$r" info
ok_not "of the help, too" full "$r" --help
seen_enough() {
    timeout 120 "$r" bench --help | true
    [ "${PIPESTATUS[0]}" = 0 ]
}
ok "who has seen enough may leave" seen_enough
ok "no command is a usage error" status 2 "$r"
ok "a mistyped command is a usage error" status 2 "$r" verfy
for command in info verify bench trace conform torture sim; do
    ok "$command --help" status 0 "$r" $command --help
    ok "$command: a mistyped option is a usage error" status 2 "$r" $command --qeueus=2
done
ok "an option's bad value is a usage error" status 2 "$r" bench --queues=many
ok "a choice that does not exist is a usage error" status 2 "$r" bench --ring=round
ok "the device's options are checked too" status 2 "$r" bench --format=vmdk
ok "the device's options need our own device" status 2 "$r" info --device="$tmp/none" --format=null
ok "a socket that is not there is a failure" status 1 "$r" info --device="$tmp/none"
ok "and it is named" says "$tmp/none" "$r" info --device="$tmp/none"
ok "a file in the place of the socket is called that" says "is not a socket" "$r" info --device="$0"
ok "an image that is not there is a failure" status 1 "$r" info --blk-file="$tmp/none"
qemu-img create -q -f raw "$tmp/disk.raw" 16M
: >"$tmp/empty.raw"
ok "an image without a name in front" status 0 "$r" info "$tmp/disk.raw"
ok "and no second one" status 2 "$r" info "$tmp/disk.raw" "$tmp/empty.raw"
# Root may write everything, so somebody else has to look; who must be able to come to the program and the file.
public=$(mktemp -d /tmp/ringside-public.XXXXXX)
qemu-img create -q -f qcow2 "$public/disk.qcow2" 16M
chmod 444 "$public/disk.qcow2"
chmod 755 "$public"
as_nobody=()
[ "$(id -u)" != 0 ] || as_nobody=(setpriv --reuid=65534 --clear-groups env TMPDIR=/tmp)
if "${as_nobody[@]}" test -x "$r" && "${as_nobody[@]}" test -r "$public/disk.qcow2"; then
    ok "info of an image that may not be written" says "read-only" "${as_nobody[@]}" "$r" info --blk-file="$public/disk.qcow2"
    ok "what writes says so of it" says "cannot be opened for writing" "${as_nobody[@]}" "$r" verify --blk-file="$public/disk.qcow2"
    ok "ringside-img info of it" says "file format: qcow2" "${as_nobody[@]}" "$bin/ringside-img" info "$public/disk.qcow2"
else
    skip "info of an image that may not be written" "nobody else can come to the program"
fi
rm -rf "$public"
ok "conform: a rule that there is not is no success" status 1 "$r" conform --only=nonsense
ok "torture: a case that there is not is no success, and is named" says "--only=nonsense" "$r" torture --only=nonsense
ok "conform: a disk that is too small gets one sentence" says "too few to judge it by" "$r" conform "$tmp/empty.raw"
ok "info in JSON" sh -c "timeout 120 '$r' info --json | jq -en 'input | .rings.format == \"split\" and (.negotiated | index(\"VERSION_1\"))'"
ok "info on a packed ring" sh -c "timeout 120 '$r' info --json --ring=packed | jq -en 'input | .rings.format == \"packed\"'"
ok "info names protocol features" sh -c "timeout 120 '$r' info --json | jq -en 'input | .protocol | index(\"CONFIG\")'"
ok "bench in JSON" sh -c "timeout 120 '$r' bench --json --ops=1000 --runtime=100 | jq -en 'input | .iops > 0 and .latency_us.p99 > 0'"
ok "a client that sleeps is interrupted" sh -c "timeout 120 '$r' bench --json --client=sleep --qd=1 --ops=2000 --runtime=100 |
    jq -en 'input | .interrupts_per_request > 0.1'"
ok "one that polls is not" sh -c "timeout 120 '$r' bench --json --qd=1 --ops=2000 --runtime=100 |
    jq -en 'input | .interrupts_per_request == 0'"
ok "verify in JSON" sh -c "timeout 120 '$r' verify --json --bytes=1m | jq -en 'input | .passed and .requests > 0'"
# Ended from outside, it leaves nothing. (A socket's path is short: not in $tmp.)
for signal in TERM HUP; do
    left=$(mktemp -d /tmp/left.XXXXXX)
    TMPDIR=$left start verifying env --default-signal=$signal "$r" verify --bytes=100g
    ok "it runs" wait_for 60 sh -c "ls '$left'/ringside.*/device"
    stop verifying $signal
    ok "$signal ends it" [ "$stopped" -eq $((128 + $(kill -l $signal))) ]
    ok "and its directory is gone" rmdir "$left"
    rm -rf "$left"
done
ok "a number with a unit" status 0 "$r" verify --bytes=1MiB --ops=10
done_testing
