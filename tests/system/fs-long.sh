#!/bin/sh
# fs-long.sh HUSK DEMO [TOOLS [SECONDS]] - Debian's programs on a shared directory
#
# A Debian root file system runs fio with verification, git, dpkg and fsx (for
# SECONDS, 600) on a share; once with the files' owners real, where Husk is
# root, and once kept beside them.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
here=$(cd "$(dirname "$0")" && pwd)
seconds=${4:-600}
[ "$(id -u)" = 0 ] || skip "needs root to keep the owners of files"
command -v mke2fs >/dev/null || skip "no e2fsprogs"
[ "$(gzip -dc "$demo/initrd" | grep -ac virtiofs.ko)" -gt 0 ] ||
	skip "a demo guest without virtiofs in $demo: tools/make-demo $demo"
tar=$demo/../debian/fs.tar
"$here/../../tools/make-debian" "$tar" fio git >"$tmp/out" 2>&1 ||
	skip "no Debian root file system: $(tail -1 "$tmp/out")"

r=$tmp/root
mkdir "$r"
tar -C "$r" -xf "$tar" --exclude='./dev/*'
cp "$tools/fsx" "$r/usr/bin/"
cat >"$r/init" <<W
#!/bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin LC_ALL=C HOME=/tmp
mount -t proc p /proc; mount -t sysfs s /sys; mount -t tmpfs t /tmp
mount -t tmpfs t /var/tmp
mount -t virtiofs share /mnt || echo "no share"
cd /mnt
fsx /mnt/fsx $seconds 7 &
for e in psync mmap io_uring; do
	fio --eta=never --name=\$e --ioengine=\$e --iodepth=8 --rw=randrw --bs=512-128k \\
		--size=32m --verify=crc32c --do_verify=1 --fallocate=none \\
		--verify_fatal=1 --directory=/mnt --output=/tmp/fio &&
		echo "FIO \$e"
done
fio --eta=never --name=direct --direct=1 --ioengine=psync --rw=randwrite --bs=4k \\
	--size=16m --verify=crc32c --verify_fatal=1 --directory=/mnt \\
	--output=/tmp/fio && echo "FIO direct"
git config --global user.email a@b; git config --global user.name a
git init -q repo && cd repo && cp -r /usr/share/perl5 /etc . &&
	git add -A && git commit -qm one && git gc -q && git fsck --strict --no-progress &&
	git clone -q . /mnt/clone && git -C /mnt/clone diff --quiet HEAD &&
	echo "GIT"
cd /mnt
# A root file system of its own, as the package manager makes one.
mkdir dpkg && cp -a /var/lib/dpkg dpkg/db &&
	tar -C / -cf - etc usr/bin usr/sbin var/lib/dpkg | tar -xpf - -C dpkg &&
	tar -C / -df /dev/null 2>/dev/null
(cd / && tar -cf - etc usr/bin) | tar -df - -C /mnt/dpkg && echo "TAR"
chroot_list() { (cd \$1 && 
	find . ! -type d -printf '%p %u %g %m %s %l\\n' -o \\
		-printf '%p %u %g %m\\n' | sort); }
chroot_list /etc >/tmp/a; chroot_list /mnt/dpkg/etc >/tmp/b
cmp /tmp/a /tmp/b && echo "OWNERS"
chroot_list /usr/bin >/tmp/a; chroot_list /mnt/dpkg/usr/bin >/tmp/b
cmp /tmp/a /tmp/b && echo "MODES"
wait
cd /; umount /mnt && echo END
echo o >/proc/sysrq-trigger; sleep 60
W
chmod +x "$r/init"
for owner in guest host; do
	rm -rf "$tmp/disk" "$tmp/share"
	mkdir "$tmp/share"
	truncate -s 2G "$tmp/disk"
	mke2fs -q -F -t ext4 -d "$r" "$tmp/disk" >"$tmp/out" 2>&1 || fail mke2fs
	"$husk" run --engine soft --cpus 2 --memory 768M \
		--kernel "$demo/vmlinuz" --initrd "$demo/initrd" \
		--disk "$tmp/disk" --share "$tmp/share,owner=$owner" \
		--net none --timeout $((seconds + 3000)) \
		--cmdline "console=ttyS0 quiet root=/dev/vda" \
		</dev/null >"$tmp/raw" 2>&1 ||
		fail "status $?: $(tail -3 "$tmp/raw")"
	tr -d '\r' <"$tmp/raw" >"$tmp/out"
	for line in 'FIO psync' 'FIO mmap' 'FIO io_uring' 'FIO direct' GIT TAR \
		OWNERS MODES END; do
		says "$line"
	done
	grep '^fsx: .*no difference' "$tmp/out" || fail "fsx"
	echo "ok: owner=$owner: fio, git, tar, fsx $seconds s"
done
