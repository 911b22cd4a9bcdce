#!/usr/bin/env bash
# A short run of the fuzzer of vhost-user messages, from front ends that do something whole; as long as one likes:
# build/fuzz/messages_fuzz CORPUS.
. "$(dirname "$0")/../lib.sh"
fuzz=$RINGSIDE_BUILD/fuzz/messages_fuzz
mkdir "$tmp/corpus"
runs=20000
[ -z "$long" ] || runs=5000000
ok "there are seeds" "$(dirname "$0")/messages-seeds" "$tmp/corpus"
ok "$runs sequences of messages do no harm" "$fuzz" -runs=$runs -seed=1 -max_len=1024 -timeout=120 \
    -artifact_prefix="$RINGSIDE_BUILD/fuzz/" "$tmp/corpus"
done_testing
