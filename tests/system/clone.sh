#!/bin/sh
# clone.sh HUSK DEMO TOOLS - named machines are saved, restored and cloned
#
# keeper in the guest says BAD when its memory or its disk is not what it was.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo

# Sockets have short paths only.
run=$(mktemp -d /tmp/husk.XXXXXX)
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$run"
names() { "$husk" list | sed -n '2,$s/ .*//p'; }
end() {
	for n in $(names); do
		"$husk" kill "$n" 2>/dev/null || :
	done
	rm -rf "$tmp" "$run"
}
trap end EXIT

log() { echo "$tmp/data/husk/$1/console.log"; }
# beats NAME N - until the guest has said so much
beats() {
	i=0
	until [ "$(grep -c '^beat' "$(log "$1")")" -ge "$2" ]; do
		i=$((i + 1))
		[ $i -lt 600 ] || fail "$1 is silent: $(tail -n 5 "$(log "$1")")"
		sleep 0.1
	done
	! grep BAD "$(log "$1")" || fail "$1"
}

mkdir -p "$tmp/add"
cp "$tools/keeper" "$tmp/add/"
cat >"$tmp/add/run.sh" <<'G'
[ -z "${light:-}" ] || { echo light >/dev/vda; exec /keeper 8; }
exec /keeper 8 /dev/vda 4
G
initrd "$tmp/add"
truncate -s 4M "$tmp/disk.img"
"$husk" create a --from "$tmp/disk.img" --overlay --kernel "$demo/vmlinuz" \
	--initrd "$tmp/initrd" --memory 128M --engine soft --net none \
	--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"'
"$husk" start a
beats a 3

# Time stands still.
"$husk" pause a
"$husk" list | grep -q '^a .* paused' || fail "not paused: $("$husk" list)"
sleep 0.3
n=$(grep -c '^beat' "$(log a)")
sleep 0.5
[ "$(grep -c '^beat' "$(log a)")" = "$n" ] || fail "a paused guest says more"
"$husk" resume a
beats a $((n + 2))

# A save of a machine that goes on, restored beside it, twice.
"$husk" save a "$tmp/file"
"$husk" inspect "$tmp/file" --check --json | grep -q '"engine": *"soft"' ||
	fail "inspect"
"$husk" restore "$tmp/file" --name b
"$husk" restore "$tmp/file" --name c --paused
beats b 3
"$husk" resume c
beats c 3
n=$(grep -c '^beat' "$(log a)")
beats a $((n + 2))

# The definition knows where its disk is: it starts with what was written.
"$husk" kill a
"$husk" start a
beats a 2
"$husk" kill a

# Saved with an end; going on uses the same disk, and only once.
"$husk" save b "$tmp/stopped" --stop --compress zstd
i=0
while "$husk" list | grep -q '^b .* running\|^b .* paused'; do
	i=$((i + 1))
	[ $i -lt 100 ] || fail "b has not ended"
	sleep 0.1
done
"$husk" restore "$tmp/stopped" --name b
beats b 3
# A guest on a busy host may take a while until it writes.
b_writes() {
	find "$tmp/data/husk/b" -name '*.qcow2' -newer "$tmp/stopped" | grep -q .
}
within 300 "b does not write" b_writes
"$husk" kill b
! "$husk" restore "$tmp/stopped" --name b 2>"$tmp/err" ||
	fail "a disk that has changed is taken"
grep -q 'has changed since' "$tmp/err" || fail "$(cat "$tmp/err")"
! "$husk" restore "$tmp/stopped" --name never 2>/dev/null ||
	fail "a disk that has changed is taken"
[ ! -e "$tmp/data/husk/never" ] || fail "a machine that never ran is there"
"$husk" restore "$tmp/stopped" --name b --force
"$husk" kill b

"$husk" clone c --count 3 | grep -qx c-3 || fail "no c-3"
for n in 1 2 3; do
	beats c-$n 2
done
# They are machines of their own, whatever becomes of the original.
kill -9 "$(head -n 1 "$tmp/data/husk/c/lock")"
for n in 1 2 3; do
	beats c-$n "$(($(grep -c '^beat' "$(log c-$n)") + 2))"
