#!/bin/sh
# fs.sh HUSK DEMO [TOOLS] - directories of the host in a guest
#
# Trees are compared both ways by the same program on both sides; the host
# plays tricks with names while the guest reads.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
[ "$(gzip -dc "$demo/initrd" | grep -ac virtiofs.ko)" -gt 0 ] ||
	skip "a demo guest without virtiofs in $demo: tools/make-demo $demo"
bb=/bin/busybox
[ -x $bb ] || skip "no $bb"

# -- a tree, and how to tell two of them apart ---------------------------------

in=$tmp/in out=$tmp/out.d gone=$tmp/gone home=$tmp/home
mkdir -p "$in/dir/deep/deeper" "$in/empty" "$out" "$gone/sub" "$home" "$tmp/add"
mkdir "$tmp/outside"
echo "the host's secret" >"$tmp/outside/file"
i=0
while [ $i -lt 60 ]; do
	head -c $((i * i * 97)) /dev/urandom >"$in/dir/file $i"
	i=$((i + 1))
done
head -c 9000000 /dev/urandom >"$in/dir/deep/big"
truncate -s 50M "$in/sparse"
printf 'end' | dd of="$in/sparse" bs=1 seek=52000000 conv=notrunc 2>/dev/null
ln -s 'dir/file 1' "$in/link"
ln -s "$tmp/outside" "$in/evil"
ln -s ../outside "$in/up"
ln "$in/dir/file 2" "$in/hard"
mkfifo "$in/fifo"
chmod 640 "$in/dir/file 3"
chmod 1777 "$in/empty"
[ "$(id -u)" != 0 ] || chown 1234:567 "$in/dir/file 4"
touch -d '2001-02-03 04:05:06' "$in/dir/file 5" "$in/dir/deep"
echo x >"$gone/sub/f"
mkdir -p "$out/r/dir"
echo "for the guest" >"$out/r/dir/file"

# busybox's cp does not keep the times of links.
# Owners are the same on both sides only for root.
what='%n %a %h %s %Y %F'
[ "$(id -u)" != 0 ] || what="$what %u %g"
cat >"$tmp/add/tree.sh" <<L
#!/bin/sh
cd "\$1"
bb=/bin/busybox
\$bb find . ! -type l | \$bb sort |
	while read -r f; do \$bb stat -c '$what' "\$f"; done
\$bb find . -type f | \$bb sort | while read -r f; do \$bb sha256sum "\$f"; done
\$bb find . -type l | \$bb sort | while read -r f; do \$bb readlink "\$f"; done
L
cp "$tools/fsx" "$tmp/add/fsx"
$bb sh "$tmp/add/tree.sh" "$in" >"$tmp/before"

# -- the host's part, told by files what the guest is about to do --------------

wait_for() {	# wait_for FILE - that the guest makes
	n=0
	while [ ! -e "$out/$1" ]; do
		n=$((n + 1)); [ $n -lt 1200 ] || return 1; sleep 0.1
	done
}
{
	wait_for racing || exit 1
	while [ ! -e "$out/raced" ]; do
		mv "$out/r/dir" "$out/r/moved"; ln -s "$tmp/outside" "$out/r/dir"
		rm "$out/r/dir"; mv "$out/r/moved" "$out/r/dir"
	done
	wait_for leaving || exit 1
	rm -r "$gone"
	touch "$out/left"
	wait_for locked || exit 1
	! flock -n "$out/lock" true || touch "$out/the host has the lock too"
	! "$tools/fsx" lock "$out/lock" || touch "$out/the host has the lock too"
	touch "$out/tried"
} &
host=$!

guest --memory 512M --share "$in:in,ro" --share "$out:out" \
	--share "$gone:gone" \
	--device "virtio-fs,sharedDir=$home,mountTag=home,owner=host" <<'G' || fail "status $?"
mkdir /in /out /gone /home
for t in in out gone home; do mount -t virtiofs $t /$t || echo "no $t"; done
sh /tree.sh /in >/out/seen
mkdir /out/copy
cp -a /in/. /out/copy
sh /tree.sh /out/copy >/out/seen2
cat /in/evil/file /in/up/file 2>/dev/null && echo ESCAPED
for c in 'echo x >/in/new' 'rm /in/link' 'mkdir /in/d' 'chmod 700 /in/link' \
	'mv /in/hard /in/harder' 'ln /in/hard /in/third' 'touch /in/hard'; do
	sh -c "$c" 2>/tmp/err
	grep -q 'Read-only' /tmp/err || echo "NOT REFUSED: $c: $(cat /tmp/err)"
