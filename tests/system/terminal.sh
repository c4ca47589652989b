#!/bin/sh
# terminal.sh HUSK DEMO TOOLS - the command's ends: terminal, signals, pipes
set -u
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
drive=$tools/drive
[ -x "$drive" ] || skip "the helper drive was not built"
bad=0
kernel="--engine soft --kernel $demo/vmlinuz --initrd $demo/initrd"
quiet='console=ttyS0 quiet'
loud='console=ttyS0 earlyprintk=ttyS0'
# For what must be ended from outside, however fast the machine is.
endless='rdinit=/bin/busybox -- sleep 1000'

wrong() { echo "FAIL: $1"; tail -25 "$tmp/out"; bad=$((bad + 1)); }
# A kernel that says something early needs no boot to be looked at.
# on_pty NAME LAST-LINE STEP... -- ARG...
on_pty() {
	name=$1 last=$2
	shift 2
	s=0
	timeout 280 "$drive" pty "$@" >"$tmp/raw" 2>&1 || s=$?
	tr -d '\r' <"$tmp/raw" >"$tmp/out"
	if [ $s = 0 ] && [ "$(tail -1 "$tmp/out")" = "$last" ] &&
		! grep -q 'drive: \(failed\|terminal\|still\)' "$tmp/out"; then
		echo "ok: $name"
	else
		wrong "$name"
	fi
}

# until_then WORDS FILE PID - waits for WORDS in FILE, then ends PID
until_then() {
	n=0
	while ! grep -q "$1" "$2" 2>/dev/null; do
		n=$((n + 1))
		[ $n -lt 450 ] && kill -0 "$3" 2>/dev/null ||
			{ wrong "no \"$1\""; break; }
		sleep 0.2
	done
	kill "$3" 2>/dev/null
	wait "$3"
}

# shellcheck disable=SC2086 # $kernel is words
{
on_pty 'Ctrl-A x' 'drive: exit 0' '+Linux version' '=^ax' -- \
	"$husk" run $kernel --cmdline "$loud"
on_pty 'SIGTERM' 'drive: signal 15' '+Linux version' KILL:15 -- \
	"$husk" run $kernel --cmdline "$loud"
on_pty 'SIGINT' 'drive: signal 2' '+Linux version' KILL:2 -- \
	"$husk" run $kernel --cmdline "$loud"
on_pty 'SIGABRT restores the terminal' 'drive: signal 6' '+Linux version' \
	KILL:6 -- "$husk" run $kernel --cmdline "$loud"
on_pty 'the terminal goes' 'drive: signal 1' '+Linux version' HANGUP -- \
	"$husk" run $kernel --cmdline "$loud"
on_pty 'the time is up' 'drive: exit 124' -- \
	"$husk" run $kernel --cmdline "$loud $endless" --timeout 2
on_pty 'Ctrl-C ends it where the terminal is not the console' \
	'drive: signal 2' '+engine' '=^c' -- sh -c 'echo engine; exec "$@"' sh \
	"$husk" run $kernel --cmdline "$loud" --serial none
on_pty 'bad input on a terminal' 'drive: exit 2' -- \
	"$husk" run $kernel --disk nowhere
# A shell on the terminal: Ctrl-C, Ctrl-A and typing ahead are the guest's.
# shellcheck disable=SC2016 # for the guest's shell to expand
on_pty 'a shell' 'drive: exit 0' '=echo typed $((40+2)) ahead^j' \
	'+typed 42 ahead' '+# ' "=echo sle''eping; sleep 1000^j" '+sleeping' \
	'=^c' '+# ' '=echo back $((1+1))^j' '+back 2' '+# ' \
	"=stty -icanon -echo; echo rea''dy; dd bs=1 count=1 2>/dev/null | od -An -tx1; stty sane; echo o''k^j" \
	'+ready' '=^a^a' '+01' '+ok' '+# ' '=poweroff -f^j' -- \
	"$husk" run $kernel --cmdline "$quiet" --timeout 250

# Without a terminal.  A guest that does not read and a reader who does not
# read must not keep the time from running out.
s=0
head -c 3000000 /dev/zero | timeout -s KILL 60 \
	"$husk" run $kernel --timeout 3 \
	--cmdline "$loud $endless" >"$tmp/out" 2>&1 || s=$?
[ $s = 124 ] && grep -q 'husk: timeout after 3 s' "$tmp/out" ||
	wrong "a flood of input: status $s"
mkfifo "$tmp/fifo"
# shellcheck disable=SC2217 # it shall not read
sleep 60 <"$tmp/fifo" &
sleeper=$!
s=0
timeout -s KILL 60 "$husk" run $kernel --timeout 4 \
	--cmdline "$loud ignore_loglevel initcall_debug $endless" \
	</dev/null >"$tmp/fifo" 2>"$tmp/out" || s=$?
[ $s = 124 ] && grep -q 'husk: timeout after 4 s' "$tmp/out" ||
	wrong "a reader who does not read: status $s"
kill $sleeper
wait $sleeper 2>/dev/null
{ timeout -s KILL 60 "$husk" run $kernel --cmdline "$loud" </dev/null \
	2>"$tmp/err"
  echo $? >"$tmp/status"; } | head -1 >"$tmp/out"
[ "$(cat "$tmp/status")" = 1 ] && grep -q 'nobody reads it' "$tmp/err" ||
	wrong "a reader who goes: status $(cat "$tmp/status")"
s=0
timeout -s KILL 60 "$husk" run $kernel --cmdline "$loud $endless" \
	--timeout 3 <&- >"$tmp/out" 2>&1 || s=$?
[ $s = 124 ] || wrong "input closed: status $s"
timeout 100 "$husk" run $kernel --cmdline "$loud" >&- </dev/null \
	2>"$tmp/out" &
until_then 'standard output: .*further output is lost' "$tmp/out" $!

# Where the serial port may go.
timeout 100 "$husk" run $kernel --cmdline "$loud" --serial "$tmp/serial" \
	</dev/null >"$tmp/out" 2>&1 &
until_then 'Linux version' "$tmp/serial" $!
! grep -q 'Linux version' "$tmp/out" || wrong "--serial FILE: also elsewhere"
timeout 100 "$husk" run $kernel --cmdline "$loud" --serial pty \
	</dev/null >"$tmp/out" 2>&1 &
pid=$!
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	pty=$(sed -n 's/^husk: serial port on //p' "$tmp/out")
	[ -z "$pty" ] || break
	sleep 0.3
done
if [ -c "$pty" ]; then
	timeout 90 cat "$pty" >"$tmp/lines" 2>/dev/null &
	cat=$!
	until_then 'Linux version' "$tmp/lines" $pid
	kill $cat 2>/dev/null
	wait $cat
else
	wrong "--serial pty: no terminal named"
	kill $pid
fi
}
[ $bad = 0 ] || exit 1
echo "ok"
