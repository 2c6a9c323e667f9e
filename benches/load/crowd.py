"""A crowd: the program whose clients wait, and what it says of them. See crowd.c for the doors; listeners.c stands in the same way."""

import contextlib
import json
import select
import subprocess
import time

import processes
from processes import Trouble

# No wait for a word of the program is longer, in seconds.
PATIENCE = 60.0
# How long a crowd may stand still before it is taken for stuck, and how long it may take in all. Thousands of uploads together are more
# than the kernel's memory for TCP (tcp_mem): it drops segments, and some senders creep on at a few KB/s for as long.
STILL = 30.0
LONGEST = 300.0


class Crowd:
    """The running program; it ends, and all peers leave, with the block of `standing`."""

    def __init__(self, process, peers):
        self.process, self.peers = process, peers

    def say(self, word):
        """Gives it a word and waits for its state."""
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise Trouble("the crowd's program says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise Trouble("the crowd's program has ended")
        return json.loads(line)

    def until(self, member, at_worker=None):
        """Waits until that member of the state counts all peers, and `at_worker()` of them are there; or until nothing has moved
        for a long time. The last state, and whether all were there."""
        last, since = None, time.monotonic()
        end = since + LONGEST
        while True:
            state = self.say("state")
            here = state[member], at_worker() if at_worker else self.peers
            if min(here) >= self.peers:
                return state, True
            moved = here, state["bytes_sent"], state["bytes_got"] if member == "whole" else 0
            if moved != last:
                last, since = moved, time.monotonic()
            if time.monotonic() > min(since + STILL, end):
                return state, False
            time.sleep(0.05)


@contextlib.contextmanager
def standing(program, port, *words, peers=0, core=None):
    """Runs the program, with these words behind the port, until the block is left."""
    command = ["taskset", "-c", str(core)] if core is not None else []
    process = subprocess.Popen(
        [*command, program, str(port), *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        yield Crowd(process, peers)
    finally:
        processes.stop(process)
        process.stdin.close()
        process.stdout.close()


def room(wanted):
    """How many peers may come: each may need two descriptors of the server, which has some of its own."""
    most = (processes.raise_descriptor_limit() - 1000) // 2
    if wanted > most:
        print(f"{most} peers and not {wanted}: RLIMIT_NOFILE allows no more")
    return min(wanted, most)
