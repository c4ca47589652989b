#!/bin/sh
# tap.sh HUSK DEMO [TOOLS] - a guest on a tap device, with the kernel's offloads
#
# In a network namespace of its own, so nothing of the host is touched.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v python3 >/dev/null || skip "no python3"
command -v ip >/dev/null || skip "no ip command (iproute2)"
[ "$(gzip -dc "$demo/initrd" | grep -ac virtio_net.ko)" -gt 0 ] ||
	skip "a demo guest without virtio_net in $demo: tools/make-demo $demo"
if [ -z "${HUSK_TAP_INSIDE:-}" ]; then
	rm -rf "$tmp"
	unshare -rn sh -c ': <>/dev/net/tun && ip tuntap add t mode tap' \
		2>/dev/null || skip "no tap devices here (/dev/net/tun)"
	HUSK_TAP_INSIDE=1 exec unshare -rn "$0" "$@"
fi
ip link set lo up
ip tuntap add cable0 mode tap
ip addr add 10.8.8.1/24 dev cable0
ip link set cable0 up
mkdir "$tmp/add" "$tmp/www"
head -c 10485760 /dev/urandom >"$tmp/www/file"
cp "$tmp/www/file" "$tmp/add/file"
sum=$(sha256sum <"$tmp/www/file")
cat >"$tmp/server.py" <<'S'
import hashlib, os, socket, sys, threading
get = socket.create_server(("10.8.8.1", 80))
put = socket.create_server(("10.8.8.1", 81))
def gets():
    data = open(sys.argv[1], "rb").read()
    while True:
        c, _ = get.accept()
        c.sendall(data)
        c.shutdown(socket.SHUT_WR)
        c.recv(1)
        c.close()
threading.Thread(target=gets, daemon=True).start()
open(sys.argv[1] + ".ready", "w").close()
while True:
    c, _ = put.accept()
    h = hashlib.sha256()
    while d := c.recv(1 << 20): h.update(d)
    c.sendall(h.hexdigest().encode() + b"\n")
    c.close()
S
python3 "$tmp/server.py" "$tmp/www/file" &
server=$!
trap 'kill $server 2>/dev/null || :; rm -rf "$tmp"' EXIT
within 100 "no server" [ -e "$tmp/www/file.ready" ]
guest --net tap=cable0,queues=2 --cpus 2 <<'G' || fail "status $?"
for i in 1 2 3 4 5 6 7 8 9; do [ -e /sys/class/net/eth0 ] || sleep 1; done
ip link set eth0 up
ip addr add 10.8.8.2/24 dev eth0
mkfifo /silent; exec 9<>/silent # nc tells of the end of its input
ping -c 1 -W 9 -s 1400 10.8.8.1 >/dev/null && echo "ping works"
nc 10.8.8.1 80 <&9 >/got
echo "got $(wc -c </got) $(sha256sum </got)"
echo "sent $(nc 10.8.8.1 81 </file)"
G
says 'ping works'
says "got 10485760 $sum"
says "sent ${sum%% *}"
# Whole segments crossed the cable: the kernel's offloads were in use.
# (Not by /sys, which may show another namespace.)
# shellcheck disable=SC2046 # two words
set -- $(ip -s -j link show cable0 | python3 -c 'import json, sys
s = json.load(sys.stdin)[0]["stats64"]
print(s["rx"]["packets"], s["tx"]["packets"])')
[ "$1" -lt 5000 ] || fail "$1 packets from the guest for 10 MiB"
[ "$2" -lt 5000 ] || fail "$2 packets to the guest for 10 MiB"
ip link del cable0
echo "ok: tap, $1 packets from the guest and $2 to it for 10 MiB each"
