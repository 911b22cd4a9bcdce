#!/usr/bin/env bash
# The command line of ringside-blk: what a user types wrong, what is in the way, how it starts and how it ends.
. "$(dirname "$0")/../lib.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)
blk=$bin/ringside-blk
image=$tmp/disk.raw sock=$tmp/sock
truncate -s 4M "$image"

# The command ends with STATUS, says one line on stderr that begins with the program's name and has TEXT in it,
# and nothing on stdout.
says() { # status, text, argument...
    local status=$1 text=$2 got
    shift 2
    timeout 120 "$blk" "$@" >"$tmp/out" 2>"$tmp/err"
    got=$?
    cat "$tmp/err"
    [ $got -eq "$status" ] || { echo "status $got, not $status"; return 1; }
    [ ! -s "$tmp/out" ] || { echo "words on stdout"; return 1; }
    [ "$(wc -l <"$tmp/err")" = 1 ] || { echo "not one line"; return 1; }
    grep -q '^ringside-blk: ' "$tmp/err" && grep -qF -- "$text" "$tmp/err"
}

up() { listens "${1:-$sock}"; }
gone() { ! test -e "${1:-$sock}"; }

# A front end's first question: connects, asks GET_FEATURES, waits for the answer, leaves.
asks() {
    python3 - "$1" <<'PY'
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
s.send(struct.pack("<III", 1, 1, 0))
r = s.recv(20)
sys.exit(0 if len(r) == 20 and struct.unpack("<IIIQ", r)[0:3] == (1, 5, 8) else 1)
PY
}

# --- what is typed wrong: status 2
ok "no argument: asks where the front end is" says 2 "add --socket-path=PATH or --fd=N"
ok "no image" says 2 "no image given" --socket-path="$sock"
ok "a typing mistake is told with the right word" says 2 "did you mean --blk-file?" --blk-fiel=x
ok "an unknown option" says 2 "--colour: no such option" --colour=red
ok "an unknown letter, as it was typed" says 2 "ringside-blk: -h: no such option (see --help)" -h
ok "one dash for two" says 2 "ringside-blk: -socket-path: no such option (did you mean --socket-path?)" -socket-path=x
ok "an option without its argument" says 2 "PATH is missing" --socket-path
ok "a flag with an argument" says 2 "--read-only: takes no argument" --read-only=yes
ok "on or off" says 2 "neither on nor off" --request-merging=maybe
ok "a choice that there is not" says 2 "choose one of" --cache=writethrough "$image"
ok "an unknown format" says 2 "choose one of qcow2, raw, null" --format=vmdk "$image"
ok "too many queues" says 2 "--num-queues=65" --num-queues=65 "$image"
ok "no queues" says 2 "not between 1 and 64" --num-queues=0 "$image"
ok "a number that is none" says 2 "not a number" --num-queues=2x "$image"
ok "a number that does not fit" says 2 "not a number" --num-queues=99999999999999999999 "$image"
ok "a queue size that is no power of two" says 2 "not a power of two" --queue-size=100 "$image"
ok "a block size that is no power of two" says 2 "not a power of two" --logical-block-size=1000 "$image"
ok "a physical block smaller than the logical one" says 2 "smaller than the logical one" \
    --socket-path="$sock" --logical-block-size=4096 --physical-block-size=512 "$image"
ok "a serial that is too long" says 2 "longer than 20 bytes" --serial=123456789012345678901 "$image"
ok "throttling that makes no sense" says 2 "--throttle=speed=1" --throttle=speed=1 "$image"
for cpus in x "0," ,1 3-1 0-2000 1x 99999; do
    ok "a list of CPUs that is none: $cpus" says 2 "not a list of CPUs" --iothread-cpus=$cpus "$image"
