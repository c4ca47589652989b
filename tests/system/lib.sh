# shellcheck shell=sh disable=SC2034
# lib.sh - sourced by the tests of the husk command
#
# Arguments of each test: HUSK DEMO [TOOLS].  Gives $husk, $demo, a scratch
# directory $tmp that goes at the end, and the functions below.
# shellcheck disable=SC2034 # for the tests
husk=$1 demo=$2 tools=${3:-.} here=$(cd "$(dirname "$0")" && pwd)
# Meson before 1.1 gives the path from the build folder; tests change folder.
case $husk in
/*) ;;
*) husk=$PWD/$husk ;;
esac
skip() { echo "SKIP: $*"; exit 77; }
fail() { echo "FAIL: $*"; [ ! -e "$tmp/out" ] || tail -60 "$tmp/out"; exit 1; }
# Programs of the system administrator are not on every user's path.
PATH=$PATH:/usr/sbin:/sbin
[ -x "$husk" ] || skip "no husk command at $husk"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

# There is a loopback interface; a network namespace begins with one that is down.
has_loopback() { grep -q '127\.0\.0\.1$' /proc/net/fib_trie 2>/dev/null; }
# within TENTHS WHAT COMMAND... - until it succeeds; WHAT has failed when it does
# not in so many tenths of a second
within() {
	left=$1 what=$2
	shift 2
	until "$@"; do
		left=$((left - 1))
		[ $left -gt 0 ] || fail "$what"
		sleep 0.1
	done
}

# serve DIR - its files by HTTP at port $web of the host; port $sink says the
# sha256 of what it gets, $echo answers TFTP; the process is $server
serve() {
	python3 "$here/server.py" "$1" "$tmp/ports" &
	server=$!
	within 100 "no server" [ -e "$tmp/ports" ]
	read -r web sink echo <"$tmp/ports"
}

# A port that nobody has now.
free_port() {
	python3 -c 'import socket
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

need_demo() {
	[ -e "$demo/vmlinuz" ] && [ -e "$demo/initrd" ] ||
		skip "no demo guest in $demo: ./dev run makes one"
	command -v cpio >/dev/null || skip "no cpio"
	gzip -dc "$demo/initrd" | grep -q newroot ||
		skip "an old demo guest in $demo: tools/make-demo $demo"
}

# initrd DIR - the demo's initial RAM disk with the files of DIR added
initrd() {
	{ cat "$demo/initrd"
	  (cd "$1" && find . | cpio -o -H newc --quiet | gzip -1); } \
		>"$tmp/initrd"
}

# guest [ARG...] - boots and runs standard input as a script in the guest;
# its output is in $tmp/out; the files of $tmp/add are in the guest, too, and
# $words on its kernel's command line; $vmlinux instead of the demo's
guest() {
	mkdir -p "$tmp/add"
	cat >"$tmp/add/run.sh"
	initrd "$tmp/add"
	status=0
	"$husk" run --engine soft --kernel "${vmlinux:-$demo/vmlinuz}" \
		--initrd "$tmp/initrd" --timeout 300 \
		--cmdline "console=ttyS0 quiet ${words:-} husk.run=\"sh /run.sh\"" "$@" \
		</dev/null >"$tmp/raw" 2>&1 || status=$?
	tr -d '\r' <"$tmp/raw" >"$tmp/out"
	return $status
}

# with PROGRAM - it and its libraries are in the next guest, at their own paths
with() {
	for f in $(ldd "$(command -v "$1")" | grep -o '/[^ ]*'); do
		mkdir -p "$tmp/add$(dirname "$f")"
		cp -L "$f" "$tmp/add$f"
	done
	mkdir -p "$tmp/add/bin"
	cp "$(command -v "$1")" "$tmp/add/bin/"
}
# says TEXT - the last guest wrote this line
says() { grep -qx -- "$1" "$tmp/out" || fail "no line \"$1\""; }
