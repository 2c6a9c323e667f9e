"""Fast clients at a constant rate, measured in windows: what the scripts that judge by times have in common.

A machine of few processors does things to everybody at once: the kernel asks the windows of thousands of peers at the same moment, clients and workers
of the script's own want a processor. So two servers stand side by side, one in trouble and one without any, and are asked in turns: what
the second one's clients notice as well is not the first one's doing.
"""

import contextlib
import json
import os
import statistics
import subprocess

import common
import processes
from processes import Trouble

FIGURES = ("p50_us", "p99_us", "max_us")


def program(home, name):
    """One of the C programs of benches/load, compiled into `home`."""
    processes.need("gcc")
    out, source = os.path.join(home, name), os.path.join(common.ROOT, "benches", "load", f"{name}.c")
    status, output = processes.run_to_end(["gcc", "-O2", "-Wall", "-o", out, source], timeout=60)
    if status != 0:
        raise Trouble(f"gcc could not compile {source}:\n{output}")
    return out


class Clients:
    """The fast clients of one server: so many connections for each path, asked at so many requests a second together."""

    def __init__(self, program, port, paths, rate, connections, seconds):
        self.paths, self.seconds = paths, seconds
        self.lines = {path: [program, str(port), path, str(rate // len(paths)), str(seconds), str(connections // len(paths))] for path in paths}

    def window(self, into):
        """Asks all paths at once for one window."""
        with contextlib.ExitStack() as stack:
            running = {}
            for path, line in self.lines.items():
                running[path] = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
                stack.callback(processes.stop, running[path])
            for path, process in running.items():
                output, _ = process.communicate(timeout=self.seconds + 30)
                into.add(path, process.returncode, output)

    def windows(self, number):
        """So many windows, one after the other."""
        windows = Windows(self.paths)
        for _ in range(number):
            self.window(windows)
        return windows


def in_turns(one, other, number):
    """So many windows of each of two servers' clients, in turns."""
    windows = Windows(one.paths), Windows(other.paths)
    for _ in range(number):
        one.window(windows[0])
        other.window(windows[1])
    return windows


class Windows:
    """What the fast clients of one server noticed, and which of their requests failed."""

    def __init__(self, paths):
        self.runs, self.failed = {path: [] for path in paths}, []

    def add(self, path, code, output):
        """What the program said of one path."""
        if code != 0:
            self.failed.append(f"{path}: {output.decode().strip() or code}")
        with contextlib.suppress(ValueError):
            self.runs[path].append(json.loads(output))

    def median(self, path, figure):
        """Of one figure, over the windows, in microseconds; infinite where there are none."""
        runs = self.runs[path]
        return statistics.median(run[figure] for run in runs) if runs else float("inf")

    def slow(self, factor, without, control):
        """The paths whose p99 is above that many times the larger one of both others."""
        bound = {path: factor * max(other.median(path, "p99_us") for other in (without, control)) for path in self.runs}
        return [path for path in self.runs if self.median(path, "p99_us") > bound[path]]

    def __str__(self):
        def of(path):
            p50, p99, most = (self.median(path, figure) for figure in FIGURES)
            return f"{path} p50 {p50:.0f}, p99 {p99:.0f}, max {most:.0f} µs"

        return "; ".join(map(of, self.runs))