done
/fsx /out/fsx 4
# Names that come and go: what is read is the right file or none.
echo >/out/racing
i=0
while [ $i -lt 150 ]; do
	cat /out/r/dir/file >/tmp/x 2>/dev/null
	grep -q secret /tmp/x && echo ESCAPED
	i=$((i + 1))
done
echo >/out/raced
# A directory goes away under the guest.
exec 7</gone/sub/f
echo >/out/leaving
while [ ! -e /out/left ]; do sleep 0.1; done
read -r x <&7; echo "still $x"
exec 7<&-
sleep 1.1
ls /gone/sub 2>/dev/null && echo "sub is there"
echo y >/gone/new 2>/dev/null && echo "new was made"
umount /gone && echo "gone unmounted"
# Locks, seen from outside.
/fsx lock /out/lock /out/locked /out/tried
# Owners that the host's user cannot give.
cd /home
echo a >a; chown 12:34 a; chmod 4711 a; mkdir d; chown 5:6 d; chmod 0 d
mknod null c 1 3; echo gone >null; mknod blk b 7 8; mkfifo p
stat -c '%n %u %g %a %F' a d null blk p
echo x >d/x && cat d/x
cd /; umount /home; mount -t virtiofs home /home
stat -c '%n %u %g %a' /home/a
for m in /in /out /home; do umount $m || echo "busy $m"; done
echo DONE
G
says DONE
! grep -q 'ESCAPED\|NOT REFUSED\|^no \|^busy \|is there\|was made' "$tmp/out" ||
	fail "$(grep 'ESCAPED\|NOT REFUSED\|^no \|^busy\|is there\|was made' "$tmp/out")"
wait $host || fail "the guest did not come to the host's part"
cmp "$tmp/before" "$out/seen" || { diff "$tmp/before" "$out/seen" | head; fail "the guest sees another tree"; }
cmp "$tmp/before" "$out/seen2" || { diff "$tmp/before" "$out/seen2" | head; fail "the guest's copy differs"; }
$bb sh "$tmp/add/tree.sh" "$out/copy" >"$tmp/after"
# The pipe of a guest whose files are one user's is a file that says so.
pipe='^$'
[ "$(id -u)" = 0 ] || pipe='^\./fifo \|  \./fifo$'
for f in before after; do
	grep -v "$pipe" "$tmp/$f" >"$tmp/$f.some"
done
cmp "$tmp/before.some" "$tmp/after.some" || {
	diff "$tmp/before.some" "$tmp/after.some" | head
	fail "the guest's copy differs on the host"
}
$bb sh "$tmp/add/tree.sh" "$in" >"$tmp/after"
cmp "$tmp/before" "$tmp/after" || fail "the read-only directory has changed"
echo "ok: the same tree on both sides, read-only"
grep '^fsx: .*no difference' "$tmp/out" || fail "fsx"
says 'still x'
says 'gone unmounted'
[ ! -e "$out/the host has the lock too" ] || fail "the host took the guest's lock"
echo "ok: names swapped, a directory removed, locks"
says 'a 12 34 4711 regular file'
says 'd 5 6 0 directory'
says 'null 0 0 644 character special file'
says 'blk 0 0 644 block special file'
says 'p 0 0 644 fifo'
says x
says '/home/a 12 34 4711'
[ "$(stat -c '%u %a' "$home/a")" = "$(id -u) 711" ] || fail "owner=host: $(stat "$home/a")"
[ "$(stat -c '%u %a' "$home/d")" = "$(id -u) 700" ] || fail "owner=host: $(stat "$home/d")"
[ -f "$home/null" ] && [ -f "$home/blk" ] || fail "a device node on the host"
echo "ok: owners and devices stay the guest's"

# -- what is asked for in vain -------------------------------------------------

no() {	# no TEXT ARG... - is refused with this sentence
	text=$1; shift
	! "$husk" run --kernel /dev/null "$@" >"$tmp/out" 2>&1 </dev/null ||
		fail "$* was accepted"
	grep -q -- "$text" "$tmp/out" || fail "$*: no \"$text\""
}
no 'No such file' --share "$tmp/nowhere"
no 'is not a directory' --share "$tmp/before"
no 'no option "rw"' --share "$tmp,rw"
no 'no option "idmap=' --share "$tmp,idmap=1"
no 'is taken' --share "$tmp" --share "$tmp:share"
no 'a tag has' --share "$tmp:1234567890123456789012345678901234567"
no 'is missing' --device "virtio-fs,sharedDir=$tmp"
echo "ok: sentences"
