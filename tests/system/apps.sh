#!/bin/sh
# apps.sh HUSK DEMO [TOOLS [SECONDS]] - Debian's programs tell the truth
#
# A Debian root file system runs xz on 100 MB, gcc on this project's device
# models and node on a WebAssembly and a regexp benchmark, once by chroot on
# the host and once in a guest with two vCPUs; every byte must be the same.
# Then stress-ng verifies itself in the guest for SECONDS (600).
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
here=$(cd "$(dirname "$0")" && pwd)
seconds=${4:-600}
[ "$(id -u)" = 0 ] || skip "needs root to keep the owners of files"
command -v mke2fs >/dev/null || skip "no e2fsprogs"
tar=$demo/../debian/apps.tar
"$here/../../tools/make-debian" "$tar" \
	stress-ng nodejs gcc libc6-dev xz-utils >"$tmp/out" 2>&1 ||
	skip "no Debian root file system: $(tail -1 "$tmp/out")"

r=$tmp/root
mkdir "$r"
tar -C "$r" -xf "$tar" --exclude='./dev/*'
mknod "$r/dev/null" c 1 3
mkdir "$r/work"
cp "$here/apps.js" "$r/work/"
head -c 100000000 "$tar" >"$r/work/in"
cp -r "$here/../../src" "$here/../../include" "$r/work/"
cat >"$r/work/run" <<'W'
#!/bin/sh
export PATH=/usr/bin:/bin LC_ALL=C
cd /work
echo "xz $(xz -6 -T2 -c in | tee out.xz | sha256sum)"
echo "unxz $(xz -dc out.xz | sha256sum)"
rm out.xz
n=0
for f in src/vm/*.c src/vm/virtio/*.c src/net/*.c; do
	gcc -O2 -g -std=gnu11 -D_GNU_SOURCE -Iinclude -Isrc -c "$f" -o x.o \
		2>/dev/null || continue
	n=$((n + 1))
	echo "cc $f $(sha256sum <x.o)"
done
echo "compiled $n"
node apps.js | cat
W
cat >"$r/init" <<W
#!/bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
mount -t proc p /proc; mount -t sysfs s /sys
mkdir -p /dev/shm /dev/pts; mount -t tmpfs t /dev/shm; mount -t tmpfs t /tmp
cd /work
echo "GUEST \$(nproc)"
sh run
echo "UPTIME \$(cat /proc/uptime)"
stress-ng --verify --timeout $seconds --metrics-brief --temp-path /tmp \\
	--cpu 1 --vm 1 --vm-bytes 48M --matrix 1 --switch 1 --mmap 1 \\
	--mmap-bytes 48M --fork 1 --futex 1 --sigq 1 --signest 1 --sigfpe 1 \\
	--sigsegv 1 --sigpending 1 2>&1
echo "STRESS \$?"
dmesg | grep -i -E 'bug:|oops|call trace|segfault|lockup|stall' |
	sed 's/^/KERNEL /'
echo END
echo o >/proc/sysrq-trigger; sleep 60
W
chmod +x "$r/init" "$r/work/run"

env -i /usr/sbin/chroot "$r" /bin/sh /work/run >"$tmp/native" 2>&1 || :
grep -q '^types' "$tmp/native" || { cp "$tmp/native" "$tmp/out"; fail "chroot"; }
n=$(sed -n 's/^compiled //p' "$tmp/native")
[ "$n" -ge 10 ] || { cp "$tmp/native" "$tmp/out"; fail "only $n files compiled"; }
truncate -s 2G "$tmp/disk"
mke2fs -q -F -t ext4 -d "$r" "$tmp/disk" >"$tmp/out" 2>&1 || fail mke2fs
rm -rf "$r"

"$husk" run --engine soft --cpus 2 --memory 1536M --kernel "$demo/vmlinuz" \
	--initrd "$demo/initrd" --disk "$tmp/disk" \
	--timeout $((seconds + 3000)) \
	--cmdline "console=ttyS0 quiet root=/dev/vda" \
	</dev/null >"$tmp/raw" 2>&1 || fail "status $?: $(tail -3 "$tmp/raw")"
tr -d '\r' <"$tmp/raw" >"$tmp/out"
says "GUEST 2"
sed -n '/^GUEST/,/^UPTIME/p' "$tmp/out" | sed '1d;$d' >"$tmp/guest"
diff "$tmp/native" "$tmp/guest" ||
	fail "the guest made something else than the host"
! grep '^KERNEL' "$tmp/out" || fail "the guest's kernel complained"
says "STRESS 0"
says END
grep 'stress-ng: info.*(verif\|completed\|skipped)' "$tmp/out" || :
echo "ok: xz, $n objects of gcc and node as on the host; stress-ng $seconds s"