done
ok "two images" says 2 "there is an image already" --socket-path="$sock" --blk-file="$image" "$image"
ok "one image too many" says 2 "one image too many" --socket-path="$sock" "$image" "$image"
ok "socket-path and fd exclude each other" says 2 "exclude each other" --socket-path="$sock" --fd=3 "$image"
ok "handover and survive exclude each other" says 2 "exclude each other" --socket-path="$sock" --handover --survive="$tmp" "$image"
ok "handover and zoned exclude each other" says 2 "states of zones stay behind" --socket-path="$sock" --handover --zoned=zone-size=1M \
    --format=raw "$image"
ok "a directory to survive in that is none" says 2 "neither a directory nor off" --socket-path="$sock" --survive="$image" "$image"
ok "null without a size" says 2 "--size=BYTES" --socket-path="$sock" --format=null
ok "null with a file" says 2 "needs no file" --socket-path="$sock" --format=null --size=1M "$image"
ok "what a null image reads, for a file" says 2 "only a null image" --socket-path="$sock" --null-reads=nothing "$image"
ok "a block size that no device has, at once" says 2 "from 512 to 65536" --logical-block-size=1M "$image"
ok "a word with nothing of an option in it is no typing mistake of one" says 2 "(see --help)" --b "$image"
ok "one path for both sockets" says 2 "is the front ends' socket, too" --socket-path="$sock" --control="$sock" "$image"
for option in trace audit log-writes; do
    ok "the image is not overwritten by --$option" says 2 "--$option=$tmp/./disk.raw: is the image" --socket-path="$sock" \
        --$option="$tmp/./disk.raw" "$image"
    printf 'QFI\373\0\0\0\003' >"$tmp/other.qcow2"
    ok "nor is another one, such as its backing file" says 2 "--$option=$tmp/other.qcow2: is a qcow2 image" \
        --socket-path="$sock" --$option="$tmp/other.qcow2" "$image"
    ok "... it is as it was" test "$(stat -c %s "$tmp/other.qcow2")" = 8
done
ok "and is as it was" test "$(stat -c %s "$image")" = 4194304
ok "a size for a file" says 2 "only a null image" --socket-path="$sock" --size=1M "$image"

# --- what is in the way: status 1
ok "an image that is not there" says 1 "$tmp/none" --socket-path="$sock" "$tmp/none"
ok "a directory for an image" says 1 "$tmp" --socket-path="$sock" "$tmp"
printf 'QFI\373\0\0\0\003' >"$tmp/short.qcow2"
ok "an image that is cut short" says 1 "$tmp/short.qcow2" --socket-path="$sock" "$tmp/short.qcow2"
ok "a socket's path that is too long" says 1 "at most 107 characters" \
    --socket-path="$tmp/$(printf 'x%.0s' {1..120})" "$image"
ok "a socket in a directory that is not there" says 1 "$tmp/none/s" --socket-path="$tmp/none/s" "$image"
touch "$tmp/file"
ok "a file where the socket should be" says 1 "is not a socket" --socket-path="$tmp/file" "$image"
ok "and the file is left alone" test -f "$tmp/file"
ok "a descriptor that is not open" says 1 "descriptor 77: is not open" --fd=77 "$image"
# The program's own descriptors get these numbers; it once took one of them for the socket, closed it and hung.
not_handed_over() {
    local fd
    for fd in 3 4 5 6 7 8 9 10 11 12; do
        (eval "exec $fd<&-" && says 1 "descriptor $fd: is not open" --fd=$fd "$image") || return 1
    done
}
ok "a descriptor that is not open, with a number that the program's own would have" not_handed_over
ok "a descriptor that is no socket" says 1 "is not a Unix stream socket" --fd=0 "$image"
ok "a directory of backing files that is not there" says 2 "neither deny nor same-dir" --backing="$tmp/none" --socket-path="$sock" "$image"
mkdir "$tmp/survive"
qemu-img create -q -f qcow2 -b /etc/hostname -F raw "$tmp/stranger.qcow2" 1M
ok "an image that names a file elsewhere" says 1 "which is not in" --survive="$tmp/survive" --socket-path="$sock" \
    "$tmp/stranger.qcow2"
