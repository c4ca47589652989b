#!/bin/sh
# disk.sh HUSK DEMO [TOOLS] - virtio devices, and a root file system on a disk
#
# The stock kernel has ext4 built in but its virtio drivers are modules: the
# demo's initramfs loads them, mounts root= and leaves by switch_root.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v mke2fs >/dev/null && command -v e2fsck >/dev/null &&
	command -v debugfs >/dev/null || skip "no e2fsprogs"

# The root file system, from a directory; nobody needs to be root for it.
r=$tmp/root
mkdir -p "$r/bin" "$r/dev" "$r/proc" "$r/sys" "$r/tmp"
cp /bin/busybox "$r/bin/"
ln -s busybox "$r/bin/sh"
head -c 3000000 /dev/urandom >"$r/old"
cat >"$r/init" <<'I'
#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc p /proc
echo "root $(sed -n 's/^\([^ ]*\) \/ ext4 .*/\1/p' /proc/mounts)"
echo "old $(sha256sum </old)"
head -c 4000000 /dev/urandom >/new
mkdir -p /many
i=0; while [ $i -lt 60 ]; do echo "file $i" >/many/$i; i=$((i+1)); done
rm /many/7
mv /many/8 /many/moved
sync
echo "new $(sha256sum </new)"
mount -o remount,ro /
echo END
poweroff -f
I
chmod +x "$r/init"
truncate -s 64M "$tmp/disk"
mke2fs -q -F -t ext4 -d "$r" "$tmp/disk" >"$tmp/mke2fs" 2>&1 ||
	fail "mke2fs: $(cat "$tmp/mke2fs")"
head -c 1048576 /dev/urandom >"$tmp/second"
cp "$tmp/second" "$tmp/second.before"

words=root=/dev/vda guest --disk "$tmp/disk" --disk "$tmp/second,readonly" <<'G' || fail "status $?"
echo "hvc0 $(ls /dev/hvc0)"
echo "rng $(cat /sys/class/misc/hw_random/rng_current)"
echo "entropy $(dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c)"
a=$(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | sha256sum)
b=$(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | sha256sum)
[ "$a" != "$b" ] && echo "entropy differs"
echo "size $(blockdev --getsize64 /dev/vda) $(blockdev --getsize64 /dev/vdb)"
echo "second $(sha256sum </dev/vdb)"
echo x 2>/dev/null >/dev/vdb && echo "second was written"
echo "ro $(cat /sys/block/vdb/ro)"
# Nobody reads hvc0 outside; writing must not hang all the same.
echo "on the console" >/dev/hvc0 && echo "hvc0 written"
G
says 'END'
says 'hvc0 /dev/hvc0'
says 'hvc0 written'
grep -q '^rng virtio_rng' "$tmp/out" || fail "no virtio_rng"
says 'entropy 256'
says 'entropy differs'
says "size 67108864 1048576"
says "second $(sha256sum <"$tmp/second.before")"
says 'ro 1'
! grep -q 'second was written' "$tmp/out" || fail "a read-only disk was written"
cmp "$tmp/second" "$tmp/second.before" || fail "the read-only disk changed"
says 'root /dev/vda'
says "old $(sha256sum <"$r/old")"
e2fsck -fn "$tmp/disk" >"$tmp/fsck" 2>&1 ||
	{ cat "$tmp/fsck"; fail "e2fsck finds errors"; }
debugfs -R "dump /new $tmp/new" "$tmp/disk" >/dev/null 2>&1
says "new $(sha256sum <"$tmp/new")"
n=$(debugfs -R 'ls -p /many' "$tmp/disk" 2>/dev/null | grep -c '^/.*/[0-9m]')
[ "$n" -ge 59 ] || fail "only $n files in /many"
echo "ok: root on virtio-blk, e2fsck clean"
