"""Kim's (2014) four models: random, static, nonstatic, and both of the last side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnn.backend import import_keras
from cnn.config import ResolvedConfig, TrainConfig
from cnn.layers import MaskedMaxOverTime, TokenVectors
from cnn.model import ModelSpec, build_model, compile_model, model_inputs, train_step

NUM_TOKENS = 20
DIM = 6
LABELS = np.array([0, 1, 1, 0, 1], np.int32)
LENGTHS = np.array([8, 0, 1, 5, 3], np.int32)


def config_of(embedding: str = "nonstatic", preset: str = "kim", **changes: Any) -> ResolvedConfig:
    plain = {"dropout": 0.0, "kernel_sizes": (2, 3), "filters": 4}
    return TrainConfig(preset=preset, embedding=embedding, **{**plain, **changes}).resolved()


SPEC = ModelSpec(DIM, 2, "float32", num_tokens=NUM_TOKENS)


def compiled(config: ResolvedConfig) -> Any:
    model = build_model(config, SPEC)
    compile_model(model, config, SPEC)
    return model


@pytest.fixture(scope="module")
def cached() -> NDArray[np.float32]:
    """The rows of a table: row 0 zeros."""
    rows = np.random.default_rng(0).normal(size=(NUM_TOKENS + 1, DIM)).astype(np.float32)
    rows[0] = 0.0
    return rows


@pytest.fixture(scope="module")
def numbers() -> NDArray[np.int32]:
    """Numbers of the tokens of five texts; every token is in the table."""
    drawn = np.random.default_rng(1).integers(1, NUM_TOKENS - 4, (5, 8)).astype(np.int32)
    return np.where(np.arange(8) < LENGTHS[:, None], drawn, 0)


@pytest.fixture(scope="module")
def batch(cached: NDArray[np.float32], numbers: NDArray[np.int32]) -> list[NDArray[Any]]:
    return [cached[numbers], LENGTHS, numbers]


def table_of(model: Any, name: str = "change") -> NDArray[np.float32]:
    (table,) = model.get_layer(name).get_weights()
    assert isinstance(table, np.ndarray)
    return table


def plain_model(cached: NDArray[np.float32], config: ResolvedConfig) -> Any:
    """The same network with a Keras Embedding that starts from the cached vectors."""
    keras = import_keras()
    layers = keras.layers
    lengths = keras.Input((), dtype="int32")
    numbers = keras.Input((None,), dtype="int32")
    embedding = layers.Embedding(NUM_TOKENS + 1, DIM, name="vectors")
    tokens = embedding(numbers)
    pooled = [
        MaskedMaxOverTime()(
            layers.Conv1D(config.filters, width, padding="same", activation="relu",
                          data_format="channels_last")(tokens),
            lengths,
        )
        for width in config.kernel_sizes
    ]  # fmt: skip
    classes = layers.Dense(2, activation="softmax")(layers.Concatenate()(pooled))
    model = keras.Model([lengths, numbers], classes)
    embedding.set_weights([cached])
    return model


@pytest.mark.parametrize("optimizer", ["adam", "adadelta"])
def test_nonstatic_trains_as_a_table_that_starts_from_the_cached_vectors(
    optimizer: str, cached: NDArray[np.float32], batch: list[NDArray[Any]]
) -> None:
    config = config_of(optimizer=optimizer, max_norm=0)
    ours = compiled(config)
    plain = plain_model(cached, config)
    plain.set_weights([cached, *ours.get_weights()[1:]])
    compile_model(plain, config, SPEC)
    _, lengths, numbers = batch
    losses = []
    for _ in range(5):
        ours_loss, _ = train_step(ours, batch, LABELS)
        plain_loss, _ = train_step(plain, [lengths, numbers], LABELS)
        losses.append(ours_loss)
        assert ours_loss == pytest.approx(plain_loss, abs=1e-5)
        vectors = table_of(plain, "vectors").copy()
        # The plain table learns a vector for padding, which Kim's does not either.
        vectors[0] = 0.0
        plain.get_layer("vectors").set_weights([vectors])
        np.testing.assert_allclose((table_of(ours) + cached)[1:], vectors[1:], atol=1e-5)
    assert losses[-1] < losses[0]
    assert np.abs(table_of(ours)).max() > 1e-4


@pytest.mark.parametrize("optimizer", ["adam", "adadelta"])
@pytest.mark.parametrize("preset", ["kim", "basic", "linear"])
@pytest.mark.parametrize(
    ("embedding", "name"), [("rand", "table"), ("nonstatic", "change"), ("multichannel", "change")]
)
def test_row_zero_stays_zero_and_rows_that_never_occur_stay_what_they_were(
    embedding: str, name: str, preset: str, optimizer: str, batch: list[NDArray[Any]]
) -> None:
    fields = {"kernel_sizes": None, "filters": None} if preset == "linear" else {}
    model = compiled(config_of(embedding, preset, optimizer=optimizer, **fields))
    before = table_of(model, name)
    for _ in range(3):
        train_step(model, batch, LABELS)
    after = table_of(model, name)
    assert not after[0].any()
    assert np.array_equal(before[-4:], after[-4:])
    seen = np.unique(batch[2][batch[2] > 0])
    assert (np.abs(after - before)[seen].max(axis=1) > 0).all()


def test_a_plain_table_would_not_keep_its_row_zero(
    cached: NDArray[np.float32], batch: list[NDArray[Any]]
) -> None:
    config = config_of(max_norm=0)
    plain = plain_model(cached, config)
    compile_model(plain, config, SPEC)
    for _ in range(3):
        train_step(plain, batch[1:], LABELS)
    assert table_of(plain, "vectors")[0].any()


def test_tokens_that_are_in_no_table_keep_their_cached_vectors(
    batch: list[NDArray[Any]],
) -> None:
    values, lengths, numbers = batch
    nonstatic = compiled(config_of())
    for _ in range(3):
        train_step(nonstatic, batch, LABELS)
    static_config = config_of("static")
    static = build_model(static_config, ModelSpec(DIM, 2, "float32"))
    static.set_weights(nonstatic.get_weights()[1:])
    unknown = nonstatic.predict_on_batch([values, lengths, np.zeros_like(numbers)])
    assert np.array_equal(unknown, static.predict_on_batch([values, lengths]))
    known = nonstatic.predict_on_batch(batch)
    assert np.abs(known - unknown).max() > 1e-4


def test_an_untrained_nonstatic_model_is_the_static_one(batch: list[NDArray[Any]]) -> None:
    nonstatic = build_model(config_of(), SPEC)
    static = build_model(config_of("static"), ModelSpec(DIM, 2, "float32"))
    wanted = static.predict_on_batch(batch[:2])
    assert np.array_equal(nonstatic.predict_on_batch(batch), wanted)


def test_random_vectors_are_drawn_as_kim_drew_them_and_depend_on_the_seed() -> None:
    first, same, other = (
        table_of(build_model(config_of("rand", seed=seed), SPEC), "table") for seed in (0, 0, 1)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not first[0].any()
    assert 0.2 < np.abs(first[1:]).max() <= 0.25
    assert abs(first[1:].mean()) < 0.05


def test_a_random_model_does_not_look_at_the_cached_vectors(batch: list[NDArray[Any]]) -> None:
    model = build_model(config_of("rand"), SPEC)
    values, lengths, numbers = batch
    probabilities = model.predict_on_batch(batch)
    assert np.array_equal(model.predict_on_batch([values * 7.0, lengths, numbers]), probabilities)
    other = model.predict_on_batch([values, lengths, np.where(numbers > 0, 21 - numbers, 0)])
    assert np.abs(other - probabilities).max() > 1e-4


def test_multichannel_filters_have_weights_for_both_channels(batch: list[NDArray[Any]]) -> None:
    multichannel = build_model(config_of("multichannel"), SPEC)
    assert multichannel.get_layer("conv_0").get_weights()[0].shape == (2, 2 * DIM, 4)
    # With a trained table, and weights for one channel only, it is the model of that channel.
    change = np.random.default_rng(2).normal(size=(NUM_TOKENS + 1, DIM)).astype(np.float32)
    nonstatic = build_model(config_of(), SPEC)
    nonstatic.get_layer("change").set_weights([change])
    static = build_model(config_of("static"), ModelSpec(DIM, 2, "float32"))
    multichannel.get_layer("change").set_weights([change])
    multichannel.get_layer("classes").set_weights(nonstatic.get_layer("classes").get_weights())
    for channel, single, inputs in ((0, static, batch[:2]), (1, nonstatic, batch)):
        for name in ("conv_0", "conv_1"):
            kernel, bias = nonstatic.get_layer(name).get_weights()
            wide = np.zeros((kernel.shape[0], 2 * DIM, 4), np.float32)
            wide[:, channel * DIM : (channel + 1) * DIM] = kernel
            multichannel.get_layer(name).set_weights([wide, bias])
        np.testing.assert_allclose(
            multichannel.predict_on_batch(batch), single.predict_on_batch(inputs), atol=1e-6
        )


def test_a_table_and_an_embedding_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding nonstatic needs a token table"):
        build_model(config_of(), ModelSpec(DIM, 2, "float32"))
    with pytest.raises(ValueError, match="static embedding has no token table"):
        build_model(config_of("static"), SPEC)
    layered = ModelSpec(DIM, 2, "float32", num_layers=2, num_tokens=3)
    with pytest.raises(ValueError, match="embedding rand is for views of one layer only"):
        build_model(config_of("rand"), layered)
    with pytest.raises(ValueError, match="num_tokens and dim must be at least 1: got 0 and 6"):
        TokenVectors(0, 6)


class FakeBatch:
    """What `model_inputs` takes of a batch."""

    def __init__(self, token_numbers: NDArray[np.int32] | None) -> None:
        self.values = np.zeros((1, 8, DIM), np.float32)
        self.lengths = np.array([3], np.int32)
        self.token_numbers = token_numbers


def test_a_model_is_fed_what_it_takes() -> None:
    numbers = np.ones((1, 8), np.int32)
    static_spec = ModelSpec(DIM, 2, "float32")
    static, nonstatic = (
        build_model(config_of("static"), static_spec),
        build_model(config_of(), SPEC),
    )
    for taker, count in ((static_spec, 2), (static, 2), (SPEC, 3), (nonstatic, 3)):
        assert len(model_inputs(taker, FakeBatch(numbers))) == count
    assert [entry.name for entry in nonstatic.inputs] == ["values", "lengths", "token_numbers"]
    with pytest.raises(ValueError, match="stream with token_table="):
        model_inputs(nonstatic, FakeBatch(None))
