#!/bin/sh
# net.sh HUSK DEMO [TOOLS] - a guest on the network: NAT, forwards, cables
#
# Everything stays on this host's loopback.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v python3 >/dev/null || skip "no python3"
has_loopback || skip "the loopback interface is down"
# Not grep -q: gzip must not die of SIGPIPE.
[ "$(gzip -dc "$demo/initrd" | grep -ac virtio_net.ko)" -gt 0 ] ||
	skip "a demo guest without virtio_net in $demo: tools/make-demo $demo"

mkdir "$tmp/add" "$tmp/www"
head -c 10485760 /dev/urandom >"$tmp/www/file"
sum=$(sha256sum <"$tmp/www/file")
cat >"$tmp/add/lease.sh" <<'L'
#!/bin/sh
case $1 in
bound|renew)
	ip addr add $ip/$mask dev $interface
	for r in $router; do ip route add default via $r; done
	echo "lease $ip $mask $router $dns" ;;
esac
L
chmod +x "$tmp/add/lease.sh"
cat >"$tmp/up" <<'U'
ip link set lo up
for i in 1 2 3 4 5 6 7 8 9; do [ -e /sys/class/net/eth0 ] || sleep 1; done
ip link set eth0 up
U

serve "$tmp/www"
trap 'kill $server 2>/dev/null || :; rm -rf "$tmp"' EXIT
port=$(free_port)

# -- the default: a NAT --------------------------------------------------------

python3 "$here/client.py" "$port" >"$tmp/forwarded" &
client=$!
{ cat "$tmp/up"; cat <<G
udhcpc -i eth0 -n -q -t 9 -s /lease.sh 2>/dev/null
wget -q -O /file http://10.0.2.2:$web/file
echo "got \$(sha256sum </file)"
wget -q -O - http://10.0.2.2:$web/file | sha256sum | sed 's/^/again /'
echo "sent \$(nc 10.0.2.2 $sink </file)"
echo "echoed \$(tftp -g -r name -l - 10.0.2.2 $echo)"
wget -q -O - http://10.0.2.2:1/ 2>&1 | grep -o 'refused'
nc -l -p 80 </file
echo "mtu \$(cat /sys/class/net/eth0/mtu) \$(cat /sys/class/net/eth0/address)"
for q in rx-0 tx-0 rx-1; do [ ! -e /sys/class/net/eth0/queues/\$q ] || echo "\$q"; done
G
} | guest --net shared,mac=52:54:00:12:34:56 --forward "$port:80" ||
	fail "status $?"
says 'lease 10.0.2.15 24 10.0.2.2 10.0.2.3'
says "got $sum"
says "again $sum"
says "sent ${sum%% *}"
says "echoed ping name"
says 'refused'
says 'mtu 9000 52:54:00:12:34:56'
says 'rx-0'
! grep -qx rx-1 "$tmp/out" || fail "more queues than asked for"
wait $client || fail "the forwarded port gave nothing"
[ "$(cat "$tmp/forwarded")" = "${sum%% *}" ] || fail "the forwarded port: wrong bytes"
echo "ok: DHCP, HTTP, TCP and UDP through the NAT, a forwarded port"

# -- other options ---------------------------------------------------------------

# Two processors, four queues, a small MTU, the cable's filters.
{ cat "$tmp/up"; cat <<G
udhcpc -i eth0 -n -q -t 9 -s /lease.sh 2>/dev/null
for i in 1 2 3 4; do
	wget -q -O - http://10.0.2.2:$web/file | sha256sum | sed "s/^/by \$i /" &
	echo "sum \$i \$(nc 10.0.2.2 $sink </m/virtio_net.ko)" &
done
wait
echo "mtu \$(cat /sys/class/net/eth0/mtu)"
ls -d /sys/class/net/eth0/queues/rx-1
awk '/virtio.*-input.[01]/ { print \$NF, (\$2 + \$3 ? "used" : "idle") }' \
	/proc/interrupts | sed 's/.*-//'
ip link set eth0 promisc on && ip link set eth0 promisc off && echo promisc
ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:07 && ip link set eth0 up
udhcpc -i eth0 -n -q -t 9 -s /lease.sh 2>/dev/null | sed 's/^lease/second/'
G
} | guest --cpus 2 --net shared,mtu=1500,queues=4 --net null ||
	fail "status $?"
for i in 1 2 3 4; do says "by $i $sum"; done
n=$(gzip -dc "$demo/initrd" >"$tmp/cpio" && mkdir "$tmp/x" && cd "$tmp/x" &&
	cpio -id --quiet 'm/virtio_net.ko' <"$tmp/cpio" &&
	sha256sum <m/virtio_net.ko)
