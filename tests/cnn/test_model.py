"""The networks and what they are made of: neither padding nor neighbours may matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnn.backend import has_free_shapes, import_keras, without_tensorflow
from cnn.config import EMBEDDINGS, PRESETS, ResolvedConfig, TrainConfig
from cnn.layers import MaskedMaxOverTime, MaskedMeanOverTime, PackTexts, UnpackTexts
from cnn.model import ModelSpec, build_model, compile_model, train_step

# Keras's Variable has no ``copy`` in its ``__array__``; NumPy 2 warns whenever one is saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

DIM = 16
NUM_TOKENS = 30
TASKS = ("single", "multilabel")
GOLDEN = Path(__file__).parent / "golden"
WITH_FILTERS = ("kim", "basic")


def config_of(preset: str, **changes: Any) -> ResolvedConfig:
    filters = {"filters": 8} if preset in WITH_FILTERS else {}
    return TrainConfig(preset=preset, **{**filters, **changes}).resolved()


def spec_of(dtype: str = "float32", embedding: str = "static", **changes: Any) -> ModelSpec:
    num_tokens = 0 if embedding == "static" else NUM_TOKENS
    return ModelSpec(
        **{"dim": DIM, "num_classes": 3, "num_tokens": num_tokens, **changes}, dtype=dtype
    )


def build(preset: str, dtype: str = "float32", *, task: str = "single", **changes: Any) -> Any:
    embedding = changes.get("embedding", "static")
    return build_model(config_of(preset, **changes), spec_of(dtype, embedding, task=task))


def shake(model: Any, seed: int = 2) -> Any:
    """Weights without zeros: it is biases that leak where nothing masks."""
    generator = np.random.default_rng(seed)
    model.set_weights([0.4 * generator.normal(size=w.shape) for w in model.get_weights()])
    return model


def pad(matrices: list[NDArray[Any]], length: int, dtype: str = "float32") -> list[NDArray[Any]]:
    values = np.zeros((len(matrices), length, DIM), dtype)
    for place, matrix in enumerate(matrices):
        values[place, : len(matrix)] = matrix
    return [values, np.array([len(matrix) for matrix in matrices], np.int32)]


def numbers_of(matrices: list[NDArray[Any]], length: int) -> NDArray[np.int32]:
    """Token numbers that depend on the text alone; every fourth is 0: in no table."""
    numbers = np.zeros((len(matrices), length), np.int32)
    for place, matrix in enumerate(matrices):
        own = np.arange(len(matrix)) * 7 + 3 * len(matrix)
        numbers[place, : len(matrix)] = np.where(own % 4 == 0, 0, 1 + own % NUM_TOKENS)
    return numbers


def inputs_of(
    model: Any, matrices: list[NDArray[Any]], length: int, dtype: str = "float32"
) -> list[NDArray[Any]]:
    return [*pad(matrices, length, dtype), numbers_of(matrices, length)][: len(model.inputs)]


@pytest.fixture(scope="module")
def texts() -> list[NDArray[Any]]:
    generator = np.random.default_rng(1)
    return [generator.normal(size=(length, DIM)) for length in (0, 1, 2, 3, 5, 8)]


@pytest.mark.parametrize(("task", "dtype"), [("single", "float32"), ("multilabel", "float16")])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("preset", PRESETS)
def test_padding_and_neighbours_do_not_change_predictions(
    preset: str, embedding: str, task: str, dtype: str, texts: list[NDArray[Any]]
) -> None:
    model = shake(build(preset, dtype, task=task, embedding=embedding))
    long = np.random.default_rng(3).normal(size=(64, DIM))
    together = model.predict_on_batch(inputs_of(model, [*texts, long, *reversed(texts)], 64, dtype))
    # Probabilities of 0 and 1 alone would hide a difference.
    assert np.mean((together > 1e-3) & (together < 1.0 - 1e-3)) > 0.2
    for place, text in enumerate([*texts, long]):
        for length in (8, 64):
            if length >= len(text):
                alone = model.predict_on_batch(inputs_of(model, [text], length, dtype))[0]
                np.testing.assert_allclose(alone, together[place], atol=1e-5)
                np.testing.assert_allclose(alone, together[12 - place], atol=1e-5)


@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 8), (7, 3)])
def test_kernels_of_any_width_see_no_neighbour(
    sizes: tuple[int, ...], texts: list[NDArray[Any]]
) -> None:
    model = shake(build("kim", kernel_sizes=sizes))
    together = model.predict_on_batch(pad(texts, 16))
    for place, text in enumerate(texts):
        alone = model.predict_on_batch(pad([text], max(1, len(text))))
        np.testing.assert_allclose(alone[0], together[place], atol=1e-5)


def test_a_pooling_without_the_mask_would_fail_the_test_before() -> None:
    layers = import_keras().layers
    conv = layers.Conv1D(4, 3, padding="same", kernel_initializer=lambda *a, **k: -np.ones(a[0]))
    text = np.ones((3, DIM))
    to_numpy = import_keras().ops.convert_to_numpy
    alone, padded = (
        to_numpy(layers.GlobalMaxPooling1D()(conv(pad([text], length)[0]))) for length in (3, 64)
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


def test_masked_mean_of_a_case_worked_out_by_hand() -> None:
    inputs = np.array([[[-1.0, 2.0], [-3.0, 9.0]]] * 3, np.float32)
    means = MaskedMeanOverTime()(inputs, np.array([2, 1, 0], np.int32))
    assert np.asarray(means).tolist() == [[-2.0, 5.5], [-1.0, 2.0], [0.0, 0.0]]


def test_packed_texts_of_a_case_worked_out_by_hand() -> None:
    if not has_free_shapes():
        pytest.skip("this backend compiles each shape: nothing is packed")
    values = np.array([[[1.0], [2.0]], [[0.0], [0.0]], [[3.0], [0.0]]], np.float32)
    lengths = np.array([2, 0, 1], np.int32)
    packed = np.asarray(PackTexts(1)(values, lengths))
    assert packed.shape == (1, 64, 1)
    # Two tokens and a gap; no token and a gap; a token and gaps to the end.
    assert packed[0, :7, 0].tolist() == [1.0, 2.0, 0.0, 0.0, 3.0, 0.0, 0.0]
    assert not packed[0, 7:].any()
    texts = np.asarray(UnpackTexts(1)(packed, lengths, values))
    assert texts.shape == values.shape
    assert (texts[0, :, 0].tolist(), texts[2, 0, 0]) == ([1.0, 2.0], 3.0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32"])
def test_packed_texts_keep_their_dtype_and_come_back(dtype: str) -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 9, 40).astype(np.int32)
    values = generator.integers(-9, 9, (40, 8, 3)).astype(dtype)
    packed = PackTexts(2)(values, lengths)
    texts = np.asarray(UnpackTexts(2)(packed, lengths, values))
    assert np.asarray(packed).dtype == dtype
    for place, length in enumerate(lengths.tolist()):
        assert np.array_equal(texts[place, :length], values[place, :length])


def test_a_gap_narrower_than_half_a_kernel_would_let_neighbours_in() -> None:
    if not has_free_shapes():
        pytest.skip("this backend compiles each shape: nothing is packed")
    layers = import_keras().layers
    conv = layers.Conv1D(1, 5, padding="same", kernel_initializer="ones")
    values, lengths = np.ones((2, 3, 1), np.float32), np.array([3, 3], np.int32)
    alone = np.asarray(conv(values))
    for gap, is_same in ((1, False), (2, True)):
        packed = conv(PackTexts(gap)(values, lengths))
        assert np.allclose(np.asarray(UnpackTexts(gap)(packed, lengths, values)), alone) == is_same


def test_a_gap_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="gap must be at least 0: got -1"):
        PackTexts(-1)


@pytest.mark.parametrize("preset", PRESETS)
def test_batches_of_empty_texts_alone_can_be_trained_on(preset: str) -> None:
    model = build(preset)
    compile_model(model, config_of(preset), spec_of())
    empty = np.zeros((0, DIM))
    loss, _ = train_step(model, pad([empty, empty], 8), np.array([0, 1], np.int32))
    assert np.isfinite(loss)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", TASKS)
def test_outputs_are_probabilities(preset: str, task: str, texts: list[NDArray[Any]]) -> None:
    probabilities = shake(build(preset, task=task)).predict_on_batch(pad(texts, 8))
    assert probabilities.shape == (6, 3)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    assert (probabilities <= 1).all()
    sums_to_one = np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    assert sums_to_one == (task == "single")


def test_only_the_seed_changes_the_first_weights() -> None:
    set_global_seed = import_keras().utils.set_random_seed
    with without_tensorflow():
        set_global_seed(5)
        first = build("kim", seed=0).get_weights()
        set_global_seed(6)
        same = build("kim", seed=0).get_weights()
    other = build("kim", seed=1).get_weights()
    assert all(np.array_equal(left, right) for left, right in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_embedding_does_not_change_the_first_weights_of_the_layers() -> None:
    static = build("kim").get_weights()
    nonstatic = build("kim", embedding="nonstatic").get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(static, nonstatic[1:], strict=True))


def test_the_layers_of_a_model_start_from_different_weights() -> None:
    weights = build("kim", kernel_sizes=(3, 3)).get_weights()
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_saved_model_loads_in_safe_mode(
    preset: str, embedding: str, tmp_path: Path, texts: list[NDArray[Any]]
) -> None:
    keras = import_keras()
    model = shake(build(preset, "float16", dropout=0.3, embedding=embedding))
    with without_tensorflow():
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in loaded.layers)
    batch = inputs_of(model, texts, 8, "float16")
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
    compile_model(model, config_of("basic"), spec_of())
    monkeypatch.setattr(MaskedMaxOverTime, "call", counted)
    counts = []
    for size, length in [(8, 16), (8, 8), (3, 24), (8, 32), (5, 40), (8, 64), (1, 8), (2, 128)]:
        texts = [np.ones((length, DIM))] * size
        model.train_on_batch(pad(texts, length), np.zeros(size, np.int32))
        model.predict_on_batch(pad(texts, length))
        counts.append(traces)
    assert counts[-1] == counts[3]
    assert counts[-1] <= 8


@pytest.mark.parametrize("name", ["kim", "basic", "mixed"])
def test_models_that_version_0_1_saved_predict_what_they_did(name: str) -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text())[name]
    keras = import_keras()
    with without_tensorflow():
        model = keras.models.load_model(GOLDEN / f"{name}.keras", compile=False, safe_mode=True)
    batch = [np.array(golden["values"], np.float16), np.array(golden["lengths"], np.int32)]
    np.testing.assert_allclose(model.predict_on_batch(batch), golden["probabilities"], atol=1e-6)
    # And the weights fit the model that this version builds.
    assert [weight.path for weight in model.weights] == golden["weights"]
    spec = ModelSpec(8, 3, "float16", num_layers=golden["num_layers"])
    config = config_of(golden["preset"], filters=3, kernel_sizes=(2, 3))
    built = build_model(config, spec)
    assert [weight.path for weight in built.weights] == golden["weights"]
    built.set_weights(model.get_weights())
    np.testing.assert_allclose(built.predict_on_batch(batch), golden["probabilities"], atol=1e-6)


@pytest.mark.parametrize("name", ["kim", "basic", "mixed"])
def test_steps_have_the_losses_that_they_had_in_version_0_1(name: str) -> None:
    if import_keras().backend.backend() != "tensorflow":
        pytest.skip("the losses are those of the weights that TensorFlow draws")
    golden = json.loads((GOLDEN / "golden.json").read_text())[name]
    spec = ModelSpec(8, 3, "float16", num_layers=golden["num_layers"])
    fields = {"filters": 3, "kernel_sizes": (2, 3), "seed": 4, "max_norm": 0}
    first = build_model(config_of(golden["preset"], dropout=0.5, **fields), spec).get_weights()
    total = sum(float(np.abs(weight).sum()) for weight in first)
    assert total == pytest.approx(golden["first_weights"], rel=1e-6)
    config = config_of(golden["preset"], dropout=0.0, **fields)
    model = build_model(config, spec)
    compile_model(model, config, spec)
    batch = [np.array(golden["values"], np.float16), np.array(golden["lengths"], np.int32)]
    labels = np.array(golden["labels"], np.int32)
    losses = [train_step(model, batch, labels)[0] for _ in golden["losses"]]
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)
