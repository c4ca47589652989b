#!/bin/sh
# space.sh HUSK DEMO [TOOLS] - a guest's file system on qcow2, and what it
# frees comes back to the host
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v mke2fs >/dev/null && command -v e2fsck >/dev/null ||
	skip "no e2fsprogs"
used() { "$husk" disk info --json "$1" | sed 's/.*"used": \([0-9]*\).*/\1/'; }

# The tools of the host, where the guest's busybox has none.
mkdir -p "$tmp/add"
tool() {
	command -v "$1" >/dev/null || return 1
	mkdir -p "$tmp/add/tools"
	cp "$(command -v "$1")" "$tmp/add/tools/"
	ldd "$(command -v "$1")" | sed -n 's/.*[ \t]\(\/[^ ]*\) (0x.*/\1/p' |
		while read -r lib; do
			mkdir -p "$tmp/add$(dirname "$lib")"
			cp -L "$lib" "$tmp/add$lib"
		done
}
tool mke2fs || skip "no mke2fs"

# disk NAME [OPTION] - mkfs, write 48 MiB, delete most, trim
disk() {
	image=$tmp/$1
	"$husk" disk create "$image" 256M
	guest --disk "$image${2:-}" <<'G' || fail "$1: status $?"
/tools/mke2fs -q -t ext4 /dev/vda || echo "mke2fs fails"
mkdir /mnt
mount -t ext4 /dev/vda /mnt
head -c 2000000 /dev/urandom >/mnt/keep
sha256sum </mnt/keep
for i in 1 2 3; do head -c 16000000 /dev/urandom >/mnt/big$i; done
sync
rm /mnt/big1 /mnt/big2 /mnt/big3
sync
fstrim -v /mnt
cp /mnt/keep /mnt/again
umount /mnt
echo discard $(cat /sys/block/vda/queue/discard_max_bytes)
echo END
G
	says END
	! grep -q 'mke2fs fails' "$tmp/out" || fail "$1: mke2fs"
	grep -q '/mnt: .*trimmed' "$tmp/out" || fail "$1: fstrim"
	[ "$(used "$image")" -lt 16000000 ] ||
		fail "$1: uses $(used "$image") after fstrim"
	"$husk" disk check "$image" >"$tmp/check" || fail "$1: $(cat "$tmp/check")"
	! command -v qemu-img >/dev/null || [ "${1##*.}" != qcow2 ] ||
		qemu-img check -q -f qcow2 "$image" || fail "$1: qemu-img check"
	"$husk" disk convert --force "$image" "$tmp/flat.raw"
	e2fsck -fn "$tmp/flat.raw" >"$tmp/fsck" 2>&1 ||
		{ cat "$tmp/fsck"; fail "$1: e2fsck finds errors"; }
	for f in keep again; do
		debugfs -R "dump /$f $tmp/$f" "$tmp/flat.raw" >/dev/null 2>&1
		says "$(sha256sum <"$tmp/$f")"
	done
	echo "ok: $1${2:-}: $(used "$image") bytes used"
}
# large NAME OPTION TRIM - of 64 GiB 10 GB are written and 9 GB deleted
large() {
	image=$tmp/$1 options=$2 trim=${3:-}
	"$husk" disk create "$image" 64G
	guest --disk "$image" --timeout 3000 <<G || fail "$1: status $?"
/tools/mke2fs -q -t ext4 /dev/vda
mkdir /mnt
mount -t ext4 -o $options /dev/vda /mnt
head -c 20000000 /dev/urandom >/piece
for i in 0 1 2 3 4 5 6 7 8 9; do
	for j in \$(seq 50); do cat /piece; done >/mnt/\$i
done
sync
echo full \$(du -s -m /mnt)
set -- \$(cat /sys/block/vda/stat)
end=\$((\${14} + 17500000)) # mke2fs has discarded all of it
rm /mnt/[1-9]
sync
$trim
# Linux discards what was freed beside all else, and not at all while it unmounts.
i=0
while set -- \$(cat /sys/block/vda/stat); [ \${14} -lt \$end ]; do
	i=\$((i + 1)); [ \$i -lt 120 ] || break
	sleep 1
done
umount /mnt
echo END
G
	says END
	grep -q '^full 9[0-9][0-9][0-9]' "$tmp/out" || fail "$1: not written"
	[ "$(used "$image")" -lt 1610612736 ] ||
		fail "$1: uses $(used "$image") after $options $trim"
	echo "ok: $1, $options $trim: $(used "$image") bytes used of 10 GB"
	rm "$image"
}
disk plain.raw
disk one.qcow2
[ $# -lt 4 ] || {
	large large.raw discard
	large large.qcow2 discard
	large large.raw nodiscard 'fstrim /mnt'
	large large.qcow2 nodiscard 'fstrim /mnt'
	disk direct.qcow2 ,cache=direct,aio=threads
	disk big.qcow2 ,sector=4096,queues=1
}
