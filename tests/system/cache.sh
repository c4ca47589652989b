#!/bin/sh
# cache.sh HUSK DEMO - images are made once, and old ones do not pile up
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
command -v mkfs.ext4 >/dev/null || skip "no mkfs.ext4"
export XDG_DATA_HOME="$tmp/data" XDG_CACHE_HOME="$tmp/cache"

# Beside this copy lies a maker of images that takes no minutes.
mkdir "$tmp/bin"
cp "$husk" "$tmp/bin/husk"
LD_LIBRARY_PATH=$(ldd "$husk" | sed -n 's,.*=> \(.*/\)libhusk-.*,\1,p' |
	paste -sd: -):${LD_LIBRARY_PATH:-}
export LD_LIBRARY_PATH
maker() {
	cat >"$tmp/bin/image-debian" <<M
# $1
echo "making a small one" >&3
mkdir -p "\$1"
truncate -s 8M "\$1/disk.raw"
mkfs.ext4 -q "\$1/disk.raw"
echo $1 >"\$1/vmlinuz"
echo $1 >"\$1/initrd"
M
}
make() { "$tmp/bin/husk" create "$1" --from debian >"$tmp/out" 2>&1 || fail "create $1"; }
images() { find "$tmp/cache/husk/images" -mindepth 1 -maxdepth 1 -type d | wc -l; }

maker one
make a
grep -q 'making a small one' "$tmp/out" || fail "not made"
make b
! grep -q 'making' "$tmp/out" || fail "made twice"
[ "$(images)" = 1 ] || fail "$(images) images"

# Another version, while the first is in use; a cloud-init one is its own kind.
maker two
make c
[ "$(images)" = 2 ] || fail "$(images) images of two versions"
first=$(find "$tmp/cache/husk/images" -mindepth 1 -maxdepth 1 -type d -not -newer \
	"$tmp/data/husk/b/vm.json" | head -1)
[ "$(cat "$first/vmlinuz")" = one ] || fail "which one is the first?"
cp -a "$first" "$tmp/cache/husk/images/debian-12-cloud-init-0123456789abcdef"
touch -d '8 days ago' "$tmp/cache/husk/images/"*
maker three
make d
[ ! -e "$first" ] || fail "an old image is kept"
[ -e "$tmp/cache/husk/images/debian-12-cloud-init-0123456789abcdef" ] ||
	fail "another kind is gone"
[ "$(images)" = 2 ] || fail "$(images) images at the end"
cmp "$tmp/data/husk/a/base.raw" "$tmp/data/husk/b/base.raw" ||
	fail "a machine has lost its disk"
echo "ok: made once, kept while in use, gone when old"
