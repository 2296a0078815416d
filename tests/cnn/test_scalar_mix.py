"""Views that keep layers apart: the mix, the models that begin with it, and their runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnn import Run, TrainConfig, load_run, train
from cnn.backend import import_keras, without_tensorflow
from cnn.config import PRESETS, ResolvedConfig
from cnn.layers import ScalarMix
from cnn.model import ModelSpec, build_model, compile_model, learned_mix, train_step
from cnn.run import load_model

# Keras's Variable has no ``copy`` in its ``__array__``; NumPy 2 warns whenever one is saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
NUM_LAYERS = 3
WIDTH = 16
DIM = NUM_LAYERS * WIDTH
NAMES = ["2", "5", "11"]
SPLITS = ["train", "train", "train", "dev", "test"]
FAST = {"filters": 8, "kernel_sizes": (2, 3), "batch_size": 16, "learning_rate": 0.02}


def config_of(preset: str = "kim", **changes: Any) -> ResolvedConfig:
    filters = {} if preset == "linear" else {"filters": 8}
    return TrainConfig(preset=preset, **{**filters, **changes}).resolved()


def mixed_spec(dtype: str = "float32", **changes: Any) -> ModelSpec:
    return ModelSpec(
        **{"dim": DIM, "num_classes": 3, "num_layers": NUM_LAYERS, **changes}, dtype=dtype
    )


def mixed_model(preset: str = "kim", dtype: str = "float32", **changes: Any) -> Any:
    return build_model(config_of(preset, **changes), mixed_spec(dtype))


def mix_of(model: Any) -> ScalarMix:
    (mix,) = (layer for layer in model.layers if isinstance(layer, ScalarMix))
    return mix


def set_mix(mix: ScalarMix, scores: Sequence[float] | NDArray[Any], gamma: float) -> None:
    mix.set_weights([np.array(scores, np.float32), np.array(gamma, np.float32)])


def pad(matrices: Sequence[NDArray[Any]], length: int, dtype: str = "float32") -> list[Any]:
    values = np.zeros((len(matrices), length, matrices[0].shape[1]), dtype)
    for place, matrix in enumerate(matrices):
        values[place, : len(matrix)] = matrix
    return [values, np.array([len(matrix) for matrix in matrices], np.int32)]


@pytest.fixture(scope="module")
def texts() -> list[NDArray[Any]]:
    generator = np.random.default_rng(1)
    return [generator.normal(size=(length, DIM)) for length in (0, 1, 2, 3, 5, 8)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_mix_is_that_of_the_formula(dtype: str) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(4, 5, DIM)).astype(dtype)
    scores, gamma = np.array([0.3, -1.2, 2.0]), 1.7
    layer = ScalarMix(NUM_LAYERS)
    layer.build(inputs.shape)
    set_mix(layer, scores, gamma)
    mixed = np.asarray(layer(inputs))
    softmax = np.exp(scores) / np.exp(scores).sum()
    expected = gamma * np.tensordot(inputs.reshape(4, 5, NUM_LAYERS, WIDTH), softmax, (2, 0))
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    np.testing.assert_allclose(layer.shares, softmax, atol=1e-7)


def test_an_untrained_mix_is_the_mean_of_the_layers() -> None:
    inputs = np.array([[[1.0, 10.0, 3.0, 30.0], [0.0, 0.0, 0.0, -4.0]]], np.float16)
    assert np.asarray(ScalarMix(2)(inputs)).tolist() == [[[2.0, 20.0], [0.0, -2.0]]]


def test_float16_layers_are_not_added_in_float16() -> None:
    inputs = np.full((1, 1, 4), 60_000.0, np.float16)
    mix = ScalarMix(4)
    mix.build(inputs.shape)
    set_mix(mix, np.zeros(4), 2.0)
    expected = 2.0 * float(np.float16(60_000.0))
    assert np.asarray(mix(inputs)).tolist() == [[[pytest.approx(expected)]]]


def test_a_mix_tells_its_shape() -> None:
    keras = import_keras()
    out = ScalarMix(NUM_LAYERS)(keras.Input((None, DIM), dtype="float16"))
    assert (out.shape, out.dtype) == ((None, None, WIDTH), "float32")
    assert ScalarMix(4).compute_output_shape((2, None, 8)) == (2, None, 2)


def test_layers_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1: got 0"):
        ScalarMix(0)
    with pytest.raises(ValueError, match="5 layers of one width do not make a row of 16"):
        ScalarMix(5)(np.zeros((1, 8, 16), np.float32))
    with pytest.raises(ValueError, match="5 layers of one width do not make a row of 16"):
        ScalarMix(5).compute_output_shape((None, None, 16))


@pytest.mark.parametrize("task", ["single", "multilabel"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("preset", PRESETS)
def test_training_changes_the_shares_and_gamma(
    preset: str, dtype: str, task: str, texts: list[NDArray[Any]]
) -> None:
    config, spec = config_of(preset), mixed_spec(dtype, task=task)
    model = build_model(config, spec)
    compile_model(model, config, spec)
    labels = np.array([0, 1, 2] * 2, np.int32)
    if task == "multilabel":
        labels = np.eye(3, dtype=np.uint8)[labels]
    before = learned_mix(model, NAMES)
    assert before == {"names": NAMES, "weights": [pytest.approx(1 / 3)] * 3, "gamma": 1.0}
    for _ in range(5):
        train_step(model, pad(texts, 8, dtype), labels)
    after = learned_mix(model, NAMES)
    assert sum(after["weights"]) == pytest.approx(1.0, abs=1e-6)
    # Together they stay 1: one of three may end where it was.
    assert sorted(abs(share - 1 / 3) for share in after["weights"])[1] > 1e-4
    assert abs(after["gamma"] - 1.0) > 1e-4


@pytest.mark.parametrize("preset", PRESETS)
def test_with_all_weight_on_one_layer_the_model_is_that_of_the_layer(
    preset: str, texts: list[NDArray[Any]]
) -> None:
    single = build_model(config_of(preset), ModelSpec(WIDTH, 3, "float32"))
    model = mixed_model(preset)
    for chosen in range(NUM_LAYERS):
        columns = slice(chosen * WIDTH, (chosen + 1) * WIDTH)
        alone = single.predict_on_batch(pad([text[:, columns] for text in texts], 8))
        set_mix(mix_of(model), np.zeros(NUM_LAYERS), 1.0)
        assert not np.allclose(model.predict_on_batch(pad(texts, 8)), alone, atol=1e-3)
        set_mix(mix_of(model), np.where(np.arange(NUM_LAYERS) == chosen, 0.0, -1e4), 1.0)
        np.testing.assert_allclose(model.predict_on_batch(pad(texts, 8)), alone, atol=1e-6)


def test_a_view_of_one_layer_gets_no_mix() -> None:
    one = build_model(config_of(), ModelSpec(WIDTH, 3, "float16", num_layers=1))
    assert not any(isinstance(layer, ScalarMix) for layer in one.layers)
    assert one.weights[0].path == "conv_0/kernel"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_padding_does_not_change_predictions_of_a_mix(
    dtype: str, texts: list[NDArray[Any]]
) -> None:
    model = mixed_model(dtype=dtype)
    generator = np.random.default_rng(2)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.get_weights()])
    together = model.predict_on_batch(pad(texts, 64, dtype))
    for place, text in enumerate(texts):
        for length in (max(1, len(text)), 8, 64):
            alone = model.predict_on_batch(pad([text], length, dtype))
            np.testing.assert_allclose(alone[0], together[place], atol=1e-5)


@pytest.mark.parametrize(("num_layers", "dtype"), [(1, "float32"), (NUM_LAYERS, "float16")])
def test_kernels_wider_than_the_text_can_be_trained(num_layers: int, dtype: str) -> None:
    """Sentences and empty texts: matrices of one row, or of none, and kernels of 3, 4 and 5."""
    config = config_of(kernel_sizes=(3, 4, 5))
    spec = ModelSpec(DIM, 2, dtype, num_layers=num_layers)
    model = build_model(config, spec)
    compile_model(model, config, spec)
    generator = np.random.default_rng(3)
    for length in range(1, 9):
        batch = pad([generator.normal(size=(n, DIM)) for n in (0, 1, length)], length, dtype)
        assert np.isfinite(train_step(model, batch, np.array([0, 1, 1], np.int32))[0])
        assert np.isfinite(model.predict_on_batch(batch)).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_saved_mix_loads_in_safe_mode(tmp_path: Path, texts: list[NDArray[Any]]) -> None:
    keras = import_keras()
    model = mixed_model("kim", "float16")
    set_mix(mix_of(model), [0.5, -0.5, 1.0], 0.8)
    with without_tensorflow():
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert learned_mix(loaded, NAMES) == learned_mix(model, NAMES)
    batch = pad(texts, 8, "float16")
    assert np.array_equal(model.predict_on_batch(batch), loaded.predict_on_batch(batch))


def make_layered(make_store: Callable[..., SmallStore], path: Path, dtype: str) -> SmallStore:
    output = f"all:{','.join(NAMES)}"
    return make_store(path, dim=DIM, num_layers=NUM_LAYERS, output=output, dtype=dtype)


def put_layers(
    small: SmallStore, chosen: int, lengths: Sequence[int], *, name: str = "small"
) -> list[str]:
    """A dataset of two classes that only one of the layers tells apart; the others are noise."""
    generator = np.random.default_rng(5)
    texts, labels, matrices = [], [], []
    for number in range(240):
        rows = lengths[number % len(lengths)]
        matrix = generator.normal(0.0, 1.0, (rows, NUM_LAYERS, WIDTH))
        matrix[:, chosen] *= 0.1
        label = int(generator.integers(2))
        if rows:
            matrix[generator.integers(rows), chosen, label] += 2.0
        texts.append(f"{name} {number}")
        labels.append(("no", "yes")[label])
        matrices.append(matrix.reshape(rows, DIM))
    small.put_texts(texts, matrices)
    splits = [SPLITS[number // 6 % len(SPLITS)] for number in range(len(texts))]
    small.put_dataset(texts, [(label,) for label in labels], splits=splits, name=name)
    return texts


@pytest.fixture(scope="module")
def layered(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., SmallStore]
) -> SmallStore:
    """A store of three layers with the datasets "first" and "last": where their signal is."""
    small = make_layered(make_store, tmp_path_factory.mktemp("layers") / "store", "float16")
    for name, chosen in (("first", 0), ("last", NUM_LAYERS - 1)):
        put_layers(small, chosen, lengths=(1, 2, 3, 5, 8, 12), name=name)
    return small


@pytest.fixture(scope="module")
def runs(layered: SmallStore) -> dict[str, Run]:
    """A run on each of its datasets."""
    config = TrainConfig(epochs=8, **FAST)
    return {name: train(layered.store, name, config) for name in ("first", "last")}


@pytest.mark.parametrize(("name", "chosen"), [("first", 0), ("last", NUM_LAYERS - 1)])
def test_the_mix_prefers_the_layer_with_the_signal(
    runs: dict[str, Run], name: str, chosen: int
) -> None:
    weights = runs[name].layer_weights
    assert weights is not None
    assert weights["names"] == NAMES
    assert sum(weights["weights"]) == pytest.approx(1.0, abs=1e-6)
    assert weights["weights"][chosen] == max(weights["weights"])
    assert weights["weights"][chosen] > 0.5
    assert runs[name].metrics["test"]["accuracy"] >= 0.95


def assert_told_as_saved(run: Run) -> None:
    details = json.loads((run.path / "run.json").read_text())
    assert details["layer_weights"] == run.layer_weights
    model = load_model(run.path / "model.keras", run.name, details)
    assert learned_mix(model, NAMES) == run.layer_weights


def test_a_loaded_run_has_the_same_mix(layered: SmallStore, runs: dict[str, Run]) -> None:
    run = runs["first"]
    assert_told_as_saved(run)
    loaded = load_run(layered.store, run.name)
    assert loaded.layer_weights == run.layer_weights
    texts = [f"first {number}" for number in range(30)]
    assert loaded.predict(texts) == run.predict(texts)


def test_folds_tell_the_mix_of_the_model_that_is_kept(layered: SmallStore) -> None:
    run = train(layered.store, "first", TrainConfig(preset="basic", epochs=1, folds=2, filters=8))
    assert_told_as_saved(run)
    assert run.layer_weights is not None
    assert run.layer_weights["gamma"] != 1.0


def test_runs_of_other_views_have_no_layer_weights(shared: SmallStore, two_run: Run) -> None:
    assert two_run.layer_weights is None
    assert load_run(shared.store, two_run.name).layer_weights is None
    assert "layer_weights" not in json.loads((two_run.path / "run.json").read_text())


@pytest.mark.parametrize(("num_layers", "dtype"), [(1, "float32"), (NUM_LAYERS, "float16")])
def test_texts_of_one_row_and_of_none_can_be_trained_and_labelled(
    tmp_path: Path, make_store: Callable[..., SmallStore], num_layers: int, dtype: str
) -> None:
    if num_layers > 1:
        small = make_layered(make_store, tmp_path / "store", dtype)
    else:
        small = make_store(tmp_path / "store", dim=DIM, dtype=dtype)
    texts = put_layers(small, 1, lengths=(1, 0, 1))
    run = train(small.store, "small", TrainConfig(**{**FAST, "batch_size": 48}, epochs=6))
    predictions = run.predict(texts)
    assert all(np.isfinite(list(found.probabilities.values())).all() for found in predictions)
    # All empty texts are alike to the model, whatever batch they stand in.
    assert np.ptp([predictions[place].probability for place in range(1, 240, 3)]) < 1e-6
    dataset = small.store.load_dataset("small")
    wanted = [run.labels[label] for label in dataset.first_labels(dataset.rows_of_split(None))]
    is_right = [found.label == label for found, label in zip(predictions, wanted, strict=True)]
    assert np.mean([right for place, right in enumerate(is_right) if place % 3 != 1]) >= 0.9
