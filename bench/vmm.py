# SPDX-License-Identifier: Apache-2.0
# vmm.py - starts machines, watches their consoles and takes their CPU time
"""What the benchmarks share.

A Machine is a way to run a guest; a Process is one run of a command whose
output is read line by line.  Each line comes with the wall and CPU seconds
that the command had used when the line arrived.
"""
import argparse
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, 'build')
OUT = os.path.join(BUILD, 'bench')
KERNEL = os.path.join(BUILD, 'demo', 'vmlinuz')
QEMU = 'qemu-system-x86_64'


class BenchError(Exception):
    """A sentence for the person who runs the benchmark."""


def say(text):
    """Progress: one line that the next one replaces on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write('\r\033[K' + text)
        sys.stderr.flush()
    else:
        print(text, file=sys.stderr, flush=True)


def end_progress():
    if sys.stderr.isatty():
        sys.stderr.write('\r\033[K')


class Process:
    """A command, its output and its clocks."""

    def __init__(self, argv, env=None, cwd=None):
        self.argv = argv
        # An open pipe as input: a console at its end may end the machine.
        self.start = time.monotonic()
        self.p = subprocess.Popen(argv, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, env=env, cwd=cwd)
        # The clock of another process: all its threads, in nanoseconds.
        self.clock = ~self.p.pid << 3 | 2
        self.pending, self.tail = b'', []
        self.last_cpu = 0.0

    @property
    def pid(self):
        return self.p.pid

    def wall(self):
        return time.monotonic() - self.start

    def cpu(self):
        """CPU seconds so far; the last known value once it has ended."""
        try:
            self.last_cpu = time.clock_gettime(self.clock)
        except OSError:
            pass
        return self.last_cpu

    def _line(self):
        if b'\n' not in self.pending:
            return None
        line, self.pending = self.pending.split(b'\n', 1)
        text = line.decode('utf-8', 'replace').strip()
        if text:
            self.tail = self.tail[-7:] + [text]
        return text

    def read(self, timeout):
        """The next (wall, cpu, line).

        EOFError when the command has closed its output, TimeoutError when
        no whole line came in time.
        """
        end = time.monotonic() + timeout
        out = self.p.stdout.fileno()
        while True:
            text = self._line()
            if text is not None:
                return self.wall(), self.cpu(), text
            left = end - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise TimeoutError
            self.cpu()
            data = os.read(out, 65536)
            if not data:
                raise EOFError
            self.pending += data

    def kill(self):
        """Ends it; what it said and how it ended."""
        try:
            self.p.wait(0.2)
        except subprocess.TimeoutExpired:
            self.p.send_signal(signal.SIGKILL)
        status = self.p.wait()
        err = self.p.stderr.read().decode('utf-8', 'replace').strip()
        for f in (self.p.stdin, self.p.stdout, self.p.stderr):
            f.close()
        how = (f'signal {-status}' if status < 0 else f'exit status {status}')
        said = [x for x in (err.splitlines() or self.tail) if x]
        return how + (': ' + said[-1] if said else '')


class Machine:
    """A name and how to boot a kernel with it."""

    def __init__(self, name, argv, extra=''):
        self.name, self.argv, self.extra = name, argv, extra

    def command(self, kernel, initrd=None, cmdline='', memory=1024,
                disk=None, cpus=1):
        append = f'console=ttyS0 quiet {self.extra} {cmdline}'
        return self.argv(kernel, initrd, append, memory, disk, cpus)


def husk(name, exe, engine):
    def argv(kernel, initrd, append, memory, disk=None, cpus=1):
        a = [exe, 'run', '--kernel', kernel, '--memory', f'{memory}M',
             '--cpus', str(cpus), '--cmdline', append, '--device', 'debug-exit']
        if engine:
            a += ['--engine', engine]
        if disk:
            a += ['--disk', disk]
        return a + (['--initrd', initrd] if initrd else [])
    return Machine(name, argv)


def qemu(name, machine, extra='', options=()):
    def argv(kernel, initrd, append, memory, disk=None, cpus=1):
        a = [QEMU, '-machine', machine, '-accel', 'tcg', '-cpu', 'max',
             '-smp', str(cpus), '-m', str(memory), '-nodefaults', '-display',
             'none', '-serial', 'stdio', '-no-reboot', '-device',
             'isa-debug-exit', *options, '-kernel', kernel,
             '-append', append]
        if disk:
            a += ['-drive', f'file={disk},if=none,id=d,format=raw',
                  '-device', 'virtio-blk-pci,drive=d']
        return a + (['-initrd', initrd] if initrd else [])
    return Machine(name, argv, extra)


Q35 = qemu('q35', 'q35')


def tsc_khz():
    """The host's rate of the TSC, which TCG hands to the guest."""
    with open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('bogomips'):
                return int(float(line.split(':')[1]) * 500)
    return 1000000


# Without ACPI a microvm has no way to power off but the triple fault, and no
# clock but the PIT to calibrate by, which fails on a busy host: Linux is told.
# Not acpi=off: with it Linux takes the local APIC for missing, and the serial
# port's interrupt, which programs write by, never comes.
MICROVM = qemu('microvm', 'microvm,acpi=off',
               f'reboot=t tsc_early_khz={tsc_khz()}')

