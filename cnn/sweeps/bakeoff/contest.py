"""`bakeoff`: several modules on a part of a corpus; the whole only for the best of them.

What was computed for the part is in the store under its texts' keys, so that the whole costs
only what the part did not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cnn.sweeps.bakeoff.build_cost import BuildCost, cost_of_view
from cnn.sweeps.bakeoff.part import CorpusPart, choose_part
from cnn.sweeps.grid import SEED_AXIS, VIEW_AXES, Values
from cnn.sweeps.journal import Journal
from cnn.sweeps.leaderboard import Leaderboard, LeaderboardRow
from cnn.sweeps.student import Estimate
from cnn.sweeps.sweeping import OnTrial, SweepOptions, sweep
from embedcache.corpus import Source
from embedcache.pinning import pin_module
from embedcache.precompute import (
    BuildOptions,
    BuildProgress,
    BuildReport,
    build,
    checked_dataset_name,
    default_dataset_name,
)
from embedcache.store.store import FeatureStore

_NAME_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeoffOptions:
    """What a bake-off may be told beyond its corpus and modules.

    Attributes:
        layers: Layers of each module that has layers, each a candidate of its own; empty: the
            module's own output. ``build.layer`` is not looked at.
        dataset: Name of the whole corpus; None: as `embedcache.build` has it.
        sample: Documents of the part.
        sample_seed: What the part depends on.
        keep: Candidates for which the whole is built and trained on.
        seeds: Trainings of each.
        grid: Points to train, as in `sweep`, without views and seeds; a candidate is as good
            as its best.
        jobs: Trainings at a time.
        build: How features are made, and the corpus read.

    Raises:
        ValueError: if a field has no legal value.
    """

    layers: tuple[str, ...] = ()
    dataset: str | None = None
    sample: int = 1000
    sample_seed: int = 0
    keep: int = 1
    seeds: int = 3
    grid: Mapping[str, Values] = field(default_factory=dict)
    jobs: int = 1
    build: BuildOptions = field(default_factory=BuildOptions)

    def __post_init__(self) -> None:
        for name in ("sample", "keep", "seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        wrong = [name for name in (*VIEW_AXES, SEED_AXIS) if name in self.grid]
        if wrong:
            raise ValueError(
                f"{wrong[0]} is for the bake-off to choose; name modules, layers and seeds instead"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module, perhaps with one of its layers.

    Attributes:
        module: Its handle.
        layer: As ``--layer`` has it; None: the module's own output.
        view: Fingerprint of the view that they make.
    """

    module: str
    layer: str | None
    view: str


@dataclass(frozen=True, slots=True)
class BakeoffRow:
    """How a candidate did on the part, and on the whole if it was kept.

    Attributes:
        candidate: Which.
        dev: Accuracy on the part's dev documents, of the best point; None: all of it failed.
        test: On the part's test documents; it decides nothing.
        cost: What building the rest of the corpus would take, by the part.
        cost_rank: Place by texts a second, the fastest 1; None where no rate is known.
        kept: Whether the whole was built.
        whole: What the whole's best point gave; None if it was not kept.
        built: What the build of the whole did; None if it was not kept.
    """

    candidate: Candidate
    dev: Estimate | None
    test: Estimate | None
    cost: BuildCost
    cost_rank: int | None = None
    kept: bool = False
    whole: LeaderboardRow | None = None
    built: BuildReport | None = None

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            **asdict(self.candidate),
            "dev": self.dev.to_record() if self.dev else None,
            "test": self.test.to_record() if self.test else None,
            **self.cost.to_record(),
            "cost_rank": self.cost_rank,
            "kept": self.kept,
            "whole": self.whole.to_record() if self.whole else None,
            "built": self.built.to_record() if self.built else None,
        }


@dataclass(frozen=True, slots=True)
class BakeoffReport:
    """What a bake-off found: ``bakeoff --json``.

    Attributes:
        dataset: Name of the whole corpus.
        part: Name of the part as a dataset.
        version: Its version.
        documents: Documents of the part.
        total: Documents of the whole.
        sweep: Name of the sweep on the part.
        whole_sweep: Name of that on the whole.
        rows: The best on dev first, of equal ones the cheaper.
    """

    dataset: str
    part: str
    version: str
    documents: int
    total: int
    sweep: str
    whole_sweep: str
    rows: tuple[BakeoffRow, ...]

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        names = (
            "dataset", "part", "version", "documents", "total", "sweep", "whole_sweep",
        )  # fmt: skip
        rows = [row.to_record() for row in self.rows]
        return {**{name: getattr(self, name) for name in names}, "rows": rows}


@dataclass(frozen=True, slots=True)
class BakeoffListener:
    """What is called while a bake-off goes on.

    Attributes:
        on_stage: With a line that says what begins.
        on_build: As the ``on_progress`` of a build.
        on_trial: As that of a sweep.
    """

    on_stage: Callable[[str], None] = lambda _line: None
    on_build: Callable[[BuildProgress], None] = lambda _progress: None
    on_trial: OnTrial = lambda _progress: None


@dataclass(frozen=True, slots=True)
class _Bakeoff:
    """What all stages share."""

    store: FeatureStore
    sources: Sequence[Source]
    options: BakeoffOptions
    listener: BakeoffListener
    name: str
    candidates: tuple[Candidate, ...]


