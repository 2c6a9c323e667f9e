#!/usr/bin/env python3
"""Breaks the code in hundreds of small ways, and tells which of them no unit test notices: cargo-mutants over the parts that decide.

    tests/scripts/mutants.py [--parts fleet,dispatch,supervisor,exchange] [--shard K/N] [--jobs 1] [--output FOLDER]

By hand: a mutant takes half a minute, and there are thousands; `--shard 0/50` takes the first fiftieth of them. What the unit tests miss
may be noticed by the simulation or end to end: `--suite FILTER` runs those tests of the suite, too, and takes so much longer.
Needs `cargo install cargo-mutants`. Exit codes: 0 every mutant was caught, 1 some were missed or it could not run, 64 wrong flags.
"""

import argparse
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PARTS = ("fleet", "dispatch", "supervisor", "exchange")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="folders of src/ (default: %(default)s)")
    parser.add_argument("--shard", help="K/N: the part K, from 0, of N alike ones")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: %(default)s)")
    parser.add_argument("--suite", help="tests of the suite to be run beside the unit tests, as `cargo test --test suite -- FILTER`")
    parser.add_argument("--output", default="target/mutants", help="where the reports go (default: %(default)s)")
    try:
        options = parser.parse_args()
    except SystemExit as leaving:
        return 64 if leaving.code else 0
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS) or (options.shard and not re.fullmatch(r"\d+/[1-9]\d*", options.shard)) or options.jobs < 1:
        print("mutants.py: --parts are of " + ", ".join(PARTS) + "; --shard is K/N; --jobs is 1 or more", file=sys.stderr)
        return 64
    os.makedirs(os.path.join(ROOT, options.output), exist_ok=True)
    command = ["cargo", "mutants", "--profile", "mutants", "--jobs", str(options.jobs), "--output", options.output]
    command += [word for part in parts for word in ("--file", f"src/{part}/**", "--file", f"src/{part}.rs")]
    command += ["--shard", options.shard] if options.shard else []
    # Nothing is built that is not run.
    command += ["-C=--lib"] + (["-C=--test", "-C=suite", "--", "--", options.suite] if options.suite else [])
    try:
        return 0 if subprocess.run(command, cwd=ROOT, check=False).returncode == 0 else 1
    except FileNotFoundError:
        print("error: cargo is not installed", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
