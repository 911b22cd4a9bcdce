#!/usr/bin/env bash
# docs/mistakes.md: each mistake names its tests, and they are there, with the cases that its row quotes.
. "$(dirname "$0")/../lib.sh"
here=$(cd "$(dirname "$0")/.." && pwd)
page=$here/../docs/mistakes.md

rows() { grep '^|' "$page" | grep -vE '^\|(---|.* \| test \|$)'; }
tests_of_rows() { rows | sed 's/ |$//; s/.* | //'; }
every_row_has_a_test() {
    local n
    n=$(rows | wc -l)
    tests_of_rows | grep -vE '`(unit|harness|image|crash)/[a-z0-9_.-]+`'
    [ "$n" -ge 70 ] && [ "$(tests_of_rows | grep -cE '`(unit|harness|image|crash)/[a-z0-9_.-]+`')" -eq "$n" ]
}
files() {
    local bad=0 file
    while read -r file; do
        [ -e "$here/$file" ] || { echo "there is no tests/$file"; bad=1; }
    done < <(tests_of_rows | grep -oE '`(unit|harness|image|crash)/[^`]*`' | tr -d '`' | sort -u)
    return $bad
}
cases() {
    local bad=0 file words
    while IFS=$'\t' read -r file words; do
        grep -qF -- "$words" "$here/$file" || { echo "tests/$file has no case '$words'"; bad=1; }
    done < <(tests_of_rows | grep -oE '`[^`]*` "[^"]*"' | sed 's/^`\([^`]*\)` "\(.*\)"$/\1\t\2/')
    return $bad
}
ok "every mistake names its test" every_row_has_a_test
ok "the files are there" files
ok "and have the cases that are quoted" cases
done_testing