# With ACPI, so that it has a PCI bus for a disk.
MICROVM_PCI = qemu('microvm', 'microvm,pcie=on',
                   f'tsc_early_khz={tsc_khz()}')


def arguments(what):
    """The arguments that every benchmark has."""
    p = argparse.ArgumentParser(description=what)
    p.add_argument('--reps', type=int, default=3, metavar='N',
                   help='repetitions; medians are shown (default 3)')
    p.add_argument('--engine', action='append', metavar='NAME',
                   help="Husk's --engine; may be repeated")
    p.add_argument('--husk', action='append', metavar='FILE',
                   help='the command (default build/husk); may be repeated')
    p.add_argument('--json', metavar='FILE',
                   help='write all single values there')
    p.add_argument('--no-qemu', action='store_true',
                   help='without the peer')
    return p


def husks(args):
    """Husk's machines: one for each command and engine that was named."""
    exes = args.husk or [os.path.join(BUILD, 'cli', 'husk')]
    engines = args.engine or ['soft']
    machines = []
    for exe in exes:
        if not shutil.which(exe):
            raise BenchError(f'{exe}: no such command; ./dev build makes it')
        for engine in engines:
            name = 'husk' if len(engines) == 1 else f'husk {engine}'
            if len(exes) > 1:
                name += ' #%d' % (exes.index(exe) + 1)
            m = husk(name, exe, engine)
            m.exe, m.engine = exe, engine
            machines.append(m)
    return machines


def peers(args, machines):
    if args.no_qemu:
        return []
    if not shutil.which(QEMU):
        raise BenchError(f'{QEMU} is missing: install qemu-system-x86, '
                         'or say --no-qemu')
    return machines


def median(values):
    return statistics.median(values) if values else None


def geomean(values):
    values = [v for v in values if v]
    return statistics.geometric_mean(values) if values else None


def seconds(v):
    return '-' if v is None else f'{v:.3f}'


def ratio(a, b):
    return f'{a / b:.2f}' if a and b else '-'


def table(rows):
    """Rows of text; the first column to the left, the rest to the right."""
    widths = [max(len(r[i]) for r in rows if i < len(r))
              for i in range(max(map(len, rows)))]
    for r in rows:
        print('  '.join(c.ljust(w) if i == 0 else c.rjust(w)
                        for i, (c, w) in enumerate(zip(r, widths))).rstrip())


def compile_c(out, sources, *flags):
    """A program from C, made again when a source is newer."""
    os.makedirs(os.path.dirname(out), exist_ok=True)
    if os.path.exists(out) and all(
            os.path.getmtime(s) < os.path.getmtime(out) for s in sources):
        return out
    say('compiling ' + os.path.basename(out))
    # Renamed when whole: another benchmark may be using the old one.
    part = f'{out}.{os.getpid()}'
    cmd = ['cc', *flags, '-o', part,
           *[s for s in sources if not s.endswith('.h')]]
    cmd += ['-lm'] if '-pthread' in flags else []
    if subprocess.run(cmd).returncode:
        raise BenchError('a guest program does not compile')
    os.replace(part, out)
    return out


def runner():
    """The program that runs workloads, for guest and host."""
    d = os.path.join(ROOT, 'bench', 'guest.d')
    return compile_c(os.path.join(OUT, 'runner'),
                     [os.path.join(d, f) for f in sorted(os.listdir(d))
                      if f.endswith(('.c', '.h'))],
                     '-O2', '-g', '-std=gnu11', '-D_GNU_SOURCE', '-static',
                     '-pthread', '-Wall', '-Wextra',
                     '-Wno-unused-parameter')


def cpio(directory):
    """The files below a directory as an initramfs archive."""
    names = subprocess.run(['find', '.', '-print0'], cwd=directory,
                           check=True, capture_output=True).stdout
    return subprocess.run(['cpio', '-0', '-o', '-H', 'newc', '--quiet',
                           '-R', '0:0'], cwd=directory, check=True,
                          input=names, capture_output=True).stdout


def host():
    """What kind of machine this is."""
    model = 'unknown'
    with open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('model name'):
                model = line.split(':', 1)[1].strip()
                break
    return {'date': time.strftime('%Y-%m-%d %H:%M'), 'cpu': model,
            'cpus': os.cpu_count(), 'kernel': os.uname().release,
            'load': round(os.getloadavg()[0], 2)}


def headline(name):
    h = host()
    print(f"{name}: {h['date']}, {h['cpus']} x {h['cpu']}, load {h['load']}")


def save(args, what, data):
    if args.json:
        with open(args.json, 'w') as f:
            json.dump({'bench': what, 'host': host(), **data}, f, indent=1)
            f.write('\n')


def main(run):
    # An end from outside is an end by Ctrl-C: machines are killed first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run() or 0
    except BenchError as e:
        end_progress()
        print(f'bench: {e}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        end_progress()
        return 130
