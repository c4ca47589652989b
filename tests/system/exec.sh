#!/bin/sh
# exec.sh HUSK DEMO TOOLS AGENT - commands run by the agent, here and in a guest
#
# The agent behind a Unix socket of this host does what it does in a guest.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
agent=$4
case $agent in /*) ;; *) agent=$PWD/$agent ;; esac
[ -x "$agent" ] || skip "no agent $agent"
ask=$tools/ask

"$agent" --unix "$tmp/a" &
server=$!
trap 'kill $server 2>/dev/null || :; rm -rf "$tmp"' EXIT
within 100 "no agent" [ -S "$tmp/a" ]

# in_it [OPTION...] - husk exec; its output in $tmp/out, its status in $status
in_it() {
	status=0
	timeout 60 "$husk" exec --vsock "$tmp/a" "$@" >"$tmp/out" \
		2>"$tmp/err" || status=$?
}
# is STATUS OUTPUT - what the last one gave
is() {
	[ "$status" = "$1" ] || fail "status $status, not $1: $(cat "$tmp/err")"
	[ "$(cat "$tmp/out")" = "$2" ] || fail "not \"$2\""
}

# -- commands --------------------------------------------------------------------

in_it -- echo hello 'two  words' </dev/null
is 0 'hello two  words'
in_it -- sh -c 'echo out; echo err >&2; exit 7' </dev/null
is 7 out
[ "$(cat "$tmp/err")" = err ] || fail "standard error"
# shellcheck disable=SC2016 # for the other shell
in_it -- sh -c 'kill -9 $$' </dev/null
is 137 ''
in_it -- no-such-command </dev/null
is 127 ''
in_it -- /etc/passwd </dev/null
is 126 ''
in_it -w /nowhere -- true </dev/null
is 125 ''
in_it -u nobody-knows -- true </dev/null
is 125 ''
# shellcheck disable=SC2016
FROM_HERE=x in_it -w /etc -e A=b -e FROM_HERE -e NOT_HERE -- \
	sh -c 'pwd; echo "$A$FROM_HERE${NOT_HERE-no}"; env | grep -c PATH=' </dev/null
is 0 "/etc
bxno
1"
grep -q '^nobody:.*:65534:' /etc/passwd && [ "$(id -u)" = 0 ] && {
	in_it -u nobody -- id -un </dev/null
	is 0 nobody
}
in_it -n -- cat <"$0"
is 0 ''
in_it -- "$(head -c 70000 /dev/zero | tr '\0' x)" </dev/null
is 125 ''
echo "ok: status, streams, environment, folder, user"

# -- streams ---------------------------------------------------------------------

head -c 20000000 /dev/urandom >"$tmp/file"
sum=$(sha256sum <"$tmp/file")
in_it -- sha256sum <"$tmp/file"
is 0 "$sum"
in_it -- cat <"$tmp/file"
cmp "$tmp/file" "$tmp/out" || fail "bytes changed"
# What is there before the end, though others hold the stream.
in_it -- sh -c 'sleep 5 & seq 1 20000; exit 3' </dev/null
[ "$status" = 3 ] && [ "$(tail -1 "$tmp/out")" = 20000 ] || fail "the rest of output"
# Nobody reads what we give, or what it gives.
yes | { in_it -- true; is 0 ''; }
timeout 60 "$husk" exec --vsock "$tmp/a" -- yes </dev/null 2>"$tmp/err" | head -1 >"$tmp/out"
[ "$(cat "$tmp/out")" = y ] || fail "no y"
# Slow readers: output is kept back, and a signal gets through.
for i in 1 2 3 4 5 6 7 8; do
	timeout 60 "$husk" exec --vsock "$tmp/a" -- sh -c "sleep 0.$i; cat; echo $i" \
		<"$tmp/file" >"$tmp/out$i" 2>&1 &
	eval "p$i=\$!"
done
for i in 1 2 3 4 5 6 7 8; do
	eval "wait \$p$i" || fail "at once: $i"
	head -c 20000000 "$tmp/out$i" | cmp - "$tmp/file" || fail "at once: $i"
	[ "$(tail -c 2 "$tmp/out$i")" = "$i" ] || fail "at once: $i"
done
echo "ok: large and endless streams, eight at once"

# -- signals and terminals -------------------------------------------------------

"$husk" exec --vsock "$tmp/a" -- sh -c 'trap "echo got it; exit 5" TERM
	echo ready; sleep 60 & wait' </dev/null >"$tmp/out" 2>&1 &
p=$!
until grep -q ready "$tmp/out"; do sleep 0.1; done
kill -TERM $p
status=0; wait $p || status=$?
is 5 "ready
got it"
# The command ends with who asked for it.
"$husk" exec --vsock "$tmp/a" -- sh -c 'echo $$; exec sleep 57' \
	</dev/null >"$tmp/out" 2>&1 &
p=$!
until [ -s "$tmp/out" ]; do sleep 0.1; done
kill -KILL $p; wait $p 2>/dev/null || true
i=0
while kill -0 "$(cat "$tmp/out")" 2>/dev/null; do
	i=$((i + 1)); [ $i -lt 100 ] || fail "it lives on"; sleep 0.1
done
in_it -t -- sh -c 'test -t 0 && test -t 1 && stty size; exit 4' </dev/null
[ "$status" = 4 ] || fail "with a terminal: status $status"
[ "$(tr -d '\r' <"$tmp/out")" = '24 80' ] || fail "no terminal"
echo "ok: signals, terminals"

# -- other requests, and no agent ------------------------------------------------

"$ask" "$tmp/a" info sync >"$tmp/out" || fail ask
says "hostname=$(hostname)"
says "boot_id=$(cat /proc/sys/kernel/random/boot_id)"
"$ask" "$tmp/a" hostname=-no- >"$tmp/out" && fail "a bad host name"
# Frames that are none: an unknown one, lengths, a command without its end.
"$ask" "$tmp/a" raw=0000000063000000 >"$tmp/out" || true
says 'raw: type 65'
"$ask" "$tmp/a" raw=ffffffff02000000 >"$tmp/out" && fail "a length"
says 'raw: end'
"$ask" "$tmp/a" raw=0000000002010000 >"$tmp/out" && fail "a header"
"$ask" "$tmp/a" raw=000000000300000000 >"$tmp/out" || true
says 'raw: type 65'
"$ask" "$tmp/a" raw=1400000003000000000000000500000000000000000000000000000a >"$tmp/out" || true
says 'raw: type 65'
mkdir -p "$tmp/husk/box"
ln -s "$tmp/a" "$tmp/husk/box/vsock"
for sep in '' --; do
	# shellcheck disable=SC2086 # a word or none
	[ "$(XDG_RUNTIME_DIR=$tmp "$husk" exec box $sep echo by name </dev/null)" = 'by name' ] ||
		fail "by name"
done
kill $server; wait $server 2>/dev/null || true
in_it --wait 0 -- true </dev/null
is 125 ''
status=0
XDG_RUNTIME_DIR=$tmp "$husk" exec nobody -- true >"$tmp/out" 2>&1 || status=$?
[ $status = 125 ] || fail "status $status"
grep -q 'no machine of this name' "$tmp/out" || fail "no reason"
for o in '' --vsock '--bad x' '-w' '../x true'; do
	status=0
	# shellcheck disable=SC2086 # words
	"$husk" exec $o </dev/null >"$tmp/out" 2>&1 || status=$?
	[ $status = 125 ] && [ "$(wc -l <"$tmp/out")" = 1 ] || fail "exec $o: $status"
done
echo "ok: requests, bad frames, no agent"
