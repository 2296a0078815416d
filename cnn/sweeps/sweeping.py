"""`sweep`: many trainings on one dataset → a leaderboard.

plan (points × seeds) → what the journal lacks → workers → runs → leaderboard
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cnn.planning import make_plan
from cnn.saving import check_writable
from cnn.sweeps.baselines import MajorityScore, baseline_points, majority_score
from cnn.sweeps.grid import (
    SEED_AXIS,
    VIEW_AXES,
    Grid,
    Range,
    Values,
    check_grid,
    choose_points,
    config_of_point,
)
from cnn.sweeps.journal import Journal, TrialResult, newest_sweep
from cnn.sweeps.leaderboard import Leaderboard, make_leaderboard
from cnn.sweeps.plan import (
    SweepPlan,
    SweepPoint,
    Trial,
    checked_sweep_name,
    distinct_points,
    new_sweep_name,
)
from cnn.sweeps.view_axes import NamedView, views_of_layers, views_of_names
from cnn.sweeps.worker_process import Workplace
from cnn.sweeps.workers import WorkerPool, cores_of_process
from embedcache.errors import TrainingError
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore
from embedcache.stream.stream import FeatureStream

LAST = ""
"""As the name of a sweep to resume: the one that was begun last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """What a sweep may be told beyond its dataset and grid.

    Attributes:
        random: Draw so many distinct points instead of training all; None: all.
        random_seed: What the draws depend on.
        seeds: Trainings of each point, with the seeds 0, 1, …; None: 1, or those that a
            resumed sweep has. A grid that names ``seed`` says itself which.
        jobs: Trainings at a time, each in a process of its own with its share of the cores.
        name: What the sweep is called; None: made of the time and the dataset.
        resume: The sweep to go on with, by name; ``""`` the last one; None: begin one.
        baselines: Whether the baselines are trained and compared with.
        retry_failed: Whether a resumed sweep tries again what has failed.

    Raises:
        ValueError: if a field has no legal value.
    """

    random: int | None = None
    random_seed: int = 0
    seeds: int | None = None
    jobs: int = 1
    name: str | None = None
    resume: str | None = None
    baselines: bool = True
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for name in ("random", "seeds", "jobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1: got {value}")
        if self.name is not None and self.resume is not None:
            raise ValueError("a sweep is begun under a name or resumed by it, not both")


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """What a sweep tells after each trial.

    Attributes:
        trial: The trial that is done or has failed.
        result: What became of it.
        finished: Trials that this call has finished.
        total: Trials that this call has to do.
    """

    trial: Trial
    result: TrialResult
    finished: int
    total: int


OnTrial = Callable[[SweepProgress], None]


def sweep(
    store: FeatureStore,
    dataset: str | None = None,
    grid: Grid | None = None,
    *,
    options: SweepOptions | None = None,
    on_trial: OnTrial = lambda _progress: None,
) -> Leaderboard:
    """Train every point of a grid with every seed, and sum up the scores.

    Every training is a run in the store; what is done is kept as it is done, and a sweep that
    was ended by anything goes on where it was with ``SweepOptions(resume=…)``. A resumed
    sweep keeps its dataset's version and its views; points and seeds of the new call that it
    lacks are added.

    The trainings run in processes that are spawned: a program that calls this must guard its
    own beginning with ``if __name__ == "__main__":``.

    Args:
        store: An open store.
        dataset: Name, or ``NAME@VERSION``; None: the newest, or that of the resumed sweep.
        grid: Fields of `TrainConfig` with the values to try, lists or a `Range`; ``view``
            (beginnings of fingerprints) or ``layer`` (layers of the dataset's module) too.
        options: Everything else.
        on_trial: Called after each training.

    Raises:
        ValueError: if the grid names no fields or no values of theirs.
        UnknownNameError: if there is no such dataset, view, layer or sweep.
        TrainingError: if the dataset cannot be trained on, every training failed, or the sweep
            cannot be resumed so.
        KeyNotFoundError: if a view lacks some of the texts.
        StoreError: if runs cannot be kept.
    """
    options = options or SweepOptions()
    checked = check_grid(grid or {})
    check_writable(store)
    earlier = _earlier_plan(store, dataset, options)
    wanted = dataset if earlier is None else f"{earlier.dataset}@{earlier.version}"
    loaded = store.load_dataset(wanted)
    plan = _make_plan(store, loaded, checked, options, earlier)
    journal = Journal(store, plan.name)
    if earlier is None:
        _require_new(journal)
    if _missing(plan, journal, options):
        _check(store, loaded, plan)
    with journal.locked():
        if earlier is None:
            _require_new(journal)
        journal.save_plan(plan)
        _train_missing(store, plan, journal, options, on_trial)
        return _sum_up(plan, journal, _majority(loaded, plan))