for i in 1 2 3 4; do says "sum $i ${n%% *}"; done
says 'mtu 1500'
says '/sys/class/net/eth0/queues/rx-1'
says 'input.0 used'
says 'input.1 used'
says promisc
grep -q '^second 10.0.2' "$tmp/out" || fail "no lease for another address"
echo "ok: several queues, connections at once, another MAC address"

# The host's loopback is out of reach when that is asked for.
{ cat "$tmp/up"; cat <<G
udhcpc -i eth0 -n -q -t 9 -s /lease.sh 2>/dev/null
timeout 20 wget -q -O - http://10.0.2.2:$web/file >/dev/null || echo "no way"
G
} | guest --net shared,noloopback || fail "status $?"
says 'no way'
echo 'ls /sys/class/net/' | guest --net none || fail "status $?"
says lo
! grep -q eth0 "$tmp/out" || fail "a device with --net none"
echo "ok: noloopback and none"

# -- two machines on a cable -----------------------------------------------------

other() {
	{ cat "$tmp/up"; cat <<G
ip addr add 10.9.9.2/24 dev eth0
i=0
while ! ping -c 1 -W 1 10.9.9.1 >/dev/null; do i=\$((i+1)); [ \$i -lt 200 ] || break; done
ping -c 1 -s 1400 10.9.9.1 >/dev/null && echo "ping works"
mkfifo /silent; exec 9<>/silent # nc tells of the end of its input
nc 10.9.9.1 7000 >/got <&9
echo "got \$(wc -c </got) \$(sha256sum </got)"
G
	} >"$tmp/other.sh"
	mkdir -p "$tmp/add2"
	cp "$tmp/other.sh" "$tmp/add2/run.sh"
	{ cat "$demo/initrd"
	  (cd "$tmp/add2" && find . | cpio -o -H newc --quiet | gzip -1); } \
		>"$tmp/initrd2"
}
other
cmdline='console=ttyS0 quiet husk.run="sh /run.sh"'
first() {	# first - the side that has the file, and listens
	{ cat "$tmp/up"; cat <<'G'
ip addr add 10.9.9.1/24 dev eth0
nc -l -p 7000 </file
echo served
G
	} | guest --net "unix=$tmp/cable,listen"
}
cp "$tmp/www/file" "$tmp/add/file"
first &
one=$!
within 300 "no socket" [ -S "$tmp/cable" ]
timeout 280 "$husk" run --engine soft --kernel "$demo/vmlinuz" \
	--initrd "$tmp/initrd2" --timeout 250 --cmdline "$cmdline" \
	--net "unix=$tmp/cable" </dev/null >"$tmp/raw2" 2>&1 ||
	fail "the second machine: $(tail -5 "$tmp/raw2")"
tr -d '\r' <"$tmp/raw2" >"$tmp/out2"
grep -qx 'ping works' "$tmp/out2" || { cat "$tmp/out2"; fail "no ping"; }
grep -qx "got 10485760 $sum" "$tmp/out2" || { cat "$tmp/out2"; fail "wrong bytes"; }
wait $one || fail "the first machine: $?"
says served
[ ! -e "$tmp/cable" ] || fail "the socket was left"
echo "ok: two machines on a Unix socket"

# -- QEMU at the other end -------------------------------------------------------

if command -v qemu-system-x86_64 >/dev/null &&
	qemu-system-x86_64 -netdev help | grep -qx stream; then
	first &
	one=$!
	within 300 "no socket" [ -S "$tmp/cable" ]
	timeout 280 qemu-system-x86_64 -nodefaults -no-reboot -display none \
		-m 512 -serial stdio -accel tcg -kernel "$demo/vmlinuz" \
		-initrd "$tmp/initrd2" -append "$cmdline" \
		-netdev "stream,id=n,addr.type=unix,addr.path=$tmp/cable" \
		-device virtio-net-pci,netdev=n,romfile= \
		</dev/null >"$tmp/raw2" 2>&1 || fail "QEMU: $(tail -5 "$tmp/raw2")"
	tr -d '\r' <"$tmp/raw2" >"$tmp/out2"
	grep -q "got 10485760 $sum" "$tmp/out2" || { tail -20 "$tmp/out2"; fail "wrong bytes by QEMU"; }
	wait $one || fail "the machine beside QEMU: $?"
	says served
	echo "ok: QEMU connects"
else
	echo "no QEMU with -netdev stream: not tried"
fi
