#!/bin/sh
# moves.sh HUSK DEMO TOOLS [all|kvm] - every device, idle and at work, is paused,
# saved, restored and cloned
#
# One guest for each set of devices goes through all of it, first on the
# translator, then on the interpreter; keep and keeper say what is checked.  With
# kvm: all devices in one guest, on that engine, to the soft one and back.
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
has_loopback || skip "the loopback interface is down"
[ "${4:-}" != kvm ] || "$husk" doctor | grep -q '^kvm *yes' ||
	skip "no engine kvm here"
for m in virtio_net vmw_vsock_virtio_transport virtiofs virtio_console; do
	[ "$(gzip -dc "$demo/initrd" | grep -ac $m.ko)" -gt 0 ] ||
		skip "a demo guest without $m in $demo: tools/make-demo $demo"
done

engine=soft
# Sockets have short paths only.
run=$(mktemp -d /tmp/husk.XXXXXX)
trap 'rm -rf "$tmp" "$run"' EXIT
mkdir -p "$tmp/add" "$tmp/share"
cp "$tools/keeper" "$tmp/add/"
cat >"$tmp/add/run.sh" <<'R'
words=$(sed -n 's/.*keep.jobs=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
port=$(sed -n 's/.*keep.tcp=\([0-9]*\).*/\1/p' /proc/cmdline)
jobs=
for w in $words; do
	case $w in
	tcp)
		ip link set lo up
		ip addr add 10.0.2.15/24 dev eth0
		ip link set eth0 up
		ip route add default via 10.0.2.2
		w=tcp=$port ;;
	link)
		case $words in *tcp*) w=eth1 ;; *) w=eth0 ;; esac
		ip link set $w up
		w=link=$w ;;
	vsock)
		for m in vsock vmw_vsock_virtio_transport_common \
			vmw_vsock_virtio_transport; do
			insmod /m/$m.ko
		done
		w=vsock=1 ;;
	fs)	mkdir /share
		mount -t virtiofs share /share
		w=fs=/share ;;
	disk)	w=/dev/vda ;;
	balloon) w= ;;
	esac
	jobs="$jobs $w"
done
exec /keeper 8 $jobs
R
# The test host takes seconds for one turn through 8 MiB.
[ "${4:-}" != kvm ] || sed -i 's/keeper 8/keeper 2/' "$tmp/add/run.sh"
initrd "$tmp/add"

# keep_it JOBS STEP... - a machine with what the jobs (a,b) need
keep_it() {
	jobs=$1
	shift
	cpus=1 nets="" devices=""
	for j in $(echo "$jobs" | tr , ' '); do
		case $j in
		disk)	rm -f "$tmp"/disk*; truncate -s 8M "$tmp/disk"
			devices="$devices --disk $tmp/disk" ;;
		tcp)	nets="$nets --net shared" ;;
		link)	nets="$nets --net unix=$run/v_net" ;;
		vsock)	devices="$devices --vsock $run/v" ;;
		fs)	rm -rf "$tmp/share"; mkdir "$tmp/share"
			devices="$devices --share $tmp/share" ;;
		rng)	devices="$devices --device virtio-rng" ;;
		hvc)	devices="$devices --device virtio-serial,stdio" ;;
		balloon) devices="$devices --device virtio-balloon" ;;
		esac
	done
	case $jobs in *,*) cpus=2 ;; esac
	rm -f "$run"/*
	# shellcheck disable=SC2086 # words
	"$tools/keep" --file "$tmp/file" --engine $engine --memory 160 \
		--cpus $cpus ${nets:---net null} \
		--echo "$run/v" $devices --cmdline "console=ttyS0 quiet \
keep.jobs=$jobs husk.run=\"sh /run.sh\"" "$demo/vmlinuz" "$tmp/initrd" "$@" \
		>"$tmp/out" 2>&1 || fail "keep $jobs $*"
	echo "$jobs: well"
}

everything=disk,tcp,link,vsock,fs,rng,hvc
if [ "${4:-}" = kvm ]; then
	engine=kvm
	keep_it $everything,balloon jobs:rest pause:3 live:1 move:kvm clone:kvm \
		fork:kvm jobs:run pause:5 live:1 move:kvm clone:kvm fork:kvm \
		move:soft beat:1 packed:kvm beat:1
	exit
fi
if [ "${4:-}" != all ]; then
	keep_it $everything jobs:rest pause:3 back:soft jobs:run pause:5 live:1 \
		move:soft back:soft clone:soft fork:soft
	keep_it balloon balloon:32 move:soft balloon:32
	exit
fi
moves() {
	echo "jobs:rest pause:5 beat:1 move:$1 back:$1 clone:$1 fork:$1 jobs:run" \
		"pause:${2:-50} beat:2 live:2 move:$1 packed:$1 back:$1 clone:$1 fork:$1"
}
for set in balloon disk tcp link vsock fs rng hvc; do
	# shellcheck disable=SC2046 # words
	keep_it $set $(moves soft) move:soft,interp $(moves soft,interp)
done
keep_it balloon balloon:32 move:soft balloon:32 back:soft balloon:32
# shellcheck disable=SC2046 # words
keep_it $everything,balloon $(moves soft 1000) move:soft,interp \
	$(moves soft,interp)
