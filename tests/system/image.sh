#!/bin/sh
# image.sh HUSK DEMO [TOOLS] - husk disk, beside qemu-img where that is installed
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$tmp"
sum() { sha256sum <"$1" | cut -d' ' -f1; }
used() { "$husk" disk info --json "$1" | sed 's/.*"used": \([0-9]*\).*/\1/'; }

# -- by itself
"$husk" disk create a.qcow2 64M
"$husk" disk info --json a.qcow2 | python3 -c 'import json,sys
d = json.load(sys.stdin)
assert d["format"] == "qcow2" and d["size"] == 64 << 20, d
assert d["used"] < 1 << 20 and d["cluster"] == 65536, d' || fail info
! "$husk" disk create a.qcow2 1M 2>err || fail "replaced a file"
grep -q 'exists already' err || fail "$(cat err)"
"$husk" disk create --force a.qcow2 32M
! "$husk" disk resize a.qcow2 16M 2>err || fail "shrunk without asking"
grep -q -e --shrink err || fail "$(cat err)"
"$husk" disk resize a.qcow2 +32M
"$husk" disk resize --shrink a.qcow2 -- -60M
"$husk" disk info a.qcow2 | grep -q '(4194304 bytes)' || fail "size after resize"
"$husk" disk check a.qcow2 >/dev/null || fail "check after resize"
status=0; "$husk" disk create b.vmdk 1M 2>err || status=$?
[ $status = 1 ] && grep -q format=raw err || fail "made a vmdk: $(cat err)"
status=0; "$husk" disk create b.raw 10X 2>err || status=$?
[ $status = 2 ] || fail "status $status of a wrong size"

# Data with holes and zeros, to qcow2 and back, and what holds no data is
# given back.
head -c 3000000 /dev/urandom >data.raw
truncate -s 16M data.raw
head -c 2000000 /dev/zero | dd of=data.raw bs=64k seek=100 conv=notrunc 2>/dev/null
head -c 70000 /dev/urandom | dd of=data.raw bs=1k seek=15000 conv=notrunc 2>/dev/null
"$husk" disk convert data.raw data.qcow2
"$husk" disk check --json data.qcow2 | grep -q '"errors": 0, "leaks": 0' || fail check
"$husk" disk convert data.qcow2 back.raw
cmp data.raw back.raw || fail "convert changed the data"
[ "$(used back.raw)" -lt 4000000 ] || fail "zeros take space"
cp --sparse=never data.raw full.raw
[ "$(used full.raw)" -ge 16000000 ] || skip "no plain files here"
"$husk" disk compact full.raw >/dev/null
[ "$(used full.raw)" -lt 4000000 ] || fail "compact of a raw image"
cmp data.raw full.raw || fail "compact changed the data"

# An overlay: its base shows, and is needed.
"$husk" disk create --base data.qcow2 over.qcow2
"$husk" disk convert over.qcow2 flat.raw
cmp data.raw flat.raw || fail "overlay"
mv data.qcow2 away.qcow2
! "$husk" disk convert --force over.qcow2 flat.raw 2>err || fail "no base"
grep -q base= err || fail "$(cat err)"
mv away.qcow2 data.qcow2
# A host's file is no base, and no image stands on itself.
echo secret >"$tmp/secret"
"$husk" disk create --base "$tmp/data.raw" evil.qcow2
python3 - <<'P'
b = open("evil.qcow2", "rb").read()
import os
i = b.index(b"data.raw")
d = os.getcwd().encode()
b = b[:i] + b"secret\0\0" + b[i+8:]
n = int.from_bytes(b[16:20], "big")
b = b[:16] + (n - 2).to_bytes(4, "big") + b[20:]
open("evil.qcow2", "wb").write(b)
P
! "$husk" disk convert --force evil.qcow2 flat.raw 2>err || fail "read a secret"
grep -q 'does not look like an image' err || fail "$(cat err)"
cp data.qcow2 loop.qcow2
"$husk" disk create --force --base loop.qcow2 loop2.qcow2
"$husk" disk create --force --base loop2.qcow2 loop.qcow2
! "$husk" disk convert --force loop2.qcow2 flat.raw 2>err || fail "a loop"
grep -q 'stands on it' err || fail "$(cat err)"
# The content is never asked.
cp data.qcow2 looks.raw
"$husk" disk convert --force looks.raw same.raw
cmp data.qcow2 same.raw || fail "a raw image was taken for qcow2"

# Interrupted: the old image is whole and nothing else is left.
head -c 150000128 /dev/urandom >big.raw
"$husk" disk convert big.raw big.qcow2
before=$(sum big.qcow2)
"$husk" disk compact big.qcow2 >/dev/null 2>&1 &
pid=$!
sleep 0.1
kill -INT $pid 2>/dev/null || :
wait $pid || :
"$husk" disk check big.qcow2 >/dev/null || fail "check after an interruption"
"$husk" disk convert --force big.qcow2 flat.raw
truncate -s 150000128 flat.raw
cmp big.raw flat.raw || fail "an interrupted compact changed the data"
! ls big.qcow2.* >/dev/null 2>&1 || fail "left: $(ls big.qcow2.*)"
: "$before"
echo "ok: husk disk by itself"

