#!/bin/sh
# bad.sh HUSK DEMO [TOOLS] - what cannot work is refused in one clear line
set -u
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$tmp" || exit 1
bad=0
kernel=$demo/vmlinuz
[ -e "$kernel" ] || kernel=
mkdir empty.d here
: >empty
head -c 300 /dev/zero >zeros
head -c 70000 /dev/urandom >noise
printf 'hello\n' >text
printf '\037\213abc' >gzip
head -c 1000000 /dev/zero >disk
truncate -s 1M good.img
cp /bin/true elf
ls >before.new; mv before.new before; sed -i s,before.new,before, before

# refused STATUS WORDS ARG... - husk ARG... says one line with WORDS in it
refused() {
	want=$1 words=$2
	shift 2
	s=0
	timeout 60 "$husk" "$@" </dev/null >out 2>err || s=$?
	if [ $s != "$want" ] || [ "$(wc -l <err)" != 1 ] || [ -s out ] ||
		! grep -q "^husk: .*$words" err; then
		echo "FAIL: husk $*: status $s, not $want \"$words\":"
		head -5 err
		bad=$((bad + 1))
	fi
	rm -f out err
}
run() { want=$1 words=$2; shift 2; refused "$want" "$words" run --engine soft "$@"; }

refused 2 'no such command' frobnicate
refused 2 'no such option' run --frobnicate
refused 2 'no such option' run -x
refused 2 'no such machine' run kernel
refused 2 'value is missing' run --kernel
refused 2 'unknown option' doctor --x

run 2 'kernel nowhere: No such file' --kernel nowhere
run 2 'kernel empty.d: .*directory' --kernel empty.d
run 2 'kernel empty: .*empty' --kernel empty
run 2 'zeros: not a kernel' --kernel zeros
run 2 'noise: not a kernel' --kernel noise
run 2 'text: not a kernel' --kernel text
run 2 'gzip: not a kernel: it is gzip' --kernel gzip
run 2 'elf: not a kernel' --kernel elf
run 2 'kernel /dev/null: is not a regular file' --kernel /dev/null

if [ -n "$kernel" ]; then
	head -c 1000000 "$kernel" >./cut
	head -c 600 "$kernel" >cut2
	echo cut >>before; echo cut2 >>before
	run 2 'cut: .*truncated' --kernel cut
	run 2 'cut2: .*too short' --kernel cut2
	k="--kernel $kernel"
	# shellcheck disable=SC2086 # two words
	{
	run 2 'initrd nowhere: No such file' $k --initrd nowhere
	run 2 'initrd empty.d: .*directory' $k --initrd empty.d
	run 2 'initrd empty: .*empty' $k --initrd empty
	run 2 'disk nowhere: No such file' $k --disk nowhere
	run 2 'disk empty.d: .*directory' $k --disk empty.d
	run 2 'disk empty: .*empty' $k --disk empty
	run 2 'disk: .*not a multiple of 512' $k --disk disk
	run 2 'disk /dev/null: ' $k --disk /dev/null
	run 2 'CPUs\|--cpus 0' $k --cpus 0
	run 2 'cpus 65' $k --cpus 65
	run 2 'cpus -1' $k --cpus -1
	run 2 'cpus many' $k --cpus many
	run 2 'cpus 2x' $k --cpus 2x
	run 2 'memory: at least' $k --memory 0
	run 2 'memory -1M' $k --memory -1M
	run 2 'memory much' $k --memory much
	run 2 'memory 99999999999G' $k --memory 99999999999G
	run 2 'memory: at least' $k --memory 64K
	run 2 'memory: .*1 TiB' $k --memory 2000G
	run 2 'memory: .*this host' $k --memory 1000G
	run 2 'memory: .*multiple' $k --memory 100000001
	run 2 'MiB of memory' $k --memory 16M
	run 2 'device warp-drive: unknown' $k --device warp-drive
	run 2 'no option "colour=red"' $k \
		--device virtio-blk,file=good.img,colour=red
	run 2 'file=PATH is missing' $k --device virtio-blk
	run 2 'virtio-rng has no options' $k --device virtio-rng,x=1
	refused 2 'engine hyperdrive: unknown' run $k --engine hyperdrive
	run 2 'network frob: there are' $k --net frob
	run 2 'no option "colour=red"' $k --net shared,colour=red
	run 2 'no option "listen"' $k --net shared,listen
	run 2 '"mac=1:2:3" is not possible' $k --net shared,mac=1:2:3
	run 2 '"mac=01:00:00:00:00:01" is not' $k --net null,mac=01:00:00:00:00:01
	run 2 '"mtu=100" is not possible' $k --net shared,mtu=100
	run 2 '"queues=9" is not possible' $k --net shared,queues=9
	run 2 'nowhere: No such file' $k --net unix=nowhere
	run 2 'nowhere/x: listening: No such' $k --net unix=nowhere/x,listen
	run 2 'fd 999: Bad file' $k --net fd=999
	run 2 'fd 0: .*socket' $k --net fd=0
	run 2 'tap fd:0: not a tap' $k --net tap=fd:0
	run 2 'tap a-name-that-is-too-long: not the name' $k \
		--net tap=a-name-that-is-too-long
	run 2 'forward 80: not .*2222:22' $k --forward 80
	if has_loopback; then
		run 2 'forward 8.8.8.8:80:80: Cannot assign' $k \
			--forward 8.8.8.8:80:80
	fi
	run 2 'needs a network of kind shared' $k --net none --forward 1:1
	run 2 'type=unixstream,path=PATH is missing' $k --device virtio-net
	run 2 'timeout 0' $k --timeout 0
	run 2 'timeout soon' $k --timeout soon
	run 2 'reboot never' $k --reboot never
	run 2 'serial empty.d: .*directory' $k --serial empty.d
	run 2 'serial here/no/file: No such' $k --serial here/no/file
	run 2 'command line has' $k --cmdline "$(head -c 5000 /dev/zero |
		tr '\0' x)"
	# A file for the serial port is not made for a machine that cannot be.
	run 2 'nowhere' --kernel nowhere --serial here/made
	run 2 'MiB of memory' $k --memory 16M --serial here/made
	}
	# Many disks, one too many.
	set --
	i=0
	while [ $i -lt 25 ]; do
		set -- "$@" --disk good.img,readonly
		i=$((i + 1))
	done
	run 2 'too many disks' --kernel "$kernel" "$@"

	# In use by another machine: nobody may write beside it.
	"$husk" run --engine soft --kernel "$kernel" --disk good.img \
		--serial none --timeout 20 </dev/null >/dev/null 2>&1 &
	other=$!
	i=0
	while ! grep -q ":$(stat -c %i good.img) " /proc/locks; do
		kill -0 $other 2>/dev/null && [ $i -lt 100 ] || break
		sleep 0.1
		i=$((i + 1))
	done
	run 2 'good.img: is in use' --kernel "$kernel" --disk good.img
	run 2 'good.img: is in use' --kernel "$kernel" --disk good.img,readonly
	kill $other
	wait $other 2>/dev/null
