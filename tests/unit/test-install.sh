#!/usr/bin/env bash
# `make install` writes below DESTDIR and PREFIX and nowhere else, and what it writes names the programs where they are.
. "$(dirname "$0")/../lib.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top" || exit 1

installed() { # root, VARIABLE=VALUE...
    local root=$1
    shift
    rm -rf "$root"
    make -s install "BUILD=$RINGSIDE_BUILD" "DESTDIR=$root" "$@"
}
# What there is below the root, but for the driver's library (test-porting.sh), if that is below the prefix.
files() { # root, prefix
    (cd "$1" && find . ! -type d | grep -vE "^\.$2/(include/libvblk|lib/libvblk|lib/pkgconfig/libvblk-)" | LC_ALL=C sort)
}

cat >"$tmp/wanted" <<EOF
bin/ringside
bin/ringside-blk
bin/ringside-img
lib/systemd/system/ringside-blk@.service
lib/systemd/system/ringside-blk@.socket
share/man/man1/ringside-blk.1
share/man/man1/ringside-img.1
share/qemu/vhost-user/50-ringside-blk.json
EOF

for prefix in /usr/local /usr /opt/ringside; do
    root=$tmp/root
    ok "make install PREFIX=$prefix" installed "$root" "PREFIX=$prefix"
    sed "s|^|.$prefix/|" "$tmp/wanted" >"$tmp/files"
    ok "$prefix: all of it is below the prefix, and nothing else" sh -c "$(declare -f files); files '$root' $prefix | diff '$tmp/files' -"
    ok "$prefix: the descriptor names the program" sh -c \
        "test \"\$(jq -r .binary '$root$prefix/share/qemu/vhost-user/50-ringside-blk.json')\" = $prefix/bin/ringside-blk"
    ok "$prefix: the unit names the program" grep -q "^ExecStart=$prefix/bin/ringside-blk " \
        "$root$prefix/lib/systemd/system/ringside-blk@.service"
    ok "$prefix: the program runs" "$root$prefix/bin/ringside-blk" --version
done
ok "make install VHOST_USER_DIR=/etc/qemu/vhost-user UNITDIR=/etc/systemd/system" installed "$root" PREFIX=/opt/ringside \
    VHOST_USER_DIR=/etc/qemu/vhost-user UNITDIR=/etc/systemd/system
ok "the descriptor and the units are there" sh -c "cd '$root/etc' && test -e qemu/vhost-user/50-ringside-blk.json &&
    test -e systemd/system/ringside-blk@.socket && ! test -e '$root/opt/ringside/share/qemu'"
done_testing