done
"$husk" list | grep -q '^c .* stopped' || fail "c is held: $("$husk" list)"
# A clone of a clone; one that is to be there already is not made.
"$husk" clone c-1 --paused | grep -qx c-1-1 || fail "no c-1-1"
"$husk" list | grep -q '^c-1-1 .* paused' || fail "$("$husk" list)"
"$husk" resume c-1-1
beats c-1-1 2
python3 - "$run/husk/c-2/control" <<'P' || fail "control socket"
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"command": "clone", "names": ["c-1", "c-2-1"]}\n')
said = [json.loads(line) for line in s.makefile()]
assert said[0] == {'ok': True}, said
said = {m['clone']: m for m in said[1:]}
assert said['c-2-1']['ok'] and not said['c-1']['ok'], said
assert 'exists already' in said['c-1']['error'], said
P
beats c-2-1 2

"$husk" kill c-1 c-2 c-3 c-1-1 c-2-1

# A clone needs nothing of the original's folder and leaves nothing there; what
# a disk has of its own is small, and copied.
o=$tmp/data/husk/o
mkdir -p "$o"
cp "$demo/vmlinuz" "$tmp/initrd" "$o/"
truncate -s 4M "$o/base.raw" "$o/more.raw"
"$husk" disk create "$o/disk.qcow2" --base base.raw >"$tmp/out"
cat >"$o/vm.json" <<J
{ "kernel": "vmlinuz", "initrd": "initrd", "memory": "128M", "engine": "soft",
  "cmdline": "console=ttyS0 quiet light=1 husk.run=\"sh /run.sh\"",
  "disks": [ { "path": "disk.qcow2" }, { "path": "more.raw", "readonly": true } ] }
J
"$husk" start o
beats o 3
files=$(ls "$o")
"$husk" clone o --count 2 --name p
[ "$(ls "$o")" = "$files" ] || fail "left there: $(ls "$o")"
"$husk" save o "$tmp/file"
"$husk" save o "$tmp/file"
"$husk" disk info "$o/disk.qcow2" | grep -q 'base  *base.raw' ||
	fail "a small disk is not copied"
"$husk" clone "$tmp/file" --name q
! "$husk" clone "$tmp/file" 2>"$tmp/err" || fail "clones without a name"
beats o 5
for n in p-1 p-2 q-1; do
	beats $n 3
done
"$husk" kill o p-1 p-2 q-1
# What a saved machine stands on is not taken away by mistake.
! "$husk" delete o 2>"$tmp/err" || fail "deleted under a saved machine"
grep -q "$tmp/file goes on from its disks" "$tmp/err" || fail "$(cat "$tmp/err")"
[ "$(wc -l <"$o/saves")" = 1 ] || fail "saves: $(cat "$o/saves")"
"$husk" restore "$tmp/file" --name r
beats r 3
"$husk" kill r
rm "$tmp/file"
"$husk" delete o
for n in p-1 q-1; do
	! grep "$o" "$tmp/data/husk/$n/vm.json" || fail "$n needs what is gone"
	"$husk" start $n
	beats $n 2
	"$husk" kill $n
done

# A clone of a machine with a network is another one on it.
truncate -s 4M "$tmp/disk2.img"
i=0
until "$husk" create n --from "$tmp/disk2.img" --overlay --kernel \
	"$demo/vmlinuz" --initrd "$tmp/initrd" --memory 128M --engine soft \
	--net shared --forward "$((20000 + ($$ + i) % 10000)):22" --cmdline \
	'console=ttyS0 quiet husk.run="sh /run.sh"' &&
	"$husk" start n 2>"$tmp/err"; do
	"$husk" delete n 2>/dev/null || :
	i=$((i + 1))
	[ $i -lt 20 ] || fail "no port is free: $(cat "$tmp/err")"
done
beats n 2
"$husk" clone n --count 2 2>"$tmp/err"
grep -q 'not reached by the 1 port' "$tmp/err" || fail "$(cat "$tmp/err")"
beats n-1 2
beats n-2 2
mac() { grep -o '"mac": *"[^"]*"' "$tmp/data/husk/$1/vm.json" || echo none; }
[ "$(mac n-1)" != none ] && [ "$(mac n-1)" != "$(mac n-2)" ] &&
	[ "$(mac n-1)" != "$(mac n)" ] || fail "MACs $(mac n-1) $(mac n-2)"
! grep forwards "$tmp/data/husk/n-1/vm.json" || fail "a clone has ports"
# The port is the original's: what is restored as another cannot have it.
"$husk" save n "$tmp/n"
! "$husk" restore "$tmp/n" --name m 2>"$tmp/err" || fail "two have one port"
grep -q 'in use' "$tmp/err" || fail "$(cat "$tmp/err")"
[ ! -e "$tmp/data/husk/m" ] || fail "a machine that never ran is there"