ok "what was refused leaves no file behind" rmdir "$tmp/survive"
ok "a limit that is none, named once" says 2 "ringside-blk: --throttle=iops=x: 'x' is not a rate" --throttle=iops=x --socket-path="$sock" "$image"
ok "an image that is none begins with its name" says 1 "ringside-blk: $tmp/short.qcow2: " --socket-path="$sock" "$tmp/short.qcow2"
ok "a CPU that there is not" says 1 "CPU 1023 cannot be had" --iothread-cpus=1023 --socket-path="$sock" "$image"
ok "an image without a name" says 1 "the name of a file is empty" --socket-path="$sock" ""
ok "a trace file that can't be made" says 1 "$tmp/none/trace" --socket-path="$sock" --trace="$tmp/none/trace" "$image"

# Where the kernel, or a container around us, takes no filter of system calls
cat >"$tmp/unfiltered" <<END
#!/usr/bin/env python3
import ctypes, os, sys
c = ctypes.CDLL("libseccomp.so.2")
c.seccomp_init.restype = ctypes.c_void_p
f = ctypes.c_void_p(c.seccomp_init(0x7FFF0000))
c.seccomp_rule_add(f, 0x00050000 | 13, c.seccomp_syscall_resolve_name(b"seccomp"), 0)
c.seccomp_load(f)
os.execv("$blk", ["$blk"] + sys.argv[1:])
END
chmod +x "$tmp/unfiltered"
no_filter() {
    local blk=$tmp/unfiltered
    says 1 "(--sandbox=off goes on without)" --socket-path="$sock" --control="$tmp/control" "$image"
}
ok "no filter of system calls to be had" no_filter
ok "and the sockets are gone" sh -c "! test -e '$sock' && ! test -e '$tmp/control'"

# --- what it says about itself
ok "--print-capabilities is JSON with type block, whatever else is given" sh -c \
    "'$blk' --nonsense --print-capabilities | jq -en 'input | .type == \"block\" and (.features | index(\"blk-file\")) and (.features | index(\"read-only\"))'"
full() { "$blk" --print-capabilities >/dev/full; }
ok_not "capabilities that nobody gets are a failure" full
ok "--help ends with 0" sh -c "'$blk' --help | grep -q -- --socket-path"
ok "--version ends with 0" sh -c "'$blk' --version | grep -q '^ringside-blk [0-9]'"
options() { "$blk" --help | sed -n 's/^  --\([a-z-]*\).*/\1/p' | sort; }
ok "the manual page has every option of --help, and no other" sh -c "
    sed -n 's/^\\.BR* \"*\\\\-\\\\-\\([a-z\\\\-]*\\).*/\\1/p' '$top/docs/ringside-blk.1' | tr -d '\\\\' | sort >'$tmp/manual'
    '$blk' --help | sed -n 's/^  --\\([a-z-]*\\).*/\\1/p' | sort | diff - '$tmp/manual'"
ok "the manual page has every command of the control socket" sh -c "
    for c in help stats resize drain flush throttle resume trace inject mark quit; do
        grep -q \"^\\.B \$c\" '$top/docs/ringside-blk.1' || { echo \$c; exit 1; }
    done"
ok "the descriptor for management programs is JSON with a binary" \
    jq -en 'input | .type == "block" and .binary and .description' "$top/docs/50-ringside-blk.json"

