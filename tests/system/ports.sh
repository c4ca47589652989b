#!/bin/sh
# ports.sh HUSK DEMO [TOOLS] - ports of the virtio console, and slow readers
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v python3 >/dev/null || skip "no python3"

# What the guest needs to find a port by its name.
mkdir "$tmp/add"
cat >"$tmp/add/port" <<'P'
for n in 1 2 3 4 5 6 7 8 9; do
	for p in /sys/class/virtio-ports/*; do
		[ "$(cat "$p/name" 2>/dev/null)" != "$1" ] || { echo "/dev/${p##*/}"; exit; }
	done
	sleep 1
done
echo /dev/null/nothing
P

# One port to a socket, both ways; one to a file; hvc0 to a file, hvc1 to a pty.
cat >"$tmp/client.py" <<'C'
import hashlib, socket, sys, time
c = socket.socket(socket.AF_UNIX)
for i in range(3000):
    try: c.connect(sys.argv[1]); break
    except OSError: time.sleep(0.1)
c.sendall(bytes(range(256)) * 4096)
h, n = hashlib.sha256(), 0
last = b"" # of two writes, which may come one by one
while d := c.recv(65536):
    h.update(d); n += len(d)
    last = (last + d)[-5:]
    if last == b"\nbye\n": break
c.sendall(b"heard\n")
print(n, h.hexdigest())
C
python3 "$tmp/client.py" "$tmp/one" >"$tmp/heard" &
client=$!
guest --device "virtio-serial,socket=$tmp/one,listen,name=org.husk.one" \
	--device "virtio-serial,name=log,logFilePath=$tmp/log" \
	--console "$tmp/hvc0" --device virtio-serial,pty <<'G' || fail "status $?"
one=$(sh /port org.husk.one) log=$(sh /port log)
exec 5<>$one
head -c 1048576 <&5 | sha256sum | sed 's/^/got /'
head -c 3000000 /dev/urandom >/random
{ cat /random; echo; echo bye; } >&5
read -r answer <&5 # what is on its way at power-off is lost
echo "answer $answer"
{ cat /random; echo; echo bye; } | sha256sum | sed 's/^/sent /'
echo 'a line' >$log
echo 'to the first console' >/dev/hvc0
echo 'to the second' >/dev/hvc1
stty size </dev/hvc0
G
wait $client || fail "the client: $?"
sum=$(python3 -c 'import hashlib
print(hashlib.sha256(bytes(range(256)) * 4096).hexdigest())')
says "got $sum  -"
says "answer heard"
says "sent $(cut -d' ' -f2 <"$tmp/heard")  -"
[ "$(cut -d' ' -f1 <"$tmp/heard")" = 3000005 ] || fail "heard $(cat "$tmp/heard")"
grep -qx 'a line' "$tmp/log" || fail "the log: $(cat "$tmp/log")"
grep -q 'to the first console' "$tmp/hvc0" || fail "hvc0: $(cat "$tmp/hvc0")"
# Linux before 2025 takes one for the other.
grep -qx '25 80\|80 25' "$tmp/out" || fail "no size of the window"
grep -q '^husk: a port of the guest is on /dev/pts/' "$tmp/out" ||
	fail "no name of a terminal"
[ ! -e "$tmp/one" ] || fail "the socket was left"
echo "ok: named ports, a socket both ways, a file, consoles"

# A reader of the serial port and one of a socket that do not read: their
# writers wait, and nothing else does.  They are read when all else is done.
cat >"$tmp/slow.py" <<'C'
import os, socket, sys, time
c = socket.socket(socket.AF_UNIX)
for i in range(3000):
    try: c.connect(sys.argv[1]); break
    except OSError: time.sleep(0.1)
for i in range(3000):
    if os.path.exists(sys.argv[2]) and "alive 5" in open(sys.argv[2]).read(): break
    time.sleep(0.1)
else: sys.exit("not alive")
open(sys.argv[3], "w").close()
n = 0
while d := c.recv(65536): n += len(d)
print(n)
C
python3 "$tmp/slow.py" "$tmp/one" "$tmp/log" "$tmp/go" >"$tmp/heard" 2>&1 &
client=$!
rm -f "$tmp/log"
mkfifo "$tmp/out.fifo"
cat >"$tmp/add/run.sh" <<'G'
one=$(sh /port one) log=$(sh /port log)
i=0; while [ $i -lt 40 ]; do sleep 1; i=$((i+1)); echo wait >$one && break; done 2>/dev/null
head -c 2000000 /dev/zero | tr '\0' x >$one &
socket=$!
seq 1 40000 >/dev/ttyS0 &
serial=$!
for i in 1 2 3 4 5; do sleep 1; echo "alive $i" >$log; done
wait $socket $serial
echo "all is written"
G
initrd "$tmp/add"
"$husk" run --engine soft --kernel "$demo/vmlinuz" --initrd "$tmp/initrd" \
	--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"' --timeout 300 \
	--device "virtio-serial,socket=$tmp/one,listen,name=one" \
	--device "virtio-serial,name=log,logFilePath=$tmp/log" \
	</dev/null >"$tmp/out.fifo" 2>"$tmp/err" &
machine=$!
{
	i=0
	while [ ! -e "$tmp/go" ] && [ $i -lt 3000 ]; do
		sleep 0.1; i=$((i + 1))
	done
	tr -d '\r'
} <"$tmp/out.fifo" >"$tmp/out"
wait $machine || fail "slow readers: status $?, $(cat "$tmp/err")"
wait $client || fail "the slow client: $(cat "$tmp/heard")"
says 'all is written'
[ "$(grep -cx '[0-9]\{1,\}' "$tmp/out")" = 40000 ] ||
	fail "of 40000 lines $(grep -cx '[0-9]\{1,\}' "$tmp/out") came"
[ "$(cat "$tmp/heard")" -ge 2000000 ] || fail "the slow client: $(cat "$tmp/heard")"
echo "ok: who does not read keeps nobody else waiting, and gets all"
