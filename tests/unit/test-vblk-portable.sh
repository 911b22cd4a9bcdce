#!/usr/bin/env bash
# guest/driver compiles alone: freestanding C11, by gcc and clang, for 32-bit and big-endian machines too, without
# warnings; it needs nothing but memcpy and memset, calls nothing recursively, and stays within its bounds of text and
# of stack.
# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"
export CCACHE_DISABLE=1 # the call graphs that the compiler writes beside an object are not in its cache
cd "$(dirname "$0")/../.." || exit 1

warnings=(-Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers -Wshadow -Wundef
    -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wpointer-arith -Wvla -Wwrite-strings)
free=(-std=c11 -ffreestanding -fno-pic -fno-stack-protector -I.)

# all OUT COMPILER [OPTION...]: compiles every file of the driver into OUT
all() {
    local out=$1 file
    shift
    mkdir -p "$out"
    for file in guest/driver/*.c; do
        "$@" "${free[@]}" "${warnings[@]}" -c -o "$out/$(basename "$file" .c).o" "$file" || return 1
    done
}

# Only memcpy and memset may stay undefined when all of it is linked together.
needs_little() {
    local left
    left=$(nm -A "$1"/*.o | awk '/ U / { u[$NF] } / [TtDdRrBbVW] / { d[$NF] } END { for (s in u) if (!(s in d)) print s }' |
        grep -vxE 'memcpy|memset|__aeabi_mem(cpy|set|clr)[48]?|_GLOBAL_OFFSET_TABLE_|\.TOC\.') # Arm has names of its own for the two
    echo "needed: $left"
    [ -z "$left" ]
}

# On the big-endian ones: little-endian fields are types of their own (checklist 29, 45), and legacy devices, whose fields
# are in the guest's order, are refused (32, 286).
for target in armv7-none-eabi armebv7-none-eabi riscv32-unknown-elf powerpc-unknown-elf \
    powerpc64-unknown-elf i686-unknown-elf; do
    ok "clang compiles it for $target" all "$tmp/$target" clang --target=$target -Os
    ok "for $target it needs memcpy and memset, nothing else" needs_little "$tmp/$target"
done
for without in VBLK_WITHOUT_PACKED VBLK_WITHOUT_ZONES VBLK_WITHOUT_MESSAGES; do
    ok "it compiles with $without" all "$tmp/$without" gcc -O2 -D$without
done

# ---- bounds, with the compilers that the guests are built with ----

stack_frame=512 stack_depth=2048

# Longest chain of calls, in bytes of stack, from the compiler's call graphs; calls through pointers (platform,
# transport) end it. Fails if the graph has a loop, which would be recursion.
depth() {
    awk -v limit=$stack_depth '
        /^node:/ { match($0, /title: "[^"]*"/); name = substr($0, RSTART + 8, RLENGTH - 9)
                   if (match($0, /[0-9]+ bytes/)) own[name] = substr($0, RSTART, RLENGTH) + 0 }
        /^edge:/ { match($0, /sourcename: "[^"]*"/); from = substr($0, RSTART + 13, RLENGTH - 14)
                   match($0, /targetname: "[^"]*"/); to = substr($0, RSTART + 13, RLENGTH - 14)
                   if (to != "__indirect_call") { n++; a[n] = from; b[n] = to } }
        END {
            for (name in own) deep[name] = own[name]
            for (round = 0; round < 200; round++) {
                changed = 0
                for (i = 1; i <= n; i++)
                    if (deep[a[i]] < own[a[i]] + deep[b[i]]) { deep[a[i]] = own[a[i]] + deep[b[i]]; changed = 1 }
                if (!changed) break
            }
            for (name in deep) if (deep[name] > most) { most = deep[name]; where = name }
            print "deepest: " where ", " most " bytes"
            exit changed || most > limit || n == 0
        }' "$1"/*.ci
}

# text OUT: bytes of code and constants in the objects of OUT
text() { size "$1"/*.o | awk 'NR > 1 { sum += $1 } END { print sum }'; }

at_most() {
    echo "$1, the limit $2"
    [ "$1" -gt 0 ] && [ "$1" -le "$2" ]
}

# A port of the smallest kind: one transport, split ring, requests by callback. Linked with the sections that it does not
# use left out; no optimization at link time.
cat >"$tmp/port.c" <<'PORT'
#include "guest/driver/vblk.h"
#include "guest/driver/vtr_mmio.h"
#include "guest/driver/vtr_pci.h"
extern const struct vblk_platform the_platform;
extern const struct vtr_pci_access the_pci;
extern const struct vtr_mmio_access the_mmio;
extern struct vblk_config config;
extern struct vblk_request request;
extern unsigned char memory[];
extern struct TRANSPORT transport;
struct vblk *disk;
void _start(void);
void _start(void)
{
    INIT;
    vblk_start(&disk, memory, 65536, &transport.vtr, &the_platform, &config);
    vblk_submit(disk, 0, &request);
    vblk_kick(disk, 0);
    vblk_poll(disk, 0);
    vblk_interrupts_on(disk, 0);
    vblk_interrupt(disk);
    vblk_stop(disk);
}
PORT

# small LIMIT CC TRANSPORT INIT [OPTION...]: bytes of text of that port, its own included, are no more
small() {
    local limit=$1 cc=$2 transport=$3 init=$4
    shift 4
    "$cc" "${free[@]}" -Os -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables -fno-unwind-tables \
        -DVBLK_WITHOUT_PACKED "$@" -DTRANSPORT="$transport" -DINIT="$init" -static -nostdlib -Wl,--gc-sections \
        -Wl,--build-id=none -Wl,--unresolved-symbols=ignore-all -o "$tmp/port.elf" "$tmp/port.c" guest/driver/v[bq]*.c \
        "guest/driver/$transport.c" || return 1
    at_most "$(size "$tmp/port.elf" | awk 'NR == 2 { print $1 }')" "$limit"
}

# prefixed ARCHIVE-OR-OBJECT...: a kernel that takes the driver in gets no names but these
prefixed() {
    local others
    others=$(nm "$@" | awk '$2 ~ /^[TDRBC]$/ { print $3 }' | grep -vE '^(vblk|vq|vtr)_')
    echo "other names: $others"
    [ -z "$others" ]
}

for arch in x86_64 aarch64 riscv64; do
    cc=$arch-linux-gnu-gcc
    command -v "$cc" >/dev/null || cc=gcc
    options=()
    [ $arch = x86_64 ] && options=(-fcf-protection=none)
    [ $arch = aarch64 ] && options=(-mno-outline-atomics)
    if ! command -v "$cc" >/dev/null || ! "$cc" -dumpmachine | grep -q "^$arch"; then
        skip "bounds on $arch" "no compiler for it"
        continue
    fi
    for level in s 2; do
        ok "$arch -O$level: no frame over $stack_frame bytes" all "$tmp/$arch$level" "$cc" -O$level "${options[@]}" \
            -fno-asynchronous-unwind-tables -fno-unwind-tables -Wstack-usage=$stack_frame -fcallgraph-info=su
        ok "$arch -O$level: no recursion, no stack over $stack_depth bytes" depth "$tmp/$arch$level"
        sed 's/^/# /' "$tmp/case.log"
    done
    ok "$arch: all of it under 40 KiB at -Os" at_most "$(text "$tmp/${arch}s")" 40960
    sed 's/^/# /' "$tmp/case.log"
    ok "$arch: all its names begin with vblk_, vq_ or vtr_" prefixed "$tmp/${arch}s"/*.o "$tmp/${arch}2"/*.o
    pci='vtr_pci_init(&transport,&the_pci,2)' mmio='vtr_mmio_init(&transport,&the_mmio,512)'
    bare=(-DVBLK_WITHOUT_ZONES -DVBLK_WITHOUT_MESSAGES)
    ok "$arch: PCI and split ring alone under 16 KiB" small 16384 "$cc" vtr_pci "$pci" "${bare[@]}" "${options[@]}"
    sed 's/^/# /' "$tmp/case.log"
    ok "$arch: MMIO and split ring alone under 16 KiB" small 16384 "$cc" vtr_mmio "$mmio" "${bare[@]}" "${options[@]}"
    sed 's/^/# /' "$tmp/case.log"
    limit=16384
    [ $arch != aarch64 ] || limit=18432
    ok "$arch: PCI and split ring with messages and zoned disks under $((limit / 1024)) KiB" small $limit "$cc" vtr_pci "$pci" \
        "${options[@]}"
    sed 's/^/# /' "$tmp/case.log"
done
done_testing
