#!/bin/sh
# again.sh HUSK DEMO [TOOLS] - a guest that reboots gives its memory back
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
mkdir "$tmp/add"
truncate -s 1M "$tmp/disk"
cat >"$tmp/add/run.sh" <<'G'
if [ "$(head -c 1 /dev/vda)" = x ]; then
	echo SECOND; read a; poweroff -f
fi
echo x >/dev/vda; sync
mkdir /t; mount -t tmpfs -o size=95% t /t
echo FIRST; read a
dd if=/dev/zero of=/t/f bs=1M count=300 2>/dev/null
echo FULL; read a
reboot -f
G
initrd "$tmp/add"
mkfifo "$tmp/in"
exec 9<>"$tmp/in"
"$husk" run --engine soft --kernel "$demo/vmlinuz" --initrd "$tmp/initrd" \
	--memory 512M --reboot again --timeout 200 --disk "$tmp/disk" \
	--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"' \
	<&9 >"$tmp/out" 2>&1 &
machine=$!
trap 'kill $machine 2>/dev/null || :; rm -rf "$tmp"' EXIT
# resident WORD - MiB, when the guest has said this
resident() {
	i=0
	until grep -q "$1" "$tmp/out"; do
		i=$((i + 1)); [ $i -lt 900 ] || fail "no $1"
		kill -0 $machine 2>/dev/null || fail "it has ended"
		sleep 0.1
	done
	mib=$(($(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' /proc/$machine/status) / 1024))
	echo >&9
}
resident FIRST; first=$mib
resident FULL; full=$mib
resident SECOND; second=$mib
wait $machine || fail "status $?"
[ $((full - first)) -gt 250 ] || fail "$first, then only $full MiB"
[ $((second - first)) -lt 100 ] || fail "$first, $full and then $second MiB"
echo "ok: $first MiB, in use $full, after a reboot $second"
