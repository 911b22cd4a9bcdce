# shellcheck shell=bash
# For test scripts: `. "$(dirname "$0")/../lib.sh"`. TAP on stdout, a temporary directory, processes that are
# gone when the test is.
#
#   ok "what must hold" COMMAND [ARGUMENT...]      a case: passes if the command succeeds
#   ok_not "what must not happen" COMMAND...       passes if the command exits with a status from 1 to 125
#   says TEXT COMMAND...         for these: succeeds if the output, which is in $tmp/said, has the text, whatever the status
#   skip "what" "why"
#   start NAME COMMAND...        runs it in the background, output in $tmp/NAME.log; stopped at the end
#   stop NAME [SIGNAL]           ends it (TERM); its status in $stopped
#   wait_for SECONDS COMMAND...  until the command succeeds
#   done_testing                 prints the plan; exit status says whether all passed
set -u
bin=$RINGSIDE_BUILD/bin
tools=$RINGSIDE_BUILD/tests
long=
# shellcheck disable=SC2034 # for the scripts
[ "${RINGSIDE_SIZE:-short}" = long ] && long=1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/ringside.XXXXXX")
tap_count=0 tap_failed=0
declare -A started=()

cleanup() {
    # A child that gets a signal before it has become its program runs the traps of its parent.
    [ "$BASHPID" = $$ ] || return
    local name
    for name in "${!started[@]}"; do
        kill -KILL "${started[$name]}" 2>/dev/null
        wait "${started[$name]}" 2>/dev/null
    done
    rm -rf "$tmp"
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
        sed 's/^/# /' "$tmp/case.log" | tail -n 40
    fi
}

ok() {
    local what=$1
    shift
    "$@" >"$tmp/case.log" 2>&1
    tap_result $? "$what"
}

ok_not() {
    local what=$1 status
    shift
    "$@" >"$tmp/case.log" 2>&1
    status=$?
    [ $status -ge 1 ] && [ $status -le 125 ]
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
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}

done_testing() {
    echo "1..$tap_count"
    exit $((tap_failed > 0))
}
