#!/bin/sh
# rest.sh HUSK DEMO TOOLS - a machine driven over HTTP, as vfkit's are
set -eu
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
need_demo
command -v python3 >/dev/null || skip "no python3"
has_loopback || skip "the loopback interface is down"
demo=$(cd "$demo" && pwd)

for uri in tcp://localhost tcp://:80 unix://relative http://x none tcp://nowhere.invalid:1 \
	unix:///nowhere/at/all tcp://localhost:80x; do
	rc=0
	"$husk" run --kernel "$demo/vmlinuz" --restful-uri $uri --timeout 1 \
		</dev/null >"$tmp/out" 2>&1 || rc=$?
	case $uri,$rc in
	none,124 | unix:///nowhere/*,1) ;;
	*,2) grep -q "restful-uri $uri: " "$tmp/out" || fail "$uri: no sentence" ;;
	*) fail "$uri: $rc" ;;
	esac
done
echo "ok: what cannot be served is refused"

cat >"$tmp/ask.py" <<'P'
import http.client, json, socket, sys

where = sys.argv[1]

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(where[len('unix://'):])

def link():
    if where.startswith('unix://'):
        return Unix('localhost', timeout=20)
    host, port = where[len('tcp://'):].rsplit(':', 1)
    return http.client.HTTPConnection(host, int(port), timeout=20)

def ask(method, path, body=None, headers={}):
    c = link()
    c.request(method, path, body, headers)
    r = c.getresponse()
    text = r.read()
    return r.status, json.loads(text) if text else None

def raw(data):
    c = link()
    c.connect()
    c.sock.sendall(data)
    got = c.sock.recv(4096)
    c.close()
    return got.split(b' ')[1] if got else b''

def state(to):
    return ask('POST', '/vm/state', json.dumps({'state': to}))

def check(what, want):
    if what != want:
        sys.exit('%r is not %r' % (what, want))

def is_(paused):
    s, j = ask('GET', '/vm/state')
    check((s, j), (200, {'state': 'VirtualMachineState' +
                         ('Paused' if paused else 'Running'),
                         'canStart': False, 'canPause': not paused,
                         'canResume': paused, 'canStop': not paused,
                         'canHardStop': True}))

is_(False)
check(state('Pause'), (202, None))
is_(True)
check(state('Resume'), (202, None))
is_(False)
s, j = ask('GET', '/vm/inspect')
check((s, j['vcpus'], j['memoryBytes']), (200, 2, 256 << 20))
check(j['bootloader']['kind'], 'linuxBootloader')
check(j['bootloader']['vmlinuzPath'].endswith('vmlinuz'), True)
check(j['bootloader']['initrdPath'].endswith('initrd'), True)
kinds = {d['kind']: d for d in j['devices']}
check(sorted(kinds), ['virtioblk', 'virtiofs', 'virtionet', 'virtiorng',
                      'virtiosock'])
check(kinds['virtioblk']['imagePath'].endswith('disk,a.raw'), True)
check(kinds['virtiofs']['mountTag'], 'tag')
check(kinds['virtionet']['macAddress'], '52:54:00:00:00:01')
# What is no request, or not to be answered.
check(ask('GET', '/')[0], 404)
check(ask('DELETE', '/vm/state')[0], 405)
check(ask('POST', '/vm/inspect', '{}')[0], 405)
check(ask('POST', '/vm/state', 'Pause')[0], 400)
check(ask('POST', '/vm/state', '{"state":1}')[0], 400)
check(ask('POST', '/vm/state', '["state"]')[0], 400)
check(ask('POST', '/vm/state', '')[0], 400)
check(state('Explode')[0], 500)
check(state('Start')[0], 500)
check(ask('POST', '/vm/state', '{"state":"HardStop"}',
          {'Origin': 'http://example.com'})[0], 403)
# Somebody's name for this host's address is not ours.
tcp = where.startswith('tcp://')
for host, want in (('example.com:80', 403 if tcp else 200), ('127.0.0.1:1', 200),
                   ('[::1]:1', 200), ('LOCALHOST', 200)):
    check(ask('GET', '/vm/state', headers={'Host': host})[0], want)
check(raw(b'POST /vm/state HTTP/1.1\r\nContent-Length: 5000\r\n\r\n'), b'413')
check(raw(b'nothing\r\n\r\n'), b'400')
check(raw(b'GET\r\n\r\n'), b'400')
check(raw(b'\r\n\r\n'), b'400')
check(raw(b'GET /vm/state HTTP/1.1\r\nno header\r\n\r\n'), b'400')
check(raw(b'GET /vm/state HTTP/1.1\r\nContent-Length: -1\r\n\r\n'), b'400')
check(raw(b'GET /vm/state HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n'),
      b'413')
check(raw(b'POST /vm/state HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n'),
      b'400')
check(raw(b'GET /vm/st\0te HTTP/1.1\r\n'), b'400')
check(raw(b'x' * 16384), b'400')
# In pieces, and beside many who say nothing.
idle = [link() for _ in range(30)]
for c in idle:
    c.connect()
c = link()
c.connect()
for b in b'POST /vm/state HTTP/1.0\r\ncontent-length:  17\r\n\r\n{"state":"Pause"}':
    c.sock.sendall(bytes([b]))
check(c.sock.recv(4096).split(b' ')[1], b'202')
is_(True)
check(state('Resume'), (202, None))
# The button, which this guest does not look at; then its power.
check(state('Stop'), (202, None))
is_(False)
check(state('HardStop'), (202, None))
P
truncate -s 1M "$tmp/disk,a.raw"
mkdir "$tmp/dir"
cat >"$tmp/vm.json" <<J
{ "cpus": 2, "memory": "256M", "kernel": "$demo/vmlinuz", "initrd": "$demo/initrd",
  "cmdline": "console=ttyS0 quiet", "disks": [ { "path": "$tmp/disk,a.raw" } ],
  "networks": [ { "kind": "shared", "mac": "52:54:00:00:00:01" } ],
  "shares": [ "$tmp/dir:tag" ], "vsock": [ "$tmp/vsock" ], "devices": [ "virtio-rng" ] }
J
# drives URI - asks all of it; the machine then ends
drives() {
	"$husk" run --config "$tmp/vm.json" --restful-uri "$1" --serial "$tmp/log" \
		--timeout 100 >"$tmp/out" 2>&1 &
	pid=$!
	i=0
	until grep -q INIT-UP "$tmp/log" 2>/dev/null; do
		i=$((i + 1)); [ $i -lt 300 ] || fail "the guest does not boot"
		kill -0 $pid 2>/dev/null || fail "ended"
		sleep 0.1
	done
	python3 "$tmp/ask.py" "$1" >>"$tmp/out" 2>&1 || {
		kill $pid; fail "$1"; }
	rc=0
	wait $pid || rc=$?
	[ $rc = 0 ] || fail "$1: ended with $rc"
	rm -f "$tmp/log"
}
: >"$tmp/stale"
drives "unix://$tmp/sock"
[ ! -e "$tmp/sock" ] || fail "the socket is left"
echo "ok: over a Unix socket"
# One of a machine that was killed is no hindrance; a file is.
python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' \
	"$tmp/sock"
port=$(python3 -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
drives "tcp://127.0.0.1:$port"
drives "unix://$tmp/sock"
if "$husk" run --config "$tmp/vm.json" --restful-uri "unix://$tmp/stale" \
	</dev/null >"$tmp/out" 2>&1; then fail "a file is replaced"; fi
[ -e "$tmp/stale" ] || fail "a file is gone"
echo "ok: over TCP, and beside what was left"