fi

# What needs another user: by root only, who may become nobody.
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null && [ -n "$kernel" ]; then
	mkdir nobody
	echo nobody >>before
	chmod 755 "$tmp"
	cp "$kernel" nobody/k
	cp good.img nobody/ro.img
	cp text nobody/secret
	chmod 644 nobody/k nobody/ro.img
	chmod 600 nobody/secret
	as="setpriv --reuid=65534 --regid=65534 --clear-groups"
	real=$husk
	# as_nobody STATUS WORDS ARG... - like refused
	as_nobody() {
		want=$1 words=$2
		shift 2
		s=0
		# shellcheck disable=SC2086
		timeout 60 $as "$real" run "$@" </dev/null >out 2>err || s=$?
		[ $s = "$want" ] && [ "$(wc -l <err)" = 1 ] &&
			grep -q "^husk: .*$words" err || {
			echo "FAIL: nobody: $*: status $s"; head -5 err
			bad=$((bad + 1))
		}
		rm -f out err
	}
	if $as "$real" --version >/dev/null 2>&1; then
		as_nobody 2 'secret: Permission denied' --kernel nobody/secret
		as_nobody 2 'initrd nobody/secret: Permission denied' \
			--kernel nobody/k --initrd nobody/secret
		as_nobody 2 'ro.img: Permission denied.*readonly' \
			--kernel nobody/k --disk nobody/ro.img --engine soft
		[ ! -e /dev/kvm ] || $as test -r /dev/kvm ||
			as_nobody 2 '/dev/kvm: ' --kernel nobody/k --engine kvm
	else
		echo "note: nobody cannot run $real; its cases are left out"
	fi
fi

# An image of Debian by a user who may not: what to do about it.
image=$(dirname "$husk")/image-debian
if [ -e "$image" ]; then
	mkdir image
	for f in mmdebstrap mke2fs newuidmap; do ln -s /bin/true image/$f; done
	cat >image/id <<'I'
#!/bin/sh
case $1 in -u) echo 54321 ;; *) echo husk-nobody ;; esac
I
	cat >image/grep <<'G'
#!/bin/sh
[ "$1" != -q ] || exit "${LINE:-1}"
exit 1
G
	ln -s /bin/false image/unshare
	chmod +x image/id image/grep
	# no WORDS [NAME=VALUE] - it fails and says so
	no() {
		if env PATH="$PWD/image:$PATH" "${2:-A=b}" sh "$image" image \
			3>/dev/null 2>err || ! grep -q "$1" err; then
			echo "FAIL: image-debian: not \"$1\":"; cat err
			bad=$((bad + 1))
		fi
	}
	no '^/etc/subuid has no line for husk-nobody: as root, usermod --add-subuids'
	no '^user namespaces are off for husk-nobody: turn them on with sysctl' LINE=0
	rm image/mmdebstrap
	[ -e /usr/bin/mmdebstrap ] || no '^mmdebstrap is missing: install mmdebstrap'
	rm -r image err
fi

# Standard streams that are closed or full.
"$husk" --help >&- 2>err
[ $? = 1 ] && grep -q '^husk: standard output: ' err ||
	{ echo "FAIL: --help with a closed output"; bad=$((bad + 1)); }
if [ -e /dev/full ]; then
	"$husk" doctor >/dev/full 2>err
	[ $? = 1 ] && grep -q '^husk: standard output: No space' err ||
		{ echo "FAIL: doctor on a full disk"; bad=$((bad + 1)); }
fi
rm -f err

sort before >b
# shellcheck disable=SC2094 # a and b are names
find . -mindepth 1 -maxdepth 1 ! -name a ! -name b | sed 's,^\./,,' | sort >a
cmp -s a b || { echo "FAIL: left over:"; diff b a; bad=$((bad + 1)); }
[ -z "$(ls here)" ] || { echo "FAIL: left over: $(ls here)"; bad=$((bad + 1)); }
[ $bad = 0 ] || exit 1
echo "ok"
