#!/usr/bin/env bash
# The table of features in docs/qcow2.md: it says yes everywhere, each row names its test, and the tests are there, with
# the cases that the row quotes.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")/.." && pwd)
page=$here/../docs/qcow2.md

rows() {
    sed -n '/^## Features/,/^## Where/p' "$page" | grep '^|' | tail -n +3
}
says_yes() {
    ! rows | awk -F'|' '$3 !~ /^ (yes)? *$/ || $4 !~ /^ (yes)? *$/ || ($3 !~ /yes/ && $4 !~ /yes/)' | grep .
}
named() { # every `file` in the last column
    local bad=0 file
    while read -r file; do
        case $file in
        */*) [ -e "$here/$file" ] || [ -e "$here/$file.c" ] || { echo "there is no tests/$file"; bad=1; } ;;
        esac
    done < <(rows | awk -F'|' '{print $5}' | grep -o '`[^`]*`' | tr -d '`')
    rows | awk -F'|' '$5 !~ /`/' | grep . && bad=1
    return $bad
}
quoted() { # `file` "case": the file has a case of that name
    local bad=0 file words
    while IFS=$'\t' read -r file words; do
        grep -qF "$words" "$here/$file" || { echo "tests/$file has no case '$words'"; bad=1; }
    done < <(rows | awk -F'|' '{print $5}' | grep -oE '`[^`]*` "[^"]*"' | sed 's/^`\([^`]*\)` "\(.*\)"$/\1\t\2/')
    return $bad
}
ok "the table says yes everywhere" says_yes
ok "the tests that it names are there" named
ok "and have the cases that it quotes" quoted
done_testing
