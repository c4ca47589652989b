#!/bin/sh
# truth.sh HUSK DEMO TOOLS - a guest computes what the processor computes
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
[ -x "$tools/truth" ] || skip "truth was not built: no static C library"
"$tools/truth" >"$tmp/native" ||
	skip "this processor cannot run x86-64-v3 programs"
mkdir "$tmp/add"
cp "$tools/truth" "$tmp/add/"
guest --cpus 2 <<'G' || fail "status $?"
echo BEGIN
/truth
echo END $?
G
says 'END 0'
sed -n '/^BEGIN$/,/^END/p' "$tmp/out" | sed '1d;$d' >"$tmp/guest"
cmp "$tmp/native" "$tmp/guest" || {
	diff "$tmp/native" "$tmp/guest" | head -20
	fail "the guest computes something else"
}
echo "ok: $(wc -l <"$tmp/guest") lines agree"
