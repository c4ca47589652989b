#!/bin/sh
# symbols.sh LIBRARY HEADER... - the library exports what its headers declare
set -eu
command -v nm >/dev/null || { echo "SKIP: no nm"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
lib=$1
shift
nm -D --defined-only "$lib" | sed -n 's/.* [TDBR] \([^@]*\).*/\1/p' |
	grep -v '^_\|^HUSK_' | sort -u >"$dir/exported"
# Without comments and types of functions: a name before "(".
cat "$@" >"$dir/all.h"
cc -fpreprocessed -dD -E -P "$dir/all.h" 2>/dev/null | grep -v '^typedef' |
	grep -o '\<\(hv\|vm\|vmnet\)_[a-z0-9_]*(' | tr -d '(' | sort -u >"$dir/declared"
diff "$dir/declared" "$dir/exported" >"$dir/diff" || {
	echo "< declared in $*, > exported by $lib:"
	cat "$dir/diff"
	exit 1
}
echo "$(wc -l <"$dir/exported") names"
