#!/usr/bin/env bash
# What a machine can say about the sources: layout, include directions, and static analysis.
export RINGSIDE_BUILD=${RINGSIDE_BUILD:-$PWD/build}
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.." || exit 1

mapfile -t sources < <(git ls-files '*.c' '*.h' 2>/dev/null)
[ ${#sources[@]} -gt 0 ] || mapfile -t sources < <(find common guest host tests -name '*.[ch]')
mapfile -t scripts < <(git ls-files '*.sh' tests/run tests/bench/run .ci/run .ci/packages)

# Layers, lowest first. A file may include its own layer and those to the left of it in its line, and `common`.
arrows() {
    local bad=0 file from to line
    local host="host/runtime host/aio host/block host/qcow2 host/device host/vhost_user host/cmd"
    local guest="guest/driver guest/platform guest/libc guest/apps"
    for file in "${sources[@]}"; do
        case $file in
        host/*) line=$host ;;
        guest/*) line=$guest ;;
        common/*) line="" ;;
        *) continue ;;
        esac
        from=$(cut -d/ -f1-2 <<<"$file")
        while read -r to; do
            to=$(cut -d/ -f1-2 <<<"$to")
            case $to in common/*) continue ;; esac
            # The block layer's table of drivers names qcow2; the device does not.
            case " ${line%%" $from"*} $from " in
            *" $to "*) ;;
            *)
                echo "$file must not include $to"
                bad=1
                ;;
            esac
        done < <(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$file" | grep /)
    done
    return $bad
}

tidy() {
    printf '%s\0' "${sources[@]}" | grep -zE '^(host|tests/harness|guest/platform/hosted)/.*\.c$' |
        xargs -0 -n 6 -P 2 sh -c 'clang-tidy --quiet "$@" -- -std=gnu17 -D_GNU_SOURCE -I. 2>&1 | grep -vE "warnings? (generated|treated)|^Suppressed|^Use -header" >&2; test "${PIPESTATUS:-0}" = 0' tidy 2>"$tmp/tidy.log"
    cat "$tmp/tidy.log"
    ! grep -qE '(warning|error):' "$tmp/tidy.log"
}

ok "clang-format has nothing to change" clang-format --dry-run -Werror "${sources[@]}"
ok "includes point down the layers only" arrows
ok "cppcheck finds nothing" cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,portability \
    --inline-suppr --suppressions-list=tests/cppcheck.suppress -j 2 -I. -D__x86_64__ --library=posix \
    -D__BYTE_ORDER__=1234 -D__ORDER_LITTLE_ENDIAN__=1234 common guest/driver host
ok "clang-tidy finds nothing" tidy
ok "shellcheck finds nothing" shellcheck -x -S warning "${scripts[@]}"
ok "no line says what is unfinished" sh -c '! git grep -nIE "\b(TODO|FIXME|XXX|HACK)\b" -- "*.c" "*.h" "*.S" "*.sh" Makefile "*.mk" | grep -v test-lint.sh'
done_testing
