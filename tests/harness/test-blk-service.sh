#!/usr/bin/env bash
# ringside-blk at work under a front end: what it records, what it tells, how errors are parked and taken up, how
# it ends in the middle of work, and that it rests when there is nothing to do.
. "$(dirname "$0")/../lib.sh"
blk=$bin/ringside-blk ringside=$bin/ringside
image=$tmp/disk.qcow2 sock=$tmp/sock ctl=$tmp/control
qemu-img create -q -f qcow2 "$image" 256M
mkdir "$tmp/shm"

up() { listens "$sock" "$@"; }
bench() { timeout 120 "$ringside" bench --device="$sock" --deadline=60 "$@"; }
verify() { timeout 120 "$ringside" verify --device="$sock" --deadline=60 "$@"; }

# --- what it records
start traced "$blk" --survive="$tmp/shm" --socket-path="$sock" --control="$ctl" --trace="$tmp/trace" --audit="$tmp/audit" "$image"
wait_for 60 up "$ctl"
ok "a front end works under trace and audit" verify --bytes=4m --span=16m
ok "recording can be stopped" answers "$ctl" '{"command":"trace","on":false}' .return
ok "the trace is complete then: seven words a line" \
    awk 'NR == 1 { if ($0 != "# ringside trace 1") exit 1; next } NF != 7 { print; bad = 1 } END { exit bad || NR < 100 }' "$tmp/trace"
ok "every request is there from step 3 to step 11" awk '
    NR > 1 && $3 != 0 { if ($4 == 3) taken[$3]++; if ($5 == "virtio_blk_complete") done[$3]++ }
    END { for (r in taken) { n++; if (!done[r]) bad++ } print n, bad + 0; exit n < 50 || bad > 0 }' "$tmp/trace"
ok "steps of one thread are in the order of time" awk '
    NR > 1 { if ($1 < last[$2]) bad = 1; last[$2] = $1 } END { exit bad }' "$tmp/trace"
