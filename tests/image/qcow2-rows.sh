# shellcheck shell=bash
# shellcheck disable=SC2034,SC2054,SC2154 # what is for, and of, the scripts
# Every feature that QEMU can put into an image: `. tests/image/qcow2-rows.sh` behind tests/lib.sh. It goes to the temporary
# directory and makes there what the rows name.
img=$bin/ringside-img
preload=$(realpath "$tools/quick_kdf.so")
secret=(--object secret,id=s,file=pass)
cd "$tmp" || exit 1
printf secret >pass
truncate -s 4M base.raw
qemu-io -f raw -c 'write -q -P 200 0 4M' base.raw
qemu-img convert -O qcow2 -o cluster_size=4k base.raw base.qcow2

# The rows: options of `create -o`, and what QEMU does to the image then (see fill).
rows=(
    "compat=0.10"
    "compat=1.1"
    "cluster_size=512"
    "cluster_size=4k,refcount_bits=1"
    "cluster_size=64k,refcount_bits=2"
    "cluster_size=32k,refcount_bits=4"
    "cluster_size=16k,refcount_bits=8"
    "cluster_size=2M,refcount_bits=64"
    "cluster_size=8k,refcount_bits=32"
    "lazy_refcounts=on"
    "compression_type=zlib"
    "compression_type=zstd"
    "compression_type=zstd,cluster_size=2M"
    "extended_l2=on,cluster_size=16k"
    "extended_l2=on,cluster_size=128k,compression_type=zstd"
    "extended_l2=on,cluster_size=16k,backing_file=base.raw,backing_fmt=raw"
    "backing_file=base.raw,backing_fmt=raw"
    "backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=64k"
    "compat=0.10,backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=4k"
    "preallocation=off"
    "preallocation=metadata"
    "preallocation=falloc"
    "preallocation=full,cluster_size=4k"
    "preallocation=metadata,extended_l2=on,cluster_size=32k"
    "data_file=data.bin"
    "data_file=data.bin,data_file_raw=on"
    "data_file=data.bin,extended_l2=on,cluster_size=64k"
    "encrypt.format=aes,encrypt.key-secret=s"
    "encryption=on,encrypt.key-secret=s,cluster_size=4k"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=serpent-128,encrypt.cipher-mode=xts,encrypt.hash-alg=sha1,encrypt.ivgen-alg=plain64"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=twofish-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain,extended_l2=on,cluster_size=64k"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,backing_file=base.qcow2,backing_fmt=qcow2"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,data_file=data.bin"
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,refcount_bits=1,cluster_size=4k"
    "data_file=data.bin,preallocation=falloc,cluster_size=4k"
    "data_file=data.bin,backing_file=base.raw,backing_fmt=raw"
    "lazy_refcounts=on,backing_file=base.qcow2,backing_fmt=qcow2,extended_l2=on,compression_type=zstd"
    "backing_file=base.raw,backing_fmt=raw,extended_l2=on,cluster_size=64k,preallocation=metadata"
    "size=4M"
)

# how IMAGE OPTIONS: how QEMU opens it
how() {
    local spec=driver=qcow2,file.filename=$1
    case $2 in
    *encrypt.format=aes* | encryption=*) spec+=,encrypt.format=aes,encrypt.key-secret=s ;;
    *encrypt*) spec+=,encrypt.format=luks,encrypt.key-secret=s ;;
    esac
    echo "$spec"
}

# fill IMAGE OPTIONS: all that QEMU can put into an image: data, parts of clusters, zeroes, discarded and compressed
# clusters, snapshots, bitmaps
fill() {
    local spec
    spec=$(how "$1" "$2")
    local steps=()
    case $2 in
    *encrypt* | *data_file* | *preallocation=[mf]*) ;;
    *refcount_bits=[1248] | *refcount_bits=[1248],*) ;; # compressed clusters share host clusters: too many references
    *) steps=(-c 'write -q -c -P 6 2M 2M' -c 'write -q -P 7 2100k 3k') ;;
    esac
    steps+=(-c 'write -q -P 1 0 300k' -c 'write -q -P 2 1000k 5k' -c 'write -q -z 512k 130k' -c 'write -q -P 3 3000k 70k'
        -c 'discard -q 64k 64k' -c 'write -q -z -u 128k 64k' -c 'write -q -P 4 4090k 6k' -c 'write -q -P 5 1501k 1k')
    qemu-io "${secret[@]}" --image-opts "$spec" "${steps[@]}" || return
    case $2 in
    *data_file* | *refcount_bits=1 | *refcount_bits=1,*) ;;
    *)
        qemu-img snapshot "${secret[@]}" --image-opts -c first "$spec" &&
            qemu-io "${secret[@]}" --image-opts "$spec" -c 'write -q -P 8 200k 900k' &&
            qemu-img snapshot "${secret[@]}" --image-opts -c second "$spec" &&
            qemu-io "${secret[@]}" --image-opts "$spec" -c 'write -q -P 9 250k 10k' -c 'discard -q 768k 256k' || return
        ;;
    esac
    case $2 in
    *compat=0.10*) ;;
    *) qemu-img bitmap "${secret[@]}" --image-opts --add "$spec" b0 && qemu-io "${secret[@]}" --image-opts "$spec" -c 'write -q -P 10 3500k 1k' ;;
    esac
}

create() { # IMAGE OPTIONS
    local size=4M
    case $2 in size=*) size= ;; esac
    rm -f "$1" data.bin
    LD_PRELOAD=$preload qemu-img create -q -f qcow2 "${secret[@]}" -o "$2" "$1" $size
}
