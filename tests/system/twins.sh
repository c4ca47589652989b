#!/bin/sh
# twins.sh HUSK DEMO TOOLS AGENT - a clone is another machine than its original
#
# Name, MAC address, generation ID, random numbers and clock, as a guest with
# the agent sees them.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
agent=$4
need_demo
[ -x "$agent" ] || skip "no agent $agent"
for m in virtio_net vmw_vsock_virtio_transport; do
	[ "$(gzip -dc "$demo/initrd" | grep -ac $m.ko)" -gt 0 ] ||
		skip "a demo guest without $m in $demo: tools/make-demo $demo"
done

# Sockets have short paths only.
run=$(mktemp -d /tmp/husk.XXXXXX)
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$run"
end() {
	for n in $("$husk" list | sed -n '2,$s/ .*//p'); do
		"$husk" kill "$n" 2>/dev/null || :
	done
	rm -rf "$tmp" "$run"
}
trap end EXIT

mkdir -p "$tmp/add/bin" "$tmp/add/etc"
cp "$agent" "$tmp/add/bin/"
echo root:x:0:0:root:/:/bin/sh >"$tmp/add/etc/passwd"
cat <<'G' >"$tmp/add/run.sh"
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	insmod /m/$m.ko
done
hostname original
exec husk-agent
G
initrd "$tmp/add"
truncate -s 4M "$tmp/disk.img"
# A stop is no time for this one, so that its clock has to be set.
"$husk" create n --from "$tmp/disk.img" --overlay --kernel "$demo/vmlinuz" \
	--initrd "$tmp/initrd" --memory 160M --engine soft --net shared --gap 0 \
	--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"'
"$husk" start n

in_it() { timeout 60 "$husk" exec --wait 60 "$1" -- sh -c "$2" </dev/null; }
# tells NAME COMMAND TEXT - sooner or later
tells() {
	i=0
	until [ "$(in_it "$1" "$2" || :)" = "$3" ]; do
		i=$((i + 1))
		[ $i -lt 50 ] || fail "$1: $2: not $3 but $(in_it "$1" "$2")"
		sleep 0.2
	done
}
mac() { sed -n 's/.*"mac": *"\([^"]*\)".*/\1/p' "$tmp/data/husk/$1/vm.json"; }
event() { in_it "$1" 'cut -c1-8 /sys/firmware/acpi/interrupts/gpe05'; }

[ "$(in_it n hostname)" = original ] || fail "the original has no name"
was=$(in_it n 'cat /sys/class/net/eth0/address')
[ "$(event n | tr -d ' ')" = 0 ] || fail "an event before any clone"
"$husk" save n "$tmp/file"
"$husk" clone n --count 2
sleep 3
"$husk" restore "$tmp/file" --name late

for n in n-1 n-2 late; do
	# What is restored is who it was.
	[ $n = late ] || tells $n hostname $n
	[ "$(event $n | tr -d ' ')" = 1 ] || fail "$n: no event of another ID"
done
for n in n-1 n-2; do
	[ -n "$(mac $n)" ] || fail "$n has no MAC of its own"
	tells $n 'cat /sys/class/net/eth0/address' "$(mac $n)"
done
[ "$(in_it n 'cat /sys/class/net/eth0/address')" = "$was" ] &&
	[ "$(mac n-1)" != "$(mac n-2)" ] && [ "$(mac n-1)" != "$was" ] ||
	fail "MACs $was $(mac n-1) $(mac n-2)"
[ "$(in_it n hostname)" = original ] || fail "the original has a new name"

# Three seconds late, unless somebody sets it.
i=0
until from=$(date +%s) at=$(in_it late 'date +%s') &&
	[ "$at" -ge $((from - 1)) ] && [ "$at" -le $(($(date +%s) + 1)) ]; do
	i=$((i + 1))
	[ $i -lt 50 ] || fail "the clock says $at at $from"
	sleep 0.2
done

for n in n n-1 n-2 late; do
	in_it $n 'head -c 32 /dev/urandom | od -An -tx1 | tr -d " \n"; echo'
done >"$tmp/numbers"
[ "$(sort -u "$tmp/numbers" | grep -c .)" = 4 ] ||
	fail "the same random numbers: $(cat "$tmp/numbers")"
if in_it n 'ls -d /sys/bus/acpi/drivers/vmgenid' >/dev/null 2>&1; then
	for n in n-1 n-2 late; do
		in_it $n 'dmesg | grep -q "crng reseeded due to virtual"' ||
			fail "$n: its random numbers are not seeded anew"
	done
	echo "ok: seeded anew"
fi
echo "ok: names, MACs, IDs, clocks, random numbers"
