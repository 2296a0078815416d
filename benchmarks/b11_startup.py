"""B11: start-up wall times."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import embedcache
from benchmarks.child import child_environment, run_child
from benchmarks.corpora import sst2_sources
from benchmarks.measure import Contender, elapsed, measure
from benchmarks.report import Report, Target, named
from benchmarks.scale import Scale

COMMAND_LINE = "from cli.main import main; main()"
FIRST_STEP = "first step of a training: import, first batch, model, step"
LIMIT = "python -c pass"
WANTED_SECONDS = {
    "embedcache --help": 0.3,
    "embedcache stats": 0.5,
    "embedcache build, all hits": 1.0,
}


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    sources, what = sst2_sources(scale, work, scale.startup_texts)
    store = work / "store"
    named_sources = [f"{split}={path}" for split, path in sources.items()]
    with embedcache.open_store(store) as opened:
        embedcache.build(opened, sources, dataset="b11")
    build = ("--store", str(store), "build", *named_sources, "--dataset", "b11")
    commands = {
        "embedcache --help": ("--help",),
        "embedcache stats": ("--store", str(store), "stats"),
        "embedcache build, all hits": build,
    }
    contenders = [
        Contender(name=name, role="ours", run=partial(_run_timed, arguments))
        for name, arguments in commands.items()
    ]
    contenders.append(Contender(name=FIRST_STEP, role="ours", run=partial(_first_step, store)))
    contenders.append(Contender(name=LIMIT, role="limit", run=_pass))
    series = measure(contenders, rounds=scale.rounds, value=elapsed)
    return Report(
        number="B11",
        title="start-up, from the process's start to its end",
        unit="s",
        cache="warm, bytecode is compiled",
        binds="imports: click alone for --help; NumPy, SQLAlchemy and h5py for stats and a build of"
        " hits; TensorFlow and Keras for a training",
        series=series,
        targets=[
            Target(
                what=f"{name}: ≤ {bound:g} s",
                value=named(series, name).median,
                wanted=bound,
                at_most=True,
                unit="s",
            )
            for name, bound in WANTED_SECONDS.items()
        ],
        notes=[f"{what}. Each is a process of its own; `kim`, batch 50, for the training."],
    )


def _run_timed(arguments: tuple[str, ...], _number: int) -> float:
    _run_command(*arguments)
    return 1.0


def _run_command(*arguments: str) -> None:
    """The console script, from this checkout."""
    command = [sys.executable, "-c", COMMAND_LINE, *arguments]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"embedcache {' '.join(arguments)} failed: {done.stderr[-2000:]}")


def _first_step(store: Path, _number: int) -> float:
    run_child("first-step", store)
    return 1.0


def _pass(_number: int) -> float:
    subprocess.run([sys.executable, "-c", "pass"], env=child_environment(), check=True)
    return 1.0
