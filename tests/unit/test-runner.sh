#!/usr/bin/env bash
# tests/run counts what there was to count: a test that stops in the middle, with whatever status, or that is never
# started, is no success.
. "$(dirname "$0")/../lib.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)

fake() { # name, lines of its body
    printf '#!/usr/bin/env bash\n%s\n' "$2" >"$tmp/$1"
    chmod +x "$tmp/$1"
}
fake passes 'echo "ok 1 - one"; echo 1..1'
fake skips 'echo 1..2; echo "ok 1 - one"; echo "ok 2 - two # SKIP not here"'
fake fails 'echo "not ok 1 - one"; echo 1..1; exit 1'
fake dies 'echo 1..2; echo "ok 1 - one"; kill -ABRT $$'
fake leaves 'echo 1..3; echo "ok 1 - one"; exit 0'
fake silent 'exit 0'
fake hangs 'echo 1..2; echo "# running: one"; echo "ok 1 - one"; echo "# running: two"; kill -KILL $$'
# The shell that waits for `timeout`, which waits for us.
fake kills 'kill -KILL $(ps -o ppid= -p $PPID); sleep 0.2'

# The tests named end with the last line TEXT, and with success or not.
ends() { # text, test...
    local text=$1 status
    shift
    JOBS=1 RINGSIDE_BUILD=$tmp/build "$top/tests/run" "${@/#/$tmp/}" >"$tmp/out" 2>&1
    status=$?
    cat "$tmp/out"
    [ "$(tail -n 1 "$tmp/out")" = "$text" ] && return $status
    return 200
}
ok "passed and skipped" ends "2 passed, 0 failed" passes skips
ok_not "failed" ends "1 passed, 1 failed" passes fails
ok_not "died" ends "2 passed, 1 failed" passes dies
ok_not "ended early, with success" ends "2 passed, 1 failed" passes leaves
ok_not "no case at all" ends "1 passed, 1 failed" passes silent
ok_not "not there" ends "1 passed, 1 failed" passes missing
ok_not "not run to its end, nor the one behind it" ends "1 passed, 2 failed" passes kills fails
ok_not "in the middle of a case" ends "2 passed, 1 failed" passes hangs
ok "... which is named" grep '| # running: two$' "$tmp/out"
ok_not "... and no other one" grep '# running: one' "$tmp/out"
done_testing