def bakeoff(
    store: FeatureStore,
    sources: Sequence[Source],
    modules: Sequence[str],
    *,
    options: BakeoffOptions | None = None,
    listener: BakeoffListener | None = None,
) -> BakeoffReport:
    """Compare modules on a stratified part of a corpus; build the whole for the best.

    Called again it builds and trains only what is missing. As `sweep`, it spawns processes.

    Args:
        store: An open store.
        sources: The corpus's files.
        modules: Handles.
        options: Everything else.
        listener: What is told meanwhile.

    Raises:
        CorpusError: if the corpus cannot be read.
        ModuleError: if a module cannot be used.
        TrainingError: if nothing can be trained on the part, or on the whole.
        StoreError: if the store cannot be written.
    """
    options, listener = options or BakeoffOptions(), listener or BakeoffListener()
    given = options.dataset
    name = default_dataset_name(sources) if given is None else checked_dataset_name(given)
    part = choose_part(sources, options.build.corpus, size=options.sample, seed=options.sample_seed)
    candidates = find_candidates(store, modules, options)
    run = _Bakeoff(store, sources, options, listener, name, candidates)
    rows, board = _try_part(run, part)
    rows, whole = _build_winners(run, rows)
    return BakeoffReport(
        dataset=name,
        part=board.dataset,
        version=board.version,
        documents=len(part.documents),
        total=len(part.keys),
        sweep=board.sweep,
        whole_sweep=whole.sweep,
        rows=tuple(rows),
    )


def find_candidates(
    store: FeatureStore, modules: Sequence[str], options: BakeoffOptions
) -> tuple[Candidate, ...]:
    """The candidates, each view once; what is wrong with one is told before the first is built."""
    found: dict[str, Candidate] = {}
    for module in modules:
        pinned = pin_module(store.catalog, module, preprocess=options.build.preprocess)
        has_layers = bool(pinned.facts.layers or pinned.facts.outputs)
        for layer in (options.layers if has_layers else ()) or (None,):
            view = pinned.view(replace(options.build, layer=layer).view_settings)
            found.setdefault(view.fingerprint, Candidate(module, layer, view.fingerprint))
    return tuple(found.values())


def _try_part(run: _Bakeoff, part: CorpusPart) -> tuple[list[BakeoffRow], Leaderboard]:
    """Build the part under every candidate and train on it: the rows, the best first."""
    options = run.options
    name = f"{run.name}-part-{len(part.documents)}"
    costs, version = {}, ""
    for candidate in run.candidates:
        run.listener.on_stage(f"{_shown(candidate)}: {len(part.documents):,} documents")
        report = build(
            run.store,
            run.sources,
            module=candidate.module,
            dataset=name,
            options=replace(options.build, layer=candidate.layer),
            documents=part.documents,
        )
        version = report.version
        costs[candidate.view] = cost_of_view(run.store, part.keys, report)
    board = _sweep(run, f"{name}@{version}", run.candidates, f"{version[:8]}-part")
    rows = []
    for candidate in run.candidates:
        best = _best_row(board, candidate)
        dev, test = (best.dev, best.test) if best else (None, None)
        rows.append(BakeoffRow(candidate, dev, test, costs[candidate.view]))
    return _ranked(rows), board


def _build_winners(
    run: _Bakeoff, rows: Sequence[BakeoffRow]
) -> tuple[list[BakeoffRow], Leaderboard]:
    """Build the whole for the first rows and train on it: all rows again, and the leaderboard."""
    winners = rows[: run.options.keep]
    reports = {}
    for row in winners:
        candidate = row.candidate
        run.listener.on_stage(f"{_shown(candidate)}: the whole corpus")
        reports[candidate.view] = build(
            run.store,
            run.sources,
            module=candidate.module,
            dataset=run.name,
            options=replace(run.options.build, layer=candidate.layer),
            on_progress=run.listener.on_build,
        )
    version = reports[winners[0].candidate.view].version
    kept = [row.candidate for row in winners]
    board = _sweep(run, f"{run.name}@{version}", kept, f"{version[:8]}-whole")
    finished = [
        replace(
            row,
            kept=True,
            whole=_best_row(board, row.candidate),
            built=reports[row.candidate.view],
        )
        for row in winners
    ]
    return [*finished, *rows[run.options.keep :]], board


def _sweep(
    run: _Bakeoff, dataset: str, candidates: Sequence[Candidate], suffix: str
) -> Leaderboard:
    """Train every point under every candidate's view; goes on with an earlier one's."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", run.name)[:_NAME_CHARACTERS]
    name = f"bakeoff-{plain}-{suffix}"
    known = Journal(run.store, name).exists
    run.listener.on_stage(f"training {len(candidates)} views of {dataset.partition('@')[0]}")
    return sweep(
        run.store,
        dataset,
        {**run.options.grid, "view": [candidate.view for candidate in candidates]},
        options=SweepOptions(
            seeds=run.options.seeds,
            jobs=run.options.jobs,
            name=None if known else name,
            resume=name if known else None,
            baselines=False,
        ),
        on_trial=run.listener.on_trial,
    )


def _best_row(board: Leaderboard, candidate: Candidate) -> LeaderboardRow | None:
    """The first row of a candidate that has a score: rows are in the order of dev."""
    rows = (row for row in board.rows if row.view == candidate.view and row.dev is not None)
    return next(rows, None)


def _ranked(rows: Sequence[BakeoffRow]) -> list[BakeoffRow]:
    """The rows with their ranks by cost, the best on dev first, of equal ones the cheaper."""
    rates = sorted(-(row.cost.texts_per_second or 0.0) for row in rows)
    ranked = [
        replace(row, cost_rank=1 + rates.index(-row.cost.texts_per_second))
        if row.cost.texts_per_second
        else row
        for row in rows
    ]
    return sorted(
        ranked,
        key=lambda row: (-row.dev.mean if row.dev else 1.0, -(row.cost.texts_per_second or 0.0)),
    )


def _shown(candidate: Candidate) -> str:
    layer = "" if candidate.layer is None else f" layer {candidate.layer}"
    return f"{candidate.module}{layer}"
