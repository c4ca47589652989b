#!/bin/sh
# matrix.sh HUSK DEMO [TOOLS] [all] - numbers of CPUs and sizes of memory
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo

words='' vmlinux=''
# try CPUS MEMORY LEAST MOST - boots; MiB that the guest must find
try() {
	guest --cpus "$1" --memory "$2" <<'G' || fail "$1 CPUs, $2: status $?"
echo "cpus $(nproc)"
echo "total $(free -m | awk '/^Mem:/ { print $2 }')"
G
	says "cpus $1"
	total=$(sed -n 's/^total //p' "$tmp/out")
	[ "$total" -ge "$3" ] && [ "$total" -le "$4" ] ||
		fail "$2: the guest finds $total MiB"
	echo "ok: $1 CPUs, $2 (guest: $total MiB)"
}

try 4 6G 5700 6144
try 2 96M 24 80
if [ "${4:-}" = all ]; then
	try 1 512M 440 512
	try 1 3G 2800 3072
	try 4 4G 3700 4096
	try 3 1000M 900 1000
fi
# The bzImage unpacks itself at 16 MiB and needs about 52 from there; the
# kernel inside fits into 64.
for m in 64M 32M; do
	s=0
	"$husk" run --engine soft --kernel "$demo/vmlinuz" --memory $m \
		--initrd "$demo/initrd" --timeout 100 </dev/null \
		>"$tmp/out" 2>&1 || s=$?
	[ $s = 2 ] || fail "$m: status $s"
	[ "$(wc -l <"$tmp/out")" = 1 ] &&
		grep -q "^husk: .*: needs .* MiB of memory, the machine has" \
		"$tmp/out" || fail "$m: no clear line"
	echo "ok: $m: $(sed 's|/[^:]*/||' "$tmp/out")"
done
if "$(dirname "$0")/../../tools/unpack-kernel" "$demo/vmlinuz" \
	"$tmp/vmlinux" && [ "$(stat -c %s "$tmp/vmlinux")" -lt 60000000 ]; then
	vmlinux=$tmp/vmlinux
	# The files of tracefs alone are 9 MiB.
	words=initcall_blacklist=tracer_init_tracefs
	try 1 64M 16 32
else
	echo "not tried: 64M with the kernel unpacked"
fi