def load_leaderboard(store: FeatureStore, name: str = LAST) -> Leaderboard:
    """The leaderboard of a sweep, by its name; ``""`` is the one that was begun last.

    Raises:
        UnknownNameError: if there is no such sweep, or its dataset is gone.
    """
    plan = Journal(store, name or newest_sweep(store)).load_plan()
    loaded = store.load_dataset(f"{plan.dataset}@{plan.version}")
    majority = _majority(loaded, plan)
    return make_leaderboard(plan, Journal(store, plan.name).results(), majority)


def _earlier_plan(
    store: FeatureStore, dataset: str | None, options: SweepOptions
) -> SweepPlan | None:
    """The plan of the sweep that is to be resumed; None: a new one is to begin."""
    if options.resume is None:
        return None
    asked = None if dataset is None else store.catalog.find_dataset(dataset)
    name = options.resume or newest_sweep(store, dataset=asked.name if asked else None)
    plan = Journal(store, name).load_plan()
    if asked is not None and (asked.name, asked.version) != (plan.dataset, plan.version):
        raise TrainingError(
            f"sweep {plan.name} is of {plan.dataset}@{plan.version[:12]}, and"
            f" {dataset} is {asked.name}@{asked.version[:12]} now: their scores do not compare; go"
            f" on with `embedcache sweep {plan.dataset}@{plan.version[:12]} --resume {plan.name}`,"
            " or begin a new sweep"
        )
    return plan


def _require_new(journal: Journal) -> None:
    if journal.exists:
        raise TrainingError(
            f"there is a sweep {journal.name!r} already; go on with it with --resume"
            f" {journal.name}, or give this one another --name"
        )


def _make_plan(
    store: FeatureStore,
    dataset: Dataset,
    grid: Mapping[str, Values],
    options: SweepOptions,
    earlier: SweepPlan | None,
) -> SweepPlan:
    """The plan of the points and seeds that are asked for, and those of an earlier plan."""
    if options.random is not None and not grid:
        raise ValueError("points are drawn from a grid: give one with --grid NAME=V,V")
    axes = dict(grid)
    plan = SweepPlan(
        name=checked_sweep_name(options.name or new_sweep_name(dataset.name)),
        dataset=dataset.name,
        version=dataset.version,
        points=(),
        seeds=_seeds(axes.pop(SEED_AXIS, None), options, earlier),
        majority=options.baselines,
    )
    if earlier is None or axes:
        points, notes = _points(store, dataset, axes, options, earlier)
        plan = replace(plan, points=distinct_points(points), notes=tuple(notes))
    return plan if earlier is None else earlier.with_added(plan)


def _seeds(
    axis: Values | None, options: SweepOptions, earlier: SweepPlan | None
) -> tuple[int, ...]:
    if axis is None:
        if options.seeds is None and earlier is not None:
            return earlier.seeds
        return tuple(range(options.seeds or 1))
    if options.seeds is not None:
        raise ValueError("the grid names seeds, and so does --seeds; give one of the two")
    if isinstance(axis, Range):
        raise ValueError(  # noqa: TRY004
            "seed takes no range; list the seeds, or say how many with --seeds K"
        )
    return tuple(axis)


def _points(
    store: FeatureStore,
    dataset: Dataset,
    axes: Grid,
    options: SweepOptions,
    earlier: SweepPlan | None,
) -> tuple[list[SweepPoint], list[str]]:
    """The points of a grid and what they are compared with; and notes."""
    views = _named_views(store, dataset, axes, earlier)
    points = []
    for point in choose_points(axes, count=options.random, seed=options.random_seed):
        config_of_point(point)  # raises where its values do not fit each other
        asked = next((point[axis] for axis in VIEW_AXES if axis in point), "")
        settings = {name: value for name, value in point.items() if name not in VIEW_AXES}
        points.append(SweepPoint(settings, views[asked].view, views[asked].label))
    if not options.baselines:
        return points, []
    fixed = {
        name: values[0]
        for name, values in axes.items()
        if name not in VIEW_AXES and not isinstance(values, Range) and len(values) == 1
    }
    compared, notes = baseline_points(store, dataset, list(views.values()), fixed)
    return [*points, *compared], notes


