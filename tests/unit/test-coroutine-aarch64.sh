#!/usr/bin/env bash
# Our assembly switch for aarch64, and ucontext there: the runtime is built by a cross compiler and run under
# qemu's user-mode emulation.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
cd "$(dirname "$0")/../.." || exit 1

gcc=aarch64-linux-gnu-gcc
emulator=
for e in qemu-aarch64 qemu-aarch64-static; do
    command -v "$e" >/dev/null && emulator=$e && break
done

for way in assembly ucontext; do
    what="coroutines on aarch64 by $way"
    if ! command -v $gcc >/dev/null || [ -z "$emulator" ]; then
        skip "$what" "needs $gcc and qemu-aarch64 (packages gcc-aarch64-linux-gnu, qemu-user)"
        continue
    fi
    flags=()
    [ $way = ucontext ] && flags=(-DRINGSIDE_CO_UCONTEXT)
    ok "$what: builds without a warning" $gcc -std=gnu17 -D_GNU_SOURCE -O2 -g -Wall -Wextra -Werror \
        -Wno-unused-parameter -Wno-missing-field-initializers -pthread -static -I. "${flags[@]}" -o "$tmp/runtime-$way" \
        tests/unit/cross/runtime_main.c host/runtime/*.c host/runtime/*.S
    ok "$what: all cases pass" timeout 500 "$emulator" "$tmp/runtime-$way"
done
done_testing
