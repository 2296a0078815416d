"""The table of a sweep: each point's scores over its seeds, the best on dev first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn.sweeps.baselines import MajorityScore
from cnn.sweeps.grid import show_value
from cnn.sweeps.journal import TrialResult
from cnn.sweeps.plan import LINEAR, RANDOM, SweepPlan, SweepPoint, Trial
from cnn.sweeps.student import Estimate, estimate

MAJORITY = "majority"
BASELINE_NAMES = {
    MAJORITY: "majority class",
    LINEAR: "logistic regression on mean-pooled features",
    RANDOM: "random embedding",
}


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """What one point gave.

    Attributes:
        settings: Its settings, and its view's name or layer where the sweep compares views.
        differing: Those of them in which the points of the sweep differ.
        view: Fingerprint of the view; empty of the majority class.
        baseline: ``"majority"``, ``"linear"``, ``"random"``, or empty.
        dev: Accuracy on dev over the seeds; what rows are ordered by. None: every seed failed.
        test: Accuracy on test; None if there is no test part. It orders nothing.
        seconds: Of a training, the mean.
        runs: The run of each seed that is done.
        failures: Why a seed failed.
        missing: Seeds that are not done.
    """

    settings: Mapping[str, Any]
    differing: Mapping[str, Any]
    view: str
    baseline: str
    dev: Estimate | None
    test: Estimate | None
    seconds: float
    runs: Mapping[int, str]
    failures: Mapping[int, str]
    missing: tuple[int, ...]

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "settings": dict(self.settings),
            "differing": dict(self.differing),
            "view": self.view or None,
            "baseline": self.baseline or None,
            "dev": self.dev.to_record() if self.dev else None,
            "test": self.test.to_record() if self.test else None,
            "seconds": self.seconds,
            "runs": {str(seed): run for seed, run in self.runs.items()},
            "failures": {str(seed): reason for seed, reason in self.failures.items()},
            "missing": list(self.missing),
        }


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """A sweep's results so far: ``sweep --json``.

    Attributes:
        sweep: Its name.
        dataset: The dataset's name.
        version: Its version.
        seeds: Those that each point is trained with.
        rows: The best mean on dev first, of equal ones the faster; points without a score last.
        done: Trials that gave a run.
        failed: Trials that failed.
        missing: Trials that are left to do.
        notes: Lines about what is not in the table.
    """

    sweep: str
    dataset: str
    version: str
    seeds: tuple[int, ...]
    rows: tuple[LeaderboardRow, ...]
    done: int
    failed: int
    missing: int
    notes: tuple[str, ...]

    @property
    def best(self) -> LeaderboardRow | None:
        """The best row that is no baseline; None if there is none yet."""
        found = [row for row in self.rows if row.dev is not None and not row.baseline]
        return found[0] if found else None

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "sweep": self.sweep,
            "dataset": self.dataset,
            "version": self.version,
            "seeds": list(self.seeds),
            "rows": [row.to_record() for row in self.rows],
            "done": self.done,
            "failed": self.failed,
            "missing": self.missing,
            "notes": list(self.notes),
        }


def make_leaderboard(
    plan: SweepPlan,
    results: Mapping[str, TrialResult],
    majority: Mapping[int, MajorityScore],
) -> Leaderboard:
    """Sum up what there is of a sweep.

    Args:
        plan: What was to be trained.
        results: What became of trials, by digest.
        majority: The majority class's score by seed; empty: it is not compared with.
    """
    names = _differing_names(plan.points)
    rows = [_row_of_point(plan, point, results, names) for point in plan.points]
    if majority:
        rows.append(_row_of_majority(majority))
    rows.sort(key=_rank)
    known = [results.get(trial.digest) for trial in plan.trials]
    return Leaderboard(
        sweep=plan.name,
        dataset=plan.dataset,
        version=plan.version,
        seeds=plan.seeds,
        rows=tuple(rows),
        done=sum(result is not None and result.is_done for result in known),
        failed=sum(result is not None and not result.is_done for result in known),
        missing=known.count(None),
        notes=plan.notes,
    )


def _differing_names(points: Sequence[SweepPoint]) -> list[str]:
    """The settings that are not the same in all points, baselines left aside."""
    shown = [point.shown for point in points if not point.baseline]
    names = dict.fromkeys(name for settings in shown for name in settings)
    return [
        name for name in names if len({show_value(settings.get(name)) for settings in shown}) > 1
    ]


def _row_of_point(
    plan: SweepPlan,
    point: SweepPoint,
    results: Mapping[str, TrialResult],
    differing: Sequence[str],
) -> LeaderboardRow:
    known = {seed: results.get(Trial(point, seed, plan.version).digest) for seed in plan.seeds}
    done = {seed: result for seed, result in known.items() if result and result.run}
    devs = [result.dev["accuracy"] for result in done.values() if result.dev]
    tests = [result.test["accuracy"] for result in done.values() if result.test]
    shown = point.shown
    return LeaderboardRow(
        settings={name: _plain(value) for name, value in shown.items()},
        differing={name: _plain(shown[name]) for name in differing if name in shown},
        view=point.view,
        baseline=point.baseline,
        dev=estimate(devs) if devs else None,
        test=estimate(tests) if tests else None,
        seconds=sum(result.seconds for result in done.values()) / max(1, len(done)),
        runs={seed: result.run for seed, result in done.items() if result.run},
        failures={
            seed: result.reason for seed, result in known.items() if result and not result.run
        },
        missing=tuple(seed for seed, result in known.items() if result is None),
    )


def _row_of_majority(majority: Mapping[int, MajorityScore]) -> LeaderboardRow:
    tests = [score.test for score in majority.values() if score.test is not None]
    return LeaderboardRow(
        settings={},
        differing={},
        view="",
        baseline=MAJORITY,
        dev=estimate([score.dev for score in majority.values()]),
        test=estimate(tests) if tests else None,
        seconds=0.0,
        runs={},
        failures={},
        missing=(),
    )


def _rank(row: LeaderboardRow) -> tuple[float, float]:
    return (-row.dev.mean if row.dev else math.inf, row.seconds)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
