"""The layer and the two networks: padding must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnn.backend import import_keras
from cnn.config import TrainConfig
from cnn.layers import MaskedMaxOverTime
from cnn.model import build_model, compile_model

# Keras's Variable has no ``copy`` in its ``__array__``; NumPy 2 warns whenever one is saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

DIM = 16
SMALL = {"filters": 8}


def build(preset: str, dtype: str = "float32", **changes: Any) -> Any:
    config = TrainConfig(preset=preset, **SMALL, **changes).resolved()
    return build_model(config, DIM, 3, dtype)


def pad(matrices: list[NDArray[Any]], length: int, dtype: str = "float32") -> list[NDArray[Any]]:
    values = np.zeros((len(matrices), length, DIM), dtype)
    for place, matrix in enumerate(matrices):
        values[place, : len(matrix)] = matrix
    return [values, np.array([len(matrix) for matrix in matrices], np.int32)]


@pytest.fixture(scope="module")
def texts() -> list[NDArray[Any]]:
    generator = np.random.default_rng(1)
    return [generator.normal(size=(length, DIM)) for length in (0, 1, 2, 3, 5, 8)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("preset", ["kim", "basic"])
def test_padding_does_not_change_predictions(
    preset: str, dtype: str, texts: list[NDArray[Any]]
) -> None:
    model = build(preset, dtype)
    # Biases that are not zero: it is the bias that leaks where nothing masks.
    generator = np.random.default_rng(2)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.get_weights()])
    long = [*texts, generator.normal(size=(64, DIM))]
    together = model.predict_on_batch(pad(long, 64, dtype))
    for place, text in enumerate(texts):
        for length in (max(1, len(text)), 8, 64):
            alone = model.predict_on_batch(pad([text], length, dtype))
            np.testing.assert_allclose(alone[0], together[place], atol=1e-5)


def test_a_pooling_without_the_mask_would_fail_the_test_before() -> None:
    layers = import_keras().layers
    conv = layers.Conv1D(4, 3, padding="same", kernel_initializer=lambda *a, **k: -np.ones(a[0]))
    text = np.ones((3, DIM))
    alone, padded = (
        np.asarray(layers.GlobalMaxPooling1D()(conv(pad([text], length)[0]))) for length in (3, 64)
    )
    assert alone.max() < 0.0
    assert padded.min() == 0.0


def test_masked_maximum_of_a_case_worked_out_by_hand() -> None:
    inputs = np.array([[[-1.0, 2.0], [-3.0, 9.0]]] * 3, np.float32)
    maxima = MaskedMaxOverTime()(inputs, np.array([2, 1, 0], np.int32))
    assert np.asarray(maxima).tolist() == [[-1.0, 9.0], [-1.0, 2.0], [0.0, 0.0]]


def test_masked_maximum_tells_its_shape() -> None:
    keras = import_keras()
    out = MaskedMaxOverTime()(keras.Input((None, 5)), keras.Input((), dtype="int32"))
    assert out.shape == (None, 5)
    assert MaskedMaxOverTime().compute_output_shape((2, None, 5), (2,)) == (2, 5)


def test_batches_of_empty_texts_alone_can_be_trained_on() -> None:
    model = build("kim")
    compile_model(model, TrainConfig().resolved())
    empty = np.zeros((0, DIM))
    loss = model.train_on_batch(pad([empty, empty], 8), np.array([0, 1], np.int32))
    assert np.isfinite(loss)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.parametrize("preset", ["kim", "basic"])
def test_outputs_are_probabilities(preset: str, texts: list[NDArray[Any]]) -> None:
    probabilities = build(preset).predict_on_batch(pad(texts, 8))
    assert probabilities.shape == (6, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)


def test_only_the_seed_changes_the_first_weights() -> None:
    keras = import_keras()
    keras.utils.set_random_seed(5)
    first = build("kim", seed=0).get_weights()
    keras.utils.set_random_seed(6)
    same = build("kim", seed=0).get_weights()
    other = build("kim", seed=1).get_weights()
    assert all(np.array_equal(left, right) for left, right in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_layers_of_a_model_start_from_different_weights() -> None:
    weights = build("kim", kernel_sizes=(3, 3)).get_weights()
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("preset", ["kim", "basic"])
def test_a_saved_model_loads_in_safe_mode(
    preset: str, tmp_path: Path, texts: list[NDArray[Any]]
) -> None:
    keras = import_keras()
    model = build(preset, "float16", dropout=0.3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in loaded.layers)
    batch = pad(texts, 8, "float16")
    assert np.array_equal(model.predict_on_batch(batch), loaded.predict_on_batch(batch))


def test_shapes_beyond_the_first_few_are_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    if import_keras().backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow traces free shapes; the others are given few lengths instead")
    traces = 0
    call = MaskedMaxOverTime.call

    def counted(self: Any, inputs: Any, lengths: Any) -> Any:
        nonlocal traces
        traces += 1
        return call(self, inputs, lengths)

    model = build("basic")
    compile_model(model, TrainConfig().resolved())
    monkeypatch.setattr(MaskedMaxOverTime, "call", counted)
    counts = []
    for size, length in [(8, 16), (8, 8), (3, 24), (8, 32), (5, 40), (8, 64), (1, 8), (2, 128)]:
        texts = [np.ones((length, DIM))] * size
        model.train_on_batch(pad(texts, length), np.zeros(size, np.int32))
        model.predict_on_batch(pad(texts, length))
        counts.append(traces)
    assert counts[-1] == counts[3]
    assert counts[-1] <= 8
