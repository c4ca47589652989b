#!/bin/sh
# vsock.sh HUSK DEMO TOOLS [all] - sockets between guest and host, both ways
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
[ -x "$tools/sock" ] || skip "no test program $tools/sock"
# Not grep -q: gzip must not die of SIGPIPE.
[ "$(gzip -dc "$demo/initrd" | grep -ac vmw_vsock_virtio_transport.ko)" -gt 0 ] ||
	skip "a demo guest without vsock in $demo: tools/make-demo $demo"
# Connections one after the other, at once, and MiB each way.
one=1000 many=500 mib=64
[ "${4:-}" != all ] || { one=10000 many=4000 mib=1024; }
# shellcheck disable=SC3045 # dash has it, too
files=$(ulimit -Hn)
[ "$files" = unlimited ] || [ "$files" -gt $((many * 2 + 1000)) ] ||
	many=$(((files - 600) / 2))

mkdir -p "$tmp/add/bin"
cp "$tools/sock" "$tmp/add/bin/"
sock=$tools/sock
"$sock" "unix:$tmp/v_6000" serve >"$tmp/served" &
server=$!
trap 'kill $server $peer 2>/dev/null || :; rm -rf "$tmp"' EXIT
peer=

# The host's half begins when the guest's server is up, and tells its end.
host() {
	i=0
	while ! "$sock" "husk:$tmp/v:5000" many 1 >/dev/null 2>&1; do
		i=$((i + 1)); [ $i -lt 400 ] || return 1
		sleep 0.1
	done
	ok=
	for w in "many $one" "hold $many" "up $mib" "down $mib" half; do
		# shellcheck disable=SC2086 # a word and a number
		"$sock" "husk:$tmp/v:5000" $w || ok=no
	done
	"$sock" "husk:$tmp/v:5001" refused && [ -z "$ok" ] && echo "host done"
	exec "$sock" "unix:$tmp/v_7001" serve
}
host >"$tmp/host" 2>&1 &
peer=$!
cat <<G | guest --net none --cpus 2 --vsock "$tmp/v" || fail "status $?"
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	insmod /m/\$m.ko
done
sock vsock:4294967295:5000 serve >/dev/null &
sock vsock:2:77 refused
sock vsock:9:77 refused
for w in "many $one" "hold $many" "up $mib" "down $mib" half; do
	sock vsock:2:6000 \$w
done
echo guest done
i=0
until sock vsock:2:7001 many 1 >/dev/null; do
	i=\$((i + 1)); [ \$i -lt 1000 ] || break; sleep 0.3
done
G
cat "$tmp/host" >>"$tmp/out"
says 'host done'
says 'guest done'
[ "$(grep -c '^refused' "$tmp/out")" = 3 ] || fail "not refused"
for w in "many $one" "held $many" 'half 0 MiB sum 0000000000000000'; do
	[ "$(grep -cx "$w" "$tmp/out")" = 2 ] || fail "not twice: $w"
done
# The same bytes everywhere.
[ "$(grep -E '^(up|down) ' "$tmp/out" | cut -d' ' -f2- | sort | uniq -c |
	sed 's/^ *//')" = "4 $(grep -m1 '^up ' "$tmp/out" | cut -d' ' -f2-)" ] ||
	fail "sums"
[ ! -e "$tmp/v" ] || fail "the socket was left"
echo "ok: $one connections, $many at once, $mib MiB, from both sides"

# -- a machine that ends, and one port at a time ---------------------------------

cp "$tools/sock" "$tmp/add/bin/"
kill $peer; wait $peer 2>/dev/null || true
(	i=0
	while [ $i -lt 400 ]; do
		"$sock" "unix:$tmp/in" cut && break
		i=$((i + 1)); sleep 0.1
	done >"$tmp/cut") &
peer=$!
rm -f "$tmp/v_6000"
cat <<'G' | guest --net none --device "virtio-vsock,port=6000,socketURL=$tmp/up" \
	--device "virtio-vsock,port=5000,socketURL=$tmp/in,connect" || fail "status $?"
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	insmod /m/$m.ko
done
sock vsock:4294967295:5000 serve >/dev/null &
sock vsock:2:6000 refused
sleep 2
G
wait $peer || fail "the machine's end"
grep -q '^cut' "$tmp/cut" || { cat "$tmp/cut"; fail "not cut"; }
says 'refused: Connection reset by peer'
[ ! -e "$tmp/in" ] || fail "the socket was left"
echo "ok: single ports; the end of a machine ends its connections"

# -- what cannot be ---------------------------------------------------------------

: >"$tmp/file"
"$sock" "unix:$tmp/taken" serve >/dev/null &
peer=$!
while [ ! -S "$tmp/taken" ]; do sleep 0.1; done
for v in "$tmp/file" "$tmp/none/v" "$tmp/taken" "$tmp/v,cid=2" "$tmp/v,cid=x" \
	"$tmp/v,more" "" "cid=" "$(printf '%0120d' 0)"; do
	r=0
	timeout 60 "$husk" run --kernel "$demo/vmlinuz" --engine soft --net none \
		--vsock "$v" </dev/null >"$tmp/out" 2>&1 || r=$?
	[ $r = 2 ] || fail "--vsock $v: status $r"
	[ "$(wc -l <"$tmp/out")" = 1 ] || fail "--vsock $v: not one line"
done
for d in port=5 socketURL=x port=0,socketURL=x port=5,socketURL=x,what; do
	r=0
	timeout 60 "$husk" run --kernel "$demo/vmlinuz" --engine soft --net none \
		--device "virtio-vsock,$d" </dev/null >"$tmp/out" 2>&1 || r=$?
	[ $r = 2 ] || fail "--device virtio-vsock,$d: status $r"
done
echo "ok: bad options"
