#!/bin/sh
# examples.sh HELLO BOOT DEMO - the examples do what they say
set -eu
hello=$1 boot=$2 demo=$3
said=$("$hello" soft)
[ "$said" = "soft: Hi" ] || { echo "hello: $said"; exit 1; }
top=$(dirname "$0")/../..
[ "$(wc -l <"$top/examples/hello.c")" -le 60 ] || { echo "hello.c has become long"; exit 1; }
[ "$(wc -l <"$top/examples/boot.c")" -le 100 ] || { echo "boot.c has become long"; exit 1; }
[ -e "$demo/vmlinuz" ] || { echo "SKIP: no demo kernel"; exit 77; }
said=$("$boot" "$demo/vmlinuz" "$demo/initrd" 240)
echo "$said" | grep -q 'Linux.*x86_64 GNU/Linux' || { echo "$said"; exit 1; }
