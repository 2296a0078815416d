"""A text's windows add up to its logits, and are what made the filters fire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedcache
from cnn import Run, TrainConfig, train
from cnn.attribution import open_network
from cnn.explaining import (
    TextExplanation,
    character_spans,
    explain_texts,
    shaded_pieces,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
TEXTS = [f"two {label} {number}" for number in range(20) for label in ("bad", "good")]
FOUR_TEXTS = [f"four {label} {number}" for number in range(20) for label in "abcd"]


@pytest.fixture(scope="module")
def linear_run(shared: SmallStore) -> Run:
    config = TrainConfig(preset="linear", epochs=3, batch_size=18)
    return train(shared.store, "four", config)


@pytest.fixture(scope="module", params=["rand", "nonstatic", "multichannel", "layers", "several"])
def special_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_store: Any
) -> tuple[Run, list[str]]:
    """A run with a table of tokens, one on mixed layers, and one with several labels a text."""
    kind = request.param
    texts = [f"{a} {b} word {c}" for a in ("good", "bad") for b in "xyz" for c in range(10)]
    labels = [tuple(text.split()[: 2 if kind == "several" else 1]) for text in texts]
    splits = ["dev" if number % 5 == 0 else "train" for number in range(len(texts))]
    layers = {"num_layers": 2, "output": "1,2"} if kind == "layers" else {}
    small = make_store(tmp_path_factory.mktemp(kind) / "store", **layers)
    small.put_words(texts[::2])
    small.put_words(texts[1::2], seed=0)
    small.put_dataset(texts, labels, splits=splits, name=kind)
    embedding = kind if kind in ("rand", "nonstatic", "multichannel") else "static"
    config = TrainConfig(
        filters=5, kernel_sizes=(1, 2), epochs=2, batch_size=16, embedding=embedding,
        learning_rate=0.01,
    )  # fmt: skip
    return train(small.store, kind, config), texts


@pytest.fixture(params=["kim", "basic", "linear"])
def run_and_texts(request: pytest.FixtureRequest) -> tuple[Run, list[str]]:
    """A run of each preset, and texts of 0 to 12 tokens."""
    if request.param == "kim":
        return request.getfixturevalue("two_run"), TEXTS
    name = "four_run" if request.param == "basic" else "linear_run"
    return request.getfixturevalue(name), FOUR_TEXTS


def all_labels(run: Run, texts: list[str], *, top: int = 10) -> list[TextExplanation]:
    return explain_texts(run, texts, top=top, labels=[run.labels] * len(texts))


def require_models_own_logits(run: Run, texts: list[str]) -> None:
    """Windows and bias add up to logits, and these are what the model itself has."""
    predictions = run.predict(texts)
    for explanation, prediction in zip(all_labels(run, texts), predictions, strict=True):
        logits = []
        for label in explanation.labels:
            windows = sum(window.contribution for window in label.windows)
            assert windows + label.rest + label.bias == pytest.approx(label.logit, abs=1e-9)
            logits.append(label.logit)
        # Of the model itself, in float32.
        probabilities = np.array(list(prediction.probabilities.values()), np.float64)
        if run.task == "multilabel":
            expected = np.log(probabilities) - np.log1p(-probabilities)
        else:
            # A softmax keeps the differences of the logits.
            expected = np.log(probabilities) - np.log(probabilities[0]) + logits[0]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_windows_and_bias_add_up_to_the_logits_that_the_model_has(
    run_and_texts: tuple[Run, list[str]],
) -> None:
    require_models_own_logits(*run_and_texts)


def test_logits_of_tables_layers_and_several_labels_are_those_of_the_model(
    special_run: tuple[Run, list[str]],
) -> None:
    require_models_own_logits(*special_run)


def test_predicted_labels_are_explained_and_of_none_the_most_probable(
    special_run: tuple[Run, list[str]],
) -> None:
    run, texts = special_run
    predictions = run.predict(texts)
    for explanation, prediction in zip(explain_texts(run, texts), predictions, strict=True):
        explained = tuple(label.label for label in explanation.labels)
        assert explained == (prediction.labels or (prediction.label,))


def test_shares_of_the_tokens_add_up_to_all_windows(
    run_and_texts: tuple[Run, list[str]],
) -> None:
    run, texts = run_and_texts
    for explanation in all_labels(run, texts):
        for label in explanation.labels:
            assert sum(label.token_contributions) == pytest.approx(
                label.logit - label.bias, abs=1e-9
            )


def test_a_text_without_tokens_is_all_bias(run_and_texts: tuple[Run, list[str]]) -> None:
    run, texts = run_and_texts
    (explanation,) = all_labels(run, texts[:1])
    for label in explanation.labels:
        assert (label.windows, label.rest, label.token_contributions) == ((), 0.0, ())
        assert label.logit == label.bias


def test_windows_lie_inside_the_text_and_are_no_wider_than_the_kernel(two_run: Run) -> None:
    for number, explanation in enumerate(all_labels(two_run, TEXTS, top=99)):
        num_tokens = (number // 2) % 13 or (number % 2)
        for window in explanation.labels[0].windows:
            start, stop = window.tokens
            assert 0 <= start < stop <= max(num_tokens, 1)
            assert window.width in (2, 3)
            assert stop - start <= window.width
            if start > 0 and stop < num_tokens:
                assert stop - start == window.width


def test_each_filter_fires_in_one_window_at_most(two_run: Run) -> None:
    for explanation in all_labels(two_run, TEXTS, top=99):
        for label in explanation.labels:
            for width in (2, 3):
                filters = [
                    each for window in label.windows if window.width == width
                    for each in window.filters
                ]  # fmt: skip
                assert len(set(filters)) == len(filters) <= 8


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_a_filter_sees_the_tokens_of_its_window_and_no_other(width: int) -> None:
    from cnn.config import TrainConfig
    from cnn.model import build_model
    from cnn.spec import ModelSpec

    config = TrainConfig(filters=6, kernel_sizes=(width,), seed=3).resolved()
    model = build_model(config, ModelSpec(dim=4, num_classes=2, dtype="float32"))
    network = open_network(model, (width,))
    values = np.random.default_rng(0).normal(size=(1, 8, 4)).astype(np.float32)
    lengths = np.array([7], np.int32)
    values[:, 7:] = 0

    def pooled(given: Any) -> Any:
        return np.asarray(network.inner([given, lengths])[1])[0]

    before = pooled(values)
    (part,) = network.attribute([values, lengths], lengths)
    assert sum(map(len, part.filters)) == np.count_nonzero(before) > 0
    for start, stop, filters in zip(part.starts, part.stops, part.filters, strict=True):
        changed = values.copy()
        # Other positions may fire more now: only what is lost tells.
        changed[:, :start] = changed[:, stop:7] = 0
        kept = pooled(changed)
        assert (kept[list(filters)] >= before[list(filters)] - 1e-5).all()
        for token in (start, stop - 1):
            nudged = values.copy()
            nudged[:, token] += 10.0
            assert not np.allclose(pooled(nudged)[list(filters)], before[list(filters)])


def test_windows_of_the_telling_token_decide(two_run: Run, shared: SmallStore) -> None:
    texts = [f"two bad {number}" for number in range(1, 13)]
    places = [int(shared.store.get(shared.view, [t])[0][:, 0].argmax()) for t in texts]
    for explanation, place in zip(explain_texts(two_run, texts), places, strict=True):
        (label,) = explanation.labels
        assert label.label == "bad"
        start, stop = label.windows[0].tokens
        assert start <= place < stop


def test_predicted_label_is_explained_unless_others_are_asked_for(two_run: Run) -> None:
    (own,) = explain_texts(two_run, [TEXTS[3]])
    (prediction,) = two_run.predict([TEXTS[3]])
    assert [label.label for label in own.labels] == [prediction.label]
    assert own.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
    (other,) = explain_texts(two_run, [TEXTS[3]], labels=[("good", "bad")])
    assert [label.label for label in other.labels] == ["good", "bad"]


def test_top_bounds_the_windows_and_the_rest_has_the_others(two_run: Run) -> None:
    (full,), (cut,), (none,) = (explain_texts(two_run, [TEXTS[11]], top=top) for top in (99, 1, 0))
    windows = full.labels[0].windows
    assert len(windows) > 2
    assert full.labels[0].rest == 0.0
    assert cut.labels[0].windows == windows[:1]
    assert none.labels[0].rest == pytest.approx(sum(each.contribution for each in windows))
    sizes = [abs(window.contribution) for window in windows]
    assert sizes == sorted(sizes, reverse=True)


def test_windows_name_the_words_of_the_text_that_they_stand_for(
    tmp_path: Path,
) -> None:
    texts = [f"{'good' if number % 2 else 'bad'} naïve ☂ number {number}" for number in range(40)]
    rows = [f"__label__{text.split()[0]} {text}" for text in texts]
    (tmp_path / "a.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with embedcache.open_store(tmp_path / "store") as store:
        embedcache.build(store, str(tmp_path / "a.txt"))
        config = TrainConfig(filters=4, kernel_sizes=(1, 2), epochs=1, batch_size=8)
        explanations = explain_texts(train(store, "a", config), [*texts, "never ☂ seen"])
    for explanation in explanations:
        spans = explanation.spans
        assert spans is not None
        words = [explanation.text[slice(*span)] for span in spans if span is not None]
        assert "".join(words) == explanation.text.replace(" ", "")
        for window in explanation.labels[0].windows:
            start, stop = window.tokens
            assert window.span is not None
            found = explanation.text[slice(*window.span)]
            assert found.replace(" ", "") == "".join(words[start:stop])
        for window in explanation.to_record()[0]["windows"]:
            assert window["text"] in explanation.text


def test_shards_without_spans_give_token_numbers_only(two_run: Run) -> None:
    (explanation,) = explain_texts(two_run, [TEXTS[11]])
    assert explanation.spans is None
    assert explanation.labels[0].windows[0].span is None
    assert explanation.to_record()[0]["windows"][0]["text"] is None


def test_what_cannot_be_explained_is_refused(two_run: Run) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        explain_texts(two_run, "two bad 1")
    with pytest.raises(ValueError, match="top must be at least 0"):
        explain_texts(two_run, TEXTS, top=-1)
    with pytest.raises(ValueError, match="'ugly'"):
        explain_texts(two_run, TEXTS[:1], labels=[("ugly",)])
    with pytest.raises(ValueError, match="1 entries of labels for 2 texts"):
        explain_texts(two_run, TEXTS[:2], labels=[("bad",)])
    assert explain_texts(two_run, []) == []


@given(st.lists(st.text(max_size=4), max_size=8))
def test_byte_ranges_become_the_characters_that_they_hold(words: list[str]) -> None:
    text, spans, expected = "", [], []
    for word in words:
        start = len(text.encode())
        spans.append((start, start + len(word.encode())))
        expected.append((len(text), len(text) + len(word)) if word else None)
        text += word + "☂ "
    assert list(character_spans(text, spans)) == expected


def test_a_range_that_cuts_a_character_has_all_of_it() -> None:
    assert character_spans("a☂b", [(0, 2), (2, 3), (3, 5)]) == ((0, 2), (1, 2), (1, 3))


@given(
    st.text(max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(-8, 8)), max_size=5),
)
def test_shaded_pieces_make_the_text(text: str, ranges: list[tuple[int, int, int]]) -> None:
    clipped = [(start, min(end, len(text))) for start, end, _ in ranges]
    spans = [(start, end) if start < end else None for start, end in clipped]
    values = [float(value) for _, _, value in ranges]
    pieces = shaded_pieces(text, spans, values)
    assert "".join(piece for piece, _ in pieces) == text
    shown = [value for piece, value in pieces for _ in piece]
    for at, value in enumerate(shown):
        covering = [
            each for span, each in zip(spans, values, strict=True)
            if span is not None and span[0] <= at < span[1]
        ]  # fmt: skip
        assert value == sum(covering)
