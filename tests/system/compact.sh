#!/bin/sh
# compact.sh HUSK DEMO TOOLS AGENT - a machine's disks give space back, by name
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
agent=$4
need_demo
[ -x "$agent" ] || skip "no agent $agent"
command -v mkfs.ext4 >/dev/null || skip "no mkfs.ext4"
[ "$(gzip -dc "$demo/initrd" | grep -ac vmw_vsock_virtio_transport.ko)" -gt 0 ] ||
	skip "a demo guest without vsock in $demo: tools/make-demo $demo"
mkdir -m 700 "$tmp/run"
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$tmp/run" XDG_CACHE_HOME="$tmp/cache"
trap '"$husk" kill box >/dev/null 2>&1 || :; rm -rf "$tmp"' EXIT

mkdir -p "$tmp/add/bin" "$tmp/add/etc" "$tmp/data/husk/box"
cp "$agent" "$tmp/add/bin/"
echo root:x:0:0:root:/:/bin/sh >"$tmp/add/etc/passwd"
cat >"$tmp/add/run.sh" <<'G'
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	insmod /m/$m.ko
done
for d in vda vdb; do mkdir /$d; mount /dev/$d /$d; done
case $(cat /proc/cmdline) in *agent*) husk-agent & ;; esac
for d in vda vdb; do
	dd if=/dev/urandom of=/$d/big bs=1M count=40 2>/dev/null
	sync; rm /$d/big
done
echo READY
sleep 1000
G
initrd "$tmp/add"
box=$tmp/data/husk/box
truncate -s 96M "$box/a.raw"
mkfs.ext4 -q "$box/a.raw"
"$husk" disk convert "$box/a.raw" "$box/b.qcow2"
define() {
	cat >"$box/vm.json" <<J
{ "kernel": "$(realpath "$demo")/vmlinuz", "initrd": "$tmp/initrd",
  "memory": "256M", "engine": "soft",
  "cmdline": "console=ttyS0 quiet $1 husk.run=\"sh /run.sh\"",
  "disks": [ { "path": "a.raw" }, { "path": "b.qcow2" } ] }
J
}
# start WORD - the machine runs and has filled and emptied its disks
start() {
	define "$1"
	rm -f "$box/console.log"
	"$husk" start box >"$tmp/out" 2>&1 || fail "start"
	within 600 "not ready" grep -aqs READY "$box/console.log"
}
ended() {
	"$husk" kill box >"$tmp/out" 2>&1 || fail "kill"
	until "$husk" list --json | grep -q '"stopped"'; do sleep 0.1; done
}
used() { du -k "$1" | cut -f1; }
# gave FILE BEFORE - 30 MiB or more
gave() {
	[ $(($2 - $(used "$1"))) -gt 30000 ] ||
		fail "$1: used $2 KiB, now $(used "$1")"
}

start agent
a=$(used "$box/a.raw") b=$(used "$box/b.qcow2")
"$husk" disk compact box >"$tmp/out" 2>&1 || fail "compact"
grep -q 'a.raw: used .* now ' "$tmp/out" || fail "it does not say what it did"
gave "$box/a.raw" "$a"
gave "$box/b.qcow2" "$b"
ended
"$husk" disk check "$box/b.qcow2" >"$tmp/out" || [ $? = 3 ] || fail "check"
echo "ok: a machine that runs"

start alone
if "$husk" disk compact box >"$tmp/out" 2>&1; then fail "without an agent?"; fi
grep -q 'no agent answers in it: run fstrim -a' "$tmp/out" ||
	fail "it does not say why"
ended
"$husk" disk compact box >"$tmp/out" 2>&1 || fail "compact at rest"
[ "$(grep -c ': used ' "$tmp/out")" = 2 ] || fail "not both disks"
if "$husk" disk compact no-such >"$tmp/out" 2>&1; then fail "no such thing"; fi
echo "ok: without an agent, and at rest"