# --- how it runs
start one "$blk" --socket-path="$sock" --control="$tmp/control" "$image"
ok "the socket is made" wait_for 60 up
ok "a front end is answered" asks "$sock"
ok "and the next one" asks "$sock"
ok "a taken socket gets one sentence" says 1 "taken by a running program" --socket-path="$sock" --format=null --size=1M
ok "the image is locked against a second one" says 1 "$image" --socket-path="$tmp/other" "$image"
ok "it has no new privileges and a filter of system calls" sh -c "
    grep -q '^NoNewPrivs:.1' /proc/${started[one]}/status && grep -q '^Seccomp:.2' /proc/${started[one]}/status &&
    ! grep -L '^Seccomp:.2' /proc/${started[one]}/task/*/status | grep ."
ok "stats are JSON" answers "$tmp/control" '{"command":"stats","id":1}' '.id == 1 and .return.connection.connections >= 2 and .return.device.capacity == 4194304'
ok "resize is done and told" answers "$tmp/control" '{"command":"resize","bytes":"8M"}' '.return.capacity == 8388608'
ok "the file has the new size" test "$(stat -c %s "$image")" = 8388608
ok "a command that there is not gets an error" answers "$tmp/control" '{"command":"jump"}' '.error | test("no such command")'
ok "rules for a filter that is not there: what to start with" answers "$tmp/control" '{"command":"inject","rules":"write"}' '.error | test("--inject= alone will do")'
ok "a line that is no JSON gets an error" answers "$tmp/control" 'what' .error
stop one
ok "SIGTERM ends it with 0" test "$stopped" = 0
ok "its sockets are gone" sh -c "! test -e '$sock' && ! test -e '$tmp/control'"
ok "it had nothing to complain about" test ! -s "$tmp/one.log"

start two "$blk" --socket-path="$sock" --control="$tmp/control" --blk-file="$image" --sandbox=off --inject=
wait_for 60 up "$tmp/control"
ok "--inject= has put the filter in place: rules can come" answers "$tmp/control" '{"command":"inject","rules":"truncate"}' .return
ok "... and act" answers "$tmp/control" '{"command":"resize","bytes":"9M"}' '.error | test("injected")'
ok "quit is answered" answers "$tmp/control" '{"command":"quit"}' .return
wait "${started[two]}"
ok "quit ends it with 0" test $? = 0
unset 'started[two]'

start three "$blk" --socket-path="$sock" "$image"
wait_for 60 up
stop three KILL
ok "after a kill the socket is left over" test -S "$sock"
# A load that goes on with the next process: the one that was measured has ended. It is a slow one, and so killed long
# before the load is over, which is measured from its beginning.
start before "$blk" --socket-path="$sock" --control="$tmp/control" --throttle=iops=200 --format=null --size=1G
wait_for 60 up "$tmp/control"
start bench timeout 300 "$bin/ringside" bench --device="$sock" --inflight=on --reconnect=on --client=sleep --qd=1 --ramp=0 \
    --ops=20000 --runtime=250
at_work() { device_stats "$tmp/control" '.operations.read.operations >= 40'; }
ok "a load is there" wait_for 60 at_work
stop before KILL
start after "$blk" --socket-path="$sock" --format=null --size=1G
wait "${started[bench]}"
ok "it survives a kill" test $? = 0
unset 'started[bench]'
ok "and has no figures of a process that is gone" grep "^device: not measured" "$tmp/bench.log"
ok_not "nor of system calls" grep "system calls of the device" "$tmp/bench.log"
stop after KILL
start four "$blk" --socket-path="$sock" --once "$image"
ok "which does not hinder the next" wait_for 60 asks "$sock"
wait "${started[four]}"
ok "--once ends with its front end" test $? = 0
unset 'started[four]'

start five "$blk" --socket-path="$sock" --format=null --size=1G --num-queues=64 --iothreads=4 --queue-size=32768
ok "null, 64 queues on 4 threads" wait_for 60 asks "$sock"
stop five INT
ok "SIGINT ends it with 0" test "$stopped" = 0

# A zoned disk keeps its size: the file of its states would be that of another disk.
start zoned "$blk" --socket-path="$sock" --control="$tmp/control" --zoned=zone-size=1M,state="$tmp/zones" "$image"
wait_for 60 up "$tmp/control"
ok "a zoned disk is not resized" answers "$tmp/control" '{"command":"resize","bytes":"16M"}' '.error | test("keeps its size")'
stop zoned
ok "nor is its file" test "$(stat -c %s "$image")" = 8388608
ok "and its states can be used again" timeout 120 "$bin/ringside" info --blk-file="$image" --zoned=zone-size=1M,state="$tmp/zones"
ok "states of other zones say whose they are" says 1 "zone states of another disk: 16384 sectors" --socket-path="$sock" \
    --zoned=zone-size=2M,state="$tmp/zones" "$image"
head -c 100000 /dev/zero >"$tmp/other-file"
ok "a file of something else is not to be removed" says 1 "(name another, or a new one)" --socket-path="$sock" \
    --zoned=zone-size=1M,state="$tmp/other-file" "$image"

# An encrypted image; over a handover its passphrase is not read again: no file can be opened then.
printf secret >"$tmp/secret"
printf wrong >"$tmp/wrong"
"$bin/ringside-img" create -q -f qcow2 -o encrypt.format=luks,encrypt.iter-time=10 --secret-file="$tmp/secret" "$tmp/luks.qcow2" 8M
ok "an encrypted image asks for its passphrase" says 1 "(--secret-file)" --socket-path="$sock" "$tmp/luks.qcow2"
ok "a wrong one" says 1 "opens none of the image's key slots" --socket-path="$sock" --secret-file="$tmp/wrong" "$tmp/luks.qcow2"
start luks "$blk" --socket-path="$sock" --handover --secret-file="$tmp/secret" "$tmp/luks.qcow2"
wait_for 60 up
verified() { timeout 120 "$bin/ringside" verify --device="$sock" --ops=50 --span=4m; }
ok "with the right one it is served" verified
rm "$tmp/secret"
ok "and again when it comes back, the file gone" verified
stop luks
ok "it ends with 0" test "$stopped" = 0

# Threads on CPUs: the list begins anew for a third thread.
pinned() { # thread, CPU
    local task
    task=$(grep -lx "$1" /proc/"${started[six]}"/task/*/comm)
    grep "^Cpus_allowed_list:.$2\$" "${task%/comm}/status"
}
last=$(($(nproc) - 1))
if [ "$(sed -n 's/^Cpus_allowed_list:.//p' /proc/self/status)" = "0-$last" ] && [ $last -gt 0 ]; then
    start six "$blk" --socket-path="$sock" --format=null --size=1G --num-queues=3 --iothreads=3 --iothread-cpus=$last,0
    wait_for 60 asks "$sock"
    ok "thread 0 is held on its CPU" pinned iothread0 $last
    ok "thread 1 is held on its CPU" pinned iothread1 0
    ok "thread 2 is held on its CPU" pinned iothread2 $last
    stop six
    ok "drivers' threads as well" timeout 120 "$bin/ringside" bench --format=null --queues=2 --iothreads=2 --iothread-cpus=0,1 \
        --cpus=0,1 --client=yield --runtime=0.1 --null-reads=nothing
    ok_not "a list of CPUs that is none for the driver" timeout 120 "$bin/ringside" bench --format=null --cpus=one
