#!/bin/sh
# sockets.sh HUSK DEMO TOOLS [ROUNDS] - a program that embeds a machine and
# speaks with its guest, before and after restores
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
# Not grep -q: gzip must not die of SIGPIPE.
[ "$(gzip -dc "$demo/initrd" | grep -ac vmw_vsock_virtio_transport.ko)" -gt 0 ] ||
	skip "a demo guest without vsock in $demo: tools/make-demo $demo"
mkdir -p "$tmp/add/bin"
cp "$tools/sock" "$tmp/add/bin/"
cat >"$tmp/add/run.sh" <<'G'
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	insmod /m/$m.ko
done
sock vsock:4294967295:5000 serve >/serving &
until grep -q serving /serving; do usleep 10000; done
while sock vsock:2:6000 cut; do :; done
G
initrd "$tmp/add"
timeout 300 "$tools/sockets" "$demo/vmlinuz" "$tmp/initrd" \
	'console=ttyS0 quiet husk.run="sh /run.sh"' "${4:-10}" >"$tmp/said" \
	2>"$tmp/raw" </dev/null || { cat "$tmp/said" "$tmp/raw"; fail "status $?"; }
tr -d '\r' <"$tmp/raw" >"$tmp/out"
grep -qx over "$tmp/said" || fail "not over"
# Linux ends them by an error, not as if the host had closed them.
[ "$(grep -c '^cut Connection reset\|^cut Transport endpoint' "$tmp/out")" = $((${4:-10} + 1)) ] ||
	fail "not reset"
echo "ok: ${4:-10} restores"
