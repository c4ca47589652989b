#!/bin/sh
# save.sh HUSK DEMO TOOLS [ROUNDS|kvm] - a guest is paused, saved and restored
#
# With kvm: from there to the soft engine and back.
#
# keeper in the guest checks its memory, a disk and its clocks all the time, and
# keep does this to it; see the heads of both.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
rounds=${4:-0}

mkdir -p "$tmp/add"
cp "$tools/keeper" "$tmp/add/"
echo 'exec /keeper 16 /dev/vda 8' >"$tmp/add/run.sh"
initrd "$tmp/add"
truncate -s 8M "$tmp/disk"

keep() {
	"$tools/keep" --file "$tmp/file" --memory 192 --net null \
		--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"' "$@" \
		>"$tmp/out" 2>&1 || fail "keep $*"
	grep '^keep: ' "$tmp/out"
}

if [ "$rounds" = kvm ]; then
	"$husk" doctor | grep -q '^kvm *yes' || skip "no engine kvm here"
	keep --engine kvm --cpus 2 --disk "$tmp/disk" "$demo/vmlinuz" \
		"$tmp/initrd" pause:20 beat:2 drift:50 move:kvm move:soft \
		move:kvm back:kvm live:1 drift:50
elif [ "$rounds" = 0 ]; then
	keep --cpus 2 --disk "$tmp/disk" "$demo/vmlinuz" "$tmp/initrd" \
		pause:50 beat:1 idle:300 move:soft,interp live:2 back:soft \
		packed:soft drift:50
else
	keep --cpus 2 --disk "$tmp/disk" "$demo/vmlinuz" "$tmp/initrd" \
		"$rounds:soft" drift:50 pause:1000 beat:5 drift:50 \
		10:soft,interp
	# Long enough for the watchdogs of Linux; and a clock that stands still.
	keep --gap 60 --cpus 2 --disk "$tmp/disk" "$demo/vmlinuz" \
		"$tmp/initrd" idle:30000 beat:5 drift:50 move:soft beat:5
	keep --gap 0 --cpus 2 --disk "$tmp/disk" "$demo/vmlinuz" \
		"$tmp/initrd" pause:50 idle:500 move:soft drift:50
fi
