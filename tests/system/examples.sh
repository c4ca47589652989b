#!/bin/sh
# examples.sh HELLO BOOT DEMO EVENTS SANDBOX - the examples do what they say
set -eu
hello=$1 boot=$2 demo=$3 events=$4 sandbox=$5
said=$("$hello" soft)
[ "$said" = "soft: Hi" ] || { echo "hello: $said"; exit 1; }
top=$(dirname "$0")/../..
[ "$(wc -l <"$top/examples/hello.c")" -le 60 ] || { echo "hello.c has become long"; exit 1; }
[ "$(wc -l <"$top/examples/boot.c")" -le 100 ] || { echo "boot.c has become long"; exit 1; }
[ "$(wc -l <"$top/examples/events.c")" -le 100 ] || { echo "events.c has become long"; exit 1; }
[ -e "$demo/vmlinuz" ] || { echo "SKIP: no demo kernel"; exit 77; }
said=$("$boot" "$demo/vmlinuz" "$demo/initrd" 240)
echo "$said" | grep -q 'Linux.*x86_64 GNU/Linux' || { echo "$said"; exit 1; }
# The power button does nothing to a guest without its driver's user: it is cut.
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/vm.json" <<J
{ "memory": "256M", "engine": "soft", "kernel": "$demo/vmlinuz",
  "initrd": "$demo/initrd", "devices": [ "virtio-rng" ],
  "cmdline": "console=ttyS0 quiet husk.run=\"read -r l; echo got \$l\"" }
J
while sleep 1 && echo typed; do :; done 2>/dev/null | "$events" "$dir/vm.json" 290 >"$dir/out" 2>&1 ||
	{ cat "$dir/out"; exit 1; }
grep -aq 'got typed' "$dir/out" || { cat "$dir/out"; exit 1; }
grep -aq 'com1 (uart16550)' "$dir/out" || { cat "$dir/out"; exit 1; }
# Two machines that go on from one that was booted once.
# shellcheck disable=SC2016 # for the guest
"$sandbox" "$demo/vmlinuz" "$demo/initrd" 'echo $((6*7)); touch /mine' \
	'echo $((7*8)); sleep 1; ls -d /mine' >"$dir/out" 2>&1 || { cat "$dir/out"; exit 1; }
tr -d '\r' <"$dir/out" | grep -E '^(42|56|ls: /mine.*)$' | sort | tr '\n' ' ' |
	grep -q '^42 56 ls: /mine' || { cat "$dir/out"; exit 1; }
