#!/bin/sh
# time.sh HUSK DEMO TOOLS [SECONDS] - the guest's clock, and what idling costs
#
# The least delay of ten lines from the guest's clock_gettime() to the host's
# stands for the difference of the clocks, at the start and at the end.  The
# short run reports; 60 s and more also judge: 50 ms, 2 % of a core.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
[ -x "$tools/drive" ] || skip "the helper drive was not built"
seconds=${4:-10}
mkdir "$tmp/add"
cp "$tools/drive" "$tmp/add/"
cat >"$tmp/add/run.sh" <<G
/drive clock 10
echo IDLE
sleep $seconds
echo BUSY
/drive clock 10
G
initrd "$tmp/add"
mkfifo "$tmp/fifo"
"$tools/drive" stamp <"$tmp/fifo" >"$tmp/out" &
"$husk" run --engine soft --kernel "$demo/vmlinuz" --initrd "$tmp/initrd" \
	--timeout $((300 + seconds)) \
	--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"' \
	</dev/null >"$tmp/fifo" 2>&1 &
pid=$!
# cpu - ticks of the host's processors that the machine has used
cpu() { awk '{ print $14 + $15 }' "/proc/$pid/stat"; }
while ! grep -qs ' IDLE' "$tmp/out"; do
	kill -0 $pid 2>/dev/null || fail "it ended early"
	sleep 0.2
done
sleep 1
before=$(cpu) from=$(date +%s%N)
sleep $((seconds - 2))
after=$(cpu) to=$(date +%s%N)
! grep -q ' BUSY' "$tmp/out" || fail "its sleep was too short"
wait $pid || fail "status $?"
wait
grep -q ' BUSY' "$tmp/out" || fail "its sleep did not end"
awk -v late=0 -v ticks=$((after - before)) -v ns=$((to - from)) -v seconds="$seconds" \
	-v hz="$(getconf CLK_TCK)" '
$2 ~ /^IDLE/ { late = 1 }
$2 == "clock" {
	d = ($1 - $3) / 1e6
	if (!(late in n) || d < least[late])
		least[late] = d
	n[late]++
}
END {
	if (n[0] != 10 || n[1] != 10) {
		print "FAIL: clock lines are missing"
		exit 1
	}
	drift = least[1] - least[0]
	idle = 100 * ticks / hz / (ns / 1e9)
	printf "clock: %+.1f ms after %d s; idle: %.2f %% of a core\n", \
		drift, seconds, idle
	if (seconds >= 60 && (drift > 50 || drift < -50)) {
		print "FAIL: the clock does not keep pace"
		exit 1
	}
	if (seconds >= 60 && idle >= 2) {
		print "FAIL: an idle guest is not idle"
		exit 1
	}
	# Whatever the load of the host, this much would be a fault.
	exit drift > 1000 || drift < -1000 || idle > 20
}' "$tmp/out" || fail "see above"
