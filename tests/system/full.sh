#!/bin/sh
# full.sh HUSK DEMO [TOOLS] - the host's disk is full: errors, or a pause
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
[ "$(id -u)" = 0 ] || skip "only root can mount a small tmpfs"
mkdir "$tmp/small"
mount -t tmpfs -o size=1m husk-test "$tmp/small" 2>/dev/null ||
	skip "no mount here"
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || :
	"$husk" kill full >/dev/null 2>&1 || :
	umount "$tmp/small"; rm -rf "$tmp"' EXIT
truncate -s 4M "$tmp/small/disk"
guest --disk "$tmp/small/disk" <<'G' || fail "status $?"
dd if=/dev/zero of=/dev/vda bs=64k count=4 conv=fsync 2>/dev/null &&
	echo "a little fits"
dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null ||
	echo "all of it does not"
dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null && echo "reads go on"
G
says 'a little fits'
says 'all of it does not'
says 'reads go on'
echo "ok: errors, and both live"

wait_for() {	# FILE TEXT
	i=0
	until grep -aq "$2" "$1" 2>/dev/null; do
		i=$((i + 1))
		[ $i -lt 1200 ] || { cp "$1" "$tmp/out"; fail "no \"$2\""; }
		sleep 0.1
	done
}

# 3 MiB that are not zeros, the same each time.
# shellcheck disable=SC2016
write='i=0; while [ $i -lt 48 ]; do
	yes "piece $i of the disk" | head -c 65536; i=$((i + 1)); done |
	dd of=/dev/vda bs=64k conv=fsync 2>/dev/null && echo written
echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda'
# shellcheck disable=SC2016
want=$( (i=0; while [ $i -lt 48 ]; do
	yes "piece $i of the disk" | head -c 65536; i=$((i + 1)); done
	head -c 1048576 /dev/zero) | sha256sum | cut -d' ' -f1)

mkdir -p "$tmp/add"
echo "$write" >"$tmp/add/run.sh"
initrd "$tmp/add"
for form in raw qcow2; do
	rm -f "$tmp/small/"*
	mount -o remount,size=1m "$tmp/small"
	"$husk" disk create "$tmp/small/disk.$form" 4M >/dev/null
	"$husk" run --engine soft --kernel "$demo/vmlinuz" --net none \
		--initrd "$tmp/initrd" --timeout 300 --memory 256M \
		--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"' \
		--disk "$tmp/small/disk.$form" --on-enospc pause \
		</dev/null >"$tmp/raw" 2>"$tmp/said" &
	pid=$!
	wait_for "$tmp/said" "disk.$form: no space: paused; make space and run"
	# Asked in vain it pauses again, and says so again.
	kill -CONT $pid
	i=0
	until [ "$(grep -c 'no space: paused' "$tmp/said")" -ge 2 ]; do
		i=$((i + 1)); [ $i -lt 600 ] || fail "no second pause"
		sleep 0.1
	done
	! grep -aq written "$tmp/raw" || fail "the guest went on"
	mount -o remount,size=8m "$tmp/small"
	kill -CONT $pid
	wait $pid || { cp "$tmp/raw" "$tmp/out"; fail "status $?"; }
	pid=
	tr -d '\r' <"$tmp/raw" >"$tmp/out"
	says written
	says "$want  /dev/vda"
	if [ $form = qcow2 ]; then
		"$husk" disk check "$tmp/small/disk.qcow2" >"$tmp/out" ||
			fail "husk disk check: status $?"
	fi
	echo "ok: a pause, and all is written: $form"
done

# A machine with a name: it says what it waits for, and is saved so.
command -v python3 >/dev/null || { echo "not tried: names: no python3"; exit 0; }
mkdir -m 700 "$tmp/run"
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$tmp/run" XDG_CACHE_HOME="$tmp/cache"
rm -f "$tmp/small/"*
mount -o remount,size=1m "$tmp/small"
"$husk" disk create "$tmp/small/disk.raw" 4M >/dev/null
mkdir -p "$tmp/data/husk/full"
cat >"$tmp/data/husk/full/vm.json" <<J
{ "kernel": "$(realpath "$demo")/vmlinuz", "initrd": "$tmp/initrd",
  "memory": "256M", "engine": "soft",
  "cmdline": "console=ttyS0 quiet husk.run=\"sh /run.sh\"",
  "disks": [ { "path": "$tmp/small/disk.raw", "on-enospc": "pause" } ] }
J
wait_paused() {
	i=0
	until "$husk" info full --json | python3 -c 'import json, sys
s = json.load(sys.stdin).get("status", {})
sys.exit(not (s.get("state") == "paused" and
              s.get("no_space", "").endswith("disk.raw")))' 2>/dev/null
	do
		i=$((i + 1)); [ $i -lt 600 ] || fail "it is not paused"
		sleep 0.1
	done
}
"$husk" start full >"$tmp/out" 2>&1 || fail "start"
wait_paused
wait_for "$tmp/data/husk/full/log" \
	'disk.raw: no space: paused; make space and run husk resume full$'
"$husk" save full "$tmp/saved" --stop >"$tmp/out" 2>&1 || fail "save"
i=0
until "$husk" list --json | grep -q '"stopped"'; do
	i=$((i + 1)); [ $i -lt 100 ] || fail "it did not end"
	sleep 0.1
done
# A restore puts an overlay beside the disk.
mount -o remount,size=1408k "$tmp/small"
"$husk" restore "$tmp/saved" --name full >"$tmp/out" 2>&1 || fail "restore"
wait_paused
mount -o remount,size=8m "$tmp/small"
"$husk" resume full >"$tmp/out" 2>&1 || fail "resume"
wait_for "$tmp/data/husk/full/console.log" "$want  /dev/vda"
echo "ok: a pause is saved and restored"
