#!/bin/sh
# named.sh HUSK DEMO [TOOLS] - machines with names: made, started, used, ended
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v python3 >/dev/null || skip "no python3"
command -v mke2fs >/dev/null || skip "no mke2fs"

mkdir -m 700 "$tmp/run"
export XDG_DATA_HOME="$tmp/data" XDG_RUNTIME_DIR="$tmp/run" XDG_CACHE_HOME="$tmp/cache"
cd "$tmp"
trap '"$husk" kill one two >/dev/null 2>&1 || :; rm -rf "$tmp"' EXIT

# A system that counts its starts and does what is typed.
mkdir -p root/bin root/sbin root/proc root/dev root/sys
cp /bin/busybox root/bin/ 2>/dev/null || skip "no static busybox"
for a in sh mount umount cat sync grep poweroff reboot; do ln -s busybox root/bin/$a; done
cat >root/sbin/init <<'I'
#!/bin/sh
export PATH=/bin
mount -t proc p /proc; mount -o remount,rw /
n=0; [ ! -e /count ] || n=$(cat /count); n=$((n + 1)); echo $n >/count; sync
echo "start number $n"
while read -r l; do eval "$l"; done
poweroff -f
I
chmod +x root/sbin/init
mke2fs -q -F -t ext4 -d root root.raw 16M >/dev/null 2>&1 || fail "mke2fs"

