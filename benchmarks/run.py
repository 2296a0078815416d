"""Runs the benchmarks, each in a process of its own, and renews results.json and README.md.

python -m benchmarks.run              all of them
python -m benchmarks.run B1 B5        these; the figures of the others stay
python -m benchmarks.run --scale tiny to try; nothing is kept
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.child import ROOT, child_environment
from benchmarks.machine import Neighbours, describe_machine, peak_rss_bytes
from benchmarks.report import render_results, replace_results
from benchmarks.scale import SCALES

MODULES = {
    "B1": "benchmarks.b01_stream",
    "B2": "benchmarks.b02_overhead",
    "B3": "benchmarks.b03_contextual",
    "B4": "benchmarks.b04_build",
    "B5": "benchmarks.b05_rebuild",
    "B6": "benchmarks.b06_index",
    "B7": "benchmarks.b07_storing",
    "B8": "benchmarks.b08_experiments",
    "B9": "benchmarks.b09_encodings",
    "B10": "benchmarks.b10_memory",
    "B11": "benchmarks.b11_startup",
    "B12": "benchmarks.b12_service",
}
HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument("numbers", nargs="*", metavar="B1", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full")
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="a folder for files")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.numbers) - set(MODULES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    numbers = [number for number in MODULES if number in (arguments.numbers or MODULES)]
    if arguments.child:
        print(json.dumps(_run_here(numbers[0], arguments.scale, arguments.work)))
        return
    records = [_run_apart(number, arguments.scale, arguments.work) for number in numbers]
    if arguments.scale == "full":
        _keep(records, arguments.work)


def _run_here(number: str, scale: str, work: Path) -> dict[str, Any]:
    """One benchmark in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    folder = work / number
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with Neighbours() as neighbours:
        report = import_module(MODULES[number]).run(SCALES[scale], folder)
    shutil.rmtree(folder)
    report.peak_rss_mb = peak_rss_bytes() / 1e6
    report.load_before, report.others_cpu = neighbours.load_before, neighbours.share
    record: dict[str, Any] = report.to_record()
    return record


def _run_apart(number: str, scale: str, work: Path) -> dict[str, Any]:
    """One benchmark in a new process, so that none inherits another's modules and memory."""
    print(f"{number} …", end=" ", file=sys.stderr, flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.run", number, "--child", "--scale", scale]
    done = subprocess.run(
        [*command, "--work", str(work)],
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    for series in record["series"]:
        print(f"    {series['median']:14,.3f} {record['unit']:8} {series['name']}", file=sys.stderr)
    for target in record["targets"]:
        mark = {True: "reached", False: "NOT reached", None: "-"}[target["is_reached"]]
        print(f"    {target['value']:14.3f} {mark:12} {target['what']}", file=sys.stderr)
    for what in record["skipped"]:
        print(f"    left out: {what}", file=sys.stderr)
    return record


def _keep(records: list[dict[str, Any]], work: Path) -> None:
    """Renew results.json and the table: the benchmarks that ran, and the others' old figures."""
    known: dict[str, Any] = {}
    if RESULTS.exists():
        old = json.loads(RESULTS.read_text(encoding="utf-8"))
        known = {record["number"]: record for record in old["benchmarks"]}
    known.update({record["number"]: record for record in records})
    results = {
        "machine": describe_machine(work),
        "benchmarks": [known[number] for number in MODULES if number in known],
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(replace_results(text, render_results(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