ok "a driver that keeps the rules has no line in the audit" sh -c "cat '$tmp/audit'; test ! -s '$tmp/audit'"
ok "operations are counted, and each has a place in the histogram" device_stats "$ctl" '
    .operations.read.operations > 10 and .operations.write.operations > 10 and
    ([.operations[] | .operations == ([.latency_ns[][1]] | add // 0)] | all) and
    .queues[0].popped == .queues[0].completed and .device.in_flight == 0'
deep() { # what opens a level, levels; the answer's error
    control "$ctl" "$(printf "%0$2d" 0 | sed "s/0/$1/g")" | jq -r .error
}
says() { [ "$(deep "$2" "$3")" = "$1" ]; }
ok "a line of arrays in arrays is refused" says "objects and arrays are nested more than 32 deep" "[" 30000
ok "and of objects" says "objects and arrays are nested more than 32 deep" '{"a":' 12000
ok "brackets in a text are no nesting" answers "$ctl" "{\"command\":\"stats\",\"id\":\"$(printf '%040d' 0 | tr 0 '[')\"}" .return
stop traced
ok "SIGTERM" test "$stopped" = 0
ok "the image is whole" qemu-img check -q "$image"
ok "nothing that should outlive a death is left after an end" sh -c "ls '$tmp/shm'; test -z \"\$(ls '$tmp/shm')\""

# --- errors that wait for somebody
start parks "$blk" --survive="$tmp/shm" --socket-path="$sock" --control="$ctl" --rerror=stop --inject="read,skip=20,times=2,error=EIO" "$image"
wait_for 60 up "$ctl"
start load "$ringside" bench --device="$sock" --deadline=60 --ops=2000 --runtime=100 --ramp=0 --span=64m --bs=64k
ok "a read that fails is parked" wait_for 60 grep -q "a request waits after an error" "$tmp/parks.log"
ok "and the front end waits" sh -c "sleep 0.3; kill -0 ${started[load]}"
ok "resume takes it up" answers "$ctl" '{"command":"resume"}' .return
resume_until_done() {
    control "$ctl" '{"command":"resume"}' >/dev/null
    ! kill -0 "${started[load]}" 2>/dev/null
}
wait_for 60 resume_until_done
wait "${started[load]}"
ok "and the front end sees no error" test $? = 0
unset 'started[load]'
stop parks
ok "SIGTERM" test "$stopped" = 0

# A client that does not read for a while has all events all the same, without a word of its own: there are more than
# its socket has room for.
start parks "$blk" --survive="$tmp/shm" --socket-path="$sock" --control="$ctl" --rerror=stop --inject="read,skip=20,times=always,error=EIO" "$image"
wait_for 60 up "$ctl"
start load "$ringside" bench --device="$sock" --deadline=60 --ops=2000 --runtime=100 --ramp=0 --span=64m --bs=64k --qd=64
wait_for 60 grep -q "a request waits after an error" "$tmp/parks.log"
ok "events that found no room come when there is some" timeout 120 python3 - "$ctl" <<'PY'
import socket, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(sys.argv[1])
    return s
late, prompt = connect(), connect()
lines = prompt.makefile()
seen = 0
while seen < 1500: # 75 bytes each, and some hundreds of the kernel's
    prompt.send(b'{"command":"resume"}\n')
    while "return" not in lines.readline():
        seen += 1
    time.sleep(0.01)
prompt.send(b'{"command":"stats"}\n')
while "return" not in lines.readline():
    seen += 1
late.settimeout(60)
text = b""
while text.count(b"\n") < seen:
    more = late.recv(65536)
    if not more:
        break
    text += more
print(text.count(b"\n"), "of", seen)
sys.exit(text.count(b"\n") < seen)
PY
stop load KILL
stop parks

# --- a capacity that grows under a front end
start grows "$blk" --survive="$tmp/shm" --socket-path="$sock" --control="$ctl" "$image"
wait_for 60 up "$ctl"
ok "the capacity is known" sh -c "'$ringside' info --device='$sock' | grep -q 268435456"
ok "resize" answers "$ctl" '{"command":"resize","bytes":"384M"}' .return
ok "the new capacity is known" sh -c "'$ringside' info --device='$sock' | grep -q 402653184"
ok "and can be used" verify --bytes=4m --span=380m

# --- a front end that provokes a line with each message: GET_CONFIG for more than there is
cat >"$tmp/nags.py" <<'PY'
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
for request, value in (2, 1 << 30), (16, 1 << 9):
    s.sendall(struct.pack("<IIIQ", request, 1, 8, value))
for _ in range(3000):
    s.sendall(struct.pack("<IIIIII", 24, 1, 12, 0, 0xFFFFFF, 0))
    if len(s.recv(12, socket.MSG_WAITALL)) != 12:
        sys.exit("no answer")
PY
mkfifo "$tmp/unread"
exec 7<>"$tmp/unread" # and nobody reads from it
start nagged sh -c "exec timeout -k 1 300 '$blk' --socket-path='$tmp/nagged.sock' --format=null --size=1M 2>'$tmp/unread'"
wait_for 60 listens "$tmp/nagged.sock"
ok "each gets its answer, also where nobody reads what is said of it" python3 "$tmp/nags.py" "$tmp/nagged.sock"
stop nagged
ok "SIGTERM" test "$stopped" = 0
sed '/^that is all$/Q' "$tmp/unread" >"$tmp/nagged" &
echo "that is all" >&7
wait $!
ok "a hundred lines are enough, and the number of the others" sh -c "
    wc -l '$tmp/nagged'; tail -n 1 '$tmp/nagged' | grep -E '\([0-9]+ messages were left out\)' && test \$(wc -l <'$tmp/nagged') -lt 500"
exec 7>&-

# --- nothing to do: no CPU time, not even a wake-up
cat >"$tmp/holds.py" <<'PY'
import socket, struct, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.send(struct.pack("<III", 1, 1, 0))
s.recv(20)
open(sys.argv[2], "w").close()
time.sleep(1000)
PY
start holder python3 "$tmp/holds.py" "$sock" "$tmp/held"
wait_for 60 test -e "$tmp/held"
switches() { cat /proc/"${started[grows]}"/task/*/status | awk '/ctxt_switches/ { n += $2 } END { print n }'; }
rests() { # for a second, once it has done what it had to
    local before
    before=$(switches)
    sleep 1
    [ "$(switches)" = "$before" ]
}
ok "a device with nothing to do is never woken" wait_for 60 rests
stop holder

# --- the end in the middle of work
start load "$ringside" bench --device="$sock" --rw=randwrite --runtime=100 --ramp=0 --span=128m
busy() { device_stats "$ctl" '.operations.write.operations > 2000'; }
ok "writes are coming in" wait_for 60 busy
stop grows
ok "SIGTERM in the middle of them" test "$stopped" = 0
stop load
ok "the image is whole" qemu-img check -q "$image"
ok "it had nothing to complain about" sh -c "cat '$tmp/grows.log'; test ! -s '$tmp/grows.log'"
done_testing