else
    skip "threads on CPUs" "there is but one, or not all are ours"
fi

# A listening descriptor (socket activation), and a connected one.
ok "--fd with a listening socket, then a connected one" timeout 120 python3 - "$blk" "$image" <<'PY'
import os, signal, socket, struct, subprocess, sys, tempfile
blk, image = sys.argv[1:]
def ask(s):
    s.settimeout(60)
    s.send(struct.pack("<III", 1, 1, 0))
    assert len(s.recv(20)) == 20
with tempfile.TemporaryDirectory() as d:
    l = socket.socket(socket.AF_UNIX)
    l.bind(d + "/s")
    l.listen()
    p = subprocess.Popen([blk, "--fd=%d" % l.fileno(), image], pass_fds=[l.fileno()])
    for _ in range(3):
        c = socket.socket(socket.AF_UNIX)
        c.connect(d + "/s")
        ask(c)
        c.close()
    p.send_signal(signal.SIGTERM)
    assert p.wait(20) == 0
    assert os.path.exists(d + "/s"), "a socket that was handed over is not removed"
a, b = socket.socketpair(socket.AF_UNIX)
p = subprocess.Popen([blk, "--fd=%d" % b.fileno(), image], pass_fds=[b.fileno()])
b.close()
ask(a)
a.close()
assert p.wait(20) == 0, "ends with the one front end that it was given"
PY
done_testing
