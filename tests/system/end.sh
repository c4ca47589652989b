#!/bin/sh
# end.sh HUSK DEMO [TOOLS] - how a guest ends: panic, reboot, triple fault
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
kernel="--engine soft --kernel $demo/vmlinuz --initrd $demo/initrd"

# ends STATUS WORDS ARG... - boots with WORDS on the command line
ends() {
	want=$1 line=$2
	shift 2
	s=0
	# shellcheck disable=SC2086
	timeout 250 "$husk" run $kernel --cmdline "console=ttyS0 $line" "$@" \
		</dev/null >"$tmp/out" 2>&1 || s=$?
	[ $s = "$want" ] || fail "$line: status $s, not $want"
}

# A panic: the kernel resets at once, or hangs until the time is up.
ends 0 'rdinit=/nowhere root=/dev/nothing panic=-1' --timeout 200
grep -q 'Kernel panic' "$tmp/out" || fail "no panic"
echo "ok: panic and reset"

# With a driver for pvpanic it says so, and that is the end; or it goes on.
for policy in stop go-on; do
	s=0
	words=panic=-1
	guest --panic $policy <<'G' || s=$?
[ -e /m/pvpanic-mmio.ko ] || echo no driver
echo c >/proc/sysrq-trigger
sleep 100
G
	if grep -qx 'no driver' "$tmp/out"; then
		echo "an old demo guest in $demo: pvpanic is not tried"
		break
	fi
	case $policy$s in
	stop3) grep -q '^husk: the guest died: its kernel has panicked' \
		"$tmp/out" || fail "pvpanic: no reason" ;;
	go-on0) ! grep -q '^husk: the guest died' "$tmp/out" ||
		fail "pvpanic: dead and alive" ;;
	*) fail "pvpanic, $policy: status $s" ;;
	esac
	grep -q 'Kernel panic' "$tmp/out" || fail "pvpanic: no panic"
done
words=
echo "ok: a panic that is told"

# Reset again and again: the second machine ends by the time.
mkdir -p "$tmp/add"
head -c 512 /dev/zero >"$tmp/disk"
guest --reboot again --disk "$tmp/disk" <<'G' || fail "reboot again: status $?"
if [ "$(head -c 5 /dev/vda)" = again ]; then
	echo "the second time"
	poweroff -f
fi
echo again >/dev/vda
sync
echo "the first time"
reboot -f
sleep 100
G
grep -q '^the first time' "$tmp/out" && says 'the second time' ||
	fail "--reboot again"
echo "ok: reboot again"

# A triple fault, by a reboot with an empty IDT; no reset register is used.
s=0
words=reboot=t
guest <<'G' || s=$?
reboot -f
sleep 100
G
[ $s = 3 ] || fail "triple fault: status $s"
for w in '^husk: the guest died: triple fault on CPU 0' '^rip ' '^cr0 ' \
	'^last exit: '; do
	grep -q "$w" "$tmp/out" || fail "triple fault: no $w"
done
echo "ok: triple fault: $(grep '^last exit' "$tmp/out")"
