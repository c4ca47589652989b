#!/bin/sh
# verify.sh HUSK DEMO TOOLS [all] - fio writes and checks every kind of disk
#
# Each disk is a format, a cache and a sync mode and a way to ask the host; fio
# writes all of it in blocks of chance and order, with flushes, many at a time,
# and reads it back.  A second guest, on other settings, finds the same.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v fio >/dev/null || skip "no fio"
all=${4:-}
size=4M
[ "$all" != all ] || size=24M
loops=
# shellcheck disable=SC2154 # it is the loop's
trap 'for d in $loops; do losetup -d "$d"; done; rm -rf "$tmp"' EXIT

with fio

# make FORMAT FILE - sets $disk
make() {
	disk=$2
	case $1 in
	raw) truncate -s $size "$disk" ;;
	qcow2) disk=$2.qcow2
		"$husk" disk create "$disk" $size >/dev/null ;;
	small) disk=$2.qcow2
		"$husk" disk create "$disk" $size --cluster 512 \
			--lazy-refcounts >/dev/null ;;
	overlay) head -c $size /dev/urandom >"$2.base.raw"
		disk=$2.qcow2
		"$husk" disk create "$disk" --base "$2.base.raw" >/dev/null ;;
	device) truncate -s $size "$2.loop"
		disk=$(losetup -f --show "$2.loop" 2>/dev/null) || return 1
		loops="$loops $disk" ;;
	esac
}

n=0
# add FORMAT CACHE SYNC AIO
add() {
	make "$1" "$tmp/d$n" || { echo "not tried: $*"; return 0; }
	echo "$disk cache=$2,sync=$3,aio=$4 $1" >>"$tmp/list"
	n=$((n + 1))
}
formats="raw qcow2 small overlay"
[ "$(id -u)" = 0 ] && losetup -f >/dev/null 2>&1 && formats="$formats device"
aios="threads uring"
if [ "$all" = all ]; then
	for f in $formats; do
		for c in cached direct; do
			for s in full data none; do
				for a in $aios; do
					add "$f" "$c" "$s" "$a"
				done
			done
		done
	done
else
	add raw cached full uring
	add raw direct data threads
	add qcow2 direct full uring
	add qcow2 cached none threads
	add small cached data uring
	add overlay direct full threads
	case $formats in *device*) add device direct full uring ;; esac
fi

# script WORDS - what the guest does with each of its disks
script() {
	# shellcheck disable=SC2016
	echo 'for d in /sys/block/vd*; do
	d=${d##*/}
	fio --name=verify --filename=/dev/$d --direct=1 --ioengine=libaio \
		--iodepth=16 --rw=randwrite --bsrange=4k-64k --bs_unaligned=0 \
		--blockalign=4k --verify=crc32c --verify_fatal=1 --fsync=64 \
		--randseed=7 '"$1"' >/tmp/$d 2>&1 &&
		echo "verified $d" || { cat /tmp/$d; echo "LOST $d"; }
done'
}

# turn NAME WORDS SWAP - guests of up to 20 disks each
turn() {
	at=1
	while [ $at -le "$n" ]; do
		set -- "$1" "$2" "$3"
		disks=0
		while read -r file options kind; do
			[ -z "$3" ] || options=cache=cached
			set -- "$@" --disk "$file,$options"
			disks=$((disks + 1))
		done <<L
$(tail -n +$at "$tmp/list" | head -20)
L
		name=$1 words=$2 swap=$3
		shift 3
		script "$words" | words='' guest --memory 512M --net none "$@" ||
			fail "status $?"
		! grep -q LOST "$tmp/out" || fail "$name"
		[ "$(grep -c '^verified' "$tmp/out")" = $disks ] ||
			fail "$name: not all disks"
		set -- "$name" "$words" "$swap"
		at=$((at + 20))
	done
	echo "ok: $1: $n disks"
}
turn "written and read" "--do_verify=1" ""
turn "found again" "--verify_only" swapped
while read -r file options kind; do
	case $file in
	*.qcow2) "$husk" disk check "$file" >"$tmp/out" || fail "check: $kind" ;;
	esac
done <"$tmp/list"
