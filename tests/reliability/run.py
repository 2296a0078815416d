"""Runs the harnesses, each in a process of its own, and renews the table of docs/reliability.md.

python -m tests.reliability.run                      all of them, at full counts
python -m tests.reliability.run kill_loop crowd      these; the other rows of the table stay
python -m tests.reliability.run --scale short        to try; nothing is kept
python -m tests.reliability.run --seed 7 crowd       with another seed

The status is 1 if anything was lost or wrong, or has crashed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.reliability.outcome import Outcome
from tests.reliability.processes import program_environment
from tests.reliability.table import Row, describe_machine, replace_rows

HARNESSES = (
    "kill_loop",
    "power_loss",
    "call_failures",
    "traced_failures",
    "disk_full",
    "mutations",
    "crowd",
    "state_machine",
    "interruptions",
)
SEED = 1122
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.run")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(HARNESSES)}")
    parser.add_argument("--scale", choices=("short", "full"), default="full")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--work", type=Path, help="a folder for files; it should be on a disk")
    parser.add_argument("--bug", action="append", help="one to seed, to see that it is reported")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(HARNESSES)
    if unknown:
        parser.error(f"no such harness: {', '.join(sorted(unknown))}")
    chosen = [name for name in HARNESSES if name in (arguments.names or HARNESSES)]
    how = {"scale": arguments.scale, "seed": arguments.seed, "work": arguments.work}
    if arguments.child:
        bugs = arguments.bug or [""]
        outcomes = [run_here(chosen[0], bug=bug, **how) for bug in bugs]
        print(json.dumps([outcome.to_record() for outcome in outcomes]))
        return
    rows = []
    for name in chosen:
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        started = time.monotonic()
        (outcome,) = run_apart(name, bugs=arguments.bug or [""], **how)
        seconds = time.monotonic() - started
        rows.append(Row.of(name, title_of(name), arguments.seed, outcome, seconds))
        _print(rows[-1], outcome)
    if arguments.scale == "full" and not arguments.bug:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(
            replace_rows(text, rows, list(HARNESSES), describe_machine()), encoding="utf-8"
        )
    sys.exit(0 if all(row.is_clean for row in rows) else 1)


def title_of(name: str) -> str:
    """What a harness does, in the table."""
    title: str = import_module(f"tests.reliability.{name}").TITLE
    return title


def run_here(
    name: str, *, scale: str, seed: int, bug: str = "", work: Path | None = None
) -> Outcome:
    """Run one harness in this process, which may have no other threads."""
    harness = import_module(f"tests.reliability.{name}")
    counts: dict[str, int] = harness.FULL if scale == "full" else harness.SHORT
    folder = Path(tempfile.mkdtemp(prefix=f"embedcache-{name}-", dir=work))
    try:
        outcome: Outcome = harness.run(folder, **counts, seed=seed, bug=bug)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def run_apart(
    name: str,
    *,
    scale: str,
    seed: int = SEED,
    bugs: Sequence[str] = ("",),
    work: Path | None = None,
) -> list[Outcome]:
    """Run one harness in a new process, once with each bug; an empty one is none.

    Raises:
        RuntimeError: if the harness itself fails.
    """
    command = [sys.executable, "-m", "tests.reliability.run", name, "--child", "--scale", scale]
    command += ["--seed", str(seed), *(word for bug in bugs for word in ("--bug", bug))]
    done = subprocess.run(
        command + ([] if work is None else ["--work", str(work)]),
        cwd=ROOT,
        env=program_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    records: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return [Outcome.from_record(record) for record in records]


def _print(row: Row, outcome: Outcome) -> None:
    print(f"{row.seconds:.0f} s", file=sys.stderr)
    found = outcome.findings
    what = f"{found.lost} lost, {found.wrong} wrong, {found.crashed} crashed"
    print(f"    {outcome.done or 'nothing'}: {what}", file=sys.stderr)
    for line in ([f"left out: {outcome.skipped}"] if outcome.skipped else []) + found.told:
        print(f"    {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
