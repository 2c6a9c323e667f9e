"""Starts processes, waits for them, reads what they cost, and ends them.

Owns: every process that the load scripts start. A process is ended by its own id, when its `with` block is left, also
after an exception, Ctrl-C or SIGTERM. Rules: no fixed ports, every wait has a deadline, nothing outside a temporary
directory is written. Standard library only; Linux, because the figures come from /proc.
"""

import contextlib
import functools
import os
import random
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time


class Trouble(Exception):
    """Something that the person at the terminal can understand and mend; printed as one line."""


def raise_descriptor_limit():
    """Lifts the soft limit of descriptors to the hard one, for the children as well; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def end_on_signals():
    """Turns SIGTERM and SIGHUP into SystemExit, so that every `with` block ends what it started."""

    def leave(number, _frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)


def need(*programs):
    """Fails with one clear line when a program is missing."""
    missing = [program for program in programs if not find(program)]
    if missing:
        raise Trouble(f"not installed: {', '.join(missing)}")


def find(program):
    """The full path of a program; Debian keeps servers in /usr/sbin, which is not on everyone's PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")


def free_port():
    """A loopback TCP port that was free a moment ago, and that stays free: from below the range of which the system takes the
    ports of outgoing connections (ip(7), ip_local_port_range), of which a load opens thousands a second."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as text:
        above = int(text.read().split()[0])
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randrange(min(10240, above // 2), above)))
            except OSError:
                continue
            return probe.getsockname()[1]


@contextlib.contextmanager
def temporary_directory(prefix):
    """A private directory with a short path (socket paths are limited to 107 bytes), removed at the end."""
    path = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def running(command, log, core=None, env=None, cwd=None):
    """Runs a command until the block is left; yields its Popen. Output goes to the file `log`.

    The child leads a process group of its own: a Ctrl-C reaches only this script, which then ends the child in order.
    """
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    with open(log, "ab") as sink:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, cwd=cwd, start_new_session=True
            )
        except OSError as error:
            raise Trouble(f"cannot start {command[0]}: {error.strerror}") from error
    try:
        yield process
    finally:
        stop(process)


def stop(process, patience=8.0):
    """Ends one process of ours: TERM, then KILL when it has not gone within `patience` seconds. Returns its status."""
    children = descendants(process.pid)[1:] if process.poll() is None else []
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            print(f"  (process {process.pid} ignored SIGTERM for {patience:.0f} s: killed)", file=sys.stderr)
            process.kill()
            process.wait()
    # A server that was killed cannot end its children; they must not outlive this script.
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(is_running(pid, born) for pid, born in children):
        time.sleep(0.02)
    for pid, born in children:
        if is_running(pid, born):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return process.returncode


def tail(log, lines=12):
    """The last lines of a log, for a message about what went wrong."""
    with contextlib.suppress(OSError), open(log, errors="replace") as file:
        return "".join(file.readlines()[-lines:]).rstrip()
    return ""


def wait_until_it_answers(process, log, address, path="/", deadline=15.0, secure=False):
    """Waits until GET `path` at `address` (a port, or the path of a Unix socket) gets a 200."""
    end = time.monotonic() + deadline
    seen = "no connection"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Trouble(f"{process.args[-1]}: exited with {process.returncode} before it served\n{tail(log)}")
        try:
            status, _ = request(address, path, secure=secure)
            if status == 200:
                return
            seen = f"status {status}"
        except OSError as error:
            seen = str(error)
        time.sleep(0.05)
    raise Trouble(f"{' '.join(map(str, process.args))}: did not answer within {deadline:.0f} s ({seen})\n{tail(log)}")


@functools.cache
def tls():
    """A client's settings that trust anybody: what is measured is on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def connect(address, timeout=5.0, secure=False):
    """A stream socket to a loopback port (int), with TLS or without, or to a Unix socket (path)."""
    if isinstance(address, int):
        stream = socket.create_connection(("127.0.0.1", address), timeout)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls().wrap_socket(stream) if secure else stream
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout)
    try:
        stream.connect(address)
    except OSError:
        stream.close()
        raise
    return stream


def read_answer(stream, pending=b""):
    """Reads one answer that has a Content-Length or is chunked; returns (status, head, body, bytes behind it)."""
    while b"\r\n\r\n" not in pending:
        pending += receive(stream)
    head, pending = pending.split(b"\r\n\r\n", 1)
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    status = int(head.split(b" ", 2)[1])
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while True:
            while b"\r\n" not in pending:
                pending += receive(stream)
            line, pending = pending.split(b"\r\n", 1)
            size = int(line.split(b";")[0], 16)
            while len(pending) < size + 2:
                pending += receive(stream)
            body, pending = body + pending[:size], pending[size + 2 :]
            if size == 0:
                return status, head, body, pending
    length = int(fields.get(b"content-length", b"0"))
    while len(pending) < length:
        pending += receive(stream)
    return status, head, pending[:length], pending[length:]


def receive(stream):
    piece = stream.recv(65536)
    if not piece:
        raise ConnectionError("the connection ended inside an answer")
    return piece


def request(address, path, timeout=2.0, secure=False):
    """One GET on a connection of its own: (status, body)."""
    with connect(address, timeout, secure) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        status, _, body, _ = read_answer(stream)
        return status, body


def stat_fields(pid):
    """The fields of /proc/PID/stat behind the program's name: [0] is the state, [1] the parent, [19] the start time."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rsplit(b")", 1)[1].split()


def is_running(pid, born):
    """Whether this very process (not a later one with its number) is still there."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return False
    return fields[19] == born and fields[0] not in (b"Z", b"X")


def descendants(root):
    """(pid, start time) of a process and of all below it, the root first."""
    below, born = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = stat_fields(int(entry))
                below.setdefault(int(fields[1]), []).append(int(entry))
                born[int(entry)] = fields[19]
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop(0)
        if pid in born:
            found.append((pid, born[pid]))
        waiting.extend(below.get(pid, []))
    return found


def cpu_nanoseconds(root):
    """User and system time of a process and its descendants, from each thread's schedstat (exact, in nanoseconds)."""
    total = 0
    for pid, _ in descendants(root):
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as file:
                    total += int(file.read().split()[0])
    return total


def resident_bytes(root):
    """Resident memory of a process and its descendants, from smaps_rollup (VmRSS lags behind by batches of pages)."""
    total = 0
    for pid, _ in descendants(root):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Rss:"):
                    total += int(line.split()[1]) * 1024
    return total


def run_to_end(command, timeout, core=None, env=None, cwd=None):
    """Runs a bounded command to its end and returns (status, output); it is killed and reported after `timeout`."""
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
            env=env, cwd=cwd, check=False,
        )
    except FileNotFoundError as error:
        raise Trouble(f"cannot start {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Trouble(f"{' '.join(command)}: not done within {timeout} s") from error
    return done.returncode, done.stdout.decode(errors="replace")
