#!/bin/sh
# nic.sh HUSK DEMO TOOLS - a driver's wishes of its network device; see nic.c
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
mkdir -p "$tmp/add/v" "$tmp/demo"
n=0
for m in llc stp garp mrp 8021q; do
	f=$(find "$demo/root/lib/modules" -name "$m.ko" 2>/dev/null | head -1)
	[ -n "$f" ] || skip "no $m.ko in $demo/root: tools/make-demo $demo"
	n=$((n + 1))
	cp "$f" "$tmp/add/v/$n.ko"
done
cat >"$tmp/add/run.sh" <<'G'
stty -echo
dmesg -n 1
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null
for i in 1 2 3 4 5 6 7 8 9; do [ -e /sys/class/net/eth0 ] || sleep 1; done
echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 2>/dev/null
ip addr add 10.5.0.2/24 dev eth0
ip link set eth0 up
echo READY
while read -r line; do eval "$line"; done
G
initrd "$tmp/add"
cp "$demo/vmlinuz" "$tmp/demo/"
mv "$tmp/initrd" "$tmp/demo/initrd"
"$tools/nic" "$tmp/demo" "$tmp"
