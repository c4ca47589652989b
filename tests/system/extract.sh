#!/bin/sh
# extract.sh HUSK DEMO [TOOLS] - files out of ext4, as mke2fs and Linux make it
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
command -v mke2fs >/dev/null || skip "no mke2fs"
command -v python3 >/dev/null || skip "no python3"
cd "$tmp"

mkdir -p t/deep/er/and/deeper t/many
head -c 3000000 /dev/urandom >t/random
python3 - <<'P'
import os
with open("t/sparse", "wb") as f:
    for i in range(40):
        f.seek(i * 300000)
        f.write(bytes([i + 1]) * 5000)
    f.truncate(40 * 300000 + 12345)
for i in range(1200):
    open(f"t/many/a-file-with-a-long-name-{i:05}", "w").write(str(i))
P
: >t/empty
echo deep >t/deep/er/and/deeper/file
ln -s /deep/er t/link
ln -s ../../deep t/deep/er/up
ln -s "deep/er/../er/./and/deeper/../../../../deep/er/and/deeper/file" t/long-link-that-is-not-kept-in-its-inode
ln -s loop t/loop
get() { "$husk" disk extract "$1" "$2" got; }
same() {	# same IMAGE PATH FILE
	get "$1" "$2" || fail "$1: $2"
	cmp got "$3" || fail "$1: $2 is not $3"
}
all() {
	for f in random sparse empty deep/er/and/deeper/file \
		many/a-file-with-a-long-name-00000 \
		many/a-file-with-a-long-name-01199; do
		same "$1" "/$f" "t/$f"
	done
	same "$1" /link/and/deeper/file t/deep/er/and/deeper/file
	same "$1" deep/er/up/er/and//deeper/file t/deep/er/and/deeper/file
	same "$1" /long-link-that-is-not-kept-in-its-inode t/deep/er/and/deeper/file
	for bad in /none /random/x /deep /loop /link/../none ""; do
		! get "$1" "$bad" 2>out || fail "$1: $bad was there"
		[ "$(wc -l <out)" = 1 ] || fail "$1: $bad is not answered by a line"
	done
}
for o in "-b 1024" "-b 2048 -I 128 -O ^flex_bg,^64bit,^metadata_csum" \
	"-b 4096 -O large_dir,sparse_super2"; do
	rm -f e.raw
	# shellcheck disable=SC2086 # words
	mke2fs -q -F -t ext4 $o -d t e.raw 32M >/dev/null 2>&1 || fail "mke2fs $o"
	all e.raw
done
"$husk" disk convert e.raw e.qcow2
all e.qcow2
echo "ok: three kinds of ext4, raw and qcow2"

# In the second partition of a GPT, after one without a file system.
python3 - <<'P'
import os, struct, uuid
fs = open("e.raw", "rb").read()
disk = bytearray((1 << 20) * 2 + len(fs) + (1 << 20))
linux = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4").bytes_le
efi = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B").bytes_le
def entry(t, first, last):
    return t + uuid.uuid4().bytes_le + struct.pack("<QQQ", first, last, 0) + bytes(72)
disk[512:512 + 92] = b"EFI PART" + struct.pack("<IIIIQQQQ", 0x10000, 92, 0, 0, 1, 0, 34, len(disk) // 512 - 34) + bytes(16) + struct.pack("<QIII", 2, 128, 128, 0)
table = entry(efi, 2048, 4095)[:128] + entry(linux, 4096, 4096 + len(fs) // 512 - 1)[:128]
disk[1024:1024 + len(table)] = table
disk[2 << 20:(2 << 20) + len(fs)] = fs
open("gpt.raw", "wb").write(disk)
P
all gpt.raw
echo "ok: a partition"

# What cannot be read is refused by a line, whatever it is.
python3 - <<'P'
with open("e.raw", "r+b") as f:
    f.seek(1024 + 96); b = f.read(1)[0]
    f.seek(1024 + 96); f.write(bytes([b | 4]))
P
! get e.raw /random 2>out || fail "a file system in use was read"
grep -q 'not unmounted' out || fail "in use"
mke2fs -q -F -t ext3 old.raw 8M >/dev/null 2>&1
! get old.raw /lost+found/x 2>out || fail "a file system without extents"
head -c 1M /dev/urandom >noise.raw
! get noise.raw /x 2>out || fail "noise"
grep -q 'no ext4' out || fail "noise"
! get no-such.raw /x 2>out || fail "no image"
echo "ok: bad ones"
