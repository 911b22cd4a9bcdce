#!/usr/bin/env bash
# LUKS with every cipher, mode, IV and hash that QEMU can be asked for (checklist N2): what it makes we read and write,
# what we make it reads and writes, and what the one refuses the other does, too.
# Short: a slice that has each value of each option. RINGSIDE_SIZE=long: all combinations.
. "$(dirname "$0")/../lib.sh"
img=$bin/ringside-img
cd "$tmp" || exit 1
printf 'secret' >pass
head -c 1M /dev/urandom >plain.raw
preload=$(realpath "$tools/quick_kdf.so")

opts() { echo "driver=qcow2,encrypt.key-secret=s,file.filename=$1"; }
qemu_create() { # OPTIONS: a core file of qemu-img, which dies of some, is no use to anybody
    (ulimit -c 0 && LD_PRELOAD=$preload qemu-img create -q -f qcow2 --object secret,id=s,file=pass \
        -o "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,$1" theirs.qcow2 1M) >qemu.err 2>&1
}
we_create() { "$img" create -q -f qcow2 --secret-file=pass -o "encrypt.format=luks,encrypt.iter-time=10,$1" ours.qcow2 1M 2>our.err; }
# OPTIONS
both_ways() {
    local o=encrypt.${1//,/,encrypt.} ours=no theirs=no
    rm -f ours.qcow2 theirs.qcow2 out1.raw out2.raw
    we_create "$o" && ours=yes
    qemu_create "$o" && theirs=yes
    if [ $ours != $theirs ]; then
        echo "# $1: we create it: $ours, QEMU does: $theirs; $(cat our.err) $(tail -1 qemu.err)"
        return 1
    fi
    [ $ours = yes ] || return 0
    made=$((made + 1))
    qemu-img convert -n --object secret,id=s,file=pass --image-opts --target-image-opts driver=raw,file.filename=plain.raw \
        "$(opts ours.qcow2)" &&
        "$img" convert -f qcow2 -O raw --secret-file=pass ours.qcow2 out1.raw && cmp plain.raw out1.raw &&
        "$img" convert -n -f raw -O qcow2 --secret-file=pass plain.raw theirs.qcow2 &&
        qemu-img convert --object secret,id=s,file=pass --image-opts "$(opts theirs.qcow2)" -O raw out2.raw && cmp plain.raw out2.raw &&
        ! cmp -s -n 512 <(tail -c 512 theirs.qcow2) <(tail -c 512 plain.raw)
}

ciphers=(aes-128 aes-192 aes-256 serpent-128 serpent-192 serpent-256 twofish-128 twofish-192 twofish-256 cast5-128 des 3des aes-512 aes)
modes=(xts cbc ctr ecb gcm)
ivs=(plain plain64 essiv essiv:md5 essiv:sha1 essiv:sha256 plain64:sha1 random)
hashes=(sha256 md5 sha1 sha224 sha384 sha512 ripemd160 blake2)
made=0
for c in "${!ciphers[@]}"; do
    walk() {
        local m iv
        for m in "${!modes[@]}"; do
            for iv in "${!ivs[@]}"; do
                # Short: the default mode with the default IV, and of the others each pair in turn.
                [ -n "$long" ] || [ $((m * 100 + iv)) = 1 ] || [ $(((m * 3 + iv + c * 5) % 20)) = 0 ] || continue
                both_ways "cipher-alg=${ciphers[c]},cipher-mode=${modes[m]},ivgen-alg=${ivs[iv]/:/,ivgen-hash-alg=}" || return
            done
        done
    }
    ok "N2 ${ciphers[c]}" walk
done
for h in "${hashes[@]}"; do ok "N2 hash $h" both_ways "hash-alg=$h"; done
ok "N2 the modes' defaults" both_ways cipher-mode=cbc,ivgen-alg=essiv
ok "some of them were possible" [ $made -gt 20 ]
done_testing
