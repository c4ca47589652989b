#!/bin/sh
# agent.sh HUSK DEMO TOOLS AGENT - the agent in a real guest
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
agent=$4
need_demo
[ -x "$agent" ] || skip "no agent $agent"
command -v mkfs.ext4 >/dev/null || skip "no mkfs.ext4"
# Not grep -q: gzip must not die of SIGPIPE.
[ "$(gzip -dc "$demo/initrd" | grep -ac vmw_vsock_virtio_transport.ko)" -gt 0 ] ||
	skip "a demo guest without vsock in $demo: tools/make-demo $demo"
mkdir -p "$tmp/add/bin" "$tmp/add/etc"
cp "$agent" "$tmp/add/bin/"
cp "$tools/sock" "$tmp/add/bin/"
f=$(find "$demo/root" -name vsock_loopback.ko 2>/dev/null | head -1)
[ -z "$f" ] || cp "$f" "$tmp/add/"
echo root:x:0:0:root:/:/bin/sh >"$tmp/add/etc/passwd"
truncate -s 64M "$tmp/disk"
mkfs.ext4 -q -O ^metadata_csum "$tmp/disk"

# The guest lives until its agent is told to end it.
cat <<'G' >"$tmp/script"
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	insmod /m/$m.ko
done
mkdir /d /dev/pts; mount -t devpts p /dev/pts; mount /dev/vda /d
date -s 2001-01-01 >/dev/null
husk-agent &
# By the loopback nobody in the guest reaches it.
insmod /vsock_loopback.ko; sleep 1
sock vsock:1:1023 closed
wait
G
guest --net none --disk "$tmp/disk" --vsock "$tmp/v" <"$tmp/script" &
machine=$!
trap 'kill $machine 2>/dev/null || :; rm -rf "$tmp"' EXIT

within 300 "no socket" [ -S "$tmp/v" ]
# in_it [OPTION...] - as a command
in_it() { timeout 120 "$husk" exec --vsock "$tmp/v" "$@"; }

[ "$(in_it --wait 200 -- uname -s </dev/null)" = Linux ] || fail "uname"
# shellcheck disable=SC2016 # for the other shell
[ "$(in_it -- sh -c 'echo $HOME; exit 9' </dev/null || echo $?)" = "/
9" ] || fail "status"
head -c 5000000 /dev/urandom >"$tmp/file"
in_it -- sh -c 'cat >/d/file' <"$tmp/file" || fail "to the guest"
in_it -- cat /d/file </dev/null | cmp - "$tmp/file" || fail "from the guest"
[ "$(in_it -t -- sh -c 'tty; stty size' </dev/null | tr -d '\r')" = "/dev/pts/0
24 80" ] || fail "terminal"
[ "$(in_it -- ls /no 2>&1 </dev/null || echo $?)" = "ls: /no: No such file or directory
1" ] || fail "standard error"
echo "ok: commands"

"$tools/ask" "$tmp/v" info time time slew hostname=clone >"$tmp/asked" ||
	{ cat "$tmp/asked"; fail ask; }
grep -q '^time -[1-9][0-9]* s off' "$tmp/asked" || fail "the clock was right"
grep -qx 'time 0 s off' "$tmp/asked" || fail "the clock is wrong"
now=$(in_it -- date +%s </dev/null)
[ $((now - $(date +%s))) -lt 60 ] && [ $((now - $(date +%s))) -gt -60 ] ||
	fail "the clock says $now"
[ "$(in_it -- hostname </dev/null)" = clone ] || fail "the name"
[ "$(in_it -- cat /etc/hostname </dev/null)" = clone ] || fail "the name's file"
echo "ok: info, clock, name"

# Space comes back; a frozen disk thaws by itself, and by the end of who froze it.
in_it -- sh -c 'dd if=/dev/urandom of=/d/big bs=1M count=30 2>/dev/null; sync; rm /d/big; sync' </dev/null
used=$(du -k "$tmp/disk" | cut -f1)
"$tools/ask" "$tmp/v" trim >"$tmp/asked" || { cat "$tmp/asked"; fail trim; }
[ $((used - $(du -k "$tmp/disk" | cut -f1))) -gt 25000 ] || fail "no space came back"
"$tools/ask" "$tmp/v" freeze=60 sleep=2 thaw >"$tmp/asked" &
p=$!
until grep -q 'freeze 1' "$tmp/asked"; do sleep 0.1; done
in_it -- sh -c 'echo x >/d/x; sync; echo written' </dev/null >"$tmp/wrote" &
w=$!
wait $p || fail freeze
grep -qx 'thaw 1' "$tmp/asked" || fail "not frozen"
wait $w; [ "$(cat "$tmp/wrote")" = written ] || fail "not thawed"
"$tools/ask" "$tmp/v" freeze=60 >/dev/null || fail freeze
in_it -- sh -c 'echo y >/d/y; sync' </dev/null || fail "not thawed by the end"
"$tools/ask" "$tmp/v" freeze=1 sleep=60 >/dev/null &
p=$!
in_it -- sh -c 'sleep 1; echo z >/d/z; sync' </dev/null || fail "not thawed by time"
kill $p
echo "ok: trim, freeze and thaw"

"$tools/ask" "$tmp/v" poweroff >/dev/null || fail poweroff
wait $machine || fail "the machine: $?"
tr -d '\r' <"$tmp/raw" >"$tmp/out"
if [ -n "$f" ]; then says closed; else says 'closed: refused'; fi
e2fsck -fn "$tmp/disk" >"$tmp/out" 2>&1 || fail "e2fsck"
echo "ok: power off"