def _named_views(
    store: FeatureStore, dataset: Dataset, axes: Grid, earlier: SweepPlan | None
) -> dict[str, NamedView]:
    """The views that a grid names, by what it calls them; ``""``: it names none."""
    asked = {axis: values for axis, values in axes.items() if axis in VIEW_AXES}
    if len(asked) > 1:
        raise ValueError("a layer says which view is meant; give view or layer, not both")
    known = {} if earlier is None else {_key(point.label): point.view for point in earlier.points}
    if not asked:
        # A sweep stays with its view, also where the dataset was built under another since.
        view = known.get("") or store.view_of_dataset(dataset).fingerprint
        return {"": NamedView(view, {})}
    ((axis, values),) = asked.items()
    if isinstance(values, Range):
        raise ValueError(f"{axis} takes no range; list its values")  # noqa: TRY004
    find = partial(views_of_names, store) if axis == "view" else partial(
        views_of_layers, store, dataset
    )  # fmt: skip
    found = dict(zip(values, find(values), strict=True))
    for named in found.values():
        before = known.get(_key(named.label), named.view)
        if before != named.view:
            raise TrainingError(
                f"{_key(named.label)} is view {named.view[:12]} now, and was {before[:12]} when the"
                " sweep began: their scores do not compare; begin a new sweep, or name views with"
                f" --grid view={before[:12]}"
            )
    return found


def _key(label: Mapping[str, str]) -> str:
    """``{"layer": "3"}`` → ``layer=3``; ``{}`` → empty."""
    return ",".join(f"{name}={value}" for name, value in label.items())


def _check(store: FeatureStore, dataset: Dataset, plan: SweepPlan) -> None:
    """Raise what every trial would raise, and warn of leaks once, before the first begins."""
    first = plan.points[0]
    found = make_plan(store, dataset, first.config(plan.seeds[0]), view=first.view)
    used = [rows for cut in found.cuts for rows in cut.by_name().values()]
    for view in {point.view for point in plan.points} - {first.view}:
        # No view may lack a text; all else is the same for all.
        FeatureStream(store, dataset, view=view, rows=np.unique(np.concatenate(used)))


def _majority(dataset: Dataset, plan: SweepPlan) -> dict[int, MajorityScore]:
    if not plan.majority:
        return {}
    # The parts depend on the configuration: those of the first point, whose splits, folds and
    # shares are most often everyone's.
    return {seed: majority_score(dataset, plan.points[0].config(seed)) for seed in plan.seeds}


def _missing(plan: SweepPlan, journal: Journal, options: SweepOptions) -> list[Trial]:
    """The trials that are to be trained."""
    results = journal.results()
    return [
        trial
        for trial in plan.trials
        if trial.digest not in results
        or (options.retry_failed and not results[trial.digest].is_done)
    ]


def _train_missing(
    store: FeatureStore,
    plan: SweepPlan,
    journal: Journal,
    options: SweepOptions,
    on_trial: OnTrial,
) -> None:
    """Train what the journal lacks."""
    missing = _missing(plan, journal, options)
    finished = 0

    def keep(trial: Trial, result: TrialResult) -> None:
        nonlocal finished
        finished += 1
        if not result.is_done:
            journal.add(result)
        on_trial(SweepProgress(trial, result, finished, len(missing)))

    jobs = min(options.jobs, max(1, len(missing)))
    threads = max(1, cores_of_process() // jobs)
    workplace = Workplace(str(store.path), plan.name, plan.dataset, threads)
    WorkerPool(workplace, keep).run(missing, jobs=jobs)


def _sum_up(
    plan: SweepPlan, journal: Journal, majority: Mapping[int, MajorityScore]
) -> Leaderboard:
    board = make_leaderboard(plan, journal.results(), majority)
    if not board.done:
        reason = next(
            (reason for row in board.rows for reason in row.failures.values()), "nothing was done"
        )
        raise TrainingError(
            f"sweep {plan.name}: all {board.failed} trainings failed; the first: {reason}"
        )
    return board
