#!/bin/sh
# killed.sh HUSK DEMO TOOLS [ROUNDS] - husk disk is killed, or finds no space
#
# Whatever it was doing, the image holds afterwards what it held before.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
rounds=${4:-8}
cd "$tmp"

# Data, zeros that take space, holes; and a qcow2 image with clusters to give up.
truncate -s 48M data.raw
head -c 9000000 /dev/urandom | dd of=data.raw conv=notrunc bs=1M seek=2 2>/dev/null
dd if=/dev/zero of=data.raw conv=notrunc bs=1M seek=16 count=8 2>/dev/null
head -c 3000000 /dev/urandom | dd of=data.raw conv=notrunc bs=1M seek=30 2>/dev/null
cp data.raw plain.raw
"$husk" disk convert data.raw small.qcow2 --cluster 4096

# same FILE - it is sound and begins with the data
same() {
	case $1 in *.qcow2)
		"$husk" disk check "$1" >out 2>&1 || [ $? = 3 ] ||
			fail "$1 is damaged: $when" ;;
	esac
	"$husk" disk convert --force "$1" flat.raw 2>out || fail "$1: $when"
	cmp -n 50331648 flat.raw data.raw || fail "$1 has changed: $when"
}
count() { find . -mindepth 1 -maxdepth 1 | wc -l; }
# kills FILE COMMAND... - at several moments, and once it may end
kills() {
	file=$1
	shift
	i=0
	while [ $i -lt "$rounds" ]; do
		when="$* killed after $((2 + i * 7)) ms"
		"$husk" disk "$@" >/dev/null 2>&1 &
		pid=$!
		sleep "$(printf '0.%03d' $((2 + i * 7)))"
		kill -9 $pid 2>/dev/null || :
		wait $pid || :
		same "$file"
		i=$((i + 1))
	done
	# A name is there for a moment at the end of compact and convert only.
	[ "$(count)" -le $((files + 1)) ] || fail "left: $(ls -A)"
}
cp small.qcow2 image.qcow2
cp plain.raw image.raw
: >flat.raw
: >out
# What a killed process has left under a name is taken away by the next one;
# what only looks like it, or is in use, is not.
: >.image.qcow2.husk-0123abcd
: >.image.qcow2.husk-notes
files=$(($(count) - 1))
kills image.qcow2 compact image.qcow2
"$husk" disk compact image.qcow2 >/dev/null 2>&1 || fail "compact"
[ "$(count)" = $files ] || fail "left: $(ls -A)"
[ -e .image.qcow2.husk-notes ] || fail "another's file is gone"
kills image.raw compact image.raw
kills image.raw convert --force plain.raw image.raw
kills image.qcow2 convert --force plain.raw image.qcow2
# Larger by a table, and back.
i=0
for size in 900M 3G 50M 20G 48M; do
	kills image.qcow2 resize image.qcow2 $size --shrink
	kills image.raw resize image.raw $size --shrink
done
echo "ok: killed $rounds times each"

mkdir full
mount -t tmpfs -o size=20m husk-test full 2>/dev/null || {
	echo "not tried: no space: only root can mount a small tmpfs"
	exit 0
}
trap 'umount "$tmp/full"; rm -rf "$tmp"' EXIT
when="no space"
# refuses COMMAND... - it fails for that reason and leaves nothing behind
refuses() {
	files=$(ls full)
	if "$husk" disk "$@" >out 2>&1; then fail "$*: went well"; fi
	grep -q 'No space left on device' out || fail "$*: does not say why"
	[ "$(ls full)" = "$files" ] || fail "$*: left $(ls full)"
}
cp small.qcow2 full/a.qcow2
refuses compact full/a.qcow2
same full/a.qcow2
refuses convert plain.raw full/b.raw
refuses convert plain.raw full/b.qcow2
refuses convert --force plain.raw full/a.qcow2
same full/a.qcow2
# Not a byte is left.
head -c 30000000 /dev/zero >full/rest 2>/dev/null || :
refuses resize full/a.qcow2 900G
same full/a.qcow2
rm full/rest
"$husk" disk resize full/a.qcow2 900G >out 2>&1 || fail "resize with space"
same full/a.qcow2
echo "ok: no space, and nothing has changed"
