#!/bin/sh
# bootstep.sh HUSK DEMO TOOLS [long] - a whole boot, translated and interpreted
#
# Both machines run in one process on made-up time and are compared at every
# exit: see tests/guest/bootstep.c.  long: programs of the early user space,
# too, the translator with its usual threshold, and Debian's systemd up to the
# login prompt.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
step=$tools/../guest/bootstep
[ -x "$step" ] || skip "no $step"
mkdir "$tmp/add"
cat >"$tmp/add/run.sh" <<'G'
uname -a
ls -lR /sys/devices/system | md5sum
i=0; while [ $i -lt 40 ]; do i=$((i + 1)); echo $i; done | sort -r | tail -1
if [ -e /long ]; then
	for f in /bin/busybox /m/*.ko; do
		gzip -c "$f" | gunzip | cmp - "$f" && bzip2 -c "$f" | sha512sum
	done
	dmesg | awk '{ for (i = 1; i <= NF; i++) n[$i]++ }
		END { for (w in n) s += n[w] * length(w); print s, s % 97 }'
	find /sys -type f 2>/dev/null | head -2000 | xargs ls -l | sha1sum
	seq 1 3000 | sed 's/7/seven/g' | grep -c seven
	(sleep 0.3; echo late) & wait
	i=0; while [ $i -lt 200 ]; do (exit 3) || i=$((i + 1)); done
	dd if=/dev/urandom bs=64k count=20 2>/dev/null | sha256sum
	mkdir /t; mount -t tmpfs t /t; tar -cf /t/a.tar /m /bin; sha1sum /t/a.tar
fi
echo "END OF RUN"
poweroff -f
G
words="console=ttyS0 notscdeadline nokaslr husk.run=\"sh /run.sh\""
boot() {	# boot ENGINE
	timeout 1500 "$step" --a "$1" --b soft,interp --cmdline "$words" \
		"$demo/vmlinuz" "$tmp/initrd" >"$tmp/raw" 2>&1 ||
		{ tr -d '\r' <"$tmp/raw" >"$tmp/out"; fail "$1: status $?"; }
	tr -d '\r' <"$tmp/raw" >"$tmp/out"
	says 'END OF RUN'
	grep 'exits.*powered off' "$tmp/out" || fail "$1: no power off"
}
[ "${4:-}" != long ] || touch "$tmp/add/long"
initrd "$tmp/add"
boot soft,eager
[ "${4:-}" = long ] || { echo "ok: the boot is the same"; exit 0; }
boot soft

here=$(cd "$(dirname "$0")" && pwd)
tar=$demo/../debian/login.tar
if [ "$(id -u)" != 0 ]; then
	echo "without systemd: only root can keep the owners of files"
elif "$here/../../tools/make-debian" "$tar" systemd-sysv udev dbus kmod \
	iproute2 cron rsyslog procps >"$tmp/made" 2>&1; then
	mkdir "$tmp/root"
	tar -C "$tmp/root" -xf "$tar" --exclude='./dev/*' \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*'
	(cd "$tmp/root" && find . | cpio -o -H newc --quiet) >"$tmp/cpio"
	rm -rf "$tmp/root"
	timeout 3000 "$step" --a soft,eager --b soft,interp --memory 1024 \
		--until ' login:' --cmdline \
		"console=ttyS0 notscdeadline nokaslr rdinit=/sbin/init" \
		"$demo/vmlinuz" "$tmp/cpio" >"$tmp/raw" 2>&1 ||
		{ tr -d '\r' <"$tmp/raw" >"$tmp/out"; fail "systemd: $?"; }
	grep ' login:' "$tmp/raw" || fail "no login prompt"
	grep 'exits' "$tmp/raw"
else
	echo "without systemd: $(tail -1 "$tmp/made")"
fi
echo "ok: the boots are the same"
