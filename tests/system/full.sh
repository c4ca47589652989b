#!/bin/sh
# full.sh HUSK DEMO [TOOLS] - the host's disk is full: the guest gets errors
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
[ "$(id -u)" = 0 ] || skip "only root can mount a small tmpfs"
mkdir "$tmp/small"
mount -t tmpfs -o size=1m husk-test "$tmp/small" 2>/dev/null ||
	skip "no mount here"
trap 'umount "$tmp/small"; rm -rf "$tmp"' EXIT
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
