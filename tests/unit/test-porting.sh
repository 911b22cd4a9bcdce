#!/usr/bin/env bash
# docs/porting.md: its pieces of code are one file that compiles, for all architectures, against the headers as they are
# installed; and the driver's files compile alone for machines of other widths and byte orders.
. "$(dirname "$0")/../lib.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top" || exit 1

awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on' docs/porting.md >"$tmp/port.c"
strict="-std=c11 -ffreestanding -O2 -Wall -Wextra -Wpedantic -Werror -Wno-unused-parameter"

ok "make install-libvblk puts the library in place" make -s install-libvblk "BUILD=$RINGSIDE_BUILD" \
    "DESTDIR=$tmp/root" PREFIX=/opt/ringside
for arch in x86_64 aarch64 riscv64; do
    cross=$arch-linux-gnu-
    [ "$arch" != "$(uname -m)" ] || cross=
    pc=$tmp/root/opt/ringside/lib/pkgconfig/libvblk-$arch.pc
    ok "$arch: the pkg-config file names what is there" sh -c "
        PKG_CONFIG_SYSROOT_DIR='$tmp/root' pkg-config --cflags '$pc' >'$tmp/cflags' &&
        PKG_CONFIG_SYSROOT_DIR='$tmp/root' pkg-config --libs '$pc' >'$tmp/libs'"
    # shellcheck disable=SC2046,SC2086 # words
    ok "$arch: the port of docs/porting.md compiles and links" sh -c "
        ${cross}gcc $strict \$(cat '$tmp/cflags') -c -o '$tmp/port.o' '$tmp/port.c' &&
        ${cross}gcc -nostdlib -r -o '$tmp/linked.o' '$tmp/port.o' \$(cat '$tmp/libs') &&
        ${cross}nm '$tmp/linked.o' | grep -q ' T vblk_start' &&
        ! ${cross}nm -u '$tmp/linked.o' | grep -vE ' (memcpy|memset|kernel_ticks_ns)\$'"
done

# Compilers without a library: what the driver includes must be freestanding.
for target in armv7-none-eabi riscv32-unknown-elf powerpc64-unknown-elf; do
    ok "the driver alone compiles for $target" sh -c "
        for file in guest/driver/*.c; do
            clang --target=$target $strict -Wno-c11-extensions -I. -c -o '$tmp/alone.o' \$file || exit 1
        done"
done
done_testing
