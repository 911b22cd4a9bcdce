#!/usr/bin/env bash
# host/runtime/coroutine-gdb.py: the stack of a sleeping coroutine is one backtrace through those who made it.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$(dirname "$0")/../.." || exit 1

if ! command -v gdb >/dev/null || ! gdb --batch -ex 'python print(1)' 2>/dev/null | grep -q 1; then
    skip "sleeping coroutines in gdb" "needs gdb with python"
    done_testing
fi
cc=${CC:-gcc}
ok "the program builds" "$cc" -std=gnu17 -D_GNU_SOURCE -O2 -g -fno-optimize-sibling-calls -pthread -I. \
    -o "$tmp/sleeping" \
    tests/unit/cross/sleeping_main.c host/runtime/*.c host/runtime/*.S

# The commands after the break are the arguments; functions are compared in the order in which they are called.
look() {
    local commands=() c
    for c in "$@"; do commands+=(-ex "$c"); done
    timeout 250 gdb --batch -nx -ex 'set debuginfod enabled off' -ex 'set startup-with-shell off' \
        -ex 'set style enabled off' \
        -ex 'source host/runtime/coroutine-gdb.py' -ex 'break main' -ex run \
        -ex 'set var co_record_creators = 1' -ex 'break look_here' -ex continue "${commands[@]}" "$tmp/sleeping" \
        >"$tmp/gdb.log" 2>&1
    cat "$tmp/gdb.log"
}
in_order() { # file, words...
    local text word
    text=$(cat "$1")
    shift
    for word in "$@"; do
        case $text in *"$word"*) text=${text#*"$word"} ;; *)
            echo "missing, or too early: $word"
            return 1
            ;;
        esac
    done
}

look 'coroutine list' >"$tmp/list"
ok "list names both, with the loop and the place where they sleep" sh -c \
    "cat '$tmp/list'; test \"\$(grep -c 'sleeping loop looked-at.*waits_for_the_disk' '$tmp/list')\" = 2"
look 'coroutine bt sleeping[1]' 'info registers rip' bt >"$tmp/bt"
ok "the backtrace goes from the yield through task and request to main, in that order" in_order "$tmp/bt" \
    "#0 " co_yield waits_for_the_disk waits_for_the_disk task co_main request waits_for_the_disk request co_main handles_the_queue main
ok "the thread's own stack is as it was" in_order <(sed -n '/^rip/,$p' "$tmp/bt") "#0  look_here" "main"
done_testing
