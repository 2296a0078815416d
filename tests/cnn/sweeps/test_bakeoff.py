"""The part that modules are tried on, and a bake-off with two real small modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnn
import embedcache
from cnn.sweeps import BakeoffListener, BakeoffOptions, BakeoffReport, SweepProgress
from cnn.sweeps.bakeoff.build_cost import cost_of_view
from cnn.sweeps.bakeoff.part import choose_part, draw_stratified
from embedcache.corpus import CorpusOptions, CorpusReader, parse_sources
from embedcache.corpus.selection import choose_documents
from embedcache.errors import CorpusError, ModuleError, TrainingError
from embedcache.keys import keys_of_texts

WORDS = {"good": "fine warm lovely", "bad": "cold dull dreary"}
NUM_EACH = {"train": 60, "dev": 20, "test": 12}


def _write(folder: Path) -> list[str]:
    """A corpus of three splits and two labels, one twice as frequent; the arguments for it."""
    generator = np.random.default_rng(5)
    arguments = []
    for split, count in NUM_EACH.items():
        lines = ["label\ttext"]
        for label, times in (("good", count), ("bad", count // 2)):
            words = WORDS[label].split()
            for number in range(times):
                chosen = " ".join(generator.choice(words, 2))
                lines.append(f"{label}\t{split} {chosen} film {number}")
        path = folder / f"{split}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        arguments.append(f"{split}={path}")
    return arguments


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return _write(tmp_path_factory.mktemp("corpus"))


def _strata(sources: Any, documents: Any) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for batch in choose_documents(CorpusReader(sources), documents):
        found.update(zip(batch.splits, (labels[0] for labels in batch.labels), strict=True))
    return found


def test_part_has_each_label_of_each_split_in_proportion(corpus: list[str]) -> None:
    sources = parse_sources(corpus)
    part = choose_part(sources, CorpusOptions(), size=46, seed=0)
    found = _strata(sources, part.documents)
    assert found.total() == len(part.documents) == 46
    assert len(part.keys) == 138
    whole = Counter({("train", "good"): 60, ("train", "bad"): 30, ("dev", "good"): 20,
                     ("dev", "bad"): 10, ("test", "good"): 12, ("test", "bad"): 6})  # fmt: skip
    assert all(abs(found[stratum] - whole[stratum] / 3) <= 2 for stratum in whole)


def test_part_is_the_same_each_time_and_another_with_another_seed(corpus: list[str]) -> None:
    sources = parse_sources(corpus)
    parts = [choose_part(sources, CorpusOptions(), size=46, seed=seed).documents
             for seed in (0, 0, 1)]  # fmt: skip
    np.testing.assert_array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[0], parts[2])


def test_rare_labels_have_two_documents_and_no_stratum_more_than_it_has() -> None:
    strata = np.repeat([0, 1, 2, 3], [100, 3, 2, 1])
    counts = np.bincount(strata[draw_stratified(strata, 40, seed=0)])
    assert counts.tolist()[1:] == [2, 2, 1] or counts.tolist()[1:] == [3, 2, 1]
    assert counts.sum() == 40
    np.testing.assert_array_equal(draw_stratified(strata, 999, seed=0), np.arange(106))
    for size in range(7, 107):
        drawn = draw_stratified(strata, size, seed=size)
        assert len(drawn) == len(set(drawn.tolist())) == size


def test_part_that_is_too_small_for_its_labels_is_refused_with_the_least() -> None:
    with pytest.raises(TrainingError, match=r"3 documents is too small for 2 .*\(--sample 4\)"):
        draw_stratified(np.repeat([0, 1], 10), 3, seed=0)


def test_corpus_that_cannot_be_compared_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("one\ntwo\n")
    sources = parse_sources([str(tmp_path / "plain.txt")])
    with pytest.raises(TrainingError, match="the corpus has no labels"):
        choose_part(sources, CorpusOptions(), size=2, seed=0)
    with pytest.raises(CorpusError, match="standard input can be read only once"):
        choose_part(parse_sources(["-"]), CorpusOptions(), size=2, seed=0)


def test_built_part_is_a_dataset_of_its_own_that_the_whole_build_hits(
    corpus: list[str], store: embedcache.FeatureStore, make_module: Callable[..., Path]
) -> None:
    sources, module = parse_sources(corpus), str(make_module())
    documents = np.arange(0, 138, 3)
    part = {"module": module, "dataset": "part", "documents": documents}
    report = embedcache.build(store, sources, **part)
    assert (report.dataset, report.texts, report.unique, report.misses) == ("part", 46, 46, 46)
    dataset = store.load_dataset("part")
    texts = [text for batch in CorpusReader(sources) for text in batch.texts]
    chosen = [texts[place].decode() for place in documents]
    np.testing.assert_array_equal(dataset.keys, keys_of_texts(chosen))
    assert dataset.count_splits() == {"train": 30, "dev": 10, "test": 6}
    again = embedcache.build(store, sources, **part)
    assert (again.hits, again.misses, again.version) == (46, 0, report.version)
    keys = keys_of_texts([text.decode() for text in texts])
    computed = pytest.approx(46 / (report.seconds - report.loading_seconds))
    costs = [cost_of_view(store, keys, each) for each in (report, again)]
    assert [cost.texts_per_second for cost in costs] == [computed, computed]
    assert [cost.missing for cost in costs] == [92, 92]
    whole = embedcache.build(store, sources, module=module, dataset="whole")
    assert (whole.hits, whole.misses) == (46, 92), "what the part has is not computed again"


def test_cost_has_no_rate_where_no_build_computed_anything(
    corpus: list[str], store: embedcache.FeatureStore, make_module: Callable[..., Path]
) -> None:
    none = np.array([], np.int64)
    report = embedcache.build(
        store, parse_sources(corpus), module=str(make_module()), documents=none
    )
    assert (report.texts, report.misses) == (0, 0)
    cost = cost_of_view(store, keys_of_texts(["a", "b", "a"]), report)
    assert (cost.texts_per_second, cost.missing, cost.projected_seconds) == (None, 2, None)


@pytest.fixture(scope="module")
def baked(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[str], make_module: Callable[..., Path]
) -> tuple[Path, list[str], BakeoffReport]:
    """A bake-off of a module whose words tell the labels and one that is nearly deaf."""
    folder = tmp_path_factory.mktemp("baked") / "store"
    modules = [str(make_module(dim=1, seed=1)), str(make_module(dim=16, seed=2))]
    with embedcache.open_store(folder) as store:
        report = cnn.bakeoff(store, parse_sources(corpus), modules, options=OPTIONS)
    return folder, modules, report


OPTIONS = BakeoffOptions(
    dataset="films",
    sample=60,
    keep=1,
    seeds=2,
    grid={"preset": ["linear"], "epochs": [6], "learning_rate": [0.02], "batch_size": [16]},
)


def test_bakeoff_ranks_by_dev_and_builds_the_whole_for_the_winner_only(baked: Any) -> None:
    folder, modules, report = baked
    first, second = report.rows
    assert first.candidate.module == modules[1]
    assert first.dev.mean > second.dev.mean
    assert (first.kept, second.kept) == (True, False)
    assert first.whole.dev.count == 2
    assert second.whole is None
    assert (report.documents, report.total) == (60, 138)
    with embedcache.open_store(folder) as store:
        keys = store.load_dataset("films").keys
        held = [int(store.reader(row.candidate.view).contains(keys).sum()) for row in report.rows]
    assert held == [138, 60]


def test_what_the_part_had_is_not_computed_again_for_the_whole(baked: Any) -> None:
    first, second = baked[2].rows
    assert (first.built.hits, first.built.misses) == (60, 78)
    assert second.built is None


def test_cost_is_measured_and_projected_to_what_is_missing(baked: Any) -> None:
    for row in baked[2].rows:
        assert row.cost.missing == 78
        assert row.cost.texts_per_second > 0
        rate = row.cost.texts_per_second
        assert row.cost.projected_seconds == pytest.approx(78 / rate)
        assert row.cost.projected_bytes > 0
    # Seconds are kept to the millisecond, so that two builds of few texts may be equal.
    rates = [row.cost.texts_per_second for row in baked[2].rows]
    ranks = [1 + sum(other > rate for other in rates) for rate in rates]
    assert [row.cost_rank for row in baked[2].rows] == ranks


def test_same_bakeoff_again_computes_and_trains_nothing(baked: Any, corpus: list[str]) -> None:
    folder, modules, report = baked
    stages: list[str] = []

    def forbidden(progress: SweepProgress) -> None:
        raise AssertionError(progress)

    listener = BakeoffListener(on_stage=stages.append, on_trial=forbidden)
    with embedcache.open_store(folder) as store:
        runs = store.catalog.count()["runs"]
        again = cnn.bakeoff(
            store, parse_sources(corpus), modules, options=OPTIONS, listener=listener
        )
        assert store.catalog.count()["runs"] == runs == 6
    assert [row.candidate for row in again.rows] == [row.candidate for row in report.rows]
    assert [row.dev for row in again.rows] == [row.dev for row in report.rows]
    assert again.rows[0].built.misses == 0
    assert again.rows[0].cost.texts_per_second is not None, "of the builds before"
    assert len(stages) == 5


def test_module_that_cannot_be_used_is_told_before_the_first_is_built(
    baked: Any, corpus: list[str], store: embedcache.FeatureStore
) -> None:
    _, modules, _ = baked
    with pytest.raises(ModuleError, match="no-such-module"):
        cnn.bakeoff(store, parse_sources(corpus), [modules[0], "no-such-module"], options=OPTIONS)
    assert store.catalog.shards() == []


def test_module_without_layers_is_one_candidate_and_given_twice_it_is_one(
    baked: Any, corpus: list[str], store: embedcache.FeatureStore
) -> None:
    from cnn.sweeps.bakeoff.contest import find_candidates

    _, modules, _ = baked
    options = BakeoffOptions(layers=("1", "2"))
    found = find_candidates(store, [modules[0], modules[0], modules[1]], options)
    assert [(each.module, each.layer) for each in found] == [(modules[0], None), (modules[1], None)]


@pytest.mark.parametrize("field", ["sample", "keep", "seeds", "jobs"])
def test_options_that_cannot_be_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1"):
        BakeoffOptions(**{field: 0})
    with pytest.raises(ValueError, match="view is for the bake-off to choose"):
        BakeoffOptions(grid={"view": ["a"]})
