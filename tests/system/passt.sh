#!/bin/sh
# passt.sh HUSK DEMO [TOOLS] - passt as the peer of a stream socket
#
# What passt gives a guest of QEMU it gives one of ours: an address, the host's
# loopback, a forwarded port, frames of 64 KiB; and it may go and come back.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v passt >/dev/null || skip "no passt"
command -v python3 >/dev/null || skip "no python3"

# passt of root becomes nobody, who makes its socket here.
chmod 711 "$tmp"
mkdir -m 777 "$tmp/p"
passt=
stop() {
	[ -z "$passt" ] || { kill $passt 2>/dev/null; wait $passt 2>/dev/null; } || :
	passt=
}
begin() {	# begin - until it listens
	rm -f "$tmp/p/s"
	passt -f -s "$tmp/p/s" -a 10.77.0.2 -n 24 -g 10.77.0.1 -t "$port:80" \
		>"$tmp/passt.log" 2>&1 &
	passt=$!
	i=0
	while [ ! -S "$tmp/p/s" ]; do
		kill -0 $passt 2>/dev/null || skip "passt does not start here: $(
			grep -v syslog "$tmp/passt.log" | tail -1)"
		i=$((i + 1)); [ $i -lt 100 ] || fail "passt made no socket"
		sleep 0.1
	done
}
mkdir "$tmp/add" "$tmp/www"
head -c 10485760 /dev/urandom >"$tmp/www/file"
sum=$(sha256sum <"$tmp/www/file")
serve "$tmp/www"
trap 'kill $server 2>/dev/null || :; stop; rm -rf "$tmp"' EXIT
port=$(free_port)
begin

cat >"$tmp/add/lease.sh" <<'L'
#!/bin/sh
case $1 in
bound|renew)
	ip addr add $ip/$mask dev $interface
	for r in $router; do ip route add default via $r; done
	ip link set $interface mtu $mtu
	echo "lease $ip $mask $router $mtu" ;;
esac
L
chmod +x "$tmp/add/lease.sh"
cat >"$tmp/script" <<G
ip link set lo up
for i in 1 2 3 4 5 6 7 8 9; do [ -e /sys/class/net/eth0 ] || sleep 1; done
ip link set eth0 up
udhcpc -i eth0 -n -q -t 9 -O mtu -s /lease.sh 2>/dev/null
wget -q -O /file http://10.77.0.1:$web/file
echo "got \$(sha256sum </file)"
echo LISTENING
nc -l -p 80 </file >/dev/null
echo "mtu \$(cat /sys/class/net/eth0/mtu)"
echo "carrier \$(cat /sys/class/net/eth0/carrier)"
echo GO AWAY
while [ "\$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
echo NOBODY
i=0
while [ "\$(cat /sys/class/net/eth0/carrier)" = 0 ] && [ \$i -lt 300 ]; do
	sleep 0.1; i=\$((i+1))
done
ping -c 1 -W 2 10.77.0.1 >/dev/null
wget -q -O - http://10.77.0.1:$web/file | sha256sum | sed 's/^/again /'
G
guest --net "unix=$tmp/p/s" <"$tmp/script" &
machine=$!
trap 'kill $server $machine 2>/dev/null || :; stop; rm -rf "$tmp"' EXIT
# until_said TEXT
until_said() {
	i=0
	until grep -q "$1" "$tmp/raw" 2>/dev/null; do
		i=$((i + 1)); [ $i -lt 900 ] || { cp "$tmp/raw" "$tmp/out"; fail "no \"$1\""; }
		sleep 0.1
	done
}
until_said LISTENING
# passt of 2023 opens the guest's side when the other one has spoken.
timeout 60 python3 "$here/client.py" "$port" hello >"$tmp/forwarded" ||
	fail "the forwarded port gave nothing"
until_said 'GO AWAY'
stop
until_said NOBODY
begin
wait $machine || fail "status $?"
says 'lease 10.77.0.2 24 10.77.0.1 65520'
says "got $sum"
says 'mtu 65520'
says 'carrier 1'
says "again $sum"
[ "$(cat "$tmp/forwarded")" = "${sum%% *}" ] || fail "the forwarded port: wrong bytes"
echo "ok: DHCP, frames of 64 KiB, a forwarded port, and passt again"
