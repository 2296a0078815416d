"""Training from the cache is training with the module in the loop, step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import embedcache
from cnn.config import TrainConfig
from embedcache.encoder import SequenceEncoder
from embedcache.keys import key_of_text
from embedcache.pinning import pin_module_of_view
from embedcache.precompute import BuildOptions
from tests.embedcache.modules.hub_subjects import shared_hub_modules

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

CONFIG = TrainConfig(filters=8, kernel_sizes=(2,), learning_rate=0.01, seed=3).resolved()
_WORDS = ("good", "bad", "great", "awful", "the", "film", "was", "a", "movie", "not")


def make_corpus(path: Path) -> list[str]:
    generator = np.random.default_rng(11)
    texts = [" ".join(generator.choice(_WORDS, generator.integers(1, 12))) for _ in range(60)]
    texts = sorted(set(texts))
    lines = [f"__label__{'x' if 'good' in text.split() else 'y'} {text}\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
    return texts


def live_rows(encoder: Any, texts: list[str]) -> list[NDArray[np.float32]]:
    """What the module gives for texts, as it is asked now."""
    tokenized = encoder.tokenize_texts([text.encode() for text in texts])
    splits = tokenized.row_splits
    if not isinstance(encoder, SequenceEncoder):
        rows = encoder.embed_tokens(list(tokenized.tokens))
        return [rows[splits[at] : splits[at + 1]] for at in range(len(texts))]
    lengths = np.diff(splits)
    padded = np.zeros((len(texts), int(lengths.max())), tokenized.tokens.dtype)
    for at, length in enumerate(lengths.tolist()):
        padded[at, :length] = tokenized.tokens[splits[at] : splits[at + 1]]
    rows = encoder.encode_batch(padded, lengths)
    before = encoder.num_special[0]
    return [rows[at, before : before + length] for at, length in enumerate(lengths.tolist())]


def train_steps(batches: list[tuple[NDArray[Any], Any]], dtype: str) -> list[float]:
    """The loss of each step of a new model, from values and the rest of their batch."""
    from cnn.model import ModelSpec, build_model, compile_model, train_step

    spec = ModelSpec(dim=batches[0][0].shape[2], num_classes=2, dtype=dtype)
    model = build_model(CONFIG, spec)
    compile_model(model, CONFIG, spec)
    return [
        train_step(model, [values, batch.lengths], batch.labels)[0] for values, batch in batches
    ]


def read_batches(store: embedcache.FeatureStore, dataset: str) -> list[embedcache.Batch]:
    """Two epochs."""
    stream = embedcache.FeatureStream(store, dataset, batch_size=8, seed=CONFIG.seed)
    return [batch for epoch in range(2) for batch in stream.epoch(epoch)]


@pytest.mark.parametrize("name", ["exporter-example", "bert"])
def test_losses_are_those_of_the_live_module_in_the_loop(
    tmp_path: Path, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    hub = shared_hub_modules(pytestconfig, tmp_path_factory)
    texts = {key_of_text(text): text for text in make_corpus(tmp_path / "corpus.txt")}
    preprocess = hub.preprocess(name)
    cached = {}
    with embedcache.open_store(tmp_path / "store") as store:
        for dtype in ("float32", "float16"):
            options = BuildOptions(dtype=dtype, preprocess=str(preprocess) if preprocess else None)
            report = embedcache.build(
                store, tmp_path / "corpus.txt", module=str(hub.path(name)), dataset=dtype,
                options=options,
            )  # fmt: skip
            cached[dtype] = read_batches(store, dtype)
        record = store.catalog.find_view(report.view)
        encoder = pin_module_of_view(store.catalog, record).load_encoder(record.view)
    live = []
    for batch, other in zip(cached["float32"], cached["float16"], strict=True):
        np.testing.assert_array_equal(batch.keys, other.keys)
        values = np.zeros(batch.values.shape, np.float32)
        rows = live_rows(encoder, [texts[key.tobytes()] for key in batch.keys])
        for at, matrix in enumerate(rows):
            assert len(matrix) == batch.lengths[at] == other.lengths[at]
            values[at, : len(matrix)] = matrix
        live.append((values, batch))
    assert len(live) > 10
    live_losses = train_steps(live, "float32")
    # A contextual module adds in another order in another batch: a rounding of float32, which
    # the storage dtype may round up or down.
    exact = {"rtol": 0, "atol": 0} if name == "exporter-example" else {"rtol": 1e-3, "atol": 1e-5}
    for dtype, tolerance in (("float32", 1e-5), ("float16", 5e-3)):
        losses = train_steps([(batch.values, batch) for batch in cached[dtype]], dtype)
        assert losses[-1] < losses[0]
        rounded = live_losses
        if dtype != "float32":
            rounded = train_steps([(values.astype(dtype), batch) for values, batch in live], dtype)
        np.testing.assert_allclose(losses, rounded, **exact, err_msg=dtype)
        # Not rounded to the storage dtype at all.
        np.testing.assert_allclose(losses, live_losses, rtol=tolerance, atol=1e-5, err_msg=dtype)


def test_another_modules_features_give_other_losses() -> None:
    """That the test above could fail: a row that differs is seen in the first loss."""
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (4, 8, 6)).astype(np.float32)
    lengths, labels = np.full(4, 8, np.int32), np.array([0, 1, 0, 1], np.int32)
    batch = embedcache.Batch(values, lengths, labels, np.zeros((4, 16), np.uint8))
    other = replace(batch, values=values + np.float32(0.05))
    one, two = (train_steps([(each.values, each)], "float32") for each in (batch, other))
    assert abs(one[0] - two[0]) > 1e-3
