#!/bin/sh
# options.sh HUSK - every option is in --help, the manual and the completions
set -eu
husk=$1
top=$(cd "$(dirname "$0")/../.." && pwd)
bad=0

miss() { echo "$1 is not in $2"; bad=1; }

commands=$("$husk" --help | sed -n 's/^  \([a-z]*\)  .*/\1/p')
help=$("$husk" --help; for c in $commands; do "$husk" "$c" --help; done)
for c in $commands; do
	for f in docs/husk.1 cli/completion/husk.bash cli/completion/_husk \
		cli/completion/husk.fish; do
		grep -q -e "\<$c\>" "$top/$f" || miss "husk $c" "$f"
	done
done
# What getopt_long() knows is in --help ("help" itself is not).
known=$(grep -oh '{ "[a-z-]*", [01], NULL' "$top"/cli/*.[ch] |
	sed 's/^{ "\([a-z-]*\)".*/\1/' | sort -u)
for o in $known; do
	[ "$o" = help ] && continue
	echo "$help" | grep -q -e "--$o " || miss "--$o" "any --help"
done
manual=$(sed 's/\\-/-/g' "$top/docs/husk.1")
for o in $(echo "$help" | grep -o -e '--[a-z][a-z-]*' | sort -u); do
	echo "$manual" | grep -q -e "$o\>" || miss "$o" docs/husk.1
	for c in husk.bash _husk; do
		grep -q -e "$o\>" "$top/cli/completion/$c" || miss "$o" "$c"
	done
	grep -q -e "-l ${o#--}\>" "$top/cli/completion/husk.fish" ||
		miss "$o" husk.fish
done
# And the kinds of devices that a wrong one is told about.
kinds=$("$husk" run --kernel /dev/null --device no-such-kind 2>&1 |
	sed -n 's/.*there are //p' | tr -d , | sed 's/ and / /')
[ -n "$kinds" ] || { echo "no kinds in the message"; bad=1; }
for k in $kinds; do
	for f in docs/husk.1 cli/completion/husk.bash cli/completion/_husk \
		cli/completion/husk.fish; do
		grep -q -e "$k" "$top/$f" || miss "$k" "$f"
	done
done
"$husk" doctor --json | python3 -c 'import json,sys
d = json.load(sys.stdin)
assert [e["name"] for e in d["engines"]] == ["kvm", "soft"], d
assert all(type(e["usable"]) is bool for e in d["engines"]), d' || bad=1
exit $bad
