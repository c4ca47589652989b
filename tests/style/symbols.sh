#!/bin/sh
# symbols.sh HEADER LIBRARY - the library exports what its header declares
set -eu
command -v nm >/dev/null || { echo "SKIP: no nm"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
nm -D --defined-only "$2" | sed -n 's/.* [TDBR] \([^@]*\).*/\1/p' |
	grep -v '^_\|^HUSK_' | sort -u >"$dir/exported"
# Without comments and types of functions: a name before "(".
cc -fpreprocessed -dD -E -P "$1" 2>/dev/null | grep -v '^typedef' |
	grep -o '\<\(hv\|vm\|vmnet\)_[a-z0-9_]*(' | tr -d '(' | sort -u >"$dir/declared"
diff "$dir/declared" "$dir/exported" >"$dir/diff" || {
	echo "< declared in $1, > exported by $2:"
	cat "$dir/diff"
	exit 1
}
echo "$(wc -l <"$dir/exported") names"