# -- beside qemu-img
command -v qemu-img >/dev/null && command -v qemu-io >/dev/null ||
	skip "no qemu-img and qemu-io for the rest"
# What we write is sound to it and holds the same.
for f in data.qcow2 over.qcow2 big.qcow2; do
	qemu-img check -q -f qcow2 $f || fail "qemu-img check $f"
done
[ "$(qemu-img compare -f raw -F qcow2 data.raw data.qcow2)" = "Images are identical." ] ||
	fail "qemu-img compare data.qcow2"
qemu-img compare -q -f raw -F qcow2 data.raw over.qcow2 || fail "compare overlay"

# What it writes we read, in all of its ways.
n=0
for o in cluster_size=512 cluster_size=4k cluster_size=64k cluster_size=2M \
	refcount_bits=1 refcount_bits=2 refcount_bits=4 refcount_bits=8 \
	refcount_bits=32 refcount_bits=64 lazy_refcounts=on \
	preallocation=metadata compat=0.10; do
	qemu-img convert -f raw -O qcow2 -o $o data.raw q.qcow2
	"$husk" disk convert --force q.qcow2 q.raw || fail "$o"
	cmp data.raw q.raw || fail "$o: other data"
	"$husk" disk check q.qcow2 >/dev/null || fail "$o: check"
	n=$((n + 1))
done
for o in compression_type=zlib compression_type=zstd \
	compression_type=zlib,cluster_size=4k \
	compression_type=zstd,cluster_size=2M; do
	qemu-img convert -c -f raw -O qcow2 -o $o data.raw q.qcow2 2>/dev/null || continue
	"$husk" disk convert --force q.qcow2 q.raw || fail "$o"
	cmp data.raw q.raw || fail "$o: other data"
	"$husk" disk check q.qcow2 >/dev/null || fail "$o: check"
	n=$((n + 1))
done
# Snapshots inside: as they were, and as it is.
qemu-img convert -f raw -O qcow2 data.raw s.qcow2
qemu-img snapshot -c one s.qcow2
qemu-io -f qcow2 -c 'write -P 7 1M 3M' s.qcow2 >/dev/null
"$husk" disk convert --force --snapshot one s.qcow2 q.raw
cmp data.raw q.raw || fail "snapshot"
"$husk" disk convert --force s.qcow2 q.raw
qemu-img convert -f qcow2 -O raw s.qcow2 r.raw
cmp r.raw q.raw || fail "beside a snapshot"
"$husk" disk check s.qcow2 >/dev/null || fail "check with a snapshot"
# A chain of three.
qemu-img create -q -f qcow2 -b s.qcow2 -F qcow2 c1.qcow2
qemu-io -f qcow2 -c 'write -P 9 100k 300k' -c 'write -z 9M 1M' c1.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b c1.qcow2 -F qcow2 c2.qcow2 20M
qemu-io -f qcow2 -c 'write -P 3 17M 1M' c2.qcow2 >/dev/null
"$husk" disk convert --force c2.qcow2 q.raw
qemu-img convert -f qcow2 -O raw c2.qcow2 r.raw
cmp r.raw q.raw || fail "chain"
before=$(sum r.raw)
"$husk" disk compact c1.qcow2 >/dev/null
qemu-img check -q -f qcow2 c1.qcow2 || fail "qemu-img check after compact"
qemu-img convert -f qcow2 -O raw c2.qcow2 r.raw
[ "$(sum r.raw)" = "$before" ] || fail "compact of an overlay"
# What is not known is refused with its name.
qemu-img create -q -f qcow2 -o extended_l2=on x.qcow2 1M
! "$husk" disk convert --force x.qcow2 q.raw 2>err || fail "subclusters"
grep -q subclusters err || fail "$(cat err)"
# Lost clusters are found and given back.
qemu-io -f qcow2 -c 'write 0 1M' -c 'sigraise KILL' x.qcow2 >/dev/null 2>&1 || :
qemu-img create -q -f qcow2 l.qcow2 64M
qemu-io -f qcow2 -c 'write 0 4M' l.qcow2 >/dev/null
python3 - <<'P'
f = open("l.qcow2", "r+b")
f.seek(40); l1 = int.from_bytes(f.read(8), "big")
f.seek(l1); l2 = int.from_bytes(f.read(8), "big") & 0xfffffffffffe00
f.seek(l2); f.write(bytes(80))
P
status=0; "$husk" disk check l.qcow2 >/dev/null || status=$?
[ $status = 3 ] || fail "status $status with lost clusters"
"$husk" disk check --repair l.qcow2 >/dev/null || fail "repair"
qemu-img check -q -f qcow2 l.qcow2 || fail "qemu-img check after repair"
echo "ok: $n kinds of image as qemu-img"
