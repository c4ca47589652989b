#!/bin/sh
# stale.sh HUSK DEMO - files of a shared directory that a guest has open, while
# it is saved and the host changes them
#
# What is still where it was is read on; what is gone or another file now is
# stale for who had it open, and no more than that.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
[ "$(gzip -dc "$demo/initrd" | grep -ac virtiofs.ko)" -gt 0 ] ||
	skip "a demo guest without virtiofs in $demo: tools/make-demo $demo"
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$tmp/run"
trap '"$husk" kill s 2>/dev/null || :; rm -rf "$tmp"' EXIT

dir=$tmp/share
mkdir -p "$tmp/run" "$dir/sub" "$tmp/add"
# Longer than what is read ahead.
for f in kept gone other moved sub/below; do
	head -c 4000000 /dev/urandom >"$dir/$f"
done
sum() { tail -c 1048576 "$1" | sha256sum | cut -c1-64; }
kept=$(sum "$dir/kept") below=$(sum "$dir/sub/below")
fresh=$(echo fresh | sha256sum | cut -c1-64)

cat >"$tmp/add/run.sh" <<'G'
mkdir /share
mount -t virtiofs share /share
exec 3</share/kept 4</share/gone 5</share/other 6</share/sub/below
exec 7>/share/written
cd /share/sub
for fd in 3 4 5 6; do head -c 1 <&$fd >/dev/null; done
echo one >&7
echo READY
# The directory may only be looked at anew after a while.
until [ -e /share/go ]; do sleep 0.1; done
tell() { echo "$1 $(tail -c 1048576 2>/tmp/err | sha256sum | cut -c1-64)" \
	"$(sed 's/.*: //' /tmp/err)"; }
tell kept <&3
tell gone <&4
tell other <&5
tell below <&6
tell fresh </share/other
echo two >&7 && echo written
ls /share/gone 2>/dev/null || echo no gone
ls below
cd /
umount /share 2>/dev/null || { exec 3<&- 4<&- 5<&- 6<&- 7>&-; umount /share; }
echo DONE
G
initrd "$tmp/add"
truncate -s 4M "$tmp/disk.img"
"$husk" create s --from "$tmp/disk.img" --overlay --kernel "$demo/vmlinuz" --initrd "$tmp/initrd" \
	--memory 160M --engine soft --net none --share "$dir" \
	--cmdline 'console=ttyS0 quiet husk.run="sh /run.sh"'
log=$tmp/data/husk/s/console.log
# wait_for LINE
wait_for() {
	i=0
	until tr -d '\r' <"$log" | grep -qx "$1"; do
		i=$((i + 1))
		[ $i -lt 600 ] || { cat "$log"; fail "no $1"; }
		sleep 0.1
	done
}
"$husk" start s
wait_for READY
"$husk" save s "$tmp/file" --stop
i=0
while "$husk" list | grep -q '^s .* running\|^s .* paused'; do
	i=$((i + 1))
	[ $i -lt 100 ] || fail "it has not ended"
	sleep 0.1
done
rm "$dir/gone"
echo fresh >"$dir/new"
mv "$dir/new" "$dir/other"
touch "$dir/go"
"$husk" restore "$tmp/file" --name s
wait_for DONE
tr -d '\r' <"$log" >"$tmp/out"
says "kept $kept "
says "below $below "
says "fresh $fresh "
says written
says 'no gone'
says below
for f in gone other; do
	grep -q "^$f .*Stale file handle" "$tmp/out" || fail "$f is not stale"
done
[ "$(cat "$dir/written")" = "one
two" ] || fail "written: $(cat "$dir/written")"
echo "ok: what is there goes on, what is not is stale"
