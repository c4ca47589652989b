#!/bin/sh
# boot.sh HUSK DEMO [ARG...] - a stock kernel boots, says who it is, powers off
set -eu
husk=$1 demo=$2
shift 2
[ -e "$demo/vmlinuz" ] || { echo "SKIP: no demo kernel"; exit 77; }
out=$(mktemp)
trap 'rm -f "$out"' EXIT
"$husk" run --engine soft --kernel "$demo/vmlinuz" --initrd "$demo/initrd" \
	--cmdline "console=ttyS0 quiet" --timeout 240 "$@" \
	</dev/null >"$out" 2>&1 || { echo "exit status $?"; cat "$out"; exit 1; }
for want in '^INIT-UP' 'Linux.*x86_64 GNU/Linux' 'model name' '^Mem:'; do
	grep -q "$want" "$out" || {
		cat "$out"
		echo "boot.sh: the guest did not say $want"
		exit 1
	}
done
