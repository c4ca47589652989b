#!/bin/sh
# debian.sh HUSK DEMO [TOOLS] - a real Debian: made, booted, used, kept
#
# Takes minutes; HUSK_TEST_CACHE names a folder where the image is kept.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
for c in mmdebstrap mke2fs python3 ssh-keygen dpkg-deb; do
	command -v $c >/dev/null || skip "no $c"
done
mkdir -m 700 "$tmp/run"
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$tmp/run"
export XDG_CACHE_HOME="${HUSK_TEST_CACHE:-$tmp/cache}"
cd "$tmp"
trap '"$husk" kill box other >/dev/null 2>&1 || :; rm -rf "$tmp"' EXIT
log=data/husk/box/console.log

ssh-keygen -q -t ed25519 -N '' -f key
# An interrupted creation leaves nothing.
timeout -s INT 3 "$husk" create box --from debian >out 2>&1 &&
	"$husk" delete box
[ -z "$(ls -A data/husk)" ] || fail "half a machine"
"$husk" create box --from debian --user me --ssh-key key.pub --disk-size 10G \
	--engine soft >out 2>&1 || {
	# No network, no rights: not what is tested here.
	if grep -q 'not made' out; then skip "$(tail -1 out)"; fi
	fail "create"
}
# Another is a file that is nearly empty.
begin=$(date +%s%N)
"$husk" create other --from debian >out 2>&1 || fail "create, again"
took=$((($(date +%s%N) - begin) / 1000000))
[ "$(du -k data/husk/other/disk.qcow2 | cut -f1)" -lt 1000 ] || fail "not an overlay"
# The cache may go.
[ "$(stat -c %i data/husk/other/base.raw)" = "$(stat -c %i data/husk/box/base.raw)" ] ||
	fail "two copies of the image"
"$husk" delete other >out 2>&1 || fail "delete"
echo "ok: an image, and a second machine in $took ms"

wait_for() {	# wait_for TEXT SECONDS
	i=0
	until grep -aq "$1" $log 2>/dev/null; do
		i=$((i + 1)); [ $i -lt $((5 * $2)) ] || { cp $log out; fail "no \"$1\""; }
		sleep 0.2
	done
}
line() { echo "$1" | timeout 20 "$husk" console box >/dev/null 2>&1 || :; }
boot() {
	"$husk" start box >out 2>&1 || fail "start"
	wait_for 'box login:' 600
	sleep 2
	line me
	wait_for 'me@box' 200
}
off() {
	# The guest's own power button, by systemd.
	"$husk" stop box --timeout 300 >out 2>&1 || { cp $log out; fail "stop"; }
	"$husk" list | grep -q 'box *stopped' || fail "runs after stop"
}

boot
# A package made here, brought by the console.
mkdir -p deb/DEBIAN deb/usr/bin
cat >deb/DEBIAN/control <<'C'
Package: husk-hello
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@localhost>
Depends: bash
Description: says hello
C
printf '#!/bin/sh\necho hello from a pack''age\n' >deb/usr/bin/husk-hello
chmod +x deb/usr/bin/husk-hello
dpkg-deb --root-owner-group -b deb hello.deb >/dev/null
line "stty -echo; cat >/tmp/h.b64 <<E"
base64 hello.deb | while read -r l; do echo "$l"; done >b64
{ cat b64; echo E; } | timeout 60 "$husk" console box >/dev/null 2>&1 || :
line 'base64 -d /tmp/h.b64 >/tmp/hello.deb; sudo apt-get -y install /tmp/hello.deb && husk-hello'
wait_for 'hello from a package' 300
# shellcheck disable=SC2016 # for the guest's shell
line 'echo state=$(systemctl is-system-running --wait)=; echo size=$(df --output=size / | tail -1)=; echo df-d""one'
wait_for 'df-done' 200
grep -aq '^state=running=' $log || { cp $log out; fail "systemd is not content"; }
size=$(sed -n 's/^size= *\([0-9]*\)=.*/\1/p' $log | tail -1)
[ "${size:-0}" -gt 9000000 ] || { cp $log out; fail "the file system has $size KiB"; }
line 'systemctl is-active ssh systemd-networkd systemd-resolved | tr "\n" " "; ip -4 -br a; cat /etc/machine-id | wc -c; echo a-d""one'
wait_for 'a-done' 100
grep -aq 'active active active' $log || { cp $log out; fail "services"; }
grep -aq '10.0.2.15/24' $log || fail "no address"
echo "ok: login, apt-get install, services, network, growfs"
off
echo "ok: stop by the power button"
boot
line 'husk-hello; hostname; id -un; ls /var/lib/husk; echo b-d""one'
wait_for 'b-done' 100
grep -aq 'hello from a package' $log || fail "the package is gone"
line 'sudo poweroff'
i=0
while "$husk" list | grep -q 'box *running'; do
	i=$((i + 1)); [ $i -lt 900 ] || { cp $log out; fail "poweroff"; }
	sleep 0.2
done
"$husk" delete box || fail "delete"
echo "ok: all is there at the second start; poweroff"
