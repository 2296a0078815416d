"""Kim's (2014) experiments on stored features, and docs/results.md from them.

python -m benchmarks.paper                          all of it: hours
python -m benchmarks.paper --only words --corpora sst2 trec
python -m benchmarks.paper --jobs 2 --store DIR     what was trained is kept there; run it again
                                                    to go on, or to write the page once more

Each table is a sweep, as `embedcache sweep` makes it. A layer is chosen on dev alone, by a sweep
of its own, before anything is scored on test. Where a data set is cross-validated, all seeds are
for the embedding that has a figure to reach; the other three are compared with one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cnn
import embedcache
from benchmarks.checkpoints import MINILM_PACKAGE, find_minilm
from benchmarks.corpora import SHARED_DATA
from benchmarks.paper_page import PAGE, Results, render_page
from cnn.sweeps import SweepOptions, SweepProgress
from embedcache import FeatureStore
from embedcache.errors import UnknownNameError
from embedcache.modules.convert.bert import convert_bert_checkpoint
from embedcache.modules.handles import DEFAULT_HANDLE
from embedcache.precompute import BuildOptions

HERE = Path(__file__).parent
RECORD = HERE / "paper.json"
EMBEDDINGS = ("rand", "static", "nonstatic", "multichannel")
LAYERS = ("2", "3", "4", "5", "6", "mean:3,4,5")
NUM_SEEDS = 5
NUM_FOLDS = 10


@dataclass(frozen=True, slots=True)
class Corpus:
    """One of Kim's data sets.

    Attributes:
        name: As a dataset of the store.
        splits: Split → file; without splits ``""``.
        settings: Of every training on it, fields of `cnn.TrainConfig`.
    """

    name: str
    splits: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def sources(self) -> Any:
        """As `embedcache.build` takes them."""
        files = {split: SHARED_DATA / name for split, name in self.splits.items()}
        return files.get("", files)


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("sst2", {part: f"sst2.{part}.tsv" for part in ("train", "dev", "test")}, {}),
        Corpus("trec", {part: f"trec.{part}.tsv" for part in ("train", "test")}, {}),
        Corpus("mr", {"": "mr.tsv"}, {"folds": NUM_FOLDS}),
    )
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper")
    parser.add_argument("--only", choices=("words", "minilm"), nargs="*")
    parser.add_argument("--corpora", choices=tuple(CORPORA), nargs="*")
    parser.add_argument("--store", type=Path, default=HERE / ".work" / "paper")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    arguments = parser.parse_args()
    missing = [name for corpus in CORPORA.values() for name in corpus.splits.values()
               if not (SHARED_DATA / name).is_file()]  # fmt: skip
    if missing:
        parser.exit(1, f"left out: {', '.join(missing)} not beside the checkout, in shared/data\n")
    with embedcache.open_store(arguments.store) as store:
        study = Study(store, jobs=arguments.jobs, num_seeds=arguments.seeds)
        for name in arguments.corpora or CORPORA:
            if "words" in (arguments.only or ("words",)):
                study.try_embeddings(CORPORA[name])
            if "minilm" in (arguments.only or ("minilm",)):
                study.try_layers(CORPORA[name], arguments.store)


class Study:
    """The sweeps of all tables, each gone on with where it was.

    Args:
        store: Where features and runs are.
        jobs: Trainings at a time.
        num_seeds: Of each row.

    Attributes:
        results: Leaderboards by corpus and table, as JSON values.
    """

    def __init__(self, store: FeatureStore, *, jobs: int, num_seeds: int) -> None:
        self._store = store
        self._jobs = jobs
        self._num_seeds = num_seeds
        self.results: Results = _load()

    def try_embeddings(self, corpus: Corpus) -> None:
        """Kim's four models on the words of the module that comes with the package."""
        dataset = f"{corpus.name}-words"
        embedcache.build(self._store, corpus.sources, module=DEFAULT_HANDLE, dataset=dataset)
        settings = _as_grid(corpus.settings)
        if settings:
            static = {"embedding": ["static"], **settings}
            self._sweep(corpus.name, "static", dataset, static, seeds=self._num_seeds)
        seeds = 1 if settings else self._num_seeds
        grid = {"embedding": list(EMBEDDINGS), **settings}
        self._sweep(corpus.name, "words", dataset, grid, seeds=seeds)

    def try_layers(self, corpus: Corpus, folder: Path) -> None:
        """A layer of MiniLM, chosen on dev with one seed, and then scored with all of them."""
        checkpoint = find_minilm()
        if checkpoint is None:
            print(f"left out: {MINILM_PACKAGE}, which holds MiniLM's weights, is not installed")
            return
        module = folder.with_name(f"{folder.name}-minilm")
        if not module.exists():
            convert_bert_checkpoint(checkpoint, module, max_seq_length=128)
        dataset = f"{corpus.name}-minilm"
        for layer in LAYERS:
            options = BuildOptions(layer=layer)
            handle = str(module / "encoder")
            embedcache.build(
                self._store, corpus.sources, module=handle, dataset=dataset, options=options
            )
        settings = _as_grid(corpus.settings)
        # On one dev part also where the scores are of folds: a tenth of the trainings.
        chosen = self._sweep(corpus.name, "layers", dataset, {"layer": list(LAYERS)}, seeds=1)
        grid = {"layer": [chosen], **settings}
        self._sweep(corpus.name, "minilm", dataset, grid, seeds=self._num_seeds)

    def _sweep(
        self, corpus: str, table: str, dataset: str, grid: dict[str, list[Any]], *, seeds: int
    ) -> str:
        """Train what is missing, keep the leaderboard; the layer of the best row on dev."""
        name = f"paper-{corpus}-{table}"
        begun = self._is_begun(name)
        options = SweepOptions(
            seeds=seeds,
            jobs=self._jobs,
            name=None if begun else name,
            resume=name if begun else None,
            baselines=table != "layers",
        )
        board = cnn.sweep(self._store, dataset, grid, options=options, on_trial=_print_trial)
        self.results.setdefault(corpus, {})[table] = board.to_record()
        _keep(self.results)
        return str(board.best.settings.get("layer", "")) if board.best else ""

    def _is_begun(self, name: str) -> bool:
        from cnn.sweeps import load_leaderboard

        try:
            load_leaderboard(self._store, name)
        except UnknownNameError:
            return False
        return True


def _as_grid(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [value] for name, value in settings.items()}


def _print_trial(progress: SweepProgress) -> None:
    print(f"{progress.finished}/{progress.total} {progress.trial.point.shown}", flush=True)


def _load() -> Results:
    if not RECORD.exists():
        return {}
    results: Results = json.loads(RECORD.read_text(encoding="utf-8"))
    return results


def _keep(results: Results) -> None:
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    RECORD.write_text(text, encoding="utf-8")
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
