#!/bin/bash
# Makes the images here with qemu-img 7.2: content.raw encrypted, passphrase "passphrase", compressed with gzip.
# qemu-img measures its key derivation for seconds, and now and then fails to: so these are kept.
set -eu
cd "$(dirname "$0")"
SECRETS=(--object secret,id=s,data=passphrase --object secret,id=t,data=another)

again() {
  for _ in $(seq 100); do
    if qemu-img "$@" 2>error.txt; then rm error.txt; return; fi
    grep -q "accurate CPU usage" error.txt || { cat error.txt; exit 1; }
  done
}

luks() { # name, options
  again convert "${SECRETS[@]}" -f raw -O luks -o "key-secret=s,iter-time=1$2" content.raw "$1"
}

qcow2() { # name, options
  again convert "${SECRETS[@]}" -f raw -O qcow2 -o "encrypt.key-secret=s,$2" content.raw "$1"
}

luks default.luks ""
luks aes-128-cbc-essiv-sha1.luks ",cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1"
luks aes-192-xts-plain-sha512.luks ",cipher-alg=aes-192,ivgen-alg=plain,hash-alg=sha512"
luks aes-128-ecb-ripemd160.luks ",cipher-alg=aes-128,cipher-mode=ecb,hash-alg=ripemd160"
luks aes-128-ctr-md5.luks ",cipher-alg=aes-128,cipher-mode=ctr,hash-alg=md5"
luks aes-128-xts-essiv-md5-sha224.luks ",cipher-alg=aes-128,ivgen-alg=essiv,ivgen-hash-alg=md5,hash-alg=sha224"
luks slots.luks ",cipher-alg=aes-128,cipher-mode=cbc,hash-alg=sha384"
for options in state=active,new-secret=t,iter-time=1 state=active,new-secret=t,keyslot=5,iter-time=1 \
  state=inactive,keyslot=0; do
  again amend "${SECRETS[@]}" -o "$options" \
    --image-opts "driver=luks,key-secret=$([[ $options == *keyslot=0 ]] && echo t || echo s),file.filename=slots.luks"
done
qcow2 luks.qcow2 "encrypt.format=luks,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc"
qcow2 luks-cluster-512.qcow2 "encrypt.format=luks,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,cluster_size=512,refcount_bits=64"
qcow2 aes.qcow2 "encrypt.format=aes"
qcow2 aes-v2-cluster-4k.qcow2 "encryption=on,compat=0.10,cluster_size=4096"
gzip -9nf ./*.luks ./*.qcow2
