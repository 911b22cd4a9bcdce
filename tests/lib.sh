# shellcheck shell=bash
# For test scripts: `. "$(dirname "$0")/../lib.sh"`. TAP on stdout, a temporary directory, processes that are
# gone when the test is.
#
#   ok "what must hold" COMMAND [ARGUMENT...]      a case: passes if the command succeeds
#   ok_not "what must not happen" COMMAND...       passes if the command exits with a status from 1 to 123: it is not
#                                                  missing, has not been killed, nor stopped by `timeout`
#   says TEXT COMMAND...         for these: succeeds if the output, which is in $tmp/said, has the text, whatever the status
#   skip "what" "why"
#   start NAME COMMAND...        runs it in the background, output in $tmp/NAME.log; stopped at the end
#   stop NAME [SIGNAL]           ends it (TERM); its status in $stopped
#   wait_for SECONDS COMMAND...  until the command succeeds; says what it said at last if it does not
#   listens SOCKET...            whether somebody listens there: a socket is there before that, and after its owner
#   control SOCKET REQUEST       prints what ringside-blk answers on its control socket, a line of JSON
#   answers SOCKET REQUEST JQ    what a jq expression makes of the answer; fails if that is null or false
#   device_stats SOCKET JQ       what it makes of the `stats`
#   in_memory MIB                a directory in $memory, of a tmpfs with room for so much where there is one; gone at the end
#   done_testing                 prints the plan; exit status says whether all passed
#
# A limit of time is there so that a test ends, not to judge by: half a minute at least, for a machine that stalls.
set -u
bin=$RINGSIDE_BUILD/bin
tools=$RINGSIDE_BUILD/tests
long=
# shellcheck disable=SC2034 # for the scripts
[ "${RINGSIDE_SIZE:-short}" = long ] && long=1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/ringside.XXXXXX")
tap_count=0 tap_failed=0
memory=
declare -A started=()

cleanup() {
    # A child that gets a signal before it has become its program runs the traps of its parent.
    [ "$BASHPID" = $$ ] || return
    local name
    for name in "${!started[@]}"; do
        kill -KILL "${started[$name]}" 2>/dev/null
        wait "${started[$name]}" 2>/dev/null
    done
    rm -rf "$tmp" ${memory:+"$memory"}
}
trap cleanup EXIT
trap 'exit 143' TERM INT

tap_result() { # status, what
    tap_count=$((tap_count + 1))
    if [ "$1" -eq 0 ]; then
        echo "ok $tap_count - $2"
    else
        echo "not ok $tap_count - $2"
        tap_failed=$((tap_failed + 1))
        tail -n 40 "$tmp/case.log" | sed 's/^/# /'
        tap_surroundings
    fi
}

# What may have to do with a case that failed: what runs in the background has said, and how busy the machine is.
tap_surroundings() {
    local name
    for name in "${!started[@]}"; do
        [ -s "$tmp/$name.log" ] || continue
        echo "# the last words of $name:"
        tail -n 10 "$tmp/$name.log" | cut -c 1-300 | sed 's/^/#   /'
    done
    echo "# after $SECONDS s, load $(cut -d' ' -f1-3 /proc/loadavg), $(df --output=avail -h "$tmp" | tail -n 1 | tr -d ' ') free for files"
}

ok() {
    local what=$1
    shift
    echo "# running: $what"
    "$@" >"$tmp/case.log" 2>&1
    tap_result $? "$what"
}

ok_not() {
    local what=$1 status
    shift
    echo "# running: $what"
    "$@" >"$tmp/case.log" 2>&1
    status=$?
    [ $status -ge 1 ] && [ $status -le 123 ]
    tap_result $? "$what"
}

says() {
    local text=$1
    shift
    "$@" >"$tmp/said" 2>&1
    cat "$tmp/said"
    grep -qF -- "$text" "$tmp/said"
}

skip() {
    tap_count=$((tap_count + 1))
    echo "ok $tap_count - $1 # SKIP $2"
}

start() {
    local name=$1
    shift
    "$@" >"$tmp/$name.log" 2>&1 </dev/null &
    started[$name]=$!
}

stop() {
    local name=$1
    kill "-${2:-TERM}" "${started[$name]}" 2>/dev/null
    wait "${started[$name]}" 2>/dev/null
    # shellcheck disable=SC2034 # for the scripts
    stopped=$?
    unset "started[$name]"
}

wait_for() {
    local end=$((SECONDS + $1 + 1)) # SECONDS may be about to be one more
    shift
    until "$@" >"$tmp/wait.log" 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "# waited in vain for: $*"
            tail -n 10 "$tmp/wait.log" | sed 's/^/#   /'
            return 1
        fi
        sleep 0.05
    done
}

listens() {
    local path
    for path; do
        awk -v path="$path" '$4 == "00010000" && $8 == path { found = 1 } END { exit !found }' /proc/net/unix || return 1
    done
}

in_memory() {
    local free
    free=$(df --output=avail -m /dev/shm 2>/dev/null | tail -n 1)
    if [ -d /dev/shm ] && [ -w /dev/shm ] && [ "${free:-0}" -ge "$1" ]; then
        memory=$(mktemp -d /dev/shm/ringside.XXXXXX)
    else
        memory=$(mktemp -d "$tmp/memory.XXXXXX")
    fi
}

control() {
    python3 - "$1" "$2" <<'PY'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
s.send(sys.argv[2].encode() + b"\n")
print(s.makefile().readline(), end="")
PY
}

answers() {
    control "$1" "$2" | jq -en "input | $3"
}

device_stats() {
    answers "$1" '{"command":"stats"}' ".return | $2"
}

done_testing() {
    echo "1..$tap_count"
    exit $((tap_failed > 0))
}
