#!/bin/sh
# stress.sh HUSK DEMO TOOLS [SECONDS] - stress-ng checks file systems of a guest
#
# Each of its stressors of files runs for SECONDS (3) with --verify, two at a
# time, on ext4 on a disk and on a shared directory.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
seconds=${4:-3}
command -v stress-ng >/dev/null || skip "no stress-ng"
command -v mke2fs >/dev/null || skip "no e2fsprogs"
[ "$(gzip -dc "$demo/initrd" | grep -ac virtiofs.ko)" -gt 0 ] ||
	skip "a demo guest without virtiofs in $demo: tools/make-demo $demo"
with stress-ng
mkdir "$tmp/share"
truncate -s 1G "$tmp/disk"
mke2fs -q -F -t ext4 "$tmp/disk"
# Not io-uring: its statx() fails on Debian 12's kernel everywhere.
stressors="access aio chattr chdir chmod chown copy-file dentry dir dirdeep \
dirmany fallocate fcntl fiemap filename flock fpunch fstat getdent hdd io iomix \
link locka lockf lockofd mknod open readahead rename revio seek sendfile \
splice symlink sync-file touch utime xattr"
guest --disk "$tmp/disk" --share "$tmp/share" --memory 1G --cpus 2 \
	--timeout 1700 <<G || fail "status $?"
mkdir -p /ext4 /share /tmp
mount -t ext4 /dev/vda /ext4 || echo "no ext4"
mount -t virtiofs share /share || echo "no share"
for fs in ext4 share; do
	for s in $stressors; do
		stress-ng --temp-path /\$fs --\$s 2 -t $seconds --verify \
			--oomable --iomix-bytes 64m \
			--hdd-bytes 64m >/tmp/log 2>&1
		case \$? in
		0) echo "good \$fs \$s" ;;
		3|4) echo "not tried: \$fs \$s: \$(grep -m1 -o 'stress-ng-.*' /tmp/log)" ;;
		*) cat /tmp/log; echo "BAD \$fs \$s" ;;
		esac
		rm -rf /\$fs/*
	done
done
umount /ext4
dmesg | grep -E 'I/O error|EXT4-fs error|WARNING|BUG:' && echo "BAD kernel"
echo END
G
says END
grep 'not tried' "$tmp/out" || :
! grep '^BAD' "$tmp/out" || fail "stress-ng finds errors"
e2fsck -fn "$tmp/disk" >"$tmp/fsck" 2>&1 || { cat "$tmp/fsck"; fail "e2fsck"; }
for fs in ext4 share; do
	echo "ok: $fs: $(grep -c "^good $fs" "$tmp/out") stressors"
done
