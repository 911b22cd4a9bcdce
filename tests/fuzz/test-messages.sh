#!/usr/bin/env bash
# A short run of the fuzzer of vhost-user messages; as long as one likes: build/fuzz/messages_fuzz CORPUS.
. "$(dirname "$0")/../lib.sh"
fuzz=$RINGSIDE_BUILD/fuzz/messages_fuzz
mkdir "$tmp/corpus"
runs=20000
[ -z "$long" ] || runs=5000000
ok "$runs sequences of messages do no harm" "$fuzz" -runs=$runs -seed=1 -max_len=512 -artifact_prefix="$RINGSIDE_BUILD/fuzz/" \
    "$tmp/corpus"
done_testing
