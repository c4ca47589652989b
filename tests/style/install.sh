#!/bin/sh
# install.sh BUILD - what is installed works where it was put
set -eu
build=$1
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

DESTDIR=$dir meson install -C "$build" --no-rebuild --quiet >"$dir/log" 2>&1 ||
	{ cat "$dir/log"; exit 1; }
husk=$(find "$dir" -path '*/bin/husk')
prefix=${husk%/bin/husk}
# Nor the libraries of the build: the command has them in it.
! ldd "$husk" | grep libhusk || { echo "husk loads its libraries"; exit 1; }
"$husk" doctor --json >/dev/null
"$husk" --version | grep -q '^husk [0-9]'
for f in share/man/man1/husk.1 share/bash-completion/completions/husk \
	share/zsh/site-functions/_husk share/fish/vendor_completions.d/husk.fish; do
	[ -s "$prefix/$f" ] || [ -s "$prefix/$f.gz" ] ||
		{ echo "$f is not installed"; exit 1; }
done
pc=$(dirname "$(find "$dir" -name husk-vm.pc)")
export PKG_CONFIG_PATH="$pc" PKG_CONFIG_SYSROOT_DIR="$dir"
asan=
if ldd "$husk" | grep -q libasan; then asan=-fsanitize=address; fi
for e in hello:husk-hv boot:husk-vm; do
	# shellcheck disable=SC2046,SC2086 # lists of words
	# A library with AddressSanitizer wants a program with it.
	cc $asan -o "$dir/${e%:*}" "$top/examples/${e%:*}.c" \
		$(pkg-config --cflags --libs "${e#*:}") -Wl,-rpath-link,"${pc%/pkgconfig}"
done
printf '#include <husk/vmnet.h>\nint main(void) { struct vmnet *n;
return vmnet_create(0, &n, 0) ? 1 : (vmnet_destroy(n), 0); }\n' >"$dir/net.c"
# shellcheck disable=SC2046,SC2086
cc $asan -o "$dir/net" "$dir/net.c" $(pkg-config --cflags --libs husk-vmnet)
LD_LIBRARY_PATH=${pc%/pkgconfig} "$dir/net"
LD_LIBRARY_PATH=${pc%/pkgconfig} "$dir/hello" soft | grep -q '^soft: Hi$'
