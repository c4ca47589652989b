#!/bin/sh
# cut.sh HUSK DEMO [TOOLS [CUTS]] - the power fails while a guest writes
#
# What the guest has synced is there after the journal was replayed, and the
# file system is clean, wherever the cut was and whatever of the unsynced
# writes reached the disk.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v mke2fs >/dev/null && command -v e2fsck >/dev/null &&
	command -v debugfs >/dev/null || skip "no e2fsprogs"
cuts=${4:-2}

truncate -s 64M "$tmp/empty.raw"
mke2fs -q -F -t ext4 "$tmp/empty.raw"
"$husk" disk convert "$tmp/empty.raw" "$tmp/empty.qcow2"

total=0
# cut FORMAT WHEN SEED
cut() {
	image=$tmp/cut.$1
	cp "$tmp/empty.$1" "$image"
	guest --disk "$image,fault=cut=$2+seed=$3" <<'G' || :
mkdir /mnt
mount -t ext4 -o data=ordered /dev/vda /mnt
i=0
while [ $i -lt 40 ]; do
	i=$((i + 1))
	head -c $((i * 3000)) /dev/urandom >/mnt/f$i 2>/dev/null || break
	sum=$(sha256sum </mnt/f$i)
	sync -d /mnt/f$i 2>/dev/null || break
	sync
	# An error of the device is seen in the log, not always by sync.
	dmesg | grep -q 'I/O error' && break
	echo "durable $i $sum"
	[ $((i % 5)) != 0 ] || rm /mnt/f$((i - 2))
done
echo END
poweroff -f
G
	says END
	case $1 in
	qcow2)	"$husk" disk check "$image" >"$tmp/check" || [ $? = 3 ] ||
			fail "cut $2, seed $3: $(cat "$tmp/check")"
		"$husk" disk convert --force "$image" "$tmp/flat" ;;
	*)	cp "$image" "$tmp/flat" ;;
	esac
	e2fsck -fy "$tmp/flat" >"$tmp/fsck" 2>&1 || [ $? -le 1 ] ||
		{ cat "$tmp/fsck"; fail "$1, cut $2, seed $3: e2fsck"; }
	# Replaying a journal is no repair.
	! grep -qi 'bad\|corrupt\|invalid\|illegal\|differ' "$tmp/fsck" ||
		{ cat "$tmp/fsck"; fail "$1, cut $2, seed $3: was repaired"; }
	n=0
	while read -r _ i sum _; do
		# Every fifth round has deleted one; that may be durable, too.
		[ $((i % 5)) != 3 ] || continue
		rm -f "$tmp/f"
		debugfs -R "dump /f$i $tmp/f" "$tmp/flat" >/dev/null 2>&1
		[ "$(sha256sum <"$tmp/f" | cut_word)" = "$sum" ] ||
			fail "$1, cut $2, seed $3: file $i is lost"
		n=$((n + 1))
	done <<D
$(grep '^durable' "$tmp/out")
D
	total=$((total + n))
	echo "ok: $1, cut $2, seed $3: $n durable files are whole"
}
cut_word() { while read -r w _; do echo "$w"; done; }

k=0
while [ $k -lt "$cuts" ]; do
	for f in raw qcow2; do
		cut $f $((60 + k * 37)) $k
	done
	k=$((k + 1))
done
[ $total -gt 0 ] || fail "no file was durable before any cut"
