#!/bin/sh
# cloud.sh HUSK DEMO [TOOLS] - a Debian that cloud-init sets up, and its agent
#
# Takes minutes; HUSK_TEST_CACHE names a folder where the image is kept.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
for c in mmdebstrap mke2fs python3 ssh ssh-keygen; do
	command -v $c >/dev/null || skip "no $c"
done
mkdir -m 700 "$tmp/run" "$tmp/seed"
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$tmp/run"
export XDG_CACHE_HOME="${HUSK_TEST_CACHE:-$tmp/cache}"
cd "$tmp"
trap '"$husk" kill box >/dev/null 2>&1 || :; rm -rf "$tmp"' EXIT
log=data/husk/box/console.log

ssh-keygen -q -t ed25519 -N '' -f key
port=$(free_port)
cat >seed/user-data <<'U'
#cloud-config
hostname: named-by-data
users:
  - name: alice
    shell: /bin/bash
    lock_passwd: false
    passwd: ""
write_files:
  - path: /etc/from-data
    content: "written by user-data\n"
runcmd:
  - [ sh, -c, "echo ran on $(uname -s) >/etc/from-run" ]
U
"$husk" create box --from debian --cloud-init seed --user bob --ssh-key key.pub \
	--forward "127.0.0.1:$port:22" --engine soft >out 2>&1 || {
	# No network, no rights: not what is tested here.
	if grep -q 'not made' out; then skip "$(tail -1 out)"; fi
	fail "create"
}
in_it() { timeout 120 "$husk" exec "$@"; }

# -- what user-data says is done ----------------------------------------------

"$husk" start box >out 2>&1 || fail "start"
[ "$(in_it --wait 300 box -- uname -s </dev/null)" = Linux ] ||
	{ cp $log out; fail "no agent"; }
timeout 300 "$husk" exec box -- cloud-init status --wait </dev/null >out 2>&1 ||
	fail "cloud-init: $?"
grep -q 'status: done' out || fail "cloud-init has trouble"
[ "$(in_it box -- systemctl is-system-running --wait </dev/null)" = running ] || {
	in_it box -- systemctl --failed </dev/null >out 2>&1 || :
	fail "systemd is not content"
}
in_it box -- journalctl -b </dev/null >out
! grep -q 'ordering cycle' out || fail "systemd left something out"
[ "$(in_it box -- hostname </dev/null)" = named-by-data ] || fail "hostname"
[ "$(in_it box -- cat /etc/from-data </dev/null)" = 'written by user-data' ] ||
	fail "write_files"
[ "$(in_it box -- cat /etc/from-run </dev/null)" = 'ran on Linux' ] || fail "runcmd"
[ "$(in_it -u alice box -- sh -c 'id -un; pwd' </dev/null)" = "alice
/home/alice" ] || fail "alice"
echo "ok: users, host name, files and commands of user-data"
timeout 60 ssh -i key -p "$port" -o StrictHostKeyChecking=no -o BatchMode=yes \
	-o UserKnownHostsFile=/dev/null bob@127.0.0.1 'id -un; sudo id -un' \
	</dev/null >out 2>&1 || fail "ssh"
grep -qx bob out && grep -qx root out || fail "ssh: who?"
echo "ok: --user and --ssh-key beside it, by a forwarded port"

# -- the agent in a whole system ----------------------------------------------

seq 1 100000 >numbers
in_it box -- sha256sum <numbers >out || fail "stdin"
[ "$(cut -d' ' -f1 out)" = "$(sha256sum <numbers | cut -d' ' -f1)" ] ||
	fail "stdin: other bytes"
status=0
in_it box -- sh -c 'exit 42' </dev/null || status=$?
[ $status = 42 ] || fail "status $status"
in_it -t -u bob box -- sh -c 'tty; stty size; id -un' </dev/null >out
tr -d '\r' <out | grep -q '^/dev/pts/' || fail "no terminal"
grep -q '^24 80' out && grep -q '^bob' out || fail "the terminal or its user"
in_it box -- date -s '2001-01-01' </dev/null >out || fail "date"
"$husk" pause box && "$husk" resume box || fail "pause and resume"
i=0
until now=$(in_it box -- date +%s </dev/null) && [ $((now - $(date +%s))) -gt -5 ]; do
	i=$((i + 1)); [ $i -lt 100 ] || fail "the clock says $now"
	sleep 0.2
done
echo "ok: streams, status, terminal, user; the clock is set after a resume"
"$husk" stop box --timeout 300 >out 2>&1 || { cp $log out; fail "stop"; }
"$husk" list | grep -q 'box *stopped' || fail "runs after stop"
echo "ok: stop by the agent"

# -- without the agent: the power button ---------------------------------------

"$husk" start box >out 2>&1 || fail "start"
[ "$(in_it --wait 300 box -- cat /etc/from-run </dev/null)" = 'ran on Linux' ] ||
	fail "it is not as it was"
in_it box -- sh -c 'systemctl is-system-running --wait; systemctl disable husk-agent' \
	</dev/null >out 2>&1 || fail "no agent to disable"
in_it box -- sh -c 'setsid sh -c "sleep 1; systemctl stop husk-agent" >/dev/null 2>&1 &' \
	</dev/null >out 2>&1 || fail "no agent to stop"
i=0
while timeout 20 "$husk" exec --wait 0 box -- true </dev/null >out 2>&1; do
	i=$((i + 1)); [ $i -lt 100 ] || fail "the agent is still there"
	sleep 0.2
done
"$husk" stop box --timeout 300 >out 2>&1 || { cp $log out; fail "stop"; }
grep -q 'Power down\|Powering off\|Reached target.*Power-Off' $log ||
	{ cp $log out; fail "it did not power off"; }
"$husk" delete box || fail "delete"
echo "ok: stop by the power button"