create() {
	"$husk" create "$1" --from root.raw --kernel "$demo/vmlinuz" \
		--initrd "$demo/initrd" --engine soft --memory 256M \
		--cmdline "console=ttyS0 quiet root=/dev/vda" "$2" "$3" >out 2>&1
}
no() {	# no WORDS... - this fails, and says why in one line
	if "$husk" "$@" >out 2>&1; then fail "husk $* went well"; fi
	[ "$(wc -l <out)" = 1 ] || fail "husk $* does not say one line"
}
state() { "$husk" list --json | python3 -c 'import json, sys
print(*[m["name"] + "=" + m["state"] for m in json.load(sys.stdin)])'; }
# wait_for FILE TEXT - it appears in the console's file
wait_for() {
	i=0
	until grep -aq "$2" "$1"; do
		i=$((i + 1)); [ $i -lt 600 ] || { cp "$1" out; fail "no \"$2\""; }
		sleep 0.1
	done
}
type_in() { echo "$2" | timeout 20 "$husk" console "$1" >typed & }

create one --disk-size 64M || fail "create"
grep -q '"path": "disk.qcow2"' data/husk/one/vm.json || fail "no disk in vm.json"
no create one --from root.raw --kernel "$demo/vmlinuz"
no create ../one --from root.raw --kernel "$demo/vmlinuz"
no create three --from root.raw
no create three --from no-such.raw --kernel "$demo/vmlinuz"
no start three
[ "$(ls -A data/husk)" = one ] || fail "half a machine was left"
echo "ok: create"

"$husk" start one >out 2>&1 || fail "start"
no start one
no run one
no delete one
wait_for data/husk/one/console.log 'start number 1'
"$husk" info one --json | python3 -c 'import json, sys
m = json.load(sys.stdin)
assert m["state"] == "running" and m["status"]["engine"] == "soft", m
assert m["disk_size"] == 64 << 20, m
b = m["balloon"]
assert b["target"] == b["actual"] == m["status"]["memory"], m
if "guest_total" in b: assert b["guest_free"] <= b["guest_total"] <= b["target"], m' || fail "info"
python3 - "$tmp/run/husk/one/control" <<'P' >out 2>&1 || fail "control socket"
import json, os, socket, stat, sys
path = sys.argv[1]
assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
s = socket.socket(socket.AF_UNIX)
s.connect(path)
f = s.makefile("rw")
def ask(line):
    f.write(line + "\n"); f.flush()
    return json.loads(f.readline())
assert ask('{"command": "status"}')["state"] == "running"
assert "stop" in ask('{"command": "help"}')["commands"]
for bad in ("", "x", "[]", "{}", '{"command": 1}', '{"command": "no"}', "\0",
            '{"command": "resize-disk"}',
            '{"command": "resize-disk", "disk": 9, "size": "1G"}',
            '{"command": "link", "network": 7, "up": true}',
            '{"command": "share"}',
            '{"command": "share", "tag": "no", "directory": null}',
            '{"command": "balloon", "target": "1T"}'):
    r = ask(bad)
    assert not r["ok"] and r["error"], (bad, r)
assert ask('{"command": "resize-disk", "disk": 0, "size": "80M"}')["ok"]
assert ask('{"command": "devices"}')["devices"]["disk0"] == "virtio-blk"
assert ask('{"command": "balloon", "target": "200M"}')["target"] == 200 << 20
# One that never ends its line is dropped; the others go on.
t = socket.socket(socket.AF_UNIX)
t.connect(path)
try:
    for i in range(64): t.sendall(b"x" * 65536)
except OSError:
    pass
many = [socket.socket(socket.AF_UNIX) for i in range(40)]
for m in many: m.connect(path)
for m in many: m.close()
assert ask('{"command": "status"}')["ok"]
P
type_in one 'grep vda /proc/partitions'
wait_for data/husk/one/console.log ' 81920 vda'
# shellcheck disable=SC2016 # for the guest's shell
type_in one 'echo typed $((6 * 7)); reboot -f'
wait_for data/husk/one/console.log 'typed 42'
wait_for data/husk/one/console.log 'start number 2'
[ "$(state | tr ' ' '\n' | grep one)" = one=running ] || fail "state: $(state)"
type_in one 'poweroff -f'
i=0
while state | grep -q one=running; do
	i=$((i + 1)); [ $i -lt 300 ] || fail "does not power off"; sleep 0.1
done
[ ! -e run/husk/one ] || fail "the folder of sockets was left"
"$husk" stop one >out 2>&1 || fail "stop of a stopped machine"
echo "ok: start, info, control, console, reboot, poweroff"

# In the foreground, with options for this time.
# shellcheck disable=SC2016
echo 'echo cpus $(grep -c ^processor /proc/cpuinfo); poweroff -f' >words
timeout 100 "$husk" run one --cpus 2 <words >out 2>&1 || fail "run one: $?"
grep -aq 'start number 3' out && grep -aq 'cpus 2' out || fail "run one"
grep -q '"cpus": 1' data/husk/one/vm.json || fail "the definition changed"
echo "ok: run NAME"

# A disk with its kernel on it, in a partition, needs no other.
mkdir root/boot
cp "$demo/vmlinuz" "$demo/initrd" root/boot
ln -s boot/vmlinuz root/vmlinuz
ln -s /boot/initrd root/initrd.img
mke2fs -q -F -t ext4 -d root boot.raw 32M >/dev/null 2>&1 || fail "mke2fs"
python3 - <<'P'
import struct, uuid
fs = open("boot.raw", "rb").read()
mib = 1 << 20
disk = bytearray(2 * mib + len(fs))
end = len(disk) // 512
table = (uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4").bytes_le +
         uuid.uuid4().bytes_le +
         struct.pack("<QQQ", 2048, 2048 + len(fs) // 512 - 1, 0)).ljust(128 * 128, b"\0")
import zlib
def head(me, other, tab):
    h = b"EFI PART" + struct.pack("<IIIIQQQQ", 0x10000, 92, 0, 0, me, other, 34, end - 34)
    h += bytes(16) + struct.pack("<QIII", tab, 128, 128, zlib.crc32(table))
    return h[:16] + struct.pack("<I", zlib.crc32(h)) + h[20:]
disk[446:510] = bytes([0, 0, 2, 0, 0xee, 255, 255, 255]) + struct.pack("<II", 1, end - 1) + bytes(48)
disk[510:512] = b"\x55\xaa"
disk[512:604] = head(1, end - 1, 2)
disk[1024:1024 + len(table)] = table
disk[-512:-420] = head(end - 1, 1, end - 33)
disk[-33 * 512:-512] = table
disk[mib:mib + len(fs)] = fs
open("gpt.raw", "wb").write(disk)
P
"$husk" create two --from gpt.raw --engine soft --memory 256M >out 2>&1 || fail "create from a disk with a kernel"
grep -q 'root=/dev/vda1' data/husk/two/vm.json || fail "not the partition"
cmp data/husk/two/vmlinuz "$demo/vmlinuz" || fail "another kernel"
rm data/husk/two/initrd data/husk/two/vmlinuz
echo 'sync; umount /; poweroff -f' >words
timeout 100 "$husk" run two <words >out 2>&1 || fail "run two: $?"
grep -aq 'start number 1' out || fail "run two"
[ -e data/husk/two/vmlinuz ] || fail "the kernel was not taken from the disk"
"$husk" delete two || fail "delete"
echo "ok: a kernel on the disk"

# Two starts at the same time: one wins.  kill -9 leaves nothing behind.
for i in 1 2 3 4; do
	("$husk" start one >/dev/null 2>&1 && echo won >>wins || :) &
done
wait
[ "$(wc -l <wins)" = 1 ] || fail "$(wc -l <wins) of four starts won"
"$husk" stop one --timeout 1 >out 2>&1 && fail "stop by a guest without ACPI's daemon" || [ $? = 124 ] || fail "stop"
kill -9 "$(head -1 data/husk/one/lock)"
i=0
while state | grep -q one=running; do
	i=$((i + 1)); [ $i -lt 100 ] || fail "a dead machine runs"; sleep 0.1
done
"$husk" start one >out 2>&1 || fail "start after kill -9"
"$husk" stop --force --timeout 1 one >out 2>&1 || fail "stop --force"
"$husk" start one >out 2>&1 || fail "start"
"$husk" kill one >out 2>&1 || fail "kill"
rm data/husk/one/disk.qcow2
if "$husk" start one >out 2>&1; then fail "start without a disk"; fi
grep -q 'disk.qcow2' out || fail "start without a disk says nothing"
state | grep -q one=stopped || fail "state: $(state)"
echo "ok: locks, kill -9, stop --force, kill, a start that fails"

"$husk" delete one >out 2>&1 || fail "delete"
state | grep -q one && fail "deleted and listed"
[ -z "$(ls -A data/husk)" ] || fail "delete left something"
mkdir data/husk/two
echo '{"cpu": 1}' >data/husk/two/vm.json
"$husk" list >out 2>&1 && grep -q 'no "cpu"' out || fail "list with a broken definition"
# Somebody else's folder in the place of ours is not used.
rm -r data/husk/two
create one --disk-size 64M || fail "create"
chmod 755 run/husk
no start one
grep -q 0700 out || fail "a folder that others can read was used"
echo "ok: delete, a broken definition, an open folder of sockets"
