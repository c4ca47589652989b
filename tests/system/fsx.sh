#!/bin/sh
# fsx.sh HUSK DEMO TOOLS [SECONDS] - random operations on files, on every kind of disk
#
# At a time in one guest: ext4 on a raw disk and on qcow2, cached and direct, and
# a shared directory.  What came to the disks is whole for the host's e2fsck.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
seconds=${4:-4}
command -v mke2fs >/dev/null || skip "no e2fsprogs"
cd "$tmp"
mkdir share add
cp "$tools/fsx" add/
set --
for d in raw,cached raw,direct qcow2,cached qcow2,direct; do
	f=${d%,*}
	truncate -s 64M fs.raw
	mke2fs -q -F -t ext4 fs.raw
	mv fs.raw "$d.raw"
	[ "$f" = raw ] ||
		"$husk" disk convert "$d.raw" "$d.qcow2" --cluster 4096 2>/dev/null
	mv "$d.$f" "${d#*,}.$f" # a comma ends a name for --disk
	set -- "$@" --disk "${d#*,}.$f,cache=${d#*,}"
done
guest --share "share,owner=host" --memory 384M --timeout $((seconds * 20 + 300)) \
	"$@" <<G || fail "guest"
for d in vda vdb vdc vdd; do
	mkdir /\$d; mount -t ext4 -o discard /dev/\$d /\$d || echo no \$d
done
mkdir /out; mount -t virtiofs share /out || echo no share
i=0
for d in vda vdb vdc vdd out; do
	i=\$((i + 1))
	{ /fsx /\$d/file $seconds \$i && echo ok \$d; } &
done
wait
for d in vda vdb vdc vdd out; do umount /\$d || echo busy \$d; done
G
for d in vda vdb vdc vdd out; do says "ok $d"; done
for f in cached.raw direct.raw cached.qcow2 direct.qcow2; do
	"$husk" disk convert --force "$f" check.raw 2>/dev/null
	e2fsck -f -n check.raw >fsck 2>&1 || { cat fsck; fail "e2fsck: $f"; }
done
grep '^fsx: .*no difference' out
echo "ok: ext4 on raw and qcow2, cached and direct, and a share"
