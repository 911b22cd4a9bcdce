#!/usr/bin/env bash
# What a machine can say about the sources: layout, include directions, and static analysis.
export RINGSIDE_BUILD=${RINGSIDE_BUILD:-$PWD/build}
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.." || exit 1

# A clone that belongs to somebody else (a directory that a container's root was given) is looked at all the same.
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0="$PWD"
programs=(tests/run tests/bench/run .ci/run .ci/packages)
listed() { # pattern...: what git knows of; without git, what is there
    local names=(-name "$1") pattern
    for pattern in "${@:2}"; do
        names+=(-o -name "$pattern")
    done
    git ls-files -- "$@" 2>/dev/null || find ./*/ ./*.sh -name build -prune -o -type f \( "${names[@]}" \) -printf '%p\n' |
        cut -c3-
}
mapfile -t sources < <(listed '*.c' '*.h')
mapfile -t scripts < <(listed '*.sh' && printf '%s\n' "${programs[@]}")
mapfile -t others < <(listed '*.S' '*.mk' && echo Makefile)

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

tidy_some() {
    clang-tidy --quiet "$@" -- -std=gnu17 -D_GNU_SOURCE -I. 2>&1 || echo "error: clang-tidy ended with status $?"
}
export -f tidy_some
tidy() {
    printf '%s\0' "${sources[@]}" | grep -zE '^(host|tests/harness|guest/platform/hosted)/.*\.c$' |
        xargs -0 -n 6 -P 2 bash -c 'tidy_some "$@"' tidy |
        grep -vE 'warnings? (generated|treated)|^Suppressed|^Use -header' >"$tmp/tidy.log"
    local ended=${PIPESTATUS[2]}
    cat "$tmp/tidy.log"
    [ "$ended" -eq 0 ] && ! grep -qE '(warning|error):' "$tmp/tidy.log"
}

ok "clang-format has nothing to change" clang-format --dry-run -Werror "${sources[@]}"
ok "includes point down the layers only" arrows
ok "cppcheck finds nothing" cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,portability \
    --inline-suppr --suppressions-list=tests/cppcheck.suppress -j 2 -I. -D__x86_64__ --library=posix \
    -D__BYTE_ORDER__=1234 -D__ORDER_LITTLE_ENDIAN__=1234 common guest/driver host
ok "clang-tidy finds nothing" tidy
ok "shellcheck finds nothing" shellcheck -x -S warning "${scripts[@]}"
unfinished() {
    ! grep -nIE '\b(TODO|FIXME|XXX|HACK)\b' "${sources[@]}" "${scripts[@]}" "${others[@]}" | grep -v test-lint.sh
}
ok "the sources were found" [ ${#sources[@]} -gt 100 -a ${#scripts[@]} -gt 20 -a ${#others[@]} -gt 5 ]
ok "no line says what is unfinished" unfinished
done_testing
