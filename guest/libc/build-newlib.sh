#!/bin/sh
# Builds newlib for one guest architecture from Debian's newlib-source package; called by guest/guest.mk.
#
#   build-newlib.sh TARGET CROSS-PREFIX OUT-DIR FLAG...
#
# OUT-DIR gets include/ and lib/, all at once when everything succeeded: a build that was interrupted leaves
# nothing that looks finished. What the build printed is in OUT-DIR.log; its end is shown if it failed.
set -eu
target=$1 cross=$2 out=$3
shift 3
flags="$* -O2 -ffreestanding -fno-pic -fno-pie -fno-stack-protector -ffunction-sections -fdata-sections -w"

tarball=$(find /usr/src/newlib -name 'newlib-*.tar.*' 2>/dev/null | sort | tail -n 1)
if [ -z "$tarball" ]; then
    echo "ringside: /usr/src/newlib has no newlib-*.tar.xz (install the package newlib-source)" >&2
    exit 1
fi
mkdir -p "$(dirname "$out")"
out=$(cd "$(dirname "$out")" && pwd)/$(basename "$out")
work=$out.work
rm -rf "$work" "$out"
mkdir -p "$work/src" "$work/build"

build() {
    tar -xf "$tarball" -C "$work/src" --strip-components=1
    cd "$work/build"
    ../src/configure --target="$target" --prefix="$work/root" --disable-multilib --disable-nls \
        --disable-newlib-supplied-syscalls --disable-libgloss --enable-newlib-io-long-long \
        --enable-newlib-io-c99-formats --disable-newlib-multithread --enable-newlib-global-atexit \
        MAKEINFO=true CFLAGS=-w CC_FOR_TARGET="${cross}gcc" AS_FOR_TARGET="${cross}as" LD_FOR_TARGET="${cross}ld" \
        AR_FOR_TARGET="${cross}ar" RANLIB_FOR_TARGET="${cross}ranlib" NM_FOR_TARGET="${cross}nm" \
        STRIP_FOR_TARGET="${cross}strip" OBJDUMP_FOR_TARGET="${cross}objdump" \
        READELF_FOR_TARGET="${cross}readelf" CFLAGS_FOR_TARGET="$flags" || return 1
    make -j"${NEWLIB_JOBS:-2}" all-target-newlib || return 1
    make install-target-newlib || return 1
}

# The make that called us must not lend its options or job server to a build with make files of its own.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES CFLAGS CC BUILD 2>/dev/null || true
if ! (build) >"$out.log" 2>&1; then
    echo "ringside: newlib for $target did not build; the end of $out.log:" >&2
    tail -n 30 "$out.log" >&2
    exit 1
fi
mv "$work/root/$target" "$out"
rm -rf "$work"
